"""MiniportAdapter: the NIC as the transport sees it.

Law: one NIC, one SA table, one configuration; requests happen whole or not at all, and between bursts. Where
NDIS stands between a driver and a miniport (queries of capabilities, the announcement of a reset), this class
plays its part.

Source: `ndis.oid.Miniport`; sheet §3, §4.7, §6, §7, §12.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from vnic.errors import OidError, RequestError
from vnic.miniport.abilities import abilities
from vnic.miniport.admission import Admission
from vnic.miniport.ciphers import RandomSource
from vnic.miniport.configuration import Configuration, FeatureState
from vnic.miniport.counter_keys import CounterKeys
from vnic.miniport.receive import Receiver
from vnic.miniport.requests import Requests
from vnic.miniport.sa_table import Bundle, InboundBundle, OutboundBundle, SaTable
from vnic.miniport.send import Sender
from vnic.ndis.capabilities import OffloadCapabilities, OffloadCapabilitiesV1, TaskOffload
from vnic.ndis.configuration_structs import OffloadParameters
from vnic.ndis.keywords import Keywords
from vnic.ndis.netbuffer import NetBuffer, NetBufferList, OffloadHandle
from vnic.ndis.oid import AddSa, DeleteSa, Miniport, OidVersion, SaDoor, UpdateSa
from vnic.ndis.oids import OidOperation, OidRequest
from vnic.ndis.status import IndicationCode, NdisStatus, StatusIndication
from vnic.ndis.v1_structs import AddUdpEspSa, DeleteUdpEspSa
from vnic.packet.ip import UDP

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
        self._admission = Admission(self.configuration.offered, random_source, self._table)
        self._sender = Sender(self._table)
        self._receiver = Receiver(self._table)
        self._requests = Requests(self)
        self._put_off: list[tuple[DeleteUdpEspSa, SaDoor]] = []
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
    def receive_waits(self) -> bool:
        """Whether something is on that receive leaves alone until `set_encapsulation` (R47)."""
        return self.configuration.receiving != self.configuration.current

    @property
    def wants_room(self) -> bool:
        """Whether it looks for an SA among those that carry packets, to ask for its deletion (R135)."""
        return self._receiver.wants_room

    def may_miss_packets_of(self, handle: OffloadHandle) -> bool:
        """Whether nothing about a bundle needs the NIC to see its packets: it came by V2 OIDs, and nobody
        asks for its deletion (R135, R150, R183)."""
        bundle = self._table.get(handle)
        if bundle is None or bundle.oid_version is not OidVersion.V2:
            return False
        return isinstance(bundle, OutboundBundle) or not (bundle.marked or bundle.sa_delete_req)

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
            ipv4, ipv6: None leaves the family as it is; with both, receive takes up what it waited with.

        Raises:
            OidError: NOT_SUPPORTED: there is nothing to switch (R51); RESET_IN_PROGRESS, NOT_ACCEPTED.
        """
        self.check_accepting(NdisStatus.RESET_IN_PROGRESS)
        self.configuration.set_encapsulation(ipv4, ipv6)
        self._configured()

    def set_parameters(self, parameters: OffloadParameters) -> None:
        """OID_TCP_OFFLOAD_PARAMETERS (R41-R49).

        Raises:
            OidError: INVALID_DATA: a member is out of range, and nothing was changed (R43); NOT_SUPPORTED
                (R42); RESET_IN_PROGRESS, NOT_ACCEPTED.
        """
        self.check_accepting(NdisStatus.RESET_IN_PROGRESS)
        self.configuration.set_parameters(parameters)
        self._configured()

    def set_tasks(self, v1: OffloadCapabilitiesV1) -> None:
        """OID_TCP_TASK_OFFLOAD: exactly this much of V1 is on from now on (sheet §3.5).

        Raises:
            OidError: RESET_IN_PROGRESS, NOT_ACCEPTED.
        """
        self.check_accepting(NdisStatus.RESET_IN_PROGRESS)
        self.configuration.set_tasks(v1)
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
        configuration = self.configuration
        ipv4 = configuration.ipv4
        self._admission.configure(configuration.offered)
        self._sender.configure(configuration.current, ipv4=ipv4)
        self._receiver.configure(configuration.receiving, ipv4=ipv4)
        self._sends = abilities(configuration.current, send=True, ipv4=ipv4)
        self._receives = abilities(configuration.receiving, send=False, ipv4=ipv4)

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
        self._requests.abort_all()
        self._resetting = True
        self._state_changed()
        self.configuration.indicate(StatusIndication(IndicationCode.RESET_START))

    def end_reset(self) -> None:
        """The NIC works again as before the reset (R204)."""
        put_off = self._put_off
        self._leave_reset()
        for request, door in put_off:
            door.delete_sa(DeleteSa(request.handle))
            if request.entry_handle:
                self._table.parser_entries.remove(request.entry_handle)

    def _leave_reset(self) -> None:
        if not self._resetting:
            return
        self._resetting = False
        self._put_off = []
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
        """MiniportHaltEx: forget every SA and its keys (R211-R213)."""
        self._requests.abort_all()
        self._leave_reset()
        self._table.clear()
        self._halted = True
        self._state_changed()

    def restart(self) -> None:
        """Halt and initialize again: no SAs, keywords read anew, nothing active (R40, R55, R211). A NIC that
        was removed is plugged in again."""
        self.halt()
        self._paused = self._removed = self._halted = False
        self.configuration.restart()
        self._configured()
        self._state_changed()

    def remove(self) -> None:
        """Surprise removal: every request is NOT_ACCEPTED from now on (R80), no frame moves."""
        self._requests.abort_all()
        self._leave_reset()
        self._removed = True
        self._state_changed()

    def check_present(self) -> None:
        """Refuse every request to a NIC that is gone.

        Raises:
            OidError: NOT_ACCEPTED (R80).
        """
        if self._removed or self._halted:
            raise OidError(
                NdisStatus.NOT_ACCEPTED, "the NIC was removed (R80); delete the adapter and add it again"
            )

    def check_accepting(self, resetting: NdisStatus) -> None:
        """Refuse a request that comes at the wrong time.

        Args:
            resetting: the status during a reset.

        Raises:
            OidError: NOT_ACCEPTED after removal (R80), `resetting` during a reset (R115).
        """
        if self._refused is None:
            return
        self.check_present()
        if self._resetting:
            raise OidError(resetting, "the NIC is being reset; ask again when it is done")

    # --------------------------------------------------------------------------------- SAs

    def add_sa(self, request: AddSa) -> OffloadHandle:
        self.check_accepting(NdisStatus.RESET_IN_PROGRESS)
        return self._table.add(self._admission.admit(request))

    def check_sa(self, request: AddSa) -> None:
        """Refuse an SA that no NIC as this one is configured now could hold, whatever else it holds.

        Raises:
            OidError: INVALID_DATA, NOT_SUPPORTED, RESET_IN_PROGRESS, NOT_ACCEPTED as `add_sa`.
        """
        self.check_accepting(NdisStatus.RESET_IN_PROGRESS)
        self._admission.check(request)

    def update_sa(self, request: UpdateSa) -> None:
        self.check_accepting(NdisStatus.RESET_IN_PROGRESS)
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
        element.numbers.rebase(request.sequence_number_high_order, request.sequence_number_low_order)

    def delete_sa(self, request: DeleteSa) -> None:
        self.check_accepting(NdisStatus.NOT_ACCEPTED)
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
        if bundle is None:
            return False
        able = self._sends if isinstance(bundle, OutboundBundle) else self._receives
        return able[bundle.oid_version].covers(bundle)

    def bundles(self) -> Iterator[tuple[OffloadHandle, Bundle]]:
        """Every bundle with its handle, oldest first."""
        return self._table.items()

    def __len__(self) -> int:
        """SA bundles it holds."""
        return len(self._table)

    def add_udp_esp_sa(self, request: AddUdpEspSa, door: SaDoor | None = None) -> tuple[OffloadHandle, int]:
        """OID_TCP_TASK_IPSEC_ADD_UDPESP_SA: add an SA and, inbound, the parser entry it needs (R143-R147).

        Args:
            door: who takes the SA; None: this NIC itself.

        Returns:
            Handles of the SA and of its parser entry, the latter as given for an outbound SA (R146).

        Raises:
            OidError: as `add_sa`; INVALID_DATA: the protocol is not UDP (R142); INVALID_PARAMETER: there is
                no such parser entry; NOT_SUPPORTED: no such entry can be made.
        """
        self.check_accepting(NdisStatus.RESET_IN_PROGRESS)
        traffic = request.request.filter
        if traffic is None or traffic.protocol != UDP:
            raise OidError(
                NdisStatus.INVALID_DATA,
                "UDP-ESP is UDP (R142)",
                field="Protocol",
                value=str(traffic.protocol if traffic is not None else 0),
                allowed=str(UDP),
            )
        add = (door or self).add_sa
        if not request.request.inbound:
            return add(request.request), request.entry_handle
        entries = self._table.parser_entries
        if request.entry_handle:
            entries.check(request.entry_handle)
            return add(request.request), request.entry_handle
        entry, new = entries.add(request.encap_type, request.port)
        try:
            return add(request.request), entry
        except RequestError:
            if new:
                entries.remove(entry)
            raise

    def delete_udp_esp_sa(self, request: DeleteUdpEspSa, door: SaDoor | None = None) -> None:
        """OID_TCP_TASK_IPSEC_DELETE_UDPESP_SA: delete an SA and, if it is named, a parser entry (R148, R149).

        Raises:
            OidError: INVALID_PARAMETER: one of them is not there; NOT_ACCEPTED: during a reset, after which
                both are deleted; until then they are not used (R150, R151).
        """
        self.check_present()
        entries = self._table.parser_entries
        if request.entry_handle:
            entries.check(request.entry_handle)
        if not self._resetting:
            (door or self).delete_sa(DeleteSa(request.handle))
            if request.entry_handle:
                entries.remove(request.entry_handle)
            return
        bundle = self._table.get(request.handle)
        if bundle is not None and all(one.handle != request.handle for one, _ in self._put_off):
            if isinstance(bundle, InboundBundle):
                bundle.marked = True
            if request.entry_handle:
                entries.mark(request.entry_handle)
            self._put_off.append((request, door or self))
        raise OidError(NdisStatus.NOT_ACCEPTED, "the NIC is being reset; the SA is deleted when it is done")

    def oid_request(self, request: OidRequest, door: SaDoor | None = None) -> OidOperation:
        """Begin a request in binary form; it may be finished at once, and never raises for what it holds.

        Args:
            door: who takes the SA requests in it; None: this NIC itself.
        """
        return self._requests.begin(request, door or self)

    def cancel(self, request_id: int) -> int:
        """MiniportCancelDirectOidRequest: end the requests under way with this id (R77); 0 names none. Gives
        how many there were."""
        return self._requests.cancel(request_id)

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
