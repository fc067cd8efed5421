"""SecurityAssociation: what two peers agreed on, as a value.

Law: a frozen value; live state (numbers, windows, counters) is in `transport.sad` and the NIC.
Addresses are raw bytes, 4 or 16, in network order.

Source: RFC 4301 §4.4.2.1; RFC 4303 §2; RFC 4302 §2.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from ipaddress import ip_address
from typing import NamedTuple, NewType

from vnic.errors import RequestError
from vnic.ipsec.algorithms import NULL, Encryption, Integrity
from vnic.ipsec.headers import DEFAULT_HEADERS, HeaderSettings
from vnic.ipsec.lifetime import Lifetime
from vnic.ipsec.policy import Selector
from vnic.ipsec.replay import DEFAULT_WINDOW_BITS, MAX_WINDOW_BITS, MIN_WINDOW_BITS
from vnic.ipsec.sequence import MAX_EXTENDED_SEQUENCE_NUMBER, MAX_SEQUENCE_NUMBER
from vnic.ipsec.udp_encapsulation import UdpEncapsulation

Spi = NewType("Spi", int)
"""Security Parameters Index, host order; 0 is local use. 1-255 are reserved by IANA (RFC 4303 §2.1); the
kernel takes them, so they work here too and are reported."""

MIN_SPI = 1
MIN_UNRESERVED_SPI = 256
MAX_SPI = 0xFFFFFFFF


class Direction(Enum):
    """Which way an SA or a policy works, seen from the host (RFC 4301 §5)."""

    INBOUND = "in"
    OUTBOUND = "out"


class Mode(Enum):
    """RFC 4301 §3.2."""

    TRANSPORT = "transport"
    TUNNEL = "tunnel"


class IpsecProtocol(IntEnum):
    """IP protocol number of the IPsec header."""

    ESP = 50
    AH = 51


class KeyMaterial:
    """Key bytes that never show themselves: not in repr, not in errors, not in comparisons' timing."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = bytes(data)

    def reveal(self) -> bytes:
        """Give the bytes. Callers: the NIC's ciphers, this module's checks, and the two places
        that show keys on request."""
        return self._data

    def __len__(self) -> int:
        return len(self._data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyMaterial) and hmac.compare_digest(self._data, other._data)

    def __hash__(self) -> int:
        return hash((KeyMaterial, self._data))

    def __repr__(self) -> str:
        return f"<key of {len(self._data)} bytes, hidden>"

    def __reduce__(self) -> str:
        raise TypeError("key material is not serialised")


NO_KEY = KeyMaterial(b"")


class SaId(NamedTuple):
    """What names an SA on an adapter: destination, protocol, SPI (RFC 4301 §4.1)."""

    destination: bytes
    protocol: IpsecProtocol
    spi: int

    def __str__(self) -> str:
        return f"{self.protocol.name.lower()} spi {self.spi:#010x} dst {ip_address(self.destination)}"


