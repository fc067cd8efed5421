"""OID requests, watching and the life of the NIC over the calls of the control socket."""

import asyncio
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import pytest
from daemon_fakes import World, run

from vnic.control import interface as api
from vnic.control.oid_names import QUERIED, SET, WITH_KEYS, name_of, number_of
from vnic.daemon import oid_calls
from vnic.daemon.handlers import About, Handlers
from vnic.daemon.nbls import Nbls
from vnic.errors import OidError, RequestError
from vnic.ipsec.algorithms import ENCRYPTION_BY_NAME
from vnic.ipsec.association import KeyMaterial
from vnic.ndis.netbuffer import NetBuffer, OffloadHandle, ReceiveInfo, TransmitInfo
from vnic.ndis.oid import AddSa, AlgorithmInfo, Operation, SaElement
from vnic.ndis.oids import Oid, RequestType
from vnic.ndis.status import CryptoStatus, NdisStatus
from vnic.ndis.structs import pack_add_sa, pack_delete_sa

KEY = bytes.fromhex("5ec7e7" * 6 + "0011")
NEAR, FAR = bytes((10, 9, 0, 1)), bytes((10, 9, 0, 2))


def element(spi: int, key: bytes = KEY) -> SaElement:
    gcm = ENCRYPTION_BY_NAME["aes-gcm-128"].ndis_identifier
    return SaElement(Operation.ESP, spi, encryption=AlgorithmInfo(gcm, KeyMaterial(key)))


def added(spi: int, key: bytes = KEY, *, inbound: bool = False) -> AddSa:
    source, destination = (FAR, NEAR) if inbound else (NEAR, FAR)
    return AddSa(inbound, source, destination, (element(spi, key),))


def base64(data: bytes | bytearray) -> str:
    return b64encode(data).decode()


class Desk:
    """Handlers over a world with the inline adapter `left` and, with a directory, the external `bare`."""

    def __init__(self, directory: Path | None = None) -> None:
        self.world = World(nbl_directory=str(directory)) if directory else World()
        self.external = directory is not None
        about = About(
            engine="reference",
            loop="asyncio",
            config=None,
            reveal_keys=True,
            clock=lambda: self.world.now,
            wall_clock=lambda: 1_700_000_000.0,
            started=900.0,
        )
        self.handlers = Handlers(self.world.adapters, self.world.events, about)

    async def __aenter__(self) -> "Desk":
        await self.call(api.AddAdapter(name="left", tap="tap0", addresses=["10.9.0.1/24"]))
        if self.external:
            await self.call(api.AddAdapter(name="bare", transport="external"))
        self.world.events.all.clear()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.world.adapters.close()

    async def call(self, request: api.Call[Any]) -> Any:
        return await self.handlers.answer(request)

    async def oid(self, oid: str, buffer: bytes | bytearray | None = None, **more: Any) -> api.OidReply:
        """Set when there is a buffer, else query."""
        adapter = more.pop("adapter", "left")
        reply = await self.call(
            api.OidRequest(
                adapter=adapter,
                oid=oid,
                request_type="query" if buffer is None else "set",
                information_buffer=None if buffer is None else base64(buffer),
                **more,
            )
        )
        assert isinstance(reply, api.OidReply)
        return reply

    async def refused(self, request: api.Call[Any], field: str) -> RequestError:
        with pytest.raises(RequestError) as caught:
            await self.call(request)
        assert caught.value.field == field
        return caught.value


# --------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("text", "oid"),
    [
        ("OID_TCP_OFFLOAD_PARAMETERS", Oid.TCP_OFFLOAD_PARAMETERS),
        ("tcp_offload_parameters", Oid.TCP_OFFLOAD_PARAMETERS),
        ("oid_Offload_Encapsulation", Oid.OFFLOAD_ENCAPSULATION),
        ("0xFC01020C", Oid.TCP_OFFLOAD_PARAMETERS),
        ("0", 0),
        ("4294967295", 0xFFFFFFFF),
    ],
)
def test_an_oid_is_named_or_numbered(text: str, oid: int) -> None:
    assert number_of(text) == oid


