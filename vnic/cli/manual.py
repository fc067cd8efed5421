"""The man page, and the parts of docs/commands.md that follow from the grammar.

Law: descriptions to text. `python -m vnic.cli.manual` in a checkout writes both; a test holds them equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from vnic import __version__
from vnic.cli import help
from vnic.cli.commands import ENTRIES, Place
from vnic.cli.grammar import Choice, Flags, Group, Object, Operand, Refusal, Verb, Vocabulary

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = DOCS / "commands.md"
MAN = DOCS / "man" / "vnic.8"

_BLOCK = re.compile(
    r"(<!-- (?P<kind>help|refused|options): ?(?P<path>[^>]*?) ?-->\n).*?(<!-- end -->)", re.DOTALL
)


def _objects(parent: Object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Object]]:
    yield path, parent
    for child in parent.objects:
        yield from _objects(child, (*path, child.name))


def every_object() -> list[tuple[tuple[str, ...], Object]]:
    """Every object with the words that lead to it."""
    return [one for entry in ENTRIES for one in _objects(entry.load(), (entry.name,))]


# ------------------------------------------------------------------------------------------ markdown


def refreshed(text: str) -> str:
    """Give a Markdown text with what stands between its markers made anew.

    `<!-- help: xfrm state -->` up to `<!-- end -->` is what `vnic xfrm state help` says, `refused` the words
    that are refused by name, `options` the options.
    """
    return _BLOCK.sub(lambda found: found[1] + _MADE[found["kind"]](found["path"]) + found[4], text)


def _place(path: str) -> Place:
    words = tuple(path.split())
    for known, one in every_object():
        if known == words:
            return Place(path=words, object=one)
        for verb in one.verbs:
            if (*known, verb.name) == words:
                return Place(path=words, object=one, verb=verb)
    raise LookupError(f"there is no command {path!r}")


def _help_block(path: str) -> str:
    return f"```\n{help.text(_place(path))}```\n"


def _options_block(path: str) -> str:
    rows = "".join(f"| `{name.replace('|', '&#124;')}` | {summary} |\n" for name, summary in help.OPTIONS)
    return f"| option | what it does |\n| --- | --- |\n{rows}"


def _refused_block(path: str) -> str:
    one = _place(path).object
    assert one is not None
    rows = dict.fromkeys(row for verb in one.verbs for row in _refused_in(verb.vocabulary, ""))
    rows |= dict.fromkeys((verb, reason, "") for verb, reason in one.refused.items())
    lines = "".join(
        f"| `{word}` | {reason} | {instead} |\n".replace("{ in | out }", "in, out")
        for word, reason, instead in rows
    )
    return f"| word | why | instead |\n| --- | --- | --- |\n{lines}"


def _refused_in(vocabulary: Vocabulary, outside: str) -> Iterator[tuple[str, str, str]]:
    for word in vocabulary.words:
        name = f"{outside} {word.name}".strip()
        yield from _refused_by(word.operand, name)


def _refused_by(operand: Operand, name: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(operand, Refusal):
        yield name, operand.reason, operand.instead
    elif isinstance(operand, Choice | Flags):
        for value, reason in operand.refused.items():
            yield f"{name} {value}", reason, ""
    elif isinstance(operand, Group):
        yield from _refused_in(operand.vocabulary, name)


_MADE: dict[str, Callable[[str], str]] = {
    "help": _help_block,
    "options": _options_block,
    "refused": _refused_block,
}


# ---------------------------------------------------------------------------------------------- roff


def _roff(text: str) -> str:
    """Write text so that roff shows it as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return "".join(f"\\&{line}" if line[:1] in ".'" else line for line in text.splitlines(keepends=True))


def _item(name: str, summary: str) -> str:
    return f".TP\n.B {_roff(name)}\n{_roff(summary)}\n" if summary else f".TP\n.B {_roff(name)}\n\\&\n"


def _verbatim(text: str) -> str:
    return f".nf\n{_roff(text)}.fi\n"


KEYS = (
    (
        "file:PATH",
        "hexadecimal text (0x in front, white space and colons allowed), or any other bytes as they are. "
        "A file that everybody may read or write is warned of.",
    ),
    (
        "-",
        "one line of standard input, hexadecimal; each - of a command takes the next line. "
        "On a terminal it is asked for and not echoed.",
    ),
    (
        "0x...",
        "hexadecimal; anything else is taken as the bytes of the text, as ip(8) does. "
        "On a command line every process of the machine can see it: a warning says so.",
    ),
)

EXIT_CODES = (
    ("0", "done"),
    ("1", "the words make no command; the daemon was not asked to change anything"),
    ("2", "the daemon refused, and changed nothing"),
    ("3", "the daemon was not reached, or went away"),
)

