"""OID operations against a door that only keeps books: slices, roll-back, what is called and when."""

from __future__ import annotations

import gc
import random
import weakref
from dataclasses import replace

import pytest
from nic_frames import GCM, Nic, seeded
from oid_bytes import (
    ADD_SA,
    ADD_SA_EX,
    DELETE_SA,
    UPDATE_SA,
    V1_ADD_UDPESP,
    add_sa,
    add_sa_ex,
    ask,
    begin,
    chain,
    delete_sa,
    finish,
    handles_of,
    update_sa,
    v1_add_udpesp,
)

from vnic.errors import OidError, RequestError
from vnic.miniport.adapter import MiniportAdapter
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oid import AddSa, DeleteSa, UpdateSa
from vnic.ndis.oids import Oid, OidOperation, OidRequest, RequestType
from vnic.ndis.status import NdisStatus

SAS = [replace(GCM, spi=0x1000 + n, label=n) for n in range(100)]
LIST = bytes(chain([add_sa(sa) for sa in SAS]))


class Books:
    """A door that takes every SA but those whose SPI it was told to refuse."""

    def __init__(self, refused: set[int] | None = None, error: RequestError | None = None) -> None:
        self.refused = refused or set()
        self.error = error or OidError(NdisStatus.RESOURCES, "full")
        self.held: dict[int, AddSa] = {}
        self.calls: list[str] = []
        self.last = 0

    def add_sa(self, request: AddSa) -> OffloadHandle:
        self.calls.append("add")
        if request.elements[0].spi in self.refused:
            raise self.error
        self.last += 1
        self.held[self.last] = request
        return OffloadHandle(self.last)

    def update_sa(self, request: UpdateSa) -> None:
        self.calls.append("update")

    def delete_sa(self, request: DeleteSa) -> None:
        self.calls.append("delete")
        if self.held.pop(request.handle, None) is None:
            raise OidError(NdisStatus.INVALID_PARAMETER, "unknown")


def adapter() -> MiniportAdapter:
    return MiniportAdapter(seeded().randbytes)


def operation(nic: MiniportAdapter, oid: int, buffer: bytes, door: Books) -> OidOperation:
    return nic.oid_request(OidRequest(oid, RequestType.SET, bytearray(buffer)), door)


@pytest.mark.rule(66)
def test_only_the_v2_sa_requests_are_direct() -> None:
    assert {oid.value for oid in Oid if oid.direct} == {ADD_SA, ADD_SA_EX, UPDATE_SA, DELETE_SA}


def test_every_sa_request_goes_through_the_door_and_none_past_it() -> None:
    nic, door = adapter(), Books()
    for oid, buffer in (
        (ADD_SA, add_sa(GCM)),
        (ADD_SA_EX, add_sa_ex(GCM)),
        (UPDATE_SA, update_sa(1, 2, GCM.spi, 1)),
        (DELETE_SA, delete_sa([1])),
        (V1_ADD_UDPESP, v1_add_udpesp(replace(GCM, encryption="des-cbc", integrity="hmac-md5-96"))),
    ):
        assert ask(nic, oid, bytes(buffer), door=door).status is NdisStatus.SUCCESS
    assert door.calls == ["add", "add", "update", "delete", "add"]
    assert len(nic) == 0


@pytest.mark.rule(67, 79)
def test_slice_is_a_small_part_of_a_list() -> None:
    nic, door = adapter(), Books()
    under_way = operation(nic, ADD_SA, LIST, door)
    steps = [len(door.calls)]
    while not under_way.advance():
        steps.append(len(door.calls))
    assert steps == [32, 64, 96]
    assert len(door.calls) == 100
    assert under_way.advance()
    assert len(door.calls) == 100


def test_entries_are_added_in_their_order() -> None:
    nic, door = adapter(), Books()
    finish(operation(nic, ADD_SA, LIST, door))
    assert [request.elements[0].spi for request in door.held.values()] == [sa.spi for sa in SAS]


@pytest.mark.rule(89, 91)
def test_handles_stand_in_the_entries_they_are_for() -> None:
    nic, door = adapter(), Books(refused={SAS[3].spi, SAS[50].spi})
    result = finish(operation(nic, ADD_SA, LIST, door))
    handles = handles_of(result.information_buffer)
    assert [index for index, handle in enumerate(handles) if not handle] == [3, 50]
    for index, handle in enumerate(handles):
        if handle:
            assert door.held[handle].elements[0].spi == SAS[index].spi
    assert result.message == "full"


@pytest.mark.rule(90)
def test_refusal_without_an_ndis_status_is_invalid_data() -> None:
    door = Books(refused={sa.spi for sa in SAS}, error=RequestError("no", field="mode"))
    result = finish(operation(adapter(), ADD_SA, LIST, door))
    assert (result.status, result.message, result.field) == (NdisStatus.INVALID_DATA, "no", "mode")
    assert door.held == {}
    result = ask(adapter(), ADD_SA_EX, bytes(add_sa_ex(SAS[0])), door=door)
    assert result.status is NdisStatus.INVALID_DATA


