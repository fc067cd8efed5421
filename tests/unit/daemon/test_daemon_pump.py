"""Native bursts between two ports: when they are, what becomes of what they leave over, in which order."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest
from daemon_fakes import FRAME, FakeEngine, FakePort, run, settle

from vnic.daemon.forwarder import Forwarder
from vnic.daemon.pump import Pump, pump_of
from vnic.engine.contract import Outcome
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.vnet import DATA_VALID, GSO_NONE, PLAIN, VnetHeader
from vnic.ports.base import Port
from vnic.ports.link import LinkPort, join
from vnic.ports.middleware import Middleware
from vnic.ports.tap import TapPort

CHECKED = VnetHeader(DATA_VALID, GSO_NONE, 0, 0, 0, 0)


class NativePortStub:
    """What `vnic_native` makes of a port."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.closed = False

    def take_counts(self) -> tuple[int, int, int, int, int, int]:
        return (0, 0, 0, 0, 0, 0)

    def close(self) -> None:
        self.closed = True


class NativeStub:
    """`vnic_native`: reads nothing, and leaves over what a test says."""

    Tap = PacketSocket = Link = NativePortStub

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.left: list[Any] = []
        self.during: Callable[[], None] = lambda: None

    def Pump(self) -> NativeStub:
        return self

    def _answer(self, *call: Any) -> Any:
        self.calls.append(call)
        self.during()
        return self.left.pop(0) if self.left else None

    def tap_to_wire(self, card: object, tap: object, wire: object, now: float) -> Any:
        return self._answer("tap_to_wire", card)

    def wire_to_tap(self, card: object, wire: object, tap: object, now: float) -> Any:
        return self._answer("wire_to_tap", card)

    def over_link(self, near: Any, far: Any, both_ways: bool, now: float) -> Any:
        return self._answer("over_link", near.card, far.card, both_ways)


class CardName(str):
    """A native card that is its name."""

    def join_udp(self, join: bool) -> None:
        """Take note of nothing."""


class NativeEngineStub(FakeEngine):
    """An engine with a native card; `rests` is what it was left."""

    def __init__(self, card: str) -> None:
        super().__init__()
        self.card = CardName(card)
        self.is_ready = True
        self.wants_room = False
        self.rests: list[tuple[str, list[tuple[bytes, VnetHeader | None]]]] = []

    def ready(self, now: float) -> bool:
        return self.is_ready

    def send_rest(self, burst: list[NetBuffer], now: float) -> Outcome:
        self.rests.append(("send", [(bytes(one.frame), one.vnet) for one in burst]))
        return self.send(burst, now)

    def receive_rest(self, burst: list[NetBuffer], now: float) -> Outcome:
        self.rests.append(("receive", [(bytes(one.frame), one.vnet) for one in burst]))
        return self.receive(burst, now)


class Side:
    """A forwarder with a pump, between a TAP (a socket pair) and a wire."""

    def __init__(self, name: str, wire: Port, native: NativeStub) -> None:
        kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
        self.host, ours = socket.socketpair(socket.AF_UNIX, kind)
        self.tap = TapPort([ours.detach()], name, mtu=1500, features={})
        self.engine = NativeEngineStub(name)
        self.failures: list[str] = []
        self.forwarder = Forwarder(
            name,
            self.engine,
            self.tap,
            wire,
            clock=lambda: 0.0,
            on_event=lambda event: None,
            on_failure=self.failures.append,
            pump=Pump(self.engine, native),  # type: ignore[arg-type]
        )
        self.forwarder.start()

    def speak(self, frame: bytes = FRAME) -> None:
        self.host.send(PLAIN.emit() + frame)

    def hear(self) -> list[bytes]:
        heard = []
        while True:
            try:
                heard.append(self.host.recv(70_000)[len(PLAIN.emit()) :])
            except BlockingIOError:
                return heard

    def close(self) -> None:
        self.forwarder.stop()
        self.tap.close()
        self.host.close()


class Link:
    """Two sides and a link between."""

    def __init__(self) -> None:
        self.native = NativeStub()
        self.ends = LinkPort("left"), LinkPort("right")
        join(*self.ends)
        self.left = Side("left", self.ends[0], self.native)
        self.right = Side("right", self.ends[1], self.native)

    def close(self) -> None:
        self.left.close()
        self.right.close()


def rest(
    frames: list[bytes] = [],  # noqa: B006
    peer_frames: list[bytes] = [],  # noqa: B006
    read_error: int = 0,
    write_error: int = 0,
) -> tuple[Any, ...]:
    """What a call leaves over; the first frame has a virtio-net header."""
    headers = [tuple(CHECKED), *[None] * len(frames)]
    left = [(bytearray(frame), header) for frame, header in zip(frames, headers, strict=False)]
    return (left, [(bytearray(frame), None) for frame in peer_frames], read_error, write_error)


