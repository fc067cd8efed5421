"""Whatever comes from the wire, and whatever the NIC says of it: a verdict, never a crash.

The NIC here lies: it calls arbitrary bytes verified. Then the transport may believe the contents, and must
still give the host well-formed frames of the kind it could have got, or nothing.
"""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Dot1Q
from scapy.packet import Raw
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
    association,
    frame_of,
    policy,
    template,
)

from vnic.errors import PacketError
from vnic.ndis.netbuffer import NetBuffer, ReceiveInfo
from vnic.ndis.status import CryptoStatus
from vnic.packet.ip import parse_ip
from vnic.transport.coalesce import coalesce
from vnic.transport.inbound import Inbound


def esp(payload: bytes, next_header: int, spi: int, number: int) -> bytes:
    pad = -(len(payload) + 2) % 4
    head = spi.to_bytes(4, "big") + number.to_bytes(4, "big") + bytes(8)
    return head + payload + bytes(range(1, pad + 1)) + bytes([pad, next_header]) + bytes(16)


def ah(payload: bytes, next_header: int, spi: int, number: int) -> bytes:
    return (
        bytes([next_header, 6, 0, 0])
        + spi.to_bytes(4, "big")
        + number.to_bytes(4, "big")
        + bytes(20)
        + payload
    )


INNER4 = bytes(IP(src="10.2.0.1", dst="10.1.0.1", tos=2) / TCP(flags="A") / (b"x" * 40))
INNER6 = bytes(IPv6(src="fd02::1", dst="fd01::1", tc=2) / IPv6ExtHdrDestOpt() / UDP() / (b"x" * 40))
MIDDLE = bytes(IP(src="10.2.0.1", dst="10.1.0.1", proto=50) / Raw(esp(INNER4[20:], 6, 0x3000, 5)))

CORPUS = [
    (bytes(frame_of(packet)), next_header)
    for packet, next_header in (
        (IP(src=FAR, dst=NEAR, proto=50, tos=3) / Raw(esp(INNER4, 4, 0x1000, 5)), 4),
        (IP(src=FAR, dst=NEAR, proto=50, tos=2) / Raw(esp(INNER4, 4, 0x1000, 5)), 4),
        (IP(src=FAR, dst=NEAR, proto=50) / Raw(esp(INNER6, 41, 0x1000, 5)), 41),
        (IP(src=FAR, dst=NEAR, proto=50) / Raw(esp(MIDDLE, 4, 0x1000, 5)), 6),
        (IP(src=FAR, dst=NEAR, proto=51) / Raw(ah(esp(INNER4, 4, 0x1000, 5), 50, 0x2000, 5)), 4),
        (IP(src="10.2.0.1", dst="10.1.0.1", proto=50) / Raw(esp(INNER4[20:], 6, 0x3000, 5)), 6),
        (ETHER / Dot1Q(vlan=3) / IP(src=FAR, dst=NEAR, proto=50) / Raw(esp(INNER6, 41, 0x1000, 5)), 41),
        (IPv6(src=FAR6, dst=NEAR6, nh=50) / Raw(esp(INNER6, 41, 0x6000, 5)), 41),
        (IPv6(src=FAR6, dst=NEAR6) / IPv6ExtHdrDestOpt(nh=50) / Raw(esp(INNER4, 4, 0x6000, 5)), 4),
    )
]

SAS = [
    association(IN, TUNNEL, FAR, NEAR, spi=0x1000),
    association(IN, TRANSPORT, FAR, NEAR, spi=0x2000, protocol=AH),
    association(IN, TRANSPORT, "10.2.0.1", "10.1.0.1", spi=0x3000, esn=True),
    association(IN, TUNNEL, FAR6, NEAR6, spi=0x6000, decap_dscp=True),
]
T_ESP, T_AH = template(ESP, TRANSPORT), template(AH, TRANSPORT)
TUNNEL4, TUNNEL6 = template(ESP, TUNNEL, FAR, NEAR), template(ESP, TUNNEL, FAR6, NEAR6)


def card() -> Card:
    made = Card()
    for sa in SAS:
        made.sad.add(sa, 0.0)
    made.spd.add(policy(IN, ANY, TUNNEL4))
    made.spd.add(policy(IN, ANY6, TUNNEL4))
    return made


INFOS = st.one_of(
    st.none(),
    st.builds(
        ReceiveInfo,
        st.booleans(),
        st.booleans(),
        st.sampled_from([CryptoStatus.SUCCESS] * 8 + list(CryptoStatus)),
        st.booleans(),
        st.booleans(),
        st.sampled_from([4, 41, 6, 17, 59, 0, 255]),
        st.sampled_from([0, 1, 2, 3, 255]),
    ),
)
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "grow"]),
        st.integers(0, 160),
        st.sampled_from([0, 1, 4, 0x45, 0x60, 50, 51, 255]),
    ),
    max_size=4,
)


def changed(frame: bytes, changes: list[tuple[str, int, int]], *, repair: bool) -> bytearray:
    """A mutated frame; `repair` gives it the outer checksum that the mutation broke."""
    data = bytearray(frame)
    for kind, at, value in changes:
        if kind == "set" and at < len(data):
            data[at] = value
        elif kind == "cut":
            del data[len(data) - at % (len(data) + 1) :]
        elif kind == "grow":
            data[at:at] = bytes([value]) * 3
    if repair and len(data) >= 34 and data[12:14] == b"\x08\x00":
        length = (data[14] & 15) * 4
        data[16:18] = (len(data) - 14 & 0xFFFF).to_bytes(2, "big")
        data[24:26] = bytes(2)
        total = sum(
            int.from_bytes(data[at : at + 2], "big") for at in range(14, min(14 + length, len(data)), 2)
        )
        data[24:26] = (0xFFFF - (total % 65535 or 0xFFFF)).to_bytes(2, "big")
    return data


