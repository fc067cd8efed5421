"""The TAP's MTU follows the wire and the policies, so that what the host sends fits when it is protected."""

from __future__ import annotations

import json
import os

import pytest
from card import AH, CBC, GCM, LEFT, RIGHT, Layer, Pair
from traffic import Sniffer, digest, is_sealed, ping, tcp, wait_until

pytestmark = pytest.mark.live

WIRE_MTU = 1500
IP_AND_ICMP = 28
ETHERNET = 14


def mtu_of(pair: Pair) -> int:
    """MTU of the left TAP, as the host sees it."""
    (link,) = json.loads(pair.left.namespace.ip("-j", "link", "show", "dev", pair.left.device).stdout)
    return int(link["mtu"])


@pytest.mark.parametrize(
    ("layers", "version", "outer_version", "expected"),
    [
        # 1500 - outer IPv4 20 - ESP 8 - IV 8 - ICV 16 = 1448, of which 2 are pad length and next header.
        ((Layer(GCM, "tunnel"),), 4, 4, 1446),
        # 1500 - outer IPv6 40 - 32 = 1428, less 2.
        ((Layer(GCM, "tunnel"),), 4, 6, 1426),
        # 1500 - IP 20 - 32 = 1448, less 2, and the packet's own 20 again.
        ((Layer(GCM, "transport"),), 4, 4, 1466),
        # 1500 - 20 - ESP 8 - IV 16 - ICV 16 = 1440, 90 blocks of 16, less 2.
        ((Layer(CBC, "tunnel"),), 4, 4, 1438),
        # 1500 - 20 - AH (12 + 16, padded to 32) = 1448.
        ((Layer(AH, "tunnel"),), 4, 4, 1448),
        # 1500 - 20 - AH 32 = 1448, - ESP 8 - IV 16 - ICV 16 = 1408, 88 blocks of 16, less 2.
        ((Layer(CBC, "tunnel"), Layer(AH, "transport")), 4, 4, 1406),
        # 1500 - 40 - 8 - 16 - 16 = 1420, 88 whole blocks of 16 are 1408, less 2.
        ((Layer(CBC, "tunnel"),), 6, 6, 1406),
    ],
    ids=["gcm-tunnel", "gcm-tunnel-in-ipv6", "gcm-transport", "cbc", "ah", "ah-over-esp", "cbc-ipv6"],
)
def test_mtu_leaves_room_for_the_protection_and_comes_back_with_its_end(
    clean_pair: Pair, layers: tuple[Layer, ...], version: int, outer_version: int, expected: int
) -> None:
    pair = clean_pair
    assert wait_until(lambda: mtu_of(pair) == WIRE_MTU)
    pair.protect(layers, version, outer_version)
    assert wait_until(lambda: mtu_of(pair) == expected)
    state = pair.daemon.adapter(LEFT)["tap"]
    assert (state["mtu"], state["mtu_default"]) == (expected, True)
    pair.unprotect()
    assert wait_until(lambda: mtu_of(pair) == WIRE_MTU)


def test_fullest_packet_fits_the_wire_and_the_host_is_refused_one_byte_more(veth_pair: Pair) -> None:
    pair, far = veth_pair, veth_pair.right.addresses[4]
    pair.protect([Layer(CBC, "tunnel")])
    assert wait_until(lambda: mtu_of(pair) == 1438)
    size = 1438 - IP_AND_ICMP
    with Sniffer(pair.ends[0].namespace, pair.ends[0].device) as sniffer:
        done = pair.left.namespace.run("ping", "-n", "-c", "1", "-W", "2", "-M", "do", "-s", str(size), far)
        assert "1 received" in done.stdout
        lengths = [len(frame) for frame, _ in sniffer.frames if is_sealed(frame)]
    assert max(lengths) == WIRE_MTU + ETHERNET
    more = pair.left.namespace.run(
        "ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", str(size + 1), far, check=False
    )
    assert "message too long" in (more.stdout + more.stderr).lower()
    assert pair.drops().get(LEFT, {}).get("out_too_big", 0) == 0


