"""vnicd as a process, with real TAPs in namespaces: it starts, forwards, reloads, ends, and dies well.

left ── TAP ── adapter left ══ link ══ adapter right ── TAP ── right
10.9.0.1                                                        10.9.0.2
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from namespaces import Namespace, Namespaces
from relay import transfer
from vnicd import Vnicd, vnicd_in

from vnic.control import interface as api

pytestmark = pytest.mark.live

END_LIMIT_S = 2.0
IDLE_LIMIT = 0.01
RESIDENT_LIMIT_MIB = 80.0
IDLE_TIME_S = 4.0


@dataclass
class Site:
    """Two namespaces and a daemon that is to join them."""

    left: Namespace
    right: Namespace
    taps: tuple[str, str]
    vnicd: Vnicd

    def tables(self, left: str = "", right: str = 'wire = { link = "left" }') -> str:
        return "".join(
            f'[[adapter]]\nname = "{name}"\ntap = "{tap}"\nnetns = "{namespace.name}"\n'
            f'addresses = ["10.9.0.{host}/24", "fd09::{host}/64"]\n{more}\n'
            for name, tap, namespace, host, more in (
                ("left", self.taps[0], self.left, 1, left),
                ("right", self.taps[1], self.right, 2, right),
            )
        )

    def ping(self, address: str = "10.9.0.2", count: int = 3) -> None:
        self.left.run("ping", "-n", "-q", "-c", str(count), "-i", "0.05", "-W", "2", address)

    def taps_there(self) -> tuple[bool, bool]:
        return self.taps[0] in self.left.devices(), self.taps[1] in self.right.devices()

    def adapter(self, name: str) -> api.AdapterState:
        (state,) = self.vnicd.call(api.ListAdapters(name=name)).adapters
        return state


@pytest.fixture
def site(namespaces: Namespaces, tmp_path: Path) -> Iterator[Site]:
    left, right = namespaces.create("l", ipv6=True), namespaces.create("r", ipv6=True)
    with vnicd_in(tmp_path) as vnicd:
        yield Site(left, right, (namespaces.device("l0"), namespaces.device("r0")), vnicd)


def test_configured_adapters_carry_ping_and_tcp_in_clear(site: Site) -> None:
    site.vnicd.write(site.tables())
    site.vnicd.start()
    site.ping()
    site.ping("fd09::2")
    payload = os.urandom(4 << 20)
    with (
        site.left.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
        site.right.socket(socket.AF_INET, socket.SOCK_STREAM) as server,
    ):
        assert transfer(client, server, ("10.9.0.2", 5001), payload) == payload
    state = site.adapter("left")
    assert (state.wire.kind, state.wire.name, state.tap.mtu_default) == ("link", "right", True)
    assert state.card.tx_bypassed > 0
    assert "10.9.0.1/24" in state.tap.addresses


def test_end_is_quick_and_takes_only_its_own_devices(site: Site) -> None:
    site.left.ip("tuntap", "add", "vtother", "mode", "tap")
    site.vnicd.write(site.tables())
    site.vnicd.start()
    assert site.taps_there() == (True, True)
    assert site.vnicd.end() < END_LIMIT_S
    assert site.vnicd.process is not None
    assert site.vnicd.process.returncode == 0
    assert site.taps_there() == (False, False)
    assert "vtother" in site.left.devices()
    assert not site.vnicd.socket.exists()


def test_end_is_quick_with_clients_listening_and_a_recording(site: Site, tmp_path: Path) -> None:
    site.vnicd.write(site.tables())
    site.vnicd.start()
    for name in ("left", "right"):
        capture = api.Capture(place="tap", file=str(tmp_path / f"{name}.pcapng"))
        site.vnicd.call(api.SetAdapter(name=name, capture=capture))
    site.ping()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as silent:
        listener.connect(str(site.vnicd.socket))
        listener.sendall(b'{"method": "io.vnic.Adapter.Monitor", "more": true}\0')
        silent.connect(str(site.vnicd.socket))
        silent.sendall(b'{"method"')
        assert b"subscribed" in listener.recv(4096)
        assert site.vnicd.end() < END_LIMIT_S
        assert b"daemon_stopping" in listener.recv(4096)
    assert (tmp_path / "left.pcapng").stat().st_size > 1000


def test_killed_daemon_leaves_no_device_and_a_new_one_starts(site: Site) -> None:
    site.vnicd.write(site.tables())
    site.vnicd.start()
    site.vnicd.end(signal.SIGKILL)
    assert site.taps_there() == (False, False)
    assert site.vnicd.socket.exists()
    site.vnicd.start()
    site.ping()


def test_adapters_come_and_go_at_run_time(site: Site) -> None:
    site.vnicd.write("")
    site.vnicd.start()
    for name, namespace, tap, host in (
        ("left", site.left, site.taps[0], 1),
        ("right", site.right, site.taps[1], 2),
    ):
        wire = api.Wire(kind="link", name="left") if name == "right" else None
        site.vnicd.call(
            api.AddAdapter(
                name=name,
                tap=tap,
                netns=namespace.name,
                addresses=[f"10.9.0.{host}/24"],
                mac=f"02:00:00:00:00:0{host}",
                wire=wire,
            )
        )
    site.ping()
    assert site.adapter("left").tap.mac == "02:00:00:00:00:01"
    site.vnicd.call(api.DeleteAdapter(name="right"))
    assert site.taps_there() == (True, False)
    assert site.adapter("left").wire.kind == "none"


def test_hangup_leaves_untouched_adapters_running(site: Site, namespaces: Namespaces) -> None:
    third = namespaces.device("t0")
    site.vnicd.write(site.tables())
    site.vnicd.start()
    pinging = site.left.start("ping", "-n", "-q", "-c", "30", "-i", "0.05", "10.9.0.2")
    extra = f'[[adapter]]\nname = "third"\ntap = "{third}"\nnetns = "{site.left.name}"\n'
    site.vnicd.write(site.tables() + extra)
    site.vnicd.hang_up()
    assert third in site.left.devices()
    site.vnicd.write(site.tables())
    site.vnicd.hang_up()
    assert third not in site.left.devices()
    output, _ = pinging.communicate(timeout=20)
    assert " 0% packet loss" in output
    site.vnicd.write(site.tables(left="mtu = 1400\nnon_ip = 'drop'"))
    site.vnicd.hang_up()
    state = site.adapter("left")
    assert (state.tap.mtu, state.non_ip) == (1400, "drop")


def test_removed_device_fails_its_adapter_alone_and_hangup_mends_it(site: Site) -> None:
    site.vnicd.write(site.tables())
    site.vnicd.start()
    site.right.ip("link", "delete", site.taps[1])
    deadline = time.monotonic() + 5
    while site.adapter("right").state == "running":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert "somebody removed the device" in site.adapter("right").reason
    assert (site.adapter("left").state, site.adapter("left").wire.kind) == ("running", "none")
    site.vnicd.hang_up()
    site.ping()


def test_wire_on_a_veth_reaches_a_host_that_knows_nothing(site: Site, namespaces: Namespaces) -> None:
    outside = namespaces.create("o")
    inner, outer = namespaces.veth(site.right, outside, right_addresses=["10.9.0.3/24"])
    site.vnicd.write(
        site.tables(left=f'wire = {{ netdev = "{inner}", netns = "{site.right.name}" }}', right="")
    )
    site.vnicd.start()
    site.ping("10.9.0.3")
    assert site.adapter("left").wire.name == inner
    outside.ip("link", "delete", outer)
    deadline = time.monotonic() + 5
    while site.adapter("left").state == "running":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert site.adapter("right").state == "running"


def test_default_mtu_follows_the_policies(site: Site) -> None:
    site.vnicd.write(site.tables(right='wire = { link = "left" }\nmtu = 1450'))
    site.vnicd.start()
    policy = api.Policy(
        direction="out",
        selector=api.Selector(dst="10.9.0.2/32"),
        action="protect",
        templates=[api.Template(proto="esp", mode="tunnel", src="10.9.0.1", dst="10.9.0.2")],
    )
    for name in ("left", "right"):
        site.vnicd.call(api.AddPolicy(policy=policy, adapter=name))
    assert 1300 < site.adapter("left").tap.mtu < 1500
    assert (site.adapter("right").tap.mtu, site.adapter("right").tap.mtu_default) == (1450, False)
    site.vnicd.call(api.FlushPolicies())
    assert site.adapter("left").tap.mtu == 1500


def test_idle_daemon_is_small_and_quiet(site: Site) -> None:
    site.vnicd.write(site.tables())
    site.vnicd.start()
    site.ping()
    time.sleep(0.5)
    before = site.vnicd.cpu_s()
    time.sleep(IDLE_TIME_S)
    load = (site.vnicd.cpu_s() - before) / IDLE_TIME_S
    assert load < IDLE_LIMIT
    assert site.vnicd.resident_mib() < RESIDENT_LIMIT_MIB


def test_control_socket_answers_while_frames_are_moved(site: Site) -> None:
    site.vnicd.write(site.tables())
    site.vnicd.start()
    stop = threading.Event()

    def flood() -> None:
        with site.left.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not stop.is_set():
                sender.sendto(bytes(1400), ("10.9.0.2", 9))

    flooding = threading.Thread(target=flood, daemon=True)
    flooding.start()
    try:
        slowest = 0.0
        for _ in range(20):
            began = time.monotonic()
            site.vnicd.call(api.GetStatistics())
            slowest = max(slowest, time.monotonic() - began)
    finally:
        stop.set()
        flooding.join(5)
    assert site.adapter("left").tap_statistics.rx_frames > 1000
    assert slowest < 1.0


def test_asyncio_alone_moves_frames_too(namespaces: Namespaces, tmp_path: Path) -> None:
    left, right = namespaces.create("l"), namespaces.create("r")
    code = "import sys; sys.modules['uvloop'] = None; from vnic.daemon.main import main; sys.exit(main())"
    with vnicd_in(tmp_path, [sys.executable, "-c", code]) as vnicd:
        made = Site(left, right, (namespaces.device("l0"), namespaces.device("r0")), vnicd)
        vnicd.write(made.tables())
        vnicd.start()
        made.ping()
        assert vnicd.call(api.GetDaemon()).loop == "asyncio"
        right.ip("link", "delete", made.taps[1])
        deadline = time.monotonic() + 5
        while made.adapter("right").state == "running":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert vnicd.end() < END_LIMIT_S


def test_socket_of_systemd_is_used_and_left_in_place(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "activated.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        site.vnicd.write(site.tables())
        site.vnicd.socket = path
        # As systemd does it: descriptor 3, and the id of the process that is to use it.
        code = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True); "
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
            "os.execv(sys.argv[2], sys.argv[2:])"
        )
        site.vnicd.command = [sys.executable, "-c", code, str(listening.fileno()), *site.vnicd.command]
        site.vnicd.start(pass_fds=(listening.fileno(),))
        assert not (tmp_path / "vnic.sock").exists()
        site.ping()
        assert site.vnicd.end() < END_LIMIT_S
        assert path.exists()


def test_adapter_that_cannot_be_had_does_not_keep_the_others_from_starting(site: Site) -> None:
    broken = '[[adapter]]\nname = "broken"\ntap = "vtbroken"\nnetns = "no-such-namespace-here"\n'
    site.vnicd.write(site.tables() + broken)
    site.vnicd.start()
    site.ping()
    assert "ip netns add no-such-namespace-here" in site.vnicd.text()
    assert [one.name for one in site.vnicd.call(api.ListAdapters()).adapters] == ["left", "right"]


def test_memory_is_hidden_and_cannot_be_dumped(site: Site) -> None:
    site.vnicd.write("")
    site.vnicd.start()
    assert site.vnicd.process is not None
    limits = Path(f"/proc/{site.vnicd.process.pid}/limits").read_text()
    (line,) = (line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert line.split()[4:6] == ["0", "0"]
