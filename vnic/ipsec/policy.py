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

if TYPE_CHECKING:
    from vnic.ipsec.association import Direction, IpsecProtocol, Mode

ANY_PROTOCOL = 0
HIDDEN_PROTOCOL = -1
"""Protocol of a later fragment whose upper-layer header lies behind extension headers of the first."""
PROTOCOLS_WITH_PORTS = frozenset({6, 17, 33, 132, 136})
"""TCP, UDP, DCCP, SCTP, UDP-Lite."""
ICMP_PROTOCOLS = frozenset({1, 58})
MAX_PRIORITY = 0xFFFFFFFF


class FlowKey(NamedTuple):
    """The fields of a packet that selectors look at.

    `source_port` and `destination_port` hold the ICMP type and code for ICMP. Both are -1 when the packet
    does not show them (a fragment but the first, or cut short), and beyond every port when its protocol has
    none. `protocol` is HIDDEN_PROTOCOL when a fragment does not show even that.
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

    A port of None matches any. For ICMP `source_port` is the type and `destination_port` the code.
    """

    source: Prefix
    destination: Prefix
    protocol: int = ANY_PROTOCOL
    source_port: int | None = None
    destination_port: int | None = None

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
        if self.source_port not in (None, flow.source_port):
            return Match.NO
        if self.destination_port not in (None, flow.destination_port):
            return Match.NO
        return Match.YES


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


@dataclass(frozen=True, slots=True)
class Defaults:
    """What happens to packets that match no policy, and to frames that are not IP."""

    inbound: PolicyAction = PolicyAction.BYPASS
    outbound: PolicyAction = PolicyAction.BYPASS
    non_ip: PolicyAction = PolicyAction.BYPASS
