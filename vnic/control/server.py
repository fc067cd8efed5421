"""The server of the control socket.

Law: a client can hurt only itself. What it may send, leave unfinished, leave unread or ask for at once is
bounded here; what a call means is decided behind `Service`. Calls of one client are answered one after the
other, in order.

asyncvarlink reads the types and describes the interface. Its transport is not used: it takes messages and
queues answers without bound.

Source: https://varlink.org/Wire-Protocol; https://varlink.org/Service.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from asyncvarlink import VarlinkErrorReply, VarlinkInterfaceRegistry, VarlinkMethodCall
from asyncvarlink.conversion import ConversionError
from asyncvarlink.serviceinterface import InvalidParameter, MethodNotImplemented, VarlinkServiceInterface

from vnic import __version__
from vnic.control.access import Access, Peer, Role, peer_of
from vnic.control.conversion import call_of
from vnic.control.framing import END, MESSAGE_LIMIT, decode, encode
from vnic.control.interface import (
    CALLS,
    INTERFACE,
    AdapterInterface,
    Call,
    InternalError,
    PermissionDenied,
    Service,
    refused,
)
from vnic.errors import ControlError, RequestError, VnicError

log = logging.getLogger(__name__)

_CALL_BY_NAME = {f"{INTERFACE}.{request.__name__}": request for request in CALLS}
_PLAIN = frozenset(("method", "parameters"))
_METHOD_LIMIT = 255
_BACKLOG = 64
_SOCKET_MODE = 0o660
_LAST_WORDS_S = 0.05


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take of the daemon."""

    clients: int = 64
    readers: int = 48
    """Clients that are no administrators, so that these always find room."""
    per_user: int = 16
    """Clients of one user who is no administrator."""
    message_length: int = MESSAGE_LIMIT
    """Bytes of one call."""
    unread_length: int = 256 << 10
    """Bytes of answers that may wait before the next call is looked at."""
    stall_s: float = 10.0
    """How long a client may leave an answer unread, or a call unfinished."""


class _PlainCall(NamedTuple):
    """A call without any of the words that change how it is answered; most are."""

    method: str
    parameters: dict[str, Any]
    oneway: bool = False
    more: bool = False
    upgrade: bool = False


def _read(message: bytes) -> VarlinkMethodCall | _PlainCall:
    """Read a call.

    Raises:
        ControlError, TypeError, ValueError: it is none.
    """
    # Some clients write out what they leave out.
    given = {member: value for member, value in decode(message).items() if value is not None}
    method, parameters = given.get("method"), given.get("parameters", {})
    if given.keys() <= _PLAIN and method in _CALL_BY_NAME and isinstance(parameters, dict):
        return _PlainCall(str(method), parameters)
    if len(str(given.get("method", ""))) > _METHOD_LIMIT:
        raise ValueError("method")
    return VarlinkMethodCall.fromjson(given)


class Server:
    """Accepts clients and serves them."""

    def __init__(
        self,
        service: Service,
        access: Access,
        *,
        limits: Limits | None = None,
        peer_of: Callable[[socket.socket], Peer] = peer_of,
    ) -> None:
        """Prepare to serve.

        Args:
            service: carries out the calls.
            access: who may do what.
            peer_of: asks who is at the other end of a connection.
        """
        self.service = service
        self.access = access
        self.limits = Limits() if limits is None else limits
        self.peer_of = peer_of
        self.connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, listening: socket.socket) -> None:
        """Accept clients from a listening Unix socket, which the server then owns."""
        listening.setblocking(False)
        loop = asyncio.get_running_loop()
        # Who made the socket removes its file; systemd's must stay.
        keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        self._server = await loop.create_unix_server(
            lambda: _Connection(self), sock=listening, backlog=_BACKLOG, **keep
        )

    async def close(self, grace_s: float = 0.5) -> None:
        """Accept nobody any more, give calls under way a moment to be answered, and hang up.

        Listeners get a moment to hear the last event.
        """
        if self._server is not None:
            self._server.close()
        if any(one.streaming for one in self.connections):
            await asyncio.sleep(_LAST_WORDS_S)
        working = {one.task for one in self.connections if one.task is not None and not one.streaming}
        if working:
            await asyncio.wait(working, timeout=grace_s)
        for connection in list(self.connections):
            connection.hang_up()
        # The transports' last callbacks.
        await asyncio.sleep(0)

    def admit(self, peer: Peer, role: Role) -> bool:
        """Whether there is room for one more client."""
        if len(self.connections) >= self.limits.clients:
            return False
        if role is Role.ADMINISTRATOR:
            return True
        others = Counter(one.peer.uid for one in self.connections if one.role is not Role.ADMINISTRATOR)
        return others.total() < self.limits.readers and others[peer.uid] < self.limits.per_user


