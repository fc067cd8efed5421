"""Every algorithm that the kernel and the card share carries traffic between them, however it protects.

One guest and one card; all cases are in force at once, each between the host and an address of its own, put
into force by the same lines of `ip xfrm` on both sides. Sequence numbers with ESN begin just below 2^32, so
that every such case wraps.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
from card import AH, AH_SUITES, CBC, ESP_SUITES, GCM, Layer
from kernel_peer import Case, KernelPeer, kernel_peer, missing

pytestmark = [pytest.mark.live, pytest.mark.interop]

KERNEL_AH_SUITES = [suite for suite in AH_SUITES if "gmac" not in suite.name]
"""The kernel has no GMAC in AH."""

BUNDLES = [(GCM, AH), (CBC, AH), *((GCM, suite) for suite in KERNEL_AH_SUITES if suite != AH)]
"""ESP, and AH around it."""


def cases() -> Iterator[Case]:
    for mode, version, esn in product(("transport", "tunnel"), (4, 6), (False, True)):
        tail = f"{mode}-ipv{version}" + ("-esn" if esn else "")
        for suite in (*ESP_SUITES, *KERNEL_AH_SUITES):
            yield Case(f"{suite.name}-{tail}", (Layer(suite, mode),), version, esn)
        for esp, ah in BUNDLES:
            # The mode is that of ESP; AH around it is in transport mode, between the same ends.
            layers = Layer(esp, mode), Layer(ah, "transport")
            yield Case(f"{esp.name}-in-{ah.name}-{tail}", layers, version, esn)
    for suite, mode in product((AH,), ("transport", "tunnel")):
        # RFC 4302 pads AH over IPv4 to 4 bytes, Linux to 8 unless told otherwise.
        yield Case(f"{suite.name}-align4-{mode}-ipv4", (Layer(suite, mode),), 4, flags="align4")
    for suite, version, esn in product((GCM, CBC, AH), (4, 6), (False, True)):
        tail = f"ipv{version}-in-ipv{10 - version}" + ("-esn" if esn else "")
        layers = (Layer(suite, "tunnel"),)
        # Without the flag an SA takes packets of the family of its own addresses alone, in the kernel.
        yield Case(f"{suite.name}-{tail}", layers, version, esn, 10 - version, flags="af-unspec")


CASES = {case.name: case for case in cases()}


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelPeer]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with kernel_peer(tmp_path_factory.mktemp("kernel")) as made:
        made.protect(list(CASES.values()))
        yield made


@pytest.mark.parametrize("name", CASES)
def test_case_carries_ping_udp_and_tcp_from_both_sides(peer: KernelPeer, name: str) -> None:
    flow = peer.flows[name]
    lost = peer.ping(flow, (0, 56, 1001)), peer.udp(flow, (1, 18, 515, 1100))
    assert lost == ({"host": [], "guest": []},) * 2, peer.drops()
    for sent, returned in peer.tcp(flow, 50_021).values():
        assert returned == sent


def test_what_one_side_sealed_the_other_opened_and_neither_dropped_anything(peer: KernelPeer) -> None:
    before = peer.drops()
    for flow in peer.flows.values():
        assert peer.ping(flow) == {"host": [], "guest": []}, flow.case.name
    ours = {spi: sa["packets"] for (_, spi), sa in peer.daemon.sas().items()}
    theirs = {spi: sa.packets for spi, sa in peer.guest.sas().items()}
    assert ours == theirs
    assert set(ours) == {sa.spi for flow in peer.flows.values() for sa in (*flow.forth, *flow.back)}
    assert min(ours.values()) > 0
    assert peer.drops() == before
