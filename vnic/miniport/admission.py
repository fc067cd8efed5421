"""Whether an SA may be added, and the bundle that it becomes.

Law: refuses from `TaskOffload` and the rows of `ipsec.algorithms`; stores nothing. A refusal names member,
value and what is allowed, and never a key. Requests come by the thousand and in few forms, so a form is
judged once and what it comes to is kept; keys, numbers and addresses are judged each time.

Source: sheet §2.2, §9.2, §10; R13, R14, R73, R74, R96-R107, R124-R131; status codes as in the design's table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple, TypeAlias, TypeVar

from vnic.errors import OidError
from vnic.ipsec.algorithms import (
    ENCRYPTION_BY_IDENTIFIER,
    ENCRYPTION_BY_NAME,
    INTEGRITY_BY_IDENTIFIER,
    INTEGRITY_BY_NAME,
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
    mac,
)
from vnic.miniport.counter_keys import KeyDigest, key_digest
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
from vnic.miniport.sa_table import Bundle, InboundBundle, OutboundBundle, SaTable
from vnic.ndis.capabilities import (
    TRANSPORT_OVER_UDP_ESP_TUNNEL,
    UDP_ESP_TRANSPORT,
    UDP_ESP_TRANSPORT_OVER_TUNNEL,
    UDP_ESP_TUNNEL,
    OffloadCapabilities,
    OffloadCapabilitiesV1,
    TaskOffload,
)
from vnic.ndis.oid import AddSa, AlgorithmInfo, OidVersion, Operation, SaElement
from vnic.ndis.status import NdisStatus

_Row = TypeVar("_Row", Encryption, Integrity)
_Thing = TypeVar("_Thing")

_MAX_U32 = 0xFFFFFFFF
_MAX_PLANS = 4096
"""Forms remembered, each a kilobyte; a peer of the request path cannot make it more."""
_UDP_ESP_PORTIONS = {
    UDP_ESP_TRANSPORT: Mode.TRANSPORT,
    UDP_ESP_TUNNEL: Mode.TUNNEL,
    TRANSPORT_OVER_UDP_ESP_TUNNEL: None,
    UDP_ESP_TRANSPORT_OVER_TUNNEL: None,
}
"""The portion that a subtype speaks of; None: of both, so that either SA of such a packet may name it."""


@dataclass(frozen=True, slots=True)
class _Suite:
    """What the algorithms of one ESP or AH SA come to. All lengths are bytes."""

    operation: Operation
    encryption: Encryption
    """NULL where the request names none."""
    encryption_key_length: int
    integrity: Integrity | None
    integrity_key_length: int
    icv_length: int
    esn: bool

    @property
    def gmac(self) -> bool:
        return self.integrity is not None and self.integrity.iv_length > 0

    def mac(self, element: SaElement) -> Mac:
        """The MAC of its integrity algorithm, which it must have."""
        assert self.integrity is not None
        return mac(self.integrity.name, element.authentication.key.reveal(), self.icv_length)

    def counter_key(self, element: SaElement) -> KeyMaterial | None:
        """The key of its counter-mode algorithm, if it has one."""
        if self.encryption.combined:
            return element.encryption.key
        return element.authentication.key if self.gmac else None

    def fits(self, element: SaElement) -> bool:
        """Whether what is not part of a form, keys and numbers, is as it must be."""
        return (
            len(element.encryption.key) == self.encryption_key_length
            and len(element.authentication.key) == self.integrity_key_length
            and MIN_SPI <= element.spi <= MAX_SPI
            and 0 <= element.sequence_number_high_order <= _MAX_U32
        )


class _Plan(NamedTuple):
    """How requests of one form become bundles."""

    portion: Mode | None
    suites: tuple[_Suite, ...]


_Form: TypeAlias = tuple[object, ...]
"""All of a request that decides whether the NIC can do it: everything but addresses, SPIs, keys, numbers."""


class _Offer:
    """What SAs of one generation of OIDs may be: V1 names less, but by direction and by mode.

    Attributes:
        operations: by direction (inbound or not), AH and ESP as far as they may be added.
        modes: by operation, the portions it may protect.
        plans: of the forms that were found good; as many as there are, up to a bound.
    """

    def __init__(
        self,
        *,
        ipv6: bool,
        combined: bool,
        esn: bool,
        udp_esp: int,
        operations: dict[bool, tuple[Operation, ...]],
        modes: dict[Operation, tuple[Mode, ...]],
        encryptions: tuple[Encryption, ...],
        integrities: tuple[Integrity, ...],
    ) -> None:
        self.ipv6 = ipv6
        self.combined = combined
        self.esn = esn
        self.udp_esp = udp_esp
        self.operations = operations
        self.modes = modes
        self.encryptions = encryptions
        self.integrities = integrities
        self.plans: dict[_Form, _Plan] = {}

    @classmethod
    def of_v2(cls, able: OffloadCapabilities) -> _Offer:
        """Both directions and both operations alike."""
        operations = _having((Operation.AH, able.ah), (Operation.ESP, able.esp))
        modes = _having((Mode.TRANSPORT, able.transport), (Mode.TUNNEL, able.tunnel))
        return cls(
            ipv6=able.ipv6_supported,
            combined=able.ah_esp_combined,
            esn=able.extended_sequence_numbers,
            udp_esp=able.udp_esp,
            operations={False: operations, True: operations},
            modes={Operation.AH: modes, Operation.ESP: modes},
            encryptions=able.encryptions(),
            integrities=able.integrities(),
        )

    @classmethod
    def of_v1(cls, able: OffloadCapabilitiesV1) -> _Offer:
        """IPv4 and the oldest algorithms only (sheet §2.2, §10.2)."""
        return cls(
            ipv6=False,
            combined=able.ah_esp_combined,
            esn=False,
            udp_esp=able.udp_esp,
            operations={
                False: _having((Operation.AH, able.ah_send), (Operation.ESP, able.esp_send)),
                True: _having((Operation.AH, able.ah_receive), (Operation.ESP, able.esp_receive)),
            },
            modes={
                Operation.AH: _having((Mode.TRANSPORT, able.ah_transport), (Mode.TUNNEL, able.ah_tunnel)),
                Operation.ESP: _having((Mode.TRANSPORT, able.esp_transport), (Mode.TUNNEL, able.esp_tunnel)),
            },
            encryptions=_having(
                (NULL, able.esp_null),
                (ENCRYPTION_BY_NAME["des-cbc"], able.esp_des),
                (ENCRYPTION_BY_NAME["3des-cbc"], able.esp_triple_des),
            ),
            integrities=_having(
                (INTEGRITY_BY_NAME["hmac-md5-96"], able.ah_md5),
                (INTEGRITY_BY_NAME["hmac-sha1-96"], able.ah_sha1),
            ),
        )


def _having(*claims: tuple[_Thing, bool]) -> tuple[_Thing, ...]:
    return tuple(thing for thing, claimed in claims if claimed)


class Admission:
    """Turns requests into bundles, or refuses them.

    Args:
        able: what may be offloaded.
        random_source: unpredictable bytes.
        table: read for duplicates, keys in use and room.
    """

    def __init__(self, able: TaskOffload, random_source: RandomSource, table: SaTable) -> None:
        self._pool = RandomPool(random_source)
        self._table = table
        self.configure(able)

    def configure(self, able: TaskOffload) -> None:
        """Admit from now on what `able` holds: the hardware's capabilities as far as they are switched on."""
        self._offers = {
            OidVersion.V1: _Offer.of_v1(able.ipsec_v1),
            OidVersion.V2: _Offer.of_v2(able.ipsec_v2),
        }

    def check(self, request: AddSa) -> None:
        """Judge a request by itself, whatever the table holds.

        Raises:
            OidError: INVALID_DATA, NOT_SUPPORTED.
        """
        _plan(self._offers[request.version], request)

    def admit(self, request: AddSa) -> Bundle:
        """Give the bundle of a request, not stored yet. The NIC holds its counter-mode keys from now on, so
        it must go into the table, or be released there.

        Raises:
            OidError: with the status that `Miniport.add_sa` names.
        """
        offer = self._offers[request.version]
        elements = request.elements
        form = _form(request)
        plan = offer.plans.get(form)
        if (
            plan is None
            or len(request.source) != len(request.destination)
            or not all(map(_Suite.fits, plan.suites, elements))
        ):
            plan = _plan(offer, request)
            if len(offer.plans) < _MAX_PLANS:
                offer.plans[form] = plan
        if request.inbound:
            self._check_duplicates(request)
            self._table.check_room()
            return _inbound(request, plan)
        digests = self._new_counter_keys(plan, elements)
        self._table.check_room()
        return self._outbound(request, plan, digests)

    def _check_duplicates(self, request: AddSa) -> None:
        for number, element in enumerate(request.elements):
            if request.destination + element.spi.to_bytes(4, "big") in self._table.inbound(element.operation):
                raise OidError(
                    NdisStatus.INVALID_PARAMETER,
                    f"an inbound {element.operation.name} SA with this SPI and destination is offloaded",
                    field=f"elements[{number}].spi",
                    value=f"{element.spi:#010x}",
                    allowed="an SPI not in use; or delete that SA first",
                )

    def _new_counter_keys(self, plan: _Plan, elements: tuple[SaElement, ...]) -> tuple[KeyDigest, ...]:
        """Digests of the counter-mode keys of a request; a key that would be in use twice is refused."""
        digests: tuple[KeyDigest, ...] = ()
        for number, (suite, element) in enumerate(zip(plan.suites, elements, strict=True)):
            key = suite.counter_key(element)
            if key is None:
                continue
            digest = key_digest(key)
            if digest in digests or self._table.key_in_use(digest):
                member = "encryption" if suite.encryption.combined else "authentication"
                raise OidError(
                    NdisStatus.INVALID_PARAMETER,
                    "another outbound SA has the same key and salt; AES-GCM and AES-GMAC could then repeat "
                    "a nonce, which gives the key away",
                    field=f"elements[{number}].{member}.key",
                    value=f"{len(key)} bytes",
                    allowed="a key and salt of its own",
                )
            digests += (digest,)
        return digests

    def _outbound(self, request: AddSa, plan: _Plan, digests: tuple[KeyDigest, ...]) -> OutboundBundle:
        esp: EspSealer | None = None
        ah: AhSealer | None = None
        held = iter(digests)
        for suite, element in zip(plan.suites, request.elements, strict=True):
            counting = suite.encryption.combined or suite.gmac
            ivs = self._table.take_up(next(held)) if counting else None
            if suite.operation is Operation.ESP:
                esp = _esp_sealer(suite, element, ivs, self._pool)
            else:
                ah = AhSealer(
                    element.spi, suite.mac(element), suite.icv_length, ivs, _numbers(suite, element)
                )
        return OutboundBundle(
            esp,
            ah,
            4 if len(request.destination) == 4 else 6,
            digests,
            request.udp_esp_encapsulation,
            request.version,
            plan.portion,
        )


