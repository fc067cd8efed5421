"""OID requests and frames while the NIC is reset, paused, removed or restarted (sheet §4.3, §12)."""

from dataclasses import replace

import pytest
from nic_frames import GCM, Nic, framed, sealed
from oid_bytes import (
    ADD_SA,
    ADD_SA_EX,
    ALL_OIDS,
    CURRENT_CONFIG,
    DELETE_SA,
    ENCAPSULATION,
    HARDWARE_CAPABILITIES,
    PARAMETERS,
    QUERIED,
    SETTABLE,
    TASK_OFFLOAD,
    UPDATE_SA,
    V1_ADD,
    V1_ADD_UDPESP,
    V1_DELETE,
    V1_DELETE_UDPESP,
    add_sa,
    add_sa_ex,
    ask,
    begin,
    chain,
    delete_sa,
    encapsulation,
    finish,
    handles_of,
    parameters,
    query,
    tasks,
    update_sa,
    v1_add_sa,
    v1_add_udpesp,
    v1_handle,
)

from vnic.errors import OidError
from vnic.miniport.adapter import AdapterState
from vnic.ndis.netbuffer import NetBuffer, NetBufferList, OffloadHandle
from vnic.ndis.oid import DeleteSa
from vnic.ndis.status import IndicationCode, NdisStatus

SAS = [replace(GCM, spi=0x1000 + n, label=n) for n in range(100)]
V1_SA = replace(GCM, encryption="3des-cbc", integrity="hmac-sha1-96")
PAYLOAD = bytes(50)

GOOD_BUFFERS = {
    ENCAPSULATION: encapsulation(),
    TASK_OFFLOAD: tasks(),
    V1_ADD: v1_add_sa(V1_SA),
    V1_DELETE: (1).to_bytes(8, "little"),
    V1_ADD_UDPESP: v1_add_udpesp(V1_SA),
    V1_DELETE_UDPESP: (1).to_bytes(16, "little"),
    PARAMETERS: parameters(IPsecV2=1),
    ADD_SA: add_sa(replace(GCM, spi=0x9999, label="new")),
    ADD_SA_EX: add_sa_ex(replace(GCM, spi=0x9999, label="new")),
    DELETE_SA: delete_sa([1]),
    UPDATE_SA: update_sa(1, 2, 0x1000, 4),
}
DELETES = (DELETE_SA, V1_DELETE, V1_DELETE_UDPESP)


def with_sa() -> Nic:
    """A card with one SA, handle 1, that has an ESN."""
    nic = Nic()
    assert nic.add(replace(GCM, esn=True)) == 1
    nic.adapter.take_indications()
    return nic


@pytest.mark.parametrize("oid", [0, 0x00010101, 0xFC010204, 0xFC030201, 0xFC030206, 1 << 40, -1])
def test_unknown_oid_is_invalid(oid: int) -> None:
    for kind in (0, 1, 2, 12):
        assert ask(Nic().adapter, oid, bytes(64), kind).status is NdisStatus.INVALID_OID


@pytest.mark.rule(58, 59)
@pytest.mark.parametrize("oid", ALL_OIDS, ids=hex)
def test_request_of_the_wrong_type_is_not_supported(oid: int) -> None:
    nic = with_sa()
    wrong = [2, 12, 77]
    wrong += [] if oid in QUERIED else [0]
    wrong += [] if oid in SETTABLE else [1]
    for kind in wrong:
        result = ask(nic.adapter, oid, bytes(GOOD_BUFFERS.get(oid, bytes(512))), kind)
        assert result.status is NdisStatus.NOT_SUPPORTED
        assert result.field == "request_type"
    assert len(nic.adapter) == 1


@pytest.mark.parametrize("oid", SETTABLE, ids=hex)
def test_good_buffers_of_this_module_are_good(oid: int) -> None:
    nic = with_sa()
    assert ask(nic.adapter, oid, bytes(GOOD_BUFFERS[oid])).status is NdisStatus.SUCCESS


@pytest.mark.rule(80)
@pytest.mark.parametrize("oid", ALL_OIDS, ids=hex)
def test_removed_nic_accepts_nothing(oid: int) -> None:
    nic = with_sa()
    nic.adapter.remove()
    for kind in (0, 1):
        result = ask(nic.adapter, oid, bytes(GOOD_BUFFERS.get(oid, bytes(512))), kind)
        assert result.status is NdisStatus.NOT_ACCEPTED
    assert ask(nic.adapter, 5, b"").status is NdisStatus.NOT_ACCEPTED
    assert len(nic.adapter) == 1


