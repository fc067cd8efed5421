"""Namespaces, devices and programs of one live test.

Law: every name carries the token of its test, and all of it is gone when the test ends, also when it failed.
Programs end by their own id. Nothing outside these namespaces is touched.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from vnic.netlink.namespaces import enter

T = TypeVar("T")

COMMAND_TIMEOUT_S = 10.0
_DEVICE_NAME_LIMIT = 15


def run(
    *argv: str, timeout_s: float = COMMAND_TIMEOUT_S, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; with `check` a failure raises and shows what it wrote."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


@dataclass
class Namespace:
    """One network namespace of a test; loopback is up."""

    name: str
    programs: list[subprocess.Popen[str]] = field(default_factory=list)

    def run(
        self, *argv: str, timeout_s: float = COMMAND_TIMEOUT_S, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside to its end."""
        return run("ip", "netns", "exec", self.name, *argv, timeout_s=timeout_s, check=check)

    def ip(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `ip -n NAME WORDS...`."""
        return run("ip", "-n", self.name, *words, check=check)

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """Start a program inside that is ended with the test, if it has not ended by itself."""
        program = subprocess.Popen(
            ("ip", "netns", "exec", self.name, *argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.programs.append(program)
        return program

    def call(self, function: Callable[[], T], timeout_s: float = COMMAND_TIMEOUT_S) -> T:
        """Call a function on a thread inside, and give what it returns; sockets it makes stay inside."""
        results: list[T] = []
        failures: list[BaseException] = []

        def work() -> None:
            try:
                enter(self.name)
                results.append(function())
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(timeout_s)
        if failures:
            raise failures[0]
        if not results:
            raise TimeoutError(f"the call inside {self.name} took longer than {timeout_s} s")
        return results[0]

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Make a socket inside; the caller closes it."""
        return self.call(lambda: socket.socket(family, kind, protocol))

    def write(self, path: str, text: str) -> None:
        """Write a file of /proc/sys/net as seen from inside."""
        self.call(lambda: Path(path).write_text(text))

    def devices(self) -> set[str]:
        """Name the devices inside."""
        return self.call(lambda: {name for _, name in socket.if_nameindex()})

    def end_programs(self) -> None:
        for program in self.programs:
            program.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(COMMAND_TIMEOUT_S)
            for stream in (program.stdout, program.stderr):
                if stream is not None:
                    stream.close()
        self.programs.clear()


class Namespaces:
    """Maker and remover of all that one test needs."""

    def __init__(self, prefix: str = "vt") -> None:
        self.token = f"{prefix}{secrets.token_hex(3)}"
        self._made: list[Namespace] = []

    def create(self, label: str, *, ipv6: bool = True) -> Namespace:
        """Make a namespace; without `ipv6` its devices stay silent until somebody speaks."""
        namespace = Namespace(f"{self.token}-{label}")
        run("ip", "netns", "add", namespace.name)
        self._made.append(namespace)
        if not ipv6 and os.path.exists("/proc/sys/net/ipv6"):
            for scope in ("all", "default"):
                namespace.write(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6", "1")
        namespace.ip("link", "set", "lo", "up")
        return namespace

    def device(self, label: str) -> str:
        """Give a device name of this test."""
        name = f"{self.token}{label}"
        if len(name) > _DEVICE_NAME_LIMIT:
            raise ValueError(f"{name} is longer than {_DEVICE_NAME_LIMIT} characters: take a shorter label")
        return name

    def veth(
        self,
        left: Namespace,
        right: Namespace,
        *,
        labels: tuple[str, str] = ("a", "b"),
        left_addresses: Sequence[str] = (),
        right_addresses: Sequence[str] = (),
    ) -> tuple[str, str]:
        """Join two namespaces by a veth pair, both ends up; give the names of its ends."""
        names = self.device(labels[0]), self.device(labels[1])
        left.ip("link", "add", names[0], "type", "veth", "peer", "name", names[1], "netns", right.name)
        for namespace, name, addresses in (
            (left, names[0], left_addresses),
            (right, names[1], right_addresses),
        ):
            for address in addresses:
                extra = ("nodad",) if ":" in address else ()
                namespace.ip("address", "add", address, "dev", name, *extra)
            namespace.ip("link", "set", name, "up")
        return names

    def close(self) -> None:
        """End the programs and delete the namespaces, and with them their devices."""
        for namespace in reversed(self._made):
            namespace.end_programs()
            run("ip", "netns", "delete", namespace.name, check=False)
        self._made.clear()
