"""The SAD between a NIC that refuses, breaks and is full, and software IPsec."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP, UDP
from transport_lab import (
    AH,
    ANY,
    ESP,
    IN,
    OUT,
    TRANSPORT,
    Card,
    association,
    policy,
    selector,
    template,
)

from vnic.errors import OidError
from vnic.ipsec.association import SecurityAssociation
from vnic.ndis.oid import AddSa, UpdateSa
from vnic.ndis.status import NdisStatus
from vnic.transport import sad

V4 = {"src": "10.1.0.1", "dst": "10.2.0.1"}
UDP4 = IP(**V4) / UDP(sport=7, dport=8) / b"SECRETSECRET"
TCP4 = IP(**V4) / TCP(sport=7, dport=8) / b"SECRETSECRET"
ESP_SA = association(OUT, TRANSPORT, *V4.values(), spi=0x1000)
AH_SA = association(OUT, TRANSPORT, *V4.values(), spi=0x2000, protocol=AH)
TAKEN = NdisStatus.SUCCESS


def card() -> Card:
    return Card(software=True)


def held(one: Card) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """SPIs of the bundles of NIC and software."""
    assert one.software is not None
    return one.nic.spis(), one.software.spis()


def passes(one: Card, count: int = 1) -> bool:
    wire = one.sent(*[UDP4] * count)
    assert not any(b"SECRET" in frame for frame in wire)
    return len(wire) == count


def test_software_holds_an_sa_of_the_nic_only_once_it_is_needed() -> None:
    one = card()
    handle = one.sad.add(ESP_SA, 0.0)
    one.spd.add(policy(OUT, ANY, template(ESP, TRANSPORT)))
    assert passes(one)
    assert held(one) == ([(0x1000,)], [])
    one.nic.off.add(handle)
    one.nic.configuration_generation += 1
    assert passes(one)
    assert held(one) == ([(0x1000,)], [(0x1000,)])
    one.sad.delete(ESP_SA.id)
    assert held(one) == ([], [])


@pytest.mark.parametrize("status", [NdisStatus.NOT_SUPPORTED, NdisStatus.RESOURCES])
def test_what_the_nic_cannot_take_is_in_software_at_once(status: NdisStatus) -> None:
    one = card()
    one.nic.refusals = [status]
    assert one.sad.add(ESP_SA, 0.0) == 0
    refusal = one.sad.table[ESP_SA.id].refusal
    assert refusal is not None
    assert refusal[0] is status
    assert held(one) == ([], [(0x1000,)])


@pytest.mark.parametrize(
    "status", [NdisStatus.INVALID_DATA, NdisStatus.INVALID_PARAMETER, NdisStatus.RESET_IN_PROGRESS]
)
def test_other_refusals_hold_for_software_too(status: NdisStatus) -> None:
    one = card()
    one.nic.refusals = [status]
    with pytest.raises(OidError) as refused:
        one.sad.add(ESP_SA, 0.0)
    assert refused.value.status is status
    assert held(one) == ([], [])
    assert list(one.sad) == []


def test_what_neither_takes_is_refused_and_nothing_stays() -> None:
    one = card()
    assert one.software is not None
    one.nic.refusals = [NdisStatus.NOT_SUPPORTED]
    one.software.refusals = [NdisStatus.INVALID_PARAMETER]
    with pytest.raises(OidError) as refused:
        one.sad.add(ESP_SA, 0.0)
    assert refused.value.status is NdisStatus.INVALID_PARAMETER
    assert list(one.sad) == []


def test_replacement_the_nic_cannot_take_goes_to_software() -> None:
    one = card()
    one.spd.add(policy(OUT, ANY, template(ESP, TRANSPORT)))
    old = one.sad.add(ESP_SA, 0.0)
    assert passes(one, 3)
    one.nic.refusals = [NdisStatus.NOT_SUPPORTED]
    assert one.sad.add(ESP_SA, 1.0, replace_existing=True) == 0
    assert held(one) == ([], [(0x1000,)])
    assert passes(one)
    assert one.sad.table[ESP_SA.id].sequence_number == 4
    assert one.sad.find_handle(old) == ESP_SA.id
    assert one.sad.add(ESP_SA, 2.0, replace_existing=True) != 0
    assert held(one) == ([(0x1000,)], [])
    assert passes(one)


def test_sa_that_a_broken_nic_does_not_take_back_goes_on_in_software() -> None:
    one = card()
    one.spd.add(policy(OUT, ANY, template(ESP, TRANSPORT)))
    one.sad.add(ESP_SA, 0.0)
    one.nic.refusals = [NdisStatus.FAILURE] * 3
    with pytest.raises(OidError):
        one.sad.add(association(OUT, TRANSPORT, *V4.values(), seed=1), 0.0, replace_existing=True)
    assert one.nic.bundles == {}
    assert passes(one)
    assert held(one) == ([], [(0x1000,)])
    one.nic.configuration_generation += 1
    assert passes(one)
    assert one.nic.spis() == [(0x1000,)]


def test_bundle_the_nic_refuses_is_made_in_software_and_both_stay_with_the_nic() -> None:
    one = card()
    one.spd.add(policy(OUT, ANY, template(ESP, TRANSPORT), template(AH, TRANSPORT)))
    for sa in (ESP_SA, AH_SA):
        one.sad.add(sa, 0.0)
    one.nic.refusals = [NdisStatus.NOT_SUPPORTED]
    assert passes(one, 2)
    assert held(one) == ([(0x1000,), (0x2000,)], [(0x1000, 0x2000)])
    one.sad.delete(AH_SA.id)
    assert held(one) == ([(0x1000,)], [])


def test_sa_wanted_alone_and_in_a_bundle_changes_over_in_software_and_loses_nothing() -> None:
    one = card()
    one.nic.refusals = [NdisStatus.NOT_SUPPORTED] * 2
    for sa in (ESP_SA, AH_SA):
        one.sad.add(sa, 0.0)
    one.spd.add(policy(OUT, selector(protocol=17), template(ESP, TRANSPORT)))
    one.spd.add(policy(OUT, ANY, template(ESP, TRANSPORT), template(AH, TRANSPORT), priority=1))
    for _ in range(3):
        assert len(one.sent(UDP4, TCP4, UDP4, TCP4)) == 4
    assert one.drops == {}
    assert one.sad.table[ESP_SA.id].sequence_number == 12


def test_frame_that_software_does_not_seal_ends_here_and_is_counted() -> None:
    one = card()
    one.nic.refusals = [NdisStatus.NOT_SUPPORTED]
    one.sad.add(ESP_SA, 0.0)
    one.spd.add(policy(OUT, ANY, template(ESP, TRANSPORT)))
    assert one.software is not None
    assert passes(one)
    one.software.bundles.clear()
    assert one.sent(UDP4) == []
    assert {reason.value: count for reason, count in one.drops.items()} == {"out_software": 1}


@pytest.mark.parametrize("sa", [ESP_SA, AH_SA])
def test_update_reaches_both_who_hold_the_sa(sa: SecurityAssociation) -> None:
    one = card()
    sa = association(OUT, TRANSPORT, *V4.values(), protocol=sa.protocol, esn=True)
    handle = one.sad.add(sa, 0.0)
    one.nic.off.add(handle)
    one.spd.add(policy(OUT, ANY, template(sa.protocol, TRANSPORT)))
    assert len(one.sent(UDP4)) == 1
    assert one.software is not None
    one.sad.update(sa.id, 5)
    for nic in (one.nic, one.software):
        last = nic.requests[-1]
        assert isinstance(last, UpdateSa)
        assert (last.handle in nic.bundles, last.sequence_number_high_order) == (True, 5)


def test_inbound_sa_in_software_has_the_window_of_the_card() -> None:
    one = card()
    one.nic.refusals = [NdisStatus.RESOURCES]
    sa = association(IN, TRANSPORT, V4["dst"], V4["src"], esn=True, sequence_number=(7 << 32) + 1)
    one.sad.add(sa, 0.0)
    assert one.software is not None
    (request,) = one.software.requests
    assert isinstance(request, AddSa)
    assert request.inbound
    assert request.elements[0].sequence_number_high_order == 7


def test_nic_is_offered_what_it_refused_a_few_at_a_time() -> None:
    one = card()
    one.nic.refusals = [NdisStatus.NOT_SUPPORTED] * 200
    for spi in range(200):
        one.sad.add(association(spi=0x1000 + spi, seed=spi), 0.0)
    one.sad.delete(association(spi=0x1005).id)
    assert one.nic.bundles == {}
    one.framed(UDP4)
    assert one.nic.bundles == {}
    assert len(one.sad._refused) == 199
    one.nic.configuration_generation += 1
    one.framed(UDP4)
    assert len(one.nic.bundles) == 64
    for _ in range(5):
        one.framed(UDP4)
    assert len(one.nic.bundles) == 199
    assert all(state.handle and state.refusal is None for state in one.sad)


def test_room_in_the_nic_goes_to_the_sa_that_waits_longest() -> None:
    one = Card(capacity=2, software=True)
    sas = [association(spi=0x1000 + index, seed=index) for index in range(4)]
    for sa in sas:
        one.sad.add(sa, 0.0)
    assert held(one) == ([(0x1000,), (0x1001,)], [(0x1002,), (0x1003,)])
    one.sad.delete(sas[0].id)
    one.framed(UDP4)
    assert one.nic.spis() == [(0x1001,), (0x1002,)]
    one.sad.delete(sas[3].id)
    one.sad.delete(sas[1].id)
    for _ in range(3):
        one.framed(UDP4)
    assert held(one) == ([(0x1002,)], [(0x1002,)])
    assert one.sad._refused == {}


def test_after_a_restart_with_very_many_sas_frames_wait_for_the_first_of_them_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sad, "_AT_ONCE", 3)
    one = card()
    for spi in range(0x1000, 0x1000 + 100):
        one.sad.add(association(OUT, TRANSPORT, *V4.values(), spi=spi), 0.0)
    one.spd.add(policy(OUT, ANY, template(ESP, TRANSPORT)))
    one.nic.bundles.clear()
    one.sad.reoffload()
    assert len(one.nic.spis()) == 3
    assert passes(one)
    assert passes(one)
    assert len(one.nic.spis()) == 100


def test_software_takes_what_the_nic_refuses_only_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sad, "MAX_SAS", 3)
    one = card()
    one.nic.refusals = [NdisStatus.RESOURCES] * 3
    for spi in range(0x1000, 0x1003):
        assert not one.sad.add(association(OUT, TRANSPORT, *V4.values(), spi=spi), 0.0)
    with pytest.raises(OidError) as caught:
        one.sad.add(association(OUT, TRANSPORT, *V4.values(), spi=0x1003), 0.0)
    assert (caught.value.status, caught.value.field) == (NdisStatus.RESOURCES, "sa_count")
    assert len(one.sad.table) == 3
