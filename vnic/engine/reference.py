"""The reference engine: transport and NIC in Python. The specification of every other engine.

Law: joins the two roles and decides nothing itself.
"""

from __future__ import annotations

from contextlib import suppress

from vnic.engine.contract import Added, Observer, Offload, Outcome, RandomSource, SaReport
from vnic.errors import OidError, RequestError
from vnic.ipsec.association import Direction, SaId, SecurityAssociation
from vnic.ipsec.counters import CardCounters, EngineEvent
from vnic.ipsec.drops import DropReason
from vnic.ipsec.policy import Defaults, PolicyEntry, Selector
from vnic.miniport.adapter import MiniportAdapter
from vnic.ndis.capabilities import OffloadCapabilities, TaskOffload
from vnic.ndis.keywords import HostSwitches, Keywords
from vnic.ndis.netbuffer import NetBuffer, OffloadHandle
from vnic.ndis.oids import OidOperation, OidRequest
from vnic.ndis.status import NdisStatus, StatusIndication
from vnic.transport.audit import Audit
from vnic.transport.coalesce import coalesce
from vnic.transport.inbound import Inbound
from vnic.transport.outbound import Outbound
from vnic.transport.sad import Sad, SaState
from vnic.transport.spd import Spd

_DEFAULT_KEYWORDS = Keywords()
_DEFAULT_HOST = HostSwitches()


