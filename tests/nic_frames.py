"""Frames, keys and requests for the tests of the NIC.

Everything is built with struct from the RFCs' figures, not with code under test: headers and padding as a
transport would write them, and room of zeros for IV and ICV.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from vnic.ipsec.algorithms import ENCRYPTION_BY_NAME, INTEGRITY_BY_NAME, NULL
from vnic.ipsec.association import KeyMaterial, Mode
from vnic.miniport.adapter import MiniportAdapter
from vnic.ndis.capabilities import OffloadCapabilities, TaskOffload
from vnic.ndis.netbuffer import NetBuffer, NetBufferList, OffloadHandle, ReceiveInfo, TransmitInfo
from vnic.ndis.oid import (
    NO_ALGORITHM,
    AddSa,
    AlgorithmInfo,
    OidVersion,
    Operation,
    SaElement,
    TrafficFilter,
)

V4 = (ip_address("192.0.2.1").packed, ip_address("198.51.100.2").packed)
V6 = (ip_address("2001:db8::1").packed, ip_address("2001:db8:1::2").packed)
INNER_V4 = (ip_address("10.1.0.1").packed, ip_address("10.2.0.2").packed)
INNER_V6 = (ip_address("fd00:1::1").packed, ip_address("fd00:2::2").packed)

TCP = 6
UDP = 17
ESP = 50
AH = 51

NO_HANDLE = OffloadHandle(0)


def seeded(seed: int = 1) -> random.Random:
    """A repeatable source; `.randbytes` is what the NIC takes."""
    return random.Random(seed)


def key(length: int, label: object = "") -> KeyMaterial:
    """A key that is the same in every run and another one for every label."""
    return KeyMaterial(random.Random(f"{length} {label}").randbytes(length))


def checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def ipv4(
    source: bytes,
    destination: bytes,
    protocol: int,
    payload: bytes,
    *,
    options: bytes = b"",
    fragment: int = 0x4000,
    tos: int = 0x2C,
    ttl: int = 63,
    identification: int = 0x1234,
) -> bytes:
    assert len(options) % 4 == 0
    words = 5 + len(options) // 4
    header = struct.pack(
        ">BBHHHBBH4s4s",
        0x40 | words,
        tos,
        words * 4 + len(payload),
        identification,
        fragment,
        ttl,
        protocol,
        0,
        source,
        destination,
    )
    header += options
    return header[:10] + struct.pack(">H", checksum(header)) + header[12:] + payload


def ipv6(
    source: bytes,
    destination: bytes,
    protocol: int,
    payload: bytes,
    *,
    traffic_class: int = 0x2C,
    flow_label: int = 0xABCDE,
    hop_limit: int = 63,
) -> bytes:
    first = 6 << 28 | traffic_class << 20 | flow_label
    return struct.pack(">IHBB", first, len(payload), protocol, hop_limit) + source + destination + payload


def ip(addresses: tuple[bytes, bytes], protocol: int, payload: bytes) -> bytes:
    """An IP packet of the addresses' family, without options."""
    make = ipv4 if len(addresses[0]) == 4 else ipv6
    return make(addresses[0], addresses[1], protocol, payload)


def udp(payload: bytes, source: int = 5000, destination: int = 6000, checksum: int = 0x5A5A) -> bytes:
    return struct.pack(">HHHH", source, destination, 8 + len(payload), checksum) + payload


def nat_traversal(payload: bytes, source: int = 4500, destination: int = 4500) -> bytes:
    """ESP, IKE or a keepalive in UDP, with the checksum that RFC 3948 §2.1 wants."""
    return udp(payload, source, destination, 0)


def tcp(
    payload: bytes,
    *,
    flags: int = 0x10,
    sequence: int = 0x10000000,
    options: bytes = b"",
    checksum: int = 0,
) -> bytes:
    """A TCP segment; its checksum is as given."""
    assert len(options) % 4 == 0
    words = 5 + len(options) // 4
    header = struct.pack(">HHIIBBHHH", 5000, 443, sequence, 77, words << 4, flags, 512, checksum, 0)
    return header + options + payload


def ethernet(packet: bytes, *, tags: bytes = b"", padded: bool = False) -> bytes:
    """The frame of an IP packet; `tags` are whole VLAN tags, `padded` fills up to 60 bytes."""
    kind = b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00"
    frame = bytes.fromhex("020000000002020000000001") + tags + kind + packet
    return frame + b"\xee" * (60 - len(frame)) if padded else frame


