"""Engine: one whole card, transport and NIC joined, without any I/O.

Law: what the daemon may ask of a card, whichever engine runs it. Bursts in, bursts out; requests either
happen whole or raise and change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Protocol

from vnic.ipsec.association import Direction, IpsecProtocol, SaId, SecurityAssociation
from vnic.ipsec.counters import CardCounters, EngineEvent, EventKind, SaCounters
from vnic.ipsec.judgement import Judgement
from vnic.ipsec.policy import Defaults, FlowKey, PolicyEntry, Selector
from vnic.ipsec.renewal import Renewal
from vnic.miniport.configuration import FeatureState
from vnic.ndis.capabilities import OffloadCapabilities, TaskOffload
from vnic.ndis.keywords import Keywords
from vnic.ndis.netbuffer import NetBuffer, NetBufferList, OffloadHandle
from vnic.ndis.oids import OidOperation, OidRequest
from vnic.ndis.status import NdisStatus, StatusIndication

__all__ = [
    "Added",
    "Card",
    "CardCounters",
    "Defaults",
    "Engine",
    "EngineEvent",
    "EventKind",
    "ExternalCard",
    "Observer",
    "Offload",
    "Outcome",
    "RandomSource",
    "SaCounters",
    "SaMtu",
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


class Offload(Enum):
    """Who works on the packets of an SA."""

    NIC = "nic"
    SOFTWARE = "software"
    NONE = "none"
    """Nobody: what it should protect is dropped."""


@dataclass(frozen=True, slots=True)
class SaMtu:
    """How large packets of one outbound SA may be, in bytes."""

    sa: SecurityAssociation
    path_mtu: int
    """Largest IP packet that gets to the far end, as far as is known."""
    known_for: float
    """Seconds until what the wire told of the path is forgotten; 0: it told nothing."""
    mtu: int
    """Largest IP packet that the SA alone can carry."""


Observer = Callable[[list[NetBuffer]], None]
"""Sees a burst between transport and NIC, and must not change it. A send comes after the NIC sealed it, a
receive after the NIC opened it and before the transport strips it."""


@dataclass(frozen=True, slots=True)
class Added:
    """What became of a request to add an SA."""

    handle: OffloadHandle
    """0 when the NIC does not hold it."""
    offload: Offload
    status: NdisStatus
    """The NIC's answer; with anything but SUCCESS software IPsec has taken the SA."""
    message: str = ""
    """Why the NIC refused, else empty."""


@dataclass(frozen=True, slots=True)
class SaReport:
    """One SA with its live state, for `show`."""

    sa: SecurityAssociation
    offload_handle: OffloadHandle
    """0 when the NIC does not hold it."""
    offload: Offload
    counters: SaCounters
    sequence_number: int
    """Outbound: last number used. Inbound: highest number authenticated."""
    replay_bitmap: int
    """Inbound: bit n is number `sequence_number - n`; 0 for outbound."""
    add_time: float
    """`now` of the request that added it, seconds."""
    use_time: float
    """`now` of the last packet it protected, 0 if none did."""
    expiring: bool = False
    """A soft limit of its lifetime is reached."""
    cipher_limit: str = ""
    """The limit of its cipher that is reached: cipher-soft or cipher-hard, else empty."""
    needed_window: int = 0
    """Inbound: packets of the smallest replay window that would have taken every late packet so far."""
    reserved: int | None = None
    """Outbound: the last number that is reserved; None where nobody keeps numbers."""
    withheld: bool = False
    """Outbound: it may not send, because the numbers it used before were lost."""
    replaced: bool = False
    """Inbound: rekeying has put another in its place."""
    leaves: float = inf
    """`now` at which it goes because it was replaced; infinite when nobody said."""
    peer: tuple[bytes, int] | None = None
    """Address and UDP port where its far end is now, if it moved and was followed."""


