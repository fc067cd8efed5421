"""A card behind the NAT of a Linux router: the kernel masquerades, forgets, and chooses other ports.

What the left card sends passes a namespace that forwards and masquerades UDP, as most home routers do:

    left, 192.168.77.2 ── 192.168.77.1, router, 192.0.2.1 ── 192.0.2.2, right
                                        └ masquerade to :PORT-PORT

First the cards have sockets for wires, which do UDP encapsulation by themselves; then the left card is a bump
between a host and its router, and SAs have UDP encapsulation.

Source: nft(8); linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from dataclasses import dataclass, replace

import pytest
from card import (
    ADDRESSES,
    CBC,
    GCM,
    LEFT,
    RIGHT,
    Association,
    Daemon,
    Host,
    adapter_line,
    policy,
)
from namespaces import Namespace, Namespaces
from traffic import Datagrams, Stream, digest, ping, tcp, wait_until

from tests.engines import BOTH_ENGINES

pytestmark = pytest.mark.live

HIDDEN, ROUTER_INSIDE = "192.168.77.2", "192.168.77.1"
ROUTER_OUTSIDE, OUTSIDE = "192.0.2.1", "192.0.2.2"
NOBODY = "198.51.100.9"

FIRST_PORTS, OTHER_PORTS = range(20_000, 20_100), range(30_000, 30_100)

STREAM_BYTES = 1 << 20
PAYLOADS = (0, 1, 1000, 1473, 9000)
MARKER = bytes(range(256)) * 4

MEMORY_S = 3
"""How long the NAT remembers what nothing uses."""
BEYOND_S = 0.8
"""Silence so much longer."""

_NETLINK_NETFILTER = 12
_CT_DELETE = 1 << 8 | 2
"""NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE."""
_REQUEST_WITH_ANSWER = 1 | 4
_NLMSG = struct.Struct("=IHHII")
_NFGENMSG = struct.Struct("=BBH")
_ANSWER = struct.Struct("=16xi")


class Nat:
    """The router. Its mappings are the kernel's."""

    def __init__(self, namespaces: Namespaces, hidden: str = "", known: str = "") -> None:
        """Make it, and one device on each side of it, up, with these addresses if any."""
        self.namespace = namespaces.create("nat", ipv6=False)
        self.inside, self.outside = (namespaces.create(label, ipv6=False) for label in ("in", "out"))
        self.inner, _ = self._join(namespaces, self.inside, "i", hidden, ROUTER_INSIDE)
        self.outer, self._device = self._join(namespaces, self.outside, "o", known, ROUTER_OUTSIDE)
        self.namespace.write("/proc/sys/net/ipv4/ip_forward", "1")

    def _join(
        self, namespaces: Namespaces, neighbour: Namespace, label: str, theirs: str, ours: str
    ) -> tuple[str, str]:
        return namespaces.veth(
            neighbour,
            self.namespace,
            labels=(f"{label}n", f"{label}r"),
            left_addresses=[f"{theirs}/24"] if theirs else [],
            right_addresses=[f"{ours}/24"],
        )

    def masquerade(self, ports: range) -> None:
        """Hide the inside behind these ports of the router from now on, and forget whatever there was."""
        done = self.namespace.run(
            "nft",
            "add table ip nat; delete table ip nat; add table ip nat;"
            "add chain ip nat post { type nat hook postrouting priority 100 ; };"
            f"add rule ip nat post oifname {self._device} meta l4proto udp "
            f"masquerade to :{ports.start}-{ports.stop - 1}",
            check=False,
        )
        if "Could not process rule" in done.stderr:
            pytest.skip(f"kernel lacks NAT in nftables: {done.stderr.splitlines()[0]}")
        assert done.returncode == 0, done.stderr
        self.forget()

    def forget(self) -> None:
        """Lose every mapping."""
        with self.namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
            netlink.settimeout(5)
            length = _NLMSG.size + _NFGENMSG.size
            header = _NLMSG.pack(length, _CT_DELETE, _REQUEST_WITH_ANSWER, 1, 0)
            netlink.send(header + _NFGENMSG.pack(socket.AF_INET, 0, 0))
            (code,) = _ANSWER.unpack_from(netlink.recv(4096))
        if -code in (errno.EINVAL, errno.EOPNOTSUPP):
            pytest.skip("kernel lacks netlink for connection tracking")
        assert code == 0, os.strerror(-code)

    def let_out(self, mtu: int) -> None:
        """Let no larger packets out."""
        self.namespace.ip("link", "set", self._device, "mtu", str(mtu))

    def remember_for(self, seconds: int) -> None:
        """Forget mappings that nothing used for so long."""
        for name in ("udp_timeout", "udp_timeout_stream"):
            self.namespace.write(f"/proc/sys/net/netfilter/nf_conntrack_{name}", str(seconds))


@dataclass(frozen=True)
class Road:
    """Two cards, and the router between them."""

    daemon: Daemon
    left: Host
    right: Host
    nat: Nat

    def drops(self) -> tuple[dict[str, int], dict[str, int]]:
        return self.daemon.drops(LEFT), self.daemon.drops(RIGHT)


