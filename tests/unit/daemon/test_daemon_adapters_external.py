"""Adapters with an external transport: driver, NIC and wire, without root."""

import asyncio
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from daemon_fakes import FRAME, World, run, settle
from nic_frames import GCM, add_request, framed, udp

from vnic.control.access import Access
from vnic.control.interface import AddAdapter, Capture, SetAdapter, Wire
from vnic.daemon import external
from vnic.daemon.adapters import Adapter
from vnic.driver import Driver, Received
from vnic.errors import ControlError, OidError, PortError, RequestError
from vnic.ndis.configuration_structs import (
    EncapsulationSetting,
    EncapsulationSwitch,
    OffloadEncapsulation,
    pack_offload_encapsulation,
)
from vnic.ndis.nbl import MessageType, NblMessage, pack, unpack
from vnic.ndis.netbuffer import OffloadHandle, TransmitInfo
from vnic.ndis.offload_structs import unpack_offload
from vnic.ndis.oid import AddSa
from vnic.ndis.oids import Oid, OidRequest, OidResult, RequestType
from vnic.ndis.oob import NO_SLOTS, Slots
from vnic.ndis.status import CryptoStatus, IndicationCode, NdisStatus, StatusIndication
from vnic.ndis.structs import pack_add_sa

LEFT = AddAdapter(name="left", transport="external")
RIGHT = AddAdapter(name="right", transport="external", wire=Wire(kind="link", name="left"))

PACKET = framed(GCM, udp(b"text of a packet"))


def ask(oid: Oid, buffer: bytes | bytearray, request_id: int = 0) -> OidRequest:
    return OidRequest(oid, RequestType.SET, bytearray(buffer), request_id)


def encapsulation() -> OidRequest:
    setting = EncapsulationSetting(EncapsulationSwitch.ON, 2, 14)
    return ask(Oid.OFFLOAD_ENCAPSULATION, pack_offload_encapsulation(OffloadEncapsulation(setting, setting)))


def addition(*requests: AddSa, request_id: int = 0) -> OidRequest:
    return ask(Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA, pack_add_sa(requests), request_id)


async def done(adapter: Adapter, request: OidRequest) -> OidResult:
    result = await adapter.oid_request(request)
    assert result.status is NdisStatus.SUCCESS, result.message
    return result


async def offload(adapter: Adapter, request: AddSa) -> OffloadHandle:
    await done(adapter, addition(request))
    return adapter.engine.sas()[-1].offload_handle


async def pair(world: World) -> tuple[Adapter, Adapter]:
    left, right = await world.adapters.add(LEFT), await world.adapters.add(RIGHT)
    for adapter in (left, right):
        await done(adapter, encapsulation())
    return left, right


async def attach(adapter: Adapter) -> Driver:
    assert adapter.nbl is not None
    return await Driver.attach(adapter.nbl.path)


async def received(driver: Driver) -> Received:
    indicated = await asyncio.wait_for(driver.next_indication(), 5)
    assert isinstance(indicated, Received), indicated
    return indicated


async def told(driver: Driver) -> StatusIndication:
    indicated = await asyncio.wait_for(driver.next_indication(), 5)
    assert isinstance(indicated, StatusIndication), indicated
    return indicated


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(nbl_directory=str(tmp_path))


def test_an_external_adapter_has_a_socket_and_no_tap(world: World, tmp_path: Path) -> None:
    async def work() -> None:
        adapter = await world.adapters.add(LEFT)
        assert adapter.nbl is not None
        assert adapter.nbl.path == str(tmp_path / "left.nbl")
        assert os.path.exists(adapter.nbl.path)
        assert (adapter.tap, adapter.inline, adapter.state) == (None, None, "running")
        assert world.host.calls == []
        await world.adapters.refresh_mtu(adapter)
        await world.adapters.delete("left")
        assert not os.path.exists(adapter.nbl.path)
        await world.adapters.close()

    run(work())


