"""The primitives: each one behind a call that seals and a call that opens.

Law: bytes in, bytes out; no packet formats. A primitive holds its key and nothing else knows it. Its
context is made at the first packet and stays: setting one up costs more than a packet, and takes up to 3 KB,
which SAs without traffic shall not cost. Whether a key has a length the algorithm takes is settled before.

Source: NIST SP 800-38A (CBC), 800-38D (GCM); RFC 2104 (HMAC); RFC 2403, 2404, 4868 (truncation).
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable
from typing import TypeAlias
from weakref import ReferenceType, ref

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import BlockCipherAlgorithm, Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hmac import HMAC

from vnic.errors import PacketError, VnicError
from vnic.ipsec.algorithms import ENCRYPTION_BY_NAME

_HASHES: dict[str, hashes.HashAlgorithm] = {
    "hmac-md5-96": hashes.MD5(),
    "hmac-sha1-96": hashes.SHA1(),
    "hmac-sha256-128": hashes.SHA256(),
}

Bytes: TypeAlias = bytes | bytearray
RandomSource: TypeAlias = Callable[[int], bytes]
"""Gives that many unpredictable bytes."""

SALT_LENGTH = 4
COUNTER_IV_LENGTH = 8
FULL_TAG_LENGTH = 16

_POOL_LENGTH = 4096
_MAX_CONTEXTS = 16384
_COUNTER_MASK = (1 << 64) - 1
_POSITION_BASE = 1 << 65
"""More than the IVs that can have been given: 0 to 2^64."""


class WrongIcv(VnicError):
    """An ICV that does not hold. Never leaves the miniport: it becomes a CryptoStatus."""


class RandomPool:
    """Unpredictable bytes in small pieces, fetched from the source a block at a time."""

    __slots__ = ("_block", "_position", "_source")

    def __init__(self, source: RandomSource) -> None:
        self._source = source
        self._block = b""
        self._position = 0

    def take(self, length: int) -> bytes:
        """Give `length` bytes that were never given before; `length` is at most 4096."""
        position = self._position
        end = position + length
        if end > len(self._block):
            self._block = self._source(_POOL_LENGTH)
            position, end = 0, length
        self._position = end
        return self._block[position:end]


class CounterIvs:
    """The IVs of one counter-mode key: 64-bit numbers, each given once.

    A (key, IV) pair must never come twice, so this rests on three things. The IVs count up from `start`
    and stop after 2^64. All outbound SAs of a card that hold the same key and salt take from the same
    object (`CounterKeys`). And where the same key comes again later and nothing of it is remembered
    (after a restart, or long after its SA was deleted) the new start is 64 random bits: two runs of n1
    and n2 packets meet with a probability below (n1 + n2) / 2^64, which for two runs of 2^31 packets is
    2^-32, the bound that SP 800-38D §8 sets. RFC 4106 §2 forbids such static keys anyway.

    Attributes:
        holders: the NICs that hold the key, a bit each; `CounterKeys` keeps it.

    Source: RFC 4106 §3.1; RFC 4543 §3.1; NIST SP 800-38D §8.
    """

    __slots__ = ("_given", "_start", "holders")

    def __init__(self, start: bytes) -> None:
        self._start = int.from_bytes(start, "big")
        self._given = 0
        self.holders = 0

    @classmethod
    def resumed(cls, position: int) -> CounterIvs:
        """Go on at the `position` of another."""
        ivs = cls(b"")
        ivs._start, ivs._given = divmod(position, _POSITION_BASE)
        return ivs

    @property
    def position(self) -> int:
        """Where it stands, as one number for `resumed`."""
        return self._start * _POSITION_BASE + self._given

    def take(self) -> bytes:
        """Give the next IV, eight bytes.

        Raises:
            PacketError: all 2^64 were given.
        """
        given = self._given
        if given > _COUNTER_MASK:
            raise PacketError("the key has used up its IVs")
        self._given = given + 1
        return (self._start + given & _COUNTER_MASK).to_bytes(COUNTER_IV_LENGTH, "big")


class _Primitive:
    """A key, and the context that is made of it."""

    __slots__ = ("__weakref__",)

    def end(self) -> None:
        """Forget the context; the next packet makes it anew."""
        raise NotImplementedError


class _Contexts:
    """The primitives that have a context. Beyond `limit` the one with the oldest loses it, so that what
    contexts cost is bounded, however many SAs see a packet now and then."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._begun: deque[ReferenceType[_Primitive]] = deque()

    def begin(self, primitive: _Primitive) -> None:
        """Note that a primitive makes its context now."""
        self._begun.append(ref(primitive))
        if len(self._begun) > self.limit:
            oldest = self._begun.popleft()()
            if oldest is not None:
                oldest.end()


