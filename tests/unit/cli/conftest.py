"""The command as the tests of vnic.cli run it: in this process, against a daemon that only remembers."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_daemon import FakeDaemon, Memory

from vnic.cli.main import run


@dataclass(frozen=True)
class Result:
    """What one run of the command left behind."""

    code: int
    out: str
    err: str
    requests: list[Any]

    @property
    def request(self) -> Any:
        """The one request that was made."""
        (request,) = self.requests
        return request

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error that -j wrote."""
        document = json.loads(self.err.splitlines()[-1])
        assert isinstance(document, dict)
        return document


class Interrupting(io.StringIO):
    """Standard output at which the user presses Ctrl-C after some flushes."""

    def __init__(self, flushes: int | None) -> None:
        super().__init__()
        self._left = flushes

    def flush(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                raise KeyboardInterrupt


class Command:
    """Runs `vnic` with the words of one line, as a shell would split it."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self.daemon = daemon

    @property
    def memory(self) -> Memory:
        return self.daemon.memory

    def __call__(self, line: str, stdin: str = "") -> Result:
        return self.words(shlex.split(line), stdin)

    def words(self, words: list[str], stdin: str = "", interrupted_after: int | None = None) -> Result:
        """Run it; with `interrupted_after` a Ctrl-C comes when so much was flushed."""
        self.memory.requests.clear()
        out, err = Interrupting(interrupted_after), io.StringIO()
        code = run(["-S", self.daemon.path, *words], out, err, io.StringIO(stdin))
        return Result(code, out.getvalue(), err.getvalue(), list(self.memory.requests))


def _daemon(directory: Path, uid: int) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(directory, uid)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    """A daemon that takes everybody for root."""
    yield from _daemon(tmp_path, 0)


@pytest.fixture
def vnic(daemon: FakeDaemon) -> Command:
    """The command, connected to that daemon."""
    return Command(daemon)


@pytest.fixture
def readers_vnic(tmp_path: Path) -> Iterator[Command]:
    """The command of one who may only look."""
    for daemon in _daemon(tmp_path, 4242):
        yield Command(daemon)
