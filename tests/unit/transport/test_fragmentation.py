"""Packets cut so that they fit: scapy puts them together again."""

from __future__ import annotations

import pytest
from scapy.layers.inet import (
    ICMP,
    IP,
    UDP,
    IPOption_NOP,
    IPOption_Router_Alert,
    IPOption_Timestamp,
    defragment,
)
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    defragment6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from transport_lab import (
    AH,
    ANY,
    ANY6,
    ESP,
    ETHER,
    FAR,
    NEAR,
    OUT,
    TRANSPORT,
    Card,
    association,
    frame_of,
    policy,
    selector,
    template,
)

from vnic.ipsec.policy import Template
from vnic.packet.ip import parse_ip
from vnic.packet.vnet import GSO_UDP_L4, NEEDS_CSUM, VnetHeader
from vnic.transport.fragmentation import allow_cutting, cut, may_be_cut

V4 = {"src": "10.1.0.1", "dst": "10.2.0.1"}
V6 = {"src": "fd01::1", "dst": "fd02::1"}
DATA = bytes(range(256)) * 20
TO_FAR = template(source=NEAR, destination=FAR)


def pieces_of(packet: Packet, room: int) -> list[Packet]:
    frame = frame_of(packet)
    cut_up = cut(frame, parse_ip(frame, 14), room, 0xABCD1234)
    assert all(len(one) - 14 <= room for one in cut_up)
    return [Ether(bytes(one)) for one in cut_up]


def whole(packets: list[Packet]) -> bytes:
    """The packet that scapy makes of fragments, from its IP header on, without its checksum."""
    if IPv6 in packets[0]:
        return bytes(defragment6(packets)[IPv6])
    (one,) = defragment(packets)
    return bytes(one[IP])


