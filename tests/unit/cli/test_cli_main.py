"""The command as a whole: options, exit codes, batches, errors, and JSON for everything."""

import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_daemon import ADDED_ELSEWHERE, LOST, NBL_SEND, SA_ADDED, SUBSCRIBED, FakeDaemon
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_process import Command

from vnic import __version__
from vnic.cli import help as help_module
from vnic.cli.commands import ENTRIES
from vnic.cli.grammar import Object
from vnic.cli.main import NAMES, SHORT, run, run_lines
from vnic.cli.session import Options, Session
from vnic.control import interface as api

GCM_KEY = "0x0102030405060708090a0b0c0d0e0f1011121314"
ADD = f"sa add dst 192.0.2.2 esp spi 0x101 aes-gcm-128 key {GCM_KEY}"

READING = [
    "adapter",
    "adapter show left",
    "xfrm state",
    "xfrm state count",
    "xfrm policy",
    "xfrm policy getdefault",
    "xfrm policy count",
    "sa",
    "sa get handle 1",
    "policy",
    "stats",
    "stats left",
    "stats reasons",
    "caps",
    "caps show left",
    "daemon",
    "daemon show",
]
CHANGING = [
    "adapter add a tap t",
    "adapter set left up",
    "adapter delete left",
    ADD,
    ADD.replace("add", "update"),
    "sa delete handle 1",
    "sa rebase handle 1 seq-hi 1",
    "sa flush",
    "sa deleteall in",
    "policy add out src 10.0.0.0/8 bypass",
    "policy update out src 10.0.0.0/8 bypass",
    "policy delete out index 1",
    "policy flush",
    "policy deleteall out",
    "policy setdefault in block",
]


def objects(parent: Object, path: str) -> list[tuple[str, Object]]:
    below = [one for child in parent.objects for one in objects(child, f"{path} {child.name}")]
    return [(path, parent), *below]


EVERY = [one for entry in ENTRIES for one in objects(entry.load(), entry.name)]
"""Every object with the words that lead to it."""

# ------------------------------------------------------------------------------------------- output


@pytest.mark.parametrize(
    "line", [*READING, *CHANGING, "help", "sa help", "sa add help", "xfrm policy get help"]
)
@pytest.mark.parametrize("options", ["-j", "-j -p", "-j -s -d -br"])
def test_every_answer_is_one_json_document(vnic: Command, line: str, options: str) -> None:
    result = vnic(f"{options} {line}")
    assert result.code == 0, result.err
    json.loads(result.out)
    for warning in result.err.splitlines():
        assert "warning" in json.loads(warning)


@pytest.mark.parametrize("line", READING)
@pytest.mark.parametrize("options", ["", "-s", "-d", "-br", "-o", "-s -br", "-c=always"])
def test_every_answer_is_text_with_whole_lines(vnic: Command, line: str, options: str) -> None:
    result = vnic(f"{options} {line}")
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith("\n")
    assert ("\x1b" in result.out) <= ("always" in options)


@pytest.mark.parametrize("line", CHANGING)
def test_a_change_says_nothing_when_it_is_done(vnic: Command, line: str) -> None:
    result = vnic(line)
    assert (result.code, result.out) == (0, "")
    assert result.requests != []


def test_oneline_puts_each_record_on_one(vnic: Command) -> None:
    lines = vnic("-o xfrm state").out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("src 192.0.2.1 dst 192.0.2.2\\\tproto esp")
    assert len(vnic("-o -s adapter").out.splitlines()) == 1


def test_pretty_is_for_json_alone(vnic: Command) -> None:
    assert vnic("-j -p daemon").out.count("\n") > 5
    assert vnic("-p daemon").out == vnic("daemon").out


def snapshot(name: str) -> str:
    return (Path(__file__).parent / "snapshots" / f"{name}.txt").read_text()


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("xfrm state", "state"),
        ("sa", "state"),
        ("-s xfrm state get dst 2001:db8::1 proto esp spi 0x201", "state-statistics"),
        ("-br sa", "state-brief"),
        ("xfrm policy", "policies"),
        ("-br policy", "policies-brief"),
        ("stats", "statistics"),
        ("mtu", "mtu"),
        ("daemon", "daemon"),
    ],
)
def test_answers_read_like_this(vnic: Command, line: str, name: str) -> None:
    assert vnic(line).out.replace(vnic.daemon.path, "SOCKET") == snapshot(name)


