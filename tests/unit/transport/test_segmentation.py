"""Cutting superframes: every piece is read by scapy and must be a packet a host could have sent."""

from __future__ import annotations

from itertools import pairwise

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.packet import Packet, Raw

from vnic.errors import PacketError
from vnic.packet.ip import IpHeader, parse_ip
from vnic.packet.vnet import (
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP,
    GSO_UDP_L4,
    NEEDS_CSUM,
    PLAIN,
    VnetHeader,
)
from vnic.transport.segmentation import (
    complete_checksum,
    is_superframe,
    layer4_length,
    segment_count,
    segments,
)

V4 = {"src": "10.1.0.1", "dst": "10.2.0.1"}
V6 = {"src": "fd01::1", "dst": "fd02::1"}
DATA = bytes(index * 31 & 0xFF for index in range(70000))
OPTIONS = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]


def superframe(packet: Packet) -> tuple[bytearray, IpHeader]:
    frame = bytearray(bytes(packet))
    return frame, parse_ip(frame, 0)


def vnet(kind: int, size: int, flags: int = NEEDS_CSUM) -> VnetHeader:
    return VnetHeader(flags, kind, 0, size, 0, 0)


def cut(packet: Packet, kind: int, size: int) -> list[Packet]:
    """The pieces as scapy reads them, after checking lengths and checksums of each."""
    frame, header = superframe(packet)
    before = bytes(frame)
    layer4 = layer4_length(frame, header, vnet(kind, size))
    raws = [b"".join(pieces) for pieces in segments(frame, header, layer4, size)]
    assert bytes(frame) == before, "the superframe was changed"
    assert len(raws) == segment_count(header, header.header_length + layer4, size)
    family = IPv6 if header.version == 6 else IP
    return [checked(family(raw)) for raw in raws]


def checked(packet: Packet) -> Packet:
    """A packet whose lengths and checksums are those scapy computes itself."""
    raw = bytes(packet)
    fresh = packet.copy()
    for layer in (IP, IPv6, TCP, UDP):
        if layer in fresh:
            for field in ("chksum", "len", "plen"):
                if field in fresh[layer].fields:
                    fresh[layer].delfieldval(field)
    assert bytes(fresh) == raw
    return packet


def payload_of(packet: Packet) -> bytes:
    layer = packet[TCP] if TCP in packet else packet[UDP]
    return bytes(layer.payload)


@pytest.mark.parametrize("length", [1, 999, 1000, 1001, 2000, 2001, 9999, 64000])
@pytest.mark.parametrize("version", [4, 6])
def test_tcp_payload_comes_out_whole_and_in_order(version: int, length: int) -> None:
    ip = IP(**V4, id=100) if version == 4 else IPv6(**V6)
    pieces = cut(
        ip / TCP(sport=1, dport=2, seq=1000, flags="A") / DATA[:length],
        GSO_TCPV4 if version == 4 else GSO_TCPV6,
        1000,
    )
    assert b"".join(map(payload_of, pieces)) == DATA[:length]
    assert [len(payload_of(piece)) for piece in pieces[:-1]] == [1000] * (len(pieces) - 1)
    assert 0 < len(payload_of(pieces[-1])) <= 1000
    for before, after in pairwise(pieces):
        assert after[TCP].seq == before[TCP].seq + 1000


