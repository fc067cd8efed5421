"""The security policy database.

Law: an ordered list and its lookup; which SA carries out a policy is `sad`'s matter.

Source: RFC 4301 §4.4.1; order by priority, then by age, as the kernel has it.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from itertools import count
from typing import NamedTuple

from vnic.errors import RequestError
from vnic.ipsec.association import Direction, IpsecProtocol, Mode
from vnic.ipsec.policy import (
    MAX_PRIORITY,
    Defaults,
    FlowKey,
    FragmentRule,
    Match,
    PolicyAction,
    PolicyEntry,
    Selector,
    Template,
    check_ports,
)
from vnic.transport.changes import Changes
from vnic.transport.policy_index import PolicyIndex, PolicyList

_SHAPES = (
    "at most ESP then AH in transport mode, then one tunnel: ESP, AH, or ESP with AH (transport) after it"
)


class Unsure(Exception):
    """A fragment does not show the ports that the policy in question names."""


class Protection(NamedTuple):
    """What an outbound policy asks for, apart from whose packets it is about."""

    version: int
    """Of IP, of the packets it protects."""
    templates: tuple[Template, ...]


class Spd:
    """Policies of one card.

    Attributes:
        defaults: verdicts for what matches no policy.
        generation: grows with every change, so that caches know they are stale.
        protections: how many outbound policies ask for each protection.
        protection_changes: protections whose policies came, went or changed.
    """

    def __init__(self) -> None:
        self.defaults = Defaults()
        self.generation = 0
        self.protections: dict[Protection, int] = {}
        self.protection_changes: Changes[Protection] = Changes()
        self._ordered = {direction: PolicyList() for direction in Direction}
        self._lookup = {direction: PolicyIndex() for direction in Direction}
        self._by_selector: dict[tuple[Direction, Selector], PolicyEntry] = {}
        self._by_index: dict[int, PolicyEntry] = {}
        self._indexes = count(1)

    def __len__(self) -> int:
        return len(self._by_index)

    def add(self, policy: PolicyEntry, *, replace_existing: bool = False) -> PolicyEntry:
        """Put a policy in; gives it with its index.

        Raises:
            RequestError: the same direction and selector are there already (without `replace_existing`),
                or the templates cannot be carried out.
        """
        _check(policy)
        existing = self._by_selector.get((policy.direction, policy.selector))
        if existing is not None and not replace_existing:
            raise RequestError(
                f"a policy with this selector and direction exists (index {existing.index}); "
                "use update to replace it",
                field="policy",
                value=f"{policy.selector.source} -> {policy.selector.destination}",
            )
        if existing is not None:
            self._remove(existing)
        entry = replace(policy, index=existing.index if existing else next(self._indexes))
        self._ordered[entry.direction].add(entry)
        self._lookup[entry.direction].add(entry)
        self._by_selector[entry.direction, entry.selector] = entry
        self._by_index[entry.index] = entry
        self._count_protection(entry, 1)
        self.generation += 1
        return entry

    def find(self, direction: Direction, selector: Selector | None, index: int) -> PolicyEntry | None:
        """The policy with this selector or, when that is None, with this index."""
        if selector is not None:
            return self._by_selector.get((direction, selector))
        entry = self._by_index.get(index)
        return entry if entry is not None and entry.direction is direction else None

    def delete(self, direction: Direction, selector: Selector | None, index: int) -> PolicyEntry:
        """Take a policy out, by selector or, when that is None, by index.

        Raises:
            RequestError: there is none.
        """
        entry = self.find(direction, selector, index)
        if entry is not None:
            self._remove(entry)
            self.generation += 1
            return entry
        wanted = f"{selector.source} -> {selector.destination}" if selector else f"index {index}"
        raise RequestError(
            f"no {direction.value} policy has this {'selector' if selector else 'index'}",
            field="policy",
            value=wanted,
            allowed="a policy that `policy show` lists",
        )

    def _remove(self, entry: PolicyEntry) -> None:
        self._ordered[entry.direction].remove(entry)
        self._lookup[entry.direction].remove(entry)
        del self._by_selector[entry.direction, entry.selector]
        del self._by_index[entry.index]
        self._count_protection(entry, -1)

    def _count_protection(self, entry: PolicyEntry, change: int) -> None:
        if entry.direction is not Direction.OUTBOUND or entry.action is not PolicyAction.PROTECT:
            return
        version = 6 if len(entry.selector.source.address) == 16 else 4
        protection = Protection(version, entry.templates)
        number = self.protections.get(protection, 0) + change
        if number:
            self.protections[protection] = number
        else:
            del self.protections[protection]
        if number == max(change, 0):
            self.protection_changes.note(protection)

    def entries(self, direction: Direction | None = None) -> list[PolicyEntry]:
        """Policies in the order of lookup, of one direction or of both."""
        if direction is not None:
            return list(self._ordered[direction].entries)
        return [entry for ordered in self._ordered.values() for entry in ordered.entries]

    def set_defaults(self, defaults: Defaults) -> None:
        """Change the verdicts for what matches nothing.

        Raises:
            RequestError: PROTECT names no SA and is no default.
        """
        for word, action in (
            ("in", defaults.inbound),
            ("out", defaults.outbound),
            ("non-ip", defaults.non_ip),
        ):
            if action is PolicyAction.PROTECT:
                raise RequestError(
                    "a default cannot protect", field=word, value=action.value, allowed="bypass, discard"
                )
        self.defaults = defaults
        self.generation += 1

    def lookup(self, direction: Direction, flow: FlowKey) -> PolicyEntry | None:
        """The first policy that matches, or None.

        Raises:
            Unsure: the first that could match names ports, and the fragment does not show them; or it is left
                out for that (`FragmentRule.ANY`) and no other matches.
        """
        index = self._lookup[direction]
        first = index.first(flow)
        if first is None or first.selector.match(flow) is Match.YES:
            return first
        if self.defaults.fragments is FragmentRule.ANY:
            first = index.first(flow, sure=True)
            if first is not None:
                return first
        raise Unsure


def _check(policy: PolicyEntry) -> None:
    if not 0 <= policy.priority <= MAX_PRIORITY:
        raise RequestError(
            "priority out of range",
            field="priority",
            value=str(policy.priority),
            allowed=f"0 to {MAX_PRIORITY}",
        )
    _check_selector(policy.selector)
    if (policy.action is PolicyAction.PROTECT) != bool(policy.templates):
        raise RequestError(
            "a policy that protects needs a template, and only such a policy takes one",
            field="tmpl",
            value=f"{len(policy.templates)} with action {policy.action.value}",
            allowed="templates with protect, none with bypass or discard",
        )
    if policy.templates:
        _check_templates(policy)


def _check_selector(selector: Selector) -> None:
    for word, prefix in (("src", selector.source), ("dst", selector.destination)):
        if len(prefix.address) not in (4, 16) or not 0 <= prefix.length <= len(prefix.address) * 8:
            raise RequestError("not an address prefix", field=word, allowed="ADDRESS/LENGTH")
    if len(selector.source.address) != len(selector.destination.address):
        raise RequestError(
            "the selector mixes IPv4 and IPv6",
            field="src",
            value=str(selector.source),
            allowed="both of one family",
        )
    check_ports(selector)


def _check_templates(policy: PolicyEntry) -> None:
    shape = "".join(_letter(template) for template in policy.templates)
    transport, tunnel = _split(shape)
    if transport not in ("", "e", "a", "ea") or tunnel not in ("", "E", "A", "Ea"):
        raise RequestError(
            "the templates cannot be carried out in this order (innermost first)",
            field="tmpl",
            value=", ".join(f"{item.protocol.name.lower()} {item.mode.value}" for item in policy.templates),
            allowed=_SHAPES,
        )
    # A template for transport mode has the family of what is inside it: the packet, or the tunnel.
    length = len(policy.selector.source.address)
    for template in policy.templates:
        if template.mode is Mode.TUNNEL:
            if not (
                template.source
                and template.destination
                and any(template.source)
                and any(template.destination)
            ):
                raise RequestError(
                    "a tunnel template needs both end points",
                    field="tmpl src",
                    allowed="src ADDRESS dst ADDRESS",
                )
            length = len(template.destination)
        for address in (template.source, template.destination):
            if address is not None and len(address) != length:
                raise RequestError(
                    "a template mixes IPv4 and IPv6",
                    field="tmpl src",
                    value=str(ip_address(address)) if len(address) in (4, 16) else "",
                    allowed="the family of the other end point and of the packets it protects",
                )


def _letter(template: Template) -> str:
    letter = "e" if template.protocol is IpsecProtocol.ESP else "a"
    return letter.upper() if template.mode is Mode.TUNNEL else letter


def _split(shape: str) -> tuple[str, str]:
    for position, letter in enumerate(shape):
        if letter.isupper():
            return shape[:position], shape[position:]
    return shape, ""
