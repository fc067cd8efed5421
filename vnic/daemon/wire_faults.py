"""The faults of one adapter's wire: asked for, in force, and told of.

Law: values are judged before anything changes. The same seed and the same frames give the same faults; each
direction has a generator of its own.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import get_args

from vnic.control.interface import (
    AimWord,
    DoWireFault,
    SetWireFaults,
    WireDirectionWord,
    WireFaultCount,
    WireFaultState,
)
from vnic.errors import RequestError
from vnic.ports.base import Port
from vnic.ports.faults import Aimed, AimedWord, FaultLine, FaultPort, FaultSettings, FindIcv

DIRECTIONS: tuple[WireDirectionWord, ...] = ("tx", "rx")

MAX_DELAY_MS = 60_000
MIN_RATE = 1000
MAX_RATE = 10**12
"""Bits per second."""
MAX_LIMIT = 65_536
MAX_REORDER_PACKETS = 65_536
"""As many as the largest replay window, so that any window can be left behind."""
MAX_SEED = (1 << 63) - 1

_SEED_BITS = 32

_AIM_RANGES: dict[AimWord, tuple[int, int, str]] = {
    "flip_icv": (0, 127, "bit of the ICV"),
    "replay": (1, 1000, "times"),
    "hold": (0, MAX_REORDER_PACKETS, "packets"),
    "truncate": (14, 65_535, "bytes"),
}
"""What the value of an aimed fault may be: from, to, and what it counts."""


class WireFaults:
    """What is wrong with the wire of one adapter, in both directions."""

    def __init__(self, find_icv: FindIcv, clock: Callable[[], float]) -> None:
        """Begin with a wire that does nothing to frames.

        Args:
            find_icv: as for `FaultLine`.
            clock: monotonic seconds.
        """
        self._clock = clock
        seed = secrets.randbits(_SEED_BITS)
        self._seeds = dict.fromkeys(DIRECTIONS, seed)
        self._lines = {
            direction: FaultLine(_generator(seed, direction), find_icv) for direction in DIRECTIONS
        }

    @property
    def in_force(self) -> bool:
        """Whether anything is done to frames, or some are still on their way."""
        return any(line.in_force for line in self._lines.values())

    def before(self, port: Port) -> FaultPort:
        """Stand before a wire."""
        return FaultPort(
            port,
            self._lines["tx"],
            self._lines["rx"],
            clock=self._clock,
            call_later=asyncio.get_running_loop().call_later,
        )

    def set(self, request: SetWireFaults) -> None:
        """Change what is not null, and begin the generator anew.

        Raises:
            RequestError: a value is out of range; nothing is changed.
        """
        chosen = _chosen(request.direction)
        made = {direction: _changed(self._lines[direction].settings, request) for direction in chosen}
        if request.seed is not None:
            _check("seed", request.seed, 0, MAX_SEED)
        for direction, settings in made.items():
            if request.seed is not None:
                self._seeds[direction] = request.seed
            self._lines[direction].settings = settings
            self._lines[direction].reseed(_generator(self._seeds[direction], direction))

    def do(self, request: DoWireFault) -> None:
        """Do one thing to frames; `fill` is not one, see `filler`.

        Raises:
            RequestError: a value is out of range or missing, or too many wait; nothing is changed.
        """
        action, value = request.action, request.value
        limits = _AIM_RANGES.get(action)
        if limits is None:
            check_no_value(request)
        elif value is None and action != "hold":
            low, high, unit = limits
            raise RequestError("a value is needed", field=_word(action), allowed=f"{low} to {high} {unit}")
        elif value is not None:
            low, high, unit = limits
            _check(_word(action), value, low, high, unit)
        now = self._clock()
        # Aimed at one packet, it hits one: of the two directions the card's own.
        aimed = action in get_args(AimedWord)
        for direction in _chosen(request.direction or ("tx" if aimed else None)):
            line = self._lines[direction]
            match action:
                case "stall":
                    line.stalled = True
                case "release":
                    line.release(now)
                case "flip_icv" | "replay" | "hold" | "truncate":
                    line.aim(Aimed(action, value or 0), now)

    def clear(self, direction: WireDirectionWord | None) -> None:
        """Do nothing to frames any more; those on their way arrive at once."""
        for one in _chosen(direction):
            self._lines[one].clear(self._clock())

    def states(self) -> list[WireFaultState]:
        """Describe both directions."""
        return [self._state(direction, line) for direction, line in self._lines.items()]

    def counts(self) -> list[WireFaultCount]:
        """Give the faults done at least once."""
        return [
            WireFaultCount(direction=direction, kind=kind, frames=frames)
            for direction, line in self._lines.items()
            for kind, frames in line.counts.items()
            if frames
        ]

    def _state(self, direction: WireDirectionWord, line: FaultLine) -> WireFaultState:
        settings = line.settings
        return WireFaultState(
            direction=direction,
            in_force=line.in_force,
            loss=settings.loss,
            duplicate=settings.duplicate,
            corrupt=settings.corrupt,
            reorder=settings.reorder,
            reorder_packets=settings.reorder_packets,
            delay_ms=settings.delay_s * 1000,
            jitter_ms=settings.jitter_s * 1000,
            rate=settings.rate,
            limit=settings.limit,
            seed=self._seeds[direction],
            stalled=line.stalled,
            armed=[_aimed_text(one) for one in line.armed],
            waiting=line.waiting,
            counts=dict(line.counts),
        )


def check_no_value(request: DoWireFault) -> None:
    """Refuse a value where none is taken.

    Raises:
        RequestError: there is one.
    """
    if request.value is not None:
        raise RequestError(
            f"{request.action} takes no value",
            field="value",
            value=str(request.value)[:64],
            allowed="nothing",
        )


def _generator(seed: int, direction: str) -> random.Random:
    return random.Random(f"{direction} {seed}")  # noqa: S311 (faults must come again, not surprise)


def _chosen(direction: WireDirectionWord | None) -> Iterable[WireDirectionWord]:
    return DIRECTIONS if direction is None else (direction,)


def _word(action: str) -> str:
    return action.replace("_", "-")


def _aimed_text(aimed: Aimed) -> str:
    return f"{_word(aimed.kind)} {aimed.value}" if aimed.value or aimed.kind != "hold" else "hold"


def _check(field: str, value: float, low: float, high: float, unit: str = "") -> None:
    if not low <= value <= high:
        raise RequestError(
            "out of range",
            field=field,
            value=f"{value:g}" if isinstance(value, float) else str(value)[:64],
            allowed=f"{low} to {high} {unit}".rstrip(),
        )


def _changed(settings: FaultSettings, request: SetWireFaults) -> FaultSettings:
    """Give settings with what a request names in the place of what was.

    Raises:
        RequestError: a value is out of range.
    """
    changes: dict[str, float] = {}
    for member in ("loss", "duplicate", "corrupt", "reorder"):
        percent = getattr(request, member)
        if percent is not None:
            _check(member, percent, 0, 100, "%")
            changes[member] = percent
    for member, milliseconds in (("delay", request.delay_ms), ("jitter", request.jitter_ms)):
        if milliseconds is not None:
            _check(member, milliseconds, 0, MAX_DELAY_MS, "ms")
            changes[f"{member}_s"] = milliseconds / 1000
    if request.reorder_packets is not None:
        _check("reorder-packets", request.reorder_packets, 1, MAX_REORDER_PACKETS, "packets")
        changes["reorder_packets"] = request.reorder_packets
    if request.limit is not None:
        _check("limit", request.limit, 1, MAX_LIMIT, "packets")
        changes["limit"] = request.limit
    if request.rate is not None:
        if request.rate and not MIN_RATE <= request.rate <= MAX_RATE:
            raise RequestError(
                "out of range",
                field="rate",
                value=str(request.rate)[:64],
                allowed=f"{MIN_RATE} to {MAX_RATE} bit/s, or 0 for no limit",
            )
        changes["rate"] = request.rate
    return replace(settings, **changes)  # type: ignore[arg-type]
