"""OID requests under way: slices, turns, cancellation."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from daemon_fakes import run

from vnic.daemon.requests import OidRequests, SliceTurns
from vnic.engine.contract import Card
from vnic.ndis.oids import Oid, OidRequest, OidResult, RequestType
from vnic.ndis.status import NdisStatus


class PaperOperation:
    """A request that takes some slices."""

    def __init__(self, request: OidRequest, slices: int, log: list[int]) -> None:
        self.request = request
        self.result: OidResult | None = None
        self._slices = slices
        self._log = log
        if not slices:
            self.result = OidResult(NdisStatus.SUCCESS)

    def advance(self) -> bool:
        assert self.result is None, "advanced after its end"
        self._log.append(self.request.request_id)
        self._slices -= 1
        if not self._slices:
            self.result = OidResult(NdisStatus.SUCCESS)
        return self.result is not None

    def abort(self, status: NdisStatus = NdisStatus.REQUEST_ABORTED) -> None:
        if self.result is None:
            self.result = OidResult(status)


class PaperCard:
    """A NIC whose requests take as many slices as their buffer has bytes."""

    def __init__(self) -> None:
        self.log: list[int] = []
        self.begun: list[int] = []

    def oid_request(self, request: OidRequest, now: float) -> PaperOperation:
        assert now == 5.0
        self.begun.append(request.request_id)
        return PaperOperation(request, len(request.information_buffer), self.log)


def bench() -> tuple[PaperCard, OidRequests]:
    card = PaperCard()
    return card, OidRequests(cast(Card, card), lambda: 5.0, SliceTurns())


def direct(request_id: int, slices: int) -> OidRequest:
    return OidRequest(Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA, RequestType.SET, bytearray(slices), request_id)


def regular(request_id: int, slices: int) -> OidRequest:
    return OidRequest(Oid.TCP_OFFLOAD_PARAMETERS, RequestType.SET, bytearray(slices), request_id)


def begin(requests: OidRequests, *asked: OidRequest) -> list[asyncio.Task[OidResult]]:
    return [asyncio.create_task(requests.carry_out(one)) for one in asked]


async def turns() -> None:
    """A few turns of the event loop, of no length in time."""
    for _ in range(5):
        await asyncio.sleep(0)


async def statuses(tasks: list[asyncio.Task[OidResult]]) -> list[NdisStatus]:
    return [result.status for result in await asyncio.gather(*tasks)]


def test_a_request_that_is_done_at_once_is_answered() -> None:
    async def work() -> None:
        card, requests = bench()
        assert await statuses(begin(requests, direct(1, 0))) == [NdisStatus.SUCCESS]
        assert (card.log, len(requests)) == ([], 0)

    run(work())


@pytest.mark.rule(67)
def test_direct_requests_take_turns() -> None:
    async def work() -> None:
        card, requests = bench()
        tasks = begin(requests, direct(1, 4), direct(2, 2), direct(3, 3))
        assert await statuses(tasks) == [NdisStatus.SUCCESS] * 3
        assert card.log == [1, 2, 3, 1, 2, 3, 1, 3, 1]

    run(work())


@pytest.mark.rule(68)
def test_regular_requests_wait_for_each_other_and_direct_ones_do_not() -> None:
    async def work() -> None:
        card, requests = bench()
        tasks = begin(requests, regular(1, 3), regular(2, 1), direct(3, 2))
        assert await statuses(tasks) == [NdisStatus.SUCCESS] * 3
        assert card.begun == [1, 3, 2]
        assert card.log == [1, 3, 1, 3, 1, 2]

    run(work())


def test_the_event_loop_gets_a_turn_between_any_two_slices() -> None:
    async def work() -> None:
        card, requests = bench()
        tasks = begin(requests, *(direct(number, 20) for number in range(1, 5)))
        most, before = 0, 0
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            most, before = max(most, len(card.log) - before), len(card.log)
        assert most == 1

    run(work())


@pytest.mark.rule(77)
def test_cancelling_ends_every_request_with_that_id() -> None:
    async def work() -> None:
        _, requests = bench()
        tasks = begin(requests, direct(7, 1000), regular(7, 1000), direct(8, 2))
        await turns()
        assert requests.cancel(0) == 0
        assert requests.cancel(9) == 0
        assert requests.cancel(7) == 2
        aborted = NdisStatus.REQUEST_ABORTED
        assert await statuses(tasks) == [aborted, aborted, NdisStatus.SUCCESS]
        assert len(requests) == 0

    run(work())


@pytest.mark.rule(77)
def test_a_request_that_waits_for_another_can_be_cancelled_before_it_began() -> None:
    async def work() -> None:
        card, requests = bench()
        tasks = begin(requests, regular(1, 50), regular(2, 1))
        await turns()
        assert requests.cancel(2) == 1
        requests.cancel(1)
        assert await statuses(tasks) == [NdisStatus.REQUEST_ABORTED] * 2
        assert card.begun == [1]

    run(work())


@pytest.mark.rule(206, 207)
def test_all_requests_can_be_ended_at_once() -> None:
    async def work() -> None:
        _, requests = bench()
        tasks = begin(requests, direct(1, 1000), regular(0, 1000), regular(0, 1))
        await turns()
        assert requests.abort(NdisStatus.NOT_ACCEPTED) == 3
        assert await statuses(tasks) == [NdisStatus.NOT_ACCEPTED] * 3

    run(work())


def test_a_caller_that_goes_takes_its_request_along() -> None:
    async def work() -> None:
        card, requests = bench()
        (task,) = begin(requests, direct(1, 1000))
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        slices = len(card.log)
        await turns()
        assert (len(card.log), len(requests)) == (slices, 0)

    run(work())


def test_a_defect_of_one_request_holds_up_no_other() -> None:
    async def work() -> None:
        card, requests = bench()

        def fail(*_: Any) -> PaperOperation:
            raise ValueError("defect")

        begin_operation = card.oid_request
        card.oid_request = fail  # type: ignore[method-assign]
        (bad,) = begin(requests, regular(1, 1))
        with pytest.raises(ValueError, match="defect"):
            await bad
        card.oid_request = begin_operation  # type: ignore[method-assign]
        assert await statuses(begin(requests, regular(2, 1))) == [NdisStatus.SUCCESS]

    run(work())
