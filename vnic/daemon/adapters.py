"""The adapters of the daemon: made, changed, reset, joined and taken away.

Law: a change is all or nothing, and one at a time. Every adapter owns its ports and gives them back however
it ends; one that fails leaves the others running.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator

from vnic.control.interface import AddAdapter, Capture, EventWord, SetAdapter, Wire
from vnic.daemon.adapter import Adapter, Surroundings, default_action
from vnic.daemon.cards import CardSettings
from vnic.daemon.requests import SliceTurns
from vnic.daemon.settings import (
    NO_WIRE,
    check_mtu,
    check_reassembly,
    check_wire,
    checked,
    shown,
    udp_ends,
)
from vnic.daemon.values import hardware_of, keywords_of
from vnic.engine.contract import Defaults
from vnic.errors import RequestError, VnicError
from vnic.ipsec.association import SecurityAssociation
from vnic.ipsec.policy import FragmentRule, VlanRule
from vnic.netlink.links import Link, check_address, check_mac
from vnic.ports.base import Port
from vnic.ports.capture import PcapngWriter
from vnic.ports.link import LinkPort, join
from vnic.ports.nbl import open_nbl
from vnic.ports.udp import DEFAULT_KEEPALIVE_S, UdpPort

__all__ = ["Adapter", "Adapters", "Surroundings"]

log = logging.getLogger(__name__)

_POLICY_MEMBERS = ("non_ip", "fragments", "vlan", "prohibited", "policy_default_in", "policy_default_out")


class Adapters:
    """All adapters, by name."""

    def __init__(self, surroundings: Surroundings) -> None:
        self.surroundings = surroundings
        self._by_name: dict[str, Adapter] = {}
        self._changing = asyncio.Lock()
        self._turns = SliceTurns()
        self._cards_made = 0
        self._following: dict[Adapter, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def all(self) -> list[Adapter]:
        """Every adapter, by name."""
        return [self._by_name[name] for name in sorted(self._by_name)]

    def find(self, name: str) -> Adapter | None:
        """Give the adapter of that name, or None."""
        return self._by_name.get(name)

    def require(self, name: str | None, field: str = "adapter") -> Adapter:
        """Give the adapter of that name; None is the only one.

        Raises:
            RequestError: there is none, or None and there are several.
        """
        names = ", ".join(sorted(self._by_name)) or "none exists; add one first"
        if name is None:
            if len(self._by_name) == 1:
                return next(iter(self._by_name.values()))
            problem = "name the adapter (`offload packet dev ADAPTER dir in|out`)"
            raise RequestError(
                problem if self._by_name else "there is no adapter", field=field, allowed=names
            )
        adapter = self._by_name.get(name)
        if adapter is None:
            raise RequestError("there is no such adapter", field=field, value=name[:64], allowed=names)
        return adapter

    def chosen(self, name: str | None) -> list[Adapter]:
        """Give the adapter of that name, or all for None.

        Raises:
            RequestError: there is none of that name.
        """
        return self.all() if name is None else [self.require(name)]

    def peer_of(self, adapter: Adapter) -> Adapter | None:
        """Give the adapter at the other end of a link wire."""
        if adapter.link is None or adapter.link.peer is None:
            return None
        return self._by_name.get(adapter.link.peer.name)

    async def add(self, settings: AddAdapter) -> Adapter:
        """Make an adapter and start it.

        Raises:
            RequestError: a value no adapter can have, or the name is taken; nothing is left behind.
            PortError: the system refused a port; nothing is left behind.
        """
        settings = checked(settings)
        wire_settings = settings.wire or NO_WIRE
        async with self._changing:
            if settings.name in self._by_name:
                raise RequestError(
                    "there is an adapter of this name",
                    field="name",
                    value=settings.name,
                    allowed="another name",
                )
            self._check_peer(wire_settings)
            async with contextlib.AsyncExitStack() as undo:
                wire = await self._open_wire(settings.name, wire_settings)
                undo.callback(wire.close)
                if settings.transport == "external":
                    adapter = self._make_external(settings, wire)
                else:
                    adapter = await self._make_inline(settings, wire)
                # It owns the wire from here on. The configuration it begins with is no change of one.
                undo.pop_all()
                adapter.engine.take_indications()
                undo.callback(adapter.close)
                if adapter.tap is not None:
                    tap = adapter.tap
                    adapter.watch(
                        await self.surroundings.host.watch_master(
                            tap.name, netns=tap.netns, on_change=adapter.balance_load
                        )
                    )
                peer = self._check_peer(wire_settings)
                if peer is not None:
                    self._join(adapter, peer)
                adapter.forwarder.start()
                undo.pop_all()
            self._by_name[adapter.name] = adapter
        side = f"tap {settings.tap}" if adapter.nbl is None else f"NBL socket {adapter.nbl.path}"
        log.info("adapter %s added: %s, wire %s", adapter.name, side, describe(wire_settings))
        self._tell("adapter_added", f"adapter {adapter.name} added", adapter)
        if peer is not None:
            self._tell("adapter_changed", f"adapter {peer.name} linked to {adapter.name}", peer)
        return adapter

    def _card_settings(self, settings: AddAdapter, wire: Port) -> CardSettings:
        """Say which card to make, under a number of its own.

        Raises:
            RequestError: capabilities or keywords that no card has.
        """
        card = CardSettings(
            wire_mtu=wire.mtu,
            hardware=hardware_of(settings.capabilities),
            keywords=keywords_of(settings.keywords),
            host=self.surroundings.host_switches,
            software=settings.software is not False,
            serial=self._cards_made,
        )
        self._cards_made += 1
        return card

    async def _make_inline(self, settings: AddAdapter, wire: Port) -> Adapter:
        engine = self.surroundings.make_engine(self._card_settings(settings, wire))
        engine.set_defaults(
            Defaults(
                inbound=default_action(settings.policy_default_in or "allow"),
                outbound=default_action(settings.policy_default_out or "allow"),
                non_ip=default_action(settings.non_ip or "pass"),
                fragments=FragmentRule(settings.fragments or "drop"),
                vlan=VlanRule(settings.vlan or "protect"),
                answer_discards=settings.prohibited == "answer",
            )
        )
        if settings.reassembly is not None:
            engine.reassembly_limit = settings.reassembly
        engine.reserving = self.surroundings.numbers is not None
        engine.fragment_before = settings.fragmentation != "after"
        engine.enforce_cipher_limits = settings.cipher_limits == "enforce"
        tap = await self.surroundings.host.open_tap(
            settings.tap or "",
            netns=settings.netns,
            mac=settings.mac,
            mtu=engine.inner_mtu(wire.mtu) if settings.mtu is None else settings.mtu,
            addresses=settings.addresses or (),
            features_off=settings.features_off or (),
            queues=settings.queues or 1,
        )
        await self._introduce(wire, tap.name, tap.netns)
        adapter = Adapter(settings, engine, tap, wire, self.surroundings, self._turns)
        adapter.on_room = lambda: self._follow_mtu(adapter)
        return adapter

    def _make_external(self, settings: AddAdapter, wire: Port) -> Adapter:
        around = self.surroundings
        engine = around.make_external(self._card_settings(settings, wire))
        path = settings.nbl_socket or f"{around.nbl_directory}/{settings.name}.nbl"
        nbl = open_nbl(path, group=around.access.administrators, admit=around.may_attach)
        return Adapter(settings, engine, nbl, wire, around, self._turns)

    async def set(self, request: SetAdapter) -> Adapter:
        """Change an adapter.

        Raises:
            RequestError: a value no adapter can have, or it has failed; nothing is changed.
            PortError: the system refused a part; nothing is changed.
        """
        async with self._changing:
            adapter = self.require(request.name, "name")
            adapter.require_running()
            _check_change(request)
            _check_transport(adapter, request)
            keywords = (
                None if request.keywords is None else keywords_of(request.keywords, adapter.engine.keywords)
            )
            wire_settings = request.wire
            if wire_settings is not None and wire_settings == self.wire_of(adapter):
                wire_settings = None
            peers = [self.peer_of(adapter)] if wire_settings is not None else []
            async with contextlib.AsyncExitStack() as undo:
                wire: Port | None = None
                if wire_settings is not None:
                    self._check_peer(wire_settings)
                    wire = await self._open_wire(adapter.name, wire_settings, adapter.wire)
                    undo.callback(wire.close)
                    if adapter.tap is not None:
                        await self._introduce(wire, adapter.tap.name, adapter.tap.netns)
                writer = await self._open_capture(request.capture)
                if writer is not None:
                    undo.callback(writer.path.unlink, missing_ok=True)
                    undo.push_async_callback(asyncio.to_thread, writer.close)
                link = await self._configure(adapter, request, wire)
                adapter.require_running()
                peer = self._check_peer(wire_settings)
                undo.pop_all()
            # From here on nothing can be refused any more.
            if link is not None and adapter.tap is not None:
                adapter.tap.mtu = link.mtu
            if request.mtu is not None:
                adapter.mtu_fixed = request.mtu != 0
            if wire is not None and wire_settings is not None:
                adapter.use_wire(wire, wire_settings)
                if peer is not None:
                    self._join(adapter, peer)
                    peers.append(peer)
            old_writer = None
            if request.capture is not None:
                recording = request.capture if writer is not None else None
                old_writer = adapter.record(recording, writer)
            adapter.set_defaults(
                inbound=request.policy_default_in,
                outbound=request.policy_default_out,
                non_ip=request.non_ip,
                fragments=request.fragments,
                vlan=request.vlan,
                prohibited=request.prohibited,
            )
            if request.reassembly is not None:
                adapter.require_inline().reassembly_limit = request.reassembly
            if request.fragmentation is not None:
                adapter.require_inline().fragment_before = request.fragmentation == "before"
            if request.cipher_limits is not None:
                adapter.require_inline().enforce_cipher_limits = request.cipher_limits == "enforce"
            if keywords is not None:
                adapter.engine.set_keywords(keywords)
        if old_writer is not None:
            await asyncio.to_thread(old_writer.close)
        self._tell("adapter_changed", f"adapter {adapter.name} changed", adapter)
        for other in peers:
            if other is not None:
                self._tell("adapter_changed", f"adapter {other.name}: its link changed", other)
        return adapter

    async def delete(self, name: str) -> None:
        """Take an adapter away; the other end of its link stays, with a wire of none.

        Raises:
            RequestError: there is none of that name.
        """
        async with self._changing:
            adapter = self.require(name, "name")
            peer = self.peer_of(adapter)
            del self._by_name[name]
            if self.surroundings.numbers is not None and adapter.inline is not None:
                self.surroundings.numbers.hear(adapter.inline.inbound_numbers())
            # A request that found it before may still be on its way.
            adapter.failure = "it was deleted"
            writer = adapter.close()
        if writer is not None:
            await asyncio.to_thread(writer.close)
        log.info("adapter %s deleted", name)
        self._tell("adapter_deleted", f"adapter {name} deleted", adapter)
        if peer is not None:
            self._tell("adapter_changed", f"adapter {peer.name} lost its link", peer)

    def inbound_numbers(self) -> Iterator[tuple[SecurityAssociation, int]]:
        """Inbound SAs to which something has come since the last call, with the highest number of each."""
        for adapter in self.all():
            if adapter.inline is not None and not adapter.failure:
                yield from adapter.inline.inbound_numbers()

    async def close(self) -> None:
        """Take all adapters away, without waiting for changes under way."""
        writers = [writer for adapter in self._by_name.values() if (writer := adapter.close()) is not None]
        self._by_name.clear()
        await asyncio.gather(*(asyncio.to_thread(writer.close) for writer in writers))

    async def refresh_mtu(self, adapter: Adapter) -> None:
        """Let the TAP's MTU follow the policies, unless it was fixed. What is refused is logged: the
        policies are in force all the same, and packets too big are answered with ICMP."""
        tap = adapter.tap
        if tap is None or adapter.mtu_fixed or adapter.failure or adapter.wanted_mtu == tap.mtu:
            return
        async with self._changing:
            wanted = adapter.wanted_mtu
            if adapter.mtu_fixed or adapter.failure or wanted == tap.mtu:
                return
            try:
                link = await self.surroundings.host.configure(tap.name, netns=tap.netns, mtu=wanted)
            except VnicError as error:
                log.warning("adapter %s: the MTU should be %d: %s", adapter.name, wanted, error)
                return
            tap.mtu = link.mtu
        self._tell("adapter_changed", f"adapter {adapter.name}: MTU is now {wanted}", adapter)

    def _follow_mtu(self, adapter: Adapter) -> None:
        """Have the MTU follow, soon, the end of SAs that nobody has asked for now."""
        if adapter not in self._following:
            task = asyncio.get_running_loop().create_task(self.refresh_mtu(adapter))
            self._following[adapter] = task
            task.add_done_callback(lambda _: self._following.pop(adapter, None))

    def wire_of(self, adapter: Adapter) -> Wire:
        """Say what the card is plugged into now."""
        link = adapter.link
        if link is None:
            return adapter.wire_settings
        if link.peer is None:
            return NO_WIRE
        return Wire(kind="link", name=link.peer.name)

    def _check_peer(self, wire: Wire | None) -> Adapter | None:
        """Give the adapter that a link names.

        Raises:
            RequestError: there is none, or its wire is not free.
        """
        if wire is None or wire.kind != "link":
            return None
        peer = self.require(wire.name or "", "wire.name")
        peer.require_running()
        if peer.link is None or peer.link.peer is not None:
            raise RequestError(
                f"the wire of {peer.name} is {describe(self.wire_of(peer))} already",
                field="wire.name",
                value=peer.name,
                allowed="an adapter whose wire is none",
            )
        return peer

    async def _open_wire(self, adapter: str, wire: Wire, old: Port | None = None) -> Port:
        host = self.surroundings.host
        if wire.kind == "netdev":
            return await host.open_netdev(wire.name or "", netns=wire.netns)
        if wire.kind == "tap":
            return await host.open_tap(wire.name or "", netns=wire.netns)
        if wire.kind == "udp":
            local, remote = udp_ends(wire)
            keepalive = DEFAULT_KEEPALIVE_S if wire.keepalive is None else wire.keepalive
            return await host.open_udp(
                local,
                remote,
                netns=wire.netns,
                keepalive_s=keepalive,
                follow=bool(wire.follow),
                old=old if isinstance(old, UdpPort) else None,
            )
        return LinkPort(adapter)

    async def _introduce(self, wire: Port, tap: str, netns: str | None) -> None:
        """Tell a wire that makes Ethernet frames itself who the host is."""
        if isinstance(wire, UdpPort):
            link = await self.surroundings.host.lookup(tap, netns=netns)
            if link is not None and link.mac:
                wire.use_host_address(bytes.fromhex(link.mac.replace(":", "")))

    def _join(self, adapter: Adapter, peer: Adapter) -> None:
        if adapter.link is not None and peer.link is not None:
            join(adapter.link, peer.link)

    async def _open_capture(self, capture: Capture | None) -> PcapngWriter | None:
        if capture is None or capture.place == "off":
            return None
        path = capture.file or ""
        # The disk may be slow; the frames must not wait for it.
        return await asyncio.to_thread(PcapngWriter, path, clock_ns=self.surroundings.clock_ns)

    async def _configure(self, adapter: Adapter, request: SetAdapter, wire: Port | None) -> Link | None:
        """Set the TAP up as asked; None if nothing about it changes."""
        tap, engine = adapter.tap, adapter.inline
        if tap is None or engine is None:
            return None
        mtu = request.mtu or None
        if request.mtu == 0 or (request.mtu is None and wire is not None and not adapter.mtu_fixed):
            mtu = engine.inner_mtu(adapter.wire.mtu if wire is None else wire.mtu)
        if mtu == tap.mtu and request.mtu is None:
            mtu = None
        if mtu is None and request.mac is None and not request.addresses and request.up is None:
            return None
        return await self.surroundings.host.configure(
            tap.name,
            netns=tap.netns,
            mac=request.mac,
            mtu=mtu,
            addresses=request.addresses or (),
            up=request.up,
        )

    def _tell(self, kind: EventWord, text: str, adapter: Adapter) -> None:
        self.surroundings.events.tell(kind, text, adapter=adapter.name)


def describe(wire: Wire) -> str:
    """Name a wire for a person: "link right", "netdev eth1 in namespace red"."""
    words = [
        wire.kind,
        *(one for one in (wire.name, wire.local, wire.remote) if one),
        *([f"in namespace {wire.netns}"] if wire.netns else []),
    ]
    return " ".join(words)


def _check_change(request: SetAdapter) -> None:
    check_mtu(request.mtu or None)
    check_reassembly(request.reassembly)
    if request.mac is not None:
        check_mac(request.mac)
    for address in request.addresses or ():
        check_address(address)
    if request.wire is not None:
        check_wire(request.name, request.wire)
    capture = request.capture
    if capture is None:
        return
    if capture.place == "off":
        if capture.file is not None:
            raise RequestError(
                "nothing is recorded into a file that way", field="capture.file", value=capture.file
            )
    elif capture.file is None or not os.path.isabs(capture.file) or "\0" in capture.file:
        raise RequestError(
            "a recording needs a file",
            field="capture.file",
            value=capture.file or "",
            allowed="absolute path of a file that does not exist",
        )


def _check_transport(adapter: Adapter, request: SetAdapter) -> None:
    """Refuse to change what the adapter's transport does not have, or has for good."""
    if adapter.inline is not None:
        return
    for what, members in (
        ("TAP", ("mtu", "mac", "addresses", "up")),
        ("policies", _POLICY_MEMBERS),
        ("fragmentation", ("fragmentation", "reassembly")),
        ("limits of ciphers", ("cipher_limits",)),
    ):
        for member in members:
            value = getattr(request, member)
            if value is not None:
                raise RequestError(
                    f"adapter {adapter.name} has an external transport and no {what}",
                    field=member.replace("_", "-"),
                    value=shown(value),
                    allowed="nothing",
                )
    if request.capture is not None and request.capture.place == "tap":
        raise RequestError(
            f"adapter {adapter.name} has an external transport and no TAP",
            field="capture.place",
            value="tap",
            allowed="wire, off",
        )
