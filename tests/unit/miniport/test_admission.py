"""Which requests a NIC takes, and with which status it refuses the others."""

from dataclasses import replace

import pytest
from nic_frames import (
    AH_SHA256,
    AH_SUITES,
    CBC_SHA1,
    ESP_SUITES,
    GCM,
    UNDER_AH_SUITES,
    V4,
    V6,
    Nic,
    Sa,
    add_request,
    ah,
    esp,
    key,
    seeded,
    suite_id,
)

from vnic.errors import OidError
from vnic.ipsec.algorithms import (
    ENCRYPTION_BY_IDENTIFIER,
    ENCRYPTION_BY_NAME,
    INTEGRITY_BY_IDENTIFIER,
    INTEGRITY_BY_NAME,
    NULL,
)
from vnic.ipsec.association import KeyMaterial, Mode
from vnic.miniport.adapter import MiniportAdapter
from vnic.miniport.sa_table import InboundBundle
from vnic.ndis.capabilities import (
    NO_TASK_OFFLOAD,
    OffloadCapabilities,
    OffloadCapabilitiesV1,
    TaskOffload,
)
from vnic.ndis.oid import NO_ALGORITHM, AddSa, AlgorithmInfo, OidVersion, SaElement, TrafficFilter
from vnic.ndis.status import NdisStatus

NOT_SUPPORTED = NdisStatus.NOT_SUPPORTED
INVALID_DATA = NdisStatus.INVALID_DATA
INVALID_PARAMETER = NdisStatus.INVALID_PARAMETER


def refusal(request: AddSa, nic: Nic | None = None) -> OidError:
    with pytest.raises(OidError) as caught:
        (nic or Nic()).adapter.add_sa(request)
    return caught.value


def with_element(sa: Sa, **members: object) -> AddSa:
    request = add_request(sa)
    return replace(request, elements=(replace(request.elements[0], **members),))  # type: ignore[arg-type]


@pytest.mark.parametrize("inbound", [False, True])
@pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("sa", [*ESP_SUITES, *AH_SUITES], ids=suite_id)
def test_every_algorithm_is_taken(sa: Sa, addresses: tuple[bytes, bytes], inbound: bool) -> None:
    nic = Nic()
    for esn in (False, True):
        assert nic.add(replace(sa, esn=esn, spi=0x5000 + esn, label=esn), addresses, inbound=inbound)


@pytest.mark.rule(14)
@pytest.mark.rule(96)
@pytest.mark.rule(98)
@pytest.mark.parametrize("inbound", [False, True])
def test_every_esp_goes_under_every_ah(inbound: bool) -> None:
    nic = Nic()
    spi = 0x1000
    for inner in (*ESP_SUITES, *UNDER_AH_SUITES):
        for outer in AH_SUITES:
            spi += 1
            bundle = (replace(inner, spi=spi, label=spi), replace(outer, spi=spi, label=-spi))
            assert nic.add(bundle, inbound=inbound)


@pytest.mark.rule(103)
def test_esp_authentication_without_encryption_is_null_encryption() -> None:
    assert Nic().add(esp("", "hmac-sha1-96"))
    assert refusal(add_request(esp("", "hmac-sha1-96")), Nic.able(encryption_algorithms=0x1FE)).status is (
        NOT_SUPPORTED
    )


