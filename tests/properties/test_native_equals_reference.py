"""Whatever SAs, policies and bursts there are, the native engine does what the reference engine does."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engines import NATIVE, chosen

if NATIVE not in chosen(None):
    pytest.skip("needs the native engine: run scripts/setup", allow_module_level=True)

from native_pair import World


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1 << 32), st.lists(st.sampled_from(["send", "send", "deliver", "hostile"]), max_size=12)
)
def test_engines_send_receive_count_and_tell_the_same(seed: int, steps: list[str]) -> None:
    world = World(random.Random(seed))
    for one in steps:
        if one == "send":
            world.step()
        elif one == "deliver":
            world.deliver()
        else:
            world.hostile(10)
        world.now += 0.25
    while world.wire:
        world.deliver()


def test_streams_are_the_native_cards() -> None:
    """The comparison means nothing where everything is left to the reference engine."""
    sent = received = 0
    for seed in range(20):
        world = World(random.Random(seed))
        for _ in range(6):
            world.step()
            world.deliver()
        sent += world.senders[0].card.sent  # type: ignore[attr-defined]
        received += world.receivers[0].card.received  # type: ignore[attr-defined]
    assert sent > 500
    assert received > 200
