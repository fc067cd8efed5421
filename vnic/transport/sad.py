"""The security association database: SAs, their live state, and who holds them: the NIC or software IPsec.

Law: an SA is here and with one of the two, or nowhere. Keys stay with the SA only to be offloaded again, in
another bundle or to software IPsec, and to be shown to those allowed; nothing here computes with them.

    typed request   -> NIC; what that refuses for want of ability or room -> software IPsec
    binary request  -> NIC, and its refusal is the answer
    the NIC holds it and may not work on it now -> software IPsec from the first packet that needs it

Source: RFC 4301 §4.4.2; one bundle, one handle (R88, R96, R113); R118.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from vnic.errors import OidError, VnicError
from vnic.ipsec.association import Direction, IpsecProtocol, SaId, SecurityAssociation
from vnic.ipsec.policy import FlowKey, Match, Template
from vnic.ipsec.udp_encapsulation import NAT_TRAVERSAL_PORT
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oid import AddSa, DeleteSa, Miniport, SaDoor, UpdateSa
from vnic.ndis.status import NdisStatus
from vnic.transport.changes import Changes
from vnic.transport.lifetimes import Lifetimes
from vnic.transport.outbound_index import OutboundIndex
from vnic.transport.requests import PROTOCOLS, associations_of, operation_of, request_for, word_for
from vnic.transport.sizes import Shape, shape_of
from vnic.transport.software import SoftwareIpsec
from vnic.transport.state import NO_HANDLE, SaState

_MAX_HANDLES = 8
"""Handles of one SA that requests may quote: the one its addition was answered with, and the latest."""

MAX_SAS = 1 << 20
"""SAs of one card, in the NIC and in software together."""

_RETRIES = 64
"""SAs that are offered to the NIC again between two bursts."""

_AT_ONCE = 2048
"""SAs that a restart offloads before frames move again: a tenth of a second."""

_NOT_YET = (NdisStatus.RESOURCES, "the NIC has started again and has not come to this SA yet")

_SOFTWARE_HELPS = (NdisStatus.NOT_SUPPORTED, NdisStatus.RESOURCES)
"""What the NIC refuses and software IPsec need not."""


class Sad(SaDoor):
    """SAs of one card and their bundles in the NIC. As `SaDoor` it takes binary requests.

    Args:
        nic: holds what it can.
        software: a NIC with every capability, for the rest; None: a refusal is a refusal.
        offloading: whether typed requests go to the NIC at all (R39).
        make_state: of what the live state of an SA is made.

    Attributes:
        table: the SAs by (destination, protocol, spi), oldest first.
        inbound: the inbound ones of `table` alone, for the receive path.
        inbound_ends: how many of those there are for a destination and protocol.
        udp_ends, udp_addresses: how many of those have UDP encapsulation, by destination and port and by
            destination alone.
        lifetimes: the limits of the SAs.
        generation: grows with every change, so that caches know they are stale.
        now: `now` of binary requests, seconds.
        reserving: whether an outbound SA sends only with numbers that `reserve` has given it.
        departed: while `reserving`, inbound SAs that are gone, and the highest number of each that nobody has
            noted; who notes it empties it.
    """

    def __init__(
        self,
        nic: Miniport,
        software: Miniport | None = None,
        *,
        offloading: bool = True,
        make_state: type[SaState] = SaState,
    ) -> None:
        self.nic = nic
        self._make_state = make_state
        self.software = None if software is None else SoftwareIpsec(software, nic)
        self._offloading = offloading
        self._handles: dict[OffloadHandle, SaState | tuple[SaState, ...]] = {}
        self.table: dict[SaId, SaState] = {}
        self.inbound: dict[tuple[bytes, int, int], SaState] = {}
        self.inbound_ends: dict[tuple[bytes, int], int] = {}
        self.udp_ends: Counter[tuple[bytes, int]] = Counter()
        self.udp_addresses: Counter[bytes] = Counter()
        self._outbound = OutboundIndex()
        self.lifetimes = Lifetimes(self)
        self._refused: dict[SaState, None] = {}
        self._chances = 0
        self._configuration = nic.configuration_generation
        self.generation = 0
        self.now = 0.0
        self.reserving = False
        self.departed: list[tuple[SecurityAssociation, int]] = []

    @property
    def outbound_changes(self) -> Changes[tuple[int, bytes]]:
        """Reqid and destination of every outbound SA that came or went."""
        return self._outbound.changes

    def __iter__(self) -> Iterator[SaState]:
        return iter(self.table.values())

    # ------------------------------------------------------------------------------- typed requests

    def add(self, sa: SecurityAssociation, now: float, *, replace_existing: bool = False) -> OffloadHandle:
        """Put an SA in and offload it, or do neither. Handle 0: the NIC refused it (`SaState.refusal`) and
        software IPsec has it.

        A replaced SA keeps its numbers and window when its keys stay, so that no number and no packet is
        ever taken twice.

        Raises:
            RequestError: a value is out of range.
            OidError: nobody takes it, or one with the same SaId exists (INVALID_PARAMETER); with
                `replace_existing`: none exists.
        """
        sa = sa.checked()
        existing = self.table.get(sa.id)
        if existing is None and replace_existing:
            raise _unknown(sa.id)
        if existing is None:
            self._check_room()
            state = self._make_state(sa, now)
            self._offload(state)
            self._store(state)
            return state.handle
        if not replace_existing:
            raise _exists(sa.id)
        if existing.sa.direction is not sa.direction:
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "the direction of an SA cannot change; delete it and add it anew",
                field="dir",
                value=sa.direction.value,
                allowed=existing.sa.direction.value,
            )
        if _same_keys(existing.sa, sa):
            sa = replace(sa, sequence_number=max(sa.sequence_number, existing.sequence_number)).checked()
        return self._replace(existing, sa, now)

    def _replace(self, existing: SaState, sa: SecurityAssociation, now: float) -> OffloadHandle:
        partner = existing.partner
        held = existing.handle
        self._release(existing)
        state = self._make_state(sa, now)
        try:
            self._offload(state)
        except VnicError:
            if held:
                self._restore(existing, partner)
            raise
        self._remove(existing)
        counters = state.counters = existing.counters
        same_keys = _same_keys(existing.sa, sa)
        if same_keys:
            state.carry_on(existing)
        else:
            state.packets_before, state.bytes_before = counters.packets, counters.bytes
        self._store(state)
        self._take_over_handles(existing, state)
        if (
            same_keys
            and existing.sa.replay_window == sa.replay_window
            and existing.sequence_number == sa.sequence_number
        ):
            state.window = existing.window
        return state.handle

    def update(self, sa_id: SaId, sequence_number_high_order: int) -> None:
        """Re-base the upper half of an ESN here and in the NIC; it only ever grows.

        An inbound window restarts full at the new number: what it never saw cannot be told from a replay.

        Raises:
            OidError: INVALID_PARAMETER: unknown, without ESN (R122), out of range, or backwards.
        """
        state = self._state(sa_id)
        sa = state.sa
        if not sa.esn:
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "the SA has no extended sequence numbers",
                field="sa",
                value=str(sa_id),
                allowed="an SA with flag esn",
            )
        current = state.sequence_number
        if not current >> 32 <= sequence_number_high_order <= 0xFFFFFFFF:
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "the upper half of a sequence number never goes back: numbers would be used twice",
                field="sequence-number-high-order",
                value=str(sequence_number_high_order),
                allowed=f"{current >> 32} to {0xFFFFFFFF}",
            )
        if state.handle:
            self.nic.update_sa(UpdateSa(state.handle, operation_of(sa), sa.spi, sequence_number_high_order))
        number = sequence_number_high_order << 32 | current & 0xFFFFFFFF
        state.nic_mark = number
        self.generation += 1
        if self.software is not None:
            self.software.rebase(state, number)
        if state.sequence is not None:
            state.sequence.last = number
        elif number != current:
            state.window = state.make_window(sa.replay_window, number)

    def reserve(self, sa_id: SaId, after: int, last: int) -> None:
        """Let an outbound SA use the numbers behind `after` up to `last`, but none that it has used.

        Args:
            after: where it is what was reserved so far, or less, its numbers just go on; where it is more,
                those between are nobody's.

        Raises:
            OidError: INVALID_PARAMETER: there is no such outbound SA.
        """
        state = self._state(sa_id)
        sequence = state.sequence
        if sequence is None:
            raise _unknown(sa_id)
        if after < sequence.last and last <= state.reserved:
            # It was asked for before what the SA has now.
            return
        if after > sequence.last and after != state.reserved:
            if state.handle and state.sa.esn:
                self.nic.update_sa(
                    UpdateSa(
                        state.handle, operation_of(state.sa), state.sa.spi, after >> 32, after & 0xFFFFFFFF
                    )
                )
            state.nic_mark = after
            if self.software is not None:
                self.software.rebase(state, after)
            sequence.last = after
        state.reserved = last
        self.lifetimes.numbers_reserved(state)
        self.generation += 1

    def withhold(self, sa_id: SaId, *, for_good: bool) -> None:
        """Give an outbound SA no numbers: now, or (`for_good`) ever, because those it used before were lost.

        Raises:
            OidError: INVALID_PARAMETER: there is none.
        """
        state = self._state(sa_id)
        state.withheld = for_good
        self.lifetimes.numbers_reserved(state)

    def delete(self, sa_id: SaId) -> SecurityAssociation:
        """Take an SA out and withdraw it from who holds it; a bundle partner stays, offloaded alone.

        Raises:
            OidError: INVALID_PARAMETER: there is none.
        """
        state = self._state(sa_id)
        self._release(state)
        self._remove(state)
        self._forget(state)
        return state.sa

    def delete_bundle(self, handle: OffloadHandle) -> list[SecurityAssociation]:
        """Take out all SAs of the bundle that a handle names or once named, and give them, ESP first.

        Raises:
            OidError: INVALID_PARAMETER: it names none.
        """
        named = self._named(handle)
        if named is None:
            raise _no_handle(handle)
        states = named if isinstance(named, tuple) else (named,)
        first = states[0]
        whole = states == first.bundle()
        for state in states:
            if whole:
                self._withdraw(state)
            else:
                self._release(state)
        for state in states:
            state.partner = None
            self._remove(state)
            self._forget(state)
        return [state.sa for state in states]

    # ------------------------------------------------------------------------------- binary requests

    def add_sa(self, request: AddSa) -> OffloadHandle:
        """See `SaDoor`. The SAs get reqid 0 and the default replay window, and either mode unless the
        request names the portion."""
        if request.udp_esp_encapsulation:
            raise OidError(
                NdisStatus.NOT_SUPPORTED,
                "the request names no UDP ports, and the inline transport frames with them: add the SA with "
                "`encap`, or use an adapter with transport external",
                field="UdpEspEncapsulation",
                value=f"{request.udp_esp_encapsulation:#x}",
                allowed="0",
            )
        destination = request.destination
        table = self.table
        for element in request.elements:
            sa_id = SaId(destination, PROTOCOLS[element.operation], element.spi)
            if sa_id in table:
                raise _exists(sa_id)
        handle = self.nic.add_sa(request)
        states = tuple([self._make_state(sa, self.now) for sa in associations_of(request)])
        for state in states:
            state.handle = handle
            state.half_known = state.sa.esn and state.window is not None
            self._store(state)
        if len(states) == 2:
            states[0].partner, states[1].partner = states[1], states[0]
            self._handles[handle] = states
        return handle

    def update_sa(self, request: UpdateSa) -> None:
        named = self._named(request.handle)
        for state in named if isinstance(named, tuple) else () if named is None else (named,):
            if operation_of(state.sa) is request.operation and state.sa.spi == request.spi:
                self.update(state.sa.id, request.sequence_number_high_order)
                return
        # The NIC knows best what is wrong with a request that names nothing here.
        self.nic.update_sa(request)

    def delete_sa(self, request: DeleteSa) -> None:
        self.delete_bundle(request.handle)

    # ------------------------------------------------------------------------------- handles

    def find_handle(self, handle: OffloadHandle) -> SaId | None:
        """The SA that a handle stands for or once stood for; a bundle's handle means its ESP SA."""
        named = self._named(handle)
        if named is None:
            return None
        return (named[0] if isinstance(named, tuple) else named).sa.id

    def _named(self, handle: OffloadHandle) -> SaState | tuple[SaState, ...] | None:
        return self._handles.get(handle)

    # ------------------------------------------------------------------------------- bundles

    def bundle(self, esp: SaState, ah: SaState) -> OffloadHandle:
        """Offload an outbound ESP and an AH SA as one bundle (ESP then AH, R98) and give its handle.

        Both must have the same end points, and the NIC must hold both.

        Raises:
            OidError: the NIC refused; both SAs are as they were.
        """
        if esp.partner is ah:
            return esp.handle
        for state in (esp, ah):
            self.unbundle(state)
        for state in (esp, ah):
            self._withdraw(state)
        try:
            self._join(esp, ah)
        except OidError:
            for state in (esp, ah):
                self._restore(state, None)
            raise
        return esp.handle

    def unbundle(self, state: SaState) -> None:
        """Offload both SAs of a bundle alone again, if it is in one.

        Raises:
            OidError: the NIC has no room for two (RESOURCES); the bundle is as it was.
        """
        partner = state.partner
        if partner is None:
            return
        self._withdraw(state)
        state.partner = partner.partner = None
        try:
            self._take_back(partner)
            self._take_back(state)
        except OidError:
            self._withdraw(partner)
            self._restore(state, partner)
            raise

    # ------------------------------------------------------------------------------- UDP encapsulation

    def wrap_as(self, state: SaState, subtype: int) -> None:
        """Have whoever holds an SA with UDP encapsulation hold it as one of this subtype; who does not do
        that holds it no more."""
        if state.udp_esp == subtype:
            return
        held = state.handle or state.refusal is not None
        self._withdraw(state)
        state.udp_esp = subtype
        self.generation += 1
        if held:
            self._take_back(state, lenient=True)

    def follow(self, state: SaState, address: bytes, port: int) -> list[SaState]:
        """Send answers to where the far end of an inbound SA is now.

        Returns:
            The outbound SAs that go there from now on: same reqid and mode, addresses and ports reversed.
        """
        sa = state.sa
        assert sa.udp is not None
        state.peer = (address, port)
        followed = []
        for one in self._outbound.newest_first(sa.reqid, sa.source):
            udp = one.sa.udp
            if (
                udp is not None
                and one.sa.reqid == sa.reqid
                and one.sa.mode is sa.mode
                and one.sa.source == sa.destination
                and udp.source_port == sa.udp.destination_port
            ):
                one.peer = (address, port)
                followed.append(one)
        self.generation += 1
        return followed

    # ------------------------------------------------------------------------------- who works on an SA

    def offers(self, state: SaState) -> bool:
        """Whether the NIC holds an SA and works on its packets now."""
        return bool(state.handle) and self.nic.offers(state.handle)

    def take_into_software(self, *states: SaState) -> None:
        """Have software IPsec hold SAs as one bundle: one SA, or ESP then AH.

        Raises:
            OidError: it cannot.
        """
        assert self.software is not None
        held = {state.software_handle for state in states} - {NO_HANDLE}
        try:
            self.software.take_in(*states)
        finally:
            if held - {states[0].software_handle}:
                # Verdicts for one of them alone, or in another bundle, name a handle that is gone.
                self.generation += 1

    def follow_deletion_request(self, state: SaState) -> list[SaState]:
        """Delete the bundle of an inbound SA from the NIC, as it asks (SaDeleteReq), and the paired outbound
        one: same protocol and reqid, addresses reversed (R118). They go on in software until they are
        replaced, or the NIC starts anew.

        Returns:
            The SAs that the NIC no longer holds; none when there is no software IPsec, and nothing changed.
        """
        if self.software is None:
            return []
        gone: list[SaState] = []
        for one in (state, self._pair_of(state)):
            if one is None or not one.handle:
                continue
            with suppress(OidError):
                self._withdraw(one)
                gone += one.bundle()
        return gone

    def _pair_of(self, state: SaState) -> SaState | None:
        sa = state.sa
        for one in self._outbound.newest_first(sa.reqid, sa.source):
            if (
                one.sa.reqid == sa.reqid
                and one.sa.source == sa.destination
                and one.sa.protocol is sa.protocol
                and one.sa.mode is sa.mode
                and one.handle
            ):
                return one
        return None

    def offer_again(self) -> None:
        """Offer the NIC again what it refused, a few at a time: all of it when its configuration has changed,
        and for each bundle that left it the SA that waits longest. Between bursts."""
        if self._configuration != self.nic.configuration_generation:
            self._configuration = self.nic.configuration_generation
            self._chances = len(self._refused)
        if not self._chances:
            return
        for _ in range(min(self._chances, _RETRIES)):
            self._chances -= 1
            state = next(iter(self._refused), None)
            if state is None or not self._offloading:
                self._chances = 0
                return
            del self._refused[state]
            self._take_back(state, lenient=True)

    def reoffload(self) -> None:
        """Offload every SA anew: the NIC has started again and holds none. What it refuses now goes on in
        software, or stays without a handle. Of very many the turn of most comes between bursts, so that
        frames need not wait for all."""
        self._handles.clear()
        done: set[SaState] = set()
        for state in self.table.values():
            state.handle = NO_HANDLE
            state.past_handles = ()
        for state in list(self.table.values()):
            if state in done:
                continue
            bundle = state.bundle()
            done.update(bundle)
            if len(done) <= _AT_ONCE or len(bundle) > 1:
                self._take_back(*bundle, lenient=True)
            else:
                state.refusal = _NOT_YET
                self._refused[state] = None
        self._chances = len(self._refused)
        self._configuration = self.nic.configuration_generation
        self.generation += 1

    # ------------------------------------------------------------------------------- looking up

    def resolve(
        self,
        template: Template,
        source: bytes,
        destination: bytes,
        flow: FlowKey,
        *,
        partner_of: SaState | None = None,
        alone: bool = True,
    ) -> SaState | None:
        """The outbound SA for a template: the newest that fits and has numbers left, else one without.

        Args:
            source, destination: end points the SA must have: the tunnel's, or the packet's own.
            flow: the packet the SA's own selector must admit.
            partner_of: the SA chosen for the same portion; its partner is preferred.
            alone: no other SA protects the same portion, so this one must carry an ICV.
        """
        best: SaState | None = None
        best_rank = (False, False, False)
        for state in self._candidates(template, destination):
            sa = state.sa
            if (
                not (state.handle or self.software)
                or state.ended
                or sa.protocol is not template.protocol
                or sa.mode not in (None, template.mode)
                or (any(sa.source) and sa.source != source)
                or template.spi not in (0, sa.spi)
                or (alone and not sa.authenticates)
                # AH around a UDP header would not get through the NAT that this is for.
                or (sa.udp is not None and not alone)
                or (sa.selector is not None and sa.selector.match(flow) is not Match.YES)
            ):
                continue
            rank = (
                state.may_send,
                partner_of is None or state.partner is partner_of,
                sa.reqid == template.reqid,
            )
            if best is None or rank > best_rank:
                best, best_rank = state, rank
                if all(rank):
                    break
        return best

    def _candidates(self, template: Template, destination: bytes) -> Iterator[SaState]:
        if template.spi:
            named = self.table.get(SaId(destination, template.protocol, template.spi))
            if named is not None and named.sequence is not None and template.reqid in (0, named.sa.reqid):
                yield named
        else:
            yield from self._outbound.newest_first(template.reqid, destination)
        yield from self._outbound.newest_first(template.reqid, bytes(len(destination)))

    def shapes(self, template: Template) -> Iterator[Shape]:
        """Shapes of the outbound SAs that a template could ever choose, whatever the packet."""
        if template.spi and template.destination is not None:
            state = self.table.get(SaId(template.destination, template.protocol, template.spi))
            if state is not None and state.sequence is not None and state.sa.mode in (None, template.mode):
                yield shape_of(state.sa)
            return
        yield from self._outbound.shapes(template)

    def _state(self, sa_id: SaId) -> SaState:
        try:
            return self.table[sa_id]
        except KeyError:
            raise _unknown(sa_id) from None

    # ------------------------------------------------------------------------------- keeping books

    def _check_room(self) -> None:
        """Refuse what would let the SAD grow without bound, now that software takes what the NIC refuses."""
        if len(self.table) >= MAX_SAS:
            raise OidError(
                NdisStatus.RESOURCES,
                f"the card has {len(self.table)} SAs and takes no more; delete some",
                field="sa_count",
                value=str(len(self.table)),
                allowed=f"up to {MAX_SAS}",
            )

    def _store(self, state: SaState) -> None:
        sa = state.sa
        sa_id = SaId(sa.destination, sa.protocol, sa.spi)
        self.table[sa_id] = state
        if state.window is not None:
            self.inbound[sa_id] = state
            end = (sa.destination, sa.protocol)
            self.inbound_ends[end] = self.inbound_ends.get(end, 0) + 1
            if sa.udp is not None:
                self.udp_ends[sa.destination, sa.udp.destination_port] += 1
                self.udp_addresses[sa.destination] += 1
        else:
            self._outbound.add(state)
            if self.reserving:
                self._hold_back(state)
        if state.handle:
            self._handles[state.handle] = state
        if state.refusal is not None:
            self._refused[state] = None
        if sa.lifetime is not None:
            self.lifetimes.watch(state)
        self.generation += 1

    def _hold_back(self, state: SaState) -> None:
        """Let an outbound SA send nothing before numbers are reserved for it."""
        assert state.sequence is not None
        state.reserved = 0
        state.sequence.stop = 0
        self.lifetimes.want_numbers(state)

    def _take_over_handles(self, old: SaState, new: SaState) -> None:
        """Let the handles of an SA name the one in its place."""
        new.past_handles = old.past_handles
        for handle in old.past_handles:
            named = self._handles.get(handle)
            if isinstance(named, tuple):
                self._handles[handle] = tuple([new if one is old else one for one in named])
            elif named is old:
                self._handles[handle] = new

    def _remove(self, state: SaState) -> None:
        """Take an SA out of all that finds it but its handles."""
        sa_id = state.sa.id
        del self.table[sa_id]
        if state.window is not None:
            if self.reserving and state.window.top != state.noted:
                self.departed.append((state.sa, state.window.top))
            del self.inbound[sa_id]
            end = (sa_id.destination, sa_id.protocol)
            self.inbound_ends[end] -= 1
            if not self.inbound_ends[end]:
                del self.inbound_ends[end]
            if state.sa.udp is not None:
                _count_down(self.udp_ends, (sa_id.destination, state.sa.udp.destination_port))
                _count_down(self.udp_addresses, sa_id.destination)
        else:
            self._outbound.remove(state)
        if state.refusal is not None:
            self._refused.pop(state, None)
        state.dispose()
        if not self.table:
            self._shrink()
        self.generation += 1

    def _shrink(self) -> None:
        """Give back what empty dictionaries keep of the time when they were full."""
        self.table.clear()
        self.inbound.clear()
        self._outbound.shrink()

    def _hold(self, handle: OffloadHandle, *states: SaState) -> None:
        """The NIC holds these SAs under this handle."""
        for state in states:
            state.handle = handle
            state.nic_mark = state.sequence_number
            state.refusal = None
            self._refused.pop(state, None)
        self._handles[handle] = states if len(states) > 1 else states[0]
        self.generation += 1

    def _forget(self, state: SaState) -> None:
        """Let no handle name an SA any more."""
        for handle in (state.handle, *state.past_handles):
            self._unname(state, handle)
        state.past_handles = ()

    def _unname(self, state: SaState, handle: OffloadHandle) -> None:
        named = self._handles.get(handle)
        if named is state:
            del self._handles[handle]
            if not self._handles:
                self._handles.clear()
        elif isinstance(named, tuple) and state in named:
            self._handles[handle] = named[0] if named[1] is state else named[1]

    # ------------------------------------------------------------------------------- asking the NIC

    def _offload(self, state: SaState) -> None:
        """Have the NIC hold a new SA, or software IPsec if that is able where the NIC is not.

        Raises:
            OidError: neither does.
        """
        try:
            self._add_to_nic(state)
        except OidError as error:
            error.field = word_for(error.field, state.sa)
            if self.software is None or error.status not in _SOFTWARE_HELPS:
                raise
            state.refusal = (error.status, str(error))
            try:
                self.software.take_in(state)
            except OidError as last:
                last.field = word_for(last.field, state.sa)
                raise last from error

    def _add_to_nic(self, *states: SaState) -> OffloadHandle:
        if not self._offloading:
            raise OidError(NdisStatus.NOT_SUPPORTED, "the host has switched IPsec offload off (R39)")
        _check_udp(states[0].sa)
        handle = self.nic.add_sa(request_for(*states))
        for state in states:
            state.handle = handle
        return handle

    def _take_back(self, *states: SaState, lenient: bool = False) -> None:
        """Offload SAs of the table that the NIC does not hold, as one bundle.

        Args:
            lenient: a refusal of any kind leaves them without a handle.

        Raises:
            OidError: the NIC refused.
        """
        try:
            handle = self._add_to_nic(*states)
        except OidError as error:
            for state in states:
                state.refusal = (error.status, str(error))
                if state.partner is None:
                    self._refused[state] = None
            if lenient:
                return
            raise
        self._hold(handle, *states)

    def _withdraw(self, state: SaState) -> None:
        """Take an SA, and its partner, out of the NIC and of software IPsec."""
        if state.handle:
            self.nic.delete_sa(DeleteSa(state.handle))
            self._chances += 1
            for one in state.bundle():
                self._retire_handle(one)
        if self.software is not None and self.software.take_out(state):
            self.generation += 1

    def _retire_handle(self, state: SaState) -> None:
        handles = (*state.past_handles, state.handle)
        if len(handles) > _MAX_HANDLES:
            self._unname(state, handles[1])
            handles = handles[:1] + handles[2:]
        state.past_handles = handles
        state.handle = NO_HANDLE
        self.generation += 1

    def _join(self, esp: SaState, ah: SaState) -> None:
        """Offload two SAs that the NIC does not hold as one bundle."""
        handle = self._add_to_nic(esp, ah)
        self._hold(handle, esp, ah)
        esp.partner = ah
        ah.partner = esp

    def _release(self, state: SaState) -> None:
        """Withdraw an SA from the NIC; a bundle partner takes the place that frees, alone."""
        held = state.handle
        self._withdraw(state)
        partner = state.partner
        if partner is not None:
            state.partner = partner.partner = None
            if held:
                self._restore(partner, None)

    def _restore(self, state: SaState, partner: SaState | None) -> None:
        """Offload a released SA again as it was, alone or in a bundle with `partner`.

        The NIC held it a moment ago and refuses only what cannot be alone, or when it is broken. The SA then
        stays without a handle: it goes on in software, or nothing is sent with it and what it should
        protect is dropped.
        """
        if partner is None:
            self._take_back(state, lenient=True)
            return
        self._withdraw(partner)
        esp, ah = (state, partner) if state.sa.protocol is IpsecProtocol.ESP else (partner, state)
        esp.partner = ah
        ah.partner = esp
        self._take_back(esp, ah, lenient=True)


