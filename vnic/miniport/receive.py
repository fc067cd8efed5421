"""Frames from the wire: each IPsec layer that has an SA is checked and opened, outermost first.

Law: changes a frame only where an ICV held, and puts every byte back when a layer inside fails; strips
nothing, drops nothing, checks no replay and no padding.

    packet    layers under its IP header (AH, ESP, or ESP in UDP), then the packet inside, if that is one too
    layer     SA by SPI and destination -> configuration -> lengths -> ICV -> plain text in place

The walk ends at what has no SA, is a fragment, is no IPsec, or stands in UDP with a wrong checksum. Where a
layer has an SA that this NIC must not apply to it, the whole packet is left alone; where no NIC can apply it,
the packet fails. So SUCCESS means that every layer with an SA was checked.

A packet that a V1 SA opened and that is not what the filter of that SA names fails with INVALID_PROTOCOL:
the protocols in the packet are not those of the SA (sheet §7.2). The sheet has no rule for it.

Source: sheet §7, §9; R5, R6, R17, R135, R151, R154-R158, R170-R187.
"""

from __future__ import annotations

from vnic.errors import PacketError
from vnic.ipsec.association import Mode
from vnic.miniport.abilities import Abilities, abilities
from vnic.miniport.ciphers import WrongIcv
from vnic.miniport.delete_requests import DeleteRequests
from vnic.miniport.layout import plain_esp
from vnic.miniport.sa_table import InboundBundle, SaTable
from vnic.miniport.traffic_filter import passes_addresses, passes_protocol
from vnic.miniport.udp_esp import Place, fits, implied_mode, inside, subtypes
from vnic.ndis.capabilities import NO_TASK_OFFLOAD, TaskOffload
from vnic.ndis.netbuffer import NetBuffer, ReceiveInfo
from vnic.ndis.oid import OidVersion
from vnic.ndis.status import CryptoStatus
from vnic.packet.esp import ESP_TRAILER_LENGTH
from vnic.packet.ethernet import ip_offset
from vnic.packet.ip import (
    AH,
    DESTINATION_OPTIONS,
    ESP,
    HOP_BY_HOP,
    IPV4_IN_IP,
    IPV6_IN_IP,
    ROUTING,
    UDP,
    IpHeader,
    parse_ip,
)
from vnic.packet.udp import NAT_TRAVERSAL_PORT, esp_in_udp, is_damaged

MAX_LAYERS = 4
"""AH and ESP of a tunnel portion, AH and ESP of a transport portion. Without a limit one packet could cost
the square of its length."""

_AH_FAILED = (CryptoStatus.TRANSPORT_AH_AUTH_FAILED, CryptoStatus.TUNNEL_AH_AUTH_FAILED)
_ESP_FAILED = (CryptoStatus.TRANSPORT_ESP_AUTH_FAILED, CryptoStatus.TUNNEL_ESP_AUTH_FAILED)
"""By whether the SA protects the tunnel portion."""

_FAILURES = {
    (status, both, delete): ReceiveInfo(True, both, status, delete)
    for status in CryptoStatus
    for both in (False, True)
    for delete in (False, True)
}
_ONLY_A_REQUEST = ReceiveInfo(False, False, CryptoStatus.SUCCESS, True)
"""Of a packet that was not processed, whose SA the NIC wants to get rid of (R135)."""

_IPSEC = (ESP, AH)
_IPSEC_OR_UDP = (ESP, AH, UDP)
_IP_IN_IP = (IPV4_IN_IP, IPV6_IN_IP)
_EXTENSION_HEADERS = (HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS)
_MAY_HOLD_MORE = frozenset({*_IPSEC, *_IP_IN_IP, *_EXTENSION_HEADERS})
"""Next headers behind which another IPsec layer may lie."""
_NO_CHECKSUM = bytes(2)
_NAT_TRAVERSAL = NAT_TRAVERSAL_PORT.to_bytes(2, "big")


