"""What a V1 SA says it protects, held against a packet that was opened with it.

Law: answers for what the packet shows; what a packet does not show passes, because the policy check is the
transport's (R11).

Source: OID_TCP_TASK_IPSEC_ADD_SA (sheet §4.8), R125-R127, R142.
"""

from __future__ import annotations

from vnic.ndis.oid import TrafficFilter
from vnic.packet.ip import TCP, UDP, IpHeader

_PORTS_LENGTH = 4


def _address_passes(address: bytes, wanted: bytes, mask: bytes) -> bool:
    return all((have ^ want) & bits == 0 for have, want, bits in zip(address, wanted, mask, strict=True))


def passes_addresses(wanted: TrafficFilter, header: IpHeader) -> bool:
    """Whether the addresses of an IP header are those a filter names; zero members are not filtered on."""
    return (
        len(header.source) == len(wanted.source)
        and (not any(wanted.source) or _address_passes(header.source, wanted.source, wanted.source_mask))
        and (
            not any(wanted.destination)
            or _address_passes(header.destination, wanted.destination, wanted.destination_mask)
        )
    )


def passes_protocol(
    wanted: TrafficFilter, frame: bytes | bytearray, protocol: int, start: int, end: int
) -> bool:
    """Whether protocol and ports are those a filter names.

    Args:
        protocol: what lies at `start`: nothing that IPsec still hides.
        end: offset behind it.
    """
    if wanted.protocol and wanted.protocol != protocol:
        return False
    if not (wanted.source_port or wanted.destination_port):
        return True
    if protocol not in (TCP, UDP) or end - start < _PORTS_LENGTH:
        return False
    ports = (
        (wanted.source_port, frame[start] << 8 | frame[start + 1]),
        (wanted.destination_port, frame[start + 2] << 8 | frame[start + 3]),
    )
    return all(want in (0, have) for want, have in ports)
