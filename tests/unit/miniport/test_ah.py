import hashlib
import hmac
import random
import struct

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from nic_frames import INNER_V4, UDP, V4, V6, ipv4, ipv6

from vnic.errors import PacketError
from vnic.miniport.ah import AhOpener, AhSealer, immutable_header
from vnic.miniport.ciphers import CounterIvs, WrongIcv, mac
from vnic.miniport.esn import ExtendedNumbers

SPI = 0x0A0B0C0D
AH = 51
HOPS = [bytes((10, 9, 8, number)) for number in range(1, 4)]
HOPS6 = [bytes((0xFD, *bytes(14), number)) for number in range(1, 4)]


def test_ipv4_header_loses_what_routers_change_and_nothing_else() -> None:
    packet = ipv4(*V4, AH, bytes(24), fragment=0x4000)
    muted = immutable_header(packet, 0, 20)
    assert muted.hex() == "4500" + packet[2:6].hex() + "0000" + "0033" + "0000" + b"".join(V4).hex()


def test_ipv6_header_loses_what_routers_change_and_nothing_else() -> None:
    packet = ipv6(*V6, AH, bytes(24))
    muted = immutable_header(packet, 0, 40)
    assert muted.hex() == "60000000" + packet[4:7].hex() + "00" + b"".join(V6).hex()


@pytest.mark.parametrize("kind", [130, 133, 134, 148, 149])
def test_immutable_option_stays(kind: int) -> None:
    option = bytes((kind, 4, 7, 9))
    packet = ipv4(*V4, AH, b"", options=option)
    assert immutable_header(packet, 0, 24)[20:] == option


@pytest.mark.parametrize("kind", [7, 68, 82, 136, 11, 200])
def test_any_other_option_is_zero_as_a_whole(kind: int) -> None:
    option = b"\x01" + bytes((kind, 6, 4, 1, 2, 3)) + b"\x01"
    packet = ipv4(*V4, AH, b"", options=option)
    assert immutable_header(packet, 0, 28)[20:] == b"\x01" + bytes(6) + b"\x01"


def test_what_follows_the_end_of_options_stays() -> None:
    packet = ipv4(*V4, AH, b"", options=b"\x00\x07\x55\x55")
    assert immutable_header(packet, 0, 24)[20:] == b"\x00\x07\x55\x55"


@pytest.mark.parametrize("kind", [131, 137])
def test_source_route_counts_with_its_last_address_as_destination(kind: int) -> None:
    route = bytes((kind, 15, 4)) + b"".join(HOPS) + b"\x00"
    packet = ipv4(*V4, AH, b"", options=route)
    muted = immutable_header(packet, 0, 36)
    assert muted[16:20] == HOPS[-1]
    assert muted[20:35] == bytes(15)


def test_source_route_that_is_used_up_counts_with_the_destination_it_has() -> None:
    route = bytes((131, 15, 16)) + b"".join(HOPS) + b"\x00"
    packet = ipv4(*V4, AH, b"", options=route)
    assert immutable_header(packet, 0, 36)[16:20] == V4[1]


@pytest.mark.parametrize(
    "options",
    [
        b"\x83\x08\x04" + bytes(5),
        b"\x07\x00\x01\x01",
        b"\x07\x01\x01\x01",
        b"\x07\x05\x01\x01",
        b"\x01\x01\x01\x07",
        b"\x83\x04\x04\x00",
    ],
)
def test_ipv4_options_that_do_not_fit_are_refused(options: bytes) -> None:
    packet = ipv4(*V4, AH, b"", options=options)
    with pytest.raises(PacketError):
        immutable_header(packet, 0, len(packet))


