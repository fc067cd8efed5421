"""Asking for room: when the table is nearly full, the NIC asks for the deletion of an old inbound SA.

Law: one request at a time, and never more than a request: the SA stays and works until it is deleted (R117,
R136). Who moves it, and where to, is the transport's business. Only a packet whose ICV held makes it ask:
who has no key shall not choose what leaves the NIC.

    capacity - max(1, capacity / 16)          one SA of the older half of the inbound SAs, the first that
    ---------------------------------|<-->|   carries a packet; the next one when that one is gone

Source: sheet §12, R94, R135, R183. Microsoft names no rule for when; this one is ours.
"""

from __future__ import annotations

from vnic.miniport.sa_table import InboundBundle, SaTable

_RESERVE = 16
"""One part in so many of the capacity is kept free."""
_STALE = 32
"""The middle of the table is looked up anew after so many parts of the capacity were added."""


class DeleteRequests:
    """The NIC's wish for room."""

    __slots__ = ("_asked", "_looked_up_at", "_middle", "_table")

    def __init__(self, table: SaTable) -> None:
        self._table = table
        self._asked = 0
        self._middle = 0
        self._looked_up_at = -1

    def wanted(self) -> bool:
        """Whether an SA should be asked for now."""
        table = self._table
        capacity = table.capacity
        if len(table) <= capacity - max(1, capacity // _RESERVE):
            return False
        return not self._asked or not table.holds(self._asked)

    def consider(self, bundle: InboundBundle) -> bool:
        """Ask for the SA of a packet that was good, if it is one of the older half; gives whether it was.

        Call it only while a request is `wanted`.
        """
        if bundle.sa_delete_req or bundle.handle > self._older_half():
            return False
        bundle.sa_delete_req = True
        self._asked = bundle.handle
        return True

    def _older_half(self) -> int:
        """The last handle of the older half of the inbound SAs; 0 when there is no such half."""
        table = self._table
        added = table.last_handle - self._looked_up_at
        if self._looked_up_at < 0 or added > max(1, table.capacity // _STALE):
            handles = table.inbound_handles()
            self._middle = handles[len(handles) // 2 - 1] if len(handles) > 1 else 0
            self._looked_up_at = table.last_handle
        return self._middle
