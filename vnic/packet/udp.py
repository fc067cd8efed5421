"""UDP, and ESP inside it.

Law: finds the ESP packet and says what a checksum is worth; knows no SA.

     0       2             4        6          8
    +-------+-------------+--------+----------+-----------------------------
    | source| destination | length | checksum | SPI (not zero) … ESP to the end of the datagram
    +-------+-------------+--------+----------+-----------------------------
                                              | 00 00 00 00 … IKE
                                              | FF            a NAT keepalive

Source: RFC 768; RFC 3948 §2.1-§2.3, §2.2 for the zeros that tell IKE from ESP.
"""

from __future__ import annotations

import struct
from enum import Enum

from vnic.packet.checksum import fold, pseudo_header_sum, unfolded_sum
from vnic.packet.esp import ESP_HEADER_LENGTH
from vnic.packet.ip import UDP

UDP_LENGTH = 8
UDP_HEADER = struct.Struct(">HHHH")
"""Source port, destination port, length, checksum."""

NAT_TRAVERSAL_PORT = 4500
"""Where UDP-encapsulated ESP goes (RFC 3948 §2.1; R139)."""

KEEPALIVE = b"\xff"
"""What a NAT keepalive holds (RFC 3948 §2.3)."""

_NO_SPI = b"\x00\x00\x00\x00"


def esp_in_udp(frame: bytes | bytearray, start: int, end: int) -> tuple[int, int]:
    """Find the ESP packet in a UDP datagram to port 4500.

    Args:
        start: offset of the UDP header.
        end: offset behind the IP packet.

    Returns:
        Offsets of the ESP header and behind the datagram. Zeros for another port, IKE (R154), a keepalive,
        and a datagram that is shorter than an ESP header or longer than its IP packet.
    """
    text = start + UDP_LENGTH
    if end - text < ESP_HEADER_LENGTH:
        return 0, 0
    _, port, length, _ = UDP_HEADER.unpack_from(frame, start)
    stop = start + length
    if (
        port != NAT_TRAVERSAL_PORT
        or not text + ESP_HEADER_LENGTH <= stop <= end
        or frame[text : text + 4] == _NO_SPI
    ):
        return 0, 0
    return text, stop


class NatTraversal(Enum):
    """What a datagram to a port of UDP-encapsulated ESP is (RFC 3948 §2)."""

    ESP = 0
    KEEPALIVE = 1
    OTHER = 2
    """IKE, or nothing that anybody knows."""


def nat_traversal(frame: bytes | bytearray, start: int, end: int) -> NatTraversal:
    """Say what a datagram is, by what it holds.

    Args:
        start: offset of the UDP header.
        end: offset behind the datagram.
    """
    text = start + UDP_LENGTH
    if end - text == 1 and frame[text] == KEEPALIVE[0]:
        return NatTraversal.KEEPALIVE
    if end - text > ESP_HEADER_LENGTH and frame[text : text + 4] != _NO_SPI:
        return NatTraversal.ESP
    return NatTraversal.OTHER


def udp_checksum(frame: bytes | bytearray, source: bytes, destination: bytes, start: int, end: int) -> int:
    """The checksum field of a datagram whose own is zero; never 0, which says that there is none."""
    total = pseudo_header_sum(source, destination, UDP, end - start) + unfolded_sum(frame[start:end])
    return 0xFFFF - fold(total) or 0xFFFF


def is_damaged(frame: bytes | bytearray, source: bytes, destination: bytes, start: int, end: int) -> bool:
    """Whether the checksum of a datagram is wrong; over IPv6 also whether it is missing (RFC 8200 §8.1)."""
    if not (frame[start + 6] or frame[start + 7]):
        return len(destination) == 16
    total = pseudo_header_sum(source, destination, UDP, end - start) + unfolded_sum(frame[start:end])
    return fold(total) != 0xFFFF