def extension(protocol: int, data: bytes) -> bytes:
    assert (len(data) + 2) % 8 == 0
    return bytes((protocol, (len(data) + 2) // 8 - 1)) + data


def test_mutable_data_of_ipv6_options_is_zero_and_type_and_length_stay() -> None:
    options = bytes((0x1E, 2, 5, 6)) + b"\x00" + bytes((0x3E, 3, 7, 8, 9)) + bytes((1, 2, 0, 0))
    packet = ipv6(*V6, 0, extension(AH, options))
    expected = bytes((0x1E, 2, 5, 6)) + b"\x00" + bytes((0x3E, 3, 0, 0, 0)) + bytes((1, 2, 0, 0))
    assert immutable_header(packet, 0, 56)[40:] == extension(AH, expected)


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_routing_header_counts_as_it_is_at_the_last_hop(left: int) -> None:
    path = [V6[1], *HOPS6]
    routing = extension(AH, bytes((0, left)) + bytes(4) + b"".join(HOPS6))
    muted = immutable_header(ipv6(*V6, 43, routing), 0, 96)
    expected = path.copy()
    for slot in range(3 - left, 3):
        expected[0], expected[slot + 1] = expected[slot + 1], expected[0]
    assert muted[24:40] == expected[0]
    assert muted[40:48] == bytes((AH, 6, 0, 0)) + bytes(4)
    assert muted[48:] == b"".join(expected[1:])


@pytest.mark.parametrize(
    ("first", "header"),
    [
        (43, extension(AH, bytes((4, 1)) + bytes(4) + HOPS6[0])),
        (43, extension(AH, bytes((0, 2)) + bytes(4) + HOPS6[0])),
        (43, extension(AH, bytes((0, 1)) + bytes(12))),
        (44, extension(AH, b"\x00\x01" + bytes(4))),
        (0, extension(AH, b"\x3e\x05\x00\x00\x00\x00")),
        (60, extension(AH, b"\x00\x00\x00\x00\x00\x3e")),
        (60, bytes((AH, 1)) + bytes(6)),
    ],
    ids=["type", "left", "odd", "fragment", "long", "cut", "beyond"],
)
def test_extension_headers_whose_end_cannot_be_told_are_refused(first: int, header: bytes) -> None:
    packet = ipv6(*V6, first, header)
    with pytest.raises(PacketError):
        immutable_header(packet, 0, len(packet))


@given(st.binary(min_size=20, max_size=60))
def test_any_ipv4_header_is_muted_or_refused(header: bytes) -> None:
    try:
        muted = immutable_header(b"\x45" + header[1:], 0, len(header))
    except PacketError:
        return
    assert len(muted) == len(header)


@given(st.sampled_from([0, 43, 44, 60]), st.binary(max_size=100))
def test_any_extension_headers_are_muted_or_refused(first: int, headers: bytes) -> None:
    packet = ipv6(*V6, first, headers)
    try:
        muted = immutable_header(packet, 0, len(packet))
    except PacketError:
        return
    assert len(muted) == len(packet)


@given(st.binary(min_size=40, max_size=100))
def test_muting_twice_is_muting_once(header: bytes) -> None:
    packet = b"\x60" + header[1:]
    try:
        muted = immutable_header(packet, 0, len(packet))
    except PacketError:
        return
    assert immutable_header(muted, 0, len(muted)) == muted


def packet_with_room(
    icv: int, iv: int, alignment: int, family: tuple[bytes, bytes], payload: bytes
) -> bytearray:
    length = -(-(12 + iv + icv) // alignment) * alignment
    header = struct.pack(">BBHII", UDP, length // 4 - 2, 0, SPI, 9) + bytes(length - 12)
    make = ipv4 if len(family[0]) == 4 else ipv6
    return bytearray(make(*family, AH, header + payload))


KEY = random.Random(6).randbytes(20)


def sha1_pair(
    ours: ExtendedNumbers | None = None, theirs: ExtendedNumbers | None = None
) -> tuple[AhSealer, AhOpener]:
    made = mac("hmac-sha1-96", KEY, 12)
    return AhSealer(SPI, made, 12, None, ours), AhOpener(SPI, made, 0, 12, theirs)


@pytest.mark.parametrize("extended", [False, True])
def test_hmac_covers_the_packet_as_rfc_4302_says(extended: bool) -> None:
    sealer, opener = sha1_pair(*([ExtendedNumbers(3), ExtendedNumbers(3)] if extended else []))
    frame = packet_with_room(12, 0, 8, V4, b"payload")
    covered = immutable_header(frame, 0, 20) + frame[20:32] + bytes(12) + b"payload"
    sealer.seal(frame, 0, 20, len(frame))
    expected = hmac.digest(KEY, bytes(covered) + (bytes((0, 0, 0, 3)) if extended else b""), hashlib.sha1)
    assert frame[32:44] == expected[:12]
    assert opener.open(frame, 0, 20, len(frame)) == 24


def test_gmac_covers_the_iv_too_as_rfc_4543_says() -> None:
    made = mac("aes-gmac-128", KEY, 16)
    sealer = AhSealer(SPI, made, 16, CounterIvs(b"iv start"), None)
    frame = packet_with_room(16, 8, 8, V6, b"payload")
    assert len(frame) == 40 + 40 + 7
    covered = immutable_header(frame, 0, 40) + frame[40:52] + b"iv start" + bytes(16) + bytes(4) + b"payload"
    sealer.seal(frame, 0, 40, len(frame))
    expected = AESGCM(KEY[:16]).encrypt(KEY[16:] + b"iv start", b"", bytes(covered))
    assert frame[52:76] == b"iv start" + expected
    assert AhOpener(SPI, made, 8, 16, None).open(frame, 0, 40, len(frame)) == 40


@pytest.mark.parametrize(
    ("family", "icv", "legal"),
    [(V4, 12, {24}), (V6, 12, {24}), (V4, 16, {28, 32}), (V6, 16, {32})],
    ids=["v4-96", "v6-96", "v4-128", "v6-128"],
)
def test_only_the_lengths_that_alignment_asks_for_are_legal(
    family: tuple[bytes, bytes], icv: int, legal: set[int]
) -> None:
    made = mac("hmac-sha256-128", bytes(32), icv)
    sealer = AhSealer(SPI, made, icv, None, None)
    ip = 20 if family is V4 else 40
    for field in range(256):
        frame = packet_with_room(icv, 0, 4, family, bytes(1040))
        frame[ip + 1] = field
        if field * 4 + 8 in legal:
            assert sealer.length(frame, 0, ip, len(frame)) == field * 4 + 8
        else:
            with pytest.raises(PacketError):
                sealer.length(frame, 0, ip, len(frame))


def test_padding_of_ah_is_covered() -> None:
    made = mac("hmac-sha256-128", bytes(32), 16)
    frame = packet_with_room(16, 0, 8, V4, b"payload")
    AhSealer(SPI, made, 16, None, None).seal(frame, 0, 20, len(frame))
    frame[20 + 30] ^= 1
    with pytest.raises(WrongIcv):
        AhOpener(SPI, made, 0, 16, None).open(frame, 0, 20, len(frame))


MUTABLE_V4 = {1, 6, 7, 8, 10, 11}
MUTABLE_V6 = {1, 2, 3, 7}


@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
def test_every_byte_is_covered_but_those_that_routers_change(family: tuple[bytes, bytes]) -> None:
    sealer, opener = sha1_pair()
    frame = packet_with_room(12, 0, 8, family, b"payload")
    ip = 20 if family is V4 else 40
    sealer.seal(frame, 0, ip, len(frame))
    mutable = MUTABLE_V4 if family is V4 else MUTABLE_V6
    for position in range(1, len(frame)):
        mutated = bytearray(frame)
        mutated[position] ^= 0x08
        wire = bytes(mutated)
        if position in mutable:
            assert opener.open(mutated, 0, ip, len(frame)) == 24
        else:
            with pytest.raises((WrongIcv, PacketError)):
                opener.open(mutated, 0, ip, len(frame))
        assert mutated == wire


@pytest.mark.parametrize("off", [-1, 1])
def test_upper_half_off_by_one_does_not_hold(off: int) -> None:
    knows = ExtendedNumbers(0)
    knows.authenticated((4 + off) << 32 | 9)
    sealer, opener = sha1_pair(ExtendedNumbers(4), knows)
    frame = packet_with_room(12, 0, 8, V4, b"payload")
    sealer.seal(frame, 0, 20, len(frame))
    with pytest.raises(WrongIcv):
        opener.open(frame, 0, 20, len(frame))


def test_sealer_refuses_another_spi_a_runt_and_a_packet_that_ends_behind_the_frame() -> None:
    sealer, _ = sha1_pair()
    frame = packet_with_room(12, 0, 8, INNER_V4, b"payload")
    wire = bytes(frame)
    for start, end in ((20, 31), (20, 43), (20, len(frame) + 1)):
        with pytest.raises(PacketError):
            sealer.seal(frame, 0, start, end)
    frame[24] ^= 1
    with pytest.raises(PacketError, match="SPI"):
        sealer.seal(frame, 0, 20, len(frame))
    frame[24] ^= 1
    assert frame == wire
