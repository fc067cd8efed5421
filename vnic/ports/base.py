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
    counters: PortCounters

    def fileno(self) -> int | None:
        """The descriptor to watch for reading, or None when `set_wake` is the only signal."""
        ...

    def set_wake(self, wake: Callable[[], None] | None) -> None:
        """Have `wake` called when frames wait that no descriptor tells of. It must only schedule a
        `receive_burst`, not do it."""
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
