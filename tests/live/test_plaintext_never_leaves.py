"""Plaintext never leaves: whatever is done to associations, policies, adapters and the daemon while a host
sends, no frame on the wire holds the bytes that it sends.

The adapters and their defaults stand in the daemon's file, so that a daemon that comes back blocks before it
is told more. The wire is a veth that outlives the daemon; a socket of the test's own looks at every frame on
it. The marker fills each datagram of the host, and no piece of a datagram is shorter than one marker.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from card import CBC, GCM, LEFT, RIGHT, Association, Layer, Pair, begin_record, policy, running_pair
from traffic import Sniffer, background, forget_neighbours, is_sealed, ping, wait_until

pytestmark = pytest.mark.live

LAST_NUMBER = 0xFFFFFFFF
PORT = 9


class Host:
    """A host that sends on and on, small and large, over both families, whatever becomes of its device."""

    def __init__(self, pair: Pair, marker: bytes) -> None:
        self.sent = 0
        self._talks = threading.Event()
        self._talks.set()
        self._pair = pair
        self._payloads = (marker * 4, marker * 60, marker * 400)
        self._sockets = [
            (pair.left.namespace.socket(family, socket.SOCK_DGRAM), (pair.right.addresses[version], PORT))
            for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6))
        ]

    def __call__(self, stop: threading.Event) -> None:
        while not stop.is_set():
            for end, to in self._sockets if self._talks.is_set() else ():
                for payload in self._payloads:
                    try:
                        end.sendto(payload, socket.MSG_DONTWAIT, to)
                    except OSError:
                        continue
                    self.sent += 1
            time.sleep(0.001)
        for end, _ in self._sockets:
            end.close()

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Have it say nothing for a while."""
        self._talks.clear()
        try:
            yield
        finally:
            self._talks.set()

    def goes_on(self, packets: int = 60) -> None:
        """Wait until it has sent so many more."""
        before = self.sent
        assert wait_until(lambda: self.sent >= before + packets, 10), "the host does not send"


class Play:
    """One pair of adapters and the associations in force between them."""

    def __init__(self, pair: Pair, host: Host, wire: Sniffer) -> None:
        self.pair = pair
        self.host = host
        self.wire = wire
        self.sas: dict[int, dict[str, list[Association]]] = {}

    @property
    def batch(self) -> Callable[..., None]:
        return self.pair.daemon.batch

    def protect(self) -> None:
        """Tunnel for IPv4, transport mode for IPv6."""
        self.sas = {
            4: self.pair.protect([Layer(GCM, "tunnel")], 4),
            6: self.pair.protect([Layer(CBC, "transport")], 6),
        }
        forget_neighbours(*self.pair.hosts)

    def seals(self) -> None:
        """Show that packets pass, sealed, so that what was done did not just stop all."""
        before = self.pair.daemon.statistics(LEFT)["card"]
        assert wait_until(lambda: sealed(self.pair.daemon.statistics(LEFT)["card"]) > sealed(before) + 20, 15)

    def out(self, version: int) -> Association:
        return self.sas[version][LEFT][0]

    def renew(self, version: int, **members: object) -> str:
        """Put a fresh outbound association in the place of the one there was; gives the line that adds it."""
        old = self.out(version)
        new = Association(old.suite, old.mode, old.source, old.destination, reqid=old.reqid)
        self.sas[version][LEFT][0] = new
        self.batch(new.add(RIGHT, "in"))
        line = replace(new, **members).add(LEFT, "out")  # type: ignore[arg-type]
        self.batch(old.delete(LEFT), old.delete(RIGHT))
        return line


def sealed(card: dict[str, int]) -> int:
    return card["tx_offloaded"] + card["tx_software"]


# What is done while the host sends


def associations_are_deleted_and_added(play: Play) -> None:
    for version in (4, 6):
        line = play.renew(version)
        play.host.goes_on()
        play.batch(line)
    play.seals()


def associations_are_renewed(play: Play) -> None:
    for _ in range(5):
        for version in (4, 6):
            play.batch(play.renew(version))
    play.seals()


