"""FaultPort: a wire that loses, doubles, damages, reorders and delays frames as it is told.

Law: no randomness and no clock of its own: the same generator and the same frames suffer the same faults.
Every fault is counted by its kind. Whatever waits is bounded. It moves a frame whole or not at all, and
knows of IPsec only where `find_icv` says the ICV lies.

    send      card ──> FaultLine ──> port        a queue by the time each frame is due, and frames displaced
    receive   card <── FaultLine <── port        until a number of later ones has passed

A frame suffers one of loss, duplication, corruption and reordering at most, looked for in that order, so that
each fault shows once where it arrives. The rate comes next and the delay last, as on a real wire.

Source: the words are those of tc-netem(8).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from vnic.errors import RequestError
from vnic.ipsec.drops import DropReason
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.ethernet import ETHERNET_LENGTH, ethertype
from vnic.ports.base import BURST_PACKETS, Port
from vnic.ports.middleware import Middleware

DEFAULT_LIMIT = 1000
"""Frames that may wait in one direction, as netem has it."""

MAX_WAITING_BYTES = 64 << 20

REORDER_PATIENCE_S = 1.0
"""A reordered frame goes on its way after this time also where fewer frames than asked for have followed."""

MAX_AIMED = 64
"""Aimed faults that may wait for their packet, in one direction."""

SHORTEST_WAIT_S = 0.001
"""Timers are no finer; a shorter wait would turn into a busy loop."""

AimedWord = Literal["flip_icv", "replay", "hold", "truncate"]

KINDS = (
    "lost",
    "duplicated",
    "corrupted",
    "reordered",
    "delayed",
    "flipped",
    "replayed",
    "held",
    "truncated",
    "overflowed",
)
"""What is counted: one for each kind of fault, and frames that found the queue full."""

IcvPlace = tuple[int, int]
"""Offset and length of an ICV, in bytes of the frame; length 0: an IPsec packet whose ICV cannot be told."""

FindIcv = Callable[[bytearray], "IcvPlace | None"]
"""Says where the ICV of an IPsec packet lies; None for a frame that is none."""

_LOSS = DropReason.FAULT_LOSS.value
_FULL = DropReason.FAULT_QUEUE_FULL.value


class Generator(Protocol):
    """The part of `random.Random` that is used."""

    def random(self) -> float: ...

    def randrange(self, stop: int, /) -> int: ...


class Timer(Protocol):
    """A call that is still to come."""

    def cancel(self) -> None: ...


@dataclass(frozen=True, slots=True)
class FaultSettings:
    """What one direction of a wire does to frames; as it is made, nothing."""

    loss: float = 0.0
    """Percent, as are the next three."""
    duplicate: float = 0.0
    corrupt: float = 0.0
    """One bit of each such frame, anywhere behind the Ethernet header."""
    reorder: float = 0.0
    reorder_packets: int = 1
    """How many later frames pass a reordered one."""
    delay_s: float = 0.0
    jitter_s: float = 0.0
    """The delay is spread evenly over this much less and this much more, but is never below 0."""
    rate: int = 0
    """Bits per second, counting Ethernet frames without their FCS; 0 is no limit."""
    limit: int = DEFAULT_LIMIT
    """Frames that may wait."""

    @property
    def neutral(self) -> bool:
        """Whether frames pass unharmed and at once."""
        return not (
            self.loss
            or self.duplicate
            or self.corrupt
            or self.reorder
            or self.delay_s
            or self.jitter_s
            or self.rate
        )


class Aimed(NamedTuple):
    """A fault that waits for the next IPsec packet it fits."""

    kind: AimedWord
    value: int
    """flip_icv: bit, 0 is the first on the wire. replay: how often. hold: how many packets pass it, 0 is
    until `release`. truncate: bytes that stay of the frame."""


class _Displaced(NamedTuple):
    """A frame that others pass. Compared by the first two members."""

    target: float
    """It goes on when this many frames have gone before it."""
    order: int
    deadline: float
    buffer: NetBuffer


class FaultLine:
    """One direction of a faulty wire, without the wire.

    Attributes:
        settings: what is in force; change it at will.
        counts: faults done, by KINDS.
        drops: where frames that end here are counted by the name of their reason.
        stalled: nothing comes out.
    """

    def __init__(self, random: Generator, find_icv: FindIcv) -> None:
        self.settings = FaultSettings()
        self.counts = dict.fromkeys(KINDS, 0)
        self.drops: dict[str, int] = {}
        self.stalled = False
        self._random = random
        self._find_icv = find_icv
        self._armed: list[Aimed] = []
        self._queue: list[tuple[float, int, NetBuffer]] = []
        self._displaced: list[_Displaced] = []
        self._bytes = 0
        self._entered = 0
        self._order = itertools.count()
        self._earliest = math.inf
        self._line_free = -math.inf
        self._passed: list[NetBuffer] = []
        self._most: float = math.inf
        self._last: bytes | None = None

    # ---------------------------------------------------------------------------------------- state

    @property
    def waiting(self) -> int:
        """Frames inside."""
        return len(self._passed) + len(self._queue) + len(self._displaced)

    @property
    def armed(self) -> tuple[Aimed, ...]:
        """Aimed faults that wait for their packet."""
        return tuple(self._armed)

    @property
    def in_force(self) -> bool:
        """Whether anything is asked of it, or inside."""
        return bool(not self.settings.neutral or self._armed or self.stalled or self.waiting)

    def next_due(self) -> float | None:
        """When the next frame comes out by itself; None: nothing does."""
        if self._passed:
            return -math.inf
        if self.stalled:
            return None
        due = min(self._earliest, self._queue[0][0] if self._queue else math.inf)
        return None if due == math.inf else due

    # --------------------------------------------------------------------------------------- orders

    def reseed(self, random: Generator) -> None:
        """Take another generator."""
        self._random = random

    def aim(self, aimed: Aimed, now: float) -> None:
        """Do something to the next IPsec packet it fits; replay the last one at once if one was seen.

        Raises:
            RequestError: too many wait already.
        """
        if aimed.kind == "replay" and self._last is not None:
            self._replay(self._last, aimed.value, now)
            return
        if len(self._armed) >= MAX_AIMED:
            raise RequestError(
                "too many aimed faults wait for their packet",
                field=aimed.kind.replace("_", "-"),
                value=str(aimed.value),
                allowed=f"{MAX_AIMED} at a time; `clear` forgets them",
            )
        self._armed.append(aimed)

    def release(self, now: float) -> None:
        """End a stall, let go the packets held back, and hold back none that `hold` still waits for."""
        self.stalled = False
        self._armed = [one for one in self._armed if one.kind != "hold"]
        self._let_go(lambda one: one.deadline == math.inf, now)

    def clear(self, now: float) -> None:
        """Do nothing to frames any more; what is inside is due at once, in the order it would have come."""
        self.settings = FaultSettings()
        self._armed.clear()
        self.stalled = False
        self._line_free = -math.inf
        self._queue = [(now, next(self._order), buffer) for _, _, buffer in sorted(self._queue)]
        self._let_go(lambda one: True, now)

    # --------------------------------------------------------------------------------------- frames

    def move(self, burst: list[NetBuffer], now: float, most: int | None = None) -> list[NetBuffer]:
        """Take frames, which may be changed in place, and give those that come out now.

        Args:
            now: monotonic seconds.
            most: give no more than this many; the rest stays due.
        """
        if self.in_force:
            self._most = math.inf if most is None else most
            for buffer in burst:
                self._take(buffer, now)
            self._pass_due(now)
            burst, self._passed = self._passed, []
        for buffer in reversed(burst):
            if self._find_icv(buffer.frame) is not None:
                self._last = bytes(buffer.frame)
                break
        return burst

    def _take(self, buffer: NetBuffer, now: float) -> None:
        if self._armed and self._hit(buffer, now):
            return
        settings, chance = self.settings, self._random.random
        if settings.loss and chance() * 100 < settings.loss:
            self._lose("lost", _LOSS)
        elif settings.duplicate and chance() * 100 < settings.duplicate:
            self.counts["duplicated"] += 1
            copy = NetBuffer(bytearray(buffer.frame), buffer.vnet)
            self._enter(buffer, now)
            self._enter(copy, now)
        elif settings.corrupt and chance() * 100 < settings.corrupt:
            self._corrupt(buffer.frame)
            self._enter(buffer, now)
        elif settings.reorder and chance() * 100 < settings.reorder:
            if self._displace(buffer, settings.reorder_packets, now + REORDER_PATIENCE_S, now):
                self.counts["reordered"] += 1
        else:
            self._enter(buffer, now)

    def _hit(self, buffer: NetBuffer, now: float) -> bool:
        """Do to a frame the first aimed fault that fits it, if any does; it suffers no other."""
        frame = buffer.frame
        place = self._find_icv(frame)
        if place is None:
            return False
        offset, length = place
        fits = {"flip_icv": length * 8, "truncate": len(frame)}
        aimed = next((one for one in self._armed if one.value < fits.get(one.kind, math.inf)), None)
        if aimed is None:
            return False
        self._armed.remove(aimed)
        kind, value = aimed
        if kind == "hold":
            if self._displace(buffer, value or math.inf, math.inf, now):
                self.counts["held"] += 1
            return True
        if kind == "flip_icv":
            frame[offset + value // 8] ^= 0x80 >> value % 8
            self.counts["flipped"] += 1
        elif kind == "truncate":
            del frame[value:]
            self.counts["truncated"] += 1
        original = bytes(frame)
        self._enter(buffer, now)
        if kind == "replay":
            self._replay(original, value, now)
        return True

    def _corrupt(self, frame: bytearray) -> None:
        start = ethertype(frame)[1] or ETHERNET_LENGTH
        bits = (len(frame) - start) * 8
        if bits > 0:
            bit = self._random.randrange(bits)
            frame[start + bit // 8] ^= 0x80 >> bit % 8
            self.counts["corrupted"] += 1

    def _replay(self, frame: bytes, count: int, now: float) -> None:
        for _ in range(count):
            self.counts["replayed"] += 1
            self._enter(NetBuffer(bytearray(frame)), now)

    def _lose(self, kind: str, reason: str) -> None:
        self.counts[kind] += 1
        self.drops[reason] = self.drops.get(reason, 0) + 1

    def _room(self, buffer: NetBuffer, now: float) -> bool:
        """Whether a frame may wait here; counts it as lost if not."""
        limit = self.settings.limit
        if len(self._queue) + len(self._displaced) >= limit:
            # What need not wait takes nobody's room.
            self._pass_due(now)
        length = len(buffer.frame)
        if len(self._queue) + len(self._displaced) >= limit or self._bytes + length > MAX_WAITING_BYTES:
            self._lose("overflowed", _FULL)
            return False
        self._bytes += length
        return True

    def _displace(self, buffer: NetBuffer, packets: float, deadline: float, now: float) -> bool:
        if not self._room(buffer, now):
            return False
        one = _Displaced(self._entered + packets, next(self._order), deadline, buffer)
        heapq.heappush(self._displaced, one)
        self._earliest = min(self._earliest, deadline)
        return True

    def _enter(self, buffer: NetBuffer, now: float) -> None:
        """Put a frame on its way, and behind it those that it was the last to pass."""
        if not self._room(buffer, now):
            return
        self._push(buffer, now)
        while self._displaced and self._displaced[0].target <= self._entered:
            self._push(heapq.heappop(self._displaced).buffer, now)

    def _push(self, buffer: NetBuffer, now: float) -> None:
        settings = self.settings
        due = now
        if settings.rate:
            due = self._line_free = max(self._line_free, now) + len(buffer.frame) * 8 / settings.rate
        if settings.jitter_s:
            due += max(0.0, settings.delay_s + settings.jitter_s * (2 * self._random.random() - 1))
        else:
            due += settings.delay_s
        if due > now:
            self.counts["delayed"] += 1
        self._entered += 1
        heapq.heappush(self._queue, (due, next(self._order), buffer))

    def _let_go(self, chosen: Callable[[_Displaced], bool], now: float) -> None:
        """Put displaced frames on their way, in the order they came."""
        going = sorted((one for one in self._displaced if chosen(one)), key=lambda one: one.order)
        self._displaced = [one for one in self._displaced if not chosen(one)]
        heapq.heapify(self._displaced)
        self._earliest = min((one.deadline for one in self._displaced), default=math.inf)
        for one in going:
            self._push(one.buffer, now)

    def _pass_due(self, now: float) -> None:
        """Let out what is due, as many as may come out at once."""
        if self.stalled:
            return
        if self._earliest <= now:
            self._let_go(lambda one: one.deadline <= now, now)
        queue, passed = self._queue, self._passed
        while queue and queue[0][0] <= now and len(passed) < self._most:
            buffer = heapq.heappop(queue)[2]
            self._bytes -= len(buffer.frame)
            passed.append(buffer)


class FaultPort(Middleware):
    """A wire with a FaultLine in each direction, and that wire in all else.

    Whatever became due moves in `receive_burst`, in both directions: a wake makes the owner call it, so that
    what goes wrong with the device goes wrong there.
    """

    def __init__(
        self,
        port: Port,
        send: FaultLine,
        receive: FaultLine,
        *,
        clock: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], Timer],
    ) -> None:
        """Stand before `port`. The lines stay their maker's, with what is inside.

        Args:
            send: card to wire.
            receive: wire to card.
            clock: monotonic seconds.
            call_later: calls once, after some seconds, unless it is cancelled.
        """
        super().__init__(port)
        send.drops = receive.drops = port.counters.drops
        self._send = send
        self._receive = receive
        self._clock = clock
        self._call_later = call_later
        self._wake: Callable[[], None] | None = None
        self._timer: Timer | None = None
        self._timer_due = math.inf

    def set_wake(self, wake: Callable[[], None] | None) -> None:
        """Have `wake` called when frames are due, and when the port behind has some; see `Port.set_wake`.

        It is needed beside the descriptor of the port, if that has one.
        """
        self._wake = wake
        self.port.set_wake(wake)
        self._arrange(self._clock())

    def send_burst(self, burst: list[NetBuffer]) -> None:
        now = self._clock()
        self._pass(self._send.move(burst, now))
        self._arrange(now)

    def receive_burst(self) -> list[NetBuffer]:
        now = self._clock()
        if self._send.in_force:
            self._pass(self._send.move([], now))
        burst = self._receive.move(self.port.receive_burst(), now, BURST_PACKETS)
        self._arrange(now)
        return burst

    def _pass(self, burst: list[NetBuffer]) -> None:
        if burst:
            self.port.send_burst(burst)

    def _arrange(self, now: float) -> None:
        """See to it that the next frame to come out has somebody to bring it."""
        wake = self._wake
        dues = [due for line in (self._send, self._receive) if (due := line.next_due()) is not None]
        if wake is None or not dues:
            self._stop()
            return
        due = min(dues)
        if due <= now:
            self._stop()
            wake()
        elif due < self._timer_due:
            self._stop()
            self._timer_due = due
            self._timer = self._call_later(max(due - now, SHORTEST_WAIT_S), self._ring)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_due = math.inf

    def _ring(self) -> None:
        self._timer = None
        self._timer_due = math.inf
        if self._wake is not None:
            self._wake()
