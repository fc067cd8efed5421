"""NDIS_OFFLOAD against bytes written by hand from the fact sheet (§2.1-§2.4)."""

from dataclasses import fields, replace

import pytest

from vnic.errors import RequestError
from vnic.ndis.capabilities import (
    NO_IPSEC,
    NO_LARGE_SEND,
    NO_TASK_OFFLOAD,
    ChecksumCapabilities,
    LargeSendCapabilities,
    OffloadCapabilities,
    OffloadCapabilitiesV1,
    TaskOffload,
)
from vnic.ndis.offload_structs import pack_offload, unpack_offload
from vnic.ndis.status import NdisStatus
from vnic.ndis.structs import StructError

EVERYTHING = TaskOffload(
    OffloadCapabilities(sa_offload_capacity=0x1234),
    OffloadCapabilitiesV1(),
    LargeSendCapabilities(max_offload_size=0xFFFF, min_segment_count=2),
    ChecksumCapabilities(),
)

CHECKSUM = (
    "06000000 55010000"  # IPv4 send: Ethernet and VLAN in the frame; five members SUPPORTED
    "00000000 00000000"
    "06000000 55000000"  # IPv6 send: four members
    "00000000 00000000"
)
LSO_V1 = "06000000 ffff0000 02000000 05000000"
IPSEC_V1 = (
    "06000000 01000000 01000000 01000000"
    "f0000000"  # the four subtypes of type OTHER
    "55050000"  # Md5 … Receive
    "51550000"  # Des, TripleDes … Receive; Reserved stays 0
)
LSO_V2 = "06000000 ffff0000 02000000 06000000 ffff0000 02000000 05000000"
FLAGS = "06000000"  # IPsec V2 with TCP and with UDP checksums
IPSEC_V2 = (
    "06000000"
    "01 01 01 01 01 01 01 01 01 01 01 00"  # eleven TRUE, one padding
    "0f000000 3f000000 ff010000 34120000"
)


def offload_bytes(revision: int, size: int, *parts: str) -> bytes:
    header = bytes([0xA7, revision]) + size.to_bytes(2, "little")
    return header + bytes.fromhex("".join(parts))


REVISION_1 = offload_bytes(1, 112, CHECKSUM, LSO_V1, IPSEC_V1, LSO_V2, FLAGS)
REVISION_2 = offload_bytes(2, 144, CHECKSUM, LSO_V1, IPSEC_V1, LSO_V2, FLAGS, IPSEC_V2)
REVISION_3 = offload_bytes(3, 156, CHECKSUM, LSO_V1, IPSEC_V1, LSO_V2, FLAGS, IPSEC_V2, "00" * 12)


@pytest.mark.rule(22, 25, 28, 33, 62)
@pytest.mark.parametrize("expected", [REVISION_1, REVISION_2, REVISION_3], ids=["1", "2", "3"])
def test_a_report_is_what_was_written_by_hand(expected: bytes) -> None:
    revision = expected[1]
    assert len(expected) == {1: 112, 2: 144, 3: 156}[revision]
    assert pack_offload(EVERYTHING, revision).hex() == expected.hex()


def test_a_report_has_revision_2_unless_asked_otherwise() -> None:
    assert pack_offload(EVERYTHING) == REVISION_2


@pytest.mark.parametrize("data", [REVISION_2, REVISION_3], ids=["2", "3"])
def test_a_reader_takes_every_revision_that_holds_ipsec_v2(data: bytes) -> None:
    assert unpack_offload(data) == EVERYTHING


@pytest.mark.rule(21)
def test_a_report_of_revision_1_tells_nothing_of_ipsec_v2() -> None:
    assert unpack_offload(REVISION_1) == replace(EVERYTHING, ipsec_v2=NO_IPSEC)


@pytest.mark.parametrize(("revision", "size"), [(4, 184), (6, 200), (255, 400)])
def test_a_reader_takes_later_revisions(revision: int, size: int) -> None:
    data = offload_bytes(revision, size) + REVISION_3[4:].ljust(size - 4, b"\x7f")
    assert unpack_offload(data) == EVERYTHING


