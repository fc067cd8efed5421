"""Invariant: whatever a protocol driver writes to an NBL socket, it is taken apart without harm, every
list is completed, and no frame that names an SA leaves unless a peer with the same SA can verify it.

An input is one message. The NIC is driven as the socket drives it: `nbl.unpack`, the slots, `transmit`.
"""

from __future__ import annotations

import random

from exploring import number, put
from nic_frames import GCM, INNER_V4, UDP, V4, V6, Sa, ah, esp, framed, ip, seeded

from vnic.errors import PacketError
from vnic.ipsec.association import Mode
from vnic.miniport.adapter import MiniportAdapter
from vnic.ndis import nbl, oob
from vnic.ndis.netbuffer import LargeSend, NetBuffer, NetBufferList, OffloadHandle, TransmitInfo
from vnic.ndis.oid import AddSa
from vnic.ndis.status import NdisStatus

TUNNEL = esp("aes-cbc-128", "hmac-sha256-128", spi=0x3000)
BUNDLE = (esp("3des-cbc", "hmac-md5-96", spi=0x1100), ah("hmac-sha1-96", spi=0x2200))
SIX = esp("aes-gcm-256", spi=0x6000)
NULL = esp("null", "hmac-sha1-96", spi=0x7000)
FIRST = {"near": 1, "far": (1 << 32) + 1}

SAS: tuple[tuple[Sa | tuple[Sa, ...], tuple[bytes, bytes], Mode], ...] = (
    (GCM, V4, Mode.TRANSPORT),
    (TUNNEL, V4, Mode.TUNNEL),
    (BUNDLE, V4, Mode.TRANSPORT),
    (SIX, V6, Mode.TRANSPORT),
    (NULL, INNER_V4, Mode.TRANSPORT),
)


def _request(sas: Sa | tuple[Sa, ...], addresses: tuple[bytes, bytes], mode: Mode, *, peer: bool) -> AddSa:
    members = sas if isinstance(sas, tuple) else (sas,)
    if peer:
        # A peer for any address: what routers or a driver do to the addresses is not the question here.
        addresses = (bytes(len(addresses[0])), bytes(len(addresses[1])))
    return AddSa(peer, *addresses, tuple(one.element() for one in members), portion=mode)


def _udp(length: int) -> bytes:
    return bytes.fromhex("13881770") + (8 + length).to_bytes(2, "big") + b"\0\0" + bytes(range(length))


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
        frames = []
        for (sas, addresses, _), handle in zip(SAS, self.handles, strict=True):
            for length in (0, 30, 200):
                one = framed(sas, _udp(length), UDP, addresses)
                pad = one.frame[-1] if sas is GCM else 0
                frames.append((one.frame, one.info(handle)._replace(pad_length=pad)))
        inside = framed(NULL, _udp(50), UDP, INNER_V4)
        around = framed(TUNNEL, inside.frame[14:], 4, V4)
        frames.append(
            (
                around.frame,
                TransmitInfo(self.handles[4], self.handles[1], UDP, 0, 0, around.text + 20 - around.ip),
            )
        )
        tcp = bytes.fromhex("0050c350 00000001 00000002 5018 ffff 0000 0000".replace(" ", ""))
        large = framed(GCM, tcp + bytes(4000), 6, V4)
        cut = len(large.frame) - GCM.icv_length - 2 - (-(len(tcp) + 4000 + 2) % 4)
        lso = LargeSend(1000, large.text - 0, 2, False)
        info = large.info(self.handles[0])._replace(large_send=lso, next_header=6)
        frames.append((large.frame[:cut], info))
        messages = [
            nbl.NblMessage(
                nbl.MessageType.SEND,
                request_id=identifier,
                slots=oob.pack_transmit(info),
                frames=[bytearray(frame)],
            )
            for identifier, (frame, info) in enumerate(frames, 1)
        ]
        messages += [
            nbl.NblMessage(
                nbl.MessageType.SEND,
                request_id=99,
                slots=messages[0].slots,
                frames=[bytearray(frames[0][0]) for _ in range(3)],
            ),
            nbl.NblMessage(nbl.MessageType.SEND, request_id=5, frames=[bytearray(14) + ip(V4, UDP, _udp(9))]),
            nbl.NblMessage(nbl.MessageType.SEND_COMPLETE, status=0xC0000001, request_id=7),
            nbl.NblMessage(nbl.MessageType.RECEIVE, frames=[bytearray(60)]),
            nbl.NblMessage(nbl.MessageType.STATUS_INDICATION, status=0x40020006),
        ]
        return [nbl.pack(message) for message in messages]

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
        try:
            info = oob.unpack_transmit(message.slots)
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
        if info is None or not (info.offload_handle or info.large_send or info.checksum):
            assert [bytes(buffer.frame) for buffer in wire] == untouched
            return "sent untouched"
        assert wire
        if not info.offload_handle:
            return "sent in clear"
        for buffer in wire:
            received = NetBuffer(bytearray(buffer.frame))
            self.far.receive([received])
            verdict = received.receive
            assert verdict is not None, f"left without protection: {bytes(buffer.frame).hex()}"
            assert verdict.verified, f"left in a state that no peer accepts: {verdict}"
        return "sent large" if info.large_send else "sent sealed"
