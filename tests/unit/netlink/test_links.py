"""Names and addresses are checked before the kernel is asked; looking at loopback needs no root."""

from __future__ import annotations

import asyncio
from ipaddress import ip_interface

import pytest
import uvloop

from vnic.errors import PortError, RequestError
from vnic.netlink import links

MISSING = "vnictestnone0"


@pytest.mark.parametrize("name", ["tap0", "a", "x" * 15, "eth0.100", "tap-left_1"])
def test_device_name_is_taken(name: str) -> None:
    assert links.check_name(name) == name


@pytest.mark.parametrize("name", ["", "x" * 16, "a b", "a/b", "tap%d", "eth0:1", ".", "..", "a\tb", "é" * 8])
def test_name_no_device_can_have_is_refused(name: str) -> None:
    with pytest.raises(RequestError) as caught:
        links.check_name(name, "peer")
    assert (caught.value.field, caught.value.value) == ("peer", name)


def test_mac_is_taken_in_lower_case() -> None:
    assert links.check_mac("02:AB:00:00:00:01") == "02:ab:00:00:00:01"


@pytest.mark.parametrize(
    "mac",
    [
        "",
        "02:00:00:00:00",
        "02-00-00-00-00-01",
        "01:00:00:00:00:01",
        "00:00:00:00:00:00",
        "0g:00:00:00:00:01",
    ],
)
def test_mac_no_device_can_have_is_refused(mac: str) -> None:
    with pytest.raises(RequestError) as caught:
        links.check_mac(mac)
    assert caught.value.field == "mac"


@pytest.mark.parametrize("cidr", ["192.0.2.1/24", "2001:db8::1/64", "192.0.2.1/32", "fe80::1/10"])
def test_address_is_taken(cidr: str) -> None:
    assert links.check_address(cidr) == ip_interface(cidr)


@pytest.mark.parametrize(
    "cidr", ["", "192.0.2.1", "192.0.2.1/33", "224.0.0.1/8", "::/0", "ff02::1/64", "host/24"]
)
def test_address_no_device_can_have_is_refused(cidr: str) -> None:
    with pytest.raises(RequestError) as caught:
        links.check_address(cidr)
    assert (caught.value.field, caught.value.value) == ("address", cidr)


@pytest.mark.parametrize("loop_factory", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_loopback_is_found_under_either_event_loop(loop_factory: type[asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        link = runner.run(links.require("lo"))
        addresses = runner.run(links.addresses("lo"))
    assert (link.name, link.index, link.ethernet, link.tap, link.netns) == ("lo", 1, False, False, None)
    assert not link.up or ip_interface("127.0.0.1/8") in addresses


def test_missing_device_is_none_to_lookup_and_an_error_to_whoever_needs_it() -> None:
    assert asyncio.run(links.lookup(MISSING)) is None
    for call in (links.require, links.addresses, links.delete, links.configure):
        with pytest.raises(PortError, match=f"there is no device {MISSING}"):
            asyncio.run(call(MISSING))


def test_watch_of_a_link_that_is_gone_ends_at_once() -> None:
    gone = links.Link("tap9", 0x7FFFFFF0, "tun", "", 1500, 68, 65521, True, True, None)
    asyncio.run(asyncio.wait_for(links.wait_gone(gone), 5))


@pytest.mark.parametrize("words", [{"mac": "zz"}, {"addresses": ["1.2.3.4"]}])
def test_wrong_value_is_refused_before_the_kernel_is_asked(words: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        asyncio.run(links.configure(MISSING, **words))  # type: ignore[arg-type]
