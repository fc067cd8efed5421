"""Audit records for the journal of systemd, with a field for each fact.

Law: never waits and never fails: a record that the journal does not take is counted as left out, and so are
those beyond the rate. The next record says how many.

Source: systemd's native journal protocol; the facts are those of RFC 4301 §5.2, RFC 4303 §3.3.3 and §3.4.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping

SOCKET = "/run/systemd/journal/socket"

BURST = 100
"""Records that may come at once."""
PER_SECOND = 10.0

_WARNING = 4


class Journal:
    """The journal's socket, and how many records it may still be given."""

    def __init__(self, clock: Callable[[], float], path: str = SOCKET) -> None:
        """Open nothing that has to be waited for.

        Args:
            clock: monotonic seconds.
            path: of the journal's socket; it need not be there.
        """
        self._clock = clock
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._tokens = float(BURST)
        self._last = clock()
        self.left_out = 0

    def audit(self, message: str, fields: Mapping[str, object]) -> None:
        """Write a record; fields that are None are left out.

        Args:
            fields: names without `VNIC_`, in lower case.
        """
        now = self._clock()
        self._tokens = min(self._tokens + (now - self._last) * PER_SECOND, BURST)
        self._last = now
        if self._tokens < 1:
            self.left_out += 1
            return
        self._tokens -= 1
        lines = [f"MESSAGE={message}", f"PRIORITY={_WARNING}", "SYSLOG_IDENTIFIER=vnicd"]
        given = {**fields, "left_out": self.left_out or None}
        lines += [f"VNIC_{name.upper()}={value}" for name, value in given.items() if value is not None]
        # A line break within a value would begin another field.
        record = "\n".join(line.replace("\n", " ") for line in lines) + "\n"
        try:
            self._socket.sendto(record.encode(), self._path)
        except OSError:
            self.left_out += 1
        else:
            self.left_out = 0

    def close(self) -> None:
        """Write no more."""
        with contextlib.suppress(OSError):
            self._socket.close()
