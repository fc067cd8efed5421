"""What a NIC can do: NDIS_OFFLOAD as typed values.

Law: the NIC refuses from these values and reports these values; nothing else says what it can do. The same
type serves for the hardware's capabilities and for the current configuration (sheet §3.3).

Source: NDIS_OFFLOAD, NDIS_IPSEC_OFFLOAD_V1, NDIS_IPSEC_OFFLOAD_V2 (sheet §2, R3, R19-R35).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vnic.ipsec.algorithms import ENCRYPTIONS, INTEGRITIES, Encryption, Integrity

ENCAPSULATION_NOT_SUPPORTED = 0x00
ENCAPSULATION_NULL = 0x01
ENCAPSULATION_IEEE_802_3 = 0x02
ENCAPSULATION_IEEE_802_3_P_AND_Q = 0x04
ENCAPSULATION_IEEE_802_3_P_AND_Q_IN_OOB = 0x08
ENCAPSULATION_IEEE_LLC_SNAP_ROUTED = 0x10

ETHERNET = ENCAPSULATION_IEEE_802_3 | ENCAPSULATION_IEEE_802_3_P_AND_Q
"""What this NIC parses: Ethernet, and VLAN tags in the frame (R33, R34)."""

UDP_ESP_TRANSPORT = 0x1
"""IPSEC_OFFLOAD_V2_UDP_ESP_ENCAPSULATION_TRANSPORT (sheet §9.2)."""
UDP_ESP_TUNNEL = 0x2
TRANSPORT_OVER_UDP_ESP_TUNNEL = 0x4
UDP_ESP_TRANSPORT_OVER_TUNNEL = 0x8
ALL_UDP_ESP = 0xF

V1_UDP_ESP_SHIFT = 4
"""The four V1 parse flags of type OTHER are the V2 bits, four places up (sheet §2.2)."""

ALL_AUTHENTICATION = sum(row.ndis_identifier for row in INTEGRITIES)
ALL_ENCRYPTION = sum(row.ndis_identifier for row in ENCRYPTIONS)


@dataclass(frozen=True, slots=True)
class OffloadCapabilities:
    """NDIS_IPSEC_OFFLOAD_V2; the members are named as there. `NO_IPSEC` is the form of "off"."""

    encapsulation: int = ETHERNET
    ipv6_supported: bool = True
    ipv4_options: bool = True
    ipv6_non_ipsec_extension_headers: bool = True
    ah: bool = True
    esp: bool = True
    ah_esp_combined: bool = True
    transport: bool = True
    tunnel: bool = True
    transport_tunnel_combined: bool = True
    lso_supported: bool = True
    extended_sequence_numbers: bool = True
    udp_esp: int = ALL_UDP_ESP
    authentication_algorithms: int = ALL_AUTHENTICATION
    """OR of the identifiers in `ipsec.algorithms.INTEGRITIES`."""
    encryption_algorithms: int = ALL_ENCRYPTION
    """OR of the identifiers in `ipsec.algorithms.ENCRYPTIONS`."""
    sa_offload_capacity: int = 131072
    """Bundles that fit (R32)."""

    def integrities(self) -> tuple[Integrity, ...]:
        """Rows of the integrity algorithms it has."""
        return tuple(row for row in INTEGRITIES if row.ndis_identifier & self.authentication_algorithms)

    def encryptions(self) -> tuple[Encryption, ...]:
        """Rows of the encryption algorithms it has."""
        return tuple(row for row in ENCRYPTIONS if row.ndis_identifier & self.encryption_algorithms)


NO_IPSEC = OffloadCapabilities(
    encapsulation=ENCAPSULATION_NOT_SUPPORTED,
    ipv6_supported=False,
    ipv4_options=False,
    ipv6_non_ipsec_extension_headers=False,
    ah=False,
    esp=False,
    ah_esp_combined=False,
    transport=False,
    tunnel=False,
    transport_tunnel_combined=False,
    lso_supported=False,
    extended_sequence_numbers=False,
    udp_esp=0,
    authentication_algorithms=0,
    encryption_algorithms=0,
    sa_offload_capacity=0,
)


@dataclass(frozen=True, slots=True)
class OffloadCapabilitiesV1:
    """NDIS_IPSEC_OFFLOAD_V1 (sheet §2.2): IPv4 only. `NO_IPSEC_V1` is the form of "off"."""

    encapsulation: int = ETHERNET
    ah_esp_combined: bool = True
    transport_tunnel_combined: bool = True
    ipv4_options: bool = True
    udp_esp: int = ALL_UDP_ESP
    """The subtypes it parses, as V2 bits; the structure has them shifted by V1_UDP_ESP_SHIFT."""
    ah_md5: bool = True
    """Integrity algorithms of AH and of ESP alike."""
    ah_sha1: bool = True
    ah_transport: bool = True
    ah_tunnel: bool = True
    ah_send: bool = True
    ah_receive: bool = True
    esp_des: bool = True
    esp_triple_des: bool = True
    esp_null: bool = True
    esp_transport: bool = True
    esp_tunnel: bool = True
    esp_send: bool = True
    esp_receive: bool = True


NO_IPSEC_V1 = OffloadCapabilitiesV1(ENCAPSULATION_NOT_SUPPORTED, False, False, False, 0, *(False,) * 13)


@dataclass(frozen=True, slots=True)
class LargeSendCapabilities:
    """NDIS_TCP_LARGE_SEND_OFFLOAD_V1 and _V2, of which this NIC has both or neither per family."""

    ipv4: bool = True
    ipv6: bool = True
    max_offload_size: int = 0x3FFFF
    """Largest TCP payload of one large send, in bytes."""
    min_segment_count: int = 2
    tcp_options: bool = True
    ip_options: bool = True
    """IPv4 options and IPv6 extension headers."""


NO_LARGE_SEND = LargeSendCapabilities(False, False, 0, 0, False, False)


@dataclass(frozen=True, slots=True)
class ChecksumCapabilities:
    """NDIS_TCP_IP_CHECKSUM_OFFLOAD, send side; this NIC checks none on receive."""

    ipv4: bool = True
    ipv6: bool = True


@dataclass(frozen=True, slots=True)
class TaskOffload:
    """NDIS_OFFLOAD: all task offloads of a NIC, as hardware or as current configuration."""

    ipsec_v2: OffloadCapabilities = field(default_factory=OffloadCapabilities)
    ipsec_v1: OffloadCapabilitiesV1 = field(default_factory=OffloadCapabilitiesV1)
    large_send: LargeSendCapabilities = field(default_factory=LargeSendCapabilities)
    checksum: ChecksumCapabilities = field(default_factory=ChecksumCapabilities)


NO_TASK_OFFLOAD = TaskOffload(NO_IPSEC, NO_IPSEC_V1, NO_LARGE_SEND, ChecksumCapabilities(False, False))
