"""What is installed, and waiting for what a peer makes.

Law: looks, installs nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from scripts.lab import LEFT, RIGHT, Lab, LabError

START_TIMEOUT_S = 15.0


def missing_packages(wanted: Mapping[str, str]) -> str:
    """Debian packages of the programs and files that are not there, "" if all are.

    Args:
        wanted: package by program name or absolute path.
    """
    found = (
        Path(name).exists() if name.startswith("/") else shutil.which(name) is not None for name in wanted
    )
    return " ".join(
        sorted({package for package, there in zip(wanted.values(), found, strict=True) if not there})
    )


def wait_until(ready: Callable[[], bool], what: str) -> None:
    """Wait until something is so, and fail when it takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if time.monotonic() > deadline:
            raise LabError(f"{what} took more than {START_TIMEOUT_S:.0f} s")
        time.sleep(0.05)


def wait_for_echo(lab: Lab, address: str, what: str) -> None:
    """Wait until the left reaches an address of the right."""

    def answered() -> bool:
        said = lab.run_in(LEFT, ["ping", "-n", "-c", "1", "-W", "1", address], ok=(0, 1, 2))
        return " 1 received" in said

    wait_until(answered, f"a first answer from {address} ({RIGHT}) through {what}")
