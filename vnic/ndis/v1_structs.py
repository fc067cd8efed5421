"""The binary form of the V1 SA requests: ADD_SA, DELETE_SA, ADD_UDPESP_SA, DELETE_UDPESP_SA.

Law: as `ndis.structs`. The V1 structures have no header, no list and no revision.

Byte order: addresses, masks and SPI as on the wire; ports and all else little-endian. KeyMat holds the keys
of the elements in their order, and of each element the confidentiality key before the integrity key, as the
pages of the OID say (OFFLOAD_ALGO_INFO says otherwise, sheet appendix A9). There are no offsets, so KeyLen is
exactly the sum of the key lengths.

V1 algorithms become the V2 identifiers of `ipsec.algorithms`; an ESP element without confidentiality becomes
null encryption. algoRounds is ignored: none of these algorithms has a variable number of rounds.

Source: OFFLOAD_IPSEC_ADD_SA, _DELETE_SA, _ADD_UDPESP_SA, _DELETE_UDPESP_SA, OFFLOAD_SECURITY_ASSOCIATION,
OFFLOAD_ALGO_INFO (sheet §4.8, §9.3, R124-R149).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from vnic.errors import RequestError
from vnic.ipsec.association import KeyMaterial, Mode
from vnic.ndis.capabilities import UDP_ESP_TRANSPORT, UDP_ESP_TUNNEL
from vnic.ndis.layout import Buffer, Layout, Member
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oid import (
    NO_ALGORITHM,
    AddSa,
    AlgorithmInfo,
    DeleteSa,
    OidVersion,
    Operation,
    SaElement,
    TrafficFilter,
)
from vnic.ndis.structs import MAX_EXTENSION_HEADERS, MAX_KEY_AREA, packed, refuse, require_length

V1_ALGO_INFO = Layout(
    "OFFLOAD_ALGO_INFO",
    12,
    (Member("algoIdentifier", 0x0, "I"), Member("algoKeylen", 0x4, "I"), Member("algoRounds", 0x8, "I")),
)

V1_SECURITY_ASSOCIATION = Layout(
    "OFFLOAD_SECURITY_ASSOCIATION",
    44,
    (
        Member("Operation", 0x00, "I"),
        Member("SPI", 0x04, "4s"),
        *V1_ALGO_INFO.within("IntegrityAlgo", 0x08),
        *V1_ALGO_INFO.within("ConfAlgo", 0x14),
        *V1_ALGO_INFO.within("Reserved", 0x20),
    ),
)


def _filter_members(destination: str) -> tuple[Member, ...]:
    return (
        Member("SrcAddr", 0x00, "4s"),
        Member("SrcMask", 0x04, "4s"),
        Member(f"{destination}Addr", 0x08, "4s"),
        Member(f"{destination}Mask", 0x0C, "4s"),
        Member("Protocol", 0x10, "I"),
        Member("SrcPort", 0x14, "H"),
        Member("DestPort", 0x16, "H"),
        Member("SrcTunnelAddr", 0x18, "4s"),
        Member("DestTunnelAddr", 0x1C, "4s"),
        Member("Flags", 0x20, "H"),
        Member("NumSAs", 0x22, "h"),
        *V1_SECURITY_ASSOCIATION.within("SecAssoc[0]", 0x24),
        *V1_SECURITY_ASSOCIATION.within("SecAssoc[1]", 0x50),
        *V1_SECURITY_ASSOCIATION.within("SecAssoc[2]", 0x7C),
        Member("OffloadHandle", 0xA8, "Q"),
    )


V1_ADD_SA = Layout(
    "OFFLOAD_IPSEC_ADD_SA",
    184,
    (*_filter_members("Dest"), Member("KeyLen", 0xB0, "I"), Member("KeyMat", 0xB4, "1s")),
)

V1_ADD_UDPESP_SA = Layout(
    "OFFLOAD_IPSEC_ADD_UDPESP_SA",
    200,
    (
        *_filter_members("Dst"),
        Member("EncapTypeEntry.UdpEncapType", 0xB0, "I"),
        Member("EncapTypeEntry.DstEncapPort", 0xB4, "H"),
        Member("EncapTypeEntryOffldHandle", 0xB8, "Q"),
        Member("KeyLen", 0xC0, "I"),
        Member("KeyMat", 0xC4, "1s"),
    ),
)

V1_DELETE_SA = Layout("OFFLOAD_IPSEC_DELETE_SA", 8, (Member("OffloadHandle", 0x0, "Q"),))

V1_DELETE_UDPESP_SA = Layout(
    "OFFLOAD_IPSEC_DELETE_UDPESP_SA",
    16,
    (Member("OffloadHandle", 0x0, "Q"), Member("EncapTypeEntryOffldHandle", 0x8, "Q")),
)

V1_FLAG_INBOUND = 0x1
V1_FLAG_OUTBOUND = 0x2
V1_MAX_SAS = 3

V1_UDP_ENCAPSULATION_IKE = 0
"""OFFLOAD_IPSEC_UDPESP_ENCAPTYPE_IKE, reserved."""
V1_UDP_ENCAPSULATION_OTHER = 1

V1_CONFIDENTIALITY: Mapping[int, int] = {0: 0x001, 1: 0x002, 3: 0x004}
"""OFFLOAD_CONF_ALGO of an ESP element → V2 identifier: none, DES, 3DES."""
V1_INTEGRITY: Mapping[int, int] = {0: 0, 1: 0x001, 2: 0x002}
"""OFFLOAD_INTEGRITY_ALGO → V2 identifier: none, MD5, SHA."""

_TO_CONFIDENTIALITY = {v2: v1 for v1, v2 in V1_CONFIDENTIALITY.items()} | {0: 0}
_TO_INTEGRITY = {v2: v1 for v1, v2 in V1_INTEGRITY.items()}
_OPERATIONS = {operation.value: operation for operation in Operation}

_V1_ADD_SA = V1_ADD_SA.struct(last="KeyLen")
_V1_ADD_UDPESP_SA = V1_ADD_UDPESP_SA.struct(last="KeyLen")
_V1_DELETE_SA = V1_DELETE_SA.struct()
_V1_DELETE_UDPESP_SA = V1_DELETE_UDPESP_SA.struct()
_HANDLE = struct.Struct("<Q")
_SPI = struct.Struct(">I")

_FILTER_COUNT = 11
"""Members from SrcAddr to NumSAs."""
_ELEMENT_COUNT = len(V1_SECURITY_ASSOCIATION.members)
_ANY = bytes(4)
_HOST = b"\xff" * 4


class AddUdpEspSa(NamedTuple):
    """OFFLOAD_IPSEC_ADD_UDPESP_SA."""

    request: AddSa
    """`udp_esp_encapsulation` is UDP_ESP_TRANSPORT or UDP_ESP_TUNNEL, after its portion: what is inside or
    around it is not told by V1."""
    encap_type: int
    """V1_UDP_ENCAPSULATION_OTHER, or the reserved IKE."""
    port: int
    """DstEncapPort; 4500 is the only one in use (R140), and outbound it means nothing (R141)."""
    entry_handle: int
    """Parser entry the driver names; 0 is none (R143, R145). Outbound it means nothing (R146)."""


class DeleteUdpEspSa(NamedTuple):
    """OFFLOAD_IPSEC_DELETE_UDPESP_SA."""

    handle: OffloadHandle
    entry_handle: int
    """Parser entry to delete with the SA; 0 is none (R148, R149)."""


# --- reading -----------------------------------------------------------------------------------------------


def read_v1_add_sa(buffer: Buffer) -> AddSa:
    """Give the bundle of a V1 ADD_SA.

    With a tunnel address it is of the tunnel portion and its addresses are those of the tunnel (R128, R129);
    else of the transport portion, and its addresses are the filter's.

    Raises:
        StructError: BUFFER_TOO_SHORT: structure or keys end behind the buffer. INVALID_DATA: NumSAs, Flags,
            Operation or an algorithm is none of its values; an AH element with confidentiality (R131); a key
            for no algorithm; KeyLen is not the sum of the key lengths.
    """
    require_length(buffer, _V1_ADD_SA.size, V1_ADD_SA.name)
    values = _V1_ADD_SA.unpack_from(buffer)
    return _bundle(values, buffer, V1_ADD_SA.offset_of("KeyMat"), values[-1], 0)


def write_v1_add_sa_handle(buffer: bytearray, handle: int) -> None:
    """Write OffloadHandle of a V1 ADD_SA (R132)."""
    _HANDLE.pack_into(buffer, V1_ADD_SA.offset_of("OffloadHandle"), handle)


def read_v1_add_udpesp_sa(buffer: Buffer) -> AddUdpEspSa:
    """Give the bundle and the parser entry of a V1 ADD_UDPESP_SA. Protocol and port are not judged.

    Raises:
        StructError: as for `read_v1_add_sa`; INVALID_DATA for an undefined UdpEncapType.
    """
    require_length(buffer, _V1_ADD_UDPESP_SA.size, V1_ADD_UDPESP_SA.name)
    values = _V1_ADD_UDPESP_SA.unpack_from(buffer)
    encap_type, port, entry_handle, key_length = values[-4:]
    if encap_type not in (V1_UDP_ENCAPSULATION_IKE, V1_UDP_ENCAPSULATION_OTHER):
        refuse("undefined encapsulation type", "UdpEncapType", encap_type, "1 (OTHER)")
    tunnel = any(values[7]) or any(values[8])
    udp_esp = UDP_ESP_TUNNEL if tunnel else UDP_ESP_TRANSPORT
    request = _bundle(values, buffer, V1_ADD_UDPESP_SA.offset_of("KeyMat"), key_length, udp_esp)
    return AddUdpEspSa(request, encap_type, port, entry_handle)


def write_v1_add_udpesp_sa_handles(buffer: bytearray, handle: int, entry_handle: int) -> None:
    """Write both handles of a V1 ADD_UDPESP_SA (R143-R145)."""
    _HANDLE.pack_into(buffer, V1_ADD_UDPESP_SA.offset_of("OffloadHandle"), handle)
    _HANDLE.pack_into(buffer, V1_ADD_UDPESP_SA.offset_of("EncapTypeEntryOffldHandle"), entry_handle)


def read_v1_delete_sa(buffer: Buffer) -> DeleteSa:
    """Give the handle of a V1 DELETE_SA.

    Raises:
        StructError: BUFFER_TOO_SHORT.
    """
    require_length(buffer, V1_DELETE_SA.size, V1_DELETE_SA.name)
    return DeleteSa(OffloadHandle(_V1_DELETE_SA.unpack_from(buffer)[0]))


def read_v1_delete_udpesp_sa(buffer: Buffer) -> DeleteUdpEspSa:
    """Give both handles of a V1 DELETE_UDPESP_SA.

    Raises:
        StructError: BUFFER_TOO_SHORT.
    """
    require_length(buffer, V1_DELETE_UDPESP_SA.size, V1_DELETE_UDPESP_SA.name)
    handle, entry_handle = _V1_DELETE_UDPESP_SA.unpack_from(buffer)
    return DeleteUdpEspSa(OffloadHandle(handle), entry_handle)


def _bundle(values: tuple[Any, ...], buffer: Buffer, start: int, key_length: int, udp_esp: int) -> AddSa:
    """Give the request of members from SrcAddr on, whose keys begin at `start`."""
    source, source_mask, destination, destination_mask, protocol, source_port, destination_port = values[:7]
    source_tunnel, destination_tunnel, flags, count = values[7:_FILTER_COUNT]
    if flags not in (V1_FLAG_INBOUND, V1_FLAG_OUTBOUND):
        refuse("an SA has one direction", "Flags", flags, "INBOUND_SA 0x1, OUTBOUND_SA 0x2")
    if not 1 <= count <= MAX_EXTENSION_HEADERS:
        refuse("an SA bundle has one or two elements (R130)", "NumSAs", count, "1, 2")
    if key_length > MAX_KEY_AREA:
        refuse("the key area is too long", "KeyLen", key_length, f"0 to {MAX_KEY_AREA}")
    require_length(buffer, start + key_length, "KeyMat")
    keys = bytes(buffer[start : start + key_length])
    elements = []
    used = 0
    for index in range(count):
        begin = _FILTER_COUNT + index * _ELEMENT_COUNT
        element, used = _element(values[begin : begin + _ELEMENT_COUNT], index, keys, used)
        elements.append(element)
    if used != key_length:
        refuse("KeyLen is not the sum of the key lengths", "KeyLen", key_length, str(used))
    tunnel = any(source_tunnel) or any(destination_tunnel)
    return AddSa(
        flags == V1_FLAG_INBOUND,
        source_tunnel if tunnel else source,
        destination_tunnel if tunnel else destination,
        tuple(elements),
        udp_esp,
        Mode.TUNNEL if tunnel else Mode.TRANSPORT,
        OidVersion.V1,
        TrafficFilter(
            source,
            source_mask,
            destination,
            destination_mask,
            protocol,
            source_port,
            destination_port,
        ),
    )


def _element(values: tuple[Any, ...], index: int, keys: bytes, used: int) -> tuple[SaElement, int]:
    """Give one SecAssoc element, whose keys begin at `used`, and where they end."""
    number, spi, integrity, integrity_length, _, confidentiality, confidentiality_length = values[:7]
    operation = _OPERATIONS.get(number)
    name = f"SecAssoc[{index}]"
    if operation is None:
        refuse("undefined operation", f"{name}.Operation", number, "1 (AUTHENTICATE), 2 (ENCRYPT)")
    if integrity not in V1_INTEGRITY:
        refuse("undefined integrity algorithm", f"{name}.IntegrityAlgo", integrity, "0, 1 (MD5), 2 (SHA)")
    if confidentiality not in V1_CONFIDENTIALITY:
        allowed = "0, 1 (DES), 3 (3DES)"
        refuse("undefined confidentiality algorithm", f"{name}.ConfAlgo", confidentiality, allowed)
    if operation is Operation.AH and confidentiality:
        refuse("AH does not encrypt (R131)", f"{name}.ConfAlgo", confidentiality, "0")
    if confidentiality_length and not confidentiality:
        refuse("a key without an algorithm", f"{name}.ConfAlgo.algoKeylen", confidentiality_length, "0")
    if integrity_length and not integrity:
        refuse("a key without an algorithm", f"{name}.IntegrityAlgo.algoKeylen", integrity_length, "0")
    middle = used + confidentiality_length
    end = middle + integrity_length
    if end > len(keys):
        refuse("the keys do not fit KeyMat", "KeyLen", len(keys), f"{end} or more")
    authentication = encryption = NO_ALGORITHM
    if integrity:
        authentication = AlgorithmInfo(V1_INTEGRITY[integrity], KeyMaterial(keys[middle:end]))
    if operation is Operation.ESP:
        encryption = AlgorithmInfo(V1_CONFIDENTIALITY[confidentiality], KeyMaterial(keys[used:middle]))
    return SaElement(operation, int.from_bytes(spi, "big"), authentication, encryption), end


# --- building ----------------------------------------------------------------------------------------------


def pack_v1_add_sa(request: AddSa) -> bytearray:
    """Build a V1 ADD_SA.

    `portion` TUNNEL puts the addresses into the tunnel members. Without a `filter`, the filter is the
    addresses themselves for the transport portion, and everything for the tunnel portion.

    Raises:
        RequestError: what V1 cannot express: IPv6, ESN, other algorithms, an ICV length, a tunnel without
            addresses, or a filter that contradicts the addresses of the transport portion.
    """
    members, keys = _members(request)
    buffer = packed(_V1_ADD_SA, *members, len(keys)) + keys
    return bytearray(buffer.ljust(V1_ADD_SA.size, b"\0"))


def pack_v1_add_udpesp_sa(
    request: AddSa,
    encap_type: int = V1_UDP_ENCAPSULATION_OTHER,
    port: int = 4500,
    entry_handle: int = 0,
) -> bytearray:
    """Build a V1 ADD_UDPESP_SA; without a filter its Protocol is UDP (R142).

    Raises:
        RequestError: as for `pack_v1_add_sa`.
    """
    members, keys = _members(request, protocol=17)
    buffer = packed(_V1_ADD_UDPESP_SA, *members, encap_type, port, entry_handle, len(keys)) + keys
    return bytearray(buffer.ljust(V1_ADD_UDPESP_SA.size, b"\0"))


def pack_v1_delete_sa(handle: int) -> bytearray:
    """Build a V1 DELETE_SA."""
    return bytearray(packed(_V1_DELETE_SA, handle))


def pack_v1_delete_udpesp_sa(handle: int, entry_handle: int = 0) -> bytearray:
    """Build a V1 DELETE_UDPESP_SA."""
    return bytearray(packed(_V1_DELETE_UDPESP_SA, handle, entry_handle))


def _members(request: AddSa, protocol: int = 0) -> tuple[list[Any], bytes]:
    """Give the members from SrcAddr to OffloadHandle, and KeyMat."""
    if len(request.source) != 4 or len(request.destination) != 4:
        raise RequestError("V1 is for IPv4", field="destination", allowed="addresses of 4 bytes")
    if not 1 <= len(request.elements) <= MAX_EXTENSION_HEADERS:
        count = str(len(request.elements))
        raise RequestError("an SA bundle has one or two elements", field="elements", value=count)
    tunnel = request.portion is Mode.TUNNEL
    if tunnel and not any(request.source) and not any(request.destination):
        raise RequestError("a tunnel has addresses", field="destination", allowed="the end of the tunnel")
    traffic = request.filter or _own_filter(request, protocol)
    if not tunnel and (traffic.source, traffic.destination) != (request.source, request.destination):
        raise RequestError("the filter of a transport portion has the addresses of the SA", field="filter")
    members: list[Any] = [
        traffic.source,
        traffic.source_mask,
        traffic.destination,
        traffic.destination_mask,
        traffic.protocol,
        traffic.source_port,
        traffic.destination_port,
        request.source if tunnel else _ANY,
        request.destination if tunnel else _ANY,
        V1_FLAG_INBOUND if request.inbound else V1_FLAG_OUTBOUND,
        len(request.elements),
    ]
    keys = b""
    for element in request.elements:
        keys = _add_element(members, keys, element)
    members += [0, _ANY, *(0,) * 9] * (V1_MAX_SAS - len(request.elements))
    members.append(0)
    return members, keys


def _own_filter(request: AddSa, protocol: int) -> TrafficFilter:
    """Give the filter of a request that names none."""
    if request.portion is Mode.TUNNEL:
        return TrafficFilter(_ANY, _ANY, _ANY, _ANY, protocol)
    masks = [_HOST if any(address) else _ANY for address in (request.source, request.destination)]
    return TrafficFilter(request.source, masks[0], request.destination, masks[1], protocol)


def _add_element(members: list[Any], keys: bytes, element: SaElement) -> bytes:
    """Append the members of an element, and give KeyMat with its keys."""
    integrity = _TO_INTEGRITY.get(element.authentication.identifier)
    confidentiality = _TO_CONFIDENTIALITY.get(element.encryption.identifier)
    if integrity is None or confidentiality is None:
        raise RequestError(
            "V1 has no such algorithm", field="elements", allowed="MD5, SHA-1; null, DES, 3DES"
        )
    if element.esn or element.authentication.additional_info or element.encryption.additional_info:
        raise RequestError("V1 has neither ESN nor ICV lengths", field="elements")
    keys += element.encryption.key.reveal() + element.authentication.key.reveal()
    members += (element.operation, packed(_SPI, element.spi))
    members += (integrity, len(element.authentication.key), 0)
    members += (confidentiality, len(element.encryption.key), 0)
    members += (0, 0, 0)
    return keys