_contexts = _Contexts(_MAX_CONTEXTS)


class _CounterMode(_Primitive):
    """AES in Galois/counter mode with the salt of an SA."""

    __slots__ = ("_aead", "_key_and_salt", "_salt")

    def __init__(self, key_and_salt: bytes) -> None:
        self._key_and_salt = key_and_salt
        self._salt = b""
        self._aead: AESGCM | None = None

    def end(self) -> None:
        self._aead = None

    def _begin(self) -> AESGCM:
        _contexts.begin(self)
        self._salt = self._key_and_salt[-SALT_LENGTH:]
        self._aead = AESGCM(self._key_and_salt[:-SALT_LENGTH])
        return self._aead


class Gcm(_CounterMode):
    """AES-GCM with a full ICV of 16 bytes; the nonce is salt, then IV.

    Source: RFC 4106 §4.
    """

    __slots__ = ()

    def seal(self, iv: bytes, plaintext: Bytes, aad: Bytes) -> bytes:
        """Give ciphertext and ICV."""
        aead = self._aead
        if aead is None:
            aead = self._begin()
        return aead.encrypt(self._salt + iv, plaintext, aad)

    def open(self, iv: Bytes, sealed: Bytes, aad: Bytes) -> bytes:
        """Give the plaintext, in new memory.

        Raises:
            WrongIcv: nothing of the plaintext is given out.
        """
        aead = self._aead
        if aead is None:
            aead = self._begin()
        try:
            return aead.decrypt(self._salt + iv, sealed, aad)
        except InvalidTag:
            raise WrongIcv("AES-GCM") from None


class ShortGcm(Gcm):
    """AES-GCM with an ICV of 8 or 12 bytes, which AESGCM does not check."""

    __slots__ = ("_icv_length",)

    def __init__(self, key_and_salt: bytes, icv_length: int) -> None:
        super().__init__(key_and_salt)
        self._icv_length = icv_length

    def seal(self, iv: bytes, plaintext: Bytes, aad: Bytes) -> bytes:
        return super().seal(iv, plaintext, aad)[: self._icv_length - FULL_TAG_LENGTH]

    def open(self, iv: Bytes, sealed: Bytes, aad: Bytes) -> bytes:
        key_and_salt = self._key_and_salt
        icv = bytes(sealed[-self._icv_length :])
        mode = modes.GCM(key_and_salt[-SALT_LENGTH:] + iv, icv, min_tag_length=self._icv_length)
        context = Cipher(algorithms.AES(key_and_salt[:-SALT_LENGTH]), mode).decryptor()
        context.authenticate_additional_data(aad)
        plaintext = context.update(sealed[: -self._icv_length])
        try:
            context.finalize()
        except InvalidTag:
            raise WrongIcv("AES-GCM") from None
        return plaintext


class _Cbc(_Primitive):
    """A block cipher in CBC mode.

    Args:
        name: a CBC row of `ipsec.algorithms`.
    """

    __slots__ = ("_block_length", "_key", "_name", "_update")

    def __init__(self, name: str, key: bytes) -> None:
        self._name = name
        self._key = key
        self._block_length = ENCRYPTION_BY_NAME[name].block_length
        self._update: Callable[[Bytes], bytes] | None = None

    def end(self) -> None:
        self._update = None

    def _begin(self) -> Cipher[modes.CBC]:
        _contexts.begin(self)
        return Cipher(block_cipher(self._name, self._key), modes.CBC(bytes(self._block_length)))


