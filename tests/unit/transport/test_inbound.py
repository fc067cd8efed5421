"""The receive half: only what was verified passes, once, stripped, and only where policy wants it so.

The frames are what a NIC leaves after opening: headers, trailer and ICV in place, cipher text replaced. They
are put together here byte by byte from RFC 4302 §2 and RFC 4303 §2.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
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
    FAR6,
    IN,
    NEAR,
    NEAR6,
    TRANSPORT,
    TUNNEL,
    Card,
    address,
    association,
    frame_of,
    policy,
    selector,
    template,
)

from vnic.ipsec.association import SecurityAssociation
from vnic.ipsec.counters import EventKind
from vnic.ipsec.drops import DropReason
from vnic.ipsec.policy import Defaults, PolicyAction, PolicyEntry
from vnic.ndis.netbuffer import NetBuffer, ReceiveInfo
from vnic.ndis.status import CryptoStatus
from vnic.packet.vnet import PLAIN

V4 = {"src": "10.2.0.1", "dst": "10.1.0.1"}
V6 = {"src": "fd02::1", "dst": "fd01::1"}
INNER = {
    4: IP(**V4) / UDP(sport=7, dport=8) / b"payload!",
    6: IPv6(**V6) / UDP(sport=7, dport=8) / b"payload!",
}
ENDS = {4: (FAR, NEAR), 6: (FAR6, NEAR6)}
ICV = b"\xcc" * 16
IV = b"\xdd" * 8


def esp(
    payload: bytes | Packet,
    next_header: int,
    number: int = 1,
    *,
    spi: int = 0x1000,
    pad: int | None = None,
    padding: bytes | None = None,
) -> bytes:
    """ESP header, IV, payload, trailer and ICV as AES-GCM lays them out; aligned to 4 unless `pad` says."""
    body = bytes(payload)
    if pad is None:
        pad = -(len(body) + 2) % 4
    if padding is None:
        padding = bytes(range(1, pad + 1))
    head = spi.to_bytes(4, "big") + (number & 0xFFFFFFFF).to_bytes(4, "big")
    return head + IV + body + padding + bytes([pad & 255, next_header]) + ICV


def ah(
    payload: bytes | Packet, next_header: int, number: int = 1, *, spi: int = 0x2000, words: int = 6
) -> bytes:
    """An AH header of 32 bytes (HMAC-SHA-256-128 padded to 8) before `payload`."""
    head = bytes([next_header, words, 0, 0]) + spi.to_bytes(4, "big") + number.to_bytes(4, "big")
    return head + ICV + bytes(4) + bytes(payload)


def outer(body: bytes, version: int = 4, protocol: int = 50, **fields: object) -> Packet:
    source, destination = ENDS[version]
    if version == 4:
        return IP(src=source, dst=destination, proto=protocol, **fields) / Raw(body)
    return IPv6(src=source, dst=destination, nh=protocol, **fields) / Raw(body)


def opened(next_header: int | None = 4, pad: int = 0, *, next_done: bool = False) -> ReceiveInfo:
    """What an honest NIC says of a good packet; next_header None: no ESP in it."""
    known = next_header is not None
    return ReceiveInfo(
        True, next_done, CryptoStatus.SUCCESS, False, known, next_header or 0, pad if known else 0
    )


def info_of(body: bytes, *, next_done: bool = False) -> ReceiveInfo:
    """What an honest NIC says of the ESP that `esp` made."""
    return opened(body[-17], body[-18], next_done=next_done)


SA = association(IN, TUNNEL, FAR, NEAR)
ALLOW = [
    policy(IN, ANY, template(ESP, TUNNEL, FAR, NEAR)),
    policy(IN, ANY6, template(ESP, TUNNEL, FAR, NEAR)),
]


def card_with(sas: list[SecurityAssociation], policies: list[PolicyEntry]) -> Card:
    card = Card()
    for sa in sas:
        card.sad.add(sa, 0.0)
    for entry in policies:
        card.spd.add(entry)
    return card


def tunnel_card(**members: object) -> Card:
    return card_with([replace(SA, **members)], ALLOW)  # type: ignore[arg-type]


def give(
    card: Card, packet: Packet | bytearray, info: ReceiveInfo | None, now: float = 1.0
) -> bytearray | None:
    """What the host gets of one frame, or None."""
    buffer = NetBuffer(packet if isinstance(packet, bytearray) else frame_of(packet))
    buffer.receive = info
    ready = card.inbound.receive([buffer], now)
    assert ready in ([], [buffer])
    assert buffer.vnet is None
    return buffer.frame if ready else None


def names(card: Card) -> dict[str, int]:
    return {reason.value: count for reason, count in card.drops.items()}


def refused(card: Card, packet: Packet | bytearray, info: ReceiveInfo | None, reason: str) -> None:
    before = dict(names(card))
    assert give(card, packet, info) is None
    assert names(card) == before | {reason: before.get(reason, 0) + 1}


# what passes


@pytest.mark.parametrize(("inside", "outside"), [(4, 4), (6, 4), (4, 6), (6, 6)])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 1000])
def test_tunnel_gives_the_inner_packet_and_nothing_else(inside: int, outside: int, length: int) -> None:
    source, destination = ENDS[outside]
    card = card_with(
        [association(IN, TUNNEL, source, destination)],
        [policy(IN, {4: ANY, 6: ANY6}[inside], template(ESP, TUNNEL, source, destination))],
    )
    inner = INNER[inside] / bytes(length)
    for number in (1, 2, 3):
        body = esp(inner, 4 if inside == 4 else 41, number)
        assert give(card, outer(body, outside), info_of(body)) == frame_of(inner)
    assert card.audit.card.rx_offloaded == 3


@pytest.mark.parametrize("version", [4, 6])
def test_transport_mode_gives_the_packet_as_it_was_before_protection(version: int) -> None:
    if version == 4:
        before = IP(**V4, id=77, tos=3, ttl=9, options=[IPOption_NOP()] * 4) / UDP(sport=7, dport=8) / b"odd"
        cut, field = 24, "proto"
    else:
        before = IPv6(**V6, tc=3, fl=5, hlim=9) / IPv6ExtHdrDestOpt() / UDP(sport=7, dport=8) / b"odd"
        cut, field = 48, "nh"
    whole = bytes(before)
    card = card_with(
        [
            association(IN, TRANSPORT, V4["src"], V4["dst"])
            if version == 4
            else association(IN, TRANSPORT, V6["src"], V6["dst"])
        ],
        [],
    )
    body = esp(whole[cut:], 17)
    head = IP(whole[:cut]) if version == 4 else IPv6(whole[:cut])
    if version == 4:
        head = head.copy()
        head.proto, head.len, head.chksum = 50, None, None
    else:
        head = IPv6(**V6, tc=3, fl=5, hlim=9) / IPv6ExtHdrDestOpt(nh=50)
    assert field
    assert give(card, head / Raw(body), info_of(body)) == frame_of(before)


def test_tags_are_kept_and_the_type_behind_them_follows_the_inner_packet() -> None:
    card = tunnel_card()
    body = esp(INNER[6], 41)
    tagged = ETHER / Dot1Q(vlan=5, prio=2) / outer(body)
    got = give(card, tagged, info_of(body))
    assert got == frame_of(ETHER / Dot1Q(vlan=5, prio=2) / INNER[6])


@pytest.mark.parametrize("padding", [1, 18, 46])
def test_ethernet_padding_behind_the_outer_packet_does_not_reach_the_host(padding: int) -> None:
    for mode_card, head, next_header, expected in (
        (tunnel_card(), outer, 4, INNER[4]),
        (
            card_with([association(IN, TRANSPORT, FAR, NEAR)], []),
            outer,
            17,
            IP(src=FAR, dst=NEAR) / UDP(sport=7, dport=8) / b"",
        ),
    ):
        content = bytes(expected) if next_header == 4 else bytes(expected)[20:]
        body = esp(content, next_header)
        frame = frame_of(head(body)) + b"\xee" * padding
        assert give(mode_card, frame, info_of(body)) == frame_of(expected)


def test_padding_for_traffic_flow_confidentiality_is_removed() -> None:
    # RFC 4303 §2.7: what is behind the inner packet, by its own length, is not its business.
    card = tunnel_card()
    body = esp(bytes(INNER[4]) + bytes(200), 4)
    assert give(card, outer(body), info_of(body)) == frame_of(INNER[4])


def test_longest_padding_is_stripped() -> None:
    card = tunnel_card()
    for number, pad in enumerate((255, 254, 3), 1):
        body = esp(INNER[4], 4, number, pad=pad)
        assert give(card, outer(body), info_of(body)) == frame_of(INNER[4])


AH_TUNNEL = association(IN, TUNNEL, FAR, NEAR, protocol=AH, spi=0x2000)
AH_OVER = association(IN, TRANSPORT, FAR, NEAR, protocol=AH, spi=0x2000)
ESP_T = association(IN, TRANSPORT, V4["src"], V4["dst"], spi=0x3000)
AH_T = association(IN, TRANSPORT, V4["src"], V4["dst"], protocol=AH, spi=0x4000)
U_ESP, U_AH = template(ESP, TUNNEL, FAR, NEAR), template(AH, TUNNEL, FAR, NEAR)
T_ESP, T_AH = template(ESP, TRANSPORT), template(AH, TRANSPORT)


def test_ah_tunnel_gives_the_inner_packet() -> None:
    card = card_with([AH_TUNNEL], [policy(IN, ANY, U_AH)])
    assert give(card, outer(ah(INNER[4], 4), protocol=51), opened(None)) == frame_of(INNER[4])


def test_ah_in_transport_mode_gives_the_packet() -> None:
    card = card_with([AH_T], [policy(IN, ANY, T_AH)])
    packet = IP(**V4, proto=51) / Raw(ah(bytes(INNER[4])[20:], 17, spi=0x4000))
    assert give(card, packet, opened(None)) == frame_of(INNER[4])


def test_ah_over_an_esp_tunnel_strips_both() -> None:
    card = card_with([SA, AH_OVER], [policy(IN, ANY, U_ESP, T_AH)])
    body = esp(INNER[4], 4)
    assert give(card, outer(ah(body, 50), protocol=51), info_of(body)) == frame_of(INNER[4])
    assert [state.counters.packets for state in card.sad] == [1, 1]


def test_transport_inside_a_tunnel_strips_both_and_reports_the_inner_trailer() -> None:
    card = card_with([SA, ESP_T], [policy(IN, ANY, T_ESP, U_ESP)])
    inside = esp(bytes(INNER[4])[20:], 17, spi=0x3000)
    body = esp(IP(**V4, proto=50) / Raw(inside), 4)
    assert give(card, outer(body), info_of(inside, next_done=True)) == frame_of(INNER[4])


def test_all_four_layers_are_stripped() -> None:
    card = card_with([SA, AH_OVER, ESP_T, AH_T], [policy(IN, ANY, T_ESP, T_AH, U_ESP, T_AH)])
    inside = esp(bytes(INNER[4])[20:], 17, spi=0x3000)
    middle = IP(**V4, proto=51) / Raw(ah(inside, 50, spi=0x4000))
    packet = outer(ah(esp(middle, 4), 50), protocol=51)
    assert give(card, packet, info_of(inside, next_done=True)) == frame_of(INNER[4])


def test_foreign_esp_inside_a_tunnel_is_transit_and_passes() -> None:
    card = tunnel_card()
    transit = IP(**V4, proto=50) / Raw(b"\0\0\x99\x99" + bytes(40))
    body = esp(transit, 4)
    assert give(card, outer(body), info_of(body)) == frame_of(transit)


def test_order_of_the_burst_is_kept() -> None:
    card = tunnel_card()
    burst = []
    for number in (1, 2, 3):
        body = esp(IP(**V4, id=number) / UDP() / b"x", 4, number)
        buffer = NetBuffer(frame_of(outer(body)))
        buffer.receive = info_of(body)
        burst += [buffer, NetBuffer(frame_of(ETHER / ARP()))]
    ready = card.inbound.receive(burst, 1.0)
    assert ready == burst


# the NIC's verdict


@pytest.mark.rule(184)
@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (CryptoStatus.GENERIC_ERROR, "in_crypto"),
        (CryptoStatus.TRANSPORT_AH_AUTH_FAILED, "in_icv"),
        (CryptoStatus.TRANSPORT_ESP_AUTH_FAILED, "in_icv"),
        (CryptoStatus.TUNNEL_AH_AUTH_FAILED, "in_icv"),
        (CryptoStatus.TUNNEL_ESP_AUTH_FAILED, "in_icv"),
        (CryptoStatus.INVALID_PACKET_SYNTAX, "in_syntax"),
        (CryptoStatus.INVALID_PROTOCOL, "in_protocol"),
    ],
)
@pytest.mark.parametrize("done", [True, False])
def test_failure_ends_the_frame_under_its_reason_and_moves_no_window(
    status: CryptoStatus, reason: str, done: bool
) -> None:
    card = tunnel_card()
    body = esp(INNER[4], 4, 99)
    refused(card, outer(body), ReceiveInfo(done, False, status), reason)
    state = card.sad.table[SA.id]
    assert state.sequence_number == 0
    assert state.counters.drops == {DropReason(reason): 1}
    (event,) = card.audit.take_events()
    assert (event.kind, event.sa, event.drop) == (EventKind.DROP, SA.id, DropReason(reason))


def test_every_status_of_the_contract_has_a_reason() -> None:
    card = tunnel_card()
    for status in CryptoStatus:
        assert give(card, outer(esp(INNER[4], 4)), ReceiveInfo(False, False, status)) is None


@pytest.mark.rule(187)
@pytest.mark.parametrize("next_done", [True, False])
def test_success_without_crypto_done_is_not_verified(next_done: bool) -> None:
    card = tunnel_card()
    body = esp(INNER[4], 4)
    info = info_of(body)._replace(crypto_done=False, next_crypto_done=next_done)
    refused(card, outer(body), info, "in_crypto")


@pytest.mark.rule(174)
@pytest.mark.parametrize("protocol", [50, 51])
@pytest.mark.parametrize("version", [4, 6])
def test_unprocessed_ipsec_without_sa_ends_as_no_sa(protocol: int, version: int) -> None:
    card = card_with([], [])
    body = esp(INNER[4], 4) if protocol == 50 else ah(INNER[4], 4)
    refused(card, outer(body, version, protocol), None, "in_no_sa")


def test_unprocessed_ipsec_whose_sa_is_here_is_the_nics_failure() -> None:
    card = tunnel_card()
    refused(card, outer(esp(INNER[4], 4)), None, "in_crypto")
    assert card.sad.table[SA.id].counters.drops == {DropReason.IN_CRYPTO: 1}


@pytest.mark.parametrize("cut", [0, 4, 7])
def test_unprocessed_ipsec_too_short_for_its_header_ends_as_no_sa(cut: int) -> None:
    refused(tunnel_card(), outer(esp(INNER[4], 4)[:cut]), None, "in_no_sa")


def test_sa_of_another_source_is_not_the_sa_of_the_packet() -> None:
    card = tunnel_card()
    packet = IP(src="192.0.2.77", dst=NEAR, proto=50) / Raw(esp(INNER[4], 4))
    refused(card, packet, None, "in_no_sa")


def test_fragments_of_ipsec_end_here() -> None:
    card = tunnel_card()
    refused(card, outer(esp(INNER[4], 4), flags="MF"), None, "in_fragment")
    refused(card, outer(esp(INNER[4], 4), frag=4), None, "in_fragment")
    six = IPv6(src=FAR6, dst=NEAR6) / IPv6ExtHdrFragment(m=1, nh=50) / Raw(esp(INNER[4], 4))
    refused(card, six, None, "in_fragment")


def test_policy_by_name_lets_the_hosts_own_ipsec_pass() -> None:
    card = card_with([], [policy(IN, selector(protocol=50))])
    packet = outer(esp(INNER[4], 4))
    assert give(card, packet, None) == frame_of(packet)
    assert card.audit.card.rx_bypassed == 1
    refused(card, outer(ah(INNER[4], 4), protocol=51), None, "in_no_sa")


def test_later_fragment_of_ipsec_ends_here_also_where_a_policy_cannot_judge_it() -> None:
    card = card_with([], [policy(IN, selector(source_port=80))])
    refused(card, outer(bytes(40), frag=5), None, "in_fragment")


def test_wide_bypass_does_not_let_ipsec_pass() -> None:
    card = card_with([], [policy(IN, ANY)])
    refused(card, outer(esp(INNER[4], 4)), None, "in_no_sa")


# the NIC and the table disagree


@pytest.mark.parametrize(
    "change",
    [
        {"next_header": 41},
        {"next_header": 17},
        {"pad_length": 1},
        {"header_info_set": False},
        {"next_crypto_done": True},
    ],
)
def test_report_that_does_not_fit_the_frame_fails_closed(change: dict[str, object]) -> None:
    card = tunnel_card()
    for number in (1, 2, 3):
        body = esp(INNER[4], 4, number)
        if number == 2:
            assert give(card, outer(body), info_of(body)) is not None
        else:
            refused(card, outer(body), info_of(body)._replace(**change), "in_crypto")


def test_verified_frame_without_any_sa_fails_closed() -> None:
    body = esp(INNER[4], 4)
    refused(card_with([], []), outer(body), info_of(body), "in_crypto")
    refused(card_with([], []), INNER[4], opened(), "in_crypto")


def test_verified_ah_must_not_report_a_trailer() -> None:
    card = card_with([AH_TUNNEL], [policy(IN, ANY, U_AH)])
    refused(card, outer(ah(INNER[4], 4), protocol=51), opened(4), "in_crypto")


def test_layer_that_the_nic_did_not_open_fails_closed_and_moves_no_window() -> None:
    # The NIC opened the tunnel only; inside lies what could be anybody's for an SA of ours.
    card = card_with([SA, ESP_T], ALLOW)
    forged = esp(bytes(INNER[4])[20:], 17, 0xFFFF, spi=0x3000)
    body = esp(IP(**V4, proto=50) / Raw(forged), 4)
    refused(card, outer(body), info_of(body), "in_crypto")
    assert card.sad.table[ESP_T.id].sequence_number == 0


def test_layer_the_nic_skipped_at_the_end_fails_closed() -> None:
    card = card_with([SA, ESP_T], ALLOW)
    inside = esp(bytes(INNER[4])[20:], 17, spi=0x3000)
    body = esp(IP(**V4, proto=50) / Raw(inside), 4)
    refused(card, outer(body), info_of(inside), "in_crypto")
    refused(
        card, outer(esp(IP(**V4, proto=50) / Raw(inside), 4, 2)), info_of(body, next_done=True), "in_crypto"
    )


# replay


def send_number(card: Card, number: int) -> bool:
    body = esp(INNER[4], 4, number)
    return give(card, outer(body), info_of(body)) is not None


@pytest.mark.rule(11, 184)
def test_duplicate_and_old_numbers_end_here_under_their_own_reasons() -> None:
    card = tunnel_card(replay_window=64)
    assert [send_number(card, number) for number in (100, 99, 100, 37, 36, 0)] == [
        True,
        True,
        False,
        True,
        False,
        False,
    ]
    assert names(card) == {"in_replay_duplicate": 1, "in_replay_too_old": 2}
    assert card.sad.table[SA.id].counters.packets == 3
    events = card.audit.take_events()
    assert [(event.drop, event.sa, event.sequence_number) for event in events] == [
        (DropReason.IN_REPLAY_DUPLICATE, SA.id, 100),
        (DropReason.IN_REPLAY_TOO_OLD, SA.id, 36),
    ]


def test_replayed_ah_ends_here_too() -> None:
    card = card_with([AH_TUNNEL], [policy(IN, ANY, U_AH)])
    packet = outer(ah(INNER[4], 4, 5), protocol=51)
    assert give(card, packet, opened(None)) is not None
    refused(card, packet, opened(None), "in_replay_duplicate")


def test_window_switched_off_takes_everything() -> None:
    card = tunnel_card(replay_window=0)
    assert [send_number(card, number) for number in (5, 5, 1, 5)] == [True] * 4


def test_extended_numbers_go_through_the_wrap_in_any_order() -> None:
    top = 1 << 32
    card = tunnel_card(esn=True, sequence_number=top - 10)
    numbers = [top - 5, top + 3, top - 4, top, top + 2, top - 1]
    assert [send_number(card, number) for number in numbers] == [True] * 6
    assert [send_number(card, number) for number in numbers] == [False] * 6
    assert names(card) == {"in_replay_duplicate": 6}
    assert card.sad.table[SA.id].sequence_number == top + 3


def test_same_lower_half_in_the_next_round_is_another_number() -> None:
    top = 1 << 32
    card = tunnel_card(esn=True, sequence_number=1000)
    assert send_number(card, 1001)
    card.sad.table[SA.id].window.advance(top + 900)  # type: ignore[union-attr]
    assert send_number(card, top + 1001)


def test_packet_that_fails_later_has_used_its_number() -> None:
    card = tunnel_card()
    body = esp(INNER[4], 4, 5, padding=b"\x09", pad=1)
    refused(card, outer(body), info_of(body), "in_padding")
    refused(card, outer(body), info_of(body), "in_replay_duplicate")


# stripping


@pytest.mark.parametrize("padding", [b"\0\0\0", b"\1\2\4", b"\2\2\3", b"\3\2\1"])
def test_padding_that_does_not_count_up_ends_the_packet(padding: bytes) -> None:
    card = tunnel_card()
    good = esp(INNER[4], 4, 1, pad=3)
    assert give(card, outer(good), info_of(good)) is not None
    body = esp(INNER[4], 4, 2, pad=3, padding=padding)
    refused(card, outer(body), info_of(body), "in_padding")


@pytest.mark.parametrize("pad", [37, 100, 255])
def test_pad_length_beyond_the_payload_is_bad_syntax(pad: int) -> None:
    card = tunnel_card()
    body = esp(bytes(INNER[4]), 4, pad=pad, padding=b"")
    refused(card, outer(body), info_of(body), "in_syntax")


@pytest.mark.parametrize("cut", range(8, 34))
def test_packet_too_short_for_its_own_headers_is_bad_syntax(cut: int) -> None:
    card = tunnel_card()
    body = esp(b"", 4, pad=0)
    assert len(body) == 34
    refused(card, outer(body[:cut]), opened(4), "in_syntax")


def test_dummy_packets_end_here_without_an_alarm_of_another_kind() -> None:
    card = tunnel_card()
    body = esp(bytes(64), 59)
    refused(card, outer(body), info_of(body), "in_dummy")
    ah_card = card_with([AH_T], [])
    refused(ah_card, IP(**V4, proto=51) / Raw(ah(bytes(64), 59, spi=0x4000)), opened(None), "in_dummy")


@pytest.mark.parametrize("next_header", [0, 1, 6, 17, 50, 58, 255])
def test_tunnel_that_carries_no_ip_packet_is_a_protocol_error(next_header: int) -> None:
    card = tunnel_card()
    body = esp(INNER[4], next_header)
    refused(card, outer(body), info_of(body), "in_protocol")


@pytest.mark.parametrize(
    ("inner", "next_header"),
    [(INNER[6], 4), (INNER[4], 41), (b"\x55" + bytes(39), 4), (b"\x00" * 40, 41), (b"", 4), (b"", 41)],
)
def test_inner_packet_of_another_version_than_the_trailer_says_is_a_protocol_error(
    inner: bytes | Packet, next_header: int
) -> None:
    card = tunnel_card()
    body = esp(inner, next_header)
    refused(card, outer(body), info_of(body), "in_protocol")


@pytest.mark.parametrize(
    ("next_header", "inner"),
    [
        (4, IP(**V4, tos=2) / UDP(sport=7, dport=8) / b"payload!"),
        (41, IPv6(**V6, tc=2) / UDP(sport=7, dport=8) / b"payload!"),
    ],
    ids=["IPv4", "IPv6"],
)
def test_inner_packet_cut_anywhere_is_malformed_and_never_a_crash(next_header: int, inner: Packet) -> None:
    card = tunnel_card()
    whole = bytes(inner)
    for length in range(1, len(whole)):
        body = esp(whole[:length], next_header, length)
        refused(card, outer(body, tos=3), info_of(body), "in_malformed")


@pytest.mark.parametrize("words", [0, 5, 7, 60, 255])
def test_ah_length_field_beyond_the_packet_is_bad_syntax(words: int) -> None:
    card = card_with([AH_T], [])
    short = ah(b"", 17, spi=0x4000, words=words)[: 12 if words < 7 else None]
    refused(card, IP(**V4, proto=51) / Raw(short), opened(None), "in_syntax")


def test_damaged_outer_header_is_not_repaired() -> None:
    # ESP does not cover the IP header; its own checksum does (RFC 1122 §3.2.1.2).
    for mode, card, body in (
        ("tunnel", tunnel_card(), esp(INNER[4], 4)),
        ("transport", card_with([association(IN, TRANSPORT, FAR, NEAR)], []), esp(bytes(INNER[4])[20:], 17)),
    ):
        for number in (1, 2):
            body = body[:4] + number.to_bytes(4, "big") + body[8:]
            assert give(card, outer(body), info_of(body)) is not None, mode
        body = body[:4] + (3).to_bytes(4, "big") + body[8:]
        frame = frame_of(outer(body))
        frame[14 + 8] ^= 0x10
        refused(card, frame, info_of(body), "in_malformed")


# RFC 6040 §4.2, figure 4: rows inner, columns outer; None: drop
NOT_ECT, ECT1, ECT0, CE = 0, 1, 2, 3
FIGURE_4 = {
    NOT_ECT: {NOT_ECT: NOT_ECT, ECT0: NOT_ECT, ECT1: NOT_ECT, CE: None},
    ECT0: {NOT_ECT: ECT0, ECT0: ECT0, ECT1: ECT1, CE: CE},
    ECT1: {NOT_ECT: ECT1, ECT0: ECT1, ECT1: ECT1, CE: CE},
    CE: {NOT_ECT: CE, ECT0: CE, ECT1: CE, CE: CE},
}


@pytest.mark.parametrize(("inside", "outside"), [(4, 4), (6, 4), (4, 6), (6, 6)])
@pytest.mark.parametrize("inner_ecn", FIGURE_4)
@pytest.mark.parametrize("outer_ecn", [NOT_ECT, ECT1, ECT0, CE])
def test_congestion_marks_come_through_as_in_figure_4(
    inside: int, outside: int, inner_ecn: int, outer_ecn: int
) -> None:
    source, destination = ENDS[outside]
    sa = association(IN, TUNNEL, source, destination)
    entry = policy(IN, {4: ANY, 6: ANY6}[inside], template(ESP, TUNNEL, source, destination))
    card = card_with([sa], [entry])
    field, outer_field = ("tos" if inside == 4 else "tc"), ("tos" if outside == 4 else "tc")
    expected = FIGURE_4[inner_ecn][outer_ecn]
    for number in (1, 2):
        inner = INNER[inside].copy()
        setattr(inner, field, 0xB8 | inner_ecn)
        body = esp(inner, 4 if inside == 4 else 41, number)
        got = give(card, outer(body, outside, **{outer_field: 0x28 | outer_ecn}), info_of(body))
        if expected is None:
            assert got is None
            assert names(card) == {"in_protocol": number}
        else:
            setattr(inner, field, 0xB8 | expected)
            assert got == frame_of(inner)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"no_ecn": True}, 0xB8),
        ({"no_ecn": True, "decap_dscp": True}, 0x28),
        ({"decap_dscp": True}, None),
    ],
)
def test_flags_of_the_sa_change_what_the_outer_header_does(
    members: dict[str, bool], expected: int | None
) -> None:
    card = tunnel_card(**members)
    for number in (1, 2):
        body = esp(IP(**V4, tos=0xB8) / UDP() / b"x", 4, number)
        got = give(card, outer(body, tos=0x2B), info_of(body))
        assert got == (None if expected is None else frame_of(IP(**V4, tos=expected) / UDP() / b"x"))


def test_dscp_is_copied_on_request_and_ecn_still_follows_the_figure() -> None:
    card = tunnel_card(decap_dscp=True)
    for number in (1, 2):
        body = esp(IPv6(**V6, tc=0xBA, fl=0xFFFFF) / UDP() / b"x", 41, number)
        got = give(card, outer(body, tos=0x2B), info_of(body))
        assert got == frame_of(IPv6(**V6, tc=0x2B, fl=0xFFFFF) / UDP() / b"x")


def test_congestion_mark_does_not_repair_a_damaged_inner_header() -> None:
    card = tunnel_card()
    inner = IP(**V4, tos=2, chksum=0x1234) / UDP() / b"x"
    body = esp(inner, 4)
    got = give(card, outer(body, tos=3), info_of(body))
    assert got is not None
    seen = Ether(bytes(got))[IP]
    right = IP(**V4, tos=3, id=seen.id) / UDP() / b"x"
    assert seen.tos == 3
    assert seen.chksum != IP(bytes(right)).chksum


# policy

PROTECTED = {
    "nothing": (None, []),
    "transport": (ESP_T, [ESP_T]),
    "tunnel": (SA, [SA]),
}


def arriving(how: str) -> tuple[list[SecurityAssociation], Packet, ReceiveInfo | None]:
    """INNER[4] in clear, in transport mode, in a tunnel, or in both."""
    if how == "clear":
        return [], INNER[4], None
    if how == "transport":
        body = esp(bytes(INNER[4])[20:], 17, spi=0x3000)
        return [ESP_T], IP(**V4, proto=50) / Raw(body), info_of(body)
    if how == "tunnel":
        body = esp(INNER[4], 4)
        return [SA], outer(body), info_of(body)
    if how == "AH over ESP":
        body = esp(bytes(INNER[4])[20:], 17, spi=0x3000)
        return [ESP_T, AH_T], IP(**V4, proto=51) / Raw(ah(body, 50, spi=0x4000)), info_of(body)
    assert how == "transport in tunnel"
    inside = esp(bytes(INNER[4])[20:], 17, spi=0x3000)
    body = esp(IP(**V4, proto=50) / Raw(inside), 4)
    return [SA, ESP_T], outer(body), info_of(inside, next_done=True)


HOW = ["clear", "transport", "tunnel", "AH over ESP", "transport in tunnel"]


@pytest.mark.parametrize(
    ("default", "verdicts"),
    [
        # what came through a tunnel needs a policy, as in the kernel
        (PolicyAction.BYPASS, [None, None, "in_no_policy", None, "in_no_policy"]),
        (PolicyAction.DISCARD, ["in_policy_discard"] * 5),
    ],
)
def test_without_policy_the_default_decides_and_tunnels_never_pass(
    default: PolicyAction, verdicts: list[str | None]
) -> None:
    check_matrix([], Defaults(inbound=default), verdicts)


@pytest.mark.rule(11)
@pytest.mark.parametrize(
    ("entry", "verdicts"),
    [
        (policy(IN, ANY), [None, None, "in_policy_mismatch", None, "in_policy_mismatch"]),
        (policy(IN, ANY, action=PolicyAction.DISCARD), ["in_policy_discard"] * 5),
        (policy(IN, ANY, T_ESP), ["in_policy_mismatch", None] + ["in_policy_mismatch"] * 3),
        (policy(IN, ANY, U_ESP), ["in_policy_mismatch"] * 2 + [None] + ["in_policy_mismatch"] * 2),
        (policy(IN, ANY, T_ESP, T_AH), ["in_policy_mismatch"] * 3 + [None, "in_policy_mismatch"]),
        (policy(IN, ANY, T_ESP, U_ESP), ["in_policy_mismatch"] * 4 + [None]),
        (policy(IN, ANY, T_AH), ["in_policy_mismatch"] * 5),
        (policy(IN, ANY, U_AH), ["in_policy_mismatch"] * 5),
        (policy(IN, selector(protocol=6)), [None, None, "in_no_policy", None, "in_no_policy"]),
    ],
)
def test_policy_wants_exactly_the_protection_it_names(entry: PolicyEntry, verdicts: list[str | None]) -> None:
    check_matrix([entry], Defaults(), verdicts)


def check_matrix(policies: list[PolicyEntry], defaults: Defaults, verdicts: list[str | None]) -> None:
    for how, verdict in zip(HOW, verdicts, strict=True):
        sas, packet, info = arriving(how)
        card = card_with(sas, policies)
        card.spd.set_defaults(defaults)
        got = give(card, packet, info)
        assert (got is None) == (verdict is not None), how
        assert names(card) == ({} if verdict is None else {verdict: 1}), how
        if verdict is None:
            assert got == frame_of(INNER[4]), how


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (template(ESP, TUNNEL, FAR, NEAR), True),
        (template(ESP, TUNNEL, FAR, NEAR, reqid=7), True),
        (template(ESP, TUNNEL, FAR, NEAR, spi=0x1000), True),
        (template(ESP, TUNNEL, FAR, NEAR, reqid=8), False),
        (template(ESP, TUNNEL, FAR, NEAR, spi=0x1001), False),
        (template(ESP, TUNNEL, FAR, "192.0.2.77"), False),
        (template(ESP, TUNNEL, "192.0.2.77", NEAR), False),
        (template(AH, TUNNEL, FAR, NEAR), False),
    ],
)
def test_template_names_the_sa_it_wants(wanted, fits: bool) -> None:  # type: ignore[no-untyped-def]
    card = card_with([replace(SA, reqid=7)], [policy(IN, ANY, wanted)])
    body = esp(INNER[4], 4)
    assert (give(card, outer(body), info_of(body)) is not None) is fits
    assert names(card) == ({} if fits else {"in_policy_mismatch": 1})


def test_other_tunnel_than_the_policys_does_not_do() -> None:
    other = association(IN, TUNNEL, "192.0.2.77", NEAR, spi=0x1001)
    card = card_with([SA, other], ALLOW)
    body = esp(INNER[4], 4, spi=0x1001)
    refused(card, IP(src="192.0.2.77", dst=NEAR, proto=50) / Raw(body), info_of(body), "in_policy_mismatch")


def test_first_policy_that_matches_decides() -> None:
    card = card_with([SA], [policy(IN, selector(protocol=17), action=PolicyAction.DISCARD), *ALLOW])
    body = esp(INNER[4], 4)
    refused(card, outer(body), info_of(body), "in_policy_discard")
    tcp = esp(IP(**V4) / TCP() / b"x", 4, 2)
    assert give(card, outer(tcp), info_of(tcp)) is not None


@pytest.mark.parametrize(
    ("chosen", "fits"),
    [
        (ANY, True),
        (selector("10.2.0.0/16", "10.1.0.0/16"), True),
        (selector(protocol=17, source_port=7), True),
        (selector("10.3.0.0/16", "0.0.0.0/0"), False),
        (selector(protocol=6), False),
        (selector(protocol=17, destination_port=9), False),
        (ANY6, False),
    ],
)
def test_inner_packet_must_be_one_its_sa_may_carry(chosen, fits: bool) -> None:  # type: ignore[no-untyped-def]
    card = tunnel_card(selector=chosen)
    for number in (1, 2):
        body = esp(INNER[4], 4, number)
        assert (give(card, outer(body), info_of(body)) is not None) is fits
    assert names(card) == ({} if fits else {"in_sa_selector": 2})


def test_inner_fragments_pass_where_policy_needs_no_ports_and_end_where_it_does() -> None:
    fragment = IP(**V4, frag=3, proto=17) / Raw(bytes(24))
    card = tunnel_card()
    body = esp(fragment, 4)
    assert give(card, outer(body), info_of(body)) == frame_of(fragment)
    ports = card_with([SA], [policy(IN, selector(protocol=17, destination_port=8), U_ESP)])
    refused(ports, outer(body), info_of(body), "in_fragment")
    assert give(ports, fragment, None) is None
    narrow = tunnel_card(selector=selector(protocol=17, destination_port=8))
    refused(narrow, outer(body), info_of(body), "in_sa_selector")


def test_inner_fragment_of_ipsec_ends_here() -> None:
    card = tunnel_card()
    body = esp(IP(**V4, frag=3, proto=50) / Raw(bytes(24)), 4)
    refused(card, outer(body), info_of(body), "in_fragment")


def test_changes_of_policy_and_sa_hold_for_flows_already_known() -> None:
    card = tunnel_card()
    assert send_number(card, 1)
    assert send_number(card, 2)
    entry = card.spd.add(policy(IN, selector(protocol=17), action=PolicyAction.DISCARD, priority=0))
    card.spd.add(replace(ALLOW[0], priority=1), replace_existing=True)
    assert not send_number(card, 3)
    card.spd.delete(IN, None, entry.index)
    assert send_number(card, 4)
    card.sad.add(replace(SA, selector=selector("10.9.0.0/16", "0.0.0.0/0")), 0.0, replace_existing=True)
    assert not send_number(card, 5)
    card.sad.delete(SA.id)
    assert not send_number(card, 6)
    assert names(card) == {"in_policy_discard": 1, "in_sa_selector": 1, "in_crypto": 1}


# clear frames


def test_clear_frames_pass_untouched_where_policy_lets_them() -> None:
    card = Card()
    for packet in (
        INNER[4],
        INNER[6],
        IPv6(**V6) / ICMPv6EchoRequest(),
        IP(**V4, frag=3, proto=17) / Raw(bytes(9)),
    ):
        assert give(card, packet, None) == frame_of(packet)
    assert card.audit.card.rx_bypassed == 4


def test_virtio_header_of_a_clear_frame_stays_and_of_an_opened_one_goes() -> None:
    card = tunnel_card()
    card.spd.delete(IN, ANY, 0)
    card.spd.add(policy(IN, selector("10.2.0.0/16", "0.0.0.0/0", 17), U_ESP))
    clear = NetBuffer(frame_of(IP(src="10.9.0.1", dst="10.1.0.1") / UDP()), PLAIN)
    for number in (1, 2):
        body = esp(INNER[4], 4, number)
        secret = NetBuffer(frame_of(outer(body)), PLAIN)
        secret.receive = info_of(body)
        assert card.inbound.receive([clear, secret], 1.0) == [clear, secret]
        assert (clear.vnet, secret.vnet) == (PLAIN, None)


@pytest.mark.parametrize(
    "packet",
    [ETHER / ARP(), IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_NS()],
    ids=["ARP", "neighbour discovery"],
)
def test_arp_and_neighbour_discovery_pass_whatever_policy_says(packet: Packet) -> None:
    card = card_with([], [policy(IN, ANY, action=PolicyAction.DISCARD), policy(IN, ANY6, U_ESP)])
    card.spd.set_defaults(Defaults(PolicyAction.DISCARD, PolicyAction.DISCARD, PolicyAction.DISCARD))
    assert give(card, packet, None) == frame_of(packet)
    assert card.audit.card.rx_passed == 1


def test_neighbour_discovery_from_a_tunnel_is_judged_like_any_packet() -> None:
    card = card_with([SA], [policy(IN, ANY6, action=PolicyAction.DISCARD)])
    body = esp(IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_NS(), 41)
    refused(card, outer(body), info_of(body), "in_policy_discard")


def test_other_non_ip_passes_or_drops_by_the_setting() -> None:
    frame = bytearray(bytes(Ether(src="02:00:00:00:00:01", dst="01:80:c2:00:00:0e", type=0x88CC)) + bytes(50))
    card = Card()
    assert give(card, bytearray(frame), None) == frame
    card.spd.set_defaults(Defaults(non_ip=PolicyAction.DISCARD))
    refused(card, bytearray(frame), None, "in_non_ip")


@pytest.mark.parametrize("info", [None, opened(), ReceiveInfo(True, False, CryptoStatus.GENERIC_ERROR)])
def test_malformed_ip_ends_here(info: ReceiveInfo | None) -> None:
    for frame in (frame_of(INNER[4])[:30], frame_of(IP(**V4, len=2000) / UDP()), bytearray(14)):
        card = tunnel_card()
        frame[12:14] = b"\x08\x00"
        refused(card, frame, info, "in_malformed")


# counting


def test_card_and_sa_count_what_was_verified_and_passed() -> None:
    card = tunnel_card()
    for number, now in ((1, 3.5), (2, 4.5)):
        body = esp(INNER[4], 4, number)
        assert give(card, outer(body), info_of(body), now) is not None
        state = card.sad.table[SA.id]
        assert (state.counters.packets, state.counters.bytes) == (number, number * len(INNER[4]))
        assert state.use_time == now
    assert card.audit.card.rx_offloaded == 2


def test_what_policy_ends_is_not_counted_as_passed() -> None:
    card = card_with([SA], [])
    body = esp(INNER[4], 4)
    refused(card, outer(body), info_of(body), "in_no_policy")
    state = card.sad.table[SA.id]
    assert (state.counters.packets, state.use_time, card.audit.card.rx_offloaded) == (0, 0.0, 0)
    assert state.counters.drops == {DropReason.IN_NO_POLICY: 1}


def test_drop_is_told_with_the_addresses_of_the_packet() -> None:
    card = Card()
    card.spd.add(policy(IN, ANY, action=PolicyAction.DISCARD))
    give(card, INNER[4], None)
    (event,) = card.audit.take_events()
    assert (event.source, event.destination) == (bytes([10, 2, 0, 1]), bytes([10, 1, 0, 1]))


def test_memory_of_flows_is_bounded() -> None:
    card = tunnel_card(replay_window=0)
    body = esp(IP(**V4) / UDP() / b"data", 4)
    frame = frame_of(outer(body))
    at = 14 + 20 + 16 + 20
    for number in range(20_000):
        copy = bytearray(frame)
        copy[at : at + 4] = number.to_bytes(4, "big")
        assert give(card, copy, info_of(body)) is not None
    assert len(card.inbound._flows) <= 8192
    assert len(card.inbound._allowed) <= 8192


# what is audited


@pytest.mark.parametrize("family", [4, 6])
def test_inbound_errors_are_audited_with_spi_number_addresses_and_flow_label(family: int) -> None:
    # RFC 4303 §3.4.2: SPI, source, destination, sequence number and, in IPv6, the flow label.
    card = card_with([], [])
    body = (0xABCD).to_bytes(4, "big") + (77).to_bytes(4, "big") + bytes(40)
    if family == 4:
        packet = IP(src=FAR, dst=NEAR, proto=50) / Raw(body)
        ends, label = (address(FAR), address(NEAR)), 0
    else:
        packet = IPv6(src=FAR6, dst=NEAR6, nh=50, fl=0xABCDE) / Raw(body)
        ends, label = (address(FAR6), address(NEAR6)), 0xABCDE
    refused(card, packet, None, "in_no_sa")
    (event,) = card.audit.take_events()
    assert (event.source, event.destination) == ends
    assert (event.protocol, event.spi, event.sequence_number, event.flow_label) == (50, 0xABCD, 77, label)
    assert event.sa is None


def test_a_packet_too_short_for_a_number_is_audited_without_one() -> None:
    card = card_with([], [])
    refused(card, IP(src=FAR, dst=NEAR, proto=51) / Raw(bytes(6)), None, "in_no_sa")
    (event,) = card.audit.take_events()
    assert (event.protocol, event.spi, event.sequence_number) == (51, 0, 0)