def associations_are_rekeyed(play: Play) -> None:
    for number in range(6):
        for version in (4, 6):
            old = {sender: sas[0] for sender, sas in play.sas[version].items()}
            new = {sender: sa.renewed() for sender, sa in old.items()}
            forth, back = [
                [old[sender].renewal(new[sender], way) for way in ("in", "out")] for sender in (LEFT, RIGHT)
            ]
            play.batch(
                f"sa rekey dev {RIGHT} {forth[0]} grace {number}",
                f"sa rekey dev {LEFT} {back[0]} {forth[1]} grace {number}",
                f"sa rekey dev {RIGHT} {back[1]}",
            )
            play.sas[version] = {sender: [sa] for sender, sa in new.items()}
            # Half done: what the far end cannot open is sealed all the same.
            lost = new[LEFT].renewed()
            play.batch(f"sa rekey dev {LEFT} {new[LEFT].renewal(lost, 'out')}")
            play.host.goes_on(6)
            play.sas[version][LEFT] = [lost]
            play.batch(lost.add(RIGHT, "in"), new[LEFT].delete(RIGHT))
    play.seals()


def sizes_and_pauses_are_hidden(play: Play) -> None:
    """With padding and dummies, made by the NIC and in software; and a rekey of such an SA."""
    vnic = play.pair.daemon.vnic
    hiding = " tfcpad 1000 dummy 10 dscp 7 ttl 9 df clear offload "
    for value in ("0", "3"):
        vnic("adapter", "set", LEFT, "keyword", "*IPsecOffloadV2", value)
        vnic("adapter", "restart", LEFT)
        play.batch(play.renew(4).replace(" offload ", hiding), play.renew(6))
        play.host.goes_on()
    old = play.out(4)
    new = play.sas[4][LEFT][0] = old.renewed()
    play.batch(f"sa rekey dev {LEFT} {old.renewal(new, 'out')}", new.add(RIGHT, "in"), old.delete(RIGHT))
    play.seals()
    # Its dummies begin with its next pause; nothing else is sent.
    sent = play.pair.daemon.statistics(LEFT)["card"]["tx_dummies"]
    with play.host.silence():
        wanted = sent + 5
        assert wait_until(lambda: play.pair.daemon.statistics(LEFT)["card"]["tx_dummies"] >= wanted)
    play.batch(play.renew(4))
    play.seals()


def discards_are_answered(play: Play) -> None:
    """To the host by its own card; over the wire, quoting what came by an SA, by the far one."""
    vnic = play.pair.daemon.vnic
    for adapter in (LEFT, RIGHT):
        vnic("adapter", "set", adapter, "prohibited", "answer")
    for version in (4, 6):
        ends = play.pair.left.addresses[version], play.pair.right.addresses[version]
        named = f"src {ends[0]} dst {ends[1]}"
        for adapter, direction, count in ((LEFT, "out", "tx"), (RIGHT, "in", "rx")):
            play.batch(
                f"policy add dev {adapter} {direction} {named} proto udp discard priority 1",
                f"xfrm policy delete {named} dir {direction} dev {adapter}",
            )
            answered = f"{count}_prohibited_answered"
            before = play.pair.daemon.statistics(adapter)["card"][answered]
            assert wait_until(
                lambda a=adapter, w=answered, b=before: play.pair.daemon.statistics(a)["card"][w] > b + 5
            )
            if adapter == RIGHT:
                # What could seal the answers goes; then there are none.
                old = play.sas[version][RIGHT][0]
                play.batch(old.delete(RIGHT))
                play.host.goes_on()
                new = play.sas[version][RIGHT][0] = old.renewed()
                play.batch(new.add(LEFT, "in"), new.add(RIGHT, "out"), old.delete(LEFT))
            play.batch(
                policy(adapter, direction, *ends, [play.out(version)]),
                f"policy deleteall dev {adapter} {direction} proto udp",
            )
    for adapter in (LEFT, RIGHT):
        vnic("adapter", "set", adapter, "prohibited", "silent", "vlan", "drop")
    play.host.goes_on()
    for adapter in (LEFT, RIGHT):
        vnic("adapter", "set", adapter, "vlan", "protect")
    play.seals()


def associations_run_out_of_numbers(play: Play) -> None:
    for version in (4, 6):
        play.batch(play.renew(version, last_number=LAST_NUMBER - 30))
    play.host.goes_on(300)
    assert play.pair.daemon.drops(LEFT)["out_sequence_exhausted"] > 0
    play.batch(play.renew(4), play.renew(6))
    play.seals()


def associations_expire(play: Play) -> None:
    lines = [play.renew(version).replace(" offload ", " limit packet-hard 30 offload ") for version in (4, 6)]
    play.batch(*lines)
    play.host.goes_on(300)
    assert play.out(4).spi not in {spi for adapter, spi in play.pair.daemon.sas() if adapter == LEFT}
    for version in (4, 6):
        old = play.out(version)
        new = Association(old.suite, old.mode, old.source, old.destination, reqid=old.reqid)
        play.sas[version][LEFT][0] = new
        play.batch(new.add(RIGHT, "in"), new.add(LEFT, "out"), old.delete(RIGHT))
    play.seals()


