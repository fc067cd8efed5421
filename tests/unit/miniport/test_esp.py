"""ESP of one SA, against the RFCs' constructions computed here with the primitives themselves."""

import hashlib
import hmac
import random
import struct
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vnic.errors import PacketError
from vnic.miniport.ciphers import (
    CbcOpener,
    CbcSealer,
    CounterIvs,
    Gcm,
    Gmac,
    Hmac,
    RandomPool,
    WrongIcv,
    block_cipher,
    mac,
)
from vnic.miniport.esn import ExtendedNumbers
from vnic.miniport.esp import (
    EspOpener,
    EspSealer,
    GcmOpener,
    GcmSealer,
    GmacOpener,
    GmacSealer,
    SeparateOpener,
    SeparateSealer,
)

SPI = 0x01020304
AEAD_KEY = random.Random(1).randbytes(20)
CBC_KEY = random.Random(2).randbytes(16)
MAC_KEY = random.Random(3).randbytes(20)
BEFORE = b"what is before"
BEHIND = b"what is behind"
Numbers = ExtendedNumbers | None
Pair = tuple[EspSealer, EspOpener]


def hmac_sha1() -> Hmac:
    made = mac("hmac-sha1-96", MAC_KEY, 12)
    assert isinstance(made, Hmac)
    return made


def gcm_pair(ours: Numbers = None, theirs: Numbers = None) -> Pair:
    gcm = Gcm(AEAD_KEY)
    return GcmSealer(SPI, gcm, 16, CounterIvs(b"iv start"), ours), GcmOpener(SPI, gcm, 16, theirs)


def gmac_pair(ours: Numbers = None, theirs: Numbers = None) -> Pair:
    gmac = Gmac(AEAD_KEY)
    return GmacSealer(SPI, gmac, CounterIvs(b"iv start"), ours), GmacOpener(SPI, gmac, theirs)


def cbc_pair(ours: Numbers = None, theirs: Numbers = None) -> Pair:
    pool = RandomPool(random.Random(4).randbytes)
    return (
        SeparateSealer(SPI, CbcSealer("aes-cbc-128", CBC_KEY, pool), 16, hmac_sha1(), 12, ours),
        SeparateOpener(SPI, CbcOpener("aes-cbc-128", CBC_KEY), 16, hmac_sha1(), 12, theirs),
    )


def null_pair(ours: Numbers = None, theirs: Numbers = None) -> Pair:
    return (
        SeparateSealer(SPI, None, 1, hmac_sha1(), 12, ours),
        SeparateOpener(SPI, None, 1, hmac_sha1(), 12, theirs),
    )


def bare_pair(ours: Numbers = None, theirs: Numbers = None) -> Pair:
    pool = RandomPool(random.Random(5).randbytes)
    return (
        SeparateSealer(SPI, CbcSealer("aes-cbc-128", CBC_KEY, pool), 16, None, 0, ours),
        SeparateOpener(SPI, CbcOpener("aes-cbc-128", CBC_KEY), 16, None, 0, theirs),
    )


PAIRS: dict[str, Callable[..., Pair]] = {
    "gcm": gcm_pair,
    "gmac": gmac_pair,
    "cbc": cbc_pair,
    "null": null_pair,
}
EVERY_PAIR = {**PAIRS, "bare": bare_pair}


def room(sealer: EspSealer, plaintext: bytes, number: int = 1) -> tuple[bytearray, int, int]:
    """A frame with room around an ESP packet, and where the packet starts and ends."""
    header = struct.pack(">II", SPI, number & 0xFFFFFFFF)
    packet = header + bytes(sealer.header_length - 8) + plaintext + bytes(sealer.icv_length)
    return bytearray(BEFORE + packet + BEHIND), len(BEFORE), len(BEFORE) + len(packet)


TEXT = b"sixteen bytes of" * 3 + b"fourteen bytes" + bytes((0, 4))


