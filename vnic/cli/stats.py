"""`vnic stats`: counters of adapters and why frames ended.

Law: messages to tables; the reasons and their words come from the daemon's table.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from vnic.cli import values
from vnic.cli.association_text import brief_text
from vnic.cli.grammar import ADAPTERS, Found, Object, Value, Verb, Word
from vnic.cli.render import paint, table
from vnic.cli.session import Session
from vnic.control.interface import (
    AdapterStatistics,
    DropReasonText,
    GetStatistics,
    ListDropReasons,
    parameters_of,
)


def show(session: Session, found: Found) -> None:
    """Show counters; reasons that never happened only with -d, SAs only with -s."""
    with_sas = None if session.options.json else session.options.statistics > 0
    statistics = session.ask(GetStatistics(adapter=found.get("name", str), sas=with_sas)).adapters
    session.answer([_document(one) for one in statistics], lambda: _text(session, statistics))


def _document(one: AdapterStatistics) -> dict[str, Any]:
    """The message, and the drops once more as numbers by name, whatever their place."""
    packets: Counter[str] = Counter()
    for drop in one.drops:
        packets[drop.name] += drop.packets
    return {**parameters_of(one), "drop_packets": packets}


def _text(session: Session, statistics: list[AdapterStatistics]) -> str:
    if session.options.brief:
        return _brief(session, statistics)
    every = session.ask(ListDropReasons()).reasons if session.options.details and statistics else []
    return "\n".join(_adapter_text(session, one, every) for one in statistics)


def _adapter_text(session: Session, one: AdapterStatistics, every: list[DropReasonText]) -> str:
    text = paint(one.adapter, "name", session) + "\n"
    text += table(
        ["PORT", "RX-FRAMES", "RX-BYTES", "TX-FRAMES", "TX-BYTES"],
        [
            [name, port.rx_frames, port.rx_bytes, port.tx_frames, port.tx_bytes]
            for name, port in (("tap", one.tap), ("wire", one.wire))
            if port is not None
        ],
        session,
        right=frozenset({1, 2, 3, 4}),
    )
    card = one.card
    text += table(
        ["PACKETS", "TX", "RX"],
        [
            ["offloaded", card.tx_offloaded, card.rx_offloaded],
            ["software", card.tx_software, card.rx_software],
            ["bypassed", card.tx_bypassed, card.rx_bypassed],
            ["passed", card.tx_passed, card.rx_passed],
            ["fragmented", card.tx_fragmented, card.rx_reassembled],
            ["fragments", card.tx_fragments, card.rx_fragments],
            ["dummies", card.tx_dummies, "-"],
            ["joined for transport", card.tx_reassembled, "-"],
            ["prohibited, answered", card.tx_prohibited_answered, card.rx_prohibited_answered],
            ["prohibited, unanswered", card.tx_prohibited_unanswered, card.rx_prohibited_unanswered],
            ["too big, answered", card.tx_too_big_answered, "-"],
            ["too big, unanswered", card.tx_too_big_unanswered, "-"],
            ["path MTU learned", "-", card.rx_path_mtu],
            ["peer moved", "-", card.rx_peer_moved],
            ["NAT keepalives", card.tx_nat_keepalives, "-"],
        ],
        session,
        right=frozenset({1, 2}),
    )
    if one.nbl is not None:
        text += table(
            ["NBL", "NUMBER"],
            [
                ["sends", one.nbl.sends],
                ["sends failed", one.nbl.sends_failed],
                ["indications", one.nbl.indications],
                ["messages refused", one.nbl.messages_refused],
            ],
            session,
            right=frozenset({1}),
        )
    drops = [[drop.name, drop.place, drop.packets, _reason(drop.text, drop.xfrm_stat)] for drop in one.drops]
    counted = {drop.name for drop in one.drops}
    drops += [
        [reason.name, "-", 0, _reason(reason.text, reason.xfrm_stat)]
        for reason in every
        if reason.name not in counted
    ]
    if drops:
        text += table(["DROP", "PLACE", "PACKETS", "REASON"], drops, session, right=frozenset({2}))
    if one.punts:
        text += table(
            ["LEFT BY NATIVE", "FRAMES"],
            [[punt.reason, punt.frames] for punt in one.punts],
            session,
            right=frozenset({1}),
        )
    if one.wire_faults:
        text += table(
            ["WIRE FAULT", "DIR", "FRAMES"],
            [[fault.kind, fault.direction, fault.frames] for fault in one.wire_faults],
            session,
            right=frozenset({2}),
        )
    if one.forwarder_errors or session.options.details:
        text += f"forwarder errors {one.forwarder_errors}\n"
    if session.options.statistics and one.sas:
        text += brief_text(one.sas, session)
    return text


def _reason(text: str, xfrm_stat: str) -> str:
    return f"{text} [{xfrm_stat}]" if xfrm_stat else text


def _brief(session: Session, statistics: list[AdapterStatistics]) -> str:
    if not statistics:
        return ""
    rows = [
        [
            one.adapter,
            one.card.tx_offloaded,
            one.card.rx_offloaded,
            one.card.tx_software,
            one.card.rx_software,
            one.card.tx_bypassed,
            one.card.rx_bypassed,
            sum(drop.packets for drop in one.drops),
            one.sa_count,
        ]
        for one in statistics
    ]
    head = [
        "ADAPTER",
        "TX-OFFLOADED",
        "RX-OFFLOADED",
        "TX-SOFTWARE",
        "RX-SOFTWARE",
        "TX-BYPASSED",
        "RX-BYPASSED",
        "DROPS",
        "SAS",
    ]
    return table(head, rows, session, right=frozenset(range(1, len(head))))


def reasons(session: Session, found: Found) -> None:
    """Show every reason for which a frame is not passed on."""
    every = session.ask(ListDropReasons()).reasons
    session.answer(
        every,
        lambda: table(
            ["DROP", "XFRM-STAT", "REASON"],
            [[one.name, one.xfrm_stat or "-", one.text] for one in every],
            session,
        ),
    )


STATS = Object(
    "stats",
    "counters and drop reasons",
    default="show",
    bare=True,
    verbs=(
        Verb(
            "show",
            "show the counters of all adapters, or of one",
            show,
            positional=(Word("name", Value("ADAPTER", values.text, (ADAPTERS,))),),
            examples=("vnic stats", "vnic -s stats left", "vnic -j stats | jq '.[].drops'"),
        ),
        Verb("reasons", "show every reason for which a frame is not passed on", reasons),
    ),
)