def test_reasons_that_never_happened_and_sas_are_shown_when_asked_for(vnic: Command) -> None:
    assert "out_too_big" not in vnic("stats").out
    details = vnic("-d stats").out
    assert "out_too_big  -            0  too big\n" in details
    assert "forwarder errors 0\n" in details
    assert "0x00000101" not in details
    assert "0x00000101" in vnic("-s stats").out


def test_statistics_have_drops_by_name_too(vnic: Command) -> None:
    (one,) = vnic("-j stats left").json
    assert one["drop_packets"] == {"in_icv": 3}
    assert one["drops"][0]["place"] == "card"


def test_capabilities_read_like_those_of_ethtool(vnic: Command) -> None:
    text = vnic("caps").out
    assert text.startswith(
        "Capabilities of left (engine reference):\n"
        "sa_capacity: 131072, 2 used, 131070 free\n"
        "esp: on\n"
        "ah: off (keyword *IPsecOffloadV2 is 2 (ESP))\n"
        "esn: off [fixed]\n"
        "v1.ah_send: off (no OID_OFFLOAD_ENCAPSULATION)\n"
        "tap tx-checksumming: on\n"
    )
    assert "aes-gcm-128  on   rfc4106(gcm(aes))       160  128,96,64  RFC 4106\n" in text
    assert "des-cbc" not in text
    assert (
        "des-cbc      off  cbc(des)                 64  -          RFC 2405  not supported\n"
        in vnic("-d caps").out
    )


@pytest.mark.rule(47)
def test_a_capability_that_receive_waits_for_says_so(vnic: Command) -> None:
    (left,) = vnic.memory.answers[api.GetCapabilities].adapters
    waits = "receive waits for OID_OFFLOAD_ENCAPSULATION (R47)"
    features = [api.Feature(name="esp", hardware=True, enabled=True, reason=waits)]
    vnic.memory.answers |= {
        api.GetCapabilities: api.CapabilitiesReply(adapters=[replace(left, features=features)])
    }
    assert f"\nesp: on ({waits})\n" in vnic("caps").out


@pytest.mark.parametrize(
    "line", ["-br sa", "-br policy", "-br stats", "sa", "policy", "stats", "mtu", "caps", "adapter"]
)
def test_nothing_is_no_line(vnic: Command, line: str) -> None:
    vnic.memory.answers |= {
        api.ListSas: api.SasReply(sas=[]),
        api.ListPolicies: api.PoliciesReply(policies=[]),
        api.GetStatistics: api.StatisticsReply(adapters=[]),
        api.GetMtus: api.MtusReply(adapters=[]),
        api.GetCapabilities: api.CapabilitiesReply(adapters=[]),
        api.ListAdapters: api.AdaptersReply(adapters=[]),
    }
    assert vnic(line).out == ""
    assert vnic(f"-j {line}").json == []


class Terminal(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "option", "painted"),
    [
        ({}, "-c=auto", True),
        ({}, "-s", True),
        ({"NO_COLOR": "1"}, "-s", False),
        ({"NO_COLOR": "1"}, "-c", True),
        ({"TERM": "dumb"}, "-s", False),
        ({}, "-color=never", False),
    ],
)
def test_colour_is_for_terminals_that_do_not_mind(
    daemon: FakeDaemon,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    option: str,
    painted: bool,
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = Terminal()
    assert run(["-S", daemon.path, option, "adapter"], out, io.StringIO(), None) == 0
    assert ("\x1b[" in out.getvalue()) is painted


# --------------------------------------------------------------------------------- errors, exit codes


def test_without_words_there_is_usage_on_standard_error(vnic: Command) -> None:
    result = vnic("")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("Usage: vnic")
    assert vnic("-j").error["error"] == "there is no command"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("bogus", "vnic: unknown object bogus; allowed: adapter,"),
        ("s", "vnic: 's' could be any of several; allowed: sa, stats\n"),
        ("-x adapter", "vnic: unknown option -x; allowed: -json,"),
        ("-n red adapter", "vnic: -n: not supported: the daemon knows every namespace"),
        ("-color=blue adapter", "vnic: -color: blue is not a choice; allowed: always, auto, never\n"),
        ("-b", "vnic: -batch: its value is missing"),
        ("-b file adapter", "vnic: -batch: commands stand in the file (given: adapter); allowed: no words"),
        (
            "-b /nonexistent/x",
            "vnic: -batch: cannot be read: No such file or directory (given: /nonexistent/x)",
        ),
        ("adapter show left right", "vnic: adapter show: unknown word right; allowed: no further word\n"),
        ("daemon stop", "vnic: daemon: unknown word stop; allowed: show, help\n"),
        ("stats 0102030405060708 0x0102030405060708", "vnic: stats show: unknown word (hidden)"),
    ],
)
def test_usage_errors_are_one_line_and_exit_code_1(vnic: Command, line: str, text: str) -> None:
    result = vnic(line)
    assert (result.code, result.out, result.requests) == (1, "", [])
    assert result.err.startswith(text)
    assert result.err.count("\n") == 1


