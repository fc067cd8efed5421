"""Fragments of the host and transport mode: put together, protected as one, cut again, whole at the end."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from scapy.layers.inet import IP, UDP, IPOption_RR, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, fragment6
from scapy.packet import Packet, Raw
from transport_lab import (
    AH,
    ANY,
    ANY6,
    ESP,
    FAR,
    IN,
    NEAR,
    OUT,
    TRANSPORT,
    TUNNEL,
    association,
    frame_of,
    policy,
    selector,
    template,
)

from tests.engines import BOTH_ENGINES, make_card
from vnic.engine.reference import ReferenceEngine
from vnic.ipsec.policy import FragmentRule, PolicyAction
from vnic.ndis.netbuffer import NetBuffer

V4, V6 = ("10.1.0.1", "10.2.0.1"), ("fd01::1", "fd02::1")
DATA = random.Random(2).randbytes(66_000)
T_ESP, T_AH = template(ESP, TRANSPORT), template(AH, TRANSPORT)


pytestmark = BOTH_ENGINES


def pair(version: int, ways: str, *, software: bool = True) -> tuple[ReferenceEngine, ReferenceEngine]:
    ends, everything = (V4, ANY) if version == 4 else (V6, ANY6)
    templates, sas = [], []
    if "esp" in ways:
        templates.append(T_ESP)
        sas.append(association(OUT, TRANSPORT, *ends))
    if "ah" in ways:
        templates.append(T_AH)
        sas.append(association(OUT, TRANSPORT, *ends, protocol=AH, spi=0x2000))
    if "tunnel" in ways:
        templates.append(template(ESP, TUNNEL, NEAR, FAR))
        sas.append(association(OUT, TUNNEL, NEAR, FAR, spi=0x3000))
    cards = tuple(make_card(random.Random(seed).randbytes, software=software) for seed in (3, 4))
    cards[0].add_policy(policy(OUT, everything, *templates, priority=1))
    cards[1].add_policy(policy(IN, everything, *templates))
    for sa in sas:
        cards[0].add_sa(sa, 0.0)
        cards[1].add_sa(replace(sa, direction=IN), 0.0)
    return cards  # type: ignore[return-value]


def whole_of(version: int, length: int) -> Packet:
    datagram = UDP(sport=7, dport=8) / Raw(DATA[:length])
    if version == 4:
        return IP(src=V4[0], dst=V4[1], id=77) / datagram
    return IPv6(src=V6[0], dst=V6[1]) / datagram


def pieces_of(packet: Packet, size: int = 1400) -> list[bytearray]:
    if packet.version == 4:
        return [frame_of(piece) for piece in fragment(packet, size)]
    head = packet.copy()
    payload = head[UDP].copy()
    head[UDP].underlayer.remove_payload()
    return [frame_of(piece) for piece in fragment6(head / IPv6ExtHdrFragment(id=77) / payload, size + 48)]


def drops(card: ReferenceEngine) -> dict[str, int]:
    return {reason.value: count for reason, count in card.counters.drops.items()}


def through(
    cards: tuple[ReferenceEngine, ReferenceEngine], frames: list[bytearray], now: float = 1.0
) -> list[bytes]:
    wire = cards[0].send([NetBuffer(bytearray(one)) for one in frames], now).wire
    assert all(len(one.frame) <= 1514 for one in wire)
    assert all(DATA[100:120] not in one.frame for one in wire) or cards[0].sas()[0].sa.protocol is AH
    received = cards[1].receive([NetBuffer(bytearray(one.frame)) for one in wire], now)
    return [bytes(one.frame) for one in received.host]


@pytest.mark.rule(16, 17)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("ways", ["esp", "ah", "esp ah", "esp tunnel", "esp ah tunnel"])
def test_what_the_host_cut_arrives_whole_in_any_order(version: int, ways: str) -> None:
    cards = pair(version, ways)
    chance = random.Random(5)
    for number, length in enumerate((1500, 4000, 20_000, 60_000), 1):
        whole = whole_of(version, length)
        frames = pieces_of(whole)
        chance.shuffle(frames)
        assert through(cards, frames) == [bytes(frame_of(whole))]
        sent, received = cards[0].counters, cards[1].counters
        assert sent.tx_reassembled == sent.tx_software == received.rx_software == number
        assert (sent.tx_offloaded, received.rx_offloaded) == (0, 0)
    assert (drops(cards[0]), drops(cards[1])) == ({}, {})
    assert all(report.counters.packets == 4 for card in cards for report in card.sas())


def test_a_whole_that_fits_is_the_nics() -> None:
    for version in (4, 6):
        cards = pair(version, "esp", software=False)
        whole = whole_of(version, 1000)
        assert through(cards, pieces_of(whole, 600)) == [bytes(frame_of(whole))]
        assert (cards[0].counters.tx_reassembled, cards[0].counters.tx_offloaded) == (1, 1)


def test_without_software_a_large_whole_ends_by_name() -> None:
    cards = pair(4, "esp", software=False)
    assert through(cards, pieces_of(whole_of(4, 4000))) == []
    assert drops(cards[0]) == {"out_not_offloaded": 1}


def test_options_and_extension_headers_come_through() -> None:
    cards = pair(4, "esp")
    options = IPOption_RR(length=11, pointer=4, routers=["0.0.0.0", "0.0.0.0"])
    whole = IP(src=V4[0], dst=V4[1], id=9, options=[options]) / UDP(sport=7, dport=8) / Raw(DATA[:3000])
    (got,) = through(cards, pieces_of(whole))
    assert got == bytes(frame_of(whole))
    cards = pair(6, "esp")
    base = IPv6(src=V6[0], dst=V6[1]) / IPv6ExtHdrHopByHop()
    payload = UDP(sport=7, dport=8) / Raw(DATA[:3000])
    frames = [frame_of(one) for one in fragment6(base / IPv6ExtHdrFragment(id=5) / payload, 1448)]
    whole = base / UDP(bytes((IPv6(src=V6[0], dst=V6[1]) / payload)[UDP]))
    assert through(cards, frames) == [bytes(frame_of(whole))]


def test_a_fragment_that_hides_its_headers_ends_here() -> None:
    (card, _) = pair(6, "esp")
    hidden = IPv6(src=V6[0], dst=V6[1]) / IPv6ExtHdrFragment(m=1) / IPv6ExtHdrDestOpt() / UDP() / bytes(600)
    assert card.send([NetBuffer(frame_of(hidden))], 1.0).wire == []
    assert drops(card) == {"out_fragment": 1}


@pytest.mark.parametrize("fault", ["overlap", "duplicate", "tiny", "never"])
def test_what_cannot_be_put_together_ends_by_name_and_nothing_of_it_leaves(fault: str) -> None:
    (card, _) = pair(4, "esp")
    frames = pieces_of(whole_of(4, 4000))
    ended = {"overlap": 3, "duplicate": 1, "tiny": 1, "never": 2}[fault]
    if fault == "overlap":
        changed = bytearray(frames[1])
        changed[-1] ^= 1
        frames = [*frames[:2], changed]
    elif fault == "duplicate":
        frames = [frames[0], frames[0]]
    elif fault == "tiny":
        frames = [frame_of(IP(src=V4[0], dst=V4[1], flags="MF", proto=17) / bytes(8))]
    else:
        frames = frames[:2]
    assert card.send([NetBuffer(bytearray(one)) for one in frames], 1.0).wire == []
    if fault == "never":
        assert drops(card) == {}
        assert card.deadline == 31.0
        card.keep_time(31.0)
        assert card.deadline > 31.0
    assert drops(card) == {"out_fragment_incomplete": ended}


def test_memory_for_fragments_of_the_host_is_bounded_by_the_setting() -> None:
    (card, _) = pair(4, "esp")
    card.reassembly_limit = 128 << 10
    for number in range(200):
        piece = IP(src=V4[0], dst=f"10.2.{number}.1", id=number, flags="MF", proto=17) / DATA[:1400]
        card.add_sa(association(OUT, TRANSPORT, V4[0], f"10.2.{number}.1", spi=0x4000 + number), 0.0)
        card.send([NetBuffer(frame_of(piece))], 1.0)
        assert card._outbound.reassembly.bytes <= 128 << 10
    assert drops(card)["out_fragment_incomplete"] > 100
    card.reassembly_limit = 1 << 20
    assert card.reassembly_limit == 1 << 20


@pytest.mark.parametrize("rule", list(FragmentRule))
def test_the_whole_is_judged_by_its_own_ports(rule: FragmentRule) -> None:
    """A wide policy wants transport mode, an earlier one discards a port: that holds for the whole, though
    only the first fragment shows it."""
    cards = pair(4, "esp")
    card = cards[0]
    card.set_defaults(replace(card.defaults, fragments=rule))
    discard = policy(OUT, selector(protocol=17, destination_port=8), action=PolicyAction.DISCARD)
    card.add_policy(discard)
    assert through(cards, pieces_of(whole_of(4, 4000))) == []
    assert set(drops(card)) <= {"out_policy_discard", "out_fragment"}
    other = whole_of(4, 4000)
    other[UDP].dport = 9
    got = through(cards, pieces_of(other))
    if rule is FragmentRule.DROP:
        assert got == []
    else:
        assert got == [bytes(frame_of(other))]
