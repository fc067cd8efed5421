"""`vnic monitor`: what happens, one line or one JSON object per event.

Law: every event is written out at once; Ctrl-C is the ordinary end.
"""

from __future__ import annotations

import typing

from vnic.cli.associations import ADAPTER
from vnic.cli.grammar import Found, Object, Refusal, Verb, Vocabulary, Word
from vnic.cli.hexdump import dump
from vnic.cli.render import paint
from vnic.cli.session import Session
from vnic.control.interface import Event, EventWord, Monitor

KINDS: tuple[str, ...] = typing.get_args(EventWord)

FAMILIES = ("adapter", "sa", "policy", "sequence", "cipher", "daemon")
"""The first part of event names stands for all that begin so."""

ALWAYS = "lost"
"""Shown whatever the filter: who missed events should know it."""

_COLOURS = {
    "lost": "bad",
    "drop": "bad",
    "adapter_failed": "bad",
    "sequence_exhausted": "bad",
    "cipher_limit": "bad",
    "sa_expired": "bad",
}


def wanted(found: Found) -> frozenset[str]:
    """The kinds of event that the words ask for; without a word all."""
    starts = tuple(f"{family}_" for family in FAMILIES if family in found)
    return frozenset(kind for kind in KINDS if kind in found or kind.startswith(starts)) or frozenset(KINDS)


def run(session: Session, found: Found) -> None:
    """Write events until interrupted."""
    _write(session, wanted(found), found.get("dev", str))


def _write(session: Session, kinds: frozenset[str], adapter: str | None) -> None:
    for reply in session.listen(Monitor()):
        event = reply.event
        if event.kind != ALWAYS and (event.kind not in kinds or adapter not in (None, event.adapter)):
            continue
        if session.options.json:
            session.document(event, lines=True)
        else:
            session.out.write(event_text(session, event))
        session.out.flush()


def event_text(session: Session, event: Event) -> str:
    """Write an event on one line; -t puts its time in front, -d the buffer of an indication below."""
    time = f"[{event.time}] " if session.options.timestamp else ""
    kind = paint(event.kind, _COLOURS.get(event.kind, "head"), session)
    text = f"{time}{event.sequence_number} {kind}: {event.text}\n"
    if event.indication is not None and session.options.details:
        text += dump(bytes.fromhex(event.indication.buffer))
    return text


_DEV = Word("dev", ADAPTER, "events of this adapter only")

MONITOR = Object(
    "monitor",
    "events as they happen",
    default="events",
    bare=True,
    verbs=(
        Verb(
            "events",
            "write events until Ctrl-C: all, or those named",
            run,
            Vocabulary(
                *(
                    Word(family, summary=f"all events of the name {family}_…", symbol="EVENT…")
                    for family in FAMILIES
                ),
                *(Word(kind, symbol="EVENT…") for kind in KINDS),
                _DEV,
            ),
            endless=True,
            examples=("vnic monitor", "vnic -t monitor sa drop dev left", "vnic -j monitor sequence"),
        ),
    ),
    notes="`lost` is shown whatever is named: events that this command was too slow for.",
)

_XFRM_KINDS = {
    "SA": ("sa_added", "sa_updated", "sa_deleted"),
    "policy": ("policy_",),
    "expire": ("sa_expir", "sequence_", "cipher_"),
}


def run_xfrm(session: Session, found: Found) -> None:
    """Write the events that `ip xfrm monitor` has names for."""
    starts = tuple(start for word, some in _XFRM_KINDS.items() if word in found for start in some)
    starts = starts or tuple(start for some in _XFRM_KINDS.values() for start in some)
    _write(session, frozenset(kind for kind in KINDS if kind.startswith(starts)), found.get("dev", str))


XFRM_MONITOR = Verb(
    "monitor",
    "events in the words of `ip xfrm monitor`",
    run_xfrm,
    Vocabulary(
        Word("nokeys", summary="no keys (events have none anyway)"),
        Word("all", summary="all of them"),
        Word("SA", summary="SAs"),
        Word("policy", summary="policies"),
        Word("expire", summary="lifetimes, sequence numbers and keys that run out"),
        Word("acquire", Refusal("a card asks for no SA, it drops what has none", "vnic monitor drop")),
        Word("aevent", Refusal("there are no asynchronous events of SAs", "vnic -s xfrm state")),
        Word("report", Refusal("there are no reports", "vnic monitor")),
        Word("all-nsid", Refusal("the daemon tells of all its adapters anyway", "vnic xfrm monitor")),
        _DEV,
    ),
    endless=True,
)
