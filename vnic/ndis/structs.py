"""The binary form of the V2 SA requests: ADD_SA, ADD_SA_EX, UPDATE_SA, DELETE_SA.

Law: bytes to typed requests of `ndis.oid` and back; what a NIC can do is not asked here. Bytes of any content
give a value or a StructError, nothing else. A fault in the chain of a list refuses the whole list; a fault
inside an entry is raised when that entry is read, so that the others can go on (R89-R91).

Byte order: addresses and SPI as on the wire, all else little-endian. A list is one buffer; `Next` holds the
byte offset of the next entry from the start of the buffer, and 0 ends it. Keys of ADD_SA follow their entry;
those of ADD_SA_EX are at KeyOffset from the start of the structure.

The V1 structures are `ndis.v1_structs`, capabilities `ndis.offload_structs`, configuration
`ndis.configuration_structs`.

Source: IPSEC_OFFLOAD_V2_ADD_SA, _ADD_SA_EX, _UPDATE_SA, _DELETE_SA, _SECURITY_ASSOCIATION, _ALGORITHM_INFO
(sheet §4.5-§4.7, R87-R123).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from vnic.errors import OidError, RequestError
from vnic.ipsec.association import KeyMaterial
from vnic.ndis.layout import OBJECT_HEADER, OBJECT_TYPE_DEFAULT, Buffer, Layout, Member
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oid import NO_ALGORITHM, AddSa, AlgorithmInfo, DeleteSa, Operation, SaElement, UpdateSa
from vnic.ndis.status import NdisStatus

ALGORITHM_INFO = Layout(
    "IPSEC_OFFLOAD_V2_ALGORITHM_INFO",
    16,
    (
        Member("Identifier", 0x00, "I"),
        Member("KeyLength", 0x04, "I"),
        Member("KeyOffsetBytes", 0x08, "I"),
        Member("AdditionalInfo", 0x0C, "I"),
    ),
)

SECURITY_ASSOCIATION = Layout(
    "IPSEC_OFFLOAD_V2_SECURITY_ASSOCIATION",
    48,
    (
        Member("Flags", 0x00, "I"),
        Member("Operation", 0x04, "I"),
        Member("Spi", 0x08, "4s"),
        *ALGORITHM_INFO.within("AuthenticationAlgorithm", 0x0C),
        *ALGORITHM_INFO.within("EncryptionAlgorithm", 0x1C),
        Member("SequenceNumberHighOrder", 0x2C, "I"),
    ),
)

ADD_SA = Layout(
    "IPSEC_OFFLOAD_V2_ADD_SA",
    176,
    (
        *OBJECT_HEADER.within("Header", 0x00),
        Member("Next", 0x08, "Q"),
        Member("NumExtHdrs", 0x10, "I"),
        Member("Flags", 0x14, "I"),
        Member("IPv6Endpoints.SrcAddr", 0x18, "16s"),
        Member("IPv6Endpoints.DestAddr", 0x28, "16s"),
        Member("OffloadHandle", 0x38, "Q"),
        Member("UdpEspEncapsulation", 0x40, "I"),
        *SECURITY_ASSOCIATION.within("SecAssoc[0]", 0x44),
        *SECURITY_ASSOCIATION.within("SecAssoc[1]", 0x74),
        Member("KeyLength", 0xA4, "I"),
        Member("KeyData", 0xA8, "1s"),
    ),
    views=(Member("IPv4Endpoints.SrcAddr", 0x18, "4s"), Member("IPv4Endpoints.DestAddr", 0x1C, "4s")),
)

ADD_SA_EX = Layout(
    "IPSEC_OFFLOAD_V2_ADD_SA_EX",
    176,
    (
        *OBJECT_HEADER.within("Header", 0x00),
        Member("NumExtHdrs", 0x04, "I"),
        Member("Flags", 0x08, "I"),
        Member("IPv6Endpoints.SrcAddr", 0x0C, "16s"),
        Member("IPv6Endpoints.DestAddr", 0x1C, "16s"),
        Member("OffloadHandle", 0x30, "Q"),
        Member("UdpEspEncapsulation", 0x38, "I"),
        *SECURITY_ASSOCIATION.within("SecAssoc[0]", 0x3C),
        *SECURITY_ASSOCIATION.within("SecAssoc[1]", 0x6C),
        Member("KeyLength", 0x9C, "I"),
        Member("KeyOffset", 0xA0, "I"),
        Member("SourceSwitchPortId", 0xA4, "I"),
        Member("VlanId", 0xA8, "H"),
    ),
    views=(Member("IPv4Endpoints.SrcAddr", 0x0C, "4s"), Member("IPv4Endpoints.DestAddr", 0x10, "4s")),
)

UPDATE_SA = Layout(
    "IPSEC_OFFLOAD_V2_UPDATE_SA",
    32,
    (
        *OBJECT_HEADER.within("Header", 0x00),
        Member("OffloadHandle", 0x08, "Q"),
        Member("Operation", 0x10, "I"),
        Member("Spi", 0x14, "4s"),
        Member("SequenceNumberHighOrder", 0x18, "I"),
    ),
)

DELETE_SA = Layout(
    "IPSEC_OFFLOAD_V2_DELETE_SA",
    24,
    (
        *OBJECT_HEADER.within("Header", 0x00),
        Member("Next", 0x08, "Q"),
        Member("OffloadHandle", 0x10, "Q"),
    ),
)

REVISION_1 = 1
SIZEOF_ADD_SA_REVISION_1 = ADD_SA.end_of("KeyData")
SIZEOF_ADD_SA_EX_REVISION_1 = ADD_SA_EX.end_of("VlanId")
SIZEOF_UPDATE_SA_REVISION_1 = UPDATE_SA.end_of("SequenceNumberHighOrder")
SIZEOF_DELETE_SA_REVISION_1 = DELETE_SA.end_of("OffloadHandle")

FLAG_INBOUND = 0x1
FLAG_IPV6 = 0x10
FLAG_ESN_SA = 0x1
MAX_EXTENSION_HEADERS = 2

MAX_KEY_AREA = 4096
"""Bytes of keys an entry may claim. Four keys of the longest algorithm are 4 * 36 = 144; the bound keeps a
lying length from being answered with a BytesNeeded of gigabytes."""

LIST_ALIGNMENT = 8
"""Entries begin where a pointer may stand."""


class StructError(OidError):
    """An information buffer that is not the structure it should be.

    Args:
        bytes_needed: with BUFFER_TOO_SHORT and INVALID_LENGTH the length that would do, else 0.
    """

    def __init__(
        self,
        status: NdisStatus,
        message: str,
        *,
        field: str = "",
        value: str = "",
        allowed: str = "",
        bytes_needed: int = 0,
    ) -> None:
        super().__init__(status, message, field=field, value=value, allowed=allowed)
        self.bytes_needed = bytes_needed


def refuse(message: str, field: str, value: int, allowed: str) -> NoReturn:
    """Raise INVALID_DATA for a member that is out of bounds (R74)."""
    raise StructError(
        NdisStatus.INVALID_DATA, message, field=field, value=f"{value:#x}", allowed=allowed
    ) from None


def require_length(buffer: Buffer, needed: int, name: str) -> None:
    """Raise BUFFER_TOO_SHORT unless the buffer has `needed` bytes."""
    if len(buffer) < needed:
        raise StructError(
            NdisStatus.BUFFER_TOO_SHORT,
            f"the information buffer ends inside {name}",
            field="InformationBufferLength",
            value=str(len(buffer)),
            allowed=f"{needed} bytes or more",
            bytes_needed=needed,
        )


def refuse_header(
    layout: Layout, header: tuple[int, int, int], object_type: int, size: int, where: str = ""
) -> NoReturn:
    """Say what is wrong with a header (type, revision, size) that is not the one of `layout` (R95)."""
    kind, revision, given = header
    name = layout.name + where
    if kind != object_type:
        refuse(f"{name} has another object type", "Header.Type", kind, f"{object_type:#x}")
    if revision != REVISION_1:
        refuse(f"{name} has an unknown revision", "Header.Revision", revision, "1")
    raise StructError(
        NdisStatus.INVALID_LENGTH,
        f"{name} has a size that is not its own",
        field="Header.Size",
        value=str(given),
        allowed=" or ".join(str(number) for number in sorted({size, layout.size})),
        bytes_needed=size,
    )


# --- lists -------------------------------------------------------------------------------------------------

_ADD_SA_CHAIN = struct.Struct("<BBH4xQ148xI")
_DELETE_SA_CHAIN = DELETE_SA.struct(last="Next")
assert _ADD_SA_CHAIN.size == ADD_SA.offset_of("KeyData")

_KEY_DATA = ADD_SA.offset_of("KeyData")
_ADD_SIZES = (SIZEOF_ADD_SA_REVISION_1, ADD_SA.size)


def add_sa_entries(buffer: Buffer) -> list[int]:
    """Give the offsets of the entries of an ADD_SA list, in order.

    Chain and headers of all entries are sound then: every entry with its key area lies inside the buffer,
    none overlaps the next, and the list ends. What is inside an entry has not been looked at.

    Raises:
        StructError: BUFFER_TOO_SHORT when an entry or its keys end behind the buffer; INVALID_LENGTH for a
            wrong Header.Size; INVALID_DATA for a wrong type or revision, or a `Next` that does not lead
            forward to an aligned entry inside the buffer.
    """
    unpack, need, size = _ADD_SA_CHAIN.unpack_from, _KEY_DATA, len(buffer)
    limit = _aligned(size)  # a list cut between two entries is short, not wrong
    entries: list[int] = []
    offset = 0
    while True:
        if offset + need > size:
            require_length(buffer, offset + SIZEOF_ADD_SA_REVISION_1, f"ADD_SA entry {len(entries)}")
        kind, revision, header_size, following, key_length = unpack(buffer, offset)
        if kind != OBJECT_TYPE_DEFAULT or revision != REVISION_1 or header_size not in _ADD_SIZES:
            header = (kind, revision, header_size)
            where = f" (entry {len(entries)})"
            refuse_header(ADD_SA, header, OBJECT_TYPE_DEFAULT, SIZEOF_ADD_SA_REVISION_1, where)
        if key_length > MAX_KEY_AREA:
            refuse("the key area is too long", "KeyLength", key_length, f"0 to {MAX_KEY_AREA}")
        end = offset + need + key_length
        if end < offset + header_size:
            end = offset + header_size
        if end > size:
            require_length(buffer, end, f"the keys of ADD_SA entry {len(entries)}")
        entries.append(offset)
        if following == 0:
            return entries
        if following < end or following > limit or following % LIST_ALIGNMENT:
            _refuse_next(following, end, limit, len(entries) - 1)
        offset = following


def delete_sa_entries(buffer: Buffer) -> list[int]:
    """Give the offsets of the entries of a DELETE_SA list, in order.

    Raises:
        StructError: as for `add_sa_entries`.
    """
    unpack, need, size = _DELETE_SA_CHAIN.unpack_from, DELETE_SA.size, len(buffer)
    limit = _aligned(size)  # a list cut between two entries is short, not wrong
    entries: list[int] = []
    offset = 0
    while True:
        if offset + need > size:
            require_length(buffer, offset + need, f"DELETE_SA entry {len(entries)}")
        kind, revision, header_size, following = unpack(buffer, offset)
        if kind != OBJECT_TYPE_DEFAULT or revision != REVISION_1 or header_size != need:
            header = (kind, revision, header_size)
            refuse_header(DELETE_SA, header, OBJECT_TYPE_DEFAULT, need, f" (entry {len(entries)})")
        entries.append(offset)
        if following == 0:
            return entries
        if following < offset + need or following > limit or following % LIST_ALIGNMENT:
            _refuse_next(following, offset + need, limit, len(entries) - 1)
        offset = following


def _refuse_next(following: int, end: int, limit: int, entry: int) -> NoReturn:
    raise StructError(
        NdisStatus.INVALID_DATA,
        f"Next of entry {entry} does not lead to an entry of its own",
        field="Next",
        # Eight bytes that are no offset may be those of a key that stands in the wrong place.
        value=f"{following:#x}" if following >> 32 == 0 else "beyond any buffer",
        allowed=f"0, or a multiple of {LIST_ALIGNMENT} from {end} to {limit}",
    )


# --- reading -----------------------------------------------------------------------------------------------

_ADD_SA_ENTRY = ADD_SA.struct("NumExtHdrs", "KeyLength", skip=("OffloadHandle",))
_ADD_SA_EX_ENTRY = ADD_SA_EX.struct("NumExtHdrs", "KeyOffset", skip=("OffloadHandle",))
_HANDLE = struct.Struct("<Q")
_HEADER = OBJECT_HEADER.struct()
_UPDATE_SA = UPDATE_SA.struct("OffloadHandle")

_ADD_SA_HANDLE = ADD_SA.offset_of("OffloadHandle")
_ADD_SA_EX_HANDLE = ADD_SA_EX.offset_of("OffloadHandle")
_DELETE_SA_HANDLE = DELETE_SA.offset_of("OffloadHandle")

_OPERATIONS = {operation.value: operation for operation in Operation}
_UDP_ESP = frozenset((0, 1, 2, 4, 8))
_FAMILY_FLAGS = FLAG_INBOUND | FLAG_IPV6


def read_add_sa(buffer: Buffer, offset: int) -> AddSa:
    """Give one entry of an ADD_SA list whose chain `add_sa_entries` has found sound.

    Raises:
        StructError: INVALID_DATA: NumExtHdrs, Flags, UdpEspEncapsulation or Operation is none of its values;
            the EncryptionAlgorithm of an AH element is not all zero (R102); keys overlap or are outside the
            key area. BUFFER_TOO_SHORT: there is no entry at `offset`.
    """
    start = offset + _KEY_DATA
    if start > len(buffer):
        require_length(buffer, start, "an ADD_SA entry")
    values = _ADD_SA_ENTRY.unpack_from(buffer, offset)
    key_length = values[29]
    if start + key_length > len(buffer):
        refuse("the keys end behind the buffer", "KeyLength", key_length, f"0 to {len(buffer) - start}")
    return _bundle(values, buffer, start, key_length)


def write_add_sa_handle(buffer: bytearray, offset: int, handle: int) -> None:
    """Write OffloadHandle of the entry at `offset`; 0 says that it failed (R88, R91)."""
    _HANDLE.pack_into(buffer, offset + _ADD_SA_HANDLE, handle)


def read_add_sa_ex(buffer: Buffer) -> AddSa:
    """Give the one SA bundle of an ADD_SA_EX. The reserved members are ignored (R110).

    Raises:
        StructError: as for `add_sa_entries` and `read_add_sa`; also INVALID_DATA for a KeyOffset that points
            into the structure itself.
    """
    require_header(buffer, ADD_SA_EX, OBJECT_TYPE_DEFAULT, SIZEOF_ADD_SA_EX_REVISION_1)
    values = _ADD_SA_EX_ENTRY.unpack_from(buffer)
    key_length, start = values[29], values[30]
    if key_length > MAX_KEY_AREA:
        refuse("the key area is too long", "KeyLength", key_length, f"0 to {MAX_KEY_AREA}")
    if key_length:
        if not SIZEOF_ADD_SA_EX_REVISION_1 <= start <= max(MAX_KEY_AREA, len(buffer)):
            allowed = f"{SIZEOF_ADD_SA_EX_REVISION_1} to the end of the buffer"
            refuse("the keys are not behind the structure", "KeyOffset", start, allowed)
        require_length(buffer, start + key_length, "the keys of ADD_SA_EX")
    return _bundle(values, buffer, start, key_length)


def write_add_sa_ex_handle(buffer: bytearray, handle: int) -> None:
    """Write OffloadHandle of an ADD_SA_EX; 0 says that it failed (R88, R91)."""
    _HANDLE.pack_into(buffer, _ADD_SA_EX_HANDLE, handle)


def read_delete_sa(buffer: Buffer, offset: int) -> DeleteSa:
    """Give one entry of a DELETE_SA list whose chain `delete_sa_entries` has found sound."""
    require_length(buffer, offset + DELETE_SA.size, "a DELETE_SA entry")
    return DeleteSa(OffloadHandle(_HANDLE.unpack_from(buffer, offset + _DELETE_SA_HANDLE)[0]))


def read_update_sa(buffer: Buffer) -> UpdateSa:
    """Give an UPDATE_SA; it is no list (sheet appendix A3).

    Raises:
        StructError: as for `add_sa_entries`; INVALID_DATA for an undefined Operation.
    """
    require_header(buffer, UPDATE_SA, OBJECT_TYPE_DEFAULT, SIZEOF_UPDATE_SA_REVISION_1)
    handle, operation, spi, high = _UPDATE_SA.unpack_from(buffer)
    if operation not in _OPERATIONS:
        refuse("undefined operation", "Operation", operation, "1 (AH), 2 (ESP)")
    return UpdateSa(OffloadHandle(handle), _OPERATIONS[operation], int.from_bytes(spi, "big"), high)


def require_header(buffer: Buffer, layout: Layout, object_type: int, size: int) -> None:
    """Hold the header of a structure that has one revision against its table.

    Raises:
        StructError: BUFFER_TOO_SHORT, INVALID_LENGTH, or INVALID_DATA for type and revision.
    """
    require_length(buffer, size, layout.name)
    header = _HEADER.unpack_from(buffer)
    if header[:2] != (object_type, REVISION_1) or header[2] not in (size, layout.size):
        refuse_header(layout, header, object_type, size)
    require_length(buffer, header[2], layout.name)


def _bundle(values: tuple[Any, ...], buffer: Buffer, start: int, key_length: int) -> AddSa:
    """Give the request whose members from NumExtHdrs on are `values` and whose key area is at `start`."""
    count, flags, source, destination, udp_esp = values[:5]
    if not 1 <= count <= MAX_EXTENSION_HEADERS:
        refuse("an SA bundle has one or two elements (R96)", "NumExtHdrs", count, "1, 2")
    if flags & ~_FAMILY_FLAGS:
        refuse("undefined flags", "Flags", flags, "INBOUND 0x1, IPv6 0x10")
    if udp_esp not in _UDP_ESP:
        refuse("no kind of UDP encapsulation", "UdpEspEncapsulation", udp_esp, "0, 0x1, 0x2, 0x4, 0x8")
    if not flags & FLAG_IPV6:
        source, destination = source[:4], source[4:8]
    used: list[tuple[int, int]] = []
    elements: tuple[SaElement, ...]
    if count == 1:
        elements = (_element(values[5:17], 0, buffer, start, key_length, used),)
    else:
        elements = (
            _element(values[5:17], 0, buffer, start, key_length, used),
            _element(values[17:29], 1, buffer, start, key_length, used),
        )
    if len(used) > 1:
        _require_apart(used)
    return AddSa(bool(flags & FLAG_INBOUND), source, destination, elements, udp_esp)


def _element(
    values: tuple[Any, ...],
    index: int,
    buffer: Buffer,
    start: int,
    key_length: int,
    used: list[tuple[int, int]],
) -> SaElement:
    """Give one SecAssoc element, and note in `used` where its keys are."""
    flags, number, spi = values[:3]
    operation = _OPERATIONS.get(number)
    if operation is None:
        refuse("undefined operation", f"SecAssoc[{index}].Operation", number, "1 (AH), 2 (ESP)")
    if flags & ~FLAG_ESN_SA:
        refuse("undefined flags", f"SecAssoc[{index}].Flags", flags, "0, ESN_SA 0x1")
    if operation is Operation.AH and any(values[7:11]):
        field = f"SecAssoc[{index}].EncryptionAlgorithm"
        refuse("AH does not encrypt: all members are zero (R102)", field, values[7], "0")
    algorithms = []
    for identifier, length, offset, info in (values[3:7], values[7:11]):
        if not identifier:
            # R105: its key length and offset mean nothing.
            algorithms.append(NO_ALGORITHM)
            continue
        if offset + length > key_length:
            field = f"SecAssoc[{index}].KeyOffsetBytes"
            refuse("a key is outside the key area", field, offset, f"0 to {key_length} - {length}")
        begin = start + offset
        algorithms.append(AlgorithmInfo(identifier, KeyMaterial(bytes(buffer[begin : begin + length])), info))
        if length:
            used.append((offset, offset + length))
    return SaElement(
        operation, int.from_bytes(spi, "big"), algorithms[0], algorithms[1], bool(flags), values[11]
    )


def _require_apart(used: list[tuple[int, int]]) -> None:
    """Refuse keys that share bytes: they stand one behind the other (R106)."""
    used.sort()
    end = 0
    for begin, following in used:
        if begin < end:
            refuse("two keys overlap (R106)", "KeyOffsetBytes", begin, f"{end} or more")
        end = following


# --- building ----------------------------------------------------------------------------------------------

_ADD_SA_WRITER = ADD_SA.struct(last="KeyLength")
_ADD_SA_EX_WRITER = ADD_SA_EX.struct(last="KeyOffset")
_UPDATE_SA_WRITER = UPDATE_SA.struct()
_DELETE_SA_WRITER = DELETE_SA.struct()
_NO_ELEMENT = (0, 0, bytes(4), *(0,) * 9)


def pack_add_sa(requests: Sequence[AddSa]) -> bytearray:
    """Build an ADD_SA list. `portion`, `version` and `filter` have no place in it.

    Raises:
        RequestError: no request, addresses of no family, none or more than two elements, or a number that
            does not fit its member.
    """
    if not requests:
        raise RequestError("an ADD_SA list has at least one entry", field="requests", value="0")
    buffer = bytearray()
    for number, request in enumerate(requests):
        members, keys = _members(request)
        offset = len(buffer)
        length = _aligned(max(ADD_SA.size, _KEY_DATA + len(keys)))
        following = offset + length if number + 1 < len(requests) else 0
        header = (OBJECT_TYPE_DEFAULT, REVISION_1, SIZEOF_ADD_SA_REVISION_1, following)
        entry = packed(_ADD_SA_WRITER, *header, *members, len(keys))
        buffer += (entry + keys).ljust(length, b"\0")
    return buffer


def pack_add_sa_ex(request: AddSa) -> bytearray:
    """Build an ADD_SA_EX, its keys behind the structure.

    Raises:
        RequestError: as for `pack_add_sa`.
    """
    members, keys = _members(request)
    header = (OBJECT_TYPE_DEFAULT, REVISION_1, SIZEOF_ADD_SA_EX_REVISION_1)
    entry = packed(_ADD_SA_EX_WRITER, *header, *members, len(keys), ADD_SA_EX.size)
    return bytearray(entry.ljust(ADD_SA_EX.size, b"\0") + keys)


def pack_update_sa(request: UpdateSa) -> bytearray:
    """Build an UPDATE_SA."""
    header = (OBJECT_TYPE_DEFAULT, REVISION_1, SIZEOF_UPDATE_SA_REVISION_1)
    spi = packed(_SPI, request.spi)
    members = (request.handle, request.operation, spi, request.sequence_number_high_order)
    return bytearray(packed(_UPDATE_SA_WRITER, *header, *members).ljust(UPDATE_SA.size, b"\0"))


def pack_delete_sa(handles: Iterable[int]) -> bytearray:
    """Build a DELETE_SA list.

    Raises:
        RequestError: no handle.
    """
    names = list(handles)
    if not names:
        raise RequestError("a DELETE_SA list has at least one entry", field="handles", value="0")
    buffer = bytearray()
    header = (OBJECT_TYPE_DEFAULT, REVISION_1, SIZEOF_DELETE_SA_REVISION_1)
    for number, handle in enumerate(names, 1):
        following = number * DELETE_SA.size if number < len(names) else 0
        buffer += packed(_DELETE_SA_WRITER, *header, following, handle)
    return buffer


_SPI = struct.Struct(">I")


def packed(form: struct.Struct, *values: Any) -> bytes:
    """Pack, and say as a RequestError what does not fit.

    Raises:
        RequestError: a number is out of the range of its member.
    """
    try:
        return form.pack(*values)
    except struct.error as error:
        raise RequestError(f"a number does not fit its member: {error}") from None


def _members(request: AddSa) -> tuple[list[Any], bytes]:
    """Give the members from NumExtHdrs to SecAssoc[1], OffloadHandle included, and the key area."""
    family = {4: 0, 16: FLAG_IPV6}.get(len(request.destination))
    if family is None or len(request.source) != len(request.destination):
        raise RequestError(
            "source and destination are not two addresses of one family",
            field="destination",
            allowed="two addresses of 4 or of 16 bytes",
        )
    if not 1 <= len(request.elements) <= MAX_EXTENSION_HEADERS:
        raise RequestError(
            "an SA bundle has one or two elements (R96)",
            field="elements",
            value=str(len(request.elements)),
            allowed="1, 2",
        )
    if family:
        addresses = (request.source, request.destination)
    else:
        addresses = (request.source + request.destination + bytes(8), bytes(16))
    members: list[Any] = [
        len(request.elements),
        family | (FLAG_INBOUND if request.inbound else 0),
        *addresses,
        0,
        request.udp_esp_encapsulation,
    ]
    keys = b""
    for element in request.elements:
        keys = _add_element(members, keys, element)
    if len(request.elements) == 1:
        members += _NO_ELEMENT
    return members, keys


def _add_element(members: list[Any], keys: bytes, element: SaElement) -> bytes:
    """Append the members of an element, and give the key area with its keys: authentication, encryption."""
    flags = FLAG_ESN_SA if element.esn else 0
    members += (flags, element.operation, packed(_SPI, element.spi))
    for algorithm in (element.authentication, element.encryption):
        if algorithm.identifier:
            members += (algorithm.identifier, len(algorithm.key), len(keys), algorithm.additional_info)
            keys += algorithm.key.reveal()
        else:
            members += (0, 0, 0, 0)
    members.append(element.sequence_number_high_order)
    return keys


def _aligned(length: int) -> int:
    return -(-length // LIST_ALIGNMENT) * LIST_ALIGNMENT
