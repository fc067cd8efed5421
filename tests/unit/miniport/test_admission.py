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
    suite_id,
)

from vnic.errors import OidError, RequestError
from vnic.ipsec.algorithms import ENCRYPTION_BY_NAME, INTEGRITY_BY_NAME
from vnic.ipsec.association import KeyMaterial, Mode
from vnic.miniport.admission import check_capabilities
from vnic.ndis.capabilities import OffloadCapabilities
from vnic.ndis.oid import NO_ALGORITHM, AddSa, AlgorithmInfo, SaElement
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
    "udp": (replace(add_request(GCM), udp_esp_encapsulation=1), NOT_SUPPORTED, "udp_esp_encapsulation"),
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


@pytest.mark.rule(3)
@pytest.mark.parametrize(("able", "request_", "field"), CAPABILITY_CASES.values(), ids=CAPABILITY_CASES)
def test_what_is_not_reported_is_refused(able: dict[str, object], request_: AddSa, field: str) -> None:
    error = refusal(request_, Nic.able(**able))
    assert (error.status, error.field) == (NOT_SUPPORTED, field)
    assert Nic().adapter.add_sa(request_)


@pytest.mark.parametrize(
    "able",
    [
        {"lso_supported": True},
        {"udp_esp": 1},
        {"authentication_algorithms": 0x40},
        {"encryption_algorithms": 0x200},
        {"encapsulation": 0},
    ],
    ids=str,
)
@pytest.mark.rule(3)
@pytest.mark.rule(28)
def test_nic_does_not_report_what_it_cannot_do(able: dict[str, object]) -> None:
    with pytest.raises(RequestError) as caught:
        check_capabilities(OffloadCapabilities(**able))  # type: ignore[arg-type]
    assert [caught.value.field] == list(able)


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
