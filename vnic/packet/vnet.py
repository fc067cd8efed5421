"""The virtio-net header that precedes each frame of a TAP opened with IFF_VNET_HDR.

Law: bytes to fields and back; the kernel side (TUNSETOFFLOAD) lives in `ports/tap`.

     0         1         2-3       4-5       6-7         8-9
    +---------+---------+---------+---------+-----------+-------------+
    | flags   | gso_type| hdr_len | gso_size| csum_start| csum_offset |   little-endian (TUNSETVNETLE)
    +---------+---------+---------+---------+-----------+-------------+

Source: struct virtio_net_hdr, Virtual I/O Device 1.2 §5.1.6.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_LAYOUT = struct.Struct("<BBHHHH")

VNET_HEADER_LENGTH = _LAYOUT.size

NEEDS_CSUM = 1
"""Flag: the checksum field at csum_start + csum_offset holds the pseudo-header sum only."""
DATA_VALID = 2
"""Flag: the checksums of the frame were verified."""

GSO_NONE = 0
GSO_TCPV4 = 1
GSO_UDP = 3
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
GSO_ECN = 0x80
"""Bit of gso_type: the first segment carries CWR (RFC 3168)."""


class VnetHeader(NamedTuple):
    """Offload request (frame from the host) or offload result (frame to the host) of one frame.

    All offsets and lengths are bytes from the start of the Ethernet frame. `gso_size` is the payload
    length of every segment but the last (the MSS); 0 with GSO_NONE.
    """

    flags: int
    gso_type: int
    hdr_len: int
    gso_size: int
    csum_start: int
    csum_offset: int

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> VnetHeader:
        """Read the first ten bytes of `data`; the caller gives at least that many."""
        return cls._make(_LAYOUT.unpack_from(data))

    def emit(self) -> bytes:
        """Give the ten bytes of the header."""
        return _LAYOUT.pack(*self)


PLAIN = VnetHeader(0, GSO_NONE, 0, 0, 0, 0)
"""A frame with complete checksums and nothing left to do."""
