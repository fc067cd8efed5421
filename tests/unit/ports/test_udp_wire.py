"""UdpPort over loopback: what goes out as datagrams, and what comes of datagrams."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP
from scapy.layers.l2 import ARP, Ether

from vnic.errors import PortError
from vnic.ndis.netbuffer import NetBuffer
from vnic.ports import udp
from vnic.ports.base import BURST_FRAMES
from vnic.ports.udp import GATEWAY, End, UdpPort, open_udp

HOST = "02:00:00:00:00:01"
LOCAL, REMOTE = {4: "127.0.0.1", 6: "::1"}, {4: "127.0.0.2", 6: "::1"}
SPI = 0x1001


def free_port(version: int, address: str) -> int:
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


class Wire:
    """The port and, at its other end, a plain socket."""

    def __init__(self, version: int) -> None:
        self.version = version
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        self.far = socket.socket(family, socket.SOCK_DGRAM)
        self.far.bind((REMOTE[version], 0))
        self.far.settimeout(3)
        self.local = End(ip_address(LOCAL[version]), free_port(version, LOCAL[version]))
        self.remote = End(ip_address(REMOTE[version]), self.far.getsockname()[1])

    def frame(self, text: bytes, *, source: str | None = None, tos: int = 0, number: int = 1) -> NetBuffer:
        """A frame of the card: ESP from end to end."""
        source, destination = source or LOCAL[self.version], REMOTE[self.version]
        ip = (
            IP(src=source, dst=destination, tos=tos)
            if self.version == 4
            else IPv6(src=source, dst=destination, tc=tos)
        )
        esp = ESP(spi=SPI, seq=number, data=text)
        return NetBuffer(bytearray(bytes(Ether(src=HOST, dst="02:76:6e:69:63:00") / ip / esp)))

    def run(self, work: Callable[[UdpPort], Awaitable[None]], **options: object) -> None:
        async def whole() -> None:
            port = await open_udp(self.local, self.remote, **options)  # type: ignore[arg-type]
            port.use_host_address(bytes.fromhex(HOST.replace(":", "")))
            try:
                await work(port)
            finally:
                port.close()

        asyncio.run(whole())


@pytest.fixture(params=[4, 6])
def wire(request: pytest.FixtureRequest) -> Iterator[Wire]:
    if request.param == 6 and not socket.has_ipv6:
        pytest.skip("kernel lacks IPv6")
    made = Wire(request.param)
    yield made
    made.far.close()


@pytest.fixture
def wire4() -> Iterator[Wire]:
    made = Wire(4)
    yield made
    made.far.close()


def receive(port: UdpPort, count: int) -> list[NetBuffer]:
    found: list[NetBuffer] = []
    deadline = time.monotonic() + 3
    while len(found) < count and time.monotonic() < deadline:
        found += port.receive_burst()
    return found


def esp(number: int, text: bytes = b"x" * 40) -> bytes:
    return SPI.to_bytes(4, "big") + number.to_bytes(4, "big") + text


def test_packets_of_one_size_arrive_as_datagrams_of_esp(wire: Wire) -> None:
    async def work(port: UdpPort) -> None:
        texts = [bytes([number]) * 1000 for number in range(100)] + [b"short", b"y" * 1001]
        port.send_burst([wire.frame(text, number=index) for index, text in enumerate(texts)])
        got = [wire.far.recvfrom(70_000) for _ in texts]
        assert [data for data, _ in got] == [esp(index, text) for index, text in enumerate(texts)]
        assert {address[1] for _, address in got} == {wire.local.port}
        assert port.counters.tx_frames == len(texts)
        assert port.counters.drops == {}

    wire.run(work)


def test_datagrams_become_frames_that_scapy_reads(wire: Wire) -> None:
    async def work(port: UdpPort) -> None:
        address = (LOCAL[wire.version], wire.local.port)
        sent = [esp(number, b"t" * (30 + number)) for number in range(10)]
        for one in sent:
            wire.far.sendto(one, address)
        frames = [Ether(bytes(buffer.frame)) for buffer in receive(port, 10)]
        assert [bytes(frame[ESP]) for frame in frames] == sent
        for frame in frames:
            assert (frame.dst, frame.src) == (HOST, "02:76:6e:69:63:00")
            ip = frame[IP] if wire.version == 4 else frame[IPv6]
            assert (ip.src, ip.dst) == (REMOTE[wire.version], LOCAL[wire.version])
            if wire.version == 4:
                checksum = ip.chksum
                del ip.chksum
                assert IP(bytes(ip)).chksum == checksum
        assert port.counters.rx_frames == 10

    wire.run(work)


def test_one_call_of_many_segments_comes_in_as_many_frames(wire: Wire) -> None:
    async def work(port: UdpPort) -> None:
        pieces = [esp(number, bytes([number]) * 1192) for number in range(20)]
        wire.far.setsockopt(17, 103, 1200)  # UDP_SEGMENT
        wire.far.sendto(b"".join(pieces), (LOCAL[wire.version], wire.local.port))
        start = 54 if wire.version == 6 else 34
        assert [bytes(buffer.frame[start:]) for buffer in receive(port, 20)] == pieces

    wire.run(work)


def test_congestion_marks_travel_both_ways(wire4: Wire) -> None:
    async def work(port: UdpPort) -> None:
        wire4.far.setsockopt(socket.IPPROTO_IP, 13, 1)  # IP_RECVTOS
        port.send_burst([wire4.frame(b"marked", tos=0x2B)])
        _, ancillary, _, _ = wire4.far.recvmsg(2000, 100)
        assert ancillary[0][2][0] == 0x2B
        wire4.far.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x2B)
        wire4.far.sendto(esp(1), (LOCAL[4], wire4.local.port))
        assert Ether(bytes(receive(port, 1)[0].frame))[IP].tos == 0x2B

    wire4.run(work)


def test_what_is_not_esp_between_the_ends_is_counted_and_stays_here(wire: Wire) -> None:
    async def work(port: UdpPort) -> None:
        clear = Ether(src=HOST) / (IP(dst=REMOTE[4]) if wire.version == 4 else IPv6(dst=REMOTE[6])) / b"clear"
        fragment = wire.frame(b"part")
        others = [NetBuffer(bytearray(bytes(clear))), NetBuffer(bytearray(9)), NetBuffer(bytearray(60))]
        if wire.version == 4:
            fragment.frame[20] |= 0x20
            others += [fragment, wire.frame(b"of another", source="127.0.0.9")]
        port.send_burst(others)
        wire.far.setblocking(False)
        with pytest.raises(BlockingIOError):
            wire.far.recv(2000)
        assert port.counters.drops == {"wire_not_esp": len(others)}
        assert port.counters.tx_frames == 0

    wire.run(work)


def test_keepalives_pass_unseen_and_ike_is_counted(wire: Wire) -> None:
    async def work(port: UdpPort) -> None:
        address = (LOCAL[wire.version], wire.local.port)
        for datagram in (b"\xff", bytes(4) + b"IKE_SA_INIT", b"tiny", esp(7)):
            wire.far.sendto(datagram, address)
        assert len(receive(port, 1)) == 1
        assert port.counters.drops == {"wire_ike": 1, "wire_not_esp": 1}

    wire.run(work)


def test_silence_is_filled_with_keepalives(wire4: Wire) -> None:
    async def work(port: UdpPort) -> None:
        began = time.monotonic()
        datagram = await asyncio.to_thread(wire4.far.recv, 100)
        assert datagram == b"\xff"
        assert time.monotonic() - began > 0.9

    wire4.run(work, keepalive_s=1)


@pytest.mark.parametrize("keepalive", [0, 20])
def test_path_that_grows_again_is_found_without_a_packet_lost(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, keepalive: int
) -> None:
    monkeypatch.setattr(udp, "LOOK_AT_PATH_S", 0.05)

    async def work(port: UdpPort) -> None:
        told: list[int] = []
        port.on_mtu = lambda: told.append(port.mtu)
        whole = port.mtu
        # As if a router had said so before.
        port.mtu = 1000
        await asyncio.sleep(0.3)
        assert (port.mtu, told) == (whole, [whole])

    wire.run(work, keepalive_s=keepalive)


def test_host_that_asks_for_a_neighbour_gets_the_gateway(wire4: Wire) -> None:
    async def work(port: UdpPort) -> None:
        woken: list[bool] = []
        port.set_wake(lambda: woken.append(True))
        host = "02:00:00:00:00:07"
        ask = Ether(src=host) / ARP(hwsrc=host, psrc="10.0.0.1", pdst="10.0.0.9")
        port.send_burst([NetBuffer(bytearray(bytes(ask)))])
        assert woken
        (reply,) = port.receive_burst()
        assert Ether(bytes(reply.frame))[ARP].hwsrc == ":".join(f"{byte:02x}" for byte in GATEWAY)
        wire4.far.sendto(esp(1), (LOCAL[4], wire4.local.port))
        assert Ether(bytes(receive(port, 1)[0].frame)).dst == host

    wire4.run(work)


def test_strangers_are_not_heard(wire4: Wire) -> None:
    async def work(port: UdpPort) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(esp(1), (LOCAL[4], wire4.local.port))
            wire4.far.sendto(esp(2), (LOCAL[4], wire4.local.port))
            assert len(receive(port, 1)) == 1
        assert port.counters.drops == {"wire_stranger": 1}
        assert port.peer == wire4.remote

    wire4.run(work)


@pytest.mark.parametrize(
    ("strange", "text"),
    [(False, b""), (False, b"?"), (False, b"\xff"), (False, bytes(40)), (True, b""), (True, b"x" * 40)],
    ids=["nothing", "short", "keepalives", "IKE", "nothing of a stranger", "ESP of a stranger"],
)
def test_flood_of_nothing_leaves_the_loop_its_turn(wire4: Wire, strange: bool, text: bytes) -> None:
    async def work(port: UdpPort) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            sender = stranger if strange else wire4.far
            for _ in range(BURST_FRAMES + 20):
                sender.sendto(text, (LOCAL[4], wire4.local.port))
            wire4.far.sendto(esp(2), (LOCAL[4], wire4.local.port))
            assert port.receive_burst() == []
            (got,) = receive(port, 1)
            assert bytes(got.frame[34:]) == esp(2)

    wire4.run(work)


@pytest.mark.parametrize(("before", "after", "moves"), [(5, 6, True), (5, 5, False)])
def test_peer_moves_only_with_the_newest_authenticated_packet(
    wire4: Wire, before: int, after: int, moves: bool
) -> None:
    """`highest` is the card's word; it does not change for what is forged, replayed or late."""

    async def work(port: UdpPort) -> None:
        numbers = {SPI: before}
        port.highest = lambda spi: numbers.get(spi, 0)
        told: list[End] = []
        port.on_peer = lambda: told.append(port.peer)
        with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as stranger:
            stranger.bind(("127.0.0.3", 0))
            stranger.settimeout(3)
            stranger.sendto(esp(6), (LOCAL[4], wire4.local.port))
            wire4.far.sendto(esp(7), (LOCAL[4], wire4.local.port))
            assert len(receive(port, 1)) == 1  # the stranger's comes alone
            assert port.peer == wire4.remote
            numbers[SPI] = after
            port.receive_burst()
            port.send_burst([wire4.frame(b"reply")])
            if moves:
                assert stranger.recv(2000) == esp(1, b"reply")
                assert told == [End(ip_address("127.0.0.3"), stranger.getsockname()[1])]
            else:
                assert wire4.far.recv(2000) == esp(1, b"reply")
                assert not told

    wire4.run(work, follow=True)


