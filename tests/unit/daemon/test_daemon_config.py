"""The configuration file: what it becomes, and what an error says."""

from pathlib import Path

import pytest

from vnic.control.interface import AddAdapter, Capabilities, V1Capabilities, Wire
from vnic.daemon.config import Config, load, parse
from vnic.errors import ConfigError
from vnic.ndis.keywords import HostSwitches

LEFT = '[[adapter]]\nname = "left"\ntap = "tap0"\n'
RIGHT = '[[adapter]]\nname = "right"\ntap = "tap1"\n'

FULL = """
log_level = "debug"

[control]
socket = "/tmp/v.sock"
reader_group = "staff"
administrator_group = "wheel"
reveal_keys = false

[host]
disable_task_offload = true
enable_ipsec_offload = false

[[adapter]]
name = "left"
tap = "tap0"
netns = "blue"
addresses = ["10.9.0.1/24", "fd09::1/64"]
mac = "02:00:00:00:00:01"
mtu = 1400
wire = { link = "right" }
non_ip = "drop"
fragments = "stateful"
policy_default_in = "block"
policy_default_out = "block"
fragmentation = "after"
vlan = "drop"
prohibited = "answer"
reassembly = 1048576
cipher_limits = "enforce"
features_off = ["tx-udp-segmentation"]
queues = 2

[[adapter]]
name = "right"
tap = "tap0"
netns = "red"
mtu = "default"
wire = "none"

[[adapter]]
name = "third"
tap = "tap2"
wire = { netdev = "eth1", netns = "blue" }
software = false

[adapter.capabilities]
encryptions = ["aes-gcm-128"]
esn = false
sa_capacity = 16
[adapter.capabilities.v1]
enabled = false

[adapter.keywords]
"*IPsecOffloadV2" = 2

[[adapter]]
name = "fourth"
transport = "external"
nbl_socket = "/run/vnic/mine.nbl"
wire = { udp = "192.0.2.1", remote = "192.0.2.2:4501", keepalive = 10, follow = true }
"""

ALL_ON = {"*IPsecOffloadV1IPv4": 3, "*IPsecOffloadV2": 3, "*IPsecOffloadV2IPv4": 3}


def test_empty_file_means_the_defaults() -> None:
    config = parse("", "v.toml")
    assert config == Config(path="v.toml")
    assert config.control.socket == "/run/vnic/vnic.sock"
    assert config.control.reader_group == "vnic"
    assert config.control.administrator_group == ""


def test_every_key_is_understood() -> None:
    config = parse(FULL, "v.toml")
    assert config.log_level == "debug"
    assert config.control.socket == "/tmp/v.sock"
    assert (config.control.reader_group, config.control.administrator_group) == ("staff", "wheel")
    assert config.control.reveal_keys is False
    assert config.host == HostSwitches(disable_task_offload=True, enable_ipsec_offload=False)
    left, right, third, fourth = config.adapters
    assert left == AddAdapter(
        name="left",
        tap="tap0",
        netns="blue",
        addresses=["10.9.0.1/24", "fd09::1/64"],
        mac="02:00:00:00:00:01",
        mtu=1400,
        wire=Wire(kind="link", name="right"),
        non_ip="drop",
        fragments="stateful",
        policy_default_in="block",
        policy_default_out="block",
        fragmentation="after",
        vlan="drop",
        prohibited="answer",
        reassembly=1 << 20,
        cipher_limits="enforce",
        features_off=["tx-udp-segmentation"],
        transport="inline",
        software=True,
        queues=2,
        keywords=ALL_ON,
    )
    assert (right.mtu, right.wire, right.non_ip, right.policy_default_in) == (
        None,
        Wire(kind="none"),
        "pass",
        "allow",
    )
    assert third.wire == Wire(kind="netdev", name="eth1", netns="blue")
    assert third.software is False
    assert third.capabilities == Capabilities(
        encryptions=["aes-gcm-128"], esn=False, sa_capacity=16, v1=V1Capabilities(enabled=False)
    )
    assert third.keywords == {**ALL_ON, "*IPsecOffloadV2": 2}
    assert fourth == AddAdapter(
        name="fourth",
        wire=Wire(kind="udp", local="192.0.2.1", remote="192.0.2.2:4501", keepalive=10, follow=True),
        transport="external",
        nbl_socket="/run/vnic/mine.nbl",
        keywords=ALL_ON,
    )


