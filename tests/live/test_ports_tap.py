"""TapPort against the kernel."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import uvloop
from namespaces import Namespace, Namespaces
from relay import Relay, receive_until, transfer

from vnic.errors import PortError, RequestError
from vnic.ndis.netbuffer import NetBuffer
from vnic.netlink import links
from vnic.packet.vnet import GSO_TCPV4, GSO_UDP_L4, NEEDS_CSUM, VnetHeader
from vnic.ports.base import BURST_FRAMES
from vnic.ports.offloads import CHECKSUM, OFFLOADS, TSO4, TSO6, USO
from vnic.ports.tap import TapPort, open_tap

pytestmark = pytest.mark.live

NEIGHBOUR_MAC = "02:00:00:00:00:99"
UDP_SEGMENT = 103


def open_quiet(
    namespaces: Namespaces, label: str, address: str, **options: object
) -> tuple[Namespace, TapPort]:
    """A namespace where nobody speaks, with a TAP and a neighbour behind it at .99."""
    namespace = namespaces.create(label, ipv6=False)
    port = asyncio.run(
        open_tap(namespaces.device(label), netns=namespace.name, addresses=[address], **options)  # type: ignore[arg-type]
    )
    neighbour = address.split("/")[0].rsplit(".", 1)[0] + ".99"
    namespace.ip("neigh", "add", neighbour, "lladdr", NEIGHBOUR_MAC, "dev", port.name)
    return namespace, port


def test_device_has_the_mac_mtu_and_addresses_asked_for(namespaces: Namespaces) -> None:
    left = namespaces.create("left")
    name = namespaces.device("t")
    port = asyncio.run(
        open_tap(
            name,
            netns=left.name,
            mac="02:00:00:00:00:01",
            mtu=1438,
            addresses=["10.1.0.1/24", "fd00:1::1/64"],
        )
    )
    try:
        link = asyncio.run(links.require(name, left.name))
        assert (link.mac, link.mtu, link.up, link.tap) == ("02:00:00:00:00:01", 1438, True, True)
        assert (port.name, port.kind, port.mtu, port.attached) == (name, "tap", 1438, False)
        found = {str(one) for one in asyncio.run(links.addresses(name, left.name))}
        assert {"10.1.0.1/24", "fd00:1::1/64"} <= found
        assert "tentative" not in left.ip("-6", "address", "show", "dev", name, "scope", "global").stdout
    finally:
        port.close()


def test_waiting_datagrams_come_in_one_burst_each_a_frame_of_its_own(namespaces: Namespaces) -> None:
    namespace, port = open_quiet(namespaces, "t", "10.1.0.1/24")
    try:
        with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for number in range(20):
                sender.sendto(bytes([number]) * (100 + number), ("10.1.0.99", 9))
        time.sleep(0.05)
        burst = port.receive_burst()
        assert [len(buffer.frame) for buffer in burst] == [142 + number for number in range(20)]
        assert [buffer.frame[-1] for buffer in burst] == list(range(20))
        assert all(type(buffer.frame) is bytearray for buffer in burst)
        assert burst[0].frame[:6].hex(":") == NEIGHBOUR_MAC
        assert port.receive_burst() == []
        assert port.counters.rx_frames == 20
        assert port.counters.rx_bytes == sum(len(buffer.frame) for buffer in burst)
    finally:
        port.close()


def test_burst_is_bounded_and_the_rest_stays_readable(namespaces: Namespaces) -> None:
    namespace, port = open_quiet(namespaces, "t", "10.1.0.1/24")
    try:
        with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(BURST_FRAMES + 6):
                sender.sendto(b"x", ("10.1.0.99", 9))
        time.sleep(0.05)
        assert [len(port.receive_burst()) for _ in range(3)] == [BURST_FRAMES, 6, 0]
    finally:
        port.close()


def test_open_checksum_of_the_host_is_visible_in_the_vnet_header(namespaces: Namespaces) -> None:
    namespace, port = open_quiet(namespaces, "t", "10.1.0.1/24")
    try:
        with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"payload", ("10.1.0.99", 9))
        (buffer,) = receive_until(port, 1)
        assert buffer.vnet is not None
        assert buffer.vnet.flags & NEEDS_CSUM
        assert (buffer.vnet.csum_start, buffer.vnet.csum_offset) == (34, 6)
    finally:
        port.close()


def test_without_offloads_frames_come_complete_and_without_header(namespaces: Namespaces) -> None:
    namespace, port = open_quiet(namespaces, "t", "10.1.0.1/24", features_off=[CHECKSUM.name])
    try:
        with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"payload", ("10.1.0.99", 9))
        (buffer,) = receive_until(port, 1)
        assert buffer.vnet is None
        assert port.features()[CHECKSUM.name] == "off: switched off by configuration"
        assert port.features()[USO.name] == "off: needs tx-checksumming"
    finally:
        port.close()


def test_tcp_between_two_taps_travels_in_gso_frames_both_read_and_written(namespaces: Namespaces) -> None:
    left, left_port = open_quiet(namespaces, "l", "10.1.0.1/24")
    right, right_port = open_quiet(namespaces, "r", "10.1.0.2/24")
    payload = os.urandom(4 << 20)
    try:
        with (
            Relay(left_port, right_port) as relay,
            left.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
            right.socket(socket.AF_INET, socket.SOCK_STREAM) as server,
        ):
            assert transfer(client, server, ("10.1.0.2", 5001), payload) == payload
        assert relay.failures == []
        large = [buffer for buffer in relay.seen if buffer.vnet and buffer.vnet.gso_type == GSO_TCPV4]
        assert large
        assert max(len(buffer.frame) for buffer in large) > 20_000
        assert all(buffer.vnet and buffer.vnet.gso_size == 1448 for buffer in large)
        assert right_port.counters.drops == {}
    finally:
        left_port.close()
        right_port.close()


def test_udp_superframe_of_the_host_arrives_whole(namespaces: Namespaces) -> None:
    namespace, port = open_quiet(namespaces, "t", "10.1.0.1/24")
    try:
        if port.features()[USO.name] != "on":
            pytest.skip("kernel lacks UDP segmentation offload for TAP")
        with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
            sender.sendto(bytes(10_000), ("10.1.0.99", 9))
        (buffer,) = receive_until(port, 1)
        assert buffer.vnet is not None
        assert (buffer.vnet.gso_type, buffer.vnet.gso_size, len(buffer.frame)) == (GSO_UDP_L4, 1000, 10_042)
    finally:
        port.close()


def test_each_offload_has_a_state_and_this_kernel_grants_tcp_segmentation(namespaces: Namespaces) -> None:
    _, port = open_quiet(namespaces, "t", "10.1.0.1/24")
    try:
        states = port.features()
        assert set(states) == {offload.name for offload in OFFLOADS}
        assert all(state == "on" or state.startswith("off: ") for state in states.values())
        assert states[CHECKSUM.name] == states[TSO4.name] == states[TSO6.name] == "on"
    finally:
        port.close()


def test_one_offload_switched_off_leaves_the_others(namespaces: Namespaces) -> None:
    _, port = open_quiet(namespaces, "t", "10.1.0.1/24", features_off=[TSO4.name])
    try:
        states = port.features()
        assert states[TSO4.name] == "off: switched off by configuration"
        assert states[CHECKSUM.name] == states[TSO6.name] == "on"
    finally:
        port.close()


def test_written_frame_reaches_the_host(namespaces: Namespaces) -> None:
    namespace, port = open_quiet(namespaces, "t", "10.1.0.1/24", mac="02:00:00:00:00:01")
    try:
        with namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(0x88B5)) as receiver:
            receiver.settimeout(3)
            frame = bytearray.fromhex("020000000001 020000000099 88b5") + b"hello" * 20
            port.send_burst([NetBuffer(frame)])
            assert receiver.recv(2048) == frame
        assert (port.counters.tx_frames, port.counters.tx_bytes) == (1, len(frame))
    finally:
        port.close()


def test_what_the_host_refuses_is_counted_and_the_port_goes_on(namespaces: Namespaces) -> None:
    namespace, port = open_quiet(namespaces, "t", "10.1.0.1/24")
    good = bytearray(6) + bytes(6) + b"\x88\xb5" + bytes(50)
    try:
        unknown_gso = VnetHeader(NEEDS_CSUM, 0x7F, 54, 1448, 34, 16)
        port.send_burst(
            [NetBuffer(bytearray(b"short")), NetBuffer(bytearray(good), unknown_gso), NetBuffer(good)]
        )
        assert port.counters.drops == {"tap_write": 2}
        assert port.counters.tx_frames == 1
        namespace.ip("link", "set", port.name, "down")
        port.send_burst([NetBuffer(good)])
        assert port.counters.drops == {"tap_write": 3}
        namespace.ip("link", "set", port.name, "up")
        port.send_burst([NetBuffer(good)])
        assert port.counters.tx_frames == 2
    finally:
        port.close()


def test_device_made_here_goes_with_the_port(namespaces: Namespaces) -> None:
    namespace, port = open_quiet(namespaces, "t", "10.1.0.1/24")
    assert port.name in namespace.devices()
    port.close()
    assert port.name not in namespace.devices()
    assert port.fileno() is None
    port.close()


def test_device_made_here_goes_even_when_the_program_is_killed(namespaces: Namespaces) -> None:
    namespace = namespaces.create("t", ipv6=False)
    name = namespaces.device("t")
    script = (
        "import asyncio, time; from vnic.ports.tap import open_tap\n"
        f"port = asyncio.run(open_tap({name!r}, netns={namespace.name!r}))\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            assert name in namespace.devices()
        finally:
            program.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 3
    while name in namespace.devices() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert name not in namespace.devices()


def test_persistent_tap_is_attached_to_and_left_in_place(namespaces: Namespaces) -> None:
    namespace = namespaces.create("t", ipv6=False)
    name = namespaces.device("t")
    namespace.ip("tuntap", "add", name, "mode", "tap")
    port = asyncio.run(open_tap(name, netns=namespace.name, addresses=["10.1.0.1/24"]))
    assert port.attached
    assert port.features()[TSO4.name] == "on"
    port.close()
    assert name in namespace.devices()
    again = asyncio.run(open_tap(name, netns=namespace.name, addresses=["10.1.0.1/24"]))
    again.close()
    assert name in namespace.devices()


def test_persistent_tap_is_handed_back_without_offloads(namespaces: Namespaces) -> None:
    namespace = namespaces.create("t", ipv6=False)
    name = namespaces.device("t")
    namespace.ip("tuntap", "add", name, "mode", "tap")
    asyncio.run(open_tap(name, netns=namespace.name, addresses=["10.1.0.1/24"])).close()
    namespace.ip("neigh", "add", "10.1.0.99", "lladdr", NEIGHBOUR_MAC, "dev", name)
    plain = asyncio.run(open_tap(name, netns=namespace.name, features_off=[CHECKSUM.name]))
    try:
        with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"payload", ("10.1.0.99", 9))
        (buffer,) = receive_until(plain, 1)
        assert buffer.vnet is None
    finally:
        plain.close()


def test_name_of_another_kind_of_device_is_refused(namespaces: Namespaces) -> None:
    left = namespaces.create("l", ipv6=False)
    right = namespaces.create("r", ipv6=False)
    name, _ = namespaces.veth(left, right)
    with pytest.raises(PortError, match=f"{name} in namespace {left.name} exists and is no TAP"):
        asyncio.run(open_tap(name, netns=left.name))


def test_tap_in_use_by_another_program_is_refused(namespaces: Namespaces) -> None:
    namespace, port = open_quiet(namespaces, "t", "10.1.0.1/24")
    try:
        with pytest.raises(PortError, match=r"EBUSY.*another program"):
            asyncio.run(open_tap(port.name, netns=namespace.name))
        assert port.name in namespace.devices()
    finally:
        port.close()


def test_multi_queue_device_is_refused_with_the_reason(namespaces: Namespaces) -> None:
    namespace = namespaces.create("t", ipv6=False)
    name = namespaces.device("t")
    namespace.ip("tuntap", "add", name, "mode", "tap", "multi_queue")
    with pytest.raises(PortError, match="without multi_queue"):
        asyncio.run(open_tap(name, netns=namespace.name))


@pytest.mark.parametrize(
    "bad",
    [
        {"mtu": 20},
        {"mtu": 1000, "addresses": ["fd00::1/64"]},
        {"mac": "01:00:00:00:00:01"},
        {"addresses": ["10.1.0.1"]},
        {"addresses": ["10.1.0.1/24", "224.0.0.1/24"]},
        {"features_off": ["tx-magic"]},
    ],
)
def test_refused_value_leaves_no_device_behind(namespaces: Namespaces, bad: dict[str, object]) -> None:
    namespace = namespaces.create("t")
    before = namespace.devices()
    with pytest.raises(RequestError) as caught:
        asyncio.run(open_tap(namespaces.device("t"), netns=namespace.name, **bad))  # type: ignore[arg-type]
    assert caught.value.field
    assert caught.value.allowed
    assert namespace.devices() == before


def test_set_up_refused_by_the_kernel_leaves_no_device_behind(namespaces: Namespaces) -> None:
    namespace = namespaces.create("t", ipv6=False)
    before = namespace.devices()
    with pytest.raises(PortError, match="see that IPv6 is enabled"):
        asyncio.run(open_tap(namespaces.device("t"), netns=namespace.name, addresses=["fd00::1/64"]))
    assert namespace.devices() == before


def test_namespace_that_does_not_exist_is_named(namespaces: Namespaces) -> None:
    missing = f"{namespaces.token}-none"
    with pytest.raises(PortError, match=f"ip netns add {missing}"):
        asyncio.run(open_tap(namespaces.device("t"), netns=missing))


def test_daemon_thread_stays_in_its_namespace_whatever_happens(namespaces: Namespaces) -> None:
    def here() -> str:
        return os.readlink("/proc/thread-self/ns/net")

    before = here()
    namespace, port = open_quiet(namespaces, "t", "10.1.0.1/24")
    assert here() == before
    with pytest.raises(PortError):
        asyncio.run(open_tap(port.name, netns=namespace.name))
    assert here() == before
    port.close()


@pytest.mark.parametrize("loop_factory", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_removed_device_wakes_the_reader_and_ends_the_port(
    namespaces: Namespaces, loop_factory: type[asyncio.AbstractEventLoop]
) -> None:
    namespace = namespaces.create("t", ipv6=False)
    name = namespaces.device("t")

    async def story() -> PortError:
        port = await open_tap(name, netns=namespace.name)
        loop = asyncio.get_running_loop()
        watched = port.fileno() or -1
        ended: asyncio.Future[PortError] = loop.create_future()

        def readable() -> None:
            try:
                port.receive_burst()
            except PortError as error:
                loop.remove_reader(watched)
                ended.set_result(error)

        loop.add_reader(watched, readable)
        await asyncio.to_thread(namespace.ip, "link", "delete", name)
        try:
            failure = await asyncio.wait_for(ended, 5)
            with pytest.raises(PortError, match="any longer"):
                port.send_burst([NetBuffer(bytearray(60))])
        finally:
            port.close()
        return failure

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        error = runner.run(story())
    assert name in str(error)
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.errno == errno.EBADFD


def test_task_cancelled_while_opening_leaks_no_descriptor(namespaces: Namespaces) -> None:
    namespace = namespaces.create("t", ipv6=False)
    name = namespaces.device("t")
    descriptors = Path("/proc/self/fd")

    async def story() -> None:
        for pause in (0.0, 0.001, 0.002, 0.003, 0.004, 0.006):
            task = asyncio.create_task(open_tap(name, netns=namespace.name))
            await asyncio.sleep(pause)
            task.cancel()
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(outcome, TapPort):
                outcome.close()
            await asyncio.sleep(0.1)

    before = len(list(descriptors.iterdir()))
    asyncio.run(story())
    assert len(list(descriptors.iterdir())) == before
    assert name not in namespace.devices()
