"""Frames from the wire: each IPsec layer that has an SA is checked and opened, outermost first.

Law: changes a frame only where an ICV held, and puts every byte back when a layer inside fails; strips
nothing, drops nothing, checks no replay and no padding.

    packet    layers under its IP header (AH, ESP), then the packet inside, if that is one of AH or ESP
    layer     SA by SPI and destination -> lengths -> ICV -> plain text in place

The walk ends at what has no SA, is a fragment or is no IPsec. Where a layer has an SA that this NIC must not
apply to it, the whole packet is left alone; where no NIC can apply it, the packet fails. So SUCCESS means
that every layer with an SA was checked.

Source: sheet §7; R170-R187.
"""

from __future__ import annotations

from vnic.errors import PacketError
from vnic.ipsec.association import Mode
from vnic.miniport.ciphers import WrongIcv
from vnic.miniport.layout import plain_esp, within
from vnic.miniport.sa_table import InboundBundle, SaTable
from vnic.ndis.capabilities import NO_IPSEC, OffloadCapabilities, TaskOffload
from vnic.ndis.netbuffer import NetBuffer, ReceiveInfo
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
    IpHeader,
    parse_ip,
)

MAX_LAYERS = 4
"""AH and ESP of a tunnel portion, AH and ESP of a transport portion. Without a limit one packet could cost
the square of its length."""

_AH_FAILED = (CryptoStatus.TRANSPORT_AH_AUTH_FAILED, CryptoStatus.TUNNEL_AH_AUTH_FAILED)
_ESP_FAILED = (CryptoStatus.TRANSPORT_ESP_AUTH_FAILED, CryptoStatus.TUNNEL_ESP_AUTH_FAILED)
"""By whether the SA protects the tunnel portion."""

_FAILURES = {
    (status, both): ReceiveInfo(True, both, status) for status in CryptoStatus for both in (False, True)
}

_IPSEC = (ESP, AH)
_IP_IN_IP = (IPV4_IN_IP, IPV6_IN_IP)
_EXTENSION_HEADERS = (HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS)
_MAY_HOLD_MORE = frozenset({*_IPSEC, *_IP_IN_IP, *_EXTENSION_HEADERS})
"""Next headers behind which another IPsec layer may lie."""


class _Fault(Exception):
    """The packet fails here."""

    def __init__(self, status: CryptoStatus) -> None:
        self.status = status


class _Beyond(Exception):
    """The packet is outside the capabilities (R175)."""


class Receiver:
    """The receive half of the NIC."""

    def __init__(self, table: SaTable) -> None:
        self._table = table
        self._esp = table.esp
        self._capabilities = NO_IPSEC
        self._good: dict[bytes, ReceiveInfo] = {}

    def configure(self, current: TaskOffload) -> None:
        """Work by this configuration from the next frame on."""
        self._capabilities = current.ipsec_v2

    def receive(self, burst: list[NetBuffer]) -> None:
        """See `Miniport.receive`."""
        if not self._capabilities.encapsulation:
            for buffer in burst:
                buffer.receive = None
            return
        for buffer in burst:
            buffer.receive = self._open(buffer.frame)

    def _open(self, frame: bytearray) -> ReceiveInfo | None:
        """Open the usual shape, one ESP SA around something that is not IPsec, at once; else walk."""
        version, start, end = plain_esp(frame)
        if version == 4:
            bundle = self._esp.get(bytes(frame[start - 4 : start + 4]))
            source = frame[start - 8 : start - 4]
        elif version == 6:
            bundle = self._esp.get(bytes(frame[start - 16 : start + 4]))
            source = frame[start - 32 : start - 16]
        else:
            return self._walk(frame)
        if bundle is None or bundle.ah is not None or (bundle.source and bundle.source != source):
            return self._walk(frame)
        esp = bundle.esp
        assert esp is not None
        try:
            sealed = esp.open(frame, start, end)
        except WrongIcv:
            return _FAILURES[_ESP_FAILED[bundle.tunnel], False]
        except PacketError:
            return _FAILURES[CryptoStatus.INVALID_PACKET_SYNTAX, False]
        stop = end - esp.icv_length
        next_header = frame[stop - 1]
        if next_header in _MAY_HOLD_MORE and _holds_more(frame, next_header, start + esp.header_length):
            if sealed is not None:
                frame[end - len(sealed) : end] = sealed
            return self._walk(frame)
        if bundle.portion is None:
            bundle.tunnel = next_header in _IP_IN_IP
        trailer = bytes(frame[stop - ESP_TRAILER_LENGTH : stop])
        info = self._good.get(trailer)
        if info is None:
            info = self._good[trailer] = _success(False, trailer)
        return info

    def _walk(self, frame: bytearray) -> ReceiveInfo | None:
        offset = ip_offset(frame)
        if not offset:
            return None
        try:
            header = parse_ip(frame, offset)
        except PacketError:
            return None
        if header.protocol not in _IPSEC or header.fragment:
            return None
        return _Walk(self._table, self._capabilities, frame).through(header)


