"""The AH header.

Law: bytes to fields and back; what the ICV covers is the NIC's business.

     0               1               2               3
    +---------------+---------------+---------------+---------------+
    |  next header  |  payload len  |           reserved            |
    +---------------+---------------+---------------+---------------+
    |                              SPI                              |
    +---------------------------------------------------------------+
    |                        sequence number                        |
    +---------------------------------------------------------------+
    |                   ICV (variable, then padding)                |

payload len counts 32-bit words minus 2.

Source: RFC 4302 §2.
"""

from __future__ import annotations

import struct

AH_FIXED_LENGTH = 12

AH_FIXED = struct.Struct(">BBHII")
"""next header, payload len, reserved, SPI, sequence number."""


def ah_length(payload_length_field: int) -> int:
    """Bytes of a whole AH header whose second byte is `payload_length_field`."""
    return (payload_length_field + 2) * 4


def ah_header_length(icv_length: int, alignment: int) -> int:
    """Bytes of an AH header with an ICV (and IV) of `icv_length` bytes, padded to `alignment`."""
    return -(-(AH_FIXED_LENGTH + icv_length) // alignment) * alignment
