"""Joining in-order TCP segments of one flow into one superframe for the host.

Law: only plain data segments that the host's own receive offload would join, and nothing a segmenter
could not take apart again: same headers, consecutive sequence numbers, equal sizes but for the last. A
joined checksum is computed from the segments' own checksums, never from the payload: a segment that
was damaged before it was protected stays visibly damaged for the host, and so does its IP header.

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

_IPV4_TCP = struct.Struct(">16s 2x2x 4s 2x 12s I 5s B 2s")
_IPV6_TCP = struct.Struct(">18s 2x 2s 36s I 5s B 2s")
"""Fields of a frame without VLAN tag and IP options, from its start: Ethernet header to traffic class or flow
label; flags, hop limit, protocol; addresses and ports; sequence number; acknowledgement and data offset;
TCP flags; window."""

_IPV4_TCP_START = 34
_IPV6_TCP_START = 54


class _Run:
    """One data segment and those joined to it so far."""

    __slots__ = (
        "_address_sum",
        "_layer4",
        "_length",
        "_like",
        "_next_number",
        "_parts",
        "_payload",
        "_payload_sum",
        "_size",
        "buffer",
        "open",
    )

    def __init__(
        self,
        buffer: NetBuffer,
        like: tuple[bytes | bytearray, ...],
        layer4: int,
        payload: int,
        sequence_number: int,
        flags: int,
    ) -> None:
        """Begin with one segment.

        Args:
            like: everything about a segment that must not differ for it to be joined.
            layer4, payload: offsets of TCP header and payload in the frame.
        """
        self.buffer = buffer
        self._like = like
        self._layer4 = layer4
        self._payload = payload
        self._size = len(buffer.frame) - payload
        self._length = self._size
        self._next_number = sequence_number + self._size & 0xFFFFFFFF
        self._parts: list[bytearray] = []
        self._address_sum = 0
        self._payload_sum = 0
        self.open = not flags & _PSH

    def append(
        self, frame: bytearray, like: tuple[bytes | bytearray, ...], sequence_number: int, flags: int
    ) -> bool:
        """Join a segment of the same addresses and ports, if it continues this one."""
        payload = self._payload
        size = len(frame) - payload
        if (
            sequence_number != self._next_number
            or size > self._size
            or like != self._like
            or payload - _ETHERNET + self._length + size > _MAX_PACKET
        ):
            return False
        if not self._parts:
            head = self.buffer.frame
            layer4 = self._layer4
            addresses = 8 if layer4 == _IPV4_TCP_START else 32
            self._address_sum = ones_complement_sum(head[layer4 - addresses : layer4]) + TCP
            self._parts.append(head[payload:])
            self._add_payload_sum(head, self._size, 0)
        self._add_payload_sum(frame, size, self._length)
        self._parts.append(frame[payload:])
        self._length += size
        self._next_number = (sequence_number + size) & 0xFFFFFFFF
        if flags & _PSH:
            self.buffer.frame[self._layer4 + 13] |= _PSH
            self.open = False
        elif size < self._size:
            self.open = False
        return True

    def _add_payload_sum(self, frame: bytearray, size: int, position: int) -> None:
        """Add the payload's sum, as the segment's own checksum implies it: all words sum to zero."""
        header = int.from_bytes(frame[self._layer4 : self._payload], "big")
        total = self._address_sum + self._payload - self._layer4 + size + header
        if position & 1:
            total <<= 8  # at an odd place the bytes of each word swap (RFC 1071 §2 (B))
        self._payload_sum -= total

    def finish(self) -> NetBuffer:
        """The segment itself if nothing joined it, else the superframe."""
        buffer = self.buffer
        if not self._parts:
            return buffer
        layer4 = self._layer4
        payload = self._payload
        frame = bytearray().join((buffer.frame[:payload], *self._parts))
        length = len(frame)
        if layer4 == _IPV4_TCP_START:
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
            + self._payload_sum % 65535
        )
        _U16.pack_into(frame, layer4 + 16, 0xFFFF - fold(total))
        kind = GSO_TCPV4 if layer4 == _IPV4_TCP_START else GSO_TCPV6
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
        if kind == b"\x08\x00\x45" and len(frame) >= 54 and frame[23] == TCP:
            layer4 = _IPV4_TCP_START
            first, second, flow, sequence_number, acknowledged, flags, window = _IPV4_TCP.unpack_from(frame)
            # Don't Fragment alone: only then do identifications not matter (RFC 6864). A damaged header stays
            # alone too, for joining would give it a good checksum; a good one sums to a multiple of 65535.
            whole = (
                second[:2] == b"\x40\0"
                and (frame[16] << 8 | frame[17]) == len(frame) - _ETHERNET
                and int.from_bytes(frame[_ETHERNET:_IPV4_TCP_START], "big") % 65535 == 0
            )
        elif kind[:2] == b"\x86\xdd" and len(frame) >= 74 and frame[20] == TCP:
            layer4 = _IPV6_TCP_START
            first, second, flow, sequence_number, acknowledged, flags, window = _IPV6_TCP.unpack_from(frame)
            whole = (frame[18] << 8 | frame[19]) == len(frame) - layer4
        else:
            order.append(buffer)
            continue
        payload = layer4 + (acknowledged[4] >> 4) * 4
        run = runs.get(flow)
        if not whole or flags & ~_PSH != _ACK or not layer4 + 20 <= payload < len(frame):
            # What cannot be joined still ends its flow's run, so that nothing overtakes it.
            if run is not None:
                del runs[flow]
            order.append(buffer)
            continue
        like = (first, second, acknowledged, window, frame[layer4 + 20 : payload])
        if run is not None:
            if run.append(frame, like, sequence_number, flags):
                if not run.open:
                    del runs[flow]
                continue
            del runs[flow]
        run = _Run(buffer, like, layer4, payload, sequence_number, flags)
        order.append(run)
        if run.open:
            runs[flow] = run
    return [item.finish() if isinstance(item, _Run) else item for item in order]
