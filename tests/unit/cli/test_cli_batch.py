"""Lines of a batch to words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnic.cli.batch import MAX_LINE_CHARACTERS, commands, split
from vnic.cli.words import UsageError


def read(text: str) -> list[tuple[int, list[str]]]:
    made = []
    for number, words in commands(text.splitlines(keepends=True)):
        assert not isinstance(words, UsageError)
        made.append((number, words))
    return made


def test_each_line_is_a_command_and_comments_and_blanks_are_none() -> None:
    assert read("# first\n\nsa show\n  sa count # how many\n\t\n") == [
        (3, ["sa", "show"]),
        (4, ["sa", "count"]),
    ]


def test_a_line_goes_on_behind_a_backslash_and_counts_from_its_first() -> None:
    assert read("sa \\\n  show \\\ndev left\nsa count") == [
        (1, ["sa", "show", "dev", "left"]),
        (4, ["sa", "count"]),
    ]


def test_two_backslashes_at_the_end_are_one_and_end_the_line() -> None:
    assert read("a b\\\\\nc") == [(1, ["a", "b\\"]), (2, ["c"])]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("enc 'cbc(aes)' \"a b\"", ["enc", "cbc(aes)", "a b"]),
        ("enc ecb(cipher_null) ''", ["enc", "ecb(cipher_null)", ""]),
        ('a"b c"d', ["ab cd"]),
        ("a\\ b \\# c", ["a b", "#", "c"]),
        ('\'a\\b\' "c\\"d"', ["a\\b", 'c"d']),
        ("key#1 #2", ["key#1"]),
        ("'#' x", ["#", "x"]),
    ],
)
def test_quotes_hold_words_together(line: str, words: list[str]) -> None:
    assert split(line) == words


@pytest.mark.parametrize("line", ["'open", '"open', "a 'b\\"])
def test_an_open_quote_is_an_error_at_its_line(line: str) -> None:
    ((number, words),) = commands([line])
    assert number == 1
    assert isinstance(words, UsageError)


def test_a_command_without_end_is_an_error() -> None:
    ((_, words),) = commands("x\\\n" for _ in range(MAX_LINE_CHARACTERS + 2))
    assert isinstance(words, UsageError)


@given(st.text())
def test_any_text_gives_words_or_usage_errors(text: str) -> None:
    for number, words in commands(text.splitlines(keepends=True)):
        assert number >= 1
        assert isinstance(words, UsageError) or words
