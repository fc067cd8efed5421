"""The NIC's contract: adding, updating and deleting SAs (sheet §4.7, R84-R123)."""

from dataclasses import replace

import pytest
from nic_frames import (
    AH_SHA256,
    CBC_SHA1,
    GCM,
    INNER_V4,
    V4,
    V6,
    Nic,
    add_request,
    esp,
    framed,
    sealed,
)

from vnic.errors import OidError
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oid import DeleteSa, Operation, UpdateSa
from vnic.ndis.status import NdisStatus

PAYLOAD = b"a datagram of the host's"


def status_of(caught: pytest.ExceptionInfo[OidError]) -> NdisStatus:
    return caught.value.status


@pytest.mark.rule(88)
def test_added_sa_has_a_handle_that_is_not_zero_and_is_its_own() -> None:
    nic = Nic()
    handles = [
        nic.add(GCM),
        nic.add(GCM, inbound=True),
        nic.add(CBC_SHA1, V6),
        nic.add((replace(CBC_SHA1, spi=9999), AH_SHA256)),
    ]
    assert 0 not in handles
    assert len(set(handles)) == len(handles)


@pytest.mark.rule(88)
def test_handle_of_a_deleted_sa_never_comes_again() -> None:
    nic = Nic()
    seen: set[OffloadHandle] = set()
    for _ in range(50):
        handle = nic.add(GCM)
        assert handle not in seen
        seen.add(handle)
        nic.adapter.delete_sa(DeleteSa(handle))


@pytest.mark.rule(165)
@pytest.mark.rule(86)
def test_nothing_is_processed_before_an_sa_was_added() -> None:
    ours, theirs = Nic(), Nic()
    frame = sealed(ours, GCM, framed(GCM, PAYLOAD), ours.add(GCM))
    assert theirs.open(frame) == (None, frame)


@pytest.mark.rule(32)
@pytest.mark.rule(92)
def test_full_nic_refuses_and_takes_again_when_one_is_deleted() -> None:
    nic = Nic.able(sa_offload_capacity=2)
    first = nic.add((GCM, AH_SHA256))
    nic.add(CBC_SHA1, inbound=True)
    for request in (add_request(CBC_SHA1), add_request(CBC_SHA1, V6, inbound=True)):
        with pytest.raises(OidError) as caught:
            nic.adapter.add_sa(request)
        assert status_of(caught) is NdisStatus.RESOURCES
    nic.adapter.delete_sa(DeleteSa(first))
    assert nic.add(CBC_SHA1)


def test_nic_without_room_takes_none() -> None:
    with pytest.raises(OidError) as caught:
        Nic.able(sa_offload_capacity=0).add(GCM)
    assert status_of(caught) is NdisStatus.RESOURCES


def test_second_inbound_sa_with_the_same_spi_destination_and_protocol_is_refused() -> None:
    nic = Nic()
    nic.add(GCM, inbound=True)
    with pytest.raises(OidError) as caught:
        nic.add(CBC_SHA1, (INNER_V4[0], V4[1]), inbound=True)
    assert status_of(caught) is NdisStatus.INVALID_PARAMETER
    assert caught.value.value == f"{GCM.spi:#010x}"
    nic.add(CBC_SHA1, INNER_V4, inbound=True)
    nic.add(replace(AH_SHA256, spi=GCM.spi), inbound=True)
    nic.add(replace(CBC_SHA1, spi=GCM.spi + 1), inbound=True)


def test_outbound_sas_may_share_spi_and_destination() -> None:
    nic = Nic()
    assert nic.add(CBC_SHA1) != nic.add(CBC_SHA1)


@pytest.mark.rule(90)
def test_bundle_whose_second_element_is_refused_leaves_nothing() -> None:
    nic = Nic.able(sa_offload_capacity=2)
    nic.add(AH_SHA256, inbound=True)
    with pytest.raises(OidError) as caught:
        nic.add((GCM, AH_SHA256), inbound=True)
    assert status_of(caught) is NdisStatus.INVALID_PARAMETER
    assert nic.add(GCM, inbound=True)