def drain(side: Side) -> Callable[[], None]:
    """Read the TAP as the native engine would, so that the loop does not call again."""

    def work() -> None:
        side.tap.receive_burst()

    return work


def test_a_link_of_two_native_ends_is_moved_both_ways_by_one_call() -> None:
    async def work() -> None:
        link = Link()
        link.native.during = drain(link.left)
        link.left.speak()
        await settle()
        assert link.native.calls == [("over_link", "left", "right", True)]
        assert link.left.engine.rests == link.right.engine.rests == []
        link.close()

    run(work())


@pytest.mark.parametrize(
    ("backwards", "sender", "receiver"), [(False, "left", "right"), (True, "right", "left")]
)
def test_what_the_native_cards_left_goes_through_their_engines_in_order(
    backwards: bool, sender: str, receiver: str
) -> None:
    async def work() -> None:
        link = Link()
        sides = {"left": link.left, "right": link.right}
        link.native.during = drain(link.left)
        link.native.left = [(rest([b"first" + FRAME, FRAME], [b"peer's" + FRAME]), backwards)]
        link.left.speak()
        await settle()
        assert sides[sender].engine.rests == [("send", [(b"first" + FRAME, CHECKED), (FRAME, None)])]
        assert sides[receiver].engine.rests == [("receive", [(b"peer's" + FRAME, None)])]
        assert sides[receiver].hear() == [b"peer's" + FRAME, b"first" + FRAME, FRAME]
        link.close()

    run(work())


def test_what_python_has_put_into_the_link_goes_before_native_bursts() -> None:
    async def work() -> None:
        link = Link()
        link.native.left = [(rest([b"older" + FRAME]), False)]
        waiting: list[int] = []

        def during() -> None:
            drain(link.left)()
            waiting.append(link.ends[1].waiting)

        link.native.during = during
        for _ in range(2):
            link.left.speak()
            # No turn of the loop between the two: the queue is still full when the second is read.
            link.left.forwarder._from_tap()
        assert waiting == [0, 0]
        assert link.right.hear() == [b"older" + FRAME]
        link.close()

    run(work())


@pytest.mark.parametrize("side", ["left", "right"])
def test_no_native_burst_follows_on_what_python_has_changed_just_before(side: str) -> None:
    """What waits on the link may end an SA, or the adapter: then the native cards are not up to date."""

    async def work() -> None:
        link = Link()
        link.native.left = [(rest([FRAME]), False)]
        link.native.during = drain(link.left)
        link.left.speak()
        link.left.forwarder._from_tap()
        assert link.ends[1].waiting
        calls = len(link.native.calls)
        receive = link.right.engine.receive

        def change(burst: list[NetBuffer], now: float) -> Outcome:
            if side == "left":
                link.left.engine.is_ready = False
            else:
                link.right.forwarder.stop()
            return receive(burst, now)

        link.right.engine.receive = change  # type: ignore[method-assign]
        link.left.speak()
        link.left.forwarder._from_tap()
        assert len(link.native.calls) == calls
        link.close()

    run(work())


def watch(link: Link, which: str) -> None:
    observer: Callable[[list[NetBuffer]], None] = lambda burst: None  # noqa: E731
    if which == "sending is watched":
        link.left.engine.send_observer = observer
    elif which == "receiving is watched":
        link.right.engine.receive_observer = observer
    elif which == "the NIC wants to see what it receives":
        link.right.engine.wants_room = True
    elif which == "the near engine is not ready":
        link.left.engine.is_ready = False
    elif which == "the far engine is not ready":
        link.right.engine.is_ready = False
    elif which == "something stands before the near TAP":
        link.left.forwarder.use_tap(Middleware(link.left.tap))
    elif which == "something stands before the far TAP":
        link.right.forwarder.use_tap(Middleware(link.right.tap))
    elif which == "something stands before the near wire":
        link.left.forwarder.use_wire(Middleware(link.ends[0]))
    else:
        link.right.forwarder.use_wire(Middleware(link.ends[1]))


@pytest.mark.parametrize(
    "which",
    [
        "sending is watched",
        "receiving is watched",
        "the NIC wants to see what it receives",
        "the near engine is not ready",
        "the far engine is not ready",
        "something stands before the near TAP",
        "something stands before the far TAP",
        "something stands before the near wire",
        "something stands before the far wire",
    ],
)
def test_bursts_that_somebody_has_to_see_go_by_way_of_python(which: str) -> None:
    async def work() -> None:
        link = Link()
        watch(link, which)
        link.left.speak()
        await settle()
        assert link.native.calls == []
        assert link.right.hear() == [FRAME]
        link.close()

    run(work())


