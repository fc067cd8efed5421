"""Every algorithm of both offload versions carries traffic, in both modes and over both families.

One pair of adapters; per test each way to protect has an address of its own on the right host, so that all of
them are in force at once:

    left 10.9.0.1 ══ link ══ right 10.9.0.2, and 10.9.1.1 (des-cbc+md5-96), 10.9.1.2 (des-cbc+sha1-96) …
"""

from __future__ import annotations

import pytest
from card import LEFT, RIGHT, SUITES, Layer, Pair
from traffic import ping

from tests.engines import BOTH_ENGINES

pytestmark = [pytest.mark.live, BOTH_ENGINES]


@pytest.mark.rule(216, 217)
@pytest.mark.parametrize(
    ("mode", "version"), [("transport", 4), ("transport", 6), ("tunnel", 4), ("tunnel", 6)]
)
def test_every_algorithm_carries_pings_both_ways_and_counts_them(
    clean_pair: Pair, mode: str, version: int
) -> None:
    pair = clean_pair
    lanes = pair.protect_side_by_side((suite, mode, version) for suite in SUITES.values())
    before = pair.drops()
    silent = []
    for lane in lanes:
        if ping(pair.left, lane.far) != 1:
            silent.append(f"{lane.forth.suite.name} from the left")
        if ping(pair.right, pair.left.addresses[version], source=lane.far) != 1:
            silent.append(f"{lane.forth.suite.name} from the right")
    assert silent == []
    assert pair.drops() == before
    states = pair.daemon.sas()
    counts = {
        (lane.forth.suite.name, sender): (
            states[sender, sa.spi]["packets"],
            states[receiver, sa.spi]["packets"],
        )
        for lane in lanes
        for sender, receiver, sa in ((LEFT, RIGHT, lane.forth), (RIGHT, LEFT, lane.back))
    }
    # A request and a reply, each sealed by one end and opened by the other.
    assert counts == {(name, sender): (2, 2) for name in SUITES for sender in (LEFT, RIGHT)}


def test_weak_algorithms_work_and_are_called_weak(clean_pair: Pair) -> None:
    pair = clean_pair
    sas = pair.protect([Layer(SUITES["des-cbc+md5-96"], "tunnel")])
    assert ping(pair.left, pair.right.addresses[4]) == 1
    weak = pair.daemon.sas()[LEFT, sas[LEFT][0].spi]["weak"]
    assert [reason.partition(":")[0] for reason in weak] == ["des-cbc", "hmac-md5-96"]
    assert "weak: des-cbc" in pair.daemon.vnic("-s", "sa", "show", "dev", LEFT)
