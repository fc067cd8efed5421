"""What the wire tells of paths: believed when it quotes a packet just sent, and then answered to the host."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from transport_lab import (
    AH,
    ANY,
    ANY6,
    ESP,
    FAR,
    FAR6,
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
from vnic.ipsec.association import IpsecProtocol
from vnic.ipsec.policy import Defaults, PolicyAction
from vnic.ndis.netbuffer import NetBuffer

pytestmark = BOTH_ENGINES

ROUTER, ROUTER6 = "198.51.100.1", "2001:db8:ffff::1"
ENDS = {4: (NEAR, FAR), 6: (NEAR6, FAR6)}


def card_of(version: int = 4, protocol: IpsecProtocol = ESP, **members: object) -> ReferenceEngine:
    card = make_card(random.Random(1).randbytes)
    ends = ENDS[version]
    for family in (ANY, ANY6):
        card.add_policy(policy(OUT, family, template(protocol, TUNNEL, *ends)))
    card.add_sa(association(OUT, TUNNEL, *ends, protocol=protocol, **members), 0.0)  # type: ignore[arg-type]
    return card


def packet_of(length: int = 1400, flags: str = "DF") -> bytearray:
    return frame_of(IP(src="10.1.0.1", dst="10.2.0.1", flags=flags) / UDP() / bytes(length - 28))


def sent(card: ReferenceEngine, length: int = 1400, flags: str = "DF", now: float = 1.0) -> list[bytes]:
    return [bytes(one.frame)[14:] for one in card.send([NetBuffer(packet_of(length, flags))], now).wire]


def too_big(quoted: bytes, mtu: int, keep: int = 548) -> Packet:
    if quoted[0] >> 4 == 4:
        return IP(src=ROUTER, dst=NEAR) / ICMP(type=3, code=4, nexthopmtu=mtu) / Raw(quoted[:keep])
    return IPv6(src=ROUTER6, dst=NEAR6) / ICMPv6PacketTooBig(mtu=mtu) / Raw(quoted[:keep])


def tell(card: ReferenceEngine, message: Packet, now: float = 1.0) -> str:
    """What became of a message: learned, passed to the host, or dropped by name."""
    counters = card.counters
    before = counters.rx_path_mtu, dict(counters.drops)
    host = card.receive([NetBuffer(frame_of(message))], now).host
    if host:
        return "passed"
    if counters.rx_path_mtu > before[0]:
        return "learned"
    (reason,) = [one.value for one, count in counters.drops.items() if count != before[1].get(one, 0)]
    return reason


def told(card: ReferenceEngine, length: int = 1400, now: float = 1.0) -> int:
    """MTU that the host is told for a packet of that size; 0: it went out."""
    outcome = card.send([NetBuffer(packet_of(length))], now)
    if outcome.wire:
        return 0
    (answer,) = outcome.host
    return int(Ether(bytes(answer.frame))[ICMP].nexthopmtu)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [ESP, AH])
def test_path_of_an_sa_becomes_smaller_and_the_host_is_told_what_is_left(
    version: int, protocol: IpsecProtocol
) -> None:
    card = card_of(version, protocol)
    (sealed,) = sent(card)
    assert tell(card, too_big(sealed, 1300)) == "learned"
    # Of 1300: outer header, then ESP 8 + 8 + 16 in fours less 2, or AH (12 + 16, in eights 32).
    left = 1300 - (20 if version == 4 else 40)
    mtu = (left - 32) // 4 * 4 - 2 if protocol is ESP else left - 32
    assert told(card) == mtu
    (wire,) = sent(card, mtu)
    assert len(wire) <= 1300
    assert told(card, mtu + 1) == mtu


def test_eight_bytes_of_esp_are_enough_and_of_ah_are_not() -> None:
    card = card_of()
    (sealed,) = sent(card)
    assert tell(card, too_big(sealed, 1300, keep=28)) == "learned"
    card = card_of(protocol=AH)
    (sealed,) = sent(card)
    assert tell(card, too_big(sealed, 1300, keep=28)) == "in_path_mtu"
    assert tell(card, too_big(sealed, 1300, keep=32)) == "learned"


def test_what_cannot_be_true_is_dropped_by_name_and_changes_nothing() -> None:
    """RFC 4301 §8.2."""
    card = card_of()
    for _ in range(3):
        (sealed,) = sent(card)
    number = int.from_bytes(sealed[24:28], "big")
    assert number == 3

    def with_number(value: int) -> bytes:
        return sealed[:24] + value.to_bytes(4, "big") + sealed[28:]

    for quoted, mtu in (
        (with_number(4), 1300),  # not sent yet
        (with_number(0), 1300),  # never sent
        (with_number(0xFFFFFFFF), 1300),
        (sealed[:12] + bytes(IP(src="192.0.2.9"))[12:16] + sealed[16:], 1300),  # sent by somebody else
        (sealed, 1500),  # would have passed
        (sealed, len(sealed)),
        (sealed[:2] + b"\x23\x28" + sealed[4:], 8000),  # larger than anything sent
    ):
        assert tell(card, too_big(quoted, mtu)) == "in_path_mtu"
        assert told(card) == 0


def test_messages_on_others_packets_go_to_the_host() -> None:
    card = card_of()
    (sealed,) = sent(card)
    others = [
        too_big(sealed[:20] + b"\0\0\x99\x99" + sealed[24:], 1300),  # no such SPI
        too_big(bytes(IP(src=NEAR, dst=FAR, flags="DF") / UDP() / bytes(100)), 1300),
        too_big(sealed[:6] + b"\0" + sealed[7:], 1300),  # without DF nobody asks
        too_big(sealed, 1300, keep=27),
        too_big(sealed, 1300, keep=0),
        IP(src=ROUTER, dst=NEAR) / ICMP(type=3, code=1) / Raw(sealed[:548]),
        IP(src=ROUTER, dst=NEAR) / ICMP(type=3, code=4, nexthopmtu=1300, chksum=1) / Raw(sealed[:548]),
    ]
    for message in others:
        assert tell(card, message) == "passed"
    assert told(card) == 0


def test_message_on_what_an_inbound_sa_names_goes_to_the_host() -> None:
    card = card_of()
    (sealed,) = sent(card)
    card.delete_sa(association(OUT, TUNNEL, NEAR, FAR).id)
    assert tell(card, too_big(sealed, 1300)) == "passed"


def test_old_packets_are_not_believed() -> None:
    card = card_of(sequence_number=5)
    (sealed,) = sent(card)
    state = card._sad.table[association(OUT, TUNNEL, NEAR, FAR).id]
    assert state.sequence is not None
    state.sequence.last = 5 + 70_000
    assert tell(card, too_big(sealed, 1300)) == "in_path_mtu"
    before = sealed[:24] + (5).to_bytes(4, "big") + sealed[28:]
    state.sequence.last = 6
    assert tell(card, too_big(before, 1300)) == "in_path_mtu"
    assert tell(card, too_big(sealed, 1300)) == "learned"


def test_extended_numbers_are_known_by_their_lower_half() -> None:
    card = card_of(esn=True, sequence_number=(1 << 32) - 2)
    first, second = sent(card)[0], sent(card)[0]
    assert int.from_bytes(second[24:28], "big") == 0
    assert tell(card, too_big(second, 1300)) == "learned"
    assert tell(card, too_big(first, 1250)) == "learned"


@pytest.mark.parametrize(("version", "least"), [(4, 576), (6, 1280)])
def test_path_never_becomes_smaller_than_every_path_is(version: int, least: int) -> None:
    card = card_of(version)
    (sealed,) = sent(card)
    assert tell(card, too_big(sealed, 68)) == "learned"
    assert told(card) == (least - (20 if version == 4 else 40) - 32) // 4 * 4 - 2


def test_router_that_tells_no_mtu_means_the_next_usual_one() -> None:
    """RFC 1191 §5, §7.1."""
    card = card_of()
    (sealed,) = sent(card)
    assert tell(card, too_big(sealed, 0)) == "learned"
    assert told(card) == (1006 - 20 - 32) // 4 * 4 - 2


def test_path_only_becomes_larger_with_time() -> None:
    card = card_of()
    (sealed,) = sent(card)
    assert tell(card, too_big(sealed, 1200), now=10.0) == "learned"
    assert tell(card, too_big(sealed, 1400), now=11.0) == "in_path_mtu"
    assert told(card, now=609.9) > 0
    assert told(card, now=610.0) == 0


def test_news_renew_what_is_known() -> None:
    card = card_of()
    (sealed,) = sent(card)
    assert tell(card, too_big(sealed, 1200), now=10.0) == "learned"
    assert tell(card, too_big(sealed, 1200), now=500.0) == "learned"
    assert told(card, now=700.0) > 0


def test_packets_without_df_are_cut_for_the_path() -> None:
    card = card_of()
    (sealed,) = sent(card)
    assert tell(card, too_big(sealed, 1000)) == "learned"
    for before in (True, False):
        card.fragment_before = before
        wire = sent(card, 1400, flags="")
        assert len(wire) == 2
        assert max(len(one) for one in wire) <= 1000


def test_only_the_sa_that_is_told_of_is_affected() -> None:
    card = card_of()
    other = association(OUT, TUNNEL, NEAR, "192.0.2.77", spi=0x7777)
    card.add_policy(
        replace(policy(OUT, ANY, template(ESP, TUNNEL, NEAR, "192.0.2.77")), priority=0), replace=True
    )
    card.add_sa(other, 0.0)
    (sealed,) = sent(card)
    assert sealed[16:20] == bytes((192, 0, 2, 77))
    assert tell(card, too_big(sealed, 1200)) == "learned"
    assert told(card) > 0
    card.add_policy(policy(OUT, ANY, template(ESP, TUNNEL, NEAR, FAR)), replace=True)
    assert told(card) == 0


def test_path_stays_known_when_a_new_sa_takes_over() -> None:
    card = card_of()
    (packet,) = sent(card)
    assert tell(card, too_big(packet, 1000)) == "learned"
    card.add_sa(association(OUT, TUNNEL, NEAR, FAR, spi=0x1001), 2.0)
    card.delete_sa(association(OUT, TUNNEL, NEAR, FAR).id)
    assert sent(card, now=2.0) == []
    (report,) = card.sas()
    known = card.sa_mtu(report.sa.id, 2.0)
    assert known is not None
    assert (report.sa.spi, known.path_mtu, known.known_for) == (0x1001, 1000, 599.0)
    # Another end has another path, and ten minutes are ten minutes.
    card.add_sa(association(OUT, TUNNEL, NEAR, "192.0.2.77", spi=0x1002), 2.0)
    other = card.sa_mtu(association(OUT, TUNNEL, NEAR, "192.0.2.77", spi=0x1002).id, 2.0)
    assert other is not None
    assert other.path_mtu == 1500
    assert len(sent(card, now=602.0)) == 1


def test_transport_mode_learns_too() -> None:
    card = make_card(random.Random(1).randbytes)
    card.add_policy(policy(OUT, ANY, template(ESP, TRANSPORT)))
    card.add_sa(association(OUT, TRANSPORT, "10.1.0.1", "10.2.0.1"), 0.0)
    (sealed,) = sent(card)
    assert tell(card, too_big(sealed, 1300)) == "learned"
    assert told(card) == 20 + (1280 - 32) // 4 * 4 - 2


def test_policy_that_drops_icmp_keeps_the_wire_from_telling() -> None:
    """RFC 4301 §6.1.1: whether unprotected ICMP is heard is for the administrator to say."""
    card = card_of()
    (sealed,) = sent(card)
    card.set_defaults(Defaults(inbound=PolicyAction.DISCARD))
    assert tell(card, too_big(sealed, 1300)) == "in_policy_discard"
    assert told(card) == 0


def test_mtu_of_each_sa_and_policy_can_be_asked_for() -> None:
    card = card_of()
    name = association(OUT, TUNNEL, NEAR, FAR).id
    one = card.sa_mtu(name, 1.0)
    assert one is not None
    assert (one.path_mtu, one.known_for, one.mtu) == (1500, 0.0, 1446)
    (sealed,) = sent(card)
    assert tell(card, too_big(sealed, 1300), now=10.0) == "learned"
    one = card.sa_mtu(name, 110.0)
    assert one is not None
    assert (one.path_mtu, one.known_for, one.mtu) == (1300, 500.0, 1246)
    assert {card.policy_mtu(entry) for entry in card.policies()} == {1446}
    card.delete_sa(name)
    assert card.sa_mtu(name, 1.0) is None
