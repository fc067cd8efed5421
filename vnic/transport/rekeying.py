"""Rekeying: successors for SAs in one step, make before break.

Law: whole or not at all. Between two bursts, so no frame that an old outbound SA is to seal waits anywhere
when it goes. An old inbound SA goes on until its grace is over; without one, until it is deleted.

    successors inbound ── successors outbound ── switch: old outbound gone ── grace ── old inbound gone
                        └── any refusal: those added are gone again, nothing has changed

Source: RFC 7296 §2.8; RFC 4301 §4.4.1.2 (a policy finds its SAs by what they are, here by reqid).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vnic.errors import OidError, RequestError, VnicError
from vnic.ipsec.association import SaId, SecurityAssociation
from vnic.ipsec.lifetime import MAX_GRACE_S
from vnic.ipsec.policy import PolicyEntry
from vnic.ipsec.renewal import Renewal
from vnic.ndis.status import NdisStatus
from vnic.transport.sad import Sad
from vnic.transport.state import SaState


def rekey(
    sad: Sad, policies: Iterable[PolicyEntry], renewals: Sequence[Renewal], grace: int | None, now: float
) -> list[SaState]:
    """Put successors in the place of SAs; gives them in the order of `renewals`.

    Args:
        policies: all of the adapter.
        grace: seconds an old inbound SA goes on; None: until it is deleted.

    Raises:
        RequestError: a value is out of range, or a policy names an old SPI.
        OidError: INVALID_PARAMETER: an old SA is not there or is replaced already, or a new name is taken;
            RESOURCES: there is no room for old and new side by side; any other refusal of the NIC.
    """
    if grace is not None and not 0 <= grace <= MAX_GRACE_S:
        raise RequestError(
            "out of range", field="grace", value=str(grace)[:64], allowed=f"0 to {MAX_GRACE_S} seconds"
        )
    pairs = _successors(sad, renewals)
    _check_policies(policies, [old for old, _ in pairs])
    added: list[SaState] = []
    try:
        # Inbound first, though nothing passes in between: so it is the outbound ones that are taken back
        # when there is no room.
        for _, sa in sorted(pairs, key=lambda pair: pair[0].window is None):
            sad.add(sa, now)
            added.append(sad.table[sa.id])
    except VnicError as error:
        for state in reversed(added):
            sad.delete(state.sa.id)
        if isinstance(error, OidError) and error.status is NdisStatus.RESOURCES:
            raise OidError(
                NdisStatus.RESOURCES,
                "new and old SAs must fit side by side: " + error.message,
                field=error.field,
                value=error.value,
                allowed=error.allowed,
            ) from error
        raise
    for old, sa in pairs:
        if old.peer is not None:
            sad.table[sa.id].peer = old.peer
        if old.sequence is not None:
            sad.delete(old.sa.id)
        else:
            old.successor = sa.id
            if grace is not None:
                old.leaves = now + grace
                sad.lifetimes.watch(old)
    return [sad.table[sa.id] for _, sa in pairs]


def _successors(sad: Sad, renewals: Sequence[Renewal]) -> list[tuple[SaState, SecurityAssociation]]:
    """Find each old SA and make its successor."""
    if not renewals:
        raise RequestError("no SA is named", field="sas", allowed="one SA or more")
    pairs: list[tuple[SaState, SecurityAssociation]] = []
    seen: set[SaId] = set()
    for renewal in renewals:
        old = sad.table.get(renewal.old)
        if old is None:
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "there is no such SA",
                field="old",
                value=str(renewal.old),
                allowed="an SA that `sa show` lists",
            )
        # A successor that is gone again leaves the old SA to be rekeyed anew.
        if renewal.old in seen or old.successor in sad.table:
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "the SA is replaced already",
                field="old",
                value=str(renewal.old),
                allowed="its successor",
            )
        seen.add(renewal.old)
        pairs.append((old, renewal.successor(old.sa)))
    return pairs


def _check_policies(policies: Iterable[PolicyEntry], olds: list[SaState]) -> None:
    """Refuse while a policy's template names an old SPI: while both SAs are in use it could name but one."""
    spis = {(old.sa.protocol, old.sa.spi): old for old in olds}
    for policy in policies:
        for template in policy.templates:
            old = spis.get((template.protocol, template.spi))
            if old is None or template.destination not in (None, old.sa.destination):
                continue
            if policy.direction is old.sa.direction:
                raise RequestError(
                    f"policy {policy.index} names this SPI in a template; new and old SA pass by one policy "
                    "only if it names neither",
                    field="old",
                    value=str(old.sa.id),
                    allowed="an SA that policies choose by reqid",
                )
