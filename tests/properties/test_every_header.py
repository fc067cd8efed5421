"""IPv4 options and IPv6 extension headers × ESP, AH, AH over ESP × transport, tunnel, against scapy.

scapy seals and opens with `cryptography`; it shares no line with vnic, and zeroes AH's mutable fields itself.
"""

from __future__ import annotations

import random
import warnings
from dataclasses import replace

import pytest
from scapy.layers.inet import (
    IP,
    UDP,
    IPOption_EOL,
    IPOption_NOP,
    IPOption_Router_Alert,
    IPOption_RR,
    IPOption_Security,
    IPOption_Timestamp,
)
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    RouterAlert,
)
from scapy.packet import Packet
from transport_lab import AH as AH_PROTOCOL
from transport_lab import (
    ANY,
    ANY6,
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
from transport_lab import ESP as ESP_PROTOCOL

from tests.engines import BOTH_ENGINES, make_card
from vnic.engine.reference import ReferenceEngine
from vnic.ipsec.association import Mode
from vnic.ndis.capabilities import OffloadCapabilities
from vnic.ndis.netbuffer import NetBuffer

with warnings.catch_warnings():
    # scapy names ciphers at import that cryptography has moved or is about to move.
    warnings.simplefilter("ignore")
    from scapy.layers.ipsec import AH, ESP, SecurityAssociation

V4, V6 = {"src": "10.1.0.1", "dst": "10.2.0.1"}, {"src": "fd01::1", "dst": "fd02::1"}
DATA = UDP(sport=7, dport=8) / b"VERY SECRET PAYLOAD"

pytestmark = BOTH_ENGINES

RECORD = IPOption_RR(length=7, routers=["0.0.0.0"])

PACKETS: dict[str, Packet] = {
    "4 plain": IP(**V4) / DATA,
    "4 no operation": IP(**V4, options=[IPOption_NOP(), IPOption_NOP(), IPOption_EOL()]) / DATA,
    "4 record route": IP(**V4, options=[IPOption_RR(length=11, routers=["1.2.3.4", "0.0.0.0"])]) / DATA,
    "4 timestamp": IP(**V4, options=[IPOption_Timestamp(length=8, flg=0)]) / DATA,
    "4 security": IP(**V4, options=[IPOption_Security()]) / DATA,
    "4 router alert": IP(**V4, options=[IPOption_Router_Alert()]) / DATA,
    "4 mixed": IP(**V4, options=[IPOption_Router_Alert(), IPOption_NOP(), RECORD]) / DATA,
    "6 plain": IPv6(**V6) / DATA,
    "6 hop by hop": IPv6(**V6) / IPv6ExtHdrHopByHop(options=[RouterAlert(), PadN(optdata=b"\0\0")]) / DATA,
    "6 destination": IPv6(**V6) / IPv6ExtHdrDestOpt() / DATA,
    "6 routing": IPv6(**V6) / IPv6ExtHdrRouting(type=0, segleft=0, addresses=["fd03::1"]) / DATA,
    "6 fragment": IPv6(**V6) / IPv6ExtHdrFragment(id=7) / DATA,
    "6 all": IPv6(**V6)
    / IPv6ExtHdrHopByHop()
    / IPv6ExtHdrRouting(type=0, segleft=0, addresses=["fd03::1"])
    / IPv6ExtHdrDestOpt()
    / DATA,
}
WAYS = {"ESP": (ESP_PROTOCOL,), "AH": (AH_PROTOCOL,), "AH over ESP": (ESP_PROTOCOL, AH_PROTOCOL)}
CBC = {"encryption": "aes-cbc-128", "integrity": "hmac-sha256-128"}


def associations(way: str, mode: Mode, version: int, outer: int) -> list[object]:
    """Of the host, innermost first; AH over an ESP tunnel is in transport mode, as `ip xfrm` says it."""
    hosts = (V4["src"], V4["dst"]) if version == 4 else (V6["src"], V6["dst"])
    ends = hosts if mode is TRANSPORT else (NEAR, FAR) if outer == 4 else (NEAR6, FAR6)
    made = []
    for number, protocol in enumerate(WAYS[way]):
        suite = CBC if protocol is ESP_PROTOCOL else {}
        of = mode if number == 0 else TRANSPORT
        made.append(association(OUT, of, *ends, protocol=protocol, spi=0x1000 + number, **suite))  # type: ignore[arg-type]
    return made


def cards_for(
    way: str, mode: Mode, version: int, outer: int, capabilities: OffloadCapabilities | None = None
) -> tuple[ReferenceEngine, ReferenceEngine]:
    cards = tuple(make_card(random.Random(seed).randbytes, capabilities=capabilities) for seed in (3, 4))
    ends = (NEAR, FAR) if outer == 4 else (NEAR6, FAR6)
    templates = [
        template(
            protocol, mode if not number else TRANSPORT, *(ends if mode is TUNNEL and not number else ())
        )
        for number, protocol in enumerate(WAYS[way])
    ]
    everything = ANY if version == 4 else ANY6
    for card, direction in zip(cards, (OUT, IN), strict=True):
        card.add_policy(policy(direction, everything, *templates))
        for sa in associations(way, mode, version, outer):
            card.add_sa(replace(sa, direction=direction), 0.0)  # type: ignore[type-var]
    return cards  # type: ignore[return-value]


def scapy_association(sa: object, header: Packet | None) -> SecurityAssociation:
    integrity = sa.integrity_key.reveal()  # type: ignore[attr-defined]
    if sa.protocol is AH_PROTOCOL:  # type: ignore[attr-defined]
        return SecurityAssociation(
            AH,
            spi=sa.spi,
            auth_algo="SHA2-256-128",
            auth_key=integrity,
            tunnel_header=header,  # type: ignore[attr-defined]
        )
    return SecurityAssociation(
        ESP,
        spi=sa.spi,  # type: ignore[attr-defined]
        crypt_algo="AES-CBC",
        crypt_key=sa.encryption_key.reveal(),  # type: ignore[attr-defined]
        auth_algo="SHA2-256-128",
        auth_key=integrity,
        tunnel_header=header,
    )


def sent(card: ReferenceEngine, packet: Packet) -> bytes:
    (sealed,) = card.send([NetBuffer(frame_of(packet))], 1.0).wire
    return bytes(sealed.frame)[14:]


def drops(card: ReferenceEngine) -> dict[str, int]:
    return {reason.value: count for reason, count in card.counters.drops.items()}


@pytest.mark.parametrize("name", PACKETS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", [TRANSPORT, TUNNEL])
@pytest.mark.parametrize("able", [True, False], ids=["NIC", "software"])
def test_every_header_arrives_as_it_was_and_by_whom_the_capabilities_say(
    name: str, way: str, mode: Mode, able: bool
) -> None:
    packet = PACKETS[name]
    version = packet.version
    capabilities = (
        None if able else OffloadCapabilities(ipv4_options=False, ipv6_non_ipsec_extension_headers=False)
    )
    for outer in (4, 6) if mode is TUNNEL else (version,):
        cards = cards_for(way, mode, version, outer, capabilities)
        frame = frame_of(packet)
        (sealed,) = cards[0].send([NetBuffer(bytearray(frame))], 1.0).wire
        assert way == "AH" or b"SECRET" not in sealed.frame
        (got,) = cards[1].receive([NetBuffer(bytearray(sealed.frame))], 1.0).host
        assert bytes(got.frame) == bytes(frame)
        plain = name.endswith("plain")
        nic = able or plain or mode is TUNNEL
        assert (cards[0].counters.tx_offloaded, cards[0].counters.tx_software) == ((1, 0) if nic else (0, 1))
        assert (cards[1].counters.rx_offloaded, cards[1].counters.rx_software) == ((1, 0) if nic else (0, 1))
        assert drops(cards[1]) == {}
        # Any bit of what was sealed, changed, ends the packet.
        for place in range(len(sealed.frame) - 12, len(sealed.frame)):
            changed = bytearray(sealed.frame)
            changed[place] ^= 1
            assert cards[1].receive([NetBuffer(changed)], 1.0).host == []


@pytest.mark.parametrize("name", PACKETS)
@pytest.mark.parametrize("way", ["ESP", "AH"])
@pytest.mark.parametrize("mode", [TRANSPORT, TUNNEL])
def test_scapy_opens_what_the_card_sealed(name: str, way: str, mode: Mode) -> None:
    packet = PACKETS[name]
    version = packet.version
    cards = cards_for(way, mode, version, version)
    (sa,) = associations(way, mode, version, version)
    head = None
    if mode is TUNNEL:
        head = IP(src=NEAR, dst=FAR) if version == 4 else IPv6(src=NEAR6, dst=FAR6)
    family = IP if version == 4 else IPv6
    opened = bytes(scapy_association(sa, head).decrypt(family(sent(cards[0], packet))))
    expected = bytes(frame_of(packet))[14:]
    if version == 4 and mode is TRANSPORT:
        # scapy leaves the header's checksum to whoever sends it.
        opened = bytes(family(opened[:10] + expected[10:12] + opened[12:]))
    assert opened == expected


def mutated(frame: bytes, name: str) -> bytes:
    """What routers on the way may have done to a packet: hop limit, DSCP, flow label, and options that change
    on the way."""
    data = bytearray(frame)
    if data[14] >> 4 == 4:
        data[15] ^= 0xFC
        data[22] -= 3
        if "record route" in name or "timestamp" in name or "mixed" in name:
            end = 14 + (data[14] & 15) * 4
            data[end - 2] ^= 0x55
        data[24:26] = bytes(2)
        total = 0
        for place in range(14, 14 + (data[14] & 15) * 4, 2):
            total += data[place] << 8 | data[place + 1]
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        data[24:26] = (0xFFFF - total).to_bytes(2, "big")
    else:
        data[14] ^= 0x0F
        data[16] ^= 0x7F
        data[21] -= 3
    return bytes(data)


@pytest.mark.parametrize("name", PACKETS)
@pytest.mark.parametrize("mode", [TRANSPORT, TUNNEL])
def test_what_may_change_on_the_way_does_not_break_ah(name: str, mode: Mode) -> None:
    version = PACKETS[name].version
    cards = cards_for("AH", mode, version, version)
    (sealed,) = cards[0].send([NetBuffer(frame_of(PACKETS[name]))], 1.0).wire
    changed = mutated(bytes(sealed.frame), name if mode is TRANSPORT else "plain")
    assert len(cards[1].receive([NetBuffer(bytearray(changed))], 1.0).host) == 1
    assert drops(cards[1]) == {}
