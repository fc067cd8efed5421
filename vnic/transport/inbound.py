"""Frames of the wire on their way to the host: the NIC's verdict, replay, stripping, policy.

Law: trusts `ReceiveInfo.verified` and nothing else; reads no cipher text as meaning. Every frame either
goes to the host as an ordinary frame or ends here and is counted.

    fragments of packets for an SA -> put together, for software IPsec (R17)
    UDP to a port of UDP-encapsulated ESP -> keepalives end here, IKE goes on, ESP loses its UDP header
    NIC's verdict -> each layer, outermost first: SA, replay check then advance, padding, strip
                  -> the same for layers the NIC left, with the verdict of software IPsec
                  -> policy against the SAs that really protected it -> host

RFC 4303 §3.4.3 wants the replay check before the ICV; in the NDIS split the NIC comes first (R11, R184), so
here it comes second. The window still moves only for what was authenticated.

Source: RFC 4301 §5.2; RFC 4302 §3.4; RFC 4303 §3.4; RFC 6040 §4.2; RFC 3948 §2, §3.1.2, §3.2.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from vnic.errors import PacketError
from vnic.ipsec.association import Direction, Mode, SaId, SecurityAssociation
from vnic.ipsec.counters import EngineEvent, EventKind
from vnic.ipsec.drops import DropReason
from vnic.ipsec.judgement import Judgement, TemplateChoice
from vnic.ipsec.policy import FlowKey, FragmentRule, Match, PolicyAction, PolicyEntry, Template, VlanRule
from vnic.ipsec.replay import ReplayVerdict
from vnic.ipsec.sequence import infer_extended
from vnic.ndis.netbuffer import NetBuffer, ReceiveInfo
from vnic.ndis.status import CryptoStatus
from vnic.packet.ah import AH_FIXED_LENGTH, ah_length
from vnic.packet.checksum import fold
from vnic.packet.esp import ESP_HEADER_LENGTH, ESP_TRAILER_LENGTH, PADDING
from vnic.packet.ethernet import hides_behind_tags, ip_offset, is_tagged
from vnic.packet.icmp import is_neighbour_discovery
from vnic.packet.ip import (
    AH,
    ESP,
    ICMP,
    ICMPV6,
    IPV4_IN_IP,
    IPV4_LENGTH,
    IPV6_IN_IP,
    NO_NEXT_HEADER,
    TCP,
    UDP,
    IpHeader,
    flow_label,
    parse_ip,
)
from vnic.packet.udp import UDP_HEADER, UDP_LENGTH, NatTraversal, is_damaged, nat_traversal
from vnic.transport.audit import Audit
from vnic.transport.encapsulation import with_protocol
from vnic.transport.flow import FirstFragments, flow_key
from vnic.transport.nat_checksum import put_right
from vnic.transport.outbound import Outbound
from vnic.transport.pmtu import RateLimit, prohibited
from vnic.transport.reassembly import Reassembly, may_be_joined
from vnic.transport.sad import Sad
from vnic.transport.spd import Spd, Unsure
from vnic.transport.state import SaState

_MAX_FLOWS = 8192
_MAX_LAYERS = 4
"""AH and ESP of a tunnel portion, AH and ESP of a transport portion."""
_ECN_MASK = 0x03
_DSCP_MASK = 0xFC

_IP_IN_IP = (IPV4_IN_IP, IPV6_IN_IP)

_OUTER = struct.Struct(">12x 2s B x 2x2x 2s x B 2x 4s 4s II")
"""Of an untagged frame with IPv4, from the frame start: EtherType, version and header length, flags
and fragment offset, protocol, addresses, ESP's SPI and sequence number."""
_INNER = struct.Struct(">2s B x H 2x 2s x B 2x 12s")
"""Of a frame with IPv4, from its EtherType on: EtherType, version and header length, total length, flags
and fragment offset, protocol, addresses and ports."""
_ATOMIC = (b"\x40\0", b"\0\0")
"""Flags and fragment offset of a whole packet."""

_STATUS_REASONS = {
    CryptoStatus.GENERIC_ERROR: DropReason.IN_CRYPTO,
    CryptoStatus.TRANSPORT_AH_AUTH_FAILED: DropReason.IN_ICV,
    CryptoStatus.TRANSPORT_ESP_AUTH_FAILED: DropReason.IN_ICV,
    CryptoStatus.TUNNEL_AH_AUTH_FAILED: DropReason.IN_ICV,
    CryptoStatus.TUNNEL_ESP_AUTH_FAILED: DropReason.IN_ICV,
    CryptoStatus.INVALID_PACKET_SYNTAX: DropReason.IN_SYNTAX,
    CryptoStatus.INVALID_PROTOCOL: DropReason.IN_PROTOCOL,
    CryptoStatus.SUCCESS: DropReason.IN_CRYPTO,
}

_ECN_DECAPSULATED = (
    # inner: not-ECT, ECT(1), ECT(0), CE; a row per outer: not-ECT, ECT(1), ECT(0), CE. None: drop.
    (0, 1, 2, 3),
    (0, 1, 1, 3),
    (0, 1, 2, 3),
    (None, 3, 3, 3),
)
"""RFC 6040 §4.2, figure 4."""


