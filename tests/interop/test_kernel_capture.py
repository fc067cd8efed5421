"""tshark, with the keys that the daemon exported, finds every ICV right between the card and a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from card import AH, ESP_SUITES, GCM, Layer
from kernel_peer import CARD, Case, KernelPeer, kernel_peer, missing
from test_tshark_capture import PATTERN, dissect

pytestmark = [pytest.mark.live, pytest.mark.interop]

FAMILIES = 4, 6
SUITES = [suite for suite in ESP_SUITES if "gmac" not in suite.name]
"""tshark has no AES-GMAC in ESP."""

CASES = {
    version: [
        *(
            Case(f"{suite.name}-{mode}-ipv{version}", (Layer(suite, mode),), version)
            for suite, mode in product(SUITES, ("transport", "tunnel"))
        ),
        Case(f"bundle-ipv{version}", (Layer(GCM, "transport"), Layer(AH, "transport")), version),
    ]
    for version in FAMILIES
}


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelPeer]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with kernel_peer(tmp_path_factory.mktemp("kernel")) as made:
        made.protect([case for cases in CASES.values() for case in cases])
        yield made


@pytest.mark.parametrize("version", FAMILIES, ids=["ipv4", "ipv6"])
def test_tshark_opens_what_either_side_sealed(peer: KernelPeer, tmp_path: Path, version: int) -> None:
    flows = [peer.flows[case.name] for case in CASES[version]]
    capture, keys = tmp_path / "wire.pcapng", tmp_path / "esp_sa"
    with peer.daemon.capture(CARD, "wire", capture):
        for flow in flows:
            for from_guest in (True, False):
                with peer.hearing(flow, at_guest=not from_guest) as hear:
                    peer.speak(flow, [PATTERN * 3], from_guest=from_guest)
                    assert hear(1) == [PATTERN * 3], flow.case.name
    peer.daemon.vnic("sa", "export", "wireshark", str(keys), "dev", CARD)
    packets = dissect(capture, keys.read_text(), tmp_path / "config")
    expected = {sa.spi for flow in flows for sa in (flow.forth[0], flow.back[0])}
    assert sorted(one.spi for one in packets) == sorted(expected)
    assert [one for one in packets if not (one.good and one.opened) or one.bad] == []
