"""Cutting a superframe of the host into the packets that go on the wire.

Law: a TCP or UDP superframe in, whole packets with right lengths, numbers, flags and checksums out. The
NIC's own segmentation (LSO) serves transport-mode packets of drivers that ask for it; the inline
transport cuts before it frames, because every segment needs a number, padding and trailer of its own.

    [ IP header | TCP or UDP header | payload ........................................ ]
    [ IP | TCP | payload[0:mss] ]   [ IP | TCP | payload[mss:2*mss] ]   …   [ IP | TCP | rest ]

Source: Virtual I/O Device 1.2 §5.1.6.2; RFC 9293 §3.1; RFC 3168 §6.1.2 (CWR on the first segment only);
FIN and PSH on the last (R195).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from vnic.errors import PacketError
from vnic.packet.checksum import fold, ones_complement_sum, pseudo_header_sum, unfolded_sum
from vnic.packet.ip import TCP, UDP, IpHeader
from vnic.packet.vnet import GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHeader

_U16 = struct.Struct(">H")
_U16_PAIR = struct.Struct(">HH")
_U32 = struct.Struct(">I")

_FIN = 0x01
_PSH = 0x08
_CWR = 0x80

_IPV4_LENGTH_FIELD = 2
_IPV4_CHECKSUM_FIELD = 10
_IPV6_LENGTH_FIELD = 4
_UDP_HEADER_LENGTH = 8
_MIN_TCP_HEADER_LENGTH = 20
_MOST_SEGMENTS = 8192
"""The longest packet in pieces of 8 bytes (Linux: TCP_MIN_GSO_SIZE); more would be work without end."""

Segment = tuple[bytes, bytes, bytearray]
"""IP header with options or extension headers, TCP or UDP header, payload."""


def complete_checksum(frame: bytearray, vnet: VnetHeader, end: int, start: int = 0, judged: int = 0) -> None:
    """Fill the checksum that the host left open (VIRTIO_NET_HDR_F_NEEDS_CSUM), in place.

    Args:
        end: offset behind the last byte the checksum covers.
        start: offset of the first byte it may cover: headers in front have been judged and stay.
        judged: bytes from there that have been judged as well: it may cover them, not take their place.

    Raises:
        PacketError: the offsets point outside the packet.
    """
    if not vnet.flags & NEEDS_CSUM:
        return
    field = vnet.csum_start + vnet.csum_offset
    if field + 2 > end or not start <= vnet.csum_start < end or field < start + judged:
        raise PacketError("checksum offsets point outside the packet")
    value = 0xFFFF - ones_complement_sum(frame[vnet.csum_start : end])
    # 0 means "none" to UDP (RFC 768); for TCP both forms of zero are the same sum.
    _U16.pack_into(frame, field, value or 0xFFFF)


def is_superframe(vnet: VnetHeader | None) -> bool:
    """Whether a frame stands for several packets."""
    return vnet is not None and vnet.gso_type & ~GSO_ECN != GSO_NONE


def segment_count(header: IpHeader, headers_length: int, size: int) -> int:
    """How many packets a superframe becomes.

    Args:
        headers_length: IP and TCP or UDP header together, in bytes.
        size: payload bytes per segment.
    """
    payload = header.end - header.offset - headers_length
    return max(1, -(-payload // size))


def segment_size(header: IpHeader, headers_length: int, vnet: VnetHeader, room: int) -> int:
    """Payload bytes per segment so that every packet fits `room`, or 0 when that cannot be.

    A TCP stream may be cut smaller than the host asked; the datagrams of UDP are messages and may not.

    Args:
        headers_length: IP and TCP or UDP header together, in bytes.
        room: largest IP packet that may come out, in bytes.
    """
    size = min(vnet.gso_size, room - headers_length)
    return size if size == vnet.gso_size or (size > 0 and header.protocol == TCP) else 0


def layer4_length(frame: bytearray, header: IpHeader, vnet: VnetHeader) -> int:
    """Bytes of the TCP or UDP header of a superframe.

    Raises:
        PacketError: the kind of superframe does not match the packet, its header is cut short, or it is to be
            cut smaller than any stack asks for.
    """
    kind = vnet.gso_type & ~GSO_ECN
    start = header.payload_offset
    room = header.end - start
    if vnet.gso_size == 0 or header.fragment:
        raise PacketError("superframe without a segment size, or fragmented")
    if kind in (GSO_TCPV4, GSO_TCPV6) and header.protocol == TCP and room >= _MIN_TCP_HEADER_LENGTH:
        length = (frame[start + 12] >> 4) * 4
        if _MIN_TCP_HEADER_LENGTH <= length <= room:
            return _unless_too_many(length, room, vnet)
    if kind == GSO_UDP_L4 and header.protocol == UDP and room >= _UDP_HEADER_LENGTH:
        return _unless_too_many(_UDP_HEADER_LENGTH, room, vnet)
    raise PacketError("superframe of a kind that does not match its packet")


def _unless_too_many(layer4: int, room: int, vnet: VnetHeader) -> int:
    """Give the length of a header, if what is behind it is not cut into more segments than may be."""
    if room - layer4 > vnet.gso_size * _MOST_SEGMENTS:
        raise PacketError("superframe of more segments than a stack asks for")
    return layer4


def segments(frame: bytearray, header: IpHeader, layer4: int, size: int) -> Iterator[Segment]:
    """Cut a superframe.

    Args:
        frame: the superframe; read only.
        header: its IP header.
        layer4: bytes of the TCP or UDP header (`layer4_length`).
        size: payload bytes per segment; the last may be shorter.
    """
    if header.protocol == TCP:
        return _tcp_segments(frame, header, layer4, size)
    return _udp_segments(frame, header, size)


def _tcp_segments(frame: bytearray, header: IpHeader, layer4: int, size: int) -> Iterator[Segment]:
    start = header.payload_offset
    position = start + layer4
    end = header.end
    tcp = frame[start:position]
    flags = tcp[13]
    first_flags = flags & ~(_FIN | _PSH)
    middle_flags = first_flags & ~_CWR
    (sequence_number,) = _U32.unpack_from(tcp, 4)
    _U32.pack_into(tcp, 4, 0)
    _U16.pack_into(tcp, 16, 0)
    tcp[13] = 0
    constant = pseudo_header_sum(header.source, header.destination, TCP, 0) + ones_complement_sum(tcp)
    ip_header = _IpHeaders(frame, header)
    index = 0
    while True:
        payload = frame[position : position + size if position + size < end else end]
        position += size
        last = position >= end
        now_flags = first_flags if index == 0 else middle_flags
        if last:
            now_flags |= flags & (_FIN | _PSH)
        length = layer4 + len(payload)
        total = (
            constant
            + length
            + now_flags
            + (sequence_number >> 16)
            + (sequence_number & 0xFFFF)
            + unfolded_sum(payload)
        )
        _U32.pack_into(tcp, 4, sequence_number)
        tcp[13] = now_flags
        _U16.pack_into(tcp, 16, -total % 65535)
        yield ip_header.emit(length, index), bytes(tcp), payload
        if last:
            return
        sequence_number = (sequence_number + size) & 0xFFFFFFFF
        index += 1


def _udp_segments(frame: bytearray, header: IpHeader, size: int) -> Iterator[Segment]:
    start = header.payload_offset
    ports = bytes(frame[start : start + 4])
    constant = pseudo_header_sum(header.source, header.destination, UDP, 0) + ones_complement_sum(ports)
    ip_header = _IpHeaders(frame, header)
    end = header.end
    first = start + _UDP_HEADER_LENGTH
    # Without payload it is still one datagram.
    for index, position in enumerate(range(first, max(end, first + 1), size)):
        payload = frame[position : min(position + size, end)]
        length = _UDP_HEADER_LENGTH + len(payload)
        value = 0xFFFF - fold(constant + 2 * length + ones_complement_sum(payload))
        yield (
            ip_header.emit(length, index),
            ports + _U16_PAIR.pack(length, value or 0xFFFF),
            payload,
        )


class _IpHeaders:
    """Gives each segment its IP header: length, identification (first + n) and checksum."""

    __slots__ = ("_constant", "_identification", "_length", "_template", "_version")

    def __init__(self, frame: bytearray, header: IpHeader) -> None:
        template = frame[header.offset : header.payload_offset]
        self._version = header.version
        self._length = header.header_length
        self._identification = 0
        self._constant = 0
        if header.version == 4:
            (self._identification,) = _U16.unpack_from(template, 4)
            _U16_PAIR.pack_into(template, _IPV4_LENGTH_FIELD, 0, 0)
            _U16.pack_into(template, _IPV4_CHECKSUM_FIELD, 0)
            self._constant = ones_complement_sum(template)
        self._template = template

    def emit(self, payload_length: int, index: int) -> bytes:
        template = self._template
        length = self._length + payload_length
        if self._version == 4:
            identification = (self._identification + index) & 0xFFFF
            _U16_PAIR.pack_into(template, _IPV4_LENGTH_FIELD, length, identification)
            _U16.pack_into(
                template, _IPV4_CHECKSUM_FIELD, -(self._constant + length + identification) % 65535
            )
        else:
            _U16.pack_into(template, _IPV6_LENGTH_FIELD, length - 40)
        return bytes(template)
