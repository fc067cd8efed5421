"""Net buffer lists: several frames, one set of out-of-band info, one status (sheet §6)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from nic_frames import (
    AH_SHA256,
    CBC_SHA1,
    GCM,
    INNER_V4,
    NO_HANDLE,
    UDP,
    V4,
    V6,
    Nic,
    esp,
    ethernet,
    framed,
    ip,
    ipv4,
    tcp,
    transmit,
    udp,
)
from scapy.layers.inet import IP
from scapy.layers.inet import TCP as ScapyTcp
from scapy.layers.inet import UDP as ScapyUdp
from scapy.layers.inet6 import IPv6

from vnic.ipsec.association import Mode
from vnic.ndis.capabilities import ChecksumCapabilities, OffloadCapabilities, TaskOffload
from vnic.ndis.netbuffer import ChecksumRequest, NetBufferList, TransmitInfo
from vnic.ndis.status import NdisStatus

PAYLOAD = udp(b"one of several")
GOOD, BAD = NdisStatus.SUCCESS, NdisStatus.FAILURE


def opened_by_peer(frames: list[bytes], sas: Any = GCM, ends: tuple[bytes, bytes] = V4) -> list[bytes]:
    peer = Nic()
    peer.add(sas, ends, inbound=True, portion=None)
    made = []
    for frame in frames:
        info, opened = peer.open(frame)
        assert info is not None
        assert info.verified
        made.append(opened)
    return made


@pytest.mark.rule(159)
@pytest.mark.rule(167)
@pytest.mark.parametrize("sas", [GCM, AH_SHA256, (CBC_SHA1, AH_SHA256)], ids=["esp", "ah", "bundle"])
def test_all_frames_of_a_list_are_sealed(sas: Any) -> None:
    nic = Nic()
    frames = [framed(sas, udp(bytes((number,)) * 20), sequence=number) for number in range(1, 6)]
    one, wire = nic.transmit([frame.frame for frame in frames], frames[0].info(nic.add(sas)))
    assert one.status is GOOD
    assert len(wire) == 5
    for number, opened in enumerate(opened_by_peer(wire, sas), 1):
        assert bytes((number,)) * 20 in opened


@pytest.mark.rule(164)
def test_list_without_out_of_band_info_goes_out_as_it_is() -> None:
    nic = Nic()
    nic.add(GCM)
    for info in (None, transmit(NO_HANDLE)):
        one, wire = nic.transmit([b"anything", framed(GCM, PAYLOAD).frame], info)
        assert one.status is GOOD
        assert wire == [b"anything", framed(GCM, PAYLOAD).frame]


@pytest.mark.rule(165)
@pytest.mark.rule(167)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_list_fails_whole_when_one_of_its_frames_does(position: int) -> None:
    nic = Nic()
    good = framed(GCM, PAYLOAD)
    frames = [good.frame] * 3
    frames[position] = good.frame[:23] + b"\x11" + good.frame[24:]
    one, wire = nic.transmit(frames, good.info(nic.add(GCM)))
    assert (one.status, wire) == (BAD, [])
    assert one.reason


@pytest.mark.rule(197)
def test_lists_complete_in_order_each_with_a_status_of_its_own() -> None:
    nic = Nic()
    handle = nic.add(GCM)
    one = framed(GCM, PAYLOAD)
    infos: list[TransmitInfo | None] = [
        one.info(handle),
        one.info(handle)._replace(offload_handle=transmit(NO_HANDLE).offload_handle, tunnel_handle=handle),
        None,
        one.info(handle)._replace(pad_length=9),
        one.info(handle),
    ]
    lists = [
        NetBufferList(number, [bytearray(one.frame), bytearray(one.frame)], info)
        for number, info in enumerate(infos)
    ]
    wire = nic.adapter.transmit(lists)
    assert [each.status for each in lists] == [GOOD, BAD, GOOD, BAD, GOOD]
    assert [each.reason == "" for each in lists] == [True, False, True, False, True]
    assert [buffer.transmit for buffer in wire] == [infos[0]] * 2 + [None] * 2 + [infos[4]] * 2
    assert [bytes(buffer.frame) == one.frame for buffer in wire] == [False, False, True, True, False, False]


def test_reason_of_a_refusal_names_no_key() -> None:
    nic = Nic()
    handle = nic.add(GCM)
    one, _ = nic.transmit([bytes(60)], transmit(handle))
    assert GCM.encryption_key.reveal().hex() not in one.reason
    assert len(one.reason) < 120


@pytest.mark.rule(16)
def test_fragment_fails_its_list() -> None:
    nic = Nic()
    handle = nic.add(GCM)
    frame = ethernet(ipv4(*V4, 50, GCM.wrap(PAYLOAD, UDP), fragment=0x2000))
    one, wire = nic.transmit(
        [frame], transmit(handle, esp_offset=20, pad_length=GCM.pad_length(len(PAYLOAD)))
    )
    assert (one.status, wire) == (BAD, [])


# What is switched on


@pytest.mark.rule(163)
def test_nothing_is_sealed_or_sent_in_clear_before_offload_is_switched_on() -> None:
    nic = Nic()
    one = framed(GCM, PAYLOAD)
    info = one.info(nic.add(GCM))
    nic.adapter._sender.configure(TaskOffload(OffloadCapabilities(ah=False, esp=False)))
    done, wire = nic.transmit([one.frame], info)
    assert (done.status, wire) == (BAD, [])
    assert nic.seal(one.frame, info).status is BAD
    # What asks for nothing still goes.
    done, wire = nic.transmit([one.frame], None)
    assert (done.status, wire) == (GOOD, [one.frame])


TUNNELLED = ip(INNER_V4, UDP, PAYLOAD)
PROTOCOLS: list[tuple[dict[str, bool], Any, Mode | None, tuple[bytes, bytes], bool]] = [
    ({"esp": False}, GCM, Mode.TRANSPORT, V4, False),
    ({"esp": False}, AH_SHA256, Mode.TRANSPORT, V4, True),
    ({"ah": False}, AH_SHA256, Mode.TRANSPORT, V4, False),
    ({"ah": False}, GCM, Mode.TRANSPORT, V4, True),
    ({"ah": False}, GCM, None, V4, True),
    ({"esp": False}, AH_SHA256, None, V4, True),
    ({"ah": False}, (GCM, AH_SHA256), Mode.TRANSPORT, V4, False),
    ({"ah_esp_combined": False}, (GCM, AH_SHA256), Mode.TRANSPORT, V4, False),
    ({"transport": False}, GCM, Mode.TRANSPORT, V4, False),
    ({"transport": False}, GCM, None, V4, False),
    ({"transport": False}, GCM, Mode.TUNNEL, V4, True),
    ({"tunnel": False}, GCM, Mode.TUNNEL, V4, False),
    ({"tunnel": False}, GCM, None, V4, False),
    ({"tunnel": False}, AH_SHA256, None, V4, False),
    ({"tunnel": False}, (GCM, AH_SHA256), None, V4, False),
    ({"ipv6_supported": False}, GCM, Mode.TRANSPORT, V6, False),
    ({"ipv6_supported": False}, GCM, Mode.TRANSPORT, V4, True),
    ({"extended_sequence_numbers": False}, GCM, Mode.TRANSPORT, V4, True),
]


@pytest.mark.rule(163)
@pytest.mark.rule(172)
@pytest.mark.rule(175)
@pytest.mark.rule(181)
@pytest.mark.parametrize(
    ("off", "sas", "portion", "ends", "works"),
    PROTOCOLS,
    ids=[f"{next(iter(off))} {number}" for number, (off, *_) in enumerate(PROTOCOLS)],
)
def test_v2_switches_count_on_send_and_on_receive(
    off: dict[str, Any], sas: Any, portion: Mode | None, ends: tuple[bytes, bytes], works: bool
) -> None:
    nic, peer = Nic(), Nic()
    in_tunnel = portion is Mode.TUNNEL or (portion is None and "tunnel" in off)
    text, protocol = (TUNNELLED, 4) if in_tunnel else (PAYLOAD, UDP)
    one = framed(sas, text, protocol, ends)
    handle = nic.add(sas, ends, portion=portion)
    nic.add(sas, ends, inbound=True, portion=portion)
    _, frames = peer.transmit([one.frame], one.info(peer.add(sas, ends)))
    current = TaskOffload(OffloadCapabilities(**off))
    nic.adapter._sender.configure(current)
    nic.adapter._receiver.configure(current)
    done, wire = nic.transmit([one.frame], one.info(handle))
    assert (done.status is GOOD, bool(wire)) == (works, works)
    info, after = nic.open(frames[0])
    assert (info is not None) is works
    if not works:
        assert after == frames[0]


@pytest.mark.rule(57)
def test_ipv4_alone_may_be_off() -> None:
    nic = Nic()
    four, six = framed(GCM, PAYLOAD), framed(CBC_SHA1, PAYLOAD, addresses=V6)
    handles = nic.add(GCM), nic.add(CBC_SHA1, V6)
    nic.adapter.set_encapsulation(False, True)
    assert nic.seal(four.frame, four.info(handles[0])).status is BAD
    assert nic.seal(six.frame, six.info(handles[1])).status is GOOD


# Checksums

MIXED = udp(b"odd length", 5353, 53)


def pseudo(ends: tuple[bytes, bytes], protocol: int, length: int) -> int:
    """The sum of the pseudo-header as the driver leaves it."""
    data = ends[0] + ends[1] + length.to_bytes(4, "big") + protocol.to_bytes(4, "big")
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def open_checksums(ends: tuple[bytes, bytes], protocol: int) -> bytes:
    """A packet whose TCP or UDP field holds the pseudo-header sum and whose IP header checksum is zero."""
    if protocol == UDP:
        body = udp(b"odd", checksum=pseudo(ends, UDP, 11))
    else:
        body = tcp(b"odd", checksum=pseudo(ends, 6, 23))
    packet = bytearray(ip(ends, protocol, body))
    if len(ends[0]) == 4:
        packet[10:12] = bytes(2)
    return bytes(packet)


def by_scapy(packet: bytes) -> bytes:
    """The same packet with all checksums as scapy works them out."""
    parsed = (IP if packet[0] >> 4 == 4 else IPv6)(packet)
    if packet[0] >> 4 == 4:
        del parsed.chksum
    del parsed[ScapyUdp if ScapyUdp in parsed else ScapyTcp].chksum
    return bytes(parsed)


def asked(ends: tuple[bytes, bytes], protocol: int, offset: int = 0) -> ChecksumRequest:
    v6 = len(ends[0]) == 16
    return ChecksumRequest(v6, protocol == 6, protocol == UDP, not v6, offset)


@pytest.mark.rule(193)
@pytest.mark.parametrize("offset", ["given", "found"])
@pytest.mark.parametrize("protocol", [6, UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize("ends", [V4, V6], ids=["v4", "v6"])
def test_checksums_of_a_clear_frame_are_completed_as_scapy_does(
    ends: tuple[bytes, bytes], protocol: int, offset: str
) -> None:
    packet = open_checksums(ends, protocol)
    start = (34 if ends is V4 else 54) if offset == "given" else 0
    info = transmit(NO_HANDLE)._replace(checksum=asked(ends, protocol, start))
    done, wire = Nic().transmit([ethernet(packet)], info)
    assert done.status is GOOD, done.reason
    assert wire[0][14:].hex() == by_scapy(packet).hex()
    buffer = Nic().seal(ethernet(packet), info)
    assert bytes(buffer.frame) == wire[0]


@pytest.mark.rule(218)
@pytest.mark.parametrize("protocol", [6, UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize("ends", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("sas", [GCM, AH_SHA256, (CBC_SHA1, AH_SHA256)], ids=["esp", "ah", "bundle"])
def test_checksums_are_completed_before_the_frame_is_sealed(
    sas: Any, ends: tuple[bytes, bytes], protocol: int
) -> None:
    nic = Nic()
    packet = open_checksums(ends, protocol)
    length = 20 if ends is V4 else 40
    one = framed(sas, packet[length:], protocol, ends)
    info = one.info(nic.add(sas, ends))._replace(checksum=asked(ends, protocol, one.text))
    done, wire = nic.transmit([one.frame], info)
    assert done.status is GOOD, done.reason
    (opened,) = opened_by_peer(wire, sas, ends)
    assert opened[one.text :].startswith(by_scapy(packet)[length:])
    if ends is V4:
        header = IP(wire[0][14:])
        given = header.chksum
        del header.chksum
        assert IP(bytes(header)).chksum == given


@pytest.mark.rule(218)
def test_checksums_inside_a_tunnel_are_those_of_the_packet_inside() -> None:
    nic = Nic()
    packet = open_checksums(INNER_V4, 6)
    whole = by_scapy(packet)
    one = framed(GCM, packet[:10] + whole[10:12] + packet[12:], 4)
    info = one.info(nic.add(GCM, portion=Mode.TUNNEL))
    info = info._replace(checksum=ChecksumRequest(False, True, False, True, 0))
    done, wire = nic.transmit([one.frame], info)
    assert done.status is GOOD, done.reason
    (opened,) = opened_by_peer(wire)
    assert whole in opened


def test_udp_checksum_that_comes_out_as_zero_is_sent_as_all_ones() -> None:
    total = pseudo(V4, UDP, 10)
    body = bytearray(udp(b"\x00\x00", 0, 0, checksum=total))
    # Ports that make the sum all ones, so that its complement is zero.
    ports = (0xFFFF - total - 10) % 0xFFFF
    body[0:2] = ports.to_bytes(2, "big")
    body[6:8] = total.to_bytes(2, "big")
    packet = ip(V4, UDP, bytes(body))
    info = transmit(NO_HANDLE)._replace(checksum=ChecksumRequest(False, False, True, False, 0))
    _, wire = Nic().transmit([ethernet(packet)], info)
    assert wire[0][40:42] == by_scapy(packet)[26:28] == b"\xff\xff"


@pytest.mark.parametrize(
    "change",
    [
        {"ipv6": True},
        {"udp": True},
        {"tcp": False, "udp": True},
        {"tcp_header_offset": 38},
        {"tcp_header_offset": 14},
    ],
    ids=["family", "both", "other protocol", "offset", "offset of ip"],
)
def test_checksum_request_that_is_not_about_the_packet_fails(change: dict[str, Any]) -> None:
    right = ChecksumRequest(False, True, False, True, 34)
    frame = ethernet(open_checksums(V4, 6))
    for request, status in ((right, GOOD), (right._replace(**change), BAD)):
        done, _ = Nic().transmit([frame], transmit(NO_HANDLE)._replace(checksum=request))
        assert done.status is status


def test_checksums_that_are_not_offered_or_cannot_be_fail() -> None:
    request = transmit(NO_HANDLE)._replace(checksum=ChecksumRequest(False, True, False, True, 0))
    frame = ethernet(open_checksums(V4, 6))
    off = Nic()
    off.adapter._sender.configure(TaskOffload(checksum=ChecksumCapabilities(False, True)))
    assert off.transmit([frame], request)[0].status is BAD
    later_fragment = ethernet(ipv4(*V4, 6, tcp(b"x"), fragment=0x0001))
    for broken in (b"", bytes(60), frame[:40], later_fragment, ethernet(ip(V4, 6, b"short"))):
        assert Nic().transmit([broken], request)[0].status is BAD
    lying = bytearray(ethernet(ip(V4, UDP, MIXED)))
    lying[39] = 255
    info = transmit(NO_HANDLE)._replace(checksum=ChecksumRequest(False, False, True, False, 0))
    assert Nic().transmit([bytes(lying)], info)[0].status is BAD
    v6 = transmit(NO_HANDLE)._replace(checksum=ChecksumRequest(True, True, False, True, 0))
    assert Nic().transmit([ethernet(open_checksums(V6, 6))], v6)[0].status is BAD


@pytest.mark.parametrize(("protocol", "length"), [(UDP, 8), (6, 20)])
def test_checksum_of_a_header_without_payload_is_completed(protocol: int, length: int) -> None:
    body = udp(b"", checksum=pseudo(V4, UDP, 8)) if protocol == UDP else tcp(b"", checksum=pseudo(V4, 6, 20))
    request = ChecksumRequest(False, protocol == 6, protocol == UDP, False, 0)
    info = transmit(NO_HANDLE)._replace(checksum=request)
    done, wire = Nic().transmit([ethernet(ip(V4, protocol, body))], info)
    assert done.status is GOOD
    assert wire[0][14:] == by_scapy(ip(V4, protocol, body))
    short = ethernet(ip(V4, protocol, body[: length - 1]))
    assert Nic().transmit([short], info)[0].status is BAD


def test_udp_datagram_may_end_before_its_packet() -> None:
    body = udp(b"odd", checksum=pseudo(V4, UDP, 11))
    info = transmit(NO_HANDLE)._replace(checksum=ChecksumRequest(False, False, True, False, 0))
    done, wire = Nic().transmit([ethernet(ip(V4, UDP, body + b"behind it"))], info)
    assert done.status is GOOD
    assert wire[0][34:45] == by_scapy(ip(V4, UDP, body))[20:]
    for length in (7, 255):
        lying = body[:4] + length.to_bytes(2, "big") + body[6:]
        assert Nic().transmit([ethernet(ip(V4, UDP, lying))], info)[0].status is BAD


def test_request_for_tcp_is_not_for_udp() -> None:
    packet = ethernet(ip(V4, UDP, bytes((0, 1, 0, 2, 0, 40)) + bytes(34)))
    request = ChecksumRequest(False, True, False, False, 0)
    assert Nic().transmit([packet], transmit(NO_HANDLE)._replace(checksum=request))[0].status is BAD


def test_ip_header_checksum_may_be_all_that_is_asked_for() -> None:
    packet = open_checksums(V4, UDP)
    request = transmit(NO_HANDLE)._replace(checksum=ChecksumRequest(False, False, False, True, 0))
    _, wire = Nic().transmit([ethernet(packet)], request)
    assert wire[0][14:34] == by_scapy(packet)[:20]
    assert wire[0][34:] == packet[20:]


def test_one_request_for_checksums_is_for_all_frames_of_a_list() -> None:
    nic = Nic()
    sa = esp("aes-gcm-256", spi=0x3333)
    packet = open_checksums(V4, UDP)
    one = framed(sa, packet[20:], UDP)
    other = framed(sa, packet[20:], UDP, sequence=2)
    info = one.info(nic.add(sa))._replace(checksum=asked(V4, UDP, one.text))
    _, wire = nic.transmit([one.frame, other.frame], info)
    for opened in opened_by_peer(wire, sa):
        assert opened[one.text :].startswith(by_scapy(packet)[20:])


def test_a_burst_of_the_inline_transport_is_sealed_by_the_same_rules() -> None:
    nic = Nic()
    sa = replace(GCM, label="inline")
    one = framed(sa, PAYLOAD)
    right = one.info(nic.add(sa))
    assert nic.seal(one.frame, right).status is GOOD
    assert nic.seal(one.frame, right._replace(next_header=6)).status is BAD
