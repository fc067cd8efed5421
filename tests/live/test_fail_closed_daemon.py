"""The daemon dies in mid-traffic: nothing reaches the wire in clear, and the next one takes over.

The wire is a veth that outlives the daemon; a socket of the test's own looks at every frame on it.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from pathlib import Path

import pytest
from card import GCM, LEFT, RIGHT, Layer, Pair, running_pair
from traffic import Sniffer, background, forget_neighbours, ping, wait_until

pytestmark = pytest.mark.live


class Flood:
    """A host that sends datagrams with a marker, whatever becomes of its device."""

    def __init__(self, pair: Pair, marker: bytes) -> None:
        self.sent = 0
        self.refused = 0
        self._to = (pair.right.addresses[4], 9)
        self._payload = marker * 8
        self._socket = pair.left.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def __call__(self, stop: threading.Event) -> None:
        with self._socket:
            while not stop.is_set():
                try:
                    self._socket.sendto(self._payload, socket.MSG_DONTWAIT, self._to)
                    self.sent += 1
                except OSError:
                    self.refused += 1
                time.sleep(0.0005)


@pytest.mark.parametrize("persistent", [False, True], ids=["tap-of-ours", "persistent-tap"])
def test_killed_daemon_leaves_no_clear_text_and_a_restart_takes_over(
    tmp_path: Path, persistent: bool
) -> None:
    marker = secrets.token_bytes(16)
    with running_pair(tmp_path, "netdev", persistent=persistent) as pair:
        pair.protect([Layer(GCM, "tunnel")])
        assert ping(pair.left, pair.right.addresses[4]) == 1
        flood = Flood(pair, marker)
        with Sniffer(pair.ends[1].namespace, pair.ends[1].device, marker=marker) as wire, background(flood):
            assert wait_until(lambda: flood.sent > 300)
            passed = wire.total
            assert passed > 200
            pair.daemon.kill()
            before = flood.sent + flood.refused
            assert wait_until(lambda: flood.sent + flood.refused > before + 300)
            wire.settle()
            stopped = wire.total
            time.sleep(0.2)
            assert wire.total == stopped, "nothing at all passes while there is no daemon"
            for host in pair.hosts:
                assert (host.device in host.namespace.devices()) is persistent

            pair.daemon.start()
            assert pair.daemon.json("adapter", "show") == []
        assert wire.marked == []

        pair.add_adapters()
        pair.protect([Layer(GCM, "tunnel")])
        forget_neighbours(*pair.hosts)
        with Sniffer(pair.ends[1].namespace, pair.ends[1].device, marker=marker) as wire:
            assert ping(pair.left, pair.right.addresses[4], count=3) == 3
        assert wire.marked == []


def test_restarted_daemon_whose_file_blocks_lets_nothing_out_before_the_associations_are_back(
    tmp_path: Path,
) -> None:
    """Adapters and defaults come back from the file; associations have no place in one."""
    marker = secrets.token_bytes(16)
    with running_pair(tmp_path, "netdev", from_file=True) as pair:
        pair.protect([Layer(GCM, "tunnel")])
        assert ping(pair.left, pair.right.addresses[4]) == 1
        flood = Flood(pair, marker)
        with Sniffer(pair.ends[1].namespace, pair.ends[1].device, marker=marker) as wire, background(flood):
            assert wait_until(lambda: flood.sent > 100)
            pair.daemon.kill()
            pair.daemon.start()
            assert {one["name"] for one in pair.daemon.json("adapter", "show")} == {LEFT, RIGHT}
            before = flood.sent
            assert wait_until(lambda: flood.sent > before + 300)
            assert pair.daemon.drops(LEFT)["out_policy_discard"] >= 300
            pair.protect([Layer(GCM, "tunnel")])
            before = pair.daemon.statistics(RIGHT)["card"]["rx_offloaded"]
            assert wait_until(lambda: pair.daemon.statistics(RIGHT)["card"]["rx_offloaded"] > before)
        assert wire.marked == []
        assert ping(pair.left, pair.right.addresses[4], count=3) == 3


def test_ended_daemon_takes_its_devices_along_and_nothing_else(tmp_path: Path) -> None:
    with running_pair(tmp_path, "tap") as pair:
        (end,) = pair.ends
        assert end.device in end.namespace.devices()
        other = pair.left.namespace
        other.ip("tuntap", "add", "bystander", "mode", "tap")
        began = time.monotonic()
        pair.daemon.close()
        assert time.monotonic() - began < 2
        assert end.device not in end.namespace.devices()
        for host in pair.hosts:
            assert host.device not in host.namespace.devices()
        assert "bystander" in other.devices()
        assert not pair.daemon.socket.exists()
