"""Words: the cursor, shortened names, and what a message repeats of a word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnic.cli.words import SHOWN_CHARACTERS, UsageError, Words, chosen, shown


def test_a_word_that_could_be_a_key_is_not_repeated() -> None:
    assert shown("0x0123456789abcdef") == "(hidden)"
    assert shown("0123456789ABCDEF0123") == "(hidden)"


@pytest.mark.parametrize(
    "word", ["0xffffffff", "4294967295", "192.0.2.1", "2001:db8::1", "rfc4106(gcm(aes))"]
)
def test_honest_words_are_repeated(word: str) -> None:
    assert shown(word) == word


@given(st.text())
def test_what_is_shown_is_printable_and_short(word: str) -> None:
    text = shown(word)
    assert text == "" or text.isprintable()
    assert len(text) <= SHOWN_CHARACTERS * len(r"\U00000000")


def test_a_beginning_that_fits_one_name_is_enough() -> None:
    assert chosen("tu", ("transport", "tunnel")) == "tunnel"
    assert chosen("delete", ("delete", "deleteall")) == "delete"
    assert chosen("del", ("delete", "deleteall")) == "delete"
    assert chosen("x", ("delete",)) is None
    assert chosen("", ("delete",)) is None


def test_a_beginning_that_fits_several_names_is_refused_with_all_of_them() -> None:
    with pytest.raises(UsageError) as raised:
        chosen("t", ("transport", "tunnel", "esp"))
    assert raised.value.allowed == "transport, tunnel"


def test_the_word_behind_a_key_is_not_repeated() -> None:
    words = Words(["secret", "part of it", "mode"])
    words.take("enc", "KEY", secret=True)
    assert words.shown() == "(hidden)"
    words.skip()
    assert words.shown() == "mode"


def test_a_missing_value_names_what_should_stand_there_and_offers_it() -> None:
    words = Words(["mode"])
    words.skip()
    with pytest.raises(UsageError) as raised:
        words.take("mode", "transport | tunnel", ("transport", "tunnel"))
    assert (raised.value.field, raised.value.allowed) == ("mode", "transport | tunnel")
    assert words.offered == ["transport", "tunnel"]


def test_a_word_that_is_not_text_is_refused() -> None:
    with pytest.raises(UsageError):
        Words(["adapter", b"\xff".decode(errors="surrogateescape")])
