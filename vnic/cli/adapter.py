"""`vnic adapter`: virtual cards, what their TAP is and what they are plugged into.

Law: words to messages and messages to text.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, cast

from vnic.cli import values
from vnic.cli.grammar import ADAPTERS, FILES, Choice, Found, Group, Object, Value, Verb, Vocabulary, Word
from vnic.cli.render import paint, table
from vnic.cli.session import Session
from vnic.cli.words import UsageError, Words
from vnic.control.interface import (
    AdapterState,
    AddAdapter,
    Capture,
    DeleteAdapter,
    ListAdapters,
    PortStatistics,
    SetAdapter,
    Wire,
)

TAP_OFFLOADS = (
    "tx-checksumming",
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-udp-segmentation",
)
"""Names for completion; the daemon says which ones there are."""

_IFNAME = Value("IFNAME", values.text)
_NETNS = Word("netns", Value("NS", values.text), "network namespace of the device")
_KINDS = ("link", "netdev", "tap", "none")


def _check_wire(found: Found, field: str) -> None:
    kinds = [kind for kind in _KINDS if kind in found]
    if len(kinds) != 1:
        raise UsageError(
            f"says {' and '.join(kinds) or 'no kind'}", field=field, allowed="one of " + ", ".join(_KINDS)
        )
    if "netns" in found and kinds[0] not in ("netdev", "tap"):
        raise UsageError(
            f"wire {kinds[0]} has no device that could be in a namespace",
            field=f"{field} netns",
            allowed="wire netdev IFNAME netns NS, wire tap IFNAME netns NS",
        )


@dataclass(frozen=True, slots=True)
class _CaptureOperand:
    """`wire FILE`, `tap FILE`, or `off` in the place of either."""

    usage: str = "{ { wire | tap } FILE | off }"

    def take(self, words: Words, field: str) -> object:
        place = Choice(("wire", "tap", "off")).take(words, field)
        if place == "off":
            return Capture(place="off")
        file = words.take(field, "FILE or off", ("off", FILES))
        if file == "off":
            return Capture(place="off")
        return Capture(
            place=cast("Literal['wire', 'tap']", place), file=os.path.abspath(values.text(file, field))
        )


_WIRE = Word(
    "wire",
    Group(
        Vocabulary(
            Word("link", Value("ADAPTER", values.text, (ADAPTERS,)), "another adapter of this daemon"),
            Word("netdev", _IFNAME, "an existing device"),
            Word("tap", _IFNAME, "a second TAP"),
            Word("none", summary="nothing yet"),
            _NETNS,
        ),
        _check_wire,
        "{ link ADAPTER | netdev IFNAME [ netns NS ] | tap IFNAME [ netns NS ] | none }",
    ),
    "what the card is plugged into: link, netdev, tap or none",
)
_ADDRESS = Word("address", Value("CIDR", values.interface_address), "address of the TAP", repeated=True)
_MAC = Word("mac", Value("MAC", values.mac), "Ethernet address of the TAP")
_MTU = Word(
    "mtu", Value("{ BYTES | default }", values.mtu, ("default",)), "of the TAP; default follows the wire"
)
_NON_IP = Word("nonip", Choice(("pass", "drop")), "frames that are not IP (ARP passes always)")
_NAME = Word("name", Value("NAME", values.text), required=True)
_KNOWN = Word("name", Value("NAME", values.text, (ADAPTERS,)), required=True)
_MAYBE = Word("name", Value("NAME", values.text, (ADAPTERS,)))

_ADD = Vocabulary(
    Word("tap", _IFNAME, "the device the host sees", required=True),
    _NETNS,
    _ADDRESS,
    _MAC,
    _MTU,
    _NON_IP,
    Word(
        "without",
        Value("FEATURE", values.text, TAP_OFFLOADS),
        "an offload of the TAP not to use, by its ethtool name",
        repeated=True,
    ),
    _WIRE,
)
_SET = Vocabulary(
    _MTU,
    _MAC,
    _ADDRESS,
    Word("up", summary="set the TAP up"),
    Word("down", summary="set the TAP down"),
    _NON_IP,
    Word("capture", _CaptureOperand(), "record one side to a new pcapng file"),
    _WIRE,
)


def _wire(found: Found) -> Wire | None:
    words = found.get("wire", Found)
    if words is None:
        return None
    (kind,) = (kind for kind in _KINDS if kind in words)
    return Wire(
        kind=cast("Literal['link', 'netdev', 'tap', 'none']", kind),
        name=None if kind == "none" else words.need(kind, str),
        netns=words.get("netns", str),
    )


def _non_ip(found: Found) -> Literal["pass", "drop"] | None:
    return cast("Literal['pass', 'drop'] | None", found.get("nonip", str))


def add(session: Session, found: Found) -> None:
    """Make an adapter."""
    reply = session.ask(
        AddAdapter(
            name=found.need("name", str),
            tap=found.need("tap", str),
            netns=found.get("netns", str),
            addresses=found.many("address", str) or None,
            mac=found.get("mac", str),
            mtu=found.get("mtu", int) or None,
            wire=_wire(found),
            non_ip=_non_ip(found),
            features_off=found.many("without", str) or None,
        )
    )
    _answered(session, reply.adapter)


def change(session: Session, found: Found) -> None:
    """Change settings of an adapter, all that are named or none."""
    if not [word for word in found if word != "name"]:
        raise UsageError("says nothing to change", field="set", allowed=", ".join(_SET.names()))
    if "up" in found and "down" in found:
        raise UsageError("says up and down", field="up", allowed="one of the two")
    reply = session.ask(
        SetAdapter(
            name=found.need("name", str),
            mtu=found.get("mtu", int),
            mac=found.get("mac", str),
            addresses=found.many("address", str) or None,
            up=True if "up" in found else False if "down" in found else None,
            wire=_wire(found),
            non_ip=_non_ip(found),
            capture=found.get("capture", Capture),
        )
    )
    _answered(session, reply.adapter)


def _answered(session: Session, state: AdapterState) -> None:
    session.answer(state, lambda: _text(session, [state]) if session.options.details else "")


def delete(session: Session, found: Found) -> None:
    """Remove an adapter."""
    name = found.need("name", str)
    session.ask(DeleteAdapter(name=name))
    session.answer({"deleted": name}, lambda: "")


def show(session: Session, found: Found) -> None:
    """Show the adapters, or one."""
    states = session.ask(ListAdapters(name=found.get("name", str))).adapters
    session.answer(states, lambda: _text(session, states))


def _text(session: Session, states: list[AdapterState]) -> str:
    if session.options.brief:
        return _brief(session, states)
    return "".join(_adapter_text(session, state) for state in states)


def _where(name: str | None, netns: str | None) -> str:
    return f"{name or ''}{f' netns {netns}' if netns else ''}"


def _adapter_text(session: Session, state: AdapterState) -> str:
    options = session.options
    tap, wire = state.tap, state.wire
    colour = "good" if state.state == "running" else "bad"
    reason = f" ({state.reason})" if state.reason else ""
    lines = [
        f"{paint(state.name, 'name', session)}: {paint(state.state, colour, session)}{reason} "
        f"engine {state.engine}",
        f"tap {_where(tap.name, tap.netns)} mac {tap.mac} mtu {tap.mtu}"
        f"{' (default)' if tap.mtu_default else ''} {'up' if tap.up else 'down'}"
        f"{' attached' if tap.attached else ''}",
        *(f"address {address}" for address in tap.addresses),
        f"wire {wire.kind} {_where(wire.name, wire.netns)}".rstrip() + f" mtu {wire.mtu}",
        f"sas {state.sa_count} policies {state.policy_count} default in {state.policy_default_in} "
        f"out {state.policy_default_out} nonip {state.non_ip}",
    ]
    if (capture := state.capture) is not None:
        lost = f" lost {capture.frames_lost}" if capture.frames_lost else ""
        lines.append(
            f"capture {capture.place} {capture.file} {capture.state} frames {capture.frames_written}{lost}"
        )
    if options.statistics or options.details:
        card = state.card
        lines += [
            port_text("tap", state.tap_statistics),
            port_text("wire", state.wire_statistics),
            f"card tx offloaded {card.tx_offloaded} bypassed {card.tx_bypassed} passed {card.tx_passed}",
            f"card rx offloaded {card.rx_offloaded} bypassed {card.rx_bypassed} passed {card.rx_passed}",
        ]
    if options.details:
        lines += [f"feature tap {name}: {is_on}" for name, is_on in tap.features.items()]
        lines += [f"feature wire {name}: {is_on}" for name, is_on in wire.features.items()]
    return "\n    ".join(lines) + "\n"


def port_text(name: str, port: PortStatistics) -> str:
    """Write the counters of one port on a line."""
    rx = f"rx {port.rx_frames} frames {port.rx_bytes} bytes"
    return f"{name} {rx} tx {port.tx_frames} frames {port.tx_bytes} bytes"


def _brief(session: Session, states: list[AdapterState]) -> str:
    if not states:
        return ""
    rows = [
        [
            state.name,
            state.state,
            state.tap.name,
            state.tap.netns or "-",
            state.tap.mtu,
            f"{state.wire.kind} {_where(state.wire.name, state.wire.netns)}".rstrip(),
            state.sa_count,
            state.policy_count,
            " ".join(state.tap.addresses),
        ]
        for state in states
    ]
    head = ["ADAPTER", "STATE", "TAP", "NETNS", "MTU", "WIRE", "SAS", "POLICIES", "ADDRESSES"]
    return table(head, rows, session, right=frozenset({4, 6, 7}))


ADAPTER = Object(
    "adapter",
    "virtual cards",
    default="show",
    verbs=(
        Verb(
            "add",
            "make an adapter: a TAP for the host, a wire behind the card",
            add,
            _ADD,
            positional=(_NAME,),
            examples=(
                "vnic adapter add left tap vnic0 netns red address 10.1.0.1/24 wire none",
                "vnic adapter add right tap vnic0 netns blue address 10.2.0.1/24 wire link left",
                "vnic adapter add uplink tap vnic1 mtu 1400 wire netdev eth1",
            ),
        ),
        Verb("show", "show the adapters, or one", show, positional=(_MAYBE,), aliases=("list", "lst")),
        Verb(
            "set",
            "change settings",
            change,
            _SET,
            positional=(_KNOWN,),
            examples=(
                "vnic adapter set left mtu default nonip drop",
                "vnic adapter set left capture wire /tmp/left.pcapng",
                "vnic adapter set left capture off",
            ),
        ),
        Verb("delete", "remove an adapter with its SAs and policies", delete, positional=(_KNOWN,)),
    ),
)
