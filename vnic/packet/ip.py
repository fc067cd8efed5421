"""IPv4 and IPv6: one view over both, down to the upper-layer or IPsec header.

Law: reads fields, judges lengths, changes nothing. A chain of extension headers is followed until a header
that is not a plain extension header (ESP and AH end it).

Source: RFC 791 §3.1; RFC 8200 §3, §4.
"""

from __future__ import annotations

from typing import NamedTuple

from vnic.errors import PacketError

ICMP = 1
IPV4_IN_IP = 4
TCP = 6
UDP = 17
IPV6_IN_IP = 41
ESP = 50
AH = 51
ICMPV6 = 58
NO_NEXT_HEADER = 59

HOP_BY_HOP = 0
ROUTING = 43
FRAGMENT = 44
DESTINATION_OPTIONS = 60

IPV4_LENGTH = 20
IPV6_LENGTH = 40

EXTENSION_HEADERS = frozenset({HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS})
_MAX_EXTENSION_HEADERS = 16
"""RFC 8200 §4.1 lists seven; a longer chain is an attack on the parser."""


class IpHeader(NamedTuple):
    """Where things are in one IP packet. Offsets count from the frame start, lengths are bytes."""

    version: int
    offset: int
    """First byte of the IP header."""
    header_length: int
    """IP header with options or extension headers, up to the upper-layer or IPsec header."""
    end: int
    """Offset behind the last byte of the packet, by its own length field."""
    protocol: int
    """What follows `header_length`: upper-layer protocol, ESP or AH."""
    protocol_offset: int
    """Offset of the byte that holds `protocol`."""
    source: bytes
    destination: bytes
    fragment_offset: int
    """Bytes; 0 for a whole packet or a first fragment."""
    more_fragments: bool
    has_options: bool
    """IPv4 options, or IPv6 extension headers before `protocol`."""

    @property
    def fragment(self) -> bool:
        """Whether this is one fragment of several."""
        return self.more_fragments or self.fragment_offset != 0

    @property
    def payload_offset(self) -> int:
        """First byte of the upper-layer or IPsec header."""
        return self.offset + self.header_length


def flow_label(frame: bytes | bytearray, header: IpHeader) -> int:
    """The flow label of an IPv6 packet; 0 for IPv4."""
    if header.version == 4:
        return 0
    return int.from_bytes(frame[header.offset + 1 : header.offset + 4], "big") & 0xFFFFF


def parse_ip(frame: bytes | bytearray, offset: int, limit: int = -1) -> IpHeader:
    """Read the IP packet at `offset`.

    Args:
        frame: any bytes.
        offset: where the IP header starts.
        limit: offset behind the last byte that may belong to the packet; -1: the frame's end. Bytes
            between the packet's own length and `limit` (Ethernet padding) are left out of `end`.

    Raises:
        PacketError: not IP version 4 or 6; headers or lengths that do not fit; an endless chain.
    """
    if limit < 0:
        limit = len(frame)
    if offset >= limit:
        raise PacketError("no room for an IP header")
    first = frame[offset]
    if first >> 4 == 4:
        return _parse_ipv4(frame, offset, limit, first)
    if first >> 4 == 6:
        return _parse_ipv6(frame, offset, limit)
    raise PacketError(f"IP version {first >> 4}")


def _parse_ipv4(frame: bytes | bytearray, offset: int, limit: int, first: int) -> IpHeader:
    if limit - offset < IPV4_LENGTH:
        raise PacketError("IPv4 header cut short")
    header_length = (first & 15) * 4
    end = offset + (frame[offset + 2] << 8 | frame[offset + 3])
    if header_length < IPV4_LENGTH or end < offset + header_length or end > limit:
        raise PacketError("IPv4 lengths do not fit")
    fragment = frame[offset + 6] << 8 | frame[offset + 7]
    return IpHeader(
        4,
        offset,
        header_length,
        end,
        frame[offset + 9],
        offset + 9,
        bytes(frame[offset + 12 : offset + 16]),
        bytes(frame[offset + 16 : offset + 20]),
        (fragment & 0x1FFF) * 8,
        bool(fragment & 0x2000),
        header_length > IPV4_LENGTH,
    )


def _parse_ipv6(frame: bytes | bytearray, offset: int, limit: int) -> IpHeader:
    if limit - offset < IPV6_LENGTH:
        raise PacketError("IPv6 header cut short")
    end = offset + IPV6_LENGTH + (frame[offset + 4] << 8 | frame[offset + 5])
    if end > limit:
        raise PacketError("IPv6 payload length does not fit")
    protocol_offset = offset + 6
    protocol = frame[protocol_offset]
    position = offset + IPV6_LENGTH
    fragment_offset = 0
    more_fragments = False
    for _ in range(_MAX_EXTENSION_HEADERS):
        if protocol not in EXTENSION_HEADERS:
            break
        if end - position < 8:
            raise PacketError("IPv6 extension header cut short")
        if protocol == FRAGMENT:
            field = frame[position + 2] << 8 | frame[position + 3]
            fragment_offset = field & 0xFFF8
            more_fragments = bool(field & 1)
            length = 8
        else:
            length = 8 + frame[position + 1] * 8
        if end - position < length:
            raise PacketError("IPv6 extension header longer than the packet")
        protocol_offset = position
        protocol = frame[position]
        position += length
        if fragment_offset:
            break
    else:
        raise PacketError("too many IPv6 extension headers")
    return IpHeader(
        6,
        offset,
        position - offset,
        end,
        protocol,
        protocol_offset,
        bytes(frame[offset + 8 : offset + 24]),
        bytes(frame[offset + 24 : offset + 40]),
        fragment_offset,
        more_fragments,
        position > offset + IPV6_LENGTH,
    )
