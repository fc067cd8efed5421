"""What tests of the transport share: a NIC of their own, a card around it, and short words for SAs.

Law: nothing here computes with the code under test. The NIC finds its way through a frame by what the
contract promises (TransmitInfo, RFC 4302, RFC 4303) and by reading IP headers itself; where a promise is
broken it fails the test. Its cipher is XOR and its ICV a truncated hash, so that a clear byte or a
changed one shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

from scapy.layers.l2 import Ether
from scapy.packet import Packet

from vnic.errors import OidError
from vnic.ipsec.algorithms import (
    ENCRYPTION_BY_IDENTIFIER,
    ENCRYPTION_BY_NAME,
    INTEGRITY_BY_IDENTIFIER,
    INTEGRITY_BY_NAME,
)
from vnic.ipsec.association import Direction, IpsecProtocol, KeyMaterial, Mode, SecurityAssociation
from vnic.ipsec.drops import DropReason
from vnic.ipsec.policy import PolicyAction, PolicyEntry, Prefix, Selector, Template
from vnic.ndis.capabilities import OffloadCapabilities, TaskOffload
from vnic.ndis.netbuffer import NetBuffer, OffloadHandle, ReceiveInfo, TransmitInfo
from vnic.ndis.oid import AddSa, DeleteSa, Operation, SaElement, UpdateSa
from vnic.ndis.status import CryptoStatus, NdisStatus
from vnic.packet.vnet import VnetHeader
from vnic.transport.audit import Audit
from vnic.transport.inbound import Inbound
from vnic.transport.outbound import Outbound
from vnic.transport.sad import Sad
from vnic.transport.spd import Spd

IN, OUT = Direction.INBOUND, Direction.OUTBOUND
TUNNEL, TRANSPORT = Mode.TUNNEL, Mode.TRANSPORT
ESP, AH = IpsecProtocol.ESP, IpsecProtocol.AH

NEAR, FAR = "192.0.2.1", "192.0.2.2"
"""Tunnel end points of the card under test and of its peer."""
NEAR6, FAR6 = "2001:db8::1", "2001:db8::2"

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")

IV_BYTE = 0xA5
CIPHER_BYTE = 0x5A
_CIPHER = bytes(value ^ CIPHER_BYTE for value in range(256))


def address(text: str) -> bytes:
    return ip_address(text).packed


def prefix(text: str) -> Prefix:
    host, _, length = text.partition("/")
    packed = address(host)
    return Prefix(packed, int(length) if length else len(packed) * 8)


def selector(
    source: str = "0.0.0.0/0",
    destination: str = "0.0.0.0/0",
    protocol: int = 0,
    source_port: int | None = None,
    destination_port: int | None = None,
    source_port_last: int | None = None,
    destination_port_last: int | None = None,
) -> Selector:
    return Selector(
        prefix(source),
        prefix(destination),
        protocol,
        source_port,
        destination_port,
        source_port_last,
        destination_port_last,
    )


ANY = selector()
ANY6 = selector("::/0", "::/0")


def template(
    protocol: IpsecProtocol = ESP,
    mode: Mode = TUNNEL,
    source: str | None = None,
    destination: str | None = None,
    reqid: int = 0,
    spi: int = 0,
) -> Template:
    return Template(
        protocol,
        mode,
        address(source) if source else None,
        address(destination) if destination else None,
        reqid,
        spi,
    )


def policy(
    direction: Direction = OUT,
    chosen: Selector = ANY,
    *templates: Template,
    action: PolicyAction | None = None,
    priority: int = 0,
) -> PolicyEntry:
    if action is None:
        action = PolicyAction.PROTECT if templates else PolicyAction.BYPASS
    return PolicyEntry(direction, chosen, action, templates, priority)


def association(
    direction: Direction = OUT,
    mode: Mode = TUNNEL,
    source: str = NEAR,
    destination: str = FAR,
    *,
    protocol: IpsecProtocol = ESP,
    spi: int = 0x1000,
    encryption: str | None = "aes-gcm-128",
    integrity: str | None = None,
    seed: int = 0,
    **members: object,
) -> SecurityAssociation:
    """An SA with keys that follow from `seed` and the SPI; AH has no cipher unless one is named."""
    if protocol is AH:
        encryption, integrity = None, integrity or "hmac-sha256-128"
    cipher = ENCRYPTION_BY_NAME[encryption] if encryption else None
    hashing = INTEGRITY_BY_NAME[integrity] if integrity else None
    stream = hashlib.shake_128(f"{spi} {seed} {destination} {protocol}".encode()).digest(128)
    sa = SecurityAssociation(
        direction=direction,
        source=address(source),
        destination=address(destination),
        protocol=protocol,
        spi=spi,
        mode=mode,
        encryption=cipher,
        encryption_key=KeyMaterial(stream[: cipher.key_length] if cipher else b""),
        integrity=hashing,
        integrity_key=KeyMaterial(stream[64 : 64 + hashing.key_length] if hashing else b""),
    )
    return replace(sa, **members)  # type: ignore[arg-type]


def frame_of(packet: Packet) -> bytearray:
    """The bytes of a scapy packet as a frame; IP packets get an Ethernet header."""
    return bytearray(bytes(packet if packet.haslayer(Ether) else ETHER / packet))


def key_fragments(sa: SecurityAssociation) -> list[str]:
    """Texts by which a key would be recognised wherever it leaked."""
    keys = [key.reveal() for key in (sa.encryption_key, sa.integrity_key) if len(key)]
    return [key[:6].hex() for key in keys] + [repr(key[:6])[2:-1] for key in keys]


class FakeNic:
    """A Miniport that seals and opens by the layout alone.

    Attributes:
        bundles: what is offloaded, by handle.
        requests: every request made, in order, refused ones too.
        refusals: status for each of the next add requests; SUCCESS takes it.
        off: handles of bundles that it holds and does not work on as it is configured.
    """

    def __init__(self, capacity: int = 1000, first_handle: int = 0x100) -> None:
        self.capabilities = OffloadCapabilities(sa_offload_capacity=capacity)
        self.hardware = TaskOffload(self.capabilities)
        self.configuration_generation = 0
        self.off: set[int] = set()
        self.bundles: dict[int, AddSa] = {}
        self.requests: list[AddSa | UpdateSa | DeleteSa] = []
        self.refusals: list[NdisStatus] = []
        self._next_handle = first_handle

    def offers(self, handle: OffloadHandle) -> bool:
        return handle in self.bundles and handle not in self.off

    # requests

    def add_sa(self, request: AddSa) -> OffloadHandle:
        self.requests.append(request)
        if self.refusals and (status := self.refusals.pop(0)) is not NdisStatus.SUCCESS:
            raise OidError(status, "the NIC refuses it", field="sa")
        if len(self.bundles) >= self.capabilities.sa_offload_capacity:
            raise OidError(NdisStatus.RESOURCES, "the NIC is full", field="sa")
        operations = [element.operation for element in request.elements]
        assert operations in ([Operation.AH], [Operation.ESP], [Operation.ESP, Operation.AH])
        for held in self.bundles.values():
            for element in held.elements:
                assert not (
                    held.inbound == request.inbound
                    and held.destination == request.destination
                    and any(
                        (element.operation, element.spi) == (new.operation, new.spi)
                        for new in request.elements
                    )
                ), "the same SA is offloaded twice"
        self._next_handle += 1
        self.bundles[self._next_handle] = request
        return OffloadHandle(self._next_handle)

    def update_sa(self, request: UpdateSa) -> None:
        self.requests.append(request)
        if request.handle not in self.bundles:
            raise OidError(NdisStatus.INVALID_PARAMETER, "no such SA", field="sa")

    def delete_sa(self, request: DeleteSa) -> None:
        self.requests.append(request)
        if request.handle not in self.bundles:
            raise OidError(NdisStatus.INVALID_PARAMETER, "no such SA", field="sa")
        del self.bundles[request.handle]

    def spis(self) -> list[tuple[int, ...]]:
        """SPIs of every bundle held, oldest bundle first."""
        return [tuple(element.spi for element in held.elements) for held in self.bundles.values()]

    # frames

    def send(self, burst: list[NetBuffer]) -> None:
        for buffer in burst:
            if buffer.transmit is not None:
                self._seal(buffer, buffer.transmit)

    def _seal(self, buffer: NetBuffer, info: TransmitInfo) -> None:
        bundle = self.bundles.get(info.offload_handle)
        tunnel = self.bundles.get(info.tunnel_handle)
        if bundle is None or (tunnel is None and info.tunnel_handle):
            buffer.status = NdisStatus.FAILURE
            return
        frame = buffer.frame
        outer = ip_at(frame)
        header_length, end = ip_extent(frame, outer)
        assert end == len(frame), "the IP length is not that of the frame"
        assert not bundle.inbound
        inner_end = end
        if tunnel is not None:
            inner_end = end - icv_length(tunnel.elements[0]) - 2
            inner_end -= frame[inner_end]
            if tunnel.elements[0].operation is Operation.AH:
                inner_end = end
        self._seal_portion(
            frame,
            outer + info.ah_header_offset if info.ah_header_offset else 0,
            outer + info.esp_header_offset if info.esp_header_offset else 0,
            inner_end,
            bundle,
            (info.pad_length, info.next_header),
        )
        if tunnel is not None:
            start = outer + header_length
            first = tunnel.elements[-1].operation
            ah_start = start if first is Operation.AH else 0
            esp_start = start
            if ah_start:
                esp_start = start + (frame[start + 1] + 2) * 4 if len(tunnel.elements) == 2 else 0
            self._seal_portion(frame, ah_start, esp_start, end, tunnel, None)

    def _seal_portion(
        self,
        frame: bytearray,
        ah_start: int,
        esp_start: int,
        end: int,
        bundle: AddSa,
        trailer: tuple[int, int] | None,
    ) -> None:
        by_operation = {element.operation: element for element in bundle.elements}
        assert bool(ah_start) == (Operation.AH in by_operation)
        assert bool(esp_start) == (Operation.ESP in by_operation)
        if esp_start:
            seal_esp(frame, esp_start, end, by_operation[Operation.ESP], trailer)
        if ah_start:
            seal_ah(frame, ah_start, end, by_operation[Operation.AH])

    def receive(self, burst: list[NetBuffer]) -> None:
        for buffer in burst:
            self._open(buffer)

    def _open(self, buffer: NetBuffer) -> None:
        frame = buffer.frame
        offset = ip_at(frame)
        trailer: tuple[int, int] | None = None
        portions = 0
        inside = False
        position = offset
        header_length, end = ip_extent(frame, position) if offset else (0, 0)
        protocol, fragment = ip_protocol(frame, position) if offset else (0, False)
        at = position + header_length
        while offset and not fragment and protocol in (50, 51):
            found = self._find(frame, position, protocol, at)
            if found is None:
                break
            bundle, element = found
            if not inside:
                portions += 1
            if protocol == 50:
                opened = open_esp(frame, at, end, element)
            else:
                opened = open_ah(frame, at, end, element)
            if opened is None:
                name = f"{(bundle.portion or TRANSPORT).name}_{element.operation.name}_AUTH_FAILED"
                buffer.receive = ReceiveInfo(True, portions > 1, CryptoStatus[name])
                return
            at, end, protocol, pad = opened
            if element.operation is Operation.ESP:
                trailer = (protocol, pad)
            inside = bundle.portion is TRANSPORT
            if not inside and protocol in (4, 41) and at < end:
                position = at
                header_length, end = ip_extent(frame, position)
                protocol, fragment = ip_protocol(frame, position)
                at = position + header_length
        if portions:
            next_header, pad = trailer or (0, 0)
            buffer.receive = ReceiveInfo(
                True, portions > 1, CryptoStatus.SUCCESS, False, trailer is not None, next_header, pad
            )

    def _find(
        self, frame: bytearray, position: int, protocol: int, at: int
    ) -> tuple[AddSa, SaElement] | None:
        spi = int.from_bytes(frame[at : at + 4] if protocol == 50 else frame[at + 4 : at + 8], "big")
        version = frame[position] >> 4
        destination = (
            frame[position + 24 : position + 40] if version == 6 else frame[position + 16 : position + 20]
        )
        wanted = Operation.ESP if protocol == 50 else Operation.AH
        for bundle in self.bundles.values():
            if bundle.inbound and bundle.destination == destination:
                for element in bundle.elements:
                    if (element.operation, element.spi) == (wanted, spi):
                        return bundle, element
        return None


def icv_length(element: SaElement) -> int:
    if element.encryption.identifier and ENCRYPTION_BY_IDENTIFIER[element.encryption.identifier].combined:
        return element.encryption.additional_info or 16
    row = INTEGRITY_BY_IDENTIFIER[element.authentication.identifier]
    return element.authentication.additional_info or {"hmac-md5-96": 12, "hmac-sha1-96": 12}.get(row.name, 16)


def iv_length(element: SaElement) -> int:
    length = 0
    if element.encryption.identifier:
        length += ENCRYPTION_BY_IDENTIFIER[element.encryption.identifier].iv_length
    if element.authentication.identifier:
        length += INTEGRITY_BY_IDENTIFIER[element.authentication.identifier].iv_length
    return length


def _digest(element: SaElement, data: bytes | bytearray) -> bytes:
    return hashlib.sha256(element.spi.to_bytes(4, "big") + bytes(data)).digest()[: icv_length(element)]


def seal_esp(
    frame: bytearray, start: int, end: int, element: SaElement, trailer: tuple[int, int] | None = None
) -> None:
    """Seal ESP from `start` to `end`, after checking what the transport left there."""
    body = start + 8 + iv_length(element)
    icv = end - icv_length(element)
    assert int.from_bytes(frame[start : start + 4], "big") == element.spi
    assert not any(frame[start + 8 : body]), "the room for the IV is not clean"
    assert not any(frame[icv:end]), "the room for the ICV is not clean"
    assert (icv - body) % 4 == 0
    if element.encryption.identifier:
        assert (icv - body) % ENCRYPTION_BY_IDENTIFIER[element.encryption.identifier].block_length == 0
    if trailer is not None:
        assert (frame[icv - 2], frame[icv - 1]) == trailer, "TransmitInfo and trailer differ"
    pad = frame[icv - 2]
    assert bytes(frame[icv - 2 - pad : icv - 2]) == bytes(range(1, pad + 1))
    frame[start + 8 : body] = bytes([IV_BYTE]) * (body - start - 8)
    frame[body:icv] = frame[body:icv].translate(_CIPHER)
    frame[icv:end] = _digest(element, frame[start:icv])


def open_esp(frame: bytearray, start: int, end: int, element: SaElement) -> tuple[int, int, int, int] | None:
    """Open ESP in place; gives where the payload starts and ends, next header and pad length."""
    body = start + 8 + iv_length(element)
    icv = end - icv_length(element)
    if icv - body < 2 or frame[icv:end] != _digest(element, frame[start:icv]):
        return None
    frame[body:icv] = frame[body:icv].translate(_CIPHER)
    return body, icv - 2 - frame[icv - 2], frame[icv - 1], frame[icv - 2]


def seal_ah(frame: bytearray, start: int, end: int, element: SaElement) -> None:
    """Fill IV and ICV of the AH header at `start`, after checking what the transport left there."""
    length = (frame[start + 1] + 2) * 4
    icv = start + 12 + iv_length(element)
    assert int.from_bytes(frame[start + 4 : start + 8], "big") == element.spi
    assert not any(frame[start + 12 : start + length]), "the room for IV and ICV is not clean"
    assert icv + icv_length(element) <= start + length <= end
    frame[start + 12 : icv] = bytes([IV_BYTE]) * (icv - start - 12)
    frame[icv : icv + icv_length(element)] = _digest(element, frame[start:end])


def open_ah(frame: bytearray, start: int, end: int, element: SaElement) -> tuple[int, int, int, int] | None:
    icv = start + 12 + iv_length(element)
    behind = icv + icv_length(element)
    blank = bytearray(frame[start:end])
    blank[icv - start : behind - start] = bytes(behind - icv)
    if behind > end or frame[icv:behind] != _digest(element, blank):
        return None
    return start + (frame[start + 1] + 2) * 4, end, frame[start], 0


def ip_at(frame: bytes | bytearray) -> int:
    """Offset of the IP header behind any VLAN tags, 0 without one."""
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    return at + 2 if frame[at : at + 2] in (b"\x08\x00", b"\x86\xdd") else 0


def ip_extent(frame: bytes | bytearray, at: int) -> tuple[int, int]:
    """Bytes of the IP header with everything before the IPsec header, and the offset of the packet's end."""
    if frame[at] >> 4 == 4:
        return (frame[at] & 15) * 4, at + int.from_bytes(frame[at + 2 : at + 4], "big")
    end = at + 40 + int.from_bytes(frame[at + 4 : at + 6], "big")
    protocol, position = frame[at + 6], at + 40
    while protocol in (0, 43, 44, 60):
        length = 8 if protocol == 44 else 8 + 8 * frame[position + 1]
        protocol, position = frame[position], position + length
    return position - at, end


