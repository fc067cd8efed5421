"""Lifetimes on live frames: what `vnic monitor` hears, and what passes."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from card import GCM, LEFT, RIGHT, Association, Layer, Monitor, Pair
from traffic import Datagrams, Stream, ping, wait_until

pytestmark = pytest.mark.live


def limit(pair: Pair, adapter: str, direction: str, words: str) -> int:
    """Protect both ways, then give one end of what `LEFT` sends its limits; gives the SPI."""
    (sa,) = pair.protect([Layer(GCM, "tunnel")])[LEFT]
    pair.daemon.batch(sa.add(adapter, direction).replace("state add", "state update") + f" {words}")
    return sa.spi


def heard(monitor: Monitor, kind: str, adapter: str, spi: int) -> Any:
    return monitor.wait_for(
        lambda event: event["kind"] == kind and event["adapter"] == adapter and event["sa"]["spi"] == spi
    )


def test_sa_ends_by_the_clock_without_traffic(clean_pair: Pair) -> None:
    pair = clean_pair
    with pair.daemon.monitor() as monitor:
        began = time.monotonic()
        spi = limit(pair, LEFT, "out", "limit time-soft 1 limit time-hard 2")
        assert ping(pair.left, pair.right.addresses[4]) == 1
        assert heard(monitor, "sa_expiring", LEFT, spi)["limit"] == "time-soft"
        assert 0.9 < time.monotonic() - began < 2.0
        assert heard(monitor, "sa_expired", LEFT, spi)["limit"] == "time-hard"
        assert 1.9 < time.monotonic() - began < 3.5
    assert (LEFT, spi) not in pair.daemon.sas()
    before = pair.daemon.drops(LEFT).get("out_no_sa", 0)
    assert ping(pair.left, pair.right.addresses[4], wait_s=0.3) == 0
    assert pair.daemon.drops(LEFT)["out_no_sa"] > before


def test_use_starts_the_clock(clean_pair: Pair) -> None:
    pair = clean_pair
    with pair.daemon.monitor() as monitor:
        spi = limit(pair, RIGHT, "in", "limit time-use-hard 1")
        time.sleep(1.3)
        assert pair.daemon.sas()[RIGHT, spi]["used"] is None
        assert ping(pair.left, pair.right.addresses[4]) == 1
        assert heard(monitor, "sa_expired", RIGHT, spi)["limit"] == "time-use-hard"
    assert ping(pair.left, pair.right.addresses[4], wait_s=0.3) == 0
    assert pair.daemon.drops(RIGHT)["in_no_sa"] >= 1


@pytest.mark.parametrize(("adapter", "direction"), [(LEFT, "out"), (RIGHT, "in")])
def test_packets_and_bytes_end_an_sa_at_the_packet(clean_pair: Pair, adapter: str, direction: str) -> None:
    pair = clean_pair
    with pair.daemon.monitor() as monitor:
        limits = "limit packet-soft 3 limit packet-hard 10 limit byte-hard 10000"
        spi = limit(pair, adapter, direction, limits)
        # 1000 bytes of ICMP data are 1028 of IP: the tenth packet is beyond 10,000 bytes.
        assert ping(pair.left, pair.right.addresses[4], count=12, size=1000, wait_s=0.3) == 9
        assert heard(monitor, "sa_expiring", adapter, spi)["limit"] == "packet-soft"
        assert heard(monitor, "sa_expired", adapter, spi)["limit"] == "byte-hard"
    assert wait_until(lambda: (adapter, spi) not in pair.daemon.sas())
    assert pair.daemon.drops(adapter)["out_sa_expired" if direction == "out" else "in_sa_expired"] >= 1


def test_new_keys_in_the_order_of_the_guide_cost_no_packet(clean_pair: Pair) -> None:
    pair = clean_pair
    old = {sender: sas[0] for sender, sas in pair.protect([Layer(GCM, "tunnel")]).items()}
    receivers = {LEFT: RIGHT, RIGHT: LEFT}
    before = pair.drops()
    with (
        Stream(pair.left, pair.right, b"marker of new keys") as stream,
        Datagrams(pair.left, pair.right, 4) as datagrams,
    ):
        for _ in range(20):
            new = {
                sender: Association(sa.suite, sa.mode, sa.source, sa.destination, reqid=sa.reqid)
                for sender, sa in old.items()
            }
            pair.daemon.batch(*(sa.add(receivers[sender], "in") for sender, sa in new.items()))
            pair.daemon.batch(*(sa.add(sender, "out") for sender, sa in new.items()))
            assert datagrams.changed([os.urandom(1000)] * 20) == []
            # Nothing that the old ones sealed is on the way any more.
            pair.daemon.batch(*(sa.delete(name) for sa in old.values() for name in (LEFT, RIGHT)))
            old = new
        assert stream.flows()
        assert not stream.wrong
    assert pair.drops() == before
    for sender, receiver in receivers.items():
        shown = pair.daemon.sas()
        sealed, opened = (shown[one, old[sender].spi]["packets"] for one in (sender, receiver))
        assert sealed == opened > 0
