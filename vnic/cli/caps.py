"""`vnic caps`: what the NIC of an adapter can do, in the manner of `ethtool -k`.

Law: messages to text.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from vnic.cli import values
from vnic.cli.grammar import ADAPTERS, Found, Object, Value, Verb, Word
from vnic.cli.render import paint, table
from vnic.control.interface import AdapterCapabilities, AlgorithmCapability, GetCapabilities

if TYPE_CHECKING:
    from vnic.cli.session import Session


def show(session: Session, found: Found) -> None:
    """Show the capabilities; algorithms that are missing only with -d."""
    capabilities = session.ask(GetCapabilities(adapter=found.get("name", str))).adapters
    session.answer(
        capabilities, lambda: "\n".join(_text(session, one, session.options.details) for one in capabilities)
    )


def _text(session: Session, one: AdapterCapabilities, details: bool) -> str:
    lines = [f"Capabilities of {paint(one.adapter, 'name', session)} (engine {one.engine}):"]
    for member in fields(one.ndis):
        value = getattr(one.ndis, member.name)
        if member.name.endswith("_algorithms"):
            text = f"{value:#x}"
        elif isinstance(value, bool):
            text = paint("on", "good", session) if value else "off"
        else:
            text = str(value)
        lines.append(f"{member.name.replace('_', '-')}: {text}")
    lines += [f"tap {name}: {is_on}" for name, is_on in one.tap_features.items()]
    lines += [f"wire {name}: {is_on}" for name, is_on in one.wire_features.items()]
    head = ["ALGORITHM", "KERNEL-NAME", "KEY-BITS", "ICV-BITS", "SOURCE", "REMARK"]
    rows = [_row(row) for row in (*one.encryptions, *one.integrities) if row.supported or details]
    return "\n".join(lines) + "\n" + table(head, rows, session, right=frozenset({2}))


def _row(row: AlgorithmCapability) -> list[object]:
    remark = f"weak: {row.weak}" if row.weak else ""
    return [
        row.name,
        row.kernel_name,
        row.key_length,
        ",".join(map(str, row.icv_lengths)) or "-",
        row.source,
        remark if row.supported else "not supported",
    ]


CAPS = Object(
    "caps",
    "what the NIC can do",
    default="show",
    bare=True,
    verbs=(
        Verb(
            "show",
            "show the capabilities of all adapters, or of one",
            show,
            positional=(Word("name", Value("ADAPTER", values.text, (ADAPTERS,))),),
        ),
    ),
)
