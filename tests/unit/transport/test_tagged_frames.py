"""VLAN tags: protected behind them, passed or dropped, by the setting."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from transport_lab import (
    ANY,
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
    template,
)

from tests.engines import BOTH_ENGINES, make_card
from vnic.engine.reference import ReferenceEngine
from vnic.ipsec.policy import Defaults, PolicyAction, VlanRule
from vnic.ndis.capabilities import ENCAPSULATION_IEEE_802_3, OffloadCapabilities
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.vnet import GSO_TCPV4, NEEDS_CSUM, VnetHeader

pytestmark = BOTH_ENGINES

HEAD = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
INNER = IP(src="10.1.0.1", dst="10.2.0.1") / UDP(sport=7, dport=8) / b"VERY SECRET PAYLOAD"
TAGS = {
    "one": HEAD / Dot1Q(vlan=5, prio=3),
    "priority only": HEAD / Dot1Q(vlan=0, prio=7),
    "two": HEAD / Dot1AD(vlan=9) / Dot1Q(vlan=5),
}
OTHERS = {
    "ARP": ARP(psrc="10.1.0.1", pdst="10.2.0.1"),
    "neighbour discovery": IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_NS(tgt="fe80::2"),
    "neither": Raw(bytes(46)),
}


def pair(**limits: object) -> tuple[ReferenceEngine, ReferenceEngine]:
    capabilities = OffloadCapabilities(**limits) if limits else None  # type: ignore[arg-type]
    cards = tuple(make_card(bytes, capabilities=capabilities) for _ in range(2))
    wanted = template(ESP, TUNNEL, NEAR, FAR)
    cards[0].add_policy(policy(OUT, ANY, wanted))
    cards[1].add_policy(policy(IN, ANY, wanted))
    cards[0].add_sa(association(OUT), 0.0)
    cards[1].add_sa(association(IN), 0.0)
    return cards  # type: ignore[return-value]


def set_vlan(card: ReferenceEngine, rule: VlanRule) -> None:
    card.set_defaults(replace(card.defaults, vlan=rule))


def drops(card: ReferenceEngine) -> dict[str, int]:
    return {reason.value: count for reason, count in card.counters.drops.items()}


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS.keys())
@pytest.mark.parametrize("able", [True, False])
def test_tagged_ip_is_protected_behind_its_tags_by_the_nic_if_it_can(tags: Packet, able: bool) -> None:
    cards = pair() if able else pair(encapsulation=ENCAPSULATION_IEEE_802_3)
    frame = bytes(tags / INNER)
    (sealed,) = cards[0].send([NetBuffer(bytearray(frame))], 1.0).wire
    start = frame.index(b"\x45\x00") - 2
    assert bytes(sealed.frame[:start]) == frame[:start]
    assert b"SECRET" not in sealed.frame
    assert (cards[0].counters.tx_offloaded, cards[0].counters.tx_software) == ((1, 0) if able else (0, 1))
    (got,) = cards[1].receive([NetBuffer(bytearray(sealed.frame))], 1.0).host
    assert bytes(got.frame) == frame


@pytest.mark.parametrize("kind", ["8100", "88a8"])
@pytest.mark.parametrize("count", [1, 8, 9, 10, 40])
def test_no_number_of_tags_is_a_way_around_policy(kind: str, count: int) -> None:
    cards = pair()
    tagged = bytes(HEAD / INNER)[:12] + bytes.fromhex(kind + "0005") * count + bytes(HEAD / INNER)[12:]
    wire = cards[0].send([NetBuffer(bytearray(tagged))], 1.0).wire
    host = cards[1].receive([NetBuffer(bytearray(tagged))], 1.0).host
    assert host == []
    if count <= 8:
        (sealed,) = wire
        assert b"SECRET" not in sealed.frame
        assert drops(cards[1]) == {"in_policy_mismatch": 1}
    else:
        assert wire == []
        assert (drops(cards[0]), drops(cards[1])) == ({"out_malformed": 1}, {"in_malformed": 1})


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS.keys())
def test_tagged_frames_are_dropped_in_both_directions_by_setting(tags: Packet) -> None:
    cards = pair()
    (sealed,) = cards[0].send([NetBuffer(frame_of(tags / INNER))], 1.0).wire
    for card in cards:
        set_vlan(card, VlanRule.DROP)
    frames = [frame_of(tags / payload) for payload in (INNER, *OTHERS.values())]
    assert cards[0].send([NetBuffer(bytearray(one)) for one in frames], 1.0).wire == []
    received = [NetBuffer(bytearray(one)) for one in (*frames, sealed.frame)]
    assert cards[1].receive(received, 1.0).host == []
    assert drops(cards[0]) == {"out_vlan": len(frames)}
    assert drops(cards[1]) == {"in_vlan": len(frames) + 1}
    # Untagged frames are as before.
    (sealed,) = cards[0].send([NetBuffer(frame_of(HEAD / INNER))], 1.0).wire
    assert len(cards[1].receive([NetBuffer(sealed.frame)], 1.0).host) == 1


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS.keys())
def test_tagged_frames_pass_as_they_are_by_setting_and_untagged_ones_stay_protected(tags: Packet) -> None:
    cards = pair()
    for card in cards:
        blocked = Defaults(PolicyAction.DISCARD, PolicyAction.DISCARD, PolicyAction.DISCARD)
        card.set_defaults(replace(blocked, vlan=VlanRule.PASS))
    frames = [bytes(tags / payload) for payload in (INNER, *OTHERS.values())]
    wire = cards[0].send([NetBuffer(bytearray(one)) for one in frames], 1.0).wire
    assert [bytes(one.frame) for one in wire] == frames
    host = cards[1].receive([NetBuffer(bytearray(one)) for one in frames], 1.0).host
    assert [bytes(one.frame) for one in host] == frames
    (sealed,) = cards[0].send([NetBuffer(frame_of(HEAD / INNER))], 1.0).wire
    assert b"SECRET" not in sealed.frame


def test_superframe_with_a_tag_passes_as_segments_with_whole_checksums() -> None:
    (card, _) = pair()
    set_vlan(card, VlanRule.PASS)
    packet = IP(src="10.1.0.1", dst="10.2.0.1") / TCP(flags="A") / bytes(3000)
    frame = frame_of(TAGS["one"] / packet)
    vnet = VnetHeader(NEEDS_CSUM, GSO_TCPV4, 58, 1000, 38, 16)
    wire = card.send([NetBuffer(frame, vnet)], 1.0).wire
    assert [len(one.frame) for one in wire] == [1058] * 3
    for one in wire:
        parsed = Ether(bytes(one.frame))
        copy = parsed.copy()
        del copy[TCP].chksum, copy[IP].chksum
        assert bytes(copy) == bytes(parsed)


@pytest.mark.parametrize("software", [False, True])
def test_what_comes_sealed_for_an_sa_is_opened_and_judged_though_tagged_frames_pass(software: bool) -> None:
    cards = pair(encapsulation=ENCAPSULATION_IEEE_802_3) if software else pair()
    (sealed,) = cards[0].send([NetBuffer(frame_of(TAGS["one"] / INNER))], 1.0).wire
    set_vlan(cards[1], VlanRule.PASS)
    (got,) = cards[1].receive([NetBuffer(bytearray(sealed.frame))], 1.0).host
    assert bytes(got.frame) == bytes(TAGS["one"] / INNER)
    assert cards[1].receive([NetBuffer(bytearray(sealed.frame))], 1.0).host == []
    assert drops(cards[1]) == {"in_replay_duplicate": 1}
    # An SA of somebody else is nobody's business.
    sealed.frame[38] ^= 1
    foreign = bytes(sealed.frame)
    (got,) = cards[1].receive([NetBuffer(sealed.frame)], 1.0).host
    assert bytes(got.frame) == foreign


def test_malformed_ip_behind_a_tag_ends_here_whatever_the_setting() -> None:
    for rule in (VlanRule.PASS, VlanRule.PROTECT):
        card = Card()
        card.spd.set_defaults(Defaults(vlan=rule))
        frame = frame_of(TAGS["one"] / INNER)
        frame[18] = 0x41
        assert card.outbound.send([NetBuffer(frame)], 1.0) == []
        assert {reason.value for reason in card.drops} == {"out_malformed"}
