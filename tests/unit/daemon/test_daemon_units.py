"""The unit files: systemd understands them, and they give the daemon no more than it needs."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vnic.control.client import DEFAULT_SOCKET

UNITS = Path(__file__).resolve().parents[3] / "systemd"
ANALYZE = shutil.which("systemd-analyze")
WORST_EXPOSURE = 3.0


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with a vnicd that is there: `verify` looks for it."""
    if ANALYZE is None:
        pytest.skip("needs systemd-analyze")
    for name in ("vnicd.service", "vnicd.socket"):
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(text.replace("ExecStart=/usr/bin/vnicd", f"ExecStart={sys.executable}"))
    return tmp_path


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    assert ANALYZE is not None
    return subprocess.run([ANALYZE, *words], capture_output=True, text=True, timeout=60)


def test_systemd_understands_the_units(units: Path) -> None:
    done = analyze("verify", "--man=no", str(units / "vnicd.service"), str(units / "vnicd.socket"))
    assert done.returncode == 0, done.stderr
    assert "vnicd" not in done.stderr


def test_exposure_is_low(units: Path) -> None:
    done = analyze("security", "--offline=true", "--no-pager", str(units / "vnicd.service"))
    found = re.search(r"exposure level for vnicd.service: (\d+\.\d+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= WORST_EXPOSURE


def test_service_has_three_capabilities_and_leaves_no_core() -> None:
    text = (UNITS / "vnicd.service").read_text()
    assert "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_ADMIN\n" in text
    assert "LimitCORE=0\n" in text


def test_socket_unit_and_daemon_agree_on_the_path() -> None:
    assert f"ListenStream={DEFAULT_SOCKET}\n" in (UNITS / "vnicd.socket").read_text()
