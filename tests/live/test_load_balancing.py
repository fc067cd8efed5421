"""A TAP below a load-balancing device: the NIC offloads no IPsec, software does, nothing goes in clear (R18).

A kernel without bonding still has bridges: to most of these tests a bridge counts as a load balancer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from namespaces import Namespace, Namespaces
from vnicd import Vnicd, vnicd_in

from vnic.control.interface import (
    AddAdapter,
    Capture,
    Event,
    ListAdapters,
    Policy,
    Sa,
    Selector,
    SetAdapter,
    Template,
    Wire,
)
from vnic.daemon import values
from vnic.daemon.adapters import Adapter, Adapters, Surroundings
from vnic.daemon.events import Events
from vnic.daemon.host import KernelHost
from vnic.ipsec.association import Direction
from vnic.ndis.capabilities import NO_IPSEC
from vnic.netlink import watch
from vnic.netlink.watch import watch_master

pytestmark = pytest.mark.live

WAIT_S = 5.0
LEFT, RIGHT = "10.77.0.1", "10.77.0.2"
PATTERN = "5ec2e7"
KEY = "00112233445566778899aabbccddeeff00112233"


@pytest.fixture
def bridges_balance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have bridges count as load balancers."""
    monkeypatch.setattr(watch, "LOAD_BALANCING_KINDS", frozenset({"bridge"}))


async def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)


def bridge(namespaces: Namespaces, namespace: Namespace) -> str:
    name = namespaces.device("br")
    namespace.ip("link", "add", name, "type", "bridge")
    namespace.ip("link", "set", name, "up")
    return name