@pytest.mark.rule(77, 90)
def test_roll_back_goes_through_the_door_too() -> None:
    nic, door = adapter(), Books()
    under_way = operation(nic, ADD_SA, LIST, door)
    under_way.advance()
    del door.held[5]
    under_way.abort(NdisStatus.REQUEST_ABORTED)
    assert door.held == {}
    assert door.calls == ["add"] * 64 + ["delete"] * 64
    assert under_way.result is not None
    assert set(handles_of(under_way.result.information_buffer)) == {0}


@pytest.mark.rule(76)
def test_operation_is_ended_with_the_status_it_is_told() -> None:
    under_way = operation(adapter(), ADD_SA, LIST, Books())
    under_way.abort(NdisStatus.NOT_ACCEPTED)
    assert under_way.result is not None
    assert under_way.result.status is NdisStatus.NOT_ACCEPTED


def test_finished_operation_is_not_remembered() -> None:
    nic, door = adapter(), Books(refused={SAS[0].spi})
    under_way = operation(nic, ADD_SA, LIST, door)
    finish(under_way)
    gone = weakref.ref(under_way)
    del under_way
    gc.collect()
    assert gone() is None


@pytest.mark.rule(83)
@pytest.mark.parametrize("oid", list(Oid))
def test_short_requests_are_finished_when_they_come_back(oid: Oid) -> None:
    nic = Nic().adapter
    for kind in RequestType:
        under_way = nic.oid_request(OidRequest(oid, kind, bytearray(400)))
        assert under_way.result is not None
        assert under_way.advance()
        assert under_way.result.status is not NdisStatus.PENDING


@pytest.mark.parametrize("oid", list(Oid))
@pytest.mark.parametrize("seed", range(20))
def test_garbage_is_answered_and_changes_nothing(oid: Oid, seed: int) -> None:
    nic = Nic()
    handle = nic.add(GCM)
    before = (nic.adapter.current, nic.adapter.keywords)
    source = random.Random(seed)
    buffer = bytearray(source.randbytes(source.choice((0, 1, 3, 4, 8, 24, 28, 176, 400))))
    if source.random() < 0.7 and len(buffer) > 3:
        buffer[:4] = source.choice((b"\x80\x01\xa9\x00", b"\x80\x01\xaa\x00", b"\xa8\x01\x1c\x00", bytes(4)))
    result = finish(nic.adapter.oid_request(OidRequest(oid, RequestType.SET, buffer)))
    if result.status is NdisStatus.SUCCESS:
        return
    assert (nic.adapter.current, nic.adapter.keywords) == before
    assert [held for held, _ in nic.adapter.bundles()] == [handle]
    assert result.message


@pytest.mark.rule(67, 68, 77, 89, 90, 112)
@pytest.mark.parametrize("seed", range(30))
def test_whatever_overlaps_the_nic_holds_what_the_answers_say(seed: int) -> None:
    source = random.Random(seed)
    nic = MiniportAdapter(seeded(seed).randbytes)
    spis = iter(range(0x1000, 0x100000))
    adding: list[OidOperation] = []
    deleting: list[tuple[list[int], OidOperation]] = []
    claimed: set[int] = set()
    deleted: set[int] = set()

    def settle() -> None:
        for one in list(adding):
            if one.result is not None:
                adding.remove(one)
                handles = set(handles_of(one.result.information_buffer)) - {0}
                assert not handles or one.result.status is NdisStatus.SUCCESS
                claimed.update(handles)
        for handles_, one in list(deleting):
            if one.result is not None:
                deleting.remove((handles_, one))
                if one.result.status is not NdisStatus.REQUEST_ABORTED:
                    deleted.update(handles_)

    for step in range(60):
        choice = source.random()
        if choice < 0.4:
            sas = []
            for spi in (next(spis) for _ in range(source.randint(1, 90))):
                bad = source.random() < 0.2
                sas.append(add_sa(replace(GCM, spi=0 if bad else spi, label=spi), inbound=bool(spi % 2)))
            adding.append(begin(nic, ADD_SA, chain(sas), request_id=step + 1))
        elif choice < 0.6 and claimed - deleted:
            left = sorted(claimed - deleted)
            handles = source.sample(left, min(len(left), source.randint(1, 60)))
            deleting.append((handles, begin(nic, DELETE_SA, delete_sa(handles))))
        elif choice < 0.75 and adding:
            nic.cancel(source.choice(adding).request.request_id)
        else:
            for one in [*adding, *(pair[1] for pair in deleting)]:
                if source.random() < 0.5:
                    one.advance()
        settle()
    for one in [*adding, *(pair[1] for pair in deleting)]:
        finish(one)
    settle()
    assert {handle for handle, _ in nic.bundles()} == claimed - deleted
