"""What policies cost that have nothing to do with a flow: its first packet, its later ones, and adding them.

Law: one engine in this process, no sockets; the same flow through the same tunnel each time, with more and
more policies beside its own. Run it with `python -m benchmarks.policies`.

    first     packets of flows never seen before, until they are sealed
    later     packets of one flow
    add       a policy, and the MTU that follows from all of them
"""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Callable

from vnic.engine.reference import ReferenceEngine
from vnic.ipsec.algorithms import ENCRYPTION_BY_NAME
from vnic.ipsec.association import Direction, IpsecProtocol, KeyMaterial, Mode, SecurityAssociation
from vnic.ipsec.policy import PolicyAction, PolicyEntry, Prefix, Selector, Template
from vnic.ndis.netbuffer import NetBuffer

COUNTS = (0, 100, 10_000)
_FLOWS = 2000
_BURST = 100
_LOCAL, _PEER = bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))
_ENCRYPTION = ENCRYPTION_BY_NAME["aes-gcm-128"]
_ETHERNET = bytes.fromhex("0200000000020200000000010800")


def frame(port: int) -> NetBuffer:
    """A UDP datagram from one of the host's ports, 100 bytes of IP."""
    header = bytes.fromhex("4500006400004000401100000a0100010a020001")
    return NetBuffer(
        bytearray(_ETHERNET + header + port.to_bytes(2, "big") + b"\0\x35" + b"\0\x50\0\0" + bytes(72))
    )


def unrelated(number: int) -> PolicyEntry:
    """A policy of another network, protected or not, with a port or a range of them."""
    source = Prefix(bytes((172, 16 + (number >> 14), number >> 6 & 0xFF, (number & 0x3F) << 2)), 30)
    chosen = Selector(source, Prefix(bytes(4), 0), 6, None, number % 1000, None, None)
    if number % 2:
        return PolicyEntry(Direction.OUTBOUND, chosen, PolicyAction.DISCARD)
    wanted = Template(
        IpsecProtocol.ESP, Mode.TUNNEL, _LOCAL, bytes((198, 18, number >> 8 & 0xFF, number & 0xFF))
    )
    return PolicyEntry(Direction.OUTBOUND, chosen, PolicyAction.PROTECT, (wanted,))


def engine() -> ReferenceEngine:
    """A card with one tunnel for 10.1/16 to 10.2/16, the last policy in order."""
    card = ReferenceEngine(secrets.token_bytes)
    key = KeyMaterial(bytes(range(_ENCRYPTION.key_length)))
    card.add_sa(
        SecurityAssociation(
            direction=Direction.OUTBOUND,
            source=_LOCAL,
            destination=_PEER,
            protocol=IpsecProtocol.ESP,
            spi=0x1000,
            mode=Mode.TUNNEL,
            encryption=_ENCRYPTION,
            encryption_key=key,
        ),
        0.0,
    )
    chosen = Selector(Prefix(bytes((10, 1, 0, 0)), 16), Prefix(bytes((10, 2, 0, 0)), 16))
    wanted = Template(IpsecProtocol.ESP, Mode.TUNNEL, _LOCAL, _PEER)
    card.add_policy(PolicyEntry(Direction.OUTBOUND, chosen, PolicyAction.PROTECT, (wanted,), 1000))
    return card


def fill(card: ReferenceEngine, count: int) -> float:
    """Add policies as the daemon does; gives seconds for each."""
    began = time.perf_counter()
    for number in range(count):
        card.add_policy(unrelated(number))
        card.inner_mtu(1500)
    return (time.perf_counter() - began) / max(count, 1)


def per_packet(card: ReferenceEngine, port: Callable[[int], int]) -> float:
    """Seconds for a packet, the median of bursts."""
    bursts = []
    for first in range(0, _FLOWS, _BURST):
        burst = [frame(port(number)) for number in range(first, first + _BURST)]
        began = time.perf_counter()
        sent = card.send(burst, 1.0).wire
        bursts.append((time.perf_counter() - began) / _BURST)
        assert len(sent) == _BURST, "a packet was not sealed"
    return statistics.median(bursts)


def main() -> None:
    """Measure, and write a table."""
    print("| unrelated policies | later packet, µs | first packet, µs | adding one, µs |")
    print("| --- | --- | --- | --- |")
    for count in COUNTS:
        card = engine()
        adding = fill(card, count)
        first = per_packet(card, lambda number: 1024 + number)
        per_packet(card, lambda number: 1)
        later = per_packet(card, lambda number: 1)
        added = f"{adding * 1e6:.0f}" if count else "-"
        print(f"| {count} | {later * 1e6:.1f} | {first * 1e6:.1f} | {added} |")


if __name__ == "__main__":
    main()
