"""`vnic caps`: what the NIC of an adapter can do, in the manner of `ethtool -k`.

Law: messages to text. A feature that the hardware lacks is `off [fixed]`; any other that is off says why, and
one that is on what it still waits for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vnic.cli import values
from vnic.cli.grammar import ADAPTERS, Found, Object, Value, Verb, Word
from vnic.cli.render import paint, table
from vnic.control.interface import AdapterCapabilities, AlgorithmCapability, Feature, GetCapabilities

if TYPE_CHECKING:
    from vnic.cli.session import Session

_V1 = "v1."
_IN_TABLE = ("encryptions.", "integrities.")
"""Features that are rows of the table of algorithms."""


def show(session: Session, found: Found) -> None:
    """Show the capabilities; algorithms that are missing only with -d."""
    capabilities = session.ask(GetCapabilities(adapter=found.get("name", str))).adapters
    session.answer(
        capabilities, lambda: "\n".join(_text(session, one, session.options.details) for one in capabilities)
    )


def _text(session: Session, one: AdapterCapabilities, details: bool) -> str:
    lines = [f"Capabilities of {paint(one.adapter, 'name', session)} (engine {one.engine}):"]
    capacity = one.hardware.sa_offload_capacity
    lines.append(
        f"sa_capacity: {capacity}, {one.sas_offloaded} used, {max(capacity - one.sas_offloaded, 0)} free"
    )
    v1 = [feature for feature in one.features if feature.name.startswith(_V1)]
    rest = [feature for feature in one.features if feature not in v1]
    lines += [_feature(session, feature) for feature in rest if not feature.name.startswith(_IN_TABLE)]
    lines += [_feature(session, feature) for feature in v1]
    lines += [f"tap {name}: {is_on}" for name, is_on in one.tap_features.items()]
    lines += [f"wire {name}: {is_on}" for name, is_on in one.wire_features.items()]
    state = {feature.name: feature for feature in one.features}
    rows = [
        _row(row, state.get(f"{kind}.{row.name}"))
        for kind, rows in (("encryptions", one.encryptions), ("integrities", one.integrities))
        for row in rows
        if row.supported or details
    ]
    head = ["ALGORITHM", "NOW", "KERNEL-NAME", "KEY-BITS", "ICV-BITS", "SOURCE", "REMARK"]
    return "\n".join(lines) + "\n" + table(head, rows, session, right=frozenset({3}))


def _feature(session: Session, feature: Feature) -> str:
    if feature.enabled:
        waits = f" ({feature.reason})" if feature.reason else ""
        return f"{feature.name}: {paint('on', 'good', session)}{waits}"
    if not feature.hardware:
        return f"{feature.name}: off [fixed]"
    return f"{feature.name}: off ({feature.reason})"


def _row(row: AlgorithmCapability, feature: Feature | None) -> list[object]:
    remark = "not supported"
    if row.supported:
        remarks = [f"weak: {row.weak}"] if row.weak else []
        if feature is not None and feature.reason:
            remarks.insert(0, feature.reason)
        remark = "; ".join(remarks)
    return [
        row.name,
        "on" if row.supported and (feature is None or feature.enabled) else "off",
        row.kernel_name,
        row.key_length,
        ",".join(map(str, row.icv_lengths)) or "-",
        row.source,
        remark,
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
    notes="`off [fixed]` the hardware cannot; any other `off` says what keeps it off. The names are those of "
    "`vnic adapter add … caps` and of [adapter.capabilities]. -j has the NDIS structures, of the "
    "hardware and of the current configuration.",
)
