"""Errors as the user sees them: one line of text or one JSON object, and the exit code.

Law: the exit codes of iproute2, and nothing printed that an exception does not carry.

    0  done
    1  the words make no command; nothing was asked of the daemon
    2  the daemon refused; nothing was changed
    3  the daemon was not reached
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vnic.cli.words import UsageError
from vnic.control.client import NotReachedError, RefusedError
from vnic.errors import RequestError, VnicError

DONE = 0
USAGE = 1
REFUSED = 2
NOT_REACHED = 3


@dataclass(frozen=True, slots=True)
class Line:
    """Where a command of a batch stands."""

    file: str
    number: int


def exit_code(error: VnicError) -> int:
    """The exit code of an error."""
    if isinstance(error, UsageError):
        return USAGE
    if isinstance(error, NotReachedError):
        return NOT_REACHED
    return REFUSED


def text(error: VnicError, command: str, line: Line | None = None) -> str:
    """Write an error on one line: `vnic: xfrm state add: spi: 0x0 is out of range; allowed: …`."""
    parts = ["vnic"]
    if line is not None:
        parts.append(f"{line.file}:{line.number}")
    if command:
        parts.append(command)
    if not isinstance(error, RequestError):
        return ": ".join([*parts, str(error)])
    if error.field:
        parts.append(error.field)
    message = error.message
    if error.value and error.value not in message:
        message += f" (given: {error.value})"
    if error.allowed:
        message += f"; allowed: {error.allowed}"
    if isinstance(error, RefusedError) and error.status_name:
        message += f" [{error.status_name}]"
    return ": ".join([*parts, message])


def document(error: VnicError, command: str, line: Line | None = None) -> dict[str, Any]:
    """Give an error as builtins for JSON; every key is always there but `file` and `line`."""
    request = error if isinstance(error, RequestError) else None
    refused = error if isinstance(error, RefusedError) else None
    made: dict[str, Any] = {
        "error": request.message if request else str(error),
        "command": command,
        "field": request.field if request else "",
        "value": request.value if request else "",
        "allowed": request.allowed if request else "",
        "exit_code": exit_code(error),
        "status": refused.status if refused else None,
        "status_name": refused.status_name if refused else None,
    }
    if line is not None:
        made |= {"file": line.file, "line": line.number}
    return made
