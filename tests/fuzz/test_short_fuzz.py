"""A short run of every fuzzer; `scripts/fuzz` is the long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from exploring import Target, explore
from long_run import TARGETS, made
from nbl_fuzz import NblTarget
from oid_fuzz import OidTarget

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.rule(73, 74, 76, 81, 90)
def test_changed_oid_requests_get_a_status_and_change_nothing_unless_they_succeed() -> None:
    ends = explore(OidTarget(), 6000, seed=7)
    statuses = {end.split()[2] for end in ends}
    assert {"SUCCESS", "INVALID_DATA", "INVALID_LENGTH", "BUFFER_TOO_SHORT"} <= statuses
    assert {"INVALID_PARAMETER", "NOT_SUPPORTED", "INVALID_OID", "NOT_ACCEPTED"} <= statuses


@pytest.mark.rule(165, 167)
def test_changed_nbl_messages_are_completed_and_send_nothing_that_no_peer_can_verify() -> None:
    ends = explore(NblTarget(), 6000, seed=7)
    assert ends["sent sealed"] > 100
    assert ends["sent FAILURE"] > 100
    assert ends["sent large"] > 10


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_is_an_input_that_means_something(name: str) -> None:
    target: Target = made(name)
    ends = {target.one(seed) for seed in target.seeds()}
    assert len(ends) > 5


def test_every_seed_of_a_send_is_sent() -> None:
    target = NblTarget()
    ends = [target.one(seed) for seed in target.seeds()]
    assert [end for end in ends if end.startswith("sent ")].count("sent FAILURE") == 0
    assert {"sent sealed", "sent large", "sent in clear", "sent untouched"} <= set(ends)


def test_a_finding_shows_its_input() -> None:
    class Broken(NblTarget):
        def one(self, data: bytes) -> str:
            assert data[:1] != b"\xff"
            return ""

    with pytest.raises(AssertionError) as caught:
        explore(Broken(), 100_000, seed=1)
    (note,) = caught.value.__notes__
    assert ": ff" in note


@pytest.mark.parametrize(
    ("name", "guided"), [*((name, True) for name in TARGETS), ("nbl", False)], ids=lambda one: str(one)
)
def test_the_long_run_ends_well_when_nothing_is_found(name: str, guided: bool, tmp_path: Path) -> None:
    command = [sys.executable, "tests/fuzz/long_run.py", name, "300", "1"]
    paths = ":".join(str(ROOT / path) for path in ("", "tests", "tests/fuzz"))
    done = subprocess.run(
        [*command, *(["--corpus", str(tmp_path)] if guided else [])],
        cwd=ROOT,
        env={"PYTHONPATH": paths, "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
