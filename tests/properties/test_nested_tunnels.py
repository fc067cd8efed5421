"""A tunnel in a tunnel: one policy cannot ask for it, two cards in a row do it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from transport_lab import (
    ANY,
    ANY6,
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
from vnic.errors import RequestError
from vnic.ndis.netbuffer import NetBuffer

pytestmark = BOTH_ENGINES

ENDS = {4: (NEAR, FAR), 6: (NEAR6, FAR6)}
OUTER_ENDS = {4: ("198.51.100.1", "198.51.100.2"), 6: ("2001:db8:1::1", "2001:db8:1::2")}


def test_one_policy_with_two_tunnels_is_refused_by_name() -> None:
    card = make_card(bytes)
    with pytest.raises(RequestError) as refused:
        card.add_policy(
            policy(OUT, ANY, template(ESP, TUNNEL, *ENDS[4]), template(ESP, TUNNEL, *OUTER_ENDS[4]))
        )
    assert refused.value.field == "tmpl"
    assert "then one tunnel" in str(refused.value.allowed)


@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize("middle", [4, 6])
@pytest.mark.parametrize("outer", [4, 6])
def test_two_cards_in_a_row_make_a_tunnel_in_a_tunnel(inner: int, middle: int, outer: int) -> None:
    rows = []
    for direction, seed in ((OUT, 10), (IN, 20)):
        row = []
        for number, (ends, version) in enumerate(((ENDS[middle], inner), (OUTER_ENDS[outer], middle))):
            card = make_card(random.Random(seed + number).randbytes)
            card.add_policy(policy(direction, ANY if version == 4 else ANY6, template(ESP, TUNNEL, *ends)))
            card.add_sa(
                replace(association(OUT, TUNNEL, *ends, spi=0x1000 + number), direction=direction), 0.0
            )
            row.append(card)
        rows.append(row)
    (near, near_outer), (far, far_outer) = rows
    near.wire_mtu = near_outer.inner_mtu(1500)
    largest = near.inner_mtu(near.wire_mtu)
    head = (
        IP(src="10.1.0.1", dst="10.2.0.1", flags="DF") if inner == 4 else IPv6(src="fd01::1", dst="fd02::1")
    )
    empty = len(head / UDP())
    for length in (0, 1, 500, largest - empty):
        frame = frame_of(head / UDP(sport=7, dport=8) / bytes(length))
        (once,) = near.send([NetBuffer(bytearray(frame))], 1.0).wire
        (twice,) = near_outer.send([NetBuffer(bytearray(once.frame))], 1.0).wire
        assert len(twice.frame) <= 1514
        (opened,) = far_outer.receive([NetBuffer(bytearray(twice.frame))], 1.0).host
        (got,) = far.receive([NetBuffer(bytearray(opened.frame))], 1.0).host
        assert bytes(got.frame) == bytes(frame)
    assert len(near_outer.send([NetBuffer(bytearray(once.frame))], 1.0).wire[0].frame) > 1480
