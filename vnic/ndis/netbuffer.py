"""NetBuffer: one Ethernet frame with the out-of-band information both roles exchange about it.

Law: data only. One NetBuffer stands for a NET_BUFFER with the out-of-band information of its list; the
inline transport sends lists of one. Whoever holds the list owns the buffer; `miniport.send` and
`miniport.receive` change `frame` in place. The binary form of the same information is `ndis.oob`.

Source: NDIS_IPSEC_OFFLOAD_V2_NET_BUFFER_LIST_INFO, …_HEADER_…, …_TUNNEL_… (sheet §5).
"""

from __future__ import annotations

from typing import NamedTuple, NewType

from vnic.ndis.status import CryptoStatus, NdisStatus
from vnic.packet.vnet import VnetHeader

OffloadHandle = NewType("OffloadHandle", int)
"""Name of one offloaded SA bundle, made by the miniport, quoted by the transport (R88, R108); 0 is none."""


class LargeSend(NamedTuple):
    """LSO information of a large packet (sheet §5.5, §8)."""

    mss: int
    """TCP payload of each segment but the last, in bytes (R194)."""
    tcp_header_offset: int
    """Bytes from the frame start to the TCP header (of the NDIS 6 slot), 0 if not given."""
    version: int
    """1 or 2: LSOv1 or LSOv2."""
    ipv6: bool


class ChecksumRequest(NamedTuple):
    """NDIS_TCP_IP_CHECKSUM_NET_BUFFER_LIST_INFO of a send: checksums the NIC completes before it seals."""

    ipv6: bool
    tcp: bool
    udp: bool
    ip_header: bool
    tcp_header_offset: int
    """Bytes from the frame start to the TCP or UDP header, 0 if not given."""


class TransmitInfo(NamedTuple):
    """What the transport tells the NIC about a frame.

    Offsets are bytes from the start of the outermost IP header (NDIS divides by 4 only in the binary
    form, R162) and name the headers of `offload_handle`'s SA; 0 when that header is absent. The headers
    of `tunnel_handle`'s SA directly follow the outer IP header, so they need no offset. An SA that came by
    a V1 OID has no header information: the NIC finds the headers itself (R12).
    """

    offload_handle: OffloadHandle
    """SA of the only IPsec portion, or of the transport portion when there are two (R160, R168); 0: no IPsec
    (R164)."""
    tunnel_handle: OffloadHandle
    """SA of the tunnel portion of a transport-over-tunnel packet, else 0."""
    next_header: int
    """Value of the ESP trailer's next header field (R161)."""
    pad_length: int
    """ESP padding, in bytes (R191)."""
    ah_header_offset: int
    esp_header_offset: int
    large_send: LargeSend | None = None
    """Segment the frame first (R166)."""
    checksum: ChecksumRequest | None = None
    """Complete checksums first."""


class ReceiveInfo(NamedTuple):
    """What the NIC found out about a received frame. Present only on frames that matched an SA (R174)."""

    crypto_done: bool
    """At least one IPsec payload was checked (R176)."""
    next_crypto_done: bool
    """Tunnel and transport portion were both checked (R177, R178)."""
    crypto_status: CryptoStatus
    """Result of the first layer that failed, outermost first; SUCCESS if none did (R180)."""
    sa_delete_req: bool = False
    """The NIC asks the transport to delete this SA and its outbound partner (R183)."""
    header_info_set: bool = False
    """`next_header` and `pad_length` are valid (R182)."""
    next_header: int = 0
    """Next header of the innermost opened ESP trailer."""
    pad_length: int = 0
    """Padding of the innermost opened ESP trailer, in bytes."""

    @property
    def verified(self) -> bool:
        """Whether every IPsec layer the NIC met was checked and good: the only proof there is."""
        return self.crypto_done and self.crypto_status is CryptoStatus.SUCCESS


class NetBuffer:
    """One Ethernet frame on its way through the card.

    Attributes:
        frame: the Ethernet frame, without preamble and FCS; owned by the holder of this object.
        vnet: virtio-net header of a frame that came from or goes to the host side; None means that
            checksums are complete and the frame is one packet.
        transmit: set by the transport on frames the NIC must protect; None means untouched (R164).
        receive: set by the NIC on frames that matched an SA; None means not processed (R174, R181).
        status: completion status of a send, set by the NIC; SUCCESS until then.
        reason: set by the NIC when it refused a send: why, for a person; never anything of a key.
    """

    __slots__ = ("frame", "reason", "receive", "status", "transmit", "vnet")

    def __init__(
        self,
        frame: bytearray,
        vnet: VnetHeader | None = None,
        transmit: TransmitInfo | None = None,
    ) -> None:
        self.frame = frame
        self.vnet = vnet
        self.transmit = transmit
        self.receive: ReceiveInfo | None = None
        self.status = NdisStatus.SUCCESS
        self.reason = ""

    def __repr__(self) -> str:
        return f"NetBuffer({len(self.frame)} bytes, transmit={self.transmit}, receive={self.receive})"


class NetBufferList:
    """NET_BUFFER_LIST as a protocol driver hands it down: frames with one set of out-of-band information.

    Attributes:
        request_id: the driver's name for it, quoted when it completes.
        frames: one or more Ethernet frames; the NIC's while the list is with it.
        transmit: None: the NIC touches nothing (R164).
        status: set by the NIC when it is done with the list.
        tcp_payload: set by the NIC on completion of an LSOv1 list: TCP payload sent, in bytes.
        reason: set by the NIC when it refused the list: why, for a person; never anything of a key.
    """

    __slots__ = ("frames", "reason", "request_id", "status", "tcp_payload", "transmit")

    def __init__(self, request_id: int, frames: list[bytearray], transmit: TransmitInfo | None) -> None:
        self.request_id = request_id
        self.frames = frames
        self.transmit = transmit
        self.status = NdisStatus.PENDING
        self.tcp_payload = 0
        self.reason = ""

    def __repr__(self) -> str:
        sizes = [len(frame) for frame in self.frames]
        return f"NetBufferList({self.request_id}, {sizes} bytes, {self.transmit}, {self.status.label})"