def _form(request: AddSa) -> _Form:
    elements = request.elements
    parts: _Form = (
        request.inbound,
        request.portion,
        request.udp_esp_encapsulation,
        len(request.destination),
    )
    for element in elements:
        encryption = element.encryption
        authentication = element.authentication
        parts += (
            element.operation,
            encryption.identifier,
            encryption.additional_info,
            authentication.identifier,
            authentication.additional_info,
            element.esn,
        )
    return parts


def _plan(offer: _Offer, request: AddSa) -> _Plan:
    """Judge a whole request, but for what the table holds.

    Raises:
        OidError: INVALID_DATA, NOT_SUPPORTED.
    """
    _check_addresses(offer, request)
    _check_shape(offer, request)
    portion = _portion(offer, request)
    bundled = len(request.elements) == 2
    suites = tuple(
        _suite(offer, f"elements[{number}]", element, bundled)
        for number, element in enumerate(request.elements)
    )
    return _Plan(portion, suites)


def _check_addresses(offer: _Offer, request: AddSa) -> None:
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
    if length == 16 and not offer.ipv6:
        address = str(ip_address(request.destination))
        raise _unsupported("this NIC does IPv4 only", "destination", address, "an IPv4 address")


def _check_shape(offer: _Offer, request: AddSa) -> None:
    operations = [element.operation for element in request.elements]
    if not 1 <= len(operations) <= 2:
        raise _invalid("wrong number of SAs", "elements", str(len(operations)), "1 or 2 (R96)")
    names = ", ".join(operation.name for operation in operations)
    if len(operations) == 2 and operations != [Operation.ESP, Operation.AH]:
        raise _unsupported("no such bundle", "elements", names, "ESP, AH in this order (R98)")
    if len(operations) == 2 and not offer.combined:
        raise _unsupported("this NIC does no AH and ESP in one packet", "elements", names, "one SA")
    able = offer.operations[request.inbound]
    if not all(operation in able for operation in operations):
        allowed = ", ".join(operation.name for operation in able) or "none"
        raise _unsupported("this NIC does not do that", "elements", names, allowed)


