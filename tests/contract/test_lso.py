"""Large sends with and without IPsec (sheet §8, R188-R200). Segments are expected as scapy builds them."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nic_frames import (
    AH_SHA256,
    CBC_SHA1,
    GCM,
    INNER_V4,
    NO_HANDLE,
    TCP,
    UDP,
    V4,
    V6,
    Nic,
    Sa,
    ah,
    checksum,
    esp,
    ethernet,
    framed,
    ipv4,
    ipv6,
    suite_id,
    tcp,
)
from scapy.layers.inet import IP
from scapy.layers.inet import TCP as ScapyTcp
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import AH as SCAPY_AH
from scapy.layers.ipsec import ESP as SCAPY_ESP
from scapy.layers.ipsec import SecurityAssociation

from vnic.ipsec.association import Mode
from vnic.ndis.capabilities import (
    NO_LARGE_SEND,
    UDP_ESP_TRANSPORT,
    LargeSendCapabilities,
    OffloadCapabilities,
    TaskOffload,
)
from vnic.ndis.netbuffer import LargeSend, NetBufferList, OffloadHandle, TransmitInfo
from vnic.ndis.oid import OidVersion, Operation
from vnic.ndis.status import NdisStatus
from vnic.packet.ip import parse_ip
from vnic.transport.segmentation import segments as cut_by_the_transport

MSS = 100
PAYLOAD = random.Random(5).randbytes(3 * MSS + 41)
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
Ends = tuple[bytes, bytes]
FAMILIES = pytest.mark.parametrize("ends", [V4, V6], ids=["v4", "v6"])
VERSIONS = pytest.mark.parametrize("version", [1, 2], ids=["lsov1", "lsov2"])


def pseudo_sum(ends: Ends) -> int:
    """What the driver leaves in the TCP checksum field: the sum of the pseudo-header without length."""
    data = ends[0] + ends[1] + struct.pack(">HH", 0, TCP)
    return 0xFFFF - checksum(data)


def large(
    payload: bytes = PAYLOAD,
    ends: Ends = V4,
    sas: tuple[Sa, ...] = (),
    *,
    version: int = 2,
    flags: int = ACK,
    options: bytes = b"",
    ip_options: bytes = b"",
    identification: int = 0x1234,
    sequence: int = 1,
    tcp_sequence: int = 0x10000000,
    padding: bytes = b"",
    udp_header: bool = False,
) -> tuple[bytes, int, int, int]:
    """A large packet, and the offsets of AH, ESP and TCP from the IP header (0: absent)."""
    body = tcp(payload, flags=flags, sequence=tcp_sequence, options=options, checksum=pseudo_sum(ends))
    length = (20 if len(ends[0]) == 4 else 40) + len(ip_options)
    protocol = TCP
    packet = body + padding
    ah_length = esp_length = 0
    for sa in sas:
        if sa.operation is Operation.ESP:
            packet = struct.pack(">II", sa.spi, sequence) + bytes(sa.iv_length) + packet
            esp_length = sa.header_length
            protocol = 50
        else:
            packet = sa.wrap(packet, protocol, sequence)
            ah_length = packet[1] * 4 + 8
            protocol = 51
    if udp_header:
        packet = struct.pack(">HHHH", 4500, 4500, 0, 0) + packet
        protocol = UDP
    if len(ends[0]) == 4:
        whole = ipv4(*ends, protocol, packet[:1000], options=ip_options, identification=identification)
        header = bytearray(whole[:length])
        total = length + len(packet) if version == 1 else 0
        header[2:4] = total.to_bytes(2, "big")
        header[10:12] = bytes(2)
    else:
        header = bytearray(ipv6(*ends, protocol, b""))
        if ip_options:
            header[6] = 60
            header += bytes((protocol,)) + ip_options[1:]
    ah_at = length if ah_length else 0
    esp_at = length + ah_length + 8 * udp_header if esp_length else 0
    tcp_at = length + ah_length + esp_length + 8 * udp_header
    return ethernet(bytes(header) + packet), ah_at, esp_at, tcp_at


def request(
    handle: int = 0,
    *,
    ah_at: int = 0,
    esp_at: int = 0,
    version: int = 2,
    v6: bool = False,
    mss: int = MSS,
    pad_length: int = 0,
    next_header: int = TCP,
    tcp_at: int = 0,
    tunnel: int = 0,
) -> TransmitInfo:
    return TransmitInfo(
        OffloadHandle(handle),
        OffloadHandle(tunnel),
        next_header,
        pad_length,
        ah_at,
        esp_at,
        LargeSend(mss, tcp_at, version, v6),
    )


def expected(
    payload: bytes,
    ends: Ends,
    number: int,
    *,
    last: bool,
    version: int = 2,
    flags: int = ACK,
    mss: int = MSS,
    identification: int = 0x1234,
    tcp_sequence: int = 0x10000000,
    tcp_options: list[Any] | None = None,
) -> bytes:
    """Segment `number` as an IP packet without IPsec, built by scapy, checksums and all."""
    now = flags & ~(FIN | PSH) if not last else flags
    if number:
        now &= ~CWR
    segment = ScapyTcp(
        sport=5000,
        dport=443,
        seq=(tcp_sequence + number * mss) & 0xFFFFFFFF,
        ack=77,
        flags=now,
        window=512,
        options=tcp_options or [],
    )
    if len(ends[0]) == 4:
        mask = 0xFFFF if version == 1 else 0x7FFF
        header = IP(tos=0x2C, id=(identification + number) & mask, flags="DF", ttl=63)
        header.src, header.dst = ".".join(map(str, ends[0])), ".".join(map(str, ends[1]))
        return bytes(header / segment / payload)
    source, destination = (IPv6(ipv6(*ends, 59, b"")).src, IPv6(ipv6(*ends, 59, b"")).dst)
    outer = IPv6(tc=0x2C, fl=0xABCDE, hlim=63, src=source, dst=destination)
    return bytes(outer / segment / payload)


def pieces(payload: bytes, mss: int = MSS) -> list[bytes]:
    return [payload[at : at + mss] for at in range(0, len(payload), mss)]


def refused(nic: Nic, frame: bytes, info: TransmitInfo) -> bool:
    """Whether a large send fails whole, with a reason."""
    one, wire = nic.transmit([frame], info)
    assert (one.status is NdisStatus.FAILURE) == (wire == []) == bool(one.reason)
    return one.status is NdisStatus.FAILURE


# Without IPsec


@pytest.mark.rule(166)
@pytest.mark.rule(193)
@pytest.mark.rule(194)
@FAMILIES
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [MSS + 1, 2 * MSS, 3 * MSS + 41, 40 * MSS])
def test_large_packet_becomes_the_segments_that_scapy_builds(version: int, ends: Ends, size: int) -> None:
    if version == 1 and ends is V6:
        return
    payload = random.Random(size).randbytes(size)
    flags = ACK | PSH | FIN
    frame, _, _, tcp_at = large(payload, ends, version=version, flags=flags)
    one, wire = Nic().transmit([frame], request(version=version, v6=ends is V6, tcp_at=14 + tcp_at))
    assert one.status is NdisStatus.SUCCESS
    cut = pieces(payload)
    assert [packet[14:].hex() for packet in wire] == [
        expected(piece, ends, number, last=number == len(cut) - 1, version=version, flags=flags).hex()
        for number, piece in enumerate(cut)
    ]
    assert all(packet[:14] == frame[:14] for packet in wire)


@FAMILIES
def test_segments_are_those_of_the_inline_transport(ends: Ends) -> None:
    # A second opinion: the inline transport cuts superframes of the host with code of its own.
    options = bytes.fromhex("0101080a0000000100000002")
    version = 1 if ends is V4 else 2
    frame, _, _, _ = large(ends=ends, version=1, flags=ACK | PSH | FIN | CWR, options=options)
    whole = bytearray(frame)
    if ends is V6:
        whole[18:20] = (len(frame) - 54).to_bytes(2, "big")
    header = parse_ip(whole, 14)
    theirs = [b"".join(parts) for parts in cut_by_the_transport(whole, header, 32, MSS)]
    _, ours = Nic().transmit([frame], request(version=version, v6=ends is V6))
    assert [packet[14:] for packet in ours] == theirs


@pytest.mark.rule(195)
def test_fin_and_psh_are_on_the_last_segment_and_cwr_on_the_first() -> None:
    frame, _, _, tcp_at = large(flags=ACK | FIN | PSH | CWR | ECE)
    _, wire = Nic().transmit([frame], request())
    flags = [packet[14 + tcp_at + 13] for packet in wire]
    assert flags == [ACK | CWR | ECE, ACK | ECE, ACK | ECE, ACK | ECE | FIN | PSH]


@pytest.mark.rule(196)
@pytest.mark.parametrize(
    ("version", "first", "identifications"),
    [
        (2, 0x7FFE, [0x7FFE, 0x7FFF, 0x0000, 0x0001]),
        (2, 0xFFFF, [0x7FFF, 0x0000, 0x0001, 0x0002]),
        (1, 0x7FFE, [0x7FFE, 0x7FFF, 0x8000, 0x8001]),
        (1, 0xFFFE, [0xFFFE, 0xFFFF, 0x0000, 0x0001]),
    ],
)
def test_identifications_of_lsov2_stay_in_the_lower_half(
    version: int, first: int, identifications: list[int]
) -> None:
    frame, _, _, _ = large(version=version, identification=first)
    _, wire = Nic().transmit([frame], request(version=version))
    assert [IP(packet[14:]).id for packet in wire] == identifications
    for packet in wire:
        assert checksum(packet[14:34]) == 0


def test_tcp_sequence_numbers_wrap() -> None:
    frame, _, _, tcp_at = large(tcp_sequence=0xFFFFFF9C)
    _, wire = Nic().transmit([frame], request())
    numbers = [int.from_bytes(packet[14 + tcp_at + 4 : 14 + tcp_at + 8], "big") for packet in wire]
    assert numbers == [0xFFFFFF9C, 0, 100, 200]


def test_options_and_extension_headers_are_on_every_segment() -> None:
    options = b"\x94\x04\x00\x00"
    frame, _, _, _ = large(ip_options=options)
    _, wire = Nic().transmit([frame], request())
    assert len(wire) == 4
    for packet in wire:
        assert packet[34:38] == options
        assert checksum(packet[14:38]) == 0
        assert IP(packet[14:]).len == len(packet) - 14
    extension = bytes((0, 0, 1, 4, 0, 0, 0, 0))
    frame, _, _, _ = large(ends=V6, ip_options=extension)
    _, wire = Nic().transmit([frame], request(v6=True))
    for packet in wire:
        assert packet[54:62] == bytes((TCP,)) + extension[1:]
        assert IPv6(packet[14:]).plen == len(packet) - 54
    whole = [expected(piece, V6, n, last=n == 3) for n, piece in enumerate(pieces(PAYLOAD))]
    assert [packet[62:].hex() for packet in wire] == [packet[40:].hex() for packet in whole]


@pytest.mark.parametrize(("length", "good"), [(1000, True), (1016, False), (1032, False)])
def test_headers_that_no_tcp_header_offset_can_reach_behind_fail(length: int, good: bool) -> None:
    padding = b"".join(bytes((1, 198)) + bytes(198) for _ in range(5)) + bytes((1, length - 1004 & 0xFF))
    extension = (bytes((0, length // 8 - 1)) + padding + bytes(length))[:length]
    frame, _, _, _ = large(ends=V6, ip_options=extension)
    assert refused(Nic(), frame, request(v6=True)) is not good


def test_vlan_tags_are_on_every_segment() -> None:
    frame, _, _, _ = large()
    tagged = frame[:12] + b"\x81\x00\x00\x07" + frame[12:]
    _, wire = Nic().transmit([tagged], request())
    _, plain = Nic().transmit([frame], request())
    assert [packet[:12] + packet[16:] for packet in wire] == plain


# With IPsec

SUITES: dict[str, tuple[Sa, ...]] = {
    "gcm": (GCM,),
    "gcm icv 8": (esp("aes-gcm-256", icv=8),),
    "cbc": (CBC_SHA1,),
    "3des": (esp("3des-cbc", "hmac-md5-96"),),
    "null": (esp("null", "hmac-sha256-128"),),
    "gmac": (esp("null", "aes-gmac-128"),),
    "ah": (AH_SHA256,),
    "ah gmac": (ah("aes-gmac-256"),),
    "ah esp": (CBC_SHA1, ah("hmac-sha1-96")),
    "ah encrypting esp": (esp("aes-cbc-256"), AH_SHA256),
}


def ours(nic: Nic, sas: tuple[Sa, ...], ends: Ends, **changes: Any) -> tuple[bytes, TransmitInfo]:
    """A large packet under SAs the NIC has, and its out-of-band information."""
    padding = changes.pop("padding", b"")
    mss = changes.pop("mss", MSS)
    frame, ah_at, esp_at, tcp_at = large(ends=ends, sas=sas, padding=padding, **changes)
    handle = nic.add(sas if len(sas) > 1 else sas[0], ends)
    info = request(
        handle,
        ah_at=ah_at,
        esp_at=esp_at,
        v6=ends is V6,
        mss=mss,
        pad_length=len(padding),
        tcp_at=14 + tcp_at,
    )
    return frame, info


def number_of(packet: bytes, at: int, operation: Operation) -> int:
    field = 14 + at + (4 if operation is Operation.ESP else 8)
    return int.from_bytes(packet[field : field + 4], "big")


@pytest.mark.rule(30)
@pytest.mark.rule(189)
@pytest.mark.rule(190)
@pytest.mark.rule(218)
@FAMILIES
@pytest.mark.parametrize("sas", SUITES.values(), ids=SUITES)
def test_each_segment_opens_to_what_scapy_builds(sas: tuple[Sa, ...], ends: Ends) -> None:
    nic, peer = Nic(), Nic()
    frame, info = ours(nic, sas, ends, sequence=17, flags=ACK | PSH)
    peer.add(sas if len(sas) > 1 else sas[0], ends, inbound=True)
    one, wire = nic.transmit([frame], info)
    assert one.status is NdisStatus.SUCCESS, one.reason
    cut = pieces(PAYLOAD)
    assert len(wire) == len(cut)
    assert info.large_send is not None
    text = info.large_send.tcp_header_offset
    for number, (packet, piece) in enumerate(zip(wire, cut, strict=True)):
        for at, operation in (
            (info.ah_header_offset, Operation.AH),
            (info.esp_header_offset, Operation.ESP),
        ):
            if at:
                assert number_of(packet, at, operation) == 17 + number
        assert parse_ip(packet, 14).end == len(packet)
        plain = expected(piece, ends, number, last=number == len(cut) - 1, flags=ACK | PSH)
        header = 20 if ends is V4 else 40
        report, opened = peer.open(packet)
        assert report is not None
        assert report.verified
        assert opened[text : text + len(plain) - header].hex() == plain[header:].hex()
        if ends is V4:
            assert checksum(packet[14:34]) == 0
            assert packet[18:20] == plain[4:6]
        if info.esp_header_offset:
            sa = sas[0]
            pad_length = sa.pad_length(len(plain) - header)
            assert (report.next_header, report.pad_length) == (TCP, pad_length)
            trailer = len(packet) - sa.icv_length - 2 - pad_length
            assert trailer == text + len(plain) - header
            assert opened[trailer : trailer + pad_length] == bytes(range(1, pad_length + 1))


def scapy_sa(sa: Sa) -> SecurityAssociation:
    if sa.operation is Operation.AH:
        key = sa.integrity_key.reveal()
        return SecurityAssociation(SCAPY_AH, sa.spi, auth_algo="SHA2-256-128", auth_key=key)
    arguments: dict[str, Any] = {"crypt_key": sa.encryption_key.reveal(), "crypt_algo": "AES-GCM"}
    if sa.integrity:
        arguments |= {"crypt_algo": "AES-CBC", "auth_algo": "HMAC-SHA1-96"}
        arguments["auth_key"] = sa.integrity_key.reveal()
    return SecurityAssociation(SCAPY_ESP, sa.spi, **arguments)


@FAMILIES
@pytest.mark.parametrize("sa", [GCM, CBC_SHA1, AH_SHA256], ids=suite_id)
def test_scapy_opens_every_segment(sa: Sa, ends: Ends) -> None:
    nic = Nic()
    frame, info = ours(nic, (sa,), ends)
    _, wire = nic.transmit([frame], info)
    cut = pieces(PAYLOAD)
    for number, (packet, piece) in enumerate(zip(wire, cut, strict=True)):
        opened = bytes(scapy_sa(sa).decrypt((IP if ends is V4 else IPv6)(packet[14:])))
        assert opened.hex() == expected(piece, ends, number, last=number == len(cut) - 1).hex()


def test_udp_encapsulated_transport_is_cut_with_a_udp_header_each() -> None:
    nic, peer = Nic(), Nic()
    frame, _, esp_at, tcp_at = large(sas=(GCM,), udp_header=True)
    handle = nic.add(GCM, portion=None, udp_esp=UDP_ESP_TRANSPORT)
    peer.add(GCM, inbound=True, portion=None, udp_esp=UDP_ESP_TRANSPORT)
    _, wire = nic.transmit([frame], request(handle, esp_at=esp_at, tcp_at=14 + tcp_at))
    assert len(wire) == 4
    for packet, piece in zip(wire, pieces(PAYLOAD), strict=True):
        ports_and_length = struct.unpack_from(">HHHH", packet, 34)
        assert ports_and_length == (4500, 4500, len(packet) - 34, 0)
        report, opened = peer.open(packet)
        assert report is not None
        assert report.verified
        assert piece in opened


@pytest.mark.rule(190)
@pytest.mark.rule(191)
@pytest.mark.parametrize("length", [1, 3, 15, 255])
def test_padding_at_the_end_of_the_large_packet_is_dropped(length: int) -> None:
    made = []
    for padding in (b"", bytes(range(1, length + 1))):
        nic, peer = Nic(), Nic()
        frame, info = ours(nic, (CBC_SHA1,), V4, padding=padding)
        peer.add(CBC_SHA1, inbound=True)
        _, wire = nic.transmit([frame], info)
        made.append([peer.open(packet)[1][38:-12] for packet in wire])
    assert [packet[20:] for packet in made[0]] == [packet[20:] for packet in made[1]]


def test_pad_length_without_esp_drops_nothing() -> None:
    frame, _, _, _ = large()
    _, wire = Nic().transmit([frame], request(pad_length=9))
    assert b"".join(packet[54:] for packet in wire) == PAYLOAD


@pytest.mark.parametrize("sas", [(GCM,), (AH_SHA256,), (CBC_SHA1, AH_SHA256)], ids=["esp", "ah", "both"])
def test_extended_numbers_of_segments_pass_the_wrap(sas: tuple[Sa, ...]) -> None:
    sas = tuple(replace(sa, esn=True, high=6) for sa in sas)
    nic, peer = Nic(), Nic()
    peer.add(sas if len(sas) > 1 else sas[0], inbound=True)
    frame, info = ours(nic, sas, V4, sequence=0xFFFFFFFE)
    _, wire = nic.transmit([frame], info)
    operation = sas[0].operation
    at = info.esp_header_offset or info.ah_header_offset
    assert [number_of(packet, at, operation) for packet in wire] == [0xFFFFFFFE, 0xFFFFFFFF, 0, 1]
    for packet in wire:
        report, _ = peer.open(packet)
        assert report is not None
        assert report.verified
    # The upper half moved with the wrap: a peer that starts there opens what came after it, and no more.
    later = Nic()
    moved = tuple(replace(sa, high=7) for sa in sas)
    later.add(moved if len(sas) > 1 else moved[0], inbound=True)
    reports = [later.open(packet)[0] for packet in wire]
    assert [report is not None and report.verified for report in reports] == [False, False, True, True]


@pytest.mark.parametrize("sas", [(GCM,), (AH_SHA256,), (CBC_SHA1, AH_SHA256)], ids=["esp", "ah", "both"])
def test_numbers_without_extension_never_come_twice(sas: tuple[Sa, ...]) -> None:
    for first, status in ((0xFFFFFFFC, NdisStatus.SUCCESS), (0xFFFFFFFD, NdisStatus.FAILURE)):
        nic = Nic()
        frame, info = ours(nic, sas, V4, sequence=first)
        one, wire = nic.transmit([frame], info)
        assert (one.status, len(wire)) == (status, 4 if status is NdisStatus.SUCCESS else 0)


def test_more_than_an_ip_packet_can_hold_is_cut() -> None:
    payload = random.Random(3).randbytes(200_000)
    for ends in (V4, V6):
        nic, peer = Nic(), Nic()
        frame, info = ours(nic, (GCM,), ends, payload=payload, mss=1400)
        peer.add(GCM, ends, inbound=True)
        one, wire = nic.transmit([frame], info)
        assert one.status is NdisStatus.SUCCESS
        start = 14 + (20 if ends is V4 else 40) + 16 + 20
        arrived = b""
        for packet in wire:
            report, opened = peer.open(packet)
            assert report is not None
            assert report.verified
            arrived += opened[start : len(packet) - 18 - report.pad_length]
        assert arrived == payload


# What goes wrong


@pytest.mark.rule(31)
@pytest.mark.rule(198)
def test_tunnels_and_large_sends_do_not_go_together() -> None:
    nic = Nic()
    frame, info = ours(nic, (GCM,), V4)
    tunnel = nic.add(replace(GCM, label="tunnel"), portion=Mode.TUNNEL)
    assert refused(nic, frame, info._replace(tunnel_handle=tunnel))
    assert refused(nic, frame, info._replace(offload_handle=tunnel))
    assert refused(nic, frame, info._replace(offload_handle=NO_HANDLE, tunnel_handle=tunnel))
    assert refused(nic, frame, info._replace(next_header=4))
    assert not refused(nic, frame, info)


@pytest.mark.rule(165)
def test_unknown_handle_fails_the_large_send() -> None:
    nic = Nic()
    frame, info = ours(nic, (GCM,), V4)
    assert refused(nic, frame, info._replace(offload_handle=OffloadHandle(99)))


@pytest.mark.rule(192)
@pytest.mark.parametrize("count", [0, 2])
def test_large_send_has_exactly_one_net_buffer(count: int) -> None:
    frame, _, _, _ = large()
    one, wire = Nic().transmit([frame] * count, request())
    assert (one.status, wire) == (NdisStatus.FAILURE, [])


@pytest.mark.rule(199)
def test_large_send_after_lso_was_switched_off_is_dropped() -> None:
    for nic in (Nic(), Nic.with_hardware(large_send=LargeSendCapabilities(ipv4=False))):
        frame, info = ours(nic, (GCM,), V4)
        clear, _, _, _ = large()
        nic.adapter._sender.configure(TaskOffload(large_send=NO_LARGE_SEND))
        assert refused(nic, clear, request())
        assert refused(nic, frame, info)


@pytest.mark.rule(30)
def test_nic_without_lso_for_ipsec_still_cuts_what_is_clear() -> None:
    nic = Nic.able(lso_supported=False)
    frame, info = ours(nic, (GCM,), V4)
    clear, _, _, _ = large()
    assert refused(nic, frame, info)
    assert not refused(nic, clear, request())


@pytest.mark.rule(188)
def test_v1_sas_take_no_large_sends() -> None:
    nic = Nic()
    sa = esp("3des-cbc", "hmac-sha1-96")
    frame, _, esp_at, _ = large(sas=(sa,))
    handle = nic.add(sa, version=OidVersion.V1)
    assert refused(nic, frame, request(handle, esp_at=esp_at))


def test_ipsec_that_is_off_fails_the_large_send() -> None:
    nic = Nic()
    frame, info = ours(nic, (GCM,), V4)
    nic.adapter._sender.configure(TaskOffload(OffloadCapabilities(esp=False)))
    assert refused(nic, frame, info)
    nic.adapter._sender.configure(TaskOffload(OffloadCapabilities(transport=False)))
    assert refused(nic, frame, info)


@pytest.mark.parametrize(
    ("able", "change", "good"),
    [
        ({"max_offload_size": len(PAYLOAD)}, {}, True),
        ({"max_offload_size": len(PAYLOAD) - 1}, {}, False),
        ({"min_segment_count": 4}, {}, True),
        ({"min_segment_count": 5}, {}, False),
        ({"tcp_options": False}, {}, True),
        ({"tcp_options": False}, {"options": b"\x01" * 4}, False),
        ({"ip_options": False}, {}, True),
        ({"ip_options": False}, {"ip_options": b"\x01" * 4}, False),
        ({"ipv4": False}, {}, False),
        ({"ipv6": False}, {}, True),
    ],
)
@pytest.mark.rule(4)
def test_large_sends_keep_to_the_capabilities(able: dict[str, Any], change: Any, good: bool) -> None:
    nic = Nic.with_hardware(large_send=LargeSendCapabilities(**able))
    frame, _, _, _ = large(**change)
    assert refused(nic, frame, request()) is not good


@pytest.mark.parametrize(
    ("version", "length", "good"),
    [(1, "whole", True), (1, "zero", False), (1, "less", False), (2, "zero", True), (2, "less", False)],
)
def test_ip_length_is_as_the_version_has_it(version: int, length: str, good: bool) -> None:
    frame, _, _, _ = large(version=1)
    whole = len(frame) - 14
    value = {"whole": whole, "zero": 0, "less": whole - 1}[length]
    changed = frame[:16] + value.to_bytes(2, "big") + frame[18:]
    assert refused(Nic(), changed, request(version=version)) is not good


@pytest.mark.parametrize("flags", [SYN, RST, URG])
def test_segments_that_no_cut_can_keep_fail(flags: int) -> None:
    frame, _, _, _ = large(flags=ACK | flags)
    assert refused(Nic(), frame, request())


@pytest.mark.parametrize(
    "change",
    [
        {"mss": 0},
        {"mss": len(PAYLOAD)},
        {"v6": True},
        {"tcp_at": 14 + 24},
        {"version": 1, "v6": True},
    ],
    ids=["no mss", "one segment", "family", "offset", "v1 of v6"],
)
def test_large_send_that_does_not_fit_the_packet_fails(change: dict[str, Any]) -> None:
    frame, _, _, _ = large()
    assert refused(Nic(), frame, request(**change))


def test_lsov1_is_for_ipv4() -> None:
    frame, _, _, _ = large(ends=V6)
    assert refused(Nic(), frame, request(version=1, v6=True))
    assert refused(Nic(), frame, request(version=1))


@pytest.mark.parametrize(("size", "good"), [(4096, True), (4097, False)])
def test_number_of_segments_is_bounded(size: int, good: bool) -> None:
    frame, _, _, _ = large(bytes(size))
    one, wire = Nic().transmit([frame], request(mss=1))
    assert (one.status is NdisStatus.SUCCESS, len(wire)) == (good, size if good else 0)


def test_trailer_information_of_an_ah_send_is_not_looked_at() -> None:
    nic = Nic()
    frame, info = ours(nic, (AH_SHA256,), V4)
    _, wire = nic.transmit([frame], info._replace(next_header=0, pad_length=9))
    assert info.large_send is not None
    start = info.large_send.tcp_header_offset + 20
    assert b"".join(packet[start:] for packet in wire) == PAYLOAD


@FAMILIES
def test_segment_that_no_ip_packet_can_hold_fails(ends: Ends) -> None:
    frame, _, _, _ = large(bytes(131_000), ends)
    most = 0xFFFF - 20 - (20 if ends is V4 else 0)
    assert refused(Nic(), frame, request(mss=most + 1, v6=ends is V6))
    assert not refused(Nic(), frame, request(mss=most, v6=ends is V6))


@pytest.mark.rule(161)
def test_header_information_of_a_large_send_is_held_to_the_packet() -> None:
    nic = Nic()
    frame, info = ours(nic, (CBC_SHA1, AH_SHA256), V4)
    for wrong in (
        info._replace(ah_header_offset=24),
        info._replace(esp_header_offset=0),
        info._replace(next_header=UDP),
    ):
        assert refused(nic, frame, wrong)
    assert not refused(nic, frame, info)


def test_large_send_of_other_protocols_or_no_ip_fails() -> None:
    frame, _, _, _ = large()
    for broken in (
        b"",
        frame[:14],
        frame[:20],
        frame[:33],
        frame[:40],
        frame[:50],
        frame[:12] + b"\x08\x06" + frame[14:],
        frame[:23] + bytes((UDP,)) + frame[24:],
        frame[:20] + b"\x20\x00" + frame[22:],
        frame[:46] + b"\x40" + frame[47:],
        frame[:46] + b"\xf0" + frame[47:60],
    ):
        assert refused(Nic(), broken, request())


@pytest.mark.rule(200)
def test_lsov1_completes_with_the_payload_it_sent() -> None:
    for version, payload in ((1, len(PAYLOAD)), (2, 0)):
        frame, _, _, _ = large(version=version)
        one, _ = Nic().transmit([frame], request(version=version))
        assert one.tcp_payload == payload
    frame, _, _, _ = large(version=1)
    one, _ = Nic().transmit([frame], request(version=1, mss=0))
    assert one.tcp_payload == 0


def test_large_send_does_not_go_by_the_inline_door() -> None:
    nic = Nic()
    frame, info = ours(nic, (GCM,), V4)
    assert nic.seal(frame, info).status is NdisStatus.FAILURE
    # Nor does a whole packet with trailer and all, which would go out as one.
    one = framed(GCM, tcp(PAYLOAD), TCP)
    small = one.info(info.offload_handle)
    assert nic.seal(one.frame, small).status is NdisStatus.SUCCESS
    assert nic.seal(one.frame, small._replace(large_send=info.large_send)).status is NdisStatus.FAILURE


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(["clear", "esp", "ah", "v6"]),
    st.lists(st.tuples(st.integers(0, 110), st.integers(0, 255)), max_size=4),
    st.integers(0, 300),
    st.integers(0, 400),
    st.sampled_from([0, 1, 2, 3]),
    st.integers(0, 255),
)
def test_any_large_packet_is_cut_or_refused(
    kind: str, changes: list[tuple[int, int]], cut: int, mss: int, handle: int, pad_length: int
) -> None:
    nic = Nic()
    sas = {"esp": (GCM,), "ah": (AH_SHA256,)}.get(kind, ())
    nic.add(GCM)
    nic.add(AH_SHA256)
    frame, ah_at, esp_at, _ = large(ends=V6 if kind == "v6" else V4, sas=sas)
    mutated = bytearray(frame[: len(frame) - cut])
    for position, value in changes:
        if mutated:
            mutated[position % len(mutated)] = value
    info = request(handle, ah_at=ah_at, esp_at=esp_at, v6=kind == "v6", mss=mss, pad_length=pad_length)
    one = NetBufferList(1, [mutated], info)
    wire = nic.adapter.transmit([one])
    assert one.status in (NdisStatus.SUCCESS, NdisStatus.FAILURE)
    assert bool(wire) is (one.status is NdisStatus.SUCCESS)
    for buffer in wire:
        assert parse_ip(buffer.frame, 14).end == len(buffer.frame)


def test_inner_addresses_play_no_part() -> None:
    # The same large packet between other ends has other checksums and the same segments.
    one, _, _, _ = large(ends=V4)
    other, _, _, _ = large(ends=INNER_V4)
    payloads = [
        b"".join(packet[54:] for packet in Nic().transmit([frame], request())[1]) for frame in (one, other)
    ]
    assert payloads == [PAYLOAD, PAYLOAD]
