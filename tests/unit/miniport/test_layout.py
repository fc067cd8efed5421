import pytest
from hypothesis import given
from hypothesis import strategies as st
from nic_frames import ESP, UDP, V4, V6, ethernet, ip, ipv4

from vnic.errors import PacketError
from vnic.miniport.layout import plain_esp
from vnic.packet.ethernet import ip_offset
from vnic.packet.ip import parse_ip

NOTHING = (0, 0, 0)
BODY = bytes(40)


def test_plain_packets_are_found() -> None:
    assert plain_esp(ethernet(ip(V4, ESP, BODY))) == (4, 34, 74)
    assert plain_esp(ethernet(ip(V6, ESP, BODY))) == (6, 54, 94)


def test_ethernet_padding_is_left_out() -> None:
    assert plain_esp(ethernet(ip(V4, ESP, bytes(10)), padded=True)) == (4, 34, 44)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        bytes(41),
        ethernet(ip(V4, UDP, BODY)),
        ethernet(ip(V6, UDP, BODY)),
        ethernet(ip(V4, ESP, BODY), tags=bytes.fromhex("8100002a")),
        ethernet(ipv4(*V4, ESP, BODY, options=b"\x01" * 4)),
        ethernet(ipv4(*V4, ESP, BODY, fragment=0x2000)),
        ethernet(ipv4(*V4, ESP, BODY, fragment=0x0001)),
        ethernet(ip(V4, ESP, BODY))[:-1],
        ethernet(ip(V6, ESP, BODY))[:-1],
        ethernet(ip(V4, ESP, bytes(7)), padded=True),
        ethernet(ip(V6, ESP, bytes(7))) + bytes(8),
        ethernet(b"\x46" + ip(V4, ESP, BODY)[1:]),
        ethernet(ip(V4, ESP, BODY))[:16] + bytes((0, 10)) + ethernet(ip(V4, ESP, BODY))[18:],
        ethernet(ip(V6, ESP, BODY))[:14] + b"\x50" + ethernet(ip(V6, ESP, BODY))[15:],
    ],
    ids=[
        "empty",
        "runt",
        "udp4",
        "udp6",
        "vlan",
        "options",
        "more",
        "later",
        "cut4",
        "cut6",
        "short4",
        "short6",
        "header",
        "length",
        "version",
    ],
)
def test_every_other_shape_is_left_to_the_parser(frame: bytes) -> None:
    assert plain_esp(frame) == NOTHING


@given(
    st.sampled_from([ethernet(ip(V4, ESP, BODY)), ethernet(ip(V6, ESP, BODY))]),
    st.lists(st.tuples(st.integers(12, 60), st.integers(0, 255)), max_size=4),
    st.integers(0, 20),
)
def test_what_is_found_is_what_the_parser_finds(
    frame: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    mutated = bytearray(frame[: len(frame) - cut])
    for position, value in changes:
        mutated[position % len(mutated)] = value
    found = plain_esp(mutated)
    if found == NOTHING:
        return
    try:
        header = parse_ip(mutated, ip_offset(mutated))
    except PacketError:
        pytest.fail("the parser refuses what was found")
    assert not header.fragment
    assert not header.has_options
    assert header.protocol == ESP
    assert found == (header.version, header.payload_offset, header.end)
