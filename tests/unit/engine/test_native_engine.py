"""What the native card is told, when it forgets, and what is never for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
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
    selector,
    template,
)

from tests.engines import NATIVE, chosen
from vnic.ipsec.association import SecurityAssociation
from vnic.ipsec.headers import DfRule, HeaderSettings
from vnic.ipsec.policy import Defaults, PolicyAction
from vnic.ipsec.udp_encapsulation import UdpEncapsulation
from vnic.ndis.capabilities import OffloadCapabilities
from vnic.ndis.netbuffer import NetBuffer
from vnic.transport.encapsulation import Encapsulation, Portion
from vnic.transport.state import SaState

if NATIVE not in chosen(None):
    pytest.skip("needs the native engine: run scripts/setup", allow_module_level=True)

from vnic.engine import native
from vnic.engine.native import NativeEngine, obstacle_of, obstacle_to_receiving, obstacle_to_sending

PACKET = IP(src="10.1.0.1", dst="10.2.0.1") / UDP(sport=7, dport=8) / b"payload"
SA = association()


def cards(sa: SecurityAssociation = SA, **options: Any) -> tuple[NativeEngine, NativeEngine]:
    left, right = (NativeEngine(random.Random(seed).randbytes, **options) for seed in (1, 2))
    left.add_policy(policy(OUT, ANY, template(ESP, TUNNEL, NEAR, FAR)))
    right.add_policy(policy(IN, ANY, template(ESP, TUNNEL, NEAR, FAR)))
    left.add_sa(sa, 0.0)
    right.add_sa(replace(sa, direction=IN), 0.0)
    return left, right


def send(card: NativeEngine, count: int = 1) -> list[bytearray]:
    wire = card.send([NetBuffer(bytearray(frame_of(PACKET))) for _ in range(count)], 1.0).wire
    return [buffer.frame for buffer in wire]


def receive(card: NativeEngine, frames: list[bytearray]) -> list[bytes]:
    return [bytes(buffer.frame) for buffer in card.receive([NetBuffer(frame) for frame in frames], 1.0).host]


def test_first_packet_is_left_and_the_rest_of_a_stream_is_not() -> None:
    left, right = cards()
    for _ in range(3):
        assert receive(right, send(left, 5)) == [bytes(frame_of(PACKET))] * 5
    assert (left.card.sent, right.card.received) == (10, 10)
    assert {reason: count for reason, count in left.punts.items() if count} == {"unknown_flow": 5}
    assert {reason: count for reason, count in right.punts.items() if count} == {"unknown_sa": 5}
    assert (left.counters.tx_offloaded, right.counters.rx_offloaded) == (15, 15)
    (sent,), (received,) = left.sas(), right.sas()
    assert sent.counters.packets == received.counters.packets == sent.sequence_number == 15
    assert received.replay_bitmap == (1 << 15) - 1
    assert sent.use_time == received.use_time == 1.0


CHANGES: dict[str, Callable[[NativeEngine], object]] = {
    "policy added": lambda card: card.add_policy(policy(OUT, selector(protocol=6))),
    "SA added": lambda card: card.add_sa(association(spi=0x3000), 1.0),
    "defaults": lambda card: card.set_defaults(Defaults(outbound=PolicyAction.DISCARD)),
    "MTU of the wire": lambda card: setattr(card, "wire_mtu", 1400),
    "cutting": lambda card: setattr(card, "fragment_before", False),
    "load balancer": lambda card: card.set_load_balanced(True),
    "upper half": lambda card: card.update_sa(SA.id, 1),
    "reset": lambda card: (card.begin_reset(), card.end_reset(), card.restart(1.0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_follows_from_what_has_changed_is_forgotten(change: str) -> None:
    left, right = cards(replace(SA, esn=True))
    for _ in range(2):
        receive(right, send(left))
    for card in (left, right):
        before = dict(card.punts)
        assert any(card.card.known)
        if change != "upper half" or card is left:
            CHANGES[change](card)
        else:
            card.update_sa(SA.id, 1)
        frames = send(left)
        if card is right:
            receive(right, frames)
        assert card.punts != before


def test_deleted_sa_is_out_of_the_card_at_once() -> None:
    for delete in (
        lambda card: card.delete_sa(SA.id),
        lambda card: card.delete_bundle(card.sas()[0].offload_handle),
    ):
        left, right = cards()
        for _ in range(2):
            receive(right, send(left))
        for card in (left, right):
            state = card._sad.table[SA.id]
            assert isinstance(state, native.NativeSaState)
            assert state.told is not None
            delete(card)
            assert state.told is None
            assert card.card.known == (0, 0, 0)


def test_expired_sa_is_out_of_the_card_with_the_burst() -> None:
    from vnic.ipsec.lifetime import Lifetime

    left, _ = cards(replace(SA, lifetime=Lifetime(packet_hard=4)))
    assert sum(len(send(left)) for _ in range(9)) == 4
    assert left.card.known == (0, 0, 0)
    assert left.sas() == []


def test_watched_bursts_go_to_the_reference_engine_whole() -> None:
    left, right = cards()
    for _ in range(2):
        receive(right, send(left))
    seen: list[int] = []
    left.send_observer = right.receive_observer = lambda burst: seen.append(len(burst))
    counted = left.card.sent, right.card.received
    assert receive(right, send(left, 3)) == [bytes(frame_of(PACKET))] * 3
    assert seen == [3, 3]
    assert (left.card.sent, right.card.received) == counted


def test_what_passed_while_somebody_watched_is_not_told_under_another_policy() -> None:
    left, right = cards()
    right.receive_observer = lambda burst: None
    assert receive(right, send(left))
    right.receive_observer = None
    right.delete_policy(IN, None, 1)
    right.add_policy(policy(IN, ANY, action=PolicyAction.DISCARD))
    for _ in range(3):
        assert not receive(right, send(left))


def test_flows_of_watched_bursts_do_not_pile_up() -> None:
    left, right = cards()
    left.send_observer = right.receive_observer = lambda burst: None
    for port in range(3):
        packet = IP(src="10.1.0.1", dst="10.2.0.1") / UDP(sport=port, dport=8)
        receive(right, [one.frame for one in left.send([NetBuffer(bytearray(frame_of(packet)))], 1.0).wire])
        assert len(left._outbound.protected) == len(right._inbound.passed) == 1


def test_no_number_and_no_iv_comes_twice_whoever_seals() -> None:
    left, right = cards()
    frames: list[bytearray] = []
    for turn in range(30):
        left.send_observer = (lambda burst: None) if turn % 3 == 0 else None
        if turn % 7 == 0:
            left.card.clear()
        if turn == 15:
            left.add_sa(replace(SA), 1.0, replace=True)
        frames += send(left, 4)
    numbers = [bytes(frame[38:42]) for frame in frames]
    ivs = [bytes(frame[42:50]) for frame in frames]
    assert len(set(numbers)) == len(set(ivs)) == len(frames) == 120
    assert left.card.sent > 40
    assert len(receive(right, frames)) == 120


def test_nic_that_looks_for_room_sees_a_frame_of_each_burst_and_gets_its_sa_deleted() -> None:
    left, right = cards(capabilities=OffloadCapabilities(sa_offload_capacity=4))
    for _ in range(2):
        receive(right, send(left))
    for spi in (0x3000, 0x3001, 0x3002):
        right.add_sa(association(IN, spi=spi), 1.0)
    assert right.wants_room
    for _ in range(3):
        assert len(receive(right, send(left, 3))) == 3
    assert right.counters.sa_deletions_followed == 1
    assert right.counters.rx_software > 0


def test_sa_that_the_nic_was_asked_to_give_up_is_not_native() -> None:
    left, right = cards(software=False)
    for _ in range(2):
        receive(right, send(left))
    (report,) = right.sas()
    right.request_sa_deletion(report.offload_handle)
    before = right.card.received
    for _ in range(3):
        assert len(receive(right, send(left, 2))) == 2
    assert right.card.received == before
    assert right.counters.sa_deletions_refused > 0


NOT_NATIVE: dict[str, dict[str, Any]] = {
    "mode": {"mode": None},
    "header_settings": {"header_settings": HeaderSettings(tfc_padding=100)},
    "dummies": {"header_settings": HeaderSettings(hop_limit=0)},
}


@pytest.mark.parametrize("member", NOT_NATIVE)
def test_sa_that_wants_what_the_card_lacks_is_not_native(member: str) -> None:
    assert obstacle_of(replace(SA, **NOT_NATIVE[member]))
    assert obstacle_to_sending(
        Encapsulation(None, Portion(SaState(replace(SA, **NOT_NATIVE[member]), 0.0), None))
    )


def test_settings_of_the_other_direction_do_not_matter() -> None:
    assert not obstacle_of(replace(SA, decap_dscp=True))
    assert not obstacle_of(replace(SA, direction=IN, header_settings=HeaderSettings(tfc_padding=100)))
    assert obstacle_of(replace(SA, direction=IN, decap_dscp=True)) == "decap_dscp"
    assert not obstacle_of(replace(SA, header_settings=HeaderSettings(df=DfRule.CLEAR)))


def test_udp_encapsulation_is_native_where_ports_are_known_and_no_checksum_has_to_be_put_right() -> None:
    udp = UdpEncapsulation(4500, 4500)
    assert not obstacle_of(replace(SA, udp=udp))
    assert not obstacle_of(replace(SA, mode=TRANSPORT, udp=udp))
    inbound = replace(SA, direction=IN, udp=udp)
    assert not obstacle_of(inbound)
    assert obstacle_of(replace(inbound, mode=TRANSPORT))
    assert obstacle_of(replace(inbound, udp=replace(udp, follow=True)))
    assert obstacle_of(replace(inbound, udp=replace(udp, source_port=0)))


def test_every_member_that_may_have_any_value_is_one() -> None:
    names = {one.name for one in fields(SecurityAssociation)}
    listed = native._ANY_VALUE | native._NOT_OF_SENDING | native._NOT_OF_RECEIVING
    assert listed <= names


def test_flow_to_where_esp_in_udp_ends_is_not_told() -> None:
    left, right = cards()
    inner = association(IN, TUNNEL, "10.1.0.1", "10.2.0.1", spi=0x4000, udp=UdpEncapsulation(7, 8))
    right.add_sa(inner, 0.0)
    for _ in range(3):
        assert len(receive(right, send(left))) == 1
    assert right.card.received == 0


def test_layers_that_the_card_does_not_open() -> None:
    esp, ah = SaState(association(IN), 0.0), SaState(association(IN, TRANSPORT, protocol=AH, spi=1), 0.0)
    tunnel = SaState(association(IN, TUNNEL, protocol=AH, spi=1), 0.0)
    assert not obstacle_to_receiving([esp])
    assert not obstacle_to_receiving([ah, esp])
    for layers in ([esp, ah], [esp, esp], [ah, esp, esp], [tunnel, esp]):
        assert obstacle_to_receiving(layers)
    esp.half_known = True
    assert obstacle_to_receiving([esp])


def test_two_portions_and_software_are_not_native() -> None:
    transport = Portion(SaState(association(OUT, TRANSPORT), 0.0), None)
    tunnel = Portion(SaState(SA, 0.0), None)
    assert obstacle_to_sending(Encapsulation(transport, tunnel))
    assert obstacle_to_sending(Encapsulation(None, Portion(SaState(SA, 0.0), None, software=True)))
    assert not obstacle_to_sending(Encapsulation(None, tunnel))
