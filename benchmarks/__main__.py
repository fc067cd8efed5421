"""The runner: chosen cases, one after the other, a line each, for a reader or as JSON.

    scripts/bench [--quick] [--json] [--list] [--engine NAME] [CASE ...]

Standard output holds one line per case as soon as it is measured, with --json one JSON object; progress and
failures go to standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace

from benchmarks.cases import CASES, FULL, QUICK, Result, SkippedError
from scripts.lab import Interrupted, LabError, raise_on_signals


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shorter, under 40 s a case")
    parser.add_argument("--json", action="store_true", help="print one JSON object per case, a line each")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument(
        "--engine", default="auto", choices=("auto", "reference", "native"), help="what the daemons run on"
    )
    parser.add_argument("case", nargs="*", metavar="CASE", help=f"default: all of {', '.join(CASES)}")
    words = parser.parse_args()
    if words.list:
        print("\n".join(CASES))
        return 0
    if unknown := [one for one in words.case if one not in CASES]:
        parser.error(f"unknown case '{unknown[0]}'; allowed: {', '.join(CASES)}")
    effort = replace(QUICK if words.quick else FULL, engine=words.engine)
    raise_on_signals()
    status = 0
    for name in words.case or CASES:
        began = time.monotonic()
        print(f"{name} …", end=" ", file=sys.stderr, flush=True)
        try:
            result = CASES[name](name, effort)
        except SkippedError as reason:
            print(f"skipped: {reason}", file=sys.stderr)
            continue
        except LabError as error:
            print(f"failed: {error}", file=sys.stderr)
            status = 1
            continue
        except Interrupted as signal:
            print(f"interrupted by {signal}", file=sys.stderr)
            return signal.exit_code
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
        print(json.dumps(result) if words.json else line(result), flush=True)
    return status


def line(result: Result) -> str:
    """One result for a reader: the case and what was measured beside what."""
    start = f"{result['case']:<26} {result['engine']:<10} "
    if "gbps" in result:
        return start + (
            f"{result['gbps']:.3f} Gbit/s beside {result['reference_gbps']:.2f} of {result['reference']}: "
            f"{result['ratio']:.3f} (TCP {result['congestion_control']}, "
            f"daemon {result['daemon_cpu_percent']} % of a core)"
        )
    if "packets_per_s" in result:
        return start + (
            f"{result['packets_per_s']:,} packets/s beside {result['reference_packets_per_s']:,} of "
            f"{result['reference']}: {result['ratio']:.2f}"
        )
    if "rtt_us" in result:
        return start + (
            f"{result['rtt_us']:.0f} µs beside {result['reference_rtt_us']:.0f} of a bare relay: "
            f"{result['added_us']:+.0f} µs"
        )
    if "lists" in result:
        return start + "; ".join(
            f"{door}: {one['add_per_s']:,} SAs/s ({one['add_per_cpu_s']:,} on a core of its own), "
            f"{one['bytes_per_sa']:,} bytes each of {result['count']:,}, "
            f"{100 * one['left_ratio'] - 100:+.1f} % memory left"
            for door, one in ((door, result[door]) for door in ("lists", "calls"))
        )
    return start + f"{result['cpu_percent']:.2f} % of a core, {result['resident_mib']:.1f} MiB resident"


if __name__ == "__main__":
    sys.exit(main())
