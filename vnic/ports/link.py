"""LinkPort: a wire between two adapters of one daemon, without any descriptor.

Law: whole bursts change hands, no byte is copied; a queue is bounded in frames and in bytes. Long before the
bound it has no room: who sends reads its source no more until there is some, so that nothing is lost here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from vnic.errors import RequestError
from vnic.ipsec.drops import DropReason
from vnic.ndis.netbuffer import NetBuffer
from vnic.ndis.status import NdisStatus
from vnic.ports.base import BURST_PACKETS, Counting
from vnic.ports.offloads import OFFLOADS, ON

QUEUE_FRAMES = 16_384
QUEUE_BYTES = 64 << 20
"""1,024 frames of 64 KiB: what a queue may hold of memory."""

_ROOM = 4
"""A queue has room while it is no fuller than the n-th part: what one burst becomes fits into the rest."""

_DOWN = DropReason.WIRE_DOWN.value
_FULL = DropReason.LINK_QUEUE_FULL.value


class LinkOwner(Protocol):
    """Who moves the frames of one end."""

    def take_waiting(self) -> None:
        """Take all that waits in the queue at once."""
        ...


class LinkPort(Counting):
    """One end of a link wire, as a Port. Connected to nothing until `join`.

    Attributes:
        name, mtu, counters: as for `Port`.
        kind: "link" while connected, else "none".
        peer: the other end, or None while not connected.
        owner: who moves the frames of this end, while nothing stands between and it moves them.
        native: as for `Counting`; it has no descriptors.
    """

    read_loss = write_loss = _FULL

    def __init__(
        self, name: str, *, mtu: int = 1500, queue_frames: int = QUEUE_FRAMES, queue_bytes: int = QUEUE_BYTES
    ) -> None:
        """Make an end that is connected to nothing.

        Args:
            queue_frames, queue_bytes: how much may wait here until `receive_burst` takes it; what comes
                beyond is dropped and counted at the end that sent it.

        Raises:
            RequestError: a queue that holds nothing.
        """
        for field, value in (("queue_frames", queue_frames), ("queue_bytes", queue_bytes)):
            if value < 1:
                raise RequestError("a link needs a queue", field=field, value=str(value), allowed="1 or more")
        super().__init__()
        self.name = name
        self.kind = "none"
        self.mtu = mtu
        self.peer: LinkPort | None = None
        self.owner: LinkOwner | None = None
        self._queue: deque[NetBuffer] = deque()
        self._queue_frames = queue_frames
        self._queue_bytes = queue_bytes
        self._queued_bytes = 0
        self._wake: Callable[[], None] | None = None
        self._held_back = False

    def fileno(self) -> int | None:
        return None

    def set_wake(self, wake: Callable[[], None] | None) -> None:
        """Have `wake` called when the queue turns non-empty, when a burst left frames behind, and when the
        other end has room again after `has_room` said no.

        It is called at once if frames wait already. It must only schedule a `receive_burst`, not do it:
        it runs inside the other end's `send_burst`.
        """
        self._wake = wake
        if wake is not None and self._queue:
            wake()

    @property
    def waiting(self) -> int:
        """Frames that have arrived and were not taken yet."""
        return len(self._queue)

    def has_room(self) -> bool:
        """Whether the other end's queue takes what a burst becomes; an end not connected takes all."""
        peer = self.peer
        if peer is None or peer._is_roomy():
            return True
        peer._held_back = True
        return False

    def _is_roomy(self) -> bool:
        return (
            len(self._queue) <= self._queue_frames // _ROOM
            and self._queued_bytes <= self._queue_bytes // _ROOM
        )

    def receive_burst(self) -> list[NetBuffer]:
        queue = self._queue
        if len(queue) <= BURST_PACKETS:
            burst = list(queue)
            queue.clear()
            received_bytes = self._queued_bytes
        else:
            take = queue.popleft
            burst = [take() for _ in range(BURST_PACKETS)]
            received_bytes = sum(len(buffer.frame) for buffer in burst)
        self._queued_bytes -= received_bytes
        counters = self._counters
        counters.rx_frames += len(burst)
        counters.rx_bytes += received_bytes
        if queue and self._wake is not None:
            self._wake()
        if self._held_back and self._is_roomy():
            self._let_send()
        return burst

    def send_burst(self, burst: list[NetBuffer]) -> None:
        """Hand the frames to the other end, which owns them from then on; see `Port.send_burst`.

        A wire carries frames alone: what sender and NIC noted about them stays behind.
        """
        peer = self.peer
        if peer is None:
            self._lose(_DOWN, len(burst))
            return
        queue = peer._queue
        was_empty = not queue
        append = queue.append
        frames_left = peer._queue_frames - len(queue)
        bytes_before = bytes_left = peer._queue_bytes - peer._queued_bytes
        success = NdisStatus.SUCCESS
        sent = 0
        for buffer in burst:
            length = len(buffer.frame)
            if sent == frames_left or length > bytes_left:
                continue
            buffer.transmit = None
            buffer.receive = None
            buffer.status = success
            append(buffer)
            sent += 1
            bytes_left -= length
        sent_bytes = bytes_before - bytes_left
        peer._queued_bytes += sent_bytes
        counters = self._counters
        counters.tx_frames += sent
        counters.tx_bytes += sent_bytes
        self._lose(_FULL, len(burst) - sent)
        if was_empty and sent and peer._wake is not None:
            peer._wake()

    def features(self) -> dict[str, str]:
        return {offload.name: ON for offload in OFFLOADS}

    def close(self) -> None:
        unjoin(self)
        self._close_native()
        self._wake = None
        self.owner = None
        self._queue.clear()
        self._queued_bytes = 0

    def _let_send(self) -> None:
        """Tell the other end that it was held back long enough."""
        self._held_back = False
        if self.peer is not None and self.peer._wake is not None:
            self.peer._wake()


def join(left: LinkPort, right: LinkPort) -> None:
    """Connect two ends.

    Raises:
        RequestError: an end that is connected already, or twice the same.
    """
    if left is right:
        raise RequestError(
            "a link has two ends", field="peer", value=right.name, allowed="another adapter's wire"
        )
    for port in (left, right):
        if port.peer is not None:
            raise RequestError(
                f"it is joined to {port.peer.name} already",
                field="link",
                value=port.name,
                allowed="an adapter whose wire is none",
            )
    for port, peer in ((left, right), (right, left)):
        port.peer = peer
        port.kind = "link"


def unjoin(port: LinkPort) -> None:
    """Disconnect both ends; frames that arrived before stay to be taken. Idempotent."""
    for end in (port.peer, port):
        if end is not None:
            if end._held_back:
                end._let_send()
            end.peer = None
            end.kind = "none"
