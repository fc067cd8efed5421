"""The engine of an external transport: the NIC alone, and what it says of its SAs."""

import random
import time
from dataclasses import replace
from ipaddress import ip_address

import pytest
from nic_frames import AH_SHA256, CBC_SHA1, GCM, UDP, V4, Framed, add_request, ethernet, framed, ip, udp

from vnic.engine.contract import ExternalCard, Offload
from vnic.engine.external import ExternalEngine
from vnic.errors import OidError
from vnic.ipsec.algorithms import ENCRYPTION_BY_NAME, INTEGRITY_BY_NAME
from vnic.ipsec.association import Direction, IpsecProtocol, KeyMaterial, Mode, SaId, SecurityAssociation
from vnic.ipsec.drops import DropReason
from vnic.ndis.capabilities import OffloadCapabilities, TaskOffload
from vnic.ndis.configuration_structs import (
    EncapsulationSetting,
    EncapsulationSwitch,
    IpsecParameter,
    OffloadEncapsulation,
    OffloadParameters,
    pack_offload_encapsulation,
    pack_offload_parameters,
)
from vnic.ndis.netbuffer import ChecksumRequest, NetBuffer, NetBufferList, OffloadHandle, TransmitInfo
from vnic.ndis.oid import AddSa
from vnic.ndis.oids import Oid, OidRequest, OidResult, RequestType
from vnic.ndis.status import CryptoStatus, IndicationCode, NdisStatus
from vnic.ndis.structs import pack_add_sa, pack_delete_sa

SA = SecurityAssociation(
    direction=Direction.OUTBOUND,
    source=V4[0],
    destination=V4[1],
    protocol=IpsecProtocol.ESP,
    spi=0x5000,
    mode=Mode.TRANSPORT,
    encryption=ENCRYPTION_BY_NAME["aes-gcm-128"],
    encryption_key=KeyMaterial(bytes(range(20))),
    replay_window=0,
).checked()


def ask(engine: ExternalCard, oid: Oid, buffer: bytes | bytearray, now: float = 1.0) -> OidResult:
    operation = engine.oid_request(OidRequest(oid, RequestType.SET, bytearray(buffer)), now)
    while (result := operation.result) is None:
        operation.advance()
    return result


def on(engine: ExternalCard) -> None:
    setting = EncapsulationSetting(EncapsulationSwitch.ON, 2, 14)
    request = pack_offload_encapsulation(OffloadEncapsulation(setting, setting))
    assert ask(engine, Oid.OFFLOAD_ENCAPSULATION, request).status is NdisStatus.SUCCESS


def make(**members: object) -> ExternalEngine:
    engine = ExternalEngine(random.Random(1).randbytes, **members)  # type: ignore[arg-type]
    on(engine)
    engine.take_indications()
    return engine


def add(engine: ExternalEngine, *requests: AddSa, now: float = 1.0) -> list[OffloadHandle]:
    result = ask(engine, Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA, pack_add_sa(requests), now)
    assert result.status is NdisStatus.SUCCESS, result.message
    handles = {report.offload_handle for report in engine.sas()}
    return sorted(handles)[-len(requests) :]


def list_of(frame: Framed, handle: OffloadHandle, request_id: int = 1) -> NetBufferList:
    return NetBufferList(request_id, [bytearray(frame.frame)], frame.info(handle))


FRAME = framed(GCM, udp(b"text"))


@pytest.mark.rule(171)
def test_what_one_nic_seals_another_opens_and_indicates() -> None:
    left, right = make(), make()
    (out,) = add(left, add_request(GCM))
    add(right, add_request(GCM, inbound=True))
    plain = NetBufferList(2, [bytearray(FRAME.frame)], None)
    lists = [list_of(FRAME, out), plain]
    wire = left.transmit(lists, 2.0)
    assert [one.status for one in lists] == [NdisStatus.SUCCESS, NdisStatus.SUCCESS]
    assert len(wire) == 2
    assert FRAME.payload not in bytes(wire[0].frame)
    indicated = right.receive([NetBuffer(bytearray(one.frame)) for one in wire], 2.0)
    assert len(indicated) == 2
    info = indicated[0].receive
    assert info is not None
    assert info.verified
    assert FRAME.payload in bytes(indicated[0].frame)
    assert (left.counters.tx_offloaded, left.counters.tx_passed) == (1, 1)
    assert right.counters.rx_offloaded == 1


