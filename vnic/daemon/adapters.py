"""The adapters of the daemon: made, changed, reset, joined and taken away.

Law: a change is all or nothing, and one at a time. Every adapter owns its ports and gives them back however
it ends; one that fails leaves the others running.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import cast

from vnic.control.access import Access, Role, peer_of
from vnic.control.interface import (
    AddAdapter,
    Capture,
    CaptureState,
    DefaultWord,
    EventWord,
    Indication,
    NonIpWord,
    SetAdapter,
    StateWord,
    Wire,
)
from vnic.daemon.cards import CardSettings, external_card, reference_card
from vnic.daemon.events import Events
from vnic.daemon.external import ExternalForwarder
from vnic.daemon.forwarder import Forwarder
from vnic.daemon.host import Host, TapDevice, Watch
from vnic.daemon.requests import OidRequests, SliceTurns
from vnic.daemon.settings import NO_WIRE, check_mtu, check_wire, checked
from vnic.daemon.values import drop_event, hardware_of, keywords_of, name_of
from vnic.engine.contract import Card, Defaults, Engine, EngineEvent, ExternalCard
from vnic.errors import OidError, RequestError, VnicError
from vnic.ipsec.policy import PolicyAction
from vnic.ndis.keywords import HostSwitches
from vnic.ndis.oids import OidRequest, OidResult
from vnic.ndis.status import NdisStatus, StatusIndication
from vnic.netlink.links import Link, check_address, check_mac
from vnic.ports.base import Port
from vnic.ports.capture import CapturePort, PcapngWriter
from vnic.ports.link import LinkPort, join
from vnic.ports.nbl import NblPort, open_nbl

log = logging.getLogger(__name__)

MAX_HOLD_MS = 60_000
"""Longest a reset may be held, in milliseconds."""

_POLICY_MEMBERS = ("non_ip", "policy_default_in", "policy_default_out")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What adapters need of the world."""

    host: Host
    events: Events
    clock: Callable[[], float]
    """Monotonic seconds."""
    clock_ns: Callable[[], int]
    """Nanoseconds since 1970, for captures."""
    make_engine: Callable[[CardSettings], Engine] = reference_card
    """Makes a card with the inline transport."""
    make_external: Callable[[CardSettings], ExternalCard] = external_card
    """Makes a card for a protocol driver outside."""
    access: Access = field(default_factory=Access)
    """Who may attach a protocol driver: whoever administers."""
    nbl_directory: str = "/run/vnic"
    """Where NBL sockets are made that are given no path."""
    host_switches: HostSwitches = field(default_factory=HostSwitches)

    def may_attach(self, connection: socket.socket) -> bool:
        """Whether whoever connected to an NBL socket may be a protocol driver."""
        try:
            return self.access.role_of(peer_of(connection)) is Role.ADMINISTRATOR
        except OSError:
            return False