@pytest.mark.rule(208)
@pytest.mark.parametrize("oid", [oid for oid in SETTABLE if oid not in DELETES], ids=hex)
def test_sets_during_a_reset_are_told_so(oid: int) -> None:
    nic = with_sa()
    nic.adapter.begin_reset()
    assert ask(nic.adapter, oid, bytes(GOOD_BUFFERS[oid])).status is NdisStatus.RESET_IN_PROGRESS
    nic.adapter.end_reset()
    assert len(nic.adapter) == 1
    assert ask(nic.adapter, oid, bytes(GOOD_BUFFERS[oid])).status is NdisStatus.SUCCESS


@pytest.mark.rule(115)
@pytest.mark.parametrize("oid", DELETES, ids=hex)
def test_deletes_during_a_reset_are_not_accepted(oid: int) -> None:
    nic = with_sa()
    nic.adapter.begin_reset()
    assert ask(nic.adapter, oid, bytes(GOOD_BUFFERS[oid])).status is NdisStatus.NOT_ACCEPTED
    assert len(nic.adapter) == 1


@pytest.mark.rule(58, 59)
@pytest.mark.parametrize("oid", [CURRENT_CONFIG, HARDWARE_CAPABILITIES, ENCAPSULATION], ids=hex)
def test_queries_that_ndis_answers_are_answered_during_a_reset(oid: int) -> None:
    nic = with_sa()
    before = query(nic.adapter, oid)
    nic.adapter.begin_reset()
    assert query(nic.adapter, oid) == before
    assert before.status is NdisStatus.SUCCESS


@pytest.mark.rule(116, 207)
def test_reset_ends_the_requests_under_way() -> None:
    nic = Nic()
    handles = [nic.add(sa) for sa in SAS]
    adding = begin(nic.adapter, ADD_SA, chain([add_sa(replace(s, label="b"), inbound=True) for s in SAS]))
    deleting = begin(nic.adapter, DELETE_SA, delete_sa(handles))
    assert adding.result is None
    assert deleting.result is None
    nic.adapter.begin_reset()
    for operation in (adding, deleting):
        assert operation.result is not None
        assert operation.result.status is NdisStatus.REQUEST_ABORTED
    assert set(handles_of(finish(adding).information_buffer)) == {0}
    left = [handle for handle in handles if nic.adapter.offers(handle)]
    assert len(nic.adapter) == len(left)
    assert 0 < len(left) < 100


@pytest.mark.rule(204, 205, 210)
def test_sas_and_configuration_survive_a_reset() -> None:
    ours, theirs = Nic(), Nic()
    out = ours.add(GCM)
    theirs.add(GCM, inbound=True)
    before = (ours.adapter.current, ours.adapter.keywords)
    for nic in (ours, theirs):
        nic.adapter.begin_reset()
        nic.adapter.end_reset()
    assert (ours.adapter.current, ours.adapter.keywords) == before
    info, _ = theirs.open(sealed(ours, GCM, framed(GCM, PAYLOAD), out))
    assert info is not None
    assert info.verified


@pytest.mark.rule(209)
def test_reset_is_announced_once_around_what_happens_in_it() -> None:
    nic = with_sa()
    nic.adapter.begin_reset()
    nic.adapter.begin_reset()
    nic.adapter.end_reset()
    nic.adapter.end_reset()
    codes = [indication.code for indication in nic.adapter.take_indications()]
    assert codes == [IndicationCode.RESET_START, IndicationCode.RESET_END]
    assert nic.adapter.take_indications() == []


@pytest.mark.rule(80, 212)
@pytest.mark.parametrize("end", ["remove", "halt", "restart"])
def test_reset_that_ends_with_the_nic_is_announced_as_ended(end: str) -> None:
    nic = with_sa()
    v1 = ask(nic.adapter, V1_ADD_UDPESP, v1_add_udpesp(replace(V1_SA, spi=0x7777), inbound=True))
    nic.adapter.begin_reset()
    handle = v1_handle(v1.information_buffer)
    result = ask(nic.adapter, V1_DELETE_UDPESP, handle.to_bytes(16, "little"))
    assert result.status is NdisStatus.NOT_ACCEPTED
    getattr(nic.adapter, end)()
    nic.adapter.end_reset()
    codes = [one.code for one in nic.adapter.take_indications()]
    assert codes[:2] == [IndicationCode.RESET_START, IndicationCode.RESET_END]
    assert IndicationCode.RESET_START not in codes[1:]


