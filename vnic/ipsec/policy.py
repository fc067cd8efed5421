"""Selectors, templates and policies, as values.

Law: pure matching on fields that `packet` has parsed; the ordered database is `transport.spd`.

Source: RFC 4301 §4.4.1; the template rules are those of the kernel's struct xfrm_tmpl, because users
bring their policies from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from vnic.errors import RequestError

if TYPE_CHECKING:
    from vnic.ipsec.association import Direction, IpsecProtocol, Mode

ANY_PROTOCOL = 0
HIDDEN_PROTOCOL = -1
"""Protocol of a later fragment whose upper-layer header lies behind extension headers of the first."""
PROTOCOLS_WITH_PORTS = frozenset({6, 17, 33, 132, 136})
"""TCP, UDP, DCCP, SCTP, UDP-Lite."""
ICMP_PROTOCOLS = frozenset({1, 58})
MOBILITY = 135
"""Mobility Header of IPv6 (RFC 6275 §6.1); its type stands in for a port."""
PROTOCOLS_WITH_TYPES = ICMP_PROTOCOLS | {MOBILITY}
MAX_PORT = 0xFFFF
MAX_TYPE = 0xFF
BEYOND_PORTS = 0x10000
"""Port of a packet whose protocol has none."""
MAX_PRIORITY = 0xFFFFFFFF


class FlowKey(NamedTuple):
    """The fields of a packet that selectors look at.

    `source_port` and `destination_port` hold the ICMP type and code for ICMP, and `source_port` the type of a
    mobility header, which has no code. Both are -1 when the packet does not show them (a fragment but the
    first, or cut short), and beyond every port when its protocol has none. `protocol` is HIDDEN_PROTOCOL when
    a fragment does not show even that.
    """

    source: bytes
    destination: bytes
    protocol: int
    source_port: int
    destination_port: int


class Prefix(NamedTuple):
    """An address prefix: raw address bytes and its length in bits."""

    address: bytes
    length: int

    def contains(self, address: bytes) -> bool:
        """Whether an address of the same family lies inside."""
        if len(address) != len(self.address):
            return False
        shift = len(address) * 8 - self.length
        return int.from_bytes(address, "big") >> shift == int.from_bytes(self.address, "big") >> shift

    def __str__(self) -> str:
        return f"{ip_address(self.address)}/{self.length}"


class Match(Enum):
    """How a selector answers. UNSURE: it names ports or a protocol and the fragment does not show them."""

    NO = 0
    YES = 1
    UNSURE = 2


@dataclass(frozen=True, slots=True)
class Selector:
    """Which packets: address prefixes, protocol, ports or ICMP type and code (RFC 4301 §4.4.1.1).

    A port of None matches any; with a last port it is the first of a range. For ICMP `source_port` is the
    type and `destination_port` the code; for the mobility header `source_port` is the type.
    """

    source: Prefix
    destination: Prefix
    protocol: int = ANY_PROTOCOL
    source_port: int | None = None
    destination_port: int | None = None
    source_port_last: int | None = None
    """Above `source_port`, or None: that port alone."""
    destination_port_last: int | None = None

    @property
    def names_ports(self) -> bool:
        """Whether it looks at ports, or at types and codes."""
        return self.source_port is not None or self.destination_port is not None

    def match(self, flow: FlowKey) -> Match:
        """Compare with a packet's fields."""
        named = self.protocol != ANY_PROTOCOL
        if named and self.protocol != flow.protocol and flow.protocol != HIDDEN_PROTOCOL:
            return Match.NO
        if not (self.source.contains(flow.source) and self.destination.contains(flow.destination)):
            return Match.NO
        if named and flow.protocol == HIDDEN_PROTOCOL:
            return Match.UNSURE
        if self.source_port is None and self.destination_port is None:
            return Match.YES
        if flow.source_port < 0:
            return Match.UNSURE
        if _within(flow.source_port, self.source_port, self.source_port_last) and _within(
            flow.destination_port, self.destination_port, self.destination_port_last
        ):
            return Match.YES
        return Match.NO


