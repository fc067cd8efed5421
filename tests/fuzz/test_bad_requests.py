"""Bad information buffers, one kind after the other: each gets its NDIS status and changes nothing."""

from __future__ import annotations

import struct

import pytest
from exploring import MAX_INPUT
from hypothesis import given, settings
from hypothesis import strategies as st
from nic_frames import GCM, framed, transmit, udp
from oid_fuzz import (
    ADD,
    ADD_EX,
    DELETE,
    REQUESTS,
    UPDATE,
    V1_ADD,
    V1_ADD_UDP,
    V1_DELETE,
    V1_DELETE_UDP,
    OidTarget,
    add,
    ah,
    esp,
    named,
)

from vnic.ndis.netbuffer import NetBuffer, OffloadHandle
from vnic.ndis.oids import Oid, OidRequest, OidResult, RequestType
from vnic.ndis.status import NdisStatus
from vnic.ndis.structs import pack_add_sa, pack_add_sa_ex, pack_delete_sa
from vnic.ndis.v1_structs import (
    pack_v1_add_sa,
    pack_v1_add_udpesp_sa,
    pack_v1_delete_sa,
    pack_v1_delete_udpesp_sa,
)

TARGET = OidTarget()

BUNDLE = (
    esp("aes-cbc-128", "hmac-sha1-96", spi=0x50000),
    ah("hmac-sha256-128", spi=0x50001),
)
ONE = esp("aes-gcm-256", spi=0x50002)

KEY_LENGTH, KEY_OFFSET = 0x04, 0x08
"""In ALGORITHM_INFO (sheet §4.6)."""
ALGORITHMS = {ADD: (0x50, 0x60, 0x80), ADD_EX: (0x48, 0x58, 0x78)}
"""Where the three algorithms of BUNDLE are described."""
NEXT = 0x08


def ask(oid: int, buffer: bytes | bytearray, type_: int = RequestType.SET) -> OidResult:
    """Ask the NIC, and have everything checked that holds for every answer."""
    given = bytes(buffer)
    request = OidRequest(oid, type_, bytearray(given))
    operation = TARGET.nic.oid_request(request)
    for _ in range(len(given) + 2):
        if operation.advance():
            break
    result = operation.result
    assert result is not None
    TARGET._check(oid, type_, given, request, result)
    return result


def refused(oid: int, buffer: bytes | bytearray) -> OidResult:
    """Ask for what must be refused, and hold the NIC against what it was before."""
    result = ask(oid, buffer)
    assert result.status is not NdisStatus.SUCCESS
    assert TARGET.state() == TARGET.before
    return result


def taken(oid: int, buffer: bytes | bytearray) -> OidResult:
    """Ask for what must succeed; the NIC is then put back."""
    result = ask(oid, buffer)
    assert result.status is NdisStatus.SUCCESS, result
    TARGET._renew()
    return result


def with_number(buffer: bytes | bytearray, offset: int, value: int, form: str = "<I") -> bytearray:
    changed = bytearray(buffer)
    struct.pack_into(form, changed, offset, value)
    return changed


def v1() -> bytearray:
    return pack_v1_add_sa(TARGET._v1(spi=0x50003))


def v1_udp() -> bytearray:
    return pack_v1_add_udpesp_sa(TARGET._v1(spi=0x50004, udp_esp_encapsulation=1))


def parameters(revision: int = 2, size: int = 22, v2: int = 3) -> bytes:
    return struct.pack("<BBH8x4xIBB", 0x80, revision, size, 0, v2, 2) + bytes(16)


ENCAPSULATION = struct.pack("<BBHIIIIII", 0xA8, 1, 28, 1, 2, 14, 1, 2, 14)

WELL_FORMED = {
    "add": (ADD, lambda: pack_add_sa([add(*BUNDLE)])),
    "add list": (ADD, lambda: pack_add_sa([add(*BUNDLE), add(ONE), add(ONE, inbound=False)])),
    "add ex": (ADD_EX, lambda: pack_add_sa_ex(add(*BUNDLE))),
    "delete": (DELETE, lambda: pack_delete_sa(list(TARGET.before.bundles)[:2])),
    "update": (UPDATE, lambda: bytearray(TARGET.seeds()[7][2:])),
    "v1 add": (V1_ADD, v1),
    "v1 add udp-esp": (V1_ADD_UDP, v1_udp),
    "v1 delete": (V1_DELETE, lambda: pack_v1_delete_sa(TARGET.handles[3])),
    "v1 delete udp-esp": (V1_DELETE_UDP, lambda: pack_v1_delete_udpesp_sa(TARGET.handles[4])),
    "parameters": (Oid.TCP_OFFLOAD_PARAMETERS, lambda: parameters()[:22]),
    "encapsulation": (Oid.OFFLOAD_ENCAPSULATION, lambda: ENCAPSULATION),
}
"""Requests that succeed, for a NIC that holds what TARGET does."""


