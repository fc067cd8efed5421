"""OID requests in binary form: what each OID does to the NIC.

Law: reads structures, calls what a typed request calls, writes back. Nothing is decided here but the form:
order of checks, partial success, roll-back, BytesNeeded. A request never raises for what it holds.

    NOT_ACCEPTED (removed) > INVALID_OID > NOT_SUPPORTED (request type) > state > structure > contents

The V2 lists are worked on in slices (`operations`), so several are under way beside each other and beside
frames (R67, R68, R79); all other requests are finished when they come back.

Source: sheet §3.2-§3.5, §4, §9.3; R41-R62, R65-R123, R124-R153.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from vnic.errors import OidError, RequestError
from vnic.miniport.configuration import check_encapsulation
from vnic.miniport.operations import (
    NO_HANDLE,
    REVISION_1,
    AddOperation,
    DeleteOperation,
    FinishedOperation,
    ListOperation,
    refused,
)
from vnic.miniport.task_offload import pack_tasks, read_tasks
from vnic.ndis.capabilities import NO_IPSEC_V1, OffloadCapabilitiesV1
from vnic.ndis.configuration_structs import (
    pack_offload_encapsulation,
    read_offload_encapsulation,
    read_offload_parameters,
)
from vnic.ndis.offload_structs import pack_offload
from vnic.ndis.oid import SaDoor
from vnic.ndis.oids import Oid, OidOperation, OidRequest, OidResult, RequestType
from vnic.ndis.status import NdisStatus
from vnic.ndis.structs import (
    ADD_SA_EX,
    add_sa_entries,
    delete_sa_entries,
    read_add_sa_ex,
    read_update_sa,
    write_add_sa_ex_handle,
)
from vnic.ndis.v1_structs import (
    read_v1_add_sa,
    read_v1_add_udpesp_sa,
    read_v1_delete_sa,
    read_v1_delete_udpesp_sa,
    write_v1_add_sa_handle,
    write_v1_add_udpesp_sa_handles,
)

if TYPE_CHECKING:
    from vnic.miniport.adapter import MiniportAdapter


class _Handler(NamedTuple):
    """What an OID does, by request type; None: that type is NOT_SUPPORTED."""

    query: Callable[[], bytes] | None = None
    set: Callable[[OidRequest, SaDoor], OidOperation | OidResult] | None = None
    resetting: NdisStatus = NdisStatus.RESET_IN_PROGRESS
    """Status of a set during a reset; SUCCESS: what it calls sees to it."""


class Requests:
    """The OID requests of one NIC, those under way among them."""

    def __init__(self, nic: MiniportAdapter) -> None:
        self._nic = nic
        self._pending: list[ListOperation] = []
        self._handlers = {
            Oid.OFFLOAD_ENCAPSULATION: _Handler(self._encapsulation, self._set_encapsulation),
            Oid.TCP_OFFLOAD_PARAMETERS: _Handler(set=self._set_parameters),
            Oid.TCP_OFFLOAD_CURRENT_CONFIG: _Handler(lambda: pack_offload(nic.current)),
            Oid.TCP_OFFLOAD_HARDWARE_CAPABILITIES: _Handler(
                lambda: pack_offload(nic.configuration.reported_hardware)
            ),
            Oid.TCP_TASK_OFFLOAD: _Handler(self._tasks, self._set_tasks),
            Oid.TCP_TASK_IPSEC_ADD_SA: _Handler(set=self._add_v1),
            Oid.TCP_TASK_IPSEC_DELETE_SA: _Handler(set=self._delete_v1, resetting=NdisStatus.NOT_ACCEPTED),
            Oid.TCP_TASK_IPSEC_ADD_UDPESP_SA: _Handler(set=self._add_udp_esp),
            Oid.TCP_TASK_IPSEC_DELETE_UDPESP_SA: _Handler(
                set=self._delete_udp_esp, resetting=NdisStatus.SUCCESS
            ),
            Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA: _Handler(set=self._add),
            Oid.TCP_TASK_IPSEC_OFFLOAD_V2_DELETE_SA: _Handler(
                set=self._delete, resetting=NdisStatus.NOT_ACCEPTED
            ),
            Oid.TCP_TASK_IPSEC_OFFLOAD_V2_UPDATE_SA: _Handler(set=self._update),
            Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA_EX: _Handler(set=self._add_ex),
        }

    def begin(self, request: OidRequest, door: SaDoor) -> OidOperation:
        """Begin a request; see `MiniportAdapter.oid_request`."""
        try:
            answer = self._begun(request, door)
        except RequestError as error:
            answer = refused(error)
        return FinishedOperation(request, answer) if isinstance(answer, OidResult) else answer

    def cancel(self, request_id: int) -> int:
        """End the requests under way with this id (R77); 0 names none. Gives how many there were."""
        chosen = [one for one in self._pending if request_id and one.request.request_id == request_id]
        for operation in chosen:
            operation.abort()
        return len(chosen)

    def abort_all(self) -> None:
        """End all requests under way (R116, R207)."""
        for operation in list(self._pending):
            operation.abort()

    def _begun(self, request: OidRequest, door: SaDoor) -> OidOperation | OidResult:
        self._nic.check_present()
        try:
            handler = self._handlers[Oid(request.oid)]
        except ValueError:
            raise OidError(
                NdisStatus.INVALID_OID, "no such OID", field="oid", value=f"{request.oid:#010x}"
            ) from None
        if request.request_type == RequestType.SET and handler.set is not None:
            if handler.resetting is not NdisStatus.SUCCESS:
                self._nic.check_accepting(handler.resetting)
            return handler.set(request, door)
        if request.request_type == RequestType.QUERY and handler.query is not None:
            return _answered(handler.query(), len(request.information_buffer))
        types = [("query", handler.query), ("set", handler.set)]
        raise OidError(
            NdisStatus.NOT_SUPPORTED,
            f"{Oid(request.oid).label} has no request of this type",
            field="request_type",
            value=str(int(request.request_type)),
            allowed=", ".join(name for name, able in types if able is not None),
        )

    # --------------------------------------------------------------------------------- V2, direct

    def _add(self, request: OidRequest, door: SaDoor) -> OidOperation:
        entries = add_sa_entries(request.information_buffer)
        return self._pended(AddOperation(request, door, entries, self._pending.remove))

    def _delete(self, request: OidRequest, door: SaDoor) -> OidOperation:
        entries = delete_sa_entries(request.information_buffer)
        return self._pended(DeleteOperation(request, door, entries, self._pending.remove))

    def _pended(self, operation: ListOperation) -> OidOperation:
        """Work on the first slice at once: most requests hold one SA."""
        self._pending.append(operation)
        operation.advance()
        return operation

    def _add_ex(self, request: OidRequest, door: SaDoor) -> OidResult:
        buffer = request.information_buffer
        try:
            handle = door.add_sa(read_add_sa_ex(buffer))
        except RequestError as error:
            if len(buffer) < ADD_SA_EX.size:
                raise
            write_add_sa_ex_handle(buffer, NO_HANDLE)
            return replace(refused(error), information_buffer=bytes(buffer))
        write_add_sa_ex_handle(buffer, handle)
        return _taken(buffer)

    def _update(self, request: OidRequest, door: SaDoor) -> OidResult:
        door.update_sa(read_update_sa(request.information_buffer))
        return _taken(request.information_buffer)

    # --------------------------------------------------------------------------------- V1

    def _add_v1(self, request: OidRequest, door: SaDoor) -> OidResult:
        buffer = request.information_buffer
        write_v1_add_sa_handle(buffer, door.add_sa(read_v1_add_sa(buffer)))
        return _taken(buffer, 0)

    def _delete_v1(self, request: OidRequest, door: SaDoor) -> OidResult:
        door.delete_sa(read_v1_delete_sa(request.information_buffer))
        return _taken(request.information_buffer, 0)

    def _add_udp_esp(self, request: OidRequest, door: SaDoor) -> OidResult:
        buffer = request.information_buffer
        handle, entry = self._nic.add_udp_esp_sa(read_v1_add_udpesp_sa(buffer), door)
        write_v1_add_udpesp_sa_handles(buffer, handle, entry)
        return _taken(buffer, 0)

    def _delete_udp_esp(self, request: OidRequest, door: SaDoor) -> OidResult:
        self._nic.delete_udp_esp_sa(read_v1_delete_udpesp_sa(request.information_buffer), door)
        return _taken(request.information_buffer, 0)

    # --------------------------------------------------------------------------------- configuration

    def _set_parameters(self, request: OidRequest, door: SaDoor) -> OidResult:
        self._nic.configuration.check_offloads()
        parameters = read_offload_parameters(request.information_buffer)
        self._nic.set_parameters(parameters)
        return _taken(request.information_buffer, parameters.revision)

    def _encapsulation(self) -> bytes:
        return bytes(pack_offload_encapsulation(self._nic.configuration.encapsulation))

    def _set_encapsulation(self, request: OidRequest, door: SaDoor) -> OidResult:
        self._nic.configuration.check_offloads()
        wanted = read_offload_encapsulation(request.information_buffer)
        self._nic.set_encapsulation(*check_encapsulation(wanted))
        return _taken(request.information_buffer)

    def _tasks(self) -> bytes:
        return pack_tasks(self._with_v1())

    def _set_tasks(self, request: OidRequest, door: SaDoor) -> OidResult:
        self._nic.set_tasks(read_tasks(request.information_buffer, self._with_v1()))
        return _taken(request.information_buffer, 0)

    def _with_v1(self) -> OffloadCapabilitiesV1:
        """What V1 can do.

        Raises:
            OidError: NOT_SUPPORTED: nothing.
        """
        v1 = self._nic.hardware.ipsec_v1
        if v1 == NO_IPSEC_V1:
            raise OidError(NdisStatus.NOT_SUPPORTED, "this NIC has no IPsec offload of version 1")
        return v1


def _answered(answer: bytes, room: int) -> OidResult:
    """The answer to a query, if it fits (R59)."""
    if room < len(answer):
        return OidResult(
            NdisStatus.BUFFER_TOO_SHORT,
            bytes_needed=len(answer),
            message="the answer does not fit the information buffer",
            field="InformationBufferLength",
            value=str(room),
            allowed=f"{len(answer)} bytes or more",
        )
    return OidResult(NdisStatus.SUCCESS, answer, bytes_written=len(answer))


def _taken(buffer: bytearray, revision: int = REVISION_1) -> OidResult:
    """A set that succeeded (R82)."""
    return OidResult(NdisStatus.SUCCESS, bytes(buffer), bytes_read=len(buffer), supported_revision=revision)
