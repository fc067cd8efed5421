"""Events: numbering, listeners, and what a slow one loses."""

import asyncio
from collections.abc import AsyncIterator

from daemon_fakes import run

from vnic.control.interface import Event
from vnic.daemon.events import Events, rfc3339


async def take(listening: AsyncIterator[Event], count: int) -> list[Event]:
    return [await asyncio.wait_for(anext(listening), 2) for _ in range(count)]


def test_times_are_rfc_3339_in_utc() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000000Z"
    assert rfc3339(1_700_000_000.25) == "2023-11-14T22:13:20.250000Z"


def test_every_listener_hears_the_same_numbers_without_gaps() -> None:
    async def work() -> None:
        events = Events(lambda: 0.0)
        events.tell("adapter_added", "before anybody listened", adapter="a")
        first = events.listen()
        (greeting,) = await take(first, 1)
        assert (greeting.kind, greeting.sequence_number) == ("subscribed", 1)
        events.tell("adapter_added", "one", adapter="b")
        second = events.listen()
        (greeting,) = await take(second, 1)
        assert greeting.sequence_number == 2
        events.tell("adapter_deleted", "two", adapter="b")
        events.tell("adapter_deleted", "three", adapter="a")
        heard = await take(first, 3)
        assert [(one.sequence_number, one.text) for one in heard] == [(2, "one"), (3, "two"), (4, "three")]
        assert await take(second, 2) == heard[1:]

    run(work())


def test_slow_listener_loses_the_oldest_and_hears_how_many() -> None:
    async def work() -> None:
        events = Events(lambda: 0.0, queue_length=3)
        slow, quick = events.listen(), events.listen()
        await take(slow, 1)
        await take(quick, 1)
        for number in range(1, 11):
            events.tell("drop", str(number))
            await take(quick, 1)
        heard = await take(slow, 4)
        assert [(one.kind, one.sequence_number, one.lost) for one in heard] == [
            ("lost", 7, 7),
            ("drop", 8, None),
            ("drop", 9, None),
            ("drop", 10, None),
        ]
        events.tell("drop", "11")
        assert [one.sequence_number for one in await take(slow, 1)] == [11]

    run(work())


def test_listener_that_goes_is_forgotten() -> None:
    async def work() -> None:
        events = Events(lambda: 0.0)
        listening = events.listen()
        await take(listening, 1)
        assert len(events._listeners) == 1
        await listening.aclose()
        assert not events._listeners
        events.tell("drop", "to nobody")
        assert events.number == 1

    run(work())


def test_waiting_listener_wakes_up() -> None:
    async def work() -> None:
        events = Events(lambda: 0.0)
        listening = events.listen()
        await take(listening, 1)
        waiting = asyncio.create_task(anext(listening))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        events.tell("drop", "now")
        assert (await asyncio.wait_for(waiting, 1)).text == "now"
        await listening.aclose()

    run(work())
