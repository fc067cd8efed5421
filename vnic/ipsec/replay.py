"""The anti-replay window of one inbound SA.

Law: `check` reads, `advance` writes; only an authenticated number may reach `advance`.

The window is a ring of 64-bit words, one more than it needs, so that moving it clears whole words and
costs the same for 64 and for 65,536 packets:

      top - window_bits            top
    ──────┼──────────────────────────┤
     old  │ seen or new, bit each    │  beyond: new

Source: RFC 4303 §3.4.3, Appendix A; RFC 6479 (the ring of blocks).
"""

from __future__ import annotations

from enum import Enum

_WORD_MASK = (1 << 64) - 1

MIN_WINDOW_BITS = 64
MAX_WINDOW_BITS = 65536
DEFAULT_WINDOW_BITS = 1024


_UNUSED: list[int] = []
"""The ring of every window that no number has come to yet; never written to."""


class ReplayVerdict(Enum):
    """What the window says of a number."""

    NEW = "new"
    DUPLICATE = "duplicate"
    TOO_OLD = "too_old"


class ReplayWindow:
    """Which of the last `window_bits` sequence numbers have been seen.

    Attributes:
        top: highest number advanced to; 0 before the first packet.
        window_bits: how many numbers up to and including `top` are remembered; 0 switches the check off
            (every number is NEW), which RFC 4303 §3.4.3 leaves to the receiver.
        needed_bits: the smallest window that would have taken every late number so far; 0 when none was late.
            Numbers too old count as well: late and replayed cannot be told apart once the window has left
            them behind.
    """

    __slots__ = ("_ring", "_words", "needed_bits", "top", "window_bits")

    def __init__(self, window_bits: int = DEFAULT_WINDOW_BITS, top: int = 0) -> None:
        self.window_bits = window_bits
        self._words = (window_bits + 63) // 64 + 1
        self._ring = _UNUSED
        self.needed_bits = 0
        self.top = top
        if top:
            # A window that starts at `top` has, for all we know, seen everything up to it.
            self._ring = [_WORD_MASK] * self._words
            self._ring[(top >> 6) % self._words] = (1 << ((top & 63) + 1)) - 1

    def check(self, sequence_number: int) -> ReplayVerdict:
        """Say whether a 64-bit number is new. Changes nothing.

        Number 0 is never sent (RFC 4303 §3.3.3) and counts as too old.
        """
        top = self.top
        if sequence_number > top or not self.window_bits:
            return ReplayVerdict.NEW
        if sequence_number == 0 or top - sequence_number >= self.window_bits:
            return ReplayVerdict.TOO_OLD
        word = self._ring[(sequence_number >> 6) % self._words]
        if word >> (sequence_number & 63) & 1:
            return ReplayVerdict.DUPLICATE
        return ReplayVerdict.NEW

    def advance(self, sequence_number: int) -> None:
        """Remember an authenticated number that `check` called NEW; moves `top` if it is beyond."""
        index = sequence_number >> 6
        top = self.top
        try:
            if sequence_number > top:
                gap = index - (top >> 6)
                if gap:
                    ring = self._ring
                    words = self._words
                    if gap >= words:
                        for position in range(words):
                            ring[position] = 0
                    else:
                        first = index - gap + 1
                        for position in range(first, index + 1):
                            ring[position % words] = 0
                self.top = sequence_number
            else:
                self.note_late(sequence_number)
            self._ring[index % self._words] |= 1 << (sequence_number & 63)
        except IndexError:
            # The ring is made when the first number comes: an SA without traffic needs none.
            self._ring = [0] * self._words
            self._ring[index % self._words] = 1 << (sequence_number & 63)
            self.top = sequence_number

    def note_late(self, sequence_number: int) -> None:
        """Reckon with an authenticated number below `top` that is not a duplicate, taken or too old."""
        needed = self.top - sequence_number + 1
        if needed > self.needed_bits:
            self.needed_bits = needed

    def bitmap(self) -> int:
        """The window as an integer: bit n is number `top - n`."""
        count = min(self.window_bits, self.top)
        if not count:
            return 0
        first = self.top - count + 1
        words = range(first >> 6, (self.top >> 6) + 1)
        data = b"".join(self._ring[word % self._words].to_bytes(8, "little") for word in words)
        oldest_first = int.from_bytes(data, "little") >> (first & 63)
        # As text, because that turns the order of 65,536 bits in a fraction of a millisecond.
        return int(f"{oldest_first:0{count}b}"[::-1], 2)