def test_links_may_be_named_at_either_end_or_both() -> None:
    parse(LEFT + 'wire = { link = "right" }\n' + RIGHT, "v.toml")
    parse(LEFT + RIGHT + 'wire = { link = "left" }\n', "v.toml")
    parse(LEFT + 'wire = { link = "right" }\n' + RIGHT + 'wire = { link = "left" }\n', "v.toml")


EXTERNAL = '[[adapter]]\nname = "card"\ntransport = "external"\n'
THIRD = '[[adapter]]\nname = "third"\ntap = "tap2"\n'


@pytest.mark.parametrize(
    ("text", "field", "value", "allowed"),
    [
        ("colour = 1", "colour", "", "log_level, engine, control, host, state, adapter"),
        ("[host]\ndisable = true", "host.disable", "", "disable_task_offload, enable_ipsec_offload"),
        ('log_level = "loud"', "log_level", "'loud'", '"error", "warning", "info", "debug"'),
        ("[control]\nsocket = 5", "control.socket", "5", "a text"),
        ("[control]\nsockt = 'x'", "control.sockt", "", "socket, reader_group"),
        ("[control]\nsocket = 'x'", "control.socket", "x", "an absolute path"),
        (f"[control]\nsocket = '/{'x' * 200}'", "control.socket", "/xxx", "107 bytes"),
        ("[control]\nreveal_keys = 'no'", "control.reveal_keys", "'no'", "true or false"),
        ("adapter = 3", "adapter", "3", "a table with name, tap"),
        ("[[adapter]]\nname = 'left'", "adapter.left.tap", "", "a device name, or transport external"),
        ("[[adapter]]\ntap = 'left'", "adapter[0].name", "", "a text"),
        ("[[adapter]]\nname = 5\ntap = 'x'", "adapter[0].name", "5", "a text"),
        (LEFT + "colour = 1", "adapter.left.colour", "", "addresses, mac, mtu, wire"),
        (LEFT + "mtu = 'big'", "adapter.left.mtu", "'big'", 'an integer, or "default"'),
        (LEFT + "mtu = 67", "adapter.left.mtu", "67", "68 to 65521"),
        (LEFT + "mtu = 65522", "adapter.left.mtu", "65522", "68 to 65521"),
        (LEFT + "mtu = true", "adapter.left.mtu", "True", 'an integer, or "default"'),
        (LEFT + "mac = '01:00:00:00:00:00'", "adapter.left.mac", "01:00:00:00:00:00", "six octets"),
        (LEFT + "addresses = ['10.0.0.1']", "adapter.left.addresses", "10.0.0.1", "with prefix length"),
        (LEFT + "addresses = [3]", "adapter.left.addresses[0]", "3", "a text"),
        (LEFT + "netns = 'a/b'", "adapter.left.netns", "a/b", "/run/netns"),
        (LEFT + "non_ip = 'maybe'", "adapter.left.non_ip", "'maybe'", '"pass", "drop"'),
        (LEFT + "policy_default_in = 'x'", "adapter.left.policy_default_in", "'x'", '"allow", "block"'),
        (LEFT + "features_off = ['x']", "adapter.left.features_off", "x", "tx-checksumming"),
        (LEFT + "wire = 'air'", "adapter.left.wire", "'air'", '"none"'),
        (
            LEFT + "wire = { air = 'x' }",
            "adapter.left.wire.air",
            "",
            "link, netdev, tap, udp, remote, keepalive, follow, netns",
        ),
        (LEFT + "wire = {}", "adapter.left.wire", "", "exactly one of"),
        (LEFT + "wire = { link = 'a', tap = 'b' }", "adapter.left.wire", "link, tap", "exactly one of"),
        (LEFT + "wire = { netdev = '' }", "adapter.left.wire", "", "1 to 15 characters"),
        (LEFT + "wire = { tap = 'x', netns = '..' }", "adapter.left.wire.netns", "..", "/run/netns"),
        (LEFT + "wire = { link = 'right', netns = 'x' }", "adapter.left.wire.netns", "x", "nothing"),
        (LEFT + "wire = { tap = 'tap0' }", "adapter.left.wire", "tap0", "another device"),
        (LEFT + "wire = { link = 'left' }", "adapter.left.wire", "left", "another adapter"),
        (LEFT + "wire = { link = 'right' }", "adapter.left.wire.link", "right", 'wire is "none"'),
        (
            LEFT + "wire = { link = 'right' }\n" + RIGHT + "wire = { netdev = 'eth0' }",
            "adapter.left.wire.link",
            "right",
            'wire is "none"',
        ),
        (
            LEFT + "wire = { link = 'right' }\n" + RIGHT + THIRD + "wire = { link = 'right' }",
            "adapter.third.wire.link",
            "right",
            'wire is "none"',
        ),
        (LEFT + "transport = 'external'", "adapter.left.tap", "tap0", "transport inline"),
        (LEFT + "transport = 'air'", "adapter.left.transport", "'air'", '"inline", "external"'),
        (LEFT + "nbl_socket = '/x'", "adapter.left.nbl_socket", "/x", "transport external"),
        (EXTERNAL + "nbl_socket = 'x'", "adapter.card.nbl_socket", "x", "an absolute path"),
        (EXTERNAL + "mtu = 1400", "adapter.card.mtu", "1400", "transport inline"),
        (EXTERNAL + "software = true", "adapter.card.software", "true", "transport inline"),
        (
            EXTERNAL + "nbl_socket = '/x'\n" + EXTERNAL.replace("card", "other") + "nbl_socket = '/x'",
            "adapter.other.nbl_socket",
            "/x",
            "another path",
        ),
        (LEFT + "capabilities = 3", "adapter.left.capabilities", "3", "a table with encryptions"),
        (LEFT + "capabilities.aes = true", "adapter.left.capabilities.aes", "", "encryptions, integrities"),
        (LEFT + "capabilities.esn = 1", "adapter.left.capabilities.esn", "1", "true or false"),
        (
            LEFT + "capabilities.encryptions = ['aes']",
            "adapter.left.capabilities.encryptions",
            "aes",
            "null, des-cbc",
        ),
        (
            LEFT + "capabilities.udp_esp = ['x']",
            "adapter.left.capabilities.udp_esp[0]",
            "'x'",
            '"udp_transport"',
        ),
        (
            LEFT + "capabilities.v1.esp_aes = true",
            "adapter.left.capabilities.v1.esp_aes",
            "",
            "enabled, ah_esp_combined",
        ),
        (LEFT + "keywords = 3", "adapter.left.keywords", "3", "a table of names, each with an integer"),
        (LEFT + "keywords.x = 3", "adapter.left.keywords", "x", "*IPsecOffloadV2"),
        (
            LEFT + "keywords.'*IPsecOffloadV2' = 9",
            "adapter.left.keywords.*IPsecOffloadV2",
            "9",
            "3 (AH and ESP)",
        ),
        (LEFT.replace("left", "le ft"), "adapter.le ft.name", "le ft", "1 to 32 letters"),
        (LEFT.replace("left", "x" * 33), "adapter.xxx", "xxx", "1 to 32 letters"),
        (LEFT.replace("tap0", "a-name-too-long-for-it"), "adapter.left.tap", "a-name-too", "1 to 15"),
        (LEFT + LEFT, "adapter.left.name", "", "a name of its own"),
        (LEFT + RIGHT.replace("tap1", "tap0"), "adapter.right.tap", "tap0", "another name"),
        (LEFT + RIGHT + "wire = { tap = 'tap0' }", "adapter.right.wire.tap", "tap0", "another name"),
    ],
)
def test_error_names_file_key_value_and_what_is_allowed(
    text: str, field: str, value: str, allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "v.toml")
    error = caught.value
    assert error.path == "v.toml"
    assert error.field.startswith(field)
    assert error.value.startswith(value)
    assert bool(error.value) == bool(value)
    assert allowed in error.allowed
    assert str(error).startswith("v.toml: ")
    assert len(str(error)) < 500


def test_what_is_no_toml_says_where() -> None:
    with pytest.raises(ConfigError, match=r"v\.toml: not TOML: .*line 2"):
        parse("a = 1\nb = \n", "v.toml")


def test_default_file_need_not_exist_and_a_named_one_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = str(tmp_path / "none.toml")
    monkeypatch.setattr("vnic.daemon.config.DEFAULT_PATH", missing)
    assert load(None) == Config()
    with pytest.raises(ConfigError, match="no such file"):
        load(missing)


def test_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(str(tmp_path))
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"log_level = 'info'\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(at line 2\)"):
        load(str(latin))
    with pytest.raises(ConfigError, match="cannot be read"):
        load("bad\0name")


def test_endless_file_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vnic.daemon.config.SIZE_LIMIT", 100)
    long = tmp_path / "long.toml"
    long.write_text("#" * 101)
    with pytest.raises(ConfigError, match="too long"):
        load(str(long))


def test_file_is_read_from_its_path(tmp_path: Path) -> None:
    path = tmp_path / "v.toml"
    path.write_text(FULL)
    assert load(str(path)) == parse(FULL, str(path))
