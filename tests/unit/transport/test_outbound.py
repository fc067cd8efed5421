"""The send half: verdicts, superframes, sizes, the end of the numbers, and that nothing leaves in clear."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw
from transport_lab import (
    AH,
    ANY,
    ANY6,
    ESP,
    ETHER,
    FAR,
    NEAR,
    OUT,
    TRANSPORT,
    TUNNEL,
    Card,
    association,
    frame_of,
    policy,
    selector,
    template,
)

from vnic.ipsec.counters import EventKind
from vnic.ipsec.drops import DropReason
from vnic.ipsec.policy import Defaults, PolicyAction, Selector
from vnic.ndis.netbuffer import NetBuffer
from vnic.ndis.status import NdisStatus
from vnic.packet.vnet import GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHeader

V4 = {"src": "10.1.0.1", "dst": "10.2.0.1"}
V6 = {"src": "fd01::1", "dst": "fd02::1"}
UDP4 = IP(**V4) / UDP(sport=1000, dport=2000) / b"payload"
UDP6 = IPv6(**V6) / UDP(sport=1000, dport=2000) / b"payload"
DATA = bytes(index * 31 & 0xFF for index in range(70000))
TO_FAR = template(ESP, TUNNEL, NEAR, FAR)
T_ESP = template(ESP, TRANSPORT)
LAST = 0xFFFFFFFF


def names(card: Card) -> dict[str, int]:
    return {reason.value: count for reason, count in card.drops.items()}


def protected(
    *templates,
    chosen: Selector | None = None,
    wire_mtu: int = 1500,
    **members: object,  # type: ignore[no-untyped-def]
) -> Card:
    """A card whose every packet goes through one tunnel, unless templates or a selector say otherwise."""
    card = Card(wire_mtu)
    for family in (ANY, ANY6) if chosen is None else (chosen,):
        card.spd.add(policy(OUT, family, *(templates or (TO_FAR,))))
    card.sad.add(association(**members), 0.0)  # type: ignore[arg-type]
    return card


def gso(kind: int, size: int) -> VnetHeader:
    return VnetHeader(NEEDS_CSUM, kind, 0, size, 0, 0)


def inside(buffer: NetBuffer) -> bytes:
    """The packet in an AES-GCM tunnel frame that the NIC has not sealed yet."""
    assert buffer.transmit is not None
    offset = 14 if buffer.frame[12] != 0x81 else 18
    frame = buffer.frame[offset:]
    return bytes(frame[20 + 16 : len(frame) - 16 - 2 - frame[-16 - 2]])


def checked(raw: bytes) -> Packet:
    """A packet whose lengths and checksums are those scapy computes itself."""
    packet = IP(raw) if raw[0] >> 4 == 4 else IPv6(raw)
    fresh = packet.copy()
    for layer in (IP, IPv6, TCP, UDP):
        if layer in fresh:
            for field in ("chksum", "len", "plen"):
                if field in fresh[layer].fields:
                    fresh[layer].delfieldval(field)
    assert bytes(fresh) == raw
    return packet


# what passes


@pytest.mark.parametrize(
    "packet",
    [
        ETHER / ARP(pdst="10.2.0.1"),
        IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_NS(),
        IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_RA(),
    ],
    ids=["ARP", "NS", "RA"],
)
@pytest.mark.parametrize("action", [PolicyAction.PROTECT, PolicyAction.DISCARD])
def test_arp_and_neighbour_discovery_pass_whatever_policy_says(packet: Packet, action: PolicyAction) -> None:
    card = Card()
    templates = (TO_FAR,) if action is PolicyAction.PROTECT else ()
    for family in (ANY, ANY6):
        card.spd.add(policy(OUT, family, *templates, action=action))
    card.spd.set_defaults(Defaults(PolicyAction.DISCARD, PolicyAction.DISCARD, PolicyAction.DISCARD))
    assert card.sent(packet) == [frame_of(packet)]
    assert card.audit.card.tx_passed == 1
    assert names(card) == {}


def test_what_only_looks_like_neighbour_discovery_is_protected() -> None:
    card = protected()
    (buffer,) = card.framed(IPv6(src="fe80::1", dst="ff02::1", hlim=254) / ICMPv6ND_NS())
    assert buffer.transmit is not None


LLDP = Ether(src="02:00:00:00:00:01", dst="01:80:c2:00:00:0e", type=0x88CC) / Raw(bytes(50))


def test_other_non_ip_passes_or_drops_by_the_setting() -> None:
    card = protected()
    assert card.sent(LLDP) == [frame_of(LLDP)]
    assert card.audit.card.tx_passed == 1
    card.spd.set_defaults(Defaults(non_ip=PolicyAction.DISCARD))
    assert card.sent(LLDP) == []
    assert names(card) == {"out_non_ip": 1}


def test_without_policy_everything_passes_as_it_is() -> None:
    card = Card()
    assert card.sent(UDP4, UDP6) == [frame_of(UDP4), frame_of(UDP6)]
    assert card.audit.card.tx_bypassed == 2


def test_bypass_before_protect_lets_pass() -> None:
    card = protected()
    card.spd.add(policy(OUT, selector("10.1.0.0/16", "10.2.0.1/32"), priority=0), replace_existing=True)
    card.spd.add(policy(OUT, ANY, TO_FAR, priority=1), replace_existing=True)
    assert card.sent(UDP4) == [frame_of(UDP4)]
    (buffer,) = card.framed(IP(src="10.1.0.1", dst="10.2.0.2") / UDP())
    assert buffer.transmit is not None


@pytest.mark.parametrize("how", ["policy", "default"])
def test_discard_ends_the_packet_and_counts(how: str) -> None:
    card = Card()
    if how == "policy":
        card.spd.add(policy(OUT, ANY, action=PolicyAction.DISCARD))
    else:
        card.spd.set_defaults(Defaults(outbound=PolicyAction.DISCARD))
    assert card.sent(UDP4) == []
    assert names(card) == {"out_policy_discard": 1}
    (event,) = card.audit.take_events()
    assert (event.kind, event.drop) == (EventKind.DROP, DropReason.OUT_POLICY_DISCARD)
    assert (event.source, event.destination) == (bytes([10, 1, 0, 1]), bytes([10, 2, 0, 1]))


def test_protected_frames_go_through_the_nic_and_their_payload_is_gone() -> None:
    card = protected()
    (wire,) = card.sent(UDP4)
    assert b"payload" not in wire
    assert Ether(bytes(wire))[IP].dst == FAR
    assert names(card) == {}


def test_order_of_the_burst_is_kept() -> None:
    card = protected(chosen=selector("0.0.0.0/0", "10.2.0.0/16"))
    clear = IP(src="10.1.0.1", dst="10.9.0.1") / UDP()
    burst = card.framed(UDP4, clear, ETHER / ARP(), UDP4, clear)
    assert [buffer.transmit is not None for buffer in burst] == [True, False, False, True, False]


# failing closed


def test_no_sa_is_a_drop_and_never_clear_text() -> None:
    card = Card()
    card.spd.add(policy(OUT, ANY, TO_FAR))
    assert card.framed(UDP4) == []
    assert names(card) == {"out_no_sa": 1}


@pytest.mark.parametrize(
    "members",
    [
        {"direction": "in"},
        {"mode": TRANSPORT},
        {"destination": "192.0.2.9"},
        {"protocol": AH},
        {"reqid": 1},
        {"selector": selector("10.99.0.0/16", "0.0.0.0/0")},
        {"selector": ANY6},
    ],
)
def test_sa_that_does_not_fit_protects_nothing(members: dict[str, object]) -> None:
    card = Card()
    card.spd.add(policy(OUT, ANY, replace(TO_FAR, reqid=2)))
    members.setdefault("reqid", 2)
    if members.pop("direction", None):
        sa = replace(association(reqid=2), direction=next(one for one in type(OUT) if one is not OUT))
    else:
        sa = association(**members)  # type: ignore[arg-type]
    card.sad.add(sa, 0.0)
    assert card.framed(UDP4) == []
    assert names(card) == {"out_no_sa": 1}


def test_policy_with_two_templates_needs_both_sas() -> None:
    card = Card()
    card.spd.add(policy(OUT, ANY, T_ESP, template(AH, TRANSPORT)))
    card.sad.add(association(OUT, TRANSPORT, "10.1.0.1", "10.2.0.1"), 0.0)
    assert card.framed(UDP4) == []
    card.sad.add(association(OUT, TRANSPORT, "10.1.0.1", "10.2.0.1", protocol=AH), 0.0)
    (buffer,) = card.framed(UDP4)
    assert buffer.transmit is not None
    assert names(card) == {"out_no_sa": 1}


def test_nic_that_refuses_the_bundle_stops_the_traffic() -> None:
    card = Card()
    card.spd.add(policy(OUT, ANY, T_ESP, template(AH, TRANSPORT)))
    card.sad.add(association(OUT, TRANSPORT, "10.1.0.1", "10.2.0.1"), 0.0)
    card.sad.add(association(OUT, TRANSPORT, "10.1.0.1", "10.2.0.1", protocol=AH), 0.0)
    card.nic.refusals = [NdisStatus.NOT_SUPPORTED]
    assert card.framed(UDP4) == []
    assert names(card) == {"out_not_offloaded": 1}


def test_transport_mode_never_uses_the_sa_of_another_host() -> None:
    card = Card()
    card.spd.add(policy(OUT, ANY, template(ESP, TRANSPORT, "10.1.0.1", "10.2.0.9")))
    card.sad.add(association(OUT, TRANSPORT, "10.1.0.1", "10.2.0.9"), 0.0)
    assert card.framed(UDP4) == []
    assert names(card) == {"out_no_sa": 1}
    (buffer,) = card.framed(IP(src="10.1.0.1", dst="10.2.0.9") / UDP())
    assert buffer.transmit is not None


def test_tagged_ip_is_protected_like_any_other() -> None:
    card = protected()
    tagged: Packet = ETHER
    for _ in range(8):
        tagged = tagged / Dot1Q(vlan=5)
        (buffer,) = card.framed(tagged / UDP4)
        assert buffer.transmit is not None


def test_deleted_sa_stops_the_flow_at_once() -> None:
    card = protected()
    assert len(card.sent(UDP4)) == 1
    card.sad.delete(association().id)
    assert card.framed(UDP4) == []
    assert names(card) == {"out_no_sa": 1}


def test_deleted_policy_and_new_policy_hold_for_flows_already_known() -> None:
    card = protected()
    assert card.framed(UDP4)[0].transmit is not None
    card.spd.delete(OUT, ANY, 0)
    assert card.framed(UDP4)[0].transmit is None
    card.spd.add(policy(OUT, ANY, action=PolicyAction.DISCARD))
    assert card.framed(UDP4) == []


def test_replaced_sa_is_used_with_its_new_handle_at_once() -> None:
    card = protected()
    card.sent(UDP4)
    handle = card.sad.add(association(seed=1), 0.0, replace_existing=True)
    (buffer,) = card.framed(UDP4)
    assert buffer.transmit is not None
    assert buffer.transmit.offload_handle == handle


def test_flow_goes_on_after_the_nic_refused_a_replacement() -> None:
    card = protected()
    card.sent(UDP4)
    card.nic.refusals = [NdisStatus.NOT_SUPPORTED]
    with pytest.raises(Exception, match="refuses"):
        card.sad.add(association(seed=1), 0.0, replace_existing=True)
    assert len(card.sent(UDP4)) == 1


def test_newest_sa_takes_over_from_the_next_packet_on() -> None:
    card = protected()
    card.sent(UDP4)
    handle = card.sad.add(association(spi=0x2000), 0.0)
    assert card.framed(UDP4)[0].transmit.offload_handle == handle  # type: ignore[union-attr]
    card.sad.delete(association(spi=0x2000).id)
    assert len(card.sent(UDP4)) == 1


# fragments


FRAGMENTS = [
    IP(**V4, flags="MF", id=7) / UDP(sport=1000, dport=2000) / bytes(16),
    IP(**V4, frag=3, id=7, proto=17) / Raw(bytes(24)),
    IPv6(**V6) / IPv6ExtHdrFragment(m=1, id=7) / UDP(sport=1000, dport=2000) / bytes(16),
    IPv6(**V6) / IPv6ExtHdrFragment(offset=3, id=7, nh=17) / Raw(bytes(24)),
]


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=["v4 first", "v4 later", "v6 first", "v6 later"])
def test_fragments_go_through_a_tunnel_and_wait_for_the_others_in_transport_mode(fragment: Packet) -> None:
    (buffer,) = protected().framed(fragment)
    assert inside(buffer) == bytes(fragment)
    ends = ("10.1.0.1", "10.2.0.1") if fragment.version == 4 else ("fd01::1", "fd02::1")
    card = protected(T_ESP, mode=TRANSPORT, source=ends[0], destination=ends[1])
    assert card.framed(fragment) == []
    assert card.outbound.reassembly.bytes or names(card) == {"out_fragment_incomplete": 1}


def test_atomic_fragment_is_a_whole_packet() -> None:
    card = protected(T_ESP, mode=TRANSPORT, source="fd01::1", destination="fd02::1")
    (buffer,) = card.framed(IPv6(**V6) / IPv6ExtHdrFragment(m=0) / UDP() / b"data")
    assert buffer.transmit is not None


@pytest.mark.parametrize("action", list(PolicyAction))
def test_later_fragment_under_a_policy_with_ports_ends_here_whatever_the_policy_would_do(
    action: PolicyAction,
) -> None:
    card = Card()
    templates = (TO_FAR,) if action is PolicyAction.PROTECT else ()
    with_port = selector(protocol=17, destination_port=2000)
    card.spd.add(policy(OUT, with_port, *templates, action=action))
    card.sad.add(association(), 0.0)
    assert card.framed(FRAGMENTS[1]) == []
    assert names(card) == {"out_fragment": 1}


def test_later_ipv6_fragment_that_hides_its_protocol_does_not_slip_past_a_policy_for_it() -> None:
    card = protected(chosen=selector("::/0", "::/0", protocol=17))
    first = IPv6(**V6) / IPv6ExtHdrFragment(m=1) / IPv6ExtHdrDestOpt() / UDP() / bytes(8)
    later = IPv6(**V6) / IPv6ExtHdrFragment(offset=3, nh=60) / Raw(bytes(24))
    assert [buffer.transmit is not None for buffer in card.framed(first, later)] == [True]
    assert names(card) == {"out_fragment": 1}


# malformed


@pytest.mark.parametrize(
    "frame",
    [
        frame_of(UDP4)[:30],
        frame_of(IP(**V4, len=2000) / UDP()),
        frame_of(IP(**V4, len=10) / UDP()),
        bytearray(bytes(ETHER)[:12] + b"\x08\x00" + b"\x95" * 40),
        bytearray(bytes(ETHER)[:12] + b"\x08\x00"),
        frame_of(IPv6(**V6, plen=3000) / UDP()),
    ],
)
def test_malformed_packets_end_here(frame: bytearray) -> None:
    card = protected()
    assert card.framed(frame) == []
    assert names(card) == {"out_malformed": 1}
    assert len(card.sent(UDP4)) == 1


@pytest.mark.parametrize(
    ("frame", "vnet"),
    [
        (frame_of(UDP4), gso(GSO_TCPV4, 100)),
        (frame_of(UDP4), gso(GSO_UDP_L4, 0)),
        (frame_of(UDP4), VnetHeader(NEEDS_CSUM, 0, 0, 0, 34, 60000)),
        (frame_of(IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_NS()), gso(GSO_TCPV6, 100)),
        (frame_of(ETHER / ARP()), gso(GSO_TCPV4, 100)),
    ],
)
@pytest.mark.parametrize("protect", [False, True])
def test_virtio_header_that_lies_is_malformed(frame: bytearray, vnet: VnetHeader, protect: bool) -> None:
    card = protected() if protect else Card()
    assert card.framed(frame, vnet=vnet) == []
    assert names(card) == {"out_malformed": 1}
    assert (card.audit.card.tx_passed, card.audit.card.tx_bypassed) == (0, 0)


# sizes


def test_too_big_for_the_wire_ends_here() -> None:
    big = IP(**V4, flags="DF") / UDP() / bytes(1473)
    for card in (protected(), Card()):
        assert card.framed(big) == []
        assert names(card) == {"out_too_big": 1}


def test_largest_packet_in_clear_fills_the_wire() -> None:
    assert len(Card().framed(IP(**V4) / UDP() / bytes(1472))) == 1


def test_smaller_wire_holds_from_the_next_packet_on() -> None:
    card = protected()
    packet = IP(**V4, flags="DF") / UDP() / bytes(1300)
    assert len(card.framed(packet)) == 1
    card.outbound.wire_mtu = 1300
    assert card.framed(packet) == []


def test_largest_wire_there_is_takes_the_largest_packets() -> None:
    card = protected(wire_mtu=65535)
    largest = card.outbound.inner_mtu(65535)
    (buffer,) = card.framed(IP(**V4) / UDP() / bytes(largest - 28))
    assert len(buffer.frame) - 14 <= 65535
    assert Ether(bytes(buffer.frame))[IP].len == len(buffer.frame) - 14
    assert card.framed(IP(**V4, flags="DF") / UDP() / bytes(largest - 27)) == []


# superframes


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_superframe_becomes_protected_segments_with_numbers_of_their_own(version: int) -> None:
    card = protected()
    ip = IP(**V4, id=50) if version == 4 else IPv6(**V6)
    packet = ip / TCP(sport=1, dport=2, seq=1000, flags="PA") / DATA[:4500]
    burst = card.framed(packet, vnet=gso(GSO_TCPV4 if version == 4 else GSO_TCPV6, 1000))
    pieces = [checked(inside(buffer)) for buffer in burst]
    assert b"".join(bytes(piece[TCP].payload) for piece in pieces) == DATA[:4500]
    assert [piece[TCP].seq for piece in pieces] == [1000, 2000, 3000, 4000, 5000]
    assert [str(piece[TCP].flags) for piece in pieces] == ["A", "A", "A", "A", "PA"]
    if version == 4:
        assert [piece.id for piece in pieces] == [50, 51, 52, 53, 54]
    assert [int.from_bytes(buffer.frame[38:42], "big") for buffer in burst] == [1, 2, 3, 4, 5]
    card.nic.send(burst)
    assert {buffer.status for buffer in burst} == {NdisStatus.SUCCESS}
    assert card.framed(UDP4)[0].frame[38:42] == (6).to_bytes(4, "big")


def test_congestion_marks_of_a_superframe_go_to_the_right_segments() -> None:
    card = protected()
    packet = IP(**V4) / TCP(flags="CAEF") / DATA[:2500]
    burst = card.framed(packet, vnet=gso(GSO_TCPV4 | GSO_ECN, 1000))
    assert [str(checked(inside(buffer))[TCP].flags) for buffer in burst] == ["AEC", "AE", "FAE"]


def test_segment_size_is_reduced_to_what_fits_the_wire_after_protection() -> None:
    card = protected()
    burst = card.framed(IP(**V4) / TCP(flags="A") / DATA[:14600], vnet=gso(GSO_TCPV4, 1460))
    lengths = [len(buffer.frame) - 14 for buffer in burst]
    assert max(lengths) <= 1500
    assert max(lengths) > 1496
    assert b"".join(bytes(checked(inside(buffer))[TCP].payload) for buffer in burst) == DATA[:14600]


def test_segment_size_of_the_host_is_kept_where_it_fits() -> None:
    card = protected()
    burst = card.framed(IP(**V4) / TCP(flags="A") / DATA[:2000], vnet=gso(GSO_TCPV4, 536))
    assert [len(checked(inside(buffer))[TCP].payload) for buffer in burst] == [536, 536, 536, 392]


def test_udp_superframe_becomes_the_datagrams_the_application_sent() -> None:
    card = protected()
    burst = card.framed(IP(**V4) / UDP(sport=1, dport=2) / DATA[:2500], vnet=gso(GSO_UDP_L4, 1000))
    assert [bytes(checked(inside(buffer))[UDP].payload) for buffer in burst] == [
        DATA[:1000],
        DATA[1000:2000],
        DATA[2000:2500],
    ]


@pytest.mark.parametrize("protect", [False, True])
def test_udp_superframe_whose_datagrams_do_not_fit_is_too_big_and_never_cut_otherwise(protect: bool) -> None:
    # Datagrams are messages; cutting them smaller would hand the receiver other messages.
    card = protected() if protect else Card()
    assert card.framed(IP(**V4, flags="DF") / UDP() / DATA[:4416], vnet=gso(GSO_UDP_L4, 1473)) == []
    assert set(names(card)) == {"out_too_big"}


def test_superframe_that_no_wire_could_carry_is_too_big() -> None:
    card = protected(wire_mtu=80)
    assert card.framed(IP(**V4) / TCP(flags="A") / DATA[:2000], vnet=gso(GSO_TCPV4, 536)) == []
    assert names(card) == {"out_too_big": 1}


def test_superframe_in_clear_is_cut_too() -> None:
    card = Card()
    burst = card.framed(
        ETHER / Dot1Q(vlan=3) / IP(**V4) / TCP(flags="PA") / DATA[:2500], vnet=gso(GSO_TCPV4, 1000)
    )
    assert all(buffer.transmit is None and buffer.vnet is None for buffer in burst)
    assert all(buffer.frame[12:18] == bytes.fromhex("810000030800") for buffer in burst)
    pieces = [checked(bytes(buffer.frame[18:])) for buffer in burst]
    assert b"".join(bytes(piece[TCP].payload) for piece in pieces) == DATA[:2500]
    assert card.audit.card.tx_bypassed == 3


def test_superframe_in_clear_is_cut_to_what_the_wire_takes() -> None:
    card = Card(wire_mtu=1000)
    burst = card.framed(IP(**V4) / TCP(flags="A") / DATA[:4380], vnet=gso(GSO_TCPV4, 1460))
    assert max(len(buffer.frame) for buffer in burst) == 1014
    assert b"".join(bytes(checked(bytes(one.frame[14:]))[TCP].payload) for one in burst) == DATA[:4380]


def test_superframe_into_transport_mode_is_cut_as_well() -> None:
    card = protected(T_ESP, mode=TRANSPORT, source="10.1.0.1", destination="10.2.0.1")
    burst = card.framed(IP(**V4, id=5) / TCP(flags="A") / DATA[:2500], vnet=gso(GSO_TCPV4, 1000))
    assert [Ether(bytes(buffer.frame))[IP].id for buffer in burst] == [5, 6, 7]
    card.nic.send(burst)
    assert {buffer.status for buffer in burst} == {NdisStatus.SUCCESS}


@pytest.mark.parametrize("protect", [False, True])
def test_open_checksum_is_completed_before_anything_leaves(protect: bool) -> None:
    card = protected() if protect else Card()
    whole = bytes(IP(**V4) / UDP(sport=1, dport=2) / b"payload")
    frame = bytearray(bytes(ETHER / IP(whole)))
    pseudo = sum(int.from_bytes(whole[at : at + 2], "big") for at in range(12, 20, 2)) + 17 + len(whole) - 20
    frame[40:42] = (pseudo % 65535).to_bytes(2, "big")
    (buffer,) = card.framed(frame, vnet=VnetHeader(NEEDS_CSUM, 0, 0, 0, 34, 6))
    assert buffer.vnet is None
    assert (inside(buffer) if protect else bytes(buffer.frame[14:])) == whole


def test_nothing_that_leaves_has_a_virtio_header() -> None:
    card = protected(chosen=selector("0.0.0.0/0", "10.2.0.0/16"))
    clear = IP(src="10.1.0.1", dst="10.9.0.1") / TCP(flags="A") / DATA[:100]
    plain = VnetHeader(0, 0, 0, 0, 0, 0)
    for packet, vnet in (
        (UDP4, plain),
        (clear, plain),
        (clear, gso(GSO_TCPV4, 30)),
        (ETHER / ARP(), plain),
        (IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_NS(), plain),
    ):
        burst = card.framed(packet, vnet=vnet)
        assert burst
        assert all(buffer.vnet is None for buffer in burst)


# the end of the numbers


def test_last_number_is_used_then_sending_stops_and_says_so_once() -> None:
    card = protected(sequence_number=LAST - 2)
    sa = association().id
    assert len(card.sent(UDP4, UDP4)) == 2
    assert card.audit.take_events() == []
    for now in (1.0, 1.5, 5.0, 9.0):
        assert card.framed(UDP4, now=now) == []
    assert names(card) == {"out_sequence_exhausted": 4}
    assert card.sad.table[sa].counters.drops == {DropReason.OUT_SEQUENCE_EXHAUSTED: 4}
    events = card.audit.take_events()
    told = [event for event in events if event.kind is EventKind.SEQUENCE_EXHAUSTED]
    assert [(event.sa, event.sequence_number) for event in told] == [(sa, LAST)]
    dropped = [event for event in events if event.kind is EventKind.DROP]
    assert {event.sa for event in dropped} == {sa}


def test_flow_that_first_comes_when_the_numbers_are_used_up_makes_it_known_too() -> None:
    card = protected(sequence_number=LAST)
    assert card.framed(UDP4) == []
    kinds = [event.kind for event in card.audit.take_events()]
    assert EventKind.SEQUENCE_EXHAUSTED in kinds
    assert card.sad.table[association().id].counters.drops == {DropReason.OUT_SEQUENCE_EXHAUSTED: 1}


def test_extended_numbers_go_on_where_short_ones_end() -> None:
    card = protected(esn=True, sequence_number=LAST - 1)
    assert len(card.sent(UDP4, UDP4, UDP4)) == 3
    assert names(card) == {}


def test_extended_numbers_end_too() -> None:
    card = protected(esn=True, sequence_number=(1 << 64) - 2)
    assert len(card.sent(UDP4, UDP4, UDP4)) == 1
    assert names(card) == {"out_sequence_exhausted": 2}


def test_other_sa_takes_over_when_the_numbers_end() -> None:
    card = Card()
    card.spd.add(policy(OUT, ANY, TO_FAR))
    card.sad.add(association(spi=0x2000), 0.0)
    card.sad.add(association(spi=0x1000, sequence_number=LAST - 1), 0.0)
    spis = [bytes(wire[34:38]).hex() for wire in card.sent(*[UDP4] * 4)]
    assert spis[0] == "00001000"
    assert spis[-1] == "00002000"
    assert sum(card.drops.values()) <= 1


def test_superframe_with_too_few_numbers_left_takes_none_of_them() -> None:
    card = protected(sequence_number=LAST - 2)
    superframe = IP(**V4) / TCP(flags="A") / DATA[:3000]
    assert card.framed(superframe, vnet=gso(GSO_TCPV4, 1000)) == []
    assert names(card) == {"out_sequence_exhausted": 3}
    assert len(card.sent(UDP4, UDP4)) == 2


def test_one_exhausted_sa_of_several_stops_the_packet() -> None:
    card = Card()
    card.spd.add(policy(OUT, ANY, T_ESP, TO_FAR))
    card.sad.add(association(OUT, TRANSPORT, "10.1.0.1", "10.2.0.1"), 0.0)
    card.sad.add(association(spi=0x3000, sequence_number=LAST), 0.0)
    assert card.framed(UDP4) == []
    assert names(card) == {"out_sequence_exhausted": 1}


# counting


def test_sa_counts_packets_and_bytes_of_what_it_protected() -> None:
    card = protected()
    card.sent(UDP4, UDP4, now=7.5)
    state = card.sad.table[association().id]
    assert (state.counters.packets, state.counters.bytes, state.use_time) == (2, 2 * len(UDP4), 7.5)


def test_sa_counts_a_superframe_as_the_packets_it_became() -> None:
    card = protected()
    burst = card.framed(IP(**V4) / TCP(flags="A") / DATA[:2500], vnet=gso(GSO_TCPV4, 1000))
    state = card.sad.table[association().id]
    assert state.counters.packets == 3
    assert state.counters.bytes == sum(len(inside(buffer)) for buffer in burst) == 2500 + 3 * 40


def test_dropped_packets_do_not_count_as_protected() -> None:
    card = protected()
    card.framed(IP(**V4, flags="DF") / UDP() / bytes(1473))
    state = card.sad.table[association().id]
    assert (state.counters.packets, state.counters.bytes, state.use_time) == (0, 0, 0.0)


def test_memory_of_flows_is_bounded() -> None:
    card = protected()
    template_frame = frame_of(UDP4)
    for number in range(20000):
        frame = bytearray(template_frame)
        frame[34:38] = number.to_bytes(4, "big")
        card.framed(frame)
    assert len(card.outbound._flows) <= 8192


def test_memory_of_one_flow_is_bounded_however_its_headers_vary() -> None:
    card = protected(wire_mtu=65535)
    for words in range(4096):
        options = bytes([17, words % 256]) + bytes(6 + 8 * (words % 256))
        body = options + b"\0\1\0\2\0\x08\0\0" + bytes(words // 256)
        packet = b"\x60" + words.to_bytes(3, "big") + len(body).to_bytes(2, "big") + bytes([60, 64])
        packet += bytes(15) + b"\1" + bytes(15) + b"\2" + body
        assert len(card.framed(bytearray(bytes(ETHER)[:12] + b"\x86\xdd" + packet))) == 1
    (verdict,) = card.outbound._flows.values()
    assert len(verdict._infos) <= 512  # type: ignore[union-attr]
    assert len(verdict._outer_headers) <= 512  # type: ignore[union-attr]


def test_sa_that_two_policies_use_alone_and_in_a_bundle_changes_over_between_bursts() -> None:
    card = Card()
    card.spd.add(policy(OUT, selector(protocol=17), T_ESP))
    card.spd.add(policy(OUT, ANY, T_ESP, template(AH, TRANSPORT)))
    card.sad.add(association(OUT, TRANSPORT, "10.1.0.1", "10.2.0.1"), 0.0)
    card.sad.add(association(OUT, TRANSPORT, "10.1.0.1", "10.2.0.1", protocol=AH), 0.0)
    for _ in range(3):
        (alone,) = card.sent(UDP4)
        (both,) = card.sent(IP(**V4) / TCP() / b"payload")
        assert (Ether(bytes(alone))[IP].proto, Ether(bytes(both))[IP].proto) == (50, 51)
    assert names(card) == {}


def test_icmp_is_matched_by_type_and_code() -> None:
    card = Card()
    card.spd.add(policy(OUT, selector(protocol=1, source_port=8, destination_port=0), TO_FAR))
    card.spd.add(policy(OUT, selector("::/0", "::/0", 58, 128, 0), TO_FAR))
    card.sad.add(association(), 0.0)
    burst = card.framed(
        IP(**V4) / ICMP(type=8),
        IP(**V4) / ICMP(type=0),
        IPv6(**V6) / ICMPv6EchoRequest(),
        IPv6(**V6) / ICMPv6EchoRequest(type=129),
    )
    assert [buffer.transmit is not None for buffer in burst] == [True, False, True, False]


@pytest.mark.parametrize("start", [0, 12, 14, 16, 33])
@pytest.mark.parametrize("protect", [True, False])
def test_checksum_that_would_reach_into_judged_headers_ends_the_packet(start: int, protect: bool) -> None:
    """A virtio header that lies must not rewrite addresses after policy has looked at them."""
    card = protected() if protect else Card()
    frame = frame_of(UDP4)
    vnet = VnetHeader(NEEDS_CSUM, 0, 0, 0, start, max(30 - start, 6))
    assert card.framed(frame, vnet=vnet) == []
    assert names(card) == {"out_malformed": 1}


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_checksum_must_not_take_the_place_of_judged_ports(place: int) -> None:
    """A packet that policy lets pass must not become one of other ports behind its back."""
    card = protected()
    card.spd.add(
        policy(OUT, selector(protocol=17, destination_port=53), priority=1, action=PolicyAction.BYPASS)
    )
    frame = frame_of(IP(**V4) / UDP(sport=7, dport=53) / bytes(64))
    assert card.framed(frame, vnet=VnetHeader(NEEDS_CSUM, 0, 0, 0, 34, place)) == []
    assert names(card) == {"out_malformed": 1}


@pytest.mark.parametrize("kind", [b"\x08\x06", b"\x81\x00\x00\x01\x08\x06"])
def test_checksum_must_not_take_the_place_of_the_ethertype(kind: bytes) -> None:
    """ARP passes whatever the policy; it must not become IP behind its back."""
    card = protected()
    frame = bytearray(bytes(12) + kind + bytes(64))
    vnet = VnetHeader(NEEDS_CSUM, 0, 0, 0, len(kind), 12 - 2)
    assert card.framed(frame, vnet=vnet) == []
    assert names(card) == {"out_malformed": 1}
