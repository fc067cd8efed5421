"""One word to one value: numbers, addresses, prefixes, protocols.

Law: pure. A converter takes the word and the name of the field it is for, and raises UsageError about
that field; numbers are read as `ip` reads them (0x… hexadecimal, 0… octal).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from vnic.cli.words import UsageError, shown

MAX_U32 = 0xFFFFFFFF
MIN_SPI = 1

PROTOCOLS = {
    "icmp": 1,
    "ipencap": 4,
    "tcp": 6,
    "udp": 17,
    "dccp": 33,
    "ipv6": 41,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "ipv6-icmp": 58,
    "ospf": 89,
    "sctp": 132,
    "mobility-header": 135,
    "udplite": 136,
}
"""Protocols by the names of /etc/protocols, which a small installation lacks; that file adds the rest."""

PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}

MAC_BYTES = 6


def refuse(message: str, text: str, field: str, allowed: str) -> UsageError:
    """Make the error of a value that is not what it should be."""
    return UsageError(f"{shown(text)} {message}", field=field, value=shown(text), allowed=allowed)


def c_integer(text: str) -> int | None:
    """Read a number as C's strtoul does with base 0, or None."""
    if not (text.isascii() and text.isalnum()):
        return None
    try:
        if text[:2] in ("0x", "0X"):
            return int(text[2:], 16)
        if len(text) > 1 and text[0] == "0":
            return int(text, 8)
        return int(text, 10)
    except ValueError:
        return None


def integer(low: int, high: int, unit: str = "") -> Callable[[str, str], int]:
    """Make a converter for whole numbers from `low` to `high`, both allowed."""
    allowed = f"{low} to {high}{' ' + unit if unit else ''}"

    def convert(text: str, field: str) -> int:
        number = c_integer(text)
        if number is None:
            raise refuse("is not a number", text, field, allowed)
        if not low <= number <= high:
            raise refuse("is out of range", text, field, allowed)
        return number

    return convert


def spi(text: str, field: str) -> int:
    """Read a Security Parameters Index; 0 never stands on the wire (RFC 4303 §2.1)."""
    allowed = f"{MIN_SPI:#x} to {MAX_U32:#x}"
    number = c_integer(text)
    if number is None:
        raise refuse("is not a number", text, field, allowed)
    if not MIN_SPI <= number <= MAX_U32:
        raise refuse("is out of range", text, field, allowed)
    return number


u32 = integer(0, MAX_U32)
port = integer(0, 65535)
octet = integer(0, 255)


def number_range(low: int, high: int) -> Callable[[str, str], tuple[int, int]]:
    """Make a converter for one number or FIRST-LAST, all from `low` to `high`; one number is both."""
    number = integer(low, high)

    def convert(text: str, field: str) -> tuple[int, int]:
        first, dash, last = text.partition("-")
        ends = number(first, field), number(last if dash else first, field)
        if ends[0] > ends[1]:
            raise refuse("begins behind its end", text, field, "FIRST-LAST, the smaller first")
        return ends

    return convert


_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size(text: str, field: str) -> int:
    """Read a number of bytes, also as 512K, 4M or 1G: powers of 1024."""
    unit = _UNITS.get(text[-1:].upper(), 1)
    number = c_integer(text if unit == 1 else text[:-1])
    if number is None:
        raise refuse("is not a number of bytes", text, field, "NUMBER, with K, M or G for powers of 1024")
    return number * unit


ALL_PORTS = (0, 65535)
ALL_OCTETS = (0, 255)
ports = number_range(*ALL_PORTS)
octets = number_range(*ALL_OCTETS)


def text(word: str, field: str) -> str:
    """Take a name or a path as it is; the daemon knows which names there are."""
    if not word:
        raise UsageError("is empty", field=field, allowed="a name")
    return word


def _host(word: str) -> IPv4Address | IPv6Address | None:
    """Read an address; of IPv4 the last bytes may be missing, as `ip` writes 10.1 for 10.1.0.0."""
    if ":" not in word:
        word += ".0" * (3 - word.count("."))
    try:
        return ip_address(word)
    except ValueError:
        return None


def address(word: str, field: str) -> str:
    """Read an IP address; a prefix length that covers all of it, as `ip xfrm` allows, is taken away."""
    host, slash, length = word.partition("/")
    parsed = _host(host)
    allowed = "an IPv4 or IPv6 address"
    if parsed is None or "%" in host:
        raise refuse("is not an address", word, field, allowed)
    if slash and c_integer(length) != parsed.max_prefixlen:
        raise refuse("is a prefix, not an address", word, field, allowed)
    return str(parsed)


def _with_length(word: str, field: str) -> tuple[IPv4Address | IPv6Address, int]:
    host, slash, length = word.partition("/")
    parsed = _host(host)
    if parsed is None or "%" in host:
        raise refuse(
            "is not an address prefix", word, field, "ADDRESS or ADDRESS/LENGTH, such as 192.0.2.0/24"
        )
    bits = c_integer(length) if slash else parsed.max_prefixlen
    if bits is None or not 0 <= bits <= parsed.max_prefixlen:
        raise refuse("has a wrong prefix length", word, field, f"0 to {parsed.max_prefixlen}")
    return parsed, bits


