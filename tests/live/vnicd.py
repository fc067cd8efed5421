"""The real vnicd as a process of its own, and calls to it through the control socket.

Law: it ends with its test, by its own id; what it made goes with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from vnic.control.client import Client
from vnic.control.interface import Call, GetDaemon
from vnic.errors import ControlError

T = TypeVar("T")

VNICD = Path(sys.executable).parent / "vnicd"
READY_TIMEOUT_S = 20.0
END_TIMEOUT_S = 10.0

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class Vnicd:
    """One daemon; `directory` holds its configuration, socket and log."""

    def __init__(self, directory: Path, command: Sequence[str] = (str(VNICD),)) -> None:
        self.config = directory / "vnic.toml"
        self.socket = directory / "vnic.sock"
        self.log = directory / "log"
        self.command = list(command)
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, adapters: str, control: str = "") -> None:
        self.config.write_text(f'[control]\nsocket = "{self.socket}"\n{control}\n{adapters}')

    def start(self, **popen: object) -> float:
        """Start it and wait until it answers; give the seconds that took."""
        began = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(  # type: ignore[call-overload]
                [*self.command, "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **popen,
            )
        while time.monotonic() - began < READY_TIMEOUT_S:
            if self.process.poll() is not None:
                raise AssertionError(f"vnicd ended with {self.process.returncode}:\n{self.text()}")
            if "ready:" in self.text():
                with contextlib.suppress(ControlError):
                    if self.call(GetDaemon()).pid == self.process.pid:
                        return time.monotonic() - began
            time.sleep(0.02)
        raise AssertionError(f"vnicd is not ready:\n{self.text()}")

    def text(self) -> str:
        """Its log so far."""
        return self.log.read_text() if self.log.exists() else ""

    def call(self, request: Call[T]) -> T:
        """Make one call on a connection of its own."""

        async def work() -> T:
            async with await Client.connect(str(self.socket)) as client:
                return await client.call(request)

        return asyncio.run(asyncio.wait_for(work(), 10))

    def end(self, number: int = signal.SIGTERM) -> float:
        """Send a signal and wait for the end; give the seconds it took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(END_TIMEOUT_S)
        return time.monotonic() - began

    def hang_up(self) -> None:
        """Send SIGHUP and wait until the configuration is reloaded."""
        assert self.process is not None
        count = self.text().count("configuration reloaded")
        self.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + END_TIMEOUT_S
        while self.text().count("configuration reloaded") == count:
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.02)

    def cpu_s(self) -> float:
        """Seconds of processor time it has used."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS

    def resident_mib(self) -> float:
        """Memory it has in RAM."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024


@contextlib.contextmanager
def vnicd_in(directory: Path, command: Sequence[str] = (str(VNICD),)) -> Iterator[Vnicd]:
    """A daemon, not yet started, that is gone afterwards."""
    made = Vnicd(directory, command)
    try:
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.process.kill()
            made.process.wait(END_TIMEOUT_S)
