"""DELETE_SA and UPDATE_SA of V2 in binary form (sheet §4.6, §4.7)."""

import struct
from dataclasses import replace

import pytest
from nic_frames import AH_SHA256, GCM, Nic, framed, sealed
from oid_bytes import DELETE_SA, UPDATE_SA, ask, begin, delete_sa, finish, update_sa

from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oids import OidOperation
from vnic.ndis.status import NdisStatus

SAS = [replace(GCM, spi=0x1000 + n, label=n) for n in range(100)]
ESN = replace(GCM, esn=True, high=3)
PAYLOAD = bytes(60)


@pytest.mark.rule(82, 111, 112, 113)
def test_list_of_handles_is_deleted_and_its_room_freed() -> None:
    nic = Nic.able(sa_offload_capacity=100)
    handles = [nic.add(sa) for sa in SAS]
    result = ask(nic.adapter, DELETE_SA, delete_sa(handles[:60]))
    assert result.status is NdisStatus.SUCCESS
    assert (result.bytes_read, result.supported_revision) == (60 * 24, 1)
    assert len(nic.adapter) == 40
    assert not any(nic.adapter.offers(handle) for handle in handles[:60])
    assert all(nic.adapter.offers(handle) for handle in handles[60:])
    assert nic.add(SAS[0])


@pytest.mark.rule(114)
def test_long_list_is_pended_and_completed_with_success_when_all_is_done() -> None:
    nic = Nic()
    operation = begin(nic.adapter, DELETE_SA, delete_sa([nic.add(sa) for sa in SAS]))
    assert operation.result is None
    assert 0 < len(nic.adapter) < 100
    assert finish(operation).status is NdisStatus.SUCCESS
    assert len(nic.adapter) == 0


@pytest.mark.rule(112)
def test_unknown_handle_fails_the_list_after_the_others_are_deleted() -> None:
    nic = Nic()
    handles = [nic.add(sa) for sa in SAS[:3]]
    result = ask(nic.adapter, DELETE_SA, delete_sa([handles[0], 99, handles[1], 98, handles[2]]))
    assert result.status is NdisStatus.INVALID_PARAMETER
    assert (result.field, result.value) == ("handle", "99")
    assert len(nic.adapter) == 0


@pytest.mark.parametrize("handle", [0, 99, 1 << 63, (1 << 64) - 1])
def test_handle_that_names_nothing_is_refused(handle: int) -> None:
    nic = Nic()
    nic.add(GCM)
    assert ask(nic.adapter, DELETE_SA, delete_sa([handle])).status is NdisStatus.INVALID_PARAMETER
    assert len(nic.adapter) == 1


@pytest.mark.rule(117, 136)
def test_nothing_but_a_delete_request_removes_an_sa() -> None:
    nic, peer = Nic(), Nic()
    inbound = nic.add(GCM, inbound=True)
    out = peer.add(GCM)
    nic.adapter.request_deletion(inbound)
    for number in range(1, 5):
        info, _ = nic.open(sealed(peer, GCM, framed(GCM, PAYLOAD, sequence=number), out))
        assert info is not None
        assert info.verified
        assert info.sa_delete_req
    assert ask(nic.adapter, DELETE_SA, delete_sa([inbound])).status is NdisStatus.SUCCESS
    info, _ = nic.open(sealed(peer, GCM, framed(GCM, PAYLOAD, sequence=9), out))
    assert info is None


@pytest.mark.rule(118)
def test_inbound_sa_and_its_partner_are_deleted_by_two_requests() -> None:
    nic = Nic()
    inbound, outbound = nic.add(GCM, inbound=True), nic.add(GCM)
    for left, handle in ((1, inbound), (0, outbound)):
        assert ask(nic.adapter, DELETE_SA, delete_sa([handle])).status is NdisStatus.SUCCESS
        assert len(nic.adapter) == left


@pytest.mark.rule(77, 116)
def test_ended_list_leaves_what_it_deleted_deleted() -> None:
    nic = Nic()
    operation = begin(nic.adapter, DELETE_SA, delete_sa([nic.add(sa) for sa in SAS]), request_id=4)
    left = len(nic.adapter)
    assert nic.adapter.cancel(4) == 1
    assert operation.result is not None
    assert operation.result.status is NdisStatus.REQUEST_ABORTED
    assert len(nic.adapter) == left