class Layer(NamedTuple):
    """One layer that was taken off a packet."""

    state: SaState
    tunnel: bool
    """It was in tunnel mode, as its SA says or, where that leaves it open, as what it held shows."""


class _Udp(NamedTuple):
    """The UDP header that stood in front of ESP."""

    source: bytes
    source_port: int
    destination_port: int


class _Dropped(Exception):
    """The frame ends here."""

    def __init__(self, reason: DropReason, state: SaState | None = None, sequence_number: int = 0) -> None:
        self.reason = reason
        self.state = state
        self.sequence_number = sequence_number


class Inbound:
    """The receive half of the transport."""

    def __init__(self, spd: Spd, sad: Sad, audit: Audit, outbound: Outbound | None = None) -> None:
        """Make the receive half.

        Args:
            outbound: learns what the wire tells of its packets; None: nobody does.
        """
        self._spd = spd
        self._sad = sad
        self._audit = audit
        self._flows: dict[tuple[FlowKey, tuple[Layer, ...]], DropReason | None] = {}
        self._firsts = FirstFragments()
        self._allowed: set[tuple[int, bytes, SaState]] = set()
        """Flows that may pass, as `_receive_plain` reads them: protocol, addresses and ports, SA."""
        self._generation = (-1, -1)
        self._to_delete: list[SaState] = []
        self._reassembly = Reassembly()
        self._outbound = outbound
        self._answers: list[NetBuffer] = []
        self._answer_limit = RateLimit()

    @property
    def reassembly_limit(self) -> int:
        """Bytes that fragments may take while they wait."""
        return self._reassembly.max_bytes

    @reassembly_limit.setter
    def reassembly_limit(self, limit: int) -> None:
        self._reassembly.limit(limit)

    @property
    def deadline(self) -> float:
        """`now` at which `keep_time` may have something to do; infinity is never."""
        return self._reassembly.deadline

    def keep_time(self, now: float) -> None:
        """Give up fragments whose time is over."""
        self._reassembly.expire(now)
        self._count_fragments(now)

    def receive(self, burst: list[NetBuffer], now: float) -> list[NetBuffer]:
        """Take a burst that went through the NIC; gives what goes to the host, in order."""
        generation = (self._spd.generation, self._sad.generation)
        if generation != self._generation:
            self._flows.clear()
            self._allowed.clear()
            self._firsts.clear()
            self._generation = generation
        ready: list[NetBuffer] = []
        vlan = self._spd.defaults.vlan
        for buffer in burst:
            try:
                info = buffer.receive
                if vlan is VlanRule.DROP and is_tagged(buffer.frame):
                    raise _Dropped(DropReason.IN_VLAN)
                if info is None:
                    if not self._receive_unprocessed(buffer, now):
                        continue
                elif not self._receive_plain(buffer, info, now):
                    self._receive_protected(buffer, info, now)
            except _Dropped as drop:
                self._count(drop, buffer.frame, now)
                if drop.reason is DropReason.IN_POLICY_DISCARD and self._spd.defaults.answer_discards:
                    self._tell_prohibited(buffer.frame, now, sealed=drop.state is not None)
            except PacketError:
                self._audit.drop(DropReason.IN_MALFORMED, now)
            else:
                ready.append(buffer)
        if self._to_delete:
            self._follow_deletion_requests()
        if self._sad.software is not None:
            self._sad.software.update_nic()
            self._sad.offer_again()
        return ready

    def _tell_prohibited(self, frame: bytearray, now: float, *, sealed: bool) -> None:
        """Tell the sender of a packet that policy discarded it, if an answer may leave.

        Args:
            sealed: the packet came by an SA.
        """
        answer = prohibited(frame, parse_ip(frame, ip_offset(frame)))
        sent: list[NetBuffer] = []
        if answer is not None and self._outbound is not None and self._answer_limit.take(now):
            sent = self._outbound.answer(answer, now, sealed=sealed)
        if sent:
            self._answers += sent
            self._audit.card.rx_prohibited_answered += 1
        else:
            self._audit.card.rx_prohibited_unanswered += 1

    def take_answers(self) -> list[NetBuffer]:
        """Give the card's own answers to the wire, which the NIC has yet to seal, and forget them."""
        answers = self._answers
        if answers:
            self._answers = []
        return answers

    def _follow_deletion_requests(self) -> None:
        """Do what SaDeleteReq asks, after the burst: all its frames were opened with the SAs as they were."""
        card = self._audit.card
        for state in self._to_delete:
            if state.handle:
                gone = self._sad.follow_deletion_request(state)
                card.sa_deletions_followed += len(gone)
                card.sa_deletions_refused += not gone
        self._to_delete.clear()

    def _receive_unprocessed(self, buffer: NetBuffer, now: float) -> bool:
        """A frame the NIC did not process: not IPsec, or no SA for it, or one it may not touch.

        Gives False when it goes no further: a fragment kept until the others come, or news of a path.
        """
        frame = buffer.frame
        offset = ip_offset(frame)
        if self._passes_tagged(frame, offset):
            self._audit.card.rx_passed += 1
            return True
        if not offset:
            if hides_behind_tags(frame):
                raise _Dropped(DropReason.IN_MALFORMED)
            if self._spd.defaults.non_ip is PolicyAction.DISCARD and frame[12:14] != b"\x08\x06":
                raise _Dropped(DropReason.IN_NON_IP)
            self._audit.card.rx_passed += 1
            return True
        header = parse_ip(frame, offset)
        if header.protocol in (ESP, AH, UDP) and header.fragment and self._is_for_us(frame, header):
            whole = self._join(frame, header, now)
            if whole is None:
                return False
            frame = buffer.frame = whole
            header = parse_ip(frame, offset)
        if header.version == 6 and is_neighbour_discovery(frame, header):
            self._audit.card.rx_passed += 1
            return True
        if self._sad.udp_ends and header.protocol == UDP:
            unwrapped = self._unwrap(frame, header, opened=False)
            if unwrapped is not None:
                self._receive_unwrapped(buffer, None, now, *unwrapped)
                return True
        flow = flow_key(frame, header)
        if header.protocol in (ESP, AH):
            if (
                self._sad.software is not None
                and not header.fragment
                and self._lookup(frame, header) is not None
            ):
                self._receive_protected(buffer, None, now)
                return True
            self._judge_unprocessed(frame, header, flow)
        reason = self._verdict(self._whole_flow(frame, header, flow, (), now), ())
        if reason is not None:
            raise _Dropped(reason)
        if header.protocol in (ICMP, ICMPV6) and self._outbound is not None:
            believed = self._outbound.learn(frame, header, now)
            if believed is not None:
                if not believed:
                    raise _Dropped(DropReason.IN_PATH_MTU)
                self._audit.card.rx_path_mtu += 1
                return False
        self._audit.card.rx_bypassed += 1
        return True

    def _passes_tagged(self, frame: bytearray, offset: int) -> bool:
        """Whether a frame has a VLAN tag, such frames pass, and it is not sealed for an SA here."""
        if self._spd.defaults.vlan is not VlanRule.PASS or not is_tagged(frame):
            return False
        if not offset:
            return True
        header = parse_ip(frame, offset)
        if header.protocol not in (ESP, AH):
            return True
        return not self._is_for_us(frame, header) if header.fragment else self._lookup(frame, header) is None

    def _is_for_us(self, frame: bytearray, header: IpHeader) -> bool:
        """Whether a fragment of ESP or AH goes where an SA ends, and somebody could open the whole."""
        if self._sad.software is None:
            return False
        if header.protocol == UDP:
            return header.destination in self._sad.udp_addresses and may_be_joined(frame, header)
        ends = self._sad.inbound_ends
        anywhere = bytes(len(header.destination))
        return (
            (header.destination, header.protocol) in ends or (anywhere, header.protocol) in ends
        ) and may_be_joined(frame, header)

    def _join(self, frame: bytearray, header: IpHeader, now: float) -> bytearray | None:
        """Keep a fragment, or give the packet it completes."""
        whole = self._reassembly.add(frame, header, now)
        self._count_fragments(now)
        if whole is not None:
            card = self._audit.card
            card.rx_fragments += self._reassembly.joined
            card.rx_reassembled += 1
        return whole

    def _count_fragments(self, now: float) -> None:
        """Count the fragments that will be part of no packet."""
        ended = self._reassembly.ended
        if not ended:
            return
        for one in ended:
            self._audit.drop(one.reason, now, source=one.source, destination=one.destination, count=one.count)
        ended.clear()

    def _judge_unprocessed(self, frame: bytearray, header: IpHeader, flow: FlowKey) -> None:
        """An ESP or AH packet without an SA ends here, unless a policy lets such packets pass by name."""
        try:
            policy = self._spd.lookup(Direction.INBOUND, flow)
        except Unsure:
            policy = None
        if _names_ipsec(policy, header.protocol):
            return
        if header.fragment:
            raise _Dropped(DropReason.IN_FRAGMENT)
        state = self._lookup(frame, header)
        raise _Dropped(DropReason.IN_NO_SA if state is None else self._not_opened(state), state)

    def _not_opened(self, state: SaState) -> DropReason:
        """Why a packet ends here whose SA is known and that nobody opened."""
        return DropReason.IN_CRYPTO if self._sad.offers(state) else DropReason.IN_NOT_OFFLOADED

    def _lookup(self, frame: bytearray, header: IpHeader) -> SaState | None:
        """The inbound SA of an ESP or AH packet: SPI, destination and protocol, and the source if the SA
        names one (R99)."""
        start = header.payload_offset
        position = start if header.protocol == ESP else start + 4
        if header.end < position + 8:
            return None
        return self._find(header, header.protocol, int.from_bytes(frame[position : position + 4], "big"))

    def _find(self, header: IpHeader, protocol: int, spi: int) -> SaState | None:
        for destination in (header.destination, bytes(len(header.destination))):
            state = self._sad.inbound.get((destination, protocol, spi))
            if state is not None and _may_come_from(state, header.source):
                return state
        return None

    def _receive_plain(self, buffer: NetBuffer, info: ReceiveInfo, now: float) -> bool:
        """Do all of `_receive_protected` for the packets that make up a stream: IPv4 in IPv4, TCP or UDP, one
        ESP SA in tunnel mode, nothing unusual, and a flow the policy has let pass before.

        Gives False, with the frame untouched, when the packet is anything else.
        """
        frame = buffer.frame
        if (
            len(frame) < 64
            or not info.verified
            or not info.header_info_set
            or info.next_crypto_done
            or info.sa_delete_req
        ):
            return False
        kind, first, fragment, protocol, source, destination, spi, number = _OUTER.unpack_from(frame)
        if protocol != ESP or kind != b"\x08\0" or first != 0x45 or fragment not in _ATOMIC:
            return False
        state = self._sad.inbound.get((destination, ESP, spi))
        if state is None or not state.handle or (frame[16] << 8 | frame[17]) != len(frame) - 14:
            return False
        sa = state.sa
        payload = 42 + state.iv_length
        trailer = len(frame) - sa.icv_length - ESP_TRAILER_LENGTH
        pad_length = info.pad_length
        end = trailer - pad_length
        if (
            sa.mode is Mode.TRANSPORT
            or sa.source != source
            or info.next_header != IPV4_IN_IP
            or end < payload + 24
            or frame[trailer] != pad_length
            or frame[trailer + 1] != IPV4_IN_IP
            or (pad_length and frame[end:trailer] != PADDING[:pad_length])
            or frame[15] & 1  # an outer ECT(1) or CE may change the inner field
            or int.from_bytes(frame[14:34], "big") % 65535  # damaged
            or sa.decap_dscp
        ):
            return False
        _, first, length, fragment, protocol, flow = _INNER.unpack_from(frame, payload - 2)
        if (
            first != 0x45
            or length != end - payload
            or fragment not in _ATOMIC
            or (protocol, flow, state) not in self._allowed
        ):
            return False
        window = state.window
        assert window is not None
        counters = state.counters
        packets = counters.packets + 1
        if packets > state.stop:
            return False
        if sa.esn:
            number = infer_extended(number, window.top)
        # A number beyond the window is new without a look (`ReplayWindow.check`).
        if number <= window.top and window.check(number) is not ReplayVerdict.NEW:
            return False
        window.advance(number)
        del frame[end:]
        del frame[14:payload]
        buffer.vnet = None
        self._audit.card.rx_offloaded += 1
        state.use_time = now
        counters.packets = packets
        counters.bytes += length
        return True

    def _allow(self, frame: bytearray, header: IpHeader, state: SaState) -> None:
        """Remember a flow for `_receive_plain`."""
        if header.version != 4 or header.offset != 14 or header.has_options or header.fragment:
            return
        if header.protocol not in (TCP, UDP) or header.end - header.offset < 24:
            return
        if len(self._allowed) >= _MAX_FLOWS:
            self._allowed.clear()
        _, _, _, _, protocol, flow = _INNER.unpack_from(frame, 12)
        self._allowed.add((protocol, flow, state))

    def _receive_protected(self, buffer: NetBuffer, info: ReceiveInfo | None, now: float) -> None:
        """Take off what the NIC opened, then what is left with the help of software IPsec.

        Args:
            info: what the NIC found out; None: it did not touch the frame.
        """
        frame = buffer.frame
        header = parse_ip(frame, ip_offset(frame))
        udp: _Udp | None = None
        if header.protocol == UDP:
            unwrapped = self._unwrap(frame, header, opened=info is not None and info.crypto_done)
            if unwrapped is None:
                raise _Dropped(DropReason.IN_CRYPTO)
            header, udp = unwrapped
        self._receive_unwrapped(buffer, info, now, header, udp)

    def _receive_unwrapped(
        self, buffer: NetBuffer, info: ReceiveInfo | None, now: float, header: IpHeader, udp: _Udp | None
    ) -> None:
        """Do so for what is ESP or AH now.

        Args:
            udp: the UDP header that was taken off already.
        """
        frame = buffer.frame
        asked = info is not None and info.sa_delete_req
        if asked:
            self._note_deletion_request(self._lookup(frame, header))
        if info is not None and not info.verified and self._left_to_software(frame, header, info):
            info = None
        buffer.vnet = None
        layers: list[Layer] = []
        if info is not None:
            header, udp = self._take_off(frame, header, udp, info, layers, _held_by_nic, now)
            if asked:
                # The NIC does not say which SA of the packet it means.
                for layer in layers[1:]:
                    self._note_deletion_request(layer.state)
        helped = False
        while (
            header.protocol in (ESP, AH)
            and not header.fragment
            and len(layers) < _MAX_LAYERS
            and (state := self._lookup(frame, header)) is not None
        ):
            done = len(layers)
            _check_udp(state, udp)
            info = self._open_in_software(buffer, header, state)
            header, udp = self._take_off(frame, header, udp, info, layers, _held_by_software, now)
            assert self._sad.software is not None
            self._sad.software.opened([layer.state for layer in layers[done:]])
            helped = True
        if not layers:
            raise _Dropped(DropReason.IN_CRYPTO)
        self._judge(frame, header, tuple(layers), now, helped=helped)

    def _left_to_software(self, frame: bytearray, header: IpHeader, info: ReceiveInfo) -> bool:
        """Whether a frame that the NIC did not open says nothing against its SA: the NIC did not try, or, for
        want of that SA, tried one for any destination (R99)."""
        if not info.crypto_done:
            return info.crypto_status is CryptoStatus.SUCCESS
        state = self._lookup(frame, header)
        return self._sad.software is not None and state is not None and not state.handle

    def _note_deletion_request(self, state: SaState | None) -> None:
        if state is not None and state.handle:
            self._to_delete.append(state)

    def _open_in_software(self, buffer: NetBuffer, header: IpHeader, state: SaState) -> ReceiveInfo:
        """Have software IPsec open what the NIC left."""
        software = self._sad.software
        start = header.payload_offset + (4 if header.protocol == ESP else 8)
        if software is None or header.end < start + 4:
            raise _Dropped(self._not_opened(state), state)
        info = software.open(buffer, state, int.from_bytes(buffer.frame[start : start + 4], "big"))
        if info is None:
            raise _Dropped(DropReason.IN_CRYPTO, state)
        return info

    def _take_off(
        self,
        frame: bytearray,
        header: IpHeader,
        udp: _Udp | None,
        info: ReceiveInfo,
        layers: list[Layer],
        held: Callable[[SaState], bool],
        now: float,
    ) -> tuple[IpHeader, _Udp | None]:
        """Check and take off the layers that a NIC says it opened; gives the header of what is left, and the
        UDP header that was taken off in front of that.

        Args:
            udp: the UDP header that was taken off in front of the first.
            layers: takes them, outermost first.
            held: whether this NIC has the SA of a layer; one that it has not ends the walk.
        """
        offset = header.offset
        if not info.verified:
            raise _Dropped(_STATUS_REASONS[info.crypto_status], self._lookup(frame, header))
        portions = 0
        inside = False
        trailer: tuple[int, int] | None = None
        moves: list[tuple[SaState, _Udp, int]] = []
        before = len(layers)
        while (
            header.protocol in (ESP, AH)
            and not header.fragment
            and len(layers) < _MAX_LAYERS
            and (state := self._lookup(frame, header)) is not None
            and held(state)
        ):
            if (header.protocol == ESP and not info.header_info_set) or (
                not inside and portions == 1 + info.next_crypto_done
            ):
                # A layer that this NIC did not open; its number must not move the window.
                break
            portions += not inside
            _check_udp(state, udp)
            window = state.window
            assert window is not None
            top = window.top
            first = state.half_known
            if first:
                # Taken note of whatever becomes of the packet, for the NIC has: both infer alike from now on.
                state.half_known = False
                self._check_replay(frame, header, state, first=True)
            if header.version == 4 and not _header_is_whole(frame, header):
                raise PacketError("damaged IPv4 header")
            if not first:
                self._check_replay(frame, header, state)
            if udp is not None and window.top > top and _has_moved(state, udp):
                moves.append((state, udp, window.top))
            udp = None
            if header.protocol == ESP:
                trailer, tunnel = self._strip_esp(frame, header, state)
            else:
                tunnel = self._strip_ah(frame, header, state)
            layers.append(Layer(state, tunnel))
            inside = not tunnel
            header = parse_ip(frame, offset)
            if header.protocol == UDP and tunnel and self._sad.udp_ends:
                unwrapped = self._unwrap(frame, header, opened=info.next_crypto_done, inside=True)
                if unwrapped is not None:
                    header, udp = unwrapped
        # The NIC says how far it got. Should the SA tables ever disagree, nothing it did not open passes.
        if (
            len(layers) == before
            or (trailer != ((info.next_header, info.pad_length) if info.header_info_set else None))
            or info.next_crypto_done != (portions > 1)
        ):
            raise _Dropped(DropReason.IN_CRYPTO, layers[0].state if layers else None)
        for state, wrapped, number in moves:
            self._follow(state, wrapped, number, now)
        return header, udp

    def _unwrap(
        self, frame: bytearray, header: IpHeader, *, opened: bool, inside: bool = False
    ) -> tuple[IpHeader, _Udp] | None:
        """Take the UDP header off UDP-encapsulated ESP, in place; gives the IP header of what is left.

        None, with the frame untouched: it is none, or IKE. What is damaged the host's UDP refuses.

        Args:
            opened: the NIC has decrypted it, and so has found its checksum good.
            inside: another layer was around it; then it is the host's unless there is an SA for it.
        """
        start = header.payload_offset
        if header.fragment or header.end < start + UDP_LENGTH:
            return None
        source_port, port, length, _ = UDP_HEADER.unpack_from(frame, start)
        end = start + length
        if (header.destination, port) not in self._sad.udp_ends:
            return None
        if not start + UDP_LENGTH <= end <= header.end:
            return None
        kind = nat_traversal(frame, start, end)
        if kind is NatTraversal.KEEPALIVE and not inside:
            raise _Dropped(DropReason.IN_NAT_KEEPALIVE)
        if kind is not NatTraversal.ESP:
            return None
        spi = int.from_bytes(frame[start + UDP_LENGTH : start + UDP_LENGTH + 4], "big")
        state = self._find(header, ESP, spi)
        if state is None and inside:
            return None
        if header.version == 4 and not _header_is_whole(frame, header):
            raise PacketError("damaged IPv4 header")
        damaged = False
        if not opened or not any(frame[start + 6 : start + 8]):
            damaged = is_damaged(frame, header.source, header.destination, start, end)
        offset = header.offset
        del frame[end:]
        frame[offset : start + UDP_LENGTH] = with_protocol(
            bytes(frame[offset:start]), ESP, header.protocol_offset - offset, length - UDP_LENGTH
        )
        if state is None:
            raise _Dropped(DropReason.IN_NO_SA)
        if damaged:
            raise _Dropped(DropReason.IN_UDP_CHECKSUM, state)
        return parse_ip(frame, offset), _Udp(header.source, source_port, port)

    def _follow(self, state: SaState, udp: _Udp, number: int, now: float) -> None:
        """The far end of an SA is somewhere else, as a packet newer than all before has proven."""
        address = state.sa.source if state.sa.mode is Mode.TRANSPORT else udp.source
        self._sad.follow(state, address, udp.source_port)
        self._audit.card.rx_peer_moved += 1
        self._audit.tell(
            EngineEvent(
                EventKind.PEER_MOVED,
                state.sa.id,
                source=address,
                destination=state.sa.destination,
                sequence_number=number,
                protocol=ESP,
                spi=state.sa.spi,
                port=udp.source_port,
            ),
            now,
        )

    def _check_replay(
        self, frame: bytearray, header: IpHeader, state: SaState, *, first: bool = False
    ) -> None:
        """Check the authenticated number of one layer, then remember it.

        Args:
            first: only the upper half is known, and the number is of that half or the next, as for the NIC.
        """
        start = header.payload_offset
        position = start + 4 if header.protocol == ESP else start + 8
        number = int.from_bytes(frame[position : position + 4], "big")
        window = state.window
        assert window is not None
        if state.sa.esn:
            number = infer_extended(number, window.top)
            if first and number < window.top:
                number += 1 << 32
        verdict = window.check(number)
        if verdict is ReplayVerdict.NEW:
            window.advance(number)
        elif verdict is ReplayVerdict.DUPLICATE:
            raise _Dropped(DropReason.IN_REPLAY_DUPLICATE, state, number)
        else:
            if number:
                window.note_late(number)
            raise _Dropped(DropReason.IN_REPLAY_TOO_OLD, state, number)

    def _strip_esp(self, frame: bytearray, header: IpHeader, state: SaState) -> tuple[tuple[int, int], bool]:
        """Take ESP off a frame, in place; gives next header and pad length of the trailer, and whether it was
        in tunnel mode."""
        sa = state.sa
        start = header.payload_offset
        payload = start + ESP_HEADER_LENGTH + sa.iv_length
        trailer = header.end - sa.icv_length - ESP_TRAILER_LENGTH
        if trailer < payload:
            raise _Dropped(DropReason.IN_SYNTAX, state)
        pad_length = frame[trailer]
        next_header = frame[trailer + 1]
        end = trailer - pad_length
        if end < payload:
            raise _Dropped(DropReason.IN_SYNTAX, state)
        if frame[end:trailer] != PADDING[:pad_length]:
            raise _Dropped(DropReason.IN_PADDING, state)
        if next_header == NO_NEXT_HEADER:
            raise _Dropped(DropReason.IN_DUMMY, state)
        del frame[end:]
        return (next_header, pad_length), self._strip(frame, header, state, next_header, payload)

    def _strip_ah(self, frame: bytearray, header: IpHeader, state: SaState) -> bool:
        """Take AH off a frame, in place; gives whether it was in tunnel mode."""
        start = header.payload_offset
        next_header = frame[start]
        payload = start + ah_length(frame[start + 1])
        shortest = start + AH_FIXED_LENGTH + state.sa.iv_length + state.sa.icv_length
        if not shortest <= payload <= header.end:
            raise _Dropped(DropReason.IN_SYNTAX, state)
        if next_header == NO_NEXT_HEADER:
            raise _Dropped(DropReason.IN_DUMMY, state)
        del frame[header.end :]
        return self._strip(frame, header, state, next_header, payload)

    def _strip(
        self, frame: bytearray, header: IpHeader, state: SaState, next_header: int, payload: int
    ) -> bool:
        """Cut out everything before `payload`: the IPsec header, in tunnel mode the outer IP header too."""
        offset = header.offset
        mode = state.sa.mode
        if mode is Mode.TUNNEL or (mode is None and next_header in _IP_IN_IP):
            if next_header not in _IP_IN_IP:
                raise _Dropped(DropReason.IN_PROTOCOL, state)
            outer = bytes(frame[offset : offset + 4])
            del frame[offset:payload]
            if len(frame) <= offset or frame[offset] >> 4 != (6 if next_header == IPV6_IN_IP else 4):
                raise _Dropped(DropReason.IN_PROTOCOL, state)
            if len(frame) < offset + IPV4_LENGTH:
                raise PacketError("no room for an IP header in the tunnel")
            frame[offset - 2 : offset] = b"\x86\xdd" if next_header == IPV6_IN_IP else b"\x08\x00"
            self._decapsulate_traffic_class(frame, offset, outer, state)
            return True
        ip_header = with_protocol(
            bytes(frame[offset : header.payload_offset]),
            next_header,
            header.protocol_offset - offset,
            len(frame) - payload,
        )
        frame[offset:payload] = ip_header
        return False

    def _decapsulate_traffic_class(self, frame: bytearray, offset: int, outer: bytes, state: SaState) -> None:
        """Bring congestion marks, and on request the DSCP, from the outer to the inner header."""
        sa = state.sa
        outer_class = _traffic_class(outer)
        inner_class = _traffic_class(frame[offset : offset + 2])
        value = inner_class
        if not sa.no_ecn:
            ecn = _ECN_DECAPSULATED[outer_class & _ECN_MASK][inner_class & _ECN_MASK]
            if ecn is None:
                raise _Dropped(DropReason.IN_PROTOCOL, state)
            value = inner_class & _DSCP_MASK | ecn
        if sa.decap_dscp:
            value = outer_class & _DSCP_MASK | value & _ECN_MASK
        if value == inner_class:
            return
        if frame[offset] >> 4 == 6:
            frame[offset] = 0x60 | value >> 4
            frame[offset + 1] = (value & 0x0F) << 4 | frame[offset + 1] & 0x0F
        else:
            # Changed, not computed anew: a wrong checksum stays wrong (RFC 1624).
            complement = 0xFFFF - (frame[offset + 10] << 8 | frame[offset + 11])
            frame[offset + 1] = value
            changed = fold(complement + 0xFFFF + value - inner_class)
            frame[offset + 10 : offset + 12] = (0xFFFF - changed).to_bytes(2, "big")

    def _judge(
        self, frame: bytearray, header: IpHeader, layers: tuple[Layer, ...], now: float, *, helped: bool
    ) -> None:
        """Policy check of an opened packet against the SAs that protected it.

        Args:
            helped: software IPsec opened some of it.
        """
        innermost = layers[-1].state
        if header.protocol in (ESP, AH) and header.fragment:
            raise _Dropped(DropReason.IN_FRAGMENT, innermost)
        # Padding of a short Ethernet frame, and whatever else is behind the packet, is not the host's.
        del frame[header.end :]
        if innermost.sa.udp is not None and not layers[-1].tunnel:
            put_right(frame, header, innermost.sa.udp.original_address)
        flow = self._whole_flow(frame, header, flow_key(frame, header), layers, now)
        reason = self._verdict(flow, layers)
        if reason is not None:
            raise _Dropped(reason, innermost)
        length = header.end - header.offset
        for layer in layers:
            if layer.state.counters.packets >= layer.state.stop:
                expired = self._sad.lifetimes.admit([one.state for one in layers], 1, length, now)
                if expired is not None:
                    raise _Dropped(DropReason.IN_SA_EXPIRED, expired)
                break
        if len(layers) == 1 and layers[0].tunnel:
            self._allow(frame, header, innermost)
        if helped:
            self._audit.card.rx_software += 1
        else:
            self._audit.card.rx_offloaded += 1
        for layer in layers:
            state = layer.state
            state.use_time = now
            state.counters.packets += 1
            state.counters.bytes += length

    def _whole_flow(
        self, frame: bytearray, header: IpHeader, flow: FlowKey, layers: tuple[Layer, ...], now: float
    ) -> FlowKey:
        """The flow of a packet; of a later fragment that of its first, which the same SAs protected."""
        if header.fragment and self._spd.defaults.fragments is FragmentRule.STATEFUL:
            return self._firsts.flow_of(frame, header, flow, now, layers)
        return flow

    def _verdict(self, flow: FlowKey, layers: tuple[Layer, ...]) -> DropReason | None:
        key = (flow, layers)
        try:
            return self._flows[key]
        except KeyError:
            pass
        if len(self._flows) >= _MAX_FLOWS:
            self._flows.clear()
        reason = self._decide(flow, layers)
        self._flows[key] = reason
        return reason

    def _decide(self, flow: FlowKey, layers: tuple[Layer, ...]) -> DropReason | None:
        for layer in layers:
            selector = layer.state.sa.selector
            if selector is not None and selector.match(flow) is not Match.YES:
                return DropReason.IN_SA_SELECTOR
        try:
            policy = self._spd.lookup(Direction.INBOUND, flow)
        except Unsure:
            return DropReason.IN_FRAGMENT
        tunnelled = any(layer.tunnel for layer in layers)
        if policy is None:
            if self._spd.defaults.inbound is PolicyAction.DISCARD:
                return DropReason.IN_POLICY_DISCARD
            # What a tunnel carries is anybody's packet: it needs a policy, as in the kernel.
            return DropReason.IN_NO_POLICY if tunnelled else None
        if policy.action is PolicyAction.DISCARD:
            return DropReason.IN_POLICY_DISCARD
        if policy.action is PolicyAction.BYPASS:
            return DropReason.IN_POLICY_MISMATCH if tunnelled else None
        return None if _satisfies(layers, policy) else DropReason.IN_POLICY_MISMATCH

    def judge(self, flow: FlowKey) -> Judgement:
        """Say what would become of a packet that comes as its policy wants it: protected by SAs that fit its
        templates, or in clear. Changes nothing."""
        try:
            policy = self._spd.lookup(Direction.INBOUND, flow)
        except Unsure:
            return Judgement(PolicyAction.DISCARD, None, DropReason.IN_FRAGMENT)
        action = self._spd.defaults.inbound if policy is None else policy.action
        if action is PolicyAction.PROTECT and policy is not None:
            choices = tuple(TemplateChoice(one, self._usable(one, flow)) for one in policy.templates)
            missing = any(choice.sa is None for choice in choices)
            return Judgement(action, policy, DropReason.IN_NO_SA if missing else None, choices)
        if flow.protocol in (ESP, AH) and not _names_ipsec(policy, flow.protocol):
            return Judgement(action, policy, DropReason.IN_NO_SA)
        discarded = action is PolicyAction.DISCARD
        return Judgement(action, policy, DropReason.IN_POLICY_DISCARD if discarded else None)

    def _usable(self, template: Template, flow: FlowKey) -> SaId | None:
        """The newest SA whose packets of a flow satisfy a template."""
        for state in reversed(self._sad.inbound.values()):
            sa = state.sa
            if (
                sa.mode in (None, template.mode)
                and _fits(sa, template.mode is Mode.TUNNEL, template)
                and (template.mode is Mode.TUNNEL or sa.destination == flow.destination)
                and (sa.selector is None or sa.selector.match(flow) is Match.YES)
            ):
                return sa.id
        return None

    def _count(self, drop: _Dropped, frame: bytearray, now: float) -> None:
        source = destination = b""
        protocol = spi = label = 0
        sequence_number = drop.sequence_number
        try:
            header = parse_ip(frame, ip_offset(frame) or len(frame))
        except PacketError:
            pass
        else:
            source, destination, label = header.source, header.destination, flow_label(frame, header)
            if header.protocol in (ESP, AH) and not header.fragment_offset:
                protocol = header.protocol
                spi, shown = _spi_and_number(frame, header)
                sequence_number = sequence_number or shown
        state = drop.state
        if state is not None:
            protocol, spi = int(state.sa.id.protocol), state.sa.spi
        self._audit.drop(
            drop.reason,
            now,
            sa=None if state is None else state.sa.id,
            counters=None if state is None else state.counters,
            source=source,
            destination=destination,
            sequence_number=sequence_number,
            protocol=protocol,
            spi=spi,
            flow_label=label,
        )