def honest(frame: bytes, next_header: int) -> ReceiveInfo:
    """What fits a frame of the corpus before it was changed."""
    return ReceiveInfo(
        True,
        frame[12:14] == b"\x08\x00" and MIDDLE[:20] in frame,
        CryptoStatus.SUCCESS,
        False,
        True,
        next_header,
        frame[-18],
    )


def plausible(frame: bytearray) -> None:
    """A frame that a host could have got from an Ethernet: IP as long as it says, or not IP at all."""
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    if frame[at : at + 2] in (b"\x08\x00", b"\x86\xdd"):
        header = parse_ip(frame, at + 2)
        assert header.version == (4 if frame[at] == 8 else 6)
        assert header.end <= len(frame)


@settings(max_examples=800, deadline=None)
@given(st.sampled_from(CORPUS), CHANGES, st.booleans(), st.booleans())
@example(CORPUS[0], [], False, True)
def test_mutated_frame_called_verified_gives_a_plausible_frame_or_a_counted_drop(
    sample: tuple[bytes, int], changes: list[tuple[str, int, int]], repair: bool, primed: bool
) -> None:
    one = card()
    if primed:
        first = NetBuffer(bytearray(sample[0]))
        first.frame[first.frame.find(b"\0\0\0\x05") + 3] = 4
        first.receive = honest(*sample)
        one.inbound.receive([first], 0.0)
    before = sum(one.drops.values())
    buffer = NetBuffer(changed(sample[0], changes, repair=repair))
    buffer.receive = honest(*sample)
    ready = one.inbound.receive([buffer], 1.0)
    if ready:
        plausible(buffer.frame)
    assert len(ready) + sum(one.drops.values()) - before == 1
    coalesce(ready)


@settings(max_examples=800, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=150),
        st.builds(
            lambda sample, changes: bytes(changed(sample[0], changes, repair=True)),
            st.sampled_from(CORPUS),
            CHANGES,
        ),
    ),
    INFOS,
)
@example(b"", ReceiveInfo(True, True, CryptoStatus.SUCCESS))
@example(b"\x45" * 60, ReceiveInfo(True, False, CryptoStatus.SUCCESS, False, True, 4, 0))
def test_any_bytes_with_any_report_give_a_verdict(frame: bytes, info: ReceiveInfo | None) -> None:
    one = card()
    buffer = NetBuffer(bytearray(frame))
    buffer.receive = info
    ready = one.inbound.receive([buffer], 1.0)
    assert len(ready) + sum(one.drops.values()) == 1
    if info is not None and not info.verified:
        assert ready == []
    if ready and info is None:
        assert buffer.frame == frame


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=120), max_size=8))
def test_any_frames_can_be_coalesced(frames: list[bytes]) -> None:
    out = coalesce([NetBuffer(bytearray(frame)) for frame in frames])
    assert sum(len(one.frame) for one in out) <= sum(map(len, frames))


class _LongWay(Inbound):
    """The receive half without its short way for streams."""

    def _receive_plain(self, buffer: NetBuffer, info: ReceiveInfo, now: float) -> bool:
        return False


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from(CORPUS[:3]),
    st.lists(
        st.tuples(CHANGES, st.booleans(), st.integers(1, 12), st.sampled_from([0, 0, 0, 1, 2, 3])), max_size=8
    ),
)
def test_short_way_for_streams_decides_as_the_long_way_does(
    sample: tuple[bytes, int], stream: list[tuple[list[tuple[str, int, int]], bool, int, int]]
) -> None:
    short, long = card(), card()
    long.inbound = _LongWay(long.spd, long.sad, long.audit)
    plain = [([], True, 1, 0), ([], True, 2, 0)]
    for changes, repair, number, tos in [*plain, *stream]:
        frame = bytearray(sample[0])
        frame[14 + 20 + 4 : 14 + 20 + 8] = number.to_bytes(4, "big")
        frame[15] = tos
        results = []
        for one in (short, long):
            buffer = NetBuffer(changed(bytes(frame), changes, repair=repair))
            buffer.receive = honest(*sample)
            ready = one.inbound.receive([buffer], 1.0)
            results.append(
                (
                    bytes(buffer.frame) if ready else None,
                    one.audit.card,
                    [(state.counters, state.sequence_number) for state in one.sad],
                    [state.window.bitmap() for state in one.sad if state.window is not None],
                )
            )
        assert results[0] == results[1]


def test_short_way_is_taken_by_the_packets_it_is_for() -> None:
    # Else the comparison above would compare the long way with itself.
    one = card()
    taken = []
    original = one.inbound._receive_plain
    one.inbound._receive_plain = lambda *arguments: taken.append(original(*arguments)) or taken[-1]  # type: ignore[method-assign,func-returns-value]
    for number in (1, 2, 3):
        frame = bytearray(CORPUS[1][0])
        frame[38:42] = number.to_bytes(4, "big")
        data = changed(bytes(frame), [], repair=True)
        buffer = NetBuffer(data)
        buffer.receive = honest(*CORPUS[1])
        assert one.inbound.receive([buffer], 1.0) == [buffer]
    assert taken == [False, True, True]


def test_frame_that_does_not_parse_is_not_plausible() -> None:
    with pytest.raises(PacketError):
        plausible(frame_of(IP(src=FAR, dst=NEAR) / UDP())[:30])
