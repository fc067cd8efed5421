"""Policies as text, in the manner of `ip xfrm policy`, and as a table.

Law: messages to strings that `add` would take again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vnic.cli.render import paint, table
from vnic.cli.selector import prefixes, selector_text
from vnic.control.interface import Policy, PolicyDefault, PolicyState, Template

if TYPE_CHECKING:
    from vnic.cli.session import Session


def policy_text(state: PolicyState, session: Session) -> str:
    """Write one policy over several lines; -s adds its index."""
    policy = state.policy
    text = f"{selector_text(policy.selector)}\n\tdir {policy.direction}"
    if policy.action == "discard":
        text += " action block"
    elif policy.action == "bypass" or session.options.statistics:
        text += " action allow"
    if session.options.statistics or session.options.details:
        text += f" index {policy.index}"
    text += f" priority {policy.priority or 0} ptype main\n"
    for template in policy.templates or []:
        text += _template_text(template, policy)
    return text + f"\toffload packet dev {paint(state.adapter, 'name', session)}\n"


def _template_text(template: Template, policy: Policy) -> str:
    anything = "::" if ":" in prefixes(policy.selector)[0] else "0.0.0.0"  # noqa: S104 (means any)
    identity = f"proto {template.proto}"
    if template.spi:
        identity += f" spi {template.spi:#010x}"
    return (
        f"\ttmpl src {template.src or anything} dst {template.dst or anything}\n"
        f"\t\t{identity} reqid {template.reqid or 0} mode {template.mode or 'transport'}\n"
    )


def action_text(policy: Policy) -> str:
    """Write what a policy does in our own words."""
    if policy.action != "protect":
        return policy.action
    layers = []
    for template in policy.templates or []:
        layer = f"{template.proto} {template.mode or 'transport'}"
        if template.src or template.dst:
            layer += f" {template.src or 'any'} {template.dst or 'any'}"
        if template.reqid:
            layer += f" reqid {template.reqid}"
        if template.spi:
            layer += f" spi {template.spi:#x}"
        layers.append(layer)
    return "protect " + ", ".join(layers)


def brief_text(states: list[PolicyState], session: Session) -> str:
    """Write one line per policy under a head."""
    if not states:
        return ""
    rows = [
        [
            state.adapter,
            state.policy.direction,
            state.policy.priority or 0,
            state.policy.index or 0,
            selector_text(state.policy.selector),
            action_text(state.policy),
        ]
        for state in states
    ]
    head = ["ADAPTER", "DIR", "PRIORITY", "INDEX", "SELECTOR", "ACTION"]
    return table(head, rows, session, right=frozenset({2, 3}))


def defaults_text(defaults: list[PolicyDefault]) -> str:
    """Write the defaults as `ip xfrm policy getdefault` does, by adapter."""
    words = {"allow": "accept", "block": "block"}
    return "".join(
        f"Default policies of {default.adapter}:\n"
        f" in:  {words[default.inbound]}\n"
        f" out: {words[default.outbound]}\n"
        for default in defaults
    )
