"""MiniportAdapter: the NIC as the transport sees it.

Law: one NIC, one SA table, one configuration; requests happen whole or not at all, and between bursts. Where
NDIS stands between a driver and a miniport (queries of capabilities, the announcement of a reset), this class
plays its part.

Source: `ndis.oid.Miniport`; sheet §3, §4.7, §6, §7, §12.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING

from vnic.errors import OidError
from vnic.miniport.admission import Admission
from vnic.miniport.ciphers import RandomSource
from vnic.miniport.configuration import Configuration, FeatureState
from vnic.miniport.counter_keys import CounterKeys
from vnic.miniport.receive import Receiver
from vnic.miniport.sa_table import Bundle, InboundBundle, OutboundBundle, SaTable
from vnic.miniport.send import Sender
from vnic.ndis.capabilities import OffloadCapabilities, TaskOffload
from vnic.ndis.keywords import Keywords
from vnic.ndis.netbuffer import NetBuffer, NetBufferList, OffloadHandle
from vnic.ndis.oid import AddSa, DeleteSa, Miniport, OidVersion, SaDoor, UpdateSa
from vnic.ndis.oids import OidOperation, OidRequest
from vnic.ndis.status import IndicationCode, NdisStatus, StatusIndication

if TYPE_CHECKING:
    from vnic.ndis.offload_structs import OffloadParameters

_ALL_CAPABILITIES = TaskOffload()
_DEFAULT_KEYWORDS = Keywords()
_MAX_HALF = 0xFFFFFFFF


class AdapterState(Enum):
    """What the NIC is busy with; the first that applies."""

    REMOVED = "removed"
    HALTED = "halted"
    RESETTING = "resetting"
    PAUSED = "paused"
    RUNNING = "running"


_REFUSED_SENDS = {
    AdapterState.REMOVED: NdisStatus.FAILURE,
    AdapterState.HALTED: NdisStatus.FAILURE,
    AdapterState.RESETTING: NdisStatus.REQUEST_ABORTED,
    AdapterState.PAUSED: NdisStatus.PAUSED,
}


class MiniportAdapter(Miniport):
    """The NIC in Python; see `ndis.oid.Miniport` for what each call means.

    IPsec is not active before `set_encapsulation` (R47, R55).

    Args:
        random_source: gives that many unpredictable bytes; IVs are made of them.
        hardware: what this NIC can do at all; OffloadCapabilities alone stand for a NIC that can do the
            rest too.
        keywords: the registry of the adapter.
        counter_keys: the IVs of the card's counter-mode keys, shared with its other NICs; None: this one's
            own.
        first_handle: handles of SAs are numbered from here, so that one of another NIC is not valid here.

    Raises:
        RequestError: the hardware claims what this NIC cannot do, or lacks what it must have (R22, R28, R29).
    """

    def __init__(
        self,
        random_source: RandomSource,
        hardware: TaskOffload | OffloadCapabilities = _ALL_CAPABILITIES,
        *,
        keywords: Keywords = _DEFAULT_KEYWORDS,
        counter_keys: CounterKeys | None = None,
        first_handle: int = 1,
    ) -> None:
        if isinstance(hardware, OffloadCapabilities):
            hardware = TaskOffload(hardware)
        self.configuration = Configuration(hardware, keywords)
        capacity = self.configuration.sa_capacity
        keys = CounterKeys(random_source) if counter_keys is None else counter_keys
        self._table = SaTable(capacity, keys, first_handle - 1)
        self._random_source = random_source
        self._admission = Admission(self.configuration.offered, random_source, self._table)
        self._sender = Sender(self._table)
        self._receiver = Receiver(self._table)
        self._paused = self._resetting = self._removed = self._halted = False
        self._refused: NdisStatus | None = None
        self._configured()

    # --------------------------------------------------------------------------------- configuration

    @property
    def hardware(self) -> TaskOffload:
        return self.configuration.hardware

    @property
    def current(self) -> TaskOffload:
        """What it does as it is configured now."""
        return self.configuration.current

    @property
    def capabilities(self) -> OffloadCapabilities:
        return self.configuration.current.ipsec_v2

    @property
    def keywords(self) -> Keywords:
        """The registry of the adapter, as OFFLOAD_PARAMETERS left it."""
        return self.configuration.keywords

    @property
    def configuration_generation(self) -> int:
        return self.configuration.generation

    def features(self) -> list[FeatureState]:
        """Every capability, whether it is on, and why not."""
        return self.configuration.features()

    def set_keywords(self, keywords: Keywords) -> None:
        """Write the registry; in force after `restart`."""
        self.configuration.set_keywords(keywords)

    def set_encapsulation(self, ipv4: bool | None, ipv6: bool | None) -> None:
        """OID_OFFLOAD_ENCAPSULATION for Ethernet: switch all offloads of a family on or off (R50-R57).

        Args:
            ipv4, ipv6: None leaves the family as it is.

        Raises:
            OidError: NOT_SUPPORTED: there is nothing to switch (R51); RESET_IN_PROGRESS, NOT_ACCEPTED.
        """
        self._check_accepting(NdisStatus.RESET_IN_PROGRESS)
        self.configuration.set_encapsulation(ipv4, ipv6)
        self._configured()

    def set_parameters(self, parameters: OffloadParameters) -> None:
        """OID_TCP_OFFLOAD_PARAMETERS (R41-R49).

        Raises:
            OidError: INVALID_DATA: a member is out of range, and nothing was changed (R43); NOT_SUPPORTED
                (R42); RESET_IN_PROGRESS, NOT_ACCEPTED.
        """
        self._check_accepting(NdisStatus.RESET_IN_PROGRESS)
        self.configuration.set_parameters(parameters)
        self._configured()

    def set_load_balanced(self, load_balanced: bool, master: str = "") -> None:
        """Withdraw IPsec offload below a load-balancing master, or take it up again (R18).

        Args:
            master: its name, for `features`.
        """
        self.configuration.set_load_balanced(load_balanced, master)
        self._configured()

    def take_indications(self) -> list[StatusIndication]:
        """Give the status indications since the last call, in order."""
        return self.configuration.take_indications()

    def _configured(self) -> None:
        """Hand the configuration to all who work by it."""
        self._admission.configure(self.configuration.offered)
        self._sender.configure(self.configuration.current)
        self._receiver.configure(self.configuration.receiving)

    # --------------------------------------------------------------------------------- states

    @property
    def state(self) -> AdapterState:
        """What the NIC is busy with."""
        if self._removed:
            return AdapterState.REMOVED
        if self._halted:
            return AdapterState.HALTED
        if self._resetting:
            return AdapterState.RESETTING
        return AdapterState.PAUSED if self._paused else AdapterState.RUNNING

    def _state_changed(self) -> None:
        self._refused = _REFUSED_SENDS.get(self.state)

    def begin_reset(self) -> None:
        """MiniportResetEx: requests under way end with REQUEST_ABORTED, SAs stay (R204-R207)."""
        if self._removed or self._halted or self._resetting:
            return
        self._resetting = True
        self._state_changed()
        self.configuration.indicate(StatusIndication(IndicationCode.RESET_START))

    def end_reset(self) -> None:
        """The NIC works again as before the reset (R204)."""
        if not self._resetting:
            return
        self._resetting = False
        self._state_changed()
        self.configuration.indicate(StatusIndication(IndicationCode.RESET_END))

    def pause(self) -> None:
        """Move no frames until `resume`."""
        self._paused = True
        self._state_changed()

    def resume(self) -> None:
        """End a pause."""
        self._paused = False
        self._state_changed()

    def halt(self) -> None:
        """MiniportHaltEx: forget every SA and its keys (R211, R213)."""
        self._halted = True
        self._state_changed()

    def restart(self) -> None:
        """Halt and initialize again: no SAs, keywords read anew, nothing active (R40, R55, R211). A NIC that
        was removed is plugged in again."""
        self.halt()
        self._paused = self._resetting = self._removed = self._halted = False
        self.configuration.restart()
        self._configured()
        self._state_changed()

    def remove(self) -> None:
        """Surprise removal: every request is NOT_ACCEPTED from now on (R80), no frame moves."""
        self._removed = True
        self._state_changed()

    def _check_accepting(self, resetting: NdisStatus) -> None:
        """Refuse a request that comes at the wrong time.

        Args:
            resetting: the status during a reset.

        Raises:
            OidError: NOT_ACCEPTED after removal (R80), `resetting` during a reset.
        """
        if self._removed or self._halted:
            raise OidError(NdisStatus.NOT_ACCEPTED, "the NIC was removed (R80)")
        if self._resetting:
            raise OidError(resetting, "the NIC is being reset; ask again when it is done")

    # --------------------------------------------------------------------------------- SAs

    def add_sa(self, request: AddSa) -> OffloadHandle:
        self._check_accepting(NdisStatus.RESET_IN_PROGRESS)
        return self._table.add(self._admission.admit(request))

    def update_sa(self, request: UpdateSa) -> None:
        self._check_accepting(NdisStatus.RESET_IN_PROGRESS)
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
        self._check_accepting(NdisStatus.NOT_ACCEPTED)
        self._table.delete(request.handle)

    def request_deletion(self, handle: OffloadHandle) -> None:
        """Set SaDeleteReq on the packets of an inbound bundle from now on (R135, R183); it stays until it is
        deleted (R117).

        Raises:
            OidError: INVALID_PARAMETER: there is no inbound bundle with this handle.
        """
        bundle = self._table.get(handle)
        if not isinstance(bundle, InboundBundle):
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "the NIC holds no inbound SA with this handle",
                field="handle",
                value=str(handle),
                allowed="the handle of an inbound SA",
            )
        bundle.sa_delete_req = True

    def offers(self, handle: OffloadHandle) -> bool:
        bundle = self._table.get(handle)
        return bundle is not None and self._works_on(bundle)

    def bundles(self) -> Iterator[tuple[OffloadHandle, Bundle]]:
        """Every bundle with its handle, oldest first."""
        return self._table.items()

    def _works_on(self, bundle: Bundle) -> bool:
        current = self.configuration.current
        v6 = bundle.version == 6 if isinstance(bundle, OutboundBundle) else len(bundle.destination) == 16
        if not v6 and not self.configuration.ipv4:
            return False
        if bundle.oid_version is OidVersion.V1:
            v1 = current.ipsec_v1
            return bool(v1.encapsulation)
        v2 = current.ipsec_v2
        return (
            (bundle.esp is None or v2.esp)
            and (bundle.ah is None or v2.ah)
            and (bundle.esp is None or bundle.ah is None or v2.ah_esp_combined)
            and (not v6 or v2.ipv6_supported)
        )

    def __len__(self) -> int:
        return len(self._table)

    def oid_request(self, request: OidRequest, door: SaDoor | None = None) -> OidOperation:
        """Begin a request in binary form; it may be finished at once, and never raises for what it holds.

        Args:
            door: who takes the SA requests in it; None: this NIC itself.
        """
        raise NotImplementedError

    # --------------------------------------------------------------------------------- frames

    def send(self, burst: list[NetBuffer]) -> None:
        if self._refused is not None:
            for buffer in burst:
                buffer.status = self._refused
            return
        self._sender.send(burst)

    def transmit(self, lists: list[NetBufferList]) -> list[NetBuffer]:
        """Take lists of a protocol driver; gives the frames for the wire, in order (R167, R197).

        Every list has its final status when it comes back: SUCCESS when all its frames are among those
        given, otherwise none is.
        """
        if self._refused is not None:
            for one in lists:
                one.status = self._refused
            return []
        return self._sender.transmit(lists)

    def receive(self, burst: list[NetBuffer]) -> None:
        if self._refused is not None:
            for buffer in burst:
                buffer.receive = None
            return
        self._receiver.receive(burst)
