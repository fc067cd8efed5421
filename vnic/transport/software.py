"""Software IPsec: a second NIC without limits, for what the first may or can not do.

Law: holds an SA only from the moment it is needed. Numbers and windows are the transport's and so the same
for both; IVs never repeat because both take them from one source (the engine sees to that).

Extended sequence numbers: either NIC follows the upper half by the packets it sees, and so loses it when the
other has worked for 2^31 packets. Each is told the whole number anew (R120) long before.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from vnic.errors import OidError
from vnic.ipsec.sequence import infer_extended
from vnic.ndis.netbuffer import NetBuffer, OffloadHandle, ReceiveInfo
from vnic.ndis.oid import DeleteSa, Miniport, UpdateSa
from vnic.transport.requests import operation_of, request_for
from vnic.transport.state import NO_HANDLE, SaState

_STALE = 1 << 30
"""Numbers a NIC may miss and still know the upper half for certain."""


class SoftwareIpsec:
    """The second NIC and what it holds.

    Args:
        miniport: has every capability and its IPsec switched on.
        nic: the first, whose upper halves are kept up with what passes here.
    """

    def __init__(self, miniport: Miniport, nic: Miniport) -> None:
        self._miniport = miniport
        self._nic = nic
        self._nic_is_behind: list[SaState] = []
        self._inside: dict[SaState, set[SaState]] = {}
        """Inbound SAs with extended numbers, by the SA whose packets they came in."""

    def take_in(self, *states: SaState) -> OffloadHandle:
        """Hold SAs as one bundle, if they are not held so: one SA, or ESP then AH; gives its handle.

        Raises:
            OidError: they cannot be held at all.
        """
        first = states[0]
        partner = states[1] if len(states) == 2 else None
        if first.software_handle and first.software_partner is partner:
            return first.software_handle
        for state in states:
            self.take_out(state)
        request = request_for(*states)
        if request.inbound and request.udp_esp_encapsulation:
            # The UDP header is taken off before, whatever its ports are.
            request = replace(request, udp_esp_encapsulation=0)
        handle = self._miniport.add_sa(request)
        for state in states:
            state.software_handle = handle
            state.software_mark = state.sequence_number
        if partner is not None:
            first.software_partner = partner
            partner.software_partner = first
        return handle

    def take_out(self, state: SaState) -> bool:
        """Forget an SA and the bundle it is held in; gives whether it was held."""
        if not state.software_handle:
            return False
        self._miniport.delete_sa(DeleteSa(state.software_handle))
        self._inside.pop(state, None)
        partner = state.software_partner
        for one in (state, partner):
            if one is not None:
                one.software_handle = NO_HANDLE
                one.software_partner = None
        return True

    def rebase(self, state: SaState, number: int) -> None:
        """Tell the software the upper half of an SA's number, if it holds the SA; the lower may be any."""
        if state.software_handle:
            update = UpdateSa(state.software_handle, operation_of(state.sa), state.sa.spi, number >> 32)
            self._miniport.update_sa(update)
            state.software_mark = number

    def seal(
        self, burst: list[NetBuffer], states: list[SaState], waiting: list[NetBuffer]
    ) -> list[NetBuffer]:
        """Seal frames that were framed with the latest numbers of these SAs, in place.

        Args:
            waiting: frames that the NIC has yet to seal; their numbers are older.

        Returns:
            The sealed ones, without `transmit`: the NIC has nothing to do with them any more.
        """
        for state in states:
            if state.sa.esn:
                last = state.sequence_number
                self._keep_up(state, last - len(burst), last)
        if self._nic_is_behind:
            self._update_nic_unless_it_waits(waiting)
        self._miniport.send(burst)
        sealed = [buffer for buffer in burst if not buffer.status]
        for buffer in sealed:
            buffer.transmit = None
        return sealed

    def open(self, buffer: NetBuffer, state: SaState, low: int) -> ReceiveInfo | None:
        """Open a frame of an inbound SA and of those inside that are held, in place.

        Args:
            low: the number in the outermost header, as on the wire.
        """
        try:
            self.take_in(*state.bundle())
        except OidError:
            return None
        if state.sa.esn:
            number = infer_extended(low, state.sequence_number)
            self._keep_up(state, number, max(number, state.sequence_number))
        for inner in self._inside.get(state, ()):
            self._keep_up(inner, inner.sequence_number, inner.sequence_number)
        self._miniport.receive([buffer])
        return buffer.receive

    def opened(self, states: list[SaState]) -> None:
        """Take note of the SAs of a packet that was opened here, outermost first, their numbers checked."""
        for state in states:
            if state.sa.esn:
                self._keep_up(state, state.sequence_number, state.sequence_number)
                if state is not states[0]:
                    self._inside.setdefault(states[0], set()).add(state)

    def _keep_up(self, state: SaState, latest: int, highest: int) -> None:
        """See to it that both NICs know the upper half, as packets pass here and not there.

        Args:
            latest: number before the next packet here.
            highest: number when it has passed.
        """
        if state.software_handle and _is_stale(state, state.software_mark, latest):
            _tell_number(self._miniport, state.software_handle, state, latest)
        state.software_mark = highest
        if state.handle and _is_stale(state, state.nic_mark, highest):
            state.nic_mark = highest
            self._nic_is_behind.append(state)

    def update_nic(self) -> None:
        """Tell the NIC the upper halves that it has lost touch with. Between bursts: frames that wait for it
        have older numbers."""
        for state in self._nic_is_behind:
            self._update_nic(state)
        self._nic_is_behind.clear()

    def _update_nic_unless_it_waits(self, waiting: list[NetBuffer]) -> None:
        """Do so at once for SAs none of whose frames waits: the NIC's next one is newer than all so far."""
        handles = {
            handle
            for buffer in waiting
            if buffer.transmit is not None
            for handle in (buffer.transmit.offload_handle, buffer.transmit.tunnel_handle)
        }
        for state in self._nic_is_behind:
            if state.handle not in handles:
                self._update_nic(state)
        self._nic_is_behind = [state for state in self._nic_is_behind if state.handle in handles]

    def _update_nic(self, state: SaState) -> None:
        if state.handle:
            with suppress(OidError):
                _tell_number(self._nic, state.handle, state, state.sequence_number)


def _is_stale(state: SaState, mark: int, number: int) -> bool:
    """Whether one who last knew of number `mark` may take `number` for one of another half.

    On send a NIC that has sealed nothing since it was told a half knows that half alone; on receive it tries
    the next one as well.
    """
    if state.sequence is not None and mark >> 32 != number >> 32:
        return True
    return not -_STALE < number - mark < _STALE


def _tell_number(miniport: Miniport, handle: OffloadHandle, state: SaState, number: int) -> None:
    """Tell a NIC where the numbers of an SA are."""
    miniport.update_sa(
        UpdateSa(handle, operation_of(state.sa), state.sa.spi, number >> 32, number & 0xFFFFFFFF)
    )
