"""V1 SA structures against bytes written by hand from the fact sheet (§4.8, §9.3)."""

from dataclasses import replace

import pytest

from vnic.errors import RequestError
from vnic.ipsec.association import KeyMaterial, Mode
from vnic.ndis.capabilities import UDP_ESP_TRANSPORT, UDP_ESP_TUNNEL
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oid import AddSa, AlgorithmInfo, DeleteSa, OidVersion, Operation, SaElement, TrafficFilter
from vnic.ndis.status import NdisStatus
from vnic.ndis.structs import StructError
from vnic.ndis.v1_structs import (
    pack_v1_add_sa,
    pack_v1_add_udpesp_sa,
    pack_v1_delete_sa,
    pack_v1_delete_udpesp_sa,
    read_v1_add_sa,
    read_v1_add_udpesp_sa,
    read_v1_delete_sa,
    read_v1_delete_udpesp_sa,
    write_v1_add_sa_handle,
    write_v1_add_udpesp_sa_handles,
)

KEY_DES = bytes(range(0x10, 0x18))
KEY_SHA = bytes(range(0x30, 0x44))
KEY_MD5 = bytes(range(0x50, 0x60))
KEY_3DES = bytes(range(0x60, 0x78))

BUNDLE = AddSa(
    inbound=True,
    source=bytes([192, 0, 2, 1]),
    destination=bytes([198, 51, 100, 7]),
    elements=(
        SaElement(
            Operation.ESP,
            0x01020304,
            AlgorithmInfo(0x002, KeyMaterial(KEY_SHA)),
            AlgorithmInfo(0x002, KeyMaterial(KEY_DES)),
        ),
        SaElement(Operation.AH, 0x0A0B0C0D, AlgorithmInfo(0x001, KeyMaterial(KEY_MD5))),
    ),
    portion=Mode.TRANSPORT,
    version=OidVersion.V1,
    filter=TrafficFilter(
        bytes([192, 0, 2, 1]), b"\xff" * 4, bytes([198, 51, 100, 7]), b"\xff\xff\xff\xff", 6, 0x1234, 0x0050
    ),
)

FILTER = (
    "c0000201 ffffffff c6336407 ffffffff"  # SrcAddr, SrcMask, DestAddr, DestMask as on the wire
    "06000000"  # Protocol
    "3412 5000"  # SrcPort, DestPort
    "00000000 00000000"  # no tunnel
    "0100 0200"  # Flags: inbound; NumSAs
)
ELEMENTS = (
    "02000000 01020304"  # ENCRYPT, SPI as on the wire
    "02000000 14000000 00000000"  # SHA, 20 bytes
    "01000000 08000000 00000000"  # DES, 8 bytes
    "00000000 00000000 00000000"
    "01000000 0a0b0c0d"  # AUTHENTICATE
    "01000000 10000000 00000000"  # MD5, 16 bytes
    "00000000 00000000 00000000"
    "00000000 00000000 00000000"
) + "00" * 44
KEYS = KEY_DES.hex() + KEY_SHA.hex() + KEY_MD5.hex()

BUNDLE_BYTES = bytes.fromhex(
    FILTER
    + ELEMENTS
    + "0000000000000000"  # OffloadHandle
    + "2c000000"  # KeyLen 44
    + KEYS
)

TUNNEL = AddSa(
    inbound=False,
    source=bytes([203, 0, 113, 1]),
    destination=bytes([203, 0, 113, 2]),
    elements=(
        SaElement(
            Operation.ESP,
            0x100,
            AlgorithmInfo(0x001, KeyMaterial(KEY_MD5)),
            AlgorithmInfo(0x004, KeyMaterial(KEY_3DES)),
        ),
    ),
    udp_esp_encapsulation=UDP_ESP_TUNNEL,
    portion=Mode.TUNNEL,
    version=OidVersion.V1,
    filter=TrafficFilter(bytes([10, 0, 0, 0]), bytes([255, 0, 0, 0]), bytes(4), bytes(4), 17),
)
TUNNEL_BYTES = bytes.fromhex(
    "0a000000 ff000000 00000000 00000000"
    "11000000 0000 0000"
    "cb007101 cb007102"  # tunnel
    "0200 0100"  # outbound, one SA
    "02000000 00000100"
    "01000000 10000000 00000000"  # MD5
    "03000000 18000000 00000000"  # 3DES
    "00000000 00000000 00000000" + "00" * 88 + "0000000000000000"  # OffloadHandle
    "01000000 9411 0000"  # OTHER, port 4500
    "0900000000000000"  # EncapTypeEntryOffldHandle
    "28000000"  # KeyLen 40
     + KEY_3DES.hex() + KEY_MD5.hex()
)


