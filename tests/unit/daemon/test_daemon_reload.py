"""From one configuration to the next: what differs is changed, all else is left alone."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from daemon_fakes import World, run

from vnic.control.interface import AddAdapter, Capabilities, SetAdapter, Wire
from vnic.daemon.reload import apply
from vnic.daemon.settings import checked
from vnic.errors import PortError
from vnic.ndis.keywords import IpsecKeyword

LEFT = checked(AddAdapter(name="left", tap="tap0"))
RIGHT = checked(AddAdapter(name="right", tap="tap1"))
THIRD = checked(AddAdapter(name="third", tap="tap2", wire=Wire(kind="netdev", name="eth0")))
LINK = Wire(kind="link", name="right")


def test_links_are_joined_whatever_comes_first() -> None:
    async def work() -> None:
        for first, second in [
            (replace(LEFT, wire=LINK), RIGHT),
            (RIGHT, replace(LEFT, wire=LINK)),
            (replace(LEFT, wire=LINK), replace(RIGHT, wire=Wire(kind="link", name="left"))),
        ]:
            world = World()
            assert await apply(world.adapters, (), (first, second)) == []
            assert world.adapters.wire_of(world.adapters.require("left")) == LINK
            await world.adapters.close()

    run(work())


def test_only_what_differs_is_touched() -> None:
    async def work() -> None:
        world = World()
        old = (LEFT, RIGHT, THIRD)
        await apply(world.adapters, (), old)
        await world.adapters.add(AddAdapter(name="guest", tap="tap9"))
        kept = {name: world.adapters.require(name) for name in ("left", "right", "guest")}
        world.events.all.clear()
        world.host.calls.clear()
        fourth = checked(AddAdapter(name="fourth", tap="tap3"))
        changed = replace(RIGHT, non_ip="drop", policy_default_in="block")
        assert await apply(world.adapters, old, (LEFT, changed, fourth)) == []
        assert world.events.kinds == [
            ("adapter_deleted", "third"),
            ("adapter_changed", "right"),
            ("adapter_added", "fourth"),
        ]
        assert [call[:2] for call in world.host.calls] == [("open_tap", "tap3"), ("watch_master", "tap3")]
        for name, adapter in kept.items():
            assert world.adapters.require(name) is adapter
        assert [port.name for port in world.host.open_ports] == ["tap0", "tap1", "tap9", "tap3"]
        await world.adapters.close()

    run(work())


def test_what_was_set_at_run_time_stays_when_the_file_does_not_change() -> None:
    async def work() -> None:
        world = World()
        await apply(world.adapters, (), (LEFT,))
        await world.adapters.set(SetAdapter(name="left", mtu=1300))
        await apply(world.adapters, (LEFT,), (LEFT,))
        assert world.adapters.require("left").tap.mtu == 1300
        await world.adapters.close()

    run(work())


def test_adapter_that_has_to_be_made_anew_gets_its_link_back() -> None:
    async def work() -> None:
        for old in [
            (LEFT, replace(RIGHT, wire=Wire(kind="link", name="left"))),
            (replace(LEFT, wire=LINK), RIGHT),
        ]:
            world = World()
            await apply(world.adapters, (), old)
            left = world.adapters.require("left")
            new = (old[0], replace(old[1], netns="red"))
            assert await apply(world.adapters, old, new) == []
            assert world.adapters.require("left") is left
            assert world.adapters.wire_of(left) == LINK
            assert world.adapters.require("right").tap.netns == "red"
            await world.adapters.close()

    run(work())


def test_link_is_set_and_cut_in_place() -> None:
    async def work() -> None:
        world = World()
        await apply(world.adapters, (), (LEFT, RIGHT))
        left = world.adapters.require("left")
        linked = replace(LEFT, wire=LINK, non_ip="drop")
        assert await apply(world.adapters, (LEFT, RIGHT), (linked, RIGHT)) == []
        assert world.adapters.wire_of(left) == LINK
        assert await apply(world.adapters, (linked, RIGHT), (LEFT, RIGHT)) == []
        assert world.adapters.wire_of(left) == Wire(kind="none")
        assert world.adapters.require("left") is left
        await world.adapters.close()

    run(work())


def test_adapter_that_cannot_be_had_is_told_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        world = World()
        world.host.refusals["open_tap", "tap0"] = PortError("busy")
        (problem,) = await apply(world.adapters, (), (LEFT, RIGHT))
        assert problem == "adapter left: busy"
        assert "adapter left: busy" in caplog.text
        assert [one.name for one in world.adapters.all()] == ["right"]
        world.host.refusals.clear()
        assert await apply(world.adapters, (LEFT, RIGHT), (LEFT, RIGHT)) == []
        assert [one.name for one in world.adapters.all()] == ["left", "right"]
        await world.adapters.close()

    run(work())


def test_failed_adapter_is_made_anew() -> None:
    async def work() -> None:
        world = World()
        old = (replace(LEFT, wire=LINK), RIGHT)
        await apply(world.adapters, (), old)
        world.adapters.require("right").fail("removed")
        assert await apply(world.adapters, old, old) == []
        assert world.adapters.require("right").failure == ""
        assert world.adapters.wire_of(world.adapters.require("left")) == LINK
        await world.adapters.close()

    run(work())


def test_adapter_deleted_by_hand_is_not_missed() -> None:
    async def work() -> None:
        world = World()
        await apply(world.adapters, (), (LEFT,))
        await world.adapters.delete("left")
        assert await apply(world.adapters, (LEFT,), ()) == []

    run(work())


def test_adapter_added_by_hand_is_taken_over_when_the_file_names_it() -> None:
    async def work() -> None:
        world = World()
        adapter = await world.adapters.add(LEFT)
        assert await apply(world.adapters, (), (replace(LEFT, non_ip="drop"),)) == []
        assert world.adapters.require("left") is adapter
        assert await apply(world.adapters, (LEFT,), ()) == []
        assert len(world.adapters) == 0

    run(work())


@pytest.mark.rule(40)
def test_keywords_are_written_in_place_and_another_card_is_a_new_one(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    async def work() -> None:
        world = World(nbl_directory=str(tmp_path))
        bare = checked(AddAdapter(name="bare", transport="external"))
        await apply(world.adapters, (), (LEFT, bare))
        left, kept = world.adapters.require("left"), world.adapters.require("bare")
        off = checked(replace(LEFT, keywords={"*IPsecOffloadV2": 0}))
        assert await apply(world.adapters, (LEFT, bare), (off, bare)) == []
        assert world.adapters.require("left") is left
        assert left.engine.keywords.v2 is IpsecKeyword.DISABLED
        assert left.engine.current.ipsec_v2.esp
        assert "after `vnic adapter restart left`" in caplog.text
        card = replace(off, capabilities=Capabilities(esn=False))
        elsewhere = replace(bare, nbl_socket=f"{tmp_path}/elsewhere.nbl")
        assert await apply(world.adapters, (off, bare), (card, elsewhere)) == []
        remade = world.adapters.require("left")
        assert remade is not left
        assert not remade.engine.hardware.ipsec_v2.extended_sequence_numbers
        assert not remade.engine.current.ipsec_v2.esp
        assert world.adapters.require("bare") is not kept
        assert [path.name for path in tmp_path.iterdir()] == ["elsewhere.nbl"]
        await world.adapters.close()
        assert list(tmp_path.iterdir()) == []

    with caplog.at_level(logging.INFO):
        run(work())
