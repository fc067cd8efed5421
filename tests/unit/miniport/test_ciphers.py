import hmac as stdlib_hmac
import random

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from nic_frames import key

from vnic.errors import PacketError
from vnic.miniport.ciphers import (
    CbcOpener,
    CbcSealer,
    CounterIvs,
    Gcm,
    Gmac,
    RandomPool,
    ShortGcm,
    WrongIcv,
    block_cipher,
    mac,
    verify,
)

BLOCK_CIPHERS = {"des-cbc": 8, "3des-cbc": 24, "aes-cbc-128": 16, "aes-cbc-192": 24, "aes-cbc-256": 32}


def test_pool_gives_every_byte_of_its_source_at_most_once() -> None:
    source = random.Random(3).randbytes
    blocks: list[bytes] = []

    def counted(length: int) -> bytes:
        blocks.append(source(length))
        return blocks[-1]

    pool = RandomPool(counted)
    taken = [pool.take(16) for _ in range(300)]
    assert b"".join(taken) == b"".join(blocks)[: 300 * 16]
    assert len(blocks) == 2


def test_pool_leaves_a_rest_that_is_too_short() -> None:
    pool = RandomPool(lambda length: bytes(range(256)) * (length // 256))
    for _ in range(4096 // 24):
        pool.take(24)
    assert pool.take(24) == bytes(range(24))


def test_counter_ivs_count_up_and_wrap() -> None:
    ivs = CounterIvs(b"\xff" * 8)
    assert [ivs.take() for _ in range(3)] == [b"\xff" * 8, bytes(8), bytes(7) + b"\x01"]


def test_counter_ivs_stop_before_the_first_comes_again() -> None:
    ivs = CounterIvs(bytes(8))
    ivs._next = (1 << 64) - 1
    assert ivs.take() == b"\xff" * 8
    for _ in range(2):
        with pytest.raises(PacketError):
            ivs.take()


@pytest.mark.parametrize("bits", [128, 192, 256])
@pytest.mark.parametrize("icv_length", [8, 12, 16])
def test_gcm_is_that_of_the_library_cut_to_its_icv(bits: int, icv_length: int) -> None:
    secret = key(bits // 8 + 4).reveal()
    gcm = Gcm(secret) if icv_length == 16 else ShortGcm(secret, icv_length)
    iv, aad, plaintext = b"8 bytes!", b"associated", b"the text"
    expected = AESGCM(secret[:-4]).encrypt(secret[-4:] + iv, plaintext, aad)
    made = gcm.seal(iv, plaintext, aad)
    assert made == expected[: len(plaintext) + icv_length]
    assert gcm.open(iv, made, aad) == plaintext


@pytest.mark.parametrize("icv_length", [8, 12, 16])
@pytest.mark.parametrize("position", [0, 7, 8, -1])
def test_gcm_gives_nothing_out_when_any_byte_is_wrong(icv_length: int, position: int) -> None:
    secret = key(20).reveal()
    gcm = Gcm(secret) if icv_length == 16 else ShortGcm(secret, icv_length)
    made = bytearray(gcm.seal(bytes(8), b"the text", b""))
    made[position] ^= 1
    with pytest.raises(WrongIcv):
        gcm.open(bytes(8), made, b"")


@pytest.mark.parametrize("name", BLOCK_CIPHERS)
def test_each_cbc_packet_is_that_of_a_context_of_its_own(name: str) -> None:
    algorithm = block_cipher(name, key(BLOCK_CIPHERS[name]).reveal())
    block = algorithm.block_size // 8
    sealer = CbcSealer(algorithm, RandomPool(random.Random(1).randbytes))
    opener = CbcOpener(algorithm)
    ivs = set()
    for blocks in (1, 2, 90, 1):
        plaintext = random.Random(blocks).randbytes(blocks * block)
        made = sealer.seal(plaintext)
        iv = made[:block]
        ivs.add(iv)
        assert made[block:] == Cipher(algorithm, modes.CBC(iv)).encryptor().update(plaintext)
        assert opener.open(made) == plaintext
    assert len(ivs) == 4


@pytest.mark.rule(15)
def test_cbc_iv_does_not_follow_from_the_packet_before() -> None:
    algorithm = block_cipher("aes-cbc-128", bytes(16))
    after_the_same = [CbcSealer(algorithm, RandomPool(random.Random(seed).randbytes)) for seed in (1, 2)]
    first, second = (sealer.seal(bytes(16))[:16] for sealer in after_the_same)
    assert first != second


@given(st.binary(min_size=1, max_size=200), st.binary(max_size=8), st.sampled_from(["md5", "sha1", "sha256"]))
def test_hmac_is_that_of_the_standard_library(data: bytes, suffix: bytes, name: str) -> None:
    row = {"md5": "hmac-md5-96", "sha1": "hmac-sha1-96", "sha256": "hmac-sha256-128"}[name]
    expected = stdlib_hmac.digest(b"a key", data + suffix, name)[:12]
    assert mac(row, b"a key", 12).icv(b"", data, suffix) == expected


@given(st.binary(max_size=200), st.binary(max_size=8))
def test_gmac_is_gcm_without_text(data: bytes, suffix: bytes) -> None:
    secret = key(36).reveal()
    expected = AESGCM(secret[:-4]).encrypt(secret[-4:] + bytes(8), b"", data + suffix)
    assert Gmac(secret).icv(bytes(8), data, suffix) == expected


def test_verify_takes_equal_icvs_only() -> None:
    verify(b"12345678", bytearray(b"12345678"))
    for other in (b"12345679", b"1234567", b""):
        with pytest.raises(WrongIcv):
            verify(b"12345678", other)
