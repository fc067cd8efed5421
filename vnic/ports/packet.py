"""PacketPort: a wire on an existing Ethernet device, through an AF_PACKET socket.

Law: a guest on the device. It sets nothing on it, takes nothing from its other users, and what it asks of
the kernel (promiscuous mode) goes with its socket.

With PACKET_VNET_HDR every frame is preceded by a header, [virtio_net_hdr 10 | Ethernet frame], in host byte
order (little-endian on every platform vnic runs on). It shows what a veth peer or GRO leaves undone: open
checksums and frames of up to 64 KiB that stand for many segments.

Source: packet(7), include/uapi/linux/if_packet.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import socket
import struct
from collections.abc import Callable
from functools import partial

from vnic.errors import PortError
from vnic.ipsec.drops import DropReason
from vnic.ndis.netbuffer import NetBuffer
from vnic.netlink import links
from vnic.netlink.namespaces import run_in
from vnic.netlink.refusals import refusal, where
from vnic.packet.vnet import GSO_NONE, NEEDS_CSUM, PLAIN, VNET_HEADER_LENGTH, VnetHeader
from vnic.ports.base import BURST_FRAMES, Counting
from vnic.ports.offloads import OFFLOADS, ON, USO, off

_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_STATISTICS = 6
_PACKET_AUXDATA = 8
_PACKET_VNET_HDR = 15
_PACKET_IGNORE_OUTGOING = 23
_PACKET_MR_PROMISC = 1
_ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33
_SO_SNDBUFFORCE = 32

_MEMBERSHIP = struct.Struct("iHH8x")  # ifindex, type, length and octets of an address
_STATISTICS = struct.Struct("II")  # packets, drops, both since the last reading
_AUXDATA = struct.Struct("IIIHHHH")  # status, length, snapped length, mac, net, vlan_tci, vlan_tpid
_AUXDATA_SPACE = socket.CMSG_SPACE(_AUXDATA.size)
_STATUS_VLAN_VALID = 0x10
_STATUS_VLAN_TPID_VALID = 0x40
_VLAN_TAG = struct.Struct(">HH")
_VLAN_TPID = 0x8100  # IEEE 802.1Q
_VLAN_OFFSET = 12  # behind the two MAC addresses

RECEIVE_BUFFER = 8 << 20
"""Bytes the kernel may hold for the port; at 64 KiB a frame, two bursts."""

_FRAME_LIMIT = 65_536 + 256
_USO_KERNEL = (6, 2)
"""First Linux whose virtio-net headers know UDP segmentation."""

_GONE = frozenset((errno.EBADF, errno.ENODEV, errno.ENXIO))

_PLAIN_HEADER = PLAIN.emit()
_READ_LOSS = DropReason.WIRE_RECEIVE.value
_WRITE_LOSS = DropReason.WIRE_WRITE.value


class PacketPort(Counting):
    """A wire on an existing device, as a Port. Made by `open_packet`.

    Attributes:
        name, kind, mtu, counters: as for `Port`; the drops include what the kernel dropped because the
            port was not read fast enough.
        netns: namespace of the device; None is the daemon's own.
        native: as for `Counting`.
    """

    kind: str = "netdev"
    read_loss = _READ_LOSS
    write_loss = _WRITE_LOSS

    def __init__(self, bound: socket.socket, name: str, *, mtu: int, netns: str | None = None) -> None:
        """Take over `bound`, a socket made by `open_packet`."""
        super().__init__()
        self.name = name
        self.mtu = mtu
        self.netns = netns
        self._socket = bound
        self._header = bytearray(VNET_HEADER_LENGTH)
        self._buffer = bytearray(_FRAME_LIMIT)
        # A device that goes down reports EPOLLERR once, upon which libuv (uvloop) stops watching the
        # descriptor for good. An epoll descriptor around the socket only ever becomes readable.
        self._poll = select.epoll()
        self._poll.register(bound, select.EPOLLIN)

    def fileno(self) -> int | None:
        return None if self._poll.closed else self._poll.fileno()

    def set_wake(self, wake: Callable[[], None] | None) -> None:
        """Do nothing: the descriptor is the signal."""

    def has_room(self) -> bool:
        return True

    def receive_burst(self) -> list[NetBuffer]:
        receive = self._socket.recvmsg_into
        header = self._header
        buffer = self._buffer
        into = [header, buffer]
        burst: list[NetBuffer] = []
        append = burst.append
        received_bytes = 0
        for _ in range(BURST_FRAMES):
            try:
                length, ancillary, flags, address = receive(into, _AUXDATA_SPACE)
            except BlockingIOError:
                break
            except OSError as error:
                # EINVAL: an aggregate that the header cannot express. ENETDOWN: the device went down.
                self._check_device(error)
                if error.errno != errno.ENETDOWN:
                    self._lose(_READ_LOSS)
                continue
            if address[2] == socket.PACKET_OUTGOING:
                continue
            if flags & socket.MSG_TRUNC:
                self._lose(_READ_LOSS)
                continue
            frame = buffer[: length - VNET_HEADER_LENGTH]
            vnet = None if header[0] == 0 and header[1] == 0 else VnetHeader.parse(header)
            if ancillary:
                vnet = _restore_vlan_tag(frame, vnet, ancillary[0][2])
            received_bytes += len(frame)
            append(NetBuffer(frame, vnet))
        counters = self._counters
        counters.rx_frames += len(burst)
        counters.rx_bytes += received_bytes
        self._count_kernel_drops()
        return burst

    def send_burst(self, burst: list[NetBuffer]) -> None:
        descriptor = self._socket.fileno()
        writev = os.writev
        counters = self._counters
        for buffer in burst:
            vnet = buffer.vnet
            frame = buffer.frame
            try:
                writev(descriptor, (_PLAIN_HEADER if vnet is None else vnet.emit(), frame))
            except OSError as error:
                # EMSGSIZE: longer than the device's MTU. ENETDOWN: it is down. EINVAL: no frame, or a
                # GSO type this kernel does not know. EAGAIN, ENOBUFS: no room.
                self._check_device(error)
                self._lose(_WRITE_LOSS)
            else:
                counters.tx_frames += 1
                counters.tx_bytes += len(frame)

    def features(self) -> dict[str, str]:
        states = {offload.name: ON for offload in OFFLOADS}
        release = os.uname().release
        if _release_number(release) < _USO_KERNEL:
            states[USO.name] = off(f"Linux {release} has no UDP segmentation in virtio-net headers")
        return states

    def fail(self, code: int) -> None:
        """Hear of an errno that the native engine met here; a device that is only down comes back.

        Raises:
            PortError: it says that the device is gone.
        """
        self._check_device(OSError(code, os.strerror(code)))

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The socket; none when it is closed."""
        return () if self._poll.closed else (self._socket.fileno(),)

    def close(self) -> None:
        if self._poll.closed:
            return
        self._close_native()
        with contextlib.suppress(OSError):
            self._count_kernel_drops()
        self._poll.close()
        self._socket.close()

    def _count_kernel_drops(self) -> None:
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        dropped = _STATISTICS.unpack(statistics)[1]
        if dropped:
            self._lose(_READ_LOSS, dropped)

    def _check_device(self, error: OSError) -> None:
        """Raise if there is no device behind the socket any more; a device that is only down comes back."""
        if self._poll.closed:
            raise PortError(f"wire device {self.name}{where(self.netns)} is closed") from error
        # A removed device, too, says ENETDOWN first; the name the kernel gives for the socket tells.
        if error.errno in _GONE or (error.errno == errno.ENETDOWN and not self._socket.getsockname()[0]):
            hint = "somebody removed or moved the device; delete the adapter and add it again"
            raise refusal(
                f"use wire device {self.name}{where(self.netns)} any longer", error, hint=hint
            ) from error


