"""The Internet checksum, against a sum of words one by one and against numbers in print."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.utils import checksum as scapy_checksum

from vnic.packet.checksum import checksum, fold, ones_complement_sum, pseudo_header_sum


def naive_sum(data: bytes) -> int:
    """RFC 1071 §1 word by word, the carry added back at every step."""
    total = 0
    for position in range(0, len(data), 2):
        total += int.from_bytes(data[position : position + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_example_of_rfc_1071_sums_as_printed() -> None:
    # §3: 0001 f203 f4f5 f6f7 sums to 2ddf0, which folds to ddf2.
    assert ones_complement_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2


def test_ipv4_header_in_print_has_the_checksum_in_print() -> None:
    header = bytes.fromhex("4500003c1c46400040060000ac100a63ac100a0c")
    assert checksum(header) == 0xB1E6


@given(st.binary(max_size=4096))
@example(b"")
@example(b"\xff")
@example(b"\xff" * 241)
@example(b"\xff" * 1920)
@example(b"\xff" * 1921)
@example(b"\0" * 1500)
def test_sum_is_that_of_the_words_one_by_one(data: bytes) -> None:
    assert ones_complement_sum(data) == naive_sum(data)


@pytest.mark.parametrize("length", [1, 239, 240, 241, 242, 959, 960, 1499, 1500, 1919, 1920, 1921, 65535])
def test_every_width_of_folding_gives_the_same(length: int) -> None:
    data = bytes((index * 197 + length) & 0xFF for index in range(length))
    assert ones_complement_sum(data) == naive_sum(data)


def test_sum_tells_all_zero_data_from_data_that_sums_to_negative_zero() -> None:
    assert ones_complement_sum(bytes(8)) == 0
    assert ones_complement_sum(b"\xff\xff") == 0xFFFF
    assert ones_complement_sum(b"\x00\x01\xff\xfe") == 0xFFFF


@given(st.binary(min_size=1, max_size=256))
def test_checksum_is_that_of_an_independent_implementation(data: bytes) -> None:
    assert checksum(data) == scapy_checksum(data)


@given(st.binary(max_size=64))
def test_views_and_bytearrays_sum_like_bytes(data: bytes) -> None:
    assert ones_complement_sum(memoryview(data)) == ones_complement_sum(bytearray(data)) == naive_sum(data)


@pytest.mark.parametrize(
    ("total", "folded"), [(0, 0), (1, 1), (0xFFFF, 0xFFFF), (0x10000, 1), (0x1FFFE, 0xFFFF)]
)
def test_fold_keeps_zero_apart_from_its_multiples(total: int, folded: int) -> None:
    assert fold(total) == folded


@pytest.mark.parametrize(
    "packet",
    [
        IP(src="192.0.2.1", dst="198.51.100.7") / TCP(sport=1, dport=2) / b"odd",
        IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=1, dport=2) / b"data",
    ],
    ids=["TCP over IPv4", "UDP over IPv6"],
)
def test_pseudo_header_and_segment_sum_to_all_ones(packet: IP) -> None:
    raw = bytes(packet)
    ipv6 = raw[0] >> 4 == 6
    layer4 = raw[40:] if ipv6 else raw[20:]
    source, destination = (raw[8:24], raw[24:40]) if ipv6 else (raw[12:16], raw[16:20])
    protocol = raw[6] if ipv6 else raw[9]
    total = pseudo_header_sum(source, destination, protocol, len(layer4)) + ones_complement_sum(layer4)
    assert fold(total) == 0xFFFF


def test_pseudo_header_takes_lengths_beyond_16_bits() -> None:
    addresses = bytes(16)
    assert fold(pseudo_header_sum(addresses, addresses, 0, 0x12345)) == 0x2346
