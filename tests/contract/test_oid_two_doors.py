"""Typed and binary requests are two doors to one path: same state, same status, same refusal.

One card is asked by a typed call, its twin in binary form; then everything that can be seen of the two is
compared, down to the bytes they make of the same frame.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

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
    framed,
    suite_id,
)
from oid_bytes import (
    ADD_SA,
    ADD_SA_EX,
    DELETE_SA,
    ENCAPSULATION,
    PARAMETERS,
    TASK_OFFLOAD,
    UPDATE_SA,
    V1_ADD,
    V1_ADD_UDPESP,
    V1_DELETE,
    V1_DELETE_UDPESP,
    Sas,
    add_sa,
    add_sa_ex,
    ask,
    delete_sa,
    encapsulation,
    parameters,
    task,
    tasks,
    update_sa,
    v1_add_sa,
    v1_add_udpesp,
)

from vnic.errors import OidError
from vnic.ipsec.association import Mode
from vnic.ndis.capabilities import UDP_ESP_TRANSPORT, OffloadCapabilitiesV1
from vnic.ndis.configuration_structs import IpsecParameter, OffloadParameters, SwitchParameter
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oid import AddSa, DeleteSa, OidVersion, Operation, TrafficFilter, UpdateSa
from vnic.ndis.status import NdisStatus
from vnic.ndis.v1_structs import AddUdpEspSa, DeleteUdpEspSa

Outcome = tuple[NdisStatus, str, str, str]
"""Status, message, value and what is allowed; members have different names in C."""


@dataclass
class Request:
    """One request through both doors."""

    typed: Callable[[Nic], object]
    oid: int
    buffer: bytes | bytearray


def through_typed(nic: Nic, request: Request) -> Outcome:
    try:
        request.typed(nic)
    except OidError as error:
        return error.status, error.message, error.value, error.allowed
    return NdisStatus.SUCCESS, "", "", ""


def through_binary(nic: Nic, request: Request) -> Outcome:
    result = ask(nic.adapter, request.oid, bytes(request.buffer))
    return result.status, result.message, result.value, result.allowed


def seen(nic: Nic) -> object:
    """All that can be seen of a card from outside."""
    bundles = [
        (
            handle,
            type(bundle).__name__,
            bundle.portion,
            bundle.udp_esp,
            bundle.oid_version,
            nic.adapter.offers(handle),
            [(part.spi, type(part).__name__) for part in (bundle.esp, bundle.ah) if part],
        )
        for handle, bundle in nic.adapter.bundles()
    ]
    return (
        bundles,
        nic.adapter.state,
        nic.adapter.current,
        nic.adapter.keywords,
        nic.adapter.features(),
        nic.adapter.configuration_generation,
        nic.adapter.take_indications(),
        len(nic.adapter._table.parser_entries),
    )


def compare(*requests: Request, nics: tuple[Nic, Nic] | None = None) -> tuple[Nic, Nic]:
    typed, binary = nics or (Nic(), Nic())
    for request in requests:
        assert through_typed(typed, request) == through_binary(binary, request)
        assert seen(typed) == seen(binary)
    return typed, binary


def adding(sas: Sas, addresses: tuple[bytes, bytes] = V4, *, inbound: bool = False) -> Request:
    request = add_request(sas, addresses, inbound=inbound, portion=None)
    return Request(lambda nic: nic.adapter.add_sa(request), ADD_SA, add_sa(sas, addresses, inbound=inbound))


def deleting(handle: int) -> Request:
    return Request(
        lambda nic: nic.adapter.delete_sa(DeleteSa(OffloadHandle(handle))), DELETE_SA, delete_sa([handle])
    )


def updating(handle: int, operation: Operation, spi: int, high: int) -> Request:
    request = UpdateSa(OffloadHandle(handle), operation, spi, high)
    return Request(
        lambda nic: nic.adapter.update_sa(request), UPDATE_SA, update_sa(handle, operation, spi, high)
    )


@pytest.mark.rule(65, 84, 102, 103, 104, 106, 107)
@pytest.mark.parametrize("sa", [*ESP_SUITES, *AH_SUITES], ids=suite_id)
@pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
def test_added_sa_is_the_same_through_both_doors(sa: Sa, addresses: tuple[bytes, bytes]) -> None:
    nics = compare(adding(sa, addresses), adding(sa, addresses, inbound=True))
    one = framed(sa, bytes(80), addresses=addresses)
    frames = [bytes(nic.seal(one.frame, one.info(OffloadHandle(1))).frame) for nic in nics]
    assert frames[0] == frames[1] != one.frame
    assert nics[0].open(frames[0]) == nics[1].open(frames[1])


@pytest.mark.parametrize("sa", UNDER_AH_SUITES, ids=suite_id)
def test_added_bundle_is_the_same_through_both_doors(sa: Sa) -> None:
    bundle = (sa, AH_SHA256)
    nics = compare(adding(bundle), adding(bundle, inbound=True))
    one = framed(bundle, bytes(80))
    frames = [bytes(nic.seal(one.frame, one.info(OffloadHandle(1))).frame) for nic in nics]
    assert frames[0] == frames[1]


@pytest.mark.rule(85, 109)
@pytest.mark.parametrize("sas", [GCM, CBC_SHA1, (CBC_SHA1, AH_SHA256)], ids=["gcm", "cbc", "bundle"])
def test_the_ex_form_is_the_same_too(sas: Sas) -> None:
    request = replace(add_request(sas, V6, portion=None))
    compare(Request(lambda nic: nic.adapter.add_sa(request), ADD_SA_EX, add_sa_ex(sas, V6)))


REFUSED = {
    "reserved SPI": adding(replace(GCM, spi=0)),
    "no integrity": adding(esp("aes-cbc-128")),
    "null without integrity": adding(esp("null")),
    "GMAC under a cipher": adding(esp("aes-cbc-128", "aes-gmac-128")),
    "ICV length": adding(replace(GCM, icv=5)),
    "wrong order": adding((AH_SHA256, GCM)),
    "two ESP": adding((GCM, replace(CBC_SHA1, spi=0x7777))),
}


@pytest.mark.rule(13, 74, 96, 98)
@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED.keys())
def test_refused_addition_is_refused_alike(request_: Request) -> None:
    typed, _ = compare(request_)
    assert len(typed.adapter) == 0
    assert through_typed(Nic(), request_)[0] is not NdisStatus.SUCCESS


def test_duplicates_and_keys_in_use_are_refused_alike() -> None:
    inbound = adding(GCM, inbound=True)
    compare(inbound, inbound, adding(GCM), adding(GCM))


@pytest.mark.rule(32, 92)
def test_full_table_is_refused_alike() -> None:
    compare(
        adding(GCM),
        adding(CBC_SHA1),
        adding(AH_SHA256),
        deleting(1),
        adding(AH_SHA256),
        nics=(Nic.able(sa_offload_capacity=2), Nic.able(sa_offload_capacity=2)),
    )


@pytest.mark.parametrize(
    "able",
    [
        {"ah": False},
        {"esp": False},
        {"ah_esp_combined": False},
        {"ipv6_supported": False},
        {"extended_sequence_numbers": False},
        {"encryption_algorithms": 0x8},
        {"authentication_algorithms": 0x2},
    ],
    ids=lambda able: next(iter(able)),
)
def test_what_the_hardware_lacks_is_refused_alike(able: dict[str, object]) -> None:
    compare(
        adding(GCM),
        adding(AH_SHA256),
        adding((CBC_SHA1, AH_SHA256)),
        adding(replace(GCM, label=6), V6),
        adding(replace(GCM, label=7, esn=True)),
        nics=(Nic.able(**able), Nic.able(**able)),
    )


@pytest.mark.rule(112, 120, 121, 122)
def test_updates_and_deletes_are_the_same_through_both_doors() -> None:
    sa = replace(GCM, esn=True, high=2)
    nics = compare(
        adding(sa),
        updating(1, Operation.ESP, sa.spi, 7),
        updating(1, Operation.ESP, sa.spi + 1, 7),
        updating(1, Operation.AH, sa.spi, 7),
        updating(9, Operation.ESP, sa.spi, 7),
        adding(CBC_SHA1),
        updating(2, Operation.ESP, CBC_SHA1.spi, 7),
        deleting(2),
        deleting(2),
        deleting(0),
    )
    one = framed(sa, bytes(40))
    frames = [bytes(nic.seal(one.frame, one.info(OffloadHandle(1))).frame) for nic in nics]
    assert frames[0] == frames[1]
    compare(deleting(1), nics=nics)


def stopping(name: str, *between: Request) -> None:
    nics = (Nic(), Nic())
    compare(adding(replace(GCM, esn=True)), nics=nics)
    for nic in nics:
        getattr(nic.adapter, name)()
    compare(*between, nics=nics)


EVERY_KIND = (
    adding(CBC_SHA1),
    updating(1, Operation.ESP, GCM.spi, 3),
    Request(
        lambda nic: nic.adapter.set_encapsulation(True, False), ENCAPSULATION, encapsulation(ipv6=(2, 0, 0))
    ),
    Request(
        lambda nic: nic.adapter.set_parameters(OffloadParameters(ipsec_v1=IpsecParameter.AH_ENABLED)),
        PARAMETERS,
        parameters(revision=1, IPsecV1=2),
    ),
    deleting(1),
)


@pytest.mark.rule(80, 115)
@pytest.mark.parametrize("name", ["begin_reset", "pause", "remove", "halt", "restart"])
def test_states_refuse_alike(name: str) -> None:
    stopping(name, *EVERY_KIND)


@pytest.mark.rule(43, 45, 46, 48, 54, 57)
def test_configuration_is_the_same_through_both_doors() -> None:
    compare(
        adding(GCM),
        Request(
            lambda nic: nic.adapter.set_parameters(
                OffloadParameters(
                    ipsec_v2=IpsecParameter.AH_ENABLED,
                    ipsec_v1=IpsecParameter.DISABLED,
                    lso_v1=SwitchParameter.DISABLED,
                )
            ),
            PARAMETERS,
            parameters(revision=3, IPsecV2=2, IPsecV1=1, LsoV1=1),
        ),
        adding(CBC_SHA1),
        Request(
            lambda nic: nic.adapter.set_parameters(
                OffloadParameters(ipsec_v2=IpsecParameter.AH_AND_ESP_ENABLED, flags=1)
            ),
            PARAMETERS,
            parameters(revision=3, IPsecV2=4, flags=1),
        ),
        Request(
            lambda nic: nic.adapter.set_encapsulation(None, False),
            ENCAPSULATION,
            encapsulation((0, 0, 0), (2, 0, 0)),
        ),
        Request(
            lambda nic: nic.adapter.set_encapsulation(False, True),
            ENCAPSULATION,
            encapsulation((2, 0, 0), (1, 2, 14)),
        ),
        Request(
            lambda nic: nic.adapter.set_tasks(
                OffloadCapabilitiesV1(
                    ah_esp_combined=True,
                    transport_tunnel_combined=False,
                    ipv4_options=False,
                    udp_esp=0,
                )
            ),
            TASK_OFFLOAD,
            tasks(task(supported=(1, 0, 0, 0), ah=0b111111, esp=0b11111101)),
        ),
    )


V1_SA = esp("3des-cbc", "hmac-sha1-96")
HOST_FILTER = TrafficFilter(V4[0], b"\xff" * 4, V4[1], b"\xff" * 4)


def v1_request(sas: Sas, *, inbound: bool = False, udp_esp: int = 0, protocol: int = 0) -> AddSa:
    return replace(
        add_request(sas, inbound=inbound),
        portion=Mode.TRANSPORT,
        version=OidVersion.V1,
        filter=replace(HOST_FILTER, protocol=protocol),
        udp_esp_encapsulation=udp_esp,
    )


def v1_adding(sas: Sas, *, inbound: bool = False) -> Request:
    request = v1_request(sas, inbound=inbound)
    return Request(lambda nic: nic.adapter.add_sa(request), V1_ADD, v1_add_sa(sas, inbound=inbound))


def v1_deleting(handle: int) -> Request:
    return replace(deleting(handle), oid=V1_DELETE, buffer=handle.to_bytes(8, "little"))


@pytest.mark.rule(124, 131, 134)
def test_v1_requests_are_the_same_through_both_doors() -> None:
    bundle = (esp("des-cbc", "hmac-md5-96", spi=0x3333), ah("hmac-sha1-96"))
    nics = compare(
        v1_adding(V1_SA),
        v1_adding(V1_SA, inbound=True),
        v1_adding(V1_SA, inbound=True),
        v1_adding(bundle, inbound=True),
        v1_adding(replace(V1_SA, spi=0)),
        v1_deleting(2),
        v1_deleting(2),
    )
    assert len(nics[0].adapter) == 2


@pytest.mark.rule(143, 144, 145, 146, 147, 148, 149)
def test_udp_esp_requests_are_the_same_through_both_doors() -> None:
    def udp_adding(sa: Sa, *, inbound: bool = True, entry: int = 0, port: int = 4500) -> Request:
        request = v1_request(sa, inbound=inbound, udp_esp=UDP_ESP_TRANSPORT, protocol=17)
        return Request(
            lambda nic: nic.adapter.add_udp_esp_sa(AddUdpEspSa(request, 1, port, entry)),
            V1_ADD_UDPESP,
            v1_add_udpesp(sa, inbound=inbound, entry=entry, port=port),
        )

    def udp_deleting(handle: int, entry: int) -> Request:
        return Request(
            lambda nic: nic.adapter.delete_udp_esp_sa(DeleteUdpEspSa(OffloadHandle(handle), entry)),
            V1_DELETE_UDPESP,
            handle.to_bytes(8, "little") + entry.to_bytes(8, "little"),
        )

    compare(
        udp_adding(V1_SA),
        udp_adding(V1_SA),
        udp_adding(replace(V1_SA, spi=0x1001)),
        udp_adding(replace(V1_SA, spi=0x1002), entry=1),
        udp_adding(replace(V1_SA, spi=0x1003), entry=9),
        udp_adding(replace(V1_SA, spi=0x1004), port=500),
        udp_adding(replace(V1_SA, spi=0x1005), inbound=False),
        udp_deleting(1, 0),
        udp_deleting(1, 0),
        udp_deleting(2, 9),
        udp_deleting(2, 1),
        udp_deleting(3, 1),
    )
