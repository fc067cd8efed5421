"""Counting what happened, and telling what is worth telling.

Law: every frame that ends in the card is counted here, under a reason of the one table. Events are
limited to one per reason and SA each second, so that attack traffic cannot flood a monitor or a log. What was
left out is told in the end, with its number.

Source: RFC 4301 §5.2, RFC 4302 §3.4, RFC 4303 §3.3.3, §3.4: SPI, addresses, sequence number and flow label.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from vnic.ipsec.association import SaId
from vnic.ipsec.counters import CardCounters, EngineEvent, EventKind, SaCounters
from vnic.ipsec.drops import DropReason

_EVENT_INTERVAL_S = 1.0
_MAX_PENDING = 1024
"""Events kept until somebody takes them; more are counted as suppressed."""
_MAX_SOURCES = 4096
"""Pairs of reason and SA whose last event is remembered."""

_Key = tuple[EventKind, DropReason | None, SaId | None]


class Audit:
    """The card's counters and its pending events.

    Attributes:
        deadline: `now` at which `keep_time` has something to tell; infinite when nothing was left out.
    """

    def __init__(self) -> None:
        self.card = CardCounters()
        self._pending: list[EngineEvent] = []
        self._last: dict[_Key, tuple[float, int]] = {}
        self._left_out: dict[_Key, EngineEvent] = {}
        self.deadline = inf

    def drop(
        self,
        reason: DropReason,
        now: float,
        *,
        sa: SaId | None = None,
        counters: SaCounters | None = None,
        source: bytes = b"",
        destination: bytes = b"",
        sequence_number: int = 0,
        count: int = 1,
        protocol: int = 0,
        spi: int = 0,
        flow_label: int = 0,
    ) -> None:
        """Count `count` frames that end here, on the card and on the SA if one is at hand."""
        drops = self.card.drops
        drops[reason] = drops.get(reason, 0) + count
        if counters is not None:
            counters.count_drop(reason, count)
        self.tell(
            EngineEvent(
                EventKind.DROP,
                sa,
                reason,
                source,
                destination,
                sequence_number,
                protocol=protocol,
                spi=spi,
                flow_label=flow_label,
            ),
            now,
        )

    def tell(self, event: EngineEvent, now: float) -> None:
        """Queue an event, unless one of the same kind, reason and SA was told within the last second."""
        key = (event.kind, event.drop, event.sa)
        last, suppressed = self._last.get(key, (-_EVENT_INTERVAL_S, 0))
        if key not in self._last and len(self._last) >= _MAX_SOURCES:
            self._tell_left_out(inf)
            self._last.clear()
            self._left_out.clear()
        if now - last < _EVENT_INTERVAL_S or len(self._pending) >= _MAX_PENDING:
            self._last[key] = (last, suppressed + 1)
            self._left_out[key] = event
            self.deadline = min(self.deadline, now + _EVENT_INTERVAL_S)
            return
        self._last[key] = (now, 0)
        self._left_out.pop(key, None)
        self._pending.append(replace(event, suppressed=suppressed) if suppressed else event)

    def keep_time(self, now: float) -> None:
        """Tell the latest of what was left out and has had no successor, and how many others there were."""
        if now < self.deadline:
            return
        self._tell_left_out(now)
        self.deadline = now + _EVENT_INTERVAL_S if self._left_out else inf

    def _tell_left_out(self, now: float) -> None:
        for key, event in list(self._left_out.items()):
            last, suppressed = self._last.get(key, (-inf, 1))
            if now - last < _EVENT_INTERVAL_S:
                continue
            if len(self._pending) >= _MAX_PENDING:
                break
            del self._left_out[key]
            self._last[key] = (now, 0)
            self._pending.append(replace(event, suppressed=suppressed - 1))

    def take_events(self) -> list[EngineEvent]:
        """Give the queued events and forget them."""
        pending = self._pending
        if pending:
            self._pending = []
        return pending