def prefix(word: str, field: str) -> str:
    """Read an address prefix; without a length it is one address. Bits behind the prefix are cleared: the
    kernel takes them in a selector and does not look at them."""
    host, bits = _with_length(word, field)
    return str(ip_network((host, bits), strict=False))


def interface_address(word: str, field: str) -> str:
    """Read an address with its prefix length, as an interface has it."""
    if "/" not in word:
        raise refuse("has no prefix length", word, field, "ADDRESS/LENGTH, such as 192.0.2.1/24")
    host, bits = _with_length(word, field)
    return f"{host}/{bits}"


def mac(word: str, field: str) -> str:
    """Read an Ethernet address."""
    parts = word.split(":")
    allowed = "six bytes, such as 02:00:00:00:00:01"
    if len(parts) != MAC_BYTES or any(len(part) != 2 or c_integer(f"0x{part}") is None for part in parts):
        raise refuse("is not an Ethernet address", word, field, allowed)
    return word.lower()


def upper_protocol(word: str, field: str) -> int:
    """Read the protocol of a selector by name or number; `any` is 0."""
    if word == "any":
        return 0
    if word in PROTOCOLS:
        return PROTOCOLS[word]
    number = c_integer(word)
    if number is None:
        number = _from_system(word)
    if number is None or not 0 <= number <= 255:
        raise refuse(
            "is not a protocol",
            word,
            field,
            f"any, {', '.join(PROTOCOLS)}, a name of /etc/protocols, 0 to 255",
        )
    return number


def _from_system(word: str) -> int | None:
    import socket

    try:
        return socket.getprotobyname(word)
    except (OSError, ValueError):
        return None


def mtu(word: str, field: str) -> int:
    """Read an MTU in bytes; `default` gives 0: back to what the wire and the policies leave."""
    if word == "default":
        return 0
    try:
        return integer(68, 65535, "bytes")(word, field)
    except UsageError as error:
        error.allowed += ", default"
        raise


_DECIMAL = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([a-zA-Z%]*)")

_TIME_UNITS_MS = {"us": 0.001, "usec": 0.001, "ms": 1.0, "msec": 1.0, "s": 1000.0, "sec": 1000.0}
_PREFIXES = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}
_RATE_UNITS = {
    f"{prefix}{unit}": factor * bits
    for unit, bits in (("bit", 1), ("bps", 8))
    for prefix, factor in _PREFIXES.items()
}
"""As tc(8) has them: `bps` is bytes per second."""


def _measured(word: str) -> tuple[float, str] | None:
    """Split a decimal number and its unit, or None."""
    found = _DECIMAL.fullmatch(word)
    return None if found is None else (float(found[1]), found[2].lower())


def percent(word: str, field: str) -> float:
    """Read a share of the frames; the % may be left out, as in tc."""
    allowed = "0% to 100%"
    measured = _measured(word)
    if measured is None or measured[1] not in ("", "%"):
        raise refuse("is not a percentage", word, field, allowed)
    if measured[0] > 100:
        raise refuse("is out of range", word, field, allowed)
    return measured[0]


def milliseconds(high: int) -> Callable[[str, str], float]:
    """Make a converter for times up to `high` ms. A unit is needed: tc takes a bare number for microseconds,
    which hardly anybody means."""
    allowed = f"0 to {high}ms, with its unit: 2ms, 500us, 1.5s"

    def convert(word: str, field: str) -> float:
        measured = _measured(word)
        if measured is not None and measured == (0.0, ""):
            return 0.0
        if measured is None or measured[1] not in _TIME_UNITS_MS:
            raise refuse("is not a time with a unit", word, field, allowed)
        time = measured[0] * _TIME_UNITS_MS[measured[1]]
        if time > high:
            raise refuse("is out of range", word, field, allowed)
        return time

    return convert


def rate(high: int) -> Callable[[str, str], int]:
    """Make a converter for rates of at least 1kbit and up to `high` bits per second; 0 is none."""
    low = 1000
    allowed = f"1kbit to {rate_text(high)}, such as 100mbit, or 0 for no limit"

    def convert(word: str, field: str) -> int:
        measured = _measured(word)
        if measured is None or measured[1] not in {"", *_RATE_UNITS}:
            raise refuse("is not a rate", word, field, allowed)
        bits = round(measured[0] * _RATE_UNITS.get(measured[1], 1))
        if bits and not low <= bits <= high:
            raise refuse("is out of range", word, field, allowed)
        return bits

    return convert


def rate_text(bits: int) -> str:
    """Write bits per second in the largest unit that loses nothing: 100mbit."""
    for prefix in ("t", "g", "m", "k"):
        if bits and bits % _PREFIXES[prefix] == 0:
            return f"{bits // _PREFIXES[prefix]}{prefix}bit"
    return f"{bits}bit"
