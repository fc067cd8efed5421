"""The usual shape of a protected packet, at a glance.

Law: answers from headers alone. What `plain_esp` finds is what `packet.ip` would find; it only finds less.
"""

from __future__ import annotations

import struct

from vnic.packet.esp import ESP_HEADER_LENGTH
from vnic.packet.ethernet import ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6
from vnic.packet.ip import ESP, IPV4_LENGTH, IPV6_LENGTH

PLAIN_IPV4_START = ETHERNET_LENGTH + IPV4_LENGTH
PLAIN_IPV6_START = ETHERNET_LENGTH + IPV6_LENGTH

_MIN_LENGTH = PLAIN_IPV4_START + ESP_HEADER_LENGTH
_VERSION_AND_LENGTH = 0x45
_FRAGMENT_MASK = 0x3FFF
"""More fragments, and the offset."""

_HEADERS = struct.Struct(">12xHBxHHHxB")
"""EtherType; first byte of IP; then IPv4 total length (upper flow label of IPv6), identification (IPv6
payload length), flags and fragment offset (IPv6 next header and hop limit), protocol."""


def plain_esp(frame: bytes | bytearray) -> tuple[int, int, int]:
    """Find an ESP header in a whole IP packet without VLAN tag, options or extension headers.

    Returns:
        IP version, offset of the ESP header, offset behind the IP packet; zeros for any other shape.
    """
    size = len(frame)
    if size < _MIN_LENGTH:
        return 0, 0, 0
    kind, first, total_length, payload_length, fragment, protocol = _HEADERS.unpack_from(frame)
    if kind == ETHERTYPE_IPV4:
        end = ETHERNET_LENGTH + total_length
        if (
            first == _VERSION_AND_LENGTH
            and protocol == ESP
            and not fragment & _FRAGMENT_MASK
            and PLAIN_IPV4_START + ESP_HEADER_LENGTH <= end <= size
        ):
            return 4, PLAIN_IPV4_START, end
    elif kind == ETHERTYPE_IPV6:
        end = PLAIN_IPV6_START + payload_length
        if first >> 4 == 6 and fragment >> 8 == ESP and PLAIN_IPV6_START + ESP_HEADER_LENGTH <= end <= size:
            return 6, PLAIN_IPV6_START, end
    return 0, 0, 0
