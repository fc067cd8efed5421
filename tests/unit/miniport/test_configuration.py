"""The one table of capabilities: what the hardware may be, what is on, and why the rest is off."""

from dataclasses import fields, replace
from itertools import product

import pytest

from vnic.errors import OidError, RequestError
from vnic.miniport.configuration import HARDWARE_CANNOT, Configuration
from vnic.miniport.hardware import check_hardware
from vnic.ndis.capabilities import (
    ALL_UDP_ESP,
    NO_IPSEC,
    NO_IPSEC_V1,
    NO_LARGE_SEND,
    NO_TASK_OFFLOAD,
    TRANSPORT_OVER_UDP_ESP_TUNNEL,
    UDP_ESP_TRANSPORT,
    UDP_ESP_TRANSPORT_OVER_TUNNEL,
    UDP_ESP_TUNNEL,
    ChecksumCapabilities,
    LargeSendCapabilities,
    OffloadCapabilities,
    OffloadCapabilitiesV1,
    TaskOffload,
)
from vnic.ndis.configuration_structs import IpsecParameter, OffloadParameters, SwitchParameter
from vnic.ndis.keywords import IpsecKeyword, Keywords
from vnic.ndis.status import NdisStatus

ALL = TaskOffload()


def hardware(**members: object) -> TaskOffload:
    return TaskOffload(OffloadCapabilities(**members))  # type: ignore[arg-type]


def hardware_v1(**members: object) -> TaskOffload:
    return TaskOffload(ipsec_v1=OffloadCapabilitiesV1(**members))  # type: ignore[arg-type]


def switched_on(able: TaskOffload = ALL, **keywords: object) -> Configuration:
    configuration = Configuration(able, Keywords(**keywords))  # type: ignore[arg-type]
    configuration.set_encapsulation(True, True)
    return configuration


def reasons(configuration: Configuration) -> dict[str, str]:
    return {state.name: state.reason for state in configuration.features()}


# --- hardware ----------------------------------------------------------------------------------------------


