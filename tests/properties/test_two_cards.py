"""Two cards and a bad wire between them: every packet arrives at most once and as it was sent."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from transport_lab import (
    AH,
    ANY,
    ANY6,
    ESP,
    FAR,
    FAR6,
    IN,
    NEAR,
    NEAR6,
    OUT,
    TRANSPORT,
    TUNNEL,
    association,
    frame_of,
    policy,
    template,
)

from tests.engines import BOTH_ENGINES, make_card
from vnic.engine.reference import ReferenceEngine
from vnic.ipsec.drops import DropReason
from vnic.ndis.capabilities import OffloadCapabilities
from vnic.ndis.netbuffer import NetBuffer

pytestmark = BOTH_ENGINES

WRAP = 1 << 32

CAPABILITIES = [
    OffloadCapabilities(),
    OffloadCapabilities(sa_offload_capacity=1),
    OffloadCapabilities(ah_esp_combined=False),
    OffloadCapabilities(ah=False, authentication_algorithms=0x3, ipv6_supported=False),
    OffloadCapabilities(extended_sequence_numbers=False),
]


@st.composite
def links(draw: st.DrawFn) -> tuple[ReferenceEngine, ReferenceEngine]:
    """Two cards with the same SAs."""
    near, far = draw(st.sampled_from([(NEAR, FAR), (NEAR6, FAR6)]))
    esn = draw(st.booleans())
    start = (
        draw(st.sampled_from([0, 5, WRAP - 20, WRAP - 1, 3 * WRAP - 8])) if esn else draw(st.integers(0, 9))
    )
    window = draw(st.sampled_from([64, 100, 1024]))
    encryption, integrity = draw(
        st.sampled_from([("aes-gcm-128", None), ("aes-cbc-128", "hmac-sha256-128"), ("null", "aes-gmac-128")])
    )
    templates = [template(ESP, TUNNEL, near, far)]
    members = {"esn": esn, "sequence_number": start, "replay_window": window}
    sas = [association(OUT, TUNNEL, near, far, encryption=encryption, integrity=integrity, **members)]
    if draw(st.booleans()):
        templates.append(template(AH, TRANSPORT))
        sas.append(association(OUT, TRANSPORT, near, far, protocol=AH, spi=0x2000, **members))
    left, right = (
        make_card(random.Random(seed).randbytes, capabilities=draw(st.sampled_from(CAPABILITIES)))
        for seed in (1, 2)
    )
    for family in (ANY, ANY6):
        left.add_policy(policy(OUT, family, *templates))
        right.add_policy(policy(IN, family, *templates))
    for sa in sas:
        left.add_sa(sa, 0.0)
        right.add_sa(replace(sa, direction=IN), 0.0)
    return left, right


PACKETS = [
    bytes(frame_of(packet))
    for length in (0, 1, 7, 100)
    for packet in (
        IP(src="10.1.0.1", dst="10.2.0.1", id=length) / UDP(sport=7, dport=8) / bytes(length),
        IPv6(src="fd01::1", dst="fd02::1", fl=length) / UDP(sport=7, dport=8) / bytes(length),
    )
]

FATES = st.lists(
    st.tuples(
        st.sampled_from(PACKETS),
        st.integers(0, 2),  # copies that arrive
        st.integers(0, 30),  # how late
        st.one_of(st.none(), st.tuples(st.integers(14, 80), st.integers(0, 7))),  # a copy that is damaged
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=120, deadline=None)
@given(links(), FATES)
def test_lost_late_doubled_and_damaged_frames_never_make_a_packet_that_was_not_sent(
    link: tuple[ReferenceEngine, ReferenceEngine],
    fates: list[tuple[bytes, int, int, tuple[int, int] | None]],
) -> None:
    left, right = link
    wire = left.send([NetBuffer(bytearray(packet)) for packet, *_ in fates], 1.0).wire
    assert len(wire) == len(fates)
    arrivals: list[tuple[int, int, bytearray]] = []
    for index, (buffer, (_, copies, late, damage)) in enumerate(zip(wire, fates, strict=True)):
        for copy in range(copies):
            arrivals.append((index + late * copy, index, bytearray(buffer.frame)))
        if damage is not None:
            at, bit = damage
            frame = bytearray(buffer.frame)
            frame[at % (len(frame) - 14) + 14] ^= 1 << bit
            arrivals.append((index, -1, frame))
    arrivals.sort(key=lambda arrival: arrival[0])
    delivered = [0] * len(fates)
    for _, index, frame in arrivals:
        for got in right.receive([NetBuffer(frame)], 1.0).host:
            # An IPv6 outer header has no checksum: a damaged class, label or hop limit may come through.
            origin = (
                index
                if index >= 0
                else fates.index(next(fate for fate in fates if fate[0][14:] == got.frame[14:]))
            )
            assert got.frame[14:] == fates[origin][0][14:]
            if index >= 0:
                delivered[index] += 1
    assert max(delivered) <= 1
    for index, (_, copies, _, damage) in enumerate(fates):
        if copies and damage is None:
            assert delivered[index] == 1
    counted = right.counters
    assert counted.rx_offloaded + counted.rx_software + sum(counted.drops.values()) == len(arrivals)
    assert set(counted.drops) <= {
        DropReason.IN_REPLAY_DUPLICATE,
        DropReason.IN_ICV,
        DropReason.IN_NO_SA,
        DropReason.IN_SYNTAX,
        DropReason.IN_MALFORMED,
        DropReason.IN_FRAGMENT,
        DropReason.IN_CRYPTO,
        DropReason.IN_PROTOCOL,
        DropReason.IN_POLICY_MISMATCH,
    }


@settings(max_examples=150, deadline=None)
@given(
    links(),
    st.lists(
        st.tuples(st.integers(1, 4), st.booleans(), st.booleans(), st.sampled_from(PACKETS)),
        min_size=1,
        max_size=16,
    ),
)
def test_work_that_changes_hands_between_nic_and_software_loses_and_repeats_nothing(
    link: tuple[ReferenceEngine, ReferenceEngine], steps: list[tuple[int, bool, bool, bytes]]
) -> None:
    left, right = link
    ivs: list[bytes] = []
    sent = 0
    for count, left_balanced, right_balanced, packet in steps:
        left.set_load_balanced(left_balanced)
        right.set_load_balanced(right_balanced)
        sent += count
        wire = left.send([NetBuffer(bytearray(packet)) for _ in range(count)], 1.0).wire
        esp = next(report.sa for report in left.sas() if report.sa.protocol is ESP)
        iv_length = esp.iv_length
        for buffer in wire:
            start = bytes(buffer.frame).index(esp.spi.to_bytes(4, "big"), 34) + 8
            ivs.append(bytes(buffer.frame[start : start + iv_length]))
        host = right.receive([NetBuffer(bytearray(buffer.frame)) for buffer in wire], 1.0).host
        assert [bytes(buffer.frame) for buffer in host] == [packet] * count
    assert len(set(ivs)) == len(ivs) == sent
    for tx, rx in ((left.counters, right.counters),):
        assert tx.tx_offloaded + tx.tx_software == rx.rx_offloaded + rx.rx_software == sent
        assert tx.drops == rx.drops == {}