CASES: dict[str, tuple[AddSa, NdisStatus, str]] = {
    "no element": (replace(add_request(GCM), elements=()), INVALID_DATA, "elements"),
    "three elements": (add_request((GCM, AH_SHA256, GCM)), INVALID_DATA, "elements"),
    "ah then esp": (add_request((AH_SHA256, GCM)), NOT_SUPPORTED, "elements"),
    "esp twice": (add_request((GCM, GCM)), NOT_SUPPORTED, "elements"),
    "two udp-esp subtypes": (
        replace(add_request(GCM), udp_esp_encapsulation=0x9),
        INVALID_DATA,
        "udp_esp_encapsulation",
    ),
    "unknown udp-esp subtype": (
        replace(add_request(GCM), udp_esp_encapsulation=0x10),
        INVALID_DATA,
        "udp_esp_encapsulation",
    ),
    "udp-esp of a tunnel for transport": (
        replace(add_request(GCM), udp_esp_encapsulation=0x2),
        INVALID_DATA,
        "udp_esp_encapsulation",
    ),
    "ah in udp": (
        replace(add_request(AH_SHA256), udp_esp_encapsulation=0x1),
        NOT_SUPPORTED,
        "udp_esp_encapsulation",
    ),
    "bundle in udp": (
        replace(add_request((GCM, AH_SHA256)), udp_esp_encapsulation=0x1),
        NOT_SUPPORTED,
        "udp_esp_encapsulation",
    ),
    "address of five bytes": (
        replace(add_request(GCM), source=bytes(5), destination=bytes(5)),
        INVALID_DATA,
        "destination",
    ),
    "two families": (replace(add_request(GCM), source=V6[0]), INVALID_DATA, "source"),
    "spi 0": (add_request(replace(GCM, spi=0)), INVALID_DATA, "elements[0].spi"),
    "spi of 33 bits": (add_request(replace(GCM, spi=1 << 32)), INVALID_DATA, "elements[0].spi"),
    "unknown encryption": (
        with_element(GCM, encryption=AlgorithmInfo(0x200, key(16))),
        NOT_SUPPORTED,
        "elements[0].encryption.identifier",
    ),
    "two encryptions": (
        with_element(GCM, encryption=AlgorithmInfo(0x048, key(20))),
        NOT_SUPPORTED,
        "elements[0].encryption.identifier",
    ),
    "unknown integrity": (
        with_element(CBC_SHA1, authentication=AlgorithmInfo(0x040, key(20))),
        NOT_SUPPORTED,
        "elements[0].authentication.identifier",
    ),
    "gcm key without salt": (
        with_element(GCM, encryption=AlgorithmInfo(0x008, key(16))),
        INVALID_DATA,
        "elements[0].encryption.key",
    ),
    "long hmac key": (
        with_element(CBC_SHA1, authentication=AlgorithmInfo(0x002, key(21))),
        INVALID_DATA,
        "elements[0].authentication.key",
    ),
    "key without algorithm": (
        with_element(GCM, authentication=AlgorithmInfo(0, key(20))),
        INVALID_DATA,
        "elements[0].authentication.identifier",
    ),
    "icv of gcm": (
        with_element(GCM, encryption=replace(GCM.element().encryption, additional_info=10)),
        INVALID_DATA,
        "elements[0].encryption.additional_info",
    ),
    "icv of sha1": (
        with_element(CBC_SHA1, authentication=replace(CBC_SHA1.element().authentication, additional_info=20)),
        INVALID_DATA,
        "elements[0].authentication.additional_info",
    ),
    "icv of a block cipher": (
        with_element(CBC_SHA1, encryption=replace(CBC_SHA1.element().encryption, additional_info=16)),
        INVALID_DATA,
        "elements[0].encryption.additional_info",
    ),
    "gcm with hmac": (
        add_request(esp("aes-gcm-128", "hmac-sha1-96")),
        NOT_SUPPORTED,
        "elements[0].authentication",
    ),
    "gmac with cipher": (
        add_request(esp("aes-cbc-128", "aes-gmac-128")),
        NOT_SUPPORTED,
        "elements[0].authentication",
    ),
    "esp that only encrypts": (add_request(esp("aes-cbc-128")), NOT_SUPPORTED, "elements[0].authentication"),
    "esp that does nothing": (add_request(esp("null")), NOT_SUPPORTED, "elements[0].authentication"),
    "esp that does nothing under ah": (
        add_request((esp("null"), AH_SHA256)),
        NOT_SUPPORTED,
        "elements[0].authentication",
    ),
    "esp without algorithms": (add_request(esp()), INVALID_DATA, "elements[0]"),
    "esp without algorithms under ah": (add_request((esp(), AH_SHA256)), INVALID_DATA, "elements[0]"),
    "ah that encrypts": (
        with_element(AH_SHA256, encryption=GCM.element().encryption),
        INVALID_DATA,
        "elements[0].encryption",
    ),
    "ah with null encryption": (
        with_element(AH_SHA256, encryption=AlgorithmInfo(0x001)),
        INVALID_DATA,
        "elements[0].encryption",
    ),
    "ah without integrity": (
        with_element(AH_SHA256, authentication=NO_ALGORITHM),
        INVALID_DATA,
        "elements[0].authentication",
    ),
    "number too large": (
        with_element(replace(GCM, esn=True), sequence_number_high_order=1 << 32),
        INVALID_DATA,
        "elements[0].sequence_number_high_order",
    ),
    "negative number": (
        with_element(GCM, sequence_number_high_order=-1),
        INVALID_DATA,
        "elements[0].sequence_number_high_order",
    ),
    "bad second element": (
        add_request((GCM, replace(AH_SHA256, spi=0))),
        INVALID_DATA,
        "elements[1].spi",
    ),
}


