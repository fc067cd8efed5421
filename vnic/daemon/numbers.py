"""Sequence numbers that outlive the daemon: reserved in a file before they are used.

Law: whatever ends the daemon, no outbound SA uses a number twice. A number is used only when the file that
says so is on the disk; after a restart an SA goes on behind all that was reserved, used or not. Where the
file does not say for certain what was used, an SA sends nothing unless its key is said to be fresh.

    number ── SA asks when half are used ── lease: table ── file: written, synced, renamed ── SA may use them

Of inbound SAs the highest number that came is noted, every second and at the end: a window that begins there
lets nothing of before pass. What came since the last note before a crash could pass once more.

The file names an SA by a keyed hash of name, algorithms and keys, under a secret of its own; it holds no key.

    magic 16 | flags 1 | secret 32 | counts 8, 8 | records: name 16, number 8 | hash of all before 32

First come the records of outbound SAs, with the last number reserved, then those of inbound ones. Numbers are
big-endian. A file that is not whole to the byte is damaged, and says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hmac
import logging
import os
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from vnic.errors import VnicError
from vnic.ipsec.association import SecurityAssociation
from vnic.ipsec.sequence import MAX_EXTENDED_SEQUENCE_NUMBER, MAX_SEQUENCE_NUMBER, RESERVED_AT_ONCE

log = logging.getLogger(__name__)

FILE = "sequence-numbers"
DAMAGED = "sequence-numbers.damaged"
_NEW = "sequence-numbers.new"

_MAGIC = b"vnic numbers 1\n\0"
_HEAD = struct.Struct(">16sB32sQQ")
_RECORD = struct.Struct(">16sQ")
_HASH_LENGTH = 32
_COMPLETE = 1

_MOST_RECORDS = 1 << 18
"""SAs remembered; of more than that those that were used first are forgotten."""


class StateError(VnicError):
    """The state directory cannot be used, or not be written."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Numbers that are reserved on the disk: those behind `after` up to `last`."""

    after: int
    last: int


