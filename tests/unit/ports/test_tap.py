"""TapPort over a socket pair, which keeps frames apart as a TAP does; the kernel's part is in tests/live."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator

import pytest

from vnic.errors import PortError
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.vnet import GSO_TCPV4, NEEDS_CSUM, PLAIN, VnetHeader
from vnic.ports import tap
from vnic.ports.base import BURST_FRAMES, Port
from vnic.ports.offloads import CHECKSUM, OFFLOADS, TSO4, TSO6, TSO_ECN, USO
from vnic.ports.tap import TapPort

TCP_SUPERFRAME = VnetHeader(NEEDS_CSUM, GSO_TCPV4, 54, 1448, 34, 16)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, TapPort]]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    port = TapPort(right.detach(), "tap0", mtu=1500, features={"tx-checksumming": "on"})
    with left:
        yield left, port
    port.close()


@pytest.fixture
def host(ends: tuple[socket.socket, TapPort]) -> socket.socket:
    """The kernel's end."""
    return ends[0]


@pytest.fixture
def port(ends: tuple[socket.socket, TapPort]) -> Port:
    return ends[1]


def test_plain_frame_is_received_without_header_and_exactly(host: socket.socket, port: Port) -> None:
    host.send(PLAIN.emit() + b"frame one")
    host.send(PLAIN.emit() + b"two")
    burst = port.receive_burst()
    assert [(type(one.frame), bytes(one.frame), one.vnet) for one in burst] == [
        (bytearray, b"frame one", None),
        (bytearray, b"two", None),
    ]
    assert (port.counters.rx_frames, port.counters.rx_bytes) == (2, 12)


def test_frames_of_a_burst_do_not_share_their_bytes(host: socket.socket, port: Port) -> None:
    for byte in (b"a", b"b"):
        host.send(PLAIN.emit() + byte * 20)
    first, second = port.receive_burst()
    first.frame[:] = b"x" * 20
    assert second.frame == b"b" * 20


def test_header_that_asks_for_work_is_parsed(host: socket.socket, port: Port) -> None:
    host.send(TCP_SUPERFRAME.emit() + bytes(30_000))
    (buffer,) = port.receive_burst()
    assert buffer.vnet == TCP_SUPERFRAME
    assert len(buffer.frame) == 30_000


def test_burst_ends_once_it_has_bytes_enough(
    host: socket.socket, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tap, "BURST_BYTES", 4000)
    for _ in range(5):
        host.send(PLAIN.emit() + bytes(1001))
    assert [len(port.receive_burst()) for _ in range(3)] == [4, 1, 0]


def test_header_without_flags_and_gso_is_plain_whatever_its_offsets_say(
    host: socket.socket, port: Port
) -> None:
    host.send(VnetHeader(0, 0, 42, 0, 34, 16).emit() + bytes(60))
    assert port.receive_burst()[0].vnet is None


def test_burst_ends_at_its_bound(host: socket.socket, port: Port) -> None:
    for _ in range(BURST_FRAMES + 1):
        host.send(PLAIN.emit() + bytes(60))
    assert [len(port.receive_burst()) for _ in range(3)] == [BURST_FRAMES, 1, 0]


def test_frame_that_fills_the_buffer_is_counted_not_passed_on_cut(host: socket.socket, port: Port) -> None:
    host.send(PLAIN.emit() + bytes(tap._BUFFER_LENGTH))
    host.send(PLAIN.emit() + bytes(60))
    assert [len(one.frame) for one in port.receive_burst()] == [60]
    assert port.counters.drops == {"tap_receive": 1}


