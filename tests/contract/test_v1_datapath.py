"""Send and receive on SAs that came by the V1 OIDs (sheet §2.2, §6, §7, R12, R14, R135, R169, R185-R188)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from nic_frames import (
    INNER_V4,
    NO_HANDLE,
    UDP,
    V4,
    Framed,
    Nic,
    Sa,
    ah,
    esp,
    ethernet,
    framed,
    ip,
    ipv4,
    nat_traversal,
    sealed,
    tcp,
    transmit,
    udp,
)
from scapy.layers.inet import IP
from scapy.layers.inet import UDP as ScapyUdp
from scapy.layers.ipsec import AH as SCAPY_AH
from scapy.layers.ipsec import ESP as SCAPY_ESP
from scapy.layers.ipsec import SecurityAssociation

from vnic.ipsec.association import Mode
from vnic.ndis.capabilities import (
    NO_IPSEC,
    NO_IPSEC_V1,
    UDP_ESP_TRANSPORT,
    UDP_ESP_TUNNEL,
    OffloadCapabilitiesV1,
    TaskOffload,
)
from vnic.ndis.netbuffer import OffloadHandle, ReceiveInfo, TransmitInfo
from vnic.ndis.oid import OidVersion, TrafficFilter
from vnic.ndis.status import CryptoStatus, NdisStatus

PAYLOAD = udp(b"of the older kind")
DES3 = esp("3des-cbc", "hmac-sha1-96")
AUTH = ah("hmac-md5-96")
BUNDLE = (DES3, AUTH)
INSIDE = esp("des-cbc", "hmac-md5-96", spi=0x4444)
Sas = Sa | tuple[Sa, ...]
V1 = OidVersion.V1
ANY = bytes(4)
ALL_ONES = b"\xff\xff\xff\xff"


def add(nic: Nic, sas: Sas, ends: tuple[bytes, bytes] = V4, **members: Any) -> OffloadHandle:
    return nic.add(sas, ends, version=V1, **members)


def bare(handle: int, tunnel: int = 0) -> TransmitInfo:
    """What a V1 driver says of a frame: handles and nothing else."""
    return TransmitInfo(OffloadHandle(handle), OffloadHandle(tunnel), 0, 0, 0, 0)


def wire(sas: Sas, payload: bytes = PAYLOAD, next_header: int = UDP, **options: Any) -> bytes:
    """A frame that a peer sealed."""
    peer = Nic()
    one = framed(sas, payload, next_header, **options)
    return sealed(peer, sas, one, peer.add(sas, options.get("addresses", V4)))


def configured(nic: Nic, **members: Any) -> Nic:
    """The NIC with other V1 capabilities switched on than all."""
    current = TaskOffload(NO_IPSEC, OffloadCapabilitiesV1(**members))
    nic.adapter._sender.configure(current)
    nic.adapter._receiver.configure(current)
    return nic


# Send


def scapy_sa(sa: Sa, tunnel: tuple[bytes, bytes] | None = None) -> SecurityAssociation:
    names = {"hmac-sha1-96": "HMAC-SHA1-96", "hmac-md5-96": "HMAC-MD5-96", "": "NULL"}
    arguments: dict[str, Any] = {}
    if sa.integrity:
        arguments |= {"auth_algo": names[sa.integrity], "auth_key": sa.integrity_key.reveal()}
    if tunnel:
        arguments["tunnel_header"] = IP(ip(tunnel, UDP, b""))
    if sa is AUTH:
        return SecurityAssociation(SCAPY_AH, sa.spi, **arguments)
    cipher = {"3des-cbc": "3DES", "des-cbc": "DES", "null": "NULL"}[sa.encryption]
    arguments |= {"crypt_algo": cipher, "crypt_key": sa.encryption_key.reveal() or None}
    return SecurityAssociation(SCAPY_ESP, sa.spi, **arguments)


@pytest.mark.rule(12)
@pytest.mark.rule(169)
@pytest.mark.parametrize("sas", [DES3, AUTH, BUNDLE], ids=["esp", "ah", "bundle"])
def test_nic_finds_the_headers_of_a_v1_send_itself(sas: Sas) -> None:
    nic = Nic()
    one = framed(sas, PAYLOAD)
    buffer = nic.seal(one.frame, bare(add(nic, sas)))
    assert buffer.status is NdisStatus.SUCCESS
    packet = IP(bytes(buffer.frame[14:]))
    for sa in reversed(sas if isinstance(sas, tuple) else (sas,)):
        packet = IP(bytes(scapy_sa(sa).decrypt(packet)))
    assert bytes(packet.payload) == PAYLOAD


@pytest.mark.rule(12)
def test_header_information_of_a_v1_send_is_not_looked_at() -> None:
    nic = Nic()
    one = framed(DES3, PAYLOAD)
    info = transmit(add(nic, DES3), ah_offset=400, esp_offset=800, next_header=99, pad_length=77)
    assert nic.seal(one.frame, info).status is NdisStatus.SUCCESS


def test_v1_headers_are_found_behind_ipv4_options() -> None:
    nic, peer = Nic(), Nic()
    packet = ipv4(*V4, 50, DES3.wrap(PAYLOAD, UDP), options=b"\x94\x04\x00\x00")
    buffer = nic.seal(ethernet(packet), bare(add(nic, DES3)))
    assert buffer.status is NdisStatus.SUCCESS
    peer.add(DES3, inbound=True)
    info, opened = peer.open(bytes(buffer.frame))
    assert info is not None
    assert info.verified
    assert PAYLOAD in opened


def two_portions(transport: Sas = INSIDE, tunnel: Sas = DES3) -> tuple[Framed, Framed]:
    inside = framed(transport, PAYLOAD, UDP, INNER_V4)
    return inside, framed(tunnel, inside.frame[14:], 4)


def test_next_offload_handle_names_the_tunnel_portion() -> None:
    # NextOffloadHandle of NDIS 5 (sheet §6); scapy peels both portions.
    nic = Nic()
    _, around = two_portions()
    handles = add(nic, INSIDE, INNER_V4), add(nic, DES3, portion=Mode.TUNNEL)
    buffer = nic.seal(around.frame, bare(*handles))
    assert buffer.status is NdisStatus.SUCCESS
    packet = scapy_sa(DES3, V4).decrypt(IP(bytes(buffer.frame[14:])))
    packet = scapy_sa(INSIDE).decrypt(IP(bytes(packet)))
    assert bytes(packet.payload) == PAYLOAD


@pytest.mark.rule(165)
def test_v1_handle_that_names_nothing_fails_the_send() -> None:
    nic = Nic()
    _, around = two_portions()
    inside, tunnel = add(nic, INSIDE, INNER_V4), add(nic, DES3, portion=Mode.TUNNEL)
    for handles in ((70, 0), (inside, 70), (tunnel, inside), (0, tunnel)):
        assert nic.seal(around.frame, bare(*handles)).status is NdisStatus.FAILURE


@pytest.mark.rule(164)
def test_v1_handle_zero_leaves_the_frame_as_it_is() -> None:
    nic = Nic()
    one = framed(DES3, PAYLOAD)
    buffer = nic.seal(one.frame, bare(NO_HANDLE))
    assert (buffer.status, buffer.frame) == (NdisStatus.SUCCESS, one.frame)


@pytest.mark.rule(16)
def test_v1_fragment_fails_the_send() -> None:
    nic = Nic()
    frame = ethernet(ipv4(*V4, 50, DES3.wrap(PAYLOAD, UDP), fragment=0x2000))
    assert nic.seal(frame, bare(add(nic, DES3))).status is NdisStatus.FAILURE


# What is switched on, by direction and by mode

SWITCHES: list[tuple[dict[str, bool], Sas, Mode, str]] = [
    ({"esp_send": False}, DES3, Mode.TRANSPORT, "receive"),
    ({"esp_receive": False}, DES3, Mode.TRANSPORT, "send"),
    ({"ah_send": False}, AUTH, Mode.TRANSPORT, "receive"),
    ({"ah_receive": False}, AUTH, Mode.TRANSPORT, "send"),
    ({"esp_transport": False}, DES3, Mode.TRANSPORT, ""),
    ({"esp_transport": False}, DES3, Mode.TUNNEL, "both"),
    ({"esp_tunnel": False}, DES3, Mode.TUNNEL, ""),
    ({"esp_tunnel": False}, DES3, Mode.TRANSPORT, "both"),
    ({"ah_transport": False}, AUTH, Mode.TRANSPORT, ""),
    ({"ah_tunnel": False}, AUTH, Mode.TUNNEL, ""),
    ({"ah_transport": False}, DES3, Mode.TRANSPORT, "both"),
    ({"ah_send": False}, BUNDLE, Mode.TRANSPORT, "receive"),
    ({"esp_receive": False}, BUNDLE, Mode.TRANSPORT, "send"),
    ({"ah_tunnel": False}, BUNDLE, Mode.TUNNEL, ""),
    ({"ah_esp_combined": False}, BUNDLE, Mode.TRANSPORT, ""),
    ({"ah_esp_combined": False}, DES3, Mode.TRANSPORT, "both"),
    ({"encapsulation": 0}, DES3, Mode.TRANSPORT, ""),
    ({}, BUNDLE, Mode.TUNNEL, "both"),
]


@pytest.mark.rule(24)
@pytest.mark.rule(172)
@pytest.mark.rule(175)
@pytest.mark.parametrize(
    ("off", "sas", "portion", "works"),
    SWITCHES,
    ids=[f"{next(iter(off), 'all on')} {portion.value} {works}" for off, _, portion, works in SWITCHES],
)
def test_v1_switches_count_by_direction_and_mode(
    off: dict[str, Any], sas: Sas, portion: Mode, works: str
) -> None:
    nic = Nic()
    text, protocol = (PAYLOAD, UDP) if portion is Mode.TRANSPORT else (ip(INNER_V4, UDP, PAYLOAD), 4)
    one = framed(sas, text, protocol)
    frame = wire(sas, text, protocol)
    handle = add(nic, sas, portion=portion)
    add(nic, sas, inbound=True, portion=portion)
    configured(nic, **off)
    sends = nic.seal(one.frame, bare(handle)).status is NdisStatus.SUCCESS
    info, after = nic.open(frame)
    assert (sends, info is not None) == (works in ("send", "both"), works in ("receive", "both"))
    if info is None:
        assert after == frame


@pytest.mark.rule(24)
@pytest.mark.rule(175)
def test_v1_options_and_two_portions_need_their_capability() -> None:
    options = ethernet(ipv4(*V4, 50, wire(DES3)[34:], options=b"\x01" * 4))
    _, around = two_portions()
    packet = wire(INSIDE, addresses=INNER_V4)[14:]
    nested = wire(DES3, packet, 4)
    for able in (True, False):
        nic = Nic()
        handles = add(nic, INSIDE, INNER_V4), add(nic, DES3, portion=Mode.TUNNEL)
        add(nic, DES3, inbound=True, portion=Mode.TUNNEL)
        add(nic, INSIDE, INNER_V4, inbound=True)
        configured(nic, transport_tunnel_combined=able, ipv4_options=able)
        assert (nic.open(options)[0] is not None) is able
        assert (nic.open(nested)[0] is not None) is able
        assert (nic.seal(around.frame, bare(*handles)).status is NdisStatus.SUCCESS) is able
        framed_options = ethernet(
            ipv4(*V4, 50, DES3.wrap(ip(INNER_V4, UDP, PAYLOAD), 4), options=b"\x01" * 4)
        )
        sent = nic.seal(framed_options, bare(handles[1]))
        assert (sent.status is NdisStatus.SUCCESS) is able


@pytest.mark.rule(21)
def test_each_generation_is_switched_on_by_its_own_capabilities() -> None:
    nic = Nic()
    old, new = replace(DES3, spi=0x1111), replace(DES3, spi=0x2222, label="new")
    handles = add(nic, old), nic.add(new)
    add(nic, old, inbound=True)
    nic.add(new, inbound=True)
    both = (framed(old, PAYLOAD), framed(new, PAYLOAD))
    frames = (wire(old), wire(new))
    for v1_on, v2_on in ((True, True), (True, False), (False, True), (False, False)):
        part = TaskOffload()
        current = TaskOffload(part.ipsec_v2 if v2_on else NO_IPSEC, part.ipsec_v1 if v1_on else NO_IPSEC_V1)
        nic.adapter._sender.configure(current)
        nic.adapter._receiver.configure(current)
        sends = [
            nic.seal(one.frame, one.info(handle)).status is NdisStatus.SUCCESS
            for one, handle in zip(both, handles, strict=True)
        ]
        assert sends == [v1_on, v2_on]
        assert [nic.open(frame)[0] is not None for frame in frames] == [v1_on, v2_on]


# Receive: every status and every combination of flags


@pytest.mark.rule(187)
def test_v1_packet_that_is_not_processed_has_both_flags_clear_and_status_success() -> None:
    nic = Nic()
    add(nic, DES3, inbound=True)
    for frame in (wire(replace(DES3, spi=0x9999)), ethernet(ip(V4, UDP, PAYLOAD))):
        info, after = nic.open(frame)
        # No report is the slot with all bits zero: both flags clear, CRYPTO_SUCCESS.
        assert info is None
        assert after == frame


@pytest.mark.rule(185)
@pytest.mark.rule(186)
@pytest.mark.parametrize("portion", list(Mode))
@pytest.mark.parametrize(
    ("sa", "statuses"),
    [
        (DES3, (CryptoStatus.TRANSPORT_ESP_AUTH_FAILED, CryptoStatus.TUNNEL_ESP_AUTH_FAILED)),
        (AUTH, (CryptoStatus.TRANSPORT_AH_AUTH_FAILED, CryptoStatus.TUNNEL_AH_AUTH_FAILED)),
    ],
    ids=["esp", "ah"],
)
def test_v1_packet_that_fails_is_indicated_with_the_status_of_its_portion(
    sa: Sa, statuses: tuple[CryptoStatus, CryptoStatus], portion: Mode
) -> None:
    nic = Nic()
    add(nic, sa, inbound=True, portion=portion)
    frame = wire(replace(sa, label="else"))
    info, after = nic.open(frame)
    assert info == ReceiveInfo(True, False, statuses[portion is Mode.TUNNEL])
    assert after == frame


@pytest.mark.rule(180)
@pytest.mark.rule(186)
def test_v1_status_for_length_protocol_and_the_rest() -> None:
    nic = Nic()
    add(nic, DES3, inbound=True)
    add(nic, (replace(DES3, spi=0x5555), AUTH), inbound=True)
    short = wire(DES3)
    short = ethernet(ip(V4, 50, short[34 : 34 + 20]))
    assert nic.open(short)[0] == ReceiveInfo(True, False, CryptoStatus.INVALID_PACKET_SYNTAX)
    alone = wire(AUTH)
    assert nic.open(alone)[0] == ReceiveInfo(True, False, CryptoStatus.INVALID_PROTOCOL)
    around = wire(DES3, AUTH.wrap(PAYLOAD, UDP), 51)
    assert nic.open(around)[0] == ReceiveInfo(True, False, CryptoStatus.GENERIC_ERROR)


@pytest.mark.rule(177)
@pytest.mark.rule(178)
@pytest.mark.rule(179)
@pytest.mark.parametrize("bad", ["", "inside", "outside"])
def test_v1_flags_of_two_portions(bad: str) -> None:
    nic = Nic()
    tunnel = replace(DES3, label="else") if bad == "outside" else DES3
    inside = replace(INSIDE, label="else") if bad == "inside" else INSIDE
    frame = wire(tunnel, wire(inside, addresses=INNER_V4)[14:], 4)
    add(nic, DES3, inbound=True, portion=Mode.TUNNEL)
    add(nic, INSIDE, INNER_V4, inbound=True)
    info, after = nic.open(frame)
    assert info is not None
    expected = {
        "": (True, True, CryptoStatus.SUCCESS),
        "inside": (True, True, CryptoStatus.TRANSPORT_ESP_AUTH_FAILED),
        "outside": (True, False, CryptoStatus.TUNNEL_ESP_AUTH_FAILED),
    }[bad]
    assert info[:3] == expected
    assert (PAYLOAD in after) is (bad == "")


@pytest.mark.rule(177)
def test_v1_flags_of_a_tunnel_whose_inside_has_no_sa() -> None:
    nic = Nic()
    add(nic, DES3, inbound=True, portion=Mode.TUNNEL)
    info, _ = nic.open(wire(DES3, wire(INSIDE, addresses=INNER_V4)[14:], 4))
    assert info is not None
    assert info[:3] == (True, False, CryptoStatus.SUCCESS)


@pytest.mark.rule(179)
def test_v1_bundle_is_one_payload() -> None:
    nic = Nic()
    add(nic, BUNDLE, inbound=True)
    info, opened = nic.open(wire(BUNDLE))
    assert info is not None
    assert info[:3] == (True, False, CryptoStatus.SUCCESS)
    assert PAYLOAD in opened


PAIRS = [
    (auth, integrity)
    for auth in ("hmac-md5-96", "hmac-sha1-96")
    for integrity in ("hmac-md5-96", "hmac-sha1-96", "")
]


@pytest.mark.rule(14)
@pytest.mark.parametrize("cipher", ["des-cbc", "3des-cbc"])
@pytest.mark.parametrize(("auth", "integrity"), PAIRS)
def test_all_six_pairs_of_ah_and_esp_integrity(auth: str, integrity: str, cipher: str) -> None:
    sas = (esp(cipher, integrity), ah(auth))
    nic, peer = Nic(), Nic()
    one = framed(sas, PAYLOAD)
    buffer = nic.seal(one.frame, bare(add(nic, sas)))
    assert buffer.status is NdisStatus.SUCCESS
    add(peer, sas, inbound=True)
    info, opened = peer.open(bytes(buffer.frame))
    assert info is not None
    assert info.verified
    assert PAYLOAD in opened


# SaDeleteReq


@pytest.mark.rule(135)
@pytest.mark.rule(183)
@pytest.mark.parametrize("version", list(OidVersion))
def test_sa_delete_req_does_not_hang_on_crypto_done(version: OidVersion) -> None:
    nic = Nic()
    handle = nic.add(DES3, inbound=True, version=version)
    bundle = nic.adapter._table.get(handle)
    assert bundle is not None
    bundle.sa_delete_req = True  # type: ignore[union-attr]
    good, bad = wire(DES3), wire(replace(DES3, label="else"))
    beyond = ethernet(ipv4(*V4, 50, good[34:], options=b"\x01" * 4))
    assert nic.open(good)[0] == ReceiveInfo(True, False, CryptoStatus.SUCCESS, True, True, UDP, 5)
    assert nic.open(bad)[0] == ReceiveInfo(True, False, CryptoStatus.TRANSPORT_ESP_AUTH_FAILED, True)
    current = nic.adapter.current
    restricted = replace(
        current,
        ipsec_v1=replace(current.ipsec_v1, ipv4_options=False),
        ipsec_v2=replace(current.ipsec_v2, ipv4_options=False),
    )
    nic.adapter._receiver.configure(restricted)
    info, after = nic.open(beyond)
    assert info == ReceiveInfo(False, False, CryptoStatus.SUCCESS, True)
    assert after == beyond


@pytest.mark.rule(117)
@pytest.mark.rule(136)
def test_sa_that_is_to_be_deleted_works_until_it_is() -> None:
    nic = Nic()
    handle = add(nic, DES3, inbound=True)
    nic.adapter._table.get(handle).sa_delete_req = True  # type: ignore[union-attr]
    for _ in range(3):
        info, opened = nic.open(wire(DES3))
        assert info is not None
        assert info.verified
        assert info.sa_delete_req
        assert PAYLOAD in opened


@pytest.mark.rule(151)
@pytest.mark.parametrize("version", list(OidVersion))
@pytest.mark.parametrize("sas", [DES3, AUTH, BUNDLE], ids=["esp", "ah", "bundle"])
def test_marked_sa_is_not_used(sas: Sas, version: OidVersion) -> None:
    nic = Nic()
    handle = nic.add(sas, inbound=True, version=version)
    bundle = nic.adapter._table.get(handle)
    bundle.marked = True  # type: ignore[union-attr]
    bundle.sa_delete_req = True  # type: ignore[union-attr]
    frame = wire(sas)
    assert nic.open(frame) == (None, frame)
    bundle.marked = False  # type: ignore[union-attr]
    info, _ = nic.open(frame)
    assert info is not None
    assert info.verified


# The filter


def traffic(**members: Any) -> TrafficFilter:
    nothing = TrafficFilter(ANY, ANY, ANY, ANY)
    return replace(nothing, **members)


def passes(wanted: TrafficFilter, frame: bytes, *, portion: Mode = Mode.TRANSPORT) -> bool:
    nic = Nic()
    add(nic, DES3, inbound=True, portion=portion, traffic=wanted)
    info, after = nic.open(frame)
    assert info is not None
    if not info.verified:
        assert info == ReceiveInfo(True, False, CryptoStatus.INVALID_PROTOCOL)
        assert after == frame
    return info.verified


@pytest.mark.rule(125)
@pytest.mark.rule(126)
@pytest.mark.rule(127)
def test_filter_of_a_transport_sa_is_held_against_what_it_carries() -> None:
    frame = wire(DES3)
    source, destination = V4
    for wanted, good in (
        (traffic(), True),
        (traffic(protocol=UDP), True),
        (traffic(protocol=6), False),
        (traffic(source_port=5000), True),
        (traffic(source_port=5001), False),
        (traffic(destination_port=6000), True),
        (traffic(destination_port=5000), False),
        (traffic(protocol=UDP, source_port=5000, destination_port=6000), True),
        (traffic(source=source, source_mask=ALL_ONES), True),
        (traffic(source=destination, source_mask=ALL_ONES), False),
        (traffic(source=source[:3] + b"\x00", source_mask=ALL_ONES[:3] + b"\x00"), True),
        (traffic(destination=destination, destination_mask=ALL_ONES), True),
        (traffic(destination=source, destination_mask=ALL_ONES), False),
    ):
        assert passes(wanted, frame) is good, wanted


@pytest.mark.rule(125)
@pytest.mark.rule(128)
def test_filter_of_a_tunnel_sa_is_held_against_the_packet_inside() -> None:
    inner = ip(INNER_V4, 6, tcp(b"inside"))
    frame = wire(DES3, inner, 4)
    source, destination = INNER_V4
    for wanted, good in (
        (traffic(protocol=6, source_port=5000, destination_port=443), True),
        (traffic(protocol=UDP), False),
        (traffic(source=source, source_mask=ALL_ONES), True),
        (traffic(source=V4[0], source_mask=ALL_ONES), False),
        (traffic(destination=destination, destination_mask=ALL_ONES), True),
        (traffic(destination=V4[1], destination_mask=ALL_ONES), False),
    ):
        assert passes(wanted, frame, portion=Mode.TUNNEL) is good, wanted
    assert not passes(traffic(protocol=6), wire(DES3, tcp(b""), 6), portion=Mode.TUNNEL)


def test_filter_does_not_judge_what_it_cannot_see() -> None:
    hidden = wire(INSIDE, addresses=INNER_V4)[14:]
    fragment = ipv4(*INNER_V4, 6, tcp(b"x"), fragment=0x2001)
    other_family = traffic(source=INNER_V4[0], source_mask=ALL_ONES)
    assert passes(traffic(protocol=6), wire(DES3, hidden, 4), portion=Mode.TUNNEL)
    assert passes(traffic(source_port=5000), wire(DES3, fragment, 4), portion=Mode.TUNNEL)
    wrapped = ip(INNER_V4, UDP, nat_traversal(hidden[20:]))
    assert passes(traffic(protocol=6), wire(DES3, wrapped, 4), portion=Mode.TUNNEL)
    not_esp = ip(INNER_V4, UDP, udp(hidden[20:]))
    assert not passes(traffic(protocol=6), wire(DES3, not_esp, 4), portion=Mode.TUNNEL)
    # ICMP has no ports, whatever its bytes look like, and three bytes show none.
    assert not passes(traffic(source_port=5000), wire(DES3, PAYLOAD, 1))
    assert passes(traffic(source_port=5000), wire(DES3, PAYLOAD[:4], UDP))
    assert not passes(traffic(source_port=5000), wire(DES3, PAYLOAD[:3], UDP))
    alike = b"\x60" + bytes(7) + INNER_V4[0] + bytes(28)
    wanted = traffic(source=INNER_V4[0], source_mask=ALL_ONES)
    assert not passes(wanted, wire(DES3, alike, 41), portion=Mode.TUNNEL)
    assert not passes(other_family, wire(DES3, b"\x60" + bytes(39), 41), portion=Mode.TUNNEL)


# UDP-ESP

UDP_FILTER = traffic(protocol=UDP)


def udp_nic(
    *, udp_esp: int = UDP_ESP_TRANSPORT, wanted: TrafficFilter = UDP_FILTER, portion: Mode = Mode.TRANSPORT
) -> Nic:
    nic = Nic()
    add(nic, DES3, inbound=True, udp_esp=udp_esp, traffic=wanted, portion=portion)
    return nic


def in_udp(payload: bytes = PAYLOAD, next_header: int = UDP, sport: int = 4500) -> bytes:
    """A UDP-ESP frame from scapy; the payload goes in as an IP packet's."""
    sa = scapy_sa(DES3)
    sa.nat_t_header = ScapyUdp(sport=sport, dport=4500)
    return ethernet(bytes(sa.encrypt(IP(ip(V4, next_header, payload)), seq_num=3)))


