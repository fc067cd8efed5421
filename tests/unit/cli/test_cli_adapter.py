"""`vnic adapter`."""

import os
from dataclasses import replace

import pytest
from fake_daemon import ADAPTER, EXTERNAL
from in_process import Command

from vnic.cli.card import CAPS_WORD
from vnic.cli.grammar import Group
from vnic.control import interface as api


def refusal(vnic: Command, line: str) -> dict[str, object]:
    result = vnic(f"-j {line}")
    assert (result.code, result.out, result.requests) == (1, "", [])
    return result.error


def test_add_says_everything(vnic: Command) -> None:
    result = vnic(
        "adapter add left tap vnic0 netns red address 10.1.0.1/24 address 2001:db8::1/64 "
        "mac 02:00:00:00:00:0A mtu 1400 nonip drop without tx-udp-segmentation wire netdev eth1 netns blue"
    )
    assert (result.code, result.out) == (0, "")
    assert result.request == api.AddAdapter(
        name="left",
        tap="vnic0",
        netns="red",
        addresses=["10.1.0.1/24", "2001:db8::1/64"],
        mac="02:00:00:00:00:0a",
        mtu=1400,
        non_ip="drop",
        features_off=["tx-udp-segmentation"],
        wire=api.Wire(kind="netdev", name="eth1", netns="blue"),
    )


@pytest.mark.parametrize(
    ("words", "wire"),
    [
        ("wire none", api.Wire(kind="none")),
        ("wire link right", api.Wire(kind="link", name="right")),
        ("wire tap vnic1 netns blue", api.Wire(kind="tap", name="vnic1", netns="blue")),
        ("wire netdev eth1", api.Wire(kind="netdev", name="eth1")),
        (
            "wire udp 192.0.2.1 [2001:db8::2]:4501 netns blue keepalive 0 follow on",
            api.Wire(
                kind="udp",
                local="192.0.2.1",
                remote="[2001:db8::2]:4501",
                netns="blue",
                keepalive=0,
                follow=True,
            ),
        ),
        ("", None),
    ],
)
def test_a_wire_is_a_link_a_device_a_tap_or_nothing(vnic: Command, words: str, wire: api.Wire | None) -> None:
    assert vnic(f"adapter add left tap vnic0 {words}").request.wire == wire


def test_words_behind_the_wire_are_the_adapters_again(vnic: Command) -> None:
    made = vnic("adapter add left tap vnic0 netns red wire link right mtu default address 10.0.0.1/8").request
    assert (made.netns, made.mtu, made.addresses) == ("red", None, ["10.0.0.1/8"])


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("adapter add", "name"),
        ("adapter add left", "tap"),
        ("adapter add left tap", "tap"),
        ("adapter add left tap t tap u", "tap"),
        ("adapter add left tap t wire", "wire"),
        ("adapter add left tap t wire link", "wire link"),
        ("adapter add left tap t wire udp 192.0.2.1", "wire udp"),
        ("adapter add left tap t wire netdev e keepalive 5", "wire keepalive"),
        ("adapter add left tap t wire link a tap b", "wire"),
        ("adapter add left tap t wire none netns x", "wire netns"),
        ("adapter add left tap t wire link a netns x", "wire netns"),
        ("adapter add left tap t wire netns x", "wire"),
        ("adapter add left tap t address 10.0.0.1", "address"),
        ("adapter add left tap t mac 1", "mac"),
        ("adapter add left tap t mtu 5", "mtu"),
        ("adapter add left tap t nonip maybe", "nonip"),
        ("adapter add left tap t fragments pass", "fragments"),
        ("adapter set", "name"),
        ("adapter set left", "set"),
        ("adapter set left up down", "up"),
        ("adapter set left capture", "capture"),
        ("adapter set left capture wire", "capture"),
        ("adapter set left capture host /tmp/x", "capture"),
        ("adapter delete", "name"),
        ("adapter rename left right", ""),
    ],
)
def test_a_wrong_line_names_the_word(vnic: Command, line: str, field: str) -> None:
    error = refusal(vnic, line)
    assert error["field"] == field
    assert error["allowed"]


