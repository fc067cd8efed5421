"""PacketPort over a stand-in socket; the kernel's part is in tests/live."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any, cast

import pytest

from vnic.errors import PortError
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.vnet import GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, PLAIN, VnetHeader
from vnic.ports import packet
from vnic.ports.base import BURST_FRAMES
from vnic.ports.offloads import CHECKSUM, USO
from vnic.ports.packet import PacketPort

VLAN_VALID, TPID_VALID = 0x10, 0x40
FRAME = bytes(range(12)) + b"\x08\x00" + bytes(46)


def auxdata(status: int, tci: int = 0, tpid: int = 0) -> bytes:
    return struct.pack("IIIHHHH", status, 60, 60, 0, 14, tci, tpid)


class StandIn:
    """What PacketPort uses of a packet socket: messages in a queue, and statistics."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self.waiting: deque[tuple[bytes, bytes, int, int] | OSError] = deque()
        self.kernel_drops = 0
        self.name = "eth0"

    def put(
        self,
        frame: bytes = FRAME,
        header: VnetHeader = PLAIN,
        *,
        aux: bytes = b"",
        flags: int = 0,
        kind: int = 0,
    ) -> None:
        self.waiting.append((header.emit() + frame, aux, flags, kind))

    def recvmsg_into(self, into: list[bytearray], space: int) -> tuple[int, list[Any], int, tuple[Any, ...]]:
        if not self.waiting:
            raise BlockingIOError(errno.EAGAIN, "nothing")
        item = self.waiting.popleft()
        if isinstance(item, OSError):
            raise item
        data, aux, flags, kind = item
        into[0][:] = data[:10]
        into[1][: len(data) - 10] = data[10:]
        return len(data), [(263, 8, aux)] if aux else [], flags, ("eth0", 0x0800, kind, 1, bytes(6))

    def getsockopt(self, level: int, option: int, length: int) -> bytes:
        drops, self.kernel_drops = self.kernel_drops, 0
        return struct.pack("II", 0, drops)

    def getsockname(self) -> tuple[str, int, int, int, bytes]:
        return (self.name, 3, 0, 1, bytes(6))

    def fileno(self) -> int:
        return self.near.fileno()

    def close(self) -> None:
        self.near.close()


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    made = StandIn()
    yield made
    made.near.close()
    made.far.close()


@pytest.fixture
def port(stand_in: StandIn) -> Iterator[PacketPort]:
    made = PacketPort(cast(socket.socket, stand_in), "eth0", mtu=1500)
    yield made
    made.close()


def test_plain_frame_is_received_without_header(stand_in: StandIn, port: PacketPort) -> None:
    stand_in.put()
    (buffer,) = port.receive_burst()
    assert (type(buffer.frame), bytes(buffer.frame), buffer.vnet) == (bytearray, FRAME, None)


def test_unfinished_frame_keeps_its_header(stand_in: StandIn, port: PacketPort) -> None:
    header = VnetHeader(NEEDS_CSUM, GSO_TCPV6, 74, 1428, 54, 16)
    stand_in.put(FRAME, header)
    assert port.receive_burst()[0].vnet == header


def test_burst_ends_at_its_bound(stand_in: StandIn, port: PacketPort) -> None:
    for _ in range(BURST_FRAMES + 1):
        stand_in.put()
    assert [len(port.receive_burst()) for _ in range(2)] == [BURST_FRAMES, 1]


def test_outgoing_frame_is_passed_over(stand_in: StandIn, port: PacketPort) -> None:
    stand_in.put(kind=socket.PACKET_OUTGOING)
    stand_in.put(kind=socket.PACKET_OTHERHOST)
    assert len(port.receive_burst()) == 1
    assert port.counters.rx_frames == 1
    assert port.counters.drops == {}


def test_cut_frame_is_counted_not_passed_on(stand_in: StandIn, port: PacketPort) -> None:
    stand_in.put(flags=socket.MSG_TRUNC)
    assert port.receive_burst() == []
    assert port.counters.drops == {"wire_receive": 1}


def test_what_the_kernel_dropped_is_counted_once(stand_in: StandIn, port: PacketPort) -> None:
    stand_in.kernel_drops = 5
    port.receive_burst()
    port.receive_burst()
    assert port.counters.drops == {"wire_receive": 5}


