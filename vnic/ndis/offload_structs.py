"""The binary form of capabilities: NDIS_OFFLOAD with all its parts.

Law: as `ndis.structs`: bytes of any content give a value or a StructError. A reader takes every revision
whose size holds what it reads. What configures is `ndis.configuration_structs`, the NDIS 5 form of both
`ndis.task_structs`.

Source: sheet §2.1-§2.4 (R22-R32, R62); checksum and large send parts as in ntddndis.h.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import fields
from typing import Final

from vnic.errors import RequestError
from vnic.ndis.capabilities import (
    ALL_UDP_ESP,
    ETHERNET,
    NO_IPSEC,
    NO_LARGE_SEND,
    V1_UDP_ESP_SHIFT,
    ChecksumCapabilities,
    LargeSendCapabilities,
    OffloadCapabilities,
    OffloadCapabilitiesV1,
    TaskOffload,
)
from vnic.ndis.layout import (
    OBJECT_HEADER,
    OBJECT_TYPE_OFFLOAD,
    Bits,
    Buffer,
    Layout,
    Member,
)
from vnic.ndis.status import NdisStatus
from vnic.ndis.structs import StructError, packed, refuse, require_length

CHECKSUM_IPV4: Final = (
    Bits("IpOptionsSupported", 0, 2),
    Bits("TcpOptionsSupported", 2, 2),
    Bits("TcpChecksum", 4, 2),
    Bits("UdpChecksum", 6, 2),
    Bits("IpChecksum", 8, 2),
)
CHECKSUM_IPV6: Final = (
    Bits("IpExtensionHeadersSupported", 0, 2),
    Bits("TcpOptionsSupported", 2, 2),
    Bits("TcpChecksum", 4, 2),
    Bits("UdpChecksum", 6, 2),
)
LSO_V1_IPV4: Final = (Bits("TcpOptions", 0, 2), Bits("IpOptions", 2, 2))
LSO_V2_IPV6: Final = (Bits("IpExtensionHeadersSupported", 0, 2), Bits("TcpOptionsSupported", 2, 2))
IPSEC_V1_AH: Final = (
    Bits("Md5", 0, 2),
    Bits("Sha_1", 2, 2),
    Bits("Transport", 4, 2),
    Bits("Tunnel", 6, 2),
    Bits("Send", 8, 2),
    Bits("Receive", 10, 2),
)
IPSEC_V1_ESP: Final = (
    Bits("Des", 0, 2),
    Bits("Reserved", 2, 2),
    Bits("TripleDes", 4, 2),
    Bits("NullEsp", 6, 2),
    Bits("Transport", 8, 2),
    Bits("Tunnel", 10, 2),
    Bits("Send", 12, 2),
    Bits("Receive", 14, 2),
)

CHECKSUM: Final = Layout(
    "NDIS_TCP_IP_CHECKSUM_OFFLOAD",
    32,
    tuple(
        Member(f"{part}.{name}", offset + at, "I")
        for part, offset in (
            ("IPv4Transmit", 0x00),
            ("IPv4Receive", 0x08),
            ("IPv6Transmit", 0x10),
            ("IPv6Receive", 0x18),
        )
        for name, at in (("Encapsulation", 0), ("(bits)", 4))
    ),
)
LSO_V1: Final = Layout(
    "NDIS_TCP_LARGE_SEND_OFFLOAD_V1",
    16,
    (
        Member("IPv4.Encapsulation", 0x0, "I"),
        Member("IPv4.MaxOffLoadSize", 0x4, "I"),
        Member("IPv4.MinSegmentCount", 0x8, "I"),
        Member("IPv4.(bits)", 0xC, "I"),
    ),
)
LSO_V2: Final = Layout(
    "NDIS_TCP_LARGE_SEND_OFFLOAD_V2",
    28,
    (
        Member("IPv4.Encapsulation", 0x00, "I"),
        Member("IPv4.MaxOffLoadSize", 0x04, "I"),
        Member("IPv4.MinSegmentCount", 0x08, "I"),
        Member("IPv6.Encapsulation", 0x0C, "I"),
        Member("IPv6.MaxOffLoadSize", 0x10, "I"),
        Member("IPv6.MinSegmentCount", 0x14, "I"),
        Member("IPv6.(bits)", 0x18, "I"),
    ),
)
IPSEC_V1: Final = Layout(
    "NDIS_IPSEC_OFFLOAD_V1",
    28,
    (
        Member("Supported.Encapsulation", 0x00, "I"),
        Member("Supported.AhEspCombined", 0x04, "I"),
        Member("Supported.TransportTunnelCombined", 0x08, "I"),
        Member("Supported.IPv4Options", 0x0C, "I"),
        Member("Supported.Flags", 0x10, "I"),
        Member("IPv4AH.(bits)", 0x14, "I"),
        Member("IPv4ESP.(bits)", 0x18, "I"),
    ),
)
IPSEC_V2: Final = Layout(
    "NDIS_IPSEC_OFFLOAD_V2",
    32,
    (
        Member("Encapsulation", 0x00, "I"),
        Member("IPv6Supported", 0x04, "B"),
        Member("IPv4Options", 0x05, "B"),
        Member("IPv6NonIPsecExtensionHeaders", 0x06, "B"),
        Member("Ah", 0x07, "B"),
        Member("Esp", 0x08, "B"),
        Member("AhEspCombined", 0x09, "B"),
        Member("Transport", 0x0A, "B"),
        Member("Tunnel", 0x0B, "B"),
        Member("TransportTunnelCombined", 0x0C, "B"),
        Member("LsoSupported", 0x0D, "B"),
        Member("ExtendedSequenceNumbers", 0x0E, "B"),
        Member("UdpEsp", 0x10, "I"),
        Member("AuthenticationAlgorithms", 0x14, "I"),
        Member("EncryptionAlgorithms", 0x18, "I"),
        Member("SaOffloadCapacity", 0x1C, "I"),
    ),
)
OFFLOAD: Final = Layout(
    "NDIS_OFFLOAD",
    156,
    (
        *OBJECT_HEADER.within("Header", 0x00),
        *CHECKSUM.within("Checksum", 0x04),
        *LSO_V1.within("LsoV1", 0x24),
        *IPSEC_V1.within("IPsecV1", 0x34),
        *LSO_V2.within("LsoV2", 0x50),
        Member("Flags", 0x6C, "I"),
        *IPSEC_V2.within("IPsecV2", 0x70),
        Member("Rsc.IPv4.Enabled", 0x90, "B"),
        Member("Rsc.IPv6.Enabled", 0x91, "B"),
        Member("EncapsulatedPacketTaskOffloadGre.(bits)", 0x94, "I"),
        Member("EncapsulatedPacketTaskOffloadGre.MaxHeaderSizeSupported", 0x98, "I"),
    ),
)
"""The structure of revision 3; earlier ones are its beginning."""

SIZEOF_OFFLOAD: Final[Mapping[int, int]] = {1: 0x70, 2: 0x90, 3: 0x9C}
"""NDIS_SIZEOF_NDIS_OFFLOAD_REVISION_n: 112, 144, 156 bytes."""

FLAG_IPSEC_V2_AND_TCP_CHECKSUM = 0x2
FLAG_IPSEC_V2_AND_UDP_CHECKSUM = 0x4
"""IPSEC_OFFLOAD_V2_AND_TCP_ and _UDP_CHECKSUM_COEXISTENCE."""

_NOT_SUPPORTED, _SUPPORTED = 0, 1
_HEADER = OBJECT_HEADER.struct()
_CHECKSUM = CHECKSUM.struct()
_LSO_V1 = LSO_V1.struct()
_LSO_V2 = LSO_V2.struct()
_IPSEC_V1 = IPSEC_V1.struct()
_IPSEC_V2 = IPSEC_V2.struct()
_FLAGS = struct.Struct("<I")
_CHECKSUM_AT = OFFLOAD.offset_of("Checksum.IPv4Transmit.Encapsulation")
_LSO_V1_AT = OFFLOAD.offset_of("LsoV1.IPv4.Encapsulation")
_IPSEC_V1_AT = OFFLOAD.offset_of("IPsecV1.Supported.Encapsulation")
_LSO_V2_AT = OFFLOAD.offset_of("LsoV2.IPv4.Encapsulation")
_IPSEC_V2_AT = OFFLOAD.offset_of("IPsecV2.Encapsulation")


def pack_offload(offload: TaskOffload, revision: int = 2) -> bytes:
    """Build an NDIS_OFFLOAD of revision 1, 2 or 3. RSC and GRE are not there (R201).

    Flags say that checksums go with IPsec V2 when both are there: this NIC completes checksums before it
    seals.

    Raises:
        RequestError: another revision, or a number that does not fit its member.
    """
    if revision not in SIZEOF_OFFLOAD:
        raise RequestError(
            "unknown revision of NDIS_OFFLOAD", field="revision", value=str(revision), allowed="1, 2, 3"
        )
    size = SIZEOF_OFFLOAD[revision]
    data = packed(_HEADER, OBJECT_TYPE_OFFLOAD, revision, size)
    data += _pack_checksum(offload.checksum)
    data += _pack_lso_v1(offload.large_send)
    data += _pack_ipsec_v1(offload.ipsec_v1)
    data += _pack_lso_v2(offload.large_send)
    flags = 0
    if offload.ipsec_v2.encapsulation and (offload.checksum.ipv4 or offload.checksum.ipv6):
        flags = FLAG_IPSEC_V2_AND_TCP_CHECKSUM | FLAG_IPSEC_V2_AND_UDP_CHECKSUM
    data += packed(_FLAGS, flags)
    if revision > 1:
        data += pack_ipsec_v2(offload.ipsec_v2)
    return data.ljust(size, b"\0")


def unpack_offload(buffer: Buffer) -> TaskOffload:
    """Give what an NDIS_OFFLOAD tells; IPsec V2 is NO_IPSEC in one of revision 1.

    Raises:
        StructError: BUFFER_TOO_SHORT; INVALID_LENGTH when Header.Size does not hold its revision;
            INVALID_DATA for another object type or revision 0.
    """
    revision, _ = revision_and_size(buffer, OFFLOAD.name, OBJECT_TYPE_OFFLOAD, SIZEOF_OFFLOAD)
    ipsec_v2 = NO_IPSEC
    if revision > 1:
        ipsec_v2 = _unpack_ipsec_v2(_IPSEC_V2.unpack_from(buffer, _IPSEC_V2_AT))
    return TaskOffload(
        ipsec_v2,
        _unpack_ipsec_v1(_IPSEC_V1.unpack_from(buffer, _IPSEC_V1_AT)),
        _unpack_large_send(_LSO_V1.unpack_from(buffer, _LSO_V1_AT), _LSO_V2.unpack_from(buffer, _LSO_V2_AT)),
        _unpack_checksum(_CHECKSUM.unpack_from(buffer, _CHECKSUM_AT)),
    )


def pack_ipsec_v2(offload: OffloadCapabilities) -> bytes:
    """Build an NDIS_IPSEC_OFFLOAD_V2: its members are those of the type, in order."""
    return packed(_IPSEC_V2, *(getattr(offload, member.name) for member in fields(offload)))


def _unpack_ipsec_v2(values: tuple[int, ...]) -> OffloadCapabilities:
    return OffloadCapabilities(values[0], *(bool(value) for value in values[1:12]), *values[12:])


def _pack_ipsec_v1(offload: OffloadCapabilitiesV1) -> bytes:
    members = [getattr(offload, member.name) for member in fields(offload)]
    encapsulation, ah_esp, transport_tunnel, options, udp_esp = members[:5]
    ah, esp = members[5:11], members[11:]
    return packed(
        _IPSEC_V1,
        encapsulation,
        ah_esp,
        transport_tunnel,
        options,
        udp_esp << V1_UDP_ESP_SHIFT,
        _joined(IPSEC_V1_AH, ah),
        _joined(IPSEC_V1_ESP, [esp[0], False, *esp[1:]]),
    )


def _unpack_ipsec_v1(values: tuple[int, ...]) -> OffloadCapabilitiesV1:
    encapsulation, ah_esp, transport_tunnel, options, flags, ah, esp = values
    md5, sha1, ah_transport, ah_tunnel, ah_send, ah_receive = _parted(IPSEC_V1_AH, ah)
    des, _, triple_des, null, transport, tunnel, send, receive = _parted(IPSEC_V1_ESP, esp)
    return OffloadCapabilitiesV1(
        encapsulation=encapsulation,
        ah_esp_combined=bool(ah_esp),
        transport_tunnel_combined=bool(transport_tunnel),
        ipv4_options=bool(options),
        udp_esp=flags >> V1_UDP_ESP_SHIFT & ALL_UDP_ESP,
        ah_md5=md5,
        ah_sha1=sha1,
        ah_transport=ah_transport,
        ah_tunnel=ah_tunnel,
        ah_send=ah_send,
        ah_receive=ah_receive,
        esp_des=des,
        esp_triple_des=triple_des,
        esp_null=null,
        esp_transport=transport,
        esp_tunnel=tunnel,
        esp_send=send,
        esp_receive=receive,
    )


def _pack_checksum(offload: ChecksumCapabilities) -> bytes:
    ipv4 = (ETHERNET, _joined(CHECKSUM_IPV4, [True] * 5)) if offload.ipv4 else (0, 0)
    ipv6 = (ETHERNET, _joined(CHECKSUM_IPV6, [True] * 4)) if offload.ipv6 else (0, 0)
    return packed(_CHECKSUM, *ipv4, 0, 0, *ipv6, 0, 0)


def _unpack_checksum(values: tuple[int, ...]) -> ChecksumCapabilities:
    tcp = CHECKSUM_IPV4[2]
    return ChecksumCapabilities(
        bool(values[0]) and tcp.of(values[1]) == _SUPPORTED,
        bool(values[4]) and tcp.of(values[5]) == _SUPPORTED,
    )


def _pack_lso_v1(offload: LargeSendCapabilities) -> bytes:
    if not offload.ipv4:
        return bytes(LSO_V1.size)
    options = _joined(LSO_V1_IPV4, [offload.tcp_options, offload.ip_options])
    return packed(_LSO_V1, ETHERNET, offload.max_offload_size, offload.min_segment_count, options)


def _pack_lso_v2(offload: LargeSendCapabilities) -> bytes:
    common = (ETHERNET, offload.max_offload_size, offload.min_segment_count)
    options = _joined(LSO_V2_IPV6, [offload.ip_options, offload.tcp_options])
    ipv4 = common if offload.ipv4 else (0, 0, 0)
    ipv6 = (*common, options) if offload.ipv6 else (0, 0, 0, 0)
    return packed(_LSO_V2, *ipv4, *ipv6)


def _unpack_large_send(v1: tuple[int, ...], v2: tuple[int, ...]) -> LargeSendCapabilities:
    """Give what both parts tell. IPv4 stands in both; its options are in V1 alone."""
    ipv4, ipv6 = bool(v1[0] or v2[0]), bool(v2[3])
    if ipv4:
        size, count = (v1 if v1[0] else v2)[1:3]
        tcp_options, ip_options = _parted(LSO_V1_IPV4, v1[3])
    elif ipv6:
        size, count = v2[4:6]
        ip_options, tcp_options = _parted(LSO_V2_IPV6, v2[6])
    else:
        return NO_LARGE_SEND
    return LargeSendCapabilities(ipv4, ipv6, size, count, tcp_options, ip_options)


def _joined(table: tuple[Bits, ...], values: list[bool]) -> int:
    """Put SUPPORTED or NOT_SUPPORTED into the bit-fields."""
    pairs = zip(table, values, strict=True)
    return sum((_SUPPORTED if value else _NOT_SUPPORTED) << bits.shift for bits, value in pairs)


def _parted(table: tuple[Bits, ...], value: int) -> list[bool]:
    return [bits.of(value) == _SUPPORTED for bits in table]


def revision_and_size(
    buffer: Buffer, name: str, object_type: int, sizes: Mapping[int, int]
) -> tuple[int, int]:
    """Give the revision this module handles and the size of a structure that grew with its revisions.

    Raises:
        StructError: see `unpack_offload`.
    """
    require_length(buffer, sizes[1], name)
    kind, revision, size = _HEADER.unpack_from(buffer)
    if kind != object_type:
        refuse(f"{name} has another object type", "Header.Type", kind, f"{object_type:#x}")
    if revision < 1:
        refuse(f"{name} has an unknown revision", "Header.Revision", revision, "1 or more")
    handled = min(revision, max(sizes))
    needed = sizes[handled]
    if size < needed:
        raise StructError(
            NdisStatus.INVALID_LENGTH,
            f"{name} of revision {revision} is larger",
            field="Header.Size",
            value=str(size),
            allowed=f"{needed} or more",
            bytes_needed=needed,
        )
    require_length(buffer, size, name)
    return handled, size
