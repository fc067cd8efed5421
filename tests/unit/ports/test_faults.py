"""FaultLine and FaultPort: what happens to frames, when, and what is counted."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnic.errors import RequestError
from vnic.ndis.netbuffer import NetBuffer
from vnic.ports.base import BURST_PACKETS
from vnic.ports.faults import (
    MAX_AIMED,
    REORDER_PATIENCE_S,
    SHORTEST_WAIT_S,
    Aimed,
    FaultLine,
    FaultPort,
    FaultSettings,
)
from vnic.ports.link import LinkPort, join

ETHERNET = bytes(12) + b"\x08\x00"
SEALED = 0xEE
"""First byte behind the Ethernet header of a frame that is IPsec here; its ICV is the last four bytes."""


def plain(number: int, length: int = 60) -> NetBuffer:
    body = number.to_bytes(4, "big")
    return NetBuffer(bytearray(ETHERNET + b"\0" + body + bytes(length - len(ETHERNET) - 5)))


def sealed(number: int, length: int = 60) -> NetBuffer:
    buffer = plain(number, length)
    buffer.frame[14] = SEALED
    return buffer


def find_icv(frame: bytearray) -> tuple[int, int] | None:
    return (len(frame) - 4, 4) if len(frame) > 18 and frame[14] == SEALED else None


def number_of(buffer: NetBuffer) -> int:
    return int.from_bytes(buffer.frame[15:19], "big")


def numbers(burst: list[NetBuffer]) -> list[int]:
    return [number_of(buffer) for buffer in burst]


def line_of(seed: int = 1, **settings: Any) -> FaultLine:
    line = FaultLine(random.Random(seed), find_icv)
    line.settings = FaultSettings(**settings)
    return line


def counted(line: FaultLine) -> dict[str, int]:
    return {kind: count for kind, count in line.counts.items() if count}


def burst_of(count: int, first: int = 0, make: Callable[[int], NetBuffer] = plain) -> list[NetBuffer]:
    return [make(number) for number in range(first, first + count)]


# ------------------------------------------------------------------------------------- by chance


def test_a_line_that_was_asked_for_nothing_gives_the_very_same_burst() -> None:
    line = line_of()
    burst = burst_of(300, make=sealed)
    before = [bytes(buffer.frame) for buffer in burst]
    passed = line.move(burst, 5.0)
    assert passed is burst
    assert [bytes(buffer.frame) for buffer in passed] == before
    assert (line.in_force, line.next_due(), counted(line)) == (False, None, {})


def test_lost_frames_are_counted_and_are_drops() -> None:
    line = line_of(loss=10.0)
    passed = line.move(burst_of(10_000), 0.0)
    lost = 10_000 - len(passed)
    assert 900 < lost < 1100
    assert counted(line) == {"lost": lost}
    assert line.drops == {"fault_loss": lost}
    assert numbers(passed) == sorted(numbers(passed))


def test_all_and_none_are_exact() -> None:
    assert line_of(loss=100.0).move(burst_of(500), 0.0) == []
    assert len(line_of(duplicate=100.0).move(burst_of(400), 0.0)) == 800


def test_a_duplicate_follows_its_original_and_is_a_frame_of_its_own() -> None:
    line = line_of(duplicate=100.0)
    first, second = line.move([plain(1)], 0.0)
    assert first.frame == second.frame
    first.frame[20] = 1
    assert first.frame != second.frame
    assert counted(line) == {"duplicated": 1}


@pytest.mark.parametrize("tag", [b"", b"\x81\x00\x00\x05", b"\x88\xa8\x00\x05\x81\x00\x00\x06"])
def test_one_bit_behind_the_ethernet_header_is_wrong(tag: bytes) -> None:
    head = bytes(12) + tag + b"\x08\x00"
    line = line_of(corrupt=100.0)
    places = set()
    for _ in range(2000):
        (passed,) = line.move([NetBuffer(bytearray(head + bytes(20)))], 0.0)
        wrong = int.from_bytes(passed.frame) ^ int.from_bytes(head + bytes(20))
        assert wrong.bit_count() == 1
        places.add(wrong)
    assert places == {1 << bit for bit in range(20 * 8)}
    assert counted(line) == {"corrupted": 2000}


def test_a_frame_with_nothing_behind_its_header_cannot_be_corrupted() -> None:
    line = line_of(corrupt=100.0)
    assert len(line.move([NetBuffer(bytearray(14)), NetBuffer(bytearray(3))], 0.0)) == 2
    assert counted(line) == {}


@pytest.mark.parametrize("packets", [1, 8, 100])
def test_a_reordered_frame_is_passed_by_as_many_as_asked_for(packets: int) -> None:
    line = line_of(reorder=100.0, reorder_packets=packets)
    assert line.move([plain(0)], 0.0) == []
    line.settings = FaultSettings()
    passed = numbers(line.move(burst_of(packets + 1, 1), 0.0))
    assert passed == [*range(1, packets + 1), 0, packets + 1]
    assert counted(line) == {"reordered": 1}


def test_a_reordered_frame_goes_on_when_nothing_follows() -> None:
    line = line_of(reorder=100.0, reorder_packets=8)
    assert line.move([plain(0)], 10.0) == []
    assert line.next_due() == 10.0 + REORDER_PATIENCE_S
    assert line.move([], 10.0 + REORDER_PATIENCE_S / 2) == []
    assert numbers(line.move([], 10.0 + REORDER_PATIENCE_S)) == [0]
    assert (line.waiting, line.next_due()) == (0, None)


def test_a_frame_suffers_one_fault_of_chance_at_most() -> None:
    line = line_of(loss=30.0, duplicate=30.0, corrupt=30.0, reorder=30.0, reorder_packets=3)
    passed = line.move(burst_of(5000), 0.0) + line.move([], REORDER_PATIENCE_S)
    counts = counted(line)
    assert len(passed) == 5000 - counts["lost"] + counts["duplicated"]
    wrong = sum(buffer.frame != plain(number_of(buffer)).frame for buffer in passed)
    assert wrong <= counts["corrupted"]
    assert sum(counts.values()) < 5000


# ------------------------------------------------------------------------------------------ time


def test_a_delayed_frame_comes_when_it_is_due_and_not_before() -> None:
    line = line_of(delay_s=0.002)
    assert line.move([plain(1)], 1.0) == []
    assert line.next_due() == pytest.approx(1.002)
    assert line.move([plain(2)], 1.001) == []
    assert numbers(line.move([], 1.002)) == [1]
    assert numbers(line.move([], 1.0031)) == [2]
    assert counted(line) == {"delayed": 2}


def test_jitter_spreads_the_delay_evenly_and_never_below_zero() -> None:
    line = line_of(delay_s=0.002, jitter_s=0.003, limit=5000)
    line.move(burst_of(4000), 0.0)
    times = []
    while (due := line.next_due()) is not None:
        times += [due] * len(line.move([], due))
    assert max(times) < 0.005
    at_once = 4000 - len(times)
    # The sixth part of -1..5 ms is below zero.
    assert 550 < at_once + sum(time <= 1e-9 for time in times) < 800
    # Of the others the mean is 2.5 ms: 5/6 of that over all.
    assert 0.0020 < sum(times) / 4000 < 0.00217


def test_a_rate_lets_frames_out_one_after_the_other() -> None:
    line = line_of(rate=8_000_000)
    line.move(burst_of(3, make=lambda number: plain(number, 1000)), 0.0)
    dues = []
    while (due := line.next_due()) is not None:
        dues.append(due)
        assert len(line.move([], due)) == 1
    assert dues == pytest.approx([0.001, 0.002, 0.003])
    # After a pause the wire is free again.
    line.move([plain(4, 1000)], 7.0)
    assert line.next_due() == pytest.approx(7.001)


def test_what_waits_is_bounded_and_the_rest_is_a_drop() -> None:
    line = line_of(delay_s=1.0, limit=10)
    assert line.move(burst_of(25), 0.0) == []
    assert line.waiting == 10
    assert line.drops == {"fault_queue_full": 15}
    assert line.counts["overflowed"] == 15
    assert numbers(line.move([], 1.0)) == list(range(10))


def test_frames_that_need_not_wait_take_no_room() -> None:
    line = line_of(corrupt=1e-9, limit=2)
    assert len(line.move(burst_of(100), 0.0)) == 100
    assert line.drops == {}


def test_a_duplicate_needs_no_more_room_than_its_original() -> None:
    assert len(line_of(duplicate=100.0, limit=1).move(burst_of(50), 0.0)) == 100


def test_memory_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vnic.ports.faults.MAX_WAITING_BYTES", 1000)
    line = line_of(delay_s=1.0)
    line.move(burst_of(3, make=lambda number: plain(number, 400)), 0.0)
    assert (line.waiting, line.drops) == (2, {"fault_queue_full": 1})


# ----------------------------------------------------------------------------------------- aimed


@pytest.mark.parametrize("bit", [0, 1, 7, 8, 31])
def test_a_bit_of_the_next_icv_is_flipped_and_plain_frames_are_passed_over(bit: int) -> None:
    line = line_of()
    line.aim(Aimed("flip_icv", bit), 0.0)
    passed = line.move([plain(1), sealed(2), sealed(3)], 0.0)
    icv = int.from_bytes(passed[1].frame[-4:])
    assert icv == 1 << (31 - bit)
    assert passed[0].frame == plain(1).frame
    assert passed[2].frame == sealed(3).frame
    assert (counted(line), line.in_force) == ({"flipped": 1}, False)


def test_a_bit_that_no_icv_has_waits_and_holds_up_no_other_fault() -> None:
    line = line_of()
    line.aim(Aimed("flip_icv", 32), 0.0)
    line.aim(Aimed("truncate", 20), 0.0)
    (passed,) = line.move([sealed(1)], 0.0)
    assert len(passed.frame) == 20
    assert line.armed == (Aimed("flip_icv", 32),)


def test_each_packet_takes_one_aimed_fault() -> None:
    line = line_of(loss=100.0)
    line.aim(Aimed("flip_icv", 0), 0.0)
    line.aim(Aimed("flip_icv", 0), 0.0)
    passed = line.move([sealed(1), sealed(2), sealed(3)], 0.0)
    assert numbers(passed) == [1, 2]
    assert counted(line) == {"flipped": 2, "lost": 1}


def test_the_last_sealed_packet_is_replayed_as_it_was_although_its_bytes_have_changed_since() -> None:
    line = line_of()
    (packet, _) = line.move([sealed(1), plain(2)], 0.0)
    packet.frame[20:] = bytes(40)
    line.aim(Aimed("replay", 3), 0.0)
    passed = line.move([], 0.0)
    assert [buffer.frame for buffer in passed] == [sealed(1).frame] * 3
    assert counted(line) == {"replayed": 3}


def test_a_replay_before_any_packet_repeats_the_first() -> None:
    line = line_of()
    line.aim(Aimed("replay", 2), 0.0)
    assert numbers(line.move([plain(0), sealed(1), sealed(2)], 0.0)) == [0, 1, 1, 1, 2]


def test_a_packet_is_held_until_it_is_released() -> None:
    line = line_of()
    line.aim(Aimed("hold", 0), 0.0)
    assert numbers(line.move([plain(0), sealed(1), *burst_of(500, 2)], 0.0)) == [0, *range(2, 502)]
    assert (line.waiting, line.next_due()) == (1, None)
    line.release(9.0)
    assert numbers(line.move([], 9.0)) == [1]
    assert counted(line) == {"held": 1}


def test_a_packet_is_held_until_so_many_have_passed_it() -> None:
    line = line_of()
    line.aim(Aimed("hold", 3), 0.0)
    assert numbers(line.move([sealed(1), *burst_of(2, 2)], 0.0)) == [2, 3]
    assert line.move([], 1e6) == []
    assert numbers(line.move(burst_of(2, 4), 1e6)) == [4, 1, 5]


def test_release_forgets_a_hold_that_has_caught_nothing_but_no_other_fault() -> None:
    line = line_of()
    for aimed in (Aimed("hold", 0), Aimed("truncate", 30)):
        line.aim(aimed, 0.0)
    line.release(0.0)
    assert line.armed == (Aimed("truncate", 30),)


def test_a_packet_not_longer_than_asked_for_is_not_truncated() -> None:
    line = line_of()
    line.aim(Aimed("truncate", 60), 0.0)
    passed = line.move([sealed(1), sealed(2, 61)], 0.0)
    assert [len(buffer.frame) for buffer in passed] == [60, 60]
    assert counted(line) == {"truncated": 1}


def test_a_stall_lets_nothing_out_until_release_and_is_bounded() -> None:
    line = line_of(limit=100)
    line.stalled = True
    assert line.move(burst_of(150), 0.0) == []
    assert (line.in_force, line.next_due(), line.waiting) == (True, None, 100)
    assert line.drops == {"fault_queue_full": 50}
    line.release(4.0)
    assert numbers(line.move([], 4.0)) == list(range(100))
    assert not line.in_force


def test_no_more_aimed_faults_wait_than_can_be_told() -> None:
    line = line_of()
    for _ in range(MAX_AIMED):
        line.aim(Aimed("flip_icv", 0), 0.0)
    with pytest.raises(RequestError) as raised:
        line.aim(Aimed("flip_icv", 5), 0.0)
    assert (raised.value.field, raised.value.value) == ("flip-icv", "5")


def test_clear_forgets_all_and_lets_everything_out_in_order() -> None:
    line = line_of(delay_s=10.0, rate=1000)
    line.move(burst_of(5), 0.0)
    line.aim(Aimed("hold", 0), 0.0)
    line.move([sealed(5)], 0.0)
    line.aim(Aimed("flip_icv", 0), 0.0)
    line.stalled = True
    line.clear(1.0)
    assert numbers(line.move([sealed(6)], 1.0)) == [0, 1, 2, 3, 4, 5, 6]
    assert (line.in_force, line.armed, line.settings) == (False, (), FaultSettings())


# ------------------------------------------------------------------------------------ properties

PERCENT = st.sampled_from([0.0, 0.1, 5.0, 30.0, 100.0])
SETTINGS = st.builds(
    FaultSettings,
    loss=PERCENT,
    duplicate=PERCENT,
    corrupt=PERCENT,
    reorder=PERCENT,
    reorder_packets=st.integers(1, 40),
    delay_s=st.sampled_from([0.0, 0.0005, 0.002]),
    jitter_s=st.sampled_from([0.0, 0.001, 0.005]),
    rate=st.sampled_from([0, 10_000, 100_000_000]),
    limit=st.sampled_from([1, 10, 1000]),
)
ORDERS = st.one_of(
    st.integers(0, 30),
    st.builds(
        Aimed, st.sampled_from(["flip_icv", "replay", "hold", "truncate"]), st.sampled_from([1, 3, 20])
    ),
    st.sampled_from(["stall", "release"]),
    SETTINGS,
)


def played(seed: int, orders: list[Any]) -> tuple[FaultLine, int, list[bytes]]:
    """Carry out orders; an integer is a burst. Gives the line, frames put in, and frames that came out."""
    line = line_of(seed)
    now, offered = 0.0, 0
    out: list[bytes] = []
    for order in orders:
        now += 0.001
        if isinstance(order, int):
            burst = burst_of(order, offered, sealed if order % 3 else plain)
            offered += order
            out += [bytes(buffer.frame) for buffer in line.move(burst, now, BURST_PACKETS)]
        elif isinstance(order, Aimed):
            line.aim(order, now)
        elif order == "stall":
            line.stalled = True
        elif order == "release":
            line.release(now)
        else:
            line.settings = order
    return line, offered, out


@given(st.integers(0, 2**32), st.lists(ORDERS, max_size=30))
def test_whatever_goes_in_comes_out_or_is_counted(seed: int, orders: list[Any]) -> None:
    line, offered, out = played(seed, orders)
    counts = line.counts
    came = offered + counts["duplicated"] + counts["replayed"]
    ended = counts["lost"] + counts["overflowed"]
    assert len(out) + ended + line.waiting == came
    assert sum(line.drops.values()) == ended
    waiting = line.waiting
    line.clear(1e9)
    assert len(line.move([], 1e9)) == waiting
    assert (line.waiting, line.in_force, line.next_due()) == (0, False, None)


@given(st.integers(0, 2**32), st.lists(ORDERS, max_size=30))
def test_the_same_seed_and_the_same_frames_give_the_same_faults(seed: int, orders: list[Any]) -> None:
    (first, _, out), (second, _, again) = played(seed, orders), played(seed, orders)
    assert out == again
    assert first.counts == second.counts


@given(st.lists(st.integers(0, 40), max_size=20))
def test_without_faults_frames_are_what_they_were(bursts: list[int]) -> None:
    line, offered, out = played(0, list(bursts))
    assert [int.from_bytes(frame[15:19]) for frame in out] == list(range(offered))
    assert not any(line.counts.values())


# ------------------------------------------------------------------------------------------ port


class Clock:
    """Time that stands still until it is told, and the timers set meanwhile."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.waits: list[float] = []

    def call_later(self, delay: float, call: Callable[[], None]) -> Clock.Timer:
        entry = (self.now + delay, call)
        self.timers.append(entry)
        self.waits.append(delay)
        return Clock.Timer(self, entry)

    class Timer:
        def __init__(self, clock: Clock, entry: tuple[float, Callable[[], None]]) -> None:
            self._clock, self._entry = clock, entry

        def cancel(self) -> None:
            if self._entry in self._clock.timers:
                self._clock.timers.remove(self._entry)

    def run(self) -> bool:
        """Go to the next timer and let it ring."""
        if not self.timers:
            return False
        entry = min(self.timers, key=lambda one: one[0])
        self.timers.remove(entry)
        self.now = max(self.now, entry[0])
        entry[1]()
        return True


