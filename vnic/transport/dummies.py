"""Dummy packets: when an SA that is to look busy has sent nothing for a while.

Law: knows when and for whom; what a dummy is and whether it may leave decides `outbound`.

Source: RFC 4303 §2.6.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from vnic.ipsec.policy import FlowKey
from vnic.transport.state import SaState


class Course(NamedTuple):
    """The last packet of an SA, after which its dummies are made."""

    flow: FlowKey
    ethernet: bytes
    """Everything before the IP header."""
    length: int
    """Bytes of the packet inside the tunnel."""


class Dummies:
    """The dummies of one card.

    Attributes:
        deadline: `now` at which one may be due; infinite is never. It may be early, never late.
    """

    def __init__(self) -> None:
        self.deadline = inf
        self._waiting: dict[SaState, tuple[float, Course]] = {}

    def note(self, state: SaState, course: Course, now: float) -> None:
        """An SA has sent a packet, or a dummy: the next one is wanted an interval later."""
        due = now + state.sa.header_settings.dummy_interval_ms / 1000
        self._waiting[state] = due, course
        self.deadline = min(self.deadline, due)

    def take(self, now: float) -> list[Course]:
        """Give those that are due, and forget them until `note`."""
        due = [(state, course) for state, (then, course) in self._waiting.items() if then <= now]
        for state, _ in due:
            del self._waiting[state]
        self.deadline = min((then for then, _ in self._waiting.values()), default=inf)
        return [course for _, course in due]
