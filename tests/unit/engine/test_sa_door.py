"""Binary requests on a card with the inline transport: the SAs they make are in the SAD and carry traffic."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from transport_lab import (
    AH,
    ANY,
    ANY6,
    ESP,
    FAR,
    IN,
    NEAR,
    OUT,
    TRANSPORT,
    TUNNEL,
    address,
    association,
    frame_of,
    policy,
    template,
)

from tests.engines import BOTH_ENGINES, make_card
from vnic.engine.contract import Offload, SaReport
from vnic.engine.reference import ReferenceEngine
from vnic.errors import OidError
from vnic.ipsec.association import Direction, KeyMaterial, Mode, SaId
from vnic.ipsec.policy import Template
from vnic.ipsec.replay import DEFAULT_WINDOW_BITS
from vnic.ndis.capabilities import OffloadCapabilities
from vnic.ndis.keywords import IpsecKeyword, Keywords
from vnic.ndis.netbuffer import NetBuffer, OffloadHandle
from vnic.ndis.oid import AddSa, AlgorithmInfo, DeleteSa, Operation, SaElement, UpdateSa
from vnic.ndis.oids import Oid, OidRequest, OidResult, RequestType
from vnic.ndis.status import NdisStatus
from vnic.ndis.structs import (
    add_sa_entries,
    pack_add_sa,
    pack_delete_sa,
    pack_update_sa,
)
from vnic.ndis.v1_structs import pack_v1_add_sa

pytestmark = BOTH_ENGINES

V4 = {"src": "10.1.0.1", "dst": "10.2.0.1"}
UDP4 = IP(**V4) / UDP(sport=7, dport=8) / b"SECRETSECRETSECRET"
UDP6 = IPv6(src="fd01::1", dst="fd02::1") / UDP(sport=7, dport=8) / b"SECRETSECRETSECRET"
HANDLE = 0x38
"""Of OffloadHandle in IPSEC_OFFLOAD_V2_ADD_SA (sheet §4.6)."""
T_ESP, T_AH = template(ESP, TRANSPORT), template(AH, TRANSPORT)
U_ESP = template(ESP, TUNNEL, NEAR, FAR)

# identifiers of sheet §10.1
GCM_128, CBC_128, SHA1, SHA256, GMAC_128 = 0x008, 0x040, 0x002, 0x004, 0x008


def key(length: int, label: str) -> KeyMaterial:
    return KeyMaterial(hashlib.shake_128(label.encode()).digest(length))


def gcm(spi: int = 0x1000, *, esn: bool = False, high: int = 0, label: str = "") -> SaElement:
    info = AlgorithmInfo(GCM_128, key(20, f"gcm{spi}{label}"), 16)
    return SaElement(Operation.ESP, spi, encryption=info, esn=esn, sequence_number_high_order=high)


def cbc_under_ah(spi: int = 0x1000) -> SaElement:
    """ESP that only encrypts (R14)."""
    return SaElement(Operation.ESP, spi, encryption=AlgorithmInfo(CBC_128, key(16, f"cbc{spi}")))


def ah(spi: int = 0x2000) -> SaElement:
    return SaElement(Operation.AH, spi, authentication=AlgorithmInfo(SHA256, key(32, f"ah{spi}")))


def request(
    *elements: SaElement, inbound: bool = False, source: str = NEAR, destination: str = FAR, **members: object
) -> AddSa:
    made = AddSa(inbound, address(source), address(destination), elements)
    return replace(made, **members)  # type: ignore[arg-type]


def engine(seed: int = 0, **options: object) -> ReferenceEngine:
    return make_card(random.Random(seed).randbytes, **options)  # type: ignore[arg-type]


def ask(card: ReferenceEngine, oid: Oid, buffer: bytes | bytearray, now: float = 2.5) -> OidResult:
    operation = card.oid_request(OidRequest(oid, RequestType.SET, bytearray(buffer)), now)
    while not operation.advance():
        pass
    assert operation.result is not None
    return operation.result


def add(card: ReferenceEngine, *requests: AddSa) -> list[OffloadHandle]:
    """Add SAs by the binary door; gives the handles written back."""
    result = ask(card, Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA, pack_add_sa(requests))
    assert result.status is NdisStatus.SUCCESS, result
    assert result.message == "", result
    buffer = result.information_buffer
    return [
        OffloadHandle(int.from_bytes(buffer[offset + HANDLE : offset + HANDLE + 8], "little"))
        for offset in add_sa_entries(buffer)
    ]


def pair(templates: tuple[Template, ...], *requests: AddSa, **options: object) -> tuple[ReferenceEngine, ...]:
    cards = engine(1, **options), engine(2, **options)
    for family in (ANY, ANY6):
        if family is ANY or templates[0].source:
            cards[0].add_policy(policy(OUT, family, *templates))
            cards[1].add_policy(policy(IN, family, *templates))
    add(cards[0], *requests)
    add(cards[1], *[replace(one, inbound=True) for one in requests])
    return cards


def crosses(cards: tuple[ReferenceEngine, ...], *packets: object) -> bool:
    wire = cards[0].send([NetBuffer(frame_of(one)) for one in packets], 1.0).wire
    assert not any(b"SECRET" in buffer.frame for buffer in wire)
    host = cards[1].receive([NetBuffer(buffer.frame) for buffer in wire], 1.0).host
    return [bytes(buffer.frame) for buffer in host] == [bytes(frame_of(one)) for one in packets]


def drops(card: ReferenceEngine) -> dict[str, int]:
    return {reason.value: count for reason, count in card.counters.drops.items()}


def only(card: ReferenceEngine) -> SaReport:
    (report,) = card.sas()
    return report


TRANSPORT_ENDS = {"source": V4["src"], "destination": V4["dst"]}


@pytest.mark.rule(84, 88)
def test_sa_of_a_binary_request_is_in_the_sad_with_what_the_request_leaves_open() -> None:
    card = engine()
    (handle,) = add(card, request(gcm(esn=True, high=7)))
    report = only(card)
    sa = report.sa
    assert (report.offload_handle, report.offload, report.add_time) == (handle, Offload.NIC, 2.5)
    assert (sa.direction, sa.source, sa.destination) == (OUT, address(NEAR), address(FAR))
    assert (sa.protocol, sa.spi, sa.esn, sa.icv_length) == (ESP, 0x1000, True, 16)
    assert (sa.mode, sa.reqid, sa.replay_window) == (None, 0, DEFAULT_WINDOW_BITS)
    assert sa.encryption is not None
    assert (sa.encryption.name, sa.encryption_key) == ("aes-gcm-128", key(20, "gcm4096"))
    assert report.sequence_number == 7 << 32
    assert card.find_handle(handle) == SaId(address(FAR), ESP, 0x1000)


@pytest.mark.parametrize("load_balanced", [False, True])
@pytest.mark.parametrize("esn", [False, True])
def test_one_request_serves_tunnel_and_transport_mode(load_balanced: bool, esn: bool) -> None:
    for templates, ends in (((U_ESP,), {}), ((T_ESP,), TRANSPORT_ENDS)):
        cards = pair(templates, request(gcm(esn=esn, high=3 * esn), **ends))  # type: ignore[arg-type]
        for card in cards:
            card.set_load_balanced(load_balanced)
        for _ in range(3):
            assert crosses(cards, UDP4, UDP4)
        assert cards[1].counters.rx_offloaded == (0 if load_balanced else 6)
        assert cards[1].counters.rx_software == (6 if load_balanced else 0)
        assert only(cards[1]).sequence_number == 6 + (3 * esn << 32)


def test_ipv6_packet_in_a_tunnel_whose_mode_no_request_named() -> None:
    assert crosses(pair((U_ESP,), request(gcm())), UDP6, UDP4)


def test_packet_that_came_in_the_other_mode_than_the_policy_wants_does_not_pass() -> None:
    sender = pair((U_ESP,), request(gcm()))[0]
    (wire,) = sender.send([NetBuffer(frame_of(UDP4))], 1.0).wire
    receiver = engine(2)
    receiver.add_policy(policy(IN, ANY, T_ESP))
    add(receiver, request(gcm(), inbound=True))
    assert receiver.receive([NetBuffer(wire.frame)], 1.0).host == []
    assert drops(receiver) == {"in_policy_mismatch": 1}


def test_flow_let_pass_in_transport_mode_is_not_let_pass_through_a_tunnel() -> None:
    """The short way of the receive path knows flows that passed; mode belongs to them."""
    plain = pair((T_ESP,), request(gcm(), source=V4["src"], destination=V4["dst"]))
    assert crosses(plain, UDP4)
    tunnel_template = template(ESP, TUNNEL, V4["src"], V4["dst"])
    tunnel = engine(5)
    tunnel.add_policy(policy(OUT, ANY, tunnel_template))
    add(tunnel, request(gcm(), source=V4["src"], destination=V4["dst"]))
    tunnel.send([NetBuffer(frame_of(UDP4))], 1.0)
    (wire,) = tunnel.send([NetBuffer(frame_of(UDP4))], 1.0).wire
    assert plain[1].receive([NetBuffer(wire.frame)], 1.0).host == []
    assert drops(plain[1]) == {"in_policy_mismatch": 1}


@pytest.mark.rule(99)
def test_wildcard_addresses_take_the_packets_own() -> None:
    anywhere = request(gcm(), source="0.0.0.0")
    cards = pair((U_ESP,), anywhere)
    for _ in range(3):
        assert crosses(cards, UDP4)
    cards[1].set_load_balanced(True)
    assert crosses(cards, UDP4)
    receiver = engine(3)
    receiver.add_policy(policy(IN, ANY, U_ESP))
    add(receiver, request(gcm(), inbound=True, source="0.0.0.0", destination="0.0.0.0"))
    assert crosses((cards[0], receiver), UDP4)


@pytest.mark.rule(14, 96, 98, 113)
@pytest.mark.parametrize("load_balanced", [False, True])
def test_bundle_of_one_request_is_two_sas_with_one_handle(load_balanced: bool) -> None:
    for templates, ends in (((U_ESP, T_AH), {}), ((T_ESP, T_AH), TRANSPORT_ENDS)):
        cards = pair(templates, request(cbc_under_ah(), ah(), **ends))  # type: ignore[arg-type]
        for card in cards:
            card.set_load_balanced(load_balanced)
        assert crosses(cards, UDP4, UDP4)
        for card in cards:
            reports = card.sas()
            assert [report.sa.protocol for report in reports] == [ESP, AH]
            (handle,) = {report.offload_handle for report in reports}
            assert card.find_handle(handle) == reports[0].sa.id
            assert [report.counters.packets for report in reports] == [2, 2]
            result = ask(card, Oid.TCP_TASK_IPSEC_OFFLOAD_V2_DELETE_SA, pack_delete_sa([handle]))
            assert result.status is NdisStatus.SUCCESS
            assert card.sas() == []
            assert len(card._miniport) == 0
            assert len(card._software) == 0  # type: ignore[arg-type]
        assert not crosses(cards, UDP4)


@pytest.mark.rule(13)
def test_esp_that_only_encrypts_is_not_used_without_its_ah() -> None:
    cards = pair((U_ESP,), request(cbc_under_ah(), ah()))
    assert cards[0].send([NetBuffer(frame_of(UDP4))], 1.0).wire == []
    assert drops(cards[0]) == {"out_no_sa": 1}
    bundle = cards[0].sas()
    cards[0].delete_sa(bundle[1].sa.id)
    assert cards[0].send([NetBuffer(frame_of(UDP4))], 1.0).wire == []
    assert drops(cards[0]) == {"out_no_sa": 2}


def test_newest_bundle_is_used_whole() -> None:
    cards = pair((U_ESP, T_AH), request(cbc_under_ah(), ah()), request(cbc_under_ah(0x1001), ah(0x2001)))
    assert crosses(cards, UDP4)
    assert [report.counters.packets for report in cards[0].sas()] == [0, 0, 1, 1]


def test_bundle_survives_a_restart_in_both_directions() -> None:
    cards = pair((U_ESP, T_AH), request(cbc_under_ah(), ah()))
    assert crosses(cards, UDP4)
    for card in cards:
        card.restart(3.0)
    assert crosses(cards, UDP4)
    assert cards[1].counters.rx_offloaded == 2


@pytest.mark.rule(120, 121, 122, 123)
def test_update_by_handle_moves_nic_transport_and_software() -> None:
    cards = pair((U_ESP,), request(gcm(esn=True)))
    assert crosses(cards, UDP4)
    for card in cards:
        update = UpdateSa(only(card).offload_handle, Operation.ESP, 0x1000, 9)
        assert ask(card, Oid.TCP_TASK_IPSEC_OFFLOAD_V2_UPDATE_SA, pack_update_sa(update)).status == 0
    assert crosses(cards, UDP4)
    for card in cards:
        card.set_load_balanced(True)
    assert crosses(cards, UDP4)
    assert only(cards[1]).sequence_number == (9 << 32) + 3
    for wrong in (
        UpdateSa(OffloadHandle(77), Operation.ESP, 0x1000, 10),
        UpdateSa(only(cards[0]).offload_handle, Operation.AH, 0x1000, 10),
        UpdateSa(only(cards[0]).offload_handle, Operation.ESP, 0x1001, 10),
        UpdateSa(only(cards[0]).offload_handle, Operation.ESP, 0x1000, 8),
    ):
        result = ask(cards[0], Oid.TCP_TASK_IPSEC_OFFLOAD_V2_UPDATE_SA, pack_update_sa(wrong))
        assert result.status is NdisStatus.INVALID_PARAMETER


@pytest.mark.parametrize("low", [1, 0x7FFFFFFF, 0x80000001, 0xFFFFFFFE])
def test_inbound_sa_with_an_upper_half_takes_any_first_number_of_it(low: int) -> None:
    sender = engine(1)
    sender.add_policy(policy(OUT, ANY, U_ESP))
    start = association(esn=True, sequence_number=(5 << 32) + low - 1)
    sender.add_sa(replace(start, encryption_key=key(20, "gcm4096")), 0.0)
    receiver = engine(2)
    receiver.add_policy(policy(IN, ANY, U_ESP))
    add(receiver, request(gcm(esn=True, high=5), inbound=True))
    assert crosses((sender, receiver), UDP4)
    assert crosses((sender, receiver), UDP4, UDP4)
    assert only(receiver).sequence_number == (5 << 32) + low + 2


def test_only_the_first_packet_decides_which_numbers_the_upper_half_meant() -> None:
    """A packet from before the half that was told is a replay as soon as the NIC can open it."""
    key_of = {"encryption_key": key(20, "gcm4096")}
    sender = engine(1)
    sender.add_policy(policy(OUT, ANY, U_ESP))
    sender.add_sa(replace(association(esn=True, sequence_number=(5 << 32) - 3), **key_of), 0.0)
    receiver = engine(2)
    receiver.add_policy(policy(IN, ANY, U_ESP))
    add(receiver, request(gcm(esn=True, high=5), inbound=True))
    old, older, first, second = sender.send([NetBuffer(frame_of(UDP4)) for _ in range(4)], 1.0).wire
    damaged = bytearray(first.frame)
    damaged[22] ^= 1  # TTL: the ICV of ESP does not cover it, the header checksum does
    for frame in (damaged, old.frame, older.frame, first.frame):
        assert receiver.receive([NetBuffer(bytearray(frame))], 1.0).host == []
    assert len(receiver.receive([NetBuffer(second.frame)], 1.0).host) == 1
    assert only(receiver).sequence_number == (5 << 32) + 1


@pytest.mark.rule(90, 91, 92)
def test_refusal_is_a_refusal_at_the_binary_door_also_with_software() -> None:
    card = engine(capabilities=OffloadCapabilities(sa_offload_capacity=1))
    add(card, request(gcm()))
    for status, wrong in (
        (NdisStatus.RESOURCES, request(gcm(0x1001))),
        (NdisStatus.INVALID_PARAMETER, request(gcm())),
        (NdisStatus.NOT_SUPPORTED, request(gcm(0x1002), udp_esp_encapsulation=1)),
    ):
        result = ask(card, Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA, pack_add_sa([wrong]))
        assert result.status is status
        assert result.message
    assert card.sa_count == 1
    # Two of one list with the same SPI: the first is taken.
    card.restart(1.0)
    with pytest.raises(OidError):
        card._sad.add_sa(request(gcm()))
    assert card.sa_count == 1


def test_typed_and_binary_requests_know_each_others_sas() -> None:
    card = engine()
    (binary,) = add(card, request(gcm(0x1000)))
    typed = card.add_sa(association(spi=0x2000), 0.0).handle
    with pytest.raises(OidError):
        card.add_sa(association(spi=0x1000, seed=4), 0.0)
    result = ask(card, Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA, pack_add_sa([request(gcm(0x2000))]))
    assert result.status is NdisStatus.INVALID_PARAMETER
    assert card.delete_bundle(binary)[0].spi == 0x1000
    assert ask(card, Oid.TCP_TASK_IPSEC_OFFLOAD_V2_DELETE_SA, pack_delete_sa([typed])).status == 0
    assert card.sas() == []
    with pytest.raises(OidError) as refused:
        card.delete_bundle(binary)
    assert refused.value.status is NdisStatus.INVALID_PARAMETER


def test_handle_of_an_sa_deletes_it_alone_when_a_policy_has_bundled_it_since() -> None:
    card = engine()
    card.add_policy(policy(OUT, ANY, T_ESP, T_AH))
    handles = add(card, request(gcm(), **TRANSPORT_ENDS), request(ah(), **TRANSPORT_ENDS))  # type: ignore[arg-type]
    assert len(card.send([NetBuffer(frame_of(UDP4))], 1.0).wire) == 1
    assert len(card._miniport) == 1
    deleted = card.delete_bundle(handles[1])
    assert [sa.protocol for sa in deleted] == [AH]
    assert only(card).sa.protocol is ESP
    assert only(card).offload is Offload.NIC
    assert [sa.protocol for sa in card.delete_bundle(handles[0])] == [ESP]


def test_handle_of_a_bundle_deletes_both_also_after_a_policy_has_parted_them() -> None:
    card = engine()
    ends = TRANSPORT_ENDS
    (handle,) = add(card, request(gcm(), ah(), **ends))  # type: ignore[arg-type]
    card.add_policy(policy(OUT, ANY, T_ESP))
    assert len(card.send([NetBuffer(frame_of(UDP4))], 1.0).wire) == 1
    assert len(card._miniport) == 2
    assert [sa.protocol for sa in card.delete_bundle(handle)] == [ESP, AH]
    assert card.sas() == []
    assert len(card._miniport) == 0


@pytest.mark.rule(124, 128)
@pytest.mark.parametrize("mode", [TRANSPORT, TUNNEL])
@pytest.mark.parametrize("keywords", [Keywords(), Keywords(v2=IpsecKeyword.DISABLED)], ids=["", "V1 alone"])
@pytest.mark.parametrize("load_balanced", [False, True])
def test_sas_of_v1_requests_carry_traffic(mode: Mode, keywords: Keywords, load_balanced: bool) -> None:
    element = SaElement(
        Operation.ESP,
        0x1000,
        authentication=AlgorithmInfo(SHA1, key(20, "sha1")),
        encryption=AlgorithmInfo(0x004, key(24, "3des")),
    )
    templates = (U_ESP,) if mode is TUNNEL else (T_ESP,)
    ends = {} if mode is TUNNEL else TRANSPORT_ENDS
    cards = engine(1, keywords=keywords), engine(2, keywords=keywords)
    for card, direction in zip(cards, (OUT, IN), strict=True):
        card.add_policy(policy(direction, ANY, *templates))
        made = request(element, inbound=direction is Direction.INBOUND, portion=mode, **ends)  # type: ignore[arg-type]
        result = ask(card, Oid.TCP_TASK_IPSEC_ADD_SA, pack_v1_add_sa(made))
        assert result.status is NdisStatus.SUCCESS, result
        assert only(card).sa.mode is mode
        card.set_load_balanced(load_balanced)
    for _ in range(3):
        assert crosses(cards, UDP4, UDP4), (drops(cards[0]), drops(cards[1]))
    counters = cards[1].counters
    assert (counters.rx_offloaded, counters.rx_software) == ((0, 6) if load_balanced else (6, 0))


def test_door_refuses_what_names_nothing() -> None:
    card = engine()
    for ask_for in (
        lambda: card._sad.delete_sa(DeleteSa(OffloadHandle(5))),
        lambda: card._sad.update_sa(UpdateSa(OffloadHandle(5), Operation.ESP, 1, 1)),
    ):
        with pytest.raises(OidError) as refused:
            ask_for()
        assert refused.value.status is NdisStatus.INVALID_PARAMETER