class Adapter:
    """One card between a transport and a wire.

    Attributes:
        settings: what it was asked to be when it was made.
        engine: the card; see `inline` for what only the inline transport has.
        tap: host side of the inline transport, None with an external one.
        nbl: socket of the external transport, None with the inline one.
        failure: why it is of no further use; "" while it runs.
        mtu_fixed: the TAP's MTU was set and follows the wire and the policies no more.
        load_balancing: name of the load-balancing device above the TAP (R18), or None.
        requests: OID requests under way.
    """

    def __init__(
        self,
        settings: AddAdapter,
        engine: Engine | ExternalCard,
        host_side: TapDevice | NblPort,
        wire: Port,
        surroundings: Surroundings,
        turns: SliceTurns,
    ) -> None:
        """Take over both ports. Nothing moves before `forwarder.start`."""
        self.settings = settings
        self.name = settings.name
        self.engine: Card = engine
        self.wire = wire
        self.wire_settings = settings.wire or NO_WIRE
        self.mtu_fixed = settings.mtu is not None
        self.capture: Capture | None = None
        self.failure = ""
        self.load_balancing: str | None = None
        self.requests = OidRequests(engine, surroundings.clock, turns)
        self.tap: TapDevice | None = None
        self.nbl: NblPort | None = None
        self._inline: Engine | None = None
        self._paused = self._resetting = self._removed = False
        self._surroundings = surroundings
        self._writer: PcapngWriter | None = None
        self._watch: Watch | None = None
        self.forwarder: Forwarder | ExternalForwarder
        if isinstance(host_side, NblPort):
            card = cast(ExternalCard, engine)
            self.nbl = host_side
            self.forwarder = ExternalForwarder(
                self.name,
                card,
                host_side,
                wire,
                clock=surroundings.clock,
                on_driver=self._tell_driver,
                on_failure=self.fail,
            )
            return
        self._inline = cast(Engine, engine)
        self.tap = host_side
        self.forwarder = Forwarder(
            self.name,
            self._inline,
            host_side,
            wire,
            clock=surroundings.clock,
            on_event=self._tell_event,
            on_failure=self.fail,
        )

    @property
    def state(self) -> StateWord:
        """What it is doing, in a word."""
        if self.failure:
            return "failed"
        if self._removed:
            return "removed"
        if self._resetting:
            return "resetting"
        return "paused" if self._paused else "running"

    @property
    def inline(self) -> Engine | None:
        """The card with all that the inline transport has; None with an external one."""
        return self._inline

    def require_inline(self, what: str = "policies") -> Engine:
        """Give the card with its inline transport.

        Args:
            what: plural of what only that has, for the message.

        Raises:
            RequestError: the transport is a protocol driver outside.
        """
        if self._inline is None:
            raise RequestError(
                f"adapter {self.name} has an external transport, which keeps its {what} itself",
                field="adapter",
                value=self.name,
                allowed="an adapter with the inline transport",
            )
        return self._inline

    @property
    def wanted_mtu(self) -> int:
        """MTU the TAP should have unless it is fixed."""
        return self.wire.mtu if self._inline is None else self._inline.inner_mtu(self.wire.mtu)

    @property
    def link(self) -> LinkPort | None:
        """The wire, if it is the end of a link or none: something that can be joined."""
        return self.wire if isinstance(self.wire, LinkPort) else None

    def require_running(self) -> None:
        """Refuse what a failed adapter cannot do.

        Raises:
            RequestError: it has failed.
        """
        if self.failure:
            raise RequestError(
                f"adapter {self.name} is out of use ({self.failure}); delete it and add it again",
                field="adapter",
                value=self.name,
                allowed="an adapter that runs",
            )

    def require_present(self) -> None:
        """Refuse what neither a failed nor a removed adapter can do.

        Raises:
            RequestError: it has failed.
            OidError: NOT_ACCEPTED: it was removed (R80).
        """
        self.require_running()
        if self._removed:
            raise OidError(
                NdisStatus.NOT_ACCEPTED,
                f"the card of adapter {self.name} was removed; delete the adapter and add it again",
                field="adapter",
                value=self.name,
                allowed="an adapter that is not removed",
            )

    # ------------------------------------------------------------------------------ life of the NIC

    async def oid_request(self, request: OidRequest) -> OidResult:
        """Have the NIC carry out an OID request, and tell what it indicates. Any status is an answer.

        Raises:
            RequestError: the adapter has failed.
        """
        self.require_running()
        try:
            return await self.requests.carry_out(request)
        finally:
            self.tell_indications()

    def cancel_oid_requests(self, request_id: int) -> int:
        """End the requests under way with this id (R77); give how many there were."""
        return self.requests.cancel(request_id)

    async def reset(self, hold_ms: int = 0) -> None:
        """Reset the NIC and hold it in reset that long (R204-R210).

        Raises:
            RequestError: the adapter has failed, or the time is out of range.
            OidError: RESET_IN_PROGRESS, or NOT_ACCEPTED when it is removed.
        """
        if not 0 <= hold_ms <= MAX_HOLD_MS:
            raise RequestError(
                "a reset cannot be held that long",
                field="hold_ms",
                value=str(hold_ms)[:64],
                allowed=f"0 to {MAX_HOLD_MS} ms",
            )
        self.require_present()
        if self._resetting:
            raise OidError(
                NdisStatus.RESET_IN_PROGRESS,
                f"adapter {self.name} is being reset",
                field="name",
                value=self.name,
                allowed="an adapter that is not being reset",
            )
        self._resetting = True
        try:
            self.requests.abort(NdisStatus.REQUEST_ABORTED)
            self.engine.begin_reset()
            self.tell_indications()
            await asyncio.sleep(hold_ms / 1000)
        finally:
            self._resetting = False
            if not self._removed and not self.failure:
                self.engine.end_reset()
                self.tell_indications()

    def pause(self) -> None:
        """Move no frames until `resume`. Idempotent.

        Raises:
            RequestError, OidError: as for `require_present`.
        """
        self.require_present()
        if not self._paused:
            self._paused = True
            self.engine.pause()
            self._tell("adapter_changed", f"adapter {self.name} paused")

    def resume(self) -> None:
        """End a pause. Idempotent.

        Raises:
            RequestError, OidError: as for `require_present`.
        """
        self.require_present()
        if self._paused:
            self._paused = False
            self.engine.resume()
            self._tell("adapter_changed", f"adapter {self.name} resumed")

    def restart(self) -> None:
        """Halt the NIC and initialize it again (R40, R211); a pause ends with that.

        Raises:
            RequestError: it has failed.
            OidError: RESET_IN_PROGRESS, or NOT_ACCEPTED when it is removed.
        """
        self.require_present()
        if self._resetting:
            raise OidError(
                NdisStatus.RESET_IN_PROGRESS,
                f"adapter {self.name} is being reset",
                field="name",
                value=self.name,
                allowed="an adapter that is not being reset",
            )
        # No request outlives the NIC it was made to (R212).
        self.requests.abort(NdisStatus.REQUEST_ABORTED)
        if self._paused:
            self._paused = False
            self.engine.resume()
        self.engine.restart(self._surroundings.clock())
        self.tell_indications()
        self._tell("adapter_changed", f"adapter {self.name} restarted")

    def remove(self) -> None:
        """Pull the card out: requests are NOT_ACCEPTED and no frame moves until the adapter is deleted (R80).

        Raises:
            RequestError, OidError: as for `require_present`.
        """
        self.require_present()
        self._removed = True
        self.requests.abort(NdisStatus.NOT_ACCEPTED)
        self.engine.remove()
        self.tell_indications()
        self._tell("adapter_changed", f"adapter {self.name}: its card was removed")

    def balance_load(self, device: str | None) -> None:
        """Take note of the load-balancing device above the TAP, None for none any more (R18)."""
        if device == self.load_balancing or self.failure:
            return
        self.load_balancing = device
        self.engine.set_load_balanced(device is not None)
        text = "offloads IPsec again" if device is None else f"is below {device}: no IPsec offload (R18)"
        log.info("adapter %s %s", self.name, text)
        self._tell("load_balancing", f"adapter {self.name} {text}")
        self.tell_indications()

    def tell_indications(self) -> None:
        """Pass on what the NIC indicated since the last time."""
        for indication in self.engine.take_indications():
            self._indicate(indication)

    def _indicate(self, indication: StatusIndication) -> None:
        code = indication.code
        self._surroundings.events.tell(
            "status_indication",
            f"adapter {self.name}: {code.label}",
            adapter=self.name,
            indication=Indication(code=int(code), name=code.label, buffer=indication.buffer.hex()),
        )
        if isinstance(self.forwarder, ExternalForwarder):
            self.forwarder.indicate(indication)

    # ------------------------------------------------------------------------------------- settings

    def set_defaults(
        self,
        *,
        inbound: DefaultWord | None = None,
        outbound: DefaultWord | None = None,
        non_ip: NonIpWord | None = None,
    ) -> None:
        """Say what happens to what no policy governs; None leaves it.

        Raises:
            RequestError: the transport is external.
        """
        given = {"inbound": inbound, "outbound": outbound, "non_ip": non_ip}
        actions = {member: default_action(word) for member, word in given.items() if word is not None}
        if actions:
            engine = self.require_inline()
            engine.set_defaults(replace(engine.defaults, **actions))

    def use_wire(self, wire: Port, settings: Wire) -> None:
        """Plug the card into another wire; the old one is given back."""
        old = self.wire
        self.wire = wire
        self.wire_settings = settings
        self.engine.wire_mtu = wire.mtu
        self._connect()
        old.close()

    def record(self, capture: Capture | None, writer: PcapngWriter | None) -> PcapngWriter | None:
        """Begin a recording in the place of the one there was, if any; give the old writer to be closed."""
        old = self._writer
        self.capture = capture
        self._writer = writer
        self._connect()
        return old

    def capture_state(self) -> CaptureState | None:
        """Describe the recording there is, or None."""
        writer = self._writer
        if self.capture is None or writer is None:
            return None
        return CaptureState(
            place=self.capture.place,
            file=str(writer.path),
            state=writer.state,
            frames_written=writer.frames_written,
            frames_lost=writer.frames_lost,
        )

    def _connect(self) -> None:
        """Hand the forwarder its ports, with the recorder before the one it records."""
        tap: Port | None = self.tap
        wire = self.wire
        if self._writer is not None and self.capture is not None:
            if self.capture.place == "tap" and tap is not None:
                tap = CapturePort(tap, self._writer)
            else:
                wire = CapturePort(wire, self._writer)
        if isinstance(self.forwarder, Forwarder) and tap is not None:
            self.forwarder.use_tap(tap)
        self.forwarder.use_wire(wire)

    # ------------------------------------------------------------------------------------------ end

    def watch(self, watch: Watch) -> None:
        """Own the watch of the TAP's master: it ends with the adapter."""
        self._watch = watch

    def close(self) -> PcapngWriter | None:
        """Stop, and give the ports back; give the writer of a recording to be closed. Idempotent."""
        self.requests.abort(NdisStatus.REQUEST_ABORTED)
        self.forwarder.stop()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        for port in (self.tap, self.nbl, self.wire):
            if port is not None:
                port.close()
        writer, self._writer = self._writer, None
        self.capture = None
        return writer

    def fail(self, reason: str) -> None:
        """Stop for good, keep what there is to look at, and say so."""
        self.failure = reason
        peer = self.link.peer if self.link is not None else None
        writer = self.close()
        if writer is not None:
            asyncio.get_running_loop().run_in_executor(None, writer.close)
        log.error("adapter %s failed: %s", self.name, reason)
        events = self._surroundings.events
        events.tell("adapter_failed", f"adapter {self.name} failed: {reason}", adapter=self.name)
        if peer is not None:
            events.tell("adapter_changed", f"adapter {peer.name} lost its link", adapter=peer.name)

    def _tell(self, kind: EventWord, text: str) -> None:
        self._surroundings.events.tell(kind, text, adapter=self.name)

    def _tell_driver(self, text: str) -> None:
        log.info("adapter %s: %s", self.name, text)
        self._tell("adapter_changed", f"adapter {self.name}: {text}")

    def _tell_event(self, event: EngineEvent) -> None:
        """Pass on what the engine tells."""
        name = None if event.sa is None else name_of(event.sa)
        subject = "" if event.sa is None else f" ({event.sa})"
        drop = drop_event(event)
        if drop is None:
            text = f"adapter {self.name}: sequence numbers used up{subject}; rekey"
            log.warning("%s", text)
        else:
            text = f"adapter {self.name}: dropped {drop.src} -> {drop.dst}: {drop.text}{subject}"
        self._surroundings.events.tell(event.kind.value, text, adapter=self.name, sa=name, drop=drop)