@pytest.mark.parametrize(
    "text", ["", "OID_", "TCP", "0x", "-1", "4294967296", "\u0661", "1_0 ", "x" * 100_000]
)
def test_what_is_no_oid_is_refused_with_the_names(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        number_of(text)
    assert caught.value.field == "oid"
    assert len(str(caught.value)) < 1000
    assert "OID_TCP_OFFLOAD_PARAMETERS" in caught.value.allowed


def test_every_oid_can_be_asked_somehow_and_numbers_have_names() -> None:
    assert set(Oid) == QUERIED | SET
    assert WITH_KEYS <= SET - QUERIED
    assert name_of(0xFC03_0202) == "OID_TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA"
    assert name_of(7) == "0x00000007"


# ------------------------------------------------------------------------------------------- buffers


def message(request_type: str, **more: Any) -> api.OidRequest:
    return api.OidRequest(adapter="left", oid="0", request_type=request_type, **more)  # type: ignore[arg-type]


def test_a_query_has_room_for_any_answer_unless_it_says_how_much() -> None:
    assert len(oid_calls.request_of(message("query")).information_buffer) == oid_calls.ROOM
    assert len(oid_calls.request_of(message("query", information_buffer_length=4)).information_buffer) == 4
    legacy = oid_calls.request_of(
        message("query", information_buffer="AQI=", information_buffer_length=6, request_id=9)
    )
    assert legacy.information_buffer == bytearray(b"\x01\x02\0\0\0\0")
    assert (legacy.request_type, legacy.request_id) == (RequestType.QUERY, 9)
    assert oid_calls.request_of(message("set", information_buffer="AQI=")).information_buffer == b"\x01\x02"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (message("set", information_buffer="5ec7e75ec7e"), "information_buffer"),
        (message("set", information_buffer="5ec7e7$="), "information_buffer"),
        (message("set", information_buffer="ä"), "information_buffer"),
        (message("set", information_buffer=base64(bytes(oid_calls.MAX_LENGTH + 1))), "information_buffer"),
        (message("set", information_buffer="AQI=", information_buffer_length=3), "information_buffer_length"),
        (message("query", information_buffer_length=-1), "information_buffer_length"),
        (message("query", information_buffer_length=1 << 70), "information_buffer_length"),
        (message("query", request_id=-1), "request_id"),
        (message("query", request_id=1 << 64), "request_id"),
    ],
)
def test_a_wrong_buffer_is_refused_and_not_repeated(request_: api.OidRequest, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        oid_calls.request_of(request_)
    assert caught.value.field == field
    assert caught.value.allowed
    assert "5ec7e7" not in str(caught.value)


# ------------------------------------------------------------------------------------------ requests


@pytest.mark.rule(88, 89)
def test_a_list_is_added_with_its_handles_and_the_transport_and_listeners_know_it() -> None:
    async def work() -> None:
        async with Desk() as desk:
            buffer = pack_add_sa([added(0x100), added(0x200, KEY[::-1], inbound=True)])
            reply = await desk.oid("tcp_task_ipsec_offload_v2_add_sa", buffer)
            assert (reply.status, reply.status_name) == (0, "NDIS_STATUS_SUCCESS")
            assert (reply.oid, reply.oid_name) == (0xFC030202, "OID_TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA")
            assert all(reply.handles)
            assert len(reply.handles) == 2
            assert len(b64decode(reply.information_buffer)) == len(buffer)
            states = (await desk.call(api.ListSas())).sas
            assert [state.handle for state in states] == reply.handles
            assert [(state.sa.spi, state.sa.mode, state.sa.direction) for state in states] == [
                (0x100, None, "out"),
                (0x200, None, "in"),
            ]
            deleted = await desk.oid("0xfc030203", pack_delete_sa(reply.handles))
            assert (deleted.status, deleted.handles) == (0, [])
            assert (await desk.call(api.ListSas())).sas == []
            told = [(event.kind, event.handle) for event in desk.world.events.all if event.sa]
            assert told == [(kind, one) for kind in ("sa_added", "sa_deleted") for one in reply.handles]
            assert KEY.hex() not in str(desk.world.events.all)

    run(work())


def test_any_status_is_an_answer() -> None:
    async def work() -> None:
        async with Desk() as desk:
            unknown = await desk.oid("0x7")
            assert (unknown.status, unknown.oid_name) == (NdisStatus.INVALID_OID, "0x00000007")
            short = await desk.oid("tcp_offload_current_config", information_buffer_length=4)
            assert short.status == NdisStatus.BUFFER_TOO_SHORT
            assert short.bytes_needed > 4
            assert short.information_buffer == ""
            whole = await desk.oid("tcp_offload_current_config")
            assert whole.bytes_written == short.bytes_needed == len(b64decode(whole.information_buffer))
            wrong = await desk.oid("tcp_offload_current_config", b"")
            assert wrong.status == NdisStatus.NOT_SUPPORTED
            assert wrong.message

    run(work())


@pytest.mark.rule(77)
def test_nothing_under_way_is_nothing_to_cancel() -> None:
    async def work() -> None:
        async with Desk() as desk:
            assert (await desk.call(api.CancelOidRequest(adapter="left", request_id=7))).count == 0
            await desk.refused(api.CancelOidRequest(adapter="right", request_id=7), "adapter")
            await desk.refused(api.OidRequest(adapter="right", oid="0", request_type="query"), "adapter")

    run(work())


@pytest.mark.rule(77)
def test_a_list_under_way_is_cancelled_and_leaves_nothing() -> None:
    async def work() -> None:
        async with Desk() as desk:
            keys = (number.to_bytes(20, "big") for number in range(1, 1001))
            buffer = pack_add_sa([added(0x100 + number, key) for number, key in enumerate(keys)])
            asked = asyncio.create_task(desk.oid("tcp_task_ipsec_offload_v2_add_sa", buffer, request_id=7))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert (await desk.call(api.CancelOidRequest(adapter="left", request_id=7))).count == 1
            reply = await asked
            assert reply.status == NdisStatus.REQUEST_ABORTED
            assert (await desk.call(api.ListSas())).sas == []

    run(work())


# ------------------------------------------------------------------------------------ life of the NIC


def test_the_nic_is_paused_reset_restarted_and_removed() -> None:
    async def work() -> None:
        async with Desk() as desk:
            assert (await desk.call(api.PauseAdapter(name="left"))).adapter.state == "paused"
            assert (await desk.call(api.ResumeAdapter(name="left"))).adapter.state == "running"
            resetting = asyncio.create_task(desk.call(api.ResetAdapter(name="left", hold_ms=50)))
            await asyncio.sleep(0.01)
            (state,) = (await desk.call(api.ListAdapters())).adapters
            assert state.state == "resetting"
            assert (await resetting).adapter.state == "running"
            await desk.refused(api.ResetAdapter(name="left", hold_ms=60_001), "hold_ms")
            buffer = pack_add_sa([added(0x100)])
            (handle,) = (await desk.oid("tcp_task_ipsec_offload_v2_add_sa", buffer)).handles
            assert (await desk.call(api.RestartAdapter(name="left"))).adapter.state == "running"
            (sa,) = (await desk.call(api.ListSas())).sas
            assert sa.handle not in (0, handle)
            assert (await desk.call(api.RemoveAdapter(name="left"))).adapter.state == "removed"
            after = await desk.oid("tcp_offload_current_config")
            assert after.status == NdisStatus.NOT_ACCEPTED
            with pytest.raises(OidError) as caught:
                await desk.call(api.ResetAdapter(name="left"))
            assert caught.value.status is NdisStatus.NOT_ACCEPTED

    run(work())


@pytest.mark.rule(183)
def test_the_deletion_of_an_inbound_sa_is_requested_by_name_or_handle() -> None:
    async def work() -> None:
        async with Desk() as desk:
            buffer = pack_add_sa([added(0x100), added(0x200, KEY[::-1], inbound=True)])
            outbound, inbound = (await desk.oid("0xfc030202", buffer)).handles
            reply = await desk.call(api.RequestSaDeletion(handle=inbound))
            assert (reply.handle, reply.direction, reply.status) == (inbound, "in", 0)
            await desk.call(api.RequestSaDeletion(dst="10.9.0.1", proto="esp", spi=0x200))
            with pytest.raises(OidError) as caught:
                await desk.call(api.RequestSaDeletion(handle=outbound))
            assert caught.value.status is NdisStatus.INVALID_PARAMETER

    run(work())


@pytest.mark.rule(27, 38)
def test_capabilities_say_what_the_hardware_can_and_what_is_on_and_why_not() -> None:
    async def work() -> None:
        async with Desk() as desk:
            await desk.call(
                api.AddAdapter(
                    name="card",
                    tap="tap1",
                    capabilities=api.Capabilities(esn=False, sa_capacity=9),
                    keywords={"*IPsecOffloadV2": 2},
                )
            )
            (reply,) = (await desk.call(api.GetCapabilities(adapter="card"))).adapters
            assert (reply.hardware.ah, reply.ndis.ah, reply.ndis.esp) == (True, False, True)
            assert (reply.hardware.sa_offload_capacity, reply.sas_offloaded) == (9, 0)
            assert reply.v1_hardware.ah_send
            features = {feature.name: feature for feature in reply.features}
            assert features["esp"].enabled
            assert features["esn"] == api.Feature(
                name="esn", hardware=False, enabled=False, reason="the hardware cannot"
            )
            assert features["ah"].hardware
            assert "*IPsecOffloadV2 is 2" in features["ah"].reason
            assert all(bool(feature.reason) != feature.enabled for feature in reply.features)
            (state,) = (await desk.call(api.ListAdapters(name="card"))).adapters
            assert state.keywords == {
                "*IPsecOffloadV1IPv4": 3,
                "*IPsecOffloadV2": 2,
                "*IPsecOffloadV2IPv4": 3,
            }

    run(work())


# ------------------------------------------------------------------------------------------ external


def test_an_external_adapter_has_a_nic_and_no_policies(tmp_path: Path) -> None:
    async def work() -> None:
        async with Desk(tmp_path) as desk:
            (state,) = (await desk.call(api.ListAdapters(name="bare"))).adapters
            assert (state.transport, state.nbl_socket) == ("external", f"{tmp_path}/bare.nbl")
            assert (state.tap, state.driver, state.software, state.policy_default_in) == (
                None,
                False,
                False,
                None,
            )
            reply = await desk.oid("0xfc030202", pack_add_sa([added(0x100)]), adapter="bare")
            assert reply.status == 0
            (sa,) = (await desk.call(api.ListSas(adapter="bare"))).sas
            assert (sa.handle, sa.offload) == (reply.handles[0], "nic")
            policy = api.Policy(direction="out", selector=api.Selector(src="10.9.0.0/24"), action="bypass")
            for request in (
                api.AddPolicy(adapter="bare", policy=policy),
                api.ListPolicies(adapter="bare"),
                api.FlushPolicies(adapter="bare"),
                api.SetPolicyDefault(adapter="bare", inbound="block"),
                api.GetPolicyDefault(adapter="bare"),
            ):
                refusal = await desk.refused(request, "adapter")
                assert "external transport" in refusal.message
            assert [one.adapter for one in (await desk.call(api.GetPolicyDefault())).defaults] == ["left"]
            statistics = (await desk.call(api.GetStatistics(adapter="bare"))).adapters[0]
            assert statistics.tap is None
            assert statistics.nbl == api.NblStatistics(
                sends=0, sends_failed=0, indications=0, messages_refused=0
            )
            sa_of = api.Sa(src="10.9.0.1", dst="10.9.0.2", proto="esp", spi=0x300)
            await desk.refused(api.AddSa(adapter="bare", sa=sa_of), "dir")
            assert (await desk.call(api.FlushSas(adapter="bare"))).count == 1

    run(work())


# -------------------------------------------------------------------------------------------- lists


def test_long_lists_come_in_parts_and_statistics_leave_them_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vnic.daemon.reports.SAS_A_MESSAGE", 3)
    monkeypatch.setattr("vnic.daemon.reports.SAS_A_PART", 2)

    async def work() -> None:
        async with Desk() as desk:
            request = api.ListSas()
            assert [len(part.sas) async for part in desk.handlers.stream(request)] == [0]
            keys = (number.to_bytes(20, "big") for number in range(1, 6))
            await desk.oid("0xfc030202", pack_add_sa([added(0x100 + at, key) for at, key in enumerate(keys)]))
            parts = [part async for part in desk.handlers.stream(request)]
            assert [len(part.sas) for part in parts] == [2, 2, 1]
            assert [sa.sa.spi for part in parts for sa in part.sas] == list(range(0x100, 0x105))
            assert "more" in (await desk.refused(request, "adapter")).message
            (one,) = (await desk.call(api.GetStatistics())).adapters
            assert (one.sa_count, one.sas) == (5, [])
            await desk.refused(api.GetStatistics(sas=True), "sas")
            assert (await desk.call(api.FlushSas())).count == 5

    run(work())


# ---------------------------------------------------------------------------------------------- nbls

FRAME = bytes(range(60))


def sent(status: NdisStatus = NdisStatus.SUCCESS) -> NetBuffer:
    buffer = NetBuffer(
        bytearray(FRAME), transmit=TransmitInfo(OffloadHandle(7), OffloadHandle(0), 4, 2, 0, 20)
    )
    buffer.status = status
    return buffer


@pytest.mark.rule(161, 176)
def test_a_watcher_sees_both_ways_and_leaves_no_observer() -> None:
    async def work() -> None:
        async with Desk() as desk:
            card = desk.world.adapters.require("left").engine
            assert card.send_observer is None
            frames = desk.handlers.stream(api.WatchNbls(adapter="left", snap_length=10))
            first = asyncio.ensure_future(anext(frames))
            while card.send_observer is None or card.receive_observer is None:
                await asyncio.sleep(0)
            card.send_observer([sent(NdisStatus.FAILURE)])
            received = NetBuffer(bytearray(FRAME))
            received.receive = ReceiveInfo(True, False, CryptoStatus.TRANSPORT_ESP_AUTH_FAILED)
            card.receive_observer([received, NetBuffer(bytearray(FRAME))])
            nbl = (await first).nbl
            assert (nbl.adapter, nbl.direction, nbl.frame, nbl.length) == (
                "left",
                "send",
                FRAME[:10].hex(),
                60,
            )
            assert (nbl.status_name, nbl.oob.ipsec) == ("NDIS_STATUS_FAILURE", 7)
            # NextHeader 4, PadLength 2, EspHeaderOffset 20 bytes are 5 words (sheet §5.3).
            assert nbl.oob.header == 0x05000204
            assert nbl.oob.members["OffloadHandle"] == "0x7"
            second = (await anext(frames)).nbl
            # CryptoDone is bit 1, CryptoStatus the upper half (sheet §5.1).
            assert (second.direction, second.oob.ipsec) == ("receive", 3 << 16 | 2)
            assert (await anext(frames)).nbl.oob.members == {}
            await frames.aclose()  # type: ignore[attr-defined]
            assert (card.send_observer, card.receive_observer) == (None, None)

    run(work())


def test_a_slow_watcher_loses_frames_and_is_told_how_many() -> None:
    async def work() -> None:
        async with Desk() as desk:
            card = desk.world.adapters.require("left").engine
            nbls = Nbls(lambda: 0.0, queue_length=3, queue_bytes=150)
            frames = nbls.watch("left", card, None)
            first = asyncio.ensure_future(anext(frames))
            while card.send_observer is None:
                await asyncio.sleep(0)
            card.send_observer([sent() for _ in range(5)])
            assert (await first).lost == 0
            assert (await anext(frames)).lost == 0
            card.send_observer([sent()])
            assert (await anext(frames)).lost == 3
            await frames.aclose()

    run(work())


def test_watching_ends_with_the_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vnic.daemon.nbls.CHECK_S", 0.01)

    async def work() -> None:
        async with Desk() as desk:
            frames = desk.handlers.stream(api.WatchNbls(adapter="left"))
            first = asyncio.ensure_future(anext(frames))
            await asyncio.sleep(0.03)
            await desk.call(api.DeleteAdapter(name="left"))
            with pytest.raises(RequestError, match="deleted"):
                await first
            with pytest.raises(RequestError):
                await anext(desk.handlers.stream(api.WatchNbls(adapter="left")))

    run(work())


def test_a_watcher_takes_no_length_that_cannot_be() -> None:
    async def work() -> None:
        async with Desk() as desk:
            with pytest.raises(RequestError) as caught:
                await anext(desk.handlers.stream(api.WatchNbls(adapter="left", snap_length=-1)))
            assert caught.value.field == "snap_length"

    run(work())