class CbcSealer(_Cbc):
    """CBC encryption that makes its own IV.

    One context serves all packets: its chain simply runs on. In front of each packet it encrypts a
    random block, and what comes out is the IV: the cipher's image of a random block is as
    unpredictable as the block, and in the chain it stands exactly where an IV stands.

    Source: NIST SP 800-38A §6.2 and Appendix C; RFC 3602 §3.
    """

    __slots__ = ("_pool",)

    def __init__(self, name: str, key: bytes, pool: RandomPool) -> None:
        super().__init__(name, key)
        self._pool = pool

    def seal(self, plaintext: Bytes) -> bytes:
        """Give IV and ciphertext of a plaintext that is a multiple of the block."""
        update = self._update
        if update is None:
            update = self._update = self._begin().encryptor().update
        return update(self._pool.take(self._block_length) + plaintext)


class CbcOpener(_Cbc):
    """CBC decryption. One context serves all packets: with the IV fed in as a block of ciphertext, the
    first block that comes out is meaningless and the others are the plaintext."""

    __slots__ = ()

    def open(self, iv_and_ciphertext: Bytes) -> bytes:
        """Give the plaintext of an IV and a ciphertext that is a multiple of the block."""
        update = self._update
        if update is None:
            update = self._update = self._begin().decryptor().update
        return update(iv_and_ciphertext)[self._block_length :]


class Hmac(_Primitive):
    """HMAC, truncated to its first `icv_length` bytes."""

    __slots__ = ("_algorithm", "_icv_length", "_key", "_keyed")

    def __init__(self, algorithm: hashes.HashAlgorithm, key: bytes, icv_length: int) -> None:
        self._algorithm = algorithm
        self._key = key
        self._icv_length = icv_length
        self._keyed: HMAC | None = None

    def end(self) -> None:
        self._keyed = None

    def _begin(self) -> HMAC:
        _contexts.begin(self)
        self._keyed = HMAC(self._key, self._algorithm)
        return self._keyed

    def icv(self, iv: Bytes, data: Bytes, suffix: bytes = b"") -> bytes:
        """Give the ICV over `data` and `suffix`; `iv` is unused."""
        keyed = self._keyed
        if keyed is None:
            keyed = self._begin()
        context = keyed.copy()
        context.update(data)
        if suffix:
            context.update(suffix)
        return context.finalize()[: self._icv_length]


class Gmac(_CounterMode):
    """AES-GMAC; the nonce is salt, then IV.

    Source: RFC 4543 §3.2.
    """

    __slots__ = ()

    def icv(self, iv: Bytes, data: Bytes, suffix: bytes = b"") -> bytes:
        """Give the ICV over `data` and `suffix`, 16 bytes."""
        aead = self._aead
        if aead is None:
            aead = self._begin()
        return aead.encrypt(self._salt + iv, b"", data + suffix if suffix else data)


Mac: TypeAlias = Hmac | Gmac


def verify(computed: bytes, received: Bytes) -> None:
    """Compare two ICVs in a time that tells nothing.

    Raises:
        WrongIcv: they differ.
    """
    if not hmac.compare_digest(computed, received):
        raise WrongIcv("ICVs differ")


def block_cipher(name: str, key: bytes) -> BlockCipherAlgorithm:
    """Give the block cipher of a CBC row of `ipsec.algorithms`; DES is triple DES with one key thrice."""
    if name == "des-cbc":
        return TripleDES(key * 3)
    if name == "3des-cbc":
        return TripleDES(key)
    return algorithms.AES(key)


def mac(name: str, key: bytes, icv_length: int) -> Mac:
    """Give the MAC of an integrity row of `ipsec.algorithms`."""
    algorithm = _HASHES.get(name)
    return Gmac(key) if algorithm is None else Hmac(algorithm, key, icv_length)
