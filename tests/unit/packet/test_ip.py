"""parse_ip, against packets that scapy built."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH, ESP
from scapy.packet import Packet, Raw

from vnic.errors import PacketError
from vnic.packet.ip import IpHeader, parse_ip

V4 = {"src": "192.0.2.1", "dst": "198.51.100.2"}
V6 = {"src": "2001:db8::1", "dst": "2001:db8::2"}


def parsed(packet: Packet, prefix: bytes = b"") -> IpHeader:
    return parse_ip(prefix + bytes(packet), len(prefix))


def test_ipv4_fields_are_those_that_were_built() -> None:
    header = parsed(IP(**V4, proto=17) / Raw(b"12345678"), prefix=b"\0" * 14)
    assert header == IpHeader(
        version=4,
        offset=14,
        header_length=20,
        end=42,
        protocol=17,
        protocol_offset=23,
        source=bytes([192, 0, 2, 1]),
        destination=bytes([198, 51, 100, 2]),
        fragment_offset=0,
        more_fragments=False,
        has_options=False,
    )
    assert not header.fragment
    assert header.payload_offset == 34


@pytest.mark.parametrize("count", [1, 4, 5, 40])
def test_ipv4_options_belong_to_the_header(count: int) -> None:
    header = parsed(IP(**V4, options=[IPOption_NOP()] * count) / UDP())
    assert header.header_length == 20 + (count + 3) // 4 * 4
    assert header.has_options
    assert header.protocol == 17


def test_router_alert_is_an_option_like_another() -> None:
    header = parsed(IP(**V4, options=[IPOption_Router_Alert()]) / ICMP())
    assert (header.header_length, header.protocol) == (24, 1)


@pytest.mark.parametrize(
    ("flags", "units", "fragment"),
    [
        ("", 0, False),
        ("DF", 0, False),
        ("MF", 0, True),
        ("MF", 185, True),
        ("", 8191, True),
        ("evil", 0, False),
    ],
)
def test_ipv4_fragments_are_known_by_flag_and_offset(flags: str, units: int, fragment: bool) -> None:
    header = parsed(IP(**V4, flags=flags, frag=units, proto=6) / Raw(bytes(24)))
    assert header.fragment is fragment
    assert header.fragment_offset == units * 8
    assert header.more_fragments is (flags == "MF")


def test_ipv4_length_field_ends_the_packet_and_ethernet_padding_stays_out() -> None:
    packet = bytes(IP(**V4) / UDP() / b"abc")
    assert parse_ip(packet + bytes(15), 0).end == len(packet)


def test_limit_ends_what_may_belong_to_the_packet() -> None:
    packet = bytes(IP(**V4) / UDP() / b"abc")
    assert parse_ip(packet + b"x", 0, len(packet)).end == len(packet)
    with pytest.raises(PacketError):
        parse_ip(packet, 0, len(packet) - 1)


def test_ipv6_fields_are_those_that_were_built() -> None:
    header = parsed(IPv6(**V6) / TCP() / b"data", prefix=b"\0" * 18)
    assert header == IpHeader(
        version=6,
        offset=18,
        header_length=40,
        end=18 + 40 + 24,
        protocol=6,
        protocol_offset=24,
        source=bytes.fromhex("20010db8000000000000000000000001"),
        destination=bytes.fromhex("20010db8000000000000000000000002"),
        fragment_offset=0,
        more_fragments=False,
        has_options=False,
    )


@pytest.mark.parametrize(
    ("chain", "length", "protocol_at"),
    [
        (IPv6ExtHdrHopByHop(), 8, 40),
        (IPv6ExtHdrDestOpt(), 8, 40),
        (IPv6ExtHdrRouting(addresses=["2001:db8::9"]), 24, 40),
        (IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting(addresses=["2001:db8::9"]) / IPv6ExtHdrDestOpt(), 40, 72),
        (IPv6ExtHdrFragment(offset=0, m=0, id=7), 8, 40),
        (IPv6ExtHdrFragment(offset=0, m=1, id=7) / IPv6ExtHdrDestOpt(), 16, 48),
    ],
    ids=lambda value: value.summary() if isinstance(value, Packet) else "",
)
def test_ipv6_chain_is_followed_to_the_upper_layer(chain: Packet, length: int, protocol_at: int) -> None:
    raw = bytes(IPv6(**V6) / chain / UDP() / b"data")
    header = parse_ip(raw, 0)
    assert header.protocol == 17
    assert header.header_length == 40 + length
    assert header.protocol_offset == protocol_at
    assert raw[header.protocol_offset] == 17
    assert header.has_options
    assert header.end == len(raw)


@pytest.mark.parametrize(("layer", "number"), [(ESP(data=bytes(16)), 50), (AH(icv=bytes(12)), 51)])
def test_ipsec_headers_end_the_chain(layer: Packet, number: int) -> None:
    header = parsed(IPv6(**V6) / IPv6ExtHdrDestOpt() / layer)
    assert (header.protocol, header.header_length) == (number, 48)
    assert parsed(IP(**V4, proto=number) / layer).protocol == number


@pytest.mark.parametrize(
    ("offset", "more", "fragment"), [(0, 0, False), (0, 1, True), (1, 0, True), (8191, 1, True)]
)
def test_ipv6_fragments_are_known_and_atomic_ones_are_whole(offset: int, more: int, fragment: bool) -> None:
    header = parsed(IPv6(**V6) / IPv6ExtHdrFragment(offset=offset, m=more, nh=17) / Raw(bytes(16)))
    assert header.fragment is fragment
    assert header.fragment_offset == offset * 8
    assert header.more_fragments is bool(more)


def test_bytes_behind_a_later_fragment_header_are_not_read_as_headers() -> None:
    # What follows is the middle of some payload; it must not be followed as a chain.
    hostile = bytes([60, 255]) + bytes(14)
    header = parsed(IPv6(**V6) / IPv6ExtHdrFragment(offset=10, m=0, nh=60) / Raw(hostile))
    assert (header.protocol, header.header_length) == (60, 48)


def test_no_next_header_is_a_protocol_like_another() -> None:
    assert parsed(IPv6(**V6, nh=59)).protocol == 59


def test_sixteen_extension_headers_are_too_many() -> None:
    packet: Packet = IPv6(**V6)
    for _ in range(15):
        packet = packet / IPv6ExtHdrDestOpt()
    assert parsed(packet / UDP()).protocol == 17
    for _ in range(2):
        packet = packet / IPv6ExtHdrDestOpt()
    with pytest.raises(PacketError, match="too many"):
        parsed(packet / UDP())


def cut(packet: Packet, length: int) -> bytes:
    return bytes(packet)[:length]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x45",
        cut(IP(**V4) / UDP(), 19),
        cut(IP(**V4) / UDP(), 27),
        b"\x44" + bytes(IP(**V4) / UDP())[1:],
        bytes(IP(**V4, len=19) / UDP()),
        bytes(IP(**V4, len=23, ihl=6) / UDP()),
        b"\x4f" + bytes(IP(**V4) / UDP())[1:],
        bytes(IP(**V4, len=65535) / UDP()),
        b"\x00" * 40,
        b"\x55" + bytes(60),
        b"\xf5" * 60,
        cut(IPv6(**V6) / UDP(), 39),
        cut(IPv6(**V6) / UDP(), 47),
        bytes(IPv6(**V6, nh=60, plen=7)) + bytes(7),
        bytes(IPv6(**V6, nh=0, plen=8)) + b"\x11\x01" + bytes(6),
        bytes(IPv6(**V6, nh=44, plen=4)) + bytes(4),
    ],
    ids=range(17),
)
def test_headers_and_lengths_that_do_not_fit_are_refused(data: bytes) -> None:
    with pytest.raises(PacketError):
        parse_ip(data, 0)


def test_offset_behind_the_frame_is_refused() -> None:
    with pytest.raises(PacketError):
        parse_ip(bytes(14), 14)


@given(st.binary(max_size=120), st.integers(0, 130))
def test_arbitrary_bytes_give_a_header_inside_the_frame_or_packet_error(data: bytes, offset: int) -> None:
    try:
        header = parse_ip(data, offset)
    except PacketError:
        return
    assert offset == header.offset < header.payload_offset <= header.end <= len(data)
    assert header.offset <= header.protocol_offset < header.payload_offset
    assert data[header.protocol_offset] == header.protocol
    assert len(header.source) == len(header.destination) == (4 if header.version == 4 else 16)


@given(
    st.sampled_from([0, 43, 44, 50, 51, 60, 6]),
    st.lists(st.tuples(st.sampled_from([0, 43, 44, 60, 17]), st.integers(0, 3)), max_size=20),
    st.binary(max_size=16),
)
def test_any_chain_of_extension_headers_gives_a_header_or_packet_error(
    first: int, chain: list[tuple[int, int]], rest: bytes
) -> None:
    body = b"".join(bytes([following, words]) + bytes(6 + 8 * words) for following, words in chain) + rest
    data = b"\x60\0\0\0" + len(body).to_bytes(2, "big") + bytes([first, 64]) + bytes(32) + body
    try:
        header = parse_ip(data, 0)
    except PacketError:
        return
    assert header.payload_offset <= header.end == len(data)
    assert header.protocol not in (0, 43, 44, 60) or header.fragment_offset
