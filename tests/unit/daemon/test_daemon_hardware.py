"""Which card to model: what is said, what follows from it, and what contradicts itself."""

from dataclasses import fields
from typing import Any

import pytest

from vnic.control.interface import Capabilities, V1Capabilities
from vnic.daemon.hardware import feature_name, hardware_of, keywords_message, keywords_of
from vnic.errors import RequestError
from vnic.miniport.adapter import MiniportAdapter
from vnic.ndis.capabilities import NO_IPSEC, NO_IPSEC_V1, OffloadCapabilitiesV1, TaskOffload
from vnic.ndis.keywords import IpsecKeyword, Keywords


def test_a_card_of_which_nothing_is_said_can_do_all() -> None:
    assert hardware_of(None) == hardware_of(Capabilities()) == TaskOffload()


@pytest.mark.rule(19)
def test_what_is_said_is_what_the_card_has() -> None:
    card = hardware_of(
        Capabilities(
            encryptions=["aes-gcm-128", "null"],
            integrities=["hmac-sha1-96"],
            ipv4_options=False,
            esn=False,
            lso=False,
            ipv6=False,
            udp_esp=["udp_transport", "udp_transport_over_tunnel"],
            sa_capacity=7,
        )
    ).ipsec_v2
    # Bits as ntddndis.h has them: sheet §10.1, §9.2.
    assert (card.encryption_algorithms, card.authentication_algorithms) == (0x009, 0x002)
    assert card.udp_esp == 0x9
    assert card.sa_offload_capacity == 7
    assert not card.ipv4_options
    assert not card.extended_sequence_numbers
    assert not card.lso_supported
    assert not card.ipv6_supported
    assert not card.ipv6_non_ipsec_extension_headers
    assert card.ah
    assert card.esp
    assert card.ah_esp_combined


@pytest.mark.parametrize(
    ("said", "follows"),
    [
        ({"ah": False}, {"ah_esp_combined": False, "esp": True}),
        ({"integrities": []}, {"ah": False, "ah_esp_combined": False, "esp": True}),
        ({"encryptions": []}, {"esp": False, "udp_esp": 0, "ah": True}),
        ({"esp": False}, {"udp_esp": 0, "ah_esp_combined": False, "ah": True}),
        ({"transport": False}, {"transport_tunnel_combined": False, "tunnel": True}),
    ],
)
def test_what_is_left_out_follows_from_what_is_said(said: dict[str, Any], follows: dict[str, Any]) -> None:
    card = hardware_of(Capabilities(**said)).ipsec_v2
    assert {name: getattr(card, name) for name in follows} == follows


def test_a_card_without_ah_and_esp_is_one_without_ipsec_v2() -> None:
    card = hardware_of(Capabilities(ah=False, esp=False))
    assert card.ipsec_v2 == NO_IPSEC
    assert card.ipsec_v1 == OffloadCapabilitiesV1()


@pytest.mark.parametrize(
    ("said", "field"),
    [
        (Capabilities(encryptions=["aes"]), "capabilities.encryptions"),
        (Capabilities(integrities=["aes-gcm-128"]), "capabilities.integrities"),
        (Capabilities(encryptions=[], esp=True), "capabilities.esp"),
        (Capabilities(integrities=[], ah=True), "capabilities.ah"),
        (Capabilities(ah=False, ah_esp_combined=True), "capabilities.ah_esp_combined"),
        (Capabilities(tunnel=False), "capabilities.tunnel"),
        (
            Capabilities(transport=False, transport_tunnel_combined=True),
            "capabilities.transport_tunnel_combined",
        ),
        (Capabilities(ipv6=False, ipv6_extension_headers=True), "capabilities.ipv6_extension_headers"),
        (Capabilities(esp=False, udp_esp=["udp_tunnel"]), "capabilities.udp_esp"),
        (Capabilities(sa_capacity=0), "capabilities.sa_capacity"),
        (Capabilities(sa_capacity=1 << 70), "capabilities.sa_capacity"),
        (Capabilities(v1=V1Capabilities(enabled=False, ah_send=True)), "capabilities.v1.ah_send"),
        (
            Capabilities(v1=V1Capabilities(ah_md5=False, ah_sha1=False, ah_send=True)),
            "capabilities.v1.ah_send",
        ),
        (
            Capabilities(v1=V1Capabilities(esp_send=False, esp_receive=False, ah_esp_combined=True)),
            "capabilities.v1.ah_esp_combined",
        ),
    ],
)
def test_a_contradiction_names_the_member_and_what_is_allowed(said: Capabilities, field: str) -> None:
    with pytest.raises(RequestError) as refusal:
        hardware_of(said)
    assert refusal.value.field == field
    assert refusal.value.value
    assert refusal.value.allowed


