"""When the daemon gives memory back: once, after most of many SAs are gone."""

import asyncio

import pytest

from vnic.daemon import memory
from vnic.daemon.memory import Memory


class Sas:
    """A count that tests set, and how often memory was given back."""

    def __init__(self) -> None:
        self.count = 0
        self.given = 0
        self.memory = Memory(lambda: self.count, self._give)

    def _give(self) -> None:
        self.given += 1

    async def become(self, count: int) -> None:
        """A call that changes the count, and the time after it, until nothing waits."""
        self.memory.look()
        self.count = count
        while self.memory._timer is not None:
            await asyncio.sleep(0.001)
        # The second step is due before this is over.
        await asyncio.sleep(0.02)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PAUSE_S", 0.005)


pytestmark = pytest.mark.usefixtures("quick")


def test_memory_goes_back_in_two_steps_when_many_sas_are_gone() -> None:
    async def work() -> None:
        sas = Sas()
        await sas.become(100_000)
        await sas.become(100_001)
        assert sas.given == 0
        await sas.become(0)
        assert sas.given == 2
        for count in (1, 0, 5):
            await sas.become(count)
        assert sas.given == 2
        await sas.become(5000)
        await sas.become(10)
        assert sas.given == 4

    asyncio.run(work())


def test_few_sas_come_and_go_without_a_thought() -> None:
    async def work() -> None:
        sas = Sas()
        await sas.become(4095)
        await sas.become(0)
        await sas.become(0)
        assert sas.given == 0
        assert sas.memory._timer is None

    asyncio.run(work())


def test_long_deletion_is_followed_to_its_end_and_no_longer() -> None:
    async def work() -> None:
        sas = Sas()
        sas.count = 10_000
        sas.memory.look()
        timer = sas.memory._timer
        for count in (8000, 5000, 2000):
            sas.count = count
            while sas.memory._timer is timer:
                await asyncio.sleep(0.001)
            timer = sas.memory._timer
            assert timer is not None
        assert sas.given == 0
        sas.count = 0
        await asyncio.sleep(0.05)
        assert sas.given == 2
        sas.count = 10_000
        sas.memory.look()
        await asyncio.sleep(0.05)
        assert sas.memory._timer is None

    asyncio.run(work())


def test_giving_back_works_on_this_system() -> None:
    memory._give_back()
