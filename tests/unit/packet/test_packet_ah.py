"""AH sizes and layout, against RFC 4302 and scapy."""

from __future__ import annotations

import pytest
from scapy.layers.ipsec import AH

from vnic.packet.ah import AH_FIXED, AH_FIXED_LENGTH, ah_header_length, ah_length


def test_fixed_part_reads_as_scapy_writes_it() -> None:
    raw = bytes(AH(nh=6, payloadlen=4, spi=0xDEADBEEF, seq=0x01020304, icv=bytes(12)))
    assert AH_FIXED.unpack(raw[:AH_FIXED_LENGTH]) == (6, 4, 0, 0xDEADBEEF, 0x01020304)
    assert ah_length(raw[1]) == len(raw) == 24


def test_length_field_counts_words_less_two() -> None:
    # RFC 4302 §2.2: a 96-bit ICV makes 3 words fixed + 3 words ICV - 2 = 4.
    assert ah_length(4) == 24
    assert ah_length(0) == 8
    assert ah_length(255) == 1028


@pytest.mark.parametrize(
    ("icv", "alignment", "length"),
    [(12, 4, 24), (12, 8, 24), (16, 4, 28), (16, 8, 32), (8 + 16, 4, 36), (8 + 16, 8, 40)],
)
def test_header_is_padded_to_its_alignment(icv: int, alignment: int, length: int) -> None:
    assert ah_header_length(icv, alignment) == length