@pytest.mark.rule(84, 85, 111, 119)
@pytest.mark.parametrize("name", WELL_FORMED)
def test_the_requests_that_are_spoiled_here_are_good(name: str) -> None:
    oid, made = WELL_FORMED[name]
    taken(oid, made())


@pytest.mark.rule(73)
@pytest.mark.parametrize("name", WELL_FORMED)
def test_a_request_cut_anywhere_is_refused_and_bytes_needed_leads_to_one_that_is_taken(name: str) -> None:
    oid, made = WELL_FORMED[name]
    whole = bytes(made())
    for length in range(0, len(whole), 1 if len(whole) < 300 else 7):
        if not any(whole[length:]):
            # What is cut off here may be no more than the padding of the last key.
            result = ask(oid, whole[:length])
            TARGET._renew()
            if result.status is NdisStatus.SUCCESS:
                continue
        result = refused(oid, whole[:length])
        assert result.status is NdisStatus.BUFFER_TOO_SHORT, (length, result)
        grown = length
        while result.status is NdisStatus.BUFFER_TOO_SHORT:
            assert grown < result.bytes_needed <= len(whole)
            grown = result.bytes_needed
            result = ask(oid, whole[:grown])
            TARGET._renew()
        assert result.status is NdisStatus.SUCCESS, (length, grown, result)


