"""Text for a terminal: tables, numbers, and a little colour.

Law: strings in, strings out; colour only when the session says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vnic.cli.session import Session

_RESET = "\x1b[0m"
_COLOURS = {"name": "\x1b[36m", "good": "\x1b[32m", "bad": "\x1b[31m", "head": "\x1b[1m", "weak": "\x1b[33m"}


def paint(text: str, colour: str, session: Session) -> str:
    """Colour a text that means something: name, good, bad, head or weak."""
    return f"{_COLOURS[colour]}{text}{_RESET}" if session.coloured and text else text


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    session: Session,
    *,
    right: frozenset[int] = frozenset(),
) -> str:
    """Write rows under a head, columns as wide as they need; `right` are the columns of numbers."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(column[place]) for column in [head, *cells]) for place in range(len(head))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()

    return "".join([paint(line(head), "head", session) + "\n", *(line(row) + "\n" for row in cells)])


def plural(number: int, one: str) -> str:
    """Write `1 packet`, `2 packets`."""
    return f"{number} {one}{'' if number == 1 else 's'}"