def test_an_error_in_json_has_every_key(vnic: Command) -> None:
    assert vnic("-j xfrm state add dst 192.0.2.2 proto esp spi 0x0").error == {
        "error": "0x0 is out of range",
        "command": "xfrm state add",
        "field": "spi",
        "value": "0x0",
        "allowed": "0x1 to 0xffffffff",
        "exit_code": 1,
        "status": None,
        "status_name": None,
    }


def test_a_nic_that_refuses_gives_its_status(vnic: Command) -> None:
    from vnic.control.interface import Refused

    vnic.memory.answers[api.AddSa] = Refused(
        message="the table is full",
        field="",
        value="",
        allowed="",
        status=0xC000009A,
        status_name="NDIS_STATUS_RESOURCES",
    )
    result = vnic(f"-j {ADD}")
    assert (result.code, result.out) == (2, "")
    assert (result.error["status"], result.error["status_name"]) == (0xC000009A, "NDIS_STATUS_RESOURCES")
    assert vnic(ADD).err.endswith("vnic: sa add: the table is full [NDIS_STATUS_RESOURCES]\n")


def test_no_daemon_is_exit_code_3_and_says_what_to_do(tmp_path: Path) -> None:
    for options in ([], ["-j"]):
        out, err = io.StringIO(), io.StringIO()
        code = run(["-S", str(tmp_path / "none"), *options, "adapter"], out, err, None)
        assert (code, out.getvalue()) == (3, "")
        assert "start vnicd" in err.getvalue()
        if options:
            assert json.loads(err.getvalue())["exit_code"] == 3


@pytest.mark.parametrize("line", CHANGING)
def test_who_may_only_look_is_refused_with_exit_code_2(readers_vnic: Command, line: str) -> None:
    result = readers_vnic(f"-j {line}")
    assert (result.code, result.out) == (2, "") or line.startswith(("sa deleteall", "policy deleteall"))
    assert "administrator" in result.error["error"]


@pytest.mark.parametrize("line", READING)
def test_who_may_only_look_sees_all_but_keys(readers_vnic: Command, line: str) -> None:
    assert readers_vnic(line).code == 0
    assert readers_vnic("-show-keys sa").code == 2


