"""Bursts that go from port to port without Python, while nothing but the native engine has to see them.

Law: the same frames, counters and order as by way of Python. What the native card leaves over is
handed back with the call that read it, and is done before more is read.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple, Protocol, cast

from vnic.engine.contract import Engine, Observer, Outcome
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.vnet import VnetHeader
from vnic.ports.base import Counting, NativePort, Port
from vnic.ports.link import LinkPort
from vnic.ports.offloads import ON, USO
from vnic.ports.packet import PacketPort
from vnic.ports.tap import TapPort
from vnic.ports.udp import UdpPort

_Left = list[tuple[bytearray, tuple[int, int, int, int, int, int] | None]]
"""Frames with their virtio-net headers."""


class NativeEngine(Engine, Protocol):
    """What an engine with a native card has besides."""

    card: Any
    """The `vnic_native.Card`."""
    send_observer: Observer | None
    receive_observer: Observer | None

    @property
    def wants_room(self) -> bool:
        """Received frames have to be seen by `receive`."""
        ...

    def ready(self, now: float) -> bool:
        """Whether `card` may work on a burst that begins now."""
        ...

    def send_rest(self, burst: list[NetBuffer], now: float) -> Outcome:
        """Send what the card has left."""
        ...

    def receive_rest(self, burst: list[NetBuffer], now: float) -> Outcome:
        """Receive what the card has left."""
        ...


class Rest(NamedTuple):
    """What is left to Python of what one call has read."""

    frames: list[NetBuffer]
    """Left by the card of the port that was read."""
    peer_frames: list[NetBuffer]
    """Sealed frames, left by the card at the other end of a link."""
    read_error: int
    """errno of the port that was read; 0: none."""
    write_error: int
    """errno of the port that was written to; 0: none."""


class End(NamedTuple):
    """A native card with its TAP and its end of a link."""

    card: Any
    tap: NativePort
    link: NativePort | None


class Pump:
    """Moves the bursts of one adapter natively.

    Attributes:
        engine: of the adapter.
    """

    def __init__(self, engine: NativeEngine, native: Any) -> None:
        """Prepare.

        Args:
            native: the module `vnic_native`.
        """
        self.engine = engine
        self._native = native
        self._pump = _shared(native)

    def attach(self, port: Port) -> None:
        """Let the native engine have a port's descriptors too, if it knows the kind."""
        if isinstance(port, Counting) and port.native is not None:
            return
        if isinstance(port, LinkPort):
            port.native = self._native.Link()
        elif isinstance(port, TapPort):
            port.native = self._native.Tap(list(port.descriptors))
            # What the kernel cuts for us it takes joined, too.
            self.engine.card.join_udp(port.features().get(USO.name) == ON)
        elif isinstance(port, PacketPort) and port.descriptors:
            port.native = self._native.PacketSocket(port.descriptors[0])
        elif isinstance(port, UdpPort):
            port.use_native(self._native.UdpSocket)

    def end(self, tap: Port, wire: Port, now: float) -> End | None:
        """Give what works natively now, or None if all is for Python."""
        if not isinstance(tap, TapPort) or tap.native is None or not self.engine.ready(now):
            return None
        return End(self.engine.card, tap.native, wire.native if isinstance(wire, LinkPort) else None)

    @property
    def sends(self) -> bool:
        """Whether Python need not see what is sent."""
        return self.engine.send_observer is None

    @property
    def receives(self) -> bool:
        """Whether Python need not see what is received."""
        return self.engine.receive_observer is None and not self.engine.wants_room

    def tap_to_wire(self, near: End, wire: NativePort, now: float) -> Rest | None:
        """Read the TAP, and send to a wire; None: nothing is left to be done."""
        return _rest(self._pump.tap_to_wire(near.card, near.tap, wire, now))

    def over_link(self, near: End, far: End, now: float, *, both_ways: bool) -> tuple[Rest, bool] | None:
        """Read the TAP, and have the other end of the link receive; with `both_ways` the same from there too.

        Gives None if nothing is left to be done, else that and whether it was read at the far end.
        """
        left = self._pump.over_link(near, far, both_ways, now)
        return None if left is None else (_made(*left[0]), left[1])

    def wire_to_tap(self, wire: NativePort, near: End, now: float) -> Rest | None:
        """Read the wire, and write to the TAP; None: nothing is left to be done."""
        return _rest(self._pump.wire_to_tap(near.card, wire, near.tap, now))


def native_of(port: Port) -> NativePort | None:
    """Give the native engine's view of a port; None if it has none, if something stands before it, or if
    something waits there for Python."""
    return port.native if isinstance(port, Counting) and port.is_quiet() else None


def pump_of(engine: Engine) -> Pump | None:
    """Make the pump of an engine; None for one without a native card."""
    if engine.name != "native":
        return None
    import vnic_native

    return Pump(cast(NativeEngine, engine), vnic_native)


@cache
def _shared(native: Any) -> Any:
    """The one pump of a native module: adapters take turns, and its memory stays in the processor's cache."""
    return native.Pump()


def _rest(left: tuple[_Left, _Left, int, int] | None) -> Rest | None:
    return None if left is None else _made(*left)


def _made(frames: _Left, peer_frames: _Left, read_error: int, write_error: int) -> Rest:
    return Rest(_buffers(frames), _buffers(peer_frames), read_error, write_error)


def _buffers(left: _Left) -> list[NetBuffer]:
    return [NetBuffer(frame, None if vnet is None else VnetHeader(*vnet)) for frame, vnet in left]
