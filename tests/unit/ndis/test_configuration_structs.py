"""NDIS_OFFLOAD_PARAMETERS and NDIS_OFFLOAD_ENCAPSULATION against bytes written by hand (sheet §3.2, §3.4)."""

import pytest

from vnic.errors import RequestError
from vnic.ndis.configuration_structs import (
    EncapsulationSetting,
    EncapsulationSwitch,
    IpsecParameter,
    OffloadEncapsulation,
    OffloadParameters,
    SwitchParameter,
    pack_offload_encapsulation,
    pack_offload_parameters,
    read_offload_encapsulation,
    read_offload_parameters,
)
from vnic.ndis.keywords import IpsecKeyword
from vnic.ndis.status import NdisStatus
from vnic.ndis.structs import StructError

REVISION_3 = bytes.fromhex(
    "80 03 1a00"
    "04 03 02 01 00"  # checksums
    "02"  # LsoV1
    "01"  # IPsecV1: disabled
    "01 02"  # LsoV2
    "00 00"
    "00"  # padding
    "01000000"  # Flags: skip registry
    "03 04"  # IPsecV2: ESP; IPsecV2IPv4: both
    "01 02"  # RSC
    "01 03"
)
PARAMETERS = OffloadParameters(
    4,
    3,
    2,
    1,
    0,
    SwitchParameter.ENABLED,
    IpsecParameter.DISABLED,
    SwitchParameter.DISABLED,
    SwitchParameter.ENABLED,
    flags=1,
    ipsec_v2=IpsecParameter.ESP_ENABLED,
    ipsec_v2_ipv4=IpsecParameter.AH_AND_ESP_ENABLED,
    rsc_ipv4=SwitchParameter.DISABLED,
    rsc_ipv6=SwitchParameter.ENABLED,
    encapsulated_packet_task_offload=1,
    encapsulation_types=3,
)

ON = bytes.fromhex(
    "a8 01 1c00"
    "01000000 02000000 0e000000"  # IPv4: on, IEEE 802.3, 14
    "02000000 00000000 00000000"  # IPv6: off
)


def put(data: bytes, offset: int, value: int, length: int = 1) -> bytearray:
    """The bytes with one little-endian number replaced."""
    copy = bytearray(data)
    copy[offset : offset + length] = value.to_bytes(length, "little")
    return copy


def test_parameters_are_read_and_built_as_written_by_hand() -> None:
    assert read_offload_parameters(REVISION_3) == PARAMETERS
    assert pack_offload_parameters(PARAMETERS) == REVISION_3
    assert PARAMETERS.skip_registry_update


def test_a_parameter_is_the_keyword_plus_one() -> None:
    names = {"DISABLED": "DISABLED", "AH": "AH_ENABLED", "ESP": "ESP_ENABLED"}
    for keyword in IpsecKeyword:
        assert IpsecParameter[names.get(keyword.name, "AH_AND_ESP_ENABLED")] == keyword + 1


@pytest.mark.rule(48)
@pytest.mark.parametrize(("revision", "size"), [(1, 20), (2, 22), (3, 26)])
def test_members_that_a_revision_lacks_change_nothing(revision: int, size: int) -> None:
    data = bytes([0x80, revision, size, 0]) + REVISION_3[4:]
    parameters = read_offload_parameters(data)
    assert parameters.revision == revision
    assert parameters.lso_v1 is SwitchParameter.ENABLED
    has = {1: (0, 0), 2: (3, 0), 3: (3, 2)}[revision]
    assert (parameters.ipsec_v2, parameters.rsc_ipv6) == has
    assert pack_offload_parameters(parameters) == data[:size]


@pytest.mark.parametrize(("revision", "size"), [(1, 20), (2, 24), (3, 28), (4, 32), (5, 34), (5, 36)])
def test_a_reader_takes_every_size_that_holds_its_revision(revision: int, size: int) -> None:
    data = bytes([0x80, revision, size, 0]) + REVISION_3[4:].ljust(size, b"\xff")
    assert read_offload_parameters(data).revision == min(revision, 3)


