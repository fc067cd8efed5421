"""Ports, devices and engines of paper, for tests of the daemon that need no root.

Law: they behave as the contracts say and can be told to fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from vnic.control.interface import Event
from vnic.daemon.adapters import Adapters, Surroundings
from vnic.daemon.cards import CardSettings
from vnic.daemon.events import Events
from vnic.daemon.numbers import Numbers
from vnic.engine.contract import Engine, EngineEvent, Outcome
from vnic.engine.reference import ReferenceEngine
from vnic.errors import PortError
from vnic.ndis.netbuffer import NetBuffer
from vnic.netlink.links import Link
from vnic.ports.base import BURST_FRAMES, PortCounters
from vnic.ports.udp import End, UdpPort

T = TypeVar("T")

FRAME = bytes.fromhex("02000000000202000000000188b5") + b"payload of a frame that is not IP"


def run(work: Coroutine[Any, Any, T], timeout_s: float = 20.0) -> T:
    """Run a coroutine to its end, not for ever."""
    return asyncio.run(asyncio.wait_for(work, timeout_s))


async def settle(turns: int = 20) -> None:
    """Let what is scheduled happen."""
    for _ in range(turns):
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)


class FakePort:
    """A port with a descriptor; `arrive` puts frames in, `sent` is what went out."""

    def __init__(self, name: str, kind: str = "netdev", mtu: int = 1500) -> None:
        self.name = name
        self.kind = kind
        self.mtu = mtu
        self.counters = PortCounters()
        self.sent: list[NetBuffer] = []
        self.waiting: list[NetBuffer] = []
        self.failure: Exception | None = None
        self.send_failure: BaseException | None = None
        self.bursts = 0
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def closed(self) -> bool:
        return self._descriptor < 0

    def arrive(self, *frames: bytes) -> None:
        self.waiting += [NetBuffer(bytearray(frame)) for frame in frames]
        os.eventfd_write(self._descriptor, 1)

    def break_down(self, failure: Exception) -> None:
        self.failure = failure
        os.eventfd_write(self._descriptor, 1)

    def fileno(self) -> int | None:
        return None if self.closed else self._descriptor

    def set_wake(self, wake: Callable[[], None] | None) -> None:
        pass

    def has_room(self) -> bool:
        return True

    def receive_burst(self) -> list[NetBuffer]:
        self.bursts += 1
        if self.failure is not None:
            raise self.failure
        burst, self.waiting = self.waiting[:BURST_FRAMES], self.waiting[BURST_FRAMES:]
        if not self.waiting:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._descriptor)
        self.counters.rx_frames += len(burst)
        return burst

    def send_burst(self, burst: list[NetBuffer]) -> None:
        if self.send_failure is not None:
            raise self.send_failure
        self.sent += burst
        self.counters.tx_frames += len(burst)

    def features(self) -> dict[str, str]:
        return {"tx-checksumming": "on", "tx-udp-segmentation": "off: the kernel refused it (EINVAL)"}

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class FakeTap(FakePort):
    """The host side."""

    def __init__(self, name: str, *, netns: str | None, mtu: int, attached: bool = False) -> None:
        super().__init__(name, "tap", mtu)
        self.netns = netns
        self.attached = attached
        self.queues = 1


@dataclass
class FakeWatch:
    """A watch of a TAP's masters; `tell` is what the kernel would say."""

    tell: Callable[[str | None], None]
    closed: bool = False

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeHost:
    """The operating system: devices by (namespace, name).

    Attributes:
        refusals: by name of a call and device, what it raises.
        calls: what was asked, in order.
        opened: every port that was handed out.
    """

    refusals: dict[tuple[str, str], Exception] = field(default_factory=dict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    links: dict[tuple[str | None, str], Link] = field(default_factory=dict)
    addresses_of: dict[tuple[str | None, str], list[str]] = field(default_factory=dict)
    opened: list[FakePort] = field(default_factory=list)
    watches: dict[str, FakeWatch] = field(default_factory=dict)
    slow: asyncio.Event | None = None

    @property
    def open_ports(self) -> list[FakePort]:
        return [port for port in self.opened if not port.closed]

    def port(self, name: str) -> FakePort:
        """The open port of that name."""
        (port,) = (port for port in self.open_ports if port.name == name)
        return port

    async def _ask(self, call: str, name: str, *details: Any) -> None:
        self.calls.append((call, name, *details))
        if self.slow is not None:
            await self.slow.wait()
        await asyncio.sleep(0)
        if (call, name) in self.refusals:
            raise self.refusals[call, name]

    async def open_tap(
        self,
        name: str,
        *,
        netns: str | None,
        mac: str | None = None,
        mtu: int | None = None,
        addresses: Sequence[str] = (),
        features_off: Sequence[str] = (),
        queues: int = 1,
    ) -> FakeTap:
        await self._ask("open_tap", name, netns, mac, mtu, tuple(addresses), tuple(features_off))
        tap = FakeTap(name, netns=netns, mtu=mtu or 1500)
        tap.queues = queues
        self.opened.append(tap)
        self.links[netns, name] = Link(
            name=name,
            index=len(self.opened),
            kind="tun",
            mac=mac or "02:00:00:00:00:01",
            mtu=tap.mtu,
            min_mtu=68,
            max_mtu=65521,
            up=True,
            ethernet=True,
            netns=netns,
        )
        self.addresses_of[netns, name] = list(addresses)
        return tap

    async def open_netdev(self, name: str, *, netns: str | None) -> FakePort:
        await self._ask("open_netdev", name, netns)
        port = FakePort(name, "netdev", mtu=9000 if name.startswith("jumbo") else 1500)
        self.opened.append(port)
        return port

    async def open_udp(
        self,
        local: End,
        remote: End,
        *,
        netns: str | None,
        keepalive_s: int,
        follow: bool,
        old: UdpPort | None = None,
    ) -> FakePort:
        await self._ask("open_udp", str(local), str(remote), netns)
        port = FakePort(f"udp:{remote}", "udp", mtu=1492)
        self.opened.append(port)
        return port

    async def configure(
        self,
        name: str,
        *,
        netns: str | None,
        mac: str | None = None,
        mtu: int | None = None,
        addresses: Sequence[str] = (),
        up: bool | None = None,
    ) -> Link:
        await self._ask("configure", name, netns, mac, mtu, tuple(addresses), up)
        link = self.links[netns, name]
        link = replace(link, mac=mac or link.mac, mtu=mtu or link.mtu, up=link.up if up is None else up)
        self.links[netns, name] = link
        self.addresses_of[netns, name] += addresses
        return link

    async def lookup(self, name: str, *, netns: str | None) -> Link | None:
        await self._ask("lookup", name, netns)
        return self.links.get((netns, name))

    async def addresses(self, name: str, *, netns: str | None) -> list[str]:
        await self._ask("addresses", name, netns)
        if (netns, name) not in self.addresses_of:
            raise PortError(f"there is no device {name}")
        return self.addresses_of[netns, name]

    async def watch_master(
        self, name: str, *, netns: str | None, on_change: Callable[[str | None], None]
    ) -> FakeWatch:
        await self._ask("watch_master", name, netns)
        self.watches[name] = FakeWatch(on_change)
        return self.watches[name]


class FakeEngine(ReferenceEngine):
    """The reference engine, which can be told to fail and to tell of events."""

    def __init__(self, settings: CardSettings | None = None) -> None:
        settings = settings or CardSettings()
        super().__init__(
            bytes,
            settings.wire_mtu,
            settings.hardware,
            keywords=settings.keywords,
            host=settings.host,
            software=settings.software,
            serial=settings.serial,
        )
        self.failure: Exception | None = None
        self.events: list[EngineEvent] = []

    def send(self, burst: list[NetBuffer], now: float) -> Outcome:
        if self.failure is not None:
            raise self.failure
        return super().send(burst, now)

    def take_events(self) -> list[EngineEvent]:
        events, self.events = self.events, []
        return events + super().take_events()


class Heard(Events):
    """Events that remembers what was told.

    Attributes:
        all: every event, in order.
    """

    def __init__(self) -> None:
        super().__init__(lambda: 1_700_000_000.0)
        self.all: list[Event] = []

    def heard(self) -> bool:
        return True

    def tell(self, kind: Any, text: str, **details: Any) -> None:
        super().tell(kind, text, **details)
        self.all.append(self._event(kind, text, self.number, **details))

    @property
    def kinds(self) -> list[tuple[str, str | None]]:
        return [(event.kind, event.adapter) for event in self.all]


@dataclass
class World:
    """Adapters on a host of paper."""

    host: FakeHost = field(default_factory=FakeHost)
    events: Heard = field(default_factory=Heard)
    engines: list[FakeEngine] = field(default_factory=list)
    now: float = 1000.0
    nbl_directory: str = "/nowhere"
    numbers: Numbers | None = None
    adapters: Adapters = field(init=False)

    def __post_init__(self) -> None:
        self.adapters = Adapters(
            Surroundings(
                host=self.host,
                make_engine=self._make_engine,
                events=self.events,
                clock=lambda: self.now,
                clock_ns=lambda: 1_700_000_000_000_000_000,
                nbl_directory=self.nbl_directory,
                numbers=self.numbers,
            )
        )

    def _make_engine(self, settings: CardSettings) -> Engine:
        self.engines.append(FakeEngine(settings))
        return self.engines[-1]
