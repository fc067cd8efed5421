"""Fixtures of the live tests; what skips them without root or TAP is in tests/conftest.py."""

from collections.abc import Iterator

import pytest
from namespaces import Namespaces


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    """Make namespaces, devices and programs that are gone after the test."""
    made = Namespaces()
    try:
        yield made
    finally:
        made.close()
