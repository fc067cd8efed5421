"""SaState: what an SA lives through.

Law: data; who adds, offloads and withdraws SAs is `sad`, who uses them `outbound` and `inbound`.
"""

from __future__ import annotations

from vnic.ipsec.association import Direction, SecurityAssociation
from vnic.ipsec.counters import SaCounters
from vnic.ipsec.replay import ReplayWindow
from vnic.ipsec.sequence import OutboundSequence
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.status import NdisStatus

NO_HANDLE = OffloadHandle(0)


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
    """

    __slots__ = (
        "add_time",
        "counters",
        "exhaustion_told",
        "half_known",
        "handle",
        "iv_length",
        "nic_mark",
        "partner",
        "past_handles",
        "refusal",
        "sa",
        "sequence",
        "software_handle",
        "software_mark",
        "software_partner",
        "use_time",
        "window",
    )

    def __init__(self, sa: SecurityAssociation, now: float) -> None:
        self.sa = sa
        self.iv_length = sa.iv_length
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
            self.sequence = OutboundSequence(extended=sa.esn, last=sa.sequence_number)
        else:
            self.window = ReplayWindow(sa.replay_window, sa.sequence_number)
        self.counters = SaCounters()
        self.add_time = now
        self.use_time = 0.0
        self.exhaustion_told = False

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
