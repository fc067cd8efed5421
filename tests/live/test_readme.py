"""The tour of the README, run as it stands there by a shell in namespaces of its own.

Network, mounts and processes are private: the default socket and the names of the tour are nobody else's, and
all of it is gone with the shell.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from card import BIN

pytestmark = pytest.mark.live

README = Path(__file__).resolve().parents[2] / "README.md"
TIME_LIMIT_S = 180


def shell_after(mark: str) -> str:
    """The first block of shell commands behind a text of the README."""
    _, found, rest = README.read_text().partition(mark)
    assert found, f"README.md has no '{mark}'"
    block = re.search(r"```sh\n(.*?)```", rest, re.DOTALL)
    assert block is not None
    return block[1]


def inline_command(beginning: str) -> str:
    """The command in a sentence of the README that begins so."""
    found = re.search(rf"`({re.escape(beginning)}[^`]*)`", README.read_text())
    assert found is not None
    return found[1]


def run(script: str, time_limit_s: float = TIME_LIMIT_S) -> subprocess.CompletedProcess[str]:
    """Run a script whose first command that fails ends it; what it starts ends with it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VNIC_")}
    return subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-e"],
        input=f"mount -t tmpfs tmpfs /run\n{script}",
        env=environment | {"PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=time_limit_s,
        check=False,
    )


def test_tour_works_as_printed_and_its_last_lines_show_sealed_packets() -> None:
    tour = shell_after("<!-- tour -->")
    pasted = shell_after("Lines of a Linux host work")
    end = inline_command("kill %1")
    done = run(
        f"{tour}\n"
        f"echo == the line of a Linux host; {pasted}\nvnic -br sa show dev left spi 0x101\n"
        f"echo == the end; {end}\nwait\n! test -e /run/vnic/vnic.sock\nip netns list\n"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    walked, _, rest = done.stdout.partition("== the line of a Linux host\n")
    linux, _, ended = rest.partition("== the end\n")
    assert "3 packets transmitted, 3 received, 0% packet loss" in walked
    # Each of the four SAs protected three packets: a request or a reply, as sealed or as opened.
    assert walked.count("252(bytes), 3(packets)") == 4
    assert re.search(r"^offloaded +3 +3$", walked, re.MULTILINE)
    assert "<hidden>" in walked
    assert "192.0.2.2" in linux
    assert ended == ""
    assert "Traceback" not in done.stderr
