"""Two namespaces, a daemon and the programs of one run, for the demo and the benchmarks.

Law: whatever a Lab makes carries its random token and is gone when the Lab is closed: on success, on failure,
on Ctrl-C and on SIGTERM. Processes end by their own id. No key is ever an argument of a process.

    namespace TOKEN-left                         namespace TOKEN-right
    ┌────────────────┐                           ┌────────────────┐
    │ TOKENl 10.9.0.1│                           │10.9.0.2 TOKENr │   TAPs of the adapters "left" and "right",
    └───────┬────────┘      ┌─────────────┐      └────────┬───────┘   joined by a link wire inside vnicd
            └───────────────┤    vnicd    ├───────────────┘
                            └─────────────┘
      ref 10.8.0.1 ─────────── veth pair ─────────── 10.8.0.2 ref    (the reference, where a run has one)

On request each side has a vnicd of its own, as two hosts have, and the wire goes over veth: `netdev`, a pair
of its own in namespaces of their own, where no host answers for it, or `udp`, the pair of the reference.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from pyroute2 import netns

BIN = Path(sys.executable).parent
"""Where this environment keeps `vnic` and `vnicd`."""

LEFT, RIGHT = "left", "right"
SIDES = (LEFT, RIGHT)
ADDRESS = {LEFT: "10.9.0.1", RIGHT: "10.9.0.2"}
REFERENCE_ADDRESS = {LEFT: "10.8.0.1", RIGHT: "10.8.0.2"}
OUTER_ADDRESS = {LEFT: "192.0.2.1", RIGHT: "192.0.2.2"}
"""The tunnel's ends. No interface has them: the card is a bump in the wire and keeps the Ethernet header."""

REFERENCE_DEVICE = "ref"
WIRE_DEVICE = "wire"
CONGESTION_CONTROL = "cubic"
IPERF_ATTEMPTS = 10
IPERF_DATAGRAM = 18
"""Bytes of payload that make a frame of 64 bytes, with its frame check sequence."""
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LabError(Exception):
    """A step of the run failed; the message says which, and what the program said."""


class Interrupted(BaseException):
    """A signal asks the run to end; not an Exception, so that no handler takes it for a failed step."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class _Spawning:
    """A signal that comes while a program is being started waits until the program can be ended again."""

    active = False
    signal = 0


def _spawn(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a program, or be interrupted and leave none behind."""
    _Spawning.active = True
    try:
        process = subprocess.Popen(command, **options)
    finally:
        _Spawning.active = False
    if _Spawning.signal:
        number, _Spawning.signal = _Spawning.signal, 0
        process.kill()
        process.wait()
        raise Interrupted(number)
    return process


