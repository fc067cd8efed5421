"""V2 SA structures against bytes written by hand from the fact sheet (§4.5-§4.7)."""

import time

import pytest

from vnic.errors import RequestError
from vnic.ipsec.association import KeyMaterial
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oid import AddSa, AlgorithmInfo, DeleteSa, Operation, SaElement, UpdateSa
from vnic.ndis.status import NdisStatus
from vnic.ndis.structs import (
    MAX_KEY_AREA,
    SIZEOF_ADD_SA_EX_REVISION_1,
    SIZEOF_ADD_SA_REVISION_1,
    SIZEOF_DELETE_SA_REVISION_1,
    SIZEOF_UPDATE_SA_REVISION_1,
    StructError,
    add_sa_entries,
    delete_sa_entries,
    pack_add_sa,
    pack_add_sa_ex,
    pack_delete_sa,
    pack_update_sa,
    read_add_sa,
    read_add_sa_ex,
    read_delete_sa,
    read_update_sa,
    write_add_sa_ex_handle,
    write_add_sa_handle,
)

KEY_20 = bytes(range(0x10, 0x24))
KEY_16 = bytes(range(0x30, 0x40))
KEY_32 = bytes(range(0x50, 0x70))


def key(data: bytes) -> KeyMaterial:
    return KeyMaterial(data)


GCM = AddSa(
    inbound=True,
    source=bytes([192, 0, 2, 1]),
    destination=bytes([198, 51, 100, 7]),
    elements=(
        SaElement(Operation.ESP, 0x01020304, encryption=AlgorithmInfo(0x008, key(KEY_20), 16)),
    ),
)  # fmt: skip

GCM_MEMBERS = (
    "01000000"  # NumExtHdrs
    "01000000"  # Flags: inbound
    "c0000201 c6336407 00000000 00000000"  # addresses as on the wire; rest of the union
    "00000000 00000000 00000000 00000000"
)
GCM_ELEMENTS = (
    "00000000 02000000 01020304"  # Flags, Operation ESP, Spi as on the wire
    "00000000 00000000 00000000 00000000"  # no AuthenticationAlgorithm
    "08000000 14000000 00000000 10000000"  # AES-GCM-128, 20 bytes at 0, ICV 16
    "00000000"  # SequenceNumberHighOrder
) + "00" * 48

GCM_BYTES = bytes.fromhex(
    "80 01 a900 00000000"  # Header: DEFAULT, revision 1, 169; padding
    "0000000000000000" + GCM_MEMBERS + "0000000000000000"  # Next  # OffloadHandle
    "00000000"  # UdpEspEncapsulation
    + GCM_ELEMENTS
    + "14000000"  # KeyLength
    + KEY_20.hex()
)

AH_AND_ESP = AddSa(
    inbound=False,
    source=bytes.fromhex("20010db8000000000000000000000001"),
    destination=bytes.fromhex("20010db8000000000000000000000002"),
    elements=(
        SaElement(
            Operation.ESP,
            0x1000,
            AlgorithmInfo(0x002, key(KEY_20)),
            AlgorithmInfo(0x040, key(KEY_16)),
            esn=True,
            sequence_number_high_order=7,
        ),
        SaElement(Operation.AH, 0x2000, AlgorithmInfo(0x004, key(KEY_32), 12)),
    ),
    udp_esp_encapsulation=0x2,
)

AH_AND_ESP_BYTES = bytes.fromhex(
    "80 01 aa00"  # Header: DEFAULT, revision 1, 170
    "02000000"  # NumExtHdrs
    "10000000"  # Flags: IPv6, outbound
    "20010db8000000000000000000000001 20010db8000000000000000000000002"
    "00000000"  # padding
    "0000000000000000"  # OffloadHandle
    "02000000"  # UdpEspEncapsulation: tunnel
    "01000000 02000000 00001000"  # ESN, ESP
    "02000000 14000000 00000000 00000000"  # SHA-1, 20 bytes at 0
    "40000000 10000000 14000000 00000000"  # AES-CBC-128, 16 bytes at 20
    "07000000"
    "00000000 01000000 00002000"  # AH
    "04000000 20000000 24000000 0c000000"  # SHA-256, 32 bytes at 36, ICV 12
    "00000000 00000000 00000000 00000000"
    "00000000"
    "44000000"  # KeyLength 68
    "b0000000"  # KeyOffset 176
    "00000000 0000"  # SourceSwitchPortId, VlanId
    "000000000000" + KEY_20.hex() + KEY_16.hex() + KEY_32.hex()  # padding
)


