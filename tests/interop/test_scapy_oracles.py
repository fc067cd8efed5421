"""The oracles themselves: they agree where both know, they can say no, and where scapy errs it is shown.

Nothing of vnic runs here.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import replace

import pytest
from card import AH, AH_SUITES, CBC, ESP_SUITES, GCM, SUITES, Association, Layer, Suite, associations
from oracles import (
    COUNTER_IV_LENGTH,
    ESP_NUMBER,
    Oracle,
    Scapy,
    Textbook,
    WrongPacketError,
    gcm_tag,
    joined,
    parsed,
    scapy_errs,
    split,
)
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import AUTH_ALGOS, IPSecIntegrityError
from scapy.packet import Raw

pytestmark = pytest.mark.interop

ENDS = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
NUMBER = (3 << 32) + 7


def sas_of(layers: Sequence[Layer], version: int = 4, *, esn: bool = False) -> list[Association]:
    return associations(layers, *ENDS[version], *ENDS[version], esn=esn)


def datagram(version: int, length: int = 33) -> bytes:
    header = {4: IP, 6: IPv6}[version]
    source, destination = ENDS[version]
    return bytes(header(src=source, dst=destination) / UDP(sport=1, dport=2) / Raw(os.urandom(length)))


@pytest.mark.parametrize("suite", [*ESP_SUITES, *AH_SUITES], ids=lambda suite: suite.name)
def test_textbook_opens_what_it_sealed_and_agrees_with_scapy_where_scapy_knows(suite: Suite) -> None:
    textbook = Textbook(ah_alignment=4)
    for mode, version, esn in itertools.product(("transport", "tunnel"), (4, 6), (False, True)):
        sas = sas_of([Layer(suite, mode)], version, esn=esn)
        for length in (0, 1, 2, 3, 14, 500):
            packet = datagram(version, length)
            assert textbook.open(sas, textbook.seal(sas, packet, NUMBER), NUMBER) == packet
            if scapy_errs(sas, sealing=True):
                continue
            assert Scapy().open(sas, textbook.seal(sas, packet, NUMBER), NUMBER) == packet
            assert textbook.open(sas, Scapy().seal(sas, packet, NUMBER), NUMBER) == packet


@pytest.mark.parametrize("suite", [GCM, CBC, AH, SUITES["null+gmac-128"]], ids=lambda suite: suite.name)
@pytest.mark.parametrize("oracle", [Scapy, Textbook])
def test_oracle_refuses_another_key_and_a_changed_bit(oracle: type[Oracle], suite: Suite) -> None:
    sas = sas_of([Layer(suite, "tunnel")])
    packet = datagram(4)
    sealed = oracle().seal(sas, packet, NUMBER)
    assert oracle().open(sas, sealed, NUMBER) == packet
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    stranger = [replace(sas[0], keys=())]  # makes new ones
    for keys, what in ((stranger, sealed), (sas, changed)):
        with pytest.raises((WrongPacketError, IPSecIntegrityError)):
            oracle().open(keys, what, NUMBER)


def test_textbook_refuses_padding_that_scapy_takes() -> None:
    """RFC 4303 §2.4: the padding is 1, 2, 3 …; here it is 9, under an ICV that holds."""
    sa = Association(SUITES["null+gmac-128"], "transport", *ENDS[4])
    header, protocol, rest = split(datagram(4, 1))
    plain = rest + bytes((9, 1, protocol))
    assert len(plain) % 4 == 0
    start, iv = sa.spi.to_bytes(4, "big") + (7).to_bytes(4, "big"), os.urandom(COUNTER_IV_LENGTH)
    icv = gcm_tag(sa.keys[0], iv, b"", start + iv + plain)
    packet = joined(header, ESP_NUMBER, start + iv + plain + icv)
    assert Scapy().open([sa], packet, 7)
    with pytest.raises(WrongPacketError, match="padding"):
        Textbook().open([sa], packet, 7)


def test_scapy_seals_and_opens_gcm_with_a_full_tag_alone() -> None:
    for name in ("aes-gcm-128-icv64", "aes-gcm-256-icv96"):
        sas = sas_of([Layer(SUITES[name], "tunnel")])
        assert scapy_errs(sas, sealing=False)
        with pytest.raises(IPSecIntegrityError):
            Scapy().open(sas, Textbook().seal(sas, datagram(4), NUMBER), NUMBER)
        with pytest.raises(WrongPacketError):
            Textbook().open(sas, Scapy().seal(sas, datagram(4), NUMBER), NUMBER)


def test_scapy_puts_the_icv_of_ah_over_esp_in_the_wrong_place() -> None:
    sas = sas_of([Layer(CBC, "transport"), Layer(AH, "transport")])
    packet = datagram(4)
    assert Scapy().open(sas, Textbook().seal(sas, packet, NUMBER), NUMBER) == packet
    sealed = parsed(Scapy().seal(sas, packet, NUMBER))
    assert sealed["AH"].icv[:16] == bytes(16)
    with pytest.raises(WrongPacketError):
        Textbook(ah_alignment=4).open(sas, bytes(sealed), NUMBER)


def test_scapy_lacks_the_algorithms_it_is_not_asked_about() -> None:
    assert not any("GMAC" in name or name.startswith("SHA2-256-96") for name in AUTH_ALGOS)


def test_textbook_computes_a_published_ah_packet_with_gmac() -> None:
    """AH over IPv4, AES-128-GMAC, from DPDK's test vectors (pkt_ah_ipv4_aes_gmac_128)."""
    sealed = bytes.fromhex(
        "450000a4000000004033abd1c0a86f02c0a8de02"
        "010700000000007b00000001"
        "0100000000000000"
        "d60ecc223179597268c958fb8bb0bbd5"
        "0800fb3712340000babe01234567cafe"
    ) + bytes(range(0x5C))
    sa = Association(
        SUITES["ah-gmac-128"],
        "transport",
        "192.168.111.2",
        "192.168.222.2",
        number=0x7B,
        keys=(b"\xa5" * 16 + bytes.fromhex("cafebabe"),),
    )
    opened = Textbook(ah_alignment=4).open([sa], sealed, 1)
    assert len(opened) == 128
    assert parsed(opened)["ICMP"].id == 0x1234
