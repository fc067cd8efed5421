"""The settings of the adapter: its registry, keyword by keyword, and how OFFLOAD_PARAMETERS changes it.

Law: values. What is in force, and what follows from it, is `configuration`.

Source: sheet §3.1, §3.2; R38, R43, R44, R48.
"""

from __future__ import annotations

from dataclasses import dataclass

from vnic.errors import OidError
from vnic.ndis.configuration_structs import IpsecParameter, OffloadParameters, SwitchParameter
from vnic.ndis.keywords import V1_IPV4, V2, V2_IPV4, IpsecKeyword, Keywords
from vnic.ndis.status import NdisStatus

_TRANSMIT_ENABLED = (2, 4)
"""TX_ENABLED_RX_DISABLED and TX_RX_ENABLED of the checksum members of NDIS_OFFLOAD_PARAMETERS; 1 and 3 are
off for transmit, 0 is no change."""

LSO_V1 = "*LsoV1IPv4"
LSO_V2_IPV4 = "*LsoV2IPv4"
LSO_V2_IPV6 = "*LsoV2IPv6"
KEYWORDS = {
    V1_IPV4: "v1_ipv4",
    V2: "v2",
    V2_IPV4: "v2_ipv4",
    LSO_V1: "lso_v1_ipv4",
    LSO_V2_IPV4: "lso_v2_ipv4",
    LSO_V2_IPV6: "lso_v2_ipv6",
}
"""Members of `Settings`."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The registry, keyword by keyword; `Keywords` is what the outside sees of it."""

    v1_ipv4: IpsecKeyword
    v2: IpsecKeyword
    v2_ipv4: IpsecKeyword
    lso_v1_ipv4: bool
    lso_v2_ipv4: bool
    lso_v2_ipv6: bool
    checksum_ipv4: bool = True
    checksum_ipv6: bool = True
    """Of sends; this NIC checks none on receive."""

    @classmethod
    def of(cls, keywords: Keywords) -> Settings:
        lso = keywords.lso
        return cls(keywords.v1_ipv4, keywords.v2, keywords.v2_ipv4, lso, lso, lso)

    def changed(self, parameters: OffloadParameters) -> Settings:
        """After OFFLOAD_PARAMETERS: an IPsec value is the keyword's plus one, and 0 is no change (R48)."""

        def ipsec(value: int, before: IpsecKeyword) -> IpsecKeyword:
            return IpsecKeyword(value - 1) if value else before

        def lso(value: int, before: bool) -> bool:
            return value == SwitchParameter.ENABLED if value else before

        def checksum(before: bool, *values: int) -> bool:
            """One switch for what NDIS has several of: off with any of them, on when all set are on."""
            given = [value in _TRANSMIT_ENABLED for value in values if value]
            return all(given) if given else before

        return Settings(
            ipsec(parameters.ipsec_v1, self.v1_ipv4),
            ipsec(parameters.ipsec_v2, self.v2),
            ipsec(parameters.ipsec_v2_ipv4, self.v2_ipv4),
            lso(parameters.lso_v1, self.lso_v1_ipv4),
            lso(parameters.lso_v2_ipv4, self.lso_v2_ipv4),
            lso(parameters.lso_v2_ipv6, self.lso_v2_ipv6),
            checksum(
                self.checksum_ipv4,
                parameters.ipv4_checksum,
                parameters.tcp_ipv4_checksum,
                parameters.udp_ipv4_checksum,
            ),
            checksum(self.checksum_ipv6, parameters.tcp_ipv6_checksum, parameters.udp_ipv6_checksum),
        )

    def keywords(self) -> Keywords:
        lso = self.lso_v1_ipv4 and self.lso_v2_ipv4 and self.lso_v2_ipv6
        return Keywords(self.v1_ipv4, self.v2, self.v2_ipv4, lso)


def check_parameters(parameters: OffloadParameters) -> None:
    """Refuse a member that is none of its values.

    Raises:
        OidError: INVALID_DATA (R43).
    """
    for most, members in (
        (max(IpsecParameter), ("ipsec_v1", "ipsec_v2", "ipsec_v2_ipv4")),
        (max(SwitchParameter), ("lso_v1", "lso_v2_ipv4", "lso_v2_ipv6")),
        (
            max(_TRANSMIT_ENABLED),
            (
                "ipv4_checksum",
                "tcp_ipv4_checksum",
                "udp_ipv4_checksum",
                "tcp_ipv6_checksum",
                "udp_ipv6_checksum",
            ),
        ),
    ):
        for member in members:
            value = getattr(parameters, member)
            if not 0 <= value <= most:
                raise OidError(
                    NdisStatus.INVALID_DATA,
                    "no such setting (R43)",
                    field=member,
                    value=str(int(value)),
                    allowed=f"0 (no change) to {int(most)}",
                )