def put(data: bytes, offset: int, value: int, length: int = 4) -> bytearray:
    """The bytes with one little-endian number replaced."""
    copy = bytearray(data)
    copy[offset : offset + length] = value.to_bytes(length, "little")
    return copy


def refusal(call: object, *arguments: object) -> StructError:
    with pytest.raises(StructError) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value


@pytest.mark.rule(95)
def test_sizes_through_the_last_member_are_those_of_the_headers() -> None:
    assert SIZEOF_ADD_SA_REVISION_1 == 169
    assert SIZEOF_ADD_SA_EX_REVISION_1 == 170
    assert SIZEOF_DELETE_SA_REVISION_1 == 24
    assert SIZEOF_UPDATE_SA_REVISION_1 == 28


@pytest.mark.rule(95, 96, 101, 103, 104, 105, 107)
def test_add_sa_reads_what_was_written_by_hand() -> None:
    assert add_sa_entries(GCM_BYTES) == [0]
    assert read_add_sa(GCM_BYTES, 0) == GCM


@pytest.mark.rule(95, 107)
def test_add_sa_builds_what_was_written_by_hand() -> None:
    built = pack_add_sa([GCM])
    assert built[: len(GCM_BYTES)] == GCM_BYTES
    assert not any(built[len(GCM_BYTES) :])


@pytest.mark.rule(96, 97, 98, 101, 102, 106, 109, 110)
def test_add_sa_ex_reads_and_builds_what_was_written_by_hand() -> None:
    assert read_add_sa_ex(AH_AND_ESP_BYTES) == AH_AND_ESP
    assert pack_add_sa_ex(AH_AND_ESP) == AH_AND_ESP_BYTES


@pytest.mark.rule(109)
def test_keys_of_add_sa_ex_are_where_its_key_offset_says() -> None:
    moved = put(AH_AND_ESP_BYTES[:176], 0xA0, 176 + 40) + bytes(40) + AH_AND_ESP_BYTES[176:]
    assert read_add_sa_ex(moved) == AH_AND_ESP


@pytest.mark.rule(110)
def test_reserved_members_of_add_sa_ex_are_ignored() -> None:
    assert read_add_sa_ex(put(put(AH_AND_ESP_BYTES, 0xA4, 9), 0xA8, 9, 2)) == AH_AND_ESP


@pytest.mark.rule(119)
def test_update_sa_reads_and_builds_what_was_written_by_hand() -> None:
    data = bytes.fromhex(
        "80 01 1c00 00000000"  # Header: 28
        "0700000001000000"  # OffloadHandle
        "02000000 01020304 05000000 00000000"  # ESP, Spi as on the wire, high order; padding
    )
    request = UpdateSa(OffloadHandle(0x100000007), Operation.ESP, 0x01020304, 5)
    assert read_update_sa(data) == request
    assert read_update_sa(data[:28]) == request
    assert pack_update_sa(request) == data


@pytest.mark.rule(111, 113)
def test_delete_sa_reads_and_builds_a_list_written_by_hand() -> None:
    data = bytes.fromhex(
        "80 01 1800 00000000 1800000000000000 0700000001000000"
        "80 01 1800 00000000 0000000000000000 0800000001000000"
    )
    entries = delete_sa_entries(data)
    assert entries == [0, 24]
    requests = [read_delete_sa(data, entry) for entry in entries]
    assert requests == [DeleteSa(OffloadHandle(0x100000007)), DeleteSa(OffloadHandle(0x100000008))]
    assert pack_delete_sa([0x100000007, 0x100000008]) == data


@pytest.mark.rule(87)
def test_a_list_is_read_in_the_order_of_its_next_members() -> None:
    data = pack_add_sa([GCM, AH_AND_ESP, GCM])
    entries = add_sa_entries(data)
    assert entries == [0, 192, 432]  # 168 + 20 and 168 + 68, each up to the next multiple of 8
    assert [read_add_sa(data, entry) for entry in entries] == [GCM, AH_AND_ESP, GCM]


@pytest.mark.rule(87)
def test_entries_may_have_gaps_between_them() -> None:
    data = put(GCM_BYTES, 0x08, 256, 8).ljust(256, b"\xee") + GCM_BYTES
    assert add_sa_entries(data) == [0, 256]


