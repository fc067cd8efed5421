"""Sequence numbers that outlive the daemon: reserved in a file before they are used.

Law: whatever ends the daemon, no outbound SA uses a number twice. A number is used only when the file that
says so is on the disk; after a restart an SA goes on behind all that was reserved, used or not. Where the
file does not say for certain what was used, an SA sends nothing unless its key is said to be fresh.

    number ── SA asks when half are used ── lease: table ── file: written, synced, renamed ── SA may use them

The file names an SA by a keyed hash of name, algorithms and keys, under a secret of its own; it holds no key.

    magic 16 | flags 1 | secret 32 | count 8 | count x (name 16, last reserved 8) | hash of all before 32

Numbers are big-endian. A file that is not whole to the byte is damaged, and says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hmac
import logging
import os
import struct
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from vnic.errors import VnicError
from vnic.ipsec.association import SecurityAssociation
from vnic.ipsec.sequence import MAX_EXTENDED_SEQUENCE_NUMBER, MAX_SEQUENCE_NUMBER, RESERVED_AT_ONCE

log = logging.getLogger(__name__)

FILE = "sequence-numbers"
DAMAGED = "sequence-numbers.damaged"

_MAGIC = b"vnic numbers 1\n\0"
_HEAD = struct.Struct(">16sB32sQ")
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
        self._secret = os.urandom(32)
        self._version = self._written = 0
        self._writer: asyncio.Task[None] | None = None
        self._lock = _locked(directory)
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
            self._secret, self.complete, self._table = _parse(data)
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
        self._write(self._bytes())

    def close(self) -> None:
        """Give the directory back. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

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
        last = min(after + RESERVED_AT_ONCE, limit)
        # Also when the disk refuses: these numbers are nobody else's.
        self._table[name] = last
        while len(self._table) > _MOST_RECORDS:
            del self._table[next(iter(self._table))]
        self._version += 1
        await self._on_disk(self._version)
        return Lease(after, last)

    async def _on_disk(self, version: int) -> None:
        while self._written < version:
            if self._writer is None or self._writer.done():
                self._writer = asyncio.create_task(self._save())
            # Several wait for one writing; a caller that gives up does not end it.
            await asyncio.shield(self._writer)

    async def _save(self) -> None:
        version, data = self._version, self._bytes()
        await asyncio.to_thread(self._write, data)
        self._written = version

    def _bytes(self) -> bytes:
        flags = _COMPLETE if self.complete else 0
        parts = [_HEAD.pack(_MAGIC, flags, self._secret, len(self._table))]
        parts += [_RECORD.pack(*record) for record in self._table.items()]
        data = b"".join(parts)
        return data + blake2b(data, digest_size=_HASH_LENGTH).digest()

    def _write(self, data: bytes) -> None:
        """Put a file in the place of the old one, so that after a crash one of the two is there, whole."""
        path = self._directory / FILE
        new = path.with_suffix(".new")
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise StateError(f"sequence numbers cannot be reserved in {path}: {error.strerror}") from error

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
    """Take a directory for this process alone; gives a descriptor that holds it."""
    try:
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StateError(f"the state directory {directory} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StateError(f"another daemon uses the state directory {directory}") from None
    return descriptor


def _parse(data: bytes) -> tuple[bytes, bool, dict[bytes, int]]:
    """Read a file: secret, completeness and table.

    Raises:
        ValueError: it is not whole.
    """
    body, said = data[:-_HASH_LENGTH], data[-_HASH_LENGTH:]
    if len(body) < _HEAD.size or not hmac.compare_digest(
        blake2b(body, digest_size=_HASH_LENGTH).digest(), said
    ):
        raise ValueError("its hash is wrong")
    magic, flags, secret, count = _HEAD.unpack_from(body)
    if magic != _MAGIC or flags > _COMPLETE or len(body) != _HEAD.size + count * _RECORD.size:
        raise ValueError("it is of another version")
    return secret, bool(flags & _COMPLETE), dict(_RECORD.iter_unpack(body[_HEAD.size :]))
