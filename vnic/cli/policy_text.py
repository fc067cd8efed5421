"""Policies as text, in the manner of `ip xfrm policy`, and as a table.

Law: messages to strings that `add` would take again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vnic.cli.render import paint, table
from vnic.cli.selector import prefixes, selector_text
from vnic.control.interface import Policy, PolicyDefault, PolicyState, Template, TestPolicyReply

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
    layers = [_layer_text(template) for template in policy.templates or []]
    return "protect " + ", ".join(layers)


def _layer_text(template: Template) -> str:
    layer = f"{template.proto} {template.mode or 'transport'}"
    if template.src or template.dst:
        layer += f" {template.src or 'any'} {template.dst or 'any'}"
    if template.reqid:
        layer += f" reqid {template.reqid}"
    if template.spi:
        layer += f" spi {template.spi:#x}"
    return layer


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


def test_text(reply: TestPolicyReply, session: Session) -> str:
    """Write what would become of a packet: the verdict, the policy, and the SA of each template."""
    if reply.drop is not None:
        text = f"{paint('drop', 'bad', session)}: {reply.drop.text} ({reply.drop.name})\n"
    else:
        words = {"protect": "leaves protected", "bypass": "leaves in clear"}
        if reply.direction == "in":
            words = {"protect": "passes if it comes protected", "bypass": "passes in clear"}
        text = f"{paint(reply.verdict, 'good', session)}: {words[reply.verdict]}\n"
    if reply.policy is not None:
        policy = reply.policy
        text += (
            f"\tpolicy index {policy.index} priority {policy.priority or 0}: "
            f"{selector_text(policy.selector)} {action_text(policy)}\n"
        )
    elif reply.drop is not None and reply.drop.name.endswith("_fragment"):
        text += "\tno policy decides without the ports: say sport and dport, or type and code\n"
    else:
        text += f"\tno policy: the default of {reply.adapter} for what {_WAYS[reply.direction]}\n"
    for tested in reply.templates:
        text += f"\t{_layer_text(tested.template)}: "
        if tested.sa is None:
            text += "no SA fits\n"
            continue
        holder = f"handle {tested.handle}" if tested.handle else f"{tested.offload}"
        text += f"SA dst {tested.sa.dst} {tested.sa.proto} spi {tested.sa.spi:#010x} ({holder})\n"
    return text


_WAYS = {"in": "comes in", "out": "goes out"}


def defaults_text(defaults: list[PolicyDefault]) -> str:
    """Write the defaults as `ip xfrm policy getdefault` does, by adapter."""
    words = {"allow": "accept", "block": "block"}
    return "".join(
        f"Default policies of {default.adapter}:\n"
        f" in:  {words[default.inbound]}\n"
        f" out: {words[default.outbound]}\n"
        for default in defaults
    )