@pytest.mark.parametrize("pair", EVERY_PAIR.values(), ids=EVERY_PAIR)
def test_what_was_sealed_opens_again_and_nothing_else_changes(pair: Callable[..., Pair]) -> None:
    sealer, opener = pair()
    frame, start, end = room(sealer, TEXT)
    sealer.seal(frame, start, end)
    wire = bytes(frame)
    assert TEXT not in wire or pair in (null_pair, gmac_pair)
    changed = opener.open(frame, start, end)
    text = start + sealer.header_length
    assert frame[text : text + len(TEXT)] == TEXT
    assert bytes(frame[:text]) == wire[:text]
    assert bytes(frame[text + len(TEXT) :]) == wire[text + len(TEXT) :]
    assert frame.startswith(BEFORE)
    assert frame.endswith(BEHIND)
    if changed is not None:
        frame[end - len(changed) : end] = changed
    assert frame == wire


@pytest.mark.parametrize("number", [7, 5 << 32 | 7])
def test_gcm_packet_is_built_as_rfc_4106_says(number: int) -> None:
    extended = number >> 32
    sealer, _ = gcm_pair(ExtendedNumbers(extended) if extended else None)
    frame, start, end = room(sealer, TEXT, number)
    sealer.seal(frame, start, end)
    sequence = struct.pack(">Q", number) if extended else struct.pack(">I", number)
    aad = struct.pack(">I", SPI) + sequence
    expected = AESGCM(AEAD_KEY[:16]).encrypt(AEAD_KEY[16:] + b"iv start", TEXT, aad)
    assert frame[start + 8 : end] == b"iv start" + expected


@pytest.mark.parametrize("number", [7, 5 << 32 | 7])
def test_gmac_packet_is_built_as_rfc_4543_says(number: int) -> None:
    extended = number >> 32
    sealer, _ = gmac_pair(ExtendedNumbers(extended) if extended else None)
    frame, start, end = room(sealer, TEXT, number)
    sealer.seal(frame, start, end)
    sequence = struct.pack(">Q", number) if extended else struct.pack(">I", number)
    aad = struct.pack(">I", SPI) + sequence + b"iv start" + TEXT
    assert frame[start + 16 : end] == TEXT + AESGCM(AEAD_KEY[:16]).encrypt(
        AEAD_KEY[16:] + b"iv start", b"", aad
    )


@pytest.mark.parametrize("number", [7, 5 << 32 | 7])
def test_cbc_packet_is_built_as_rfc_4303_says(number: int) -> None:
    extended = number >> 32
    sealer, _ = cbc_pair(ExtendedNumbers(extended) if extended else None)
    frame, start, end = room(sealer, TEXT, number)
    sealer.seal(frame, start, end)
    iv = bytes(frame[start + 8 : start + 24])
    context = Cipher(block_cipher("aes-cbc-128", CBC_KEY), modes.CBC(iv)).encryptor()
    assert frame[start + 24 : end - 12] == context.update(TEXT)
    covered = bytes(frame[start : end - 12]) + (struct.pack(">I", extended) if extended else b"")
    assert frame[end - 12 : end] == hmac.digest(MAC_KEY, covered, hashlib.sha1)[:12]


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_no_byte_of_a_packet_may_change(pair: Callable[..., Pair]) -> None:
    sealer, opener = pair()
    frame, start, end = room(sealer, TEXT)
    sealer.seal(frame, start, end)
    for position in range(start, end):
        mutated = bytearray(frame)
        mutated[position] ^= 0x40
        wire = bytes(mutated)
        with pytest.raises(WrongIcv):
            opener.open(mutated, start, end)
        assert mutated == wire


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("off", [-1, 1])
def test_upper_half_of_the_number_off_by_one_does_not_hold(pair: Callable[..., Pair], off: int) -> None:
    knows = ExtendedNumbers(0)
    knows.authenticated((5 + off) << 32 | 7)
    sealer, opener = pair(ExtendedNumbers(5), knows)
    frame, start, end = room(sealer, TEXT, 5 << 32 | 7)
    sealer.seal(frame, start, end)
    wire = bytes(frame)
    with pytest.raises(WrongIcv):
        opener.open(frame, start, end)
    assert frame == wire


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_first_packet_after_a_wrap_opens_with_the_old_upper_half(pair: Callable[..., Pair]) -> None:
    sealer, opener = pair(ExtendedNumbers(6), ExtendedNumbers(5))
    for number in (6 << 32 | 3, 6 << 32 | 4):
        frame, start, end = room(sealer, TEXT, number)
        sealer.seal(frame, start, end)
        opener.open(frame, start, end)


