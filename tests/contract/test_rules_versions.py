"""Rules no single function stands for: versions, paths, and what a NIC with IPsec offload leaves alone."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from nic_frames import GCM, V4, Nic, add_request, esp, framed, seeded

from vnic.ipsec.association import Mode
from vnic.miniport.adapter import MiniportAdapter
from vnic.ndis.capabilities import NO_IPSEC, NO_IPSEC_V1, OffloadCapabilities, TaskOffload
from vnic.ndis.netbuffer import NetBuffer
from vnic.ndis.oids import Oid, OidRequest, RequestType
from vnic.ndis.status import NdisStatus
from vnic.ndis.structs import pack_add_sa
from vnic.ndis.v1_structs import pack_v1_add_sa

TRIPLE_DES = esp("3des-cbc", "hmac-sha1-96")


def status(nic: MiniportAdapter, oid: Oid, buffer: bytearray) -> NdisStatus:
    result = nic.oid_request(OidRequest(oid, RequestType.SET, buffer)).result
    assert result is not None
    return result.status


def adapter(hardware: TaskOffload) -> MiniportAdapter:
    nic = MiniportAdapter(seeded().randbytes, hardware)
    nic.set_encapsulation(True, True)
    return nic


@pytest.mark.rule(2, 3, 21)
@pytest.mark.parametrize("speaks", [(True, True), (True, False), (False, True)], ids=["both", "V1", "V2"])
def test_a_card_speaks_the_versions_it_is_made_with_and_no_other(speaks: tuple[bool, bool]) -> None:
    first, second = speaks
    everything = TaskOffload()
    nic = adapter(
        replace(
            everything,
            ipsec_v1=everything.ipsec_v1 if first else NO_IPSEC_V1,
            ipsec_v2=OffloadCapabilities() if second else NO_IPSEC,
        )
    )
    request = add_request(TRIPLE_DES, portion=Mode.TRANSPORT)
    by_first = status(nic, Oid.TCP_TASK_IPSEC_ADD_SA, pack_v1_add_sa(request))
    by_second = status(nic, Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA, pack_add_sa([request]))
    assert (by_first is NdisStatus.SUCCESS, by_second is NdisStatus.SUCCESS) == speaks
    assert {by_first, by_second} <= {NdisStatus.SUCCESS, NdisStatus.NOT_SUPPORTED}


@pytest.mark.rule(65, 66)
def test_only_the_v2_requests_take_the_direct_path() -> None:
    assert {oid.label for oid in Oid if oid.direct} == {
        "OID_TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA",
        "OID_TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA_EX",
        "OID_TCP_TASK_IPSEC_OFFLOAD_V2_DELETE_SA",
        "OID_TCP_TASK_IPSEC_OFFLOAD_V2_UPDATE_SA",
    }


@pytest.mark.rule(81)
def test_there_is_no_status_that_asks_for_an_indication() -> None:
    assert 0x40230001 not in set(NdisStatus)


def segment(number: int, payload: bytes) -> bytes:
    return struct.pack(">HHIIHHHH", 80, 5000, number, 7, 0x5010, 0xFFFF, 0, 0) + payload


@pytest.mark.rule(201)
def test_consecutive_segments_under_ipsec_stay_frames_of_their_own() -> None:
    sender, receiver = Nic(), Nic()
    out = sender.add(GCM)
    receiver.add(GCM, inbound=True)
    burst = []
    for index in range(4):
        tcp = segment(1000 + 100 * index, bytes([index]) * 100)
        one = framed(GCM, tcp, 6, V4, sequence=index + 1)
        burst.append(NetBuffer(bytearray(sender.seal(one.frame, one.info(out)).frame)))
    lengths = [len(buffer.frame) for buffer in burst]
    receiver.adapter.receive(burst)
    assert [len(buffer.frame) for buffer in burst] == lengths
    assert all(buffer.receive is not None and buffer.receive.verified for buffer in burst)
    assert [bytes([index]) * 100 in buffer.frame for index, buffer in enumerate(burst)] == [True] * 4
