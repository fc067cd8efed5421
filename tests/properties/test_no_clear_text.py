"""Under a policy that protects, nothing leaves in clear but ARP, neighbour discovery and what is not IP."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from operator import truediv

from hypothesis import example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1Q
from scapy.packet import Raw
from transport_lab import (
    AH,
    ANY,
    ANY6,
    ESP,
    ETHER,
    FAR,
    NEAR,
    OUT,
    TRANSPORT,
    TUNNEL,
    Card,
    association,
    frame_of,
    ip_at,
    ip_protocol,
    policy,
    selector,
    template,
)

from tests.engines import BOTH_ENGINES, make_card
from vnic.engine.reference import ReferenceEngine
from vnic.errors import OidError
from vnic.ipsec.association import KeyMaterial, SecurityAssociation
from vnic.ipsec.headers import DfRule, HeaderSettings
from vnic.ipsec.policy import Template, VlanRule
from vnic.ipsec.renewal import Renewal
from vnic.ndis.capabilities import ENCAPSULATION_IEEE_802_3, OffloadCapabilities
from vnic.ndis.keywords import HostSwitches, IpsecKeyword, Keywords
from vnic.ndis.netbuffer import NetBuffer
from vnic.ndis.status import NdisStatus
from vnic.packet.vnet import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHeader

pytestmark = BOTH_ENGINES

MARK = b"CLEARTEXT-CLEARTEXT-CLEARTEXT-CLEARTEXT!"
V4 = {"src": "10.1.0.1", "dst": "10.2.0.1"}
V6 = {"src": "fd01::1", "dst": "fd02::1"}

CORPUS = [
    bytes(frame_of(packet))
    for packet in (
        IP(**V4) / TCP(sport=1, dport=80, flags="PA") / (MARK * 20),
        IP(**V4) / UDP(sport=1, dport=53) / (MARK * 20),
        IP(**V4) / ICMP() / MARK,
        IP(**V4, options=[IPOption_NOP()] * 8) / UDP() / MARK,
        IP(**V4, flags="MF", id=1) / UDP() / MARK,
        IP(**V4, frag=9, proto=6) / Raw(MARK),
        IP(**V4, proto=50) / Raw(bytes(8) + MARK),
        IP(**V4, proto=51) / Raw(bytes([6, 4]) + bytes(22) + MARK),
        IPv6(**V6) / TCP(sport=1, dport=80, flags="PA") / (MARK * 20),
        IPv6(**V6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP() / MARK,
        IPv6(**V6) / IPv6ExtHdrFragment(m=1) / IPv6ExtHdrDestOpt() / TCP(dport=80) / MARK,
        IPv6(**V6) / IPv6ExtHdrFragment(offset=7, nh=60) / Raw(MARK),
        IPv6(**V6, hlim=255) / ICMPv6ND_NS() / MARK,
        ETHER / Dot1Q(vlan=1) / IP(**V4) / UDP() / MARK,
        ETHER / Dot1Q(vlan=1) / Dot1Q(vlan=2) / IPv6(**V6) / UDP() / MARK,
        ETHER / ARP() / MARK,
        ETHER / Dot1Q() / Dot1Q() / Dot1Q() / IP(**V4) / UDP() / MARK,
        reduce(truediv, [Dot1Q()] * 9, ETHER) / IP(**V4) / UDP() / MARK,
    )
]

FRAMES = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda frame, cut, changes: _changed(frame, cut, changes),
        st.sampled_from(CORPUS),
        st.integers(0, 60),
        st.lists(st.tuples(st.integers(0, 110), st.integers(0, 255)), max_size=4),
    ),
)
VNETS = st.one_of(
    st.none(),
    st.builds(
        VnetHeader,
        st.sampled_from([0, NEEDS_CSUM]),
        st.sampled_from([0, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, 3, 0x81, 77]),
        st.integers(0, 100),
        st.sampled_from([0, 1, 30, 100, 1448, 65535]),
        st.sampled_from([0, 14, 34, 54, 200, 65535]),
        st.sampled_from([0, 6, 16, 65535]),
    ),
)


def _changed(frame: bytes, cut: int, changes: list[tuple[int, int]]) -> bytes:
    data = bytearray(frame[: len(frame) - cut] if cut else frame)
    for at, value in changes:
        if at < len(data):
            data[at] = value
    return bytes(data)


TUNNELLED = template(ESP, TUNNEL, NEAR, FAR)


def tunnel_card() -> Card:
    card = Card()
    for family in (ANY, ANY6):
        card.spd.add(policy(OUT, family, TUNNELLED))
    card.sad.add(association(), 0.0)
    return card


def port_card() -> Card:
    """Policies that name ports first, then everything else."""
    card = Card()
    for source, far in (("0.0.0.0/0", "0.0.0.0/0"), ("::/0", "::/0")):
        card.spd.add(policy(OUT, selector(source, far, 6, None, 80), TUNNELLED))
        card.spd.add(policy(OUT, selector(source, far, 17, None, 53), TUNNELLED, priority=1))
        card.spd.add(policy(OUT, selector(source, far), TUNNELLED, priority=2))
    card.sad.add(association(encryption="aes-cbc-128", integrity="hmac-sha1-96"), 0.0)
    return card


def transport_card() -> Card:
    card = Card()
    for family in (ANY, ANY6):
        card.spd.add(policy(OUT, family, template(ESP, TRANSPORT), template(AH, TRANSPORT)))
    for near, far in (("10.1.0.1", "10.2.0.1"), ("fd01::1", "fd02::1")):
        card.sad.add(association(OUT, TRANSPORT, near, far), 0.0)
        card.sad.add(association(OUT, TRANSPORT, near, far, protocol=AH), 0.0)
    return card


def bare_card() -> Card:
    card = Card()
    for family in (ANY, ANY6):
        card.spd.add(policy(OUT, family, TUNNELLED))
    return card


CARDS = st.sampled_from([tunnel_card, port_card, transport_card, bare_card])


def may_be_clear(frame: bytes | bytearray) -> bool:
    """Whether a frame is none of policy's business, read without the code under test."""
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    kind = bytes(frame[at : at + 2])
    if kind not in (b"\x08\x00", b"\x86\xdd"):
        return True
    ip = at + 2
    if frame[ip] >> 4 != 6:
        return False
    # RFC 4861: ICMPv6 types 133 to 137 with hop limit 255, whatever extension headers precede them
    protocol, position = frame[ip + 6], ip + 40
    while protocol in (0, 43, 44, 60):
        protocol, position = (
            frame[position],
            position + (8 if protocol == 44 else 8 + 8 * frame[position + 1]),
        )
    return frame[ip + 7] == 255 and protocol == 58 and frame[position] in range(133, 138)


