"""Makes vectors/packets.txt: ESP and AH packets of every pair of algorithms, with and without ESN.

Law: nothing of vnic is used. The primitives are those of `cryptography`, put together as the RFCs say;
where Scapy knows the algorithms, it must open the packet too.

    esp ENCRYPTION KEY INTEGRITY KEY ICV-LENGTH HIGH TEXT PACKET       bytes in hexadecimal, - for none
    ah INTEGRITY KEY ICV-LENGTH HIGH IV MUTED ICV

Run: python native/core/tests/make_vectors.py > native/core/tests/vectors/packets.txt

Source: RFC 4303 §2, §3.3.2; RFC 4302 §3.3.3; RFC 4106 §3-§5; RFC 4543 §3, §4; RFC 2104.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from scapy.layers.inet import IP
from scapy.layers.ipsec import ESP, SecurityAssociation

BLOCK_CIPHERS = {
    "null": (0, 0, "NULL"),
    "des-cbc": (8, 8, "DES"),
    "3des-cbc": (24, 8, "3DES"),
    "aes-cbc-128": (16, 16, "AES-CBC"),
    "aes-cbc-192": (24, 16, "AES-CBC"),
    "aes-cbc-256": (32, 16, "AES-CBC"),
}
HASHES = {
    "hmac-md5-96": ("md5", 16, (12,), "HMAC-MD5-96"),
    "hmac-sha1-96": ("sha1", 20, (12,), "HMAC-SHA1-96"),
    "hmac-sha256-128": ("sha256", 32, (16, 12), "SHA2-256-128"),
}
AES_BITS = (128, 192, 256)
HIGHS = (None, 0, 0x01020304)
PAYLOADS = (0, 1, 20, 61, 301)
SPI = 0xC0FFEE01


class Stream:
    """Bytes that look random and are the same in every run."""

    def __init__(self) -> None:
        self._count = 0

    def take(self, length: int) -> bytes:
        self._count += 1
        return hashlib.shake_128(self._count.to_bytes(4, "big")).digest(length)


def cbc(name: str, key: bytes, iv: bytes, text: bytes) -> bytes:
    if not iv:
        return text
    if name == "des-cbc":
        key *= 3
    cipher = TripleDES(key) if iv[8:] == b"" else algorithms.AES(key)
    return Cipher(cipher, modes.CBC(iv)).encryptor().update(text)


def text_of(stream: Stream, length: int, block: int) -> bytes:
    pad = -(length + 2) % max(block, 4)
    # Next header 59: no payload that anybody would look into.
    return stream.take(length) + bytes(range(1, pad + 1)) + bytes((pad, 59))


def hexadecimal(*fields: object) -> str:
    return " ".join(
        field.hex() or "-" if isinstance(field, bytes) else "-" if field in (None, "") else str(field)
        for field in fields
    )


def check_with_scapy(packet: bytes, high: int | None, text: bytes, **algorithms_and_keys: object) -> None:
    payload = text[: len(text) - 2 - text[-2]]
    association = SecurityAssociation(
        ESP, spi=SPI, esn_en=high is not None, esn=high or 0, **algorithms_and_keys
    )
    outer = IP(bytes(IP(src="192.0.2.1", dst="192.0.2.2", proto=50) / packet))
    opened = association.decrypt(outer, esn_en=high is not None, esn=high or 0)
    assert bytes(opened.payload) == payload, (packet, payload)


def esp_block(stream: Stream) -> Iterator[str]:
    sequence = 0
    for encryption, (key_length, block, scapy_cipher) in BLOCK_CIPHERS.items():
        integrities = [(name, icv) for name, row in HASHES.items() for icv in row[2]]
        for integrity, icv_length in [*integrities, ("", 0)]:
            for high in HIGHS:
                for payload in PAYLOADS:
                    sequence += 1
                    key = stream.take(key_length)
                    iv = stream.take(block)
                    header = SPI.to_bytes(4, "big") + sequence.to_bytes(4, "big")
                    text = text_of(stream, payload, block)
                    packet = header + iv + cbc(encryption, key, iv, text)
                    integrity_key = b""
                    scapy_integrity = "NULL"
                    if integrity:
                        digest, length, _, scapy_integrity = HASHES[integrity]
                        integrity_key = stream.take(length)
                        suffix = b"" if high is None else high.to_bytes(4, "big")
                        packet += hmac.digest(integrity_key, packet + suffix, digest)[:icv_length]
                    if icv_length != 12 or integrity != "hmac-sha256-128":
                        check_with_scapy(
                            packet,
                            high,
                            text,
                            crypt_algo=scapy_cipher,
                            crypt_key=key or None,
                            auth_algo=scapy_integrity,
                            auth_key=integrity_key or None,
                        )
                    yield hexadecimal(
                        "esp", encryption, key, integrity, integrity_key, icv_length, high, text, packet
                    )


def esp_counter(stream: Stream) -> Iterator[str]:
    sequence = 0xFFFFFF00
    for bits in AES_BITS:
        for icv_length in (16, 12, 8):
            for high in HIGHS:
                for payload in PAYLOADS:
                    sequence = (sequence + 1) & 0xFFFFFFFF
                    key, salt, iv = stream.take(bits // 8), stream.take(4), stream.take(8)
                    spi, low = SPI.to_bytes(4, "big"), sequence.to_bytes(4, "big")
                    middle = b"" if high is None else high.to_bytes(4, "big")
                    text = text_of(stream, payload, 1)
                    sealed = AESGCM(key).encrypt(salt + iv, text, spi + middle + low)
                    packet = spi + low + iv + sealed[: len(text) + icv_length]
                    if icv_length == 16:
                        check_with_scapy(packet, high, text, crypt_algo="AES-GCM", crypt_key=key + salt)
                    yield hexadecimal(
                        "esp", f"aes-gcm-{bits}", key + salt, "", b"", icv_length, high, text, packet
                    )
                    if icv_length == 16:
                        icv = AESGCM(key).encrypt(salt + iv, b"", spi + middle + low + iv + text)
                        packet = spi + low + iv + text + icv
                        yield hexadecimal(
                            "esp", "null", b"", f"aes-gmac-{bits}", key + salt, 16, high, text, packet
                        )


def ah(stream: Stream) -> Iterator[str]:
    for high in HIGHS:
        suffix = b"" if high is None else high.to_bytes(4, "big")
        for length in (44, 60, 113, 1480):
            muted = stream.take(length)
            for integrity, (digest, key_length, icv_lengths, _) in HASHES.items():
                for icv_length in icv_lengths:
                    key = stream.take(key_length)
                    icv = hmac.digest(key, muted + suffix, digest)[:icv_length]
                    yield hexadecimal("ah", integrity, key, icv_length, high, b"", muted, icv)
            for bits in AES_BITS:
                key, salt, iv = stream.take(bits // 8), stream.take(4), stream.take(8)
                icv = AESGCM(key).encrypt(salt + iv, b"", muted + suffix)
                yield hexadecimal("ah", f"aes-gmac-{bits}", key + salt, 16, high, iv, muted, icv)


def main() -> None:
    """Print the vectors."""
    stream = Stream()
    for lines in (esp_block(stream), esp_counter(stream), ah(stream)):
        for line in lines:
            print(line)


if __name__ == "__main__":
    main()
