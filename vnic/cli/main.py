"""The command `vnic`: options, one command or a batch of them, an exit code.

Law: no exception that vnic raises on purpose leaves `run`; one that it does not is a defect and shows.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TextIO

from vnic.cli import failures, help
from vnic.cli.batch import commands
from vnic.cli.commands import ENTRIES, Place, read
from vnic.cli.grammar import HelpWanted
from vnic.cli.keys import COMMAND_LINE
from vnic.cli.session import Options, Session, encoded
from vnic.cli.words import UsageError, Words, chosen, shown
from vnic.errors import VnicError

INTERRUPTED = 130
BROKEN_PIPE = 141
"""What a shell reports of a program that SIGINT, or SIGPIPE, ended."""

COMPLETE = "__complete"
"""Hidden first word: offer what could stand at the end of the words behind it."""


def _colour(options: Options, value: str) -> None:
    choice = chosen(value or "always", ("always", "auto", "never"))
    if choice is None:
        raise UsageError(
            f"{shown(value)} is not a choice",
            field="-color",
            value=shown(value),
            allowed="always, auto, never",
        )
    options.colour = choice


def _switch(name: str, value: object = True) -> Callable[[Options, str], None]:
    return lambda options, _: setattr(options, name, value)


def _more_statistics(options: Options, _: str) -> None:
    options.statistics += 1


SWITCHES: dict[str, Callable[[Options, str], None]] = {
    "json": _switch("json"),
    "pretty": _switch("pretty"),
    "stats": _more_statistics,
    "statistics": _more_statistics,
    "details": _switch("details"),
    "brief": _switch("brief"),
    "oneline": _switch("oneline"),
    "timestamp": _switch("timestamp"),
    "show-keys": _switch("show_keys"),
    "4": _switch("family", 4),
    "6": _switch("family", 6),
    "color": _colour,
    "force": _switch("force"),
}
VALUED: dict[str, Callable[[Options, str], None]] = {
    "socket": lambda options, value: setattr(options, "socket", value),
    "batch": lambda options, value: setattr(options, "batch", value),
}
SHORT = {
    "j": "json",
    "p": "pretty",
    "s": "stats",
    "d": "details",
    "br": "brief",
    "o": "oneline",
    "t": "timestamp",
    "c": "color",
    "colour": "color",
    "S": "socket",
    "b": "batch",
    "V": "Version",
    "h": "help",
}
ELSEWHERE = {
    "n": "the daemon knows every namespace; `netns` goes with the device it names",
    "netns": "the daemon knows every namespace; `netns` goes with the device it names",
    "family": "-4 and -6 say it",
    "f": "-4 and -6 say it",
    "all": "there is nothing that could be done to all namespaces",
}
"""Options of `ip` that are refused by name."""

NAMES = (*SWITCHES, *VALUED, "Version", "help")


def read_options(words: list[str], options: Options) -> list[str]:
    """Read what stands before the object into `options`; give the words from the object on.

    `-V` and `-h` become the words `Version` and `help`.

    Raises:
        UsageError: an option is not known or has no value.
    """
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        given, _, value = word.removeprefix("-").removeprefix("-").partition("=")
        name = _option_name(given, word)
        if name in ("Version", "help"):
            return [name]
        if name in SWITCHES:
            SWITCHES[name](options, value)
            continue
        if not value:
            if not rest:
                raise UsageError("its value is missing", field=f"-{name}", allowed=name.upper())
            value = rest.pop(0)
        VALUED[name](options, value)
    return rest


def _option_name(given: str, word: str) -> str:
    allowed = ", ".join(f"-{name}" for name in NAMES)
    if given in SHORT:
        return SHORT[given]
    if given in ELSEWHERE:
        raise UsageError(f"not supported: {ELSEWHERE[given]}", field=f"-{given}", allowed=allowed)
    name = chosen(given, NAMES)
    if name is None:
        raise UsageError(f"unknown option {shown(word)}", value=shown(word), allowed=allowed)
    return name


def run(words: Sequence[str], out: TextIO, err: TextIO, stdin: TextIO | None) -> int:
    """Run the command and give its exit code.

    Args:
        words: what follows the command's name.
        out: standard output.
        err: standard error.
        stdin: standard input, or None.
    """
    options = Options()
    try:
        rest = read_options(list(words), options)
    except UsageError as error:
        return _fail(error, "", options, err)
    if rest == ["Version"]:
        return _version(options, out)
    session = Session(
        options,
        out,
        err,
        None if options.batch == "-" else stdin,
        exposure=COMMAND_LINE if options.batch is None else "",
    )
    try:
        if options.batch is None:
            if not rest:
                return _no_command(options, err)
            return run_command(rest, session)
        if rest:
            extra = UsageError(
                "commands stand in the file",
                field="-batch",
                value=shown(rest[0]),
                allowed="no words behind it",
            )
            return _fail(extra, "", options, err)
        return run_batch(options.batch, session, stdin)
    finally:
        session.close()


def run_command(words: Sequence[str], session: Session, line: failures.Line | None = None) -> int:
    """Run one command; give its exit code."""
    place = Place()
    try:
        verb, found = read(Words(words), place)
        if verb.endless and line is not None:
            raise UsageError("does not end, so no batch can go on behind it", allowed="run it by itself")
        verb.run(session, found)
        session.out.flush()
    except HelpWanted:
        _help(session, place)
    except KeyboardInterrupt:
        if place.verb is not None and place.verb.endless:
            return failures.DONE
        raise
    except VnicError as error:
        return _fail(error, place.title, session.options, session.err, line)
    return failures.DONE


def _no_command(options: Options, err: TextIO) -> int:
    if options.json:
        objects = ", ".join(entry.name for entry in ENTRIES)
        return _fail(UsageError("there is no command", allowed=f"{objects}, help"), "", options, err)
    err.write(help.text(Place()))
    return failures.USAGE


def _help(session: Session, place: Place) -> None:
    if session.options.json:
        session.document(help.document(place))
    else:
        session.out.write(help.text(place))


def _version(options: Options, out: TextIO) -> int:
    from vnic import __version__

    out.write(encoded({"version": __version__}) + "\n" if options.json else f"vnic {__version__}\n")
    return failures.DONE


def _fail(
    error: VnicError, command: str, options: Options, err: TextIO, line: failures.Line | None = None
) -> int:
    if options.json:
        err.write(encoded(failures.document(error, command, line)) + "\n")
    else:
        err.write(failures.text(error, command, line) + "\n")
    return failures.exit_code(error)


def run_batch(path: str, session: Session, stdin: TextIO | None) -> int:
    """Run the commands of a file over one connection; give the exit code of the first that failed."""
    if path == "-" and stdin is not None:
        return run_lines("standard input", stdin, session)
    try:
        file = _opened(path)
    except UsageError as error:
        return _fail(error, "", session.options, session.err)
    with file:
        if os.fstat(file.fileno()).st_mode & stat.S_IROTH:
            session.keys.exposure = f"everybody may read {path}, which holds a key"
        return run_lines(path, file, session)


def _opened(path: str) -> TextIO:
    try:
        return open(path, encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise UsageError(
            f"cannot be read: {reason}", field="-batch", value=shown(path), allowed="a file or -"
        ) from None


def run_lines(name: str, lines: Iterable[str], session: Session) -> int:
    """Run the commands of a batch; give the exit code of the first that failed.

    Args:
        name: of the file, for messages.
        lines: its lines, with their ends.
    """
    code = failures.DONE
    session.begin_batch()
    try:
        for number, words in commands(lines):
            line = failures.Line(name, number)
            if isinstance(words, UsageError):
                result = _fail(words, "", session.options, session.err, line)
            else:
                result = run_command(words, session, line)
            code = code or result
            if code and not session.options.force:
                break
    finally:
        session.end_batch()
    return code


def main() -> int:
    """Entry point of the command."""
    words = sys.argv[1:]
    # A stream that the caller has closed is None.
    with open(os.devnull, "w") as nowhere:
        out, err = sys.stdout or nowhere, sys.stderr or nowhere
        for stream, errors in ((out, "replace"), (err, "backslashreplace"), (sys.stdin, "surrogateescape")):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=errors)
        if words[:1] == [COMPLETE]:
            from vnic.cli.completion import complete

            return complete(words[1:], out)
        try:
            code = run(words, out, err, sys.stdin)
            out.flush()
        except BrokenPipeError:
            code = BROKEN_PIPE
        except OSError as error:
            err.write(f"vnic: standard output: {error.strerror or error}\n")
            code = failures.USAGE
        except KeyboardInterrupt:
            code = INTERRUPTED
    if code in (BROKEN_PIPE, failures.USAGE):
        _give_up_output()
    return code


def _give_up_output() -> None:
    """Keep Python from complaining at its end about output that nobody takes."""
    try:
        sys.stdout.flush()
    except (AttributeError, OSError):
        with suppress(AttributeError, OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
