"""Invariant: whatever a protocol driver writes to an NBL socket, it is taken apart without harm, every
list is completed, and no frame that names an SA leaves unless a peer with the same SA can verify it.

An input is one message. The NIC is driven as the socket drives it: `nbl.unpack`, the slots, `transmit`.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import replace

from exploring import number, put
from nic_frames import (
    GCM,
    INNER_V4,
    NO_HANDLE,
    UDP,
    V4,
    V6,
    Framed,
    Sa,
    ah,
    checksum,
    esp,
    ethernet,
    framed,
    ip,
    seeded,
    tcp,
    transmit,
)

from vnic.errors import PacketError
from vnic.ipsec.association import Mode
from vnic.miniport.adapter import MiniportAdapter
from vnic.ndis import nbl, oob
from vnic.ndis.capabilities import UDP_ESP_TRANSPORT
from vnic.ndis.netbuffer import (
    ChecksumRequest,
    LargeSend,
    NetBuffer,
    NetBufferList,
    OffloadHandle,
    TransmitInfo,
)
from vnic.ndis.oid import AddSa
from vnic.ndis.status import NdisStatus
from vnic.packet.ethernet import ip_offset

TUNNEL = esp("aes-cbc-128", "hmac-sha256-128", spi=0x3000)
BUNDLE = (esp("3des-cbc", "hmac-md5-96", spi=0x1100), ah("hmac-sha1-96", spi=0x2200))
SIX = esp("aes-gcm-256", spi=0x6000)
NULL = esp("null", "hmac-sha1-96", spi=0x7000)
IN_UDP = esp("aes-cbc-256", "hmac-sha256-128", spi=0x8000)
CHECKSUM = ChecksumRequest(False, False, True, True, 34)
FIRST = {"near": 1, "far": (1 << 32) + 1}

SAS: tuple[tuple[Sa | tuple[Sa, ...], tuple[bytes, bytes], Mode], ...] = (
    (GCM, V4, Mode.TRANSPORT),
    (TUNNEL, V4, Mode.TUNNEL),
    (BUNDLE, V4, Mode.TRANSPORT),
    (SIX, V6, Mode.TRANSPORT),
    (NULL, INNER_V4, Mode.TRANSPORT),
    (IN_UDP, V4, Mode.TRANSPORT),
)


def _request(sas: Sa | tuple[Sa, ...], addresses: tuple[bytes, bytes], mode: Mode, *, peer: bool) -> AddSa:
    members = sas if isinstance(sas, tuple) else (sas,)
    if peer:
        # A peer for any address: what routers or a driver do to the addresses is not the question here.
        addresses = (bytes(len(addresses[0])), bytes(len(addresses[1])))
    elements = tuple(one.element() for one in members)
    return AddSa(peer, *addresses, elements, UDP_ESP_TRANSPORT if sas is IN_UDP else 0, portion=mode)


def _udp(length: int) -> bytes:
    return bytes.fromhex("13881770") + (8 + length).to_bytes(2, "big") + b"\0\0" + bytes(range(length))


def _in_udp(one: Framed, handle: OffloadHandle) -> tuple[bytes, TransmitInfo]:
    """The same ESP packet behind a UDP header."""
    packet = one.frame[one.esp :]
    header = struct.pack(">HHHH", 4500, 4500, 8 + len(packet), 0)
    info = one.info(handle)
    offset = info.esp_header_offset + len(header)
    return ethernet(ip(V4, UDP, header + packet)), info._replace(esp_header_offset=offset)


class NblTarget:
    """A NIC that sends, and a peer that has the inbound SAs of all it sends."""

    def __init__(self) -> None:
        self.near = MiniportAdapter(seeded(1).randbytes, first_handle=FIRST["near"])
        self.far = MiniportAdapter(seeded(2).randbytes, first_handle=FIRST["far"])
        for nic in (self.near, self.far):
            nic.set_encapsulation(True, True)
        self.handles = [self.near.add_sa(_request(*one, peer=False)) for one in SAS]
        self.strange = [self.far.add_sa(_request(*one, peer=True)) for one in SAS]
        self.table = self._table()

    def _table(self) -> list[int]:
        return [handle for handle, _ in self.near.bundles()]

    def seeds(self) -> list[bytes]:
        frames: list[tuple[bytes, TransmitInfo | None]] = []
        for (sas, addresses, _), handle in zip(SAS, self.handles, strict=True):
            for length in (0, 30, 200):
                one = framed(sas, _udp(length), UDP, addresses)
                if sas is IN_UDP:
                    frames.append(_in_udp(one, handle))
                else:
                    frames.append((one.frame, one.info(handle)))
        frames += [self._nested(), *self._large(), (ethernet(ip(V4, UDP, _udp(9))), None)]
        frames.append((ethernet(ip(V4, UDP, _udp(9))), self._clear(checksum=CHECKSUM)))
        messages = [
            nbl.NblMessage(
                nbl.MessageType.SEND,
                request_id=identifier,
                slots=oob.pack_transmit(info),
                frames=[bytearray(frame)],
            )
            for identifier, (frame, info) in enumerate(frames, 1)
        ]
        nested = messages[3 * len(SAS)]
        messages += [
            replace(messages[0], request_id=99, frames=[bytearray(frames[0][0]) for _ in range(3)]),
            replace(nested, slots=nested.slots._replace(tunnel=0), next_offload_handle=nested.slots.tunnel),
            nbl.NblMessage(nbl.MessageType.SEND_COMPLETE, status=0xC0000001, request_id=7),
            nbl.NblMessage(nbl.MessageType.RECEIVE, frames=[bytearray(60)]),
            nbl.NblMessage(nbl.MessageType.STATUS_INDICATION, status=0x40020006),
        ]
        return [nbl.pack(message) for message in messages]

    def _nested(self) -> tuple[bytes, TransmitInfo]:
        """ESP in transport mode inside an ESP tunnel."""
        inside = framed(NULL, _udp(50), UDP, INNER_V4)
        around = framed(TUNNEL, inside.frame[14:], 4, V4)
        info = inside.info(self.handles[4])
        offset = around.text - around.ip + inside.esp - inside.ip
        return around.frame, info._replace(tunnel_handle=self.handles[1], esp_header_offset=offset)

    def _large(self) -> Iterator[tuple[bytes, TransmitInfo]]:
        """A large packet under ESP, without a trailer, and one in clear."""
        lso = LargeSend(1000, 0, 2, False)
        segment = tcp(bytes(3500), checksum=0xFFFF - checksum(V4[0] + V4[1] + b"\0\6"))
        esp_header = GCM.spi.to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes(GCM.iv_length)
        for protocol, packet, info in (
            (50, esp_header + segment, transmit(self.handles[0], esp_offset=20, next_header=6)),
            (6, segment, self._clear()),
        ):
            frame = bytearray(ethernet(ip(V4, protocol, packet)))
            # LSOv2: total length and checksum are the NIC's to fill in.
            frame[16:18] = frame[24:26] = bytes(2)
            yield bytes(frame), info._replace(large_send=lso)

    def _clear(self, **members: object) -> TransmitInfo:
        return TransmitInfo(NO_HANDLE, NO_HANDLE, 0, 0, 0, 0)._replace(**members)

    def change(self, data: bytearray, rng: random.Random) -> None:
        """Change a member of the header, a handle, or a descriptor."""
        match rng.randrange(6):
            case 0:
                put(data, rng.choice((0, 2, 3, 4)), rng.choice((1, 2, 4)), rng.choice((0, 1, 2, 3, 4, 0xFF)))
            case 1:
                put(data, 0x10, 4, number(len(data), rng))
            case 2:
                put(data, 0x14, 4, number(len(data), rng))
            case 3:
                slot = 0x18 + 8 * rng.randrange(6)
                handle = rng.choice([*self.handles, *self.strange, OffloadHandle(0), OffloadHandle(1 << 63)])
                put(data, slot, 8, handle)
            case 4:
                slot = 0x18 + 4 * rng.randrange(12)
                put(data, slot, rng.choice((1, 4)), number(len(data), rng))
            case _:
                descriptor = 0x48 + 4 * rng.randrange(8)
                put(data, descriptor, 4, number(len(data), rng))

    def one(self, data: bytes) -> str:
        message = nbl.unpack(data)
        if isinstance(message, nbl.BadMessage):
            assert message.status in (NdisStatus.INVALID_LENGTH, NdisStatus.INVALID_PARAMETER)
            assert message.reason
            return f"refused {message.status.name} {message.reason.split(' ', 1)[0].rstrip('0123456789')}"
        assert sum(map(len, message.frames)) <= len(data)
        again = nbl.unpack(nbl.pack(message))
        assert again == message, "what was read is not what was written"
        if message.type is not nbl.MessageType.SEND:
            return message.type.name.lower()
        return self._send(message)

    def _send(self, message: nbl.NblMessage) -> str:
        slots = message.slots
        if message.next_offload_handle and not slots.tunnel:
            slots = slots._replace(tunnel=message.next_offload_handle)
        try:
            info = oob.unpack_transmit(slots)
        except PacketError:
            return "bad slots"
        one = NetBufferList(message.request_id, list(message.frames), info)
        untouched = [bytes(frame) for frame in message.frames]
        wire = self.near.transmit([one])
        assert one.status is not NdisStatus.PENDING
        assert self._table() == self.table
        if one.status is not NdisStatus.SUCCESS:
            assert not wire
            return f"sent {one.status.name}"
        if info is None or not (
            info.offload_handle or info.tunnel_handle or info.large_send or info.checksum
        ):
            assert [bytes(buffer.frame) for buffer in wire] == untouched
            return "sent untouched"
        assert wire
        if not info.offload_handle and not info.tunnel_handle:
            return "sent in clear"
        for buffer in wire:
            received = NetBuffer(bytearray(buffer.frame))
            if info.offload_handle == self.handles[-1]:
                # The port a driver sends to is its own business, and nothing protects it.
                start = ip_offset(received.frame) + info.esp_header_offset - 8
                received.frame[start + 2 : start + 4] = (4500).to_bytes(2, "big")
            self.far.receive([received])
            verdict = received.receive
            assert verdict is not None, f"left without protection: {bytes(buffer.frame).hex()}"
            assert verdict.verified, f"left in a state that no peer accepts: {verdict}"
        return "sent large" if info.large_send else "sent sealed"
