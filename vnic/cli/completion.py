"""What could stand at the end of words: the parser runs on them and says what it misses.

Law: never an error, never a key; the daemon is asked for names of adapters only, and only if it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from vnic.cli.commands import Place, read
from vnic.cli.grammar import ADAPTERS, FILES, HelpWanted
from vnic.cli.main import NAMES, VALUED, read_options
from vnic.cli.session import Options, Session
from vnic.cli.words import UsageError, Words
from vnic.errors import VnicError


def offers(words: Sequence[str], options: Options) -> list[str]:
    """What could follow `words`, the last word (which is being typed) not among them."""
    rest = read_options(list(words), options)
    if not rest and words and _wants_value(words[-1]):
        return [FILES]
    cursor = Words(rest)
    with suppress(UsageError, HelpWanted):
        read(cursor, Place())
    return cursor.offered


def _wants_value(word: str) -> bool:
    return word.lstrip("-") in VALUED or word in ("-S", "-b")


def complete(words: Sequence[str], out: TextIO) -> int:
    """Write the offers for the last of `words`, one a line; `@files` asks the shell for files."""
    *before, start = words or [""]
    options = Options()
    try:
        if start.startswith("-") and all(word.startswith("-") for word in before):
            offered = [f"-{name}" for name in NAMES]
        else:
            offered = offers(before, options)
    except UsageError:
        offered = [FILES] if before and _wants_value(before[-1]) else []
    if ADAPTERS in offered:
        offered = [one for one in offered if one != ADAPTERS] + _adapters(options, out)
    for one in dict.fromkeys(offered):
        if one == FILES or one.startswith(start):
            out.write(f"{one}\n")
    return 0


def _adapters(options: Options, out: TextIO) -> list[str]:
    from vnic.control.interface import ListAdapters

    session = Session(options, out, out)
    try:
        return [state.name for state in session.ask(ListAdapters()).adapters]
    except VnicError:
        return []
    finally:
        session.close()