@pytest.mark.rule(13)
@pytest.mark.rule(73)
@pytest.mark.rule(74)
@pytest.mark.rule(96)
@pytest.mark.rule(98)
@pytest.mark.rule(102)
@pytest.mark.rule(103)
@pytest.mark.rule(104)
@pytest.mark.parametrize("inbound", [False, True])
@pytest.mark.parametrize(("request_", "status", "field"), CASES.values(), ids=CASES)
def test_bad_request_is_refused_and_changes_nothing(
    request_: AddSa, status: NdisStatus, field: str, inbound: bool
) -> None:
    nic = Nic()
    error = refusal(replace(request_, inbound=inbound), nic)
    assert (error.status, error.field) == (status, field)
    assert error.value
    assert error.allowed
    assert len(nic.adapter._table) == 0


CAPABILITY_CASES: dict[str, tuple[dict[str, object], AddSa, str]] = {
    "ah": ({"ah": False}, add_request(AH_SHA256), "elements"),
    "esp": ({"esp": False}, add_request(GCM), "elements"),
    "ah under esp": ({"ah_esp_combined": False}, add_request((GCM, AH_SHA256)), "elements"),
    "transport": ({"transport": False}, add_request(GCM), "portion"),
    "tunnel": ({"tunnel": False}, add_request(GCM, portion=Mode.TUNNEL), "portion"),
    "ipv6": ({"ipv6_supported": False}, add_request(GCM, V6), "destination"),
    "esn": ({"extended_sequence_numbers": False}, add_request(replace(GCM, esn=True)), "elements[0].esn"),
    "cipher": ({"encryption_algorithms": 0x010}, add_request(GCM), "elements[0].encryption.identifier"),
    "integrity": (
        {"authentication_algorithms": 0x002},
        add_request(AH_SHA256),
        "elements[0].authentication.identifier",
    ),
}


def good_form_of(request: AddSa) -> AddSa | None:
    """The request with keys, SPI and number made good, where that is all that is wrong with it."""
    rows = {**ENCRYPTION_BY_IDENTIFIER, 0: NULL}
    elements = []
    for element in request.elements:
        encryption, authentication = element.encryption, element.authentication
        if encryption.identifier not in rows or authentication.identifier not in (
            0,
            *INTEGRITY_BY_IDENTIFIER,
        ):
            return None
        length = (
            INTEGRITY_BY_IDENTIFIER[authentication.identifier].key_length if authentication.identifier else 0
        )
        elements.append(
            replace(
                element,
                spi=0x5000,
                encryption=replace(encryption, key=key(rows[encryption.identifier].key_length)),
                authentication=replace(authentication, key=key(length)),
                sequence_number_high_order=0,
            )
        )
    return replace(request, elements=tuple(elements))


KEY_AND_NUMBER_CASES = {
    name: case
    for name, case in CASES.items()
    if "key" in case[2] or case[2].endswith((".spi", "_high_order", ".identifier"))
}


