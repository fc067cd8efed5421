"""Lists, resets and load by the binary door of a running daemon, with real traffic on the SAs."""

from __future__ import annotations

import itertools
import json
import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest
from card import LEFT, RIGHT, Daemon, Pair
from oid_door import (
    ADD_SA,
    CBC_128,
    CURRENT_CONFIG,
    DELETE_SA,
    GCM_128,
    MD5,
    SHA_1,
    SUCCESS,
    TRIPLE_DES,
    UPDATE_SA,
    Bundle,
    Door,
    Protection,
    entries,
    handles,
    policy,
    request,
    workers,
    written,
)
from traffic import Stream, ping, wait_until

from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oid import AddSa, Operation, UpdateSa
from vnic.ndis.structs import pack_add_sa, pack_delete_sa, pack_update_sa

pytestmark = pytest.mark.live

GCM = Protection("gcm-128", GCM_128)
CBC = Protection("cbc-128+sha1", CBC_128, SHA_1)
AH = Protection("ah-sha1", ah=SHA_1)
AH_ESP = Protection("ah-sha1 esp-md5", TRIPLE_DES, MD5, ah=SHA_1)

INVALID_PARAMETER = 0xC000000D
NOT_SUPPORTED = 0xC00000BB
REQUEST_ABORTED = 0xC001000C
INVALID_DATA = 0xC0010015
RESET_IN_PROGRESS = 0xC001000D
NOT_ACCEPTED = 0x00010003

ENCAPSULATION = "OID_OFFLOAD_ENCAPSULATION"
ON, OFF = 1, 2

PORTS = itertools.count(5100)
"""A port that was used stays taken for a while."""

LOAD = 2000
"""Entries of the lists under load."""


def protected(
    pair: Pair, door: Door, protection: Protection, version: int = 4, **options: object
) -> dict[str, int]:
    """Protect what the hosts say to each other, and give the handles, by adapter and direction."""
    lines, given = [], {}
    for sender, receiver in (pair.hosts, pair.hosts[::-1]):
        ends = sender.addresses[version], receiver.addresses[version]
        bundle = Bundle.made(protection, *ends, **options)
        for host, inbound in ((receiver, True), (sender, False)):
            reply = door.oid(host.adapter, ADD_SA, pack_add_sa([bundle.request(inbound=inbound)]))
            assert reply["status"] == SUCCESS, reply["message"]
            given[f"{host.adapter} {'in' if inbound else 'out'}"] = handles(reply, [0])[0]
            lines.append(policy(host.adapter, "in" if inbound else "out", *ends, bundle, "transport"))
    pair.daemon.batch(*lines)
    return given


def unknown_algorithm(bundle: Bundle) -> AddSa:
    """A request for an algorithm that nobody has."""
    made = bundle.request(inbound=False)
    (element,) = made.elements
    strange = replace(element.encryption, identifier=0x800)
    return replace(made, elements=(replace(element, encryption=strange),))


def without_integrity(source: str, destination: str) -> AddSa:
    """A request for encryption alone (R13)."""
    return Bundle.made(Protection("cbc-128", CBC_128), source, destination).request(inbound=False)


@pytest.mark.rule(13, 87, 88, 89, 91, 112, 113, 114)
def test_a_list_of_which_some_entries_fail_protects_by_the_others(clean_pair: Pair) -> None:
    pair = clean_pair
    ends = pair.left.addresses[4], pair.right.addresses[4]
    forth, back = Bundle.made(GCM, *ends), Bundle.made(CBC, *ends[::-1])
    lines = []
    with Door(pair.daemon.socket) as door:
        for adapter, out, into in ((LEFT, forth, back), (RIGHT, back, forth)):
            buffer = pack_add_sa(
                [
                    into.request(inbound=True),
                    into.request(inbound=True),
                    unknown_algorithm(forth),
                    without_integrity(*ends),
                    out.request(inbound=False),
                ]
            )
            for offset in entries(buffer):
                buffer[offset + 0x38 : offset + 0x40] = b"\x77" * 8
            reply = door.oid(adapter, ADD_SA, buffer)
            assert reply["status"] == SUCCESS
            assert reply["message"]
            given = handles(reply, entries(buffer))
            assert given == reply["handles"]
            assert [bool(handle) for handle in given] == [True, False, False, False, True]
            lines += [
                policy(adapter, "in", into.source, into.destination, into, "transport"),
                policy(adapter, "out", out.source, out.destination, out, "transport"),
            ]
        pair.daemon.batch(*lines)
        assert ping(pair.left, pair.right.addresses[4], count=3) == 3
        # A list of deletions with an unknown handle deletes the others.
        reply = door.oid(RIGHT, DELETE_SA, pack_delete_sa([given[0], 12345, given[4]]))
        assert reply["status"] == INVALID_PARAMETER
    assert not [key for key in pair.daemon.sas() if key[0] == RIGHT]
    assert ping(pair.left, pair.right.addresses[4], wait_s=0.3) == 0


