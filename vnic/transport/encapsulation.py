"""Framing: outer headers, AH and ESP headers, padding, trailer, and the room for IV and ICV.

Law: writes every byte but IV, cipher text and ICV, which stay zero for the NIC; keeps no packet.

    transport mode  [ Ethernet | IP | AH? | ESP 8 | IV | payload | pad | 2 | ICV ]
    tunnel mode     [ Ethernet | outer IP | AH? | ESP 8 | IV | inner IP packet | pad | 2 | ICV ]
    with UDP        [ … IP | UDP 8 | ESP 8 | … ], in either mode and without AH
    both            [ Ethernet | outer IP | AH? | ESP 8 | IV | IP | AH? | ESP 8 | IV | payload | pad | 2 | ICV
                      | pad | 2 | ICV ]

Source: RFC 4301 §5.1.2, RFC 4302 §3.1, RFC 4303 §3.1, RFC 6040 §4.1 (outer ECN is the inner one).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from vnic.ipsec.association import IpsecProtocol, SecurityAssociation
from vnic.ipsec.headers import COPY_HOP_LIMIT, DEFAULT_HEADERS, DfRule
from vnic.ndis.netbuffer import NetBuffer, OffloadHandle, TransmitInfo
from vnic.packet.ah import AH_FIXED_LENGTH
from vnic.packet.checksum import ones_complement_sum
from vnic.packet.esp import ESP_HEADER_LENGTH, ESP_TRAILER_LENGTH, PADDING
from vnic.packet.ip import IPV4_IN_IP, IPV4_LENGTH, IPV6_IN_IP, IPV6_LENGTH, NO_NEXT_HEADER, UDP
from vnic.packet.udp import UDP_HEADER, UDP_LENGTH
from vnic.transport.sizes import ah_sizes, esp_sizes
from vnic.transport.state import NO_HANDLE, SaState

_ECN_MASK = 0x03
_DONT_FRAGMENT = 0x4000
_MAX_CACHED_HEADERS = 512
_NOTHING = (b"\x45\x00\x00\x00\x00\x00\x40\x00\x40", b"\x60\x00\x00\x00\x00\x00\x00\x40")
"""The beginning of the header of nothing inside a dummy, IPv4 and IPv6, for what the outer header copies: no
DSCP, no ECN, DF, hop limit 64."""

_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_IPV6 = struct.Struct(">IHBB16s16s")
_U16 = struct.Struct(">H")


class Portion:
    """The SAs that protect one portion of a packet (transport or tunnel) and their sizes.

    Attributes:
        esp, ah: the SAs; at least one is there. With both, ESP comes first and AH covers the result.
        ah_length: bytes of the AH header, 0 without AH.
        udp_length: bytes of the UDP header in front of ESP, mostly 0.
        udp_ports: its ports, source first.
        esp_header_length: bytes of ESP header and IV, 0 without ESP.
        software: whether software IPsec seals it, and not the NIC.
    """

    __slots__ = (
        "_ah_low",
        "_ah_pack",
        "_ah_words",
        "_alignment",
        "_esp_low",
        "_esp_overhead",
        "_esp_pack",
        "_esp_spi",
        "_icv_length",
        "_trailers",
        "ah",
        "ah_length",
        "esp",
        "esp_header_length",
        "software",
        "udp_length",
        "udp_ports",
    )

    def __init__(self, esp: SaState | None, ah: SaState | None, *, software: bool = False) -> None:
        self.esp = esp
        self.ah = ah
        self.software = software
        self.ah_length = 0
        self.esp_header_length = 0
        self.udp_length = 0
        self.udp_ports = (0, 0)
        self._alignment = 4
        self._icv_length = 0
        self._esp_overhead = 0
        self._esp_spi = 0
        self._esp_low = 0
        self._ah_low = 0
        self._trailers: dict[tuple[int, int], bytes] = {}
        if esp is not None:
            iv, self._alignment, self._icv_length = esp_sizes(esp.sa)
            self.esp_header_length = ESP_HEADER_LENGTH + iv
            self._esp_overhead = self.esp_header_length + ESP_TRAILER_LENGTH + self._icv_length
            self._esp_spi = esp.sa.spi
            self._esp_pack = struct.Struct(f">II{iv}x").pack
            udp = esp.sa.udp
            if udp is not None:
                self.udp_length = UDP_LENGTH
                self.udp_ports = (udp.source_port, esp.peer[1] if esp.peer else udp.destination_port)
        if ah is not None:
            self.ah_length = ah_sizes(ah.sa)
            self._ah_words = self.ah_length // 4 - 2
            self._ah_pack = struct.Struct(f">BBHII{self.ah_length - AH_FIXED_LENGTH}x").pack

    @property
    def handle(self) -> OffloadHandle:
        """Handle of the SA or of the bundle, with whoever seals it."""
        state = self.esp or self.ah
        assert state is not None
        return state.software_handle if self.software else state.handle

    def states(self) -> list[SaState]:
        """Its SAs, ESP first."""
        return [state for state in (self.esp, self.ah) if state is not None]

    def take_numbers(self, count: int) -> SaState | None:
        """Take `count` sequence numbers of every SA; gives the SA whose stop they would pass, if any."""
        for state in (self.esp, self.ah):
            if state is None:
                continue
            assert state.sequence is not None
            first = state.sequence.take(count)
            if not first:
                return state
            if state is self.esp:
                self._esp_low = first
            else:
                self._ah_low = first
        return None

    def esp_header(self) -> bytes:
        """ESP header with the next of the numbers taken, and room for the IV."""
        header = self._esp_pack(self._esp_spi, self._esp_low & 0xFFFFFFFF)
        self._esp_low += 1
        return header

    def wrap(self, parts: list[bytes | bytearray], length: int, next_header: int) -> tuple[int, int]:
        """Put AH and ESP around `parts`, in place, with the next of the numbers taken.

        Args:
            parts: what is protected, in pieces.
            length: its bytes.
            next_header: protocol number of its first header.

        Returns:
            Bytes of everything together, and the ESP padding (0 without ESP).
        """
        pad = 0
        if self.esp is not None:
            pad = -(length + ESP_TRAILER_LENGTH) % self._alignment
            trailer = self._trailers.get((pad, next_header))
            if trailer is None:
                trailer = PADDING[:pad] + bytes((pad, next_header)) + bytes(self._icv_length)
                self._trailers[pad, next_header] = trailer
            parts.append(trailer)
            parts.insert(0, self.esp_header())
            length += self._esp_overhead + pad
            next_header = IpsecProtocol.ESP
            if self.udp_length:
                # Without a checksum: what it would cover is about to be encrypted.
                length += UDP_LENGTH
                parts.insert(0, UDP_HEADER.pack(*self.udp_ports, length & 0xFFFF, 0))
        if self.ah is not None:
            parts.insert(
                0,
                self._ah_pack(next_header, self._ah_words, 0, self.ah.sa.spi, self._ah_low & 0xFFFFFFFF),
            )
            self._ah_low += 1
            length += self.ah_length
        return length, pad

    @property
    def last_number(self) -> int:
        """Sequence number of the packet wrapped last."""
        return (self._esp_low if self.esp is not None else self._ah_low) - 1

    @property
    def protocol(self) -> int:
        """Protocol number of its outermost header."""
        if self.ah is not None:
            return IpsecProtocol.AH
        return UDP if self.udp_length else IpsecProtocol.ESP

    def room(self, available: int) -> int:
        """Most bytes it can protect so that the result has at most `available`."""
        available -= self.ah_length + self.udp_length
        if self.esp is not None:
            available -= self.esp_header_length + self._icv_length
            available = available // self._alignment * self._alignment - ESP_TRAILER_LENGTH
        return available


class Encapsulation:
    """How packets of one flow are framed: a transport portion, a tunnel portion, or both.

    Args:
        ends: source and destination of the tunnel where its SAs leave them open (R99).
        names_ports: whether the policy or an SA looks at ports, so that packets have to go through whole.

    Attributes:
        transport, tunnel: the portions; at least one is there.
        software: whether software IPsec seals the frames, and not the NIC.
        ends, names_ports: as given.
        dummy_interval_ms: after how long a pause the tunnel's ESP SA sends a dummy; 0 is never.
    """

    __slots__ = (
        "_destination",
        "_infos",
        "_outer",
        "_outer_headers",
        "_settings",
        "_several",
        "_source",
        "dummy_interval_ms",
        "ends",
        "names_ports",
        "software",
        "transport",
        "tunnel",
    )

    def __init__(
        self,
        transport: Portion | None,
        tunnel: Portion | None,
        ends: tuple[bytes, bytes] | None = None,
        *,
        names_ports: bool = False,
    ) -> None:
        self.transport = transport
        self.tunnel = tunnel
        self.ends = ends
        self.names_ports = names_ports
        self.software = any(portion is not None and portion.software for portion in (transport, tunnel))
        self._infos: dict[tuple[int, int, int], TransmitInfo] = {}
        self._outer_headers: dict[tuple[int, int, int, int], bytes] = {}
        states = self.states()
        self._several = states if len(states) > 1 else []
        self._outer: SecurityAssociation | None = None
        self._settings = DEFAULT_HEADERS
        self.dummy_interval_ms = 0
        if tunnel is not None:
            self._outer = tunnel.states()[0].sa
            self._settings = self._outer.header_settings
            self.dummy_interval_ms = self._settings.dummy_interval_ms
            self._source, self._destination = ends or (self._outer.source, self._outer.destination)
            if tunnel.esp is not None and tunnel.esp.peer is not None:
                self._destination = tunnel.esp.peer[0]

    @property
    def tunnel_ends(self) -> tuple[bytes, bytes] | None:
        """Source and destination of the outer header, or None without a tunnel."""
        return None if self.tunnel is None else (self._source, self._destination)

    def states(self) -> list[SaState]:
        """Every SA a packet passes, innermost first."""
        states = self.transport.states() if self.transport is not None else []
        return states + self.tunnel.states() if self.tunnel is not None else states

    def take_numbers(self, count: int) -> SaState | None:
        """Take numbers for `count` packets from every SA; or take none and give an SA whose stop they would
        pass."""
        for state in self._several:
            sequence = state.sequence
            assert sequence is not None
            if sequence.last + count > sequence.stop:
                return state
        for portion in (self.transport, self.tunnel):
            if portion is not None and (exhausted := portion.take_numbers(count)) is not None:
                return exhausted
        return None

    def frame(
        self,
        ethernet: bytes,
        ip_header: bytes,
        protocol: int,
        protocol_offset: int,
        parts: list[bytes | bytearray],
        length: int,
        pad_to: int = 0,
    ) -> NetBuffer:
        """Frame one packet; the numbers must have been taken.

        Args:
            ethernet: everything before the IP header.
            ip_header: IP header with options or extension headers.
            protocol, protocol_offset: what follows it, and where in `ip_header` that is written.
            parts: what follows the IP header, in pieces; changed.
            length: bytes of `parts`.
            pad_to: bytes to which the packet inside a tunnel is padded, its own length notwithstanding.
        """
        pad = 0
        next_header = protocol
        if self.transport is not None:
            length, pad = self.transport.wrap(parts, length, protocol)
            ip_header = with_protocol(ip_header, self.transport.protocol, protocol_offset, length)
        if self.tunnel is None:
            parts[:0] = (ethernet, ip_header)
            return NetBuffer(
                bytearray().join(parts), None, self._transmit_info(next_header, pad, len(ip_header))
            )
        inner_header_length = len(ip_header)
        ipv6 = ip_header[0] >> 4 == 6
        parts.insert(0, ip_header)
        length += inner_header_length
        if length < pad_to:
            parts.append(bytes(pad_to - length))
            length = pad_to
        tunnel_next = IPV6_IN_IP if ipv6 else IPV4_IN_IP
        length, tunnel_pad = self.tunnel.wrap(parts, length, tunnel_next)
        if self.transport is None:
            next_header, pad = tunnel_next, tunnel_pad
        ethernet, outer = self._outer_header(ethernet, ip_header, ipv6, length)
        parts[:0] = (ethernet, outer)
        info = self._transmit_info(next_header, pad, inner_header_length)
        return NetBuffer(bytearray().join(parts), None, info)

    def frame_segments(
        self,
        ethernet: bytes,
        segments: Iterable[tuple[bytes, bytes, bytearray]],
        protocol: int,
        protocol_offset: int,
        ready: list[NetBuffer],
        pad_to: int = 0,
    ) -> None:
        """Frame the segments of one superframe as `frame` does; the numbers must have been taken.

        Segments of equal size differ in their own headers, payload and sequence number only, so in a plain
        ESP tunnel the outer header and the trailer of the first serve those that follow.

        Args:
            segments: IP header, TCP or UDP header and payload of each, all of one packet.
            ready: takes the frames.
            pad_to: as for `frame`.
        """
        tunnel = self.tunnel if self.transport is None and not pad_to else None
        if tunnel is not None and tunnel.ah is not None:
            tunnel = None
        size = -1
        before = trailer = b""
        info: TransmitInfo | None = None
        for ip_header, layer4_header, payload in segments:
            if len(payload) == size:
                assert tunnel is not None
                parts = (before, tunnel.esp_header(), ip_header, layer4_header, payload, trailer)
                ready.append(NetBuffer(bytearray().join(parts), None, info))
                continue
            length = len(layer4_header) + len(payload)
            buffer = self.frame(
                ethernet, ip_header, protocol, protocol_offset, [layer4_header, payload], length, pad_to
            )
            ready.append(buffer)
            if tunnel is not None and (before := self._constant_outer(ethernet, buffer.frame)):
                size = len(payload)
                info = buffer.transmit
                start = len(before) + tunnel.esp_header_length + len(ip_header) + length
                trailer = bytes(buffer.frame[start:])

    def _constant_outer(self, ethernet: bytes, frame: bytearray) -> bytes:
        """What stands before ESP in a frame of a tunnel, if it is the same in all frames of its size: not
        when the outer header carries an identification."""
        assert self._outer is not None
        assert self.tunnel is not None
        length = len(ethernet) + self.tunnel.udp_length
        if self._outer.ipv6:
            return bytes(frame[: length + IPV6_LENGTH])
        if frame[len(ethernet) + 6] << 8 & _DONT_FRAGMENT:
            return bytes(frame[: length + IPV4_LENGTH])
        return b""

    def room(self, wire_mtu: int, ip_header_length: int) -> int:
        """Largest IP packet, in bytes, that fits `wire_mtu` once framed."""
        if self._outer is not None:
            assert self.tunnel is not None
            wire_mtu = self.tunnel.room(wire_mtu - (IPV6_LENGTH if self._outer.ipv6 else IPV4_LENGTH))
        if self.transport is not None:
            wire_mtu = self.transport.room(wire_mtu - ip_header_length) + ip_header_length
        return wire_mtu

    def pad_to(self, path_mtu: int) -> int:
        """Bytes to which a packet inside the tunnel is padded: as many as its SA wants and the path takes; 0
        without padding."""
        if not self._settings.tfc_padding:
            return 0
        return min(self._settings.tfc_padding, self.tunnel_room(path_mtu))

    def tunnel_room(self, path_mtu: int) -> int:
        """Bytes that fit into the tunnel, whatever they are."""
        assert self._outer is not None
        assert self.tunnel is not None
        return max(0, self.tunnel.room(path_mtu - (IPV6_LENGTH if self._outer.ipv6 else IPV4_LENGTH)))

    def dummy(self, ethernet: bytes, length: int) -> NetBuffer:
        """Frame a dummy packet of the tunnel's SAs (RFC 4303 §2.6); the numbers must have been taken, and
        there must be no transport portion.

        Args:
            ethernet: everything before the IP header, of any packet.
            length: bytes of nothing that it carries.
        """
        assert self._outer is not None
        assert self.tunnel is not None
        parts: list[bytes | bytearray] = [bytes(length)]
        length, pad = self.tunnel.wrap(parts, length, NO_NEXT_HEADER)
        ipv6 = self._outer.ipv6
        ethernet = ethernet[:-2] + (b"\x86\xdd" if ipv6 else b"\x08\x00")
        ethernet, outer = self._outer_header(ethernet, _NOTHING[ipv6], ipv6, length)
        parts[:0] = (ethernet, outer)
        return NetBuffer(bytearray().join(parts), None, self._transmit_info(NO_NEXT_HEADER, pad, 0))

    def _transmit_info(self, next_header: int, pad: int, ip_header_length: int) -> TransmitInfo:
        info = self._infos.get((next_header, pad, ip_header_length))
        if info is None:
            if len(self._infos) >= _MAX_CACHED_HEADERS:
                self._infos.clear()
            info = self._make_info(next_header, pad, ip_header_length)
            self._infos[next_header, pad, ip_header_length] = info
        return info

    def _make_info(self, next_header: int, pad: int, ip_header_length: int) -> TransmitInfo:
        offset = ip_header_length
        tunnel_handle = NO_HANDLE
        portion = self.transport
        if self._outer is not None:
            assert self.tunnel is not None
            outer_length = IPV6_LENGTH if self._outer.ipv6 else IPV4_LENGTH
            if portion is None:
                portion = self.tunnel
                offset = outer_length
            else:
                tunnel_handle = self.tunnel.handle
                offset += outer_length + self.tunnel.ah_length + self.tunnel.esp_header_length
                offset += self.tunnel.udp_length
        assert portion is not None
        offset += portion.udp_length
        return TransmitInfo(
            offload_handle=portion.handle,
            tunnel_handle=tunnel_handle,
            next_header=next_header,
            pad_length=pad,
            ah_header_offset=offset if portion.ah is not None else 0,
            esp_header_offset=offset + portion.ah_length if portion.esp is not None else 0,
        )

    def _outer_header(
        self, ethernet: bytes, inner: bytes, inner_ipv6: bool, payload_length: int
    ) -> tuple[bytes, bytes]:
        """The Ethernet header with the outer EtherType, and the outer IP header."""
        sa = self._outer
        settings = self._settings
        assert sa is not None
        assert self.tunnel is not None
        if inner_ipv6:
            traffic_class = (inner[0] & 0x0F) << 4 | inner[1] >> 4
            flow_or_flags = (inner[1] & 0x0F) << 16 | inner[2] << 8 | inner[3]
        else:
            traffic_class = inner[1]
            flow_or_flags = inner[6] << 8 & _DONT_FRAGMENT
        hop_limit = settings.hop_limit
        if hop_limit == COPY_HOP_LIMIT:
            hop_limit = inner[7 if inner_ipv6 else 8]
        if settings.dscp is not None:
            traffic_class = settings.dscp << 2 | traffic_class & _ECN_MASK
        key = (
            payload_length,
            traffic_class,
            flow_or_flags if inner_ipv6 == sa.ipv6 else inner_ipv6,
            hop_limit,
        )
        header = self._outer_headers.get(key)
        if header is None:
            if sa.no_ecn:
                traffic_class &= ~_ECN_MASK
            if sa.ipv6:
                flow_label = settings.flow_label
                if flow_label is None:
                    flow_label = flow_or_flags if inner_ipv6 else 0
                header = self._outer_ipv6(traffic_class, flow_label, payload_length, hop_limit)
                self._cache(key, header)
            elif settings.df is DfRule.SET or (settings.df is DfRule.COPY and (inner_ipv6 or flow_or_flags)):
                # An atomic datagram needs no identification (RFC 6864 §4.1).
                header = self._outer_ipv4(traffic_class, payload_length, hop_limit, _DONT_FRAGMENT, 0)
                self._cache(key, header)
            else:
                name = self.tunnel.last_number & 0xFFFF
                header = self._outer_ipv4(traffic_class, payload_length, hop_limit, 0, name)
        if inner_ipv6 != sa.ipv6:
            ethernet = ethernet[:-2] + (b"\x86\xdd" if sa.ipv6 else b"\x08\x00")
        return ethernet, header

    def _cache(self, key: tuple[int, int, int, int], header: bytes) -> None:
        if len(self._outer_headers) >= _MAX_CACHED_HEADERS:
            self._outer_headers.clear()
        self._outer_headers[key] = header

    def _outer_ipv4(
        self, tos: int, payload_length: int, hop_limit: int, flags: int, identification: int
    ) -> bytes:
        assert self.tunnel is not None
        header = bytearray(
            _IPV4.pack(
                0x45,
                tos,
                IPV4_LENGTH + payload_length,
                identification,
                flags,
                hop_limit,
                self.tunnel.protocol,
                0,
                self._source,
                self._destination,
            )
        )
        _U16.pack_into(header, 10, 0xFFFF - ones_complement_sum(header))
        return bytes(header)

    def _outer_ipv6(self, traffic_class: int, flow_label: int, payload_length: int, hop_limit: int) -> bytes:
        assert self.tunnel is not None
        return _IPV6.pack(
            6 << 28 | traffic_class << 20 | flow_label,
            payload_length,
            self.tunnel.protocol,
            hop_limit,
            self._source,
            self._destination,
        )


def with_protocol(ip_header: bytes, protocol: int, protocol_offset: int, payload_length: int) -> bytes:
    """An IP header with another upper protocol and length, and the checksum that goes with them.

    Args:
        protocol_offset: where in `ip_header` the protocol is written.
        payload_length: bytes behind `ip_header`.
    """
    header = bytearray(ip_header)
    header[protocol_offset] = protocol
    if header[0] >> 4 == 4:
        _U16.pack_into(header, 2, len(header) + payload_length)
        _U16.pack_into(header, 10, 0)
        _U16.pack_into(header, 10, 0xFFFF - ones_complement_sum(header))
    else:
        _U16.pack_into(header, 4, len(header) - IPV6_LENGTH + payload_length)
    return bytes(header)
