"""Links of the host: look at them, set them up, make them, remove them, watch them go.

Law: a change is all or nothing, and every refusal names device, namespace and what to do about it.

Each call runs pyroute2 on a thread of its own (`namespaces.run_in`), for two reasons: the netlink socket
must be opened inside the namespace, and uvloop cannot drive pyroute2's netlink endpoint
(pyroute2 issue 1335, uvloop issue 676).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Any, TypeAlias, TypeVar

from pyroute2.iproute.linux import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTM_DELLINK, RTMGRP_LINK
from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_NODAD
from pyroute2.netlink.rtnl.ifinfmsg import IFF_UP
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from vnic.errors import PortError, RequestError
from vnic.netlink.namespaces import open_namespace, run_in
from vnic.netlink.refusals import code_of, refusal, where

IpInterface: TypeAlias = IPv4Interface | IPv6Interface

T = TypeVar("T")

_NAME_LIMIT = 15  # IFNAMSIZ 16 less the terminating zero
_ARPHRD_ETHER = 1
_IPV6_MTU = 1280  # RFC 8200 §5
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)
_WATCH_BUFFER = 65536
_MASTER_LIMIT = 8
"""Masters looked at above one another; Linux nests no deeper."""


@dataclass(frozen=True, slots=True)
class Link:
    """What the kernel says of one link, at the moment it was asked."""

    name: str
    index: int
    kind: str
    """Kind as `ip -d link` names it ("tun", "veth"); "" for a link without one (hardware, loopback)."""
    mac: str
    """Lower case, colons; "" for a link without a hardware address."""
    mtu: int
    min_mtu: int
    max_mtu: int
    """0 when the driver names no limit."""
    up: bool
    """Administratively up."""
    ethernet: bool
    """Carries Ethernet frames."""
    netns: str | None
    """Name of the namespace it was found in; None is the daemon's own."""

    @property
    def tap(self) -> bool:
        """Whether the link is a TAP. The kernel calls TUN and TAP both "tun"; TUN has no Ethernet."""
        return self.kind == "tun" and self.ethernet


def check_name(name: str, field: str = "ifname") -> str:
    """Give the name back if a link may be called so, exactly.

    Raises:
        RequestError: too long, empty, or with a character the kernel refuses or expands (%).
    """
    bad = {"/", ":", "%", "\0"}.intersection(name) or name in (".", "..") or any(map(str.isspace, name))
    if bad or not 0 < len(os.fsencode(name)) <= _NAME_LIMIT:
        raise RequestError(
            "not a device name",
            field=field,
            value=name,
            allowed="1 to 15 characters, no space, '/', ':' or '%'",
        )
    return name


def check_mac(mac: str) -> str:
    """Give a MAC address in lower case.

    Raises:
        RequestError: not six octets, a group address, or all zero.
    """
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or not int(mac.replace(":", ""), 16):
        raise RequestError(
            "not a MAC address a device may have",
            field="mac",
            value=mac,
            allowed="six octets with colons, the first one even, not all zero",
        )
    return mac.lower()


def check_address(cidr: str) -> IpInterface:
    """Read an address with its prefix length.

    Raises:
        RequestError: not CIDR form, or not the address of one host.
    """
    interface = None
    if "/" in cidr:
        with contextlib.suppress(ValueError):
            interface = ip_interface(cidr)
    if interface is None or interface.ip.is_multicast or interface.ip.is_unspecified:
        raise RequestError(
            "not an address for a device",
            field="address",
            value=cidr,
            allowed="an IPv4 or IPv6 host address with prefix length: 192.0.2.1/24, 2001:db8::1/64",
        )
    return interface


async def lookup(name: str, netns: str | None = None) -> Link | None:
    """Find a link by its name; None when the namespace has no such link.

    Raises:
        RequestError: `name` or `netns` cannot be a name.
        PortError: the namespace or netlink is not to be had.
    """
    check_name(name)
    return await _session(f"look for {name}{where(netns)}", netns, partial(_find, name=name, netns=netns))


