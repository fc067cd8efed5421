"""The offloads a port can carry in virtio-net headers, by their ethtool names.

Law: names and what they depend on; whether the kernel grants one is asked in `ports/tap`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vnic.errors import RequestError


class Offload(NamedTuple):
    """One offload of the host side: the host leaves this work to whoever takes its frames."""

    name: str
    """The name ethtool shows for it."""
    tun_bits: int
    """TUN_F_* bits of TUNSETOFFLOAD that ask for it."""
    needs: tuple[str, ...] = ()
    """Offloads of which at least one must be on for this one."""


CHECKSUM = Offload("tx-checksumming", 0x01)
TSO4 = Offload("tx-tcp-segmentation", 0x02, (CHECKSUM.name,))
TSO6 = Offload("tx-tcp6-segmentation", 0x04, (CHECKSUM.name,))
TSO_ECN = Offload("tx-tcp-ecn-segmentation", 0x08, (TSO4.name, TSO6.name))
# The kernel takes USO4 and USO6 only together (Linux 6.2 and later).
USO = Offload("tx-udp-segmentation", 0x20 | 0x40, (CHECKSUM.name,))

OFFLOADS = (CHECKSUM, TSO4, TSO6, TSO_ECN, USO)
"""Every offload, in an order in which each comes after what it needs."""

ON = "on"


def off(reason: str) -> str:
    """Give the state text of an offload that is off."""
    return f"off: {reason}"


def check_offloads(names: Iterable[str]) -> frozenset[str]:
    """Give the names as a set.

    Raises:
        RequestError: a name that is no offload.
    """
    known = {offload.name for offload in OFFLOADS}
    chosen = frozenset(names)
    for name in sorted(chosen - known):
        raise RequestError(
            "not an offload of this card", field="offload", value=name, allowed=", ".join(sorted(known))
        )
    return chosen