class _Connection(asyncio.Protocol):
    """One client."""

    peer: Peer
    role: Role

    def __init__(self, server: Server) -> None:
        self.server = server
        self.task: asyncio.Task[None] | None = None
        self.streaming = False
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._searched = 0
        self._ended = False
        self._lost = False
        self._refused = False
        self._patience: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        try:
            self.peer = self.server.peer_of(transport.get_extra_info("socket"))
        except OSError:
            self._transport.abort()
            return
        self.role = self.server.access.role_of(self.peer)
        if not self.server.admit(self.peer, self.role):
            log.warning("too many clients: uid %d, pid %d not served", self.peer.uid, self.peer.pid)
            self._transport.abort()
            return
        self.server.connections.add(self)
        self._transport.set_write_buffer_limits(high=self.server.limits.unread_length)
        self._interface = AdapterInterface(
            self.server.service,
            administrator=self.role is Role.ADMINISTRATOR,
            caller=f"uid {self.peer.uid}, pid {self.peer.pid}",
        )
        registry = VarlinkInterfaceRegistry()
        registry.register_interface(VarlinkServiceInterface("vnic", "vnicd", __version__, "", registry))
        registry.register_interface(self._interface)
        self._registry = registry

    def connection_lost(self, error: Exception | None) -> None:
        self._ended = self._lost = True
        # A client that leaves while its call is worked on keeps its place until that is done: else one who
        # asks and leaves, again and again, would have any number of calls worked on at once.
        if self.task is None:
            self.server.connections.discard(self)
        self._buffer.clear()
        self._be_patient(False)
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        # Only listening ends with the listener: a change under way is done whole.
        if self.task is not None and self.streaming:
            self.task.cancel()

    def hang_up(self) -> None:
        """Close at once, whatever waits."""
        if self.task is not None:
            self.task.cancel()
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self not in self.server.connections or self._refused:
            return
        self._buffer += data
        self._advance()
        if self.task is not None and len(self._buffer) > self.server.limits.message_length:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._ended = True
        if self.streaming and self.task is not None:
            self.task.cancel()
            return False
        return self.task is not None

    def pause_writing(self) -> None:
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    def _advance(self) -> None:
        """Begin with the next call if none is under way and there is one."""
        if self.task is not None or self._refused or self._transport.is_closing():
            return
        length = self._buffer.find(END, self._searched)
        limit = self.server.limits.message_length
        if length > limit or (length < 0 and len(self._buffer) > limit):
            self._refuse_length(limit)
        elif length < 0:
            self._searched = len(self._buffer)
            self._be_patient(bool(self._buffer))
            if self._ended:
                self._transport.close()
        else:
            message = bytes(self._buffer[:length])
            del self._buffer[: length + len(END)]
            self._searched = 0
            self._be_patient(False)
            self.task = self._loop.create_task(self._serve(message))
            self.task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        self.task = None
        self.streaming = False
        if self._lost:
            self.server.connections.discard(self)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log_defect("the control server", error)
            self._transport.abort()
        elif not self._transport.is_closing():
            if not self._ended:
                self._transport.resume_reading()
            # On a turn of its own, so that a stack of queued calls does not hold up the others.
            self._loop.call_soon(self._advance)

    def _be_patient(self, waiting: bool) -> None:
        """Start, or stop, the clock for an unfinished call."""
        if not waiting and self._patience is not None:
            self._patience.cancel()
            self._patience = None
        elif waiting and self._patience is None:
            stall_s = self.server.limits.stall_s
            self._patience = self._loop.call_later(stall_s, self._break_off, "left a call unfinished")

    def _refuse_length(self, limit: int) -> None:
        """Say that a call is too long, and hang up when the caller had a moment to read it."""
        error = RequestError("the call is too long", field="message", allowed=f"at most {limit} bytes")
        self._transport.write(encode(refused(error).toreply().tojson()))
        self._refused = True
        self._transport.pause_reading()
        self._buffer.clear()
        self._loop.call_later(_LAST_WORDS_S, self._break_off, f"sent a call longer than {limit} bytes")

    def _break_off(self, reason: str) -> None:
        log.info("client uid %d, pid %d %s: disconnected", self.peer.uid, self.peer.pid, reason)
        self._transport.abort()

    async def _serve(self, message: bytes) -> None:
        """Carry out one call and answer it."""
        try:
            call = _read(message)
        except (ControlError, TypeError, ValueError):
            self._break_off("sent what is no call")
            return
        try:
            if self.role is Role.STRANGER:
                raise PermissionDenied(message="this user may not use the control socket")
            await self._carry_out(call)
        except VarlinkErrorReply as error:
            if not call.oneway:
                await self._reply(cast(dict[str, Any], error.toreply().tojson()))
        except (ControlError, asyncio.CancelledError):
            raise
        except Exception as error:
            _log_defect(call.method, error)
            if not call.oneway:
                text = "a defect of the daemon; its log says where (`journalctl -u vnicd`)"
                await self._reply(cast(dict[str, Any], InternalError(message=text).toreply().tojson()))
        if self.role is Role.STRANGER:
            self._transport.close()

    async def _carry_out(self, call: VarlinkMethodCall | _PlainCall) -> None:
        request_type = _CALL_BY_NAME.get(call.method)
        if request_type is None or call.upgrade or (request_type.streams and not call.more):
            await self._introduce(call)
            return
        try:
            request = call_of(request_type, call.parameters)
            self._interface.admit(request)
            if request_type.streams or (request_type.parts and call.more):
                await self._stream(request)
                return
            answer = await self.server.service.answer(request)
        except VnicError as error:
            raise refused(error) from error
        if not call.oneway:
            await self._reply({"parameters": answer})

    async def _stream(self, request: Call[Any]) -> None:
        """Send reply after reply; of a long answer in parts the last one says that it is."""
        parts = request.parts
        self.streaming = not parts
        last: Any = None
        # Every answer waits for the one behind it, so that the last is known to be the last.
        async with contextlib.aclosing(cast(Any, self.server.service.stream(request))) as answers:
            async for answer in answers:
                if not parts:
                    await self._reply({"parameters": answer, "continues": True})
                    continue
                if last is not None:
                    await self._reply({"parameters": last, "continues": True})
                last = answer
        if parts:
            await self._reply({"parameters": last})

    async def _introduce(self, call: VarlinkMethodCall | _PlainCall) -> None:
        """Answer for org.varlink.service, and refuse what is no call of ours."""
        if call.upgrade:
            raise MethodNotImplemented(method=call.method)
        full = VarlinkMethodCall(call.method, call.parameters, call.oneway, call.more)
        method, signature = self._registry.lookup_method(full)
        try:
            parameters = signature.parameter_type.fromjson(call.parameters)
        except ConversionError as error:
            raise InvalidParameter(parameter=str((error.location or ["parameters"])[0])) from None
        result = method(**parameters)
        if not call.oneway:
            await self._reply({"parameters": signature.return_type.tojson(result.parameters)})

    async def _reply(self, reply: dict[str, Any]) -> None:
        """Send an answer, and wait until the client has read enough of what it was sent."""
        if self._transport.is_closing():
            return
        self._transport.write(encode(reply))
        if self._drained is None:
            return
        # A listener may sleep: its events wait, and are lost, in a queue of bounded length. One that asks
        # and does not take the answer holds its size in memory, so not for long.
        done, _ = await asyncio.wait(
            (self._drained,), timeout=None if self.streaming else self.server.limits.stall_s
        )
        if not done:
            self._break_off("left an answer unread")


