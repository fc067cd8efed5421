"""The life of an inline adapter's NIC: reset, pause, restart, removal, load balancing."""

import asyncio
from dataclasses import replace

import pytest
from daemon_fakes import FRAME, World, run, settle

from vnic.control.interface import AddAdapter, SetAdapter, Wire
from vnic.daemon.adapters import Adapter
from vnic.engine.contract import Offload
from vnic.errors import OidError, PortError, RequestError
from vnic.ipsec.algorithms import ENCRYPTION_BY_NAME
from vnic.ipsec.association import Direction, IpsecProtocol, KeyMaterial, Mode, SecurityAssociation
from vnic.ndis.capabilities import NO_IPSEC
from vnic.ndis.keywords import HostSwitches, IpsecKeyword
from vnic.ndis.oids import Oid, OidRequest, RequestType
from vnic.ndis.status import NdisStatus

LEFT = AddAdapter(name="left", tap="tap0", wire=Wire(kind="netdev", name="eth0"))

SA = SecurityAssociation(
    direction=Direction.OUTBOUND,
    source=b"\xc0\0\2\1",
    destination=b"\xc0\0\2\2",
    protocol=IpsecProtocol.ESP,
    spi=0x5000,
    mode=Mode.TRANSPORT,
    encryption=ENCRYPTION_BY_NAME["aes-gcm-128"],
    encryption_key=KeyMaterial(bytes(range(20))),
)


def query() -> OidRequest:
    return OidRequest(Oid.TCP_OFFLOAD_CURRENT_CONFIG, RequestType.QUERY, bytearray(4096))


def names(world: World) -> list[str]:
    return [one.indication.name for one in world.events.all if one.indication is not None]


async def passes(world: World, adapter: Adapter) -> bool:
    """Whether a frame of the host reaches the wire."""
    sent = world.host.port("eth0").sent
    before = len(sent)
    world.host.port("tap0").arrive(FRAME)
    await settle()
    return len(sent) > before


def test_a_new_adapter_runs_and_has_told_of_no_change() -> None:
    async def work() -> None:
        world = World()
        adapter = await world.adapters.add(LEFT)
        assert (adapter.state, adapter.load_balancing) == ("running", None)
        assert world.events.kinds == [("adapter_added", "left")]
        assert adapter.inline is adapter.engine
        await world.adapters.close()

    run(work())


@pytest.mark.rule(204, 208)
def test_a_reset_holds_the_frames_and_ends() -> None:
    async def work() -> None:
        world = World()
        adapter = await world.adapters.add(LEFT)
        assert await passes(world, adapter)
        reset = asyncio.create_task(adapter.reset(200))
        await settle()
        assert adapter.state == "resetting"
        assert not await passes(world, adapter)
        await reset
        assert await passes(world, adapter)
        assert names(world) == ["NDIS_STATUS_RESET_START", "NDIS_STATUS_RESET_END"]
        await world.adapters.close()

    run(work())


def test_a_cancelled_reset_still_ends() -> None:
    async def work() -> None:
        world = World()
        adapter = await world.adapters.add(LEFT)
        reset = asyncio.create_task(adapter.reset(60_000))
        await settle()
        reset.cancel()
        await asyncio.wait([reset])
        assert adapter.state == "running"
        assert await passes(world, adapter)
        await world.adapters.close()

    run(work())


def test_a_paused_card_moves_no_frames_and_counts_them() -> None:
    async def work() -> None:
        world = World()
        adapter = await world.adapters.add(LEFT)
        adapter.pause()
        assert not await passes(world, adapter)
        adapter.resume()
        assert await passes(world, adapter)
        drops = {reason.value: count for reason, count in adapter.engine.counters.drops.items()}
        assert drops == {"nic_stopped": 1}
        assert world.events.kinds.count(("adapter_changed", "left")) == 2
        await world.adapters.close()

    run(work())


@pytest.mark.rule(80)
def test_a_removed_card_keeps_its_tap_and_carries_nothing() -> None:
    async def work() -> None:
        world = World()
        adapter = await world.adapters.add(LEFT)
        adapter.remove()
        assert adapter.state == "removed"
        assert not await passes(world, adapter)
        assert not world.host.port("tap0").closed
        assert (await adapter.oid_request(query())).status is NdisStatus.NOT_ACCEPTED
        with pytest.raises(OidError) as caught:
            adapter.engine.add_sa(SA, 1.0)
        assert caught.value.status is NdisStatus.NOT_ACCEPTED
        await world.adapters.delete("left")
        assert world.host.open_ports == []

    run(work())


