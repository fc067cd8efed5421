"""Policies by what they select, so that a lookup does not walk those that have nothing to do with a packet.

Law: gives the very policy that a walk over all in order would give; a property test holds it to that. A
lookup costs by the number of different shapes of selectors (lengths of the prefixes, what else is named),
not by the number of policies.

Source: tuple space search (Srinivasan, Suri, Varghese, SIGCOMM 1999).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable

from vnic.ipsec.policy import ANY_PROTOCOL, HIDDEN_PROTOCOL, FlowKey, Match, PolicyEntry, Selector

Order = tuple[int, int]


def order(entry: PolicyEntry) -> Order:
    """Where a policy stands: by priority, then by age; a policy that replaces another keeps its index."""
    return entry.priority, entry.index


class PolicyList:
    """Policies in the order of lookup."""

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries: list[PolicyEntry] = []

    def add(self, entry: PolicyEntry) -> None:
        """Put one in its place."""
        insort(self.entries, entry, key=order)

    def remove(self, entry: PolicyEntry) -> None:
        """Take one out that is in."""
        del self.entries[bisect_left(self.entries, order(entry), key=order)]


class _Table:
    """Policies by their prefixes and, where `whole`, by protocol and single ports too."""

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole
        self._shapes: dict[tuple[int, int, int, bool, bool, bool], dict[Hashable, PolicyList]] = {}

    def _place(self, selector: Selector) -> tuple[tuple[int, int, int, bool, bool, bool], Hashable]:
        source, destination = selector.source, selector.destination
        bits = len(source.address) * 8
        whole = self._whole
        protocol = whole and selector.protocol != ANY_PROTOCOL
        sport = whole and selector.source_port is not None and selector.source_port_last is None
        dport = whole and selector.destination_port is not None and selector.destination_port_last is None
        shape = (bits, source.length, destination.length, protocol, sport, dport)
        key = (
            int.from_bytes(source.address, "big") >> bits - source.length,
            int.from_bytes(destination.address, "big") >> bits - destination.length,
            selector.protocol if protocol else None,
            selector.source_port if sport else None,
            selector.destination_port if dport else None,
        )
        return shape, key

    def add(self, entry: PolicyEntry) -> None:
        shape, key = self._place(entry.selector)
        self._shapes.setdefault(shape, {}).setdefault(key, PolicyList()).add(entry)

    def remove(self, entry: PolicyEntry) -> None:
        shape, key = self._place(entry.selector)
        table = self._shapes[shape]
        table[key].remove(entry)
        if not table[key].entries:
            del table[key]
            if not table:
                del self._shapes[shape]

    def first(self, flow: FlowKey, *, sure: bool) -> PolicyEntry | None:
        """The first policy that matches, or (unless `sure`) that could."""
        best: PolicyEntry | None = None
        bits = len(flow.source) * 8
        source, destination = int.from_bytes(flow.source, "big"), int.from_bytes(flow.destination, "big")
        for (
            width,
            source_length,
            destination_length,
            protocol,
            sport,
            dport,
        ), table in self._shapes.items():
            if width != bits:
                continue
            found = table.get(
                (
                    source >> bits - source_length,
                    destination >> bits - destination_length,
                    flow.protocol if protocol else None,
                    flow.source_port if sport else None,
                    flow.destination_port if dport else None,
                )
            )
            for entry in () if found is None else found.entries:
                if best is not None and order(entry) > order(best):
                    break
                match = entry.selector.match(flow)
                if match is Match.YES or (match is Match.UNSURE and not sure):
                    best = entry
                    break
        return best


class PolicyIndex:
    """The policies of one direction."""

    def __init__(self) -> None:
        self._by_all = _Table(whole=True)
        self._by_address = _Table(whole=False)
        """For packets that do not show all: a policy that could match them may name what they hide."""

    def add(self, entry: PolicyEntry) -> None:
        """Put a policy in."""
        self._by_all.add(entry)
        self._by_address.add(entry)

    def remove(self, entry: PolicyEntry) -> None:
        """Take a policy out that is in."""
        self._by_all.remove(entry)
        self._by_address.remove(entry)

    def first(self, flow: FlowKey, *, sure: bool = False) -> PolicyEntry | None:
        """The first policy in order that matches a flow, or that could if more of it were to be seen.

        Args:
            sure: leave out those that only could.
        """
        if flow.source_port < 0 or flow.protocol == HIDDEN_PROTOCOL:
            return self._by_address.first(flow, sure=sure)
        return self._by_all.first(flow, sure=sure)
