"""Frames on their way to the wire: segments, checksums, then IVs, cipher text and ICVs of every portion.

Law: believes nothing the transport wrote about lengths; a frame whose layout does not fit its SAs, or the
header information that came with it, is refused, never sealed by halves and sent. What names an SA never goes
out in clear, whatever is switched off (against R163: the frame is framed for IPsec).

    [ Ethernet | outer IP | AH? | ESP? IV | inner IP | AH? | ESP? IV | payload | trailer ICV | trailer ICV ]
                          |<-- tunnel --->|          |<- transport ->|

    large send?  ->  cut into segments  ->  checksums  ->  seal transport portion  ->  seal tunnel portion

Source: sheet §6, §8, §9; R12, R16, R156-R169, R189-R200.
"""

from __future__ import annotations

from vnic.errors import PacketError
from vnic.ipsec.association import Mode
from vnic.miniport.abilities import Abilities, abilities
from vnic.miniport.checksums import complete
from vnic.miniport.layout import plain_esp
from vnic.miniport.lso import check_covers, check_large_send, cut, headers_only
from vnic.miniport.portions import IP_IN_IP, Portion, find_headers, ip_header, seal, whole_portion
from vnic.miniport.sa_table import OutboundBundle, SaTable
from vnic.miniport.udp_esp import Place, inside, subtypes
from vnic.ndis.capabilities import NO_TASK_OFFLOAD, TaskOffload
from vnic.ndis.netbuffer import ChecksumRequest, NetBuffer, NetBufferList, TransmitInfo
from vnic.ndis.oid import OidVersion
from vnic.ndis.status import NdisStatus
from vnic.packet.ethernet import ETHERNET_LENGTH, ip_offset
from vnic.packet.ip import IpHeader, parse_ip
from vnic.packet.vnet import GSO_NONE, NEEDS_CSUM

_IP_VERSIONS = range(7)


