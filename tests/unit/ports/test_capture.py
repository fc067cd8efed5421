"""CapturePort and PcapngWriter; the files are read by scapy and, where it is there, by tshark."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scapy.utils import PcapNgReader

from vnic.errors import PortError, RequestError
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.vnet import GSO_TCPV4, NEEDS_CSUM, VnetHeader
from vnic.ports.base import Port
from vnic.ports.capture import CapturePort, PcapngWriter
from vnic.ports.link import LinkPort, join

NOW_NS = 1_767_225_600_123_456_789


def frame(byte: int, length: int = 60) -> NetBuffer:
    return NetBuffer(bytearray([byte]) * length)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "capture.pcapng"


def blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Walk the blocks of a file, checking both lengths of each."""
    while data:
        kind, total = struct.unpack_from("<II", data)
        assert total % 4 == 0
        assert struct.unpack_from("<I", data, total - 4)[0] == total
        yield kind, data[8 : total - 4]
        data = data[total:]


def packets(path: Path) -> list[tuple[int, int, bytes, int, int]]:
    """(interface, time in ns, bytes, original length, direction) of each packet."""
    found = []
    for kind, body in blocks(path.read_bytes()):
        if kind == 6:
            interface, high, low, captured, original = struct.unpack_from("<IIIII", body)
            options = body[20 + captured + (-captured % 4) :]
            code, length, direction = struct.unpack_from("<HHI", options)
            assert (code, length) == (2, 4)
            found.append((interface, high << 32 | low, body[20 : 20 + captured], original, direction))
    return found


