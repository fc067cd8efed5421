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
from vnic.ipsec.policy import ICMP_PROTOCOLS, PROTOCOLS_WITH_PORTS

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
    Word("sport", Value("PORT", values.port), "source port; 0 is any"),
    Word("dport", Value("PORT", values.port), "destination port; 0 is any"),
    Word("type", Value("NUMBER", values.octet), "ICMP type"),
    Word("code", Value("NUMBER", values.octet), "ICMP code"),
    Word("key", Refusal("GRE keys are not looked at", "proto gre without a key")),
)

SELECTOR_WORDS = (*ADDRESS_WORDS, *UPPER_WORDS)

POLICY_WORDS = tuple(replace(word, symbol="[ SELECTOR ]") for word in SELECTOR_WORDS)
"""The same where they stand among other words."""

NAMES = ("src", "dst", "proto", "sport", "dport", "type", "code")


@dataclass(frozen=True, slots=True)
class _Upper:
    proto: int | None
    sport: int | None
    dport: int | None


def _upper(found: Found, field: str) -> _Upper:
    proto = found.get("proto", int) or None
    ports = [word for word in ("sport", "dport") if word in found]
    icmp = [word for word in ("type", "code") if word in found]
    for words, protocols, allowed in (
        (ports, PROTOCOLS_WITH_PORTS, "proto tcp, udp, sctp, dccp or udplite"),
        (icmp, ICMP_PROTOCOLS, "proto icmp or ipv6-icmp"),
    ):
        if words and proto not in protocols:
            raise UsageError(
                "goes with the protocol that has it",
                field=f"{field} {words[0]}".strip(),
                value=str(found.get(words[0], int)),
                allowed=allowed,
            )
    if icmp:
        return _Upper(proto, found.get("type", int), found.get("code", int))
    return _Upper(proto, found.get("sport", int) or None, found.get("dport", int) or None)


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
    return Selector(
        src=src or anything, dst=dst or anything, proto=upper.proto, sport=upper.sport, dport=upper.dport
    )


def selects(found: Found, selector: Selector) -> bool:
    """Whether a policy's selector lies inside the words of a filter; what they do not say fits all."""
    upper = _upper(found, "")
    src, dst = prefixes(selector)
    return (
        inside(found.get("src", str), src)
        and inside(found.get("dst", str), dst)
        and ("proto" not in found or upper.proto == (selector.proto or None))
        and (upper.sport is None or upper.sport == selector.sport)
        and (upper.dport is None or upper.dport == selector.dport)
    )


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
    return (prefixes(one), one.proto or None, one.sport, one.dport) == (
        prefixes(other),
        other.proto or None,
        other.sport,
        other.dport,
    )


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
    first, second = ("type", "code") if selector.proto in ICMP_PROTOCOLS else ("sport", "dport")
    if selector.sport is not None:
        text += f" {first} {selector.sport}"
    if selector.dport is not None:
        text += f" {second} {selector.dport}"
    return text
