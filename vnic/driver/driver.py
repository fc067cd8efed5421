"""Driver: a protocol driver on an event loop.

Law: reads whatever comes, at once; what nobody takes waits in a bounded queue and is then lost and counted,
completions excepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

from vnic.control.client import Client
from vnic.driver.exchange import SEND_BUFFER, Completion, Exchange, Received
from vnic.driver.requests import nbl_socket_of
from vnic.errors import ControlError
from vnic.ndis.nbl import MESSAGE_LIMIT
from vnic.ndis.netbuffer import TransmitInfo
from vnic.ndis.oob import Slots
from vnic.ndis.status import StatusIndication

QUEUE_LENGTH = 4096
"""Indications that may wait to be taken."""

_MESSAGES_A_TURN = 64


class Driver:
    """A driver attached to a NIC; use it with `async with`. Made by `attach`.

    Attributes:
        lost: indications nobody took in time.
    """

    def __init__(self, connection: socket.socket, path: str, queue_length: int = QUEUE_LENGTH) -> None:
        """Take over a connected, non-blocking socket."""
        self.lost = 0
        self._connection = connection
        self._path = path
        self._queue_length = queue_length
        self._exchange = Exchange()
        self._completions: dict[int, asyncio.Future[Completion]] = {}
        self._indications: deque[Received | StatusIndication] = deque()
        self._arrived = asyncio.Event()
        self._failure: ControlError | None = None
        self._writing = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection, self._read)

    @classmethod
    async def attach(cls, path: str, *, queue_length: int = QUEUE_LENGTH) -> Self:
        """Attach to the NIC whose NBL socket is at `path`.

        Raises:
            ControlError: nobody listens there, or the NIC has a driver, or this user may not be one.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            connection.setblocking(False)
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            try:
                connection.connect(path)
            except OSError as error:
                raise ControlError(f"cannot attach to {path}: {error.strerror or error}") from error
        except BaseException:
            connection.close()
            raise
        driver = cls(connection, path, queue_length)
        try:
            while not driver._exchange.greeted:
                await driver._arrival()
        except BaseException:
            await driver.close()
            raise
        return driver

    @classmethod
    async def attach_to(cls, client: Client, adapter: str) -> Self:
        """Attach to the NIC of an adapter, which the daemon is asked about.

        Raises:
            RequestError: there is no such adapter, or its transport is inline.
            ControlError: as for `attach`, or the daemon could not be asked.
        """
        return await cls.attach(await nbl_socket_of(client, adapter))

    @property
    def hardware_capabilities(self) -> bytes:
        """NDIS_OFFLOAD of the hardware, as last indicated."""
        return self._exchange.hardware_capabilities

    @property
    def current_config(self) -> bytes:
        """NDIS_OFFLOAD of the current configuration, as last indicated."""
        return self._exchange.current_config

    async def send(
        self,
        frames: Sequence[bytes | bytearray],
        info: TransmitInfo | Slots | None = None,
        *,
        next_offload_handle: int = 0,
    ) -> Completion:
        """Send frames as one net buffer list, and wait for its completion. Many may be under way.

        Args:
            info: what the NIC is to do, as values or in binary form; None: nothing (R164).
            next_offload_handle: second handle of the NDIS 5 form.

        Raises:
            PacketError: a number does not fit its bits; nothing was sent.
            ControlError: the NIC is gone, or the list is too long for the socket.
        """
        request_id, data = self._exchange.send(frames, info, next_offload_handle)
        done: asyncio.Future[Completion] = self._loop.create_future()
        self._completions[request_id] = done
        try:
            async with self._writing:
                await self._write(data)
            return await done
        finally:
            self._completions.pop(request_id, None)

    async def indications(self) -> AsyncIterator[Received | StatusIndication]:
        """Give frames and status indications as they come, oldest first, until the NIC is gone.

        Raises:
            ControlError: the NIC is gone.
        """
        while True:
            yield await self.next_indication()

    async def next_indication(self) -> Received | StatusIndication:
        """Give the next frame or status indication.

        Raises:
            ControlError: the NIC is gone.
        """
        while not self._indications:
            await self._arrival()
        return self._indications.popleft()

    async def close(self) -> None:
        """Detach. Idempotent."""
        self._end(ControlError("the driver was closed"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _arrival(self) -> None:
        """Wait for something to come."""
        self._check()
        self._arrived.clear()
        await self._arrived.wait()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _write(self, data: bytes) -> None:
        while True:
            self._check()
            try:
                self._connection.send(data, socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                await self._room()
            except OSError as error:
                raise ControlError(f"cannot send to {self._path}: {error.strerror or error}") from error

    async def _room(self) -> None:
        room: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_writer(self._connection, _settle, room)
        try:
            await room
        finally:
            if self._failure is None:
                self._loop.remove_writer(self._connection)

    def _read(self) -> None:
        for _ in range(_MESSAGES_A_TURN):
            try:
                data = self._connection.recv(MESSAGE_LIMIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._end(ControlError(f"the NIC at {self._path} is gone"))
                return
            try:
                self._take(data)
            except ControlError as error:
                self._end(error)
                return

    def _take(self, data: bytes) -> None:
        greeted = self._exchange.greeted
        taken = self._exchange.take(data)
        if isinstance(taken, (Received, StatusIndication)):
            if not greeted:  # what the NIC does at first is no change
                self._arrived.set()
                return
            if len(self._indications) == self._queue_length:
                self.lost += 1
                return
            self._indications.append(taken)
            self._arrived.set()
        elif taken is not None:
            request_id, completion = taken
            done = self._completions.get(request_id)
            if done is not None and not done.done():
                done.set_result(completion)

    def _end(self, failure: ControlError) -> None:
        if self._failure is not None:
            return
        self._failure = failure
        self._loop.remove_reader(self._connection)
        self._loop.remove_writer(self._connection)
        self._connection.close()
        self._arrived.set()
        for done in self._completions.values():
            if not done.done():
                done.set_exception(failure)


def _settle(room: asyncio.Future[None]) -> None:
    if not room.done():
        room.set_result(None)
