"""OID_TCP_TASK_OFFLOAD: task offload as NDIS 5 asked for it, for the IPsec task.

Law: bytes to capabilities and back; what a set switches is `configuration`. Little-endian.

    header (28)  Version 1, Size, Reserved, OffsetFirstTask; Encapsulation, Flags, EncapsulationHeaderSize
    task         Version 1, Size, Task, OffsetNextTask (from this task; 0: the last), TaskBufferLength, buffer
    IPsec (24)   AH_ESP_COMBINED, TRANSPORT_TUNNEL_COMBINED, V4_OPTIONS, RESERVED; V4AH and V4ESP, a bit each

Source: sheet §3.5, §2.2 (the same members, one bit each); NDIS_TASK_OFFLOAD_HEADER, NDIS_TASK_OFFLOAD and
NDIS_TASK_IPSEC as drivers of NDIS 5 declare them.
"""

from __future__ import annotations

from dataclasses import replace
from struct import Struct

from vnic.errors import OidError
from vnic.ndis.capabilities import NO_IPSEC_V1, OffloadCapabilitiesV1
from vnic.ndis.layout import Buffer, Layout, Member
from vnic.ndis.status import NdisStatus
from vnic.ndis.structs import refuse, require_length

TASK_OFFLOAD_HEADER = Layout(
    "NDIS_TASK_OFFLOAD_HEADER",
    28,
    (
        Member("Version", 0x00, "I"),
        Member("Size", 0x04, "I"),
        Member("Reserved", 0x08, "I"),
        Member("OffsetFirstTask", 0x0C, "I"),
        Member("EncapsulationFormat.Encapsulation", 0x10, "I"),
        Member("EncapsulationFormat.Flags", 0x14, "I"),
        Member("EncapsulationFormat.EncapsulationHeaderSize", 0x18, "I"),
    ),
)

TASK_OFFLOAD = Layout(
    "NDIS_TASK_OFFLOAD",
    24,
    (
        Member("Version", 0x00, "I"),
        Member("Size", 0x04, "I"),
        Member("Task", 0x08, "I"),
        Member("OffsetNextTask", 0x0C, "I"),
        Member("TaskBufferLength", 0x10, "I"),
        Member("TaskBuffer", 0x14, "1s"),
    ),
)

TASK_IPSEC = Layout(
    "NDIS_TASK_IPSEC",
    24,
    (
        Member("Supported.AH_ESP_COMBINED", 0x00, "I"),
        Member("Supported.TRANSPORT_TUNNEL_COMBINED", 0x04, "I"),
        Member("Supported.V4_OPTIONS", 0x08, "I"),
        Member("Supported.RESERVED", 0x0C, "I"),
        Member("V4AH", 0x10, "I"),
        Member("V4ESP", 0x14, "I"),
    ),
)

TASK_OFFLOAD_VERSION = 1
IPSEC_TASK = 1
"""IpSecNdisTask; 0 is TCP/IP checksums, 2 large send."""

_UNSPECIFIED, _IEEE_802_3 = 0, 2
_ETHERNET_HEADER = 14
_FIXED_HEADER_SIZE = 0x1
_MAX_LENGTH = 4096
"""Bytes from the start to the last task, and in it: a lying offset is not answered with gigabytes needed."""

_HEADER = TASK_OFFLOAD_HEADER.struct()
_TASK = Struct("<5I")
_IPSEC = TASK_IPSEC.struct()
_TASK_BUFFER = TASK_OFFLOAD.offset_of("TaskBuffer")

_SUPPORTED = ("ah_esp_combined", "transport_tunnel_combined", "ipv4_options")
_AH_BITS = ("ah_md5", "ah_sha1", "ah_transport", "ah_tunnel", "ah_send", "ah_receive")
_ESP_BITS = (
    "esp_des",
    "",
    "esp_triple_des",
    "esp_null",
    "esp_transport",
    "esp_tunnel",
    "esp_send",
    "esp_receive",
)
"""V4AH and V4ESP from the least significant bit; "" is reserved."""