@pytest.mark.rule(90)
def test_a_list_of_which_every_entry_fails_leaves_nothing(clean_pair: Pair) -> None:
    pair = clean_pair
    ends = pair.left.addresses[4], pair.right.addresses[4]
    buffer = pack_add_sa([unknown_algorithm(Bundle.made(GCM, *ends)), without_integrity(*ends)])
    with Door(pair.daemon.socket) as door:
        reply = door.oid(LEFT, ADD_SA, buffer)
        assert reply["status"] in (NOT_SUPPORTED, INVALID_DATA)
        assert handles(reply, entries(buffer)) == [0, 0]
    assert pair.daemon.sas() == {}


@pytest.mark.rule(117, 204, 205, 208, 210)
@pytest.mark.parametrize("protection", [GCM, CBC, AH, AH_ESP], ids=lambda one: one.name)
def test_traffic_goes_on_over_a_reset_by_the_same_handles(clean_pair: Pair, protection: Protection) -> None:
    pair = clean_pair
    with Door(pair.daemon.socket) as door, pair.daemon.monitor() as monitor:
        given = protected(pair, door, protection)
        configuration = written(door.oid(LEFT, CURRENT_CONFIG))
        with Stream(pair.left, pair.right, b"before and after ", port=next(PORTS)) as stream:
            assert stream.flows()
            for host in pair.hosts:
                door.call("ResetAdapter", name=host.adapter)
            assert stream.flows()
            assert not stream.wrong
        assert ping(pair.left, pair.right.addresses[4], count=3) == 3
        for name in ("RESET_START", "RESET_END"):
            monitor.wait_for(lambda event, name=name: name in json.dumps(event))
        assert written(door.oid(LEFT, CURRENT_CONFIG)) == configuration
        for name, handle in given.items():
            adapter = name.split()[0]
            assert door.oid(adapter, DELETE_SA, pack_delete_sa([handle]))["status"] == SUCCESS
    assert pair.daemon.sas() == {}


@pytest.mark.rule(58, 80, 115, 204, 208)
def test_requests_during_a_reset_and_after_removal_get_their_status(daemon: Daemon) -> None:
    daemon.vnic("adapter", "add", "nic0", "transport", "external", "wire", "none")
    wanted = pack_add_sa([Bundle.made(GCM, "192.0.2.1", "192.0.2.2").request(inbound=True)])
    with Door(daemon.socket) as door, Door(daemon.socket) as other:
        (handle,) = handles(door.oid("nic0", ADD_SA, wanted), [0])
        second = pack_add_sa([Bundle.made(CBC, "192.0.2.1", "192.0.2.2").request(inbound=True)])
        update = pack_update_sa(UpdateSa(OffloadHandle(handle), Operation.ESP, 0x100, 1))

        def statuses() -> list[int]:
            answers = [
                door.oid("nic0", ADD_SA, second),
                door.oid("nic0", UPDATE_SA, update),
                door.oid("nic0", DELETE_SA, pack_delete_sa([handle])),
                door.oid("nic0", CURRENT_CONFIG),
            ]
            return [answer["status"] for answer in answers]

        other.send("ResetAdapter", name="nic0", hold_ms=1500)
        assert wait_until(lambda: daemon.adapter("nic0")["state"] == "resetting")
        assert statuses() == [RESET_IN_PROGRESS, RESET_IN_PROGRESS, NOT_ACCEPTED, SUCCESS]
        other.receive()
        assert door.oid("nic0", DELETE_SA, pack_delete_sa([handle]))["status"] == SUCCESS
        door.call("RemoveAdapter", name="nic0")
        assert statuses() == [NOT_ACCEPTED] * 4


