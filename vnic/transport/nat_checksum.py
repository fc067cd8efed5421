"""The checksum of TCP or UDP that a NAT has made wrong: it changed the addresses and could not see the rest.

Law: touches the checksum field alone, and only of packets that came through ESP in UDP in transport mode.
What an SA has authenticated its peer has sent so.

Source: RFC 3948 §3.1.2; RFC 1624.
"""

from __future__ import annotations

from vnic.packet.checksum import fold, pseudo_header_sum, unfolded_sum
from vnic.packet.ip import ICMPV6, TCP, UDP, IpHeader

_FIELD = {TCP: 16, UDP: 6, ICMPV6: 2}
"""Where the checksum stands in each header."""


def put_right(frame: bytearray, header: IpHeader, original: bytes) -> None:
    """Make the checksum of a packet that of its addresses, in place.

    Args:
        header: the IP header in front of TCP or UDP.
        original: the source address its sender used: what is wrong otherwise stays wrong. Empty: not known,
            the checksum is computed anew.
    """
    start, end = header.payload_offset, header.end
    field = start + _FIELD.get(header.protocol, 1 << 16)
    if header.fragment or field + 2 > end:
        return
    value = frame[field] << 8 | frame[field + 1]
    if not value and header.protocol == UDP:
        return
    total = pseudo_header_sum(header.source, header.destination, header.protocol, end - start)
    total += unfolded_sum(frame[start:end])
    if fold(total) == 0xFFFF:
        return
    if original:
        change = int.from_bytes(header.source, "big") - int.from_bytes(original, "big")
        value = 0xFFFF - (0xFFFF - value + change) % 65535
    else:
        value = 0xFFFF - (total - value) % 65535
    if header.protocol == UDP:
        value = value or 0xFFFF
    frame[field : field + 2] = value.to_bytes(2, "big")
