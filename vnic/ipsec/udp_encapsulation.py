"""UdpEncapsulation: the UDP header that stands in front of ESP, so that it gets through NATs.

Law: a frozen value; where the far end is now, when that differs, is live state (`transport.state`).

Source: RFC 3948; `encap` of ip-xfrm(8).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from vnic.errors import RequestError

NAT_TRAVERSAL_PORT = 4500
"""Where UDP-encapsulated ESP goes unless both ends say otherwise (RFC 3948 §2.1)."""

DEFAULT_KEEPALIVE_S = 20
"""RFC 3948 §4."""
MAX_KEEPALIVE_S = 3600
MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class UdpEncapsulation:
    """UDP encapsulation of one ESP SA. Ports in host order, as the packets of the SA have them."""

    source_port: int
    """Of an inbound SA 0: any, of a peer whose NAT chooses it."""
    destination_port: int
    original_address: bytes = b""
    """Of a peer behind a NAT, the address it calls itself, in network order; with it the checksums inside
    transport mode are put right (RFC 3948 §3.1.2). Empty: not known, they are computed anew."""
    follow: bool = False
    """Inbound: where authenticated packets come from, when that changes, is where answers go."""
    keepalive: int = DEFAULT_KEEPALIVE_S
    """Outbound: seconds without a packet after which a keepalive is sent; 0: none ever."""

    def checked(self, *, inbound: bool, replay_window: int, ipv6: bool) -> UdpEncapsulation:
        """Give it without an address that says nothing, or refuse it.

        Args:
            inbound: of an inbound SA.
            replay_window: of the SA.
            ipv6: whether the addresses of the SA are IPv6.

        Raises:
            RequestError: a port, the address or the time is out of range, or `follow` cannot be safe.
        """
        lowest = 0 if inbound else 1
        for name, port, low in (
            ("sport", self.source_port, lowest),
            ("dport", self.destination_port, 1),
        ):
            if not low <= port <= MAX_PORT:
                raise RequestError(
                    "not a port for UDP encapsulation",
                    field=f"encap {name}",
                    value=str(port),
                    allowed=f"{low} to {MAX_PORT}",
                )
        if not 0 <= self.keepalive <= MAX_KEEPALIVE_S:
            raise RequestError(
                "keepalive out of range",
                field="nat-keepalive",
                value=str(self.keepalive),
                allowed=f"0 (off) to {MAX_KEEPALIVE_S} seconds",
            )
        if self.follow and not (inbound and replay_window):
            raise RequestError(
                "only an inbound SA with a replay window can follow its peer: a packet that is played again "
                "would lead it astray",
                field="nat-follow",
                allowed="an inbound SA with replay-window",
            )
        address = self.original_address
        if not any(address):
            address = b""
        elif len(address) != (16 if ipv6 else 4):
            raise RequestError(
                "the original address is of another family than the SA",
                field="encap oaddr",
                value=str(ip_address(address)),
                allowed="IPv6" if ipv6 else "IPv4",
            )
        return UdpEncapsulation(self.source_port, self.destination_port, address, self.follow, self.keepalive)
