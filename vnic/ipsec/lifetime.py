"""Lifetime: how long an SA may be used, and from when on it should be replaced.

Law: a frozen value. Who counts against it is `transport.lifetimes`.

A soft limit is told once, so that a key manager makes a new SA in time; a hard limit ends the SA. 0 is none.

Source: RFC 4301 §4.4.2.1 (lifetime of an SA); struct xfrm_lifetime_cfg of linux/xfrm.h, with the words of
ip-xfrm(8).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from vnic.errors import RequestError

MAX_LIMIT = 0xFFFFFFFFFFFFFFFF
"""64 bits; the kernel's own number for no limit of bytes and packets (XFRM_INF)."""

MAX_GRACE_S = 86_400
"""Longest time an old inbound SA goes on beside the one in its place, in seconds."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Limits of one SA; bytes and packets are those of its counters (`ipsec.counters.SaCounters`)."""

    time_soft: int = 0
    """Seconds since it was added."""
    time_hard: int = 0
    time_use_soft: int = 0
    """Seconds since its first packet."""
    time_use_hard: int = 0
    byte_soft: int = 0
    byte_hard: int = 0
    packet_soft: int = 0
    packet_hard: int = 0

    def limits(self) -> Iterator[tuple[str, int]]:
        """The limits there are, by the words of `ip xfrm state`."""
        for one in fields(self):
            limit = getattr(self, one.name)
            if limit:
                yield word_of(one.name), limit

    def checked(self) -> Lifetime | None:
        """Give it, or None where it sets no limit at all.

        Raises:
            RequestError: a limit is out of range.
        """
        for one in fields(self):
            limit = getattr(self, one.name)
            if not 0 <= limit <= MAX_LIMIT:
                raise RequestError(
                    "a limit is out of range",
                    field=f"limit {word_of(one.name)}",
                    value=str(limit)[:64],
                    allowed=f"1 to {MAX_LIMIT}, or 0 for none",
                )
        return self if any(self.limits()) else None


def word_of(member: str) -> str:
    """The word of `ip xfrm state` for a member of Lifetime."""
    return member.replace("_", "-")