async def require(name: str, netns: str | None = None) -> Link:
    """Find a link that must be there.

    Raises:
        RequestError: `name` or `netns` cannot be a name.
        PortError: there is no such link, or as for `lookup`.
    """
    check_name(name)
    return await _session(f"look for {name}{where(netns)}", netns, partial(_found, name=name, netns=netns))


async def addresses(name: str, netns: str | None = None) -> list[IpInterface]:
    """List the addresses of a link with their prefixes, link-local ones too, in the kernel's order.

    Raises:
        RequestError, PortError: as for `require`.
    """
    check_name(name)

    async def work(route: AsyncIPRoute) -> list[IpInterface]:
        link = await _found(route, name, netns)
        return await _addresses(route, link.index)

    return await _session(f"list the addresses of {name}{where(netns)}", netns, work)


async def configure(
    name: str,
    *,
    netns: str | None = None,
    mac: str | None = None,
    mtu: int | None = None,
    addresses: Sequence[str] = (),
    up: bool | None = None,
) -> Link:
    """Set a link up: all of it, or nothing when one part is refused.

    Args:
        mac: hardware address, six octets with colons.
        mtu: largest IP packet, in bytes.
        addresses: addresses to add, in CIDR form; one that is there already stays. IPv6 addresses skip
            duplicate address detection, so they are usable at once.
        up: bring the link up or down, after all else; None leaves it.

    Returns:
        The link as it then is.

    Raises:
        RequestError: a value that no such link can have.
        PortError: no such link, or the kernel refused a part; what was set before is set back.
    """
    check_name(name)
    mac = None if mac is None else check_mac(mac)
    wanted = [check_address(cidr) for cidr in addresses]

    async def work(route: AsyncIPRoute) -> Link:
        link = await _found(route, name, netns)
        _check_mtu(link, mtu, wanted)
        present = await _addresses(route, link.index) if wanted else []
        missing = [interface for interface in dict.fromkeys(wanted) if interface not in present]
        steps = _plan(route, link, mac=mac, mtu=mtu, missing=missing, up=up)
        await _take(steps, f"{name}{where(netns)}")
        return await _found(route, name, netns)

    return await _session(f"configure {name}{where(netns)}", netns, work)


async def create(
    name: str,
    kind: str,
    *,
    netns: str | None = None,
    peer: str | None = None,
    peer_netns: str | None = None,
) -> Link:
    """Make a link.

    Args:
        kind: "veth", "dummy", "bridge" and so on, as `ip link add type` names it; a TAP is made by
            `ports.tap.open_tap`.
        peer: name of the other end, for kinds that have one.
        peer_netns: namespace of the other end; None is that of `name`.

    Raises:
        RequestError: a value that cannot be a name.
        PortError: the name is taken, the kernel does not know the kind, or it is not allowed.
    """
    check_name(name)
    if peer is not None:
        check_name(peer, "peer")

    async def work(route: AsyncIPRoute) -> Link:
        with contextlib.ExitStack() as stack:
            attributes: dict[str, Any] = {}
            if peer is not None:
                attributes["peer"] = {"ifname": peer}
                if peer_netns is not None:
                    descriptor = open_namespace(peer_netns)
                    stack.callback(os.close, descriptor)
                    attributes["peer"]["net_ns_fd"] = descriptor
            await route.link("add", ifname=name, kind=kind, **attributes)
        return await _found(route, name, netns)

    return await _session(f"create {kind} {name}{where(netns)}", netns, work)


async def delete(name: str, netns: str | None = None) -> None:
    """Remove a link.

    Raises:
        RequestError, PortError: as for `require`; PortError also when the kernel keeps the link.
    """
    check_name(name)

    async def work(route: AsyncIPRoute) -> None:
        link = await _found(route, name, netns)
        await route.link("del", index=link.index)

    await _session(f"delete {name}{where(netns)}", netns, work)