class Sender:
    """The send half of the NIC. Nothing is sealed before `configure` switches something on."""

    def __init__(self, table: SaTable) -> None:
        self._outbound = table.outbound
        self.configure(NO_TASK_OFFLOAD)

    def configure(self, current: TaskOffload, *, ipv4: bool = True) -> None:
        """Work by this configuration from the next frame on.

        Args:
            ipv4: whether IPv4 is on, which no member of NDIS_IPSEC_OFFLOAD_V2 tells.
        """
        self._current = current
        self._able = abilities(current, send=True, ipv4=ipv4)
        v2 = self._able[OidVersion.V2]
        # By IP version: whether the short way may seal without a look at the configuration.
        self._plain = tuple(version in (4, 6) and v2.plain(version) for version in _IP_VERSIONS)

    def send(self, burst: list[NetBuffer]) -> None:
        """See `Miniport.send`."""
        for buffer in burst:
            info = buffer.transmit
            if info is None:
                continue
            try:
                self._seal(buffer, info)
            except PacketError as error:
                buffer.status = NdisStatus.FAILURE
                buffer.reason = str(error)

    def transmit(self, lists: list[NetBufferList]) -> list[NetBuffer]:
        """Take net buffer lists of a protocol driver.

        Completes every list: `status` is set, with the `reason` of a refusal, and `tcp_payload` of an LSOv1
        list (R200). A list fails whole: none of its frames goes out.

        Returns:
            The frames for the wire, in the order of the lists (R197).
        """
        wire: list[NetBuffer] = []
        for one in lists:
            try:
                wire += self._frames(one)
            except PacketError as error:
                one.status = NdisStatus.FAILURE
                one.reason = str(error)
            else:
                one.status = NdisStatus.SUCCESS
        return wire

    def _frames(self, one: NetBufferList) -> list[NetBuffer]:
        """Give the frames of a list as they go on the wire (R167).

        Raises:
            PacketError: one of them is refused.
        """
        info = one.transmit
        if info is not None and info.large_send is not None:
            return self._large(one, info)
        buffers = [NetBuffer(frame, None, info) for frame in one.frames]
        if info is not None:
            for buffer in buffers:
                if info.offload_handle:
                    self._seal(buffer, info)
                else:
                    self._leave_clear(buffer.frame, info)
        return buffers

    # --------------------------------------------------------------------------------- one packet

    def _seal(self, buffer: NetBuffer, info: TransmitInfo) -> None:
        """Seal the usual shape, one ESP SA and nothing else to do, at once; else look at everything."""
        frame = buffer.frame
        vnet = buffer.vnet
        if vnet is not None and (vnet.flags & NEEDS_CSUM or vnet.gso_type != GSO_NONE):
            raise PacketError("under ESP no checksum can be completed and no superframe cut any more")
        bundle = self._outbound.get(info.offload_handle)
        if (
            bundle is None
            or not bundle.ordinary
            or info.tunnel_handle
            or info.large_send is not None
            or info.checksum is not None
        ):
            self._seal_any(frame, info)
            return
        version, start, end = plain_esp(frame)
        if (
            version != bundle.version
            or not self._plain[version]
            or info.esp_header_offset != start - ETHERNET_LENGTH
            or info.ah_header_offset
        ):
            self._seal_any(frame, info)
            return
        esp = bundle.esp
        assert esp is not None
        trailer = end - esp.icv_length
        if frame[trailer - 1] != info.next_header or frame[trailer - 2] != info.pad_length:
            raise PacketError("next header or pad length are not those of the ESP trailer")
        esp.seal(frame, start, end)

    def _seal_any(self, frame: bytearray, info: TransmitInfo) -> None:
        if info.large_send is not None:
            raise PacketError("a large send where single packets are sent")
        if not info.offload_handle:
            if info.ah_header_offset or info.esp_header_offset:
                # The inline transport frames for IPsec what it wants protected, and nothing else.
                raise PacketError("IPsec headers without a handle")
            self._leave_clear(frame, info)
            return
        portions = self._portions(frame, info)
        outer = portions[0].headers.header
        if info.checksum is not None:
            self._complete(frame, info.checksum, outer, portions[-1].headers.header, portions[-1])
        for portion in reversed(portions):
            seal(frame, portion.headers, portion.headers.header.end)

    def _leave_clear(self, frame: bytearray, info: TransmitInfo) -> None:
        """Do what is wanted of a frame without a handle (R164)."""
        _check_no_handle(info)
        if info.checksum is not None:
            outer = parse_ip(frame, _at(frame))
            self._complete(frame, info.checksum, outer, outer, None)

    def _portions(self, frame: bytearray, info: TransmitInfo) -> list[Portion]:
        """Find the portions of a packet, tunnel portion first, and hold them to the header information."""
        bundle, able = self._bundle(info.offload_handle)
        outer = ip_header(frame, ip_offset(frame), len(frame), able)
        if not info.tunnel_handle:
            portions = [_portion(frame, outer, bundle, able, Place.OUTERMOST)]
        else:
            tunnel, tunnel_able = self._bundle(info.tunnel_handle)
            if not (able.both_portions and tunnel_able.both_portions):
                raise PacketError("this NIC does not seal a transport and a tunnel portion in one packet")
            around = _portion(frame, outer, tunnel, tunnel_able, Place.OUTERMOST)
            inner = ip_header(frame, around.text, around.text_end, able)
            if around.next_header != IP_IN_IP[inner.version]:
                raise PacketError("the tunnel portion does not name the packet inside it")
            place = inside(subtypes(tunnel, tunnel_able), in_udp=bool(around.headers.udp))
            portions = [around, _portion(frame, inner, bundle, able, place)]
        if bundle.oid_version is OidVersion.V2:
            _check_header_info(info, portions[-1], outer.offset)
        return portions

    def _bundle(self, handle: int) -> tuple[OutboundBundle, Abilities]:
        bundle = self._outbound.get(handle)
        if bundle is None:
            raise PacketError("no outbound SA has this handle (R165)")
        able = self._able[bundle.oid_version]
        if not (able.everything or able.covers(bundle)):
            raise PacketError("IPsec offload for this SA is not configured")
        return bundle, able

    def _complete(
        self,
        frame: bytearray,
        request: ChecksumRequest,
        outermost: IpHeader,
        header: IpHeader,
        portion: Portion | None,
    ) -> None:
        """Complete checksums, inside the innermost portion if there is one."""
        protocol, start, end = header.protocol, header.payload_offset, header.end
        if portion is not None:
            protocol, start, end = portion.next_header, portion.text, portion.text_end
            if portion.mode is Mode.TUNNEL:
                header = parse_ip(frame, start, end)
                protocol, start, end = header.protocol, header.payload_offset, header.end
        if header.fragment:
            raise PacketError("a checksum over a fragment")
        complete(frame, request, self._current.checksum, outermost, header, protocol, start, end)

    # --------------------------------------------------------------------------------- large sends

    def _large(self, one: NetBufferList, info: TransmitInfo) -> list[NetBuffer]:
        """Cut a large packet and seal its segments. Their checksums are complete, asked for or not.

        Raises:
            PacketError: more than one large packet (R192), or it is refused.
        """
        large = info.large_send
        assert large is not None
        if len(one.frames) != 1:
            raise PacketError("a large send has one NET_BUFFER (R192)")
        frame = one.frames[0]
        offset = ip_offset(frame)
        able = self._current.large_send
        check_large_send(frame, offset, large, able)
        front = headers_only(frame, offset, 6 if large.ipv6 else 4)
        if not info.offload_handle:
            _check_no_handle(info)
            header = parse_ip(front, offset)
            if header.fragment:
                raise PacketError("a fragment (R16)")
            made = cut(frame, header, None, info, able)
        else:
            if info.tunnel_handle:
                raise PacketError("a large send through a tunnel (R31, R198)")
            bundle, ipsec_able = self._bundle(info.offload_handle)
            check_covers(ipsec_able)
            header = ip_header(front, offset, len(front), ipsec_able)
            headers = find_headers(front, header, bundle, ipsec_able, Place.OUTERMOST, large=True)
            if bundle.portion is Mode.TUNNEL or Mode.TRANSPORT not in ipsec_able.modes(bundle):
                raise PacketError("a large send through a tunnel (R31, R198)")
            _check_offsets(info, headers.ah, headers.esp, offset)
            made = cut(frame, header, headers, info, able)
            for segment in made.frames:
                seal(segment, headers, len(segment))
        if large.version == 1:
            one.tcp_payload = made.payload_length
        return [NetBuffer(segment, None, info) for segment in made.frames]


