"""CryptoStatus of received packets and NDIS status codes of requests.

Law: numbers and names as the sheet gives them, nothing else.

Source: NDIS_IPSEC_OFFLOAD_V2_NET_BUFFER_LIST_INFO (sheet §7.2); ndis.h status codes (sheet §4.4).
"""

from __future__ import annotations

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

    @property
    def label(self) -> str:
        """The NDIS name, such as `NDIS_STATUS_INVALID_DATA`."""
        return f"NDIS_STATUS_{self.name}"
