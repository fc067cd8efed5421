"""Associations that come, go and run out under load: nothing leaves in clear, and what can go on goes on.

The wire is a veth; a socket of the test's own looks at every frame on it for the bytes the hosts exchange.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from card import AH, CBC, GCM, LEFT, RIGHT, Association, Layer, Pair
from traffic import Datagrams, Sniffer, Stream, is_sealed, ping, wait_until

pytestmark = pytest.mark.live

LAST_NUMBER = 0xFFFFFFFF


@contextmanager
def watched(pair: Pair, marker: bytes) -> Iterator[Sniffer]:
    """Look for a marker on the wire; first show that the look would find it."""
    end = pair.ends[0]
    with (
        Sniffer(end.namespace, end.device, marker=marker, keep=64) as sniffer,
        Datagrams(pair.left, pair.right, 4) as datagrams,
    ):
        assert datagrams.changed([marker]) == []
        assert wait_until(lambda: len(sniffer.marked) == 2), "without a policy the wire carries clear text"
    with Sniffer(end.namespace, end.device, marker=marker, keep=64) as sniffer:
        yield sniffer


def renewed(old: Association) -> Association:
    """The successor of an association: another SPI, other keys, the same reqid."""
    return Association(old.suite, old.mode, old.source, old.destination, reqid=old.reqid)


@pytest.mark.parametrize(
    "layers",
    [[Layer(GCM, "tunnel")], [Layer(CBC, "transport")], [Layer(GCM, "transport"), Layer(AH, "transport")]],
    ids=["gcm-tunnel", "cbc-transport", "ah-over-esp"],
)
def test_stream_stops_with_its_association_shows_nothing_and_goes_on_with_the_next(
    veth_pair: Pair, layers: list[Layer]
) -> None:
    pair, marker = veth_pair, secrets.token_bytes(16)
    with watched(pair, marker) as wire:
        old = pair.protect(layers)[LEFT][0]
        with Stream(pair.left, pair.right, marker) as stream:
            assert stream.flows()
            pair.daemon.batch(old.delete(LEFT))
            assert stream.stands_still(1.0)
            assert pair.daemon.drops(LEFT)["out_no_sa"] > 0
            sealed = wire.kinds.copy()
            assert wire.marked == []

            new = renewed(old)
            pair.daemon.batch(old.delete(RIGHT), new.add(RIGHT, "in"), new.add(LEFT, "out"))
            assert stream.flows()
            assert not stream.wrong
        wire.settle()
    assert wire.marked == []
    assert sum(wire.kinds.values()) > sum(sealed.values())
    assert pair.daemon.sas()[RIGHT, new.spi]["packets"] > 0


def test_receiver_that_lost_its_association_counts_the_packets_and_hears_none(veth_pair: Pair) -> None:
    pair, marker = veth_pair, secrets.token_bytes(16)
    with watched(pair, marker) as wire:
        sa = pair.protect([Layer(GCM, "tunnel")])[LEFT][0]
        with Stream(pair.left, pair.right, marker) as stream:
            assert stream.flows()
            pair.daemon.batch(sa.delete(RIGHT))
            assert stream.stands_still(0.5)
            drops = pair.daemon.drops(RIGHT)
            assert drops.pop("in_no_sa") > 0
            assert not any(drops.values())
    assert wire.marked == []


def test_new_association_beside_the_old_one_loses_no_packet(veth_pair: Pair) -> None:
    """Rekeying as key managers do it: receiver first, then sender, and the old one goes last."""
    pair, marker = veth_pair, secrets.token_bytes(16)
    with watched(pair, marker) as wire:
        current = pair.protect([Layer(GCM, "tunnel")])[LEFT][0]
        before = pair.drops()
        with Stream(pair.left, pair.right, marker) as stream:
            assert stream.flows()
            for _ in range(5):
                new = renewed(current)
                pair.daemon.batch(new.add(RIGHT, "in"), new.add(LEFT, "out"), current.delete(LEFT))
                assert stream.flows()
                pair.daemon.batch(current.delete(RIGHT))
                current = new
            assert not stream.wrong
        assert pair.drops() == before
    assert wire.marked == []


def test_policy_deleted_and_added_under_load_never_meets_a_half_way_state(veth_pair: Pair) -> None:
    """With a default that blocks, not even the moment without a policy lets anything out in clear."""
    pair, marker = veth_pair, secrets.token_bytes(16)
    with watched(pair, marker) as wire:
        pair.protect([Layer(GCM, "tunnel")])
        pair.daemon.vnic("xfrm", "policy", "setdefault", "in", "block", "out", "block")
        selector = f"src {pair.left.addresses[4]} dst {pair.right.addresses[4]} dir out"
        shown = pair.daemon.json("policy", "show", "dev", LEFT, "out")
        (template,) = shown[0]["policy"]["templates"]
        line = (
            f"xfrm policy add {selector} tmpl src {template['src']} dst {template['dst']} proto esp "
            f"reqid {template['reqid']} mode tunnel dev {LEFT}"
        )
        with Stream(pair.left, pair.right, marker) as stream:
            assert stream.flows()
            for _ in range(3):
                pair.daemon.batch(f"xfrm policy delete {selector} dev {LEFT}")
                assert stream.stands_still(0.2)
                pair.daemon.batch(line)
                assert stream.flows()
            assert not stream.wrong
    assert wire.marked == []


@pytest.mark.parametrize("mode", ["tunnel", "transport"])
def test_sending_stops_behind_the_last_sequence_number_and_says_so(veth_pair: Pair, mode: str) -> None:
    pair, far = veth_pair, veth_pair.right.addresses[4]
    old = pair.protect([Layer(GCM, mode)])[LEFT][0]
    worn = replace(renewed(old), last_number=LAST_NUMBER - 5)
    end = pair.ends[0]
    with pair.daemon.monitor() as monitor, Sniffer(end.namespace, end.device) as wire:
        # The receiver has seen none of it yet, so that its window is not in the way.
        pair.daemon.batch(
            replace(worn, last_number=0).add(RIGHT, "in"), worn.add(LEFT, "out"), old.delete(LEFT)
        )
        assert ping(pair.left, far, count=9, wait_s=0.3) == 5
        assert len([one for one in wire.frames if one.outgoing and is_sealed(one.frame)]) == 5
        event = monitor.wait_for(lambda event: event["kind"] == "sequence_exhausted")
        assert (event["adapter"], event["sa"]["spi"]) == (LEFT, worn.spi)
        drop = monitor.wait_for(lambda event: event["kind"] == "drop")
        assert drop["drop"]["name"] == "out_sequence_exhausted"
        assert pair.daemon.drops(LEFT)["out_sequence_exhausted"] == 4
        state = pair.daemon.sas()[LEFT, worn.spi]
        assert state["sa"]["sequence_number"] == LAST_NUMBER
        assert state["packets"] == 5

        fresh = renewed(worn)
        pair.daemon.batch(fresh.add(RIGHT, "in"), fresh.add(LEFT, "out"))
        assert ping(pair.left, far, count=2) == 2
    clear = [one for one in wire.frames if one.outgoing and one.frame[12:14] == b"\x08\x00"]
    assert all(is_sealed(one.frame) for one in clear)


def test_refused_association_leaves_the_stream_as_it_is(veth_pair: Pair) -> None:
    """A duplicate, and a key and salt in use: refused, and nothing changes under the traffic."""
    pair = veth_pair
    sa = pair.protect([Layer(GCM, "tunnel")])[LEFT][0]
    with Stream(pair.left, pair.right, b"0123456789abcdef") as stream:
        assert stream.flows()
        same_key = replace(sa, number=sa.number + 0x10000)
        for line in (sa.add(LEFT, "out"), same_key.add(LEFT, "out")):
            with pytest.raises(AssertionError) as refused:
                pair.daemon.batch(line)
            assert refused.value.exit_code == 2  # type: ignore[attr-defined]
            assert sa.keys[0].hex() not in str(refused.value)
        assert stream.flows()
    assert {spi for adapter, spi in pair.daemon.sas() if adapter == LEFT} >= {sa.spi}
    assert (LEFT, same_key.spi) not in pair.daemon.sas()
