"""The reference engine: transport and NIC in Python. The specification of every other engine.

Law: joins the two roles and decides nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import inf
from typing import ClassVar

from vnic.engine.card import NicCard
from vnic.engine.contract import Added, Observer, Offload, Outcome, RandomSource, SaMtu, SaReport
from vnic.errors import OidError, RequestError
from vnic.ipsec.association import Direction, IpsecProtocol, SaId, SecurityAssociation
from vnic.ipsec.counters import CardCounters, EngineEvent
from vnic.ipsec.drops import DropReason
from vnic.ipsec.judgement import Judgement
from vnic.ipsec.policy import Defaults, FlowKey, PolicyEntry, Selector
from vnic.ipsec.renewal import Renewal
from vnic.miniport.adapter import AdapterState, MiniportAdapter
from vnic.miniport.ciphers import CounterIvs
from vnic.miniport.counter_keys import CounterKeys
from vnic.ndis.capabilities import OffloadCapabilities, TaskOffload
from vnic.ndis.keywords import HostSwitches, Keywords
from vnic.ndis.netbuffer import NetBuffer, OffloadHandle
from vnic.ndis.oids import Oid, OidOperation, OidRequest
from vnic.ndis.status import NdisStatus
from vnic.transport.audit import Audit
from vnic.transport.coalesce import coalesce
from vnic.transport.inbound import Inbound
from vnic.transport.outbound import Outbound
from vnic.transport.rekeying import rekey
from vnic.transport.sad import MAX_SAS, Sad
from vnic.transport.spd import Spd
from vnic.transport.state import SaState

_DEFAULT_KEYWORDS = Keywords()
_DEFAULT_HOST = HostSwitches()


class ReferenceEngine(NicCard):
    """One card in Python; see `engine.contract.Engine` for what each call means.

    Args:
        random_source: unpredictable bytes for IVs.
        wire_mtu: largest IP packet the wire carries, in bytes.
        capabilities: what the NIC of this card can do; None is all. Where only those of IPsec V2 are given,
            the NIC has all others.
        keywords: the registry of the adapter.
        host: what the host has switched off.
        software: whether software IPsec takes what the NIC does not.
        serial: which card of the daemon this is. Handles of its NIC are numbered from serial * 2^33 + 1,
            those of its software IPsec 2^32 further on, so that no card knows another's.
    """

    name = "reference"

    make_state: ClassVar[type[SaState]] = SaState
    make_ivs: ClassVar[type[CounterIvs]] = CounterIvs
    make_outbound: ClassVar[type[Outbound]] = Outbound
    make_inbound: ClassVar[type[Inbound]] = Inbound

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
        counter_keys = self._counter_keys = CounterKeys(random_source, self.make_ivs)
        self._host = host
        super().__init__(
            MiniportAdapter(
                random_source,
                hardware,
                keywords=keywords,
                counter_keys=counter_keys,
                first_handle=serial << 33 | 1,
            )
        )
        self._set_encapsulation()
        self._software: MiniportAdapter | None = None
        if software:
            self._software = MiniportAdapter(
                random_source,
                TaskOffload(OffloadCapabilities(sa_offload_capacity=MAX_SAS)),
                counter_keys=counter_keys,
                first_handle=(serial << 33 | 1 << 32) + 1,
            )
            self._software.set_encapsulation(True, True)
        self.send_observer: Observer | None = None
        self.receive_observer: Observer | None = None
        self._audit = Audit()
        self._spd = Spd()
        self._sad = Sad(self._miniport, self._software, offloading=host.ipsec, make_state=self.make_state)
        self._outbound = self.make_outbound(
            self._spd,
            self._sad,
            self._audit,
            wire_mtu,
            first_identification=int.from_bytes(random_source(4), "big"),
        )
        self._inbound = self.make_inbound(self._spd, self._sad, self._audit, self._outbound)
        self._lifetimes = self._sad.lifetimes

    def _set_encapsulation(self) -> None:
        """Switch the NIC's offloads on, as a transport does that binds to it; not when the host has switched
        them off (R39)."""
        if self._host.ipsec:
            with suppress(OidError):
                self._miniport.set_encapsulation(True, True)

    @property
    def punts(self) -> dict[str, int] | None:
        return None

    @property
    def software(self) -> bool:
        return self._software is not None

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
    def fragment_before(self) -> bool:
        return self._outbound.fragment_before

    @fragment_before.setter
    def fragment_before(self, before: bool) -> None:
        self._outbound.fragment_before = before

    @property
    def reassembly_limit(self) -> int:
        return self._inbound.reassembly_limit

    @reassembly_limit.setter
    def reassembly_limit(self, limit: int) -> None:
        self._inbound.reassembly_limit = limit
        self._outbound.reassembly.limit(limit)

    def oid_request(self, request: OidRequest, now: float) -> OidOperation:
        self._sad.now = now
        operation = self._miniport.oid_request(request, self._sad)
        if request.oid == Oid.TCP_OFFLOAD_PARAMETERS and self._host.ipsec and self._miniport.receive_waits:
            # What was switched on by it works on receive from the next encapsulation on (R47).
            with suppress(OidError):
                self._miniport.set_encapsulation(None, None)
        return operation

    def restart(self, now: float) -> None:
        self._miniport.restart()
        self._set_encapsulation()
        self._sad.now = now
        self._sad.reoffload()

    @property
    def _stopped(self) -> bool:
        return self._miniport.state is not AdapterState.RUNNING

    def _stop(self, burst: list[NetBuffer], now: float) -> Outcome:
        """End a burst that comes while the NIC is paused, in reset or removed."""
        if burst:
            self._audit.drop(DropReason.NIC_STOPPED, now, count=len(burst))
        return Outcome()

    def _check_accepting(self, resetting: NdisStatus) -> None:
        """Refuse an SA request while the NIC takes none, also where the NIC would not be asked.

        Args:
            resetting: the status during a reset (R115).
        """
        state = self._miniport.state
        if state in (AdapterState.REMOVED, AdapterState.HALTED):
            raise OidError(
                NdisStatus.NOT_ACCEPTED, "the NIC was removed (R80); delete the adapter and add it again"
            )
        if state is AdapterState.RESETTING:
            raise OidError(resetting, "the NIC is being reset; ask again when it is done")

    @property
    def defaults(self) -> Defaults:
        return self._spd.defaults

    def set_defaults(self, defaults: Defaults) -> None:
        self._spd.set_defaults(defaults)

    def send(self, burst: list[NetBuffer], now: float) -> Outcome:
        if self._stopped:
            return self._stop(burst, now)
        if now >= self._lifetimes.next_time:
            self._lifetimes.advance(now)
        wire = self._seal(self._outbound.send(burst, now), now)
        if self._lifetimes.ending:
            self._lifetimes.flush()
        return Outcome(wire=wire, host=self._outbound.take_answers())

    def _seal(self, wire: list[NetBuffer], now: float) -> list[NetBuffer]:
        """Have the NIC seal what the transport framed; gives what may leave."""
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
        return wire

    def _without_failed(self, wire: list[NetBuffer], now: float) -> list[NetBuffer]:
        """Count and leave out what the NIC did not seal: it may hold clear text."""
        sealed = [buffer for buffer in wire if buffer.status is NdisStatus.SUCCESS]
        self._audit.drop(DropReason.OUT_NIC, now, count=len(wire) - len(sealed))
        return sealed

    def receive(self, burst: list[NetBuffer], now: float) -> Outcome:
        if self._stopped:
            return self._stop(burst, now)
        if now >= self._lifetimes.next_time:
            self._lifetimes.advance(now)
        self._miniport.receive(burst)
        if self.receive_observer is not None:
            self.receive_observer(burst)
        host = coalesce(self._inbound.receive(burst, now))
        answers = self._inbound.take_answers()
        wire = self._seal(answers, now) if answers else []
        if self._lifetimes.ending:
            self._lifetimes.flush()
        return Outcome(wire=wire, host=host)

    def sa_mtu(self, sa: SaId, now: float) -> SaMtu | None:
        state = self._sad.table.get(sa)
        if state is None or state.sequence is None:
            return None
        mtu, path_mtu, known_for = self._outbound.sa_mtu(state, now)
        return SaMtu(state.sa, path_mtu, known_for, mtu)

    def policy_mtu(self, policy: PolicyEntry) -> int:
        return self._outbound.policy_mtu(policy)

    @property
    def enforce_cipher_limits(self) -> bool:
        return self._lifetimes.enforce_cipher_limits

    @enforce_cipher_limits.setter
    def enforce_cipher_limits(self, enforce: bool) -> None:
        if enforce != self._lifetimes.enforce_cipher_limits:
            self._lifetimes.enforce_cipher_limits = enforce
            self._lifetimes.look_again()

    @property
    def deadline(self) -> float:
        if self._miniport.state in (AdapterState.REMOVED, AdapterState.HALTED):
            return inf
        return min(
            self._lifetimes.deadline,
            self._inbound.deadline,
            self._outbound.reassembly.deadline,
            self._outbound.deadline,
            self._audit.deadline,
        )

    def keep_time(self, now: float) -> Outcome:
        self._audit.keep_time(now)
        self._inbound.keep_time(now)
        self._outbound.keep_time(now)
        if now >= self._lifetimes.next_time:
            self._lifetimes.advance(now)
        if self._miniport.state in (AdapterState.RUNNING, AdapterState.PAUSED):
            self._lifetimes.flush()
        wire: list[NetBuffer] = []
        if now >= self._outbound.deadline:
            wire = self._outbound.keep_alive(now)
            if not self._stopped:
                wire += self._seal(self._outbound.make_dummies(now), now)
                if self._lifetimes.ending:
                    self._lifetimes.flush()
        return Outcome(wire=[] if self._stopped else wire)

    def take_events(self) -> list[EngineEvent]:
        return self._audit.take_events() + self._lifetimes.take_events()

    def add_sa(self, sa: SecurityAssociation, now: float, *, replace: bool = False) -> Added:
        self._check_accepting(NdisStatus.RESET_IN_PROGRESS)
        self._sad.add(sa, now, replace_existing=replace)
        return self._added(self._sad.table[sa.id])

    def _added(self, state: SaState) -> Added:
        status, message = state.refusal or (NdisStatus.SUCCESS, "")
        return Added(state.handle, self._offload_of(state), status, message)

    def rekey(self, renewals: Sequence[Renewal], grace: int | None, now: float) -> list[Added]:
        self._check_accepting(NdisStatus.RESET_IN_PROGRESS)
        return [self._added(state) for state in rekey(self._sad, self._spd.entries(), renewals, grace, now)]

    @property
    def reserving(self) -> bool:
        return self._sad.reserving

    @reserving.setter
    def reserving(self, reserving: bool) -> None:
        self._sad.reserving = reserving

    def reserve(self, sa: SaId, after: int, last: int) -> None:
        self._sad.reserve(sa, after, last)

    def departed_numbers(self) -> list[tuple[SecurityAssociation, int]]:
        departed, self._sad.departed = self._sad.departed, []
        return departed

    def inbound_numbers(self) -> Iterator[tuple[SecurityAssociation, int]]:
        yield from self.departed_numbers()
        for state in list(self._sad.inbound.values()):
            top = state.sequence_number
            if top != state.noted:
                state.noted = top
                yield state.sa, top

    def withhold(self, sa: SaId, *, for_good: bool) -> None:
        self._sad.withhold(sa, for_good=for_good)

    def sas_named(self, spi: int, destination: bytes | None, protocol: IpsecProtocol | None) -> list[SaId]:
        return [
            name
            for name in self._sad.table
            if name.spi == spi
            and destination in (None, name.destination)
            and protocol in (None, name.protocol)
        ]

    def update_sa(self, sa: SaId, sequence_number_high_order: int) -> None:
        self._check_accepting(NdisStatus.RESET_IN_PROGRESS)
        self._sad.update(sa, sequence_number_high_order)

    def delete_sa(self, sa: SaId) -> SecurityAssociation:
        self._check_accepting(NdisStatus.NOT_ACCEPTED)
        return self._sad.delete(sa)

    def delete_bundle(self, handle: OffloadHandle) -> list[SecurityAssociation]:
        self._check_accepting(NdisStatus.NOT_ACCEPTED)
        return self._sad.delete_bundle(handle)

    def find_handle(self, handle: OffloadHandle) -> SaId | None:
        return self._sad.find_handle(handle)

    def find_sa(self, sa: SaId) -> SaReport | None:
        state = self._sad.table.get(sa)
        return None if state is None else self._report(state)

    def sas(self) -> list[SaReport]:
        return list(self.each_sa())

    def each_sa(self) -> Iterator[SaReport]:
        table = self._sad.table
        for name in list(table):
            state = table.get(name)
            if state is not None:
                yield self._report(state)

    @property
    def offloaded_count(self) -> int:
        return len(self._miniport)

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

    def find_policy(
        self, direction: Direction, selector: Selector | None, index: int = 0
    ) -> PolicyEntry | None:
        return self._spd.find(direction, selector, index)

    @property
    def policy_count(self) -> int:
        return len(self._spd)

    def policies(self) -> list[PolicyEntry]:
        return self._spd.entries()

    def judge(self, direction: Direction, flow: FlowKey) -> Judgement:
        if direction is Direction.INBOUND:
            return self._inbound.judge(flow)
        return self._outbound.judge(flow)

    def inner_mtu(self, wire_mtu: int) -> int:
        return self._outbound.inner_mtu(wire_mtu)

    def _offload_of(self, state: SaState) -> Offload:
        if self._sad.offers(state):
            return Offload.NIC
        return Offload.NONE if self._software is None else Offload.SOFTWARE

    def _report(self, state: SaState) -> SaReport:
        return SaReport(
            sa=state.sa,
            offload_handle=state.handle,
            offload=self._offload_of(state),
            counters=state.counters,
            sequence_number=state.sequence_number,
            replay_bitmap=state.window.bitmap() if state.window is not None else 0,
            add_time=state.add_time,
            use_time=state.use_time,
            expiring=state.expiring,
            cipher_limit=state.cipher_limit,
            needed_window=0 if state.window is None else state.window.needed_bits,
            reserved=state.reserved if self._sad.reserving and state.sequence is not None else None,
            withheld=state.withheld,
            replaced=state.replaced,
            leaves=state.leaves,
            peer=state.peer,
        )
