"""The binary door of a running daemon: OID requests over the control socket, without any client of ours.

Law: speaks Varlink (JSON with a zero byte behind it) by hand; the structures are built by
`vnic.ndis.structs`, whose layout is held against a C compiler elsewhere.
"""

from __future__ import annotations

import base64
import itertools
import json
import secrets
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from vnic.ipsec.association import KeyMaterial
from vnic.ndis.oid import NO_ALGORITHM, AddSa, AlgorithmInfo, Operation, SaElement

SUCCESS = 0

ADD_SA = "OID_TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA"
ADD_SA_EX = "OID_TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA_EX"
DELETE_SA = "OID_TCP_TASK_IPSEC_OFFLOAD_V2_DELETE_SA"
UPDATE_SA = "OID_TCP_TASK_IPSEC_OFFLOAD_V2_UPDATE_SA"
V1_ADD_SA = "OID_TCP_TASK_IPSEC_ADD_SA"
V1_DELETE_SA = "OID_TCP_TASK_IPSEC_DELETE_SA"
CURRENT_CONFIG = "OID_TCP_OFFLOAD_CURRENT_CONFIG"

MD5, SHA_1, SHA_256 = 0x1, 0x2, 0x4
GMAC_128, GMAC_192, GMAC_256 = 0x8, 0x10, 0x20
INTEGRITY_KEYS = {MD5: 16, SHA_1: 20, SHA_256: 32, GMAC_128: 20, GMAC_192: 28, GMAC_256: 36}
"""Authentication identifiers (sheet §10.1), and bytes of their keys, the salt of GMAC included."""

NULL, DES, TRIPLE_DES = 0x1, 0x2, 0x4
GCM_128, GCM_192, GCM_256 = 0x8, 0x10, 0x20
CBC_128, CBC_192, CBC_256 = 0x40, 0x80, 0x100
CIPHER_KEYS = {NULL: 0, DES: 8, TRIPLE_DES: 24, CBC_128: 16, CBC_192: 24, CBC_256: 32}
GCM_KEYS = {GCM_128: 20, GCM_192: 28, GCM_256: 36}

_spis = itertools.count(0x100000)


class Door:
    """One connection to the control socket of a daemon."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        self._read = b""

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the interface; an error of the service fails the test."""
        self.send(method, **parameters)
        return self.receive()

    def send(self, method: str, *, more: bool = False, **parameters: Any) -> None:
        """Call without waiting for the answer, or for the first of many."""
        message = {"method": f"io.vnic.Adapter.{method}", "parameters": parameters, "more": more}
        self._socket.sendall(json.dumps(message).encode() + b"\0")

    def receive(self) -> Any:
        """The next answer."""
        while b"\0" not in self._read:
            part = self._socket.recv(1 << 20)
            assert part, "the daemon has closed the connection"
            self._read += part
        answer, _, self._read = self._read.partition(b"\0")
        reply = json.loads(answer)
        assert "error" not in reply, reply
        return reply["parameters"]

    def oid(self, adapter: str, oid: str, buffer: bytes | bytearray | None = None) -> Any:
        """Set an OID, or query it when there is no buffer; gives the reply as it is."""
        if buffer is None:
            return self.call("OidRequest", adapter=adapter, oid=oid, request_type="query")
        return self.call("OidRequest", **request(adapter, oid, buffer))


def request(
    adapter: str, oid: str, buffer: bytes | bytearray, request_id: int | None = None
) -> dict[str, Any]:
    """The parameters of a set."""
    encoded = base64.b64encode(buffer).decode()
    parameters = {"adapter": adapter, "oid": oid, "request_type": "set", "information_buffer": encoded}
    return parameters if request_id is None else {**parameters, "request_id": request_id}


def written(reply: Any) -> bytes:
    """The information buffer of a reply."""
    return base64.b64decode(reply["information_buffer"])


@dataclass(frozen=True)
class Protection:
    """Algorithms of one SA bundle, by the identifiers of V2: ESP alone, AH alone, or ESP then AH."""

    name: str
    encryption: int | None = None
    """None: there is no ESP."""
    esp_integrity: int = 0
    icv: int = 0
    """AdditionalInfo of AES-GCM."""
    ah: int = 0
    """0: there is no AH."""

    @property
    def protocols(self) -> tuple[str, ...]:
        """Of the layers, innermost first."""
        return (*(("esp",) if self.encryption is not None else ()), *(("ah",) if self.ah else ()))


CIPHERS = {
    "null": NULL,
    "des": DES,
    "3des": TRIPLE_DES,
    "cbc-128": CBC_128,
    "cbc-192": CBC_192,
    "cbc-256": CBC_256,
}
INTEGRITIES = {"md5": MD5, "sha1": SHA_1, "sha256": SHA_256}
GCMS = {"gcm-128": GCM_128, "gcm-192": GCM_192, "gcm-256": GCM_256}
GMACS = {"gmac-128": GMAC_128, "gmac-192": GMAC_192, "gmac-256": GMAC_256}

