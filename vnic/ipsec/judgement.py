"""What policy would do with a packet, and why.

Law: frozen answers to a question; nothing was sent and nothing was changed to find them.
"""

from __future__ import annotations

from dataclasses import dataclass

from vnic.ipsec.association import SaId
from vnic.ipsec.drops import DropReason
from vnic.ipsec.policy import PolicyAction, PolicyEntry, Template


@dataclass(frozen=True, slots=True)
class TemplateChoice:
    """The SA that carries out one template now."""

    template: Template
    sa: SaId | None
    """Outbound: the one whose number would be taken. Inbound: the newest that a peer could use. None: there
    is none that fits."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What becomes of a packet."""

    action: PolicyAction
    """Of the policy, or the default of the direction."""
    policy: PolicyEntry | None
    """The entry that decides; None is the default, or (with a fragment's drop reason) that it depends on what
    the packet does not show."""
    drop: DropReason | None
    """Why it would end here; None: it passes, protected or in clear as `action` says."""
    choices: tuple[TemplateChoice, ...] = ()
    """For each template of the policy, innermost first."""
