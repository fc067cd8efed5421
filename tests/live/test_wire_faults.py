"""Faults of a wire on demand: each shows as one counter at the far end, and none harms what gets through.

host ── left ══ faults ══ wire ══ right ── host          the faults are the left adapter's
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from card import AH, CBC, GCM, LEFT, RIGHT, Layer, Pair, Refusal, running_pair
from traffic import captured, digest, is_sealed, ping, tcp, wait_until

pytestmark = pytest.mark.live

WINDOW = 64
WAIT_S = 0.3


def warm(pair: Pair) -> None:
    """Have the hosts know each other's Ethernet addresses."""
    assert ping(pair.left, pair.right.addresses[4], count=2) == 2


@contextmanager
def shows(pair: Pair, **reasons: int) -> Iterator[None]:
    """Make sure that the block adds exactly these drops at the right adapter."""
    before = Counter(pair.daemon.drops(RIGHT))
    yield
    wait_until(lambda: Counter(pair.daemon.drops(RIGHT)) - before == Counter(reasons), 2.0)
    assert Counter(pair.daemon.drops(RIGHT)) - before == Counter(reasons)


def done(pair: Pair, direction: str = "tx") -> Any:
    """Faults done so far in one direction of the left wire."""
    (state,) = pair.daemon.json("wire", "show", LEFT)
    (counts,) = (one["counts"] for one in state["wire_faults"] if one["direction"] == direction)
    return counts


@pytest.mark.parametrize("wire", ["link", "netdev", "tap"])
def test_each_fault_is_one_counter_at_the_far_end(tmp_path: Path, wire: str) -> None:
    with running_pair(tmp_path, wire) as pair:
        far, vnic = pair.right.addresses[4], pair.daemon.vnic
        pair.protect([Layer(GCM, "tunnel")], window=WINDOW)
        warm(pair)
        assert pair.daemon.adapter(LEFT)["wire_faults"] == []

        vnic("wire", "set", LEFT, "dir", "tx", "duplicate", "100%")
        with shows(pair, in_replay_duplicate=5):
            assert ping(pair.left, far, count=5) == 5
        vnic("wire", "set", LEFT, "dir", "tx", "duplicate", "0")

        for bit in (0, 127):
            vnic("wire", "do", LEFT, "flip-icv", str(bit))
        with shows(pair, in_icv=2):
            assert ping(pair.left, far, count=4, wait_s=WAIT_S) == 2

        with shows(pair, in_replay_duplicate=3):
            vnic("wire", "do", LEFT, "replay", "3")

        vnic("wire", "do", LEFT, "truncate", "60")
        with shows(pair, in_malformed=1):
            assert ping(pair.left, far, count=3, wait_s=WAIT_S) == 2

        vnic("wire", "do", LEFT, "hold", str(3 * WINDOW))
        with shows(pair, in_replay_too_old=1):
            assert ping(pair.left, far, count=3 * WINDOW + 10, wait_s=WAIT_S) == 3 * WINDOW + 9

        vnic("wire", "set", LEFT, "dir", "tx", "loss", "100%")
        with shows(pair):
            assert ping(pair.left, far, count=3, wait_s=WAIT_S) == 0
        assert pair.daemon.drops(LEFT)["fault_loss"] >= 3

        vnic("wire", "clear", LEFT)
        with shows(pair):
            assert ping(pair.left, far, count=20) == 20
        counts = done(pair)
        assert (counts["flipped"], counts["replayed"]) == (2, 3)
        assert (counts["truncated"], counts["held"]) == (1, 1)
        for name in (LEFT, RIGHT):
            assert pair.daemon.statistics(name)["forwarder_errors"] == 0


@pytest.mark.parametrize("suite", [GCM, CBC, AH], ids=lambda suite: suite.name)
def test_corrupt_packets_are_counted_and_never_delivered(clean_pair: Pair, suite: Any) -> None:
    pair = clean_pair
    pair.protect([Layer(suite, "transport")])
    warm(pair)
    before = sum(pair.daemon.drops(RIGHT).values())
    pair.daemon.vnic("wire", "set", LEFT, "dir", "tx", "corrupt", "100%", "seed", "5")
    try:
        assert ping(pair.left, pair.right.addresses[4], count=40, wait_s=WAIT_S) == 0
        assert wait_until(lambda: sum(pair.daemon.drops(RIGHT).values()) - before >= 40)
    finally:
        pair.daemon.vnic("wire", "clear", LEFT)
    assert pair.daemon.drops(RIGHT)["in_icv"] > 10


