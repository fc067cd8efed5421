"""A frame in a few words: addresses, protocol, SPI and sequence number, ports.

Law: bytes to one line, whatever the bytes; nothing is checked.

Source: RFC 791, 8200, 4302, 4303; IEEE 802.3, 802.1Q.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from vnic.cli.values import PROTOCOL_NAMES

_VLAN, _IPV4, _IPV6, _ARP = 0x8100, 0x0800, 0x86DD, 0x0806
_TCP, _UDP, _ESP, _AH = 6, 17, 50, 51
_EXTENSIONS = frozenset({0, 43, 60})
_NATT = 4500


def summary(frame: bytes) -> str:
    """Write a frame, as far as it is there."""
    offset, words = 12, []
    ether_type = _u16(frame, offset)
    while ether_type == _VLAN:
        words.append(f"vlan {_u16(frame, offset + 2) & 0xFFF}")
        offset += 4
        ether_type = _u16(frame, offset)
    offset += 2
    if ether_type == _IPV4 and len(frame) >= offset + 20:
        words += _ipv4(frame, offset)
    elif ether_type == _IPV6 and len(frame) >= offset + 40:
        words += _ipv6(frame, offset)
    else:
        words.append("ARP" if ether_type == _ARP else f"type {ether_type:#06x}")
    return " ".join(words)


def _ipv4(frame: bytes, offset: int) -> list[str]:
    source, destination = (IPv4Address(frame[offset + at : offset + at + 4]) for at in (12, 16))
    words = [f"IPv4 {source} > {destination}"]
    if _u16(frame, offset + 6) & 0x1FFF:
        return [*words, "fragment"]
    return words + _upper(frame, offset + (frame[offset] & 0xF) * 4, frame[offset + 9])


def _ipv6(frame: bytes, offset: int) -> list[str]:
    source, destination = (IPv6Address(frame[offset + at : offset + at + 16]) for at in (8, 24))
    words = [f"IPv6 {source} > {destination}"]
    protocol, offset = frame[offset + 6], offset + 40
    while protocol in _EXTENSIONS and len(frame) >= offset + 8:
        protocol, offset = frame[offset], offset + (frame[offset + 1] + 1) * 8
    return words + _upper(frame, offset, protocol)


def _upper(frame: bytes, offset: int, protocol: int) -> list[str]:
    if protocol == _ESP and len(frame) >= offset + 8:
        return [_esp(frame, offset)]
    if protocol == _AH and len(frame) >= offset + 12:
        words = [f"AH spi {_u32(frame, offset + 4):#010x} seq {_u32(frame, offset + 8)}"]
        return words + _upper(frame, offset + (frame[offset + 1] + 2) * 4, frame[offset])
    if protocol in (_TCP, _UDP) and len(frame) >= offset + 4:
        name = "TCP" if protocol == _TCP else "UDP"
        source, destination = _u16(frame, offset), _u16(frame, offset + 2)
        words = [f"{name} {source} > {destination}"]
        natt = protocol == _UDP and _NATT in (source, destination) and len(frame) >= offset + 16
        return [*words, _esp(frame, offset + 8)] if natt and _u32(frame, offset + 8) else words
    return [PROTOCOL_NAMES.get(protocol, f"protocol {protocol}")]


def _esp(frame: bytes, offset: int) -> str:
    return f"ESP spi {_u32(frame, offset):#010x} seq {_u32(frame, offset + 4)}"


def _u16(frame: bytes, offset: int) -> int:
    return int.from_bytes(frame[offset : offset + 2], "big")


def _u32(frame: bytes, offset: int) -> int:
    return int.from_bytes(frame[offset : offset + 4], "big")