def test_mtu_that_was_set_stays_until_the_default_is_asked_for(clean_pair: Pair) -> None:
    pair = clean_pair
    pair.daemon.vnic("adapter", "set", LEFT, "mtu", "1300")
    assert mtu_of(pair) == 1300
    pair.protect([Layer(GCM, "tunnel")])
    assert ping(pair.left, pair.right.addresses[4], size=4000) == 1
    assert mtu_of(pair) == 1300
    assert pair.daemon.adapter(LEFT)["tap"]["mtu_default"] is False
    pair.daemon.vnic("adapter", "set", LEFT, "mtu", "default")
    assert mtu_of(pair) == 1446


def test_jumbo_wire_carries_jumbo_packets(veth_pair: Pair) -> None:
    """A card that is plugged in anew takes over the MTU of its wire."""
    pair = veth_pair
    pair.protect([Layer(GCM, "tunnel")])
    for end in pair.ends:
        end.namespace.ip("link", "set", end.device, "mtu", "9000")
    for name in (LEFT, RIGHT):
        pair.daemon.vnic("adapter", "set", name, "wire", "none")
    for name, wire in zip((LEFT, RIGHT), pair.wires, strict=True):
        pair.daemon.vnic("adapter", "set", name, "wire", *wire.split())
    # 9000 - 20 - 8 - 8 - 16 = 8948, less 2.
    assert mtu_of(pair) == 8946
    with Sniffer(pair.ends[0].namespace, pair.ends[0].device) as sniffer:
        assert ping(pair.left, pair.right.addresses[4], size=8946 - IP_AND_ICMP, count=2) == 2
        lengths = {len(frame) for frame, _ in sniffer.frames if is_sealed(frame)}
    assert lengths == {9000 + ETHERNET}
    payload = os.urandom(1 << 20)
    assert tcp(pair.left, pair.right, 4, payload) == digest(payload)


def test_packets_too_big_for_the_wire_once_protected_end_counted_and_not_in_clear(clean_pair: Pair) -> None:
    pair = clean_pair
    pair.daemon.vnic("adapter", "set", LEFT, "mtu", "1500")
    pair.protect([Layer(GCM, "tunnel")])
    try:
        assert ping(pair.left, pair.right.addresses[4], size=1460, wait_s=0.3) == 0
        assert pair.daemon.drops(LEFT)["out_too_big"] == 1
        # The hosts say other things in clear at any time (MLD, ARP); of this packet nothing came, sealed or
        # not: an echo request in clear would not be what the far policy wants.
        assert all(one["packets"] == 0 for one in pair.daemon.sas().values())
        assert "in_policy_mismatch" not in pair.drops().get(RIGHT, {})
    finally:
        pair.daemon.vnic("adapter", "set", LEFT, "mtu", "default")


@pytest.mark.parametrize("version", [4, 6])
def test_host_learns_from_the_card_what_fits_and_big_transfers_go_on(clean_pair: Pair, version: int) -> None:
    """The kernel of the host takes the card's ICMP for true, whatever MTU was set on the TAP."""
    pair = clean_pair
    pair.daemon.vnic("adapter", "set", LEFT, "mtu", "1500")
    pair.daemon.vnic("adapter", "set", RIGHT, "mtu", "1500")
    pair.protect([Layer(GCM, "tunnel")], version, version)
    try:
        far = pair.right.addresses[version]
        asked = ("ping", "-n", "-c", "2", "-i", "0.3", "-W", "1", "-M", "do", "-s", "1440", far)
        said = pair.left.namespace.run(*asked, check=False)
        text = (said.stdout + said.stderr).lower()
        assert "mtu" in text
        assert str(1446 if version == 4 else 1426) in text
        assert pair.daemon.statistics(LEFT)["card"]["tx_too_big_answered"] >= 1
        payload = os.urandom(1 << 20)
        assert tcp(pair.left, pair.right, version, payload) == digest(payload)
    finally:
        pair.daemon.vnic("adapter", "set", LEFT, "mtu", "default")
        pair.daemon.vnic("adapter", "set", RIGHT, "mtu", "default")
