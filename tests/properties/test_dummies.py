"""Dummy packets: sent in pauses, alike the others on the wire, and nothing at the far host."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP as ScapyEsp
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet
from transport_lab import (
    AH,
    ANY,
    ANY6,
    ESP,
    FAR,
    FAR6,
    IN,
    NEAR,
    NEAR6,
    OUT,
    TRANSPORT,
    TUNNEL,
    association,
    frame_of,
    policy,
    template,
)

from tests.engines import BOTH_ENGINES, make_card
from vnic.engine.reference import ReferenceEngine
from vnic.ipsec.counters import EventKind
from vnic.ipsec.headers import HeaderSettings
from vnic.ipsec.policy import FlowKey
from vnic.ndis.capabilities import ENCAPSULATION_IEEE_802_3, OffloadCapabilities
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.ip import parse_ip
from vnic.transport.dummies import Course, Dummies

pytestmark = BOTH_ENGINES

ENDS = {4: (NEAR, FAR), 6: (NEAR6, FAR6)}
INNER = {
    4: IP(src="10.1.0.1", dst="10.2.0.1") / UDP(sport=7, dport=8) / bytes(100),
    6: IPv6(src="fd01::1", dst="fd02::1") / UDP(sport=7, dport=8) / bytes(100),
}
CBC = {"encryption": "aes-cbc-128", "integrity": "hmac-sha256-128"}

Pair = tuple[ReferenceEngine, ReferenceEngine]


def pair(
    inner: int = 4,
    outer: int = 4,
    *,
    ah: bool = False,
    tfc_padding: int = 0,
    capabilities: OffloadCapabilities | None = None,
    **members: object,
) -> Pair:
    settings = HeaderSettings(dummy_interval_ms=500, tfc_padding=tfc_padding)
    sas = [association(OUT, TUNNEL, *ENDS[outer], header_settings=settings, **members)]
    templates = [template(ESP, TUNNEL, *ENDS[outer])]
    if ah:
        sas.append(association(OUT, TRANSPORT, *ENDS[outer], protocol=AH, spi=0x2000))
        templates.append(template(AH, TRANSPORT))
    cards = tuple(make_card(random.Random(seed).randbytes, capabilities=capabilities) for seed in (3, 4))
    everything = ANY if inner == 4 else ANY6
    for card, direction in zip(cards, (OUT, IN), strict=True):
        card.add_policy(policy(direction, everything, *templates))
        for sa in sas:
            card.add_sa(replace(sa, direction=direction), 0.0)
    return cards  # type: ignore[return-value]


def send(card: ReferenceEngine, packet: Packet, now: float) -> bytearray:
    (sealed,) = card.send([NetBuffer(frame_of(packet))], now).wire
    return sealed.frame


def drops(card: ReferenceEngine) -> dict[str, int]:
    return {reason.value: count for reason, count in card.counters.drops.items()}


@pytest.mark.parametrize(("inner", "outer"), [(4, 4), (6, 4), (4, 6), (6, 6)])
@pytest.mark.parametrize("ah", [False, True])
@pytest.mark.parametrize("suite", [{}, CBC], ids=["GCM", "CBC"])
def test_pauses_are_filled_with_packets_alike_that_nobody_gets(
    inner: int, outer: int, ah: bool, suite: dict[str, object]
) -> None:
    cards = pair(inner, outer, ah=ah, **suite)
    assert cards[0].deadline == inf
    real = send(cards[0], INNER[inner], 1.0)
    assert len(cards[1].receive([NetBuffer(bytearray(real))], 1.0).host) == 1
    assert cards[0].deadline == 1.5
    assert cards[0].keep_time(1.4).wire == []
    now = 1.5
    for number in range(2, 6):
        (dummy,) = cards[0].keep_time(now).wire
        assert len(dummy.frame) == len(real)
        assert dummy.frame[:14] == real[:14]
        header = parse_ip(dummy.frame, 14)
        assert header.end == len(dummy.frame)
        start = header.payload_offset + (8 if ah else 4)
        assert int.from_bytes(dummy.frame[start : start + 4], "big") == number
        assert cards[1].receive([NetBuffer(bytearray(dummy.frame))], now).host == []
        now = cards[0].deadline
    assert now == 3.5
    assert drops(cards[1]) == {"in_dummy": 4}
    assert drops(cards[0]) == {}
    assert (cards[0].counters.tx_dummies, cards[0].counters.tx_offloaded) == (4, 5)
    # Replayed or forged dummies are what other replayed and forged packets are.
    assert cards[1].receive([NetBuffer(bytearray(dummy.frame))], now).host == []
    dummy.frame[-1] ^= 1
    assert cards[1].receive([NetBuffer(dummy.frame)], now).host == []
    assert drops(cards[1]) == {"in_dummy": 4, "in_replay_duplicate": 1, "in_icv": 1}


def test_scapy_sees_an_esp_packet_and_next_header_59() -> None:
    cards = pair(encryption="null", integrity="hmac-sha1-96")
    send(cards[0], INNER[4], 1.0)
    (dummy,) = cards[0].keep_time(1.5).wire
    packet = Ether(bytes(dummy.frame))
    body = bytes(packet[ScapyEsp].data)
    assert packet[IP].proto == 50
    assert body[-13] == 59
    assert body[:128] == bytes(128)
    rebuilt = packet[IP].copy()
    del rebuilt.chksum
    assert bytes(rebuilt) == bytes(packet[IP])


def test_traffic_puts_dummies_off_and_padding_makes_all_alike() -> None:
    cards = pair(tfc_padding=1300)
    sizes = set()
    for tenth in range(10, 40, 4):
        sizes.add(len(send(cards[0], INNER[4] / bytes(tenth), tenth / 10)))
        assert cards[0].keep_time(tenth / 10 + 0.3).wire == []
    (dummy,) = cards[0].keep_time(99.0).wire
    assert {len(dummy.frame)} == sizes


def test_dummies_follow_a_rekey_and_end_with_their_sa_or_policy() -> None:
    cards = pair()
    send(cards[0], INNER[4], 1.0)
    settings = HeaderSettings(dummy_interval_ms=2000)
    cards[0].add_sa(association(spi=0x1001, header_settings=settings), 1.1)
    (dummy,) = cards[0].keep_time(1.5).wire
    assert dummy.frame[34:38] == bytes.fromhex("00001001")
    assert cards[0].deadline == 3.5
    cards[0].delete_sa(association(spi=0x1001).id)
    (dummy,) = cards[0].keep_time(3.5).wire
    assert dummy.frame[34:38] == bytes.fromhex("00001000")
    cards[0].delete_sa(association().id)
    assert cards[0].keep_time(10.0).wire == []
    assert cards[0].deadline == inf


def test_no_dummy_leaves_a_card_that_stands_still_or_takes_a_number_there() -> None:
    cards = pair()
    send(cards[0], INNER[4], 1.0)
    cards[0].pause()
    assert cards[0].keep_time(2.0).wire == []
    assert cards[0].sas()[0].sequence_number == 1


def test_the_last_number_is_no_dummys_beyond_it() -> None:
    cards = pair(sequence_number=0xFFFFFFFE)
    send(cards[0], INNER[4], 1.0)
    assert cards[0].keep_time(2.0).wire == []
    assert cards[0].counters.tx_dummies == 0


@pytest.mark.parametrize("able", [True, False])
def test_tags_stay_and_who_seals_is_who_would(able: bool) -> None:
    limits = None if able else OffloadCapabilities(encapsulation=ENCAPSULATION_IEEE_802_3)
    cards = pair(capabilities=limits)
    tagged = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / Dot1Q(vlan=5) / INNER[4]
    real = send(cards[0], tagged, 1.0)
    (dummy,) = cards[0].keep_time(2.0).wire
    assert dummy.frame[:18] == real[:18]
    assert cards[0].counters.tx_software == (0 if able else 2)
    assert cards[1].receive([NetBuffer(dummy.frame)], 2.0).host == []
    assert drops(cards[1]) == {"in_dummy": 1}


def test_dummies_of_many_sas_leave_the_loop_its_turns_and_none_is_forgotten() -> None:
    dummies = Dummies()
    sas = [
        association(spi=spi, header_settings=HeaderSettings(dummy_interval_ms=10)) for spi in range(1, 1001)
    ]
    courses = [Course(FlowKey(bytes(4), bytes(4), 17, number, 0), bytes(14), 100) for number in range(1000)]
    for sa, course in zip(sas, courses, strict=True):
        dummies.note(sa, course, 1.0)
    # Traffic puts one off, and a shorter interval fetches one.
    dummies.note(sas[3], courses[3], 1.5)
    dummies.note(
        replace(sas[4], header_settings=HeaderSettings(dummy_interval_ms=86_400_000)), courses[4], 1.0
    )
    dummies.note(sas[4], courses[4], 1.0)
    taken: list[Course] = []
    while dummies.deadline <= 1.02:
        some = dummies.take(1.02)
        assert 0 < len(some) < 200
        taken += some
    assert sorted(one.flow.source_port for one in taken) == [port for port in range(1000) if port != 3]
    assert dummies.deadline == pytest.approx(1.51)
    assert [one.flow.source_port for one in dummies.take(2.0)] == [3]
    assert dummies.deadline == inf


@pytest.mark.parametrize("hidden", ["padding", "dummies"])
def test_what_padding_and_dummies_hide_counts_against_the_blocks_of_a_cipher(hidden: str) -> None:
    cards = pair(
        tfc_padding=1400 if hidden == "padding" else 0, encryption="3des-cbc", integrity="hmac-sha1-96"
    )
    cards[0].enforce_cipher_limits = True
    send(cards[0], INNER[4], 1.0)
    (state,) = cards[0]._sad
    state.counters.bytes = (1 << 35) - 8 * 1000
    state.stop = state.sequence.stop = 0
    sent = 0
    now = 1.0
    while cards[0].sa_count:
        now += 0.5
        if hidden == "padding":
            sent += sum(len(one.frame) for one in cards[0].send([NetBuffer(frame_of(INNER[4]))], now).wire)
        else:
            sent += sum(len(one.frame) for one in cards[0].keep_time(now).wire)
        assert sent <= 8 * 1000 + 2000
    told = [event.limit for event in cards[0].take_events() if event.kind is EventKind.SA_EXPIRED]
    assert told == ["cipher-hard"]