@pytest.mark.rule(119, 120, 121, 122, 123)
def test_update_sa_moves_both_ends_to_another_upper_half(clean_pair: Pair) -> None:
    pair = clean_pair
    with Door(pair.daemon.socket) as door:
        given = protected(pair, door, GCM, esn=True, high=5)
        assert ping(pair.left, pair.right.addresses[4]) == 1
        states = pair.daemon.sas()
        spis = {key[1] for key in states}
        (forth,) = (spi for spi in spis if states[LEFT, spi]["sa"]["direction"] == "out")

        def update(adapter: str, handle: int, spi: int, high: int) -> int:
            buffer = pack_update_sa(UpdateSa(OffloadHandle(handle), Operation.ESP, spi, high))
            return int(door.oid(adapter, UPDATE_SA, buffer)["status"])

        assert update(RIGHT, given["right in"], forth, 9) == SUCCESS
        assert ping(pair.left, pair.right.addresses[4], wait_s=0.3) == 0
        assert update(LEFT, given["left out"], forth, 9) == SUCCESS
        assert ping(pair.left, pair.right.addresses[4], count=3) == 3
        assert pair.daemon.sas()[LEFT, forth]["sa"]["sequence_number"] >> 32 == 9
        assert update(LEFT, given["left out"], forth + 77, 9) == INVALID_PARAMETER
        assert update(LEFT, given["right in"], forth, 9) == INVALID_PARAMETER


@pytest.mark.rule(36, 57, 64)
def test_what_is_switched_off_goes_on_in_software_and_comes_back(clean_pair: Pair) -> None:
    pair = clean_pair
    with Door(pair.daemon.socket) as door:
        protected(pair, door, GCM)
        assert ping(pair.left, pair.right.addresses[4]) == 1

        def grown(kind: str) -> int:
            before = workers(door)[LEFT, kind]
            assert ping(pair.left, pair.right.addresses[4], count=2) == 2
            return workers(door)[LEFT, kind] - before

        assert (grown("software"), grown("offloaded")) == (0, 4)
        for enabled, software, offloaded in ((OFF, 4, 0), (ON, 0, 4)):
            family = (enabled, 2, 14) if enabled == ON else (enabled, 0, 0)
            buffer = struct.pack("<BBH6I", 0xA8, 1, 28, *family, *family)
            assert door.oid(LEFT, ENCAPSULATION, buffer)["status"] == SUCCESS
            assert (grown("software"), grown("offloaded")) == (software, offloaded)


@pytest.mark.rule(67, 68, 77, 79, 83, 90)
def test_long_lists_under_way_hold_up_no_traffic_and_can_be_cancelled(clean_pair: Pair) -> None:
    pair = clean_pair
    base, source = 0x0A0A0000, pair.left.addresses[4]

    def list_of(start: int) -> bytearray:
        return pack_add_sa(
            [
                Bundle.made(GCM, source, str(ip_address(base + start + number))).request(inbound=False)
                for number in range(LOAD)
            ]
        )

    first, second = list_of(0), list_of(LOAD)
    with Door(pair.daemon.socket) as door, Door(pair.daemon.socket) as other:
        protected(pair, door, GCM)
        before = len(pair.daemon.sas())
        with Stream(pair.left, pair.right, b"all the while ", port=next(PORTS)) as stream:
            assert stream.flows()
            door.send("OidRequest", **request(LEFT, ADD_SA, first))
            other.send("OidRequest", **request(LEFT, ADD_SA, second, request_id=7))
            with Door(pair.daemon.socket) as third:
                cancelled = third.call("CancelOidRequest", adapter=LEFT, request_id=7)
                # Regular requests are answered while the direct ones are under way.
                assert third.oid(LEFT, CURRENT_CONFIG)["status"] == SUCCESS
            assert stream.flows(timeout_s=2)
            kept, ended = door.receive(), other.receive()
            assert stream.flows(timeout_s=2)
            assert not stream.wrong
        assert kept["status"] == SUCCESS
        assert all(handles(kept, entries(first)))
        many = LOAD
        if cancelled["count"]:
            assert ended["status"] == REQUEST_ABORTED
            assert not any(handles(ended, entries(second)))
        else:
            # It was done, or not yet read, when the cancel came.
            assert ended["status"] == SUCCESS
            many += LOAD
        gone = [
            handle
            for reply, sent in ((kept, first), (ended, second))
            for handle in handles(reply, entries(sent))
        ]
        (capabilities,) = door.call("GetCapabilities", adapter=LEFT)["adapters"]
        assert capabilities["sas_offloaded"] == 2 + many
        reply = door.oid(LEFT, DELETE_SA, pack_delete_sa([handle for handle in gone if handle]))
        assert reply["status"] == SUCCESS
    assert len(pair.daemon.sas()) == before
