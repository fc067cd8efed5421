"""What is long, and what is cut into pieces, between the card and a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
from card import AH, CBC, GCM, Layer
from kernel_guest import random_bytes
from kernel_peer import PORT, Case, KernelPeer, kernel_peer, missing
from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.packet import Raw

pytestmark = [pytest.mark.live, pytest.mark.interop]

MODES = "transport", "tunnel"
FAMILIES = 4, 6
LENGTH = 3 << 20
"""Of a transfer; it goes to and fro, begun by either side."""

WAYS = {"gcm": (GCM,), "cbc": (CBC,), "ah": (AH,), "gcm-in-ah": (GCM, AH)}

TRANSFERS = [
    Case(
        f"{name}-{mode}-ipv{version}",
        tuple(Layer(suite, "transport" if number else mode) for number, suite in enumerate(suites)),
        version,
    )
    for (name, suites), mode, version in product(WAYS.items(), MODES, FAMILIES)
]
PIECES = [Case(f"pieces-ipv{version}", (Layer(GCM, "tunnel"),), version) for version in FAMILIES]
WHOLE = [Case(f"whole-ipv{version}", (Layer(GCM, "transport"),), version) for version in FAMILIES]

BIG = random_bytes(5, 4000)
"""A datagram of three pieces."""


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelPeer]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with kernel_peer(tmp_path_factory.mktemp("kernel")) as made:
        made.protect([*TRANSFERS, *PIECES, *WHOLE])
        yield made


@pytest.mark.parametrize("case", TRANSFERS, ids=lambda case: case.name)
def test_long_transfer_arrives_as_it_was_sent(peer: KernelPeer, case: Case) -> None:
    before = peer.drops()
    for seed, (sent, returned) in enumerate(peer.tcp(peer.flows[case.name], LENGTH).values()):
        assert returned == sent, seed
    assert peer.drops() == before


@pytest.mark.parametrize("case", TRANSFERS, ids=lambda case: case.name)
def test_every_length_of_a_datagram_passes_both_ways(peer: KernelPeer, case: Case) -> None:
    before = peer.drops()
    sizes = [*range(80), *range(500, 540), *range(1250, 1320)]
    assert peer.udp(peer.flows[case.name], sizes) == {"host": [], "guest": []}
    assert peer.drops() == before


@pytest.mark.parametrize("case", PIECES, ids=lambda case: case.name)
def test_pieces_that_the_host_made_are_put_together_by_the_kernel(peer: KernelPeer, case: Case) -> None:
    flow = peer.flows[case.name]
    before, packets = peer.drops(), peer.guest.sas()[flow.forth[0].spi].packets
    with peer.hearing(flow, at_guest=True) as hear:
        peer.speak(flow, [BIG], from_guest=False)
        assert hear(1) == [BIG]
    assert peer.guest.sas()[flow.forth[0].spi].packets == packets + 3
    assert peer.drops() == before


@pytest.mark.parametrize("case", PIECES, ids=lambda case: case.name)
def test_pieces_that_the_kernel_sealed_are_put_together_by_the_host(peer: KernelPeer, case: Case) -> None:
    flow = peer.flows[case.name]
    datagram = UDP(sport=PORT, dport=PORT) / Raw(BIG)
    if case.version == 4:
        pieces = fragment(IP(src=flow.far, dst=flow.near, id=77) / datagram, 1288)
    else:
        whole = IPv6(src=flow.far, dst=flow.near) / IPv6ExtHdrFragment(id=77) / datagram
        pieces = fragment6(whole, 1288)
    assert len(pieces) > 2
    before = peer.drops()
    with peer.hearing(flow, at_guest=False) as hear:
        packets = [bytes(piece).hex() for piece in pieces]
        peer.guest.call("send_raw", source=flow.far, to=flow.near, packets=packets)
        assert hear(1) == [BIG]
    assert peer.drops() == before


def test_datagram_that_the_kernel_cuts_before_an_ipv6_tunnel_arrives(peer: KernelPeer) -> None:
    flow = peer.flows["pieces-ipv6"]
    before = peer.drops()
    with peer.hearing(flow, at_guest=False) as hear:
        peer.speak(flow, [BIG], from_guest=True)
        assert hear(1) == [BIG]
    assert peer.drops() == before


@pytest.mark.parametrize("case", [PIECES[0], *WHOLE], ids=lambda case: case.name)
def test_pieces_of_a_packet_that_the_kernel_sealed_are_put_together(peer: KernelPeer, case: Case) -> None:
    """The kernel cuts behind ESP, also IPv4 tunnels."""
    flow = peer.flows[case.name]
    before = peer.drops()
    with peer.hearing(flow, at_guest=False) as hear:
        peer.speak(flow, [BIG], from_guest=True)
        assert hear(1) == [BIG]
    assert peer.drops() == before


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)
def test_pieces_of_the_host_are_put_together_before_and_cut_behind_transport_mode(
    peer: KernelPeer, case: Case
) -> None:
    """Transport mode protects whole packets only (RFC 4303 §3.1.1)."""
    flow = peer.flows[case.name]
    before, packets = peer.drops(), peer.guest.sas()[flow.forth[0].spi].packets
    with peer.hearing(flow, at_guest=True) as hear:
        peer.speak(flow, [BIG], from_guest=False)
        assert hear(1) == [BIG]
    assert peer.guest.sas()[flow.forth[0].spi].packets == packets + 1
    assert peer.drops() == before
