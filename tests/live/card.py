"""A daemon, its adapters and their associations, for one test on live frames.

Law: the real vnicd as a process of its own, driven by the real vnic as a user would; nothing of the package
is called here. Keys go by standard input. What a test makes is gone when it ends, also when it failed.

    host "left"                                                            host "right"
    TAP ── adapter left ══════ wire: link, netdev (a veth) or tap ══════ adapter right ── TAP
    10.9.0.1  fd09::1                                                      10.9.0.2  fd09::2
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from namespaces import Namespace, Namespaces

from tests import engines

BIN = Path(sys.executable).parent
"""Where this environment keeps `vnic` and `vnicd`."""

LEFT, RIGHT = "left", "right"
ADDRESSES = {LEFT: {4: "10.9.0.1", 6: "fd09::1"}, RIGHT: {4: "10.9.0.2", 6: "fd09::2"}}
OUTER_ADDRESSES = {
    LEFT: {4: "192.0.2.1", 6: "2001:db8::1"},
    RIGHT: {4: "192.0.2.2", 6: "2001:db8::2"},
}
"""The tunnel's ends. No interface has them: the card is a bump in the wire and keeps the Ethernet header."""

FURTHER = {4: "10.9.1.{}", 6: "fd09:1::{:x}"}
FURTHER_NETWORK = {4: "10.9.1.0/24", 6: "fd09:1::/64"}
"""Where hosts get addresses of their own for single associations."""

PREFIX_LENGTH = {4: 24, 6: 64}
HOST_LENGTH = {4: 32, 6: 128}

READY_TIMEOUT_S = 20.0
COMMAND_TIMEOUT_S = 30.0
END_TIMEOUT_S = 5.0


# -------------------------------------------------------------------------------------- associations


@dataclass(frozen=True)
class Algorithm:
    """One algorithm in the words of `ip xfrm state`."""

    word: str
    """aead, enc, auth or auth-trunc."""
    name: str
    key_length: int
    """Bytes, the salt of a counter mode included."""
    icv_bits: int | None = None
    """What stands behind the key, if anything does."""


@dataclass(frozen=True)
class Suite:
    """All algorithms of one ESP or AH association."""

    name: str
    protocol: str
    algorithms: tuple[Algorithm, ...]

    @property
    def encrypts(self) -> bool:
        return self.protocol == "esp" and not self.name.startswith("null")


