"""Fixtures of the live tests; what skips them without root or TAP is in tests/conftest.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from card import Daemon, Pair, running_daemon, running_pair
from namespaces import Namespaces


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    """Make namespaces, devices and programs that are gone after the test."""
    made = Namespaces()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A vnicd without adapters, for this test alone."""
    with running_daemon(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two adapters joined by a link wire, for all tests of a module; see `clean_pair`."""
    if "engine_under_test" in request.fixturenames:
        request.getfixturevalue("engine_under_test")
    with running_pair(tmp_path_factory.mktemp("card")) as made:
        yield made


@pytest.fixture
def clean_pair(pair: Pair) -> Pair:
    """The module's pair, without any policy or association yet."""
    pair.unprotect()
    return pair


@pytest.fixture
def veth_pair(tmp_path: Path) -> Iterator[Pair]:
    """Two adapters joined by a veth, for this test alone: a wire that can be watched and tampered with."""
    with running_pair(tmp_path, "netdev") as made:
        yield made