EXAMPLES = (
    (
        "Two cards joined by a wire",
        (
            "vnic adapter add left tap vnic0 netns red address 10.1.0.1/24 wire none",
            "vnic adapter add right tap vnic0 netns blue address 10.1.0.2/24 wire link left",
        ),
    ),
    (
        "An SA and a policy as on a Linux host",
        (
            "vnic xfrm state add src 10.1.0.1 dst 10.1.0.2 proto esp spi 0x101 \\\n"
            "    aead 'rfc4106(gcm(aes))' file:out.key 128 offload packet dev left dir out",
            "vnic xfrm policy add src 10.1.0.1 dst 10.1.0.2 dir out \\\n"
            "    tmpl proto esp mode transport offload packet dev left",
        ),
    ),
    (
        "The same in short words",
        (
            "vnic sa add dev left out src 10.1.0.1 dst 10.1.0.2 esp spi 0x101 aes-gcm-128 key file:out.key",
            "vnic policy add dev left out src 10.1.0.1 dst 10.1.0.2 protect esp",
        ),
    ),
    ("What happened", ("vnic -s sa show", "vnic stats left", "vnic -j monitor drop")),
)


def man_page() -> str:
    """The page vnic(8) as roff."""
    usage = "".join(
        f".SS vnic {_roff(' '.join(path))}\n{_roff(one.summary)}.\n{_verbatim(_usage(path, one))}"
        for path, one in every_object()
        if one.verbs
    )
    examples = "".join(
        f"{_roff(title)}:\n.PP\n{_verbatim(chr(10).join(lines) + chr(10))}.PP\n" for title, lines in EXAMPLES
    )
    options = "".join(_item(name, summary) for name, summary in help.OPTIONS)
    objects = "".join(_item(entry.name, entry.summary) for entry in ENTRIES)
    keys = "".join(_item(name, summary) for name, summary in KEYS)
    codes = "".join(_item(code, meaning) for code, meaning in EXIT_CODES)
    return f"""\
.\\" Made by `python -m vnic.cli.manual`; do not edit by hand.
.TH VNIC 8 "" "vnic {__version__}" "System Administration"
.SH NAME
vnic \\- virtual network cards with IPsec offload
.SH SYNOPSIS
.B vnic
[ OPTIONS ] OBJECT [ VERB ] [ WORDS... ]
.br
.B vnic
[ OPTIONS ]
.B \\-batch
FILE
.SH DESCRIPTION
The command talks to vnicd, the daemon that runs the cards, over its control socket.
Objects, verbs, words and values of a list may be shortened to what is unique;
.B help
stands in the place of any of them.
What a request says is done whole or refused whole.
.SH OPTIONS
{options}.SH OBJECTS
{objects}.SH COMMANDS
{usage}.SH KEYS
{keys}.SH BATCH
One command a line, without the word vnic.
A backslash at the end goes on with the next line, # begins a comment where a word could begin, quotes hold
words together.
All commands use one connection; the first that fails ends the batch, unless
.B \\-force
is given, and gives the exit code.
.SH JSON
With
.B \\-j
an answer is one document on standard output whose members are those of the interface io.vnic.Adapter; a batch
is one array of answers, monitor one object a line.
Errors and warnings are objects on standard error, one a line: error, command, field, value, allowed,
exit_code, status, status_name, and file and line in a batch; or warning.
.SH EXIT STATUS
{codes}.SH ENVIRONMENT
{_item("VNIC_SOCKET", "where the daemon listens, if -socket does not say it")}\
{_item("NO_COLOR", "no colour on a terminal either")}\
.SH FILES
{_item("/run/vnic/vnic.sock", "the control socket")}\
.SH EXAMPLES
{examples}\
.SH SEE ALSO
ip\\-xfrm(8), ethtool(8), tshark(1)
"""


def _usage(path: tuple[str, ...], one: Object) -> str:
    alike: dict[tuple[str, ...], list[Verb]] = {}
    for verb in one.verbs:
        alike.setdefault(tuple(verb.usage()), []).append(verb)
    usage = "".join(help.usage_lines(path, verbs).removeprefix("Usage: ") for verbs in alike.values())
    symbols: dict[str, list[str]] = {}
    for verb in one.verbs:
        symbols |= verb.vocabulary.symbols()
    return usage + help.symbol_lines(symbols)


def main() -> None:
    """Write the pages."""
    COMMANDS.write_text(refreshed(COMMANDS.read_text()))
    MAN.write_text(man_page())


if __name__ == "__main__":
    main()
