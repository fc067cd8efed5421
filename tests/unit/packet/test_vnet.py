"""The virtio-net header, byte for byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vnic.packet.vnet import GSO_ECN, GSO_TCPV4, NEEDS_CSUM, PLAIN, VNET_HEADER_LENGTH, VnetHeader

U8 = st.integers(0, 0xFF)
U16 = st.integers(0, 0xFFFF)


def test_layout_is_little_endian_and_ten_bytes() -> None:
    header = VnetHeader(NEEDS_CSUM, GSO_TCPV4 | GSO_ECN, 0x0036, 0x05A8, 0x0022, 0x0010)
    assert header.emit() == bytes.fromhex("0181 3600 a805 2200 1000".replace(" ", ""))
    assert VNET_HEADER_LENGTH == 10


def test_plain_is_all_zero() -> None:
    assert PLAIN.emit() == bytes(10)


@given(st.builds(VnetHeader, U8, U8, U16, U16, U16, U16), st.binary(max_size=8))
def test_parse_undoes_emit_and_reads_ten_bytes_only(header: VnetHeader, rest: bytes) -> None:
    assert VnetHeader.parse(header.emit() + rest) == header
    assert VnetHeader.parse(memoryview(header.emit())) == header
