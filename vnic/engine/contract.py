"""Engine: one whole card, transport and NIC joined, without any I/O.

Law: what the daemon may ask of a card, whichever engine runs it. Bursts in, bursts out; requests either
happen whole or raise and change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from vnic.ipsec.association import Direction, SaId, SecurityAssociation
from vnic.ipsec.counters import CardCounters, EngineEvent, EventKind, SaCounters
from vnic.ipsec.policy import Defaults, PolicyEntry, Selector
from vnic.ndis.capabilities import OffloadCapabilities
from vnic.ndis.netbuffer import NetBuffer, OffloadHandle

__all__ = [
    "CardCounters",
    "Defaults",
    "Engine",
    "EngineEvent",
    "EventKind",
    "Outcome",
    "RandomSource",
    "SaCounters",
    "SaReport",
]

RandomSource = Callable[[int], bytes]
"""Gives that many unpredictable bytes; `os.urandom` in the daemon, a seeded one in tests."""


@dataclass(slots=True)
class Outcome:
    """Where the frames of one burst go. The lists belong to the caller."""

    wire: list[NetBuffer] = field(default_factory=list)
    """To the wire port, in order; `vnet` is None on all of them."""
    host: list[NetBuffer] = field(default_factory=list)
    """To the host port, in order; `vnet` set on coalesced frames and open checksums."""


@dataclass(frozen=True, slots=True)
class SaReport:
    """One SA with its live state, for `show`."""

    sa: SecurityAssociation
    offload_handle: OffloadHandle
    counters: SaCounters
    sequence_number: int
    """Outbound: last number used. Inbound: highest number authenticated."""
    replay_bitmap: int
    """Inbound: bit n is number `sequence_number - n`; 0 for outbound."""
    add_time: float
    """`now` of the request that added it, seconds."""
    use_time: float
    """`now` of the last packet it protected, 0 if none did."""


class Engine(Protocol):
    """One card. `now` is monotonic seconds everywhere."""

    name: str
    """"reference" or "native"."""
    wire_mtu: int
    """Largest IP packet the wire carries, in bytes; the daemon sets it when the wire changes."""

    @property
    def counters(self) -> CardCounters:
        """The live counters of the card."""
        ...

    @property
    def capabilities(self) -> OffloadCapabilities:
        """What the NIC of this card can do."""
        ...

    @property
    def defaults(self) -> Defaults:
        """The verdicts in force for what matches no policy."""
        ...

    def set_defaults(self, defaults: Defaults) -> None:
        """Change them; DISCARD or BYPASS only."""
        ...

    def send(self, burst: list[NetBuffer], now: float) -> Outcome:
        """Take frames from the host. Drops are counted, never raised."""
        ...

    def receive(self, burst: list[NetBuffer], now: float) -> Outcome:
        """Take frames from the wire. Drops are counted, never raised."""
        ...

    def take_events(self) -> list[EngineEvent]:
        """Give the events since the last call; the list is bounded, the rest is counted as suppressed."""
        ...

    def add_sa(self, sa: SecurityAssociation, now: float, *, replace: bool = False) -> OffloadHandle:
        """Put an SA into SAD and NIC, or into neither. `replace` takes the place of one with the same
        SaId and direction (`ip xfrm state update`), which must exist.

        Raises:
            RequestError: a value is out of range (`SecurityAssociation.checked`).
            OidError: the NIC refused it, or one with the same SaId exists (INVALID_PARAMETER).
        """
        ...

    def update_sa(self, sa: SaId, sequence_number_high_order: int) -> None:
        """Re-base the upper half of an ESN (OID …_V2_UPDATE_SA).

        Raises:
            OidError: INVALID_PARAMETER when it is unknown or has no ESN, or when an outbound number
                would go back.
        """
        ...

    def delete_sa(self, sa: SaId) -> SecurityAssociation:
        """Take an SA out of SAD and NIC and give what it was.

        Raises:
            OidError: INVALID_PARAMETER when there is none.
        """
        ...

    def find_handle(self, handle: OffloadHandle) -> SaId | None:
        """The SA a handle stands for, or None."""
        ...

    def find_sa(self, sa: SaId) -> SaReport | None:
        """The SA of that name, or None."""
        ...

    def sas(self) -> list[SaReport]:
        """All SAs, oldest first."""
        ...

    @property
    def sa_count(self) -> int:
        """How many SAs there are, without looking at each."""
        ...

    def add_policy(self, policy: PolicyEntry, *, replace: bool = False) -> PolicyEntry:
        """Put a policy into the SPD; gives it with its index. With `replace` one of the same direction and
        selector is replaced if there is one (`ip xfrm policy update`).

        Raises:
            RequestError: one with the same direction and selector exists; the templates cannot be carried
                out in that order (at most ESP then AH in transport mode, then ESP then AH in tunnel mode);
                or their number or families do not fit.
        """
        ...

    def delete_policy(self, direction: Direction, selector: Selector | None, index: int = 0) -> PolicyEntry:
        """Take the policy with this selector, or with this index, out of the SPD.

        Raises:
            RequestError: there is none.
        """
        ...

    def policies(self) -> list[PolicyEntry]:
        """All policies in the order they are looked at."""
        ...

    def inner_mtu(self, wire_mtu: int) -> int:
        """Largest IP packet of the host that still fits a wire of `wire_mtu` bytes under every outbound
        policy in force; `wire_mtu` itself when none protects."""
        ...