@pytest.mark.rule(23, 24)
def test_nothing_is_reported_as_zeros() -> None:
    assert not any(pack_offload(NO_TASK_OFFLOAD)[4:])
    assert unpack_offload(pack_offload(NO_TASK_OFFLOAD)) == NO_TASK_OFFLOAD


@pytest.mark.rule(24)
@pytest.mark.parametrize("name", [row.name for row in fields(OffloadCapabilitiesV1) if row.type == "bool"])
def test_every_member_of_v1_is_reported_on_its_own(name: str) -> None:
    for capabilities in (
        replace(OffloadCapabilitiesV1(), **{name: False}),
        replace(NO_TASK_OFFLOAD.ipsec_v1, **{name: True}),
    ):
        offload = replace(EVERYTHING, ipsec_v1=capabilities)
        assert unpack_offload(pack_offload(offload)) == offload


@pytest.mark.rule(30)
@pytest.mark.parametrize("name", [row.name for row in fields(OffloadCapabilities) if row.type == "bool"])
def test_every_member_of_v2_is_reported_on_its_own(name: str) -> None:
    for capabilities in (replace(OffloadCapabilities(), **{name: False}), replace(NO_IPSEC, **{name: True})):
        offload = replace(EVERYTHING, ipsec_v2=capabilities)
        assert unpack_offload(pack_offload(offload)) == offload


@pytest.mark.parametrize(
    "large_send",
    [
        NO_LARGE_SEND,
        LargeSendCapabilities(ipv4=False),
        LargeSendCapabilities(ipv6=False),
        LargeSendCapabilities(tcp_options=False),
        LargeSendCapabilities(ip_options=False),
        LargeSendCapabilities(ipv4=False, tcp_options=False),
    ],
)
def test_large_send_is_reported_per_family(large_send: LargeSendCapabilities) -> None:
    offload = replace(EVERYTHING, large_send=large_send)
    assert unpack_offload(pack_offload(offload)) == offload


@pytest.mark.parametrize(("ipv4", "ipv6"), [(False, False), (True, False), (False, True)])
def test_checksums_are_reported_per_family(ipv4: bool, ipv6: bool) -> None:
    offload = replace(EVERYTHING, checksum=ChecksumCapabilities(ipv4, ipv6))
    assert unpack_offload(pack_offload(offload)) == offload


def test_checksums_beside_ipsec_are_claimed_only_where_both_are() -> None:
    flags = slice(0x6C, 0x70)
    assert pack_offload(EVERYTHING)[flags] == bytes([6, 0, 0, 0])
    without_ipsec = replace(EVERYTHING, ipsec_v2=NO_IPSEC)
    without_checksum = replace(EVERYTHING, checksum=ChecksumCapabilities(False, False))
    assert pack_offload(without_ipsec)[flags] == pack_offload(without_checksum)[flags] == bytes(4)


@pytest.mark.parametrize(
    ("data", "status", "needed"),
    [
        (b"", NdisStatus.BUFFER_TOO_SHORT, 112),
        (REVISION_1[:-1], NdisStatus.BUFFER_TOO_SHORT, 112),
        (REVISION_2[:-1], NdisStatus.BUFFER_TOO_SHORT, 144),
        (b"\xa7\x02\x70\x00" + REVISION_2[4:], NdisStatus.INVALID_LENGTH, 144),
        (b"\xa7\x00\x90\x00" + REVISION_2[4:], NdisStatus.INVALID_DATA, 0),
        (b"\x80\x02\x90\x00" + REVISION_2[4:], NdisStatus.INVALID_DATA, 0),
    ],
)
def test_what_is_no_report_is_refused(data: bytes, status: NdisStatus, needed: int) -> None:
    with pytest.raises(StructError) as caught:
        unpack_offload(data)
    assert (caught.value.status, caught.value.bytes_needed) == (status, needed)


def test_a_revision_that_does_not_exist_is_not_built() -> None:
    for revision in (0, 4):
        with pytest.raises(RequestError):
            pack_offload(EVERYTHING, revision)
