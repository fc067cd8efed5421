"""An attacker on the wire: replays, forgeries and strangers reach no host, each counted under one reason.

left ── veth end ════ veth end ── right
          ▲
          the attacker: sees what the left sends, and sends what it likes to the right
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from card import AH, CBC, GCM, LEFT, RIGHT, Association, Layer, Pair, running_pair
from traffic import Datagrams, Seen, Sniffer, is_sealed, outer, ping

pytestmark = pytest.mark.live

SMALLEST_WINDOW = 64


@dataclass
class Attack:
    """A protected pair under attack, and what the right host hears."""

    pair: Pair
    sa: Association
    """What the left seals with."""
    datagrams: Datagrams
    wire: Sniffer

    def sealed(self, payload: bytes) -> bytes:
        """Let the left host send a datagram, which arrives; give the frame that carried it."""
        frame = self.sent(payload)
        assert self.datagrams.ends[1].recv(2048) == payload
        return frame

    def sent(self, payload: bytes) -> bytes:
        """Let the left host send a datagram; give the frame that carries it."""
        seen = sum(map(is_sent, self.wire.frames))
        assert self.datagrams.ends[0].send(payload) == len(payload)
        return self.wire.wait_for_all(is_sent, seen + 1)[-1]

    def lost(self, payload: bytes) -> bytes:
        """Let the left host send a datagram while the right adapter is unplugged; give its frame."""
        self.pair.daemon.vnic("adapter", "set", RIGHT, "wire", "none")
        frame = self.sent(payload)
        self.pair.daemon.vnic("adapter", "set", RIGHT, "wire", *self.pair.wires[1].split())
        return frame

    def silent(self) -> bool:
        """Whether the right host hears nothing."""
        self.datagrams.ends[1].settimeout(0.2)
        try:
            self.datagrams.ends[1].recv(2048)
        except TimeoutError:
            return True
        finally:
            self.datagrams.ends[1].settimeout(3)
        return False

    def counts(self) -> tuple[dict[str, int], dict[str, int], int]:
        """Drops of the right adapter and of its inbound SA, and packets that SA let in."""
        (statistics,) = (one for one in self.pair.daemon.json("stats", RIGHT))
        (state,) = (one for one in statistics["sas"] if one["sa"]["spi"] == self.sa.spi)
        drops = {one["name"]: one["packets"] for one in statistics["drops"]}
        return drops, state["drops"], state["packets"]

    @contextlib.contextmanager
    def counted(self, reason: str, times: int = 1, *, on_sa: bool = True) -> Iterator[None]:
        """What happens in the block is dropped for one reason, so many times, and nothing else is counted."""
        drops_before, sa_before, packets_before = self.counts()
        yield
        assert self.silent()
        drops, sa_drops, packets = self.counts()
        assert growth(drops_before, drops) == {reason: times}
        assert growth(sa_before, sa_drops) == ({reason: times} if on_sa else {})
        assert packets == packets_before


def is_sent(seen: Seen) -> bool:
    """Whether the left adapter sent a frame, protected."""
    return seen.outgoing and is_sealed(seen.frame)


def growth(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {
        name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)
    }


@pytest.fixture(
    scope="module",
    params=[(GCM, "tunnel", 4), (CBC, "transport", 6), (AH, "transport", 4)],
    ids=["gcm-tunnel", "cbc-transport-ipv6", "ah"],
)
def attack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    suite, mode, version = request.param
    with running_pair(tmp_path_factory.mktemp("card"), "netdev") as pair:
        sas = pair.protect([Layer(suite, mode)], version, window=SMALLEST_WINDOW)
        end = pair.ends[0]
        with (
            Datagrams(pair.left, pair.right, version) as datagrams,
            Sniffer(end.namespace, end.device) as wire,
        ):
            assert ping(pair.left, pair.right.addresses[version]) == 1
            yield Attack(pair, sas[LEFT][0], datagrams, wire)


@pytest.mark.rule(184)
def test_replayed_frame_is_a_duplicate(attack: Attack) -> None:
    frame = attack.sealed(b"once only")
    with attack.counted("in_replay_duplicate", 3):
        for _ in range(3):
            attack.wire.send(frame)


@pytest.mark.rule(184)
def test_replayed_frame_from_behind_the_window_is_too_old(attack: Attack) -> None:
    frame = attack.sealed(b"long ago")
    for number in range(SMALLEST_WINDOW):
        attack.sealed(b"%d" % number)
    with attack.counted("in_replay_too_old"):
        attack.wire.send(frame)


def test_delayed_frame_inside_the_window_arrives_and_only_once(attack: Attack) -> None:
    late = attack.lost(b"late")
    attack.sealed(b"newer")
    attack.wire.send(late)
    assert attack.datagrams.ends[1].recv(100) == b"late"
    with attack.counted("in_replay_duplicate"):
        attack.wire.send(late)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_corrupted_frame_fails_the_integrity_check(attack: Attack, place: str) -> None:
    frame = bytearray(attack.sealed(bytes(200)))
    header = outer(bytes(frame))
    assert header is not None
    # The first byte behind SPI and number is of the IV of ESP, or of the ICV of AH.
    places = {"first": header.offset + 12, "middle": (header.offset + len(frame)) // 2, "last": -1}
    frame[places[place]] ^= 0x01
    with attack.counted("in_icv"):
        attack.wire.send(bytes(frame))


def test_forged_sequence_number_fails_the_integrity_check_and_moves_no_window(attack: Attack) -> None:
    frame = bytearray(attack.sealed(b"before"))
    header = outer(bytes(frame))
    assert header is not None
    at = header.offset + (4 if attack.sa.suite.protocol == "esp" else 8)
    frame[at : at + 4] = b"\xff\xff\xff\xf0"
    with attack.counted("in_icv"):
        attack.wire.send(bytes(frame))
    attack.sealed(b"after: the window is where it was")


def test_unknown_spi_has_no_association(attack: Attack) -> None:
    frame = bytearray(attack.sealed(b"known"))
    header = outer(bytes(frame))
    assert header is not None
    at = header.offset + (0 if attack.sa.suite.protocol == "esp" else 4)
    frame[at : at + 4] = (0xDEADBEEF).to_bytes(4, "big")
    with attack.counted("in_no_sa", on_sa=False):
        attack.wire.send(bytes(frame))


def test_packet_cut_short_is_dropped_as_malformed(attack: Attack) -> None:
    frame = attack.sealed(bytes(100))
    with attack.counted("in_malformed", on_sa=False):
        attack.wire.send(frame[:-20])


def test_peer_with_a_wrong_key_reaches_nobody(tmp_path: Path) -> None:
    with running_pair(tmp_path, "netdev") as pair:
        sas = pair.protect([Layer(GCM, "tunnel")])
        wrong = replace(sas[LEFT][0], keys=())  # makes new ones
        pair.daemon.batch(wrong.add(LEFT, "out").replace("state add", "state update"))
        assert ping(pair.left, pair.right.addresses[4], count=5, wait_s=0.3) == 0
        assert pair.daemon.drops(RIGHT)["in_icv"] == 5
        state: Any = pair.daemon.sas()[RIGHT, wrong.spi]
        assert (state["packets"], state["drops"]) == (0, {"in_icv": 5})
        pair.daemon.batch(sas[LEFT][0].add(LEFT, "out").replace("state add", "state update"))
        assert ping(pair.left, pair.right.addresses[4], count=2) == 2
