"""NAT keepalives: one byte to the far end of an SA with UDP encapsulation, when nothing else went there.

Law: begins with the first packet that an SA sends, whose addresses and ports it repeats: the card has none of
its own. SAs between the same ends share one.

Source: RFC 3948 §2.3, §4.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from vnic.ndis.netbuffer import NetBuffer
from vnic.packet.checksum import checksum
from vnic.packet.ip import IPV4_LENGTH, UDP
from vnic.packet.udp import KEEPALIVE, UDP_HEADER, UDP_LENGTH, udp_checksum
from vnic.transport.state import SaState

_Ends = tuple[bytes, tuple[int, int]]
"""Source and destination address together, and the ports."""

_MAX_PATHS = 1 << 14
_HOP_LIMIT = 64
_LENGTH = UDP_LENGTH + len(KEEPALIVE)


class _Path:
    """From one end to the other: who uses it, and when something last went there."""

    __slots__ = ("ethernet", "last", "states")

    def __init__(self, ethernet: bytes, now: float) -> None:
        self.ethernet = ethernet
        self.last = now
        self.states: set[SaState] = set()

    def due(self) -> float:
        """`now` at which a keepalive is wanted, unless something is sent before."""
        last = max(self.last, *[state.use_time for state in self.states])
        return last + min(state.sa.udp.keepalive for state in self.states if state.sa.udp is not None)


class Keepalives:
    """The keepalives of one card.

    Attributes:
        deadline: `now` at which `take` may have something; infinite when there is nobody to keep.
    """

    def __init__(self) -> None:
        self._paths: dict[_Ends, _Path] = {}
        self._ends: dict[SaState, _Ends] = {}
        self.deadline = inf

    def note(
        self, state: SaState, frame: bytes | bytearray, offset: int, ports: tuple[int, int], now: float
    ) -> None:
        """Take note of a frame that an SA with UDP encapsulation sends.

        Args:
            offset: of the IP header.
            ports: source and destination of the UDP header.
        """
        udp = state.sa.udp
        if udp is None or not udp.keepalive:
            return
        ends = (_addresses(frame, offset), ports)
        path = self._paths.get(ends)
        if path is None:
            if len(self._paths) >= _MAX_PATHS:
                return
            path = self._paths[ends] = _Path(bytes(frame[:offset]), now)
        path.last = now
        if frame[:offset] != path.ethernet:
            path.ethernet = bytes(frame[:offset])
        if self._ends.get(state) != ends:
            self._leave(state)
            self._ends[state] = ends
            path.states.add(state)
        # The next look puts right what became later meanwhile.
        self.deadline = min(self.deadline, now + udp.keepalive)

    def take(self, now: float, alive: Callable[[SaState], bool]) -> list[NetBuffer]:
        """Give the keepalives that are due, for the wire.

        Args:
            alive: whether an SA is still there.
        """
        for state in [one for one in self._ends if not alive(one)]:
            self._leave(state)
        frames: list[NetBuffer] = []
        self.deadline = inf
        for ends, path in self._paths.items():
            due = path.due()
            if due <= now:
                frames.append(NetBuffer(_keepalive(path.ethernet, ends)))
                path.last = now
                due = path.due()
            self.deadline = min(self.deadline, due)
        return frames

    def _leave(self, state: SaState) -> None:
        ends = self._ends.pop(state, None)
        if ends is None:
            return
        path = self._paths[ends]
        path.states.discard(state)
        if not path.states:
            del self._paths[ends]


def _addresses(frame: bytes | bytearray, offset: int) -> bytes:
    """Source and destination of a frame, as they stand in it."""
    if frame[offset] >> 4 == 6:
        return bytes(frame[offset + 8 : offset + 40])
    return bytes(frame[offset + 12 : offset + 20])


def _keepalive(ethernet: bytes, ends: _Ends) -> bytearray:
    """The frame that keeps a path: IPv4 without a UDP checksum, IPv6 with one (RFC 3948 §2.3)."""
    addresses, ports = ends
    half = len(addresses) // 2
    if half == 4:
        length = IPV4_LENGTH + _LENGTH
        # DF, and so no identification (RFC 6864 §4.1).
        header = bytearray((0x45, 0, 0, length, 0, 0, 0x40, 0, _HOP_LIMIT, UDP, 0, 0)) + addresses
        header[10:12] = checksum(header).to_bytes(2, "big")
    else:
        header = bytearray((0x60, 0, 0, 0, 0, _LENGTH, UDP, _HOP_LIMIT)) + addresses
    frame = bytearray().join((ethernet, header, UDP_HEADER.pack(*ports, _LENGTH, 0), KEEPALIVE))
    if half == 16:
        start = len(frame) - _LENGTH
        value = udp_checksum(frame, addresses[:half], addresses[half:], start, len(frame))
        frame[start + 6 : start + 8] = value.to_bytes(2, "big")
    return frame
