"""The fields that selectors look at, from packets that scapy built."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import GRE
from scapy.packet import Packet, Raw
from transport_lab import address, selector

from vnic.errors import PacketError
from vnic.ipsec.policy import FlowKey, Match
from vnic.packet.ip import parse_ip
from vnic.transport.flow import flow_key

V4 = {"src": "10.1.0.1", "dst": "10.2.0.1"}
V6 = {"src": "fd01::1", "dst": "fd02::1"}


def key(packet: Packet) -> FlowKey:
    raw = bytes(packet)
    return flow_key(raw, parse_ip(raw, 0))


@pytest.mark.parametrize(
    ("packet", "fields"),
    [
        (IP(**V4) / TCP(sport=1000, dport=80), (6, 1000, 80)),
        (IP(**V4) / UDP(sport=0, dport=65535), (17, 0, 65535)),
        (IP(**V4, proto=132) / Raw(bytes.fromhex("03e8001600000000")), (132, 1000, 22)),
        (IP(**V4, proto=33) / Raw(bytes.fromhex("03e8001600000000")), (33, 1000, 22)),
        (IP(**V4, proto=136) / Raw(bytes.fromhex("03e8001600000000")), (136, 1000, 22)),
        (IP(**V4) / ICMP(type=8, code=0), (1, 8, 0)),
        (IP(**V4) / ICMP(type=3, code=4), (1, 3, 4)),
    ],
)
def test_ports_or_type_and_code_are_read(packet: Packet, fields: tuple[int, int, int]) -> None:
    assert key(packet) == FlowKey(address("10.1.0.1"), address("10.2.0.1"), *fields)


@pytest.mark.parametrize(
    ("packet", "fields"),
    [
        (IPv6(**V6) / TCP(sport=1000, dport=80), (6, 1000, 80)),
        (IPv6(**V6) / ICMPv6EchoRequest(), (58, 128, 0)),
        (IPv6(**V6) / ICMPv6PacketTooBig(), (58, 2, 0)),
        (IPv6(**V6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP(sport=5, dport=6), (17, 5, 6)),
        (IPv6(**V6) / IPv6ExtHdrFragment(m=0) / UDP(sport=5, dport=6), (17, 5, 6)),
    ],
)
def test_ipv6_extension_headers_do_not_hide_them(packet: Packet, fields: tuple[int, int, int]) -> None:
    assert key(packet) == FlowKey(address("fd01::1"), address("fd02::1"), *fields)


def test_first_fragment_shows_its_ports_and_later_ones_do_not() -> None:
    assert key(IP(**V4, flags="MF") / UDP(sport=5, dport=6) / bytes(16))[2:] == (17, 5, 6)
    assert key(IP(**V4, frag=3, proto=17) / Raw(bytes(24)))[2:] == (17, -1, -1)
    assert key(IPv6(**V6) / IPv6ExtHdrFragment(offset=3, nh=17) / Raw(bytes(24)))[2:] == (17, -1, -1)


@pytest.mark.parametrize(
    "packet",
    [IP(**V4, proto=6) / Raw(b"\0\x50\0"), IP(**V4, proto=17), IP(**V4, proto=1) / Raw(b"\x08")],
)
def test_packet_cut_before_its_ports_hides_them(packet: Packet) -> None:
    assert key(packet)[3:] == (-1, -1)


def test_selector_with_ports_never_names_a_protocol_without_ports() -> None:
    found = key(IP(**V4) / GRE())
    assert selector(protocol=47).match(found) is Match.YES
    assert selector(source_port=0).match(found) is Match.NO
    assert selector(destination_port=0).match(found) is Match.NO


def test_later_fragment_behind_an_extension_header_hides_its_protocol() -> None:
    # RFC 8200 §4.5: the fragment header of every fragment names the first header of the fragmentable
    # part, here destination options; what the first fragment shows as TCP, a later one does not show.
    first = key(IPv6(**V6) / IPv6ExtHdrFragment(m=1) / IPv6ExtHdrDestOpt() / TCP(dport=80) / bytes(12))
    later = key(IPv6(**V6) / IPv6ExtHdrFragment(offset=5, nh=60) / Raw(bytes(16)))
    tcp = selector("::/0", "::/0", protocol=6)
    assert tcp.match(first) is Match.YES
    assert tcp.match(later) is Match.UNSURE
    assert selector("::/0", "::/0").match(later) is Match.YES
    assert selector("fd03::/16", "::/0", protocol=6).match(later) is Match.NO
    assert selector("::/0", "::/0", protocol=6, destination_port=80).match(later) is Match.UNSURE


@given(st.binary(min_size=20, max_size=100))
def test_any_packet_that_parses_has_a_key(data: bytes) -> None:
    try:
        header = parse_ip(data, 0)
    except PacketError:
        return
    found = flow_key(data, header)
    assert (found.source, found.destination) == (header.source, header.destination)
    assert -1 <= found.source_port <= 0x10000
