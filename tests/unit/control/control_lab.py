"""A control server over a real Unix socket, without a daemon behind it.

Law: no root, no devices; who the peer is can be chosen.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from vnic.control.access import Access, Peer
from vnic.control.client import Client
from vnic.control.interface import (
    AdapterReply,
    Call,
    DropReasonsReply,
    DropReasonText,
    Event,
    FlushPoliciesReply,
    ListDropReasons,
    ListSas,
    Monitor,
    MonitorReply,
    NoReply,
    SasReply,
    WatchNbls,
)
from vnic.control.server import Limits, Server, listen

T = TypeVar("T")

ROOT = Peer(pid=1, uid=0, gids=frozenset((0,)))
READERS = 4711
ADMINISTRATORS = 4712
READER = Peer(pid=2, uid=1001, gids=frozenset((1001, READERS)))
ADMINISTRATOR = Peer(pid=3, uid=1002, gids=frozenset((1002, ADMINISTRATORS)))
STRANGER = Peer(pid=4, uid=1003, gids=frozenset((1003,)))

ACCESS = Access(administrators=ADMINISTRATORS, readers=READERS)

REASON = DropReasonText(name="in_icv", text="the integrity check failed", xfrm_stat="XfrmInStateProtoError")


def run(
    work: Coroutine[Any, Any, T],
    timeout_s: float = 20.0,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> T:
    """Run a coroutine to its end, not for ever."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(asyncio.wait_for(work, timeout_s))


class FakeService:
    """Answers what it can and keeps what it was asked.

    Attributes:
        calls: the calls, in order.
        answers: by class of call, a reply, an exception, or a function of the call.
        listening: monitors under way.
    """

    def __init__(self) -> None:
        self.calls: list[Call[Any]] = []
        self.answers: dict[type[Call[Any]], Any] = {ListDropReasons: DropReasonsReply(reasons=[REASON])}
        self.listening = 0
        self.event_count: int | None = None
        self.event_text = "something"
        self.parts = 0

    def answer(self, request: Call[T]) -> Awaitable[T]:
        return self._answer(request)

    async def _answer(self, request: Call[Any]) -> Any:
        self.calls.append(request)
        answer = self.answers.get(type(request))
        if callable(answer):
            answer = answer(request)
            if isinstance(answer, Awaitable):
                answer = await answer
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            answer = _empty_reply(request)
        return answer

    async def stream(self, request: Call[T]) -> AsyncIterator[T]:
        assert isinstance(request, Monitor | WatchNbls | ListSas)
        self.calls.append(request)
        if isinstance(request, ListSas):
            for _ in range(self.parts):
                yield SasReply(sas=[])  # type: ignore[misc]
            return
        self.listening += 1
        try:
            number = 0
            while self.event_count is None or number < self.event_count:
                event = Event(
                    sequence_number=number,
                    time="2026-01-02T03:04:05.000000Z",
                    kind="subscribed",
                    text=self.event_text,
                )
                yield MonitorReply(event=event)  # type: ignore[misc]
                number += 1
                if self.event_count is None:
                    await asyncio.sleep(0)
            await asyncio.Event().wait()
        finally:
            self.listening -= 1


def _empty_reply(request: Call[Any]) -> Any:
    kind = request.reply_type()
    if kind is SasReply:
        return SasReply(sas=[])
    if kind is FlushPoliciesReply:
        return FlushPoliciesReply(count=0)
    if kind is NoReply:
        return NoReply()
    assert kind is not AdapterReply, "give the answer"
    raise NotImplementedError(kind)


class Lab:
    """The server and ways to reach it."""

    def __init__(self, path: str, service: FakeService, server: Server) -> None:
        self.path = path
        self.service = service
        self.server = server
        self.peer = ROOT

    async def client(self) -> Client:
        return await Client.connect(self.path)

    async def raw(self) -> Raw:
        return Raw(*await asyncio.open_unix_connection(self.path, limit=16 << 20))

    async def until(self, condition: Callable[[], object], timeout_s: float = 5.0) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.005)


class Raw:
    """A client that sends whatever it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        await self.send(message(method, **parameters))
        return await self.reply()

    async def reply(self) -> dict[str, Any]:
        reply = msgspec.json.decode((await self.reader.readuntil(b"\0"))[:-1])
        assert isinstance(reply, dict)
        return reply

    async def hung_up(self) -> bool:
        """Wait until the server hangs up; tell whether it did without a further answer."""
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True

    async def close(self) -> None:
        self.writer.transport.abort()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


def message(method: str, *, more: bool = False, **parameters: Any) -> bytes:
    """Make the bytes of a call; a method without interface is one of ours."""
    name = method if "." in method else f"io.vnic.Adapter.{method}"
    call: dict[str, Any] = {"method": name, "parameters": parameters}
    if more:
        call["more"] = True
    return msgspec.json.encode(call) + b"\0"


@asynccontextmanager
async def lab(tmp_path: Path, *, limits: Limits | None = None) -> AsyncIterator[Lab]:
    """A server that listens below `tmp_path`."""
    service = FakeService()
    path = str(tmp_path / "control.sock")

    def peer_of(_: socket.socket) -> Peer:
        return made.peer

    server = Server(service, ACCESS, limits=limits, peer_of=peer_of)
    made = Lab(path, service, server)
    await server.start(listen(path, None))
    try:
        yield made
    finally:
        await server.close()
        # The event loop needs a turn to close what was aborted.
        await asyncio.sleep(0.01)
