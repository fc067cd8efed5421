"""Watch what a link is below: whether a load-balancing device stands over it.

Law: asks the kernel, tells one listener, changes nothing. What cannot be asked is as it was.

Source: NDIS_IPSEC_OFFLOAD and load balancing (R18); rtnetlink(7), IFLA_MASTER.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_NEWLINK
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from vnic.errors import VnicError
from vnic.netlink import links
from vnic.netlink.namespaces import run_in

LOAD_BALANCING_KINDS = frozenset({"bond", "team"})
"""Kinds of link, as `ip -d link` names them, that spread the packets of one flow over several devices."""

_BUFFER_LENGTH = 65536


class MasterWatch:
    """A watch under way; `close` ends it. Made by `watch_master`."""

    def __init__(
        self, subscription: socket.socket, link: links.Link, on_change: Callable[[str | None], None]
    ) -> None:
        """Take over a subscription to the links of the link's namespace."""
        self._subscription = subscription
        self._link = link
        self._on_change = on_change
        self._concerned = {link.index}
        self._told: str | None = None
        self._looking: asyncio.Task[None] | None = None
        self._again = False
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(subscription, self._read_news)

    def close(self) -> None:
        """Watch no more. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._subscription)
        self._subscription.close()
        if self._looking is not None:
            self._looking.cancel()

    async def look(self) -> None:
        """Ask the kernel which masters there are now, and tell of a change."""
        try:
            above = await links.masters(self._link)
        except VnicError:
            return
        if self._closed:
            return
        self._concerned = {self._link.index, *(master.index for master in above)}
        balancing = next((one.name for one in above if one.kind in LOAD_BALANCING_KINDS), None)
        if balancing != self._told:
            self._told = balancing
            self._on_change(balancing)

    def _read_news(self) -> None:
        try:
            data = self._subscription.recv(_BUFFER_LENGTH)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: news were lost
            self._look_soon()
            return
        if _concerns(data, self._concerned):
            self._look_soon()

    def _look_soon(self) -> None:
        """Look now, or once more when a look is under way: it may have asked before the change."""
        if self._looking is None:
            self._looking = self._loop.create_task(self._look_until_quiet())
        else:
            self._again = True

    async def _look_until_quiet(self) -> None:
        try:
            while True:
                self._again = False
                await self.look()
                if not self._again or self._closed:
                    return
        finally:
            self._looking = None


def _concerns(data: bytes, indexes: set[int]) -> bool:
    return any(
        message["header"]["type"] in (RTM_NEWLINK, RTM_DELLINK) and message["index"] in indexes
        for message in MarshalRtnl().parse(data)
    )


async def watch_master(
    name: str, *, netns: str | None = None, on_change: Callable[[str | None], None]
) -> MasterWatch:
    """Watch the masters of a link, direct and further up.

    Args:
        netns: name of the link's namespace; None is the daemon's own.
        on_change: hears, on the event loop, the name of the nearest load-balancing device above the link, or
            None when there is none any more. Called before the return if there is one already.

    Raises:
        RequestError: `name` or `netns` cannot be a name.
        PortError: no such link, or the namespace or netlink is not to be had.
    """
    link = await links.require(name, netns)
    subscription = await run_in(netns, links.subscribe, discard=socket.socket.close)
    watch = MasterWatch(subscription, link, on_change)
    try:
        await watch.look()
    except BaseException:
        watch.close()
        raise
    return watch
