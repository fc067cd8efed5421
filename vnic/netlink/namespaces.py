"""Named network namespaces: work done inside one, without moving the daemon.

Law: only short-lived threads enter a namespace, and they end there. A namespace belongs to a thread, so
the daemon's own thread stays where it is whatever fails, and the event loop never waits for the kernel.

Names resolve to /run/netns/NAME, where `ip netns add` puts them.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from vnic.errors import RequestError
from vnic.netlink.refusals import refusal

T = TypeVar("T")

DIRECTORY = "/run/netns"

_CLONE_NEWNET = 0x40000000
_NAME_LIMIT = 255  # NAME_MAX
_LIBC = ctypes.CDLL(None, use_errno=True)  # os.setns exists from Python 3.12 on


def path_of(name: str) -> str:
    """Give the path of a named namespace.

    Raises:
        RequestError: the name is not one file name.
    """
    if not name or name in (".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > _NAME_LIMIT:
        raise RequestError(
            "not the name of a network namespace",
            field="netns",
            value=name,
            allowed="one name below /run/netns, as `ip netns list` shows it",
        )
    return f"{DIRECTORY}/{name}"


def open_namespace(name: str) -> int:
    """Open a named namespace; the caller closes the descriptor.

    Raises:
        RequestError: the name is not one file name.
        PortError: there is no such namespace, or it may not be opened.
    """
    path = path_of(name)
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        hint = f"make it with `ip netns add {name}`" if error.errno == errno.ENOENT else ""
        raise refusal(f"open network namespace {name}", error, hint=hint) from error


def enter(name: str) -> None:
    """Move the calling thread into a named namespace, for good. Never call it on the daemon's thread.

    Raises:
        RequestError: the name is not one file name.
        PortError: no such namespace, or not allowed (CAP_SYS_ADMIN).
    """
    descriptor = open_namespace(name)
    try:
        if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            hint = ""
            if code == errno.EINVAL:
                hint = f"{DIRECTORY}/{name} is left over: `ip netns delete {name}`, then add it again"
            raise refusal(f"enter network namespace {name}", OSError(code, os.strerror(code)), hint=hint)
    finally:
        os.close(descriptor)


async def run_in(
    netns: str | None, function: Callable[[], T], *, discard: Callable[[T], None] | None = None
) -> T:
    """Call `function` on a thread of its own inside a namespace and give what it returns.

    Args:
        netns: name of the namespace; None is the one the daemon runs in.
        function: blocking work; what it raises is raised here.
        discard: gives back what `function` returned when the waiting task was cancelled meanwhile.

    Raises:
        RequestError: `netns` is not one file name.
        PortError: the namespace cannot be entered.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()
    threading.Thread(target=_work, args=(future, netns, function), name="vnic-netns", daemon=True).start()
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        if discard is not None:
            future.add_done_callback(partial(_give_back, discard))
        raise


def _work(future: Future[T], netns: str | None, function: Callable[[], T]) -> None:
    try:
        if netns is not None:
            enter(netns)
        result = function()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def _give_back(discard: Callable[[T], None], future: Future[T]) -> None:
    if future.exception() is None:
        discard(future.result())
