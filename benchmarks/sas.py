"""How many SAs a daemon takes: how fast by either door, what they cost in memory, and what stays behind.

Law: the SAs are counted by handles that came back, and the messages are made before the clock runs, so that
what is measured is the daemon. Memory is all that is resident for it, shared libraries included; it is first
looked at when a list has come and gone, so that what code takes at its first use is not counted for SAs.

    lists      OID_TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA through OidRequest, 1,000 entries a list
    calls      AddSa, each sent when the one before is answered
"""

from __future__ import annotations

import base64
import json
import secrets
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Self

from scripts.lab import LEFT, Lab, LabError
from vnic.ipsec.algorithms import ENCRYPTION_BY_NAME
from vnic.ipsec.association import KeyMaterial
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oid import AddSa, AlgorithmInfo, Operation, SaElement
from vnic.ndis.structs import ADD_SA, add_sa_entries, pack_add_sa, pack_delete_sa

LIST_LENGTH = 1000
ENCRYPTION = ENCRYPTION_BY_NAME["aes-gcm-128"]
FIRST_SPI = 0x1000
LOCAL = IPv4Address("192.0.2.1")
FIRST_PEER = IPv4Address("10.0.0.1")

_METHOD = "io.vnic.Adapter."
_HANDLE = struct.Struct("<Q")
_HANDLE_OFFSET = ADD_SA.offset_of("OffloadHandle")
_RECEIVE_LENGTH = 1 << 20
_TIMEOUT_S = 60.0

Reply = dict[str, Any]


@dataclass(frozen=True)
class Pace:
    """How long something took."""

    count: int
    seconds: float
    cpu_seconds: float
    """Of the daemon."""

    @property
    def per_second(self) -> int:
        return round(self.count / self.seconds)

    @property
    def per_cpu_second(self) -> int:
        """What it would be on a core of the daemon's own, which waits for nobody."""
        return round(self.count / max(self.cpu_seconds, 0.001))


