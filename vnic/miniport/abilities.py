"""What the NIC does with a packet as it is configured now: one answer for send, receive and questions.

Law: reads `TaskOffload` and nothing else. V2 names what it does for both directions at once, V1 for each.

Source: sheet §2.2, §2.3; R3-R5, R21, R24, R30, R172, R175.
"""

from __future__ import annotations

from typing import NamedTuple

from vnic.ipsec.association import Mode
from vnic.miniport.sa_table import Bundle, OutboundBundle
from vnic.ndis.capabilities import (
    ALL_UDP_ESP,
    OffloadCapabilities,
    OffloadCapabilitiesV1,
    TaskOffload,
)
from vnic.ndis.oid import OidVersion
from vnic.packet.ip import IpHeader

_NO_MODES: frozenset[Mode] = frozenset()
_BOTH_MODES = frozenset(Mode)


class Abilities(NamedTuple):
    """What the NIC does in one direction for SAs that came by one generation of OIDs."""

    ipv4: bool
    ipv6: bool
    ipv4_options: bool
    extension_headers: bool
    ah: frozenset[Mode]
    esp: frozenset[Mode]
    ah_esp_combined: bool
    both_portions: bool
    """A transport and a tunnel portion in one packet."""
    udp_esp: int
    """Subtypes, as bits of `ndis.capabilities`."""
    lso: bool
    """Large sends of protected packets (R30)."""
    everything: bool = False
    """No packet needs to be asked about: all of V2 but large sends is on."""

    @property
    def any(self) -> bool:
        """Whether it does anything at all."""
        return bool((self.ah or self.esp) and (self.ipv4 or self.ipv6))

    def plain(self, version: int) -> bool:
        """Whether it does everything that an ordinary ESP packet of this IP version may show."""
        return self.esp == _BOTH_MODES and (self.ipv4 if version == 4 else self.ipv6)

    def takes(self, header: IpHeader) -> bool:
        """Whether it does packets with this IP header (R175)."""
        if header.version == 4:
            return self.ipv4 and (self.ipv4_options or not header.has_options)
        return self.ipv6 and (self.extension_headers or not header.has_options)

    def modes(self, bundle: Bundle) -> frozenset[Mode]:
        """The modes it does of the protocols of a bundle."""
        if bundle.ah is None:
            return self.esp
        if bundle.esp is None:
            return self.ah
        return self.ah & self.esp if self.ah_esp_combined else _NO_MODES

    def covers(self, bundle: Bundle) -> bool:
        """Whether it works on packets of this bundle, as far as the bundle alone can tell."""
        version = bundle.version if isinstance(bundle, OutboundBundle) else _version(bundle.destination)
        modes = self.modes(bundle)
        return (
            (self.ipv4 if version == 4 else self.ipv6)
            and (bool(modes) if bundle.portion is None else bundle.portion in modes)
            and (not bundle.udp_esp or bool(bundle.udp_esp & self.udp_esp))
        )


NOTHING = Abilities(False, False, False, False, _NO_MODES, _NO_MODES, False, False, 0, False)


def abilities(current: TaskOffload, *, send: bool, ipv4: bool = True) -> dict[OidVersion, Abilities]:
    """Give what a configuration makes the NIC do.

    Args:
        send: the direction.
        ipv4: whether IPv4 is on, which no member of NDIS_IPSEC_OFFLOAD_V2 tells.
    """
    return {
        OidVersion.V1: _of_v1(current.ipsec_v1, send=send, ipv4=ipv4),
        OidVersion.V2: _of_v2(current.ipsec_v2, ipv4=ipv4),
    }


def _of_v2(able: OffloadCapabilities, *, ipv4: bool) -> Abilities:
    if not able.encapsulation:
        return NOTHING
    modes = _modes(able.transport, able.tunnel)
    everything = all(
        (
            ipv4,
            able.ipv6_supported,
            able.ipv4_options,
            able.ipv6_non_ipsec_extension_headers,
            able.ah,
            able.esp,
            able.ah_esp_combined,
            modes == _BOTH_MODES,
            able.transport_tunnel_combined,
            able.udp_esp == ALL_UDP_ESP,
        )
    )
    return Abilities(
        ipv4,
        able.ipv6_supported,
        able.ipv4_options,
        able.ipv6_non_ipsec_extension_headers,
        modes if able.ah else _NO_MODES,
        modes if able.esp else _NO_MODES,
        able.ah_esp_combined,
        able.transport_tunnel_combined,
        able.udp_esp,
        able.lso_supported,
        everything,
    )


def _of_v1(able: OffloadCapabilitiesV1, *, send: bool, ipv4: bool) -> Abilities:
    """V1: IPv4 only (R21), and nothing about LSO: the older rule is one or the other (R188)."""
    if not able.encapsulation:
        return NOTHING
    ah = able.ah_send if send else able.ah_receive
    esp = able.esp_send if send else able.esp_receive
    return Abilities(
        ipv4,
        False,
        able.ipv4_options,
        False,
        _modes(able.ah_transport, able.ah_tunnel) if ah else _NO_MODES,
        _modes(able.esp_transport, able.esp_tunnel) if esp else _NO_MODES,
        able.ah_esp_combined,
        able.transport_tunnel_combined,
        able.udp_esp,
        False,
    )


def _modes(transport: bool, tunnel: bool) -> frozenset[Mode]:
    return frozenset(mode for mode, able in ((Mode.TRANSPORT, transport), (Mode.TUNNEL, tunnel)) if able)


def _version(address: bytes) -> int:
    return 4 if len(address) == 4 else 6