def _holds_more(frame: bytearray, next_header: int, text: int) -> bool:
    """Whether another IPsec layer may follow in an ESP packet that was good.

    ICV and trailer make it long enough for a look at the protocol field of an inner IP header.
    """
    if next_header == IPV4_IN_IP:
        return frame[text + 9] in _IPSEC
    if next_header == IPV6_IN_IP:
        return frame[text + 6] in _MAY_HOLD_MORE
    return True


def _success(both: bool, trailer: bytes | bytearray | None) -> ReceiveInfo:
    """All that was checked was good; `trailer` is pad length and next header of the innermost ESP."""
    if trailer is None:
        return ReceiveInfo(True, both, CryptoStatus.SUCCESS)
    return ReceiveInfo(True, both, CryptoStatus.SUCCESS, False, True, trailer[1], trailer[0])


class _Walk:
    """The way through the layers of one packet."""

    __slots__ = ("_capabilities", "_changed", "_frame", "_layers", "_portions", "_table", "_trailer")

    def __init__(self, table: SaTable, capabilities: OffloadCapabilities, frame: bytearray) -> None:
        self._table = table
        self._capabilities = capabilities
        self._frame = frame
        self._layers = 0
        self._portions = 0
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
            return None
        except _Fault as fault:
            self._restore()
            return _FAILURES[fault.status, self._portions > 1]
        return _success(self._portions > 1, self._trailer) if self._layers else None

    def _packet(self, header: IpHeader) -> IpHeader | None:
        """Open the layers under one IP header; gives the header of an IPsec packet inside, if there is."""
        frame = self._frame
        protocol, start, end = header.protocol, header.payload_offset, header.end
        bundle: InboundBundle | None = None
        pending: InboundBundle | None = None
        previous = 0
        while True:
            if previous and protocol in _EXTENSION_HEADERS and header.version == 6:
                header = header._replace(has_options=True)
                protocol, start = _behind_extension_headers(frame, protocol, start, end)
            found = self._find(header, protocol, start, end)
            if pending is not None and (found is not pending or protocol != ESP):
                raise _Fault(CryptoStatus.INVALID_PROTOCOL)
            if found is None:
                break
            bundle = found
            self._check(header, protocol, previous)
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
                protocol, start, end = self._open_esp(bundle, start, end)
                pending = None
        if bundle is None or protocol not in _IP_IN_IP or bundle.portion is Mode.TRANSPORT:
            # A packet inside transport mode is the business of whoever made that tunnel.
            return None
        try:
            inner = parse_ip(frame, start, end)
        except PacketError:
            return None
        return None if inner.fragment or inner.protocol not in _IPSEC else inner

    def _find(self, header: IpHeader, protocol: int, start: int, end: int) -> InboundBundle | None:
        if protocol not in _IPSEC:
            return None
        table = self._table
        index, position = (table.esp, start) if protocol == ESP else (table.ah, start + 4)
        if end < position + 4:
            return None
        spi = bytes(self._frame[position : position + 4])
        return table.find(index, header.source, header.destination, spi)

    def _check(self, header: IpHeader, protocol: int, previous: int) -> None:
        """Whether one more layer may be opened.

        Args:
            previous: protocol of the layer opened before under the same IP header, 0 if it is the first.
        """
        able = self._capabilities
        if (
            not within(able, header)
            or (previous and not able.ah_esp_combined)
            or (not previous and self._portions and not able.transport_tunnel_combined)
        ):
            raise _Beyond
        if self._layers == MAX_LAYERS or (previous == ESP and protocol == AH):
            # AH covers an IP header that was another one before ESP was put between them (R98).
            raise _Fault(CryptoStatus.GENERIC_ERROR)

    def _open_ah(self, bundle: InboundBundle, ip: int, start: int, end: int) -> int:
        """Check one AH layer; gives the bytes of its header."""
        ah = bundle.ah
        assert ah is not None
        if bundle.portion is None and bundle.esp is None and start < end:
            bundle.tunnel = self._frame[start] in _IP_IN_IP
        try:
            return ah.open(self._frame, ip, start, end)
        except WrongIcv:
            raise _Fault(_AH_FAILED[bundle.tunnel]) from None
        except PacketError:
            raise _Fault(CryptoStatus.INVALID_PACKET_SYNTAX) from None

    def _open_esp(self, bundle: InboundBundle, start: int, end: int) -> tuple[int, int, int]:
        """Open one ESP layer; gives next header, and the offsets of what it holds and behind that."""
        esp = bundle.esp
        assert esp is not None
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
        if bundle.portion is None:
            bundle.tunnel = next_header in _IP_IN_IP
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