def test_address_of_another_host_is_refused_with_advice() -> None:
    with pytest.raises(PortError, match=r"192\.0\.2\.7.*ip address add"):
        asyncio.run(open_udp(End(ip_address("192.0.2.7"), 4500), End(ip_address("192.0.2.8"), 4500)))


def test_port_in_use_is_refused_with_advice(wire4: Wire) -> None:
    taken = End(ip_address(REMOTE[4]), wire4.remote.port)
    with pytest.raises(PortError, match="choose another"):
        asyncio.run(open_udp(taken, wire4.local))


class Beside:
    """What the native engine would have of the socket."""

    def __init__(self, *made_with: object) -> None:
        self.made_with = made_with
        self.aside: list[tuple[bytearray, int, int, tuple[str, int]]] = []
        self.peers: list[tuple[str, int]] = []

    def set_peer(self, address: str, port: int) -> None:
        self.peers.append((address, port))

    def set_host(self, mac: bytes) -> None:
        self.host = mac

    def take_counts(self) -> tuple[int, int, int, int, int, int]:
        return 1, 100, 2, 200, 3, 4

    def take_not_esp(self) -> int:
        return 5

    def take_strangers(self) -> int:
        return 6

    def take_aside(self) -> list[tuple[bytearray, int, int, tuple[str, int]]]:
        aside, self.aside = self.aside, []
        return aside

    def close(self) -> None:
        self.made_with = ()


