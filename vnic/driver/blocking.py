"""BlockingDriver: a protocol driver without an event loop, for scripts and tests.

Law: one call at a time; what comes meanwhile is kept for the next call.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from vnic.driver.exchange import SEND_BUFFER, Completion, Exchange, Received
from vnic.errors import ControlError
from vnic.ndis.nbl import MESSAGE_LIMIT
from vnic.ndis.netbuffer import TransmitInfo
from vnic.ndis.oob import Slots
from vnic.ndis.status import StatusIndication

TIMEOUT_S = 10.0


class BlockingDriver:
    """A driver attached to a NIC; use it with `with`."""

    def __init__(self, path: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """Attach to the NIC whose NBL socket is at `path`.

        Args:
            timeout_s: how long a call waits at most, in seconds.

        Raises:
            ControlError: nobody listens there, or the NIC has a driver, or this user may not be one.
        """
        self._path = path
        self._timeout_s = timeout_s
        self._exchange = Exchange()
        self._completions: dict[int, Completion] = {}
        self._received: deque[Received] = deque()
        self._statuses: deque[StatusIndication] = deque()
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            with contextlib.suppress(OSError):
                self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            try:
                self._connection.connect(path)
            except OSError as error:
                raise ControlError(f"cannot attach to {path}: {error.strerror or error}") from error
            deadline = self._deadline(None)
            while not self._exchange.greeted:
                self._read(deadline)
            # The greeting is no change.
            self._statuses.clear()
        except BaseException:
            self._connection.close()
            raise

    @property
    def hardware_capabilities(self) -> bytes:
        """NDIS_OFFLOAD of the hardware, as last indicated."""
        return self._exchange.hardware_capabilities

    @property
    def current_config(self) -> bytes:
        """NDIS_OFFLOAD of the current configuration, as last indicated."""
        return self._exchange.current_config

    def post(
        self,
        frames: Sequence[bytes | bytearray],
        info: TransmitInfo | Slots | None = None,
        *,
        next_offload_handle: int = 0,
    ) -> int:
        """Hand a net buffer list down without waiting; gives its request id for `completion`.

        Args:
            info: what the NIC is to do, as values or in binary form; None: nothing (R164).
            next_offload_handle: second handle of the NDIS 5 form.

        Raises:
            PacketError: a number does not fit its bits; nothing was sent.
            ControlError: the NIC is gone, or the list is too long for the socket.
        """
        request_id, data = self._exchange.send(frames, info, next_offload_handle)
        self.write(data)
        return request_id

    def write(self, data: bytes) -> None:
        """Send a message as it is, well-formed or not.

        Raises:
            ControlError: the NIC is gone, or the message is too long for the socket.
        """
        self._connection.settimeout(self._timeout_s)
        try:
            self._connection.send(data, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise ControlError(f"cannot send to {self._path}: {error.strerror or error}") from error

    def completion(self, request_id: int, timeout_s: float | None = None) -> Completion:
        """Wait for the completion of a list.

        Raises:
            TimeoutError: it did not come in time.
            ControlError: the NIC is gone.
        """
        deadline = self._deadline(timeout_s)
        while request_id not in self._completions:
            self._read(deadline)
        return self._completions.pop(request_id)

    def send(
        self,
        frames: Sequence[bytes | bytearray],
        info: TransmitInfo | Slots | None = None,
        *,
        next_offload_handle: int = 0,
    ) -> Completion:
        """Hand a net buffer list down and wait for its completion; raises as `post` and `completion`."""
        return self.completion(self.post(frames, info, next_offload_handle=next_offload_handle))

    def receive(self, timeout_s: float | None = None) -> Received:
        """Wait for the next frame.

        Raises:
            TimeoutError: none came in time.
            ControlError: the NIC is gone.
        """
        deadline = self._deadline(timeout_s)
        while not self._received:
            self._read(deadline)
        return self._received.popleft()

    def status(self, timeout_s: float | None = None) -> StatusIndication:
        """Wait for the next status indication; raises as `receive`."""
        deadline = self._deadline(timeout_s)
        while not self._statuses:
            self._read(deadline)
        return self._statuses.popleft()

    def close(self) -> None:
        """Detach. Idempotent."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _deadline(self, timeout_s: float | None) -> float:
        return time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)

    def _read(self, deadline: float) -> None:
        """Take one message and keep what it says."""
        self._connection.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = self._connection.recv(MESSAGE_LIMIT)
        except TimeoutError:
            raise
        except OSError as error:
            raise ControlError(f"the NIC at {self._path} is gone: {error.strerror or error}") from error
        if not data:
            raise ControlError(f"the NIC at {self._path} is gone")
        taken = self._exchange.take(data)
        if isinstance(taken, Received):
            self._received.append(taken)
        elif isinstance(taken, StatusIndication):
            self._statuses.append(taken)
        elif taken is not None:
            self._completions[taken[0]] = taken[1]
