"""Keys of SAs in the form another program reads, so that it can look into a capture of ours.

Law: writes nothing; who may see the lines is decided by who asks for them.

Source: Wireshark's UAT file esp_sa (Edit, Preferences, Protocols, ESP).
"""

from __future__ import annotations

from ipaddress import ip_address

from vnic.ipsec.algorithms import NULL
from vnic.ipsec.association import IpsecProtocol, SecurityAssociation

_ENCRYPTIONS = {
    "null": "NULL",
    "des-cbc": "DES-CBC [RFC2405]",
    "3des-cbc": "TripleDES-CBC [RFC2451]",
    "aes-cbc-128": "AES-CBC [RFC3602]",
    "aes-cbc-192": "AES-CBC [RFC3602]",
    "aes-cbc-256": "AES-CBC [RFC3602]",
}
_INTEGRITIES = {
    ("hmac-md5-96", 12): "HMAC-MD5-96 [RFC2403]",
    ("hmac-sha1-96", 12): "HMAC-SHA-1-96 [RFC2404]",
    ("hmac-sha256-128", 16): "HMAC-SHA-256-128 [RFC4868]",
    ("hmac-sha256-128", 12): "HMAC-SHA-256-96 [draft-ietf-ipsec-ciph-sha-256-00]",
}


def wireshark_line(sa: SecurityAssociation, sequence_number: int) -> str:
    """Write the line of one SA; for what Wireshark cannot open a comment that says so.

    The last two fields came with Wireshark 4.2; older ones leave them out with a warning.

    Args:
        sequence_number: the live one; Wireshark takes its upper half for all packets of an ESN.
    """
    refusal = ""
    encryption = integrity = "NULL"
    if sa.protocol is IpsecProtocol.AH or sa.encryption is None:
        refusal = "AH is not encrypted"
    elif sa.encryption.combined:
        encryption = f"AES-GCM with {sa.icv_length} octet ICV [RFC4106]"
    elif sa.integrity is not None:
        encryption = _ENCRYPTIONS[sa.encryption.name]
        integrity = _INTEGRITIES.get((sa.integrity.name, sa.icv_length), "")
        if not integrity:
            refusal = f"Wireshark does not know {sa.integrity.name} in ESP"
    if refusal:
        return f"# {sa.id}: {refusal}"
    fields = (
        "IPv6" if sa.ipv6 else "IPv4",
        str(ip_address(sa.source)) if any(sa.source) else "*",
        str(ip_address(sa.destination)),
        f"0x{sa.spi:08x}",
        encryption,
        "" if sa.encryption is NULL else f"0x{sa.encryption_key.reveal().hex()}",
        integrity,
        f"0x{sa.integrity_key.reveal().hex()}" if len(sa.integrity_key) else "",
        "64-bit" if sa.esn else "32-bit",
        f"{sequence_number >> 32:#x}",
    )
    return ",".join(f'"{field}"' for field in fields)
