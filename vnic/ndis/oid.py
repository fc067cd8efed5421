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
from vnic.ndis.capabilities import OffloadCapabilities, TaskOffload
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
    sequence_number_low_order: int | None = None
    """Lower half of it, where it is known: the NIC then takes for a packet's number the closest to it, as the
    transport does. The binary structure has no such member; None: the first packet's may be any."""


class OidVersion(IntEnum):
    """Which generation of OIDs an SA came by; it decides what the NIC expects and reports per packet."""

    V1 = 1
    V2 = 2


@dataclass(frozen=True, slots=True)
class TrafficFilter:
    """The filter members of the V1 ADD_SA structures; zero members are not filtered on (R125-R127).

    Addresses and masks are four bytes each. They tell what the transport sends through the SA; the NIC
    keeps them and, on receive, holds them against what an inbound packet carries.
    """

    source: bytes
    source_mask: bytes
    destination: bytes
    destination_mask: bytes
    protocol: int = 0
    source_port: int = 0
    destination_port: int = 0


@dataclass(frozen=True, slots=True)
class AddSa:
    """IPSEC_OFFLOAD_V2_ADD_SA: an SA bundle of one direction. Elements in the order of processing on
    send: one, or ESP then AH (R96, R98). Addresses are raw bytes of one family; all zero is a wildcard (R99).

    The V1 structures become the same request: source and destination are those of the IP header in front of
    the IPsec headers, so of the tunnel where tunnel addresses are given, and the portion is known (R128).
    """

    inbound: bool
    source: bytes
    destination: bytes
    elements: tuple[SaElement, ...]
    udp_esp_encapsulation: int = 0
    """0, or one of the bits UDP_ESP_TRANSPORT … of `ndis.capabilities` (sheet §9.2)."""
    portion: Mode | None = None
    """Which portion the bundle protects, so that a failure gets the right CryptoStatus name. The binary
    structure has no such member; None lets the NIC learn it from the packets it authenticates."""
    version: OidVersion = OidVersion.V2
    filter: TrafficFilter | None = None
    """V1 only."""


@dataclass(frozen=True, slots=True)
class UpdateSa:
    """IPSEC_OFFLOAD_V2_UPDATE_SA: re-base the upper half of the ESN of one element (R120-R123)."""

    handle: OffloadHandle
    operation: Operation
    spi: int
    sequence_number_high_order: int
    sequence_number_low_order: int | None = None
    """As in `SaElement`; with it the NIC takes the whole number, whatever it had before."""


@dataclass(frozen=True, slots=True)
class DeleteSa:
    """IPSEC_OFFLOAD_V2_DELETE_SA (R111-R113)."""

    handle: OffloadHandle


class SaDoor(Protocol):
    """Whoever takes SA requests: the NIC itself, or a transport that keeps books and passes them on."""

    def add_sa(self, request: AddSa) -> OffloadHandle:
        """Offload a bundle and give its handle (R88), or change nothing.

        Raises:
            OidError: RESOURCES when full (R92); NOT_SUPPORTED for an algorithm, mode or combination it
                lacks; INVALID_DATA for a malformed member; INVALID_PARAMETER for a duplicate inbound
                SPI, destination and protocol, or an outbound counter-mode key already in use;
                RESET_IN_PROGRESS during a reset; NOT_ACCEPTED after surprise removal (R80).
        """
        ...

    def update_sa(self, request: UpdateSa) -> None:
        """Set the upper half of an extended sequence number.

        Raises:
            OidError: INVALID_PARAMETER when the SA is unknown or has no ESN (R121, R122);
                RESET_IN_PROGRESS, NOT_ACCEPTED as for `add_sa`.
        """
        ...

    def delete_sa(self, request: DeleteSa) -> None:
        """Remove a bundle and free what it used (R112).

        Raises:
            OidError: INVALID_PARAMETER when the handle is unknown; NOT_ACCEPTED during a reset (R115) and
                after surprise removal (R80).
        """
        ...


class Miniport(SaDoor, Protocol):
    """The NIC, as far as the transport may know it."""

    @property
    def capabilities(self) -> OffloadCapabilities:
        """IPsec V2 of the current configuration: what it does now. `NO_IPSEC` while nothing is on."""
        ...

    @property
    def hardware(self) -> TaskOffload:
        """What it could do at all (sheet §3.3)."""
        ...

    @property
    def configuration_generation(self) -> int:
        """Grows with every change of the current configuration, so that caches know they are stale."""
        ...

    def offers(self, handle: OffloadHandle) -> bool:
        """Whether the NIC holds this bundle and would work on its packets as it is configured now: not
        when its protocol, mode or family is switched off, nor below a load-balancing master (R18)."""
        ...

    def send(self, burst: list[NetBuffer]) -> None:
        """Make IVs, encrypt and compute ICVs of every frame that has `transmit`, in place.

        Sets `status` to FAILURE on a frame whose handle is unknown (R165), whose layout does not fit its
        SA, or that asks for IPsec while it is not configured; such a frame must not go out. During a reset
        REQUEST_ABORTED (R206), while paused PAUSED. Drops none, reorders none (R197). Takes no large send:
        a frame with `large_send` fails.
        """
        ...

    def receive(self, burst: list[NetBuffer]) -> None:
        """Check and decrypt every frame that matches an SA, in place, and set `receive`.

        Drops none (R171). A frame without a matching SA, and a fragment (R17), keeps `receive` None. On
        failure the frame stays as it was received.
        """
        ...
