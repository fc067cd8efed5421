"""The Internet checksum.

Law: sums are 16-bit ones' complement integers in host order.

A sum of 16-bit big-endian words is the whole buffer, read as one big-endian integer, modulo 65535;
folding the integer in halves first makes Python do that in a few wide additions.

Source: RFC 1071; RFC 1624 for updates; RFC 8200 §8.1 for the pseudo-header.
"""

from __future__ import annotations

from typing import TypeAlias

Bytes: TypeAlias = bytes | bytearray | memoryview

_MASK_7680 = (1 << 7680) - 1
_MASK_3840 = (1 << 3840) - 1
_MASK_1920 = (1 << 1920) - 1
_MASK_960 = (1 << 960) - 1


def ones_complement_sum(data: Bytes) -> int:
    """Sum the 16-bit words of `data`, which is padded with a zero byte when its length is odd.

    Returns:
        0 for data that is all zero, else 1 to 0xFFFF.
    """
    total = unfolded_sum(data)
    return total % 65535 or (0xFFFF if total else 0)


def unfolded_sum(data: Bytes) -> int:
    """Sum the 16-bit words of `data` as `ones_complement_sum` does, but leave the last folding to the caller,
    who adds more: the result is equal modulo 65535, and 0 for data that is all zero alone."""
    total = int.from_bytes(data, "big")
    if len(data) & 1:
        total <<= 8
    if 240 < len(data) <= 1920:
        total = (total >> 7680) + (total & _MASK_7680)
        total = (total >> 3840) + (total & _MASK_3840)
        total = (total >> 1920) + (total & _MASK_1920)
        total = (total >> 960) + (total & _MASK_960)
    return total


def checksum(data: Bytes) -> int:
    """The checksum field for `data` whose own checksum field is zero."""
    return 0xFFFF - ones_complement_sum(data)


def pseudo_header_sum(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """Unfolded sum of the pseudo-header of TCP, UDP or ICMPv6 (both families sum alike)."""
    total = int.from_bytes(source, "big") + int.from_bytes(destination, "big")
    return total % 65535 + protocol + (length >> 16) + (length & 0xFFFF)


def fold(total: int) -> int:
    """Fold a non-negative sum of any size to 16 bits: 0 stays 0, multiples of 65535 become 0xFFFF."""
    return total % 65535 or (0xFFFF if total else 0)
