"""SAs as the NIC's requests say them, and back.

Law: pure translation between `ipsec.association` and `ndis.oid`; nothing is asked here, nothing kept.

Source: sheet §4, §9, §10; R96-R107, R125-R128.
"""

from __future__ import annotations

from vnic.ipsec.algorithms import ENCRYPTION_BY_IDENTIFIER, INTEGRITY_BY_IDENTIFIER, NULL, Encryption
from vnic.ipsec.association import (
    Direction,
    IpsecProtocol,
    Mode,
    SecurityAssociation,
    weaknesses,
)
from vnic.ipsec.policy import Prefix, Selector
from vnic.ndis.oid import (
    NO_ALGORITHM,
    AddSa,
    AlgorithmInfo,
    Operation,
    SaElement,
    TrafficFilter,
)
from vnic.transport.state import SaState

_LOW_MASK = 0xFFFFFFFF
_OPERATIONS = {IpsecProtocol.AH: Operation.AH, IpsecProtocol.ESP: Operation.ESP}
PROTOCOLS = {Operation.AH: IpsecProtocol.AH, Operation.ESP: IpsecProtocol.ESP}
"""Protocol of each operation."""


def operation_of(sa: SecurityAssociation) -> Operation:
    """The NIC's name for the protocol of an SA."""
    return _OPERATIONS[sa.protocol]


def request_for(*states: SaState) -> AddSa:
    """The request that offloads SAs as one bundle, with their numbers as they are now: one SA, or ESP
    then AH.

    Whoever takes an SA up in the middle of its life is told the whole number: told the upper half alone it
    would open a packet of long ago, which the transport would take for one of the next 2^32.
    """
    first = states[0].sa
    source = first.source
    if first.udp is not None and first.udp.follow:
        # Where its packets come from is judged here.
        source = bytes(len(source))
    return AddSa(
        inbound=first.direction is Direction.INBOUND,
        source=source,
        destination=first.destination,
        elements=tuple(_element(state) for state in states),
        udp_esp_encapsulation=states[0].udp_esp,
        portion=first.mode,
    )


def _element(state: SaState) -> SaElement:
    sa = state.sa
    number = state.sequence_number
    authentication = NO_ALGORITHM
    encryption = NO_ALGORITHM
    if sa.integrity is not None:
        icv = sa.icv_length if sa.icv_length != sa.integrity.icv_lengths[0] else 0
        authentication = AlgorithmInfo(sa.integrity.ndis_identifier, sa.integrity_key, icv)
    if sa.encryption is not None:
        icv = sa.icv_length if sa.encryption.combined else 0
        encryption = AlgorithmInfo(sa.encryption.ndis_identifier, sa.encryption_key, icv)
    return SaElement(
        operation=operation_of(sa),
        spi=sa.spi,
        authentication=authentication,
        encryption=encryption,
        esn=sa.esn,
        sequence_number_high_order=number >> 32,
        sequence_number_low_order=number & _LOW_MASK if sa.esn and not state.half_known else None,
    )


def associations_of(request: AddSa) -> tuple[SecurityAssociation, ...]:
    """The SAs of a request that the NIC has taken, in its order."""
    selector = None if request.filter is None else _selector(request.filter)
    return tuple([_association(request, element, selector) for element in request.elements])


def _association(request: AddSa, element: SaElement, selector: Selector | None) -> SecurityAssociation:
    encryption: Encryption | None = None
    if element.operation is Operation.ESP:
        encryption = ENCRYPTION_BY_IDENTIFIER.get(element.encryption.identifier, NULL)
    integrity = INTEGRITY_BY_IDENTIFIER.get(element.authentication.identifier)
    icv_length = 0
    if encryption is not None and encryption.combined:
        icv_length = element.encryption.additional_info or encryption.icv_lengths[0]
    elif integrity is not None:
        icv_length = element.authentication.additional_info or integrity.icv_lengths[0]
    encryption_key = element.encryption.key
    return SecurityAssociation(
        Direction.INBOUND if request.inbound else Direction.OUTBOUND,
        request.source,
        request.destination,
        PROTOCOLS[element.operation],
        element.spi,
        _mode(request, element),
        encryption,
        encryption_key,
        integrity,
        element.authentication.key,
        icv_length,
        element.esn,
        selector=selector,
        sequence_number=element.sequence_number_high_order << 32 if element.esn else 0,
        weak=weaknesses(encryption, encryption_key, integrity, element.spi),
    )


def _mode(request: AddSa, element: SaElement) -> Mode | None:
    """Mode of one element: AH around ESP stands behind the header that ESP already has."""
    around = element.operation is Operation.AH and len(request.elements) > 1
    return Mode.TRANSPORT if around and request.portion is not None else request.portion


def _selector(chosen: TrafficFilter) -> Selector | None:
    """The selector that a V1 filter comes to; None for one that lets everything pass, or whose masks are no
    prefixes: the NIC alone then applies it."""
    source = _prefix(chosen.source, chosen.source_mask)
    destination = _prefix(chosen.destination, chosen.destination_mask)
    if source is None or destination is None:
        return None
    if not (source.length or destination.length or chosen.protocol):
        return None
    return Selector(
        source,
        destination,
        chosen.protocol,
        chosen.source_port or None,
        chosen.destination_port or None,
    )


def _prefix(address: bytes, mask: bytes) -> Prefix | None:
    bits = len(mask) * 8
    value = int.from_bytes(mask, "big")
    length = value.bit_count()
    if value != (1 << bits) - (1 << bits - length):
        return None
    network = int.from_bytes(address, "big") & value
    return Prefix(network.to_bytes(len(address), "big"), length)


def word_for(field: str, sa: SecurityAssociation) -> str:
    """The word of an SA request that a member of AddSa stands for, where there is one."""
    combined = sa.encryption is not None and sa.encryption.combined
    words = {
        "elements[0].encryption.": "aead" if combined else "enc",
        "elements[0].authentication.": "auth",
        "elements[0].spi": "spi",
        "elements[0].esn": "esn",
        "udp_esp_encapsulation": "encap",
        "portion": "mode",
        "source": "src",
        "destination": "dst",
    }
    if field == "elements":
        return "proto"
    return next((word for member, word in words.items() if field.startswith(member)), field)
