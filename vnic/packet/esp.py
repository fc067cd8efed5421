"""The ESP header and trailer.

Law: bytes to fields and back; where IV and ICV lie follows from the algorithm, not from here.

    [ SPI 4 | sequence number 4 | IV | payload | padding 0-255 | pad length 1 | next header 1 | ICV ]

Source: RFC 4303 §2.
"""

from __future__ import annotations

import struct

ESP_HEADER_LENGTH = 8
ESP_TRAILER_LENGTH = 2

ESP_HEADER = struct.Struct(">II")
"""SPI, sequence number."""

PADDING = bytes(range(1, 256))
"""The monotonic padding 1, 2, 3, … (RFC 4303 §2.4)."""


def pad_length(payload_length: int, block_length: int) -> int:
    """Fewest padding bytes that align payload + trailer to the cipher's block and to 4 (RFC 4303 §2.4)."""
    alignment = max(block_length, 4)
    return -(payload_length + ESP_TRAILER_LENGTH) % alignment