@pytest.mark.parametrize(
    ("data", "status", "needed"),
    [
        (b"", NdisStatus.BUFFER_TOO_SHORT, 20),
        (REVISION_3[:19], NdisStatus.BUFFER_TOO_SHORT, 20),
        (REVISION_3[:25], NdisStatus.BUFFER_TOO_SHORT, 26),
        (put(REVISION_3, 2, 25, 2), NdisStatus.INVALID_LENGTH, 26),
        (put(REVISION_3, 0, 0xA7), NdisStatus.INVALID_DATA, 0),
        (put(REVISION_3, 1, 0), NdisStatus.INVALID_DATA, 0),
    ],
)
def test_what_are_no_parameters_is_refused(data: bytes, status: NdisStatus, needed: int) -> None:
    with pytest.raises(StructError) as caught:
        read_offload_parameters(data)
    assert (caught.value.status, caught.value.bytes_needed) == (status, needed)


@pytest.mark.rule(43, 74)
@pytest.mark.parametrize(
    ("offset", "value", "field"),
    [
        (0x04, 5, "IPv4Checksum"),
        (0x08, 255, "UDPIPv6Checksum"),
        (0x09, 3, "LsoV1"),
        (0x0A, 5, "IPsecV1"),
        (0x0B, 3, "LsoV2IPv4"),
        (0x0D, 3, "TcpConnectionIPv4"),
        (0x10, 2, "Flags"),
        (0x14, 5, "IPsecV2"),
        (0x15, 200, "IPsecV2IPv4"),
        (0x16, 3, "RscIPv4"),
        (0x18, 3, "EncapsulatedPacketTaskOffload"),
        (0x19, 4, "EncapsulationTypes"),
    ],
)
def test_a_parameter_without_meaning_is_refused(offset: int, value: int, field: str) -> None:
    with pytest.raises(StructError) as caught:
        read_offload_parameters(put(REVISION_3, offset, value))
    assert (caught.value.status, caught.value.field) == (NdisStatus.INVALID_DATA, field)


def test_parameters_of_no_revision_or_out_of_range_are_not_built() -> None:
    for parameters in (OffloadParameters(revision=4), OffloadParameters(ipv4_checksum=256)):
        with pytest.raises(RequestError):
            pack_offload_parameters(parameters)


@pytest.mark.rule(50, 57)
def test_encapsulation_is_read_and_built_as_written_by_hand() -> None:
    encapsulation = OffloadEncapsulation(
        EncapsulationSetting(EncapsulationSwitch.ON, 2, 14), EncapsulationSetting(EncapsulationSwitch.OFF)
    )
    assert read_offload_encapsulation(ON) == encapsulation
    assert pack_offload_encapsulation(encapsulation) == ON


@pytest.mark.parametrize(
    ("data", "status", "needed"),
    [
        (ON[:27], NdisStatus.BUFFER_TOO_SHORT, 28),
        (put(ON, 2, 24, 2), NdisStatus.INVALID_LENGTH, 28),
        (put(ON, 0, 0x80), NdisStatus.INVALID_DATA, 0),
        (put(ON, 1, 2), NdisStatus.INVALID_DATA, 0),
        (put(ON, 0x04, 3), NdisStatus.INVALID_DATA, 0),
        (put(ON, 0x10, 0xFF), NdisStatus.INVALID_DATA, 0),
        (put(ON, 0x14, 2), NdisStatus.INVALID_DATA, 0),
        (put(ON, 0x18, 14), NdisStatus.INVALID_DATA, 0),
    ],
)
def test_what_is_no_encapsulation_is_refused(data: bytes, status: NdisStatus, needed: int) -> None:
    with pytest.raises(StructError) as caught:
        read_offload_encapsulation(data)
    assert (caught.value.status, caught.value.bytes_needed) == (status, needed)
