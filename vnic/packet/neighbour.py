"""ARP and neighbour solicitation, answered for everybody.

Law: one question in, one answer out; keeps nothing. What asks whether an address is free (a probe of RFC
5227, a solicitation from the unspecified address) and what only announces gets no answer: nobody's address is
taken away.

Source: RFC 826, RFC 5227 §1.1; RFC 4861 §4.3, §4.4, §7.2.4; RFC 4862 §5.4.
"""

from __future__ import annotations

from vnic.errors import PacketError
from vnic.packet.checksum import fold, ones_complement_sum, pseudo_header_sum
from vnic.packet.ethernet import ETHERNET_LENGTH
from vnic.packet.icmp import is_neighbour_discovery
from vnic.packet.ip import ICMPV6, IPV6_LENGTH, parse_ip

_ARP_IPV4 = b"\x00\x01\x08\x00\x06\x04"
"""Ethernet and IPv4: kinds and lengths of the addresses."""
_ARP_REQUEST = b"\x00\x01"
_ARP_REPLY = b"\x00\x02"
_ARP_END = ETHERNET_LENGTH + 28

_SOLICITATION = 135
_ADVERTISEMENT = 136
_SOLICITATION_LENGTH = 24
_SOLICITED_AND_OVERRIDE = b"\x60\x00\x00\x00"
_TARGET_ADDRESS = b"\x02\x01"
"""Option of the target's link-layer address, 8 bytes."""


def answer(frame: bytes | bytearray, mac: bytes) -> bytearray | None:
    """Answer a frame that asks who has an address, for whatever address; None: it asks nothing of the kind.

    Args:
        frame: an untagged Ethernet frame.
        mac: the Ethernet address to answer with, six bytes.
    """
    kind = frame[12:14]
    if kind == b"\x08\x06":
        return _arp_reply(frame, mac)
    if kind == b"\x86\xdd":
        return _advertisement(frame, mac)
    return None


def _arp_reply(frame: bytes | bytearray, mac: bytes) -> bytearray | None:
    if len(frame) < _ARP_END or frame[14:22] != _ARP_IPV4 + _ARP_REQUEST:
        return None
    asker, sender, target = frame[22:28], frame[28:32], frame[38:42]
    if not any(sender) or sender == target:
        return None
    return bytearray().join(
        (frame[6:12], mac, b"\x08\x06", _ARP_IPV4, _ARP_REPLY, mac, target, asker, sender)
    )


def _advertisement(frame: bytes | bytearray, mac: bytes) -> bytearray | None:
    try:
        header = parse_ip(frame, ETHERNET_LENGTH)
    except PacketError:
        return None
    start = header.payload_offset
    if (
        header.protocol != ICMPV6
        or header.has_options
        or not is_neighbour_discovery(frame, header)
        or frame[start] != _SOLICITATION
        or header.end - start < _SOLICITATION_LENGTH
        or not any(header.source)
    ):
        return None
    target = bytes(frame[start + 8 : start + 24])
    if target[0] == 0xFF:
        return None
    message = bytearray(
        bytes((_ADVERTISEMENT, 0, 0, 0)) + _SOLICITED_AND_OVERRIDE + target + _TARGET_ADDRESS + mac
    )
    total = pseudo_header_sum(target, header.source, ICMPV6, len(message)) + ones_complement_sum(message)
    message[2:4] = (0xFFFF - fold(total)).to_bytes(2, "big")
    front = b"\x60\x00\x00\x00" + len(message).to_bytes(2, "big") + bytes((ICMPV6, 255))
    assert len(front) + 32 == IPV6_LENGTH
    return bytearray().join((frame[6:12], mac, b"\x86\xdd", front, target, header.source, message))
