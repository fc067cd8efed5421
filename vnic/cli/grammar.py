"""What a command may say: one description that the parser, the help and the completion read.

Law: descriptions and one way to read them. What a command does stands with its object; nothing here
opens a file or a socket.

    Object ── verbs ──> Verb ── positional ──> Value
                             └─ words ──────> Word ── operand ──> Value, Series, Flags, Group (words again)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from vnic.cli.words import UsageError, Words, chosen, shown

if TYPE_CHECKING:
    from vnic.cli.session import Session

T = TypeVar("T")

ADAPTERS = "@adapters"
"""Candidate that completion replaces by the names of the adapters there are."""

FILES = "@files"
"""Candidate that completion replaces by the names of files."""


class HelpWanted(Exception):
    """The word `help` stands where the words of a command do."""


class Found:
    """What the words of one command, or of one group in it, said."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[str, list[object]] = {}

    def add(self, name: str, value: object) -> None:
        """Note one more value of a word."""
        self._values.setdefault(name, []).append(value)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        """The words found, in the order they first came."""
        return iter(self._values)

    def get(self, name: str, kind: type[T]) -> T | None:
        """The value of a word, or None if it was not said."""
        for value in self._values.get(name, ()):
            assert isinstance(value, kind)
            return value
        return None

    def many(self, name: str, kind: type[T]) -> list[T]:
        """All values of a word that may be said more than once."""
        values = []
        for value in self._values.get(name, ()):
            assert isinstance(value, kind)
            values.append(value)
        return values

    def need(self, name: str, kind: type[T]) -> T:
        """The value of a word that `Word.required` made sure of."""
        value = self.get(name, kind)
        assert value is not None
        return value


class Operand(Protocol):
    """What follows a word."""

    @property
    def usage(self) -> str:
        """How the help writes it; "" for nothing."""
        ...

    def take(self, words: Words, field: str) -> object:
        """Read it, or raise UsageError about `field`."""
        ...


@dataclass(frozen=True, slots=True)
class Nothing:
    """The word stands for itself."""

    usage: str = ""

    def take(self, words: Words, field: str) -> object:
        return True


@dataclass(frozen=True, slots=True)
class Value:
    """One word that `convert` makes a value of; `convert` raises UsageError about the field it is given."""

    usage: str
    convert: Callable[[str, str], object]
    candidates: tuple[str, ...] = ()
    secret: bool = False

    def take(self, words: Words, field: str) -> object:
        return self.convert(words.take(field, self.usage, self.candidates, secret=self.secret), field)


@dataclass(frozen=True, slots=True)
class Choice:
    """One word out of a few; a beginning that fits one alone will do. `refused` names what exists elsewhere
    and not here, with the reason."""

    choices: tuple[str, ...]
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def usage(self) -> str:
        return "{ " + " | ".join(self.choices) + " }" if len(self.choices) > 1 else self.choices[0]

    def take(self, words: Words, field: str) -> object:
        text = words.take(field, " | ".join(self.choices), self.choices)
        if text in self.refused:
            raise UsageError(
                f"'{text}' is not supported: {self.refused[text]}",
                field=field,
                value=text,
                allowed=", ".join(self.choices),
            )
        try:
            choice = chosen(text, self.choices)
        except UsageError as error:
            error.field = field
            raise
        if choice is None:
            raise UsageError(
                f"{shown(text)} is not one of its values",
                field=field,
                value=shown(text),
                allowed=", ".join(self.choices),
            )
        return choice


@dataclass(frozen=True, slots=True)
class Series:
    """Several values in a row, each with a name of its own for messages; gives a tuple."""

    operands: tuple[Operand, ...]

    @property
    def usage(self) -> str:
        return " ".join(operand.usage for operand in self.operands)

    def take(self, words: Words, field: str) -> object:
        return tuple(operand.take(words, field) for operand in self.operands)


