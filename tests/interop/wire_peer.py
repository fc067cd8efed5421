"""An adapter whose wire ends at the test: whatever stands behind it is played by an oracle.

host ── TAP ── adapter "card" ── wire: veth end ════ veth end ── the test, through a socket of its own
10.9.0.1                                                          10.9.1.1, 10.9.1.2 …: a peer for each case
fd09::1                                                           fd09:1::1, fd09:1::2 …
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from card import (
    ADDRESSES,
    LEFT,
    OUTER_ADDRESSES,
    RIGHT,
    Daemon,
    Host,
    Layer,
    adapter_line,
    associations,
    policy,
)
from namespaces import Namespaces
from oracles import Oracle, internet_checksum, is_ipv6, split
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw
from traffic import ETHERNET_LENGTH, is_sealed, spi_of

CARD = "card"
GATEWAYS = {version: ADDRESSES[RIGHT][version] for version in (4, 6)}
NETWORKS = {4: "10.9.1.0/24", 6: "fd09:1::/64"}
PEER_MAC = "02:00:00:00:09:02"
PORT = 7009
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_ETH_P_ALL = 3
_UDP = 17

ABOVE_32_BITS = 1 << 32
"""Where numbers of cases with ESN begin: every packet has an upper half of 1."""


@dataclass(frozen=True)
class Case:
    """One way to protect, which has a peer of its own."""

    name: str
    layers: tuple[Layer, ...]
    """Innermost first."""
    version: int
    outer_version: int
    esn: bool = False
    flags: str = ""


class Flow:
    """What host and one peer say to each other.

    Attributes:
        peer: its address.
        out, into: associations from and to the host, innermost first.
    """

    def __init__(self, case: Case, number: int) -> None:
        version, outer = case.version, case.outer_version
        self.version = version
        self.peer = f"10.9.1.{number}" if version == 4 else f"fd09:1::{number:x}"
        host = ADDRESSES[LEFT][version]
        near, far = OUTER_ADDRESSES[LEFT][outer], OUTER_ADDRESSES[RIGHT][outer]
        begin = ABOVE_32_BITS if case.esn else 0
        options = {"esn": case.esn, "last_number": begin, "flags": case.flags}
        self.out = associations(case.layers, host, self.peer, near, far, **options)
        self.into = associations(case.layers, self.peer, host, far, near, **options)
        self._numbers = {"out": count(begin + 1), "in": count(begin + 1)}
        self._host = host

    def number(self, direction: str) -> int:
        """The next sequence number of one way; both ends count for themselves."""
        return next(self._numbers[direction])

    def lines(self) -> Iterator[str]:
        """Lines of a batch that put it into force."""
        for direction, sas, ends in (
            ("out", self.out, (self._host, self.peer)),
            ("in", self.into, (self.peer, self._host)),
        ):
            yield from (sa.add(CARD, direction) for sa in sas)
            yield policy(CARD, direction, *ends, sas)


class WirePeer:
    """The adapter, its host, and the far end of its wire.

    Attributes:
        flows: by the name of their case.
    """

    def __init__(self, daemon: Daemon, namespaces: Namespaces, cases: Sequence[Case]) -> None:
        space, near, far = (namespaces.create(label, ipv6=label == "h") for label in ("h", "n", "f"))
        space.write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")
        devices = namespaces.veth(near, far)
        self.daemon = daemon
        self.host = Host(CARD, space, namespaces.device("h"), ADDRESSES[LEFT])
        daemon.batch(adapter_line(self.host, f"netdev {devices[0]} netns {near.name}"))
        for version, gateway in GATEWAYS.items():
            at = ("dev", self.host.device)
            space.ip("neighbour", "add", gateway, "lladdr", PEER_MAC, *at)
            space.ip("route", "add", NETWORKS[version], "via", gateway, *at)
        self.flows = {case.name: Flow(case, number) for number, case in enumerate(cases, 1)}
        daemon.batch(*(line for flow in self.flows.values() for line in flow.lines()))
        self._wire = far.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._wire.bind((devices[1], _ETH_P_ALL))
        self._wire.settimeout(0.1)
        self._sockets = {version: space.socket(_FAMILIES[version], socket.SOCK_DGRAM) for version in (4, 6)}
        for version, end in self._sockets.items():
            end.bind((self.host.addresses[version], PORT))
            end.settimeout(2)
        mac = daemon.adapter(CARD)["tap"]["mac"]
        self._macs = bytes.fromhex(mac.replace(":", "") + PEER_MAC.replace(":", ""))

    def close(self) -> None:
        for end in (self._wire, *self._sockets.values()):
            end.close()

    def exchange(self, name: str, oracle: Oracle, payload: bytes) -> None:
        """Let the host send a datagram that the oracle opens, and hear the answer that the oracle sealed.

        Raises:
            AssertionError: something did not arrive, or not as it was sent.
        """
        flow = self.flows[name]
        self.hear(flow, oracle, payload)
        self.answer(flow, oracle, payload[::-1])

    def hear(self, flow: Flow, oracle: Oracle, payload: bytes) -> None:
        """Let the host send a datagram, which the oracle opens."""
        self._sockets[flow.version].sendto(payload, (flow.peer, PORT))
        packet = oracle.open(flow.out, self.receive(flow.out[-1].spi), flow.number("out"))
        header, protocol, datagram = split(packet)
        assert protocol == _UDP
        assert datagram[8:] == payload
        ends = header[8:40] if is_ipv6(header) else header[12:20]
        # The pseudo header (RFC 768): a checksum that the host left open is complete before it is sealed.
        pseudo = ends + len(datagram).to_bytes(4, "big") + bytes((0, 0, 0, protocol))
        assert internet_checksum(pseudo + datagram) == 0

    def answer(self, flow: Flow, oracle: Oracle, payload: bytes) -> None:
        """Seal a datagram from the peer, which the host hears."""
        header = IP if flow.version == 4 else IPv6
        packet = header(src=flow.peer, dst=self.host.addresses[flow.version])
        packet /= UDP(sport=PORT, dport=PORT) / Raw(payload)
        self.send(oracle.seal(flow.into, bytes(packet), flow.number("in")))
        received, sender = self._sockets[flow.version].recvfrom(65_536)
        assert (received, sender[:2]) == (payload, (flow.peer, PORT))

    def receive(self, spi: int) -> bytes:
        """Give the next packet with this outermost SPI."""
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                frame = self._wire.recv(65_536)
                if is_sealed(frame) and spi_of(frame) == spi:
                    return frame[ETHERNET_LENGTH:]
        raise AssertionError(f"no packet with SPI {spi:#x}")

    def send(self, packet: bytes) -> None:
        """Put a packet on the wire, to the card."""
        kind = b"\x86\xdd" if is_ipv6(packet) else b"\x08\x00"
        self._wire.send(self._macs + kind + packet)

    def drops(self) -> dict[str, int]:
        """What the adapter dropped so far."""
        return self.daemon.drops(CARD)


@contextlib.contextmanager
def wire_peer(directory: Path, cases: Sequence[Case]) -> Iterator[WirePeer]:
    """An adapter with the flows of all cases, until the block ends."""
    namespaces = Namespaces()
    daemon = Daemon(directory)
    try:
        daemon.start()
        with contextlib.closing(WirePeer(daemon, namespaces, cases)) as peer:
            yield peer
    finally:
        daemon.close()
        namespaces.close()
