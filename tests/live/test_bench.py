"""The benchmark runner, run as a user runs it: its first case in time, with the keys that others read."""

import json
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIME_LIMIT_S = 40

pytestmark = pytest.mark.live


def test_quick_case_prints_one_json_object_in_time() -> None:
    began = time.monotonic()
    done = subprocess.run(
        [ROOT / "scripts" / "bench", "--quick", "--json", "link-gcm128"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * TIME_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < TIME_LIMIT_S
    result = json.loads(done.stdout)
    assert {"case", "engine", "gbps", "reference_gbps", "ratio"} <= set(result)
    assert result["case"] == "link-gcm128"
    assert result["congestion_control"] == "cubic"
    assert result["ratio"] == pytest.approx(result["gbps"] / result["reference_gbps"], rel=0.01)
    assert result["gbps"] > 0


def test_unknown_case_is_named_with_the_cases_there_are() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "bench", "link-rot13"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert "unknown case 'link-rot13'; allowed: link-gcm128, " in done.stderr