class Stand:
    """A card's end of a link with faults before it, and the other end."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.near, self.far = LinkPort("near"), LinkPort("far")
        join(self.near, self.far)
        self.send, self.receive = line_of(1), line_of(2)
        self.send.settings = self.receive.settings = FaultSettings(**settings)
        self.port = FaultPort(
            self.near,
            self.send,
            self.receive,
            clock=lambda: self.clock.now,
            call_later=self.clock.call_later,
        )
        self.wakes = 0
        self.port.set_wake(self.wake)

    def wake(self) -> None:
        self.wakes += 1


def test_a_port_is_the_wire_behind_it_in_all_else() -> None:
    stand = Stand()
    port = stand.port
    assert (port.name, port.kind, port.mtu, port.fileno()) == ("near", "link", 1500, None)
    assert port.counters is stand.near.counters
    assert port.features() == stand.near.features()
    port.send_burst([plain(1)])
    assert numbers(stand.far.receive_burst()) == [1]
    stand.far.send_burst([plain(2)])
    assert stand.wakes == 1
    assert numbers(port.receive_burst()) == [2]
    assert stand.clock.waits == []
    port.close()
    assert port.kind == "none"


def test_frames_on_their_way_are_brought_by_a_timer_in_both_directions() -> None:
    stand = Stand(delay_s=0.005)
    stand.port.send_burst([plain(1)])
    stand.far.send_burst([plain(2)])
    assert stand.port.receive_burst() == []
    stand.wakes = 0
    assert stand.far.receive_burst() == []
    assert len(stand.clock.timers) == 1
    assert stand.clock.run()
    assert stand.wakes == 1
    assert stand.clock.now == pytest.approx(0.005)
    assert numbers(stand.port.receive_burst()) == [2]
    assert numbers(stand.far.receive_burst()) == [1]
    assert not stand.clock.run()


def test_no_wait_is_so_short_that_the_loop_spins() -> None:
    stand = Stand(rate=1_000_000_000)
    stand.port.send_burst(burst_of(200))
    arrived: list[int] = []
    while stand.clock.run():
        stand.port.receive_burst()
        arrived += numbers(stand.far.receive_burst())
    assert arrived == list(range(200))
    assert min(stand.clock.waits) == SHORTEST_WAIT_S
    assert len(stand.clock.waits) <= 3


def test_a_port_nobody_wakes_sets_no_timer() -> None:
    stand = Stand(delay_s=1.0)
    stand.port.send_burst([plain(1)])
    stand.port.set_wake(None)
    assert stand.clock.timers == []
    # Another port before the same lines goes on where this one ended.
    stand.clock.now = 2.0
    stand.port.set_wake(stand.wake)
    assert stand.wakes == 1
    stand.port.receive_burst()
    assert numbers(stand.far.receive_burst()) == [1]


def test_a_long_queue_comes_in_bursts() -> None:
    stand = Stand(delay_s=0.001)
    stand.far.send_burst(burst_of(600))
    for _ in range(3):
        assert stand.port.receive_burst() == []
    stand.clock.now = 1.0
    sizes = []
    while stand.receive.waiting:
        stand.wakes = 0
        sizes.append(len(stand.port.receive_burst()))
        assert stand.wakes == (1 if stand.receive.waiting else 0)
    assert sizes == [BURST_PACKETS, BURST_PACKETS, 600 - 2 * BURST_PACKETS]


def test_what_ends_on_the_wire_is_a_drop_of_the_wire() -> None:
    stand = Stand(loss=100.0)
    stand.port.send_burst(burst_of(3))
    stand.far.send_burst(burst_of(4))
    assert stand.port.receive_burst() == []
    assert stand.near.counters.drops == {"fault_loss": 7}
    assert stand.near.counters.tx_frames == 0
