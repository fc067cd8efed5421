"""The hot loop: bursts pass both ways, and a defect or a dead port costs no more than it must."""

import asyncio
import logging
from collections.abc import Callable

import pytest
import uvloop
from daemon_fakes import FRAME, FakeEngine, FakePort, run, settle
from scapy.layers.inet import IP, UDP
from transport_lab import ANY, ESP, FAR, NEAR, OUT, TUNNEL, association, frame_of, policy, template

from vnic.daemon.forwarder import Forwarder
from vnic.engine.contract import EngineEvent, EventKind
from vnic.errors import PortError
from vnic.ipsec.lifetime import Lifetime
from vnic.ndis.netbuffer import NetBuffer
from vnic.ports.base import BURST_FRAMES, BURST_PACKETS, Port
from vnic.ports.link import LinkPort, join


class Bench:
    """A forwarder between two ports."""

    def __init__(self, wire: Port | None = None) -> None:
        self.tap = FakePort("tap0", "tap")
        self.wire: Port = FakePort("eth0") if wire is None else wire
        self.engine = FakeEngine()
        self.events: list[EngineEvent] = []
        self.failures: list[str] = []
        self.now = 0.0
        self.forwarder = Forwarder(
            "left",
            self.engine,
            self.tap,
            self.wire,
            clock=lambda: self.now,
            on_event=self.events.append,
            on_failure=self.failures.append,
        )
        self.forwarder.start()

    def close(self) -> None:
        self.forwarder.stop()
        self.tap.close()
        self.wire.close()


