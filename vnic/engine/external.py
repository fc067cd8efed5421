"""The engine of an external transport: the NIC alone, and a list of what it holds.

Law: joins nothing and decides nothing; what a protocol driver hands down goes to the NIC as it is, and what
the NIC says goes up as it is.

Source: sheet §4.7, §6, §7; R84-R123, R167, R171, R197.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from vnic.engine.card import NicCard
from vnic.engine.contract import Added, Observer, Offload, RandomSource, SaReport
from vnic.errors import OidError, VnicError
from vnic.ipsec.association import Direction, IpsecProtocol, SaId, SecurityAssociation
from vnic.ipsec.counters import CardCounters, SaCounters
from vnic.ipsec.drops import DropReason
from vnic.miniport.adapter import AdapterState, MiniportAdapter
from vnic.ndis.capabilities import TaskOffload
from vnic.ndis.keywords import Keywords
from vnic.ndis.netbuffer import NetBuffer, NetBufferList, OffloadHandle
from vnic.ndis.oid import AddSa, DeleteSa, UpdateSa
from vnic.ndis.oids import OidOperation, OidRequest
from vnic.ndis.status import NdisStatus
from vnic.transport.requests import PROTOCOLS, associations_of, operation_of, request_for, word_for
from vnic.transport.state import SaState

_DEFAULT_HARDWARE = TaskOffload()
_DEFAULT_KEYWORDS = Keywords()
_MAX_HALF = 0xFFFFFFFF
_HANDLE_BITS = 33
"""Handles of one card; the inline transport's has two NICs."""


class _Held(NamedTuple):
    """What is known of one bundle of the NIC."""

    request: AddSa | SecurityAssociation
    """As it was asked for; a binary request may hold two SAs."""
    add_time: float

    def associations(self) -> list[SecurityAssociation]:
        """The SAs of the bundle, in the order of processing on send."""
        request = self.request
        if isinstance(request, SecurityAssociation):
            return [request]
        associations = associations_of(request)
        if not request.inbound:
            return list(associations)
        # Replay is the driver's to check, and what it does is not known here.
        return [replace(sa, replay_window=0) for sa in associations]


class _Books:
    """The bundles of the NIC by handle and by the names of their SAs."""

    def __init__(self) -> None:
        self.held: dict[OffloadHandle, _Held] = {}
        self.sa_count = 0
        self._names: dict[SaId, OffloadHandle | OrderedDict[OffloadHandle, None]] = {}
        """By name the bundle that has it; all of them, oldest first, where there are several."""

    def enter(self, handle: OffloadHandle, held: _Held) -> None:
        self.held[handle] = held
        for sa in _names(held.request):
            self.sa_count += 1
            named = self._names.get(sa)
            if named is None:
                self._names[sa] = handle
            elif isinstance(named, OrderedDict):
                named[handle] = None
            else:
                self._names[sa] = OrderedDict.fromkeys((named, handle))

    def strike(self, handle: OffloadHandle) -> _Held | None:
        held = self.held.pop(handle, None)
        if held is None:
            return None
        for sa in _names(held.request):
            self.sa_count -= 1
            named = self._names[sa]
            if isinstance(named, OrderedDict) and len(named) > 1:
                del named[handle]
            else:
                del self._names[sa]
        if not self.held:
            # An empty table keeps the room of the time when it was full.
            self.clear()
        return held

    def find(self, sa: SaId) -> OffloadHandle | None:
        """The oldest bundle that has an SA of this name."""
        named = self._names.get(sa)
        return next(iter(named)) if isinstance(named, OrderedDict) else named

    def clear(self) -> None:
        self.held = {}
        self.sa_count = 0
        self._names = {}


class _Door:
    """The door of SA requests, that notes what passes."""

    def __init__(self, miniport: MiniportAdapter, books: _Books, now: float) -> None:
        self._miniport = miniport
        self._books = books
        self._now = now

    def add_sa(self, request: AddSa) -> OffloadHandle:
        handle = self._miniport.add_sa(request)
        self._books.enter(handle, _Held(request, self._now))
        return handle

    def update_sa(self, request: UpdateSa) -> None:
        self._miniport.update_sa(request)
        held = self._books.held.get(request.handle)
        if held is not None:
            self._books.held[request.handle] = held._replace(request=_rebased(held.request, request))

    def delete_sa(self, request: DeleteSa) -> None:
        self._miniport.delete_sa(request)
        self._books.strike(request.handle)


