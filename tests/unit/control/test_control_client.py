"""The client: typed calls, and a typed error for all that goes wrong."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from control_lab import READER, REASON, STRANGER, lab, run

from vnic.control.client import Client, NotPermittedError, NotReachedError, RefusedError
from vnic.control.interface import (
    AddAdapter,
    AddSa,
    DeleteAdapter,
    FlushPolicies,
    ListDropReasons,
    ListSas,
    Monitor,
    NoReply,
    Sa,
)
from vnic.errors import ControlError, OidError, PortError, RequestError
from vnic.ndis.status import NdisStatus


def test_call_gives_a_typed_reply(tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made, await made.client() as client:
            assert (await client.call(ListDropReasons())).reasons == [REASON]
            assert await client.call(DeleteAdapter(name="left")) == NoReply()
            assert made.service.calls == [ListDropReasons(), DeleteAdapter(name="left")]

    run(work())


def test_refusal_arrives_with_field_value_allowed_and_status(tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made, await made.client() as client:
            made.service.answers[DeleteAdapter] = OidError(
                NdisStatus.RESOURCES, "full", field="spi", value="0x100", allowed="fewer"
            )
            with pytest.raises(RefusedError) as caught:
                await client.call(DeleteAdapter(name="left"))
            error = caught.value
            assert (error.message, error.field, error.value, error.allowed) == (
                "full",
                "spi",
                "0x100",
                "fewer",
            )
            assert (error.status, error.status_name) == (0xC000009A, "NDIS_STATUS_RESOURCES")

    run(work())


def test_refusal_of_the_system_arrives_as_one(tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made, await made.client() as client:
            made.service.answers[DeleteAdapter] = PortError("cannot open TAP: busy")
            with pytest.raises(RefusedError, match="cannot open TAP: busy") as caught:
                await client.call(DeleteAdapter(name="left"))
            assert caught.value.status is None

    run(work())


@pytest.mark.parametrize("peer", [READER, STRANGER])
def test_what_is_not_permitted_says_so(tmp_path: Path, peer: Any) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            made.peer = peer
            async with await made.client() as client:
                with pytest.raises(NotPermittedError):
                    await client.call(FlushPolicies())
            assert made.service.calls == []

    run(work())


def test_value_of_the_wrong_type_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made, await made.client() as client:
            bad: Any = "sideways"
            with pytest.raises(RequestError) as caught:
                await client.call(AddAdapter(name="left", tap="tap0", non_ip=bad))
            assert (caught.value.field, caught.value.allowed) == ("non_ip", "pass, drop")
            with pytest.raises(RequestError, match="not Unicode"):
                await client.call(DeleteAdapter(name="\ud800"))
            assert (await client.call(ListDropReasons())).reasons == [REASON]

    run(work())


def test_defect_of_the_daemon_is_a_control_error_without_details(tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made, await made.client() as client:
            made.service.answers[AddSa] = ValueError("the key is 5ec7e7")
            with pytest.raises(ControlError, match="a defect of the daemon") as caught:
                await client.call(AddSa(sa=Sa(src="192.0.2.1", dst="192.0.2.2", proto="esp", spi=256)))
            assert "5ec7e7" not in str(caught.value)

    run(work())


def test_stream_gives_one_reply_after_the_other(tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made, await made.client() as client:
            numbers = []
            async for reply in client.stream(Monitor()):
                numbers.append(reply.event.sequence_number)
                if len(numbers) == 50:
                    break
            assert numbers == list(range(50))

    run(work())


def test_nobody_there_is_not_reached(tmp_path: Path) -> None:
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(dead))
    for path in (tmp_path / "none.sock", dead, tmp_path / ("x" * 200), tmp_path):
        with pytest.raises(NotReachedError):
            run(Client.connect(str(path)))


def test_daemon_that_goes_away_is_not_reached(tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made, await made.client() as client:
            await client.call(ListDropReasons())
            await made.server.close()
            with pytest.raises(NotReachedError):
                await client.call(ListDropReasons())

    run(work())


@pytest.mark.parametrize(
    "answer",
    [
        b"no json\0",
        b"[]\0",
        b'{"parameters": 5}\0',
        b'{"parameters": {"reasons": "none"}}\0',
        b'{"parameters": {}}\0',
        b'{"error": "org.varlink.service.MethodNotFound", "parameters": {"method": "x"}}\0',
        b'{"error": "io.vnic.Adapter.Refused", "parameters": {}}\0',
        b'{"error": "nonsense"}\0',
    ],
)
def test_answer_that_is_none_is_a_control_error(tmp_path: Path, answer: bytes) -> None:
    path = str(tmp_path / "strange.sock")

    async def strange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\0")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def work() -> None:
        async with await asyncio.start_unix_server(strange, path), await Client.connect(path) as client:
            with pytest.raises(ControlError):
                await client.call(ListDropReasons())

    run(work())


def test_long_reply_arrives_whole(tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made, await made.client() as client:
            reasons = [REASON] * 50_000
            made.service.answers[ListDropReasons] = ListDropReasons.reply_type()(reasons=reasons)
            assert len((await client.call(ListDropReasons())).reasons) == 50_000
            assert await client.call(ListSas())

    run(work())
