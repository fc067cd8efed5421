"""Putting fragments together: within bounds of memory, number and time, and without overlaps.

Law: fragments in, whole packets out. Every fragment that is not part of a packet given out ends in exactly
one reason, told when it ends. It judges no contents.

    fragment -> checked alone -> its datagram (source, destination, identification, protocol) -> whole? -> out
                    |                |
                refused         overlap: the datagram is spoiled until its time is over

Fragments of different VLANs never meet: the tags in front are part of a datagram's name.

Source: RFC 791 §3.2; RFC 815; RFC 1122 §3.3.2; RFC 1858 and RFC 3128 (tiny fragments); RFC 3168 §5.3 (ECN);
RFC 5722 and RFC 8200 §4.5 (overlaps, 60 seconds), here for both families.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from math import inf

from vnic.ipsec.drops import DropReason
from vnic.packet.checksum import checksum
from vnic.packet.ip import FRAGMENT, IPV6_LENGTH, IpHeader

DEFAULT_MAX_BYTES = 4 << 20
"""Memory of one card."""

_MAX_DATAGRAMS = 1024
_MAX_PER_SOURCE = 64
"""Datagrams of one source under way; one sender must not crowd out others."""
_MAX_FRAGMENTS = 256
"""Of one datagram; 65,535 bytes in pieces for a wire of 296 bytes."""
_FRAGMENT_COST = 256
"""Bytes a fragment takes besides its frame."""
_SECONDS = {4: 30.0, 6: 60.0}
"""RFC 791 begins with 15 and RFC 1122 wants 60 to 120 of hosts; gateways and Linux take 30. RFC 8200: 60."""
_MIN_DATA = {4: 40, 6: 256}
"""Bytes a fragment but the last brings at least. A link of the smallest IPv4 MTU, 68, leaves 48, less with
options; the smallest of IPv6 leaves 1232, and who cuts evenly still has half."""
_MAX_LENGTH = 65_535
_CE, _NOT_ECT = 3, 0
_ECN_MASK = 3

_U16 = struct.Struct(">H")
_Key = tuple[bytes, bytes, bytes, int, int]


@dataclass(slots=True)
class _Datagram:
    """What has come of one packet."""

    version: int
    until: float
    """`now` at which its time is over."""
    pieces: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    """Data by offset: end and bytes."""
    first: bytes = b""
    """Frame of the first fragment up to its data; empty until it came."""
    fragment_header: int = 0
    """Offset of the IPv6 Fragment header in `first`."""
    length: int = 0
    """Bytes of the whole, once the last fragment came."""
    received: int = 0
    fragments: int = 0
    cost: int = 0
    ecn: int = 0
    """Bit n: a fragment had ECN field n."""
    spoiled: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """Fragments that will be part of no packet."""

    reason: DropReason
    source: bytes
    destination: bytes
    count: int


class Reassembly:
    """The fragments of one card.

    Attributes:
        max_bytes: memory that may be in use; `limit` changes it.
        ended: what ended since somebody took it; the caller empties it.
        bytes: memory that is in use.
        joined: fragments of the packet given out last.
        deadline: `now` at which the next datagram's time may be over; infinity when none is under way.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.ended: list[Ended] = []
        self.bytes = self.joined = 0
        self.deadline = inf
        self.max_bytes = max_bytes
        self._datagrams: dict[_Key, _Datagram] = {}
        self._by_source: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._datagrams)

    def expire(self, now: float) -> None:
        """Give up what has waited too long."""
        if now < self.deadline:
            return
        for key in [key for key, one in self._datagrams.items() if one.until <= now]:
            self._end(key, DropReason.IN_FRAGMENT_TIMEOUT)
        self.deadline = min((one.until for one in self._datagrams.values()), default=inf)

    def limit(self, max_bytes: int) -> None:
        """Change the memory that may be in use; the oldest packets go if it is too much already."""
        self.max_bytes = max_bytes
        for key in list(self._datagrams):
            if self.bytes <= max_bytes:
                break
            self._end(key, DropReason.IN_FRAGMENT_LIMIT)

    def add(self, frame: bytearray, header: IpHeader, now: float) -> bytearray | None:
        """Take a fragment; gives the whole packet's frame when it was the last one missing.

        Args:
            frame: of the wire; not kept.
            header: its IP header, of a fragment that `may_be_joined`.
        """
        self.expire(now)
        place, data = header.fragment_offset, bytes(frame[header.payload_offset : header.end])
        reason = _faulty(frame, header, len(data))
        if reason is not None:
            self._refuse(reason, header)
            return None
        key = _key(frame, header)
        datagram = self._datagrams.get(key)
        if datagram is None:
            datagram = self._begin(key, header, now)
        if datagram.spoiled:
            self._refuse(DropReason.IN_FRAGMENT_OVERLAP, header)
            return None
        known = datagram.pieces.get(place)
        if known is not None and known[1] == data:
            self._refuse(DropReason.IN_FRAGMENT_DUPLICATE, header)
            return None
        if self._contradicts(datagram, header, len(data)):
            datagram.fragments += 1
            self._spoil(key, datagram, header)
            return None
        cost = len(frame) + _FRAGMENT_COST
        if datagram.fragments >= _MAX_FRAGMENTS or not self._make_room(cost, key):
            self._refuse(DropReason.IN_FRAGMENT_LIMIT, header)
            if not datagram.fragments:
                self._forget(key)
            return None
        datagram.pieces[place] = (place + len(data), data)
        datagram.received += len(data)
        datagram.fragments += 1
        datagram.cost += cost
        self.bytes += cost
        datagram.ecn |= 1 << (_traffic_class(frame, header.offset) & _ECN_MASK)
        if not header.more_fragments:
            datagram.length = place + len(data)
        if place == 0:
            self._note_first(datagram, frame, header)
        if not datagram.length or datagram.received < datagram.length or not datagram.first:
            return None
        return self._finish(key, datagram)

    def _begin(self, key: _Key, header: IpHeader, now: float) -> _Datagram:
        source = header.source
        if self._by_source.get(source, 0) >= _MAX_PER_SOURCE:
            oldest = next(one for one in self._datagrams if one[0] == source)
            self._end(oldest, DropReason.IN_FRAGMENT_LIMIT)
        elif len(self._datagrams) >= _MAX_DATAGRAMS:
            self._end(next(iter(self._datagrams)), DropReason.IN_FRAGMENT_LIMIT)
        datagram = self._datagrams[key] = _Datagram(header.version, now + _SECONDS[header.version])
        self._by_source[source] = self._by_source.get(source, 0) + 1
        self.deadline = min(self.deadline, datagram.until)
        return datagram

    def _contradicts(self, datagram: _Datagram, header: IpHeader, length: int) -> bool:
        """Whether a fragment overlaps another, or says otherwise where the packet ends."""
        start, end = header.fragment_offset, header.fragment_offset + length
        if datagram.length and (end > datagram.length or not header.more_fragments):
            return True
        for other_start, (other_end, _) in datagram.pieces.items():
            if start < other_end and other_start < end:
                return True
            if not header.more_fragments and other_end > end:
                return True
        return False

    def _spoil(self, key: _Key, datagram: _Datagram, header: IpHeader) -> None:
        """RFC 5722: none of it is used, nor what is still to come."""
        self.ended.append(
            Ended(DropReason.IN_FRAGMENT_OVERLAP, header.source, header.destination, datagram.fragments)
        )
        self.bytes -= datagram.cost
        self._datagrams[key] = _Datagram(datagram.version, datagram.until, spoiled=True)

    def _make_room(self, cost: int, own: _Key) -> bool:
        """Let the oldest datagrams go until there is room for so many bytes."""
        if cost > self.max_bytes:
            return False
        while self.bytes + cost > self.max_bytes:
            oldest = next((key for key, one in self._datagrams.items() if one.cost and key != own), None)
            if oldest is None:
                return False
            self._end(oldest, DropReason.IN_FRAGMENT_LIMIT)
        return True

    def _note_first(self, datagram: _Datagram, frame: bytearray, header: IpHeader) -> None:
        datagram.first = bytes(frame[: header.payload_offset])
        datagram.fragment_header = header.protocol_offset

    def _finish(self, key: _Key, datagram: _Datagram) -> bytearray | None:
        # Without overlaps, as many bytes as the whole has are the whole.
        data = b"".join(datagram.pieces[place][1] for place in sorted(datagram.pieces))
        offset = len(key[2]) + 12
        head = bytearray(datagram.first)
        congested = datagram.ecn >> _CE & 1
        if congested and datagram.ecn & 1 << _NOT_ECT:
            self._end(key, DropReason.IN_FRAGMENT_INVALID)
            return None
        if datagram.version == 6:
            protocol = head[datagram.fragment_header]
            name = _name_of_fragment_header(head, offset, datagram.fragment_header)
            head[name] = protocol
            del head[datagram.fragment_header : datagram.fragment_header + 8]
        total = len(head) - offset + len(data)
        if total - (IPV6_LENGTH if datagram.version == 6 else 0) > _MAX_LENGTH:
            self._end(key, DropReason.IN_FRAGMENT_INVALID)
            return None
        if datagram.version == 6:
            _U16.pack_into(head, offset + 4, total - IPV6_LENGTH)
            if congested:
                head[offset + 1] |= _CE << 4
        else:
            _U16.pack_into(head, offset + 2, total)
            head[offset + 6 : offset + 8] = bytes(2)
            if congested:
                head[offset + 1] |= _CE
            _U16.pack_into(head, offset + 10, 0)
            _U16.pack_into(head, offset + 10, checksum(head[offset:]))
        self.joined = datagram.fragments
        self._forget(key)
        return head + data

    def _end(self, key: _Key, reason: DropReason) -> None:
        datagram = self._datagrams[key]
        if datagram.fragments:
            self.ended.append(Ended(reason, key[0], key[1], datagram.fragments))
        self._forget(key)

    def _forget(self, key: _Key) -> None:
        self.bytes -= self._datagrams.pop(key).cost
        left = self._by_source[key[0]] - 1
        if left:
            self._by_source[key[0]] = left
        else:
            del self._by_source[key[0]]

    def _refuse(self, reason: DropReason, header: IpHeader) -> None:
        self.ended.append(Ended(reason, header.source, header.destination, 1))


