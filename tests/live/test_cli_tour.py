"""The command against a real daemon: the whole tour, what is refused, and what is shown and given back.

Two adapters on a link wire, a host behind each; see card.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from card import LEFT, RIGHT, Daemon, Pair
from namespaces import Namespaces
from traffic import forget_neighbours, ping

pytestmark = pytest.mark.live

GCM_KEY = "0x0102030405060708090a0b0c0d0e0f1011121314"
OTHER_KEY = "0x1102030405060708090a0b0c0d0e0f1011121314"
CBC_KEY = "0x000102030405060708090a0b0c0d0e0f"
SHA_KEY = "0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"


def vnic(daemon: Daemon, line: list[str] | str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run one command, whatever its exit code."""
    words = line.split() if isinstance(line, str) else line
    return subprocess.run(
        [sys.executable, "-m", "vnic", "-S", str(daemon.socket), *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def settings(daemon: Daemon) -> Any:
    """Everything a request could have changed; counters and times left out."""
    commands = "adapter show\nsa show\npolicy show\npolicy getdefault\n"
    adapters, sas, policies, defaults = json.loads(daemon.vnic("-j", "-show-keys", "-b", "-", stdin=commands))
    for one in adapters:
        for name in ("card", "tap_statistics", "wire_statistics"):
            del one[name]
    return {
        "adapters": adapters,
        "sas": [(one["adapter"], one["handle"], one["sa"]) for one in sas],
        "policies": policies,
        "defaults": defaults,
    }


def pasted_lines(pair: Pair) -> list[str]:
    """A tunnel as somebody wrote it for `ip`: AES-GCM one way, AES-CBC with SHA-256 the other."""
    left, right = pair.left.addresses[4], pair.right.addresses[4]
    outward = "src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x00000101 mode tunnel"
    back = "src 192.0.2.2 dst 192.0.2.1 proto esp spi 0x00000202 mode tunnel"
    gcm = f"reqid 16385 replay-window 32 flag af-unspec aead rfc4106(gcm(aes)) {GCM_KEY} 128"
    cbc = f"reqid 16386 replay-window 128 enc cbc(aes) {CBC_KEY} auth-trunc hmac(sha256) {SHA_KEY} 128"
    lines = []
    for adapter, first, second in ((LEFT, "out", "in"), (RIGHT, "in", "out")):
        lines += [
            f"xfrm state add {outward} {gcm} offload packet dev {adapter} dir {first}",
            f"xfrm state add {back} {cbc} offload packet dev {adapter} dir {second}",
            f"xfrm policy add src {left} dst {right} dir {first} ptype main priority 375423 "
            "tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 16385 mode tunnel "
            f"offload packet dev {adapter}",
            f"xfrm policy add src {right} dst {left} dir {second} ptype main priority 375423 "
            "tmpl src 192.0.2.2 dst 192.0.2.1 proto esp reqid 16386 mode tunnel "
            f"offload packet dev {adapter}",
        ]
    return lines


def test_lines_of_ip_make_a_tunnel_that_ping_passes(clean_pair: Pair) -> None:
    daemon = clean_pair.daemon
    daemon.batch(*pasted_lines(clean_pair))
    assert ping(clean_pair.left, clean_pair.right.addresses[4], count=3) == 3

    shown = vnic(daemon, "-s xfrm state get dst 192.0.2.2 proto esp spi 0x101 dev left")
    assert shown.returncode == 0
    assert "aead rfc4106(gcm(aes)) <hidden> (160 bits) 128" in shown.stdout
    assert re.search(r"\(bytes\), [3-9]\(packets\)", shown.stdout)
    assert "offload packet dev left dir out handle 0x" in shown.stdout
    assert GCM_KEY[2:] not in shown.stdout
    assert GCM_KEY in vnic(daemon, "-show-keys xfrm state").stdout

    for line in ("-s xfrm state", "-br sa", "-s policy", "-br -s adapter", "-d stats", "caps", "daemon"):
        assert vnic(daemon, line).stdout


def test_what_is_shown_brings_everything_back(clean_pair: Pair) -> None:
    daemon = clean_pair.daemon
    daemon.batch(*pasted_lines(clean_pair))
    before = settings(daemon)
    states = daemon.vnic("-o", "-show-keys", "xfrm", "state")
    policies = daemon.vnic("-o", "xfrm", "policy")
    clean_pair.unprotect()
    assert settings(daemon)["sas"] == settings(daemon)["policies"] == []

    lines = [f"xfrm state add {line}" for line in states.replace("\\", " ").splitlines()]
    lines += [f"xfrm policy add {line}" for line in policies.replace("\\", " ").splitlines()]
    assert len(lines) == 8
    daemon.batch(*lines)
    after = settings(daemon)
    handles = [handle for _, handle, _ in after["sas"]]
    assert [(adapter, sa) for adapter, _, sa in after["sas"]] == [
        (adapter, sa | {"sequence_number": 0}) for adapter, _, sa in before["sas"]
    ]
    assert len(set(handles)) >= 2
    strip = [one["policy"] | {"index": 0} for one in before["policies"]]
    assert [one["policy"] | {"index": 0} for one in after["policies"]] == strip
    forget_neighbours(*clean_pair.hosts)
    assert ping(clean_pair.left, clean_pair.right.addresses[4], count=2) == 2


REFUSED_WORDS = [
    "xfrm state add dst 192.0.2.9 proto esp spi 0x10",
    "xfrm state add src 192.0.2.1 dst 192.0.2.9 proto esp spi 0x300 mode beet",
    f"xfrm state add src 192.0.2.1 dst 192.0.2.9 proto esp spi 0x300 enc cbc(aes) {SHA_KEY}00",
    f"xfrm state add dst 192.0.2.9 proto esp spi 0x300 aead rfc4106(gcm(aes)) {OTHER_KEY} 128 mark 1",
    "xfrm policy add src 10.0.0.0/8 dir fwd",
    "xfrm policy setdefault in block fwd block",
    "adapter add third tap",
    "adapter set left mtu 5",
    "sa flush esp ah",
    "policy flush bogus",
]
"""Refused by the command itself."""

REFUSED_BY_DAEMON = [
    # the same name again
    f"sa add dev left in src 192.0.2.2 dst 192.0.2.1 esp spi 0x202 tunnel aes-gcm-128 key {OTHER_KEY}",
    # key and salt of another outbound SA
    f"sa add dev left out src 192.0.2.1 dst 192.0.2.2 esp spi 0x555 tunnel aes-gcm-128 key {GCM_KEY}",
    # no integrity
    f"sa add dev left out src 192.0.2.1 dst 192.0.2.2 esp spi 0x555 tunnel aes-cbc-128 key {CBC_KEY}",
    # direction unknown
    f"sa add dev left src 203.0.113.1 dst 203.0.113.2 esp spi 0x555 aes-gcm-128 key {OTHER_KEY}",
    # replay window
    f"sa add dev left in src 192.0.2.2 dst 192.0.2.1 esp spi 0x556 window 65537 aes-gcm-128 key {OTHER_KEY}",
    # which adapter?
    f"sa add in src 192.0.2.2 dst 192.0.2.1 esp spi 0x556 aes-gcm-128 key {OTHER_KEY}",
    f"sa add dev nowhere in src 192.0.2.2 dst 192.0.2.1 esp spi 0x556 aes-gcm-128 key {OTHER_KEY}",
    f"sa update dev left in src 192.0.2.2 dst 192.0.2.1 esp spi 0x999 aes-gcm-128 key {OTHER_KEY}",
    "sa delete dev left handle 0x7777",
    "sa delete dst 192.0.2.9 esp spi 0x101",
    "sa rebase dst 192.0.2.2 esp spi 0x101 dev left seq-hi 1",
    "xfrm state get dst 192.0.2.9 proto esp spi 0x101",
    "policy add dev left out src 10.9.0.0/16 dst 10.9.0.0/16 protect esp protect esp protect esp",
    "policy delete dev left out index 999",
    "policy setdefault in block dev nowhere",
    "adapter add left tap vtnever0",
    "adapter add third tap a/b",
    "adapter add third tap vtnever0 netns nowhere",
    "adapter add third tap vtnever0 wire link nowhere",
    "adapter add third tap vtnever0 wire netdev vtnever1",
    "adapter set left mac ff:ff:ff:ff:ff:ff",
    "adapter set left wire link left",
    "adapter set left capture wire /nonexistent/x.pcapng",
    "adapter delete nowhere",
]
"""Refused by the daemon or the NIC."""


def test_what_is_refused_changes_nothing_and_says_why(clean_pair: Pair) -> None:
    daemon = clean_pair.daemon
    daemon.batch(*pasted_lines(clean_pair))
    before = settings(daemon)
    for lines, code in ((REFUSED_WORDS, 1), (REFUSED_BY_DAEMON, 2)):
        done = vnic(daemon, "-j -force -b -", stdin="\n".join(lines))
        errors = [json.loads(line) for line in done.stderr.splitlines()]
        assert (done.returncode, json.loads(done.stdout)) == (code, [])
        assert [one["line"] for one in errors] == list(range(1, len(lines) + 1)), errors
        for line, one in zip(lines, errors, strict=True):
            assert one["exit_code"] == code, (line, one)
            assert one["error"], line
        for key in (GCM_KEY, OTHER_KEY, CBC_KEY, SHA_KEY):
            assert key[2:] not in done.stderr
        assert settings(daemon) == before


def test_a_batch_stops_where_it_is_refused_and_what_was_done_stays(clean_pair: Pair) -> None:
    daemon = clean_pair.daemon
    good = f"sa add dev left in src 192.0.2.2 dst 192.0.2.1 esp spi 0x601 aes-gcm-128 key {GCM_KEY}"
    done = vnic(daemon, "-j -b -", stdin=f"{good}\n{good}\nsa flush\n")
    assert done.returncode == 2
    assert '"line":2' in done.stderr
    assert '"status_name":"NDIS_STATUS_INVALID_PARAMETER"' in done.stderr
    assert [one["sa"]["spi"] for one in daemon.json("sa")] == [0x601]


def test_the_monitor_tells_what_the_command_does(clean_pair: Pair) -> None:
    daemon = clean_pair.daemon
    with daemon.monitor() as monitor:
        daemon.batch(
            *pasted_lines(clean_pair), "policy setdefault in block dev left", "policy setdefault in accept"
        )
        daemon.vnic("xfrm", "state", "deleteall", "mode", "tunnel", "dev", "left")
        monitor.wait_for(lambda event: event["kind"] == "sa_deleted")
        kinds = {event["kind"] for event in monitor.events}
    assert {"subscribed", "sa_added", "policy_added", "policy_default_changed", "sa_deleted"} <= kinds
    assert [one["adapter"] for one in daemon.json("sa")] == [RIGHT, RIGHT]


def test_keys_for_wireshark_are_written_for_their_owner_alone(clean_pair: Pair, tmp_path: Path) -> None:
    clean_pair.daemon.batch(*pasted_lines(clean_pair))
    file = tmp_path / "esp_sa"
    done = vnic(clean_pair.daemon, ["sa", "export", "wireshark", str(file), "dev", "left"])
    assert (done.returncode, done.stderr) == (0, "")
    assert file.stat().st_mode & 0o777 == 0o600
    text = file.read_text()
    assert GCM_KEY[2:] in text
    assert len(text.splitlines()) == 2


def test_an_adapter_is_made_changed_and_deleted_by_words(daemon: Daemon, namespaces: Namespaces) -> None:
    host = namespaces.create("h", ipv6=False)
    device = namespaces.device("t")
    line = f"adapter add only tap {device} netns {host.name} address 10.77.0.1/24 mtu 1300 wire none"
    assert vnic(daemon, line).returncode == 0
    (state,) = daemon.json("adapter", "show", "only")
    assert (state["tap"]["mtu"], state["tap"]["mtu_default"], state["tap"]["up"]) == (1300, False, True)
    assert state["tap"]["addresses"] == ["10.77.0.1/24"]
    assert device in host.devices()

    # The only adapter need not be named, and the direction follows from its address.
    for ends, direction in (("src 10.77.0.1 dst 10.77.0.2", "out"), ("src 10.77.0.2 dst 10.77.0.1", "in")):
        key = GCM_KEY if direction == "out" else OTHER_KEY
        numbers = "replay-seq 5 replay-oseq 9"
        words = f"xfrm state add {ends} proto esp spi 0x700 {numbers} aead rfc4106(gcm(aes)) {key} 128"
        done = vnic(daemon, f"-j {words}")
        assert done.returncode == 0, done.stderr
        assert f'"direction":"{direction}"' in done.stdout
    assert [one["sa"]["sequence_number"] for one in daemon.json("sa")] == [9, 5]

    done = vnic(daemon, "adapter set only mtu 1200 nonip drop address 10.77.1.1/24 mac 02:00:00:00:77:01")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (state,) = daemon.json("adapter")
    assert (state["tap"]["mtu"], state["non_ip"], state["tap"]["mac"]) == (1200, "drop", "02:00:00:00:77:01")
    assert vnic(daemon, "adapter delete only").returncode == 0
    assert daemon.json("adapter") == []
    assert device not in host.devices()


def test_without_a_daemon_the_exit_code_is_3(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    done = vnic(daemon, "adapter")
    assert (done.returncode, done.stdout) == (3, "")
    assert "start vnicd" in done.stderr


def test_a_daemon_that_dies_under_the_monitor_is_exit_code_3(daemon: Daemon) -> None:
    monitor = subprocess.Popen(
        [sys.executable, "-m", "vnic", "-S", str(daemon.socket), "monitor"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert monitor.stdout is not None
        assert "subscribed" in monitor.stdout.readline()
        daemon.kill()
        _, err = monitor.communicate(timeout=10)
        assert monitor.returncode == 3
        assert "closed the connection" in err
    finally:
        monitor.kill()
        monitor.communicate()


def test_the_recipes_of_the_reference_work_in_a_shell(clean_pair: Pair, tmp_path: Path) -> None:
    """Backup and restore, a key through a pipe, and keys for tshark, as docs/commands.md has them."""
    daemon = clean_pair.daemon
    daemon.batch(*pasted_lines(clean_pair))
    capture = tmp_path / "capture.pcapng"
    with daemon.capture(LEFT, "wire", capture):
        assert ping(clean_pair.left, clean_pair.right.addresses[4], count=1) == 1
    before = settings(daemon)["sas"]
    script = r"""
        set -eu
        umask 077
        vnic -o -show-keys xfrm state | sed 's/\\/ /g; s/^/xfrm state add /' >backup
        mkdir -p keys/wireshark; vnic sa export wireshark keys/wireshark/esp_sa
        vnic sa flush
        vnic -b backup
        vnic sa add dev left in src 192.0.2.9 dst 192.0.2.1 esp spi 0x901 \
            aes-gcm-128 key file:<(printf 0x%040d 1)
        XDG_CONFIG_HOME=$PWD/keys tshark -o esp.enable_encryption_decode:TRUE -r capture.pcapng -Y icmp
    """
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ
        | {"VNIC_SOCKET": str(daemon.socket), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Echo (ping) request" in done.stdout
    assert "Echo (ping) reply" in done.stdout
    assert "seen by every process" not in done.stderr
    after = {(adapter, sa["spi"]): sa | {"sequence_number": 0} for adapter, _, sa in settings(daemon)["sas"]}
    assert after.pop((LEFT, 0x901))["encryption_key"] == f"{1:040d}"
    assert after == {(adapter, sa["spi"]): sa | {"sequence_number": 0} for adapter, _, sa in before}
