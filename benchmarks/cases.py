"""The cases: what is set up, what is measured, beside what.

Law: every case builds a Lab of its own, measures card and reference in turns inside it, and gives a
dictionary whose keys `case` and `engine` are always there. Throughput cases add `gbps`, `reference_gbps`
and `ratio`.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.sas import measure
from scripts.lab import (
    ADDRESS,
    CONGESTION_CONTROL,
    GCM128_TUNNEL,
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


QUICK = Effort(rounds=3, seconds=2.0, pings=1000, sas=20_000)
FULL = Effort(rounds=5, seconds=5.0, pings=10_000, sas=100_000)

CBC128_SHA1 = (Algorithm("enc", "cbc(aes)", 16), Algorithm("auth", "hmac(sha1)", 20))
CBC256_SHA256 = (Algorithm("enc", "cbc(aes)", 32), Algorithm("auth-trunc", "hmac(sha256)", 32, 128))
SHA256 = (Algorithm("auth-trunc", "hmac(sha256)", 32, 128),)
GCM256 = (Algorithm("aead", "rfc4106(gcm(aes))", 36, 128),)

THROUGHPUT = {
    "link-gcm128": GCM128_TUNNEL,
    "link-cbc128-sha1": Protection("esp", "tunnel", CBC128_SHA1),
    "link-cbc256-sha256": Protection("esp", "tunnel", CBC256_SHA256),
    "link-gcm256-transport-esn": Protection("esp", "transport", GCM256, esn=True),
    "link-ah-sha256": Protection("ah", "transport", SHA256),
}


def throughput(name: str, effort: Effort) -> Result:
    """One TCP stream through two protected adapters, in turns with one over a veth pair."""
    with Lab("vbench") as lab:
        lab.make_namespaces()
        lab.make_reference()
        lab.start_daemon()
        lab.make_adapters()
        lab.protect(THROUGHPUT[name])
        lab.start_iperf_server()
        ours, reference, cpu = [], [], 0.0
        for _ in range(effort.rounds):
            reference.append(lab.iperf_gbps(REFERENCE_ADDRESS[RIGHT], effort.seconds))
            before = lab.cpu_seconds()
            ours.append(lab.iperf_gbps(ADDRESS[RIGHT], effort.seconds))
            cpu += lab.cpu_seconds() - before
        gbps, reference_gbps = statistics.median(ours), statistics.median(reference)
        return {
            "case": name,
            "engine": engine(lab),
            "gbps": round(gbps, 3),
            "reference_gbps": round(reference_gbps, 3),
            "ratio": round(gbps / reference_gbps, 5),
            "reference": "one veth pair between the same namespaces",
            "rounds_gbps": [round(one, 3) for one in ours],
            "rounds_reference_gbps": [round(one, 3) for one in reference],
            "seconds": effort.seconds,
            "daemon_cpu_percent": round(100 * cpu / (effort.rounds * effort.seconds)),
            "congestion_control": CONGESTION_CONTROL,
        }


def ping_rtt(name: str, effort: Effort) -> Result:
    """Round-trip times through two adapters with ESP, in turns with a bare TAP-to-TAP relay."""
    with Lab("vbench") as lab:
        lab.make_namespaces()
        start_relay(lab)
        lab.start_daemon()
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
        lab.start_daemon()
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
        lab.start_daemon()
        lab.make_adapters()
        return {"case": name, "engine": engine(lab), **measure(lab, effort.sas)}


CASES: dict[str, Callable[[str, Effort], Result]] = {
    **dict.fromkeys(THROUGHPUT, throughput),
    "ping-rtt": ping_rtt,
    "idle": idle,
    "sas": sas,
}
"""In the order in which they run."""


def engine(lab: Lab) -> str:
    """Name the engine that moves the frames of the left adapter."""
    adapters = lab.vnic_json("adapter", "show")
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
