"""OID_TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA and …_ADD_SA_EX in binary form (sheet §4.6, §4.7)."""

import struct
import time
from dataclasses import replace

import pytest
from nic_frames import (
    AH_SHA256,
    AH_SUITES,
    CBC_SHA1,
    ESP_SUITES,
    GCM,
    UNDER_AH_SUITES,
    V6,
    Nic,
    Sa,
    framed,
    sealed,
    seeded,
    suite_id,
)
from oid_bytes import (
    ADD_SA,
    ADD_SA_EX,
    PARAMETERS,
    add_sa,
    add_sa_ex,
    ask,
    begin,
    chain,
    finish,
    handle_of_ex,
    handles_of,
    parameters,
)

from vnic.miniport.adapter import MiniportAdapter
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oid import DeleteSa
from vnic.ndis.status import NdisStatus

PAYLOAD = b"what the host sends" * 3
GOOD = [replace(GCM, spi=0x1000 + n, label=n) for n in range(200)]


def bad(number: int) -> Sa:
    """An SA whose SPI is reserved."""
    return replace(GCM, spi=0, label=f"bad{number}")


@pytest.mark.rule(65, 84, 88)
@pytest.mark.parametrize("sa", [*ESP_SUITES, *AH_SUITES], ids=suite_id)
def test_sa_added_in_binary_form_works_like_one_added_by_a_typed_request(sa: Sa) -> None:
    ours, theirs = Nic(), Nic()
    result = ask(ours.adapter, ADD_SA, add_sa(sa))
    assert result.status is NdisStatus.SUCCESS
    (handle,) = handles_of(result.information_buffer)
    theirs.add(sa, inbound=True)
    info, _ = theirs.open(sealed(ours, sa, framed(sa, PAYLOAD), OffloadHandle(handle)))
    assert info is not None
    assert info.verified


@pytest.mark.rule(85, 109)
@pytest.mark.parametrize("sa", [*ESP_SUITES[-6:], *AH_SUITES], ids=suite_id)
def test_ex_form_of_an_sa_works_too(sa: Sa) -> None:
    ours, theirs = Nic(), Nic()
    result = ask(ours.adapter, ADD_SA_EX, add_sa_ex(sa, V6))
    assert result.status is NdisStatus.SUCCESS
    assert (result.bytes_read, result.supported_revision) == (len(result.information_buffer), 1)
    theirs.add(sa, V6, inbound=True)
    handle = OffloadHandle(handle_of_ex(result.information_buffer))
    info, _ = theirs.open(sealed(ours, sa, framed(sa, PAYLOAD, addresses=V6), handle))
    assert info is not None
    assert info.verified


@pytest.mark.rule(14, 96, 97, 98)
@pytest.mark.parametrize("esp", UNDER_AH_SUITES, ids=suite_id)
def test_bundle_of_esp_and_ah_has_one_handle(esp: Sa) -> None:
    ours, theirs = Nic(), Nic()
    result = ask(ours.adapter, ADD_SA, add_sa((esp, AH_SHA256)))
    (handle,) = handles_of(result.information_buffer)
    assert len(ours.adapter) == 1
    theirs.add((esp, AH_SHA256), inbound=True)
    one = framed((esp, AH_SHA256), PAYLOAD)
    info, _ = theirs.open(sealed(ours, (esp, AH_SHA256), one, OffloadHandle(handle)))
    assert info is not None
    assert info.verified


@pytest.mark.rule(101)
def test_inbound_flag_makes_an_inbound_sa() -> None:
    ours, theirs = Nic(), Nic()
    assert ask(theirs.adapter, ADD_SA, add_sa(GCM, inbound=True)).status is NdisStatus.SUCCESS
    info, _ = theirs.open(sealed(ours, GCM, framed(GCM, PAYLOAD), ours.add(GCM)))
    assert info is not None
    assert info.verified


@pytest.mark.rule(82, 87, 88)
def test_list_gives_every_entry_its_own_handle() -> None:
    nic = Nic()
    result = ask(nic.adapter, ADD_SA, chain([add_sa(sa) for sa in GOOD[:100]]))
    handles = handles_of(result.information_buffer)
    assert result.status is NdisStatus.SUCCESS
    assert len(set(handles)) == 100
    assert 0 not in handles
    assert len(nic.adapter) == 100
    assert result.supported_revision == 1
    assert result.bytes_read == len(result.information_buffer)


@pytest.mark.rule(89, 91)
def test_list_with_some_good_entries_succeeds_and_names_the_first_failure() -> None:
    nic = Nic()
    entries = [add_sa(sa) for sa in (bad(0), GOOD[0], replace(bad(1), encryption="aes-gcm-256"), GOOD[1])]
    result = ask(nic.adapter, ADD_SA, chain(entries))
    handles = handles_of(result.information_buffer)
    assert result.status is NdisStatus.SUCCESS
    assert [handle != 0 for handle in handles] == [False, True, False, True]
    assert len(nic.adapter) == 2
    assert "SPI" in result.message
    assert result.field.endswith("spi")


