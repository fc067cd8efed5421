"""Which engine tests of a whole card run on: each of those that `--engine` names, in turn.

Law: a module whose tests hold for every engine says `pytestmark = BOTH_ENGINES` and makes its cards with
`make_card`.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest

from vnic.engine.reference import ReferenceEngine

REFERENCE, NATIVE = "reference", "native"

BOTH_ENGINES = pytest.mark.usefixtures("engine_under_test")

_current: list[type[ReferenceEngine]] = [ReferenceEngine]
_named: list[str] = []
_alone: list[str] = []


def engine_class(name: str) -> type[ReferenceEngine]:
    """The class of an engine."""
    if name == REFERENCE:
        return ReferenceEngine
    from vnic.engine.native import NativeEngine

    return NativeEngine


def native_is_installed() -> bool:
    return importlib.util.find_spec("vnic_native") is not None


def chosen(option: str | None) -> list[str]:
    """The engines that tests run on; a native one that was asked for and is missing fails there."""
    if option is None:
        wanted = native_is_installed() or os.environ.get("VNIC_NO_SKIP") == "1"
        option = "both" if wanted else REFERENCE
    return [REFERENCE, NATIVE] if option == "both" else [option]


def use(name: str) -> None:
    """Make the cards of the tests that follow with this engine, or (empty) as if no engine had been named."""
    _current[0] = engine_class(name or REFERENCE)
    _named[:] = [name] if name else []


def daemon_words() -> list[str]:
    """Words for vnicd to run on the engine under test; where a module does not care, on the one that
    `--engine` names alone, else on what vnicd chooses."""
    named = _named or _alone
    return ["--engine", named[-1]] if named else []


def take_alone(option: str | None) -> None:
    """Hear what `--engine` says: with one name every daemon runs on that engine."""
    _alone[:] = [option] if option in (REFERENCE, NATIVE) else []


def make_card(*arguments: Any, **options: Any) -> ReferenceEngine:
    """A card of the engine under test; the arguments are those of `ReferenceEngine`."""
    return _current[0](*arguments, **options)
