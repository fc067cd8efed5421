"""Joining TCP segments for the host: what joins, what does not, and that damage stays damage."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet
from transport_lab import ETHER, frame_of

from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.vnet import GSO_TCPV4, GSO_TCPV6, PLAIN, VnetHeader
from vnic.transport.coalesce import coalesce

DATA = bytes(index * 37 & 0xFF for index in range(70000))
TIMES = [("NOP", None), ("NOP", None), ("Timestamp", (7, 8))]


def segment(start: int, length: int, version: int = 4, **tcp: object) -> Packet:
    """`length` bytes of DATA from `start` in one segment of one flow."""
    ip = (
        IP(src="10.1.0.1", dst="10.2.0.1", flags="DF") if version == 4 else IPv6(src="fd01::1", dst="fd02::1")
    )
    fields = {"sport": 1000, "dport": 80, "seq": 5000 + start, "ack": 9, "window": 500, "flags": "A"} | tcp
    return ip / TCP(**fields) / DATA[start : start + length]


def joined(*packets: Packet | bytearray) -> list[NetBuffer]:
    return coalesce([NetBuffer(one if isinstance(one, bytearray) else frame_of(one)) for one in packets])


def valid(frame: bytes | bytearray) -> Packet:
    """The packet of a frame whose lengths and checksums are those scapy computes itself."""
    ether = Ether(bytes(frame))
    fresh = ether.copy()
    for layer in (IP, IPv6, TCP):
        if layer in fresh:
            for field in ("chksum", "len", "plen"):
                if field in fresh[layer].fields:
                    fresh[layer].delfieldval(field)
    assert bytes(fresh) == bytes(frame)
    return ether


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [1000, 1001, 1447])
def test_consecutive_segments_become_one_superframe(version: int, size: int) -> None:
    parts = [segment(at, size, version, options=TIMES) for at in range(0, 5 * size, size)]
    (buffer,) = joined(*parts)
    packet = valid(buffer.frame)
    assert bytes(packet[TCP].payload) == DATA[: 5 * size]
    assert (packet[TCP].seq, packet[TCP].options) == (5000, TIMES)
    headers = 14 + (20 if version == 4 else 40) + 32
    kind = GSO_TCPV4 if version == 4 else GSO_TCPV6
    assert buffer.vnet == VnetHeader(0, kind, headers, size, 0, 0)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("last", [1, 2, 999])
@pytest.mark.parametrize("size", [999, 1000])
def test_shorter_segment_joins_and_ends_the_run(version: int, last: int, size: int) -> None:
    after = segment(2 * size + last, size, version)
    buffers = joined(
        segment(0, size, version), segment(size, size, version), segment(2 * size, last, version), after
    )
    if last < size:
        assert len(buffers) == 2
        assert bytes(valid(buffers[0].frame)[TCP].payload) == DATA[: 2 * size + last]
        assert buffers[1].frame == frame_of(after)
        assert buffers[1].vnet is None
    else:
        assert len(buffers) == 1


def test_psh_joins_shows_and_ends_the_run() -> None:
    buffers = joined(segment(0, 100), segment(100, 100, flags="PA"), segment(200, 100), segment(300, 100))
    assert [str(valid(one.frame)[TCP].flags) for one in buffers] == ["PA", "A"]
    assert [len(valid(one.frame)[TCP].payload) for one in buffers] == [200, 200]


def test_psh_on_the_first_segment_keeps_it_alone() -> None:
    buffers = joined(segment(0, 100, flags="PA"), segment(100, 100), segment(200, 100))
    assert [len(valid(one.frame)[TCP].payload) for one in buffers] == [100, 200]
    assert buffers[0].vnet is None


def test_single_frame_is_left_as_it_is() -> None:
    frame = frame_of(segment(0, 100))
    (buffer,) = joined(bytearray(frame))
    assert (buffer.frame, buffer.vnet) == (frame, None)
    assert joined() == []


def test_sequence_numbers_wrap_inside_a_run() -> None:
    (buffer,) = joined(segment(0, 100, seq=0xFFFFFFB0), segment(100, 100, seq=0x14))
    assert valid(buffer.frame)[TCP].seq == 0xFFFFFFB0


def test_flows_interleave_and_each_joins_in_the_place_of_its_first_segment() -> None:
    burst = []
    for at in range(0, 300, 100):
        for port in (80, 81, 82):
            burst.append(segment(at, 100, dport=port))
    buffers = joined(*burst)
    assert [valid(one.frame)[TCP].dport for one in buffers] == [80, 81, 82]
    assert all(bytes(valid(one.frame)[TCP].payload) == DATA[:300] for one in buffers)


def test_superframe_never_exceeds_what_ip_can_say() -> None:
    size = 1448
    buffers = joined(*[segment(at, size) for at in range(0, 47 * size, size)])
    assert len(buffers) == 2
    for one in buffers:
        packet = valid(one.frame)
        assert packet[IP].len == len(one.frame) - 14 <= 65535
    assert b"".join(bytes(valid(one.frame)[TCP].payload) for one in buffers) == DATA[: 47 * size]


def ttl(packet: Packet) -> None:
    packet[IP].ttl = 63


def tos(packet: Packet) -> None:
    packet[IP].tos = 3


def source(packet: Packet) -> None:
    packet[IP].src = "10.1.0.9"


def tcp(**fields: object) -> Callable[[Packet], None]:
    def change(packet: Packet) -> None:
        for name, value in fields.items():
            setattr(packet[TCP], name, value)

    return change


DIFFERENT: dict[str, Callable[[Packet], None]] = {
    "TTL": ttl,
    "traffic class": tos,
    "source": source,
    "source port": tcp(sport=1),
    "destination port": tcp(dport=1),
    "gap": tcp(seq=5101),
    "overlap": tcp(seq=5099),
    "acknowledgement": tcp(ack=10),
    "window": tcp(window=501),
    "options": tcp(options=TIMES),
    "reserved bits": tcp(reserved=1),
    "URG": tcp(flags="AU", urgptr=1),
    "SYN": tcp(flags="SA"),
    "FIN": tcp(flags="FA"),
    "RST": tcp(flags="RA"),
    "ECE": tcp(flags="AE"),
    "CWR": tcp(flags="AC"),
    "no ACK": tcp(flags=""),
}


@pytest.mark.parametrize("change", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_segment_that_differs_does_not_join_and_is_not_changed(change: Callable[[Packet], None]) -> None:
    other = segment(100, 100)
    change(other)
    first = frame_of(segment(0, 100))
    buffers = joined(bytearray(first), other)
    assert [bytes(one.frame) for one in buffers] == [bytes(first), bytes(frame_of(other))]
    assert [one.vnet for one in buffers] == [None, None]


def test_timestamps_that_differ_keep_segments_apart() -> None:
    later = [("NOP", None), ("NOP", None), ("Timestamp", (8, 8))]
    assert len(joined(segment(0, 100, options=TIMES), segment(100, 100, options=later))) == 2


def v6(**fields: object) -> Callable[[Packet], None]:
    def change(packet: Packet) -> None:
        for name, value in fields.items():
            setattr(packet[IPv6], name, value)

    return change


@pytest.mark.parametrize("change", [v6(hlim=1), v6(tc=1), v6(fl=1), v6(src="fd01::9"), v6(dst="fd02::9")])
def test_ipv6_headers_that_differ_keep_segments_apart(change: Callable[[Packet], None]) -> None:
    other = segment(100, 100, 6)
    change(other)
    assert len(joined(segment(0, 100, 6), other)) == 2


def test_ethernet_addresses_that_differ_keep_segments_apart() -> None:
    other = Ether(src="02:00:00:00:00:99", dst=ETHER.dst) / segment(100, 100)
    assert len(joined(segment(0, 100), other)) == 2


def not_df(packet: Packet) -> None:
    packet[IP].flags = ""


def fragment(packet: Packet) -> None:
    packet[IP].flags = "MF"


def later_fragment(packet: Packet) -> None:
    packet[IP].flags = "DF"
    packet[IP].frag = 3


def ip_options(packet: Packet) -> None:
    packet[IP].options = [IPOption_NOP()] * 4


@pytest.mark.parametrize("change", [not_df, fragment, later_fragment, ip_options])
def test_packets_a_host_could_not_take_apart_again_stay_single(change: Callable[[Packet], None]) -> None:
    packets = [segment(0, 100), segment(100, 100)]
    for packet in packets:
        change(packet)
    buffers = joined(*packets)
    assert [bytes(one.frame) for one in buffers] == [bytes(frame_of(packet)) for packet in packets]


def test_ipv6_extension_headers_stay_single() -> None:
    packets = [
        IPv6(src="fd01::1", dst="fd02::1") / IPv6ExtHdrDestOpt() / TCP(seq=at, flags="A") / bytes(100)
        for at in (0, 100)
    ]
    assert len(joined(*packets)) == 2


def test_tagged_frames_udp_and_others_pass_as_they_are() -> None:
    packets = [
        ETHER / Dot1Q(vlan=1) / segment(0, 100),
        ETHER / Dot1Q(vlan=1) / segment(100, 100),
        IP(dst="10.2.0.1") / UDP() / b"a",
        IP(dst="10.2.0.1") / UDP() / b"b",
    ]
    buffers = joined(*packets)
    assert [bytes(one.frame) for one in buffers] == [bytes(frame_of(packet)) for packet in packets]


def test_frames_that_have_a_virtio_header_pass_as_they_are() -> None:
    buffers = coalesce([NetBuffer(frame_of(segment(at, 100)), PLAIN) for at in (0, 100)])
    assert [one.vnet for one in buffers] == [PLAIN, PLAIN]


def test_ethernet_padding_keeps_a_frame_single() -> None:
    # The host, not we, cuts what is behind the packet.
    padded = frame_of(segment(0, 2)) + b"\0\0\0\0"
    assert len(joined(padded, segment(2, 2))) == 2


# order


BETWEEN: dict[str, Packet] = {
    "acknowledgement": segment(100, 0),
    "acknowledgement with options": segment(100, 0, options=TIMES),
    "FIN": segment(100, 0, flags="FA"),
    "RST": segment(100, 0, flags="R"),
    "SYN": segment(100, 0, flags="S"),
    "URG data": segment(100, 10, flags="AU"),
    "data out of order": segment(500, 100),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN.keys())
def test_nothing_of_a_flow_overtakes_anything_else_of_it(between: Packet, version: int) -> None:
    if version == 6:
        tcp_layer = between[TCP].copy()
        between = IPv6(src="fd01::1", dst="fd02::1") / tcp_layer
        tcp_layer.chksum = None
    buffers = joined(
        segment(0, 100, version), between, segment(100, 100, version), segment(200, 100, version)
    )
    seen = [bytes(one.frame) for one in buffers]
    middle = seen.index(bytes(frame_of(between)))
    before = [valid(frame)[TCP].seq for frame in seen[:middle]]
    after = [valid(frame)[TCP].seq for frame in seen[middle + 1 :]]
    assert 5100 not in before
    assert after in ([5100], [5100, 5200], [5100, 5200, 5300])
    assert sum(len(valid(frame)[TCP].payload) for frame in seen[middle + 1 :]) == 200


def test_retransmission_starts_a_run_of_its_own() -> None:
    buffers = joined(segment(0, 100), segment(0, 100), segment(100, 100))
    assert [bytes(valid(one.frame)[TCP].payload) for one in buffers] == [DATA[:100], DATA[:200]]


# damage


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [100, 101])
@pytest.mark.parametrize("damaged", range(4))
def test_damaged_segment_leaves_a_checksum_that_is_wrong(version: int, size: int, damaged: int) -> None:
    frames = [frame_of(segment(at, size, version)) for at in range(0, 4 * size, size)]
    frames[damaged][-7] ^= 0x40
    buffers = joined(*frames)
    assert len(buffers) == 1
    with pytest.raises(AssertionError):
        valid(buffers[0].frame)


def test_damaged_ip_header_is_not_repaired() -> None:
    frames = [frame_of(segment(at, 100)) for at in (0, 100, 200)]
    for damaged in range(3):
        copies = [bytearray(frame) for frame in frames]
        copies[damaged][14 + 4] ^= 0x80  # the identification, which nothing else looks at
        outcome = [bytes(one.frame) for one in joined(*[bytearray(copy) for copy in copies])]
        assert bytes(copies[damaged]) in outcome


@pytest.mark.parametrize("offset", [0, 4, 15])
def test_data_offset_that_lies_joins_nothing(offset: int) -> None:
    frames = [frame_of(segment(at, 30)) for at in (0, 30)]
    for frame in frames:
        frame[46] = offset << 4
    buffers = joined(*[bytearray(frame) for frame in frames])
    assert [one.frame for one in buffers] == frames


@pytest.mark.parametrize("length", range(34, 76))
def test_frames_cut_anywhere_pass_as_they_are(length: int) -> None:
    for version in (4, 6):
        frames = [frame_of(segment(at, 10, version))[:length] for at in (0, 10)]
        buffers = joined(*[bytearray(frame) for frame in frames])
        if length < len(frame_of(segment(0, 10, version))):
            assert [one.frame for one in buffers] == frames
