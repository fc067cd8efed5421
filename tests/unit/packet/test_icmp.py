"""Neighbour discovery, recognised in packets that scapy built."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLReport,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.packet import Packet, Raw

from vnic.packet.icmp import is_neighbour_discovery
from vnic.packet.ip import parse_ip

ADDRESSES = {"src": "fe80::1", "dst": "ff02::1:ff00:2"}


def recognised(packet: Packet) -> bool:
    raw = bytes(packet)
    return is_neighbour_discovery(raw, parse_ip(raw, 0))


@pytest.mark.parametrize(
    "message", [ICMPv6ND_RS(), ICMPv6ND_RA(), ICMPv6ND_NS(), ICMPv6ND_NA(), ICMPv6ND_Redirect()]
)
def test_every_message_of_neighbour_discovery_is_recognised(message: Packet) -> None:
    assert recognised(IPv6(**ADDRESSES, hlim=255) / message)


@pytest.mark.parametrize("message", [ICMPv6EchoRequest(), ICMPv6MLReport(), UDP()])
def test_nothing_else_is(message: Packet) -> None:
    assert not recognised(IPv6(**ADDRESSES, hlim=255) / message)


@pytest.mark.parametrize("hop_limit", [0, 1, 64, 254])
def test_what_may_have_crossed_a_router_is_not(hop_limit: int) -> None:
    assert not recognised(IPv6(**ADDRESSES, hlim=hop_limit) / ICMPv6ND_NS())


def test_extension_headers_before_it_do_not_hide_it() -> None:
    assert recognised(IPv6(**ADDRESSES, hlim=255) / IPv6ExtHdrHopByHop() / ICMPv6ND_NS())


@pytest.mark.parametrize(("offset", "more"), [(0, 1), (3, 0)])
def test_fragments_are_not(offset: int, more: int) -> None:
    fragment = IPv6ExtHdrFragment(offset=offset, m=more, nh=58)
    assert not recognised(IPv6(**ADDRESSES, hlim=255) / fragment / Raw(bytes([135]) + bytes(23)))


def test_message_without_even_a_fixed_part_is_not() -> None:
    assert not recognised(IPv6(**ADDRESSES, hlim=255, nh=58) / Raw(bytes([135]) + bytes(6)))


@given(st.binary(max_size=16), st.sampled_from([58, 17, 0]))
def test_any_payload_gives_an_answer(payload: bytes, protocol: int) -> None:
    raw = bytes(IPv6(**ADDRESSES, hlim=255, nh=58)) + payload
    header = parse_ip(raw, 0, len(raw))._replace(protocol=protocol, end=len(raw))
    expected = protocol == 58 and len(payload) >= 8 and payload[0] in (133, 134, 135, 136, 137)
    assert is_neighbour_discovery(raw, header) is expected