@pytest.mark.parametrize("how", ["sending is watched", "receiving is watched"])
def test_one_way_may_be_native_when_the_other_is_watched(how: str) -> None:
    async def work() -> None:
        link = Link()
        link.native.during = drain(link.left)
        if how == "sending is watched":
            link.right.engine.send_observer = lambda burst: None
        else:
            link.left.engine.receive_observer = lambda burst: None
        link.left.speak()
        await settle()
        assert link.native.calls == [("over_link", "left", "right", False)]
        link.close()

    run(work())


def test_frames_keep_their_order_while_the_way_changes() -> None:
    async def work() -> None:
        link = Link()
        # The stub reads nothing: what it leaves over is what the TAP had.
        number = 0
        for turn in range(40):
            link.left.engine.send_observer = (lambda burst: None) if turn % 3 else None
            burst = [FRAME + (number + step).to_bytes(2, "big") for step in range(5)]
            number += 5
            for frame in burst:
                link.left.speak(frame)
            link.native.left = [(rest(burst), False)]
            link.native.during = drain(link.left)
            link.left.forwarder._from_tap()
            if turn % 7 == 0:
                await settle()
        await settle()
        assert link.right.hear() == [FRAME + index.to_bytes(2, "big") for index in range(number)]
        link.close()

    run(work())


@pytest.mark.parametrize(("backwards", "reader"), [(False, "left"), (True, "right")])
def test_a_tap_that_is_gone_ends_its_own_adapter_alone(backwards: bool, reader: str) -> None:
    async def work() -> None:
        link = Link()
        sides = {"left": link.left, "right": link.right}
        link.native.during = drain(link.left)
        link.native.left = [(rest(read_error=errno.EBADFD), backwards)]
        link.left.speak()
        await settle()
        other = next(side for name, side in sides.items() if name != reader)
        assert len(sides[reader].failures) == 1
        assert f"use TAP {reader} any longer" in sides[reader].failures[0]
        assert other.failures == []
        link.native.left = [(rest(write_error=errno.EBADFD), backwards)]
        link.close()

    run(work())


def test_a_far_tap_that_cannot_be_written_ends_the_far_adapter_alone() -> None:
    async def work() -> None:
        link = Link()
        link.native.during = drain(link.left)
        link.native.left = [(rest(write_error=errno.EBADFD), False)]
        link.left.speak()
        await settle()
        assert (link.left.failures, len(link.right.failures)) == ([], 1)
        link.left.speak()
        await settle()
        assert len(link.native.calls) == 1
        link.close()

    run(work())


def test_a_tap_as_wire_is_moved_natively_both_ways() -> None:
    async def work() -> None:
        native = NativeStub()
        network, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        wire = TapPort([ours.detach()], "wire0", mtu=1500, features={})
        side = Side("left", wire, native)
        native.during = drain(side)
        native.left = [rest([FRAME])]
        side.speak()
        await settle()
        assert native.calls == [("tap_to_wire", "left")]
        assert network.recv(1000)[len(PLAIN.emit()) :] == FRAME
        native.during = lambda: (wire.receive_burst(), None)[1]
        native.left = [rest([b"in" + FRAME])]
        network.send(PLAIN.emit() + FRAME)
        await settle()
        assert native.calls[1:] == [("wire_to_tap", "left")]
        assert side.hear() == [b"in" + FRAME]
        side.close()
        wire.close()
        network.close()

    run(work())


def test_ports_end_their_native_view_when_they_close_and_unknown_ones_have_none() -> None:
    async def work() -> None:
        link = Link()
        native = link.left.tap.native
        assert isinstance(native, NativePortStub)
        assert native.arguments == (list(link.left.tap.descriptors),)
        wire = FakePort("eth0")
        link.left.forwarder.use_wire(wire)
        link.left.speak()
        await settle()
        assert link.native.calls == []
        assert [bytes(one.frame) for one in wire.sent] == [FRAME]
        link.close()
        assert native.closed

    run(work())


def test_an_engine_without_a_native_card_has_no_pump() -> None:
    assert pump_of(FakeEngine()) is None


@pytest.mark.parametrize(
    ("features", "joined"),
    [({"tx-udp-segmentation": "on"}, True), ({"tx-udp-segmentation": "off: x"}, False), ({}, False)],
)
def test_udp_is_joined_for_hosts_whose_kernel_cuts_it(features: dict[str, str], joined: bool) -> None:
    said: list[bool] = []

    class Card:
        def join_udp(self, join: bool) -> None:
            said.append(join)

    engine = NativeEngineStub("left")
    engine.card = Card()  # type: ignore[assignment]
    kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
    host, ours = socket.socketpair(socket.AF_UNIX, kind)
    tap = TapPort([ours.detach()], "tap0", mtu=1500, features=features)
    Pump(engine, NativeStub()).attach(tap)  # type: ignore[arg-type]
    assert said == [joined]
    tap.close()
    host.close()
