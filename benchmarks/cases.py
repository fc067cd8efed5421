"""The cases: what is set up, what is measured, beside what.

Law: every case builds a Lab of its own, measures card and reference in turns inside it, and gives a
dictionary whose keys `case` and `engine` are always there. Throughput cases add `gbps`, `reference_gbps`
and `ratio`. A case whose reference is not installed is skipped, with the reason.
"""

from __future__ import annotations

import re
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.peers import PEERS, VETH
from benchmarks.sas import measure
from scripts.lab import (
    ADDRESS,
    CONGESTION_CONTROL,
    GCM128_TUNNEL,
    IPERF_DATAGRAM,
    LEFT,
    REFERENCE_ADDRESS,
    RIGHT,
    SIDES,
    Algorithm,
    Lab,
    LabError,
    Protection,
)

Result = dict[str, Any]

RELAY_ADDRESS = {LEFT: "10.7.0.1", RIGHT: "10.7.0.2"}
PINGS_PER_TURN = 100
"""Few, so that a machine that is busy for a while is busy for both."""
WARM_UP_PINGS = 10
"""Sent first in every turn and not counted: caches are cold after the other's turn."""


@dataclass(frozen=True)
class Effort:
    """How long to measure. Throughput is the median of `rounds`, a round trip that of `pings`; a table is
    filled with `sas`."""

    rounds: int
    seconds: float
    pings: int
    sas: int
    engine: str = "auto"
    """What the daemons are told to run on."""


class SkippedError(Exception):
    """The case cannot be measured here; the message says why."""


QUICK = Effort(rounds=3, seconds=2.0, pings=1000, sas=20_000)
FULL = Effort(rounds=5, seconds=5.0, pings=10_000, sas=100_000)

CBC128_SHA1 = (Algorithm("enc", "cbc(aes)", 16), Algorithm("auth", "hmac(sha1)", 20))
CBC256_SHA256 = (Algorithm("enc", "cbc(aes)", 32), Algorithm("auth-trunc", "hmac(sha256)", 32, 128))
SHA256 = (Algorithm("auth-trunc", "hmac(sha256)", 32, 128),)
GCM128 = (Algorithm("aead", "rfc4106(gcm(aes))", 20, 128),)
GCM256 = (Algorithm("aead", "rfc4106(gcm(aes))", 36, 128),)
TRIPLE_DES_MD5 = (Algorithm("enc", "cbc(des3_ede)", 24), Algorithm("auth", "hmac(md5)", 16))
AH_SHA256 = Protection("ah", "transport", SHA256)

THROUGHPUT = {
    "link-gcm128": GCM128_TUNNEL,
    "link-cbc128-sha1": Protection("esp", "tunnel", CBC128_SHA1),
    "link-cbc256-sha256": Protection("esp", "tunnel", CBC256_SHA256),
    "link-gcm256-transport-esn": Protection("esp", "transport", GCM256, esn=True),
    "link-3des-md5": Protection("esp", "tunnel", TRIPLE_DES_MD5),
    "link-ah-sha256": AH_SHA256,
    "link-ah-sha256-esp-gcm128": Protection("esp", "transport", GCM128, around=AH_SHA256),
}

HOSTS = {
    "udp-gcm128": ("udp", "veth"),
    "udp-wireguard-go": ("udp", "wireguard-go"),
    "udp-openvpn": ("udp", "openvpn"),
    "netdev-gcm128": ("netdev", "veth"),
    "netdev-strongswan": ("netdev", "strongswan"),
}
"""AES-128-GCM tunnels between two daemons over a veth pair: the wire, and the reference."""

LOSS_ALLOWED = 0.01
RATE_STEPS = 7
MAX_PACKETS_PER_S = 1_000_000


def throughput(name: str, effort: Effort) -> Result:
    """One TCP stream through two protected adapters, in turns with one over a veth pair."""
    with Lab("vbench") as lab:
        lab.make_namespaces()
        lab.make_reference()
        lab.start_daemon(engine=effort.engine)
        lab.make_adapters()
        lab.protect(THROUGHPUT[name])
        lab.start_iperf_server()
        return in_turns(
            name, effort, engine(lab), lab, lab, ADDRESS[RIGHT], REFERENCE_ADDRESS[RIGHT], VETH.text
        )