def _log_defect(where: str, error: BaseException) -> None:
    """Log where an exception arose but not its text: that might quote what a client sent."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("defect in %s: %s\n%s", where, type(error).__name__, frames.rstrip())


def listen(path: str, group: int | None) -> socket.socket:
    """Bind the control socket, readable and writable by root and `group` alone.

    A socket file that a dead daemon left is replaced.

    Raises:
        ControlError: somebody listens there, something else than a socket is in the way, or the system
            refused.
    """
    directory = os.path.dirname(os.path.abspath(path))
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        # Two daemons that start at once must not take each other's socket for a dead one.
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _remove_dead(path)
            mask = os.umask(0o177)
            try:
                listening.bind(path)
            finally:
                os.umask(mask)
            if group is not None:
                os.chown(path, -1, group)
                os.chmod(path, _SOCKET_MODE)
            listening.listen(_BACKLOG)
        finally:
            os.close(lock)
    except BaseException as error:
        listening.close()
        if isinstance(error, OSError):
            raise ControlError(f"cannot make the control socket {path}: {error.strerror or error}") from error
        raise
    return listening


def _remove_dead(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ControlError(f"{path} is in the way and no socket; remove it or name another [control] socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        code = probe.connect_ex(path)
    if code != errno.ECONNREFUSED:
        raise ControlError(
            f"another daemon listens at {path}; stop it (`systemctl stop vnicd`) or name another "
            "[control] socket"
        )
    os.unlink(path)


def remove(path: str, identity: tuple[int, int]) -> None:
    """Remove the socket file if it is still the one with this device and inode."""
    with contextlib.suppress(OSError):
        if identity_of(path) == identity:
            os.unlink(path)


def identity_of(path: str) -> tuple[int, int]:
    """Give device and inode of a file.

    Raises:
        OSError: there is none.
    """
    status = os.lstat(path)
    return status.st_dev, status.st_ino
