"""Telling a sender what became of its packet, as a router on its way would: too big, or prohibited.

Law: builds frames and limits their rate; who is told what decide `outbound` and `inbound`.

The card has no address. An answer comes from the packet's own destination: the one address the host is sure
to have a route for through this card, so that no reverse path filter takes offence. RFC 4301 §8.2 leaves it
open.

Source: RFC 1191 §4; RFC 1812 §4.3.2; RFC 4443 §2.4, §3.1, §3.2; RFC 4301 §5.1; RFC 8200 §5
(smallest MTU of IPv6).
"""

from __future__ import annotations

import struct

from vnic.packet.checksum import checksum, fold, ones_complement_sum, pseudo_header_sum
from vnic.packet.ip import ICMP, ICMPV6, IPV4_LENGTH, IpHeader

MIN_MTU_IPV6 = 1280
"""What every IPv6 packet may have; a host need not listen to less (RFC 8201 §4)."""

_LONGEST_IPV4 = 576
"""RFC 1812 §4.3.2.3: an ICMP error quotes as much as fits into this."""
_LONGEST_IPV6 = MIN_MTU_IPV6
"""RFC 4443 §3.2."""
_MIN_MTU_IPV4 = 68
_ICMP_LENGTH = 8
_HOP_LIMIT = 64
_FRAGMENTATION_NEEDED = (3, 4)
_PACKET_TOO_BIG = (2, 0)
_PROHIBITED_IPV4 = (3, 13)
"""Destination unreachable: communication administratively prohibited."""
_PROHIBITED_IPV6 = (1, 1)
_IPV4_ERRORS = frozenset({3, 4, 5, 11, 12})
"""RFC 1122 §3.2.2."""
_FIRST_IPV6_QUERY = 128
"""ICMPv6 types below are errors (RFC 4443 §2.1); redirects count as such (§2.4 e.2)."""
_IPV6_REDIRECT = 137

_RATE = 100.0
"""Answers a second in the long run."""
_BURST = 50.0

_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_IPV6 = struct.Struct(">IHBB16s16s")
_ICMP_HEADER = struct.Struct(">BBHHH")
_ICMPV6_HEADER = struct.Struct(">BBHI")
_U16 = struct.Struct(">H")


class RateLimit:
    """A bucket of tokens that fills with time (RFC 4443 §2.4 f)."""

    def __init__(self, rate: float = _RATE, burst: float = _BURST) -> None:
        """Begin full.

        Args:
            rate: tokens a second.
            burst: most tokens at a time.
        """
        self._rate = rate
        self._burst = self._tokens = burst
        self._then = 0.0

    def take(self, now: float) -> bool:
        """Take a token if there is one."""
        passed = max(0.0, now - self._then)
        self._then = now
        self._tokens = min(self._burst, self._tokens + passed * self._rate)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def too_big(frame: bytes | bytearray, header: IpHeader, mtu: int) -> bytearray | None:
    """The frame that tells the sender of a packet how big it may be; None where nobody may be told.

    Args:
        frame: the frame of the host; read only.
        header: its IP header.
        mtu: largest IP packet that will pass, in bytes; for IPv6 never told below 1280.
    """
    if header.version == 4:
        return _answer(frame, header, _FRAGMENTATION_NEEDED, max(mtu, _MIN_MTU_IPV4))
    return _answer(frame, header, _PACKET_TOO_BIG, max(mtu, MIN_MTU_IPV6))


def prohibited(frame: bytes | bytearray, header: IpHeader) -> bytearray | None:
    """The frame that tells the sender of a packet that policy discarded it; None where nobody may be told,
    and of fragments, which are part of a packet only.

    Args:
        frame: of the host or of the wire; read only.
        header: its IP header.
    """
    if header.fragment:
        return None
    return _answer(frame, header, _PROHIBITED_IPV4 if header.version == 4 else _PROHIBITED_IPV6, 0)


def _answer(
    frame: bytes | bytearray, header: IpHeader, said: tuple[int, int], number: int
) -> bytearray | None:
    """An ICMP error about a packet, on its way back.

    None where nobody may be told: an ICMP error, a fragment but the first, a packet or frame to or from many,
    or from nowhere (RFC 1122 §3.2.2, RFC 4443 §2.4 e).

    Args:
        said: type and code.
        number: an MTU, or 0.
    """
    if header.fragment_offset or frame[0] & 1 or frame[6] & 1:
        return None
    start = header.payload_offset
    if header.version == 4:
        if not _one_ipv4(header.source) or not _one_ipv4(header.destination):
            return None
        if header.protocol == ICMP and (header.end <= start or frame[start] in _IPV4_ERRORS):
            return None
        quoted = bytes(frame[header.offset : min(header.end, header.offset + _LONGEST_IPV4 - 28)])
        packet = _icmp_packet(header, quoted, said, number)
    else:
        if not _one_ipv6(header.source) or not _one_ipv6(header.destination):
            return None
        if header.protocol == ICMPV6 and (
            header.end <= start or frame[start] < _FIRST_IPV6_QUERY or frame[start] == _IPV6_REDIRECT
        ):
            return None
        quoted = bytes(frame[header.offset : min(header.end, header.offset + _LONGEST_IPV6 - 48)])
        packet = _icmpv6_packet(header, quoted, said, number)
    # Back where it came from, tags and all.
    return bytearray(frame[6:12]) + frame[0:6] + frame[12 : header.offset] + packet


def _one_ipv4(address: bytes) -> bool:
    """Whether an address means one host: not 0/8, not loopback, multicast, reserved or broadcast."""
    return address[0] not in (0, 127) and address[0] < 224


def _one_ipv6(address: bytes) -> bool:
    return address[0] != 0xFF and any(address[:15])


def _icmp_packet(header: IpHeader, quoted: bytes, said: tuple[int, int], number: int) -> bytes:
    total = checksum(_ICMP_HEADER.pack(*said, 0, 0, number) + quoted)
    message = _ICMP_HEADER.pack(*said, total, 0, number) + quoted
    fields = [0x45, 0, IPV4_LENGTH + len(message), 0, 0, _HOP_LIMIT, ICMP]
    blank = _IPV4.pack(*fields, 0, header.destination, header.source)
    return _IPV4.pack(*fields, checksum(blank), header.destination, header.source) + message


def _icmpv6_packet(header: IpHeader, quoted: bytes, said: tuple[int, int], number: int) -> bytes:
    message = bytearray(_ICMPV6_HEADER.pack(*said, 0, number) + quoted)
    total = pseudo_header_sum(header.destination, header.source, ICMPV6, len(message))
    _U16.pack_into(message, 2, 0xFFFF - fold(total + ones_complement_sum(message)))
    outer = _IPV6.pack(6 << 28, len(message), ICMPV6, _HOP_LIMIT, header.destination, header.source)
    return outer + bytes(message)