@pytest.mark.rule(138)
@pytest.mark.rule(139)
@pytest.mark.rule(142)
@pytest.mark.rule(155)
@pytest.mark.rule(156)
def test_v1_udp_esp_needs_its_parser_entry() -> None:
    nic = udp_nic()
    frame = in_udp()
    assert nic.open(frame) == (None, frame)
    entries = nic.adapter._table.parser_entries
    handle, _ = entries.add(1, 4500)
    info, opened = nic.open(frame)
    assert info is not None
    assert info.verified
    assert PAYLOAD in opened
    entries.remove(handle)
    assert nic.open(frame) == (None, frame)


@pytest.mark.rule(151)
def test_marked_parser_entry_is_not_used() -> None:
    nic = udp_nic()
    entries = nic.adapter._table.parser_entries
    handle, _ = entries.add(1, 4500)
    entries.mark(handle)
    frame = in_udp()
    assert nic.open(frame) == (None, frame)


@pytest.mark.rule(142)
def test_filter_of_udp_esp_is_about_the_udp_around() -> None:
    frame = in_udp(tcp(b"inside"), 6)
    for wanted, good in (
        (UDP_FILTER, True),
        (traffic(protocol=UDP, destination_port=4500), True),
        (traffic(protocol=UDP, source_port=4500), True),
        (traffic(protocol=UDP, source_port=4501), False),
        (traffic(protocol=6), False),
    ):
        nic = udp_nic(wanted=wanted)
        nic.adapter._table.parser_entries.add(1, 4500)
        info, _ = nic.open(frame)
        assert info is not None
        assert info.verified is good


