"""PacketPort on one end of a veth pair."""

from __future__ import annotations

import asyncio
import os
import re
import socket

import pytest
import uvloop
from namespaces import Namespace, Namespaces
from relay import Relay, receive_until, transfer

from vnic.errors import PortError
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.vnet import GSO_TCPV4, NEEDS_CSUM, VnetHeader
from vnic.ports.base import BURST_FRAMES
from vnic.ports.packet import PacketPort, open_packet

pytestmark = pytest.mark.live

ETHERTYPE = 0x88B5  # IEEE 802 local experimental
BROADCAST = b"\xff" * 6


def experimental(payload: bytes, destination: bytes = BROADCAST) -> bytearray:
    return bytearray(destination + bytes.fromhex("020000000099") + ETHERTYPE.to_bytes(2, "big") + payload)


class Wire:
    """A veth pair: the port on end b in one namespace, a bare packet socket on end a in the other."""

    def __init__(self, namespaces: Namespaces, **options: int) -> None:
        self.far = namespaces.create("a", ipv6=False)
        self.near = namespaces.create("b", ipv6=False)
        self.far_name, self.near_name = namespaces.veth(self.far, self.near)
        self.port = asyncio.run(open_packet(self.near_name, netns=self.near.name, **options))
        self.socket = self.far.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(ETHERTYPE))
        self.socket.bind((self.far_name, ETHERTYPE))
        self.socket.settimeout(3)

    def close(self) -> None:
        self.port.close()
        self.socket.close()


@pytest.fixture
def wire(namespaces: Namespaces):  # type: ignore[no-untyped-def]
    made = Wire(namespaces)
    yield made
    made.close()


def promiscuity(namespace: Namespace, name: str) -> int:
    found = re.search(r"promiscuity (\d+)", namespace.ip("-d", "link", "show", name).stdout)
    assert found
    return int(found[1])


def test_frames_of_the_peer_come_in_one_burst(wire: Wire) -> None:
    sent = [experimental(bytes([number]) * (50 + number)) for number in range(10)]
    for frame in sent:
        wire.socket.send(frame)
    burst = receive_until(wire.port, 10)
    assert [buffer.frame for buffer in burst] == sent
    assert all(buffer.vnet is None and type(buffer.frame) is bytearray for buffer in burst)
    assert wire.port.counters.rx_frames == 10
    assert wire.port.counters.rx_bytes == sum(map(len, sent))


def test_burst_is_bounded_and_the_rest_stays_readable(wire: Wire) -> None:
    for _ in range(BURST_FRAMES + 6):
        wire.socket.send(experimental(bytes(50)))
    assert [len(wire.port.receive_burst()) for _ in range(3)] == [BURST_FRAMES, 6, 0]


def test_sent_frames_reach_the_peer_in_order(wire: Wire) -> None:
    frames = [experimental(bytes([number]) * 60) for number in range(10)]
    wire.port.send_burst([NetBuffer(bytearray(frame)) for frame in frames])
    assert [wire.socket.recv(2048) for _ in range(10)] == frames
    assert (wire.port.counters.tx_frames, wire.port.counters.drops) == (10, {})


def test_frame_for_a_foreign_mac_is_received_too(wire: Wire) -> None:
    wire.socket.send(experimental(bytes(50), bytes.fromhex("02000000ffff")))
    assert len(receive_until(wire.port, 1)) == 1


def test_own_frames_do_not_come_back(wire: Wire) -> None:
    wire.port.send_burst([NetBuffer(experimental(bytes(50)))])
    wire.socket.recv(2048)
    assert wire.port.receive_burst() == []


def test_port_reports_what_it_is(wire: Wire) -> None:
    assert (wire.port.name, wire.port.kind, wire.port.mtu) == (wire.near_name, "netdev", 1500)
    assert set(wire.port.features().values()) == {"on"}


def test_vlan_tag_taken_out_by_the_kernel_is_back_in_the_frame(wire: Wire) -> None:
    for tpid in ("8100", "88a8"):
        tagged = bytearray(BROADCAST + bytes.fromhex(f"020000000099 {tpid} 2005 88b5") + bytes(50))
        wire.socket.send(tagged)
        (buffer,) = receive_until(wire.port, 1)
        assert buffer.frame == tagged


def test_vlan_tag_moves_the_offsets_of_an_open_checksum(wire: Wire) -> None:
    with wire.far.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.setsockopt(263, 15, 1)  # PACKET_VNET_HDR
        sender.bind((wire.far_name, 0))
        # Ethernet 14, tag 4, IPv4 20, UDP: its checksum is 6 bytes into the header at 38.
        datagram = bytes.fromhex(
            "4500 0024 0000 4000 4011 0000 0a000001 0a000002 0009 0009 0010 1234"
        ) + bytes(8)
        tagged = BROADCAST + bytes.fromhex("020000000099 8100 0005 0800") + datagram
        sender.send(VnetHeader(NEEDS_CSUM, 0, 0, 0, 38, 6).emit() + tagged)
    (buffer,) = receive_until(wire.port, 1)
    assert buffer.frame == tagged
    assert buffer.vnet is not None
    assert (buffer.vnet.flags & NEEDS_CSUM, buffer.vnet.csum_start, buffer.vnet.csum_offset) == (1, 38, 6)


