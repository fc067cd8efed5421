import hmac as stdlib_hmac
import random
import weakref
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from nic_frames import key

from vnic.errors import PacketError
from vnic.miniport import ciphers
from vnic.miniport.ciphers import (
    CbcOpener,
    CbcSealer,
    CounterIvs,
    Gcm,
    Gmac,
    Hmac,
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
    ivs = CounterIvs.resumed((1 << 64) - 1)
    assert ivs.take() == b"\xff" * 8
    for _ in range(2):
        with pytest.raises(PacketError):
            ivs.take()


@pytest.mark.parametrize("start", [0, 5, (1 << 64) - 1])
@pytest.mark.parametrize("given", [0, 1, 1 << 63, (1 << 64) - 1, 1 << 64])
def test_resumed_counter_ivs_go_on_where_the_others_stopped(start: int, given: int) -> None:
    ivs = CounterIvs.resumed(start * (1 << 65) + given)
    again = CounterIvs.resumed(ivs.position)
    for _ in range(2):
        if given == 1 << 64:
            with pytest.raises(PacketError):
                again.take()
        else:
            assert again.take() == ((start + given) % (1 << 64)).to_bytes(8, "big")
            given += 1


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
    secret = key(BLOCK_CIPHERS[name]).reveal()
    algorithm = block_cipher(name, secret)
    block = algorithm.block_size // 8
    sealer = CbcSealer(name, secret, RandomPool(random.Random(1).randbytes))
    opener = CbcOpener(name, secret)
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
    after_the_same = [
        CbcSealer("aes-cbc-128", bytes(16), RandomPool(random.Random(seed).randbytes)) for seed in (1, 2)
    ]
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


def primitives() -> list[tuple[Callable[[], bytes], Callable[[], bool]]]:
    """One of each kind: seal or open something, and whether there is a context."""
    pool = RandomPool(random.Random(2).randbytes)
    gcm, short = Gcm(bytes(20)), ShortGcm(bytes(20), 8)
    gmac, hmac = Gmac(bytes(36)), mac("hmac-sha1-96", bytes(20), 12)
    assert isinstance(hmac, Hmac)
    sealer, opener = CbcSealer("aes-cbc-128", bytes(16), pool), CbcOpener("3des-cbc", bytes(24))
    sealed = Gcm(bytes(20)).seal(bytes(8), b"text", b"")
    return [
        (lambda: gcm.open(bytes(8), sealed, b""), lambda: gcm._aead is not None),
        (lambda: short.seal(bytes(8), b"text", b""), lambda: short._aead is not None),
        (lambda: gmac.icv(bytes(8), b"text"), lambda: gmac._aead is not None),
        (lambda: hmac.icv(b"", b"text"), lambda: hmac._keyed is not None),
        (lambda: sealer.seal(bytes(32)), lambda: sealer._update is not None),
        (lambda: opener.open(bytes(32)), lambda: opener._update is not None),
    ]


def test_context_is_made_at_the_first_packet() -> None:
    for use, has_context in primitives():
        assert not has_context()
        use()
        assert has_context()
        use()


def test_oldest_context_goes_when_there_are_too_many_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ciphers, "_contexts", ciphers._Contexts(2))
    made = primitives()
    answers = [use() for use, _ in made]
    assert [has_context() for _, has_context in made] == [False] * 4 + [True] * 2
    for number, (use, has_context) in enumerate(made):
        again = use()
        # What the CBC sealer gives begins with a new IV each time.
        assert again == answers[number] or number == 4
        assert has_context()
    assert sum(has_context() for _, has_context in made) == 2


def test_deleted_sa_is_not_kept_for_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ciphers, "_contexts", ciphers._Contexts(2))
    kept = []
    for _ in range(5):
        gcm = Gcm(bytes(20))
        gcm.seal(bytes(8), b"text", b"")
        kept.append(weakref.ref(gcm))
    del gcm
    assert [one() for one in kept] == [None] * 5
