"""The policies that have nothing to do with the measured flow: all different, none of them its own."""

from __future__ import annotations

from benchmarks import policies
from vnic.ipsec.association import Direction


def test_unrelated_policies_are_all_different_and_let_the_flow_be() -> None:
    entries = [policies.unrelated(number) for number in range(3000)]
    assert len({entry.selector for entry in entries}) == 3000
    card = policies.engine()
    for entry in entries:
        card.add_policy(entry)
    assert card.policy_count == 3001
    assert card.inner_mtu(1500) < 1500
    (sent,) = card.send([policies.frame(5000)], 1.0).wire
    assert sent.frame[23] == 50, "ESP"
    (last,) = [entry for entry in card.policies() if entry.priority == 1000]
    assert card.find_policy(Direction.OUTBOUND, last.selector) == last
