"""`vnic policy`: our own words, and those of `ip` beside them."""

from dataclasses import replace

import pytest
from in_process import Command

from vnic.control import interface as api

PREFIXES = "src 10.1.0.0/24 dst 10.2.0.0/24"


def test_short_words_say_all_that_long_ones_do(vnic: Command) -> None:
    short = vnic(
        f"policy add dev left out {PREFIXES} priority 7 "
        "protect esp tunnel 192.0.2.1 192.0.2.2 reqid 1 spi 0x101"
    ).request
    long = vnic(
        f"policy add {PREFIXES} dir out priority 7 "
        "tmpl src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x101 reqid 1 mode tunnel offload packet dev left"
    ).request
    assert short == long
    assert short.adapter == "left"


def test_two_layers_of_protection_come_innermost_first(vnic: Command) -> None:
    made = vnic(f"policy add in {PREFIXES} protect esp protect ah reqid 2").request.policy
    assert made.templates == [
        api.Template(proto="esp", mode="transport"),
        api.Template(proto="ah", mode="transport", reqid=2),
    ]


@pytest.mark.parametrize("action", ["bypass", "discard"])
def test_bypass_and_discard(vnic: Command, action: str) -> None:
    made = vnic(f"policy add in {PREFIXES} {action}").request.policy
    assert (made.action, made.templates) == (action, None)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("out protect tunnel 192.0.2.1 192.0.2.2", "protect"),
        ("out protect esp ah", "protect"),
        ("out protect", "protect"),
        ("out protect esp tunnel 192.0.2.1", "protect tunnel"),
        ("out protect esp tunnel 192.0.2.1 ::1", "protect tunnel"),
        ("out protect esp transport tunnel 192.0.2.1 192.0.2.2", "protect"),
        ("out protect esp bypass", "action"),
        ("out bypass discard", "action"),
        ("in out bypass", "dir"),
        ("bypass", "dir"),
        ("out level use", ""),
    ],
)
def test_what_does_not_fit_is_refused_by_name(vnic: Command, words: str, field: str) -> None:
    result = vnic(f"-j policy add {PREFIXES} {words}")
    assert (result.code, result.requests) == (1, [])
    assert result.error["field"] == field


def test_a_policy_is_named_by_its_index(vnic: Command) -> None:
    assert vnic("policy delete dev left out index 3").request == api.DeletePolicy(
        adapter="left", direction="out", index=3
    )


def test_show_narrows_by_direction(vnic: Command) -> None:
    assert [one["policy"]["index"] for one in vnic("-j policy show in").json] == [2]
    assert vnic("policy flush out").request == api.FlushPolicies(direction="out")


def test_update_and_details(vnic: Command) -> None:
    result = vnic(f"-d policy update out {PREFIXES} bypass")
    assert result.request.update is True
    assert result.out == "updated left out index None\n"


def test_defaults_have_the_same_words(vnic: Command) -> None:
    assert vnic("policy setdefault in block").request == api.SetPolicyDefault(inbound="block")
    assert vnic("policy getdefault").out.startswith("Default policies of left:")


TESTED = api.TestPolicyReply(
    adapter="left",
    direction="out",
    sport=49152,
    dport=443,
    verdict="protect",
    drop=None,
    policy=api.Policy(
        direction="out",
        selector=api.Selector(src="10.1.0.0/24", dst="10.2.0.0/24", proto=6, dport=1, dport_last=1000),
        action="protect",
        templates=[api.Template(proto="esp", mode="tunnel", src="192.0.2.1", dst="192.0.2.2", reqid=1)],
        priority=7,
        index=3,
    ),
    templates=[
        api.TestedTemplate(
            template=api.Template(proto="esp", mode="tunnel", src="192.0.2.1", dst="192.0.2.2", reqid=1),
            sa=api.SaName(dst="192.0.2.2", proto="esp", spi=0x101, direction="out", src="192.0.2.1"),
            handle=1,
            offload="nic",
        )
    ],
)


@pytest.mark.parametrize(
    ("words", "members"),
    [
        ("tcp dport 443 dev left", {"proto": 6, "dport": 443, "adapter": "left"}),
        ("17 sport 1 dport 2 in", {"proto": 17, "sport": 1, "dport": 2, "direction": "in"}),
        ("icmp type 8 code 0", {"proto": 1, "sport": 8, "dport": 0}),
        ("gre dir out", {"proto": 47, "direction": "out"}),
    ],
)
def test_a_packet_to_be_tested_is_said_in_the_words_of_a_selector(
    vnic: Command, words: str, members: dict[str, object]
) -> None:
    vnic.memory.answers[api.TestPolicy] = TESTED
    request = vnic(f"policy test 10.1.0.5 10.2.0.9 {words}").request
    assert request == api.TestPolicy(src="10.1.0.5", dst="10.2.0.9", **members)  # type: ignore[arg-type]


def test_a_tested_packet_reads_like_this(vnic: Command) -> None:
    vnic.memory.answers[api.TestPolicy] = TESTED
    line = "policy test 10.1.0.5 10.2.0.9 tcp dport 443"
    assert vnic(line).out == (
        "protect: leaves protected\n"
        "\tpolicy index 3 priority 7: src 10.1.0.0/24 dst 10.2.0.0/24 proto tcp dport 1-1000 "
        "protect esp tunnel 192.0.2.1 192.0.2.2 reqid 1\n"
        "\tesp tunnel 192.0.2.1 192.0.2.2 reqid 1: SA dst 192.0.2.2 esp spi 0x00000101 (handle 1)\n"
    )
    assert vnic(f"-j {line}").json["templates"][0]["sa"]["spi"] == 0x101
    without = replace(
        TESTED,
        verdict="drop",
        drop=api.DropReasonText(name="out_no_sa", text="no SA fits", xfrm_stat="XfrmOutNoStates"),
        templates=[replace(TESTED.templates[0], sa=None, handle=0, offload=None)],
    )
    vnic.memory.answers[api.TestPolicy] = without
    assert vnic(line).out.splitlines()[0] == "drop: no SA fits (out_no_sa)"
    assert vnic(line).out.splitlines()[-1].endswith("reqid 1: no SA fits")
    hidden = api.DropReasonText(name="out_fragment", text="a fragment", xfrm_stat="")
    vnic.memory.answers[api.TestPolicy] = replace(without, drop=hidden, policy=None, templates=[])
    assert vnic(line).out.endswith(
        "\tno policy decides without the ports: say sport and dport, or type and code\n"
    )
    vnic.memory.answers[api.TestPolicy] = replace(
        TESTED, direction="in", verdict="bypass", policy=None, templates=[]
    )
    assert vnic(line).out == "bypass: passes in clear\n\tno policy: the default of left for what comes in\n"


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("10.1.0.5 10.2.0.9", "proto"),
        ("10.1.0.5 nowhere tcp", "dst"),
        ("10.1.0.5 10.2.0.9 tcp dport 1-2", "dport"),
        ("10.1.0.5 10.2.0.9 gre dport 1", "dport"),
        ("10.1.0.5 10.2.0.9 tcp in out", "dir"),
    ],
)
def test_a_packet_that_cannot_be_is_refused_by_name(vnic: Command, words: str, field: str) -> None:
    result = vnic(f"-j policy test {words}")
    assert (result.code, result.requests) == (1, [])
    assert result.error["field"] == field
