"""Fragments made by scapy and put together by the card; what is wrong with them ends under its own name."""

from __future__ import annotations

import random

import pytest
from scapy.layers.inet import IP, IPOption_Router_Alert, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrRouting, fragment6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw
from transport_lab import ETHER, FAR, FAR6, NEAR, NEAR6, frame_of

from vnic.packet.ip import parse_ip
from vnic.transport.reassembly import Reassembly, may_be_joined

DATA = random.Random(1).randbytes(8000)
V4 = {"src": FAR, "dst": NEAR}
V6 = {"src": FAR6, "dst": NEAR6}


class Bench:
    """A reassembly, and what ended in it by name."""

    def __init__(self, **bounds: int) -> None:
        self.joining = Reassembly(**bounds)

    def add(self, *packets: Packet, now: float = 1.0) -> list[bytes]:
        whole = []
        for packet in packets:
            frame = frame_of(packet)
            offset = 18 if frame[12:14] == b"\x81\x00" else 14
            joined = self.joining.add(frame, parse_ip(frame, offset), now)
            if joined is not None:
                whole.append(bytes(joined))
        return whole

    @property
    def ended(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for one in self.joining.ended:
            counts[one.reason.value] = counts.get(one.reason.value, 0) + one.count
        return counts

    @property
    def empty(self) -> bool:
        return len(self.joining) == 0 and self.joining.bytes == 0


def pieces4(length: int = 4000, size: int = 1480, **fields: object) -> list[Packet]:
    packet = IP(**V4, id=7, proto=50, **fields) / Raw(DATA[:length])
    return [IP(bytes(one)) for one in fragment(packet, size)]


def pieces6(length: int = 4000, size: int = 1280, identification: int = 7) -> list[Packet]:
    packet = IPv6(**V6, fl=3) / IPv6ExtHdrFragment(id=identification, nh=50) / Raw(DATA[:length])
    return [IPv6(bytes(one)) for one in fragment6(packet, size)]


WHOLE4 = bytes(frame_of(IP(**V4, id=7, proto=50) / Raw(DATA[:4000])))
WHOLE6 = bytes(frame_of(IPv6(**V6, fl=3, nh=50) / Raw(DATA[:4000])))


@pytest.mark.parametrize("seed", range(12))
def test_fragments_make_the_packet_again_in_any_order(seed: int) -> None:
    chance = random.Random(seed)
    for pieces, whole in (
        (pieces4(size=chance.choice([400, 800, 1480])), WHOLE4),
        (pieces6(size=chance.choice([600, 1280])), WHOLE6),
    ):
        chance.shuffle(pieces)
        bench = Bench()
        assert bench.add(*pieces) == [whole]
        assert bench.joining.joined == len(pieces)
        assert bench.ended == {}
        assert bench.empty


def test_headers_in_front_of_the_fragment_header_stay() -> None:
    options = [IPOption_Router_Alert()]
    assert Bench().add(*pieces4(options=options)) == [
        bytes(frame_of(IP(**V4, id=7, proto=50, options=options) / Raw(DATA[:4000])))
    ]
    front = IPv6(**V6) / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting(addresses=["fd03::1"])
    parts = [(0, 1, DATA[:1000]), (125, 0, DATA[1000:1500])]
    six = [front / IPv6ExtHdrFragment(offset=at, m=more, nh=50) / Raw(data) for at, more, data in parts]
    whole = bytearray(frame_of(front / Raw(DATA[:1500])))
    whole[14 + 40 + 8] = 50
    assert Bench().add(*six) == [bytes(whole)]


def test_packets_of_others_and_of_other_vlans_do_not_mix() -> None:
    bench = Bench()
    first, *rest = pieces4()
    others = [
        IP(src="192.0.2.9", dst=NEAR, id=7, proto=50, frag=185) / Raw(DATA[:800]),
        IP(**V4, id=8, proto=50, frag=185) / Raw(DATA[:800]),
        IP(**V4, id=7, proto=51, frag=185) / Raw(DATA[:800]),
        ETHER / Dot1Q(vlan=5) / IP(**V4, id=7, proto=50, frag=185) / Raw(DATA[:800]),
    ]
    assert bench.add(first, *others) == []
    assert bench.add(*rest) == [WHOLE4]
    assert len(bench.joining) == len(others)


def test_vlan_tag_stays() -> None:
    tagged = [ETHER / Dot1Q(vlan=5) / one for one in pieces4()]
    (whole,) = Bench().add(*tagged)
    assert Ether(whole)[Dot1Q].vlan == 5
    assert bytes(Ether(whole)[IP]) == WHOLE4[14:]


@pytest.mark.parametrize("version", [4, 6])
def test_fragments_that_overlap_spoil_their_packet_and_what_still_comes_of_it(version: int) -> None:
    """RFC 5722 §3."""
    first, second, *rest = pieces4() if version == 4 else pieces6()
    evil = second.copy()
    if version == 4:
        evil.frag -= 1
        del evil.chksum
    else:
        evil[IPv6ExtHdrFragment].offset -= 1
    bench = Bench()
    assert bench.add(first, evil, second, *rest) == []
    assert bench.ended == {"in_fragment_overlap": 2 + 1 + len(rest)}
    assert bench.joining.bytes == 0
    # Once its time is over the name is free again.
    bench.joining.expire(100.0)
    assert bench.empty
    assert bench.add(first, second, *rest, now=100.0) == [WHOLE4 if version == 4 else WHOLE6]


def test_other_bytes_at_the_same_place_are_an_overlap() -> None:
    first, second, *rest = pieces4()
    evil = IP(bytes(first)[:20] + bytes(1480))
    bench = Bench()
    assert bench.add(first, evil, second, *rest) == []
    assert set(bench.ended) == {"in_fragment_overlap"}


def test_two_ends_of_one_packet_contradict_each_other() -> None:
    first, _, last = pieces4()
    longer = IP(**V4, id=7, proto=50, frag=last.frag + 200) / Raw(DATA[:100])
    for order in ((last, longer), (longer, last), (first, last, longer)):
        bench = Bench()
        bench.add(*order)
        assert bench.ended == {"in_fragment_overlap": len(order)}


def test_same_fragment_again_ends_alone() -> None:
    first, second, last = pieces4()
    bench = Bench()
    assert bench.add(first, first, second, second, last) == [WHOLE4]
    assert bench.ended == {"in_fragment_duplicate": 2}


@pytest.mark.parametrize(
    ("piece", "reason"),
    [
        (IP(**V4, flags="MF", proto=50) / Raw(DATA[:32]), "in_fragment_tiny"),
        (IP(**V4, flags="MF", proto=50) / Raw(DATA[:8]), "in_fragment_tiny"),
        (IPv6(**V6) / IPv6ExtHdrFragment(m=1, nh=50) / Raw(DATA[:248]), "in_fragment_tiny"),
        (IP(**V4, flags="MF", proto=50) / Raw(DATA[:1001]), "in_fragment_invalid"),
        (IP(**V4, frag=100, proto=50), "in_fragment_invalid"),
        (IP(**V4, frag=8189, proto=50) / Raw(DATA[:100]), "in_fragment_invalid"),
        (IPv6(**V6) / IPv6ExtHdrFragment(offset=8191, nh=50) / Raw(DATA[:100]), "in_fragment_invalid"),
        (IP(**V4, flags="MF", proto=50, chksum=1) / Raw(DATA[:800]), "in_malformed"),
    ],
)
def test_fragment_that_is_wrong_by_itself_is_not_kept(piece: Packet, reason: str) -> None:
    bench = Bench()
    assert bench.add(piece) == []
    assert bench.ended == {reason: 1}
    assert bench.empty


def test_smallest_fragments_of_the_smallest_link_are_taken() -> None:
    # RFC 791: 68 bytes pass every link; 48 without the header.
    assert Bench().add(*pieces4(400, 48)) == [bytes(frame_of(IP(**V4, id=7, proto=50) / Raw(DATA[:400])))]


def test_last_fragment_may_be_as_small_as_it_is() -> None:
    assert len(Bench().add(*pieces4(1481, 1480))) == 1


@pytest.mark.parametrize(("version", "seconds"), [(4, 30.0), (6, 60.0)])
def test_fragments_wait_for_the_others_so_long(version: int, seconds: float) -> None:
    first, second, *rest = pieces4() if version == 4 else pieces6()
    bench = Bench()
    bench.add(first, now=10.0)
    bench.add(second, now=10.0 + seconds - 0.1)
    assert bench.joining.deadline == 10.0 + seconds
    assert bench.ended == {}
    bench.joining.expire(10.0 + seconds)
    assert bench.ended == {"in_fragment_timeout": 2}
    assert bench.empty
    assert bench.joining.deadline == float("inf")
    assert bench.add(*rest, now=10.0 + seconds) == []


def test_memory_is_bounded_and_the_oldest_make_room() -> None:
    bench = Bench(max_bytes=20_000)
    for number in range(40):
        bench.add(IP(src=f"192.0.2.{number}", dst=NEAR, proto=50, flags="MF") / Raw(DATA[:1480]))
        assert bench.joining.bytes <= 20_000
    kept = len(bench.joining)
    assert bench.ended == {"in_fragment_limit": 40 - kept}
    # The youngest can still be finished.
    last = IP(src="192.0.2.39", dst=NEAR, proto=50, frag=185) / Raw(DATA[:100])
    assert len(bench.add(last)) == 1


def test_one_packet_cannot_take_all_the_memory() -> None:
    bench = Bench(max_bytes=3000)
    first, second, last = pieces4()
    assert bench.add(first, second, last) == []
    assert bench.joining.bytes <= 3000
    assert set(bench.ended) == {"in_fragment_limit"}


def test_one_source_cannot_crowd_out_others() -> None:
    bench = Bench()
    (first, *rest) = pieces4()
    bench.add(first)
    for number in range(2000):
        bench.add(IP(src="198.51.100.1", dst=NEAR, id=number, proto=50, flags="MF") / Raw(DATA[:800]))
    assert len(bench.joining) == 1 + 64
    assert bench.ended == {"in_fragment_limit": 2000 - 64}
    assert bench.add(*rest) == [WHOLE4]


def test_number_of_packets_under_way_is_bounded() -> None:
    bench = Bench()
    for number in range(1100):
        source = f"198.18.{number // 200}.{number % 200}"
        bench.add(IP(src=source, dst=NEAR, proto=50, flags="MF") / Raw(DATA[:64]))
    assert len(bench.joining) == 1024
    assert bench.ended == {"in_fragment_limit": 76}


@pytest.mark.parametrize(
    ("marks", "result"),
    [((2, 2, 2), 2), ((2, 3, 2), 3), ((1, 3, 3), 3), ((3, 3, 3), 3), ((0, 0, 0), 0), ((0, 3, 0), None)],
)
def test_congestion_mark_of_one_fragment_is_that_of_the_packet(
    marks: tuple[int, ...], result: int | None
) -> None:
    """RFC 3168 §5.3."""
    pieces = pieces4()
    for piece, mark in zip(pieces, marks, strict=True):
        piece.tos = mark
        del piece.chksum
    bench = Bench()
    whole = bench.add(*[IP(bytes(piece)) for piece in pieces])
    if result is None:
        assert whole == []
        assert bench.ended == {"in_fragment_invalid": 3}
    else:
        packet = Ether(whole[0])[IP]
        assert packet.tos == result
        copy = packet.copy()
        del copy.chksum
        assert bytes(copy) == bytes(packet)


def test_only_fragments_that_show_the_protocol_of_the_whole_are_joined() -> None:
    for packet, joined in (
        (IP(**V4, flags="MF", proto=50) / Raw(DATA[:800]), True),
        (IP(**V4, proto=50) / Raw(DATA[:800]), False),
        (IPv6(**V6) / IPv6ExtHdrFragment(m=1, nh=50) / Raw(DATA[:800]), True),
        (IPv6(**V6) / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(m=1, nh=50) / Raw(DATA[:800]), True),
        (IPv6(**V6) / IPv6ExtHdrFragment(m=1) / IPv6ExtHdrDestOpt(nh=50) / Raw(DATA[:800]), False),
        (IPv6(**V6) / IPv6ExtHdrFragment(nh=50) / Raw(DATA[:800]), False),
    ):
        frame = frame_of(packet)
        assert may_be_joined(frame, parse_ip(frame, 14)) is joined