def test_streams_survive_a_bad_wire_unharmed(clean_pair: Pair) -> None:
    pair = clean_pair
    pair.protect([Layer(GCM, "tunnel")])
    warm(pair)
    faults = "loss 1% duplicate 1% reorder 3%/4 corrupt 1% delay 1ms jitter 500us seed 7"
    pair.daemon.vnic("wire", "set", LEFT, *faults.split())
    try:
        text = pair.daemon.vnic("adapter", "show", LEFT)
        assert "faults tx loss 1% duplicate 1% corrupt 1% reorder 3%/4 delay 1ms jitter 0.5ms" in text
        payload = os.urandom(1 << 20)
        assert tcp(pair.left, pair.right, 4, payload, port=5011) == digest(payload)
        assert tcp(pair.right, pair.left, 4, payload, port=5012) == digest(payload)
        for direction in ("tx", "rx"):
            assert all(done(pair, direction)[kind] for kind in ("lost", "duplicated", "reordered", "delayed"))
    finally:
        pair.daemon.vnic("wire", "clear", LEFT)
    assert "faults" not in pair.daemon.vnic("adapter", "show", LEFT)


def test_delay_and_rate_are_what_was_asked_for(clean_pair: Pair) -> None:
    pair = clean_pair
    pair.protect([Layer(GCM, "tunnel")])
    warm(pair)
    try:
        pair.daemon.vnic("wire", "set", LEFT, "delay", "20ms")
        output = pair.left.namespace.run(
            "ping", "-n", "-c", "10", "-i", "0.05", "-W", "2", pair.right.addresses[4]
        ).stdout
        found = re.search(r"= ([0-9.]+)/([0-9.]+)/", output)
        assert found is not None, output
        # There and back, each by a timer that is some milliseconds late, on a busy machine many.
        assert 40 <= float(found[1]) <= float(found[2]) < 200
        pair.daemon.vnic("wire", "set", LEFT, "delay", "0", "dir", "tx", "rate", "20mbit")
        payload = os.urandom(2 << 20)
        start = time.monotonic()
        assert tcp(pair.left, pair.right, 4, payload, port=5013) == digest(payload)
        assert time.monotonic() - start > len(payload) * 8 / 20e6 * 0.8
    finally:
        pair.daemon.vnic("wire", "clear", LEFT)


def test_a_stalled_wire_goes_on_where_it_stood(clean_pair: Pair) -> None:
    pair = clean_pair
    pair.protect([Layer(GCM, "tunnel")])
    warm(pair)
    far = pair.right.addresses[4]
    before = pair.drops()
    received = pair.daemon.statistics(RIGHT)["card"]["rx_offloaded"]
    try:
        pair.daemon.vnic("wire", "do", LEFT, "stall")
        assert ping(pair.left, far, count=5, wait_s=WAIT_S) == 0
        assert pair.daemon.statistics(RIGHT)["card"]["rx_offloaded"] == received
        pair.daemon.vnic("wire", "do", LEFT, "release")
        assert wait_until(lambda: pair.daemon.statistics(RIGHT)["card"]["rx_offloaded"] == received + 5)
        assert ping(pair.left, far, count=5) == 5
    finally:
        pair.daemon.vnic("wire", "clear", LEFT)
    assert pair.drops() == before


def test_a_recording_shows_the_wire_behind_the_faults(clean_pair: Pair, tmp_path: Path) -> None:
    pair = clean_pair
    pair.protect([Layer(GCM, "tunnel")])
    warm(pair)
    file = tmp_path / "wire.pcapng"
    try:
        pair.daemon.vnic("wire", "set", LEFT, "dir", "tx", "duplicate", "100%")
        with pair.daemon.capture(LEFT, "wire", file):
            assert ping(pair.left, pair.right.addresses[4], count=3) == 3
        sealed = [frame for frame in captured(file) if is_sealed(frame)]
        # Three requests twice, three replies once.
        assert len(sealed) == 9
        assert sorted(Counter(sealed).values()) == [1, 1, 1, 2, 2, 2]
    finally:
        pair.daemon.vnic("wire", "clear", LEFT)


def test_a_wrong_value_is_refused_by_name(clean_pair: Pair) -> None:
    with pytest.raises(Refusal) as refused:
        clean_pair.daemon.vnic("wire", "set", LEFT, "loss", "120%")
    assert "loss: 120% is out of range; allowed: 0% to 100%" in str(refused.value)
