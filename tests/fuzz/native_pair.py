"""The native engine beside the reference engine: the same SAs, policies, bursts, and what both made of them.

Law: nothing here knows what is right; the reference engine does. Every choice is made by the `Random` that is
given, so that a seed leads it. Ciphertext differs by its IVs, so what is sent is compared by its lengths and
by what a reference card reads in it.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet
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

from tests.engines import NATIVE, engine_class
from vnic.engine.reference import ReferenceEngine
from vnic.ipsec.counters import CardCounters
from vnic.ipsec.drops import DropReason
from vnic.ipsec.lifetime import Lifetime
from vnic.ipsec.udp_encapsulation import UdpEncapsulation
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.ip import IpHeader, parse_ip
from vnic.packet.vnet import GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, VnetHeader
from vnic.transport.segmentation import layer4_length, segments

WRAP = 1 << 32

CIPHERS: list[tuple[str, str | None, dict[str, Any]]] = [
    ("aes-gcm-128", None, {}),
    ("aes-gcm-192", None, {"icv_length": 12}),
    ("aes-gcm-256", None, {"icv_length": 8}),
    ("aes-cbc-128", "hmac-sha1-96", {}),
    ("aes-cbc-192", "hmac-sha256-128", {"icv_length": 12}),
    ("aes-cbc-256", "hmac-sha256-128", {}),
    ("3des-cbc", "hmac-md5-96", {}),
    ("null", "hmac-sha1-96", {}),
    ("null", "aes-gmac-256", {}),
]
AH_MACS = ["hmac-md5-96", "hmac-sha1-96", "hmac-sha256-128", "aes-gmac-128", "aes-gmac-256"]


class Difference(AssertionError):
    """The engines have not done the same."""


def _check(native: object, reference: object, what: str) -> None:
    if native != reference:
        raise Difference(f"{what}:\n  native    {native!r}\n  reference {reference!r}")


class World:
    """Sender and receiver of each engine, and a reference card that reads what the native sender sends."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 1.0
        self.version = rng.choice([4, 6])
        tunnel = rng.random() < 0.6
        shape = rng.choice(["esp", "esp", "ah", "both"])
        outer = rng.choice([4, 6]) if tunnel else self.version
        if tunnel:
            near, far = (NEAR, FAR) if outer == 4 else (NEAR6, FAR6)
        else:
            near, far = ("10.1.0.1", "10.2.0.1") if outer == 4 else ("fd01::1", "fd02::1")
        esn = rng.random() < 0.4
        members: dict[str, Any] = {
            "esn": esn,
            "sequence_number": rng.choice([0, 7, WRAP - 30, WRAP - 2, 3 * WRAP - 9])
            if esn
            else rng.choice([0, 9]),
            "replay_window": rng.choice([0, 64, 65, 1024]),
            "no_ecn": tunnel and rng.random() < 0.2,
        }
        mode = TUNNEL if tunnel else TRANSPORT
        if shape == "esp" and rng.random() < 0.25:
            members["udp"] = UdpEncapsulation(4500, 4500, keepalive=0)
        templates, sas = [], []
        if shape != "ah":
            encryption, integrity, more = rng.choice(CIPHERS)
            ends = (near, far) if tunnel else ()
            templates.append(template(ESP, mode, *ends))
            sas.append(
                association(
                    OUT, mode, near, far, encryption=encryption, integrity=integrity, **members, **more
                )
            )
        if shape != "esp":
            ah_mode = mode if shape == "ah" else TRANSPORT
            ends = (near, far) if ah_mode is TUNNEL else ()
            templates.append(template(AH, ah_mode, *ends))
            ah_members = {**members, "no_ecn": False, "ah_alignment": rng.choice([4, 8])}
            integrity = rng.choice(AH_MACS)
            sas.append(
                association(
                    OUT, ah_mode, near, far, protocol=AH, spi=0x2000, integrity=integrity, **ah_members
                )
            )
        life = Lifetime(packet_soft=20, packet_hard=rng.choice([40, 90])) if rng.random() < 0.15 else None
        # Which packet of a burst is the last that a limit lets pass, its order decides on.
        self.most = 1 if life else 12
        native = engine_class(NATIVE)
        wire_mtu = rng.choice([1500, 1500, 9000])
        self.senders = self._cards(native, wire_mtu)
        self.receivers = self._cards(native, wire_mtu)
        self.reader = ReferenceEngine(random.Random(9).randbytes, wire_mtu)
        for card in (*self.senders, *self.receivers, self.reader):
            for family in (ANY, ANY6):
                if tunnel or family is (ANY if self.version == 4 else ANY6):
                    card.add_policy(policy(OUT, family, *templates))
                    card.add_policy(policy(IN, family, *templates))
        for sa in sas:
            for card in self.senders:
                card.add_sa(replace(sa, lifetime=life), 0.0)
            for card in self.receivers:
                card.add_sa(replace(sa, direction=IN, lifetime=life), 0.0)
            self.reader.add_sa(replace(sa, direction=IN), 0.0)
        self.sas = sas
        self.wire: list[bytes] = []
        self.frames = 0
        self.count = 0
        # The first packet of each flow is always the reference engine's.
        self.step([(bytes(frame_of(self.packet(flow, 40))), None) for flow in range(4)])

    @staticmethod
    def _cards(native: type[ReferenceEngine], wire_mtu: int) -> tuple[ReferenceEngine, ReferenceEngine]:
        return native(random.Random(7).randbytes, wire_mtu), ReferenceEngine(
            random.Random(7).randbytes, wire_mtu
        )

    # ------------------------------------------------------------------------------- what the host says

    def packet(self, flow: int, length: int) -> Packet:
        """A packet of one of four flows."""
        rng = self.rng
        self.count += 1
        dscp_ecn = rng.choice([0, 0, 0, 2, 3, 0xB8])
        if self.version == 4:
            ip = IP(
                src="10.1.0.1",
                dst="10.2.0.1",
                tos=dscp_ecn,
                id=self.count & 0xFFFF,
                flags=rng.choice(["DF", 0]),
            )
        else:
            ip = IPv6(src="fd01::1", dst="fd02::1", tc=dscp_ecn, fl=rng.choice([0, 77]))
        data = bytes(rng.getrandbits(8) for _ in range(8)) * (length // 8 + 1)
        if flow == 3 and self.version == 4:
            return ip / ICMP(type=8, id=3, seq=self.count & 0xFFFF) / data[:length]
        if flow == 2:
            return ip / TCP(sport=5, dport=6, seq=self.count * 1000 & 0xFFFFFFFF, flags="A") / data[:length]
        return ip / UDP(sport=flow + 7, dport=9) / data[:length]

    def host_frame(self) -> tuple[bytes, VnetHeader | None]:
        """A frame of the host: plain, a superframe, with an open checksum, or spoiled."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.2:
            frame = frame_of(self.packet(2, rng.choice([3000, 9000])))
            l4 = 14 + (20 if self.version == 4 else 40)
            gso = GSO_TCPV4 if self.version == 4 else GSO_TCPV6
            return bytes(frame), VnetHeader(NEEDS_CSUM, gso, l4 + 20, rng.choice([536, 1000, 1400]), l4, 16)
        frame = frame_of(
            self.packet(rng.randrange(4), rng.choice([0, 1, 9, 60, 700, 1350, 1420, 1480, 2000]))
        )
        if kind > 0.9:
            frame = _spoiled(frame, rng)
        return bytes(frame), None

    def step(self, burst: list[tuple[bytes, VnetHeader | None]] | None = None) -> None:
        """Send a burst with both engines and compare."""
        if burst is None:
            burst = [self.host_frame() for _ in range(self.rng.randrange(self.most) + 1)]
        native, reference = (
            card.send([NetBuffer(bytearray(frame), vnet) for frame, vnet in burst], self.now)
            for card in self.senders
        )
        ours = [bytes(buffer.frame) for buffer in native.wire]
        theirs = [bytes(buffer.frame) for buffer in reference.wire]
        _check(len(ours), len(theirs), "frames on the wire")
        _check(sorted(map(len, ours)), sorted(map(len, theirs)), "their lengths")
        _check(_answers(native.host), _answers(reference.host), "answers to the host")
        clear = [Counter(one for one in frames if not _is_protected(one)) for frames in (ours, theirs)]
        _check(clear[0], clear[1], "in clear on the wire")
        # Order is kept inside flows; a reference card reads both.
        read = [self._read(frames) for frames in (ours, theirs)]
        _check(read[0], read[1], "what a peer reads")
        self.compare(self.senders)
        self.wire += theirs

    def _read(self, frames: list[bytes]) -> Counter[bytes]:
        reader = self.reader
        for report in reader.sas():
            # Every number is new to it, so that it can read both.
            reader._sad.table[report.sa.id].window = _AnyNumber(reader._sad.table[report.sa.id].window.top)  # type: ignore[assignment, union-attr]
        host = reader.receive([NetBuffer(bytearray(frame)) for frame in frames], self.now).host
        return Counter(frame for buffer in host for frame in _packets(buffer))

    # ------------------------------------------------------------------------------- what the wire says

    def deliver(self) -> None:
        """Give both receivers frames of the wire: late, twice, changed, or as they were; and compare."""
        rng = self.rng
        burst: list[bytes] = []
        while self.wire and len(burst) < rng.randrange(3 * self.most) + 1:
            frame = self.wire.pop(0 if rng.random() < 0.8 else rng.randrange(len(self.wire)))
            burst.append(frame)
            fate = rng.random()
            if self.most == 1:
                break
            if fate < 0.1:
                burst.append(frame)
            elif fate < 0.25:
                burst.append(bytes(_spoiled(bytearray(frame), rng)))
            elif fate < 0.3 and len(burst) > 1:
                rng.shuffle(burst)
        self._receive(burst)

    def _receive(self, burst: list[bytes]) -> None:
        """Give both receivers a burst, and compare. What a fragment completes may be too old for a small
        window once the rest of its burst is through, so that such bursts are given frame by frame."""
        small = any(0 < sa.replay_window < 1024 for sa in self.sas)
        if small and any(map(_is_fragment, burst)):
            for frame in burst:
                self._compare_received([frame])
        else:
            self._compare_received(burst)

    def _compare_received(self, burst: list[bytes]) -> None:
        native, reference = (
            card.receive([NetBuffer(bytearray(frame)) for frame in burst], self.now)
            for card in self.receivers
        )
        ours, theirs = (
            [frame for buffer in one.host for frame in _packets(buffer)] for one in (native, reference)
        )
        _check(Counter(ours), Counter(theirs), "frames for the host")
        self.compare(self.receivers)

    def hostile(self, count: int) -> None:
        """Give both receivers spoiled frames alone, `count` of them."""
        if self.most == 1 < count:
            for _ in range(count):
                self.hostile(1)
            return
        source = self.wire[:20] or [bytes(60)]
        burst = [bytes(_spoiled(bytearray(self.rng.choice(source)), self.rng)) for _ in range(count)]
        self.frames += count
        self._receive(burst)

    # ------------------------------------------------------------------------------- what is left behind

    def compare(self, cards: tuple[ReferenceEngine, ReferenceEngine]) -> None:
        """Numbers, windows, counters, reports and events of two cards."""
        native, reference = cards
        _check(*(_counted(card.counters) for card in cards), "counters of the card")
        for ours, theirs in zip(native.sas(), reference.sas(), strict=True):
            _check(_numbers(ours), _numbers(theirs), f"the SA {ours.sa.id}")
        events = [
            {
                (one.kind, _reason(one.drop), one.limit, one.sa)
                for one in card.take_events()
                if _reason(one.drop) != "in_replay"
            }
            for card in cards
        ]
        _check(events[0], events[1], "events")


def _is_protected(frame: bytes) -> bool:
    """Whether a frame holds ESP or AH; others are no IP, and policy does not govern them."""
    return frame[12:14] in (b"\x08\x00", b"\x86\xdd") and parse_ip(frame, 14).protocol in (50, 51, 17)


def _is_fragment(frame: bytes) -> bool:
    """Whether a frame says that it is one fragment of several."""
    if frame[12:14] == b"\x08\x00":
        return int.from_bytes(frame[20:22], "big") & 0x3FFF != 0
    return frame[12:14] == b"\x86\xdd" and frame[20:21] == b"\x2c"


class _AnyNumber:
    """A window that takes everything and still knows how far the numbers are."""

    def __init__(self, top: int) -> None:
        from vnic.ipsec.replay import ReplayVerdict

        self.top, self.window_bits, self.needed_bits = top, 64, 0
        self._new = ReplayVerdict.NEW

    def check(self, sequence_number: int) -> object:
        return self._new

    def advance(self, sequence_number: int) -> None:
        self.top = max(self.top, sequence_number)

    def bitmap(self) -> int:
        return 0


def _numbers(report: Any) -> tuple[object, ...]:
    counters = report.counters
    return (
        report.sequence_number,
        report.replay_bitmap,
        report.use_time,
        report.expiring,
        report.offload,
        (counters.packets, counters.bytes, _by_reason(counters.drops)),
    )


def _reason(reason: DropReason | None) -> str:
    """A reason, as far as the order in a burst does not decide on it: what was left comes behind, and a
    replayed number may then be too old instead of a duplicate."""
    if reason in (DropReason.IN_REPLAY_DUPLICATE, DropReason.IN_REPLAY_TOO_OLD):
        return "in_replay"
    return "" if reason is None else reason.value


def _by_reason(drops: Mapping[DropReason, int]) -> Counter[str]:
    total: Counter[str] = Counter()
    for reason, count in drops.items():
        total[_reason(reason)] += count
    return total


def _counted(counters: CardCounters) -> dict[str, object]:
    return {**asdict(counters), "drops": _by_reason(counters.drops)}


def _answers(host: list[NetBuffer]) -> Counter[bytes]:
    return Counter(bytes(buffer.frame) for buffer in host)


def _packets(buffer: NetBuffer) -> list[bytes]:
    """The packets that a frame for the host stands for."""
    vnet = buffer.vnet
    if vnet is None or vnet.gso_type == GSO_NONE:
        return [bytes(buffer.frame)]
    header: IpHeader = parse_ip(buffer.frame, 14)
    layer4 = layer4_length(buffer.frame, header, vnet)
    ethernet = bytes(buffer.frame[:14])
    pieces = segments(buffer.frame, header, layer4, vnet.gso_size)
    return [b"".join((ethernet, *one)) for one in pieces]


def _spoiled(frame: bytearray, rng: random.Random) -> bytearray:
    """A frame with something wrong, perhaps."""
    kind = rng.randrange(6)
    if kind == 0 and len(frame) > 15:
        frame[rng.randrange(12, len(frame))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del frame[rng.randrange(14, len(frame) + 1) :]
    elif kind == 2:
        frame += bytes(rng.randrange(1, 30))
    elif kind == 3 and len(frame) > 60:
        at = rng.randrange(14, 60)
        frame[at : at + 4] = struct.pack(
            ">I", rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, rng.getrandbits(32)])
        )
    elif kind == 4 and len(frame) > 34:
        place, value = rng.choice([(14, 0x46), (20, 0x20), (21, 1), (23, 51), (12, 0x81), (15, 3), (23, 17)])
        frame[place] = value
    else:
        frame[6:12] = bytes(6)
    return frame
