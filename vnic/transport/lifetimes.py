"""The ends of SAs: what is told before them, and that nothing passes after them.

Law: who counts asks here before the count passes `SaState.stop` or `OutboundSequence.stop`, and nowhere else
does a packet pay for limits. Nothing goes past a hard limit: packets that would are not sealed and not passed
on, and their SA ends. An SA that has ended is out of use at once and out of the SAD and the NIC when no
frame is between the two.

    add ── limits ── next stop: so many packets cannot reach a limit, however large they are
                       │
    packet past the stop ──> admit ──> soft limit: told once; next stop
                                   └─> hard limit: refused, the SA ends ──> flush: deleted, told
    clock past the next deadline ──> advance ──> the same by time

Source: RFC 4301 §4.4.2.1; RFC 4303 §3.3.3.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import TYPE_CHECKING

from vnic.ipsec.counters import EngineEvent, EventKind
from vnic.transport.state import NO_STOP, SaState

if TYPE_CHECKING:
    from vnic.transport.sad import Sad

_LARGEST_PACKET = 1 << 17
"""More bytes than any IP packet has: so much less may be left of a byte limit after each packet."""

_A_TURN = 256
"""SAs deleted, and events given, at once: a few milliseconds."""

_SLACK = 64
"""Deadlines of SAs that are gone which are kept at least."""


class Lifetimes:
    """The limits of all SAs of one SAD.

    Attributes:
        next_time: `now` of the next limit by time; infinite when there is none.
        ending: SAs that have ended and are still in the SAD, with the limit each has reached.
    """

    def __init__(self, sad: Sad) -> None:
        self._sad = sad
        self._deadlines: list[tuple[float, int, SaState]] = []
        self._order = count()
        self._events: deque[EngineEvent] = deque()
        self.next_time = inf
        self.ending: deque[tuple[SaState, str]] = deque()

    @property
    def deadline(self) -> float:
        """`now` at which `advance`, `flush` or `take_events` has something to do; 0: at once."""
        return 0.0 if self.ending or self._events else self.next_time

    # ------------------------------------------------------------------------------- by the clock

    def watch(self, state: SaState) -> None:
        """Take note of an SA that is new in the SAD, or was used for the first time."""
        deadline = _deadline(state)
        if deadline == inf or deadline == state.deadline:
            return
        state.deadline = deadline
        deadlines = self._deadlines
        if len(deadlines) > _SLACK + 4 * len(self._sad.table):
            deadlines[:] = [one for one in deadlines if self._waits(one)]
            heapify(deadlines)
        heappush(deadlines, (deadline, next(self._order), state))
        while not self._waits(deadlines[0]):
            heappop(deadlines)
        self.next_time = deadlines[0][0]

    def _waits(self, entry: tuple[float, int, SaState]) -> bool:
        deadline, _, state = entry
        return deadline == state.deadline and self._sad.table.get(state.sa.id) is state

    def advance(self, now: float) -> None:
        """Do what the clock asks: tell soft limits, end SAs."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now:
            entry = heappop(deadlines)
            if self._waits(entry):
                self._due(entry[2], now)
        self.next_time = deadlines[0][0] if deadlines else inf

    def _due(self, state: SaState, now: float) -> None:
        state.deadline = inf
        for word, moment in _moments(state):
            if moment > now:
                continue
            if word.endswith("-hard"):
                self._end(state, word)
                return
            if not state.expiring:
                self._tell_soft(state, word)
        self.watch(state)

    # ------------------------------------------------------------------------------- by the count

    def admit(self, states: Iterable[SaState], packets: int, length: int, now: float) -> SaState | None:
        """Decide on packets that the stop of one of these SAs holds up; when they may pass, they will.

        Args:
            packets, length: how many, and their bytes as the counters count them.

        Returns:
            None: they may pass, as far as limits and numbers go. Else the SA that may not be used for them:
            it has ended, or has not so many numbers left.
        """
        for state in states:
            if state.ended:
                return state
            sequence = state.sequence
            if sequence is not None and sequence.last + packets > sequence.limit:
                return state
            beyond = _beyond(state, packets, length)
            if beyond:
                self._end(state, beyond)
                return state
        for state in states:
            self._pass(state, packets, length, now)
        return None

    def _pass(self, state: SaState, packets: int, length: int, now: float) -> None:
        if state.first_use is None:
            state.first_use = now
            self.watch(state)
        for word, left in _left(state, packets, length):
            if left > 0:
                continue
            if word.endswith("-hard"):
                # These packets are the last; the SA ends behind them.
                self.ending.append((state, word))
            elif not state.expiring:
                self._tell_soft(state, word)
        self._set_stop(state, packets, length)

    def _set_stop(self, state: SaState, packets: int, length: int) -> None:
        """Say how many packets after these may pass before `admit` is asked again."""
        free = NO_STOP
        for word, left in _left(state, packets, length):
            if state.expiring and word.endswith("-soft"):
                continue
            free = min(free, left - 1 if word.startswith("packet") else (left - 1) // _LARGEST_PACKET)
        free = max(free, 0)
        if state.sequence is not None:
            sequence = state.sequence
            sequence.stop = min(sequence.last + packets + free, sequence.limit)
        else:
            state.stop = state.counters.packets + packets + free

    # ------------------------------------------------------------------------------- the end

    def _tell_soft(self, state: SaState, word: str) -> None:
        state.expiring = True
        self._events.append(
            EngineEvent(EventKind.SA_EXPIRING, state.sa.id, sequence_number=state.sequence_number, limit=word)
        )

    def _end(self, state: SaState, word: str) -> None:
        """Take an SA out of use."""
        if not state.ended:
            state.end(word)
            self.ending.append((state, word))
            self._sad.generation += 1

    def flush(self) -> None:
        """Delete SAs that have ended, a few at a time. Between bursts: no frame names their handles then."""
        for _ in range(min(len(self.ending), _A_TURN)):
            state, word = self.ending.popleft()
            sa_id = state.sa.id
            # Somebody may have deleted or replaced it in the meantime.
            if self._sad.table.get(sa_id) is state:
                state.end(word)
                self._sad.delete(sa_id)
                self._events.append(
                    EngineEvent(
                        EventKind.SA_EXPIRED, sa_id, sequence_number=state.sequence_number, limit=word
                    )
                )

    def take_events(self) -> list[EngineEvent]:
        """Give events, a few at a time, and forget them."""
        events = self._events
        return [events.popleft() for _ in range(min(len(events), _A_TURN))]


def _moments(state: SaState) -> Iterable[tuple[str, float]]:
    """The limits by time of an SA, hard ones first, and `now` of each."""
    life = state.sa.lifetime
    if life is None:
        return
    added, used = state.add_time, state.first_use
    if life.time_hard:
        yield "time-hard", added + life.time_hard
    if life.time_use_hard and used is not None:
        yield "time-use-hard", used + life.time_use_hard
    if life.time_soft:
        yield "time-soft", added + life.time_soft
    if life.time_use_soft and used is not None:
        yield "time-use-soft", used + life.time_use_soft


def _deadline(state: SaState) -> float:
    """`now` of the next limit by time of an SA that has still something to say."""
    if state.ended:
        return inf
    return min(
        (moment for word, moment in _moments(state) if not (state.expiring and word.endswith("-soft"))),
        default=inf,
    )


def _left(state: SaState, packets: int, length: int) -> Iterable[tuple[str, int]]:
    """The limits by count of an SA, and what is left of each after these packets."""
    life = state.sa.lifetime
    if life is None:
        return
    packets += state.counters.packets - state.packets_before
    length += state.counters.bytes - state.bytes_before
    if life.packet_hard:
        yield "packet-hard", life.packet_hard - packets
    if life.byte_hard:
        yield "byte-hard", life.byte_hard - length
    if life.packet_soft:
        yield "packet-soft", life.packet_soft - packets
    if life.byte_soft:
        yield "byte-soft", life.byte_soft - length


def _beyond(state: SaState, packets: int, length: int) -> str:
    """The hard limit that these packets would pass, or ""."""
    for word, left in _left(state, packets, length):
        if left < 0 and word.endswith("-hard"):
            return word
    return ""
