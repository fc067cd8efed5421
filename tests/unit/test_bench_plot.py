"""The picture of the results: one pair of bars for each case, as text a browser reads."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"

RESULT = {
    "case": "link-gcm128",
    "engine": "reference",
    "gbps": 0.7,
    "reference_gbps": 62.0,
    "reference": "one veth pair <between> the same namespaces",
}


def test_last_result_of_a_case_and_engine_becomes_two_bars(tmp_path: Path) -> None:
    lines = [{**RESULT, "gbps": 0.1}, RESULT, {**RESULT, "engine": "native", "gbps": 9.0}, {"case": "idle"}]
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.plot", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    picture = ElementTree.fromstring(done.stdout)
    bars = [float(one.attrib["width"]) for one in picture.iter(f"{SVG}rect")][1:]
    assert len(bars) == 4
    ours, reference, native, _ = bars
    assert ours < native < reference
    assert "0.7" in {one.text for one in picture.iter(f"{SVG}text")}