def _same_keys(old: SecurityAssociation, new: SecurityAssociation) -> bool:
    return (
        old.encryption is new.encryption
        and old.integrity is new.integrity
        and old.encryption_key == new.encryption_key
        and old.integrity_key == new.integrity_key
    )


def _check_udp(sa: SecurityAssociation) -> None:
    """Refuse for the NIC an SA with UDP encapsulation that it cannot work on, whatever its capabilities are.

    Raises:
        OidError: NOT_SUPPORTED.
    """
    if sa.udp is None:
        return
    if sa.direction is Direction.INBOUND:
        if sa.udp.destination_port != NAT_TRAVERSAL_PORT:
            raise OidError(
                NdisStatus.NOT_SUPPORTED,
                "the NIC finds ESP in UDP by port 4500 (R139)",
                field="encap",
                value=str(sa.udp.destination_port),
                allowed=str(NAT_TRAVERSAL_PORT),
            )
    elif sa.ipv6:
        raise OidError(
            NdisStatus.NOT_SUPPORTED,
            "the NIC makes no UDP checksum over what it encrypts, and IPv6 wants one",
            field="encap",
            value="IPv6",
            allowed="IPv4",
        )


_Key = TypeVar("_Key", bound=Hashable)


def _count_down(counter: Counter[_Key], key: _Key) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _exists(sa_id: SaId) -> OidError:
    return OidError(
        NdisStatus.INVALID_PARAMETER,
        "an SA with this destination, protocol and SPI exists; delete or update it",
        field="spi",
        value=str(sa_id),
        allowed="another SPI",
    )


def _unknown(sa_id: SaId) -> OidError:
    return OidError(
        NdisStatus.INVALID_PARAMETER,
        "there is no such SA",
        field="sa",
        value=str(sa_id),
        allowed="an SA that `sa show` lists",
    )


def _no_handle(handle: OffloadHandle) -> OidError:
    return OidError(
        NdisStatus.INVALID_PARAMETER,
        "no SA has this handle",
        field="handle",
        value=str(handle),
        allowed="a handle that adding an SA gave and deleting has not taken back",
    )
