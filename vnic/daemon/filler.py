"""Filler: SAs for nobody, that fill the table of a NIC.

Law: they come and go by the calls that every SA does; no packet ever fits one. Frames get their turn in
between.

Source: RFC 1112 §4 for the addresses, which are nobody's; R32 and R92 for a full table.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable

from vnic.engine.contract import Card, Offload
from vnic.errors import OidError, RequestError
from vnic.ipsec.association import Direction, IpsecProtocol, KeyMaterial, SaId, SecurityAssociation
from vnic.ndis.capabilities import OffloadCapabilities
from vnic.ndis.status import NdisStatus

SOURCE = bytes((240, 0, 0, 2))
DESTINATION = bytes((240, 0, 0, 1))
"""Of every such SA: class E, which no host has."""

REQID = int.from_bytes(b"FILL")
"""Of every such SA, for whoever lists them."""

_FIRST_SPI = REQID

_A_TURN = 32
"""SAs added or deleted before the frames get a turn."""


class Filler:
    """The filling of one NIC's table."""

    def __init__(self, card: Card, clock: Callable[[], float], require: Callable[[], None]) -> None:
        """Begin with none.

        Args:
            clock: monotonic seconds.
            require: raises what there is to raise once the card can be asked for nothing more.
        """
        self._card = card
        self._clock = clock
        self._require = require
        self._names: list[SaId] = []
        self._spis = itertools.count(_FIRST_SPI)
        self._changing = asyncio.Lock()

    @property
    def count(self) -> int:
        """How many there are; whoever deletes all SAs deletes them too."""
        if self._card.sa_count < len(self._names):
            self._names = [name for name in self._names if self._card.find_sa(name) is not None]
        return len(self._names)

    async def fill(self) -> None:
        """Add SAs until the NIC has room for none.

        Raises:
            RequestError, OidError: the NIC refuses for another reason than that; nothing is changed.
        """
        async with self._changing:
            before = len(self._names)
            try:
                while self._add():
                    if len(self._names) % _A_TURN == 0:
                        await asyncio.sleep(0)
                        self._require()
            except RequestError:
                await self._delete(before)
                raise

    async def empty(self) -> None:
        """Delete them all. Idempotent."""
        async with self._changing:
            await self._delete(0)

    def _add(self) -> bool:
        """Add one; False when it found no room."""
        sa = _association(self._card.hardware.ipsec_v2, next(self._spis))
        try:
            added = self._card.add_sa(sa, self._clock())
        except OidError as error:
            if error.status is NdisStatus.RESOURCES:
                return False
            raise
        if added.offload is Offload.NIC:
            self._names.append(sa.id)
            return True
        self._card.delete_sa(sa.id)
        if added.status is NdisStatus.RESOURCES:
            return False
        raise OidError(added.status, added.message or "the NIC takes no SA now", field="fill")

    async def _delete(self, kept: int) -> None:
        while len(self._names) > kept:
            name = self._names.pop()
            # Somebody may have deleted it in the meantime.
            if self._card.find_sa(name) is not None:
                self._card.delete_sa(name)
            if len(self._names) % _A_TURN == 0:
                await asyncio.sleep(0)


def _association(hardware: OffloadCapabilities, spi: int) -> SecurityAssociation:
    """Make an SA that the hardware can hold, with keys of its own.

    Raises:
        RequestError: it can hold none.
    """
    encryption = next(iter(hardware.encryptions()), None) if hardware.esp else None
    integrity = None if encryption and encryption.combined else next(iter(hardware.integrities()), None)
    if encryption is None and (integrity is None or not hardware.ah):
        raise RequestError("the NIC has no algorithms to fill its table with", field="fill")
    return SecurityAssociation(
        direction=Direction.INBOUND,
        source=SOURCE,
        destination=DESTINATION,
        protocol=IpsecProtocol.AH if encryption is None else IpsecProtocol.ESP,
        spi=spi,
        mode=None,
        encryption=encryption,
        encryption_key=KeyMaterial(secrets.token_bytes(encryption.key_length if encryption else 0)),
        integrity=integrity,
        integrity_key=KeyMaterial(secrets.token_bytes(integrity.key_length if integrity else 0)),
        reqid=REQID,
    ).checked()