@pytest.mark.rule(67)
def test_two_lists_that_delete_the_same_sas_leave_none() -> None:
    nic = Nic()
    handles = [nic.add(sa) for sa in SAS]
    operations: list[OidOperation] = [
        begin(nic.adapter, DELETE_SA, delete_sa(handles)),
        begin(nic.adapter, DELETE_SA, delete_sa(reversed(handles))),
    ]
    for _ in range(10):
        for operation in operations:
            operation.advance()
    statuses = {finish(operation).status for operation in operations}
    assert NdisStatus.PENDING not in statuses
    assert len(nic.adapter) == 0


@pytest.mark.rule(73, 82)
@pytest.mark.parametrize(
    ("length", "change", "status"),
    [
        (20, None, NdisStatus.BUFFER_TOO_SHORT),
        (48, (0, "B", 0x81), NdisStatus.INVALID_DATA),
        (48, (1, "B", 7), NdisStatus.INVALID_DATA),
        (48, (2, "H", 23), NdisStatus.INVALID_LENGTH),
        (48, (8, "Q", 25), NdisStatus.INVALID_DATA),
        (48, (24 + 8, "Q", 24), NdisStatus.INVALID_DATA),
    ],
    ids=["short", "type", "revision", "size", "unaligned", "cycle"],
)
def test_broken_chain_deletes_nothing(
    length: int, change: tuple[int, str, int] | None, status: NdisStatus
) -> None:
    nic = Nic()
    buffer = delete_sa([nic.add(sa) for sa in SAS[:2]])[:length]
    if change is not None:
        struct.pack_into(f"<{change[1]}", buffer, change[0], change[2])
    assert ask(nic.adapter, DELETE_SA, buffer).status is status
    assert len(nic.adapter) == 2


@pytest.mark.rule(119, 120, 123)
def test_update_sets_the_upper_half_of_the_named_element() -> None:
    ours, theirs = Nic(), Nic()
    out = ours.add(ESN)
    theirs.add(replace(ESN, high=9), inbound=True)
    result = ask(ours.adapter, UPDATE_SA, update_sa(out, 2, ESN.spi, 9))
    assert (result.status, result.supported_revision) == (NdisStatus.SUCCESS, 1)
    info, _ = theirs.open(sealed(ours, ESN, framed(ESN, PAYLOAD), out))
    assert info is not None
    assert info.verified


@pytest.mark.rule(121, 122)
@pytest.mark.parametrize(
    ("handle", "operation", "spi", "status"),
    [
        (99, 2, ESN.spi, NdisStatus.INVALID_PARAMETER),
        (1, 1, ESN.spi, NdisStatus.INVALID_PARAMETER),
        (1, 2, ESN.spi + 1, NdisStatus.INVALID_PARAMETER),
        (2, 2, GCM.spi + 7, NdisStatus.INVALID_PARAMETER),
        (1, 3, ESN.spi, NdisStatus.INVALID_DATA),
        (1, 0, ESN.spi, NdisStatus.INVALID_DATA),
    ],
    ids=["handle", "operation", "spi", "no ESN", "reserved operation", "no operation"],
)
def test_update_of_what_is_not_there_is_refused(
    handle: int, operation: int, spi: int, status: NdisStatus
) -> None:
    nic = Nic()
    assert nic.add(ESN) == 1
    assert nic.add(replace(GCM, spi=GCM.spi + 7, label="no esn")) == 2
    assert ask(nic.adapter, UPDATE_SA, update_sa(handle, operation, spi, 9)).status is status


@pytest.mark.rule(120)
def test_update_of_one_element_leaves_the_other() -> None:
    ours, theirs = Nic(), Nic()
    ah = replace(AH_SHA256, esn=True, high=3)
    out = ours.add((ESN, ah))
    theirs.add((ESN, replace(ah, high=4)), inbound=True)
    assert ask(ours.adapter, UPDATE_SA, update_sa(out, 1, ah.spi, 4)).status is NdisStatus.SUCCESS
    info, _ = theirs.open(sealed(ours, (ESN, ah), framed((ESN, ah), PAYLOAD), OffloadHandle(out)))
    assert info is not None
    assert info.verified


@pytest.mark.rule(82)
@pytest.mark.parametrize("length", [0, 3, 27])
def test_short_update_says_how_long_it_has_to_be(length: int) -> None:
    nic = Nic()
    result = ask(nic.adapter, UPDATE_SA, bytes(update_sa(1, 2, 0x1000, 1))[:length])
    assert (result.status, result.bytes_needed) == (NdisStatus.BUFFER_TOO_SHORT, 28)
