"""The ends of SAs, by lifetime, cipher and numbers: what is told before, and that nothing passes after.

Law: who counts asks here before the count passes `SaState.stop` or `OutboundSequence.stop`, and nowhere else
does a packet pay for limits. Nothing goes past a hard limit: packets that would are not sealed and not passed
on, and their SA ends. An SA that has ended is out of use at once and out of the SAD and the NIC when no
frame is between the two.

    add ── limits ── next stop: so many packets cannot reach a limit, however large they are
                       │
    packet past the stop ──> admit ──> soft limit: told once; next stop
                                   └─> hard limit: refused, the SA ends ──> flush: deleted, told
    clock past the next deadline ──> advance ──> the same by time

Ciphers with 64-bit blocks have limits of their own, per key: they are told, and end the SA if that is wanted.
The other ciphers need none. The IVs of AES-GCM and AES-GMAC are counters and not random, so the bound of 2^32
invocations of NIST SP 800-38D §8.3 is not theirs, and the counter's 64 bits outlast every sequence number.
The 2^64 blocks of AES-CBC are more than anybody sends.

Source: RFC 4301 §4.4.2.1; RFC 4303 §3.3.3; NIST SP 800-67 Rev. 2 §3.3, SP 800-38D §8.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import TYPE_CHECKING

from vnic.ipsec.counters import EngineEvent, EventKind
from vnic.ipsec.sequence import RESERVED_AT_ONCE
from vnic.transport.state import NO_STOP, SaState

if TYPE_CHECKING:
    from vnic.transport.sad import Sad

GRACE = "grace"
"""The limit of an inbound SA that rekeying has put another in the place of."""

_LARGEST_PACKET = 1 << 17
"""More bytes than any IP packet has: so much less may be left of a byte limit after each packet."""

_MOST_BLOCKS = _LARGEST_PACKET // 8 + 2
"""Blocks of 64 bits that a packet has at most: its bytes, and padding and trailer."""

_A_TURN = 256
"""SAs deleted, and events given, at once: a few milliseconds."""

_SLACK = 64
"""Deadlines of SAs that are gone which are kept at least."""


class Lifetimes:
    """The limits of all SAs of one SAD.

    Attributes:
        next_time: `now` of the next limit by time; infinite when there is none.
        ending: SAs that have ended and are still in the SAD, with the limit each has reached.
        enforce_cipher_limits: whether the hard limit of a cipher ends the SA, or is only told.
    """

    def __init__(self, sad: Sad) -> None:
        self._sad = sad
        self._deadlines: list[tuple[float, int, SaState]] = []
        self._order = count()
        self._events: deque[EngineEvent] = deque()
        self.next_time = inf
        self.ending: deque[tuple[SaState, str]] = deque()
        self.enforce_cipher_limits = False
        self._wanting: dict[SaState, None] = {}

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
            if word == GRACE or word.endswith("-hard"):
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
            if sequence is not None and sequence.last + packets > state.reserved:
                self.want_numbers(state)
                return state
            beyond = self._beyond(state, packets, length)
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
            if word.startswith("cipher"):
                self._tell_cipher(state, word, left)
            elif word.endswith("-hard"):
                # These packets are the last; the SA ends behind them.
                self.ending.append((state, word))
            elif not state.expiring:
                self._tell_soft(state, word)
        self._set_stop(state, packets, length)

    def _set_stop(self, state: SaState, packets: int, length: int) -> None:
        """Say how many packets after these may pass before `admit` is asked again."""
        free = NO_STOP
        for word, left in _left(state, packets, length):
            if word.startswith("cipher"):
                if self._is_done(state, word, left):
                    continue
                one = _MOST_BLOCKS
            elif state.expiring and word.endswith("-soft"):
                continue
            else:
                one = 1 if word.startswith("packet") else _LARGEST_PACKET
            free = min(free, (left - 1) // one)
        free = max(free, 0)
        if state.sequence is not None:
            sequence = state.sequence
            percent = sequence.percent(sequence.last + packets)
            if percent > state.percent:
                state.percent = percent
                self._tell(EventKind.SEQUENCE_LOW, state, f"{percent} %")
            sequence.stop = min(
                sequence.last + packets + free,
                sequence.next_warning(packets),
                self._reserved(state, sequence.last + packets),
            )
        else:
            state.stop = state.counters.packets + packets + free

    # ------------------------------------------------------------------------------- reserved numbers

    def want_numbers(self, state: SaState) -> None:
        """Ask, once, that numbers be reserved for an outbound SA."""
        if not state.withheld and state not in self._wanting:
            self._wanting[state] = None
            self._tell(EventKind.NUMBERS_WANTED, state, "")

    def numbers_reserved(self, state: SaState) -> None:
        """What an SA asked for it has, or will not get now; its next packet is looked at."""
        self._wanting.pop(state, None)
        if state.sequence is not None and not state.ended:
            state.sequence.stop = 0

    def _reserved(self, state: SaState, last: int) -> int:
        """The last number before more have to be asked for, when `last` is used, or the last there is."""
        half = state.reserved - RESERVED_AT_ONCE // 2
        assert state.sequence is not None
        if last < half:
            return half
        if state.reserved < state.sequence.limit:
            self.want_numbers(state)
        return state.reserved

    def _is_done(self, state: SaState, word: str, left: int) -> bool:
        """Whether nothing more is to be said of a limit of its cipher."""
        if word == "cipher-soft":
            return bool(state.cipher_limit)
        return state.cipher_limit == "cipher-hard" and (not self.enforce_cipher_limits or left <= 0)

    def _tell_cipher(self, state: SaState, word: str, left: int) -> None:
        if word == "cipher-hard" and self.enforce_cipher_limits:
            self.ending.append((state, word))
        elif not self._is_done(state, word, left):
            state.cipher_limit = word
            self._tell(EventKind.CIPHER_LIMIT, state, word)

    def _beyond(self, state: SaState, packets: int, length: int) -> str:
        """The hard limit that these packets would pass, or ""."""
        for word, left in _left(state, packets, length):
            if left < 0 and word.endswith("-hard") and (word != "cipher-hard" or self.enforce_cipher_limits):
                return word
        return ""

    def look_again(self) -> None:
        """Have every SA whose cipher has a limit looked at with its next packet: the setting has changed."""
        for state in self._sad.table.values():
            encryption = state.sa.encryption
            if encryption is None or not encryption.has_short_blocks or state.ended:
                continue
            state.stop = 0
            if state.sequence is not None:
                state.sequence.stop = 0

    # ------------------------------------------------------------------------------- the end

    def _tell(self, kind: EventKind, state: SaState, limit: str) -> None:
        self._events.append(
            EngineEvent(kind, state.sa.id, sequence_number=state.sequence_number, limit=limit)
        )

    def _tell_soft(self, state: SaState, word: str) -> None:
        state.expiring = True
        self._tell(EventKind.SA_EXPIRING, state, word)

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
                self._tell(EventKind.SA_EXPIRED, state, word)

    def take_events(self) -> list[EngineEvent]:
        """Give events, a few at a time, and forget them."""
        events = self._events
        return [events.popleft() for _ in range(min(len(events), _A_TURN))]


def _moments(state: SaState) -> Iterable[tuple[str, float]]:
    """The limits by time of an SA, hard ones first, and `now` of each."""
    if state.leaves < inf:
        yield GRACE, state.leaves
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
    packets += state.counters.packets - state.packets_before
    length += state.counters.bytes - state.bytes_before
    encryption = state.sa.encryption
    if encryption is not None and encryption.blocks_hard:
        # Never fewer than there were: each packet is padded to whole blocks, with the trailer.
        blocks = (length + state.padding) // 8 + 2 * packets
        yield "cipher-hard", encryption.blocks_hard - blocks
        yield "cipher-soft", encryption.blocks_soft - blocks
    if life is None:
        return
    if life.packet_hard:
        yield "packet-hard", life.packet_hard - packets
    if life.byte_hard:
        yield "byte-hard", life.byte_hard - length
    if life.packet_soft:
        yield "packet-soft", life.packet_soft - packets
    if life.byte_soft:
        yield "byte-soft", life.byte_soft - length
