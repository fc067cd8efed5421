"""SAs as text, in the manner of `ip xfrm state`, and as a table.

Law: messages to strings. Without -s, and with the keys in it, what is written of an SA are the words that
`add` would take for it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from vnic.cli.protection import protection_text
from vnic.cli.render import paint, table
from vnic.cli.selector import selector_text
from vnic.control.interface import Encapsulation, Sa, SaState
from vnic.ipsec.drops import DropReason
from vnic.ipsec.headers import DEFAULT_HOP_LIMIT
from vnic.ipsec.lifetime import word_of
from vnic.ipsec.udp_encapsulation import DEFAULT_KEEPALIVE_S

if TYPE_CHECKING:
    from vnic.cli.session import Session

_FLAGS = ("noecn", "decap-dscp", "nopmtudisc", "align4", "esn")
_LOW = 0xFFFFFFFF
_SHOWN_BITMAP_BITS = 64

_REASONS: dict[str, DropReason] = {reason.value: reason for reason in DropReason}

STATS = (
    ("replay-window", DropReason.IN_REPLAY_TOO_OLD),
    ("replay", DropReason.IN_REPLAY_DUPLICATE),
    ("failed", DropReason.IN_ICV),
)
"""The three counters of struct xfrm_stats, and our reasons for the same."""


def flag_names(sa: Sa) -> list[str]:
    """The flags of an SA by the kernel's names, in the kernel's order."""
    said = (sa.no_ecn, sa.decap_dscp, sa.no_pmtu_discovery, sa.ah_alignment == 4 and sa.proto == "ah", sa.esn)
    return [name for name, is_set in zip(_FLAGS, said, strict=True) if is_set]


def state_text(state: SaState, session: Session) -> str:
    """Write one SA over several lines; -s adds what it did, -d everything."""
    sa = state.sa
    statistics = session.options.statistics > 0 or session.options.details
    lines = [
        f"src {sa.src} dst {sa.dst}",
        _identity(sa, statistics),
        _window(sa),
        *protection_text(sa, bits=statistics),
        *_encapsulation(sa.encap, ipv6=":" in sa.dst, statistics=statistics),
    ]
    if statistics and state.peer is not None:
        lines.append(f"peer moved to {state.peer.address} port {state.peer.port}")
    if sa.selector is not None:
        lines.append(f"sel {selector_text(sa.selector)}")
    limits = _limits(sa)
    if limits:
        lines.append(" ".join(f"limit {word} {number}" for word, number in limits.items()))
    settings = _settings(sa)
    if settings:
        lines.append(settings)
    if statistics:
        lines += _statistics(state, details=session.options.details)
    handle = f" handle {state.handle:#x} by {state.offload}" if statistics else ""
    lines.append(f"offload packet dev {paint(state.adapter, 'name', session)} dir {sa.direction}{handle}")
    if statistics:
        lines += [paint(f"weak: {weak}", "weak", session) for weak in state.weak]
    return "\n\t".join(lines) + "\n"


def _identity(sa: Sa, statistics: bool) -> str:
    reqid = sa.reqid or 0
    if statistics:
        text = f"proto {sa.proto} spi {sa.spi:#010x}({sa.spi}) reqid {reqid}({reqid:#010x})"
    else:
        text = f"proto {sa.proto} spi {sa.spi:#010x} reqid {reqid}"
    return f"{text} mode {mode_text(sa)}"


def mode_text(sa: Sa) -> str:
    """Name the mode; `any` is that of an SA that came by an OID, which names none."""
    return sa.mode or "any"


def _window(sa: Sa) -> str:
    flags = flag_names(sa)
    return f"replay-window {sa.replay_window or 0}" + (f" flag {' '.join(flags)}" if flags else "")


def _settings(sa: Sa) -> str:
    """What is set about outer headers and padding; `flag nopmtudisc` says df clear."""
    words = []
    if sa.df == "set":
        words.append("df set")
    if sa.hop_limit not in (None, DEFAULT_HOP_LIMIT):
        words.append(f"ttl {sa.hop_limit or 'copy'}")
    if sa.dscp is not None:
        words.append(f"dscp {sa.dscp}")
    if sa.flow_label is not None:
        words.append(f"flow-label {sa.flow_label:#x}")
    if sa.tfc_padding:
        words.append(f"tfcpad {sa.tfc_padding}")
    if sa.dummy_interval:
        words.append(f"dummy {sa.dummy_interval}")
    return " ".join(words)


def _encapsulation(encap: Encapsulation | None, *, ipv6: bool, statistics: bool) -> list[str]:
    if encap is None:
        return []
    oaddr = encap.oaddr or ("::" if ipv6 else "0.0.0.0")  # noqa: S104 (means not known)
    if statistics:
        lines = [f"encap type espinudp sport {encap.sport} dport {encap.dport} addr {oaddr}"]
    else:
        lines = [f"encap espinudp {encap.sport} {encap.dport} {oaddr}"]
    if encap.follow:
        lines.append("nat-follow")
    if encap.keepalive not in (None, DEFAULT_KEEPALIVE_S):
        lines.append(f"nat-keepalive {encap.keepalive}")
    return lines


def _limits(sa: Sa) -> dict[str, int]:
    """The limits of an SA by their words."""
    if sa.lifetime is None:
        return {}
    return {word_of(member): number for member, number in asdict(sa.lifetime).items() if number}


def _lifetime(sa: Sa) -> list[str]:
    """Write the limits in full, as `ip -s` does."""
    limits = _limits(sa)

    def count(word: str) -> str:
        return str(limits.get(word, "(INF)"))

    return [
        "lifetime config:",
        *(
            f"  limit: soft {count(f'{unit}-soft')}({unit}s), hard {count(f'{unit}-hard')}({unit}s)"
            for unit in ("byte", "packet")
        ),
        *(
            f"  expire {name}: soft {limits.get(f'{word}-soft', 0)}(sec), "
            f"hard {limits.get(f'{word}-hard', 0)}(sec)"
            for name, word in (("add", "time"), ("use", "time-use"))
        ),
    ]


def _statistics(state: SaState, *, details: bool) -> list[str]:
    sa = state.sa
    number = sa.sequence_number or 0
    low, high = number & _LOW, number >> 32
    seq, oseq = (low, 0) if sa.direction == "in" else (0, low)
    seq_hi, oseq_hi = (high, 0) if sa.direction == "in" else (0, high)
    if sa.esn:
        context = f"seq-hi {seq_hi:#x}, seq {seq:#x}, oseq-hi {oseq_hi:#x}, oseq {oseq:#x}"
    else:
        context = f"seq {seq:#x}, oseq {oseq:#x}"
    lines = [f"anti-replay{' esn' if sa.esn else ''} context: {context}"]
    if state.replay_bitmap:
        bitmap = int(state.replay_bitmap, 16)
        shown = bitmap if details else bitmap & ((1 << _SHOWN_BITMAP_BITS) - 1)
        lines[0] += f", bitmap {shown:#x}"
    if state.needed_window:
        lines[0] += f", window needed {state.needed_window}"
    if sa.lifetime is not None:
        lines += _lifetime(sa)
    lines += [
        "lifetime current:" + (" soft limit reached" if state.expiring else ""),
        f"  {state.bytes}(bytes), {state.packets}(packets)",
        f"  add {state.added} use {state.used or '-'}",
        "stats:",
        "  " + " ".join(f"{name} {state.drops.get(reason.value, 0)}" for name, reason in STATS),
    ]
    if state.withheld:
        lines.append("may not send: its sequence numbers of before were lost; rekey")
    elif state.reserved is not None:
        lines.append(f"sequence numbers reserved to {state.reserved:#x}")
    if state.replaced:
        lines.append(f"replaced by rekeying: goes {state.leaves or 'when it is deleted'}")
    drops = [drop_text(name, packets) for name, packets in sorted(state.drops.items()) if packets or details]
    return [*lines, *(["drops:", *(f"  {drop}" for drop in drops)] if drops else [])]


def drop_text(name: str, packets: int) -> str:
    """Write one drop counter with its reason in words."""
    reason = _REASONS.get(name)
    if reason is None:
        return f"{name} {packets}"
    kernel = f" [{reason.xfrm_stat}]" if reason.xfrm_stat else ""
    return f"{name} {packets}: {reason.text}{kernel}"


def algorithm_text(sa: Sa) -> str:
    """Name the algorithms of an SA in our own words, in short."""
    icv = f"/{sa.icv_length}" if sa.icv_length else ""
    return "+".join(name for name in (sa.encryption, sa.integrity) if name) + icv


def brief_text(states: list[SaState], session: Session) -> str:
    """Write one line per SA under a head."""
    if not states:
        return ""
    head = ["ADAPTER", "DIR", "PROTO", "SPI", "SRC", "DST", "MODE", "ALGORITHM", "REQID", "HANDLE", "BY"]
    rows: list[list[object]] = []
    for state in states:
        sa = state.sa
        rows.append(
            [
                state.adapter,
                sa.direction,
                sa.proto,
                f"{sa.spi:#010x}",
                sa.src,
                sa.dst,
                mode_text(sa),
                algorithm_text(sa),
                sa.reqid or 0,
                f"{state.handle:#x}",
                state.offload,
            ]
        )
    right = {8, 9}
    if session.options.statistics:
        head += ["PACKETS", "BYTES", "DROPS"]
        right |= {11, 12, 13}
        for row, state in zip(rows, states, strict=True):
            row += [state.packets, state.bytes, sum(state.drops.values())]
    return table(head, rows, session, right=frozenset(right))