class Connection:
    """A client that sends messages made before, and waits for each answer."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.connect(str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._socket.close()

    def ask(self, message: bytes) -> bytes:
        """Send a message and give the answer, without its end."""
        self._socket.sendall(message)
        answer = self._socket.recv(_RECEIVE_LENGTH)
        if not answer.endswith(b"\0"):
            parts = [answer]
            while not parts[-1].endswith(b"\0"):
                parts.append(self._socket.recv(_RECEIVE_LENGTH))
                if not parts[-1]:
                    raise LabError("vnicd closed the connection")
            answer = b"".join(parts)
        return answer[:-1]


def message(method: str, **parameters: Any) -> bytes:
    """Give a call as it goes over the control socket."""
    return json.dumps({"method": _METHOD + method, "parameters": parameters}).encode() + b"\0"


def reply(answer: bytes) -> Reply:
    """Give the parameters of an answer that is no error."""
    read = json.loads(answer)
    if "error" in read:
        raise LabError(f"vnicd refused: {read['error']} {read['parameters']}")
    parameters: Reply = read["parameters"]
    return parameters


def peer(number: int) -> IPv4Address:
    """The other end of an SA: each has its own."""
    return FIRST_PEER + number


def add_request(number: int) -> AddSa:
    """The request for one SA; every other one is inbound."""
    inbound = bool(number % 2)
    ends = (peer(number), LOCAL) if inbound else (LOCAL, peer(number))
    key = KeyMaterial(secrets.token_bytes(ENCRYPTION.key_length))
    info = AlgorithmInfo(ENCRYPTION.ndis_identifier, key, ENCRYPTION.icv_lengths[0])
    element = SaElement(Operation.ESP, FIRST_SPI + number, encryption=info)
    return AddSa(inbound, ends[0].packed, ends[1].packed, (element,))


def oid_message(oid: str, buffer: bytes | bytearray) -> bytes:
    """A set request for an OID."""
    text = base64.b64encode(buffer).decode()
    return message("OidRequest", adapter=LEFT, oid=oid, request_type="set", information_buffer=text)


def add_lists(count: int) -> Iterator[bytes]:
    """ADD_SA requests of 1,000 entries."""
    for first in range(0, count, LIST_LENGTH):
        requests = [add_request(number) for number in range(first, min(first + LIST_LENGTH, count))]
        yield oid_message("TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA", pack_add_sa(requests))


def delete_lists(handles: Sequence[OffloadHandle]) -> Iterator[bytes]:
    """DELETE_SA requests of 1,000 entries."""
    for first in range(0, len(handles), LIST_LENGTH):
        buffer = pack_delete_sa(handles[first : first + LIST_LENGTH])
        yield oid_message("TCP_TASK_IPSEC_OFFLOAD_V2_DELETE_SA", buffer)


def list_handles(answer: bytes) -> list[OffloadHandle]:
    """Handles that the daemon wrote into an ADD_SA list; none may be missing."""
    given = reply(answer)
    buffer = base64.b64decode(given["information_buffer"])
    handles = [
        OffloadHandle(_HANDLE.unpack_from(buffer, entry + _HANDLE_OFFSET)[0])
        for entry in (add_sa_entries(buffer) if buffer else [])
    ]
    if given["status"] or not handles or not all(handles):
        raise LabError(f"not every SA was added: {given['status_name']} {given['message']}")
    return handles


def add_calls(count: int) -> Iterator[bytes]:
    """AddSa calls, tunnel mode."""
    for number in range(count):
        inbound = number % 2
        source, destination = (peer(number), LOCAL) if inbound else (LOCAL, peer(number))
        sa = {
            "src": str(source),
            "dst": str(destination),
            "proto": "esp",
            "spi": FIRST_SPI + number,
            "mode": "tunnel",
            "direction": "in" if inbound else "out",
            "encryption": ENCRYPTION.name,
            "encryption_key": secrets.token_hex(ENCRYPTION.key_length),
        }
        yield message("AddSa", adapter=LEFT, sa=sa)


def delete_calls(handles: Iterable[OffloadHandle]) -> Iterator[bytes]:
    """DeleteSa calls."""
    for handle in handles:
        yield message("DeleteSa", adapter=LEFT, handle=handle)


def call_handles(answer: bytes) -> list[OffloadHandle]:
    """The handle that an AddSa was answered with."""
    given = reply(answer)
    if given["status"] or not given["handle"]:
        raise LabError(f"the NIC does not hold the SA: {given['status_name']} {given['message']}")
    return [OffloadHandle(given["handle"])]


class Run:
    """A daemon with one adapter, and its clock and memory."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.connection = Connection(lab.socket)

    def timed(self, messages: Iterable[bytes], count: int) -> tuple[Pace, list[bytes]]:
        """Send messages one by one; gives how long they took, and the answers."""
        made = list(messages)
        cpu_began, began = self.lab.cpu_seconds(), time.monotonic()
        answers = [self.connection.ask(one) for one in made]
        seconds = time.monotonic() - began
        return Pace(count, seconds, self.lab.cpu_seconds() - cpu_began), answers

    def resident_bytes(self) -> int:
        """Memory of the daemon, after it had a moment to tidy up."""
        time.sleep(1.0)
        assert self.lab.daemon is not None
        text = Path(f"/proc/{self.lab.daemon.pid}/smaps_rollup").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Rss:")) << 10

    def door(
        self,
        count: int,
        adding: Iterable[bytes],
        handles_of: Callable[[bytes], list[OffloadHandle]],
        deleting: Callable[[Sequence[OffloadHandle]], Iterable[bytes]],
    ) -> dict[str, float]:
        """Add and delete SAs by one door."""
        start = self.resident_bytes()
        added, answers = self.timed(adding, count)
        handles = [handle for answer in answers for handle in handles_of(answer)]
        if len(set(handles)) != count:
            raise LabError(f"{len(set(handles))} handles for {count} SAs")
        full = self.resident_bytes()
        deleted, answers = self.timed(deleting(handles), count)
        if failed := [one for one in map(reply, answers) if one["status"]]:
            raise LabError(f"not every SA was deleted: {failed[0]['status_name']}")
        left = self.resident_bytes()
        return {
            "add_per_s": added.per_second,
            "add_per_cpu_s": added.per_cpu_second,
            "delete_per_s": deleted.per_second,
            "delete_per_cpu_s": deleted.per_cpu_second,
            "bytes_per_sa": round((full - start) / count),
            "start_mib": round(start / 2**20, 1),
            "full_mib": round(full / 2**20, 1),
            "left_mib": round(left / 2**20, 1),
            "left_ratio": round(left / start, 3),
        }


def measure(lab: Lab, count: int) -> dict[str, Any]:
    """Fill and empty the NIC of the left adapter by either door."""
    run = Run(lab)
    with run.connection:
        run.door(LIST_LENGTH, add_lists(LIST_LENGTH), list_handles, delete_lists)
        return {
            "count": count,
            "algorithm": ENCRYPTION.name,
            "list_length": LIST_LENGTH,
            "lists": run.door(count, add_lists(count), list_handles, delete_lists),
            "calls": run.door(count, add_calls(count), call_handles, delete_calls),
        }
