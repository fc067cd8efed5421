"""The security association database: here and in the NIC, or in neither."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transport_lab import (
    AH,
    ANY,
    ESP,
    FAR,
    FAR6,
    IN,
    NEAR,
    NEAR6,
    OUT,
    TRANSPORT,
    FakeNic,
    address,
    association,
    key_fragments,
    selector,
    template,
)

from vnic.errors import OidError, RequestError
from vnic.ipsec.association import KeyMaterial, SaId, SecurityAssociation
from vnic.ipsec.policy import FlowKey
from vnic.ipsec.replay import ReplayVerdict
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oid import NO_ALGORITHM, AddSa, DeleteSa, Operation, UpdateSa
from vnic.ndis.status import NdisStatus
from vnic.transport.sad import Sad
from vnic.transport.state import SaState

TAKEN = NdisStatus.SUCCESS


def database(capacity: int = 1000) -> tuple[FakeNic, Sad]:
    nic = FakeNic(capacity)
    return nic, Sad(nic)


def sequence_of(state: SaState) -> int:
    assert state.sequence is not None
    return state.sequence.take()


# adding


def test_added_sa_is_here_and_in_the_nic() -> None:
    nic, sad = database()
    sa = association(reqid=7)
    handle = sad.add(sa, now=12.5)
    state = sad.table[sa.id]
    assert (state.sa, state.handle, state.add_time, state.use_time) == (sa.checked(), handle, 12.5, 0.0)
    assert sad.find_handle(handle) == sa.id
    assert list(nic.bundles) == [handle]


@pytest.mark.rule(96)
def test_request_says_what_the_nic_needs_and_no_more() -> None:
    nic, sad = database()
    sa = association(
        IN,
        TRANSPORT,
        encryption="aes-cbc-256",
        integrity="hmac-sha256-128",
        esn=True,
        sequence_number=(7 << 32) + 5,
    )
    sad.add(sa, 0.0)
    (request,) = nic.requests
    assert isinstance(request, AddSa)
    assert (request.inbound, request.source, request.destination) == (True, address(NEAR), address(FAR))
    assert request.portion is TRANSPORT
    (element,) = request.elements
    assert (element.operation, element.spi, element.esn) == (Operation.ESP, 0x1000, True)
    assert element.sequence_number_high_order == 7
    assert (element.encryption.identifier, element.encryption.key) == (0x100, sa.encryption_key)
    assert (element.authentication.identifier, element.authentication.key) == (0x004, sa.integrity_key)
    assert (element.encryption.additional_info, element.authentication.additional_info) == (0, 0)


@pytest.mark.rule(102)
def test_ah_has_no_encryption_and_gcm_no_authentication() -> None:
    nic, sad = database()
    sad.add(association(protocol=AH, mode=TRANSPORT), 0.0)
    sad.add(association(spi=0x2000), 0.0)
    ah, gcm = (request.elements[0] for request in nic.requests if isinstance(request, AddSa))
    assert (ah.operation, ah.encryption) == (Operation.AH, NO_ALGORITHM)
    assert (gcm.encryption.identifier, gcm.authentication) == (0x008, NO_ALGORITHM)


@pytest.mark.rule(107)
@pytest.mark.parametrize("length", [8, 12, 16])
def test_icv_length_of_gcm_goes_into_the_additional_info(length: int) -> None:
    nic, sad = database()
    sad.add(association(icv_length=length), 0.0)
    (request,) = nic.requests
    assert isinstance(request, AddSa)
    assert request.elements[0].encryption.additional_info == length


@pytest.mark.parametrize(("length", "told"), [(0, 0), (16, 0), (12, 12)])
def test_icv_length_of_sha256_is_told_only_if_it_is_not_that_of_the_rfc(length: int, told: int) -> None:
    nic, sad = database()
    sad.add(association(encryption="null", integrity="hmac-sha256-128", icv_length=length), 0.0)
    (request,) = nic.requests
    assert isinstance(request, AddSa)
    assert request.elements[0].authentication.additional_info == told


def test_only_inbound_sas_are_in_the_receive_table() -> None:
    _, sad = database()
    sad.add(association(), 0.0)
    inbound = association(IN, source=FAR, destination=NEAR)
    sad.add(inbound, 0.0)
    assert list(sad.inbound) == [inbound.id]
    assert sad.inbound[address(NEAR), 50, 0x1000] is sad.table[inbound.id]


def test_sas_are_listed_oldest_first() -> None:
    _, sad = database()
    for spi in (0x300, 0x100, 0x200):
        sad.add(association(spi=spi), 0.0)
    assert [state.sa.spi for state in sad] == [0x300, 0x100, 0x200]


def test_bad_sa_is_refused_before_the_nic_hears_of_it() -> None:
    nic, sad = database()
    with pytest.raises(RequestError):
        sad.add(association(spi=0), 0.0)
    assert (nic.requests, list(sad), sad.generation) == ([], [], 0)


def test_refusal_of_the_nic_leaves_nothing_behind() -> None:
    nic, sad = database()
    nic.refusals = [NdisStatus.NOT_SUPPORTED]
    with pytest.raises(OidError) as refused:
        sad.add(association(), 0.0)
    assert refused.value.status is NdisStatus.NOT_SUPPORTED
    assert (list(sad), sad.inbound, nic.bundles) == ([], {}, {})
    assert sad.add(association(), 0.0)


def test_duplicate_is_refused_and_changes_nothing() -> None:
    nic, sad = database()
    handle = sad.add(association(), 0.0)
    generation = sad.generation
    with pytest.raises(OidError) as refused:
        sad.add(association(seed=1), 1.0)
    assert refused.value.status is NdisStatus.INVALID_PARAMETER
    assert refused.value.field == "spi"
    assert len(nic.requests) == 1
    assert sad.table[association().id].handle == handle
    assert sad.generation == generation


@pytest.mark.parametrize(
    "other",
    [
        association(spi=0x1001),
        association(destination="192.0.2.3"),
        association(protocol=AH, mode=TRANSPORT),
        association(source=NEAR6, destination=FAR6),
    ],
)
def test_sas_that_differ_in_spi_destination_or_protocol_are_different(other: SecurityAssociation) -> None:
    _, sad = database()
    sad.add(association(), 0.0)
    sad.add(other, 0.0)
    assert len(sad.table) == 2


# replacing


def test_replacing_what_is_not_there_is_refused() -> None:
    nic, sad = database()
    with pytest.raises(OidError) as refused:
        sad.add(association(), 0.0, replace_existing=True)
    assert refused.value.status is NdisStatus.INVALID_PARAMETER
    assert nic.requests == []


def test_direction_cannot_change() -> None:
    _, sad = database()
    sad.add(association(), 0.0)
    with pytest.raises(OidError) as refused:
        sad.add(association(IN), 0.0, replace_existing=True)
    assert (refused.value.field, refused.value.allowed) == ("dir", "out")


def test_replaced_sa_with_the_same_keys_goes_on_with_its_numbers() -> None:
    nic, sad = database()
    sa = association()
    sad.add(sa, 0.0)
    for _ in range(9):
        sequence_of(sad.table[sa.id])
    sad.add(replace(sa, reqid=5), 1.0, replace_existing=True)
    state = sad.table[sa.id]
    assert state.sa.reqid == 5
    assert sequence_of(state) == 10
    assert len(nic.bundles) == 1


def test_replaced_sa_with_other_keys_starts_its_numbers_anew() -> None:
    _, sad = database()
    sa = association()
    sad.add(sa, 0.0)
    for _ in range(9):
        sequence_of(sad.table[sa.id])
    sad.add(association(seed=1), 1.0, replace_existing=True)
    assert sequence_of(sad.table[sa.id]) == 1


def test_numbers_never_go_back_while_the_keys_stay() -> None:
    _, sad = database()
    sa = association(sequence_number=100)
    sad.add(sa, 0.0)
    sad.add(replace(sa, sequence_number=50), 1.0, replace_existing=True)
    assert sequence_of(sad.table[sa.id]) == 101
    sad.add(replace(sa, sequence_number=500), 1.0, replace_existing=True)
    assert sequence_of(sad.table[sa.id]) == 501


def test_dropping_esn_is_refused_once_the_numbers_need_it() -> None:
    nic, sad = database()
    sa = association(esn=True, sequence_number=1 << 33)
    handle = sad.add(sa, 0.0)
    with pytest.raises(RequestError) as refused:
        sad.add(replace(sa, esn=False, sequence_number=0), 1.0, replace_existing=True)
    assert refused.value.field == "sequence-number"
    assert list(nic.bundles) == [handle]


def inbound_state(sad: Sad, sa: SecurityAssociation, *numbers: int) -> SaState:
    state = sad.table[sa.id]
    assert state.window is not None
    for number in numbers:
        state.window.advance(number)
    return state


def verdicts(sad: Sad, sa: SecurityAssociation, *numbers: int) -> list[ReplayVerdict]:
    window = sad.table[sa.id].window
    assert window is not None
    assert sad.inbound[sa.id] is sad.table[sa.id]
    return [window.check(number) for number in numbers]


def test_replaced_inbound_sa_keeps_its_window_while_keys_and_size_stay() -> None:
    _, sad = database()
    sa = association(IN, source=FAR, destination=NEAR)
    sad.add(sa, 0.0)
    inbound_state(sad, sa, 5, 9)
    sad.add(replace(sa, reqid=1), 1.0, replace_existing=True)
    assert verdicts(sad, sa, 5, 9, 8, 10) == [
        ReplayVerdict.DUPLICATE,
        ReplayVerdict.DUPLICATE,
        ReplayVerdict.NEW,
        ReplayVerdict.NEW,
    ]


@pytest.mark.parametrize("change", [{"replay_window": 128}, {"sequence_number": 20}])
def test_window_of_another_size_or_start_takes_nothing_it_may_have_seen(change: dict[str, int]) -> None:
    _, sad = database()
    sa = association(IN, source=FAR, destination=NEAR)
    sad.add(sa, 0.0)
    inbound_state(sad, sa, 5, 9)
    sad.add(replace(sa, **change), 1.0, replace_existing=True)  # type: ignore[arg-type]
    top = change.get("sequence_number", 9)
    assert sad.table[sa.id].sequence_number == top
    assert verdicts(sad, sa, 5, 8, 9, top, top + 1) == [ReplayVerdict.DUPLICATE] * 4 + [ReplayVerdict.NEW]


def test_replaced_sa_with_other_keys_has_an_empty_window() -> None:
    _, sad = database()
    sa = association(IN, source=FAR, destination=NEAR)
    sad.add(sa, 0.0)
    inbound_state(sad, sa, 5, 9)
    sad.add(association(IN, source=FAR, destination=NEAR, seed=1), 1.0, replace_existing=True)
    assert verdicts(sad, sa, 5, 9) == [ReplayVerdict.NEW] * 2


def test_counters_survive_a_replacement() -> None:
    _, sad = database()
    sa = association()
    sad.add(sa, 0.0)
    sad.table[sa.id].counters.packets = 42
    sad.add(association(seed=1), 1.0, replace_existing=True)
    assert sad.table[sa.id].counters.packets == 42


def test_refused_replacement_leaves_the_old_sa_at_work() -> None:
    nic, sad = database()
    sa = association()
    sad.add(sa, 0.0)
    for _ in range(3):
        sequence_of(sad.table[sa.id])
    generation = sad.generation
    nic.refusals = [NdisStatus.NOT_SUPPORTED, TAKEN]
    with pytest.raises(OidError):
        sad.add(association(seed=1), 1.0, replace_existing=True)
    state = sad.table[sa.id]
    assert state.sa == sa.checked()
    assert list(nic.bundles) == [state.handle]
    assert sequence_of(state) == 4
    assert sad.generation != generation, "frames must not go on quoting the handle withdrawn"


# deleting


def test_deleted_sa_is_gone_from_both() -> None:
    nic, sad = database()
    sa = association(IN, source=FAR, destination=NEAR)
    handle = sad.add(sa, 0.0)
    assert sad.delete(sa.id) == sa.checked()
    assert (list(sad), sad.inbound, nic.bundles) == ([], {}, {})
    assert sad.find_handle(handle) is None
    assert nic.requests[-1] == DeleteSa(handle)


def test_deleting_what_is_not_there_is_refused() -> None:
    nic, sad = database()
    with pytest.raises(OidError) as refused:
        sad.delete(SaId(address(FAR), ESP, 0x1000))
    assert refused.value.status is NdisStatus.INVALID_PARAMETER
    assert refused.value.allowed
    assert nic.requests == []


def test_old_handle_of_a_replaced_sa_names_it_until_it_is_deleted() -> None:
    _, sad = database()
    sa = association()
    first = sad.add(sa, 0.0)
    second = sad.add(replace(sa, reqid=1), 1.0, replace_existing=True)
    assert first != second
    assert sad.find_handle(first) == sad.find_handle(second) == sa.id
    sad.delete(sa.id)
    assert sad.find_handle(first) is None
    assert sad.find_handle(second) is None


def test_handle_that_nobody_gave_names_nothing() -> None:
    _, sad = database()
    sad.add(association(), 0.0)
    assert sad.find_handle(OffloadHandle(0)) is None
    assert sad.find_handle(OffloadHandle(0xFFFF)) is None


def test_every_change_is_a_new_generation() -> None:
    _, sad = database()
    seen = [sad.generation]
    sa = association()
    sad.add(sa, 0.0)
    seen.append(sad.generation)
    sad.add(replace(sa, reqid=1), 0.0, replace_existing=True)
    seen.append(sad.generation)
    sad.delete(sa.id)
    seen.append(sad.generation)
    assert len(set(seen)) == 4


# extended numbers


def test_update_sets_the_upper_half_here_and_in_the_nic() -> None:
    nic, sad = database()
    sa = association(esn=True, sequence_number=5)
    handle = sad.add(sa, 0.0)
    sad.update(sa.id, 3)
    assert nic.requests[-1] == UpdateSa(handle, Operation.ESP, 0x1000, 3)
    assert sequence_of(sad.table[sa.id]) == (3 << 32) + 6


def test_update_of_an_inbound_sa_restarts_its_window_full() -> None:
    _, sad = database()
    sa = association(IN, source=FAR, destination=NEAR, esn=True)
    sad.add(sa, 0.0)
    inbound_state(sad, sa, 100)
    sad.update(sa.id, 1)
    top = (1 << 32) + 100
    assert sad.table[sa.id].sequence_number == top
    assert verdicts(sad, sa, 99, top, top - 1, top + 1) == [
        ReplayVerdict.TOO_OLD,
        ReplayVerdict.DUPLICATE,
        ReplayVerdict.DUPLICATE,
        ReplayVerdict.NEW,
    ]


def test_update_to_the_same_half_keeps_the_window() -> None:
    _, sad = database()
    sa = association(IN, source=FAR, destination=NEAR, esn=True)
    sad.add(sa, 0.0)
    inbound_state(sad, sa, 100)
    sad.update(sa.id, 0)
    assert verdicts(sad, sa, 99, 100) == [ReplayVerdict.NEW, ReplayVerdict.DUPLICATE]


@pytest.mark.parametrize(
    ("members", "high"),
    [
        ({"esn": True, "sequence_number": 5 << 32}, 4),
        ({"esn": True, "sequence_number": 5 << 32}, -1),
        ({"esn": True}, 1 << 32),
        ({}, 0),
        ({}, 1),
    ],
)
@pytest.mark.parametrize("direction", [IN, OUT])
def test_update_never_goes_back_and_needs_esn(direction, members: dict[str, int], high: int) -> None:  # type: ignore[no-untyped-def]
    nic, sad = database()
    sa = association(direction, **members)
    sad.add(sa, 0.0)
    before = sad.table[sa.id].sequence_number
    with pytest.raises(OidError) as refused:
        sad.update(sa.id, high)
    assert refused.value.status is NdisStatus.INVALID_PARAMETER
    assert refused.value.allowed
    assert sad.table[sa.id].sequence_number == before
    assert len(nic.requests) == 1


def test_update_of_what_is_not_there_is_refused() -> None:
    _, sad = database()
    with pytest.raises(OidError):
        sad.update(SaId(address(FAR), ESP, 0x1000), 0)


def test_update_refused_by_the_nic_changes_no_number() -> None:
    nic, sad = database()
    sa = association(esn=True)
    sad.add(sa, 0.0)
    nic.bundles.clear()
    with pytest.raises(OidError):
        sad.update(sa.id, 1)
    assert sequence_of(sad.table[sa.id]) == 1


# bundles

ESP_SA = association(mode=TRANSPORT, spi=0x1000)
AH_SA = association(mode=TRANSPORT, spi=0x2000, protocol=AH)


def bundled(capacity: int = 1000) -> tuple[FakeNic, Sad, SaState, SaState]:
    nic, sad = database(capacity)
    sad.add(ESP_SA, 0.0)
    sad.add(AH_SA, 0.0)
    esp, ah = sad.table[ESP_SA.id], sad.table[AH_SA.id]
    sad.bundle(esp, ah)
    return nic, sad, esp, ah


@pytest.mark.rule(98)
def test_bundle_is_one_request_with_esp_before_ah() -> None:
    nic, _sad, esp, ah = bundled()
    assert nic.spis() == [(0x1000, 0x2000)]
    assert esp.handle == ah.handle == next(iter(nic.bundles))
    assert (esp.partner, ah.partner) == (ah, esp)
    (held,) = nic.bundles.values()
    assert [element.operation for element in held.elements] == [Operation.ESP, Operation.AH]
    assert (held.inbound, held.portion) == (False, TRANSPORT)


def test_bundling_twice_asks_the_nic_once() -> None:
    nic, sad, esp, ah = bundled()
    count = len(nic.requests)
    assert sad.bundle(esp, ah) == esp.handle
    assert len(nic.requests) == count


def test_handle_of_a_bundle_means_its_esp_sa_and_old_handles_still_mean_theirs() -> None:
    _nic, sad = database()
    esp_handle, ah_handle = sad.add(ESP_SA, 0.0), sad.add(AH_SA, 0.0)
    handle = sad.bundle(sad.table[ESP_SA.id], sad.table[AH_SA.id])
    assert [sad.find_handle(one) for one in (handle, esp_handle, ah_handle)] == [
        ESP_SA.id,
        ESP_SA.id,
        AH_SA.id,
    ]


@pytest.mark.parametrize("gone", [ESP_SA, AH_SA], ids=["ESP", "AH"])
def test_deleting_one_of_a_bundle_leaves_the_other_offloaded_alone(gone: SecurityAssociation) -> None:
    nic, sad, _, _ = bundled()
    left = AH_SA if gone is ESP_SA else ESP_SA
    sad.delete(gone.id)
    state = sad.table[left.id]
    assert nic.spis() == [(left.spi,)]
    assert list(nic.bundles) == [state.handle]
    assert state.partner is None
    assert sad.find_handle(state.handle) == left.id


@pytest.mark.parametrize("gone", [ESP_SA, AH_SA], ids=["ESP", "AH"])
def test_bundle_can_be_deleted_from_a_nic_that_is_full(gone: SecurityAssociation) -> None:
    # A bundle takes one place; its two SAs alone would take two.
    nic, sad, _, _ = bundled(capacity=2)
    sad.add(association(spi=0x3000), 0.0)
    assert len(nic.bundles) == 2
    sad.delete(gone.id)
    left = AH_SA if gone is ESP_SA else ESP_SA
    assert sorted(nic.spis()) == sorted([(left.spi,), (0x3000,)])
    assert sad.table[left.id].handle in nic.bundles


def test_all_handles_of_a_bundle_are_gone_with_its_last_sa() -> None:
    nic, sad, esp, ah = bundled()
    handles = {esp.handle, *esp.past_handles, *ah.past_handles}
    sad.delete(ESP_SA.id)
    sad.delete(AH_SA.id)
    assert nic.bundles == {}
    assert [sad.find_handle(handle) for handle in handles] == [None] * len(handles)
    assert sad._handles == {}


def test_refused_bundle_leaves_both_as_they_were() -> None:
    nic, sad = database()
    sad.add(ESP_SA, 0.0)
    sad.add(AH_SA, 0.0)
    esp, ah = sad.table[ESP_SA.id], sad.table[AH_SA.id]
    generation = sad.generation
    nic.refusals = [NdisStatus.NOT_SUPPORTED]
    with pytest.raises(OidError):
        sad.bundle(esp, ah)
    assert sorted(nic.spis()) == [(0x1000,), (0x2000,)]
    assert {esp.handle, ah.handle} == set(nic.bundles)
    assert (esp.partner, ah.partner) == (None, None)
    assert sad.generation != generation, "frames must not go on quoting the handles withdrawn"


def test_unbundling_puts_both_back_alone() -> None:
    nic, sad, esp, ah = bundled()
    sad.unbundle(ah)
    assert sorted(nic.spis()) == [(0x1000,), (0x2000,)]
    assert {esp.handle, ah.handle} == set(nic.bundles)
    assert (esp.partner, ah.partner) == (None, None)


def test_unbundling_that_the_nic_has_no_room_for_leaves_the_bundle() -> None:
    nic, sad, esp, ah = bundled(capacity=1 + 1)
    sad.add(association(spi=0x3000), 0.0)
    with pytest.raises(OidError) as refused:
        sad.unbundle(esp)
    assert refused.value.status is NdisStatus.RESOURCES
    assert sorted(nic.spis()) == [(0x1000, 0x2000), (0x3000,)]
    assert esp.handle == ah.handle
    assert esp.handle in nic.bundles
    assert (esp.partner, ah.partner) == (ah, esp)


def test_bundle_with_another_partner_leaves_the_first_alone() -> None:
    nic, sad, esp, ah = bundled()
    other = association(mode=TRANSPORT, spi=0x2001, protocol=AH)
    sad.add(other, 0.0)
    sad.bundle(esp, sad.table[other.id])
    assert sorted(nic.spis()) == [(0x1000, 0x2001), (0x2000,)]
    assert ah.partner is None


def test_replacing_one_of_a_bundle_leaves_both_offloaded_alone() -> None:
    nic, sad, _, _ = bundled()
    sad.add(replace(ESP_SA, reqid=1), 0.0, replace_existing=True)
    assert sorted(nic.spis()) == [(0x1000,), (0x2000,)]
    assert {state.handle for state in sad} == set(nic.bundles)


def test_replacement_that_the_nic_has_no_room_for_leaves_the_bundle() -> None:
    nic, sad, esp, ah = bundled(capacity=2)
    sad.add(association(spi=0x3000), 0.0)
    with pytest.raises(OidError) as refused:
        sad.add(replace(AH_SA, reqid=1), 0.0, replace_existing=True)
    assert refused.value.status is NdisStatus.RESOURCES
    assert sorted(nic.spis()) == [(0x1000, 0x2000), (0x3000,)]
    assert esp.handle == ah.handle
    assert esp.handle in nic.bundles
    assert sad.table[AH_SA.id] is ah


def test_update_of_a_bundled_sa_names_its_element() -> None:
    nic, sad = database()
    esp_sa = replace(ESP_SA, esn=True)
    ah_sa = replace(AH_SA, esn=True)
    sad.add(esp_sa, 0.0)
    sad.add(ah_sa, 0.0)
    handle = sad.bundle(sad.table[esp_sa.id], sad.table[ah_sa.id])
    sad.update(ah_sa.id, 1)
    assert nic.requests[-1] == UpdateSa(handle, Operation.AH, 0x2000, 1)


def test_bundling_tells_the_nic_how_far_the_numbers_are() -> None:
    nic, sad = database()
    esp_sa = replace(ESP_SA, esn=True)
    sad.add(esp_sa, 0.0)
    sad.add(AH_SA, 0.0)
    sad.update(esp_sa.id, 9)
    sad.bundle(sad.table[esp_sa.id], sad.table[AH_SA.id])
    (held,) = nic.bundles.values()
    assert [element.sequence_number_high_order for element in held.elements] == [9, 0]


def test_bundling_back_and_forth_remembers_a_bounded_number_of_handles() -> None:
    _, sad, esp, ah = bundled()
    first = esp.past_handles[0]
    for _ in range(200):
        sad.unbundle(esp)
        sad.bundle(esp, ah)
    assert len(sad._handles) < 50
    assert sad.find_handle(first) == ESP_SA.id
    assert sad.find_handle(esp.handle) == ESP_SA.id


def test_sa_that_a_broken_nic_does_not_take_back_is_not_sent_with() -> None:
    nic, sad = database()
    sa = association()
    sad.add(sa, 0.0)
    nic.refusals = [NdisStatus.FAILURE, NdisStatus.FAILURE]
    with pytest.raises(OidError):
        sad.add(association(seed=1), 0.0, replace_existing=True)
    assert nic.bundles == {}
    assert sad.resolve(template(), address(NEAR), address(FAR), FLOW) is None
    assert sad.delete(sa.id) == sa.checked()
    assert list(sad) == []


# finding the SA for a template

FLOW = FlowKey(address("10.1.0.1"), address("10.2.0.1"), 6, 1000, 80)


def found(sad: Sad, **wanted: object) -> int | None:
    state = sad.resolve(
        template(**wanted),  # type: ignore[arg-type]
        address(NEAR),
        address(FAR),
        FLOW,
    )
    return state.sa.spi if state else None


def test_newest_sa_that_fits_is_taken() -> None:
    _, sad = database()
    for spi in (0x100, 0x300, 0x200):
        sad.add(association(spi=spi), 0.0)
    assert found(sad) == 0x200


def test_sa_with_numbers_left_goes_before_a_newer_one_without() -> None:
    _, sad = database()
    sad.add(association(spi=0x100), 0.0)
    sad.add(association(spi=0x200, sequence_number=0xFFFFFFFF), 0.0)
    assert found(sad) == 0x100
    sad.delete(association(spi=0x100).id)
    assert found(sad) == 0x200


@pytest.mark.parametrize(
    "sa",
    [
        association(IN),
        association(mode=TRANSPORT),
        association(protocol=AH),
        association(destination="192.0.2.9"),
        association(source="192.0.2.9"),
        association(reqid=6),
        association(reqid=0),
        association(spi=0x999, reqid=5),
        association(reqid=5, selector=selector("10.3.0.0/16", "0.0.0.0/0")),
        association(reqid=5, selector=selector(protocol=17)),
        association(reqid=5, selector=selector(protocol=6, destination_port=81)),
    ],
)
def test_sa_that_does_not_fit_is_not_taken(sa: SecurityAssociation) -> None:
    _, sad = database()
    sad.add(sa, 0.0)
    assert found(sad, reqid=5, spi=0x1000) is None


@pytest.mark.parametrize(
    "sa",
    [
        association(reqid=5),
        association(reqid=5, selector=ANY),
        association(reqid=5, selector=selector("10.1.0.0/16", "10.2.0.0/16", 6, None, 80)),
    ],
)
def test_sa_that_fits_is_taken(sa: SecurityAssociation) -> None:
    _, sad = database()
    sad.add(sa, 0.0)
    assert found(sad, reqid=5, spi=0x1000) == 0x1000
    assert found(sad) == 0x1000


@pytest.mark.rule(99)
def test_sa_from_any_source_fits_every_source() -> None:
    _, sad = database()
    sad.add(association(mode=TRANSPORT, source="0.0.0.0"), 0.0)
    assert found(sad, mode=TRANSPORT) == 0x1000


def test_selector_of_an_sa_that_a_fragment_cannot_show_does_not_admit_it() -> None:
    _, sad = database()
    sad.add(association(selector=selector(protocol=6, destination_port=80)), 0.0)
    hidden = FLOW._replace(source_port=-1, destination_port=-1)
    assert sad.resolve(template(), address(NEAR), address(FAR), hidden) is None


def test_shapes_are_those_of_the_sas_a_template_could_choose() -> None:
    _, sad = database()
    gcm, short, cbc, far = (
        association(spi=0x100, reqid=1),
        association(spi=0x200, reqid=2, icv_length=8),
        association(spi=0x500, reqid=2, encryption="aes-cbc-128", integrity="hmac-sha1-96"),
        association(spi=0x400, destination="192.0.2.9", icv_length=12),
    )
    for sa in (gcm, short, cbc, association(IN, spi=0x300), far, association(protocol=AH, spi=0x600)):
        sad.add(sa, 0.0)

    def overheads(**wanted: object) -> list[int]:
        return sorted(shape.overhead for shape in sad.shapes(template(**wanted)))  # type: ignore[arg-type]

    # ESP header 8, GCM IV 8 or CBC IV 16, ICV (RFC 4106, RFC 3602, RFC 2404)
    assert overheads(destination=FAR) == [24, 32, 36]
    assert overheads(reqid=2) == [24, 36]
    assert overheads() == [24, 28, 32, 36]
    assert overheads(destination="192.0.2.9", spi=0x400) == [28]
    assert overheads(mode=TRANSPORT) == []
    sad.delete(short.id)
    assert overheads(destination=FAR) == [32, 36]
    for sa in (gcm, cbc, far):
        sad.delete(sa.id)
    assert overheads() == []


# secrets


def test_no_refusal_shows_a_key() -> None:
    nic, sad = database(capacity=1)
    sa = association()
    sad.add(sa, 0.0)
    told = []
    for attempt in (
        lambda: sad.add(sa, 0.0),
        lambda: sad.add(association(IN), 0.0, replace_existing=True),
        lambda: sad.add(association(spi=0x5000), 0.0),
        lambda: sad.add(replace(sa, encryption_key=KeyMaterial(sa.encryption_key.reveal()[:16])), 0.0),
        lambda: sad.update(sa.id, 1),
    ):
        with pytest.raises(RequestError) as refused:
            attempt()
        told.append(f"{refused.value} {refused.value!r} {vars(refused.value)}")
    told.append(repr(nic.requests))
    assert not [fragment for fragment in key_fragments(sa) if fragment in " ".join(told)]
