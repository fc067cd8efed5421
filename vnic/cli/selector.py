"""SELECTOR, as `ip xfrm` writes it: which packets a policy governs or an SA may carry.

Law: words to a Selector message and back to words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_network

from vnic.cli import values
from vnic.cli.grammar import Found, Refusal, Value, Word
from vnic.cli.words import UsageError
from vnic.control.interface import Selector
from vnic.ipsec.policy import MOBILITY, PROTOCOLS_WITH_PORTS, PROTOCOLS_WITH_TYPES

ADDRESS_WORDS = (
    Word("src", Value("PREFIX", values.prefix), "source addresses"),
    Word("dst", Value("PREFIX", values.prefix), "destination addresses"),
)

UPPER_WORDS = (
    Word(
        "proto",
        Value("PROTO", values.upper_protocol, tuple(values.PROTOCOLS)),
        "protocol inside IP: name, number or any",
    ),
    Word("sport", Value("PORT[-PORT]", values.ports), "source port, or first and last; 0 is any"),
    Word("dport", Value("PORT[-PORT]", values.ports), "destination port, or first and last; 0 is any"),
    Word("type", Value("NUMBER[-NUMBER]", values.octets), "ICMP or mobility header type, or first and last"),
    Word("code", Value("NUMBER[-NUMBER]", values.octets), "ICMP code, or first and last of one type"),
    Word("key", Refusal("GRE keys are not looked at", "proto gre without a key")),
)

SELECTOR_WORDS = (*ADDRESS_WORDS, *UPPER_WORDS)

POLICY_WORDS = tuple(replace(word, symbol="[ SELECTOR ]") for word in SELECTOR_WORDS)
"""The same where they stand among other words."""

NAMES = ("src", "dst", "proto", "sport", "dport", "type", "code")


@dataclass(frozen=True, slots=True)
class _Upper:
    proto: int | None
    sport: tuple[int, int] | None
    dport: tuple[int, int] | None


def _upper(found: Found, field: str) -> _Upper:
    proto = found.get("proto", int) or None
    ports = [word for word in ("sport", "dport") if word in found]
    icmp = [word for word in ("type", "code") if word in found]
    for words, protocols, allowed in (
        (ports, PROTOCOLS_WITH_PORTS, "proto tcp, udp, sctp, dccp or udplite"),
        (icmp, PROTOCOLS_WITH_TYPES, "proto icmp, ipv6-icmp or mobility-header"),
    ):
        if words and proto not in protocols:
            raise UsageError(
                "goes with the protocol that has it",
                field=f"{field} {words[0]}".strip(),
                value=_text(found.get(words[0], tuple)),
                allowed=allowed,
            )
    if icmp:
        kinds, codes = (_named(found.get(word, tuple), values.ALL_OCTETS) for word in ("type", "code"))
        if codes is not None and proto == MOBILITY:
            raise UsageError(
                "a mobility header has a type and no code",
                field=f"{field} code".strip(),
                value=_text(codes),
                allowed="type",
            )
        if codes is not None and kinds is not None and kinds[0] != kinds[1]:
            raise UsageError(
                "codes go with one type, not with a range of types",
                field=f"{field} code".strip(),
                value=_text(codes),
                allowed="one type, or all codes",
            )
        return _Upper(proto, kinds, codes)
    sport, dport = (
        None if ports == (0, 0) else _named(ports, values.ALL_PORTS)
        for ports in (found.get("sport", tuple), found.get("dport", tuple))
    )
    return _Upper(proto, sport, dport)


def _named(ends: tuple[int, int] | None, everything: tuple[int, int]) -> tuple[int, int] | None:
    return None if ends == everything else ends


def _text(ends: tuple[int, int] | None) -> str:
    if ends is None:
        return ""
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]}-{ends[1]}"


def selector_of(found: Found, field: str, *, ipv6: bool) -> Selector:
    """Make the selector that the words say.

    Args:
        found: the words.
        field: the word they follow, for messages; "" for the command itself.
        ipv6: the family when no address says it.

    Raises:
        UsageError: the families differ, or ports stand with a protocol that has none.
    """
    src, dst = found.get("src", str), found.get("dst", str)
    if src and dst and (":" in src) != (":" in dst):
        raise UsageError(
            f"{src} and {dst} are of different families",
            field=f"{field} dst".strip(),
            value=dst,
            allowed="IPv6" if ":" in src else "IPv4",
        )
    known = src or dst
    anything = "::/0" if (":" in known if known else ipv6) else "0.0.0.0/0"
    upper = _upper(found, field)
    sport, sport_last = _first_and_last(upper.sport)
    dport, dport_last = _first_and_last(upper.dport)
    return Selector(
        src=src or anything,
        dst=dst or anything,
        proto=upper.proto,
        sport=sport,
        dport=dport,
        sport_last=sport_last,
        dport_last=dport_last,
    )


def _first_and_last(ends: tuple[int, int] | None) -> tuple[int | None, int | None]:
    if ends is None:
        return None, None
    return ends[0], None if ends[0] == ends[1] else ends[1]


def _ends(first: int | None, last: int | None) -> tuple[int, int] | None:
    """First and last port of a message."""
    return None if first is None else (first, first if last is None else last)


def ports_of(found: Found) -> tuple[int | None, int | None]:
    """The single ports, or type and code, of one packet.

    Raises:
        UsageError: a protocol that has none, or a range.
    """
    for word in ("sport", "dport", "type", "code"):
        ends = found.get(word, tuple)
        if ends is not None and ends[0] != ends[1]:
            raise UsageError("a packet has one", field=word, value=_text(ends), allowed="a number")
    _upper(found, "")
    words = ("type", "code") if found.get("proto", int) in PROTOCOLS_WITH_TYPES else ("sport", "dport")
    first, second = (found.get(word, tuple) for word in words)
    return None if first is None else first[0], None if second is None else second[0]


def selects(found: Found, selector: Selector) -> bool:
    """Whether a policy's selector lies inside the words of a filter; what they do not say fits all."""
    upper = _upper(found, "")
    src, dst = prefixes(selector)
    return (
        inside(found.get("src", str), src)
        and inside(found.get("dst", str), dst)
        and ("proto" not in found or upper.proto == (selector.proto or None))
        and _ports_inside(upper.sport, _ends(selector.sport, selector.sport_last))
        and _ports_inside(upper.dport, _ends(selector.dport, selector.dport_last))
    )