def may_be_joined(frame: bytearray, header: IpHeader) -> bool:
    """Whether a fragment shows what the whole packet holds: of IPv6, nothing stands between the Fragment
    header and the upper-layer or IPsec header."""
    if not header.fragment:
        return False
    if header.version == 4:
        return True
    name, position = header.offset + 6, header.offset + IPV6_LENGTH
    while position < header.protocol_offset:
        name, position = position, position + 8 + frame[position + 1] * 8
    return frame[name] == FRAGMENT and header.payload_offset == header.protocol_offset + 8


def _key(frame: bytearray, header: IpHeader) -> _Key:
    offset = header.offset
    if header.version == 4:
        identification = frame[offset + 4] << 8 | frame[offset + 5]
    else:
        start = header.protocol_offset
        identification = int.from_bytes(frame[start + 4 : start + 8], "big")
    tags = bytes(frame[12:offset])
    return header.source, header.destination, tags, header.protocol, identification


def _faulty(frame: bytearray, header: IpHeader, length: int) -> DropReason | None:
    """What is wrong with a fragment, whatever others say."""
    start = header.offset
    if header.version == 4 and int.from_bytes(frame[start : header.payload_offset], "big") % 65535:
        return DropReason.IN_MALFORMED
    if not length or (header.more_fragments and length % 8):
        return DropReason.IN_FRAGMENT_INVALID
    before = header.header_length - (IPV6_LENGTH + 8 if header.version == 6 else 0)
    if before + header.fragment_offset + length > _MAX_LENGTH:
        return DropReason.IN_FRAGMENT_INVALID
    if header.more_fragments and length < _MIN_DATA[header.version]:
        return DropReason.IN_FRAGMENT_TINY
    return None


def _name_of_fragment_header(head: bytearray, offset: int, fragment_header: int) -> int:
    """Where the header before the Fragment header says what follows it."""
    name, position = offset + 6, offset + IPV6_LENGTH
    while position < fragment_header:
        name, position = position, position + 8 + head[position + 1] * 8
    return name


def _traffic_class(frame: bytearray, offset: int) -> int:
    if frame[offset] >> 4 == 6:
        return (frame[offset] & 0x0F) << 4 | frame[offset + 1] >> 4
    return frame[offset + 1]