def between_hosts(name: str, effort: Effort) -> Result:
    """One TCP stream between two daemons over a veth pair, in turns with a peer over it."""
    wire, reference = HOSTS[name]
    peer = PEERS[reference]
    if missing := peer.missing():
        raise SkippedError(f"install {missing} to compare with {peer.text}")
    with Lab("vbench") as lab:
        lab.make_namespaces()
        lab.make_reference()
        lab.make_hosts(wire, GCM128_TUNNEL, engine=effort.engine)
        address = peer.start(lab)
        lab.start_iperf_server()
        return in_turns(name, effort, engine(lab, LEFT), lab, lab, ADDRESS[RIGHT], address, peer.text)


def in_turns(
    name: str,
    effort: Effort,
    engine_name: str,
    lab: Lab,
    reference_lab: Lab,
    address: str,
    reference_address: str,
    reference_text: str,
) -> Result:
    """Measure one TCP stream to each of two addresses, in turns."""
    ours, reference, cpu = [], [], 0.0
    for _ in range(effort.rounds):
        reference.append(reference_lab.iperf_gbps(reference_address, effort.seconds))
        before = lab.cpu_seconds()
        ours.append(lab.iperf_gbps(address, effort.seconds))
        cpu += lab.cpu_seconds() - before
    gbps, reference_gbps = statistics.median(ours), statistics.median(reference)
    return {
        "case": name,
        "engine": engine_name,
        "gbps": round(gbps, 3),
        "reference_gbps": round(reference_gbps, 3),
        "ratio": round(gbps / reference_gbps, 5),
        "reference": reference_text,
        "rounds_gbps": [round(one, 3) for one in ours],
        "rounds_reference_gbps": [round(one, 3) for one in reference],
        "seconds": effort.seconds,
        "daemon_cpu_percent": round(100 * cpu / (effort.rounds * effort.seconds)),
        "congestion_control": CONGESTION_CONTROL,
    }


def small_packets(name: str, effort: Effort) -> Result:
    """Frames of 64 bytes a second without more than 1 % loss, in turns with a veth pair."""
    with Lab("vbench") as lab:
        lab.make_namespaces()
        lab.make_reference()
        lab.start_daemon(engine=effort.engine)
        lab.make_adapters()
        lab.protect(GCM128_TUNNEL)
        lab.start_iperf_server()
        ours, reference = [], []
        for _ in range(min(effort.rounds, 3)):
            reference.append(highest_rate(lab, REFERENCE_ADDRESS[RIGHT]))
            ours.append(highest_rate(lab, ADDRESS[RIGHT]))
        rate, reference_rate = statistics.median(ours), statistics.median(reference)
        return {
            "case": name,
            "engine": engine(lab),
            "packets_per_s": round(rate),
            "reference_packets_per_s": round(reference_rate),
            "ratio": round(rate / reference_rate, 3),
            "reference": VETH.text,
            "datagram_bytes": IPERF_DATAGRAM,
            "rounds_packets_per_s": [round(one) for one in ours],
            "rounds_reference_packets_per_s": [round(one) for one in reference],
        }


def highest_rate(lab: Lab, address: str) -> float:
    """The highest rate that arrives with little enough loss, by halving what is not known."""
    low, high, best = 0.0, float(MAX_PACKETS_PER_S), 0.0
    wanted = high
    for _ in range(RATE_STEPS):
        sent, arrived = lab.iperf_datagrams(address, wanted)
        if arrived >= sent * (1 - LOSS_ALLOWED):
            best = max(best, arrived)
            if sent < wanted * 0.9:
                # The sender cannot do more.
                break
            low = wanted
        else:
            high = min(wanted, sent)
        wanted = (low + high) / 2
    return best


def among_many(name: str, effort: Effort) -> Result:
    """One TCP stream with many SAs and policies installed, in turns with a card that has two."""
    with Lab("vbench") as many, Lab("vbench") as few:
        for lab in (many, few):
            lab.make_namespaces()
            lab.start_daemon(engine=effort.engine)
            lab.make_adapters()
            lab.protect(GCM128_TUNNEL)
            lab.start_iperf_server()
        many.vnic("-b", "-", stdin=unrelated(effort.sas))
        text = "a card with 2 SAs"
        result = in_turns(name, effort, engine(many), many, few, ADDRESS[RIGHT], ADDRESS[RIGHT], text)
        return {**result, "sas": effort.sas}


def unrelated(count: int) -> str:
    """Outbound SAs and policies for hosts that say nothing, as a batch."""
    lines = []
    for number in range(count):
        host = f"10.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
        key = secrets.token_hex(20)
        route = f"src 192.0.2.1 dst {host} proto esp"
        lines.append(
            f"xfrm state add {route} spi {0x10000 + number:#x} reqid 7 mode tunnel "
            f"aead rfc4106(gcm(aes)) 0x{key} 128 offload packet dev left dir out"
        )
        lines.append(
            f"xfrm policy add src 10.9.0.1/32 dst {host}/32 dir out priority 9 "
            f"tmpl {route} reqid 7 mode tunnel offload packet dev left"
        )
    return "\n".join(lines) + "\n"


