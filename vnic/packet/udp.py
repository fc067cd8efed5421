"""UDP, and ESP inside it.

Law: finds the ESP packet; judges no checksum and knows no SA.

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

from vnic.packet.esp import ESP_HEADER_LENGTH

UDP_LENGTH = 8
UDP_HEADER = struct.Struct(">HHHH")
"""Source port, destination port, length, checksum."""

NAT_TRAVERSAL_PORT = 4500
"""Where UDP-encapsulated ESP goes (RFC 3948 §2.1; R139)."""

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
