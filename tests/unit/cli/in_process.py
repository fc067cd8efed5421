"""The command run in this process, against a daemon that only remembers.

Law: how a run is made and what it leaves; what should come of it stands in the tests.
"""

from __future__ import annotations

import io
import json
import shlex
from dataclasses import dataclass
from typing import Any

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