EVERY_ALGORITHM = (
    *(
        Protection(f"{cipher}+{integrity}", CIPHERS[cipher], INTEGRITIES[integrity])
        for cipher, integrity in itertools.product(CIPHERS, INTEGRITIES)
    ),
    *(
        Protection(f"{name}-icv{icv}", GCMS[name], icv=icv)
        for name, icv in itertools.product(GCMS, (0, 8, 12, 16))
    ),
    *(Protection(f"null+{name}", NULL, GMACS[name]) for name in GMACS),
    *(Protection(f"ah-{name}", ah=number) for name, number in {**INTEGRITIES, **GMACS}.items()),
)
"""Every row of the sheet's §10.1, and every combination of one ESP element."""

SIX_PAIRS = (
    Protection("ah-md5 esp-md5", TRIPLE_DES, MD5, ah=MD5),
    Protection("ah-sha1 esp-sha1", CBC_128, SHA_1, ah=SHA_1),
    Protection("ah-md5 esp-sha1", NULL, SHA_1, ah=MD5),
    Protection("ah-sha1 esp-md5", DES, MD5, ah=SHA_1),
    Protection("ah-md5 esp-none", CBC_256, ah=MD5),
    Protection("ah-sha1 esp-none", TRIPLE_DES, ah=SHA_1),
)
"""The pairs of integrity algorithms of R14 (sheet §10.2)."""

CERTIFIED_PAIRS = tuple(
    Protection(f"ah-gmac-{bits} esp-gcm-{bits}", gcm, ah=gmac)
    for bits, gcm, gmac in ((128, GCM_128, GMAC_128), (192, GCM_192, GMAC_192), (256, GCM_256, GMAC_256))
)
"""AH+ESP with GCM of one size (sheet §10.4)."""


@dataclass(frozen=True)
class Bundle:
    """One SA bundle with its keys, as both ends have it."""

    protection: Protection
    source: str
    destination: str
    esn: bool = False
    high: int = 0
    """Upper half of the sequence number at the start."""
    spis: tuple[int, ...] = ()
    """Of the elements, ESP first."""
    keys: tuple[bytes, bytes, bytes] = field(default=(b"", b"", b""), repr=False)
    """Of encryption, of integrity in ESP, and of AH."""

    @classmethod
    def made(cls, protection: Protection, source: str, destination: str, **options: Any) -> Bundle:
        """Make one with SPIs and keys of its own."""
        cipher = protection.encryption or 0
        keys = (
            secrets.token_bytes((CIPHER_KEYS | GCM_KEYS).get(cipher, 0)),
            secrets.token_bytes(INTEGRITY_KEYS.get(protection.esp_integrity, 0)),
            secrets.token_bytes(INTEGRITY_KEYS.get(protection.ah, 0)),
        )
        spis = tuple(next(_spis) for _ in protection.protocols)
        return cls(protection, source, destination, spis=spis, keys=keys, **options)

    def request(self, *, inbound: bool) -> AddSa:
        """The request that adds it at one end."""
        protection, elements = self.protection, []
        encryption_key, integrity_key, ah_key = map(KeyMaterial, self.keys)
        spis = iter(self.spis)
        extended = {"esn": self.esn, "sequence_number_high_order": self.high}
        if protection.encryption is not None:
            integrity = (
                AlgorithmInfo(protection.esp_integrity, integrity_key)
                if protection.esp_integrity
                else NO_ALGORITHM
            )
            cipher = AlgorithmInfo(protection.encryption, encryption_key, protection.icv)
            elements.append(SaElement(Operation.ESP, next(spis), integrity, cipher, **extended))
        if protection.ah:
            elements.append(
                SaElement(Operation.AH, next(spis), AlgorithmInfo(protection.ah, ah_key), **extended)
            )
        source, destination = ip_address(self.source).packed, ip_address(self.destination).packed
        return AddSa(inbound, source, destination, tuple(elements))

    def template(self, mode: str) -> str:
        """The words of a policy that wants it: in tunnel mode AH stands around the ESP tunnel."""
        words = []
        for protocol in self.protection.protocols:
            ends = f"src {self.source} dst {self.destination} " if mode == "tunnel" else ""
            words.append(f"tmpl {ends}proto {protocol} mode {mode}")
            mode = "transport"
        return " ".join(words)


def policy(adapter: str, direction: str, source: str, destination: str, bundle: Bundle, mode: str) -> str:
    """A line of `vnic -batch`: what goes from one address to the other has this protection."""
    selector = f"src {source} dst {destination}"
    return f"xfrm policy add {selector} dir {direction} {bundle.template(mode)} offload packet dev {adapter}"


def handles(reply: Any, entries: Iterable[int], member: int = 0x38) -> list[int]:
    """OffloadHandle of every entry, read where it stands in the buffer."""
    buffer = written(reply)
    return [int.from_bytes(buffer[at + member : at + member + 8], "little") for at in entries]


def entries(buffer: Sequence[int]) -> list[int]:
    """Offsets of the entries of a list, as `Next` leads."""
    data = bytes(buffer)
    found = [0]
    while following := int.from_bytes(data[found[-1] + 8 : found[-1] + 16], "little"):
        found.append(following)
    return found


def workers(door: Door) -> dict[tuple[str, str], int]:
    """Packets by who worked on them, "offloaded" or "software", both ways together, for each adapter."""
    return {
        (one["adapter"], kind): one["card"][f"tx_{kind}"] + one["card"][f"rx_{kind}"]
        for one in door.call("GetStatistics")["adapters"]
        for kind in ("offloaded", "software")
    }
