"""`vnic xfrm state`: the grammar of `ip xfrm state`, so that a line for it works here.

Law: the words are those of iproute2, and those that an SA is shown with though `ip` has none; where the card
cannot follow one, that word is refused by its name.

Source: ip-xfrm(8); the order in which `ip` takes its words apart.
"""

from __future__ import annotations

from vnic.cli import associations as do
from vnic.cli import values
from vnic.cli.associations import DEV, DIR, DST, FLAGS, MODE, OFFLOAD, PROTOCOL, REQID, SEL, SPI, SRC
from vnic.cli.grammar import Object, Refusal, Value, Verb, Vocabulary, Word
from vnic.cli.protection import XFRM_WORDS

_PROTO = Word("proto", PROTOCOL, "ESP or AH", required=True)
_MODE = Word("mode", MODE, "transport when it is not said")
_SEQ = Value("SEQ", values.u32)

_ADD = Vocabulary(
    SRC,
    Word("dst", DST.operand, DST.summary, required=True),
    _PROTO,
    Word("spi", SPI.operand, SPI.summary, required=True),
    *XFRM_WORDS,
    _MODE,
    REQID,
    Word(
        "replay-window",
        Value("SIZE", values.u32),
        "packets, 64 to 65536; 0 is off; 1024 when it is not said",
    ),
    Word("replay-seq", _SEQ, "highest number seen (inbound)"),
    Word("replay-oseq", _SEQ, "last number used (outbound)"),
    Word("replay-seq-hi", _SEQ, "its upper half, with flag esn"),
    Word("replay-oseq-hi", _SEQ, "its upper half, with flag esn"),
    Word("flag", FLAGS, "noecn, decap-dscp, nopmtudisc, align4, esn"),
    SEL,
    do.LIMIT,
    do.TFCPAD,
    *do.OUTER_HEADER,
    *do.ENCAP_WORDS,
    OFFLOAD,
    DEV,
    DIR,
    *do.NOT_SUPPORTED,
)

_MARK = Word("mark", Refusal("a card sees no packet marks", "src, dst, proto, spi"))

_ID = Vocabulary(SRC, DST, Word("proto", PROTOCOL, "ESP or AH"), SPI, DEV, _MARK)

_FILTER = Vocabulary(
    Word("nokeys", summary="do not show keys (they are hidden anyway)"),
    Word("src", Value("PREFIX", values.prefix), "source inside this prefix"),
    Word("dst", Value("PREFIX", values.prefix), "destination inside this prefix"),
    Word("proto", PROTOCOL, "ESP or AH"),
    SPI,
    _MODE,
    REQID,
    Word("flag", FLAGS, "any of these flags"),
    DEV,
    DIR,
    _MARK,
)

_FLUSHED = Word("proto", PROTOCOL, "of this protocol only")

STATE = Object(
    "state",
    "security associations, in the words of `ip xfrm state`",
    aliases=("sa",),
    default="list",
    verbs=(
        Verb(
            "add",
            "offload an SA",
            do.add,
            _ADD,
            examples=(
                "vnic xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x101 mode tunnel reqid 1 "
                "aead 'rfc4106(gcm(aes))' file:/etc/vnic/left.key 128",
                "vnic xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x102 "
                "enc 'cbc(aes)' file:enc.key auth-trunc 'hmac(sha256)' file:auth.key 128 "
                "offload packet dev left dir out",
            ),
        ),
        Verb("update", "put an SA in the place of the one with the same dst, proto and spi", do.update, _ADD),
        Verb("delete", "take an SA off the card", do.delete, _ID),
        Verb("deleteall", "delete the SAs that fit", do.delete_all, _FILTER, aliases=("delall",)),
        Verb("get", "show one SA", do.get, _ID),
        Verb("list", "show the SAs that fit", do.show, _FILTER, aliases=("show", "lst")),
        Verb("flush", "delete all SAs", do.flush, Vocabulary(_FLUSHED, DEV)),
        Verb("count", "count the SAs", do.count, Vocabulary(DEV)),
    ),
    refused={"allocspi": "SPIs are given by the key manager; choose one and `add` the SA"},
    notes="Keys: file:PATH, - (a line of standard input), 0x… or text. The algorithm's row follows from the "
    "length of the key.",
)