def pack_tasks(v1: OffloadCapabilitiesV1) -> bytes:
    """Build the answer to a query: the IPsec task with all that V1 can do."""
    supported = [int(getattr(v1, member)) for member in _SUPPORTED]
    ah, esp = (
        sum(getattr(v1, member) << shift for shift, member in enumerate(bits) if member)
        for bits in (_AH_BITS, _ESP_BITS)
    )
    header = _HEADER.pack(
        TASK_OFFLOAD_VERSION,
        _HEADER.size,
        0,
        _HEADER.size,
        _IEEE_802_3,
        _FIXED_HEADER_SIZE,
        _ETHERNET_HEADER,
    )
    task = _TASK.pack(TASK_OFFLOAD_VERSION, TASK_OFFLOAD.size, IPSEC_TASK, 0, _IPSEC.size)
    return header + task + _IPSEC.pack(*supported, 0, ah, esp)


def read_tasks(buffer: Buffer, able: OffloadCapabilitiesV1) -> OffloadCapabilitiesV1:
    """Give the V1 capabilities that a set wants on; NO_IPSEC_V1 when it does not list the IPsec task. The
    task has no member for UDP-ESP, which is off then.

    Args:
        able: what the hardware can do.

    Raises:
        OidError: BUFFER_TOO_SHORT; INVALID_DATA for a wrong version or size, a task that does not follow
            its predecessor or comes twice, or a capability that the hardware lacks; NOT_SUPPORTED for
            another encapsulation than Ethernet or another task than IPsec.
    """
    require_length(buffer, _HEADER.size, TASK_OFFLOAD_HEADER.name)
    version, size, _, offset, encapsulation, _, header_size = _HEADER.unpack_from(buffer)
    if version != TASK_OFFLOAD_VERSION:
        refuse("unknown version", "Version", version, str(TASK_OFFLOAD_VERSION))
    if size != _HEADER.size:
        refuse("a header has one size", "Size", size, str(_HEADER.size))
    if (encapsulation, header_size) != (_UNSPECIFIED, _ETHERNET_HEADER) and encapsulation != _IEEE_802_3:
        raise _unsupported("this NIC does Ethernet only", "Encapsulation", encapsulation, _IEEE_802_3)
    wanted = NO_IPSEC_V1
    listed = False
    minimum = _HEADER.size
    while offset:
        if not minimum <= offset <= _MAX_LENGTH:
            allowed = f"{minimum} to {_MAX_LENGTH}"
            refuse("a task does not follow what is before it", "OffsetNextTask", offset, allowed)
        require_length(buffer, offset + _TASK_BUFFER, TASK_OFFLOAD.name)
        version, _, task, following, length = _TASK.unpack_from(buffer, offset)
        if version != TASK_OFFLOAD_VERSION:
            refuse("unknown version", "Version", version, str(TASK_OFFLOAD_VERSION))
        if task != IPSEC_TASK:
            raise _unsupported("this NIC lists no such task", "Task", task, IPSEC_TASK)
        if listed:
            refuse("a task is listed twice", "Task", task, "once")
        if not _IPSEC.size <= length <= _MAX_LENGTH:
            allowed = f"{_IPSEC.size} to {_MAX_LENGTH}"
            refuse("no length of an IPsec task", "TaskBufferLength", length, allowed)
        require_length(buffer, offset + _TASK_BUFFER + length, TASK_IPSEC.name)
        wanted = _wanted(_IPSEC.unpack_from(buffer, offset + _TASK_BUFFER), able)
        listed = True
        minimum = offset + _TASK_BUFFER + length
        offset = offset + following if following else 0
    return wanted


def _wanted(values: tuple[int, ...], able: OffloadCapabilitiesV1) -> OffloadCapabilitiesV1:
    members: dict[str, bool] = dict(zip(_SUPPORTED, map(bool, values), strict=False))
    for name, bits, value in (("V4AH", _AH_BITS, values[4]), ("V4ESP", _ESP_BITS, values[5])):
        legal = sum(1 << shift for shift, member in enumerate(bits) if member)
        if value & ~legal:
            refuse("undefined bits", name, value, f"bits of {legal:#x}")
        members |= {member: bool(value >> shift & 1) for shift, member in enumerate(bits) if member}
    for member, on in members.items():
        if on and not getattr(able, member):
            refuse("the hardware cannot do that", member, 1, "0")
    wanted = replace(able, udp_esp=0, **members)
    return wanted if any(members.values()) else NO_IPSEC_V1


def _unsupported(message: str, field: str, value: int, allowed: int) -> OidError:
    return OidError(NdisStatus.NOT_SUPPORTED, message, field=field, value=str(value), allowed=str(allowed))
