"""Adapters: made, changed, joined and taken away, all or nothing."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from daemon_fakes import FRAME, FakePort, World, run, settle

from vnic.control.interface import AddAdapter, Capture, SetAdapter, Wire
from vnic.daemon.adapters import Adapter
from vnic.daemon.host import TapDevice
from vnic.engine.contract import EngineEvent, EventKind
from vnic.errors import PortError, RequestError
from vnic.ipsec.association import Direction, IpsecProtocol, Mode, SaId
from vnic.ipsec.drops import DropReason
from vnic.ipsec.policy import PolicyAction, PolicyEntry, Prefix, Selector, Template

LEFT = AddAdapter(name="left", tap="tap0", netns="blue", addresses=["10.9.0.1/24"])
RIGHT = AddAdapter(name="right", tap="tap1", wire=Wire(kind="link", name="left"))
ETH = Wire(kind="netdev", name="eth0", netns="red")

EVERYTHING = Selector(source=Prefix(bytes(4), 0), destination=Prefix(bytes(4), 0))
TUNNEL = PolicyEntry(
    direction=Direction.OUTBOUND,
    selector=EVERYTHING,
    action=PolicyAction.PROTECT,
    templates=(Template(IpsecProtocol.ESP, Mode.TUNNEL, source=b"\xc0\0\2\1", destination=b"\xc0\0\2\2"),),
)


def tap_of(adapter: Adapter) -> TapDevice:
    assert adapter.tap is not None
    return adapter.tap


async def refused(work: Any, field: str, kind: type[Exception] = RequestError) -> str:
    with pytest.raises(kind) as caught:
        await work
    assert getattr(caught.value, "field", "") == field
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- add


def test_adapter_is_made_with_all_it_was_asked_to_have() -> None:
    async def work() -> None:
        world = World()
        settings = replace(
            LEFT,
            mac="02:00:00:00:00:09",
            mtu=1400,
            wire=ETH,
            non_ip="drop",
            policy_default_out="block",
            features_off=["tx-udp-segmentation"],
        )
        adapter = await world.adapters.add(settings)
        assert world.host.calls == [
            ("open_netdev", "eth0", "red"),
            (
                "open_tap",
                "tap0",
                "blue",
                "02:00:00:00:00:09",
                1400,
                ("10.9.0.1/24",),
                ("tx-udp-segmentation",),
            ),
            ("watch_master", "tap0", "blue"),
        ]
        defaults = adapter.require_inline().defaults
        assert (defaults.non_ip, defaults.outbound, defaults.inbound) == (
            PolicyAction.DISCARD,
            PolicyAction.DISCARD,
            PolicyAction.BYPASS,
        )
        assert world.adapters.wire_of(adapter) == ETH
        assert world.events.kinds == [("adapter_added", "left")]
        assert world.adapters.require(None) is adapter
        await world.adapters.close()
        assert world.host.open_ports == []

    run(work())


def test_frames_pass_through_a_new_adapter() -> None:
    async def work() -> None:
        world = World()
        await world.adapters.add(replace(LEFT, wire=ETH))
        world.host.port("tap0").arrive(FRAME)
        await settle()
        assert [bytes(one.frame) for one in world.host.port("eth0").sent] == [FRAME]
        await world.adapters.close()

    run(work())


def test_default_mtu_is_that_of_the_wire() -> None:
    async def work() -> None:
        world = World()
        adapter = await world.adapters.add(replace(LEFT, wire=Wire(kind="netdev", name="jumbo0")))
        assert tap_of(adapter).mtu == 9000
        assert adapter.engine.wire_mtu == 9000
        await world.adapters.close()

    run(work())


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (LEFT, "name"),
        (replace(LEFT, name="bad name"), "name"),
        (replace(RIGHT, wire=Wire(kind="link", name="nobody")), "wire.name"),
        (replace(RIGHT, mtu=5), "mtu"),
        (replace(RIGHT, wire=Wire(kind="netdev")), "wire.name"),
    ],
)
def test_refused_adapter_leaves_nothing(settings: AddAdapter, field: str) -> None:
    async def work() -> None:
        world = World()
        await world.adapters.add(LEFT)
        before = len(world.host.opened)
        await refused(world.adapters.add(settings), field)
        assert len(world.host.opened) == before
        assert [one.name for one in world.adapters.all()] == ["left"]
        assert world.events.kinds == [("adapter_added", "left")]
        await world.adapters.close()

    run(work())


@pytest.mark.parametrize("refusal", [("open_tap", "tap0"), ("open_netdev", "eth0")])
def test_adapter_the_system_refuses_leaves_nothing(refusal: tuple[str, str]) -> None:
    async def work() -> None:
        world = World()
        world.host.refusals[refusal] = PortError("busy")
        with pytest.raises(PortError):
            await world.adapters.add(replace(LEFT, wire=ETH))
        assert world.host.open_ports == []
        assert len(world.adapters) == 0
        world.host.refusals.clear()
        await world.adapters.add(replace(LEFT, wire=ETH))
        await world.adapters.close()

    run(work())


def test_cancelled_request_leaves_nothing() -> None:
    async def work() -> None:
        world = World()
        adding = asyncio.create_task(world.adapters.add(replace(LEFT, wire=ETH)))
        while len(world.host.calls) < 2:
            await asyncio.sleep(0)
        adding.cancel()
        await asyncio.gather(adding, return_exceptions=True)
        assert [port.name for port in world.host.opened] == ["eth0"]
        assert world.host.open_ports == []
        assert len(world.adapters) == 0

    run(work())


def test_two_requests_for_one_name_make_one_adapter() -> None:
    async def work() -> None:
        world = World()
        results = await asyncio.gather(
            world.adapters.add(LEFT), world.adapters.add(LEFT), return_exceptions=True
        )
        assert [type(one) for one in results] == [Adapter, RequestError]
        assert len(world.host.opened) == 1
        await world.adapters.close()

    run(work())


# --------------------------------------------------------------------------------------------- link


def test_naming_a_free_peer_joins_both_ends() -> None:
    async def work() -> None:
        world = World()
        left = await world.adapters.add(LEFT)
        right = await world.adapters.add(RIGHT)
        assert world.adapters.wire_of(left) == Wire(kind="link", name="right")
        assert world.adapters.wire_of(right) == Wire(kind="link", name="left")
        world.host.port("tap0").arrive(FRAME)
        await settle()
        assert [bytes(one.frame) for one in world.host.port("tap1").sent] == [FRAME]
        assert world.events.kinds == [
            ("adapter_added", "left"),
            ("adapter_added", "right"),
            ("adapter_changed", "left"),
        ]
        await world.adapters.close()

    run(work())


def test_peer_that_is_not_free_is_refused() -> None:
    async def work() -> None:
        world = World()
        await world.adapters.add(LEFT)
        await world.adapters.add(RIGHT)
        third = AddAdapter(name="third", tap="tap2", wire=Wire(kind="link", name="left"))
        text = await refused(world.adapters.add(third), "wire.name")
        assert "the wire of left is link right already" in text
        await world.adapters.add(AddAdapter(name="fourth", tap="tap3", wire=ETH))
        fifth = AddAdapter(name="fifth", tap="tap4", wire=Wire(kind="link", name="fourth"))
        text = await refused(world.adapters.add(fifth), "wire.name")
        assert "netdev eth0 in namespace red" in text
        await world.adapters.close()

    run(work())


def test_deleting_one_end_leaves_the_other_with_no_wire() -> None:
    async def work() -> None:
        world = World()
        left = await world.adapters.add(LEFT)
        await world.adapters.add(RIGHT)
        await world.adapters.delete("right")
        assert world.adapters.wire_of(left) == Wire(kind="none")
        world.host.port("tap0").arrive(FRAME)
        await settle()
        assert left.wire.counters.drops == {"wire_down": 1}
        await world.adapters.add(RIGHT)
        assert world.adapters.wire_of(left) == Wire(kind="link", name="right")
        assert world.events.kinds[3:5] == [("adapter_deleted", "right"), ("adapter_changed", "left")]
        await world.adapters.close()

    run(work())


# ---------------------------------------------------------------------------------------------- set


def test_device_settings_go_to_the_device_in_one() -> None:
    async def work() -> None:
        world = World()
        adapter = await world.adapters.add(LEFT)
        await world.adapters.set(
            SetAdapter(name="left", mtu=1300, mac="02:00:00:00:00:05", addresses=["10.9.0.5/24"], up=False)
        )
        assert world.host.calls[-1] == (
            "configure",
            "tap0",
            "blue",
            "02:00:00:00:00:05",
            1300,
            ("10.9.0.5/24",),
            False,
        )
        assert (tap_of(adapter).mtu, adapter.mtu_fixed) == (1300, True)
        await world.adapters.set(SetAdapter(name="left", mtu=0))
        assert (tap_of(adapter).mtu, adapter.mtu_fixed) == (1500, False)
        await world.adapters.close()

    run(work())


def test_defaults_change_without_touching_the_device() -> None:
    async def work() -> None:
        world = World()
        adapter = await world.adapters.add(LEFT)
        calls = len(world.host.calls)
        assert adapter.require_inline().fragment_before
        await world.adapters.set(
            SetAdapter(name="left", non_ip="drop", policy_default_in="block", fragmentation="after")
        )
        assert len(world.host.calls) == calls
        assert not adapter.require_inline().fragment_before
        defaults = adapter.require_inline().defaults
        assert (defaults.non_ip, defaults.inbound, defaults.outbound) == (
            PolicyAction.DISCARD,
            PolicyAction.DISCARD,
            PolicyAction.BYPASS,
        )
        await world.adapters.close()

    run(work())


def test_wire_can_be_changed_and_the_old_one_is_given_back() -> None:
    async def work() -> None:
        world = World()
        left = await world.adapters.add(replace(LEFT, wire=ETH))
        await world.adapters.add(replace(RIGHT, wire=None))
        old = world.host.port("eth0")
        await world.adapters.set(SetAdapter(name="left", wire=Wire(kind="netdev", name="jumbo0")))
        assert old.closed
        assert (tap_of(left).mtu, left.engine.wire_mtu) == (9000, 9000)
        await world.adapters.set(SetAdapter(name="left", wire=Wire(kind="link", name="right")))
        assert tap_of(left).mtu == 1500
        world.host.port("tap0").arrive(FRAME)
        await settle()
        assert [bytes(one.frame) for one in world.host.port("tap1").sent] == [FRAME]
        await world.adapters.set(SetAdapter(name="left", wire=Wire(kind="none")))
        assert world.adapters.wire_of(world.adapters.require("right")) == Wire(kind="none")
        await world.adapters.close()
        assert world.host.open_ports == []

    run(work())


def test_the_wire_it_has_already_is_left_alone() -> None:
    async def work() -> None:
        world = World()
        await world.adapters.add(replace(LEFT, wire=ETH))
        wire = world.host.port("eth0")
        await world.adapters.set(SetAdapter(name="left", wire=ETH))
        assert world.host.port("eth0") is wire
        await world.adapters.close()

    run(work())


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (SetAdapter(name="nobody"), "name"),
        (SetAdapter(name="left", mtu=5), "mtu"),
        (SetAdapter(name="left", mac="x"), "mac"),
        (SetAdapter(name="left", addresses=["x"]), "address"),
        (SetAdapter(name="left", wire=Wire(kind="link", name="nobody")), "wire.name"),
        (SetAdapter(name="left", wire=Wire(kind="link", name="left")), "wire.name"),
        (SetAdapter(name="left", capture=Capture(place="wire")), "capture.file"),
        (SetAdapter(name="left", capture=Capture(place="wire", file="relative")), "capture.file"),
        (SetAdapter(name="left", capture=Capture(place="off", file="/tmp/x")), "capture.file"),
    ],
)
def test_refused_change_changes_nothing(request_: SetAdapter, field: str) -> None:
    async def work() -> None:
        world = World()
        adapter = await world.adapters.add(replace(LEFT, wire=ETH))
        calls = len(world.host.calls)
        await refused(world.adapters.set(replace(request_, non_ip="drop")), field)
        assert len(world.host.calls) == calls
        assert adapter.require_inline().defaults.non_ip is PolicyAction.BYPASS
        await world.adapters.close()

    run(work())


def test_change_the_system_refuses_is_undone(tmp_path: Path) -> None:
    async def work() -> None:
        world = World()
        adapter = await world.adapters.add(replace(LEFT, wire=ETH))
        world.host.refusals["configure", "tap0"] = PortError("no")
        file = tmp_path / "x.pcapng"
        with pytest.raises(PortError):
            await world.adapters.set(
                SetAdapter(
                    name="left",
                    mtu=1300,
                    wire=Wire(kind="netdev", name="eth1"),
                    non_ip="drop",
                    capture=Capture(place="wire", file=str(file)),
                )
            )
        assert [port.name for port in world.host.open_ports] == ["eth0", "tap0"]
        assert world.adapters.wire_of(adapter) == ETH
        assert (tap_of(adapter).mtu, adapter.mtu_fixed, adapter.capture) == (1500, False, None)
        assert adapter.require_inline().defaults.non_ip is PolicyAction.BYPASS
        assert not file.exists()
        await world.adapters.close()

    run(work())


# ------------------------------------------------------------------------------------------ capture


@pytest.mark.parametrize("place", ["tap", "wire"])
def test_recording_can_be_switched_on_moved_and_off(tmp_path: Path, place: Any) -> None:
    async def work() -> None:
        world = World()
        adapter = await world.adapters.add(replace(LEFT, wire=ETH))
        first, second = tmp_path / "first.pcapng", tmp_path / "second.pcapng"
        capture = Capture(place=place, file=str(first))
        await world.adapters.set(SetAdapter(name="left", capture=capture))
        state = adapter.capture_state()
        assert state is not None
        assert (state.place, state.file, state.state) == (place, str(first), "on")
        world.host.port("tap0").arrive(FRAME)
        await settle()
        await world.adapters.set(SetAdapter(name="left", capture=Capture(place="wire", file=str(second))))
        await world.adapters.set(SetAdapter(name="left", wire=Wire(kind="netdev", name="eth1")))
        world.host.port("tap0").arrive(FRAME + b"2")
        await settle()
        await world.adapters.set(SetAdapter(name="left", capture=Capture(place="off")))
        assert adapter.capture_state() is None
        world.host.port("tap0").arrive(FRAME + b"3")
        await settle()
        assert first.read_bytes().count(FRAME) == 1
        assert second.read_bytes().count(FRAME) == 1
        assert len(world.host.port("eth1").sent) == 2
        await world.adapters.close()

    run(work())


def test_existing_file_is_never_written_over(tmp_path: Path) -> None:
    async def work() -> None:
        world = World()
        adapter = await world.adapters.add(LEFT)
        precious = tmp_path / "precious"
        precious.write_text("data")
        with pytest.raises(PortError):
            await world.adapters.set(
                SetAdapter(name="left", capture=Capture(place="tap", file=str(precious)))
            )
        assert precious.read_text() == "data"
        assert adapter.capture is None
        await world.adapters.close()

    run(work())


def test_recording_ends_with_the_adapter(tmp_path: Path) -> None:
    async def work() -> None:
        world = World()
        await world.adapters.add(LEFT)
        file = tmp_path / "x.pcapng"
        await world.adapters.set(SetAdapter(name="left", capture=Capture(place="tap", file=str(file))))
        world.host.port("tap0").arrive(FRAME)
        await settle()
        await world.adapters.delete("left")
        assert FRAME in file.read_bytes()

    run(work())


# ------------------------------------------------------------------------------------------ failure


@pytest.mark.parametrize("device", ["tap0", "eth0"])
def test_adapter_whose_port_dies_fails_alone_and_says_why(device: str) -> None:
    async def work() -> None:
        world = World()
        left = await world.adapters.add(replace(LEFT, wire=ETH))
        await world.adapters.add(replace(RIGHT, wire=Wire(kind="netdev", name="eth9")))
        world.host.port(device).break_down(PortError(f"{device} was removed"))
        await settle()
        assert left.failure == f"{device} was removed"
        assert world.events.kinds[-1] == ("adapter_failed", "left")
        assert [port.name for port in world.host.open_ports] == ["eth9", "tap1"]
        await refused(world.adapters.set(SetAdapter(name="left", non_ip="drop")), "adapter")
        world.host.port("tap1").arrive(FRAME)
        await settle()
        assert len(world.host.port("eth9").sent) == 1
        await world.adapters.delete("left")
        await world.adapters.add(replace(LEFT, wire=ETH))
        await world.adapters.close()

    run(work())


def test_failed_end_of_a_link_frees_the_other(tmp_path: Path) -> None:
    async def work() -> None:
        world = World()
        left = await world.adapters.add(LEFT)
        await world.adapters.add(RIGHT)
        file = tmp_path / "x.pcapng"
        await world.adapters.set(SetAdapter(name="right", capture=Capture(place="tap", file=str(file))))
        world.host.port("tap1").break_down(PortError("gone"))
        await settle()
        assert world.adapters.wire_of(left) == Wire(kind="none")
        assert world.events.kinds[-2:] == [("adapter_failed", "right"), ("adapter_changed", "left")]
        third = AddAdapter(name="third", tap="tap2", wire=Wire(kind="link", name="right"))
        await refused(world.adapters.add(third), "adapter")
        await world.adapters.close()

    run(work())


def test_what_the_engine_tells_reaches_the_listeners() -> None:
    async def work() -> None:
        world = World()
        await world.adapters.add(LEFT)
        sa = SaId(b"\xc0\0\2\2", IpsecProtocol.ESP, 0x100)
        world.engines[0].events = [
            EngineEvent(EventKind.SEQUENCE_EXHAUSTED, sa=sa),
            EngineEvent(
                EventKind.DROP,
                sa=sa,
                drop=DropReason.IN_ICV,
                source=b"\xc0\0\2\1",
                destination=b"\xc0\0\2\2",
                sequence_number=7,
                suppressed=3,
            ),
            EngineEvent(EventKind.DROP, drop=DropReason.OUT_MALFORMED),
        ]
        world.host.port("tap0").arrive(FRAME)
        await settle()
        exhausted, dropped, malformed = world.events.all[1:]
        assert exhausted.kind == "sequence_exhausted"
        assert exhausted.sa is not None
        assert (exhausted.sa.dst, exhausted.sa.spi) == ("192.0.2.2", 0x100)
        assert dropped.drop is not None
        assert (dropped.drop.name, dropped.drop.xfrm_stat) == ("in_icv", "XfrmInStateProtoError")
        assert (dropped.drop.src, dropped.drop.sequence_number, dropped.drop.suppressed) == (
            "192.0.2.1",
            7,
            3,
        )
        assert malformed.drop is not None
        assert (malformed.sa, malformed.drop.src) == (None, "")
        await world.adapters.close()

    run(work())


# ---------------------------------------------------------------------------------------------- MTU


def test_mtu_follows_the_policies_unless_it_is_fixed() -> None:
    async def work() -> None:
        world = World()
        left = await world.adapters.add(LEFT)
        fixed = await world.adapters.add(AddAdapter(name="fixed", tap="tap5", mtu=1500))
        for adapter in (left, fixed):
            adapter.require_inline().add_policy(TUNNEL)
            await world.adapters.refresh_mtu(adapter)
        assert tap_of(left).mtu == left.require_inline().inner_mtu(1500) < 1500
        assert tap_of(fixed).mtu == 1500
        calls = len(world.host.calls)
        await world.adapters.refresh_mtu(left)
        assert len(world.host.calls) == calls
        assert world.events.kinds[-1] == ("adapter_changed", "left")
        await world.adapters.close()

    run(work())


def test_mtu_the_kernel_refuses_is_logged_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        world = World()
        left = await world.adapters.add(LEFT)
        left.require_inline().add_policy(TUNNEL)
        world.host.refusals["configure", "tap0"] = PortError("too small for IPv6")
        await world.adapters.refresh_mtu(left)
        assert tap_of(left).mtu == 1500
        assert "too small for IPv6" in caplog.text
        await world.adapters.close()

    run(work())


def test_adapter_must_be_named_when_there_are_several() -> None:
    async def work() -> None:
        world = World()
        with pytest.raises(RequestError, match="there is no adapter"):
            world.adapters.require(None)
        await world.adapters.add(LEFT)
        await world.adapters.add(RIGHT)
        with pytest.raises(RequestError, match="name the adapter") as caught:
            world.adapters.require(None)
        assert caught.value.allowed == "left, right"
        with pytest.raises(RequestError) as caught:
            world.adapters.require("lef")
        assert (caught.value.value, caught.value.allowed) == ("lef", "left, right")
        assert [one.name for one in world.adapters.chosen(None)] == ["left", "right"]
        await world.adapters.close()

    run(work())


def test_wire_of_a_second_tap_is_opened_as_one() -> None:
    async def work() -> None:
        world = World()
        adapter = await world.adapters.add(replace(LEFT, wire=Wire(kind="tap", name="tap9", netns="red")))
        assert isinstance(adapter.wire, FakePort)
        assert world.host.calls[0][:3] == ("open_tap", "tap9", "red")
        await world.adapters.close()

    run(work())