def test_a_socket_that_cannot_be_made_leaves_nothing(world: World, tmp_path: Path) -> None:
    async def work() -> None:
        (tmp_path / "left.nbl").write_text("in the way")
        with pytest.raises(PortError, match="in the way"):
            await world.adapters.add(replace(LEFT, wire=Wire(kind="netdev", name="eth0")))
        assert world.host.open_ports == []
        assert len(world.adapters) == 0

    run(work())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (SetAdapter(name="left", mtu=1400), "mtu"),
        (SetAdapter(name="left", mac="02:00:00:00:00:01"), "mac"),
        (SetAdapter(name="left", up=True), "up"),
        (SetAdapter(name="left", non_ip="drop"), "non-ip"),
        (SetAdapter(name="left", policy_default_in="block"), "policy-default-in"),
        (SetAdapter(name="left", fragmentation="after"), "fragmentation"),
        (SetAdapter(name="left", cipher_limits="enforce"), "cipher-limits"),
        (SetAdapter(name="left", capture=Capture(place="tap", file="/x")), "capture.place"),
    ],
)
def test_what_only_the_inline_transport_has_is_refused(world: World, change: SetAdapter, field: str) -> None:
    async def work() -> None:
        adapter = await world.adapters.add(LEFT)
        with pytest.raises(RequestError) as caught:
            await world.adapters.set(change)
        assert caught.value.field == field
        assert caught.value.value == caught.value.value.lower()
        with pytest.raises(RequestError, match="external transport"):
            adapter.require_inline()
        await world.adapters.close()

    run(work())


@pytest.mark.rule(19, 25, 37)
def test_a_driver_hears_first_what_the_nic_can_do_and_does(world: World) -> None:
    async def work() -> None:
        adapter = await world.adapters.add(LEFT)
        async with await attach(adapter) as driver:
            assert unpack_offload(driver.hardware_capabilities) == adapter.engine.hardware
            assert unpack_offload(driver.current_config) == adapter.engine.current
            await done(adapter, encapsulation())
            indication = await told(driver)
            assert indication.code is IndicationCode.TASK_OFFLOAD_CURRENT_CONFIG
            assert driver.current_config == indication.buffer
            assert unpack_offload(driver.current_config) == adapter.engine.current
        await world.adapters.close()

    run(work())


@pytest.mark.rule(159, 171, 176)
def test_a_packet_is_sealed_by_one_nic_and_opened_by_the_other(world: World) -> None:
    async def work() -> None:
        left, right = await pair(world)
        out = await offload(left, add_request(GCM))
        await offload(right, add_request(GCM, inbound=True))
        async with await attach(left) as a, await attach(right) as b:
            completion = await a.send([PACKET.frame], PACKET.info(out))
            assert completion == (NdisStatus.SUCCESS, NO_SLOTS)
            got = await received(b)
            assert got.info is not None
            assert got.info.verified
            assert PACKET.payload in bytes(got.frame)
        assert left.nbl is not None
        assert right.nbl is not None
        assert (left.nbl.counters.sends, left.nbl.counters.sends_failed) == (1, 0)
        assert right.nbl.counters.indications == 1
        await world.adapters.close()

    run(work())


@pytest.mark.rule(167, 174, 197)
def test_lists_of_several_frames_keep_their_order(world: World) -> None:
    async def work() -> None:
        left, _ = await pair(world)
        right = world.adapters.require("right")
        async with await attach(left) as a, await attach(right) as b:
            frames = [FRAME + bytes([number]) for number in range(5)]
            ends = await asyncio.gather(a.send(frames[:3]), a.send(frames[3:]))
            assert [one.status for one in ends] == [NdisStatus.SUCCESS] * 2
            got = [await received(b) for _ in frames]
            assert [bytes(one.frame) for one in got] == frames
            assert all(one.slots == NO_SLOTS and one.info is None for one in got)
        await world.adapters.close()

    run(work())


@pytest.mark.rule(165)
def test_every_list_completes_in_order_with_its_status(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "vnic.daemon.external")

    async def work() -> None:
        left, _ = await pair(world)
        out = await offload(left, add_request(GCM))
        assert left.nbl is not None
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as raw:
            raw.connect(left.nbl.path)
            raw.setblocking(False)
            await settle()
            for _ in range(2):
                raw.recv(65536)
            good = Slots(ipsec=out, header=17 | PACKET.pad_length << 8 | 5 << 24)
            messages = [
                (1, NblMessage(MessageType.SEND, 0, 1, good, 0, [bytearray(PACKET.frame)])),
                (
                    2,
                    NblMessage(MessageType.SEND, 0, 2, good._replace(ipsec=77), 0, [bytearray(PACKET.frame)]),
                ),
                (3, NblMessage(MessageType.SEND, 0, 3, Slots(checksum=4), 0, [bytearray(PACKET.frame)])),
                (4, NblMessage(MessageType.SEND, 0, 4, Slots(tunnel=1), 1, [bytearray(PACKET.frame)])),
                (6, NblMessage(MessageType.SEND, 0, 6, good, 0, [bytearray(PACKET.frame)])),
            ]
            for _, message in messages:
                raw.send(pack(message))
                if message.request_id == 4:
                    raw.send(b"\1\0\1\0\0\0\0\0" + (5).to_bytes(8, "little"))
                    raw.send(b"rubbish")
            await settle()
            answers = []
            for _ in range(6):
                answer = unpack(raw.recv(65536))
                assert isinstance(answer, NblMessage)
                assert answer.type is MessageType.SEND_COMPLETE
                answers.append((answer.request_id, NdisStatus(answer.status)))
            assert answers == [
                (1, NdisStatus.SUCCESS),
                (2, NdisStatus.FAILURE),
                (3, NdisStatus.INVALID_PARAMETER),
                (4, NdisStatus.INVALID_PARAMETER),
                (5, NdisStatus.INVALID_LENGTH),
                (6, NdisStatus.SUCCESS),
            ]
            counters = left.nbl.counters
            assert (counters.sends, counters.sends_failed, counters.messages_refused) == (6, 4, 2)
            refused = [record.getMessage() for record in caplog.records]
            assert len(refused) == 4
            assert "the tunnel handle is in its slot or in NextOffloadHandle, not in both" in refused[1]
        await world.adapters.close()

    run(work())


