"""Answers about packets that policy discarded: whom they reach, how they travel, and when there is none."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, ICMPv6TimeExceeded, IPerror6, IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet
from transport_lab import (
    ANY,
    ANY6,
    ESP,
    FAR,
    IN,
    NEAR,
    OUT,
    TUNNEL,
    association,
    frame_of,
    policy,
    prefix,
    template,
)

from tests.engines import BOTH_ENGINES, make_card
from vnic.engine.reference import ReferenceEngine
from vnic.ipsec.policy import PolicyAction, Selector
from vnic.ndis.netbuffer import NetBuffer

HOST, PEER = "10.1.0.1", "10.2.0.1"
HOST6, PEER6 = "fd01::1", "fd02::1"
OUTGOING = {4: IP(src=HOST, dst=PEER), 6: IPv6(src=HOST6, dst=PEER6)}
INCOMING = {4: IP(src=PEER, dst=HOST), 6: IPv6(src=PEER6, dst=HOST6)}
HEAD = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
SECRET = b"VERY SECRET PAYLOAD"


pytestmark = BOTH_ENGINES


def card_with(*entries: object, answer: bool = True) -> ReferenceEngine:
    card = make_card(random.Random(1).randbytes)
    card.set_defaults(replace(card.defaults, answer_discards=answer))
    for entry in entries:
        card.add_policy(entry)  # type: ignore[arg-type]
    return card


def refusing(direction: object, port: int = 8) -> list[object]:
    """Policies that discard UDP to one port, in both families."""
    return [
        policy(
            direction,  # type: ignore[arg-type]
            Selector(prefix(everything), prefix(everything), 17, None, port),
            action=PolicyAction.DISCARD,
        )
        for everything in ("0.0.0.0/0", "::/0")
    ]


def counts(card: ReferenceEngine) -> tuple[int, int, int, int]:
    counters = card.counters
    return (
        counters.tx_prohibited_answered,
        counters.tx_prohibited_unanswered,
        counters.rx_prohibited_answered,
        counters.rx_prohibited_unanswered,
    )


def check_answer(frame: bytearray, about: bytes) -> None:
    """What RFC 4301 §5.1 and RFC 1812, RFC 4443 say of an answer, read by scapy."""
    answer = Ether(bytes(frame))
    asked = Ether(about)
    assert (answer.src, answer.dst) == (asked.dst, asked.src)
    if IP in asked:
        assert (answer[IP].src, answer[IP].dst) == (asked[IP].dst, asked[IP].src)
        assert (answer[ICMP].type, answer[ICMP].code) == (3, 13)
        assert bytes(answer[IPerror]).startswith(bytes(asked[IP])[:28])
        checked = answer.copy()
        del checked[IP].chksum, checked[ICMP].chksum
    else:
        assert (answer[IPv6].src, answer[IPv6].dst) == (asked[IPv6].dst, asked[IPv6].src)
        assert (answer[ICMPv6DestUnreach].type, answer[ICMPv6DestUnreach].code) == (1, 1)
        assert bytes(answer[IPerror6]).startswith(bytes(asked[IPv6])[:48])
        checked = answer.copy()
        del checked[ICMPv6DestUnreach].cksum
    assert bytes(checked) == bytes(answer)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tagged", [False, True])
def test_host_is_told_that_policy_discarded_its_packet(version: int, tagged: bool) -> None:
    card = card_with(*refusing(OUT))
    head = HEAD / Dot1Q(vlan=5) if tagged else HEAD
    frame = frame_of(head / OUTGOING[version] / UDP(sport=7, dport=8) / SECRET)
    outcome = card.send([NetBuffer(bytearray(frame))], 1.0)
    assert outcome.wire == []
    (told,) = outcome.host
    check_answer(told.frame, bytes(frame))
    assert counts(card) == (1, 0, 0, 0)


@pytest.mark.parametrize("version", [4, 6])
def test_peer_is_told_in_clear_about_what_it_sent_in_clear_where_policy_lets_it(version: int) -> None:
    card = card_with(*refusing(IN))
    frame = frame_of(HEAD / INCOMING[version] / UDP(sport=7, dport=8) / SECRET)
    outcome = card.receive([NetBuffer(bytearray(frame))], 1.0)
    assert outcome.host == []
    (told,) = outcome.wire
    assert told.transmit is None
    check_answer(told.frame, bytes(frame))
    assert counts(card) == (0, 0, 1, 0)


def test_nobody_is_told_unless_it_is_asked_for() -> None:
    card = card_with(*refusing(OUT), *refusing(IN), answer=False)
    assert card.send([NetBuffer(frame_of(OUTGOING[4] / UDP(dport=8)))], 1.0).host == []
    assert card.receive([NetBuffer(frame_of(INCOMING[4] / UDP(dport=8)))], 1.0).wire == []
    assert counts(card) == (0, 0, 0, 0)


def tunnel_card(*, back: PolicyAction | None) -> tuple[ReferenceEngine, ReferenceEngine]:
    """The card under test, which refuses UDP to port 8 out of a tunnel, and its peer; `back`: what its policy
    does with packets to the peer: None protects them."""
    there, here = template(ESP, TUNNEL, FAR, NEAR), template(ESP, TUNNEL, NEAR, FAR)
    card = card_with(*refusing(IN), policy(IN, ANY, there, priority=1))
    card.add_sa(association(IN, TUNNEL, FAR, NEAR, spi=0x2000), 0.0)
    card.add_sa(association(OUT, TUNNEL, NEAR, FAR, spi=0x3000), 0.0)
    card.add_policy(policy(OUT, ANY, here) if back is None else policy(OUT, ANY, action=back))
    peer = card_with(policy(OUT, ANY, there), policy(IN, ANY, here))
    peer.add_sa(association(OUT, TUNNEL, FAR, NEAR, spi=0x2000), 0.0)
    peer.add_sa(association(IN, TUNNEL, NEAR, FAR, spi=0x3000), 0.0)
    return card, peer


def test_what_came_by_an_sa_is_answered_through_one() -> None:
    card, peer = tunnel_card(back=None)
    frame = frame_of(HEAD / INCOMING[4] / UDP(sport=7, dport=8) / SECRET)
    (sealed,) = peer.send([NetBuffer(bytearray(frame))], 1.0).wire
    outcome = card.receive([NetBuffer(bytearray(sealed.frame))], 1.0)
    assert outcome.host == []
    (answer,) = outcome.wire
    assert SECRET not in answer.frame
    (told,) = peer.receive([NetBuffer(bytearray(answer.frame))], 1.0).host
    check_answer(told.frame, bytes(frame))
    assert counts(card) == (0, 0, 1, 0)
    assert card.counters.tx_offloaded == 1


@pytest.mark.parametrize("back", [PolicyAction.BYPASS, PolicyAction.DISCARD])
def test_what_came_by_an_sa_is_never_quoted_in_clear(back: PolicyAction) -> None:
    card, peer = tunnel_card(back=back)
    frame = frame_of(HEAD / INCOMING[4] / UDP(sport=7, dport=8) / SECRET)
    (sealed,) = peer.send([NetBuffer(bytearray(frame))], 1.0).wire
    assert card.receive([NetBuffer(sealed.frame)], 1.0).wire == []
    assert counts(card) == (0, 0, 0, 1)


def test_answer_that_lacks_its_sa_does_not_leave() -> None:
    card = card_with(*refusing(IN), policy(OUT, ANY, template(ESP, TUNNEL, NEAR, FAR)))
    assert card.receive([NetBuffer(frame_of(INCOMING[4] / UDP(dport=8)))], 1.0).wire == []
    assert counts(card) == (0, 0, 0, 1)


MUST_NOT: dict[str, Packet] = {
    "ICMP error": HEAD / INCOMING[4] / ICMP(type=3, code=1) / bytes(28),
    "ICMP redirect": HEAD / INCOMING[4] / ICMP(type=5) / bytes(28),
    "ICMPv6 error": HEAD / INCOMING[6] / ICMPv6TimeExceeded() / bytes(48),
    "first fragment": HEAD / IP(src=PEER, dst=HOST, flags="MF") / UDP(dport=8) / bytes(64),
    "later fragment": HEAD / IP(src=PEER, dst=HOST, frag=9, proto=17) / bytes(64),
    "to many, IPv4": HEAD / IP(src=PEER, dst="224.0.0.5") / UDP(dport=8),
    "to all": HEAD / IP(src=PEER, dst="255.255.255.255") / UDP(dport=8),
    "to many, IPv6": HEAD / IPv6(src=PEER6, dst="ff02::5") / UDP(dport=8),
    "in a broadcast frame": Ether(src=HEAD.src, dst="ff:ff:ff:ff:ff:ff") / INCOMING[4] / UDP(dport=8),
    "from nowhere": HEAD / IP(src="0.0.0.0", dst=HOST) / UDP(dport=8),
    "from many": HEAD / IP(src="224.0.0.5", dst=HOST) / UDP(dport=8),
    "from nowhere, IPv6": HEAD / IPv6(src="::", dst=HOST6) / UDP(dport=8),
}


@pytest.mark.parametrize("packet", MUST_NOT.values(), ids=MUST_NOT.keys())
@pytest.mark.parametrize("direction", [OUT, IN])
def test_what_must_not_be_answered_is_not(packet: Packet, direction: object) -> None:
    card = card_with(
        *(policy(direction, one, action=PolicyAction.DISCARD) for one in (ANY, ANY6))  # type: ignore[arg-type]
    )
    act = card.send if direction is OUT else card.receive
    outcome = act([NetBuffer(frame_of(packet))], 1.0)
    assert (outcome.wire, outcome.host) == ([], [])
    assert counts(card) == ((0, 1, 0, 0) if direction is OUT else (0, 0, 0, 1))


def test_queries_are_answered() -> None:
    card = card_with(*(policy(IN, one, action=PolicyAction.DISCARD) for one in (ANY, ANY6)))
    for packet in (INCOMING[4] / ICMP(), INCOMING[6] / ICMPv6EchoRequest()):
        assert len(card.receive([NetBuffer(frame_of(packet))], 1.0).wire) == 1


def test_flood_is_answered_in_part_each_direction_for_itself() -> None:
    card = card_with(*refusing(OUT), *refusing(IN))
    incoming = [NetBuffer(frame_of(INCOMING[4] / UDP(dport=8))) for _ in range(80)]
    assert len(card.receive(incoming, 1.0).wire) == 50
    outgoing = [NetBuffer(frame_of(OUTGOING[4] / UDP(dport=8))) for _ in range(80)]
    assert len(card.send(outgoing, 1.0).host) == 50
    assert counts(card) == (50, 30, 50, 30)


def test_only_verdicts_of_policy_are_answered() -> None:
    """A packet that lacks its SA, or its protection, ends in silence: it may be a rekey or an attack."""
    card = card_with(
        policy(OUT, ANY, template(ESP, TUNNEL, NEAR, FAR)), policy(IN, ANY, template(ESP, TUNNEL, FAR, NEAR))
    )
    assert card.send([NetBuffer(frame_of(OUTGOING[4] / TCP()))], 1.0).host == []
    assert card.receive([NetBuffer(frame_of(INCOMING[4] / TCP()))], 1.0).wire == []
    assert counts(card) == (0, 0, 0, 0)
