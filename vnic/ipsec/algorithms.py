"""One row per algorithm of both offload versions: sizes, names, identifiers.

Law: this table is the only place where an algorithm's sizes or names stand; parsers, framing, the NIC,
capabilities and documentation read them here.

Source: RFC 2403, 2404, 2405, 2410, 2451, 3602, 4106, 4303, 4543, 4868; identifiers from
NDIS_IPSEC_OFFLOAD_V2 (sheet §10.1). Kernel names as `ip xfrm` writes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Encryption:
    """An ESP encryption algorithm; `combined` ones also make the ICV (AES-GCM).

    All lengths are bytes. `key_length` counts the salt, as RFC 4106 §8.1 hands both over together.
    """

    name: str
    ndis_identifier: int
    """Bit of EncryptionAlgorithms and value of ALGORITHM_INFO.Identifier."""
    kernel_name: str
    kernel_aliases: tuple[str, ...]
    key_length: int
    salt_length: int
    iv_length: int
    """Explicit IV on the wire, after the ESP header."""
    block_length: int
    """Padding makes payload + 2 a multiple of this and of 4."""
    icv_lengths: tuple[int, ...]
    """ICV lengths of a combined mode, the default first; empty otherwise."""
    weak: str
    """Why it should not be used, or ""."""
    source: str

    @property
    def combined(self) -> bool:
        """Whether it authenticates as well (RFC 4303 §3.2.3)."""
        return bool(self.icv_lengths)

    @property
    def blocks_soft(self) -> int:
        """Blocks one key should do at most, 0 for no bound that an SA could reach."""
        return SHORT_BLOCKS_SOFT if self.has_short_blocks else 0

    @property
    def blocks_hard(self) -> int:
        """Blocks after which two equal ones are to be expected, 0 for no bound that an SA could reach."""
        return SHORT_BLOCKS_HARD if self.has_short_blocks else 0

    @property
    def has_short_blocks(self) -> bool:
        """Whether its blocks have 64 bits."""
        return self.block_length == 8 and not self.combined


@dataclass(frozen=True, slots=True)
class Integrity:
    """An integrity algorithm for ESP and AH. All lengths are bytes; `key_length` counts the salt."""

    name: str
    ndis_identifier: int
    """Bit of AuthenticationAlgorithms and value of ALGORITHM_INFO.Identifier."""
    kernel_name: str
    kernel_aliases: tuple[str, ...]
    key_length: int
    salt_length: int
    iv_length: int
    """Explicit IV on the wire: 8 for AES-GMAC (RFC 4543 §3.1, §5), else 0."""
    icv_lengths: tuple[int, ...]
    """ICV lengths it may be truncated to, the RFC's first."""
    weak: str
    source: str


SHORT_BLOCKS_SOFT = 1 << 20
"""64-bit blocks under one key: NIST SP 800-67 Rev. 2 §3.3 allows no more, 8 MiB."""

SHORT_BLOCKS_HARD = 1 << 32
"""The birthday bound of 64-bit blocks, 32 GiB: equal blocks tell about clear text (CVE-2016-2183)."""

_DES_WEAK = "56-bit key: broken by exhaustive search (RFC 8221)"
_3DES_WEAK = "64-bit block: collisions after 2^32 blocks (RFC 8221, CVE-2016-2183)"
_MD5_WEAK = "MD5 is broken as a hash; RFC 8221 forbids it"


def _cbc(bits: int, identifier: int) -> Encryption:
    return Encryption(
        f"aes-cbc-{bits}", identifier, "cbc(aes)", ("aes",), bits // 8, 0, 16, 16, (), "", "RFC 3602"
    )


def _gcm(bits: int, identifier: int) -> Encryption:
    return Encryption(
        f"aes-gcm-{bits}",
        identifier,
        "rfc4106(gcm(aes))",
        (),
        bits // 8 + 4,
        4,
        8,
        1,
        (16, 12, 8),
        "",
        "RFC 4106",
    )


def _gmac(bits: int, identifier: int) -> Integrity:
    return Integrity(
        f"aes-gmac-{bits}", identifier, "rfc4543(gcm(aes))", (), bits // 8 + 4, 4, 8, (16,), "", "RFC 4543"
    )


NULL = Encryption("null", 0x001, "ecb(cipher_null)", ("cipher_null",), 0, 0, 0, 1, (), "", "RFC 2410")

ENCRYPTIONS: tuple[Encryption, ...] = (
    NULL,
    Encryption("des-cbc", 0x002, "cbc(des)", ("des",), 8, 0, 8, 8, (), _DES_WEAK, "RFC 2405"),
    Encryption("3des-cbc", 0x004, "cbc(des3_ede)", ("des3_ede",), 24, 0, 8, 8, (), _3DES_WEAK, "RFC 2451"),
    _gcm(128, 0x008),
    _gcm(192, 0x010),
    _gcm(256, 0x020),
    _cbc(128, 0x040),
    _cbc(192, 0x080),
    _cbc(256, 0x100),
)

INTEGRITIES: tuple[Integrity, ...] = (
    Integrity("hmac-md5-96", 0x001, "hmac(md5)", ("md5",), 16, 0, 0, (12,), _MD5_WEAK, "RFC 2403"),
    Integrity("hmac-sha1-96", 0x002, "hmac(sha1)", ("sha1",), 20, 0, 0, (12,), "", "RFC 2404"),
    # 12 bytes is what `ip xfrm … auth hmac(sha256)` means, older than RFC 4868.
    Integrity("hmac-sha256-128", 0x004, "hmac(sha256)", ("sha256",), 32, 0, 0, (16, 12), "", "RFC 4868"),
    _gmac(128, 0x008),
    _gmac(192, 0x010),
    _gmac(256, 0x020),
)

ENCRYPTION_BY_NAME = {row.name: row for row in ENCRYPTIONS}
INTEGRITY_BY_NAME = {row.name: row for row in INTEGRITIES}
ENCRYPTION_BY_IDENTIFIER = {row.ndis_identifier: row for row in ENCRYPTIONS}
INTEGRITY_BY_IDENTIFIER = {row.ndis_identifier: row for row in INTEGRITIES}


def encryptions_named(kernel_name: str) -> tuple[Encryption, ...]:
    """Rows of a kernel name such as `cbc(aes)`, one per key length; empty if it is not one of ours."""
    return tuple(row for row in ENCRYPTIONS if kernel_name in (row.kernel_name, *row.kernel_aliases))


def integrities_named(kernel_name: str) -> tuple[Integrity, ...]:
    """Rows of a kernel name such as `hmac(sha1)`, one per key length; empty if it is not one of ours."""
    return tuple(row for row in INTEGRITIES if kernel_name in (row.kernel_name, *row.kernel_aliases))


def kernel_names(rows: Iterable[Encryption | Integrity]) -> str:
    """The distinct kernel names of some rows, as one comma-separated text for error messages."""
    return ", ".join(dict.fromkeys(row.kernel_name for row in rows))