class ExternalEngine(NicCard):
    """One NIC in Python for a protocol driver outside; see `engine.contract.ExternalCard`.

    Its reports of SAs have no counters, numbers or windows: those are the driver's.

    Args:
        random_source: unpredictable bytes for IVs.
        wire_mtu: largest IP packet the wire carries, in bytes.
        hardware: what the NIC could do at all.
        keywords: the registry of the adapter.
        serial: which card of the daemon this is; handles of different cards differ.

    Raises:
        RequestError: the hardware claims what the NIC cannot do.
    """

    name = "reference"

    def __init__(
        self,
        random_source: RandomSource,
        wire_mtu: int = 1500,
        hardware: TaskOffload = _DEFAULT_HARDWARE,
        *,
        keywords: Keywords = _DEFAULT_KEYWORDS,
        serial: int = 0,
    ) -> None:
        self.wire_mtu = wire_mtu
        self.send_observer: Observer | None = None
        self.receive_observer: Observer | None = None
        super().__init__(
            MiniportAdapter(
                random_source, hardware, keywords=keywords, first_handle=serial << _HANDLE_BITS | 1
            )
        )
        self._books = _Books()
        self._counters = CardCounters()

    # ---------------------------------------------------------------------------------- frames

    def transmit(self, lists: list[NetBufferList], now: float) -> list[NetBuffer]:
        wire = self._miniport.transmit(lists)
        sealed = sum(buffer.transmit is not None and buffer.transmit.offload_handle != 0 for buffer in wire)
        self._counters.tx_offloaded += sealed
        self._counters.tx_passed += len(wire) - sealed
        if self.send_observer is not None:
            seen = wire + _failed(lists)
            if seen:
                self.send_observer(seen)
        return wire

    def receive(self, burst: list[NetBuffer], now: float) -> list[NetBuffer]:
        counters = self._counters
        if self._miniport.state is not AdapterState.RUNNING:
            reason = DropReason.NIC_STOPPED
            counters.drops[reason] = counters.drops.get(reason, 0) + len(burst)
            return []
        self._miniport.receive(burst)
        for buffer in burst:
            info = buffer.receive
            if info is None:
                counters.rx_passed += 1
            elif info.verified:
                counters.rx_offloaded += 1
        if self.receive_observer is not None:
            self.receive_observer(burst)
        return burst

    # ---------------------------------------------------------------------------------- the NIC

    @property
    def counters(self) -> CardCounters:
        return self._counters

    def oid_request(self, request: OidRequest, now: float) -> OidOperation:
        return self._miniport.oid_request(request, _Door(self._miniport, self._books, now))

    def restart(self, now: float) -> None:
        self._miniport.restart()
        self._books.clear()

    # ---------------------------------------------------------------------------------- SAs

    def sas(self) -> list[SaReport]:
        return list(self.each_sa())

    def each_sa(self) -> Iterator[SaReport]:
        for handle in list(self._books.held):
            held = self._books.held.get(handle)
            if held is None:
                continue
            for sa in held.associations():
                # Both may have gone since, or one, and the other stayed under a new handle.
                if self._books.find(sa.id) is not None:
                    yield _report(handle, sa, held.add_time)

    @property
    def offloaded_count(self) -> int:
        return len(self._miniport)

    @property
    def sa_count(self) -> int:
        return self._books.sa_count

    def add_sa(self, sa: SecurityAssociation, now: float, *, replace: bool = False) -> Added:
        sa = sa.checked()
        if sa.lifetime is not None:
            raise OidError(
                NdisStatus.NOT_SUPPORTED,
                "the external transport counts the lifetimes of its SAs itself",
                field="limit",
                value=next(word for word, _ in sa.lifetime.limits()),
                allowed="no limit, or an adapter with the inline transport",
            )
        old = self._books.find(sa.id)
        if old is not None and not replace:
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "an SA with this destination, protocol and SPI exists; delete or update it",
                field="spi",
                value=str(sa.id),
                allowed="another SPI",
            )
        if not replace:
            handle = self._offload(sa, now)
        elif old is None:
            raise _unknown(sa.id)
        else:
            handle = self._replace(old, sa, now)
        return Added(handle, Offload.NIC, NdisStatus.SUCCESS)

    def _replace(self, old: OffloadHandle, sa: SecurityAssociation, now: float) -> OffloadHandle:
        held = self._books.held[old]
        present, rest = _apart(held, sa.id)
        if present.direction is not sa.direction:
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "the direction of an SA cannot change; delete it and add it anew",
                field="dir",
                value=sa.direction.value,
                allowed=present.direction.value,
            )
        self._check_offered(sa, *rest)
        # Out first: there may be room for one only, and an inbound name or a counter-mode key is held once.
        self._withdraw(old)
        try:
            handle = self._offload(sa, now)
        except VnicError:
            self._enter(held)
            raise
        try:
            for other in rest:
                self._enter(_Held(other, held.add_time))
        except VnicError:
            self._withdraw(handle)
            self._enter(held)
            raise
        return handle

    def update_sa(self, sa: SaId, sequence_number_high_order: int) -> None:
        handle = self._books.find(sa)
        if handle is None:
            raise _unknown(sa)
        present, _ = _apart(self._books.held[handle], sa)
        lowest = present.sequence_number >> 32 if present.direction is Direction.OUTBOUND else 0
        if not lowest <= sequence_number_high_order <= _MAX_HALF:
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "the upper half of a sequence number never goes back: numbers would be used twice",
                field="sequence-number-high-order",
                value=str(sequence_number_high_order),
                allowed=f"{lowest} to {_MAX_HALF}",
            )
        request = UpdateSa(handle, operation_of(present), sa.spi, sequence_number_high_order)
        _Door(self._miniport, self._books, 0.0).update_sa(request)

    def delete_sa(self, sa: SaId) -> SecurityAssociation:
        handle = self._books.find(sa)
        if handle is None:
            raise _unknown(sa)
        present, rest = _apart(self._books.held[handle], sa)
        self._check_offered(*rest)
        held = self._withdraw(handle)
        for other in rest:
            self._enter(_Held(other, held.add_time))
        return present

    def delete_bundle(self, handle: OffloadHandle) -> list[SecurityAssociation]:
        if handle not in self._books.held:
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "there is no SA with this handle",
                field="handle",
                value=str(handle)[:64],
                allowed="a handle that `vnic sa show` lists",
            )
        return self._withdraw(handle).associations()

    def find_handle(self, handle: OffloadHandle) -> SaId | None:
        held = self._books.held.get(handle)
        if held is None:
            return None
        names = _names(held.request)
        return next((name for name in names if name.protocol is IpsecProtocol.ESP), names[0])

    def find_sa(self, sa: SaId) -> SaReport | None:
        handle = self._books.find(sa)
        if handle is None:
            return None
        held = self._books.held[handle]
        return _report(handle, _apart(held, sa)[0], held.add_time)

    def _offload(self, sa: SecurityAssociation, now: float) -> OffloadHandle:
        try:
            handle = self._miniport.add_sa(_request(sa))
        except OidError as error:
            error.field = word_for(error.field, sa)
            raise
        self._books.enter(handle, _Held(sa, now))
        return handle

    def _check_offered(self, *associations: SecurityAssociation) -> None:
        """Refuse what the NIC, as it is configured now, would not hold, before anything is withdrawn for it.

        Raises:
            OidError: as `MiniportAdapter.check_sa`.
        """
        for sa in associations:
            try:
                self._miniport.check_sa(_request(sa))
            except OidError as error:
                error.field = word_for(error.field, sa)
                raise

    def _enter(self, held: _Held) -> None:
        """Offload again what was held a moment ago, under a new handle."""
        request = held.request
        handle = self._miniport.add_sa(request if isinstance(request, AddSa) else _request(request))
        self._books.enter(handle, held)

    def _withdraw(self, handle: OffloadHandle) -> _Held:
        self._miniport.delete_sa(DeleteSa(handle))
        held = self._books.strike(handle)
        assert held is not None
        return held


