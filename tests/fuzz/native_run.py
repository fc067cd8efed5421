"""The long comparison behind `scripts/fuzz native`: world after world, until so many changed frames have
been through both engines.

    python tests/fuzz/native_run.py COUNT SEED

Ends with 0 when both did the same. The first difference ends it and shows the seed of its world.
"""

from __future__ import annotations

import argparse
import random
import traceback

from native_pair import World

_STEPS = 12
_HOSTILE = 60


def run(seed: int) -> int:
    """Walk through one world; gives the frames that went in."""
    world = World(random.Random(seed))
    for _ in range(_STEPS):
        world.step()
        world.hostile(_HOSTILE)
        world.deliver()
        world.now += 0.25
    return world.frames


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz native", description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("seed", type=int)
    chosen = parser.parse_args()
    seed, frames = chosen.seed, 0
    while frames < chosen.count:
        try:
            frames += run(seed)
        except Exception:
            traceback.print_exc()
            print(f"world {seed}: python tests/fuzz/native_run.py 1 {seed}")
            return 1
        seed += 1
    print(f"{frames} frames in {seed - chosen.seed} worlds: no difference")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
