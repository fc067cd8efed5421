"""UdpPort: a wire of ESP in UDP between two addresses, over any IP network.

Law: carries ESP packets between its two ends and nothing else; what else the card sends ends here, counted.
An ordinary UDP socket: no raw socket, no device. The other end is where the settings say, or, if that is
allowed, where an authenticated packet newer than all before it came from.

    card   [ Ethernet | IP, local -> remote | ESP … ]      as every other wire
    socket                                  [ ESP … ]      payload of a datagram, local:port -> remote:port
    host   ARP, neighbour solicitation  ->  answered with the address of a gateway that is not there

Many datagrams of one size go and come in one call (UDP_SEGMENT, UDP_GRO).

Source: RFC 3948 §2.1-§2.3, §4 (keepalives); udp(7), include/uapi/linux/udp.h.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple, Protocol

from vnic.errors import PortError
from vnic.ipsec.drops import DropReason
from vnic.ndis.netbuffer import NetBuffer
from vnic.netlink.namespaces import run_in
from vnic.netlink.refusals import refusal, where
from vnic.packet.checksum import checksum
from vnic.packet.esp import ESP_HEADER_LENGTH
from vnic.packet.ethernet import ETHERNET_LENGTH
from vnic.packet.ip import ESP, IPV4_LENGTH, IPV6_LENGTH
from vnic.packet.neighbour import answer
from vnic.packet.udp import NAT_TRAVERSAL_PORT, UDP_LENGTH
from vnic.ports.base import BURST_BYTES, BURST_FRAMES, Counting, NativePort, PortCounters

GATEWAY = bytes.fromhex("02766e696300")
"""Ethernet address of everybody beyond the wire: locally administered, "vnic"."""

DEFAULT_KEEPALIVE_S = 20
"""RFC 3948 §4 (M)."""

LOOK_AT_PATH_S = 60.0
"""Seconds between two questions whether the path has grown: nothing fails by which that could be told."""

BUFFER_LENGTH = 8 << 20
"""Bytes the kernel may hold for the socket, each way."""

_BROADCAST = b"\xff" * 6
_SOL_UDP = 17
_UDP_SEGMENT = 103
_UDP_GRO = 104
_IP_MTU_DISCOVER = 10
_IP_MTU = 14
_IPV6_MTU_DISCOVER = 23
_IPV6_MTU = 24
_PMTUDISC_DO = 2
_IP_RECVTOS = 13
_SO_RCVBUFFORCE = 33
_SO_SNDBUFFORCE = 32

_Pair = tuple[bytes, bytes]

_INT = struct.Struct("i")
_U16 = struct.Struct("H")
_ANCILLARY_SPACE = 2 * socket.CMSG_SPACE(_INT.size)
_IPV4 = struct.Struct(">BBHHHBBH8s")
_IPV6 = struct.Struct(">IHBB32s")

_DATAGRAM_LIMIT = 65_536
_MAX_SEGMENTS = 64
"""UDP_MAX_SEGMENTS of the kernels that have the fewest."""
_MAX_PAYLOAD = 65_000
_HOP_LIMIT = 64
_LOOKS = 4
"""How often it is looked, in the time of a keepalive, whether one is due: it may come so much early."""
_KEEPALIVE = b"\xff"
_NO_SPI = bytes(4)

_READ_LOSS = DropReason.WIRE_RECEIVE.value
_WRITE_LOSS = DropReason.WIRE_WRITE.value
_NOT_ESP = DropReason.WIRE_NOT_ESP.value
_STRANGER = DropReason.WIRE_STRANGER.value
_IKE = DropReason.WIRE_IKE.value


@dataclass(frozen=True, slots=True)
class End:
    """One end of the wire."""

    address: IPv4Address | IPv6Address
    port: int = NAT_TRAVERSAL_PORT

    def __str__(self) -> str:
        address = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{address}:{self.port}"


class _Stranger(NamedTuple):
    """A packet that came from elsewhere and was handed to the card, to see whether it is genuine."""

    address: tuple[str, int]
    spi: int
    highest: int
    """The highest number authenticated on its SA before."""


class NativeSocket(NativePort, Protocol):
    """What the native engine has of the socket; see `vnic_native.UdpSocket`."""

    def set_peer(self, address: str, port: int) -> None: ...

    def set_host(self, mac: bytes) -> None: ...

    def take_not_esp(self) -> int: ...

    def take_strangers(self) -> int: ...

    def take_aside(self) -> list[tuple[bytearray, int, int, tuple[str, int]]]: ...


class UdpPort(Counting):
    """A UDP socket as a wire. Made by `open_udp`.

    Attributes:
        name, kind, mtu, counters: as for `Port`. `mtu` is the route's, less the UDP header.
        local, remote: the ends, as they were set; `remote` is also the address in the packets the card sees.
        netns: namespace of the socket; None is the daemon's own.
        native: as for `Counting`.
        peer: where datagrams go now.
        keepalive_s: seconds without a datagram after which a keepalive is sent; 0: never.
        follow: whether `peer` changes when authenticated packets come from elsewhere.
        highest: gives the highest number authenticated on an inbound ESP SA by its SPI, 0 if there is none;
            the owner sets it.
        on_mtu: hears that `mtu` has changed.
        on_peer: hears that `peer` has changed.
    """

    kind: str = "udp"
    read_loss = _READ_LOSS
    write_loss = _WRITE_LOSS

    def __init__(
        self,
        bound: socket.socket,
        probe: socket.socket,
        local: End,
        remote: End,
        *,
        netns: str | None = None,
        keepalive_s: int = DEFAULT_KEEPALIVE_S,
        follow: bool = False,
    ) -> None:
        """Take over two sockets made by `open_udp`: one bound, and one connected to `remote` that only tells
        what the kernel knows of the path."""
        super().__init__()
        self.name = f"udp:{remote}"
        self.local = local
        self.remote = remote
        self.netns = netns
        self.peer = remote
        self.follow = follow
        self.highest: Callable[[int], int] = lambda spi: 0
        self.on_mtu: Callable[[], None] = lambda: None
        self.on_peer: Callable[[], None] = lambda: None
        self._host_address = _BROADCAST
        self._socket = bound
        self._probe = probe
        self._ipv6 = local.address.version == 6
        self._peer_address = (str(remote.address), remote.port)
        self._outgoing = local.address.packed + remote.address.packed
        self._incoming = remote.address.packed + local.address.packed
        self._buffer = bytearray(_DATAGRAM_LIMIT)
        self._headers: dict[tuple[int, int], bytes] = {}
        self._answers: list[NetBuffer] = []
        self._held: tuple[list[NetBuffer], _Stranger] | None = None
        self._judged: _Stranger | None = None
        self._aside: deque[tuple[bytearray, int, int, tuple[str, int]]] = deque()
        self._native: NativeSocket | None = None
        self._wake: Callable[[], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._last_sent = self._loop.time()
        self._last_look = self._last_sent
        self._sent_before = 0
        self.keepalive_s = keepalive_s
        self._timer: asyncio.TimerHandle | None = None
        self.mtu = self._path_mtu()
        self._looking = self._loop.call_later(LOOK_AT_PATH_S, self._look_again)
        if keepalive_s:
            self._keep_alive()

    def fileno(self) -> int | None:
        descriptor = self._socket.fileno()
        return descriptor if descriptor >= 0 else None

    def set_wake(self, wake: Callable[[], None] | None) -> None:
        self._wake = wake
        if wake is not None and (self._answers or self._held or self._aside):
            wake()

    def use_native(self, make: Callable[[int, _Pair, tuple[str, int], _Pair, bool], NativeSocket]) -> None:
        """Let the native engine read and write the socket too."""
        descriptor = self.fileno()
        if descriptor is not None:
            ends = self.local.address.packed, self.remote.address.packed
            addresses = self._host_address, GATEWAY
            self._native = make(descriptor, ends, self._peer_address, addresses, self.follow)
            self.native = self._native

    def is_quiet(self) -> bool:
        self._judge()
        return not (self._answers or self._held or self._aside)

    def fail(self, code: int) -> None:
        """Hear of an errno that the native engine met here.

        Raises:
            PortError: the socket is closed.
        """
        if code in (errno.EBADF, errno.ENOTSOCK):
            raise PortError(f"wire {self.name}{where(self.netns)} is closed")
        if code in (errno.EMSGSIZE, errno.EINVAL):
            self._look_at_path()
        if self._native is not None and code == errno.ENOMSG:
            # What it put aside: strangers, keepalives, IKE.
            self._aside += self._native.take_aside()
            self._wake_soon()

    @property
    def counters(self) -> PortCounters:
        if self._native is not None:
            self._lose(_NOT_ESP, self._native.take_not_esp())
            self._lose(_STRANGER, self._native.take_strangers())
        return super().counters

    def use_host_address(self, mac: bytes) -> None:
        """Send frames for the card to this Ethernet address, six bytes: that of the host. What the host sends
        tells it too."""
        if mac != self._host_address:
            self._host_address = mac
            self._headers.clear()
            if self._native is not None:
                self._native.set_host(mac)

    # ------------------------------------------------------------------------------- from the network

    def has_room(self) -> bool:
        return True

    def receive_burst(self) -> list[NetBuffer]:
        self._judge()
        burst, self._answers = self._answers, []
        if self._held is not None:
            # Alone, so that what moves the SA's number is this packet and no other.
            if burst:
                self._wake_soon()
                return burst
            (burst, stranger), self._held = self._held, None
            self._judged = stranger._replace(highest=self.highest(stranger.spi))
            self._wake_soon()
            self._count(burst)
            return burst
        while self._aside and self._held is None and len(burst) < BURST_FRAMES:
            data, size, tos, sender = self._aside.popleft()
            self._take(self._frames(data, size, tos), sender, burst)
        if self._aside:
            self._wake_soon()
        received = 0
        # What is of no use counts too: whoever floods the port with it must not keep the loop here.
        for _ in range(BURST_FRAMES):
            if self._held or len(burst) >= BURST_FRAMES or received >= BURST_BYTES:
                break
            try:
                length, ancillary, flags, address = self._socket.recvmsg_into(
                    [self._buffer], _ANCILLARY_SPACE
                )
            except BlockingIOError:
                break
            except OSError as error:
                # An ICMP error that the peer's side sent: the datagrams it is about are lost, no more.
                if error.errno in (errno.EBADF, errno.ENOTSOCK):
                    raise PortError(f"wire {self.name}{where(self.netns)} is closed") from error
                self._lose(_READ_LOSS)
                continue
            received += length
            if flags & socket.MSG_TRUNC:
                self._lose(_READ_LOSS)
                continue
            size, tos = _told(length, ancillary)
            self._take(self._frames(self._buffer[:length], size, tos), address[:2], burst)
        self._count(burst)
        return burst

    def _take(self, frames: list[NetBuffer], sender: tuple[str, int], burst: list[NetBuffer]) -> None:
        """Put frames into the burst, or hold what a stranger sent, or drop it."""
        if sender == self._peer_address:
            burst += frames
        elif not self.follow or not frames:
            self._lose(_STRANGER, max(len(frames), 1))
        else:
            spi = int.from_bytes(frames[0].frame[self._front : self._front + 4], "big")
            self._held = (frames, _Stranger(sender, spi, 0))
            self._wake_soon()

    def _count(self, burst: list[NetBuffer]) -> None:
        counters = self._counters
        counters.rx_frames += len(burst)
        counters.rx_bytes += sum(len(buffer.frame) for buffer in burst)

    @property
    def _front(self) -> int:
        """Bytes in front of ESP in a frame for the card."""
        return ETHERNET_LENGTH + (IPV6_LENGTH if self._ipv6 else IPV4_LENGTH)

    def _frames(self, data: bytearray, size: int, tos: int) -> list[NetBuffer]:
        """The ESP packets of one or more datagrams of one size, as frames."""
        frames: list[NetBuffer] = []
        for start in range(0, len(data), max(size, 1)):
            datagram = data[start : start + size]
            if len(datagram) < ESP_HEADER_LENGTH or datagram.startswith(_NO_SPI):
                if datagram != _KEEPALIVE:
                    self._lose(_IKE if datagram.startswith(_NO_SPI) else _NOT_ESP)
                continue
            datagram[:0] = self._header(len(datagram), tos)
            frames.append(NetBuffer(datagram))
        return frames

    def _header(self, length: int, tos: int) -> bytes:
        """Ethernet and IP header in front of so much ESP."""
        header = self._headers.get((length, tos))
        if header is None:
            if len(self._headers) >= 1024:
                self._headers.clear()
            ethernet = self._host_address + GATEWAY
            if self._ipv6:
                packed = _IPV6.pack(6 << 28 | tos << 20, length, ESP, _HOP_LIMIT, self._incoming)
                header = ethernet + b"\x86\xdd" + packed
            else:
                fields = (0x45, tos, IPV4_LENGTH + length, 0, 0x4000, _HOP_LIMIT, ESP)
                value = checksum(_IPV4.pack(*fields, 0, self._incoming))
                header = ethernet + b"\x08\x00" + _IPV4.pack(*fields, value, self._incoming)
            self._headers[length, tos] = header
        return header

    def _judge(self) -> None:
        """Go where the stranger is, if what it sent was the newest authenticated packet of its SA."""
        judged, self._judged = self._judged, None
        if judged is None or self.highest(judged.spi) <= judged.highest:
            return
        self._peer_address = judged.address
        self.peer = End(type(self.local.address)(judged.address[0]), judged.address[1])
        if self._native is not None:
            self._native.set_peer(*judged.address)
        self.on_peer()
        self._look_at_path()

    # --------------------------------------------------------------------------------- to the network

    def send_burst(self, burst: list[NetBuffer]) -> None:
        self._judge()
        run: list[memoryview] = []
        size = total = tos = 0
        for buffer in burst:
            frame = buffer.frame
            found = self._esp_of(frame)
            if found is None:
                self._answer(frame)
                continue
            packet, its_tos = found
            length = len(packet)
            if run and (
                length > size
                or its_tos != tos
                or len(run) == _MAX_SEGMENTS
                or total + length > _MAX_PAYLOAD
                or len(run[-1]) < size
            ):
                self._send(run, size, tos)
                run = []
            if not run:
                size, tos, total = length, its_tos, 0
            run.append(packet)
            total += length
        if run:
            self._send(run, size, tos)

    def _esp_of(self, frame: bytearray) -> tuple[memoryview, int] | None:
        """The ESP packet of a frame between the two ends, and its traffic class."""
        if self._ipv6:
            end = self._front + (frame[18] << 8 | frame[19]) if len(frame) > self._front else 0
            fits = (
                frame[12:14] == b"\x86\xdd" and frame[20] == ESP and frame[22:54] == self._outgoing
                if self._front + ESP_HEADER_LENGTH <= end <= len(frame)
                else False
            )
            tos = (frame[14] & 0x0F) << 4 | frame[15] >> 4 if fits else 0
        else:
            end = ETHERNET_LENGTH + (frame[16] << 8 | frame[17]) if len(frame) > self._front else 0
            fits = (
                frame[12:15] == b"\x08\x00\x45"
                and frame[23] == ESP
                and frame[26:34] == self._outgoing
                # Neither a fragment nor followed by one.
                and not (frame[20] & 0x3F or frame[21])
                if self._front + ESP_HEADER_LENGTH <= end <= len(frame)
                else False
            )
            tos = frame[15] if fits else 0
        return (memoryview(frame)[self._front : end], tos) if fits else None

    def _answer(self, frame: bytearray) -> None:
        """Be the neighbour that the host asks for; all else cannot go this way."""
        reply = answer(frame, GATEWAY)
        host_address = bytes(frame[6:12])
        if len(host_address) == 6:
            self.use_host_address(host_address)
        if reply is None:
            self._lose(_NOT_ESP)
            return
        if len(self._answers) < BURST_FRAMES:
            self._answers.append(NetBuffer(reply))
            self._wake_soon()

    def _send(self, run: list[memoryview], size: int, tos: int) -> None:
        """Send datagrams, all but the last of one size, in one call."""
        ancillary: list[tuple[int, int, bytes]] = []
        if len(run) > 1:
            ancillary.append((_SOL_UDP, _UDP_SEGMENT, _U16.pack(size)))
        if tos and self._ipv6:
            ancillary.append((socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _INT.pack(tos)))
        elif tos:
            ancillary.append((socket.IPPROTO_IP, socket.IP_TOS, _INT.pack(tos)))
        try:
            self._socket.sendmsg(run, ancillary, 0, self._peer_address)
        except OSError as error:
            if error.errno in (errno.EBADF, errno.ENOTSOCK):
                raise PortError(f"wire {self.name}{where(self.netns)} is closed") from error
            # EAGAIN, ENOBUFS: no room. ECONNREFUSED, EHOSTUNREACH: the network said so of an earlier one.
            self._lose(_WRITE_LOSS, len(run))
            if error.errno in (errno.EMSGSIZE, errno.EINVAL):
                self._look_at_path()
            return
        self._last_sent = self._loop.time()
        self._counters.tx_frames += len(run)
        self._counters.tx_bytes += sum(len(one) for one in run) + len(run) * self._front

    def _keep_alive(self) -> None:
        """Have a NAT on the way keep its mapping, when nothing else did (RFC 3948 §4)."""
        now = self._loop.time()
        sent = self.counters.tx_frames
        if sent != self._sent_before:
            # Some may be the native engine's, which keeps no time: each was sent after the last look.
            self._sent_before = sent
            self._last_sent = max(self._last_sent, self._last_look)
        self._last_look = now
        wait = self._last_sent + self.keepalive_s - now
        if wait <= 0:
            with contextlib.suppress(OSError):
                self._socket.sendto(_KEEPALIVE, self._peer_address)
            self._last_sent = now
            wait = self.keepalive_s
        self._timer = self._loop.call_later(min(wait, self.keepalive_s / _LOOKS), self._keep_alive)

    # ------------------------------------------------------------------------------------ the rest

    def _path_mtu(self) -> int:
        """Largest IP packet of the card that fits the route as the kernel knows it."""
        level, option = (socket.IPPROTO_IPV6, _IPV6_MTU) if self._ipv6 else (socket.IPPROTO_IP, _IP_MTU)
        try:
            return self._probe.getsockopt(level, option) - UDP_LENGTH
        except OSError:
            return (1280 if self._ipv6 else 576) - UDP_LENGTH

    def _look_again(self) -> None:
        self._look_at_path()
        self._looking = self._loop.call_later(LOOK_AT_PATH_S, self._look_again)

    def _look_at_path(self) -> None:
        """Have the kernel find the route anew, as it is now, and see what it takes."""
        # A connected socket keeps the route it found, and hears of no ICMP that is about another socket.
        with contextlib.suppress(OSError):
            self._probe.connect(self._peer_address)
        mtu = self._path_mtu()
        if mtu != self.mtu:
            self.mtu = mtu
            self.on_mtu()

    def _wake_soon(self) -> None:
        if self._wake is not None:
            self._wake()

    def share(self) -> socket.socket:
        """Give its socket once more, for the caller to close."""
        return self._socket.dup()

    def features(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        self._looking.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._close_native()
        self._native = None
        self._socket.close()
        self._probe.close()


def _told(length: int, ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int]:
    """Bytes of each datagram, and traffic class, as the kernel tells them beside what it gives."""
    size, tos = length, 0
    for level, kind, data in ancillary:
        if level == _SOL_UDP and kind == _UDP_GRO:
            size = _INT.unpack(data[:4])[0]
        else:
            # IP_TOS is one byte, IPV6_TCLASS an int; little or big, one of its bytes is not zero.
            tos = max(data, default=0)
    return size, tos


async def open_udp(
    local: End,
    remote: End,
    *,
    netns: str | None = None,
    keepalive_s: int = DEFAULT_KEEPALIVE_S,
    follow: bool = False,
    old: UdpPort | None = None,
) -> UdpPort:
    """Open a UDP socket as a wire.

    Args:
        local: address and port to bind.
        remote: the other end, of the same family.
        netns: name of the namespace to open it in; None is the daemon's own.
        keepalive_s: seconds without a datagram after which a keepalive is sent; 0: never.
        follow: see `UdpPort`.
        old: a wire that this one is to take the place of. With the same local end both read one socket until
            the caller closes `old`.

    Raises:
        RequestError: `netns` cannot be a name.
        PortError: the address is not this host's, the port is in use, there is no route, or not allowed.
    """
    bound, probe = await run_in(netns, partial(_open_sockets, local, remote, netns, old), discard=_close)
    try:
        return UdpPort(bound, probe, local, remote, netns=netns, keepalive_s=keepalive_s, follow=follow)
    except BaseException:
        _close((bound, probe))
        raise


def _close(sockets: tuple[socket.socket, socket.socket]) -> None:
    for one in sockets:
        one.close()


def _open_sockets(
    local: End, remote: End, netns: str | None, old: UdpPort | None
) -> tuple[socket.socket, socket.socket]:
    """Make both sockets in the namespace of the calling thread."""
    hints = {
        errno.EADDRNOTAVAIL: f"give {local.address} to a device there first (`ip address add`)",
        errno.EADDRINUSE: f"another program has UDP port {local.port} there (an IKE daemon?): choose another",
        errno.ENETUNREACH: f"there is no route to {remote.address}",
    }
    action = f"open UDP {local} to {remote}{where(netns)}"
    family = socket.AF_INET6 if local.address.version == 6 else socket.AF_INET
    opened: list[socket.socket] = []
    try:
        for _ in range(2):
            opened.append(socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
        bound, probe = opened
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            for one in opened:
                one.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DO)
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        else:
            for one in opened:
                one.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
            bound.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
        with contextlib.suppress(OSError):  # before Linux 5.0 datagrams come one by one
            bound.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        for force, limited in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                bound.setsockopt(socket.SOL_SOCKET, force, BUFFER_LENGTH)
            except PermissionError:
                bound.setsockopt(socket.SOL_SOCKET, limited, BUFFER_LENGTH)
        try:
            bound.bind((str(local.address), local.port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or old is None or (old.local, old.netns) != (local, netns):
                raise
            bound.close()
            opened[0] = bound = old.share()
        probe.bind((str(local.address), 0))
        probe.connect((str(remote.address), remote.port))
    except OSError as error:
        for one in opened:
            one.close()
        raise refusal(action, error, hint=hints.get(error.errno or 0, "")) from error
    except BaseException:
        for one in opened:
            one.close()
        raise
    return bound, probe
