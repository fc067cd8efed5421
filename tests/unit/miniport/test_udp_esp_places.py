"""Which SA fits which layer: the table of sheet §9.1, read a second time."""

from itertools import product

import pytest

from vnic.ipsec.association import Mode
from vnic.miniport.udp_esp import Place, fits, implied_mode, inside

FITTING: set[tuple[int, Mode, bool, Place]] = {
    (0, mode, False, place)
    for mode in Mode
    for place in (Place.OUTERMOST, Place.IN_PLAIN_TUNNEL, Place.IN_UDP_TUNNEL)
} | {
    (1, Mode.TRANSPORT, True, Place.OUTERMOST),
    (2, Mode.TUNNEL, True, Place.OUTERMOST),
    (4, Mode.TUNNEL, True, Place.OUTERMOST),
    (4, Mode.TRANSPORT, False, Place.IN_UDP_TUNNEL),
    (8, Mode.TUNNEL, False, Place.OUTERMOST),
    (8, Mode.TRANSPORT, True, Place.IN_PLAIN_TUNNEL),
}
"""Subtype, mode, whether the layer stands in UDP, its place."""

LAYERS = list(product((False, True), Place))


@pytest.mark.rule(158)
@pytest.mark.parametrize("subtype", [0, 1, 2, 4, 8])
@pytest.mark.parametrize(("in_udp", "place"), LAYERS)
def test_sa_fits_the_layers_of_its_subtype(subtype: int, in_udp: bool, place: Place) -> None:
    for mode in Mode:
        expected = (subtype, mode, in_udp, place) in FITTING
        assert fits(subtype, mode, in_udp=in_udp, place=place) is expected
    either = any((subtype, mode, in_udp, place) in FITTING for mode in Mode)
    assert fits(subtype, None, in_udp=in_udp, place=place) is either


@pytest.mark.parametrize("subtype", [1, 2, 4, 8])
@pytest.mark.parametrize(("in_udp", "place"), LAYERS)
def test_subtype_tells_the_mode_where_it_fits(subtype: int, in_udp: bool, place: Place) -> None:
    modes = [mode for mode in Mode if (subtype, mode, in_udp, place) in FITTING]
    assert implied_mode(subtype, in_udp=in_udp, place=place) is (modes[0] if modes else None)


def test_subtypes_that_mean_different_modes_tell_none() -> None:
    assert implied_mode(1 | 2, in_udp=True, place=Place.OUTERMOST) is None
    assert implied_mode(2 | 4, in_udp=True, place=Place.OUTERMOST) is Mode.TUNNEL
    assert implied_mode(0, in_udp=False, place=Place.OUTERMOST) is None


@pytest.mark.parametrize(
    ("subtypes", "in_udp", "place"),
    [
        (0, False, Place.IN_PLAIN_TUNNEL),
        (8, False, Place.IN_PLAIN_TUNNEL),
        (2, True, Place.IN_CLOSED_UDP_TUNNEL),
        (4, True, Place.IN_UDP_TUNNEL),
        (2 | 4, True, Place.IN_UDP_TUNNEL),
    ],
)
def test_place_of_what_is_inside_follows_from_the_tunnel(subtypes: int, in_udp: bool, place: Place) -> None:
    assert inside(subtypes, in_udp=in_udp) is place
