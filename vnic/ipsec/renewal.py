"""Renewal: which SA is to be replaced, and by what.

Law: a frozen value. What the successor has in common with the old SA is taken from the old SA, so that a
policy that chose the one chooses the other.

Source: RFC 7296 §2.8 (rekeying); RFC 4301 §4.5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vnic.errors import RequestError
from vnic.ipsec.algorithms import Encryption, Integrity
from vnic.ipsec.association import NO_KEY, KeyMaterial, SaId, SecurityAssociation
from vnic.ipsec.lifetime import Lifetime


@dataclass(frozen=True, slots=True)
class Renewal:
    """One SA of a rekeying: the old one, and SPI, algorithms and keys of its successor."""

    old: SaId
    spi: int
    encryption: Encryption | None = None
    encryption_key: KeyMaterial = NO_KEY
    integrity: Integrity | None = None
    integrity_key: KeyMaterial = NO_KEY
    icv_length: int = 0
    """Bytes; 0 is the algorithm's default."""
    lifetime: Lifetime | None = None
    """None: the limits of the old one, counted anew."""

    sequence_number: int = 0
    """Outbound: the last number that its key has used before; none but for a key that is taken up again."""

    def successor(self, old: SecurityAssociation) -> SecurityAssociation:
        """Give the SA in the place of `old`: its ends, mode, reqid, selector, window and flags; its numbers
        begin anew.

        Raises:
            RequestError: a value is out of range, or a key is the old one's.
        """
        for word, key, before in (
            ("enc", self.encryption_key, old.encryption_key),
            ("auth", self.integrity_key, old.integrity_key),
        ):
            if len(key) and key == before:
                raise RequestError(
                    "the new key is the old one; numbers begin anew and need a key of their own",
                    field=word,
                    allowed="a new key",
                )
        return replace(
            old,
            spi=self.spi,
            encryption=self.encryption,
            encryption_key=self.encryption_key,
            integrity=self.integrity,
            integrity_key=self.integrity_key,
            icv_length=self.icv_length,
            lifetime=old.lifetime if self.lifetime is None else self.lifetime,
            sequence_number=self.sequence_number,
        ).checked()
