"""The messages that fill a NIC: what the daemon reads in them, and what the runner reads in its answers."""

import base64
import json

import pytest

from benchmarks import sas
from benchmarks.__main__ import line
from scripts.lab import LEFT, LabError
from vnic.control.conversion import call_of
from vnic.control.interface import AddSa, DeleteSa, OidRequest
from vnic.daemon import values
from vnic.ipsec.association import Direction
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.structs import (
    add_sa_entries,
    delete_sa_entries,
    read_add_sa,
    read_delete_sa,
    write_add_sa_handle,
)


def parameters(message: bytes, method: str) -> dict[str, object]:
    assert message.endswith(b"\0")
    read = json.loads(message[:-1])
    assert read["method"] == f"io.vnic.Adapter.{method}"
    found: dict[str, object] = read["parameters"]
    return found


def buffer_of(message: bytes) -> bytearray:
    call = call_of(OidRequest, parameters(message, "OidRequest"))
    assert (call.adapter, call.request_type) == (LEFT, "set")
    return bytearray(base64.b64decode(call.information_buffer or ""))


def test_lists_hold_a_thousand_sas_each_and_the_rest() -> None:
    lists = [buffer_of(message) for message in sas.add_lists(2003)]
    entries = [add_sa_entries(buffer) for buffer in lists]
    assert [len(one) for one in entries] == [1000, 1000, 3]
    requests = [
        read_add_sa(buffer, entry) for buffer, one in zip(lists, entries, strict=True) for entry in one
    ]
    assert len({(one.destination, one.elements[0].spi) for one in requests}) == 2003
    assert len({one.elements[0].encryption.key.reveal() for one in requests}) == 2003
    assert [one.inbound for one in requests[:4]] == [False, True, False, True]


def test_calls_ask_for_the_same_sas_as_the_lists() -> None:
    (listed,) = sas.add_lists(4)
    buffer = buffer_of(listed)
    for entry, message in zip(add_sa_entries(buffer), sas.add_calls(4), strict=True):
        request = read_add_sa(buffer, entry)
        call = call_of(AddSa, parameters(message, "AddSa"))
        direction = Direction.INBOUND if request.inbound else Direction.OUTBOUND
        sa = values.sa_of(call.sa, direction).checked()
        assert call.sa.direction == direction.value
        assert (sa.source, sa.destination, sa.spi) == (
            request.source,
            request.destination,
            request.elements[0].spi,
        )
        assert sa.encryption is sas.ENCRYPTION


def test_handles_are_read_and_a_missing_one_ends_the_run() -> None:
    (message,) = sas.add_lists(3)
    buffer = buffer_of(message)

    def answer(*handles: int) -> bytes:
        for entry, handle in zip(add_sa_entries(buffer), handles, strict=True):
            write_add_sa_handle(buffer, entry, handle)
        text = base64.b64encode(buffer).decode()
        told = {"status": 0, "status_name": "x", "message": "no room", "information_buffer": text}
        return json.dumps({"parameters": told}).encode()

    assert sas.list_handles(answer(7, 8, 9)) == [7, 8, 9]
    with pytest.raises(LabError, match="no room"):
        sas.list_handles(answer(7, 0, 9))
    with pytest.raises(LabError, match=r"Refused .*full"):
        sas.call_handles(b'{"error": "io.vnic.Adapter.Refused", "parameters": {"message": "full"}}')


def test_deletions_name_every_handle_once() -> None:
    handles = [OffloadHandle(number) for number in range(1, 1003)]
    named = [
        read_delete_sa(buffer, entry).handle
        for buffer in map(buffer_of, sas.delete_lists(handles))
        for entry in delete_sa_entries(buffer)
    ]
    assert named == handles
    calls = [call_of(DeleteSa, parameters(one, "DeleteSa")) for one in sas.delete_calls(handles)]
    assert [one.handle for one in calls] == handles


def test_line_names_rate_memory_and_what_stays() -> None:
    door = {"add_per_s": 21000, "add_per_cpu_s": 31000, "bytes_per_sa": 1587, "left_ratio": 1.085}
    shown = line({"case": "sas", "engine": "reference", "count": 100_000, "lists": door, "calls": door})
    assert "lists: 21,000 SAs/s (31,000 on a core of its own), 1,587 bytes each of 100,000, +8.5 %" in shown
    assert "calls: 21,000 SAs/s" in shown