def raise_on_signals() -> None:
    """Make Ctrl-C, SIGTERM and SIGHUP end the run through its clean-up."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        # A second Ctrl-C must not interrupt the clean-up that the first one asked for.
        for other in ENDING_SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        if _Spawning.active:
            _Spawning.signal = number
        else:
            raise Interrupted(number)

    for number in ENDING_SIGNALS:
        signal.signal(number, interrupt)


@dataclass(frozen=True)
class Algorithm:
    """One algorithm in the words of `ip xfrm state`."""

    kind: str
    """aead, enc, auth or auth-trunc."""
    name: str
    key_length: int
    """Bytes, the salt of a counter mode included."""
    icv_bits: int | None = None


@dataclass(frozen=True)
class Protection:
    """What every association of a run has in common."""

    protocol: str
    mode: str
    algorithms: tuple[Algorithm, ...]
    esn: bool = False
    around: Protection | None = None
    """What protects the result once more: AH over ESP."""

    def ends(self, tunnel: Mapping[str, str] = OUTER_ADDRESS) -> Mapping[str, str]:
        """The addresses that the associations name.

        Args:
            tunnel: ends of tunnels.
        """
        return tunnel if self.mode == "tunnel" else ADDRESS

    def batch(self) -> str:
        """Write both directions as a batch of `vnic` commands, with fresh keys: for standard input only."""
        return "".join(self.batches().values())

    def batches(self, tunnel: Mapping[str, str] = OUTER_ADDRESS) -> dict[str, str]:
        """The same, by the adapter that the commands are for."""
        lines: dict[str, list[str]] = {side: [] for side in SIDES}
        templates: dict[tuple[str, str], list[str]] = {}
        layer: Protection | None = self
        while layer is not None:
            layer._add(tunnel, lines, templates)
            layer = layer.around
        for (sender, receiver), several in templates.items():
            selector = f"src {ADDRESS[sender]}/32 dst {ADDRESS[receiver]}/32"
            for adapter, direction in ((sender, "out"), (receiver, "in")):
                lines[adapter].append(
                    f"xfrm policy add {selector} dir {direction} {' '.join(several)} "
                    f"offload packet dev {adapter}"
                )
        return {side: "\n".join(each) + "\n" for side, each in lines.items()}

    def _add(
        self,
        tunnel: Mapping[str, str],
        lines: dict[str, list[str]],
        templates: dict[tuple[str, str], list[str]],
    ) -> None:
        ends = self.ends(tunnel)
        shared = f"proto {self.protocol} reqid 1 mode {self.mode}"
        for spi, sender, receiver in ((SPI[LEFT], LEFT, RIGHT), (SPI[RIGHT], RIGHT, LEFT)):
            route = f"src {ends[sender]} dst {ends[receiver]}"
            templates.setdefault((sender, receiver), []).append(f"tmpl {route} {shared}")
            words = []
            for algorithm in self.algorithms:
                key = f"0x{secrets.token_hex(algorithm.key_length)}" if algorithm.key_length else '""'
                words += [algorithm.kind, algorithm.name, key]
                words += [str(algorithm.icv_bits)] if algorithm.icv_bits else []
            words += ["replay-window", "1024"]
            words += ["flag", "esn"] if self.esn else []
            for adapter, direction in ((sender, "out"), (receiver, "in")):
                offload = f"offload packet dev {adapter} dir {direction}"
                lines[adapter].append(
                    f"xfrm state add {route} proto {self.protocol} spi {spi:#x} reqid 1 mode {self.mode} "
                    f"{' '.join(words)} {offload}"
                )


SPI = {LEFT: 0x101, RIGHT: 0x202}
"""The SPI of what each side sends."""

GCM128_TUNNEL = Protection("esp", "tunnel", (Algorithm("aead", "rfc4106(gcm(aes))", 20, 128),))


class Lab:
    """The namespaces, processes and files of one run.

    Use it as a context manager. Methods raise LabError when a step fails.
    """

    def __init__(self, name: str) -> None:
        self.token = f"{name}{secrets.token_hex(3)}"
        self.namespace = {side: f"{self.token}-{side}" for side in SIDES}
        self.tap = {LEFT: f"{self.token}l", RIGHT: f"{self.token}r"}
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self.token}-"))
        self.socket = self.directory / "vnic.sock"
        self.daemon_log = self.directory / "vnicd.log"
        self.daemon: subprocess.Popen[bytes] | None = None
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._made: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, remove the namespaces with their devices, and the files; deaf to signals."""
        with _deaf():
            for process in reversed(self._processes):
                _end(process)
            for name in self._made:
                subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)
            shutil.rmtree(self.directory, ignore_errors=True)

    def leftovers(self) -> list[str]:
        """Name what of this run still exists; empty after a clean close."""
        found = [str(self.directory)] if self.directory.exists() else []
        found += [f"process {one.pid}" for one in self._processes if one.poll() is None]
        found += [name for name in self._made if Path("/run/netns", name).exists()]
        found += [tap for tap in self.tap.values() if Path("/sys/class/net", tap).exists()]
        return found

    def make_namespaces(self) -> None:
        """Make both namespaces: loopback up, IPv6 off (its housekeeping would blur the captures)."""
        self._make_silent(*self.namespace.values())

    def _make_silent(self, *names: str) -> None:
        for name in names:
            self._made.append(name)
            _run(["ip", "netns", "add", name])
            _run(["ip", "-n", name, "link", "set", "lo", "up"])
            with _inside(name):
                for scope in ("all", "default"):
                    switch = Path("/proc/sys/net/ipv6/conf", scope, "disable_ipv6")
                    if switch.exists():
                        switch.write_text("1")

    def make_reference(self) -> None:
        """Join the namespaces by a veth pair as well, the kernel's own link."""
        left, right = (self.namespace[side] for side in SIDES)
        pair = ["type", "veth", "peer", "name", REFERENCE_DEVICE, "netns", right]
        _run(["ip", "-n", left, "link", "add", REFERENCE_DEVICE, *pair])
        for side in SIDES:
            self.configure(side, REFERENCE_DEVICE, REFERENCE_ADDRESS[side])

    def configure(self, side: str, device: str, address: str) -> None:
        """Give a device of one namespace an address in a /24, and bring it up."""
        namespace = self.namespace[side]
        _run(["ip", "-n", namespace, "address", "add", f"{address}/24", "dev", device])
        _run(["ip", "-n", namespace, "link", "set", device, "up"])

    def socket_of(self, side: str = "") -> Path:
        """The control socket of the daemon of one side, or of both."""
        return self.directory / f"vnic-{side}.sock" if side else self.socket

    def start_daemon(self, timeout_s: float = 10.0, *, side: str = "", engine: str = "auto") -> None:
        """Start vnicd with a socket of its own and wait until it says that it is ready.

        Args:
            side: whose daemon; "" is one for both.
            engine: what it shall run on.
        """
        config = self.directory / f"vnic{side}.toml"
        config.write_text(f'[control]\nsocket = "{self.socket_of(side)}"\n')
        notify_path = self.directory / f"notify{side}"
        words = [] if engine == "auto" else ["--engine", engine]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, self.daemon_log.open("wb") as log:
            notify.bind(str(notify_path))
            notify.settimeout(0.1)
            self.daemon = self.start(
                [str(BIN / "vnicd"), "--config", str(config), *words],
                stderr=log.fileno(),
                env=os.environ | {"NOTIFY_SOCKET": str(notify_path)},
            )
            self._daemons.append(self.daemon)
            deadline = time.monotonic() + timeout_s
            while time.monotonic() < deadline and self.daemon.poll() is None:
                with contextlib.suppress(TimeoutError):
                    if b"READY=1" in notify.recv(4096).splitlines():
                        return
        raise LabError(f"vnicd did not become ready within {timeout_s:.0f} s; its log:\n{self.log_tail()}")

    def log_tail(self, lines: int = 15) -> str:
        return "\n".join(self.daemon_log.read_text(errors="replace").splitlines()[-lines:])

    def vnic(self, *words: str, stdin: str = "", side: str = "") -> str:
        """Run one `vnic` command, or with the words -b - a batch from `stdin`; return what it printed.

        Args:
            side: whose daemon; "" is the one for both.
        """
        return _run([str(BIN / "vnic"), "-S", str(self.socket_of(side)), *words], stdin=stdin)

    def vnic_json(self, *words: str, side: str = "") -> Any:
        return json.loads(self.vnic("-j", *words, side=side))

    def make_adapters(self) -> None:
        """Add the two adapters, joined by a link wire."""
        for side, wire in ((LEFT, ["none"]), (RIGHT, ["link", LEFT])):
            address = f"{ADDRESS[side]}/24"
            place = [self.tap[side], "netns", self.namespace[side], "address", address]
            self.vnic("adapter", "add", side, "tap", *place, "wire", *wire)

    def protect(self, protection: Protection) -> None:
        """Install associations and policies for both directions, keys over standard input."""
        self.vnic("-b", "-", stdin=protection.batch())

    def make_hosts(self, wire: str, protection: Protection, *, engine: str = "auto") -> None:
        """Make a daemon and an adapter for each side, with a wire between the namespaces, and protect it.

        Args:
            wire: "netdev", over a veth pair of its own, or "udp", over that of the reference.
        """
        place = self.namespace
        if wire == "netdev":
            place = {side: f"{name}-wire" for side, name in self.namespace.items()}
            self._make_silent(*place.values())
            pair = ["type", "veth", "peer", "name", WIRE_DEVICE, "netns", place[RIGHT]]
            _run(["ip", "-n", place[LEFT], "link", "add", WIRE_DEVICE, *pair])
            for namespace in place.values():
                _run(["ip", "-n", namespace, "link", "set", WIRE_DEVICE, "up"])
        tunnel = REFERENCE_ADDRESS if wire == "udp" else OUTER_ADDRESS
        batches = protection.batches(tunnel)
        for side, far in ((LEFT, RIGHT), (RIGHT, LEFT)):
            self.start_daemon(side=side, engine=engine)
            tap = [self.tap[side], "netns", self.namespace[side], "address", f"{ADDRESS[side]}/24"]
            ends = [WIRE_DEVICE] if wire == "netdev" else [tunnel[side], tunnel[far]]
            words = [wire, *ends, "netns", place[side]]
            self.vnic("adapter", "add", side, "tap", *tap, "wire", *words, side=side)
            self.vnic("-b", "-", stdin=batches[side], side=side)

    def start(
        self,
        command: Sequence[str],
        *,
        stdout: int = subprocess.DEVNULL,
        stderr: int = subprocess.DEVNULL,
        env: dict[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program that `close` ends. It does not see the terminal's Ctrl-C."""
        process: subprocess.Popen[bytes] = _spawn(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=env, start_new_session=True
        )
        self._processes.append(process)
        return process

    def run_in(
        self, side: str, command: Sequence[str], *, ok: Sequence[int] = (0,), timeout_s: float = 60
    ) -> str:
        """Run a program inside one namespace and return its standard output."""
        return _run(["ip", "netns", "exec", self.namespace[side], *command], ok=ok, timeout_s=timeout_s)

    def socket_in(self, side: str) -> socket.socket:
        """Make a TCP socket that belongs to one namespace."""
        with _inside(self.namespace[side]):
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    def start_iperf_server(self) -> None:
        """Start iperf3's server on the right, for all addresses, and wait until it listens."""
        command = ["ip", "netns", "exec", self.namespace[RIGHT], "iperf3", "--server", "--forceflush"]
        server = self.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(line.decode(errors="replace"))
            if "listening" in said[-1]:
                # Nothing reads the pipe from here on. It holds 64 KiB; a test writes about 1 KiB to it.
                return
        raise LabError(f"iperf3 did not start to listen: {''.join(said)}")

    def iperf_gbps(self, address: str, seconds: float) -> float:
        """Send one TCP stream from left to an address of the right; return what arrived, in Gbit/s.

        The stream asks for cubic by itself: a namespace other than the first may not be given a default
        congestion control that the machine has not opened to everybody.
        """
        options = ["--client", address, "--time", f"{seconds:g}", "--congestion", CONGESTION_CONTROL]
        for _ in range(IPERF_ATTEMPTS):
            # With --json an error is in the report, and the exit code may be 0 all the same.
            said = self.run_in(LEFT, ["iperf3", *options, "--json"], ok=(0, 1), timeout_s=seconds + 20)
            report = json.loads(said)
            if "error" not in report:
                break
            if "busy" not in report["error"]:
                raise LabError(f"iperf3 to {address}: {report['error']}")
            time.sleep(0.2)  # the server has not quite ended the test before
        else:
            raise LabError(f"the server of iperf3 stayed busy for {IPERF_ATTEMPTS} attempts")
        used = {report["end"][f"{end}_tcp_congestion"] for end in ("sender", "receiver")}
        if used != {CONGESTION_CONTROL}:
            raise LabError(f"the TCP stream used {', '.join(sorted(used))} instead of {CONGESTION_CONTROL}")
        return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9

    def iperf_datagrams(self, address: str, rate: float, seconds: float = 1.0) -> tuple[float, float]:
        """Send small datagrams from left to an address of the right.

        Args:
            rate: datagrams a second that are wanted.

        Returns:
            Datagrams a second that were sent, and that arrived.
        """
        bits = int(rate * IPERF_DATAGRAM * 8)
        options = ["--client", address, "--udp", "--length", str(IPERF_DATAGRAM), "--bitrate", str(bits)]
        options += ["--time", f"{seconds:g}", "--window", "4M"]
        for _ in range(IPERF_ATTEMPTS):
            said = self.run_in(LEFT, ["iperf3", *options, "--json"], ok=(0, 1), timeout_s=seconds + 20)
            report = json.loads(said)
            if "error" not in report:
                break
            if "busy" not in report["error"]:
                raise LabError(f"iperf3 to {address}: {report['error']}")
            time.sleep(0.2)
        else:
            raise LabError(f"the server of iperf3 stayed busy for {IPERF_ATTEMPTS} attempts")
        total = report["end"]["sum"]
        sent = float(total["packets"])
        return sent / total["seconds"], (sent - total["lost_packets"]) / total["seconds"]

    def cpu_seconds(self) -> float:
        """Processor time that the daemons have used so far."""
        ticks = 0
        for daemon in self._daemons:
            # Fields 14 and 15 of the whole line, counted after the parenthesised name (proc_pid_stat(5)).
            fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident_mib(self) -> float:
        assert self.daemon is not None
        status = Path(f"/proc/{self.daemon.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024


@contextlib.contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """Let this thread make sockets and read settings in a namespace."""
    netns.pushns(namespace)
    try:
        yield
    finally:
        netns.popns()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    before = [signal.signal(number, signal.SIG_IGN) for number in ENDING_SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(ENDING_SIGNALS, before, strict=True):
            signal.signal(number, handler)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _run(command: Sequence[str], *, stdin: str = "", ok: Sequence[int] = (0,), timeout_s: float = 30) -> str:
    pipe = subprocess.PIPE
    with _spawn(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            output, errors = process.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise LabError(f"`{' '.join(command)}` did not end within {timeout_s:g} s") from error
        except BaseException:
            process.kill()
            raise
    if process.returncode not in ok:
        said = (errors or output).strip()
        raise LabError(f"`{' '.join(command)}` failed with exit code {process.returncode}: {said}")
    assert isinstance(output, str)
    return output