@pytest.mark.rule(73)
@pytest.mark.parametrize("inbound", [False, True])
@pytest.mark.parametrize(
    ("request_", "status", "field"), KEY_AND_NUMBER_CASES.values(), ids=KEY_AND_NUMBER_CASES
)
def test_bad_request_is_refused_behind_a_good_one_of_the_same_form(
    request_: AddSa, status: NdisStatus, field: str, inbound: bool
) -> None:
    nic = Nic()
    request_ = replace(request_, inbound=inbound)
    good = good_form_of(request_)
    if good is not None:
        nic.adapter.add_sa(good)
    error = refusal(request_, nic)
    assert (error.status, error.field) == (status, field)


def test_source_of_another_family_is_refused_behind_a_good_request() -> None:
    nic = Nic()
    nic.add(CBC_SHA1)
    error = refusal(replace(add_request(replace(CBC_SHA1, spi=0x5000)), source=V6[0]), nic)
    assert (error.status, error.field) == (INVALID_DATA, "source")


def test_refused_request_holds_no_key() -> None:
    nic = Nic.able(sa_offload_capacity=1)
    nic.add(CBC_SHA1)
    assert refusal(add_request(GCM), nic).status is NdisStatus.RESOURCES
    assert len(nic.adapter._table._keys) == 0


@pytest.mark.rule(3)
@pytest.mark.rule(93)
def test_what_is_switched_off_is_refused_although_it_was_taken_before() -> None:
    nic = Nic()
    nic.add(GCM)
    admission = nic.adapter._admission
    admission.configure(TaskOffload(OffloadCapabilities(esp=False)))
    assert refusal(add_request(replace(GCM, label=2)), nic).field == "elements"
    assert nic.add(AH_SHA256)
    admission.configure(NO_TASK_OFFLOAD)
    for request in (add_request(AH_SHA256), v1(SHA1_UNDER_3DES)):
        error = refusal(request, nic)
        assert (error.status, error.field, error.allowed) == (NOT_SUPPORTED, "elements", "none")
    admission.configure(TaskOffload())
    assert nic.add(replace(GCM, label=2))


# ------------------------------------------------------------------------------------------ UDP-ESP

SUBTYPES = {0x1: Mode.TRANSPORT, 0x2: Mode.TUNNEL, 0x4: None, 0x8: None}
"""Which portion a subtype speaks of; of both where there are two (sheet §9.2)."""


@pytest.mark.rule(96)
@pytest.mark.parametrize("version", OidVersion)
@pytest.mark.parametrize("inbound", [False, True])
@pytest.mark.parametrize(("subtype", "portion"), SUBTYPES.items())
def test_udp_esp_subtype_says_which_portion_is_protected(
    subtype: int, portion: Mode | None, inbound: bool, version: OidVersion
) -> None:
    nic = Nic()
    for number, named in enumerate((None, portion) if portion else (None, *Mode)):
        sa = replace(SHA1_UNDER_3DES, spi=0x5000 + number)
        request = replace(v1(sa), inbound=inbound, portion=named, version=version)
        handle = nic.adapter.add_sa(replace(request, udp_esp_encapsulation=subtype))
        bundle = nic.adapter._table.get(handle)
        assert bundle is not None
        assert (bundle.udp_esp, bundle.portion, bundle.oid_version) == (subtype, named or portion, version)
    if portion is None:
        return
    other = Mode.TUNNEL if portion is Mode.TRANSPORT else Mode.TRANSPORT
    error = refusal(replace(v1(SHA1_UNDER_3DES), portion=other, udp_esp_encapsulation=subtype), nic)
    assert (error.status, error.field, error.allowed) == (
        INVALID_DATA,
        "udp_esp_encapsulation",
        other.value,
    )