class Numbers:
    """The reserved numbers of all outbound SAs of the daemon.

    Attributes:
        complete: whether every key that ever sent is in the table: one that is not is fresh.
        loss: why it is not complete, for a person; "" when it is.
    """

    def __init__(self, directory: Path) -> None:
        """Take the directory, and read what is there.

        Raises:
            StateError: there is no such directory, it is not writable, or another daemon has it.
        """
        self._directory = directory
        self._table: dict[bytes, int] = {}
        self._tops: dict[bytes, int] = {}
        self._secret = os.urandom(32)
        self._version = self._on_file = 0
        self._writing = threading.Lock()
        self._writer: asyncio.Task[None] | None = None
        self._descriptor = _locked(directory)
        self.complete, self.loss = False, ""
        try:
            data = (directory / FILE).read_bytes()
        except FileNotFoundError:
            self.loss = "there is none yet"
        except OSError as error:
            self.loss = f"it cannot be read: {error.strerror}"
        else:
            self._take(data)

    def _take(self, data: bytes) -> None:
        """Read a file; what is not whole says nothing and is put aside."""
        try:
            self._secret, self.complete, self._table, self._tops = _parse(data)
        except ValueError as error:
            self.loss = f"it is damaged: {error}"
            with contextlib.suppress(OSError):
                os.replace(self._directory / FILE, self._directory / DAMAGED)
            return
        if not self.complete:
            self.loss = "it was lost before and has been begun anew since"

    def begin(self) -> None:
        """Declare it complete from now on: no key that was used for sending will be used again, but those it
        knows.

        Raises:
            StateError: it cannot be written.
        """
        self.complete, self.loss = True, ""
        self._version += 1
        self._write(self._bytes(), self._version)

    def close(self) -> None:
        """Give the directory back, when nothing is being written; nothing is written any more. Idempotent."""
        with self._writing:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    async def lease(self, sa: SecurityAssociation, last_used: int, *, fresh: bool) -> Lease | None:
        """Reserve numbers for an outbound SA; they are on the disk when this returns.

        Args:
            sa: one that is `checked`.
            last_used: no number up to this one is given.
            fresh: its key never sent anything, whether or not that is known here.

        Returns:
            None: what its key has sent is not known, and it may not send.

        Raises:
            StateError: the disk refused; nothing of what it did not take is ever given.
        """
        name = self._name(sa)
        known = self._table.pop(name, None)
        if known is None and not self.complete and not fresh:
            return None
        limit = MAX_EXTENDED_SEQUENCE_NUMBER if sa.esn else MAX_SEQUENCE_NUMBER
        after = max(known or 0, last_used)
        # A key that went on to extended numbers never comes back from them.
        last = max(after, min(after + RESERVED_AT_ONCE, limit))
        self._table[name] = last
        while len(self._table) > _MOST_RECORDS:
            del self._table[next(iter(self._table))]
        self._version += 1
        try:
            await self._on_disk(self._version)
        except StateError:
            # Nobody has them. They are not used up: a disk that stays full is asked every second.
            if self._table.get(name) == last:
                if known is None:
                    del self._table[name]
                else:
                    self._table[name] = known
            raise
        return Lease(after, last)

    def top(self, sa: SecurityAssociation) -> int:
        """The highest number noted of an inbound SA with this name and these keys, or 0."""
        return self._tops.get(self._name(sa), 0)

    async def note_tops(self, tops: Iterable[tuple[SecurityAssociation, int]]) -> None:
        """Note the highest numbers that have come; they are on the disk when this returns.

        Raises:
            StateError: the disk refused; the next note holds them too.
        """
        self.hear(tops)
        await self._on_disk(self._version)

    def note_last_tops(self, tops: Iterable[tuple[SecurityAssociation, int]]) -> None:
        """The same at the end, at once.

        Raises:
            StateError: the disk refused.
        """
        self.hear(tops)
        self._write(self._bytes(), self._version)

    def hear(self, tops: Iterable[tuple[SecurityAssociation, int]]) -> None:
        """Hear of the highest numbers that have come; the next note puts them on the disk."""
        changed = False
        for sa, top in tops:
            name = self._name(sa)
            if top > self._tops.get(name, 0):
                self._tops.pop(name, None)
                self._tops[name] = top
                changed = True
        while len(self._tops) > _MOST_RECORDS:
            del self._tops[next(iter(self._tops))]
        self._version += changed

    async def _on_disk(self, version: int) -> None:
        while self._on_file < version:
            if self._writer is None or self._writer.done():
                self._writer = asyncio.create_task(self._save())
            # Several wait for one writing; a caller that gives up does not end it.
            await asyncio.shield(self._writer)

    async def _save(self) -> None:
        await asyncio.to_thread(self._write, self._bytes(), self._version)

    def _bytes(self) -> bytes:
        flags = _COMPLETE if self.complete else 0
        parts = [_HEAD.pack(_MAGIC, flags, self._secret, len(self._table), len(self._tops))]
        parts += [_RECORD.pack(*record) for table in (self._table, self._tops) for record in table.items()]
        data = b"".join(parts)
        return data + blake2b(data, digest_size=_HASH_LENGTH).digest()

    def _write(self, data: bytes, version: int) -> None:
        """Put a file in the place of the old one, so that after a crash one of the two is there, whole; never
        an older version in the place of a newer."""
        with self._writing:
            if version <= self._on_file:
                return
            try:
                _replace(self._descriptor, data)
            except OSError as error:
                raise StateError(
                    f"sequence numbers cannot be reserved in {self._directory / FILE}: {error.strerror}"
                ) from error
            self._on_file = version

    def _name(self, sa: SecurityAssociation) -> bytes:
        """Name an SA with its keys, so that nobody without the secret can tell a key by it."""
        name = blake2b(digest_size=16, key=self._secret)
        algorithms = (sa.encryption, sa.integrity)
        for part in (
            sa.destination,
            bytes([sa.protocol]),
            sa.spi.to_bytes(4, "big"),
            *(one.name.encode() if one is not None else b"" for one in algorithms),
            sa.encryption_key.reveal(),
            sa.integrity_key.reveal(),
        ):
            name.update(len(part).to_bytes(2, "big") + part)
        return name.digest()


def _locked(directory: Path) -> int:
    """Take a directory for this process alone; gives its descriptor, which holds it. What is written goes to
    this directory, and not to another that has its name later."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StateError(f"the state directory {directory} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StateError(f"another daemon uses the state directory {directory}") from None
    if not os.access(directory, os.W_OK | os.X_OK):
        os.close(descriptor)
        raise StateError(f"the state directory {directory} cannot be used: it is not writable")
    return descriptor


def _replace(directory: int, data: bytes) -> None:
    """Write a file beside the old one, and put it in its place when it is on the disk.

    Args:
        directory: descriptor; negative is one that was given back.

    Raises:
        OSError: the system refused.
    """
    if directory < 0:
        raise OSError(errno.EBADF, "the directory was given back")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(_NEW, flags, 0o600, dir_fd=directory), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(_NEW, FILE, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)


def _parse(data: bytes) -> tuple[bytes, bool, dict[bytes, int], dict[bytes, int]]:
    """Read a file: secret, completeness and the two tables.

    Raises:
        ValueError: it is not whole.
    """
    body, said = data[:-_HASH_LENGTH], data[-_HASH_LENGTH:]
    if len(body) < _HEAD.size or not hmac.compare_digest(
        blake2b(body, digest_size=_HASH_LENGTH).digest(), said
    ):
        raise ValueError("its hash is wrong")
    magic, flags, secret, outbound, inbound = _HEAD.unpack_from(body)
    if magic != _MAGIC or flags > _COMPLETE or len(body) != _HEAD.size + (outbound + inbound) * _RECORD.size:
        raise ValueError("it is of another version")
    records = list(_RECORD.iter_unpack(body[_HEAD.size :]))
    return secret, bool(flags & _COMPLETE), dict(records[:outbound]), dict(records[outbound:])
