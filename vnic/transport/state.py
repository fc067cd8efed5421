"""SaState: what an SA lives through.

Law: data; who adds, offloads and withdraws SAs is `sad`, who uses them `outbound` and `inbound`.
"""

from __future__ import annotations

from math import inf
from typing import ClassVar

from vnic.ipsec.association import Direction, Mode, SaId, SecurityAssociation
from vnic.ipsec.counters import SaCounters
from vnic.ipsec.replay import ReplayWindow
from vnic.ipsec.sequence import OutboundSequence
from vnic.ndis.capabilities import UDP_ESP_TRANSPORT, UDP_ESP_TUNNEL
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.status import NdisStatus

NO_HANDLE = OffloadHandle(0)

NO_STOP = 1 << 64
"""More packets than any SA lives to see."""


class SaState:
    """Live state of one SA; engines share it, so that each number is handed out and checked once.

    Attributes:
        sa: the agreement itself.
        iv_length: bytes of explicit IV in each packet, kept because each packet asks.
        handle: what the NIC calls the bundle this SA is offloaded in; 0 when it does not hold it.
        past_handles: what it called bundles this SA was in before; requests may still quote them.
        partner: the other SA of its bundle (AH for ESP, ESP for AH), or None.
        software_handle, software_partner: the same in software IPsec.
        refusal: status and reason when the NIC refused it, else None.
        nic_mark, software_mark: numbers at which each knew the upper half of an extended number.
        half_known: of its extended numbers only the upper half was told, and no packet has come yet.
        sequence: outbound numbers; None on an inbound SA.
        window: inbound window; None on an outbound SA.
        add_time, use_time: seconds of `now`; use_time 0 before the first packet.
        exhaustion_told: whether the end of the numbers has been reported.
        stop: inbound: the packets it may count before `transport.lifetimes` looks at it; an outbound SA
            has `OutboundSequence.stop` for that.
        packets_before, bytes_before: what its counters held when its life began: of other keys.
        padding: outbound: bytes that its key has sealed and its counters do not have, never too few: TFC
            padding, dummies, and in a tunnel the headers of transport mode.
        first_use: `now` of the first packet counted against its lifetime, or None.
        deadline: `now` of its next limit by time; infinite when there is none.
        expiring: a soft limit of its lifetime has been told.
        percent: how much of its numbers has been told to be used, or was before its time.
        cipher_limit: which limit of its cipher has been told: "", cipher-soft or cipher-hard.
        ended: the hard limit that it has reached, or "".
        reserved: outbound: the last number that may be used until more are reserved where they outlive the
            daemon; beyond all numbers when nobody keeps them.
        withheld: outbound: it may not send, because the numbers it used before were lost.
        noted: inbound: the highest number when somebody noted it last.
        successor: inbound: what rekeying has put in its place, while it goes on to take what is under way.
        leaves: `now` at which it goes because it was replaced; infinite when nobody said.
        udp_esp: the subtype of UDP-ESP that it is offered to a NIC with; 0 without UDP encapsulation.
        peer: address and UDP port where its far end is now, if it was followed there, else None.
        make_sequence, make_window, make_counters: of what numbers, windows and counters are made; another
            engine has its own, with the same members.
    """

    make_sequence: ClassVar[type[OutboundSequence]] = OutboundSequence
    make_window: ClassVar[type[ReplayWindow]] = ReplayWindow
    make_counters: ClassVar[type[SaCounters]] = SaCounters

    __slots__ = (
        "add_time",
        "bytes_before",
        "cipher_limit",
        "counters",
        "deadline",
        "ended",
        "exhaustion_told",
        "expiring",
        "first_use",
        "half_known",
        "handle",
        "iv_length",
        "leaves",
        "nic_mark",
        "noted",
        "packets_before",
        "padding",
        "partner",
        "past_handles",
        "peer",
        "percent",
        "refusal",
        "reserved",
        "sa",
        "sequence",
        "software_handle",
        "software_mark",
        "software_partner",
        "stop",
        "successor",
        "udp_esp",
        "use_time",
        "window",
        "withheld",
    )

    def __init__(self, sa: SecurityAssociation, now: float) -> None:
        self.sa = sa
        self.iv_length = sa.iv_length
        self.counters = self.make_counters()
        self.handle = NO_HANDLE
        self.past_handles: tuple[OffloadHandle, ...] = ()
        self.partner: SaState | None = None
        self.software_handle = NO_HANDLE
        self.software_partner: SaState | None = None
        self.refusal: tuple[NdisStatus, str] | None = None
        self.half_known = False
        self.nic_mark = self.software_mark = sa.sequence_number
        self.sequence: OutboundSequence | None = None
        self.window: ReplayWindow | None = None
        if sa.direction is Direction.OUTBOUND:
            self.sequence = self.make_sequence(extended=sa.esn, last=sa.sequence_number)
        else:
            self.window = self.make_window(sa.replay_window, sa.sequence_number)
        self.add_time = now
        self.use_time = 0.0
        self.exhaustion_told = False
        self.stop = NO_STOP
        self.packets_before = self.bytes_before = self.padding = 0
        self.first_use: float | None = None
        self.deadline = inf
        self.expiring = False
        self.ended = ""
        self.reserved = NO_STOP
        self.withheld = False
        self.noted = sa.sequence_number
        self.successor: SaId | None = None
        self.leaves = inf
        self.udp_esp = 0
        if sa.udp is not None:
            self.udp_esp = UDP_ESP_TRANSPORT if sa.mode is Mode.TRANSPORT else UDP_ESP_TUNNEL
        self.peer: tuple[bytes, int] | None = None
        self.cipher_limit = ""
        self.percent = 0 if self.sequence is None else self.sequence.percent(self.sequence.last)
        if sa.lifetime is not None or (sa.encryption is not None and sa.encryption.has_short_blocks):
            # The first packet is looked at: it begins the life in use.
            self.stop = 0
            if self.sequence is not None:
                self.sequence.stop = 0

    def carry_on(self, old: SaState) -> None:
        """Go on counting where an SA with the same keys, which this one replaces, has stopped."""
        self.add_time = old.add_time
        self.first_use = old.first_use
        self.cipher_limit = old.cipher_limit
        self.packets_before = old.packets_before
        self.bytes_before = old.bytes_before
        self.padding = old.padding
        if self.sa.source == old.sa.source and self.sa.udp == old.sa.udp:
            self.peer = old.peer

    def end(self, limit: str) -> None:
        """Let nothing more pass: a hard limit is reached."""
        self.ended = limit
        self.stop = 0
        if self.sequence is not None:
            self.sequence.end()

    @property
    def replaced(self) -> bool:
        """Whether rekeying has put another in its place."""
        return self.successor is not None

    def dispose(self) -> None:
        """Give back what belongs to the SA alone: it has left the SAD."""

    @property
    def may_send(self) -> bool:
        """Whether an outbound SA has a number to give now."""
        sequence = self.sequence
        return sequence is not None and not sequence.exhausted and sequence.last < self.reserved

    @property
    def sequence_number(self) -> int:
        """Outbound: last number used. Inbound: highest number authenticated."""
        if self.sequence is not None:
            return self.sequence.last
        assert self.window is not None
        return self.window.top

    def bundle(self) -> tuple[SaState, ...]:
        """Itself and its partner, ESP first."""
        partner = self.partner
        if partner is None:
            return (self,)
        return (self, partner) if self.sa.protocol < partner.sa.protocol else (partner, self)
