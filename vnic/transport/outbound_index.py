"""Outbound SAs by what a policy's template looks for.

Law: follows every change of the SAD at once and in constant time, however many SAs there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vnic.ipsec.policy import Template
from vnic.transport.changes import Changes
from vnic.transport.sizes import Shape, shape_of
from vnic.transport.state import SaState


class _Bucket:
    """Several SAs with one reqid and destination, oldest first, and how many there are of each shape."""

    __slots__ = ("shapes", "states")

    def __init__(self) -> None:
        self.states: dict[SaState, None] = {}
        self.shapes: dict[Shape, int] = {}

    def add(self, state: SaState) -> None:
        self.states[state] = None
        _count(self.shapes, shape_of(state.sa), 1)

    def remove(self, state: SaState) -> None:
        del self.states[state]
        _count(self.shapes, shape_of(state.sa), -1)


class OutboundIndex:
    """Outbound SAs by reqid and destination; reqid 0 is any.

    An SA alone with its reqid and destination stands in the table itself.

    Attributes:
        changes: reqid and destination of every SA that came or went.
    """

    def __init__(self) -> None:
        self.changes: Changes[tuple[int, bytes]] = Changes()
        self._buckets: dict[tuple[int, bytes], SaState | _Bucket] = {}
        self._shapes: dict[int, dict[Shape, int]] = {}

    def add(self, state: SaState) -> None:
        """Put an SA in, as the newest."""
        self.changes.note((state.sa.reqid, state.sa.destination))
        buckets = self._buckets
        for reqid in {0, state.sa.reqid}:
            key = (reqid, state.sa.destination)
            found = buckets.get(key)
            if found is None:
                buckets[key] = state
            elif isinstance(found, _Bucket):
                found.add(state)
            else:
                bucket = buckets[key] = _Bucket()
                bucket.add(found)
                bucket.add(state)
            _count(self._shapes.setdefault(reqid, {}), shape_of(state.sa), 1)

    def remove(self, state: SaState) -> None:
        """Take an SA out that is in."""
        self.changes.note((state.sa.reqid, state.sa.destination))
        buckets = self._buckets
        for reqid in {0, state.sa.reqid}:
            key = (reqid, state.sa.destination)
            found = buckets[key]
            if isinstance(found, _Bucket):
                found.remove(state)
            if not isinstance(found, _Bucket) or not found.states:
                del buckets[key]
            shapes = self._shapes[reqid]
            _count(shapes, shape_of(state.sa), -1)
            if not shapes:
                del self._shapes[reqid]

    def shrink(self) -> None:
        """Give back what empty dictionaries keep of the time when they were full."""
        self._buckets = {}
        self._shapes = {}

    def newest_first(self, reqid: int, destination: bytes) -> Iterable[SaState]:
        """SAs with this reqid and this very destination."""
        found = self._buckets.get((reqid, destination))
        if isinstance(found, _Bucket):
            return reversed(found.states)
        return () if found is None else (found,)

    def shapes(self, template: Template) -> Iterator[Shape]:
        """Every shape that an SA for the template may have, whatever its SPI."""
        shapes: Iterable[Shape]
        if template.destination is None:
            shapes = self._shapes.get(template.reqid, ())
        else:
            shapes = self._of(template.reqid, template.destination)
        for shape in shapes:
            if shape.protocol is template.protocol and shape.mode in (None, template.mode):
                yield shape

    def _of(self, reqid: int, destination: bytes) -> Iterator[Shape]:
        for address in (destination, bytes(len(destination))):
            found = self._buckets.get((reqid, address))
            if isinstance(found, _Bucket):
                yield from found.shapes
            elif found is not None:
                yield shape_of(found.sa)


def _count(shapes: dict[Shape, int], shape: Shape, change: int) -> None:
    count = shapes.get(shape, 0) + change
    if count:
        shapes[shape] = count
    else:
        del shapes[shape]
