"""Two ports joined by hand: what one receives the other sends, as the daemon would without a card between."""

from __future__ import annotations

import select
import socket
import threading
import time
from dataclasses import dataclass, field

from vnic.ndis.netbuffer import NetBuffer
from vnic.ports.base import Port


@dataclass
class Relay:
    """Moves frames both ways on a thread of its own until it leaves its `with` block."""

    left: Port
    right: Port
    seen: list[NetBuffer] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Relay:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        try:
            with select.epoll() as poll:
                ways = {}
                for port, other in ((self.left, self.right), (self.right, self.left)):
                    descriptor = port.fileno()
                    assert descriptor is not None
                    ways[descriptor] = (port, other)
                    poll.register(descriptor, select.EPOLLIN)
                while not self._stop.is_set():
                    for descriptor, _ in poll.poll(0.05):
                        port, other = ways[descriptor]
                        burst = port.receive_burst()
                        self.seen += burst
                        other.send_burst(burst)
        except BaseException as error:
            self.failures.append(error)


def transfer(client: socket.socket, server: socket.socket, address: tuple[str, int], payload: bytes) -> bytes:
    """Send `payload` over TCP from one socket to the other; give what arrived."""
    for one in (client, server):
        one.settimeout(10)
    server.bind(address)
    server.listen(1)
    received = bytearray()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(10)
            while part := connection.recv(1 << 20):
                received.extend(part)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    client.connect(address)
    client.sendall(payload)
    client.shutdown(socket.SHUT_WR)
    thread.join(20)
    return bytes(received)


def receive_until(port: Port, count: int, timeout_s: float = 3.0) -> list[NetBuffer]:
    """Take frames from a port until there are `count`, or time is up."""
    frames: list[NetBuffer] = []
    deadline = time.monotonic() + timeout_s
    while len(frames) < count and time.monotonic() < deadline:
        burst = port.receive_burst()
        frames += burst
        if not burst:
            time.sleep(0.005)
    return frames
