"""Which engine the daemon takes, and what it says of it."""

from __future__ import annotations

import sys

import pytest

from tests.engines import native_is_installed
from vnic.daemon.cards import CardSettings, choose_engine
from vnic.errors import ConfigError


def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vnic_native", None)
    monkeypatch.delitem(sys.modules, "vnic.engine.native", raising=False)


def test_reference_engine_needs_nothing() -> None:
    choice = choose_engine("reference")
    assert (choice.name, choice.reason) == ("reference", "")
    assert choice.ciphers.startswith("OpenSSL")
    assert choice.make(CardSettings()).name == "reference"


def test_auto_takes_the_reference_engine_where_the_native_one_is_missing_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_native(monkeypatch)
    choice = choose_engine("auto")
    assert choice.name == "reference"
    assert "scripts/setup" in choice.reason


def test_native_engine_that_was_asked_for_and_is_missing_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_native(monkeypatch)
    with pytest.raises(ConfigError) as refused:
        choose_engine("native")
    assert refused.value.field == "engine"
    assert "scripts/setup" in str(refused.value)


@pytest.mark.skipif(not native_is_installed(), reason="needs the native engine: run scripts/setup")
def test_cpu_that_the_ciphers_do_not_run_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import vnic_native

    def refuse() -> None:
        raise RuntimeError("the CPU lacks AES-NI")

    monkeypatch.setattr(vnic_native, "Card", refuse)
    assert choose_engine("auto").reason == "the CPU lacks AES-NI"
    with pytest.raises(ConfigError, match="lacks AES-NI"):
        choose_engine("native")


@pytest.mark.skipif(not native_is_installed(), reason="needs the native engine: run scripts/setup")
def test_auto_takes_the_native_engine_where_it_works() -> None:
    choice = choose_engine("auto")
    assert (choice.name, choice.reason) == ("native", "")
    assert choice.ciphers.startswith("intel-ipsec-mb ")
    card = choice.make(CardSettings(serial=3))
    assert card.name == "native"
    assert card.punts is not None
