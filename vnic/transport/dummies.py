"""Dummy packets: when an SA that is to look busy has sent nothing for a while.

Law: knows when and for whom; what a dummy is and whether it may leave decides `outbound`.

Source: RFC 4303 §2.6.
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf
from typing import NamedTuple

from vnic.ipsec.association import SaId, SecurityAssociation
from vnic.ipsec.policy import FlowKey

_A_TURN = 128
"""Dummies made at once: a few milliseconds."""


class Course(NamedTuple):
    """The last packet of an SA, after which its dummies are made."""

    flow: FlowKey
    ethernet: bytes
    """Everything before the IP header."""
    length: int
    """Bytes of the packet inside the tunnel."""


class Dummies:
    """The dummies of one card. SAs are known by name, so that keys of those that are gone are not kept.

    Attributes:
        deadline: `now` at which one may be due; infinite is never. It may be early, never late.
    """

    def __init__(self) -> None:
        self.deadline = inf
        self._waiting: dict[SaId, tuple[float, float, Course]] = {}
        """When it stands in the queue, when it is due, and after what."""
        self._queue: list[tuple[float, SaId]] = []

    def note(self, sa: SecurityAssociation, course: Course, now: float) -> None:
        """An SA has sent a packet, or a dummy: the next one is wanted an interval later."""
        name = sa.id
        due = now + sa.header_settings.dummy_interval_ms / 1000
        place, _, _ = self._waiting.get(name, (inf, inf, course))
        if due < place:
            place = due
            self._enqueue(place, name)
        self._waiting[name] = place, due, course

    def take(self, now: float) -> list[Course]:
        """Give those that are due, a few at a time, and forget them until `note`."""
        taken: list[Course] = []
        queue = self._queue
        while queue and queue[0][0] <= now and len(taken) < _A_TURN:
            place, name = heappop(queue)
            noted, due, course = self._waiting.get(name, (inf, inf, None))
            if place != noted or course is None:
                continue
            if due > now:
                self._waiting[name] = due, due, course
                self._enqueue(due, name)
            else:
                del self._waiting[name]
                taken.append(course)
        self.deadline = queue[0][0] if queue else inf
        return taken

    def _enqueue(self, place: float, name: SaId) -> None:
        heappush(self._queue, (place, name))
        self.deadline = self._queue[0][0]