class _Fault(Exception):
    """The packet fails here."""

    def __init__(self, status: CryptoStatus) -> None:
        self.status = status


class _Beyond(Exception):
    """The packet is outside the capabilities, or what it needs is switched off (R172, R175)."""


class Receiver:
    """The receive half of the NIC. Nothing is processed before `configure` switches something on (R55)."""

    def __init__(self, table: SaTable) -> None:
        self._table = table
        self._requests = DeleteRequests(table)
        self._turn = 0
        self._good: dict[bytes, ReceiveInfo] = {}
        self.configure(NO_TASK_OFFLOAD)

    def configure(self, current: TaskOffload, *, ipv4: bool = True) -> None:
        """Work by this configuration from the next frame on.

        Args:
            ipv4: whether IPv4 is on, which no member of NDIS_IPSEC_OFFLOAD_V2 tells.
        """
        self._able = abilities(current, send=False, ipv4=ipv4)
        self._on = any(able.any for able in self._able.values())
        # The short way asks no configuration, so it sees SAs only where all of them are on.
        v2 = self._able[OidVersion.V2]
        self._esp4 = self._table.esp if v2.plain(4) else {}
        self._esp6 = self._table.esp if v2.plain(6) else {}

    @property
    def wants_room(self) -> bool:
        """Whether it looks for an SA to ask for."""
        return self._on and self._requests.wanted()

    def receive(self, burst: list[NetBuffer]) -> None:
        """See `Miniport.receive`."""
        if not self._on:
            for buffer in burst:
                buffer.receive = None
            return
        if burst and self._requests.wanted():
            # One frame of a burst is enough to find an old SA by; the others keep their short way.
            self._turn += 1
            asked = burst[self._turn % len(burst)]
            for buffer in burst:
                requests = self._requests if buffer is asked else None
                buffer.receive = self._walk(buffer.frame, requests) if requests else self._open(buffer.frame)
            return
        for buffer in burst:
            buffer.receive = self._open(buffer.frame)

    def _open(self, frame: bytearray) -> ReceiveInfo | None:
        """Open the usual shape, one ESP SA around something that is not IPsec, at once; else walk."""
        version, start, end = plain_esp(frame)
        if version == 4:
            bundle = self._esp4.get(bytes(frame[start - 4 : start + 4]))
            source = frame[start - 8 : start - 4]
        elif version == 6:
            bundle = self._esp6.get(bytes(frame[start - 16 : start + 4]))
            source = frame[start - 32 : start - 16]
        else:
            return self._walk(frame)
        if bundle is None or not bundle.ordinary or (bundle.source and bundle.source != source):
            return self._walk(frame)
        esp = bundle.esp
        assert esp is not None
        try:
            sealed = esp.open(frame, start, end)
        except WrongIcv:
            return _FAILURES[_ESP_FAILED[bundle.tunnel], False, False]
        except PacketError:
            return _FAILURES[CryptoStatus.INVALID_PACKET_SYNTAX, False, False]
        stop = end - esp.icv_length
        next_header = frame[stop - 1]
        if next_header in _MAY_HOLD_MORE and self._holds_more(frame, next_header, start + esp.header_length):
            if sealed is not None:
                frame[end - len(sealed) : end] = sealed
            return self._walk(frame)
        if bundle.portion is None:
            bundle.tunnel = next_header in _IP_IN_IP
        trailer = bytes(frame[stop - ESP_TRAILER_LENGTH : stop])
        info = self._good.get(trailer)
        if info is None:
            info = self._good[trailer] = _success(False, False, trailer)
        return info

    def _holds_more(self, frame: bytearray, next_header: int, text: int) -> bool:
        """Whether another IPsec layer may follow in an ESP packet that was good.

        ICV and trailer make it long enough for a look at the protocol field of an inner IP header.
        """
        if next_header == IPV4_IN_IP:
            protocol = frame[text + 9]
            if protocol != UDP:
                return protocol in _IPSEC
            # To NAT_TRAVERSAL_PORT, if it has no options; where it has, the walk finds out.
            return self._table.udp_esp_count > 0 and (
                frame[text] != 0x45 or frame[text + 22 : text + 24] == _NAT_TRAVERSAL
            )
        if next_header == IPV6_IN_IP:
            protocol = frame[text + 6]
            if protocol != UDP:
                return protocol in _MAY_HOLD_MORE
            return self._table.udp_esp_count > 0 and frame[text + 42 : text + 44] == _NAT_TRAVERSAL
        return True

    def _walk(self, frame: bytearray, requests: DeleteRequests | None = None) -> ReceiveInfo | None:
        """Go through all layers.

        Args:
            requests: if given, an SA of the frame may be asked for.
        """
        offset = ip_offset(frame)
        if not offset:
            return None
        try:
            header = parse_ip(frame, offset)
        except PacketError:
            return None
        if header.fragment or not self._may_be_ipsec(header):
            return None
        return _Walk(self._table, self._able, frame, requests).through(header)

    def _may_be_ipsec(self, header: IpHeader) -> bool:
        protocol = header.protocol
        return protocol in _IPSEC or (protocol == UDP and self._table.udp_esp_count > 0)


