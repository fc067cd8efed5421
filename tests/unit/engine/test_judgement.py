"""What policy would do with a packet: what `send` and `receive` then do; and nothing changes by asking."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw
from transport_lab import (
    AH,
    ANY,
    ESP,
    FAR,
    IN,
    NEAR,
    OUT,
    TRANSPORT,
    TUNNEL,
    association,
    frame_of,
    policy,
    prefix,
    selector,
    template,
)

from tests.engines import BOTH_ENGINES, make_card
from vnic.engine.reference import ReferenceEngine
from vnic.ipsec.drops import DropReason
from vnic.ipsec.judgement import Judgement
from vnic.ipsec.policy import Defaults, FlowKey, PolicyAction, PolicyEntry
from vnic.ndis.capabilities import OffloadCapabilities
from vnic.ndis.netbuffer import NetBuffer

pytestmark = BOTH_ENGINES

V4 = {"src": "10.1.0.1", "dst": "10.2.0.1"}
FLOW = FlowKey(prefix("10.1.0.1").address, prefix("10.2.0.1").address, 17, 7, 8)
HIDDEN = FLOW._replace(source_port=-1, destination_port=-1)
T_ESP, T_AH = template(ESP, TRANSPORT), template(AH, TRANSPORT)
U_ESP = template(ESP, TUNNEL, NEAR, FAR)
WHOLE, LATER = IP(**V4) / UDP(sport=7, dport=8) / bytes(24), IP(**V4, frag=3, proto=17) / Raw(bytes(24))
PORTS = selector(protocol=17, destination_port=8)
ENDS = {"mode": TRANSPORT, "source": V4["src"], "destination": V4["dst"]}
CASES = {
    "default": ([], [], None, PolicyAction.BYPASS),
    "bypass": ([policy(OUT, ANY)], [], None, PolicyAction.BYPASS),
    "discard": (
        [policy(OUT, ANY, action=PolicyAction.DISCARD)],
        [],
        DropReason.OUT_POLICY_DISCARD,
        PolicyAction.DISCARD,
    ),
    "tunnel": ([policy(OUT, PORTS, U_ESP)], [association()], None, PolicyAction.PROTECT),
    "no SA": ([policy(OUT, ANY, U_ESP)], [], DropReason.OUT_NO_SA, PolicyAction.PROTECT),
    "other SA": (
        [policy(OUT, ANY, replace(U_ESP, reqid=5))],
        [association()],
        DropReason.OUT_NO_SA,
        PolicyAction.PROTECT,
    ),
    "used up": (
        [policy(OUT, ANY, U_ESP)],
        [association(sequence_number=0xFFFFFFFF)],
        DropReason.OUT_SEQUENCE_EXHAUSTED,
        PolicyAction.PROTECT,
    ),
    "bundle": (
        [policy(OUT, ANY, T_ESP, T_AH)],
        [association(**ENDS), association(**ENDS, protocol=AH, spi=0x1001)],
        None,
        PolicyAction.PROTECT,
    ),
    "half a bundle": (
        [policy(OUT, ANY, T_ESP, T_AH)],
        [association(**ENDS)],
        DropReason.OUT_NO_SA,
        PolicyAction.PROTECT,
    ),
}


def engine(**options: object) -> ReferenceEngine:
    return make_card(random.Random(0).randbytes, **options)  # type: ignore[arg-type]


def card_for(policies: list[PolicyEntry], sas: list[object], **options: object) -> ReferenceEngine:
    card = engine(**options)
    for sa in sas:
        card.add_sa(sa, 0.0)  # type: ignore[arg-type]
    for entry in policies:
        card.add_policy(entry)
    return card


@pytest.mark.parametrize("name", list(CASES))
def test_what_is_judged_is_what_then_happens(name: str) -> None:
    policies, sas, drop, action = CASES[name]
    card = card_for(policies, sas)
    before = card.sas()
    judged = card.judge(OUT, FLOW)
    assert card.judge(OUT, FLOW) == judged
    assert card.sas() == before, "nothing changes by asking"
    assert (judged.drop, judged.action) == (drop, action)
    assert judged.policy == (card.policies()[0] if policies else None)
    wire = card.send([NetBuffer(frame_of(WHOLE))], 1.0).wire
    assert dict(card.counters.drops) == ({} if drop is None else {drop: 1})
    assert len(wire) == (drop is None)
    if drop is None and action is PolicyAction.PROTECT:
        numbers = {report.sa.id: report.sequence_number for report in card.sas()}
        assert [numbers[choice.sa] for choice in judged.choices if choice.sa] == [1] * len(judged.choices)


def test_every_template_says_its_sa_up_to_the_first_that_has_none() -> None:
    policies, sas, *_ = CASES["half a bundle"]
    card = card_for(policies, sas)
    (esp,) = card.sas()
    assert [(choice.template, choice.sa) for choice in card.judge(OUT, FLOW).choices] == [
        (T_ESP, esp.sa.id),
        (T_AH, None),
    ]


def test_a_later_fragment_is_judged_without_ports() -> None:
    card = card_for([policy(OUT, PORTS, U_ESP)], [association()])
    judged = card.judge(OUT, HIDDEN)
    assert judged == Judgement(PolicyAction.DISCARD, None, DropReason.OUT_FRAGMENT)
    assert card.send([NetBuffer(frame_of(LATER))], 1.0).wire == []
    assert dict(card.counters.drops) == {DropReason.OUT_FRAGMENT: 1}
    assert card.judge(IN, HIDDEN) == Judgement(PolicyAction.BYPASS, None, None)
    card.add_policy(policy(IN, PORTS))
    assert card.judge(IN, HIDDEN).drop is DropReason.IN_FRAGMENT


def test_a_fragment_waits_for_the_others_where_policy_wants_transport_mode() -> None:
    card = card_for([policy(OUT, ANY, T_ESP)], [association(**ENDS)])
    assert card.judge(OUT, FLOW).drop is None
    assert card.judge(OUT, HIDDEN).drop is None
    assert card.send([NetBuffer(frame_of(LATER))], 1.0).wire == []
    assert dict(card.counters.drops) == {}


def test_a_card_without_software_says_what_its_nic_may_not() -> None:
    policies, sas, *_ = CASES["bundle"]
    card = card_for(policies, sas, software=False, capabilities=OffloadCapabilities(ah_esp_combined=False))
    assert card.judge(OUT, FLOW).drop is DropReason.OUT_NOT_OFFLOADED
    assert card.send([NetBuffer(frame_of(WHOLE))], 1.0).wire == []
    assert dict(card.counters.drops) == {DropReason.OUT_NOT_OFFLOADED: 1}


def test_inbound_policies_name_the_newest_sa_a_peer_could_use() -> None:
    inbound = association(IN, source=FAR, destination=NEAR, spi=0x2001)
    newer = association(IN, source=FAR, destination=NEAR, spi=0x2002)
    other = association(IN, source=FAR, destination=NEAR, spi=0x2003, selector=selector(protocol=6))
    wanted = template(ESP, TUNNEL, FAR, NEAR)
    card = card_for([policy(IN, ANY, wanted)], [inbound, newer, other])
    judged = card.judge(IN, FLOW)
    assert (judged.drop, judged.action) == (None, PolicyAction.PROTECT)
    assert [choice.sa for choice in judged.choices] == [newer.id]
    for one in (inbound, newer):
        card.delete_sa(one.id)
    assert card.judge(IN, FLOW).drop is DropReason.IN_NO_SA


@pytest.mark.parametrize("default", [PolicyAction.BYPASS, PolicyAction.DISCARD])
def test_inbound_defaults_discards_and_ipsec_of_the_host(default: PolicyAction) -> None:
    card = engine()
    card.set_defaults(Defaults(inbound=default))
    blocked = default is PolicyAction.DISCARD
    expected = Judgement(default, None, DropReason.IN_POLICY_DISCARD if blocked else None)
    assert card.judge(IN, FLOW) == expected
    esp = FlowKey(FLOW.source, FLOW.destination, 50, 0x10000, 0x10000)
    assert card.judge(IN, esp).drop is DropReason.IN_NO_SA
    entry = card.add_policy(policy(IN, selector(protocol=50)))
    assert card.judge(IN, esp) == Judgement(PolicyAction.BYPASS, entry, None)
    card.add_policy(policy(IN, PORTS, action=PolicyAction.DISCARD))
    assert card.judge(IN, FLOW).drop is DropReason.IN_POLICY_DISCARD
