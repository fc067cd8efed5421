"""What the scripts say and do before they change anything: tools are faked, nothing is installed."""

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
ENTRIES = [
    *(SCRIPTS / name for name in ("setup", "check", "test", "demo", "bench", "fuzz")),
    ROOT / ".ci" / "run",
]

STAMP = ROOT / ".venv" / "vnic-setup.stamp"
made_by_setup = pytest.mark.skipif(
    not (STAMP.exists() and STAMP.read_text().endswith((" full\n", " fuzz\n"))),
    reason="the environment was not made by scripts/setup",
)


def run(command: Sequence[str | Path], *, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command, with `path` searched before the usual places."""
    before = f"{path}:" if path else ""
    return subprocess.run(
        [str(word) for word in command],
        env=os.environ | {"PATH": f"{before}/usr/sbin:/usr/bin:/sbin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def in_user_namespace(command: Sequence[str | Path], *options: str) -> list[str | Path]:
    if run(["unshare", "--user", *options, "true"]).returncode != 0:
        pytest.skip("kernel lacks user namespaces, or forbids them")
    return ["unshare", "--user", *options, *command]


def without_root(command: Sequence[str | Path]) -> list[str | Path]:
    """Make a command see a user id other than 0 while it may still read this tree."""
    return in_user_namespace(command) if os.geteuid() == 0 else list(command)


def with_root(command: Sequence[str | Path]) -> list[str | Path]:
    """Make a command see user id 0; it gets no privilege by that."""
    return list(command) if os.geteuid() == 0 else in_user_namespace(command, "--map-root-user")


def tool(directory: Path, name: str, body: str) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return directory


def dpkg_without(directory: Path, *missing: str) -> Path:
    """Fake a dpkg-query that knows every package asked for but these."""
    pattern = "|".join(["-*", "*}*", *missing])
    return tool(
        directory,
        "dpkg-query",
        f'for word in "$@"; do case $word in {pattern}) ;; *) echo "installed $word" ;; esac; done',
    )


@pytest.mark.parametrize("script", [*ENTRIES, SCRIPTS / "prelude.sh"], ids=lambda path: path.name)
def test_script_is_well_formed(script: Path) -> None:
    assert run(["bash", "-n", script]).returncode == 0


@pytest.mark.parametrize("script", ENTRIES, ids=lambda path: path.name)
def test_entry_is_executable(script: Path) -> None:
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("name", ["demo", "bench", "test"])
def test_without_root_the_entry_says_how_to_start_it(name: str) -> None:
    done = run(without_root([SCRIPTS / name]))
    assert done.returncode == 1
    assert done.stderr.startswith(f"{name}: needs root: ")
    assert f"sudo scripts/{name}" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("name", ["demo", "bench", "test"])
def test_without_tun_device_the_entry_says_what_to_do(name: str) -> None:
    hide = '[ ! -d /dev/net ] || mount -t tmpfs none /dev/net; exec "$0"'
    done = run(with_root(["unshare", "--mount", "sh", "-c", hide, SCRIPTS / name]))
    assert done.returncode == 1
    assert done.stderr.startswith(f"{name}: needs /dev/net/tun")
    assert "modprobe tun" in done.stderr


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        (["setup", "everything"], "demo, bench, check, test, fuzz"),
        (["check", "--quick"], "--fix, --static"),
        (["fuzz", "everything"], "receive oid nbl native"),
    ],
)
def test_unknown_word_is_named_with_what_is_allowed(command: list[str], allowed: str) -> None:
    done = run([SCRIPTS / command[0], command[1]])
    assert done.returncode == 2
    assert command[1] in done.stderr
    assert allowed in done.stderr


def test_setup_without_root_says_what_to_install(tmp_path: Path) -> None:
    fakes = dpkg_without(tmp_path / "bin", "iperf3", "tshark")
    done = run(without_root([SCRIPTS / "setup", "test"]), path=fakes)
    assert done.returncode == 1
    assert "sudo apt-get install --no-install-recommends iperf3 tshark\n" in done.stderr


@made_by_setup
def test_setup_installs_only_what_is_missing(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    fakes = dpkg_without(tmp_path / "bin", "iperf3")
    tool(fakes, "apt-get", f'echo "$DEBIAN_FRONTEND: $*" >> {calls}')
    done = run(with_root([SCRIPTS / "setup", "demo"]), path=fakes)
    assert done.returncode == 0, done.stderr
    update, install = calls.read_text().splitlines()
    assert update.endswith(" update")
    assert install.startswith("noninteractive: ")
    assert install.endswith(" install --yes --no-install-recommends iperf3")


def test_setup_stops_and_shows_why_when_apt_fails(tmp_path: Path) -> None:
    fakes = dpkg_without(tmp_path / "bin", "iperf3")
    tool(fakes, "apt-get", "echo 'E: the mirror is away'; exit 100")
    done = run(with_root([SCRIPTS / "setup", "demo"]), path=fakes)
    assert done.returncode == 1
    assert "E: the mirror is away" in done.stderr
    assert "failed (exit code 100)" in done.stderr


@made_by_setup
def test_second_setup_is_silent_and_quick_and_asks_no_installer(tmp_path: Path) -> None:
    fakes = dpkg_without(tmp_path / "bin")
    tool(fakes, "apt-get", f"touch {tmp_path}/called")
    began = time.monotonic()
    done = run([SCRIPTS / "setup", "test"], path=fakes)
    assert time.monotonic() - began < 2
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "called").exists()