@dataclass(frozen=True, slots=True)
class SecurityAssociation:
    """One ESP or AH SA of one direction. `checked` has been called on every one that is in use."""

    direction: Direction
    source: bytes
    """Tunnel or transport source address; all zero bytes: any (R99)."""
    destination: bytes
    protocol: IpsecProtocol
    spi: int
    mode: Mode | None
    """None: either, as each packet or the policy's template has it; a packet in a packet then counts as
    tunnel mode. So are SAs that came by an OID, which names no mode."""
    encryption: Encryption | None = None
    """ESP only; None for AH."""
    encryption_key: KeyMaterial = NO_KEY
    """Key and salt of a combined mode (RFC 4106 §8.1)."""
    integrity: Integrity | None = None
    integrity_key: KeyMaterial = NO_KEY
    icv_length: int = 0
    """Bytes of ICV on the wire; 0 takes the algorithm's default when `checked`."""
    esn: bool = False
    replay_window: int = DEFAULT_WINDOW_BITS
    """Packets; inbound only. 0 switches the check off."""
    reqid: int = 0
    """Ties the SA to policy templates; 0 fits templates that name none."""
    selector: Selector | None = None
    """Traffic the SA may carry, or None for all (`sel`)."""
    sequence_number: int = 0
    """Outbound: last number used. Inbound: highest number seen."""
    ah_alignment: int = 8
    """AH header length is a multiple of this over IPv4: 8 as Linux pads by default, 4 as RFC 4302 allows
    (`flag align4`). IPv6 always takes 8."""
    decap_dscp: bool = False
    """Copy the outer DSCP to the inner header when a tunnel ends here (`flag decap-dscp`)."""
    no_ecn: bool = False
    """Leave the ECN field out of tunnel handling (`flag noecn`)."""
    header_settings: HeaderSettings = DEFAULT_HEADERS
    """Outer headers, padding and dummies of an outbound SA; of a bundle those of the ESP SA hold."""
    lifetime: Lifetime | None = None
    """When it should be replaced and when it ends; None: never."""
    udp: UdpEncapsulation | None = None
    """ESP only: its packets stand in UDP (`encap espinudp`)."""
    weak: tuple[str, ...] = field(default=(), compare=False)
    """Why its algorithms, keys or SPI should not be used; filled by `checked`."""

    @property
    def id(self) -> SaId:
        return SaId(self.destination, self.protocol, self.spi)

    @property
    def ipv6(self) -> bool:
        """Whether the addresses of the SA are IPv6."""
        return len(self.destination) == 16

    @property
    def default_headers(self) -> bool:
        """Whether nothing was set about headers, outbound and inbound: all is as RFC 4301 §5.1.2 has it."""
        return not self.no_ecn and not self.decap_dscp and self.header_settings == DEFAULT_HEADERS

    @property
    def iv_length(self) -> int:
        """Bytes of explicit IV in each packet."""
        iv_length = self.encryption.iv_length if self.encryption else 0
        return iv_length + (self.integrity.iv_length if self.integrity else 0)

    @property
    def authenticates(self) -> bool:
        """Whether its packets carry an ICV of their own; ESP made for a bundle with AH need not (R14)."""
        return self.integrity is not None or (self.encryption is not None and self.encryption.combined)

    def checked(self) -> SecurityAssociation:
        """Give the SA with defaults filled in, or refuse it.

        Raises:
            RequestError: a member is out of range, a key has the wrong length, algorithms do not fit the
                protocol or each other, or the packet would carry no integrity at all (R13).
        """
        self._check_addresses()
        self._check_numbers()
        if self.protocol is IpsecProtocol.AH:
            self._check_ah()
        else:
            self._check_esp()
        self.header_settings.check(
            tunnel=self.mode is not Mode.TRANSPORT, esp=self.protocol is IpsecProtocol.ESP
        )
        authenticator = self.encryption if self.encryption and self.encryption.combined else self.integrity
        assert authenticator is not None
        icv_length = self.icv_length or authenticator.icv_lengths[0]
        if icv_length not in authenticator.icv_lengths:
            raise RequestError(
                f"{authenticator.name} cannot have an ICV of {icv_length * 8} bits",
                field="icv-length",
                value=str(icv_length * 8),
                allowed=", ".join(str(length * 8) for length in sorted(authenticator.icv_lengths)) + " bits",
            )
        weak = weaknesses(self.encryption, self.encryption_key, self.integrity, self.spi)
        lifetime = None if self.lifetime is None else self.lifetime.checked()
        udp = self._checked_udp()
        return replace(self, icv_length=icv_length, lifetime=lifetime, udp=udp, weak=weak)

    def _checked_udp(self) -> UdpEncapsulation | None:
        if self.udp is None:
            return None
        if self.protocol is not IpsecProtocol.ESP:
            raise RequestError(
                "only ESP goes into UDP: a NAT breaks AH (RFC 3948 §1)",
                field="encap",
                value="ah",
                allowed="proto esp",
            )
        inbound = self.direction is Direction.INBOUND
        return self.udp.checked(inbound=inbound, replay_window=self.replay_window, ipv6=self.ipv6)

    def _check_addresses(self) -> None:
        if len(self.destination) not in (4, 16):
            raise RequestError(
                "the destination is not an IP address", field="dst", allowed="IPv4 or IPv6 address"
            )
        if len(self.source) != len(self.destination):
            raise RequestError(
                "source and destination are of different families",
                field="src",
                allowed="two IPv4 or two IPv6",
            )
        destination = ip_address(self.destination)
        if destination.is_unspecified:
            raise RequestError(
                "an SA needs the address of its far end",
                field="dst",
                value=str(destination),
                allowed="a host address",
            )
        if self.mode is Mode.TUNNEL and not any(self.source):
            raise RequestError(
                "tunnel mode needs the address of the near end: it goes into the outer header",
                field="src",
                value=str(ip_address(self.source)),
                allowed="a host address",
            )

    def _check_numbers(self) -> None:
        if not MIN_SPI <= self.spi <= MAX_SPI:
            raise RequestError(
                "SPI out of range; 0 never stands on the wire (RFC 4303 §2.1)",
                field="spi",
                value=f"{self.spi:#x}",
                allowed=f"{MIN_SPI:#x} to {MAX_SPI:#x}",
            )
        if self.replay_window and not MIN_WINDOW_BITS <= self.replay_window <= MAX_WINDOW_BITS:
            raise RequestError(
                "replay window out of range",
                field="replay-window",
                value=str(self.replay_window),
                allowed=f"0 (off) or {MIN_WINDOW_BITS} to {MAX_WINDOW_BITS} packets",
            )
        limit = MAX_EXTENDED_SEQUENCE_NUMBER if self.esn else MAX_SEQUENCE_NUMBER
        if not 0 <= self.sequence_number <= limit:
            raise RequestError(
                "sequence number out of range" + ("" if self.esn else "; larger ones need `flag esn`"),
                field="sequence-number",
                value=str(self.sequence_number),
                allowed=f"0 to {limit}",
            )
        if not 0 <= self.reqid <= 0xFFFFFFFF:
            raise RequestError(
                "reqid out of range", field="reqid", value=str(self.reqid), allowed="0 to 4294967295"
            )
        if self.ah_alignment not in (4, 8):
            raise RequestError(
                "AH alignment out of range", field="align", value=str(self.ah_alignment), allowed="4, 8"
            )

    def _check_ah(self) -> None:
        if self.encryption is not None:
            raise RequestError(
                "AH does not encrypt; use proto esp",
                field="enc",
                value=self.encryption.name,
                allowed="no encryption",
            )
        if self.integrity is None:
            raise RequestError(
                "AH needs an integrity algorithm", field="auth", allowed="auth, auth-trunc or rfc4543"
            )
        _check_key("auth", self.integrity, self.integrity_key)

    def _check_esp(self) -> None:
        if self.encryption is None:
            raise RequestError(
                "ESP needs an encryption algorithm; for integrity alone name ecb(cipher_null)",
                field="enc",
                allowed="enc or aead",
            )
        _check_key("aead" if self.encryption.combined else "enc", self.encryption, self.encryption_key)
        if self.encryption.combined:
            if self.integrity is not None:
                raise RequestError(
                    f"{self.encryption.name} makes its own ICV (R104)",
                    field="auth",
                    value=self.integrity.name,
                    allowed="no auth beside an aead",
                )
            return
        if self.integrity is None:
            raise RequestError(
                "a packet without ESP or AH integrity is not permitted (R13); "
                "for ESP under AH, the ESP too must carry an ICV of its own",
                field="auth",
                allowed="auth or auth-trunc, or an aead",
            )
        if self.integrity.iv_length and self.encryption is not NULL:
            raise RequestError(
                "AES-GMAC goes with null encryption only (RFC 4543); use AES-GCM to encrypt as well",
                field="auth",
                value=self.integrity.name,
                allowed="hmac(sha256), hmac(sha1), hmac(md5)",
            )
        _check_key("auth", self.integrity, self.integrity_key)