class Adapters:
    """All adapters, by name."""

    def __init__(self, surroundings: Surroundings) -> None:
        self.surroundings = surroundings
        self._by_name: dict[str, Adapter] = {}
        self._changing = asyncio.Lock()
        self._turns = SliceTurns()
        self._cards_made = 0

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
            )
        )
        tap = await self.surroundings.host.open_tap(
            settings.tap or "",
            netns=settings.netns,
            mac=settings.mac,
            mtu=engine.inner_mtu(wire.mtu) if settings.mtu is None else settings.mtu,
            addresses=settings.addresses or (),
            features_off=settings.features_off or (),
        )
        return Adapter(settings, engine, tap, wire, self.surroundings, self._turns)

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
                    wire = await self._open_wire(adapter.name, wire_settings)
                    undo.callback(wire.close)
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
            )
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
            # A request that found it before may still be on its way.
            adapter.failure = "it was deleted"
            writer = adapter.close()
        if writer is not None:
            await asyncio.to_thread(writer.close)
        log.info("adapter %s deleted", name)
        self._tell("adapter_deleted", f"adapter {name} deleted", adapter)
        if peer is not None:
            self._tell("adapter_changed", f"adapter {peer.name} lost its link", peer)

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

    async def _open_wire(self, adapter: str, wire: Wire) -> Port:
        host = self.surroundings.host
        if wire.kind == "netdev":
            return await host.open_netdev(wire.name or "", netns=wire.netns)
        if wire.kind == "tap":
            return await host.open_tap(wire.name or "", netns=wire.netns)
        return LinkPort(adapter)

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