def ping_rtt(name: str, effort: Effort) -> Result:
    """Round-trip times through two adapters with ESP, in turns with a bare TAP-to-TAP relay."""
    with Lab("vbench") as lab:
        lab.make_namespaces()
        start_relay(lab)
        lab.start_daemon(engine=effort.engine)
        lab.make_adapters()
        lab.protect(GCM128_TUNNEL)
        ours: list[float] = []
        reference: list[float] = []
        for _ in range(effort.pings // PINGS_PER_TURN):
            reference += round_trips_us(lab, RELAY_ADDRESS[RIGHT], PINGS_PER_TURN)
            ours += round_trips_us(lab, ADDRESS[RIGHT], PINGS_PER_TURN)
        rtt, reference_rtt = statistics.median(ours), statistics.median(reference)
        return {
            "case": name,
            "engine": engine(lab),
            "rtt_us": round(rtt, 1),
            "reference_rtt_us": round(reference_rtt, 1),
            "added_us": round(rtt - reference_rtt, 1),
            "ratio": round(rtt / reference_rtt, 3),
            "reference": "a process that copies frames between two TAPs",
            "quartiles_rtt_us": statistics.quantiles(ours, n=4),
            "quartiles_reference_rtt_us": statistics.quantiles(reference, n=4),
            "pings": len(ours),
        }


def idle(name: str, effort: Effort) -> Result:
    """What the daemon takes with two adapters at rest."""
    seconds = effort.rounds * effort.seconds
    with Lab("vbench") as lab:
        lab.make_namespaces()
        lab.start_daemon(engine=effort.engine)
        lab.make_adapters()
        lab.protect(GCM128_TUNNEL)
        time.sleep(1.0)
        before = lab.cpu_seconds()
        time.sleep(seconds)
        used = lab.cpu_seconds() - before
        return {
            "case": name,
            "engine": engine(lab),
            "cpu_percent": round(100 * used / seconds, 2),
            "resident_mib": round(lab.resident_mib(), 1),
            "seconds": seconds,
        }


def sas(name: str, effort: Effort) -> Result:
    """How fast a NIC is filled and emptied by either door, and what that costs in memory."""
    with Lab("vbench") as lab:
        lab.make_namespaces()
        lab.start_daemon(engine=effort.engine)
        lab.make_adapters()
        return {"case": name, "engine": engine(lab), **measure(lab, effort.sas)}


CASES: dict[str, Callable[[str, Effort], Result]] = {
    **dict.fromkeys(THROUGHPUT, throughput),
    **dict.fromkeys(HOSTS, between_hosts),
    "link-udp64": small_packets,
    "link-many-sas": among_many,
    "ping-rtt": ping_rtt,
    "idle": idle,
    "sas": sas,
}
"""In the order in which they run."""


def engine(lab: Lab, side: str = "") -> str:
    """Name the engine that moves the frames of the left adapter.

    Args:
        side: whose daemon to ask; "" is the one for both.
    """
    adapters = lab.vnic_json("adapter", "show", side=side)
    return str(next(one["engine"] for one in adapters if one["name"] == LEFT))


def start_relay(lab: Lab) -> None:
    taps = {LEFT: f"{lab.token}m", RIGHT: f"{lab.token}n"}
    words = [word for side in SIDES for word in (lab.namespace[side], taps[side])]
    relay = lab.start([sys.executable, "-m", "benchmarks.relay", *words], stdout=subprocess.PIPE)
    assert relay.stdout is not None
    if relay.stdout.readline() != b"ready\n":
        raise LabError("the relay between two TAPs did not start")
    for side in SIDES:
        lab.configure(side, taps[side], RELAY_ADDRESS[side])


def round_trips_us(lab: Lab, address: str, count: int) -> list[float]:
    """Ping `count` times, each as soon as the last is answered, and return the times in microseconds.

    With pauses between them the pings would measure how long a sleeping processor takes to wake.
    """
    options = ["-n", "-A", "-c", str(WARM_UP_PINGS + count)]
    said = lab.run_in(LEFT, ["ping", *options, address])
    times = [float(found) * 1000 for found in re.findall(r"time=([0-9.]+) ms", said)][WARM_UP_PINGS:]
    if len(times) < count * 0.99:
        raise LabError(f"only {len(times)} of {count} pings to {address} were answered")
    return times
