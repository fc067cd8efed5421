"""Two peers that seal and open IPsec packets and share no line with vnic.

Law: neither imports vnic; both know an association only from the words that were given to `vnic`.

`Scapy` is scapy's `SecurityAssociation`. `Textbook` is the RFCs written down step by step over the primitives
of `cryptography`, for what scapy lacks or gets wrong (`scapy_errs` says what), and stricter: it also looks at
padding, lengths, reserved fields and IVs.

Source: RFC 2403-2405, 2410, 2451, 3602, 4106, 4302, 4303, 4543, 4868.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Protocol

from card import Association
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

with warnings.catch_warnings():
    # scapy names ciphers at import that cryptography has moved or is about to move.
    warnings.simplefilter("ignore")
    from scapy.layers.ipsec import AH, ESP, SecurityAssociation

ESP_NUMBER, AH_NUMBER = 50, 51
IP_IN_IP, IPV6_IN_IP = 4, 41
TAG_LENGTH = 16
SALT_LENGTH = 4
COUNTER_IV_LENGTH = 8
AH_FIXED_LENGTH = 12


class WrongPacketError(AssertionError):
    """A packet is not what its association says."""


def demand(holds: bool, what: str) -> None:
    if not holds:
        raise WrongPacketError(what)


class Oracle(Protocol):
    """A peer of one flow."""

    def seal(self, sas: Sequence[Association], packet: bytes, number: int) -> bytes:
        """Protect an IP packet.

        Args:
            sas: innermost first.
            number: the 64-bit sequence number for each of them.
        """
        ...

    def open(self, sas: Sequence[Association], packet: bytes, number: int) -> bytes:
        """Give the packet inside a protected one.

        Raises:
            Exception: it does not hold.
        """
        ...


# --------------------------------------------------------------------------------------------- IP headers


def is_ipv6(packet: bytes) -> bool:
    return packet[0] >> 4 == 6


def split(packet: bytes) -> tuple[bytes, int, bytes]:
    """Header, protocol and the rest of a packet without options or extension headers."""
    if is_ipv6(packet):
        demand(len(packet) == 40 + int.from_bytes(packet[4:6], "big"), "IPv6 payload length")
        return packet[:40], packet[6], packet[40:]
    demand(packet[0] == 0x45, "IPv4 options")
    demand(len(packet) == int.from_bytes(packet[2:4], "big"), "IPv4 total length")
    demand(internet_checksum(packet[:20]) == 0, "IPv4 header checksum")
    return packet[:20], packet[9], packet[20:]


def joined(header: bytes, protocol: int, rest: bytes) -> bytes:
    """A packet of the same header with another protocol and length."""
    changed = bytearray(header)
    if is_ipv6(header):
        changed[4:6] = struct.pack(">H", len(rest))
        changed[6] = protocol
    else:
        changed[2:4] = struct.pack(">H", len(header) + len(rest))
        changed[9] = protocol
        changed[10:12] = bytes(2)
        changed[10:12] = struct.pack(">H", internet_checksum(changed))
    return bytes(changed) + rest


def internet_checksum(data: bytes | bytearray) -> int:
    """RFC 1071; 0 over data that holds its own right checksum."""
    padded = bytes(data) + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def outer_header(sa: Association) -> bytes:
    """A header between the ends of a tunnel; length, protocol and checksum are for `joined`."""
    source, destination = (ip_address(end).packed for end in (sa.source, sa.destination))
    if len(source) == 16:
        return struct.pack(">IHBB", 6 << 28, 0, 0, 64) + source + destination
    return struct.pack(">BBHHHBBH", 0x45, 0, 0, 0x1234, 0, 64, 0, 0) + source + destination


def without_mutable_fields(header: bytes) -> bytes:
    """A header as AH covers it (RFC 4302 §3.3.3.1): what routers may change is zero."""
    fixed = bytearray(header)
    if is_ipv6(header):
        fixed[0:4] = b"\x60\0\0\0"  # traffic class, flow label
        fixed[7] = 0  # hop limit
    else:
        fixed[1] = 0  # type of service
        fixed[6:9] = bytes(3)  # flags, fragment offset, time to live
        fixed[10:12] = bytes(2)  # checksum
    return bytes(fixed)


# ----------------------------------------------------------------------------------------------- Textbook


@dataclass
class Textbook:
    """The RFCs, step by step.

    Attributes:
        ivs: IVs seen of each SPI, none of which may come twice.
        ah_alignment: AH headers over IPv4 are a multiple of this; 4 is the RFC's, 8 is Linux's and ours
            unless we are told otherwise.
    """

    ah_alignment: int = 8
    ivs: dict[int, set[bytes]] = field(default_factory=dict)

    def seal(self, sas: Sequence[Association], packet: bytes, number: int) -> bytes:
        for sa in sas:
            if sa.mode == "tunnel":
                inner = IPV6_IN_IP if is_ipv6(packet) else IP_IN_IP
                header, protocol, rest = outer_header(sa), inner, packet
            else:
                header, protocol, rest = split(packet)
            if sa.suite.protocol == "esp":
                packet = joined(header, ESP_NUMBER, seal_esp(sa, number, protocol, rest))
            else:
                packet = self._seal_ah(sa, number, header, protocol, rest)
        return packet

    def open(self, sas: Sequence[Association], packet: bytes, number: int) -> bytes:
        for sa in reversed(sas):
            header, protocol, rest = split(packet)
            if sa.suite.protocol == "esp":
                demand(protocol == ESP_NUMBER, "ESP expected")
                iv, protocol, rest = open_esp(sa, number, rest)
            else:
                demand(protocol == AH_NUMBER, "AH expected")
                iv, protocol, rest = self._open_ah(sa, number, header, rest)
            self._never_again(sa.spi, iv)
            if sa.mode == "tunnel":
                ends = header[8:40] if is_ipv6(header) else header[12:20]
                wanted = ip_address(sa.source).packed + ip_address(sa.destination).packed
                demand(ends == wanted, "ends of the tunnel")
                demand(protocol == (IPV6_IN_IP if is_ipv6(rest) else IP_IN_IP), "next header of a tunnel")
                packet = rest
            else:
                packet = joined(header, protocol, rest)
        return packet

    def _never_again(self, spi: int, iv: bytes) -> None:
        seen = self.ivs.setdefault(spi, set())
        demand(not iv or iv not in seen, f"IV {iv.hex()} came twice")
        seen.add(iv)

    def _seal_ah(self, sa: Association, number: int, header: bytes, protocol: int, rest: bytes) -> bytes:
        iv_length, icv_length = ah_lengths(sa)
        length = self._ah_length(sa, header)
        iv = os.urandom(iv_length)
        fixed = struct.pack(">BBHII", protocol, length // 4 - 2, 0, sa.spi, number & 0xFFFFFFFF)
        padding = bytes(length - AH_FIXED_LENGTH - iv_length - icv_length)
        header = joined(header, AH_NUMBER, fixed + iv + bytes(icv_length) + padding + rest)[: len(header)]
        icv = ah_icv(sa, number, header, fixed, iv, padding, rest)
        return header + fixed + iv + icv + padding + rest

    def _open_ah(self, sa: Association, number: int, header: bytes, rest: bytes) -> tuple[bytes, int, bytes]:
        """IV, next header and payload behind an IP header."""
        iv_length, icv_length = ah_lengths(sa)
        fixed = rest[:AH_FIXED_LENGTH]
        protocol, words, reserved, spi, low = struct.unpack(">BBHII", fixed)
        demand((spi, low) == (sa.spi, number & 0xFFFFFFFF), "SPI and sequence number")
        demand(reserved == 0, "reserved field")
        length = (words + 2) * 4
        demand(length == self._ah_length(sa, header), "length of AH")
        icv_at = AH_FIXED_LENGTH + iv_length
        iv, icv = rest[AH_FIXED_LENGTH:icv_at], rest[icv_at : icv_at + icv_length]
        padding, payload = rest[icv_at + icv_length : length], rest[length:]
        demand(ah_icv(sa, number, header, fixed, iv, padding, payload) == icv, "ICV of AH")
        return iv, protocol, payload

    def _ah_length(self, sa: Association, header: bytes) -> int:
        """Bytes of a whole AH header (RFC 4302 §2.2: a multiple of 8 over IPv6)."""
        alignment = 8 if is_ipv6(header) else self.ah_alignment
        return -(-(AH_FIXED_LENGTH + sum(ah_lengths(sa))) // alignment) * alignment


def key_of(sa: Association, *words: str) -> tuple[str, bytes] | None:
    """Name and key of the algorithm behind one of these words."""
    for algorithm, key in zip(sa.suite.algorithms, sa.keys, strict=True):
        if algorithm.word in words:
            return algorithm.name, key
    return None


def mac_length(sa: Association) -> int:
    """ICV of the HMAC in bytes: as said, and 96 bits where nothing is said (`auth`)."""
    (bits,) = (one.icv_bits or 96 for one in sa.suite.algorithms if one.word in ("auth", "auth-trunc"))
    return bits // 8


def mac(sa: Association, data: bytes) -> bytes:
    found = key_of(sa, "auth", "auth-trunc")
    assert found is not None
    name, key = found
    whole = hmac.new(key, data, getattr(hashlib, name.removeprefix("hmac(").removesuffix(")"))).digest()
    return whole[: mac_length(sa)]


def cipher(sa: Association, iv: bytes) -> Cipher[modes.CBC] | None:
    """The block cipher of an ESP association; None is null encryption."""
    found = key_of(sa, "enc")
    assert found is not None
    name, key = found
    if name == "ecb(cipher_null)":
        return None
    if name == "cbc(aes)":
        return Cipher(algorithms.AES(key), modes.CBC(iv))
    # Triple DES with one key three times is DES (RFC 2451 §2.3).
    return Cipher(TripleDES(key * 3 if name == "cbc(des)" else key), modes.CBC(iv))


def block_length(sa: Association) -> int:
    """Bytes of a cipher block, which is also the length of the IV; 0 is none."""
    found = key_of(sa, "enc")
    assert found is not None
    return {"ecb(cipher_null)": 0, "cbc(aes)": 16}.get(found[0], 8)


def sequence_bytes(sa: Association, number: int) -> bytes:
    """The number as the AAD of a combined mode has it."""
    return struct.pack(">Q" if sa.esn else ">I", number if sa.esn else number & 0xFFFFFFFF)


def upper_half(sa: Association, number: int) -> bytes:
    """What a separate integrity algorithm covers behind the packet."""
    return struct.pack(">I", number >> 32) if sa.esn else b""


def with_trailer(payload: bytes, protocol: int, alignment: int) -> bytes:
    pad = -(len(payload) + 2) % alignment
    return payload + bytes(range(1, pad + 1)) + bytes((pad, protocol))


def without_trailer(plain: bytes, alignment: int) -> tuple[int, bytes]:
    demand(len(plain) % alignment == 0, "ESP payload not aligned")
    pad, protocol = plain[-2], plain[-1]
    demand(pad < alignment, "more padding than alignment needs")
    payload, padding = plain[: len(plain) - 2 - pad], plain[len(plain) - 2 - pad : -2]
    demand(padding == bytes(range(1, pad + 1)), "padding is not 1, 2, 3")
    return protocol, payload


def gcm_tag(key: bytes, iv: bytes, plain: bytes, aad: bytes) -> bytes:
    """Cipher text and full tag; the key ends with the salt."""
    return AESGCM(key[:-SALT_LENGTH]).encrypt(key[-SALT_LENGTH:] + iv, plain, aad)


def seal_esp(sa: Association, number: int, protocol: int, payload: bytes) -> bytes:
    """ESP header to ICV (RFC 4303 §2)."""
    start = struct.pack(">II", sa.spi, number & 0xFFFFFFFF)
    combined = key_of(sa, "aead")
    if combined is not None:
        name, key = combined
        iv = os.urandom(COUNTER_IV_LENGTH)
        plain = with_trailer(payload, protocol, 4)
        aad = start[:4] + sequence_bytes(sa, number)
        if name == "rfc4543(gcm(aes))":
            return start + iv + plain + gcm_tag(key, iv, b"", aad + iv + plain)
        sealed = gcm_tag(key, iv, plain, aad)
        return start + iv + sealed[: len(plain) + icv_bytes(sa)]
    block = block_length(sa)
    iv = os.urandom(block)
    text = with_trailer(payload, protocol, max(block, 4))
    made = cipher(sa, iv)
    if made is not None:
        text = made.encryptor().update(text)
    covered = start + iv + text
    return covered + mac(sa, covered + upper_half(sa, number))


def icv_bytes(sa: Association) -> int:
    """ICV of a combined mode."""
    (bits,) = (one.icv_bits for one in sa.suite.algorithms if one.word == "aead")
    assert bits is not None
    return bits // 8


def open_esp(sa: Association, number: int, esp: bytes) -> tuple[bytes, int, bytes]:
    """IV, next header and payload of ESP header to ICV."""
    demand(struct.unpack(">II", esp[:8]) == (sa.spi, number & 0xFFFFFFFF), "SPI and sequence number")
    start = esp[:8]
    combined = key_of(sa, "aead")
    if combined is not None:
        name, key = combined
        icv_length = icv_bytes(sa)
        iv, text, icv = esp[8:16], esp[16:-icv_length], esp[-icv_length:]
        aad = start[:4] + sequence_bytes(sa, number)
        if name == "rfc4543(gcm(aes))":
            demand(gcm_tag(key, iv, b"", aad + iv + text) == icv, "ICV of GMAC")
            return iv, *without_trailer(text, 4)
        # Counter mode with the block counter where GCM begins the text (SP 800-38D §7.1); sealing the
        # result again gives the tag, of which any length can be compared.
        first = key[-SALT_LENGTH:] + iv + b"\0\0\0\2"
        plain = Cipher(algorithms.AES(key[:-SALT_LENGTH]), modes.CTR(first)).decryptor().update(text)
        demand(gcm_tag(key, iv, plain, aad)[: len(text) + icv_length] == text + icv, "ICV of GCM")
        return iv, *without_trailer(plain, 4)
    block, icv_length = block_length(sa), mac_length(sa)
    covered, icv = esp[:-icv_length], esp[-icv_length:]
    demand(mac(sa, covered + upper_half(sa, number)) == icv, "ICV of HMAC")
    iv, text = covered[8 : 8 + block], covered[8 + block :]
    made = cipher(sa, iv)
    if made is not None:
        text = made.decryptor().update(text)
    return iv, *without_trailer(text, max(block, 4))


def ah_lengths(sa: Association) -> tuple[int, int]:
    """Bytes of IV and ICV in an AH header (RFC 4543 §4 for GMAC)."""
    if key_of(sa, "aead") is not None:
        return COUNTER_IV_LENGTH, TAG_LENGTH
    return 0, mac_length(sa)


def ah_icv(
    sa: Association, number: int, header: bytes, fixed: bytes, iv: bytes, padding: bytes, rest: bytes
) -> bytes:
    """The ICV over everything that does not change on the way, itself taken as zero."""
    _, icv_length = ah_lengths(sa)
    covered = without_mutable_fields(header) + fixed + iv + bytes(icv_length) + padding + rest
    covered += upper_half(sa, number)
    combined = key_of(sa, "aead")
    if combined is not None:
        return gcm_tag(combined[1], iv, b"", covered)
    return mac(sa, covered)


# -------------------------------------------------------------------------------------------------- scapy


_SCAPY_CIPHERS = {
    "ecb(cipher_null)": "NULL",
    "cbc(des)": "DES",
    "cbc(des3_ede)": "3DES",
    "cbc(aes)": "AES-CBC",
    "rfc4106(gcm(aes))": "AES-GCM",
    "rfc4543(gcm(aes))": "AES-NULL-GMAC",
}
_SCAPY_MACS = {
    ("hmac(md5)", 12): "HMAC-MD5-96",
    ("hmac(sha1)", 12): "HMAC-SHA1-96",
    ("hmac(sha256)", 16): "SHA2-256-128",
}


def scapy_errs(sas: Sequence[Association], *, sealing: bool) -> str:
    """Why scapy's answer about a packet with these associations proves nothing; "" if it does."""
    for sa in sas:
        combined = key_of(sa, "aead")
        if combined is None:
            if (sa.suite.algorithms[-1].name, mac_length(sa)) not in _SCAPY_MACS:
                return "it has no HMAC-SHA-256 of 96 bits"
        elif sa.suite.protocol == "ah":
            return "it has no AES-GMAC for AH"
        elif icv_bytes(sa) != TAG_LENGTH:
            return "it seals with a tag of 16 bytes and asks for one of 16, whatever crypt_icv_size says"
    if sealing and [sa.suite.protocol for sa in sas[-2:]] == ["esp", "ah"]:
        return "AH over ESP: it takes any packet with an ESP layer for ESP and puts the ICV of AH behind it"
    return ""