@pytest.mark.parametrize("tunnel_in_udp", [True, False])
def test_v1_sas_name_no_subtype_and_open_all_forms_of_their_mode(tunnel_in_udp: bool) -> None:
    nic = Nic()
    nic.adapter._table.parser_entries.add(1, 4500)
    if tunnel_in_udp:
        add(nic, DES3, inbound=True, portion=Mode.TUNNEL, udp_esp=UDP_ESP_TUNNEL)
        add(nic, INSIDE, INNER_V4, inbound=True)
        body = wire(DES3, wire(INSIDE, addresses=INNER_V4)[14:], 4)[34:]
        frame = ethernet(ip(V4, UDP, nat_traversal(body)))
    else:
        add(nic, DES3, inbound=True, portion=Mode.TUNNEL)
        add(nic, INSIDE, INNER_V4, inbound=True, udp_esp=UDP_ESP_TRANSPORT)
        inner = ip(INNER_V4, UDP, nat_traversal(wire(INSIDE, addresses=INNER_V4)[34:]))
        frame = wire(DES3, inner, 4)
    info, opened = nic.open(frame)
    assert info is not None
    assert (info.verified, info.next_crypto_done) == (True, True)
    assert PAYLOAD in opened


@pytest.mark.rule(175)
def test_v1_form_that_is_switched_off_is_left_sealed() -> None:
    inner = ip(INNER_V4, UDP, nat_traversal(wire(INSIDE, addresses=INNER_V4)[34:]))
    frame = wire(DES3, inner, 4)
    for subtypes, both in ((0xF, True), (0x7, False)):
        nic = Nic()
        nic.adapter._table.parser_entries.add(1, 4500)
        add(nic, DES3, inbound=True, portion=Mode.TUNNEL)
        add(nic, INSIDE, INNER_V4, inbound=True, udp_esp=UDP_ESP_TRANSPORT)
        info, opened = configured(nic, udp_esp=subtypes).open(frame)
        assert info is not None
        assert info.verified
        assert info.next_crypto_done is both is (PAYLOAD in opened)


def test_v1_udp_esp_is_sealed_without_a_parser_entry() -> None:
    nic = Nic()
    one = framed(DES3, PAYLOAD)
    frame = ethernet(ip(V4, UDP, nat_traversal(one.frame[34:])))
    buffer = nic.seal(frame, bare(add(nic, DES3, udp_esp=UDP_ESP_TRANSPORT)))
    assert buffer.status is NdisStatus.SUCCESS
    oracle = scapy_sa(DES3)
    oracle.nat_t_header = ScapyUdp(sport=4500, dport=4500)
    assert bytes(oracle.decrypt(IP(bytes(buffer.frame[14:]))).payload) == PAYLOAD
