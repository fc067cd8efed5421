"""What every fuzzer here shares: a target, ways to change bytes, and a loop for where atheris is missing.

A target is fed one byte string at a time, holds its invariants by assertions, and says in a word how the
input ended. `explore` keeps the inputs that ended in a new way and goes on from them, so that it is led by
the answers; `guided` is led by the code that ran.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Protocol

MAX_INPUT = 8192
CORPUS_LIMIT = 2000
MEMORY_LIMIT = 32 << 20
"""Bytes the process may grow by once everything has been seen."""

NUMBERS = (0, 1, 2, 3, 4, 7, 8, 16, 24, 32, 128, 169, 170, 176, 255, 256, 4096, 65535)


class Target(Protocol):
    """Something that takes bytes."""

    def seeds(self) -> list[bytes]:
        """Inputs that are well formed."""
        ...

    def one(self, data: bytes) -> str:
        """Take one input; gives how it ended, in one of few words.

        Raises:
            AssertionError: a finding.
        """
        ...

    def change(self, data: bytearray, rng: random.Random) -> None:
        """Change an input in one place, knowing what it is made of."""
        ...


def changed(target: Target, data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Change an input in one to four places, half of them where the target knows that it hurts."""
    changing = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        if rng.random() < 0.5:
            target.change(changing, rng)
        else:
            change_bytes(changing, other, rng)
    return bytes(changing[:MAX_INPUT])


def change_bytes(data: bytearray, other: bytes, rng: random.Random) -> None:
    """Change bytes without knowing what they are."""
    if not data:
        data += other or b"\0"
        return
    position = rng.randrange(len(data))
    match rng.randrange(8):
        case 0:
            data[position] ^= 1 << rng.randrange(8)
        case 1:
            data[position] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        case 2:
            del data[position:]
        case 3:
            data += rng.randbytes(rng.randrange(1, 64))
        case 4:
            data[position:position] = rng.randbytes(rng.randrange(1, 16))
        case 5:
            del data[position : position + rng.randrange(1, 16)]
        case 6:
            data[position:] = other[position:]
        case _:
            put(data, position & ~3, rng.choice((1, 2, 4, 8)), number(len(data), rng))


def number(length: int, rng: random.Random) -> int:
    """A number that is likely to be taken for a length, an offset or a count, or to overflow one."""
    near = rng.randrange(-9, 10)
    return rng.choice(
        (
            rng.choice(NUMBERS),
            length + near,
            (rng.randrange(length + 1) & ~7),
            (1 << rng.choice((16, 31, 32, 63, 64))) + near,
            rng.getrandbits(32),
        )
    )


def put(data: bytearray, position: int, width: int, value: int) -> None:
    """Write a little-endian number, as far as there is room for it."""
    room = max(0, min(width, len(data) - position))
    data[position : position + room] = (value % (1 << 8 * width)).to_bytes(width, "little")[:room]


def explore(target: Target, count: int, seed: int, *, seconds_per_input: float = 1.0) -> Counter[str]:
    """Feed `count` inputs; gives how many ended in each way.

    Raises:
        AssertionError: a finding, an input that took too long, or memory that grew.
    """
    rng = random.Random(seed)
    corpus = target.seeds()
    ends: Counter[str] = Counter()
    for data in corpus:
        ends[target.one(data)] += 1
    settled = None
    for done in range(count):
        if done == count // 2:
            settled = resident()
        data = changed(target, rng.choice(corpus), rng.choice(corpus), rng)
        started = time.perf_counter()
        try:
            end = target.one(data)
        except BaseException as error:
            error.add_note(f"seed {seed}, input {done}: {data.hex()}")
            raise
        took = time.perf_counter() - started
        assert took < seconds_per_input, f"seed {seed}, input {done}: {took:.1f} s: {data.hex()}"
        if end not in ends or (rng.random() < 0.001 and len(corpus) < CORPUS_LIMIT):
            corpus.append(data)
        ends[end] += 1
    if settled is not None:
        grown = resident() - settled
        assert grown < MEMORY_LIMIT, f"seed {seed}: memory grew by {grown} bytes"
    return ends


def resident() -> int:
    """Bytes of memory this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
