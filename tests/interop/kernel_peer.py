"""A real Linux kernel as the IPsec peer of an adapter: User-Mode Linux, an ordinary process.

Law: the kernel is Debian's, unpatched; both ends get the same lines of `ip xfrm`. What it needs is in
namespaces of the test and a directory of its own, and is gone when it ends, also when a test failed.

    host ── TAP ── adapter "card" ── veth ═══ veth ── bridge ── TAP ── eth0 of the guest
    10.9.0.1, 192.0.2.1                 (the wire)                     10.9.0.2, 192.0.2.2
    fd09::1, 2001:db8::1                                               fd09::2, 2001:db8::2
                                             and an address for each way to protect: 10.9.1.1, fd09:1::1 …

Source: user-mode-linux(1); the arguments are those of Debian's 6.1.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kernel_guest
from card import (
    ADDRESSES,
    COMMAND_TIMEOUT_S,
    LEFT,
    OUTER_ADDRESSES,
    PREFIX_LENGTH,
    RIGHT,
    Association,
    Daemon,
    Host,
    Layer,
    associations,
    drops_of,
    ip_batch,
)
from namespaces import Namespace, Namespaces
from oid_door import Door

CARD = "card"
UML = "linux.uml"
MEMORY = "256M"
BOOT_TIMEOUT_S = 30.0
SERIAL_LIMIT = 2048
"""Bytes of a request by the serial line."""

MTU = 1500
"""Of the guest's device, which can have no more, and of the wire."""

WRAP = 1 << 32
NEAR_WRAP = WRAP - 3
"""Where the numbers of ESN cases begin behind: the fourth packet has an upper half of 1."""

WINDOW = 1024
PORT = 7009
"""Of datagrams that nobody answers."""

NETWORKS = {4: "10.9.0.0/16", 6: "fd09::/16"}
_PER_BYTE = 250
_PR_SET_PDEATHSIG = 1


@functools.cache
def missing() -> str | None:
    """Say what this machine lacks for the guest, or None."""
    if (machine := os.uname().machine) != "x86_64":
        return f"kernel lacks a User-Mode Linux for {machine}"
    for program, package in ((UML, "user-mode-linux"), ("gcc", "gcc"), ("ip", "iproute2")):
        if shutil.which(program) is None:
            return f"needs {program} of the Debian package {package}: run scripts/setup"
    return None


# ------------------------------------------------------------------------------------------ the guest


class GuestError(AssertionError):
    """The guest could not do what it was asked, or is gone."""


