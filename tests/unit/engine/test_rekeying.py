"""Rekeying: successors in one step, make before break, for every kind of SA, or nothing at all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Packet
from transport_lab import (
    AH,
    ANY,
    ESP,
    FAR,
    IN,
    NEAR,
    OUT,
    TRANSPORT,
    TUNNEL,
    association,
    frame_of,
    policy,
    template,
)

from tests.engines import BOTH_ENGINES, make_card
from vnic.engine.contract import Added, Offload
from vnic.engine.reference import ReferenceEngine
from vnic.errors import OidError, RequestError
from vnic.ipsec.association import Mode, SaId, SecurityAssociation
from vnic.ipsec.counters import EventKind
from vnic.ipsec.lifetime import MAX_GRACE_S, Lifetime
from vnic.ipsec.policy import Template
from vnic.ipsec.renewal import Renewal
from vnic.ndis.capabilities import OffloadCapabilities
from vnic.ndis.netbuffer import NetBuffer
from vnic.ndis.status import NdisStatus
from vnic.transport.requests import request_for
from vnic.transport.state import SaState

pytestmark = BOTH_ENGINES

V4 = {"src": "10.1.0.1", "dst": "10.2.0.1"}
UDP4 = IP(**V4) / UDP(sport=7, dport=8) / b"SECRETSECRETSECRET"
NEW = 0x10000
"""What the SPI of a successor is higher by."""

U_ESP, U_AH = template(ESP, TUNNEL, NEAR, FAR), template(AH, TUNNEL, NEAR, FAR)
T_ESP, T_AH = template(ESP, TRANSPORT), template(AH, TRANSPORT)
ESP_U = association(OUT, TUNNEL, NEAR, FAR, spi=0x1000)
CBC_U = association(
    OUT, TUNNEL, NEAR, FAR, spi=0x1001, encryption="aes-cbc-128", integrity="hmac-sha1-96", esn=True
)
AH_U = association(OUT, TUNNEL, NEAR, FAR, spi=0x1002, protocol=AH)
ESP_T = association(OUT, TRANSPORT, *V4.values(), spi=0x1003)
AH_T = association(OUT, TRANSPORT, *V4.values(), spi=0x1004, protocol=AH)
AH_OUTSIDE = association(OUT, TRANSPORT, NEAR, FAR, spi=0x1005, protocol=AH)

KINDS: dict[str, tuple[tuple[Template, ...], list[SecurityAssociation]]] = {
    "esp tunnel": ((U_ESP,), [ESP_U]),
    "cbc tunnel esn": ((U_ESP,), [CBC_U]),
    "ah tunnel": ((U_AH,), [AH_U]),
    "esp transport": ((T_ESP,), [ESP_T]),
    "ah transport": ((T_AH,), [AH_T]),
    "ah over esp transport": ((T_ESP, T_AH), [ESP_T, AH_T]),
    "transport in tunnel": ((T_ESP, U_ESP), [ESP_T, ESP_U]),
}

Pair = tuple[ReferenceEngine, ReferenceEngine]


def engine(seed: int = 0, **options: object) -> ReferenceEngine:
    return make_card(random.Random(seed).randbytes, **options)  # type: ignore[arg-type]


def pair(templates: Sequence[Template], sas: Sequence[SecurityAssociation], **options: object) -> Pair:
    left, right = engine(1, **options), engine(2, **options)
    left.add_policy(policy(OUT, ANY, *templates))
    right.add_policy(policy(IN, ANY, *templates))
    for sa in sas:
        left.add_sa(sa, 0.0)
        right.add_sa(replace(sa, direction=IN), 0.0)
    return left, right


def renewal(sa: SecurityAssociation, **members: object) -> Renewal:
    """The successor with an SPI that is NEW higher, and keys of its own."""
    source, destination = str(ip_address(sa.source)), str(ip_address(sa.destination))
    assert sa.encryption or sa.integrity
    new = association(
        sa.direction,
        sa.mode or Mode.TUNNEL,
        source,
        destination,
        protocol=sa.protocol,
        spi=sa.spi + NEW,
        encryption=sa.encryption.name if sa.encryption else None,
        integrity=sa.integrity.name if sa.integrity else None,
    )
    made = Renewal(
        sa.id, new.spi, new.encryption, new.encryption_key, new.integrity, new.integrity_key, sa.icv_length
    )
    return replace(made, **members)  # type: ignore[arg-type]


def renew(
    card: ReferenceEngine, *sas: SecurityAssociation, grace: int | None = 5, now: float = 1.0
) -> list[Added]:
    return card.rekey([renewal(sa) for sa in sas], grace, now)


def send(card: ReferenceEngine, *packets: Packet, now: float = 1.0) -> list[bytearray]:
    return [one.frame for one in card.send([NetBuffer(frame_of(packet)) for packet in packets], now).wire]


def receive(card: ReferenceEngine, *frames: bytearray, now: float = 1.0) -> int:
    return len(card.receive([NetBuffer(bytearray(frame)) for frame in frames], now).host)


def spis(card: ReferenceEngine) -> list[int]:
    return [report.sa.spi for report in card.sas()]


def everything(card: ReferenceEngine) -> list[object]:
    return [*card.sas(), card.offloaded_count, card.counters]


@pytest.mark.parametrize("options", [{}, {"capabilities": OffloadCapabilities(esp=False, ah=False)}])
@pytest.mark.parametrize("kind", KINDS)
def test_not_a_packet_is_lost_when_both_ends_are_rekeyed(kind: str, options: dict[str, object]) -> None:
    templates, sas = KINDS[kind]
    left, right = pair(templates, sas, **options)
    under_way = send(left, *[UDP4] * 3)
    renew(right, *[replace(sa, direction=IN) for sa in sas])
    under_way += send(left, UDP4)
    renew(left, *sas)
    after = send(left, *[UDP4] * 3)
    # Old and new packets pass each other on the wire.
    assert receive(right, *after[:1], *under_way, *after[1:]) == 7
    assert spis(left) == [sa.spi + NEW for sa in sas]
    assert not left.counters.drops
    assert not right.counters.drops
    offload = Offload.SOFTWARE if options else Offload.NIC
    assert {report.offload for report in (*left.sas(), *right.sas())} == {offload}


def test_switch_is_at_the_request_and_at_no_other_packet() -> None:
    left, _ = pair((U_ESP,), [ESP_U])
    before = send(left, UDP4)
    renew(left, ESP_U)
    after = send(left, UDP4)
    assert [int.from_bytes(frame[34:38], "big") for frame in (*before, *after)] == [0x1000, 0x1000 + NEW]
    assert int.from_bytes(after[0][38:42], "big") == 1


def test_inbound_half_switches_nothing_and_outbound_half_switches_all() -> None:
    left, right = pair((U_ESP,), [ESP_U])
    inbound = replace(ESP_U, direction=IN)
    (added,) = renew(right, inbound, grace=None)
    assert added.handle
    old, new = right.sas()
    assert (old.replaced, new.replaced) == (True, False)
    assert receive(right, *send(left, UDP4)) == 1
    renew(left, ESP_U, grace=None)
    assert receive(right, *send(left, UDP4)) == 1
    right.keep_time(100_000.0)
    assert spis(right) == [0x1000, 0x1000 + NEW]
    right.delete_sa(ESP_U.id)
    assert receive(right, *send(left, UDP4)) == 1


def test_old_inbound_sa_goes_when_its_grace_is_over() -> None:
    left, right = pair((U_ESP,), [ESP_U])
    late = send(left, UDP4, UDP4)
    renew(right, replace(ESP_U, direction=IN), grace=5, now=10.0)
    assert right.deadline == 15.0
    assert receive(right, late[0], now=14.9) == 1
    assert receive(right, late[1], now=15.0) == 0
    right.keep_time(15.0)
    assert spis(right) == [0x1000 + NEW]
    (event,) = [one for one in right.take_events() if one.kind is EventKind.SA_EXPIRED]
    assert (event.sa, event.limit) == (ESP_U.id, "grace")


def test_successor_has_all_but_keys_and_numbers_of_the_old_sa() -> None:
    old = replace(
        CBC_U,
        reqid=7,
        replay_window=2048,
        no_ecn=True,
        decap_dscp=True,
        lifetime=Lifetime(time_hard=100),
        sequence_number=77,
    )
    card = engine()
    card.add_sa(old, 0.0)
    card.rekey([renewal(old)], None, 50.0)
    (new,) = card.sas()
    same = {"spi": old.spi, "encryption_key": old.encryption_key, "integrity_key": old.integrity_key}
    assert replace(new.sa, **same, sequence_number=77) == replace(old, icv_length=12)  # type: ignore[arg-type]
    assert (new.sequence_number, new.add_time) == (0, 50.0)
    card.keep_time(149.0)
    assert card.deadline == 150.0
    card.rekey([renewal(new.sa, lifetime=Lifetime(packet_hard=3))], None, 60.0)
    assert card.sas()[0].sa.lifetime == Lifetime(packet_hard=3)


def test_algorithms_may_change_with_the_keys() -> None:
    left, right = pair((U_ESP,), [ESP_U])
    cbc = replace(renewal(CBC_U), old=ESP_U.id)
    right.rekey([cbc], 1, 1.0)
    left.rekey([cbc], 1, 1.0)
    assert receive(right, *send(left, UDP4)) == 1
    assert left.sas()[0].sa.encryption is CBC_U.encryption


@pytest.mark.rule(96, 98)
def test_bundle_that_came_by_an_oid_is_rekeyed_by_its_two_names() -> None:
    left, right = pair((T_ESP, T_AH), [])
    handles = []
    for card, direction in ((left, OUT), (right, IN)):
        states = [SaState(replace(sa, direction=direction).checked(), 0.0) for sa in (ESP_T, AH_T)]
        handles.append(card._sad.add_sa(request_for(*states)))
    assert receive(right, *send(left, UDP4)) == 1
    assert left.find_handle(handles[0]) == ESP_T.id
    renew(right, *[replace(sa, direction=IN) for sa in (ESP_T, AH_T)])
    renew(left, ESP_T, AH_T)
    assert receive(right, *send(left, UDP4, UDP4)) == 2
    assert left.offloaded_count == 1
    assert left.find_handle(handles[0]) is None


def test_one_sa_of_a_bundle_can_be_rekeyed_alone() -> None:
    left, right = pair((T_ESP, T_AH), [ESP_T, AH_T])
    assert receive(right, *send(left, UDP4)) == 1
    for sa in (ESP_T, AH_T):
        renew(right, replace(sa, direction=IN))
        renew(left, sa)
        assert receive(right, *send(left, UDP4)) == 1
    assert not left.counters.drops
    assert not right.counters.drops


# refused whole


@pytest.mark.rule(92)
def test_full_nic_without_software_refuses_because_both_must_fit() -> None:
    left, right = pair(
        (U_ESP,), [ESP_U], capabilities=OffloadCapabilities(sa_offload_capacity=2), software=False
    )
    left.add_sa(association(IN, TUNNEL, FAR, NEAR, spi=0x2000), 0.0)
    before = everything(left)
    with pytest.raises(OidError, match="side by side") as refused:
        renew(left, association(IN, TUNNEL, FAR, NEAR, spi=0x2000), ESP_U)
    assert refused.value.status is NdisStatus.RESOURCES
    assert everything(left) == before
    assert left.deadline == float("inf")
    assert receive(right, *send(left, UDP4)) == 1


def test_room_for_the_first_but_not_the_second_leaves_neither() -> None:
    card = engine(capabilities=OffloadCapabilities(sa_offload_capacity=3), software=False)
    inbound = association(IN, TUNNEL, FAR, NEAR, spi=0x2000)
    for sa in (ESP_U, inbound):
        card.add_sa(sa, 0.0)
    with pytest.raises(OidError):
        renew(card, ESP_U, inbound)
    assert spis(card) == [0x1000, 0x2000]
    assert card.offloaded_count == 2
    assert not any(report.replaced for report in card.sas())


def test_full_nic_with_software_is_rekeyed_and_takes_the_new_sa_when_the_old_has_gone() -> None:
    options = {"capabilities": OffloadCapabilities(sa_offload_capacity=1)}
    left, right = pair((U_ESP,), [ESP_U], **options)
    (inbound,) = renew(right, replace(ESP_U, direction=IN), grace=1)
    (outbound,) = renew(left, ESP_U)
    assert (inbound.offload, outbound.offload) == (Offload.SOFTWARE, Offload.SOFTWARE)
    assert outbound.status is NdisStatus.RESOURCES
    assert receive(right, *send(left, UDP4)) == 1
    assert left.sas()[0].offload is Offload.NIC
    right.keep_time(5.0)
    assert receive(right, *send(left, UDP4), now=5.0) == 1
    right.send([], 5.0)
    assert right.sas()[0].offload is Offload.NIC


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"spi": 0}, "spi"),
        ({"encryption_key": ESP_U.encryption_key}, "enc"),
        ({"encryption": None}, "enc"),
        ({"icv_length": 5}, "icv-length"),
        ({"lifetime": Lifetime(time_hard=-1)}, "limit time-hard"),
        ({"old": SaId(ESP_U.destination, ESP, 0x999)}, "old"),
        ({"old": CBC_U.id, "spi": ESP_U.spi}, "spi"),
    ],
)
def test_one_part_that_cannot_be_done_refuses_the_whole(members: dict[str, object], field: str) -> None:
    card = engine()
    for sa in (ESP_U, CBC_U, AH_U):
        card.add_sa(sa, 0.0)
    before = everything(card)
    with pytest.raises(RequestError) as refused:
        card.rekey([renewal(AH_U), replace(renewal(ESP_U), **members)], 5, 1.0)  # type: ignore[arg-type]
    assert refused.value.field == field
    assert everything(card) == before


@pytest.mark.parametrize("grace", [-1, MAX_GRACE_S + 1])
def test_grace_out_of_range_is_refused(grace: int) -> None:
    card = engine()
    card.add_sa(ESP_U, 0.0)
    with pytest.raises(RequestError, match="out of range"):
        renew(card, ESP_U, grace=grace)
    with pytest.raises(RequestError, match="no SA"):
        card.rekey([], 5, 1.0)


def test_sa_that_is_replaced_already_is_not_replaced_again() -> None:
    card = engine()
    inbound = replace(ESP_U, direction=IN)
    card.add_sa(inbound, 0.0)
    with pytest.raises(OidError, match="replaced already"):
        card.rekey([renewal(inbound), renewal(inbound, spi=0x77777)], 5, 1.0)
    assert spis(card) == [0x1000]
    renew(card, inbound)
    with pytest.raises(OidError, match="replaced already"):
        card.rekey([renewal(inbound, spi=0x77777)], 5, 1.0)


def test_sa_whose_successor_is_gone_is_rekeyed_anew() -> None:
    card = engine()
    inbound = replace(ESP_U, direction=IN)
    card.add_sa(inbound, 0.0)
    (first, second) = (renewal(inbound, spi=spi) for spi in (0x77777, 0x88888))
    card.rekey([first], None, 1.0)
    card.delete_sa(inbound.id._replace(spi=0x77777))
    card.rekey([second], 5, 2.0)
    assert spis(card) == [0x1000, 0x88888]
    card.keep_time(7.0)
    assert spis(card) == [0x88888]


def test_policy_that_names_the_old_spi_refuses_and_one_by_reqid_does_not() -> None:
    left, right = pair((template(ESP, TUNNEL, NEAR, FAR, spi=0x1000),), [ESP_U])
    for card, sa in ((left, ESP_U), (right, replace(ESP_U, direction=IN))):
        with pytest.raises(RequestError, match="names this SPI") as refused:
            renew(card, sa)
        assert refused.value.field == "old"
    assert receive(right, *send(left, UDP4)) == 1


def test_nic_in_reset_refuses() -> None:
    card = engine()
    card.add_sa(ESP_U, 0.0)
    card.begin_reset()
    with pytest.raises(OidError) as refused:
        renew(card, ESP_U)
    assert refused.value.status is NdisStatus.RESET_IN_PROGRESS
    card.end_reset()
    renew(card, ESP_U)