@pytest.mark.rule(3)
@pytest.mark.parametrize(
    ("able", "field"),
    [
        (hardware(udp_esp=0x10), "udp_esp"),
        (hardware(authentication_algorithms=0x40), "authentication_algorithms"),
        (hardware(encryption_algorithms=0x200), "encryption_algorithms"),
        (hardware(encapsulation=0x12), "encapsulation"),
        (hardware(sa_offload_capacity=-1), "sa_offload_capacity"),
        (hardware(sa_offload_capacity=1 << 32), "sa_offload_capacity"),
        (hardware_v1(udp_esp=0x10), "v1.udp_esp"),
        (hardware_v1(encapsulation=0x0E), "v1.encapsulation"),
        (TaskOffload(large_send=LargeSendCapabilities(max_offload_size=1 << 32)), "max_offload_size"),
    ],
)
def test_nic_claims_nothing_it_cannot_do(able: TaskOffload, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_hardware(able)
    assert caught.value.field == field
    assert caught.value.allowed


@pytest.mark.rule(22, 28, 33)
@pytest.mark.parametrize(
    ("able", "rule"), [(hardware(encapsulation=0x4), "R28"), (hardware_v1(encapsulation=0x4), "R22")]
)
def test_nic_with_ipsec_does_ethernet(able: TaskOffload, rule: str) -> None:
    with pytest.raises(RequestError, match=rule):
        Configuration(able, Keywords())


@pytest.mark.rule(29)
def test_nic_with_ipsec_does_tunnels() -> None:
    with pytest.raises(RequestError, match="R29") as caught:
        Configuration(hardware(tunnel=False), Keywords())
    assert (caught.value.field, caught.value.allowed) == ("tunnel", "true")
    assert check_hardware(TaskOffload(replace(NO_IPSEC))).ipsec_v2 == NO_IPSEC


@pytest.mark.parametrize(
    ("members", "lost"),
    [
        ({"ah": False}, {"ah_esp_combined": False}),
        ({"esp": False}, {"ah_esp_combined": False, "udp_esp": 0, "encryption_algorithms": 0}),
        ({"ipv6_supported": False}, {"ipv6_non_ipsec_extension_headers": False}),
        (
            {"transport": False},
            {"transport_tunnel_combined": False, "lso_supported": False, "udp_esp": UDP_ESP_TUNNEL},
        ),
        ({"transport_tunnel_combined": False}, {"udp_esp": UDP_ESP_TRANSPORT | UDP_ESP_TUNNEL}),
    ],
    ids=lambda members: next(iter(members)),
)
def test_what_one_capability_cannot_do_without_another_goes_with_it(
    members: dict[str, object], lost: dict[str, object]
) -> None:
    given = OffloadCapabilities(**members)  # type: ignore[arg-type]
    assert check_hardware(TaskOffload(given)).ipsec_v2 == replace(given, **lost)  # type: ignore[arg-type]


def test_nic_without_ah_and_esp_has_no_ipsec() -> None:
    assert check_hardware(hardware(ah=False, esp=False)).ipsec_v2 == NO_IPSEC
    nothing = hardware_v1(ah_send=False, ah_receive=False, esp_transport=False, esp_tunnel=False)
    assert check_hardware(nothing).ipsec_v1 == NO_IPSEC_V1


def test_nic_without_lso_does_none_of_ipsec_either() -> None:
    able = check_hardware(TaskOffload(large_send=LargeSendCapabilities(False, False)))
    assert able.large_send == NO_LARGE_SEND
    assert not able.ipsec_v2.lso_supported


@pytest.mark.rule(23)
def test_v1_that_cannot_receive_esp_parses_no_udp_esp() -> None:
    assert check_hardware(hardware_v1(esp_receive=False)).ipsec_v1.udp_esp == 0
    assert check_hardware(hardware_v1()).ipsec_v1.udp_esp == ALL_UDP_ESP
    able = check_hardware(hardware_v1(esp_transport=False, ah_transport=False)).ipsec_v1
    assert able.udp_esp & (TRANSPORT_OVER_UDP_ESP_TUNNEL | UDP_ESP_TRANSPORT_OVER_TUNNEL) == 0


def test_v1_without_ah_claims_nothing_of_ah() -> None:
    v1 = check_hardware(hardware_v1(ah_transport=False, ah_tunnel=False)).ipsec_v1
    assert (v1.ah_send, v1.ah_receive, v1.ah_esp_combined) == (False, False, False)
    assert v1.esp_send
    assert v1.ah_md5


def test_capacity_of_a_nic_with_v1_alone_is_the_usual_one() -> None:
    assert Configuration(TaskOffload(NO_IPSEC), Keywords()).sa_capacity == 131072
    assert Configuration(hardware(sa_offload_capacity=7), Keywords()).sa_capacity == 7
    assert Configuration(hardware(sa_offload_capacity=0), Keywords()).sa_capacity == 0
    assert Configuration(NO_TASK_OFFLOAD, Keywords()).sa_capacity == 0


# --- the table ---------------------------------------------------------------------------------------------


def members_of(offload: TaskOffload) -> int:
    """How many abilities the parts have: truth values, and bits of masks."""
    count = 0
    for part in (offload.ipsec_v2, offload.ipsec_v1, offload.large_send, offload.checksum):
        for member in fields(part):
            value = getattr(part, member.name)
            if isinstance(value, bool):
                count += value and member.name not in ("tcp_options", "ip_options")
            elif member.name not in ("sa_offload_capacity", "max_offload_size", "min_segment_count"):
                count += value.bit_count()
    return count


def test_table_has_a_row_for_every_ability() -> None:
    configuration = Configuration(ALL, Keywords())
    states = configuration.features()
    assert len(states) == len({state.name for state in states}) == members_of(ALL)
    assert all(state.hardware for state in states)


@pytest.mark.rule(35)
def test_all_that_the_hardware_has_is_on_when_nothing_keeps_it_off() -> None:
    configuration = switched_on()
    assert configuration.current == configuration.receiving == configuration.offered == ALL
    assert all(state.enabled and not state.reason for state in configuration.features())


@pytest.mark.parametrize(
    "able",
    [
        ALL,
        hardware(ah=False),
        hardware(esp=False),
        hardware(ipv6_supported=False),
        hardware(encryption_algorithms=0x8, authentication_algorithms=0, udp_esp=0),
        hardware_v1(ah_md5=False, esp_des=False),
        TaskOffload(NO_IPSEC),
        TaskOffload(ipsec_v1=NO_IPSEC_V1),
        replace(ALL, checksum=ChecksumCapabilities(False, True)),
        replace(ALL, large_send=NO_LARGE_SEND),
    ],
)
@pytest.mark.parametrize("keyword", list(IpsecKeyword))
@pytest.mark.parametrize("encapsulation", [*product((True, False), repeat=2), None])
@pytest.mark.parametrize("balanced", [False, True])
def test_table_and_current_configuration_never_disagree(
    able: TaskOffload, keyword: IpsecKeyword, encapsulation: tuple[bool, bool] | None, balanced: bool
) -> None:
    configuration = Configuration(able, Keywords(keyword, keyword, keyword))
    if encapsulation is not None:
        configuration.set_encapsulation(*encapsulation)
    configuration.set_load_balanced(balanced)
    states = configuration.features()
    assert sum(state.enabled for state in states) == members_of(configuration.current)
    assert sum(state.hardware for state in states) == members_of(configuration.hardware)
    for state in states:
        assert state.enabled or state.reason
        assert state.hardware or (state.reason == HARDWARE_CANNOT and not state.enabled)


def test_reason_names_what_the_hardware_lacks() -> None:
    named = reasons(switched_on(hardware(encryption_algorithms=0x8)))
    assert named["ipsec-v2-encr-aes-cbc-128"] == "the hardware cannot"
    assert named["ipsec-v2-encr-aes-gcm-128"] == ""


def test_reason_names_keyword_and_value() -> None:
    named = reasons(switched_on(v2=IpsecKeyword.AH))
    assert named["ipsec-v2-esp"] == "keyword *IPsecOffloadV2 is 1 (AH)"
    assert named["ipsec-v2-ah-esp"] == "keyword *IPsecOffloadV2 is 1 (AH)"
    assert named["ipsec-v2-encr-aes-gcm-128"] == "keyword *IPsecOffloadV2 is 1 (AH)"
    assert named["ipsec-v2-ah"] == named["ipsec-v2"] == named["ipsec-v1-esp-des"] == ""
    named = reasons(switched_on(hardware(ipv6_supported=False), v2_ipv4=IpsecKeyword.DISABLED))
    assert named["ipsec-v2"] == "keyword *IPsecOffloadV2IPv4 is 0 (DISABLED)"
    named = reasons(switched_on(v1_ipv4=IpsecKeyword.ESP))
    assert named["ipsec-v1-ah-send"] == "keyword *IPsecOffloadV1IPv4 is 2 (ESP)"
    named = reasons(switched_on(lso=False))
    assert named["large-send-ipv4"] == "keyword *LsoV1IPv4 is 0 (DISABLED)"
    assert named["large-send-ipv6"] == "keyword *LsoV2IPv6 is 0 (DISABLED)"
    assert named["ipsec-v2-lso"] == "keyword *LsoV1IPv4 is 0 (DISABLED)"


def test_reason_tells_what_a_restart_would_bring_back() -> None:
    configuration = switched_on()
    configuration.set_parameters(OffloadParameters(ipsec_v2=IpsecParameter.AH_ENABLED, flags=1))
    assert reasons(configuration)["ipsec-v2-esp"] == (
        "keyword *IPsecOffloadV2 is 1 (AH) until the adapter restarts"
    )


def test_reason_names_the_encapsulation() -> None:
    configuration = Configuration(ALL, Keywords())
    assert set(reasons(configuration).values()) == {"no OID_OFFLOAD_ENCAPSULATION yet (R55)"}
    configuration.set_encapsulation(True, False)
    named = reasons(configuration)
    assert named["ipsec-v2-ipv6"] == "OID_OFFLOAD_ENCAPSULATION has switched it off for IPv6 (R57)"
    assert named["ipsec-v2"] == named["large-send-ipv4"] == ""
    configuration.set_encapsulation(False, None)
    assert reasons(configuration)["ipsec-v2"] == "OID_OFFLOAD_ENCAPSULATION has switched it off (R57)"


@pytest.mark.rule(18)
def test_reason_names_the_load_balancing_master() -> None:
    configuration = switched_on()
    configuration.set_load_balanced(True, "bond0")
    named = reasons(configuration)
    assert named["ipsec-v2-esp"] == named["ipsec-v1"] == "below bond0: load balancing (R18)"
    assert named["checksum-ipv4"] == ""


def test_reason_names_the_legacy_list() -> None:
    configuration = switched_on()
    configuration.set_tasks(replace(OffloadCapabilitiesV1(), esp_des=False))
    named = reasons(configuration)
    assert named["ipsec-v1-esp-des"] == "not among the tasks of OID_TCP_TASK_OFFLOAD"
    assert named["large-send-ipv4"] == "not among the tasks of OID_TCP_TASK_OFFLOAD"
    assert named["ipsec-v1-esp-3des"] == ""


@pytest.mark.rule(47)
def test_what_waits_for_the_encapsulation_is_on_and_says_so() -> None:
    configuration = switched_on(v2=IpsecKeyword.AH)
    configuration.set_parameters(OffloadParameters(ipsec_v2=IpsecParameter.AH_AND_ESP_ENABLED))
    states = {state.name: state for state in configuration.features()}
    assert states["ipsec-v2-esp"].enabled
    assert states["ipsec-v2-esp"].reason == "receive waits for OID_OFFLOAD_ENCAPSULATION (R47)"
    assert states["ipsec-v2-ah"].reason == ""
    assert (configuration.current.ipsec_v2.esp, configuration.receiving.ipsec_v2.esp) == (True, False)
    configuration.set_encapsulation(None, None)
    assert configuration.receiving == configuration.current == ALL


def test_what_was_switched_off_and_on_again_waits_too() -> None:
    configuration = switched_on()
    for value in (IpsecParameter.DISABLED, IpsecParameter.AH_AND_ESP_ENABLED):
        configuration.set_parameters(OffloadParameters(ipsec_v1=value))
    assert configuration.current == ALL
    assert configuration.receiving == replace(ALL, ipsec_v1=NO_IPSEC_V1)


def test_offered_needs_no_encapsulation_and_no_absence_of_a_bond() -> None:
    configuration = Configuration(ALL, Keywords(v2=IpsecKeyword.ESP))
    expected = configuration.offered
    assert (expected.ipsec_v2.ah, expected.ipsec_v2.esp) == (False, True)
    configuration.set_load_balanced(True)
    assert configuration.offered == expected


# --- keywords ----------------------------------------------------------------------------------------------


def test_one_lso_keyword_alone_keeps_the_others() -> None:
    configuration = switched_on()
    configuration.set_parameters(OffloadParameters(lso_v2_ipv6=SwitchParameter.DISABLED))
    assert not configuration.keywords.lso
    configuration.set_keywords(replace(configuration.keywords, v2=IpsecKeyword.ESP))
    configuration.restart()
    configuration.set_encapsulation(True, True)
    assert (configuration.current.large_send.ipv4, configuration.current.large_send.ipv6) == (True, False)
    assert configuration.current.ipsec_v2.lso_supported
    configuration.set_keywords(replace(configuration.keywords, lso=True))
    configuration.restart()
    configuration.set_encapsulation(True, True)
    assert configuration.current.large_send == ALL.large_send


@pytest.mark.parametrize(
    "parameters",
    [
        OffloadParameters(ipsec_v2=9),  # type: ignore[arg-type]
        OffloadParameters(ipsec_v1=-1),  # type: ignore[arg-type]
        OffloadParameters(lso_v1=3),  # type: ignore[arg-type]
        OffloadParameters(udp_ipv4_checksum=5),
    ],
)
@pytest.mark.rule(43)
def test_typed_parameter_out_of_range_is_refused(parameters: OffloadParameters) -> None:
    configuration = switched_on()
    with pytest.raises(OidError) as caught:
        configuration.set_parameters(parameters)
    assert caught.value.status is NdisStatus.INVALID_DATA
    assert configuration.current == ALL
