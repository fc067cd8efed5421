"""SAs to requests of the NIC and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transport_lab import AH, ESP, IN, OUT, TUNNEL, address, association

from vnic.ipsec.association import KeyMaterial, SecurityAssociation
from vnic.ipsec.policy import Prefix, Selector
from vnic.ndis.oid import AddSa, AlgorithmInfo, Operation, SaElement, TrafficFilter
from vnic.transport.requests import associations_of, request_for
from vnic.transport.state import SaState

SAS = [
    association(),
    association(IN, icv_length=8, esn=True, sequence_number=(3 << 32) + 17),
    association(encryption="aes-cbc-256", integrity="hmac-sha256-128", icv_length=12),
    association(encryption="des-cbc", integrity="hmac-md5-96", spi=0x11),
    association(encryption="null", integrity="aes-gmac-192"),
    association(IN, protocol=AH, integrity="hmac-sha1-96"),
    association(source="2001:db8::1", destination="2001:db8::2"),
]


@pytest.mark.parametrize("sa", SAS, ids=range(len(SAS)))
def test_request_and_back_keeps_all_that_a_request_can_say(sa: SecurityAssociation) -> None:
    sa = sa.checked()
    (back,) = associations_of(request_for(SaState(sa, 0.0)))
    known = replace(sa, sequence_number=sa.sequence_number >> 32 << 32)
    assert back == known
    assert back.weak == sa.weak
    assert associations_of(replace(request_for(SaState(sa, 0.0)), portion=None))[0].mode is None


def test_bundle_is_esp_then_ah_and_esp_may_lack_integrity() -> None:
    esp = SaElement(Operation.ESP, 0x1000, encryption=AlgorithmInfo(0x040, KeyMaterial(bytes(16))))
    ah = SaElement(Operation.AH, 0x2000, authentication=AlgorithmInfo(0x002, KeyMaterial(bytes(20))))
    made = associations_of(AddSa(False, address("192.0.2.1"), address("192.0.2.2"), (esp, ah)))
    assert [sa.protocol for sa in made] == [ESP, AH]
    assert (made[0].authenticates, made[0].icv_length, made[0].iv_length) == (False, 0, 16)
    assert (made[1].authenticates, made[1].icv_length, made[1].encryption) == (True, 12, None)
    states = [SaState(sa, 0.0) for sa in made]
    assert request_for(*states).elements == (esp, ah)


def test_esp_without_an_encryption_algorithm_is_null_encryption() -> None:
    esp = SaElement(Operation.ESP, 0x1000, AlgorithmInfo(0x004, KeyMaterial(bytes(32))))
    (sa,) = associations_of(AddSa(True, address("192.0.2.1"), address("192.0.2.2"), (esp,)))
    assert sa.encryption is not None
    assert (sa.encryption.name, sa.icv_length) == ("null", 16)


@pytest.mark.rule(125, 126, 127)
@pytest.mark.parametrize(
    ("members", "selector"),
    [
        ({}, None),
        (
            {"source": (10, 1, 0, 9), "source_mask": (255, 255, 0, 0)},
            Selector(Prefix(address("10.1.0.0"), 16), Prefix(address("0.0.0.0"), 0)),
        ),
        (
            {"protocol": 17, "destination_port": 53},
            Selector(Prefix(address("0.0.0.0"), 0), Prefix(address("0.0.0.0"), 0), 17, None, 53),
        ),
        ({"destination": (10, 0, 3, 0), "destination_mask": (255, 0, 255, 0)}, None),
    ],
    ids=["everything", "prefix", "port", "no prefix"],
)
def test_filter_of_a_v1_request_becomes_a_selector_where_it_can(
    members: dict[str, tuple[int, ...] | int], selector: Selector | None
) -> None:
    made = {name: bytes(value) if isinstance(value, tuple) else value for name, value in members.items()}
    chosen = replace(TrafficFilter(bytes(4), bytes(4), bytes(4), bytes(4)), **made)  # type: ignore[arg-type]
    request = replace(request_for(SaState(association(OUT).checked(), 0.0)), filter=chosen, portion=TUNNEL)
    assert associations_of(request)[0].selector == selector
