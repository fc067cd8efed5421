"""Algorithms and keys of an SA, from the kernel's names or from our own.

Law: the tables in `ipsec.algorithms` decide; the row of a kernel name follows from the length of its key.
A key leaves as hexadecimal text in a message whose repr hides it; no message for people repeats one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from vnic.cli import values
from vnic.cli.grammar import FILES, Found, Group, Nothing, Refusal, Series, Value, Vocabulary, Word
from vnic.cli.keys import FILE, KeyReader, KeySource, key_source
from vnic.cli.words import UsageError, shown
from vnic.control.interface import Sa
from vnic.ipsec.algorithms import (
    ENCRYPTION_BY_NAME,
    ENCRYPTIONS,
    INTEGRITIES,
    INTEGRITY_BY_NAME,
    NULL,
    Encryption,
    Integrity,
    encryptions_named,
    integrities_named,
    kernel_names,
)

Row = Encryption | Integrity

ROWS: tuple[Row, ...] = (*ENCRYPTIONS, *INTEGRITIES)

GMAC = "rfc4543(gcm(aes))"
"""Named after `aead`, as the kernel has it, but an integrity algorithm for us and for NDIS."""

KERNEL_AUTH_BITS = 96
"""ICV of `auth` without a length: the kernel's own default for MD5, SHA-1 and SHA-256."""

NOT_HERE = frozenset(
    {
        "rfc4309(ccm(aes))",
        "rfc7539esp(chacha20,poly1305)",
        "rfc3686(ctr(aes))",
        "ctr(aes)",
        "cbc(cast5)",
        "cbc(cast128)",
        "cast5",
        "cbc(blowfish)",
        "blowfish",
        "cbc(serpent)",
        "serpent",
        "cbc(camellia)",
        "cbc(twofish)",
        "twofish",
        "cbc(sm4)",
        "digest_null",
        "hmac(sha384)",
        "hmac(sha512)",
        "hmac(rmd160)",
        "hmac(sm3)",
        "xcbc(aes)",
        "cmac(aes)",
        "deflate",
        "lzs",
        "lzjh",
    }
)
"""Names of the kernel's that no NIC of this contract has. Only known names are repeated in an error:
where a name should stand there may be a key."""

_ENC = tuple(row for row in ENCRYPTIONS if not row.combined)
_AEAD = tuple(row for row in ENCRYPTIONS if row.combined)
_AUTH = tuple(row for row in INTEGRITIES if not row.iv_length)
_GMAC = tuple(row for row in INTEGRITIES if row.iv_length)

ENC_NAMES = kernel_names(_ENC)
AUTH_NAMES = kernel_names(_AUTH)
AEAD_NAMES = kernel_names((*_AEAD, *_GMAC))

_KEY = Value("ALGO-KEY", key_source, (FILE, "-", FILES), secret=True)


def _name(word: str, field: str) -> str:
    """Take an algorithm's name; which ones there are is checked when the key is known too."""
    return word


def _bits(word: str, field: str) -> int:
    number = values.c_integer(word)
    if number is None:
        raise UsageError("the ICV length is not a number", field=field, allowed="64, 96 or 128 bits")
    return number


def _names(names: str) -> Value:
    return Value("ALGO-NAME", _name, tuple(names.split(", ")), secret=True)


XFRM_WORDS = (
    Word("enc", Series((_names(ENC_NAMES), _KEY)), f"encryption: {ENC_NAMES}", symbol="ALGO…"),
    Word(
        "auth", Series((_names(AUTH_NAMES), _KEY)), f"integrity, ICV of 96 bits: {AUTH_NAMES}", symbol="ALGO…"
    ),
    Word(
        "auth-trunc",
        Series((_names(AUTH_NAMES), _KEY, Value("ALGO-TRUNC-LEN", _bits))),
        "integrity with an ICV of so many bits",
        symbol="ALGO…",
    ),
    Word(
        "aead",
        Series((_names(AEAD_NAMES), _KEY, Value("ALGO-ICV-LEN", _bits))),
        f"both in one; the key ends with the 4-byte salt: {AEAD_NAMES}",
        symbol="ALGO…",
    ),
    Word("comp", Refusal("this card does not compress (IPComp)", "an SA without comp")),
)
"""ALGO-LIST of `ip xfrm state`."""

_SHORT_KEY = Word("key", Value("KEY", key_source, (FILE, "-", FILES), secret=True), required=True)


