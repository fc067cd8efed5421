"""The peers: other ways to protect packets in user space, set up as their users set them up.

Law: a peer lives in the two namespaces of a Lab and on its veth pair, is ended with the Lab, and leaves
nothing in the system: keys, sockets and settings are files of the Lab. One that is not installed says so and
is skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.peers import openvpn, strongswan, wireguard
from scripts.lab import REFERENCE_ADDRESS, RIGHT, Lab


@dataclass(frozen=True)
class Peer:
    """One of them.

    Attributes:
        text: what it is, for a reader.
        missing: gives the Debian packages that are missing, "" when it can run.
        start: sets it up, and gives the address of the right behind it.
    """

    text: str
    missing: Callable[[], str]
    start: Callable[[Lab], str]


VETH = Peer("one veth pair between the same namespaces", lambda: "", lambda lab: REFERENCE_ADDRESS[RIGHT])

PEERS: dict[str, Peer] = {
    "veth": VETH,
    "wireguard-go": Peer(wireguard.TEXT, wireguard.missing, wireguard.start),
    "strongswan": Peer(strongswan.TEXT, strongswan.missing, strongswan.start),
    "openvpn": Peer(openvpn.TEXT, openvpn.missing, openvpn.start),
}
