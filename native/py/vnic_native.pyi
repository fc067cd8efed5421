"""The burst engine of vnic: see native/py/src."""

from collections.abc import Mapping
from typing import final

from typing_extensions import Buffer

from vnic.ipsec.drops import DropReason
from vnic.ipsec.replay import ReplayVerdict

_Header = tuple[int, int, int, int, int, int]
"""A virtio-net header (`vnic.packet.vnet.VnetHeader`)."""
_Flow = tuple[bytes, bytes, int, int, int]
"""`vnic.ipsec.policy.FlowKey`."""
_Burst = list[tuple[bytearray, _Header | None]]
_Punts = list[tuple[int, str]]
"""Places in the burst, and reasons."""

def library_version() -> str: ...

@final
class OutboundSequence:
    last: int
    limit: int
    stop: int
    def __init__(self, *, extended: bool, last: int = 0) -> None: ...
    def take(self, count: int = 1) -> int: ...
    def percent(self, last: int) -> int: ...
    def next_warning(self, taken: int = 0) -> int: ...
    def end(self) -> None: ...
    @property
    def exhausted(self) -> bool: ...

@final
class ReplayWindow:
    def __init__(self, window_bits: int = 1024, top: int = 0) -> None: ...
    @property
    def top(self) -> int: ...
    @property
    def window_bits(self) -> int: ...
    @property
    def needed_bits(self) -> int: ...
    def check(self, sequence_number: int) -> ReplayVerdict: ...
    def advance(self, sequence_number: int) -> None: ...
    def note_late(self, sequence_number: int) -> None: ...
    def bitmap(self) -> int: ...

@final
class SaCounters:
    packets: int
    bytes: int
    drops: Mapping[DropReason, int]
    stop: int
    use_time: float
    def __init__(self) -> None: ...
    def count_drop(self, reason: DropReason, count: int) -> None: ...

@final
class CounterIvs:
    holders: int
    def __init__(self, start: bytes) -> None: ...
    @classmethod
    def resumed(cls, position: int) -> CounterIvs: ...
    @property
    def position(self) -> int: ...
    def take(self) -> bytes: ...

@final
class OutboundSa: ...

@final
class InboundSa: ...

@final
class Card:
    def __init__(self) -> None: ...
    @property
    def arch(self) -> str: ...
    def outbound_sa(
        self,
        *,
        spi: int,
        encryption: str,
        encryption_key: Buffer,
        integrity: str,
        integrity_key: Buffer,
        icv_length: int,
        ivs: CounterIvs | None,
        esn: bool,
        ah_length: int,
        sequence: OutboundSequence,
        counters: SaCounters,
        mark: int,
    ) -> OutboundSa: ...
    def inbound_sa(
        self,
        *,
        spi: int,
        protocol: int,
        source: bytes,
        destination: bytes,
        tunnel: bool,
        no_ecn: bool,
        encryption: str,
        encryption_key: Buffer,
        integrity: str,
        integrity_key: Buffer,
        icv_length: int,
        esn: bool,
        inside: InboundSa | None,
        only_inside: bool,
        udp: tuple[int, int, bool] | None,
        window: ReplayWindow,
        counters: SaCounters,
        mark: int,
    ) -> InboundSa: ...
    def install_flow(
        self,
        flow: _Flow,
        *,
        esp: OutboundSa | None,
        ah: OutboundSa | None,
        outer: tuple[bytes, bytes, bool, bool] | None,
        udp: tuple[int, int, bool] | None,
        path_mtu: int,
        valid_until: float,
    ) -> None: ...
    def install_sa(self, sa: InboundSa) -> None: ...
    def allow(self, flow: _Flow, outermost: InboundSa) -> None: ...
    def join_udp(self, join: bool) -> None: ...
    def clear_flows(self) -> None: ...
    def clear(self) -> None: ...
    @property
    def known(self) -> tuple[int, int, int]: ...
    @property
    def sent(self) -> int: ...
    @property
    def received(self) -> int: ...
    @property
    def punts(self) -> dict[str, int]: ...
    def send(self, burst: _Burst, now: float) -> tuple[list[tuple[bytearray, int]], _Punts]: ...
    def receive(
        self, burst: _Burst, now: float
    ) -> tuple[list[tuple[bytearray, _Header | None, int]], _Punts]: ...

_Counted = tuple[int, int, int, int, int, int]
"""What `vnic.ports.base.NativePort.take_counts` gives."""
_Left = list[tuple[bytearray, _Header | None]]
_Rest = tuple[_Left, _Left, int, int]
"""Frames left by the card, and by the card at the other end of a link; errno of reading and of writing."""

@final
class Tap:
    def __init__(self, descriptors: list[int]) -> None: ...
    def take_counts(self) -> _Counted: ...
    def close(self) -> None: ...

@final
class PacketSocket:
    def __init__(self, descriptor: int) -> None: ...
    def take_counts(self) -> _Counted: ...
    def close(self) -> None: ...

@final
class UdpSocket:
    def __init__(
        self,
        descriptor: int,
        local: bytes,
        remote: bytes,
        peer_address: str,
        peer_port: int,
        host: bytes,
        gateway: bytes,
    ) -> None: ...
    def set_peer(self, address: str, port: int) -> None: ...
    def set_host(self, mac: bytes) -> None: ...
    def take_counts(self) -> _Counted: ...
    def take_not_esp(self) -> int: ...
    def take_aside(self) -> list[tuple[bytearray, int, int, tuple[str, int]]]: ...
    def close(self) -> None: ...

@final
class Link:
    def __init__(self) -> None: ...
    def take_counts(self) -> _Counted: ...
    def close(self) -> None: ...

@final
class Pump:
    def __init__(self) -> None: ...
    def tap_to_wire(
        self, card: Card, tap: Tap, wire: Tap | PacketSocket | UdpSocket, now: float
    ) -> _Rest | None: ...
    def wire_to_tap(
        self, card: Card, wire: Tap | PacketSocket | UdpSocket, tap: Tap, now: float
    ) -> _Rest | None: ...
    def over_link(
        self, near: tuple[Card, Tap, Link], far: tuple[Card, Tap, Link], both_ways: bool, now: float
    ) -> tuple[_Rest, bool] | None: ...