def _short(row: Row) -> Word:
    if not row.key_length:
        return Word(row.name, Nothing(), "no encryption", symbol="ALGORITHM…")
    words = [_SHORT_KEY]
    if row.icv_lengths:
        words.append(Word("icv", Value("BITS", _bits)))
    salt = f" with its {row.salt_length}-byte salt" if row.salt_length else ""
    summary = f"key of {row.key_length} bytes{salt}"
    if row.icv_lengths:
        summary += f"; ICV of {_lengths(row)} bits"
    return Word(
        row.name, Group(Vocabulary(*words)), summary + (" (weak)" if row.weak else ""), symbol="ALGORITHM…"
    )


def _lengths(row: Row) -> str:
    return ", ".join(str(length * 8) for length in row.icv_lengths)


SHORT_WORDS = tuple(_short(row) for row in ROWS)
"""Our own words: the names of the table, each with its key."""


@dataclass(frozen=True, slots=True)
class Protection:
    """The algorithm part of an SA message; keys are hexadecimal, `icv_length` is bits."""

    encryption: str | None = None
    encryption_key: str | None = field(default=None, repr=False)
    integrity: str | None = None
    integrity_key: str | None = field(default=None, repr=False)
    icv_length: int | None = None


def protection_of(found: Found, proto: str, keys: KeyReader) -> Protection:
    """Make the algorithms and keys that the words say, in either vocabulary.

    Raises:
        UsageError: a name, a key's length or an ICV length is none of the table's, or the algorithms do not
            fit the protocol or each other.
    """
    short = [row for row in ROWS if row.name in found]
    kernel = [word for word in ("enc", "auth", "auth-trunc", "aead") if word in found]
    if short and kernel:
        raise UsageError(
            f"the algorithm is said twice: {kernel[0]} and {short[0].name}",
            field=short[0].name,
            allowed="one of the two",
        )
    made = _from_short(found, short, keys) if short else _from_kernel(found, kernel, proto, keys)
    if proto == "ah" and made.encryption is not None:
        raise UsageError(
            "AH does not encrypt", field="proto", value="ah", allowed="proto esp, or an integrity algorithm"
        )
    if proto == "ah" and made.integrity is None:
        raise UsageError("AH needs an integrity algorithm", field="auth", allowed=f"{AUTH_NAMES}, {GMAC}")
    if proto == "esp" and made.encryption is None:
        raise UsageError(
            "ESP needs an encryption algorithm; for integrity alone name ecb(cipher_null)",
            field="enc",
            allowed=f"enc: {ENC_NAMES}; aead: {AEAD_NAMES}",
        )
    return made


def protocol_said(found: Found) -> Literal["esp", "ah"]:
    """The protocol that the algorithms alone say: AH where nothing encrypts, if only with null."""
    esp = "enc" in found or "aead" in found or any(row.name in found for row in ENCRYPTIONS)
    return "esp" if esp else "ah"


def _from_kernel(found: Found, said: Sequence[str], proto: str, keys: KeyReader) -> Protection:
    if "aead" in said and len(said) > 1:
        raise UsageError("an aead stands alone", field=said[0], allowed="aead without enc and auth")
    if "auth" in said and "auth-trunc" in said:
        raise UsageError("is given twice", field="auth-trunc", allowed="auth or auth-trunc")
    if "aead" in said:
        return _from_aead(found.need("aead", tuple), proto, keys)
    made = Protection()
    if "enc" in said:
        name, source = found.need("enc", tuple)
        row, key = _row("enc", _rows("enc", name, _ENC, encryptions_named(name)), source, keys)
        made = replace(made, encryption=row.name, encryption_key=key)
    for word in ("auth", "auth-trunc"):
        if word in said:
            name, source, *rest = found.need(word, tuple)
            row, key = _row(word, _rows(word, name, _AUTH, integrities_named(name)), source, keys)
            bits = _icv(word, row, rest[0] if rest else KERNEL_AUTH_BITS)
            made = replace(made, integrity=row.name, integrity_key=key, icv_length=bits)
    return made


def _from_aead(said: tuple[str, KeySource, int], proto: str, keys: KeyReader) -> Protection:
    name, source, bits = said
    if name == GMAC:
        row, key = _row("aead", _GMAC, source, keys)
        bits = _icv("aead", row, bits)
        return Protection(NULL.name if proto == "esp" else None, None, row.name, key, bits)
    rows = _rows("aead", name, _AEAD, encryptions_named(name))
    row, key = _row("aead", rows, source, keys)
    return Protection(row.name, key, None, None, _icv("aead", row, bits))


