"""Two cards and a wire with faults on demand: each fault shows as exactly one counter where it arrives."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from transport_lab import (
    AH,
    ANY,
    ANY6,
    ESP,
    FAR,
    FAR6,
    IN,
    NEAR,
    NEAR6,
    OUT,
    TRANSPORT,
    TUNNEL,
    association,
    frame_of,
    policy,
    template,
)

from tests.engines import BOTH_ENGINES, make_card
from vnic.daemon.icv import finder
from vnic.engine.reference import ReferenceEngine
from vnic.ndis.netbuffer import NetBuffer
from vnic.ports.faults import Aimed, FaultLine, FaultSettings

pytestmark = BOTH_ENGINES

WINDOW = 64
CHOSEN: dict[str, dict[str, Any]] = {
    "esp-gcm": {},
    "esp-gcm-64": {"icv_length": 8},
    "esp-cbc": {"encryption": "aes-cbc-128", "integrity": "hmac-sha1-96"},
    "ah": {"protocol": AH},
    "ah-gmac": {"protocol": AH, "integrity": "aes-gmac-128"},
}
ICV_BITS = {"esp-gcm": 128, "esp-gcm-64": 64, "esp-cbc": 96, "ah": 128, "ah-gmac": 128}


@dataclass
class Wire:
    """A left card that sends, a line with faults, and a right card that receives."""

    left: ReferenceEngine
    right: ReferenceEngine
    line: FaultLine
    version: int
    sent: int = 0

    def send(self, count: int, now: float = 1.0) -> int:
        """Send packets through the line; gives how many reached the host."""
        packets = []
        for number in range(self.sent, self.sent + count):
            datagram = UDP(sport=7, dport=8) / number.to_bytes(100, "big")
            ip = IP(src=NEAR, dst=FAR) if self.version == 4 else IPv6(src=NEAR6, dst=FAR6)
            packets.append(NetBuffer(frame_of(ip / datagram)))
        self.sent += count
        arriving = self.line.move(self.left.send(packets, now).wire, now)
        return len(self.right.receive(arriving, now).host)

    def rest(self, now: float = 1.0) -> int:
        """Receive what is due."""
        return len(self.right.receive(self.line.move([], now), now).host)

    @property
    def drops(self) -> dict[str, int]:
        return {reason.value: count for reason, count in self.right.counters.drops.items() if count}


def wire_of(suite: str = "esp-gcm", version: int = 4, mode: Any = TUNNEL, **settings: Any) -> Wire:
    near, far = (NEAR, FAR) if version == 4 else (NEAR6, FAR6)
    left, right = (make_card(random.Random(seed).randbytes) for seed in (1, 2))
    sa = association(OUT, mode, near, far, replay_window=WINDOW, **CHOSEN[suite])
    made = template(sa.protocol, mode, *((near, far) if mode is TUNNEL else ()))
    for family in (ANY, ANY6):
        left.add_policy(policy(OUT, family, made))
        right.add_policy(policy(IN, family, made))
    left.add_sa(sa, 0.0)
    right.add_sa(replace(sa, direction=IN), 0.0)
    line = FaultLine(random.Random(7), finder(left))
    line.settings = FaultSettings(**settings)
    return Wire(left, right, line, version)


SUITES = pytest.mark.parametrize("suite", ICV_BITS)
VERSIONS = pytest.mark.parametrize("version", [4, 6])
MODES = pytest.mark.parametrize("mode", [TUNNEL, TRANSPORT])


def test_a_good_wire_shows_nothing() -> None:
    wire = wire_of()
    assert wire.send(100) == 100
    assert wire.drops == {}


def test_what_is_lost_is_only_missing() -> None:
    wire = wire_of(loss=20.0)
    arrived = wire.send(500)
    assert arrived == 500 - wire.line.counts["lost"] < 500
    assert wire.drops == {}


@SUITES
@VERSIONS
def test_a_duplicate_is_a_duplicate(suite: str, version: int) -> None:
    wire = wire_of(suite, version, duplicate=20.0)
    assert wire.send(100) == 100
    assert wire.drops == {"in_replay_duplicate": wire.line.counts["duplicated"]}


@SUITES
@MODES
def test_every_corrupt_packet_of_ipv4_is_counted_once(suite: str, mode: Any) -> None:
    wire = wire_of(suite, mode=mode, corrupt=50.0)
    arrived = wire.send(1500)
    corrupted = wire.line.counts["corrupted"]
    assert corrupted > 600
    assert arrived == 1500 - corrupted
    assert sum(wire.drops.values()) == corrupted
    assert wire.drops["in_icv"] > corrupted / 2


@SUITES
def test_a_corrupt_packet_of_ipv6_is_counted_once_unless_nothing_covers_the_bit(suite: str) -> None:
    wire = wire_of(suite, 6, corrupt=50.0)
    arrived = wire.send(1500)
    corrupted = wire.line.counts["corrupted"]
    assert 1500 - arrived == sum(wire.drops.values()) <= corrupted
    # Class, label and hop limit are 36 of the 1100 bits and more.
    assert sum(wire.drops.values()) > corrupted * 0.9


def test_reordering_within_the_window_shows_nothing() -> None:
    wire = wire_of(reorder=10.0, reorder_packets=WINDOW // 4)
    arrived = wire.send(1000) + wire.rest(5.0)
    assert wire.line.counts["reordered"] > 50
    assert (arrived, wire.drops) == (1000, {})


def test_reordering_beyond_the_window_is_too_old() -> None:
    wire = wire_of(reorder=5.0, reorder_packets=2 * WINDOW)
    arrived = wire.send(1000)
    late = wire.line.counts["reordered"] - wire.line.waiting
    assert late > 20
    assert wire.drops == {"in_replay_too_old": late}
    assert arrived == 1000 - wire.line.counts["reordered"]


@SUITES
@VERSIONS
@MODES
def test_each_bit_of_the_icv_counts(suite: str, version: int, mode: Any) -> None:
    wire = wire_of(suite, version, mode)
    bits = (0, 7, ICV_BITS[suite] // 2, ICV_BITS[suite] - 1)
    for bit in bits:
        wire.line.aim(Aimed("flip_icv", bit), 0.0)
        assert wire.send(2) == 1
    assert wire.drops == {"in_icv": len(bits)}
    assert wire.line.counts["flipped"] == len(bits)
    # No ICV of this SA has such a bit.
    wire.line.aim(Aimed("flip_icv", ICV_BITS[suite]), 0.0)
    assert wire.send(5) == 5


@SUITES
@VERSIONS
def test_replays_are_duplicates_and_later_too_old(suite: str, version: int) -> None:
    wire = wire_of(suite, version)
    wire.send(1)
    wire.line.aim(Aimed("replay", 3), 0.0)
    assert wire.rest() == 0
    assert wire.drops == {"in_replay_duplicate": 3}
    wire.line.aim(Aimed("hold", 0), 0.0)
    wire.send(WINDOW + 1)
    wire.line.release(2.0)
    assert wire.rest(2.0) == 0
    assert wire.drops == {"in_replay_duplicate": 3, "in_replay_too_old": 1}


def test_a_packet_held_back_for_less_than_the_window_arrives() -> None:
    wire = wire_of()
    wire.line.aim(Aimed("hold", WINDOW - 1), 0.0)
    assert wire.send(WINDOW) == WINDOW
    assert wire.drops == {}


@SUITES
@VERSIONS
@pytest.mark.parametrize("length", [14, 20, 33, 34, 40, 60, 90, 120])
def test_a_truncated_packet_is_counted_once(suite: str, version: int, length: int) -> None:
    wire = wire_of(suite, version)
    wire.line.aim(Aimed("truncate", length), 0.0)
    arrived = wire.send(3)
    # Of a bare Ethernet header nothing tells that it was an IP packet: the host gets to judge it.
    reasons = Counter(wire.drops)
    assert arrived + sum(reasons.values()) == 3
    assert set(reasons) <= {"in_syntax", "in_malformed"}
    assert sum(reasons.values()) == 1


def test_the_icv_of_udp_encapsulated_esp_is_found_and_fragments_have_none() -> None:
    wire = wire_of()
    find = finder(wire.left)
    (sa,) = (report.sa for report in wire.left.sas())
    body = sa.spi.to_bytes(4, "big") + bytes(60)
    inside = frame_of(IP(src=NEAR, dst=FAR) / UDP(sport=4500, dport=4500) / body)
    assert find(inside) == (len(inside) - 16, 16)
    assert find(frame_of(IP(src=NEAR, dst=FAR, proto=50, flags="MF") / body)) is None
    assert find(frame_of(IP(src=NEAR, dst=FAR) / UDP(sport=1, dport=2) / body)) is None
    assert find(frame_of(IP(src=NEAR, dst=FAR, proto=50) / bytes(7))) is None
    unknown = frame_of(IP(src=NEAR, dst=FAR, proto=50) / (b"\xff" + body[1:]))
    assert find(unknown) == (len(unknown), 0)
    short = frame_of(IP(src=NEAR, dst=FAR, proto=50) / body[:12])
    assert find(short) == (len(short), 0)


def test_any_bytes_have_an_icv_inside_or_none() -> None:
    find = finder(wire_of().left)
    generator = random.Random(1)
    for number in range(900):
        protocol = (ESP, AH, 17)[number % 3]
        header = bytes(IP(src=NEAR, dst=FAR, proto=int(protocol), len=20 + number % 60))
        frame = bytearray(bytes(12) + b"\x08\x00" + header + generator.randbytes(number % 70))
        place = find(frame)
        assert place is None or 0 < place[0] <= place[0] + place[1] <= len(frame)
