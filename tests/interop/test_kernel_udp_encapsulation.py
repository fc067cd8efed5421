"""ESP in UDP between the card and a kernel, by the same lines of `ip xfrm` on both sides.

The guest has a socket for it (UDP_ENCAP), as an IKE daemon would. Over IPv4 the kernel sends no UDP checksum,
over IPv6 it does, and takes nothing without one.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import kernel_guest
import pytest
from card import CBC, GCM, LEFT, OUTER_ADDRESSES, RIGHT, SUITES, Layer
from kernel_peer import CARD, Case, KernelPeer, kernel_peer, missing
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from test_tshark_capture import PATTERN, dissect

pytestmark = [pytest.mark.live, pytest.mark.interop]

NAT_T = (4500, 4500)
OTHER = (6001, 7001)
"""Ports that software IPsec opens, because the NIC looks at 4500 alone."""
SMALLEST_IPV6 = 8
CHOSEN = [GCM, CBC, SUITES["null+sha1-96"], SUITES["aes-cbc-256+sha256-128"]]


def cases() -> Iterator[Case]:
    for suite, mode, version, esn in product(CHOSEN, ("transport", "tunnel"), (4, 6), (False, True)):
        name = f"{suite.name}-{mode}-ipv{version}" + ("-esn" if esn else "")
        yield Case(name, (Layer(suite, mode),), version, esn, ports=NAT_T)
    for mode, version in product(("transport", "tunnel"), (4, 6)):
        yield Case(f"ports-{mode}-ipv{version}", (Layer(GCM, mode),), version, ports=OTHER)


CASES = {case.name: case for case in cases()}


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelPeer]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with kernel_peer(tmp_path_factory.mktemp("kernel")) as made:
        made.guest.call("encapsulate", ports=[NAT_T[1], OTHER[1]])
        made.protect(list(CASES.values()))
        yield made


@pytest.mark.parametrize("name", CASES)
def test_case_carries_ping_udp_and_tcp_from_both_sides(peer: KernelPeer, name: str) -> None:
    flow = peer.flows[name]
    # Over IPv6 the kernel drops datagrams of less than 48 bytes: it looks for the IP header in them.
    smallest = SMALLEST_IPV6 if flow.case.version == 6 else 0
    sizes = smallest, 56, 1001
    lost = peer.ping(flow, sizes), peer.udp(flow, (max(smallest, 1), 18, 515, 1100))
    assert lost == ({"host": [], "guest": []},) * 2, peer.drops()
    for sent, returned in peer.tcp(flow, 30_011).values():
        assert returned == sent


def test_neither_side_dropped_anything_and_both_counted_the_same(peer: KernelPeer) -> None:
    before = peer.drops()
    for flow in peer.flows.values():
        assert peer.ping(flow) == {"host": [], "guest": []}, flow.case.name
    ours = {spi: sa["packets"] for (_, spi), sa in peer.daemon.sas().items()}
    assert ours == {spi: sa.packets for spi, sa in peer.guest.sas().items()}
    assert min(ours.values()) > 0
    assert peer.drops() == before


@pytest.mark.parametrize("name", ["aes-gcm-128-icv128-tunnel-ipv4", "aes-gcm-128-icv128-tunnel-ipv6"])
@pytest.mark.parametrize("to_guest", [True, False], ids=["kernel", "card"])
def test_a_tampered_packet_fails_and_the_next_passes(peer: KernelPeer, name: str, to_guest: bool) -> None:
    flow = peer.flows[name]
    version = flow.case.version
    before = peer.drops()
    side, counter = ("kernel", "XfrmInStateProtoError") if to_guest else ("card", "in_icv")
    with peer.hearing(flow, at_guest=to_guest) as hear:
        end = peer.card_end if to_guest else peer.guest_end
        with peer.wire.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sniffer:
            sniffer.bind((end, 0))
            sniffer.settimeout(3)
            with peer.cut():
                peer.speak(flow, [b"changed"], from_guest=not to_guest)
                while True:
                    frame = bytearray(sniffer.recv(2048))
                    packet = Ether(bytes(frame))
                    if packet.haslayer(UDP) and packet[UDP].dport == NAT_T[0]:
                        break
        frame[-1] ^= 1
        if version == 6:
            packet = Ether(bytes(frame))
            inner = bytes(packet[UDP].payload)
            header = IPv6(src=packet[IPv6].src, dst=packet[IPv6].dst, hlim=64)
            whole = Ether(src=packet.src, dst=packet.dst) / header / UDP(sport=4500, dport=4500) / Raw(inner)
            frame = bytearray(bytes(whole))
        peer.inject(bytes(frame), to_guest=to_guest)
        peer.speak(flow, [b"good"], from_guest=not to_guest)
        assert hear(1) == [b"good"]
    after = peer.drops()
    assert after[side].get(counter, 0) == before[side].get(counter, 0) + 1


@pytest.mark.parametrize("version", [4, 6])
def test_the_card_drops_keepalives_and_lets_ike_through(peer: KernelPeer, version: int) -> None:
    before = peer.drops()["card"].get("in_nat_keepalive", 0)
    near = OUTER_ADDRESSES[LEFT][version]
    with peer.host.namespace.socket(kernel_guest.FAMILIES[version], socket.SOCK_DGRAM) as end:
        end.bind((near, 4500))
        words = {"port": 4500, "version": version, "to": near, "to_port": 4500}
        peer.guest.call("encapsulation_send", **words, payload="ff")
        peer.guest.call("encapsulation_send", **words, payload="00000000696b65")
        assert kernel_guest.hear(end, 1) == [b"\0\0\0\0ike"]
        end.sendto(b"\0\0\0\0answer", (OUTER_ADDRESSES[RIGHT][version], 4500))
        heard = peer.guest.call("encapsulation_hear", port=4500, version=version, count=1)
        assert heard == [b"\0\0\0\0answer".hex()]
    assert peer.drops()["card"]["in_nat_keepalive"] == before + 1


def test_the_kernel_swallows_the_keepalives_of_the_card(peer: KernelPeer) -> None:
    flow = peer.flows["ports-tunnel-ipv4"]
    (sa,) = flow.forth
    peer.daemon.batch(f"{kept(sa)} nat-keepalive 1")
    assert peer.ping(flow) == {"host": [], "guest": []}
    deadline = time.monotonic() + 10
    while not sent_keepalives(peer) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert sent_keepalives(peer)
    assert peer.guest.call("encapsulation_hear", port=OTHER[1], version=4, count=1) == []


def kept(sa: object) -> str:
    from kernel_peer import state_line

    return state_line(sa).replace("state add", "state update")  # type: ignore[arg-type]


def sent_keepalives(peer: KernelPeer) -> int:
    from oid_door import Door

    with Door(peer.daemon.socket) as door:
        (statistics,) = door.call("GetStatistics", adapter=CARD, sas=False)["adapters"]
    return statistics["card"]["tx_nat_keepalives"]


@pytest.mark.parametrize("version", [4, 6])
def test_tshark_finds_every_icv_in_udp_right(peer: KernelPeer, tmp_path: Path, version: int) -> None:
    flows = [
        flow
        for flow in peer.flows.values()
        if flow.case.version == version and flow.case.ports == NAT_T and not flow.case.esn
    ]
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
