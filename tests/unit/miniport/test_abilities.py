from dataclasses import replace
from typing import Any

import pytest
from nic_frames import AH_SHA256, ESP, GCM, UDP, V4, V6, Nic, esp, ip, ipv4

from vnic.ipsec.association import Mode
from vnic.miniport.abilities import NOTHING, Abilities, abilities
from vnic.ndis.capabilities import (
    NO_IPSEC,
    NO_IPSEC_V1,
    NO_TASK_OFFLOAD,
    OffloadCapabilities,
    OffloadCapabilitiesV1,
    TaskOffload,
)
from vnic.ndis.oid import OidVersion
from vnic.packet.ip import parse_ip

V1, V2 = OidVersion.V1, OidVersion.V2
BOTH = frozenset(Mode)
ONLY_TRANSPORT, ONLY_TUNNEL = frozenset({Mode.TRANSPORT}), frozenset({Mode.TUNNEL})
BODY = bytes(40)
DES3 = esp("3des-cbc", "hmac-sha1-96")


def v2(*, ipv4: bool = True, **members: Any) -> Abilities:
    return abilities(TaskOffload(OffloadCapabilities(**members)), send=True, ipv4=ipv4)[V2]


def v1(*, send: bool = True, **members: Any) -> Abilities:
    return abilities(TaskOffload(NO_IPSEC, OffloadCapabilitiesV1(**members)), send=send)[V1]


@pytest.mark.rule(172)
def test_nothing_is_done_before_something_is_switched_on() -> None:
    for send in (True, False):
        assert abilities(NO_TASK_OFFLOAD, send=send) == {V1: NOTHING, V2: NOTHING}
    assert not NOTHING.any
    assert not NOTHING.everything


@pytest.mark.rule(21)
def test_generations_do_not_answer_for_each_other() -> None:
    without_v1 = abilities(TaskOffload(ipsec_v1=NO_IPSEC_V1), send=True)
    without_v2 = abilities(TaskOffload(ipsec_v2=NO_IPSEC), send=True)
    assert (without_v1[V1], without_v1[V2].any) == (NOTHING, True)
    assert (without_v2[V1].any, without_v2[V2]) == (True, NOTHING)
    assert not without_v2[V1].ipv6


@pytest.mark.parametrize(
    ("members", "ah", "esp"),
    [
        ({}, BOTH, BOTH),
        ({"ah": False}, frozenset(), BOTH),
        ({"esp": False}, BOTH, frozenset()),
        ({"transport": False}, ONLY_TUNNEL, ONLY_TUNNEL),
        ({"tunnel": False}, ONLY_TRANSPORT, ONLY_TRANSPORT),
    ],
)
def test_v2_names_protocols_and_modes_apart(
    members: dict[str, bool], ah: frozenset[Mode], esp: frozenset[Mode]
) -> None:
    able = v2(**members)
    assert (able.ah, able.esp) == (ah, esp)
    assert able.everything is (not members)
    assert able.plain(4) is able.plain(6) is (esp == BOTH)


@pytest.mark.rule(24)
@pytest.mark.parametrize(
    ("members", "send", "ah", "esp"),
    [
        ({}, True, BOTH, BOTH),
        ({"ah_send": False}, True, frozenset(), BOTH),
        ({"ah_send": False}, False, BOTH, BOTH),
        ({"esp_receive": False}, False, BOTH, frozenset()),
        ({"esp_receive": False}, True, BOTH, BOTH),
        ({"ah_transport": False, "esp_tunnel": False}, True, ONLY_TUNNEL, ONLY_TRANSPORT),
    ],
)
def test_v1_names_modes_by_protocol_and_direction(
    members: dict[str, bool], send: bool, ah: frozenset[Mode], esp: frozenset[Mode]
) -> None:
    able = v1(send=send, **members)
    assert (able.ah, able.esp) == (ah, esp)
    assert not able.lso
    assert not able.everything


@pytest.mark.rule(175)
def test_headers_beyond_what_is_on_are_not_taken() -> None:
    plain = parse_ip(ip(V4, UDP, BODY), 0)
    options = parse_ip(ipv4(*V4, UDP, BODY, options=b"\x01" * 4), 0)
    plain6 = parse_ip(ip(V6, ESP, BODY), 0)
    extension = parse_ip(ip(V6, 0, b"\x11\x00\x01\x04\0\0\0\0" + BODY), 0)
    cases = (
        (v2(), (True, True, True, True)),
        (v2(ipv4_options=False), (True, False, True, True)),
        (v2(ipv6_non_ipsec_extension_headers=False), (True, True, True, False)),
        (v2(ipv6_supported=False), (True, True, False, False)),
        (v2(ipv4=False), (False, False, True, True)),
        (v1(), (True, True, False, False)),
        (v1(ipv4_options=False), (True, False, False, False)),
    )
    for able, taken in cases:
        assert tuple(map(able.takes, (plain, options, plain6, extension))) == taken
        assert not able.everything or all(taken)


def test_bundle_is_covered_when_its_protocols_mode_and_family_are_on() -> None:
    nic = Nic()
    made = {
        "esp": nic.add(GCM),
        "ah": nic.add(AH_SHA256),
        "both": nic.add((replace(GCM, label=1), AH_SHA256)),
        "tunnel": nic.add(replace(GCM, label=2), portion=Mode.TUNNEL),
        "either": nic.add(replace(GCM, label=3), portion=None),
        "v6": nic.add(replace(GCM, label=4), V6),
        "in v6": nic.add(GCM, V6, inbound=True),
        "udp": nic.add(replace(GCM, label=5), udp_esp=1),
    }
    bundles = {name: nic.adapter._table.get(handle) for name, handle in made.items()}

    def uncovered(able: Abilities) -> set[str]:
        return {name for name, bundle in bundles.items() if bundle is not None and not able.covers(bundle)}

    assert uncovered(v2()) == set()
    assert uncovered(v2(ah=False)) == {"ah", "both"}
    assert uncovered(v2(ah_esp_combined=False)) == {"both"}
    assert uncovered(v2(tunnel=False)) == {"tunnel"}
    assert uncovered(v2(transport=False)) == {"esp", "ah", "both", "v6", "in v6", "udp"}
    assert uncovered(v2(esp=False)) == set(made) - {"ah"}
    assert uncovered(v2(ipv6_supported=False)) == {"v6", "in v6"}
    assert uncovered(v2(ipv4=False)) == set(made) - {"v6", "in v6"}
    assert uncovered(v2(udp_esp=0xE)) == {"udp"}
    assert uncovered(NOTHING) == set(made)


@pytest.mark.parametrize(
    "members",
    [
        {"ipv4_options": False},
        {"ipv6_supported": False},
        {"ipv6_non_ipsec_extension_headers": False},
        {"ah_esp_combined": False},
        {"transport_tunnel_combined": False},
        {"udp_esp": 7},
        {"ah": False},
    ],
)
def test_nic_that_lacks_anything_does_not_do_everything(members: dict[str, Any]) -> None:
    assert v2().everything
    assert v2(lso_supported=False, extended_sequence_numbers=False).everything
    assert not v2(**members).everything
    assert not v2(ipv4=False).everything
