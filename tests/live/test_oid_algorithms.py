"""Every algorithm and every pair by the binary door alone: SAs come as NDIS structures, traffic is real."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from card import FURTHER, FURTHER_NETWORK, HOST_LENGTH, LEFT, OUTER_ADDRESSES, RIGHT, Pair, ip_batch
from oid_door import (
    ADD_SA,
    ADD_SA_EX,
    CERTIFIED_PAIRS,
    DES,
    EVERY_ALGORITHM,
    NULL,
    SIX_PAIRS,
    SUCCESS,
    TRIPLE_DES,
    V1_ADD_SA,
    V1_DELETE_SA,
    Bundle,
    Door,
    Protection,
    entries,
    handles,
    policy,
    workers,
)
from traffic import Datagrams, digest, ping, tcp

from vnic.ipsec.association import Mode
from vnic.ndis.structs import pack_add_sa, pack_add_sa_ex
from vnic.ndis.v1_structs import pack_v1_add_sa, pack_v1_delete_sa

pytestmark = pytest.mark.live

OUTER = {4: "192.0.{}.{}", 6: "2001:db8:{}::{}"}
"""Ends of a tunnel for each lane: an SA that came by an OID has no reqid to be told from others by."""


def lanes(
    pair: Pair, protections: Sequence[Protection], mode: str, version: int
) -> list[tuple[str, Bundle, Bundle]]:
    """Give every protection an address of the right host, and put all of them into force at once, by one list
    for each adapter."""
    made, lines, addresses = [], [], ""
    requests: dict[str, list[object]] = {LEFT: [], RIGHT: []}
    near = pair.left.addresses[version]
    for number, protection in zip(itertools.count(1), protections):
        far = FURTHER[version].format(number)
        addresses += f"address replace {far}/{HOST_LENGTH[version]} dev {pair.right.device}\n"
        both = []
        for sender, receiver, ends in ((LEFT, RIGHT, (near, far)), (RIGHT, LEFT, (far, near))):
            outer = tuple(OUTER[version].format(ord(end[0]), number) for end in (sender, receiver))
            bundle = Bundle.made(protection, *(outer if mode == "tunnel" else ends))
            requests[sender].append(bundle.request(inbound=False))
            requests[receiver].append(bundle.request(inbound=True))
            lines += [
                policy(receiver, "in", *ends, bundle, mode),
                policy(sender, "out", *ends, bundle, mode),
            ]
            both.append(bundle)
        made.append((far, *both))
    ip_batch(pair.right.namespace, addresses)
    via = pair.right.addresses[version]
    pair.left.namespace.ip("route", "replace", FURTHER_NETWORK[version], "via", via, "dev", pair.left.device)
    with Door(pair.daemon.socket) as door:
        for adapter, wanted in requests.items():
            buffer = pack_add_sa(wanted)  # type: ignore[arg-type]
            reply = door.oid(adapter, ADD_SA, buffer)
            assert (reply["status"], reply["message"]) == (SUCCESS, ""), reply["message"]
            given = handles(reply, entries(buffer))
            assert len(set(given)) == len(wanted)
            assert 0 not in given
    pair.daemon.batch(*lines)
    return made


@pytest.mark.rule(14, 84, 88, 89, 96, 98, 107, 216, 217)
@pytest.mark.parametrize(
    ("mode", "version"), [("transport", 4), ("transport", 6), ("tunnel", 4), ("tunnel", 6)]
)
def test_every_algorithm_and_pair_carries_pings_and_counts_them(
    clean_pair: Pair, mode: str, version: int
) -> None:
    pair = clean_pair
    protections = (*EVERY_ALGORITHM, *SIX_PAIRS, *CERTIFIED_PAIRS)
    made = lanes(pair, protections, mode, version)
    before = pair.drops()
    with Door(pair.daemon.socket) as door:
        offloaded = workers(door)
    silent = []
    for far, forth, _ in made:
        if ping(pair.left, far) != 1:
            silent.append(f"{forth.protection.name} from the left")
        if ping(pair.right, pair.left.addresses[version], source=far) != 1:
            silent.append(f"{forth.protection.name} from the right")
        if len(silent) > 5:
            break
    assert silent == []
    assert pair.drops() == before
    states = pair.daemon.sas()
    wrong = {
        (forth.protection.name, sender): [states[end, spi]["packets"] for end in (sender, receiver)]
        for _, forth, back in made
        for sender, receiver, bundle in ((LEFT, RIGHT, forth), (RIGHT, LEFT, back))
        for spi in bundle.spis
        if {states[end, spi]["packets"] for end in (sender, receiver)} != {2}
    }
    # A request and a reply, each sealed by one end and opened by the other.
    assert wrong == {}
    with Door(pair.daemon.socket) as door:
        now = workers(door)
    # All of it by the NIC, nothing in software, each packet once.
    for adapter in (LEFT, RIGHT):
        assert now[adapter, "software"] == offloaded[adapter, "software"]
        assert now[adapter, "offloaded"] - offloaded[adapter, "offloaded"] >= 4 * len(protections)


@pytest.mark.rule(14, 85, 109)
@pytest.mark.parametrize("protection", SIX_PAIRS, ids=lambda one: one.name)
def test_every_pair_carries_streams_and_datagrams_unchanged_by_add_sa_ex(
    clean_pair: Pair, protection: Protection
) -> None:
    pair = clean_pair
    lines: list[str] = []
    with Door(pair.daemon.socket) as door:
        for sender, receiver in (pair.hosts, pair.hosts[::-1]):
            ends = sender.addresses[4], receiver.addresses[4]
            bundle = Bundle.made(protection, *ends, esn=True, high=3)
            for adapter, inbound in ((receiver.adapter, True), (sender.adapter, False)):
                reply = door.oid(adapter, ADD_SA_EX, pack_add_sa_ex(bundle.request(inbound=inbound)))
                assert reply["status"] == SUCCESS, reply["message"]
                assert handles(reply, [0], 0x30) != [0]
                lines.append(policy(adapter, "in" if inbound else "out", *ends, bundle, "transport"))
    pair.daemon.batch(*lines)
    before = pair.drops()
    payload = bytes(index * 7 & 0xFF for index in range(300_000))
    assert ping(pair.left, pair.right.addresses[4], count=3) == 3
    assert tcp(pair.left, pair.right, 4, payload) == digest(payload)
    with Datagrams(pair.left, pair.right, 4) as datagrams:
        assert datagrams.changed(payload[:length] for length in sizes()) == []
    assert pair.drops() == before


def sizes() -> Iterable[int]:
    return (1, 2, 3, 15, 16, 17, 64, 512, 1300)


@pytest.mark.rule(14, 124, 128, 130, 131, 132, 133, 134)
@pytest.mark.parametrize("mode", ["transport", "tunnel"])
@pytest.mark.parametrize("protection", SIX_PAIRS, ids=lambda one: one.name)
def test_every_pair_carries_pings_by_the_v1_oids(clean_pair: Pair, protection: Protection, mode: str) -> None:
    pair = clean_pair
    if protection.encryption not in (NULL, DES, TRIPLE_DES):
        protection = replace(protection, encryption=TRIPLE_DES)
    lines: list[str] = []
    given = []
    with Door(pair.daemon.socket) as door:
        for sender, receiver in (pair.hosts, pair.hosts[::-1]):
            ends = sender.addresses[4], receiver.addresses[4]
            outer = OUTER_ADDRESSES[sender.adapter][4], OUTER_ADDRESSES[receiver.adapter][4]
            bundle = Bundle.made(protection, *(outer if mode == "tunnel" else ends))
            for adapter, inbound in ((receiver.adapter, True), (sender.adapter, False)):
                wanted = replace(bundle.request(inbound=inbound), portion=Mode(mode))
                reply = door.oid(adapter, V1_ADD_SA, pack_v1_add_sa(wanted))
                assert reply["status"] == SUCCESS, reply["message"]
                given.append((adapter, handles(reply, [0], 0xA8)[0]))
                lines.append(policy(adapter, "in" if inbound else "out", *ends, bundle, mode))
        pair.daemon.batch(*lines)
        before, offloaded = pair.drops(), workers(door)
        assert ping(pair.left, pair.right.addresses[4], count=3, size=1000) == 3
        now = workers(door)
        assert pair.drops() == before
        assert [now[adapter, "offloaded"] - offloaded[adapter, "offloaded"] for adapter in (LEFT, RIGHT)] == [
            6,
            6,
        ]
        for adapter, handle in given:
            assert door.oid(adapter, V1_DELETE_SA, pack_v1_delete_sa(handle))["status"] == SUCCESS
    assert pair.daemon.sas() == {}


CRYPTO_DONE, HEADER_INFO_SET = 0x2, 0x10000


@pytest.mark.rule(14, 159, 161, 162, 168, 176, 179, 180, 182)
@pytest.mark.parametrize("protection", SIX_PAIRS, ids=lambda one: one.name)
def test_slots_of_a_pair_name_its_handle_and_headers_and_say_that_it_was_checked(
    clean_pair: Pair, protection: Protection
) -> None:
    pair = clean_pair
    ends = pair.left.addresses[4], pair.right.addresses[4]
    bundle = Bundle.made(protection, *ends)
    with Door(pair.daemon.socket) as door, Door(pair.daemon.socket) as near, Door(pair.daemon.socket) as far:
        given = {}
        for adapter, inbound in ((RIGHT, True), (LEFT, False)):
            reply = door.oid(adapter, ADD_SA, pack_add_sa([bundle.request(inbound=inbound)]))
            assert reply["status"] == SUCCESS, reply["message"]
            (given[adapter],) = handles(reply, [0])
        pair.daemon.batch(
            policy(RIGHT, "in", *ends, bundle, "transport"), policy(LEFT, "out", *ends, bundle, "transport")
        )
        near.send("WatchNbls", more=True, adapter=LEFT)
        far.send("WatchNbls", more=True, adapter=RIGHT)
        # The way back is in clear: it has no slot to show.
        assert ping(pair.left, pair.right.addresses[4]) == 1
        sent, received = next_sealed(near, "send"), next_sealed(far, "receive")
    # IPv4 without options, AH of an ICV of 12 bytes on a boundary of 8, ESP.
    words = (sent["oob"]["header"] >> 16 & 0xFF, sent["oob"]["header"] >> 24)
    assert words == (5, 11)
    assert (sent["oob"]["ipsec"], sent["oob"]["tunnel"], sent["status"]) == (given[LEFT], 0, SUCCESS)
    assert received["oob"]["ipsec"] == CRYPTO_DONE
    icmp = 1
    assert received["oob"]["header"] & ~0xFF00 == HEADER_INFO_SET | icmp
    assert sent["oob"]["header"] & 0xFFFF == received["oob"]["header"] & 0xFFFF


def next_sealed(door: Door, direction: str) -> Any:
    """The next AH packet that passed between transport and NIC."""
    while True:
        nbl = door.receive()["nbl"]
        if nbl["direction"] == direction and nbl["frame"][46:48] == "33":
            return nbl