@pytest.mark.rule(18)
@pytest.mark.usefixtures("bridges_balance")
@pytest.mark.parametrize("loop_factory", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_the_master_of_a_link_is_watched(namespaces: Namespaces, loop_factory: Any) -> None:
    namespace = namespaces.create("l")
    above = bridge(namespaces, namespace)
    name, _ = namespaces.veth(namespace, namespace)

    async def work() -> None:
        told: list[str | None] = []
        watched = await watch_master(name, netns=namespace.name, on_change=told.append)
        assert told == []
        await asyncio.to_thread(namespace.ip, "link", "set", name, "master", above)
        await until(lambda: told == [above])
        await asyncio.to_thread(namespace.ip, "link", "set", name, "nomaster")
        await until(lambda: told == [above, None])
        await asyncio.to_thread(namespace.ip, "link", "set", name, "master", above)
        await until(lambda: told == [above, None, above])
        await asyncio.to_thread(namespace.ip, "link", "delete", above)
        await until(lambda: told == [above, None, above, None])
        watched.close()
        await asyncio.to_thread(namespace.ip, "link", "delete", name)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(work())


@pytest.mark.rule(18)
@pytest.mark.usefixtures("bridges_balance")
def test_a_master_that_is_there_at_first_is_told_at_once(namespaces: Namespaces) -> None:
    namespace = namespaces.create("l")
    above = bridge(namespaces, namespace)
    name, _ = namespaces.veth(namespace, namespace)
    namespace.ip("link", "set", name, "master", above)

    async def work() -> None:
        told: list[str | None] = []
        watched = await watch_master(name, netns=namespace.name, on_change=told.append)
        assert told == [above]
        watched.close()

    asyncio.run(work())


def sas(adapter: Adapter, now: float) -> None:
    """Give an adapter the SAs of both directions; both adapters have the same."""
    out = Direction.OUTBOUND if adapter.name == "left" else Direction.INBOUND
    back = Direction.INBOUND if adapter.name == "left" else Direction.OUTBOUND
    for src, dst, spi, direction in ((LEFT, RIGHT, 0x101, out), (RIGHT, LEFT, 0x102, back)):
        message = Sa(
            src=src,
            dst=dst,
            proto="esp",
            spi=spi,
            mode="transport",
            encryption="aes-gcm-128",
            encryption_key=KEY[:-2] + f"{spi & 0xFF:02x}",
        )
        adapter.engine.add_sa(values.sa_of(message, direction).checked(), now)


def policies(adapter: Adapter) -> None:
    here, there = (LEFT, RIGHT) if adapter.name == "left" else (RIGHT, LEFT)
    for direction, src, dst in (("out", here, there), ("in", there, here)):
        policy = Policy(
            direction=direction,  # type: ignore[arg-type]
            selector=Selector(src=f"{src}/32", dst=f"{dst}/32"),
            action="protect",
            templates=[Template(proto="esp", mode="transport")],
        )
        adapter.require_inline().add_policy(values.policy_of(policy))


@pytest.mark.rule(18)
@pytest.mark.usefixtures("bridges_balance")
def test_traffic_below_a_load_balancer_goes_through_software_and_never_in_clear(
    namespaces: Namespaces, tmp_path: Path
) -> None:
    left_ns, right_ns = namespaces.create("l", ipv6=False), namespaces.create("r", ipv6=False)
    above = bridge(namespaces, left_ns)
    tap, other = namespaces.device("t0"), namespaces.device("t1")
    capture = tmp_path / "wire.pcapng"

    async def in_left(*words: str) -> None:
        await asyncio.to_thread(left_ns.ip, *words)

    async def ping() -> None:
        words = ("ping", "-c", "3", "-i", "0.1", "-W", "2", "-p", PATTERN, RIGHT)
        await asyncio.to_thread(left_ns.run, *words)

    async def work() -> None:
        events = Events(time.time)
        adapters = Adapters(
            Surroundings(host=KernelHost(), events=events, clock=time.monotonic, clock_ns=time.time_ns)
        )
        heard: list[Event] = []

        async def listen() -> None:
            async for event in events.listen():
                heard.append(event)

        listening = asyncio.create_task(listen())
        try:
            left = await adapters.add(
                AddAdapter(name="left", tap=tap, netns=left_ns.name, addresses=[f"{LEFT}/24"])
            )
            right = await adapters.add(
                AddAdapter(
                    name="right",
                    tap=other,
                    netns=right_ns.name,
                    addresses=[f"{RIGHT}/24"],
                    wire=Wire(kind="link", name="left"),
                )
            )
            for adapter in (left, right):
                sas(adapter, time.monotonic())
                policies(adapter)
            await adapters.set(SetAdapter(name="left", capture=Capture(place="wire", file=str(capture))))
            counters = left.engine.counters
            await ping()
            assert counters.tx_offloaded >= 3
            assert (counters.tx_software, counters.rx_software) == (0, 0)

            await in_left("link", "set", tap, "master", above)
            await until(lambda: left.load_balancing == above)
            assert left.engine.capabilities == NO_IPSEC
            await in_left("address", "delete", f"{LEFT}/24", "dev", tap)
            await in_left("address", "add", f"{LEFT}/24", "dev", above)
            offloaded = counters.tx_offloaded, counters.rx_offloaded
            await ping()
            assert (counters.tx_offloaded, counters.rx_offloaded) == offloaded
            assert counters.tx_software >= 3
            assert counters.rx_software >= 3

            await in_left("link", "set", tap, "nomaster")
            await until(lambda: left.load_balancing is None)
            assert left.engine.capabilities == left.engine.hardware.ipsec_v2
            await in_left("address", "delete", f"{LEFT}/24", "dev", above)
            await in_left("address", "add", f"{LEFT}/24", "dev", tap)
            software = counters.tx_software
            await ping()
            assert counters.tx_software == software
            assert counters.tx_offloaded >= offloaded[0] + 3
            await adapters.set(SetAdapter(name="left", capture=Capture(place="off")))
            await until(lambda: sum(one.kind == "load_balancing" for one in heard) == 2)
            names = [one.indication.name for one in heard if one.indication is not None]
            assert names.count("NDIS_STATUS_TASK_OFFLOAD_CURRENT_CONFIG") == 2
        finally:
            listening.cancel()
            await adapters.close()

    asyncio.run(work())
    recorded = capture.read_bytes()
    assert recorded.count(bytes.fromhex("0a4d00010a4d0002")) >= 9
    assert bytes.fromhex(PATTERN) * 4 not in recorded


def bond_state(daemon: Vnicd) -> str | None:
    return daemon.call(ListAdapters(name="nic0")).adapters[0].load_balancing


@pytest.mark.rule(18)
def test_a_tap_in_a_bond_loses_its_offload_until_it_leaves(namespaces: Namespaces, tmp_path: Path) -> None:
    namespace = namespaces.create("l")
    bond, tap = namespaces.device("bo"), namespaces.device("t0")
    if namespace.ip("link", "add", bond, "type", "bond", check=False).returncode:
        pytest.skip("kernel lacks the bonding driver")
    with vnicd_in(tmp_path) as daemon:
        daemon.write("")
        daemon.start()
        daemon.call(AddAdapter(name="nic0", tap=tap, netns=namespace.name))
        namespace.ip("link", "set", tap, "down")
        for words, wanted in ((("master", bond), bond), (("nomaster",), None)):
            namespace.ip("link", "set", tap, *words)
            deadline = time.monotonic() + WAIT_S
            while bond_state(daemon) != wanted:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        daemon.end()