def _success(both: bool, delete: bool, trailer: bytes | bytearray | None) -> ReceiveInfo:
    """All that was checked was good; `trailer` is pad length and next header of the innermost ESP."""
    if trailer is None:
        return ReceiveInfo(True, both, CryptoStatus.SUCCESS, delete)
    return ReceiveInfo(True, both, CryptoStatus.SUCCESS, delete, True, trailer[1], trailer[0])


class _Walk:
    """The way through the layers of one packet."""

    __slots__ = (
        "_able",
        "_changed",
        "_delete",
        "_frame",
        "_inner_protocols",
        "_layers",
        "_place",
        "_portions",
        "_requests",
        "_table",
        "_trailer",
    )

    def __init__(
        self,
        table: SaTable,
        able: dict[OidVersion, Abilities],
        frame: bytearray,
        requests: DeleteRequests | None,
    ) -> None:
        self._table = table
        self._able = able
        self._frame = frame
        self._requests = requests
        self._inner_protocols = _IPSEC_OR_UDP if table.udp_esp_count else _IPSEC
        self._place = Place.OUTERMOST
        self._layers = 0
        self._portions = 0
        self._delete = False
        self._trailer: bytearray | None = None
        self._changed: list[tuple[int, bytearray]] = []

    def through(self, header: IpHeader) -> ReceiveInfo | None:
        """Open the packet and those inside it; None if it is not to be processed."""
        inner: IpHeader | None = header
        try:
            while inner is not None:
                inner = self._packet(inner)
        except _Beyond:
            self._restore()
            return _ONLY_A_REQUEST if self._delete else None
        except _Fault as fault:
            self._restore()
            return _FAILURES[fault.status, self._portions > 1, self._delete]
        return _success(self._portions > 1, self._delete, self._trailer) if self._layers else None

    def _packet(self, header: IpHeader) -> IpHeader | None:
        """Open the layers under one IP header; gives the header of an IPsec packet inside, if there is."""
        frame = self._frame
        protocol, start, end = header.protocol, header.payload_offset, header.end
        udp = 0
        if protocol == UDP:
            udp = start
            protocol = ESP
            start, end = esp_in_udp(frame, start, end)
            if not start or (
                frame[udp + 6 : udp + 8] != _NO_CHECKSUM
                and is_damaged(frame, header.source, header.destination, udp, end)
            ):
                return None
        bundle: InboundBundle | None = None
        pending: InboundBundle | None = None
        filtered: list[InboundBundle] = []
        previous = 0
        while True:
            if previous and protocol in _EXTENSION_HEADERS and header.version == 6:
                header = header._replace(has_options=True)
                protocol, start = _behind_extension_headers(frame, protocol, start, end)
            in_udp = bool(udp) and not previous
            found = self._find(header, protocol, start, end, in_udp)
            if pending is not None and (found is not pending or protocol != ESP):
                raise _Fault(CryptoStatus.INVALID_PROTOCOL)
            if found is None:
                break
            bundle = found
            if bundle.filter is not None and pending is None:
                filtered.append(bundle)
            self._check(bundle, header, protocol, previous)
            self._layers += 1
            self._portions += not previous
            previous = protocol
            if protocol == AH:
                length = self._open_ah(bundle, header.offset, start, end)
                protocol = frame[start]
                start += length
                pending = bundle if bundle.esp is not None else None
            else:
                if bundle.ah is not None and pending is None:
                    raise _Fault(CryptoStatus.INVALID_PROTOCOL)
                protocol, start, end = self._open_esp(bundle, start, end, in_udp)
                pending = None
            if self._requests is not None and self._requests.consider(bundle):
                self._requests = None
                self._delete = True
        if bundle is None:
            return None
        inner = self._inside(bundle, protocol, start, end, in_udp=bool(udp))
        for one in filtered:
            if not self._passes(one, header, inner, protocol, start, end, udp):
                raise _Fault(CryptoStatus.INVALID_PROTOCOL)
        return inner if inner is not None and self._goes_on(inner) else None

    def _inside(
        self, bundle: InboundBundle, protocol: int, start: int, end: int, *, in_udp: bool
    ) -> IpHeader | None:
        """Give the header of the packet inside a tunnel portion, if there is one."""
        portion = bundle.portion or implied_mode(bundle.udp_esp, in_udp=in_udp, place=self._place)
        if protocol not in _IP_IN_IP or portion is Mode.TRANSPORT:
            # A packet inside transport mode is the business of whoever made that tunnel.
            return None
        self._place = inside(subtypes(bundle, self._able[bundle.oid_version]), in_udp=in_udp)
        try:
            return parse_ip(self._frame, start, end)
        except PacketError:
            return None

    def _goes_on(self, inner: IpHeader) -> bool:
        return not inner.fragment and inner.protocol in self._inner_protocols

    def _passes(
        self,
        bundle: InboundBundle,
        header: IpHeader,
        inner: IpHeader | None,
        protocol: int,
        start: int,
        end: int,
        udp: int,
    ) -> bool:
        """Whether what a bundle protected is what its filter names.

        Args:
            header: the IP header in front of the layers.
            inner: that of the packet inside a tunnel portion.
            protocol, start, end: what the layers held.
            udp: offset of the UDP header in front of the layers, 0 without.
        """
        wanted = bundle.filter
        assert wanted is not None
        frame = self._frame
        named = header
        if bundle.portion is Mode.TUNNEL:
            if inner is None:
                return False
            named = inner
            protocol, start, end = inner.protocol, inner.payload_offset, inner.end
        if not passes_addresses(wanted, named):
            return False
        if bundle.udp_esp and udp:
            # The protocol of a UDP-ESP SA is UDP (R142): the header that it is wrapped in.
            return passes_protocol(wanted, frame, UDP, udp, start)
        hidden = (
            protocol in _IPSEC or named.fragment or (protocol == UDP and any(esp_in_udp(frame, start, end)))
        )
        return hidden or passes_protocol(wanted, frame, protocol, start, end)

    def _find(
        self, header: IpHeader, protocol: int, start: int, end: int, in_udp: bool
    ) -> InboundBundle | None:
        if protocol not in _IPSEC:
            return None
        table = self._table
        index, position = (table.esp, start) if protocol == ESP else (table.ah, start + 4)
        if end < position + 4:
            return None
        spi = bytes(self._frame[position : position + 4])
        bundle = table.find(index, header.source, header.destination, spi)
        if bundle is None or not (bundle.udp_esp or in_udp or self._place is not Place.OUTERMOST):
            return bundle
        if (
            in_udp
            and bundle.oid_version is OidVersion.V1
            and not table.parser_entries.parses(NAT_TRAVERSAL_PORT)
        ):
            return None
        udp_esp = subtypes(bundle, self._able[bundle.oid_version])
        return bundle if fits(udp_esp, bundle.portion, in_udp=in_udp, place=self._place) else None

    def _check(self, bundle: InboundBundle, header: IpHeader, protocol: int, previous: int) -> None:
        """Whether one more layer may be opened.

        Args:
            previous: protocol of the layer opened before under the same IP header, 0 if it is the first.
        """
        self._delete |= bundle.sa_delete_req
        able = self._able[bundle.oid_version]
        if not able.everything and (
            not able.covers(bundle)
            or not able.takes(header)
            or (previous and not able.ah_esp_combined)
            or (not previous and self._portions and not able.both_portions)
        ):
            raise _Beyond
        if self._layers == MAX_LAYERS or (previous == ESP and protocol == AH):
            # AH covers an IP header that was another one before ESP was put between them (R98).
            raise _Fault(CryptoStatus.GENERIC_ERROR)

    def _learn(self, bundle: InboundBundle, next_header: int) -> None:
        """Take note of the mode that a packet of a bundle without one shows.

        Raises:
            _Beyond: the NIC does not do that mode.
        """
        bundle.tunnel = next_header in _IP_IN_IP
        able = self._able[bundle.oid_version]
        if able.everything or next_header in _IPSEC:
            return
        if (Mode.TUNNEL if bundle.tunnel else Mode.TRANSPORT) not in able.modes(bundle):
            raise _Beyond

    def _open_ah(self, bundle: InboundBundle, ip: int, start: int, end: int) -> int:
        """Check one AH layer; gives the bytes of its header."""
        ah = bundle.ah
        assert ah is not None
        if bundle.portion is None and bundle.esp is None and start < end:
            self._learn(bundle, self._frame[start])
        try:
            return ah.open(self._frame, ip, start, end)
        except WrongIcv:
            raise _Fault(_AH_FAILED[bundle.tunnel]) from None
        except PacketError:
            raise _Fault(CryptoStatus.INVALID_PACKET_SYNTAX) from None

    def _open_esp(self, bundle: InboundBundle, start: int, end: int, in_udp: bool) -> tuple[int, int, int]:
        """Open one ESP layer; gives next header, and the offsets of what it holds and behind that."""
        esp = bundle.esp
        assert esp is not None
        if bundle.udp_esp and bundle.portion is None:
            implied = implied_mode(bundle.udp_esp, in_udp=in_udp, place=self._place)
            bundle.tunnel = bundle.tunnel if implied is None else implied is Mode.TUNNEL
        try:
            sealed = esp.open(self._frame, start, end)
        except WrongIcv:
            raise _Fault(_ESP_FAILED[bundle.tunnel]) from None
        except PacketError:
            raise _Fault(CryptoStatus.INVALID_PACKET_SYNTAX) from None
        if sealed is not None:
            self._changed.append((end, sealed))
        stop = end - esp.icv_length
        self._trailer = self._frame[stop - ESP_TRAILER_LENGTH : stop]
        pad_length, next_header = self._trailer
        if bundle.portion is None and not bundle.udp_esp:
            self._learn(bundle, next_header)
        return next_header, start + esp.header_length, stop - ESP_TRAILER_LENGTH - pad_length

    def _restore(self) -> None:
        """Put every byte back, innermost first."""
        for end, sealed in reversed(self._changed):
            self._frame[end - len(sealed) : end] = sealed


def _behind_extension_headers(frame: bytearray, protocol: int, start: int, end: int) -> tuple[int, int]:
    """Give the protocol and offset of what follows extension headers after AH (RFC 4302 §3.1.1)."""
    while protocol in _EXTENSION_HEADERS and end - start >= 8:
        protocol, start = frame[start], start + 8 + frame[start + 1] * 8
    return protocol, start