@pytest.mark.rule(171, 180)
def test_a_bad_frame_is_indicated_like_a_good_one() -> None:
    left, right = make(), make()
    (out,) = add(left, add_request(GCM))
    add(right, add_request(replace(GCM, label="other"), inbound=True))
    wire = left.transmit([list_of(FRAME, out)], 1.0)
    sealed = bytes(wire[0].frame)
    (indicated,) = right.receive([NetBuffer(bytearray(sealed))], 1.0)
    assert indicated.receive is not None
    assert indicated.receive.crypto_status is CryptoStatus.TRANSPORT_ESP_AUTH_FAILED
    assert bytes(indicated.frame) == sealed
    assert right.counters.rx_offloaded == 0


@pytest.mark.rule(165, 197)
def test_a_failed_list_leaves_no_frame_and_the_others_keep_their_order() -> None:
    engine = make()
    (out,) = add(engine, add_request(GCM))
    lists = [list_of(FRAME, out, 1), list_of(FRAME, OffloadHandle(999), 2), list_of(FRAME, out, 3)]
    wire = engine.transmit(lists, 1.0)
    assert [one.status for one in lists] == [NdisStatus.SUCCESS, NdisStatus.FAILURE, NdisStatus.SUCCESS]
    assert len(wire) == 2


def test_observers_see_what_passes_the_nic_failures_too() -> None:
    engine = make()
    (out,) = add(engine, add_request(GCM))
    seen: list[NetBuffer] = []
    engine.send_observer = seen.extend
    received: list[NetBuffer] = []
    engine.receive_observer = received.extend
    engine.transmit([list_of(FRAME, out), list_of(FRAME, OffloadHandle(999))], 1.0)
    assert [one.status for one in seen] == [NdisStatus.SUCCESS, NdisStatus.FAILURE]
    assert None not in [one.transmit for one in seen]
    assert seen[0].reason == ""
    assert "handle" in seen[1].reason
    frames = engine.receive([NetBuffer(bytearray(FRAME.frame))], 1.0)
    assert received == frames


@pytest.mark.rule(206)
def test_a_stopped_nic_moves_nothing_and_counts() -> None:
    engine = make()
    (out,) = add(engine, add_request(GCM))
    for begin, end, status in (
        (engine.pause, engine.resume, NdisStatus.PAUSED),
        (engine.begin_reset, engine.end_reset, NdisStatus.REQUEST_ABORTED),
        (engine.remove, None, NdisStatus.FAILURE),
    ):
        begin()
        refused = list_of(FRAME, out)
        assert engine.transmit([refused], 1.0) == []
        assert refused.status is status
        assert engine.receive([NetBuffer(bytearray(FRAME.frame))], 1.0) == []
        if end is not None:
            end()
            taken = list_of(FRAME, out)
            assert len(engine.transmit([taken], 1.0)) == 1
    assert engine.counters.drops == {DropReason.NIC_STOPPED: 3}


@pytest.mark.rule(210)
def test_sas_survive_a_reset_and_not_a_restart() -> None:
    engine = make()
    (out,) = add(engine, add_request(GCM))
    engine.begin_reset()
    engine.end_reset()
    assert engine.find_handle(out) is not None
    codes = [one.code for one in engine.take_indications()]
    assert codes == [IndicationCode.RESET_START, IndicationCode.RESET_END]
    engine.restart(2.0)
    assert engine.sas() == []
    assert engine.sa_count == 0
    assert engine.find_handle(out) is None
    gone = list_of(FRAME, out)
    on(engine)
    engine.transmit([gone], 3.0)
    assert gone.status is NdisStatus.FAILURE