def test_sent_frame_is_preceded_by_its_header(host: socket.socket, port: Port) -> None:
    port.send_burst([NetBuffer(bytearray(b"plain")), NetBuffer(bytearray(b"super"), TCP_SUPERFRAME)])
    assert host.recv(100) == PLAIN.emit() + b"plain"
    assert host.recv(100) == TCP_SUPERFRAME.emit() + b"super"
    assert (port.counters.tx_frames, port.counters.tx_bytes) == (2, 10)


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOBUFS, errno.EIO, errno.EINVAL, errno.ENOMEM])
def test_write_error_of_one_frame_is_a_counted_drop(
    port: Port, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(descriptor: int, parts: tuple[bytes, bytearray]) -> int:
        if parts[1] == b"bad":
            raise OSError(code, os.strerror(code))
        return 10

    monkeypatch.setattr(os, "writev", refuse)
    port.send_burst([NetBuffer(bytearray(word)) for word in (b"bad", b"good", b"bad", b"good")])
    assert port.counters.drops == {"tap_write": 2}
    assert port.counters.tx_frames == 2


@pytest.mark.parametrize("code", [errno.EBADFD, errno.ENODEV])
def test_missing_device_is_an_error_in_both_directions(
    port: Port, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def gone(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "writev", gone)
    monkeypatch.setattr(os, "readv", gone)
    with pytest.raises(PortError, match=r"tap0 any longer.*delete the adapter"):
        port.send_burst([NetBuffer(bytearray(60))])
    with pytest.raises(PortError, match="tap0 any longer"):
        port.receive_burst()


def test_frame_the_kernel_cannot_hand_over_is_counted(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "readv", refuse)
    assert port.receive_burst() == []
    assert port.counters.drops == {"tap_receive": 1}


def test_closed_port_says_so(port: Port) -> None:
    port.close()
    port.close()
    assert port.fileno() is None
    with pytest.raises(PortError, match="TAP tap0 is closed"):
        port.receive_burst()
    with pytest.raises(PortError, match="TAP tap0 is closed"):
        port.send_burst([NetBuffer(bytearray(60))])


def test_features_are_a_copy(port: Port) -> None:
    port.features().clear()
    assert port.features() == {"tx-checksumming": "on"}


class Kernel:
    """TUNSETOFFLOAD of a kernel that grants some bits only."""

    def __init__(self, granted: int) -> None:
        self.granted = granted
        self.state = 0

    def ioctl(self, descriptor: int, request: int, bits: int) -> int:
        if bits & ~self.granted:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.state = bits
        return 0


def probe(monkeypatch: pytest.MonkeyPatch, kernel: Kernel, *unwanted: str) -> dict[str, str]:
    monkeypatch.setattr(fcntl, "ioctl", kernel.ioctl)
    return tap._probe(-1, frozenset(unwanted))


def test_kernel_that_grants_everything_has_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(0xFF)
    assert set(probe(monkeypatch, kernel).values()) == {"on"}
    assert kernel.state == sum(offload.tun_bits for offload in OFFLOADS)


def test_refused_offload_is_off_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(CHECKSUM.tun_bits | TSO4.tun_bits | TSO_ECN.tun_bits)
    states = probe(monkeypatch, kernel)
    refused = "off: the kernel refused it (EINVAL)"
    assert states == {
        CHECKSUM.name: "on",
        TSO4.name: "on",
        TSO6.name: refused,
        TSO_ECN.name: "on",
        USO.name: refused,
    }
    assert kernel.state == kernel.granted


def test_offloads_that_need_one_that_is_off_are_off_too(monkeypatch: pytest.MonkeyPatch) -> None:
    states = probe(monkeypatch, Kernel(0xFF), TSO4.name, TSO6.name)
    assert states[TSO_ECN.name] == "off: needs tx-tcp-segmentation or tx-tcp6-segmentation"
    assert states[USO.name] == "on"


def test_nothing_wanted_takes_back_what_the_last_user_had(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(0xFF)
    kernel.state = 0x0F
    probe(monkeypatch, kernel, CHECKSUM.name)
    assert kernel.state == 0


def test_interface_request_has_the_size_the_kernel_copies() -> None:
    assert tap._IFREQ.size == 40
