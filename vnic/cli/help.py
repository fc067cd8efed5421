"""`help`, everywhere: written from the same description that reads the words.

Law: descriptions to text, and to JSON.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from vnic.cli.commands import ENTRIES, Place
from vnic.cli.grammar import Group, Object, Verb, Word

WIDTH = 80
COLUMN = 28
"""Names up to this width have their summary beside them."""

OPTIONS = (
    ("-j, -json", "write JSON: one document; errors and warnings on standard error as objects"),
    ("-p, -pretty", "with -j: indented"),
    ("-s, -stats", "more: counters, windows, drops"),
    ("-d, -details", "everything; say what was done"),
    ("-br, -brief", "a table, one line for each"),
    ("-o, -oneline", "each record on one line"),
    ("-t, -timestamp", "with monitor: the time of each event"),
    ("-show-keys", "show keys, to those who may see them"),
    ("-4, -6", "only IPv4, only IPv6"),
    ("-c, -color[=always|auto|never]", "colour; auto is for a terminal without NO_COLOR"),
    ("-S, -socket SOCKET", "where the daemon listens ($VNIC_SOCKET, /run/vnic/vnic.sock)"),
    ("-b, -batch FILE", "read commands from FILE, one a line; - is standard input"),
    ("-force", "with -b: go on after an error"),
    ("-V, -Version", "show the version"),
)
"""Every option and what it does; `main` reads them."""

ROOT_USAGE = "vnic [ OPTIONS ] OBJECT [ VERB ] [ WORDS… ]"


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _pieces(first: str, pieces: list[str], indent: str) -> str:
    """Write pieces on lines, each kept together."""
    lines = [first]
    for piece in pieces:
        if len(lines[-1]) + 1 + len(piece) > WIDTH and lines[-1] != indent.rstrip():
            lines.append(indent + piece)
        else:
            lines[-1] += f" {piece}"
    return "\n".join(lines) + "\n"


def _columns(rows: list[tuple[str, str]], indent: str = "    ") -> str:
    width = max((len(name) for name, _ in rows if len(name) <= COLUMN), default=COLUMN)
    text = ""
    for name, summary in rows:
        lines = textwrap.wrap(summary, WIDTH + 20 - len(indent) - width - 2) or [""]
        if len(name) > width:
            text += f"{indent}{name}\n"
            name = ""
        for line in lines:
            text += f"{indent}{name.ljust(width)}  {line}".rstrip() + "\n"
            name = ""
    return text


def usage_lines(path: tuple[str, ...], verbs: Sequence[Verb]) -> str:
    """The usage of verbs that take the same words, and what the names in capitals stand for."""
    names = " | ".join(verb.name for verb in verbs)
    names = f"{{ {names} }}" if len(verbs) > 1 else names
    return _pieces(f"Usage: vnic {' '.join(path)} {names}", verbs[0].usage(), "        ")


def symbol_lines(symbols: dict[str, list[str]]) -> str:
    """What the names in capitals of usage lines stand for."""
    return "".join(_pieces(f"{name} :=", pieces, " " * (len(name) + 4)) for name, pieces in symbols.items())


def _word_rows(words: tuple[Word, ...]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for word in words:
        if word.refused:
            continue
        also = f" (also {', '.join(word.aliases)})" if word.aliases else ""
        rows.append((f"{word.name} {word.operand.usage}".rstrip(), word.summary + also))
        if isinstance(word.operand, Group):
            rows += [
                (f"  {name}", summary)
                for name, summary in _word_rows(word.operand.vocabulary.words)
                if summary
            ]
    return rows


def text(place: Place) -> str:
    """The help for where the words led."""
    if place.verb is not None:
        return _verb_text(place.path, place.verb)
    if place.object is not None:
        return _object_text(place.path, place.object)
    rows = [(entry.name, entry.summary) for entry in ENTRIES]
    return (
        f"Usage: {ROOT_USAGE}\n       vnic [ OPTIONS ] -batch FILE\n"
        f"Objects (`vnic OBJECT help` says more):\n{_columns(rows)}"
        f"Options:\n{_columns(list(OPTIONS))}"
        "Objects, verbs and words may be shortened to what is unique.\n"
        "Exit codes: 0 done, 1 usage, 2 refused by the daemon, 3 daemon not reached.\n"
    )


def _object_text(path: tuple[str, ...], one: Object) -> str:
    alike: dict[tuple[str, ...], list[Verb]] = {}
    symbols: dict[str, list[str]] = {}
    for verb in one.verbs:
        alike.setdefault(tuple(verb.usage()), []).append(verb)
        symbols |= verb.vocabulary.symbols()
    usage = "".join(usage_lines(path, verbs) for verbs in alike.values())
    if one.objects:
        children = " | ".join(child.name for child in one.objects)
        usage += f"Usage: vnic {' '.join(path)} {{ {children} }} VERB …\n"
    rows = [(child.name, child.summary) for child in one.objects]
    rows += [(verb.name, verb.summary) for verb in one.verbs]
    default = f"Without a verb: {one.default}.\n" if one.default and not one.bare else ""
    notes = _wrapped(one.notes, "") + "\n" if one.notes else ""
    more = f"`vnic {' '.join(path)} VERB help` explains the words.\n" if one.verbs else ""
    return f"{usage}{symbol_lines(symbols)}Verbs:\n{_columns(rows)}{default}{notes}{more}"


def _verb_text(path: tuple[str, ...], verb: Verb) -> str:
    rows = _word_rows(verb.vocabulary.words)
    examples = "".join(f"    {example}\n" for example in verb.examples)
    return (
        f"{usage_lines(path[:-1], [verb])}{symbol_lines(verb.vocabulary.symbols())}{verb.summary}\n"
        + (f"Words:\n{_columns(rows)}" if rows else "")
        + (f"Examples:\n{examples}" if examples else "")
    )


def document(place: Place) -> dict[str, Any]:
    """The help for where the words led, as builtins for JSON."""
    if place.verb is not None:
        return {"command": place.title, **_verb_document(place.path, place.verb)}
    if place.object is not None:
        return {
            "command": place.title,
            "summary": place.object.summary,
            "objects": [{"name": one.name, "summary": one.summary} for one in place.object.objects],
            "verbs": [
                {"name": verb.name, **_verb_document((*place.path, verb.name), verb)}
                for verb in place.object.verbs
            ],
        }
    return {
        "usage": ROOT_USAGE,
        "objects": [{"name": entry.name, "summary": entry.summary} for entry in ENTRIES],
        "options": [{"name": name, "summary": summary} for name, summary in OPTIONS],
    }


def _verb_document(path: tuple[str, ...], verb: Verb) -> dict[str, Any]:
    return {
        "summary": verb.summary,
        "usage": " ".join(["vnic", *path, *verb.usage()]),
        "symbols": {name: " ".join(pieces) for name, pieces in verb.vocabulary.symbols().items()},
        "words": [
            {"name": word.name, "usage": word.usage, "summary": word.summary, "required": word.required}
            for word in verb.vocabulary.words
            if not word.refused
        ],
        "examples": list(verb.examples),
    }
