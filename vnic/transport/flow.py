"""The fields of a packet that policy looks at.

Law: reads one packet, keeps nothing.

Source: RFC 4301 §4.4.1.1; ICMP type and code stand in for ports as there. RFC 8200 §4.5: a later fragment
names the first header of the fragmentable part, be it an extension header.
"""

from __future__ import annotations

from vnic.ipsec.policy import HIDDEN_PROTOCOL, ICMP_PROTOCOLS, PROTOCOLS_WITH_PORTS, FlowKey
from vnic.packet.ip import EXTENSION_HEADERS, IpHeader


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
        else:
            # A protocol without ports shows all it has; a selector with ports never names it.
            source_port = destination_port = 0x10000
    elif header.version == 6 and protocol in EXTENSION_HEADERS:
        protocol = HIDDEN_PROTOCOL
    return FlowKey(header.source, header.destination, protocol, source_port, destination_port)
