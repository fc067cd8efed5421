"""Every mode and layering carries every kind of traffic, and the wire shows the protection alone.

One pair of adapters on a link wire; each test protects it anew. What crossed the wire is read from a capture.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest
from card import AH, CBC, GCM, LEFT, RIGHT, SUITES, Layer, Pair
from traffic import AH_PROTOCOL, ESP_PROTOCOL, Datagrams, captured, digest, outer, ping, tcp

from tests.engines import BOTH_ENGINES

pytestmark = [pytest.mark.live, BOTH_ENGINES]

MARKER = b"clear text!"
STREAM_BYTES = 1 << 20
JUST_BELOW_THE_WRAP = (1 << 32) - 20


class Case(NamedTuple):
    """One way to protect, and what then crosses the wire."""

    name: str
    layers: tuple[Layer, ...]
    """Innermost first."""
    version: int
    outer_version: int
    protocol: int
    """That of the outermost IPsec header."""
    hidden: bool = True
    esn: bool = False


ESP_TUNNEL, ESP_TRANSPORT = Layer(GCM, "tunnel"), Layer(GCM, "transport")
CBC_TUNNEL, CBC_TRANSPORT = Layer(CBC, "tunnel"), Layer(CBC, "transport")
AH_TUNNEL, AH_TRANSPORT = Layer(AH, "tunnel"), Layer(AH, "transport")
GMAC_TRANSPORT = Layer(SUITES["ah-gmac-256"], "transport")

CASES = (
    Case("esp-tunnel", (ESP_TUNNEL,), 4, 4, ESP_PROTOCOL),
    Case("esp-transport", (ESP_TRANSPORT,), 4, 4, ESP_PROTOCOL),
    Case("esp-tunnel-ipv6", (CBC_TUNNEL,), 6, 6, ESP_PROTOCOL),
    Case("esp-transport-ipv6", (CBC_TRANSPORT,), 6, 6, ESP_PROTOCOL),
    Case("ipv6-in-ipv4", (ESP_TUNNEL,), 6, 4, ESP_PROTOCOL),
    Case("ipv4-in-ipv6", (CBC_TUNNEL,), 4, 6, ESP_PROTOCOL),
    Case("ah-tunnel", (AH_TUNNEL,), 4, 4, AH_PROTOCOL, hidden=False),
    Case("ah-transport", (AH_TRANSPORT,), 4, 4, AH_PROTOCOL, hidden=False),
    Case("ah-transport-ipv6", (GMAC_TRANSPORT,), 6, 6, AH_PROTOCOL, hidden=False),
    Case("ah-tunnel-ipv6-in-ipv4", (AH_TUNNEL,), 6, 4, AH_PROTOCOL, hidden=False),
    Case("ah-over-esp-transport", (ESP_TRANSPORT, AH_TRANSPORT), 4, 4, AH_PROTOCOL),
    Case("ah-over-esp-transport-ipv6", (CBC_TRANSPORT, GMAC_TRANSPORT), 6, 6, AH_PROTOCOL),
    Case("ah-over-esp-tunnel", (CBC_TUNNEL, AH_TRANSPORT), 4, 4, AH_PROTOCOL),
    Case("transport-inside-tunnel", (CBC_TRANSPORT, ESP_TUNNEL), 4, 4, ESP_PROTOCOL),
    Case("transport-inside-tunnel-ipv6-in-ipv4", (ESP_TRANSPORT, CBC_TUNNEL), 6, 4, ESP_PROTOCOL),
    Case("four-layers", (ESP_TRANSPORT, AH_TRANSPORT, CBC_TUNNEL, GMAC_TRANSPORT), 4, 6, AH_PROTOCOL),
    Case("esn-gcm-tunnel", (ESP_TUNNEL,), 4, 4, ESP_PROTOCOL, esn=True),
    Case("esn-cbc-transport-ipv6", (CBC_TRANSPORT,), 6, 6, ESP_PROTOCOL, esn=True),
    Case("esn-ah-over-esp", (CBC_TRANSPORT, AH_TRANSPORT), 4, 4, AH_PROTOCOL, esn=True),
)


@pytest.mark.rule(216)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_traffic_of_every_kind_arrives_unchanged_and_only_protected_packets_cross_the_wire(
    clean_pair: Pair, tmp_path: Path, case: Case
) -> None:
    pair, version = clean_pair, case.version
    last_number = JUST_BELOW_THE_WRAP if case.esn else 0
    sas = pair.protect(case.layers, version, case.outer_version, esn=case.esn, last_number=last_number)
    before = pair.drops()
    capture = tmp_path / "wire.pcapng"
    payload = (MARKER + os.urandom(53)) * (STREAM_BYTES // 64)

    with pair.daemon.capture(LEFT, "wire", capture):
        assert ping(pair.left, pair.right.addresses[version], count=3) == 3
        assert ping(pair.right, pair.left.addresses[version], count=3, size=1200) == 3
        assert tcp(pair.left, pair.right, version, payload) == digest(payload)
        with Datagrams(pair.left, pair.right, version) as datagrams:
            assert datagrams.changed(MARKER * count for count in (1, 7, 60, 110)) == []

    assert pair.drops() == before
    headers = [(outer(frame), frame) for frame in captured(capture)]
    sealed = [(header, frame) for header, frame in headers if header and header.protocol == case.protocol]
    assert len(sealed) > STREAM_BYTES // 1500
    assert {header.version for header, _ in sealed} == {case.outer_version}
    hiding = [frame for header, frame in sealed] if case.hidden else []
    clear = [frame for header, frame in headers if not header or header.protocol != case.protocol]
    assert not any(MARKER in frame for frame in clear + hiding)
    states = pair.daemon.sas()
    for sender, receiver in ((LEFT, RIGHT), (RIGHT, LEFT)):
        for sa in sas[sender]:
            out, into = states[sender, sa.spi], states[receiver, sa.spi]
            assert out["packets"] == into["packets"] > 0
            assert out["bytes"] == into["bytes"]
            assert out["sa"]["sequence_number"] == into["sa"]["sequence_number"]
            if case.esn:
                assert out["sa"]["sequence_number"] > 1 << 32