@pytest.mark.rule(95)
@pytest.mark.parametrize("size", [169, 176])
def test_add_sa_takes_the_ndis_size_and_the_plain_sizeof(size: int) -> None:
    assert add_sa_entries(put(GCM_BYTES, 2, size, 2)) == [0]


@pytest.mark.rule(95)
@pytest.mark.parametrize("size", [170, 176])
def test_add_sa_ex_takes_the_ndis_size_and_the_plain_sizeof(size: int) -> None:
    assert read_add_sa_ex(put(AH_AND_ESP_BYTES, 2, size, 2)) == AH_AND_ESP


@pytest.mark.rule(95)
@pytest.mark.parametrize("size", [28, 32])
def test_update_sa_takes_the_ndis_size_and_the_plain_sizeof(size: int) -> None:
    data = pack_update_sa(UpdateSa(OffloadHandle(1), Operation.AH, 1, 1))
    assert read_update_sa(put(data, 2, size, 2)).operation is Operation.AH


@pytest.mark.rule(88, 91)
def test_a_handle_is_written_into_its_entry_and_nowhere_else() -> None:
    data = pack_add_sa([GCM, GCM])
    second = add_sa_entries(data)[1]
    before = bytes(data)
    write_add_sa_handle(data, second, 0x1122334455667788)
    assert data[second + 0x38 : second + 0x40] == bytes.fromhex("8877665544332211")
    write_add_sa_handle(data, second, 0)
    assert data == before


@pytest.mark.rule(88)
def test_a_handle_is_written_into_add_sa_ex() -> None:
    data = pack_add_sa_ex(GCM)
    write_add_sa_ex_handle(data, 0x1122334455667788)
    assert data[0x30:0x38] == bytes.fromhex("8877665544332211")
    assert read_add_sa_ex(data) == GCM


# --- faults of the chain ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "needed"), [(0, 169), (7, 169), (167, 169), (168, 188), (187, 188)])
def test_a_short_add_sa_is_refused_with_the_bytes_it_needs(length: int, needed: int) -> None:
    error = refusal(add_sa_entries, GCM_BYTES[:length])
    assert (error.status, error.bytes_needed) == (NdisStatus.BUFFER_TOO_SHORT, needed)


def test_a_list_cut_between_two_entries_is_short() -> None:
    data = pack_add_sa([GCM, GCM])
    error = refusal(add_sa_entries, data[:192])
    assert (error.status, error.bytes_needed) == (NdisStatus.BUFFER_TOO_SHORT, 192 + 169)
    deletions = pack_delete_sa([1, 2])
    error = refusal(delete_sa_entries, deletions[:24])
    assert (error.status, error.bytes_needed) == (NdisStatus.BUFFER_TOO_SHORT, 48)


def test_a_short_add_sa_ex_is_refused_with_the_bytes_it_needs() -> None:
    error = refusal(read_add_sa_ex, AH_AND_ESP_BYTES[:169])
    assert (error.status, error.bytes_needed) == (NdisStatus.BUFFER_TOO_SHORT, 170)
    error = refusal(read_add_sa_ex, AH_AND_ESP_BYTES[:-1])
    assert (error.status, error.bytes_needed) == (NdisStatus.BUFFER_TOO_SHORT, 176 + 68)


@pytest.mark.parametrize(
    ("offset", "value", "width", "status", "field"),
    [
        (0, 0x81, 1, NdisStatus.INVALID_DATA, "Header.Type"),
        (0, 0xA7, 1, NdisStatus.INVALID_DATA, "Header.Type"),
        (1, 0, 1, NdisStatus.INVALID_DATA, "Header.Revision"),
        (1, 2, 1, NdisStatus.INVALID_DATA, "Header.Revision"),
        (2, 168, 2, NdisStatus.INVALID_LENGTH, "Header.Size"),
        (2, 0xFFFF, 2, NdisStatus.INVALID_LENGTH, "Header.Size"),
    ],
)
@pytest.mark.rule(95)
def test_a_wrong_header_is_refused(
    offset: int, value: int, width: int, status: NdisStatus, field: str
) -> None:
    for call, data in (
        (add_sa_entries, GCM_BYTES),
        (read_add_sa_ex, AH_AND_ESP_BYTES),
        (delete_sa_entries, pack_delete_sa([1])),
        (read_update_sa, pack_update_sa(UpdateSa(OffloadHandle(1), Operation.AH, 1, 1))),
    ):
        error = refusal(call, put(data, offset, value, width))
        assert (error.status, error.field) == (status, field)


