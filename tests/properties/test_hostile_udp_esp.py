"""Whatever stands in UDP on the port of an SA: nothing breaks, nothing passes unproven, all is counted."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw
from transport_lab import (
    ANY,
    ESP,
    FAR,
    FAR6,
    IN,
    NEAR,
    NEAR6,
    OUT,
    TUNNEL,
    association,
    frame_of,
    policy,
    template,
)

from tests.engines import BOTH_ENGINES, make_card
from vnic.engine.reference import ReferenceEngine
from vnic.ipsec.udp_encapsulation import UdpEncapsulation
from vnic.ndis.capabilities import OffloadCapabilities
from vnic.ndis.netbuffer import NetBuffer

pytestmark = BOTH_ENGINES

WRAPPED = UdpEncapsulation(4500, 4500, follow=True)
SA = association(IN, TUNNEL, NEAR, FAR, udp=WRAPPED)
INNER = IP(src="10.1.0.1", dst="10.2.0.1") / UDP() / b"CLEARTEXT"


def listener(udp_esp: int) -> ReferenceEngine:
    capabilities = replace(OffloadCapabilities(), udp_esp=udp_esp)
    card = make_card(random.Random(1).randbytes, capabilities=capabilities)
    card.add_policy(policy(IN, ANY, template(ESP, TUNNEL, NEAR, FAR)))
    card.add_sa(SA, 0.0)
    card.add_sa(association(IN, TUNNEL, NEAR6, FAR6, udp=WRAPPED), 0.0)
    return card


def good() -> bytes:
    card = make_card(random.Random(2).randbytes)
    card.add_policy(policy(OUT, ANY, template(ESP, TUNNEL, NEAR, FAR)))
    card.add_sa(replace(SA, direction=OUT, udp=replace(WRAPPED, follow=False)), 0.0)
    return bytes(card.send([NetBuffer(frame_of(INNER))], 1.0).wire[0].frame)


GOOD = good()


def conserved(card: ReferenceEngine, count: int, hosts: int) -> None:
    assert hosts + sum(card.counters.drops.values()) == count


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=80), min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from([0, 0xF]),
    st.sampled_from([None, 0, 7, 9, 65535]),
)
def test_any_datagram_is_counted_or_is_not_esp(
    texts: list[bytes], ipv6: bool, udp_esp: int, length: int | None
) -> None:
    card = listener(udp_esp)
    outer = IPv6(src=NEAR6, dst=FAR6) if ipv6 else IP(src=NEAR, dst=FAR)
    packets = [outer / UDP(sport=4500, dport=4500, len=length) / Raw(text) for text in texts]
    host = card.receive([NetBuffer(frame_of(one)) for one in packets], 1.0).host
    conserved(card, len(packets), len(host))
    assert card.counters.rx_offloaded == card.counters.rx_software == card.counters.rx_peer_moved == 0


@settings(deadline=None, max_examples=200)
@given(
    st.integers(14, len(GOOD) - 1),
    st.integers(1, 255),
    st.integers(0, len(GOOD)),
    st.sampled_from([0, 0xF]),
)
def test_a_changed_or_cut_packet_never_passes_as_another(
    position: int, change: int, cut: int, udp_esp: int
) -> None:
    card = listener(udp_esp)
    frame = bytearray(GOOD)
    frame[position] ^= change
    frame = frame[: max(cut, 14)] if cut < len(frame) // 2 else frame
    host = card.receive([NetBuffer(frame)], 1.0).host
    if card.counters.rx_offloaded or card.counters.rx_software:
        # What neither ICV nor IP checksum covers: the source port, which only says who is followed.
        assert [bytes(one.frame) for one in host] == [bytes(frame_of(INNER))]
    assert len(host) + sum(card.counters.drops.values()) in (0, 1)
