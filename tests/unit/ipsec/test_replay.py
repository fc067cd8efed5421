"""ReplayWindow: the cases of RFC 4303 §3.4.3 and the edges of its words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnic.ipsec.replay import ReplayVerdict, ReplayWindow

NEW, DUPLICATE, TOO_OLD = ReplayVerdict.NEW, ReplayVerdict.DUPLICATE, ReplayVerdict.TOO_OLD


def take(window: ReplayWindow, number: int) -> ReplayVerdict:
    verdict = window.check(number)
    if verdict is NEW:
        window.advance(number)
    return verdict


def test_first_packet_is_number_one() -> None:
    window = ReplayWindow(64)
    assert window.check(0) is TOO_OLD
    assert take(window, 1) is NEW
    assert window.top == 1


def test_same_number_twice_is_a_duplicate() -> None:
    window = ReplayWindow(64)
    assert [take(window, number) for number in (5, 5, 3, 3, 5)] == [NEW, DUPLICATE, NEW, DUPLICATE, DUPLICATE]


@pytest.mark.parametrize("bits", [64, 65, 100, 127, 128, 1024, 4096, 65536])
def test_left_edge_of_the_window_is_exact(bits: int) -> None:
    window = ReplayWindow(bits)
    top = 3 * bits + 17
    window.advance(top)
    assert window.check(top - bits) is TOO_OLD
    assert window.check(top - bits + 1) is NEW
    assert take(window, top - bits + 1) is NEW
    assert window.check(top - bits + 1) is DUPLICATE


def test_checking_moves_nothing() -> None:
    window = ReplayWindow(64)
    window.advance(10)
    for number in (11, 1000, 1 << 40, 3):
        assert window.check(number) is NEW
    assert window.top == 10
    assert window.bitmap() == 1


@pytest.mark.parametrize("jump", [1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 1000, 1 << 33])
def test_jump_keeps_what_stays_inside_and_forgets_the_rest(jump: int) -> None:
    window = ReplayWindow(128)
    for number in range(1, 201):
        window.advance(number)
    window.advance(200 + jump)
    for number in range(1, 200 + jump if jump < 1000 else 400):
        if 200 + jump - number >= 128:
            expected = TOO_OLD
        else:
            expected = DUPLICATE if number <= 200 else NEW
        assert window.check(number) is expected


@pytest.mark.parametrize("top", [1, 63, 64, 65, 1000, (1 << 32) - 1, 1 << 32, (1 << 64) - 1])
def test_window_that_starts_at_a_number_has_seen_all_before_it(top: int) -> None:
    window = ReplayWindow(256, top)
    assert window.top == top
    for number in range(max(0, top - 300), top + 1):
        assert window.check(number) is (TOO_OLD if top - number >= 256 or number == 0 else DUPLICATE)
    for number in (top + 1, top + 64, top + 1000):
        assert window.check(number) is NEW
    window.advance(top + 70)
    assert window.check(top + 69) is NEW
    assert window.check(top) is DUPLICATE


def test_numbers_pass_2_to_the_32_without_a_seam() -> None:
    window = ReplayWindow(1024, (1 << 32) - 100)
    for number in range((1 << 32) - 50, (1 << 32) + 50):
        assert take(window, number) is NEW
    for number in range((1 << 32) - 50, (1 << 32) + 50):
        assert take(window, number) is DUPLICATE
    assert take(window, (1 << 32) - 60) is NEW
    assert take(window, (1 << 32) - 100) is DUPLICATE


def test_window_of_zero_checks_nothing_but_follows_the_top() -> None:
    window = ReplayWindow(0)
    for number in (5, 5, 1, 3, 1 << 33, 5):
        assert window.check(number) is NEW
        window.advance(number)
    assert window.top == 1 << 33
    assert window.bitmap() == 0


def test_bitmap_shows_number_top_minus_n_at_bit_n() -> None:
    window = ReplayWindow(64)
    for number in (100, 99, 97, 60, 37):
        window.advance(number)
    assert window.bitmap() == 1 | 1 << 1 | 1 << 3 | 1 << 40 | 1 << 63


def test_bitmap_has_no_bits_before_the_first_number() -> None:
    window = ReplayWindow(1024)
    window.advance(3)
    window.advance(1)
    assert window.bitmap() == 0b101
    assert ReplayWindow(1024).bitmap() == 0
    assert ReplayWindow(64, 5).bitmap() == 0b11111


def test_advancing_costs_the_same_for_the_largest_window() -> None:
    window = ReplayWindow(65536)
    window.advance(1 << 60)
    for number in range((1 << 60) + 1, (1 << 60) + 2000):
        assert take(window, number) is NEW
    assert window.check((1 << 60) - 65536 + 2000) is NEW
    assert window.check((1 << 60) + 1999 - 65536) is TOO_OLD


def test_window_says_how_large_it_should_have_been() -> None:
    window = ReplayWindow(64)
    for number, needed in ((1, 0), (2, 0), (10, 0), (9, 2), (3, 8), (60, 8), (59, 8), (11, 50)):
        assert window.check(number) is ReplayVerdict.NEW
        window.advance(number)
        assert window.needed_bits == needed, number
    # Asking, and duplicates, change nothing.
    for number in (60, 1, 3):
        window.check(number)
    assert window.needed_bits == 50
    window.advance(1000)
    assert window.check(900) is ReplayVerdict.TOO_OLD
    window.note_late(900)
    assert window.needed_bits == 101


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60, unique=True))
def test_window_of_the_needed_size_takes_every_packet(numbers: list[int]) -> None:
    small = ReplayWindow(64)
    for number in numbers:
        if small.check(number) is ReplayVerdict.NEW:
            small.advance(number)
        else:
            small.note_late(number)
    enough = ReplayWindow(max(64, small.needed_bits))
    for number in numbers:
        assert enough.check(number) is ReplayVerdict.NEW
        enough.advance(number)
    if small.needed_bits > 64:
        short = ReplayWindow(small.needed_bits - 1)
        verdicts = []
        for number in numbers:
            verdicts.append(short.check(number))
            if verdicts[-1] is ReplayVerdict.NEW:
                short.advance(number)
        assert ReplayVerdict.TOO_OLD in verdicts
