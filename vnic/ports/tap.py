"""TapPort: the host side of the card, a TAP device with virtio-net headers.

Law: one read or write per frame, which with TSO is up to 64 KiB of TCP; what this port made goes when its
descriptor goes, so that not even SIGKILL leaves a device behind.

Every frame on the descriptor is preceded by a header: [virtio_net_hdr 10 | Ethernet frame].

Source: Linux Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from vnic.errors import PortError, RequestError
from vnic.ipsec.drops import DropReason
from vnic.ndis.netbuffer import NetBuffer
from vnic.netlink import links
from vnic.netlink.namespaces import run_in
from vnic.netlink.refusals import refusal, where
from vnic.packet.vnet import PLAIN, VNET_HEADER_LENGTH, VnetHeader
from vnic.ports.base import BURST_BYTES, BURST_FRAMES, Counting
from vnic.ports.offloads import OFFLOADS, ON, check_offloads, off

_CLONE_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_TUNGETIFF = 0x800454D2
_TUNSETVNETHDRSZ = 0x400454D8
_TUNSETVNETLE = 0x400454DC
_SIOCSIFTXQLEN = 0x8943
_IFF_TAP = 0x0002
_IFF_MULTI_QUEUE = 0x0100
_IFF_PERSIST = 0x0800
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFREQ = struct.Struct("16sH22x")
_IFREQ_NUMBER = struct.Struct("16si20x")
_INT = struct.Struct("i")

_BUFFER_LENGTH = 65_536 + 256
"""The kernel caps gso_max_size of a TAP at 65,536; Ethernet header and tags come on top."""

_GONE = frozenset((errno.EBADFD, errno.EBADF, errno.ENODEV, errno.ENXIO))
"""Errors after which the descriptor has no device; every other one costs one frame."""

QUEUE_LENGTH = 4096
"""Frames that a queue made here holds until they are read: 300,000 small ones a second for the 13 ms that a
busy processor may keep us waiting. The kernel's 1,000 lose some from 100,000 a second on."""

MAX_QUEUES = 16
"""Queues of one TAP at the most."""

_FLOW_MODULUS = 65_521
"""The largest 16-bit prime."""
_IPV4 = b"\x08\x00\x45"  # type, and a header without options
_IPV6 = b"\x86\xdd"
_WITH_PORTS = (6, 17)  # TCP, UDP
_IPV4_FLOW_ENDS, _IPV6_FLOW_ENDS = 38, 58
"""Bytes of the shortest frame that shows addresses and ports."""

_PLAIN_HEADER = PLAIN.emit()
_READ_LOSS = DropReason.TAP_RECEIVE.value
_WRITE_LOSS = DropReason.TAP_WRITE.value


