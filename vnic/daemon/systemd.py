"""What a service and systemd say to each other.

Law: nothing here fails when there is no systemd, and every function takes the environment as an argument.

Source: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3); sd-daemon(3) for the log levels.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Mapping, MutableMapping

from vnic.errors import ControlError

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
_JOURNAL_LEVELS = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))


class Notifier:
    """Tells the service manager about the state of the daemon."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Take the manager's address from NOTIFY_SOCKET; without one, nothing is ever sent."""
        address = environment.get("NOTIFY_SOCKET", "")
        # "@" stands for the zero byte of an abstract name; other families than Unix are for machines.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        if not address.startswith(("/", "@")):
            self._address = ""

    def send(self, *assignments: str) -> None:
        """Send assignments such as "READY=1"; a manager that does not listen is not waited for."""
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel,
        ):
            channel.setblocking(False)
            channel.connect(self._address)
            channel.send("\n".join(assignments).encode())


def watchdog_interval_s(environment: Mapping[str, str], pid: int) -> float | None:
    """Give the seconds between signs of life, half of what the manager allows; None when it wants none."""
    try:
        limit_us = int(environment["WATCHDOG_USEC"])
        for_pid = int(environment.get("WATCHDOG_PID", pid))
    except (KeyError, ValueError):
        return None
    return limit_us / 2e6 if limit_us > 0 and for_pid == pid else None


def inherited_socket(environment: MutableMapping[str, str], pid: int) -> socket.socket | None:
    """Take over the listening socket of vnicd.socket; None when the daemon was not started through one.

    Raises:
        ControlError: what was handed over is not one listening Unix stream socket.
    """
    given = {name: environment.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES")}
    if given["PID"] != str(pid) or not given["FDS"].isdecimal() or given["FDS"] == "0":
        return None
    problem = f"{given['FDS']} descriptors"
    if given["FDS"] == "1":
        try:
            listening = socket.socket(fileno=_FIRST_DESCRIPTOR)
        except OSError as error:
            problem = f"no socket ({error.strerror})"
        else:
            accepts = listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if accepts and (listening.family, listening.type) == (socket.AF_UNIX, socket.SOCK_STREAM):
                os.set_inheritable(_FIRST_DESCRIPTOR, False)
                return listening
            listening.detach()
            problem = "a socket of another kind"
    raise ControlError(f"vnicd.socket handed over {problem}; it takes one ListenStream= of a Unix path")


def logs_to_journal(environment: Mapping[str, str], descriptor: int) -> bool:
    """Whether `descriptor` is the stream to the journal that JOURNAL_STREAM names."""
    device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    if not (device.isdecimal() and inode.isdecimal()):
        return False
    with contextlib.suppress(OSError):
        status = os.fstat(descriptor)
        return (status.st_dev, status.st_ino) == (int(device), int(inode))
    return False


class JournalFormatter(logging.Formatter):
    """One record, each of its lines with the priority that the journal reads."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _JOURNAL_LEVELS if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def configure_logging(environment: Mapping[str, str], descriptor: int) -> None:
    """Send all logs to standard error, with priorities for the journal, with times for a person."""
    handler = logging.StreamHandler()
    if logs_to_journal(environment, descriptor):
        handler.setFormatter(JournalFormatter("%(name)s: %(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
