"""`vnic policy`: our own words, and those of `ip` beside them."""

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
