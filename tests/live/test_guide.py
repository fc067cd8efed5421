"""The user guide, run as it stands after the tour of the README."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_readme import run, shell_after

pytestmark = [pytest.mark.live, pytest.mark.timeout(260)]

TIME_LIMIT_S = 240.0
"""A command is a process that begins; there are some hundred, and on a busy machine each takes a second."""

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide.md"


def test_every_command_of_the_guide_works_as_printed() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) >= 7
    done = run(shell_after("<!-- tour -->") + "\n" + "\n".join(blocks), TIME_LIMIT_S)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("2 packets transmitted, 2 received, 0% packet loss") == 2
    assert "Traceback" not in done.stderr