def frames_of(burst: list[NetBuffer]) -> list[bytes]:
    return [bytes(buffer.frame) for buffer in burst]


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_frames_pass_both_ways_in_order(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def work() -> None:
        bench = Bench()
        wire = bench.wire
        assert isinstance(wire, FakePort)
        frames = [FRAME + bytes((number,)) for number in range(200)]
        bench.tap.arrive(*frames)
        wire.arrive(*reversed(frames))
        await settle()
        assert frames_of(wire.sent) == frames
        assert frames_of(bench.tap.sent) == frames[::-1]
        assert bench.tap.bursts == -(-len(frames) // BURST_FRAMES)
        bench.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(work())


def test_frames_cross_a_link_between_two_forwarders() -> None:
    async def work() -> None:
        left_end, right_end = LinkPort("left"), LinkPort("right")
        join(left_end, right_end)
        left, right = Bench(left_end), Bench(right_end)
        frames = [FRAME + bytes((number,)) for number in range(200)]
        left.tap.arrive(*frames)
        await settle()
        assert frames_of(right.tap.sent) == frames
        right.tap.arrive(FRAME)
        await settle()
        assert frames_of(left.tap.sent) == [FRAME]
        left.close()
        right.close()

    run(work())


def test_full_link_makes_the_tap_wait_and_loses_nothing() -> None:
    async def work() -> None:
        left_end = LinkPort("left")
        right_end = LinkPort("right", queue_frames=4 * BURST_FRAMES)
        join(left_end, right_end)
        left = Bench(left_end)
        frames = [FRAME + number.to_bytes(2, "big") for number in range(20 * BURST_FRAMES)]
        left.tap.arrive(*frames)
        await settle()
        assert left.tap.bursts == 2
        assert right_end.waiting == 2 * BURST_FRAMES
        right = Bench(right_end)
        await settle()
        assert frames_of(right.tap.sent) == frames
        assert left_end.counters.drops == {}
        left.close()
        right.close()

    run(work())


@pytest.mark.parametrize("how", ["taken away", "another wire", "stopped and started"])
def test_tap_that_waits_is_read_again_when_the_full_link_is_no_more(how: str) -> None:
    async def work() -> None:
        left_end, right_end = LinkPort("left"), LinkPort("right", queue_frames=4 * BURST_FRAMES)
        join(left_end, right_end)
        left = Bench(left_end)
        left.tap.arrive(*[FRAME] * (4 * BURST_FRAMES))
        await settle()
        assert left.tap.bursts == 2
        if how == "taken away":
            right_end.close()
        elif how == "another wire":
            left.forwarder.use_wire(FakePort("eth0"))
        else:
            left.forwarder.stop()
            right_end.receive_burst()
            left.forwarder.start()
        await settle()
        assert left.tap.bursts >= 4
        assert left.tap.waiting == []
        left.close()

    run(work())


def test_link_under_load_leaves_the_loop_to_others() -> None:
    async def work() -> None:
        left_end, right_end = LinkPort("left"), LinkPort("right")
        join(left_end, right_end)
        right = Bench(right_end)
        left_end.send_burst([NetBuffer(bytearray(FRAME)) for _ in range(BURST_PACKETS * 10)])
        turns = 0
        while len(right.tap.sent) < BURST_PACKETS * 10:
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 10
        right.close()
        left_end.close()

    run(work())


def test_stopped_forwarder_moves_nothing_and_leaves_the_ports_open() -> None:
    async def work() -> None:
        bench = Bench()
        bench.forwarder.stop()
        bench.forwarder.stop()
        bench.tap.arrive(FRAME)
        await settle()
        assert bench.tap.bursts == 0
        assert not bench.tap.closed
        bench.close()

    run(work())


def test_other_ports_can_be_put_in_while_it_runs() -> None:
    async def work() -> None:
        bench = Bench()
        old = bench.wire
        assert isinstance(old, FakePort)
        new, spare = FakePort("eth1"), LinkPort("left")
        bench.forwarder.use_wire(new)
        bench.tap.arrive(FRAME)
        old.arrive(FRAME)
        await settle()
        assert frames_of(new.sent) == [FRAME]
        assert old.bursts == 0
        bench.forwarder.use_wire(spare)
        other = LinkPort("right")
        join(spare, other)
        other.send_burst([NetBuffer(bytearray(FRAME))])
        await settle()
        assert frames_of(bench.tap.sent) == [FRAME]
        bench.close()
        new.close()
        other.close()

    run(work())


def test_engine_events_are_passed_on() -> None:
    async def work() -> None:
        bench = Bench()
        event = EngineEvent(EventKind.DROP)
        bench.engine.events = [event]
        bench.tap.arrive(FRAME)
        await settle()
        assert bench.events == [event]
        bench.close()

    run(work())


def test_clock_is_looked_at_without_traffic_when_an_sa_has_a_lifetime() -> None:
    async def work() -> None:
        bench = Bench()
        bench.engine.add_sa(association(lifetime=Lifetime(time_soft=1, time_hard=2)), 0.0)
        bench.forwarder.keep_time()
        assert bench.events == []
        for now, kinds in (
            (1.0, [EventKind.SA_EXPIRING]),
            (2.0, [EventKind.SA_EXPIRING, EventKind.SA_EXPIRED]),
        ):
            # The timer runs by the clock of the loop, and asks the clock it was given.
            bench.now = now - 0.01
            bench.forwarder.keep_time()
            bench.now = now
            await asyncio.sleep(0.05)
            assert [event.kind for event in bench.events] == kinds
        assert bench.forwarder._timer is None
        bench.engine.add_sa(association(lifetime=Lifetime(time_hard=9)), 2.0)
        bench.forwarder.keep_time()
        bench.close()
        assert bench.forwarder._timer is None

    run(work())


def test_use_of_an_sa_sets_the_timer() -> None:
    async def work() -> None:
        bench = Bench()
        bench.engine.add_policy(policy(OUT, ANY, template(ESP, TUNNEL, NEAR, FAR)))
        bench.engine.add_sa(association(lifetime=Lifetime(time_use_hard=5)), 0.0)
        bench.forwarder.keep_time()
        assert bench.forwarder._timer is None
        bench.now = 1.0
        packet = IP(src="10.1.0.1", dst="10.2.0.1") / UDP(sport=7, dport=8) / b"x"
        bench.tap.arrive(bytes(frame_of(packet)))
        await settle()
        assert bench.engine.deadline == 6.0
        assert bench.forwarder._timer is not None
        bench.close()

    run(work())


@pytest.mark.parametrize("side", ["tap", "wire"])
def test_dead_port_ends_the_adapter_once_and_says_why(side: str) -> None:
    async def work() -> None:
        bench = Bench()
        port = getattr(bench, side)
        port.break_down(PortError(f"{side} is gone"))
        await settle()
        assert bench.failures == [f"{side} is gone"]
        bench.tap.arrive(FRAME)
        await settle()
        assert bench.failures == [f"{side} is gone"]
        bench.close()

    run(work())


def test_port_that_dies_while_sending_ends_the_adapter() -> None:
    async def work() -> None:
        bench = Bench()
        wire = bench.wire
        assert isinstance(wire, FakePort)
        wire.send_failure = PortError("the wire is gone")
        bench.tap.arrive(FRAME)
        await settle()
        assert bench.failures == ["the wire is gone"]
        bench.close()

    run(work())


def test_defect_costs_one_burst_and_is_logged_once_a_minute_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        bench = Bench()
        wire = bench.wire
        assert isinstance(wire, FakePort)
        bench.engine.failure = ValueError("quotes a frame")
        for _ in range(5):
            bench.tap.arrive(FRAME)
            await settle()
        assert (bench.forwarder.errors, wire.sent, bench.failures) == (5, [], [])
        assert caplog.text.count("a burst was lost to ValueError") == 1
        bench.now += 60
        bench.tap.arrive(FRAME)
        await settle()
        assert "(6 so far)" in caplog.text
        assert "quotes a frame" not in caplog.text
        bench.engine.failure = None
        bench.tap.arrive(FRAME)
        await settle()
        assert frames_of(wire.sent) == [FRAME]
        bench.close()

    with caplog.at_level(logging.DEBUG):
        run(work())


def test_adapter_that_only_fails_is_given_up() -> None:
    async def work() -> None:
        bench = Bench()
        bench.tap.break_down(ValueError("for ever"))
        await settle(3000)
        assert bench.forwarder.errors == 1000
        (reason,) = bench.failures
        assert "1000 bursts in a row" in reason
        bench.close()

    run(work())


def test_panic_of_the_native_engine_is_a_defect_like_any_other() -> None:
    class Panic(BaseException):
        """As `pyo3_runtime.PanicException` derives."""

    async def work() -> None:
        bench = Bench()
        wire = bench.wire
        assert isinstance(wire, FakePort)
        bench.tap.send_failure = Panic("index out of bounds")
        wire.arrive(FRAME)
        await settle()
        assert (bench.forwarder.errors, bench.failures) == (1, [])
        bench.close()

    run(work())


def test_defect_on_the_way_in_is_counted_too() -> None:
    async def work() -> None:
        bench = Bench()
        wire = bench.wire
        assert isinstance(wire, FakePort)
        bench.tap.send_failure = ValueError("a defect of the port")
        wire.arrive(FRAME)
        await settle()
        assert (bench.forwarder.errors, bench.failures) == (1, [])
        bench.close()

    run(work())


def test_frames_that_wait_on_a_link_are_left_when_it_stops() -> None:
    async def work() -> None:
        left_end, right_end = LinkPort("left"), LinkPort("right")
        join(left_end, right_end)
        right = Bench(right_end)
        left_end.send_burst([NetBuffer(bytearray(FRAME))])
        right.forwarder.stop()
        await settle()
        assert right.tap.sent == []
        right.forwarder.start()
        await settle()
        assert frames_of(right.tap.sent) == [FRAME]
        right.close()
        left_end.close()

    run(work())
