"""Where the IPsec headers of a frame to be sent are, and whether they are those of its SAs.

Law: reads; believes nothing the transport wrote. Everything is still in clear here, so each portion shows
what is inside it.

    header   udp?   ah?   esp?            text                        end
    | IP    | UDP  | AH  | ESP IV         | upper layer or IP packet  | padding, lengths | ICV |

Source: sheet §6, §9; R10, R12, R16, R98, R161, R162, R175; RFC 3948 §2.1 for the UDP header.
"""

from __future__ import annotations

from typing import NamedTuple

from vnic.errors import PacketError
from vnic.ipsec.association import Mode
from vnic.miniport.abilities import Abilities
from vnic.miniport.sa_table import OutboundBundle
from vnic.miniport.udp_esp import Place, fits, implied_mode, subtypes
from vnic.packet.esp import ESP_TRAILER_LENGTH
from vnic.packet.ip import AH, ESP, IPV4_IN_IP, IPV6_IN_IP, UDP, IpHeader, parse_ip
from vnic.packet.udp import UDP_HEADER, UDP_LENGTH

IP_IN_IP = {4: IPV4_IN_IP, 6: IPV6_IN_IP}
"""What names a packet of an IP version inside another packet."""


class Headers(NamedTuple):
    """The IPsec headers under one IP header; offsets count from the frame start, 0 for one that is absent."""

    header: IpHeader
    bundle: OutboundBundle
    udp: int
    ah: int
    esp: int
    after: int
    """What follows the last of them, and the IV."""
    protocol: int
    """What the last one before the ESP trailer names: ESP, or what follows AH."""


class Portion(NamedTuple):
    """One portion with all that is inside it."""

    headers: Headers
    next_header: int
    pad_length: int
    """0 without ESP."""
    text: int
    text_end: int

    @property
    def mode(self) -> Mode:
        """The mode it shows."""
        return Mode.TUNNEL if self.next_header in (IPV4_IN_IP, IPV6_IN_IP) else Mode.TRANSPORT


def ip_header(frame: bytes | bytearray, offset: int, limit: int, able: Abilities) -> IpHeader:
    """Give the IP header at `offset`, if it is one the NIC may protect.

    Raises:
        PacketError: no IP packet, a fragment (R16), or options beyond the capabilities.
    """
    if not offset:
        raise PacketError("not an IP packet")
    header = parse_ip(frame, offset, limit)
    if header.fragment:
        raise PacketError("a fragment (R16)")
    if not (able.everything or able.takes(header)):
        raise PacketError("IP version, options or extension headers beyond the capabilities")
    return header


def find_headers(
    frame: bytes | bytearray,
    header: IpHeader,
    bundle: OutboundBundle,
    able: Abilities,
    place: Place,
    *,
    large: bool = False,
) -> Headers:
    """Find the IPsec headers of a bundle behind an IP header.

    Args:
        large: of a large packet, whose length fields say nothing.

    Raises:
        PacketError: the headers are not those of the bundle.
    """
    if header.version != bundle.version:
        raise PacketError("the SA is of the other IP version")
    start = header.payload_offset
    protocol = header.protocol
    udp = ah = esp = 0
    if protocol == UDP and bundle.udp_esp:
        udp = start
        _check_udp(frame, udp, header.end, large=large)
        start += UDP_LENGTH
        protocol = ESP
    if (udp or bundle.udp_esp or place is not Place.OUTERMOST) and not fits(
        subtypes(bundle, able), bundle.portion, in_udp=bool(udp), place=place
    ):
        raise PacketError("UDP encapsulation other than the SA's")
    if bundle.ah is not None:
        if protocol != AH:
            raise PacketError("the SA is AH, and the packet has no AH header here")
        ah = start
        start += bundle.ah.length(frame, header.offset, start, header.end)
        protocol = frame[ah]
    if bundle.esp is not None:
        if protocol != ESP:
            raise PacketError("the SA is ESP, and the packet has no ESP header here")
        esp = start
        start += bundle.esp.header_length
    return Headers(header, bundle, udp, ah, esp, start, protocol)


def _check_udp(frame: bytes | bytearray, start: int, end: int, *, large: bool) -> None:
    if end - start < UDP_LENGTH:
        raise PacketError("UDP header cut short")
    _, _, length, checksum = UDP_HEADER.unpack_from(frame, start)
    if length != end - start and not large:
        raise PacketError("the UDP length is not that of the packet")
    if checksum:
        raise PacketError("a UDP checksum over what the NIC is about to encrypt; it must be zero")


def whole_portion(frame: bytes | bytearray, headers: Headers, able: Abilities, place: Place) -> Portion:
    """Add what the ESP trailer says.

    Raises:
        PacketError: no room for the trailer, more padding than payload, or a mode the NIC does not do.
    """
    bundle = headers.bundle
    next_header, pad_length, text, end = headers.protocol, 0, headers.after, headers.header.end
    if bundle.esp is not None:
        end -= bundle.esp.icv_length + ESP_TRAILER_LENGTH
        pad_length, next_header = frame[end], frame[end + 1]
        end -= pad_length
    if end < text:
        raise PacketError("no room for ESP trailer and ICV, or more padding than payload")
    portion = Portion(headers, next_header, pad_length, text, end)
    if bundle.portion is None and not able.everything:
        mode = implied_mode(bundle.udp_esp, in_udp=bool(headers.udp), place=place) or portion.mode
        if mode not in able.modes(bundle):
            raise PacketError("a mode that is switched off")
    return portion


def seal(frame: bytearray, headers: Headers, end: int) -> None:
    """Write IVs, cipher text and ICVs of one portion, ESP first (R98).

    Args:
        end: offset behind the packet.

    Raises:
        PacketError: the layout does not fit the SA, or its IVs are used up.
    """
    bundle = headers.bundle
    if bundle.esp is not None:
        bundle.esp.seal(frame, headers.esp, end)
    if bundle.ah is not None:
        bundle.ah.seal(frame, headers.header.offset, headers.ah, end)
