"""HeaderSettings: what an outbound SA puts into outer headers, and how it hides sizes and pauses.

Law: frozen values with the defaults of RFC 4301; an SA whose settings equal `HeaderSettings()` frames as if
there were none.

    member          IPv4 outer header         IPv6 outer header         default, RFC 4301 §5.1.2
    dscp            DSCP                      DSCP                      copied
    hop_limit       TTL                       hop limit                 constructed: 64
    df              DF                        -                         copied; an IPv6 packet has it
    flow_label      -                         flow label                copied; 0 for an IPv4 packet

Source: RFC 4301 §5.1.2.1, §5.1.2.2, §8.1; RFC 4303 §2.6 (dummy packets), §2.7 (TFC
padding); RFC 6040 has ECN.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from vnic.errors import RequestError

DEFAULT_HOP_LIMIT = 64
"""The kernel's for packets it makes itself."""
COPY_HOP_LIMIT = 0

MAX_DSCP = 63
MAX_HOP_LIMIT = 255
MAX_FLOW_LABEL = 0xFFFFF
MAX_TFC_PADDING = 65_535
MIN_DUMMY_INTERVAL_MS = 10
MAX_DUMMY_INTERVAL_MS = 86_400_000


class DfRule(Enum):
    """Where DF of an outer IPv4 header comes from (RFC 4301 §8.1)."""

    COPY = "copy"
    SET = "set"
    CLEAR = "clear"
    """`flag nopmtudisc` of `ip xfrm`."""


@dataclass(frozen=True, slots=True)
class HeaderSettings:
    """How an outbound SA frames what a tunnel carries, as far as it can be chosen."""

    df: DfRule = DfRule.COPY
    hop_limit: int = DEFAULT_HOP_LIMIT
    """Of the outer header; 0 copies that of the packet inside."""
    dscp: int | None = None
    """6 bits of the outer header; None copies. ECN is not part of it."""
    flow_label: int | None = None
    """20 bits of an outer IPv6 header; None copies."""
    tfc_padding: int = 0
    """Packets are padded inside ESP to so many bytes, as far as the path takes them (`tfcpad`); 0 is not."""

    dummy_interval_ms: int = 0
    """A dummy packet is sent when the SA has sent nothing for so long; 0 is never."""

    def check(self, *, tunnel: bool, esp: bool) -> None:
        """Refuse what is out of range or has no meaning.

        Args:
            tunnel: the SA may work in tunnel mode.
            esp: it is an ESP SA.

        Raises:
            RequestError: a member is out of range, or is about a header that the SA does not write.
        """
        _check_range("dscp", self.dscp or 0, 0, MAX_DSCP, "copy, clear or 0 to 63")
        _check_range("ttl", self.hop_limit, COPY_HOP_LIMIT, MAX_HOP_LIMIT, "copy, or 1 to 255")
        _check_range("flow-label", self.flow_label or 0, 0, MAX_FLOW_LABEL, "copy, clear or 0 to 0xfffff")
        _check_range("tfcpad", self.tfc_padding, 0, MAX_TFC_PADDING, f"0 (none) to {MAX_TFC_PADDING} bytes")
        if self.dummy_interval_ms:
            _check_range(
                "dummy",
                self.dummy_interval_ms,
                MIN_DUMMY_INTERVAL_MS,
                MAX_DUMMY_INTERVAL_MS,
                f"0 (never), or {MIN_DUMMY_INTERVAL_MS} to {MAX_DUMMY_INTERVAL_MS} milliseconds",
            )
        for word, used in (("tfcpad", self.tfc_padding), ("dummy", self.dummy_interval_ms)):
            if used and not esp:
                raise RequestError(
                    "AH hides neither sizes nor pauses", field=word, value=str(used), allowed="proto esp"
                )
        if not tunnel:
            self._check_transport()

    def _check_transport(self) -> None:
        """Refuse what transport mode leaves as the host wrote it; not `df clear`, whose flag the kernel
        takes in either mode."""
        default = HeaderSettings()
        for word, value, untouched in (
            ("df", self.df.value, self.df is not DfRule.SET),
            ("ttl", str(self.hop_limit), self.hop_limit == default.hop_limit),
            ("dscp", str(self.dscp), self.dscp is None),
            ("flow-label", str(self.flow_label), self.flow_label is None),
            ("tfcpad", str(self.tfc_padding), not self.tfc_padding),
            ("dummy", str(self.dummy_interval_ms), not self.dummy_interval_ms),
        ):
            if not untouched:
                raise RequestError(
                    "transport mode has no outer header, and no length inside by which padding could be told",
                    field=word,
                    value=value,
                    allowed="mode tunnel",
                )


def _check_range(word: str, value: int, lowest: int, highest: int, allowed: str) -> None:
    if not lowest <= value <= highest:
        raise RequestError("out of range", field=word, value=str(value), allowed=allowed)


DEFAULT_HEADERS = HeaderSettings()