@pytest.mark.parametrize(
    ("words", "request_"),
    [
        ("mtu default", api.SetAdapter(name="left", mtu=0)),
        ("mtu 9000 mac 02:00:00:00:00:01", api.SetAdapter(name="left", mtu=9000, mac="02:00:00:00:00:01")),
        ("nonip pass", api.SetAdapter(name="left", non_ip="pass")),
        ("fragmentation after", api.SetAdapter(name="left", fragmentation="after")),
        (
            "vlan drop prohibited answer reassembly 512K",
            api.SetAdapter(name="left", vlan="drop", prohibited="answer", reassembly=1 << 19),
        ),
        ("vlan pass reassembly 1g", api.SetAdapter(name="left", vlan="pass", reassembly=1 << 30)),
        ("cipher-limits enforce", api.SetAdapter(name="left", cipher_limits="enforce")),
        ("fragments stateful", api.SetAdapter(name="left", fragments="stateful")),
        ("address 10.0.0.1/8", api.SetAdapter(name="left", addresses=["10.0.0.1/8"])),
        ("up", api.SetAdapter(name="left", up=True)),
        ("down", api.SetAdapter(name="left", up=False)),
        ("wire link right", api.SetAdapter(name="left", wire=api.Wire(kind="link", name="right"))),
        ("capture off", api.SetAdapter(name="left", capture=api.Capture(place="off"))),
        ("capture tap off", api.SetAdapter(name="left", capture=api.Capture(place="off"))),
        (
            "capture wire /tmp/x",
            api.SetAdapter(name="left", capture=api.Capture(place="wire", file="/tmp/x")),
        ),
    ],
)
def test_set_changes_what_is_named(vnic: Command, words: str, request_: api.SetAdapter) -> None:
    result = vnic(f"adapter set left {words}")
    assert (result.code, result.out) == (0, "")
    assert result.request == request_


def test_the_file_of_a_capture_is_where_the_user_stands(vnic: Command) -> None:
    assert vnic("adapter set left capture tap x.pcapng").request.capture.file == os.path.abspath("x.pcapng")


def test_delete(vnic: Command) -> None:
    assert vnic("adapter delete left").request == api.DeleteAdapter(name="left")
    assert vnic("-j adapter delete left").json == {"deleted": "left"}


def test_show_one_or_all(vnic: Command) -> None:
    assert vnic("adapter show left").request == api.ListAdapters(name="left")
    assert vnic("adapter").request == api.ListAdapters()
    assert [one["name"] for one in vnic("-j adapter").json] == ["left"]


def test_show_reads_like_this(vnic: Command) -> None:
    assert vnic("adapter").out == (
        "left: running engine reference\n"
        "    tap vnic0 netns red mac 02:00:00:00:00:01 mtu 1422 (default) up\n"
        "    address 10.1.0.1/24\n"
        "    address 192.0.2.1/24\n"
        "    wire link right mtu 1500\n"
        "    sas 2 policies 2 default in allow out block nonip pass\n"
    )
    assert vnic("-br adapter").out == (
        "ADAPTER  STATE    TAP    NETNS   MTU  WIRE        SAS  POLICIES  ADDRESSES\n"
        "left     running  vnic0  red    1422  link right    2         2  10.1.0.1/24 192.0.2.1/24\n"
    )


def test_more_is_shown_when_asked_for(vnic: Command) -> None:
    statistics = vnic("-s adapter").out
    assert "    card tx offloaded 7 software 5 bypassed 1 passed 3\n" in statistics
    assert "    wire rx 10 frames 1000 bytes tx 20 frames 2000 bytes\n" in statistics
    assert "    feature tap tx-udp-segmentation: off: the kernel refused\n" in vnic("-d adapter").out
    assert vnic("-d adapter add left tap t").out.startswith("left: running")


def test_a_failed_adapter_says_why_and_a_capture_is_shown(vnic: Command) -> None:
    failed = replace(
        ADAPTER,
        state="failed",
        reason="the TAP is gone",
        capture=api.CaptureState(place="wire", file="/tmp/x", state="on", frames_written=7, frames_lost=2),
    )
    vnic.memory.answers[api.ListAdapters] = api.AdaptersReply(adapters=[failed])
    out = vnic("adapter").out
    assert out.startswith("left: failed (the TAP is gone) engine reference\n")
    assert "    capture wire /tmp/x on frames 7 lost 2\n" in out


def test_without_adapters_there_is_nothing_to_read(vnic: Command) -> None:
    vnic.memory.answers[api.ListAdapters] = api.AdaptersReply(adapters=[])
    assert vnic("adapter").out == ""
    assert vnic("-br adapter").out == ""
    assert vnic("-j adapter").json == []


