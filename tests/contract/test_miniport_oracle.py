"""An independent oracle: scapy opens what the NIC sealed, and the NIC opens what scapy sealed.

Where scapy cannot serve, the packet is computed here with `cryptography` alone:
- AES-GCM with an ICV of 8 or 12 bytes: scapy always writes and expects 16 (its issue 4903);
- AES-GMAC in AH: scapy has no such algorithm; its own handling of mutable fields still serves;
- AH over ESP: scapy opens it, but when it seals it takes the ESP inside for what is to be signed
  (`AuthAlgo.sign` looks for an ESP layer first), so that ICV is made here.
HMAC-SHA-256 cut to 96 bits is no algorithm of scapy's, but its class can be told so.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hmac import HMAC
from nic_frames import (
    AH_SUITES,
    ESP_SUITES,
    INNER_V4,
    INNER_V6,
    UDP,
    UNDER_AH_SUITES,
    V4,
    V6,
    Nic,
    Sa,
    ah,
    esp,
    ethernet,
    framed,
    ip,
    ipv4,
    ipv6,
    sealed,
    suite_id,
    transmit,
    udp,
)
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import AH, ESP, AuthAlgo, SecurityAssociation, zero_mutable_fields

from vnic.ipsec.association import Mode
from vnic.ndis.oid import Operation

PAYLOAD = udp(b"known to both sides of the oracle")
SEQUENCE = 0x01020304
HIGH = 0x0A0B0C0D

CRYPT = {
    "": "NULL",
    "null": "NULL",
    "des-cbc": "DES",
    "3des-cbc": "3DES",
    "aes-cbc": "AES-CBC",
    "aes-gcm": "AES-GCM",
    "aes-gmac": "AES-NULL-GMAC",
}
AUTH = {"hmac-md5-96": "HMAC-MD5-96", "hmac-sha1-96": "HMAC-SHA1-96", "hmac-sha256-128": "SHA2-256-128"}
SHA256_96 = AuthAlgo("SHA2-256-96", mac=HMAC, digestmod=hashes.SHA256, icv_size=12)

SCAPY_ESP = [sa for sa in ESP_SUITES if not (sa.combined and sa.icv)]
SHORT_GCM = [sa for sa in ESP_SUITES if sa.combined and sa.icv]
SCAPY_AH = [sa for sa in AH_SUITES if not sa.integrity.startswith("aes")]
GMAC_AH = [sa for sa in AH_SUITES if sa.integrity.startswith("aes")]

TRANSPORT_V4, TRANSPORT_V6 = (V4, None), (V6, None)
SHAPES = {
    "transport-v4": TRANSPORT_V4,
    "transport-v6": TRANSPORT_V6,
    "v4-in-v4": (V4, INNER_V4),
    "v6-in-v4": (V4, INNER_V6),
    "v4-in-v6": (V6, INNER_V4),
    "v6-in-v6": (V6, INNER_V6),
}
Shape = tuple[tuple[bytes, bytes], tuple[bytes, bytes] | None]


def scapy_sa(sa: Sa, tunnel: tuple[bytes, bytes] | None) -> SecurityAssociation:
    """The same SA as scapy knows it; `tunnel` are the outer addresses of tunnel mode."""
    arguments: dict[str, Any] = {"esn_en": sa.esn, "esn": HIGH if sa.esn else 0}
    if sa.integrity.startswith("aes-gmac"):
        arguments |= {"crypt_algo": CRYPT["aes-gmac"], "crypt_key": sa.integrity_key.reveal()}
    else:
        if sa.operation is Operation.ESP:
            name = sa.encryption.rsplit("-", 1)[0] if sa.encryption.startswith("aes") else sa.encryption
            arguments |= {"crypt_algo": CRYPT[name], "crypt_key": sa.encryption_key.reveal() or None}
        if sa.integrity:
            arguments |= {"auth_algo": AUTH[sa.integrity], "auth_key": sa.integrity_key.reveal()}
    if tunnel is not None:
        arguments["tunnel_header"] = packet_class(tunnel)(ip(tunnel, UDP, b""))
    made = SecurityAssociation(ESP if sa.operation is Operation.ESP else AH, sa.spi, **arguments)
    if sa.integrity == "hmac-sha256-128" and sa.icv == 12:
        made.auth_algo = SHA256_96
    return made


def packet_class(addresses: tuple[bytes, bytes]) -> Any:
    return IP if len(addresses[0]) == 4 else IPv6


def extended(sa: Sa, esn: bool) -> Sa:
    return replace(sa, esn=esn, high=HIGH if esn else 0)


def inside(shape: Shape) -> tuple[bytes, int]:
    """What the SA protects, and its protocol number."""
    _, inner = shape
    if inner is None:
        return PAYLOAD, UDP
    return ip(inner, UDP, PAYLOAD), 4 if len(inner[0]) == 4 else 41


@pytest.mark.parametrize("esn", [False, True], ids=["32", "64"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("sa", [*SCAPY_ESP, *SCAPY_AH], ids=suite_id)
def test_scapy_opens_what_the_nic_sealed(sa: Sa, shape: Shape, esn: bool) -> None:
    sa = extended(sa, esn)
    outer, inner = shape
    text, next_header = inside(shape)
    nic = Nic()
    handle = nic.add(sa, outer, portion=Mode.TUNNEL if inner else Mode.TRANSPORT)
    frame = sealed(nic, sa, framed(sa, text, next_header, outer, sequence=SEQUENCE), handle)
    packet = packet_class(outer)(frame[14:])
    opened = scapy_sa(sa, outer if inner else None).decrypt(packet)
    assert bytes(opened if inner else opened.payload) == text


@pytest.mark.parametrize("esn", [False, True], ids=["32", "64"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("sa", [*SCAPY_ESP, *SCAPY_AH], ids=suite_id)
def test_nic_opens_what_scapy_sealed(sa: Sa, shape: Shape, esn: bool) -> None:
    sa = extended(sa, esn)
    outer, inner = shape
    text, next_header = inside(shape)
    packet = packet_class(inner or outer)(ip(inner or outer, UDP, PAYLOAD))
    made = bytes(scapy_sa(sa, outer if inner else None).encrypt(packet, seq_num=SEQUENCE))
    nic = Nic()
    nic.add(sa, outer, inbound=True, portion=Mode.TUNNEL if inner else Mode.TRANSPORT)
    info, opened = nic.open(ethernet(made))
    assert info is not None
    assert info.verified
    if sa.operation is Operation.ESP:
        assert info.next_header == next_header
        assert info.pad_length == -(len(text) + 2) % sa.block_length
        start = 14 + (20 if outer is V4 else 40) + sa.header_length
        assert opened[start : start + len(text)] == text
    else:
        assert opened == ethernet(made)
        assert opened.endswith(text)


@pytest.mark.parametrize("esn", [False, True], ids=["32", "64"])
@pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("outer", [ah("hmac-sha1-96"), ah("hmac-sha256-128")], ids=suite_id)
@pytest.mark.parametrize(
    "inner", [esp("aes-gcm-192"), esp("3des-cbc", "hmac-md5-96"), *UNDER_AH_SUITES], ids=suite_id
)
def test_bundle_is_the_same_to_scapy(inner: Sa, outer: Sa, addresses: tuple[bytes, bytes], esn: bool) -> None:
    bundle = (extended(inner, esn), extended(outer, esn))
    nic = Nic()
    handle = nic.add(bundle, addresses)
    nic.add(bundle, addresses, inbound=True)
    frame = sealed(nic, bundle, framed(bundle, PAYLOAD, UDP, addresses, sequence=SEQUENCE), handle)
    oracle = [scapy_sa(sa, None) for sa in bundle]
    authenticated = oracle[1].decrypt(packet_class(addresses)(frame[14:]))
    opened = oracle[0].decrypt(packet_class(addresses)(bytes(authenticated)))
    assert bytes(opened.payload) == PAYLOAD
    packet = packet_class(addresses)(ip(addresses, UDP, PAYLOAD))
    cipher = bytes(oracle[0].encrypt(packet, seq_num=SEQUENCE).payload)
    info, after = nic.open(authenticated_by_hand(bundle[1], cipher, addresses))
    assert info is not None
    assert info.verified
    assert PAYLOAD in after


def authenticated_by_hand(sa: Sa, cipher: bytes, addresses: tuple[bytes, bytes]) -> bytes:
    """A frame with AH over `cipher`, with an ICV over what scapy leaves of the packet."""
    one = framed(sa, cipher, 50, addresses, sequence=SEQUENCE)
    muted = bytes(zero_mutable_fields(packet_class(addresses)(one.frame[14:]), sending=True))
    covered = muted + (struct.pack(">I", HIGH) if sa.esn else b"")
    digest = "sha1" if sa.integrity == "hmac-sha1-96" else "sha256"
    icv = hmac.digest(sa.integrity_key.reveal(), covered, digest)[: sa.icv_length]
    start = one.ah + 12
    return one.frame[:start] + icv + one.frame[start + sa.icv_length :]


@pytest.mark.parametrize("esn", [False, True], ids=["32", "64"])
@pytest.mark.parametrize("sa", SHORT_GCM, ids=suite_id)
def test_short_gcm_icv_is_the_front_of_the_whole_one(sa: Sa, esn: bool) -> None:
    sa = extended(sa, esn)
    nic = Nic()
    one = framed(sa, PAYLOAD, sequence=SEQUENCE)
    frame = sealed(nic, sa, one, nic.add(sa))
    secret = sa.encryption_key.reveal()
    iv = frame[one.esp + 8 : one.text]
    mode = modes.GCM(secret[-4:] + iv, frame[-sa.icv :], min_tag_length=sa.icv)
    context = Cipher(algorithms.AES(secret[:-4]), mode).decryptor()
    aad = struct.pack(">I", sa.spi) + (struct.pack(">I", HIGH) if esn else b"") + struct.pack(">I", SEQUENCE)
    context.authenticate_additional_data(aad)
    text = one.frame[one.text : -sa.icv]
    assert context.update(frame[one.text : -sa.icv]) + context.finalize() == text
    whole = AESGCM(secret[:-4]).encrypt(secret[-4:] + iv, text, aad)
    assert frame[one.text :] == whole[: len(text) + sa.icv]


@pytest.mark.parametrize("esn", [False, True], ids=["32", "64"])
@pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("sa", GMAC_AH, ids=suite_id)
def test_gmac_in_ah_covers_what_scapy_leaves_of_the_packet(
    sa: Sa, addresses: tuple[bytes, bytes], esn: bool
) -> None:
    sa = extended(sa, esn)
    nic = Nic()
    one = framed(sa, PAYLOAD, UDP, addresses, sequence=SEQUENCE, alignment=4 if addresses is V4 else 8)
    frame = sealed(nic, sa, one, nic.add(sa, addresses))
    iv = frame[one.ah + 12 : one.ah + 20]
    icv = frame[one.ah + 20 : one.ah + 36]
    packet = packet_class(addresses)(frame[14:])
    # scapy takes IV, ICV and padding for the ICV and zeroes all; the IV counts (RFC 4543 §4).
    muted = bytearray(bytes(zero_mutable_fields(packet, sending=True)))
    muted[one.ah - 14 + 12 : one.ah - 14 + 20] = iv
    secret = sa.integrity_key.reveal()
    covered = bytes(muted) + (struct.pack(">I", HIGH) if esn else b"")
    assert icv == AESGCM(secret[:-4]).encrypt(secret[-4:] + iv, b"", covered)


OPTIONS_V4 = {
    "record route": b"\x07\x0b\x04" + bytes(8) + b"\x00",
    "router alert": b"\x94\x04\x00\x00",
    "timestamp": b"\x44\x08\x05\x00" + bytes(4),
    "security": b"\x82\x0b" + bytes(range(9)) + b"\x01",
    "mixed": b"\x01\x94\x04\x00\x00\x07\x07\x04" + bytes(4),
}


@pytest.mark.parametrize("options", OPTIONS_V4.values(), ids=OPTIONS_V4)
def test_ipv4_options_count_as_scapy_says(options: bytes) -> None:
    sa = ah("hmac-sha1-96")
    nic = Nic()
    handle = nic.add(sa)
    nic.add(sa, inbound=True)
    frame = ethernet(ipv4(*V4, 51, sa.wrap(PAYLOAD, UDP, SEQUENCE), options=options))
    buffer = nic.seal(frame, transmit(handle, ah_offset=20 + len(options)))
    assert buffer.status == 0
    opened = scapy_sa(sa, None).decrypt(IP(bytes(buffer.frame[14:])))
    assert bytes(opened.payload) == PAYLOAD
    made = scapy_sa(sa, None).encrypt(IP(ipv4(*V4, UDP, PAYLOAD, options=options)), seq_num=SEQUENCE)
    info, _ = nic.open(ethernet(bytes(made)))
    assert info is not None
    assert info.verified


HEADERS_V6 = {
    "hop by hop": (0, bytes((UDP, 0, 5, 2, 0, 0, 1, 0))),
    "mutable option": (0, bytes((UDP, 1, 0x3E, 4, 1, 2, 3, 4, 1, 4, 0, 0, 0, 0, 0, 0))),
    "routing": (43, bytes((UDP, 4, 0, 2)) + bytes(4) + INNER_V6[0] + INNER_V6[1]),
}


@pytest.mark.parametrize(("first", "header"), HEADERS_V6.values(), ids=HEADERS_V6)
def test_ipv6_extension_headers_count_as_scapy_says(first: int, header: bytes) -> None:
    sa = ah("hmac-sha256-128")
    packet = IPv6(ipv6(*V6, first, header + PAYLOAD))
    expected = bytes(scapy_sa(sa, None).encrypt(packet, seq_num=SEQUENCE))
    nic = Nic()
    body = bytes((51,)) + header[1:] + sa.wrap(PAYLOAD, UDP, SEQUENCE)
    buffer = nic.seal(ethernet(ipv6(*V6, first, body)), transmit(nic.add(sa, V6), ah_offset=40 + len(header)))
    assert buffer.status == 0
    start = 14 + 40 + len(header)
    assert buffer.frame[start:] == expected[start - 14 :]
