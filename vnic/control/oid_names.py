"""OIDs by name, and what to know of each before it is asked.

Law: names and facts; no buffer is looked into.

Source: sheet §4.1.
"""

from __future__ import annotations

from vnic.errors import RequestError
from vnic.ndis.oids import Oid

_MAX = 0xFFFFFFFF
_SHOWN_LENGTH = 64

QUERIED = frozenset(
    {
        Oid.OFFLOAD_ENCAPSULATION,
        Oid.TCP_TASK_OFFLOAD,
        Oid.TCP_OFFLOAD_CURRENT_CONFIG,
        Oid.TCP_OFFLOAD_HARDWARE_CAPABILITIES,
    }
)
"""OIDs that can be queried."""

SET = frozenset(Oid) - {Oid.TCP_OFFLOAD_CURRENT_CONFIG, Oid.TCP_OFFLOAD_HARDWARE_CAPABILITIES}
"""OIDs that can be set."""

WITH_KEYS = frozenset(
    {
        Oid.TCP_TASK_IPSEC_ADD_SA,
        Oid.TCP_TASK_IPSEC_ADD_UDPESP_SA,
        Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA,
        Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA_EX,
    }
)
"""OIDs whose buffers hold keys."""

_BY_NAME = {one.name: one for one in Oid}


def number_of(text: str, field: str = "oid") -> int:
    """Read an OID: its name in small or capital letters, with or without OID_, or its number.

    Raises:
        RequestError: there is no such name, or the number has more than 32 bits.
    """
    known = _BY_NAME.get(text.upper().removeprefix("OID_"))
    if known is not None:
        return known
    number = -1
    if text.isascii() and text.isalnum():
        try:
            number = int(text, 16 if text[:2] in ("0x", "0X") else 10)
        except ValueError:
            number = -1
    if not 0 <= number <= _MAX:
        raise RequestError(
            "there is no such OID",
            field=field,
            value=text[:_SHOWN_LENGTH],
            allowed=f"{', '.join(one.label for one in Oid)}, or 0x0 to {_MAX:#x}",
        )
    return number


def name_of(number: int) -> str:
    """Give the NDIS name of an OID, or its number in hexadecimal."""
    return Oid(number).label if number in Oid.__members__.values() else f"{number:#010x}"
