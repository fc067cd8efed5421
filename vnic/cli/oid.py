"""`vnic oid`: NDIS requests with their exact binary structures.

Law: a buffer comes from a file, standard input or, if it can hold no key, the words; what may hold keys is
shown to nobody unless he asks with -show-keys. Any status is an answer; all but SUCCESS end with exit code 2.

Source: sheet §4.
"""

from __future__ import annotations

import os
import stat
from base64 import b64decode, b64encode
from dataclasses import dataclass, field, replace
from typing import Any

from vnic.cli import values
from vnic.cli.grammar import ADAPTERS, FILES, Found, Object, Value, Verb, Vocabulary, Word
from vnic.cli.hexdump import dump
from vnic.cli.render import paint, table
from vnic.cli.session import Session
from vnic.cli.words import UsageError, Words
from vnic.control.client import RefusedError
from vnic.control.interface import CancelOidRequest, OidReply, OidRequest, parameters_of
from vnic.control.oid_names import QUERIED, SET, WITH_KEYS, number_of
from vnic.errors import RequestError
from vnic.ndis.oids import Oid

HEX = "hex:"
MAX_BYTES = 700_000
"""Longest buffer: in Base64 it fits one call."""

_USAGE = f"FILE, -, or {HEX}… where no key is in it"
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")
_SEPARATORS = b" \t\r\n:"
_MAX_U64 = (1 << 64) - 1
_NAMES = tuple(one.label for one in Oid)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a buffer comes from, not yet read."""

    named: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Buffer:
    """`FILE`, `-` or `hex:…`; the word is never repeated in a message."""

    usage: str = f"{{ FILE | - | {HEX}… }}"

    def take(self, words: Words, field: str) -> object:
        return _Source(words.take(field, _USAGE, (FILES, "-", HEX), secret=True))


def _oid(word: str, field: str) -> str:
    try:
        number_of(word)
    except RequestError as error:
        raise UsageError(error.message, field=field, value=error.value, allowed=error.allowed) from None
    return word


_ADAPTER = Word("adapter", Value("ADAPTER", values.text, (ADAPTERS,)), required=True)
_OID = Word("oid", Value("OID", _oid, _NAMES), required=True)
_ID = Word("id", Value("NUMBER", values.integer(1, _MAX_U64)), "RequestId, by which `cancel` finds it")


def query(session: Session, found: Found) -> None:
    """Ask the NIC."""
    _ask(session, found, "query", None)


def set_(session: Session, found: Found) -> None:
    """Tell the NIC."""
    number = number_of(found.need("oid", str))
    source = found.get("buffer", _Source)
    buffer = b"" if source is None else _read(session, source.named, keys=number in WITH_KEYS)
    _ask(session, found, "set", b64encode(buffer).decode())


def _ask(session: Session, found: Found, what: str, buffer: str | None) -> None:
    request = OidRequest(
        adapter=found.need("adapter", str),
        oid=found.need("oid", str),
        request_type="set" if what == "set" else "query",
        information_buffer=buffer,
        information_buffer_length=found.get("room", int),
        request_id=found.get("id", int),
    )
    reply = session.ask(request)
    if reply.oid in WITH_KEYS and not session.options.show_keys:
        reply = replace(reply, information_buffer="")
    session.answer(_document(reply), lambda: _text(session, reply, what))
    if reply.status:
        raise RefusedError(
            reply.message or "the NIC refused it",
            field=reply.field,
            value=reply.value,
            allowed=reply.allowed,
            status=reply.status,
            status_name=reply.status_name,
        )
    if reply.message:
        session.warn(reply.message)


def _document(reply: OidReply) -> dict[str, Any]:
    document = parameters_of(reply)
    if reply.oid in WITH_KEYS and not reply.information_buffer:
        document["information_buffer"] = None
    return document


def _text(session: Session, reply: OidReply, what: str) -> str:
    colour = "bad" if reply.status else "good"
    text = (
        f"{paint(reply.oid_name, 'name', session)} {reply.oid:#010x}: "
        f"{paint(reply.status_name, colour, session)} {reply.status:#010x}\n"
    )
    if what == "query":
        text += f"    bytes written {reply.bytes_written}"
    else:
        text += f"    bytes read {reply.bytes_read}"
    if reply.bytes_needed:
        text += f" needed {reply.bytes_needed}"
    if reply.supported_revision:
        text += f" revision {reply.supported_revision}"
    text += "\n"
    for number, handle in enumerate(reply.handles):
        text += f"    entry {number}: " + (f"handle {handle:#x}\n" if handle else "failed\n")
    return text + dump(b64decode(reply.information_buffer))


def _read(session: Session, named: str, *, keys: bool) -> bytes:
    """Give the bytes of a buffer.

    Args:
        keys: it may hold keys.
    """
    if named.startswith(HEX):
        if keys:
            raise UsageError(
                "this OID's buffer holds keys, and every process of this machine sees a command line",
                field="buffer",
                allowed="FILE or -",
            )
        return _from_hex(named.removeprefix(HEX).encode())
    content = _from_stdin(session) if named == "-" else _from_file(session, named, keys=keys)
    if len(content) > MAX_BYTES:
        raise UsageError("the buffer is too long", field="buffer", allowed=f"at most {MAX_BYTES} bytes")
    digits = content.translate(None, _SEPARATORS).removeprefix(b"0x")
    return _from_hex(digits) if digits and _HEX_DIGITS.issuperset(digits) else content


def _from_hex(digits: bytes) -> bytes:
    digits = digits.translate(None, _SEPARATORS)
    if len(digits) % 2 or not _HEX_DIGITS.issuperset(digits):
        raise UsageError("the buffer is not hexadecimal", field="buffer", allowed="two digits a byte")
    return bytes.fromhex(digits.decode())


def _from_stdin(session: Session) -> bytes:
    stdin = session.keys.stdin
    if stdin is None:
        raise UsageError(
            "standard input has no buffer: it holds the commands, or is closed",
            field="buffer",
            value="-",
            allowed="FILE",
        )
    binary = getattr(stdin, "buffer", None)
    if binary is None:
        return stdin.read(2 * MAX_BYTES).encode("utf-8", "surrogateescape")
    content: bytes = binary.read(4 * MAX_BYTES)
    return content


def _from_file(session: Session, path: str, *, keys: bool) -> bytes:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if keys and stat.S_ISREG(mode) and mode & (stat.S_IROTH | stat.S_IWOTH):
                session.warn(f"everybody may read or write {path}, which holds keys; chmod 600 it")
            return file.read(4 * MAX_BYTES)
    except OSError as error:
        raise UsageError(
            f"the buffer's file cannot be read: {error.strerror}", field="buffer", allowed=_USAGE
        ) from None
    except ValueError:
        raise UsageError("no file has such a name", field="buffer", allowed=_USAGE) from None


def cancel(session: Session, found: Found) -> None:
    """End requests under way."""
    reply = session.ask(
        CancelOidRequest(adapter=found.need("adapter", str), request_id=found.need("id", int))
    )
    session.answer(reply, lambda: f"{reply.count} cancelled\n")


def list_(session: Session, found: Found) -> None:
    """Show the OIDs there are."""
    rows = [
        {
            "name": one.label,
            "oid": int(one),
            "request_types": [word for word, those in (("query", QUERIED), ("set", SET)) if one in those],
            "direct": one.direct,
            "keys": one in WITH_KEYS,
        }
        for one in Oid
    ]
    session.answer(
        rows,
        lambda: table(
            ["OID", "NUMBER", "REQUESTS", "PATH", "BUFFER"],
            [
                [
                    one.label,
                    f"{one:#010x}",
                    ", ".join(word for word, those in (("query", QUERIED), ("set", SET)) if one in those),
                    "direct" if one.direct else "regular",
                    "holds keys" if one in WITH_KEYS else "",
                ]
                for one in Oid
            ],
            session,
        ),
    )


OID = Object(
    "oid",
    "NDIS requests in their binary form",
    verbs=(
        Verb(
            "query",
            "ask the NIC, and show what it wrote",
            query,
            Vocabulary(
                Word("room", Value("BYTES", values.integer(0, 1 << 20, "bytes")), "length of the buffer"), _ID
            ),
            positional=(_ADAPTER, _OID),
            examples=("vnic oid query left OID_TCP_OFFLOAD_CURRENT_CONFIG",),
        ),
        Verb(
            "set",
            "hand the NIC a buffer, and show what it wrote back",
            set_,
            Vocabulary(_ID),
            positional=(_ADAPTER, _OID, Word("buffer", _Buffer())),
            examples=(
                "vnic oid set left tcp_task_ipsec_offload_v2_add_sa add_sa.bin",
                "vnic oid set left 0xfc030203 - < delete_sa.bin",
                "vnic oid set left tcp_offload_parameters parameters.bin",
            ),
        ),
        Verb(
            "cancel",
            "end the requests under way that have this id",
            cancel,
            positional=(_ADAPTER, replace(_ID, required=True)),
        ),
        Verb("list", "show the OIDs, their numbers and what can be asked", list_, aliases=("lst",)),
    ),
    notes="A buffer is a file or standard input, its bytes as they are or in hexadecimal, or hex:…; one that "
    "holds keys is a file or standard input only, and shown with -show-keys alone. Any NDIS status is an "
    "answer; all but SUCCESS give exit code 2.",
)
