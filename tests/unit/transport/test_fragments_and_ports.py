"""Later fragments where policies name ports, and selectors with ranges (RFC 4301 §4.4.1.1, §7)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.packet import Packet, Raw
from transport_lab import (
    ANY,
    ANY6,
    ESP,
    FAR,
    IN,
    NEAR,
    OUT,
    TUNNEL,
    Card,
    association,
    frame_of,
    policy,
    prefix,
    selector,
    template,
)

from vnic.errors import RequestError
from vnic.ipsec.policy import FlowKey, FragmentRule, Match, PolicyAction
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.ip import parse_ip
from vnic.transport.flow import flow_key

V4 = {"src": "10.1.0.1", "dst": "10.2.0.1"}
V6 = {"src": "fd01::1", "dst": "fd02::1"}
TO_FAR = template(ESP, TUNNEL, NEAR, FAR)
TO_DNS = selector(protocol=17, destination_port=53)

DATAGRAM = IP(**V4, id=9) / UDP(sport=1000, dport=53) / Raw(bytes(1200))
FIRST, *LATER = fragment(DATAGRAM, 400)
FIRST6 = IPv6(**V6) / IPv6ExtHdrFragment(m=1, id=7) / IPv6ExtHdrDestOpt() / UDP(dport=53) / bytes(16)
LATER6 = IPv6(**V6) / IPv6ExtHdrFragment(offset=4, id=7, nh=60) / Raw(bytes(24))


def card_for(rule: FragmentRule, *policies: object) -> Card:
    card = Card()
    card.spd.set_defaults(replace(card.spd.defaults, fragments=rule))
    for one in policies:
        card.spd.add(one)  # type: ignore[arg-type]
    card.sad.add(association(), 0.0)
    return card


def fates(card: Card, *packets: Packet, now: float = 0.0) -> str:
    """p for what was protected, c for what left in clear, and - for what ended."""
    letters = ""
    for packet in packets:
        framed = card.outbound.send([NetBuffer(frame_of(packet))], now)
        letters += "".join("c" if one.transmit is None else "p" for one in framed) or "-"
    return letters


# the setting


@pytest.mark.parametrize("action", list(PolicyAction))
def test_fragments_any_are_judged_by_policies_without_ports_alone(action: PolicyAction) -> None:
    templates = (TO_FAR,) if action is PolicyAction.PROTECT else ()
    wide = policy(OUT, ANY, *templates, action=action, priority=1)
    card = card_for(FragmentRule.ANY, policy(OUT, TO_DNS, action=PolicyAction.DISCARD), wide)
    fate = {PolicyAction.PROTECT: "p", PolicyAction.BYPASS: "c", PolicyAction.DISCARD: "-"}[action]
    assert fates(card, FIRST, *LATER) == "-" + fate * len(LATER)


def test_fragments_any_never_leave_by_a_default() -> None:
    card = card_for(FragmentRule.ANY, policy(OUT, TO_DNS, TO_FAR))
    assert fates(card, FIRST, *LATER) == "p" + "-" * len(LATER)
    other = IP(**{**V4, "dst": "10.2.0.2"}, frag=3, proto=6) / Raw(bytes(24))
    assert fates(card, other) == "c", "no policy with ports could have meant it"


def test_stateful_fragments_follow_their_first() -> None:
    card = card_for(FragmentRule.STATEFUL, policy(OUT, TO_DNS, TO_FAR), policy(OUT, ANY, priority=1))
    assert fates(card, FIRST, *LATER) == "p" * (1 + len(LATER))
    web = [piece.copy() for piece in fragment(IP(**V4, id=10) / UDP(dport=80) / Raw(bytes(1200)), 400)]
    assert fates(card, *web) == "c" * len(web)


def test_stateful_fragments_of_ipv6_follow_a_first_that_alone_shows_the_protocol() -> None:
    chosen = selector("::/0", "::/0", protocol=17, destination_port=53)
    card = card_for(FragmentRule.STATEFUL, policy(OUT, chosen, TO_FAR), policy(OUT, ANY6, priority=1))
    assert fates(card, LATER6, FIRST6, LATER6) == "-pp"


def test_stateful_fragments_without_their_first_end_here() -> None:
    card = card_for(FragmentRule.STATEFUL, policy(OUT, TO_DNS, TO_FAR), policy(OUT, ANY, priority=1))
    assert fates(card, LATER[0]) == "-"
    assert fates(card, FIRST) == "p"
    strangers = [LATER[0].copy() for _ in range(3)]
    strangers[0].id, strangers[1].src, strangers[2].proto = 8, "10.1.0.9", 6
    for stranger in strangers[:2]:
        assert fates(card, stranger) == "-"
    assert fates(card, LATER[0], now=29.9) == "p"
    assert fates(card, LATER[0], now=30.1) == "-"


def test_received_fragments_follow_only_a_first_that_came_the_same_way() -> None:
    card = card_for(
        FragmentRule.STATEFUL,
        policy(IN, TO_DNS, action=PolicyAction.BYPASS),
        policy(IN, ANY, action=PolicyAction.DISCARD, priority=1),
    )
    frames = [NetBuffer(frame_of(packet)) for packet in (LATER[0], FIRST, LATER[0])]
    assert len(card.inbound.receive(frames, 0.0)) == 2
    header = parse_ip(frame_of(FIRST), 14)
    later = parse_ip(frame_of(LATER[0]), 14)
    hidden = flow_key(frame_of(LATER[0]), later)
    firsts = card.inbound._firsts
    shown = flow_key(frame_of(FIRST), header)
    assert firsts.flow_of(frame_of(LATER[0]), later, hidden, 0.0, ()) == shown
    assert firsts.flow_of(frame_of(LATER[0]), later, hidden, 0.0, ("an SA",)) == hidden


def test_first_fragments_are_remembered_in_bounds() -> None:
    card = card_for(FragmentRule.STATEFUL, policy(OUT, TO_DNS, TO_FAR))
    frame = frame_of(FIRST)
    for number in range(10_000):
        frame[18:20] = (number & 0xFFFF).to_bytes(2, "big")
        card.outbound.send([NetBuffer(bytearray(frame))], 0.0)
    assert len(card.outbound._firsts._flows) <= 4096


# ranges


def flow(protocol: int, source_port: int, destination_port: int) -> FlowKey:
    return FlowKey(
        prefix("10.1.0.1").address, prefix("10.2.0.1").address, protocol, source_port, destination_port
    )


@pytest.mark.parametrize(("port", "match"), [(999, 0), (1000, 1), (1500, 1), (2000, 1), (2001, 0), (-1, 2)])
def test_a_range_holds_both_its_ends_and_all_between(port: int, match: int) -> None:
    chosen = selector(protocol=6, destination_port=1000, destination_port_last=2000)
    assert chosen.match(flow(6, port, port)) is Match(match)
    reverse = selector(protocol=6, source_port=1000, source_port_last=2000)
    assert reverse.match(flow(6, port, port)) is Match(match)


def test_one_type_with_a_range_of_codes_matches_those_alone() -> None:
    chosen = selector(protocol=1, source_port=3, destination_port=0, destination_port_last=3)
    for kind, code, match in ((3, 0, True), (3, 3, True), (3, 4, False), (4, 0, False)):
        raw = bytes(IP(**V4) / ICMP(type=kind, code=code))
        assert (chosen.match(flow_key(raw, parse_ip(raw, 0))) is Match.YES) is match


def test_the_type_of_a_mobility_header_stands_for_a_port() -> None:
    # RFC 6275 §6.1.1: payload protocol, header length, MH type, reserved, checksum; 5 is a Binding Update.
    raw = bytes(IPv6(**V6, nh=135) / Raw(bytes.fromhex("3b 01 05 00 0000") + bytes(10)))
    found = flow_key(raw, parse_ip(raw, 0))
    assert found.protocol == 135
    for first, last, match in ((5, None, Match.YES), (4, 6, Match.YES), (6, None, Match.NO)):
        chosen = selector("::/0", "::/0", 135, first, source_port_last=last)
        assert chosen.match(found) is match
    cut = bytes(IPv6(**V6, nh=135) / Raw(b"\x3b\x01"))
    assert selector("::/0", "::/0", 135, 5).match(flow_key(cut, parse_ip(cut, 0))) is Match.UNSURE


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"protocol": 6, "source_port": 5, "source_port_last": 5}, "sport"),
        ({"protocol": 6, "source_port": 5, "source_port_last": 4}, "sport"),
        ({"protocol": 6, "source_port_last": 4}, "sport"),
        ({"protocol": 6, "destination_port": 0, "destination_port_last": 65535}, "dport"),
        ({"protocol": 6, "destination_port": 0, "destination_port_last": 65536}, "dport"),
        ({"protocol": 1, "source_port": 256}, "sport"),
        ({"protocol": 1, "source_port": 3, "source_port_last": 5, "destination_port": 1}, "dport"),
        ({"protocol": 135, "source_port": 1, "destination_port": 1}, "dport"),
    ],
)
def test_ranges_that_cannot_be_or_are_written_in_two_ways_are_refused(
    members: dict[str, int], field: str
) -> None:
    card = Card()
    with pytest.raises(RequestError) as caught:
        card.spd.add(policy(OUT, selector(**members)))  # type: ignore[arg-type]
    assert caught.value.field == field
    assert caught.value.allowed
    assert card.spd.entries() == []