async def open_packet(
    name: str, *, netns: str | None = None, receive_buffer: int = RECEIVE_BUFFER
) -> PacketPort:
    """Open an existing Ethernet device as a wire.

    Args:
        name: device name.
        netns: name of its namespace; None is the daemon's own.
        receive_buffer: bytes of frames that the kernel holds until they are read.

    Raises:
        RequestError: `name` or `netns` cannot be a name.
        PortError: no such device, not an Ethernet device, or not allowed.
    """
    link = await links.require(name, netns)
    if not link.ethernet:
        raise PortError(
            f"{name}{where(netns)} is no Ethernet device; a wire needs one, e.g. an end of a veth"
        )
    bound = await run_in(netns, partial(_open_socket, link, receive_buffer), discard=socket.socket.close)
    try:
        return PacketPort(bound, name, mtu=link.mtu, netns=netns)
    except BaseException:
        bound.close()
        raise


def _open_socket(link: links.Link, receive_buffer: int) -> socket.socket:
    """Make the socket in the namespace of the calling thread; frames queue from the return on."""
    try:
        # Protocol 0 receives nothing: no frame slips in before the options are set.
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            opened.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            opened.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            with contextlib.suppress(OSError):  # before Linux 4.20 receive_burst alone filters them
                opened.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            _set_buffer(opened, _SO_RCVBUFFORCE, socket.SO_RCVBUF, receive_buffer)
            _set_buffer(opened, _SO_SNDBUFFORCE, socket.SO_SNDBUF, receive_buffer)
            membership = _MEMBERSHIP.pack(link.index, _PACKET_MR_PROMISC, 0)
            opened.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)
            opened.bind((link.name, _ETH_P_ALL))
        except BaseException:
            opened.close()
            raise
    except OSError as error:
        raise refusal(f"open a packet socket on {link.name}{where(link.netns)}", error) from error
    return opened


def _set_buffer(opened: socket.socket, force: int, limited: int, length: int) -> None:
    try:
        opened.setsockopt(socket.SOL_SOCKET, force, length)
    except PermissionError:  # without CAP_NET_ADMIN: as much as net.core.rmem_max and wmem_max allow
        opened.setsockopt(socket.SOL_SOCKET, limited, length)


def _restore_vlan_tag(frame: bytearray, vnet: VnetHeader | None, auxdata: bytes) -> VnetHeader | None:
    """Put the VLAN tag that the kernel took out back into the frame; give the header that then fits."""
    status, _, _, _, _, tci, tpid = _AUXDATA.unpack_from(auxdata)
    if not status & _STATUS_VLAN_VALID:
        return vnet
    if not status & _STATUS_VLAN_TPID_VALID:
        tpid = _VLAN_TPID
    frame[_VLAN_OFFSET:_VLAN_OFFSET] = _VLAN_TAG.pack(tpid, tci)
    if vnet is None:
        return None
    return vnet._replace(
        hdr_len=vnet.hdr_len + _VLAN_TAG.size if vnet.gso_type != GSO_NONE else vnet.hdr_len,
        csum_start=vnet.csum_start + _VLAN_TAG.size if vnet.flags & NEEDS_CSUM else vnet.csum_start,
    )


def _release_number(release: str) -> tuple[int, ...]:
    """Read major and minor number of a kernel release ("6.1.0-13-amd64")."""
    return tuple(int(part) for part in re.findall(r"\d+", release)[:2])
