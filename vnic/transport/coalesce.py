"""Joining in-order TCP segments of one flow into one superframe for the host.

Law: only plain data segments that the host's own receive offload would join, and nothing a segmenter
could not take apart again: same headers, consecutive sequence numbers, equal sizes but for the last. A
joined checksum is computed from the segments' own checksums, never from the payload: a segment that
was damaged before it was protected stays visibly damaged for the host.

Source: the rules are those of the kernel's TCP receive offload; RFC 9293 §3.1; RFC 1071 §2 (sums add).
"""

from __future__ import annotations

import struct

from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.checksum import fold, ones_complement_sum
from vnic.packet.ip import TCP
from vnic.packet.vnet import GSO_TCPV4, GSO_TCPV6, VnetHeader

_MAX_PACKET = 65535
_ACK = 0x10
_PSH = 0x08
_ETHERNET = 14
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")


class _Run:
    """One data segment and those joined to it so far."""

    __slots__ = (
        "_address_sum",
        "_layer4",
        "_length",
        "_next_number",
        "_parts",
        "_payload",
        "_payload_sum",
        "_size",
        "buffer",
        "open",
    )

    def __init__(self, buffer: NetBuffer, layer4: int, payload: int) -> None:
        frame = buffer.frame
        self.buffer = buffer
        self._layer4 = layer4
        self._payload = payload
        self._size = len(frame) - payload
        self._length = self._size
        self._next_number = _U32.unpack_from(frame, layer4 + 4)[0] + self._size & 0xFFFFFFFF
        self._parts: list[bytes | bytearray] = []
        self._address_sum = 0
        self._payload_sum = 0
        self.open = not frame[layer4 + 13] & _PSH

    def append(self, frame: bytearray) -> bool:
        """Join a segment of the same addresses, ports and family, if it continues this one."""
        head = self.buffer.frame
        layer4 = self._layer4
        payload = self._payload
        size = len(frame) - payload
        if (
            not 0 < size <= self._size
            or payload - _ETHERNET + self._length + size > _MAX_PACKET
            or _U32.unpack_from(frame, layer4 + 4)[0] != self._next_number
            # acknowledgement, data offset; window; options
            or frame[layer4 + 8 : layer4 + 13] != head[layer4 + 8 : layer4 + 13]
            or frame[layer4 + 14 : layer4 + 16] != head[layer4 + 14 : layer4 + 16]
            or frame[layer4 + 20 : payload] != head[layer4 + 20 : payload]
            # Ethernet header, IP version, traffic class, flow label; flags, hop limit, protocol
            or frame[:16] != head[:16]
            or (frame[20:24] != head[20:24] if layer4 == 34 else frame[16:18] != head[16:18])
            or (layer4 == 54 and frame[20:22] != head[20:22])
        ):
            return False
        if not self._parts:
            self._address_sum = ones_complement_sum(head[layer4 - (8 if layer4 == 34 else 32) : layer4]) + TCP
            self._parts = [head[payload:]]
            self._add_payload_sum(head, self._size, 0)
        self._add_payload_sum(frame, size, self._length)
        self._parts.append(frame[payload:])
        self._length += size
        self._next_number = (self._next_number + size) & 0xFFFFFFFF
        if frame[layer4 + 13] & _PSH:
            head[layer4 + 13] |= _PSH
            self.open = False
        elif size < self._size:
            self.open = False
        return True

    def _add_payload_sum(self, frame: bytearray, size: int, position: int) -> None:
        """Add the payload's sum, as the segment's own checksum implies it: all words sum to zero."""
        header = ones_complement_sum(frame[self._layer4 : self._payload])
        payload_sum = -(self._address_sum + self._payload - self._layer4 + size + header) % 65535
        if position & 1:
            payload_sum <<= 8  # at an odd place the bytes of each word swap (RFC 1071 §2 (B))
        self._payload_sum += payload_sum

    def finish(self) -> NetBuffer:
        """The segment itself if nothing joined it, else the superframe."""
        buffer = self.buffer
        if not self._parts:
            return buffer
        layer4 = self._layer4
        payload = self._payload
        frame = bytearray().join((buffer.frame[:payload], *self._parts))
        length = len(frame)
        if layer4 == 34:
            _U16.pack_into(frame, 16, length - _ETHERNET)
            _U16.pack_into(frame, 24, 0)
            _U16.pack_into(frame, 24, 0xFFFF - ones_complement_sum(frame[_ETHERNET:layer4]))
        else:
            _U16.pack_into(frame, 18, length - layer4)
        _U16.pack_into(frame, layer4 + 16, 0)
        total = (
            self._address_sum
            + length
            - layer4
            + ones_complement_sum(frame[layer4:payload])
            + self._payload_sum
        )
        _U16.pack_into(frame, layer4 + 16, 0xFFFF - fold(total))
        kind = GSO_TCPV4 if layer4 == 34 else GSO_TCPV6
        # No flag asks for or vouches for a checksum: the host checks the one that is there.
        buffer.frame = frame
        buffer.vnet = VnetHeader(0, kind, payload, self._size, 0, 0)
        return buffer


def coalesce(burst: list[NetBuffer]) -> list[NetBuffer]:
    """Join what can be joined; frames of one flow keep their order.

    Args:
        burst: frames for the host; those with `vnet` set pass as they are. Consumed.

    Returns:
        The frames, joined ones in the place of their first segment and with `vnet` set.
    """
    if len(burst) < 2:
        return burst
    order: list[_Run | NetBuffer] = []
    runs: dict[bytes, _Run] = {}
    for buffer in burst:
        frame = buffer.frame
        kind = b"" if buffer.vnet is not None else frame[12:15]
        if kind == b"\x08\x00\x45" and len(frame) > 54 and frame[23] == TCP:
            layer4 = 34
            flow = bytes(frame[26:38])
        elif kind[:2] == b"\x86\xdd" and len(frame) > 74 and frame[20] == TCP:
            layer4 = 54
            flow = bytes(frame[22:58])
        else:
            order.append(buffer)
            continue
        run = runs.get(flow)
        if run is not None:
            if _joinable(frame, layer4) and run.append(frame):
                if not run.open:
                    del runs[flow]
                continue
            del runs[flow]
        if not _joinable(frame, layer4):
            order.append(buffer)
            continue
        run = _Run(buffer, layer4, layer4 + (frame[layer4 + 12] >> 4) * 4)
        order.append(run)
        if run.open:
            runs[flow] = run
    return [item.finish() if isinstance(item, _Run) else item for item in order]


def _joinable(frame: bytearray, layer4: int) -> bool:
    """Whether a TCP frame is a data segment with nothing but ACK and PSH, whole and not fragmented."""
    payload = layer4 + (frame[layer4 + 12] >> 4) * 4
    if payload < layer4 + 20 or payload >= len(frame) or frame[layer4 + 13] & ~_PSH != _ACK:
        return False
    if layer4 == 34:
        # Don't Fragment alone: only then do identifications not matter (RFC 6864).
        return frame[20] == 0x40 and frame[21] == 0 and (frame[16] << 8 | frame[17]) == len(frame) - _ETHERNET
    return (frame[18] << 8 | frame[19]) == len(frame) - 54