@dataclass(frozen=True, slots=True)
class Flags:
    """One or more words of a list, up to the first that is not in it, or one number of bits (as `ip` takes
    both); gives a frozenset of names. `refused` names what exists elsewhere and not here."""

    bits: dict[str, int]
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def usage(self) -> str:
        return "FLAG…"

    def take(self, words: Words, field: str) -> object:
        allowed = [name for name in self.bits if name not in self.refused]
        text = words.take(field, ", ".join(allowed), allowed)
        if text.startswith("0x"):
            names = self._from_number(text, field)
        elif text in self.bits:
            names = [text]
            while words.more(allowed) and words.peek() in self.bits:
                names.append(words.peek())
                words.skip()
        else:
            raise UsageError(
                f"{shown(text)} is not a flag", field=field, value=shown(text), allowed=", ".join(allowed)
            )
        for name in names:
            if name in self.refused:
                raise UsageError(
                    f"'{name}' is not supported: {self.refused[name]}",
                    field=field,
                    value=name,
                    allowed=", ".join(allowed),
                )
        return frozenset(names)

    def _from_number(self, text: str, field: str) -> list[str]:
        every = sum(self.bits.values())
        try:
            number = int(text[2:], 16)
        except ValueError:
            number = -1
        if not 0 <= number <= every:
            raise UsageError(
                f"{shown(text)} is not a sum of flags",
                field=field,
                value=shown(text),
                allowed=f"0x0 to {every:#x}",
            )
        return [name for name, bit in self.bits.items() if number & bit]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A word that exists elsewhere (in `ip`, mostly) and not here: it is refused by name."""

    reason: str
    instead: str = ""
    usage: str = ""

    def take(self, words: Words, field: str) -> object:
        raise UsageError(f"not supported: {self.reason}", field=field, allowed=self.instead)


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a command and what follows it."""

    name: str
    operand: Operand = field(default_factory=Nothing)
    summary: str = ""
    aliases: tuple[str, ...] = ()
    required: bool = False
    repeated: bool = False
    """It may be said more than once."""
    symbol: str = ""
    """What usage lines write for this word and all others with the same symbol: `[ in | out ]`, or a name in
    capitals that is explained below them, with `…` behind it if each may be said (`ALGO…`)."""

    @property
    def usage(self) -> str:
        text = f"{self.name} {self.operand.usage}".rstrip()
        if self.required:
            return text
        return f"[ {text} ]" + ("…" if self.repeated else "")

    @property
    def refused(self) -> bool:
        return isinstance(self.operand, Refusal)


class Vocabulary:
    """The words that may stand in one place, in any order.

    Args:
        words: the words.
        together: names that must stand side by side, as `ip` wants the ID of a template; the first of them
            that comes after another word is left to the words outside the group.
    """

    __slots__ = ("_names", "together", "words")

    def __init__(self, *words: Word, together: frozenset[str] = frozenset()) -> None:
        self.words = words
        self.together = together
        self._names = {name: word for word in words for name in (word.name, *word.aliases)}

    def usage(self) -> list[str]:
        """The words as usage lines write them, in pieces that stay together."""
        return list(dict.fromkeys(word.symbol or word.usage for word in self.words if not word.refused))

    def symbols(self) -> dict[str, list[str]]:
        """What the names in capitals of the usage stand for, in pieces that stay together."""
        made: dict[str, list[str]] = {}
        inner: dict[str, list[str]] = {}
        for word in self.words:
            if isinstance(word.operand, Group):
                if word.operand.symbol.isupper():
                    made[word.operand.symbol] = word.operand.vocabulary.usage()
                inner |= word.operand.vocabulary.symbols()
            if word.symbol.isupper() and not word.refused:
                pieces = made.setdefault(word.symbol.strip("[ ]…"), [])
                if "…" in word.symbol:
                    pieces.append(f"{'| ' if pieces else ''}{word.name} {word.operand.usage}".rstrip())
                else:
                    pieces.append(word.usage)
        return made | inner

    def names(self) -> list[str]:
        """The words that could be said, without the refused ones."""
        return [word.name for word in self.words if not word.refused]

    def exact(self, text: str) -> Word | None:
        """The word with this very name."""
        return self._names.get(text)

    def find(self, text: str) -> Word | None:
        """The word with this name, or the only one that begins so (refused words must be said in full)."""
        if text in self._names:
            return self._names[text]
        name = chosen(text, [name for name, word in self._names.items() if not word.refused])
        return None if name is None else self._names[name]

    def left(self, found: Found) -> list[str]:
        """The words that could still be said."""
        return [
            word.name for word in self.words if not word.refused and (word.repeated or word.name not in found)
        ]

    def check_complete(self, found: Found, field: str = "") -> None:
        """Make sure of the required words.

        Raises:
            UsageError: one was not said.
        """
        for word in self.words:
            if word.required and word.name not in found:
                raise UsageError(
                    "is missing", field=f"{field} {word.name}".strip(), allowed=word.operand.usage
                )


