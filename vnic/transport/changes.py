"""Names of what has changed, kept for a cache that looks now and then.

Law: bounded; a cache that has not looked for long hears that everything may have changed.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")

_MAX_NAMES = 4096


class Changes(Generic[T]):
    """What has changed since the last look."""

    __slots__ = ("_everything", "_names")

    def __init__(self) -> None:
        self._names: set[T] = set()
        self._everything = False

    def note(self, name: T) -> None:
        """Remember one more."""
        if self._everything:
            return
        self._names.add(name)
        if len(self._names) > _MAX_NAMES:
            self._everything = True
            self._names = set()

    def take(self) -> set[T] | None:
        """Give them and forget them; None: too many to name."""
        names, everything = self._names, self._everything
        if names or everything:
            self._names, self._everything = set(), False
        return None if everything else names
