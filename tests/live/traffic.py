"""Traffic between two hosts, and a look at the wire between them from outside.

Law: sends and receives, and compares bytes; knows nothing of the daemon and reads no counters of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from card import Host
from namespaces import Namespace
from relay import transfer
from scapy.utils import RawPcapNgReader

ESP_PROTOCOL, AH_PROTOCOL = 50, 51
ETHERNET_LENGTH = 14

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 64 << 20
_LARGEST_DATAGRAM = 65_536


# ---------------------------------------------------------------------------------------------- hosts


_A_FEW = 20


def ping(
    host: Host,
    to: str,
    *,
    count: int = 1,
    size: int = 56,
    source: str | None = None,
    pattern: bytes = b"",
    wait_s: float = 2,
) -> int:
    """Send echo requests from a host, and give how many were answered; ping itself compares the bytes.

    A few go one after the other: of several in one process ping waits for the last no longer than twice what
    the others took, which a busy machine exceeds.
    """
    if 1 < count <= _A_FEW:
        one = partial(ping, host, to, size=size, source=source, pattern=pattern, wait_s=wait_s)
        return sum(one() for _ in range(count))
    options = ["-n", "-c", str(count), "-i", "0.01", "-W", str(wait_s), "-s", str(size)]
    options += ["-I", source] if source else []
    options += ["-p", pattern.hex()] if pattern else []
    done = host.namespace.run("ping", *options, to, timeout_s=wait_s + 10, check=False)
    found = re.search(r"(\d+) received", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert "wrong data byte" not in done.stdout, done.stdout
    return int(found[1])


def forget_neighbours(*hosts: Host) -> None:
    """Make the hosts ask again for the Ethernet addresses of their neighbours."""
    for host in hosts:
        for version in ("-4", "-6"):
            host.namespace.ip(version, "neighbour", "flush", "dev", host.device)


def tcp(sender: Host, receiver: Host, version: int, payload: bytes, port: int = 5001) -> bytes:
    """Send a payload over one TCP connection; give the digest of what arrived."""
    family = _FAMILIES[version]
    with (
        sender.namespace.socket(family, socket.SOCK_STREAM) as client,
        receiver.namespace.socket(family, socket.SOCK_STREAM) as server,
    ):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return digest(transfer(client, server, (receiver.addresses[version], port), payload))


class Datagrams:
    """One UDP socket on each of two hosts, connected to each other."""

    def __init__(self, left: Host, right: Host, version: int, port: int = 7000) -> None:
        self.ends: list[socket.socket] = []
        for host in (left, right):
            end = host.namespace.socket(_FAMILIES[version], socket.SOCK_DGRAM)
            end.settimeout(3)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            end.bind((host.addresses[version], port))
            self.ends.append(end)
        for end, host in zip(self.ends, (right, left), strict=True):
            end.connect((host.addresses[version], port))

    def __enter__(self) -> Datagrams:
        return self

    def __exit__(self, *_: object) -> None:
        for end in self.ends:
            end.close()

    def changed(self, payloads: Iterable[bytes]) -> list[int]:
        """Send every payload to and fro; give the lengths of those that did not come back as they were."""
        left, right = self.ends
        lengths = []
        for payload in payloads:
            try:
                left.send(payload)
                there = right.recv(_LARGEST_DATAGRAM)
                right.send(there)
                back = left.recv(_LARGEST_DATAGRAM)
            except TimeoutError:
                lengths.append(len(payload))
            else:
                if not digest(there) == digest(back) == digest(payload):
                    lengths.append(len(payload))
        return lengths


class Numbered:
    """Numbered datagrams of changing lengths both ways at an even pace, until the block ends.

    Attributes:
        sent: how many, by sender.
        missing, twice: when it has ended, by sender: which did not arrive, and which arrived more than once.
    """

    def __init__(self, left: Host, right: Host, version: int = 4, *, rate: int = 400) -> None:
        self.sent = [0, 0]
        self.missing: list[list[int]] = [[], []]
        self.twice: list[list[int]] = [[], []]
        self._datagrams = Datagrams(left, right, version, port=7100)
        self._pause = 1 / rate
        self._stop = threading.Event()
        self._came: list[Counter[int]] = [Counter(), Counter()]
        self._senders = [threading.Thread(target=self._send, args=(end,), daemon=True) for end in (0, 1)]
        self._receivers = [threading.Thread(target=self._receive, args=(end,), daemon=True) for end in (0, 1)]

    def __enter__(self) -> Numbered:
        for thread in (*self._receivers, *self._senders):
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._senders:
            thread.join(5)
        # A receiver ends when nothing has come for a while.
        for thread in self._receivers:
            thread.join(15)
        self._datagrams.__exit__()
        for end in (0, 1):
            came = self._came[1 - end]
            self.missing[end] = [number for number in range(self.sent[end]) if number not in came]
            self.twice[end] = [number for number, count in came.items() if count > 1]

    def _send(self, end: int) -> None:
        while not self._stop.is_set():
            number = self.sent[end]
            self._datagrams.ends[end].send(number.to_bytes(8, "big") + bytes(number * 7 % 1200))
            self.sent[end] += 1
            time.sleep(self._pause)

    def _receive(self, end: int) -> None:
        socket_ = self._datagrams.ends[end]
        while True:
            try:
                data = socket_.recv(_LARGEST_DATAGRAM)
            except TimeoutError:
                if self._stop.is_set():
                    return
                continue
            number = int.from_bytes(data[:8], "big")
            assert len(data) == 8 + number * 7 % 1200
            self._came[end][number] += 1


def digest(data: bytes) -> bytes:
    """SHA-256, to compare what arrived with what was sent."""
    return hashlib.sha256(data).digest()


class Stream:
    """A TCP connection that carries a marker again and again, at an even pace, until it is stopped.

    Attributes:
        received: bytes that have arrived.
        wrong: whether anything else than the marker arrived.
    """

    def __init__(
        self, sender: Host, receiver: Host, marker: bytes, version: int = 4, port: int = 5002
    ) -> None:
        self._marker = marker
        self._stop = threading.Event()
        self.received = 0
        self.wrong = False
        self._listener = receiver.namespace.socket(_FAMILIES[version], socket.SOCK_STREAM)
        self._client = sender.namespace.socket(_FAMILIES[version], socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((receiver.addresses[version], port))
        self._listener.listen(1)
        self._client.settimeout(10)
        self._client.connect((receiver.addresses[version], port))
        self._server, _ = self._listener.accept()
        for end in (self._client, self._server):
            end.settimeout(0.1)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)]

    def __enter__(self) -> Stream:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(5)
        for end in (self._client, self._server, self._listener):
            end.close()

    def _send(self) -> None:
        data = self._marker * (16_384 // len(self._marker))
        at = 0
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                at = (at + self._client.send(data[at:])) % len(data)
            # 16 KiB each 2 ms: 8 MB/s, which the sniffer can follow without loss.
            time.sleep(0.002)

    def _receive(self) -> None:
        at = 0
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                part = self._server.recv(1 << 16)
                shifted = self._marker[at:] + self._marker * (len(part) // len(self._marker) + 1)
                self.wrong = self.wrong or part != shifted[: len(part)]
                at = (at + len(part)) % len(self._marker)
                self.received += len(part)

    def flows(self, timeout_s: float = 15.0) -> bool:
        """Whether something new arrives before time is up."""
        before = self.received
        deadline = time.monotonic() + timeout_s
        while self.received < before + (64 << 10) and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.received >= before + (64 << 10)

    def stands_still(self, seconds: float) -> bool:
        """Whether nothing at all arrives for so long, but for what is under way when asked."""
        time.sleep(0.3)
        before = self.received
        time.sleep(seconds)
        return self.received == before


# ----------------------------------------------------------------------------------------------- wire


class Seen(NamedTuple):
    """One frame at a device."""

    frame: bytes
    outgoing: bool
    """The device's own side sent it; otherwise it came over the wire."""


