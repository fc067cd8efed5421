"""Frames with their out-of-band information, for whoever watches an adapter.

Law: a watcher costs nothing while there is none, and holds up nothing while there is one: its queue is
bounded in frames and bytes, and what does not fit is lost and counted. A frame is put into words when it is
taken, not when it passes.

Source: sheet §5.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import NamedTuple

from vnic.control.interface import Nbl, NblDirectionWord, Oob
from vnic.daemon.events import rfc3339
from vnic.engine.contract import Card
from vnic.ndis.netbuffer import NetBuffer, ReceiveInfo, TransmitInfo
from vnic.ndis.oob import describe, pack_receive, pack_transmit
from vnic.ndis.status import NdisStatus

QUEUE_LENGTH = 1024
"""Frames that may wait for one watcher."""

QUEUE_BYTES = 4 << 20
"""Bytes of frames that may wait for one watcher."""


CHECK_S = 1.0
"""How often a watcher that sees nothing asks whether the adapter is still there."""


class _Seen(NamedTuple):
    """A frame as it passed, cut at the length that is watched."""

    info: TransmitInfo | ReceiveInfo | None
    direction: NblDirectionWord
    time: float
    frame: bytes
    length: int
    status: NdisStatus
    reason: str
    lost: int


class Nbls:
    """Watchers of all cards."""

    def __init__(
        self,
        wall_clock: Callable[[], float],
        *,
        queue_length: int = QUEUE_LENGTH,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        """Begin without any.

        Args:
            wall_clock: gives seconds since 1970.
            queue_length, queue_bytes: frames, and bytes of frames, that may wait for one watcher.
        """
        self._wall_clock = wall_clock
        self._queue_length = queue_length
        self._queue_bytes = queue_bytes
        self._watchers: dict[Card, list[_Watcher]] = {}

    async def watch(
        self, adapter: str, card: Card, snap_length: int | None, check: Callable[[], None] = lambda: None
    ) -> AsyncGenerator[Nbl, None]:
        """Give every frame that passes between transport and NIC from now on.

        Args:
            adapter: name, for the answers.
            snap_length: bytes of each frame; None is all.
            check: raises when there is nothing more to come; asked every second that brings no frame.
        """
        watcher = _Watcher(snap_length, self._queue_length, self._queue_bytes)
        self._begin(card, watcher)
        try:
            while True:
                if not await watcher.wait(CHECK_S):
                    check()
                    continue
                yield _message(adapter, watcher.take())
        finally:
            self._end(card, watcher)

    def _begin(self, card: Card, watcher: _Watcher) -> None:
        watchers = self._watchers.setdefault(card, [])
        watchers.append(watcher)
        if len(watchers) > 1:
            return
        clock = self._wall_clock

        def sent(burst: list[NetBuffer]) -> None:
            time = clock()
            for one in watchers:
                one.see("send", burst, time)

        def received(burst: list[NetBuffer]) -> None:
            time = clock()
            for one in watchers:
                one.see("receive", burst, time)

        card.send_observer = sent
        card.receive_observer = received

    def _end(self, card: Card, watcher: _Watcher) -> None:
        watchers = self._watchers[card]
        watchers.remove(watcher)
        if not watchers:
            del self._watchers[card]
            card.send_observer = card.receive_observer = None


class _Watcher:
    """The queue of one watcher."""

    def __init__(self, snap_length: int | None, queue_length: int, queue_bytes: int) -> None:
        self._snap_length = snap_length
        self._queue_length = queue_length
        self._queue_bytes = queue_bytes
        self._queue: deque[_Seen] = deque()
        self._bytes = 0
        self._lost = 0
        self._filled = asyncio.Event()

    def see(self, direction: NblDirectionWord, burst: list[NetBuffer], time: float) -> None:
        for buffer in burst:
            length = len(buffer.frame)
            kept = length if self._snap_length is None else min(length, self._snap_length)
            if len(self._queue) == self._queue_length or self._bytes + kept > self._queue_bytes:
                self._lost += 1
                continue
            send = direction == "send"
            self._queue.append(
                _Seen(
                    buffer.transmit if send else buffer.receive,
                    direction,
                    time,
                    bytes(buffer.frame[:kept]),
                    length,
                    buffer.status if send else NdisStatus.SUCCESS,
                    buffer.reason if send else "",
                    self._lost,
                )
            )
            self._lost = 0
            self._bytes += kept
        if self._queue:
            self._filled.set()

    async def wait(self, seconds: float) -> bool:
        """Wait that long for a frame; gives whether there is one."""
        if not self._queue:
            self._filled.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._filled.wait(), seconds)
        return bool(self._queue)

    def take(self) -> _Seen:
        seen = self._queue.popleft()
        self._bytes -= len(seen.frame)
        return seen


def _message(adapter: str, seen: _Seen) -> Nbl:
    info = seen.info
    slots = pack_receive(info) if isinstance(info, ReceiveInfo) else pack_transmit(info)
    return Nbl(
        adapter=adapter,
        direction=seen.direction,
        time=rfc3339(seen.time),
        frame=seen.frame.hex(),
        length=seen.length,
        status=seen.status,
        status_name=seen.status.label,
        reason=seen.reason,
        oob=Oob(**slots._asdict(), members=describe(slots, seen.direction)),
        lost=seen.lost,
    )
