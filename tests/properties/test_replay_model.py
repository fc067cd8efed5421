"""The replay window says of every number what a set of all numbers ever seen would say."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vnic.ipsec.replay import MAX_WINDOW_BITS, MIN_WINDOW_BITS, ReplayVerdict, ReplayWindow

WRAP = 1 << 32
LAST = (1 << 64) - 1

SIZES = st.one_of(
    st.sampled_from([64, 65, 127, 128, 129, 1024, 4096, MAX_WINDOW_BITS]),
    st.integers(MIN_WINDOW_BITS, MAX_WINDOW_BITS),
)
STARTS = st.one_of(
    st.sampled_from([0, 1, 63, 64, WRAP - 1, WRAP, LAST - 1000]),
    st.integers(WRAP - 300, WRAP + 300),
    st.integers(0, LAST),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("near"), st.integers(-200, 70)),
        st.tuples(st.just("edge"), st.integers(-3, 3)),
        st.tuples(st.just("jump"), st.integers(1, 200_000)),
        st.tuples(st.just("leap"), st.integers(WRAP - 5, WRAP + 5)),
        st.tuples(st.just("again"), st.integers(0, 50)),
    ),
    max_size=120,
)


class SeenNumbers:
    """RFC 4303 §3.4.3 with unlimited memory."""

    def __init__(self, bits: int, start: int) -> None:
        self.bits = bits
        self.start = start
        self.top = start
        self.seen: set[int] = set()

    def check(self, number: int) -> ReplayVerdict:
        if number > self.top:
            return ReplayVerdict.NEW
        if number == 0 or number <= self.top - self.bits:
            return ReplayVerdict.TOO_OLD
        if number <= self.start or number in self.seen:
            return ReplayVerdict.DUPLICATE
        return ReplayVerdict.NEW

    def advance(self, number: int) -> None:
        self.seen.add(number)
        self.top = max(self.top, number)


@settings(max_examples=150, deadline=None)
@given(SIZES, STARTS, STEPS)
def test_window_agrees_with_a_set_of_all_numbers_seen(
    bits: int, start: int, steps: list[tuple[str, int]]
) -> None:
    window, model = ReplayWindow(bits, start), SeenNumbers(bits, start)
    history = [start]
    for kind, amount in steps:
        if kind == "edge":
            number = model.top - bits + amount
        elif kind == "again":
            number = history[-1 - amount % len(history)]
        else:
            number = model.top + amount
        number = max(0, min(LAST, number))
        history.append(number)
        verdict = window.check(number)
        assert verdict is model.check(number)
        if verdict is ReplayVerdict.NEW:
            window.advance(number)
            model.advance(number)
            assert window.check(number) is ReplayVerdict.DUPLICATE
        assert window.top == model.top
    for number in {*history, *(number + 1 for number in history), *(number - bits for number in history)}:
        if 0 <= number <= LAST:
            assert window.check(number) is model.check(number)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([64, 100, 128, 1000]), STARTS, STEPS)
def test_bitmap_shows_the_same_set(bits: int, start: int, steps: list[tuple[str, int]]) -> None:
    window, model = ReplayWindow(bits, start), SeenNumbers(bits, start)
    for _, amount in steps:
        number = max(0, min(LAST, model.top + amount))
        if window.check(number) is ReplayVerdict.NEW:
            window.advance(number)
            model.advance(number)
    expected = 0
    for offset in range(min(bits, model.top)):
        if model.check(model.top - offset) is ReplayVerdict.DUPLICATE:
            expected |= 1 << offset
    assert window.bitmap() == expected