def hosts(namespaces: Namespaces) -> tuple[Host, Host]:
    """The hosts behind the cards, with IPv4 alone."""
    left, right = (
        Host(
            adapter,
            namespaces.create(label, ipv6=False),
            namespaces.device(label),
            {4: ADDRESSES[adapter][4]},
        )
        for adapter, label in ((LEFT, "l"), (RIGHT, "r"))
    )
    return left, right


def protect(road: Road, seen: str, *, encapsulate: bool = False) -> None:
    """A tunnel both ways, and nothing else.

    Args:
        seen: address by which the right card knows the left one.
        encapsulate: with UDP encapsulation by the SAs. The right card knows no port of the left one and
            follows it; the left one alone sends keepalives, each second.
    """
    near, far = (ADDRESSES[end][4] for end in (LEFT, RIGHT))
    ports, seen_ports = ((4500, 4500), (0, 4500)) if encapsulate else (None, None)
    forth = Association(GCM, "tunnel", HIDDEN, OUTSIDE, ports=ports)
    back = Association(CBC, "tunnel", OUTSIDE, HIDDEN, ports=ports, reqid=forth.reqid)
    forth_seen = replace(forth, source=seen, ports=seen_ports)
    back_seen = replace(back, destination=seen)
    follow, often, never = ("nat-follow", "nat-keepalive 1", "nat-keepalive 0") if encapsulate else ("",) * 3
    road.daemon.batch(
        f"{forth_seen.add(RIGHT, 'in')} {follow}",
        back.add(LEFT, "in"),
        f"{forth.add(LEFT, 'out')} {often}",
        f"{back_seen.add(RIGHT, 'out')} {never}",
        policy(LEFT, "out", near, far, [forth]),
        policy(RIGHT, "in", near, far, [forth_seen]),
        policy(RIGHT, "out", far, near, [back_seen]),
        policy(LEFT, "in", far, near, [back]),
        "xfrm policy setdefault in block out block",
    )


def assert_everything_passes(road: Road) -> None:
    """Ping from both ends, TCP both ways, and UDP to and fro."""
    assert ping(road.left, ADDRESSES[RIGHT][4], count=2, wait_s=10) == 2, road.drops()
    assert ping(road.right, ADDRESSES[LEFT][4], count=2, wait_s=10) == 2, road.drops()
    payload = os.urandom(STREAM_BYTES)
    assert tcp(road.left, road.right, 4, payload) == digest(payload)
    assert tcp(road.right, road.left, 4, payload, port=5003) == digest(payload)
    with Datagrams(road.left, road.right, 4) as datagrams:
        assert datagrams.changed(os.urandom(length) for length in PAYLOADS) == []


# ------------------------------------------------------------------------------------------- UDP wires


def sockets(
    daemon: Daemon, namespaces: Namespaces, remote: str, *, follow: bool, keepalive_s: int = 20
) -> Road:
    """Cards with UDP wires: the left one's socket behind the router, the right one's outside.

    Args:
        remote: where the right card is told that the left one is.
        follow: whether the right one believes others.
        keepalive_s: of the left one; the right one has none.
    """
    left, right = hosts(namespaces)
    nat = Nat(namespaces, HIDDEN, OUTSIDE)
    nat.inside.ip("route", "add", "default", "via", ROUTER_INSIDE)
    nat.outside.ip("route", "add", "default", "via", ROUTER_OUTSIDE)
    daemon.batch(
        adapter_line(left, left_wire(nat, keepalive_s)), adapter_line(right, right_wire(nat, remote, follow))
    )
    road = Road(daemon, left, right, nat)
    protect(road, remote.partition(":")[0])
    return road


def left_wire(nat: Nat, keepalive_s: int) -> str:
    return f"udp {HIDDEN} {OUTSIDE} netns {nat.inside.name} keepalive {keepalive_s}"


def right_wire(nat: Nat, remote: str, follow: bool) -> str:
    return f"udp {OUTSIDE} {remote} netns {nat.outside.name} keepalive 0 follow {'on' if follow else 'off'}"


def wire_peer(road: Road) -> tuple[str, int]:
    """Where the right card's wire goes now."""
    address, _, port = road.daemon.adapter(RIGHT)["wire"]["peer"].rpartition(":")
    return address, int(port)


@BOTH_ENGINES
def test_socket_finds_its_peer_behind_a_nat_and_again_in_mid_stream(
    daemon: Daemon, namespaces: Namespaces
) -> None:
    road = sockets(daemon, namespaces, NOBODY, follow=True)
    road.nat.masquerade(FIRST_PORTS)
    # Nobody knows yet where the left card is.
    assert ping(road.right, ADDRESSES[LEFT][4], wait_s=0.3) == 0
    assert_everything_passes(road)
    address, port = wire_peer(road)
    assert (address, port in FIRST_PORTS) == (ROUTER_OUTSIDE, True)
    with Stream(road.left, road.right, MARKER) as stream:
        assert stream.flows()
        road.nat.masquerade(OTHER_PORTS)
        assert wait_until(lambda: wire_peer(road)[1] in OTHER_PORTS), road.drops()
        assert stream.flows(), road.drops()
    assert not stream.wrong
    assert_everything_passes(road)
    assert wire_peer(road)[1] in OTHER_PORTS