def _portion(offer: _Offer, request: AddSa) -> Mode | None:
    """The portion a request is for, as far as it says; a UDP-ESP subtype says it too."""
    portion = request.portion
    subtype = request.udp_esp_encapsulation
    if subtype:
        value = f"{subtype:#x}"
        if subtype not in _UDP_ESP_PORTIONS:
            legal = ", ".join(f"{bit:#x}" for bit in (0, *_UDP_ESP_PORTIONS))
            raise _invalid("not one UDP-ESP subtype", "udp_esp_encapsulation", value, legal)
        if not subtype & offer.udp_esp:
            able = ", ".join(f"{bit:#x}" for bit in (0, *_UDP_ESP_PORTIONS) if bit & offer.udp_esp == bit)
            raise _unsupported("this NIC does not do that", "udp_esp_encapsulation", value, able)
        if [element.operation for element in request.elements] != [Operation.ESP]:
            raise _unsupported("only ESP alone goes into UDP (R96)", "udp_esp_encapsulation", value, "0")
        named = _UDP_ESP_PORTIONS[subtype]
        if named is not None and portion not in (None, named):
            raise _invalid(
                "the UDP-ESP subtype is for another portion", "udp_esp_encapsulation", value, portion.value
            )
        portion = portion or named
    if portion is None:
        return None
    for element in request.elements:
        modes = offer.modes[element.operation]
        if portion not in modes:
            allowed = ", ".join(mode.value for mode in modes) or "none"
            raise _unsupported("this NIC does not do that", "portion", portion.value, allowed)
    return portion