@pytest.mark.rule(3)
@pytest.mark.parametrize("subtype", SUBTYPES)
def test_udp_esp_subtype_that_is_not_reported_is_refused(subtype: int) -> None:
    without = 0xF & ~subtype
    able = TaskOffload(OffloadCapabilities(udp_esp=without), OffloadCapabilitiesV1(udp_esp=without))
    nic = Nic()
    nic.adapter._admission.configure(able)
    for version in OidVersion:
        request = replace(v1(SHA1_UNDER_3DES), portion=None, version=version, udp_esp_encapsulation=subtype)
        error = refusal(request, nic)
        assert (error.status, error.field) == (NOT_SUPPORTED, "udp_esp_encapsulation")
        assert f"{subtype:#x}" not in error.allowed.split(", ")
        assert len(error.allowed.split(", ")) == 4


@pytest.mark.rule(3)
def test_udp_esp_of_a_tunnel_needs_tunnel_mode() -> None:
    request = replace(add_request(GCM), portion=None, udp_esp_encapsulation=0x2)
    nic = Nic()
    nic.adapter._admission.configure(TaskOffload(OffloadCapabilities(tunnel=False)))
    error = refusal(request, nic)
    assert (error.status, error.field, error.allowed) == (NOT_SUPPORTED, "portion", "transport")


# ------------------------------------------------------------------------------------------ V1

SHA1_UNDER_3DES = esp("3des-cbc", "hmac-sha1-96")


def v1(sas: Sa | tuple[Sa, ...], portion: Mode = Mode.TRANSPORT) -> AddSa:
    """What the V1 structures of these SAs become."""
    return replace(add_request(sas, portion=portion), version=OidVersion.V1)


V1_INTEGRITIES = ("hmac-md5-96", "hmac-sha1-96")
V1_CIPHERS = ("des-cbc", "3des-cbc")
V1_SUITES = (
    *(esp(cipher, integrity) for cipher in ("", "null", *V1_CIPHERS) for integrity in V1_INTEGRITIES),
    *(ah(integrity) for integrity in V1_INTEGRITIES),
)


@pytest.mark.rule(131)
@pytest.mark.parametrize("inbound", [False, True])
@pytest.mark.parametrize("sa", V1_SUITES, ids=suite_id)
def test_every_v1_algorithm_is_taken_by_a_v1_oid(sa: Sa, inbound: bool) -> None:
    nic = Nic()
    for number, portion in enumerate(Mode):
        request = replace(v1(replace(sa, spi=0x5000 + number), portion), inbound=inbound)
        bundle = nic.adapter._table.get(nic.adapter.add_sa(request))
        assert bundle is not None
        assert (bundle.oid_version, bundle.portion) == (OidVersion.V1, portion)


@pytest.mark.rule(14)
@pytest.mark.rule(130)
@pytest.mark.parametrize("version", OidVersion)
@pytest.mark.parametrize("inbound", [False, True])
@pytest.mark.parametrize("inner", [*V1_INTEGRITIES, ""])
@pytest.mark.parametrize("outer", V1_INTEGRITIES)
def test_the_six_pairs_of_ah_and_esp_integrity_are_taken(
    outer: str, inner: str, inbound: bool, version: OidVersion
) -> None:
    request = v1((esp("3des-cbc", inner), ah(outer)))
    assert Nic().adapter.add_sa(replace(request, inbound=inbound, version=version))


@pytest.mark.rule(14)
@pytest.mark.parametrize("lacking", ["ah_md5", "ah_sha1"])
def test_nic_without_all_six_pairs_reports_no_ah_with_esp(lacking: str) -> None:
    v1_able = OffloadCapabilitiesV1(**{lacking: False})  # type: ignore[arg-type]
    nic = Nic(MiniportAdapter(seeded().randbytes, TaskOffload(ipsec_v1=v1_able)))
    assert not nic.adapter.hardware.ipsec_v1.ah_esp_combined
    other = "hmac-sha1-96" if lacking == "ah_md5" else "hmac-md5-96"
    assert nic.adapter.add_sa(v1(ah(other)))
    assert refusal(v1((esp("3des-cbc", other), ah(other))), nic).field == "elements"