@pytest.mark.rule(194)
@pytest.mark.parametrize("size", [1, 7, 536, 1447, 1448, 8948])
def test_no_piece_has_more_than_the_segment_size(size: int) -> None:
    pieces = cut(IP(**V4) / TCP(flags="A") / DATA[: 5 * size + 3], GSO_TCPV4, size)
    assert max(len(payload_of(piece)) for piece in pieces) <= size
    assert len(pieces) == 5 + -(-3 // size)


@pytest.mark.rule(195)
def test_fin_and_psh_go_to_the_last_piece_and_cwr_to_the_first() -> None:
    pieces = cut(IP(**V4) / TCP(flags="FPACE") / DATA[:3500], GSO_TCPV4 | GSO_ECN, 1000)
    assert [str(piece[TCP].flags) for piece in pieces] == ["AEC", "AE", "AE", "FPAE"]


def test_single_piece_keeps_all_its_flags() -> None:
    (piece,) = cut(IP(**V4) / TCP(flags="FPAC") / DATA[:10], GSO_TCPV4, 1000)
    assert str(piece[TCP].flags) == "FPAC"


def test_headers_and_options_are_copied_to_every_piece() -> None:
    packet = (
        IP(**V4, tos=0xB9, ttl=33, flags="DF", id=7, options=[IPOption_NOP()] * 4)
        / TCP(sport=1000, dport=80, seq=5, ack=9, window=513, flags="A", options=OPTIONS)
        / DATA[:2500]
    )
    pieces = cut(packet, GSO_TCPV4, 1000)
    for piece in pieces:
        assert (piece.tos, piece.ttl, str(piece.flags), len(piece.options)) == (0xB9, 33, "DF", 4)
        tcp = piece[TCP]
        assert (tcp.sport, tcp.dport, tcp.ack, tcp.window, tcp.options) == (1000, 80, 9, 513, OPTIONS)


def test_ipv6_extension_headers_are_copied_to_every_piece() -> None:
    pieces = cut(
        IPv6(**V6, tc=0x55, fl=0x12345, hlim=9) / IPv6ExtHdrDestOpt() / TCP(flags="A") / DATA[:2500],
        GSO_TCPV6,
        1000,
    )
    assert len(pieces) == 3
    for piece in pieces:
        assert (piece.tc, piece.fl, piece.hlim) == (0x55, 0x12345, 9)
        assert IPv6ExtHdrDestOpt in piece
        assert piece.plen == len(bytes(piece)) - 40


def test_identifications_count_up_from_the_first_and_wrap() -> None:
    pieces = cut(IP(**V4, id=0xFFFE) / TCP(flags="A") / DATA[:4000], GSO_TCPV4, 1000)
    assert [piece.id for piece in pieces] == [0xFFFE, 0xFFFF, 0, 1]


def test_sequence_numbers_wrap() -> None:
    pieces = cut(IP(**V4) / TCP(flags="A", seq=0xFFFFFC00) / DATA[:2500], GSO_TCPV4, 1000)
    assert [piece[TCP].seq for piece in pieces] == [0xFFFFFC00, 0xFFFFFFE8, 0x3D0]


def test_urgent_pointer_and_reserved_bits_survive() -> None:
    pieces = cut(IP(**V4) / TCP(flags="AU", urgptr=77, reserved=5) / DATA[:1500], GSO_TCPV4, 1000)
    assert [(piece[TCP].urgptr, piece[TCP].reserved) for piece in pieces] == [(77, 5)] * 2


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("length", [1, 1000, 1001, 5003])
def test_udp_superframe_becomes_datagrams_of_its_segment_size(version: int, length: int) -> None:
    ip = IP(**V4, id=9) if version == 4 else IPv6(**V6)
    pieces = cut(ip / UDP(sport=5, dport=6) / DATA[:length], GSO_UDP_L4, 1000)
    assert [payload_of(piece) for piece in pieces] == [
        DATA[at : at + 1000][: length - at] for at in range(0, length, 1000)
    ]
    assert all((piece[UDP].sport, piece[UDP].dport) == (5, 6) for piece in pieces)
    assert [piece[UDP].len for piece in pieces] == [8 + len(payload_of(piece)) for piece in pieces]


def test_udp_superframe_without_payload_is_one_datagram() -> None:
    (piece,) = cut(IP(**V4) / UDP(sport=5, dport=6), GSO_UDP_L4, 1000)
    assert payload_of(piece) == b""


def test_udp_checksum_that_comes_out_as_zero_is_sent_as_all_ones() -> None:
    # RFC 768: zero says "no checksum". Pick the payload that makes the sum come out so.
    probe = IP(bytes(IP(**V4) / UDP(sport=5, dport=6) / bytes(4)))[UDP].chksum
    payload = probe.to_bytes(2, "big") + bytes(2)
    frame, header = superframe(IP(**V4) / UDP(sport=5, dport=6) / payload)
    ((_, udp, _),) = segments(frame, header, 8, 1000)
    assert udp[6:8] == b"\xff\xff"


def test_checksums_of_the_superframe_do_not_matter() -> None:
    pieces = cut(IP(**V4, chksum=0xDEAD) / TCP(flags="A", chksum=0xBEEF) / DATA[:2500], GSO_TCPV4, 1000)
    assert len(pieces) == 3


def test_bytes_behind_the_packet_are_left_out() -> None:
    frame, header = superframe(IP(**V4) / TCP(flags="A") / DATA[:1500])
    frame += b"trailer"
    pieces = [b"".join(part) for part in segments(frame, header, 20, 1000)]
    assert b"trailer" not in pieces[-1]
    assert sum(len(piece) - 40 for piece in pieces) == 1500


@pytest.mark.parametrize(
    ("packet", "header"),
    [
        (IP(**V4) / TCP() / DATA[:100], vnet(GSO_UDP_L4, 10)),
        (IP(**V4) / UDP() / DATA[:100], vnet(GSO_TCPV4, 10)),
        (IP(**V4) / UDP() / DATA[:100], vnet(GSO_UDP, 10)),
        (IP(**V4) / ICMP() / DATA[:100], vnet(GSO_TCPV4, 10)),
        (IP(**V4) / TCP() / DATA[:100], vnet(GSO_TCPV4, 0)),
        (IP(**V4) / UDP() / DATA[:100], vnet(GSO_UDP_L4, 0)),
        (IP(**V4) / TCP() / DATA[:100], vnet(9, 10)),
        (IP(**V4, flags="MF") / TCP() / DATA[:96], vnet(GSO_TCPV4, 10)),
        (IP(**V4, frag=5, proto=6) / Raw(DATA[:96]), vnet(GSO_TCPV4, 10)),
        (IP(**V4, proto=6) / Raw(DATA[:19]), vnet(GSO_TCPV4, 10)),
        (IP(**V4, proto=17) / Raw(DATA[:7]), vnet(GSO_UDP_L4, 10)),
        (IP(**V4) / TCP(dataofs=4) / DATA[:100], vnet(GSO_TCPV4, 10)),
        (IP(**V4) / TCP(dataofs=15) / DATA[:39], vnet(GSO_TCPV4, 10)),
    ],
)
def test_superframe_that_is_not_what_it_says_is_malformed(packet: Packet, header: VnetHeader) -> None:
    frame, ip = superframe(packet)
    with pytest.raises(PacketError):
        layer4_length(frame, ip, header)


def test_superframes_are_known_by_their_type_whatever_ecn_says() -> None:
    assert not is_superframe(None)
    assert not is_superframe(PLAIN)
    assert not is_superframe(vnet(GSO_NONE | GSO_ECN, 0))
    assert is_superframe(vnet(GSO_TCPV4 | GSO_ECN, 1))
    assert is_superframe(vnet(GSO_UDP_L4, 1))


@pytest.mark.parametrize(("layer", "kind"), [(TCP(), GSO_TCPV4), (UDP(), GSO_UDP_L4)])
def test_superframe_of_more_segments_than_a_stack_asks_for_is_malformed(layer: Packet, kind: int) -> None:
    frame = bytearray(bytes(IP(**V4) / layer / bytes(8193)))
    header = parse_ip(frame, 0)
    with pytest.raises(PacketError):
        layer4_length(frame, header, vnet(kind, 1))
    assert layer4_length(frame, header, vnet(kind, 2))


def open_checksum(packet: Packet) -> tuple[bytearray, VnetHeader, bytes]:
    """A frame as Linux hands it over: the pseudo-header's sum where the checksum goes; and it complete."""
    whole = bytes(packet)
    header = parse_ip(whole, 0)
    start = header.payload_offset
    at = 16 if header.protocol == 6 else 6
    addresses = whole[8:40] if header.version == 6 else whole[12:20]
    words = addresses + bytes([0, header.protocol]) + (len(whole) - start).to_bytes(2, "big")
    total = sum(int.from_bytes(words[i : i + 2], "big") for i in range(0, len(words), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    frame = bytearray(whole)
    frame[start + at : start + at + 2] = total.to_bytes(2, "big")
    return frame, VnetHeader(NEEDS_CSUM, GSO_NONE, 0, 0, start, at), whole


@pytest.mark.parametrize(
    "packet",
    [
        IP(**V4) / TCP() / b"odd",
        IP(**V4) / UDP() / b"even",
        IPv6(**V6) / TCP() / DATA[:1000],
        IPv6(**V6) / IPv6ExtHdrDestOpt() / UDP() / b"x",
    ],
)
def test_open_checksum_is_completed_as_the_host_would_have(packet: Packet) -> None:
    frame, header, whole = open_checksum(packet)
    complete_checksum(frame, header, len(frame))
    assert bytes(frame) == whole


def test_ethernet_padding_does_not_count_into_the_checksum() -> None:
    frame, header, whole = open_checksum(IP(**V4) / UDP() / b"x")
    frame += b"\xee" * 17
    complete_checksum(frame, header, len(whole))
    assert frame[: len(whole)] == whole


def test_complete_checksum_leaves_finished_frames_alone() -> None:
    frame = bytearray(bytes(IP(**V4) / UDP() / b"x"))
    before = bytes(frame)
    complete_checksum(frame, PLAIN, len(frame))
    complete_checksum(frame, VnetHeader(2, 0, 0, 0, 20, 6), len(frame))
    assert bytes(frame) == before


@pytest.mark.parametrize(
    ("start", "offset"), [(28, 0), (27, 0), (20, 7), (20, 60000), (60000, 6), (29, 65535)]
)
def test_offsets_outside_the_packet_are_malformed(start: int, offset: int) -> None:
    frame = bytearray(bytes(IP(**V4) / UDP()))
    with pytest.raises(PacketError):
        complete_checksum(frame, VnetHeader(NEEDS_CSUM, 0, 0, 0, start, offset), len(frame))
