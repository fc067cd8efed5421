"""One run of the command: its options, where it writes, and the daemon it talks to.

Law: the only place that connects, and the only one that decides between text and JSON.
"""

from __future__ import annotations

import os
from asyncio import Runner
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO, TypeVar

import msgspec

from vnic.cli.keys import COMMAND_LINE, KeyReader
from vnic.control.client import DEFAULT_SOCKET, Client, NotPermittedError, NotReachedError
from vnic.control.interface import Call
from vnic.errors import ControlError

Reply = TypeVar("Reply")

JSON_INDENT = 4


@dataclass(slots=True)
class Options:
    """What stands before the object."""

    json: bool = False
    pretty: bool = False
    statistics: int = 0
    details: bool = False
    brief: bool = False
    oneline: bool = False
    timestamp: bool = False
    show_keys: bool = False
    colour: str = "auto"
    family: int = 0
    """4 or 6: only what is of this family; 0 for both."""
    socket: str = ""
    batch: str | None = None
    force: bool = False

    @property
    def socket_path(self) -> str:
        """Where the daemon listens: the option, $VNIC_SOCKET, or the default."""
        return self.socket or os.environ.get("VNIC_SOCKET") or DEFAULT_SOCKET


class Session:
    """Options, output and connection of one run; a batch shares one among its commands.

    Args:
        options: what stood before the object.
        out: where answers go.
        err: where errors and warnings go.
        stdin: where `-` reads keys, or None when commands come from there.
        exposure: the warning to give when a key stands in the words; see `KeyReader`.
    """

    def __init__(
        self,
        options: Options,
        out: TextIO,
        err: TextIO,
        stdin: TextIO | None = None,
        *,
        exposure: str = COMMAND_LINE,
    ) -> None:
        self.options = options
        self.out = out
        self.err = err
        self.keys = KeyReader(self.warn, stdin, exposure=exposure)
        self._runner: Runner | None = None
        self._client: Client | None = None
        self._documents: int | None = None

    # ------------------------------------------------------------------------------------ daemon

    def _connected(self) -> tuple[Runner, Client]:
        """The event loop and the connection of this run, made when they are first needed."""
        if self._runner is None:
            self._runner = Runner()
        if self._client is None:
            try:
                self._client = self._runner.run(Client.connect(self.options.socket_path))
            except NotPermittedError as error:
                raise NotReachedError(str(error)) from error
        return self._runner, self._client

    def ask(self, request: Call[Reply]) -> Reply:
        """Send a request and give the daemon's answer.

        Raises:
            RequestError: the daemon refused it; nothing was changed.
            NotReachedError: nobody listens at the socket, or it is not ours to use, or the daemon went away.
            ControlError: the daemon does not permit it, or failed.
        """
        runner, client = self._connected()
        try:
            return runner.run(client.call(request))
        except ControlError as error:
            # What comes next on this connection is not known; the next command of a batch takes a new one.
            if not isinstance(error, NotPermittedError):
                self._disconnect()
            raise

    def listen(self, request: Call[Reply]) -> Iterator[Reply]:
        """Send a request that is answered again and again, and give the answers as they come.

        Raises:
            As for `ask`.
        """
        runner, client = self._connected()
        answers = client.stream(request)
        try:
            while (answer := runner.run(_next(answers))) is not None:
                yield answer
        except ControlError as error:
            if not isinstance(error, NotPermittedError):
                self._disconnect()
            raise

    def _disconnect(self) -> None:
        if self._runner is not None and self._client is not None:
            self._runner.run(self._client.close())
        self._client = None

    def close(self) -> None:
        """End the connection, if there is one."""
        self._disconnect()
        if self._runner is not None:
            self._runner.close()
        self._runner = None

    # ------------------------------------------------------------------------------------ output

    @property
    def coloured(self) -> bool:
        """Whether text is painted: asked for, or a terminal that does not mind."""
        if self.options.colour != "auto":
            return self.options.colour == "always"
        return self.out.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def answer(self, document: object, text: Callable[[], str]) -> None:
        """Write an answer.

        Args:
            document: what it is in JSON: builtins and messages of the interface.
            text: makes the same for a person, lines with their ends, "" for nothing to say.
        """
        if self.options.json:
            self.document(document)
        else:
            words = text()
            self.out.write(one_line(words) if self.options.oneline else words)

    def document(self, document: object, *, lines: bool = False) -> None:
        """Write one JSON document; `lines` writes it as one of a stream, whatever else is asked for."""
        text = encoded(document, pretty=self.options.pretty and not lines)
        if self._documents is not None and not lines:
            self.out.write(",\n" if self._documents else "")
            self._documents += 1
            self.out.write(text)
        else:
            self.out.write(text + "\n")

    def begin_batch(self) -> None:
        """From here on answers in JSON are members of one array."""
        if self.options.json:
            self._documents = 0
            self.out.write("[")

    def end_batch(self) -> None:
        """Close the array of a batch."""
        if self._documents is not None:
            self._documents = None
            self.out.write("]\n")

    def warn(self, sentence: str) -> None:
        """Tell the user of something that does not stop the command."""
        if self.options.json:
            self.err.write(encoded({"warning": sentence}) + "\n")
        else:
            self.err.write(f"vnic: warning: {sentence}\n")


async def _next(answers: AsyncIterator[Reply]) -> Reply | None:
    """The next answer, or None when there are no more."""
    return await anext(answers, None)


def encoded(document: object, *, pretty: bool = False) -> str:
    """Give the JSON text of builtins and messages of the interface."""
    data: Any = msgspec.json.encode(document)
    if pretty:
        data = msgspec.json.format(data, indent=JSON_INDENT)
    return bytes(data).decode()


def one_line(text: str) -> str:
    """Put the lines of each record (those that begin with white space) on one, as `ip -o` does."""
    return text.replace("\n\t", "\\\t").replace("\n  ", "\\  ")
