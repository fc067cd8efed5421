"""Known answers: published packets and primitives against the NIC. SOURCES.md says where they come from.

IVs are the NIC's own business, so known ones enter through its source of random bytes: for AES-GCM and
AES-GMAC as the start of the counter, for CBC as the block whose image under the cipher is the IV.
"""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import cryptography_vectors
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from nic_frames import AH_SHA256, ethernet, ipv4, transmit

from vnic.ipsec.algorithms import ENCRYPTION_BY_NAME, INTEGRITY_BY_NAME
from vnic.ipsec.association import KeyMaterial, Mode
from vnic.miniport.adapter import MiniportAdapter
from vnic.miniport.ah import AhOpener, AhSealer
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
from vnic.ndis.netbuffer import NetBuffer
from vnic.ndis.oid import NO_ALGORITHM, AddSa, AlgorithmInfo, Operation, SaElement
from vnic.ndis.status import NdisStatus

HERE = Path(__file__).parent
Case = dict[str, str]


def cases(name: str) -> list[Any]:
    loaded = json.loads((HERE / f"{name}.json").read_text())["cases"]
    return [pytest.param(case, id=case["name"]) for case in loaded]


def unhex(case: Case, *names: str) -> bytes:
    return bytes.fromhex("".join(case[name] for name in names))


def image_source(algorithm: str, key: bytes, iv: bytes) -> RandomPool:
    """Random bytes whose first block the cipher turns into `iv`, given a chain that starts with zero."""
    context = Cipher(block_cipher(algorithm, key), modes.ECB()).decryptor()
    block = context.update(iv)
    return RandomPool(lambda length: block * (length // len(block)))


def extended(case: Case) -> tuple[ExtendedNumbers | None, ExtendedNumbers | None]:
    """What sealer and opener must know to find the number of a case: the upper half of the one before."""
    if len(case["sequence_number"]) == 8:
        return None, None
    high = (int(case["sequence_number"], 16) - 1) >> 32
    return ExtendedNumbers(high), ExtendedNumbers(high)


def check_packet(sealer: EspSealer, opener: EspOpener, case: Case, iv_length: int, icv_length: int) -> None:
    packet = unhex(case, "packet")
    plaintext = unhex(case, "plaintext")
    frame = bytearray(packet[:8] + bytes(iv_length) + plaintext + bytes(icv_length))
    sealer.seal(frame, 0, len(frame))
    assert frame.hex() == packet.hex()
    opener.open(frame, 0, len(frame))
    assert frame[8 + iv_length : len(frame) - icv_length].hex() == plaintext.hex()


@pytest.mark.parametrize("case", cases("esp_gcm"))
def test_gcm_esp_packet_of_the_draft_is_sealed_and_opened(case: Case) -> None:
    spi = int(case["spi"], 16)
    gcm = Gcm(unhex(case, "key", "salt"))
    ours, theirs = extended(case)
    check_packet(
        GcmSealer(spi, gcm, 16, CounterIvs(unhex(case, "iv")), ours),
        GcmOpener(spi, gcm, 16, theirs),
        case,
        8,
        16,
    )


@pytest.mark.parametrize("case", cases("esp_gmac"))
def test_gmac_esp_packet_of_the_draft_is_sealed_and_opened(case: Case) -> None:
    spi = int(case["spi"], 16)
    gmac = Gmac(unhex(case, "key", "salt"))
    check_packet(
        GmacSealer(spi, gmac, CounterIvs(unhex(case, "iv")), None), GmacOpener(spi, gmac, None), case, 8, 16
    )


@pytest.mark.parametrize("case", cases("esp_aes_cbc"))
def test_cbc_esp_packet_of_rfc_3602_is_sealed_and_opened(case: Case) -> None:
    key = unhex(case, "key")
    spi = int(case["spi"], 16)
    pool = image_source("aes-cbc-128", key, unhex(case, "iv"))
    check_packet(
        SeparateSealer(spi, CbcSealer("aes-cbc-128", key, pool), 16, None, 0, None),
        SeparateOpener(spi, CbcOpener("aes-cbc-128", key), 16, None, 0, None),
        case,
        16,
        0,
    )


@pytest.mark.parametrize("case", [one for one in cases("esp_gcm") if int(one.values[0]["spi"], 16) >= 256])
def test_gcm_esp_packet_of_the_draft_leaves_and_enters_a_whole_nic(case: Case) -> None:
    packet = unhex(case, "packet")
    plaintext = unhex(case, "plaintext")
    key = unhex(case, "key", "salt")
    row = ENCRYPTION_BY_NAME[f"aes-gcm-{(len(key) - 4) * 8}"]
    number = int(case["sequence_number"], 16)
    element = SaElement(
        Operation.ESP,
        int(case["spi"], 16),
        NO_ALGORITHM,
        AlgorithmInfo(row.ndis_identifier, KeyMaterial(key)),
        len(case["sequence_number"]) == 16,
        (number - 1) >> 32,
    )
    ends = bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))
    nic = MiniportAdapter(lambda length: unhex(case, "iv")[:length])
    nic.set_encapsulation(ipv4=True, ipv6=True)
    handle = nic.add_sa(AddSa(False, *ends, (element,)))
    nic.add_sa(AddSa(True, *ends, (element,)))
    room = packet[:8] + bytes(8) + plaintext + bytes(16)
    info = transmit(handle, esp_offset=20, pad_length=plaintext[-2], next_header=plaintext[-1])
    buffer = NetBuffer(bytearray(ethernet(ipv4(*ends, 50, room))), None, info)
    nic.send([buffer])
    assert buffer.status is NdisStatus.SUCCESS
    assert buffer.frame[34:].hex() == packet.hex()
    nic.receive([buffer])
    assert buffer.receive is not None
    assert buffer.receive.verified
    assert (buffer.receive.pad_length, buffer.receive.next_header) == (plaintext[-2], plaintext[-1])
    assert buffer.frame[50:-16].hex() == plaintext.hex()


