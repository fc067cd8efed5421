"""CryptoStatus of received packets, NDIS status codes of requests, and status indications.

Law: numbers and names as the sheet gives them, nothing else.

Source: NDIS_IPSEC_OFFLOAD_V2_NET_BUFFER_LIST_INFO (sheet §7.2); ndis.h status codes (sheet §4.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class CryptoStatus(IntEnum):
    """Result of the checks on one received packet; one code per packet.

    SUCCESS alone proves nothing: NDIS also uses it on packets that were not processed (R187).
    Use `ReceiveInfo.verified`.
    """

    SUCCESS = 0
    GENERIC_ERROR = 1
    TRANSPORT_AH_AUTH_FAILED = 2
    TRANSPORT_ESP_AUTH_FAILED = 3
    TUNNEL_AH_AUTH_FAILED = 4
    TUNNEL_ESP_AUTH_FAILED = 5
    INVALID_PACKET_SYNTAX = 6
    INVALID_PROTOCOL = 7


class NdisStatus(IntEnum):
    """Status of an OID request or of a completed send. `label` is the name users see.

    Success severity is not the sign bit alone: NOT_ACCEPTED and PENDING are not failures by sign
    (sheet §4.4), so compare with SUCCESS.
    """

    SUCCESS = 0x00000000
    PENDING = 0x00000103
    NOT_RECOGNIZED = 0x00010001
    NOT_ACCEPTED = 0x00010003
    FAILURE = 0xC0000001
    INVALID_PARAMETER = 0xC000000D
    RESOURCES = 0xC000009A
    NOT_SUPPORTED = 0xC00000BB
    CLOSING = 0xC0010002
    REQUEST_ABORTED = 0xC001000C
    RESET_IN_PROGRESS = 0xC001000D
    INVALID_LENGTH = 0xC0010014
    INVALID_DATA = 0xC0010015
    BUFFER_TOO_SHORT = 0xC0010016
    INVALID_OID = 0xC0010017
    PAUSED = 0xC023002A
    """STATUS_NDIS_PAUSED of ntstatus.h."""

    @property
    def label(self) -> str:
        """The NDIS name, such as `NDIS_STATUS_INVALID_DATA`."""
        return f"NDIS_STATUS_{self.name}"


class IndicationCode(IntEnum):
    """Status indications: what the NIC tells everybody above it, unasked (sheet §3.3, §4.4)."""

    RESET_START = 0x40010004
    RESET_END = 0x40010005
    TASK_OFFLOAD_CURRENT_CONFIG = 0x40020006
    TASK_OFFLOAD_HARDWARE_CAPABILITIES = 0x40020007

    @property
    def label(self) -> str:
        """The NDIS name, such as `NDIS_STATUS_RESET_START`."""
        return f"NDIS_STATUS_{self.name}"


@dataclass(frozen=True, slots=True)
class StatusIndication:
    """One indication; `buffer` is the StatusBuffer: an NDIS_OFFLOAD for the two TASK_OFFLOAD codes (R62)."""

    code: IndicationCode
    buffer: bytes = b""
