"""Payloads of every length from nothing to 65,000 bytes arrive as they were sent, through a tunnel.

Lengths that one packet holds go through byte by byte, so that every padding is met; the long ones are cut
into fragments by the host, of which each is sealed by itself.
"""

from __future__ import annotations

import os
import socket

import pytest
from card import CBC, GCM, LEFT, SUITES, Layer, Pair, Suite
from traffic import Datagrams, ping

pytestmark = pytest.mark.live

UDP_SEGMENT = 103
"""Socket option of linux/udp.h."""

IP_AND_UDP = {4: 28, 6: 48}
LONG = (2_000, 2_961, 4_096, 8_973, 9_000, 16_384, 32_768, 50_001, 65_000)
ECHO_SIZES = (0, 1, 7, 8, 15, 16, 17, 56, 1_000, 1_400, 2_000, 8_000, 30_000, 65_000)


@pytest.mark.parametrize(
    ("suite", "version", "outer_version"),
    [(GCM, 4, 4), (CBC, 4, 6), (SUITES["aes-gcm-256-icv64"], 6, 4), (SUITES["3des-cbc+sha1-96"], 6, 6)],
    ids=["gcm-4-in-4", "cbc-4-in-6", "gcm-short-icv-6-in-4", "3des-6-in-6"],
)
def test_datagrams_of_every_length_come_back_unchanged(
    clean_pair: Pair, suite: Suite, version: int, outer_version: int
) -> None:
    pair = clean_pair
    pair.protect([Layer(suite, "tunnel")], version, outer_version)
    before = pair.drops()
    full = pair.daemon.adapter(LEFT)["tap"]["mtu"] - IP_AND_UDP[version]
    lengths = [*range(70), *range(full - 20, full + 21), *LONG]
    with Datagrams(pair.left, pair.right, version) as datagrams:
        assert datagrams.changed(os.urandom(length) for length in lengths) == []
    assert pair.drops() == before


@pytest.mark.parametrize(
    ("suite", "version"), [(GCM, 4), (CBC, 6), (SUITES["ah-sha256-128"], 4)], ids=["gcm-4", "cbc-6", "ah-4"]
)
def test_echoes_of_every_length_come_back_unchanged(clean_pair: Pair, suite: Suite, version: int) -> None:
    pair = clean_pair
    pair.protect([Layer(suite, "tunnel")], version)
    unanswered = [
        size for size in ECHO_SIZES if ping(pair.left, pair.right.addresses[version], size=size) != 1
    ]
    assert unanswered == []


@pytest.mark.rule(16)
@pytest.mark.parametrize("version", [4, 6])
def test_transport_mode_protects_whole_what_the_host_has_cut(clean_pair: Pair, version: int) -> None:
    """RFC 4303 §3.1.1: transport mode protects whole packets; what the host cut is put together first."""
    pair = clean_pair
    pair.protect([Layer(GCM, "transport")], version)
    full = pair.daemon.adapter(LEFT)["tap"]["mtu"] - IP_AND_UDP[version]
    before, card = pair.drops(), pair.daemon.statistics(LEFT)["card"]
    with Datagrams(pair.left, pair.right, version) as datagrams:
        lengths = (*range(40), full - 1, full, full + 1, 4000, 30_000)
        assert datagrams.changed(os.urandom(length) for length in lengths) == []
    assert pair.drops() == before
    after = pair.daemon.statistics(LEFT)["card"]
    assert [after[name] - card[name] for name in ("tx_reassembled", "tx_software")] == [3, 3]


@pytest.mark.parametrize("mode", ["tunnel", "transport"])
def test_datagrams_handed_over_as_one_superframe_arrive_one_by_one(clean_pair: Pair, mode: str) -> None:
    """UDP_SEGMENT: the host gives the card up to 64 KiB at once, and the card cuts before it seals."""
    pair = clean_pair
    pair.protect([Layer(GCM, mode)])
    payload, size = os.urandom(30_500), 1000
    with Datagrams(pair.left, pair.right, 4) as datagrams:
        left, right = datagrams.ends
        left.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
        left.send(payload)
        parts = [right.recv(2 * size) for _ in range(-(-len(payload) // size))]
    assert [len(part) for part in parts] == [size] * 30 + [500]
    assert b"".join(parts) == payload