def test_the_handle_of_another_adapter_is_not_valid(world: World) -> None:
    async def work() -> None:
        left, right = await pair(world)
        await offload(left, add_request(GCM))
        stranger = await offload(right, add_request(GCM))
        async with await attach(left) as driver:
            completion = await driver.send([PACKET.frame], PACKET.info(stranger))
            assert completion.status is NdisStatus.FAILURE
        await world.adapters.close()

    run(work())


@pytest.mark.rule(171, 180)
def test_a_frame_with_a_wrong_key_is_indicated_as_it_came(world: World) -> None:
    async def work() -> None:
        left, right = await pair(world)
        out = await offload(left, add_request(GCM))
        await offload(right, add_request(replace(GCM, label="other"), inbound=True))
        async with await attach(left) as a, await attach(right) as b:
            await a.send([PACKET.frame], PACKET.info(out))
            got = await received(b)
            assert got.info is not None
            assert got.info.crypto_status is CryptoStatus.TRANSPORT_ESP_AUTH_FAILED
            assert PACKET.payload not in bytes(got.frame)
        await world.adapters.close()

    run(work())


def test_a_second_driver_is_refused_until_the_first_has_gone(world: World) -> None:
    async def work() -> None:
        adapter = await world.adapters.add(LEFT)
        first = await attach(adapter)
        with pytest.raises(ControlError, match="another protocol driver"):
            await attach(adapter)
        await first.close()
        async with await attach(adapter) as second:
            assert (await second.send([FRAME])).status is NdisStatus.SUCCESS
        await settle()
        told = [event.text for event in world.events.all if event.kind == "adapter_changed"]
        came, went = (
            "adapter left: a protocol driver is attached",
            "adapter left: the protocol driver is gone",
        )
        assert told == [came, went, came, went]
        await world.adapters.close()

    run(work())


def test_a_user_who_does_not_administer_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        adapter = await world.adapters.add(LEFT)
        real = os.geteuid()
        monkeypatch.setattr("vnic.control.access.os.geteuid", lambda: real + 1)
        monkeypatch.setattr(
            "vnic.daemon.adapter.peer_of",
            lambda connection: replace_uid(connection, real + 2),
        )
        with pytest.raises(ControlError, match="administrator"):
            await attach(adapter)
        await world.adapters.close()

    run(work())


def replace_uid(connection: socket.socket, uid: int) -> Any:
    from vnic.control.access import peer_of

    return replace(peer_of(connection), uid=uid, gids=frozenset())


def test_access_is_that_of_the_control_socket(world: World) -> None:
    assert world.adapters.surroundings.access == Access()


def test_frames_without_a_driver_are_counted(world: World) -> None:
    async def work() -> None:
        left, right = await pair(world)
        async with await attach(left) as driver:
            assert (await driver.send([FRAME, FRAME])).status is NdisStatus.SUCCESS
        await settle()
        assert right.nbl is not None
        assert right.nbl.counters.drops == {"nbl_no_driver": 2}
        await world.adapters.close()

    run(work())


def test_an_external_and_an_inline_adapter_share_a_wire(world: World) -> None:
    async def work() -> None:
        await world.adapters.add(LEFT)
        await world.adapters.add(AddAdapter(name="right", tap="tap1", wire=Wire(kind="link", name="left")))
        async with await attach(world.adapters.require("left")) as driver:
            world.host.port("tap1").arrive(FRAME)
            assert bytes((await received(driver)).frame) == FRAME
            await driver.send([FRAME])
            await settle()
            assert [bytes(one.frame) for one in world.host.port("tap1").sent] == [FRAME]
        await world.adapters.close()

    run(work())