class Scapy:
    """scapy's SecurityAssociation. It checks no padding, and knows no replay."""

    def seal(self, sas: Sequence[Association], packet: bytes, number: int) -> bytes:
        layer = parsed(packet)
        for sa in sas:
            layer = parsed(bytes(association(sa, number).encrypt(layer, seq_num=number & 0xFFFFFFFF)))
        return bytes(layer)

    def open(self, sas: Sequence[Association], packet: bytes, number: int) -> bytes:
        layer = parsed(packet)
        for sa in reversed(sas):
            header = ESP if sa.suite.protocol == "esp" else AH
            demand(layer[header].seq == number & 0xFFFFFFFF, "sequence number")
            layer = parsed(bytes(association(sa, number).decrypt(layer)))
        return bytes(layer)


def parsed(packet: bytes) -> Any:
    """A packet as scapy has it."""
    return IPv6(packet) if is_ipv6(packet) else IP(packet)


def association(sa: Association, number: int) -> Any:
    """An association as scapy has it; the upper half of extended numbers is part of it there."""
    options: dict[str, Any] = {"esn_en": sa.esn, "esn": number >> 32 if sa.esn else 0}
    for algorithm, key in zip(sa.suite.algorithms, sa.keys, strict=True):
        if algorithm.word in ("enc", "aead"):
            options |= {"crypt_algo": _SCAPY_CIPHERS[algorithm.name], "crypt_key": key or None}
        else:
            length = (algorithm.icv_bits or 96) // 8
            options |= {"auth_algo": _SCAPY_MACS[algorithm.name, length], "auth_key": key}
    if sa.mode == "tunnel":
        header = IPv6 if ":" in sa.source else IP
        options["tunnel_header"] = header(src=sa.source, dst=sa.destination)
    made: Any = SecurityAssociation  # without annotations
    return made(ESP if sa.suite.protocol == "esp" else AH, spi=sa.spi, **options)
