"""Makes vectors/published.txt from the published answers of tests/vectors/SOURCES.md.

Law: as make_vectors.py, whose format the lines have; no number is made here. A primitive's answer is put
where ESP or AH has it: NIST's CBC texts behind an ESP header without ICV; MACs as those of muted AH packets.

Run: python native/core/tests/make_published.py > native/core/tests/vectors/published.txt
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cryptography_vectors
from make_vectors import hexadecimal

VECTORS = Path(__file__).parents[3] / "tests" / "vectors"
NIST = Path(cryptography_vectors.__file__).parent
HEADER = bytes.fromhex("0000100000000001")


def cases(name: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((VECTORS / f"{name}.json").read_text())["cases"]
    return found


def unhex(case: dict[str, str], *names: str) -> bytes:
    return bytes.fromhex("".join(case[name] for name in names))


def records(name: str) -> Iterator[dict[str, str]]:
    """Give the records of a file, with the [settings] in front of them."""
    settings: dict[str, str] = {}
    record: dict[str, str] = {}
    for line in [*(NIST / name).read_text().splitlines(), ""]:
        key, equals, value = (part.strip() for part in line.strip("[]").partition("="))
        if line.startswith("["):
            settings[key] = value
        elif not line and len(record) > 1:
            yield {**settings, **record}
            record = {}
        elif line == "FAIL" or equals:
            record[key] = value


def esp() -> Iterator[str]:
    for case in cases("esp_aes_cbc"):
        key, text, packet = (unhex(case, name) for name in ("key", "plaintext", "packet"))
        yield hexadecimal("esp", "aes-cbc-128", key, "", b"", 0, None, text, packet)
    for case in cases("esp_gcm"):
        key, text, packet = unhex(case, "key", "salt"), unhex(case, "plaintext"), unhex(case, "packet")
        number = case["sequence_number"]
        high = int(number, 16) >> 32 if len(number) == 16 else None
        name = f"aes-gcm-{8 * len(key) - 32}"
        yield hexadecimal("esp", name, key, "", b"", 16, high, text, packet)
    for case in cases("esp_gmac"):
        key, text, packet = unhex(case, "key", "salt"), unhex(case, "plaintext"), unhex(case, "packet")
        yield hexadecimal("esp", "null", b"", "aes-gmac-128", key, 16, None, text, packet)
    for case in cases("esp_dpdk"):
        packet = unhex(case, "packet")
        packet = packet[20 if packet[0] >> 4 == 4 else 40 :]
        key, integrity_key, text = (
            bytes.fromhex(case.get(name, "")) for name in ("encryption_key", "integrity_key", "plaintext")
        )
        icv_length = len(packet) - len(text) - (16 if "gcm" in case["encryption"] else 24)
        integrity = case.get("integrity", "")
        yield hexadecimal(
            "esp", case["encryption"], key, integrity, integrity_key, icv_length, None, text, packet
        )


def cbc() -> Iterator[str]:
    files = [(f"aes-cbc-{bits}", f"AES/CBC/CBCMMT{bits}", ("KEY",)) for bits in (128, 192, 256)]
    files.append(("3des-cbc", "3DES/CBC/TCBCMMT3", ("KEY1", "KEY2", "KEY3")))
    files += [("des-cbc", f"3DES/CBC/TCBC{name}", ("KEYs",)) for name in ("vartext", "varkey")]
    for name, file, keys in files:
        for record in records(f"ciphers/{file}.rsp"):
            packet = HEADER + unhex(record, "IV", "CIPHERTEXT")
            yield hexadecimal(
                "esp", name, unhex(record, *keys), "", b"", 0, None, unhex(record, "PLAINTEXT"), packet
            )


def macs() -> Iterator[str]:
    for name, file, key_length in (
        ("hmac-md5-96", "rfc-2202-md5", 16),
        ("hmac-sha1-96", "rfc-2202-sha1", 20),
        ("hmac-sha256-128", "rfc-4231-sha256", 32),
    ):
        icv_length = 16 if key_length == 32 else 12
        for record in records(f"HMAC/{file}.txt"):
            # A shorter key is the same as one with zeros behind it (RFC 2104 §2).
            key = unhex(record, "Key")
            if len(key) <= key_length:
                key = key.ljust(key_length, b"\0")
                icv = unhex(record, "MD")[:icv_length]
                yield hexadecimal("ah", name, key, icv_length, None, b"", unhex(record, "Msg"), icv)
    # RFC 4868 §2.7.2.1, AUTH256-1.
    icv = bytes.fromhex("198a607eb44bfbc69903a0f1cf2bbdc5")
    yield hexadecimal("ah", "hmac-sha256-128", b"\x0b" * 32, 16, None, b"", b"Hi There", icv)
    for bits in (128, 192, 256):
        for record in records(f"ciphers/AES/GCM/gcmEncryptExtIV{bits}.rsp"):
            if (record["IVlen"], record["Taglen"], record["PTlen"]) == ("96", "128", "0") and record["AAD"]:
                iv = unhex(record, "IV")
                key, tag = unhex(record, "Key") + iv[:4], unhex(record, "Tag")
                yield hexadecimal("ah", f"aes-gmac-{bits}", key, 16, None, iv[4:], unhex(record, "AAD"), tag)


def ah() -> Iterator[str]:
    for case in cases("ah"):
        packet = bytearray(unhex(case, "packet"))
        iv = unhex(case, "iv")
        start = 32 + len(iv)
        icv = bytes(packet[start : start + 16])
        # TOS, flags and fragment offset, TTL, checksum; the ICV (RFC 4302 §3.3.3.1).
        for place in (slice(1, 2), slice(6, 9), slice(10, 12), slice(start, start + 16)):
            packet[place] = bytes(len(packet[place]))
        key = unhex(case, "key") + (unhex(case, "salt") if "salt" in case else b"")
        yield hexadecimal("ah", case["integrity"], key, 16, None, iv, bytes(packet), icv)


def main() -> None:
    """Print the vectors."""
    for lines in (esp(), cbc(), macs(), ah()):
        for line in lines:
            print(line)


if __name__ == "__main__":
    main()
