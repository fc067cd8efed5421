"""What an SA adds to a packet, in bytes.

Law: sizes follow from the SA alone, never from its state.

Source: RFC 4302 §2.2, §3.3.3.2; RFC 4303 §2; RFC 3948 §2.1.
"""

from __future__ import annotations

from typing import NamedTuple

from vnic.ipsec.association import IpsecProtocol, Mode, SecurityAssociation
from vnic.packet.ah import ah_header_length
from vnic.packet.esp import ESP_HEADER_LENGTH, ESP_TRAILER_LENGTH
from vnic.packet.udp import UDP_LENGTH


class Shape(NamedTuple):
    """What all SAs of one kind add; many SAs share a few of them."""

    protocol: IpsecProtocol
    mode: Mode | None
    overhead: int
    """Headers and ICV."""
    alignment: int
    trailer: int

    def room(self, available: int) -> int:
        """Most bytes it can protect so that the result has at most `available`."""
        return (available - self.overhead) // self.alignment * self.alignment - self.trailer


def esp_sizes(sa: SecurityAssociation) -> tuple[int, int, int]:
    """IV length, alignment and ICV length of an ESP SA, in bytes."""
    block = sa.encryption.block_length if sa.encryption else 1
    return sa.iv_length, max(block, 4), sa.icv_length


def udp_length(sa: SecurityAssociation) -> int:
    """Bytes of the UDP header in front of ESP, 0 without UDP encapsulation."""
    return UDP_LENGTH if sa.udp is not None else 0


def ah_sizes(sa: SecurityAssociation) -> int:
    """Bytes of the whole AH header of an SA (RFC 4302 §2.2: 8-byte steps over IPv6)."""
    return ah_header_length(sa.iv_length + sa.icv_length, 8 if sa.ipv6 else sa.ah_alignment)


def shape_of(sa: SecurityAssociation) -> Shape:
    """The shape of an SA."""
    if sa.protocol is IpsecProtocol.AH:
        return Shape(sa.protocol, sa.mode, ah_sizes(sa), 1, 0)
    iv, alignment, icv = esp_sizes(sa)
    overhead = udp_length(sa) + ESP_HEADER_LENGTH + iv + icv
    return Shape(sa.protocol, sa.mode, overhead, alignment, ESP_TRAILER_LENGTH)
