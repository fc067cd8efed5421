"""Defects of the data path: counted, logged without what they quote, and given up on.

Law: one defect costs one burst; a thousand in a row cost the adapter.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable

log = logging.getLogger(__name__)

_REPORT_INTERVAL_S = 60.0
_DEFECTS_IN_A_ROW = 1000
"""Bursts lost one after the other before the adapter is given up: it would burn a core for nothing."""


class Defects:
    """The defects of one adapter.

    Attributes:
        count: bursts given up because of one.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        """Begin with none.

        Args:
            name: of the adapter, for the log.
            clock: monotonic seconds.
        """
        self.count = 0
        self._name = name
        self._clock = clock
        self._in_a_row = 0
        self._last_report = -_REPORT_INTERVAL_S

    def over(self) -> None:
        """A burst went through."""
        self._in_a_row = 0

    def add(self, error: BaseException) -> str:
        """Count a defect and log where it arose, but not its text: that might quote a frame.

        Returns:
            Why the adapter has to be given up, or "".
        """
        self.count += 1
        self._in_a_row += 1
        now = self._clock()
        if now - self._last_report >= _REPORT_INTERVAL_S:
            self._last_report = now
            frames = "".join(traceback.format_tb(error.__traceback__)).rstrip()
            kind = type(error).__name__
            log.error(
                "adapter %s: a burst was lost to %s (%d so far)\n%s", self._name, kind, self.count, frames
            )
        if self._in_a_row < _DEFECTS_IN_A_ROW:
            return ""
        return f"{_DEFECTS_IN_A_ROW} bursts in a row were lost to {type(error).__name__}; see the log"
