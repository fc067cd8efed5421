"""Writes `native/core/tests/vectors/send.txt`: what the reference engine sends, checked by scapy.

Law: every packet that the reference engine has sealed is opened by scapy (by the textbook of `tests/interop`
where scapy is known to err), and what is inside is held to what scapy makes of the superframe: the file holds
nothing that only our own code says.

Run: PYTHONPATH=tests:tests/interop:tests/live:. python native/core/tests/make_send_vectors.py

    case NAME
    esp | ah   SPI ENCRYPTION KEY INTEGRITY KEY ICV-LENGTH ESN LAST-NUMBER AH-LENGTH     ("-" for nothing)
    outer      SOURCE DESTINATION NO-ECN NO-PMTU-DISCOVERY
    mtu        BYTES
    in         VNET FRAME
    out        FRAME
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from card import SUITES, Association
from oracles import Scapy, Textbook, parsed, scapy_errs
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.packet import Raw
from transport_lab import ANY, ANY6, ESP, ETHER, OUT, TRANSPORT, TUNNEL, address, policy, template

from vnic.engine.reference import ReferenceEngine
from vnic.ipsec.algorithms import ENCRYPTION_BY_NAME, INTEGRITY_BY_NAME
from vnic.ipsec.association import IpsecProtocol, KeyMaterial, SecurityAssociation
from vnic.ipsec.headers import DfRule, HeaderSettings
from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.vnet import VnetHeader
from vnic.transport.sizes import ah_sizes

TARGET = Path(__file__).parent / "vectors/send.txt"
RANDOM = b"\xa5"
"""Every random byte, so that IVs are known."""

INNER = {4: ("10.9.0.1", "10.9.0.2"), 6: ("fd09::1", "fd09::2")}
OUTER = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}

NAMES = {
    "ecb(cipher_null)": "null",
    "cbc(des3_ede)": "3des-cbc",
    "cbc(des)": "des-cbc",
    "cbc(aes)": "aes-cbc-{}",
    "rfc4106(gcm(aes))": "aes-gcm-{}",
    "rfc4543(gcm(aes))": "aes-gmac-{}",
    "hmac(md5)": "hmac-md5-96",
    "hmac(sha1)": "hmac-sha1-96",
    "hmac(sha256)": "hmac-sha256-128",
}


@dataclass
class Case:
    """One SA or bundle, and what is sent through it."""

    name: str
    suites: tuple[str, ...]
    """ESP first."""
    inner: int
    outer: int
    """0: transport mode."""
    burst: list[str]
    esn: bool = False
    last: int = 0
    mtu: int = 400
    members: dict[str, Any] = field(default_factory=dict)


def payload(length: int, seed: str) -> bytes:
    return hashlib.shake_128(seed.encode()).digest(length)


def packet_of(kind: str, version: int) -> tuple[Any, VnetHeader | None]:
    """A packet of the host; superframes as scapy packets of all their payload."""
    source, destination = INNER[version]
    start = 14 + (20 if version == 4 else 40)
    if version == 4:
        flags = "DF" if "df" in kind else 0
        front = IP(src=source, dst=destination, id=0xFFFE, tos=0x2B, ttl=63, flags=flags)
    else:
        front = IPv6(src=source, dst=destination, tc=0x2B, fl=0x12345, hlim=63)
    length = int(kind.split()[1])
    data = Raw(payload(length, kind))
    if kind.startswith("tso"):
        options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
        flags = "FPAC" if "flags" in kind else "A"
        tcp = TCP(sport=5001, dport=443, seq=0xFFFFFF80, ack=7, flags=flags, options=options)
        gso = {4: 1, 6: 4}[version] | (0x80 if "flags" in kind else 0)
        return front / tcp / data, VnetHeader(1, gso, start + 32, int(kind.split()[2]), start, 16)
    if kind.startswith("uso"):
        udp = UDP(sport=5001, dport=53)
        return front / udp / data, VnetHeader(1, 5, start + 8, int(kind.split()[2]), start, 6)
    if kind.startswith("udp"):
        return front / UDP(sport=5001, dport=53) / data, VnetHeader(1, 0, 0, 0, start, 6)
    echo = ICMP(id=1, seq=2) if version == 4 else ICMPv6EchoRequest(id=1, seq=2)
    return front / echo / data, None


def host_frame(packet: Any, vnet: VnetHeader | None) -> bytearray:
    """The frame as a host hands it over: with an open checksum where the header says so."""
    whole = bytearray(bytes(ETHER / packet))
    if vnet is not None:
        # The host leaves the sum of the pseudo-header in the field.
        at = vnet.csum_start + vnet.csum_offset
        total = sum(int.from_bytes(address(end), "big") for end in (packet.src, packet.dst))
        total += (6 if packet.haslayer(TCP) else 17) + len(whole) - vnet.csum_start
        whole[at : at + 2] = (total % 65535).to_bytes(2, "big")
    if packet.haslayer(ICMP) and len(whole) < 60:
        whole += bytes(60 - len(whole))
    return whole


def expected_inside(packet: Any, vnet: VnetHeader | None, size: int) -> list[bytes]:
    """The packets of a frame as scapy builds them; `size` is the payload of each."""
    if vnet is None or vnet.gso_type == 0:
        return [bytes(packet)]
    data = bytes(packet[Raw])
    made = []
    for index, start in enumerate(range(0, len(data), size)):
        one = parsed(bytes(packet))
        layer = one[TCP if packet.haslayer(TCP) else UDP]
        layer.remove_payload()
        last = start + size >= len(data)
        if packet.haslayer(TCP):
            layer.seq = (layer.seq + start) % 2**32
            cleared = ("" if last else "FP") + ("C" if index else "")
            layer.flags = "".join(one for one in str(layer.flags) if one not in cleared)
        else:
            layer.len = None
        layer.chksum = None
        layer.add_payload(Raw(data[start : start + size]))
        if one.version == 4:
            one.id = (one.id + index) % 65536
            one.len = one.chksum = None
        else:
            one.plen = None
        made.append(bytes(one))
    return made


def known(sa: Association) -> SecurityAssociation:
    """The SA as vnic has it."""
    encryption = integrity = None
    encryption_key = integrity_key = b""
    icv = 0
    for algorithm, key in zip(sa.suite.algorithms, sa.keys, strict=True):
        salted = 4 if algorithm.word == "aead" else 0
        name = NAMES[algorithm.name].format((len(key) - salted) * 8)
        if name in ENCRYPTION_BY_NAME:
            encryption, encryption_key = ENCRYPTION_BY_NAME[name], key
        else:
            integrity, integrity_key = INTEGRITY_BY_NAME[name], key
        icv = (algorithm.icv_bits or 96) // 8
    protocol = IpsecProtocol.ESP if sa.suite.protocol == "esp" else IpsecProtocol.AH
    if protocol is ESP and integrity is not None and encryption is None:
        encryption = ENCRYPTION_BY_NAME["null"]
    return SecurityAssociation(
        direction=OUT,
        source=address(sa.source),
        destination=address(sa.destination),
        protocol=protocol,
        spi=sa.spi,
        mode=TUNNEL if sa.mode == "tunnel" else TRANSPORT,
        encryption=encryption,
        encryption_key=KeyMaterial(encryption_key),
        integrity=integrity,
        integrity_key=KeyMaterial(integrity_key),
        icv_length=icv,
        esn=sa.esn,
        sequence_number=sa.last_number,
    )


def lines_of(case: Case, spi: int) -> list[str]:
    """Run one case, check it and give its lines."""
    ends = OUTER[case.outer] if case.outer else INNER[case.inner]
    mode = "tunnel" if case.outer else "transport"
    sas = [
        Association(
            SUITES[suite],
            # AH around a tunnel of ESP is in transport mode.
            "transport" if place else mode,
            *ends,
            case.esn,
            case.last,
            number=spi + place,
            keys=tuple(
                payload(one.key_length, f"{case.name} {place} {one.name}") for one in SUITES[suite].algorithms
            ),
        )
        for place, suite in enumerate(case.suites)
    ]
    engine = ReferenceEngine(lambda count: RANDOM * count, case.mtu, software=False)
    lines = [f"case {case.name}"]
    templates = []
    for sa in sas:
        made = known(sa)
        for name, value in case.members.items():
            object.__setattr__(made, name, value)
        engine.add_sa(made, 0.0)
        made = made.checked()
        templates.append(template(made.protocol, made.mode, *(ends if made.mode is TUNNEL else ())))
        words = [
            sa.suite.protocol,
            f"{sa.spi:#x}",
            made.encryption.name if made.encryption else "-",
            made.encryption_key.reveal().hex() or "-",
            made.integrity.name if made.integrity else "-",
            made.integrity_key.reveal().hex() or "-",
            made.icv_length,
            int(made.esn),
            case.last,
            ah_sizes(made) if sa.suite.protocol == "ah" else 0,
        ]
        lines.append(" ".join(map(str, words)))
    if case.outer:
        no_ecn, no_discovery = "no_ecn" in case.members, "header_settings" in case.members
        lines.append(f"outer {ends[0]} {ends[1]} {no_ecn:d} {no_discovery:d}")
    lines.append(f"mtu {case.mtu}")
    engine.add_policy(policy(OUT, ANY if case.inner == 4 else ANY6, *templates))
    number = case.last
    scapy, textbook = Scapy(), Textbook()
    # Two portions want to be seen by one oracle as a whole.
    oracle = textbook if scapy_errs(sas, sealing=False) or case.esn or len(sas) > 1 else scapy
    for kind in case.burst:
        packet, vnet = packet_of(kind, case.inner)
        frame = host_frame(packet, vnet)
        lines.append(f"in {(vnet.emit() if vnet else bytes(10)).hex()} {frame.hex()}")
        outcome = engine.send([NetBuffer(frame, vnet)], 1.0)
        sent = [bytes(buffer.frame) for buffer in outcome.wire]
        assert sent, (case.name, kind, engine.counters.drops)
        inside = []
        for one in sent:
            number += 1
            inside.append(oracle.open(sas, one[14:], number))
            lines.append(f"out {one.hex()}")
        front = 40 if case.inner == 6 else 20
        front += 32 if packet.haslayer(TCP) else 8
        assert inside == expected_inside(packet, vnet, len(inside[0]) - front), (case.name, kind)
    return lines


def cases() -> list[Case]:
    """Every suite once, every shape of packet with GCM and with AH over ESP."""
    mixed = ["tso 150 64 df flags", "udp 33 df", "uso 130 60", "echo 5", "tso 65 64", "udp 0"]
    few = ["tso 100 60 df", "udp 7"]
    made = []
    gcm = "aes-gcm-128-icv128"
    for inner, outer in itertools.product((4, 6), (0, 4, 6)):
        made.append(Case(f"gcm {inner} in {outer}", (gcm,), inner, outer, mixed))
        made.append(Case(f"ah over gcm {inner} in {outer}", (gcm, "ah-sha256-128"), inner, outer, few))
        made.append(Case(f"ah {inner} in {outer}", ("ah-sha256-128",), inner, outer, few))
    for suite in SUITES:
        made.append(Case(f"suite {suite}", (suite,), 4, 4, few))
    for suite in (gcm, "aes-cbc-128+sha1-96", "ah-sha256-128", "null+gmac-128", "ah-gmac-256"):
        made.append(Case(f"esn wraps {suite}", (suite,), 4, 4, few, esn=True, last=2**32 - 2))
    made.append(Case("no ecn", (gcm,), 4, 4, few, members={"no_ecn": True}))
    made.append(Case("no ecn 6", (gcm,), 6, 6, few, members={"no_ecn": True}))
    never = {"header_settings": HeaderSettings(df=DfRule.CLEAR)}
    made.append(Case("no path MTU discovery", (gcm,), 4, 4, few, members=never))
    made.append(Case("no path MTU discovery 6", (gcm,), 6, 4, few, members=never))
    made.append(Case("numbers wrap the identification", (gcm,), 4, 4, ["tso 100 60"], last=65534))
    for suite in (gcm, "aes-cbc-256+sha256-128", "ah-sha256-128", "null+sha1-96"):
        for outer in (0, 4, 6):
            made.append(Case(f"cut smaller {suite} {outer}", (suite,), 4, outer, ["tso 300 280 df"], mtu=262))
    return made


def main() -> None:
    lines = ["# Written by make_send_vectors.py."]
    for place, case in enumerate(cases()):
        lines += lines_of(case, 0x1000 + 2 * place)
    TARGET.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
