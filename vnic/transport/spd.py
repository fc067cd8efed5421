"""The security policy database.

Law: an ordered list and its lookup; which SA carries out a policy is `sad`'s matter.

Source: RFC 4301 §4.4.1; order by priority, then by age, as the kernel has it.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from itertools import count

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

_SHAPES = (
    "at most ESP then AH in transport mode, then one tunnel: ESP, AH, or ESP with AH (transport) after it"
)


class Unsure(Exception):
    """A fragment does not show the ports that the policy in question names."""


class Spd:
    """Policies of one card.

    Attributes:
        defaults: verdicts for what matches no policy.
        generation: grows with every change, so that caches know they are stale.
    """

    def __init__(self) -> None:
        self.defaults = Defaults()
        self.generation = 0
        self._entries: dict[Direction, list[PolicyEntry]] = {direction: [] for direction in Direction}
        self._indexes = count(1)

    def add(self, policy: PolicyEntry, *, replace_existing: bool = False) -> PolicyEntry:
        """Put a policy in; gives it with its index.

        Raises:
            RequestError: the same direction and selector are there already (without `replace_existing`),
                or the templates cannot be carried out.
        """
        _check(policy)
        entries = self._entries[policy.direction]
        existing = next((entry for entry in entries if entry.selector == policy.selector), None)
        if existing is not None and not replace_existing:
            raise RequestError(
                f"a policy with this selector and direction exists (index {existing.index}); "
                "use update to replace it",
                field="policy",
                value=f"{policy.selector.source} -> {policy.selector.destination}",
            )
        if existing is not None:
            entries.remove(existing)
        entry = replace(policy, index=existing.index if existing else next(self._indexes))
        entries.append(entry)
        # Indexes grow with age, and a replaced policy keeps its own.
        entries.sort(key=lambda item: (item.priority, item.index))
        self.generation += 1
        return entry

    def delete(self, direction: Direction, selector: Selector | None, index: int) -> PolicyEntry:
        """Take a policy out, by selector or, when that is None, by index.

        Raises:
            RequestError: there is none.
        """
        entries = self._entries[direction]
        for entry in entries:
            if entry.selector == selector if selector is not None else entry.index == index:
                entries.remove(entry)
                self.generation += 1
                return entry
        wanted = f"{selector.source} -> {selector.destination}" if selector else f"index {index}"
        raise RequestError(
            f"no {direction.value} policy has this {'selector' if selector else 'index'}",
            field="policy",
            value=wanted,
            allowed="a policy that `policy show` lists",
        )

    def entries(self, direction: Direction | None = None) -> list[PolicyEntry]:
        """Policies in the order of lookup, of one direction or of both."""
        if direction is not None:
            return list(self._entries[direction])
        return [entry for entries in self._entries.values() for entry in entries]

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
        skipping = self.defaults.fragments is FragmentRule.ANY
        skipped = False
        for entry in self._entries[direction]:
            match = entry.selector.match(flow)
            if match is Match.YES:
                return entry
            if match is Match.UNSURE:
                if not skipping:
                    raise Unsure
                skipped = True
        if skipped:
            raise Unsure
        return None


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