class ReferenceEngine:
    """One card in Python; see `engine.contract.Engine` for what each call means.

    Args:
        random_source: unpredictable bytes for IVs.
        wire_mtu: largest IP packet the wire carries, in bytes.
        capabilities: what the NIC of this card can do; None is all. Given for
            IPsec V2 alone, the rest is all.
        keywords: the registry of the adapter.
        host: what the host has switched off.
        software: whether software IPsec takes what the NIC does not.
        serial: which card of the daemon this is; handles of different cards differ.
    """

    name = "reference"

    def __init__(
        self,
        random_source: RandomSource,
        wire_mtu: int = 1500,
        capabilities: OffloadCapabilities | TaskOffload | None = None,
        *,
        keywords: Keywords = _DEFAULT_KEYWORDS,
        host: HostSwitches = _DEFAULT_HOST,
        software: bool = True,
        serial: int = 0,
    ) -> None:
        hardware = TaskOffload() if capabilities is None else capabilities
        self._host = host
        self._miniport = MiniportAdapter(
            random_source, hardware, keywords=keywords, first_handle=serial << 33 | 1
        )
        self._set_encapsulation()
        self.send_observer: Observer | None = None
        self.receive_observer: Observer | None = None
        self._audit = Audit()
        self._spd = Spd()
        self._sad = Sad(self._miniport)
        self._outbound = Outbound(self._spd, self._sad, self._audit, wire_mtu)
        self._inbound = Inbound(self._spd, self._sad, self._audit)

    def _set_encapsulation(self) -> None:
        """Switch the NIC's offloads on, as a transport does that binds to it; not when the host has switched
        them off (R39)."""
        if self._host.ipsec:
            with suppress(OidError):
                self._miniport.set_encapsulation(True, True)

    @property
    def counters(self) -> CardCounters:
        return self._audit.card

    @property
    def wire_mtu(self) -> int:
        return self._outbound.wire_mtu

    @wire_mtu.setter
    def wire_mtu(self, wire_mtu: int) -> None:
        self._outbound.wire_mtu = wire_mtu

    @property
    def capabilities(self) -> OffloadCapabilities:
        return self._miniport.capabilities

    @property
    def hardware(self) -> TaskOffload:
        return self._miniport.hardware

    @property
    def current(self) -> TaskOffload:
        return self._miniport.current

    @property
    def keywords(self) -> Keywords:
        return self._miniport.keywords

    def set_keywords(self, keywords: Keywords) -> None:
        self._miniport.set_keywords(keywords)

    def oid_request(self, request: OidRequest, now: float) -> OidOperation:
        return self._miniport.oid_request(request, self._sad)

    def begin_reset(self) -> None:
        self._miniport.begin_reset()

    def end_reset(self) -> None:
        self._miniport.end_reset()

    def pause(self) -> None:
        self._miniport.pause()

    def resume(self) -> None:
        self._miniport.resume()

    def restart(self, now: float) -> None:
        self._miniport.restart()
        self._set_encapsulation()

    def remove(self) -> None:
        self._miniport.remove()

    def set_load_balanced(self, load_balanced: bool) -> None:
        self._miniport.set_load_balanced(load_balanced)

    def take_indications(self) -> list[StatusIndication]:
        return self._miniport.take_indications()

    def request_sa_deletion(self, handle: OffloadHandle) -> None:
        self._miniport.request_deletion(handle)

    @property
    def defaults(self) -> Defaults:
        return self._spd.defaults

    def set_defaults(self, defaults: Defaults) -> None:
        self._spd.set_defaults(defaults)

    def send(self, burst: list[NetBuffer], now: float) -> Outcome:
        wire = self._outbound.send(burst, now)
        self._miniport.send(wire)
        if self.send_observer is not None:
            self.send_observer(wire)
        counters = self._audit.card
        offloaded = 0
        failed = False
        for buffer in wire:
            if buffer.transmit is not None:
                if buffer.status:
                    failed = True
                else:
                    offloaded += 1
        counters.tx_offloaded += offloaded
        if failed:
            wire = self._without_failed(wire, now)
        return Outcome(wire=wire)

    def _without_failed(self, wire: list[NetBuffer], now: float) -> list[NetBuffer]:
        """Count and leave out what the NIC did not seal: it may hold clear text."""
        sealed = [buffer for buffer in wire if buffer.status is NdisStatus.SUCCESS]
        self._audit.drop(DropReason.OUT_NIC, now, count=len(wire) - len(sealed))
        return sealed

    def receive(self, burst: list[NetBuffer], now: float) -> Outcome:
        self._miniport.receive(burst)
        if self.receive_observer is not None:
            self.receive_observer(burst)
        return Outcome(host=coalesce(self._inbound.receive(burst, now)))

    def take_events(self) -> list[EngineEvent]:
        return self._audit.take_events()

    def add_sa(self, sa: SecurityAssociation, now: float, *, replace: bool = False) -> Added:
        handle = self._sad.add(sa, now, replace_existing=replace)
        return Added(handle, Offload.NIC, NdisStatus.SUCCESS)

    def update_sa(self, sa: SaId, sequence_number_high_order: int) -> None:
        self._sad.update(sa, sequence_number_high_order)

    def delete_sa(self, sa: SaId) -> SecurityAssociation:
        return self._sad.delete(sa)

    def delete_bundle(self, handle: OffloadHandle) -> list[SecurityAssociation]:
        sa = self._sad.find_handle(handle)
        if sa is None:
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "no SA has this handle",
                field="handle",
                value=str(handle),
                allowed="a handle that `sa show` lists",
            )
        partner = self._sad.table[sa].partner
        deleted = [self._sad.delete(sa)]
        return deleted if partner is None else [*deleted, self._sad.delete(partner.sa.id)]

    def find_handle(self, handle: OffloadHandle) -> SaId | None:
        return self._sad.find_handle(handle)

    def find_sa(self, sa: SaId) -> SaReport | None:
        state = self._sad.table.get(sa)
        return None if state is None else _report(state)

    def sas(self) -> list[SaReport]:
        return [_report(state) for state in self._sad]

    @property
    def sa_count(self) -> int:
        return len(self._sad.table)

    def add_policy(self, policy: PolicyEntry, *, replace: bool = False) -> PolicyEntry:
        return self._spd.add(policy, replace_existing=replace)

    def delete_policy(self, direction: Direction, selector: Selector | None, index: int = 0) -> PolicyEntry:
        if selector is None and not index:
            raise RequestError(
                "name a policy by selector or by index", field="policy", allowed="selector, index"
            )
        return self._spd.delete(direction, selector, index)

    def policies(self) -> list[PolicyEntry]:
        return self._spd.entries()

    def inner_mtu(self, wire_mtu: int) -> int:
        return self._outbound.inner_mtu(wire_mtu)


def _report(state: SaState) -> SaReport:
    return SaReport(
        sa=state.sa,
        offload_handle=state.handle,
        offload=Offload.NIC if state.handle else Offload.NONE,
        counters=state.counters,
        sequence_number=state.sequence_number,
        replay_bitmap=state.window.bitmap() if state.window is not None else 0,
        add_time=state.add_time,
        use_time=state.use_time,
    )