@pytest.mark.rule(40)
def test_keywords_are_in_force_after_a_restart() -> None:
    async def work() -> None:
        world = World()
        adapter = await world.adapters.add(LEFT)
        change = SetAdapter(name="left", keywords={"*IPsecOffloadV2": 1})
        await world.adapters.set(change)
        assert adapter.engine.keywords.v2 is IpsecKeyword.AH
        assert adapter.engine.keywords.v1_ipv4 is IpsecKeyword.AH_AND_ESP
        assert adapter.engine.capabilities.esp
        adapter.restart()
        assert not adapter.engine.capabilities.esp
        assert adapter.engine.capabilities.ah
        await world.adapters.close()

    run(work())


@pytest.mark.rule(211)
def test_the_transport_offloads_again_after_a_restart() -> None:
    async def work() -> None:
        world = World()
        adapter = await world.adapters.add(LEFT)
        old = adapter.engine.add_sa(SA, 1.0).handle
        adapter.restart()
        (report,) = adapter.engine.sas()
        assert report.offload is Offload.NIC
        assert report.offload_handle
        assert old == report.offload_handle or adapter.engine.find_handle(report.offload_handle) == SA.id
        await world.adapters.close()

    run(work())


def test_nothing_is_asked_of_a_failed_adapter() -> None:
    async def work() -> None:
        world = World()
        adapter = await world.adapters.add(LEFT)
        world.host.port("eth0").break_down(PortError("gone"))
        await settle()
        assert adapter.state == "failed"
        assert world.host.watches["tap0"].closed
        adapter.balance_load("bond0")
        assert adapter.load_balancing is None
        for refused in (adapter.pause, adapter.resume, adapter.restart, adapter.remove):
            with pytest.raises(RequestError, match="out of use"):
                refused()
        with pytest.raises(RequestError):
            await adapter.reset()
        with pytest.raises(RequestError):
            await adapter.oid_request(query())
        await world.adapters.close()

    run(work())


@pytest.mark.rule(18)
def test_below_a_load_balancer_the_nic_offers_nothing() -> None:
    async def work() -> None:
        world = World()
        adapter = await world.adapters.add(LEFT)
        hear = world.host.watches["tap0"].tell
        hear("bond0")
        assert adapter.load_balancing == "bond0"
        reasons = {feature.name: feature.reason for feature in adapter.engine.features()}
        assert reasons["ipsec-v2-esp"] == "below bond0: load balancing (R18)"
        assert adapter.engine.capabilities == NO_IPSEC
        told = len(world.events.all)
        hear("bond0")
        assert len(world.events.all) == told
        hear(None)
        assert adapter.load_balancing is None
        assert adapter.engine.capabilities.esp
        kinds = [kind for kind, _ in world.events.kinds if kind == "load_balancing"]
        assert kinds == ["load_balancing"] * 2
        assert names(world).count("NDIS_STATUS_TASK_OFFLOAD_CURRENT_CONFIG") == 2
        await world.adapters.delete("left")
        assert world.host.watches["tap0"].closed

    run(work())


def test_a_tap_that_cannot_be_watched_makes_no_adapter() -> None:
    async def work() -> None:
        world = World()
        world.host.refusals["watch_master", "tap0"] = PortError("netlink is not to be had")
        with pytest.raises(PortError):
            await world.adapters.add(LEFT)
        assert world.host.open_ports == []
        assert len(world.adapters) == 0

    run(work())


def test_software_ipsec_is_chosen_when_the_adapter_is_made() -> None:
    async def work() -> None:
        world = World()
        adapter = await world.adapters.add(replace(LEFT, software=False))
        assert not adapter.require_inline().software
        await world.adapters.close()

    run(work())


@pytest.mark.rule(39)
def test_a_host_that_wants_no_offload_has_none() -> None:
    async def work() -> None:
        world = World()
        world.adapters.surroundings = replace(
            world.adapters.surroundings, host_switches=HostSwitches(enable_ipsec_offload=False)
        )
        adapter = await world.adapters.add(LEFT)
        assert adapter.engine.capabilities == NO_IPSEC
        await world.adapters.close()

    run(work())


def test_every_card_of_the_daemon_numbers_its_handles_apart() -> None:
    async def work() -> None:
        world = World()
        first = await world.adapters.add(LEFT)
        second = await world.adapters.add(AddAdapter(name="right", tap="tap1"))
        one, other = (adapter.engine.add_sa(SA, 1.0).handle for adapter in (first, second))
        assert one != other
        assert second.engine.find_handle(one) is None
        await world.adapters.delete("left")
        third = await world.adapters.add(LEFT)
        assert third.engine.add_sa(SA, 1.0).handle not in (one, other)
        await world.adapters.close()

    run(work())
