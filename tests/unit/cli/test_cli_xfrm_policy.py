"""`vnic xfrm policy`: lines of Linux hosts, pasted with `ip` replaced by `vnic`."""

from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_process import Command

from vnic.cli.selector import selector_text
from vnic.control import interface as api

PREFIXES = "src 10.1.0.0/24 dst 10.2.0.0/24"
TUNNEL = "tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 1 mode tunnel"


def policy(vnic: Command, line: str) -> api.Policy:
    """The policy that a line of `xfrm policy add` asks for."""
    result = vnic(f"xfrm policy add {line}")
    assert result.code == 0, result.err
    made = result.request.policy
    assert isinstance(made, api.Policy)
    return made


def refusal(vnic: Command, line: str) -> dict[str, object]:
    result = vnic(f"-j {line}")
    assert (result.code, result.out, result.requests) == (1, "", [])
    return result.error


def test_a_tunnel_policy_of_a_linux_host_is_understood_word_for_word(vnic: Command) -> None:
    result = vnic(
        f"xfrm policy add {PREFIXES} proto tcp sport 0 dport 80 dir out ptype main action allow "
        "priority 0x10 tmpl src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x101 "
        "reqid 1 mode tunnel level required offload packet dev left"
    )
    assert (result.code, result.out, result.err) == (0, "", "")
    assert result.request == api.AddPolicy(
        adapter="left",
        policy=api.Policy(
            direction="out",
            selector=api.Selector(src="10.1.0.0/24", dst="10.2.0.0/24", proto=6, dport=80),
            action="protect",
            templates=[
                api.Template(proto="esp", mode="tunnel", src="192.0.2.1", dst="192.0.2.2", reqid=1, spi=0x101)
            ],
            priority=16,
        ),
    )


@pytest.mark.parametrize(
    ("words", "action"),
    [
        ("", "bypass"),
        ("action allow", "bypass"),
        ("action block", "discard"),
        (TUNNEL, "protect"),
        (f"action allow {TUNNEL}", "protect"),
    ],
)
def test_action_and_templates_make_the_three_actions(vnic: Command, words: str, action: str) -> None:
    assert policy(vnic, f"{PREFIXES} dir in {words}").action == action


def test_a_blocking_policy_leaves_its_templates_out_with_a_warning(vnic: Command) -> None:
    result = vnic(f"xfrm policy add {PREFIXES} dir in action block {TUNNEL}")
    assert result.code == 0
    assert (result.request.policy.action, result.request.policy.templates) == ("discard", None)
    assert "tmpl is left out" in result.err


def test_templates_come_innermost_first_and_end_where_the_next_word_is_not_theirs(vnic: Command) -> None:
    made = policy(
        vnic,
        f"dir out tmpl proto esp mode transport tmpl proto ah reqid 2 mode transport priority 5 {PREFIXES}",
    )
    assert made.templates == [
        api.Template(proto="esp", mode="transport"),
        api.Template(proto="ah", mode="transport", reqid=2),
    ]
    assert (made.priority, made.selector.src) == (5, "10.1.0.0/24")


def test_as_in_ip_addresses_behind_the_mode_of_a_template_are_the_selector(vnic: Command) -> None:
    made = policy(vnic, f"dir out {TUNNEL} src 10.1.0.0/24 dst 10.2.0.0/24 proto udp dport 53")
    assert made.selector == api.Selector(src="10.1.0.0/24", dst="10.2.0.0/24", proto=17, dport=53)
    assert made.templates is not None
    assert made.templates[0].src == "192.0.2.1"


def test_in_transport_mode_the_packet_is_its_own_end(vnic: Command) -> None:
    made = policy(vnic, f"{PREFIXES} dir out tmpl src 10.1.0.1 dst 10.2.0.1 proto esp")
    assert made.templates == [api.Template(proto="esp")]


@pytest.mark.parametrize(
    ("option", "line", "src", "dst"),
    [
        ("", "src 10.1/16", "10.1.0.0/16", "0.0.0.0/0"),
        ("", "dst 2001:db8::/32", "::/0", "2001:db8::/32"),
        ("", "", "0.0.0.0/0", "0.0.0.0/0"),
        ("-6", "", "::/0", "::/0"),
    ],
)
def test_an_end_that_is_not_named_is_all_of_the_family(
    vnic: Command, option: str, line: str, src: str, dst: str
) -> None:
    result = vnic(f"{option} xfrm policy add {line} dir out")
    assert (result.request.policy.selector.src, result.request.policy.selector.dst) == (src, dst)


