"""ESP sizes and layout, against RFC 4303 and scapy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.ipsec import ESP

from vnic.packet.esp import ESP_HEADER, ESP_HEADER_LENGTH, ESP_TRAILER_LENGTH, PADDING, pad_length


def test_header_reads_as_scapy_writes_it() -> None:
    raw = bytes(ESP(spi=0xDEADBEEF, seq=0x01020304, data=b""))
    assert len(raw) == ESP_HEADER_LENGTH
    assert ESP_HEADER.unpack(raw) == (0xDEADBEEF, 0x01020304)
    assert ESP_HEADER.pack(0xDEADBEEF, 0x01020304) == raw


def test_default_padding_counts_from_one() -> None:
    # RFC 4303 §2.4: 1, 2, 3, … up to the 255 that the pad length can say.
    assert list(PADDING) == list(range(1, 256))


@pytest.mark.parametrize(
    ("payload", "block", "pad"),
    [
        (0, 1, 2),
        (1, 1, 1),
        (2, 1, 0),
        (3, 4, 3),
        (14, 16, 0),
        (15, 16, 15),
        (16, 16, 14),
        (6, 8, 0),
        (7, 8, 7),
    ],
)
def test_padding_is_what_aligns_payload_and_trailer(payload: int, block: int, pad: int) -> None:
    assert pad_length(payload, block) == pad


@given(st.integers(0, 70000), st.sampled_from([1, 4, 8, 16]))
def test_padding_is_the_least_that_aligns(payload: int, block: int) -> None:
    alignment = max(4, block)
    pad = pad_length(payload, block)
    assert 0 <= pad < alignment
    assert (payload + pad + ESP_TRAILER_LENGTH) % alignment == 0
