"""One adapter: a card between a transport and a wire, and the life of its NIC.

Law: it owns its ports and gives them back however it ends. What the NIC indicates reaches listeners and
driver in order; who may ask for what is decided before.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any, cast

from vnic.control.access import Access, Role, peer_of
from vnic.control.interface import (
    AddAdapter,
    Capture,
    CaptureState,
    DefaultWord,
    EventWord,
    FragmentsWord,
    Indication,
    NonIpWord,
    Peer,
    ProhibitedWord,
    StateWord,
    VlanWord,
    Wire,
)
from vnic.daemon.cards import CardSettings, external_card, reference_card
from vnic.daemon.events import Events
from vnic.daemon.external import ExternalForwarder
from vnic.daemon.filler import Filler
from vnic.daemon.forwarder import Forwarder
from vnic.daemon.host import Host, TapDevice, Watch
from vnic.daemon.icv import finder
from vnic.daemon.journal import Journal
from vnic.daemon.numbers import Lease, Numbers, StateError
from vnic.daemon.pump import pump_of
from vnic.daemon.requests import OidRequests, SliceTurns
from vnic.daemon.settings import NO_WIRE
from vnic.daemon.values import audit_fields, drop_event, name_of, peer_message
from vnic.daemon.wire_faults import WireFaults
from vnic.engine.contract import Card, Engine, EngineEvent, EventKind, ExternalCard, SaReport
from vnic.errors import OidError, RequestError
from vnic.ipsec.association import Direction, IpsecProtocol, SaId
from vnic.ipsec.policy import FragmentRule, PolicyAction, VlanRule
from vnic.ipsec.sequence import RESERVED_AT_ONCE
from vnic.ndis.keywords import HostSwitches
from vnic.ndis.oids import OidRequest, OidResult
from vnic.ndis.status import NdisStatus, StatusIndication
from vnic.ports.base import Port
from vnic.ports.capture import CapturePort, PcapngWriter
from vnic.ports.link import LinkPort
from vnic.ports.nbl import NblPort
from vnic.ports.udp import UdpPort

log = logging.getLogger(__name__)

MAX_HOLD_MS = 60_000
"""Longest a reset may be held, in milliseconds."""


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
    numbers: Numbers | None = None
    """Where sequence numbers are reserved; None: nowhere, each life of the daemon begins anew."""
    journal: Journal | None = None
    """Where audit records go; None when the daemon does not run under systemd."""

    def may_attach(self, connection: socket.socket) -> bool:
        """Whether whoever connected to an NBL socket may be a protocol driver."""
        try:
            return self.access.role_of(peer_of(connection)) is Role.ADMINISTRATOR
        except OSError:
            return False


_RESERVE_AGAIN_S = 1.0
"""After the disk has refused."""

_AUDITED = (EventKind.DROP, EventKind.SEQUENCE_EXHAUSTED)


class Adapter:
    """One card between a transport and a wire.

    Attributes:
        settings: what it was asked to be when it was made.
        engine: the card; see `inline` for what only the inline transport has.
        tap: host side of the inline transport, None with an external one.
        nbl: socket of the external transport, None with the inline one.
        failure: why it is of no further use; "" while it runs.
        mtu_fixed: the TAP's MTU was set and follows the wire and the policies no more.
        faults: what its wire does to frames because it was asked to; None: nothing ever was asked.
        filler: SAs that only fill the NIC's table.
        load_balancing: name of the load-balancing device above the TAP (R18), or None.
        requests: OID requests under way.
        on_room: hears that the MTU of the TAP may have to follow: an SA has ended, or the path has changed.
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
        self._heed(wire)
        self.mtu_fixed = settings.mtu is not None
        self.capture: Capture | None = None
        self.failure = ""
        self.faults: WireFaults | None = None
        self.filler = Filler(engine, surroundings.clock, self.require_present)
        self.load_balancing: str | None = None
        self.requests = OidRequests(engine, surroundings.clock, turns)
        self.on_room: Callable[[], None] = lambda: None
        self.tap: TapDevice | None = None
        self.nbl: NblPort | None = None
        self._inline: Engine | None = None
        self._paused = self._resetting = self._removed = False
        self._surroundings = surroundings
        self._reserving: dict[SaId, asyncio.Task[None]] = {}
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
            pump=pump_of(self._inline),
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
            if self._surroundings.numbers is not None:
                self.keep_time()
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
        self.engine.set_load_balanced(device is not None, device or "")
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

    def keep_time(self) -> None:
        """Look at the clock for SAs that were added with a lifetime."""
        if isinstance(self.forwarder, Forwarder):
            self.forwarder.keep_time()

    # ------------------------------------------------------------------------- numbers of outbound SAs

    @property
    def numbers(self) -> Numbers | None:
        """Where the numbers of its outbound SAs are reserved; None: nowhere."""
        return self._surroundings.numbers if self._inline is not None else None

    def give_numbers(self, sa: SaId, lease: Lease | None) -> None:
        """Let an outbound SA send with numbers that are reserved; None: they were lost, it may not send."""
        engine = self.require_inline()
        if lease is not None:
            engine.reserve(sa, lease.after, lease.last)
            return
        numbers = self._surroundings.numbers
        assert numbers is not None
        engine.withhold(sa, for_good=True)
        text = (
            f"adapter {self.name}: SA out {sa} may not send: the record of sequence numbers does not say "
            f"which it has used ({numbers.loss}); rekey, or say `fresh` if its key is new"
        )
        log.warning("%s", text)
        self._surroundings.events.tell("sa_withheld", text, adapter=self.name, sa=name_of(sa))

    def _reserve_soon(self, sa: SaId) -> None:
        if sa not in self._reserving and not self.failure:
            task = asyncio.get_running_loop().create_task(self._reserve(sa))
            self._reserving[sa] = task
            task.add_done_callback(lambda _: self._reserving.pop(sa, None))

    async def _reserve(self, sa: SaId) -> None:
        """Reserve further numbers for an SA, or the first for one that came without any."""
        engine, numbers = self._inline, self._surroundings.numbers
        report = None if engine is None else engine.find_sa(sa)
        if engine is None or numbers is None or report is None or report.reserved is None or report.withheld:
            return
        if report.reserved - report.sequence_number > RESERVED_AT_ONCE // 2:
            return
        # An SA has used what it was given, as far as the disk knows.
        last_used = max(report.sequence_number, report.reserved)
        try:
            lease = await numbers.lease(report.sa, last_used, fresh=report.reserved > 0)
        except StateError as error:
            log.error("adapter %s: %s", self.name, error)
            await asyncio.sleep(_RESERVE_AGAIN_S)
            if self._is_still(report):
                engine.withhold(sa, for_good=False)
            return
        # Another may have taken its name in the meantime, and has asked for itself.
        if self._is_still(report):
            self.give_numbers(sa, lease)

    def _is_still(self, report: SaReport) -> bool:
        """Whether an SA is the one that it was."""
        now = None if self._inline is None else self._inline.find_sa(report.sa.id)
        return now is not None and now.sa is report.sa and now.reserved == report.reserved

    # ------------------------------------------------------------------------------------- settings

    def set_defaults(
        self,
        *,
        inbound: DefaultWord | None = None,
        outbound: DefaultWord | None = None,
        non_ip: NonIpWord | None = None,
        fragments: FragmentsWord | None = None,
        vlan: VlanWord | None = None,
        prohibited: ProhibitedWord | None = None,
    ) -> None:
        """Say what happens to what no policy governs; None leaves it.

        Raises:
            RequestError: the transport is external.
        """
        given = {"inbound": inbound, "outbound": outbound, "non_ip": non_ip}
        changes: dict[str, Any] = {
            member: default_action(word) for member, word in given.items() if word is not None
        }
        if fragments is not None:
            changes["fragments"] = FragmentRule(fragments)
        if vlan is not None:
            changes["vlan"] = VlanRule(vlan)
        if prohibited is not None:
            changes["answer_discards"] = prohibited == "answer"
        if changes:
            engine = self.require_inline()
            engine.set_defaults(replace(engine.defaults, **changes))

    def use_wire(self, wire: Port, settings: Wire) -> None:
        """Plug the card into another wire; the old one is given back."""
        old = self.wire
        self.wire = wire
        self.wire_settings = settings
        self.engine.wire_mtu = wire.mtu
        self._heed(wire)
        self._connect()
        old.close()

    def _heed(self, wire: Port) -> None:
        """Hear what a wire over a network finds out about it, and tell it what it has to know of the card."""
        if not isinstance(wire, UdpPort):
            return

        def highest(spi: int) -> int:
            for address in (wire.local.address.packed, bytes(len(wire.local.address.packed))):
                report = self.engine.find_sa(SaId(address, IpsecProtocol.ESP, spi))
                if report is not None and report.sa.direction is Direction.INBOUND:
                    return report.sequence_number
            return 0

        def mtu_changed() -> None:
            self.engine.wire_mtu = wire.mtu
            self.on_room()

        def peer_changed() -> None:
            text = f"adapter {self.name}: the other end of its wire, {wire.remote}, is at {wire.peer} now"
            self._tell("adapter_changed", text)

        wire.highest = highest
        wire.on_mtu = mtu_changed
        wire.on_peer = peer_changed

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

    def change_faults(self, change: Callable[[WireFaults], None]) -> None:
        """Have the wire do something to frames, or nothing any more.

        Args:
            change: makes the change, or refuses it whole.

        Raises:
            RequestError, OidError: as for `require_present`, and what `change` raises.
        """
        self.require_present()
        faults = self.faults or WireFaults(finder(self.engine), self._surroundings.clock)
        change(faults)
        self.faults = faults
        self._connect()
        state = "its wire has faults on demand" if faults.in_force else "its wire is without faults again"
        self._tell("adapter_changed", f"adapter {self.name}: {state}")

    def _connect(self) -> None:
        """Hand the forwarder its ports: the recorder before the one it records, and the faults of a wire
        before that, so that a recording has what is really on the wire."""
        tap: Port | None = self.tap
        wire = self.wire
        if self._writer is not None and self.capture is not None:
            if self.capture.place == "tap" and tap is not None:
                tap = CapturePort(tap, self._writer)
            else:
                wire = CapturePort(wire, self._writer)
        if self.faults is not None and self.faults.in_force:
            wire = self.faults.before(wire)
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
        for task in self._reserving.values():
            task.cancel()
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
        if event.kind is EventKind.NUMBERS_WANTED:
            if event.sa is not None:
                self._reserve_soon(event.sa)
            return
        name = None if event.sa is None else name_of(event.sa)
        subject = "" if event.sa is None else f" ({event.sa})"
        drop = drop_event(event)
        peer: Peer | None = None
        if drop is not None:
            named = f" ({drop.proto} spi {drop.spi:#x})" if drop.spi is not None and not subject else subject
            text = f"adapter {self.name}: dropped {drop.src} -> {drop.dst}: {drop.text}{named}"
        elif event.kind is EventKind.SEQUENCE_LOW:
            text = f"adapter {self.name}: {event.limit} of the sequence numbers used{subject}; rekey"
        elif event.kind is EventKind.CIPHER_LIMIT:
            text = f"adapter {self.name}: {event.limit} reached, too many blocks of one key{subject}; rekey"
            log.warning("%s", text)
        elif event.kind is EventKind.SA_EXPIRING:
            text = f"adapter {self.name}: {event.limit} reached{subject}; rekey"
        elif event.kind is EventKind.SA_EXPIRED:
            text = f"adapter {self.name}: {event.limit} reached{subject}; the SA is gone"
        elif event.kind is EventKind.PEER_MOVED:
            peer = peer_message((event.source, event.port))
            where = f"{ip_address(event.source)} port {event.port}"
            text = f"adapter {self.name}: the peer moved to {where}{subject}"
            log.info("%s", text)
        else:
            text = f"adapter {self.name}: sequence numbers used up{subject}; rekey"
            if self._surroundings.journal is None:
                log.warning("%s", text)
        if self._surroundings.journal is not None and event.kind in _AUDITED:
            self._surroundings.journal.audit(text, audit_fields(self.name, event))
        self._surroundings.events.tell(
            event.kind.value,
            text,
            adapter=self.name,
            sa=name,
            drop=drop,
            peer=peer,
            limit=event.limit or None,
        )
        if event.kind is EventKind.SA_EXPIRED:
            self.on_room()


def default_action(word: str) -> PolicyAction:
    """Give the action of a default: "allow" and "pass" let through."""
    return PolicyAction.BYPASS if word in ("allow", "pass") else PolicyAction.DISCARD
