"""Information buffers for the tests of OID requests, written with struct at the offsets of the fact sheet.

Nothing of `vnic.ndis.structs` is used, so that a wrong offset there cannot hide. Addresses and SPIs are in
network byte order, everything else little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from nic_frames import V4, Sa

from vnic.ipsec.algorithms import ENCRYPTION_BY_NAME, INTEGRITY_BY_NAME
from vnic.miniport.adapter import MiniportAdapter
from vnic.ndis.oid import Operation, SaDoor
from vnic.ndis.oids import OidOperation, OidRequest, OidResult, RequestType
from vnic.ndis.status import NdisStatus

ENCAPSULATION = 0x0101010A
TASK_OFFLOAD = 0xFC010201
V1_ADD = 0xFC010202
V1_DELETE = 0xFC010203
V1_ADD_UDPESP = 0xFC010205
V1_DELETE_UDPESP = 0xFC010206
CURRENT_CONFIG = 0xFC01020B
PARAMETERS = 0xFC01020C
HARDWARE_CAPABILITIES = 0xFC01020D
ADD_SA = 0xFC030202
DELETE_SA = 0xFC030203
UPDATE_SA = 0xFC030204
ADD_SA_EX = 0xFC030205

QUERY = RequestType.QUERY
SET = RequestType.SET

QUERIED = (ENCAPSULATION, TASK_OFFLOAD, CURRENT_CONFIG, HARDWARE_CAPABILITIES)
SETTABLE = (
    ENCAPSULATION,
    TASK_OFFLOAD,
    V1_ADD,
    V1_DELETE,
    V1_ADD_UDPESP,
    V1_DELETE_UDPESP,
    PARAMETERS,
    ADD_SA,
    DELETE_SA,
    UPDATE_SA,
    ADD_SA_EX,
)
ALL_OIDS = tuple(dict.fromkeys((*QUERIED, *SETTABLE)))

Sas = Sa | tuple[Sa, ...]


def begin(nic: MiniportAdapter, oid: int, buffer: bytes, request_id: int = 0) -> OidOperation:
    """Begin a set."""
    return nic.oid_request(OidRequest(oid, SET, bytearray(buffer), request_id))


def finish(operation: OidOperation) -> OidResult:
    """Advance an operation to its end."""
    for _ in range(100_000):
        if operation.advance():
            break
    assert operation.result is not None
    assert operation.result.status is not NdisStatus.PENDING
    return operation.result


def ask(
    nic: MiniportAdapter, oid: int, buffer: bytes, kind: int = SET, door: SaDoor | None = None
) -> OidResult:
    """Carry a request out."""
    return finish(nic.oid_request(OidRequest(oid, kind, bytearray(buffer)), door))


def query(nic: MiniportAdapter, oid: int, room: int = 512) -> OidResult:
    return ask(nic, oid, bytes(room), QUERY)


def _element(sa: Sa, key_offset: int) -> tuple[bytes, bytes]:
    """IPSEC_OFFLOAD_V2_SECURITY_ASSOCIATION and the keys it points to: authentication before encryption."""
    keys = b""
    authentication = encryption = bytes(16)
    if sa.integrity:
        row = INTEGRITY_BY_NAME[sa.integrity]
        key = sa.integrity_key.reveal()
        authentication = struct.pack("<IIII", row.ndis_identifier, len(key), key_offset, sa.icv)
        keys += key
    if sa.encryption:
        cipher = ENCRYPTION_BY_NAME[sa.encryption]
        key = sa.encryption_key.reveal()
        icv = sa.icv if sa.combined else 0
        encryption = struct.pack("<IIII", cipher.ndis_identifier, len(key), key_offset + len(keys), icv)
        keys += key
    operation = 1 if sa.operation is Operation.AH else 2
    head = struct.pack("<II", int(sa.esn), operation) + struct.pack(">I", sa.spi)
    return head + authentication + encryption + struct.pack("<I", sa.high), keys


def _elements(sas: Sas) -> tuple[int, bytes, bytes]:
    members = sas if isinstance(sas, tuple) else (sas,)
    elements = keys = b""
    for sa in members:
        element, own = _element(sa, len(keys))
        elements += element
        keys += own
    return len(members), elements.ljust(96, b"\0"), keys


def add_sa(
    sas: Sas,
    addresses: tuple[bytes, bytes] = V4,
    *,
    inbound: bool = False,
    udp_esp: int = 0,
    following: int = 0,
) -> bytearray:
    """One IPSEC_OFFLOAD_V2_ADD_SA (sheet §4.6)."""
    count, elements, keys = _elements(sas)
    buffer = bytearray(max(176, -(-(0xA8 + len(keys)) // 8) * 8))
    ipv6 = len(addresses[0]) == 16
    struct.pack_into("<BBH", buffer, 0x00, 0x80, 1, 169)
    struct.pack_into("<Q", buffer, 0x08, following)
    struct.pack_into("<II", buffer, 0x10, count, inbound | (0x10 if ipv6 else 0))
    buffer[0x18 : 0x18 + 2 * len(addresses[0])] = addresses[0] + addresses[1]
    struct.pack_into("<Q", buffer, 0x38, 0xDEADBEEF)
    struct.pack_into("<I", buffer, 0x40, udp_esp)
    buffer[0x44 : 0x44 + 96] = elements
    struct.pack_into("<I", buffer, 0xA4, len(keys))
    buffer[0xA8 : 0xA8 + len(keys)] = keys
    return buffer


def chain(entries: Sequence[bytearray]) -> bytearray:
    """Join entries into a list: Next holds the offset of the next one from the start."""
    joined = bytearray()
    for number, entry in enumerate(entries):
        last = number + 1 == len(entries)
        struct.pack_into("<Q", entry, 0x08, 0 if last else len(joined) + len(entry))
        joined += entry
    return joined


def handles_of(buffer: bytes) -> list[int]:
    """OffloadHandle of every entry of an ADD_SA list."""
    handles = []
    offset = 0
    while True:
        handles.append(struct.unpack_from("<Q", buffer, offset + 0x38)[0])
        offset = struct.unpack_from("<Q", buffer, offset + 0x08)[0]
        if not offset:
            return handles


def add_sa_ex(
    sas: Sas, addresses: tuple[bytes, bytes] = V4, *, inbound: bool = False, key_offset: int = 200
) -> bytearray:
    """An IPSEC_OFFLOAD_V2_ADD_SA_EX with its keys at `key_offset`."""
    count, elements, keys = _elements(sas)
    buffer = bytearray(key_offset + len(keys))
    ipv6 = len(addresses[0]) == 16
    struct.pack_into("<BBHII", buffer, 0x00, 0x80, 1, 170, count, inbound | (0x10 if ipv6 else 0))
    buffer[0x0C : 0x0C + 2 * len(addresses[0])] = addresses[0] + addresses[1]
    struct.pack_into("<Q", buffer, 0x30, 0xDEADBEEF)
    buffer[0x3C : 0x3C + 96] = elements
    struct.pack_into("<II", buffer, 0x9C, len(keys), key_offset)
    buffer[key_offset:] = keys
    return buffer


def handle_of_ex(buffer: bytes) -> int:
    handle: int = struct.unpack_from("<Q", buffer, 0x30)[0]
    return handle


def delete_sa(handles: Iterable[int]) -> bytearray:
    """An IPSEC_OFFLOAD_V2_DELETE_SA list."""
    entries = []
    for handle in handles:
        entry = bytearray(24)
        struct.pack_into("<BBH4xQQ", entry, 0, 0x80, 1, 24, 0, handle)
        entries.append(entry)
    return chain(entries)


def update_sa(handle: int, operation: int, spi: int, high: int) -> bytearray:
    """An IPSEC_OFFLOAD_V2_UPDATE_SA."""
    buffer = bytearray(32)
    struct.pack_into("<BBH4xQI", buffer, 0, 0x80, 1, 28, handle, operation)
    struct.pack_into(">I", buffer, 0x14, spi)
    struct.pack_into("<I", buffer, 0x18, high)
    return buffer


# --- V1 ----------------------------------------------------------------------------------------------------

_V1_INTEGRITY = {"": 0, "hmac-md5-96": 1, "hmac-sha1-96": 2}
_V1_CONFIDENTIALITY = {"": 0, "null": 0, "des-cbc": 1, "3des-cbc": 3}


def _v1(
    size: int,
    key_length_at: int,
    sas: Sas,
    addresses: tuple[bytes, bytes],
    *,
    inbound: bool,
    tunnel: tuple[bytes, bytes],
    protocol: int,
) -> bytearray:
    """Members that ADD_SA and ADD_UDPESP_SA share, and the keys: confidentiality first (sheet §4.8)."""
    members = sas if isinstance(sas, tuple) else (sas,)
    buffer = bytearray(size)
    source, destination = addresses
    buffer[0x00:0x10] = source + b"\xff" * 4 + destination + b"\xff" * 4
    struct.pack_into("<I", buffer, 0x10, protocol)
    buffer[0x18:0x20] = tunnel[0] + tunnel[1]
    struct.pack_into("<Hh", buffer, 0x20, 1 if inbound else 2, len(members))
    keys = b""
    for number, sa in enumerate(members):
        at = 0x24 + 44 * number
        own = b""
        confidentiality = integrity = b""
        if sa.encryption and _V1_CONFIDENTIALITY[sa.encryption]:
            confidentiality = sa.encryption_key.reveal()
        if sa.integrity:
            integrity = sa.integrity_key.reveal()
        own = confidentiality + integrity
        struct.pack_into("<I", buffer, at, 1 if sa.operation is Operation.AH else 2)
        struct.pack_into(">I", buffer, at + 0x04, sa.spi)
        struct.pack_into("<III", buffer, at + 0x08, _V1_INTEGRITY[sa.integrity], len(integrity), 0)
        conf = _V1_CONFIDENTIALITY[sa.encryption]
        struct.pack_into("<III", buffer, at + 0x14, conf, len(confidentiality), 0)
        keys += own
    struct.pack_into("<Q", buffer, 0xA8, 0xDEADBEEF)
    struct.pack_into("<I", buffer, key_length_at, len(keys))
    area = buffer[: key_length_at + 4] + keys
    return area.ljust(size, b"\0")


NO_TUNNEL = (bytes(4), bytes(4))


def v1_add_sa(
    sas: Sas,
    addresses: tuple[bytes, bytes] = V4,
    *,
    inbound: bool = False,
    tunnel: tuple[bytes, bytes] = NO_TUNNEL,
    protocol: int = 0,
) -> bytearray:
    """An OFFLOAD_IPSEC_ADD_SA."""
    return _v1(184, 0xB0, sas, addresses, inbound=inbound, tunnel=tunnel, protocol=protocol)


def v1_add_udpesp(
    sas: Sas,
    addresses: tuple[bytes, bytes] = V4,
    *,
    inbound: bool = False,
    tunnel: tuple[bytes, bytes] = NO_TUNNEL,
    protocol: int = 17,
    kind: int = 1,
    port: int = 4500,
    entry: int = 0,
) -> bytearray:
    """An OFFLOAD_IPSEC_ADD_UDPESP_SA."""
    buffer = _v1(200, 0xC0, sas, addresses, inbound=inbound, tunnel=tunnel, protocol=protocol)
    struct.pack_into("<IH2xQ", buffer, 0xB0, kind, port, entry)
    return buffer


def v1_handle(buffer: bytes) -> int:
    handle: int = struct.unpack_from("<Q", buffer, 0xA8)[0]
    return handle


def v1_entry(buffer: bytes) -> int:
    entry: int = struct.unpack_from("<Q", buffer, 0xB8)[0]
    return entry


# --- configuration -----------------------------------------------------------------------------------------


def parameters(*, revision: int = 2, flags: int = 0, **values: int) -> bytearray:
    """An NDIS_OFFLOAD_PARAMETERS with these members; the rest is NO_CHANGE (sheet §3.2)."""
    size = {1: 20, 2: 22, 3: 26}[revision]
    buffer = bytearray(26)
    struct.pack_into("<BBH", buffer, 0, 0x80, revision, size)
    offsets = {
        "IPv4Checksum": 0x04,
        "TCPIPv4Checksum": 0x05,
        "UDPIPv4Checksum": 0x06,
        "TCPIPv6Checksum": 0x07,
        "UDPIPv6Checksum": 0x08,
        "LsoV1": 0x09,
        "IPsecV1": 0x0A,
        "LsoV2IPv4": 0x0B,
        "LsoV2IPv6": 0x0C,
        "IPsecV2": 0x14,
        "IPsecV2IPv4": 0x15,
        "RscIPv4": 0x16,
    }
    for name, value in values.items():
        buffer[offsets[name]] = value
    struct.pack_into("<I", buffer, 0x10, flags)
    return buffer[:size]


ON, OFF = 1, 2


def encapsulation(
    ipv4: tuple[int, int, int] = (ON, 2, 14), ipv6: tuple[int, int, int] = (ON, 2, 14)
) -> bytearray:
    """An NDIS_OFFLOAD_ENCAPSULATION: Enabled, EncapsulationType, HeaderSize of each family."""
    return bytearray(struct.pack("<BBH6I", 0xA8, 1, 28, *ipv4, *ipv6))


def task(
    *,
    supported: tuple[int, int, int, int] = (0, 0, 0, 0),
    ah: int = 0,
    esp: int = 0,
    kind: int = 1,
    following: int = 0,
) -> bytes:
    """An NDIS_TASK_OFFLOAD with an NDIS_TASK_IPSEC."""
    return struct.pack("<5I", 1, 24, kind, following, 24) + struct.pack("<6I", *supported, ah, esp)


def tasks(*listed: bytes, encapsulation: int = 2, version: int = 1, size: int = 28) -> bytes:
    """The header of OID_TCP_TASK_OFFLOAD with tasks behind it."""
    first = 28 if listed else 0
    return struct.pack("<7I", version, size, 0, first, encapsulation, 1, 14) + b"".join(listed)
