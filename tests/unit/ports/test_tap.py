"""TapPort over a socket pair, which keeps frames apart as a TAP does; the kernel's part is in tests/live."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether

from vnic.errors import PortError, RequestError
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.vnet import GSO_TCPV4, NEEDS_CSUM, PLAIN, VnetHeader
from vnic.ports import tap
from vnic.ports.base import BURST_FRAMES, Port
from vnic.ports.offloads import CHECKSUM, OFFLOADS, TSO4, TSO6, TSO_ECN, USO
from vnic.ports.tap import TapPort, flow_number

TCP_SUPERFRAME = VnetHeader(NEEDS_CSUM, GSO_TCPV4, 54, 1448, 34, 16)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, TapPort]]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    port = TapPort([right.detach()], "tap0", mtu=1500, features={"tx-checksumming": "on"})
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


@pytest.fixture
def queues() -> Iterator[tuple[list[socket.socket], TapPort]]:
    """The kernel's ends of four queues, and the port."""
    pairs = [
        socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) for _ in range(4)
    ]
    port = TapPort([right.detach() for _, right in pairs], "tap0", mtu=1500, features={})
    yield [left for left, _ in pairs], port
    port.close()
    for left, _ in pairs:
        left.close()


def waiting(end: socket.socket) -> list[bytes]:
    """All frames that were written to a queue."""
    found = []
    while True:
        try:
            found.append(end.recv(70_000)[len(PLAIN.emit()) :])
        except BlockingIOError:
            return found


ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")


def udp(source: str, port: int, number: int = 0) -> bytes:
    packet = IP(src=source, dst="10.0.0.9") if "." in source else IPv6(src=source, dst="2001:db8::9")
    return bytes(ETHER / packet / UDP(sport=port, dport=9) / number.to_bytes(20, "big"))


@pytest.mark.parametrize("source", ["10.0.0.1", "2001:db8::1"])
def test_frames_of_one_flow_leave_by_one_queue_in_order_and_flows_use_all(
    queues: tuple[list[socket.socket], TapPort], source: str
) -> None:
    ends, port = queues
    sent = [udp(source, 5000 + number % 40, number) for number in range(400)]
    port.send_burst([NetBuffer(bytearray(frame)) for frame in sent])
    by_queue = [waiting(end) for end in ends]
    assert all(len(frames) >= 80 for frames in by_queue)
    for flow in range(40):
        holders = [frames for frames in by_queue if sent[flow] in frames]
        assert len(holders) == 1
        assert [one for one in holders[0] if one in sent[flow::40]] == sent[flow::40]
    assert port.counters.tx_frames == 400


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(bytes(ETHER / ARP()), id="ARP"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\0" * 12 + b"\x08\x00\x45", id="cut short"),
    ],
)
def test_frame_without_a_flow_leaves_by_the_first_queue(frame: bytes) -> None:
    assert flow_number(frame) == 0


def test_empty_acknowledgement_belongs_to_the_flow_of_its_data() -> None:
    front = ETHER / IP(src="10.0.0.1", dst="10.0.0.9") / TCP(sport=5001, dport=80, flags="A")
    assert len(bytes(front)) == 54
    assert flow_number(bytes(front)) == flow_number(bytes(front / bytes(1000))) != 0


def test_fragments_of_one_packet_show_the_same_flow_whatever_their_ports() -> None:
    packet = ETHER / IP(src="10.0.0.1", dst="10.0.0.9", id=7) / UDP(sport=1, dport=2) / bytes(3000)
    pieces = [bytes(piece) for piece in packet.fragment(1000)]
    assert len(pieces) > 2
    assert len({flow_number(piece) for piece in pieces}) == 1


def test_every_queue_is_read_and_none_first_for_ever(queues: tuple[list[socket.socket], TapPort]) -> None:
    ends, port = queues
    descriptor = port.fileno()
    assert descriptor is not None
    assert select.select([descriptor], [], [], 0)[0] == []
    for number, end in enumerate(ends):
        for _ in range(20):
            end.send(PLAIN.emit() + bytes([number]) * 60)
    assert select.select([descriptor], [], [], 0)[0] == [descriptor]
    bursts = [[one.frame[0] for one in port.receive_burst()] for _ in range(3)]
    assert [len(burst) for burst in bursts] == [BURST_FRAMES, 80 - BURST_FRAMES, 0]
    assert sorted(bursts[0] + bursts[1]) == sorted([0, 1, 2, 3] * 20)
    assert (bursts[0][0], bursts[1][0]) == (0, 3)
    assert port.queues == 4


def test_closed_port_has_no_queue_left(queues: tuple[list[socket.socket], TapPort]) -> None:
    _, port = queues
    port.close()
    port.close()
    assert (port.queues, port.fileno()) == (0, None)
    with pytest.raises(PortError, match="is closed"):
        port.receive_burst()
    with pytest.raises(PortError, match="is closed"):
        port.send_burst([NetBuffer(bytearray(60))])


@pytest.mark.parametrize("count", [0, 17, -1])
def test_number_of_queues_has_bounds(count: int) -> None:
    with pytest.raises(RequestError) as caught:
        tap.check_queues(count)
    assert (caught.value.field, caught.value.allowed) == ("queues", "1 to 16")


class Native:
    """The native engine's view of a port."""

    def __init__(self) -> None:
        self.counts = [(3, 300, 2, 200, 1, 5)]
        self.closed = False

    def take_counts(self) -> tuple[int, int, int, int, int, int]:
        return self.counts.pop() if self.counts else (0, 0, 0, 0, 0, 0)

    def close(self) -> None:
        self.closed = True


def test_frames_that_the_native_engine_moved_are_counted_with_the_others(
    host: socket.socket, port: TapPort
) -> None:
    native = Native()
    port.native = native
    host.send(PLAIN.emit() + bytes(60))
    port.receive_burst()
    for _ in range(2):
        counters = port.counters
        assert (counters.rx_frames, counters.rx_bytes) == (4, 360)
        assert (counters.tx_frames, counters.tx_bytes) == (2, 200)
        assert counters.drops == {"tap_receive": 1, "tap_write": 5}
    native.counts = [(1, 1, 0, 0, 0, 0)]
    port.close()
    assert native.closed
    assert port.counters.rx_frames == 5