def test_binary_additions_are_listed_with_all_they_said() -> None:
    engine = make()
    sa = replace(CBC_SHA1, esn=True, high=3)
    single, bundle = add(
        engine,
        add_request(sa),
        add_request((GCM, AH_SHA256), inbound=True),
        now=7.5,
    )
    esp, inner, outer = engine.sas()
    assert (esp.offload_handle, inner.offload_handle, outer.offload_handle) == (single, bundle, bundle)
    assert (esp.add_time, esp.offload, esp.use_time) == (7.5, Offload.NIC, 0.0)
    assert esp.sa.direction is Direction.OUTBOUND
    assert (esp.sa.source, esp.sa.destination) == V4
    assert esp.sa.encryption is ENCRYPTION_BY_NAME["aes-cbc-128"]
    assert esp.sa.encryption_key == sa.encryption_key
    assert esp.sa.integrity is not None
    assert esp.sa.integrity.name == "hmac-sha1-96"
    assert (esp.sa.icv_length, esp.sa.esn, esp.sequence_number, esp.sa.mode) == (12, True, 3 << 32, None)
    assert (inner.sa.icv_length, inner.sa.direction) == (16, Direction.INBOUND)
    assert (outer.sa.protocol, outer.sa.spi) == (IpsecProtocol.AH, AH_SHA256.spi)
    assert engine.sa_count == 3
    assert engine.find_handle(bundle) == SaId(V4[1], IpsecProtocol.ESP, GCM.spi)
    ah = SaId(V4[1], IpsecProtocol.AH, AH_SHA256.spi)
    found = engine.find_sa(ah)
    assert found is not None
    assert found.offload_handle == bundle


@pytest.mark.rule(112)
def test_binary_deletions_leave_the_list_too() -> None:
    engine = make()
    first, second = add(engine, add_request(GCM), add_request(replace(GCM, spi=0x1001, label=2)))
    buffer = pack_delete_sa([first])
    assert ask(engine, Oid.TCP_TASK_IPSEC_OFFLOAD_V2_DELETE_SA, buffer).status is NdisStatus.SUCCESS
    assert [report.offload_handle for report in engine.sas()] == [second]


def test_two_outbound_sas_of_one_name_are_both_found() -> None:
    engine = make()
    first, second = add(engine, add_request(GCM), add_request(replace(GCM, label=2)))
    name = SaId(V4[1], IpsecProtocol.ESP, GCM.spi)
    report = engine.find_sa(name)
    assert report is not None
    assert report.offload_handle == first
    engine.delete_sa(name)
    report = engine.find_sa(name)
    assert report is not None
    assert report.offload_handle == second
    engine.delete_sa(name)
    assert engine.find_sa(name) is None


def test_sas_of_one_name_are_each_listed_and_counted() -> None:
    engine = make()
    handles = add(engine, add_request(GCM), add_request(replace(GCM, label=2)))
    assert [report.offload_handle for report in engine.each_sa()] == handles
    assert engine.sa_count == 2


def test_sas_can_come_and_go_while_they_are_listed() -> None:
    engine = make()
    add(engine, *(add_request(replace(GCM, spi=0x1001 + n, label=n)) for n in range(3)))
    listing = engine.each_sa()
    first = next(listing).sa
    engine.delete_sa(first.id)
    engine.delete_sa(replace(first, spi=0x1002).id)
    add(engine, add_request(GCM))
    assert [report.sa.spi for report in listing] == [0x1003]
    assert engine.sa_count == 2
    for report in engine.each_sa():
        engine.delete_sa(report.sa.id)
    assert engine.sa_count == 0


def test_a_typed_sa_is_added_shown_updated_and_deleted() -> None:
    engine = make()
    sa = replace(SA, esn=True).checked()
    added = engine.add_sa(sa, 5.0)
    assert (added.offload, added.status, added.message) == (Offload.NIC, NdisStatus.SUCCESS, "")
    (report,) = engine.sas()
    assert (report.sa, report.offload_handle, report.add_time) == (sa, added.handle, 5.0)
    engine.update_sa(sa.id, 4)
    assert engine.sas()[0].sequence_number == 4 << 32
    with pytest.raises(OidError) as caught:
        engine.update_sa(sa.id, 3)
    assert caught.value.status is NdisStatus.INVALID_PARAMETER
    assert engine.delete_sa(sa.id).id == sa.id
    assert engine.sas() == []


