"""Commands from a file, one a line, as `ip -batch` reads them.

Law: text to lines of words; what a line does is not known here.

A line ends at its newline, or goes on behind a backslash. `#` begins a comment where a word could begin
(`ip` cuts at any, also inside a key). Quotes hold words together; outside of '…' a backslash takes the next
character as it is.

Source: ip(8), -batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vnic.cli.words import UsageError

MAX_LINE_CHARACTERS = 65536
"""Longest command, its continued lines together."""


def commands(lines: Iterable[str]) -> Iterator[tuple[int, list[str] | UsageError]]:
    """Give every command with the number of its first line; one that cannot be split as its error.

    Lines without words are passed over.
    """
    text, first = "", 0
    for number, line in enumerate(lines, start=1):
        first = first or number
        line = line.removesuffix("\n").removesuffix("\r")
        text += line
        if len(text) > MAX_LINE_CHARACTERS:
            yield first, UsageError("the command is too long", allowed=f"{MAX_LINE_CHARACTERS} characters")
            return
        if (len(text) - len(text.rstrip("\\"))) % 2:
            text = text[:-1]
            continue
        yield from _command(text, first)
        text, first = "", 0
    if text:
        yield from _command(text, first)


def _command(text: str, first: int) -> Iterator[tuple[int, list[str] | UsageError]]:
    try:
        words = split(text)
    except ValueError as error:
        yield first, UsageError(f"the line cannot be split: {error}", allowed="closed quotes")
        return
    if words:
        yield first, words


def split(text: str) -> list[str]:
    """Split a line into words.

    Raises:
        ValueError: a quote is not closed, or a backslash ends the line.
    """
    words: list[str] = []
    word: str | None = None
    quote = ""
    letters = iter(text)
    for letter in letters:
        if letter == "\\" and quote != "'":
            escaped = next(letters, None)
            if escaped is None:
                raise ValueError("a backslash ends it")
            word = (word or "") + escaped
        elif quote:
            if letter == quote:
                quote = ""
            else:
                word = (word or "") + letter
        elif letter in "'\"":
            quote, word = letter, word or ""
        elif letter.isspace():
            if word is not None:
                words.append(word)
            word = None
        elif letter == "#" and word is None:
            break
        else:
            word = (word or "") + letter
    if quote:
        raise ValueError(f"a {quote} is not closed")
    return words if word is None else [*words, word]
