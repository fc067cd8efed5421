"""The standardized keywords of IPsec offload: what the registry of an adapter says at its start.

Law: values only. Who reads them and when is `miniport.configuration`.

Source: sheet §3.1, R27, R38-R40, R44.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class IpsecKeyword(IntEnum):
    """Value of each of the three keywords; NDIS_OFFLOAD_PARAMETERS holds the same plus one."""

    DISABLED = 0
    AH = 1
    ESP = 2
    AH_AND_ESP = 3

    @property
    def ah(self) -> bool:
        """Whether AH is on."""
        return bool(self & 1)

    @property
    def esp(self) -> bool:
        """Whether ESP is on."""
        return bool(self & 2)


V1_IPV4 = "*IPsecOffloadV1IPv4"
V2 = "*IPsecOffloadV2"
V2_IPV4 = "*IPsecOffloadV2IPv4"


@dataclass(frozen=True, slots=True)
class Keywords:
    """The registry of one adapter and the host's switches.

    With IPv6, `v2` rules both families and `v2_ipv4` is not used; without IPv6 `v2_ipv4` rules (R49).
    """

    v1_ipv4: IpsecKeyword = IpsecKeyword.AH_AND_ESP
    v2: IpsecKeyword = IpsecKeyword.AH_AND_ESP
    v2_ipv4: IpsecKeyword = IpsecKeyword.AH_AND_ESP
    lso: bool = True
    """Large send offload: *LsoV1IPv4, *LsoV2IPv4 and *LsoV2IPv6 together."""


@dataclass(frozen=True, slots=True)
class HostSwitches:
    """What the whole host has switched off (R39). With either, the transport issues no
    OID_OFFLOAD_ENCAPSULATION and offloads nothing of that kind."""

    disable_task_offload: bool = False
    """Services\\TCPIP\\Parameters\\DisableTaskOffload = 1."""
    enable_ipsec_offload: bool = True
    """Services\\Ipsec\\EnabledOffload = 1."""

    @property
    def ipsec(self) -> bool:
        """Whether the host wants IPsec offload."""
        return self.enable_ipsec_offload and not self.disable_task_offload
