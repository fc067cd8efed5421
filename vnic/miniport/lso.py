"""Large sends: one TCP packet of up to 256 KiB cut into segments, with or without IPsec around each.

Law: one large packet in, whole packets out, ready to be sealed; seals nothing and changes no SA.

    in    [ Ethernet | IP | UDP? | AH? | ESP IV room | TCP | payload ........................ | padding ]
    out   [ Ethernet | IP | UDP? | AH? | ESP IV room | TCP | payload[0:mss] | trailer | ICV room ]   …

The large packet has no ESP trailer and no room for its ICV (R189); AH has its room for IV and ICV. The last
PadLength bytes are padding, which is dropped (R190, R191); the next header is that of the header info.
Segment n carries the numbers of the AH and ESP headers plus n; without ESN they may not pass 2^32 - 1.

    field                    LSOv1                 LSOv2
    IPv4 total length, in    of the whole packet   0 (or of the whole packet)
    IPv4 identification      first + n             first + n in 0x0000-0x7FFF (R196)
    TCP checksum, in         sum of the pseudo-header without length, in both

Source: sheet §8; R30, R31, R166, R188-R200; RFC 9293 §3.1; RFC 3168 §6.1.2.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from vnic.errors import PacketError
from vnic.miniport.abilities import Abilities
from vnic.miniport.portions import Headers
from vnic.ndis.capabilities import LargeSendCapabilities
from vnic.ndis.netbuffer import LargeSend, TransmitInfo
from vnic.packet.checksum import ones_complement_sum, unfolded_sum
from vnic.packet.ip import IPV6_LENGTH, TCP, IpHeader

MAX_SEGMENTS = 4096
"""Segments of one large packet: enough for the largest one in pieces of 64 bytes. Without a limit an MSS of 1
would make a hundred bytes of every byte."""

MAX_HEADERS_LENGTH = 1023 + 60
"""The TCP header starts within the ten bits of TcpHeaderOffset and has up to 60 bytes."""

_U16 = struct.Struct(">H")
_U16_PAIR = struct.Struct(">HH")
_U32 = struct.Struct(">I")
_MASK = 0xFFFFFFFF

_FIN = 0x01
_SYN = 0x02
_RST = 0x04
_PSH = 0x08
_URG = 0x20
_CWR = 0x80
_MIN_TCP_LENGTH = 20
_IPV4_LENGTH_FIELD = 2
_IPV4_CHECKSUM_FIELD = 10
_IPV6_LENGTH_FIELD = 4
_UDP_LENGTH_FIELD = 4
_AH_NUMBER_FIELD = 8
_ESP_NUMBER_FIELD = 4


def headers_only(frame: bytearray, offset: int, version: int) -> bytearray:
    """Give the front of a large packet, which `check_large_send` has passed, as a packet of its own, so that
    it can be parsed: the length fields of the large packet cannot say how long it is."""
    front = frame[:MAX_HEADERS_LENGTH]
    if version == 4:
        _U16.pack_into(front, offset + _IPV4_LENGTH_FIELD, len(front) - offset)
    else:
        _U16.pack_into(front, offset + _IPV6_LENGTH_FIELD, max(0, len(front) - offset - IPV6_LENGTH))
    return front


def check_large_send(frame: bytearray, offset: int, large: LargeSend, able: LargeSendCapabilities) -> None:
    """Refuse a large send of a kind that is off, or whose IP length is not as that kind has it.

    Raises:
        PacketError: R199, or the large packet is not what the out-of-band info says.
    """
    if not offset or offset + 8 > len(frame):
        raise PacketError("not an IP packet")
    ipv6 = frame[offset] >> 4 == 6
    if large.ipv6 != ipv6 or (ipv6 and large.version == 1):
        raise PacketError("the large send is for the other IP version")
    if not (able.ipv6 if ipv6 else able.ipv4):
        raise PacketError("large send offload is not configured (R199)")
    field = _IPV6_LENGTH_FIELD if ipv6 else _IPV4_LENGTH_FIELD
    (length,) = _U16.unpack_from(frame, offset + field)
    whole = len(frame) - offset - (IPV6_LENGTH if ipv6 else 0)
    if length != whole and (length or large.version == 1):
        raise PacketError("the IP length is neither zero nor that of the large packet")


class Cut(NamedTuple):
    """The segments of a large packet."""

    frames: list[bytearray]
    """Each with trailer and room for the ICV; not sealed."""
    payload_length: int
    """TCP payload of all of them, in bytes."""


def cut(
    frame: bytearray,
    header: IpHeader,
    ipsec: Headers | None,
    info: TransmitInfo,
    able: LargeSendCapabilities,
) -> Cut:
    """Cut a large packet.

    Args:
        header: its IP header, as `headers_only` shows it.
        ipsec: its IPsec headers, None without IPsec.

    Raises:
        PacketError: it is not TCP in transport mode, or beyond the capabilities.
    """
    large = info.large_send
    assert large is not None
    if header.has_options and not able.ip_options:
        raise PacketError("IP options beyond what large sends may have")
    esp = ipsec is not None and ipsec.bundle.esp is not None
    protocol = header.protocol if ipsec is None else info.next_header if esp else ipsec.protocol
    if protocol != TCP:
        raise PacketError("a large send of something other than TCP in transport mode (R31, R198)")
    tcp = header.payload_offset if ipsec is None else ipsec.after
    if large.tcp_header_offset not in (0, tcp):
        raise PacketError("the TCP header is not where the out-of-band info says")
    end = len(frame) - (info.pad_length if esp else 0)
    if end - tcp < _MIN_TCP_LENGTH:
        raise PacketError("TCP header cut short")
    length = (frame[tcp + 12] >> 4) * 4
    if not _MIN_TCP_LENGTH <= length <= end - tcp or tcp + length > MAX_HEADERS_LENGTH:
        raise PacketError("TCP header of a wrong length")
    if length > _MIN_TCP_LENGTH and not able.tcp_options:
        raise PacketError("TCP options beyond what large sends may have")
    if frame[tcp + 13] & (_SYN | _RST | _URG):
        raise PacketError("SYN, RST or URG, which no cut can keep")
    payload = end - tcp - length
    if payload > able.max_offload_size:
        raise PacketError("more than the largest large send")
    count = -(-payload // large.mss) if large.mss > 0 else 0
    if not max(1, able.min_segment_count) <= count <= MAX_SEGMENTS:
        raise PacketError("too few or too many segments")
    if ipsec is not None:
        _check_numbers(frame, ipsec, count)
    return Cut(_segments(frame, header, ipsec, info, tcp, length, end), payload)


def check_covers(able: Abilities) -> None:
    """Refuse large sends where they do not go with IPsec.

    Raises:
        PacketError: the NIC does not, or the SA is V1's (R188).
    """
    if not able.lso:
        raise PacketError("large sends do not go with IPsec here (R30)")


def _check_numbers(frame: bytearray, ipsec: Headers, count: int) -> None:
    """Refuse to let a sequence number come a second time (RFC 4303 §3.3.3)."""
    bundle = ipsec.bundle
    for element, field in (
        (bundle.ah, ipsec.ah + _AH_NUMBER_FIELD),
        (bundle.esp, ipsec.esp + _ESP_NUMBER_FIELD),
    ):
        if element is None or element.numbers is not None:
            continue
        (first,) = _U32.unpack_from(frame, field)
        if first + count - 1 > _MASK:
            raise PacketError("the sequence numbers would pass 2^32 - 1")


def _segments(
    frame: bytearray,
    header: IpHeader,
    ipsec: Headers | None,
    info: TransmitInfo,
    tcp: int,
    tcp_length: int,
    end: int,
) -> list[bytearray]:
    large = info.large_send
    assert large is not None
    position = tcp + tcp_length
    front = frame[:position]
    ip_fields = _IpFields(front, header, large.version)
    numbers = _numbers(front, ipsec)
    esp = None if ipsec is None else ipsec.bundle.esp
    udp = 0 if ipsec is None else ipsec.udp
    flags = front[tcp + 13]
    first_flags = flags & ~(_FIN | _PSH)
    middle_flags = first_flags & ~_CWR
    (sequence_number,) = _U32.unpack_from(front, tcp + 4)
    (pseudo_header,) = _U16.unpack_from(front, tcp + 16)
    _U32.pack_into(front, tcp + 4, 0)
    _U16.pack_into(front, tcp + 16, 0)
    front[tcp + 13] = 0
    constant = pseudo_header + ones_complement_sum(front[tcp:])
    made: list[bytearray] = []
    while position < end:
        payload = frame[position : min(position + large.mss, end)]
        position += large.mss
        now_flags = middle_flags if made else first_flags
        if position >= end:
            now_flags |= flags & (_FIN | _PSH)
        length = tcp_length + len(payload)
        total = constant + length + now_flags + (sequence_number >> 16) + (sequence_number & 0xFFFF)
        _U32.pack_into(front, tcp + 4, sequence_number)
        front[tcp + 13] = now_flags
        _U16.pack_into(front, tcp + 16, -(total + unfolded_sum(payload)) % 65535)
        trailer = b"" if esp is None else esp.trailer(length, info.next_header)
        packet_length = tcp + length + len(trailer) - header.offset
        if packet_length - (0 if header.version == 4 else IPV6_LENGTH) > 0xFFFF:
            raise PacketError("a segment that no IP packet can hold")
        ip_fields.write(front, packet_length, len(made))
        if udp:
            _U16.pack_into(front, udp + _UDP_LENGTH_FIELD, packet_length - (udp - header.offset))
        for field, first in numbers:
            _U32.pack_into(front, field, (first + len(made)) & _MASK)
        made.append(front + payload + trailer)
        sequence_number = (sequence_number + large.mss) & _MASK
    return made


def _numbers(front: bytearray, ipsec: Headers | None) -> list[tuple[int, int]]:
    """Offset and first value of each IPsec sequence number."""
    if ipsec is None:
        return []
    fields = [ipsec.ah + _AH_NUMBER_FIELD] if ipsec.ah else []
    if ipsec.esp:
        fields.append(ipsec.esp + _ESP_NUMBER_FIELD)
    return [(field, _U32.unpack_from(front, field)[0]) for field in fields]


class _IpFields:
    """Writes what differs in the IP headers of the segments: length, identification, checksum."""

    __slots__ = ("_constant", "_identification", "_mask", "_offset", "_version")

    def __init__(self, front: bytearray, header: IpHeader, lso_version: int) -> None:
        self._version = header.version
        self._offset = header.offset
        self._mask = 0xFFFF if lso_version == 1 else 0x7FFF
        self._identification = 0
        self._constant = 0
        if header.version == 4:
            at = header.offset
            (self._identification,) = _U16.unpack_from(front, at + 4)
            _U16_PAIR.pack_into(front, at + _IPV4_LENGTH_FIELD, 0, 0)
            _U16.pack_into(front, at + _IPV4_CHECKSUM_FIELD, 0)
            self._constant = ones_complement_sum(front[at : header.payload_offset])

    def write(self, front: bytearray, length: int, index: int) -> None:
        at = self._offset
        if self._version == 6:
            _U16.pack_into(front, at + _IPV6_LENGTH_FIELD, length - IPV6_LENGTH)
            return
        identification = (self._identification + index) & self._mask
        _U16_PAIR.pack_into(front, at + _IPV4_LENGTH_FIELD, length, identification)
        value = -(self._constant + length + identification) % 65535
        _U16.pack_into(front, at + _IPV4_CHECKSUM_FIELD, value)
