"""The long run behind `scripts/fuzz`: led by coverage where atheris is installed, by the answers elsewhere.

    python tests/fuzz/long_run.py TARGET COUNT SEED

Ends with 0 when nothing was found. The first finding ends it and shows the input, which `--input` takes.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

TARGETS = {
    "receive": ("receive_fuzz", "ReceiveTarget"),
    "oid": ("oid_fuzz", "OidTarget"),
    "nbl": ("nbl_fuzz", "NblTarget"),
}

try:
    import atheris
except ImportError:
    atheris = None


def made(name: str) -> Any:
    """Make a target."""
    module, kind = TARGETS[name]
    return getattr(importlib.import_module(module), kind)()


def guided(name: str, count: int, seed: int, directory: str) -> None:
    """Feed inputs that reach new code, keeping them in `directory`; ends the process."""
    with atheris.instrument_imports(include=["vnic"]):
        target = made(name)
    from exploring import MAX_INPUT, changed

    seeds = target.seeds()

    def mutator(data: bytes, limit: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, limit))
        return changed(target, data, rng.choice(seeds), rng)[:limit]

    for index, data in enumerate(seeds):
        (Path(directory) / f"{index:04}").write_bytes(data)
    arguments = [f"-runs={count}", f"-seed={seed % (1 << 31) or 1}", f"-max_len={MAX_INPUT}", "-timeout=10"]
    arguments += ["-rss_limit_mb=1024", f"-artifact_prefix={tempfile.gettempdir()}/vnic-fuzz-{name}-"]

    def one(data: bytes) -> None:
        target.one(data)

    atheris.Setup([sys.argv[0], *arguments, directory], one, custom_mutator=mutator)
    atheris.Fuzz()


def answered(name: str, count: int, seed: int) -> None:
    """Feed inputs, going on from those that ended in a new way."""
    from exploring import explore

    target = made(name)
    ends = explore(target, count, seed)
    width = max(len(end) for end in ends)
    for end, times in ends.most_common():
        print(f"{end:<{width}} {times:>9}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("count", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("--input", help="one input instead: a file, or hexadecimal")
    parser.add_argument("--corpus", help="be led by coverage, if atheris is there, and keep inputs here")
    chosen = parser.parse_args()
    if chosen.input is not None:
        file = Path(chosen.input)
        data = file.read_bytes() if file.is_file() else bytes.fromhex(chosen.input)
        print(made(chosen.target).one(data))
    elif atheris is None or chosen.corpus is None:
        answered(chosen.target, chosen.count, chosen.seed)
    else:
        guided(chosen.target, chosen.count, chosen.seed, chosen.corpus)


if __name__ == "__main__":
    main()
