"""The reference engine: transport and NIC joined, two cards back to back."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw
from transport_lab import (
    AH,
    ANY,
    ANY6,
    ESP,
    ETHER,
    FAR,
    FAR6,
    IN,
    NEAR,
    NEAR6,
    OUT,
    TRANSPORT,
    TUNNEL,
    association,
    frame_of,
    key_fragments,
    policy,
    selector,
    template,
)

from tests.engines import BOTH_ENGINES, make_card
from vnic.engine.contract import Engine
from vnic.engine.reference import ReferenceEngine
from vnic.errors import OidError, RequestError
from vnic.ipsec.association import Mode, SecurityAssociation
from vnic.ipsec.counters import EventKind
from vnic.ipsec.policy import Defaults, PolicyAction, Template
from vnic.ndis.capabilities import OffloadCapabilities
from vnic.ndis.netbuffer import NetBuffer, OffloadHandle
from vnic.ndis.oid import DeleteSa
from vnic.ndis.status import NdisStatus
from vnic.packet.vnet import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHeader

pytestmark = BOTH_ENGINES

V4 = {"src": "10.1.0.1", "dst": "10.2.0.1"}
V6 = {"src": "fd01::1", "dst": "fd02::1"}
UDP4 = IP(**V4) / UDP(sport=7, dport=8) / b"SECRETSECRETSECRET"
UDP6 = IPv6(**V6) / UDP(sport=7, dport=8) / b"SECRETSECRETSECRET"
DATA = bytes(index * 31 & 0xFF for index in range(70000))
T_ESP, T_AH = template(ESP, TRANSPORT), template(AH, TRANSPORT)
U_ESP, U_AH = template(ESP, TUNNEL, NEAR, FAR), template(AH, TUNNEL, NEAR, FAR)


def engine(seed: int = 0, **options: object) -> ReferenceEngine:
    return make_card(random.Random(seed).randbytes, **options)  # type: ignore[arg-type]


Pair = tuple[ReferenceEngine, ReferenceEngine]


def pair(templates: tuple[Template, ...], sas: list[SecurityAssociation], **options: object) -> Pair:
    """Two cards; the first protects everything it sends, the second expects just that."""
    left, right = engine(1, **options), engine(2, **options)
    for family in (ANY, ANY6):
        try:
            left.add_policy(policy(OUT, family, *templates))
            right.add_policy(policy(IN, family, *templates))
        except RequestError:
            assert any(item.source is None for item in templates)
    for sa in sas:
        left.add_sa(sa, 0.0)
        right.add_sa(replace(sa, direction=IN), 0.0)
    return left, right


def tunnel(**members: object) -> Pair:
    return pair((U_ESP,), [association(**members)])  # type: ignore[arg-type]


def send(
    card: Engine, *packets: Packet | bytearray, vnet: VnetHeader | None = None, now: float = 1.0
) -> list[bytearray]:
    burst = [NetBuffer(one if isinstance(one, bytearray) else frame_of(one), vnet) for one in packets]
    outcome = card.send(burst, now)
    assert outcome.host == []
    assert all(buffer.vnet is None for buffer in outcome.wire)
    return [buffer.frame for buffer in outcome.wire]


def receive(card: Engine, *frames: bytearray, now: float = 1.0) -> list[NetBuffer]:
    outcome = card.receive([NetBuffer(bytearray(frame)) for frame in frames], now)
    assert outcome.wire == []
    return outcome.host


def walk(cards: Pair, *packets: Packet) -> list[bytes]:
    return [bytes(buffer.frame) for buffer in receive(cards[1], *send(cards[0], *packets))]


def drops(card: Engine) -> dict[str, int]:
    return {reason.value: count for reason, count in card.counters.drops.items()}


ALGORITHMS = [
    ("aes-gcm-128", None, {}),
    ("aes-gcm-192", None, {"icv_length": 12}),
    ("aes-gcm-256", None, {"icv_length": 8}),
    ("aes-cbc-128", "hmac-sha256-128", {}),
    ("aes-cbc-192", "hmac-sha256-128", {"icv_length": 12}),
    ("aes-cbc-256", "hmac-sha1-96", {}),
    ("3des-cbc", "hmac-md5-96", {}),
    ("des-cbc", "hmac-sha1-96", {}),
    ("null", "hmac-sha256-128", {}),
    ("null", "aes-gmac-192", {}),
]

PACKETS = [
    IP(**V4) / UDP(sport=7, dport=8) / b"",
    IP(**V4, tos=0xB9, flags="DF") / TCP(flags="PA") / DATA[:1001],
    IP(**V4, options=[IPOption_NOP()] * 8) / ICMP() / b"ping",
    IP(**V4, proto=47) / Raw(DATA[:77]),
    IPv6(**V6) / UDP(sport=7, dport=8) / b"x",
    IPv6(**V6, tc=2, fl=77) / IPv6ExtHdrDestOpt() / TCP(flags="A") / DATA[:900],
]


@pytest.mark.rule(100, 108, 216, 217)
@pytest.mark.parametrize(("encryption", "integrity", "members"), ALGORITHMS)
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("esn", [False, True])
def test_packets_come_through_a_tunnel_as_they_went_in(
    encryption: str, integrity: str | None, members: dict[str, int], outer: int, esn: bool
) -> None:
    near, far = (NEAR, FAR) if outer == 4 else (NEAR6, FAR6)
    sa = association(OUT, TUNNEL, near, far, encryption=encryption, integrity=integrity, esn=esn, **members)
    cards = pair((template(ESP, TUNNEL, near, far),), [sa])
    assert walk(cards, *PACKETS) == [bytes(frame_of(packet)) for packet in PACKETS]
    assert cards[0].counters.tx_offloaded == cards[1].counters.rx_offloaded == len(PACKETS)
    assert drops(cards[0]) == drops(cards[1]) == {}


@pytest.mark.rule(216)
@pytest.mark.parametrize("packet", PACKETS, ids=range(len(PACKETS)))
@pytest.mark.parametrize("protocol", [ESP, AH])
def test_packets_come_through_transport_mode_as_they_went_in(packet: Packet, protocol) -> None:  # type: ignore[no-untyped-def]
    ends = tuple((V4 if packet.version == 4 else V6).values())
    for members in (
        {"encryption": "aes-cbc-128", "integrity": "hmac-sha1-96"},
        {"integrity": "aes-gmac-128", "encryption": "null"},
    ):
        sa = association(OUT, TRANSPORT, *ends, protocol=protocol, **members)  # type: ignore[arg-type]
        assert walk(pair((template(protocol, TRANSPORT),), [sa]), packet) == [bytes(frame_of(packet))]


ESP_T = association(OUT, TRANSPORT, *V4.values(), spi=0x1111)
AH_T = association(OUT, TRANSPORT, *V4.values(), spi=0x2222, protocol=AH)
ESP_U = association(OUT, TUNNEL, NEAR, FAR, spi=0x3333)
AH_U = association(OUT, TRANSPORT, NEAR, FAR, spi=0x4444, protocol=AH, integrity="aes-gmac-256")
AH_ONLY = association(OUT, TUNNEL, NEAR, FAR, spi=0x5555, protocol=AH, integrity="hmac-sha1-96")

SHAPES: dict[str, tuple[tuple[Template, ...], list[SecurityAssociation]]] = {
    "AH over ESP": ((T_ESP, T_AH), [ESP_T, AH_T]),
    "AH tunnel": ((U_AH,), [AH_ONLY]),
    "AH over ESP tunnel": ((U_ESP, T_AH), [ESP_U, AH_U]),
    "ESP in tunnel": ((T_ESP, U_ESP), [ESP_T, ESP_U]),
    "AH in tunnel": ((T_AH, U_ESP), [AH_T, ESP_U]),
    "ESP in AH tunnel": ((T_ESP, U_AH), [ESP_T, AH_ONLY]),
    "AH over ESP in tunnel": ((T_ESP, T_AH, U_ESP), [ESP_T, AH_T, ESP_U]),
    "everything": ((T_ESP, T_AH, U_ESP, T_AH), [ESP_T, AH_T, ESP_U, AH_U]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_protection_comes_through(shape: str) -> None:
    templates, sas = SHAPES[shape]
    cards = pair(templates, [replace(sa, esn=True) for sa in sas])
    packets = [packet for packet in PACKETS if packet.version == 4]
    for _ in range(2):
        # Order is kept inside flows; these are all different.
        assert sorted(walk(cards, *packets)) == sorted(bytes(frame_of(packet)) for packet in packets)
    assert drops(cards[0]) == drops(cards[1]) == {}
    for report in (*cards[0].sas(), *cards[1].sas()):
        assert report.sequence_number == report.counters.packets == 2 * len(packets)


def test_sa_wanted_alone_and_in_a_bundle_by_one_burst_costs_frames_and_never_sends_them_open() -> None:
    card = engine()
    card.add_policy(policy(OUT, selector(protocol=17), T_ESP))
    card.add_policy(policy(OUT, ANY, T_ESP, T_AH, priority=1))
    for sa in (ESP_T, AH_T):
        card.add_sa(sa, 0.0)
    burst = [UDP4, IP(**V4) / TCP() / b"SECRET", UDP4, IP(**V4) / TCP() / b"SECRET"]
    wire = send(card, *burst)
    assert wire
    assert not any(b"SECRET" in frame for frame in wire)
    assert len(wire) + drops(card).get("out_nic", 0) == len(burst)
    assert all(len(send(card, packet)) == 1 for packet in burst)


def test_nothing_of_the_payload_is_on_the_wire() -> None:
    cards = tunnel()
    (wire,) = send(cards[0], UDP4)
    assert b"SECRET" not in wire
    assert Ether(bytes(wire))[IP].proto == 50


def test_same_packet_twice_never_looks_the_same() -> None:
    cards = tunnel(encryption="aes-cbc-128", integrity="hmac-sha1-96")
    first, second = send(cards[0], UDP4, UDP4)
    assert first[42:] != second[42:]
    assert first[50:66] != second[50:66]


# superframes


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [1000, 1001])
def test_tcp_superframe_arrives_as_a_superframe(version: int, size: int) -> None:
    cards = tunnel()
    ip = IP(**V4, flags="DF", id=9) if version == 4 else IPv6(**V6)
    packet = ip / TCP(sport=1, dport=2, seq=77, flags="PA") / DATA[:20500]
    wire = send(
        cards[0], packet, vnet=VnetHeader(NEEDS_CSUM, GSO_TCPV4 if version == 4 else GSO_TCPV6, 0, size, 0, 0)
    )
    assert len(wire) == -(-20500 // size)
    (host,) = receive(cards[1], *wire)
    assert host.frame == frame_of(packet)
    assert host.vnet is not None
    assert (host.vnet.gso_type, host.vnet.gso_size) == (GSO_TCPV4 if version == 4 else GSO_TCPV6, size)
    assert cards[0].counters.tx_offloaded == cards[1].counters.rx_offloaded == len(wire)
    assert cards[0].sas()[0].counters == cards[1].sas()[0].counters


def test_udp_superframe_arrives_as_its_datagrams() -> None:
    cards = tunnel()
    packet = IP(**V4) / UDP(sport=1, dport=2) / DATA[:2500]
    wire = send(cards[0], packet, vnet=VnetHeader(NEEDS_CSUM, GSO_UDP_L4, 0, 1000, 0, 0))
    payloads = [bytes(Ether(bytes(one.frame))[UDP].payload) for one in receive(cards[1], *wire)]
    assert payloads == [DATA[:1000], DATA[1000:2000], DATA[2000:2500]]


# failing closed


def test_frame_that_the_nic_does_not_seal_stays_here() -> None:
    cards = tunnel()
    (report,) = cards[0].sas()
    assert len(send(cards[0], UDP4)) == 1
    cards[0]._miniport.delete_sa(DeleteSa(report.offload_handle))
    assert send(cards[0], UDP4, ETHER / ARP()) == [frame_of(ETHER / ARP())]
    assert drops(cards[0]) == {"out_nic": 1}
    assert cards[0].counters.tx_offloaded == 1
    (event,) = cards[0].take_events()
    assert event.kind is EventKind.DROP


@pytest.mark.rule(112)
def test_deleted_sa_stops_traffic_in_both_directions() -> None:
    cards = tunnel()
    assert len(walk(cards, UDP4)) == 1
    late = send(cards[0], UDP4)
    cards[1].delete_sa(association().id)
    assert receive(cards[1], *late) == []
    cards[0].delete_sa(association().id)
    assert send(cards[0], UDP4) == []
    assert drops(cards[0]) == {"out_no_sa": 1}
    assert drops(cards[1]) == {"in_no_sa": 1}


def test_peer_with_another_key_is_not_believed() -> None:
    cards = tunnel()
    cards[1].delete_sa(association().id)
    cards[1].add_sa(association(IN, seed=1), 0.0)
    assert walk(cards, UDP4) == []
    assert drops(cards[1]) == {"in_icv": 1}
    (report,) = cards[1].sas()
    assert (report.sequence_number, report.counters.packets) == (0, 0)


@pytest.mark.parametrize(
    "members",
    [{}, {"encryption": "aes-cbc-128", "integrity": "hmac-sha256-128"}, {"protocol": AH}],
    ids=["GCM", "CBC", "AH"],
)
def test_no_changed_byte_behind_the_ethernet_header_gets_through(members: dict[str, object]) -> None:
    templates = (U_AH,) if "protocol" in members else (U_ESP,)
    cards = pair(templates, [association(**members)])  # type: ignore[arg-type]
    (wire,) = send(cards[0], UDP4)
    for at in range(14, len(wire)):
        for bit in (0x01, 0x80):
            damaged = bytearray(wire)
            damaged[at] ^= bit
            assert receive(cards[1], damaged) == [], at
    assert [bytes(one.frame) for one in receive(cards[1], wire)] == [bytes(frame_of(UDP4))]


def test_cut_and_grown_frames_do_not_get_through() -> None:
    cards = tunnel()
    (wire,) = send(cards[0], UDP4)
    for length in range(len(wire)):
        assert receive(cards[1], wire[:length]) == [] or length < 14
    (host,) = receive(cards[1], wire + bytes(9))
    assert host.frame == frame_of(UDP4)


@pytest.mark.rule(11, 184)
def test_replayed_frames_are_counted_and_dropped() -> None:
    cards = tunnel()
    wire = send(cards[0], *[UDP4] * 10)
    assert len(receive(cards[1], *wire)) == 10
    assert receive(cards[1], *wire) == []
    assert drops(cards[1]) == {"in_replay_duplicate": 10}
    (report,) = cards[1].sas()
    assert (report.sequence_number, report.replay_bitmap) == (10, 0x3FF)


def test_frames_out_of_order_inside_the_window_pass_and_old_ones_do_not() -> None:
    cards = tunnel(replay_window=64)
    wire = send(cards[0], *[UDP4] * 100)
    order = list(range(99, -1, -1))
    assert len(receive(cards[1], *[wire[index] for index in order])) == 64
    assert drops(cards[1]) == {"in_replay_too_old": 36}


@pytest.mark.rule(11)
def test_clear_packets_where_policy_wants_protection_do_not_get_through() -> None:
    cards = tunnel()
    assert receive(cards[1], frame_of(UDP4)) == []
    assert drops(cards[1]) == {"in_policy_mismatch": 1}


def test_reflected_frames_do_not_get_through() -> None:
    cards = tunnel()
    wire = send(cards[0], UDP4)
    assert receive(cards[0], *wire) == []


@pytest.mark.parametrize("kind", ["v4", "v6"])
def test_fragments_of_packets_for_no_sa_here_end(kind: str) -> None:
    cards = tunnel()
    (wire,) = send(cards[0], UDP4)
    if kind == "v4":
        whole = Ether(bytes(wire))[IP]
        whole.dst = "192.0.2.77"
        del whole.chksum
        pieces: list[Packet] = whole.fragment(40)
        pieces = [Ether(src=ETHER.src, dst=ETHER.dst) / piece for piece in pieces]
    else:
        pieces = [
            ETHER / IPv6(src=FAR6, dst="2001:db8::77") / IPv6ExtHdrFragment(m=1, nh=50) / Raw(bytes(64))
        ]
    assert receive(cards[1], *[frame_of(piece) for piece in pieces]) == []
    assert drops(cards[1]) == {"in_fragment": len(pieces)}


# what passes


def test_arp_neighbour_discovery_and_tags_go_both_ways() -> None:
    cards = tunnel()
    clear = [ETHER / ARP(), ETHER / IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_NS()]
    assert walk(cards, *clear) == [bytes(packet) for packet in clear]
    tagged = ETHER / Dot1Q(vlan=9) / UDP4
    assert walk(cards, tagged) == [bytes(tagged)]
    assert (cards[0].counters.tx_passed, cards[1].counters.rx_passed) == (2, 2)


def test_bypass_is_counted_apart_from_what_was_offloaded() -> None:
    card = engine()
    assert len(send(card, UDP4)) == 1
    assert len(receive(card, frame_of(UDP4))) == 1
    counters = card.counters
    assert (counters.tx_bypassed, counters.rx_bypassed) == (1, 1)
    assert (counters.tx_offloaded, counters.rx_offloaded) == (0, 0)


# numbers


@pytest.mark.parametrize("disorder", [False, True])
def test_extended_numbers_wrap_under_both_roles(disorder: bool) -> None:
    start = (1 << 32) - 4
    cards = tunnel(esn=True, sequence_number=start)
    wire = send(cards[0], *[UDP4] * 9)
    if disorder:
        wire = [wire[index] for index in (1, 5, 0, 3, 8, 2, 4, 7, 6)]
    assert len(receive(cards[1], *wire)) == 9
    assert receive(cards[1], *wire) == []
    assert drops(cards[1]) == {"in_replay_duplicate": 9}
    assert [cards[0].sas()[0].sequence_number, cards[1].sas()[0].sequence_number] == [start + 9] * 2


def test_packets_from_before_the_wrap_are_replays_while_the_wrap_itself_is_the_newest() -> None:
    cards = tunnel(esn=True, sequence_number=(1 << 32) - 4)
    wire = send(cards[0], *[UDP4] * 4)
    assert len(receive(cards[1], *wire)) == 4
    assert cards[1].sas()[0].sequence_number == 1 << 32
    assert receive(cards[1], *wire) == []
    assert drops(cards[1]) == {"in_replay_duplicate": 4}


def test_update_moves_both_ends_to_the_same_upper_half() -> None:
    cards = tunnel(esn=True)
    assert len(walk(cards, UDP4)) == 1
    for card in cards:
        card.update_sa(association().id, 7)
    assert len(walk(cards, UDP4, UDP4)) == 2
    assert cards[1].sas()[0].sequence_number == (7 << 32) + 3


def test_update_of_one_end_only_breaks_the_icv() -> None:
    cards = tunnel(esn=True)
    walk(cards, UDP4)
    cards[0].update_sa(association().id, 7)
    assert walk(cards, UDP4) == []
    assert drops(cards[1]) == {"in_icv": 1}


def test_end_of_the_numbers_stops_the_card() -> None:
    cards = tunnel(sequence_number=0xFFFFFFFD)
    assert len(walk(cards, *[UDP4] * 5)) == 2
    assert drops(cards[0]) == {"out_sequence_exhausted": 3}
    assert EventKind.SEQUENCE_EXHAUSTED in [event.kind for event in cards[0].take_events()]


# rekeying


def test_rekey_under_traffic_loses_nothing() -> None:
    cards = tunnel()
    first = send(cards[0], UDP4)
    cards[1].add_sa(association(IN, spi=0x2000, seed=1), 0.0)
    cards[0].add_sa(association(spi=0x2000, seed=1), 0.0)
    second = send(cards[0], UDP4)
    cards[0].delete_sa(association().id)
    third = send(cards[0], UDP4)
    assert len(receive(cards[1], *first, *second, *third)) == 3
    assert [report.counters.packets for report in cards[1].sas()] == [1, 2]


def test_replaced_sa_goes_on_with_its_numbers_and_window() -> None:
    cards = tunnel()
    old = send(cards[0], *[UDP4] * 3)
    assert len(receive(cards[1], *old)) == 3
    cards[0].add_sa(association(reqid=5), 1.0, replace=True)
    cards[1].add_sa(association(IN, reqid=5), 1.0, replace=True)
    assert receive(cards[1], *old) == []
    assert len(walk(cards, UDP4)) == 1
    assert cards[0].sas()[0].sequence_number == 4


def test_replaced_keys_hold_at_both_ends_from_the_next_packet_on() -> None:
    cards = tunnel()
    old = send(cards[0], UDP4)
    cards[0].add_sa(association(seed=3), 1.0, replace=True)
    cards[1].add_sa(association(IN, seed=3), 1.0, replace=True)
    assert receive(cards[1], *old) == []
    assert len(walk(cards, UDP4)) == 1
    assert drops(cards[1]) == {"in_icv": 1}


def test_bundle_survives_its_partners_deletion_and_return() -> None:
    cards = pair((T_ESP, T_AH), [ESP_T, AH_T])
    assert len(walk(cards, UDP4)) == 1
    cards[0].delete_sa(AH_T.id)
    assert walk(cards, UDP4) == []
    cards[0].add_sa(replace(AH_T, sequence_number=1), 0.0)
    assert len(walk(cards, UDP4)) == 1
    assert drops(cards[0]) == {"out_no_sa": 1}


# requests


def test_engine_is_what_the_contract_says() -> None:
    card: Engine = engine()
    assert card.name in ("reference", "native")
    assert card.capabilities == OffloadCapabilities()
    assert card.defaults == Defaults()
    assert (card.sas(), card.policies(), card.take_events(), card.sa_count) == ([], [], [], 0)
    assert card.inner_mtu(1500) == 1500


def test_sas_can_come_and_go_while_they_are_listed() -> None:
    card: Engine = engine()
    for spi in (0x1001, 0x1002, 0x1003):
        card.add_sa(association(spi=spi), 0.0)
    listing = card.each_sa()
    assert next(listing).sa.spi == 0x1001
    card.delete_sa(association(spi=0x1002).id)
    card.add_sa(association(spi=0x1004), 0.0)
    assert [report.sa.spi for report in listing] == [0x1003]


def test_report_shows_an_sa_with_its_live_state() -> None:
    cards = tunnel(reqid=4)
    handle = cards[0].sas()[0].offload_handle
    send(cards[0], UDP4, now=3.5)
    (report,) = cards[0].sas()
    assert report.sa == association(reqid=4).checked()
    assert (report.add_time, report.use_time, report.sequence_number, report.replay_bitmap) == (
        0.0,
        3.5,
        1,
        0,
    )
    assert (report.counters.packets, report.counters.bytes) == (1, len(UDP4))
    assert report.offload_handle == handle
    assert cards[0].find_handle(handle) == report.sa.id
    assert cards[0].find_handle(OffloadHandle(0)) is None
    assert cards[0].find_sa(report.sa.id) == report
    assert cards[0].find_sa(association(spi=0x9999).id) is None
    assert cards[0].sa_count == 1


@pytest.mark.rule(92)
def test_full_nic_refuses_and_nothing_stays_behind() -> None:
    card = engine(capabilities=OffloadCapabilities(sa_offload_capacity=2), software=False)
    card.add_sa(association(spi=0x1000), 0.0)
    card.add_sa(association(spi=0x2000), 0.0)
    with pytest.raises(OidError) as refused:
        card.add_sa(association(spi=0x3000), 0.0)
    assert refused.value.status is NdisStatus.RESOURCES
    assert [report.sa.spi for report in card.sas()] == [0x1000, 0x2000]
    card.delete_sa(association(spi=0x1000).id)
    card.add_sa(association(spi=0x3000), 0.0)


@pytest.mark.parametrize(
    ("lacking", "sa"),
    [
        ({"esp": False}, association()),
        ({"ah": False}, association(protocol=AH, mode=Mode.TRANSPORT)),
        ({"ipv6_supported": False}, association(source=NEAR6, destination=FAR6)),
        ({"extended_sequence_numbers": False}, association(esn=True)),
        ({"encryption_algorithms": 0x1FF & ~0x008}, association()),
        ({"authentication_algorithms": 0x3F & ~0x004}, association(protocol=AH)),
    ],
)
def test_nic_that_lacks_something_refuses_the_sa_and_stays_usable(
    lacking: dict[str, object], sa: SecurityAssociation
) -> None:
    card = engine(capabilities=replace(OffloadCapabilities(), **lacking), software=False)  # type: ignore[arg-type]
    with pytest.raises(OidError) as refused:
        card.add_sa(sa, 0.0)
    assert refused.value.status is NdisStatus.NOT_SUPPORTED
    assert not [text for text in key_fragments(sa) if text in f"{refused.value!r}{refused.value}"]
    assert card.sas() == []


def test_second_outbound_sa_with_the_same_counter_mode_key_is_refused() -> None:
    card = engine()
    sa = association()
    card.add_sa(sa, 0.0)
    with pytest.raises(OidError):
        card.add_sa(replace(sa, spi=0x2000), 0.0)
    card.add_sa(
        replace(sa, spi=0x2000, direction=IN, source=FAR and sa.destination, destination=sa.source), 0.0
    )
    assert card.sa_count == 2


def test_refused_replacement_leaves_traffic_running() -> None:
    cards = tunnel()
    assert len(walk(cards, UDP4)) == 1
    other = association(spi=0x2000, seed=9)
    cards[0].add_sa(replace(other, destination=association(destination="192.0.2.9").destination), 0.0)
    clash = replace(association(), encryption_key=other.encryption_key)
    with pytest.raises(OidError):
        cards[0].add_sa(clash, 1.0, replace=True)
    assert len(walk(cards, UDP4)) == 1


@pytest.mark.parametrize(
    "request_made",
    [
        lambda card: card.delete_sa(association(spi=0x9999).id),
        lambda card: card.update_sa(association(spi=0x9999).id, 0),
        lambda card: card.update_sa(association().id, 1),
        lambda card: card.add_sa(association(), 0.0),
        lambda card: card.add_sa(association(spi=0x9999), 0.0, replace=True),
        lambda card: card.add_sa(association(spi=0), 0.0),
        lambda card: card.add_policy(policy(OUT, ANY)),
        lambda card: card.add_policy(policy(OUT, selector(protocol=6), action=PolicyAction.PROTECT)),
        lambda card: card.delete_policy(OUT, None),
        lambda card: card.delete_policy(OUT, None, 999),
        lambda card: card.delete_policy(IN, ANY),
        lambda card: card.set_defaults(Defaults(inbound=PolicyAction.PROTECT)),
    ],
)
def test_refused_request_changes_nothing(request_made: Callable[[ReferenceEngine], object]) -> None:
    card = tunnel()[0]
    before = (card.sas(), card.policies(), card.defaults)
    with pytest.raises(RequestError) as refused:
        request_made(card)
    assert refused.value.field
    assert (card.sas(), card.policies(), card.defaults) == before
    assert len(send(card, UDP4)) == 1


def test_policies_can_be_listed_replaced_and_deleted() -> None:
    card = engine()
    first = card.add_policy(policy(OUT, ANY, U_ESP))
    second = card.add_policy(policy(IN, ANY, U_ESP, priority=3))
    assert sorted(card.policies(), key=lambda entry: entry.index) == [first, second]
    third = card.add_policy(policy(OUT, ANY), replace=True)
    assert third.index == first.index
    assert card.delete_policy(OUT, ANY) == third
    assert card.delete_policy(IN, None, second.index) == second
    assert card.policies() == []


def test_defaults_hold_from_the_next_frame_on() -> None:
    card = engine()
    assert len(send(card, UDP4)) == 1
    card.set_defaults(Defaults(inbound=PolicyAction.DISCARD, outbound=PolicyAction.DISCARD))
    assert send(card, UDP4) == []
    assert receive(card, frame_of(UDP4)) == []
    assert (drops(card)) == {"out_policy_discard": 1, "in_policy_discard": 1}


def test_inner_mtu_is_what_the_wire_takes() -> None:
    cards = tunnel()
    largest = cards[0].inner_mtu(1500)
    cards[0].wire_mtu = 1500
    fits = IP(**V4) / UDP() / bytes(largest - 28)
    (wire,) = send(cards[0], fits)
    assert len(wire) <= 1514
    outcome = cards[0].send([NetBuffer(frame_of(IP(**V4, flags="DF") / UDP() / bytes(largest - 27)))], 1.0)
    assert outcome.wire == []
    (told,) = outcome.host
    assert Ether(bytes(told.frame))[ICMP].nexthopmtu == largest
    cards[0].wire_mtu = 9000
    assert len(send(cards[0], IP(**V4, flags="DF") / UDP() / bytes(largest - 27))) == 1
    assert cards[0].wire_mtu == 9000


def test_no_report_or_refusal_shows_a_key() -> None:
    cards = tunnel()
    walk(cards, UDP4)
    told = [repr(card.sas()) + repr(card.counters) + repr(card.take_events()) for card in cards]
    burst = [NetBuffer(frame_of(UDP4))]
    told.append(repr(cards[0].send(burst, 0.0)))
    with pytest.raises(OidError) as refused:
        cards[0].add_sa(association(), 0.0)
    told.append(f"{refused.value} {vars(refused.value)}")
    assert not [text for text in key_fragments(association()) if text in " ".join(told)]
