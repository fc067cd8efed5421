"""The legacy OID_TCP_TASK_OFFLOAD (sheet §3.5): header, list of tasks, the IPsec task of NDIS 5."""

import struct
from dataclasses import replace

import pytest
from nic_frames import GCM, Nic, esp
from oid_bytes import (
    ENCAPSULATION,
    TASK_OFFLOAD,
    V1_ADD,
    ask,
    encapsulation,
    query,
    task,
    tasks,
    v1_add_sa,
    v1_handle,
)

from vnic.ndis.capabilities import NO_IPSEC_V1, NO_TASK_OFFLOAD, OffloadCapabilitiesV1
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.status import IndicationCode, NdisStatus

DES = esp("des-cbc", "hmac-md5-96")
AH_ALL, ESP_ALL = 0b111111, 0b11111101
ALL = task(supported=(1, 1, 1, 0), ah=AH_ALL, esp=ESP_ALL)


def test_query_lists_the_ipsec_task_with_what_v1_can_do() -> None:
    result = query(Nic().adapter, TASK_OFFLOAD)
    assert result.status is NdisStatus.SUCCESS
    answer = result.information_buffer
    assert len(answer) == 28 + 20 + 24
    assert struct.unpack_from("<7I", answer) == (1, 28, 0, 28, 2, 1, 14)
    assert struct.unpack_from("<5I", answer, 28) == (1, 24, 1, 0, 24)
    assert struct.unpack_from("<6I", answer, 48) == (1, 1, 1, 0, AH_ALL, ESP_ALL)


@pytest.mark.rule(14)
@pytest.mark.parametrize(
    ("member", "offset", "bit"),
    [
        ("ah_esp_combined", 48, 0),
        ("transport_tunnel_combined", 52, 0),
        ("ipv4_options", 56, 0),
        ("ah_md5", 64, 0),
        ("ah_sha1", 64, 1),
        ("ah_receive", 64, 5),
        ("esp_des", 68, 0),
        ("esp_triple_des", 68, 2),
        ("esp_null", 68, 3),
        ("esp_send", 68, 6),
    ],
)
def test_query_leaves_out_what_the_hardware_lacks(member: str, offset: int, bit: int) -> None:
    v1 = OffloadCapabilitiesV1(**{member: False})
    answer = query(Nic.with_hardware(ipsec_v1=v1).adapter, TASK_OFFLOAD).information_buffer
    expected = bytearray(query(Nic().adapter, TASK_OFFLOAD).information_buffer)
    struct.pack_into("<I", expected, offset, struct.unpack_from("<I", expected, offset)[0] & ~(1 << bit))
    if member in ("ah_md5", "ah_sha1"):
        # Without all six pairs there is no AH with ESP (R14).
        struct.pack_into("<I", expected, 48, 0)
    assert answer == bytes(expected)


@pytest.mark.rule(59)
def test_small_buffer_is_told_how_much_room_there_has_to_be() -> None:
    result = query(Nic().adapter, TASK_OFFLOAD, 71)
    assert (result.status, result.bytes_needed) == (NdisStatus.BUFFER_TOO_SHORT, 72)


@pytest.mark.parametrize("kind", ["query", "set"])
def test_nic_without_v1_does_not_support_it(kind: str) -> None:
    nic = Nic.with_hardware(ipsec_v1=NO_IPSEC_V1).adapter
    result = query(nic, TASK_OFFLOAD) if kind == "query" else ask(nic, TASK_OFFLOAD, tasks(ALL))
    assert result.status is NdisStatus.NOT_SUPPORTED


@pytest.mark.rule(61)
def test_set_enables_exactly_what_it_lists() -> None:
    nic = Nic()
    v2 = nic.add(GCM)
    handle = OffloadHandle(v1_handle(ask(nic.adapter, V1_ADD, v1_add_sa(DES)).information_buffer))
    nic.adapter.take_indications()
    listed = task(ah=AH_ALL, esp=ESP_ALL & ~1)
    assert ask(nic.adapter, TASK_OFFLOAD, tasks(listed)).status is NdisStatus.SUCCESS
    (indication,) = nic.adapter.take_indications()
    assert indication.code is IndicationCode.TASK_OFFLOAD_CURRENT_CONFIG
    current = nic.adapter.current
    expected = OffloadCapabilitiesV1(
        ah_esp_combined=False, transport_tunnel_combined=False, ipv4_options=False, udp_esp=0, esp_des=False
    )
    assert current == replace(NO_TASK_OFFLOAD, ipsec_v1=expected)
    assert (nic.adapter.offers(v2), nic.adapter.offers(handle)) == (False, True)


@pytest.mark.rule(57)
def test_set_without_tasks_disables_everything() -> None:
    nic = Nic()
    assert ask(nic.adapter, TASK_OFFLOAD, tasks()).status is NdisStatus.SUCCESS
    assert nic.adapter.current == NO_TASK_OFFLOAD


def test_encapsulation_of_ndis_6_takes_over_again() -> None:
    nic = Nic()
    before = nic.adapter.current
    ask(nic.adapter, TASK_OFFLOAD, tasks(ALL))
    assert nic.adapter.current != before
    ask(nic.adapter, ENCAPSULATION, encapsulation())
    assert nic.adapter.current == before


@pytest.mark.parametrize(
    ("buffer", "status"),
    [
        (tasks(ALL)[:27], NdisStatus.BUFFER_TOO_SHORT),
        (tasks(ALL)[:71], NdisStatus.BUFFER_TOO_SHORT),
        (tasks(ALL, version=2), NdisStatus.INVALID_DATA),
        (tasks(ALL, size=24), NdisStatus.INVALID_DATA),
        (tasks(ALL, encapsulation=4), NdisStatus.NOT_SUPPORTED),
        (tasks(task(kind=0)), NdisStatus.NOT_SUPPORTED),
        (tasks(task(kind=2)), NdisStatus.NOT_SUPPORTED),
        (tasks(task(ah=1, following=44), task(ah=1)), NdisStatus.INVALID_DATA),
        (tasks(task(ah=1, following=4)), NdisStatus.INVALID_DATA),
        (tasks(task(ah=1, following=0xFFFFFFF0)), NdisStatus.INVALID_DATA),
        (tasks(task(ah=1, following=2000)), NdisStatus.BUFFER_TOO_SHORT),
        (tasks(task(ah=1 << 6)), NdisStatus.INVALID_DATA),
        (tasks(task(esp=2)), NdisStatus.INVALID_DATA),
    ],
    ids=[
        "header",
        "task",
        "version",
        "size",
        "encapsulation",
        "checksum task",
        "large send task",
        "twice",
        "overlapping",
        "far away",
        "outside",
        "undefined ah bit",
        "reserved esp bit",
    ],
)
def test_bad_list_changes_nothing(buffer: bytes, status: NdisStatus) -> None:
    nic = Nic()
    before = nic.adapter.current
    nic.adapter.take_indications()
    assert ask(nic.adapter, TASK_OFFLOAD, buffer).status is status
    assert nic.adapter.current == before
    assert nic.adapter.take_indications() == []


@pytest.mark.rule(3)
def test_capability_that_the_hardware_lacks_cannot_be_listed() -> None:
    nic = Nic.with_hardware(ipsec_v1=OffloadCapabilitiesV1(esp_des=False))
    result = ask(nic.adapter, TASK_OFFLOAD, tasks(ALL))
    assert (result.status, result.field) == (NdisStatus.INVALID_DATA, "esp_des")
