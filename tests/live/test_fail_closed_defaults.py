"""What no policy names passes, as in the kernel, until the default blocks it; finding neighbours goes on."""

from __future__ import annotations

import socket

import pytest
from card import GCM, LEFT, RIGHT, Layer, Pair
from traffic import Datagrams, Sniffer, forget_neighbours, is_sealed, outer, ping

pytestmark = pytest.mark.live

EXPERIMENT = 0x88B5
"""IEEE Std 802 local experimental EtherType 1: neither IP nor ARP."""

ICMPV6 = 58


def finds_neighbours(frame: bytes) -> bool:
    """Whether a frame is ARP or neighbour discovery (ICMPv6 types 133 to 137)."""
    if frame[12:14] == b"\x08\x06":
        return True
    header = outer(frame)
    return header is not None and header.protocol == ICMPV6 and frame[header.offset] in range(133, 138)


def neighbour(pair: Pair, version: int) -> str:
    """What the left host knows of the right one."""
    done = pair.left.namespace.ip("neighbour", "show", pair.right.addresses[version], "dev", pair.left.device)
    return done.stdout


@pytest.mark.parametrize("version", [4, 6])
def test_clear_traffic_passes_until_the_default_blocks_it_and_neighbours_are_found_all_the_same(
    veth_pair: Pair, version: int
) -> None:
    pair, far = veth_pair, veth_pair.right.addresses[version]
    assert ping(pair.left, far, count=2) == 2
    pair.daemon.vnic("xfrm", "policy", "setdefault", "out", "block", "dev", LEFT)
    forget_neighbours(*pair.hosts)
    with Sniffer(pair.ends[0].namespace, pair.ends[0].device) as sniffer:
        assert ping(pair.left, far, count=2, wait_s=0.3) == 0
        assert pair.right.addresses[version] in neighbour(pair, version)
        assert "lladdr" in neighbour(pair, version)
        sniffer.settle()
    assert [frame for frame, outgoing in sniffer.frames if outgoing and not finds_neighbours(frame)] == []
    assert pair.daemon.drops(LEFT)["out_policy_discard"] >= 2

    pair.daemon.vnic("xfrm", "policy", "setdefault", "out", "accept", "dev", LEFT)
    assert ping(pair.left, far, count=2) == 2
    pair.daemon.vnic("xfrm", "policy", "setdefault", "in", "block", "dev", RIGHT)
    assert ping(pair.left, far, count=2, wait_s=0.3) == 0
    assert pair.daemon.drops(RIGHT)["in_policy_discard"] >= 2


def test_protected_traffic_passes_while_all_else_is_blocked(clean_pair: Pair) -> None:
    pair = clean_pair
    pair.protect([Layer(GCM, "tunnel")])
    pair.daemon.vnic("xfrm", "policy", "setdefault", "in", "block", "out", "block")
    try:
        assert ping(pair.left, pair.right.addresses[4], count=3) == 3
        assert ping(pair.left, pair.right.addresses[6], wait_s=0.3) == 0
        defaults = pair.daemon.json("xfrm", "policy", "getdefault")
        assert {(one["adapter"], one["inbound"], one["outbound"]) for one in defaults} == {
            (LEFT, "block", "block"),
            (RIGHT, "block", "block"),
        }
    finally:
        pair.daemon.vnic("xfrm", "policy", "setdefault", "in", "accept", "out", "accept")
    assert ping(pair.left, pair.right.addresses[6]) == 1


def test_clear_packet_of_a_protected_flow_is_refused(veth_pair: Pair) -> None:
    """What should come protected and comes in clear does not reach the host."""
    pair = veth_pair
    pair.protect([Layer(GCM, "tunnel")])
    clear = bytearray()
    with Datagrams(pair.left, pair.right, 4) as datagrams:
        assert datagrams.changed([b"sealed"]) == []
        # The same datagram, as the left host would send it without a card.
        pair.daemon.batch(f"xfrm policy flush dev {LEFT}")
        before = pair.daemon.drops(RIGHT).get("in_policy_mismatch", 0)
        datagrams.ends[1].settimeout(0.3)
        with Sniffer(pair.ends[0].namespace, pair.ends[0].device) as sniffer:
            datagrams.ends[0].send(b"in clear")
            clear += sniffer.wait_for(lambda seen: b"in clear" in seen.frame)
            with pytest.raises(TimeoutError):
                datagrams.ends[1].recv(100)
    assert not is_sealed(bytes(clear))
    assert pair.daemon.drops(RIGHT)["in_policy_mismatch"] == before + 1


@pytest.mark.parametrize(("adapter", "reason"), [(LEFT, "out_non_ip"), (RIGHT, "in_non_ip")])
def test_frames_that_are_not_ip_pass_or_drop_by_the_setting(
    clean_pair: Pair, adapter: str, reason: str
) -> None:
    pair = clean_pair
    macs = [bytes.fromhex(pair.daemon.adapter(name)["tap"]["mac"].replace(":", "")) for name in (RIGHT, LEFT)]
    frame = b"".join(macs) + EXPERIMENT.to_bytes(2, "big") + b"neither IP nor ARP".ljust(46, b".")
    with (
        pair.left.namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender,
        pair.right.namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(EXPERIMENT)) as receiver,
    ):
        sender.bind((pair.left.device, 0))
        receiver.settimeout(2)
        sender.send(frame)
        assert receiver.recv(100) == frame
        pair.daemon.vnic("adapter", "set", adapter, "nonip", "drop")
        try:
            sender.send(frame)
            receiver.settimeout(0.3)
            with pytest.raises(TimeoutError):
                receiver.recv(100)
            assert pair.daemon.drops(adapter)[reason] == 1
            forget_neighbours(*pair.hosts)
            assert ping(pair.left, pair.right.addresses[4]) == 1
        finally:
            pair.daemon.vnic("adapter", "set", adapter, "nonip", "pass")
        sender.send(frame)
        receiver.settimeout(2)
        assert receiver.recv(100) == frame