@pytest.mark.rule(90, 91)
def test_list_without_a_good_entry_fails_with_the_status_of_the_first() -> None:
    nic = Nic()
    wrong_key = add_sa(GCM)
    struct.pack_into("<I", wrong_key, 0x44 + 0x20, 19)
    unsupported = add_sa(replace(GCM, spi=0x9999))
    struct.pack_into("<I", unsupported, 0x44 + 0x1C, 0x4000)
    for entries, status in (
        ([wrong_key, unsupported], NdisStatus.INVALID_DATA),
        ([unsupported, wrong_key], NdisStatus.NOT_SUPPORTED),
    ):
        result = ask(nic.adapter, ADD_SA, chain([bytearray(entry) for entry in entries]))
        assert result.status is status
        assert handles_of(result.information_buffer) == [0, 0]
        assert (result.bytes_read, result.supported_revision) == (0, 0)
        assert len(nic.adapter) == 0


@pytest.mark.rule(32, 92)
def test_entries_beyond_the_capacity_fail_and_the_others_stay() -> None:
    nic = Nic.able(sa_offload_capacity=3)
    result = ask(nic.adapter, ADD_SA, chain([add_sa(sa) for sa in GOOD[:5]]))
    assert result.status is NdisStatus.SUCCESS
    assert [handle != 0 for handle in handles_of(result.information_buffer)] == [True] * 3 + [False] * 2
    assert ask(nic.adapter, ADD_SA, add_sa(GOOD[9])).status is NdisStatus.RESOURCES


@pytest.mark.rule(73, 95)
@pytest.mark.parametrize(
    ("offset", "form", "value", "status"),
    [
        (0, "B", 0x81, NdisStatus.INVALID_DATA),
        (1, "B", 2, NdisStatus.INVALID_DATA),
        (2, "H", 168, NdisStatus.INVALID_LENGTH),
        (8, "Q", 8, NdisStatus.INVALID_DATA),
        (8, "Q", 177, NdisStatus.INVALID_DATA),
        (8, "Q", 1 << 62, NdisStatus.INVALID_DATA),
        (0xA4, "I", 4097, NdisStatus.INVALID_DATA),
    ],
    ids=["type", "revision", "size", "backwards", "unaligned", "outside", "key area"],
)
def test_broken_chain_is_refused_before_anything_is_added(
    offset: int, form: str, value: int, status: NdisStatus
) -> None:
    nic = Nic()
    first, second = add_sa(GOOD[0]), add_sa(GOOD[1])
    buffer = chain([first, second])
    struct.pack_into(f"<{form}", buffer, (0 if form == "Q" else len(first)) + offset, value)
    before = bytes(buffer)
    result = ask(nic.adapter, ADD_SA, buffer)
    assert result.status is status
    assert result.message
    assert len(nic.adapter) == 0
    assert bytes(buffer) == before


@pytest.mark.rule(82)
@pytest.mark.parametrize(
    ("oid", "whole"),
    [(ADD_SA, bytes(add_sa(GCM)[: 0xA8 + 20])), (ADD_SA_EX, bytes(add_sa_ex(GCM)))],
    ids=["ADD_SA", "ADD_SA_EX"],
)
def test_short_buffer_says_how_long_it_has_to_be(oid: int, whole: bytes) -> None:
    nic = Nic()
    needed = 0
    for length in range(len(whole)):
        result = ask(nic.adapter, oid, whole[:length])
        assert (result.status, result.bytes_read) == (NdisStatus.BUFFER_TOO_SHORT, 0)
        assert length < result.bytes_needed <= len(whole)
        assert result.bytes_needed >= needed
        needed = result.bytes_needed
    assert len(nic.adapter) == 0


@pytest.mark.rule(74, 91)
def test_ex_entry_that_fails_has_the_null_handle() -> None:
    nic = Nic()
    result = ask(nic.adapter, ADD_SA_EX, add_sa_ex(bad(0)))
    assert result.status is NdisStatus.INVALID_DATA
    assert handle_of_ex(result.information_buffer) == 0
    wrong = add_sa_ex(GCM)
    struct.pack_into("<I", wrong, 0x04, 3)
    result = ask(nic.adapter, ADD_SA_EX, wrong)
    assert result.status is NdisStatus.INVALID_DATA
    assert handle_of_ex(result.information_buffer) == 0
    assert len(nic.adapter) == 0


@pytest.mark.rule(110)
def test_reserved_members_of_the_ex_form_mean_nothing() -> None:
    nic = Nic()
    buffer = add_sa_ex(GCM)
    struct.pack_into("<IH", buffer, 0xA4, 0xFFFFFFFF, 0xFFFF)
    assert ask(nic.adapter, ADD_SA_EX, buffer).status is NdisStatus.SUCCESS


