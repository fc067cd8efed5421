"""What a NIC can do: NDIS_IPSEC_OFFLOAD_V2 as a typed value.

Law: the NIC refuses from this value and reports this value; nothing else says what it can do.

Source: NDIS_IPSEC_OFFLOAD_V2 (sheet §2.3, R25-R33).
"""

from __future__ import annotations

from dataclasses import dataclass

from vnic.ipsec.algorithms import ENCRYPTIONS, INTEGRITIES, Encryption, Integrity

ENCAPSULATION_IEEE_802_3 = 0x02

_ALL_AUTHENTICATION = sum(row.ndis_identifier for row in INTEGRITIES)
_ALL_ENCRYPTION = sum(row.ndis_identifier for row in ENCRYPTIONS)


@dataclass(frozen=True, slots=True)
class OffloadCapabilities:
    """NDIS_IPSEC_OFFLOAD_V2; the members are named as there."""

    encapsulation: int = ENCAPSULATION_IEEE_802_3
    ipv6_supported: bool = True
    ipv4_options: bool = True
    ipv6_non_ipsec_extension_headers: bool = True
    ah: bool = True
    esp: bool = True
    ah_esp_combined: bool = True
    transport: bool = True
    tunnel: bool = True
    transport_tunnel_combined: bool = True
    lso_supported: bool = False
    extended_sequence_numbers: bool = True
    udp_esp: int = 0
    authentication_algorithms: int = _ALL_AUTHENTICATION
    """OR of the identifiers in `ipsec.algorithms.INTEGRITIES`."""
    encryption_algorithms: int = _ALL_ENCRYPTION
    """OR of the identifiers in `ipsec.algorithms.ENCRYPTIONS`."""
    sa_offload_capacity: int = 131072
    """Bundles that fit (R32)."""

    def integrities(self) -> tuple[Integrity, ...]:
        """Rows of the integrity algorithms it has."""
        return tuple(row for row in INTEGRITIES if row.ndis_identifier & self.authentication_algorithms)

    def encryptions(self) -> tuple[Encryption, ...]:
        """Rows of the encryption algorithms it has."""
        return tuple(row for row in ENCRYPTIONS if row.ndis_identifier & self.encryption_algorithms)
