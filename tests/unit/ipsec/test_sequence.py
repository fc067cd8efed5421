"""Sequence numbers: the half that is not on the wire, and the end of the numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnic.ipsec.sequence import OutboundSequence, infer_extended

WRAP = 1 << 32
LAST = (1 << 64) - 1


@pytest.mark.parametrize(
    ("low", "highest", "number"),
    [
        (1, 0, 1),
        (0xFFFFFFFF, 0, 0xFFFFFFFF),  # there is nothing below 0
        (0, WRAP - 1, WRAP),  # the first number of the next half
        (5, WRAP - 10, WRAP + 5),
        (0xFFFFFFFF, WRAP, WRAP - 1),  # late, from before the wrap
        (0xFFFFFFF0, WRAP + 20, WRAP - 16),
        (7, 5 * WRAP - 3, 5 * WRAP + 7),
        (0xFFFFFFFE, 5 * WRAP + 1, 5 * WRAP - 2),
        (0, LAST, LAST - 0xFFFFFFFF),  # there is nothing above 2^64 - 1
        (0xFFFFFFFF, LAST, LAST),
        (0x80000000, 0x80000001, 0x80000000),
        (100, 3 * WRAP + 100, 3 * WRAP + 100),
    ],
)
def test_upper_half_is_the_one_that_comes_closest(low: int, highest: int, number: int) -> None:
    assert infer_extended(low, highest) == number


@given(st.integers(0, WRAP - 1), st.integers(0, LAST))
def test_no_other_number_with_that_lower_half_is_closer(low: int, highest: int) -> None:
    number = infer_extended(low, highest)
    assert 0 <= number <= LAST
    assert number % WRAP == low
    upper = highest // WRAP
    rivals = [half * WRAP + low for half in (upper - 1, upper, upper + 1)]
    closest = min(abs(rival - highest) for rival in rivals if 0 <= rival <= LAST)
    assert abs(number - highest) == closest


@given(st.integers(0, LAST), st.integers(-(1 << 31) + 1, (1 << 31) - 1))
def test_every_number_less_than_2_to_the_31_away_is_found_again(highest: int, distance: int) -> None:
    number = highest + distance
    if 0 <= number <= LAST:
        assert infer_extended(number % WRAP, highest) == number


def test_numbers_start_at_one_and_never_repeat() -> None:
    sequence = OutboundSequence(extended=False)
    assert [sequence.take(), sequence.take(3), sequence.take()] == [1, 2, 5]
    assert sequence.last == 5


@pytest.mark.parametrize(("extended", "limit"), [(False, WRAP - 1), (True, LAST)])
def test_last_number_is_used_and_none_after_it(extended: bool, limit: int) -> None:
    sequence = OutboundSequence(extended=extended, last=limit - 2)
    assert not sequence.exhausted
    assert sequence.take() == limit - 1
    assert sequence.take() == limit
    assert sequence.exhausted
    assert [sequence.take() for _ in range(3)] == [0, 0, 0]
    assert sequence.last == limit


def test_refusing_many_takes_none() -> None:
    sequence = OutboundSequence(extended=False, last=WRAP - 3)
    assert sequence.take(3) == 0
    assert sequence.last == WRAP - 3
    assert sequence.take(2) == WRAP - 2
    assert sequence.exhausted


def test_extended_numbers_pass_2_to_the_32() -> None:
    sequence = OutboundSequence(extended=True, last=WRAP - 1)
    assert sequence.take(2) == WRAP
    assert sequence.take() == WRAP + 2


def test_sa_that_starts_at_its_limit_is_exhausted() -> None:
    assert OutboundSequence(extended=False, last=WRAP - 1).exhausted
    assert not OutboundSequence(extended=True, last=WRAP - 1).exhausted
