"""What the wire tells of the paths of SAs: ICMP about sealed packets that were too big.

Law: believes only what quotes a packet that an SA sent a moment ago. Nobody authenticates these messages, but
who cannot see the traffic cannot name SPI and number of one of its packets.

Source: RFC 1191 §4, §5 (messages without an MTU), §6.3; RFC 8201 §4; RFC 4301 §6.1.1, §8.2.
"""

from __future__ import annotations

from typing import NamedTuple

from vnic.ipsec.association import IpsecProtocol, SaId
from vnic.packet.checksum import fold, ones_complement_sum, pseudo_header_sum
from vnic.packet.ip import AH, ESP, ICMP, ICMPV6, IPV4_LENGTH, IPV6_LENGTH, UDP, IpHeader
from vnic.packet.udp import UDP_HEADER, UDP_LENGTH
from vnic.transport.sad import Sad
from vnic.transport.state import SaState

LIFETIME_S = 600.0
"""RFC 1191 §6.3: ten minutes, then larger packets are tried again."""

_RECENT = 1 << 16
"""A packet is quoted that is at most so many numbers old."""
_MAX_PATHS = 4096
_MIN_MTU = {4: 576, 16: 1280}
"""By bytes of an address: what is never gone below. RFC 4301 §8.2.2 leaves IPv4 open; a path of less than 576
bytes is an attack these days, and DF can be cleared for it (`nopmtudisc`)."""
_PLATEAUS = (32000, 17914, 8166, 4352, 2002, 1492, 1006, 576)
"""RFC 1191 §7.1, for routers that tell no MTU."""
_ICMP_LENGTH = 8
_FRAGMENTATION_NEEDED = (3, 4)
_PACKET_TOO_BIG = (2, 0)
_DONT_FRAGMENT = 0x40


class Report(NamedTuple):
    """What an ICMP message says of a packet that was too big."""

    mtu: int
    """As told, 0 if it was not."""
    length: int
    """Bytes of the packet it quotes, by that packet's own header."""
    source: bytes
    destination: bytes
    protocol: int
    spi: int
    sequence_number: int
    """As on the wire; -1: the message quotes too little."""
    ports: tuple[int, int] | None
    """Of the UDP header in front of ESP, source first; None without one."""


def report_of(frame: bytes | bytearray, header: IpHeader) -> Report | None:
    """Read a Fragmentation Needed or Packet Too Big message about an ESP or AH packet; None if it is none.

    Args:
        frame: of the wire; only read.
        header: its IP header.
    """
    start, end = header.payload_offset, header.end
    if header.fragment or end - start < _ICMP_LENGTH or (header.version == 4) != (header.protocol == ICMP):
        return None
    said = (frame[start], frame[start + 1])
    quoted = start + _ICMP_LENGTH
    if header.version == 4:
        if said != _FRAGMENTATION_NEEDED or ones_complement_sum(frame[start:end]) != 0xFFFF:
            return None
        return _quoted_ipv4(frame, quoted, end, int.from_bytes(frame[start + 6 : start + 8], "big"))
    if header.protocol != ICMPV6 or said != _PACKET_TOO_BIG:
        return None
    total = pseudo_header_sum(header.source, header.destination, ICMPV6, end - start)
    if fold(total + ones_complement_sum(frame[start:end])) != 0xFFFF:
        return None
    return _quoted_ipv6(frame, quoted, end, int.from_bytes(frame[start + 4 : start + 8], "big"))


def _quoted_ipv4(frame: bytes | bytearray, start: int, end: int, mtu: int) -> Report | None:
    length = (frame[start] & 15) * 4 if end > start else 0
    if length < IPV4_LENGTH or frame[start] >> 4 != 4 or end - start < length + 8:
        return None
    if not frame[start + 6] & _DONT_FRAGMENT or frame[start + 6] & 0x3F or frame[start + 7]:
        # Without DF nobody asks for smaller packets.
        return None
    return _quoted(
        frame,
        start + length,
        end,
        mtu,
        int.from_bytes(frame[start + 2 : start + 4], "big"),
        bytes(frame[start + 12 : start + 16]),
        bytes(frame[start + 16 : start + 20]),
        frame[start + 9],
    )