def test_the_adapter_may_be_named_as_the_device_of_the_selector(vnic: Command) -> None:
    assert vnic(f"xfrm policy add {PREFIXES} dev left dir out").request.adapter == "left"
    assert vnic(f"xfrm policy add {PREFIXES} offload packet dev left dir out").request.adapter == "left"


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("dir fwd", "dir"),
        ("dir in ptype sub", "ptype"),
        ("dir in mark 1", "mark"),
        ("dir in if_id 1", "if_id"),
        ("dir in ctx x", "ctx"),
        ("dir in limit byte-soft 1", "limit"),
        ("dir in flag localok", "flag"),
        ("dir in index 8", "index"),
        ("dir in tmpl proto esp level use", "tmpl level"),
        ("dir in tmpl proto comp", "tmpl proto"),
        ("dir in tmpl proto esp mode beet", "tmpl mode"),
        ("dir in tmpl src 10.0.0.1 reqid 1", "tmpl proto"),
        ("dir in tmpl src 10.0.0.1 dst ::1 proto esp mode tunnel", "tmpl src"),
        ("dir in tmpl", "tmpl"),
        ("dir in offload crypto dev left", "offload crypto"),
        ("dir in offload packet dev left dir out", "dir"),
        ("dir in proto gre key 1.2.3.4", "key"),
        ("dir in proto icmp dport 80", "dport"),
        ("dir in proto tcp dport 90-80", "dport"),
        ("dir in proto tcp dport 80-65536", "dport"),
        ("dir in proto tcp dport 80-", "dport"),
        ("dir in proto tcp type 8", "type"),
        ("dir in proto icmp type 256", "type"),
        ("dir in proto icmp type 3-5 code 1", "code"),
        ("dir in proto mobility-header type 1 code 1", "code"),
        ("dir in dst ::/0", "dst"),
        ("", "dir"),
        ("dir", "dir"),
        ("dir in dir in", "dir"),
    ],
)
def test_what_cannot_be_is_refused_by_name(vnic: Command, words: str, field: str) -> None:
    error = refusal(vnic, f"xfrm policy add src 10.1.0.0/24 {words}")
    assert error["field"] == field
    assert error["allowed"]


def test_set_is_refused_and_setdefault_is_not_taken_for_it(vnic: Command) -> None:
    assert "hash table" in str(refusal(vnic, "xfrm policy set hthresh4 1 1")["error"])
    assert vnic("xfrm policy setd in block").code == 0
    assert "any of several" in str(refusal(vnic, "xfrm policy s")["error"])


def test_a_policy_is_deleted_by_selector_or_index(vnic: Command) -> None:
    assert vnic(f"xfrm policy delete {PREFIXES} dir out").request == api.DeletePolicy(
        direction="out", selector=api.Selector(src="10.1.0.0/24", dst="10.2.0.0/24")
    )
    assert vnic("xfrm policy delete dir in index 2 dev left").request == api.DeletePolicy(
        direction="in", adapter="left", index=2
    )


@pytest.mark.parametrize("line", ["dir out", f"{PREFIXES}", f"{PREFIXES} dir out index 3"])
def test_a_policy_must_be_named_once(vnic: Command, line: str) -> None:
    assert refusal(vnic, f"xfrm policy delete {line}")["field"] in ("dir", "index", "selector")


def test_get_shows_the_one_policy(vnic: Command) -> None:
    assert [one["policy"]["index"] for one in vnic("-j xfrm policy get dir in index 2").json] == [2]
    line = "xfrm policy get src 10.2.0.0/24 dst 10.1.0.0/24 dir in"
    assert [one["policy"]["index"] for one in vnic(f"-j {line}").json] == [2]
    result = vnic("-j xfrm policy get dir out index 2")
    assert (result.code, result.error["field"]) == (2, "index")


@pytest.mark.parametrize(
    ("words", "indices"),
    [
        ("", [1, 2]),
        ("nosock dir in", [2]),
        ("src 10.0.0.0/8", [1, 2]),
        ("dst 10.2.0.0/16", [1]),
        ("proto tcp", [1]),
        ("proto tcp dport 80", [1]),
        ("proto tcp dport 81", []),
        ("proto any", [2]),
        ("action block", [2]),
        ("action allow", [1]),
        ("priority 7", [1]),
        ("index 2", [2]),
        ("src ::/0", []),
    ],
)
def test_list_shows_what_fits(vnic: Command, words: str, indices: list[int]) -> None:
    assert [one["policy"]["index"] for one in vnic(f"-j xfrm policy list {words}").json] == indices
    assert vnic("-6 -j xfrm policy").json == []


def test_deleteall_flush_and_count(vnic: Command) -> None:
    result = vnic("-s xfrm policy deleteall dir out")
    assert result.requests == [api.ListPolicies(), api.DeletePolicy(direction="out", adapter="left", index=1)]
    assert result.out == "deleted 1 policy\n"
    assert vnic("xfrm policy flush ptype main").request == api.FlushPolicies()
    assert vnic("xfrm policy count").out == "\t SPD IN  1 OUT 1 FWD 0\n"
    assert vnic("-j xfrm policy count").json == {"count": 2, "in": 1, "out": 1}


