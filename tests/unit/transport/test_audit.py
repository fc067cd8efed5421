"""Counting and telling: every drop counts, events are limited and bounded."""

from __future__ import annotations

from math import inf

import pytest
from transport_lab import ESP, address

from vnic.ipsec.association import SaId
from vnic.ipsec.counters import EngineEvent, EventKind, SaCounters
from vnic.ipsec.drops import DropReason
from vnic.transport.audit import Audit


def sa(number: int = 0) -> SaId:
    return SaId(address("192.0.2.2"), ESP, 0x1000 + number)


def test_every_drop_counts_on_the_card_and_on_its_sa() -> None:
    audit = Audit()
    counters = SaCounters()
    audit.drop(DropReason.IN_ICV, 1.0, sa=sa(), counters=counters)
    audit.drop(DropReason.IN_ICV, 1.0, sa=sa(), counters=counters, count=4)
    audit.drop(DropReason.OUT_NO_SA, 1.0)
    assert audit.card.drops == {DropReason.IN_ICV: 5, DropReason.OUT_NO_SA: 1}
    assert counters.drops == {DropReason.IN_ICV: 5}


@pytest.mark.rule(11)
def test_first_drop_is_told_with_what_is_known_of_it() -> None:
    audit = Audit()
    audit.drop(
        DropReason.IN_REPLAY_DUPLICATE,
        0.0,
        sa=sa(),
        source=address("192.0.2.1"),
        destination=address("192.0.2.2"),
        sequence_number=77,
    )
    assert audit.take_events() == [
        EngineEvent(
            EventKind.DROP,
            sa(),
            DropReason.IN_REPLAY_DUPLICATE,
            address("192.0.2.1"),
            address("192.0.2.2"),
            77,
            0,
        )
    ]
    assert audit.take_events() == []


def test_more_of_the_same_within_a_second_is_counted_and_told_with_the_next() -> None:
    audit = Audit()
    for now in (10.0, 10.1, 10.5, 10.999, 11.0, 11.5, 12.5):
        audit.drop(DropReason.IN_ICV, now, sa=sa())
    assert [event.suppressed for event in audit.take_events()] == [0, 3, 1]
    assert audit.card.drops == {DropReason.IN_ICV: 7}


@pytest.mark.parametrize(
    "other",
    [
        EngineEvent(EventKind.DROP, sa(1), DropReason.IN_ICV),
        EngineEvent(EventKind.DROP, sa(), DropReason.IN_PADDING),
        EngineEvent(EventKind.SEQUENCE_EXHAUSTED, sa()),
    ],
)
def test_another_kind_reason_or_sa_has_a_limit_of_its_own(other: EngineEvent) -> None:
    audit = Audit()
    audit.drop(DropReason.IN_ICV, 5.0, sa=sa())
    audit.tell(other, 5.0)
    assert len(audit.take_events()) == 2


def test_pending_events_are_bounded_and_the_rest_is_counted() -> None:
    audit = Audit()
    for number in range(5000):
        audit.drop(DropReason.IN_ICV, 1.0, sa=sa(number))
    audit.drop(DropReason.IN_ICV, 3.0, sa=sa(4999))
    events = audit.take_events()
    assert len(events) == 1024
    assert audit.card.drops == {DropReason.IN_ICV: 5001}
    audit.drop(DropReason.IN_ICV, 5.0, sa=sa(4999))
    assert [event.suppressed for event in audit.take_events()] == [2]


def test_memory_of_what_was_told_is_bounded_even_if_nobody_takes_events() -> None:
    audit = Audit()
    for number in range(20_000):
        audit.drop(DropReason.IN_ICV, number * 0.001, sa=sa(number))
    assert len(audit._last) <= 4096
    assert len(audit._pending) <= 1024


def test_memory_of_what_was_told_is_bounded_while_events_are_taken() -> None:
    audit = Audit()
    for number in range(10_000):
        audit.drop(DropReason.IN_ICV, 1.0, sa=sa(number))
        audit.take_events()
    assert len(audit._last) <= 4096


def test_what_was_left_out_last_is_told_without_a_successor() -> None:
    audit = Audit()
    assert audit.deadline == inf
    for number, now in enumerate((10.0, 10.1, 10.2, 10.3)):
        audit.drop(DropReason.IN_ICV, now, sa=sa(), sequence_number=number)
    assert [event.suppressed for event in audit.take_events()] == [0]
    assert audit.deadline == pytest.approx(11.1)
    audit.keep_time(11.0)
    assert audit.take_events() == []
    audit.keep_time(11.1)
    (event,) = audit.take_events()
    assert (event.sequence_number, event.suppressed) == (3, 2), "the newest, and two more"
    assert audit.deadline == inf
    audit.drop(DropReason.IN_ICV, 11.2, sa=sa(), sequence_number=9)
    audit.keep_time(12.2)
    assert [(one.sequence_number, one.suppressed) for one in audit.take_events()] == [(9, 0)]


def test_no_drop_is_lost_from_the_events_numbers_of_left_out() -> None:
    audit = Audit()
    for number in range(20_000):
        audit.drop(DropReason.IN_ICV, number / 1000, sa=sa(number % 3))
        audit.keep_time(number / 1000)
    audit.keep_time(100.0)
    told = audit.take_events()
    assert sum(1 + event.suppressed for event in told) == 20_000
    assert len(told) <= 3 * 2 * 22
