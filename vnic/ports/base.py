"""Port: what the forwarder needs of a device, whatever it is.

Law: a port moves bursts of Ethernet frames and counts what it could not move. It never blocks, never
looks behind the Ethernet header, and turns every OSError of set-up into a PortError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from vnic.ndis.netbuffer import NetBuffer

BURST_FRAMES = 64
"""Frames taken per wake-up at the most, so that the control socket stays alive under load."""

BURST_BYTES = 128 * 1024
"""No further frame is taken in a wake-up that has taken this many bytes: two or three superframes of the host
become some 140 packets, a millisecond of work."""

BURST_PACKETS = 256
"""Like BURST_FRAMES, for a port whose frames are single packets that cost no system call: room for what
BURST_BYTES become, so that the segments of a superframe come out as they went in, together."""


@dataclass(slots=True)
class PortCounters:
    """Frames and bytes that passed a port. rx is towards the card, tx is away from it."""

    rx_frames: int = 0
    rx_bytes: int = 0
    tx_frames: int = 0
    tx_bytes: int = 0
    drops: dict[str, int] = field(default_factory=dict)
    """Frames lost at this port, by the name of their DropReason."""


class NativePort(Protocol):
    """The same descriptors, read and written by the native engine."""

    def take_counts(self) -> tuple[int, int, int, int, int, int]:
        """Give rx frames, rx bytes, tx frames, tx bytes, frames lost in reading and frames lost in writing
        since the last call."""
        ...

    def close(self) -> None:
        """Touch the descriptors no more: they are about to be given back. Idempotent."""
        ...


class Counting:
    """What ports have in common that the native engine may read and write beside them.

    Attributes:
        native: the native engine's view of this port, None without one.
    """

    read_loss = ""
    """Name of the DropReason of a frame lost in reading."""
    write_loss = ""
    """The same in writing."""

    def __init__(self) -> None:
        self.native: NativePort | None = None
        self._counters = PortCounters()

    @property
    def counters(self) -> PortCounters:
        """Frames that passed, whoever moved them, and frames lost here."""
        counters = self._counters
        if self.native is not None:
            rx_frames, rx_bytes, tx_frames, tx_bytes, rx_lost, tx_lost = self.native.take_counts()
            counters.rx_frames += rx_frames
            counters.rx_bytes += rx_bytes
            counters.tx_frames += tx_frames
            counters.tx_bytes += tx_bytes
            self._lose(self.read_loss, rx_lost)
            self._lose(self.write_loss, tx_lost)
        return counters

    def _lose(self, reason: str, count: int = 1) -> None:
        if count:
            drops = self._counters.drops
            drops[reason] = drops.get(reason, 0) + count

    def is_quiet(self) -> bool:
        """Whether nothing waits here that only Python can do, so that the native engine may go on."""
        return True

    def _close_native(self) -> None:
        """Take over what was counted natively, and end it."""
        if self.native is not None:
            _ = self.counters
            self.native.close()
            self.native = None


class Port(Protocol):
    """One side of the card.

    Attributes:
        name: what a person calls it ("tap0", "link:right").
        kind: "tap", "netdev", "link" or "none".
        mtu: largest IP packet the port carries, in bytes.
        counters: frames that passed, and frames lost here.
    """

    name: str
    kind: str
    mtu: int

    @property
    def counters(self) -> PortCounters: ...

    def fileno(self) -> int | None:
        """The descriptor to watch for reading, or None when `set_wake` is the only signal."""
        ...

    def set_wake(self, wake: Callable[[], None] | None) -> None:
        """Have `wake` called when frames wait that no descriptor tells of, and when there is room again. It
        must only schedule a `receive_burst`, not do it."""
        ...

    def has_room(self) -> bool:
        """Whether what a burst becomes can be sent now without loss in here; while it cannot, whoever can
        make its source wait does not read it. `set_wake`'s wake is called when there is room again."""
        ...

    def receive_burst(self) -> list[NetBuffer]:
        """Take the frames that wait, at most BURST_FRAMES (BURST_PACKETS); an empty list when there are none.

        Raises:
            PortError: the device is gone (removed by somebody); the port is of no further use.
        """
        ...

    def send_burst(self, burst: list[NetBuffer]) -> None:
        """Send frames in order. What the device does not take is dropped and counted.

        A port that cannot carry a virtio-net header gets only frames whose `vnet` is None.

        Raises:
            PortError: the device is gone.
        """
        ...

    def features(self) -> dict[str, str]:
        """State of each offload of the port: "on" or "off: REASON", by ethtool name."""
        ...

    def close(self) -> None:
        """Give the descriptors back and remove what the port itself made. Idempotent."""
        ...
