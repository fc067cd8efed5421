"""What the daemon asks of the operating system about ports.

Law: one protocol, so that adapters can be tested without devices, and the kernel behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from vnic.netlink import links
from vnic.netlink.watch import watch_master
from vnic.ports.base import Port
from vnic.ports.packet import open_packet
from vnic.ports.tap import open_tap
from vnic.ports.udp import End, UdpPort, open_udp


class TapDevice(Port, Protocol):
    """The host side of an adapter: a port with a device behind it."""

    netns: str | None
    attached: bool
    """The device was there before and stays when the port closes."""

    @property
    def queues(self) -> int:
        """How many queues it is read and written through."""
        ...


class Watch(Protocol):
    """Something watched."""

    def close(self) -> None:
        """Watch no more. Idempotent."""
        ...


class Host(Protocol):
    """Makes ports and looks after the devices behind them. Every call may raise PortError."""

    async def open_tap(
        self,
        name: str,
        *,
        netns: str | None,
        mac: str | None = None,
        mtu: int | None = None,
        addresses: Sequence[str] = (),
        features_off: Sequence[str] = (),
        queues: int = 1,
    ) -> TapDevice:
        """Make a TAP or attach to a persistent one; see `ports.tap.open_tap`."""
        ...

    async def open_netdev(self, name: str, *, netns: str | None) -> Port:
        """Open an existing device as a wire."""
        ...

    async def open_udp(
        self,
        local: End,
        remote: End,
        *,
        netns: str | None,
        keepalive_s: int,
        follow: bool,
        old: UdpPort | None = None,
    ) -> Port:
        """Open a UDP socket as a wire; see `ports.udp.open_udp`."""
        ...

    async def configure(
        self,
        name: str,
        *,
        netns: str | None,
        mac: str | None = None,
        mtu: int | None = None,
        addresses: Sequence[str] = (),
        up: bool | None = None,
    ) -> links.Link:
        """Set a device up, all or nothing; None leaves what it is."""
        ...

    async def lookup(self, name: str, *, netns: str | None) -> links.Link | None:
        """Look a device up; None if there is none."""
        ...

    async def addresses(self, name: str, *, netns: str | None) -> list[str]:
        """List the addresses of a device in CIDR form."""
        ...

    async def watch_master(
        self, name: str, *, netns: str | None, on_change: Callable[[str | None], None]
    ) -> Watch:
        """Watch for a load-balancing device above a device; see `netlink.watch.watch_master`."""
        ...


class KernelHost:
    """The host there is."""

    async def open_tap(
        self,
        name: str,
        *,
        netns: str | None,
        mac: str | None = None,
        mtu: int | None = None,
        addresses: Sequence[str] = (),
        features_off: Sequence[str] = (),
        queues: int = 1,
    ) -> TapDevice:
        return await open_tap(
            name,
            netns=netns,
            mac=mac,
            mtu=mtu,
            addresses=addresses,
            features_off=features_off,
            queues=queues,
        )

    async def open_netdev(self, name: str, *, netns: str | None) -> Port:
        return await open_packet(name, netns=netns)

    async def open_udp(
        self,
        local: End,
        remote: End,
        *,
        netns: str | None,
        keepalive_s: int,
        follow: bool,
        old: UdpPort | None = None,
    ) -> Port:
        return await open_udp(local, remote, netns=netns, keepalive_s=keepalive_s, follow=follow, old=old)

    async def configure(
        self,
        name: str,
        *,
        netns: str | None,
        mac: str | None = None,
        mtu: int | None = None,
        addresses: Sequence[str] = (),
        up: bool | None = None,
    ) -> links.Link:
        return await links.configure(name, netns=netns, mac=mac, mtu=mtu, addresses=addresses, up=up)

    async def lookup(self, name: str, *, netns: str | None) -> links.Link | None:
        return await links.lookup(name, netns)

    async def addresses(self, name: str, *, netns: str | None) -> list[str]:
        return [str(interface) for interface in await links.addresses(name, netns)]

    async def watch_master(
        self, name: str, *, netns: str | None, on_change: Callable[[str | None], None]
    ) -> Watch:
        return await watch_master(name, netns=netns, on_change=on_change)
