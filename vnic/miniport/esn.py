"""The upper half of an extended sequence number, which the ICV covers and the wire does not carry.

Law: follows numbers, never judges them; replay is the transport's.

Source: RFC 4303 §2.2.1, Appendix A2; RFC 4302 §2.5.1; sheet R120-R123.
"""

from __future__ import annotations

from vnic.ipsec.sequence import infer_extended

_LOW_MASK = 0xFFFFFFFF
_HALF = 1 << 31
_NONE_YET = -1


class ExtendedNumbers:
    """What the NIC knows of the 64-bit numbers of one SA.

    A binary request names only the upper half of the last number; the first packet after it then leaves two
    candidates, one of which is tried first. From then on, and at once where the request names the whole
    number, the number closest to the highest one is meant.
    """

    __slots__ = ("_high", "_highest")

    def __init__(self, high: int, low: int | None = None) -> None:
        self._high = high
        self._highest = _NONE_YET if low is None else high << 32 | low

    def rebase(self, high: int, low: int | None = None) -> None:
        """Take `high` for the upper half of the last number, if it is not what the NIC has anyway; with `low`
        the whole number."""
        if low is not None:
            self._highest = high << 32 | low
        elif self._highest == _NONE_YET or self._highest >> 32 != high:
            self._high = high
            self._highest = _NONE_YET

    def next(self, low: int) -> bytes:
        """Give the upper half of an outbound number with lower half `low`, as the ICV covers it.

        The transport counts by one from 1, so a first number with lower half 0 has just wrapped.
        """
        if self._highest == _NONE_YET:
            number = (self._high + (low == 0)) << 32 | low
        else:
            number = infer_extended(low, self._highest)
        if number > self._highest:
            self._highest = number
        return (number >> 32 & _LOW_MASK).to_bytes(4, "big")

    def candidates(self, low: int) -> tuple[int, ...]:
        """Give the 64-bit numbers an inbound `low` may stand for, the likeliest first.

        Before a first packet is authenticated the upper half may be the one named, or the next one if the
        numbers have just wrapped. Never the one before: a packet from there is a replay, and the
        transport, which judges replays, would read its number as one of the present half.
        """
        if self._highest != _NONE_YET:
            return (infer_extended(low, self._highest),)
        number = self._high << 32 | low
        if low < _HALF and self._high < _LOW_MASK:
            return (number, number + (1 << 32))
        return (number,)

    def authenticated(self, number: int) -> None:
        """Take note of an inbound number whose ICV held."""
        if number > self._highest:
            self._highest = number
