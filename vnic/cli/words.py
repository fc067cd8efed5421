"""The words of one command, read from left to right, and what is wrong with them.

Law: pure, and knows no command. A word that may be a key is never repeated in a message.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vnic.errors import RequestError

SHOWN_CHARACTERS = 64
"""A message repeats no more of a word than this."""

HEX_CHARACTERS_OF_A_KEY = 14
"""From this many hexadecimal digits on a word may be a key (DES has 16) and is not repeated; the longest
honest number, a 32-bit one, has eight."""


class UsageError(RequestError):
    """Words that make no command; nothing was asked of the daemon. Exit code 1."""


class Words:
    """A cursor over the words of one command.

    Attributes:
        offered: what could stand where the words ended; completion reads it.

    Raises:
        UsageError: a word is not text, so that no message to the daemon could hold it.
    """

    __slots__ = ("_after_secret", "_position", "_words", "offered")

    def __init__(self, words: Sequence[str]) -> None:
        for word in words:
            if any("\ud800" <= letter <= "\udfff" for letter in word):
                raise UsageError("a word is not UTF-8", value=shown(word), allowed="UTF-8 text")
        self._words = words
        self._position = 0
        self._after_secret = False
        self.offered: list[str] = []

    def more(self, candidates: Iterable[str] = ()) -> bool:
        """Whether a word is left; `candidates` are what could stand there."""
        if self._position < len(self._words):
            return True
        self.offered.extend(candidates)
        return False

    def peek(self) -> str:
        """The next word, which stays."""
        return self._words[self._position]

    def skip(self) -> None:
        """Pass over the word that `peek` showed."""
        self._position += 1
        self._after_secret = False

    def take(self, field: str, expected: str, candidates: Iterable[str] = (), *, secret: bool = False) -> str:
        """Give the next word and pass over it.

        Args:
            field: the word that wants this one, for the message.
            expected: what should stand here.
            candidates: the values it could have, for completion.
            secret: it is a key: the word behind it is not repeated either, as keys with spaces in them
                and forgotten names put parts of keys there.

        Raises:
            UsageError: there is none.
        """
        if not self.more(candidates):
            raise UsageError("its value is missing", field=field, allowed=expected)
        word = self.peek()
        self.skip()
        self._after_secret = secret
        return word

    def shown(self) -> str:
        """The next word as a message may repeat it."""
        return "(hidden)" if self._after_secret else shown(self.peek())


def shown(text: str) -> str:
    """A word as a message may repeat it: printable, short, and nothing that looks like a key."""
    digits = text.lower().removeprefix("0x")
    if len(digits) >= HEX_CHARACTERS_OF_A_KEY and all(digit in "0123456789abcdef" for digit in digits):
        return "(hidden)"
    if len(text) > SHOWN_CHARACTERS:
        text = text[: SHOWN_CHARACTERS - 1] + "…"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def chosen(text: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `text` says: itself, or the only one that begins with it, as `ip` takes them.

    Of several, one that begins all the others is meant (`delete`, not `deleteall`). None if there is none.

    Raises:
        UsageError: it could be several.
    """
    names = list(names)
    if text in names:
        return text
    found = [name for name in names if text and name.startswith(text)]
    if not found:
        return None
    shortest = min(found, key=len)
    if all(name.startswith(shortest) for name in found):
        return shortest
    raise UsageError(
        f"'{shown(text)}' could be any of several", value=shown(text), allowed=", ".join(sorted(found))
    )
