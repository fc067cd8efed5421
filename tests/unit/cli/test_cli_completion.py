"""What could stand at the end of words."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_daemon import FakeDaemon
from hypothesis import given, settings
from hypothesis import strategies as st

from vnic.cli.completion import complete

COMPLETION = Path(__file__).parents[3] / "docs" / "completion" / "vnic.bash"


def offered(*words: str) -> list[str]:
    out = io.StringIO()
    assert complete(list(words), out) == 0
    return out.getvalue().split()


@pytest.mark.parametrize(
    ("words", "some"),
    [
        (("",), ["adapter", "xfrm", "sa", "help"]),
        (("a",), ["adapter"]),
        (("-",), ["-json", "-socket", "-batch"]),
        (("-j", "x"), ["xfrm"]),
        (("xfrm", ""), ["state", "policy", "monitor"]),
        (("xfrm", "state", "d"), ["delete", "deleteall"]),
        (("xfrm", "state", "add", ""), ["src", "dst", "aead", "offload"]),
        (("xfrm", "state", "add", "mode", ""), ["transport", "tunnel"]),
        (("xfrm", "state", "add", "mode", "tu"), ["tunnel"]),
        (("xfrm", "state", "add", "aead", ""), ["rfc4106(gcm(aes))", "rfc4543(gcm(aes))"]),
        (("xfrm", "state", "add", "aead", "x", "f"), ["file:"]),
        (("xfrm", "state", "add", "flag", "esn", ""), ["align4", "replay-window"]),
        (("xfrm", "state", "add", "sel", "src", "10.0.0.0/8", ""), ["dst", "proto", "spi"]),
        (("xfrm", "policy", "add", "tmpl", ""), ["proto", "mode"]),
        (("sa", "add", "aes-"), ["aes-gcm-128", "aes-cbc-256"]),
        (("adapter", "add", "left", "tap", "t", "wire", ""), ["link", "none"]),
        (("adapter", "set", "left", "nonip", ""), ["pass", "drop"]),
        (("monitor", "sa"), ["sa", "sa_added"]),
        (("-S", ""), ["@files"]),
        (("-b", ""), ["@files"]),
        (("sa", "export", "wireshark", ""), ["@files"]),
        (("stats", ""), ["show", "reasons"]),
    ],
)
def test_offers_hold_what_fits(
    words: tuple[str, ...], some: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VNIC_SOCKET", "/nonexistent/socket")
    offers = offered(*words)
    assert set(some) <= set(offers)
    assert all(one.startswith(words[-1]) or one == "@files" for one in offers)


def test_what_was_said_is_not_offered_again_and_refused_words_never_are() -> None:
    offers = offered("xfrm", "state", "add", "src", "192.0.2.1", "")
    assert "src" not in offers
    assert not {"mark", "ctx", "coa"} & set(offers)


def test_names_of_adapters_come_from_the_daemon(daemon: FakeDaemon) -> None:
    for words in (
        ["adapter", "show", ""],
        ["stats", ""],
        ["sa", "show", "dev", "l"],
        ["adapter", "delete", ""],
    ):
        assert "left" in offered("-S", daemon.path, *words)


def test_without_a_daemon_there_are_no_names(tmp_path: Path) -> None:
    assert offered("-S", str(tmp_path / "none"), "adapter", "show", "") == []


def test_behind_a_wrong_word_there_is_nothing() -> None:
    assert offered("bogus", "") == []
    assert offered("xfrm", "state", "add", "spi", "0x0", "") == []
    assert offered() != []


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(["xfrm", "state", "add", "sel", "src", "tmpl", "-j", "help"]) | st.text(max_size=6)
    )
)
def test_any_words_are_completed_without_an_error(words: list[str]) -> None:
    out = io.StringIO()
    assert complete(["-S", "/nonexistent/socket", *words], out) == 0


def in_bash(line: str, socket: str) -> list[str]:
    """What the completion of bash makes of a line up to the cursor."""
    script = (
        f'source "{COMPLETION}"\n'
        "compopt() { :; }\n"
        'COMP_LINE=$1 COMP_POINT=${#1}\n_vnic\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "VNIC_SOCKET": socket,
    }
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", line],
        capture_output=True,
        text=True,
        timeout=20,
        env=environment,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_words_adapters_and_files(daemon: FakeDaemon, tmp_path: Path) -> None:
    assert in_bash("vnic xfrm state del", daemon.path) == ["delete", "deleteall"]
    assert in_bash("vnic adapter show ", daemon.path) == ["left"]
    assert in_bash("vnic bogus ", daemon.path) == []
    (tmp_path / "left.key").touch()
    start = f"vnic sa add aes-gcm-128 key file:{tmp_path}/le"
    assert in_bash(start, daemon.path) == [f"{tmp_path}/left.key"]
    assert in_bash(f"vnic -b {tmp_path}/le", daemon.path) == [f"{tmp_path}/left.key"]
