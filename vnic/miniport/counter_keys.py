"""Which IVs each counter-mode key of a card has used, whichever of its NICs seals with the key.

Law: a (key, IV) pair never comes twice. Keys are known by a hash; nothing here computes with them.

Source: RFC 4106 §2, §3.1; RFC 4543 §3.1; NIST SP 800-38D §8.
"""

from __future__ import annotations

from hashlib import blake2s
from typing import TypeAlias

from vnic.ipsec.association import KeyMaterial
from vnic.miniport.ciphers import COUNTER_IV_LENGTH, CounterIvs, RandomPool, RandomSource

KeyDigest: TypeAlias = bytes
"""What is remembered of a counter-mode key and its salt."""

Holder: TypeAlias = int
"""One NIC of the card: a bit of its own."""

_DIGEST_LENGTH = 16
_POSITION_LENGTH = 17
_RECORD_LENGTH = _DIGEST_LENGTH + _POSITION_LENGTH
_RECORDS = 4096


def key_digest(key: KeyMaterial) -> KeyDigest:
    """Give the hash of a counter-mode key with its salt."""
    return blake2s(key.reveal(), digest_size=_DIGEST_LENGTH).digest()


class CounterKeys:
    """The counter-mode keys of one card, shared by its NIC and its software IPsec.

    Outbound SAs with the same key and salt share one `CounterIvs`, so their IVs differ while they live. When
    the last of them is gone only a hash and a number stay, by which an SA that takes the key up again goes on
    where that one stopped. Each key has one place for them, of a few thousand, and who comes later takes it:
    one block of memory, in which nothing stays behind between the many things that are freed. What is
    forgotten, there or by a restart, the random start keeps apart (`CounterIvs`).

    Args:
        random_source: unpredictable bytes, of which the first IV of a new key is made.
        make_ivs: of what the IVs of a key are made.

    Attributes:
        generation: grows whenever the IVs of a key cease to be those that its SAs take from.
    """

    def __init__(self, random_source: RandomSource, make_ivs: type[CounterIvs] = CounterIvs) -> None:
        self._make_ivs = make_ivs
        self.generation = 0
        self._pool = RandomPool(random_source)
        self._last_holder = 0
        self._live: dict[KeyDigest, CounterIvs] = {}
        self._retired = bytearray(_RECORDS * _RECORD_LENGTH)

    def __len__(self) -> int:
        """How many keys are in use."""
        return len(self._live)

    def new_holder(self) -> Holder:
        """Name a NIC that will hold keys of this card."""
        holder = 1 << self._last_holder
        self._last_holder += 1
        return holder

    def ivs_of(self, key: KeyMaterial) -> CounterIvs | None:
        """The IVs that the outbound SAs with a key take from, or None while there is no such SA."""
        return self._live.get(key_digest(key))

    def held(self, holder: Holder, digest: KeyDigest) -> bool:
        """Whether an outbound SA of this NIC has the key."""
        ivs = self._live.get(digest)
        return ivs is not None and bool(ivs.holders & holder)

    def take_up(self, holder: Holder, digest: KeyDigest) -> CounterIvs:
        """Give the IVs for an outbound SA of this NIC, which holds the key until `release`."""
        ivs = self._live.get(digest)
        if ivs is None:
            position = self._stopped_at(digest)
            if position is None:
                ivs = self._make_ivs(self._pool.take(COUNTER_IV_LENGTH))
            else:
                ivs = self._make_ivs.resumed(position)
            self._live[digest] = ivs
        ivs.holders |= holder
        return ivs

    def release(self, holder: Holder, digest: KeyDigest) -> None:
        """The SA of this NIC that had the key is gone."""
        ivs = self._live[digest]
        ivs.holders &= ~holder
        if ivs.holders:
            return
        del self._live[digest]
        self.generation += 1
        if not self._live:
            # An empty dictionary keeps the memory of the time when it was full, unless it is told.
            self._live.clear()
        place = _place(digest)
        record = digest + ivs.position.to_bytes(_POSITION_LENGTH, "big")
        self._retired[place : place + _RECORD_LENGTH] = record

    def _stopped_at(self, digest: KeyDigest) -> int | None:
        """The position of a key that was released and is still remembered."""
        place = _place(digest)
        if not self._retired.startswith(digest, place):
            return None
        return int.from_bytes(self._retired[place + _DIGEST_LENGTH : place + _RECORD_LENGTH], "big")


def _place(digest: KeyDigest) -> int:
    """Where the record of a key is."""
    return int.from_bytes(digest[:2], "big") % _RECORDS * _RECORD_LENGTH
