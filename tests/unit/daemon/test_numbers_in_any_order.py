"""Whatever is asked of SAs, in whatever order, on a disk that is slow and refuses, over many ends of the
daemon: no number of a key is on the wire twice."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from daemon_fakes import run
from test_daemon_numbers import KEY, MESSAGE, PACKET, Desk, life
from transport_lab import ESP, FAR, frame_of

from vnic.control import interface as api
from vnic.daemon import adapter, numbers
from vnic.errors import VnicError
from vnic.ndis.netbuffer import NetBuffer
from vnic.transport import lifetimes

BLOCK = 32
SPIS = range(0x100, 0x105)
LIVES = 5
STEPS = 150


def key_of(spi: int) -> str:
    return random.Random(spi).randbytes(len(KEY) // 2).hex()


def a_request(chance: random.Random) -> api.Call | None:  # type: ignore[type-arg]
    spi, new = chance.choice(SPIS), chance.choice(SPIS)
    message = replace(MESSAGE, spi=spi, encryption_key=key_of(spi))
    limited = replace(message, lifetime=api.Lifetime(packet_hard=chance.randrange(1, 60)))
    renewal = api.Renewal(
        new_spi=new, spi=spi, dst=FAR, encryption=MESSAGE.encryption, encryption_key=key_of(new)
    )
    requests = (
        api.AddSa(sa=message),
        api.AddSa(sa=message),
        api.ReplaceSa(sa=message),
        api.ReplaceSa(sa=limited),
        api.DeleteSa(spi=spi, dst=FAR, proto="esp", adapter="left"),
        api.RekeySas(sas=[renewal], grace=0),
        api.RekeySas(sas=[renewal]),
    )
    return chance.choice(requests) if chance.random() < 0.4 else None


async def live(record: numbers.Numbers, chance: random.Random) -> list[tuple[int, int]]:
    """One life of a daemon, which ends while requests are under way; gives SPI and number of all frames."""
    seen: list[tuple[int, int]] = []
    asked: set[asyncio.Task[None]] = set()

    async def ask(request: api.Call) -> None:  # type: ignore[type-arg]
        with contextlib.suppress(VnicError):
            await desk.handlers.answer(request)

    async with Desk(record) as desk:
        switches = (
            desk.engine.pause, desk.engine.resume, desk.engine.begin_reset, desk.engine.end_reset,
            lambda: desk.engine.restart(desk.world.now),
        )  # fmt: skip
        for _ in range(STEPS):
            desk.world.now += 0.01
            request = a_request(chance)
            if request is not None:
                task = asyncio.create_task(ask(request))
                asked.add(task)
                if chance.random() < 0.05:
                    task.cancel()
            with contextlib.suppress(VnicError):
                chance.choice(switches)() if chance.random() < 0.1 else desk.engine.resume()
            burst = [NetBuffer(frame_of(PACKET)) for _ in range(chance.choice((0, 1, 1, 5)))]
            for sealed in desk.engine.send(burst, desk.world.now).wire:
                assert sealed.frame[23] == ESP
                seen.append(
                    (int.from_bytes(sealed.frame[34:38], "big"), int.from_bytes(sealed.frame[38:42], "big"))
                )
            desk.world.adapters.require("left").keep_time()
            await asyncio.sleep(chance.choice((0, 0, 0.001)))
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    return seen


@pytest.mark.parametrize("seed", range(3))
def test_no_number_comes_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    chance = random.Random(seed)
    for module in (numbers, lifetimes, adapter):
        monkeypatch.setattr(module, "RESERVED_AT_ONCE", BLOCK)
    monkeypatch.setattr(adapter, "_RESERVE_AGAIN_S", 0.01)
    write = numbers._replace

    def write_badly(directory: int, data: bytes) -> None:
        time.sleep(chance.choice((0, 0, 0.002)))
        if chance.random() < 0.15:
            raise OSError(28, "No space left on device")
        write(directory, data)
        if chance.random() < 0.05:
            raise OSError(5, "Input/output error")

    seen: list[tuple[int, int]] = []
    for round_ in range(LIVES):
        with life(tmp_path, begin=not round_) as record, monkeypatch.context() as patch:
            assert record.complete
            patch.setattr(numbers, "_replace", write_badly)
            seen += run(live(record, chance))
    assert len(seen) > 200
    assert len(set(seen)) == len(seen)
