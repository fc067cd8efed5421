"""Whatever the order of packets, clock and changes: nothing is sealed or passed beyond a hard limit."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from transport_lab import ANY, ESP, FAR, IN, NEAR, OUT, TUNNEL, association, policy, template

from tests.engines import BOTH_ENGINES, make_card
from vnic.engine.reference import ReferenceEngine
from vnic.ipsec.lifetime import Lifetime
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.vnet import GSO_TCPV4, NEEDS_CSUM, VnetHeader

pytestmark = BOTH_ENGINES

ETHERNET = bytes.fromhex("0200000000020200000000010800")
SEGMENT = 1000

_limit = st.one_of(st.just(0), st.integers(1, 60))
_bytes = st.one_of(st.just(0), st.integers(1, 60_000))
LIVES = st.builds(
    Lifetime,
    time_soft=_limit,
    time_hard=_limit,
    time_use_soft=_limit,
    time_use_hard=_limit,
    byte_soft=_bytes,
    byte_hard=_bytes,
    packet_soft=_limit,
    packet_hard=_limit,
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.lists(st.integers(0, 1400), min_size=1, max_size=6)),
        st.tuples(st.just("large"), st.lists(st.integers(2, 20), min_size=1, max_size=2)),
        st.tuples(st.just("wait"), st.lists(st.integers(0, 20), min_size=1, max_size=1)),
        st.tuples(st.just("timer"), st.just([0])),
        st.tuples(st.just("update"), st.just([0])),
    ),
    max_size=40,
)


def packet(length: int) -> tuple[NetBuffer, int]:
    data = bytes(IP(src="10.1.0.1", dst="10.2.0.1") / UDP(sport=7, dport=8) / bytes(length))
    return NetBuffer(bytearray(ETHERNET + data)), len(data)


def large(count: int) -> tuple[NetBuffer, int]:
    data = bytes(IP(src="10.1.0.1", dst="10.2.0.1") / TCP(flags="A") / bytes(count * SEGMENT))
    vnet = VnetHeader(NEEDS_CSUM, GSO_TCPV4, 54, SEGMENT, 34, 16)
    return NetBuffer(bytearray(ETHERNET + data), vnet), len(data) + (count - 1) * 40


@settings(max_examples=150, deadline=None)
@given(LIVES, LIVES, STEPS)
def test_nothing_passes_a_hard_limit(
    life: Lifetime, far: Lifetime, steps: list[tuple[str, list[int]]]
) -> None:
    left, right = make_card(bytes), make_card(bytes)
    sa = association()
    now = 0.0
    for card, direction, one in ((left, OUT, life), (right, IN, far)):
        card.add_policy(policy(direction, ANY, template(ESP, TUNNEL, NEAR, FAR)))
        card.add_sa(replace(sa, direction=direction, lifetime=one), now)
    counts = {left: [0, 0], right: [0, 0]}
    first: dict[ReferenceEngine, float] = {}
    for step, numbers in steps:
        if step in ("send", "large"):
            burst = [(packet if step == "send" else large)(number)[0] for number in numbers]
            wire = left.send(burst, now).wire
            frames = [bytearray(buffer.frame) for buffer in wire]
            counts[left][0] += len(frames)
            inner = [int.from_bytes(frame[16:18], "big") - 20 for frame in frames]
            host = []
            for frame in frames:
                host += right.receive([NetBuffer(frame)], now).host
            counts[right][0] += len(host)
            counts[right][1] += sum(len(buffer.frame) - 14 for buffer in host)
            # ESP of AES-GCM: header 8, IV 8, padding of 0 to 3, trailer 2, ICV 16.
            counts[left][1] += sum(length - 34 - 3 for length in inner)
            for card, passed in ((left, frames), (right, host)):
                if passed:
                    first.setdefault(card, now)
                    for member, since in (("time_hard", 0.0), ("time_use_hard", first[card])):
                        limit = getattr(life if card is left else far, member)
                        assert not limit or now - since < limit, member
        elif step == "wait":
            now += numbers[0]
        elif step == "timer":
            left.keep_time(now)
            right.keep_time(now)
        elif left.find_sa(sa.id) is not None:
            left.add_sa(replace(sa, lifetime=life), now, replace=True)
        for card, limits in ((left, life), (right, far)):
            packets, size = counts[card]
            assert not limits.packet_hard or packets <= limits.packet_hard
            assert not limits.byte_hard or size <= limits.byte_hard
            events = [event for event in card.take_events() if event.kind.value.startswith("sa_")]
            assert all(event.limit for event in events)
            if any(event.kind.value == "sa_expired" for event in events):
                assert card.find_sa(sa.id) is None
