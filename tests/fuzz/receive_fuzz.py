"""Invariant: whatever bytes come from the wire, the card neither crashes nor hangs, and the only packets
that reach the host are ones a peer with the key has sealed, bit for bit.

A sealed frame is changed in one or more places (bits, bytes, lengths, cuts, insertions, splices of two
frames) and given to a card that would accept the original. What comes out must be the inner packet of
some original: a change that only touched what nothing protects (Ethernet addresses, an outer header)
may pass, a change of anything else may not. In transport mode the IP header itself is such an outer
header to ESP, and partly to AH, so there the invariant is about what follows it.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass
from ipaddress import ip_address

from vnic.engine.reference import ReferenceEngine
from vnic.ipsec.algorithms import ENCRYPTION_BY_NAME, INTEGRITY_BY_NAME
from vnic.ipsec.association import Direction, IpsecProtocol, KeyMaterial, Mode, SecurityAssociation
from vnic.ipsec.policy import PolicyAction, PolicyEntry, Prefix, Selector, Template
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.ethernet import ip_offset

ETHERNET_V4 = bytes.fromhex("02000000000202000000000108 00".replace(" ", ""))
ETHERNET_V6 = bytes.fromhex("020000000002020000000001 86dd".replace(" ", ""))

_ANY_V4 = Prefix(bytes(4), 0)
_ANY_V6 = Prefix(bytes(16), 0)


@dataclass
class Card:
    """A receiving card, frames it accepts, and the IP packets that may come out of it."""

    name: str
    engine: ReferenceEngine
    frames: list[bytes]
    packets: set[bytes]
    uppers: tuple[bytes, ...]
    """What follows the IP header of `packets`; empty where the header must be theirs too."""

    def sealed(self, packet: bytes) -> bool:
        """Whether a packet is one of those that were sealed."""
        return packet in self.packets or any(packet.endswith(upper) for upper in self.uppers)


def _packet_v4(source: bytes, destination: bytes, payload: bytes) -> bytes:
    header = bytearray(20)
    header[0], header[8], header[9] = 0x45, 64, 17
    header[2:4] = (28 + len(payload)).to_bytes(2, "big")
    header[12:16], header[16:20] = source, destination
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, 20, 2))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    header[10:12] = (0xFFFF - total).to_bytes(2, "big")
    udp = bytes.fromhex("13881389") + (8 + len(payload)).to_bytes(2, "big") + b"\0\0"
    return bytes(header) + udp + payload


def _packet_v6(source: bytes, destination: bytes, payload: bytes) -> bytes:
    udp = bytes.fromhex("13881389") + (8 + len(payload)).to_bytes(2, "big") + b"\x12\x34"
    header = b"\x60\0\0\0" + (len(udp) + len(payload)).to_bytes(2, "big") + b"\x11\x40"
    return header + source + destination + udp + payload


def _card(
    name: str,
    seed: int,
    protocols: tuple[IpsecProtocol, ...],
    mode: Mode,
    *,
    encryption: str = "",
    integrity: str = "",
    ipv6: bool = False,
    esn: bool = False,
) -> Card:
    source, destination = (
        (ip_address("fd00::1").packed, ip_address("fd00::2").packed)
        if ipv6
        else (ip_address("10.9.0.1").packed, ip_address("10.9.0.2").packed)
    )
    outer = (source, destination)
    if mode is Mode.TUNNEL:
        outer = (ip_address("192.0.2.1").packed, ip_address("192.0.2.2").packed)
    key = random.Random(seed)
    sender = ReferenceEngine(key.randbytes)
    receiver = ReferenceEngine(key.randbytes)
    templates = []
    for number, protocol in enumerate(protocols):
        row = ENCRYPTION_BY_NAME[encryption] if encryption and protocol is IpsecProtocol.ESP else None
        check = None if row is not None and row.combined else INTEGRITY_BY_NAME[integrity]
        shared = {
            "source": outer[0],
            "destination": outer[1],
            "protocol": protocol,
            "spi": 0x1000 + number,
            "mode": mode,
            "encryption": row,
            "encryption_key": KeyMaterial(key.randbytes(row.key_length if row else 0)),
            "integrity": check,
            "integrity_key": KeyMaterial(key.randbytes(check.key_length if check else 0)),
            "esn": esn,
            "replay_window": 0,
        }
        sender.add_sa(SecurityAssociation(direction=Direction.OUTBOUND, **shared), 0.0)
        receiver.add_sa(SecurityAssociation(direction=Direction.INBOUND, **shared), 0.0)
        end_points = outer if mode is Mode.TUNNEL else (None, None)
        templates.append(Template(protocol, mode, *end_points))
    wide = _ANY_V6 if ipv6 else _ANY_V4
    for engine, direction in ((sender, Direction.OUTBOUND), (receiver, Direction.INBOUND)):
        engine.add_policy(
            PolicyEntry(direction, Selector(wide, wide), PolicyAction.PROTECT, tuple(templates))
        )
        other = _ANY_V4 if ipv6 else _ANY_V6
        engine.add_policy(PolicyEntry(direction, Selector(other, other), PolicyAction.DISCARD))
    make = _packet_v6 if ipv6 else _packet_v4
    ethernet = ETHERNET_V6 if ipv6 else ETHERNET_V4
    packets = [make(source, destination, key.randbytes(length)) for length in (0, 1, 22, 64, 300, 1200)]
    outcome = sender.send([NetBuffer(bytearray(ethernet + packet)) for packet in packets], 1.0)
    assert len(outcome.wire) == len(packets), sender.counters
    uppers = () if mode is Mode.TUNNEL else tuple(packet[40 if ipv6 else 20 :] for packet in packets)
    return Card(name, receiver, [bytes(buffer.frame) for buffer in outcome.wire], set(packets), uppers)


def cards(seed: int) -> list[Card]:
    """One card for each shape of packet the receive path knows."""
    esp, ah = IpsecProtocol.ESP, IpsecProtocol.AH
    return [
        _card("esp gcm tunnel", seed, (esp,), Mode.TUNNEL, encryption="aes-gcm-128"),
        _card(
            "esp gcm transport v6 esn",
            seed,
            (esp,),
            Mode.TRANSPORT,
            encryption="aes-gcm-256",
            ipv6=True,
            esn=True,
        ),
        _card(
            "esp cbc sha256 tunnel v6 in v4",
            seed,
            (esp,),
            Mode.TUNNEL,
            encryption="aes-cbc-128",
            integrity="hmac-sha256-128",
            ipv6=True,
        ),
        _card("esp null gmac", seed, (esp,), Mode.TRANSPORT, encryption="null", integrity="aes-gmac-128"),
        _card("ah sha1", seed, (ah,), Mode.TRANSPORT, integrity="hmac-sha1-96"),
        _card("ah gmac v6", seed, (ah,), Mode.TRANSPORT, integrity="aes-gmac-256", ipv6=True),
        _card("ah over esp", seed, (esp, ah), Mode.TRANSPORT, encryption="3des-cbc", integrity="hmac-md5-96"),
    ]


class ReceiveTarget:
    """The same cards for one frame at a time: the first byte chooses the card, the rest is the frame."""

    def __init__(self, seed: int = 1) -> None:
        self.cards = cards(seed)

    def seeds(self) -> list[bytes]:
        return [bytes((index,)) + frame for index, card in enumerate(self.cards) for frame in card.frames]

    def change(self, data: bytearray, rng: random.Random) -> None:
        """Change the frame, the headers above all."""
        data[1:] = mutate(bytes(data[1:]), rng.choice(rng.choice(self.cards).frames), rng)

    def one(self, data: bytes) -> str:
        card = self.cards[data[0] % len(self.cards)] if data else self.cards[0]
        before = Counter(card.engine.counters.drops)
        outcome = card.engine.receive([NetBuffer(bytearray(data[1:]))], 1.0)
        card.engine.take_events()
        assert not outcome.wire
        for buffer in outcome.host:
            return f"{card.name}: {passed(card, bytes(buffer.frame))}"
        (reason,) = Counter(card.engine.counters.drops) - before
        return f"{card.name}: {reason.value}"


def passed(card: Card, frame: bytes) -> str:
    """Hold a frame that came out against what was sealed, and give what it is.

    Raises:
        AssertionError: nobody sealed it.
    """
    offset = ip_offset(frame)
    if not offset:
        return "not IP"
    assert card.sealed(frame[offset:]), f"{card.name}: a packet nobody sealed reached the host: {frame.hex()}"
    return "passed"


def mutate(frame: bytes, other: bytes, rng: random.Random) -> bytearray:
    """Change a frame in one to three places."""
    data = bytearray(frame)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        position = rng.randrange(len(data)) if data else 0
        choice = rng.randrange(9)
        if not data:
            data += other
        elif choice <= 2:
            data[position] ^= 1 << rng.randrange(8)
        elif choice == 3:
            data[position] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif choice == 4:
            del data[position:]
        elif choice == 5:
            data += rng.randbytes(rng.randrange(1, 40))
        elif choice == 6:
            data[position:position] = rng.randbytes(rng.randrange(1, 12))
        elif choice == 7:
            # the headers are where parsers live
            position = rng.randrange(min(len(data), 90))
            data[position : position + 2] = rng.choice((b"\0\0", b"\xff\xff", b"\0\x01", b"\x40\0"))
        else:
            data[position:] = other[position:]
    return data


def run(count: int, seed: int, *, seconds_per_frame: float = 0.5) -> Counter[str]:
    """Send `count` changed frames; gives how each kind ended, by drop reason or "passed".

    Raises:
        AssertionError: something came out that nobody sealed, or one frame took too long.
    """
    rng = random.Random(seed)
    targets = cards(seed)
    ends: Counter[str] = Counter()
    done = 0
    while done < count:
        card = rng.choice(targets)
        burst = [
            NetBuffer(mutate(rng.choice(card.frames), rng.choice(rng.choice(targets).frames), rng))
            for _ in range(min(32, count - done))
        ]
        done += len(burst)
        started = time.perf_counter()
        outcome = card.engine.receive(burst, started)
        took = time.perf_counter() - started
        assert took < seconds_per_frame * len(burst), f"{card.name}: {took:.1f} s for one burst"
        assert not outcome.wire
        for buffer in outcome.host:
            ends[passed(card, bytes(buffer.frame))] += 1
        card.engine.take_events()
    for card in targets:
        for reason, dropped in card.engine.counters.drops.items():
            ends[reason.value] += dropped
    assert sum(ends.values()) == count, f"{count} frames in, {sum(ends.values())} accounted for"
    return ends
