"""ICMP types that the card treats apart.

Law: recognises, never judges.

Source: RFC 4861 §4 (neighbour discovery, types 133-137, hop limit 255).
"""

from __future__ import annotations

from vnic.packet.ip import ICMPV6, IpHeader

_NEIGHBOUR_DISCOVERY = range(133, 138)


def is_neighbour_discovery(frame: bytes | bytearray, header: IpHeader) -> bool:
    """Whether a packet is neighbour or router discovery that a receiver would accept.

    Only an unfragmented ICMPv6 packet with hop limit 255 counts (RFC 4861 §6.1, §7.1; RFC 6980), so
    nothing that crossed a router can pass for it.
    """
    return (
        header.protocol == ICMPV6
        and not header.fragment
        and frame[header.offset + 7] == 255
        and header.end - header.payload_offset >= 8
        and frame[header.payload_offset] in _NEIGHBOUR_DISCOVERY
    )
