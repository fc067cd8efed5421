"""What a card counts, and the events it tells.

Law: plain counters and frozen events; who counts is `transport.audit`, who reads is the daemon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from vnic.ipsec.association import SaId
from vnic.ipsec.drops import DropReason


class EventKind(Enum):
    """What a monitor hears of the data path."""

    SEQUENCE_EXHAUSTED = "sequence_exhausted"
    SEQUENCE_LOW = "sequence_low"
    """75 or 90 % of the numbers are used."""
    CIPHER_LIMIT = "cipher_limit"
    """The key has done as many blocks as one key should (soft), or as its block size makes safe (hard)."""
    SA_EXPIRING = "sa_expiring"
    """A soft limit is reached; told once in the life of an SA."""
    SA_EXPIRED = "sa_expired"
    """A hard limit is reached; the SA is gone."""
    PEER_MOVED = "peer_moved"
    """The far end of an SA with UDP encapsulation is somewhere else, and is followed; source and port say
    where."""
    DROP = "drop"
    NUMBERS_WANTED = "numbers_wanted"
    """An outbound SA needs sequence numbers reserved; for the daemon, not for a monitor."""


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """Something of the data path worth telling; drops and exhaustion at most one of a kind and SA per second
    (audit)."""

    kind: EventKind
    sa: SaId | None = None
    drop: DropReason | None = None
    source: bytes = b""
    destination: bytes = b""
    sequence_number: int = 0
    suppressed: int = 0
    """Events of the same kind, reason and SA left out since the last one that was told."""
    limit: str = ""
    """The limit that was reached, by its word in `ip xfrm state`: time-soft … packet-hard; 75 % or 90 %;
    cipher-soft or cipher-hard."""
    protocol: int = 0
    """Of what protects the packet: ESP or AH; 0 where it is neither or not known."""
    spi: int = 0
    """As the packet names it, also where there is no such SA."""
    flow_label: int = 0
    """Of the IPv6 header that stands in clear; 0 for IPv4."""
    port: int = 0
    """Of the far end that moved, UDP."""


NO_DROPS: Mapping[DropReason, int] = MappingProxyType({})
"""Of every SA nothing of which was dropped."""


@dataclass(slots=True)
class SaCounters:
    """Counters of one SA; packets and bytes count what was sealed, or verified and passed on.

    Bytes are those of the IP packet inside the protection (tunnel mode: the inner packet; transport
    mode: the packet without IPsec headers), counted where the data is counted.
    """

    packets: int = 0
    bytes: int = 0
    drops: Mapping[DropReason, int] = field(default_factory=lambda: NO_DROPS)
    """Replaced, never changed (`count_drop`): SAs without drops share one."""

    def count_drop(self, reason: DropReason, count: int) -> None:
        """Count packets that ended here."""
        self.drops = {**self.drops, reason: self.drops.get(reason, 0) + count}


@dataclass(slots=True)
class CardCounters:
    """Counters of one card. tx is host to wire, rx is wire to host; frames count wire packets."""

    tx_offloaded: int = 0
    """Packets the NIC sealed."""
    rx_offloaded: int = 0
    """Packets the NIC opened and found good."""
    tx_bypassed: int = 0
    """IP packets that left in clear because policy says so."""
    rx_bypassed: int = 0
    tx_passed: int = 0
    """Frames that policy does not govern: ARP, neighbour discovery, other non-IP."""
    rx_passed: int = 0
    tx_software: int = 0
    """Packets that policy protects and the NIC may or can not seal, sealed by software IPsec."""
    rx_software: int = 0
    """Packets that software IPsec opened, whole or in part, because the NIC did not."""
    sa_deletions_followed: int = 0
    """SAs the NIC asked to have deleted (SaDeleteReq) and that were, with their partners (R118)."""
    sa_deletions_refused: int = 0
    """The same, not followed: without software IPsec nobody could go on with them."""
    tx_fragmented: int = 0
    """Packets cut into fragments, before or after they were protected, because they did not fit."""
    tx_fragments: int = 0
    """The fragments they were cut into."""
    tx_dummies: int = 0
    """Dummy packets that SAs sent because they had nothing else to send."""
    tx_reassembled: int = 0
    """Packets that the host sent in fragments and that were put together because policy wants them whole, in
    transport mode."""
    rx_fragments: int = 0
    """Fragments of ESP and AH packets that were put together."""
    rx_reassembled: int = 0
    """The packets they made; software IPsec opens them (R17)."""
    rx_path_mtu: int = 0
    """ICMP messages that told the path MTU of an SA and were believed."""
    tx_prohibited_answered: int = 0
    """Packets of the host that policy discarded and that were answered by ICMP."""
    tx_prohibited_unanswered: int = 0
    """The same, not answered: too many, or of a kind that must not be."""
    rx_prohibited_answered: int = 0
    """Packets of the wire that policy discarded and that were answered by ICMP."""
    rx_prohibited_unanswered: int = 0
    """The same, not answered: too many, of a kind that must not be, or policy lets no answer out."""
    rx_peer_moved: int = 0
    """Times the far end of an SA with UDP encapsulation moved and was followed."""
    tx_nat_keepalives: int = 0
    """NAT keepalives sent."""
    tx_too_big_answered: int = 0
    """Packets that did not fit and might not be cut, whose sender was told the MTU by ICMP."""
    tx_too_big_unanswered: int = 0
    """The same, left out to limit the rate."""
    drops: dict[DropReason, int] = field(default_factory=dict)
