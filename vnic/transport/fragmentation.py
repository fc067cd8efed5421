"""Cutting IP packets that do not fit.

Law: a whole packet, or a fragment, in; fragments out, each with right offsets, flags and checksum. Reads
nothing behind the IP header.

    IPv4  [ IP, all options | data 0… ]  [ IP, copied options | data … ]  …
    IPv6  [ IP, headers of the way | Fragment | data 0… ]  [ IP, headers of the way | Fragment | data … ]  …

Source: RFC 791 §2.3, §3.1 (options), §3.2; RFC 8200 §4.5.
"""

from __future__ import annotations

import struct

from vnic.packet.checksum import checksum
from vnic.packet.ip import (
    DESTINATION_OPTIONS,
    FRAGMENT,
    HOP_BY_HOP,
    IPV4_LENGTH,
    IPV6_LENGTH,
    ROUTING,
    IpHeader,
)

DONT_FRAGMENT = 0x4000
_MORE = 0x2000
_FRAGMENT_LENGTH = 8
_END_OF_OPTIONS, _NO_OPERATION = 0, 1
_COPIED = 0x80

_U16 = struct.Struct(">H")
_FRAGMENT_HEADER = struct.Struct(">BBHI")


def may_be_cut(frame: bytes | bytearray, header: IpHeader) -> bool:
    """Whether somebody on the way may cut a packet: IPv4 without DF."""
    return header.version == 4 and not frame[header.offset + 6] & DONT_FRAGMENT >> 8


def allow_cutting(frame: bytearray, offset: int, identification: int) -> None:
    """Clear DF of an IPv4 header, in place, and give the packet a name for its fragments.

    Args:
        offset: where the header starts.
        identification: 16 bits.
    """
    if not frame[offset + 6] & DONT_FRAGMENT >> 8:
        return
    frame[offset + 6] &= 0xFF ^ DONT_FRAGMENT >> 8
    _U16.pack_into(frame, offset + 4, identification)
    _write_checksum(frame, offset, (frame[offset] & 15) * 4)


def cut(frame: bytes | bytearray, header: IpHeader, room: int, identification: int) -> list[bytearray]:
    """Cut a packet; gives frames with the same Ethernet header, or none where not even 8 bytes would fit.

    Args:
        header: of the packet to be cut.
        room: largest IP packet that may come out, in bytes.
        identification: name of an IPv6 packet, 32 bits; an IPv4 packet has its own.
    """
    if header.version == 4:
        return _cut_ipv4(frame, header, room)
    return _cut_ipv6(frame, header, room, identification)


def _cut_ipv4(frame: bytes | bytearray, header: IpHeader, room: int) -> list[bytearray]:
    ethernet = bytes(frame[: header.offset])
    first = bytes(frame[header.offset : header.payload_offset])
    later = _later_header(first)
    if room - len(first) < 8:
        return []
    flags = _U16.unpack_from(first, 6)[0] & DONT_FRAGMENT
    place = header.fragment_offset
    position, end = header.payload_offset, header.end
    template = first
    fragments: list[bytearray] = []
    while position < end:
        size = min(end - position, room - len(template))
        if position + size < end:
            size &= ~7
        more = position + size < end or header.more_fragments
        piece = bytearray(ethernet + template)
        _U16.pack_into(piece, header.offset + 2, len(template) + size)
        _U16.pack_into(piece, header.offset + 6, flags | place >> 3 | (_MORE if more else 0))
        _write_checksum(piece, header.offset, len(template))
        piece += frame[position : position + size]
        fragments.append(piece)
        position += size
        place += size
        template = later
    return fragments


def _later_header(first: bytes) -> bytes:
    """The IPv4 header of fragments but the first: options with the copied flag stay (RFC 791 §3.1)."""
    kept = bytearray()
    position = IPV4_LENGTH
    while position < len(first) and first[position] != _END_OF_OPTIONS:
        kind = first[position]
        if kind == _NO_OPERATION:
            position += 1
            continue
        length = first[position + 1] if position + 1 < len(first) else 0
        if length < 2 or position + length > len(first):
            break
        if kind & _COPIED:
            kept += first[position : position + length]
        position += length
    kept += bytes(-len(kept) % 4)
    header = bytearray(first[:IPV4_LENGTH]) + kept
    header[0] = 0x40 | len(header) // 4
    return bytes(header)


def _cut_ipv6(frame: bytes | bytearray, header: IpHeader, room: int, identification: int) -> list[bytearray]:
    before, name = _way_headers(frame, header)
    offset = header.offset
    template = bytearray(frame[:before])
    next_header = template[name]
    template[name] = FRAGMENT
    size = (room - (before - offset) - _FRAGMENT_LENGTH) & ~7
    if size < 8:
        return []
    fragments: list[bytearray] = []
    for position in range(before, header.end, size):
        data = frame[position : min(position + size, header.end)]
        place = position - before | (position + size < header.end)
        piece = template + _FRAGMENT_HEADER.pack(next_header, 0, place, identification) + data
        _U16.pack_into(piece, offset + 4, len(piece) - offset - IPV6_LENGTH)
        fragments.append(piece)
    return fragments


def _way_headers(frame: bytes | bytearray, header: IpHeader) -> tuple[int, int]:
    """Where the headers end that nodes on the way read, and where what follows them is named."""
    name = header.offset + 6
    position = header.offset + IPV6_LENGTH
    found = (position, name)
    while position < header.payload_offset and frame[name] in (HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS):
        kind = frame[name]
        name = position
        position += 8 + frame[position + 1] * 8
        if kind != DESTINATION_OPTIONS:
            found = (position, name)
    return found


def _write_checksum(frame: bytearray, offset: int, length: int) -> None:
    _U16.pack_into(frame, offset + 10, 0)
    _U16.pack_into(frame, offset + 10, checksum(frame[offset : offset + length]))
