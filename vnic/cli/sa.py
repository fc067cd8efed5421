"""`vnic sa`: security associations in our own, shorter words.

Law: every word of `vnic xfrm state` works here too; what is added is only shorter.
"""

from __future__ import annotations

import os
from dataclasses import replace

from vnic.cli import associations as do
from vnic.cli import values
from vnic.cli.associations import (
    DEV,
    DIR,
    DST,
    FLAGS,
    MODE,
    OFFLOAD,
    PROTOCOL,
    REQID,
    SEL,
    SPI,
    SRC,
    adapter_of,
)
from vnic.cli.grammar import FILES, Choice, Found, Group, Object, Value, Verb, Vocabulary, Word
from vnic.cli.protection import SHORT_WORDS, XFRM_WORDS
from vnic.cli.session import Session
from vnic.cli.words import UsageError
from vnic.control.interface import ExportKeys
from vnic.ipsec.lifetime import MAX_GRACE_S

_U64 = values.integer(0, 0xFFFFFFFFFFFFFFFF)
_SEQ = Value("SEQ", values.u32)

_WAY = (
    Word("in", summary="inbound", symbol="[ in | out ]"),
    Word("out", summary="outbound", symbol="[ in | out ]"),
)
_PROTOCOLS = (
    Word("esp", summary="proto esp", symbol="{ esp | ah }"),
    Word("ah", summary="proto ah", symbol="{ esp | ah }"),
)
_MODES = (
    Word("transport", summary="mode transport (when none is said)", symbol="[ transport | tunnel ]"),
    Word("tunnel", summary="mode tunnel", symbol="[ transport | tunnel ]"),
)
_LONG_PROTO = Word("proto", PROTOCOL, "the same as esp, ah")
_LONG_MODE = Word("mode", MODE, "the same as transport, tunnel")
_LONG = tuple(
    replace(word, symbol="…")
    for word in (
        _LONG_PROTO,
        _LONG_MODE,
        *XFRM_WORDS,
        Word("flag", FLAGS, "noecn, decap-dscp, nopmtudisc, align4, esn"),
        Word("replay-seq", _SEQ, "highest number seen (inbound)"),
        Word("replay-oseq", _SEQ, "last number used (outbound)"),
        Word("replay-seq-hi", _SEQ, "its upper half, with esn"),
        Word("replay-oseq-hi", _SEQ, "its upper half, with esn"),
        OFFLOAD,
        DIR,
    )
)
"""The words of `vnic xfrm state`; usage lines write … for them."""

_ADD = Vocabulary(
    DEV,
    *_WAY,
    SRC,
    Word("dst", DST.operand, DST.summary, required=True),
    *_PROTOCOLS,
    Word("spi", SPI.operand, SPI.summary, required=True),
    *_MODES,
    REQID,
    *SHORT_WORDS,
    Word("esn", summary="extended sequence numbers"),
    Word(
        "replay-window",
        Value("PACKETS", values.u32),
        "64 to 65536; 0 is off; 1024 when it is not said",
        aliases=("window",),
    ),
    Word("seq", Value("NUMBER", _U64), "last number used (out) or highest seen (in)"),
    Word("sel", SEL.operand, SEL.summary, aliases=("for",)),
    Word("noecn", summary="leave ECN alone"),
    Word("decap-dscp", summary="copy the outer DSCP to the inner header"),
    Word("nopmtudisc", summary="clear DF on the outer header"),
    do.LIMIT,
    do.TFCPAD,
    *do.OUTER_HEADER,
    *do.ENCAP_WORDS,
    Word(
        "fresh",
        summary="its key never sent anything: it may send though the record of numbers was lost (outbound)",
    ),
    Word("align4", summary="AH over IPv4 padded to 4 bytes, not 8"),
    *_LONG,
    *(word for word in do.NOT_SUPPORTED if word.name != "seq"),
)

_HANDLE = Word("handle", Value("HANDLE", _U64), "the number the NIC gave it")
_MAYBE_PROTOCOLS = tuple(replace(word, symbol="[ esp | ah ]") for word in _PROTOCOLS)
_ONE = (DEV, _HANDLE, SRC, DST, *_MAYBE_PROTOCOLS, _LONG_PROTO, SPI)

_RENEWAL = Vocabulary(
    Word(
        "old",
        Value("SPI", values.spi),
        "SPI of the SA that is replaced",
        symbol="{ old SPI | handle HANDLE }",
    ),
    Word("handle", _HANDLE.operand, "its handle instead", symbol="{ old SPI | handle HANDLE }"),
    Word("dst", DST.operand, "its destination, where several SAs have that SPI"),
    *_MAYBE_PROTOCOLS,
    Word("spi", SPI.operand, "SPI of the new SA", required=True),
    *SHORT_WORDS,
    do.LIMIT,
    *(replace(word, symbol="…") for word in XFRM_WORDS),
)
_PART = Group(_RENEWAL, symbol="RENEWAL")

_FILTER = Vocabulary(
    DEV,
    *_WAY,
    DIR,
    Word("src", Value("PREFIX", values.prefix), "source inside this prefix"),
    Word("dst", Value("PREFIX", values.prefix), "destination inside this prefix"),
    *_MAYBE_PROTOCOLS,
    _LONG_PROTO,
    SPI,
    *_MODES,
    _LONG_MODE,
    REQID,
    Word("esn", summary="with extended sequence numbers"),
)