@pytest.mark.rule(206)
@pytest.mark.parametrize(
    ("stop", "status", "state"),
    [
        ("begin_reset", NdisStatus.REQUEST_ABORTED, AdapterState.RESETTING),
        ("pause", NdisStatus.PAUSED, AdapterState.PAUSED),
        ("remove", NdisStatus.FAILURE, AdapterState.REMOVED),
        ("halt", NdisStatus.FAILURE, AdapterState.HALTED),
    ],
)
def test_stopped_nic_moves_no_frames(stop: str, status: NdisStatus, state: AdapterState) -> None:
    ours, theirs = Nic(), Nic()
    one = framed(GCM, PAYLOAD)
    out = ours.add(GCM)
    theirs.add(GCM, inbound=True)
    frame = sealed(ours, GCM, one, out)
    for nic in (ours, theirs):
        getattr(nic.adapter, stop)()
        assert nic.adapter.state is state
    plain, protected = NetBuffer(bytearray(one.frame)), NetBuffer(bytearray(one.frame), None, one.info(out))
    ours.adapter.send([plain, protected])
    assert [plain.status, protected.status] == [status, status]
    assert bytes(protected.frame) == one.frame
    lists = [NetBufferList(n, [bytearray(one.frame)], info) for n, info in enumerate((None, one.info(out)))]
    assert ours.adapter.transmit(lists) == []
    assert [nbl.status for nbl in lists] == [status, status]
    assert theirs.open(frame) == (None, frame)


def test_paused_nic_still_takes_requests() -> None:
    nic = with_sa()
    nic.adapter.pause()
    for oid in (ADD_SA, UPDATE_SA, DELETE_SA, PARAMETERS):
        assert ask(nic.adapter, oid, bytes(GOOD_BUFFERS[oid])).status is NdisStatus.SUCCESS
    nic.adapter.resume()
    assert nic.adapter.state is AdapterState.RUNNING


def test_reset_of_a_paused_nic_leaves_it_paused() -> None:
    nic = with_sa()
    nic.adapter.pause()
    nic.adapter.begin_reset()
    assert nic.adapter.state is AdapterState.RESETTING
    nic.adapter.end_reset()
    assert nic.adapter.state is AdapterState.PAUSED


@pytest.mark.rule(80)
def test_removal_ends_the_requests_under_way() -> None:
    nic = Nic()
    operation = begin(nic.adapter, ADD_SA, chain([add_sa(sa) for sa in SAS]))
    nic.adapter.remove()
    assert operation.result is not None
    assert operation.result.status is NdisStatus.REQUEST_ABORTED
    assert len(nic.adapter) == 0


@pytest.mark.rule(211, 212, 213)
def test_halted_nic_has_forgotten_every_sa() -> None:
    nic = Nic.able(sa_offload_capacity=100)
    for sa in SAS:
        nic.add(sa)
    nic.adapter.halt()
    assert len(nic.adapter) == 0
    with pytest.raises(OidError) as caught:
        nic.add(GCM)
    assert caught.value.status is NdisStatus.NOT_ACCEPTED


@pytest.mark.rule(40, 55)
def test_restarted_nic_is_empty_deaf_and_gives_no_handle_twice() -> None:
    nic = with_sa()
    nic.adapter.remove()
    nic.adapter.restart()
    assert nic.adapter.state is AdapterState.RUNNING
    assert len(nic.adapter) == 0
    assert nic.adapter.capabilities.encapsulation == 0
    with pytest.raises(OidError) as caught:
        nic.adapter.delete_sa(DeleteSa(OffloadHandle(1)))
    assert caught.value.status is NdisStatus.INVALID_PARAMETER
    assert nic.add(GCM) > 1


@pytest.mark.rule(80, 115)
def test_typed_requests_meet_the_same_refusals() -> None:
    nic = with_sa()
    calls = (
        lambda: nic.add(replace(GCM, label="other")),
        lambda: nic.adapter.set_encapsulation(True, True),
        lambda: nic.adapter.delete_sa(DeleteSa(OffloadHandle(1))),
    )
    nic.adapter.begin_reset()
    expected = (NdisStatus.RESET_IN_PROGRESS, NdisStatus.RESET_IN_PROGRESS, NdisStatus.NOT_ACCEPTED)
    for call, status in zip(calls, expected, strict=True):
        with pytest.raises(OidError) as caught:
            call()
        assert caught.value.status is status
    nic.adapter.remove()
    for call in calls:
        with pytest.raises(OidError) as caught:
            call()
        assert caught.value.status is NdisStatus.NOT_ACCEPTED


def test_query_reads_nothing_and_a_set_writes_no_answer() -> None:
    nic = with_sa()
    assert query(nic.adapter, CURRENT_CONFIG).bytes_read == 0
    assert ask(nic.adapter, ENCAPSULATION, bytes(encapsulation())).bytes_written == 0
