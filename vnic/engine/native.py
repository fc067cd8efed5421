"""The native engine: `vnic_native` in front of the reference engine, over the same state.

Law: decides nothing itself. Every verdict is one that the reference engine gave; what it did with the first
packet of a flow is told to the native card, which does the same with the rest. What that card does not do
whole it hands back untouched (a punt), and the reference engine does it from the beginning. Told things are
forgotten with every change of what they follow from.

    burst ─> native card ─> sealed, or opened and let pass
                 └─ punts ─> reference engine ─> what it decided ─> told to the native card

Source: `native/core`; what is not for it, and why: `obstacle_to_sending`, `obstacle_to_receiving`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar, NamedTuple, cast

import vnic_native

from vnic.engine.contract import Outcome, RandomSource
from vnic.engine.reference import ReferenceEngine
from vnic.ipsec.association import Direction, IpsecProtocol, KeyMaterial, Mode, SecurityAssociation
from vnic.ipsec.counters import CardCounters, SaCounters
from vnic.ipsec.headers import DEFAULT_HEADERS, DfRule, HeaderSettings
from vnic.ipsec.policy import FlowKey
from vnic.ipsec.replay import ReplayWindow
from vnic.ipsec.sequence import OutboundSequence
from vnic.miniport.ciphers import CounterIvs
from vnic.ndis.netbuffer import NetBuffer, OffloadHandle, ReceiveInfo
from vnic.packet.ip import UDP, IpHeader
from vnic.packet.vnet import VnetHeader
from vnic.transport.encapsulation import Encapsulation
from vnic.transport.flow import flow_key
from vnic.transport.inbound import Inbound, Layer
from vnic.transport.outbound import Outbound, Verdict
from vnic.transport.sizes import ah_sizes
from vnic.transport.state import SaState

_REMARK = 1 << 28
"""Extended numbers after which an SA, when it is told of again, is told with its present number: long before
the native card has the NIC see a packet for want of that (2^30)."""

_MAX_FLOWS = 8192
"""Flows of one burst that are noted."""

_ANY_VALUE = frozenset(
    {
        "direction",
        "source",
        "destination",
        "protocol",
        "spi",
        "mode",
        "encryption",
        "encryption_key",
        "integrity",
        "integrity_key",
        "icv_length",
        "esn",
        "replay_window",
        "reqid",
        "selector",
        "sequence_number",
        "udp",
        "ah_alignment",
        "no_ecn",
        "lifetime",
        "weak",
    }
)
"""Members of an SA that may have any value: the native card does what they say, or they are over when a flow
or an SA is told to it. Any other must have its default."""

_NOT_OF_SENDING = frozenset({"replay_window", "decap_dscp"})
_NOT_OF_RECEIVING = frozenset({"header_settings"})
"""Members that say nothing to an SA of that direction."""

_NATIVE_HEADERS = (DEFAULT_HEADERS, HeaderSettings(df=DfRule.CLEAR))


class _Told(NamedTuple):
    """An SA as it was told to the native card, and what it was made with."""

    sa: vnic_native.OutboundSa | vnic_native.InboundSa
    mark: int
    made_with: tuple[object, ...]

    def serves(self, number: int, made_with: tuple[object, ...]) -> bool:
        """Whether it is still the same."""
        return number - self.mark < _REMARK and all(
            one is other for one, other in zip(self.made_with, made_with, strict=True)
        )


class NativeSaState(SaState):
    """Live state of one SA in memory that the native card shares. Each card has a class of its own of these.

    Attributes:
        told: what the native card has of it, with its expanded keys; None: nothing.
        card: the native card.
    """

    __slots__ = ("_counters", "told")

    make_sequence = cast("type[OutboundSequence]", vnic_native.OutboundSequence)
    make_window = cast("type[ReplayWindow]", vnic_native.ReplayWindow)
    make_counters = cast("type[SaCounters]", vnic_native.SaCounters)
    card: ClassVar[vnic_native.Card]

    def __init__(self, sa: SecurityAssociation, now: float) -> None:
        self.told: _Told | None = None
        self._counters: Any = None
        super().__init__(sa, now)

    def dispose(self) -> None:
        if self.told is not None:
            self.told = None
            # The tables of the card have the keys too.
            self.card.clear()

    @property
    def counters(self) -> SaCounters:
        return cast(SaCounters, self._counters)

    @counters.setter
    def counters(self, counters: SaCounters) -> None:
        former = self._counters
        self._counters = counters
        if former is not None:
            # An SA that goes on with the counters of another has its own stop and time of use.
            self._counters.stop, self._counters.use_time = former.stop, former.use_time

    @property
    def stop(self) -> int:
        return int(self._counters.stop)

    @stop.setter
    def stop(self, stop: int) -> None:
        self._counters.stop = stop

    @property
    def use_time(self) -> float:
        return float(self._counters.use_time)

    @use_time.setter
    def use_time(self, now: float) -> None:
        self._counters.use_time = now


class _Outbound(Outbound):
    """The send half of the reference engine; keeps the flows whose packets it has protected.

    Attributes:
        protected: those flows of the last burst, until somebody clears it.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.protected: dict[FlowKey, None] = {}

    def send(self, burst: list[NetBuffer], now: float) -> list[NetBuffer]:
        self.protected.clear()
        return super().send(burst, now)

    def _verdict(self, flow: FlowKey) -> Verdict:
        verdict = super()._verdict(flow)
        # Answers to the wire and dummies are protected outside of bursts, too.
        if isinstance(verdict, Encapsulation) and len(self.protected) < _MAX_FLOWS:
            self.protected[flow] = None
        return verdict

    def encapsulation_of(self, flow: FlowKey) -> Encapsulation | None:
        """How a flow is protected, if that was decided and still holds."""
        self._forget_stale_verdicts()
        verdict = self._flows.get(flow)
        return verdict if isinstance(verdict, Encapsulation) else None


