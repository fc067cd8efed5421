"""The pages say what the grammar says, and their commands are commands."""

import re
import shlex

import pytest

from vnic.cli import manual
from vnic.cli.commands import Place, read
from vnic.cli.words import Words

REMEDY = "run python -m vnic.cli.manual"


def test_the_man_page_is_made_from_the_grammar() -> None:
    assert manual.MAN.read_text() == manual.man_page(), REMEDY


def test_the_blocks_of_the_reference_are_made_from_the_grammar() -> None:
    text = manual.COMMANDS.read_text()
    assert text == manual.refreshed(text), REMEDY


def test_every_object_has_its_block_in_the_reference() -> None:
    blocks = set(re.findall(r"<!-- help: ([^>]*?) -->", manual.COMMANDS.read_text()))
    assert {" ".join(path) for path, one in manual.every_object() if one.verbs} - {"xfrm"} <= blocks


def test_the_man_page_has_no_line_that_roff_takes_for_a_request_by_mistake() -> None:
    requests = {line.split()[0] for line in manual.man_page().splitlines() if line.startswith((".", "'"))}
    assert requests <= {".TH", ".SH", ".SS", ".TP", ".B", ".br", ".nf", ".fi", ".PP", '.\\"'}
    assert manual.man_page().isascii()


def test_a_block_of_an_unknown_command_is_an_error() -> None:
    with pytest.raises(LookupError):
        manual.refreshed("<!-- help: nothing -->\n<!-- end -->")


def documented_commands() -> list[str]:
    """The commands of the reference and the man page, as a shell would run them."""
    text = re.sub(r"<!-- help.*?<!-- end -->", "", manual.COMMANDS.read_text(), flags=re.DOTALL)
    text += "\n" + "\n".join(f"    {line}" for _, lines in manual.EXAMPLES for line in lines)
    joined = text.replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.startswith("    ") and "[ OPTIONS ]" not in line]
    commands = [one.strip() for line in lines for one in line.partition(" #")[0].split(";")]
    return [one.partition(" | ")[0] for one in commands if one.startswith("vnic ")]


@pytest.mark.parametrize("line", documented_commands())
def test_commands_of_the_pages_are_read(line: str) -> None:
    words = shlex.split(line)[1:]
    while words[0].startswith("-"):
        if words.pop(0) == "-b":
            return
    read(Words(words), Place())


def test_there_are_commands_in_the_pages() -> None:
    assert len(documented_commands()) > 20