@pytest.mark.rule(206, 208, 209)
def test_a_reset_is_announced_and_sends_meanwhile_are_aborted(world: World) -> None:
    async def work() -> None:
        left, right = await pair(world)
        out = await offload(left, add_request(GCM))
        await offload(right, add_request(GCM, inbound=True))
        async with await attach(left) as a, await attach(right) as b:
            reset = asyncio.create_task(left.reset(100))
            assert (await told(a)).code is IndicationCode.RESET_START
            assert left.state == "resetting"
            assert (await a.send([PACKET.frame], PACKET.info(out))).status is NdisStatus.REQUEST_ABORTED
            with pytest.raises(OidError) as caught:
                await left.reset()
            assert caught.value.status is NdisStatus.RESET_IN_PROGRESS
            refused = await left.oid_request(addition(add_request(replace(GCM, spi=9))))
            assert refused.status is NdisStatus.RESET_IN_PROGRESS
            await reset
            assert (await told(a)).code is IndicationCode.RESET_END
            assert left.state == "running"
            assert (await a.send([PACKET.frame], PACKET.info(out))).status is NdisStatus.SUCCESS
            got = await received(b)
            assert got.info is not None
            assert got.info.verified
        names = [one.indication.name for one in world.events.all if one.indication is not None]
        assert names[-2:] == ["NDIS_STATUS_RESET_START", "NDIS_STATUS_RESET_END"]
        await world.adapters.close()

    run(work())


@pytest.mark.rule(208)
def test_a_driver_that_attaches_during_a_reset_hears_of_it(world: World) -> None:
    async def work() -> None:
        left = await world.adapters.add(LEFT)
        reset = asyncio.create_task(left.reset(200))
        await settle()
        async with await attach(left) as driver:
            assert (await told(driver)).code is IndicationCode.RESET_START
            assert (await told(driver)).code is IndicationCode.RESET_END
        await reset
        await settle()
        async with await attach(left) as driver:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(driver.next_indication(), 0.05)
        await world.adapters.close()

    run(work())


@pytest.mark.parametrize("hold_ms", [-1, 60_001])
def test_a_reset_is_held_a_minute_at_most(world: World, hold_ms: int) -> None:
    async def work() -> None:
        adapter = await world.adapters.add(LEFT)
        with pytest.raises(RequestError) as caught:
            await adapter.reset(hold_ms)
        assert caught.value.field == "hold_ms"
        await world.adapters.close()

    run(work())


def test_an_adapter_may_be_deleted_while_it_is_reset(world: World) -> None:
    async def work() -> None:
        adapter = await world.adapters.add(LEFT)
        reset = asyncio.create_task(adapter.reset(50))
        await settle()
        await world.adapters.delete("left")
        await reset
        assert adapter.state == "failed"

    run(work())


def test_a_paused_nic_completes_sends_with_paused(world: World) -> None:
    async def work() -> None:
        left, _ = await pair(world)
        async with await attach(left) as driver:
            left.pause()
            left.pause()
            assert left.state == "paused"
            assert (await driver.send([FRAME])).status is NdisStatus.PAUSED
            left.resume()
            left.resume()
            assert left.state == "running"
            assert (await driver.send([FRAME])).status is NdisStatus.SUCCESS
        await world.adapters.close()

    run(work())


@pytest.mark.rule(40, 211)
def test_a_restart_reads_the_registry_and_forgets_the_sas(world: World) -> None:
    async def work() -> None:
        left, _ = await pair(world)
        await offload(left, add_request(GCM))
        async with await attach(left) as driver:
            await world.adapters.set(SetAdapter(name="left", keywords={"*IPsecOffloadV2": 0}))
            assert left.engine.sa_count == 1
            left.pause()
            left.restart()
            assert (await told(driver)).code is IndicationCode.TASK_OFFLOAD_CURRENT_CONFIG
            assert (left.engine.sa_count, left.state) == (0, "running")
            await done(left, encapsulation())
            refused = await left.oid_request(addition(add_request(GCM)))
            assert refused.status is NdisStatus.NOT_SUPPORTED
        await world.adapters.close()

    run(work())