@pytest.mark.parametrize("pair", EVERY_PAIR.values(), ids=EVERY_PAIR)
def test_sealer_refuses_what_does_not_fit_and_changes_nothing(pair: Callable[..., Pair]) -> None:
    sealer, _ = pair()
    frame, start, end = room(sealer, TEXT)
    wire = bytes(frame)
    unfit = [
        (start, end + 1),
        (start, end - 2),
        (start, end + 16),
        (start + 4, end),
        (start, start + 8),
        (start, start),
        (start, start - 40),
        (start, len(frame) + 16),
        (len(frame) - 2, len(frame) + 200),
    ]
    for from_, to in unfit:
        with pytest.raises(PacketError):
            sealer.seal(frame, from_, to)
    assert frame == wire


def test_sealer_refuses_another_spi() -> None:
    sealer, _ = gcm_pair()
    frame, start, end = room(sealer, TEXT)
    frame[start] ^= 1
    with pytest.raises(PacketError, match="SPI"):
        sealer.seal(frame, start, end)


@pytest.mark.parametrize("pair", EVERY_PAIR.values(), ids=EVERY_PAIR)
def test_padding_longer_than_the_payload_is_refused_both_ways(pair: Callable[..., Pair]) -> None:
    sealer, opener = pair()
    text = TEXT[:-2] + bytes((len(TEXT) - 1, 4))
    frame, start, end = room(sealer, text)
    with pytest.raises(PacketError, match="padding"):
        sealer.seal(frame, start, end)
    sealer._seal(frame, start, end - sealer.icv_length, end, b"")
    wire = bytes(frame)
    with pytest.raises(PacketError, match="padding"):
        opener.open(frame, start, end)
    assert frame == wire


@pytest.mark.parametrize("pair", EVERY_PAIR.values(), ids=EVERY_PAIR)
def test_padding_may_fill_the_whole_payload(pair: Callable[..., Pair]) -> None:
    sealer, opener = pair()
    frame, start, end = room(sealer, bytes(range(1, 15)) + bytes((14, 59)))
    sealer.seal(frame, start, end)
    opener.open(frame, start, end)


@pytest.mark.parametrize("pair", EVERY_PAIR.values(), ids=EVERY_PAIR)
def test_opener_refuses_every_length_that_cannot_be(pair: Callable[..., Pair]) -> None:
    sealer, opener = pair()
    frame, start, end = room(sealer, TEXT)
    sealer.seal(frame, start, end)
    wire = bytes(frame)
    shortest = start + opener.header_length + 2 + opener.icv_length
    for to in [*range(start - 4, shortest), len(frame) + 1, len(frame) + 16]:
        with pytest.raises(PacketError):
            opener.open(frame, start, to)
    assert frame == wire


@pytest.mark.parametrize("pair", [cbc_pair, bare_pair], ids=["cbc", "bare"])
def test_cipher_text_must_be_whole_blocks(pair: Callable[..., Pair]) -> None:
    sealer, opener = pair()
    frame, start, end = room(sealer, TEXT)
    sealer.seal(frame, start, end)
    for to in range(end - 15, end):
        with pytest.raises(PacketError, match="block"):
            opener.open(frame, start, to)


def test_used_up_ivs_refuse_the_packet() -> None:
    ivs = CounterIvs.resumed(1 << 64)
    sealer = GcmSealer(SPI, Gcm(AEAD_KEY), 16, ivs, None)
    frame, start, end = room(sealer, TEXT)
    wire = bytes(frame)
    with pytest.raises(PacketError, match="IV"):
        sealer.seal(frame, start, end)
    assert frame == wire
