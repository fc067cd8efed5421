"""OID requests under way on one adapter.

Law: a slice of one request a turn of the event loop, whatever the number of requests and adapters, so that
frames pass between slices. Regular OIDs one at a time, direct ones beside everything (R67, R68).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vnic.engine.contract import Card
from vnic.ndis.oids import OidOperation, OidRequest, OidResult
from vnic.ndis.status import NdisStatus

_DIRECT = 0xFC03
"""Upper half of the numbers of direct OIDs; `Oid.direct` says the same of those with a name."""


class SliceTurns:
    """Whose turn it is, first come first served, over all adapters of the daemon."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def take(self, operation: OidOperation) -> None:
        """Advance an operation by a slice when its turn comes, and let the loop see to its descriptors."""
        async with self._turn:
            # Somebody may have ended it while it waited.
            if operation.result is None:
                operation.advance()
            await asyncio.sleep(0)


class _Pending:
    """One request, whether it waits for another or is under way."""

    def __init__(self, request: OidRequest) -> None:
        self.request = request
        self.operation: OidOperation | None = None
        self.ended: NdisStatus | None = None

    def end(self, status: NdisStatus) -> bool:
        """End it early; gives whether there was something to end."""
        if self.operation is None:
            self.ended = self.ended or status
            return True
        if self.operation.result is not None:
            return False
        self.operation.abort(status)
        return True


class OidRequests:
    """The requests of one adapter."""

    def __init__(self, card: Card, clock: Callable[[], float], turns: SliceTurns) -> None:
        """Begin without any.

        Args:
            clock: monotonic seconds.
            turns: those of the daemon.
        """
        self._card = card
        self._clock = clock
        self._turns = turns
        self._regular = asyncio.Lock()
        self._pending: list[_Pending] = []

    def __len__(self) -> int:
        return len(self._pending)

    async def carry_out(self, request: OidRequest) -> OidResult:
        """Hand a request to the NIC and advance it to its end."""
        pending = _Pending(request)
        self._pending.append(pending)
        try:
            if request.oid >> 16 == _DIRECT:
                return await self._advance(pending)
            async with self._regular:
                return await self._advance(pending)
        except asyncio.CancelledError:
            pending.end(NdisStatus.REQUEST_ABORTED)
            raise
        finally:
            self._pending.remove(pending)

    async def _advance(self, pending: _Pending) -> OidResult:
        if pending.ended is not None:
            return OidResult(pending.ended, message="it was ended while it waited for another request")
        operation = pending.operation = self._card.oid_request(pending.request, self._clock())
        while (result := operation.result) is None:
            await self._turns.take(operation)
        return result

    def cancel(self, request_id: int) -> int:
        """End the requests with this id early (R77); 0 names none. Gives how many there were."""
        return self._end(NdisStatus.REQUEST_ABORTED, request_id) if request_id else 0

    def abort(self, status: NdisStatus) -> int:
        """End all requests; gives how many there were."""
        return self._end(status, None)

    def _end(self, status: NdisStatus, request_id: int | None) -> int:
        chosen = [one for one in self._pending if request_id in (None, one.request.request_id)]
        return sum(one.end(status) for one in chosen)
