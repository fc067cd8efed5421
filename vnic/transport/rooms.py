"""How large a packet of the host may be under the outbound policies in force.

Law: follows changes of policies and SAs one by one; what has not changed is not looked at again, however many
policies and SAs there are.
"""

from __future__ import annotations

from collections import Counter

from vnic.ipsec.association import IpsecProtocol, Mode
from vnic.ipsec.policy import PolicyEntry, Template
from vnic.packet.ip import IPV4_LENGTH, IPV6_LENGTH
from vnic.transport.sad import Sad
from vnic.transport.spd import Protection, Spd

_Place = tuple[int, bytes | None]
"""Reqid and destination of a template, as SAs are looked for."""

_ANY_REQID = -1


class Rooms:
    """Room for a packet under every different protection that outbound policies ask for."""

    def __init__(self, spd: Spd, sad: Sad) -> None:
        self._spd = spd
        self._sad = sad
        self._wire_mtu = -1
        self._rooms: dict[Protection, int] = {}
        self._count: Counter[int] = Counter()
        self._by_place: dict[_Place, dict[Protection, None]] = {}

    def smallest(self, wire_mtu: int) -> int:
        """The largest packet that fits `wire_mtu` under every policy; `wire_mtu` when none protects."""
        protections = self._spd.protection_changes.take()
        associations = self._sad.outbound_changes.take()
        if protections is None or associations is None or wire_mtu != self._wire_mtu:
            self._begin(wire_mtu)
        else:
            for protection in protections:
                self._drop(protection)
            for reqid, destination in associations:
                protections |= self._touched(reqid, destination)
            for protection in protections:
                self._drop(protection)
                if protection in self._spd.protections:
                    self._keep(protection)
        return min(min(self._count, default=wire_mtu), wire_mtu)

    def room(self, policy: PolicyEntry, wire_mtu: int) -> int:
        """The largest packet that fits `wire_mtu` under one outbound policy that protects."""
        self.smallest(wire_mtu)
        version = 6 if len(policy.selector.source.address) == 16 else 4
        protection = Protection(version, policy.templates)
        room = self._rooms.get(protection)
        return min(self._room(protection) if room is None else room, wire_mtu)

    def _begin(self, wire_mtu: int) -> None:
        self._wire_mtu = wire_mtu
        self._rooms.clear()
        self._count.clear()
        self._by_place.clear()
        for protection in self._spd.protections:
            self._keep(protection)

    def _touched(self, reqid: int, destination: bytes) -> set[Protection]:
        """Protections for which an SA with this reqid and destination may be chosen."""
        if not any(destination):
            return set(self._rooms)
        places: list[_Place] = [(_ANY_REQID, destination)]
        places += [(one, end) for one in {0, reqid} for end in (destination, None)]
        return {protection for place in places for protection in self._by_place.get(place, ())}

    def _keep(self, protection: Protection) -> None:
        room = self._rooms[protection] = self._room(protection)
        self._count[room] += 1
        for template in protection.templates:
            self._by_place.setdefault(_place(template), {})[protection] = None

    def _drop(self, protection: Protection) -> None:
        room = self._rooms.pop(protection, None)
        if room is None:
            return
        self._count[room] -= 1
        if not self._count[room]:
            del self._count[room]
        for template in protection.templates:
            place = _place(template)
            there = self._by_place.get(place, {})
            there.pop(protection, None)
            if not there:
                self._by_place.pop(place, None)

    def _room(self, protection: Protection) -> int:
        """Room under the largest sizes of the SAs there are; a template without one yet counts with the
        largest sizes of its protocol."""
        available = self._wire_mtu
        header_length = IPV6_LENGTH if protection.version == 6 else IPV4_LENGTH
        # Outermost first: each header takes its room from what the one outside it left.
        for template in reversed(protection.templates):
            outer = header_length
            if template.mode is Mode.TUNNEL:
                assert template.source is not None
                outer = IPV6_LENGTH if len(template.source) == 16 else IPV4_LENGTH
            rooms = [shape.room(available - outer) for shape in self._sad.shapes(template)] or [
                _worst_room(template.protocol, available - outer)
            ]
            available = min(rooms)
            if template.mode is Mode.TRANSPORT:
                available += outer
        return available


def _place(template: Template) -> _Place:
    if template.spi and template.destination is not None:
        return _ANY_REQID, template.destination
    return template.reqid, template.destination


def _worst_room(protocol: IpsecProtocol, available: int) -> int:
    """Room under the largest sizes any algorithm has: ESP 8 + IV 16, blocks of 16, trailer 2, ICV 16;
    AH 12 + IV 8 + ICV 16, padded to 8."""
    if protocol is IpsecProtocol.AH:
        return available - 40
    return (available - 8 - 16 - 16) // 16 * 16 - 2