def test_tcp_of_veth_peers_shows_superframes_and_open_checksums_and_arrives(namespaces: Namespaces) -> None:
    left, middle, right = (namespaces.create(label, ipv6=False) for label in ("l", "m", "r"))
    _, left_end = namespaces.veth(left, middle, labels=("a", "b"), left_addresses=["10.2.0.1/24"])
    _, right_end = namespaces.veth(right, middle, labels=("c", "d"), left_addresses=["10.2.0.2/24"])
    left_port, right_port = (
        asyncio.run(open_packet(end, netns=middle.name)) for end in (left_end, right_end)
    )
    payload = os.urandom(2 << 20)
    try:
        with (
            Relay(left_port, right_port) as relay,
            left.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
            right.socket(socket.AF_INET, socket.SOCK_STREAM) as server,
        ):
            assert transfer(client, server, ("10.2.0.2", 5001), payload) == payload
        assert relay.failures == []
        headers = [buffer.vnet for buffer in relay.seen if buffer.vnet is not None]
        assert any(one.gso_type == GSO_TCPV4 and one.gso_size == 1448 for one in headers)
        assert any(one.gso_type == 0 and one.flags & NEEDS_CSUM for one in headers)
        assert max(len(buffer.frame) for buffer in relay.seen) > 10_000
    finally:
        left_port.close()
        right_port.close()


def test_other_traffic_of_the_device_goes_on(namespaces: Namespaces) -> None:
    left, right = namespaces.create("l"), namespaces.create("r")
    _, name = namespaces.veth(left, right, left_addresses=["10.3.0.1/24"], right_addresses=["10.3.0.2/24"])
    before = right.ip("-d", "address", "show", name).stdout.split("promiscuity")[0]
    port = asyncio.run(open_packet(name, netns=right.name))
    try:
        assert promiscuity(right, name) == 1
        left.run("ping", "-c", "2", "-i", "0.05", "-W", "2", "10.3.0.2")
        assert right.ip("-d", "address", "show", name).stdout.split("promiscuity")[0] == before
        # The echo requests were seen, the answers of the device's own host were not.
        icmp_types = [
            buffer.frame[34]
            for buffer in receive_until(port, 4, timeout_s=0.3)
            if buffer.frame[12:14] == b"\x08\x00"
        ]
        assert icmp_types == [8, 8]
    finally:
        port.close()
    assert promiscuity(right, name) == 0
    left.run("ping", "-c", "1", "-W", "2", "10.3.0.2")


def test_frame_longer_than_the_device_takes_is_counted(wire: Wire) -> None:
    wire.port.send_burst([NetBuffer(experimental(bytes(3000))), NetBuffer(experimental(bytes(60)))])
    assert wire.port.counters.drops == {"wire_write": 1}
    assert len(wire.socket.recv(4096)) == 74


def test_frames_the_kernel_had_no_room_for_are_counted(namespaces: Namespaces) -> None:
    wire = Wire(namespaces, receive_buffer=8192)
    try:
        for _ in range(200):
            wire.socket.send(experimental(bytes(1000)))
        received = len(receive_until(wire.port, 200, timeout_s=0.3))
        assert 0 < received < 200
        assert wire.port.counters.drops == {"wire_receive": 200 - received}
    finally:
        wire.close()


@pytest.mark.parametrize("loop_factory", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_device_that_was_down_wakes_the_reader_again_and_a_removed_one_ends_the_port(
    wire: Wire, loop_factory: type[asyncio.AbstractEventLoop]
) -> None:
    async def story() -> list[object]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[object] = asyncio.Queue()

        def readable() -> None:
            try:
                for buffer in wire.port.receive_burst():
                    events.put_nowait(bytes(buffer.frame[14:15]))
            except PortError as error:
                events.put_nowait(error)

        descriptor = wire.port.fileno()
        assert descriptor is not None
        loop.add_reader(descriptor, readable)

        async def near(*words: str) -> None:
            await asyncio.to_thread(wire.near.ip, "link", "set", wire.near_name, *words)

        seen = []
        wire.socket.send(experimental(b"1" * 50))
        seen.append(await asyncio.wait_for(events.get(), 3))
        await near("down")
        await asyncio.sleep(0.05)
        wire.port.send_burst([NetBuffer(experimental(bytes(50)))])
        await near("up")
        wire.socket.send(experimental(b"2" * 50))
        seen.append(await asyncio.wait_for(events.get(), 3))
        await asyncio.to_thread(wire.near.ip, "link", "delete", wire.near_name)
        seen.append(await asyncio.wait_for(events.get(), 3))
        loop.remove_reader(descriptor)
        return seen

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        first, second, last = runner.run(story())
    assert (first, second) == (b"1", b"2")
    assert wire.port.counters.drops == {"wire_write": 1}
    assert isinstance(last, PortError)
    assert wire.near_name in str(last)
    with pytest.raises(PortError, match="any longer"):
        wire.port.send_burst([NetBuffer(experimental(bytes(50)))])


def test_moved_device_ends_the_port(wire: Wire) -> None:
    wire.near.ip("link", "set", wire.near_name, "netns", wire.far.name)
    with pytest.raises(PortError, match="removed or moved"):
        wire.port.receive_burst()


def test_missing_device_is_named(namespaces: Namespaces) -> None:
    namespace = namespaces.create("a")
    name = namespaces.device("none")
    with pytest.raises(PortError, match=f"no device {name} in namespace {namespace.name}"):
        asyncio.run(open_packet(name, netns=namespace.name))


def test_device_without_ethernet_is_refused(namespaces: Namespaces) -> None:
    namespace = namespaces.create("a")
    with pytest.raises(PortError, match="no Ethernet device"):
        asyncio.run(open_packet("lo", netns=namespace.name))


def test_closed_port_says_so(wire: Wire) -> None:
    port: PacketPort = wire.port
    port.close()
    port.close()
    assert port.fileno() is None
    with pytest.raises(PortError, match="closed"):
        port.receive_burst()
    with pytest.raises(PortError, match="closed"):
        port.send_burst([NetBuffer(experimental(bytes(50)))])