def _within(port: int, first: int | None, last: int | None) -> bool:
    if first is None:
        return True
    return port == first if last is None else first <= port <= last


def check_ports(selector: Selector, field: str = "") -> None:
    """Refuse ports, types and codes that no packet has, or that are written in two ways.

    Args:
        field: what stands before `sport` and `dport` in messages.

    Raises:
        RequestError: one is out of range, or a range is empty, of one port, or of all.
    """
    limit = MAX_TYPE if selector.protocol in PROTOCOLS_WITH_TYPES else MAX_PORT
    for word, first, last in (
        (f"{field}sport", selector.source_port, selector.source_port_last),
        (f"{field}dport", selector.destination_port, selector.destination_port_last),
    ):
        if first is None and last is None:
            continue
        shown = f"{first}" if last is None else f"{first}-{last}"
        allowed = f"0 to {limit}, or FIRST-LAST"
        if first is None or not 0 <= first <= limit:
            raise RequestError("port out of range", field=word, value=shown, allowed=allowed)
        if last is not None and (not first < last <= limit or (first, last) == (0, limit)):
            raise RequestError("not a range of ports", field=word, value=shown, allowed=allowed)
        if selector.protocol == MOBILITY and word.endswith("dport"):
            raise RequestError(
                "a mobility header has a type and no code", field=word, value=shown, allowed="sport: its type"
            )
    if (
        selector.protocol in ICMP_PROTOCOLS
        and selector.source_port_last is not None
        and selector.destination_port is not None
    ):
        raise RequestError(
            "codes go with one type, not with a range of types (RFC 4301 §4.4.1.1)",
            field=f"{field}dport",
            value=str(selector.destination_port),
            allowed="one type, or all codes",
        )


class PolicyAction(Enum):
    """RFC 4301 §4.4.1."""

    PROTECT = "protect"
    BYPASS = "bypass"
    DISCARD = "discard"


@dataclass(frozen=True, slots=True)
class Template:
    """Which SA a PROTECT policy wants, one per IPsec header, innermost first (as `ip xfrm` orders them).

    Address None: the packet's own (transport mode). reqid 0 and spi 0: any.
    """

    protocol: IpsecProtocol
    mode: Mode
    source: bytes | None = None
    destination: bytes | None = None
    reqid: int = 0
    spi: int = 0


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """One entry of the SPD. Lower `priority` is looked at first; equal ones in the order they came."""

    direction: Direction
    selector: Selector
    action: PolicyAction
    templates: tuple[Template, ...] = ()
    priority: int = 0
    index: int = 0
    """Number the SPD gave it; 0 until it is in an SPD."""


class FragmentRule(Enum):
    """What happens to a later fragment when the first policy that could match it names ports, which it does
    not show (RFC 4301 §7)."""

    DROP = "drop"
    ANY = "any"
    """Only policies without ports are looked at (§7.1, §7.2). What matches none of those is dropped all the
    same: a default never lets out what a policy with ports may want protected."""
    STATEFUL = "stateful"
    """The ports of the first fragment hold for the later ones (§7.3); without it they are dropped."""


class VlanRule(Enum):
    """What happens to frames with VLAN tags (802.1Q, 802.1ad)."""

    PROTECT = "protect"
    """Policy governs what is behind the tags; the tags stay in front of what protects it."""
    PASS = "pass"  # noqa: S105 (a verdict)
    """They are nobody's business here and pass as they are, in clear; but what came sealed for an SA is
    opened and judged."""
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Defaults:
    """What happens to packets that match no policy, to fragments without ports, to frames with tags, and to
    frames that are not IP."""

    inbound: PolicyAction = PolicyAction.BYPASS
    outbound: PolicyAction = PolicyAction.BYPASS
    non_ip: PolicyAction = PolicyAction.BYPASS
    fragments: FragmentRule = FragmentRule.DROP
    vlan: VlanRule = VlanRule.PROTECT
    answer_discards: bool = False
    """Tell senders by ICMP that policy discarded their packets (RFC 4301 §5.1, §6)."""
