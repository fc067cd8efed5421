"""`vnic wire`: a faulty wire on demand.

Law: words to messages and messages to text. Percentages, times and rates are written as tc-netem(8) takes
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from vnic.cli import values
from vnic.cli.grammar import ADAPTERS, Choice, Found, Object, Value, Verb, Vocabulary, Word
from vnic.cli.render import paint
from vnic.cli.session import Session
from vnic.cli.words import UsageError, Words
from vnic.control.interface import (
    AdapterState,
    AimWord,
    ClearWireFaults,
    DoWireFault,
    ListAdapters,
    SetWireFaults,
    WireDirectionWord,
    WireFaultState,
)

_MAX_PACKETS = 65_536
_MAX_SEED = (1 << 63) - 1
_MAX_DELAY_MS = 60_000
_MAX_RATE = 10**12
_NETEM_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class _Reorder:
    """`P%/N`: how many frames, and how many later ones pass each; N is 1 if it is left out."""

    usage: str = "PERCENT[/PACKETS]"

    def take(self, words: Words, field: str) -> object:
        chance, slash, packets = words.take(field, self.usage, ("5%/8",)).partition("/")
        count = values.integer(1, _MAX_PACKETS, "packets")(packets, field) if slash else 1
        return values.percent(chance, field), count


@dataclass(frozen=True, slots=True)
class _Hold:
    """A number of packets, if one follows; 0 is until `release`."""

    usage: str = "[ PACKETS ]"

    def take(self, words: Words, field: str) -> object:
        if not words.more() or values.c_integer(words.peek()) is None:
            return 0
        return values.integer(1, _MAX_PACKETS, "packets")(words.take(field, "PACKETS"), field)


_PERCENT = Value("PERCENT", values.percent)
_TIME = Value("TIME", values.milliseconds(_MAX_DELAY_MS))
_KNOWN = Word("name", Value("ADAPTER", values.text, (ADAPTERS,)), required=True)
_MAYBE = Word("name", Value("ADAPTER", values.text, (ADAPTERS,)))
_DIR = Word(
    "dir", Choice(("tx", "rx")), "tx: from the card to the wire; rx: from the wire to the card (both)"
)

_SET = Vocabulary(
    _DIR,
    Word("loss", _PERCENT, "frames that are lost, such as 1%"),
    Word("duplicate", _PERCENT, "frames that come twice"),
    Word("corrupt", _PERCENT, "frames of which one bit is wrong, anywhere behind the Ethernet header"),
    Word(
        "reorder",
        _Reorder(),
        "frames that so many later ones pass, such as 5%/8; they go on after a second at the latest",
    ),
    Word("delay", _TIME, "how long a frame is on its way, such as 2ms, 500us, 1.5s"),
    Word("jitter", _TIME, "the delay is spread evenly over this much less and this much more"),
    Word("rate", Value("RATE", values.rate(_MAX_RATE)), "such as 100mbit; 0 is no limit"),
    Word(
        "limit",
        Value("PACKETS", values.integer(1, _MAX_PACKETS, "packets")),
        f"frames that may wait ({_NETEM_LIMIT}); more are dropped as fault_queue_full",
    ),
    Word(
        "seed",
        Value("NUMBER", values.integer(0, _MAX_SEED)),
        "where the generator begins: the same seed and frames give the same faults",
    ),
)
_ACTIONS: dict[str, AimWord] = {
    "flip-icv": "flip_icv",
    "replay": "replay",
    "hold": "hold",
    "release": "release",
    "truncate": "truncate",
    "stall": "stall",
    "fill": "fill",
}
_ACTION = "{ flip-icv BIT | replay COUNT | hold [ PACKETS ] | truncate BYTES | stall | release | fill }"
_WITHOUT_VALUE = ("release", "stall", "fill")
_DO = Vocabulary(
    Word("dir", Choice(("tx", "rx")), "which way (tx; stall and release: both)"),
    Word(
        "flip-icv",
        Value("BIT", values.integer(0, 127)),
        "flip a bit of the ICV of the next IPsec packet; 0 is the first on the wire",
        symbol=_ACTION,
    ),
    Word(
        "replay",
        Value("COUNT", values.integer(1, 1000, "times")),
        "send the last IPsec packet again, so often; if none was seen yet, the next",
        symbol=_ACTION,
    ),
    Word(
        "hold",
        _Hold(),
        "hold the next IPsec packet back, until so many packets have passed it or `release`",
        symbol=_ACTION,
    ),
    Word(
        "truncate",
        Value("BYTES", values.integer(14, 65_535, "bytes")),
        "cut the next longer IPsec packet to so many bytes, Ethernet header included",
        symbol=_ACTION,
    ),
    Word("stall", summary="let nothing move until `release`", symbol=_ACTION),
    Word("release", summary="end a stall, and let go what is held", symbol=_ACTION),
    Word(
        "fill",
        summary="fill the NIC's table with SAs for nobody (dst 240.0.0.1, never on the wire) until `clear`",
        symbol=_ACTION,
    ),
)


def _direction(found: Found) -> WireDirectionWord | None:
    return cast("WireDirectionWord | None", found.get("dir", str))


def change(session: Session, found: Found) -> None:
    """Make the wire faulty."""
    if not [word for word in found if word not in ("name", "dir")]:
        raise UsageError("says nothing to change", field="set", allowed=", ".join(_SET.names()))
    chance, packets = found.get("reorder", tuple) or (None, None)
    reply = session.ask(
        SetWireFaults(
            name=found.need("name", str),
            direction=_direction(found),
            loss=found.get("loss", float),
            duplicate=found.get("duplicate", float),
            corrupt=found.get("corrupt", float),
            reorder=chance,
            reorder_packets=packets,
            delay_ms=found.get("delay", float),
            jitter_ms=found.get("jitter", float),
            rate=found.get("rate", int),
            limit=found.get("limit", int),
            seed=found.get("seed", int),
        )
    )
    _answered(session, reply.adapter)


def do(session: Session, found: Found) -> None:
    """Do one thing to the wire."""
    said = [word for word in found if word in _ACTIONS]
    if len(said) != 1:
        raise UsageError(
            f"says {' and '.join(said) or 'nothing to do'}",
            field="do",
            allowed="one of " + ", ".join(_ACTIONS),
        )
    (word,) = said
    number = None if word in _WITHOUT_VALUE else found.need(word, int)
    if word == "hold" and not number:
        number = None
    request = DoWireFault(
        name=found.need("name", str), direction=_direction(found), action=_ACTIONS[word], value=number
    )
    _answered(session, session.ask(request).adapter)


def clear(session: Session, found: Found) -> None:
    """Make the wire a good one again."""
    request = ClearWireFaults(name=found.need("name", str), direction=_direction(found))
    _answered(session, session.ask(request).adapter)


def _answered(session: Session, state: AdapterState) -> None:
    session.answer(state.wire_faults, lambda: _text(session, [state]) if session.options.details else "")


def show(session: Session, found: Found) -> None:
    """Show the faults of all wires, or of one."""
    states = session.ask(ListAdapters(name=found.get("name", str))).adapters
    session.answer(
        [
            {"adapter": state.name, "wire_faults": state.wire_faults, "filler_sas": state.filler_sas}
            for state in states
        ],
        lambda: _text(session, states),
    )


def _text(session: Session, states: list[AdapterState]) -> str:
    return "".join(
        "\n    ".join([f"{paint(state.name, 'name', session)}:", *_directions(state)]) + "\n"
        for state in states
    )


def _directions(state: AdapterState) -> list[str]:
    lines = [f"sa table filled with {state.filler_sas}"] if state.filler_sas else []
    if not state.wire_faults:
        return lines or ["no faults"]
    for one in state.wire_faults:
        lines.append(f"{one.direction} {in_words(one)}" if one.in_force else f"{one.direction} no faults")
        done = " ".join(f"{kind} {count}" for kind, count in one.counts.items() if count)
        if done:
            lines.append(f"{one.direction} done: {done}")
    return lines


def fault_lines(state: AdapterState) -> list[str]:
    """Write what is in force on the wire of an adapter, a line for each direction that has faults."""
    lines = [f"faults {one.direction} {in_words(one)}" for one in state.wire_faults if one.in_force]
    return [*lines, *([f"faults sa table filled with {state.filler_sas}"] if state.filler_sas else [])]


def in_words(one: WireFaultState) -> str:
    """Write what is in force in one direction, in the words that ask for it."""
    words = [
        f"{name} {percent:g}%"
        for name, percent in (("loss", one.loss), ("duplicate", one.duplicate), ("corrupt", one.corrupt))
        if percent
    ]
    if one.reorder:
        words.append(f"reorder {one.reorder:g}%/{one.reorder_packets}")
    words += [
        f"{name} {time:g}ms" for name, time in (("delay", one.delay_ms), ("jitter", one.jitter_ms)) if time
    ]
    if one.rate:
        words.append(f"rate {values.rate_text(one.rate)}")
    words.append(f"limit {one.limit} seed {one.seed}")
    if one.stalled:
        words.append("stalled")
    words += [f"armed: {', '.join(one.armed)}"] if one.armed else []
    words += [f"waiting {one.waiting}"] if one.waiting else []
    return " ".join(words)


WIRE = Object(
    "wire",
    "a faulty wire on demand",
    default="show",
    notes=(
        "A frame suffers one of loss, duplication, corruption and reordering at most, looked for in that\n"
        "order; rate and delay come after. A packet that `do` aims at suffers nothing else. What `set` does\n"
        "not name stays as it is; 0 takes a fault away. Nothing is done to any frame unless it was asked for."
    ),
    verbs=(
        Verb(
            "set",
            "make the wire lose, double, damage, reorder, delay or limit frames",
            change,
            _SET,
            positional=(_KNOWN,),
            examples=(
                "vnic wire set left loss 1% duplicate 0.1% reorder 5%/8 corrupt 0.01% seed 7",
                "vnic wire set left dir rx delay 2ms jitter 1ms rate 100mbit",
                "vnic wire set left loss 0",
            ),
        ),
        Verb(
            "do",
            "do one thing: to the next IPsec packet, or to all that moves",
            do,
            _DO,
            positional=(_KNOWN,),
            examples=(
                "vnic wire do left flip-icv 0",
                "vnic wire do left replay 3",
                "vnic wire do left dir rx hold 2000",
                "vnic wire do left truncate 60",
                "vnic wire do left stall",
                "vnic wire do left release",
                "vnic wire do left fill",
            ),
        ),
        Verb("show", "show what is in force, and what was done", show, positional=(_MAYBE,)),
        Verb(
            "clear",
            "make the wire a good one again: what is on its way arrives, a filled table empties",
            clear,
            Vocabulary(_DIR),
            positional=(_KNOWN,),
        ),
    ),
)