def test_aggregate_the_header_cannot_express_is_counted_and_the_burst_goes_on(
    stand_in: StandIn, port: PacketPort
) -> None:
    stand_in.waiting.append(OSError(errno.EINVAL, "no such gso type"))
    stand_in.put()
    assert len(port.receive_burst()) == 1
    assert port.counters.drops == {"wire_receive": 1}


def test_device_that_is_down_is_no_error(stand_in: StandIn, port: PacketPort) -> None:
    stand_in.waiting.append(OSError(errno.ENETDOWN, "down"))
    assert port.receive_burst() == []
    assert port.counters.drops == {}


def test_device_without_a_name_is_gone(stand_in: StandIn, port: PacketPort) -> None:
    stand_in.name = ""
    stand_in.waiting.append(OSError(errno.ENETDOWN, "down"))
    with pytest.raises(PortError, match="eth0 any longer"):
        port.receive_burst()


@pytest.mark.parametrize("header", [PLAIN, VnetHeader(NEEDS_CSUM, GSO_TCPV4, 54, 1448, 34, 16)])
def test_sent_frame_is_preceded_by_its_header(
    stand_in: StandIn, port: PacketPort, header: VnetHeader
) -> None:
    port.send_burst([NetBuffer(bytearray(FRAME), None if header is PLAIN else header)])
    assert stand_in.far.recv(200) == header.emit() + FRAME
    assert (port.counters.tx_frames, port.counters.tx_bytes) == (1, len(FRAME))


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOBUFS, errno.EINVAL, errno.EMSGSIZE, errno.ENETDOWN])
def test_write_error_of_one_frame_is_a_counted_drop(
    port: PacketPort, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "writev", refuse)
    port.send_burst([NetBuffer(bytearray(FRAME))] * 2)
    assert port.counters.drops == {"wire_write": 2}


def test_missing_device_is_an_error_of_send(port: PacketPort, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> int:
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))

    monkeypatch.setattr(os, "writev", gone)
    with pytest.raises(PortError, match="removed or moved"):
        port.send_burst([NetBuffer(bytearray(FRAME))])


def test_stripped_vlan_tag_is_put_back_behind_the_macs(stand_in: StandIn, port: PacketPort) -> None:
    stand_in.put(aux=auxdata(VLAN_VALID | TPID_VALID, 0x2005, 0x88A8))
    stand_in.put(aux=auxdata(VLAN_VALID, 0x0007))
    stand_in.put(aux=auxdata(0, 0x0007, 0x8100))
    frames = [buffer.frame.hex() for buffer in port.receive_burst()]
    macs, rest = FRAME[:12].hex(), FRAME[12:].hex()
    assert frames == [f"{macs}88a82005{rest}", f"{macs}81000007{rest}", f"{macs}{rest}"]


def test_vlan_tag_shifts_only_the_offsets_that_mean_something() -> None:
    frame = bytearray(FRAME)
    aux = auxdata(VLAN_VALID, 5)
    assert packet._restore_vlan_tag(frame, VnetHeader(NEEDS_CSUM, GSO_TCPV4, 54, 1448, 34, 16), aux) == (
        NEEDS_CSUM,
        GSO_TCPV4,
        58,
        1448,
        38,
        16,
    )
    assert packet._restore_vlan_tag(frame, VnetHeader(2, 0, 0, 0, 0, 0), aux) == (2, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("release", "number"),
    [("6.1.0-13-amd64", (6, 1)), ("6.18.44-fc", (6, 18)), ("6.2+", (6, 2)), ("7.0rc1", (7, 0)), ("odd", ())],
)
def test_kernel_release_is_read(release: str, number: tuple[int, ...]) -> None:
    assert packet._release_number(release) == number


def test_old_kernel_has_no_udp_segmentation(port: PacketPort, monkeypatch: pytest.MonkeyPatch) -> None:
    old = os.uname_result(("Linux", "host", "6.1.0-13-amd64", "#1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: old)
    states = port.features()
    assert states[USO.name].startswith("off: Linux 6.1.0-13-amd64")
    assert states[CHECKSUM.name] == "on"


def test_port_is_readable_when_its_socket_is(stand_in: StandIn, port: PacketPort) -> None:
    descriptor = port.fileno()
    assert descriptor is not None
    assert select.select([descriptor], [], [], 0)[0] == []
    stand_in.far.send(b"x")
    assert select.select([descriptor], [], [], 1)[0] == [descriptor]