def ip_protocol(frame: bytes | bytearray, at: int) -> tuple[int, bool]:
    """What follows the IP header, and whether the packet is a fragment."""
    if frame[at] >> 4 == 4:
        return frame[at + 9], bool(int.from_bytes(frame[at + 6 : at + 8], "big") & 0x3FFF)
    protocol, position, fragment = frame[at + 6], at + 40, False
    while protocol in (0, 43, 44, 60):
        length = 8 if protocol == 44 else 8 + 8 * frame[position + 1]
        if protocol == 44:
            fragment = bool(int.from_bytes(frame[position + 2 : position + 4], "big") & 0xFFF9)
        protocol, position = frame[position], position + length
    return protocol, fragment


class Card:
    """A transport on a FakeNic, with software IPsec in another where that is asked for."""

    def __init__(self, wire_mtu: int = 1500, capacity: int = 1000, *, software: bool = False) -> None:
        self.nic = FakeNic(capacity)
        self.software = FakeNic(10**6, 0x10000) if software else None
        self.audit = Audit()
        self.spd = Spd()
        self.sad = Sad(self.nic, self.software)
        self.outbound = Outbound(self.spd, self.sad, self.audit, wire_mtu)
        self.inbound = Inbound(self.spd, self.sad, self.audit)

    @property
    def drops(self) -> dict[DropReason, int]:
        return self.audit.card.drops

    def framed(
        self, *frames: Packet | bytearray, vnet: VnetHeader | None = None, now: float = 1.0
    ) -> list[NetBuffer]:
        """What outbound makes of frames of the host, before the NIC."""
        return self.outbound.send([NetBuffer(_bytes(frame), vnet) for frame in frames], now)

    def sent(
        self, *frames: Packet | bytearray, vnet: VnetHeader | None = None, now: float = 1.0
    ) -> list[bytearray]:
        """What goes on the wire for frames of the host."""
        burst = self.framed(*frames, vnet=vnet, now=now)
        self.nic.send(burst)
        assert all(buffer.status is NdisStatus.SUCCESS for buffer in burst)
        return [buffer.frame for buffer in burst]

    def received(
        self,
        *frames: Packet | bytearray,
        tamper: Callable[[NetBuffer], None] | None = None,
        now: float = 1.0,
    ) -> list[bytearray]:
        """What goes to the host for frames of the wire; `tamper` plays with what the NIC said."""
        burst = [NetBuffer(bytearray(_bytes(frame))) for frame in frames]
        self.nic.receive(burst)
        for buffer in burst:
            if tamper is not None:
                tamper(buffer)
        return [buffer.frame for buffer in self.inbound.receive(burst, now)]


def _bytes(frame: Packet | bytearray) -> bytearray:
    return frame if isinstance(frame, bytearray) else frame_of(frame)
