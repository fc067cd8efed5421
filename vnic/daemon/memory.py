"""Memory of a daemon with many SAs: it goes back to the system when most are gone.

Law: looks at a count, and works at most once for each time that the SAs were many and are few now. What is
freed one by one stays with the process otherwise: in the C library's heap, and in blocks of the interpreter
of which nothing is used but a spare object that it keeps.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable
from typing import Any

_MANY = 4096
"""SAs that make it worth the while: some megabytes."""

_FEW = 8
"""What is left is few when it is less than one part in this many."""

_PAUSE_S = 0.3

_YOUNG = 20_000
"""Objects made before the collector looks at them. With its default of 700 the collector looks at every SA
several times and takes a quarter of the time of adding one, and nothing on that path makes cycles."""


def ease_collector() -> None:
    """Let the collector leave alone what the process has begun with, and look seldom at the rest."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 50)


class Memory:
    """Watches how many SAs there are.

    Args:
        count: how many SAs all adapters hold.
        give_back: frees what it can; for tests.
    """

    def __init__(self, count: Callable[[], int], give_back: Callable[[], None] | None = None) -> None:
        self._count = count
        self._give_back = _give_back if give_back is None else give_back
        self._most = 0
        self._timer: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Note how many SAs there are before something is done that may take some away."""
        count = self._count()
        self._most = max(self._most, count)
        if self._most >= _MANY and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PAUSE_S, self._look_again, count)

    def _look_again(self, before: int) -> None:
        self._timer = None
        count = self._count()
        if count < before:
            self.look()
        elif count * _FEW <= self._most:
            self._most = count
            self._give_back()
            # What was in use the first time and is spare now goes the second time.
            asyncio.get_running_loop().call_later(_PAUSE_S, self._give_back)


_malloc_trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""The C library's, if it has one."""


def _give_back() -> None:
    # A full collection also empties the lists of spare objects, and then whole blocks are free.
    gc.collect()
    if _malloc_trim is not None:
        _malloc_trim(0)
