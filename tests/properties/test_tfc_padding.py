"""TFC padding: what an observer sees are equal sizes, what the far host gets are the packets."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP as ScapyEsp
from scapy.layers.ipsec import SecurityAssociation as ScapyAssociation
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
from vnic.ipsec.headers import HeaderSettings
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.vnet import GSO_TCPV4, NEEDS_CSUM, VnetHeader

pytestmark = BOTH_ENGINES

pytestmark = BOTH_ENGINES

PAD_TO = 600
INNER = {
    4: IP(src="10.1.0.1", dst="10.2.0.1") / UDP(sport=7, dport=8),
    6: IPv6(src="fd01::1", dst="fd02::1") / UDP(sport=7, dport=8),
}
ALGORITHMS = {
    "GCM": {"encryption": "aes-gcm-128"},
    "CBC": {"encryption": "aes-cbc-128", "integrity": "hmac-sha256-128"},
    "NULL": {"encryption": "null", "integrity": "hmac-sha1-96"},
}
ENDS = {4: (NEAR, FAR), 6: (NEAR6, FAR6)}


def pair(
    inner: int, outer: int, pad_to: int, algorithm: str = "GCM", *, software: bool = True, ah: bool = False
) -> tuple[ReferenceEngine, ReferenceEngine]:
    ends = ENDS[outer]
    sas = [
        association(
            OUT, TUNNEL, *ends, header_settings=HeaderSettings(tfc_padding=pad_to), **ALGORITHMS[algorithm]
        )
    ]
    templates = [template(ESP, TUNNEL, *ends)]
    if ah:
        sas.append(association(OUT, TRANSPORT, *ends, protocol=AH, spi=0x2000))
        templates.append(template(AH, TRANSPORT))
    cards = tuple(make_card(random.Random(seed).randbytes, software=software) for seed in (3, 4))
    everything = ANY if inner == 4 else ANY6
    cards[0].add_policy(policy(OUT, everything, *templates))
    cards[1].add_policy(policy(IN, everything, *templates))
    for sa in sas:
        cards[0].add_sa(sa, 0.0)
        cards[1].add_sa(replace(sa, direction=IN, header_settings=HeaderSettings()), 0.0)
    return cards


def across(
    cards: tuple[ReferenceEngine, ReferenceEngine], frame: bytearray, vnet: VnetHeader | None = None
) -> tuple[list[int], list[bytes]]:
    """Sizes on the wire, and what the far host gets."""
    wire = cards[0].send([NetBuffer(bytearray(frame), vnet)], 1.0).wire
    host = cards[1].receive([NetBuffer(bytearray(one.frame)) for one in wire], 1.0).host
    return [len(one.frame) for one in wire], [bytes(one.frame) for one in host]


@pytest.mark.parametrize(("inner", "outer"), [(4, 4), (6, 4), (4, 6), (6, 6)])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_smaller_packet_has_one_size_on_the_wire_and_larger_ones_stay(
    inner: int, outer: int, algorithm: str
) -> None:
    cards = pair(inner, outer, PAD_TO, algorithm)
    plain = pair(inner, outer, 0, algorithm)
    seen = set()
    for length in range(PAD_TO + 40):
        frame = frame_of(INNER[inner] / bytes(length))
        sizes, got = across(cards, frame)
        assert got == [bytes(frame)]
        if len(frame) - 14 <= PAD_TO:
            seen.update(sizes)
        else:
            assert sizes == across(plain, frame)[0]
    padded_to = frame_of(INNER[inner] / bytes(PAD_TO - len(INNER[inner])))
    assert seen == set(across(plain, padded_to)[0])
    assert cards[1].counters.drops == {}


def test_padding_stops_where_the_path_ends_and_cuts_nothing() -> None:
    for outer in (4, 6):
        cards = pair(4, outer, 65_535)
        largest = cards[0].inner_mtu(1500)
        full, _ = across(cards, frame_of(INNER[4] / bytes(largest - 28)))
        assert full[0] - 14 <= 1500
        for length in (0, 1, 700, largest - 28):
            frame = frame_of(INNER[4] / bytes(length))
            assert across(cards, frame) == (full, [bytes(frame)])
        assert cards[0].counters.tx_fragmented == 0
        # A packet that has to be cut is cut as without padding; its last piece is padded.
        large = frame_of(IP(src="10.1.0.1", dst="10.2.0.1") / UDP(sport=7, dport=8) / bytes(1600))
        sizes, got = across(cards, large)
        assert (len(sizes), sizes[1]) == (2, full[0])
        assert sum(len(one) - 34 for one in got) == len(large) - 34


def test_segments_of_a_superframe_are_padded_and_come_out_as_they_were() -> None:
    for ah in (False, True):
        cards = pair(4, 4, 1400, ah=ah)
        data = random.Random(1).randbytes(5_000)
        frame = frame_of(IP(src="10.1.0.1", dst="10.2.0.1", flags="DF") / TCP(flags="A") / data)
        frame[50:52] = bytes(2)
        sizes, got = across(cards, frame, VnetHeader(NEEDS_CSUM, GSO_TCPV4, 54, 1000, 34, 16))
        assert len(sizes) == 5
        assert len(set(sizes)) == 1
        assert b"".join(one[54:] for one in got) == data
        assert cards[1].counters.drops == {}


def test_scapy_finds_the_packet_and_zeros_behind_it() -> None:
    cards = pair(4, 4, PAD_TO, "CBC", software=False)
    sa = association(OUT, TUNNEL, NEAR, FAR, **ALGORITHMS["CBC"])
    peer = ScapyAssociation(
        ScapyEsp,
        spi=sa.spi,
        crypt_algo="AES-CBC",
        crypt_key=sa.encryption_key.reveal(),
        auth_algo="SHA2-256-128",
        auth_key=sa.integrity_key.reveal(),
        tunnel_header=IP(src=NEAR, dst=FAR),
    )
    (sealed,) = cards[0].send([NetBuffer(frame_of(INNER[4] / b"hello"))], 1.0).wire
    opened = bytes(peer.decrypt(IP(bytes(sealed.frame[14:]))))
    packet = bytes(INNER[4] / b"hello")
    assert opened == packet + bytes(PAD_TO - len(packet))


def test_counters_count_what_was_protected_and_not_its_padding() -> None:
    cards = pair(4, 4, PAD_TO)
    across(cards, frame_of(INNER[4] / bytes(72)))
    for card in cards:
        (report,) = card.sas()
        assert (report.counters.packets, report.counters.bytes) == (1, 100)
