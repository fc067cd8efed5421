"""The client of the control socket.

Law: calls in, replies out, typed; whatever goes wrong is a RequestError (the daemon refused) or a
ControlError (it could not be asked). The daemon is trusted, so replies have no small limit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self, TypeVar

from asyncvarlink import VarlinkMethodCall, VarlinkMethodReply
from asyncvarlink.conversion import ConversionError

from vnic.control.conversion import reply_of, signature_of
from vnic.control.framing import END, MESSAGE_LIMIT, decode, encode, misfit
from vnic.control.interface import (
    INTERFACE,
    Call,
    InternalError,
    PermissionDenied,
    Refused,
    parameters_of,
)
from vnic.errors import ControlError, RequestError

DEFAULT_SOCKET = "/run/vnic/vnic.sock"

REPLY_LIMIT = 256 << 20
"""Bytes of one reply: a full SA table of 131,072 rows stays below."""

Reply = TypeVar("Reply")

_VERSIONS = "is vnicd of another version than this command?"


class RefusedError(RequestError):
    """A request that the daemon refused; it changed nothing.

    Attributes:
        status: NDIS status as a number, None when the NIC was not asked.
        status_name: its name, such as NDIS_STATUS_RESOURCES, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        value: str = "",
        allowed: str = "",
        status: int | None = None,
        status_name: str | None = None,
    ) -> None:
        super().__init__(message, field=field, value=value, allowed=allowed)
        self.status = status
        self.status_name = status_name


class NotPermittedError(ControlError):
    """The daemon was reached and does not let this user do it."""


class NotReachedError(ControlError):
    """There is no daemon at the socket, or it went away."""


class Client:
    """One connection to the daemon; use it with `async with`. One call at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
        self._reader = reader
        self._writer = writer
        self._path = path

    @classmethod
    async def connect(cls, path: str = DEFAULT_SOCKET) -> Self:
        """Connect to the daemon that listens at `path`.

        Raises:
            NotReachedError: nobody listens there, or the path cannot be a socket's.
            NotPermittedError: the file's mode keeps this user out.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=REPLY_LIMIT)
        except PermissionError as error:
            raise NotPermittedError(
                f"no access to {path}; run it as root, or join the group that owns the socket"
            ) from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotReachedError(
                f"no daemon listens at {path}; start vnicd, or name its socket with -S"
            ) from error
        except (OSError, ValueError) as error:
            raise NotReachedError(f"cannot connect to {path}: {error}") from error
        return cls(reader, writer, path)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection. Idempotent."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def call(self, request: Call[Reply]) -> Reply:
        """Make a call and give its reply.

        Raises:
            RefusedError: the daemon refused; nothing was changed.
            RequestError: a value does not fit its type; nothing was sent.
            NotPermittedError: this user may not do it.
            NotReachedError: the daemon went away before it answered; whether it acted is not known.
            ControlError: it answered what this client does not understand.
        """
        await self._send(request)
        return _reply_of(request, await self._receive())

    async def stream(self, request: Call[Reply]) -> AsyncIterator[Reply]:
        """Make a call that is answered again and again (`Call.streams`, `Call.parts`), until the daemon ends
        it.

        Raises:
            As for `call`.
        """
        await self._send(request, more=True)
        continues = True
        while continues:
            reply = await self._receive()
            continues = reply.continues
            yield _reply_of(request, reply)

    async def _send(self, request: Call[Any], *, more: bool = False) -> None:
        # A parameter that is None is left out: that is what Varlink's null means.
        given = {name: value for name, value in parameters_of(request).items() if value is not None}
        try:
            parameters = signature_of(type(request)).parameter_type.tojson(given)
        except ConversionError as error:
            raise misfit(type(request), given, error) from None
        method = f"{INTERFACE}.{type(request).__name__}"
        message = VarlinkMethodCall(method, parameters, more=more)
        try:
            data = encode(message.tojson())
            if len(data) > MESSAGE_LIMIT:
                raise _too_long(parameters, len(data))
            self._writer.write(data)
            await self._writer.drain()
        except UnicodeEncodeError:
            raise RequestError("a text that is not Unicode", allowed="UTF-8") from None
        except OSError as error:
            raise self._lost() from error

    async def _receive(self) -> VarlinkMethodReply:
        try:
            data = await self._reader.readuntil(END)
        except asyncio.LimitOverrunError as error:
            raise ControlError(f"the reply is longer than {REPLY_LIMIT} bytes") from error
        except (EOFError, OSError) as error:
            raise self._lost() from error
        try:
            return VarlinkMethodReply.fromjson(decode(data[: -len(END)]))
        except (TypeError, ValueError) as error:
            raise ControlError(f"the answer is no Varlink reply; is {self._path} vnicd's?") from error

    def _lost(self) -> NotReachedError:
        return NotReachedError(
            f"the daemon at {self._path} closed the connection; its log says why (`journalctl -u vnicd`)"
        )


def _too_long(parameters: dict[str, Any], length: int) -> RequestError:
    """Say which parameter makes a call too long."""
    longest = max(parameters, key=lambda name: len(encode({"": parameters[name]})), default="")
    return RequestError(
        f"the call has {length} bytes, which is more than the daemon takes",
        field=longest,
        allowed=f"at most {MESSAGE_LIMIT} bytes in all",
    )


def _reply_of(request: Call[Reply], reply: VarlinkMethodReply) -> Reply:
    """Give the typed reply, or raise the error it carries."""
    given: dict[str, Any] = reply.parameters
    try:
        if reply.error is None:
            return reply_of(type(request), given)
        if reply.error == Refused.name:
            raise RefusedError(**Refused.paramtype.fromjson(given))
        if reply.error == PermissionDenied.name:
            raise NotPermittedError(PermissionDenied.paramtype.fromjson(given)["message"])
        if reply.error == InternalError.name:
            raise ControlError(InternalError.paramtype.fromjson(given)["message"])
    except ConversionError as error:
        raise ControlError(f"the answer does not fit ({error.message}); {_VERSIONS}") from error
    raise ControlError(f"the daemon answered {reply.error}; {_VERSIONS}")