async def move(name: str, target: str, netns: str | None = None) -> None:
    """Move a link from `netns` into the namespace `target`, where it arrives down and without addresses.

    Raises:
        RequestError, PortError: as for `require`; PortError also when the target has such a name already.
    """
    check_name(name)

    async def work(route: AsyncIPRoute) -> None:
        link = await _found(route, name, netns)
        descriptor = open_namespace(target)
        try:
            await route.link("set", index=link.index, net_ns_fd=descriptor)
        finally:
            os.close(descriptor)

    await _session(f"move {name}{where(netns)} to namespace {target}", netns, work)


async def masters(link: Link) -> list[Link]:
    """List the links above a link (bridge, bond and so on), nearest first; empty when the link is gone.

    Raises:
        PortError: the namespace or netlink is not to be had.
    """

    async def work(route: AsyncIPRoute) -> list[Link]:
        above: list[Link] = []
        index = link.index
        while len(above) < _MASTER_LIMIT:
            message = await _message(route, index=index)
            index = 0 if message is None else message.get("master") or 0
            master = await _message(route, index=index) if index else None
            if master is None:
                break
            above.append(_link(master, link.netns))
        return above

    return await _session(f"look for the masters of {link.name}{where(link.netns)}", link.netns, work)


async def wait_gone(link: Link) -> None:
    """Return once the link is deleted or moved out of its namespace; at once if it already is.

    Raises:
        PortError: the namespace or netlink is not to be had.
    """
    loop = asyncio.get_running_loop()
    while True:
        subscription = await run_in(link.netns, subscribe, discard=socket.socket.close)
        try:
            # Asked after the subscription began, so that nothing falls between the two.
            if not await _session(
                f"look for {link.name}{where(link.netns)}", link.netns, partial(_present, index=link.index)
            ):
                return
            news: asyncio.Future[bool] = loop.create_future()
            loop.add_reader(subscription, _read_news, subscription, link.index, news)
            try:
                if await news:
                    return
            finally:
                loop.remove_reader(subscription)
        finally:
            subscription.close()


@dataclass(frozen=True, slots=True)
class _Step:
    what: str
    do: Callable[[], Awaitable[object]]
    undo: Callable[[], Awaitable[object]]


def _check_mtu(link: Link, mtu: int | None, wanted: Sequence[IpInterface]) -> None:
    least = link.min_mtu
    if any(interface.version == 6 for interface in wanted):
        least = max(least, _IPV6_MTU)
    final = link.mtu if mtu is None else mtu
    if final < least or (mtu is not None and link.max_mtu and mtu > link.max_mtu):
        limits = f"{least} to {link.max_mtu}" if link.max_mtu else f"{least} or more"
        note = " with an IPv6 address" if least > link.min_mtu else ""
        raise RequestError(
            f"{link.name} takes no such MTU{note}", field="mtu", value=str(final), allowed=limits
        )


def _plan(
    route: AsyncIPRoute,
    link: Link,
    *,
    mac: str | None,
    mtu: int | None,
    missing: Sequence[IpInterface],
    up: bool | None,
) -> list[_Step]:
    """List what has to change, in an order in which each step can be undone."""
    change = partial(route.link, "set", index=link.index)
    steps: list[_Step] = []
    if mac is not None and mac != link.mac:
        steps.append(_Step(f"MAC {mac}", partial(change, address=mac), partial(change, address=link.mac)))
    for interface in missing:
        edit = partial(_change_address, route, link.index, interface)
        steps.append(_Step(f"address {interface}", partial(edit, "add"), partial(edit, "del")))
    if up is not None and up != link.up:
        before, after = ("down", "up") if up else ("up", "down")
        steps.append(_Step(f"state {after}", partial(change, state=after), partial(change, state=before)))
    if mtu is not None and mtu != link.mtu:
        step = _Step(f"MTU {mtu}", partial(change, mtu=mtu), partial(change, mtu=link.mtu))
        # Below 1280 the kernel drops the link's IPv6 addresses, which no undo brings back: so last.
        steps.insert(len(steps) if mtu < _IPV6_MTU else 0, step)
    return steps


