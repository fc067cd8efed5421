"""Frames of the host on their way to the wire: verdict, SA, numbers, framing.

Law: decides and frames, never seals. What leaves here with `transmit` must pass the NIC; what leaves
without it is what software IPsec has sealed, or what policy lets pass in clear. Everything else ends here and
is counted.

    parse -> policy (cached per flow) -> BYPASS: cut superframes, complete checksums
                                      -> PROTECT: SAs -> cut -> numbers -> framing
                                                  (-> software IPsec, where the NIC may or can not)
                                      -> DISCARD: counted

A packet that does not fit is cut, if its sender allows that, before or after it is protected; otherwise it
ends here and its sender is told how big it may be. What is cut after it is protected is not the NIC's (R16).

Source: RFC 4301 §5.1, §8.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from math import inf

from vnic.errors import OidError, PacketError
from vnic.ipsec.association import Direction, IpsecProtocol, Mode
from vnic.ipsec.counters import EngineEvent, EventKind
from vnic.ipsec.drops import DropReason
from vnic.ipsec.judgement import Judgement, TemplateChoice
from vnic.ipsec.policy import FlowKey, FragmentRule, PolicyAction, PolicyEntry, VlanRule
from vnic.ndis.capabilities import (
    ENCAPSULATION_IEEE_802_3_P_AND_Q,
    TRANSPORT_OVER_UDP_ESP_TUNNEL,
    UDP_ESP_TRANSPORT,
    UDP_ESP_TRANSPORT_OVER_TUNNEL,
)
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.ethernet import ETHERNET_LENGTH, ethertype, hides_behind_tags, ip_offset, is_tagged
from vnic.packet.icmp import is_neighbour_discovery
from vnic.packet.ip import IPV4_LENGTH, IPV6_LENGTH, UDP, IpHeader, flow_label, parse_ip
from vnic.packet.udp import udp_checksum
from vnic.packet.vnet import VnetHeader
from vnic.transport.audit import Audit
from vnic.transport.dummies import Course, Dummies
from vnic.transport.encapsulation import Encapsulation, Portion
from vnic.transport.flow import FirstFragments, flow_key, judged_length
from vnic.transport.fragmentation import allow_cutting, cut, may_be_cut
from vnic.transport.keepalive import Keepalives
from vnic.transport.paths import PathMtus, outbound_sa, report_of
from vnic.transport.pmtu import MIN_MTU_IPV6, RateLimit, prohibited, too_big
from vnic.transport.reassembly import Reassembly, may_be_joined
from vnic.transport.rooms import Rooms
from vnic.transport.sad import Sad
from vnic.transport.segmentation import (
    complete_checksum,
    is_superframe,
    layer4_length,
    segment_count,
    segment_size,
    segments,
)
from vnic.transport.sizes import shape_of
from vnic.transport.spd import Spd, Unsure
from vnic.transport.state import SaState

_MAX_FLOWS = 8192
"""Verdicts remembered; the cache starts afresh beyond."""

_MOST_INSIDE = 128
"""No fewer bytes than the transport portion of a packet adds inside its tunnel, AH and ESP together."""

_Members = tuple[SaState | None, SaState | None]
"""The ESP and the AH SA of a portion; both None where there is none."""

Verdict = DropReason | Encapsulation | None
"""What to do with a flow: end it, protect it, or (None) let it pass."""


class Outbound:
    """The send half of the transport.

    Attributes:
        wire_mtu: largest IP packet the wire carries, in bytes.
        fragment_before: whether an IPv4 packet too big for a tunnel is cut before it is protected.
        reassembly: fragments of the host that transport mode will protect as one packet.
    """

    def __init__(
        self, spd: Spd, sad: Sad, audit: Audit, wire_mtu: int, *, first_identification: int = 0
    ) -> None:
        """Make the send half.

        Args:
            first_identification: name of the first IPv6 packet that is cut, 32 bits; unpredictable where that
                matters (RFC 7739).
        """
        self._spd = spd
        self._sad = sad
        self._audit = audit
        self.wire_mtu = wire_mtu
        self.fragment_before = True
        self._identification = first_identification
        self._answers: list[NetBuffer] = []
        self._answer_limit = RateLimit()
        self._paths = PathMtus()
        self._keepalives = Keepalives()
        self._dummies = Dummies()
        self._flows: dict[FlowKey, Verdict] = {}
        self._firsts = FirstFragments()
        self.reassembly = Reassembly()
        self._rooms = Rooms(spd, sad)
        self._twins: dict[Encapsulation, Encapsulation] = {}
        self._generation = (-1, -1, -1)

    def send(self, burst: list[NetBuffer], now: float) -> list[NetBuffer]:
        """Frame a burst of the host's; gives what goes to the NIC and the wire, in order."""
        if self._sad.software is not None:
            self._sad.software.update_nic()
            self._sad.offer_again()
        self._forget_stale_verdicts()
        ready: list[NetBuffer] = []
        for buffer in burst:
            try:
                self._send(buffer, now, ready)
            except PacketError:
                self._audit.drop(DropReason.OUT_MALFORMED, now)
        return ready

    def learn(self, frame: bytearray, header: IpHeader, now: float) -> bool | None:
        """Hear what the wire says of a packet sealed here that was too big on its way.

        Gives whether it was believed; None: it says nothing of the kind.
        """
        report = report_of(frame, header)
        state = None if report is None else outbound_sa(report, self._sad)
        if report is None or state is None:
            return None
        return self._paths.take(report, state, self.wire_mtu, now)

    def _path_mtu(self, encapsulation: Encapsulation, now: float) -> int:
        """Largest IP packet that gets where this encapsulation sends, as far as is known."""
        if not self._paths.known:
            return self.wire_mtu
        return self._paths.smallest(_outermost(encapsulation).states(), self.wire_mtu, now)

    def path_of(self, encapsulation: Encapsulation, now: float) -> tuple[int, float]:
        """Largest IP packet that gets where an encapsulation sends, as far as is known, and `now` until which
        that holds if nothing is heard of the path."""
        mtu = self._path_mtu(encapsulation, now)
        until = [self._paths.known_until(state, now) for state in _outermost(encapsulation).states()]
        return mtu, min((one for one in until if one > now), default=inf)

    @property
    def path_generation(self) -> int:
        """Grows with everything that is heard of paths and believed."""
        return self._paths.generation

    @property
    def deadline(self) -> float:
        """`now` at which `keep_alive` may have something to send; infinity is never."""
        return min(self._keepalives.deadline, self._dummies.deadline)

    def keep_alive(self, now: float) -> list[NetBuffer]:
        """Give the NAT keepalives that are due, for the wire."""
        table = self._sad.table
        frames = self._keepalives.take(now, lambda state: table.get(state.sa.id) is state)
        self._audit.card.tx_nat_keepalives += len(frames)
        return frames

    def take_answers(self) -> list[NetBuffer]:
        """Give the frames for the host that tell it what was too big, and forget them."""
        answers = self._answers
        if answers:
            self._answers = []
        return answers

    def _send(self, buffer: NetBuffer, now: float, ready: list[NetBuffer]) -> None:
        frame = buffer.frame
        offset = ip_offset(frame)
        if self._spd.defaults.vlan is not VlanRule.PROTECT and is_tagged(frame):
            self._send_tagged(buffer, offset, now, ready)
            return
        if not offset:
            if hides_behind_tags(frame):
                raise PacketError("nobody can tell what is behind the VLAN tags")
            self._pass_non_ip(buffer, now, ready)
            return
        header = parse_ip(frame, offset)
        if header.version == 6 and is_neighbour_discovery(frame, header):
            self._audit.card.tx_passed += self._emit_clear(buffer, header, now, ready)
            return
        flow = flow_key(frame, header)
        if header.fragment and self._spd.defaults.fragments is FragmentRule.STATEFUL:
            flow = self._firsts.flow_of(frame, header, flow, now)
        self._send_ip(buffer, header, flow, now, ready)

    def _send_ip(
        self,
        buffer: NetBuffer,
        header: IpHeader,
        flow: FlowKey,
        now: float,
        ready: list[NetBuffer],
        *,
        joined: bool = False,
    ) -> None:
        """Do with an IP packet what policy says.

        Args:
            joined: the host sent it in fragments, so it may be cut again.
        """
        verdict = self._verdict(flow)
        if verdict is None:
            sent = self._emit_clear(buffer, header, now, ready, joined=joined)
            self._audit.card.tx_bypassed += sent
        elif isinstance(verdict, Encapsulation):
            if verdict.transport is not None and header.fragment:
                self._join(buffer.frame, header, now, ready)
            else:
                self._protect(buffer, header, flow, verdict, now, ready, joined=joined)
        else:
            self._drop(verdict, header, now)
            if verdict is DropReason.OUT_POLICY_DISCARD and self._spd.defaults.answer_discards:
                self._tell_prohibited(buffer.frame, header, now)

    def _join(self, frame: bytearray, header: IpHeader, now: float, ready: list[NetBuffer]) -> None:
        """Keep a fragment that transport mode wants protected as part of its packet (RFC 4303 §3.3.4); send
        the packet that it completes, as policy has it for the whole."""
        if not may_be_joined(frame, header):
            self._drop(DropReason.OUT_FRAGMENT, header, now)
            return
        whole = self.reassembly.add(frame, header, now)
        self._count_fragments(now)
        if whole is None:
            return
        self._audit.card.tx_reassembled += 1
        packet = parse_ip(whole, header.offset)
        self._send_ip(NetBuffer(whole), packet, flow_key(whole, packet), now, ready, joined=True)

    def _count_fragments(self, now: float) -> None:
        """Count the fragments of the host that will be part of no packet."""
        ended = self.reassembly.ended
        for one in ended:
            reason = DropReason.OUT_FRAGMENT_INCOMPLETE
            self._audit.drop(reason, now, source=one.source, destination=one.destination, count=one.count)
        ended.clear()

    def keep_time(self, now: float) -> None:
        """Give up fragments of the host whose time is over."""
        self.reassembly.expire(now)
        self._count_fragments(now)

    def make_dummies(self, now: float) -> list[NetBuffer]:
        """Frame the dummies that are due; gives what goes to the NIC and the wire."""
        self._forget_stale_verdicts()
        ready: list[NetBuffer] = []
        for course in self._dummies.take(now):
            verdict = self._verdict(course.flow)
            if isinstance(verdict, Encapsulation) and verdict.dummy_interval_ms:
                self._make_dummy(course, verdict, now, ready)
        return ready

    def _make_dummy(
        self, course: Course, encapsulation: Encapsulation, now: float, ready: list[NetBuffer]
    ) -> None:
        """Frame a dummy of the SAs that would protect the next packet of a flow."""
        tunnel = encapsulation.tunnel
        assert tunnel is not None
        assert tunnel.esp is not None
        able = self._sad.nic.capabilities.encapsulation & ENCAPSULATION_IEEE_802_3_P_AND_Q
        ends = encapsulation.ends
        made: Verdict = Encapsulation(None, tunnel, ends)
        if not encapsulation.software and len(course.ethernet) != ETHERNET_LENGTH and not able:
            made = self._in_software([(None, None), (tunnel.esp, tunnel.ah)], ends, names_ports=False)
        if not isinstance(made, Encapsulation):
            return
        if made.take_numbers(1) is not None:
            if self._sad.lifetimes.admit(made.states(), 1, 0, now) is not None:
                return
            made.take_numbers(1)
        already = len(ready)
        path_mtu = self._path_mtu(made, now)
        length = max(min(course.length, made.tunnel_room(path_mtu)), made.pad_to(path_mtu))
        ready.append(made.dummy(course.ethernet, length))
        if made.software:
            self._seal_in_software(made, ready, already, now)
        tunnel.esp.padding += length + _MOST_INSIDE
        self._audit.card.tx_dummies += 1
        self._dummies.note(tunnel.esp.sa, course, now)

    def _send_tagged(self, buffer: NetBuffer, offset: int, now: float, ready: list[NetBuffer]) -> None:
        """Pass or end a frame with a VLAN tag, as the adapter is set; policy has no part in it."""
        if self._spd.defaults.vlan is VlanRule.DROP:
            self._audit.drop(DropReason.OUT_VLAN, now)
        elif offset:
            header = parse_ip(buffer.frame, offset)
            self._audit.card.tx_passed += self._emit_clear(buffer, header, now, ready)
        else:
            self._pass(buffer, ready)

    def _tell_prohibited(self, frame: bytearray, header: IpHeader, now: float) -> None:
        """Tell the host that policy discarded its packet."""
        answer = prohibited(frame, header)
        if answer is not None and self._answer_limit.take(now):
            self._answers.append(NetBuffer(answer))
            self._audit.card.tx_prohibited_answered += 1
        else:
            self._audit.card.tx_prohibited_unanswered += 1

    def answer(self, frame: bytearray, now: float, *, sealed: bool) -> list[NetBuffer]:
        """Frame an answer of the card's own to the wire, as policy has it; none where policy lets none out.

        Args:
            frame: an ICMP error about a packet of the wire; the caller gives it away.
            sealed: that packet came by an SA, so an answer that quotes it must not leave in clear.
        """
        ready: list[NetBuffer] = []
        header = parse_ip(frame, ip_offset(frame))
        flow = flow_key(frame, header)
        verdict = self._verdict(flow)
        if isinstance(verdict, Encapsulation):
            self._protect(NetBuffer(frame), header, flow, verdict, now, ready)
        elif verdict is None and not sealed:
            self._emit_clear(NetBuffer(frame), header, now, ready)
        return ready

    def _pass_non_ip(self, buffer: NetBuffer, now: float, ready: list[NetBuffer]) -> None:
        frame = buffer.frame
        arp = frame[12:14] == b"\x08\x06"
        if not arp and self._spd.defaults.non_ip is PolicyAction.DISCARD:
            self._audit.drop(DropReason.OUT_NON_IP, now)
            return
        self._pass(buffer, ready)

    def _pass(self, buffer: NetBuffer, ready: list[NetBuffer]) -> None:
        """Send a frame that is not IP as it is."""
        if buffer.vnet is not None:
            if is_superframe(buffer.vnet):
                raise PacketError("superframe that is not IP")
            # Its EtherType has been judged.
            complete_checksum(buffer.frame, buffer.vnet, len(buffer.frame), ethertype(buffer.frame)[1])
            buffer.vnet = None
        self._audit.card.tx_passed += 1
        ready.append(buffer)

    def _verdict(self, flow: FlowKey) -> Verdict:
        try:
            return self._flows[flow]
        except KeyError:
            pass
        verdict = self._decide(flow)
        if len(self._flows) >= _MAX_FLOWS:
            self._forget_verdicts()
        # Deciding may itself have joined two SAs into a bundle, which outdates older verdicts.
        self._forget_stale_verdicts()
        self._flows[flow] = verdict
        return verdict

    def _forget_stale_verdicts(self) -> None:
        generation = (self._spd.generation, self._sad.generation, self._sad.nic.configuration_generation)
        if generation != self._generation:
            self._forget_verdicts()
            self._generation = generation

    def _forget_verdicts(self) -> None:
        self._flows.clear()
        self._twins.clear()

    def _decide(self, flow: FlowKey) -> Verdict:
        try:
            policy = self._spd.lookup(Direction.OUTBOUND, flow)
        except Unsure:
            return DropReason.OUT_FRAGMENT
        action = self._action(policy)
        if action is PolicyAction.BYPASS:
            return None
        if action is PolicyAction.DISCARD or policy is None:
            return DropReason.OUT_POLICY_DISCARD
        return self._encapsulation(policy, flow)

    def _action(self, policy: PolicyEntry | None) -> PolicyAction:
        return self._spd.defaults.outbound if policy is None else policy.action

    def judge(self, flow: FlowKey) -> Judgement:
        """Say what would become of a packet, as `send` would decide, and change nothing: no number is taken
        and no SA is joined to another."""
        try:
            policy = self._spd.lookup(Direction.OUTBOUND, flow)
        except Unsure:
            return Judgement(PolicyAction.DISCARD, None, DropReason.OUT_FRAGMENT)
        action = self._action(policy)
        if action is not PolicyAction.PROTECT or policy is None:
            discarded = action is PolicyAction.DISCARD
            return Judgement(action, policy, DropReason.OUT_POLICY_DISCARD if discarded else None)
        states, _ = self._chosen(policy, flow)
        choices = tuple(
            TemplateChoice(template, None if state is None else state.sa.id)
            for template, state in zip_longest(policy.templates, states)
        )
        return Judgement(action, policy, self._obstacle(policy, states), choices)

    def _obstacle(self, policy: PolicyEntry, states: list[SaState | None]) -> DropReason | None:
        """Why a packet cannot be protected by these SAs, or None."""
        there = [state for state in states if state is not None]
        if len(there) < len(policy.templates) or not _may_wrap(*_portions(policy, there)):
            return DropReason.OUT_NO_SA
        if any(state.sequence is not None and state.sequence.exhausted for state in there):
            return DropReason.OUT_SEQUENCE_EXHAUSTED
        if not all(state.may_send for state in there):
            return DropReason.OUT_NOT_RESERVED
        if self._sad.software is None and not self._nic_may(*_portions(policy, there)):
            return DropReason.OUT_NOT_OFFLOADED
        return None

    def _chosen(
        self, policy: PolicyEntry, flow: FlowKey
    ) -> tuple[list[SaState | None], tuple[bytes, bytes] | None]:
        """Choose an SA for each template, innermost first, up to the first for which there is none; and give
        the end points of the tunnel."""
        source, destination = flow.source, flow.destination
        chosen: list[SaState | None] = []
        ends: tuple[bytes, bytes] | None = None
        esp: SaState | None = None
        for template, alone in zip(policy.templates, _alone(policy), strict=True):
            if template.mode is Mode.TUNNEL:
                assert template.source is not None
                assert template.destination is not None
                if ends is None:
                    esp = None
                source, destination = ends = template.source, template.destination
            elif template.source not in (None, source) or template.destination not in (None, destination):
                # Transport mode ends where the packet, or the tunnel outside it, ends.
                return [*chosen, None], ends
            state = self._sad.resolve(template, source, destination, flow, partner_of=esp, alone=alone)
            chosen.append(state)
            if state is None:
                break
            if template.protocol is IpsecProtocol.ESP:
                esp = state
        return chosen, ends

    def _encapsulation(self, policy: PolicyEntry, flow: FlowKey) -> Verdict:
        """Find the SAs of a policy's templates, innermost first, and who seals for them."""
        chosen, ends = self._chosen(policy, flow)
        states = [state for state in chosen if state is not None]
        if len(states) < len(policy.templates):
            return DropReason.OUT_NO_SA
        esp_and_ah = _portions(policy, states)
        if not _may_wrap(*esp_and_ah):
            return DropReason.OUT_NO_SA
        self._choose_subtypes(*esp_and_ah)
        if self._nic_may(*esp_and_ah):
            try:
                transport, tunnel = (self._offloaded(*states) for states in esp_and_ah)
            except OidError:
                pass
            else:
                return Encapsulation(transport, tunnel, ends, names_ports=_names_ports(policy, esp_and_ah))
        return self._in_software(esp_and_ah, ends, names_ports=_names_ports(policy, esp_and_ah))

    def _choose_subtypes(self, transport: _Members, tunnel: _Members) -> None:
        """Say to who holds SAs with UDP encapsulation what is around or inside them (sheet §9.2)."""
        inner, outer = transport[0], tunnel[0]
        combined = any(transport) and any(tunnel)
        if inner is not None and inner.sa.udp is not None:
            self._sad.wrap_as(inner, UDP_ESP_TRANSPORT_OVER_TUNNEL if combined else UDP_ESP_TRANSPORT)
        if outer is not None and outer.sa.udp is not None and combined:
            # Nobody minds when it then carries what is not protected inside.
            self._sad.wrap_as(outer, TRANSPORT_OVER_UDP_ESP_TUNNEL)

    def _nic_may(self, *portions: _Members) -> bool:
        """Whether the NIC, as it is configured now, works on all these SAs in one packet."""
        able = self._sad.nic.capabilities
        transport, tunnel = (esp is not None or ah is not None for esp, ah in portions)
        if transport and tunnel and not able.transport_tunnel_combined:
            return False
        # With V2 off, what the NIC still works on came by V1 OIDs, which name the mode.
        if able.encapsulation and ((transport and not able.transport) or (tunnel and not able.tunnel)):
            return False
        for esp, ah in portions:
            if esp is not None and ah is not None and esp.partner is not ah and not able.ah_esp_combined:
                return False
            for state in (esp, ah):
                if state is not None and not self._sad.offers(state):
                    return False
        return True

    def _offloaded(self, esp: SaState | None, ah: SaState | None) -> Portion | None:
        """The portion that the NIC seals with these SAs.

        Raises:
            OidError: it does not take them so.
        """
        if esp is not None and ah is not None:
            self._sad.bundle(esp, ah)
            return Portion(esp, ah)
        alone = esp or ah
        if alone is None:
            return None
        if alone.partner is not None:
            self._sad.unbundle(alone)
        return Portion(esp, ah)

    def _in_software(
        self, portions: list[_Members], ends: tuple[bytes, bytes] | None, *, names_ports: bool
    ) -> Verdict:
        """The same packets, sealed by software IPsec."""
        if self._sad.software is None:
            return DropReason.OUT_NOT_OFFLOADED
        made: list[Portion | None] = []
        for esp, ah in portions:
            states = [state for state in (esp, ah) if state is not None]
            if not states:
                made.append(None)
                continue
            try:
                self._sad.take_into_software(*states)
            except OidError:
                return DropReason.OUT_NO_SA
            made.append(Portion(esp, ah, software=True))
        return Encapsulation(made[0], made[1], ends, names_ports=names_ports)

    def _beyond_nic(self, encapsulation: Encapsulation, header: IpHeader) -> bool:
        """Whether one packet is more than the NIC takes, though it takes the SAs: a VLAN tag; options or
        extension headers in front of the IPsec header."""
        able = self._sad.nic.capabilities
        if header.offset != ETHERNET_LENGTH and not able.encapsulation & ENCAPSULATION_IEEE_802_3_P_AND_Q:
            return True
        if encapsulation.transport is None or not header.has_options:
            return False
        return not (able.ipv4_options if header.version == 4 else able.ipv6_non_ipsec_extension_headers)

    def _twin(self, encapsulation: Encapsulation) -> Verdict:
        """The encapsulation of the same packets by software IPsec."""
        twin = self._twins.get(encapsulation)
        if twin is None:
            portions = [
                (None, None) if portion is None else (portion.esp, portion.ah)
                for portion in (encapsulation.transport, encapsulation.tunnel)
            ]
            made = self._in_software(portions, encapsulation.ends, names_ports=encapsulation.names_ports)
            if not isinstance(made, Encapsulation):
                return made
            self._forget_stale_verdicts()
            twin = self._twins[encapsulation] = made
        return twin

    def _emit_clear(
        self,
        buffer: NetBuffer,
        header: IpHeader,
        now: float,
        ready: list[NetBuffer],
        *,
        joined: bool = False,
    ) -> int:
        """Send a packet as it is, cut if it is a superframe; gives the number of packets.

        Args:
            joined: as for `_send_ip`.
        """
        vnet = buffer.vnet
        if vnet is not None and is_superframe(vnet):
            frame = buffer.frame
            layer4 = layer4_length(frame, header, vnet)
            size = segment_size(header, header.header_length + layer4, vnet, self.wire_mtu)
            if not size:
                if self._datagrams_may_be_cut(frame, header):
                    return sum(
                        self._emit_clear(NetBuffer(one), parse_ip(one, header.offset), now, ready)
                        for one in _packets(frame, header, layer4, vnet)
                    )
                self._tell_too_big(frame, header, self.wire_mtu, now)
                return 0
            ethernet = bytes(frame[: header.offset])
            count = 0
            for pieces in segments(frame, header, layer4, size):
                ready.append(NetBuffer(bytearray().join((ethernet, *pieces))))
                count += 1
            return count
        too_long = header.end - header.offset > self.wire_mtu
        if too_long and not joined and not may_be_cut(buffer.frame, header):
            self._tell_too_big(buffer.frame, header, self.wire_mtu, now)
            return 0
        if vnet is not None:
            _complete(buffer.frame, vnet, header)
            buffer.vnet = None
        if too_long:
            fragments = self._cut(buffer.frame, header, now)
            ready += [NetBuffer(one) for one in fragments]
            return len(fragments)
        ready.append(buffer)
        return 1

    def _cut(
        self, frame: bytearray, header: IpHeader, now: float, room: int | None = None
    ) -> list[bytearray]:
        """Cut a packet so that its pieces fit `room`, or the wire, and count it; none if that cannot be."""
        self._identification = (self._identification + 1) & 0xFFFFFFFF
        pieces = cut(frame, header, self.wire_mtu if room is None else room, self._identification)
        if not pieces:
            self._drop(DropReason.OUT_TOO_BIG, header, now)
            return []
        card = self._audit.card
        card.tx_fragmented += 1
        card.tx_fragments += len(pieces)
        return pieces

    def _datagrams_may_be_cut(self, frame: bytearray, header: IpHeader) -> bool:
        return header.protocol == UDP and may_be_cut(frame, header)

    def _tell_too_big(self, frame: bytearray, header: IpHeader, mtu: int, now: float) -> None:
        """End a packet that is too big, and tell its sender what would pass."""
        self._drop(DropReason.OUT_TOO_BIG, header, now)
        answer = too_big(frame, header, mtu)
        if answer is None:
            return
        if self._answer_limit.take(now):
            self._answers.append(NetBuffer(answer))
            self._audit.card.tx_too_big_answered += 1
        else:
            self._audit.card.tx_too_big_unanswered += 1

    def _cut_first(
        self,
        buffer: NetBuffer,
        header: IpHeader,
        flow: FlowKey,
        encapsulation: Encapsulation,
        now: float,
        ready: list[NetBuffer],
    ) -> None:
        """Cut a packet into pieces that fit once each is protected on its own, and protect them."""
        room = encapsulation.room(self._path_mtu(encapsulation, now), header.header_length)
        if buffer.vnet is not None:
            _complete(buffer.frame, buffer.vnet, header)
        for piece in self._cut(buffer.frame, header, now, room):
            part = parse_ip(piece, header.offset)
            self._protect(NetBuffer(piece), part, flow, encapsulation, now, ready)

    def _replace_by_fragments(
        self, ready: list[NetBuffer], already: int, offset: int, now: float, path_mtu: int
    ) -> None:
        """Cut the sealed frames of `ready` from `already` on so that they fit the path."""
        sealed = ready[already:]
        del ready[already:]
        for buffer in sealed:
            pieces = self._cut(buffer.frame, parse_ip(buffer.frame, offset), now, path_mtu)
            ready += [NetBuffer(piece) for piece in pieces]

    def _protect(
        self,
        buffer: NetBuffer,
        header: IpHeader,
        flow: FlowKey,
        encapsulation: Encapsulation,
        now: float,
        ready: list[NetBuffer],
        *,
        joined: bool = False,
    ) -> None:
        if encapsulation.transport is not None and header.fragment:
            self._drop(DropReason.OUT_FRAGMENT, header, now)
            return
        frame = buffer.frame
        vnet = buffer.vnet
        path_mtu = self._path_mtu(encapsulation, now)
        room = encapsulation.room(path_mtu, header.header_length)
        length = header.end - header.offset
        oversize = length > room and (vnet is None or not is_superframe(vnet))
        if oversize:
            if (
                not joined
                and not may_be_cut(frame, header)
                and not (header.version == 6 and length <= MIN_MTU_IPV6)
            ):
                self._tell_too_big(frame, header, room, now)
                return
            if (
                self.fragment_before
                and header.version == 4
                and encapsulation.transport is None
                and not encapsulation.names_ports
            ):
                self._cut_first(buffer, header, flow, encapsulation, now, ready)
                return
        if (
            (oversize or header.has_options or header.offset != ETHERNET_LENGTH)
            and not encapsulation.software
            and (oversize or self._beyond_nic(encapsulation, header))
        ):
            twin = self._twin(encapsulation)
            if not isinstance(twin, Encapsulation):
                self._drop(twin or DropReason.OUT_NOT_OFFLOADED, header, now)
                return
            encapsulation = twin
        layer4 = size = 0
        count = 1
        if vnet is not None and is_superframe(vnet):
            layer4 = layer4_length(frame, header, vnet)
            size = segment_size(header, header.header_length + layer4, vnet, room)
            if not size:
                if self._datagrams_may_be_cut(frame, header):
                    for one in _packets(frame, header, layer4, vnet):
                        part = parse_ip(one, header.offset)
                        self._protect(NetBuffer(one), part, flow, encapsulation, now, ready)
                    return
                self._tell_too_big(frame, header, room, now)
                return
            count = segment_count(header, header.header_length + layer4, size)
        elif vnet is not None:
            _complete(frame, vnet, header)
            buffer.vnet = None
        # Every segment has headers of its own.
        length = header.end - header.offset + (count - 1) * (header.header_length + layer4)
        if encapsulation.take_numbers(count) is not None:
            refused = self._sad.lifetimes.admit(encapsulation.states(), count, length, now)
            if refused is not None:
                self._refuse(refused, buffer, header, flow, count, now, ready, joined=joined)
                return
            encapsulation.take_numbers(count)
        already = len(ready)
        ethernet = bytes(frame[: header.offset])
        protocol = header.protocol
        protocol_offset = header.protocol_offset - header.offset
        pad_to = encapsulation.pad_to(path_mtu)
        if size:
            pieces = segments(frame, header, layer4, size)
            encapsulation.frame_segments(ethernet, pieces, protocol, protocol_offset, ready, pad_to)
        else:
            payload = frame[header.payload_offset : header.end]
            ip_header = bytes(frame[header.offset : header.payload_offset])
            framed = encapsulation.frame(
                ethernet,
                ip_header,
                protocol,
                protocol_offset,
                [payload],
                len(payload),
                pad_to,
            )
            if oversize and framed.frame[header.offset] >> 4 == 4:
                number = _outermost(encapsulation).last_number
                allow_cutting(framed.frame, header.offset, number & 0xFFFF)
            ready.append(framed)
        if encapsulation.software:
            self._seal_in_software(encapsulation, ready, already, now)
        outer = encapsulation.tunnel or encapsulation.transport
        if outer is not None and outer.udp_length and len(ready) > already:
            assert outer.esp is not None
            last = ready[-1].frame
            if last[header.offset] >> 4 == 6:
                for sealed in ready[already:]:
                    _complete_udp(sealed.frame, header.offset)
            self._keepalives.note(outer.esp, last, header.offset, outer.udp_ports, now)
        if oversize:
            self._replace_by_fragments(ready, already, header.offset, now, path_mtu)
        if encapsulation.dummy_interval_ms:
            assert encapsulation.tunnel is not None
            assert encapsulation.tunnel.esp is not None
            self._dummies.note(encapsulation.tunnel.esp.sa, Course(flow, ethernet, length // count), now)
        if encapsulation.tunnel is not None and (pad_to or encapsulation.transport is not None):
            for state in encapsulation.tunnel.states():
                state.padding += count * (pad_to + _MOST_INSIDE)
        for state in encapsulation.states():
            state.use_time = now
            state.counters.packets += count
            state.counters.bytes += length

    def _seal_in_software(
        self, encapsulation: Encapsulation, ready: list[NetBuffer], already: int, now: float
    ) -> None:
        """Seal the frames of `ready` from `already` on; what fails may hold clear text and ends here."""
        software = self._sad.software
        assert software is not None
        burst = ready[already:]
        del ready[already:]
        sealed = software.seal(burst, encapsulation.states(), ready)
        ready += sealed
        self._audit.card.tx_software += len(sealed)
        if len(sealed) < len(burst):
            self._audit.drop(DropReason.OUT_SOFTWARE, now, count=len(burst) - len(sealed))

    def _refuse(
        self,
        state: SaState,
        buffer: NetBuffer,
        header: IpHeader,
        flow: FlowKey,
        count: int,
        now: float,
        ready: list[NetBuffer],
        *,
        joined: bool,
    ) -> None:
        """An SA may not be used for these packets: use another that fits, or end them."""
        sequence = state.sequence
        assert sequence is not None
        if not state.ended and state.reserved < sequence.last + count <= sequence.limit:
            self._drop_of(DropReason.OUT_NOT_RESERVED, state, buffer, header, flow, count, now)
            return
        if not state.ended:
            self._exhausted(state, flow, flow_label(buffer.frame, header), count, now)
            return
        self._forget_stale_verdicts()
        verdict = self._verdict(flow)
        if isinstance(verdict, Encapsulation):
            # No loop: it is without the SA that has ended.
            self._protect(buffer, header, flow, verdict, now, ready, joined=joined)
            return
        self._drop_of(DropReason.OUT_SA_EXPIRED, state, buffer, header, flow, count, now)

    def _drop_of(
        self,
        reason: DropReason,
        state: SaState,
        buffer: NetBuffer,
        header: IpHeader,
        flow: FlowKey,
        count: int,
        now: float,
    ) -> None:
        """End packets that an SA may not be used for."""
        self._audit.drop(
            reason,
            now,
            sa=state.sa.id,
            counters=state.counters,
            source=flow.source,
            destination=flow.destination,
            sequence_number=state.sequence_number,
            count=count,
            protocol=int(state.sa.id.protocol),
            spi=state.sa.spi,
            flow_label=flow_label(buffer.frame, header),
        )

    def _exhausted(self, state: SaState, flow: FlowKey, label: int, count: int, now: float) -> None:
        """The numbers of an SA are used up: end the packets, say so once, and look for another SA."""
        self._flows.pop(flow, None)
        self._audit.drop(
            DropReason.OUT_SEQUENCE_EXHAUSTED,
            now,
            sa=state.sa.id,
            counters=state.counters,
            source=flow.source,
            destination=flow.destination,
            sequence_number=state.sequence_number,
            count=count,
            protocol=int(state.sa.id.protocol),
            spi=state.sa.spi,
            flow_label=label,
        )
        assert state.sequence is not None
        if state.exhaustion_told:
            return
        state.exhaustion_told = True
        self._audit.tell(
            EngineEvent(
                EventKind.SEQUENCE_EXHAUSTED,
                state.sa.id,
                source=flow.source,
                destination=flow.destination,
                sequence_number=state.sequence_number,
                protocol=int(state.sa.id.protocol),
                spi=state.sa.spi,
                flow_label=label,
            ),
            now,
        )

    def _drop(self, reason: DropReason, header: IpHeader, now: float) -> None:
        self._audit.drop(reason, now, source=header.source, destination=header.destination)

    def inner_mtu(self, wire_mtu: int) -> int:
        """Largest IP packet of the host that fits `wire_mtu` under every outbound policy in force.

        A template without an SA yet counts with the largest sizes of its protocol.
        """
        return self._rooms.smallest(wire_mtu)

    def policy_mtu(self, policy: PolicyEntry) -> int:
        """Largest IP packet of the host that fits the wire under one outbound policy that protects."""
        return self._rooms.room(policy, self.wire_mtu)

    def sa_mtu(self, state: SaState, now: float) -> tuple[int, int, float]:
        """Largest IP packet that an outbound SA alone can carry, its path MTU, and for how many seconds
        that is known yet (0: it is that of the wire)."""
        sa = state.sa
        path_mtu = self._paths.smallest([state], self.wire_mtu, now)
        until = self._paths.known_until(state, now)
        header = IPV6_LENGTH if sa.ipv6 else IPV4_LENGTH
        mtu = shape_of(sa).room(path_mtu - header)
        return mtu + (header if sa.mode is Mode.TRANSPORT else 0), path_mtu, until - now


def _complete(frame: bytearray, vnet: VnetHeader, header: IpHeader) -> None:
    """Complete the checksum of a packet, and change nothing that policy has looked at."""
    complete_checksum(frame, vnet, header.end, header.payload_offset, judged_length(header.protocol))


def _may_wrap(transport: _Members, tunnel: _Members) -> bool:
    """Whether UDP encapsulation can be made with these SAs: not twice (R158), and over IPv6 not inside a
    tunnel, where it is sealed with the tunnel and nobody can write its checksum between."""
    inner, outer = transport[0], tunnel[0]
    if inner is None or inner.sa.udp is None or not any(tunnel):
        return True
    return (outer is None or outer.sa.udp is None) and not inner.sa.ipv6


def _complete_udp(frame: bytearray, offset: int) -> None:
    """Write the UDP checksum of a sealed packet."""
    header = parse_ip(frame, offset)
    start = header.payload_offset
    value = udp_checksum(frame, header.source, header.destination, start, header.end)
    frame[start + 6 : start + 8] = value.to_bytes(2, "big")


def _outermost(encapsulation: Encapsulation) -> Portion:
    outermost = encapsulation.tunnel or encapsulation.transport
    assert outermost is not None
    return outermost


def _names_ports(policy: PolicyEntry, portions: list[_Members]) -> bool:
    """Whether the policy or an SA looks at what only the first fragment of a packet shows."""
    selectors = [policy.selector]
    selectors += [
        state.sa.selector
        for members in portions
        for state in members
        if state is not None and state.sa.selector is not None
    ]
    return any(one.names_ports for one in selectors)


def _packets(frame: bytearray, header: IpHeader, layer4: int, vnet: VnetHeader) -> Iterator[bytearray]:
    """The packets a superframe stands for, as its sender sized them."""
    ethernet = bytes(frame[: header.offset])
    for pieces in segments(frame, header, layer4, vnet.gso_size):
        yield bytearray().join((ethernet, *pieces))


def _portions(policy: PolicyEntry, states: list[SaState]) -> list[_Members]:
    """The ESP and the AH SA of the transport and of the tunnel portion."""
    members: list[dict[IpsecProtocol, SaState]] = [{}, {}]
    in_tunnel = False
    for template, state in zip(policy.templates, states, strict=True):
        in_tunnel = in_tunnel or template.mode is Mode.TUNNEL
        members[in_tunnel][template.protocol] = state
    return [(member.get(IpsecProtocol.ESP), member.get(IpsecProtocol.AH)) for member in members]


def _alone(policy: PolicyEntry) -> list[bool]:
    """For each template, whether it is the only one of its portion."""
    portions: list[bool] = []
    in_tunnel = False
    for template in policy.templates:
        in_tunnel = in_tunnel or template.mode is Mode.TUNNEL
        portions.append(in_tunnel)
    return [portions.count(portion) == 1 for portion in portions]