@pytest.mark.rule(95)
def test_a_wrong_size_is_answered_with_the_right_one() -> None:
    assert refusal(add_sa_entries, put(GCM_BYTES, 2, 1, 2)).bytes_needed == 169
    assert refusal(read_add_sa_ex, put(AH_AND_ESP_BYTES, 2, 1, 2)).bytes_needed == 170


@pytest.mark.parametrize(
    "following",
    [
        pytest.param(1, id="inside itself"),
        pytest.param(184, id="inside its own keys"),
        pytest.param(196, id="misaligned"),
        pytest.param(2**63, id="far outside"),
        pytest.param(400, id="behind the end"),
    ],
)
@pytest.mark.rule(87)
def test_a_next_that_leads_to_no_entry_of_its_own_refuses_the_list(following: int) -> None:
    data = pack_add_sa([GCM, GCM])
    error = refusal(add_sa_entries, put(data, 0x08, following, 8))
    assert (error.status, error.field) == (NdisStatus.INVALID_DATA, "Next")


@pytest.mark.rule(87)
def test_a_list_that_leads_back_is_refused() -> None:
    data = pack_add_sa([GCM, GCM, GCM])
    error = refusal(add_sa_entries, put(data, 384 + 0x08, 192, 8))
    assert (error.status, error.field) == (NdisStatus.INVALID_DATA, "Next")
    deletions = pack_delete_sa([1, 2, 3])
    for following in (24, 48, 8, 23):
        error = refusal(delete_sa_entries, put(deletions, 48 + 0x08, following, 8))
        assert (error.status, error.field) == (NdisStatus.INVALID_DATA, "Next")


def test_a_fault_of_a_later_entry_refuses_the_list() -> None:
    data = pack_add_sa([GCM, GCM, GCM])
    assert refusal(add_sa_entries, put(data, 384, 0x81, 1)).status is NdisStatus.INVALID_DATA
    assert "entry 2" in refusal(add_sa_entries, put(data, 384, 0x81, 1)).message


def test_a_key_area_that_reaches_into_the_next_entry_is_refused() -> None:
    data = pack_add_sa([GCM, GCM])
    error = refusal(add_sa_entries, put(data, 0xA4, 25))
    assert (error.status, error.field) == (NdisStatus.INVALID_DATA, "Next")


def test_a_monstrous_key_length_is_refused_without_asking_for_more() -> None:
    for length in (MAX_KEY_AREA + 1, 0xFFFFFFFF):
        error = refusal(add_sa_entries, put(GCM_BYTES, 0xA4, length))
        assert (error.status, error.bytes_needed) == (NdisStatus.INVALID_DATA, 0)
        error = refusal(read_add_sa_ex, put(AH_AND_ESP_BYTES, 0x9C, length))
        assert (error.status, error.bytes_needed) == (NdisStatus.INVALID_DATA, 0)


