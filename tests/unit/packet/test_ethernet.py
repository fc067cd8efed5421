"""Where the IP packet starts, with and without VLAN tags."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, LLC, SNAP, Dot1AD, Dot1Q, Dot3, Ether
from scapy.packet import Packet

from vnic.packet.ethernet import ethertype, ip_offset

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")


@pytest.mark.parametrize(
    ("packet", "kind", "offset"),
    [
        (ETHER / IP() / UDP(), 0x0800, 14),
        (ETHER / IPv6() / UDP(), 0x86DD, 14),
        (ETHER / ARP(), 0x0806, 14),
        (ETHER / Dot1Q(vlan=5) / IP(), 0x0800, 18),
        (ETHER / Dot1Q(vlan=5) / IPv6(), 0x86DD, 18),
        (ETHER / Dot1AD(vlan=7) / Dot1Q(vlan=5) / IP(), 0x0800, 22),
        (ETHER / Dot1Q(vlan=7) / Dot1Q(vlan=5) / IPv6(), 0x86DD, 22),
        (ETHER / Dot1Q(vlan=5) / ARP(), 0x0806, 18),
    ],
    ids=lambda value: value.summary() if isinstance(value, Packet) else "",
)
def test_ethertype_is_found_behind_tags(packet: Packet, kind: int, offset: int) -> None:
    frame = bytes(packet)
    assert ethertype(frame) == (kind, offset)
    assert ip_offset(frame) == (offset if kind in (0x0800, 0x86DD) else 0)
    assert ip_offset(bytearray(frame)) == ip_offset(frame)


def test_stack_of_tags_hides_ip_only_beyond_what_linux_can_make() -> None:
    packet: Packet = ETHER
    for tags in range(1, 12):
        packet = packet / Dot1Q(vlan=tags)
        expected = 14 + 4 * tags if tags <= 8 else 0
        assert ip_offset(bytes(packet / IP() / UDP())) == expected


def test_frame_with_a_length_instead_of_a_type_carries_no_ip() -> None:
    frame = bytes(Dot3(src=ETHER.src, dst=ETHER.dst) / LLC() / SNAP(code=0x0800) / IP() / UDP())
    assert ip_offset(frame) == 0


@pytest.mark.parametrize("length", range(14))
def test_frame_too_short_for_a_type_has_none(length: int) -> None:
    assert ethertype(bytes(length)) == (0, 0)
    assert ip_offset(bytes(length)) == 0


def test_tag_without_room_for_what_follows_has_no_type() -> None:
    frame = bytes(ETHER / Dot1Q(vlan=5) / IP())
    assert ethertype(frame[:17]) == (0, 0)
    assert ip_offset(frame[:17]) == 0


@given(st.binary(max_size=40))
def test_any_bytes_give_an_offset_inside_or_none(frame: bytes) -> None:
    kind, offset = ethertype(frame)
    assert offset <= len(frame)
    assert ip_offset(frame) in (0, offset)
    assert (kind == 0 and offset == 0) or offset >= 14