class Guest:
    """One User-Mode Linux; its end of the traffic is `kernel_guest`."""

    def __init__(self, directory: Path, namespace: Namespace, tap: str, mac: str) -> None:
        """Boot it, and wait until it answers.

        Args:
            directory: for its console, and for what UML keeps on disk while it runs.
            namespace: where its TAP is, and the process is to be.
            mac: of its eth0.
        """
        self._directory = directory
        self._console = directory / "guest.log"
        library = _xstate_library(directory)
        init = Path(kernel_guest.__file__).resolve()
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        self._pending = b""
        self._lost = False
        try:
            with self._console.open("wb") as console:
                self._process = subprocess.Popen(
                    [
                        *("ip", "netns", "exec", namespace.name),
                        # Its processes end with the first of them, and that with this one.
                        *("unshare", "--pid", "--fork", "--kill-child", UML),
                        *(f"mem={MEMORY}", f"uml_dir={directory}", "umid=guest", "noreboot"),
                        *("rootfstype=hostfs", "rootflags=/", "ro", "quiet", f"init={init}"),
                        *("con=null", "con0=null,fd:2", "ssl=null", f"ssl0=fd:{requests},fd:{answers}"),
                        *("panic=-1", "oops=panic", "random.trust_cpu=1", f"eth0=tuntap,{tap},{mac}"),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=console,
                    pass_fds=(requests, answers),
                    env=os.environ | {"LD_PRELOAD": str(library)},
                    # Its processes are a group of their own, which ends as one.
                    start_new_session=True,
                    preexec_fn=_end_with_the_test,
                )
        finally:
            os.close(requests)
            os.close(answers)
        try:
            self.release: str = self._answer(BOOT_TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    @property
    def console(self) -> str:
        return self._console.read_text(errors="replace")

    def call(self, operation: str, *, wait_s: float = 60.0, **words: Any) -> Any:
        """Ask for one of `kernel_guest.OPERATIONS`.

        Raises:
            GuestError: it failed, or there was no answer in time.
        """
        if self._lost:
            raise GuestError("the guest was lost before")
        data = json.dumps({"operation": operation} | words).encode() + b"\n"
        with contextlib.ExitStack() as stack:
            if len(data) > SERIAL_LIMIT:
                # By a file that the guest sees as well: its serial line loses what it cannot hold.
                file = stack.enter_context(tempfile.NamedTemporaryFile(dir=self._directory))
                file.write(data)
                file.flush()
                data = json.dumps({"file": file.name}).encode() + b"\n"
            os.write(self._requests, data)
            return self._answer(wait_s)

    def _answer(self, wait_s: float) -> Any:
        deadline = time.monotonic() + wait_s
        while b"\n" not in self._pending:
            readable, _, _ = select.select([self._answers], [], [], max(deadline - time.monotonic(), 0))
            part = os.read(self._answers, 1 << 16) if readable else b""
            if not part:
                # A late answer would be taken for that to the next request.
                self._lost = True
                what = "ended" if readable else "did not answer"
                raise GuestError(f"the guest {what}; its console:\n{self.console[-4000:]}")
            self._pending += part
        line, _, self._pending = self._pending.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise GuestError(answer["error"])
        return answer["result"]

    def run(self, *argv: str, text: str = "") -> str:
        """Run a program inside to its end; gives what it printed."""
        done = self.call("run", argv=argv, text=text)
        if done["status"]:
            said = done["output"] + done["errors"]
            raise GuestError(f"{' '.join(argv)} ended with {done['status']}:\n{said}")
        return done["output"]

    def ip(self, *lines: str) -> str:
        """Run lines of `ip`; the first that is refused ends them."""
        return self.run("ip", "-b", "-", text="\n".join((*lines, "")))

    def xfrm_statistics(self) -> dict[str, int]:
        """The counters of /proc/net/xfrm_stat that are not zero."""
        lines = self.call("read", path="/proc/net/xfrm_stat").splitlines()
        counters = {name: int(value) for name, value in (line.split() for line in lines)}
        return {name: value for name, value in counters.items() if value}

    def sas(self) -> dict[int, State]:
        """Its SAs, by SPI."""
        return {state.spi: state for state in map(State.read, _states(self.run("ip", "-s", "xfrm", "state")))}

    def close(self) -> None:
        """End it, and all its processes. Idempotent."""
        if self._process.poll() is None:
            # Its own end reaps the processes it traces; what is left after that is killed.
            with contextlib.suppress(OSError, GuestError):
                self.call("halt", wait_s=2)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(5)
        for end in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                os.close(end)


def _end_with_the_test() -> None:
    # Also with a test run that was killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _xstate_library(directory: Path) -> Path:
    source = Path(__file__).with_name("kernel_xstate.c")
    library = directory / "xstate.so"
    subprocess.run(
        ["gcc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True, timeout=COMMAND_TIMEOUT_S
    )
    return library


def _states(listing: str) -> list[str]:
    return [part for part in re.split(r"^(?=src )", listing, flags=re.MULTILINE) if part.strip()]


@dataclass(frozen=True)
class State:
    """What the kernel says of one of its SAs."""

    spi: int
    packets: int
    duplicate: int
    too_old: int
    wrong_icv: int
    text: str

    @classmethod
    def read(cls, text: str) -> State:
        """From its part of `ip -s xfrm state`."""

        def number(pattern: str) -> int:
            found = re.search(pattern, text)
            assert found is not None, text
            return int(found[1], 0)

        return cls(
            number(r"spi (0x[0-9a-f]+)"),
            number(r"(\d+)\(packets\)"),
            number(r"replay (\d+) failed"),
            number(r"replay-window (\d+) replay"),
            number(r"failed (\d+)$"),
            text,
        )


# ------------------------------------------------------------------------------------------ the lines


@dataclass(frozen=True)
class Case:
    """One way to protect, between the host and an address of the guest of its own."""

    name: str
    layers: tuple[Layer, ...]
    """Innermost first."""
    version: int
    esn: bool = False
    outer_version: int = 0
    """Of a tunnel's outer header; 0 is `version`."""
    last_number: int | None = None
    """Sequence number to begin behind, both ways; None is near the wrap with ESN, and 0 without."""
    window: int = WINDOW
    flags: str = ""
    """Flags beside esn."""
    ports: tuple[int, int] | None = None
    """With UDP encapsulation, those of the host and of the guest."""


def state_line(sa: Association) -> str:
    """A line that adds an SA, for `ip` and for `vnic`; holds the keys."""
    words = [f"xfrm state add {sa.identity} reqid {sa.reqid} mode {sa.mode}"]
    for algorithm, key in zip(sa.suite.algorithms, sa.keys, strict=True):
        words += [algorithm.word, algorithm.name, f"0x{key.hex()}" if key else '""']
        words += [str(algorithm.icv_bits)] if algorithm.icv_bits else []
    words += [f"replay-window {sa.window}"]
    if sa.last_number:
        low, high = sa.last_number & 0xFFFFFFFF, sa.last_number >> 32
        words += [f"replay-seq {low} replay-oseq {low}"]
        words += [f"replay-seq-hi {high} replay-oseq-hi {high}"] if sa.esn else []
    flags = [*(["esn"] if sa.esn else []), *sa.flags.split()]
    words += ["flag", *flags] if flags else []
    return " ".join(words + sa.encapsulation)


def policy_line(source: str, destination: str, direction: str, sas: Iterable[Association]) -> str:
    """A line that adds a policy, for `ip` and for `vnic`."""
    templates = " ".join(sa.template() for sa in sas)
    return f"xfrm policy add src {source} dst {destination} dir {direction} {templates}"


class Flow:
    """What the host and one address of the guest say to each other.

    Attributes:
        near, far: the addresses of the host and of the guest.
        forth, back: associations from and to the host, innermost first.
    """

    def __init__(self, case: Case, number: int) -> None:
        high, low = divmod(number, _PER_BYTE)
        self.case = case
        self.near = ADDRESSES[LEFT][case.version]
        self.far = f"10.9.{1 + high}.{1 + low}" if case.version == 4 else f"fd09:1::{1 + number:x}"
        outer = case.outer_version or case.version
        ends = OUTER_ADDRESSES[LEFT][outer], OUTER_ADDRESSES[RIGHT][outer]
        begin = case.last_number if case.last_number is not None else NEAR_WRAP if case.esn else 0
        options = {"esn": case.esn, "last_number": begin, "window": case.window, "flags": case.flags}
        there = case.ports
        back = None if there is None else (there[1], there[0])
        self.forth = associations(case.layers, self.near, self.far, *ends, ports=there, **options)
        self.back = associations(case.layers, self.far, self.near, *reversed(ends), ports=back, **options)

    def states(self) -> list[str]:
        """Lines that are the same on both sides."""
        return [state_line(sa) for sa in (*self.forth, *self.back)]

    def policies(self, forth: str, back: str) -> list[str]:
        """Lines that differ in which way is out and which is in, as seen from one side."""
        return [
            policy_line(self.near, self.far, forth, self.forth),
            policy_line(self.far, self.near, back, self.back),
        ]


# ------------------------------------------------------------------------------------------- together


class KernelPeer:
    """An adapter, its host, and a kernel at the far end of the wire.

    Attributes:
        daemon, host, guest: its parts.
        wire: the namespace of the wire.
        card_end, guest_end: devices of the wire: what is sent out of them goes to the card or to the guest.
        flows: by the name of their case.
    """

    def __init__(self, directory: Path, daemon: Daemon, namespaces: Namespaces) -> None:
        space, self.wire = namespaces.create("h"), namespaces.create("w", ipv6=False)
        space.write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")
        near, self.card_end = namespaces.veth(self.wire, self.wire)
        self.guest_end, self._bridge = namespaces.device("u"), namespaces.device("x")
        lines = [f"link add {self._bridge} type bridge mcast_snooping 0", f"link set {self._bridge} up"]
        lines += [f"tuntap add {self.guest_end} mode tap", f"link set {self.guest_end} up"]
        lines += [f"link set {end} master {self._bridge}" for end in (self.card_end, self.guest_end)]
        for line in lines:
            self.wire.ip(*line.split())
        self.daemon = daemon
        self.flows: dict[str, Flow] = {}
        addresses = {LEFT: [], RIGHT: []}
        for end, version in ((end, version) for end in addresses for version in (4, 6)):
            for table in (ADDRESSES, OUTER_ADDRESSES):
                addresses[end].append(f"{table[end][version]}/{PREFIX_LENGTH[version]}")
        self.host = Host(CARD, space, namespaces.device("h"), ADDRESSES[LEFT])
        words = " ".join(f"address {cidr}" for cidr in addresses[LEFT])
        place = f"tap {self.host.device} netns {space.name}"
        daemon.batch(f"adapter add {CARD} {place} {words} wire netdev {near} netns {self.wire.name}")
        mac = daemon.adapter(CARD)["tap"]["mac"]
        guest_mac = "02:00:00:00:09:02"
        self.guest = Guest(directory, self.wire, self.guest_end, guest_mac)
        self._echo: kernel_guest.Echo | None = None
        try:
            # Neighbours are known beforehand: policies from address to address protect solicitations as well.
            self.guest.ip(
                *(f"address add {cidr} dev eth0 {'nodad' * (':' in cidr)}" for cidr in addresses[RIGHT]),
                *self._neighbours(LEFT, "eth0", mac),
            )
            at = self.host.device
            routes = [f"route add {net} via {ADDRESSES[RIGHT][v]} dev {at}" for v, net in NETWORKS.items()]
            ip_batch(space, "\n".join((*self._neighbours(RIGHT, at, guest_mac), *routes, "")))
            self._echo = kernel_guest.Echo(space.socket)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _neighbours(end: str, device: str, mac: str) -> list[str]:
        addresses = [table[end][version] for table in (ADDRESSES, OUTER_ADDRESSES) for version in (4, 6)]
        return [f"neighbour replace {one} lladdr {mac} dev {device} nud permanent" for one in addresses]

    def close(self) -> None:
        if self._echo is not None:
            self._echo.close()
        self.guest.close()

    def protect(self, cases: Sequence[Case]) -> None:
        """Put cases into force on both sides, with the same lines."""
        flows = [Flow(case, len(self.flows) + number) for number, case in enumerate(cases)]
        self.flows |= {flow.case.name: flow for flow in flows}
        states = [line for flow in flows for line in flow.states()]
        length = {4: "32", 6: "128 nodad"}
        self.guest.ip(
            *(f"address replace {flow.far}/{length[flow.case.version]} dev eth0" for flow in flows),
            *states,
            *(line for flow in flows for line in flow.policies("in", "out")),
        )
        self.daemon.batch(*states, *(line for flow in flows for line in flow.policies("out", "in")))

    def unprotect(self) -> None:
        """Take every policy and association away, on both sides."""
        lines = "xfrm policy flush", "xfrm state flush"
        self.guest.ip(*lines)
        self.daemon.batch(*(f"{line} dev {CARD}" for line in lines))
        self.flows.clear()

    def ping(self, flow: Flow, sizes: Iterable[int] = (56,), *, wait_s: float = 3.0) -> dict[str, list[int]]:
        """Send echo requests of these sizes from both sides; give those without a reply, by who asked."""
        sizes = list(sizes)
        return {
            "host": kernel_guest.ping(self.host.namespace.socket, flow.near, flow.far, sizes, wait_s),
            "guest": self.guest.call("ping", source=flow.far, to=flow.near, sizes=sizes, timeout_s=wait_s),
        }

    def udp(self, flow: Flow, sizes: Iterable[int], *, wait_s: float = 3.0) -> dict[str, list[int]]:
        """Have datagrams of these sizes echoed, from both sides; give those that did not come back so."""
        sizes = list(sizes)
        return {
            "host": kernel_guest.udp(self.host.namespace.socket, flow.near, flow.far, sizes, wait_s),
            "guest": self.guest.call("udp", source=flow.far, to=flow.near, sizes=sizes, timeout_s=wait_s),
        }

    def tcp(self, flow: Flow, length: int, seed: int = 1) -> dict[str, tuple[str, str]]:
        """Have random bytes echoed to each side; give the SHA-256 of what went and of what came back."""
        words = {"length": length, "seed": seed}
        return {
            "host": kernel_guest.tcp(self.host.namespace.socket, flow.near, flow.far, **words),
            "guest": tuple(self.guest.call("tcp", source=flow.far, to=flow.near, **words)),
        }

    def speak(self, flow: Flow, payloads: Iterable[bytes], *, from_guest: bool) -> None:
        """Send datagrams from one side to the other, to PORT of it, without awaiting anything."""
        if from_guest:
            data = [payload.hex() for payload in payloads]
            self.guest.call("send", source=flow.far, to=flow.near, port=PORT, payloads=data)
            return
        with self.host.namespace.socket(kernel_guest.FAMILIES[flow.case.version], socket.SOCK_DGRAM) as end:
            end.bind((flow.near, PORT))
            for payload in payloads:
                end.sendto(payload, (flow.far, PORT))

    @contextlib.contextmanager
    def hearing(self, flow: Flow, *, at_guest: bool) -> Iterator[Callable[[int], list[bytes]]]:
        """Listen at PORT of one side; gives what hears the next so many datagrams."""
        if at_guest:
            self.guest.call("listen", address=flow.far, port=PORT)
            yield lambda count: [bytes.fromhex(one) for one in self.guest.call("hear", count=count)]
            return
        with self.host.namespace.socket(kernel_guest.FAMILIES[flow.case.version], socket.SOCK_DGRAM) as end:
            end.bind((flow.near, PORT))
            yield functools.partial(kernel_guest.hear, end)

    def drops(self) -> dict[str, dict[str, int]]:
        """What each side dropped so far, by its own names."""
        # Over the control socket itself: a process for each question would be most of the time.
        with Door(self.daemon.socket) as door:
            (statistics,) = door.call("GetStatistics", adapter=CARD, sas=False)["adapters"]
        return {"card": drops_of(statistics), "kernel": self.guest.xfrm_statistics()}

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Let nothing pass the wire in the block; what either side sends can be seen at its own end."""
        self.wire.ip("link", "set", self.guest_end, "nomaster")
        try:
            yield
        finally:
            self.wire.ip("link", "set", self.guest_end, "master", self._bridge)

    def inject(self, frame: bytes, *, to_guest: bool) -> None:
        """Put a frame on the wire, to one of its ends."""
        with self.wire.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as end:
            end.bind((self.guest_end if to_guest else self.card_end, 0))
            end.send(frame)


@contextlib.contextmanager
def kernel_peer(directory: Path) -> Iterator[KernelPeer]:
    """A card with a kernel as its peer, without any protection yet, until the block ends."""
    namespaces = Namespaces("vk")
    daemon = Daemon(directory)
    try:
        daemon.start()
        with contextlib.closing(KernelPeer(directory, daemon, namespaces)) as peer:
            yield peer
    finally:
        daemon.close()
        namespaces.close()
