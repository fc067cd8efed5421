"""Watching for a load-balancing device above a link; loopback and a link of paper need no root."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import pytest
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_NEWLINK
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from vnic.errors import PortError
from vnic.netlink import links, watch
from vnic.netlink.links import Link
from vnic.netlink.watch import MasterWatch, watch_master

TAP = Link("tap0", 7, "tun", "02:00:00:00:00:01", 1500, 68, 65521, True, True, None)
BRIDGE = replace(TAP, name="br0", index=8, kind="bridge")
BOND = replace(TAP, name="bond0", index=9, kind="bond")
TEAM = replace(TAP, name="team0", index=10, kind="team")


def news(index: int, kind: int = RTM_NEWLINK) -> bytes:
    """What the kernel says when a link changed."""
    message = ifinfmsg()
    message["index"] = index
    message["header"]["type"] = kind
    message.encode()
    return bytes(message.data)


class Bench:
    """A watch of `tap0` whose kernel is a socket pair and a list of masters."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.above: list[Link] = []
        self.looks = 0
        self.told: list[str | None] = []
        self.failure: Exception | None = None
        self.slow: asyncio.Event | None = None
        monkeypatch.setattr(links, "masters", self._masters)
        self.kernel, subscription = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        subscription.setblocking(False)
        self.watch = MasterWatch(subscription, TAP, self.told.append)

    async def _masters(self, link: Link) -> list[Link]:
        assert link == TAP
        self.looks += 1
        above = list(self.above)
        if self.slow is not None:
            await self.slow.wait()
        if self.failure is not None:
            raise self.failure
        return above

    async def hear(self, index: int, kind: int = RTM_NEWLINK) -> None:
        self.kernel.send(news(index, kind))
        await asyncio.sleep(0.01)

    def close(self) -> None:
        self.watch.close()
        self.kernel.close()


def test_a_link_without_masters_tells_nothing() -> None:
    async def work() -> None:
        told: list[str | None] = []
        watched = await watch_master("lo", on_change=told.append)
        watched.close()
        watched.close()
        assert told == []

    asyncio.run(work())


def test_a_link_that_is_not_there_is_refused() -> None:
    with pytest.raises(PortError):
        asyncio.run(watch_master("vnictestnone0", on_change=lambda _: None))


@pytest.mark.rule(18)
def test_joining_and_leaving_a_load_balancer_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        bench = Bench(monkeypatch)
        for above in ([BRIDGE], [BOND], [BOND], [TEAM], []):
            bench.above = above
            await bench.hear(TAP.index)
        assert bench.told == ["bond0", "team0", None]
        bench.close()

    asyncio.run(work())


@pytest.mark.rule(18)
def test_a_load_balancer_further_up_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        bench = Bench(monkeypatch)
        bench.above = [BRIDGE]
        await bench.hear(TAP.index)
        assert bench.told == []
        bench.above = [BRIDGE, BOND]
        await bench.hear(BRIDGE.index)
        assert bench.told == ["bond0"]
        bench.above = [BRIDGE]
        await bench.hear(BOND.index, RTM_DELLINK)
        assert bench.told == ["bond0", None]
        bench.close()

    asyncio.run(work())


def test_news_of_other_links_cost_no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        bench = Bench(monkeypatch)
        for index in range(20, 40):
            await bench.hear(index)
        assert bench.looks == 0
        bench.close()

    asyncio.run(work())


def test_a_change_during_a_look_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        bench = Bench(monkeypatch)
        bench.slow = asyncio.Event()
        await bench.hear(TAP.index)
        bench.above = [BOND]
        await bench.hear(TAP.index)
        assert bench.looks == 1
        bench.slow.set()
        await asyncio.sleep(0.01)
        assert bench.told == ["bond0"]
        bench.close()

    asyncio.run(work())


def test_a_kernel_that_cannot_be_asked_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        bench = Bench(monkeypatch)
        bench.above = [BOND]
        await bench.hear(TAP.index)
        bench.failure = PortError("the namespace is gone")
        await bench.hear(TAP.index)
        assert bench.told == ["bond0"]
        bench.close()

    asyncio.run(work())


def test_nothing_is_told_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        bench = Bench(monkeypatch)
        bench.slow = asyncio.Event()
        bench.above = [BOND]
        await bench.hear(TAP.index)
        bench.watch.close()
        bench.slow.set()
        await asyncio.sleep(0.01)
        assert bench.told == []
        bench.close()

    asyncio.run(work())


def test_bond_and_team_are_load_balancers_and_a_bridge_is_not() -> None:
    assert frozenset({"bond", "team"}) == watch.LOAD_BALANCING_KINDS