@pytest.mark.rule(80)
def test_after_surprise_removal_nothing_is_accepted(world: World) -> None:
    async def work() -> None:
        left, _ = await pair(world)
        async with await attach(left) as driver:
            left.remove()
            assert left.state == "removed"
            assert (await driver.send([FRAME])).status is NdisStatus.FAILURE
            assert (await left.oid_request(encapsulation())).status is NdisStatus.NOT_ACCEPTED
            for refused in (left.remove, left.pause, left.resume, left.restart):
                with pytest.raises(OidError) as caught:
                    refused()
                assert caught.value.status is NdisStatus.NOT_ACCEPTED
            with pytest.raises(OidError):
                await left.reset()
        with pytest.raises(ControlError, match="NOT_ACCEPTED"):
            await attach(left)
        await world.adapters.delete("left")
        await world.adapters.close()

    run(work())


def test_a_driver_hears_when_its_adapter_is_deleted(world: World) -> None:
    async def work() -> None:
        adapter = await world.adapters.add(LEFT)
        driver = await attach(adapter)
        await world.adapters.delete("left")
        with pytest.raises(ControlError, match="gone"):
            await asyncio.wait_for(driver.next_indication(), 5)
        with pytest.raises(ControlError):
            await driver.send([FRAME])
        await driver.close()

    run(work())


def test_a_defect_costs_one_burst_and_its_sends_complete(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        left, _ = await pair(world)

        def fail(*_: object) -> None:
            raise ValueError("quotes a frame")

        async with await attach(left) as driver:
            with monkeypatch.context() as patched:
                patched.setattr(left.engine, "transmit", fail)
                assert (await driver.send([FRAME])).status is NdisStatus.FAILURE
            assert left.forwarder.errors == 1
            assert (await driver.send([FRAME])).status is NdisStatus.SUCCESS
        await world.adapters.close()

    run(work())


def test_a_driver_that_does_not_read_stops_its_own_sends_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        monkeypatch.setattr("vnic.ports.nbl.COMPLETIONS_WAITING", 8)
        monkeypatch.setattr("vnic.ports.nbl.SOCKET_BUFFER", 4096)
        left, _ = await pair(world)
        assert left.nbl is not None
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as raw:
            raw.connect(left.nbl.path)
            raw.setblocking(False)
            await settle()
            sent = 0
            message = NblMessage(MessageType.SEND, frames=[bytearray(FRAME)])
            for _ in range(2000):
                message.request_id = sent
                try:
                    raw.send(pack(message))
                except BlockingIOError:
                    if left.nbl.congested:
                        break
                    await settle(2)
                    continue
                sent += 1
            assert left.nbl.congested
            assert left.nbl.counters.sends < sent
            answers: list[int] = []
            while len(answers) < sent:
                try:
                    answer = unpack(raw.recv(65536))
                except BlockingIOError:
                    await settle(2)
                    continue
                assert isinstance(answer, NblMessage)
                if answer.type is MessageType.SEND_COMPLETE:
                    answers.append(answer.request_id)
            assert answers == list(range(sent))
        await settle()
        assert not left.nbl.attached
        await world.adapters.close()

    run(work())


def test_the_wire_of_an_external_adapter_can_be_changed(world: World) -> None:
    async def work() -> None:
        left = await world.adapters.add(LEFT)
        async with await attach(left) as driver:
            await world.adapters.set(SetAdapter(name="left", wire=Wire(kind="netdev", name="eth0")))
            world.host.port("eth0").arrive(FRAME)
            assert bytes((await received(driver)).frame) == FRAME
            await driver.send([FRAME])
            await settle()
            assert [bytes(one.frame) for one in world.host.port("eth0").sent] == [FRAME]
            world.host.port("eth0").break_down(PortError("the wire is gone"))
            await settle()
        assert left.state == "failed"
        assert left.nbl is not None
        assert not os.path.exists(left.nbl.path)
        await world.adapters.close()

    run(work())


def test_queries_of_the_greeting_have_room_for_their_answers(world: World) -> None:
    async def work() -> None:
        adapter = await world.adapters.add(LEFT)
        async with await attach(adapter) as driver:
            assert 0 < len(driver.hardware_capabilities) < external._QUERY_LENGTH
        await world.adapters.close()

    run(work())


def test_the_second_handle_of_ndis_5_stands_for_the_tunnel_slot(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        left, _ = await pair(world)
        asked: list[TransmitInfo | None] = []
        transmit = left.engine.transmit  # type: ignore[attr-defined]

        def note(lists: list[Any], now: float) -> Any:
            asked.extend(one.transmit for one in lists)
            return transmit(lists, now)

        monkeypatch.setattr(left.engine, "transmit", note)
        async with await attach(left) as driver:
            await driver.send([FRAME], Slots(ipsec=3), next_offload_handle=4)
        (info,) = asked
        assert info is not None
        assert (info.offload_handle, info.tunnel_handle) == (3, 4)
        await world.adapters.close()

    run(work())