def test_the_socket_may_come_from_the_environment(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VNIC_SOCKET", daemon.path)
    out = io.StringIO()
    assert run(["-br", "sa"], out, io.StringIO(), None) == 0
    assert out.getvalue() == snapshot("state-brief")


def test_the_version(vnic: Command) -> None:
    assert vnic("-V").out == f"vnic {__version__}\n"
    assert vnic("-j -Version").json == {"version": __version__}


@pytest.mark.parametrize("option", ["-j", "-js", "-json", "--json", "--j"])
def test_options_have_one_dash_or_two_and_may_be_shortened(vnic: Command, option: str) -> None:
    json.loads(vnic(f"{option} daemon").out)


def test_options_of_the_help_are_those_that_are_read() -> None:
    named = {
        word.strip(",").partition("[")[0].lstrip("-")
        for name, _ in help_module.OPTIONS
        for word in name.split()
    }
    named -= {"SOCKET", "FILE"}
    assert named <= {*NAMES, *SHORT}
    assert {name for name in NAMES if name not in ("help", "statistics")} <= named


# ---------------------------------------------------------------------------------------------- help


def test_help_stands_wherever_an_object_or_a_verb_does(vnic: Command) -> None:
    for line in ("help", "-h", "-help"):
        assert vnic(line).out.startswith("Usage: vnic [ OPTIONS ] OBJECT")
    for path, one in EVERY:
        result = vnic(f"{path} help")
        assert (result.code, result.err, result.requests) == (0, "", [])
        for verb in one.verbs:
            assert verb.summary in result.out
            text = vnic(f"{path} {verb.name} help")
            assert (text.code, text.requests) == (0, [])
            assert f"vnic {path} {verb.name}" in text.out
            for word in verb.vocabulary.names():
                assert word in text.out


def test_every_example_of_the_help_is_a_command(
    vnic: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    vnic.memory.events = [LOST]
    keys = {"left.key": 20, "next.key": 20, "enc.key": 32, "auth.key": 32}
    for name, length in keys.items():
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_bytes(bytes(range(length)))
    for name in ("add_sa.bin", "delete_sa.bin", "parameters.bin"):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_bytes(bytes(24))
    vnic.memory.nbls = [NBL_SEND]
    examples = [example for _, one in EVERY for verb in one.verbs for example in verb.examples]
    assert len(examples) > 20
    for example in examples:
        line = (
            example.replace("/etc/vnic/left.key", "left.key")
            .replace("/root/", f"{tmp_path}/")
            .partition(" |")[0]
            .partition(" <")[0]
        )
        words = shlex.split(line)
        assert words.pop(0) == "vnic"
        result = vnic.words(
            words, stdin="ab" * 32, interrupted_after=1 if {"monitor", "nbl"} & set(words) else None
        )
        assert result.code == 0, (example, result.err)


# ------------------------------------------------------------------------------------------- monitor


def monitored(vnic: Command, line: str, flushes: int) -> Any:
    vnic.memory.events = [SUBSCRIBED, SA_ADDED, LOST, ADDED_ELSEWHERE]
    return vnic.words(line.split(), interrupted_after=flushes)


def test_monitor_writes_one_line_an_event_and_ends_well_on_ctrl_c(vnic: Command) -> None:
    result = monitored(vnic, "monitor", 3)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "4 subscribed: listening begins",
        "5 sa_added: adapter left: SA out esp spi 0x00000101 dst 192.0.2.2 added",
        "9 lost: 4 events lost",
    ]


def test_monitor_in_json_writes_one_object_a_line_also_when_pretty(vnic: Command) -> None:
    result = monitored(vnic, "-j -p monitor", 3)
    kinds = [json.loads(line)["kind"] for line in result.out.splitlines()]
    assert kinds == ["subscribed", "sa_added", "lost"]


@pytest.mark.parametrize(
    ("line", "kinds"),
    [
        ("monitor sa", ["sa_added", "lost"]),
        ("monitor sa_added", ["sa_added", "lost"]),
        ("monitor adapter", ["lost", "adapter_added"]),
        ("monitor dev right", ["lost", "adapter_added"]),
        ("monitor drop subscribed", ["subscribed", "lost"]),
        ("xfrm monitor SA policy", ["sa_added", "lost"]),
        ("xfrm monitor all nokeys", ["sa_added", "lost"]),
    ],
)
def test_monitor_shows_what_is_named_and_what_was_lost(vnic: Command, line: str, kinds: list[str]) -> None:
    result = monitored(vnic, f"-j {line}", len(kinds))
    assert [json.loads(one)["kind"] for one in result.out.splitlines()] == kinds


def test_monitor_puts_the_time_in_front_when_asked_for(vnic: Command) -> None:
    assert monitored(vnic, "-t monitor", 1).out.startswith("[2026-01-02T03:04:05.000000Z] 4 subscribed:")


@pytest.mark.parametrize("word", ["acquire", "report", "aevent", "all-nsid"])
def test_events_of_ip_that_are_not_here_are_refused_by_name(vnic: Command, word: str) -> None:
    result = vnic(f"-j xfrm monitor {word}")
    assert (result.code, result.error["field"]) == (1, word)


# --------------------------------------------------------------------------------------------- batch


def test_a_batch_runs_each_line_over_one_connection(vnic: Command) -> None:
    result = vnic("-b -", stdin=f"# two\n{ADD} # with a key\n\nsa delete \\\n  handle 1\n")
    assert (result.code, result.out) == (0, "")
    assert [type(one) for one in result.requests] == [api.AddSa, api.DeleteSa]
    assert "seen by every process" not in result.err


def test_a_batch_stops_at_the_first_failure_and_names_its_line(vnic: Command, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("sa delete handle 1\n\nsa add \\\n spi 0x0\nsa flush\n")
    result = vnic(f"-b {path}")
    assert result.code == 1
    assert [type(one) for one in result.requests] == [api.DeleteSa]
    assert result.err == (f"vnic: {path}:3: sa add: spi: 0x0 is out of range; allowed: 0x1 to 0xffffffff\n")


def test_force_goes_on_and_the_first_failure_gives_the_exit_code(vnic: Command) -> None:
    vnic.memory.answers[api.FlushSas] = api.Refused(
        message="no", field="", value="", allowed="", status=None, status_name=None
    )
    result = vnic("-force -b -", stdin="sa flush\nsa bogus\n'open\nsa delete handle 1\n")
    assert result.code == 2
    assert [type(one) for one in result.requests] == [api.FlushSas, api.DeleteSa]
    assert [line.split(": ")[1] for line in result.err.splitlines()] == [
        "standard input:1",
        "standard input:2",
        "standard input:3",
    ]


def test_a_batch_in_json_is_one_array_of_what_each_line_answered(vnic: Command) -> None:
    result = vnic("-j -b -", stdin="sa count\nadapter delete left\nhelp\nbogus\n")
    assert result.code == 1
    first, second, third = result.json
    assert (first, second) == ({"count": 2}, {"deleted": "left"})
    assert "objects" in third
    assert (result.error["file"], result.error["line"]) == ("standard input", 4)


def test_a_monitor_has_no_place_in_a_batch(vnic: Command) -> None:
    result = vnic("-j -b -", stdin="monitor\n")
    assert (result.code, result.json, result.requests) == (1, [], [])
    assert result.error["command"] == "monitor events"


def test_an_empty_batch_is_an_empty_array(vnic: Command) -> None:
    assert vnic("-j -b -", stdin="\n# nothing\n").json == []


def test_keys_of_a_batch_on_standard_input_cannot_come_from_there(vnic: Command) -> None:
    result = vnic("-b -", stdin="sa add dst 192.0.2.2 esp spi 0x101 aes-gcm-128 key -\n")
    assert result.code == 1
    assert "it holds the commands" in result.err


def test_keys_of_a_batch_in_a_file_may_come_from_standard_input(vnic: Command, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("sa add dst 192.0.2.2 esp spi 0x101 aes-gcm-128 key -\n")
    assert vnic(f"-b {path}", stdin=GCM_KEY).request.sa.encryption_key == GCM_KEY[2:]


def test_keys_in_a_batch_file_that_everybody_may_read_are_warned_of(vnic: Command, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text(f"{ADD}\n{ADD}\n")
    for mode, warned in ((0o644, 1), (0o640, 0)):
        path.chmod(mode)
        assert vnic(f"-b {path}").err.count(f"everybody may read {path}") == warned


def test_a_batch_file_that_is_not_utf8_is_refused_at_its_line(vnic: Command, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"sa count\nadapter delete \xff\n")
    result = vnic(f"-b {path}")
    assert result.code == 1
    assert f"{path}:2" in result.err


# --------------------------------------------------------------------------------------- any words

WORDS = sorted(
    {
        word
        for _, one in EVERY
        for verb in one.verbs
        for word in (verb.name, *verb.aliases, *verb.vocabulary.names())
    }
    | {entry.name for entry in ENTRIES}
    | {
        "state",
        "policy",
        "help",
        "10.0.0.0/8",
        "192.0.2.1",
        "::1",
        "0x101",
        "1",
        "cbc(aes)",
        "hmac(sha1)",
        "left",
    }
    | {
        "esp",
        "ah",
        "in",
        "out",
        "tunnel",
        "packet",
        "dev",
        "dir",
        "",
        "-",
        "0x" + "01" * 20,
        "01" * 16,
        "tcp",
        "80",
    }
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.sampled_from(WORDS) | st.text(max_size=12), max_size=24),
    options=st.lists(st.sampled_from(["-j", "-s", "-br", "-4", "-show-keys", "-o", "-c=always"]), max_size=3),
)
def test_any_words_are_a_request_or_a_usage_error(
    vnic: Command, words: list[str], options: list[str]
) -> None:
    if "export" in words or any(word.startswith("-") for word in words[:1]):
        return
    vnic.memory.events = [LOST] * 3
    result = vnic.words([*options, *words], stdin="00" * 20, interrupted_after=3)
    assert result.code in (0, 1, 2)
    if result.code == 1:
        assert result.err
        if "-j" in options and words:
            json.loads(result.err.splitlines()[-1])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from(["xfrm state add", "xfrm policy add", "sa add", "policy add", "adapter add x"]),
    words=st.lists(st.sampled_from(WORDS), max_size=30),
)
def test_any_words_behind_add_are_a_request_or_a_usage_error(
    vnic: Command, start: str, words: list[str]
) -> None:
    result = vnic.words([*start.split(), *words], stdin="00" * 20)
    assert result.code in (0, 1, 2)


# ------------------------------------------------------------------------------------ as a program


def program(daemon: FakeDaemon, *words: str) -> list[str]:
    return [sys.executable, "-m", "vnic", "-S", daemon.path, *words]


def test_it_runs_as_a_program(daemon: FakeDaemon) -> None:
    done = subprocess.run(program(daemon, "-br", "sa"), capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, snapshot("state-brief"), "")
    done = subprocess.run(program(daemon, "bogus"), capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (1, "")


def test_as_a_program_monitor_ends_with_0_on_ctrl_c(daemon: FakeDaemon) -> None:
    daemon.memory.events = [SUBSCRIBED]
    listening = subprocess.Popen(
        program(daemon, "monitor"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert listening.stdout is not None
        assert listening.stdout.readline().startswith("4 subscribed")
        listening.send_signal(signal.SIGINT)
        out, err = listening.communicate(timeout=10)
        assert (listening.returncode, out, err) == (0, "", "")
    finally:
        listening.kill()
        listening.communicate()


def test_as_a_program_it_ends_quietly_when_nobody_reads(daemon: FakeDaemon) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            program(daemon, "sa"), stdout=writing, stderr=subprocess.PIPE, text=True, timeout=20
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_as_a_program_it_says_when_the_disk_is_full(daemon: FakeDaemon) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            program(daemon, "sa"), stdout=full, stderr=subprocess.PIPE, text=True, timeout=20
        )
    assert (done.returncode, done.stderr) == (1, "vnic: standard output: No space left on device\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_as_a_program_it_does_without_closed_streams(daemon: FakeDaemon, closed: str) -> None:
    for line, code in (("sa", 0), ("bogus", 1), ("sa add dst 192.0.2.2 esp spi 0x101 aes-gcm-128 key -", 1)):
        command = f"exec {shlex.join(program(daemon))} {line} {closed}"
        done = subprocess.run(
            ["bash", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20
        )
        assert done.returncode == code
        assert "Traceback" not in done.stderr


def test_as_a_program_it_survives_bytes_that_are_no_text(daemon: FakeDaemon) -> None:
    line = ["sa", "add", "dst", "192.0.2.2", "esp", "spi", "0x101", "aes-gcm-128", "key", "-"]
    for words, stdin in ((line, b"\xff\xfe\x80\n"), (["-b", "-"], b"sa \xff\n"), (["sa", b"\xff"], b"")):
        done = subprocess.run([*program(daemon), *words], input=stdin, capture_output=True, timeout=20)
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"Traceback" not in done.stderr


def test_as_a_program_it_writes_in_any_locale(daemon: FakeDaemon) -> None:
    environment = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        program(daemon, "sa", "add", "help"), capture_output=True, text=True, timeout=20, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "ALGORITHM?" in done.stdout


def test_a_daemon_that_went_away_is_asked_anew_by_the_next_command_of_a_batch(tmp_path: Path) -> None:
    """A socket that hangs up on its first caller and is a daemon to the second."""
    first = socket.socket(socket.AF_UNIX)
    first.bind(str(tmp_path / "vnic.sock"))
    first.listen()
    daemon = FakeDaemon(tmp_path)

    def lines() -> Iterator[str]:
        yield "sa count\n"
        first.close()
        os.unlink(daemon.path)
        daemon.start()
        yield "sa count\n"

    def hang_up() -> None:
        connection, _ = first.accept()
        connection.recv(4096)
        connection.close()

    thread = threading.Thread(target=hang_up)
    thread.start()
    out, err = io.StringIO(), io.StringIO()
    session = Session(Options(socket=daemon.path, force=True), out, err)
    try:
        code = run_lines("lines", lines(), session)
    finally:
        session.close()
        thread.join(5)
        daemon.stop()
    assert code == 3
    assert out.getvalue() == "\t SAD count 2\n"
    assert "closed the connection" in err.getvalue()


def test_help_needs_no_ciphers_and_no_netlink() -> None:
    code = (
        "import sys, io\n"
        "from vnic.cli.main import run\n"
        "run(['xfrm', 'state', 'help'], io.StringIO(), io.StringIO(), None)\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & {'pyroute2', 'cryptography', 'uvloop', 'scapy'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout == "[]\n"