@dataclass(frozen=True)
class Outer:
    """What the outermost IP header of a frame says."""

    version: int
    protocol: int
    """What follows it; IPv6 extension headers are not looked through: none of ours has any."""
    offset: int
    """Of what follows it."""


def outer(frame: bytes) -> Outer | None:
    """Read the IP header of an untagged frame, if it has one."""
    kind = frame[12:14]
    if kind == b"\x08\x00":
        return Outer(4, frame[23], ETHERNET_LENGTH + (frame[14] & 0x0F) * 4)
    if kind == b"\x86\xdd":
        return Outer(6, frame[20], ETHERNET_LENGTH + 40)
    return None


def captured(file: Path) -> list[bytes]:
    """The frames of a pcapng file."""
    with RawPcapNgReader(str(file)) as reader:
        return [frame for frame, _ in reader]


def is_sealed(frame: bytes) -> bool:
    """Whether the packet of a frame is ESP or AH."""
    header = outer(frame)
    return header is not None and header.protocol in (ESP_PROTOCOL, AH_PROTOCOL)


def spi_of(frame: bytes) -> int:
    """The SPI of an ESP or AH packet."""
    header = outer(frame)
    assert header is not None
    at = header.offset + (4 if header.protocol == AH_PROTOCOL else 0)
    return int.from_bytes(frame[at : at + 4], "big")