def _spi_and_number(frame: bytearray, header: IpHeader) -> tuple[int, int]:
    """SPI and sequence number as an ESP or AH packet shows them; 0 for what it is too short for."""
    start = header.payload_offset + (0 if header.protocol == ESP else 4)
    if header.end < start + 8:
        return 0, 0
    return int.from_bytes(frame[start : start + 4], "big"), int.from_bytes(
        frame[start + 4 : start + 8], "big"
    )


def _header_is_whole(frame: bytearray, header: IpHeader) -> bool:
    """Whether the checksum of an IPv4 header is right; the host never sees this header as it came, so it
    is checked here (RFC 1122 §3.2.1.2)."""
    return int.from_bytes(frame[header.offset : header.payload_offset], "big") % 65535 == 0


def _traffic_class(header: bytes | bytearray) -> int:
    if header[0] >> 4 == 6:
        return (header[0] & 0x0F) << 4 | header[1] >> 4
    return header[1]


def _may_come_from(state: SaState, source: bytes) -> bool:
    """Whether packets of an inbound SA may have this source."""
    sa = state.sa
    if sa.udp is None:
        return sa.source == source or not any(sa.source)
    return (
        source == (sa.source if state.peer is None else state.peer[0])
        or not any(sa.source)
        # The addresses of transport mode are those of the traffic: another source is another host's.
        or (sa.udp.follow and sa.mode is not Mode.TRANSPORT)
    )