def wait_until(condition: Callable[[], object], timeout_s: float = 3.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_both_directions_of_a_port_are_recorded_with_time_and_direction(path: Path) -> None:
    left, right = LinkPort("left"), LinkPort("right")
    join(left, right)
    times = iter(range(NOW_NS, NOW_NS + 10))
    writer = PcapngWriter(path, clock_ns=lambda: next(times))
    port: Port = CapturePort(left, writer)
    port.send_burst([frame(1, 61), frame(2, 62)])
    right.send_burst([frame(3, 63)])
    assert [len(one.frame) for one in port.receive_burst()] == [63]
    assert port.receive_burst() == []
    writer.close()
    assert packets(path) == [
        (0, NOW_NS, b"\1" * 61, 61, 2),
        (0, NOW_NS, b"\2" * 62, 62, 2),
        (0, NOW_NS + 1, b"\3" * 63, 63, 1),
    ]
    assert (writer.frames_written, writer.frames_lost) == (3, 0)


def test_sent_frame_is_recorded_as_it_was_before_its_next_owner_changes_it(path: Path) -> None:
    left, right = LinkPort("left"), LinkPort("right")
    join(left, right)
    writer = PcapngWriter(path, clock_ns=lambda: NOW_NS)
    CapturePort(left, writer).send_burst([frame(1)])
    right.receive_burst()[0].frame[:] = b"changed"
    writer.close()
    assert packets(path)[0][2] == b"\1" * 60


def test_scapy_reads_frames_times_and_direction(path: Path) -> None:
    writer = PcapngWriter(path, clock_ns=lambda: NOW_NS)
    number = writer.add_interface("tap0")
    writer.record(number, [frame(1, 60), frame(2, 61)], inbound=True)
    writer.record(number, [frame(3, 62)], inbound=False)
    writer.close()
    with PcapNgReader(str(path)) as reader:
        found = list(reader)
    assert [bytes(one) for one in found] == [b"\1" * 60, b"\2" * 61, b"\3" * 62]
    assert [one.direction for one in found] == [1, 1, 2]
    assert all(one.sniffed_on == "tap0" for one in found)
    assert int(found[0].time * 1_000_000_000) == NOW_NS


def test_tshark_reads_frames_interface_and_direction(path: Path) -> None:
    tshark = shutil.which("tshark")
    if tshark is None:
        pytest.skip("needs tshark")
    writer = PcapngWriter(path, clock_ns=lambda: NOW_NS)
    tap, wire = writer.add_interface("tap0"), writer.add_interface("link:right")
    superframe = NetBuffer(bytearray(40_000), VnetHeader(NEEDS_CSUM, GSO_TCPV4, 54, 1448, 34, 16))
    writer.record(tap, [superframe], inbound=True)
    writer.record(wire, [frame(2, 61)], inbound=False)
    writer.close()
    wanted = ("frame.interface_name", "frame.packet_flags_direction", "frame.len", "frame.time_epoch")
    words = [word for name in wanted for word in ("-e", name)]
    done = subprocess.run(
        [tshark, "-r", str(path), "-T", "json", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    rows = [packet["_source"]["layers"] for packet in json.loads(done.stdout)]
    assert [row["frame.interface_name"] for row in rows] == [["tap0"], ["link:right"]]
    assert [int(row["frame.packet_flags_direction"][0], 0) for row in rows] == [1, 2]
    assert [row["frame.len"] for row in rows] == [["40000"], ["61"]]


def test_frame_is_cut_to_the_snap_length_and_its_length_kept(path: Path) -> None:
    writer = PcapngWriter(path, clock_ns=lambda: NOW_NS, snap_length=65)
    number = writer.add_interface("tap0")
    writer.record(number, [frame(1, 65), frame(2, 66), frame(3, 64)], inbound=True)
    writer.close()
    assert [(len(data), original) for _, _, data, original, _ in packets(path)] == [
        (65, 65),
        (65, 66),
        (64, 64),
    ]


def test_running_capture_can_be_read(path: Path) -> None:
    writer = PcapngWriter(path, clock_ns=lambda: NOW_NS)
    try:
        writer.record(writer.add_interface("tap0"), [frame(1)], inbound=True)
        wait_until(lambda: packets(path))
        assert writer.frames_written == 1
    finally:
        writer.close()


def test_file_is_the_owners_alone(path: Path) -> None:
    PcapngWriter(path, clock_ns=lambda: NOW_NS).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_existing_file_and_symbolic_link_are_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(PortError, match=r"EEXIST.*exists already"):
        PcapngWriter(path, clock_ns=lambda: NOW_NS)
    assert path.read_text() == "precious"
    link = path.with_name("link")
    target = path.with_name("target")
    link.symlink_to(target)
    with pytest.raises(PortError):
        PcapngWriter(link, clock_ns=lambda: NOW_NS)
    assert not target.exists()


def test_directory_that_does_not_exist_is_named(path: Path) -> None:
    with pytest.raises(PortError, match=r"nowhere.*ENOENT"):
        PcapngWriter(path.with_name("nowhere") / "x.pcapng", clock_ns=lambda: NOW_NS)


def test_size_limit_ends_the_recording_and_the_rest_is_counted(path: Path) -> None:
    writer = PcapngWriter(path, clock_ns=lambda: NOW_NS, max_bytes=8192)
    number = writer.add_interface("tap0")
    for _ in range(10):
        writer.record(number, [frame(1, 1000)], inbound=True)
    assert writer.state == "off: the size limit of 8192 bytes is reached"
    writer.close()
    assert path.stat().st_size <= 8192
    assert len(packets(path)) == writer.frames_written == 7
    assert writer.frames_lost == 3
    assert "size limit" in writer.state


@pytest.mark.parametrize("options", [{"max_bytes": 100}, {"snap_length": 0}])
def test_limit_that_leaves_no_room_is_refused(path: Path, options: dict[str, int]) -> None:
    with pytest.raises(RequestError) as caught:
        PcapngWriter(path, clock_ns=lambda: NOW_NS, **options)
    assert {caught.value.field: int(caught.value.value)} == options
    assert not path.exists()


def test_disk_that_fails_takes_neither_the_traffic_nor_the_file_down(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = LinkPort("left"), LinkPort("right")
    join(left, right)
    writer = PcapngWriter(path, clock_ns=lambda: NOW_NS)
    port = CapturePort(left, writer)
    port.send_burst([frame(1)])
    wait_until(lambda: writer.frames_written == 1)
    real_write = os.write

    def full_disk(descriptor: int, data: memoryview) -> int:
        if len(data) > 20:
            return real_write(descriptor, data[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full_disk)
    port.send_burst([frame(2), frame(3)])
    wait_until(lambda: writer.state != "on")
    assert writer.state == f"off: cannot write to {path}: No space left on device"
    port.send_burst([frame(4)])
    monkeypatch.undo()
    writer.close()
    assert len(right.receive_burst()) == 4
    assert [data for _, _, data, _, _ in packets(path)] == [b"\1" * 60]
    assert (writer.frames_written, writer.frames_lost) == (1, 3)


def test_disk_that_hangs_costs_a_bounded_queue_and_no_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = PcapngWriter(path, clock_ns=lambda: NOW_NS)
    number = writer.add_interface("tap0")
    wait_until(lambda: path.stat().st_size > 0)
    released = threading.Event()
    real_write = os.write

    def hang(descriptor: int, data: memoryview) -> int:
        released.wait(10)
        return real_write(descriptor, data)

    monkeypatch.setattr(os, "write", hang)
    burst = [frame(1, 60_000)] * 10
    try:
        for _ in range(60):
            writer.record(number, burst, inbound=True)
        assert writer.frames_lost > 0
        assert writer.state == "on"
        began = time.monotonic()
        writer.close()
        assert time.monotonic() - began < 2
    finally:
        released.set()
        writer._thread.join(5)
    assert writer.frames_written + writer.frames_lost == 600


def test_closed_writer_counts_what_comes_late(path: Path) -> None:
    writer = PcapngWriter(path, clock_ns=lambda: NOW_NS)
    number = writer.add_interface("tap0")
    writer.close()
    writer.close()
    writer.record(number, [frame(1)], inbound=True)
    assert (writer.frames_written, writer.frames_lost, writer.state) == (0, 1, "off: closed")


def test_empty_capture_is_a_valid_file(path: Path) -> None:
    writer = PcapngWriter(path, clock_ns=lambda: NOW_NS)
    writer.add_interface("tap0")
    writer.close()
    assert [kind for kind, _ in blocks(path.read_bytes())] == [0x0A0D0D0A, 1]
    with PcapNgReader(str(path)) as reader:
        assert list(reader) == []


def test_capture_port_is_the_port_it_records_in_all_else(path: Path) -> None:
    inner = LinkPort("left", mtu=1400)
    peer = LinkPort("right")
    writer = PcapngWriter(path, clock_ns=lambda: NOW_NS)
    port: Port = CapturePort(inner, writer)
    assert (port.name, port.kind, port.mtu, port.fileno()) == ("left", "none", 1400, None)
    assert port.counters is inner.counters
    assert port.features() == inner.features()
    join(inner, peer)
    assert port.kind == "link"
    port.mtu = 1300
    assert inner.mtu == 1300
    woken: list[bool] = []
    port.set_wake(lambda: woken.append(True))
    peer.send_burst([frame(1)])
    assert woken == [True]
    port.close()
    assert inner.kind == "none"
    assert writer.state == "on"
    writer.close()
