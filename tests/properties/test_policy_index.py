"""However policies come and go, the index gives what a walk over all of them gives, and the room for packets
is what it would be if it were computed anew."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from transport_lab import ESP, IN, OUT, TRANSPORT, TUNNEL, Card, association, policy, prefix, template

from vnic.errors import RequestError
from vnic.ipsec.association import Direction
from vnic.ipsec.policy import (
    HIDDEN_PROTOCOL,
    FlowKey,
    FragmentRule,
    Match,
    PolicyAction,
    PolicyEntry,
    Prefix,
    Selector,
)
from vnic.transport.changes import Changes
from vnic.transport.rooms import Rooms
from vnic.transport.spd import Spd, Unsure

ADDRESSES = [prefix(text).address for text in ("10.0.0.1", "10.0.0.2", "10.128.0.1", "192.0.2.1")]
ADDRESSES6 = [prefix(text).address for text in ("fd00::1", "fd00::2", "2001:db8::1")]


@st.composite
def selectors(draw: st.DrawFn) -> Selector:
    addresses = draw(st.sampled_from([ADDRESSES, ADDRESSES6]))
    lengths = st.sampled_from([0, 1, 8, 9, 31, 32, len(addresses[0]) * 8])
    source, destination = (
        Prefix(draw(st.sampled_from(addresses)), min(draw(lengths), len(addresses[0]) * 8)) for _ in "sd"
    )
    chosen = Selector(source, destination, draw(st.sampled_from([0, 6, 17])))
    if chosen.protocol:
        sport, dport = (draw(st.none() | st.integers(0, 4)) for _ in "sd")
        last = draw(st.none() | st.integers(5, 6))
        chosen = replace(
            chosen,
            source_port=sport,
            destination_port=dport,
            source_port_last=None if sport is None else last,
            destination_port_last=None if dport is None else draw(st.none() | st.integers(5, 6)),
        )
    return chosen


@st.composite
def flows(draw: st.DrawFn) -> FlowKey:
    addresses = draw(st.sampled_from([ADDRESSES, ADDRESSES6]))
    ends = [draw(st.sampled_from(addresses)) for _ in "sd"]
    protocol = draw(st.sampled_from([6, 17, 1, HIDDEN_PROTOCOL]))
    if protocol == HIDDEN_PROTOCOL or draw(st.booleans()):
        return FlowKey(ends[0], ends[1], protocol, -1, -1)
    return FlowKey(ends[0], ends[1], protocol, draw(st.integers(0, 7)), draw(st.integers(0, 7)))


def walked(spd: Spd, flow: FlowKey) -> PolicyEntry | str | None:
    """The answer of a walk over all policies in order."""
    entries = sorted(spd.entries(OUT), key=lambda one: (one.priority, one.index))
    skipped = False
    for entry in entries:
        match = entry.selector.match(flow)
        if match is Match.YES:
            return entry
        if match is Match.UNSURE:
            if spd.defaults.fragments is not FragmentRule.ANY:
                return "unsure"
            skipped = True
    return "unsure" if skipped else None


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(selectors(), st.integers(0, 3), st.booleans()), max_size=25),
    st.lists(flows(), min_size=1, max_size=20),
    st.sampled_from(list(FragmentRule)),
)
def test_the_index_answers_as_a_walk_over_all_policies_does(
    changes: list[tuple[Selector, int, bool]], asked: list[FlowKey], rule: FragmentRule
) -> None:
    spd = Spd()
    spd.set_defaults(replace(spd.defaults, fragments=rule))
    for chosen, priority, goes in changes:
        try:
            spd.add(policy(OUT, chosen, priority=priority), replace_existing=priority == 3)
        except RequestError:
            spd.delete(OUT, chosen, 0)
        if goes:
            spd.delete(OUT, None, spd.entries(OUT)[0].index) if spd.entries(OUT) else None
        assert spd.entries(OUT) == sorted(spd.entries(OUT), key=lambda one: (one.priority, one.index))
        assert len(spd) == len(spd.entries())
    for flow in asked:
        try:
            found: PolicyEntry | str | None = spd.lookup(OUT, flow)
        except Unsure:
            found = "unsure"
        assert found == walked(spd, flow)


ENDS = ("192.0.2.1", "192.0.2.2", "192.0.2.3")
TEMPLATES = [
    template(ESP, TUNNEL, ENDS[0], far, reqid, spi)
    for far in ENDS[1:]
    for reqid in (0, 1)
    for spi in (0, 0x100)
] + [template(ESP, TRANSPORT, reqid=reqid) for reqid in (0, 1, 2)]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 10), st.integers(0, 7)), max_size=25))
def test_the_room_for_packets_follows_every_change(steps: list[tuple[int, int, int]]) -> None:
    card = Card()
    kept = Rooms(card.spd, card.sad)
    for number, (kind, which, other) in enumerate(steps):
        chosen = Selector(Prefix(bytes([10, other, 0, 0]), 16), Prefix(bytes(4), 0))
        direction: Direction = IN if kind == 7 else OUT
        if kind in (0, 1, 7):
            card.spd.add(policy(direction, chosen, TEMPLATES[which]), replace_existing=True)
        elif kind == 2:
            card.spd.add(policy(OUT, chosen, action=PolicyAction.BYPASS), replace_existing=True)
        elif kind == 3 and card.spd.entries(OUT):
            card.spd.delete(OUT, None, card.spd.entries(OUT)[-1].index)
        elif kind in (4, 5):
            far = ENDS[which % 3]
            card.sad.add(
                association(
                    mode=(TUNNEL, TRANSPORT)[other % 2],
                    destination=far,
                    spi=0x100 + number,
                    reqid=other % 3,
                    encryption=("aes-gcm-128", "aes-cbc-128")[which % 2],
                    integrity=(None, "hmac-sha256-128")[which % 2],
                ),
                0.0,
            )
        elif kind == 6 and card.sad.table:
            card.sad.delete(next(iter(card.sad.table)))
        mtu = 1500 if number % 5 else 1400
        # A change of the wire has all of it computed anew.
        assert kept.smallest(mtu) == fresh(card, mtu)


def fresh(card: Card, mtu: int) -> int:
    """What somebody who begins now makes of it, without taking away the news of changes."""
    spd, sad = card.spd, card.sad
    news = spd.protection_changes, sad.outbound_changes
    spd.protection_changes, sad._outbound.changes = Changes(), Changes()
    try:
        return Rooms(spd, sad).smallest(mtu)
    finally:
        spd.protection_changes, sad._outbound.changes = news