@pytest.mark.rule(43, 74, 95)
@pytest.mark.parametrize(
    "name", ["add", "add list", "add ex", "delete", "update", "parameters", "encapsulation"]
)
def test_a_header_of_another_type_revision_or_size_is_refused(name: str) -> None:
    oid, made = WELL_FORMED[name]
    whole = made()
    for kind in {*range(256)} - {whole[0]}:
        assert refused(oid, with_number(whole, 0, kind, "<B")).status is NdisStatus.INVALID_DATA
    assert refused(oid, with_number(whole, 1, 0, "<B")).status is NdisStatus.INVALID_DATA
    if oid != Oid.TCP_OFFLOAD_PARAMETERS:
        # OFFLOAD_PARAMETERS has grown with its revisions, and later ones begin like this.
        for revision in (2, 3, 0x7F, 0xFF):
            assert refused(oid, with_number(whole, 1, revision, "<B")).status is NdisStatus.INVALID_DATA
    own = int.from_bytes(whole[2:4], "little")
    for size in (0, 1, 3, 4, own - 1, own // 2):
        result = refused(oid, with_number(whole, 2, size, "<H"))
        assert result.status is NdisStatus.INVALID_LENGTH
        assert result.bytes_needed


@pytest.mark.rule(95)
def test_plain_sizeof_and_the_size_through_the_last_member_are_both_a_size() -> None:
    for oid, name, sizes in (
        (ADD, "add", (169, 176)),
        (ADD_EX, "add ex", (170, 176)),
        (UPDATE, "update", (28, 32)),
    ):
        for size in sizes:
            taken(oid, with_number(WELL_FORMED[name][1](), 2, size, "<H"))
    taken(DELETE, with_number(WELL_FORMED["delete"][1](), 2, 24, "<H"))


@pytest.mark.rule(95)
def test_a_bad_second_header_refuses_the_whole_list() -> None:
    whole = WELL_FORMED["add list"][1]()
    second = int.from_bytes(whole[NEXT : NEXT + 8], "little")
    for offset, value in ((0, 0x81), (1, 2)):
        result = refused(ADD, with_number(whole, second + offset, value, "<B"))
        assert result.status is NdisStatus.INVALID_DATA
    assert refused(ADD, with_number(whole, second + 2, 24, "<H")).status is NdisStatus.INVALID_LENGTH


@pytest.mark.rule(87, 90, 113)
@pytest.mark.parametrize("name", ["add list", "delete"])
def test_a_list_that_goes_round_back_astray_or_on_for_ever_is_refused(name: str) -> None:
    oid, made = WELL_FORMED[name]
    whole = made()
    second = int.from_bytes(whole[NEXT : NEXT + 8], "little")
    length = len(whole)
    first_is_bad = [8, 16, second - 8, second + 1, second + 4, length + 8, 1 << 31, 1 << 32, (1 << 64) - 8]
    for following in first_is_bad:
        result = refused(oid, with_number(whole, NEXT, following, "<Q"))
        assert result.status in (NdisStatus.INVALID_DATA, NdisStatus.BUFFER_TOO_SHORT), (following, result)
    # The second points at itself, at the first, into the first, and at its own keys.
    for following in (second, 8, second - 8, second + 8, second + 16):
        result = refused(oid, with_number(whole, second + NEXT, following, "<Q"))
        assert result.status is NdisStatus.INVALID_DATA, (following, result)


@pytest.mark.rule(87)
def test_a_list_as_long_as_a_message_may_be_ends() -> None:
    entries = 40_000
    whole = pack_delete_sa(range(1 << 40, (1 << 40) + entries))
    struct.pack_into("<Q", whole, len(whole) - 24 + NEXT, 0)
    assert refused(DELETE, whole).status is NdisStatus.INVALID_PARAMETER
    struct.pack_into("<Q", whole, len(whole) - 24 + NEXT, 24)
    assert refused(DELETE, whole).status is NdisStatus.INVALID_DATA


@pytest.mark.rule(106, 109)
@pytest.mark.parametrize("oid", [ADD, ADD_EX], ids=["ADD_SA", "ADD_SA_EX"])
def test_keys_that_overlap_or_lie_outside_the_key_area_are_refused(oid: int) -> None:
    whole = pack_add_sa([add(*BUNDLE)]) if oid == ADD else pack_add_sa_ex(add(*BUNDLE))
    area = 20 + 16 + 32
    for algorithm in ALGORITHMS[oid]:
        start = int.from_bytes(whole[algorithm + KEY_OFFSET : algorithm + KEY_OFFSET + 4], "little")
        length = int.from_bytes(whole[algorithm + KEY_LENGTH : algorithm + KEY_LENGTH + 4], "little")
        for offset in {area - length + 1, area, area + 1, 1 << 31, (1 << 32) - 1, (1 << 32) - length} - {
            start
        }:
            result = refused(oid, with_number(whole, algorithm + KEY_OFFSET, offset))
            assert result.status is NdisStatus.INVALID_DATA, (offset, result)
        for other in range(area - length + 1):
            # Anywhere else inside, it shares bytes with a key of the others.
            if other != start:
                assert refused(oid, with_number(whole, algorithm + KEY_OFFSET, other)).status is (
                    NdisStatus.INVALID_DATA
                )
        for wrong in {0, 1, length - 1, length + 1, area + 1, 4096, 1 << 31, (1 << 32) - 1}:
            result = refused(oid, with_number(whole, algorithm + KEY_LENGTH, wrong))
            assert result.status is NdisStatus.INVALID_DATA, (wrong, result)


@pytest.mark.rule(106)
def test_the_order_of_the_keys_is_free() -> None:
    whole = pack_add_sa([add(BUNDLE[0])])
    keys = whole[0xA8 : 0xA8 + 36]
    turned = with_number(whole, 0x50 + KEY_OFFSET, 16)
    turned = with_number(turned, 0x60 + KEY_OFFSET, 0)
    turned[0xA8 : 0xA8 + 36] = keys[20:] + keys[:20]
    taken(ADD, turned)


@pytest.mark.rule(106)
@pytest.mark.parametrize("length", [0, 1, 67, 4096, 4097, 1 << 20, (1 << 32) - 1])
def test_a_key_area_that_lies_about_its_length_is_refused(length: int) -> None:
    for oid, offset, made in (
        (ADD, 0xA4, pack_add_sa([add(*BUNDLE)])),
        (ADD_EX, 0x9C, pack_add_sa_ex(add(*BUNDLE))),
    ):
        result = refused(oid, with_number(made, offset, length))
        assert result.status in (NdisStatus.INVALID_DATA, NdisStatus.BUFFER_TOO_SHORT), result
    for oid, offset, made in ((V1_ADD, 0xB0, v1()), (V1_ADD_UDP, 0xC0, v1_udp())):
        result = refused(oid, with_number(made, offset, length))
        assert result.status in (NdisStatus.INVALID_DATA, NdisStatus.BUFFER_TOO_SHORT), result


@pytest.mark.rule(109)
@pytest.mark.parametrize("offset", [0, 1, 0x30, 169, 1 << 16, 1 << 31, (1 << 32) - 1, (1 << 32) - 68])
def test_keys_of_add_sa_ex_must_lie_behind_the_structure_and_inside_the_buffer(offset: int) -> None:
    result = refused(ADD_EX, with_number(pack_add_sa_ex(add(*BUNDLE)), 0xA0, offset))
    assert result.status in (NdisStatus.INVALID_DATA, NdisStatus.BUFFER_TOO_SHORT), result


@pytest.mark.rule(109)
def test_keys_of_add_sa_ex_may_lie_anywhere_behind_the_structure() -> None:
    whole = pack_add_sa_ex(add(*BUNDLE))
    keys = whole[176:]
    for gap in (170, 176, 177, 300):
        moved = with_number(whole[:176].ljust(max(176, gap), b"\0"), 0xA0, gap)
        taken(ADD_EX, moved[:gap] + keys + bytes(8))


@pytest.mark.rule(110)
def test_reserved_members_of_add_sa_ex_mean_nothing() -> None:
    whole = with_number(pack_add_sa_ex(add(*BUNDLE)), 0xA4, 0xFFFFFFFF)
    taken(ADD_EX, with_number(whole, 0xA8, 0xFFFF, "<H"))


@pytest.mark.rule(74, 96, 101)
def test_members_out_of_bounds_fail_their_entry_alone() -> None:
    whole = pack_add_sa([add(*BUNDLE), add(ONE)])
    second = int.from_bytes(whole[NEXT : NEXT + 8], "little")
    for offset, values in (
        (0x10, (0, 3, 1 << 31)),  # NumExtHdrs
        (0x14, (0x2, 0x12, 1 << 31)),  # Flags
        (0x40, (3, 0x10, 1 << 31)),  # UdpEspEncapsulation
        (0x44, (2, 1 << 31)),  # SecAssoc[0].Flags
        (0x48, (0, 3, 1 << 31)),  # SecAssoc[0].Operation
        (0x50, (3, 0x40, 1 << 31)),  # an identifier of two bits, and none
        (0x90, (1,)),  # EncryptionAlgorithm of the AH element
    ):
        for value in values:
            alone = refused(ADD, with_number(pack_add_sa([add(*BUNDLE)]), offset, value))
            assert alone.status in (NdisStatus.INVALID_DATA, NdisStatus.NOT_SUPPORTED), (offset, value)
            result = taken(ADD, with_number(with_number(whole, offset, value), 0x38, 77, "<Q"))
            assert result.message
            assert result.information_buffer[0x38:0x40] == bytes(8)
            assert result.information_buffer[second + 0x38 : second + 0x40] != bytes(8)


@pytest.mark.rule(165)
def test_handles_of_another_adapter_are_unknown_here() -> None:
    for handle in TARGET.strange:
        assert refused(DELETE, pack_delete_sa([handle])).status is NdisStatus.INVALID_PARAMETER
        assert refused(V1_DELETE, pack_v1_delete_sa(handle)).status is NdisStatus.INVALID_PARAMETER
        assert (
            refused(V1_DELETE_UDP, pack_v1_delete_udpesp_sa(handle, handle)).status
            is NdisStatus.INVALID_PARAMETER
        )
        update = with_number(WELL_FORMED["update"][1](), 8, handle, "<Q")
        assert refused(UPDATE, update).status is NdisStatus.INVALID_PARAMETER
        one = framed(GCM, udp(b"for another card"))
        info = transmit(OffloadHandle(handle), esp_offset=one.esp - one.ip)
        buffer = NetBuffer(bytearray(one.frame), None, info)
        TARGET.nic.send([buffer])
        assert buffer.status is NdisStatus.FAILURE
    assert not TARGET.nic.offers(OffloadHandle(TARGET.strange[0]))


@pytest.mark.rule(113, 114)
def test_unknown_handles_in_a_list_do_not_keep_the_others() -> None:
    own = list(TARGET.before.bundles)[:2]
    result = ask(DELETE, pack_delete_sa([own[0], TARGET.strange[0], own[1]]))
    assert result.status is NdisStatus.INVALID_PARAMETER
    assert not set(own) & set(TARGET.state().bundles)
    TARGET._renew()


@given(st.sampled_from(REQUESTS), st.integers(0, 9), st.binary(max_size=600))
@settings(max_examples=400, deadline=None)
def test_any_bytes_for_any_oid_get_a_status(request_: tuple[int, int], meanwhile: int, buffer: bytes) -> None:
    TARGET.one(named(*request_, buffer, meanwhile))


@given(st.sampled_from(sorted(WELL_FORMED)), st.data())
@settings(max_examples=400, deadline=None)
def test_good_requests_with_any_words_in_them_get_a_status(name: str, data: st.DataObject) -> None:
    oid, made = WELL_FORMED[name]
    buffer = bytearray(made())
    places = st.integers(0, len(buffer) // 4 - 1)
    words = st.one_of(
        st.integers(0, 0xFFFFFFFF), st.integers(0, len(buffer) + 8), st.sampled_from([0, 1, 2, 4, 8])
    )
    for place, word in data.draw(st.lists(st.tuples(places, words), min_size=1, max_size=6)):
        struct.pack_into("<I", buffer, place * 4, word)
    end = data.draw(st.integers(0, len(buffer)) | st.just(len(buffer)))
    TARGET.one(named(oid, RequestType.SET, bytes(buffer[:end]))[:MAX_INPUT])
