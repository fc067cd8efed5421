"""A short run of the receive fuzzer; `scripts/fuzz` is the long one."""

from __future__ import annotations

from receive_fuzz import run


def test_mutated_frames_never_bring_an_unsealed_packet_to_the_host() -> None:
    ends = run(10_000, seed=20)
    assert ends["in_icv"] > 1000
    assert ends["passed"] > 0
