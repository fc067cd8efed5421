"""One word to one value, read as `ip` reads them."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnic.cli import values
from vnic.cli.words import UsageError


@pytest.mark.parametrize(
    ("word", "number"),
    [("0", 0), ("10", 10), ("0x10", 16), ("0XfF", 255), ("010", 8), ("4294967295", 0xFFFFFFFF)],
)
def test_numbers_have_the_bases_of_c(word: str, number: int) -> None:
    assert values.u32(word, "reqid") == number


@pytest.mark.parametrize(
    "word", ["", "-1", "+1", "1_0", " 1", "0x", "08", "1.0", "ten", "٣", "0x1g", "4294967296", "9" * 5000]
)
def test_what_is_no_number_of_32_bits_is_refused_with_the_range(word: str) -> None:
    with pytest.raises(UsageError) as raised:
        values.u32(word, "reqid")
    assert raised.value.field == "reqid"
    assert raised.value.allowed == "0 to 4294967295"


@pytest.mark.parametrize("word", ["0", "0x0", "0x100000000"])
def test_an_spi_of_zero_or_of_more_than_32_bits_is_refused(word: str) -> None:
    with pytest.raises(UsageError) as raised:
        values.spi(word, "spi")
    assert raised.value.message == f"{word} is out of range"
    assert raised.value.allowed == "0x1 to 0xffffffff"


@pytest.mark.parametrize(
    ("word", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1/32", "192.0.2.1"),
        ("10.1", "10.1.0.0"),
        ("2001:DB8::1", "2001:db8::1"),
        ("::", "::"),
        ("::1/128", "::1"),
    ],
)
def test_addresses_come_out_in_one_form(word: str, address: str) -> None:
    assert values.address(word, "src") == address


@pytest.mark.parametrize(
    "word", ["", "left", "192.0.2.1/24", "1.2.3.4.5", "fe80::1%eth0", "192.0.2.256", "::1/64"]
)
def test_what_is_no_address_is_refused(word: str) -> None:
    with pytest.raises(UsageError):
        values.address(word, "src")


@pytest.mark.parametrize(
    ("word", "prefix"),
    [
        ("10/8", "10.0.0.0/8"),
        ("10.0.0.0/24", "10.0.0.0/24"),
        ("10.0.0.7/24", "10.0.0.0/24"),
        ("10.0.0.7", "10.0.0.7/32"),
        ("::/0", "::/0"),
        ("2001:db8::1", "2001:db8::1/128"),
    ],
)
def test_prefixes_lose_the_bits_behind_them(word: str, prefix: str) -> None:
    assert values.prefix(word, "src") == prefix


@pytest.mark.parametrize(
    "word", ["10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1", "any", "/8", "10.0.0.0/8/8"]
)
def test_what_is_no_prefix_is_refused(word: str) -> None:
    with pytest.raises(UsageError):
        values.prefix(word, "src")


def test_an_interface_address_keeps_its_bits_and_needs_a_length() -> None:
    assert values.interface_address("192.0.2.1/24", "address") == "192.0.2.1/24"
    with pytest.raises(UsageError):
        values.interface_address("192.0.2.1", "address")


@pytest.mark.parametrize(
    ("word", "number"), [("tcp", 6), ("any", 0), ("ipv6-icmp", 58), ("0x11", 17), ("255", 255), ("igmp", 2)]
)
def test_protocols_have_names_and_numbers(word: str, number: int) -> None:
    assert values.upper_protocol(word, "proto") == number


@pytest.mark.parametrize("word", ["", "256", "bogus", "TCP!"])
def test_what_is_no_protocol_is_refused(word: str) -> None:
    with pytest.raises(UsageError):
        values.upper_protocol(word, "proto")


def test_an_mtu_is_bytes_or_default() -> None:
    assert values.mtu("1400", "mtu") == 1400
    assert values.mtu("default", "mtu") == 0
    with pytest.raises(UsageError) as raised:
        values.mtu("67", "mtu")
    assert raised.value.allowed.endswith(", default")


@pytest.mark.parametrize("word", ["02:00:00:00:00:0A", "02:00:00:00:00", "0:0:0:0:0:0", "02:00:00:00:00:0g"])
def test_an_ethernet_address_is_six_bytes(word: str) -> None:
    if word == "02:00:00:00:00:0A":
        assert values.mac(word, "mac") == "02:00:00:00:00:0a"
    else:
        with pytest.raises(UsageError):
            values.mac(word, "mac")


CONVERTERS = (
    values.u32,
    values.spi,
    values.address,
    values.prefix,
    values.interface_address,
    values.mac,
    values.mtu,
    values.upper_protocol,
    values.text,
)


@given(st.text(), st.sampled_from(CONVERTERS))
def test_any_word_gives_a_value_or_a_usage_error(word: str, convert: object) -> None:
    assert callable(convert)
    with suppress(UsageError):
        convert(word, "field")