def put(data: bytes, offset: int, value: int, length: int = 4) -> bytearray:
    """The bytes with one little-endian number replaced."""
    copy = bytearray(data)
    copy[offset : offset + length] = value.to_bytes(length, "little")
    return copy


@pytest.mark.rule(125, 126, 127, 130, 131)
def test_add_sa_reads_and_builds_what_was_written_by_hand() -> None:
    assert len(BUNDLE_BYTES) == 0xB4 + 44
    assert read_v1_add_sa(BUNDLE_BYTES) == BUNDLE
    assert pack_v1_add_sa(BUNDLE) == BUNDLE_BYTES


@pytest.mark.rule(128, 129, 140, 142)
def test_add_udpesp_sa_reads_and_builds_what_was_written_by_hand() -> None:
    assert len(TUNNEL_BYTES) == 0xC4 + 40
    request, encap_type, port, entry_handle = read_v1_add_udpesp_sa(TUNNEL_BYTES)
    assert request == TUNNEL
    assert (encap_type, port, entry_handle) == (1, 4500, 9)
    assert pack_v1_add_udpesp_sa(TUNNEL, entry_handle=9) == TUNNEL_BYTES


@pytest.mark.rule(128)
def test_a_tunnel_address_tells_the_portion_and_gives_the_addresses() -> None:
    data = put(put(BUNDLE_BYTES, 0x18, 0x017100CB), 0x1C, 0x027100CB)
    request = read_v1_add_sa(data)
    assert request.portion is Mode.TUNNEL
    assert request.source == bytes([203, 0, 113, 1])
    assert request.destination == bytes([203, 0, 113, 2])
    assert request.filter == BUNDLE.filter


def test_udp_esp_of_the_transport_portion_is_told_from_that_of_the_tunnel_portion() -> None:
    data = pack_v1_add_udpesp_sa(BUNDLE)
    assert read_v1_add_udpesp_sa(data).request.udp_esp_encapsulation == UDP_ESP_TRANSPORT


@pytest.mark.rule(131)
def test_esp_without_confidentiality_is_null_encryption() -> None:
    data = bytearray(BUNDLE_BYTES[:0xB4] + KEY_SHA + KEY_MD5)
    data[0x38:0x40] = bytes(8)  # ConfAlgo NONE, no key
    data[0xB0:0xB4] = (36).to_bytes(4, "little")
    element = read_v1_add_sa(data).elements[0]
    assert element.encryption == AlgorithmInfo(0x001)
    assert element.authentication.key == KeyMaterial(KEY_SHA)


@pytest.mark.rule(132, 133)
def test_handles_are_written_where_the_structures_have_them() -> None:
    data = bytearray(BUNDLE_BYTES)
    write_v1_add_sa_handle(data, 0x1122334455667788)
    assert data[0xA8:0xB0] == bytes.fromhex("8877665544332211")
    data[0xA8:0xB0] = bytes(8)
    assert data == BUNDLE_BYTES

    data = bytearray(TUNNEL_BYTES)
    write_v1_add_udpesp_sa_handles(data, 0x1122334455667788, 0x99)
    assert data[0xA8:0xB0] == bytes.fromhex("8877665544332211")
    assert data[0xB8:0xC0] == bytes.fromhex("9900000000000000")
    assert read_v1_add_udpesp_sa(data).request == TUNNEL


@pytest.mark.rule(134, 148, 149)
def test_deletions_are_handles() -> None:
    data = bytes.fromhex("0700000001000000")
    assert read_v1_delete_sa(data) == DeleteSa(OffloadHandle(0x100000007))
    assert pack_v1_delete_sa(0x100000007) == data
    data = bytes.fromhex("0700000001000000 0900000000000000")
    assert read_v1_delete_udpesp_sa(data) == (0x100000007, 9)
    assert pack_v1_delete_udpesp_sa(0x100000007, 9) == data


