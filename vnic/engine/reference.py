"""The reference engine: transport and NIC in Python. The specification of every other engine.

Law: joins the two roles and decides nothing itself.
"""

from __future__ import annotations

from vnic.engine.contract import Outcome, RandomSource, SaReport
from vnic.errors import RequestError
from vnic.ipsec.association import Direction, SaId, SecurityAssociation
from vnic.ipsec.counters import CardCounters, EngineEvent
from vnic.ipsec.drops import DropReason
from vnic.ipsec.policy import Defaults, PolicyEntry, Selector
from vnic.miniport.adapter import MiniportAdapter
from vnic.ndis.capabilities import OffloadCapabilities
from vnic.ndis.netbuffer import NetBuffer, OffloadHandle
from vnic.ndis.status import NdisStatus
from vnic.transport.audit import Audit
from vnic.transport.coalesce import coalesce
from vnic.transport.inbound import Inbound
from vnic.transport.outbound import Outbound
from vnic.transport.sad import Sad, SaState
from vnic.transport.spd import Spd


class ReferenceEngine:
    """One card in Python; see `engine.contract.Engine` for what each call means.

    Args:
        random_source: unpredictable bytes for IVs.
        wire_mtu: largest IP packet the wire carries, in bytes.
        capabilities: what the NIC of this card can do.
    """

    name = "reference"

    def __init__(
        self,
        random_source: RandomSource,
        wire_mtu: int = 1500,
        capabilities: OffloadCapabilities | None = None,
    ) -> None:
        self._miniport = MiniportAdapter(random_source, capabilities or OffloadCapabilities())
        self._audit = Audit()
        self._spd = Spd()
        self._sad = Sad(self._miniport)
        self._outbound = Outbound(self._spd, self._sad, self._audit, wire_mtu)
        self._inbound = Inbound(self._spd, self._sad, self._audit)

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
    def defaults(self) -> Defaults:
        return self._spd.defaults

    def set_defaults(self, defaults: Defaults) -> None:
        self._spd.set_defaults(defaults)

    def send(self, burst: list[NetBuffer], now: float) -> Outcome:
        wire = self._outbound.send(burst, now)
        self._miniport.send(wire)
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
        return Outcome(host=coalesce(self._inbound.receive(burst, now)))

    def take_events(self) -> list[EngineEvent]:
        return self._audit.take_events()

    def add_sa(self, sa: SecurityAssociation, now: float, *, replace: bool = False) -> OffloadHandle:
        return self._sad.add(sa, now, replace_existing=replace)

    def update_sa(self, sa: SaId, sequence_number_high_order: int) -> None:
        self._sad.update(sa, sequence_number_high_order)

    def delete_sa(self, sa: SaId) -> SecurityAssociation:
        return self._sad.delete(sa)

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
        counters=state.counters,
        sequence_number=state.sequence_number,
        replay_bitmap=state.window.bitmap() if state.window is not None else 0,
        add_time=state.add_time,
        use_time=state.use_time,
    )