class Card(Protocol):
    """What every card has, whichever transport drives its NIC. `now` is monotonic seconds everywhere."""

    name: str
    """"reference" or "native"."""
    send_observer: Observer | None
    receive_observer: Observer | None
    wire_mtu: int
    """Largest IP packet the wire carries, in bytes; the daemon sets it when the wire changes."""

    @property
    def counters(self) -> CardCounters:
        """The live counters of the card."""
        ...

    @property
    def capabilities(self) -> OffloadCapabilities:
        """IPsec V2 of the current configuration."""
        ...

    @property
    def hardware(self) -> TaskOffload:
        """What the NIC could do at all."""
        ...

    @property
    def current(self) -> TaskOffload:
        """What it does as it is configured now."""
        ...

    def features(self) -> list[FeatureState]:
        """Every capability of the NIC, whether it is on, and why not."""
        ...

    @property
    def keywords(self) -> Keywords:
        """The registry of the adapter, as OFFLOAD_PARAMETERS left it."""
        ...

    def set_keywords(self, keywords: Keywords) -> None:
        """Write the registry; in force after `restart`."""
        ...

    def oid_request(self, request: OidRequest, now: float) -> OidOperation:
        """Begin an OID request; it may be finished at once. Never raises for what the request holds."""
        ...

    def begin_reset(self) -> None:
        """MiniportResetEx: requests and sends under way end with REQUEST_ABORTED, SAs stay (R204-R207)."""
        ...

    def end_reset(self) -> None:
        """The NIC works again as before the reset."""
        ...

    def pause(self) -> None:
        """Move no frames: what comes is dropped and counted, a driver's sends complete with PAUSED."""
        ...

    def resume(self) -> None:
        """End a pause."""
        ...

    def restart(self, now: float) -> None:
        """Halt and initialize again: SA table empty, registry read anew (R40, R211). The inline transport
        offloads its SAs again."""
        ...

    def remove(self) -> None:
        """Surprise removal: every request is NOT_ACCEPTED from now on (R80), no frame moves."""
        ...

    def set_load_balanced(self, load_balanced: bool, master: str = "") -> None:
        """Whether the adapter is below a load-balancing master: IPsec offload is withdrawn and indicated,
        or comes back (R18).

        Args:
            master: its name, for `features`.
        """
        ...

    def take_indications(self) -> list[StatusIndication]:
        """Give the status indications since the last call, in order."""
        ...

    def request_sa_deletion(self, handle: OffloadHandle) -> None:
        """Have SaDeleteReq set on the packets of an inbound bundle from now on (R135, R183).

        Raises:
            OidError: INVALID_PARAMETER: there is no inbound bundle with this handle.
        """
        ...

    def sas(self) -> list[SaReport]:
        """All SAs, oldest first."""
        ...

    @property
    def offloaded_count(self) -> int:
        """How many SA bundles the NIC holds."""
        ...

    def each_sa(self) -> Iterator[SaReport]:
        """All SAs, oldest first, one by one: other requests may come between. What is deleted meanwhile is
        left out, what is added is not among them."""
        ...

    @property
    def sa_count(self) -> int:
        """How many SAs there are, without looking at each."""
        ...

    def add_sa(self, sa: SecurityAssociation, now: float, *, replace: bool = False) -> Added:
        """Offload an SA, or (inline transport, where the NIC refuses) hand it to software IPsec; or change
        nothing. `replace` takes the place of one with the same SaId and direction (`ip xfrm state update`),
        which must exist.

        Raises:
            RequestError: a value is out of range (`SecurityAssociation.checked`).
            OidError: nobody takes it, or one with the same SaId exists (INVALID_PARAMETER).
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
        """Take one SA out and give what it was; the other SA of its bundle stays.

        Raises:
            OidError: INVALID_PARAMETER when there is none.
        """
        ...

    def delete_bundle(self, handle: OffloadHandle) -> list[SecurityAssociation]:
        """Take all SAs of a bundle out and give what they were (R113: a handle names a bundle).

        Raises:
            OidError: INVALID_PARAMETER when there is none.
        """
        ...

    def find_handle(self, handle: OffloadHandle) -> SaId | None:
        """The SA a handle stands for (of a bundle: the ESP SA), or None."""
        ...

    def find_sa(self, sa: SaId) -> SaReport | None:
        """The SA of that name, or None."""
        ...


class ExternalCard(Card, Protocol):
    """A NIC that a protocol driver outside drives through net buffer lists."""

    def transmit(self, lists: list[NetBufferList], now: float) -> list[NetBuffer]:
        """Take lists of the driver; gives the frames for the wire, in order (R197).

        Every list comes back with its final `status`: SUCCESS when all its frames are among those given;
        otherwise none is. Large sends are segmented.
        """
        ...

    def receive(self, burst: list[NetBuffer], now: float) -> list[NetBuffer]:
        """Take frames of the wire; gives all of them, good or bad, to be indicated (R171)."""
        ...


class Engine(Card, Protocol):
    """A card with the inline transport."""

    fragment_before: bool
    """Whether an IPv4 packet too big for a tunnel is cut before it is protected, and not after; True at
    first. Transport mode, and a policy or SA that names ports, always cut after."""

    @property
    def punts(self) -> dict[str, int] | None:
        """Frames that the native engine has left to the reference engine, by reason; None: it is not that."""
        ...

    @property
    def software(self) -> bool:
        """Whether software IPsec takes what the NIC does not."""
        ...

    @property
    def reassembly_limit(self) -> int:
        """Bytes of memory that fragments may take while they wait for the others."""
        ...

    @reassembly_limit.setter
    def reassembly_limit(self, limit: int) -> None: ...

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

    def rekey(self, renewals: Sequence[Renewal], grace: int | None, now: float) -> list[Added]:
        """Put successors in the place of SAs, make before break, or change nothing; gives what became of
        each. The old outbound SAs are gone then; the old inbound ones go when their grace is over.

        Args:
            renewals: inbound, outbound or both, each old SA once.
            grace: seconds; None: old inbound SAs go when they are deleted.

        Raises:
            RequestError: a value is out of range, a key is the old one, or a policy names an old SPI.
            OidError: INVALID_PARAMETER: an old SA is not there or is replaced already, or a new name is
                taken; RESOURCES: there is no room for both; or whatever the NIC refused it with.
        """
        ...

    reserving: bool
    """Whether an outbound SA sends only with numbers that `reserve` has given it; False at first. It asks by
    the event NUMBERS_WANTED: for a new SA at once, later when half of what it has is used."""

    def reserve(self, sa: SaId, after: int, last: int) -> None:
        """Let an outbound SA use the numbers behind `after` up to `last`.

        Args:
            after: not below the last it has used.

        Raises:
            OidError: INVALID_PARAMETER: there is none.
        """
        ...

    def inbound_numbers(self) -> Iterator[tuple[SecurityAssociation, int]]:
        """Inbound SAs to which something has come since the last call, with the highest number of each; also
        those that are gone, while `reserving`."""
        ...

    def departed_numbers(self) -> list[tuple[SecurityAssociation, int]]:
        """Of these, those that are gone."""
        ...

    def withhold(self, sa: SaId, *, for_good: bool) -> None:
        """Give an outbound SA no numbers now; `for_good`: it shall send nothing any more.

        Raises:
            OidError: INVALID_PARAMETER: there is none.
        """
        ...

    def sas_named(self, spi: int, destination: bytes | None, protocol: IpsecProtocol | None) -> list[SaId]:
        """The SAs with this SPI, of this destination and protocol where they are given."""
        ...

    def sa_mtu(self, sa: SaId, now: float) -> SaMtu | None:
        """How large the packets of an outbound SA may be; None: there is no such SA."""
        ...

    def policy_mtu(self, policy: PolicyEntry) -> int:
        """Largest IP packet of the host that fits the wire under one outbound policy that protects."""
        ...

    @property
    def enforce_cipher_limits(self) -> bool:
        """Whether an SA ends when its cipher has done as many blocks as are safe under one key; else that is
        told and the SA goes on."""
        ...

    @enforce_cipher_limits.setter
    def enforce_cipher_limits(self, enforce: bool) -> None: ...

    @property
    def deadline(self) -> float:
        """`now` at which `keep_time` has something to do: 0 is at once, infinity never."""
        ...

    def keep_time(self, now: float) -> Outcome:
        """Do what the clock asks: end SAs and give up fragments whose time is over, as bursts do too; give
        the NAT keepalives that are due, for the wire."""
        ...

    def take_events(self) -> list[EngineEvent]:
        """Give the events since the last call; the list is bounded, the rest is counted as suppressed."""
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

    def find_policy(
        self, direction: Direction, selector: Selector | None, index: int = 0
    ) -> PolicyEntry | None:
        """The policy with this selector or, when that is None, with this index; None when there is none."""
        ...

    @property
    def policy_count(self) -> int:
        """How many policies there are, without looking at each."""
        ...

    def policies(self) -> list[PolicyEntry]:
        """All policies in the order they are looked at."""
        ...

    def judge(self, direction: Direction, flow: FlowKey) -> Judgement:
        """Say what would become of a packet, as the data path would decide now, and change nothing.

        Args:
            flow: what policy looks at; ports of -1 are those a later fragment does not show.
        """
        ...

    def inner_mtu(self, wire_mtu: int) -> int:
        """Largest IP packet of the host that still fits a wire of `wire_mtu` bytes under every outbound
        policy in force; `wire_mtu` itself when none protects."""
        ...
