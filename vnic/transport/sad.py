"""The security association database: SAs, their live state, and what the NIC holds of them.

Law: an SA is here and in the NIC, or in neither. Keys stay with the SA only to be offloaded again in
another bundle and to be shown to those allowed; nothing here computes with them.

Source: RFC 4301 §4.4.2; one bundle, one handle (R88, R96).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from vnic.errors import OidError, VnicError
from vnic.ipsec.association import Direction, IpsecProtocol, SaId, SecurityAssociation
from vnic.ipsec.counters import SaCounters
from vnic.ipsec.policy import FlowKey, Match, Template
from vnic.ipsec.replay import ReplayWindow
from vnic.ipsec.sequence import OutboundSequence
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oid import (
    NO_ALGORITHM,
    AddSa,
    AlgorithmInfo,
    DeleteSa,
    Miniport,
    Operation,
    SaElement,
    UpdateSa,
)
from vnic.ndis.status import NdisStatus

_NO_HANDLE = OffloadHandle(0)
_MAX_HANDLES = 8
"""Handles of one SA that requests may quote: the one its addition was answered with, and the latest."""


class SaState:
    """Live state of one SA; engines share it, so that each number is handed out and checked once.

    Attributes:
        sa: the agreement itself.
        iv_length: bytes of explicit IV in each packet, kept because each packet asks.
        handle: what the NIC calls the bundle this SA is offloaded in.
        handles: that one and some it had before, the first among them; requests may still quote them.
        partner: the other SA of that bundle (AH for ESP, ESP for AH), or None.
        sequence: outbound numbers; None on an inbound SA.
        window: inbound window; None on an outbound SA.
        add_time, use_time: seconds of `now`; use_time 0 before the first packet.
        exhaustion_told: whether the end of the numbers has been reported.
    """

    __slots__ = (
        "add_time",
        "counters",
        "exhaustion_told",
        "handle",
        "handles",
        "iv_length",
        "partner",
        "sa",
        "sequence",
        "use_time",
        "window",
    )

    def __init__(self, sa: SecurityAssociation, now: float) -> None:
        self.sa = sa
        self.iv_length = sa.iv_length
        self.handle = _NO_HANDLE
        self.handles: list[OffloadHandle] = []
        self.partner: SaState | None = None
        self.sequence: OutboundSequence | None = None
        self.window: ReplayWindow | None = None
        if sa.direction is Direction.OUTBOUND:
            self.sequence = OutboundSequence(extended=sa.esn, last=sa.sequence_number)
        else:
            self.window = ReplayWindow(sa.replay_window, sa.sequence_number)
        self.counters = SaCounters()
        self.add_time = now
        self.use_time = 0.0
        self.exhaustion_told = False

    @property
    def sequence_number(self) -> int:
        """Outbound: last number used. Inbound: highest number authenticated."""
        if self.sequence is not None:
            return self.sequence.last
        assert self.window is not None
        return self.window.top


class Sad:
    """SAs of one card and their bundles in the NIC.

    Attributes:
        table: the SAs by (destination, protocol, spi), oldest first.
        inbound: the inbound ones of `table` alone, for the receive path.
        generation: grows with every change, so that caches know they are stale.
    """

    def __init__(self, miniport: Miniport) -> None:
        self._miniport = miniport
        self._handles: dict[OffloadHandle, SaId] = {}
        self.table: dict[SaId, SaState] = {}
        self.inbound: dict[tuple[bytes, int, int], SaState] = {}
        self.generation = 0
        self._outbound: dict[tuple[int, bytes | None], list[SaState]] = {}
        self._outbound_generation = -1

    def __iter__(self) -> Iterator[SaState]:
        return iter(self.table.values())

    def add(self, sa: SecurityAssociation, now: float, *, replace_existing: bool = False) -> OffloadHandle:
        """Put an SA in and offload it, or do neither.

        A replaced SA keeps its numbers and window when its keys stay, so that no number and no packet is
        ever taken twice.

        Raises:
            RequestError: a value is out of range.
            OidError: the NIC refused, or one with the same SaId exists (INVALID_PARAMETER); with
                `replace_existing`: none exists.
        """
        sa = sa.checked()
        existing = self.table.get(sa.id)
        if existing is None and replace_existing:
            raise _unknown(sa.id)
        if existing is None:
            return self._store(sa, self._offload(sa), now).handle
        if not replace_existing:
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "an SA with this destination, protocol and SPI exists; delete or update it",
                field="spi",
                value=str(sa.id),
            )
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
        self._release(existing)
        try:
            handle = self._offload(sa)
        except VnicError:
            self._restore(existing, partner)
            raise
        del self.table[existing.sa.id]
        state = self._store(sa, handle, now, existing.handles)
        state.counters = existing.counters
        if (
            _same_keys(existing.sa, sa)
            and existing.sa.replay_window == sa.replay_window
            and existing.sequence_number == sa.sequence_number
        ):
            state.window = existing.window
        return handle

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
        operation = Operation.AH if sa.protocol is IpsecProtocol.AH else Operation.ESP
        self._miniport.update_sa(UpdateSa(state.handle, operation, sa.spi, sequence_number_high_order))
        number = sequence_number_high_order << 32 | current & 0xFFFFFFFF
        if state.sequence is not None:
            state.sequence.last = number
        elif number != current:
            state.window = ReplayWindow(sa.replay_window, number)

    def delete(self, sa_id: SaId) -> SecurityAssociation:
        """Take an SA out and withdraw it from the NIC; a bundle partner stays, offloaded alone.

        Raises:
            OidError: INVALID_PARAMETER: there is none.
        """
        state = self._state(sa_id)
        self._release(state)
        del self.table[sa_id]
        self.inbound.pop(sa_id, None)
        for handle in state.handles:
            self._forget(state, handle)
        self.generation += 1
        return state.sa

    def find_handle(self, handle: OffloadHandle) -> SaId | None:
        """The SA that a handle stands for or once stood for; a bundle's handle means its ESP SA."""
        return self._handles.get(handle)

    def bundle(self, esp: SaState, ah: SaState) -> OffloadHandle:
        """Offload an outbound ESP and an AH SA as one bundle (ESP then AH, R98) and give its handle.

        Both must have the same end points.

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

    def resolve(self, template: Template, source: bytes, destination: bytes, flow: FlowKey) -> SaState | None:
        """The outbound SA for a template: the newest that fits and has numbers left, else one without.

        Args:
            source, destination: end points the SA must have: the tunnel's, or the packet's own.
            flow: the packet the SA's own selector must admit.
        """
        best: SaState | None = None
        best_rank = (False, False)
        for state in self._candidates(template.reqid, destination):
            sa = state.sa
            if (
                not state.handle
                or sa.protocol is not template.protocol
                or sa.mode is not template.mode
                or (any(sa.source) and sa.source != source)
                or template.spi not in (0, sa.spi)
                or (sa.selector is not None and sa.selector.match(flow) is not Match.YES)
            ):
                continue
            assert state.sequence is not None
            rank = (not state.sequence.exhausted, sa.reqid == template.reqid)
            if best is None or rank >= best_rank:
                best, best_rank = state, rank
        return best

    def fitting(self, template: Template) -> Iterator[SaState]:
        """Outbound SAs that a template could ever choose, whatever the packet."""
        for state in self._candidates(template.reqid, template.destination):
            sa = state.sa
            if sa.protocol is template.protocol and sa.mode is template.mode and template.spi in (0, sa.spi):
                yield state

    def _candidates(self, reqid: int, destination: bytes | None) -> list[SaState]:
        """Outbound SAs with this reqid and destination, oldest first; 0 and None are any.

        The index lasts until the next change, so that neither a new flow nor a look at every policy has to
        search all SAs.
        """
        if self._outbound_generation != self.generation:
            self._outbound_generation = self.generation
            self._outbound = {}
            for state in self.table.values():
                sa = state.sa
                if sa.direction is Direction.OUTBOUND:
                    for key in {(a, b) for a in (sa.reqid, 0) for b in (sa.destination, None)}:
                        self._outbound.setdefault(key, []).append(state)
        return self._outbound.get((reqid, destination), [])

    def _state(self, sa_id: SaId) -> SaState:
        try:
            return self.table[sa_id]
        except KeyError:
            raise _unknown(sa_id) from None

    def _store(
        self,
        sa: SecurityAssociation,
        handle: OffloadHandle,
        now: float,
        handles: Iterable[OffloadHandle] = (),
    ) -> SaState:
        state = SaState(sa, now)
        state.handles += handles
        self.table[sa.id] = state
        if sa.direction is Direction.INBOUND:
            self.inbound[sa.id] = state
        self._remember(state, handle)
        return state

    def _remember(self, state: SaState, handle: OffloadHandle) -> None:
        state.handle = handle
        state.handles.append(handle)
        self._handles[handle] = state.sa.id
        if len(state.handles) > _MAX_HANDLES:
            self._forget(state, state.handles.pop(1))
        self.generation += 1

    def _forget(self, state: SaState, handle: OffloadHandle) -> None:
        # An AH SA's past handle may name the ESP SA it was bundled with.
        if self._handles.get(handle) == state.sa.id:
            del self._handles[handle]

    def _offload(self, sa: SecurityAssociation, sequence_number: int | None = None) -> OffloadHandle:
        number = sa.sequence_number if sequence_number is None else sequence_number
        request = AddSa(
            inbound=sa.direction is Direction.INBOUND,
            source=sa.source,
            destination=sa.destination,
            elements=(_element(sa, number),),
            portion=sa.mode,
        )
        try:
            return self._miniport.add_sa(request)
        except OidError as error:
            error.field = _word(error.field, sa)
            raise

    def _withdraw(self, state: SaState) -> None:
        if state.handle:
            self._miniport.delete_sa(DeleteSa(state.handle))
            state.handle = _NO_HANDLE

    def _join(self, esp: SaState, ah: SaState) -> None:
        """Offload two SAs that the NIC does not hold as one bundle."""
        handle = self._miniport.add_sa(
            AddSa(
                inbound=False,
                source=esp.sa.source,
                destination=esp.sa.destination,
                elements=(
                    _element(esp.sa, esp.sequence_number),
                    _element(ah.sa, ah.sequence_number),
                ),
                portion=esp.sa.mode,
            )
        )
        self._remember(ah, handle)
        self._remember(esp, handle)
        esp.partner = ah
        ah.partner = esp

    def _release(self, state: SaState) -> None:
        """Withdraw an SA from the NIC; a bundle partner takes the place that frees, alone."""
        self._withdraw(state)
        partner = state.partner
        if partner is not None:
            state.partner = partner.partner = None
            partner.handle = _NO_HANDLE
            self._restore(partner, None)

    def _restore(self, state: SaState, partner: SaState | None) -> None:
        """Offload a released SA again as it was, alone or in a bundle with `partner`.

        The NIC held it a moment ago and refuses only if it is broken. The SA then stays without a handle:
        nothing is sent with it, and what it should protect is dropped.
        """
        if partner is None:
            self._remember(state, self._offload(state.sa, state.sequence_number))
            return
        self._withdraw(partner)
        if state.sa.protocol is IpsecProtocol.ESP:
            self._join(state, partner)
        else:
            self._join(partner, state)

    def unbundle(self, state: SaState) -> None:
        """Offload both SAs of a bundle alone again, if it is in one.

        Raises:
            OidError: the NIC has no room for two (RESOURCES); the bundle is as it was.
        """
        partner = state.partner
        if partner is None:
            return
        self._release(state)
        try:
            self._restore(state, None)
        except OidError:
            self._restore(state, partner)
            raise


def _element(sa: SecurityAssociation, sequence_number: int) -> SaElement:
    authentication = NO_ALGORITHM
    encryption = NO_ALGORITHM
    if sa.integrity is not None:
        icv = sa.icv_length if sa.icv_length != sa.integrity.icv_lengths[0] else 0
        authentication = AlgorithmInfo(sa.integrity.ndis_identifier, sa.integrity_key, icv)
    if sa.encryption is not None:
        icv = sa.icv_length if sa.encryption.combined else 0
        encryption = AlgorithmInfo(sa.encryption.ndis_identifier, sa.encryption_key, icv)
    return SaElement(
        operation=Operation.AH if sa.protocol is IpsecProtocol.AH else Operation.ESP,
        spi=sa.spi,
        authentication=authentication,
        encryption=encryption,
        esn=sa.esn,
        sequence_number_high_order=sequence_number >> 32,
    )


def _word(field: str, sa: SecurityAssociation) -> str:
    """The word of an SA request that a member of AddSa stands for, where there is one."""
    combined = sa.encryption is not None and sa.encryption.combined
    words = {
        "elements[0].encryption.": "aead" if combined else "enc",
        "elements[0].authentication.": "auth",
        "elements[0].spi": "spi",
        "source": "src",
        "destination": "dst",
    }
    return next((word for member, word in words.items() if field.startswith(member)), field)


def _same_keys(old: SecurityAssociation, new: SecurityAssociation) -> bool:
    return (
        old.encryption is new.encryption
        and old.integrity is new.integrity
        and old.encryption_key == new.encryption_key
        and old.integrity_key == new.integrity_key
    )


def _unknown(sa_id: SaId) -> OidError:
    return OidError(
        NdisStatus.INVALID_PARAMETER,
        "there is no such SA",
        field="sa",
        value=str(sa_id),
        allowed="an SA that `sa show` lists",
    )
