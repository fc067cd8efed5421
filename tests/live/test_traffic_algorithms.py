"""Every algorithm of both offload versions carries traffic, in both modes and over both families.

One pair of adapters; per test each way to protect has an address of its own on the right host, so that all of
them are in force at once:

    left 10.9.0.1 ══ link ══ right 10.9.0.2, and 10.9.1.1 (des-cbc+md5-96), 10.9.1.2 (des-cbc+sha1-96) …
"""

from __future__ import annotations

import pytest
from card import HOST_LENGTH, LEFT, OUTER_ADDRESSES, RIGHT, SUITES, Layer, Pair, associations, policy
from traffic import ping

pytestmark = pytest.mark.live

PREFIXES = {4: "10.9.1.", 6: "fd09:1::"}
NETWORKS = {4: "10.9.1.0/24", 6: "fd09:1::/64"}


@pytest.mark.parametrize(
    ("mode", "version"), [("transport", 4), ("transport", 6), ("tunnel", 4), ("tunnel", 6)]
)
def test_every_algorithm_carries_pings_both_ways_and_counts_them(
    clean_pair: Pair, mode: str, version: int
) -> None:
    pair = clean_pair
    near = pair.left.addresses[version]
    addresses = {
        suite: f"{PREFIXES[version]}{number:x}" if version == 6 else f"{PREFIXES[version]}{number}"
        for number, suite in enumerate(SUITES.values(), 1)
    }
    pair.left.namespace.ip(
        "route", "replace", NETWORKS[version], "via", pair.right.addresses[version], "dev", pair.left.device
    )
    lines, sas = [], []
    for suite, far in addresses.items():
        pair.right.namespace.ip(
            "address", "replace", f"{far}/{HOST_LENGTH[version]}", "dev", pair.right.device
        )
        for sender, receiver, source, destination in ((LEFT, RIGHT, near, far), (RIGHT, LEFT, far, near)):
            outer = OUTER_ADDRESSES[sender][version], OUTER_ADDRESSES[receiver][version]
            made = associations([Layer(suite, mode)], source, destination, *outer)
            for adapter, direction in ((receiver, "in"), (sender, "out")):
                lines += [made[0].add(adapter, direction)]
                lines += [policy(adapter, direction, source, destination, made)]
            sas.append((sender, receiver, made[0]))
    pair.daemon.batch(*lines)
    before = pair.drops()

    silent = []
    for suite, far in addresses.items():
        if ping(pair.left, far) != 1:
            silent.append(f"{suite.name} from the left")
        if ping(pair.right, near, source=far) != 1:
            silent.append(f"{suite.name} from the right")
    assert silent == []
    assert pair.drops() == before
    states = pair.daemon.sas()
    counts = {
        sa.suite.name: (states[sender, sa.spi]["packets"], states[receiver, sa.spi]["packets"])
        for sender, receiver, sa in sas
    }
    # A request and a reply, each sealed by one end and opened by the other.
    assert counts == {suite.name: (2, 2) for suite in addresses}


def test_weak_algorithms_work_and_are_called_weak(clean_pair: Pair) -> None:
    pair = clean_pair
    sas = pair.protect([Layer(SUITES["des-cbc+md5-96"], "tunnel")])
    assert ping(pair.left, pair.right.addresses[4]) == 1
    weak = pair.daemon.sas()[LEFT, sas[LEFT][0].spi]["weak"]
    assert [reason.partition(":")[0] for reason in weak] == ["des-cbc", "hmac-md5-96"]
    assert "weak: des-cbc" in pair.daemon.vnic("sa", "show", "dev", LEFT)