class TapPort(Counting):
    """A TAP device, as a Port. Made by `open_tap`.

    With several queues the kernel keeps the packets of a flow in one of them, the one its answers were
    written to; reading begins with another queue each time, and frames of one flow are written to one queue.

    Attributes:
        name, kind, mtu, counters: as for `Port`.
        native: as for `Counting`.
        netns: namespace the device was opened in; None is the daemon's own.
        attached: the device was there before and stays after `close`.
    """

    kind: str = "tap"
    read_loss = _READ_LOSS
    write_loss = _WRITE_LOSS

    def __init__(
        self,
        descriptors: Sequence[int],
        name: str,
        *,
        mtu: int,
        features: dict[str, str],
        netns: str | None = None,
        attached: bool = False,
    ) -> None:
        """Take over `descriptors`, one a queue: a non-blocking TAP with 10-byte little-endian virtio-net
        headers."""
        super().__init__()
        self.name = name
        self.mtu = mtu
        self.netns = netns
        self.attached = attached
        self._descriptors = tuple(descriptors)
        self._first = 0
        self._poll: select.epoll | None = None
        if len(self._descriptors) > 1:
            self._poll = select.epoll()
            for descriptor in self._descriptors:
                self._poll.register(descriptor, select.EPOLLIN)
        self._features = features
        self._header = bytearray(VNET_HEADER_LENGTH)
        self._buffer = bytearray(_BUFFER_LENGTH)

    @property
    def queues(self) -> int:
        """How many queues the device is read and written through; 0 when it is closed."""
        return len(self._descriptors)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors of the queues; none when it is closed."""
        return self._descriptors

    def fileno(self) -> int | None:
        if self._poll is not None:
            return self._poll.fileno()
        return self._descriptors[0] if self._descriptors else None

    def set_wake(self, wake: Callable[[], None] | None) -> None:
        """Do nothing: the descriptor is the signal."""

    def has_room(self) -> bool:
        return True

    def receive_burst(self) -> list[NetBuffer]:
        burst: list[NetBuffer] = []
        received_bytes = 0
        descriptors = self._descriptors
        if not descriptors:
            raise PortError(f"TAP {self.name}{where(self.netns)} is closed")
        count = len(descriptors)
        first = self._first
        for turn in range(count):
            descriptor = descriptors[(first + turn) % count]
            received_bytes = self._read(descriptor, burst, received_bytes)
            if len(burst) >= BURST_FRAMES or received_bytes >= BURST_BYTES:
                break
        self._first = (first + 1) % count
        counters = self._counters
        counters.rx_frames += len(burst)
        counters.rx_bytes += received_bytes
        return burst

    def _read(self, descriptor: int, burst: list[NetBuffer], received_bytes: int) -> int:
        """Read one queue until it is empty or the burst is full; give the bytes of the burst."""
        header = self._header
        buffer = self._buffer
        into = [header, buffer]
        readv = os.readv
        parse = VnetHeader.parse
        append = burst.append
        try:
            for _ in range(BURST_FRAMES - len(burst)):
                length = readv(descriptor, into) - VNET_HEADER_LENGTH
                if length >= _BUFFER_LENGTH:
                    self._lose(_READ_LOSS)
                    continue
                received_bytes += length
                # Flags and GSO type both zero: a complete frame, whatever the other fields say.
                plain = header[0] == 0 and header[1] == 0
                append(NetBuffer(buffer[:length], None if plain else parse(header)))
                if received_bytes >= BURST_BYTES:
                    break
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in _GONE:
                raise self._removed(error) from error
            self._lose(_READ_LOSS)
        return received_bytes

    def send_burst(self, burst: list[NetBuffer]) -> None:
        descriptors = self._descriptors
        if not descriptors:
            raise PortError(f"TAP {self.name}{where(self.netns)} is closed")
        descriptor = descriptors[0]
        count = len(descriptors)
        writev = os.writev
        counters = self._counters
        for buffer in burst:
            vnet = buffer.vnet
            frame = buffer.frame
            if count > 1:
                descriptor = descriptors[flow_number(frame) % count]
            try:
                writev(descriptor, (_PLAIN_HEADER if vnet is None else vnet.emit(), frame))
            except OSError as error:
                if error.errno in _GONE:
                    raise self._removed(error) from error
                # EIO: the device is down. EINVAL: no frame, or a GSO type this kernel does not know.
                # EAGAIN, ENOBUFS: no room.
                self._lose(_WRITE_LOSS)
            else:
                counters.tx_frames += 1
                counters.tx_bytes += len(frame)

    def fail(self, code: int) -> None:
        """Hear of an errno that the native engine met here.

        Raises:
            PortError: it says that the device is gone.
        """
        error = OSError(code, os.strerror(code))
        raise self._removed(error) from error

    def features(self) -> dict[str, str]:
        return dict(self._features)

    def close(self) -> None:
        self._close_native()
        descriptors, self._descriptors = self._descriptors, ()
        if self._poll is not None:
            self._poll.close()
            self._poll = None
        if descriptors and self.attached:
            # The next program may not read virtio-net headers: it must not be handed half-done frames.
            with contextlib.suppress(OSError):
                fcntl.ioctl(descriptors[0], _TUNSETOFFLOAD, 0)
        for descriptor in descriptors:
            os.close(descriptor)

    def _removed(self, error: OSError) -> PortError:
        hint = "somebody removed the device; delete the adapter and add it again"
        return refusal(f"use TAP {self.name}{where(self.netns)} any longer", error, hint=hint)


def flow_number(frame: bytes | bytearray) -> int:
    """Give a number that all packets of one flow share: its addresses and ports as one big-endian number,
    modulo 65,521; 0 for a frame that shows no flow. Neighbouring flows get neighbouring numbers.

    Packets with IPv4 options or IPv6 extension headers, and fragments, show addresses alone.
    """
    kind = frame[12:15]
    if kind == _IPV4 and len(frame) >= _IPV4_FLOW_ENDS:
        fragment = frame[20] & 0x3F or frame[21]
        flow = frame[26 : 38 if frame[23] in _WITH_PORTS and not fragment else 34]
    elif kind[:2] == _IPV6 and len(frame) >= _IPV6_FLOW_ENDS:
        flow = frame[22 : 58 if frame[20] in _WITH_PORTS else 54]
    else:
        return 0
    return int.from_bytes(flow, "big") % _FLOW_MODULUS


async def open_tap(
    name: str,
    *,
    netns: str | None = None,
    mac: str | None = None,
    mtu: int | None = None,
    addresses: Sequence[str] = (),
    features_off: Iterable[str] = (),
    queues: int = 1,
) -> TapPort:
    """Create a TAP, or attach to a persistent one of that name, set it up and bring it up.

    A TAP made here is not persistent: it disappears when its descriptor closes, however the program ends.
    One that existed stays, with the settings given here.

    Args:
        name: device name, taken exactly.
        netns: name of the namespace to make it in; None is the daemon's own.
        mac, mtu, addresses: as for `links.configure`; None leaves what the device has.
        features_off: offloads not to ask the kernel for, by ethtool name (`offloads.OFFLOADS`).
        queues: descriptors the device is read and written through, at most MAX_QUEUES; more than one makes it
            a multi-queue TAP (IFF_MULTI_QUEUE), and a persistent one must have been made so.

    Raises:
        RequestError: a value that no TAP can have.
        PortError: the name belongs to another kind of device or is in use, or the kernel refused; nothing
            stays behind.
    """
    unwanted = check_offloads(features_off)
    check_queues(queues)
    existing = await links.lookup(name, netns)
    if existing is not None and not existing.tap:
        raise PortError(
            f"{name}{where(netns)} exists and is no TAP but {_article(existing)}; choose another name"
        )
    device = await run_in(netns, partial(_open_device, name, where(netns), queues), discard=_Device.close)
    try:
        if existing is not None and not device.attached:
            raise PortError(f"TAP {name}{where(netns)} is in use; choose another name")
        port = TapPort(
            device.descriptors,
            name,
            mtu=0,
            features=_probe(device.descriptors[0], unwanted),
            netns=netns,
            attached=device.attached,
        )
    except BaseException:
        device.close()
        raise
    try:
        link = await links.configure(name, netns=netns, mac=mac, mtu=mtu, addresses=addresses, up=True)
    except BaseException:
        port.close()
        raise
    port.mtu = link.mtu
    return port


def check_queues(queues: int) -> None:
    """Refuse a number of queues that no TAP has.

    Raises:
        RequestError: it is out of range.
    """
    if not 1 <= queues <= MAX_QUEUES:
        raise RequestError(
            "a TAP does not have so many queues",
            field="queues",
            value=str(queues)[:64],
            allowed=f"1 to {MAX_QUEUES}",
        )


class _Device(NamedTuple):
    descriptors: list[int]
    attached: bool

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


def _article(link: links.Link) -> str:
    return "a TUN" if link.kind == "tun" else f"of kind {link.kind}" if link.kind else "a hardware device"


def _open_device(name: str, place: str, queues: int) -> _Device:
    """Open or make the TAP in the namespace of the calling thread."""
    descriptors: list[int] = []
    try:
        for _ in range(queues):
            attached = _open_queue(name, place, descriptors, multi=queues > 1)
        if not attached:
            _lengthen(name)
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return _Device(descriptors, attached)


def _lengthen(name: str) -> None:
    """Give the queues of a TAP their length; where that is refused, the kernel's own does."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        fcntl.ioctl(channel, _SIOCSIFTXQLEN, _IFREQ_NUMBER.pack(os.fsencode(name), QUEUE_LENGTH))


