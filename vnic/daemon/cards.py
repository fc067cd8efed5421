"""Cards by their settings: which engine an adapter runs on, and with what NIC.

Law: the only place of the daemon that names an engine.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from vnic.engine.contract import Engine, ExternalCard
from vnic.engine.external import ExternalEngine
from vnic.engine.reference import ReferenceEngine
from vnic.ndis.capabilities import TaskOffload
from vnic.ndis.keywords import HostSwitches, Keywords


@dataclass(frozen=True, slots=True)
class CardSettings:
    """What a card is made of."""

    wire_mtu: int = 1500
    """Largest IP packet the wire carries, in bytes."""
    hardware: TaskOffload = field(default_factory=TaskOffload)
    """The card to model."""
    keywords: Keywords = field(default_factory=Keywords)
    host: HostSwitches = field(default_factory=HostSwitches)
    software: bool = True
    """Whether software IPsec takes what the NIC may or can not; inline transport only."""
    serial: int = 0
    """Number of the card in the daemon, from 0; no other card of the daemon has had it. Handles are numbered
    by it, so that one of another card is never valid by accident."""


def reference_card(settings: CardSettings) -> Engine:
    """Make a card with the inline transport."""
    return ReferenceEngine(
        os.urandom,
        settings.wire_mtu,
        settings.hardware,
        keywords=settings.keywords,
        host=settings.host,
        software=settings.software,
        serial=settings.serial,
    )


def external_card(settings: CardSettings) -> ExternalCard:
    """Make a card for a protocol driver outside."""
    return ExternalEngine(
        os.urandom,
        settings.wire_mtu,
        settings.hardware,
        keywords=settings.keywords,
        serial=settings.serial,
    )
