"""SecurityAssociation: what it refuses, what it fills in, and that keys stay hidden."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest

from vnic.errors import RequestError
from vnic.ipsec.algorithms import ENCRYPTION_BY_NAME, INTEGRITY_BY_NAME
from vnic.ipsec.association import (
    NO_KEY,
    Direction,
    IpsecProtocol,
    KeyMaterial,
    Mode,
    SaId,
    SecurityAssociation,
)

SECRET = b"SECRETKEYBYTES!!" * 4


def address(text: str) -> bytes:
    return ip_address(text).packed


def key(length: int) -> KeyMaterial:
    return KeyMaterial(SECRET[:length])


GCM = SecurityAssociation(
    direction=Direction.OUTBOUND,
    source=address("192.0.2.1"),
    destination=address("192.0.2.2"),
    protocol=IpsecProtocol.ESP,
    spi=0x1000,
    mode=Mode.TUNNEL,
    encryption=ENCRYPTION_BY_NAME["aes-gcm-128"],
    encryption_key=key(20),
)
CBC = replace(
    GCM,
    encryption=ENCRYPTION_BY_NAME["aes-cbc-128"],
    encryption_key=key(16),
    integrity=INTEGRITY_BY_NAME["hmac-sha256-128"],
    integrity_key=key(32),
)
AH = replace(CBC, protocol=IpsecProtocol.AH, mode=Mode.TRANSPORT, encryption=None, encryption_key=NO_KEY)


@pytest.mark.parametrize(("sa", "icv"), [(GCM, 16), (CBC, 16), (AH, 16)], ids=["GCM", "CBC", "AH"])
def test_missing_icv_length_becomes_that_of_the_rfc(sa: SecurityAssociation, icv: int) -> None:
    assert sa.checked().icv_length == icv


def test_checking_twice_changes_nothing_more() -> None:
    sa = CBC.checked()
    assert sa.checked() == sa
    assert replace(sa, icv_length=0) == CBC


@pytest.mark.parametrize(
    ("sa", "allowed"),
    [
        (GCM, {8, 12, 16}),
        (CBC, {12, 16}),
        (replace(CBC, integrity=INTEGRITY_BY_NAME["hmac-sha1-96"], integrity_key=key(20)), {12}),
    ],
    ids=["GCM", "SHA-256", "SHA-1"],
)
def test_icv_lengths_are_those_of_the_algorithm(sa: SecurityAssociation, allowed: set[int]) -> None:
    for length in range(1, 33):
        if length in allowed:
            assert replace(sa, icv_length=length).checked().icv_length == length
        else:
            with pytest.raises(RequestError) as refused:
                replace(sa, icv_length=length).checked()
            assert refused.value.field == "icv-length"
            assert refused.value.value == str(length * 8)
            assert refused.value.allowed == ", ".join(str(n * 8) for n in sorted(allowed)) + " bits"


@pytest.mark.parametrize(
    ("sa", "iv"),
    [
        (GCM, 8),
        (CBC, 16),
        (AH, 0),
        (replace(AH, integrity=INTEGRITY_BY_NAME["aes-gmac-256"], integrity_key=key(36)), 8),
        (
            replace(
                GCM,
                encryption=ENCRYPTION_BY_NAME["null"],
                encryption_key=NO_KEY,
                integrity=INTEGRITY_BY_NAME["aes-gmac-128"],
                integrity_key=key(20),
            ),
            8,
        ),
    ],
    ids=["GCM", "CBC", "AH", "AH with GMAC", "ESP with GMAC"],
)
def test_iv_on_the_wire_comes_from_whichever_algorithm_has_one(sa: SecurityAssociation, iv: int) -> None:
    assert sa.checked().iv_length == iv


def test_weak_algorithms_work_and_are_reported() -> None:
    sa = replace(
        CBC,
        encryption=ENCRYPTION_BY_NAME["des-cbc"],
        encryption_key=key(8),
        integrity=INTEGRITY_BY_NAME["hmac-md5-96"],
        integrity_key=key(16),
    ).checked()
    assert [text.split(":")[0] for text in sa.weak] == ["des-cbc", "hmac-md5-96"]
    assert GCM.checked().weak == ()


def test_report_of_weakness_is_no_part_of_the_identity() -> None:
    assert replace(GCM, weak=("anything",)) == GCM


REFUSALS: dict[str, tuple[SecurityAssociation, str]] = {
    "destination of no family": (replace(GCM, destination=b"abc"), "dst"),
    "families mixed": (replace(GCM, source=address("2001:db8::1")), "src"),
    "no source at all": (replace(GCM, source=b""), "src"),
    "destination unspecified": (replace(GCM, destination=bytes(4)), "dst"),
    "IPv6 destination unspecified": (replace(GCM, source=address("::1"), destination=bytes(16)), "dst"),
    "tunnel without near end": (replace(GCM, source=bytes(4)), "src"),
    "SPI 0": (replace(GCM, spi=0), "spi"),
    "SPI zero": (replace(GCM, spi=0), "spi"),
    "SPI too large": (replace(GCM, spi=1 << 32), "spi"),
    "SPI negative": (replace(GCM, spi=-1), "spi"),
    "window too small": (replace(GCM, replay_window=63), "replay-window"),
    "window too large": (replace(GCM, replay_window=65537), "replay-window"),
    "window negative": (replace(GCM, replay_window=-64), "replay-window"),
    "number needs ESN": (replace(GCM, sequence_number=1 << 32), "sequence-number"),
    "number too large": (replace(GCM, esn=True, sequence_number=1 << 64), "sequence-number"),
    "number negative": (replace(GCM, sequence_number=-1), "sequence-number"),
    "reqid too large": (replace(GCM, reqid=1 << 32), "reqid"),
    "reqid negative": (replace(GCM, reqid=-1), "reqid"),
    "alignment": (replace(AH, ah_alignment=16), "align"),
    "AH with cipher": (
        replace(AH, encryption=ENCRYPTION_BY_NAME["aes-cbc-128"], encryption_key=key(16)),
        "enc",
    ),
    "AH without hash": (replace(AH, integrity=None, integrity_key=NO_KEY), "auth"),
    "AH key short": (replace(AH, integrity_key=key(31)), "auth"),
    "ESP without cipher": (replace(CBC, encryption=None, encryption_key=NO_KEY), "enc"),
    "GCM key without salt": (replace(GCM, encryption_key=key(16)), "aead"),
    "GCM key of another length": (replace(GCM, encryption_key=key(36)), "aead"),
    "GCM beside a hash": (
        replace(GCM, integrity=INTEGRITY_BY_NAME["hmac-sha1-96"], integrity_key=key(20)),
        "auth",
    ),
    "CBC key short": (replace(CBC, encryption_key=key(15)), "enc"),
    "CBC without key": (replace(CBC, encryption_key=NO_KEY), "enc"),
    "null with key": (replace(CBC, encryption=ENCRYPTION_BY_NAME["null"]), "enc"),
    "no integrity": (replace(CBC, integrity=None, integrity_key=NO_KEY), "auth"),
    "null without integrity": (
        replace(
            CBC,
            encryption=ENCRYPTION_BY_NAME["null"],
            encryption_key=NO_KEY,
            integrity=None,
            integrity_key=NO_KEY,
        ),
        "auth",
    ),
    "GMAC beside a cipher": (
        replace(CBC, integrity=INTEGRITY_BY_NAME["aes-gmac-128"], integrity_key=key(20)),
        "auth",
    ),
    "ICV of no algorithm": (replace(GCM, icv_length=4), "icv-length"),
    "hash key long": (replace(CBC, integrity_key=key(33)), "auth"),
}


@pytest.mark.parametrize(("sa", "field"), REFUSALS.values(), ids=REFUSALS.keys())
def test_bad_member_is_refused_by_name_with_what_is_allowed(sa: SecurityAssociation, field: str) -> None:
    with pytest.raises(RequestError) as refused:
        sa.checked()
    assert refused.value.field == field
    assert refused.value.allowed
    assert field in str(refused.value)


@pytest.mark.parametrize("sa", [sa for sa, _ in REFUSALS.values()], ids=REFUSALS.keys())
def test_no_refusal_shows_a_key(sa: SecurityAssociation) -> None:
    with pytest.raises(RequestError) as refused:
        sa.checked()
    told = f"{refused.value} {refused.value!r} {vars(refused.value)} {sa!r}"
    assert "SECRET" not in told
    assert SECRET[:8].hex() not in told.lower()


@pytest.mark.rule(13)
def test_refusal_of_a_packet_without_integrity_names_the_rule() -> None:
    with pytest.raises(RequestError, match="R13"):
        replace(CBC, integrity=None, integrity_key=NO_KEY).checked()


@pytest.mark.parametrize(
    "sa",
    [
        replace(GCM, spi=256),
        replace(GCM, spi=0xFFFFFFFF),
        replace(GCM, replay_window=0),
        replace(GCM, replay_window=64),
        replace(GCM, replay_window=65536),
        replace(GCM, sequence_number=0xFFFFFFFF),
        replace(GCM, esn=True, sequence_number=0xFFFFFFFFFFFFFFFF),
        replace(GCM, reqid=0xFFFFFFFF),
        replace(AH, ah_alignment=4),
        replace(GCM, mode=Mode.TRANSPORT, source=bytes(4)),
        replace(GCM, source=address("2001:db8::1"), destination=address("2001:db8::2")),
    ],
)
def test_values_at_the_limits_are_taken(sa: SecurityAssociation) -> None:
    assert sa.checked()


def test_destination_protocol_and_spi_name_an_sa() -> None:
    assert GCM.id == SaId(address("192.0.2.2"), IpsecProtocol.ESP, 0x1000)
    assert str(GCM.id) == "esp spi 0x00001000 dst 192.0.2.2"
    assert str(replace(AH, destination=address("2001:db8::2")).id) == "ah spi 0x00001000 dst 2001:db8::2"


def test_id_finds_what_is_stored_under_plain_numbers() -> None:
    # The receive path looks up with the numbers of the packet, not with enums.
    assert {GCM.id: "it"}[(address("192.0.2.2"), 50, 0x1000)] == "it"  # type: ignore[index]


@pytest.mark.parametrize(
    "shown",
    [repr, str, lambda value: f"{value}", lambda value: "%s" % value, lambda value: ascii(value)],  # noqa: UP031
)
def test_key_never_shows_itself(shown: Callable[[object], str]) -> None:
    for text in (shown(key(20)), shown(GCM), shown(CBC), shown([key(20)]), shown(CBC.checked())):
        assert "SECRET" not in text
        assert SECRET[:6].hex() not in text
    assert "20 bytes" in shown(key(20))


def test_key_is_not_serialised() -> None:
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not serialised"):
            attempt(key(16))


def test_keys_compare_and_hash_by_their_bytes() -> None:
    assert key(16) == key(16)
    assert hash(key(16)) == hash(key(16))
    assert key(16) != key(20)
    assert key(16) != KeyMaterial(bytes(16))
    assert key(16) != SECRET[:16]
    assert len(key(16)) == 16
    assert key(16).reveal() == SECRET[:16]


def test_key_does_not_change_with_the_buffer_it_came_from() -> None:
    buffer = bytearray(SECRET[:16])
    held = KeyMaterial(buffer)
    buffer[:] = bytes(16)
    assert held.reveal() == SECRET[:16]


def test_triple_des_with_equal_neighbouring_keys_works_as_in_the_kernel_and_is_called_single_des() -> None:
    key = bytes.fromhex("0123456789abcdef") * 2 + bytes.fromhex("fedcba9876543210")
    sa = replace(
        GCM,
        encryption=ENCRYPTION_BY_NAME["3des-cbc"],
        encryption_key=KeyMaterial(key),
        integrity=INTEGRITY_BY_NAME["hmac-sha1-96"],
        integrity_key=KeyMaterial(bytes(20)),
        icv_length=0,
    )
    assert "single DES" in sa.checked().weak[-1]
    strong = replace(sa, encryption_key=KeyMaterial(bytes(range(24))))
    assert len(strong.checked().weak) == 1


def test_reserved_spi_works_as_in_the_kernel_and_is_reported() -> None:
    assert "reserved" in replace(GCM, spi=255).checked().weak[0]
    assert replace(GCM, spi=256).checked().weak == ()


def test_sa_of_either_mode_needs_no_near_end() -> None:
    anywhere = replace(GCM, mode=None, source=bytes(len(GCM.destination)))
    assert anywhere.checked().mode is None
    with pytest.raises(RequestError):
        replace(anywhere, mode=Mode.TUNNEL).checked()


@pytest.mark.rule(14)
def test_esp_without_integrity_does_not_authenticate() -> None:
    assert GCM.authenticates
    encrypting = replace(GCM, encryption=ENCRYPTION_BY_NAME["aes-cbc-128"])
    assert not encrypting.authenticates
    assert replace(encrypting, integrity=INTEGRITY_BY_NAME["hmac-sha1-96"]).authenticates
