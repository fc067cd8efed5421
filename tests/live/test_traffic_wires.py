"""Every kind of wire carries the same traffic: a link, a veth, a second TAP, and UDP.

link     left ═══════════════════════════ right            in the daemon
netdev   left ── veth end ════ veth end ── right           each end in a namespace of its own
tap      left ── TAP ───────────────────── right           the TAP is the left's wire and the right's device
udp      left ── socket ── veth ── socket ── right         sockets in namespaces; only ESP passes
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from card import CBC, GCM, LEFT, RIGHT, Layer, Pair, running_pair
from traffic import Datagrams, Sniffer, digest, is_sealed, ping, spi_of, tcp

pytestmark = pytest.mark.live

STREAM_BYTES = 2 << 20
PAYLOADS = (0, 1, 17, 1000, 1473, 9000, 65_000)


@pytest.mark.parametrize("wire", ["link", "netdev", "tap"])
def test_wire_carries_protected_and_clear_traffic_of_both_families(tmp_path: Path, wire: str) -> None:
    with running_pair(tmp_path, wire) as pair:
        assert pair.daemon.adapter(RIGHT)["wire"]["kind"] == ("link" if wire == "link" else "netdev")
        assert pair.daemon.adapter(LEFT)["wire"]["kind"] == wire
        before = pair.drops()
        for version, layers in ((4, [Layer(GCM, "tunnel")]), (6, [Layer(CBC, "tunnel")])):
            payload = os.urandom(STREAM_BYTES)
            for protected in (False, True):
                if protected:
                    pair.protect(layers, version)
                assert ping(pair.left, pair.right.addresses[version], count=5) == 5
                assert ping(pair.right, pair.left.addresses[version], size=1200) == 1
                assert tcp(pair.left, pair.right, version, payload) == digest(payload)
                assert tcp(pair.right, pair.left, version, payload, port=5003) == digest(payload)
                with Datagrams(pair.left, pair.right, version) as datagrams:
                    assert datagrams.changed(os.urandom(length) for length in PAYLOADS) == []
        assert pair.drops() == before
        for name in (LEFT, RIGHT):
            statistics = pair.daemon.statistics(name)
            assert statistics["card"]["tx_bypassed"] > 0
            assert statistics["card"]["tx_offloaded"] > 2 * STREAM_BYTES // 1500
            assert statistics["forwarder_errors"] == 0


def test_wire_device_keeps_its_other_traffic(veth_pair: Pair) -> None:
    pair = veth_pair
    left, right = pair.ends
    for end, address in ((left, "172.16.9.1/24"), (right, "172.16.9.2/24")):
        end.namespace.ip("address", "add", address, "dev", end.device)
    pair.protect([Layer(GCM, "tunnel")])
    pair.daemon.vnic("xfrm", "policy", "setdefault", "in", "block", "out", "block")
    done = left.namespace.run("ping", "-n", "-c", "5", "-i", "0.01", "-W", "2", "172.16.9.2")
    assert "5 received" in done.stdout
    with (
        right.namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as server,
        left.namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        server.bind(("172.16.9.2", 5000))
        server.listen(1)
        client.settimeout(3)
        client.connect(("172.16.9.2", 5000))
    assert ping(pair.left, pair.right.addresses[4], count=3) == 3


def test_hosts_on_two_machines_see_one_ethernet(veth_pair: Pair) -> None:
    """The card is a bump in the wire: what leaves it has the hosts' own Ethernet addresses."""
    pair = veth_pair
    macs = [pair.daemon.adapter(name)["tap"]["mac"] for name in (LEFT, RIGHT)]
    sas = pair.protect([Layer(GCM, "tunnel")])
    with Sniffer(pair.ends[0].namespace, pair.ends[0].device) as sniffer:
        assert ping(pair.left, pair.right.addresses[4]) == 1
        sent = sniffer.wait_for(lambda seen: seen.outgoing and is_sealed(seen.frame))
        came = sniffer.wait_for(lambda seen: not seen.outgoing and is_sealed(seen.frame))
    left, right = (bytes.fromhex(mac.replace(":", "")) for mac in macs)
    assert (sent[:6], sent[6:12], spi_of(sent)) == (right, left, sas[LEFT][0].spi)
    assert (came[:6], came[6:12], spi_of(came)) == (left, right, sas[RIGHT][0].spi)


def test_wire_is_changed_in_mid_traffic_and_the_associations_stay(tmp_path: Path) -> None:
    with running_pair(tmp_path, "netdev") as pair:
        pair.protect([Layer(GCM, "tunnel")])
        assert ping(pair.left, pair.right.addresses[4], count=2) == 2
        pair.daemon.batch("adapter set left wire none", "adapter set right wire none")
        assert ping(pair.left, pair.right.addresses[4], wait_s=0.3) == 0
        assert pair.daemon.drops(LEFT)["wire_down"] >= 1
        pair.daemon.vnic("adapter", "set", "right", "wire", "link", "left")
        assert ping(pair.left, pair.right.addresses[4], count=2) == 2


@pytest.mark.parametrize("outer", [4, 6])
def test_udp_wire_carries_protected_traffic_of_both_families_and_nothing_in_clear(
    tmp_path: Path, outer: int
) -> None:
    with running_pair(tmp_path, f"udp{outer}") as pair:
        shown = pair.daemon.adapter(LEFT)["wire"]
        assert shown["kind"] == "udp"
        assert shown["mtu"] == 1492
        assert "wire udp " in pair.daemon.vnic("adapter", "show", LEFT)
        assert ping(pair.left, pair.right.addresses[4], wait_s=0.3) == 0
        assert pair.drops()[LEFT]["wire_not_esp"] > 0
        for version, layers in ((4, [Layer(GCM, "tunnel")]), (6, [Layer(CBC, "tunnel")])):
            payload = os.urandom(STREAM_BYTES)
            with Sniffer(pair.ends[0].namespace, pair.ends[0].device) as sniffer:
                pair.protect(layers, version, outer_version=outer)
                assert ping(pair.left, pair.right.addresses[version], count=5) == 5
                assert tcp(pair.left, pair.right, version, payload) == digest(payload)
                assert tcp(pair.right, pair.left, version, payload, port=5003) == digest(payload)
                with Datagrams(pair.left, pair.right, version) as datagrams:
                    assert datagrams.changed(os.urandom(length) for length in PAYLOADS) == []
            kinds = {kind for kind in sniffer.kinds if kind[1] not in (0, 58)}
            assert kinds == {(0x0800 if outer == 4 else 0x86DD, socket.IPPROTO_UDP)}
        counted = set(pair.drops()[LEFT]) | set(pair.drops()[RIGHT])
        assert counted == {"wire_not_esp"}, "only what the hosts say in clear ends here"


def test_udp_wire_follows_the_path_when_it_grows_narrow(tmp_path: Path) -> None:
    with running_pair(tmp_path, "udp4") as pair:
        pair.protect([Layer(GCM, "tunnel")])
        payload = os.urandom(STREAM_BYTES)
        assert tcp(pair.left, pair.right, 4, payload) == digest(payload)
        for end in pair.ends:
            end.namespace.ip("link", "set", end.device, "mtu", "1400")
        assert tcp(pair.left, pair.right, 4, payload, port=5004) == digest(payload)
        assert pair.daemon.adapter(LEFT)["wire"]["mtu"] == 1392
