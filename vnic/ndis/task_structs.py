"""The binary form of NDIS 5: the list of tasks of OID_TCP_TASK_OFFLOAD, for the IPsec task.

Law: as `ndis.structs`. What a listed task switches, and which tasks there are, is the NIC's affair.

    NDIS_TASK_OFFLOAD_HEADER | NDIS_TASK_OFFLOAD, its TaskBuffer | NDIS_TASK_OFFLOAD, its TaskBuffer | …

OffsetFirstTask counts from the header, OffsetNextTask from the task it stands in; 0 ends. NDIS_TASK_IPSEC
has the members of NDIS_IPSEC_OFFLOAD_V1 without Encapsulation, in fields of one bit; RESERVED is where V1 has
its UDP-ESP flags (sheet appendix A10).

Source: sheet §3.5, §2.2; ntddndis.h of NDIS 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vnic.ndis.capabilities import ALL_UDP_ESP, ETHERNET, V1_UDP_ESP_SHIFT, OffloadCapabilitiesV1
from vnic.ndis.layout import Bits, Buffer, Layout, Member
from vnic.ndis.status import NdisStatus
from vnic.ndis.structs import StructError, packed, refuse, require_length

TASK_OFFLOAD_HEADER: Final = Layout(
    "NDIS_TASK_OFFLOAD_HEADER",
    28,
    (
        Member("Version", 0x00, "I"),
        Member("Size", 0x04, "I"),
        Member("Reserved", 0x08, "I"),
        Member("OffsetFirstTask", 0x0C, "I"),
        Member("EncapsulationFormat.Encapsulation", 0x10, "I"),
        Member("EncapsulationFormat.(Flags)", 0x14, "I"),
        Member("EncapsulationFormat.EncapsulationHeaderSize", 0x18, "I"),
    ),
)
TASK_OFFLOAD: Final = Layout(
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
TASK_IPSEC: Final = Layout(
    "NDIS_TASK_IPSEC",
    24,
    (
        Member("Supported.AH_ESP_COMBINED", 0x00, "I"),
        Member("Supported.TRANSPORT_TUNNEL_COMBINED", 0x04, "I"),
        Member("Supported.V4_OPTIONS", 0x08, "I"),
        Member("Supported.RESERVED", 0x0C, "I"),
        Member("V4AH.(bits)", 0x10, "I"),
        Member("V4ESP.(bits)", 0x14, "I"),
    ),
)
TASK_IPSEC_AH: Final = tuple(
    Bits(name, shift, 1)
    for shift, name in enumerate(("MD5", "SHA_1", "Transport", "Tunnel", "Send", "Receive"))
)
TASK_IPSEC_ESP: Final = tuple(
    Bits(name, shift, 1)
    for shift, name in enumerate(
        ("DES", "RESERVED", "TRIPLE_DES", "NULL_ESP", "Transport", "Tunnel", "Send", "Receive")
    )
)

TASK_OFFLOAD_VERSION = 1
IPSEC_TASK = 1
"""IpSecNdisTask; 0 is TCP/IP checksums, 2 large send."""
ENCAPSULATION_UNSPECIFIED = 0
ENCAPSULATION_IEEE_802_3 = 2
"""NDIS_ENCAPSULATION of NDIS 5: an enumeration, not the flags of NDIS 6."""
ETHERNET_HEADER_LENGTH = 14

_FIXED_HEADER_SIZE = 0x1
_HEADER = TASK_OFFLOAD_HEADER.struct()
_TASK = TASK_OFFLOAD.struct(last="TaskBufferLength")
_IPSEC = TASK_IPSEC.struct()
_ALIGNMENT = 4


@dataclass(frozen=True, slots=True)
class TaskList:
    """The tasks of one OID_TCP_TASK_OFFLOAD; a set switches on exactly those listed."""

    ipsec: OffloadCapabilitiesV1 | None = None
    """None: the IPsec task is not listed."""
    others: tuple[int, ...] = ()
    """Numbers of the other tasks that are listed."""
    encapsulation: int = ENCAPSULATION_IEEE_802_3
    header_size: int = ETHERNET_HEADER_LENGTH
    fixed_header_size: bool = True


def read_task_offload(buffer: Buffer) -> TaskList:
    """Give the tasks of a list.

    Raises:
        StructError: BUFFER_TOO_SHORT; INVALID_LENGTH for a wrong Size or TaskBufferLength; INVALID_DATA for
            an unknown version, an OffsetNextTask that does not lead forward to an aligned task, a task
            listed twice, or bits that no capability has.
    """
    require_length(buffer, _HEADER.size, TASK_OFFLOAD_HEADER.name)
    version, size, _, offset, encapsulation, flags, header_size = _HEADER.unpack_from(buffer)
    _require_version(TASK_OFFLOAD_HEADER, version)
    if size != TASK_OFFLOAD_HEADER.size:
        raise _wrong_length("Size", size, TASK_OFFLOAD_HEADER.size)
    ipsec: OffloadCapabilitiesV1 | None = None
    listed: dict[int, None] = {}
    end = _HEADER.size
    limit = len(buffer)
    while offset:
        if not end <= offset <= limit or offset % _ALIGNMENT:
            allowed = f"a multiple of {_ALIGNMENT} from {end} to {limit}"
            refuse("a task is not behind what comes before it", "OffsetNextTask", offset, allowed)
        require_length(buffer, offset + _TASK.size, TASK_OFFLOAD.name)
        version, _, task, following, length = _TASK.unpack_from(buffer, offset)
        _require_version(TASK_OFFLOAD, version)
        if task in listed:
            refuse("a task is listed twice", "Task", task, "each task once")
        listed[task] = None
        begin = offset + _TASK.size
        end = begin + length
        if end > limit and length > TASK_IPSEC.size:
            raise _wrong_length("TaskBufferLength", length, TASK_IPSEC.size)
        require_length(buffer, end, "TaskBuffer")
        if task == IPSEC_TASK:
            if length < TASK_IPSEC.size:
                raise _wrong_length("TaskBufferLength", length, TASK_IPSEC.size)
            ipsec = _ipsec(*_IPSEC.unpack_from(buffer, begin))
        offset = offset + following if following else 0
    others = tuple(task for task in listed if task != IPSEC_TASK)
    return TaskList(ipsec, others, encapsulation, header_size, bool(flags & _FIXED_HEADER_SIZE))


def pack_task_offload(tasks: TaskList) -> bytearray:
    """Build a list of tasks, the IPsec task first; the others get empty buffers.

    Raises:
        RequestError: a number does not fit its member.
    """
    bodies = [] if tasks.ipsec is None else [(IPSEC_TASK, _pack_ipsec(tasks.ipsec))]
    bodies += [(task, b"") for task in tasks.others]
    data = bytearray(
        packed(
            _HEADER,
            TASK_OFFLOAD_VERSION,
            TASK_OFFLOAD_HEADER.size,
            0,
            TASK_OFFLOAD_HEADER.size if bodies else 0,
            tasks.encapsulation,
            _FIXED_HEADER_SIZE if tasks.fixed_header_size else 0,
            tasks.header_size,
        )
    )
    for number, (task, body) in enumerate(bodies, 1):
        following = _TASK.size + len(body) if number < len(bodies) else 0
        data += packed(_TASK, TASK_OFFLOAD_VERSION, TASK_OFFLOAD.size, task, following, len(body)) + body
    return data


def _ipsec(
    ah_esp: int, transport_tunnel: int, options: int, flags: int, ah: int, esp: int
) -> OffloadCapabilitiesV1:
    for name, bits, value in (("V4AH", TASK_IPSEC_AH, ah), ("V4ESP", TASK_IPSEC_ESP, esp)):
        if value >> len(bits):
            refuse("undefined bits", name, value, f"{len(bits)} bits")
    md5, sha1, ah_transport, ah_tunnel, ah_send, ah_receive = (bool(bits.of(ah)) for bits in TASK_IPSEC_AH)
    des, _, triple_des, null, *rest = (bool(bits.of(esp)) for bits in TASK_IPSEC_ESP)
    return OffloadCapabilitiesV1(
        encapsulation=ETHERNET,
        ah_esp_combined=bool(ah_esp),
        transport_tunnel_combined=bool(transport_tunnel),
        ipv4_options=bool(options),
        udp_esp=flags >> V1_UDP_ESP_SHIFT & ALL_UDP_ESP,
        ah_md5=md5,
        ah_sha1=sha1,
        ah_transport=ah_transport,
        ah_tunnel=ah_tunnel,
        ah_send=ah_send,
        ah_receive=ah_receive,
        esp_des=des,
        esp_triple_des=triple_des,
        esp_null=null,
        esp_transport=rest[0],
        esp_tunnel=rest[1],
        esp_send=rest[2],
        esp_receive=rest[3],
    )


def _pack_ipsec(v1: OffloadCapabilitiesV1) -> bytes:
    ah = (v1.ah_md5, v1.ah_sha1, v1.ah_transport, v1.ah_tunnel, v1.ah_send, v1.ah_receive)
    ciphers = (v1.esp_des, False, v1.esp_triple_des, v1.esp_null)
    esp = (*ciphers, v1.esp_transport, v1.esp_tunnel, v1.esp_send, v1.esp_receive)
    return packed(
        _IPSEC,
        v1.ah_esp_combined,
        v1.transport_tunnel_combined,
        v1.ipv4_options,
        v1.udp_esp << V1_UDP_ESP_SHIFT,
        sum(value << shift for shift, value in enumerate(ah)),
        sum(value << shift for shift, value in enumerate(esp)),
    )


def _require_version(layout: Layout, version: int) -> None:
    if version != TASK_OFFLOAD_VERSION:
        refuse(f"{layout.name} has an unknown version", "Version", version, str(TASK_OFFLOAD_VERSION))


def _wrong_length(field: str, value: int, needed: int) -> StructError:
    return StructError(
        NdisStatus.INVALID_LENGTH,
        f"{field} is not that of its structure",
        field=field,
        value=str(value),
        allowed=str(needed),
        bytes_needed=needed,
    )
