"""The server: permissions, order, limits; and that a hostile client hurts only itself."""

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import control_lab
import msgspec
import pytest
import uvloop
from control_lab import (
    ADMINISTRATOR,
    READER,
    ROOT,
    STRANGER,
    Lab,
    lab,
    message,
)

from vnic.control.access import Peer
from vnic.control.framing import MESSAGE_LIMIT
from vnic.control.interface import (
    CALLS,
    AddSa,
    Call,
    DropReasonsReply,
    ListDropReasons,
    ListSas,
    NoReply,
    OidRequest,
)
from vnic.control.server import Limits, identity_of, listen, remove
from vnic.errors import ControlError, RequestError

Run = Callable[[Coroutine[Any, Any, None]], None]
SECRET = "5ec7e7" * 8
NAMES = {
    "AddAdapter": {"name": "a", "tap": "t"},
    "SetAdapter": {"name": "a"},
    "DeleteAdapter": {"name": "a"},
    "AddSa": {"sa": {"src": "192.0.2.1", "dst": "192.0.2.2", "proto": "esp", "spi": 256}},
    "UpdateSa": {"sequence_number_high_order": 1},
    "AddPolicy": {"policy": {"direction": "in", "selector": {}, "action": "bypass"}},
    "DeletePolicy": {"direction": "in"},
}
NAMES["RekeySas"] = {"sas": [{"new_spi": 257, "spi": 256}]}
NAMES["ReplaceSa"] = NAMES["AddSa"]
NAMES |= {f"{what}Adapter": {"name": "a"} for what in ("Reset", "Pause", "Resume", "Restart", "Remove")}
NAMES["OidRequest"] = {"adapter": "a", "oid": "0x0", "request_type": "query"}
NAMES["CancelOidRequest"] = {"adapter": "a", "request_id": 1}
NAMES["WatchNbls"] = {"adapter": "a"}
NAMES["TestPolicy"] = {"src": "10.0.0.1", "dst": "10.0.0.2", "proto": 6}
NAMES |= {"SetWireFaults": {"name": "a"}, "ClearWireFaults": {"name": "a"}}
NAMES["DoWireFault"] = {"name": "a", "action": "stall"}


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run the body of a test on either event loop."""
    if request.param == "asyncio":
        return partial(control_lab.run, loop_factory=asyncio.new_event_loop)
    return partial(control_lab.run, loop_factory=uvloop.new_event_loop)


async def still_serves(made: Lab) -> None:
    """Another client gets its answer."""
    made.peer = ROOT
    raw = await made.raw()
    assert "error" not in await raw.call("ListDropReasons")
    await raw.close()


# -------------------------------------------------------------------------------------- permissions


@pytest.mark.parametrize("request_type", CALLS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("peer", [ROOT, ADMINISTRATOR, READER, STRANGER], ids=lambda peer: f"uid{peer.uid}")
def test_permission_matrix(run: Run, tmp_path: Path, request_type: type[Call[Any]], peer: Peer) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            made.service.event_count = 1
            made.peer = peer
            raw = await made.raw()
            name = request_type.__name__
            await raw.send(message(name, more=request_type.streams, **NAMES.get(name, {})))
            reply = await raw.reply()
            allowed = peer in (ROOT, ADMINISTRATOR) or (peer is READER and request_type.reader)
            assert [type(one) for one in made.service.calls] == ([request_type] if allowed else [])
            assert (reply.get("error") == "io.vnic.Adapter.PermissionDenied") == (not allowed)
            await raw.close()

    run(work())


def test_who_asks_for_keys_is_noted(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            made.peer = ADMINISTRATOR
            raw = await made.raw()
            await raw.call("ListSas")
            assert caplog.text == ""
            await raw.call("ListSas", reveal_keys=True)
            assert "ListSas by uid 1002, pid 3 asks for keys" in caplog.text
            await raw.close()

    run(work())


def test_reader_who_asks_for_keys_is_denied(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            made.peer = READER
            raw = await made.raw()
            assert "error" not in await raw.call("ListSas")
            assert (await raw.call("ListSas", reveal_keys=True))[
                "error"
            ] == "io.vnic.Adapter.PermissionDenied"
            await raw.close()

    run(work())


def test_stranger_gets_one_answer_and_is_hung_up_on(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            made.peer = STRANGER
            raw = await made.raw()
            reply = await raw.call("org.varlink.service.GetInfo")
            assert reply["error"] == "io.vnic.Adapter.PermissionDenied"
            assert await raw.hung_up()
            await raw.close()

    run(work())


# ------------------------------------------------------------------------------------------- Varlink


def test_service_introduces_itself(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            raw = await made.raw()
            info = (await raw.call("org.varlink.service.GetInfo"))["parameters"]
            assert info["product"] == "vnicd"
            assert info["interfaces"] == ["io.vnic.Adapter", "org.varlink.service"]
            await raw.close()

    run(work())


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (message("NoSuchMethod"), "org.varlink.service.MethodNotFound"),
        (message("org.example.Other.Method"), "org.varlink.service.InterfaceNotFound"),
        (message("Monitor"), "org.varlink.service.ExpectedMore"),
        (message("org.varlink.service.GetInterfaceDescription"), "org.varlink.service.InvalidParameter"),
        (message("DeleteAdapter"), "io.vnic.Adapter.Refused"),
        (message("DeleteAdapter", name=5), "io.vnic.Adapter.Refused"),
        (
            b'{"method": "io.vnic.Adapter.GetDaemon", "upgrade": true}\0',
            "org.varlink.service.MethodNotImplemented",
        ),
    ],
)
def test_wrong_call_is_answered_by_name(run: Run, tmp_path: Path, data: bytes, error: str) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            raw = await made.raw()
            await raw.send(data)
            assert (await raw.reply())["error"] == error
            assert "error" not in await raw.call("ListDropReasons")
            await raw.close()

    run(work())


def test_calls_sent_at_once_are_answered_in_order(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            raw = await made.raw()
            await raw.send(b"".join(message("DeleteAdapter", name=str(number)) for number in range(500)))
            for _ in range(500):
                assert "error" not in await raw.reply()
            assert [one.name for one in made.service.calls] == [str(number) for number in range(500)]
            await raw.close()

    run(work())


def test_oneway_call_is_carried_out_and_not_answered(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            raw = await made.raw()
            call = {"method": "io.vnic.Adapter.DeleteAdapter", "parameters": {"name": "x"}, "oneway": True}
            unknown = {"method": "io.vnic.Adapter.Nothing", "oneway": True}
            await raw.send(msgspec.json.encode(call) + b"\0" + msgspec.json.encode(unknown) + b"\0")
            assert "reasons" in (await raw.call("ListDropReasons"))["parameters"]
            assert len(made.service.calls) == 2
            await raw.close()

    run(work())


def test_members_written_out_as_null_count_as_left_out(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            raw = await made.raw()
            call = {"method": "io.vnic.Adapter.ListDropReasons", "parameters": None, "more": None}
            await raw.send(msgspec.json.encode(call) + b"\0")
            assert "error" not in await raw.reply()
            await raw.close()

    run(work())


def test_call_sent_in_single_bytes_is_understood(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            raw = await made.raw()
            for byte in message("ListDropReasons"):
                await raw.send(bytes((byte,)))
                await asyncio.sleep(0)
            assert "error" not in await raw.reply()
            await raw.close()

    run(work())


def test_client_that_sends_no_more_still_gets_its_answer(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            released = asyncio.Event()

            async def slowly(_: object) -> NoReply:
                await released.wait()
                return NoReply()

            made.service.answers[CALLS[2]] = slowly
            raw = await made.raw()
            await raw.send(message("DeleteAdapter", name="a") + message("ListDropReasons"))
            raw.writer.write_eof()
            await made.until(lambda: made.service.calls)
            released.set()
            assert "error" not in await raw.reply()
            assert "error" not in await raw.reply()
            assert await raw.hung_up()
            await raw.close()

    run(work())


def test_change_under_way_is_finished_when_its_client_goes(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            released, finished = asyncio.Event(), asyncio.Event()

            async def slowly(_: object) -> NoReply:
                await released.wait()
                finished.set()
                return NoReply()

            made.service.answers[CALLS[2]] = slowly
            raw = await made.raw()
            await raw.send(message("DeleteAdapter", name="a"))
            await made.until(lambda: made.service.calls)
            await raw.close()
            await asyncio.sleep(0.05)
            released.set()
            await asyncio.wait_for(finished.wait(), 5)
            await made.until(lambda: not made.server.connections)

    run(work())


# ------------------------------------------------------------------------------------------- hostile


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"no json\0",
        b"[1, 2]\0",
        b'{"method": 5}\0',
        b'{"method": "unqualified"}\0',
        b'{"parameters": {}}\0',
        b'{"method": "io.vnic.Adapter.GetDaemon", "parameters": []}\0',
        b'{"method": "io.vnic.Adapter.GetDaemon", "more": true, "oneway": true}\0',
        b'{"method": "io.vnic.Adapter.GetDaemon", "more": "yes"}\0',
        b'{"method": "' + b"a." * 200_000 + b'"}\0',
        b'{"method": "\xff"}\0',
        b"[" * 500_000 + b"\0",
        b'{"method": "io.vnic.Adapter.GetDaemon", "parameters": ' + b'{"a":' * 50_000 + b"\0",
    ],
    ids=lambda data: repr(data[:30]),
)
def test_what_is_no_call_ends_the_connection_of_who_sent_it(run: Run, tmp_path: Path, data: bytes) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            raw = await made.raw()
            await raw.send(data)
            assert await raw.hung_up()
            await raw.close()
            await still_serves(made)

    run(work())


def test_message_without_end_is_cut_off_at_the_limit(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            raw = await made.raw()
            sent = 0
            try:
                while sent < 64 << 20:
                    await raw.send(b"x" * 65536)
                    sent += 65536
            except ConnectionError:
                pass
            assert sent < 4 << 20
            assert await raw.hung_up()
            await raw.close()
            await still_serves(made)

    run(work())


def test_message_of_the_limit_passes_and_one_byte_more_does_not(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path, limits=Limits(message_length=5000)) as made:
            raw = await made.raw()
            fitting = message("DeleteAdapter", name="x" * (5000 - len(message("DeleteAdapter", name="")) + 1))
            assert len(fitting) == 5001
            await raw.send(fitting)
            assert "error" not in await raw.reply()
            await raw.send(fitting.replace(b"xx", b"xxx", 1))
            refusal = await raw.reply()
            assert refusal["error"] == "io.vnic.Adapter.Refused"
            assert refusal["parameters"]["message"] == "the call is too long"
            assert refusal["parameters"]["allowed"] == "at most 5000 bytes"
            assert await raw.hung_up()
            await still_serves(made)
            await raw.close()

    run(work())


def test_half_a_message_is_waited_for_only_so_long(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path, limits=Limits(stall_s=0.2)) as made:
            raw, quiet = await made.raw(), await made.raw()
            await raw.send(b'{"method"')
            assert await asyncio.wait_for(raw.hung_up(), 5)
            # One who has said nothing yet has left nothing unfinished.
            assert "error" not in await quiet.call("ListDropReasons")
            await raw.close()
            await quiet.close()

    run(work())


def test_client_that_reads_no_answer_takes_bounded_memory_and_is_hung_up_on(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path, limits=Limits(stall_s=0.3)) as made:
            raw = await made.raw()
            raw.reader._transport.pause_reading()  # type: ignore[attr-defined]
            big = DropReasonsReply(reasons=made.service.answers[ListDropReasons].reasons * 20_000)
            made.service.answers[ListDropReasons] = big
            await raw.send(message("ListDropReasons") * 200)
            await made.until(lambda: made.service.calls)
            await made.until(lambda: not made.server.connections)
            # The answer that could not be sent held up all calls after it.
            assert len(made.service.calls) <= 2
            await raw.close()

    run(work())


def test_calls_are_not_taken_faster_than_answers_are_read(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path, limits=Limits(stall_s=30)) as made:
            raw = await made.raw()
            raw.reader._transport.pause_reading()  # type: ignore[attr-defined]

            async def flood() -> None:
                while True:
                    await raw.send(message("ListDropReasons") * 100)
                    await asyncio.sleep(0)

            answer = made.service.answers[ListDropReasons]
            made.service.answers[ListDropReasons] = DropReasonsReply(reasons=answer.reasons * 1000)
            flooding = asyncio.create_task(flood())
            await asyncio.sleep(0.5)
            served = len(made.service.calls)
            await still_serves(made)
            await asyncio.sleep(0.3)
            assert len(made.service.calls) <= served + 1
            (connection,) = made.server.connections
            assert len(connection._buffer) < 3 << 20
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
            await raw.close()

    run(work())


def test_monitor_that_sleeps_stays_and_one_that_goes_is_forgotten(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path, limits=Limits(stall_s=0.1, unread_length=4096)) as made:
            made.service.event_text = "x" * 10_000
            raw = await made.raw()
            raw.reader._transport.pause_reading()  # type: ignore[attr-defined]
            await raw.send(message("Monitor", more=True))
            await made.until(lambda: made.service.listening)
            await asyncio.sleep(0.5)
            assert made.service.listening == 1
            await still_serves(made)
            raw.reader._transport.resume_reading()  # type: ignore[attr-defined]
            assert (await raw.reply())["continues"] is True
            await raw.close()
            await made.until(lambda: not made.service.listening)

    run(work())


def test_idle_monitor_that_hangs_up_is_forgotten_at_once(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            made.service.event_count = 1
            raw = await made.raw()
            await raw.send(message("Monitor", more=True))
            await raw.reply()
            await raw.close()
            await made.until(lambda: not made.service.listening and not made.server.connections)

    run(work())


def test_readers_cannot_keep_an_administrator_out(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path, limits=Limits(clients=6, readers=4, per_user=3)) as made:
            made.peer = READER
            first = [await made.raw() for _ in range(5)]
            await made.until(lambda: len(made.server.connections) == 3)
            made.peer = Peer(9, 1009, READER.gids)
            second = [await made.raw() for _ in range(3)]
            await made.until(lambda: len(made.server.connections) == 4)
            assert await second[2].hung_up()
            await still_serves(made)
            for raw in first + second:
                await raw.close()
            await made.until(lambda: not made.server.connections)

    run(work())


def test_many_clients_are_served_up_to_the_limit_and_room_comes_back(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            clients = [await made.raw() for _ in range(80)]
            await made.until(lambda: len(made.server.connections) == 64)
            await clients[0].close()
            await made.until(lambda: len(made.server.connections) == 63)
            await still_serves(made)
            for raw in clients[1:]:
                await raw.close()

    run(work())


def test_file_descriptors_sent_along_are_not_kept(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            raw = await made.raw()
            await raw.call("ListDropReasons")
            before = len(os.listdir("/proc/self/fd"))
            sock = raw.writer.get_extra_info("socket")
            with socket.socket(fileno=os.dup(sock.fileno())) as sender:
                socket.send_fds(sender, [message("ListDropReasons")], [0, 1, 2])
            assert "error" not in await raw.reply()
            assert len(os.listdir("/proc/self/fd")) == before
            await raw.close()

    run(work())


# ------------------------------------------------------------------------------------------- secrets


def test_defect_is_logged_without_what_the_client_sent(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            made.service.answers[AddSa] = ValueError(f"bad key {SECRET}")
            raw = await made.raw()
            sa = NAMES["AddSa"]["sa"] | {"encryption_key": SECRET}
            reply = await raw.call("AddSa", sa=sa)
            assert reply["error"] == "io.vnic.Adapter.InternalError"
            assert SECRET not in str(reply)
            assert "error" not in await raw.call("ListDropReasons")
            await raw.close()

    with caplog.at_level(logging.DEBUG):
        run(work())
    assert "ValueError" in caplog.text
    assert "_answer" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "member",
    [{"encryption_key": [SECRET]}, {"spi": SECRET}, {"integrity_key": {"hex": SECRET}}, {"sport": 1}],
)
def test_refusal_of_a_malformed_sa_repeats_no_key(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, member: dict[str, object]
) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            raw = await made.raw()
            sa = {"encryption_key": SECRET} | NAMES["AddSa"]["sa"] | member
            reply = await raw.call("AddSa", sa=sa)
            assert reply["error"] == "io.vnic.Adapter.Refused"
            assert SECRET not in str(reply)
            await raw.close()

    with caplog.at_level(logging.DEBUG):
        run(work())
    assert SECRET not in caplog.text


# ---------------------------------------------------------------------------------------- the socket


def test_socket_is_for_root_alone_without_a_group(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen(str(path), None):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_socket_is_open_to_its_group(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen(str(path), os.getegid()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert path.stat().st_gid == os.getegid()


def test_socket_of_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listen(str(path), None).close()
    assert path.is_socket()
    with listen(str(path), None), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_socket_of_a_living_daemon_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen(str(path), None):
        with pytest.raises(ControlError, match="another daemon listens"):
            listen(str(path), None)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(ControlError, match="no socket"):
        listen(str(path), None)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["missing/s", "x" * 200])
def test_path_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ControlError, match="cannot make the control socket"):
        listen(str(tmp_path / name), None)


def test_only_the_own_socket_file_is_removed(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with listen(path, None):
        identity = identity_of(path)
    os.unlink(path)
    with listen(path, None):
        remove(path, (identity[0], identity[1] + 1))
        assert os.path.exists(path)
        remove(path, identity_of(path))
        assert not os.path.exists(path)
    remove(path, identity)


def test_close_answers_what_is_under_way(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:

            async def slowly(_: object) -> NoReply:
                await asyncio.sleep(0.1)
                return NoReply()

            made.service.answers[CALLS[2]] = slowly
            working, listening = await made.raw(), await made.raw()
            await working.send(message("DeleteAdapter", name="a"))
            await listening.send(message("Monitor", more=True))
            await made.until(lambda: len(made.service.calls) == 2)
            await made.server.close()
            assert "error" not in await working.reply()
            await made.until(lambda: not made.service.listening)
            await working.close()
            await listening.close()

    run(work())


# --------------------------------------------------------------------------------------- long answers


def test_long_answer_comes_in_parts_to_who_takes_more(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            made.service.parts = 3
            raw = await made.raw()
            await raw.send(message("ListSas", more=True))
            replies = [await raw.reply() for _ in range(3)]
            assert [one.get("continues", False) for one in replies] == [True, True, False]
            assert all(one["parameters"] == {"sas": []} for one in replies)
            await raw.call("ListSas")
            client = await made.client()
            assert len([one async for one in client.stream(ListSas())]) == 3
            await client.close()
            await raw.close()

    run(work())


def test_call_too_long_for_the_daemon_is_not_sent_and_names_the_parameter(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path) as made:
            client = await made.client()
            request = OidRequest(
                adapter="left", oid="x", request_type="set", information_buffer="A" * MESSAGE_LIMIT
            )
            with pytest.raises(RequestError) as caught:
                await client.call(request)
            assert caught.value.field == "information_buffer"
            assert str(MESSAGE_LIMIT) in caught.value.allowed
            assert made.service.calls == []
            assert (await client.call(ListDropReasons())).reasons
            await client.close()

    run(work())


def test_a_client_that_leaves_keeps_its_place_until_its_call_is_done(run: Run, tmp_path: Path) -> None:
    async def work() -> None:
        async with lab(tmp_path, limits=Limits(clients=2)) as made:
            done = asyncio.Event()

            async def later(_: object) -> DropReasonsReply:
                await done.wait()
                return DropReasonsReply(reasons=[])

            made.service.answers[ListDropReasons] = later
            for number in (1, 2):
                # What it was answered and does not read makes its going a reset and not an end of file.
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(made.path)
                    client.send(message("ListSas") + message("ListDropReasons"))
                    await made.until(lambda number=number: len(made.service.calls) == 2 * number)
            await asyncio.sleep(0.05)
            third = await made.raw()
            assert await third.hung_up()
            assert len(made.service.calls) == 4
            done.set()
            await made.until(lambda: not made.server.connections)
            await still_serves(made)
            await third.close()

    run(work())