@dataclass(frozen=True)
class Sa:
    """One SA as both ends know it; `encryption` and `integrity` are names of `ipsec.algorithms`."""

    operation: Operation = Operation.ESP
    encryption: str = ""
    integrity: str = ""
    icv: int = 0
    esn: bool = False
    high: int = 0
    spi: int = 0x1000
    label: object = ""

    @property
    def encryption_key(self) -> KeyMaterial:
        row = ENCRYPTION_BY_NAME.get(self.encryption, NULL)
        if row.name != "3des-cbc":
            return key(row.key_length, f"e{self.label}")
        return KeyMaterial(b"".join(key(8, f"e{self.label}{part}").reveal() for part in range(3)))

    @property
    def integrity_key(self) -> KeyMaterial:
        return key(INTEGRITY_BY_NAME[self.integrity].key_length, f"i{self.label}")

    @property
    def combined(self) -> bool:
        return bool(self.encryption) and ENCRYPTION_BY_NAME[self.encryption].combined

    @property
    def iv_length(self) -> int:
        length = ENCRYPTION_BY_NAME[self.encryption].iv_length if self.encryption else 0
        return length + (INTEGRITY_BY_NAME[self.integrity].iv_length if self.integrity else 0)

    @property
    def icv_length(self) -> int:
        if self.icv:
            return self.icv
        if self.combined:
            return 16
        return INTEGRITY_BY_NAME[self.integrity].icv_lengths[0] if self.integrity else 0

    @property
    def block_length(self) -> int:
        return max(ENCRYPTION_BY_NAME[self.encryption].block_length if self.encryption else 1, 4)

    def element(self) -> SaElement:
        authentication = encryption = NO_ALGORITHM
        if self.integrity:
            row = INTEGRITY_BY_NAME[self.integrity]
            authentication = AlgorithmInfo(row.ndis_identifier, self.integrity_key, self.icv)
        if self.encryption:
            identifier = ENCRYPTION_BY_NAME[self.encryption].ndis_identifier
            icv = self.icv if self.combined else 0
            encryption = AlgorithmInfo(identifier, self.encryption_key, icv)
        return SaElement(self.operation, self.spi, authentication, encryption, self.esn, self.high)

    def wrap(
        self,
        payload: bytes,
        next_header: int,
        sequence: int = 1,
        *,
        more_padding: int = 0,
        alignment: int = 8,
    ) -> bytes:
        """ESP or AH header, with room for IV and ICV, around or in front of `payload`."""
        if self.operation is Operation.AH:
            length = -(-(12 + self.iv_length + self.icv_length) // alignment) * alignment
            fixed = struct.pack(">BBHII", next_header, length // 4 - 2, 0, self.spi, sequence & 0xFFFFFFFF)
            return fixed + bytes(length - 12) + payload
        pad = self.pad_length(len(payload)) + more_padding
        return (
            struct.pack(">II", self.spi, sequence & 0xFFFFFFFF)
            + bytes(self.iv_length)
            + payload
            + bytes(range(1, pad + 1))
            + bytes((pad, next_header))
            + bytes(self.icv_length)
        )

    def pad_length(self, length: int) -> int:
        """Padding behind an ESP payload of `length` bytes."""
        return -(length + 2) % self.block_length

    @property
    def header_length(self) -> int:
        """Bytes of ESP header and IV."""
        return 8 + self.iv_length


def esp(encryption: str = "", integrity: str = "", **members: object) -> Sa:
    return replace(Sa(Operation.ESP, encryption, integrity), **members)  # type: ignore[arg-type]


def ah(integrity: str, **members: object) -> Sa:
    return replace(Sa(Operation.AH, "", integrity, spi=0x2000), **members)  # type: ignore[arg-type]


GCM = esp("aes-gcm-128")
CBC_SHA1 = esp("aes-cbc-128", "hmac-sha1-96")
AH_SHA256 = ah("hmac-sha256-128")

ESP_SUITES = (
    *(
        esp(cipher, integrity, icv=icv)
        for cipher in ("null", "des-cbc", "3des-cbc", "aes-cbc-128", "aes-cbc-192", "aes-cbc-256")
        for integrity, icv in (
            ("hmac-md5-96", 0),
            ("hmac-sha1-96", 0),
            ("hmac-sha256-128", 0),
            ("hmac-sha256-128", 12),
        )
    ),
    *(esp(f"aes-gcm-{bits}", icv=icv) for bits in (128, 192, 256) for icv in (0, 8, 12)),
    *(esp("null", f"aes-gmac-{bits}") for bits in (128, 192, 256)),
)
"""Every ESP algorithm and combination there is, with an ICV of its own."""

AH_SUITES = (
    ah("hmac-md5-96"),
    ah("hmac-sha1-96"),
    ah("hmac-sha256-128"),
    ah("hmac-sha256-128", icv=12),
    *(ah(f"aes-gmac-{bits}") for bits in (128, 192, 256)),
)

UNDER_AH_SUITES = tuple(
    esp(cipher) for cipher in ("des-cbc", "3des-cbc", "aes-cbc-128", "aes-cbc-192", "aes-cbc-256")
)
"""ESP that only encrypts, as AH permits (R14)."""


def suite_id(sa: Sa) -> str:
    names = [sa.operation.name.lower(), sa.encryption, sa.integrity, f"icv{sa.icv}" if sa.icv else ""]
    return "-".join(name for name in [*names, "esn" if sa.esn else ""] if name)


def add_request(
    sas: Sa | tuple[Sa, ...],
    addresses: tuple[bytes, bytes] = V4,
    *,
    inbound: bool = False,
    portion: Mode | None = Mode.TRANSPORT,
    udp_esp: int = 0,
    version: OidVersion = OidVersion.V2,
    traffic: TrafficFilter | None = None,
) -> AddSa:
    """The request for one SA, or for ESP and AH as a bundle."""
    members = sas if isinstance(sas, tuple) else (sas,)
    elements = tuple(sa.element() for sa in members)
    return AddSa(inbound, addresses[0], addresses[1], elements, udp_esp, portion, version, traffic)


@dataclass
class Nic:
    """A card under test, with its offloads switched on for both families."""

    adapter: MiniportAdapter = field(default_factory=lambda: MiniportAdapter(seeded().randbytes))

    def __post_init__(self) -> None:
        self.adapter.set_encapsulation(True, True)

    @classmethod
    def able(cls, **members: object) -> Nic:
        """A card with other capabilities than all."""
        return cls(MiniportAdapter(seeded().randbytes, OffloadCapabilities(**members)))  # type: ignore[arg-type]

    @classmethod
    def with_hardware(cls, **parts: object) -> Nic:
        """A card whose NDIS_OFFLOAD has other parts than all."""
        return cls(MiniportAdapter(seeded().randbytes, TaskOffload(**parts)))  # type: ignore[arg-type]

    def add(
        self,
        sas: Sa | tuple[Sa, ...],
        addresses: tuple[bytes, bytes] = V4,
        *,
        inbound: bool = False,
        portion: Mode | None = Mode.TRANSPORT,
        udp_esp: int = 0,
        version: OidVersion = OidVersion.V2,
        traffic: TrafficFilter | None = None,
    ) -> OffloadHandle:
        request = add_request(
            sas,
            addresses,
            inbound=inbound,
            portion=portion,
            udp_esp=udp_esp,
            version=version,
            traffic=traffic,
        )
        return self.adapter.add_sa(request)

    def seal(self, frame: bytes, info: TransmitInfo) -> NetBuffer:
        buffer = NetBuffer(bytearray(frame), None, info)
        self.adapter.send([buffer])
        return buffer

    def transmit(self, frames: list[bytes], info: TransmitInfo | None) -> tuple[NetBufferList, list[bytes]]:
        """Send one net buffer list; gives it as it was completed, and what goes on the wire."""
        one = NetBufferList(1, [bytearray(frame) for frame in frames], info)
        return one, [bytes(buffer.frame) for buffer in self.adapter.transmit([one])]

    def open(self, frame: bytes) -> tuple[ReceiveInfo | None, bytes]:
        buffer = NetBuffer(bytearray(frame))
        self.adapter.receive([buffer])
        return buffer.receive, bytes(buffer.frame)


def transmit(
    handle: OffloadHandle,
    *,
    ah_offset: int = 0,
    esp_offset: int = 0,
    tunnel: OffloadHandle = NO_HANDLE,
    next_header: int = UDP,
    pad_length: int = 0,
) -> TransmitInfo:
    return TransmitInfo(handle, tunnel, next_header, pad_length, ah_offset, esp_offset)


@dataclass(frozen=True)
class Framed:
    """A frame with room for IV and ICV, and where things are in it, from the frame start."""

    frame: bytes
    ip: int
    ah: int
    """0 without AH."""
    esp: int
    """0 without ESP."""
    text: int
    """What ESP or AH protects."""
    payload: bytes
    next_header: int
    pad_length: int
    """0 without ESP."""

    def info(self, handle: OffloadHandle) -> TransmitInfo:
        return transmit(
            handle,
            ah_offset=self.ah - self.ip if self.ah else 0,
            esp_offset=self.esp - self.ip if self.esp else 0,
            next_header=self.next_header,
            pad_length=self.pad_length,
        )


def framed(
    sas: Sa | tuple[Sa, ...],
    payload: bytes,
    next_header: int = UDP,
    addresses: tuple[bytes, bytes] = V4,
    *,
    sequence: int = 1,
    alignment: int = 8,
    tags: bytes = b"",
) -> Framed:
    """Frame `payload` under one IP header for an SA or a bundle, as the transport would."""
    members = sas if isinstance(sas, tuple) else (sas,)
    packet = payload
    protocol = next_header
    ah_length = esp_length = pad_length = 0
    for sa in members:
        if sa.operation is Operation.ESP:
            pad_length = sa.pad_length(len(packet))
        packet = sa.wrap(packet, protocol, sequence, alignment=alignment)
        if sa.operation is Operation.ESP:
            protocol = ESP
            esp_length = sa.header_length
        else:
            protocol = AH
            ah_length = packet[1] * 4 + 8
    frame = ethernet(ip(addresses, protocol, packet), tags=tags)
    at = 14 + len(tags)
    start = at + (20 if len(addresses[0]) == 4 else 40)
    return Framed(
        frame,
        at,
        start if ah_length else 0,
        start + ah_length if esp_length else 0,
        start + ah_length + esp_length,
        payload,
        next_header,
        pad_length,
    )


def sealed(nic: Nic, sas: Sa | tuple[Sa, ...], one: Framed, handle: OffloadHandle) -> bytes:
    """Let the NIC seal a frame and give it; a refusal fails the test."""
    buffer = nic.seal(one.frame, one.info(handle))
    assert buffer.status == 0, (sas, buffer)
    return bytes(buffer.frame)
