"""Where the time of the Python engine goes: two cards, one TCP stream, no I/O, no root.

    python -m benchmarks.profile [--seconds N] [--lines] [CASE]

Frames as a TAP gives them (64 KiB of TCP, checksum open) go through `send` of one card and `receive` of the
other, acknowledgements the other way. A timer of processor time looks 1000 times a second at which function
runs; the time of a library call counts for the function that makes it. Sampling costs next to nothing, where
a tracing profiler makes every small function look dear.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter
from ipaddress import ip_address
from pathlib import Path
from types import FrameType

import vnic
from benchmarks.cases import THROUGHPUT
from scripts.lab import ADDRESS, LEFT, RIGHT, SPI, Protection
from vnic.engine.reference import ReferenceEngine
from vnic.ipsec.algorithms import INTEGRITIES, encryptions_named
from vnic.ipsec.association import Direction, IpsecProtocol, KeyMaterial, Mode, SecurityAssociation
from vnic.ipsec.policy import PolicyAction, PolicyEntry, Prefix, Selector, Template
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.checksum import checksum, fold, pseudo_header_sum
from vnic.packet.vnet import GSO_NONE, GSO_TCPV4, NEEDS_CSUM, VnetHeader

SAMPLES_PER_SECOND = 1000
FRAMES_PER_BURST = 4
SEGMENTS_PER_FRAME = 45
"""As many of a 1500-byte wire as fit 64 KiB."""
WIRE_MTU = 1500
TCP_HEADER_LENGTH = 32
ETHERNET = bytes.fromhex("0200000000020200000000010800")
PACKAGE = f"{Path(vnic.__path__[0])}/"


class Profile:
    """Counts of where the program was at each tick of its processor time."""

    def __init__(self) -> None:
        self.functions: Counter[str] = Counter()
        self.lines: Counter[str] = Counter()

    def __enter__(self) -> Profile:
        signal.signal(signal.SIGPROF, self._tick)
        signal.setitimer(signal.ITIMER_PROF, 1 / SAMPLES_PER_SECOND, 1 / SAMPLES_PER_SECOND)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _tick(self, _number: int, frame: FrameType | None) -> None:
        while frame is not None:
            file = frame.f_code.co_filename
            if file == __file__:
                return  # making the frames is not the cards' work
            if file.startswith(PACKAGE):
                name = file.removeprefix(PACKAGE)
                self.functions[f"{name} {frame.f_code.co_qualname}"] += 1
                self.lines[f"{name}:{frame.f_lineno}"] += 1
                return
            frame = frame.f_back


class Stream:
    """The left card's host sends one TCP stream; the right card's host acknowledges every frame of it."""

    def __init__(self, protection: Protection) -> None:
        self.left = ReferenceEngine(os.urandom)
        self.right = ReferenceEngine(os.urandom)
        for sender, receiver in ((LEFT, RIGHT), (RIGHT, LEFT)):
            self._protect(protection, sender, receiver)
        self.sequence_number = 1
        self.segment_length = self.left.inner_mtu(WIRE_MTU) - 20 - TCP_HEADER_LENGTH
        self.payload = os.urandom(SEGMENTS_PER_FRAME * self.segment_length)
        self.bytes_arrived = 0
        self.frames_arrived = 0
        self.wire_packets = 0

    def _protect(self, protection: Protection, sender: str, receiver: str) -> None:
        ends = protection.ends()
        route = ip_address(ends[sender]).packed, ip_address(ends[receiver]).packed
        mode, protocol = Mode(protection.mode), IpsecProtocol[protection.protocol.upper()]
        encryption, encryption_key, integrity, integrity_key = None, KeyMaterial(b""), None, KeyMaterial(b"")
        for algorithm in protection.algorithms:
            key = KeyMaterial(os.urandom(algorithm.key_length))
            if algorithm.kind in ("aead", "enc"):
                rows = encryptions_named(algorithm.name)
                encryption = next(row for row in rows if row.key_length == algorithm.key_length)
                encryption_key = key
            else:
                integrity = next(row for row in INTEGRITIES if row.kernel_name == algorithm.name)
                integrity_key = key
        template = Template(protocol, mode, *(route if mode is Mode.TUNNEL else (None, None)))
        source, destination = (Prefix(ip_address(ADDRESS[one]).packed, 32) for one in (sender, receiver))
        selector = Selector(source, destination)
        cards = {LEFT: self.left, RIGHT: self.right}
        for card, direction in (
            (cards[sender], Direction.OUTBOUND),
            (cards[receiver], Direction.INBOUND),
        ):
            association = SecurityAssociation(
                direction,
                *route,
                protocol,
                SPI[sender],
                mode,
                encryption,
                encryption_key,
                integrity,
                integrity_key,
                esn=protection.esn,
            )
            card.add_sa(association, 0.0)
            card.add_policy(PolicyEntry(direction, selector, PolicyAction.PROTECT, (template,)))

    def run(self, seconds: float) -> float:
        """Move frames for some seconds of processor time; return the part used inside the cards."""
        inside = 0.0
        ends = time.process_time() + seconds
        while (now := time.process_time()) < ends:
            burst = [self._data() for _ in range(FRAMES_PER_BURST)]
            began = time.process_time()
            wire = self.left.send(burst, now).wire
            host = self.right.receive(wire, now).host
            inside += time.process_time() - began
            self.wire_packets += len(wire)
            self.frames_arrived += len(host)
            self.bytes_arrived += sum(len(one.frame) - 14 - 20 - TCP_HEADER_LENGTH for one in host)
            answers = [self._acknowledgement() for _ in host]
            began = time.process_time()
            self.left.receive(self.right.send(answers, now).wire, now)
            inside += time.process_time() - began
        return inside

    def _data(self) -> NetBuffer:
        frame = tcp_frame(LEFT, RIGHT, self.sequence_number, 1, self.payload)
        self.sequence_number += len(self.payload)
        vnet = VnetHeader(NEEDS_CSUM, GSO_TCPV4, 14 + 20 + TCP_HEADER_LENGTH, self.segment_length, 34, 16)
        return NetBuffer(frame, vnet)

    def _acknowledgement(self) -> NetBuffer:
        frame = tcp_frame(RIGHT, LEFT, 1, self.sequence_number, b"")
        return NetBuffer(frame, VnetHeader(NEEDS_CSUM, GSO_NONE, 0, 0, 34, 16))


def tcp_frame(sender: str, receiver: str, sequence: int, acknowledged: int, payload: bytes) -> bytearray:
    """An Ethernet frame with IPv4 and TCP (timestamps in the options), its TCP checksum left open."""
    source, destination = ip_address(ADDRESS[sender]).packed, ip_address(ADDRESS[receiver]).packed
    tcp_length = TCP_HEADER_LENGTH + len(payload)
    ip = bytearray(20)
    ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, 64, 6
    ip[2:4] = (20 + tcp_length).to_bytes(2, "big")
    ip[12:16], ip[16:20] = source, destination
    ip[10:12] = checksum(ip).to_bytes(2, "big")
    tcp = bytearray(TCP_HEADER_LENGTH)
    tcp[0:4] = bytes.fromhex("c3501451")
    tcp[4:8] = (sequence & 0xFFFFFFFF).to_bytes(4, "big")
    tcp[8:12] = (acknowledged & 0xFFFFFFFF).to_bytes(4, "big")
    tcp[12:16] = bytes.fromhex("80100200")
    tcp[16:18] = fold(pseudo_header_sum(source, destination, 6, tcp_length)).to_bytes(2, "big")
    tcp[20:32] = bytes.fromhex("0101080a0000000100000001")
    return bytearray(ETHERNET + ip + tcp + payload)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile")
    parser.add_argument("--seconds", type=float, default=5.0, help="processor time to spend")
    parser.add_argument("--lines", action="store_true", help="lines instead of functions")
    parser.add_argument("case", nargs="?", choices=list(THROUGHPUT), default=next(iter(THROUGHPUT)))
    words = parser.parse_args()
    stream = Stream(THROUGHPUT[words.case])
    stream.run(0.2)
    stream.bytes_arrived = stream.frames_arrived = stream.wire_packets = 0
    with Profile() as profile:
        inside = stream.run(words.seconds)
    for card in (stream.left, stream.right):
        if card.counters.drops:
            print(f"frames were dropped: {card.counters.drops}", file=sys.stderr)
            return 1
    print(
        f"{words.case}: {stream.bytes_arrived * 8 / inside / 1e9:.2f} Gbit/s of TCP payload through both "
        f"cards in one process, {1e6 * inside / stream.wire_packets:.2f} µs a packet, "
        f"{stream.wire_packets} packets arrived as {stream.frames_arrived} frames"
    )
    counts = profile.lines if words.lines else profile.functions
    for place, count in counts.most_common(20):
        print(f"{100 * count / counts.total():5.1f} %  {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
