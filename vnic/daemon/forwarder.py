"""The hot loop of one adapter: port, engine, port.

Law: a burst per call and back to the event loop, so that control socket and other adapters stay alive. A
defect costs one burst, never the daemon; what a burst loses to a defect is lost, not sent. While the wire
has no room the TAP is not read, so that its own queue fills and nothing is lost between the two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

from vnic.daemon.defects import Defects
from vnic.daemon.pump import Pump, Rest, native_of
from vnic.engine.contract import Engine, EngineEvent, Outcome
from vnic.errors import PortError
from vnic.ports.base import Port
from vnic.ports.link import LinkPort
from vnic.ports.packet import PacketPort
from vnic.ports.tap import TapPort
from vnic.ports.udp import UdpPort

_SHORTEST_WAIT_S = 0.01
"""Between two looks at the clock: a NIC in reset may not be able to do yet what its time has come for."""

_LONGEST_WAIT_S = 86_400.0
"""Of one timer: the event loop's own clock counts milliseconds in few bits."""


_NOT_OF_BURSTS = (KeyboardInterrupt, SystemExit)
"""What ends the daemon. All else is a defect; that of the native engine, a panic, is no `Exception`."""


class Forwarder:
    """Moves the frames of one adapter.

    Attributes:
        tap, wire: the ports; replace them through `use_tap` and `use_wire` alone.
        errors: bursts given up because of a defect.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        tap: Port,
        wire: Port,
        *,
        clock: Callable[[], float],
        on_event: Callable[[EngineEvent], None],
        on_failure: Callable[[str], None],
        pump: Pump | None = None,
    ) -> None:
        """Prepare; nothing moves before `start`.

        Args:
            name: of the adapter, for the log.
            clock: monotonic seconds.
            on_event: hears what the engine tells.
            on_failure: hears, once, that a port is of no further use; the forwarder has stopped by then.
            pump: moves bursts natively while it can.
        """
        self.tap = tap
        self.wire = wire
        self._engine = engine
        self._clock = clock
        self._on_event = on_event
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._running = False
        self._watched: dict[str, int] = {}
        self._held_back = False
        self._turn: asyncio.Handle | None = None
        self._pump = pump
        self._deadline = inf
        self._timer: asyncio.TimerHandle | None = None
        self._defects = Defects(name, clock)

    @property
    def errors(self) -> int:
        return self._defects.count

    def start(self) -> None:
        """Begin to move frames."""
        self._running = True
        self._watch("tap", self.tap, self._from_tap)
        self._watch("wire", self.wire, self._from_wire)

    def stop(self) -> None:
        """Move nothing any more. Idempotent; the ports stay open."""
        self._running = False
        self._set_timer(inf)
        self._unwatch("tap", self.tap)
        self._unwatch("wire", self.wire)

    def use_tap(self, port: Port) -> None:
        """Take another port object for the host side, with the same or another descriptor."""
        self._unwatch("tap", self.tap)
        self.tap = port
        if self._running:
            self._watch("tap", port, self._from_tap)

    def use_wire(self, port: Port) -> None:
        """Take another port object for the wire."""
        self._unwatch("wire", self.wire)
        self.wire = port
        if self._running:
            self._watch("wire", port, self._from_wire)

    def _watch(self, side: str, port: Port, ready: Callable[[], None]) -> None:
        if side == "wire":
            self._read_tap_again()
        descriptor = port.fileno()
        if descriptor is not None:
            self._loop.add_reader(descriptor, ready)
            self._watched[side] = descriptor
        port.set_wake(self._wake)
        if self._pump is not None:
            self._pump.attach(port)
        if isinstance(port, LinkPort):
            port.owner = self

    def _unwatch(self, side: str, port: Port) -> None:
        descriptor = self._watched.pop(side, None)
        if descriptor is not None:
            self._loop.remove_reader(descriptor)
        port.set_wake(None)
        if isinstance(port, LinkPort):
            port.owner = None
        if side == "tap":
            self._held_back = False
        if side == "wire" and self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _wake(self) -> None:
        """The wire has frames that no descriptor tells of: take them on the loop's next turn."""
        if self._turn is None:
            self._turn = self._loop.call_soon(self._from_link)

    def _from_link(self) -> None:
        self._turn = None
        self._read_tap_again()
        self._from_wire()

    def _hold_back(self) -> None:
        """Read the TAP no more until the wire has room; it will say so."""
        descriptor = self._watched.pop("tap", None)
        if descriptor is not None:
            self._loop.remove_reader(descriptor)
        self._held_back = True

    def _read_tap_again(self) -> None:
        """Read the TAP again if it was held back and the wire has room."""
        if self._held_back and self._running and self.wire.has_room():
            self._held_back = False
            self._watch("tap", self.tap, self._from_tap)

    def _from_tap(self) -> None:
        self._guarded(self._move_from_tap)

    def _move_from_tap(self) -> None:
        now = self._clock()
        if self._pump is not None and self._pump_tap(self._pump, now):
            return
        if not self.wire.has_room():
            self._hold_back()
            return
        burst = self.tap.receive_burst()
        if burst:
            self._deliver(self._engine.send(burst, now))

    def _from_wire(self) -> None:
        self._guarded(self._move_from_wire)

    def _move_from_wire(self) -> None:
        now = self._clock()
        if self._pump is None or not self._pump_wire(self._pump, now):
            self._receive_burst(now)

    def _receive_burst(self, now: float) -> None:
        burst = self.wire.receive_burst()
        if burst:
            self._deliver(self._engine.receive(burst, now))

    # ------------------------------------------------------------------------------ without Python

    def _pump_tap(self, pump: Pump, now: float) -> bool:
        """Have what the TAP has moved natively; False if that cannot be now."""
        wire = self.wire
        if not pump.sends:
            return False
        if isinstance(wire, LinkPort):
            owner = None if wire.peer is None else wire.peer.owner
            return isinstance(owner, Forwarder) and self._pump_link(pump, owner, now)
        native_wire = native_of(wire)
        near = None if native_wire is None else pump.end(self.tap, wire, now)
        if near is None or native_wire is None:
            return False
        rest = pump.tap_to_wire(near, native_wire, now)
        if rest is not None:
            self._finish_send(rest, now)
            _look_at(wire, rest.write_error)
        return True

    def _pump_link(self, pump: Pump, far: Forwarder, now: float) -> bool:
        """Have what the TAP has moved to the other end of a link natively, and what comes from there."""
        far_pump = far._pump
        if far_pump is None or not far_pump.receives:
            return False
        # What Python has put into the queues before is older, and may change what is up to date.
        far.take_waiting()
        self.take_waiting()
        if not self._running:
            return True
        if not (far._running and far_pump.receives):
            return False
        near_end = pump.end(self.tap, self.wire, now)
        far_end = far_pump.end(far.tap, far.wire, now)
        if near_end is None or far_end is None:
            return False
        left = pump.over_link(near_end, far_end, now, both_ways=far_pump.sends and pump.receives)
        if left is not None:
            rest, backwards = left
            sender, receiver = (far, self) if backwards else (self, far)
            receiver.finish_receive(rest, now)
            sender.finish_send(rest, now)
        return True

    def _pump_wire(self, pump: Pump, now: float) -> bool:
        """Have what the wire has moved natively; False if that cannot be now."""
        wire = self.wire
        if isinstance(wire, LinkPort) or not pump.receives:
            return False
        native_wire = native_of(wire)
        near = None if native_wire is None else pump.end(self.tap, wire, now)
        if near is None or native_wire is None:
            return False
        rest = pump.wire_to_tap(native_wire, near, now)
        if rest is not None:
            if rest.frames:
                self._deliver(pump.engine.receive_rest(rest.frames, now))
            _look_at(wire, rest.read_error)
            _look_at(self.tap, rest.write_error)
        return True

    def take_waiting(self) -> None:
        """Take all that waits in the link's queue at once."""
        while self._running and isinstance(self.wire, LinkPort) and self.wire.waiting:
            self._guarded(lambda: self._receive_burst(self._clock()))

    def finish_send(self, rest: Rest, now: float) -> None:
        """Do what was left over of a burst of this adapter's TAP, which the other end of a link had moved."""
        self._guarded(lambda: self._finish_send(rest, now))

    def finish_receive(self, rest: Rest, now: float) -> None:
        """Do what was left over of a burst that came over the link."""
        self._guarded(lambda: self._finish_receive(rest, now))

    def _finish_send(self, rest: Rest, now: float) -> None:
        if rest.frames and self._pump is not None:
            self._deliver(self._pump.engine.send_rest(rest.frames, now))
        _look_at(self.tap, rest.read_error)

    def _finish_receive(self, rest: Rest, now: float) -> None:
        if rest.peer_frames and self._pump is not None:
            self._deliver(self._pump.engine.receive_rest(rest.peer_frames, now))
        _look_at(self.tap, rest.write_error)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do some work of this adapter, whose failure is this adapter's own."""
        try:
            work()
        except PortError as error:
            self._fail(str(error))
        except _NOT_OF_BURSTS:
            raise
        except BaseException as error:
            self._report(error)

    # ----------------------------------------------------------------------------------------- time

    def keep_time(self) -> None:
        """Have the engine look at the clock, now and whenever it asks for it."""
        self._set_timer(inf)
        if not self._running:
            return
        try:
            wire = self._engine.keep_time(self._clock()).wire
            if wire:
                self.wire.send_burst(wire)
            self._tell_events()
        except PortError as error:
            self._fail(str(error))
        except _NOT_OF_BURSTS:
            raise
        except BaseException as error:
            self._report(error)
        if self._running:
            self._set_timer(self._engine.deadline)

    def _set_timer(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._deadline = deadline
        if deadline < inf:
            wait = min(max(deadline - self._clock(), _SHORTEST_WAIT_S), _LONGEST_WAIT_S)
            self._timer = self._loop.call_later(wait, self.keep_time)

    def _tell_events(self) -> None:
        for event in self._engine.take_events():
            self._on_event(event)

    def _deliver(self, outcome: Outcome) -> None:
        if outcome.wire:
            self.wire.send_burst(outcome.wire)
        if outcome.host:
            self.tap.send_burst(outcome.host)
        self._tell_events()
        deadline = self._engine.deadline
        if deadline != self._deadline:
            self._set_timer(deadline)
        self._defects.over()

    def _fail(self, reason: str) -> None:
        if self._running:
            self.stop()
            self._on_failure(reason)

    def _report(self, error: BaseException) -> None:
        reason = self._defects.add(error)
        if reason:
            self._fail(reason)


def _look_at(port: Port, code: int) -> None:
    """Have a port look at an errno that the native engine met.

    Raises:
        PortError: it says that the device is gone.
    """
    if code and isinstance(port, TapPort | PacketPort | UdpPort):
        port.fail(code)