def test_a_typed_sa_of_a_known_name_is_refused_and_may_replace() -> None:
    engine = make()
    old = engine.add_sa(SA, 5.0).handle
    with pytest.raises(OidError) as caught:
        engine.add_sa(SA, 6.0)
    assert caught.value.status is NdisStatus.INVALID_PARAMETER
    new = engine.add_sa(replace(SA, encryption_key=KeyMaterial(bytes(20))), 6.0, replace=True).handle
    assert new != old
    assert engine.find_handle(old) is None
    with pytest.raises(OidError):
        engine.add_sa(replace(SA, spi=0x5001), 6.0, replace=True)
    with pytest.raises(OidError, match="direction"):
        engine.add_sa(replace(SA, direction=Direction.INBOUND), 6.0, replace=True)
    assert [report.offload_handle for report in engine.sas()] == [new]


def test_a_refused_replacement_leaves_the_old_sa() -> None:
    hardware = TaskOffload(ipsec_v2=OffloadCapabilities(encryption_algorithms=0x048))
    engine = make(hardware=hardware)
    engine.add_sa(SA, 5.0)
    unsupported = replace(
        SA, encryption=ENCRYPTION_BY_NAME["aes-gcm-256"], encryption_key=KeyMaterial(bytes(36))
    )
    with pytest.raises(OidError) as caught:
        engine.add_sa(unsupported, 6.0, replace=True)
    assert (caught.value.status, caught.value.field) == (NdisStatus.NOT_SUPPORTED, "aead")
    (report,) = engine.sas()
    assert report.sa == SA
    taken = NetBufferList(1, [bytearray(framed(replace(GCM, spi=SA.spi), udp(b"x")).frame)], None)
    engine.transmit([taken], 7.0)
    assert taken.status is NdisStatus.SUCCESS


@pytest.mark.rule(113)
def test_half_a_bundle_is_deleted_and_the_other_half_stays() -> None:
    engine = make()
    (bundle,) = add(engine, add_request((GCM, AH_SHA256)))
    engine.delete_sa(SaId(V4[1], IpsecProtocol.AH, AH_SHA256.spi))
    (rest,) = engine.sas()
    assert rest.sa.protocol is IpsecProtocol.ESP
    assert rest.offload_handle != bundle
    taken = list_of(FRAME, rest.offload_handle)
    engine.transmit([taken], 1.0)
    assert taken.status is NdisStatus.SUCCESS


def test_a_bundle_is_deleted_by_its_handle() -> None:
    engine = make()
    (bundle,) = add(engine, add_request((GCM, AH_SHA256)))
    gone = engine.delete_bundle(bundle)
    assert [sa.protocol for sa in gone] == [IpsecProtocol.ESP, IpsecProtocol.AH]
    assert engine.sas() == []
    with pytest.raises(OidError) as caught:
        engine.delete_bundle(bundle)
    assert caught.value.status is NdisStatus.INVALID_PARAMETER
    with pytest.raises(OidError):
        engine.delete_sa(SA.id)
    with pytest.raises(OidError):
        engine.update_sa(SA.id, 1)
    assert engine.find_sa(SA.id) is None


def test_handles_of_two_cards_differ() -> None:
    first, second = make(serial=0), make(serial=1)
    (one,) = add(first, add_request(GCM))
    (other,) = add(second, add_request(GCM))
    assert one != other
    stranger = list_of(FRAME, other)
    first.transmit([stranger], 1.0)
    assert stranger.status is NdisStatus.FAILURE


@pytest.mark.rule(183, 135)
def test_deletion_of_an_inbound_sa_can_be_requested() -> None:
    left, right = make(), make()
    (out,) = add(left, add_request(GCM))
    (inbound,) = add(right, add_request(GCM, inbound=True))
    right.request_sa_deletion(inbound)
    wire = left.transmit([list_of(FRAME, out)], 1.0)
    (indicated,) = right.receive([NetBuffer(bytearray(wire[0].frame))], 1.0)
    assert indicated.receive is not None
    assert indicated.receive.sa_delete_req


@pytest.mark.rule(18)
def test_below_a_load_balancer_nothing_is_offloaded() -> None:
    engine = make()
    (out,) = add(engine, add_request(GCM))
    engine.set_load_balanced(True)
    refused = list_of(FRAME, out)
    assert engine.transmit([refused], 1.0) == []
    assert refused.status is NdisStatus.FAILURE
    assert IndicationCode.TASK_OFFLOAD_CURRENT_CONFIG in {one.code for one in engine.take_indications()}
    engine.set_load_balanced(False)
    taken = list_of(FRAME, out)
    assert len(engine.transmit([taken], 1.0)) == 1


