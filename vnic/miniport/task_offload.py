"""OID_TCP_TASK_OFFLOAD: task offload as NDIS 5 asked for it, for the IPsec task.

Law: what the NIC lists, and what it takes of a list; the layouts are `ndis.task_structs`, what a set switches
is `configuration`.

Source: sheet §3.5, §2.2.
"""

from __future__ import annotations

from dataclasses import replace

from vnic.errors import OidError
from vnic.ndis.capabilities import NO_IPSEC_V1, OffloadCapabilitiesV1
from vnic.ndis.layout import Buffer
from vnic.ndis.status import NdisStatus
from vnic.ndis.structs import refuse, require_length
from vnic.ndis.task_structs import (
    ENCAPSULATION_IEEE_802_3,
    ENCAPSULATION_UNSPECIFIED,
    ETHERNET_HEADER_LENGTH,
    IPSEC_TASK,
    TASK_IPSEC,
    TASK_OFFLOAD,
    TASK_OFFLOAD_HEADER,
    TASK_OFFLOAD_VERSION,
    TaskList,
    pack_task_offload,
)

_MAX_LENGTH = 4096
"""Bytes from the start to the last task, and in it: a lying offset is not answered with gigabytes needed."""

_HEADER = TASK_OFFLOAD_HEADER.struct()
_TASK = TASK_OFFLOAD.struct(last="TaskBufferLength")
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
    """Build the answer to a query: the IPsec task with all that V1 can do, UDP-ESP left out."""
    return bytes(pack_task_offload(TaskList(replace(v1, udp_esp=0))))


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
    if (encapsulation, header_size) != (
        ENCAPSULATION_UNSPECIFIED,
        ETHERNET_HEADER_LENGTH,
    ) and encapsulation != ENCAPSULATION_IEEE_802_3:
        raise _unsupported(
            "this NIC does Ethernet only", "Encapsulation", encapsulation, ENCAPSULATION_IEEE_802_3
        )
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
