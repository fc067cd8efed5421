#!/usr/bin/python3 -IS
"""What runs inside the User-Mode Linux: its init, and the ends of the traffic, which the host uses too.

Law: nothing but the standard library, for the interpreter of the system runs it; importing it does nothing.
The guest sees the host's files read-only and leaves none. One JSON document a line comes over the serial
line, or the name of a file that holds one, and one answers it: {"result": …} or {"error": …}.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import random
import select
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import traceback
import tty
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

ECHO_PORT = 7
"""UDP and TCP: what comes goes back, from the address it was sent to."""

LARGEST_DATAGRAM = 65_536
TIMEOUT_S = 3.0
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

SocketMaker = Callable[[int, int, int], socket.socket]

_ECHO_REQUEST = {4: 8, 6: 128}
_ECHO_REPLY = {4: 0, 6: 129}
_ICMP = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
_IP_PKTINFO = 8
_XFRM_POLICY = {4: 17, 6: 35}
"""IP_XFRM_POLICY, IPV6_XFRM_POLICY."""
_UDP_ENCAP = 100
_UDP_ENCAP_ESPINUDP = 2


# -------------------------------------------------------------------------------------------- traffic


def random_bytes(seed: int, length: int) -> bytes:
    """Bytes that do not repeat and that both sides can make."""
    return random.Random(seed).randbytes(length)


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ping(
    make: SocketMaker, source: str, to: str, sizes: Iterable[int] = (56,), timeout_s: float = TIMEOUT_S
) -> list[int]:
    """Send an echo request of each size and await its reply; give the sizes whose bytes did not come back."""
    version = 6 if ":" in to else 4
    silent = []
    with make(FAMILIES[version], socket.SOCK_RAW, _ICMP[version]) as end:
        end.bind((source, 0))
        end.connect((to, 0))
        identifier = random.randrange(1 << 16)
        for number, size in enumerate(sizes, 1):
            rest = struct.pack("!HH", identifier, number) + random_bytes(number, size)
            message = struct.pack("!BBH", _ECHO_REQUEST[version], 0, 0) + rest
            if version == 4:
                message = message[:2] + checksum(message).to_bytes(2, "big") + rest
            end.send(message)
            deadline = time.monotonic() + timeout_s
            while True:
                end.settimeout(max(deadline - time.monotonic(), 0.001))
                try:
                    heard = end.recv(LARGEST_DATAGRAM)
                except TimeoutError:
                    silent.append(size)
                    break
                if version == 4:
                    heard = heard[(heard[0] & 0x0F) * 4 :]
                if heard[0] == _ECHO_REPLY[version] and heard[4:] == rest:
                    break
    return silent


def udp(
    make: SocketMaker, source: str, to: str, sizes: Iterable[int], timeout_s: float = TIMEOUT_S
) -> list[int]:
    """Send a datagram of each size to the echo port; give the sizes that did not come back as they were.

    An answer that is late on a busy machine is waited for once more; it is never taken for that of a later
    one.
    """
    changed = []
    earlier: set[bytes] = set()
    with make(FAMILIES[6 if ":" in to else 4], socket.SOCK_DGRAM, 0) as end:
        end.bind((source, 0))
        end.connect((to, ECHO_PORT))
        end.settimeout(timeout_s)
        for number, size in enumerate(sizes):
            payload = random_bytes(number, size)
            if not (_echoed(end, payload, earlier) or _echoed(end, payload, earlier)):
                changed.append(size)
            earlier.add(payload)
    return changed


def _echoed(end: socket.socket, payload: bytes, earlier: set[bytes]) -> bool:
    """Whether a datagram comes back as it was; answers to earlier ones are passed over."""
    try:
        end.send(payload)
        while (answer := end.recv(LARGEST_DATAGRAM)) != payload:
            if answer not in earlier:
                return False
    except OSError:
        return False
    return True


def tcp(
    make: SocketMaker, source: str, to: str, length: int, seed: int = 1, timeout_s: float = 20.0
) -> tuple[str, str]:
    """Have random bytes echoed over one connection; give the SHA-256 of what went and of what came back."""
    data = random_bytes(seed, length)
    back = hashlib.sha256()
    with make(FAMILIES[6 if ":" in to else 4], socket.SOCK_STREAM, 0) as end:
        end.settimeout(timeout_s)
        end.bind((source, 0))
        end.connect((to, ECHO_PORT))
        failures: list[OSError] = []

        def send() -> None:
            try:
                end.sendall(data)
                end.shutdown(socket.SHUT_WR)
            except OSError as error:
                failures.append(error)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        while part := end.recv(1 << 16):
            back.update(part)
        sender.join(timeout_s)
        if failures:
            raise failures[0]
    return hashlib.sha256(data).hexdigest(), back.hexdigest()


def hear(end: socket.socket, count: int, timeout_s: float = TIMEOUT_S) -> list[bytes]:
    """Give the next datagrams of a socket: fewer when no more come in time, more when they are there."""
    heard: list[bytes] = []
    with contextlib.suppress(TimeoutError):
        while True:
            end.settimeout(timeout_s if len(heard) < count else 0.01)
            heard.append(end.recv(LARGEST_DATAGRAM))
    return heard


def _echo_datagrams(end: socket.socket, version: int) -> None:
    level = socket.IPPROTO_IP if version == 4 else socket.IPPROTO_IPV6
    while True:
        try:
            data, ancillary, _, sender = end.recvmsg(LARGEST_DATAGRAM, 256)
        except OSError:
            return
        control = []
        for _, kind, value in ancillary:
            if version == 4 and kind == _IP_PKTINFO:
                # ipi_ifindex, ipi_spec_dst: the address to answer from, ipi_addr.
                control = [(level, kind, struct.pack("=I4s4s", 0, value[8:12], bytes(4)))]
            elif version == 6 and kind == socket.IPV6_PKTINFO:
                control = [(level, kind, value[:16] + bytes(4))]
        with contextlib.suppress(OSError):
            end.sendmsg([data], control, 0, sender)


def _echo_stream(end: socket.socket) -> None:
    with end, contextlib.suppress(OSError):
        end.settimeout(20)
        while part := end.recv(1 << 16):
            end.sendall(part)


def _accept(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_echo_stream, args=(connection,), daemon=True).start()


class Echo:
    """Echo servers on all addresses, of both families, each on a thread of its own, until they are closed."""

    def __init__(self, make: SocketMaker) -> None:
        self._ends = []
        for version, family in FAMILIES.items():
            datagrams, streams = (make(family, kind, 0) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM))
            for end in (datagrams, streams):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if version == 6:
                    end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                end.bind(("", ECHO_PORT))
            if version == 4:
                datagrams.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            else:
                datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            streams.listen(16)
            self._ends += [datagrams, streams]
            threading.Thread(target=_echo_datagrams, args=(datagrams, version), daemon=True).start()
            threading.Thread(target=_accept, args=(streams,), daemon=True).start()

    def close(self) -> None:
        for end in self._ends:
            # Shutting down wakes the thread that waits in it; closing alone would not.
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


# ------------------------------------------------------------------------------------------ the guest

MODULES = Path("/usr/lib/uml/modules")
NEEDED_MODULES = (
    *("xfrm_user", "esp4", "esp6", "ah4", "ah6", "veth"),
    *("authenc", "authencesn", "echainiv", "seqiv", "hmac", "cbc", "ecb", "des_generic"),
    *("gcm", "ctr", "ghash-generic"),
    # The generator of random numbers, without which there are no IVs.
    *("sha512_generic", "jitterentropy_rng", "drbg"),
)
"""Those of ciphers too: nobody inside could load them when they are wanted."""

# The kernel has mounted /dev by itself.
_MOUNTS = (
    ("proc", "/proc", "proc"),
    ("sysfs", "/sys", "sysfs"),
    ("tmpfs", "/run", "tmpfs"),
)
_FINIT_MODULE = 313
"""The number of the system call on x86-64."""


def _mount_all(libc: ctypes.CDLL) -> None:
    for source, target, kind in _MOUNTS:
        if libc.mount(source.encode(), target.encode(), kind.encode(), 0, None):
            raise OSError(ctypes.get_errno(), f"mount {kind} on {target}")


def _load_modules(libc: ctypes.CDLL) -> None:
    directory = MODULES / os.uname().release
    files = {}
    for line in (directory / "modules.dep").read_text().splitlines():
        file, _, needs = line.partition(":")
        files[Path(file).stem] = [file, *needs.split()]
    for name in NEEDED_MODULES:
        # What a module needs stands behind it, the deepest last.
        for file in reversed(files.get(name, [])):
            descriptor = os.open(directory / file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if libc.syscall(_FINIT_MODULE, descriptor, b"", 0) and ctypes.get_errno() != 17:  # EEXIST
                    raise OSError(ctypes.get_errno(), f"load {file}")
            finally:
                os.close(descriptor)


def _run(argv: list[str], text: str) -> dict[str, Any]:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=60, check=False)
    return {"status": done.returncode, "output": done.stdout, "errors": done.stderr}


class Ears:
    """The socket of the guest for datagrams that nobody answers; at most one."""

    end: socket.socket | None = None

    @classmethod
    def listen(cls, address: str, port: int) -> None:
        """Listen at an address from now on, in place of the one before."""
        if cls.end is not None:
            cls.end.close()
        cls.end = socket.socket(FAMILIES[6 if ":" in address else 4], socket.SOCK_DGRAM)
        cls.end.bind((address, port))

    @classmethod
    def hear(cls, count: int) -> list[str]:
        """Give the next datagrams, in hexadecimal."""
        assert cls.end is not None
        return [data.hex() for data in hear(cls.end, count)]


class Encapsulation:
    """The sockets that UDP-encapsulated ESP comes by, and IKE with it, by their port and IP version."""

    ends: ClassVar[dict[tuple[int, int], socket.socket]] = {}

    @classmethod
    def listen(cls, ports: list[int]) -> None:
        """Take ESP out of UDP on these ports from now on, of both families."""
        for port in ports:
            for version, family in FAMILIES.items():
                end = cls.ends[port, version] = socket.socket(family, socket.SOCK_DGRAM)
                level = socket.IPPROTO_IP if version == 4 else socket.IPPROTO_IPV6
                if version == 6:
                    end.setsockopt(level, socket.IPV6_V6ONLY, 1)
                for direction in (0, 1):
                    # xfrm_userpolicy_info: action allow, for packets of this socket.
                    policy = bytearray(168)
                    struct.pack_into("=H", policy, 40, family)
                    policy[160] = direction
                    end.setsockopt(level, _XFRM_POLICY[version], bytes(policy))
                end.setsockopt(socket.IPPROTO_UDP, _UDP_ENCAP, _UDP_ENCAP_ESPINUDP)
                end.bind(("", port))

    @classmethod
    def send(cls, port: int, version: int, to: str, to_port: int, payload: str) -> None:
        """Send a datagram, in hexadecimal, that is not to be protected."""
        cls.ends[port, version].sendto(bytes.fromhex(payload), (to, to_port))

    @classmethod
    def hear(cls, port: int, version: int, count: int) -> list[str]:
        """Give the next datagrams that were no ESP, in hexadecimal."""
        return [data.hex() for data in hear(cls.ends[port, version], count, 1.0)]


def _send(source: str, to: str, port: int, payloads: list[str]) -> None:
    with socket.socket(FAMILIES[6 if ":" in to else 4], socket.SOCK_DGRAM) as end:
        end.bind((source, 0))
        for payload in payloads:
            end.sendto(bytes.fromhex(payload), (to, port))


def _send_raw(source: str, to: str, packets: list[str]) -> None:
    with socket.socket(FAMILIES[6 if ":" in to else 4], socket.SOCK_RAW, socket.IPPROTO_RAW) as end:
        end.bind((source, 0))
        for packet in packets:
            end.sendto(bytes.fromhex(packet), (to, 0))


def _halt() -> None:
    # sys_reboot of the library: RB_POWER_OFF.
    ctypes.CDLL(None).reboot(0x4321FEDC)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "run": _run,
    "halt": _halt,
    "listen": Ears.listen,
    "encapsulate": Encapsulation.listen,
    "encapsulation_send": Encapsulation.send,
    "encapsulation_hear": Encapsulation.hear,
    "hear": Ears.hear,
    "send": _send,
    "send_raw": _send_raw,
    "read": lambda path: Path(path).read_text(),
    "write": lambda path, text: Path(path).write_text(text),
    "ping": lambda **words: ping(socket.socket, **words),
    "udp": lambda **words: udp(socket.socket, **words),
    "tcp": lambda **words: tcp(socket.socket, **words),
}
"""What the serial line can ask for, by name."""


def _serve(line: int) -> None:
    pending = b""
    while True:
        select.select([line], [], [])
        pending += os.read(line, 1 << 16)
        while b"\n" in pending:
            request, _, pending = pending.partition(b"\n")
            try:
                words = json.loads(request)
                if "file" in words:
                    words = json.loads(Path(words["file"]).read_text())
                answer = {"result": OPERATIONS[words.pop("operation")](**words)}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            _answer(line, answer)


def _answer(line: int, answer: dict[str, Any]) -> None:
    data = json.dumps(answer).encode() + b"\n"
    while data:
        data = data[os.write(line, data) :]


def main() -> None:
    """Be the init of the guest: never returns."""
    libc = ctypes.CDLL(None, use_errno=True)
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    _mount_all(libc)
    line = os.open("/dev/ttyS0", os.O_RDWR | os.O_NOCTTY)
    tty.setraw(line, termios.TCSANOW)
    try:
        _load_modules(libc)
        Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
        Path("/proc/sys/net/ipv6/conf/all/accept_dad").write_text("0")
        for device in ("lo", "eth0"):
            subprocess.run(["ip", "link", "set", device, "up"], check=True)
        Echo(socket.socket)
    except BaseException:
        _answer(line, {"error": traceback.format_exc()})
        raise
    _answer(line, {"result": os.uname().release})
    _serve(line)


if __name__ == "__main__":
    sys.exit(main())
