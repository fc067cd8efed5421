"""Software IPsec: what the NIC may or can not do goes on all the same, counted apart and never in clear."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Dot1Q
from scapy.packet import Packet
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
    OUT,
    TRANSPORT,
    TUNNEL,
    association,
    frame_of,
    policy,
    selector,
    template,
)

from tests.engines import BOTH_ENGINES, make_card
from vnic.engine.contract import Offload
from vnic.engine.reference import ReferenceEngine
from vnic.errors import OidError, RequestError
from vnic.ipsec.association import SecurityAssociation
from vnic.ipsec.policy import Template
from vnic.ndis.capabilities import (
    ALL_AUTHENTICATION,
    ALL_ENCRYPTION,
    ENCAPSULATION_IEEE_802_3,
    OffloadCapabilities,
)
from vnic.ndis.configuration_structs import IpsecParameter, OffloadParameters
from vnic.ndis.keywords import HostSwitches, IpsecKeyword, Keywords
from vnic.ndis.netbuffer import NetBuffer, OffloadHandle
from vnic.ndis.oid import AddSa
from vnic.ndis.oids import Oid, OidRequest, RequestType
from vnic.ndis.status import NdisStatus
from vnic.packet.vnet import GSO_TCPV4, NEEDS_CSUM, VnetHeader
from vnic.transport.requests import request_for
from vnic.transport.state import SaState

pytestmark = BOTH_ENGINES

V4 = {"src": "10.1.0.1", "dst": "10.2.0.1"}
V6 = {"src": "fd01::1", "dst": "fd02::1"}
MARK = b"CLEARTEXT-CLEARTEXT-CLEARTEXT"
UDP4 = IP(**V4) / UDP(sport=7, dport=8) / MARK
T_ESP, T_AH = template(ESP, TRANSPORT), template(AH, TRANSPORT)
U_ESP, U_AH = template(ESP, TUNNEL, NEAR, FAR), template(AH, TUNNEL, NEAR, FAR)

ESP_T = association(OUT, TRANSPORT, *V4.values(), spi=0x1111)
AH_T = association(OUT, TRANSPORT, *V4.values(), spi=0x2222, protocol=AH)
ESP_U = association(OUT, TUNNEL, NEAR, FAR, spi=0x3333)
AH_U = association(OUT, TRANSPORT, NEAR, FAR, spi=0x4444, protocol=AH, integrity="aes-gmac-256")

Pair = tuple[ReferenceEngine, ReferenceEngine]


def engine(seed: int = 0, **options: object) -> ReferenceEngine:
    if isinstance(options.get("capabilities"), dict):
        options["capabilities"] = replace(OffloadCapabilities(), **options["capabilities"])  # type: ignore[arg-type]
    return make_card(random.Random(seed).randbytes, **options)  # type: ignore[arg-type]


def pair(templates: tuple[Template, ...], sas: list[SecurityAssociation], **options: object) -> Pair:
    """Two cards, restricted alike; the first protects what it sends, and the second expects just that."""
    cards = engine(1, **options), engine(2, **options)
    protect(cards, templates, sas)
    return cards


def protect(cards: Pair, templates: tuple[Template, ...], sas: list[SecurityAssociation]) -> None:
    for family in (ANY, ANY6):
        try:
            cards[0].add_policy(policy(OUT, family, *templates))
            cards[1].add_policy(policy(IN, family, *templates))
        except RequestError:
            assert any(item.source is None for item in templates)
    for sa in sas:
        cards[0].add_sa(sa, 0.0)
        cards[1].add_sa(replace(sa, direction=IN), 0.0)


def send(card: ReferenceEngine, *packets: Packet, vnet: VnetHeader | None = None) -> list[bytearray]:
    wire = card.send([NetBuffer(frame_of(one), vnet) for one in packets], 1.0).wire
    # AH alone shows what it protects.
    assert not any(MARK[:10] in buffer.frame for buffer in wire if buffer.frame[23] != AH)
    return [buffer.frame for buffer in wire]


def receive(card: ReferenceEngine, *frames: bytearray) -> list[bytes]:
    host = card.receive([NetBuffer(bytearray(frame)) for frame in frames], 1.0).host
    return [bytes(buffer.frame) for buffer in host]


def crosses(cards: Pair, *packets: Packet) -> bool:
    """Whether all come through a burst, in whatever order: those of an interface with a VLAN tag are no flow
    with the others."""
    came = receive(cards[1], *send(cards[0], *packets))
    return sorted(came) == sorted(bytes(frame_of(packet)) for packet in packets)


def sealed(cards: Pair) -> tuple[int, int]:
    """Packets the NIC sealed, and software IPsec, on the first card."""
    return cards[0].counters.tx_offloaded, cards[0].counters.tx_software


def opened(cards: Pair) -> tuple[int, int]:
    return cards[1].counters.rx_offloaded, cards[1].counters.rx_software


def drops(card: ReferenceEngine) -> dict[str, int]:
    return {reason.value: count for reason, count in card.counters.drops.items()}


# what the NIC refuses

LACKS: dict[str, tuple[dict[str, object], tuple[Template, ...], list[SecurityAssociation]]] = {
    "SHA-256": (
        {"authentication_algorithms": ALL_AUTHENTICATION & ~0x4},
        (U_ESP,),
        [association(encryption="aes-cbc-128", integrity="hmac-sha256-128")],
    ),
    "GCM": ({"encryption_algorithms": ALL_ENCRYPTION & ~0x8}, (U_ESP,), [association()]),
    "ESN": ({"extended_sequence_numbers": False}, (U_ESP,), [association(esn=True)]),
    "AH": ({"ah": False}, (U_AH,), [association(protocol=AH)]),
    "ESP": ({"esp": False}, (U_ESP,), [association()]),
    "IPv6": (
        {"ipv6_supported": False},
        (template(ESP, TUNNEL, NEAR6, FAR6),),
        [association(source=NEAR6, destination=FAR6)],
    ),
    "transport mode": ({"transport": False}, (T_ESP,), [ESP_T]),
    "AH with ESP": ({"ah_esp_combined": False}, (T_ESP, T_AH), [ESP_T, AH_T]),
    "AH with ESP in a tunnel": ({"ah_esp_combined": False}, (U_ESP, T_AH), [ESP_U, AH_U]),
    "both portions": ({"transport_tunnel_combined": False}, (T_ESP, U_ESP), [ESP_T, ESP_U]),
    "both portions and AH": (
        {"transport_tunnel_combined": False, "ah": False},
        (T_ESP, T_AH, U_ESP),
        [ESP_T, AH_T, ESP_U],
    ),
}


@pytest.mark.rule(92)
@pytest.mark.parametrize("esn", [False, True])
@pytest.mark.parametrize("lack", LACKS)
def test_what_a_card_lacks_goes_through_software_and_arrives(lack: str, esn: bool) -> None:
    members, templates, sas = LACKS[lack]
    start = (1 << 32) - 3 if esn else 0
    sas = [replace(sa, esn=sa.esn or esn, sequence_number=start) for sa in sas]
    cards = pair(templates, sas, capabilities=members)
    for _ in range(3):
        assert crosses(cards, UDP4, UDP4)
    assert sealed(cards) == opened(cards) == (0, 6)
    assert drops(cards[0]) == drops(cards[1]) == {}
    assert [report.sequence_number for report in cards[0].sas()] == [start + 6] * len(sas)
    assert [report.counters.packets for report in cards[1].sas()] == [6] * len(sas)


@pytest.mark.parametrize("lack", LACKS)
def test_card_with_and_card_without_an_ability_understand_each_other(lack: str) -> None:
    members, templates, sas = LACKS[lack]
    for first, second in ((members, {}), ({}, members)):
        cards = engine(1, capabilities=first), engine(2, capabilities=second)
        protect(cards, templates, sas)
        assert crosses(cards, UDP4, UDP4)
        assert sealed(cards) == ((0, 2) if first else (2, 0))
        assert opened(cards) == ((0, 2) if second else (2, 0))


@pytest.mark.parametrize("lack", LACKS)
def test_without_software_what_a_card_lacks_is_refused_or_dropped_and_never_sent_in_clear(lack: str) -> None:
    members, templates, sas = LACKS[lack]
    card = engine(capabilities=members, software=False)
    card.add_policy(policy(OUT, ANY, *templates))
    refused: list[NdisStatus] = []
    for sa in sas:
        try:
            card.add_sa(sa, 0.0)
        except OidError as error:
            refused.append(error.status)
    assert set(refused) <= {NdisStatus.NOT_SUPPORTED}
    assert send(card, UDP4) == []
    assert drops(card) == {"out_no_sa" if refused else "out_not_offloaded": 1}


def test_answer_to_an_addition_says_who_works_on_the_sa_and_why() -> None:
    card = engine(capabilities={"sa_offload_capacity": 1})
    first = card.add_sa(association(spi=0x1000), 0.0)
    assert (first.offload, first.status, first.message) == (Offload.NIC, NdisStatus.SUCCESS, "")
    assert first.handle
    second = card.add_sa(association(spi=0x2000), 0.0)
    assert (second.handle, second.offload, second.status) == (0, Offload.SOFTWARE, NdisStatus.RESOURCES)
    assert "room" in second.message
    reports = card.sas()
    assert [(report.offload, report.offload_handle) for report in reports] == [
        (Offload.NIC, first.handle),
        (Offload.SOFTWARE, 0),
    ]
    assert card.find_handle(OffloadHandle(0)) is None


def test_software_takes_no_sa_that_is_wrong_rather_than_beyond_the_nic() -> None:
    card = engine()
    card.add_sa(association(), 0.0)
    with pytest.raises(OidError) as refused:
        card.add_sa(replace(association(), spi=0x2000), 0.0)
    assert refused.value.status is NdisStatus.INVALID_PARAMETER
    assert card.sa_count == 1


def test_full_nic_and_software_carry_the_traffic_of_both_sas() -> None:
    cards = engine(1, capabilities={"sa_offload_capacity": 1}), engine(2)
    protect(cards, (U_ESP,), [association(spi=0x1000)])
    assert crosses(cards, UDP4)
    newer = association(spi=0x2000, seed=1)
    cards[1].add_sa(replace(newer, direction=IN), 0.0)
    assert cards[0].add_sa(newer, 0.0).offload is Offload.SOFTWARE
    assert crosses(cards, UDP4, UDP4)
    assert sealed(cards) == (1, 2)
    cards[0].delete_sa(newer.id)
    assert crosses(cards, UDP4)
    assert sealed(cards) == (2, 2)
    assert opened(cards) == (4, 0)


def test_tunnel_in_the_nic_around_transport_in_software_and_the_reverse() -> None:
    for order in ([ESP_T, ESP_U], [ESP_U, ESP_T]):
        cards = pair((T_ESP, U_ESP), order, capabilities={"sa_offload_capacity": 1})
        assert [report.offload for report in cards[1].sas()] == [Offload.NIC, Offload.SOFTWARE]
        for _ in range(3):
            assert crosses(cards, UDP4, UDP4)
        assert sealed(cards) == opened(cards) == (0, 6)


def test_ah_in_the_nic_and_esp_in_software_under_one_header() -> None:
    for order in ([ESP_T, AH_T], [AH_T, ESP_T]):
        cards = engine(1), engine(2, capabilities={"sa_offload_capacity": 1})
        protect(cards, (T_ESP, T_AH), order)
        assert crosses(cards, UDP4, UDP4)
        assert crosses(cards, UDP4, UDP4)
        assert opened(cards) == (0, 4)


# single packets beyond the NIC

OPTIONS = IP(**V4, options=[IPOption_NOP()] * 8) / ICMP() / MARK
EXTENSION = IPv6(**V6) / IPv6ExtHdrDestOpt() / UDP(sport=7, dport=8) / MARK
TAGGED = ETHER / Dot1Q(vlan=9) / IP(**V4) / UDP(sport=7, dport=8) / MARK


@pytest.mark.rule(25, 175)
@pytest.mark.parametrize(
    ("lacking", "strange", "plain"),
    [
        ({"ipv4_options": False}, OPTIONS, UDP4),
        (
            {"ipv6_non_ipsec_extension_headers": False},
            EXTENSION,
            IPv6(**V6) / UDP(sport=7, dport=8) / MARK,
        ),
        ({"encapsulation": ENCAPSULATION_IEEE_802_3}, TAGGED, UDP4),
    ],
    ids=["options", "extension headers", "VLAN tag"],
)
@pytest.mark.parametrize("esn", [False, True])
def test_one_packet_beyond_the_nic_goes_through_software_between_others(
    lacking: dict[str, object], strange: Packet, plain: Packet, esn: bool
) -> None:
    ends = (V6 if plain.version == 6 else V4).values()
    sa = association(OUT, TRANSPORT, *ends, esn=esn, sequence_number=((1 << 32) - 3) * esn)
    cards = engine(1, capabilities=lacking), engine(2, capabilities=lacking)
    cards[0].add_policy(policy(OUT, ANY6 if plain.version == 6 else ANY, T_ESP))
    cards[1].add_policy(policy(IN, ANY6 if plain.version == 6 else ANY, T_ESP))
    cards[0].add_sa(sa, 0.0)
    cards[1].add_sa(replace(sa, direction=IN), 0.0)
    for _ in range(3):
        assert crosses(cards, plain, strange, plain)
    assert sealed(cards) == (6, 3)
    assert cards[1].counters.rx_offloaded + cards[1].counters.rx_software == 9
    assert drops(cards[0]) == drops(cards[1]) == {}


def test_options_under_a_tunnel_are_no_matter_to_the_nic() -> None:
    cards = pair((U_ESP,), [association()], capabilities={"ipv4_options": False})
    assert crosses(cards, OPTIONS)
    assert sealed(cards) == opened(cards) == (1, 0)


def test_packet_beyond_the_nic_ends_here_without_software() -> None:
    sa = association(OUT, TRANSPORT, *V4.values())
    cards = pair((T_ESP,), [sa], capabilities={"ipv4_options": False}, software=False)
    assert send(cards[0], OPTIONS) == []
    assert drops(cards[0]) == {"out_not_offloaded": 1}
    (wire,) = send(engine_like(cards[0], sa), OPTIONS)
    assert receive(cards[1], wire) == []
    assert sum(drops(cards[1]).values()) == 1


def engine_like(card: ReferenceEngine, sa: SecurityAssociation) -> ReferenceEngine:
    """A card with every capability and the same SA and policies."""
    other = engine(9)
    for entry in card.policies():
        other.add_policy(entry)
    other.add_sa(sa, 0.0)
    return other


def test_superframe_through_software_is_cut_and_arrives_whole() -> None:
    cards = pair((U_ESP,), [association()], capabilities={"esp": False})
    packet = IP(**V4, flags="DF", id=9) / TCP(sport=1, dport=2, seq=77, flags="PA") / (MARK * 600)
    wire = send(cards[0], packet, vnet=VnetHeader(NEEDS_CSUM, GSO_TCPV4, 0, 1000, 0, 0))
    assert len(wire) > 10
    assert receive(cards[1], *wire) == [bytes(frame_of(packet))]
    assert sealed(cards) == (0, len(wire))


# configuration


def off(*, load_balanced: bool) -> Callable[[ReferenceEngine, bool], None]:
    def switch(card: ReferenceEngine, working: bool) -> None:
        if load_balanced:
            card.set_load_balanced(not working)
        else:
            card._miniport.set_encapsulation(working, working)

    return switch


@pytest.mark.rule(18)
@pytest.mark.parametrize("switch", [off(load_balanced=True), off(load_balanced=False)], ids=["bond", "off"])
@pytest.mark.parametrize("sa", [association(), association(esn=True, sequence_number=(1 << 32) - 4)])
def test_switching_ipsec_offload_off_and_on_under_traffic_loses_nothing(
    switch: Callable[[ReferenceEngine, bool], None], sa: SecurityAssociation
) -> None:
    cards = pair((U_ESP,), [sa])
    ivs: list[bytes] = []
    for left_works, right_works in ((1, 1), (0, 1), (0, 0), (1, 0), (1, 1), (0, 0), (1, 1)):
        switch(cards[0], bool(left_works))
        switch(cards[1], bool(right_works))
        wire = send(cards[0], UDP4, UDP4)
        ivs += [bytes(frame[42:50]) for frame in wire]
        assert len(receive(cards[1], *wire)) == 2
        assert cards[0].sas()[0].offload is (Offload.NIC if left_works else Offload.SOFTWARE)
        assert cards[0].sas()[0].offload_handle
    assert len(set(ivs)) == len(ivs) == 14
    assert sealed(cards) == (8, 6)
    assert opened(cards) == (8, 6)
    assert drops(cards[0]) == drops(cards[1]) == {}
    assert cards[0].sas()[0].sequence_number == sa.sequence_number + 14


def test_offload_withdrawn_without_software_stops_the_traffic_in_both_directions() -> None:
    cards = engine(1, software=False), engine(2, software=False)
    protect(cards, (U_ESP,), [association()])
    late = send(cards[0], UDP4)
    for card in cards:
        card.set_load_balanced(True)
        assert card.sas()[0].offload is Offload.NONE
    assert send(cards[0], UDP4) == receive(cards[1], *late) == []
    assert drops(cards[0]) == {"out_not_offloaded": 1}
    assert drops(cards[1]) == {"in_not_offloaded": 1}
    for card in cards:
        card.set_load_balanced(False)
    assert crosses(cards, UDP4)


@pytest.mark.rule(38, 40)
def test_keyword_for_ah_only_leaves_esp_to_software() -> None:
    cards = pair((U_ESP,), [association()], keywords=Keywords(v2=IpsecKeyword.AH))
    assert crosses(cards, UDP4)
    assert sealed(cards) == opened(cards) == (0, 1)
    cards[0].set_keywords(Keywords())
    assert crosses(cards, UDP4)
    assert sealed(cards) == (0, 2)
    cards[0].restart(5.0)
    assert crosses(cards, UDP4)
    assert sealed(cards) == (1, 2)


@pytest.mark.rule(45, 47)
def test_sa_the_nic_refused_is_offered_again_when_its_configuration_changes() -> None:
    cards = pair(
        (U_ESP,), [association(), association(spi=0x2000, seed=1)], keywords=Keywords(v2=IpsecKeyword.AH)
    )
    assert crosses(cards, UDP4)
    for card in cards:
        card._miniport.set_parameters(OffloadParameters(ipsec_v2=IpsecParameter.AH_AND_ESP_ENABLED))
    assert crosses(cards, UDP4)
    assert [report.offload for report in cards[0].sas()] == [Offload.NIC] * 2
    assert sealed(cards) == (1, 1)
    assert opened(cards) == (0, 2)
    # Receive waits for the encapsulation (R47).
    cards[1]._miniport.set_encapsulation(True, True)
    assert crosses(cards, UDP4)
    assert opened(cards) == (1, 2)


def switch_v2(card: ReferenceEngine, value: IpsecParameter) -> None:
    parameters = struct.pack("<BBH16xBB", 0x80, 2, 22, value, 0)
    request = OidRequest(Oid.TCP_OFFLOAD_PARAMETERS, RequestType.SET, bytearray(parameters))
    result = card.oid_request(request, 0.0).result
    assert result is not None
    assert result.status is NdisStatus.SUCCESS


@pytest.mark.rule(47, 60)
def test_transport_sets_the_encapsulation_that_receive_waits_for() -> None:
    cards = pair((U_ESP,), [association()])
    for card in cards:
        switch_v2(card, IpsecParameter.DISABLED)
        switch_v2(card, IpsecParameter.AH_AND_ESP_ENABLED)
    assert crosses(cards, UDP4)
    assert (sealed(cards), opened(cards)) == ((1, 0), (1, 0))


@pytest.mark.rule(39)
def test_transport_sets_no_encapsulation_on_a_host_that_wants_no_offload() -> None:
    cards = pair((U_ESP,), [association()], host=HostSwitches(enable_ipsec_offload=False))
    for card in cards:
        switch_v2(card, IpsecParameter.AH_AND_ESP_ENABLED)
    assert crosses(cards, UDP4)
    assert (sealed(cards), opened(cards)) == ((0, 1), (0, 1))


@pytest.mark.rule(39)
@pytest.mark.parametrize(
    "host", [HostSwitches(disable_task_offload=True), HostSwitches(enable_ipsec_offload=False)]
)
def test_host_that_wants_no_offload_has_software_do_everything(host: HostSwitches) -> None:
    cards = pair((U_ESP,), [association()], host=host)
    report = cards[0].sas()[0]
    assert (report.offload, report.offload_handle) == (Offload.SOFTWARE, 0)
    assert not cards[0].capabilities.esp
    assert crosses(cards, UDP4)
    assert sealed(cards) == opened(cards) == (0, 1)


def test_replayed_packets_are_known_whoever_opened_the_first() -> None:
    cards = pair((U_ESP,), [association()])
    first = send(cards[0], UDP4)
    assert len(receive(cards[1], *first)) == 1
    cards[1].set_load_balanced(True)
    second = send(cards[0], UDP4)
    assert receive(cards[1], *first) == []
    assert len(receive(cards[1], *second)) == 1
    cards[1].set_load_balanced(False)
    assert receive(cards[1], *first, *second) == []
    assert drops(cards[1]) == {"in_replay_duplicate": 3}


def test_software_believes_no_changed_packet() -> None:
    cards = pair((U_ESP,), [association()])
    cards[1].set_load_balanced(True)
    (wire,) = send(cards[0], UDP4)
    for at in range(14, len(wire)):
        damaged = bytearray(wire)
        damaged[at] ^= 0x40
        assert receive(cards[1], damaged) == [], at
    assert len(receive(cards[1], wire)) == 1
    assert opened(cards) == (0, 1)


@pytest.mark.rule(120, 123)
@pytest.mark.parametrize("step", [1 << 28, (1 << 29) + 12345, (1 << 31) - 9])
@pytest.mark.parametrize(
    ("templates", "sas"),
    [
        ((U_ESP,), [association(esn=True)]),
        ((T_ESP, T_AH), [replace(ESP_T, esn=True), replace(AH_T, esn=True)]),
    ],
    ids=["ESP", "AH over ESP"],
)
def test_upper_halves_are_known_to_nic_and_software_however_long_the_other_worked(
    templates: tuple[Template, ...], sas: list[SecurityAssociation], step: int
) -> None:
    cards = pair(templates, sas)
    sent = 0
    for load_balanced in (False, True, False, True, True, False):
        for card in cards:
            card.set_load_balanced(load_balanced)
        for _ in range(20):
            sent += 1
            assert crosses(cards, UDP4), (load_balanced, sent)
            # As if so many packets had gone where nobody looked.
            for state in cards[0]._sad:
                assert state.sequence is not None
                state.sequence.last += step
    assert cards[1].sas()[0].sequence_number == sent + (sent - 1) * step
    assert opened(cards) == (60, 60)


# replacing and deleting


def test_sa_in_software_can_be_replaced_updated_and_deleted() -> None:
    cards = pair((U_ESP,), [association(esn=True)], capabilities={"esp": False})
    assert crosses(cards, UDP4)
    for card, direction in zip(cards, (OUT, IN), strict=True):
        card.add_sa(association(direction, esn=True, reqid=5), 1.0, replace=True)
        card.update_sa(association().id, 7)
    assert crosses(cards, UDP4, UDP4)
    assert cards[1].sas()[0].sequence_number == (7 << 32) + 3
    late = send(cards[0], UDP4)
    for card in cards:
        card.delete_sa(association().id)
        assert card._software is not None
        assert len(card._software) == 0
    assert send(cards[0], UDP4) == receive(cards[1], *late) == []
    assert drops(cards[0]) == {"out_no_sa": 1}
    assert drops(cards[1]) == {"in_no_sa": 1}


def test_replacing_the_keys_holds_for_software_from_the_next_packet_on() -> None:
    cards = pair((U_ESP,), [association()])
    for card in cards:
        card.set_load_balanced(True)
    old = send(cards[0], UDP4)
    assert len(receive(cards[1], *old)) == 1
    for card, direction in zip(cards, (OUT, IN), strict=True):
        card.add_sa(association(direction, seed=3), 1.0, replace=True)
    assert receive(cards[1], *old) == []
    assert crosses(cards, UDP4)


def test_sa_wanted_alone_and_in_a_bundle_by_one_burst_goes_through_software_whole() -> None:
    card = engine(capabilities={"ah_esp_combined": False, "ah": False, "esp": False, "encapsulation": 2})
    card.add_policy(policy(OUT, selector(protocol=17), T_ESP))
    card.add_policy(policy(OUT, ANY, T_ESP, T_AH, priority=1))
    for sa in (ESP_T, AH_T):
        card.add_sa(sa, 0.0)
    burst = [UDP4, IP(**V4) / TCP() / MARK, UDP4, IP(**V4) / TCP() / MARK]
    assert len(send(card, *burst)) == len(burst)
    assert drops(card) == {}


# the NIC's state


@pytest.mark.rule(80, 204, 206, 210)
def test_no_frame_moves_while_the_nic_is_stopped_and_sas_survive_a_reset() -> None:
    cards = pair((U_ESP,), [association()])
    (wire,) = send(cards[0], UDP4)
    stops = (
        (lambda card: card.begin_reset(), lambda card: card.end_reset()),
        (lambda card: card.pause(), lambda card: card.resume()),
        (lambda card: card.remove(), lambda card: card.restart(3.0)),
    )
    for index, (stop, go) in enumerate(stops, 1):
        for card in cards:
            stop(card)
        assert send(cards[0], UDP4) == receive(cards[1], wire) == []
        assert drops(cards[0]) == drops(cards[1]) == {"nic_stopped": index}
        for card in cards:
            go(card)
        assert crosses(cards, UDP4)
    assert len(receive(cards[1], wire)) == 1
    assert sealed(cards) == (4, 0)


@pytest.mark.rule(80, 115)
def test_requests_while_the_nic_is_in_reset_or_gone_change_nothing() -> None:
    card = engine(capabilities={"sa_offload_capacity": 1})
    card.add_sa(association(spi=0x1000), 0.0)
    card.add_sa(association(spi=0x2000, esn=True), 0.0)
    before = card.sas()
    for stop, adding, deleting in (
        (card.begin_reset, NdisStatus.RESET_IN_PROGRESS, NdisStatus.NOT_ACCEPTED),
        (card.remove, NdisStatus.NOT_ACCEPTED, NdisStatus.NOT_ACCEPTED),
    ):
        stop()
        for status, ask in (
            (adding, lambda: card.add_sa(association(spi=0x3000), 0.0)),
            (adding, lambda: card.add_sa(association(spi=0x2000, esn=True), 0.0, replace=True)),
            (adding, lambda: card.update_sa(association(spi=0x2000).id, 1)),
            (deleting, lambda: card.delete_sa(association(spi=0x1000).id)),
            (deleting, lambda: card.delete_sa(association(spi=0x2000).id)),
            (deleting, lambda: card.delete_bundle(before[0].offload_handle)),
        ):
            with pytest.raises(OidError) as refused:
                ask()
            assert refused.value.status is status
    assert card.sa_count == 2


@pytest.mark.rule(40, 211)
def test_restart_offloads_every_sa_anew() -> None:
    cards = pair((T_ESP, T_AH), [ESP_T, AH_T])
    assert crosses(cards, UDP4)
    before = {report.offload_handle for report in cards[0].sas()}
    for card in cards:
        card.restart(2.0)
    assert crosses(cards, UDP4)
    assert sealed(cards) == opened(cards) == (2, 0)
    for report in cards[0].sas():
        assert report.offload is Offload.NIC
        assert report.offload_handle not in before
        assert cards[0].find_handle(report.offload_handle)


# SaDeleteReq


@pytest.mark.rule(117, 118, 183)
def test_deletion_the_nic_asks_for_moves_the_sa_and_its_partner_to_software() -> None:
    cards = pair((U_ESP,), [association()])
    back = association(OUT, TUNNEL, FAR, NEAR, spi=0x2000)
    protect((cards[1], cards[0]), (template(ESP, TUNNEL, FAR, NEAR),), [back])
    inbound = cards[1].find_sa(association().id)
    assert inbound is not None
    assert crosses(cards, UDP4)
    cards[1].request_sa_deletion(inbound.offload_handle)
    assert crosses(cards, UDP4, UDP4)
    assert cards[1].counters.sa_deletions_followed == 2
    assert [(report.offload, report.offload_handle) for report in cards[1].sas()] == [
        (Offload.SOFTWARE, 0)
    ] * 2
    assert len(cards[1]._miniport) == 0
    assert crosses(cards, UDP4)
    assert crosses((cards[1], cards[0]), UDP4)
    assert opened(cards) == (3, 1)
    assert sealed((cards[1], cards[0])) == (0, 1)
    assert drops(cards[1]) == {}
    added = cards[1].add_sa(association(IN), 9.0, replace=True)
    assert added.offload is Offload.NIC
    assert crosses(cards, UDP4)
    assert opened(cards) == (4, 1)


def test_deletion_the_nic_asks_for_is_not_followed_without_software() -> None:
    cards = pair((U_ESP,), [association()], software=False)
    (report,) = cards[1].sas()
    cards[1].request_sa_deletion(report.offload_handle)
    assert crosses(cards, UDP4)
    assert cards[1].counters.sa_deletions_refused == 1
    assert cards[1].sas()[0].offload is Offload.NIC
    assert crosses(cards, UDP4)


def test_deletion_can_be_asked_for_inbound_sas_alone() -> None:
    cards = pair((U_ESP,), [association()])
    for handle in (cards[0].sas()[0].offload_handle, OffloadHandle(0), OffloadHandle(999)):
        with pytest.raises(OidError) as refused:
            cards[0].request_sa_deletion(handle)
        assert refused.value.status is NdisStatus.INVALID_PARAMETER


# looking


def test_observers_see_frames_as_the_nic_left_them() -> None:
    cards = pair((U_ESP,), [association()])
    seen: list[tuple[str, object, bytes]] = []
    cards[0].send_observer = lambda burst: seen.extend(
        ("send", one.transmit, bytes(one.frame)) for one in burst
    )
    cards[1].receive_observer = lambda burst: seen.extend(
        ("receive", one.receive, bytes(one.frame)) for one in burst
    )
    assert crosses(cards, UDP4)
    (_, transmit, out), (_, info, came) = seen
    assert transmit is not None
    assert MARK not in out
    assert info is not None
    assert MARK in came
    assert len(came) == len(out)


def test_handles_of_different_cards_and_of_software_are_different() -> None:
    cards = [engine(serial=serial) for serial in range(3)]
    handles = [card.add_sa(association(), 0.0).handle for card in cards]
    assert handles[0] == 1
    assert len({handle >> 33 for handle in handles}) == 3
    for card in cards:
        card.set_load_balanced(True)
        card.add_policy(policy(OUT, ANY, U_ESP))
        send(card, UDP4)
        handles += [state.software_handle for state in card._sad]
    assert len(set(handles)) == 6
    assert all(handle.bit_length() <= 64 for handle in handles)


def test_peer_over_ipv6_sees_no_difference() -> None:
    sa = association(source=NEAR6, destination=FAR6, encryption="aes-cbc-256", integrity="hmac-sha1-96")
    cards = pair((template(ESP, TUNNEL, NEAR6, FAR6),), [sa])
    cards[0].set_load_balanced(True)
    assert crosses(cards, UDP4, IPv6(**V6) / UDP() / MARK)
    assert (sealed(cards), opened(cards)) == ((0, 2), (2, 0))


WRAP = 1 << 32


def numbered(number: int) -> bytearray:
    """What a peer sends with this number, by an SA with extended numbers."""
    peer = engine(1)
    peer.add_policy(policy(OUT, ANY, U_ESP))
    peer.add_sa(replace(ESP_U, esn=True, sequence_number=number - 1), 0.0)
    return bytearray(peer.send([NetBuffer(frame_of(UDP4))], 0.0).wire[0].frame)


def arrives(card: ReferenceEngine, frame: bytes) -> bool:
    return bool(card.receive([NetBuffer(bytearray(frame))], 0.0).host)


@pytest.mark.rule(120, 184)
@pytest.mark.parametrize(
    "hand_over",
    [
        lambda card: card.set_load_balanced(True),
        lambda card: card.restart(1.0),
        lambda card: card.add_sa(card.sas()[0].sa, 1.0, replace=True),
    ],
    ids=["to software", "to a NIC that starts again", "to a NIC that is asked anew"],
)
def test_a_packet_of_long_ago_does_not_pass_for_a_new_one_when_an_sa_changes_hands(
    hand_over: Callable[[ReferenceEngine], None],
) -> None:
    card = engine(2)
    card.add_policy(policy(IN, ANY, U_ESP))
    card.add_sa(replace(ESP_U, direction=IN, esn=True, sequence_number=WRAP), 0.0)
    old = numbered(WRAP + 3)
    assert all(arrives(card, numbered(WRAP + low)) for low in (3, 0x7000_0000, 0xE000_0000, 0xF000_0000))
    assert not arrives(card, old)
    hand_over(card)
    assert not arrives(card, old)
    assert arrives(card, numbered(WRAP + 0xF000_0001))
    assert arrives(card, numbered(2 * WRAP + 1))


def test_frames_on_both_sides_of_a_wrap_keep_their_upper_halves_when_they_are_the_first_of_software() -> None:
    cards = engine(1), engine(2)
    protect(cards, (U_ESP,), [replace(ESP_U, esn=True, sequence_number=WRAP - 3)])
    cards[0].set_load_balanced(True)
    sent = cards[0].send([NetBuffer(frame_of(UDP4)) for _ in range(6)], 0.0)
    assert len(sent.wire) == 6
    assert len(cards[1].receive(sent.wire, 0.0).host) == 6


def for_any_destination(sa: SecurityAssociation) -> AddSa:
    """The request of a driver that adds an inbound SA of this SPI and these keys for any addresses (R99)."""
    request = request_for(SaState(replace(sa, direction=IN), 0.0))
    return replace(request, source=bytes(4), destination=bytes(4), portion=None)


OTHER_U = association(OUT, TUNNEL, NEAR, FAR, spi=0x3333, seed=7)


def sent_with(sa: SecurityAssociation) -> bytearray:
    peer = engine(1)
    peer.add_policy(policy(OUT, ANY, U_ESP))
    peer.add_sa(sa, 0.0)
    return peer.send([NetBuffer(frame_of(UDP4))], 0.0).wire[0].frame


def card_with_a_wider_sa() -> ReferenceEngine:
    """A full NIC that holds an SA for any destination, and software with one of its SPI for this card."""
    card = engine(2, capabilities={"sa_offload_capacity": 1})
    card.add_policy(policy(IN, ANY, U_ESP))
    card._sad.add_sa(for_any_destination(OTHER_U))
    assert card.add_sa(replace(ESP_U, direction=IN), 0.0).offload is Offload.SOFTWARE
    return card


@pytest.mark.rule(99, 173)
def test_an_sa_for_any_destination_in_the_nic_does_not_hide_the_right_one_in_software() -> None:
    assert arrives(card_with_a_wider_sa(), sent_with(ESP_U))


@pytest.mark.rule(99, 173)
def test_a_packet_of_an_sa_for_any_destination_never_passes_for_one_of_the_right_sa() -> None:
    card = card_with_a_wider_sa()
    # While the NIC looks away software opens the flow, and the policy's verdict is remembered.
    card.set_load_balanced(True)
    assert arrives(card, sent_with(ESP_U))
    card.set_load_balanced(False)
    assert not arrives(card, sent_with(replace(OTHER_U, sequence_number=100)))
    assert {report.counters.packets for report in card.sas()} == {0, 1}


@pytest.mark.rule(3)
@pytest.mark.parametrize(
    ("hardware", "sa", "word", "value", "allowed"),
    [
        (OffloadCapabilities(ah=False, ah_esp_combined=False), AH_T, "proto", "AH", "ESP"),
        (OffloadCapabilities(transport=False), ESP_T, "mode", "transport", "tunnel"),
        (
            OffloadCapabilities(extended_sequence_numbers=False),
            replace(ESP_T, esn=True),
            "esn",
            "true",
            "false",
        ),
    ],
    ids=["protocol", "mode", "esn"],
)
def test_refusal_names_the_word_of_the_request(
    hardware: OffloadCapabilities, sa: SecurityAssociation, word: str, value: str, allowed: str
) -> None:
    card = make_card(random.Random(1).randbytes, 1500, hardware, software=False)
    with pytest.raises(OidError) as refused:
        card.add_sa(sa, 0.0)
    error = refused.value
    assert (error.status, error.field, error.value) == (NdisStatus.NOT_SUPPORTED, word, value)
    assert error.allowed == allowed
