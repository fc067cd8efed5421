import pytest

from vnic.packet.udp import esp_in_udp

HEADER = bytes.fromhex("1194 1194 0000 0000")
TEXT = b"\x00\x00\x01\x00\x00\x00\x00\x01" + bytes(12)


def datagram(text: bytes = TEXT, *, port: int = 4500, length: int | None = None) -> bytes:
    whole = 8 + len(text) if length is None else length
    return HEADER[:2] + port.to_bytes(2, "big") + whole.to_bytes(2, "big") + bytes(2) + text


@pytest.mark.rule(139)
def test_esp_is_found_behind_the_udp_header() -> None:
    packet = bytes(20) + datagram() + b"padding"
    assert esp_in_udp(packet, 20, len(packet)) == (28, 48)


@pytest.mark.rule(154)
@pytest.mark.parametrize(
    "packet",
    [
        datagram(bytes(4) + bytes(range(28))),
        datagram(b"\xff"),
        datagram(b""),
        datagram(TEXT[:7]),
        datagram(port=4501),
        datagram(length=7),
        datagram(length=15),
        datagram(length=29),
        datagram()[:15],
        b"",
    ],
    ids=["ike", "keepalive", "empty", "short", "port", "no header", "no esp", "long", "cut", "nothing"],
)
def test_what_is_no_esp_is_not_found(packet: bytes) -> None:
    assert esp_in_udp(packet, 0, len(packet)) == (0, 0)


def test_shortest_datagram_with_an_esp_header_is_found() -> None:
    packet = datagram(TEXT[:8])
    assert esp_in_udp(packet, 0, len(packet)) == (8, 16)