@pytest.mark.parametrize("offset", [0, 4, 0x9C, 169, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.rule(109)
def test_keys_of_add_sa_ex_inside_the_structure_or_nowhere_are_refused(offset: int) -> None:
    error = refusal(read_add_sa_ex, put(AH_AND_ESP_BYTES, 0xA0, offset))
    assert (error.status, error.field) == (NdisStatus.INVALID_DATA, "KeyOffset")


# --- faults inside an entry ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "value", "field"),
    [
        (0x10, 0, "NumExtHdrs"),
        (0x10, 3, "NumExtHdrs"),
        (0x10, 0xFFFFFFFF, "NumExtHdrs"),
        (0x14, 0x2, "Flags"),
        (0x40, 0x3, "UdpEspEncapsulation"),
        (0x40, 0x10, "UdpEspEncapsulation"),
        (0x44, 0x2, "SecAssoc[0].Flags"),
        (0x48, 0, "SecAssoc[0].Operation"),
        (0x48, 3, "SecAssoc[0].Operation"),
        (0x48, 1, "SecAssoc[0].EncryptionAlgorithm"),
        (0x64, 21, "SecAssoc[0].KeyOffsetBytes"),
        (0x64, 0xFFFFFFFF, "SecAssoc[0].KeyOffsetBytes"),
        (0x68, 1, "SecAssoc[0].KeyOffsetBytes"),
        (0x68, 0xFFFFFFFF, "SecAssoc[0].KeyOffsetBytes"),
    ],
)
@pytest.mark.rule(74, 96, 102)
def test_a_member_out_of_bounds_fails_its_entry_alone(offset: int, value: int, field: str) -> None:
    data = put(pack_add_sa([GCM, GCM]), 192 + offset, value)
    first, second = add_sa_entries(data)
    assert read_add_sa(data, first) == GCM
    error = refusal(read_add_sa, data, second)
    assert (error.status, error.field) == (NdisStatus.INVALID_DATA, field)


@pytest.mark.rule(106)
def test_keys_that_overlap_are_refused() -> None:
    error = refusal(read_add_sa_ex, put(AH_AND_ESP_BYTES, 0x3C + 0x24, 19))
    assert (error.status, error.field) == (NdisStatus.INVALID_DATA, "KeyOffsetBytes")


@pytest.mark.rule(106)
def test_keys_may_stand_in_any_order() -> None:
    data = put(put(AH_AND_ESP_BYTES, 0x3C + 0x14, 16), 0x3C + 0x24, 0)
    turned = bytes(data[:176]) + KEY_16 + KEY_20 + KEY_32
    assert read_add_sa_ex(turned) == AH_AND_ESP


@pytest.mark.rule(105)
def test_key_members_of_an_algorithm_that_is_not_there_mean_nothing() -> None:
    data = put(put(GCM_BYTES, 0x54, 0xFFFF), 0x58, 0xFFFFFFFF)
    assert read_add_sa(data, 0) == GCM


@pytest.mark.rule(97)
def test_the_second_element_is_not_looked_at_when_there_is_one() -> None:
    data = bytearray(GCM_BYTES)
    data[0x74:0xA4] = b"\xff" * 48
    assert read_add_sa(data, 0) == GCM


def test_no_key_byte_shows_in_what_is_read_or_refused() -> None:
    secret = bytes([0xDE, 0xAD, 0xBE, 0xEF]) * 5
    data = pack_add_sa([AddSa(True, bytes(4), bytes([1] * 4), (
        SaElement(Operation.ESP, 1, encryption=AlgorithmInfo(8, key(secret), 16)),
    ))])  # fmt: skip
    shown = [repr(read_add_sa(data, 0))]
    for offset in range(0x10, 0xA8, 4):
        try:
            shown.append(repr(read_add_sa(put(data, offset, 0x7F7F7F7F), 0)))
        except StructError as error:
            shown.append(f"{error} {error.value}")
    assert len(shown) > 30
    assert not any("deadbeef" in text.lower() or "xde" in text.lower() for text in shown)


# --- building -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(AddSa(True, bytes(4), bytes(16), GCM.elements), id="two families"),
        pytest.param(AddSa(True, bytes(5), bytes(5), GCM.elements), id="no family"),
        pytest.param(AddSa(True, bytes(4), bytes(4), ()), id="no element"),
        pytest.param(AddSa(True, bytes(4), bytes(4), GCM.elements * 3), id="three elements"),
        pytest.param(
            AddSa(True, bytes(4), bytes(4), (SaElement(Operation.AH, 1 << 32),)), id="spi of 33 bits"
        ),
        pytest.param(AddSa(True, bytes(4), bytes(4), GCM.elements, 1 << 32), id="mask of 33 bits"),
    ],
)
def test_what_the_structure_cannot_hold_is_not_built(request_: AddSa) -> None:
    for build in (pack_add_sa_ex, lambda request: pack_add_sa([request])):
        with pytest.raises(RequestError):
            build(request_)


def test_an_empty_list_is_not_built() -> None:
    with pytest.raises(RequestError):
        pack_add_sa([])
    with pytest.raises(RequestError):
        pack_delete_sa([])


def test_a_hundred_thousand_entries_are_checked_in_well_under_a_second() -> None:
    entry = pack_add_sa([GCM, GCM])[:192]
    count = 100_000
    data = bytearray(entry * count)
    for number in range(count):
        following = (number + 1) * 192 if number + 1 < count else 0
        data[number * 192 + 8 : number * 192 + 16] = following.to_bytes(8, "little")
    start = time.process_time()
    assert len(add_sa_entries(data)) == count
    assert time.process_time() - start < 0.5
