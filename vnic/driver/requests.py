"""What a protocol driver asks through the control socket.

Law: the exact binary structures of NDIS, with the daemon's answer as the NIC gave it.
"""

from __future__ import annotations

import base64

from vnic.control import interface as api
from vnic.control.client import Client
from vnic.errors import RequestError
from vnic.ndis.oids import OidRequest, OidResult, RequestType
from vnic.ndis.status import NdisStatus


async def oid_request(client: Client, adapter: str, request: OidRequest) -> OidResult:
    """Have the NIC of an adapter carry out an OID request. Any status is an answer.

    Raises:
        RequestError: there is no such adapter, or its request type is neither query nor set.
        ControlError: the daemon could not be asked.
    """
    query = request.request_type == RequestType.QUERY
    if not query and request.request_type != RequestType.SET:
        raise RequestError(
            "a driver queries or sets",
            field="request_type",
            value=str(request.request_type),
            allowed="0 (query), 1 (set)",
        )
    reply = await client.call(
        api.OidRequest(
            adapter=adapter,
            oid=f"{request.oid:#010x}",
            request_type="query" if query else "set",
            information_buffer=None if query else base64.b64encode(request.information_buffer).decode(),
            information_buffer_length=len(request.information_buffer) if query else None,
            request_id=request.request_id or None,
        )
    )
    return OidResult(
        status=NdisStatus(reply.status),
        information_buffer=base64.b64decode(reply.information_buffer),
        bytes_read=reply.bytes_read,
        bytes_written=reply.bytes_written,
        bytes_needed=reply.bytes_needed,
        supported_revision=reply.supported_revision,
        message=reply.message,
        field=reply.field,
        value=reply.value,
        allowed=reply.allowed,
    )


async def nbl_socket_of(client: Client, adapter: str) -> str:
    """Give the path of an adapter's NBL socket.

    Raises:
        RequestError: there is no such adapter, or its transport is inline.
        ControlError: the daemon could not be asked.
    """
    reply = await client.call(api.ListAdapters(name=adapter))
    path = reply.adapters[0].nbl_socket
    if path is None:
        raise RequestError(
            f"adapter {adapter} has the inline transport",
            field="adapter",
            value=adapter,
            allowed="an adapter with transport external",
        )
    return path
