"""Frames on their way to the wire: IVs, cipher text and ICVs of every portion, innermost first.

Law: believes nothing the transport wrote about lengths; a frame whose layout does not fit its SAs is refused,
never sealed by halves and sent.

    [ Ethernet | outer IP | AH? | ESP? IV | inner IP | AH? | ESP? IV | payload | trailer ICV | trailer ICV ]
                          |<-- tunnel --->|          |<- transport ->|

Source: sheet §6; R159-R169, R197.
"""

from __future__ import annotations

from vnic.errors import PacketError
from vnic.miniport.layout import plain_esp, within
from vnic.miniport.sa_table import OutboundBundle, SaTable
from vnic.ndis.capabilities import NO_IPSEC, TaskOffload
from vnic.ndis.netbuffer import NetBuffer, NetBufferList, TransmitInfo
from vnic.ndis.status import NdisStatus
from vnic.packet.esp import ESP_TRAILER_LENGTH
from vnic.packet.ethernet import ETHERNET_LENGTH, ip_offset
from vnic.packet.ip import AH, ESP, IpHeader, parse_ip
from vnic.packet.vnet import GSO_NONE, NEEDS_CSUM


class Sender:
    """The send half of the NIC."""

    def __init__(self, table: SaTable) -> None:
        self._outbound = table.outbound
        self._capabilities = NO_IPSEC

    def configure(self, current: TaskOffload, *, ipv4: bool = True) -> None:
        """Work by this configuration from the next frame on."""
        self._capabilities = current.ipsec_v2

    def transmit(self, lists: list[NetBufferList]) -> list[NetBuffer]:
        """Take net buffer lists of a protocol driver (R167, R197).

        Completes every list: `status` is set, and the lists keep their order. A list fails whole.

        Returns:
            The frames for the wire, in order.
        """
        wire: list[NetBuffer] = []
        for one in lists:
            buffers = [NetBuffer(frame, None, one.transmit) for frame in one.frames]
            self.send(buffers)
            one.status = next(
                (buffer.status for buffer in buffers if buffer.status is not NdisStatus.SUCCESS),
                NdisStatus.SUCCESS,
            )
            if one.status is NdisStatus.SUCCESS:
                wire += buffers
        return wire

    def send(self, burst: list[NetBuffer]) -> None:
        """See `Miniport.send`."""
        for buffer in burst:
            info = buffer.transmit
            if info is None:
                continue
            try:
                self._seal(buffer, info)
            except PacketError:
                buffer.status = NdisStatus.FAILURE

    def _seal(self, buffer: NetBuffer, info: TransmitInfo) -> None:
        if not self._capabilities.encapsulation:
            raise PacketError("IPsec offload is not configured")
        frame = buffer.frame
        bundle = self._bundle(info.offload_handle)
        vnet = buffer.vnet
        if vnet is not None and (vnet.flags & NEEDS_CSUM or vnet.gso_type != GSO_NONE):
            raise PacketError("under ESP no checksum can be completed and no superframe cut any more")
        esp = bundle.esp
        if esp is not None and bundle.ah is None and not info.tunnel_handle:
            version, start, end = plain_esp(frame)
            if (
                version == bundle.version
                and info.esp_header_offset == start - ETHERNET_LENGTH
                and not info.ah_header_offset
            ):
                esp.seal(frame, start, end)
                return
        outer = self._header(frame, ip_offset(frame), len(frame))
        if not info.tunnel_handle:
            _seal_portion(frame, outer, bundle, outer.offset, info)
            return
        if not self._capabilities.transport_tunnel_combined:
            raise PacketError("this NIC does not seal a transport and a tunnel portion in one packet")
        tunnel = self._bundle(info.tunnel_handle)
        _, start, limit = _ipsec_headers(frame, outer, tunnel)
        if tunnel.esp is not None:
            start += tunnel.esp.header_length
            limit -= tunnel.esp.icv_length + ESP_TRAILER_LENGTH
        inner = self._header(frame, start, limit)
        _seal_portion(frame, inner, bundle, outer.offset, info)
        _seal_portion(frame, outer, tunnel, outer.offset, None)

    def _bundle(self, handle: int) -> OutboundBundle:
        bundle = self._outbound.get(handle)
        if bundle is None:
            raise PacketError("no outbound SA has this handle")
        return bundle

    def _header(self, frame: bytearray, offset: int, limit: int) -> IpHeader:
        """The IP header at `offset`, if it is one this NIC may protect."""
        if not offset:
            raise PacketError("not an IP packet")
        header = parse_ip(frame, offset, limit)
        if header.fragment:
            raise PacketError("a fragment (R16)")
        if not within(self._capabilities, header):
            raise PacketError("options or extension headers beyond the capabilities")
        return header


def _ipsec_headers(frame: bytearray, header: IpHeader, bundle: OutboundBundle) -> tuple[int, int, int]:
    """Give the offsets of the AH header (0 if the bundle has none), of what follows it, and of the end.

    Raises:
        PacketError: the headers are not those of the bundle.
    """
    if header.version != bundle.version:
        raise PacketError("the SA is of the other IP version")
    start = header.payload_offset
    end = header.end
    protocol = header.protocol
    ah_start = 0
    if bundle.ah is not None:
        if protocol != AH:
            raise PacketError("the SA is AH, and the packet has no AH header here")
        ah_start = start
        start += bundle.ah.length(frame, header.offset, start, end)
        protocol = frame[ah_start]
    if bundle.esp is not None and protocol != ESP:
        raise PacketError("the SA is ESP, and the packet has no ESP header here")
    return ah_start, start, end


def _seal_portion(
    frame: bytearray, header: IpHeader, bundle: OutboundBundle, outermost: int, info: TransmitInfo | None
) -> None:
    """Seal what follows one IP header.

    Args:
        outermost: offset of the outermost IP header, from which the offsets of `info` count.
        info: what the transport says about this portion, or None if it says nothing.
    """
    ah_start, start, end = _ipsec_headers(frame, header, bundle)
    if info is not None:
        ah_offset = ah_start - outermost if bundle.ah is not None else 0
        esp_offset = start - outermost if bundle.esp is not None else 0
        if (info.ah_header_offset, info.esp_header_offset) != (ah_offset, esp_offset):
            raise PacketError("the header offsets are not those of the packet")
    if bundle.esp is not None:
        bundle.esp.seal(frame, start, end)
    if bundle.ah is not None:
        bundle.ah.seal(frame, header.offset, ah_start, end)