def _suite(offer: _Offer, name: str, element: SaElement, bundled: bool) -> _Suite:
    """The algorithms of one element, which is checked whole."""
    if not MIN_SPI <= element.spi <= MAX_SPI:
        raise _invalid(
            "SPI out of range; 0 is for local use (RFC 4303 §2.1)",
            f"{name}.spi",
            f"{element.spi:#x}",
            f"{MIN_SPI:#x} to {MAX_SPI:#x}",
        )
    encryption = _row(f"{name}.encryption", element.encryption, ENCRYPTION_BY_IDENTIFIER, offer.encryptions)
    integrity = _row(
        f"{name}.authentication", element.authentication, INTEGRITY_BY_IDENTIFIER, offer.integrities
    )
    if element.operation is Operation.AH:
        _check_ah(name, encryption, integrity)
    else:
        _check_esp(offer, name, encryption, integrity, bundled)
    icv_length = _icv_length(name, element, encryption, integrity)
    _check_numbers(offer, name, element)
    return _Suite(
        element.operation,
        encryption or NULL,
        len(element.encryption.key),
        integrity,
        len(element.authentication.key),
        icv_length,
        element.esn,
    )


def _check_esp(
    offer: _Offer,
    name: str,
    encryption: Encryption | None,
    integrity: Integrity | None,
    bundled: bool,
) -> None:
    if encryption is None and integrity is None:
        raise _invalid("ESP without any algorithm (R103)", name, "none", "encryption, authentication")
    if encryption is None and NULL not in offer.encryptions:
        raise _unsupported(
            "this NIC does no null encryption",
            f"{name}.encryption",
            "none",
            _names(offer.encryptions),
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
                _names(offer.integrities),
            )
        return
    if integrity.iv_length and encryption not in (None, NULL):
        raise _unsupported(
            "AES-GMAC goes with null encryption only (RFC 4543 §3)",
            f"{name}.authentication",
            integrity.name,
            _names(row for row in offer.integrities if not row.iv_length),
        )


