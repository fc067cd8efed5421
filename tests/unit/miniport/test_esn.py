from hypothesis import given
from hypothesis import strategies as st

from vnic.miniport.esn import ExtendedNumbers

LOW_MASK = 0xFFFFFFFF
LIMIT = (1 << 64) - 1


def upper(number: int) -> bytes:
    return (number >> 32).to_bytes(4, "big")


@given(st.integers(0, LIMIT - 2000), st.lists(st.integers(1, 40), min_size=1, max_size=40))
def test_sender_finds_the_upper_half_of_every_number_from_that_of_the_last(
    last: int, steps: list[int]
) -> None:
    numbers = ExtendedNumbers(last >> 32)
    number = last + 1
    for step in steps:
        assert numbers.next(number & LOW_MASK) == upper(number)
        number += step


@given(st.integers(0, LIMIT), st.integers(0, (1 << 31) - 1))
def test_receiver_tries_the_true_number_first_or_second_when_it_knows_the_upper_half_only(
    last: int, distance: int
) -> None:
    number = last + distance
    if number <= LIMIT:
        candidates = ExtendedNumbers(last >> 32).candidates(number & LOW_MASK)
        assert number in candidates
        assert len(candidates) <= 2


@given(st.integers(0, LIMIT), st.integers(0, LOW_MASK))
def test_receiver_never_tries_an_upper_half_before_the_one_it_was_told(last: int, low: int) -> None:
    high = last >> 32
    assert all(number >> 32 >= high for number in ExtendedNumbers(high).candidates(low))


@given(st.integers(0, LIMIT), st.integers(-(1 << 31) + 1, (1 << 31) - 1))
def test_receiver_knows_the_number_at_once_after_one_was_authenticated(last: int, distance: int) -> None:
    numbers = ExtendedNumbers(last >> 32)
    numbers.authenticated(last)
    number = last + distance
    if 0 <= number <= LIMIT:
        assert numbers.candidates(number & LOW_MASK) == (number,)


def test_no_candidate_lies_beyond_the_first_or_the_last_number() -> None:
    assert ExtendedNumbers(0).candidates(0xFFFFFFF0) == (0xFFFFFFF0,)
    assert ExtendedNumbers(LOW_MASK).candidates(5) == (LOW_MASK << 32 | 5,)


def test_an_old_number_does_not_lead_back() -> None:
    numbers = ExtendedNumbers(0)
    numbers.authenticated(1 << 32 | 10)
    numbers.authenticated(0xFFFFFFFF)
    assert numbers.candidates(11) == (1 << 32 | 11,)


def test_a_new_upper_half_counts_from_the_next_packet_on() -> None:
    numbers = ExtendedNumbers(0)
    assert numbers.next(7) == upper(7)
    numbers.rebase(5)
    assert numbers.next(8) == upper(5 << 32 | 8)
    assert numbers.next(9) == upper(5 << 32 | 9)


def test_the_same_upper_half_changes_nothing() -> None:
    numbers = ExtendedNumbers(3)
    assert numbers.next(0xFFFFFFFF) == upper(3 << 32)
    numbers.rebase(3)
    assert numbers.next(0) == upper(4 << 32)


def test_the_same_upper_half_changes_nothing_when_numbers_are_missing() -> None:
    numbers = ExtendedNumbers(3)
    assert numbers.next(0xFFFFFFFF) == upper(3 << 32)
    numbers.rebase(3)
    assert numbers.next(2) == upper(4 << 32)


def test_sender_follows_the_highest_number_not_the_last() -> None:
    numbers = ExtendedNumbers(1)
    assert numbers.next(0x10) == upper(1 << 32)
    assert numbers.next(0xFFFFFFFF) == upper(0)
    assert numbers.next(0x80000005) == upper(1 << 32)


def test_only_numbers_of_the_first_half_may_be_of_the_next_upper_half() -> None:
    middle = 1 << 31
    assert ExtendedNumbers(5).candidates(middle) == (5 << 32 | middle,)
    assert ExtendedNumbers(5).candidates(middle - 1) == (5 << 32 | middle - 1, 6 << 32 | middle - 1)


def test_first_number_with_lower_half_zero_has_wrapped() -> None:
    assert ExtendedNumbers(8).next(0) == upper(9 << 32)
