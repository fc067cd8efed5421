"""IVs of counter-mode keys over the life of the SAs that hold them."""

import random

import pytest

from vnic.ipsec.association import KeyMaterial
from vnic.miniport import counter_keys
from vnic.miniport.counter_keys import CounterKeys, key_digest

FIRST = key_digest(KeyMaterial(bytes(20)))
SECOND = key_digest(KeyMaterial(bytes(19) + b"\x01"))


def keys() -> CounterKeys:
    return CounterKeys(random.Random(7).randbytes)


def test_digest_tells_keys_apart_and_tells_nothing_else() -> None:
    assert key_digest(KeyMaterial(bytes(20))) == FIRST
    assert FIRST != SECOND
    assert len(FIRST) == 16
    assert bytes(4) not in FIRST


def test_nic_and_software_ipsec_never_give_an_iv_of_one_key_twice() -> None:
    card = keys()
    nic, software = card.new_holder(), card.new_holder()
    first, second = card.take_up(nic, FIRST), card.take_up(software, FIRST)
    given = [one.take() for _ in range(50) for one in (first, second)]
    assert len(set(given)) == 100


def test_key_is_held_by_who_took_it_up_and_nobody_else() -> None:
    card = keys()
    nic, software = card.new_holder(), card.new_holder()
    card.take_up(nic, FIRST)
    assert card.held(nic, FIRST)
    assert not card.held(software, FIRST)
    assert not card.held(nic, SECOND)
    card.take_up(software, FIRST)
    card.release(nic, FIRST)
    assert (card.held(nic, FIRST), card.held(software, FIRST), len(card)) == (False, True, 1)


def test_key_that_moves_between_nics_goes_on_counting() -> None:
    card = keys()
    nic, software = card.new_holder(), card.new_holder()
    given = [card.take_up(nic, FIRST).take()]
    for _ in range(5):
        card.release(nic, FIRST)
        given.append(card.take_up(software, FIRST).take())
        card.release(software, FIRST)
        given.append(card.take_up(nic, FIRST).take())
    first = int.from_bytes(given[0], "big")
    assert [int.from_bytes(iv, "big") for iv in given] == [(first + n) % 2**64 for n in range(11)]


def test_each_key_has_a_start_of_its_own() -> None:
    card = keys()
    nic = card.new_holder()
    assert card.take_up(nic, FIRST).take() != card.take_up(nic, SECOND).take()


def retired_bytes(card: CounterKeys) -> bytes:
    return bytes(card._retired).replace(b"\0", b"")


def test_released_key_leaves_only_a_hash_and_a_number() -> None:
    card = keys()
    nic = card.new_holder()
    ivs = card.take_up(nic, FIRST)
    assert retired_bytes(card) == b""
    card.release(nic, FIRST)
    record = FIRST + ivs.position.to_bytes(17, "big")
    assert (card._live, retired_bytes(card)) == ({}, record.replace(b"\0", b""))


def test_what_is_remembered_takes_the_same_memory_however_much_it_is() -> None:
    card = keys()
    nic = card.new_holder()
    length = len(card._retired)
    for number in range(10_000):
        digest = key_digest(KeyMaterial(number.to_bytes(20, "big")))
        card.take_up(nic, digest)
        card.release(nic, digest)
    assert len(card._retired) == length


def test_key_whose_place_another_took_starts_anew() -> None:
    by_place: dict[int, list[bytes]] = {}
    for number in range(200):
        digest = key_digest(KeyMaterial(number.to_bytes(20, "big")))
        by_place.setdefault(counter_keys._place(digest), []).append(digest)
    first, second = next(digests for digests in by_place.values() if len(digests) == 2)
    card = keys()
    nic = card.new_holder()
    before = card.take_up(nic, first).position
    card.release(nic, first)
    card.take_up(nic, second)
    card.release(nic, second)
    assert card.take_up(nic, first).position != before


@pytest.mark.parametrize("given", [0, 1, (1 << 64) - 1, 1 << 64])
def test_every_position_is_remembered_whole(given: int) -> None:
    card = keys()
    nic = card.new_holder()
    ivs = card.take_up(nic, FIRST)
    ivs._start, ivs._given = (1 << 64) - 1, given
    card.release(nic, FIRST)
    assert card.take_up(nic, FIRST).position == ivs.position
