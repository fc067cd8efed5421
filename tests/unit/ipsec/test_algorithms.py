"""The algorithm table, against the RFCs and the NDIS identifiers."""

from __future__ import annotations

import pytest

from vnic.ipsec.algorithms import (
    ENCRYPTION_BY_IDENTIFIER,
    ENCRYPTION_BY_NAME,
    ENCRYPTIONS,
    INTEGRITIES,
    INTEGRITY_BY_IDENTIFIER,
    INTEGRITY_BY_NAME,
    Encryption,
    Integrity,
    encryptions_named,
    integrities_named,
    kernel_names,
)


@pytest.mark.parametrize(
    ("name", "key", "salt", "iv", "block", "icv"),
    [
        ("null", 0, 0, 0, 1, ()),  # RFC 2410 §2
        ("des-cbc", 8, 0, 8, 8, ()),  # RFC 2405 §3
        ("3des-cbc", 24, 0, 8, 8, ()),  # RFC 2451 §2
        ("aes-cbc-128", 16, 0, 16, 16, ()),  # RFC 3602 §2
        ("aes-cbc-192", 24, 0, 16, 16, ()),
        ("aes-cbc-256", 32, 0, 16, 16, ()),
        ("aes-gcm-128", 20, 4, 8, 1, (16, 12, 8)),  # RFC 4106 §3.1, §4, §6, §8.1
        ("aes-gcm-192", 28, 4, 8, 1, (16, 12, 8)),
        ("aes-gcm-256", 36, 4, 8, 1, (16, 12, 8)),
    ],
)
def test_encryption_sizes_are_those_of_the_rfcs(
    name: str, key: int, salt: int, iv: int, block: int, icv: tuple[int, ...]
) -> None:
    row = ENCRYPTION_BY_NAME[name]
    assert (row.key_length, row.salt_length, row.iv_length, row.block_length) == (key, salt, iv, block)
    assert row.icv_lengths == icv
    assert row.combined is bool(icv)


@pytest.mark.parametrize(
    ("name", "key", "salt", "iv", "icv"),
    [
        ("hmac-md5-96", 16, 0, 0, (12,)),  # RFC 2403 §2
        ("hmac-sha1-96", 20, 0, 0, (12,)),  # RFC 2404 §2
        ("hmac-sha256-128", 32, 0, 0, (16, 12)),  # RFC 4868 §2.1.1, §2.3; 12: draft-ietf-ipsec-ciph-sha-256
        ("aes-gmac-128", 20, 4, 8, (16,)),  # RFC 4543 §3.1, §3.5, §5.4
        ("aes-gmac-192", 28, 4, 8, (16,)),
        ("aes-gmac-256", 36, 4, 8, (16,)),
    ],
)
def test_integrity_sizes_are_those_of_the_rfcs(
    name: str, key: int, salt: int, iv: int, icv: tuple[int, ...]
) -> None:
    row = INTEGRITY_BY_NAME[name]
    assert (row.key_length, row.salt_length, row.iv_length, row.icv_lengths) == (key, salt, iv, icv)


def test_encryption_identifiers_are_the_bits_of_ndis() -> None:
    # IPSEC_OFFLOAD_V2_ENCRYPTION_*
    assert {row.name: row.ndis_identifier for row in ENCRYPTIONS} == {
        "null": 0x001,
        "des-cbc": 0x002,
        "3des-cbc": 0x004,
        "aes-gcm-128": 0x008,
        "aes-gcm-192": 0x010,
        "aes-gcm-256": 0x020,
        "aes-cbc-128": 0x040,
        "aes-cbc-192": 0x080,
        "aes-cbc-256": 0x100,
    }


def test_integrity_identifiers_are_the_bits_of_ndis() -> None:
    # IPSEC_OFFLOAD_V2_AUTHENTICATION_*; the AES_GCM ones are GMAC
    assert {row.name: row.ndis_identifier for row in INTEGRITIES} == {
        "hmac-md5-96": 0x001,
        "hmac-sha1-96": 0x002,
        "hmac-sha256-128": 0x004,
        "aes-gmac-128": 0x008,
        "aes-gmac-192": 0x010,
        "aes-gmac-256": 0x020,
    }


@pytest.mark.parametrize("rows", [ENCRYPTIONS, INTEGRITIES], ids=["encryption", "integrity"])
def test_identifiers_are_single_bits_and_names_are_unique(rows: tuple[Encryption | Integrity, ...]) -> None:
    assert len({row.name for row in rows}) == len(rows)
    assert len({row.ndis_identifier for row in rows}) == len(rows)
    assert all(row.ndis_identifier.bit_count() == 1 for row in rows)
    assert all(row.source.startswith("RFC ") for row in rows)


def test_lookups_give_the_same_rows() -> None:
    assert set(ENCRYPTION_BY_NAME.values()) == set(ENCRYPTION_BY_IDENTIFIER.values()) == set(ENCRYPTIONS)
    assert set(INTEGRITY_BY_NAME.values()) == set(INTEGRITY_BY_IDENTIFIER.values()) == set(INTEGRITIES)


@pytest.mark.parametrize(
    ("kernel_name", "names"),
    [
        ("cbc(aes)", ["aes-cbc-128", "aes-cbc-192", "aes-cbc-256"]),
        ("aes", ["aes-cbc-128", "aes-cbc-192", "aes-cbc-256"]),
        ("cbc(des)", ["des-cbc"]),
        ("cbc(des3_ede)", ["3des-cbc"]),
        ("des3_ede", ["3des-cbc"]),
        ("ecb(cipher_null)", ["null"]),
        ("cipher_null", ["null"]),
        ("rfc4106(gcm(aes))", ["aes-gcm-128", "aes-gcm-192", "aes-gcm-256"]),
        ("rfc4543(gcm(aes))", []),
        ("hmac(sha1)", []),
        ("", []),
    ],
)
def test_kernel_names_of_ciphers_mean_what_ip_xfrm_means(kernel_name: str, names: list[str]) -> None:
    assert [row.name for row in encryptions_named(kernel_name)] == names


@pytest.mark.parametrize(
    ("kernel_name", "names"),
    [
        ("hmac(md5)", ["hmac-md5-96"]),
        ("md5", ["hmac-md5-96"]),
        ("hmac(sha1)", ["hmac-sha1-96"]),
        ("sha1", ["hmac-sha1-96"]),
        ("hmac(sha256)", ["hmac-sha256-128"]),
        ("sha256", ["hmac-sha256-128"]),
        ("rfc4543(gcm(aes))", ["aes-gmac-128", "aes-gmac-192", "aes-gmac-256"]),
        ("cbc(aes)", []),
        ("hmac(sha512)", []),
    ],
)
def test_kernel_names_of_hashes_mean_what_ip_xfrm_means(kernel_name: str, names: list[str]) -> None:
    assert [row.name for row in integrities_named(kernel_name)] == names


def test_key_lengths_tell_the_rows_of_one_kernel_name_apart() -> None:
    for rows in (ENCRYPTIONS, INTEGRITIES):
        named = [(row.kernel_name, row.key_length) for row in rows]
        assert len(set(named)) == len(named)


def test_list_of_kernel_names_has_each_once_in_order() -> None:
    assert kernel_names(ENCRYPTIONS) == (
        "ecb(cipher_null), cbc(des), cbc(des3_ede), rfc4106(gcm(aes)), cbc(aes)"
    )


def test_weak_algorithms_say_why_and_the_others_do_not() -> None:
    weak = {row.name for row in (*ENCRYPTIONS, *INTEGRITIES) if row.weak}
    assert {"des-cbc", "3des-cbc", "hmac-md5-96"} == weak
