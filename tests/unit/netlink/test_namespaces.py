"""Work on a thread of its own; entering a namespace needs root and is in tests/live."""

from __future__ import annotations

import asyncio
import threading

import pytest

from vnic.errors import PortError, RequestError
from vnic.netlink.namespaces import enter, path_of, run_in


def test_name_resolves_below_run_netns() -> None:
    assert path_of("left") == "/run/netns/left"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/proc/1/ns/net", "a\0b", "x" * 256])
def test_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(RequestError) as caught:
        path_of(name)
    assert caught.value.field == "netns"


def test_missing_namespace_is_a_port_error_that_says_how_to_make_it() -> None:
    with pytest.raises(PortError, match="`ip netns add vnic-test-none`"):
        enter("vnic-test-none")
    with pytest.raises(PortError):
        asyncio.run(run_in("vnic-test-none", lambda: None))


def test_work_runs_on_a_thread_of_its_own_and_gives_its_result() -> None:
    async def story() -> None:
        threads = [await run_in(None, threading.current_thread) for _ in range(2)]
        assert threading.current_thread() not in threads
        assert threads[0] is not threads[1]

    asyncio.run(story())


def test_what_the_work_raises_is_raised_here() -> None:
    def fail() -> None:
        raise KeyError("this")

    with pytest.raises(KeyError, match="this"):
        asyncio.run(run_in(None, fail))


def test_event_loop_goes_on_while_the_work_waits() -> None:
    async def story() -> bool:
        released = threading.Event()
        task = asyncio.create_task(run_in(None, lambda: released.wait(5)))
        await asyncio.sleep(0.01)
        assert not task.done()
        released.set()
        return await task

    assert asyncio.run(story())


def test_result_nobody_waits_for_any_more_is_discarded() -> None:
    async def story() -> list[str]:
        released, discarded, done = threading.Event(), list[str](), threading.Event()

        def work() -> str:
            released.wait(5)
            return "descriptor"

        def discard(result: str) -> None:
            discarded.append(result)
            done.set()

        task = asyncio.create_task(run_in(None, work, discard=discard))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert discarded == []
        released.set()
        assert done.wait(5)
        return discarded

    assert asyncio.run(story()) == ["descriptor"]


def test_failure_nobody_waits_for_any_more_discards_nothing() -> None:
    async def story() -> list[object]:
        released, discarded = threading.Event(), list[object]()
        finished = threading.Event()

        def work() -> None:
            released.wait(5)
            finished.set()
            raise KeyError

        task = asyncio.create_task(run_in(None, work, discard=discarded.append))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        released.set()
        assert finished.wait(5)
        return discarded

    assert asyncio.run(story()) == []
