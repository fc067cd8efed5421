"""Keys: from files, standard input and words; never in a message."""

import io
import os
from pathlib import Path

import pytest

from vnic.cli.keys import COMMAND_LINE, MAX_KEY_FILE_BYTES, KeyReader, KeySource, key_source
from vnic.cli.words import UsageError


class Warnings(list[str]):
    """A warn function that remembers."""

    def __call__(self, sentence: str) -> None:
        self.append(sentence)


def read(word: str, stdin: str = "", *, exposure: str = COMMAND_LINE) -> tuple[bytes, list[str]]:
    warnings = Warnings()
    reader = KeyReader(warnings, io.StringIO(stdin), exposure=exposure)
    return reader.read(key_source(word, "enc"), "enc"), warnings


def key_file(tmp_path: Path, content: bytes, mode: int = 0o600) -> str:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(mode)
    return f"file:{path}"


def test_words_are_hexadecimal_or_text_as_ip_reads_them() -> None:
    assert read("0x0102ff")[0] == bytes((1, 2, 255))
    assert read("sixteencharacter")[0] == b"sixteencharacter"
    assert read("")[0] == b""
    assert read("0x")[0] == b"0x"


def test_an_odd_digit_gets_a_zero_in_front_as_in_ip_and_a_warning() -> None:
    key, warnings = read("0x123")
    assert key == bytes((0x01, 0x23))
    assert "odd number of digits" in warnings[-1]


def test_a_key_on_the_command_line_is_warned_of_once() -> None:
    warnings = Warnings()
    reader = KeyReader(warnings)
    reader.read(KeySource("0x01"), "enc")
    reader.read(KeySource("0x02"), "auth")
    assert len(warnings) == 1
    assert "seen by every process" in warnings[0]


def test_a_key_in_a_batch_is_not_warned_of() -> None:
    assert read("0x01", exposure="")[1] == []


@pytest.mark.parametrize(
    "content",
    [b"0x0102030405060708\n", b"0102030405060708", b"01:02:03:04:05:06:07:08\r\n", b"01020304\n05060708\n"],
)
def test_a_file_of_hexadecimal_text_is_read_as_such(tmp_path: Path, content: bytes) -> None:
    assert read(key_file(tmp_path, content)) == (bytes(range(1, 9)), [])


@pytest.mark.parametrize("content", [bytes(range(16)), b"0x\xff\xfe", b"a text of a key!", b"\n" * 16])
def test_a_file_of_anything_else_is_the_key_itself(tmp_path: Path, content: bytes) -> None:
    assert read(key_file(tmp_path, content)) == (content, [])


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o666, 0o644])
def test_a_key_file_that_everybody_may_read_or_write_is_warned_of(tmp_path: Path, mode: int) -> None:
    key, warnings = read(key_file(tmp_path, b"0x01020304", mode))
    assert key == bytes(range(1, 5))
    assert len(warnings) == 1
    assert "chmod 600" in warnings[0]
    assert "01020304" not in warnings[0]


def test_a_key_file_of_a_group_is_taken(tmp_path: Path) -> None:
    assert read(key_file(tmp_path, b"0x01", 0o640))[0] == b"\x01"


def test_a_key_may_come_through_a_pipe(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"0x0102")
    os.close(writing)
    try:
        assert read(f"file:/dev/fd/{reading}")[0] == b"\x01\x02"
    finally:
        os.close(reading)


@pytest.mark.parametrize("content", [b"", b"x" * (MAX_KEY_FILE_BYTES + 1)])
def test_an_empty_or_endless_file_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError) as raised:
        read(key_file(tmp_path, content))
    assert raised.value.field == "enc"


@pytest.mark.parametrize("path", ["file:/nonexistent/key", "file:", "file:/tmp", "file:a\0b"])
def test_a_file_that_cannot_be_read_is_a_usage_error(path: str) -> None:
    with pytest.raises(UsageError):
        read(path)


def test_standard_input_gives_a_line_for_each_key() -> None:
    warnings = Warnings()
    reader = KeyReader(warnings, io.StringIO("0x0102\n03 04\n"))
    assert reader.read(KeySource("-"), "enc") == b"\x01\x02"
    assert reader.read(KeySource("-"), "auth") == b"\x03\x04"
    with pytest.raises(UsageError) as raised:
        reader.read(KeySource("-"), "more")
    assert raised.value.field == "more"
    assert warnings == []


def test_standard_input_that_holds_commands_gives_no_key() -> None:
    with pytest.raises(UsageError) as raised:
        KeyReader(Warnings()).read(KeySource("-"), "enc")
    assert raised.value.allowed == "file:PATH"


@pytest.mark.parametrize("word", ["0xnothexdigits", "0x01zz"])
def test_what_is_not_hexadecimal_is_refused_without_repeating_it(word: str) -> None:
    with pytest.raises(UsageError) as raised:
        read(word)
    assert word not in str(raised.value)


def test_a_key_hides_itself() -> None:
    assert "0xdeadbeef" not in repr(key_source("0xdeadbeef", "enc"))


class Terminal(io.StringIO):
    """Standard input that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_key_is_asked_for_without_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def getpass(prompt: str, stream: object) -> str:
        asked.append(prompt)
        if len(asked) > 1:
            raise EOFError
        return "0x0102"

    monkeypatch.setattr("getpass.getpass", getpass)
    reader = KeyReader(Warnings(), Terminal())
    assert reader.read(KeySource("-"), "enc") == b"\x01\x02"
    assert asked == ["enc key (hexadecimal): "]
    with pytest.raises(UsageError):
        reader.read(KeySource("-"), "enc")