@pytest.mark.rule(67, 68, 75, 76, 79)
def test_long_lists_are_worked_on_in_slices_beside_each_other() -> None:
    nic = Nic()
    first = begin(nic.adapter, ADD_SA, chain([add_sa(sa) for sa in GOOD[:100]]))
    second = begin(nic.adapter, ADD_SA, chain([add_sa(sa) for sa in GOOD[100:]]))
    assert first.result is None
    assert second.result is None
    assert 0 < len(nic.adapter) < 200
    handle = nic.add(replace(CBC_SHA1, spi=0x7777))
    assert sealed(nic, CBC_SHA1, framed(replace(CBC_SHA1, spi=0x7777), PAYLOAD), handle)
    while not (first.advance() and second.advance()):
        pass
    assert finish(first).status is NdisStatus.SUCCESS
    assert finish(second).status is NdisStatus.SUCCESS
    assert len(nic.adapter) == 201


@pytest.mark.rule(77)
def test_cancelled_list_takes_back_what_it_added() -> None:
    nic = Nic()
    kept = nic.add(replace(CBC_SHA1, spi=0x7777))
    other = begin(nic.adapter, ADD_SA, chain([add_sa(sa) for sa in GOOD[100:]]), request_id=8)
    operation = begin(nic.adapter, ADD_SA, chain([add_sa(sa) for sa in GOOD[:100]]), request_id=7)
    assert nic.adapter.cancel(0) == 0
    assert nic.adapter.cancel(9) == 0
    assert nic.adapter.cancel(7) == 1
    assert operation.result is not None
    assert operation.result.status is NdisStatus.REQUEST_ABORTED
    assert set(handles_of(operation.result.information_buffer)) == {0}
    assert operation.advance()
    assert nic.adapter.cancel(7) == 0
    assert finish(other).status is NdisStatus.SUCCESS
    assert len(nic.adapter) == 101
    assert nic.adapter.offers(kept)
    assert ask(nic.adapter, ADD_SA, add_sa(GOOD[0])).status is NdisStatus.SUCCESS


@pytest.mark.rule(67, 77)
def test_cancelled_list_copes_with_sas_that_somebody_has_deleted() -> None:
    nic = Nic()
    operation = begin(nic.adapter, ADD_SA, chain([add_sa(sa) for sa in GOOD[:100]]))
    handles = handles_of(bytes(operation.request.information_buffer))
    nic.adapter.delete_sa(DeleteSa(OffloadHandle(handles[0])))
    operation.abort()
    assert operation.result is not None
    assert operation.result.status is NdisStatus.REQUEST_ABORTED
    assert len(nic.adapter) == 0


@pytest.mark.rule(77)
def test_finished_request_cannot_be_ended_any_more() -> None:
    nic = Nic()
    operation = begin(nic.adapter, ADD_SA, add_sa(GCM), request_id=3)
    result = operation.result
    assert result is not None
    operation.abort()
    assert operation.result is result
    assert nic.adapter.cancel(3) == 0
    assert len(nic.adapter) == 1


@pytest.mark.rule(93)
def test_entries_after_a_change_of_configuration_are_judged_by_it() -> None:
    nic = Nic()
    operation = begin(nic.adapter, ADD_SA, chain([add_sa(sa) for sa in GOOD[:100]]))
    before = len(nic.adapter)
    assert ask(nic.adapter, PARAMETERS, parameters(IPsecV2=2)).status is NdisStatus.SUCCESS
    result = finish(operation)
    assert result.status is NdisStatus.SUCCESS
    assert sum(handle != 0 for handle in handles_of(result.information_buffer)) == before
    assert result.field


@pytest.mark.rule(83)
def test_thousand_sas_take_less_than_a_second_of_processor_time() -> None:
    nic = Nic()
    sas = [replace(GCM, spi=0x1000 + n, label=n) for n in range(1000)]
    buffer = chain([add_sa(sa) for sa in sas])
    begun = time.process_time()
    assert ask(nic.adapter, ADD_SA, buffer).status is NdisStatus.SUCCESS
    assert time.process_time() - begun < 1


def test_no_answer_shows_a_key() -> None:
    nic = Nic()
    sa = replace(bad(0), label="secret")
    result = ask(nic.adapter, ADD_SA, add_sa(sa))
    key = sa.encryption_key.reveal()
    for text in (result.message, result.field, result.value, result.allowed):
        assert key.hex() not in text
    assert key.hex() not in repr(result)
    assert repr(key)[2:-1] not in repr(result)


@pytest.mark.rule(88)
def test_handles_of_two_nics_differ() -> None:
    nics = [MiniportAdapter(seeded().randbytes, first_handle=(serial << 32) + 1) for serial in range(2)]
    handles = [handles_of(ask(nic, ADD_SA, add_sa(GCM)).information_buffer)[0] for nic in nics]
    assert handles == [1, (1 << 32) + 1]
    assert not nics[0].offers(OffloadHandle(handles[1]))
