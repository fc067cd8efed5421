"""The live state of an SA in native memory answers as Python's own classes do."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engines import NATIVE, chosen, engine_class
from vnic.errors import PacketError
from vnic.ipsec.counters import SaCounters
from vnic.ipsec.drops import DropReason
from vnic.ipsec.replay import ReplayWindow
from vnic.ipsec.sequence import OutboundSequence
from vnic.miniport.ciphers import CounterIvs

if NATIVE not in chosen(None):
    pytest.skip("needs the native engine: run scripts/setup", allow_module_level=True)

engine_class(NATIVE)
import vnic_native  # noqa: E402

NUMBERS = st.integers(0, (1 << 64) - 1) | st.integers((1 << 32) - 200, (1 << 32) + 200) | st.integers(0, 3000)


def state_of(sequence: Any) -> tuple[object, ...]:
    return (sequence.last, sequence.limit, sequence.stop, sequence.exhausted, sequence.next_warning(3))


@given(st.booleans(), NUMBERS, st.lists(st.integers(1, 1 << 20), max_size=20))
def test_numbers_are_handed_out_alike(extended: bool, last: int, counts: list[int]) -> None:
    if not extended:
        last &= 0xFFFFFFFF
    ours = OutboundSequence(extended=extended, last=last)
    theirs = vnic_native.OutboundSequence(extended=extended, last=last)
    for count in counts:
        assert ours.percent(ours.last) == theirs.percent(theirs.last)
        assert ours.take(count) == theirs.take(count)
        assert state_of(ours) == state_of(theirs)
        for one in (ours, theirs):
            one.stop = min(one.next_warning(count), one.limit)
    ours.end()
    theirs.end()
    assert state_of(ours) == state_of(theirs)


@given(st.sampled_from([0, 64, 65, 1024]), NUMBERS, st.lists(st.integers(-1200, 1200) | NUMBERS, max_size=60))
def test_windows_judge_and_show_alike(bits: int, top: int, steps: list[int]) -> None:
    ours, theirs = ReplayWindow(bits, top), vnic_native.ReplayWindow(bits, top)
    for step in steps:
        number = ours.top + step if abs(step) <= 1200 else step
        if not 0 <= number < 1 << 64:
            continue
        verdict = ours.check(number)
        assert theirs.check(number) is verdict
        if verdict.value == "new":
            ours.advance(number)
            theirs.advance(number)
        elif 0 < number <= ours.top:
            ours.note_late(number)
            theirs.note_late(number)
        assert (ours.top, ours.needed_bits, ours.bitmap()) == (
            theirs.top,
            theirs.needed_bits,
            theirs.bitmap(),
        )


@given(st.binary(min_size=8, max_size=8), st.integers(0, 1 << 64))
def test_ivs_go_on_where_others_stopped(start: bytes, given: int) -> None:
    position = int.from_bytes(start, "big") << 65 | given
    ours, theirs = CounterIvs.resumed(position), vnic_native.CounterIvs.resumed(position)
    for _ in range(3):
        assert ours.position == theirs.position
        try:
            expected = ours.take()
        except PacketError:
            with pytest.raises(PacketError):
                theirs.take()
        else:
            assert theirs.take() == expected


def test_counters_count_show_and_compare_alike() -> None:
    ours, theirs = SaCounters(), vnic_native.SaCounters()
    assert theirs == ours
    rng = random.Random(1)
    for _ in range(10):
        for one in (ours, theirs):
            one.packets += 3
            one.bytes += 1500
        reason, count = rng.choice(list(DropReason)), rng.randrange(1, 9)
        ours.count_drop(reason, count)
        theirs.count_drop(reason, count)
    assert theirs == ours
    assert repr(theirs) == repr(ours)
    assert SaCounters().drops == {}
    theirs.packets += 1
    assert theirs != ours


def test_what_is_never_reached_fits() -> None:
    counters = vnic_native.SaCounters()
    assert counters.stop > 1 << 63
    counters.stop = 1 << 64
    assert counters.stop == (1 << 64) - 1
    with pytest.raises(OverflowError):
        counters.stop = -1
