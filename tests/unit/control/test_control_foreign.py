"""The control socket seen by a client that is not ours: the Python package `varlink`."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import varlink
from control_lab import Lab, lab, run

from vnic.control.interface import CALLS, AddSa, DeleteAdapter, SaReply
from vnic.errors import RequestError

pytestmark = pytest.mark.interop


def with_foreign_client(tmp_path: Path, use: Callable[[varlink.Client, Lab], None]) -> None:
    """Run `use` with a connected client on a thread of its own, while the server serves."""

    async def work() -> None:
        async with lab(tmp_path) as made:
            made.service.event_count = 3
            with varlink.Client(f"unix:{made.path}", resolve_interface=None) as client:
                await asyncio.to_thread(use, client, made)

    run(work())


def test_it_reads_the_interface(tmp_path: Path) -> None:
    def use(client: varlink.Client, _: Lab) -> None:
        info = client.get_interfaces()
        assert set(info) >= {"io.vnic.Adapter", "org.varlink.service"}
        interface = client.get_interface("io.vnic.Adapter")
        assert {one.__name__ for one in CALLS} <= set(interface.members)

    with_foreign_client(tmp_path, use)


def test_it_calls_with_structs_and_gets_typed_answers(tmp_path: Path) -> None:
    def use(client: varlink.Client, made: Lab) -> None:
        made.service.answers[AddSa] = SaReply(
            adapter="left",
            direction="out",
            handle=7,
            status=0,
            status_name="NDIS_STATUS_SUCCESS",
            weak=[],
            offload="nic",
            message="",
        )
        with client.open("io.vnic.Adapter", namespaced=False) as connection:
            reply = connection.ListDropReasons()
            assert reply["reasons"][0]["name"] == "in_icv"
            sa = {"src": "192.0.2.1", "dst": "192.0.2.2", "proto": "esp", "spi": 256}
            assert connection.AddSa(sa)["handle"] == 7
        (_, added) = made.service.calls
        assert isinstance(added, AddSa)
        assert (added.sa.spi, added.sa.mode, added.adapter) == (256, None, None)

    with_foreign_client(tmp_path, use)


def test_it_gets_errors_by_name(tmp_path: Path) -> None:
    def use(client: varlink.Client, made: Lab) -> None:
        made.service.answers[DeleteAdapter] = RequestError("gone", field="name", value="x", allowed="y")
        with client.open("io.vnic.Adapter", namespaced=False) as connection:
            with pytest.raises(varlink.VarlinkError) as caught:
                connection.DeleteAdapter("x")
            assert caught.value.error() == "io.vnic.Adapter.Refused"
            assert caught.value.parameters()["allowed"] == "y"

    with_foreign_client(tmp_path, use)


def test_it_listens(tmp_path: Path) -> None:
    def use(client: varlink.Client, _: Lab) -> None:
        with client.open("io.vnic.Adapter", namespaced=False) as connection:
            events: Iterator[Any] = connection.Monitor(_more=True)
            assert [next(events)["event"]["sequence_number"] for _ in range(3)] == [0, 1, 2]

    with_foreign_client(tmp_path, use)