@pytest.mark.rule(112)
def test_deleted_sa_neither_opens_nor_seals() -> None:
    nic = Nic()
    out = nic.add(GCM)
    inbound = nic.add(GCM, inbound=True)
    one = framed(GCM, PAYLOAD)
    frame = sealed(nic, GCM, one, out)
    info, _ = nic.open(frame)
    assert info is not None
    assert info.verified
    nic.adapter.delete_sa(DeleteSa(inbound))
    nic.adapter.delete_sa(DeleteSa(out))
    assert nic.open(frame) == (None, frame)
    assert nic.seal(one.frame, one.info(out)).status is NdisStatus.FAILURE


@pytest.mark.rule(117)
def test_other_sas_stay_when_one_is_deleted() -> None:
    nic = Nic()
    doomed = nic.add(GCM)
    kept = nic.add(CBC_SHA1)
    nic.adapter.delete_sa(DeleteSa(doomed))
    sealed(nic, CBC_SHA1, framed(CBC_SHA1, PAYLOAD), kept)


@pytest.mark.parametrize("handle", [0, 1, 2, 1 << 63, -1])
def test_deleting_an_unknown_handle_is_refused(handle: int) -> None:
    nic = Nic()
    known = nic.add(GCM)
    nic.adapter.delete_sa(DeleteSa(known))
    with pytest.raises(OidError) as caught:
        nic.adapter.delete_sa(DeleteSa(OffloadHandle(handle)))
    assert status_of(caught) is NdisStatus.INVALID_PARAMETER


def test_key_of_a_deleted_sa_may_be_used_again_and_its_ivs_go_on() -> None:
    nic = Nic()
    ivs = []
    for _ in range(3):
        handle = nic.add(GCM)
        for _ in range(4):
            one = framed(GCM, PAYLOAD)
            ivs.append(int.from_bytes(sealed(nic, GCM, one, handle)[one.esp + 8 : one.esp + 16], "big"))
        nic.adapter.delete_sa(DeleteSa(handle))
    assert ivs == [(ivs[0] + number) % (1 << 64) for number in range(12)]


ESN = replace(GCM, esn=True)


@pytest.mark.rule(120)
@pytest.mark.rule(123)
def test_updated_sa_seals_and_opens_with_the_new_upper_half() -> None:
    ours, theirs = Nic(), Nic()
    out = ours.add(ESN)
    into = theirs.add(ESN, inbound=True)
    frames = [sealed(ours, ESN, framed(ESN, PAYLOAD, sequence=5), out)]
    ours.adapter.update_sa(UpdateSa(out, Operation.ESP, ESN.spi, 7))
    frames.append(sealed(ours, ESN, framed(ESN, PAYLOAD, sequence=6), out))
    first, second = (theirs.open(frame)[0] for frame in frames)
    assert first is not None
    assert first.verified
    assert second is not None
    assert not second.verified
    theirs.adapter.update_sa(UpdateSa(into, Operation.ESP, ESN.spi, 7))
    again, _ = theirs.open(frames[1])
    assert again is not None
    assert again.verified


@pytest.mark.rule(121)
@pytest.mark.rule(122)
def test_update_of_an_sa_without_extended_numbers_is_refused() -> None:
    nic = Nic()
    handle = nic.add(GCM)
    with pytest.raises(OidError) as caught:
        nic.adapter.update_sa(UpdateSa(handle, Operation.ESP, GCM.spi, 1))
    assert status_of(caught) is NdisStatus.INVALID_PARAMETER


@pytest.mark.rule(121)
@pytest.mark.rule(122)
def test_update_of_an_unknown_sa_is_refused() -> None:
    nic = Nic()
    with pytest.raises(OidError) as caught:
        nic.adapter.update_sa(UpdateSa(OffloadHandle(5), Operation.ESP, GCM.spi, 1))
    assert status_of(caught) is NdisStatus.INVALID_PARAMETER


@pytest.mark.rule(13)
def test_packet_without_any_integrity_cannot_be_asked_for() -> None:
    for inbound in (False, True):
        with pytest.raises(OidError) as caught:
            Nic().add(esp("aes-cbc-256"), inbound=inbound)
        assert status_of(caught) is NdisStatus.NOT_SUPPORTED
