"""Throughput as a picture: our Gbit/s beside the reference's, a pair of bars for each case.

Law: reads what `scripts/bench --json` printed, writes SVG; measures nothing.

    python -m benchmarks.plot RESULTS.jsonl >benchmarks/throughput.svg

A line of the file is one result. Of several for one case and engine the last counts. Bars are on a
logarithmic scale, because a kernel's veth and an interpreter are two orders of magnitude apart.
"""

from __future__ import annotations

import json
import math
import sys
from html import escape
from pathlib import Path
from typing import Any

_TITLE = "One TCP stream, Gbit/s (logarithmic): vnic and its reference, in turns"
_WIDTH = 860
_LABELS = 300
_BAR = 11
_GAP = 12
_LOW, _HIGH = 0.01, 100.0
_COLOURS = {"native": "#1f6f8b", "reference": "#7fb6c6"}
_PEER_COLOUR = "#b9b4a7"


def main(words: list[str]) -> int:
    if len(words) != 1:
        print("one file is wanted: what `scripts/bench --json` printed", file=sys.stderr)
        return 2
    results = [json.loads(line) for line in Path(words[0]).read_text().splitlines() if line.strip()]
    print(drawing([one for one in results if "gbps" in one]))
    return 0


def drawing(results: list[dict[str, Any]]) -> str:
    """The picture of throughput results, in their order."""
    latest = {(one["case"], one["engine"]): one for one in results}
    rows = [part for one in latest.values() for part in _pair(one)]
    height = 56 + sum(_BAR + (_GAP if last else 2) for *_, last in rows)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="8" y="18" font-size="14">{_TITLE}</text>',
    ]
    for tick in (0.01, 0.1, 1, 10, 100):
        x = _LABELS + _length(tick)
        lines.append(f'<line x1="{x:.0f}" y1="30" x2="{x:.0f}" y2="{height - 20}" stroke="#ddd"/>')
        lines.append(f'<text x="{x:.0f}" y="{height - 8}" text-anchor="middle">{tick:g}</text>')
    y = 36
    for label, value, colour, last in rows:
        lines.append(f'<text x="{_LABELS - 6}" y="{y + 9}" text-anchor="end">{escape(label)}</text>')
        lines.append(
            f'<rect x="{_LABELS}" y="{y}" width="{_length(value):.1f}" height="{_BAR}" fill="{colour}"/>'
        )
        lines.append(f'<text x="{_LABELS + _length(value) + 4:.1f}" y="{y + 9}">{value:.3g}</text>')
        y += _BAR + (_GAP if last else 2)
    return "\n".join([*lines, "</svg>"])


def _pair(result: dict[str, Any]) -> list[tuple[str, float, str, bool]]:
    """Label, Gbit/s, colour and whether a gap follows, of both bars of a result."""
    engine = result["engine"]
    peer = result["reference"].partition(",")[0].partition(" of the distribution")[0]
    return [
        (f"{result['case']} ({engine})", result["gbps"], _COLOURS.get(engine, "#444"), False),
        (peer.removesuffix(" between the same namespaces"), result["reference_gbps"], _PEER_COLOUR, True),
    ]


def _length(gbps: float) -> float:
    share = math.log10(max(gbps, _LOW) / _LOW) / math.log10(_HIGH / _LOW)
    return share * (_WIDTH - _LABELS - 60)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
