"""Middleware: a port that stands before another one.

Law: it is the other port in all that a subclass does not change.
"""

from __future__ import annotations

from collections.abc import Callable

from vnic.ndis.netbuffer import NetBuffer
from vnic.ports.base import Port, PortCounters


class Middleware:
    """A port that is another one, for subclasses that change what passes.

    Attributes:
        port: the other one.
    """

    def __init__(self, port: Port) -> None:
        """Stand before `port`."""
        self.port = port
        self.name = port.name

    @property
    def counters(self) -> PortCounters:
        return self.port.counters

    @property
    def kind(self) -> str:
        return self.port.kind

    @kind.setter
    def kind(self, kind: str) -> None:
        self.port.kind = kind

    @property
    def mtu(self) -> int:
        return self.port.mtu

    @mtu.setter
    def mtu(self, mtu: int) -> None:
        self.port.mtu = mtu

    def fileno(self) -> int | None:
        return self.port.fileno()

    def set_wake(self, wake: Callable[[], None] | None) -> None:
        self.port.set_wake(wake)

    def has_room(self) -> bool:
        return self.port.has_room()

    def receive_burst(self) -> list[NetBuffer]:
        return self.port.receive_burst()

    def send_burst(self, burst: list[NetBuffer]) -> None:
        self.port.send_burst(burst)

    def features(self) -> dict[str, str]:
        return self.port.features()

    def close(self) -> None:
        self.port.close()