@pytest.mark.rule(14)
@pytest.mark.parametrize("case", cases("esp_aes_cbc"))
def test_cbc_esp_packet_of_rfc_3602_leaves_and_enters_a_whole_nic_under_ah(case: Case) -> None:
    key = unhex(case, "key")
    packet = unhex(case, "packet")
    header = unhex(case, "ip_header")
    ends = header[12:16], header[16:20]
    row = ENCRYPTION_BY_NAME["aes-cbc-128"]
    esp = SaElement(
        Operation.ESP,
        int(case["spi"], 16),
        NO_ALGORITHM,
        AlgorithmInfo(row.ndis_identifier, KeyMaterial(key)),
    )
    pool = image_source("aes-cbc-128", key, unhex(case, "iv"))
    nic = MiniportAdapter(pool.take)
    nic.set_encapsulation(ipv4=True, ipv6=True)
    elements = (esp, AH_SHA256.element())
    mode = Mode(case["mode"])
    handle = nic.add_sa(AddSa(False, *ends, elements, portion=mode))
    nic.add_sa(AddSa(True, *ends, elements, portion=mode))
    room = AH_SHA256.wrap(packet[:8] + bytes(16) + unhex(case, "plaintext"), 50, alignment=4)
    frame = ethernet(ipv4(*ends, 51, room))
    pad_length, next_header = unhex(case, "plaintext")[-2:]
    info = transmit(handle, ah_offset=20, esp_offset=48, pad_length=pad_length, next_header=next_header)
    buffer = NetBuffer(bytearray(frame), None, info)
    nic.send([buffer])
    assert buffer.status is NdisStatus.SUCCESS
    assert buffer.frame[62:].hex() == packet.hex()
    nic.receive([buffer])
    assert buffer.receive is not None
    assert buffer.receive.verified
    assert buffer.frame[86:].hex() == case["plaintext"]


