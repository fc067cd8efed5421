"""OID requests of the control socket: messages to requests of the NIC, and results to messages.

Law: pure translation. What an information buffer holds is repeated nowhere: it may hold keys.

Source: sheet §4.1-§4.6.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from struct import Struct

from vnic.control.interface import OidReply
from vnic.control.interface import OidRequest as OidMessage
from vnic.control.oid_names import WITH_KEYS, name_of, number_of
from vnic.errors import OidError, RequestError
from vnic.ndis.oids import Oid, OidRequest, OidResult, RequestType
from vnic.ndis.structs import ADD_SA, ADD_SA_EX, DELETE_SA, add_sa_entries, delete_sa_entries
from vnic.ndis.v1_structs import V1_ADD_SA, V1_ADD_UDPESP_SA

ROOM = 4096
"""Bytes for the answer of a query that does not say how many."""

MAX_LENGTH = 1 << 20
"""Bytes of the longest information buffer."""

MAX_REQUEST_ID = (1 << 64) - 1
"""RequestId is a pointer."""

DELETES = frozenset(
    {
        Oid.TCP_TASK_IPSEC_DELETE_SA,
        Oid.TCP_TASK_IPSEC_DELETE_UDPESP_SA,
        Oid.TCP_TASK_IPSEC_OFFLOAD_V2_DELETE_SA,
    }
)
"""OIDs that take SAs away."""

_HANDLE = Struct("<Q")
_ADDED = {
    Oid.TCP_TASK_IPSEC_ADD_SA: V1_ADD_SA.offset_of("OffloadHandle"),
    Oid.TCP_TASK_IPSEC_ADD_UDPESP_SA: V1_ADD_UDPESP_SA.offset_of("OffloadHandle"),
    Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA: ADD_SA.offset_of("OffloadHandle"),
    Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA_EX: ADD_SA_EX.offset_of("OffloadHandle"),
}
_NAMED_BY_DELETE = DELETE_SA.offset_of("OffloadHandle")


def request_of(message: OidMessage) -> OidRequest:
    """Read an OID request.

    Raises:
        RequestError: the OID has no such name; the buffer is not Base64, or too long; the length or the id
            is out of range.
    """
    oid = number_of(message.oid)
    buffer = _decoded(message.information_buffer)
    length = message.information_buffer_length
    if length is not None and not len(buffer) <= length <= MAX_LENGTH:
        raise RequestError(
            "out of range",
            field="information_buffer_length",
            value=str(length)[:64],
            allowed=f"{len(buffer)} to {MAX_LENGTH} bytes",
        )
    request_id = message.request_id or 0
    if not 0 <= request_id <= MAX_REQUEST_ID:
        raise RequestError(
            "out of range",
            field="request_id",
            value=str(request_id)[:64],
            allowed=f"1 to {MAX_REQUEST_ID}, or 0 for a request that cannot be cancelled",
        )
    if message.request_type == "query":
        room = max(ROOM, len(buffer)) if length is None else length
        buffer += bytes(room - len(buffer))
        return OidRequest(oid, RequestType.QUERY, buffer, request_id)
    if length is not None and length != len(buffer):
        raise RequestError(
            "only a query says how much room there is; a set has the length of its buffer",
            field="information_buffer_length",
            value=str(length),
            allowed=str(len(buffer)),
        )
    return OidRequest(oid, RequestType.SET, buffer, request_id)


def _decoded(text: str | None) -> bytearray:
    try:
        buffer = bytearray(b64decode(text or "", validate=True))
    except (binascii.Error, ValueError):
        raise RequestError(
            "the information buffer is not Base64",
            field="information_buffer",
            allowed="Base64 as in RFC 4648 §4, with padding",
        ) from None
    if len(buffer) > MAX_LENGTH:
        raise RequestError(
            "the information buffer is too long",
            field="information_buffer",
            value=f"{len(buffer)} bytes",
            allowed=f"at most {MAX_LENGTH} bytes",
        )
    return buffer


def reply_of(request: OidRequest, result: OidResult) -> OidReply:
    """Write the answer."""
    return OidReply(
        oid=request.oid,
        oid_name=name_of(request.oid),
        status=result.status,
        status_name=result.status.label,
        information_buffer=b64encode(result.information_buffer).decode("ascii"),
        bytes_read=result.bytes_read,
        bytes_written=result.bytes_written,
        bytes_needed=result.bytes_needed,
        supported_revision=result.supported_revision,
        handles=added(request, result),
        message=result.message,
        field=result.field,
        value=result.value,
        allowed=result.allowed,
    )


def added(request: OidRequest, result: OidResult) -> list[int]:
    """Give the handles the NIC wrote into the entries of an addition, 0 for one that failed."""
    oid = request.oid
    offset = _ADDED.get(Oid(oid)) if oid in WITH_KEYS else None
    if offset is None or request.request_type != RequestType.SET:
        return []
    buffer = result.information_buffer
    try:
        entries = add_sa_entries(buffer) if oid == Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA else [0]
    except OidError:
        return []
    return [
        _HANDLE.unpack_from(buffer, entry + offset)[0]
        for entry in entries
        if entry + offset + _HANDLE.size <= len(buffer)
    ]


def to_be_deleted(request: OidRequest) -> list[int]:
    """Give the handles a deletion names, as far as they can be read."""
    if request.oid not in DELETES or request.request_type != RequestType.SET:
        return []
    buffer = request.information_buffer
    if request.oid != Oid.TCP_TASK_IPSEC_OFFLOAD_V2_DELETE_SA:
        return [_HANDLE.unpack_from(buffer)[0]] if len(buffer) >= _HANDLE.size else []
    try:
        return [_HANDLE.unpack_from(buffer, one + _NAMED_BY_DELETE)[0] for one in delete_sa_entries(buffer)]
    except OidError:
        return []
