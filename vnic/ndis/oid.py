"""SA requests as the V2 direct OIDs name them, and the NIC as the transport sees it.

Law: typed values and one protocol class. The binary x64 layouts of the same requests are `ndis.structs`;
the bits of a typed request and of its binary form mean the same.

Source: OID_TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA(_EX), …_UPDATE_SA, …_DELETE_SA (sheet §4, R84-R123).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from vnic.ipsec.association import NO_KEY, KeyMaterial, Mode
from vnic.ndis.capabilities import OffloadCapabilities
from vnic.ndis.netbuffer import NetBuffer, OffloadHandle


class Operation(IntEnum):
    """IPSEC_OFFLOAD_V2_OPERATION."""

    AH = 1
    ESP = 2


@dataclass(frozen=True, slots=True)
class AlgorithmInfo:
    """IPSEC_OFFLOAD_V2_ALGORITHM_INFO with its key. `identifier` 0: no algorithm here (R102).

    `additional_info` is the ICV length in bytes, 0 for the algorithm's default: AES-GCM by the contract
    (R107); HMAC-SHA-256 likewise here, because Linux also uses 12 bytes.
    """

    identifier: int = 0
    key: KeyMaterial = NO_KEY
    additional_info: int = 0


NO_ALGORITHM = AlgorithmInfo()


@dataclass(frozen=True, slots=True)
class SaElement:
    """IPSEC_OFFLOAD_V2_SECURITY_ASSOCIATION: one AH or ESP SA of a bundle."""

    operation: Operation
    spi: int
    authentication: AlgorithmInfo = NO_ALGORITHM
    encryption: AlgorithmInfo = NO_ALGORITHM
    esn: bool = False
    """IPSEC_OFFLOAD_V2_ESN_SA."""
    sequence_number_high_order: int = 0
    """Upper half of the extended sequence number at the start."""


@dataclass(frozen=True, slots=True)
class AddSa:
    """IPSEC_OFFLOAD_V2_ADD_SA: an SA bundle of one direction. Elements in the order of processing on
    send: one, or ESP then AH (R96, R98). Addresses are raw bytes of one family; all zero is a wildcard (R99).
    """

    inbound: bool
    source: bytes
    destination: bytes
    elements: tuple[SaElement, ...]
    udp_esp_encapsulation: int = 0
    portion: Mode | None = None
    """Which portion the bundle protects, so that a failure gets the right CryptoStatus name. The binary
    structure has no such member; None lets the NIC learn it from the packets it authenticates."""


@dataclass(frozen=True, slots=True)
class UpdateSa:
    """IPSEC_OFFLOAD_V2_UPDATE_SA: re-base the upper half of the ESN of one element (R120-R123)."""

    handle: OffloadHandle
    operation: Operation
    spi: int
    sequence_number_high_order: int


@dataclass(frozen=True, slots=True)
class DeleteSa:
    """IPSEC_OFFLOAD_V2_DELETE_SA (R111-R113)."""

    handle: OffloadHandle


class Miniport(Protocol):
    """The NIC, as far as the transport may know it."""

    @property
    def capabilities(self) -> OffloadCapabilities:
        """What it can do now; the same table refuses what it cannot."""
        ...

    def add_sa(self, request: AddSa) -> OffloadHandle:
        """Offload a bundle and give its handle (R88), or change nothing.

        Raises:
            OidError: RESOURCES when full (R92); NOT_SUPPORTED for an algorithm, mode or combination it
                lacks; INVALID_DATA for a malformed member; INVALID_PARAMETER for a duplicate inbound
                SPI, destination and protocol, or an outbound counter-mode key already in use.
        """
        ...

    def update_sa(self, request: UpdateSa) -> None:
        """Set the upper half of an extended sequence number.

        Raises:
            OidError: INVALID_PARAMETER when the SA is unknown or has no ESN (R121, R122).
        """
        ...

    def delete_sa(self, request: DeleteSa) -> None:
        """Remove a bundle and free what it used (R112).

        Raises:
            OidError: INVALID_PARAMETER when the handle is unknown.
        """
        ...

    def send(self, burst: list[NetBuffer]) -> None:
        """Make IVs, encrypt and compute ICVs of every frame that has `transmit`, in place.

        Sets `status` to FAILURE on a frame whose handle is unknown (R165) or whose layout does not fit
        its SA; such a frame must not go out. Drops none, reorders none (R197).
        """
        ...

    def receive(self, burst: list[NetBuffer]) -> None:
        """Check and decrypt every frame that matches an SA, in place, and set `receive`.

        Drops none (R171). A frame without a matching SA, and a fragment (R17), keeps `receive` None. On
        failure the frame stays as it was received.
        """
        ...
