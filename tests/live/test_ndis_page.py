"""The page about the NDIS side, run as it stands after the tour of the README."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_readme import run, shell_after

pytestmark = pytest.mark.live

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ndis.md"


def test_every_command_of_the_ndis_page_works_as_printed() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 6
    done = run(shell_after("<!-- tour -->") + "\n" + "\n".join(blocks))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("2 packets transmitted, 2 received, 0% packet loss") == 3
    assert "sealed by one NIC, opened by the other" in done.stdout
    assert "Traceback" not in done.stderr
