"""The security policy database: order, replacement, refusals, defaults."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transport_lab import (
    AH,
    ANY,
    ANY6,
    ESP,
    FAR,
    FAR6,
    IN,
    NEAR,
    NEAR6,
    OUT,
    TRANSPORT,
    TUNNEL,
    policy,
    prefix,
    selector,
    template,
)

from vnic.errors import RequestError
from vnic.ipsec.policy import Defaults, FlowKey, PolicyAction, PolicyEntry, Selector, Template
from vnic.transport.spd import Spd, Unsure

TO_FAR = template(ESP, TUNNEL, NEAR, FAR)


def flow(destination: str = "10.2.0.1", protocol: int = 6, port: int = 80) -> FlowKey:
    return FlowKey(prefix("10.1.0.1").address, prefix(destination).address, protocol, port, port)


def test_empty_database_has_no_answer_and_passes_everything_by_default() -> None:
    spd = Spd()
    assert spd.lookup(OUT, flow()) is None
    assert spd.defaults == Defaults(PolicyAction.BYPASS, PolicyAction.BYPASS, PolicyAction.BYPASS)


def test_lower_priority_is_looked_at_first_and_age_decides_among_equals() -> None:
    spd = Spd()
    names = {}
    for name, priority, length in (("a", 5, 8), ("b", 1, 9), ("c", 5, 10), ("d", 0, 11), ("e", 1, 12)):
        entry = spd.add(policy(OUT, selector(destination=f"10.0.0.0/{length}"), priority=priority))
        names[entry.index] = name
    assert "".join(names[entry.index] for entry in spd.entries(OUT)) == "dbeac"


def test_first_match_wins_even_if_a_later_one_is_narrower() -> None:
    spd = Spd()
    wide = spd.add(policy(OUT, selector(destination="10.0.0.0/8")))
    spd.add(policy(OUT, selector(destination="10.2.0.1/32")))
    assert spd.lookup(OUT, flow()) == wide


def test_directions_are_apart() -> None:
    spd = Spd()
    entry = spd.add(policy(IN, ANY))
    assert spd.lookup(OUT, flow()) is None
    assert spd.lookup(IN, flow()) == entry
    spd.add(policy(OUT, ANY))
    assert [one.direction for one in spd.entries()] == [IN, OUT]


def test_indexes_are_unique_and_never_given_again() -> None:
    spd = Spd()
    first = spd.add(policy(OUT, selector(destination="10.0.0.0/8")))
    second = spd.add(policy(IN, selector(destination="10.0.0.0/8")))
    spd.delete(OUT, None, first.index)
    third = spd.add(policy(OUT, selector(destination="10.0.0.0/8")))
    assert len({first.index, second.index, third.index}) == 3
    assert 0 not in (first.index, second.index, third.index)


def test_same_selector_and_direction_is_refused() -> None:
    spd = Spd()
    entry = spd.add(policy(OUT, ANY))
    generation = spd.generation
    with pytest.raises(RequestError, match=f"index {entry.index}") as refused:
        spd.add(policy(OUT, ANY, TO_FAR))
    assert refused.value.field == "policy"
    assert spd.entries() == [entry]
    assert spd.generation == generation


def test_selectors_that_differ_in_anything_are_different() -> None:
    spd = Spd()
    for other in (
        ANY,
        ANY6,
        selector(destination="10.0.0.0/8"),
        selector(protocol=6),
        selector(protocol=6, destination_port=80),
        selector(protocol=6, source_port=80),
    ):
        spd.add(policy(OUT, other))
    assert len(spd.entries(OUT)) == 6


def test_replacing_keeps_the_index_and_changes_the_rest() -> None:
    spd = Spd()
    old = spd.add(policy(OUT, ANY))
    new = spd.add(policy(OUT, ANY, TO_FAR, priority=7), replace_existing=True)
    assert new.index == old.index
    assert spd.entries(OUT) == [new]
    assert (new.action, new.priority, new.templates) == (PolicyAction.PROTECT, 7, (TO_FAR,))


def test_replacing_keeps_the_place_among_policies_of_the_same_priority() -> None:
    spd = Spd()
    first = spd.add(policy(OUT, selector(destination="10.0.0.0/8")))
    second = spd.add(policy(OUT, selector(destination="10.2.0.0/16")))
    spd.add(replace(first, action=PolicyAction.DISCARD), replace_existing=True)
    assert [entry.index for entry in spd.entries(OUT)] == [first.index, second.index]
    found = spd.lookup(OUT, flow())
    assert found is not None
    assert found.action is PolicyAction.DISCARD


def test_replacing_what_is_not_there_adds_it() -> None:
    spd = Spd()
    entry = spd.add(policy(OUT, ANY), replace_existing=True)
    assert spd.entries() == [entry]


def test_refused_replacement_leaves_the_old_one() -> None:
    spd = Spd()
    old = spd.add(policy(OUT, ANY))
    with pytest.raises(RequestError):
        spd.add(policy(OUT, ANY, action=PolicyAction.PROTECT), replace_existing=True)
    assert spd.entries() == [old]


def test_deleting_by_selector_or_index_gives_what_was_there() -> None:
    spd = Spd()
    one = spd.add(policy(OUT, selector(destination="10.0.0.0/8")))
    two = spd.add(policy(OUT, selector(destination="10.0.0.0/9")))
    assert spd.delete(OUT, one.selector, 0) == one
    assert spd.delete(OUT, None, two.index) == two
    assert spd.entries() == []


@pytest.mark.parametrize(
    ("direction", "chosen", "index"), [(IN, ANY, 0), (OUT, ANY6, 0), (OUT, None, 99), (IN, None, 1)]
)
def test_deleting_what_is_not_there_is_refused(direction, chosen: Selector | None, index: int) -> None:  # type: ignore[no-untyped-def]
    spd = Spd()
    entry = spd.add(policy(OUT, ANY))
    with pytest.raises(RequestError) as refused:
        spd.delete(direction, chosen, index)
    assert (refused.value.field, bool(refused.value.allowed)) == ("policy", True)
    assert spd.entries() == [entry]


def test_every_change_is_a_new_generation() -> None:
    spd = Spd()
    seen = [spd.generation]
    entry = spd.add(policy(OUT, ANY))
    seen.append(spd.generation)
    spd.add(policy(OUT, ANY, priority=1), replace_existing=True)
    seen.append(spd.generation)
    spd.set_defaults(Defaults(outbound=PolicyAction.DISCARD))
    seen.append(spd.generation)
    spd.delete(OUT, None, entry.index)
    seen.append(spd.generation)
    assert len(set(seen)) == len(seen)


def test_policy_with_ports_is_unsure_of_a_packet_that_hides_them() -> None:
    spd = Spd()
    spd.add(policy(OUT, selector(protocol=17, destination_port=53)))
    spd.add(policy(OUT, selector(protocol=6, destination_port=80), priority=1))
    with pytest.raises(Unsure):
        spd.lookup(OUT, flow(port=-1))


def test_policy_that_matches_before_is_sure() -> None:
    spd = Spd()
    sure = spd.add(policy(OUT, selector(protocol=6)))
    spd.add(policy(OUT, selector(protocol=6, destination_port=80), priority=1))
    assert spd.lookup(OUT, flow(port=-1)) == sure


def test_policy_with_ports_for_other_hosts_does_not_matter() -> None:
    spd = Spd()
    spd.add(policy(OUT, selector(destination="10.9.0.0/16", protocol=6, destination_port=80)))
    assert spd.lookup(OUT, flow(port=-1)) is None


T_ESP, T_AH = template(ESP, TRANSPORT), template(AH, TRANSPORT)
U_ESP, U_AH = template(ESP, TUNNEL, NEAR, FAR), template(AH, TUNNEL, NEAR, FAR)


@pytest.mark.parametrize(
    "templates",
    [
        (T_ESP,),
        (T_AH,),
        (T_ESP, T_AH),
        (U_ESP,),
        (U_AH,),
        (U_ESP, T_AH),
        (T_ESP, U_ESP),
        (T_AH, U_ESP),
        (T_ESP, T_AH, U_ESP),
        (T_ESP, U_AH),
        (T_ESP, T_AH, U_ESP, T_AH),
    ],
)
def test_templates_that_can_be_carried_out_are_taken(templates: tuple[Template, ...]) -> None:
    assert Spd().add(policy(OUT, ANY, *templates)).templates == templates


@pytest.mark.parametrize(
    "templates",
    [
        (T_AH, T_ESP),
        (T_ESP, T_ESP),
        (T_AH, T_AH),
        (U_ESP, T_ESP),
        (U_ESP, U_ESP),
        (U_ESP, U_AH),
        (U_AH, U_ESP),
        (U_AH, T_AH),
        (T_ESP, U_ESP, U_ESP),
        (U_ESP, T_AH, T_AH),
        (T_ESP, T_AH, U_ESP, T_AH, T_AH),
    ],
)
def test_templates_in_an_order_nobody_can_carry_out_are_refused(templates: tuple[Template, ...]) -> None:
    with pytest.raises(RequestError) as refused:
        Spd().add(policy(OUT, ANY, *templates))
    assert (refused.value.field, bool(refused.value.allowed)) == ("tmpl", True)


REFUSED: dict[str, tuple[PolicyEntry, str]] = {
    "priority negative": (policy(OUT, ANY, priority=-1), "priority"),
    "priority too large": (policy(OUT, ANY, priority=1 << 32), "priority"),
    "protect without template": (policy(OUT, ANY, action=PolicyAction.PROTECT), "tmpl"),
    "bypass with template": (policy(OUT, ANY, U_ESP, action=PolicyAction.BYPASS), "tmpl"),
    "discard with template": (policy(OUT, ANY, U_ESP, action=PolicyAction.DISCARD), "tmpl"),
    "families mixed": (policy(OUT, Selector(prefix("10.0.0.0/8"), prefix("::/0"))), "src"),
    "prefix too long": (policy(OUT, Selector(prefix("10.0.0.0/33"), prefix("0.0.0.0/0"))), "src"),
    "prefix negative": (policy(OUT, Selector(prefix("0.0.0.0/0"), prefix("10.0.0.0/-1"))), "dst"),
    "address of no family": (
        policy(OUT, Selector(prefix("0.0.0.0/0"), prefix("0.0.0.0/0")._replace(address=b"abc"))),
        "dst",
    ),
    "port too large": (policy(OUT, selector(protocol=6, source_port=65536)), "sport"),
    "port negative": (policy(OUT, selector(protocol=6, destination_port=-1)), "dport"),
    "tunnel without end points": (policy(OUT, ANY, template(ESP, TUNNEL)), "tmpl src"),
    "tunnel without far end": (policy(OUT, ANY, template(ESP, TUNNEL, NEAR)), "tmpl src"),
    "tunnel from anywhere": (policy(OUT, ANY, template(ESP, TUNNEL, "0.0.0.0", FAR)), "tmpl src"),
    "tunnel of two families": (policy(OUT, ANY, template(ESP, TUNNEL, NEAR, FAR6)), "tmpl src"),
    "transport of two families": (policy(OUT, ANY, template(ESP, TRANSPORT, NEAR, FAR6)), "tmpl src"),
    "transport of another family": (policy(OUT, ANY, template(ESP, TRANSPORT, NEAR6, FAR6)), "tmpl src"),
    "transport to another family": (
        policy(OUT, ANY, template(ESP, TRANSPORT, destination=FAR6)),
        "tmpl src",
    ),
    "AH over a tunnel of another family": (
        policy(OUT, ANY6, U_ESP, template(AH, TRANSPORT, NEAR6, FAR6)),
        "tmpl src",
    ),
}


@pytest.mark.parametrize(("entry", "field"), REFUSED.values(), ids=REFUSED.keys())
def test_policy_that_makes_no_sense_is_refused_by_name(entry: PolicyEntry, field: str) -> None:
    spd = Spd()
    with pytest.raises(RequestError) as refused:
        spd.add(entry)
    assert refused.value.field == field
    assert refused.value.allowed
    assert spd.entries() == []
    assert spd.generation == 0


@pytest.mark.parametrize(
    "entry",
    [
        policy(OUT, ANY, priority=0xFFFFFFFF),
        policy(OUT, ANY6, U_ESP),
        policy(OUT, ANY6, template(ESP, TRANSPORT, NEAR6, FAR6)),
        policy(OUT, ANY6, U_ESP, template(AH, TRANSPORT, NEAR, FAR)),
        policy(IN, ANY, template(ESP, TUNNEL, FAR6, NEAR6)),
    ],
)
def test_policies_at_the_limits_are_taken(entry: PolicyEntry) -> None:
    assert Spd().add(entry)


@pytest.mark.parametrize("word", ["inbound", "outbound", "non_ip"])
def test_default_cannot_protect(word: str) -> None:
    spd = Spd()
    with pytest.raises(RequestError) as refused:
        spd.set_defaults(replace(Defaults(), **{word: PolicyAction.PROTECT}))
    assert refused.value.allowed == "bypass, discard"
    assert spd.defaults == Defaults()