async def _take(steps: list[_Step], device: str) -> None:
    """Do all steps; when one is refused, undo those done and raise its PortError."""
    done: list[_Step] = []
    for step in steps:
        try:
            await step.do()
        except (OSError, NetlinkError) as error:
            for earlier in reversed(done):
                with contextlib.suppress(OSError, NetlinkError):
                    await earlier.undo()
            raise refusal(f"set {step.what} on {device}", error) from error
        done.append(step)


async def _session(action: str, netns: str | None, work: Callable[[AsyncIPRoute], Awaitable[T]]) -> T:
    """Run `work` with a netlink socket of the namespace; what the kernel refuses becomes a PortError."""

    async def open_and_work() -> T:
        async with AsyncIPRoute(ext_ack=True) as route:
            return await work(route)

    def run() -> T:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            return runner.run(open_and_work())

    try:
        return await run_in(netns, run)
    except (OSError, NetlinkError) as error:
        raise refusal(action, error) from error


async def _find(route: AsyncIPRoute, name: str, netns: str | None) -> Link | None:
    message = await _message(route, ifname=name)
    return None if message is None else _link(message, netns)


async def _message(route: AsyncIPRoute, **which: Any) -> Any:
    """What the kernel says of a link by name or index; None when there is none."""
    try:
        (message,) = await route.link("get", **which)
    except NetlinkError as error:
        if code_of(error) == errno.ENODEV:
            return None
        raise
    return message


def _link(message: Any, netns: str | None) -> Link:
    return Link(
        name=message.get("ifname"),
        index=message["index"],
        kind=message.get(("linkinfo", "kind")) or "",
        mac=message.get("address") or "",
        mtu=message.get("mtu"),
        min_mtu=message.get("min_mtu") or 0,
        max_mtu=message.get("max_mtu") or 0,
        up=bool(message["flags"] & IFF_UP),
        ethernet=message["ifi_type"] == _ARPHRD_ETHER,
        netns=netns,
    )


async def _found(route: AsyncIPRoute, name: str, netns: str | None) -> Link:
    link = await _find(route, name, netns)
    if link is None:
        show = f"ip {'' if netns is None else f'-n {netns} '}link show"
        raise PortError(
            f"there is no device {name}{where(netns)}; create it first or correct the name (`{show}`)"
        )
    return link


async def _present(route: AsyncIPRoute, index: int) -> bool:
    return await _message(route, index=index) is not None


async def _addresses(route: AsyncIPRoute, index: int) -> list[IpInterface]:
    # IFA_LOCAL is the link's own address; on a point-to-point link IFA_ADDRESS is the peer's.
    return [
        ip_interface(f"{message.get('local') or message.get('address')}/{message['prefixlen']}")
        async for message in await route.addr("dump", index=index)
    ]


async def _change_address(route: AsyncIPRoute, index: int, interface: IpInterface, verb: str) -> None:
    extra = {"flags": IFA_F_NODAD} if verb == "add" and interface.version == 6 else {}
    prefix_length = interface.network.prefixlen
    await route.addr(verb, index=index, address=str(interface.ip), prefixlen=prefix_length, **extra)


def subscribe() -> socket.socket:
    """Open a non-blocking netlink socket that hears of every link of the calling thread's namespace.

    Raises:
        PortError: the system refused.
    """
    try:
        subscription = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        try:
            subscription.setblocking(False)
            subscription.bind((0, RTMGRP_LINK))
        except BaseException:
            subscription.close()
            raise
    except OSError as error:
        raise refusal("watch the links of a namespace", error) from error
    return subscription


def _read_news(subscription: socket.socket, index: int, news: asyncio.Future[bool]) -> None:
    """Settle `news`: True when the link went, False when messages were lost and one must look again."""
    if news.done():
        return
    try:
        data = subscription.recv(_WATCH_BUFFER)
    except BlockingIOError:
        return
    except OSError:
        news.set_result(False)
        return
    for message in MarshalRtnl().parse(data):
        if message["header"]["type"] == RTM_DELLINK and message["index"] == index:
            news.set_result(True)
            return