@settings(max_examples=600, deadline=None)
@given(CARDS, FRAMES, VNETS)
@example(tunnel_card, CORPUS[0], VnetHeader(NEEDS_CSUM, GSO_TCPV4, 0, 100, 34, 16))
@example(transport_card, CORPUS[8], VnetHeader(NEEDS_CSUM, GSO_TCPV6, 0, 100, 54, 16))
@example(port_card, CORPUS[11], None)
def test_nothing_ip_leaves_without_the_nic(make, frame: bytes, vnet: VnetHeader | None) -> None:  # type: ignore[no-untyped-def]
    card = make()
    burst = card.framed(bytearray(frame), vnet=vnet)
    for buffer in burst:
        assert buffer.vnet is None
        if buffer.transmit is None:
            assert may_be_clear(buffer.frame)
        else:
            assert card.nic.bundles[buffer.transmit.offload_handle]
    protected = [buffer for buffer in burst if buffer.transmit is not None]
    card.nic.send(protected)
    for buffer in protected:
        assert buffer.status is NdisStatus.SUCCESS
        assert MARK[:10] not in buffer.frame
    # A fragment for transport mode waits for the others.
    assert burst or sum(card.drops.values()) >= 1 or len(card.outbound.reassembly) == 1


def test_every_frame_of_the_corpus_is_protected_or_dropped_or_exempt() -> None:
    card = tunnel_card()
    outcome = [card.outbound.send([NetBuffer(bytearray(frame))], 1.0) for frame in CORPUS]
    clear = [index for index, burst in enumerate(outcome) for buffer in burst if buffer.transmit is None]
    assert clear == [12, 15]
    # Nobody can tell what is behind so many tags.
    assert [len(burst) for burst in outcome] == [1] * (len(CORPUS) - 1) + [0]


# whole cards, the NIC restricted in every way and switched at any time

