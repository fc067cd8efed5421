"""OID requests under way: finished ones, and lists that are worked on slice by slice.

Law: an operation knows its request and the door that takes the SAs in it, and keeps what it must undo.

Source: sheet §4.3, §4.7; R67, R75-R79, R87-R92, R112-R116.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from vnic.errors import OidError, RequestError
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oid import DeleteSa, SaDoor
from vnic.ndis.oids import OidRequest, OidResult
from vnic.ndis.status import NdisStatus
from vnic.ndis.structs import StructError, read_add_sa, read_delete_sa, write_add_sa_handle

REVISION_1 = 1
"""Of every V2 SA structure."""
NO_HANDLE = OffloadHandle(0)

_SLICE = 32
"""Entries worked on at a time: about a millisecond."""


class FinishedOperation:
    """A request that was finished when it came back."""

    def __init__(self, request: OidRequest, result: OidResult) -> None:
        self.request = request
        self.result: OidResult | None = result

    def advance(self) -> bool:
        return True

    def abort(self, status: NdisStatus = NdisStatus.REQUEST_ABORTED) -> None:
        """Nothing is left to end."""


def refused(error: RequestError) -> OidResult:
    """The answer to a request that failed as a whole."""
    return OidResult(
        error.status if isinstance(error, OidError) else NdisStatus.INVALID_DATA,
        bytes_needed=error.bytes_needed if isinstance(error, StructError) else 0,
        message=error.message,
        field=error.field,
        value=error.value,
        allowed=error.allowed,
    )


class ListOperation(ABC):
    """A list of SAs that is worked on slice by slice.

    Args:
        door: who takes the SA requests.
        entries: offsets of the entries, of a chain that was found sound.
        finished: is told when the operation has a result.
    """

    def __init__(
        self,
        request: OidRequest,
        door: SaDoor,
        entries: list[int],
        finished: Callable[[ListOperation], None],
    ) -> None:
        self.request = request
        self.result: OidResult | None = None
        self._buffer = request.information_buffer
        self._door = door
        self._entries = entries
        self._position = 0
        self._first_error: RequestError | None = None
        self._finished = finished

    def advance(self) -> bool:
        """Work on the next slice."""
        if self.result is None:
            end = self._position + _SLICE
            self._work(self._entries[self._position : end])
            self._position = end
            if end >= len(self._entries):
                self._finish(self._outcome())
        return self.result is not None

    def abort(self, status: NdisStatus = NdisStatus.REQUEST_ABORTED) -> None:
        """End it early; nothing once it is finished."""
        if self.result is None:
            self._take_back()
            self._finish(
                OidResult(status, bytes(self._buffer), message="the request was ended before it was done")
            )

    @abstractmethod
    def _work(self, entries: list[int]) -> None:
        """Do these entries."""

    @abstractmethod
    def _take_back(self) -> None:
        """Undo what can be undone."""

    @abstractmethod
    def _outcome(self) -> OidResult:
        """The answer when all entries are done."""

    def _finish(self, result: OidResult) -> None:
        self.result = result
        self._finished(self)

    def _note(self, error: RequestError) -> None:
        """Keep the first error, without the frames that hold the request and its keys."""
        if self._first_error is None:
            self._first_error = error.with_traceback(None)

    def _answer(self, status: NdisStatus) -> OidResult:
        """With what was wrong first, if anything was."""
        error = self._first_error
        return OidResult(
            status,
            bytes(self._buffer),
            bytes_read=len(self._buffer) if status is NdisStatus.SUCCESS else 0,
            supported_revision=REVISION_1 if status is NdisStatus.SUCCESS else 0,
            message=error.message if error else "",
            field=error.field if error else "",
            value=error.value if error else "",
            allowed=error.allowed if error else "",
        )


class AddOperation(ListOperation):
    """ADD_SA: it succeeds if one entry does (R89); a failed one gets the handle NULL (R91)."""

    def __init__(
        self,
        request: OidRequest,
        door: SaDoor,
        entries: list[int],
        finished: Callable[[ListOperation], None],
    ) -> None:
        super().__init__(request, door, entries, finished)
        self._handles: list[OffloadHandle] = []

    def _work(self, entries: list[int]) -> None:
        buffer, add = self._buffer, self._door.add_sa
        for offset in entries:
            try:
                handle = add(read_add_sa(buffer, offset))
            except RequestError as error:
                self._note(error)
                handle = NO_HANDLE
            else:
                self._handles.append(handle)
            write_add_sa_handle(buffer, offset, handle)

    def _take_back(self) -> None:
        for handle in self._handles:
            try:
                self._door.delete_sa(DeleteSa(handle))
            except OidError:
                # Somebody has deleted it meanwhile (R67).
                continue
        for offset in self._entries:
            write_add_sa_handle(self._buffer, offset, NO_HANDLE)

    def _outcome(self) -> OidResult:
        if self._handles or self._first_error is None:
            return self._answer(NdisStatus.SUCCESS)
        return self._answer(refused(self._first_error).status)


class DeleteOperation(ListOperation):
    """DELETE_SA: all that can be is deleted, then it fails if something was not there."""

    def _work(self, entries: list[int]) -> None:
        for offset in entries:
            try:
                self._door.delete_sa(read_delete_sa(self._buffer, offset))
            except RequestError as error:
                self._note(error)

    def _take_back(self) -> None:
        """What was deleted stays deleted."""

    def _outcome(self) -> OidResult:
        if self._first_error is None:
            return self._answer(NdisStatus.SUCCESS)
        return self._answer(refused(self._first_error).status)
