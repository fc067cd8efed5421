"""Whether an SA may be added, and the bundle that it becomes.

Law: refuses from `OffloadCapabilities` and the rows of `ipsec.algorithms`; changes no table. A refusal
names member, value and what is allowed, and never a key.

Source: sheet R13, R14, R73, R74, R96-R107; status codes as in the design's table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address
from typing import TypeVar

from vnic.errors import OidError, RequestError
from vnic.ipsec.algorithms import (
    ENCRYPTION_BY_IDENTIFIER,
    INTEGRITY_BY_IDENTIFIER,
    NULL,
    Encryption,
    Integrity,
)
from vnic.ipsec.association import MAX_SPI, MIN_SPI, KeyMaterial, Mode
from vnic.miniport.ah import AhOpener, AhSealer
from vnic.miniport.ciphers import (
    COUNTER_IV_LENGTH,
    FULL_TAG_LENGTH,
    CbcOpener,
    CbcSealer,
    CounterIvs,
    Gcm,
    Gmac,
    Mac,
    RandomPool,
    RandomSource,
    ShortGcm,
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
from vnic.miniport.sa_table import Bundle, InboundBundle, KeyDigest, OutboundBundle, SaTable
from vnic.ndis.capabilities import ALL_UDP_ESP, ENCAPSULATION_IEEE_802_3, OffloadCapabilities
from vnic.ndis.oid import AddSa, AlgorithmInfo, Operation, SaElement
from vnic.ndis.status import NdisStatus

_Row = TypeVar("_Row", Encryption, Integrity)

_MAX_U32 = 0xFFFFFFFF
_KNOWN_ENCRYPTIONS = sum(ENCRYPTION_BY_IDENTIFIER)
_KNOWN_INTEGRITIES = sum(INTEGRITY_BY_IDENTIFIER)


def check_capabilities(capabilities: OffloadCapabilities) -> None:
    """Refuse to report what this NIC cannot do (R3), or less than every NIC must (R28).

    Raises:
        RequestError: a member claims more, or Ethernet is missing.
    """
    claims = (
        ("udp_esp", capabilities.udp_esp, ALL_UDP_ESP),
        ("authentication_algorithms", capabilities.authentication_algorithms, _KNOWN_INTEGRITIES),
        ("encryption_algorithms", capabilities.encryption_algorithms, _KNOWN_ENCRYPTIONS),
    )
    for member, value, able in claims:
        if value & ~able:
            raise RequestError(
                "the NIC cannot do what these capabilities claim",
                field=member,
                value=f"{value:#x}",
                allowed=f"bits of {able:#x}",
            )
    if not capabilities.encapsulation & ENCAPSULATION_IEEE_802_3:
        raise RequestError(
            "every NIC does Ethernet",
            field="encapsulation",
            value=f"{capabilities.encapsulation:#x}",
            allowed=f"values with {ENCAPSULATION_IEEE_802_3:#x}",
        )


@dataclass(frozen=True, slots=True)
class _Member:
    """One ESP or AH SA of a request, checked."""

    name: str
    operation: Operation
    spi: int
    encryption: Encryption
    """NULL where the request names none."""
    encryption_key: KeyMaterial
    integrity: Integrity | None
    integrity_key: KeyMaterial
    icv_length: int
    numbers: ExtendedNumbers | None

    def mac(self) -> Mac:
        """The MAC of its integrity algorithm, which it must have."""
        assert self.integrity is not None
        return mac(self.integrity.name, self.integrity_key.reveal(), self.icv_length)

    @property
    def gmac(self) -> bool:
        return self.integrity is not None and self.integrity.iv_length > 0

    def counter_key(self) -> tuple[str, KeyMaterial] | None:
        """Name and key of its counter-mode algorithm, if it has one."""
        if self.encryption.combined:
            return f"{self.name}.encryption.key", self.encryption_key
        if self.gmac:
            return f"{self.name}.authentication.key", self.integrity_key
        return None


class Admission:
    """Turns requests into bundles, or refuses them.

    Args:
        capabilities: what may be offloaded.
        random_source: unpredictable bytes.
        table: read for duplicates, keys in use and room; not changed.
    """

    def __init__(
        self, capabilities: OffloadCapabilities, random_source: RandomSource, table: SaTable
    ) -> None:
        self._capabilities = capabilities
        self._random_source = random_source
        self._pool = RandomPool(random_source)
        self._table = table

    def admit(self, request: AddSa) -> Bundle:
        """Give the bundle of a request, not stored yet.

        Raises:
            OidError: with the status that `Miniport.add_sa` names.
        """
        self._check_addresses(request)
        self._check_shape(request)
        bundled = len(request.elements) == 2
        members = [
            self._checked(f"elements[{number}]", element, bundled)
            for number, element in enumerate(request.elements)
        ]
        if request.inbound:
            self._check_duplicates(request, members)
            self._table.check_room()
            return _inbound(request, members)
        counter_ivs = self._counter_ivs(members)
        self._table.check_room()
        return _outbound(request, members, counter_ivs, self._pool)

    def _check_addresses(self, request: AddSa) -> None:
        length = len(request.destination)
        if length not in (4, 16):
            raise _invalid("not an IP address", "destination", f"{length} bytes", "4 or 16 bytes")
        if len(request.source) != length:
            raise _invalid(
                "source and destination are of different families",
                "source",
                f"{len(request.source)} bytes",
                f"{length} bytes",
            )
        if length == 16 and not self._capabilities.ipv6_supported:
            address = str(ip_address(request.destination))
            raise _unsupported("this NIC does IPv4 only", "destination", address, "an IPv4 address")

    def _check_shape(self, request: AddSa) -> None:
        able = self._capabilities
        operations = [element.operation for element in request.elements]
        if not 1 <= len(operations) <= 2:
            raise _invalid("wrong number of SAs", "elements", str(len(operations)), "1 or 2 (R96)")
        names = ", ".join(operation.name for operation in operations)
        if len(operations) == 2 and operations != [Operation.ESP, Operation.AH]:
            raise _unsupported("no such bundle", "elements", names, "ESP, AH in this order (R98)")
        if len(operations) == 2 and not able.ah_esp_combined:
            raise _unsupported("this NIC does no AH and ESP in one packet", "elements", names, "one SA")
        if (Operation.AH in operations and not able.ah) or (Operation.ESP in operations and not able.esp):
            allowed = ", ".join(["AH"] * able.ah + ["ESP"] * able.esp) or "none"
            raise _unsupported("this NIC does not do that", "elements", names, allowed)
        if (request.portion is Mode.TRANSPORT and not able.transport) or (
            request.portion is Mode.TUNNEL and not able.tunnel
        ):
            allowed = ", ".join(["transport"] * able.transport + ["tunnel"] * able.tunnel) or "none"
            raise _unsupported("this NIC does not do that", "portion", request.portion.value, allowed)
        if request.udp_esp_encapsulation:
            value = f"{request.udp_esp_encapsulation:#x}"
            raise _unsupported("this NIC does no UDP encapsulation", "udp_esp_encapsulation", value, "0")

    def _checked(self, name: str, element: SaElement, bundled: bool) -> _Member:
        able = self._capabilities
        if not MIN_SPI <= element.spi <= MAX_SPI:
            raise _invalid(
                "SPI out of range; 0 to 255 are reserved (RFC 4303 §2.1)",
                f"{name}.spi",
                f"{element.spi:#x}",
                f"{MIN_SPI:#x} to {MAX_SPI:#x}",
            )
        encryption = _row(
            f"{name}.encryption", element.encryption, ENCRYPTION_BY_IDENTIFIER, able.encryptions()
        )
        integrity = _row(
            f"{name}.authentication", element.authentication, INTEGRITY_BY_IDENTIFIER, able.integrities()
        )
        if element.operation is Operation.AH:
            _check_ah(name, encryption, integrity)
        else:
            self._check_esp(name, encryption, integrity, bundled)
        return _Member(
            name,
            element.operation,
            element.spi,
            encryption or NULL,
            element.encryption.key,
            integrity,
            element.authentication.key,
            _icv_length(name, element, encryption, integrity),
            self._numbers(name, element),
        )

    def _check_esp(
        self, name: str, encryption: Encryption | None, integrity: Integrity | None, bundled: bool
    ) -> None:
        if encryption is None and integrity is None:
            raise _invalid("ESP without any algorithm (R103)", name, "none", "encryption, authentication")
        if encryption is None and NULL not in self._capabilities.encryptions():
            raise _unsupported(
                "this NIC does no null encryption",
                f"{name}.encryption",
                "none",
                _names(self._capabilities.encryptions()),
            )
        if encryption is not None and encryption.combined:
            if integrity is not None:
                raise _unsupported(
                    f"{encryption.name} makes its own ICV (R104)",
                    f"{name}.authentication",
                    integrity.name,
                    "none",
                )
            return
        if integrity is None:
            if not bundled or encryption is NULL:
                raise _unsupported(
                    "no packet without ESP or AH integrity (R13), and no ESP that does nothing",
                    f"{name}.authentication",
                    "none",
                    _names(self._capabilities.integrities()),
                )
            return
        if integrity.iv_length and encryption not in (None, NULL):
            raise _unsupported(
                "AES-GMAC goes with null encryption only (RFC 4543 §3)",
                f"{name}.authentication",
                integrity.name,
                _names(row for row in self._capabilities.integrities() if not row.iv_length),
            )

    def _numbers(self, name: str, element: SaElement) -> ExtendedNumbers | None:
        if not 0 <= element.sequence_number_high_order <= _MAX_U32:
            raise _invalid(
                "upper half of a sequence number out of range",
                f"{name}.sequence_number_high_order",
                str(element.sequence_number_high_order),
                f"0 to {_MAX_U32}",
            )
        if not element.esn:
            return None
        if not self._capabilities.extended_sequence_numbers:
            raise _unsupported("this NIC does no extended sequence numbers", f"{name}.esn", "true", "false")
        return ExtendedNumbers(element.sequence_number_high_order)

    def _check_duplicates(self, request: AddSa, members: Iterable[_Member]) -> None:
        for member in members:
            if request.destination + member.spi.to_bytes(4, "big") in self._table.inbound(member.operation):
                raise OidError(
                    NdisStatus.INVALID_PARAMETER,
                    f"an inbound {member.operation.name} SA with this SPI and destination is offloaded",
                    field=f"{member.name}.spi",
                    value=f"{member.spi:#010x}",
                    allowed="an SPI not in use; or delete that SA first",
                )

    def _counter_ivs(self, members: Iterable[_Member]) -> dict[KeyDigest, CounterIvs]:
        """IVs for each counter-mode key of a request; a key that would be in use twice is refused."""
        counter_ivs: dict[KeyDigest, CounterIvs] = {}
        for member in members:
            named_key = member.counter_key()
            if named_key is None:
                continue
            field, key = named_key
            digest = _digest(key)
            if digest in counter_ivs or self._table.key_in_use(digest):
                raise OidError(
                    NdisStatus.INVALID_PARAMETER,
                    "another outbound SA has the same key and salt; AES-GCM and AES-GMAC could then repeat "
                    "a nonce, which gives the key away",
                    field=field,
                    value=f"{len(key)} bytes",
                    allowed="a key and salt of its own",
                )
            counter_ivs[digest] = self._table.retired_ivs(digest) or CounterIvs(
                self._random_source(COUNTER_IV_LENGTH)
            )
        return counter_ivs


def _check_ah(name: str, encryption: Encryption | None, integrity: Integrity | None) -> None:
    if encryption is not None:
        raise _invalid("AH does not encrypt (R102)", f"{name}.encryption", encryption.name, "none")
    if integrity is None:
        raise _invalid(
            "AH needs an integrity algorithm (R102)",
            f"{name}.authentication",
            "none",
            _names(INTEGRITY_BY_IDENTIFIER.values()),
        )


def _row(field: str, info: AlgorithmInfo, rows: Mapping[int, _Row], able: tuple[_Row, ...]) -> _Row | None:
    """The algorithm of an ALGORITHM_INFO, with a key that fits it; None where there is none (R102)."""
    if info.identifier == 0:
        if len(info.key) or info.additional_info:
            raise _invalid("a key without an algorithm", f"{field}.identifier", "0", _names(able))
        return None
    row = rows.get(info.identifier)
    if row is None or row not in able:
        value = f"{info.identifier:#x}" if row is None else row.name
        raise _unsupported("this NIC lacks that algorithm", f"{field}.identifier", value, _names(able))
    if len(info.key) != row.key_length:
        salt = f", {row.salt_length} of them salt" if row.salt_length else ""
        raise _invalid(
            f"wrong key length for {row.name}",
            f"{field}.key",
            f"{len(info.key)} bytes",
            f"{row.key_length} bytes{salt}",
        )
    return row


def _icv_length(
    name: str, element: SaElement, encryption: Encryption | None, integrity: Integrity | None
) -> int:
    """Bytes of ICV that an element asks for; 0 for an ESP that AH authenticates."""
    for field, info, row in (
        ("encryption", element.encryption, encryption),
        ("authentication", element.authentication, integrity),
    ):
        lengths = row.icv_lengths if row is not None else ()
        if info.additional_info and info.additional_info not in lengths:
            raise _invalid(
                "no such ICV length",
                f"{name}.{field}.additional_info",
                str(info.additional_info),
                ", ".join(["0", *map(str, sorted(lengths))]),
            )
        if lengths:
            return info.additional_info or lengths[0]
    return 0


def _inbound(request: AddSa, members: Iterable[_Member]) -> InboundBundle:
    esp: EspOpener | None = None
    ah: AhOpener | None = None
    for member in members:
        if member.operation is Operation.ESP:
            esp = _esp_opener(member)
        else:
            iv_length = COUNTER_IV_LENGTH if member.gmac else 0
            ah = AhOpener(member.spi, member.mac(), iv_length, member.icv_length, member.numbers)
    return InboundBundle(esp, ah, request.source, request.destination, request.portion)


def _outbound(
    request: AddSa,
    members: Iterable[_Member],
    counter_ivs: dict[KeyDigest, CounterIvs],
    pool: RandomPool,
) -> OutboundBundle:
    esp: EspSealer | None = None
    ah: AhSealer | None = None
    for member in members:
        named_key = member.counter_key()
        ivs = None if named_key is None else counter_ivs[_digest(named_key[1])]
        if member.operation is Operation.ESP:
            esp = _esp_sealer(member, ivs, pool)
        else:
            ah = AhSealer(member.spi, member.mac(), member.icv_length, ivs, member.numbers)
    return OutboundBundle(esp, ah, 4 if len(request.destination) == 4 else 6, counter_ivs)


def _esp_opener(member: _Member) -> EspOpener:
    spi, encryption, icv_length, numbers = member.spi, member.encryption, member.icv_length, member.numbers
    if encryption.combined:
        return GcmOpener(spi, _gcm(member), icv_length, numbers)
    made = member.mac() if member.integrity is not None else None
    if isinstance(made, Gmac):
        return GmacOpener(spi, made, numbers)
    cipher = None
    if encryption is not NULL:
        cipher = CbcOpener(block_cipher(encryption.name, member.encryption_key.reveal()))
    return SeparateOpener(spi, cipher, encryption.block_length, made, icv_length, numbers)


def _esp_sealer(member: _Member, ivs: CounterIvs | None, pool: RandomPool) -> EspSealer:
    spi, encryption, icv_length, numbers = member.spi, member.encryption, member.icv_length, member.numbers
    if encryption.combined:
        assert ivs is not None
        return GcmSealer(spi, _gcm(member), icv_length, ivs, numbers)
    made = member.mac() if member.integrity is not None else None
    if isinstance(made, Gmac):
        assert ivs is not None
        return GmacSealer(spi, made, ivs, numbers)
    cipher = None
    if encryption is not NULL:
        cipher = CbcSealer(block_cipher(encryption.name, member.encryption_key.reveal()), pool)
    return SeparateSealer(spi, cipher, encryption.block_length, made, icv_length, numbers)


def _gcm(member: _Member) -> Gcm:
    key = member.encryption_key.reveal()
    return Gcm(key) if member.icv_length == FULL_TAG_LENGTH else ShortGcm(key, member.icv_length)


def _digest(key: KeyMaterial) -> KeyDigest:
    return sha256(key.reveal()).digest()


def _names(rows: Iterable[Encryption | Integrity]) -> str:
    return ", ".join(row.name for row in rows) or "none"


def _invalid(message: str, field: str, value: str, allowed: str) -> OidError:
    return OidError(NdisStatus.INVALID_DATA, message, field=field, value=value, allowed=allowed)


def _unsupported(message: str, field: str, value: str, allowed: str) -> OidError:
    return OidError(NdisStatus.NOT_SUPPORTED, message, field=field, value=value, allowed=allowed)