@pytest.mark.parametrize("case", cases("esp_dpdk"))
def test_esp_packet_of_dpdk_is_sealed_and_opened(case: Case) -> None:
    packet = unhex(case, "packet")
    start = 20 if packet[0] >> 4 == 4 else 40
    (spi,) = struct.unpack_from(">I", packet, start)
    encryption = ENCRYPTION_BY_NAME[case["encryption"]]
    key = unhex(case, "encryption_key")
    iv = packet[start + 8 : start + 8 + encryption.iv_length]
    sealer: EspSealer
    opener: EspOpener
    if encryption.combined:
        gcm = Gcm(key)
        sealer = GcmSealer(spi, gcm, 16, CounterIvs(iv), None)
        opener = GcmOpener(spi, gcm, 16, None)
    else:
        hmac = mac(case["integrity"], unhex(case, "integrity_key"), 16)
        assert isinstance(hmac, Hmac)
        pool = image_source(encryption.name, key, iv)
        sealer = SeparateSealer(spi, CbcSealer(encryption.name, key, pool), 16, hmac, 16, None)
        opener = SeparateOpener(spi, CbcOpener(encryption.name, key), 16, hmac, 16, None)
    check_packet(sealer, opener, {**case, "packet": packet[start:].hex()}, encryption.iv_length, 16)


@pytest.mark.parametrize("case", cases("ah"))
def test_ah_packet_of_dpdk_is_sealed_and_opened(case: Case) -> None:
    packet = unhex(case, "packet")
    row = INTEGRITY_BY_NAME[case["integrity"]]
    (spi,) = struct.unpack_from(">I", packet, 24)
    integrity = mac(row.name, unhex(case, "key"), 16)
    ivs = CounterIvs(unhex(case, "iv")) if row.iv_length else None
    frame = bytearray(packet)
    frame[32 : 48 + row.iv_length] = bytes(16 + row.iv_length)
    AhSealer(spi, integrity, 16, ivs, None).seal(frame, 0, 20, len(frame))
    assert frame.hex() == packet.hex()
    opener = AhOpener(spi, integrity, row.iv_length, 16, None)
    assert opener.open(frame, 0, 20, len(frame)) == 28 + row.iv_length
    assert frame.hex() == packet.hex()


@cache
def records(path: str) -> list[dict[str, str]]:
    """The records of a CAVP response file, each with the bracketed settings it stands under."""
    settings: dict[str, str] = {}
    found: list[dict[str, str]] = []
    with cryptography_vectors.open_vector_file(path, "r") as file:
        for raw in file:
            line = raw.strip()
            if line.startswith("["):
                name, _, value = line.strip("[]").partition(" = ")
                settings[name] = value
            elif line.upper().startswith("COUNT") or line.startswith("Len"):
                found.append(dict(settings))
            elif line == "FAIL":
                found[-1]["FAIL"] = ""
            elif " =" in line and not line.startswith("#"):
                name, _, value = line.partition(" =")
                found[-1][name] = value.strip()
    return found


@pytest.mark.parametrize("bits", [128, 192, 256])
def test_aes_cbc_gives_the_answers_of_nist(bits: int) -> None:
    found = records(f"ciphers/AES/CBC/CBCMMT{bits}.rsp")
    assert len(found) == 20
    for record in found:
        check_cbc(f"aes-cbc-{bits}", bytes.fromhex(record["KEY"]), record)


def check_cbc(name: str, key: bytes, record: dict[str, str]) -> None:
    iv, plaintext, ciphertext = (bytes.fromhex(record[one]) for one in ("IV", "PLAINTEXT", "CIPHERTEXT"))
    assert CbcSealer(name, key, image_source(name, key, iv)).seal(plaintext) == iv + ciphertext
    assert CbcOpener(name, key).open(iv + ciphertext) == plaintext


def test_triple_des_cbc_gives_the_answers_of_nist() -> None:
    found = records("ciphers/3DES/CBC/TCBCMMT3.rsp")
    assert len(found) == 20
    for record in found:
        check_cbc("3des-cbc", bytes.fromhex(record["KEY1"] + record["KEY2"] + record["KEY3"]), record)


@pytest.mark.parametrize(("file", "count"), [("vartext", 128), ("varkey", 112)])
def test_des_cbc_gives_the_answers_of_nist(file: str, count: int) -> None:
    found = records(f"ciphers/3DES/CBC/TCBC{file}.rsp")
    assert len(found) == count
    for record in found:
        check_cbc("des-cbc", bytes.fromhex(record["KEYs"]), record)


