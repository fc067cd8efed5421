"""UDP encapsulation on one card and between two: headers, ports, checksums, NATs, keepalives.

The bytes expected come from scapy, which wraps and unwraps with the same keys.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, in6_chksum
from scapy.layers.ipsec import ESP as SCAPY_ESP
from scapy.layers.ipsec import SecurityAssociation as ScapySa
from scapy.layers.l2 import Ether
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
    address,
    association,
    frame_of,
    policy,
    selector,
    template,
)

from tests.engines import BOTH_ENGINES, make_card
from vnic.engine.contract import Offload
from vnic.engine.reference import ReferenceEngine
from vnic.errors import OidError, RequestError
from vnic.ipsec.association import SecurityAssociation
from vnic.ipsec.counters import EventKind
from vnic.ipsec.policy import Template
from vnic.ipsec.renewal import Renewal
from vnic.ipsec.udp_encapsulation import UdpEncapsulation
from vnic.ndis.capabilities import ALL_UDP_ESP, UDP_ESP_TRANSPORT, OffloadCapabilities
from vnic.ndis.netbuffer import NetBuffer
from vnic.ndis.status import NdisStatus
from vnic.packet.vnet import GSO_TCPV4, NEEDS_CSUM, VnetHeader

pytestmark = BOTH_ENGINES

INNER = {"src": "10.1.0.1", "dst": "10.2.0.1"}
INNER6 = {"src": "fd01::1", "dst": "fd02::1"}
MARK = b"CLEARTEXT-CLEARTEXT-CLEARTEXT"
DATA = IP(**INNER) / UDP(sport=7, dport=8) / MARK
U_ESP, T_ESP = template(ESP, TUNNEL, NEAR, FAR), template(ESP, TRANSPORT)
U_ESP6 = template(ESP, TUNNEL, NEAR6, FAR6)
WRAPPED = UdpEncapsulation(4500, 4500)

SA = association(OUT, TUNNEL, NEAR, FAR, udp=WRAPPED)
SA6 = association(OUT, TUNNEL, NEAR6, FAR6, udp=WRAPPED)
SA_T = association(OUT, TRANSPORT, *INNER.values(), udp=WRAPPED)

Pair = tuple[ReferenceEngine, ReferenceEngine]


def engine(seed: int = 0, **options: object) -> ReferenceEngine:
    if isinstance(options.get("capabilities"), dict):
        options["capabilities"] = replace(OffloadCapabilities(), **options["capabilities"])  # type: ignore[arg-type]
    return make_card(random.Random(seed).randbytes, **options)  # type: ignore[arg-type]


def pair(templates: tuple[Template, ...], *sas: SecurityAssociation, **options: object) -> Pair:
    cards = engine(1, **options), engine(2, **options)
    for family in (ANY, ANY6):
        try:
            cards[0].add_policy(policy(OUT, family, *templates))
            cards[1].add_policy(policy(IN, family, *templates))
        except RequestError:
            assert templates[0].source is None
    for sa in sas:
        cards[0].add_sa(sa, 0.0)
        cards[1].add_sa(replace(sa, direction=IN), 0.0)
    return cards


def listener(sa: SecurityAssociation = SA, **options: object) -> ReferenceEngine:
    """A card that expects what scapy makes."""
    card = engine(3, **options)
    inner = U_ESP6 if sa.ipv6 else U_ESP
    for family in (ANY, ANY6):
        card.add_policy(policy(IN, family, inner))
    card.add_sa(replace(sa, direction=IN), 0.0)
    return card


def send(card: ReferenceEngine, *packets: Packet, now: float = 1.0) -> list[bytearray]:
    wire = card.send([NetBuffer(frame_of(one)) for one in packets], now).wire
    assert not any(MARK[:10] in buffer.frame for buffer in wire)
    return [buffer.frame for buffer in wire]


def receive(card: ReferenceEngine, *frames: bytes | bytearray | Packet, now: float = 1.0) -> list[bytes]:
    made = [frame_of(one) if isinstance(one, Packet) else bytearray(one) for one in frames]
    return [bytes(one.frame) for one in card.receive([NetBuffer(one) for one in made], now).host]


def dropped(card: ReferenceEngine) -> dict[str, int]:
    return {reason.value: count for reason, count in card.counters.drops.items()}


def oracle(sa: SecurityAssociation, ports: tuple[int, int] = (4500, 4500)) -> ScapySa:
    tunnel = None
    if sa.mode is TUNNEL:
        tunnel = IPv6(src=NEAR6, dst=FAR6) if sa.ipv6 else IP(src=NEAR, dst=FAR)
    return ScapySa(
        SCAPY_ESP,
        spi=sa.spi,
        crypt_algo="AES-GCM",
        crypt_key=sa.encryption_key.reveal(),
        tunnel_header=tunnel,
        nat_t_header=UDP(sport=ports[0], dport=ports[1]),
    )


def by_scapy(number: int = 1, ports: tuple[int, int] = (4500, 4500), inner: Packet = DATA) -> Packet:
    """A good packet of `SA`."""
    return oracle(SA, ports).encrypt(inner, seq_num=number)


def plain_by_scapy() -> Packet:
    """The same without UDP."""
    scapy = oracle(SA)
    scapy.nat_t_header = None
    return scapy.encrypt(DATA, seq_num=1)


# ------------------------------------------------------------------------------------------ on the wire


@pytest.mark.parametrize("ports", [(4500, 4500), (1024, 65535)])
@pytest.mark.parametrize("sa", [SA, SA_T], ids=["tunnel", "transport"])
def test_scapy_unwraps_what_a_card_wraps(sa: SecurityAssociation, ports: tuple[int, int]) -> None:
    sa = replace(sa, udp=UdpEncapsulation(*ports))
    cards = pair((U_ESP if sa.mode is TUNNEL else T_ESP,), sa)
    (frame,) = send(cards[0], DATA)
    packet = Ether(bytes(frame))[IP]
    assert (packet.proto, packet.len) == (17, len(frame) - 14)
    assert (packet[UDP].sport, packet[UDP].dport) == ports
    assert packet[UDP].len == len(frame) - 34
    assert packet[UDP].chksum == 0
    whole = packet.copy()
    del whole.chksum
    assert bytes(whole) == bytes(packet)
    # scapy finds ESP behind port 4500 alone.
    packet[UDP].remove_payload()
    packet = packet / SCAPY_ESP(bytes(frame[42:]))
    assert bytes(oracle(sa).decrypt(packet)[UDP].payload) == MARK
    assert cards[0].counters.tx_offloaded == 1
    assert receive(cards[1], frame) == [bytes(frame_of(DATA))]


@pytest.mark.parametrize("sa", [SA, SA_T], ids=["tunnel", "transport"])
def test_a_card_unwraps_what_scapy_wraps(sa: SecurityAssociation) -> None:
    cards = pair((U_ESP if sa.mode is TUNNEL else T_ESP,), sa)
    (host,) = receive(cards[1], oracle(sa).encrypt(DATA, seq_num=1))
    assert Ether(host)[UDP].payload.load == MARK
    assert cards[1].counters.rx_offloaded == 1


def test_over_ipv6_the_checksum_is_there_and_software_makes_it() -> None:
    cards = pair((U_ESP6,), SA6)
    (frame,) = send(cards[0], DATA)
    packet = Ether(bytes(frame))[IPv6]
    value = packet[UDP].chksum
    assert value
    assert in6_chksum(17, packet, bytes(frame[54:])) in (0, 0xFFFF)
    assert (cards[0].counters.tx_offloaded, cards[0].counters.tx_software) == (0, 1)
    assert receive(cards[1], frame) == [bytes(frame_of(DATA))]
    assert cards[1].counters.rx_offloaded == 1


@pytest.mark.parametrize("version", [4, 6])
def test_superframes_are_cut_with_room_for_the_udp_header(version: int) -> None:
    cards = pair((U_ESP,), SA) if version == 4 else pair((U_ESP6,), SA6)
    payload = random.Random(1).randbytes(20_000)
    packet = frame_of(IP(**INNER, flags="DF") / TCP(sport=7, dport=8, flags="A") / payload)
    vnet = VnetHeader(NEEDS_CSUM, GSO_TCPV4, 54, 1446, 34, 16)
    wire = [one.frame for one in cards[0].send([NetBuffer(packet, vnet)], 1.0).wire]
    assert len(wire) > 13
    assert max(map(len, wire)) <= 1514
    assert max(map(len, wire)) > 1500
    assert all(Ether(bytes(one))[UDP].len == len(one) - (34 if version == 4 else 54) for one in wire)
    host = cards[1].receive([NetBuffer(one) for one in wire], 1.0).host
    assert b"".join(bytes(one.frame[54:]) for one in host) == payload


def test_eight_bytes_less_fit() -> None:
    plain, wrapped = pair((U_ESP,), replace(SA, udp=None)), pair((U_ESP,), SA)
    assert plain[0].inner_mtu(1500) - wrapped[0].inner_mtu(1500) == 8
    for size in range(1400, 1500):
        packet = IP(**INNER, flags="DF") / UDP() / bytes(size - 28)
        fits = bool(send(wrapped[0], packet))
        assert fits == (size <= wrapped[0].inner_mtu(1500))


def test_what_is_too_big_goes_in_fragments_of_the_datagram() -> None:
    cards = pair((T_ESP,), SA_T)
    packet = IP(**INNER) / UDP(sport=7, dport=8) / random.Random(2).randbytes(1450)
    frames = send(cards[0], packet)
    assert len(frames) == 2
    (host,) = receive(cards[1], *reversed(frames))
    assert bytes(Ether(host)[UDP].payload) == bytes(packet[UDP].payload)


def test_icmp_about_a_wrapped_packet_teaches_its_path() -> None:
    card, _ = pair((U_ESP,), SA)
    big = IP(**INNER, flags="DF") / UDP() / bytes(1300)
    (frame,) = send(card, big)
    quoted = Raw(bytes(frame)[14:62])
    message = IP(src="198.51.100.1", dst=NEAR) / ICMP(type=3, code=4, nexthopmtu=1200) / quoted
    assert receive(card, message) == []
    assert card.counters.rx_path_mtu == 1
    assert send(card, big) == []
    other = bytearray(frame)
    other[34:36] = (4501).to_bytes(2, "big")
    message = (
        IP(src="198.51.100.1", dst=NEAR) / ICMP(type=3, code=4, nexthopmtu=900) / Raw(bytes(other)[14:62])
    )
    assert len(receive(card, message)) == 1
    assert card.counters.rx_path_mtu == 1


# ----------------------------------------------------------------------------------------- what is wrong


def changed(change: Callable[[Packet], object], **words: object) -> Packet:
    packet = by_scapy(**words)  # type: ignore[arg-type]
    change(packet)
    return IP(bytes(packet))


WRONG: dict[str, tuple[Packet, str]] = {
    "from another port": (by_scapy(ports=(4501, 4500)), "in_udp_ports"),
    "plain": (plain_by_scapy(), "in_udp_encapsulation"),
    "a wrong checksum": (changed(lambda one: setattr(one[UDP], "chksum", 0x1234)), "in_udp_checksum"),
    "a keepalive": (IP(src=NEAR, dst=FAR) / UDP(sport=4500, dport=4500) / b"\xff", "in_nat_keepalive"),
    "an unknown SPI": (
        IP(src=NEAR, dst=FAR) / UDP(sport=4500, dport=4500) / b"\0\0\x99\x99\0\0\0\1" / bytes(40),
        "in_no_sa",
    ),
    "from another address": (changed(lambda one: setattr(one, "src", "192.0.2.77")), "in_no_sa"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("offload", [True, False], ids=["nic", "software"])
def test_what_is_wrong_is_dropped_by_name(name: str, offload: bool) -> None:
    packet, reason = WRONG[name]
    packet = packet.copy()
    if name == "from another address":
        del packet.chksum
    card = listener(capabilities={} if offload else {"udp_esp": 0})
    assert receive(card, packet) == []
    assert dropped(card) == {reason: 1}
    assert len(receive(card, by_scapy())) == 1


@pytest.mark.parametrize("offload", [True, False], ids=["nic", "software"])
def test_a_tampered_packet_is_dropped_and_its_number_stays_free(offload: bool) -> None:
    card = listener(capabilities={} if offload else {"udp_esp": 0})
    frame = frame_of(by_scapy())
    for position in range(50, len(frame)):
        frame[position] ^= 1
        assert receive(card, frame) == []
        frame[position] ^= 1
    assert dropped(card) == {"in_icv": len(frame) - 50}
    assert len(receive(card, frame)) == 1
    assert receive(card, frame) == []
    assert dropped(card)["in_replay_duplicate"] == 1


def test_udp_encapsulated_esp_for_a_plain_sa_is_dropped() -> None:
    card = listener()
    other = association(IN, TUNNEL, NEAR, FAR, spi=0x2000)
    card.add_sa(other, 0.0)
    packet = oracle(replace(SA, spi=0x2000, encryption_key=other.encryption_key)).encrypt(DATA, seq_num=1)
    assert receive(card, packet) == []
    assert dropped(card) == {"in_udp_encapsulation": 1}


def test_a_good_checksum_over_ipv4_is_good() -> None:
    def fill(packet: Packet) -> None:
        del packet[UDP].chksum

    card = listener()
    packet = changed(fill)
    assert packet[UDP].chksum
    assert len(receive(card, packet)) == 1
    assert card.counters.rx_offloaded == 1


@pytest.mark.parametrize("offload", [True, False], ids=["nic", "software"])
def test_over_ipv6_a_missing_checksum_is_dropped(offload: bool) -> None:
    cards = pair((U_ESP6,), SA6, capabilities={} if offload else {"udp_esp": 0})
    (frame,) = send(cards[0], DATA)
    frame[60:62] = bytes(2)
    assert receive(cards[1], frame) == []
    assert dropped(cards[1]) == {"in_udp_checksum": 1}


@pytest.mark.parametrize("text", [b"", b"\0\0\0\0IKE-message", b"\xff\xff", b"short"])
def test_ike_and_what_nobody_knows_goes_to_the_host(text: bytes) -> None:
    card = engine()
    card.add_sa(replace(SA, direction=IN), 0.0)
    packet = IP(src="192.0.2.99", dst=FAR) / UDP(sport=4500, dport=4500) / Raw(text)
    assert receive(card, packet) == [bytes(frame_of(packet))]


def test_other_ports_are_none_of_our_business() -> None:
    card = engine()
    card.add_sa(replace(SA, direction=IN), 0.0)
    packet = IP(src=NEAR, dst=FAR) / UDP(sport=4500, dport=4501) / b"\xff"
    assert receive(card, packet) == [bytes(frame_of(packet))]


def test_source_port_0_takes_any() -> None:
    card = listener(replace(SA, udp=UdpEncapsulation(0, 4500)))
    assert len(receive(card, by_scapy(ports=(31_337, 4500)))) == 1


# -------------------------------------------------------------------------------------- who works on it


@pytest.mark.parametrize(
    ("sa", "mode", "bits", "by"),
    [
        (SA, U_ESP, ALL_UDP_ESP, Offload.NIC),
        (SA, U_ESP, UDP_ESP_TRANSPORT, Offload.SOFTWARE),
        (SA, U_ESP, 0, Offload.SOFTWARE),
        (SA_T, T_ESP, UDP_ESP_TRANSPORT, Offload.NIC),
        (SA_T, T_ESP, 0, Offload.SOFTWARE),
        (replace(SA, udp=UdpEncapsulation(5000, 6000)), U_ESP, ALL_UDP_ESP, None),
    ],
)
def test_the_nic_does_what_its_capabilities_have(
    sa: SecurityAssociation, mode: Template, bits: int, by: Offload | None
) -> None:
    cards = pair((mode,), sa, capabilities={"udp_esp": bits})
    found = [card.sas()[0].offload for card in cards]
    # Inbound the NIC looks at port 4500 alone, outbound at none (R139, R141).
    assert found == ([by, by] if by else [Offload.NIC, Offload.SOFTWARE])
    assert receive(cards[1], *send(cards[0], DATA)) == [bytes(frame_of(DATA))]


def test_without_software_the_refusal_is_the_answer() -> None:
    card = engine(capabilities={"udp_esp": 0}, software=False)
    with pytest.raises(OidError) as refusal:
        card.add_sa(SA, 0.0)
    assert (refusal.value.status, refusal.value.field) == (NdisStatus.NOT_SUPPORTED, "encap")
    with pytest.raises(OidError) as refusal:
        engine(software=False).add_sa(SA6, 0.0)
    assert (refusal.value.status, refusal.value.field) == (NdisStatus.NOT_SUPPORTED, "encap")


BOTH = {
    "transport over UDP tunnel": (association(OUT, TRANSPORT, *INNER.values(), spi=0x2000), SA),
    "UDP transport over tunnel": (
        association(OUT, TRANSPORT, *INNER.values(), spi=0x2000, udp=WRAPPED),
        replace(SA, udp=None),
    ),
}


@pytest.mark.rule(157)
@pytest.mark.parametrize("offload", [True, False], ids=["nic", "software"])
@pytest.mark.parametrize("name", BOTH)
def test_transport_inside_a_tunnel_with_one_of_them_in_udp(name: str, offload: bool) -> None:
    cards = pair((T_ESP, U_ESP), *BOTH[name], capabilities={} if offload else {"udp_esp": 0})
    for _ in range(3):
        assert receive(cards[1], *send(cards[0], DATA)) == [bytes(frame_of(DATA))]
    if offload:
        assert cards[0].counters.tx_offloaded == 3


@pytest.mark.rule(158)
def test_udp_in_udp_is_not_made() -> None:
    inner = association(OUT, TRANSPORT, *INNER.values(), spi=0x2000, udp=WRAPPED)
    cards = pair((T_ESP, U_ESP), inner, SA)
    assert send(cards[0], DATA) == []
    assert dropped(cards[0]) == {"out_no_sa": 1}


def test_ah_does_not_go_around_it() -> None:
    card = engine()
    card.add_policy(policy(OUT, ANY, U_ESP, template(AH, TRANSPORT)))
    card.add_sa(SA, 0.0)
    card.add_sa(association(OUT, TRANSPORT, NEAR, FAR, protocol=AH), 0.0)
    assert send(card, DATA) == []
    assert dropped(card) == {"out_no_sa": 1}


@pytest.mark.parametrize(
    ("direction", "members", "field"),
    [
        (OUT, {"udp": UdpEncapsulation(0, 4500)}, "encap sport"),
        (OUT, {"udp": UdpEncapsulation(4500, 0)}, "encap dport"),
        (IN, {"udp": UdpEncapsulation(4500, 65_536)}, "encap dport"),
        (OUT, {"udp": UdpEncapsulation(4500, 4500, keepalive=-1)}, "nat-keepalive"),
        (OUT, {"udp": UdpEncapsulation(4500, 4500, follow=True)}, "nat-follow"),
        (IN, {"udp": UdpEncapsulation(4500, 4500, follow=True), "replay_window": 0}, "nat-follow"),
        (IN, {"udp": UdpEncapsulation(4500, 4500, address(FAR6))}, "encap oaddr"),
        (IN, {"udp": WRAPPED, "protocol": AH, "encryption": None}, "encap"),
    ],
)
def test_what_cannot_be_is_refused(direction: object, members: dict[str, object], field: str) -> None:
    with pytest.raises(RequestError) as refusal:
        association(direction, TUNNEL, NEAR, FAR, **members).checked()  # type: ignore[arg-type]
    assert refusal.value.field == field


# -------------------------------------------------------------------------------------------- keepalives


def keepalives(card: ReferenceEngine, now: float) -> list[Packet]:
    return [Ether(bytes(one.frame)) for one in card.keep_time(now).wire]


@pytest.mark.parametrize(("mode", "sa"), [(U_ESP, SA), (U_ESP6, SA6)], ids=["ipv4", "ipv6"])
def test_a_silent_sa_keeps_its_nat_awake(mode: Template, sa: SecurityAssociation) -> None:
    card, far = pair((mode,), sa)
    assert card.deadline == float("inf")
    (sealed,) = send(card, DATA, now=100.0)
    assert card.deadline == 120.0
    assert keepalives(card, 119.9) == []
    (frame,) = keepalives(card, 120.0)
    assert bytes(frame)[:14] == bytes(sealed)[:14]
    outer = frame[IPv6] if sa.ipv6 else frame[IP]
    assert (outer.src, outer.dst) == ((NEAR6, FAR6) if sa.ipv6 else (NEAR, FAR))
    assert (outer[UDP].sport, outer[UDP].dport, bytes(outer[UDP].payload)) == (4500, 4500, b"\xff")
    rebuilt = outer.copy()
    if sa.ipv6:
        assert outer[UDP].chksum
        del rebuilt[UDP].chksum
    else:
        assert outer[UDP].chksum == 0
        del rebuilt.chksum
    assert bytes(rebuilt) == bytes(outer)
    assert card.counters.tx_nat_keepalives == 1
    assert receive(far, bytes(frame)) == []
    assert dropped(far) == {"in_nat_keepalive": 1}
    assert card.deadline == 140.0


def test_a_busy_sa_sends_no_keepalive() -> None:
    card, _ = pair((U_ESP,), SA)
    for now in range(100, 200, 10):
        send(card, DATA, now=float(now))
        assert keepalives(card, now + 9.0) == []
    assert card.deadline <= 210.0
    assert len(keepalives(card, 210.0)) == 1


@pytest.mark.parametrize(("seconds", "count"), [(0, 0), (5, 1)])
def test_the_time_of_keepalives_can_be_said(seconds: int, count: int) -> None:
    card, _ = pair((U_ESP,), replace(SA, udp=replace(WRAPPED, keepalive=seconds)))
    send(card, DATA, now=100.0)
    assert len(keepalives(card, 105.0)) == count


def test_sas_between_the_same_ends_share_a_keepalive_and_take_it_with_them() -> None:
    card, _ = pair((U_ESP,), SA)
    send(card, DATA, now=100.0)
    second = association(OUT, TUNNEL, NEAR, FAR, spi=0x2000, udp=WRAPPED)
    card.add_sa(second, 101.0)
    send(card, DATA, now=101.0)
    assert len(keepalives(card, 121.0)) == 1
    card.delete_sa(SA.id)
    assert len(keepalives(card, 141.0)) == 1
    card.delete_sa(second.id)
    assert keepalives(card, 161.0) == []
    assert card.deadline == float("inf")


def test_a_stopped_card_keeps_nothing_awake() -> None:
    card, _ = pair((U_ESP,), SA)
    send(card, DATA, now=100.0)
    card.pause()
    assert keepalives(card, 200.0) == []


# ------------------------------------------------------------------------------------------ behind a NAT


ROAMING = UdpEncapsulation(4500, 4500, follow=True)


def gateway(mode: Template = U_ESP) -> ReferenceEngine:
    """The near end of an SA whose peer may move."""
    card = engine(4)
    back = replace(mode, source=mode.destination, destination=mode.source)
    card.add_policy(policy(IN, ANY, mode))
    card.add_policy(policy(OUT, ANY, back))
    card.add_sa(replace(SA, direction=IN, udp=ROAMING, reqid=7), 0.0)
    card.add_sa(association(OUT, TUNNEL, FAR, NEAR, spi=0x3000, reqid=7, udp=WRAPPED), 0.0)
    return card


def moved(number: int, source: str = "203.0.113.9", port: int = 1234) -> Packet:
    packet = by_scapy(number, (port, 4500))
    packet.src = source
    del packet.chksum
    return packet


def where(card: ReferenceEngine) -> tuple[str, int]:
    """Where the card sends."""
    (frame,) = send(card, IP(src="10.2.0.1", dst="10.1.0.1") / UDP() / MARK)
    packet = Ether(bytes(frame))
    return packet[IP].dst, packet[UDP].dport


def test_a_peer_that_moves_is_followed_and_told_of() -> None:
    card = gateway()
    assert len(receive(card, by_scapy(1))) == 1
    assert where(card) == (NEAR, 4500)
    assert len(receive(card, moved(2))) == 1
    assert where(card) == ("203.0.113.9", 1234)
    (event,) = [one for one in card.take_events() if one.kind is EventKind.PEER_MOVED]
    assert (event.source, event.port, event.sequence_number) == (address("203.0.113.9"), 1234, 2)
    assert card.counters.rx_peer_moved == 1
    assert {one.peer for one in card.sas()} == {(address("203.0.113.9"), 1234)}
    assert len(receive(card, by_scapy(3))) == 1
    assert where(card) == (NEAR, 4500)


@pytest.mark.parametrize("what", ["replay", "late", "forged"])
def test_nobody_is_followed_who_is_not_newest_and_authentic(what: str) -> None:
    card = gateway()
    receive(card, by_scapy(1), by_scapy(5))
    packet = moved(5 if what == "replay" else 3 if what == "late" else 6)
    frame = frame_of(packet)
    if what == "forged":
        frame[-1] ^= 1
    assert len(receive(card, frame)) == (what == "late")
    assert where(card) == (NEAR, 4500)
    assert card.counters.rx_peer_moved == 0


def test_without_leave_nobody_is_followed() -> None:
    card = listener()
    assert receive(card, moved(1)) == []
    assert receive(card, by_scapy(1, (1234, 4500))) == []
    assert dropped(card) == {"in_no_sa": 1, "in_udp_ports": 1}
    assert len(receive(card, by_scapy(1))) == 1


def test_in_transport_mode_the_port_alone_is_followed() -> None:
    card = engine(5)
    card.add_policy(policy(IN, ANY, T_ESP))
    card.add_sa(replace(SA_T, direction=IN, udp=ROAMING), 0.0)
    packet = oracle(SA_T, (1234, 4500)).encrypt(DATA, seq_num=1)
    assert len(receive(card, packet)) == 1
    assert card.sas()[0].peer == (address(INNER["src"]), 1234)
    other = oracle(SA_T, (1234, 4500)).encrypt(DATA, seq_num=2)
    other.src = "10.9.9.9"
    del other.chksum
    assert receive(card, other) == []


@pytest.mark.parametrize("layer4", [TCP(sport=7, dport=8), UDP(sport=7, dport=8)], ids=["tcp", "udp"])
@pytest.mark.parametrize("original", ["", "172.16.0.5"], ids=["computed", "by oaddr"])
def test_checksums_inside_transport_mode_are_put_right_behind_a_nat(layer4: Packet, original: str) -> None:
    udp = UdpEncapsulation(0, 4500, address(original) if original else b"")
    card = engine(6)
    card.add_policy(policy(IN, ANY, T_ESP))
    card.add_sa(replace(SA_T, direction=IN, udp=udp), 0.0)
    packet = oracle(SA_T).encrypt(IP(src="172.16.0.5", dst=INNER["dst"]) / layer4 / MARK, seq_num=1)
    packet.src = INNER["src"]
    del packet.chksum
    (host,) = receive(card, packet)
    seen = Ether(host)[IP]
    expected = IP(src=INNER["src"], dst=INNER["dst"]) / layer4 / MARK
    assert bytes(seen.payload) == bytes(IP(bytes(expected)).payload)


@pytest.mark.parametrize(("original", "good"), [("", True), ("172.16.0.5", False)])
def test_with_the_original_address_damage_before_the_seal_stays_visible(original: str, good: bool) -> None:
    udp = UdpEncapsulation(0, 4500, address(original) if original else b"")
    card = engine(6)
    card.add_policy(policy(IN, ANY, T_ESP))
    card.add_sa(replace(SA_T, direction=IN, udp=udp), 0.0)
    inner = IP(bytes(IP(src="172.16.0.5", dst=INNER["dst"]) / UDP(sport=7, dport=8) / MARK))
    inner[UDP].chksum ^= 0x0100
    packet = oracle(SA_T).encrypt(inner, seq_num=1)
    packet.src = INNER["src"]
    del packet.chksum
    (host,) = receive(card, packet)
    seen = Ether(host)[IP]
    rebuilt = seen.copy()
    del rebuilt[UDP].chksum
    assert (bytes(rebuilt) == bytes(seen)) == good


def test_an_update_with_the_same_keys_keeps_the_peer_where_it_is() -> None:
    card = gateway()
    receive(card, moved(2))
    sa = next(one.sa for one in card.sas() if one.sa.direction is IN)
    card.add_sa(replace(sa, reqid=7), 1.0, replace=True)
    assert next(one.peer for one in card.sas() if one.sa.direction is IN) == (address("203.0.113.9"), 1234)


def test_selectors_apply_inside_udp_as_well() -> None:
    narrow = replace(SA, selector=selector("10.1.0.0/24", "10.2.0.0/24", 17))
    cards = pair((U_ESP,), narrow)
    assert receive(cards[1], *send(cards[0], DATA)) == [bytes(frame_of(DATA))]
    assert send(cards[0], ETHER / IP(**INNER) / TCP()) == []


def test_new_keys_leave_the_peer_where_it_is() -> None:
    card = gateway()
    receive(card, moved(2))
    out = next(one.sa for one in card.sas() if one.sa.direction is OUT)
    fresh = association(OUT, TUNNEL, FAR, NEAR, spi=0x3001)
    renewal = Renewal(
        old=out.id,
        spi=0x3001,
        encryption=fresh.encryption,
        encryption_key=fresh.encryption_key,
        integrity=None,
        integrity_key=fresh.integrity_key,
        icv_length=16,
        lifetime=None,
    )
    card.rekey([renewal], None, 2.0)
    assert where(card) == ("203.0.113.9", 1234)
