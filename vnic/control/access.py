"""Who may do what on the control socket.

Law: the kernel says who the peer is (SO_PEERCRED, SO_PEERGROUPS: as it was when it connected); one who is
neither administrator nor reader gets nothing.
"""

from __future__ import annotations

import errno
import grp
import os
import socket
import struct
from dataclasses import dataclass
from enum import Enum

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_SO_PEERGROUPS = 59  # asm-generic/socket.h: x86, Arm, RISC-V, POWER, s390
_GID = struct.Struct("I")
_GROUPS_LENGTH = 1024  # what Python lets one ask for: 256 groups


class Role(Enum):
    """What a peer may do."""

    ADMINISTRATOR = "administrator"
    READER = "reader"
    STRANGER = "stranger"


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a Unix socket."""

    pid: int
    uid: int
    gids: frozenset[int]
    """Its primary and supplementary groups."""


@dataclass(frozen=True, slots=True)
class Access:
    """The rule: root and the daemon's own user administer, and so do members of `administrators`; members
    of `readers` look. A group of None has no members."""

    administrators: int | None = None
    readers: int | None = None

    def role_of(self, peer: Peer) -> Role:
        """Say what a peer may do."""
        if peer.uid in (0, os.geteuid()) or self.administrators in peer.gids:
            return Role.ADMINISTRATOR
        if self.readers in peer.gids:
            return Role.READER
        return Role.STRANGER

    @property
    def socket_group(self) -> int | None:
        """The group that owns the socket's file: its members are let as far as `role_of`."""
        return self.administrators if self.readers is None else self.readers


def group_id(name: str) -> int | None:
    """Give the number of a group; None for "" and for a group that does not exist."""
    try:
        return grp.getgrnam(name).gr_gid if name else None
    except KeyError:
        return None


def peer_of(connection: socket.socket) -> Peer:
    """Ask the kernel who is at the other end of a connected Unix socket.

    Of one who is in more than 256 groups only the primary one counts.

    Raises:
        OSError: it is not one.
    """
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(data)
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_LENGTH)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        groups = b""
    return Peer(pid, uid, frozenset((gid, *(group for (group,) in _GID.iter_unpack(groups)))))