def test_a_card_may_lack_v1_or_parts_of_it() -> None:
    assert hardware_of(Capabilities(v1=V1Capabilities(enabled=False))).ipsec_v1 == NO_IPSEC_V1
    part = hardware_of(Capabilities(v1=V1Capabilities(ah_send=False, esp_tunnel=False, udp_esp=[]))).ipsec_v1
    off = {one.name for one in fields(part) if not getattr(part, one.name)}
    assert off == {"ah_send", "esp_tunnel", "udp_esp"}


def test_v1_without_an_algorithm_of_integrity_has_no_ah() -> None:
    card = hardware_of(Capabilities(v1=V1Capabilities(ah_md5=False, ah_sha1=False))).ipsec_v1
    assert {card.ah_transport, card.ah_tunnel, card.ah_send, card.ah_receive} == {False}
    assert not card.ah_esp_combined
    assert card.esp_send


@pytest.mark.rule(27)
def test_keywords_are_read_by_name_and_the_rest_stays() -> None:
    assert keywords_of(None) == Keywords()
    read = keywords_of({"*IPsecOffloadV2": 2, "ipsecoffloadv1ipv4": 0})
    assert read == Keywords(v2=IpsecKeyword.ESP, v1_ipv4=IpsecKeyword.DISABLED)
    assert keywords_of({"*IPsecOffloadV2IPv4": 1}, read) == Keywords(
        v2=IpsecKeyword.ESP, v1_ipv4=IpsecKeyword.DISABLED, v2_ipv4=IpsecKeyword.AH
    )
    assert keywords_message(read) == {
        "*IPsecOffloadV1IPv4": 0,
        "*IPsecOffloadV2": 2,
        "*IPsecOffloadV2IPv4": 3,
    }


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"*IPsecOffloadV3": 1}, "keywords"),
        ({"*IPsecOffloadV2": 4}, "keywords.*IPsecOffloadV2"),
        ({"*IPsecOffloadV2": -1}, "keywords.*IPsecOffloadV2"),
    ],
)
def test_a_wrong_keyword_names_what_is_allowed(given: dict[str, int], field: str) -> None:
    with pytest.raises(RequestError) as refusal:
        keywords_of(given)
    assert refusal.value.field == field
    assert refusal.value.allowed


def test_features_of_the_nic_have_the_names_of_the_configuration() -> None:
    nic = MiniportAdapter(bytes)
    named = [feature_name(one.name) for one in nic.features()]
    members = {one.name for one in fields(Capabilities)} - {"v1", "sa_capacity"}
    members |= {f"v1.{one.name}" for one in fields(V1Capabilities)}
    # What no configuration switches: that there is IPsec, VLAN tags, and what is not IPsec.
    others = {"ipsec_v2", "vlan", "v1.vlan", "large_send_ipv4", "large_send_ipv6"}
    others |= {"checksum_ipv4", "checksum_ipv6"}
    lists = [name for name in named if ".".join(name.split(".")[:-1]) in members]
    assert {name for name in named if name not in lists} | {
        ".".join(name.split(".")[:-1]) for name in lists
    } == members | others
    assert {"encryptions.aes-gcm-128", "integrities.hmac-md5-96", "v1.udp_esp.udp_tunnel"} <= set(named)
    assert len(named) == len(set(named))