def test_what_the_native_engine_puts_aside_is_judged_here_before_it_goes_on(wire4: Wire) -> None:
    async def work(port: UdpPort) -> None:
        made: list[Beside] = []

        def make(*words: object) -> Beside:
            made.append(Beside(*words))
            return made[0]

        port.use_native(make)
        (native,) = made
        woken: list[bool] = []
        port.set_wake(lambda: woken.append(True))
        numbers = {SPI: 5}
        port.highest = lambda spi: numbers.get(spi, 0)
        peer = (REMOTE[4], wire4.remote.port)
        native.aside = [
            (bytearray(b"\xff"), 1, 0, peer),
            (bytearray(esp(6) + esp(7)), len(esp(6)), 0, peer),
            (bytearray(esp(8)), len(esp(8)), 0, ("127.0.0.3", 4500)),
            (bytearray(esp(9)), len(esp(9)), 0, peer),
        ]
        assert port.is_quiet()
        port.fail(errno.ENOMSG)
        assert woken
        assert not port.is_quiet()
        assert [bytes(one.frame[34:]) for one in port.receive_burst()] == [esp(6), esp(7)]
        assert [bytes(one.frame[34:]) for one in port.receive_burst()] == [esp(8)]
        numbers[SPI] = 8
        assert not port.is_quiet()
        assert native.peers == [("127.0.0.3", 4500)]
        # Who was the peer is a stranger now, and has nothing new to say.
        assert port.receive_burst() == []
        assert [bytes(one.frame[34:]) for one in port.receive_burst()] == [esp(9)]
        assert port.is_quiet()
        assert native.peers == [("127.0.0.3", 4500)]
        counters = port.counters
        assert (counters.rx_frames, counters.tx_frames) == (5, 2)
        assert counters.drops == {
            "wire_not_esp": 5,
            "wire_stranger": 6,
            "wire_receive": 3,
            "wire_write": 4,
        }
        with pytest.raises(PortError):
            port.fail(errno.EBADF)

    wire4.run(work, follow=True)


