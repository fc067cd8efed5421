"""The demonstration: two namespaces, two cards, a tunnel; every claim is measured in front of you.

Law: a claim is printed with a tick only after it was checked, and one cross makes the exit code 1.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.lab import (
    ADDRESS,
    GCM128_TUNNEL,
    LEFT,
    OUTER_ADDRESS,
    REFERENCE_ADDRESS,
    RIGHT,
    SIDES,
    SPI,
    Interrupted,
    Lab,
    LabError,
    raise_on_signals,
)

STEPS = 8
PINGS = 5
TRANSFER_BYTES = 4 << 20
TRANSFER_PORT = 5000
THROUGHPUT_ROUNDS = 2
THROUGHPUT_SECONDS = 2.0


class Report:
    """Numbered steps and checked claims, on standard output."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.step_count = 0
        self.failed: list[str] = []
        color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self.bold, self.green, self.red, self.plain = (
            ("\033[1m", "\033[32m", "\033[31m", "\033[0m") if color else ("", "", "", "")
        )

    def step(self, title: str) -> None:
        self.step_count += 1
        elapsed = time.monotonic() - self.began
        self.line(f"\n{self.bold}{self.step_count}/{STEPS} {title}{self.plain}  ({elapsed:.0f} s)")

    def claim(self, holds: bool, text: str) -> None:
        mark = f"{self.green}✓{self.plain}" if holds else f"{self.red}✗{self.plain}"
        self.line(f"  {mark} {text}")
        if not holds:
            self.failed.append(text)

    def block(self, text: str) -> None:
        for line in text.rstrip().splitlines():
            self.line(f"    {line}")

    def line(self, text: str) -> None:
        print(text, flush=True)


