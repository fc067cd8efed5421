"""Sequence numbers: handing them out, and finding the half that is not on the wire.

Law: numbers are 64-bit integers in host order; without ESN the upper half is zero.

Source: RFC 4303 §2.2, §3.3.3, Appendix A; RFC 4302 §2.5.
"""

from __future__ import annotations

_HALF = 1 << 31
_LOW_MASK = 0xFFFFFFFF

WARNINGS = (75, 90)
"""Percent of the numbers of an SA at which it is told that they run low."""

RESERVED_AT_ONCE = 1 << 20
"""Numbers that are reserved ahead where they outlive the daemon; more are asked for when half are used."""

MAX_SEQUENCE_NUMBER = 0xFFFFFFFF
MAX_EXTENDED_SEQUENCE_NUMBER = 0xFFFFFFFFFFFFFFFF


def infer_extended(low: int, highest: int) -> int:
    """Give the 64-bit number with lower half `low` that is closest to `highest`.

    NIC and transport both use this with the highest number each has authenticated, so a replayed old
    packet is the same old number to both. RFC 4303 A2.2 reads every number below the window as one of
    the next 2^32; where the window check comes after the NIC's ICV check that would turn a replayed
    packet, whose ICV holds under its true upper half, into a new one.

    Args:
        low: the 32 bits of the packet.
        highest: highest authenticated 64-bit number of the SA.
    """
    candidate = (highest & ~_LOW_MASK) | low
    distance = candidate - highest
    if distance > _HALF and candidate > _LOW_MASK:
        return candidate - (1 << 32)
    if distance < -_HALF and candidate + (1 << 32) <= MAX_EXTENDED_SEQUENCE_NUMBER:
        return candidate + (1 << 32)
    return candidate


class OutboundSequence:
    """The one owner of an outbound SA's sequence numbers; never hands one out twice.

    Attributes:
        last: the last number handed out; 0 before the first (RFC 4303 §3.3.3).
        limit: the last number that may ever be used on this SA.
        stop: the last number that may be taken before somebody looks at the SA (`transport.lifetimes`);
            never beyond `limit`.
    """

    __slots__ = ("last", "limit", "stop")

    def __init__(self, *, extended: bool, last: int = 0) -> None:
        self.limit = MAX_EXTENDED_SEQUENCE_NUMBER if extended else MAX_SEQUENCE_NUMBER
        self.last = last
        self.stop = self.next_warning()

    def take(self, count: int = 1) -> int:
        """Take `count` consecutive numbers and give the first, or 0 when they would pass the stop, or cycle.

        Refusing takes nothing, so the SA stays exhausted for ever.
        """
        first = self.last + 1
        last = self.last + count
        if last > self.stop:
            return 0
        self.last = last
        return first

    def percent(self, last: int) -> int:
        """The highest of WARNINGS that is reached when `last` is the last number used, or 0."""
        return max((one for one in WARNINGS if last * 100 >= self.limit * one), default=0)

    def next_warning(self, taken: int = 0) -> int:
        """The last number before the next of WARNINGS, `taken` numbers from now, or the limit behind all."""
        last = self.last + taken
        for one in WARNINGS:
            first = -(-self.limit * one // 100)
            if last < first:
                return first - 1
        return self.limit

    def end(self) -> None:
        """Hand out no number any more."""
        self.limit = self.stop = self.last

    @property
    def exhausted(self) -> bool:
        """Whether no number is left (RFC 4303 §3.3.3: the sender must not let it cycle)."""
        return self.last >= self.limit