CAPABILITIES = [
    OffloadCapabilities(),
    OffloadCapabilities(sa_offload_capacity=1),
    OffloadCapabilities(esp=False),
    OffloadCapabilities(ah=False),
    OffloadCapabilities(transport=False),
    OffloadCapabilities(ah_esp_combined=False),
    OffloadCapabilities(transport_tunnel_combined=False),
    OffloadCapabilities(ipv6_supported=False),
    OffloadCapabilities(ipv4_options=False, ipv6_non_ipsec_extension_headers=False),
    OffloadCapabilities(encapsulation=ENCAPSULATION_IEEE_802_3),
    OffloadCapabilities(encryption_algorithms=0x1FF & ~0x008),
]
HIDING = HeaderSettings(
    df=DfRule.SET, hop_limit=0, dscp=0, flow_label=0, tfc_padding=1000, dummy_interval_ms=10
)
NEAR_HOSTS = [("10.1.0.1", "10.2.0.1"), ("fd01::1", "fd02::1")]
INNER = [association(OUT, TRANSPORT, *ends, spi=0x2000) for ends in NEAR_HOSTS]
AUTHENTIC = [association(OUT, TRANSPORT, *ends, protocol=AH) for ends in NEAR_HOSTS]
PROTECTIONS: list[tuple[tuple[Template, ...], list[SecurityAssociation]]] = [
    ((TUNNELLED,), [association()]),
    ((template(ESP, TRANSPORT),), INNER),
    ((template(ESP, TRANSPORT), template(AH, TRANSPORT)), INNER + AUTHENTIC),
    ((template(ESP, TRANSPORT), TUNNELLED), [*INNER, association()]),
    ((TUNNELLED,), []),
    ((TUNNELLED,), [association(header_settings=HIDING)]),
    ((template(ESP, TRANSPORT), TUNNELLED), [*INNER, association(header_settings=HIDING)]),
]


def check_wire(wire: list[NetBuffer]) -> None:
    """Nothing of policy's business is in clear."""
    for buffer in wire:
        assert buffer.status is NdisStatus.SUCCESS
        if not may_be_clear(buffer.frame):
            assert ip_protocol(buffer.frame, ip_at(buffer.frame))[0] in (ESP, AH)
            assert MARK[:10] not in buffer.frame


def rekey_first(card: ReferenceEngine) -> None:
    """Put another in the place of the oldest SA, under the next SPI and with every bit of its keys turned."""
    for report in card.sas()[:1]:
        sa = report.sa
        keys = [
            KeyMaterial(bytes(byte ^ 0xFF for byte in key.reveal()))
            for key in (sa.encryption_key, sa.integrity_key)
        ]
        new = Renewal(sa.id, sa.spi + 1, sa.encryption, keys[0], sa.integrity, keys[1], sa.icv_length)
        card.rekey([new], 0, 1.0)


SWITCHES: list[Callable[[ReferenceEngine], object]] = [
    lambda card: card.set_load_balanced(True),
    lambda card: card.set_load_balanced(False),
    lambda card: card._miniport.set_encapsulation(False, False),
    lambda card: card._miniport.set_encapsulation(True, True),
    lambda card: card._miniport.set_encapsulation(True, False),
    lambda card: card.set_keywords(Keywords(v2=IpsecKeyword.AH)),
    lambda card: card.restart(1.0),
    lambda card: card.pause(),
    lambda card: card.resume(),
    lambda card: card.begin_reset(),
    lambda card: card.end_reset(),
    lambda card: card.remove(),
    lambda card: card.set_defaults(replace(card.defaults, answer_discards=True)),
    lambda card: card.set_defaults(replace(card.defaults, vlan=VlanRule.DROP)),
    lambda card: check_wire(card.keep_time(2.0).wire),
    lambda card: [card.delete_sa(one.sa.id) for one in card.sas()[:1]],
    rekey_first,
]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(CAPABILITIES),
    st.sampled_from(PROTECTIONS),
    st.booleans(),
    st.sampled_from([HostSwitches(), HostSwitches(enable_ipsec_offload=False)]),
    st.lists(st.one_of(st.sampled_from(SWITCHES), st.tuples(FRAMES, VNETS)), min_size=1, max_size=12),
)
def test_no_card_lets_out_clear_text_whatever_its_nic_lacks_and_whenever_it_is_switched(
    capabilities: OffloadCapabilities,
    protection: tuple[tuple[Template, ...], list[SecurityAssociation]],
    software: bool,
    host: HostSwitches,
    steps: list[Callable[[ReferenceEngine], object] | tuple[bytes, VnetHeader | None]],
) -> None:
    templates, sas = protection
    card = make_card(random.Random(1).randbytes, capabilities=capabilities, software=software, host=host)
    for family in (ANY, ANY6):
        card.add_policy(policy(OUT, family, *templates))
    for sa in sas:
        try:
            card.add_sa(sa, 0.0)
        except OidError:
            assert not software
    for step in steps:
        if not isinstance(step, tuple):
            try:
                step(card)
            except OidError as error:
                refusals = {NdisStatus.NOT_ACCEPTED, NdisStatus.RESET_IN_PROGRESS}
                if step is rekey_first and not software:
                    refusals |= {NdisStatus.RESOURCES, NdisStatus.NOT_SUPPORTED}
                assert error.status in refusals  # noqa: PT017
            continue
        frame, vnet = step
        wire = card.send([NetBuffer(bytearray(frame), vnet)], 1.0).wire
        check_wire(wire)
        waiting = card._outbound.reassembly
        assert wire or sum(card.counters.drops.values()) >= 1 or len(waiting) >= 1