def _enc(name: str, bits: int) -> Algorithm:
    return Algorithm("enc", name, bits // 8)


def _gcm(bits: int, icv_bits: int) -> Algorithm:
    return Algorithm("aead", "rfc4106(gcm(aes))", bits // 8 + 4, icv_bits)


def _gmac(bits: int) -> Algorithm:
    return Algorithm("aead", "rfc4543(gcm(aes))", bits // 8 + 4, 128)


CIPHERS = {
    "null": Algorithm("enc", "ecb(cipher_null)", 0),
    "des-cbc": _enc("cbc(des)", 64),
    "3des-cbc": _enc("cbc(des3_ede)", 192),
    "aes-cbc-128": _enc("cbc(aes)", 128),
    "aes-cbc-192": _enc("cbc(aes)", 192),
    "aes-cbc-256": _enc("cbc(aes)", 256),
}
MACS = {
    "md5-96": Algorithm("auth-trunc", "hmac(md5)", 16, 96),
    "sha1-96": Algorithm("auth", "hmac(sha1)", 20),
    "sha256-96": Algorithm("auth", "hmac(sha256)", 32),
    "sha256-128": Algorithm("auth-trunc", "hmac(sha256)", 32, 128),
}
ESP_SUITES = (
    *(
        Suite(f"{cipher}+{mac}", "esp", (CIPHERS[cipher], MACS[mac]))
        for cipher, mac in itertools.product(CIPHERS, MACS)
    ),
    *(
        Suite(f"aes-gcm-{bits}-icv{icv}", "esp", (_gcm(bits, icv),))
        for bits, icv in itertools.product((128, 192, 256), (64, 96, 128))
    ),
    *(Suite(f"null+gmac-{bits}", "esp", (_gmac(bits),)) for bits in (128, 192, 256)),
)
AH_SUITES = (
    *(Suite(f"ah-{name}", "ah", (mac,)) for name, mac in MACS.items()),
    *(Suite(f"ah-gmac-{bits}", "ah", (_gmac(bits),)) for bits in (128, 192, 256)),
)
SUITES = {suite.name: suite for suite in (*ESP_SUITES, *AH_SUITES)}
"""Every way to protect that both offload versions have."""

GCM = SUITES["aes-gcm-128-icv128"]
CBC = SUITES["aes-cbc-256+sha256-128"]
AH = SUITES["ah-sha256-128"]


@dataclass(frozen=True)
class Layer:
    """One template of a policy."""

    suite: Suite
    mode: str


_numbers = itertools.count(0x1000)
"""SPIs, which are reqids as well: no two associations of a test run share one."""


@dataclass(frozen=True)
class Association:
    """One SA with its keys, as both of its ends have it."""

    suite: Suite
    mode: str
    source: str
    destination: str
    esn: bool = False
    last_number: int = 0
    """Sequence number to begin behind."""
    window: int = 1024
    flags: str = ""
    """Flags beside esn."""
    ports: tuple[int, int] | None = None
    """Of the UDP header in front of ESP, source first; None without one."""
    number: int = field(default_factory=lambda: next(_numbers))
    reqid: int = 0
    """0 is `number`."""
    keys: tuple[bytes, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not self.keys:
            keys = tuple(secrets.token_bytes(one.key_length) for one in self.suite.algorithms)
            object.__setattr__(self, "keys", keys)
        if not self.reqid:
            object.__setattr__(self, "reqid", self.number)

    @property
    def spi(self) -> int:
        return self.number

    @property
    def encapsulation(self) -> list[str]:
        """The words that put it into UDP."""
        if self.ports is None:
            return []
        anybody = "::" if ":" in self.destination else "0.0.0.0"
        return [f"encap espinudp {self.ports[0]} {self.ports[1]} {anybody}"]

    @property
    def identity(self) -> str:
        """The words that name it."""
        return f"src {self.source} dst {self.destination} proto {self.suite.protocol} spi {self.spi:#x}"

    def add(self, adapter: str, direction: str) -> str:
        """A line of `vnic -batch` that adds it; holds the keys."""
        words = [f"xfrm state add {self.identity} mode {self.mode} reqid {self.reqid}", *self._algorithms()]
        words += [f"replay-window {self.window}"]
        if self.last_number:
            word = "replay-oseq" if direction == "out" else "replay-seq"
            words += [f"{word} {self.last_number & 0xFFFFFFFF}", f"{word}-hi {self.last_number >> 32}"]
        flags = [*(["esn"] if self.esn else []), *self.flags.split()]
        words += ["flag", *flags] if flags else []
        words += self.encapsulation
        words += [f"offload packet dev {adapter} dir {direction}"]
        return " ".join(words)

    def _algorithms(self) -> list[str]:
        words = []
        for algorithm, key in zip(self.suite.algorithms, self.keys, strict=True):
            words += [algorithm.word, algorithm.name, f"0x{key.hex()}" if key else '""']
            words += [str(algorithm.icv_bits)] if algorithm.icv_bits else []
        return words

    def renewed(self) -> Association:
        """The same with an SPI and keys of its own, its numbers from 1."""
        return replace(self, number=next(_numbers), reqid=self.reqid, keys=(), last_number=0)

    def renewal(self, new: Association, direction: str) -> str:
        """Its part of a line `sa rekey` that puts `new` in its place; holds the keys."""
        old = f"{direction} old {self.spi:#x} dst {self.destination} {self.suite.protocol} spi {new.spi:#x}"
        return " ".join([old, *new._algorithms()])

    def delete(self, adapter: str) -> str:
        """A line that deletes it from one adapter."""
        return f"xfrm state delete {self.identity} dev {adapter}"

    def template(self) -> str:
        """Its words in a policy."""
        ends = f"src {self.source} dst {self.destination} " if self.mode == "tunnel" else ""
        return f"tmpl {ends}proto {self.suite.protocol} reqid {self.reqid} mode {self.mode}"


def associations(
    layers: Sequence[Layer],
    source: str,
    destination: str,
    outer_source: str,
    outer_destination: str,
    **options: Any,
) -> list[Association]:
    """Make one SA for each layer of one way, innermost first; from a tunnel on with the outer addresses."""
    made = []
    ends = source, destination
    for layer in layers:
        if layer.mode == "tunnel":
            ends = outer_source, outer_destination
        made.append(Association(layer.suite, layer.mode, *ends, **options))
    return made


def policy(adapter: str, direction: str, source: str, destination: str, sas: Iterable[Association]) -> str:
    """A line that adds a policy: what goes between two prefixes or addresses has this protection."""
    templates = " ".join(sa.template() for sa in sas)
    selector = f"src {source} dst {destination}"
    return f"xfrm policy add {selector} dir {direction} {templates} offload packet dev {adapter}"


# -------------------------------------------------------------------------------------------- daemon


class Refusal(AssertionError):
    """A command of ours was refused; the message says what the program said."""

    def __init__(self, command: str, done: subprocess.CompletedProcess[str]) -> None:
        super().__init__(f"`{command}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        self.exit_code = done.returncode


class Daemon:
    """A vnicd with its own socket, and the command for it.

    Attributes:
        socket: where it listens.
    """

    def __init__(self, directory: Path, configuration: str = "") -> None:
        """Prepare, without starting it.

        Args:
            directory: for its socket, log and configuration.
            configuration: TOML that follows the `[control]` table.
        """
        self.directory = directory
        self.socket = directory / "vnic.sock"
        self._config = directory / "vnic.toml"
        self.configure(configuration)
        self._log = directory / "vnicd.log"
        self._process: subprocess.Popen[bytes] | None = None

    def configure(self, configuration: str) -> None:
        """Write its configuration file."""
        self._config.write_text(f'[control]\nsocket = "{self.socket}"\n{configuration}')

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it says that it is ready."""
        notify_path = self.directory / "notify"
        notify_path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, self._log.open("ab") as log:
            notify.bind(str(notify_path))
            notify.settimeout(0.1)
            self._process = subprocess.Popen(
                [BIN / "vnicd", "--config", self._config, *engines.daemon_words()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"NOTIFY_SOCKET": str(notify_path)},
                start_new_session=True,
            )
            deadline = time.monotonic() + READY_TIMEOUT_S
            while time.monotonic() < deadline and self._process.poll() is None:
                with contextlib.suppress(TimeoutError):
                    if b"READY=1" in notify.recv(4096).splitlines():
                        return
        raise AssertionError(f"vnicd did not become ready; its log:\n{self.log}")

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def kill(self) -> None:
        """End it as a crash would: SIGKILL, without any chance to clean up."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(END_TIMEOUT_S)

    def close(self) -> None:
        """End it in the ordinary way. Idempotent."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"vnicd did not end on SIGTERM; its log:\n{self.log}") from None

    def vnic(self, *words: str, stdin: str = "") -> str:
        """Run one command; gives what it printed.

        Raises:
            Refusal: its exit code is not 0.
        """
        done = subprocess.run(
            [BIN / "vnic", "-S", str(self.socket), *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise Refusal(f"vnic {' '.join(words)}", done)
        return done.stdout

    def json(self, *words: str) -> Any:
        """Run one command; gives its answer as a document."""
        return json.loads(self.vnic("-j", *words))

    def batch(self, *lines: str) -> None:
        """Run commands, one after the other over one connection; the first that is refused ends them."""
        self.vnic("-b", "-", stdin="\n".join(lines) + "\n")

    @contextlib.contextmanager
    def paced_batch(self) -> Iterator[Callable[..., None]]:
        """One `vnic -b -` that gets its lines a few at a time; a refusal fails the block at the end."""
        process = subprocess.Popen(
            [BIN / "vnic", "-S", str(self.socket), "-b", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdin is not None

        def send(*lines: str) -> None:
            assert process.stdin is not None
            process.stdin.write("".join(f"{line}\n" for line in lines))
            process.stdin.flush()

        try:
            yield send
            said, _ = process.communicate(timeout=COMMAND_TIMEOUT_S)
            assert process.returncode == 0, said
        finally:
            process.kill()
            process.communicate()

    def adapter(self, name: str) -> Any:
        """An adapter as `adapter show` has it."""
        (state,) = self.json("adapter", "show", name)
        return state

    def statistics(self, name: str) -> Any:
        """All counters of an adapter."""
        (statistics,) = self.json("stats", name)
        return statistics

    def drops(self, name: str) -> dict[str, int]:
        """Frames that ended in an adapter or at its ports, by reason."""
        return drops_of(self.statistics(name))

    def sas(self) -> dict[tuple[str, int], Any]:
        """Every SA as `sa show` has it, by adapter and SPI."""
        return {(one["adapter"], one["sa"]["spi"]): one for one in self.json("sa", "show")}

    @contextlib.contextmanager
    def capture(self, adapter: str, place: str, file: Path) -> Iterator[None]:
        """Record one side of an adapter."""
        self.vnic("adapter", "set", adapter, "capture", place, str(file))
        try:
            yield
        finally:
            self.vnic("adapter", "set", adapter, "capture", "off")

    @contextlib.contextmanager
    def monitor(self) -> Iterator[Monitor]:
        """Listen to the events of the daemon, from now on."""
        with Monitor(self.socket) as monitor:
            monitor.wait_for(lambda event: event["kind"] == "subscribed")
            yield monitor


def drops_of(statistics: Any) -> dict[str, int]:
    """Drops in a document of `stats`, by reason."""
    return {one["name"]: one["packets"] for one in statistics["drops"] if one["packets"]}


class Monitor:
    """`vnic -j monitor`, and what it has told so far."""

    def __init__(self, socket_path: Path) -> None:
        self.events: list[Any] = []
        self._process = subprocess.Popen(
            [BIN / "vnic", "-S", str(socket_path), "-j", "monitor"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(END_TIMEOUT_S)
        self._thread.join(END_TIMEOUT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.events.append(json.loads(line))

    def wait_for(self, fits: Callable[[Any], bool], timeout_s: float = 10.0) -> Any:
        """Give the first event that fits, which may be one of the past."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for event in list(self.events):
                if fits(event):
                    return event
            time.sleep(0.01)
        raise AssertionError(f"no such event; there were {self.events}")


# ---------------------------------------------------------------------------------------------- pair


@dataclass(frozen=True)
class Host:
    """The namespace behind one adapter."""

    adapter: str
    namespace: Namespace
    device: str
    addresses: dict[int, str]
    """By IP version."""

    @property
    def cidrs(self) -> list[str]:
        """The addresses with their prefix lengths."""
        return [f"{address}/{PREFIX_LENGTH[version]}" for version, address in self.addresses.items()]


@dataclass(frozen=True)
class Lane:
    """One way to protect, of many between the same hosts."""

    version: int
    far: str
    """The right host's address that is protected so."""
    forth: Association
    """From the left host."""
    back: Association


@dataclass(frozen=True)
class WireEnd:
    """A device at which the wire of a pair can be watched."""

    namespace: Namespace
    device: str


class Pair:
    """Two adapters of one daemon, joined by a wire, each with a host behind it.

    Attributes:
        daemon, left, right: its parts.
        ends: the devices that make up the wire, on the left's side first; none of a link.
        wires: the words for the wire of each adapter.
    """

    def __init__(
        self, daemon: Daemon, namespaces: Namespaces, wire: str = "link", *, persistent: bool = False
    ) -> None:
        """Make hosts and wire; `add_adapters` or a configuration makes the adapters.

        Args:
            wire: "link", "netdev" (an end of a veth on each side), "tap" (a TAP that is the left's wire,
                and a device to the right's), or "udp4" or "udp6" (a socket on each side, and a veth between).
            persistent: the hosts' TAPs are there before the adapters, and stay after them.
        """
        self.daemon = daemon
        hosts = []
        for adapter, label in ((LEFT, "l"), (RIGHT, "r")):
            namespace = namespaces.create(label)
            # Addresses are usable at once.
            namespace.write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")
            host = Host(adapter, namespace, namespaces.device(label), ADDRESSES[adapter])
            if persistent:
                namespace.ip("tuntap", "add", host.device, "mode", "tap")
            hosts.append(host)
        self.left, self.right = hosts
        self.ends: tuple[WireEnd, ...] = ()
        self.wires = self._make_wire(namespaces, wire)

    def _make_wire(self, namespaces: Namespaces, wire: str) -> tuple[str, str]:
        if wire == "link":
            return "none", f"link {LEFT}"
        if wire == "tap":
            middle = namespaces.create("w", ipv6=False)
            device = namespaces.device("w")
            self.ends = (WireEnd(middle, device),)
            return f"tap {device} netns {middle.name}", f"netdev {device} netns {middle.name}"
        spaces = namespaces.create("wl", ipv6=False), namespaces.create("wr", ipv6=False)
        devices = namespaces.veth(*spaces)
        self.ends = tuple(WireEnd(*end) for end in zip(spaces, devices, strict=True))
        if wire.startswith("udp"):
            return self._make_udp(int(wire[-1]))
        return f"netdev {devices[0]} netns {spaces[0].name}", f"netdev {devices[1]} netns {spaces[1].name}"

    def _make_udp(self, version: int) -> tuple[str, str]:
        words = []
        for end, (near, far) in zip(self.ends, ((LEFT, RIGHT), (RIGHT, LEFT)), strict=True):
            local, remote = OUTER_ADDRESSES[near][version], OUTER_ADDRESSES[far][version]
            if version == 6:
                end.namespace.write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0")
                end.namespace.write(f"/proc/sys/net/ipv6/conf/{end.device}/disable_ipv6", "0")
            length, options = (24, ()) if version == 4 else (64, ("nodad",))
            end.namespace.ip("address", "add", f"{local}/{length}", "dev", end.device, *options)
            words.append(f"udp {local} {remote} netns {end.namespace.name}")
        return words[0], words[1]

    def add_adapters(self) -> None:
        """Add both adapters to the daemon; also again, to one that was started anew."""
        self.daemon.batch(
            *(adapter_line(host, wire) for host, wire in zip(self.hosts, self.wires, strict=True))
        )

    def configuration(self) -> str:
        """Both adapters, on netdev wires, as tables of a configuration whose defaults block."""
        tables = []
        for host, end in zip(self.hosts, self.ends, strict=True):
            tables.append(
                f"""
                [[adapter]]
                name = "{host.adapter}"
                tap = "{host.device}"
                netns = "{host.namespace.name}"
                addresses = {json.dumps(host.cidrs)}
                wire = {{ netdev = "{end.device}", netns = "{end.namespace.name}" }}
                policy_default_in = "block"
                policy_default_out = "block"
                """
            )
        return "".join(tables)

    @property
    def hosts(self) -> tuple[Host, Host]:
        return self.left, self.right

    def protect(
        self, layers: Sequence[Layer], version: int = 4, outer_version: int | None = None, **options: Any
    ) -> dict[str, list[Association]]:
        """Protect what the hosts say to each other over one IP version, both ways, from end to end.

        Args:
            layers: innermost first.
            version, outer_version: of the packets, and of tunnels around them.
            options: of `Association`.

        Returns:
            The associations of each sender, by its adapter.
        """
        made = {}
        lines = []
        for sender, receiver in ((self.left, self.right), (self.right, self.left)):
            source, destination = sender.addresses[version], receiver.addresses[version]
            outer = outer_version or version
            sas = associations(
                layers,
                source,
                destination,
                OUTER_ADDRESSES[sender.adapter][outer],
                OUTER_ADDRESSES[receiver.adapter][outer],
                **options,
            )
            # Inbound first: what is sealed is understood from the first packet on.
            for adapter, direction in ((receiver.adapter, "in"), (sender.adapter, "out")):
                lines += [sa.add(adapter, direction) for sa in sas]
                lines.append(policy(adapter, direction, source, destination, sas))
            made[sender.adapter] = sas
        self.daemon.batch(*lines)
        return made

    def protect_side_by_side(self, ways: Iterable[tuple[Suite, str, int]]) -> list[Lane]:
        """Put many ways to protect into force at once.

        Each is between the left host and an address of its own that the right host gets: 10.9.1.1 or
        fd09:1::1 for the first of the family, and so on.

        Args:
            ways: suite, mode and IP version.
        """
        lanes, lines, addresses = [], [], {4: "", 6: ""}
        hosts = {version: itertools.count(1) for version in addresses}
        for suite, mode, version in ways:
            near, far = self.left.addresses[version], FURTHER[version].format(next(hosts[version]))
            addresses[version] += f"address replace {far}/{HOST_LENGTH[version]} dev {self.right.device}\n"
            sas = []
            for sender, receiver, ends in ((LEFT, RIGHT, (near, far)), (RIGHT, LEFT, (far, near))):
                outer = OUTER_ADDRESSES[sender][version], OUTER_ADDRESSES[receiver][version]
                (sa,) = associations([Layer(suite, mode)], *ends, *outer)
                for adapter, direction in ((receiver, "in"), (sender, "out")):
                    lines += [sa.add(adapter, direction), policy(adapter, direction, *ends, [sa])]
                sas.append(sa)
            lanes.append(Lane(version, far, *sas))
        for version, batch in addresses.items():
            if batch:
                ip_batch(self.right.namespace, batch)
                via = self.right.addresses[version]
                self.left.namespace.ip(
                    "route", "replace", FURTHER_NETWORK[version], "via", via, "dev", self.left.device
                )
        self.daemon.batch(*lines)
        return lanes

    def unprotect(self) -> None:
        """Take away every policy and association."""
        self.daemon.batch(
            *(
                f"xfrm {table} flush dev {host.adapter}"
                for table in ("policy", "state")
                for host in self.hosts
            )
        )

    def drops(self) -> dict[str, dict[str, int]]:
        """Drops by adapter and reason; adapters without any are left out."""
        found = {one["adapter"]: drops_of(one) for one in self.daemon.json("stats")}
        return {adapter: drops for adapter, drops in found.items() if drops}


def ip_batch(namespace: Namespace, lines: str) -> None:
    """Run lines of `ip` inside a namespace."""
    argv = ["ip", "-n", namespace.name, "-b", "-"]
    done = subprocess.run(argv, input=lines, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    assert done.returncode == 0, done.stderr


def adapter_line(host: Host, wire: str, *words: str) -> str:
    """A line that adds an adapter for a host."""
    addresses = " ".join(f"address {cidr}" for cidr in host.cidrs)
    place = f"tap {host.device} netns {host.namespace.name} {addresses}"
    return " ".join([f"adapter add {host.adapter} {place}", *words, f"wire {wire}"])


@contextlib.contextmanager
def running_daemon(directory: Path, configuration: str = "") -> Iterator[Daemon]:
    """A daemon that runs until the block ends."""
    daemon = Daemon(directory, configuration)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()


def begin_record(directory: Path) -> str:
    """Begin a record of sequence numbers below a directory; gives the settings of a daemon that keeps it."""
    state = directory / "state"
    state.mkdir()
    settings = f'[state]\ndirectory = "{state}"\n'
    config = directory / "new.toml"
    config.write_text(settings)
    subprocess.run(
        [BIN / "vnicd", "--config", config, "--new-state"], check=True, timeout=30, stdout=subprocess.DEVNULL
    )
    return settings


@contextlib.contextmanager
def running_pair(
    directory: Path,
    wire: str = "link",
    *,
    persistent: bool = False,
    from_file: bool = False,
    settings: str = "",
) -> Iterator[Pair]:
    """A daemon with two adapters, and what is around them, until the block ends.

    Args:
        wire, persistent: as for `Pair`.
        from_file: the adapters stand in the daemon's configuration; netdev wires only.
        settings: tables of the configuration before those of the adapters.
    """
    namespaces = Namespaces()
    daemon = Daemon(directory, settings)
    try:
        pair = Pair(daemon, namespaces, wire, persistent=persistent)
        if from_file:
            daemon.configure(settings + pair.configuration())
        daemon.start()
        if not from_file:
            pair.add_adapters()
        yield pair
    finally:
        daemon.close()
        namespaces.close()
