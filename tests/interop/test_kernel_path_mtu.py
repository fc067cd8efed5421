"""A router with a smaller MTU between the card and a kernel: both learn of it, and everything arrives.

    host ── card ── veth ═══ [ router: 1300 bytes to either side ] ═══ TAP ── guest

The router is the test machine's own kernel; what it says of packets too big, it says to card and guest alike.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from card import AH, CBC, GCM, LEFT, OUTER_ADDRESSES, RIGHT, Layer
from kernel_guest import random_bytes
from kernel_peer import CARD, Case, KernelPeer, kernel_peer, missing
from oid_door import Door
from traffic import wait_until

pytestmark = [pytest.mark.live, pytest.mark.interop]

PATH_MTU = 1300
LENGTH = 1 << 20

TUNNELS = [
    Case("gcm-4", (Layer(GCM, "tunnel"),), 4),
    Case("cbc-4", (Layer(CBC, "tunnel"),), 4),
    Case("ah-4", (Layer(AH, "tunnel"),), 4),
    Case("gcm-6-in-4", (Layer(GCM, "tunnel"),), 6, outer_version=4, flags="af-unspec"),
    Case("gcm-4-df-clear", (Layer(GCM, "tunnel"),), 4, flags="nopmtudisc"),
]
DIRECT = [Case("transport-4", (Layer(GCM, "transport"),), 4)]
SIZES = [0, 1, 1100, 1199, 1200, 1201, 1240, 1252, 1260, 1272, 1280, 1300, 1400, 1472]
BIG = random_bytes(7, 4000)


def route_between(peer: KernelPeer) -> None:
    """Make a router of the bridge between the two: each hop has the address the other end expects."""
    wire, card_end, guest_end = peer.wire, peer.card_end, peer.guest_end
    macs = {RIGHT: "02:00:00:00:09:02", LEFT: peer.daemon.adapter(CARD)["tap"]["mac"]}
    for device, other, near, address in (
        (card_end, RIGHT, LEFT, "203.0.113.1/32"),
        (guest_end, LEFT, RIGHT, "203.0.113.2/32"),
    ):
        wire.ip("link", "set", device, "nomaster")
        wire.ip("link", "set", device, "down")
        wire.ip("link", "set", device, "address", macs[other])
        wire.ip("link", "set", device, "up")
        wire.ip("address", "add", address, "dev", device)
        ends = [OUTER_ADDRESSES[near][4]]
        ends += {
            flow.near if near is LEFT else flow.far for flow in peer.flows.values() if flow.case.version == 4
        }
        for end in ends:
            mac = macs[near]
            wire.ip("neighbour", "replace", end, "lladdr", mac, "dev", device, "nud", "permanent")
            wire.ip("route", "replace", f"{end}/32", "dev", device, "mtu", "lock", str(PATH_MTU))
        wire.write(f"/proc/sys/net/ipv4/conf/{device}/rp_filter", "0")
        wire.write(f"/proc/sys/net/ipv4/conf/{device}/send_redirects", "0")
    wire.write("/proc/sys/net/ipv4/icmp_ratelimit", "0")
    wire.write("/proc/sys/net/ipv4/ip_forward", "1")
    # The guest sends ICMP errors and learns from them by its route to the router.
    peer.guest.ip("route add 203.0.113.0/24 dev eth0")


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelPeer]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with kernel_peer(tmp_path_factory.mktemp("kernel")) as made:
        made.protect([*TUNNELS, *DIRECT])
        route_between(made)
        yield made


def learned(peer: KernelPeer) -> int:
    with Door(peer.daemon.socket) as door:
        (statistics,) = door.call("GetStatistics", adapter=CARD, sas=False)["adapters"]
    return statistics["card"]["rx_path_mtu"]


@pytest.mark.parametrize("case", [*TUNNELS, *DIRECT], ids=lambda case: case.name)
def test_transfers_both_ways_arrive_through_the_smaller_path(peer: KernelPeer, case: Case) -> None:
    for seed, (sent, returned) in enumerate(peer.tcp(peer.flows[case.name], LENGTH).values()):
        assert returned == sent, seed
    drops = peer.drops()
    assert set(drops["card"]) <= {"out_too_big"}
    # The kernel's name for a packet that does not fit its tunnel, of which it tells its sender.
    assert set(drops["kernel"]) <= {"XfrmOutStateModeError"}


@pytest.mark.parametrize("case", [*TUNNELS[:3], *DIRECT], ids=lambda case: case.name)
def test_datagrams_of_every_kind_of_length_arrive_both_ways(peer: KernelPeer, case: Case) -> None:
    """What does not fit once protected goes in pieces, made by the sender, the router, or the card."""
    flow = peer.flows[case.name]
    assert peer.udp(flow, SIZES) == {"host": [], "guest": []}
    for from_guest in (False, True):
        with peer.hearing(flow, at_guest=not from_guest) as hear:
            peer.speak(flow, [BIG], from_guest=from_guest)
            assert hear(1) == [BIG]


def test_card_has_learned_from_the_router(peer: KernelPeer) -> None:
    assert wait_until(lambda: learned(peer) > 0)
