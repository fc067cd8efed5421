"""Which SA may protect an ESP layer, by whether that layer stands in UDP and what is around it.

Law: looks at the SA's subtype and the layer's place, never at bytes. V1 SAs name no subtype, so they have all
that their mode allows.

    subtype                            outermost layer     layer inside a tunnel
    UDP_ESP_TRANSPORT              1   in UDP              -
    UDP_ESP_TUNNEL                 2   in UDP              -
    TRANSPORT_OVER_UDP_ESP_TUNNEL  4   in UDP              plain, the tunnel in UDP
    UDP_ESP_TRANSPORT_OVER_TUNNEL  8   plain               in UDP, the tunnel plain
    none                           0   plain               plain, inside a plain tunnel or one of subtype 4

UDP inside a tunnel in UDP fits nothing (R158).

Source: sheet §9.1, §9.2.
"""

from __future__ import annotations

from enum import Enum

from vnic.ipsec.association import Mode
from vnic.miniport.abilities import Abilities
from vnic.miniport.sa_table import Bundle
from vnic.ndis.capabilities import (
    TRANSPORT_OVER_UDP_ESP_TUNNEL,
    UDP_ESP_TRANSPORT,
    UDP_ESP_TRANSPORT_OVER_TUNNEL,
    UDP_ESP_TUNNEL,
)
from vnic.ndis.oid import OidVersion


class Place(Enum):
    """Where a layer stands."""

    OUTERMOST = 0
    IN_PLAIN_TUNNEL = 1
    IN_UDP_TUNNEL = 2
    """The tunnel portion stands in UDP, and its SA is of subtype TRANSPORT_OVER_UDP_ESP_TUNNEL."""
    IN_CLOSED_UDP_TUNNEL = 3
    """The tunnel portion stands in UDP, and its SA says that nothing inside is ESP."""


_FITS: dict[tuple[bool, Place], tuple[tuple[int, Mode], ...]] = {
    (True, Place.OUTERMOST): (
        (UDP_ESP_TRANSPORT, Mode.TRANSPORT),
        (UDP_ESP_TUNNEL, Mode.TUNNEL),
        (TRANSPORT_OVER_UDP_ESP_TUNNEL, Mode.TUNNEL),
    ),
    (True, Place.IN_PLAIN_TUNNEL): ((UDP_ESP_TRANSPORT_OVER_TUNNEL, Mode.TRANSPORT),),
    (False, Place.OUTERMOST): ((UDP_ESP_TRANSPORT_OVER_TUNNEL, Mode.TUNNEL),),
    (False, Place.IN_UDP_TUNNEL): ((TRANSPORT_OVER_UDP_ESP_TUNNEL, Mode.TRANSPORT),),
}
"""By whether the layer stands in UDP: the subtypes that fit a place, and the mode each means there."""

_V1_SUBTYPES = {
    Mode.TRANSPORT: UDP_ESP_TRANSPORT | UDP_ESP_TRANSPORT_OVER_TUNNEL,
    Mode.TUNNEL: UDP_ESP_TUNNEL | TRANSPORT_OVER_UDP_ESP_TUNNEL,
}

_TAKES_PLAIN = (Place.OUTERMOST, Place.IN_PLAIN_TUNNEL, Place.IN_UDP_TUNNEL)


def subtypes(bundle: Bundle, able: Abilities) -> int:
    """The subtypes of a bundle that the NIC does; all of the bundle's when it does none of them, which
    `Abilities.covers` refuses."""
    bits = bundle.udp_esp
    if bits and bundle.oid_version is OidVersion.V1 and bundle.portion is not None:
        bits = _V1_SUBTYPES[bundle.portion]
    return bits & able.udp_esp or bits


def fits(udp_esp: int, portion: Mode | None, *, in_udp: bool, place: Place) -> bool:
    """Whether an SA may protect a layer.

    Args:
        udp_esp: `subtypes` of the SA.
        portion: the mode of the SA, None when the request named none.
        in_udp: whether the layer stands in UDP.
    """
    if not udp_esp:
        return not in_udp and place in _TAKES_PLAIN
    return any(
        udp_esp & subtype and portion in (None, mode) for subtype, mode in _FITS.get((in_udp, place), ())
    )


def implied_mode(udp_esp: int, *, in_udp: bool, place: Place) -> Mode | None:
    """The mode that the subtype of an SA means in a place where it fits; None when it may be either."""
    modes = {mode for subtype, mode in _FITS.get((in_udp, place), ()) if udp_esp & subtype}
    return modes.pop() if len(modes) == 1 else None


def inside(udp_esp: int, *, in_udp: bool) -> Place:
    """The place of a layer inside a tunnel portion whose SA has these subtypes."""
    if not in_udp:
        return Place.IN_PLAIN_TUNNEL
    return Place.IN_UDP_TUNNEL if udp_esp & TRANSPORT_OVER_UDP_ESP_TUNNEL else Place.IN_CLOSED_UDP_TUNNEL