def policies_are_deleted_and_added(play: Play) -> None:
    for _ in range(3):
        for version in (4, 6):
            ends = play.pair.left.addresses[version], play.pair.right.addresses[version]
            play.batch(f"xfrm policy delete src {ends[0]} dst {ends[1]} dir out dev {LEFT}")
            play.host.goes_on()
            play.batch(policy(LEFT, "out", *ends, [play.out(version)]))
    play.seals()


def policies_of_others_come_and_go(play: Play) -> None:
    lines = [
        f"policy add dev {LEFT} out src 10.77.{number}.0/24 dst 0.0.0.0/0 "
        f"proto udp dport 1-{number + 2} bypass"
        for number in range(200)
    ]
    play.batch(*lines)
    play.host.goes_on()
    play.batch(f"policy deleteall dev {LEFT} out proto udp")
    play.seals()


def fragments_are_judged_otherwise(play: Play) -> None:
    for rule in ("any", "stateful", "drop"):
        play.pair.daemon.vnic("adapter", "set", LEFT, "fragments", rule)
        play.host.goes_on()
    play.seals()


def adapter_is_reset_paused_and_restarted(play: Play) -> None:
    vnic = play.pair.daemon.vnic
    vnic("adapter", "reset", LEFT, "hold", "300")
    play.seals()
    vnic("adapter", "pause", LEFT)
    play.host.goes_on()
    vnic("adapter", "resume", LEFT)
    play.seals()
    vnic("adapter", "restart", LEFT)
    play.seals()


def card_refuses_to_offload(play: Play) -> None:
    vnic = play.pair.daemon.vnic
    for value in ("0", "3"):
        vnic("adapter", "set", LEFT, "keyword", "*IPsecOffloadV2", value)
        vnic("adapter", "restart", LEFT)
        play.seals()


def daemon_is_restarted(play: Play) -> None:
    play.pair.daemon.close()
    play.pair.daemon.start()
    play.host.goes_on(100)
    play.protect()
    play.seals()


def daemon_is_killed(play: Play) -> None:
    play.pair.daemon.kill()
    play.host.sent = 0
    play.pair.daemon.start()
    play.host.goes_on(100)
    play.protect()
    play.seals()


TO_ASSOCIATIONS = (
    associations_are_deleted_and_added,
    associations_are_renewed,
    associations_are_rekeyed,
    associations_run_out_of_numbers,
    associations_expire,
    sizes_and_pauses_are_hidden,
)
TO_ALL_ELSE = (
    policies_are_deleted_and_added,
    policies_of_others_come_and_go,
    fragments_are_judged_otherwise,
    discards_are_answered,
    adapter_is_reset_paused_and_restarted,
    card_refuses_to_offload,
    daemon_is_restarted,
    daemon_is_killed,
)


@pytest.mark.parametrize("deeds", [TO_ASSOCIATIONS, TO_ALL_ELSE], ids=["to associations", "to all else"])
def test_plaintext_never_leaves(tmp_path: Path, deeds: tuple[Callable[[Play], None], ...]) -> None:
    marker = secrets.token_bytes(16)
    with running_pair(tmp_path, "netdev", from_file=True, settings=begin_record(tmp_path)) as pair:
        end = pair.ends[0]
        with Sniffer(end.namespace, end.device, marker=marker, keep=64) as wire:
            pair.daemon.vnic("xfrm", "policy", "setdefault", "in", "accept", "out", "accept", "dev", LEFT)
            with background(Host(pair, marker)):
                assert wait_until(lambda: len(wire.marked) > 10), (
                    "without a policy the wire carries clear text"
                )
            pair.daemon.vnic("xfrm", "policy", "setdefault", "in", "block", "out", "block", "dev", LEFT)
            wire.settle()
        host = Host(pair, marker)
        with Sniffer(end.namespace, end.device, marker=marker, keep=64) as wire:
            play = Play(pair, host, wire)
            play.protect()
            with background(host):
                for deed in deeds:
                    deed(play)
                    assert wire.marked == [], f"clear text left while {deed.__name__.replace('_', ' ')}"
            wire.settle()
            assert wire.marked == []
            assert any(is_sealed(seen.frame) for seen in wire.frames)
        assert ping(pair.left, pair.right.addresses[4], count=3) == 3
