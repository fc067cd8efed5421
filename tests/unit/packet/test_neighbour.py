"""Who has it? Everybody beyond the wire is at one address; scapy asks and reads the answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether

from vnic.packet.neighbour import answer

HOST = "02:00:00:00:00:01"
MAC = bytes.fromhex("02766e696300")


def ask_arp(**fields: object) -> bytes:
    fields = {"hwsrc": HOST, "psrc": "10.0.0.1", "pdst": "10.0.0.2", **fields}
    return bytes(Ether(src=HOST, dst="ff:ff:ff:ff:ff:ff") / ARP(**fields))


def solicit(source: str = "fd00::1", target: str = "fd00::2", hop_limit: int = 255) -> bytes:
    return bytes(
        Ether(src=HOST, dst="33:33:ff:00:00:02")
        / IPv6(src=source, dst="ff02::1:ff00:2", hlim=hop_limit)
        / ICMPv6ND_NS(tgt=target)
        / ICMPv6NDOptSrcLLAddr(lladdr=HOST)
    )


def test_arp_request_is_answered_to_the_one_who_asks() -> None:
    reply = answer(ask_arp(), MAC)
    assert reply is not None
    read = Ether(bytes(reply))
    assert (read.dst, read.src, read[ARP].op) == (HOST, "02:76:6e:69:63:00", 2)
    assert (read[ARP].hwsrc, read[ARP].psrc) == ("02:76:6e:69:63:00", "10.0.0.2")
    assert (read[ARP].hwdst, read[ARP].pdst) == (HOST, "10.0.0.1")


@pytest.mark.parametrize(
    "frame",
    [
        ask_arp(psrc="0.0.0.0"),
        ask_arp(psrc="10.0.0.1", pdst="10.0.0.1"),
        ask_arp(op=2),
        ask_arp()[:40],
        solicit(source="::"),
        solicit(hop_limit=64),
        solicit()[:60],
        bytes(Ether(src=HOST) / IPv6(src="fe80::1", dst="ff02::2", hlim=255) / ICMPv6ND_RS()),
        b"",
    ],
    ids=["probe", "announcement", "reply", "short", "dad", "routed", "cut", "router", "empty"],
)
def test_what_asks_for_nobody_gets_no_answer(frame: bytes) -> None:
    assert answer(frame, MAC) is None


def test_solicitation_is_answered_with_a_good_checksum() -> None:
    reply = answer(solicit(), MAC)
    assert reply is not None
    read = Ether(bytes(reply))
    assert (read[IPv6].src, read[IPv6].dst, read[IPv6].hlim) == ("fd00::2", "fd00::1", 255)
    assert (read[ICMPv6ND_NA].tgt, read[ICMPv6ND_NA].S, read[ICMPv6ND_NA].O, read[ICMPv6ND_NA].R) == (
        "fd00::2",
        1,
        1,
        0,
    )
    assert read[ICMPv6NDOptDstLLAddr].lladdr == "02:76:6e:69:63:00"
    given_checksum = read[ICMPv6ND_NA].cksum
    del read[ICMPv6ND_NA].cksum
    assert Ether(bytes(read))[ICMPv6ND_NA].cksum == given_checksum


@given(st.binary(max_size=120), st.sampled_from([b"\x08\x06", b"\x86\xdd"]))
def test_hostile_bytes_are_survived(data: bytes, kind: bytes) -> None:
    answer(data[:12].ljust(12, b"\0") + kind + data[12:], MAC)
