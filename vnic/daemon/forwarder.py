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
from vnic.engine.contract import Engine, EngineEvent, Outcome
from vnic.errors import PortError
from vnic.ports.base import Port

_SHORTEST_WAIT_S = 0.01
"""Between two looks at the clock: a NIC in reset may not be able to do yet what its time has come for."""

_LONGEST_WAIT_S = 86_400.0
"""Of one timer: the event loop's own clock counts milliseconds in few bits."""


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
    ) -> None:
        """Prepare; nothing moves before `start`.

        Args:
            name: of the adapter, for the log.
            clock: monotonic seconds.
            on_event: hears what the engine tells.
            on_failure: hears, once, that a port is of no further use; the forwarder has stopped by then.
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
        self._pump: asyncio.Handle | None = None
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

    def _unwatch(self, side: str, port: Port) -> None:
        descriptor = self._watched.pop(side, None)
        if descriptor is not None:
            self._loop.remove_reader(descriptor)
        port.set_wake(None)
        if side == "tap":
            self._held_back = False
        if side == "wire" and self._pump is not None:
            self._pump.cancel()
            self._pump = None

    def _wake(self) -> None:
        """The wire has frames that no descriptor tells of: take them on the loop's next turn."""
        if self._pump is None:
            self._pump = self._loop.call_soon(self._from_link)

    def _from_link(self) -> None:
        self._pump = None
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
        if not self.wire.has_room():
            self._hold_back()
            return
        try:
            burst = self.tap.receive_burst()
            if burst:
                self._deliver(self._engine.send(burst, self._clock()))
        except PortError as error:
            self._fail(str(error))
        except Exception as error:
            self._report(error)

    def _from_wire(self) -> None:
        try:
            burst = self.wire.receive_burst()
            if burst:
                self._deliver(self._engine.receive(burst, self._clock()))
        except PortError as error:
            self._fail(str(error))
        except Exception as error:
            self._report(error)

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
        except Exception as error:
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

    def _report(self, error: Exception) -> None:
        reason = self._defects.add(error)
        if reason:
            self._fail(reason)
