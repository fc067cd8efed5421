"""What the daemon and systemd say to each other."""

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vnic.daemon.systemd import (
    JournalFormatter,
    Notifier,
    inherited_socket,
    logs_to_journal,
    watchdog_interval_s,
)
from vnic.errors import ControlError


@pytest.mark.parametrize("abstract", [False, True])
def test_states_reach_the_service_manager(tmp_path: Path, abstract: bool) -> None:
    name = f"@vnic-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(2)
        Notifier({"NOTIFY_SOCKET": name}).send("READY=1", "STATUS=2 adapters")
        assert manager.recv(1000) == b"READY=1\nSTATUS=2 adapters"


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "relative", "/nonexistent/notify"])
def test_without_a_manager_nothing_happens(address: str | None) -> None:
    Notifier({} if address is None else {"NOTIFY_SOCKET": address}).send("READY=1")


def test_manager_that_does_not_read_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        for _ in range(1000):
            notifier.send("WATCHDOG=1")


@pytest.mark.parametrize(
    ("environment", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "20000000"}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "7"}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_is_fed_twice_as_often_as_it_wants(
    environment: dict[str, str], interval_s: float | None
) -> None:
    assert watchdog_interval_s(environment, 7) == interval_s


def test_nothing_is_inherited_without_a_socket_unit() -> None:
    assert inherited_socket({}, 7) is None
    assert inherited_socket({"LISTEN_PID": "8", "LISTEN_FDS": "1"}, 7) is None
    assert inherited_socket({"LISTEN_PID": "7", "LISTEN_FDS": "0"}, 7) is None
    assert inherited_socket({"LISTEN_PID": "7", "LISTEN_FDS": "many"}, 7) is None


def test_environment_of_activation_is_used_up() -> None:
    environment = {"LISTEN_PID": "8", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x", "HOME": "/"}
    inherited_socket(environment, 7)
    assert environment == {"HOME": "/"}


def test_more_than_one_descriptor_is_refused() -> None:
    with pytest.raises(ControlError, match="2 descriptors"):
        inherited_socket({"LISTEN_PID": "7", "LISTEN_FDS": "2"}, 7)


TAKE_OVER = """
import os, sys
from vnic.daemon.systemd import inherited_socket
from vnic.errors import ControlError
try:
    taken = inherited_socket({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}, os.getpid())
except ControlError as error:
    sys.exit(str(error))
print(taken.getsockname(), os.get_inheritable(3))
"""


def take_over(given: socket.socket) -> subprocess.CompletedProcess[str]:
    """Hand a socket to a fresh process as descriptor 3."""
    saved = os.dup(3) if os.path.exists("/proc/self/fd/3") else None
    try:
        os.dup2(given.fileno(), 3)
        return subprocess.run(
            [sys.executable, "-c", TAKE_OVER], pass_fds=(3,), capture_output=True, text=True, timeout=30
        )
    finally:
        if saved is None:
            os.close(3)
        else:
            os.dup2(saved, 3)
            os.close(saved)


def test_listening_socket_is_taken_over(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        done = take_over(listening)
    assert done.stdout == f"{path} False\n", done.stderr


def test_socket_of_another_kind_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        datagram.bind(str(tmp_path / "d"))
        assert "a socket of another kind" in take_over(datagram).stderr
    with socket.socket(socket.AF_UNIX) as not_listening:
        assert "a socket of another kind" in take_over(not_listening).stderr


def test_journal_is_recognised_by_device_and_inode(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as stream:
        status = os.fstat(stream.fileno())
        journal = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert logs_to_journal(journal, stream.fileno())
        assert not logs_to_journal(
            {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"}, stream.fileno()
        )
        assert not logs_to_journal({"JOURNAL_STREAM": "nonsense"}, stream.fileno())
        assert not logs_to_journal({}, stream.fileno())


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.CRITICAL, 3), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7)],
)
def test_every_line_for_the_journal_has_its_priority(level: int, priority: int) -> None:
    record = logging.LogRecord("vnic", level, "", 0, "one\ntwo", None, None)
    assert JournalFormatter("%(message)s").format(record) == f"<{priority}>one\n<{priority}>two"
