"""The kernel that the other tests have as their peer comes fast, and goes with all that was made for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kernel_peer import Guest, GuestError, missing
from namespaces import Namespaces, run
from traffic import wait_until

pytestmark = [pytest.mark.live, pytest.mark.interop]

MAC = "02:00:00:00:09:02"


@pytest.fixture(autouse=True)
def _guest_can_run() -> None:
    if (reason := missing()) is not None:
        pytest.skip(reason)


def processes(directory: Path) -> list[int]:
    """What runs with a directory in its arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(directory).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_guest_answers_refuses_by_name_and_leaves_nothing(tmp_path: Path) -> None:
    namespaces = Namespaces("vk")
    try:
        wire, tap = namespaces.create("w", ipv6=False), namespaces.device("u")
        wire.ip("tuntap", "add", tap, "mode", "tap")
        began = time.monotonic()
        guest = Guest(tmp_path, wire, tap, MAC)
        try:
            assert time.monotonic() - began < 15
            assert guest.release == guest.run("uname", "-r").strip()
            assert guest.release != os.uname().release
            with pytest.raises(GuestError, match="ip -b - ended with"):
                guest.ip("xfrm state add src 1.1.1.1 dst 2.2.2.2 proto esp spi 1 enc rot13 0x00")
            with pytest.raises(GuestError, match="Read-only file system"):
                guest.call("write", path=str(Path(__file__).with_name("left")), text="")
            assert len(processes(tmp_path)) > 1
        finally:
            guest.close()
        assert wait_until(lambda: processes(tmp_path) == [])
    finally:
        namespaces.close()
    assert namespaces.token not in run("ip", "netns", "list").stdout


def test_guest_ends_with_a_test_run_that_is_killed(tmp_path: Path) -> None:
    namespaces = Namespaces("vk")
    try:
        wire, tap = namespaces.create("w", ipv6=False), namespaces.device("u")
        wire.ip("tuntap", "add", tap, "mode", "tap")
        lines = (
            "import os, sys",
            f"sys.path[:0] = {sys.path!r}",
            "from pathlib import Path",
            "from kernel_peer import Guest",
            "from namespaces import Namespace",
            f"guest = Guest(Path({str(tmp_path)!r}), Namespace({wire.name!r}), {tap!r}, {MAC!r})",
            "os.kill(os.getpid(), 9)",
        )
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == -9, done.stderr
        assert wait_until(lambda: processes(tmp_path) == [])
    finally:
        namespaces.close()