def _check_udp(state: SaState, udp: _Udp | None) -> None:
    """Hold a layer to the UDP encapsulation of its SA."""
    wanted = state.sa.udp
    if (wanted is None) != (udp is None):
        raise _Dropped(DropReason.IN_UDP_ENCAPSULATION, state)
    if wanted is None or udp is None:
        return
    port = wanted.source_port if state.peer is None else state.peer[1]
    if udp.destination_port != wanted.destination_port or (
        port not in (0, udp.source_port) and not wanted.follow
    ):
        raise _Dropped(DropReason.IN_UDP_PORTS, state)


def _has_moved(state: SaState, udp: _Udp) -> bool:
    """Whether an SA that follows its peer has it somewhere else now."""
    sa = state.sa
    if sa.udp is None or not sa.udp.follow:
        return False
    address, port = (sa.source, sa.udp.source_port) if state.peer is None else state.peer
    return udp.source_port != port or (sa.mode is not Mode.TRANSPORT and udp.source != address)


def _held_by_nic(state: SaState) -> bool:
    return state.handle != 0


def _held_by_software(state: SaState) -> bool:
    return state.software_handle != 0


def _satisfies(layers: tuple[Layer, ...], policy: PolicyEntry) -> bool:
    """Whether the SAs, outermost first, are those the templates, innermost first, ask for."""
    if len(layers) != len(policy.templates):
        return False
    return all(
        _fits(layer.state.sa, layer.tunnel, template)
        for layer, template in zip(layers, reversed(policy.templates), strict=True)
    )


def _fits(sa: SecurityAssociation, tunnel: bool, template: Template) -> bool:
    """Whether a layer that an SA protected is what a template asks for."""
    return (
        sa.protocol is template.protocol
        and tunnel == (template.mode is Mode.TUNNEL)
        and template.reqid in (0, sa.reqid)
        and template.spi in (0, sa.spi)
        and (template.destination in (None, sa.destination) or not any(sa.destination))
        and (template.source in (None, sa.source) or not any(sa.source))
    )


def _names_ipsec(policy: PolicyEntry | None, protocol: int) -> bool:
    """Whether a policy lets packets of ESP or AH pass by name."""
    return (
        policy is not None and policy.action is PolicyAction.BYPASS and policy.selector.protocol == protocol
    )
