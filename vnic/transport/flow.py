"""The fields of a packet that policy looks at, and of a fragment what its first one showed.

Law: `flow_key` reads one packet and keeps nothing; `FirstFragments` keeps a bounded number of flows.

Source: RFC 4301 §4.4.1.1, §7.3; ICMP type and code and the mobility header's type stand in for ports as
there. RFC 8200 §4.5: a later fragment names the first header of the fragmentable part, be it an extension
header.
"""

from __future__ import annotations

from collections.abc import Hashable

from vnic.ipsec.policy import (
    BEYOND_PORTS,
    HIDDEN_PROTOCOL,
    ICMP_PROTOCOLS,
    MOBILITY,
    PROTOCOLS_WITH_PORTS,
    FlowKey,
)
from vnic.packet.ip import EXTENSION_HEADERS, FRAGMENT, IPV6_LENGTH, IpHeader

_MAX_FIRSTS = 4096
"""First fragments remembered; the table starts afresh beyond."""
_LIFETIME_S = 30.0
"""How long the later fragments of a packet may follow its first; RFC 791 §3.2 has 15 s as the least, RFC
8200 §4.5 60 s as the longest."""


def flow_key(frame: bytes | bytearray, header: IpHeader) -> FlowKey:
    """Addresses, protocol and ports of a packet; -1 for what a fragment hides."""
    protocol = header.protocol
    source_port = destination_port = -1
    start = header.payload_offset
    if header.fragment_offset == 0:
        if protocol in PROTOCOLS_WITH_PORTS:
            if header.end - start >= 4:
                source_port = frame[start] << 8 | frame[start + 1]
                destination_port = frame[start + 2] << 8 | frame[start + 3]
        elif protocol in ICMP_PROTOCOLS:
            if header.end - start >= 2:
                source_port = frame[start]
                destination_port = frame[start + 1]
        elif protocol == MOBILITY:
            if header.end - start >= 3:
                source_port = frame[start + 2]
                destination_port = BEYOND_PORTS
        else:
            # A protocol without ports shows all it has; a selector with ports never names it.
            source_port = destination_port = BEYOND_PORTS
    elif header.version == 6 and protocol in EXTENSION_HEADERS:
        protocol = HIDDEN_PROTOCOL
    return FlowKey(header.source, header.destination, protocol, source_port, destination_port)


def judged_length(protocol: int) -> int:
    """Bytes at the beginning of an upper-layer header that policy looks at."""
    if protocol in PROTOCOLS_WITH_PORTS:
        return 4
    if protocol in ICMP_PROTOCOLS:
        return 2
    return 3 if protocol == MOBILITY else 0


class FirstFragments:
    """Flows of first fragments, for the later ones of the same packets.

    A fragment belongs to a first one of the same addresses, identification and (IPv4) protocol that came the
    same way. The ports it hides stand in the first 8 bytes of a packet, which no later fragment covers.
    """

    def __init__(self) -> None:
        self._flows: dict[Hashable, tuple[FlowKey, float]] = {}

    def clear(self) -> None:
        """Forget all."""
        self._flows.clear()

    def flow_of(
        self, frame: bytes | bytearray, header: IpHeader, flow: FlowKey, now: float, way: Hashable = None
    ) -> FlowKey:
        """The flow a fragment belongs to; `flow` itself for a first one, which is remembered, and for a later
        one whose first is not known.

        Args:
            flow: what the fragment itself shows.
            now: monotonic seconds.
            way: what protected it.
        """
        protocol = header.protocol if header.version == 4 else 0
        key = (way, header.source, header.destination, protocol, _identification(frame, header))
        if header.fragment_offset == 0:
            if len(self._flows) >= _MAX_FIRSTS:
                self._flows.clear()
            self._flows[key] = (flow, now)
            return flow
        first, seen = self._flows.get(key, (flow, now))
        return first if now - seen < _LIFETIME_S else flow


def _identification(frame: bytes | bytearray, header: IpHeader) -> int:
    if header.version == 4:
        return frame[header.offset + 4] << 8 | frame[header.offset + 5]
    protocol, position = frame[header.offset + 6], header.offset + IPV6_LENGTH
    while protocol != FRAGMENT:
        protocol, position = frame[position], position + 8 + frame[position + 1] * 8
    return int.from_bytes(frame[position + 4 : position + 8], "big")