class Sniffer:
    """Whatever passes one device, seen by a socket of our own, from the moment the block begins.

    Attributes:
        frames: the last of them, as many as `keep` says.
        kinds: how many of each EtherType and IP protocol passed.
        marked: frames that held the marker.
        total: all frames.
    """

    def __init__(self, namespace: Namespace, device: str, *, marker: bytes = b"", keep: int = 4096) -> None:
        self.frames: list[Seen] = []
        self.kinds: Counter[tuple[int, int]] = Counter()
        self.marked: list[Seen] = []
        self.total = 0
        self._marker = marker
        self._keep = keep
        self._stop = threading.Event()
        self._socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.settimeout(0.05)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        self._socket.bind((device, _ETH_P_ALL))
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Sniffer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self._socket.close()
        lost = struct.unpack("II", statistics)[1]
        assert not lost, f"the sniffer itself missed {lost} frames; what it says proves nothing"

    def _read(self) -> None:
        while True:
            try:
                frame, address = self._socket.recvfrom(1 << 17)
            except TimeoutError:
                if self._stop.is_set():
                    return
                continue
            except OSError:
                # The device went down or away; it may come back.
                time.sleep(0.01)
                if self._stop.is_set():
                    return
                continue
            seen = Seen(frame, address[2] == socket.PACKET_OUTGOING)
            header = outer(frame)
            kind = int.from_bytes(frame[12:14], "big")
            self.kinds[kind, header.protocol if header is not None else 0] += 1
            if self._marker and self._marker in frame:
                self.marked.append(seen)
            self.frames.append(seen)
            del self.frames[: -self._keep]
            self.total += 1

    def send(self, frame: bytes) -> None:
        """Put a frame on the wire at this device."""
        self._socket.send(frame)

    def wait_for(self, fits: Callable[[Seen], bool], timeout_s: float = 5.0) -> bytes:
        """Give the first frame that fits, which may have passed already."""
        return self.wait_for_all(fits, 1, timeout_s)[0]

    def wait_for_all(self, fits: Callable[[Seen], bool], count: int, timeout_s: float = 5.0) -> list[bytes]:
        """Give the first frames that fit, when there are so many of them."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = [seen.frame for seen in list(self.frames) if fits(seen)]
            if len(found) >= count:
                return found[:count]
            if time.monotonic() >= deadline:
                raise AssertionError(f"{len(found)} frames of {count}; passed: {dict(self.kinds)}")
            time.sleep(0.005)

    def settle(self, quiet_s: float = 0.1, timeout_s: float = 5.0) -> None:
        """Wait until nothing passes any more."""
        deadline = time.monotonic() + timeout_s
        before = -1
        while self.total != before and time.monotonic() < deadline:
            before = self.total
            time.sleep(quiet_s)


@contextlib.contextmanager
def background(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run something on a thread until the block ends; it must look at the event it is given."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work(stop)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)
    if failures:
        raise failures[0]


def wait_until(holds: Callable[[], bool], timeout_s: float = 5.0) -> bool:
    """Wait until something holds; gives whether it does."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() >= deadline:
            return holds()
        time.sleep(0.02)
    return True
