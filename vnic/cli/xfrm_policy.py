"""`vnic xfrm policy`: the grammar of `ip xfrm policy`, so that a line for it works here.

Law: the words are those of iproute2; where a card cannot follow one, that word is refused by its name.

Source: ip-xfrm(8).
"""

from __future__ import annotations

from vnic.cli import policies as do
from vnic.cli.associations import DIRECTION
from vnic.cli.grammar import Choice, Group, Object, Refusal, Verb, Vocabulary, Word
from vnic.cli.policies import DEFAULT_WORDS, DEV, INDEX, NOT_SUPPORTED, OFFLOAD, PRIORITY, TEMPLATE
from vnic.cli.selector import POLICY_WORDS

_DIR = Word("dir", DIRECTION, "which way")
_PTYPE = Word(
    "ptype",
    Choice(("main",), {"sub": "there is one table of policies; `priority` orders it"}),
    "main, always",
)
_ACTION = Word("action", Choice(("allow", "block")), "allow when it is not said")

_ADD = Vocabulary(
    *POLICY_WORDS,
    _DIR,
    _PTYPE,
    _ACTION,
    PRIORITY,
    Word("index", Refusal("the daemon numbers the policies", "priority PRIORITY orders them")),
    Word("tmpl", Group(TEMPLATE, symbol="TMPL"), "the protection wanted, innermost first", repeated=True),
    OFFLOAD,
    DEV,
    *NOT_SUPPORTED,
)

_ONE = Vocabulary(*POLICY_WORDS, INDEX, _DIR, _PTYPE, OFFLOAD, DEV, *NOT_SUPPORTED)

_FILTER = Vocabulary(
    *(word for word in NOT_SUPPORTED if word.name != "nosock"),
    Word("nosock", summary="leave out socket policies (there are none)"),
    *POLICY_WORDS,
    _DIR,
    INDEX,
    _PTYPE,
    _ACTION,
    PRIORITY,
    OFFLOAD,
    DEV,
)

POLICY = Object(
    "policy",
    "security policies, in the words of `ip xfrm policy`",
    default="list",
    verbs=(
        Verb(
            "add",
            "put a policy into the SPD",
            do.add,
            _ADD,
            examples=(
                "vnic xfrm policy add src 10.1.0.0/24 dst 10.2.0.0/24 dir out priority 10 "
                "tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 1 mode tunnel",
                "vnic xfrm policy add src 10.1.0.0/24 dst 10.2.0.9 proto tcp dport 22 dir out action block "
                "offload packet dev left",
            ),
        ),
        Verb("update", "put a policy in the place of the one with the same selector", do.update, _ADD),
        Verb("delete", "take a policy out of the SPD", do.delete, _ONE),
        Verb("deleteall", "delete the policies that fit", do.delete_all, _FILTER, aliases=("delall",)),
        Verb("get", "show one policy", do.get, _ONE),
        Verb("list", "show the policies that fit", do.show, _FILTER, aliases=("show", "lst")),
        Verb("flush", "delete all policies", do.flush, Vocabulary(_PTYPE, DEV)),
        Verb("count", "count the policies", do.count, Vocabulary(DEV)),
        Verb(
            "setdefault",
            "say what happens to packets that match no policy",
            do.set_default,
            Vocabulary(*DEFAULT_WORDS),
            examples=("vnic xfrm policy setdefault in block out block dev left",),
        ),
        Verb(
            "getdefault", "show what happens to packets that match no policy", do.get_default, Vocabulary(DEV)
        ),
    ),
    refused={"set": "there is no hash table whose thresholds could be set"},
)
