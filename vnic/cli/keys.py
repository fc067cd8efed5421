"""Where a key comes from: a file, standard input, or the words themselves.

Law: the text of a key goes into no message, no repr and no attribute that another module prints.

    file:PATH   hexadecimal text (0x in front, white space and colons allowed) or, if the file holds any
                other character, its bytes as they are; with a warning when everybody
                may read or write the file
    -           one line of standard input, hexadecimal; the first `-` of a command takes the first line.
                On a terminal it is asked for and not echoed
    0x…         the key in hexadecimal, and anything else its bytes, as `ip xfrm` reads them; with a
                warning when others may have read the words too
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from vnic.cli.words import UsageError

FILE = "file:"
MAX_KEY_FILE_BYTES = 4096
USAGE = "file:PATH, - (standard input) or 0x…"
COMMAND_LINE = (
    "a key on the command line can be seen by every process of this machine; better: file:PATH or -"
)
"""The warning about keys in words that came from a command line."""

_HEX = frozenset("0123456789abcdefABCDEF")
_SEPARATORS = str.maketrans("", "", " \t\r\n:")


@dataclass(frozen=True, slots=True)
class KeySource:
    """A key as it was named, not yet read."""

    named: str = field(repr=False)


def key_source(word: str, field: str) -> KeySource:
    """Take a word for a key."""
    return KeySource(word)


class KeyReader:
    """Reads keys for one run of the command.

    Args:
        warn: takes a sentence for the user.
        stdin: standard input, or None when it is closed or the commands themselves come from there.
        exposure: the warning to give when a key stands in the words, "" if nobody else sees them.
    """

    def __init__(
        self, warn: Callable[[str], None], stdin: TextIO | None = None, *, exposure: str = COMMAND_LINE
    ) -> None:
        self._warn = warn
        self.stdin = stdin
        self.exposure = exposure

    def read(self, source: KeySource, word: str) -> bytes:
        """Give the bytes of a key.

        Args:
            source: where it is.
            word: the word it belongs to, for messages.

        Raises:
            UsageError: there is no key there, or it must not be read from there.
        """
        named = source.named
        if named.startswith(FILE):
            return self._from_file(named.removeprefix(FILE), word)
        if named == "-":
            return self._from_stdin(word)
        if named and self.exposure:
            self._warn(self.exposure)
            self.exposure = ""
        return self._from_word(named, word)

    def _from_word(self, named: str, word: str) -> bytes:
        if not (len(named) > 2 and named.startswith("0x")):
            return named.encode()
        return self._from_hex(named[2:], word)

    def _from_hex(self, digits: str, word: str) -> bytes:
        if not _HEX.issuperset(digits):
            raise UsageError("the key is not hexadecimal", field=word, allowed="digits 0-9 and a-f")
        if len(digits) % 2:
            self._warn(f"{word}: the key has an odd number of digits; a 0 goes in front, as ip does it")
            digits = "0" + digits
        return bytes.fromhex(digits)

    def _from_stdin(self, word: str) -> bytes:
        if self.stdin is None:
            raise UsageError(
                "standard input has no keys: it holds the commands, or is closed",
                field=word,
                value="-",
                allowed="file:PATH",
            )
        if self.stdin.isatty():
            from getpass import getpass

            try:
                line = getpass(f"{word} key (hexadecimal): ", stream=sys.stderr)
            except EOFError:
                line = ""
        else:
            line = self.stdin.readline(MAX_KEY_FILE_BYTES)
        digits = line.translate(_SEPARATORS).removeprefix("0x")
        if not digits:
            raise UsageError("standard input has no line left for the key", field=word, allowed="a line")
        return self._from_hex(digits, word)

    def _from_file(self, path: str, word: str) -> bytes:
        try:
            with open(path, "rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                if stat.S_ISREG(mode) and mode & (stat.S_IROTH | stat.S_IWOTH):
                    self._warn(
                        f"everybody may read or write the key file {path}; chmod 600 it, make a new key"
                    )
                content = file.read(MAX_KEY_FILE_BYTES + 1)
        except OSError as error:
            raise UsageError(
                f"the key file cannot be read: {error.strerror}", field=word, value=path, allowed=USAGE
            ) from None
        except ValueError:
            raise UsageError("no file has such a name", field=word, allowed=USAGE) from None
        if not content or len(content) > MAX_KEY_FILE_BYTES:
            raise UsageError(
                f"the key file holds {'nothing' if not content else 'too much'}",
                field=word,
                value=path,
                allowed=f"1 to {MAX_KEY_FILE_BYTES} bytes",
            )
        digits = content.decode("latin-1").translate(_SEPARATORS).removeprefix("0x")
        if digits and _HEX.issuperset(digits):
            return self._from_hex(digits, word)
        return content