class Capture:
    """What one point of an adapter saw, as a pcapng file that tcpdump reads for us."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()

    def frames(self, condition: str = "") -> list[str]:
        """One line of tcpdump per frame that meets a condition of pcap-filter(7)."""
        # By a pipe: tcpdump gives up root before it opens a file, and could not read ours.
        command = ["tcpdump", "-n", "-t", "-r", "-", *([condition] if condition else [])]
        done = subprocess.run(command, input=self.data, capture_output=True, check=False)
        if done.returncode != 0:
            raise LabError(f"tcpdump cannot read the capture: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode(errors="replace").splitlines()


def run(lab: Lab, report: Report) -> None:
    marker = secrets.token_bytes(16)

    report.step("Two network namespaces, the daemon, two adapters joined by a link wire")
    report.block(f"all that this run makes has a name beginning with {lab.token}")
    lab.make_namespaces()
    lab.make_reference()
    lab.start_daemon()
    lab.make_adapters()
    report.block(lab.vnic("-br", "adapter", "show"))
    report.claim(
        {one["name"] for one in lab.vnic_json("adapter", "show")} == {LEFT, RIGHT},
        "vnicd runs both adapters",
    )

    report.step("An ESP tunnel, AES-128-GCM, both ways; keys are random and come by standard input")
    lab.protect(GCM128_TUNNEL)
    report.block(lab.vnic("-br", "sa", "show"))
    report.block(lab.vnic("-br", "policy", "show"))
    report.claim(len(lab.vnic_json("sa", "show")) == 4, "four SAs: one out and one in on each adapter")

    report.step("Ping and a TCP transfer through it; the wire and the right host side are captured")
    wire_file = start_capture(lab, LEFT, "wire", "protected")
    host_file = start_capture(lab, RIGHT, "tap", "opened")
    received = ping(lab, LEFT, marker)
    report.claim(received == PINGS, f"ping {ADDRESS[RIGHT]}: {received} of {PINGS} answered")
    sent, arrived, seconds = transfer(lab, marker)
    report.claim(sent == arrived, f"TCP: {TRANSFER_BYTES >> 20} MiB arrived unchanged in {seconds:.2f} s")
    wire, host = stop_capture(lab, LEFT, wire_file), stop_capture(lab, RIGHT, host_file)

    report.step("What crossed the wire")
    esp, other = wire.frames("ip proto 50"), wire.frames("not arp and not ip proto 50")
    report.block("\n".join([*esp[:2], f"… {len(esp)} ESP frames"]))
    report.claim(len(esp) > TRANSFER_BYTES // 65536 and not other, f"ESP alone: {len(other)} other IP frames")
    found = host.data.count(marker)
    report.claim(found > 0, f"the right host got the payload's 16 random marker bytes {found} times")
    report.claim(marker not in wire.data, f"the wire carried them {wire.data.count(marker)} times")

    report.step("The counters")
    report.block(lab.vnic("-br", "-s", "sa", "show"))
    report.block(lab.vnic("stats"))
    sealed = counters(lab, LEFT)["card"]["tx_offloaded"]
    opened = counters(lab, RIGHT)["card"]["rx_offloaded"]
    lost = sum(drop_count(lab, side, "link_queue_full") for side in SIDES)
    report.claim(
        sealed == opened + lost and opened > 0,
        f"left sealed {sealed} packets, right verified and opened {opened}; {lost} lost on the link",
    )

    report.step("Throughput: one TCP stream, beside a plain veth pair, in turns")
    compare_throughput(lab, report)

    report.step("Delete the left adapter's outbound SA: traffic must stop, and nothing may leave in clear")
    drops_before = drop_count(lab, LEFT, "out_no_sa")
    delete_outbound_sa(lab)
    wire_file = start_capture(lab, LEFT, "wire", "deleted")
    received = ping(lab, LEFT, marker)
    report.claim(received == 0, f"ping {ADDRESS[RIGHT]}: {received} of {PINGS} answered")
    report.claim(not connects(lab), "TCP: no connection")
    received = ping(lab, RIGHT, marker)
    report.claim(received == 0, f"ping the other way: {received} of {PINGS} answered")
    wire = stop_capture(lab, LEFT, wire_file)
    arriving = wire.frames(f"ip proto 50 and src {OUTER_ADDRESS[RIGHT]}")
    other = wire.frames(f"not arp and not (ip proto 50 and src {OUTER_ADDRESS[RIGHT]})")
    report.claim(
        len(arriving) >= PINGS, f"the wire brought {len(arriving)} ESP frames from the right, as before"
    )
    report.claim(not other and marker not in wire.data, f"and nothing left the left: {len(other)} IP frames")
    report.block(lab.vnic("stats", LEFT))
    dropped = drop_count(lab, LEFT, "out_no_sa") - drops_before
    report.claim(dropped >= 2 * PINGS, f"counted as out_no_sa (XfrmOutNoStates): {dropped} packets")

    report.step("Clean up")


def start_capture(lab: Lab, side: str, place: str, name: str) -> Path:
    path = lab.directory / f"{name}-{place}.pcapng"
    lab.vnic("adapter", "set", side, "capture", place, str(path))
    return path


def stop_capture(lab: Lab, side: str, path: Path) -> Capture:
    lab.vnic("adapter", "set", side, "capture", "off")
    return Capture(path)


def ping(lab: Lab, side: str, marker: bytes) -> int:
    """Send pings filled with the marker from one side to the other; return how many were answered."""
    address = ADDRESS[RIGHT if side == LEFT else LEFT]
    options = ["-n", "-c", str(PINGS), "-i", "0.1", "-W", "1", "-s", "200", "-p", marker.hex()]
    said = lab.run_in(side, ["ping", *options, address], ok=(0, 1))
    return said.count(" bytes from ")


def transfer(lab: Lab, marker: bytes) -> tuple[str, str, float]:
    """Send a stream full of the marker from left to right; return both ends' digests and the time."""
    data = b"".join(marker + secrets.token_bytes(48) for _ in range(TRANSFER_BYTES // 64))
    arrived = hashlib.sha256()
    with lab.socket_in(RIGHT) as server, lab.socket_in(LEFT) as client:
        server.bind((ADDRESS[RIGHT], TRANSFER_PORT))
        server.listen(1)
        for one in (server, client):
            one.settimeout(10)

        def take() -> None:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(10)
                while chunk := connection.recv(1 << 16):
                    arrived.update(chunk)

        began = time.monotonic()
        taker = threading.Thread(target=take, daemon=True)
        taker.start()
        client.connect((ADDRESS[RIGHT], TRANSFER_PORT))
        client.sendall(data)
        client.shutdown(1)
        taker.join(10)
    return hashlib.sha256(data).hexdigest(), arrived.hexdigest(), time.monotonic() - began


def connects(lab: Lab) -> bool:
    with lab.socket_in(RIGHT) as server, lab.socket_in(LEFT) as client:
        server.bind((ADDRESS[RIGHT], TRANSFER_PORT + 1))
        server.listen(1)
        client.settimeout(2)
        with contextlib.suppress(OSError):
            client.connect((ADDRESS[RIGHT], TRANSFER_PORT + 1))
            return True
    return False


def compare_throughput(lab: Lab, report: Report) -> None:
    lab.start_iperf_server()
    rates: dict[str, list[float]] = {"veth": [], "vnic": []}
    report.block(f"{'round':>5}  {'veth':>8}  {'vnic':>8}   Gbit/s, {THROUGHPUT_SECONDS:g} s each, TCP cubic")
    for number in range(1, THROUGHPUT_ROUNDS + 1):
        rates["veth"].append(lab.iperf_gbps(REFERENCE_ADDRESS[RIGHT], THROUGHPUT_SECONDS))
        rates["vnic"].append(lab.iperf_gbps(ADDRESS[RIGHT], THROUGHPUT_SECONDS))
        report.block(f"{number:>5}  {rates['veth'][-1]:8.2f}  {rates['vnic'][-1]:8.3f}")
    veth, vnic = statistics.mean(rates["veth"]), statistics.mean(rates["vnic"])
    report.claim(
        vnic > 0, f"sealed and opened {vnic:.2f} Gbit/s; {100 * vnic / veth:.1f} % of veth's {veth:.1f}"
    )


def delete_outbound_sa(lab: Lab) -> None:
    route = ["src", OUTER_ADDRESS[LEFT], "dst", OUTER_ADDRESS[RIGHT]]
    lab.vnic("xfrm", "state", "delete", *route, "proto", "esp", "spi", f"{SPI[LEFT]:#x}", "dev", LEFT)


def counters(lab: Lab, side: str) -> dict[str, Any]:
    (one,) = lab.vnic_json("stats", side)
    return dict(one)


def drop_count(lab: Lab, side: str, reason: str) -> int:
    return sum(int(one["packets"]) for one in counters(lab, side)["drops"] if one["name"] == reason)


def main(words: Sequence[str]) -> int:
    if words:
        print(f"demo: unexpected argument '{words[0]}'; it takes none", file=sys.stderr)
        return 2
    raise_on_signals()
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    report = Report()
    lab = Lab("vdemo")
    exit_code = 0
    try:
        with lab:
            run(lab, report)
    except (LabError, OSError) as error:
        report.claim(False, f"stopped: {error}")
    except Interrupted as signal:
        report.line(f"\ninterrupted by {signal}")
        exit_code = signal.exit_code
    leftovers = lab.leftovers()
    report.claim(
        not leftovers,
        f"namespaces, devices, daemon and files are gone{''.join(f'; left: {one}' for one in leftovers)}",
    )
    elapsed = time.monotonic() - report.began
    if exit_code:
        return exit_code
    if report.failed:
        report.line(f"\nFAILED in {elapsed:.0f} s: {len(report.failed)} claim(s) did not hold")
        return 1
    report.line(f"\nAll claims held. {elapsed:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
