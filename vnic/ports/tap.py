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
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from vnic.errors import PortError
from vnic.ipsec.drops import DropReason
from vnic.ndis.netbuffer import NetBuffer
from vnic.netlink import links
from vnic.netlink.namespaces import run_in
from vnic.netlink.refusals import refusal, where
from vnic.packet.vnet import PLAIN, VNET_HEADER_LENGTH, VnetHeader
from vnic.ports.base import BURST_BYTES, BURST_FRAMES, PortCounters
from vnic.ports.offloads import OFFLOADS, ON, check_offloads, off

_CLONE_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_TUNGETIFF = 0x800454D2
_TUNSETVNETHDRSZ = 0x400454D8
_TUNSETVNETLE = 0x400454DC
_IFF_TAP = 0x0002
_IFF_PERSIST = 0x0800
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFREQ = struct.Struct("16sH22x")
_INT = struct.Struct("i")

_BUFFER_LENGTH = 65_536 + 256
"""The kernel caps gso_max_size of a TAP at 65,536; Ethernet header and tags come on top."""

_GONE = frozenset((errno.EBADFD, errno.EBADF, errno.ENODEV, errno.ENXIO))
"""Errors after which the descriptor has no device; every other one costs one frame."""

_PLAIN_HEADER = PLAIN.emit()
_READ_LOSS = DropReason.TAP_RECEIVE.value
_WRITE_LOSS = DropReason.TAP_WRITE.value


class TapPort:
    """A TAP device, as a Port. Made by `open_tap`.

    Attributes:
        name, kind, mtu, counters: as for `Port`.
        netns: namespace the device was opened in; None is the daemon's own.
        attached: the device was there before and stays after `close`.
    """

    kind: str = "tap"

    def __init__(
        self,
        descriptor: int,
        name: str,
        *,
        mtu: int,
        features: dict[str, str],
        netns: str | None = None,
        attached: bool = False,
    ) -> None:
        """Take over `descriptor`, a non-blocking TAP with a 10-byte little-endian virtio-net header."""
        self.name = name
        self.mtu = mtu
        self.netns = netns
        self.attached = attached
        self.counters = PortCounters()
        self._descriptor = descriptor
        self._features = features
        self._header = bytearray(VNET_HEADER_LENGTH)
        self._buffer = bytearray(_BUFFER_LENGTH)

    def fileno(self) -> int | None:
        return self._descriptor if self._descriptor >= 0 else None

    def set_wake(self, wake: Callable[[], None] | None) -> None:
        """Do nothing: the descriptor is the signal."""

    def receive_burst(self) -> list[NetBuffer]:
        descriptor = self._descriptor
        header = self._header
        buffer = self._buffer
        into = [header, buffer]
        readv = os.readv
        parse = VnetHeader.parse
        burst: list[NetBuffer] = []
        append = burst.append
        received_bytes = 0
        try:
            for _ in range(BURST_FRAMES):
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
        counters = self.counters
        counters.rx_frames += len(burst)
        counters.rx_bytes += received_bytes
        return burst

    def send_burst(self, burst: list[NetBuffer]) -> None:
        descriptor = self._descriptor
        writev = os.writev
        counters = self.counters
        for buffer in burst:
            vnet = buffer.vnet
            frame = buffer.frame
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

    def features(self) -> dict[str, str]:
        return dict(self._features)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        if self.attached:
            # The next program may not read virtio-net headers: it must not be handed half-done frames.
            with contextlib.suppress(OSError):
                fcntl.ioctl(descriptor, _TUNSETOFFLOAD, 0)
        os.close(descriptor)

    def _lose(self, reason: str) -> None:
        drops = self.counters.drops
        drops[reason] = drops.get(reason, 0) + 1

    def _removed(self, error: OSError) -> PortError:
        if self._descriptor < 0:
            return PortError(f"TAP {self.name}{where(self.netns)} is closed")
        hint = "somebody removed the device; delete the adapter and add it again"
        return refusal(f"use TAP {self.name}{where(self.netns)} any longer", error, hint=hint)


async def open_tap(
    name: str,
    *,
    netns: str | None = None,
    mac: str | None = None,
    mtu: int | None = None,
    addresses: Sequence[str] = (),
    features_off: Iterable[str] = (),
) -> TapPort:
    """Create a TAP, or attach to a persistent one of that name, set it up and bring it up.

    A TAP made here is not persistent: it disappears when its descriptor closes, however the program ends.
    One that existed stays, with the settings given here.

    Args:
        name: device name, taken exactly.
        netns: name of the namespace to make it in; None is the daemon's own.
        mac, mtu, addresses: as for `links.configure`; None leaves what the device has.
        features_off: offloads not to ask the kernel for, by ethtool name (`offloads.OFFLOADS`).

    Raises:
        RequestError: a value that no TAP can have.
        PortError: the name belongs to another kind of device or is in use, or the kernel refused; nothing
            stays behind.
    """
    unwanted = check_offloads(features_off)
    existing = await links.lookup(name, netns)
    if existing is not None and not existing.tap:
        raise PortError(
            f"{name}{where(netns)} exists and is no TAP but {_article(existing)}; choose another name"
        )
    device = await run_in(netns, partial(_open_device, name, where(netns)), discard=_Device.close)
    try:
        port = TapPort(
            device.descriptor,
            name,
            mtu=0,
            features=_probe(device.descriptor, unwanted),
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


class _Device(NamedTuple):
    descriptor: int
    attached: bool

    def close(self) -> None:
        os.close(self.descriptor)


def _article(link: links.Link) -> str:
    return "a TUN" if link.kind == "tun" else f"of kind {link.kind}" if link.kind else "a hardware device"


def _open_device(name: str, place: str) -> _Device:
    """Open or make the TAP in the namespace of the calling thread."""
    action = f"open {_CLONE_DEVICE} for TAP {name}{place}"
    hints = {
        errno.ENOENT: "load the driver: `modprobe tun`",
        errno.ENODEV: "load the driver: `modprobe tun`",
    }
    try:
        descriptor = os.open(_CLONE_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise refusal(action, error, hint=hints.get(error.errno or 0, "")) from error
    action = f"open TAP {name}{place}"
    hints = {
        errno.EINVAL: "a persistent TAP must be made without multi_queue and pi",
        errno.EPERM: "it needs CAP_NET_ADMIN, and a persistent TAP belongs to the user it was made for",
    }
    try:
        request = _IFREQ.pack(os.fsencode(name), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
        fcntl.ioctl(descriptor, _TUNSETVNETHDRSZ, _INT.pack(VNET_HEADER_LENGTH))
        fcntl.ioctl(descriptor, _TUNSETVNETLE, _INT.pack(1))
        # A device in use refuses a second opener with EBUSY, so one that let us in is either persistent
        # or of our own making: no other look can be as sure.
        flags = _IFREQ.unpack(fcntl.ioctl(descriptor, _TUNGETIFF, bytes(_IFREQ.size)))[1]
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError):
            raise refusal(action, error, hint=hints.get(error.errno or 0, "")) from error
        raise
    return _Device(descriptor, bool(flags & _IFF_PERSIST))


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