def _quoted_ipv6(frame: bytes | bytearray, start: int, end: int, mtu: int) -> Report | None:
    if end - start < IPV6_LENGTH + 8 or frame[start] >> 4 != 6:
        return None
    return _quoted(
        frame,
        start + IPV6_LENGTH,
        end,
        mtu,
        IPV6_LENGTH + int.from_bytes(frame[start + 4 : start + 6], "big"),
        bytes(frame[start + 8 : start + 24]),
        bytes(frame[start + 24 : start + 40]),
        frame[start + 6],
    )


def _quoted(
    frame: bytes | bytearray,
    start: int,
    end: int,
    mtu: int,
    length: int,
    source: bytes,
    destination: bytes,
    protocol: int,
) -> Report | None:
    ports: tuple[int, int] | None = None
    if protocol == UDP and end >= start + UDP_LENGTH + 4:
        ports = UDP_HEADER.unpack_from(frame, start)[:2]
        protocol = ESP
        start += UDP_LENGTH
    if protocol not in (ESP, AH):
        return None
    at = start if protocol == ESP else start + 4
    number = int.from_bytes(frame[at + 4 : at + 8], "big") if end >= at + 8 else -1
    spi = int.from_bytes(frame[at : at + 4], "big")
    return Report(mtu, length, source, destination, protocol, spi, number, ports)


_Path = tuple[bytes, bytes] | SaState
"""Source and destination, or an SA that goes to any destination."""


class PathMtus:
    """Path MTUs of outbound SAs, as the wire told them. SAs with the same ends share a path and what is known
    of it, so one that replaces another knows it too.

    Attributes:
        known: by path, the largest IP packet it takes, in bytes, and `now` at which that is forgotten.
        generation: grows with everything that is believed.
    """

    def __init__(self) -> None:
        self.generation = 0
        self.known: dict[_Path, tuple[int, float]] = {}

    def known_until(self, state: SaState, now: float) -> float:
        """`now` at which what is known of an SA's path is forgotten; `now` itself: nothing is known."""
        return self.known.get(_path_of(state), (0, now))[1]

    def smallest(self, states: list[SaState], wire_mtu: int, now: float) -> int:
        """The largest packet that all these SAs may send, at most `wire_mtu`."""
        for state in states:
            path = _path_of(state)
            mtu, until = self.known.get(path, (wire_mtu, now + 1.0))
            if until <= now:
                del self.known[path]
            else:
                wire_mtu = min(wire_mtu, mtu)
        return wire_mtu

    def take(self, report: Report, state: SaState, wire_mtu: int, now: float) -> bool:
        """Believe a report about an SA, if it can be true; gives whether it was believed.

        The packet it quotes must be one of the last that the SA sent, and larger than what it says would
        pass. What is told below 576 bytes, IPv6 1280, counts as that.
        """
        sa, sequence = state.sa, state.sequence
        if sequence is None or report.sequence_number < 0 or (any(sa.source) and sa.source != report.source):
            return False
        age = (sequence.last - report.sequence_number) & 0xFFFFFFFF
        if age >= _RECENT or age >= sequence.last - sa.sequence_number:
            return False
        current = self.smallest([state], wire_mtu, now)
        mtu = report.mtu or next((one for one in _PLATEAUS if one < report.length), 0)
        if not 0 < mtu < report.length or report.length > wire_mtu:
            return False
        mtu = max(mtu, _MIN_MTU[len(sa.destination)])
        if mtu > current:
            # Larger packets are tried when what is known has aged, not because somebody says so.
            return False
        path = _path_of(state)
        self.known.pop(path, None)
        if len(self.known) >= _MAX_PATHS:
            del self.known[next(iter(self.known))]
        self.known[path] = (mtu, now + LIFETIME_S)
        self.generation += 1
        return True


def _path_of(state: SaState) -> _Path:
    sa = state.sa
    return (sa.source, sa.destination) if any(sa.destination) else state


def outbound_sa(report: Report, sad: Sad) -> SaState | None:
    """The outbound SA that a report is about, or None."""
    protocol = IpsecProtocol(report.protocol)
    for destination in (report.destination, bytes(len(report.destination))):
        state = sad.table.get(SaId(destination, protocol, report.spi))
        if state is not None and state.sequence is not None and _ports_of(state) == report.ports:
            return state
    return None


def _ports_of(state: SaState) -> tuple[int, int] | None:
    udp = state.sa.udp
    if udp is None:
        return None
    return udp.source_port, udp.destination_port if state.peer is None else state.peer[1]