@pytest.mark.parametrize(
    ("offset", "value", "width", "field"),
    [
        (0x20, 0, 2, "Flags"),
        (0x20, 3, 2, "Flags"),
        (0x20, 4, 2, "Flags"),
        (0x22, 0, 2, "NumSAs"),
        (0x22, 3, 2, "NumSAs"),
        (0x22, 0xFFFF, 2, "NumSAs"),
        (0x24, 0, 4, "SecAssoc[0].Operation"),
        (0x24, 3, 4, "SecAssoc[0].Operation"),
        (0x2C, 3, 4, "SecAssoc[0].IntegrityAlgo"),
        (0x38, 2, 4, "SecAssoc[0].ConfAlgo"),
        (0x38, 4, 4, "SecAssoc[0].ConfAlgo"),
        (0x38, 0, 4, "SecAssoc[0].ConfAlgo.algoKeylen"),
        (0x2C, 0, 4, "SecAssoc[0].IntegrityAlgo.algoKeylen"),
        (0x50, 7, 4, "SecAssoc[1].Operation"),
        (0x64, 1, 4, "SecAssoc[1].ConfAlgo"),
        (0x30, 21, 4, "KeyLen"),
        (0x30, 0xFFFFFFFF, 4, "KeyLen"),
        (0x3C, 0xFFFFFFFF, 4, "KeyLen"),
        (0x30, 19, 4, "KeyLen"),
        (0xB0, 43, 4, "KeyLen"),
        (0xB0, 0xFFFFFFFF, 4, "KeyLen"),
    ],
)
@pytest.mark.rule(74, 130, 131)
def test_a_member_out_of_bounds_is_refused(offset: int, value: int, width: int, field: str) -> None:
    with pytest.raises(StructError) as caught:
        read_v1_add_sa(put(BUNDLE_BYTES, offset, value, width))
    assert (caught.value.status, caught.value.field) == (NdisStatus.INVALID_DATA, field)


def test_an_undefined_encapsulation_type_is_refused() -> None:
    with pytest.raises(StructError) as caught:
        read_v1_add_udpesp_sa(put(TUNNEL_BYTES, 0xB0, 2))
    assert (caught.value.status, caught.value.field) == (NdisStatus.INVALID_DATA, "UdpEncapType")


@pytest.mark.parametrize(
    ("data", "short", "needed"),
    [
        (BUNDLE_BYTES, 0, 0xB4),
        (BUNDLE_BYTES, 0xB3, 0xB4),
        (BUNDLE_BYTES, 0xB4 + 43, 0xB4 + 44),
    ],
)
def test_a_short_add_sa_is_refused_with_the_bytes_it_needs(data: bytes, short: int, needed: int) -> None:
    with pytest.raises(StructError) as caught:
        read_v1_add_sa(data[:short])
    assert (caught.value.status, caught.value.bytes_needed) == (NdisStatus.BUFFER_TOO_SHORT, needed)


def test_short_structures_of_the_other_kinds_are_refused_with_the_bytes_they_need() -> None:
    for call, length, needed in (
        (read_v1_add_udpesp_sa, 0xC3, 0xC4),
        (read_v1_add_udpesp_sa, 0xC4 + 39, 0xC4 + 40),
        (read_v1_delete_sa, 7, 8),
        (read_v1_delete_udpesp_sa, 15, 16),
    ):
        with pytest.raises(StructError) as caught:
            call(TUNNEL_BYTES[:length])
        assert (caught.value.status, caught.value.bytes_needed) == (NdisStatus.BUFFER_TOO_SHORT, needed)


def test_the_filter_of_a_request_without_one_is_its_addresses() -> None:
    request = read_v1_add_sa(pack_v1_add_sa(replace(BUNDLE, filter=None)))
    assert request.filter == TrafficFilter(BUNDLE.source, b"\xff" * 4, BUNDLE.destination, b"\xff" * 4)
    request = read_v1_add_udpesp_sa(pack_v1_add_udpesp_sa(replace(TUNNEL, filter=None))).request
    assert request.filter == TrafficFilter(bytes(4), bytes(4), bytes(4), bytes(4), 17)


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(replace(BUNDLE, source=bytes(16), destination=bytes(16)), id="IPv6"),
        pytest.param(replace(BUNDLE, elements=()), id="no element"),
        pytest.param(replace(BUNDLE, source=bytes([9, 9, 9, 9])), id="another filter"),
        pytest.param(replace(TUNNEL, source=bytes(4), destination=bytes(4)), id="tunnel to nowhere"),
        pytest.param(
            replace(BUNDLE, elements=(SaElement(Operation.ESP, 1, encryption=AlgorithmInfo(0x008)),)),
            id="AES-GCM",
        ),
        pytest.param(
            replace(BUNDLE, elements=(SaElement(Operation.AH, 1, AlgorithmInfo(1), esn=True),)), id="ESN"
        ),
        pytest.param(
            replace(BUNDLE, elements=(SaElement(Operation.AH, 1, AlgorithmInfo(1, additional_info=12)),)),
            id="ICV length",
        ),
    ],
)
def test_what_v1_cannot_express_is_not_built(request_: AddSa) -> None:
    with pytest.raises(RequestError):
        pack_v1_add_sa(request_)
