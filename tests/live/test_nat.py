"""A card behind a NAT that changes its mind: answers follow, keepalives keep it open, nothing else gets in.

The NAT is a few lines between two veth pairs, which rewrite source address and port of UDP as a NAPT does. It
needs nothing of the kernel, and can be told to forget what it mapped.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from card import (
    ADDRESSES,
    GCM,
    LEFT,
    OUTER_ADDRESSES,
    RIGHT,
    Association,
    Daemon,
    Host,
    adapter_line,
    policy,
)
from namespaces import Namespace, Namespaces
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from traffic import ping, wait_until

pytestmark = pytest.mark.live

_ETH_P_ALL = 3


@dataclass
class Nat:
    """Between a card and the rest of the world."""

    namespace: Namespace
    inside: str
    outside: str
    address: str = "203.0.113.1"
    port: int = 20_001
    seen: list[bytes] = field(default_factory=list)
    """What came from inside, as payloads of UDP."""
    _stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._ends = []
        for device in (self.inside, self.outside):
            end = self.namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            end.bind((device, _ETH_P_ALL))
            self._ends.append(end)
        self._hidden: tuple[str, int] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def forget(self, address: str, port: int) -> None:
        """Lose the mapping, and make another with the next packet from inside."""
        self.address, self.port, self._hidden = address, port, None

    def _run(self) -> None:
        inside, outside = self._ends
        while not self._stop.is_set():
            readable, _, _ = select.select(self._ends, [], [], 0.05)
            for end in readable:
                frame, (_, _, kind, *_) = end.recvfrom(4096)
                if kind == socket.PACKET_OUTGOING:
                    continue
                out = end is inside
                changed = self._change(frame, out=out)
                if changed is not None:
                    with contextlib.suppress(OSError):
                        (outside if out else inside).send(changed)

    def _change(self, frame: bytes, *, out: bool) -> bytes | None:
        packet = Ether(frame)
        if UDP not in packet or IP not in packet:
            return frame
        ip, udp = packet[IP], packet[UDP]
        if out:
            self.seen.append(bytes(udp.payload))
            self._hidden = (ip.src, udp.sport)
            ip.src, udp.sport = self.address, self.port
        elif self._hidden is None or (ip.dst, udp.dport) != (self.address, self.port):
            return None
        else:
            ip.dst, udp.dport = self._hidden
        ip.chksum = None
        return bytes(packet)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)
        for end in self._ends:
            end.close()


@dataclass
class Road:
    """A card, a NAT, and the card it speaks to."""

    daemon: Daemon
    left: Host
    right: Host
    nat: Nat

    def peers(self) -> set[tuple[str, int]]:
        """Where the SAs of the right card have their peer, as far as it moved."""
        moved = [sa["peer"] for (adapter, _), sa in self.daemon.sas().items() if adapter == RIGHT]
        return {(peer["address"], peer["port"]) for peer in moved if peer is not None}


@pytest.fixture
def road(tmp_path: Path) -> Iterator[Road]:
    namespaces = Namespaces("vn")
    daemon = Daemon(tmp_path)
    nat: Nat | None = None
    try:
        daemon.start()
        middle = namespaces.create("w", ipv6=False)
        wires, hosts = [], []
        for adapter, label in ((LEFT, "l"), (RIGHT, "r")):
            space = namespaces.create(label)
            hosts.append(Host(adapter, space, namespaces.device(label), ADDRESSES[adapter]))
            wires.append(namespaces.veth(middle, middle, labels=(f"{label}a", f"{label}b")))
        daemon.batch(
            *(
                adapter_line(host, f"netdev {card_end} netns {middle.name}")
                for host, (card_end, _) in zip(hosts, wires, strict=True)
            )
        )
        nat = Nat(middle, wires[0][1], wires[1][1])
        yield Road(daemon, *hosts, nat)
    finally:
        if nat is not None:
            nat.close()
        daemon.close()
        namespaces.close()


def protect(road: Road, follow: str) -> None:
    """A tunnel in UDP both ways; the right card is told how much it may follow."""
    near, far = (ADDRESSES[end][4] for end in (LEFT, RIGHT))
    here, there = (OUTER_ADDRESSES[end][4] for end in (LEFT, RIGHT))
    forth = Association(GCM, "tunnel", here, there, ports=(4500, 4500), reqid=7)
    back = Association(GCM, "tunnel", there, here, ports=(4500, 4500), reqid=7)
    road.daemon.batch(
        f"{forth.add(RIGHT, 'in')} {follow}",
        back.add(LEFT, "in"),
        f"{forth.add(LEFT, 'out')} nat-keepalive 1",
        f"{back.add(RIGHT, 'out')} nat-keepalive 0",
        policy(LEFT, "out", near, far, [forth]),
        policy(RIGHT, "in", near, far, [forth]),
        policy(RIGHT, "out", far, near, [back]),
        policy(LEFT, "in", far, near, [back]),
    )


def test_answers_follow_a_peer_whose_nat_changes_its_mind(road: Road) -> None:
    protect(road, "nat-follow")
    for address, port in (("203.0.113.1", 20_001), ("203.0.113.1", 20_002), ("198.51.100.77", 31_337)):
        road.nat.forget(address, port)
        assert ping(road.left, ADDRESSES[RIGHT][4], count=5, wait_s=10) == 5
        assert road.peers() == {(address, port)}
        assert ping(road.right, ADDRESSES[LEFT][4], count=3, wait_s=10) == 3, (
            road.daemon.drops(LEFT),
            road.daemon.drops(RIGHT),
        )


def test_without_leave_a_nat_is_a_stranger(road: Road) -> None:
    protect(road, "")
    assert ping(road.left, ADDRESSES[RIGHT][4], wait_s=0.5) == 0
    assert wait_until(lambda: road.daemon.drops(RIGHT).get("in_no_sa", 0) >= 1, 10)
    assert road.peers() == set()


def test_keepalives_pass_the_nat_and_end_at_the_far_card(road: Road) -> None:
    protect(road, "nat-follow")

    def passed() -> int:
        return road.nat.seen.count(b"\xff")

    def ended() -> int:
        return road.daemon.drops(RIGHT).get("in_nat_keepalive", 0)

    assert ping(road.left, ADDRESSES[RIGHT][4], count=1, wait_s=10) == 1
    assert wait_until(lambda: passed() >= 2 and ended() >= 1, 20)
    # A keepalive is not authenticated, and moves nobody.
    road.nat.forget("198.51.100.78", 4)
    known, so_far = road.peers(), ended()
    assert wait_until(lambda: ended() >= so_far + 2, 20)
    assert road.peers() == known