@dataclass(frozen=True, slots=True)
class Group:
    """Words inside a word (`sel`, `tmpl`, `wire`), exact names only, up to the first that is not one of
    them; gives a Found. `check` may refuse what they say together."""

    vocabulary: Vocabulary
    check: Callable[[Found, str], None] = lambda found, field: None
    symbol: str = ""
    """What usage lines write for the words; a name in capitals is explained below them."""

    @property
    def usage(self) -> str:
        return self.symbol or " ".join(self.vocabulary.usage())

    def take(self, words: Words, field: str) -> object:
        found = Found()
        together = self.vocabulary.together
        apart = False
        while words.more(self.vocabulary.left(found)):
            word = self.vocabulary.exact(words.peek())
            if word is None:
                break
            if word.name not in together:
                apart = apart or bool(together & set(found))
            elif apart:
                break
            words.skip()
            read_word(word, words, found, field)
        if not any(True for _ in found):
            raise UsageError("its words are missing", field=field, allowed=", ".join(self.vocabulary.names()))
        self.vocabulary.check_complete(found, field)
        self.check(found, field)
        return found


def read_word(word: Word, words: Words, found: Found, outside: str = "") -> None:
    """Read what follows `word` and note it.

    Raises:
        UsageError: the word was said before, or its value is wrong.
    """
    name = f"{outside} {word.name}".strip()
    if word.name in found and not word.repeated:
        raise UsageError("is given twice", field=name, allowed=word.operand.usage)
    found.add(word.name, word.operand.take(words, name))


@dataclass(frozen=True, slots=True)
class Verb:
    """One thing that can be done with an object."""

    name: str
    summary: str
    run: Callable[[Session, Found], None]
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    positional: tuple[Word, ...] = ()
    """What stands before the words, each at its place; the ones not required may be left out."""
    aliases: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    endless: bool = False
    """Ctrl-C is its ordinary end."""

    def usage(self) -> list[str]:
        """What stands behind the verb, in pieces that stay together."""
        places = [
            word.operand.usage if word.required else f"[ {word.operand.usage} ]" for word in self.positional
        ]
        return [*places, *self.vocabulary.usage()]

    def read(self, words: Words) -> Found:
        """Read the words behind the verb.

        Raises:
            UsageError: they do not fit.
            HelpWanted: `help` stands first.
        """
        if words.more() and words.peek() == "help":
            raise HelpWanted
        found = Found()
        for word in self.positional:
            candidates = word.operand.candidates if isinstance(word.operand, Value) else ()
            if not word.required and (
                not words.more(candidates) or self.vocabulary.exact(words.peek()) is not None
            ):
                continue
            read_word(word, words, found)
        while words.more(self.vocabulary.left(found)):
            text = words.peek()
            known = self.vocabulary.find(text)
            if known is None:
                raise UsageError(
                    f"unknown word {words.shown()}",
                    value=words.shown(),
                    allowed=", ".join(self.vocabulary.left(found)) or "no further word",
                )
            words.skip()
            read_word(known, words, found)
        self.vocabulary.check_complete(found)
        return found


@dataclass(frozen=True, slots=True)
class Object:
    """A kind of thing the command works on: verbs, or objects of its own (`xfrm`)."""

    name: str
    summary: str
    verbs: tuple[Verb, ...] = ()
    objects: tuple[Object, ...] = ()
    aliases: tuple[str, ...] = ()
    default: str = ""
    """The verb that is meant when none is said; "" asks for one."""
    bare: bool = False
    """A first word that is no verb belongs to the default verb (`vnic stats left`); verbs stand in full."""
    notes: str = ""
    """What the help says below the words."""
    refused: dict[str, str] = field(default_factory=dict)
    """Verbs that exist elsewhere and not here, with the reason."""


class Named(Protocol):
    """Something that a word may say: by its name, an alias, or the beginning of either."""

    @property
    def name(self) -> str: ...

    @property
    def aliases(self) -> tuple[str, ...]: ...


NamedT = TypeVar("NamedT", bound=Named)


def find_named(text: str, named: Sequence[NamedT], refused: dict[str, str]) -> NamedT | None:
    """The one that `text` says, or None. Of several that begin so, one whose name begins the others' is
    meant (`delete`, not `deleteall`).

    Raises:
        UsageError: it could be several, or it is one of `refused`: word to reason.
    """
    allowed = ", ".join([*(one.name for one in named), "help"])
    for one in named:
        if text == one.name or text in one.aliases:
            return one
    if text in refused:
        raise UsageError(f"'{text}' is not supported: {refused[text]}", value=text, allowed=allowed)
    found = [one for one in named if any(name.startswith(text) for name in (one.name, *one.aliases)) and text]
    for one in found:
        if all(other.name.startswith(one.name) for other in found):
            return one
    if found:
        raise UsageError(
            f"'{shown(text)}' could be any of several",
            value=shown(text),
            allowed=", ".join(one.name for one in found),
        )
    return None