def weaknesses(
    encryption: Encryption | None, encryption_key: KeyMaterial, integrity: Integrity | None, spi: int
) -> tuple[str, ...]:
    """Why an SA should not be used as it is: its algorithms, its key, its SPI. Empty for a good one."""
    weak = [f"{row.name}: {row.weak}" for row in (encryption, integrity) if row is not None and row.weak]
    if encryption is not None and _is_single_des(encryption, encryption_key):
        weak.append(f"{encryption.name}: two keys that follow each other are equal: single DES")
    if spi < MIN_UNRESERVED_SPI:
        weak.append(f"spi {spi:#x}: 1 to 255 are reserved by IANA (RFC 4303 §2.1)")
    return tuple(weak)


def _is_single_des(row: Encryption, key: KeyMaterial) -> bool:
    """Whether triple DES with this key does no more than DES (RFC 2451 §2.3); parity bits do not count."""
    if row.kernel_name != "cbc(des3_ede)":
        return False
    data = bytes(byte & 0xFE for byte in key.reveal())
    return data[8:16] in (data[:8], data[16:])


def _check_key(word: str, row: Encryption | Integrity, key: KeyMaterial) -> None:
    if len(key) == row.key_length:
        return
    salt = f" (key {row.key_length - row.salt_length} + salt {row.salt_length})" if row.salt_length else ""
    raise RequestError(
        f"{row.name} takes a key of {row.key_length} bytes{salt}",
        field=word,
        value=f"{len(key)} bytes",
        allowed=f"{row.key_length} bytes",
    )