def _portion(
    frame: bytearray, header: IpHeader, bundle: OutboundBundle, able: Abilities, place: Place
) -> Portion:
    return whole_portion(frame, find_headers(frame, header, bundle, able, place), able, place)


def _at(frame: bytearray) -> int:
    offset = ip_offset(frame)
    if not offset:
        raise PacketError("not an IP packet")
    return offset


def _check_no_handle(info: TransmitInfo) -> None:
    """Refuse a mistake that would send in clear: a tunnel handle without the other (R164)."""
    if info.tunnel_handle:
        raise PacketError("a tunnel handle without an offload handle")


def _check_header_info(info: TransmitInfo, portion: Portion, outermost: int) -> None:
    """Hold the header information of a V2 frame to what the frame shows (R161, R162, R191)."""
    headers = portion.headers
    _check_offsets(info, headers.ah, headers.esp, outermost)
    if headers.esp and (info.next_header, info.pad_length) != (portion.next_header, portion.pad_length):
        raise PacketError("next header or pad length are not those of the ESP trailer")


def _check_offsets(info: TransmitInfo, ah: int, esp: int, outermost: int) -> None:
    expected = (ah - outermost if ah else 0, esp - outermost if esp else 0)
    if (info.ah_header_offset, info.esp_header_offset) != expected:
        raise PacketError("the header offsets are not those of the packet")
