"""`vnic mtu`: how large packets may be.

Law: messages to tables.
"""

from __future__ import annotations

from vnic.cli import values
from vnic.cli.grammar import ADAPTERS, Found, Object, Value, Verb, Word
from vnic.cli.render import paint, table
from vnic.cli.selector import selector_text
from vnic.cli.session import Session
from vnic.control.interface import AdapterMtu, GetMtus


def show(session: Session, found: Found) -> None:
    """Show MTU and overhead of every outbound policy and SA."""
    adapters = session.ask(GetMtus(adapter=found.get("name", str))).adapters
    session.answer(adapters, lambda: "".join(_text(session, one) for one in adapters))


def _text(session: Session, one: AdapterMtu) -> str:
    text = f"{paint(one.adapter, 'name', session)} mtu {one.mtu} wire {one.wire_mtu}\n"
    if one.policies:
        text += table(
            ["POLICY", "SELECTOR", "OVERHEAD", "MTU"],
            [[row.index, selector_text(row.selector), row.overhead, row.mtu] for row in one.policies],
            session,
            right=frozenset({0, 2, 3}),
        )
    if one.sas:
        text += table(
            ["SA", "DST", "MODE", "PATH-MTU", "KNOWN-FOR", "OVERHEAD", "MTU"],
            [
                [
                    f"{row.sa.proto} {row.sa.spi:#010x}",
                    row.sa.dst,
                    row.mode or "either",
                    row.path_mtu,
                    "-" if row.path_known_s is None else f"{row.path_known_s:.0f}s",
                    row.overhead,
                    row.mtu,
                ]
                for row in one.sas
            ],
            session,
            right=frozenset({3, 4, 5, 6}),
        )
    return text


MTU = Object(
    "mtu",
    "how large packets may be",
    default="show",
    bare=True,
    verbs=(
        Verb(
            "show",
            "show MTU and overhead of every outbound policy and SA, of all adapters or of one",
            show,
            positional=(Word("name", Value("ADAPTER", values.text, (ADAPTERS,))),),
            examples=("vnic mtu", "vnic mtu show left", "vnic -j mtu | jq '.[].sas[].path_mtu'"),
        ),
    ),
)
