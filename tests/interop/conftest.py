"""Fixtures of the tests against peers we did not write; the daemon's are those of tests/live."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "live"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for one module's daemon."""
    return tmp_path_factory.mktemp("card")
