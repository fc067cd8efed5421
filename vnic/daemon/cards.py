"""Cards by their settings: which engine an adapter runs on, and with what NIC.

Law: the only place of the daemon that names an engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from cryptography.hazmat.backends.openssl import backend

from vnic.engine.contract import Engine, ExternalCard
from vnic.engine.external import ExternalEngine
from vnic.engine.reference import ReferenceEngine
from vnic.errors import ConfigError
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


EngineWord = Literal["auto", "reference", "native"]


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine that adapters with the inline transport get."""

    name: str
    """"reference" or "native"."""
    ciphers: str
    """Library of its ciphers, with version, and the code path for this CPU if it tells."""
    make: Callable[[CardSettings], Engine]
    reason: str = ""
    """Why it is not the native one, where that would have been taken."""


def choose_engine(wanted: EngineWord) -> EngineChoice:
    """Take the engine of that name; auto is the native one if it works here.

    Raises:
        ConfigError: the native engine was asked for and does not work here.
    """
    if wanted != "reference":
        try:
            return _native()
        except (ImportError, RuntimeError) as error:
            reason = str(error)
            if isinstance(error, ModuleNotFoundError) and error.name == "vnic_native":
                reason = "vnic-native is not installed: scripts/setup builds it, or: pip install ./native/py"
        if wanted == "native":
            raise ConfigError(
                f"the native engine does not work here: {reason}",
                field="engine",
                value=wanted,
                allowed="auto or reference, or a native engine that works",
            )
        return EngineChoice("reference", backend.openssl_version_text(), reference_card, reason)
    return EngineChoice("reference", backend.openssl_version_text(), reference_card)


def _native() -> EngineChoice:
    """The native engine.

    Raises:
        ImportError: it is not installed, or a library of its is missing.
        RuntimeError: this CPU or the limit of locked memory does not let its ciphers work.
    """
    import vnic_native

    from vnic.engine.native import NativeEngine

    def make(settings: CardSettings) -> Engine:
        return NativeEngine(
            os.urandom,
            settings.wire_mtu,
            settings.hardware,
            keywords=settings.keywords,
            host=settings.host,
            software=settings.software,
            serial=settings.serial,
        )

    ciphers = f"intel-ipsec-mb {vnic_native.library_version()} ({vnic_native.Card().arch})"
    return EngineChoice(NativeEngine.name, ciphers, make)


def external_card(settings: CardSettings) -> ExternalCard:
    """Make a card for a protocol driver outside."""
    return ExternalEngine(
        os.urandom,
        settings.wire_mtu,
        settings.hardware,
        keywords=settings.keywords,
        serial=settings.serial,
    )
