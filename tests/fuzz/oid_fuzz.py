"""Invariant: whatever an information buffer holds, the NIC answers with a status, changes nothing unless it
says SUCCESS, shows no byte of a key, and writes only where the structure has members for it.

An input is two bytes and an information buffer:

    byte 0    which OID and request type, from REQUESTS
    byte 1    what happens meanwhile: nothing, a reset, a cancel, a removal, a room for the answer
    rest      the information buffer
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, replace
from typing import Any

from exploring import number, put
from nic_frames import V4, V6, seeded

from vnic.ipsec.algorithms import ENCRYPTION_BY_NAME, INTEGRITY_BY_NAME
from vnic.ipsec.association import KeyMaterial, Mode
from vnic.miniport.adapter import MiniportAdapter
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oid import NO_ALGORITHM, AddSa, AlgorithmInfo, Operation, SaElement, UpdateSa
from vnic.ndis.oids import Oid, OidRequest, OidResult, RequestType
from vnic.ndis.status import NdisStatus
from vnic.ndis.structs import pack_add_sa, pack_add_sa_ex, pack_delete_sa, pack_update_sa
from vnic.ndis.v1_structs import (
    pack_v1_add_sa,
    pack_v1_add_udpesp_sa,
    pack_v1_delete_sa,
    pack_v1_delete_udpesp_sa,
)

ADD, ADD_EX = Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA, Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA_EX
DELETE, UPDATE = Oid.TCP_TASK_IPSEC_OFFLOAD_V2_DELETE_SA, Oid.TCP_TASK_IPSEC_OFFLOAD_V2_UPDATE_SA
V1_ADD, V1_DELETE = Oid.TCP_TASK_IPSEC_ADD_SA, Oid.TCP_TASK_IPSEC_DELETE_SA
V1_ADD_UDP, V1_DELETE_UDP = Oid.TCP_TASK_IPSEC_ADD_UDPESP_SA, Oid.TCP_TASK_IPSEC_DELETE_UDPESP_SA

ADDS = (ADD, ADD_EX, V1_ADD, V1_ADD_UDP)

REQUESTS: tuple[tuple[int, int], ...] = (
    *((oid, RequestType.SET) for oid in Oid),
    *((oid, RequestType.QUERY) for oid in Oid),
    (ADD, RequestType.METHOD),
    (ADD, RequestType.QUERY_STATISTICS),
    (DELETE, 0xFFFFFFFF),
    (0xFC030206, RequestType.SET),
    (0, RequestType.QUERY),
)

SECRET = b"\x5e\xc2\xe7\xb1\x9d\x46\x8f\x23"
"""Every key consists of this, over and over."""
SHOWN = 5
"""As many bytes of a key in a row must not be seen anywhere. A refusal quotes the member that is wrong, and
where a caller has put a key in its place, that is four of its bytes."""

HANDLE_MEMBERS = {ADD: (0x38,), ADD_EX: (0x30,), V1_ADD: (0xA8,), V1_ADD_UDP: (0xA8, 0xB8)}
"""Where an add writes back (sheet §4.6, §4.8)."""

NEEDED_LIMIT = 1 << 20
"""No structure needs more bytes than this, so BytesNeeded must not ask for them."""


def secret(length: int) -> KeyMaterial:
    return KeyMaterial((SECRET * 8)[:length])


def algorithm(name: str, icv: int = 0) -> AlgorithmInfo:
    row = ENCRYPTION_BY_NAME.get(name) or INTEGRITY_BY_NAME[name]
    return AlgorithmInfo(row.ndis_identifier, secret(row.key_length), icv)


def esp(encryption: str, integrity: str = "", *, spi: int = 0x10000, **members: Any) -> SaElement:
    authentication = algorithm(integrity) if integrity else NO_ALGORITHM
    return SaElement(Operation.ESP, spi, authentication, algorithm(encryption), **members)


def ah(integrity: str, *, spi: int = 0x20000, **members: Any) -> SaElement:
    return SaElement(Operation.AH, spi, algorithm(integrity), **members)


def add(
    *elements: SaElement, inbound: bool = True, addresses: tuple[bytes, bytes] = V4, **members: Any
) -> AddSa:
    return AddSa(inbound, *addresses, elements, **members)


def named(oid: int, type_: int, buffer: bytes = b"", meanwhile: int = 0) -> bytes:
    """The input for a request."""
    return bytes((REQUESTS.index((oid, type_)), meanwhile)) + buffer


@dataclass(frozen=True)
class State:
    """All that a request may change."""

    bundles: dict[int, tuple[object, ...]]
    parser_entries: object
    current: object
    keywords: object
    counter_keys: int


class OidTarget:
    """A NIC that holds one of everything, and the handles of another one."""

    def __init__(self) -> None:
        self.other = self._nic(1 << 32)
        self._renew()
        self.strange = [int(handle) for handle, _ in self.other.bundles()]

    def _nic(self, first_handle: int) -> MiniportAdapter:
        nic = MiniportAdapter(seeded(1).randbytes, first_handle=first_handle + 1)
        nic.set_encapsulation(True, True)
        for request in (
            add(esp("aes-gcm-128"), inbound=False),
            add(esp("aes-cbc-128", "hmac-sha1-96", esn=True, spi=0x10001), ah("hmac-md5-96", esn=True)),
            add(esp("aes-gcm-256", spi=0x10002), addresses=V6),
        ):
            nic.add_sa(request)
        for buffer, oid in (
            (pack_v1_add_sa(self._v1()), V1_ADD),
            (pack_v1_add_udpesp_sa(self._v1(udp_esp_encapsulation=1, spi=0x30001)), V1_ADD_UDP),
        ):
            result = nic.oid_request(OidRequest(oid, RequestType.SET, buffer)).result
            assert result is not None, oid
            assert result.status is NdisStatus.SUCCESS, result
        nic.take_indications()
        return nic

    def _v1(self, spi: int = 0x30000, **members: Any) -> AddSa:
        request = add(esp("3des-cbc", "hmac-sha1-96", spi=spi), portion=Mode.TRANSPORT, **members)
        key = bytes(range(1, 25))
        three = AlgorithmInfo(request.elements[0].encryption.identifier, KeyMaterial(key))
        return replace(request, elements=(replace(request.elements[0], encryption=three),))

    def _renew(self) -> None:
        """Put back what a request has changed."""
        self.nic = self._nic(0)
        self.before = self.state()
        self.handles = [*self.before.bundles, *self._entries()]

    def _entries(self) -> list[int]:
        return list(self.nic._table.parser_entries._entries)

    def state(self) -> State:
        """What the NIC is now, by value."""
        table = self.nic._table
        entries = table.parser_entries
        bundles = {
            int(handle): tuple(
                (one.spi, one.numbers and (one.numbers._high, one.numbers._highest))
                for one in (bundle.esp, bundle.ah)
                if one is not None
            )
            for handle, bundle in self.nic.bundles()
        }
        return State(
            bundles,
            (dict(entries._entries), set(entries._marked)),
            (self.nic.current, self.nic.configuration.receiving, self.nic.configuration.ipv4),
            self.nic.keywords,
            len(table._keys),
        )

    # ------------------------------------------------------------------------------- inputs

    def seeds(self) -> list[bytes]:
        three = [
            add(esp("aes-gcm-192", spi=0x40000), inbound=False, addresses=(bytes(4), V4[1])),
            add(esp("aes-cbc-256", "hmac-sha256-128", spi=0x40001)),
            add(esp("aes-cbc-192", spi=0x40002), ah("aes-gmac-192", spi=0x40003, esn=True)),
        ]
        six = add(esp("null", "aes-gmac-256", spi=0x40004), addresses=V6, udp_esp_encapsulation=2)
        update = UpdateSa(OffloadHandle(self.handles[1]), Operation.ESP, 0x10001, 7)
        inputs = [
            (ADD, pack_add_sa(three)),
            (ADD, pack_add_sa([six])),
            (ADD, pack_add_sa([three[0], three[1], three[1]])),
            (ADD_EX, pack_add_sa_ex(three[2])),
            (ADD_EX, pack_add_sa_ex(six)),
            (DELETE, pack_delete_sa([self.handles[0]])),
            (DELETE, pack_delete_sa([*self.handles[:3], *self.strange[:2]])),
            (UPDATE, pack_update_sa(update)),
            (UPDATE, pack_update_sa(replace(update, operation=Operation.AH, spi=0x20000))),
            (V1_ADD, pack_v1_add_sa(self._v1(spi=0x40005))),
            (V1_ADD_UDP, pack_v1_add_udpesp_sa(self._v1(spi=0x40006, udp_esp_encapsulation=1))),
            (V1_DELETE, pack_v1_delete_sa(self.handles[3])),
            (V1_DELETE_UDP, pack_v1_delete_udpesp_sa(self.handles[4], self._entries()[0])),
            (Oid.TCP_OFFLOAD_PARAMETERS, struct.pack("<BBH8x4xIBB2x", 0x80, 2, 22, 0, 3, 2)),
            (Oid.OFFLOAD_ENCAPSULATION, struct.pack("<BBHIIIIII", 0xA8, 1, 28, 1, 2, 14, 2, 0, 0)),
            (Oid.TCP_TASK_OFFLOAD, struct.pack("<7I", 1, 28, 0, 0, 2, 1, 14)),
            (
                Oid.TCP_TASK_OFFLOAD,
                struct.pack("<7I5I6I", 1, 28, 0, 28, 2, 1, 14, 1, 24, 1, 0, 24, 1, 0, 0, 0, 0x33, 0xF4),
            ),
        ]
        made = [named(oid, RequestType.SET, bytes(buffer)) for oid, buffer in inputs]
        for oid in Oid:
            made += [named(oid, RequestType.QUERY, bytes(400)), named(oid, RequestType.SET)]
        made += [bytes((index, 0)) for index in range(len(REQUESTS))]
        made += [named(ADD, RequestType.SET, bytes(inputs[0][1]), meanwhile) for meanwhile in (6, 7, 8, 9)]
        return made

    def change(self, data: bytearray, rng: random.Random) -> None:
        """Change a member that others lean on: a header, a `Next`, a length, an offset, a handle."""
        if len(data) < 2:
            data += bytes(2)
        body = len(data) - 2
        word = 2 + (rng.randrange(body + 1) & ~3)
        match rng.randrange(9):
            case 0:
                data[0] = rng.randrange(len(REQUESTS))
            case 1:
                data[1] = rng.randrange(10)
            case 2:
                # the header of the structure, or of what may be the second entry
                start = rng.choice((2, 2, 2, 2 + 24, 2 + 176, 2 + 176 + 8 * rng.randrange(12)))
                put(data, start + rng.randrange(4), rng.choice((1, 2)), number(body, rng))
            case 3:
                put(data, 2 + 8, 8, rng.choice((0, 8, 24, 168, 176, 184, body, body & ~7, number(body, rng))))
            case 4:
                put(data, word, 4, number(body, rng))
            case 5:
                handle = rng.choice([*self.handles, *self.strange, 0, 1 << 63, (1 << 64) - 1])
                put(data, 2 + rng.choice((0, 8, 0x10, 0x30, 0x38, 0xA8, 0xB8)), 8, handle)
            case 6:
                # lengths and offsets of keys: of both elements in both structures, and the key area's
                put(data, 2 + rng.choice(KEY_MEMBERS), 4, number(rng.choice((40, body)), rng))
            case 7:
                del data[2 + rng.randrange(body + 1) :]
            case _:
                put(data, 2 + rng.choice(ALGORITHM_MEMBERS), 4, 1 << rng.randrange(12))

    # ------------------------------------------------------------------------------- one input

    def one(self, data: bytes) -> str:
        data = data.ljust(2, b"\0")
        oid, type_ = REQUESTS[data[0] % len(REQUESTS)]
        meanwhile = data[1] % 10
        buffer = bytearray(data[2:])
        given = bytes(buffer)
        request = OidRequest(oid, type_, buffer, request_id=77)
        if meanwhile == 6:
            self.nic.begin_reset()
        elif meanwhile == 7:
            self.nic.remove()
        operation = self.nic.oid_request(request)
        if operation.result is None and meanwhile == 8:
            operation.abort()
        elif operation.result is None and meanwhile == 9:
            self.nic.begin_reset()
        for _ in range(len(buffer) + 2):
            if operation.advance():
                break
        result = operation.result
        assert result is not None, "a request without an end"
        if meanwhile in (6, 9):
            self.nic.end_reset()
        self.nic.take_indications()
        self._check(oid, type_, given, request, result)
        if meanwhile == 7 or self.state() != self.before:
            self._renew()
        return f"{oid:#x} {type_} {result.status.name} {result.field.rstrip('[]0123456789')}"

    def _check(self, oid: int, type_: int, given: bytes, request: OidRequest, result: OidResult) -> None:
        assert result.status in NdisStatus
        assert result.status is not NdisStatus.PENDING
        assert (result.message != "") or result.status is NdisStatus.SUCCESS
        self._check_secrets(request, result)
        if result.status is NdisStatus.BUFFER_TOO_SHORT:
            assert len(given) < result.bytes_needed < NEEDED_LIMIT
        elif result.status is not NdisStatus.INVALID_LENGTH:
            assert result.bytes_needed == 0
        after = self.state()
        same = after == self.before
        if type_ == RequestType.QUERY:
            assert same
            if result.status is NdisStatus.SUCCESS:
                assert result.bytes_written == len(result.information_buffer) <= len(given)
            else:
                assert result.information_buffer == b""
            return
        self._check_writes(oid, given, bytes(request.information_buffer))
        if result.status is not NdisStatus.SUCCESS:
            # Of a list of deletions all that could be is done, and what an abort left of it; a deletion with
            # UDP encapsulation that comes during a reset is done at its end (R150).
            fewer = set(after.bundles) < set(self.before.bundles)
            assert same or (fewer and oid in (DELETE, V1_DELETE_UDP))
            return
        assert type_ == RequestType.SET
        if oid in ADDS:
            written = bytes(request.information_buffer)
            assert result.information_buffer == written
            new = set(after.bundles) - set(self.before.bundles)
            assert new
            assert all(handle.to_bytes(8, "little") in written for handle in new)
            assert self.before.bundles.items() <= after.bundles.items()
            assert (after.current, after.keywords) == (self.before.current, self.before.keywords)
        elif oid in (DELETE, V1_DELETE, V1_DELETE_UDP):
            assert set(after.bundles) < set(self.before.bundles)
            assert after.current == self.before.current
        elif oid == UPDATE:
            assert set(after.bundles) == set(self.before.bundles)
        else:
            assert after.bundles == self.before.bundles

    def _check_secrets(self, request: OidRequest, result: OidResult) -> None:
        shown = " ".join(
            (result.message, result.field, result.value, result.allowed, repr(result), repr(request))
        )
        text = shown.lower()
        for start in range(len(SECRET)):
            part = (SECRET * 2)[start : start + SHOWN]
            # As text, as hexadecimal, and as the number a little-endian member would be.
            assert part.hex() not in text, text
            assert part[::-1].hex() not in text, text
            assert repr(part)[2:-1] not in shown, shown

    def _check_writes(self, oid: int, given: bytes, written: bytes) -> None:
        assert len(written) == len(given)
        different = [index for index, (one, two) in enumerate(zip(given, written, strict=True)) if one != two]
        if not different:
            return
        assert oid in HANDLE_MEMBERS, "a request that returns nothing has written into the buffer"
        entries = range(0, len(given), 8) if oid == ADD else (0,)
        allowed = {
            entry + member + byte for entry in entries for member in HANDLE_MEMBERS[oid] for byte in range(8)
        }
        assert set(different) <= allowed


KEY_MEMBERS = (
    *(0x44 + 48 * element + part for element in (0, 1) for part in (0x10, 0x14, 0x20, 0x24)),
    *(0x3C + 48 * element + part for element in (0, 1) for part in (0x10, 0x14, 0x20, 0x24)),
    *(0x24 + 44 * element + part for element in (0, 1) for part in (0x0C, 0x18)),
    0x9C,
    0xA0,
    0xA4,
    0xB0,
    0xC0,
)
"""KeyLength and KeyOffsetBytes of the elements of ADD_SA and ADD_SA_EX, algoKeylen of V1, the key areas."""

ALGORITHM_MEMBERS = tuple(
    start + 48 * element + part
    for start in (0x3C, 0x44)
    for element in (0, 1)
    for part in (0x0C, 0x1C, 0x18, 0x28)
)
"""Identifiers and AdditionalInfo."""
