"""Peers that are not ours open what the card sealed on a live wire, and the card opens what they sealed.

For every algorithm, both protocols, both modes, IPv4 and IPv6, and what can be layered of them: scapy where
it is right, and the RFCs written down a second time for all of it (`oracles`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from card import AH, CBC, GCM, SUITES, Layer, associations
from oracles import Oracle, Scapy, Textbook, scapy_errs
from wire_peer import Case, WirePeer, wire_peer

pytestmark = [pytest.mark.live, pytest.mark.interop]

LENGTHS = (0, 1, 2, 3, 5, 8, 13, 15, 16, 17, 100, 1200)

SINGLE = [
    Case(f"{suite.name}-{mode}-ipv{version}", (Layer(suite, mode),), version, version)
    for suite in SUITES.values()
    for mode in ("transport", "tunnel")
    for version in (4, 6)
]
GMAC = SUITES["ah-gmac-128"]
NULL = SUITES["null+sha256-128"]
ESP_GMAC = SUITES["null+gmac-256"]
LAYERED = [
    Case("ipv6-in-ipv4", (Layer(GCM, "tunnel"),), 6, 4),
    Case("ipv4-in-ipv6", (Layer(CBC, "tunnel"),), 4, 6),
    Case("ah-ipv6-in-ipv4", (Layer(AH, "tunnel"),), 6, 4),
    Case("ah-ipv4-in-ipv6", (Layer(AH, "tunnel"),), 4, 6),
    Case("ah-over-esp", (Layer(GCM, "transport"), Layer(AH, "transport")), 4, 4),
    Case("ah-over-esp-ipv6", (Layer(CBC, "transport"), Layer(GMAC, "transport")), 6, 6),
    Case("ah-over-esp-tunnel", (Layer(CBC, "tunnel"), Layer(AH, "transport")), 4, 4),
    Case("transport-inside-tunnel", (Layer(CBC, "transport"), Layer(GCM, "tunnel")), 4, 4),
    Case("transport-inside-tunnel-ipv6", (Layer(GCM, "transport"), Layer(NULL, "tunnel")), 6, 6),
    Case("ah-inside-tunnel", (Layer(AH, "transport"), Layer(GCM, "tunnel")), 4, 6),
    Case(
        "ah-over-esp-inside-ah-over-esp-tunnel",
        (Layer(GCM, "transport"), Layer(AH, "transport"), Layer(CBC, "tunnel"), Layer(GMAC, "transport")),
        6,
        4,
    ),
]
EXTENDED = [
    Case(f"esn-{suite.name}-{mode}", (Layer(suite, mode),), version, version, esn=True)
    for suite, mode, version in (
        (GCM, "tunnel", 4),
        (SUITES["aes-gcm-256-icv64"], "transport", 6),
        (CBC, "transport", 4),
        (ESP_GMAC, "tunnel", 6),
        (AH, "transport", 4),
        (AH, "tunnel", 6),
        (GMAC, "transport", 4),
    )
]
CASES = [*SINGLE, *LAYERED, *EXTENDED]
ALIGN4 = Case("ah-align4", (Layer(AH, "transport"),), 4, 4, flags="align4")


def scapy_knows(case: Case) -> bool:
    """Whether scapy can be asked about a case, both ways."""
    sas = associations(case.layers, "192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.2")
    return not scapy_errs(sas, sealing=True)


def scapy_opens(case: Case) -> bool:
    """Whether scapy can at least open packets of a case."""
    sas = associations(case.layers, "192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.2")
    return not scapy_errs(sas, sealing=False)


@pytest.fixture(scope="module")
def peer(workspace: Path) -> Iterator[WirePeer]:
    with wire_peer(workspace, [*CASES, ALIGN4]) as made:
        yield made


@pytest.fixture(scope="module")
def textbook() -> Textbook:
    return Textbook()


def converse(peer: WirePeer, case: Case, oracle: Oracle) -> None:
    for length in LENGTHS:
        peer.exchange(case.name, oracle, os.urandom(length))


@pytest.mark.parametrize("case", [case for case in CASES if scapy_knows(case)], ids=lambda case: case.name)
def test_scapy_opens_what_the_card_sealed_and_the_card_opens_what_scapy_sealed(
    peer: WirePeer, case: Case
) -> None:
    converse(peer, case, Scapy())


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if scapy_opens(case) and not scapy_knows(case)],
    ids=lambda case: case.name,
)
def test_scapy_opens_what_the_card_sealed_where_scapy_seals_wrong(peer: WirePeer, case: Case) -> None:
    for length in LENGTHS:
        peer.hear(peer.flows[case.name], Scapy(), os.urandom(length))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_textbook_opens_what_the_card_sealed_and_the_card_opens_what_it_sealed(
    peer: WirePeer, textbook: Textbook, case: Case
) -> None:
    converse(peer, case, textbook)


def test_card_aligns_ah_over_ipv4_as_told_and_takes_either(peer: WirePeer) -> None:
    """8 bytes as Linux does, or with `flag align4` the 4 of RFC 4302 §2.2."""
    narrow, wide = Textbook(ah_alignment=4), Textbook(ah_alignment=8)
    for flow, sends in (
        (peer.flows["ah-sha256-128-transport-ipv4"], wide),
        (peer.flows[ALIGN4.name], narrow),
    ):
        peer.hear(flow, sends, b"aligned")
        for takes in (narrow, wide):
            peer.answer(flow, takes, b"aligned")


def test_nothing_was_dropped_on_the_way(peer: WirePeer) -> None:
    assert peer.drops() == {}
