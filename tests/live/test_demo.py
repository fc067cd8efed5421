"""The demo, run as a user runs it: every claim holds, and nothing of it is left however it ends."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIME_LIMIT_S = 40
CLEAN_UP_LIMIT_S = 10

pytestmark = pytest.mark.live


@contextmanager
def running_demo(tools: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo just started; programs in `tools` come before the real ones."""
    process = subprocess.Popen(
        [ROOT / "scripts" / "demo"],
        env=os.environ | {"PATH": f"{tools}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)


def token_of(output: str) -> str:
    found = re.search(r"name beginning with (\w+)", output)
    assert found is not None, output
    return found[1]


def leftovers(token: str) -> list[str]:
    """Everything on this machine that carries the token of one run."""
    found = [
        str(path)
        for place in ("/run/netns", "/tmp", "/sys/class/net")
        for path in Path(place).glob(f"{token}*")
    ]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if token.encode() in (process / "cmdline").read_bytes():
                found.append(str(process))
        except OSError:
            continue
    return found


def test_demo_shows_every_claim_in_time_and_leaves_nothing(tmp_path: Path) -> None:
    began = time.monotonic()
    with running_demo(tmp_path) as demo:
        output, _ = demo.communicate(timeout=2 * TIME_LIMIT_S)
    assert demo.returncode == 0, output
    assert "✗" not in output
    assert output.count("✓") >= 12
    assert "All claims held." in output
    assert time.monotonic() - began < TIME_LIMIT_S
    assert leftovers(token_of(output)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_interrupted_in_mid_traffic_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with running_demo(tmp_path) as demo:
        assert demo.stdout is not None
        output = ""
        while not output.endswith("\n") or "\n3/8" not in output:
            line = demo.stdout.readline()
            assert line, f"the demo ended early:\n{output}"
            output += line
        token = token_of(output)
        assert leftovers(token) != []
        began = time.monotonic()
        demo.send_signal(number)
        rest, _ = demo.communicate(timeout=2 * CLEAN_UP_LIMIT_S)
    assert time.monotonic() - began < CLEAN_UP_LIMIT_S
    assert demo.returncode == 128 + number, rest
    assert leftovers(token) == []


def test_demo_that_cannot_show_a_claim_fails_and_leaves_nothing(tmp_path: Path) -> None:
    fake = tmp_path / "tcpdump"
    fake.write_text("#!/bin/sh\necho 'no captures today' >&2\nexit 1\n")
    fake.chmod(0o755)
    with running_demo(tmp_path) as demo:
        output, _ = demo.communicate(timeout=2 * TIME_LIMIT_S)
    assert demo.returncode == 1
    assert "✗ stopped: tcpdump cannot read the capture: no captures today" in output
    assert leftovers(token_of(output)) == []
