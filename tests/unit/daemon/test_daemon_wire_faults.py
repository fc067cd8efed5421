"""Faults of an adapter's wire: asked for, in force, shown, and gone again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
from daemon_fakes import FRAME, FakePort, World, run, settle

from vnic.control import interface as api
from vnic.daemon.adapters import Adapter
from vnic.daemon.handlers import About, Handlers
from vnic.errors import OidError, PortError, RequestError
from vnic.ndis.status import NdisStatus

T = TypeVar("T")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what timers of a busy machine bring late."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


class Bench:
    """Two adapters on a link, or one on a device."""

    def __init__(self, wire: str = "link", nbl_directory: str = "/nowhere") -> None:
        self.wire = wire
        self.world = World(nbl_directory=nbl_directory)
        about = About(
            engine="reference",
            loop="asyncio",
            config=None,
            reveal_keys=False,
            clock=lambda: self.world.now,
            wall_clock=lambda: 0.0,
            started=0.0,
        )
        self.handlers = Handlers(self.world.adapters, self.world.events, about)

    async def __aenter__(self) -> Bench:
        device = api.Wire(kind="netdev", name="eth1") if self.wire == "netdev" else None
        await self.call(api.AddAdapter(name="left", tap="tap0", wire=device))
        if self.wire == "link":
            link = api.Wire(kind="link", name="left")
            await self.call(api.AddAdapter(name="right", tap="tap1", wire=link))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.world.adapters.close()

    async def call(self, request: api.Call[T]) -> T:
        return await self.handlers.answer(request)

    async def set(self, **members: Any) -> api.AdapterState:
        return (await self.call(api.SetWireFaults(name="left", **members))).adapter

    async def do(self, action: Any, **members: Any) -> api.AdapterState:
        return (await self.call(api.DoWireFault(name="left", action=action, **members))).adapter

    async def clear(self, **members: Any) -> api.AdapterState:
        return (await self.call(api.ClearWireFaults(name="left", **members))).adapter

    async def passes(self, count: int, sender: str = "tap0", receiver: str = "tap1") -> int:
        """Send frames; gives how many arrived."""
        before = len(self.port(receiver).sent)
        self.port(sender).arrive(*(FRAME + bytes((number,)) for number in range(count)))
        await settle()
        return len(self.port(receiver).sent) - before

    def port(self, name: str) -> FakePort:
        return self.world.host.port(name)

    def adapter(self) -> Adapter:
        return self.world.adapters.require("left")

    async def drops(self) -> dict[str, int]:
        (statistics,) = (await self.call(api.GetStatistics(adapter="left"))).adapters
        return {one.name: one.packets for one in statistics.drops}


def in_force(state: api.AdapterState) -> dict[str, bool]:
    return {one.direction: one.in_force for one in state.wire_faults}


def test_nothing_is_done_to_frames_unless_it_is_asked_for() -> None:
    async def work() -> None:
        async with Bench() as bench:
            assert await bench.passes(50) == 50
            (state,) = (await bench.call(api.ListAdapters(name="left"))).adapters
            assert state.wire_faults == []
            assert bench.adapter().forwarder.wire is bench.adapter().wire

    run(work())


def test_a_wire_loses_frames_until_it_is_cleared_and_remembers_how_many() -> None:
    async def work() -> None:
        async with Bench() as bench:
            state = await bench.set(direction="tx", loss=100.0)
            assert in_force(state) == {"tx": True, "rx": False}
            assert await bench.passes(20) == 0
            assert await bench.passes(20, "tap1", "tap0") == 20
            assert await bench.drops() == {"fault_loss": 20}
            (statistics,) = (await bench.call(api.GetStatistics(adapter="left"))).adapters
            assert statistics.wire_faults == [api.WireFaultCount(direction="tx", kind="lost", frames=20)]
            assert statistics.wire.tx_frames == 0
            state = await bench.clear()
            assert in_force(state) == {"tx": False, "rx": False}
            assert state.wire_faults[0].counts["lost"] == 20
            assert bench.adapter().forwarder.wire is bench.adapter().wire
            assert await bench.passes(20) == 20

    run(work())


def test_each_direction_has_its_own_faults() -> None:
    async def work() -> None:
        async with Bench() as bench:
            await bench.set(direction="rx", duplicate=100.0)
            await bench.set(direction="tx", loss=100.0)
            assert await bench.passes(10) == 0
            assert await bench.passes(10, "tap1", "tap0") == 20
            assert in_force(await bench.clear(direction="tx")) == {"tx": False, "rx": True}
            assert await bench.passes(10) == 10

    run(work())


def test_what_is_not_named_stays_and_zero_takes_a_fault_away() -> None:
    async def work() -> None:
        async with Bench() as bench:
            await bench.set(loss=1.0, delay_ms=2.0, reorder=5.0, reorder_packets=8, rate=1_000_000, limit=50)
            state = await bench.set(direction="tx", loss=0.0, seed=9)
            tx, rx = state.wire_faults
            assert (tx.loss, tx.delay_ms, tx.reorder, tx.reorder_packets) == (0.0, 2.0, 5.0, 8)
            assert (tx.rate, tx.limit, tx.seed) == (1_000_000, 50, 9)
            assert (rx.loss, rx.delay_ms) == (1.0, 2.0)

    run(work())


def test_the_same_seed_loses_the_same_frames_and_another_seed_others() -> None:
    async def lost(seed: int) -> list[int]:
        async with Bench() as bench:
            await bench.set(loss=50.0, seed=seed)
            await bench.passes(200)
            return [buffer.frame[-1] for buffer in bench.port("tap1").sent]

    async def work() -> None:
        assert await lost(7) == await lost(7)
        assert await lost(7) != await lost(8)

    run(work())


def test_the_seed_that_was_chosen_is_shown_and_repeats_the_faults() -> None:
    async def work() -> None:
        async with Bench() as bench:
            state = await bench.set(direction="tx", loss=50.0)
            await bench.passes(100)
            first = [buffer.frame[-1] for buffer in bench.port("tap1").sent]
            bench.port("tap1").sent.clear()
            await bench.set(direction="tx", seed=state.wire_faults[0].seed)
            await bench.passes(100)
            assert [buffer.frame[-1] for buffer in bench.port("tap1").sent] == first

    run(work())


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("wire", ["link", "netdev"])
def test_delayed_frames_come_by_themselves_on_any_wire_and_loop(
    wire: str, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def work() -> None:
        async with Bench(wire) as bench:
            await bench.set(delay_ms=20.0)
            far = "tap1" if wire == "link" else "eth1"
            assert await bench.passes(5, "tap0", far) == 0
            assert await bench.passes(5, far, "tap0") == 0
            (state, *_) = (await bench.call(api.ListAdapters(name="left"))).adapters
            assert [one.waiting for one in state.wire_faults] == [5, 5]
            bench.world.now += 0.021
            await until(lambda: [len(bench.port(name).sent) for name in (far, "tap0")] == [5, 5])
            assert bench.adapter().forwarder.errors == 0

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.wait_for(work(), 20))


def test_a_cleared_wire_gives_what_was_on_its_way_at_once() -> None:
    async def work() -> None:
        async with Bench() as bench:
            await bench.set(delay_ms=60_000.0)
            await bench.passes(5)
            await bench.passes(5, "tap1", "tap0")
            await bench.clear()
            await settle()
            assert [len(bench.port(name).sent) for name in ("tap1", "tap0")] == [5, 5]
            (state,) = (await bench.call(api.ListAdapters(name="left"))).adapters
            assert in_force(state) == {"tx": False, "rx": False}

    run(work())


def test_a_stalled_wire_moves_nothing_until_it_is_released() -> None:
    async def work() -> None:
        async with Bench() as bench:
            state = await bench.do("stall")
            assert [one.stalled for one in state.wire_faults] == [True, True]
            assert await bench.passes(30) == 0
            assert await bench.passes(30, "tap1", "tap0") == 0
            await bench.do("release", direction="rx")
            await settle()
            assert [len(bench.port(name).sent) for name in ("tap1", "tap0")] == [0, 30]
            await bench.do("release")
            await settle()
            assert len(bench.port("tap1").sent) == 30

    run(work())


def test_aimed_faults_wait_in_the_cards_own_direction_unless_told() -> None:
    async def work() -> None:
        async with Bench() as bench:
            await bench.do("flip_icv", value=3)
            await bench.do("hold")
            state = await bench.do("hold", value=5, direction="rx")
            assert [one.armed for one in state.wire_faults] == [["flip-icv 3", "hold"], ["hold 5"]]
            # No frame of these is IPsec.
            assert await bench.passes(10) == 10

    run(work())


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"loss": 100.1}, "loss"),
        ({"duplicate": -0.1}, "duplicate"),
        ({"corrupt": math.nan}, "corrupt"),
        ({"reorder": math.inf}, "reorder"),
        ({"reorder_packets": 0}, "reorder-packets"),
        ({"delay_ms": 60_000.1}, "delay"),
        ({"jitter_ms": -1.0}, "jitter"),
        ({"rate": 999}, "rate"),
        ({"rate": 10**12 + 1}, "rate"),
        ({"limit": 0}, "limit"),
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 63}, "seed"),
    ],
)
def test_what_no_wire_can_do_is_refused_whole(members: dict[str, Any], field: str) -> None:
    async def work() -> None:
        async with Bench() as bench:
            good = {"duplicate": 1.0} if "loss" in members else {"loss": 1.0}
            with pytest.raises(RequestError) as caught:
                await bench.set(**members, **good)
            assert caught.value.field == field
            assert caught.value.value
            assert caught.value.allowed
            (state,) = (await bench.call(api.ListAdapters(name="left"))).adapters
            assert state.wire_faults == []

    run(work())


@pytest.mark.parametrize(
    ("action", "value", "field"),
    [
        ("flip_icv", None, "flip-icv"),
        ("flip_icv", 128, "flip-icv"),
        ("replay", 0, "replay"),
        ("replay", 1001, "replay"),
        ("hold", -1, "hold"),
        ("truncate", 13, "truncate"),
        ("truncate", None, "truncate"),
        ("stall", 1, "value"),
        ("release", 0, "value"),
        ("fill", 1, "value"),
    ],
)
def test_a_thing_that_cannot_be_done_is_refused(action: str, value: int | None, field: str) -> None:
    async def work() -> None:
        async with Bench() as bench:
            with pytest.raises(RequestError) as caught:
                await bench.do(action, value=value)
            assert (caught.value.field, bool(caught.value.allowed)) == (field, True)

    run(work())


def test_a_recording_has_what_is_really_on_the_wire(tmp_path: Path) -> None:
    async def frames(name: str, file: str, sender: str, receiver: str) -> int:
        async with Bench() as bench:
            capture = api.Capture(place="wire", file=str(tmp_path / file))
            await bench.call(api.SetAdapter(name="left", capture=capture))
            await bench.set(direction=name, loss=100.0)
            assert await bench.passes(7, sender, receiver) == 0
            await asyncio.sleep(0.4)
            (state,) = (await bench.call(api.ListAdapters(name="left"))).adapters
            assert state.capture is not None
            return state.capture.frames_written

    async def work() -> None:
        assert await frames("tx", "tx.pcapng", "tap0", "tap1") == 0
        assert await frames("rx", "rx.pcapng", "tap1", "tap0") == 7

    run(work())


def test_faults_stay_when_the_wire_is_changed() -> None:
    async def work() -> None:
        async with Bench() as bench:
            await bench.set(direction="tx", duplicate=100.0, delay_ms=1.0)
            await bench.passes(3)
            await bench.call(api.SetAdapter(name="left", wire=api.Wire(kind="netdev", name="eth5")))
            bench.world.now += 1.0
            await bench.passes(2, "tap0", "eth5")
            bench.world.now += 1.0
            await until(lambda: len(bench.port("eth5").sent) == 2 * (3 + 2))

    run(work())


def test_a_device_that_breaks_while_frames_wait_fails_the_adapter_alone() -> None:
    async def work() -> None:
        async with Bench("netdev") as bench:
            await bench.set(delay_ms=5.0)
            await bench.passes(3, "tap0", "eth1")
            bench.port("eth1").send_failure = PortError("eth1 is gone")
            bench.world.now += 1.0
            await until(lambda: bench.adapter().failure == "eth1 is gone")
            with pytest.raises(RequestError):
                await bench.clear()

    run(work())


def test_a_removed_card_has_no_wire_to_break() -> None:
    async def work() -> None:
        async with Bench() as bench:
            bench.adapter().remove()
            with pytest.raises(OidError):
                await bench.set(loss=1.0)

    run(work())


def test_a_deleted_adapter_leaves_no_timer_behind() -> None:
    async def work() -> None:
        async with Bench() as bench:
            await bench.set(delay_ms=10.0)
            await bench.passes(3)
            await bench.call(api.DeleteAdapter(name="left"))
            bench.world.now += 1.0
            await asyncio.sleep(0.03)
            assert len(bench.port("tap1").sent) == 0

    run(work())


AH = api.Sa(
    src="192.0.2.1",
    dst="192.0.2.2",
    proto="ah",
    spi=256,
    direction="out",
    integrity="hmac-sha256-128",
    integrity_key="01" * 32,
)
SA_CBC = replace(
    AH, proto="esp", encryption="aes-cbc-128", encryption_key="01" * 16, integrity="hmac-sha256-128"
)
SMALL = api.Capabilities(sa_capacity=100)
SA = api.Sa(
    src="192.0.2.1",
    dst="192.0.2.2",
    proto="esp",
    spi=256,
    direction="out",
    encryption="aes-gcm-128",
    encryption_key="01" * 20,
)


@pytest.mark.parametrize("limits", [{}, {"encryptions": ["aes-cbc-128"]}, {"esp": False}, {"ipv6": False}])
def test_a_table_is_filled_until_the_nic_has_room_for_none_and_emptied_again(limits: dict[str, Any]) -> None:
    async def work() -> None:
        async with Bench() as bench:
            card = api.Capabilities(sa_capacity=100, **limits)
            await bench.call(api.AddAdapter(name="small", tap="tap8", capabilities=card, software=False))
            filled = (await bench.call(api.DoWireFault(name="small", action="fill"))).adapter
            assert (filled.filler_sas, filled.sa_count) == (100, 100)
            with pytest.raises(OidError) as caught:
                await bench.call(api.AddSa(adapter="small", sa=AH if limits.get("esp") is False else SA_CBC))
            assert caught.value.status is NdisStatus.RESOURCES
            again = (await bench.call(api.DoWireFault(name="small", action="fill"))).adapter
            assert again.filler_sas == 100
            one_way = (await bench.call(api.ClearWireFaults(name="small", direction="tx"))).adapter
            assert one_way.filler_sas == 100
            empty = (await bench.call(api.ClearWireFaults(name="small"))).adapter
            assert (empty.filler_sas, empty.sa_count) == (0, 0)

    run(work())


def test_a_full_table_leaves_the_next_sa_to_software_and_other_sas_alone() -> None:
    async def work() -> None:
        async with Bench() as bench:
            await bench.call(api.AddAdapter(name="small", tap="tap8", capabilities=SMALL))
            await bench.call(api.AddSa(adapter="small", sa=SA))
            state = (await bench.call(api.DoWireFault(name="small", action="fill"))).adapter
            assert (state.filler_sas, state.sa_count) == (99, 100)
            added = await bench.call(
                api.AddSa(adapter="small", sa=replace(SA, spi=257, encryption_key="02" * 20))
            )
            assert (added.offload, added.status_name) == ("software", "NDIS_STATUS_RESOURCES")
            state = (await bench.call(api.ClearWireFaults(name="small"))).adapter
            assert (state.filler_sas, state.sa_count) == (0, 2)

    run(work())


def test_whoever_flushes_all_sas_flushes_the_filling_too() -> None:
    async def work() -> None:
        async with Bench() as bench:
            await bench.call(api.AddAdapter(name="small", tap="tap8", capabilities=SMALL))
            await bench.call(api.DoWireFault(name="small", action="fill"))
            await bench.call(api.FlushSas(adapter="small"))
            state = (await bench.call(api.ClearWireFaults(name="small"))).adapter
            assert (state.filler_sas, state.sa_count) == (0, 0)

    run(work())


def test_a_nic_that_refuses_for_another_reason_is_left_as_it_was() -> None:
    async def work() -> None:
        async with Bench() as bench:
            off = {"*IPsecOffloadV1IPv4": 0, "*IPsecOffloadV2": 0, "*IPsecOffloadV2IPv4": 0}
            await bench.call(api.AddAdapter(name="small", tap="tap8", keywords=off))
            with pytest.raises(OidError) as caught:
                await bench.call(api.DoWireFault(name="small", action="fill"))
            assert caught.value.status is NdisStatus.NOT_SUPPORTED
            (state,) = (await bench.call(api.ListAdapters(name="small"))).adapters
            assert (state.filler_sas, state.sa_count) == (0, 0)

    run(work())


def test_an_external_transport_has_the_same_wire(tmp_path: Path) -> None:
    async def work() -> None:
        async with Bench("netdev", str(tmp_path)) as bench:
            link = api.Wire(kind="netdev", name="eth9")
            await bench.call(api.AddAdapter(name="bare", transport="external", wire=link))
            await bench.call(api.SetWireFaults(name="bare", direction="rx", loss=100.0))
            bench.port("eth9").arrive(FRAME, FRAME)
            await settle()
            await bench.call(api.SetWireFaults(name="bare", loss=0.0, delay_ms=5.0))
            bench.port("eth9").arrive(FRAME)
            await settle()
            bench.world.now += 1.0
            await asyncio.sleep(0.2)
            (statistics,) = (await bench.call(api.GetStatistics(adapter="bare"))).adapters
            counts = {one.name: one.packets for one in statistics.drops}
            assert counts == {"fault_loss": 2, "nbl_no_driver": 1}

    run(work())
