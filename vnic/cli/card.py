"""The words after `caps`: which card an adapter models.

Law: words to a message; the names are those of `Capabilities`, as in the configuration and in JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vnic.cli import values
from vnic.cli.grammar import Choice, Found, Group, Value, Vocabulary, Word
from vnic.cli.words import UsageError, shown
from vnic.control.interface import Capabilities, V1Capabilities
from vnic.ipsec.algorithms import ENCRYPTIONS, INTEGRITIES

NONE = "none"
V1 = "v1."

_MAX_CAPACITY = 1 << 20
_UDP_ESP = ("udp_transport", "udp_tunnel", "transport_over_udp_tunnel", "udp_transport_over_tunnel")
_SUMMARIES = {
    "ah": "AH",
    "esp": "ESP",
    "ah_esp_combined": "AH and ESP on one packet",
    "transport": "transport mode",
    "tunnel": "tunnel mode (only a card without IPsec has none)",
    "transport_tunnel_combined": "both modes on one packet",
    "ipv4_options": "packets with IPv4 options",
    "ipv6": "IPv6",
    "ipv6_extension_headers": "packets with other extension headers",
    "esn": "extended sequence numbers",
    "lso": "large sends of IPsec traffic",
}
_V1_SWITCHES = (
    "enabled",
    "ah_esp_combined",
    "transport_tunnel_combined",
    "ipv4_options",
    "ah_md5",
    "ah_sha1",
    "ah_transport",
    "ah_tunnel",
    "ah_send",
    "ah_receive",
    "esp_des",
    "esp_triple_des",
    "esp_null",
    "esp_transport",
    "esp_tunnel",
    "esp_send",
    "esp_receive",
)
_V1_OTHERS = ", ".join(_V1_SWITCHES[1:])


def _several(names: tuple[str, ...]) -> Callable[[str, str], list[str]]:
    """Make a converter for names with commas between, or `none`."""

    def convert(word: str, field: str) -> list[str]:
        chosen = [] if word == NONE else word.split(",")
        for name in chosen:
            if name not in names:
                raise UsageError(
                    f"{shown(name)} is not one of its values",
                    field=field,
                    value=shown(name),
                    allowed=f"{', '.join(names)} with commas between, or {NONE}",
                )
        return chosen

    return convert


def _list(name: str, names: tuple[str, ...], summary: str) -> Word:
    return Word(name, Value("LIST", _several(names), (*names, NONE)), f"{summary}: {', '.join(names)}")


def _words() -> Iterator[Word]:
    switch = Choice(("on", "off"))
    yield _list("encryptions", tuple(row.name for row in ENCRYPTIONS), "encryption algorithms")
    yield _list("integrities", tuple(row.name for row in INTEGRITIES), "integrity algorithms")
    for name, summary in _SUMMARIES.items():
        yield Word(name, switch, summary)
    yield _list("udp_esp", _UDP_ESP, "kinds of ESP in UDP")
    yield Word(
        "sa_capacity", Value("BUNDLES", values.integer(1, _MAX_CAPACITY, "SA bundles")), "SA bundles that fit"
    )
    for name in _V1_SWITCHES:
        summary = f"the V1 OIDs at all; FEATURE may also be {_V1_OTHERS}" if name == "enabled" else ""
        aliases = ("v1",) if name == "enabled" else ()
        yield Word(f"{V1}{name}", switch, summary, aliases=aliases, symbol="[ v1.FEATURE { on | off } ]…")
    yield _list(f"{V1}udp_esp", _UDP_ESP, "kinds of ESP in UDP by V1")


CAPS_WORD = Word(
    "caps",
    Group(Vocabulary(*_words()), symbol="CAPS"),
    "the card to model, up to the first other word; what is left out is on",
)


def capabilities_of(found: Found) -> Capabilities | None:
    """Make the message of what the words say; None if they say nothing."""
    words = found.get("caps", Found)
    if words is None:
        return None
    said: dict[str, Any] = {}
    said_of_v1: dict[str, Any] = {}
    for name in words:
        value = words.get(name, object)
        if value in ("on", "off"):
            value = value == "on"
        if name.startswith(V1):
            said_of_v1[name.removeprefix(V1)] = value
        else:
            said[name] = value
    v1 = V1Capabilities(**said_of_v1) if said_of_v1 else None
    return Capabilities(**said, v1=v1)
