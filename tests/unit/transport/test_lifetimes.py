"""Lifetimes: what is told before the end of an SA, and that nothing passes after it."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from scapy.layers.inet import IP, TCP, UDP
from transport_lab import AH, ANY, ESP, FAR, IN, NEAR, OUT, TRANSPORT, TUNNEL, association, policy, template

from tests.engines import BOTH_ENGINES, make_card
from vnic.engine.contract import SaReport
from vnic.engine.external import ExternalEngine
from vnic.engine.reference import ReferenceEngine
from vnic.errors import OidError, RequestError
from vnic.ipsec.association import SecurityAssociation
from vnic.ipsec.counters import EventKind
from vnic.ipsec.lifetime import Lifetime
from vnic.ndis.capabilities import OffloadCapabilities
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.vnet import GSO_TCPV4, NEEDS_CSUM, VnetHeader

pytestmark = BOTH_ENGINES

LENGTH = 128
PACKET = bytes.fromhex("0200000000020200000000010800") + bytes(
    IP(src="10.1.0.1", dst="10.2.0.1") / UDP(sport=7, dport=8) / bytes(LENGTH - 28)
)


class Cards:
    """Two cards and one SA from the left to the right; `life` is the sender's, `far` the receiver's."""

    def __init__(
        self,
        life: Lifetime | None = None,
        far: Lifetime | None = None,
        *,
        software: bool = False,
        added: float = 0.0,
        **members: object,
    ) -> None:
        self.sa = association(**members)  # type: ignore[arg-type]
        capabilities = OffloadCapabilities(sa_offload_capacity=0) if software else None
        self.left, self.right = (make_card(bytes, capabilities=capabilities) for _ in range(2))
        for card, direction, lifetime in ((self.left, OUT, life), (self.right, IN, far)):
            card.add_policy(policy(direction, ANY, template(ESP, TUNNEL, NEAR, FAR)))
            card.add_sa(replace(self.sa, direction=direction, lifetime=lifetime), added)

    def send(self, count: int = 1, now: float = 1.0) -> list[bytearray]:
        burst = [NetBuffer(bytearray(PACKET)) for _ in range(count)]
        return [buffer.frame for buffer in self.left.send(burst, now).wire]

    def receive(self, frames: list[bytearray], now: float = 1.0) -> int:
        return len(self.right.receive([NetBuffer(frame) for frame in frames], now).host)

    def report(self) -> SaReport | None:
        return self.left.find_sa(self.sa.id)


def told(card: ReferenceEngine) -> list[tuple[str, str]]:
    return [
        (event.kind.value, event.limit) for event in card.take_events() if event.kind is not EventKind.DROP
    ]


def drops(card: ReferenceEngine) -> dict[str, int]:
    return {reason.value: count for reason, count in card.counters.drops.items()}


@pytest.mark.parametrize("software", [False, True])
def test_sa_seals_as_many_packets_as_its_limit_says_and_is_gone(software: bool) -> None:
    cards = Cards(Lifetime(packet_soft=3, packet_hard=5), software=software)
    assert len(cards.send(2)) == 2
    assert told(cards.left) == []
    assert len(cards.send()) == 1
    assert told(cards.left) == [("sa_expiring", "packet-soft")]
    report = cards.report()
    assert report is not None
    assert report.expiring
    assert len(cards.send(4)) == 2
    assert told(cards.left) == [("sa_expired", "packet-hard")]
    assert drops(cards.left) == {"out_sa_expired": 1, "out_no_sa": 1}
    assert (cards.report(), cards.left.offloaded_count) == (None, 0)
    assert cards.send() == []


def test_sa_that_has_just_reached_its_limit_goes_without_a_lost_packet() -> None:
    cards = Cards(Lifetime(packet_hard=2))
    assert len(cards.send(2)) == 2
    assert (drops(cards.left), told(cards.left)) == ({}, [("sa_expired", "packet-hard")])
    assert cards.report() is None


@pytest.mark.parametrize(
    ("limit", "passed"), [(LENGTH, 1), (LENGTH * 3, 3), (LENGTH * 3 + 1, 3), (LENGTH - 1, 0)]
)
def test_bytes_never_pass_their_limit(limit: int, passed: int) -> None:
    cards = Cards(Lifetime(byte_hard=limit))
    assert sum(len(cards.send()) for _ in range(6)) == passed
    assert told(cards.left) == [("sa_expired", "byte-hard")]


def test_bytes_are_told_with_the_packet_that_reaches_the_limit() -> None:
    limit = 5_000 * LENGTH
    cards = Cards(Lifetime(byte_soft=limit, byte_hard=limit * 2))
    for number in range(1, 5_000, 7):
        cards.send(7)
        report = cards.report()
        assert report is not None
        assert report.expiring == (report.counters.bytes >= limit), number
    assert told(cards.left) == [("sa_expiring", "byte-soft")]


def test_bytes_count_the_same_at_both_ends() -> None:
    cards = Cards(Lifetime(byte_hard=LENGTH * 100), Lifetime(byte_hard=LENGTH * 100))
    assert cards.receive(cards.send(100)) == 100
    assert told(cards.left) == told(cards.right) == [("sa_expired", "byte-hard")]
    assert drops(cards.right) == {}


def test_large_send_that_would_pass_a_limit_is_not_sealed_in_part() -> None:
    cards = Cards(Lifetime(packet_hard=10))
    packet = bytes.fromhex("0200000000020200000000010800") + bytes(
        IP(src="10.1.0.1", dst="10.2.0.1") / TCP(flags="A") / bytes(12 * 1000)
    )
    vnet = VnetHeader(NEEDS_CSUM, GSO_TCPV4, 54, 1000, 34, 16)
    assert cards.left.send([NetBuffer(bytearray(packet), vnet)], 1.0).wire == []
    assert told(cards.left) == [("sa_expired", "packet-hard")]
    assert drops(cards.left) == {"out_sa_expired": 12}


@pytest.mark.parametrize("software", [False, True])
def test_receiver_passes_nothing_beyond_its_limit(software: bool) -> None:
    cards = Cards(None, Lifetime(packet_soft=2, packet_hard=4), software=software)
    frames = cards.send(8)
    assert cards.receive(frames[:1]) == 1
    assert told(cards.right) == []
    assert cards.receive(frames[1:7]) == 3
    assert told(cards.right) == [("sa_expiring", "packet-soft"), ("sa_expired", "packet-hard")]
    assert drops(cards.right) == {"in_sa_expired": 3}
    assert cards.receive(frames[7:]) == 0
    assert drops(cards.right) == {"in_sa_expired": 3, "in_no_sa": 1}


def test_forged_and_replayed_packets_do_not_age_an_sa() -> None:
    cards = Cards(None, Lifetime(packet_hard=2, time_use_hard=5))
    (frame,) = cards.send()
    forged = bytearray(frame)
    forged[-1] ^= 1
    assert cards.receive([forged] * 3) == 0
    assert cards.right._lifetimes.deadline == inf
    assert cards.receive([bytearray(frame), bytearray(frame), bytearray(frame)], 10.0) == 1
    assert cards.right._lifetimes.deadline == 15.0
    assert cards.receive(cards.send(2), 11.0) == 1


def test_time_since_it_was_added_ends_an_sa_without_traffic() -> None:
    cards = Cards(Lifetime(time_soft=5, time_hard=10), added=100.0)
    assert cards.left.deadline == 105.0
    cards.left.keep_time(104.9)
    assert told(cards.left) == []
    cards.left.keep_time(105.0)
    assert told(cards.left) == [("sa_expiring", "time-soft")]
    assert cards.left.deadline == 110.0
    cards.left.keep_time(110.0)
    assert told(cards.left) == [("sa_expired", "time-hard")]
    assert (cards.report(), cards.left.deadline) == (None, inf)


def test_burst_after_the_hour_finds_the_sa_gone_before_any_timer() -> None:
    cards = Cards(Lifetime(time_hard=10), Lifetime(time_hard=10))
    frames = cards.send(2, 9.9)
    assert cards.receive(frames[:1], 9.9) == 1
    assert cards.send(1, 10.0) == []
    assert cards.receive(frames[1:], 10.0) == 0
    assert (drops(cards.left), drops(cards.right)) == ({"out_no_sa": 1}, {"in_sa_expired": 1})
    assert told(cards.left) == told(cards.right) == [("sa_expired", "time-hard")]


def test_time_of_use_begins_with_the_first_packet() -> None:
    cards = Cards(Lifetime(time_use_soft=5, time_use_hard=10))
    assert cards.left.deadline == inf
    assert len(cards.send(1, 1000.0)) == 1
    assert cards.left.deadline == 1005.0
    assert len(cards.send(1, 1004.0)) == 1
    cards.left.keep_time(1007.0)
    assert told(cards.left) == [("sa_expiring", "time-use-soft")]
    assert len(cards.send(1, 1009.0)) == 1
    assert cards.send(1, 1010.0) == []
    assert told(cards.left) == [("sa_expired", "time-use-hard")]


def test_soft_limit_is_told_once_whichever_comes_first() -> None:
    cards = Cards(Lifetime(time_soft=2, packet_soft=2, byte_soft=LENGTH * 3))
    cards.send(4)
    cards.left.keep_time(5.0)
    cards.send(4, 6.0)
    assert told(cards.left) == [("sa_expiring", "packet-soft")]


def test_sa_made_in_time_takes_over_in_the_same_burst() -> None:
    cards = Cards(Lifetime(packet_hard=3))
    older, newer = cards.sa, association(spi=0x2000)
    # The one with the limit is the newest, so it is used first.
    cards.left.delete_sa(older.id)
    cards.left.add_sa(newer, 0.0)
    cards.left.add_sa(replace(older, lifetime=Lifetime(packet_hard=3)), 0.0)
    cards.right.add_sa(replace(newer, direction=IN), 0.0)
    assert cards.receive(cards.send(10)) == 10
    assert drops(cards.left) == {}
    assert told(cards.left) == [("sa_expired", "packet-hard")]


def test_update_with_the_same_keys_goes_on_counting_and_another_key_starts_anew() -> None:
    cards = Cards(Lifetime(packet_hard=10, time_hard=50))
    cards.send(4)
    cards.left.add_sa(replace(cards.sa, lifetime=Lifetime(packet_hard=5, time_hard=20)), 15.0, replace=True)
    assert cards.left.deadline == 20.0
    other = association(seed=9)
    cards.left.add_sa(replace(other, lifetime=Lifetime(packet_hard=5, time_hard=20)), 16.0, replace=True)
    assert cards.left.deadline == 36.0
    assert len(cards.send(9, 17.0)) == 5
    report = cards.report()
    assert report is None


def test_update_without_limits_lifts_them() -> None:
    cards = Cards(Lifetime(packet_hard=3, time_hard=5))
    cards.send(2)
    cards.left.add_sa(cards.sa, 2.0, replace=True)
    assert len(cards.send(9, 100.0)) == 9
    assert told(cards.left) == []


def test_sa_deleted_in_time_is_not_told_of() -> None:
    cards = Cards(Lifetime(time_soft=5, time_hard=10))
    cards.left.delete_sa(cards.sa.id)
    cards.left.keep_time(20.0)
    assert told(cards.left) == []


def test_one_layer_that_ends_takes_no_numbers_of_the_other() -> None:
    card = make_card(bytes)
    card.add_policy(policy(OUT, ANY, template(ESP, TRANSPORT), template(AH, TRANSPORT)))
    esp = association(mode=TRANSPORT, source="10.1.0.1", destination="10.2.0.1")
    ah = association(mode=TRANSPORT, source="10.1.0.1", destination="10.2.0.1", protocol=AH, spi=0x2000)
    card.add_sa(replace(esp, lifetime=Lifetime(byte_soft=LENGTH * 200)), 0.0)
    card.add_sa(replace(ah, lifetime=Lifetime(packet_hard=20)), 0.0)
    sent = sum(len(card.send([NetBuffer(bytearray(PACKET))], 1.0).wire) for _ in range(30))
    assert sent == 20
    (left,) = card.sas()
    assert (left.sa.id, left.sequence_number, left.counters.packets) == (esp.id, 20, 20)
    assert told(card) == [("sa_expired", "packet-hard")]


def test_many_ends_at_once_are_done_in_turns_and_all_told() -> None:
    card = make_card(bytes)
    card.add_policy(policy(OUT, ANY, template(ESP, TUNNEL, NEAR, FAR)))
    many = 1000
    for number in range(many):
        card.add_sa(association(spi=0x1000 + number, lifetime=Lifetime(time_soft=1, time_hard=2)), 0.0)
    heard: list[tuple[str, str]] = []
    card.keep_time(2.0)
    # All are out of use at once, whoever is still in the table.
    assert 0 < card.sa_count < many
    assert card.send([NetBuffer(bytearray(PACKET))], 2.0).wire == []
    turns = 0
    while card.deadline <= 2.0:
        turns += 1
        card.keep_time(2.0)
        heard += told(card)
    assert heard == [("sa_expired", "time-hard")] * many
    assert turns > 2
    assert card.sa_count == card.offloaded_count == 0


def test_deadlines_of_deleted_sas_are_forgotten() -> None:
    card = make_card(bytes)
    for _ in range(2000):
        card.add_sa(association(lifetime=Lifetime(time_hard=1000)), 0.0)
        card.delete_sa(association().id)
    assert len(card._lifetimes._deadlines) < 200


def test_sa_that_ends_while_the_nic_is_reset_goes_after_it() -> None:
    cards = Cards(Lifetime(time_hard=5))
    cards.left.begin_reset()
    cards.left.keep_time(6.0)
    assert cards.report() is not None
    assert cards.left.deadline == 0.0
    cards.left.end_reset()
    assert cards.send(1, 6.0) == []
    assert told(cards.left) == [("sa_expired", "time-hard")]
    assert cards.report() is None


def test_nic_that_was_removed_has_no_deadline() -> None:
    cards = Cards(Lifetime(time_hard=5))
    cards.left.remove()
    cards.left.keep_time(6.0)
    assert cards.left.deadline == inf


@pytest.mark.parametrize("member", ["time_hard", "byte_soft", "packet_hard"])
@pytest.mark.parametrize("number", [-1, 1 << 64])
def test_limit_that_has_not_64_bits_is_refused(member: str, number: int) -> None:
    sa: SecurityAssociation = association(lifetime=Lifetime(**{member: number}))
    with pytest.raises(RequestError) as caught:
        make_card(bytes).add_sa(sa, 0.0)
    assert caught.value.field == f"limit {member.replace('_', '-')}"
    assert caught.value.allowed


def test_lifetime_without_a_limit_is_none() -> None:
    assert association(lifetime=Lifetime()).checked().lifetime is None


@pytest.mark.parametrize("esn", [False, True])
def test_numbers_that_run_low_are_told_at_three_and_nine_of_ten(esn: bool) -> None:
    last = 0xFFFFFFFFFFFFFFFF if esn else 0xFFFFFFFF
    heard = []
    for percent in (75, 90):
        # The first number that makes so many percent full.
        first = (last * percent + 99) // 100
        cards = Cards(esn=esn, sequence_number=first - 3)
        assert len(cards.send(2)) == 2
        assert told(cards.left) == []
        assert len(cards.send(1)) == 1
        heard += told(cards.left)
        assert len(cards.send(5)) == 5
        assert told(cards.left) == []
    assert heard == [("sequence_low", "75 %"), ("sequence_low", "90 %")]


def test_numbers_that_leap_are_told_of_once() -> None:
    cards = Cards(esn=True)
    cards.left.update_sa(cards.sa.id, 0xF0000000)
    assert len(cards.send(3)) == 3
    assert told(cards.left) == [("sequence_low", "90 %")]


def blocks(cards: Cards, count: int) -> None:
    """Let the SA of the sender, and that of the receiver, look as if they had done so many blocks."""
    for card in (cards.left, cards.right):
        (state,) = card._sad
        state.counters.bytes = 8 * count - 16 * state.counters.packets
        state.stop = 0
        if state.sequence is not None:
            state.sequence.stop = 0


@pytest.mark.parametrize("encryption", ["3des-cbc", "des-cbc"])
def test_short_blocks_are_warned_of_at_both_ends(encryption: str) -> None:
    cards = Cards(encryption=encryption, integrity="hmac-sha1-96")
    for reached, limit in ((1 << 20, "cipher-soft"), (1 << 32, "cipher-hard")):
        # A packet of 128 bytes has 18 blocks at most.
        blocks(cards, reached - 19)
        assert cards.receive(cards.send()) == 1
        assert told(cards.left) == told(cards.right) == []
        assert cards.receive(cards.send(3)) == 3
        assert told(cards.left) == told(cards.right) == [("cipher_limit", limit)]
        report = cards.report()
        assert report is not None
        assert report.cipher_limit == limit
    assert cards.receive(cards.send(50)) == 50
    assert told(cards.left) == []


def test_short_blocks_end_the_sa_where_that_is_wanted() -> None:
    cards = Cards(encryption="3des-cbc", integrity="hmac-sha1-96")
    cards.left.enforce_cipher_limits = True
    blocks(cards, (1 << 32) - 18 * 3)
    assert len(cards.send(2)) == 2
    assert told(cards.left) == [("cipher_limit", "cipher-soft")]
    assert len(cards.send(3)) == 1
    assert told(cards.left) == [("sa_expired", "cipher-hard")]
    assert cards.report() is None
    assert cards.right.sa_count == 1


def test_enforcing_later_ends_what_is_beyond_with_its_next_packet() -> None:
    cards = Cards(encryption="3des-cbc", integrity="hmac-sha1-96")
    blocks(cards, 1 << 33)
    assert len(cards.send()) == 1
    assert told(cards.left) == [("cipher_limit", "cipher-hard")]
    cards.left.enforce_cipher_limits = True
    assert cards.send() == []
    assert told(cards.left) == [("sa_expired", "cipher-hard")]
    assert drops(cards.left) == {"out_sa_expired": 1}


def test_another_key_does_blocks_of_its_own() -> None:
    members = {"encryption": "3des-cbc", "integrity": "hmac-sha1-96"}
    cards = Cards(**members)  # type: ignore[arg-type]
    blocks(cards, 1 << 33)
    cards.send()
    other = association(seed=9, **members)  # type: ignore[arg-type]
    cards.left.add_sa(other, 2.0, replace=True)
    assert len(cards.send()) == 1
    report = cards.report()
    assert report is not None
    assert (report.cipher_limit, told(cards.left)) == ("", [("cipher_limit", "cipher-hard")])


@pytest.mark.parametrize(
    ("encryption", "integrity"), [("aes-gcm-128", None), ("aes-cbc-128", "hmac-sha1-96")]
)
def test_ciphers_without_a_bound_that_could_be_reached_have_none(
    encryption: str, integrity: str | None
) -> None:
    cards = Cards(encryption=encryption, integrity=integrity)
    cards.left.enforce_cipher_limits = True
    blocks(cards, 1 << 40)
    assert len(cards.send(3)) == 3
    assert told(cards.left) == []


def test_late_packets_show_the_window_they_needed() -> None:
    cards = Cards()
    frames = cards.send(2000)
    for number, needed in ((1, 0), (900, 0), (899, 2), (500, 401), (2000, 401), (1000, 1001), (1000, 1001)):
        cards.receive([bytearray(frames[number - 1])])
        (report,) = cards.right.sas()
        assert report.needed_window == needed, number
    # Beyond the 1024 of the window; a forged one says nothing.
    forged = bytearray(frames[1])
    forged[-1] ^= 1
    cards.receive([forged])
    assert cards.right.sas()[0].needed_window == 1001
    cards.receive([bytearray(frames[700 - 1])])
    assert cards.right.sas()[0].needed_window == 1301
    assert drops(cards.right)["in_replay_too_old"] >= 1
    assert cards.left.sas()[0].needed_window == 0


def test_external_transport_counts_for_itself() -> None:
    card = ExternalEngine(bytes)
    with pytest.raises(OidError) as caught:
        card.add_sa(association(lifetime=Lifetime(packet_hard=7)), 0.0)
    assert (caught.value.field, caught.value.value) == ("limit", "packet-hard")
