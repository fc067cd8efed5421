"""Fixtures of the tests of vnic.cli."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_daemon import FakeDaemon
from in_process import Command


def _daemon(directory: Path, uid: int) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(directory, uid)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    """A daemon that takes everybody for root."""
    yield from _daemon(tmp_path, 0)


@pytest.fixture
def vnic(daemon: FakeDaemon) -> Command:
    """The command, connected to that daemon."""
    return Command(daemon)


@pytest.fixture
def readers_vnic(tmp_path: Path) -> Iterator[Command]:
    """The command of one who may only look."""
    for daemon in _daemon(tmp_path, 4242):
        yield Command(daemon)
