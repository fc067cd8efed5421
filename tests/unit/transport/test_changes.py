"""News of changes: bounded, taken once."""

from __future__ import annotations

from vnic.transport.changes import Changes


def test_what_was_noted_is_taken_once() -> None:
    changes: Changes[int] = Changes()
    assert changes.take() == set()
    for number in (1, 2, 1):
        changes.note(number)
    assert changes.take() == {1, 2}
    assert changes.take() == set()


def test_too_many_to_name_are_everything_until_the_next_look() -> None:
    changes: Changes[int] = Changes()
    for number in range(100_000):
        changes.note(number)
    assert changes.take() is None
    changes.note(1)
    assert changes.take() == {1}