def _open_queue(name: str, place: str, descriptors: list[int], *, multi: bool) -> bool:
    """Open one more queue into `descriptors`; give whether the device is persistent."""
    action = f"open {_CLONE_DEVICE} for TAP {name}{place}"
    hints = {
        errno.ENOENT: "load the driver: `modprobe tun`",
        errno.ENODEV: "load the driver: `modprobe tun`",
    }
    try:
        descriptor = os.open(_CLONE_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise refusal(action, error, hint=hints.get(error.errno or 0, "")) from error
    descriptors.append(descriptor)
    action = f"open TAP {name}{place}"
    made = "with multi_queue and without pi" if multi else "without multi_queue and pi"
    hints = {
        errno.EINVAL: f"a persistent TAP must be made {made}",
        errno.EPERM: "it needs CAP_NET_ADMIN, and a persistent TAP belongs to the user it was made for",
        errno.E2BIG: "it has as many queues as it can have",
    }
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if multi else 0)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(os.fsencode(name), flags))
        fcntl.ioctl(descriptor, _TUNSETVNETHDRSZ, _INT.pack(VNET_HEADER_LENGTH))
        fcntl.ioctl(descriptor, _TUNSETVNETLE, _INT.pack(1))
        # A device with one queue that is in use refuses a second opener with EBUSY, so one that let us in is
        # either persistent or of our own making: no other look can be as sure.
        flags = _IFREQ.unpack(fcntl.ioctl(descriptor, _TUNGETIFF, bytes(_IFREQ.size)))[1]
    except OSError as error:
        raise refusal(action, error, hint=hints.get(error.errno or 0, "")) from error
    return bool(flags & _IFF_PERSIST)


def _probe(descriptor: int, unwanted: frozenset[str]) -> dict[str, str]:
    """Switch the offloads on one by one and tell the state of each; one refused leaves the others."""
    granted = 0
    states: dict[str, str] = {}
    for offload in OFFLOADS:
        if offload.name in unwanted:
            states[offload.name] = off("switched off by configuration")
        elif offload.needs and not any(states[need] == ON for need in offload.needs):
            states[offload.name] = off(f"needs {' or '.join(offload.needs)}")
        else:
            try:
                fcntl.ioctl(descriptor, _TUNSETOFFLOAD, granted | offload.tun_bits)
            except OSError as error:
                code = errno.errorcode.get(error.errno or 0, str(error.errno))
                states[offload.name] = off(f"the kernel refused it ({code})")
            else:
                granted |= offload.tun_bits
                states[offload.name] = ON
    if not granted:
        # A persistent device may still hold what its last user asked for.
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, _TUNSETOFFLOAD, 0)
    return states
