"""Key files for other programs: Wireshark opens with ours what scapy sealed."""

import os
import shutil
import subprocess
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP
from scapy.layers.ipsec import SecurityAssociation as Oracle
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap

from vnic.daemon.keyfile import wireshark_line
from vnic.ipsec.algorithms import ENCRYPTION_BY_NAME, INTEGRITY_BY_NAME, Encryption, Integrity
from vnic.ipsec.association import Direction, IpsecProtocol, KeyMaterial, Mode, SecurityAssociation

TSHARK = shutil.which("tshark")

CASES: list[tuple[str, str | None, int, dict[str, Any]]] = [
    ("aes-gcm-128", None, 16, {"crypt_algo": "AES-GCM"}),
    ("aes-gcm-256", None, 16, {"crypt_algo": "AES-GCM"}),
    ("aes-cbc-192", "hmac-sha1-96", 12, {"crypt_algo": "AES-CBC", "auth_algo": "HMAC-SHA1-96"}),
    ("aes-cbc-256", "hmac-sha256-128", 16, {"crypt_algo": "AES-CBC", "auth_algo": "SHA2-256-128"}),
    ("3des-cbc", "hmac-md5-96", 12, {"crypt_algo": "3DES", "auth_algo": "HMAC-MD5-96"}),
    ("null", "hmac-sha1-96", 12, {"crypt_algo": "NULL", "auth_algo": "HMAC-SHA1-96"}),
]


def association(
    encryption: str | None, integrity: str | None, icv_length: int, *, ipv6: bool = False, **members: Any
) -> SecurityAssociation:
    ends = ("2001:db8::1", "2001:db8::2") if ipv6 else ("192.0.2.1", "192.0.2.2")
    encryption_row = None if encryption is None else ENCRYPTION_BY_NAME[encryption]
    integrity_row = None if integrity is None else INTEGRITY_BY_NAME[integrity]
    given: dict[str, Any] = {
        "direction": Direction.OUTBOUND,
        "source": ip_address(ends[0]).packed,
        "destination": ip_address(ends[1]).packed,
        "protocol": IpsecProtocol.ESP,
        "spi": 0x100,
        "mode": Mode.TUNNEL,
        "encryption": encryption_row,
        "encryption_key": key_of(encryption_row, 0),
        "integrity": integrity_row,
        "integrity_key": key_of(integrity_row, 64),
        "icv_length": icv_length,
    }
    return SecurityAssociation(**(given | members)).checked()


def key_of(row: Encryption | Integrity | None, first: int) -> KeyMaterial:
    return KeyMaterial(b"" if row is None else bytes(range(first, first + row.key_length)))


@pytest.mark.interop
@pytest.mark.parametrize(("encryption", "integrity", "icv_length", "oracle"), CASES, ids=lambda one: str(one))
def test_tshark_opens_and_checks_with_our_key_file(
    tmp_path: Path, encryption: str, integrity: str | None, icv_length: int, oracle: dict[str, Any]
) -> None:
    if TSHARK is None:
        pytest.skip("needs tshark")
    ipv6 = encryption in ("aes-gcm-256", "aes-cbc-256")
    sa = association(encryption, integrity, icv_length, ipv6=ipv6)
    outer = IPv6 if ipv6 else IP
    ends = {"src": str(ip_address(sa.source)), "dst": str(ip_address(sa.destination))}
    keys = {"crypt_key": sa.encryption_key.reveal(), "auth_key": sa.integrity_key.reveal()}
    seal = Oracle(
        ESP,
        spi=sa.spi,
        tunnel_header=outer(**ends),
        **oracle,
        **{name: key for name, key in keys.items() if key},
    )
    packet = IP(src="10.1.1.1", dst="10.1.1.2") / UDP(sport=1234, dport=5678) / b"sesame"
    capture = str(tmp_path / "sealed.pcap")
    wrpcap(capture, Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / seal.encrypt(packet))
    configuration = tmp_path / "wireshark"
    configuration.mkdir()
    unknown = wireshark_line(association("null", "aes-gmac-128", 16), 0)
    (configuration / "esp_sa").write_text(f"{unknown}\n{wireshark_line(sa, 0)}\n")
    words = ["-o", "esp.enable_encryption_decode:TRUE", "-o", "esp.enable_authentication_check:TRUE"]
    fields = ["-T", "fields", "-e", "udp.dstport", "-e", "udp.payload", "-e", "esp.icv_good"]
    done = subprocess.run(
        [TSHARK, "-r", capture, *words, *fields],
        env=os.environ | {"WIRESHARK_CONFIG_DIR": str(configuration)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["5678", b"sesame".hex(), "1"], done.stderr


@pytest.mark.parametrize(
    ("sa", "reason"),
    [
        (association(None, "hmac-sha1-96", 12, protocol=IpsecProtocol.AH), "AH is not encrypted"),
        (association("null", "aes-gmac-256", 16), "does not know aes-gmac-256"),
    ],
)
def test_what_wireshark_cannot_open_is_a_comment_without_key(sa: SecurityAssociation, reason: str) -> None:
    line = wireshark_line(sa, 0)
    assert line.startswith("# ")
    assert reason in line
    assert sa.integrity_key.reveal().hex() not in line


def test_any_source_is_a_star_and_esn_has_its_upper_half() -> None:
    sa = association("aes-gcm-128", None, 8, mode=Mode.TRANSPORT, esn=True, source=bytes(4))
    line = wireshark_line(sa, (7 << 32) + 1)
    assert line.startswith('"IPv4","*","192.0.2.2","0x00000100","AES-GCM with 8 octet ICV [RFC4106]"')
    assert line.endswith('"64-bit","0x7"')
