"""A TAP with several queues: every queue carries frames, and a flow keeps its order."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
import time
from collections import defaultdict
from pathlib import Path

import pytest
from card import running_daemon
from namespaces import Namespace, Namespaces

from vnic.errors import PortError
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.vnet import VNET_HEADER_LENGTH
from vnic.ports.tap import QUEUE_LENGTH, TapPort, open_tap

pytestmark = pytest.mark.live

FLOWS = 64
PACKETS = 40
QUEUES = 4
NEIGHBOUR_MAC = "02:00:00:00:00:99"


def send_flows(address: str, flows: int, packets: int) -> None:
    """Send `packets` numbered datagrams from each of `flows` sockets in turns."""
    senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(flows)]
    for number in range(packets):
        for flow, sender in enumerate(senders):
            sender.sendto(flow.to_bytes(2, "big") + number.to_bytes(2, "big"), (address, 9))
        time.sleep(0.002)
    for sender in senders:
        sender.close()


def tap_of(namespaces: Namespaces, label: str, address: str, **options: int) -> tuple[Namespace, TapPort]:
    namespace = namespaces.create(label, ipv6=False)
    port = asyncio.run(
        open_tap(namespaces.device(label), netns=namespace.name, addresses=[address], **options)
    )
    namespace.ip("neigh", "add", "10.66.0.99", "lladdr", NEIGHBOUR_MAC, "dev", port.name)
    return namespace, port


def test_every_queue_carries_flows_and_each_flow_keeps_its_order(namespaces: Namespaces) -> None:
    namespace, port = tap_of(namespaces, "left", "10.66.0.1/24", queues=QUEUES)
    with pytest.MonkeyPatch.context() as patch:
        used: dict[int, list[bytes]] = defaultdict(list)
        readv = os.readv

        def note(descriptor: int, into: list[bytearray]) -> int:
            length = readv(descriptor, into)
            used[descriptor].append(bytes(into[1][: length - VNET_HEADER_LENGTH]))
            return length

        patch.setattr(os, "readv", note)
        sender = threading.Thread(
            target=lambda: namespace.call(lambda: send_flows("10.66.0.99", FLOWS, PACKETS))
        )
        sender.start()
        seen: dict[int, list[int]] = defaultdict(list)
        ends = time.monotonic() + 20
        while sum(map(len, seen.values())) < FLOWS * PACKETS and time.monotonic() < ends:
            descriptor = port.fileno()
            assert descriptor is not None
            select.select([descriptor], [], [], 0.2)
            for buffer in port.receive_burst():
                if buffer.frame[23:24] == b"\x11":
                    flow, number = buffer.frame[42:44], buffer.frame[44:46]
                    seen[int.from_bytes(flow, "big")].append(int.from_bytes(number, "big"))
        sender.join()
    port.close()
    assert seen == {flow: list(range(PACKETS)) for flow in range(FLOWS)}
    assert len(used) == QUEUES
    for flow in range(FLOWS):
        mine = flow.to_bytes(2, "big")
        assert sum(any(frame[42:44] == mine for frame in frames) for frames in used.values()) == 1


def test_flows_cross_two_cards_by_many_queues_in_order(namespaces: Namespaces, tmp_path: Path) -> None:
    left, right = (namespaces.create(label, ipv6=False) for label in ("left", "right"))
    with running_daemon(tmp_path) as daemon:
        for name, side, address in (("right", right, "10.67.0.2/24"), ("left", left, "10.67.0.1/24")):
            wire = [] if name == "right" else ["wire", "link", "right"]
            device = namespaces.device(name)
            daemon.vnic(
                *("adapter", "add", name, "tap", device, "netns", side.name),
                *("address", address, "queues", str(QUEUES), *wire),
            )
            assert daemon.adapter(name)["tap"]["queues"] == QUEUES
            assert f"queues {QUEUES}" in daemon.vnic("adapter", "show", name)
        receiver = right.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        receiver.bind(("10.67.0.2", 9))
        receiver.settimeout(10.0)
        sender = threading.Thread(target=lambda: left.call(lambda: send_flows("10.67.0.2", FLOWS, PACKETS)))
        sender.start()
        seen: dict[int, list[int]] = defaultdict(list)
        for _ in range(FLOWS * PACKETS):
            data = receiver.recv(100)
            seen[int.from_bytes(data[:2], "big")].append(int.from_bytes(data[2:], "big"))
        sender.join()
        receiver.close()
    assert seen == {flow: list(range(PACKETS)) for flow in range(FLOWS)}


def test_persistent_device_has_the_queues_it_was_made_for(namespaces: Namespaces) -> None:
    left = namespaces.create("left")
    single, multi = namespaces.device("one"), namespaces.device("many")
    left.ip("tuntap", "add", single, "mode", "tap")
    left.ip("tuntap", "add", multi, "mode", "tap", "multi_queue")
    with pytest.raises(PortError, match="made with multi_queue"):
        asyncio.run(open_tap(single, netns=left.name, queues=2))
    with pytest.raises(PortError, match="made without multi_queue"):
        asyncio.run(open_tap(multi, netns=left.name))
    port = asyncio.run(open_tap(multi, netns=left.name, queues=2))
    assert (port.attached, port.queues) == (True, 2)
    port.close()


def test_device_that_another_program_uses_is_not_joined(namespaces: Namespaces) -> None:
    left = namespaces.create("left")
    name = namespaces.device("t")
    first = asyncio.run(open_tap(name, netns=left.name, queues=2))
    with pytest.raises(PortError, match="is in use"):
        asyncio.run(open_tap(name, netns=left.name, queues=2))
    first.send_burst([NetBuffer(bytearray(60))])
    first.close()


def test_a_tap_made_here_has_long_queues_and_a_persistent_one_keeps_its_own(namespaces: Namespaces) -> None:
    left = namespaces.create("left")
    made, kept = namespaces.device("made"), namespaces.device("kept")
    left.ip("tuntap", "add", kept, "mode", "tap")
    left.ip("link", "set", kept, "txqueuelen", "77")
    ports = [asyncio.run(open_tap(name, netns=left.name)) for name in (made, kept)]
    try:
        for name, length in ((made, QUEUE_LENGTH), (kept, 77)):
            assert f"qlen {length}" in left.ip("link", "show", name).stdout
    finally:
        for port in ports:
            port.close()