def _from_short(found: Found, rows: Sequence[Row], keys: KeyReader) -> Protection:
    made = Protection()
    for row in rows:
        is_encryption = isinstance(row, Encryption)
        first = made.encryption if is_encryption else made.integrity
        if first is not None:
            what = "encryption" if is_encryption else "integrity"
            raise UsageError(
                f"a second {what} algorithm beside {first}", field=row.name, allowed="one of each"
            )
        words = found.need(row.name, Found) if row.key_length else Found()
        source = words.get("key", KeySource)
        key = None if source is None else _row(row.name, (row,), source, keys)[1]
        if is_encryption:
            made = replace(made, encryption=row.name, encryption_key=key)
        else:
            made = replace(made, integrity=row.name, integrity_key=key)
        bits = words.get("icv", int)
        if bits is not None:
            made = replace(made, icv_length=_icv(f"{row.name} icv", row, bits))
    return made


def _rows(word: str, name: str, mine: Sequence[Row], named: Sequence[Row]) -> Sequence[Row]:
    """The rows of a kernel name that may follow `word`."""
    rows = [row for row in named if row in mine]
    if rows:
        return rows
    allowed = kernel_names(mine) + (f", {GMAC}" if word == "aead" else "")
    elsewhere = encryptions_named(name) or integrities_named(name)
    if elsewhere:
        right = "aead" if elsewhere[0] in (*_AEAD, *_GMAC) else "enc" if elsewhere[0] in _ENC else "auth"
        raise UsageError(f"'{name}' goes after {right}", field=word, value=name, allowed=allowed)
    if name in NOT_HERE:
        raise UsageError(
            f"'{name}' is not an algorithm of this card", field=word, value=name, allowed=allowed
        )
    raise UsageError("not an algorithm of this card", field=word, allowed=allowed)


def _row(word: str, rows: Sequence[Row], source: KeySource, keys: KeyReader) -> tuple[Row, str | None]:
    """The row whose key has this length, and the key in hexadecimal."""
    key = keys.read(source, word)
    for row in rows:
        if row.key_length == len(key):
            return row, key.hex() or None
    salt = " (with the 4-byte salt)" if rows[0].salt_length else ""
    lengths = [str(row.key_length) for row in rows]
    allowed = " or ".join(filter(None, (", ".join(lengths[:-1]), lengths[-1]))) + f" bytes{salt}"
    raise UsageError(
        f"a key of {len(key)} bytes does not fit {rows[0].kernel_name}",
        field=word,
        value=f"{len(key)} bytes",
        allowed=allowed,
    )


def _icv(word: str, row: Row, bits: int) -> int:
    if bits not in [length * 8 for length in row.icv_lengths]:
        raise UsageError(
            f"{row.name} has no ICV of {shown(str(bits))} bits",
            field=word,
            value=shown(str(bits)),
            allowed=f"{_lengths(row)} bits",
        )
    return bits


def protection_text(sa: Sa, *, bits: bool = False) -> list[str]:
    """Write the algorithms of an SA as `ip xfrm state` does, one line each.

    Args:
        sa: the SA; without keys in it the lines say <hidden>.
        bits: add the length of each key, as `ip -s` does.
    """
    encryption = ENCRYPTION_BY_NAME.get(sa.encryption or "")
    integrity = INTEGRITY_BY_NAME.get(sa.integrity or "")
    lines = []
    if integrity is not None and integrity.iv_length:
        icv = sa.icv_length or integrity.icv_lengths[0] * 8
        return [f"aead {integrity.kernel_name} {_key_text(sa.integrity_key, integrity, bits)} {icv}"]
    if integrity is not None:
        icv = sa.icv_length or integrity.icv_lengths[0] * 8
        key = _key_text(sa.integrity_key, integrity, bits)
        lines.append(f"auth-trunc {integrity.kernel_name} {key} {icv}")
    if encryption is not None and encryption.combined:
        icv = sa.icv_length or encryption.icv_lengths[0] * 8
        lines.append(f"aead {encryption.kernel_name} {_key_text(sa.encryption_key, encryption, bits)} {icv}")
    elif encryption is not None:
        lines.append(
            f"enc {encryption.kernel_name} {_key_text(sa.encryption_key, encryption, bits)}".rstrip()
        )
    return lines


def _key_text(key: str | None, row: Row, bits: bool) -> str:
    if not row.key_length:
        return "''"
    text = "<hidden>" if key is None else f"0x{key}"
    return f"{text} ({row.key_length * 8} bits)" if bits else text