@pytest.mark.parametrize("room", [68, 576, 1300, 1499])
@pytest.mark.parametrize("length", [1473, 1480, 4000])
def test_ipv4_fragments_make_the_packet_again(room: int, length: int) -> None:
    packet = IP(**V4, id=7) / UDP(sport=1, dport=2) / DATA[:length]
    pieces = pieces_of(packet, room)
    for piece in pieces:
        copy = piece[IP].copy()
        del copy.chksum
        assert bytes(copy) == bytes(piece[IP])
        assert piece[IP].id == 7
    assert [piece[IP].flags.MF for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert whole(pieces) == bytes(packet)


def test_a_fragment_is_cut_within_its_place() -> None:
    middle = IP(**V4, id=7, frag=100, flags="MF", proto=17) / Raw(DATA[:1200])
    pieces = pieces_of(middle, 600)
    assert [(one[IP].frag, bool(one[IP].flags.MF)) for one in pieces] == [
        (100, True),
        (172, True),
        (244, True),
    ]
    assert b"".join(bytes(one[IP].payload) for one in pieces) == DATA[:1200]


def test_only_options_marked_for_it_are_copied() -> None:
    options = [IPOption_NOP(), IPOption_Timestamp(), IPOption_Router_Alert()]
    first, *rest = pieces_of(IP(**V4, options=options) / UDP() / DATA[:2000], 800)
    assert [option.option for option in first[IP].options][:3] == [1, 4, 20]
    for one in rest:
        assert [option.option for option in one[IP].options] == [20]
        assert one[IP].ihl == 6


@pytest.mark.parametrize("room", [1280, 700, 96])
def test_ipv6_fragments_make_the_packet_again(room: int) -> None:
    packet = IPv6(**V6, fl=5) / UDP(sport=1, dport=2) / DATA[:3000]
    pieces = pieces_of(packet, room)
    assert {piece[IPv6ExtHdrFragment].id for piece in pieces} == {0xABCD1234}
    assert all(piece[IPv6].plen == len(bytes(piece[IPv6].payload)) for piece in pieces)
    assert whole(pieces) == bytes(packet)


def test_ipv6_headers_of_the_way_stand_in_every_fragment() -> None:
    chain = IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting(addresses=["fd03::1"])
    pieces = pieces_of(IPv6(**V6) / chain / IPv6ExtHdrDestOpt() / UDP() / DATA[:1000], 500)
    for piece in pieces:
        assert piece[IPv6].nh == 0
        assert piece[IPv6ExtHdrRouting].nh == 44
        assert piece[IPv6ExtHdrFragment].nh == 60
    # Destination options without a routing header are for the end alone.
    (first, *_) = pieces_of(IPv6(**V6) / IPv6ExtHdrDestOpt() / UDP() / DATA[:1000], 500)
    assert (first[IPv6].nh, first[IPv6ExtHdrFragment].nh) == (44, 60)


def test_room_without_place_for_eight_bytes_cuts_nothing() -> None:
    assert pieces_of(IP(**V4) / UDP() / DATA[:100], 27) == []
    assert pieces_of(IPv6(**V6) / UDP() / DATA[:100], 55) == []


def test_df_says_whether_a_packet_may_be_cut_and_can_be_cleared() -> None:
    kept, free = frame_of(IP(**V4, flags="DF", id=0) / UDP()), frame_of(IP(**V4, id=3) / UDP())
    six = frame_of(IPv6(**V6) / UDP())
    assert [may_be_cut(one, parse_ip(one, 14)) for one in (kept, free, six)] == [False, True, False]
    allow_cutting(kept, 14, 0x1234)
    assert bytes(kept) == bytes(frame_of(IP(**V4, id=0x1234) / UDP()))
    before = bytes(free)
    allow_cutting(free, 14, 0x1234)
    assert bytes(free) == before


# in the transport


def protected(*templates: Template, software: bool = True, **members: object) -> Card:
    card = Card(software=software)
    card.spd.add(policy(OUT, ANY, *(templates or (TO_FAR,))))
    card.sad.add(association(**members), 0.0)
    return card


BIG = IP(**V4, id=9) / UDP(sport=1, dport=2) / DATA[:4000]


def counted(card: Card) -> tuple[int, int, int]:
    counters = card.audit.card
    return counters.tx_fragmented, counters.tx_fragments, counters.tx_software


def test_tunnel_cuts_before_it_protects_and_leaves_the_pieces_to_the_nic() -> None:
    card = protected()
    framed = card.framed(BIG)
    assert all(buffer.transmit is not None for buffer in framed)
    inner = [IP(bytes(buffer.frame)[50:-18]) for buffer in framed]
    assert [one.len for one in inner[:2]] == [1444, 1444]
    packets = [ETHER / IP(bytes(one)[: one.len]) for one in inner]
    assert whole(packets) == bytes(BIG)
    assert all(not Ether(bytes(buffer.frame))[IP].frag for buffer in framed)
    assert counted(card) == (1, 3, 0)


@pytest.mark.rule(16)
def test_tunnel_told_to_cut_after_has_software_protect_the_whole_and_cuts_that() -> None:
    card = protected()
    card.outbound.fragment_before = False
    framed = card.framed(BIG)
    assert all(buffer.transmit is None for buffer in framed)
    outer = [Ether(bytes(buffer.frame)) for buffer in framed]
    assert max(one[IP].len for one in outer) <= 1500
    packet = IP(whole(outer))
    # 4028 bytes and what ESP adds: 8 + 8 + 2 + 2 + 16, and the outer header.
    assert (packet.proto, packet.len, packet.src, packet.dst) == (50, 4028 + 36 + 20, NEAR, FAR)
    assert counted(card) == (1, 3, 1)


@pytest.mark.rule(16)
def test_transport_mode_cuts_what_is_protected() -> None:
    for protocol, overhead in ((ESP, 36), (AH, 32)):
        card = protected(
            template(protocol, TRANSPORT),
            mode=TRANSPORT,
            protocol=protocol,
            source="10.1.0.1",
            destination="10.2.0.1",
        )
        outer = [Ether(bytes(one)) for one in card.sent(BIG)]
        assert {one[IP].id for one in outer} == {9}
        packet = IP(whole(outer))
        assert (packet.proto, packet.len) == (protocol, 4028 + overhead)
        assert counted(card) == (1, 3, 1)


@pytest.mark.parametrize("after", [False, True])
def test_policy_or_sa_that_names_ports_takes_packets_whole(after: bool) -> None:
    """RFC 4301 §7: the far end could not tell by the later pieces whether they may pass."""
    for chosen, own in (
        (selector(protocol=17, destination_port=2), None),
        (ANY, selector(protocol=17, source_port=1)),
    ):
        card = Card(software=True)
        card.outbound.fragment_before = not after
        card.spd.add(policy(OUT, chosen, TO_FAR))
        card.sad.add(association(selector=own), 0.0)
        assert [Ether(bytes(one))[IP].frag for one in card.sent(BIG)] == [0, 185, 370]


def test_without_software_nothing_can_be_cut_after() -> None:
    card = protected(software=False)
    card.outbound.fragment_before = False
    assert card.sent(BIG) == []
    assert {reason.value: count for reason, count in card.drops.items()} == {"out_not_offloaded": 1}


@pytest.mark.parametrize("ends", [(NEAR, FAR), ("2001:db8::1", "2001:db8::2")])
def test_ipv6_packet_of_1280_bytes_passes_a_tunnel_that_leaves_less(ends: tuple[str, str]) -> None:
    """RFC 2473 §7.1: the host need not send smaller ones."""
    card = Card(wire_mtu=1280, software=True)
    card.spd.add(policy(OUT, ANY6, template(source=ends[0], destination=ends[1])))
    card.sad.add(association(source=ends[0], destination=ends[1]), 0.0)
    outer = [Ether(bytes(one)) for one in card.sent(IPv6(**V6) / UDP() / DATA[:1232])]
    assert len(outer) == 2
    packet = whole(outer)
    assert len(packet) == 1280 + 36 + (20 if ends[0] == NEAR else 40)
    if ends[0] == NEAR:
        assert not any(one[IP].flags.DF for one in outer)
        assert outer[0][IP].id == 1
    assert card.sent(IPv6(**V6) / UDP() / DATA[:1233]) == []
    assert len(card.outbound.take_answers()) == 1


def test_packets_in_clear_are_cut_as_a_router_would() -> None:
    card = Card()
    outer = [Ether(bytes(one)) for one in card.sent(BIG)]
    assert whole(outer) == bytes(BIG)
    assert counted(card) == (1, 3, 0)


@pytest.mark.parametrize("protect", [False, True])
def test_datagrams_of_a_superframe_are_cut_each_for_itself(protect: bool) -> None:
    card = protected() if protect else Card()
    packet = IP(**V4, id=9) / UDP(sport=1, dport=2, chksum=0) / DATA[:3600]
    vnet = VnetHeader(NEEDS_CSUM, GSO_UDP_L4, 42, 1800, 34, 6)
    framed = card.framed(packet, vnet=vnet)
    inner = [IP(bytes(one.frame)[50:-18] if protect else bytes(one.frame)[14:]) for one in framed]
    inner = [IP(bytes(one)[: one.len]) for one in inner]
    assert [(one.id, one.frag > 0) for one in inner] == [(9, False), (9, True), (10, False), (10, True)]
    for pair, part in ((inner[:2], DATA[:1800]), (inner[2:], DATA[1800:3600])):
        joined = IP(whole([ETHER / one for one in pair]))
        assert bytes(joined[UDP].payload) == part
        copy = joined.copy()
        del copy[UDP].chksum
        assert bytes(copy) == bytes(joined)


def test_open_checksum_is_completed_before_the_packet_is_cut() -> None:
    card = protected()
    frame = frame_of(BIG)
    right = bytes(frame[40:42])
    # As the kernel leaves it: the sum of the pseudo-header alone.
    total = sum(int.from_bytes(frame[at : at + 2], "big") for at in range(26, 34, 2)) + 17 + 4008
    frame[40:42] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
    framed = card.framed(frame, vnet=VnetHeader(NEEDS_CSUM, 0, 0, 0, 34, 6))
    assert IP(bytes(framed[0].frame)[50:])[UDP].chksum == int.from_bytes(right, "big")


def test_ping_that_is_cut_still_counts_once_as_fragmented() -> None:
    card = protected()
    card.framed(IP(**V4) / ICMP() / DATA[:1473])
    assert counted(card) == (1, 2, 0)
