"""Checksums that the driver leaves to the NIC, completed before anything is sealed.

Law: writes checksum fields and nothing else. The driver has put the sum of the pseudo-header into the TCP or
UDP field; the NIC adds the segment and complements.

Source: NDIS_TCP_IP_CHECKSUM_NET_BUFFER_LIST_INFO (sheet §5, §8); RFC 768, RFC 1071, RFC 9293 §3.1.
"""

from __future__ import annotations

from vnic.errors import PacketError
from vnic.ndis.capabilities import ChecksumCapabilities
from vnic.ndis.netbuffer import ChecksumRequest
from vnic.packet.checksum import checksum
from vnic.packet.ip import TCP, UDP, IpHeader
from vnic.packet.udp import UDP_LENGTH

_IPV4_CHECKSUM = 10
_TCP_CHECKSUM = 16
_UDP_CHECKSUM = 6
_UDP_LENGTH_FIELD = 4
_MIN_TCP_LENGTH = 20


def complete_ip(frame: bytearray, header: IpHeader) -> None:
    """Write the checksum of an IPv4 header.

    Raises:
        PacketError: an IPv6 header has none.
    """
    if header.version != 4:
        raise PacketError("no IPv4 header to complete the checksum of")
    field = header.offset + _IPV4_CHECKSUM
    frame[field : field + 2] = b"\x00\x00"
    value = checksum(frame[header.offset : header.payload_offset])
    frame[field : field + 2] = value.to_bytes(2, "big")


def complete_upper(frame: bytearray, protocol: int, start: int, end: int) -> None:
    """Write the checksum of a TCP segment or UDP datagram whose field holds the sum of the pseudo-header.

    Raises:
        PacketError: too short, or a UDP length beyond the packet.
    """
    field, least = (_TCP_CHECKSUM, _MIN_TCP_LENGTH) if protocol == TCP else (_UDP_CHECKSUM, UDP_LENGTH)
    if end - start < least:
        raise PacketError("TCP or UDP header cut short")
    if protocol == UDP:
        stop = start + (frame[start + _UDP_LENGTH_FIELD] << 8 | frame[start + _UDP_LENGTH_FIELD + 1])
        if not start + UDP_LENGTH <= stop <= end:
            raise PacketError("the UDP length does not fit the packet")
        end = stop
    # Zero means "none" to UDP (RFC 768); for TCP both forms of zero are the same sum.
    value = checksum(frame[start:end]) or 0xFFFF
    frame[start + field : start + field + 2] = value.to_bytes(2, "big")


def complete(
    frame: bytearray,
    request: ChecksumRequest,
    able: ChecksumCapabilities,
    outermost: IpHeader,
    header: IpHeader,
    protocol: int,
    start: int,
    end: int,
) -> None:
    """Do what a request asks.

    Args:
        outermost: the IP header of the frame, which `request.ip_header` is about.
        header: the IP header in front of the upper layer, which the other members are about; the same one
            in transport mode and without IPsec.
        protocol, start, end: the upper layer.

    Raises:
        PacketError: checksum offload is off, or the request is not about this packet.
    """
    if request.ipv6 != (header.version == 6):
        raise PacketError("the checksum request is for the other IP version")
    if not (able.ipv6 if request.ipv6 else able.ipv4):
        raise PacketError("checksum offload is not configured")
    if request.ip_header:
        complete_ip(frame, outermost)
    if not (request.tcp or request.udp):
        return
    if (request.tcp and protocol != TCP) or (request.udp and protocol != UDP):
        raise PacketError("the checksum request is for another protocol")
    if request.tcp_header_offset not in (0, start):
        raise PacketError("the TCP or UDP header is not where the checksum request says")
    complete_upper(frame, protocol, start, end)