def test_socket_hears_only_a_stranger_until_it_may_follow(daemon: Daemon, namespaces: Namespaces) -> None:
    remote = f"{ROUTER_OUTSIDE}:9"
    road = sockets(daemon, namespaces, remote, follow=False)
    road.nat.masquerade(FIRST_PORTS)
    assert ping(road.left, ADDRESSES[RIGHT][4], count=3, wait_s=0.3) == 0
    assert wait_until(lambda: road.drops() == ({}, {"wire_stranger": 3})), road.drops()
    assert wire_peer(road) == (ROUTER_OUTSIDE, 9)
    daemon.batch(f"adapter set right wire {right_wire(road.nat, remote, True)}")
    assert ping(road.left, ADDRESSES[RIGHT][4], count=1, wait_s=10) == 1, road.drops()
    assert wire_peer(road)[1] in FIRST_PORTS


def test_mapping_of_a_silent_socket_lasts_as_long_as_its_keepalives(
    daemon: Daemon, namespaces: Namespaces
) -> None:
    road = sockets(daemon, namespaces, NOBODY, follow=True, keepalive_s=1)
    road.nat.masquerade(FIRST_PORTS)
    for answers, memory_s in ((1, MEMORY_S), (0, 1)):
        road.nat.remember_for(memory_s)
        assert ping(road.left, ADDRESSES[RIGHT][4], count=1, wait_s=10) == 1, road.drops()
        known = wire_peer(road)
        time.sleep(memory_s + BEYOND_S)
        assert ping(road.right, ADDRESSES[LEFT][4], wait_s=0.5) == answers, road.drops()
        # A keepalive proves nothing, and moves nobody.
        assert wire_peer(road) == known
        daemon.batch(f"adapter set left wire {left_wire(road.nat, 0)}")


def test_socket_behind_a_nat_learns_how_narrow_the_path_beyond_it_is(
    daemon: Daemon, namespaces: Namespaces
) -> None:
    road = sockets(daemon, namespaces, NOBODY, follow=True)
    road.nat.masquerade(FIRST_PORTS)
    assert daemon.adapter(LEFT)["wire"]["mtu"] == 1492
    road.nat.let_out(1400)
    payload = os.urandom(STREAM_BYTES)
    assert tcp(road.left, road.right, 4, payload) == digest(payload)
    assert daemon.adapter(LEFT)["wire"]["mtu"] == 1392


# ------------------------------------------------------------------------------------------ inline SAs


def bumps(daemon: Daemon, namespaces: Namespaces) -> Road:
    """Cards between each host and the router: what they send has the host's and the router's addresses."""
    left, right = hosts(namespaces)
    nat = Nat(namespaces)
    near, far = (ADDRESSES[end][4] for end in (LEFT, RIGHT))
    daemon.batch(
        bump_line(left, HIDDEN, f"netdev {nat.inner} netns {nat.inside.name}"),
        bump_line(right, OUTSIDE, f"netdev {nat.outer} netns {nat.outside.name}"),
    )
    left.namespace.ip("route", "add", far, "via", ROUTER_INSIDE, "src", near)
    right.namespace.ip("route", "add", near, "via", ROUTER_OUTSIDE, "src", far)
    return Road(daemon, left, right, nat)


def bump_line(host: Host, address: str, wire: str) -> str:
    """A line that adds an adapter; its host has a network with the router, and an address to protect."""
    place = f"tap {host.device} netns {host.namespace.name}"
    return (
        f"adapter add {host.adapter} {place} address {address}/24 address {host.addresses[4]}/32 wire {wire}"
    )


def sa_peers(road: Road) -> set[tuple[str, int]]:
    """Where the SAs of the right card have their peer, as far as it moved."""
    moved = [sa["peer"] for (adapter, _), sa in road.daemon.sas().items() if adapter == RIGHT]
    return {(peer["address"], peer["port"]) for peer in moved if peer is not None}


@BOTH_ENGINES
def test_answers_of_an_encapsulating_sa_follow_the_nat_in_mid_stream_and_keepalives_hold_it(
    daemon: Daemon, namespaces: Namespaces
) -> None:
    road = bumps(daemon, namespaces)
    protect(road, ROUTER_OUTSIDE, encapsulate=True)
    road.nat.masquerade(FIRST_PORTS)
    assert_everything_passes(road)
    ((address, port),) = sa_peers(road)
    assert (address, port in FIRST_PORTS) == (ROUTER_OUTSIDE, True)
    with Stream(road.left, road.right, MARKER) as stream:
        assert stream.flows()
        road.nat.masquerade(OTHER_PORTS)
        assert wait_until(lambda: {port for _, port in sa_peers(road)} <= set(OTHER_PORTS)), road.drops()
        assert stream.flows(), road.drops()
    assert not stream.wrong
    road.nat.remember_for(MEMORY_S)
    assert_everything_passes(road)
    time.sleep(MEMORY_S + BEYOND_S)
    assert ping(road.right, ADDRESSES[LEFT][4], wait_s=1) == 1, road.drops()
