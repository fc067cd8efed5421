"""Two cards joined: every size arrives, also what one cuts after it protects it and the other joins."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet
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
    association,
    frame_of,
    policy,
    template,
)

from tests.engines import BOTH_ENGINES, make_card
from vnic.engine.reference import ReferenceEngine
from vnic.ipsec.association import SecurityAssociation
from vnic.ipsec.policy import Template
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.checksum import ones_complement_sum, pseudo_header_sum
from vnic.packet.vnet import GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, VnetHeader

pytestmark = BOTH_ENGINES

V4 = ("10.1.0.1", "10.2.0.1")
V6 = ("fd01::1", "fd02::1")
DATA = random.Random(2).randbytes(66_000)
MTU = 1500

Shape = tuple[int, list[Template], list[SecurityAssociation]]
Pair = tuple[ReferenceEngine, ReferenceEngine]

CBC = {"encryption": "aes-cbc-128", "integrity": "hmac-sha256-128"}
GMAC = {"encryption": "null", "integrity": "aes-gmac-128"}


def esp(
    ends: tuple[str, str], mode: object = TUNNEL, spi: int = 0x1000, **algorithms: str
) -> SecurityAssociation:
    return association(OUT, mode, *ends, spi=spi, **algorithms)  # type: ignore[arg-type]


def ah(ends: tuple[str, str], mode: object = TUNNEL, spi: int = 0x2000) -> SecurityAssociation:
    return association(OUT, mode, *ends, spi=spi, protocol=AH)  # type: ignore[arg-type]


T_ESP, T_AH = template(ESP, TRANSPORT), template(AH, TRANSPORT)
U4, U6 = template(ESP, TUNNEL, NEAR, FAR), template(ESP, TUNNEL, NEAR6, FAR6)
UA4 = template(AH, TUNNEL, NEAR, FAR)
E4, E6 = (NEAR, FAR), (NEAR6, FAR6)

SHAPES: dict[str, Shape] = {
    "tunnel 4 in 4, GCM": (4, [U4], [esp(E4)]),
    "tunnel 4 in 4, CBC": (4, [U4], [esp(E4, **CBC)]),
    "tunnel 4 in 4, GMAC": (4, [U4], [esp(E4, **GMAC)]),
    "tunnel 4 in 6, CBC": (4, [U6], [esp(E6, **CBC)]),
    "tunnel 6 in 4, GCM": (6, [U4], [esp(E4)]),
    "tunnel 6 in 6, CBC": (6, [U6], [esp(E6, **CBC)]),
    "tunnel 4 in 4, AH": (4, [UA4], [ah(E4)]),
    "tunnel 4 in 4, AH over ESP": (4, [U4, T_AH], [esp(E4, **CBC), ah(E4, TRANSPORT)]),
    "transport 4, GCM": (4, [T_ESP], [esp(V4, TRANSPORT)]),
    "transport 4, CBC": (4, [T_ESP], [esp(V4, TRANSPORT, **CBC)]),
    "transport 4, AH": (4, [T_AH], [ah(V4, TRANSPORT)]),
    "transport 4, AH over ESP": (4, [T_ESP, T_AH], [esp(V4, TRANSPORT), ah(V4, TRANSPORT)]),
    "transport 6, CBC": (6, [T_ESP], [esp(V6, TRANSPORT, **CBC)]),
    "transport 6, AH": (6, [T_AH], [ah(V6, TRANSPORT)]),
    "transport in tunnel 4": (4, [T_ESP, U4], [esp(V4, TRANSPORT, 0x3000), esp(E4, **CBC)]),
    "transport 6 in tunnel 4": (6, [T_ESP, U4], [esp(V6, TRANSPORT, 0x3000), esp(E4)]),
}


def pair(shape: Shape, wire_mtu: int = MTU) -> Pair:
    version, templates, sas = shape
    cards = (
        make_card(random.Random(3).randbytes, wire_mtu),
        make_card(random.Random(4).randbytes, wire_mtu),
    )
    family = ANY if version == 4 else ANY6
    cards[0].add_policy(policy(OUT, family, *templates))
    cards[1].add_policy(policy(IN, family, *templates))
    for sa in sas:
        cards[0].add_sa(sa, 0.0)
        cards[1].add_sa(replace(sa, direction=IN), 0.0)
    return cards


def packet_of(version: int, length: int, flags: int = 0) -> bytearray:
    """A UDP packet with so many bytes of payload, and checksums by hand because scapy is slow."""
    payload = DATA[:length]
    if version == 4:
        frame = frame_of(
            IP(src=V4[0], dst=V4[1], id=length, flags=flags, len=28 + length) / UDP(sport=7, dport=8)
        )
    else:
        frame = frame_of(IPv6(src=V6[0], dst=V6[1], plen=8 + length) / UDP(sport=7, dport=8))
    start = 34 if version == 4 else 54
    frame[start + 4 : start + 8] = (8 + length).to_bytes(2, "big") + bytes(2)
    return frame + payload


def across(cards: Pair, frame: bytearray, vnet: VnetHeader | None = None, now: float = 1.0) -> list[bytes]:
    """What the far host gets; every frame on the wire fits it."""
    wire = cards[0].send([NetBuffer(bytearray(frame), vnet)], now).wire
    assert all(len(one.frame) - 14 <= cards[0].wire_mtu for one in wire)
    received = cards[1].receive([NetBuffer(bytearray(one.frame)) for one in wire], now)
    return [bytes(one.frame) for one in received.host]


def joined(frames: list[bytes]) -> bytes:
    """The IPv4 packet that inner fragments make, by their offsets, from its payload on."""
    parts = sorted(((frame[20] & 0x1F) << 8 | frame[21], frame[34:]) for frame in frames)
    data = b""
    for place, part in parts:
        assert place * 8 == len(data)
        data += part
    assert [bool(frame[20] & 0x20) for frame in frames] == [True] * (len(frames) - 1) + [False]
    return data


@pytest.mark.rule(16, 17)
@pytest.mark.parametrize("name", SHAPES)
def test_every_size_arrives_as_it_was_sent_or_is_answered(name: str) -> None:
    version = SHAPES[name][0]
    cards = pair(SHAPES[name])
    largest = cards[0].inner_mtu(MTU)
    header = 28 if version == 4 else 48
    cut = 0
    for length in range(MTU + 41):
        frame = packet_of(version, length)
        got = across(cards, frame)
        if version == 6 and header + length > max(largest, 1280):
            assert got == []
        elif len(got) == 1:
            assert got[0] == bytes(frame)
            cut += header + length > largest
        else:
            assert header + length > largest
            assert joined(got) == bytes(frame[34:])
            cut += 1
    sent, received = cards[0].counters, cards[1].counters
    assert sent.tx_fragmented == cut
    assert received.drops == {}
    if sent.tx_software:
        # Cut after: software sealed as many as were cut, and opened what was put together (R16, R17).
        assert sent.tx_software == received.rx_reassembled == received.rx_software == cut
        assert received.rx_fragments == sent.tx_fragments == 2 * cut
    assert {drop.value for drop in sent.drops} <= {"out_too_big"}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("size", [1, 1460, 4000, 20_000, 65_000])
def test_superframes_arrive_byte_for_byte(name: str, size: int) -> None:
    version = SHAPES[name][0]
    cards = pair(SHAPES[name])
    if version == 4:
        frame = (
            frame_of(IP(src=V4[0], dst=V4[1], flags="DF", len=40 + size) / TCP(seq=1, flags="A"))
            + DATA[:size]
        )
        start, kind = 34, GSO_TCPV4
    else:
        frame = frame_of(IPv6(src=V6[0], dst=V6[1], plen=20 + size) / TCP(seq=1, flags="A")) + DATA[:size]
        start, kind = 54, GSO_TCPV6
    frame[start + 16 : start + 18] = bytes(2)
    got = across(cards, frame, VnetHeader(NEEDS_CSUM, kind, start + 20, 1460, start, 16))
    stream = b"".join(one[start + 20 :] for one in got)
    assert stream == DATA[:size]
    assert cards[1].counters.drops == {}
    assert cards[0].counters.tx_fragmented == 0


@pytest.mark.rule(16, 17)
@pytest.mark.parametrize("name", [name for name in SHAPES if name.startswith(("tunnel 4", "transport 4"))])
def test_large_packets_cross_in_many_pieces_and_any_order(name: str) -> None:
    cards = pair(SHAPES[name])
    cards[0].fragment_before = False
    chance = random.Random(5)
    for length in (1473, 5000, 30_000, 65_000):
        frame = packet_of(4, length)
        wire = cards[0].send([NetBuffer(bytearray(frame))], 1.0).wire
        chance.shuffle(wire)
        got = [one for piece in wire for one in cards[1].receive([NetBuffer(piece.frame)], 1.0).host]
        assert [bytes(one.frame) for one in got] == [bytes(frame)]
    assert (cards[0].counters.tx_offloaded, cards[0].counters.tx_software) == (0, 4)
    assert (cards[1].counters.rx_offloaded, cards[1].counters.rx_software) == (0, 4)
    assert cards[1].counters.drops == {}


@pytest.mark.rule(17)
def test_reassembled_packet_is_checked_like_any_other() -> None:
    cards = pair(SHAPES["transport 4, GCM"])
    wire = [one.frame for one in cards[0].send([NetBuffer(packet_of(4, 2000))], 1.0).wire]
    again = [bytearray(one) for one in wire]
    wire[1][60] ^= 1
    assert cards[1].receive([NetBuffer(bytearray(one)) for one in wire], 1.0).host == []
    assert len(cards[1].receive([NetBuffer(bytearray(one)) for one in again], 1.0).host) == 1
    assert cards[1].receive([NetBuffer(bytearray(one)) for one in again], 1.0).host == []
    drops = {reason.value: count for reason, count in cards[1].counters.drops.items()}
    assert drops == {"in_icv": 1, "in_replay_duplicate": 1}


def test_fragments_for_nobody_here_and_with_software_off_end_as_before() -> None:
    piece = IP(src=FAR, dst="192.0.2.77", proto=50, flags="MF") / DATA[:800]
    known = IP(src=FAR, dst=NEAR, proto=50, flags="MF") / DATA[:800]
    for software, packets in ((True, [piece]), (False, [piece, known])):
        card = make_card(random.Random(1).randbytes, software=software)
        card.add_sa(association(IN, TUNNEL, FAR, NEAR), 0.0)
        for packet in packets:
            assert card.receive([NetBuffer(frame_of(packet))], 1.0).host == []
        assert {reason.value: n for reason, n in card.counters.drops.items()} == {"in_fragment": len(packets)}


def test_fragments_of_other_protocols_pass_as_they_are() -> None:
    card = pair(SHAPES["tunnel 4 in 4, GCM"])[1]
    (got,) = (
        pair(SHAPES["transport 6, CBC"])[1]
        .receive([NetBuffer(frame_of(IP(src=FAR, dst=NEAR, proto=17, flags="MF") / DATA[:800]))], 1.0)
        .host
    )
    assert bytes(got.frame)[34:] == DATA[:800]
    assert card.deadline == float("inf")


def test_clock_ends_fragments_whose_others_do_not_come() -> None:
    cards = pair(SHAPES["transport 4, GCM"])
    first, *_ = cards[0].send([NetBuffer(packet_of(4, 2000))], 1.0).wire
    assert cards[1].receive([NetBuffer(first.frame)], 5.0).host == []
    assert cards[1].counters.drops == {}
    assert cards[1].deadline == 35.0
    cards[1].keep_time(34.9)
    assert cards[1].counters.drops == {}
    cards[1].keep_time(35.0)
    assert {reason.value: n for reason, n in cards[1].counters.drops.items()} == {"in_fragment_timeout": 1}
    assert cards[1].deadline == float("inf")


def test_host_learns_a_size_that_then_fits() -> None:
    """What a host does with the answer: it sends so much, and that arrives."""
    for version, name in ((4, "tunnel 4 in 4, CBC"), (6, "tunnel 6 in 6, CBC"), (4, "transport in tunnel 4")):
        cards = pair(SHAPES[name])
        overhead = 28 if version == 4 else 48
        outcome = cards[0].send([NetBuffer(packet_of(version, MTU - overhead, flags=2))], 1.0)
        assert outcome.wire == []
        (answer,) = outcome.host
        told = Ether(bytes(answer.frame))
        mtu = told[ICMP].nexthopmtu if version == 4 else told[ICMPv6PacketTooBig].mtu
        frame = packet_of(version, mtu - overhead, flags=2)
        assert across(cards, frame) == [bytes(frame)]
        assert across(cards, packet_of(version, mtu - overhead + 1, flags=2)) == []


def test_checksum_of_the_reassembled_outer_header_is_right() -> None:
    cards = pair(SHAPES["transport 4, GCM"])
    frame = packet_of(4, 3000)
    total = pseudo_header_sum(frame[26:30], frame[30:34], 17, 3008) + ones_complement_sum(frame[34:])
    frame[40:42] = (0xFFFF - total % 65535).to_bytes(2, "big")
    (got,) = across(cards, frame)
    packet: Packet = Ether(got)[IP]
    copy = packet.copy()
    del copy.chksum, copy[UDP].chksum
    assert bytes(copy) == bytes(packet)