@pytest.mark.rule(124)
@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (v1(GCM), "elements[0].encryption.identifier"),
        (v1(esp("aes-cbc-128", "hmac-sha1-96")), "elements[0].encryption.identifier"),
        (v1(esp("3des-cbc", "hmac-sha256-128")), "elements[0].authentication.identifier"),
        (v1(ah("aes-gmac-128")), "elements[0].authentication.identifier"),
        (v1(replace(SHA1_UNDER_3DES, esn=True)), "elements[0].esn"),
        (replace(v1(SHA1_UNDER_3DES), source=V6[0], destination=V6[1]), "destination"),
    ],
    ids=["gcm", "aes", "sha-256", "gmac", "esn", "ipv6"],
)
def test_what_v1_does_not_know_is_refused_to_its_oids(request_: AddSa, field: str) -> None:
    error = refusal(request_)
    assert (error.status, error.field) == (NOT_SUPPORTED, field)


V1_AH = v1(ah("hmac-sha1-96"))
V1_ESP = v1(SHA1_UNDER_3DES)
V1_BITS: dict[str, tuple[AddSa, AddSa, str]] = {
    "ah_esp_combined": (v1((SHA1_UNDER_3DES, ah("hmac-sha1-96"))), V1_ESP, "elements"),
    "ah_md5": (v1(ah("hmac-md5-96")), V1_AH, "elements[0].authentication.identifier"),
    "ah_sha1": (V1_ESP, v1(ah("hmac-md5-96")), "elements[0].authentication.identifier"),
    "ah_transport": (V1_AH, replace(V1_AH, portion=Mode.TUNNEL), "portion"),
    "ah_tunnel": (replace(V1_AH, portion=Mode.TUNNEL), V1_AH, "portion"),
    "ah_send": (V1_AH, replace(V1_AH, inbound=True), "elements"),
    "ah_receive": (replace(V1_AH, inbound=True), V1_AH, "elements"),
    "esp_des": (v1(esp("des-cbc", "hmac-md5-96")), V1_ESP, "elements[0].encryption.identifier"),
    "esp_triple_des": (V1_ESP, v1(esp("des-cbc", "hmac-md5-96")), "elements[0].encryption.identifier"),
    "esp_null": (v1(esp("null", "hmac-md5-96")), V1_ESP, "elements[0].encryption.identifier"),
    "esp_transport": (V1_ESP, replace(V1_ESP, portion=Mode.TUNNEL), "portion"),
    "esp_tunnel": (replace(V1_ESP, portion=Mode.TUNNEL), V1_ESP, "portion"),
    "esp_send": (V1_ESP, replace(V1_ESP, inbound=True), "elements"),
    "esp_receive": (replace(V1_ESP, inbound=True), V1_ESP, "elements"),
}


@pytest.mark.rule(3)
@pytest.mark.parametrize(("bit", "case"), V1_BITS.items(), ids=V1_BITS)
def test_each_v1_bit_refuses_what_it_does_not_report_and_nothing_else(
    bit: str, case: tuple[AddSa, AddSa, str]
) -> None:
    refused, taken, field = case
    nic = Nic()
    assert nic.adapter.add_sa(refused)
    nic = Nic()
    nic.adapter._admission.configure(TaskOffload(ipsec_v1=OffloadCapabilitiesV1(**{bit: False})))  # type: ignore[arg-type]
    error = refusal(refused, nic)
    assert (error.status, error.field) == (NOT_SUPPORTED, field)
    assert nic.adapter.add_sa(taken)


@pytest.mark.rule(3)
def test_a_direction_lacking_for_ah_lacks_for_its_bundle_too() -> None:
    nic = Nic()
    nic.adapter._admission.configure(TaskOffload(ipsec_v1=OffloadCapabilitiesV1(ah_send=False)))
    bundle = v1((SHA1_UNDER_3DES, ah("hmac-sha1-96")))
    assert refusal(bundle, nic).field == "elements"
    assert nic.adapter.add_sa(replace(bundle, inbound=True))