# ------------------------------------------------------------------------------------ cards to model


def test_a_card_is_modelled_in_the_words_of_the_configuration(vnic: Command) -> None:
    request = vnic(
        "adapter add gcm tap t0 software off keyword IPsecOffloadV2 2 keyword *IPsecOffloadV1IPv4 0 "
        "caps encryptions aes-gcm-128,null integrities none esn off udp_esp udp_transport "
        "sa_capacity 64 v1 off mtu 1400"
    ).request
    assert request == api.AddAdapter(
        name="gcm",
        tap="t0",
        mtu=1400,
        software=False,
        keywords={"IPsecOffloadV2": 2, "*IPsecOffloadV1IPv4": 0},
        capabilities=api.Capabilities(
            encryptions=["aes-gcm-128", "null"],
            integrities=[],
            esn=False,
            udp_esp=["udp_transport"],
            sa_capacity=64,
            v1=api.V1Capabilities(enabled=False),
        ),
    )


def test_every_member_of_a_card_has_its_word() -> None:
    group = CAPS_WORD.operand
    assert isinstance(group, Group)
    said = {word.name for word in group.vocabulary.words}
    members = {one.name for one in api.fields_of(api.Capabilities)} - {"v1"}
    assert said == members | {f"v1.{one.name}" for one in api.fields_of(api.V1Capabilities)}


@pytest.mark.parametrize(
    ("words", "field", "allowed"),
    [
        ("encryptions aes", "caps encryptions", "aes-gcm-128"),
        ("udp_esp x", "caps udp_esp", "udp_tunnel"),
        ("esn maybe", "caps esn", "on, off"),
        ("sa_capacity 0", "caps sa_capacity", "1 to 1048576"),
        ("v1.ah_send 2", "caps v1.ah_send", "on, off"),
    ],
)
def test_a_wrong_word_of_a_card_says_what_is_allowed(
    vnic: Command, words: str, field: str, allowed: str
) -> None:
    result = vnic(f"-j adapter add x tap t0 caps {words}")
    assert result.code == 1
    assert result.error["field"] == field
    assert allowed in result.error["allowed"]


def test_an_external_adapter_has_a_socket_and_no_tap(vnic: Command) -> None:
    request = vnic("adapter add bare transport external nbl-socket /run/x.nbl wire netdev eth1").request
    assert request == api.AddAdapter(
        name="bare",
        transport="external",
        nbl_socket="/run/x.nbl",
        wire=api.Wire(kind="netdev", name="eth1"),
    )
    missing = vnic("-j adapter add bare wire none")
    assert (missing.code, missing.error["field"]) == (1, "tap")


def test_an_external_adapter_is_shown_with_its_driver(vnic: Command) -> None:
    vnic.memory.answers[api.ListAdapters] = api.AdaptersReply(adapters=[EXTERNAL])
    assert vnic("adapter").out == (
        "bare: paused engine reference\n"
        "    transport external nbl-socket /run/vnic/bare.nbl driver attached\n"
        "    wire link right mtu 1500\n"
        "    sas 2\n"
        "    keywords *IPsecOffloadV1IPv4 3 *IPsecOffloadV2 2 *IPsecOffloadV2IPv4 3\n"
    )
    assert "/run/vnic/bare.nbl" in vnic("-br adapter").out
    assert vnic("-d -s adapter").code == 0


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        ("adapter reset left", api.ResetAdapter(name="left")),
        ("adapter reset left hold 500", api.ResetAdapter(name="left", hold_ms=500)),
        ("adapter pause left", api.PauseAdapter(name="left")),
        ("adapter resume left", api.ResumeAdapter(name="left")),
        ("adapter restart left", api.RestartAdapter(name="left")),
        ("adapter remove left", api.RemoveAdapter(name="left")),
        (
            "adapter set left keyword IPsecOffloadV2 0",
            api.SetAdapter(name="left", keywords={"IPsecOffloadV2": 0}),
        ),
        ("sa request-delete dev left handle 0x200000001", None),
    ],
)
def test_the_nic_is_reset_paused_restarted_and_removed(
    vnic: Command, line: str, request_: api.Call[object] | None
) -> None:
    wanted = request_ or api.RequestSaDeletion(adapter="left", handle=0x200000001)
    result = vnic(line)
    assert (result.code, result.out) == (0, "")
    assert result.request == wanted
