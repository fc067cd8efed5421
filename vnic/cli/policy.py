"""`vnic policy`: security policies in our own, shorter words.

Law: every word of `vnic xfrm policy` works here too; what is added is only shorter.
"""

from __future__ import annotations

from dataclasses import replace

from vnic.cli import policies as do
from vnic.cli import values
from vnic.cli.associations import DIRECTION
from vnic.cli.grammar import Choice, Group, Object, Value, Verb, Vocabulary, Word
from vnic.cli.policies import (
    DEFAULT_WORDS,
    DEV,
    INDEX,
    NOT_SUPPORTED,
    OFFLOAD,
    PRIORITY,
    PROTECTION,
    TEMPLATE,
)
from vnic.cli.selector import POLICY_WORDS, UPPER_WORDS

_WAY = (
    Word("in", summary="what comes in", symbol="{ in | out }"),
    Word("out", summary="what goes out", symbol="{ in | out }"),
)
_LONG = tuple(
    replace(word, symbol="…")
    for word in (
        Word("dir", DIRECTION, "the same as in, out"),
        Word("action", Choice(("allow", "block")), "allow is bypass without tmpl; block is discard"),
        Word("ptype", Choice(("main",)), "main, always"),
        OFFLOAD,
    )
)
"""The words of `vnic xfrm policy`; usage lines write … for them."""

_ADD = Vocabulary(
    DEV,
    *_WAY,
    *POLICY_WORDS,
    Word(
        "protect",
        Group(
            PROTECTION,
            symbol="{ esp | ah } [ tunnel SRC DST | transport ] [ reqid REQID ] [ spi SPI ]",
        ),
        "what leaves or comes in must be protected so; twice for two layers, innermost first",
        repeated=True,
    ),
    Word("bypass", summary="pass in clear", symbol="[ bypass | discard ]"),
    Word("discard", summary="drop", symbol="[ bypass | discard ]"),
    PRIORITY,
    *_LONG,
    Word("tmpl", Group(TEMPLATE, symbol="TMPL"), "as in `vnic xfrm policy`", repeated=True, symbol="…"),
    *NOT_SUPPORTED,
)
_ONE = Vocabulary(DEV, *_WAY, *POLICY_WORDS, INDEX, *_LONG)
_MAYBE_WAY = tuple(replace(word, symbol="[ in | out ]") for word in _WAY)
_PORTS = tuple(word for word in UPPER_WORDS if word.name in ("sport", "dport", "type", "code"))
_FILTER = Vocabulary(DEV, *_MAYBE_WAY, *POLICY_WORDS, INDEX, PRIORITY, *_LONG)

POLICY = Object(
    "policy",
    "security policies, in short words",
    default="show",
    verbs=(
        Verb(
            "add",
            "put a policy into the SPD",
            do.add,
            _ADD,
            examples=(
                "vnic policy add dev left out src 10.1.0.0/24 dst 10.2.0.0/24 "
                "protect esp tunnel 192.0.2.1 192.0.2.2 reqid 1",
                "vnic policy add in src 10.2.0.0/24 dst 10.1.0.0/24 "
                "protect esp tunnel 192.0.2.2 192.0.2.1 reqid 1 priority 10",
                "vnic policy add out src 0.0.0.0/0 dst 0.0.0.0/0 proto udp dport 53 bypass",
            ),
        ),
        Verb("update", "put a policy in the place of the one with the same selector", do.update, _ADD),
        Verb(
            "delete",
            "take a policy out of the SPD",
            do.delete,
            _ONE,
            examples=("vnic policy delete dev left out index 3",),
        ),
        Verb("get", "show one policy", do.get, _ONE),
        Verb("show", "show the policies that fit", do.show, _FILTER, aliases=("list", "lst")),
        Verb(
            "test",
            "say what would become of a packet, by which policy and SA; nothing is sent",
            do.test,
            Vocabulary(*_MAYBE_WAY, *_PORTS, DEV, *_LONG[:1]),
            positional=(
                Word("src", Value("SRC", values.address), "source address", required=True),
                Word("dst", Value("DST", values.address), "destination address", required=True),
                Word(
                    "proto",
                    Value("PROTO", values.upper_protocol, tuple(values.PROTOCOLS)),
                    "protocol inside IP",
                    required=True,
                ),
            ),
            examples=(
                "vnic policy test 10.1.0.5 10.2.0.9 tcp dport 443 dev left",
                "vnic policy test 10.2.0.9 10.1.0.5 icmp type 8 code 0 in dev left",
            ),
        ),
        Verb("deleteall", "delete the policies that fit", do.delete_all, _FILTER, aliases=("delall",)),
        Verb("flush", "delete all policies", do.flush, Vocabulary(DEV, *_MAYBE_WAY, _LONG[0])),
        Verb("count", "count the policies", do.count, Vocabulary(DEV)),
        Verb(
            "setdefault",
            "say what happens to packets that match no policy",
            do.set_default,
            Vocabulary(*DEFAULT_WORDS),
            examples=("vnic policy setdefault in block out block dev left",),
        ),
        Verb(
            "getdefault", "show what happens to packets that match no policy", do.get_default, Vocabulary(DEV)
        ),
    ),
    notes="Every word of `vnic xfrm policy` is understood as well.",
)
