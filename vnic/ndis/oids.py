"""OID numbers, and the request and answer around an information buffer.

Law: names and numbers as ntddndis.h has them; no layout of any information buffer (`ndis.structs`), no
behaviour.

Source: sheet §3.3-§3.5, §4.1, §4.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from vnic.ndis.status import NdisStatus


class Oid(IntEnum):
    """The OIDs this NIC knows. `label` is the NDIS name."""

    OFFLOAD_ENCAPSULATION = 0x0101010A
    TCP_TASK_OFFLOAD = 0xFC010201
    TCP_TASK_IPSEC_ADD_SA = 0xFC010202
    TCP_TASK_IPSEC_DELETE_SA = 0xFC010203
    TCP_TASK_IPSEC_ADD_UDPESP_SA = 0xFC010205
    TCP_TASK_IPSEC_DELETE_UDPESP_SA = 0xFC010206
    TCP_OFFLOAD_CURRENT_CONFIG = 0xFC01020B
    TCP_OFFLOAD_PARAMETERS = 0xFC01020C
    TCP_OFFLOAD_HARDWARE_CAPABILITIES = 0xFC01020D
    TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA = 0xFC030202
    TCP_TASK_IPSEC_OFFLOAD_V2_DELETE_SA = 0xFC030203
    TCP_TASK_IPSEC_OFFLOAD_V2_UPDATE_SA = 0xFC030204
    TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA_EX = 0xFC030205

    @property
    def label(self) -> str:
        """The NDIS name, such as `OID_TCP_OFFLOAD_PARAMETERS`."""
        return f"OID_{self.name}"

    @property
    def direct(self) -> bool:
        """Whether it takes the direct path: several at a time, beside everything else (R65-R68)."""
        return self >> 16 == 0xFC03


class RequestType(IntEnum):
    """NDIS_REQUEST_TYPE."""

    QUERY = 0
    SET = 1
    QUERY_STATISTICS = 2
    METHOD = 12


@dataclass(slots=True)
class OidRequest:
    """NDIS_OID_REQUEST, as far as a caller fills it.

    Attributes:
        oid: any number; one the NIC does not know is answered INVALID_OID.
        request_type: any number; one that does not go with the OID is answered NOT_SUPPORTED.
        information_buffer: belongs to the request until it is finished. For a set: the structures; the
            NIC writes handles back into it. For a query: its length is the room for the answer.
        request_id: the key for cancelling; 0 cannot be cancelled.
    """

    oid: int
    request_type: int
    information_buffer: bytearray = field(repr=False)
    request_id: int = 0


@dataclass(frozen=True, slots=True)
class OidResult:
    """The answer to a finished request.

    Attributes:
        status: never PENDING (R76).
        information_buffer: the whole buffer after a set, with what the NIC wrote back; what was written for
            a query; empty when nothing was written.
        bytes_read: of a set, bytes the NIC took; else 0.
        bytes_written: of a query, bytes of the answer; else 0.
        bytes_needed: for BUFFER_TOO_SHORT and INVALID_LENGTH, the length that would do; else 0.
        supported_revision: revision of the structure that was handled (R82), 0 for one without revision.
        message: what was wrong and what to do, for a person; "" on success. May be filled on success of a
            list of which some entries failed, and then says why the first of them did.
        field, value, allowed: as in `RequestError`.
    """

    status: NdisStatus
    information_buffer: bytes = field(default=b"", repr=False)
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_needed: int = 0
    supported_revision: int = 0
    message: str = ""
    field: str = ""
    value: str = ""
    allowed: str = ""


class OidOperation(Protocol):
    """A request under way. Several may be; each is advanced on its own, between bursts (R67, R68, R79)."""

    request: OidRequest

    @property
    def result(self) -> OidResult | None:
        """None while it is under way (NDIS_STATUS_PENDING)."""
        ...

    def advance(self) -> bool:
        """Do a slice of the work, about a millisecond; gives whether it is finished."""
        ...

    def abort(self, status: NdisStatus = NdisStatus.REQUEST_ABORTED) -> None:
        """End it early (R77, R116, R206): what it added is taken back, what it deleted stays deleted."""
        ...
