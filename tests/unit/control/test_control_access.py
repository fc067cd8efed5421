"""Who may do what."""

import grp
import os
import socket

import pytest
from control_lab import ACCESS, ADMINISTRATOR, READER, ROOT, STRANGER

from vnic.control.access import Access, Peer, Role, group_id, peer_of


@pytest.mark.parametrize(
    ("peer", "role"),
    [
        (ROOT, Role.ADMINISTRATOR),
        (ADMINISTRATOR, Role.ADMINISTRATOR),
        (READER, Role.READER),
        (STRANGER, Role.STRANGER),
        (Peer(5, os.geteuid(), frozenset()), Role.ADMINISTRATOR),
    ],
)
def test_role_follows_from_user_and_groups(peer: Peer, role: Role) -> None:
    assert ACCESS.role_of(peer) is role


def test_without_groups_root_is_alone() -> None:
    access = Access()
    assert access.role_of(READER) is Role.STRANGER
    assert access.role_of(ADMINISTRATOR) is Role.STRANGER
    assert access.role_of(ROOT) is Role.ADMINISTRATOR
    assert access.socket_group is None


def test_socket_belongs_to_the_readers_else_to_the_administrators() -> None:
    assert Access(administrators=1, readers=2).socket_group == 2
    assert Access(administrators=1).socket_group == 1


def test_groups_are_found_by_name() -> None:
    first = grp.getgrall()[0]
    assert group_id(first.gr_name) == first.gr_gid
    assert group_id("") is None
    assert group_id("no-such-group-here") is None


def test_the_kernel_names_this_very_process_as_peer() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peer_of(ours)
    assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
    assert peer.gids == frozenset((os.getegid(), *os.getgroups()))