def test_keepalive_is_not_late_after_what_the_native_engine_sent(wire4: Wire) -> None:
    class Sending(Beside):
        sent = 0

        def take_counts(self) -> tuple[int, int, int, int, int, int]:
            sent, self.sent = self.sent, 0
            return 0, 0, sent, 100 * sent, 0, 0

    async def work(port: UdpPort) -> None:
        made: list[Sending] = []

        def make(*words: object) -> Sending:
            made.append(Sending(*words))
            return made[0]

        port.use_native(make)
        await asyncio.sleep(0.2)
        made[0].sent = 1
        wire4.far.settimeout(1.5)
        assert await asyncio.to_thread(wire4.far.recv, 100) == b"\xff"

    wire4.run(work, keepalive_s=1)


def test_wire_takes_the_place_of_another_with_the_same_local_end(wire: Wire) -> None:
    """So that remote, keepalive and follow can change while the port is never anybody else's."""

    async def work(port: UdpPort) -> None:
        with socket.socket(wire.far.family, socket.SOCK_DGRAM) as farther:
            farther.bind((REMOTE[wire.version], 0))
            farther.settimeout(3)
            remote = End(wire.remote.address, farther.getsockname()[1])
            with pytest.raises(PortError, match="choose another"):
                await open_udp(wire.local, remote)
            with pytest.raises(PortError, match="choose another"):
                await open_udp(wire.remote, wire.local, old=port)
            with contextlib.closing(await open_udp(wire.local, remote, old=port)) as new:
                farther.sendto(esp(1), (LOCAL[wire.version], wire.local.port))
                port.close()
                assert len(receive(new, 1)) == 1
                new.send_burst([wire.frame(b"from the new one")])
                assert b"from the new one" in farther.recv(2048)
            # With the last of them the port is free again.
            (await open_udp(wire.local, remote)).close()

    wire.run(work)
