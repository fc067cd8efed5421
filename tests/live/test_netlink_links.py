"""Links and namespaces against the kernel."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path

import pytest
import uvloop
from namespaces import Namespace, Namespaces

from vnic.errors import PortError, RequestError
from vnic.netlink import links
from vnic.netlink.namespaces import run_in

pytestmark = pytest.mark.live

LOOPS = pytest.mark.parametrize("loop_factory", [asyncio.SelectorEventLoop, uvloop.new_event_loop])


def texts(name: str, namespace: Namespace) -> set[str]:
    return {str(one) for one in asyncio.run(links.addresses(name, namespace.name))}


def test_link_is_created_found_and_deleted_in_its_namespace(namespaces: Namespaces) -> None:
    left, right = namespaces.create("l"), namespaces.create("r")
    name, peer = namespaces.device("a"), namespaces.device("b")

    async def story() -> None:
        made = await links.create(name, "veth", netns=left.name, peer=peer, peer_netns=right.name)
        assert (made.name, made.kind, made.ethernet, made.tap, made.up) == (name, "veth", True, False, False)
        assert await links.lookup(name, left.name) == made
        assert await links.lookup(name, right.name) is None
        assert await links.lookup(name) is None
        assert (await links.require(peer, right.name)).netns == right.name
        await links.delete(name, left.name)
        assert await links.lookup(name, left.name) is None
        assert await links.lookup(peer, right.name) is None

    asyncio.run(story())


def test_peer_without_a_namespace_of_its_own_is_made_beside_the_link(namespaces: Namespaces) -> None:
    left = namespaces.create("l")
    name, peer = namespaces.device("a"), namespaces.device("b")
    asyncio.run(links.create(name, "veth", netns=left.name, peer=peer))
    assert {name, peer} <= left.devices()


def test_configure_sets_everything_and_tells_the_result(namespaces: Namespaces) -> None:
    left, right = namespaces.create("l"), namespaces.create("r")
    name, _ = namespaces.veth(left, right)
    result = asyncio.run(
        links.configure(
            name,
            netns=left.name,
            mac="02:AA:00:00:00:01",
            mtu=1400,
            addresses=["10.4.0.1/24", "fd00:4::1/64", "10.4.0.1/24"],
            up=True,
        )
    )
    assert (result.mac, result.mtu, result.up) == ("02:aa:00:00:00:01", 1400, True)
    assert {"10.4.0.1/24", "fd00:4::1/64"} <= texts(name, left)
    # Not tentative: somebody may bind to it at once.
    left.call(lambda: _bind("fd00:4::1"))
    again = asyncio.run(links.configure(name, netns=left.name, addresses=["10.4.0.1/24", "fd00:4::1/64"]))
    assert again == result


def _bind(address: str) -> None:

    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as bound:
        bound.bind((address, 0))


def test_refused_configuration_sets_back_what_it_had_set(namespaces: Namespaces) -> None:
    left, right = namespaces.create("l", ipv6=False), namespaces.create("r", ipv6=False)
    name, _ = namespaces.veth(left, right)
    before = asyncio.run(links.require(name, left.name))
    with pytest.raises(PortError, match=f"set address fd00:4::1/64 on {name} in namespace {left.name}"):
        asyncio.run(
            links.configure(
                name,
                netns=left.name,
                mac="02:00:00:00:00:01",
                mtu=1400,
                addresses=["10.4.0.1/24", "fd00:4::1/64"],
            )
        )
    assert asyncio.run(links.require(name, left.name)) == before
    assert texts(name, left) == set()


def test_mtu_too_small_for_ipv6_keeps_the_addresses_that_are_there(namespaces: Namespaces) -> None:
    left, right = namespaces.create("l"), namespaces.create("r")
    name, _ = namespaces.veth(left, right, left_addresses=["fd00:4::1/64"])
    with pytest.raises(RequestError) as caught:
        asyncio.run(links.configure(name, netns=left.name, mtu=1200, addresses=["fd00:4::2/64"]))
    assert (caught.value.field, caught.value.value) == ("mtu", "1200")
    assert caught.value.allowed.startswith("1280 to ")
    assert "fd00:4::1/64" in texts(name, left)
    assert asyncio.run(links.configure(name, netns=left.name, mtu=1200)).mtu == 1200
    assert "fd00:4::3/64" not in texts(name, left)
    raised = asyncio.run(links.configure(name, netns=left.name, mtu=1400, addresses=["fd00:4::3/64"]))
    assert raised.mtu == 1400
    assert "fd00:4::3/64" in texts(name, left)


def test_mtu_beyond_what_the_device_takes_is_refused_with_its_limits(namespaces: Namespaces) -> None:
    left, right = namespaces.create("l"), namespaces.create("r")
    name, _ = namespaces.veth(left, right)
    with pytest.raises(RequestError) as caught:
        asyncio.run(links.configure(name, netns=left.name, mtu=70_000))
    assert caught.value.allowed == "68 to 65535"


def test_moved_link_is_in_the_other_namespace(namespaces: Namespaces) -> None:
    left, right = namespaces.create("l"), namespaces.create("r")
    name, _ = namespaces.veth(left, left)

    async def story() -> None:
        await links.move(name, right.name, left.name)
        assert await links.lookup(name, left.name) is None
        assert await links.lookup(name, right.name) is not None
        with pytest.raises(PortError, match="ip netns add"):
            await links.move(name, f"{namespaces.token}-none", right.name)

    asyncio.run(story())


def test_name_already_taken_is_refused(namespaces: Namespaces) -> None:
    left = namespaces.create("l")
    name, _ = namespaces.veth(left, left)
    with pytest.raises(PortError, match="exists already"):
        asyncio.run(links.create(name, "veth", netns=left.name, peer=namespaces.device("z")))


def test_file_that_is_no_namespace_is_refused_with_what_to_do(namespaces: Namespaces) -> None:
    namespaces.create("l")  # makes /run/netns exist
    name = f"{namespaces.token}-file"
    path = Path("/run/netns", name)
    path.touch(exist_ok=False)
    try:
        with pytest.raises(PortError, match=f"ip netns delete {name}"):
            asyncio.run(links.lookup("lo", name))
    finally:
        path.unlink()


@LOOPS
def test_watch_ends_when_the_link_goes_and_not_before(
    namespaces: Namespaces, loop_factory: type[asyncio.AbstractEventLoop]
) -> None:
    left = namespaces.create("l")
    name, peer = namespaces.veth(left, left)
    other = namespaces.device("o")

    async def story() -> None:
        link = await links.require(name, left.name)
        watch = asyncio.create_task(links.wait_gone(link))
        await asyncio.sleep(0.05)
        await links.create(other, "veth", netns=left.name, peer=namespaces.device("p"))
        await links.delete(other, left.name)
        await asyncio.sleep(0.05)
        assert not watch.done()
        await links.delete(peer, left.name)
        await asyncio.wait_for(watch, 3)
        await asyncio.wait_for(links.wait_gone(link), 3)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(story())


def test_cancelled_watch_gives_its_socket_back(namespaces: Namespaces) -> None:
    left = namespaces.create("l")
    name, _ = namespaces.veth(left, left)

    async def story() -> None:
        link = await links.require(name, left.name)
        before = len(os.listdir("/proc/self/fd"))
        watch = asyncio.create_task(links.wait_gone(link))
        await asyncio.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) == before + 1
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(story())


def test_only_the_working_thread_is_in_the_namespace(namespaces: Namespaces) -> None:
    left = namespaces.create("l")

    def here() -> tuple[str, int]:
        return os.readlink("/proc/thread-self/ns/net"), threading.get_native_id()

    async def story() -> None:
        before = here()
        inside, thread = await run_in(left.name, here)
        assert inside != before[0]
        assert thread != before[1]
        assert here() == before
        with pytest.raises(ZeroDivisionError):
            await run_in(left.name, lambda: 1 // 0)
        assert here() == before

    asyncio.run(story())
