"""NblPort: the socket through which a protocol driver outside drives a NIC.

Law: whole messages in, whole messages out; never blocks. One driver at a time. A driver that does not read
loses received frames, counted, but no completion and no status indication: when too many of those wait, no
further send is taken, and when it leaves even those, it is let go.

Source: `ndis.nbl` for the messages; unix(7), SOCK_SEQPACKET.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from vnic.errors import PortError
from vnic.ipsec.drops import DropReason
from vnic.ndis.nbl import MESSAGE_LIMIT, BadMessage, MessageType, NblMessage, pack, unpack
from vnic.ndis.status import NdisStatus
from vnic.ports.base import BURST_BYTES, BURST_FRAMES

SOCKET_BUFFER = 8 << 20
"""Bytes the kernel holds for a driver until it reads, frames and their bookkeeping: some 3,000 frames of 1500
bytes."""

COMPLETIONS_WAITING = 4096
"""No send is taken while this many completions wait for the driver to read."""

INDICATIONS_WAITING = 256
"""A driver for which this many status indications wait is let go: it does not know its NIC any more."""

_SOCKET_MODE = 0o660
_PRIVATE_MASK = 0o177
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33

_QUEUE_FULL = DropReason.NBL_QUEUE_FULL.value
_NO_DRIVER = DropReason.NBL_NO_DRIVER.value


@dataclass(slots=True)
class NblCounters:
    """What passed an NBL socket since the adapter was made."""

    sends: int = 0
    """Net buffer lists taken from a driver, well-formed or not."""
    sends_failed: int = 0
    """Of those, completed with another status than SUCCESS; whoever completes them counts."""
    indications: int = 0
    """Frames indicated to a driver."""
    messages_refused: int = 0
    """Messages that were no net buffer list to send."""
    drops: dict[str, int] = field(default_factory=dict)
    """Frames not indicated, by the name of their DropReason."""


class NblPort:
    """A listening socket and the driver attached to it. Made by `open_nbl`.

    Whoever drives it watches `listening_fileno` for reading and then calls `accept`; watches `fileno` for
    reading while a driver is `attached` and not `congested`, then calls `receive_burst`; watches it for
    writing while something is `waiting`, then calls `flush`; and calls `detach` when `gone`.

    Attributes:
        path: of the socket file.
        counters: what passed.
        gone: the driver hung up, or was let go; `detach` is due.
    """

    def __init__(self, listening: socket.socket, path: str, admit: Callable[[socket.socket], bool]) -> None:
        """Take over a listening socket whose file is at `path`.

        Args:
            admit: whether whoever connected may be a driver.
        """
        self.path = path
        self.counters = NblCounters()
        self.gone = False
        self._listening: socket.socket | None = listening
        self._admit = admit
        self._driver: socket.socket | None = None
        self._waiting: deque[bytes] = deque()
        self._indications_waiting = 0
        self._buffer = memoryview(bytearray(MESSAGE_LIMIT))
        status = os.lstat(path)
        self._identity = status.st_dev, status.st_ino

    @property
    def attached(self) -> bool:
        """Whether there is a driver."""
        return self._driver is not None and not self.gone

    @property
    def waiting(self) -> int:
        """Messages that wait for the driver to read."""
        return len(self._waiting)

    @property
    def congested(self) -> bool:
        """Whether so many completions wait that no send may be taken."""
        return len(self._waiting) >= COMPLETIONS_WAITING

    def listening_fileno(self) -> int | None:
        """Descriptor to watch for drivers that come; None when closed."""
        return None if self._listening is None else self._listening.fileno()

    def fileno(self) -> int | None:
        """Descriptor of the driver; None when there is none."""
        return None if self._driver is None else self._driver.fileno()

    def look_for_hangup(self) -> None:
        """Note whether the driver hung up, before anything it left is read: another may be at the door."""
        if self._driver is not None:
            poll = select.poll()
            poll.register(self._driver, 0)
            self.gone = self.gone or bool(poll.poll(0))

    def accept(self) -> bool:
        """Take or refuse whoever connected; gives whether a driver is attached by that.

        One who is refused is told why in a status indication and disconnected.
        """
        if self._listening is None:
            return False
        try:
            connection, _ = self._listening.accept()
        except OSError:
            return False
        if not self._admit(connection):
            _turn_away(connection, "only an administrator may attach a protocol driver; run it as root")
            return False
        if self._driver is not None:
            _turn_away(connection, "another protocol driver is attached; end it first")
            return False
        connection.setblocking(False)
        _set_buffer(connection, _SO_SNDBUFFORCE, socket.SO_SNDBUF)
        _set_buffer(connection, _SO_RCVBUFFORCE, socket.SO_RCVBUF)
        self._driver = connection
        self.gone = False
        return True

    def refuse(self, reason: str) -> None:
        """Tell the driver why it cannot stay, and note that it is to be let go."""
        self._put(_refusal(reason))
        self.gone = True

    def detach(self) -> None:
        """Let the driver go, if there is one. Idempotent. Nobody may watch its descriptor any more."""
        driver, self._driver = self._driver, None
        self.gone = False
        self._waiting.clear()
        self._indications_waiting = 0
        if driver is not None:
            driver.close()

    def receive_burst(self) -> list[NblMessage | BadMessage]:
        """Take the messages that wait, at most BURST_FRAMES and none behind a large send, which may become
        thousands of packets; each a send or bad; in order.

        An empty message cannot be told from a hang-up, and is one.
        """
        burst: list[NblMessage | BadMessage] = []
        driver = self._driver
        if driver is None or self.gone:
            return burst
        counters = self.counters
        received_bytes = 0
        while len(burst) < BURST_FRAMES and received_bytes < BURST_BYTES:
            try:
                length, _, flags, _ = driver.recvmsg_into((self._buffer,))
            except BlockingIOError:
                break
            except OSError:
                length = flags = 0
            if not length:
                self.gone = True
                break
            received_bytes += length
            message = _judged(unpack(self._buffer[:length]), flags)
            if isinstance(message, BadMessage):
                counters.messages_refused += 1
            if not isinstance(message, BadMessage) or message.request_id is not None:
                counters.sends += 1
            burst.append(message)
            if isinstance(message, NblMessage) and message.slots.large_send:
                break
        return burst

    def complete(self, completions: Iterable[NblMessage]) -> None:
        """Tell the driver of completed sends, in order; none is lost while it stays."""
        for message in completions:
            self._put(pack(message))

    def indicate_status(self, message: NblMessage) -> None:
        """Tell the driver of a change of the NIC, in order with completions; one without a driver is over."""
        if not self.attached:
            return
        self._put(pack(message))
        if self._waiting:
            self._indications_waiting += 1
            if self._indications_waiting > INDICATIONS_WAITING:
                self.gone = True

    def indicate(self, messages: list[NblMessage]) -> None:
        """Hand received frames up, in order. What the driver leaves no room for is dropped and counted."""
        if not self.attached:
            self.lose(_NO_DRIVER, len(messages))
            return
        taken = 0
        if not self._waiting:
            for message in messages:
                if not self._write(pack(message)):
                    break
                taken += 1
        self.counters.indications += taken
        self.lose(_QUEUE_FULL if self.attached else _NO_DRIVER, len(messages) - taken)

    def flush(self) -> None:
        """Write what waits, as far as there is room."""
        waiting = self._waiting
        while waiting and self._write(waiting[0]):
            waiting.popleft()
        if not waiting:
            self._indications_waiting = 0

    def lose(self, reason: str, count: int) -> None:
        """Count frames that are not indicated."""
        if count:
            drops = self.counters.drops
            drops[reason] = drops.get(reason, 0) + count

    def close(self) -> None:
        """Let the driver go, and remove the socket. Idempotent."""
        self.detach()
        listening, self._listening = self._listening, None
        if listening is None:
            return
        listening.close()
        with contextlib.suppress(OSError):
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == self._identity:
                os.unlink(self.path)

    def _put(self, data: bytes) -> None:
        """Write a message now or later."""
        if self.attached and (self._waiting or not self._write(data)):
            self._waiting.append(data)

    def _write(self, data: bytes) -> bool:
        """Write a message if there is room; gives whether it is done with."""
        driver = self._driver
        if driver is None or self.gone:
            return False
        try:
            driver.send(data, socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM):
                self.gone = True
            return False
        return True


def _judged(message: NblMessage | BadMessage, flags: int) -> NblMessage | BadMessage:
    """Refuse what no driver may say."""
    if flags & socket.MSG_TRUNC:
        request_id = message.request_id
        if isinstance(message, NblMessage) and message.type is not MessageType.SEND:
            request_id = None
        return BadMessage(
            NdisStatus.INVALID_LENGTH, request_id, f"the message is longer than {MESSAGE_LIMIT} bytes"
        )
    if isinstance(message, NblMessage) and message.type is not MessageType.SEND:
        return BadMessage(
            NdisStatus.INVALID_PARAMETER, None, f"a driver sends no message of type {message.type.name}"
        )
    return message


def _turn_away(connection: socket.socket, reason: str) -> None:
    """Say why somebody cannot be the driver, and hang up."""
    with connection, contextlib.suppress(OSError):
        connection.send(_refusal(reason), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _refusal(reason: str) -> bytes:
    frames = [bytearray(reason.encode())]
    return pack(NblMessage(MessageType.STATUS_INDICATION, status=NdisStatus.NOT_ACCEPTED, frames=frames))


def _set_buffer(opened: socket.socket, force: int, limited: int) -> None:
    try:
        opened.setsockopt(socket.SOL_SOCKET, force, SOCKET_BUFFER)
    except PermissionError:  # without CAP_NET_ADMIN: as much as net.core.wmem_max and rmem_max allow
        opened.setsockopt(socket.SOL_SOCKET, limited, SOCKET_BUFFER)


def open_nbl(path: str, *, group: int | None, admit: Callable[[socket.socket], bool]) -> NblPort:
    """Make an NBL socket, readable and writable by root and `group` alone.

    A socket file that a dead daemon left is replaced.

    Args:
        path: where its file is made.
        group: number of the group that may connect; None: root alone.
        admit: whether whoever connected may be a driver.

    Raises:
        PortError: somebody listens there, something else than a socket is in the way, or the system refused.
    """
    listening = socket.socket(
        socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    )
    try:
        # Two daemons that start at once must not take each other's socket for a dead one.
        lock = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _remove_dead(path)
            mask = os.umask(_PRIVATE_MASK)
            try:
                listening.bind(path)
            finally:
                os.umask(mask)
            if group is not None:
                os.chown(path, -1, group)
                os.chmod(path, _SOCKET_MODE)
            listening.listen(1)
        finally:
            os.close(lock)
        return NblPort(listening, path, admit)
    except BaseException as error:
        listening.close()
        if isinstance(error, OSError):
            raise PortError(f"cannot make the NBL socket {path}: {error.strerror or error}") from error
        raise


def _remove_dead(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise PortError(f"{path} is in the way and no socket; remove it or name another nbl-socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
        code = probe.connect_ex(path)
    if code != errno.ECONNREFUSED:
        raise PortError(f"somebody listens at {path}; end it or name another nbl-socket")
    os.unlink(path)
