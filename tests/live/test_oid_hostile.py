"""A running daemon under bad requests and bad messages: it answers, grows by nothing, and works on."""

from __future__ import annotations

import base64
import contextlib
import random
import socket
from pathlib import Path

import pytest
from card import LEFT, RIGHT, Daemon, Pair
from exploring import Target, changed
from nbl_fuzz import NblTarget
from oid_door import ADD_SA, SUCCESS, Bundle, Door, Protection, policy
from oid_fuzz import REQUESTS, SECRET, OidTarget
from traffic import ping

from vnic.ndis.oids import RequestType
from vnic.ndis.structs import pack_add_sa

pytestmark = pytest.mark.live

COUNT = 4000
GROWTH_LIMIT = 16 << 20
"""Bytes the daemon may grow by once it has seen half of it all."""

SEND, SEND_COMPLETE = 1, 2


def resident(daemon: Daemon) -> int:
    """Bytes of memory the daemon has."""
    return int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]) * 4096


def spoiled(target: Target, seed: int) -> bytes:
    """A changed input."""
    rng = random.Random(seed)
    seeds = target.seeds()
    return changed(target, rng.choice(seeds), rng.choice(seeds), rng)


@pytest.mark.rule(73, 90)
def test_spoiled_requests_are_answered_and_leave_nothing_behind(clean_pair: Pair) -> None:
    pair = clean_pair
    target = OidTarget()
    inputs = [spoiled(target, seed) for seed in range(COUNT)]
    with Door(pair.daemon.socket) as door:
        settled = 0
        for number, data in enumerate(inputs):
            oid, type_ = REQUESTS[data[0] % len(REQUESTS)] if data else REQUESTS[0]
            if type_ not in (RequestType.QUERY, RequestType.SET):
                continue
            reply = door.call(
                "OidRequest",
                adapter=LEFT,
                oid=f"{oid:#x}",
                request_type="set" if type_ == RequestType.SET else "query",
                information_buffer=base64.b64encode(data[2:]).decode(),
            )
            assert reply["status_name"].startswith("NDIS_STATUS_")
            assert SECRET.hex() not in f"{reply['message']}{reply['value']}{reply['allowed']}"
            if number == COUNT // 2:
                settled = resident(pair.daemon)
        assert resident(pair.daemon) - settled < GROWTH_LIMIT
        assert SECRET.hex()[:10] not in pair.daemon.log
        assert "Traceback" not in pair.daemon.log
        # Whatever it was told to switch off, a restart brings back, and it works.
        pair.unprotect()
        door.call("RestartAdapter", name=LEFT)
        ends = pair.left.addresses[4], pair.right.addresses[4]
        bundle = Bundle.made(Protection("gcm-128", 0x8), *ends)
        for adapter, inbound in ((RIGHT, True), (LEFT, False)):
            reply = door.oid(adapter, ADD_SA, pack_add_sa([bundle.request(inbound=inbound)]))
            assert reply["status"] == SUCCESS, reply
    pair.daemon.batch(
        policy(RIGHT, "in", *ends, bundle, "transport"), policy(LEFT, "out", *ends, bundle, "transport")
    )
    assert ping(pair.left, pair.right.addresses[4], count=3) == 3


@pytest.mark.rule(165)
def test_spoiled_messages_of_a_driver_are_completed_or_counted(daemon: Daemon) -> None:
    daemon.vnic("adapter", "add", "nic0", "transport", "external", "wire", "none")
    path = daemon.adapter("nic0")["nbl_socket"]
    target = NblTarget()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as driver:
        driver.settimeout(5)
        driver.connect(path)
        settled = 0
        completed = set()
        sent = set()
        for number in range(COUNT):
            message = bytearray(spoiled(target, number))
            # A name of its own for each, whatever has become of the rest.
            message[8:16] = number.to_bytes(8, "little")
            driver.send(message[: 1 << 18])
            if message[2:3] == bytes([SEND]) and message[:2] == b"\x01\0" and len(message) >= 72:
                sent.add(number)
            completed |= completions(driver)
            if number == COUNT // 2:
                settled = resident(daemon)
        for _ in range(50):
            if sent <= completed:
                break
            completed |= completions(driver, wait_s=0.1)
        assert sent - completed == set()
        assert len(completed) > COUNT // 4
    assert resident(daemon) - settled < GROWTH_LIMIT
    assert "Traceback" not in daemon.log


def completions(driver: socket.socket, wait_s: float = 0.0) -> set[int]:
    """Names of the sends that were completed since the last call."""
    found = set()
    driver.settimeout(wait_s)
    with contextlib.suppress(BlockingIOError, TimeoutError):
        while message := driver.recv(1 << 20):
            if message[2] == SEND_COMPLETE:
                found.add(int.from_bytes(message[8:16], "little"))
    driver.settimeout(5)
    return found