def test_setdefault_takes_directions_with_actions_as_ip_does(vnic: Command) -> None:
    result = vnic("xfrm policy setdefault in block out accept dev left")
    assert result.request == api.SetPolicyDefault(adapter="left", inbound="block", outbound="allow")
    assert vnic("xfrm policy setdefault out block").request == api.SetPolicyDefault(outbound="block")


@pytest.mark.parametrize(
    ("words", "field"),
    [("", "dir"), ("fwd block", "fwd"), ("in allow", "in"), ("in", "in"), ("in block in block", "in")],
)
def test_a_wrong_default_is_refused(vnic: Command, words: str, field: str) -> None:
    assert refusal(vnic, f"xfrm policy setdefault {words}")["field"] == field


def test_getdefault_reads_like_that_of_ip(vnic: Command) -> None:
    assert vnic("xfrm policy getdefault").out == "Default policies of left:\n in:  accept\n out: block\n"
    assert vnic("-j xfrm policy getdefault").json == [
        {"adapter": "left", "inbound": "allow", "outbound": "block"}
    ]


@st.composite
def policies(draw: st.DrawFn) -> api.Policy:
    """Any policy that the daemon could show."""
    prefix = draw(st.sampled_from([("10.0.0.0/8", "0.0.0.0/0"), ("2001:db8::/32", "::/0")]))
    proto, sport, dport = draw(
        st.sampled_from(
            [
                (None, None, None),
                (6, 80, None),
                (17, None, 65535),
                (1, 8, 0),
                (58, 128, None),
                (47, None, None),
            ]
        )
    )
    template = st.builds(
        api.Template,
        proto=st.sampled_from(["esp", "ah"]),
        mode=st.just("tunnel"),
        src=st.sampled_from(["192.0.2.1", "192.0.2.3"]),
        dst=st.just("192.0.2.2"),
        reqid=st.integers(0, 0xFFFFFFFF),
        spi=st.none() | st.integers(0x100, 0xFFFFFFFF),
    ) | st.builds(
        api.Template, proto=st.sampled_from(["esp", "ah"]), mode=st.just("transport"), reqid=st.just(0)
    )
    actions: list[Literal["protect", "bypass", "discard"]] = ["protect", "bypass", "discard"]
    action = draw(st.sampled_from(actions))
    return api.Policy(
        direction=draw(st.sampled_from(["in", "out"])),
        selector=api.Selector(src=prefix[0], dst=prefix[1], proto=proto, sport=sport, dport=dport),
        action=action,
        templates=draw(st.lists(template, min_size=1, max_size=4)) if action == "protect" else None,
        priority=draw(st.integers(0, 0xFFFFFFFF)),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=policies())
def test_what_is_shown_can_be_added_again(vnic: Command, made: api.Policy) -> None:
    vnic.memory.answers[api.ListPolicies] = api.PoliciesReply(
        policies=[api.PolicyState(adapter="left", policy=made)]
    )
    shown = vnic("xfrm policy").out
    result = vnic(f"xfrm policy add {' '.join(shown.split())}")
    assert result.code == 0, (shown, result.err)
    assert result.request == api.AddPolicy(adapter="left", policy=made)


@pytest.mark.parametrize(
    ("words", "members"),
    [
        ("proto tcp dport 1000-2000", {"proto": 6, "dport": 1000, "dport_last": 2000}),
        ("proto udp sport 5-5 dport 0-65535", {"proto": 17, "sport": 5}),
        ("proto icmp type 0", {"proto": 1, "sport": 0}),
        ("proto icmp type 3 code 0-3", {"proto": 1, "sport": 3, "dport": 0, "dport_last": 3}),
        ("proto icmp type 3-5 code 0-255", {"proto": 1, "sport": 3, "sport_last": 5}),
        ("proto ipv6-icmp code 4", {"proto": 58, "dport": 4}),
        ("proto mobility-header type 5-6", {"proto": 135, "sport": 5, "sport_last": 6}),
    ],
)
def test_ports_types_and_codes_may_be_ranges(vnic: Command, words: str, members: dict[str, int]) -> None:
    made = policy(vnic, f"{PREFIXES} dir out {words} {TUNNEL}")
    assert made.selector == api.Selector(src="10.1.0.0/24", dst="10.2.0.0/24", **members)


@pytest.mark.parametrize(
    "words",
    [
        "proto tcp sport 7 dport 1000-2000",
        "proto icmp type 3 code 0-3",
        "proto mobility-header type 5-6",
        "proto ipv6-icmp type 128-129",
    ],
)
def test_what_is_written_of_a_selector_is_read_again_as_the_same(vnic: Command, words: str) -> None:
    made = policy(vnic, f"{PREFIXES} dir out {words} {TUNNEL}").selector
    assert selector_text(made) == f"{PREFIXES} {words}"
