"""Messages of the NBL socket: one NET_BUFFER_LIST or status indication in one datagram.

Law: bytes to values and back; no socket, no SA, no judgement of frames. A message that does not hold
together is a `BadMessage`, never an exception.

Every integer is little-endian; offsets count from the start of the message. `examples/c/vnic_nbl.h` declares
the same for C.

    0x00  u16  Version              1
    0x02  u8   Type                 1 send, 2 send complete, 3 receive, 4 status indication
    0x03  u8   Flags                0
    0x04  u32  Status               send complete: NDIS_STATUS; status indication: its code; else 0
    0x08  u64  RequestId            send: the driver's name for the list, quoted when it completes; else 0
    0x10  u32  NetBufferCount       descriptors that follow the header
    0x14  u32  HeaderLength         72: where the descriptors begin
    0x18  u64  TcpIpChecksum        slot 0 of the info array, as are
    0x20  u64  IPsecOffload         slot 1, V1 and V2 alike
    0x28  u64  TcpLargeSend         slot 2
    0x30  u64  IPsecOffloadTunnel   slot 11
    0x38  u64  IPsecOffloadHeader   slot 12
    0x40  u64  NextOffloadHandle    send: second handle of the NDIS 5 IPsec packet info, else 0; stands for
                                    slot 11 where that is zero
    0x48       descriptors          NetBufferCount times {u32 DataOffset, u32 DataLength}
    ...        data                 frames from the destination address on, without FCS

A send has at least one frame, a receive exactly one, a send complete none. A status indication has one
descriptor, whose data is the StatusBuffer, or none. Data lies behind the descriptors, in their order and
apart from each other; gaps hold nothing.

Source: NET_BUFFER_LIST and its info array (sheet §5); NDIS_STATUS_INDICATION (sheet §3.3).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from vnic.ndis.oob import NO_SLOTS, Slots
from vnic.ndis.status import NdisStatus

VERSION = 1

HEADER = struct.Struct("<HBBIQIIQQQQQQ")
HEADER_LENGTH = HEADER.size
DESCRIPTOR = struct.Struct("<II")

MESSAGE_LIMIT = 1 << 20
"""Bytes of the longest message; the largest large send is a quarter of it."""

NET_BUFFER_LIMIT = 1024
"""Frames of one list."""

_REQUEST_ID = struct.Struct("<Q")
_REQUEST_ID_OFFSET = 8


class MessageType(IntEnum):
    """What a message is."""

    SEND = 1
    """Driver to NIC: send these frames."""
    SEND_COMPLETE = 2
    """NIC to driver: that list is done."""
    RECEIVE = 3
    """NIC to driver: this frame came from the wire."""
    STATUS_INDICATION = 4
    """NIC to driver: its state changed."""


_COUNTS = {
    MessageType.SEND: (1, NET_BUFFER_LIMIT),
    MessageType.SEND_COMPLETE: (0, 0),
    MessageType.RECEIVE: (1, 1),
    MessageType.STATUS_INDICATION: (0, 1),
}
"""Least and most net buffers of each type."""


@dataclass(slots=True)
class NblMessage:
    """One message.

    Attributes:
        type: decides which members count.
        status: NDIS_STATUS of a completion, code of an indication; else 0.
        request_id: of a send and its completion.
        slots: out-of-band information in its binary form.
        next_offload_handle: of a send by the NDIS 5 form; else 0.
        frames: the data of each descriptor; owned by the holder of the message.
    """

    type: MessageType
    status: int = 0
    request_id: int = 0
    slots: Slots = NO_SLOTS
    next_offload_handle: int = 0
    frames: list[bytearray] = field(default_factory=list)


class BadMessage(NamedTuple):
    """A message that cannot be taken.

    A send that names its request is completed with `status`; one too short to name it is counted alone.
    """

    status: NdisStatus
    """INVALID_LENGTH: lengths, offsets or counts that do not fit; INVALID_PARAMETER: other members."""
    request_id: int | None
    """None: the message ends before the member, or asks for no answer because it is no send."""
    reason: str
    """What was wrong, for a person."""


def pack(message: NblMessage) -> bytes:
    """Write a message. The values are the caller's own, so one that does not fit its member is a defect.

    Raises:
        struct.error: a value does not fit its member.
    """
    slots = message.slots
    return b"".join(
        (
            HEADER.pack(
                VERSION,
                message.type,
                0,
                message.status,
                message.request_id,
                len(message.frames),
                HEADER_LENGTH,
                slots.checksum,
                slots.ipsec,
                slots.large_send,
                slots.tunnel,
                slots.header,
                message.next_offload_handle,
            ),
            _descriptors(message.frames),
            *message.frames,
        )
    )


def _descriptors(frames: Sequence[bytes | bytearray]) -> bytes:
    offset = HEADER_LENGTH + DESCRIPTOR.size * len(frames)
    packed = bytearray()
    for frame in frames:
        packed += DESCRIPTOR.pack(offset, len(frame))
        offset += len(frame)
    return bytes(packed)


def unpack(data: bytes | bytearray | memoryview) -> NblMessage | BadMessage:
    """Read a message; the frames are copies. Members that mean nothing in its type must be zero."""
    if len(data) < HEADER_LENGTH:
        return _bad_header(data)
    (
        version,
        kind,
        flags,
        status,
        request_id,
        count,
        header_length,
        checksum,
        ipsec,
        large_send,
        tunnel,
        header,
        next_offload_handle,
    ) = HEADER.unpack_from(data)
    # Only a send is answered: an answer to an answer would go on for ever.
    answer = request_id if kind == MessageType.SEND or kind not in _COUNTS else None
    if version != VERSION:
        return BadMessage(NdisStatus.INVALID_PARAMETER, answer, f"version {version} instead of {VERSION}")
    if kind not in _COUNTS:
        return BadMessage(NdisStatus.INVALID_PARAMETER, answer, f"there is no message type {kind}")
    if flags:
        return BadMessage(NdisStatus.INVALID_PARAMETER, answer, f"undefined flags {flags:#x}")
    if header_length != HEADER_LENGTH:
        return BadMessage(
            NdisStatus.INVALID_LENGTH, answer, f"header length {header_length} instead of {HEADER_LENGTH}"
        )
    least, most = _COUNTS[kind]
    if not least <= count <= most:
        wanted = f"{least}" if least == most else f"{least} to {most}"
        return BadMessage(NdisStatus.INVALID_LENGTH, answer, f"{count} net buffers instead of {wanted}")
    if kind == MessageType.SEND and status:
        return BadMessage(NdisStatus.INVALID_PARAMETER, answer, "a send with a status")
    frames = _frames(data, count)
    if isinstance(frames, str):
        return BadMessage(NdisStatus.INVALID_LENGTH, answer, frames)
    slots = Slots(checksum, ipsec, large_send, tunnel, header)
    return NblMessage(MessageType(kind), status, request_id, slots, next_offload_handle, frames)


def _bad_header(data: bytes | bytearray | memoryview) -> BadMessage:
    request_id = None
    if len(data) >= _REQUEST_ID_OFFSET + _REQUEST_ID.size and data[2] == MessageType.SEND:
        (request_id,) = _REQUEST_ID.unpack_from(data, _REQUEST_ID_OFFSET)
    return BadMessage(
        NdisStatus.INVALID_LENGTH, request_id, f"{len(data)} bytes, shorter than a header of {HEADER_LENGTH}"
    )


def _frames(data: bytes | bytearray | memoryview, count: int) -> list[bytearray] | str:
    """Copy the frames out, or say which descriptor lies."""
    end = HEADER_LENGTH + DESCRIPTOR.size * count
    if len(data) < end:
        return f"{count} descriptors do not fit into {len(data)} bytes"
    frames: list[bytearray] = []
    for index, (offset, length) in enumerate(DESCRIPTOR.iter_unpack(data[HEADER_LENGTH:end])):
        if offset < end:
            return f"net buffer {index} begins at {offset}, before {end}, where data may begin"
        if not length:
            return f"net buffer {index} is empty"
        end = offset + length
        if end > len(data):
            return f"net buffer {index} ends at {end}, behind the message's {len(data)} bytes"
        frames.append(bytearray(data[offset:end]))
    return frames
