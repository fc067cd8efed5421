"""Ethernet II, with VLAN tags.

Law: finds where the IP packet starts; never changes a frame.

     0-5           6-11      12-13 | 16-17 | 20-21
    +-------------+--------+----------------------+---------
    | destination | source | [8100 tag]… ethertype| payload
    +-------------+--------+----------------------+---------

Source: IEEE 802.3, 802.1Q, 802.1ad.
"""

from __future__ import annotations

ETHERNET_LENGTH = 14
ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_VLAN = 0x8100
ETHERTYPE_IPV6 = 0x86DD
ETHERTYPE_QINQ = 0x88A8

_MAX_TAGS = 8
"""Linux stacks no more virtual devices than this (MAX_NEST_DEV), so no more tags come from interfaces."""


def ethertype(frame: bytes | bytearray) -> tuple[int, int]:
    """Give the EtherType behind the VLAN tags, and the offset of what follows it.

    A frame too short for its headers, or with more tags than Linux can stack, has EtherType 0.
    """
    length = len(frame)
    offset = 12
    for _ in range(_MAX_TAGS + 1):
        if length < offset + 2:
            return 0, 0
        value = frame[offset] << 8 | frame[offset + 1]
        if value not in (ETHERTYPE_VLAN, ETHERTYPE_QINQ):
            return value, offset + 2
        offset += 4
    return 0, 0


def is_tagged(frame: bytes | bytearray) -> bool:
    """Whether a frame has a VLAN tag; priority tags, VLAN 0, are tags as well."""
    return frame[12:14] in (b"\x81\x00", b"\x88\xa8")


def hides_behind_tags(frame: bytes | bytearray) -> bool:
    """Whether a tagged frame does not show what it carries: it has more tags than Linux can stack, or ends
    among them."""
    return is_tagged(frame) and not ethertype(frame)[1]


def ip_offset(frame: bytes | bytearray) -> int:
    """Offset of the IP header, or 0 when the frame carries no IPv4 or IPv6."""
    kind = frame[12:14]
    if kind == b"\x08\x00" or kind == b"\x86\xdd":
        return 14
    if kind == b"\x81\x00" or kind == b"\x88\xa8":
        value, offset = ethertype(frame)
        if value in (ETHERTYPE_IPV4, ETHERTYPE_IPV6):
            return offset
    return 0
