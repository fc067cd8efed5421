"""Framing: headers, padding, trailer and the room for IV and ICV, read back by scapy and by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import scapy.layers.ipsec as wire
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet
from transport_lab import (
    AH,
    ANY,
    ANY6,
    ESP,
    ETHER,
    FAR,
    FAR6,
    NEAR,
    NEAR6,
    OUT,
    TRANSPORT,
    TUNNEL,
    Card,
    association,
    policy,
    template,
)

from vnic.ipsec.association import SecurityAssociation
from vnic.ipsec.headers import DfRule, HeaderSettings
from vnic.ipsec.policy import Template
from vnic.ndis.netbuffer import NetBuffer
from vnic.ndis.status import NdisStatus
from vnic.packet.ip import parse_ip
from vnic.packet.vnet import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHeader
from vnic.transport.segmentation import segments

V4 = {"src": "10.1.0.1", "dst": "10.2.0.1"}
V6 = {"src": "fd01::1", "dst": "fd02::1"}
INNER = {4: IP(**V4) / UDP(sport=1, dport=2), 6: IPv6(**V6) / UDP(sport=1, dport=2)}
ENDS = {4: (NEAR, FAR), 6: (NEAR6, FAR6)}
HOSTS = {4: ("10.1.0.1", "10.2.0.1"), 6: ("fd01::1", "fd02::1")}
EVERYTHING = {4: ANY, 6: ANY6}

SET = {"header_settings": HeaderSettings(df=DfRule.SET)}
CLEAR = {"header_settings": HeaderSettings(df=DfRule.CLEAR)}

ALGORITHMS = {
    # name: encryption, integrity, ICV asked for, then bytes of IV, alignment and ICV by the RFCs
    "GCM-128-16": ("aes-gcm-128", None, 0, 8, 4, 16),
    "GCM-256-12": ("aes-gcm-256", None, 12, 8, 4, 12),
    "GCM-192-8": ("aes-gcm-192", None, 8, 8, 4, 8),
    "CBC-SHA256": ("aes-cbc-128", "hmac-sha256-128", 0, 16, 16, 16),
    "CBC-SHA256-96": ("aes-cbc-256", "hmac-sha256-128", 12, 16, 16, 12),
    "CBC-SHA1": ("aes-cbc-192", "hmac-sha1-96", 0, 16, 16, 12),
    "3DES-MD5": ("3des-cbc", "hmac-md5-96", 0, 8, 8, 12),
    "DES-SHA1": ("des-cbc", "hmac-sha1-96", 0, 8, 8, 12),
    "NULL-SHA1": ("null", "hmac-sha1-96", 0, 0, 4, 12),
    "NULL-GMAC": ("null", "aes-gmac-128", 0, 8, 4, 16),
}


@dataclass
class OpenEsp:
    """ESP as RFC 4303 §2 draws it."""

    spi: int
    number: int
    iv: bytes
    payload: bytes
    padding: bytes
    next_header: int
    icv: bytes


def open_esp(data: bytes, iv: int, icv: int) -> OpenEsp:
    icv_at = len(data) - icv
    pad = data[icv_at - 2]
    return OpenEsp(
        int.from_bytes(data[:4], "big"),
        int.from_bytes(data[4:8], "big"),
        data[8 : 8 + iv],
        data[8 + iv : icv_at - 2 - pad],
        data[icv_at - 2 - pad : icv_at - 2],
        data[icv_at - 1],
        data[icv_at:],
    )


def ip_of(frame: bytes | bytearray) -> Packet:
    """The IP layer of a frame, once scapy agrees with its length and checksum."""
    ether = Ether(bytes(frame))
    packet = ether[IPv6] if ether.type == 0x86DD or IPv6 in ether else ether[IP]
    raw = bytes(packet)
    fresh = packet.copy()
    for field in ("len", "chksum", "plen"):
        if field in fresh.fields:
            fresh.delfieldval(field)
    assert bytes(fresh) == raw
    return packet


def tunnel(
    inner: int, outer: int, algorithm: str = "GCM-128-16", wire_mtu: int = 1500, **members: object
) -> Card:
    encryption, integrity, icv, *_ = ALGORITHMS[algorithm]
    card = Card(wire_mtu)
    near, far = ENDS[outer]
    card.spd.add(policy(OUT, EVERYTHING[inner], template(ESP, TUNNEL, near, far)))
    card.sad.add(
        association(
            OUT, TUNNEL, near, far, encryption=encryption, integrity=integrity, icv_length=icv, **members
        ),
        0.0,
    )
    return card


def transport(version: int, algorithm: str = "GCM-128-16", **members: object) -> Card:
    encryption, integrity, icv, *_ = ALGORITHMS[algorithm]
    card = Card()
    card.spd.add(policy(OUT, EVERYTHING[version], template(ESP, TRANSPORT)))
    card.sad.add(
        association(
            OUT,
            TRANSPORT,
            *HOSTS[version],
            encryption=encryption,
            integrity=integrity,
            icv_length=icv,
            **members,
        ),
        0.0,
    )
    return card


def card_of(version: int, templates: list[Template], sas: list[SecurityAssociation]) -> Card:
    card = Card()
    card.spd.add(policy(OUT, EVERYTHING[version], *templates))
    for sa in sas:
        card.sad.add(sa, 0.0)
    return card


def framed(card: Card, packet: Packet) -> NetBuffer:
    """The one frame a packet becomes; the NIC finds its way through a copy of it."""
    (buffer,) = card.framed(packet)
    copy = NetBuffer(bytearray(buffer.frame), None, buffer.transmit)
    card.nic.send([copy])
    assert copy.status == 0
    return buffer


# ESP alone


@pytest.mark.rule(10)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("version", [4, 6])
def test_transport_mode_puts_esp_between_ip_and_what_it_carried(version: int, algorithm: str) -> None:
    *_, iv, alignment, icv = ALGORITHMS[algorithm]
    card = transport(version, algorithm)
    for length in range(33):
        inner = INNER[version] / bytes(range(length))
        buffer = framed(card, inner)
        outer = ip_of(buffer.frame)
        assert (outer.src, outer.dst) == HOSTS[version]
        assert (outer.proto if version == 4 else outer.nh) == 50
        esp = open_esp(bytes(outer.payload), iv, icv)
        assert (esp.spi, esp.number) == (0x1000, length + 1)
        assert esp.payload == bytes(IP(bytes(inner)).payload if version == 4 else IPv6(bytes(inner)).payload)
        assert esp.next_header == 17
        assert not any(esp.iv)
        assert not any(esp.icv)
        assert esp.padding == bytes(range(1, len(esp.padding) + 1))
        assert len(esp.padding) < alignment
        assert (len(esp.payload) + len(esp.padding) + 2) % alignment == 0


@pytest.mark.rule(10)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("inner", "outer"), [(4, 4), (6, 4), (4, 6), (6, 6)])
def test_tunnel_mode_puts_the_whole_packet_into_esp(inner: int, outer: int, algorithm: str) -> None:
    *_, iv, alignment, icv = ALGORITHMS[algorithm]
    card = tunnel(inner, outer, algorithm)
    for length in (0, 1, 2, 3, 15, 16, 17, 1000):
        packet = INNER[inner] / bytes(length)
        buffer = framed(card, packet)
        head = ip_of(buffer.frame)
        assert Ether(bytes(buffer.frame)).type == (0x0800 if outer == 4 else 0x86DD)
        assert (head.src, head.dst) == ENDS[outer]
        assert (head.proto if outer == 4 else head.nh) == 50
        assert (head.ttl if outer == 4 else head.hlim) == 64
        esp = open_esp(bytes(head.payload), iv, icv)
        assert esp.payload == bytes(packet)
        assert esp.next_header == (4 if inner == 4 else 41)
        assert not any(esp.iv + esp.icv)
        assert (len(esp.payload) + len(esp.padding) + 2) % alignment == 0
        assert len(esp.padding) < alignment


def test_ethernet_addresses_stay_and_tags_stay() -> None:
    card = tunnel(4, 6)
    (buffer,) = card.framed(ETHER / Dot1Q(vlan=77, prio=3) / INNER[4])
    ether = Ether(bytes(buffer.frame))
    assert (ether.src, ether.dst, ether.type) == (ETHER.src, ETHER.dst, 0x8100)
    assert (ether[Dot1Q].vlan, ether[Dot1Q].prio, ether[Dot1Q].type) == (77, 3, 0x86DD)
    assert ether[IPv6].dst == FAR6


def test_ethernet_padding_of_the_host_is_not_protected() -> None:
    card = transport(4)
    frame = bytearray(bytes(ETHER / INNER[4] / b"x")) + b"\xee" * 17
    (buffer,) = card.framed(frame)
    assert b"\xee" not in buffer.frame
    assert open_esp(bytes(ip_of(buffer.frame).payload), 8, 16).payload[-1:] == b"x"


@pytest.mark.rule(10)
def test_numbers_count_up_and_show_their_lower_half() -> None:
    card = tunnel(4, 4, esn=True, sequence_number=(1 << 32) - 3)
    numbers = [open_esp(bytes(ip_of(framed(card, INNER[4]).frame).payload), 8, 16).number for _ in range(5)]
    assert numbers == [0xFFFFFFFE, 0xFFFFFFFF, 0, 1, 2]


@pytest.mark.parametrize(
    ("packet", "next_header"),
    [
        (IP(**V4) / TCP(), 6),
        (IP(**V4) / ICMP(), 1),
        (IP(**V4, proto=47) / b"gre!", 47),
        (IPv6(**V6) / ICMPv6EchoRequest(), 58),
        (IPv6(**V6, nh=59), 59),
    ],
)
def test_trailer_names_what_transport_mode_took(packet: Packet, next_header: int) -> None:
    buffer = framed(transport(packet.version), packet)
    assert open_esp(bytes(ip_of(buffer.frame).payload), 8, 16).next_header == next_header
    assert buffer.transmit is not None
    assert buffer.transmit.next_header == next_header


# headers that transport mode keeps


def test_transport_mode_keeps_options_and_all_but_length_protocol_and_checksum() -> None:
    packet = IP(**V4, tos=0x2E, id=0xBEEF, flags="DF", ttl=3, options=[IPOption_NOP()] * 7) / UDP() / b"data"
    head = ip_of(framed(transport(4), packet).frame)
    before = IP(bytes(packet))
    for field in ("tos", "id", "flags", "frag", "ttl", "src", "dst", "ihl"):
        assert getattr(head, field) == getattr(before, field)
    assert bytes(head)[20:28] == bytes(before)[20:28]


def test_transport_mode_puts_esp_behind_ipv6_extension_headers() -> None:
    packet = (
        IPv6(**V6, tc=9, fl=0xABCDE, hlim=2) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP() / b"data"
    )
    buffer = framed(transport(6), packet)
    head = ip_of(buffer.frame)
    assert (head.tc, head.fl, head.hlim, head.nh) == (9, 0xABCDE, 2, 0)
    assert head[IPv6ExtHdrHopByHop].nh == 60
    assert head[IPv6ExtHdrDestOpt].nh == 50
    assert head[wire.ESP].spi == 0x1000
    assert buffer.transmit is not None
    assert buffer.transmit.esp_header_offset == 56


# the outer header


@pytest.mark.parametrize(("inner", "outer"), [(4, 4), (6, 4), (4, 6), (6, 6)])
@pytest.mark.parametrize("traffic_class", [0x00, 0x01, 0x02, 0x03, 0xB8, 0xBB, 0xFC, 0xFF])
def test_outer_header_copies_dscp_and_ecn(inner: int, outer: int, traffic_class: int) -> None:
    packet = INNER[inner].copy()
    setattr(packet, "tos" if inner == 4 else "tc", traffic_class)
    for members, expected in (({}, traffic_class), ({"no_ecn": True}, traffic_class & 0xFC)):
        head = ip_of(framed(tunnel(inner, outer, **members), packet).frame)
        assert (head.tos if outer == 4 else head.tc) == expected


@pytest.mark.parametrize(
    ("flags", "members", "df"),
    [
        ("DF", {}, True),
        ("", {}, False),
        ("DF", CLEAR, False),
        ("", CLEAR, False),
        ("DF", SET, True),
        ("", SET, True),
        ("evil", {}, False),
    ],
)
def test_outer_ipv4_header_copies_sets_or_clears_df(flags: str, members: dict[str, object], df: bool) -> None:
    head = ip_of(framed(tunnel(4, 4, **members), IP(**V4, flags=flags) / UDP()).frame)
    assert str(head.flags) == ("DF" if df else "")


@pytest.mark.parametrize(("inner", "outer"), [(4, 4), (6, 4), (4, 6), (6, 6)])
@pytest.mark.parametrize("ecn", range(4))
def test_dscp_hop_limit_and_flow_label_are_copied_or_fixed(inner: int, outer: int, ecn: int) -> None:
    packet = INNER[inner].copy()
    setattr(packet, "tos" if inner == 4 else "tc", 46 << 2 | ecn)
    setattr(packet, "ttl" if inner == 4 else "hlim", 7)
    if inner == 6:
        packet.fl = 0x12345
    for settings, dscp, hop_limit, label in (
        (HeaderSettings(), 46, 64, 0x12345 if inner == 6 else 0),
        (HeaderSettings(dscp=0, hop_limit=0, flow_label=0), 0, 7, 0),
        (HeaderSettings(dscp=63, hop_limit=255, flow_label=0xFFFFF), 63, 255, 0xFFFFF),
    ):
        card = tunnel(inner, outer, header_settings=settings)
        # The second one comes out of the cache.
        for _ in range(2):
            head = ip_of(framed(card, packet).frame)
            assert (head.tos if outer == 4 else head.tc) == dscp << 2 | ecn
            assert (head.ttl if outer == 4 else head.hlim) == hop_limit
            assert outer == 4 or head.fl == label
            if outer == 4:
                assert IP(bytes(head)).chksum == IP(bytes(head.__class__(bytes(head)))).chksum


def test_hop_limits_of_two_packets_do_not_meet_in_the_cache() -> None:
    card = tunnel(4, 4, header_settings=HeaderSettings(hop_limit=0))
    limits = [ip_of(framed(card, IP(**V4, ttl=ttl) / UDP()).frame).ttl for ttl in (3, 9, 3)]
    assert limits == [3, 9, 3]


@pytest.mark.parametrize(("members", "df"), [({}, True), (CLEAR, False), (SET, True)])
def test_outer_ipv4_header_of_an_ipv6_packet_has_df_because_ipv6_never_fragments_on_the_way(
    members: dict[str, object], df: bool
) -> None:
    head = ip_of(framed(tunnel(6, 4, **members), INNER[6]).frame)
    assert bool(head.flags.DF) is df


def test_outer_packet_is_never_a_fragment_itself() -> None:
    card = tunnel(4, 4)
    for packet in (
        IP(**V4, flags="MF", id=9) / UDP() / bytes(16),
        IP(**V4, frag=3, id=9, proto=17) / bytes(16),
    ):
        head = ip_of(framed(card, packet).frame)
        assert (head.frag, bool(head.flags.MF)) == (0, False)
        assert open_esp(bytes(head.payload), 8, 16).payload == bytes(packet)


def test_outer_packets_that_may_be_fragmented_have_identifications_of_their_own() -> None:
    card = tunnel(4, 4)
    seen = [ip_of(framed(card, IP(**V4) / UDP()).frame).id for _ in range(20)]
    assert len(set(seen)) == 20


def test_outer_ipv6_header_copies_the_flow_label_of_ipv6_and_has_none_for_ipv4() -> None:
    assert ip_of(framed(tunnel(6, 6), IPv6(**V6, fl=0x54321) / UDP()).frame).fl == 0x54321
    assert ip_of(framed(tunnel(4, 6), INNER[4]).frame).fl == 0


@pytest.mark.parametrize(("inner", "outer"), [(4, 4), (6, 4), (4, 6), (6, 6)])
def test_headers_from_the_cache_are_those_of_their_own_packet(inner: int, outer: int) -> None:
    # Classes, flags and lengths alternate; each must come out as if it were the first.
    card = tunnel(inner, outer)
    for round_trip in range(2):
        for traffic_class in (0, 0xB8, 3):
            for extra in ("DF", "") if inner == 4 else (0, 0xFFFFF):
                for length in (0, 100, 1):
                    if inner == 4:
                        packet = IP(**V4, tos=traffic_class, flags=extra) / UDP() / bytes(length)
                    else:
                        packet = IPv6(**V6, tc=traffic_class, fl=extra) / UDP() / bytes(length)
                    head = ip_of(framed(card, packet).frame)
                    assert (head.tos if outer == 4 else head.tc) == traffic_class, round_trip
                    if (inner, outer) == (4, 4):
                        assert bool(head.flags.DF) is bool(extra)
                    if (inner, outer) == (6, 6):
                        assert head.fl == extra
                    assert open_esp(bytes(head.payload), 8, 16).payload == bytes(packet)


# AH, and AH over ESP


@pytest.mark.parametrize(
    ("integrity", "icv_length", "alignment", "version", "length"),
    [
        ("hmac-sha256-128", 16, 8, 4, 32),
        ("hmac-sha256-128", 16, 4, 4, 28),
        ("hmac-sha256-128", 16, 8, 6, 32),
        ("hmac-sha256-128", 16, 4, 6, 32),  # RFC 4302 §2.2: IPv6 always takes multiples of 8
        ("hmac-sha1-96", 12, 8, 4, 24),
        ("hmac-md5-96", 12, 4, 4, 24),
        ("aes-gmac-256", 16, 8, 4, 40),  # 12 + IV 8 + ICV 16 = 36
        ("aes-gmac-128", 16, 4, 4, 36),
    ],
)
def test_ah_header_is_padded_as_the_rfc_and_the_sa_say(
    integrity: str, icv_length: int, alignment: int, version: int, length: int
) -> None:
    sa = association(
        OUT, TRANSPORT, *HOSTS[version], protocol=AH, integrity=integrity, ah_alignment=alignment
    )
    assert sa.checked().icv_length == icv_length
    packet = INNER[version] / b"data"
    buffer = framed(card_of(version, [template(AH, TRANSPORT)], [sa]), packet)
    head = ip_of(buffer.frame)
    assert (head.proto if version == 4 else head.nh) == 51
    raw = bytes(head.payload)
    assert raw[0] == 17
    assert (raw[1] + 2) * 4 == length
    assert raw[2:4] == b"\0\0"
    assert raw[4:12] == bytes.fromhex("0000100000000001")
    assert not any(raw[12:length])
    assert raw[length:] == bytes(packet)[20 if version == 4 else 40 :]


def test_ah_tunnel_carries_the_whole_packet() -> None:
    sa = association(OUT, TUNNEL, NEAR, FAR, protocol=AH)
    buffer = framed(card_of(4, [template(AH, TUNNEL, NEAR, FAR)], [sa]), INNER[4] / b"data")
    head = ip_of(buffer.frame)
    assert (head.proto, head.dst) == (51, FAR)
    raw = bytes(head.payload)
    assert raw[0] == 4
    assert raw[32:] == bytes(INNER[4] / b"data")


ESP_T = association(OUT, TRANSPORT, *HOSTS[4], spi=0x1111)
AH_T = association(OUT, TRANSPORT, *HOSTS[4], spi=0x2222, protocol=AH)
ESP_U = association(OUT, TUNNEL, NEAR, FAR, spi=0x3333)
AH_U = association(OUT, TRANSPORT, NEAR, FAR, spi=0x4444, protocol=AH)
T_ESP, T_AH = template(ESP, TRANSPORT), template(AH, TRANSPORT)
U_ESP, U_AH = template(ESP, TUNNEL, NEAR, FAR), template(AH, TUNNEL, NEAR, FAR)


def test_ah_over_esp_covers_esp_and_both_count() -> None:
    card = card_of(4, [T_ESP, T_AH], [ESP_T, AH_T])
    for number in (1, 2):
        head = ip_of(framed(card, INNER[4] / b"data").frame)
        assert head.proto == 51
        raw = bytes(head.payload)
        assert (raw[0], raw[4:12]) == (50, bytes.fromhex("00002222") + number.to_bytes(4, "big"))
        esp = open_esp(raw[32:], 8, 16)
        assert (esp.spi, esp.number, esp.next_header) == (0x1111, number, 17)
        assert esp.payload == bytes(INNER[4] / b"data")[20:]


def test_ah_over_an_esp_tunnel_stands_behind_the_outer_header() -> None:
    head = ip_of(framed(card_of(4, [U_ESP, T_AH], [ESP_U, AH_U]), INNER[4] / b"data").frame)
    assert (head.proto, head.dst) == (51, FAR)
    raw = bytes(head.payload)
    assert (raw[0], raw[4:8]) == (50, bytes.fromhex("00004444"))
    esp = open_esp(raw[32:], 8, 16)
    assert (esp.spi, esp.next_header, esp.payload) == (0x3333, 4, bytes(INNER[4] / b"data"))


def test_transport_inside_a_tunnel_is_framed_twice() -> None:
    buffer = framed(card_of(4, [T_ESP, U_ESP], [ESP_T, ESP_U]), INNER[4] / b"data")
    esp = open_esp(bytes(ip_of(buffer.frame).payload), 8, 16)
    assert (esp.spi, esp.next_header) == (0x3333, 4)
    middle = IP(esp.payload)
    assert (middle.src, middle.dst, middle.proto, middle.len) == (*HOSTS[4], 50, len(esp.payload))
    again = middle.copy()
    again.delfieldval("chksum")
    assert bytes(again) == esp.payload
    inside = open_esp(bytes(middle.payload), 8, 16)
    assert (inside.spi, inside.next_header) == (0x1111, 17)
    assert inside.payload == bytes(INNER[4] / b"data")[20:]


def test_ipv6_transport_inside_an_ipv4_tunnel() -> None:
    inner = association(OUT, TRANSPORT, *HOSTS[6], spi=0x1111)
    buffer = framed(card_of(6, [T_ESP, U_ESP], [inner, ESP_U]), INNER[6] / b"data")
    esp = open_esp(bytes(ip_of(buffer.frame).payload), 8, 16)
    assert esp.next_header == 41
    middle = IPv6(esp.payload)
    assert (middle.nh, middle.plen) == (50, len(esp.payload) - 40)
    assert open_esp(bytes(middle.payload), 8, 16).payload == bytes(INNER[6] / b"data")[40:]


# what the NIC is told


@pytest.mark.rule(162)
@pytest.mark.parametrize(
    ("templates", "sas", "packet", "ah", "esp"),
    [
        ([T_ESP], [ESP_T], INNER[4], 0, 20),
        ([T_ESP], [ESP_T], IP(**V4, options=[IPOption_NOP()] * 8) / UDP(), 0, 28),
        ([T_AH], [AH_T], INNER[4], 20, 0),
        ([T_ESP, T_AH], [ESP_T, AH_T], INNER[4], 20, 20 + 32),
        ([T_ESP, T_AH], [ESP_T, replace(AH_T, ah_alignment=4)], INNER[4], 20, 20 + 28),
        ([U_ESP], [ESP_U], INNER[4], 0, 20),
        ([U_ESP], [ESP_U], IP(**V4, options=[IPOption_NOP()] * 8) / UDP(), 0, 20),
        ([U_AH], [association(protocol=AH)], INNER[4], 20, 0),
        ([U_ESP, T_AH], [ESP_U, AH_U], INNER[4], 20, 52),
        ([T_ESP, U_ESP], [ESP_T, ESP_U], INNER[4], 0, 20 + 16 + 20),
        ([T_AH, U_ESP], [AH_T, ESP_U], INNER[4], 20 + 16 + 20, 0),
        ([T_ESP, T_AH, U_ESP], [ESP_T, AH_T, ESP_U], INNER[4], 56, 56 + 32),
        ([T_ESP, T_AH, U_ESP, T_AH], [ESP_T, AH_T, ESP_U, AH_U], INNER[4], 88, 88 + 32),
        ([T_ESP, U_AH], [ESP_T, association(protocol=AH)], INNER[4], 0, 20 + 32 + 20),
    ],
)
def test_offsets_count_from_the_outermost_ip_header_and_name_the_transport_portion_if_there_is_one(
    templates: list[Template], sas: list[SecurityAssociation], packet: Packet, ah: int, esp: int
) -> None:
    buffer = framed(card_of(4, templates, sas), packet)
    assert buffer.transmit is not None
    assert (buffer.transmit.ah_header_offset, buffer.transmit.esp_header_offset) == (ah, esp)
    ip = 14
    if esp:
        spi = 0x3333 if templates[0] is U_ESP else 0x1111
        assert buffer.frame[ip + esp : ip + esp + 4] == spi.to_bytes(4, "big")
    if ah:
        number = int.from_bytes(buffer.frame[ip + ah + 4 : ip + ah + 8], "big")
        assert number == next(sa.spi for sa in sas if sa.protocol is AH)


@pytest.mark.rule(162)
def test_offsets_do_not_count_tags() -> None:
    (buffer,) = tunnel(4, 6).framed(ETHER / Dot1Q(vlan=5) / INNER[4])
    assert buffer.transmit is not None
    assert buffer.transmit.esp_header_offset == 40


@pytest.mark.rule(168)
def test_handle_names_the_only_sa_and_there_is_no_tunnel_handle() -> None:
    for card in (tunnel(4, 4), transport(4)):
        buffer = framed(card, INNER[4])
        assert buffer.transmit is not None
        assert buffer.transmit.offload_handle == next(iter(card.sad)).handle
        assert buffer.transmit.tunnel_handle == 0


@pytest.mark.rule(160)
def test_transport_over_tunnel_names_both() -> None:
    card = card_of(4, [T_ESP, U_ESP], [ESP_T, ESP_U])
    buffer = framed(card, INNER[4])
    assert buffer.transmit is not None
    assert buffer.transmit.offload_handle == card.sad.table[ESP_T.id].handle
    assert buffer.transmit.tunnel_handle == card.sad.table[ESP_U.id].handle


@pytest.mark.rule(161)
@pytest.mark.parametrize("length", range(20))
def test_pad_length_and_next_header_are_those_of_the_trailer(length: int) -> None:
    buffer = framed(tunnel(6, 4, "CBC-SHA256"), INNER[6] / bytes(length))
    esp = open_esp(bytes(ip_of(buffer.frame).payload), 16, 16)
    assert buffer.transmit is not None
    assert (buffer.transmit.pad_length, buffer.transmit.next_header) == (len(esp.padding), 41)


def test_pad_length_of_transport_over_tunnel_is_that_of_the_transport_portion() -> None:
    buffer = framed(card_of(4, [T_ESP, U_ESP], [ESP_T, ESP_U]), INNER[4] / b"x")
    esp = open_esp(bytes(ip_of(buffer.frame).payload), 8, 16)
    inside = open_esp(bytes(IP(esp.payload).payload), 8, 16)
    assert buffer.transmit is not None
    assert (buffer.transmit.pad_length, buffer.transmit.next_header) == (len(inside.padding), 17)


# room

SHAPES: dict[str, tuple[int, list[Template], list[SecurityAssociation]]] = {
    "transport ESP": (4, [T_ESP], [ESP_T]),
    "transport CBC": (
        4,
        [T_ESP],
        [association(OUT, TRANSPORT, *HOSTS[4], encryption="aes-cbc-128", integrity="hmac-sha1-96")],
    ),
    "transport AH": (4, [T_AH], [AH_T]),
    "transport ESP, AH": (4, [T_ESP, T_AH], [ESP_T, AH_T]),
    "tunnel": (4, [U_ESP], [ESP_U]),
    "tunnel CBC": (4, [U_ESP], [association(encryption="aes-cbc-256", integrity="hmac-sha256-128")]),
    "tunnel 6 in 4": (6, [U_ESP], [ESP_U]),
    "tunnel 4 in 6": (4, [template(ESP, TUNNEL, NEAR6, FAR6)], [association(OUT, TUNNEL, NEAR6, FAR6)]),
    "tunnel AH": (4, [U_AH], [association(protocol=AH)]),
    "tunnel ESP, AH": (4, [U_ESP, T_AH], [ESP_U, AH_U]),
    "transport in tunnel": (4, [T_ESP, U_ESP], [ESP_T, ESP_U]),
    "everything": (4, [T_ESP, T_AH, U_ESP, T_AH], [ESP_T, AH_T, ESP_U, AH_U]),
    "transport 6 in tunnel 4": (
        6,
        [T_ESP, U_ESP],
        [association(OUT, TRANSPORT, *HOSTS[6], spi=0x1111), ESP_U],
    ),
}


def sized(version: int, length: int) -> Packet:
    packet = INNER[version].copy()
    if version == 4:
        packet.flags = "DF"
    return packet / bytes(length - len(packet))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wire_mtu", [1280, 1500, 1501, 1502, 1503, 9000])
def test_largest_packet_of_the_host_just_fits_the_wire(shape: str, wire_mtu: int) -> None:
    version, templates, sas = SHAPES[shape]
    card = card_of(version, templates, sas)
    card.outbound.wire_mtu = wire_mtu
    largest = card.outbound.inner_mtu(wire_mtu)
    (buffer,) = card.framed(sized(version, largest))
    assert len(buffer.frame) - 14 <= wire_mtu
    # What every IPv6 packet may have is not refused, but cut, and that is not the NIC's work (R16).
    refused = "out_not_offloaded" if version == 6 and largest < 1280 else "out_too_big"
    assert card.framed(sized(version, largest + 1)) == []
    assert {reason.value: count for reason, count in card.drops.items()} == {refused: 1}
    card.outbound.wire_mtu = 20000
    (larger,) = card.framed(sized(version, largest + 1))
    assert len(larger.frame) - 14 > wire_mtu


@pytest.mark.rule(31, 198)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["TCP", "TCP with DF", "UDP"])
def test_superframe_becomes_the_frames_its_segments_would_become_one_by_one(shape: str, kind: str) -> None:
    version, templates, sas = SHAPES[shape]
    ip = INNER[version].copy()
    ip.remove_payload()
    if version == 4:
        ip.id = 700
        ip.flags = "DF" if kind.endswith("DF") else ""
    data = bytes(index * 31 & 0xFF for index in range(4700))
    packet = ip / (UDP(sport=1, dport=2) if kind == "UDP" else TCP(sport=1, dport=2, flags="PA")) / data
    raw = bytearray(bytes(packet))
    pieces = segments(raw, parse_ip(raw, 0), 8 if kind == "UDP" else 20, 1000)
    one_by_one = card_of(version, templates, sas).framed(
        *[bytearray(bytes(ETHER / (IP if version == 4 else IPv6)(b"".join(piece)))) for piece in pieces]
    )
    gso = GSO_UDP_L4 if kind == "UDP" else GSO_TCPV4 if version == 4 else GSO_TCPV6
    card = card_of(version, templates, sas)
    at_once = card.framed(packet, vnet=VnetHeader(NEEDS_CSUM, gso, 0, 1000, 0, 0))
    assert len(at_once) == 5
    assert [(bytes(one.frame), one.transmit) for one in at_once] == [
        (bytes(one.frame), one.transmit) for one in one_by_one
    ]
    card.nic.send(at_once)
    assert {buffer.status for buffer in at_once} == {NdisStatus.SUCCESS}


def test_largest_packet_is_the_wire_itself_while_nothing_protects() -> None:
    assert Card().outbound.inner_mtu(1500) == 1500


def test_largest_packet_counts_with_every_sa_a_policy_may_choose() -> None:
    card = tunnel(4, 4)
    alone = card.outbound.inner_mtu(1500)
    card.sad.add(association(spi=0x9999, encryption="aes-cbc-256", integrity="hmac-sha256-128"), 0.0)
    assert card.outbound.inner_mtu(1500) < alone


def test_largest_packet_of_a_policy_without_sa_fits_whichever_sa_comes() -> None:
    card = Card()
    card.spd.add(policy(OUT, ANY, T_ESP, T_AH, template(ESP, TUNNEL, NEAR6, FAR6), T_AH))
    before = card.outbound.inner_mtu(1500)
    for sa in (
        association(OUT, TRANSPORT, *HOSTS[4], encryption="aes-cbc-256", integrity="hmac-sha256-128"),
        association(OUT, TRANSPORT, *HOSTS[4], protocol=AH, integrity="aes-gmac-256"),
        association(OUT, TUNNEL, NEAR6, FAR6, encryption="aes-cbc-256", integrity="hmac-sha256-128"),
        association(OUT, TRANSPORT, NEAR6, FAR6, protocol=AH, integrity="aes-gmac-256"),
    ):
        card.sad.add(sa, 0.0)
    assert before <= card.outbound.inner_mtu(1500)
    (buffer,) = card.framed(sized(4, before))
    assert len(buffer.frame) - 14 <= 1500
