"""Counters of one SA."""

from __future__ import annotations

from vnic.ipsec.counters import SaCounters
from vnic.ipsec.drops import DropReason


def test_drops_of_one_sa_are_not_those_of_another() -> None:
    one, other = SaCounters(), SaCounters()
    one.count_drop(DropReason.IN_ICV, 2)
    one.count_drop(DropReason.IN_ICV, 1)
    one.count_drop(DropReason.IN_PADDING, 5)
    assert one.drops == {DropReason.IN_ICV: 3, DropReason.IN_PADDING: 5}
    assert other.drops == {}
    assert other == SaCounters()
    assert one != other