def _ports_inside(outer: tuple[int, int] | None, inner: tuple[int, int] | None) -> bool:
    return outer is None or (inner is not None and outer[0] <= inner[0] and inner[1] <= outer[1])


def inside(outer: str | None, inner: str) -> bool:
    """Whether an address or prefix lies in another one; None holds everything."""
    if outer is None:
        return True
    wide, narrow = ip_network(outer, strict=False), ip_network(inner, strict=False)
    if isinstance(wide, IPv4Network) and isinstance(narrow, IPv4Network):
        return narrow.subnet_of(wide)
    if isinstance(wide, IPv6Network) and isinstance(narrow, IPv6Network):
        return narrow.subnet_of(wide)
    return False


def same(one: Selector, other: Selector) -> bool:
    """Whether two selectors mean the same: what is left out and what says "any" do."""

    def meaning(selector: Selector) -> tuple[object, ...]:
        sport, dport = (
            _ends(selector.sport, selector.sport_last),
            _ends(selector.dport, selector.dport_last),
        )
        return prefixes(selector), selector.proto or None, sport, dport

    return meaning(one) == meaning(other)


def prefixes(selector: Selector) -> tuple[str, str]:
    """Source and destination of a selector; one that says nothing of an end means all of the family."""
    anything = "::/0" if ":" in (selector.src or selector.dst or "") else "0.0.0.0/0"
    return selector.src or anything, selector.dst or anything


def selector_text(selector: Selector) -> str:
    """Write a selector as `ip xfrm` does."""
    src, dst = prefixes(selector)
    text = f"src {src} dst {dst}"
    if selector.proto:
        text += f" proto {values.PROTOCOL_NAMES.get(selector.proto, str(selector.proto))}"
    first, second = ("type", "code") if selector.proto in PROTOCOLS_WITH_TYPES else ("sport", "dport")
    if selector.sport is not None:
        text += f" {first} {_text(_ends(selector.sport, selector.sport_last))}"
    if selector.dport is not None:
        text += f" {second} {_text(_ends(selector.dport, selector.dport_last))}"
    return text