def _failed(lists: list[NetBufferList]) -> list[NetBuffer]:
    """The frames of lists that did not go out, as an observer sees them."""
    failed: list[NetBuffer] = []
    for one in lists:
        if one.status is not NdisStatus.SUCCESS:
            for frame in one.frames:
                buffer = NetBuffer(frame, None, one.transmit)
                buffer.status = one.status
                buffer.reason = one.reason
                failed.append(buffer)
    return failed


def _names(request: AddSa | SecurityAssociation) -> list[SaId]:
    if isinstance(request, SecurityAssociation):
        return [request.id]
    return [
        SaId(request.destination, PROTOCOLS[element.operation], element.spi) for element in request.elements
    ]


def _apart(held: _Held, sa: SaId) -> tuple[SecurityAssociation, list[SecurityAssociation]]:
    """Give the SA of that name and the others of its bundle."""
    associations = held.associations()
    (present,) = (one for one in associations if one.id == sa)
    return present, [one for one in associations if one is not present]


def _request(sa: SecurityAssociation) -> AddSa:
    state = SaState(sa, 0.0)
    # The driver counts: of the numbers no more is known here than an OID request says.
    state.half_known = True
    return request_for(state)


def _rebased(request: AddSa | SecurityAssociation, update: UpdateSa) -> AddSa | SecurityAssociation:
    """Give the request with the upper half of a sequence number as it is now."""
    high = update.sequence_number_high_order
    if isinstance(request, SecurityAssociation):
        return replace(request, sequence_number=high << 32 | request.sequence_number & _MAX_HALF)
    elements = tuple(
        replace(one, sequence_number_high_order=high) if one.operation is update.operation else one
        for one in request.elements
    )
    return replace(request, elements=elements)


def _report(handle: OffloadHandle, sa: SecurityAssociation, add_time: float) -> SaReport:
    return SaReport(
        sa=sa,
        offload_handle=handle,
        offload=Offload.NIC,
        counters=SaCounters(),
        sequence_number=sa.sequence_number,
        replay_bitmap=0,
        add_time=add_time,
        use_time=0.0,
    )


def _unknown(sa: SaId) -> OidError:
    return OidError(
        NdisStatus.INVALID_PARAMETER,
        "there is no such SA",
        field="sa",
        value=str(sa),
        allowed="an SA that `vnic sa show` lists",
    )