class _Inbound(Inbound):
    """The receive half of the reference engine; keeps the inner flows it has let pass.

    Attributes:
        passed: those flows of the last burst, with the layers the NIC opened, until somebody clears it.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.passed: dict[tuple[FlowKey, tuple[Layer, ...]], None] = {}

    def receive(self, burst: list[NetBuffer], now: float) -> list[NetBuffer]:
        # What passed before may have passed by other policies.
        self.passed.clear()
        return super().receive(burst, now)

    def _receive_plain(self, buffer: NetBuffer, info: ReceiveInfo, now: float) -> bool:
        # Streams are the native card's; what comes here is to be learnt from.
        return False

    def _judge(
        self, frame: bytearray, header: IpHeader, layers: tuple[Layer, ...], now: float, *, helped: bool
    ) -> None:
        super()._judge(frame, header, layers, now, helped=helped)
        if not (helped or header.fragment or header.has_options):
            self.passed[flow_key(frame, header), layers] = None

    @property
    def holds(self) -> bool:
        """Whether its verdicts still hold."""
        return self._generation == (self._spd.generation, self._sad.generation)


class NativeEngine(ReferenceEngine):
    """One card: the native engine, and the reference engine for what that leaves; see `engine.contract`.

    The arguments are those of `ReferenceEngine`. Who moves frames without Python asks `ready` before each
    burst, works with `card`, and hands what is left to `send_rest` or `receive_rest`.

    Attributes:
        card: the native card.

    Raises:
        RuntimeError: this CPU or the limit of locked memory does not let the ciphers work.
    """

    name = "native"
    make_ivs = cast("type[CounterIvs]", vnic_native.CounterIvs)
    make_outbound = _Outbound
    make_inbound = _Inbound
    _outbound: _Outbound
    _inbound: _Inbound

    def __init__(self, random_source: RandomSource, *arguments: Any, **options: Any) -> None:
        self.card = card = vnic_native.Card()
        members = {"__slots__": (), "__doc__": NativeSaState.__doc__, "card": card}
        # Shadows the class's own, which is what every SA of the reference engine is made of.
        self.make_state = type("NativeSaState", (NativeSaState,), members)  # type: ignore[misc]
        self._stamp: tuple[object, ...] = ()
        self._sent = self._received = 0
        super().__init__(random_source, *arguments, **options)

    # ------------------------------------------------------------------------------- bursts

    def send(self, burst: list[NetBuffer], now: float) -> Outcome:
        if self.send_observer is not None or not self.ready(now):
            return super().send(burst, now)
        made, punts = self.card.send([(buffer.frame, buffer.vnet) for buffer in burst], now)
        wire = [NetBuffer(frame) for frame, _ in made]
        if not punts:
            return Outcome(wire=wire)
        rest = self.send_rest([burst[index] for index, _ in punts], now)
        # Its numbers are younger; and of a flow that has a punt everything behind is one.
        return Outcome(wire=wire + rest.wire, host=rest.host)

    def receive(self, burst: list[NetBuffer], now: float) -> Outcome:
        if self.receive_observer is not None or not self.ready(now):
            return super().receive(burst, now)
        host: list[NetBuffer] = []
        wire: list[NetBuffer] = []
        if burst and self.wants_room:
            # One frame of a burst is enough for the NIC to find an SA by that it asks for.
            outcome = self._receive_for_nic(burst[:1], now)
            host, wire = outcome.host, outcome.wire
            burst = burst[1:]
        made, punts = self.card.receive([(buffer.frame, buffer.vnet) for buffer in burst], now)
        place = 0
        rest: list[NetBuffer] = []
        for frame, vnet, origin in made:
            while place < len(punts) and punts[place][0] < origin:
                rest.append(burst[punts[place][0]])
                place += 1
            if rest:
                outcome = self.receive_rest(rest, now)
                host += outcome.host
                wire += outcome.wire
                rest = []
            host.append(NetBuffer(frame, None if vnet is None else VnetHeader(*vnet)))
        rest += [burst[index] for index, _ in punts[place:]]
        if rest:
            outcome = self.receive_rest(rest, now)
            host += outcome.host
            wire += outcome.wire
        return Outcome(wire=wire, host=host)

    def _receive_for_nic(self, burst: list[NetBuffer], now: float) -> Outcome:
        """Have the NIC see frames while it looks for an SA to ask for."""
        outcome = super().receive(burst, now)
        if not self.wants_room:
            # It has asked: the packets of that SA carry the request from now on.
            self._forget()
        return outcome

    def ready(self, now: float) -> bool:
        """Whether the native card may work on a burst that begins now; what it was told is up to date then.

        False: the burst is for `send` or `receive`. So are those that somebody watches between transport and
        NIC (`send_observer`, `receive_observer`), and received ones while the NIC `wants_room`.
        """
        if self._stopped:
            return False
        if now >= self._lifetimes.next_time:
            self._lifetimes.advance(now)
        if self._lifetimes.ending:
            # The burst is the last that sees these SAs.
            return False
        sad = self._sad
        if sad.software is not None:
            sad.software.update_nic()
            sad.offer_again()
        stamp = self._present()
        if stamp != self._stamp:
            self._forget()
            self._stamp = stamp
        return True

    def _present(self) -> tuple[object, ...]:
        """What everything told to the native card follows from."""
        outbound = self._outbound
        return (
            self._spd.generation,
            self._sad.generation,
            self._miniport.configuration_generation,
            self._counter_keys.generation,
            outbound.path_generation,
            outbound.wire_mtu,
            outbound.fragment_before,
        )

    def _forget(self) -> None:
        self.card.clear()

    def send_rest(self, burst: list[NetBuffer], now: float) -> Outcome:
        """Send what the native card has left, and tell it what became of it."""
        outcome = super().send(burst, now)
        outbound = self._outbound
        if self._up_to_date():
            for flow in outbound.protected:
                self._tell_flow(flow, now)
        outbound.protected.clear()
        return outcome

    def receive_rest(self, burst: list[NetBuffer], now: float) -> Outcome:
        """Receive what the native card has left, and tell it what became of it."""
        outcome = super().receive(burst, now)
        inbound = self._inbound
        if inbound.holds and self._up_to_date():
            for flow, layers in inbound.passed:
                self._tell_inner_flow(flow, layers)
        inbound.passed.clear()
        return outcome

    def _up_to_date(self) -> bool:
        """Forget what a burst of the reference engine has outdated; give whether there is more to tell."""
        stamp = self._present()
        if stamp != self._stamp:
            self._forget()
            self._stamp = stamp
        return not self._stopped

    # ------------------------------------------------------------------------------- telling

    def _tell_flow(self, flow: FlowKey, now: float) -> None:
        encapsulation = self._outbound.encapsulation_of(flow)
        if encapsulation is None or flow.protocol < 0 or obstacle_to_sending(encapsulation):
            return
        portion = encapsulation.tunnel or encapsulation.transport
        assert portion is not None
        if not all(self._is_for_native(state) for state in portion.states()):
            return
        try:
            esp, ah = (None if one is None else self._outbound_sa(one) for one in (portion.esp, portion.ah))
        except ValueError:
            # An algorithm that the library does not do on this CPU, or no locked memory left for keys.
            return
        outer = None
        if encapsulation.tunnel_ends is not None:
            sa = portion.states()[0].sa
            outer = (*encapsulation.tunnel_ends, sa.no_ecn, sa.header_settings.df is DfRule.CLEAR)
        udp = None
        if portion.udp_length:
            # Over IPv6 the checksum is computed (RFC 8200 §8.1).
            udp = (*portion.udp_ports, portion.states()[0].sa.ipv6)
        path_mtu, until = self._outbound.path_of(encapsulation, now)
        self.card.install_flow(
            flow, esp=esp, ah=ah, outer=outer, udp=udp, path_mtu=path_mtu, valid_until=until
        )

    def _tell_inner_flow(self, flow: FlowKey, layers: tuple[Layer, ...]) -> None:
        states = [layer.state for layer in layers]
        if flow.protocol < 0 or obstacle_to_receiving(states):
            return
        if flow.protocol == UDP and (flow.destination, flow.destination_port) in self._sad.udp_ends:
            # One of its packets may hold ESP for an SA here.
            return
        if not all(self._is_for_native(state) for state in states):
            return
        inside = None
        try:
            for state in reversed(states):
                inside = self._inbound_sa(state, inside)
                self.card.install_sa(inside)
        except ValueError:
            # As in `_tell_flow`.
            return
        assert inside is not None
        self.card.allow(flow, inside)

    def _is_for_native(self, state: SaState) -> bool:
        """Whether the NIC works on an SA now and need not see each of its packets."""
        return self._sad.offers(state) and self._miniport.may_miss_packets_of(state.handle)

    def _outbound_sa(self, state: SaState) -> vnic_native.OutboundSa:
        assert isinstance(state, NativeSaState)
        sa = state.sa
        ivs = self._ivs_of(sa)
        if state.told is None or not state.told.serves(state.sequence_number, (ivs,)):
            made = self.card.outbound_sa(
                **_keys(sa),
                spi=sa.spi,
                ivs=cast("vnic_native.CounterIvs | None", ivs),
                esn=sa.esn,
                ah_length=ah_sizes(sa) if sa.protocol is IpsecProtocol.AH else 0,
                sequence=cast(vnic_native.OutboundSequence, state.sequence),
                counters=cast(vnic_native.SaCounters, state.counters),
                mark=state.sequence_number,
            )
            state.told = _Told(made, state.sequence_number, (ivs,))
        return cast(vnic_native.OutboundSa, state.told.sa)

    def _ivs_of(self, sa: SecurityAssociation) -> CounterIvs | None:
        """The IVs that the NIC takes from for an outbound SA with a counter-mode key."""
        key = counter_key(sa)
        return None if key is None else self._counter_keys.ivs_of(key)

    def _inbound_sa(self, state: SaState, inside: vnic_native.InboundSa | None) -> vnic_native.InboundSa:
        assert isinstance(state, NativeSaState)
        sa = state.sa
        made_with = (inside, state.window, state.partner)
        if state.told is None or not state.told.serves(state.sequence_number, made_with):
            made = self.card.inbound_sa(
                **_keys(sa),
                spi=sa.spi,
                protocol=sa.protocol,
                source=sa.source,
                destination=sa.destination,
                tunnel=sa.mode is Mode.TUNNEL,
                no_ecn=sa.no_ecn,
                esn=sa.esn,
                inside=inside,
                only_inside=sa.protocol is IpsecProtocol.ESP and state.partner is not None,
                udp=None if sa.udp is None else (sa.udp.source_port, sa.udp.destination_port, sa.ipv6),
                window=cast(vnic_native.ReplayWindow, state.window),
                counters=cast(vnic_native.SaCounters, state.counters),
                mark=state.sequence_number,
            )
            state.told = _Told(made, state.sequence_number, made_with)
        return cast(vnic_native.InboundSa, state.told.sa)

    # ------------------------------------------------------------------------------- the rest of the contract

    @property
    def counters(self) -> CardCounters:
        counters = self._audit.card
        sent, received = self.card.sent, self.card.received
        counters.tx_offloaded += sent - self._sent
        counters.rx_offloaded += received - self._received
        self._sent, self._received = sent, received
        return counters

    @property
    def wants_room(self) -> bool:
        """Whether the NIC has to see received frames, to find an SA that it asks to be deleted."""
        return self._miniport.wants_room

    @property
    def punts(self) -> dict[str, int]:
        """Frames that the native card has left to the reference engine, by reason."""
        return self.card.punts

    def request_sa_deletion(self, handle: OffloadHandle) -> None:
        super().request_sa_deletion(handle)
        self._forget()


def obstacle_to_sending(encapsulation: Encapsulation) -> str:
    """Why packets of a flow are not for the native card, or "": what its core lacks on send."""
    if encapsulation.software:
        return "software IPsec seals it"
    if encapsulation.transport is not None and encapsulation.tunnel is not None:
        return "a transport and a tunnel portion"
    for state in encapsulation.states():
        obstacle = obstacle_of(state.sa)
        if obstacle:
            return obstacle
        if state.peer is not None:
            return "a peer that has moved"
    return ""


def obstacle_to_receiving(states: list[SaState]) -> str:
    """Why packets of these SAs, outermost first, are not for the native card, or "": what its core lacks on
    receive."""
    protocols = [state.sa.protocol for state in states]
    if protocols not in ([IpsecProtocol.ESP], [IpsecProtocol.AH], [IpsecProtocol.AH, IpsecProtocol.ESP]):
        return "other layers than ESP, AH, or AH over ESP"
    if len(states) == 2 and states[0].sa.mode is Mode.TUNNEL:
        return "a transport and a tunnel portion"
    for state in states:
        obstacle = obstacle_of(state.sa)
        if obstacle:
            return obstacle
        if state.peer is not None:
            return "a peer that has moved"
        if not any(state.sa.destination):
            return "an SA for any destination"
        if state.half_known:
            return "numbers of which only the upper half is known"
    return ""


def obstacle_of(sa: SecurityAssociation) -> str:
    """What about an SA is not for the native card, or ""."""
    if sa.mode is None:
        return "an SA that leaves its mode open"
    outbound = sa.direction is Direction.OUTBOUND
    if outbound and sa.header_settings not in _NATIVE_HEADERS:
        return "header_settings"
    if not outbound and sa.udp is not None:
        if sa.mode is not Mode.TUNNEL:
            return "checksums to be put right inside UDP encapsulation"
        if sa.udp.follow or not sa.udp.source_port:
            return "UDP encapsulation from any port"
    meaningless = _NOT_OF_SENDING if outbound else _NOT_OF_RECEIVING
    for member in fields(sa):
        name = member.name
        if name in _ANY_VALUE or name in meaningless or name == "header_settings":
            continue
        if getattr(sa, name) != member.default:
            return name
    return ""


def counter_key(sa: SecurityAssociation) -> KeyMaterial | None:
    """The key of an SA whose IVs are counted, or None."""
    if sa.encryption is not None and sa.encryption.combined:
        return sa.encryption_key
    if sa.integrity is not None and sa.integrity.iv_length:
        return sa.integrity_key
    return None


def _keys(sa: SecurityAssociation) -> dict[str, Any]:
    """What the ciphers of an SA are made of, as `vnic_native.Card` names it."""
    return {
        "encryption": "" if sa.encryption is None else sa.encryption.name,
        "encryption_key": sa.encryption_key.reveal(),
        "integrity": "" if sa.integrity is None else sa.integrity.name,
        "integrity_key": sa.integrity_key.reveal(),
        "icv_length": sa.icv_length,
    }