def export(session: Session, found: Found) -> None:
    """Write the keys for another program into a new file that its owner alone may read."""
    path = os.path.abspath(found.need("file", str))
    reply = session.ask(ExportKeys(adapter=adapter_of(found), format=found.need("format", str)))
    text = "".join(f"{line}\n" for line in reply.lines)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(
            f"the file cannot be made: {error.strerror}",
            field="file",
            value=path,
            allowed="a path where no file is yet",
        ) from None
    except ValueError:
        raise UsageError("no file has such a name", field="file", allowed="a path") from None
    answer = {"file": path, "format": "wireshark", "count": len(reply.lines)}
    session.answer(answer, lambda: f"wrote the keys of {len(reply.lines)} SAs to {path}\n")


SA = Object(
    "sa",
    "security associations, in short words",
    default="show",
    verbs=(
        Verb(
            "add",
            "offload an SA",
            do.add,
            _ADD,
            examples=(
                "vnic sa add dev left out src 192.0.2.1 dst 192.0.2.2 esp spi 0x101 tunnel reqid 1 "
                "aes-gcm-128 key file:left.key",
                "vnic sa add dev left in src 192.0.2.2 dst 192.0.2.1 esp spi 0x201 "
                "aes-cbc-256 key file:enc.key hmac-sha256-128 key file:auth.key esn window 4096",
                "vnic sa add dev left out src 192.0.2.1 dst 192.0.2.2 esp spi 0x102 tunnel reqid 1 "
                "aes-gcm-128 key file:left.key limit time-soft 3000 limit time-hard 3600 "
                "limit byte-soft 900000000 limit byte-hard 1000000000",
                "vnic sa add dev left out src 192.0.2.1 dst 198.51.100.9 esp spi 0x103 tunnel reqid 1 "
                "aes-gcm-128 key file:left.key encap espinudp 4500 4500 0.0.0.0",
                "vnic sa add src 2001:db8::1 dst 2001:db8::2 ah spi 0x301 hmac-sha256-128 key - icv 96",
            ),
        ),
        Verb(
            "update", "put an SA in the place of the one with the same dst, protocol and spi", do.update, _ADD
        ),
        Verb(
            "delete",
            "take an SA off the card",
            do.delete,
            Vocabulary(*_ONE),
            examples=("vnic sa delete dev left handle 0x1", "vnic sa delete dst 192.0.2.2 esp spi 0x101"),
        ),
        Verb(
            "rebase",
            "set the upper half of an extended sequence number",
            do.rebase,
            Vocabulary(*_ONE, Word("seq-hi", _SEQ, "the upper 32 bits", required=True)),
            examples=("vnic sa rebase dev left handle 0x1 seq-hi 1",),
        ),
        Verb(
            "rekey",
            "put new SAs in the place of old ones, without a packet lost",
            do.rekey,
            Vocabulary(
                DEV,
                Word("in", _PART, "an inbound SA: the old one goes when the grace is over", repeated=True),
                Word(
                    "out",
                    _PART,
                    "an outbound SA: the new one seals from now on, the old one goes",
                    repeated=True,
                ),
                Word(
                    "grace",
                    Value("SECONDS", values.integer(0, MAX_GRACE_S)),
                    "how long old inbound SAs go on: 10 when it is not said; with in alone until deleted",
                ),
            ),
            examples=(
                "vnic sa rekey dev right in old 0x101 spi 0x111 aes-gcm-128 key file:left.key",
                "vnic sa rekey dev left in old 0x201 spi 0x211 aes-gcm-128 key file:next.key "
                "out old 0x101 spi 0x111 aes-gcm-128 key file:left.key grace 30",
            ),
        ),
        Verb(
            "request-delete",
            "have the NIC ask for the deletion of an inbound SA (SaDeleteReq)",
            do.request_deletion,
            Vocabulary(*_ONE),
            examples=("vnic sa request-delete dev left handle 0x2",),
        ),
        Verb("get", "show one SA", do.get, Vocabulary(*_ONE)),
        Verb("show", "show the SAs that fit", do.show, _FILTER, aliases=("list", "lst")),
        Verb("deleteall", "delete the SAs that fit", do.delete_all, _FILTER, aliases=("delall",)),
        Verb(
            "flush",
            "delete all SAs",
            do.flush,
            Vocabulary(DEV, *_MAYBE_PROTOCOLS, Word("proto", PROTOCOL, "of this protocol only")),
        ),
        Verb("count", "count the SAs", do.count, Vocabulary(DEV)),
        Verb(
            "export",
            "write the keys for Wireshark and tshark (esp_sa) to a new file, mode 0600",
            export,
            Vocabulary(DEV),
            positional=(
                Word("format", Choice(("wireshark",)), required=True),
                Word("file", Value("FILE", values.text, (FILES,)), required=True),
            ),
            examples=("vnic sa export wireshark /root/esp_sa dev left",),
        ),
    ),
    notes="Every word of `vnic xfrm state` is understood as well. Keys: file:PATH, - (a line of standard "
    "input), 0x… or text.",
)