@pytest.mark.parametrize("icv_length", [16, 12, 8])
@pytest.mark.parametrize("bits", [128, 192, 256])
def test_aes_gcm_gives_the_answers_of_nist(bits: int, icv_length: int) -> None:
    settings = {"IVlen": "96", "Taglen": str(icv_length * 8)}
    found = [
        record
        for record in records(f"ciphers/AES/GCM/gcmDecrypt{bits}.rsp")
        if settings.items() <= record.items()
    ]
    outcomes = {True: 0, False: 0}
    for record in found:
        key, iv, ciphertext, aad, tag = (
            bytes.fromhex(record[name]) for name in ("Key", "IV", "CT", "AAD", "Tag")
        )
        gcm = Gcm(key + iv[:4]) if icv_length == 16 else ShortGcm(key + iv[:4], icv_length)
        good = "FAIL" not in record
        outcomes[good] += 1
        if good:
            plaintext = bytes.fromhex(record["PT"])
            assert gcm.open(iv[4:], ciphertext + tag, aad) == plaintext
            assert gcm.seal(iv[4:], plaintext, aad) == ciphertext + tag
        else:
            with pytest.raises(WrongIcv):
                gcm.open(iv[4:], ciphertext + tag, aad)
    assert min(outcomes.values()) > 50


@pytest.mark.parametrize("bits", [128, 192, 256])
def test_aes_gmac_gives_the_answers_of_nist(bits: int) -> None:
    settings = {"IVlen": "96", "Taglen": "128", "PTlen": "0"}
    checked = 0
    for record in records(f"ciphers/AES/GCM/gcmDecrypt{bits}.rsp"):
        if settings.items() <= record.items():
            key, iv, aad, tag = (bytes.fromhex(record[name]) for name in ("Key", "IV", "AAD", "Tag"))
            assert (Gmac(key + iv[:4]).icv(iv[4:], aad) == tag) is ("FAIL" not in record)
            checked += 1
    assert checked > 50


@pytest.mark.parametrize(
    ("name", "file", "icv_length"),
    [
        ("hmac-md5-96", "rfc-2202-md5.txt", 12),
        ("hmac-sha1-96", "rfc-2202-sha1.txt", 12),
        ("hmac-sha256-128", "rfc-4231-sha256.txt", 16),
        ("hmac-sha256-128", "rfc-4231-sha256.txt", 12),
    ],
)
def test_hmac_gives_the_truncated_answers_of_the_rfcs(name: str, file: str, icv_length: int) -> None:
    found = records(f"HMAC/{file}")
    assert found
    for record in found:
        key, message, digest = (bytes.fromhex(record[one]) for one in ("Key", "Msg", "MD"))
        made = mac(name, key, icv_length)
        assert made.icv(b"", message) == digest[:icv_length]
        assert made.icv(b"", message[:3], message[3:]) == digest[:icv_length]


@pytest.mark.parametrize(
    ("name", "key", "message", "icv"),
    [
        ("hmac-md5-96", b"\x0c" * 16, b"Test With Truncation", "56461ef2342edc00f9bab995"),
        ("hmac-sha1-96", b"\x0c" * 20, b"Test With Truncation", "4c1a03424b55e07fe7f27be1"),
        ("hmac-sha256-128", b"\x0b" * 32, b"Hi There", "198a607eb44bfbc69903a0f1cf2bbdc5"),
        (
            "hmac-sha256-128",
            b"Jefe" * 8,
            b"what do ya want for nothing?",
            "167f928588c5cc2eef8e3093caa0e87c",
        ),
        ("hmac-sha256-128", b"\xaa" * 32, b"\xdd" * 50, "cdcb1220d1ecccea91e53aba3092f962"),
        (
            "hmac-sha256-128",
            bytes(range(1, 33)),
            b"\xcd" * 50,
            "372efcf9b40b35c2115b1346903d2ef4",
        ),
    ],
)
def test_truncated_hmac_is_that_of_its_rfc(name: str, key: bytes, message: bytes, icv: str) -> None:
    assert mac(name, key, len(icv) // 2).icv(b"", message).hex() == icv