def _check_numbers(offer: _Offer, name: str, element: SaElement) -> None:
    if not 0 <= element.sequence_number_high_order <= _MAX_U32:
        raise _invalid(
            "upper half of a sequence number out of range",
            f"{name}.sequence_number_high_order",
            str(element.sequence_number_high_order),
            f"0 to {_MAX_U32}",
        )
    if element.esn and not offer.esn:
        raise _unsupported("this NIC does no extended sequence numbers", f"{name}.esn", "true", "false")


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


def _numbers(suite: _Suite, element: SaElement) -> ExtendedNumbers | None:
    if not suite.esn:
        return None
    return ExtendedNumbers(element.sequence_number_high_order, element.sequence_number_low_order)


def _inbound(request: AddSa, plan: _Plan) -> InboundBundle:
    esp: EspOpener | None = None
    ah: AhOpener | None = None
    for suite, element in zip(plan.suites, request.elements, strict=True):
        if suite.operation is Operation.ESP:
            esp = _esp_opener(suite, element)
        else:
            iv_length = COUNTER_IV_LENGTH if suite.gmac else 0
            made = suite.mac(element)
            ah = AhOpener(element.spi, made, iv_length, suite.icv_length, _numbers(suite, element))
    return InboundBundle(
        esp,
        ah,
        request.source,
        request.destination,
        plan.portion,
        request.udp_esp_encapsulation,
        request.version,
        request.filter,
    )


def _esp_opener(suite: _Suite, element: SaElement) -> EspOpener:
    encryption, icv_length, numbers = suite.encryption, suite.icv_length, _numbers(suite, element)
    if encryption.combined:
        return GcmOpener(element.spi, _gcm(suite, element), icv_length, numbers)
    made = suite.mac(element) if suite.integrity is not None else None
    if isinstance(made, Gmac):
        return GmacOpener(element.spi, made, numbers)
    cipher = None
    if encryption is not NULL:
        cipher = CbcOpener(encryption.name, element.encryption.key.reveal())
    return SeparateOpener(element.spi, cipher, encryption.block_length, made, icv_length, numbers)


def _esp_sealer(suite: _Suite, element: SaElement, ivs: CounterIvs | None, pool: RandomPool) -> EspSealer:
    encryption, icv_length, numbers = suite.encryption, suite.icv_length, _numbers(suite, element)
    if encryption.combined:
        assert ivs is not None
        return GcmSealer(element.spi, _gcm(suite, element), icv_length, ivs, numbers)
    made = suite.mac(element) if suite.integrity is not None else None
    if isinstance(made, Gmac):
        assert ivs is not None
        return GmacSealer(element.spi, made, ivs, numbers)
    cipher = None
    if encryption is not NULL:
        cipher = CbcSealer(encryption.name, element.encryption.key.reveal(), pool)
    return SeparateSealer(element.spi, cipher, encryption.block_length, made, icv_length, numbers)


def _gcm(suite: _Suite, element: SaElement) -> Gcm:
    key = element.encryption.key.reveal()
    return Gcm(key) if suite.icv_length == FULL_TAG_LENGTH else ShortGcm(key, suite.icv_length)


def _names(rows: Iterable[Encryption | Integrity]) -> str:
    return ", ".join(row.name for row in rows) or "none"


def _invalid(message: str, field: str, value: str, allowed: str) -> OidError:
    return OidError(NdisStatus.INVALID_DATA, message, field=field, value=value, allowed=allowed)


def _unsupported(message: str, field: str, value: str, allowed: str) -> OidError:
    return OidError(NdisStatus.NOT_SUPPORTED, message, field=field, value=value, allowed=allowed)
