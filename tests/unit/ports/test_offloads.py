"""The table of offloads."""

import pytest

from vnic.errors import RequestError
from vnic.ports.offloads import CHECKSUM, OFFLOADS, TSO4, check_offloads, off


def test_every_offload_comes_after_what_it_needs() -> None:
    seen: set[str] = set()
    for offload in OFFLOADS:
        assert not offload.needs or seen.issuperset(offload.needs)
        seen.add(offload.name)


def test_no_two_offloads_share_a_bit() -> None:
    assert sum(offload.tun_bits for offload in OFFLOADS) == 0x6F


def test_known_names_are_taken() -> None:
    assert check_offloads([TSO4.name, CHECKSUM.name, TSO4.name]) == {TSO4.name, CHECKSUM.name}


def test_unknown_name_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(RequestError) as caught:
        check_offloads([TSO4.name, "tx-magic"])
    assert (caught.value.field, caught.value.value) == ("offload", "tx-magic")
    assert TSO4.name in caught.value.allowed


def test_state_that_is_off_begins_with_the_word() -> None:
    assert off("because") == "off: because"
