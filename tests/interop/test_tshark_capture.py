"""Wireshark decrypts what the card captured, with the keys that the daemon exported; every ICV is right.

One pair of adapters with every ESP suite in force at once, each between addresses of its own; one capture of
the wire and one key file, read by tshark with a configuration directory of its own.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from card import ESP_SUITES, LEFT, Lane, Refusal, running_daemon, running_pair
from traffic import captured, is_sealed, ping, spi_of

pytestmark = [pytest.mark.live, pytest.mark.interop]

TIMEOUT_S = 60
PATTERN = b"Wireshark!"
FIELDS = ("esp.spi", "esp.icv_good", "esp.icv_bad", "data.data", "_ws.malformed")
TRUE = ("1", "True")
"""As older and newer versions write it."""

WAYS = [
    (suite, mode, version) for suite in ESP_SUITES for mode in ("tunnel", "transport") for version in (4, 6)
]


@dataclass(frozen=True)
class Recorded:
    """What one run left behind."""

    capture: Path
    keys: Path
    lanes: list[Lane]
    log: str

    def spis(self, *, known: bool) -> set[int]:
        """SPIs whose packets tshark can open, or those that it cannot: it has no AES-GMAC in ESP."""
        sas = [sa for lane in self.lanes for sa in (lane.forth, lane.back)]
        return {sa.spi for sa in sas if ("gmac" not in sa.suite.name) is known}


@pytest.fixture(scope="module")
def recorded(workspace: Path) -> Recorded:
    capture, keys = workspace / "wire.pcapng", workspace / "esp_sa"
    with running_pair(workspace) as pair:
        lanes = pair.protect_side_by_side(WAYS)
        with pair.daemon.capture(LEFT, "wire", capture):
            for number, lane in enumerate(lanes):
                assert ping(pair.left, lane.far, size=32 + number, pattern=PATTERN) == 1
        pair.daemon.vnic("sa", "export", "wireshark", str(keys), "dev", LEFT)
        return Recorded(capture, keys, lanes, pair.daemon.log)


@dataclass(frozen=True)
class Dissected:
    """What tshark says of one ESP packet."""

    spi: int
    good: bool
    bad: bool
    opened: bool
    """The message inside was found whole, and holds the pattern."""


def dissect(capture: Path, keys: str, directory: Path) -> list[Dissected]:
    """Read the ESP packets of a capture with the lines of a key file."""
    directory.mkdir()
    (directory / "esp_sa").write_text(keys)
    command = ["tshark", "-n", "-r", str(capture), "-Y", "esp", "-T", "fields", "-E", "occurrence=f"]
    for preference in ("enable_encryption_decode", "enable_authentication_check"):
        command += ["-o", f"esp.{preference}:TRUE"]
    for name in FIELDS:
        command += ["-e", name]
    done = subprocess.run(
        command,
        env=os.environ | {"WIRESHARK_CONFIG_DIR": str(directory), "HOME": str(directory)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    packets = []
    for line in done.stdout.splitlines():
        spi, good, bad, data, malformed = line.split("\t")
        opened = PATTERN.hex() in data and not malformed
        packets.append(Dissected(int(spi, 16), good in TRUE, bad in TRUE, opened))
    return packets


def test_every_packet_is_decrypted_and_every_icv_is_right(recorded: Recorded, tmp_path: Path) -> None:
    packets = dissect(recorded.capture, recorded.keys.read_text(), tmp_path / "config")
    sealed = [frame for frame in captured(recorded.capture) if is_sealed(frame)]
    assert sorted(one.spi for one in packets) == sorted(map(spi_of, sealed))
    known = recorded.spis(known=True)
    assert {one.spi for one in packets} == known | recorded.spis(known=False)
    assert [one for one in packets if one.spi in known and not (one.good and one.opened)] == []
    assert not any(one.bad for one in packets)


def test_other_keys_find_no_icv_right(recorded: Recorded, tmp_path: Path) -> None:
    """What the test above says means something: the check can fail."""
    shifted = str.maketrans("0123456789abcdef", "123456789abcdef0")
    keys = re.sub(
        '"0x([0-9a-f]{16,})"', lambda key: f'"0x{key[1].translate(shifted)}"', recorded.keys.read_text()
    )
    packets = dissect(recorded.capture, keys, tmp_path / "config")
    known = [one for one in packets if one.spi in recorded.spis(known=True)]
    assert len(known) == len(recorded.spis(known=True))
    assert not any(one.good for one in known)


def test_key_file_is_for_its_owner_alone_and_says_what_it_cannot_hold(recorded: Recorded) -> None:
    assert stat.S_IMODE(recorded.keys.stat().st_mode) == 0o600
    lines = recorded.keys.read_text().splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert len(comments) == len(recorded.spis(known=False))
    assert all("aes-gmac" in line for line in comments)
    assert len(lines) == 2 * len(WAYS)
    keys = [key.hex() for lane in recorded.lanes for sa in (lane.forth, lane.back) for key in sa.keys if key]
    assert not any(key in recorded.log for key in keys)
    assert "Keys" in recorded.log, "the log says that somebody asked for them"


def test_daemon_that_may_not_show_keys_exports_none(tmp_path: Path) -> None:
    file = tmp_path / "esp_sa"
    with running_daemon(tmp_path, "reveal_keys = false\n") as daemon:
        with pytest.raises(Refusal, match="reveal_keys") as refused:
            daemon.vnic("sa", "export", "wireshark", str(file))
        assert refused.value.exit_code == 2
    assert not file.exists()