def default_action(word: str) -> PolicyAction:
    """Give the action of a default: "allow" and "pass" let through."""
    return PolicyAction.BYPASS if word in ("allow", "pass") else PolicyAction.DISCARD


def describe(wire: Wire) -> str:
    """Name a wire for a person: "link right", "netdev eth1 in namespace red"."""
    words = [
        wire.kind,
        *([wire.name] if wire.name else []),
        *([f"in namespace {wire.netns}"] if wire.netns else []),
    ]
    return " ".join(words)


def _check_change(request: SetAdapter) -> None:
    check_mtu(request.mtu or None)
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
        if request.software not in (None, adapter.inline.software):
            raise RequestError(
                "software IPsec is chosen when an adapter is made; delete it and add it again",
                field="software",
                value=str(request.software).lower(),
                allowed=str(adapter.inline.software).lower(),
            )
        return
    for what, members in (
        ("TAP", ("mtu", "mac", "addresses", "up")),
        ("policies", _POLICY_MEMBERS),
        ("software IPsec", ("software",)),
    ):
        for member in members:
            value = getattr(request, member)
            if value is not None:
                raise RequestError(
                    f"adapter {adapter.name} has an external transport and no {what}",
                    field=member.replace("_", "-"),
                    value=str(value)[:64],
                    allowed="nothing",
                )
    if request.capture is not None and request.capture.place == "tap":
        raise RequestError(
            f"adapter {adapter.name} has an external transport and no TAP",
            field="capture.place",
            value="tap",
            allowed="wire, off",
        )
