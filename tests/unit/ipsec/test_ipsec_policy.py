"""Prefixes and selectors, against the standard library's networks."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnic.ipsec.policy import FlowKey, Match, Prefix, Selector


def prefix(text: str) -> Prefix:
    address, _, length = text.partition("/")
    packed = ip_address(address).packed
    return Prefix(packed, int(length) if length else len(packed) * 8)


def flow(
    source: str = "10.1.2.3",
    destination: str = "10.9.8.7",
    protocol: int = 6,
    source_port: int = 1000,
    destination_port: int = 80,
) -> FlowKey:
    return FlowKey(
        ip_address(source).packed, ip_address(destination).packed, protocol, source_port, destination_port
    )


ANY = Selector(prefix("0.0.0.0/0"), prefix("0.0.0.0/0"))
ANY_V6 = Selector(prefix("::/0"), prefix("::/0"))


@pytest.mark.parametrize(
    ("network", "address", "inside"),
    [
        ("0.0.0.0/0", "255.255.255.255", True),
        ("0.0.0.0/0", "::", False),
        ("::/0", "2001:db8::1", True),
        ("::/0", "10.0.0.1", False),
        ("10.1.0.0/16", "10.1.255.255", True),
        ("10.1.0.0/16", "10.2.0.0", False),
        ("10.1.2.3/32", "10.1.2.3", True),
        ("10.1.2.3/32", "10.1.2.2", False),
        ("128.0.0.0/1", "127.255.255.255", False),
        ("128.0.0.0/1", "128.0.0.0", True),
        ("2001:db8::/33", "2001:db8:7fff::", True),
        ("2001:db8::/33", "2001:db8:8000::", False),
        ("2001:db8::1/128", "2001:db8::1", True),
        ("2001:db8::1/128", "2001:db8::", False),
        ("10.1.2.99/24", "10.1.2.1", True),  # bits behind the length do not matter
    ],
)
def test_prefix_contains_what_shares_its_bits(network: str, address: str, inside: bool) -> None:
    assert prefix(network).contains(ip_address(address).packed) is inside


@given(st.ip_addresses(v=4), st.integers(0, 32), st.ip_addresses(v=4))
def test_ipv4_prefixes_agree_with_the_standard_library(base, length, address) -> None:  # type: ignore[no-untyped-def]
    network = ip_network((base, length), strict=False)
    assert Prefix(base.packed, length).contains(address.packed) is (address in network)
    assert Prefix(base.packed, length).contains(network.broadcast_address.packed)


@given(st.ip_addresses(v=6), st.integers(0, 128), st.ip_addresses(v=6))
def test_ipv6_prefixes_agree_with_the_standard_library(base, length, address) -> None:  # type: ignore[no-untyped-def]
    network = ip_network((base, length), strict=False)
    assert Prefix(base.packed, length).contains(address.packed) is (address in network)
    assert Prefix(base.packed, length).contains(network.broadcast_address.packed)


def test_prefix_reads_as_people_write_it() -> None:
    assert str(prefix("10.1.0.0/16")) == "10.1.0.0/16"
    assert str(prefix("2001:db8::/32")) == "2001:db8::/32"


def test_selector_for_anything_matches_its_own_family_only() -> None:
    assert ANY.match(flow()) is Match.YES
    assert ANY.match(flow("2001:db8::1", "2001:db8::2")) is Match.NO
    assert ANY_V6.match(flow("2001:db8::1", "2001:db8::2")) is Match.YES
    assert ANY_V6.match(flow()) is Match.NO


@pytest.mark.parametrize(
    ("selector", "match"),
    [
        (replace(ANY, protocol=6), Match.YES),
        (replace(ANY, protocol=17), Match.NO),
        (replace(ANY, source=prefix("10.1.0.0/16")), Match.YES),
        (replace(ANY, source=prefix("10.2.0.0/16")), Match.NO),
        (replace(ANY, destination=prefix("10.9.8.7/32")), Match.YES),
        (replace(ANY, destination=prefix("10.1.2.3/32")), Match.NO),
        (replace(ANY, source_port=1000), Match.YES),
        (replace(ANY, source_port=80), Match.NO),
        (replace(ANY, destination_port=80), Match.YES),
        (replace(ANY, destination_port=81), Match.NO),
        (replace(ANY, source_port=1000, destination_port=80), Match.YES),
        (replace(ANY, source_port=1000, destination_port=81), Match.NO),
        (replace(ANY, source_port=0), Match.NO),
    ],
)
def test_every_member_of_a_selector_must_fit(selector: Selector, match: Match) -> None:
    assert selector.match(flow()) is match


def test_port_zero_is_a_port_and_not_any() -> None:
    assert replace(ANY, source_port=0).match(flow(source_port=0)) is Match.YES


def test_icmp_type_and_code_stand_where_ports_stand() -> None:
    echo = replace(ANY, protocol=1, source_port=8, destination_port=0)
    assert echo.match(flow(protocol=1, source_port=8, destination_port=0)) is Match.YES
    assert echo.match(flow(protocol=1, source_port=0, destination_port=0)) is Match.NO


HIDDEN = flow(source_port=-1, destination_port=-1)


@pytest.mark.parametrize(
    ("selector", "match"),
    [
        (ANY, Match.YES),
        (replace(ANY, protocol=6), Match.YES),
        (replace(ANY, source_port=80), Match.UNSURE),
        (replace(ANY, destination_port=80), Match.UNSURE),
        (replace(ANY, protocol=17, destination_port=80), Match.NO),
        (replace(ANY, source=prefix("10.2.0.0/16"), destination_port=80), Match.NO),
        (replace(ANY, destination=prefix("10.2.0.0/16"), destination_port=80), Match.NO),
    ],
)
def test_packet_that_hides_its_ports_is_unsure_only_where_ports_decide(
    selector: Selector, match: Match
) -> None:
    assert selector.match(HIDDEN) is match
