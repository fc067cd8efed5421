"""What happened, told to everybody who listens.

Law: events are numbered once, for all listeners alike. Telling never waits: a listener that does not keep
up loses the oldest of its events, and hears how many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from vnic.control.interface import Event, EventWord

QUEUE_LENGTH = 1024
"""Events that may wait for one listener."""


def rfc3339(seconds: float) -> str:
    """Write a wall clock time, seconds since 1970, in UTC with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Events:
    """The numbering and the listeners.

    Attributes:
        number: of the last event.
    """

    def __init__(self, wall_clock: Any, queue_length: int = QUEUE_LENGTH) -> None:
        """Begin with no event.

        Args:
            wall_clock: gives seconds since 1970.
            queue_length: events that may wait for one listener.
        """
        self.number = 0
        self._wall_clock = wall_clock
        self._queue_length = queue_length
        self._listeners: set[_Listener] = set()

    def heard(self) -> bool:
        """Whether anybody listens; if not, `pass_over` is enough."""
        return bool(self._listeners)

    def pass_over(self) -> None:
        """Number an event that nobody hears."""
        self.number += 1

    def tell(self, kind: EventWord, text: str, **details: Any) -> None:
        """Number an event and hand it to every listener.

        Args:
            kind, text: as in `Event`; the text holds no key.
            details: further fields of `Event`.
        """
        self.number += 1
        if not self._listeners:
            return
        event = self._event(kind, text, self.number, **details)
        for listener in self._listeners:
            listener.put(event)

    async def listen(self) -> AsyncIterator[Event]:
        """Give every event from now on; the first says that the listening has begun."""
        listener = _Listener(self._queue_length)
        self._listeners.add(listener)
        try:
            yield self._event("subscribed", "listening", self.number)
            while True:
                await listener.wait()
                lost, last_lost = listener.take_lost()
                if lost:
                    text = f"{lost} events lost: this listener did not keep up"
                    yield self._event("lost", text, last_lost, lost=lost)
                yield listener.take()
        finally:
            self._listeners.discard(listener)

    def _event(self, kind: EventWord, text: str, number: int, **details: Any) -> Event:
        return Event(
            sequence_number=number, time=rfc3339(self._wall_clock()), kind=kind, text=text, **details
        )


class _Listener:
    """The queue of one listener."""

    def __init__(self, queue_length: int) -> None:
        self._queue: deque[Event] = deque()
        self._queue_length = queue_length
        self._lost = 0
        self._last_lost = 0
        self._filled = asyncio.Event()

    def put(self, event: Event) -> None:
        if len(self._queue) == self._queue_length:
            self._last_lost = self._queue.popleft().sequence_number
            self._lost += 1
        self._queue.append(event)
        self._filled.set()

    async def wait(self) -> None:
        while not self._queue:
            self._filled.clear()
            await self._filled.wait()

    def take(self) -> Event:
        return self._queue.popleft()

    def take_lost(self) -> tuple[int, int]:
        """Give how many were lost since the last call, and the number of the last of them."""
        lost, self._lost = self._lost, 0
        return lost, self._last_lost
