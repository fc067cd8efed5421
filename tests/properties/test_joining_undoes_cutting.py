"""What segmentation cuts, coalescing joins to the same bytes; and damage never comes out as health."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from transport_lab import frame_of

from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.checksum import fold, ones_complement_sum, pseudo_header_sum
from vnic.packet.ip import parse_ip
from vnic.packet.vnet import GSO_TCPV4, GSO_TCPV6, VnetHeader
from vnic.transport.coalesce import coalesce
from vnic.transport.segmentation import layer4_length, segments

OPTIONS = [[], [("NOP", None), ("NOP", None), ("Timestamp", (5, 6))], [("MSS", 1460)]]


@st.composite
def superframes(draw: st.DrawFn) -> tuple[bytearray, int]:
    """A TCP superframe as a host would send it, checksums complete, and a segment size."""
    size = draw(st.one_of(st.integers(1, 60), st.integers(500, 1460)))
    length = draw(st.integers(1, min(64000, 40 * size)))
    seed = draw(st.integers(0, 255))
    payload = bytes((seed + index * index) & 0xFF for index in range(length))
    version = draw(st.sampled_from([4, 6]))
    traffic_class = draw(st.integers(0, 255))
    if version == 4:
        ip = IP(
            src="10.1.0.1",
            dst="10.2.0.1",
            flags="DF",
            id=draw(st.integers(0, 0xFFFF)),
            tos=traffic_class,
            ttl=9,
        )
    else:
        ip = IPv6(src="fd01::1", dst="fd02::1", fl=draw(st.integers(0, 0xFFFFF)), tc=traffic_class, hlim=9)
    tcp = TCP(
        sport=draw(st.integers(0, 0xFFFF)),
        dport=draw(st.integers(0, 0xFFFF)),
        seq=draw(st.integers(0, 0xFFFFFFFF)),
        ack=draw(st.integers(0, 0xFFFFFFFF)),
        window=draw(st.integers(0, 0xFFFF)),
        flags=draw(st.sampled_from(["A", "PA"])),
        options=draw(st.sampled_from(OPTIONS)),
    )
    return frame_of(ip / tcp / payload), size


def cut(frame: bytearray, size: int) -> list[bytearray]:
    header = parse_ip(frame, 14)
    kind = GSO_TCPV4 if header.version == 4 else GSO_TCPV6
    layer4 = layer4_length(frame, header, VnetHeader(0, kind, 0, size, 0, 0))
    return [
        bytearray(frame[:14]).join((b"", b"".join(parts))) for parts in segments(frame, header, layer4, size)
    ]


def tcp_is_whole(frame: bytearray) -> bool:
    header = parse_ip(frame, 14)
    length = header.end - header.payload_offset
    total = pseudo_header_sum(header.source, header.destination, 6, length)
    return fold(total + ones_complement_sum(frame[header.payload_offset : header.end])) == 0xFFFF


@settings(max_examples=150, deadline=None)
@given(superframes())
def test_joining_gives_back_the_superframe_that_was_cut(made: tuple[bytearray, int]) -> None:
    frame, size = made
    pieces = cut(frame, size)
    (joined,) = coalesce([NetBuffer(bytearray(piece)) for piece in pieces])
    assert joined.frame == frame
    if len(pieces) == 1:
        assert joined.vnet is None
    else:
        assert joined.vnet is not None
        assert joined.vnet.gso_size == size


@settings(max_examples=150, deadline=None)
@given(superframes(), st.integers(0, 1 << 30), st.integers(0, 1 << 30), st.integers(0, 7))
def test_bit_that_flips_in_a_segment_is_seen_in_what_the_host_gets(
    made: tuple[bytearray, int], which: int, where: int, bit: int
) -> None:
    frame, size = made
    pieces = cut(frame, size)
    piece = pieces[which % len(pieces)]
    start = 34 if piece[12] == 0x08 else 54
    at = start + where % (len(piece) - start)
    if at in (start + 12,):
        return  # the data offset moves what is header and what is payload; a sum cannot see that
    piece[at] ^= 1 << bit
    out = coalesce([NetBuffer(bytearray(piece)) for piece in pieces])
    assert not all(tcp_is_whole(one.frame) for one in out)


@settings(max_examples=100, deadline=None)
@given(superframes(), st.randoms(use_true_random=False), st.integers(0, 5))
def test_whatever_the_order_no_byte_is_lost_or_made_up(
    made: tuple[bytearray, int], random: object, swaps: int
) -> None:
    frame, size = made
    pieces = cut(frame, size)
    for _ in range(swaps):
        first, second = (random.randrange(len(pieces)) for _ in range(2))  # type: ignore[attr-defined]
        pieces[first], pieces[second] = pieces[second], pieces[first]
    out = coalesce([NetBuffer(bytearray(piece)) for piece in pieces])
    assert all(tcp_is_whole(one.frame) for one in out)
    header = parse_ip(frame, 14)
    start = int.from_bytes(frame[header.payload_offset + 4 : header.payload_offset + 8], "big")
    data = header.payload_offset + (frame[header.payload_offset + 12] >> 4) * 4
    seen = bytearray(len(frame) - data)
    total = 0
    for one in out:
        at = int.from_bytes(one.frame[header.payload_offset + 4 : header.payload_offset + 8], "big") - start
        payload = one.frame[data:]
        seen[at & 0xFFFFFFFF : (at & 0xFFFFFFFF) + len(payload)] = payload
        total += len(payload)
    assert total == len(seen)
    assert seen == frame[data:]