def test_wildcard_destinations_are_listed() -> None:
    engine = make()
    any_address = ip_address("0.0.0.0").packed
    (handle,) = add(engine, add_request(GCM, (any_address, any_address), inbound=True))
    assert engine.find_handle(handle) == SaId(any_address, IpsecProtocol.ESP, GCM.spi)


CBC = replace(
    SA,
    encryption=ENCRYPTION_BY_NAME["aes-cbc-128"],
    encryption_key=KeyMaterial(bytes(16)),
    integrity=INTEGRITY_BY_NAME["hmac-sha1-96"],
    integrity_key=KeyMaterial(bytes(20)),
    icv_length=0,
).checked()


def without_v2(engine: ExternalEngine) -> None:
    parameters = OffloadParameters(revision=2, ipsec_v2=IpsecParameter.DISABLED)
    assert ask(engine, Oid.TCP_OFFLOAD_PARAMETERS, pack_offload_parameters(parameters)).status == 0


def bundle_of(engine: ExternalEngine) -> OffloadHandle:
    buffer = pack_add_sa([add_request((CBC_SHA1, AH_SHA256))])
    operation = engine.oid_request(
        OidRequest(Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA, RequestType.SET, buffer), 1.0
    )
    assert operation.result is not None
    assert operation.result.status is NdisStatus.SUCCESS
    (report, _) = engine.sas()
    return report.offload_handle


def test_a_refused_replacement_leaves_an_sa_that_the_nic_would_not_take_anew() -> None:
    engine = make()
    old = engine.add_sa(SA, 0.0).handle
    without_v2(engine)
    with pytest.raises(OidError) as refusal:
        engine.add_sa(SA, 1.0, replace=True)
    assert refusal.value.status is NdisStatus.NOT_SUPPORTED
    assert [report.offload_handle for report in engine.sas()] == [old]


def test_one_sa_of_a_bundle_cannot_be_deleted_where_the_nic_would_not_take_the_other_alone() -> None:
    engine = make()
    handle = bundle_of(engine)
    without_v2(engine)
    with pytest.raises(OidError):
        engine.delete_sa(engine.sas()[0].sa.id)
    assert [report.offload_handle for report in engine.sas()] == [handle, handle]


def test_replacing_one_sa_of_a_bundle_fails_whole_where_there_is_no_room_for_two() -> None:
    engine = make(hardware=TaskOffload(OffloadCapabilities(sa_offload_capacity=1)))
    bundle_of(engine)
    before = [report.sa for report in engine.sas()]
    with pytest.raises(OidError) as refusal:
        engine.add_sa(before[0], 1.0, replace=True)
    assert refusal.value.status is NdisStatus.RESOURCES
    assert [report.sa for report in engine.sas()] == before
    assert engine.offloaded_count == 1


def test_many_sas_of_one_name_come_and_go_as_fast_as_of_many_names() -> None:
    engine = make()
    sa = CBC
    count = 20_000
    begun = time.process_time()
    handles = [engine._offload(sa, 0.0) for _ in range(count)]
    assert engine.find_sa(sa.id).offload_handle == handles[0]  # type: ignore[union-attr]
    for handle in handles[: count // 2]:
        engine.delete_bundle(handle)
    assert engine.find_sa(sa.id).offload_handle == handles[count // 2]  # type: ignore[union-attr]
    while engine.sa_count:
        engine.delete_sa(sa.id)
    # A tenth of this on any machine; a minute where each looks at all others.
    assert time.process_time() - begun < 8


def test_a_frame_that_asks_for_checksums_alone_counts_as_passed() -> None:
    engine = make()
    asked = TransmitInfo(
        OffloadHandle(0), OffloadHandle(0), 0, 0, 0, 0, None, ChecksumRequest(False, False, False, True, 0)
    )
    one = NetBufferList(1, [bytearray(ethernet(ip(V4, UDP, udp(b"data"))))], asked)
    assert len(engine.transmit([one], 0.0)) == 1
    assert (engine.counters.tx_offloaded, engine.counters.tx_passed) == (0, 1)