@pytest.mark.rule(125)
def test_v1_filter_stays_with_its_inbound_bundle() -> None:
    nic = Nic()
    wanted = TrafficFilter(V4[0], b"\xff" * 4, V4[1], b"\xff" * 4, 6, 0, 443)
    handle = nic.adapter.add_sa(replace(V1_ESP, inbound=True, filter=wanted))
    bundle = nic.adapter._table.get(handle)
    assert isinstance(bundle, InboundBundle)
    assert bundle.filter is wanted


@pytest.mark.rule(3)
@pytest.mark.parametrize(("able", "request_", "field"), CAPABILITY_CASES.values(), ids=CAPABILITY_CASES)
def test_what_is_not_reported_is_refused(able: dict[str, object], request_: AddSa, field: str) -> None:
    nic = Nic()
    nic.adapter._admission.configure(TaskOffload(OffloadCapabilities(**able)))  # type: ignore[arg-type]
    error = refusal(request_, nic)
    assert (error.status, error.field) == (NOT_SUPPORTED, field)
    assert Nic().adapter.add_sa(request_)


def test_refusal_never_shows_a_key() -> None:
    secret = b"\xde\xad\xbe\xef" * 5
    for length in range(1, 21):
        for identifier in (0, 0x008, 0x040, 0x004, 0x800):
            info = AlgorithmInfo(identifier, KeyMaterial(secret[:length]))
            for name in ("encryption", "authentication"):
                element: dict[str, object] = {name: info}
                if identifier == 0x008 and length == 20 and name == "encryption":
                    continue
                error = refusal(with_element(GCM, **element))
                shown = f"{error} {error!r} {error.args} {error.value}"
                assert "dead" not in shown.lower()
                assert "\\xde" not in shown


COUNTER_SUITES = [
    esp("aes-gcm-256", label="one key"),
    esp("null", "aes-gmac-256", label="one key"),
    ah("aes-gmac-256", label="one key"),
]


def one_key(sa: Sa, spi: int) -> AddSa:
    """A request whose counter-mode algorithm has always the same key and salt."""
    element = sa.element()
    secret = key(36, "shared")
    name = "encryption" if sa.combined else "authentication"
    row = (ENCRYPTION_BY_NAME if sa.combined else INTEGRITY_BY_NAME)[
        sa.encryption if sa.combined else sa.integrity
    ]
    info = AlgorithmInfo(row.ndis_identifier, secret)
    changed: SaElement = replace(element, spi=spi, **{name: info})
    return replace(add_request(sa), elements=(changed,))


@pytest.mark.parametrize("first", COUNTER_SUITES, ids=suite_id)
@pytest.mark.parametrize("second", COUNTER_SUITES, ids=suite_id)
def test_counter_mode_key_serves_one_outbound_sa_at_a_time(first: Sa, second: Sa) -> None:
    nic = Nic()
    nic.adapter.add_sa(one_key(first, 0x1000))
    error = refusal(one_key(second, 0x1001), nic)
    assert error.status is INVALID_PARAMETER
    assert error.field.endswith(".key")
    assert nic.adapter.add_sa(replace(one_key(second, 0x1001), inbound=True))


def test_counter_mode_key_serves_one_sa_of_a_bundle() -> None:
    elements = (
        one_key(COUNTER_SUITES[0], 0x1000).elements[0],
        one_key(COUNTER_SUITES[2], 0x1001).elements[0],
    )
    nic = Nic()
    error = refusal(replace(add_request(GCM), elements=elements), nic)
    assert (error.status, error.field) == (INVALID_PARAMETER, "elements[1].authentication.key")
    assert nic.adapter.add_sa(replace(add_request(GCM), elements=elements, inbound=True))


def test_same_key_with_another_salt_is_another_nonce() -> None:
    nic = Nic()
    secret = key(20).reveal()
    for number in range(3):
        info = AlgorithmInfo(0x008, KeyMaterial(secret[:16] + bytes((0, 0, 0, number))))
        nic.adapter.add_sa(with_element(GCM, encryption=info))


def test_block_cipher_key_may_serve_many() -> None:
    nic = Nic()
    for _ in range(3):
        nic.add(CBC_SHA1)
