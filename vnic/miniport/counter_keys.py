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
_MAX_RETIRED = 1024


def key_digest(key: KeyMaterial) -> KeyDigest:
    """Give the hash of a counter-mode key with its salt."""
    return blake2s(key.reveal(), digest_size=_DIGEST_LENGTH).digest()


class CounterKeys:
    """The counter-mode keys of one card, shared by its NIC and its software IPsec.

    Outbound SAs with the same key and salt share one `CounterIvs`, so their IVs differ while they live. When
    the last of them is gone only a number stays, by which an SA that takes the key up again goes on where
    that one stopped. The latest are remembered; of older ones, and after a restart, the random start keeps
    the IVs apart (`CounterIvs`).

    Args:
        random_source: unpredictable bytes, of which the first IV of a new key is made.
    """

    def __init__(self, random_source: RandomSource) -> None:
        self._pool = RandomPool(random_source)
        self._last_holder = 0
        self._live: dict[KeyDigest, CounterIvs] = {}
        self._retired: dict[KeyDigest, int] = {}

    def __len__(self) -> int:
        """How many keys are in use."""
        return len(self._live)

    def new_holder(self) -> Holder:
        """Name a NIC that will hold keys of this card."""
        holder = 1 << self._last_holder
        self._last_holder += 1
        return holder

    def held(self, holder: Holder, digest: KeyDigest) -> bool:
        """Whether an outbound SA of this NIC has the key."""
        ivs = self._live.get(digest)
        return ivs is not None and bool(ivs.holders & holder)

    def take_up(self, holder: Holder, digest: KeyDigest) -> CounterIvs:
        """Give the IVs for an outbound SA of this NIC, which holds the key until `release`."""
        ivs = self._live.get(digest)
        if ivs is None:
            stopped_at = self._retired.pop(digest, None) if self._retired else None
            if stopped_at is None:
                ivs = CounterIvs(self._pool.take(COUNTER_IV_LENGTH))
            else:
                ivs = CounterIvs.resumed(stopped_at)
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
        if not self._live:
            # An empty dictionary keeps the memory of the time when it was full, unless it is told.
            self._live.clear()
        self._retired[digest] = ivs.position
        if len(self._retired) > _MAX_RETIRED:
            del self._retired[next(iter(self._retired))]
