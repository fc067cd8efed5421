"""`vnic adapter`: virtual cards, what their TAP is and what they are plugged into.

Law: words to messages and messages to text.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal, cast

from vnic.cli import values
from vnic.cli.card import CAPS_WORD, capabilities_of
from vnic.cli.grammar import (
    ADAPTERS,
    FILES,
    Choice,
    Found,
    Group,
    Object,
    Refusal,
    Series,
    Value,
    Verb,
    Vocabulary,
    Word,
)
from vnic.cli.render import paint, table
from vnic.cli.session import Session
from vnic.cli.wire import fault_lines
from vnic.cli.words import UsageError, Words
from vnic.control.interface import (
    AdapterState,
    AddAdapter,
    Capture,
    CardStatistics,
    DeleteAdapter,
    FragmentsWord,
    ListAdapters,
    PauseAdapter,
    PortStatistics,
    ProhibitedWord,
    RemoveAdapter,
    ResetAdapter,
    RestartAdapter,
    ResumeAdapter,
    SetAdapter,
    TapState,
    VlanWord,
    Wire,
    WireState,
    WireWord,
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
_KINDS = ("link", "netdev", "tap", "udp", "none")
_IN_NAMESPACE = ("netdev", "tap", "udp")
_OF_UDP = ("keepalive", "follow")


def _check_wire(found: Found, field: str) -> None:
    kinds = [kind for kind in _KINDS if kind in found]
    if len(kinds) != 1:
        raise UsageError(
            f"says {' and '.join(kinds) or 'no kind'}", field=field, allowed="one of " + ", ".join(_KINDS)
        )
    if "netns" in found and kinds[0] not in _IN_NAMESPACE:
        raise UsageError(
            f"wire {kinds[0]} has no device that could be in a namespace",
            field=f"{field} netns",
            allowed="wire netdev IFNAME netns NS, wire tap IFNAME netns NS, wire udp LOCAL REMOTE netns NS",
        )
    for word in _OF_UDP:
        if word in found and kinds[0] != "udp":
            raise UsageError(
                f"wire {kinds[0]} has no {word}",
                field=f"{field} {word}",
                allowed=f"wire udp LOCAL REMOTE {word} …",
            )


@dataclass(frozen=True, slots=True)
class _Ends:
    """`LOCAL REMOTE`, each an address with or without a port; the daemon judges them."""

    usage: str = "LOCAL[:PORT] REMOTE[:PORT]"

    def take(self, words: Words, field: str) -> object:
        local = values.text(words.take(field, "LOCAL[:PORT]", ("192.0.2.1:4500",)), field)
        return local, values.text(words.take(field, "REMOTE[:PORT]", ("192.0.2.2:4500",)), field)


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
            Word("udp", _Ends(), "ESP in UDP between two addresses; port 4500 if none is said"),
            Word("none", summary="nothing yet"),
            _NETNS,
            Word(
                "keepalive",
                Value("SECONDS", values.integer(0, 3600, "seconds")),
                "udp: a keepalive after so long without a datagram; 0 is never (20)",
            ),
            Word(
                "follow",
                Choice(("on", "off")),
                "udp: whether the other end may move, to where a new authenticated packet comes from (off)",
            ),
        ),
        _check_wire,
        "{ link ADAPTER | netdev IFNAME [ netns NS ] | tap IFNAME [ netns NS ] | "
        "udp LOCAL[:PORT] REMOTE[:PORT] [ netns NS ] [ keepalive SECONDS ] [ follow { on | off } ] | none }",
    ),
    "what the card is plugged into: link, netdev, tap, udp or none",
)
_ADDRESS = Word("address", Value("CIDR", values.interface_address), "address of the TAP", repeated=True)
_MAC = Word("mac", Value("MAC", values.mac), "Ethernet address of the TAP")
_MTU = Word(
    "mtu", Value("{ BYTES | default }", values.mtu, ("default",)), "of the TAP; default follows the wire"
)
_FRAGMENTS = Word(
    "fragments",
    Choice(("drop", "any", "stateful")),
    "later fragments where the policy names ports: dropped, by policies without ports, or as the first one",
)
_NON_IP = Word("nonip", Choice(("pass", "drop")), "frames that are not IP (ARP passes always)")
_FRAGMENTATION = Word(
    "fragmentation",
    Choice(("before", "after")),
    "when an IPv4 packet too big for a tunnel is cut: before it is protected, or after (before)",
)
_VLAN = Word(
    "vlan",
    Choice(("protect", "pass", "drop")),
    "frames with VLAN tags: policy governs what is behind the tags, they pass in clear, or they are dropped "
    "(protect)",
)
_PROHIBITED = Word(
    "prohibited",
    Choice(("silent", "answer")),
    "whether senders are told by ICMP that policy discarded their packets (silent)",
)
_DEFAULT_REASSEMBLY = 4 << 20
_REASSEMBLY = Word(
    "reassembly", Value("SIZE", values.size), "memory for fragments that wait for the others: 512K, 4M (4M)"
)
_CIPHER_LIMITS = Word(
    "cipher-limits",
    Choice(("warn", "enforce")),
    "whether DES and 3DES at the limits of 64-bit blocks are only told, or the SA ends (warn)",
)
_SOFTWARE = Word(
    "software", Choice(("on", "off")), "whether software IPsec takes what the NIC may or can not (on)"
)
_QUEUES = Word(
    "queues",
    Value("N", values.integer(1, 16)),
    "of the TAP, which several processors of the host fill at once (1)",
)
KEYWORDS = ("*IPsecOffloadV1IPv4", "*IPsecOffloadV2", "*IPsecOffloadV2IPv4")
_KEYWORD = Word(
    "keyword",
    Series((Value("KEYWORD", values.text, KEYWORDS), Value("VALUE", values.integer(0, 3)))),
    "of the registry: *IPsecOffloadV1IPv4, *IPsecOffloadV2, *IPsecOffloadV2IPv4 (the * may be left out); "
    "0 disabled, 1 AH, 2 ESP, 3 both",
    repeated=True,
)
_ALL_ON = 3
_MAX_HOLD_MS = 60_000
_NAME = Word("name", Value("NAME", values.text), required=True)
_KNOWN = Word("name", Value("NAME", values.text, (ADAPTERS,)), required=True)
_MAYBE = Word("name", Value("NAME", values.text, (ADAPTERS,)))

_ADD = Vocabulary(
    Word("tap", _IFNAME, "the device the host sees; needed unless the transport is external"),
    _NETNS,
    _ADDRESS,
    _MAC,
    _MTU,
    _NON_IP,
    _FRAGMENTATION,
    _VLAN,
    _PROHIBITED,
    _REASSEMBLY,
    _CIPHER_LIMITS,
    _FRAGMENTS,
    Word(
        "without",
        Value("FEATURE", values.text, TAP_OFFLOADS),
        "an offload of the TAP not to use, by its ethtool name",
        repeated=True,
    ),
    Word(
        "transport",
        Choice(("inline", "external")),
        "inline: the daemon frames and judges packets; external: a protocol driver of yours does",
    ),
    Word("nbl-socket", Value("PATH", values.text, (FILES,)), "where that driver attaches (NAME.nbl)"),
    _SOFTWARE,
    _QUEUES,
    _KEYWORD,
    CAPS_WORD,
    _WIRE,
)
_SET = Vocabulary(
    _MTU,
    _MAC,
    _ADDRESS,
    Word("up", summary="set the TAP up"),
    Word("down", summary="set the TAP down"),
    _NON_IP,
    _FRAGMENTATION,
    _VLAN,
    _PROHIBITED,
    _REASSEMBLY,
    _CIPHER_LIMITS,
    _FRAGMENTS,
    Word("capture", _CaptureOperand(), "record one side to a new pcapng file"),
    Word(
        "software",
        Refusal("software IPsec is chosen when an adapter is made", "adapter add … software { on | off }"),
    ),
    Word(
        "queues",
        Refusal("the queues of a TAP are chosen when an adapter is made", "adapter add … queues N"),
    ),
    replace(_KEYWORD, summary=f"{_KEYWORD.summary}; in force after `restart`"),
    _WIRE,
)


def _wire(found: Found) -> Wire | None:
    words = found.get("wire", Found)
    if words is None:
        return None
    (kind,) = (kind for kind in _KINDS if kind in words)
    local, remote = words.need(kind, tuple) if kind == "udp" else (None, None)
    follow = words.get("follow", str)
    return Wire(
        kind=cast("WireWord", kind),
        name=words.need(kind, str) if kind in ("link", "netdev", "tap") else None,
        netns=words.get("netns", str),
        local=local,
        remote=remote,
        keepalive=words.get("keepalive", int),
        follow=None if follow is None else follow == "on",
    )


def _non_ip(found: Found) -> Literal["pass", "drop"] | None:
    return cast("Literal['pass', 'drop'] | None", found.get("nonip", str))


def _fragmentation(found: Found) -> Literal["before", "after"] | None:
    return cast("Literal['before', 'after'] | None", found.get("fragmentation", str))


def _cipher_limits(found: Found) -> Literal["warn", "enforce"] | None:
    return cast("Literal['warn', 'enforce'] | None", found.get("cipher-limits", str))


def _fragments(found: Found) -> FragmentsWord | None:
    return cast("FragmentsWord | None", found.get("fragments", str))


def _software(found: Found) -> bool | None:
    said = found.get("software", str)
    return None if said is None else said == "on"


def _keywords(found: Found) -> dict[str, int] | None:
    return dict(found.many("keyword", tuple)) or None


def add(session: Session, found: Found) -> None:
    """Make an adapter."""
    transport = found.get("transport", str)
    if "tap" not in found and transport != "external":
        raise UsageError("is missing", field="tap", allowed="tap IFNAME, or transport external")
    socket = found.get("nbl-socket", str)
    reply = session.ask(
        AddAdapter(
            name=found.need("name", str),
            tap=found.get("tap", str),
            transport=cast("Literal['inline', 'external'] | None", transport),
            nbl_socket=None if socket is None else os.path.abspath(socket),
            software=_software(found),
            queues=found.get("queues", int),
            capabilities=capabilities_of(found),
            keywords=_keywords(found),
            netns=found.get("netns", str),
            addresses=found.many("address", str) or None,
            mac=found.get("mac", str),
            mtu=found.get("mtu", int) or None,
            wire=_wire(found),
            non_ip=_non_ip(found),
            fragmentation=_fragmentation(found),
            vlan=cast("VlanWord | None", found.get("vlan", str)),
            prohibited=cast("ProhibitedWord | None", found.get("prohibited", str)),
            reassembly=found.get("reassembly", int),
            cipher_limits=_cipher_limits(found),
            fragments=_fragments(found),
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
            fragmentation=_fragmentation(found),
            vlan=cast("VlanWord | None", found.get("vlan", str)),
            prohibited=cast("ProhibitedWord | None", found.get("prohibited", str)),
            reassembly=found.get("reassembly", int),
            cipher_limits=_cipher_limits(found),
            fragments=_fragments(found),
            capture=found.get("capture", Capture),
            keywords=_keywords(found),
        )
    )
    _answered(session, reply.adapter)


def _answered(session: Session, state: AdapterState) -> None:
    session.answer(state, lambda: _text(session, [state]) if session.options.details else "")


def reset(session: Session, found: Found) -> None:
    """Reset the NIC."""
    request = ResetAdapter(name=found.need("name", str), hold_ms=found.get("hold", int))
    _answered(session, session.ask(request).adapter)


def pause(session: Session, found: Found) -> None:
    """Pause the NIC."""
    _answered(session, session.ask(PauseAdapter(name=found.need("name", str))).adapter)


def resume(session: Session, found: Found) -> None:
    """End a pause."""
    _answered(session, session.ask(ResumeAdapter(name=found.need("name", str))).adapter)


def restart(session: Session, found: Found) -> None:
    """Halt the NIC and initialize it again."""
    _answered(session, session.ask(RestartAdapter(name=found.need("name", str))).adapter)


def remove(session: Session, found: Found) -> None:
    """Pull the card out."""
    _answered(session, session.ask(RemoveAdapter(name=found.need("name", str))).adapter)


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


def _wire_text(wire: WireState) -> str:
    """The words that make such a wire, and where the other end of one over UDP is if it has moved."""
    if wire.kind != "udp":
        return f"{wire.kind} {_where(wire.name, wire.netns)}".rstrip()
    text = f"udp {_where(f'{wire.local} {wire.remote}', wire.netns)}"
    text += f" keepalive {wire.keepalive}"
    if wire.follow:
        text += " follow on" + (f" peer {wire.peer}" if wire.peer != wire.remote else "")
    return text


def _tap_lines(tap: TapState | None) -> list[str]:
    if tap is None:
        return []
    return [
        f"tap {_where(tap.name, tap.netns)} mac {tap.mac} mtu {tap.mtu}"
        f"{' (default)' if tap.mtu_default else ''} {'up' if tap.up else 'down'}"
        f"{f' queues {tap.queues}' if tap.queues > 1 else ''}{' attached' if tap.attached else ''}",
        *(f"address {address}" for address in tap.addresses),
    ]


def _adapter_text(session: Session, state: AdapterState) -> str:
    options = session.options
    tap, wire = state.tap, state.wire
    colour = "good" if state.state == "running" else "bad"
    reason = f" ({state.reason})" if state.reason else ""
    lines = [
        f"{paint(state.name, 'name', session)}: {paint(state.state, colour, session)}{reason} "
        f"engine {state.engine}"
    ]
    if state.transport == "external":
        driver = "attached" if state.driver else "none"
        lines.append(f"transport external nbl-socket {state.nbl_socket} driver {driver}")
    lines += _tap_lines(tap)
    lines.append(f"wire {_wire_text(wire)} mtu {wire.mtu}")
    lines += fault_lines(state)
    if state.transport == "external":
        lines.append(f"sas {state.sa_count}")
    else:
        lines.append(
            f"sas {state.sa_count} policies {state.policy_count} default in {state.policy_default_in} "
            f"out {state.policy_default_out} nonip {state.non_ip}"
            f"{f' fragments {state.fragments}' if state.fragments != 'drop' else ''}"
            f"{' fragmentation after' if state.fragmentation == 'after' else ''}"
            f"{f' vlan {state.vlan}' if state.vlan != 'protect' else ''}"
            f"{' prohibited answer' if state.prohibited == 'answer' else ''}"
            f"{f' reassembly {state.reassembly}' if state.reassembly != _DEFAULT_REASSEMBLY else ''}"
            f"{' cipher-limits enforce' if state.cipher_limits == 'enforce' else ''}"
            f"{'' if state.software else ' software off'}"
        )
    if any(value != _ALL_ON for value in state.keywords.values()) or options.details:
        lines.append("keywords " + " ".join(f"{name} {value}" for name, value in state.keywords.items()))
    if state.load_balancing is not None:
        lines.append(f"below {state.load_balancing}: load balancing, so the NIC offloads no IPsec")
    if (capture := state.capture) is not None:
        lost = f" lost {capture.frames_lost}" if capture.frames_lost else ""
        lines.append(
            f"capture {capture.place} {capture.file} {capture.state} frames {capture.frames_written}{lost}"
        )
    if options.statistics or options.details:
        if state.tap_statistics is not None:
            lines.append(port_text("tap", state.tap_statistics))
        lines += [port_text("wire", state.wire_statistics), *card_lines(state.card)]
    if options.details:
        lines += [f"feature tap {name}: {is_on}" for name, is_on in (tap.features if tap else {}).items()]
        lines += [f"feature wire {name}: {is_on}" for name, is_on in wire.features.items()]
    return "\n    ".join(lines) + "\n"


def card_lines(card: CardStatistics) -> list[str]:
    """Write the counters of the card, a line for each direction."""
    return [
        f"card tx offloaded {card.tx_offloaded} software {card.tx_software} bypassed {card.tx_bypassed} "
        f"passed {card.tx_passed}",
        f"card rx offloaded {card.rx_offloaded} software {card.rx_software} bypassed {card.rx_bypassed} "
        f"passed {card.rx_passed}",
    ]


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
            state.tap.name if state.tap else state.nbl_socket or "-",
            state.tap.netns or "-" if state.tap else "-",
            state.tap.mtu if state.tap else "-",
            _wire_text(state.wire),
            state.sa_count,
            state.policy_count,
            " ".join(state.tap.addresses if state.tap else ()),
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
                "vnic adapter add far tap vnic3 wire udp 192.0.2.1 198.51.100.2:4500 follow on",
                "vnic adapter add gcm tap vnic2 caps encryptions aes-gcm-128 integrities none sa_capacity 64",
                "vnic adapter add bare transport external nbl-socket /run/vnic/bare.nbl wire netdev eth2",
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
                "vnic adapter set left keyword IPsecOffloadV2 0",
            ),
        ),
        Verb(
            "reset",
            "reset the NIC: sends and requests under way end with REQUEST_ABORTED, SAs survive",
            reset,
            Vocabulary(
                Word(
                    "hold",
                    Value("MS", values.integer(0, _MAX_HOLD_MS, "milliseconds")),
                    "stay in reset that long",
                )
            ),
            positional=(_KNOWN,),
            examples=("vnic adapter reset left hold 500",),
        ),
        Verb("pause", "pause the NIC: it moves no frames", pause, positional=(_KNOWN,)),
        Verb("resume", "end a pause", resume, positional=(_KNOWN,)),
        Verb(
            "restart",
            "halt the NIC and initialize it again: the keywords are read, the SAs offloaded anew",
            restart,
            positional=(_KNOWN,),
        ),
        Verb(
            "remove",
            "pull the card out: every request is NOT_ACCEPTED until the adapter is deleted",
            remove,
            positional=(_KNOWN,),
        ),
        Verb("delete", "remove an adapter with its SAs and policies", delete, positional=(_KNOWN,)),
    ),
)
