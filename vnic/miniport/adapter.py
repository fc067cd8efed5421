"""MiniportAdapter: the NIC as the transport sees it.

Law: one NIC, one SA table; requests happen whole or not at all, and between bursts.

Source: `ndis.oid.Miniport`; sheet §4.7, §6, §7.
"""

from __future__ import annotations

from vnic.errors import OidError
from vnic.miniport.admission import Admission, check_capabilities
from vnic.miniport.ciphers import RandomSource
from vnic.miniport.receive import Receiver
from vnic.miniport.sa_table import SaTable
from vnic.miniport.send import Sender
from vnic.ndis.capabilities import OffloadCapabilities, TaskOffload
from vnic.ndis.netbuffer import NetBuffer, OffloadHandle
from vnic.ndis.oid import AddSa, DeleteSa, Miniport, UpdateSa
from vnic.ndis.status import NdisStatus

_DEFAULT_CAPABILITIES = OffloadCapabilities()
_MAX_HALF = 0xFFFFFFFF


class MiniportAdapter(Miniport):
    """The NIC in Python; see `ndis.oid.Miniport` for what each call means.

    Args:
        random_source: gives that many unpredictable bytes; IVs are made of them.
        capabilities: what this NIC can do; it refuses everything else.

    Raises:
        RequestError: the capabilities claim what the NIC cannot do.
    """

    def __init__(
        self, random_source: RandomSource, capabilities: OffloadCapabilities = _DEFAULT_CAPABILITIES
    ) -> None:
        check_capabilities(capabilities)
        self._capabilities = capabilities
        self._table = SaTable(capabilities.sa_offload_capacity)
        self._admission = Admission(capabilities, random_source, self._table)
        self._sender = Sender(self._table)
        self._sender.configure(TaskOffload(capabilities))
        self._receiver = Receiver(self._table)
        self._receiver.configure(TaskOffload(capabilities))

    @property
    def capabilities(self) -> OffloadCapabilities:
        return self._capabilities

    def add_sa(self, request: AddSa) -> OffloadHandle:
        return self._table.add(self._admission.admit(request))

    def update_sa(self, request: UpdateSa) -> None:
        element = self._table.element(request.handle, request.operation)
        if element is None or element.spi != request.spi:
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "the bundle has no such SA (R122)",
                field="spi",
                value=f"{request.operation.name} {request.spi:#010x}",
                allowed="none" if element is None else f"{request.operation.name} {element.spi:#010x}",
            )
        if element.numbers is None:
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "the SA has no extended sequence numbers (R122)",
                field="spi",
                value=f"{request.spi:#010x}",
                allowed="an SA with extended sequence numbers",
            )
        if not 0 <= request.sequence_number_high_order <= _MAX_HALF:
            raise OidError(
                NdisStatus.INVALID_DATA,
                "upper half of a sequence number out of range",
                field="sequence_number_high_order",
                value=str(request.sequence_number_high_order),
                allowed=f"0 to {_MAX_HALF}",
            )
        element.numbers.rebase(request.sequence_number_high_order)

    def delete_sa(self, request: DeleteSa) -> None:
        self._table.delete(request.handle)

    def send(self, burst: list[NetBuffer]) -> None:
        self._sender.send(burst)

    def receive(self, burst: list[NetBuffer]) -> None:
        self._receiver.receive(burst)
