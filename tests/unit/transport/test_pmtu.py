"""What the host is told about packets of its own that are too big."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, UDPerror
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPerror6,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw
from transport_lab import ANY, ETHER, FAR, NEAR, OUT, Card, association, frame_of, policy, template

from vnic.packet.ip import parse_ip
from vnic.packet.vnet import GSO_UDP_L4, NEEDS_CSUM, VnetHeader
from vnic.transport.pmtu import RateLimit, too_big

V4 = {"src": "10.1.0.1", "dst": "10.2.0.1"}
V6 = {"src": "fd01::1", "dst": "fd02::1"}
DATA = bytes(range(256)) * 12


def answer(packet: Packet, mtu: int = 1400) -> Packet | None:
    frame = frame_of(packet)
    tags = frame[12:14] == b"\x81\x00"
    told = too_big(frame, parse_ip(frame, 18 if tags else 14), mtu)
    return None if told is None else Ether(bytes(told))


def fresh(packet: Packet) -> bytes:
    """The same packet with checksums and lengths as scapy computes them."""
    copy = packet.copy()
    for layer in (IP, ICMP, IPv6, ICMPv6PacketTooBig):
        if layer in copy:
            for field in ("chksum", "cksum", "len", "plen"):
                if field in copy[layer].fields:
                    copy[layer].delfieldval(field)
    return bytes(copy)


def test_ipv4_answer_names_the_mtu_and_quotes_the_packet() -> None:
    packet = IP(**V4, flags="DF", id=77) / UDP(sport=5, dport=6) / DATA
    told = answer(packet)
    assert told is not None
    assert (told.src, told.dst) == (ETHER.dst, ETHER.src)
    assert (told[IP].src, told[IP].dst) == (V4["dst"], V4["src"])
    assert (told[ICMP].type, told[ICMP].code, told[ICMP].nexthopmtu) == (3, 4, 1400)
    assert (told[IPerror].id, told[UDPerror].sport, told[UDPerror].dport) == (77, 5, 6)
    # RFC 1812 §4.3.2.3: as much as fits into 576 bytes.
    assert told[IP].len == 576
    assert bytes(told)[42:] == bytes(packet)[:548]
    assert fresh(told) == bytes(told)


def test_ipv6_answer_fits_the_smallest_mtu_and_never_names_less() -> None:
    packet = IPv6(**V6) / UDP(sport=5, dport=6) / DATA
    for mtu, said in ((1400, 1400), (1280, 1280), (1200, 1280)):
        told = answer(packet, mtu)
        assert told is not None
        assert (told[IPv6].src, told[IPv6].dst) == (V6["dst"], V6["src"])
        assert (told[ICMPv6PacketTooBig].code, told[ICMPv6PacketTooBig].mtu) == (0, said)
        assert len(bytes(told[IPv6])) == 1280
        assert IPerror6 in told
        assert bytes(told)[62:] == bytes(packet)[:1232]
        assert fresh(told) == bytes(told)


def test_short_packet_is_quoted_whole() -> None:
    packet = IP(**V4, flags="DF") / UDP() / b"short"
    told = answer(packet, 20)
    assert told is not None
    assert bytes(told)[42:] == bytes(packet)
    assert told[ICMP].nexthopmtu == 68


def test_answer_goes_back_through_the_same_vlan() -> None:
    told = answer(ETHER / Dot1Q(vlan=7) / IP(**V4, flags="DF") / UDP() / DATA)
    assert told is not None
    assert told[Dot1Q].vlan == 7
    assert told[ICMP].code == 4


@pytest.mark.parametrize(
    "packet",
    [
        IP(**V4) / ICMP(type=3, code=4) / DATA,
        IP(**V4) / ICMP(type=11) / DATA,
        IP(**V4) / ICMP(type=5) / DATA,
        IP(src="10.1.0.1", dst="224.0.0.9") / UDP() / DATA,
        IP(src="10.1.0.1", dst="255.255.255.255") / UDP() / DATA,
        IP(src="0.0.0.0", dst="10.2.0.1") / UDP() / DATA,
        IP(src="127.0.0.1", dst="10.2.0.1") / UDP() / DATA,
        IP(**V4, frag=100, proto=17) / Raw(DATA),
        IPv6(**V6) / ICMPv6PacketTooBig() / DATA,
        IPv6(**V6) / ICMPv6TimeExceeded() / DATA,
        IPv6(src="fd01::1", dst="ff02::1") / UDP() / DATA,
        IPv6(src="::", dst="fd02::1") / UDP() / DATA,
        IPv6(**V6) / IPv6ExtHdrFragment(offset=100, nh=17) / Raw(DATA),
        Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff") / IP(**V4) / UDP() / DATA,
    ],
)
def test_nobody_is_told_of_errors_later_fragments_and_what_goes_to_many(packet: Packet) -> None:
    assert answer(packet) is None


@pytest.mark.parametrize(
    "packet",
    [
        IP(**V4) / ICMP(type=8) / DATA,
        IPv6(**V6) / ICMPv6EchoRequest() / DATA,
        IP(**V4, flags="MF", proto=17) / Raw(DATA),
    ],
)
def test_queries_and_first_fragments_are_answered(packet: Packet) -> None:
    assert answer(packet) is not None


def test_answers_are_limited_by_time() -> None:
    limit = RateLimit(rate=10.0, burst=3.0)
    assert [limit.take(5.0) for _ in range(4)] == [True, True, True, False]
    assert limit.take(5.05) is False
    assert limit.take(5.11) is True
    assert [limit.take(100.0) for _ in range(4)] == [True, True, True, False]


def protected(**members: object) -> Card:
    card = Card()
    card.spd.add(policy(OUT, ANY, template(source=NEAR, destination=FAR)))
    card.sad.add(association(**members), 0.0)
    return card


def test_host_is_told_what_fits_once_protected() -> None:
    card = protected()
    assert card.framed(IP(**V4, flags="DF") / UDP() / DATA[:1472]) == []
    (told,) = card.outbound.take_answers()
    # 1500 - outer IPv4 20 - ESP 8 - IV 8 - ICV 16 = 1448, less 2.
    mtu = Ether(bytes(told.frame))[ICMP].nexthopmtu
    assert mtu == 1446
    assert len(card.framed(IP(**V4, flags="DF") / UDP() / DATA[: mtu - 28])) == 1
    assert card.outbound.take_answers() == []
    counters = card.audit.card
    assert (counters.tx_too_big_answered, counters.tx_too_big_unanswered) == (1, 0)
    assert {reason.value: count for reason, count in card.drops.items()} == {"out_too_big": 1}


def test_host_is_told_of_packets_in_clear_and_of_superframes_too() -> None:
    card = Card()
    assert card.framed(IP(**V4, flags="DF") / TCP() / DATA[:1500]) == []
    vnet = VnetHeader(NEEDS_CSUM, GSO_UDP_L4, 42, 1473, 34, 6)
    assert card.framed(IP(**V4, flags="DF") / UDP() / DATA[:2946], vnet=vnet) == []
    told = [Ether(bytes(buffer.frame)) for buffer in card.outbound.take_answers()]
    assert [one[ICMP].nexthopmtu for one in told] == [1500, 1500]


def test_flood_of_big_packets_is_answered_in_part_and_counted() -> None:
    card = protected()
    for _ in range(200):
        card.framed(IP(**V4, flags="DF") / UDP() / DATA[:1472])
    counters = card.audit.card
    assert len(card.outbound.take_answers()) == counters.tx_too_big_answered == 50
    assert counters.tx_too_big_unanswered == 150
