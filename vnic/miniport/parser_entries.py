"""Parser entries: which UDP ports the NIC looks behind for UDP-ESP of V1 SAs.

Law: keeps entries and their handles; whether a request may come now, and in which order, is the adapter's.

    ADD inbound, no handle     add()      a new entry, or the one there is (R143, R144)
    ADD inbound, a handle      check()    the entry must be there (R145)
    DELETE with a handle       remove()   (R149), or mark() when the delete is put off (R150, R151)

Source: OFFLOAD_IPSEC_UDPESP_ENCAPTYPE_ENTRY; sheet §4.8, §9.3; R138-R151.
"""

from __future__ import annotations

from vnic.errors import OidError
from vnic.ndis.status import NdisStatus

ENCAPTYPE_OTHER = 1
"""OFFLOAD_IPSEC_UDPESP_ENCAPTYPE_OTHER: the packet forms of RFC 3948. Type IKE (0) is reserved."""
NAT_TRAVERSAL_PORT = 4500
"""The only port there is today (R139, R140)."""


class ParserEntries:
    """The parser entries of one NIC.

    Args:
        first_handle: entries are numbered from the next number on, so that a handle of another NIC is not
            taken for one of this.
    """

    __slots__ = ("_entries", "_last_handle", "_marked")

    def __init__(self, first_handle: int = 0) -> None:
        self._last_handle = first_handle
        self._entries: dict[int, tuple[int, int]] = {}
        self._marked: set[int] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def parses(self, port: int) -> bool:
        """Whether a UDP packet to this port, in host order, may hold ESP: an entry names it that is not
        marked (R139, R151)."""
        return any(
            entry == (ENCAPTYPE_OTHER, port) and handle not in self._marked
            for handle, entry in self._entries.items()
        )

    def add(self, kind: int, port: int) -> tuple[int, bool]:
        """List an entry, unless it is listed (R143, R144); a marked one does not count.

        Args:
            kind: UDP_ENCAP_TYPE.
            port: DstEncapPort, in host order.

        Returns:
            Its handle, and whether it is new, so that a request that fails later can take it back (R147).

        Raises:
            OidError: NOT_SUPPORTED for a kind or port this NIC does not parse.
        """
        if kind != ENCAPTYPE_OTHER:
            raise _unsupported("encap_type_entry.udp_encap_type", kind, ENCAPTYPE_OTHER)
        if port != NAT_TRAVERSAL_PORT:
            raise _unsupported("encap_type_entry.dst_encap_port", port, NAT_TRAVERSAL_PORT)
        for handle, entry in self._entries.items():
            if entry == (kind, port) and handle not in self._marked:
                return handle, False
        self._last_handle += 1
        self._entries[self._last_handle] = (kind, port)
        return self._last_handle, True

    def check(self, handle: int) -> None:
        """Refuse a handle that names no entry in use.

        Raises:
            OidError: INVALID_PARAMETER.
        """
        if handle not in self._entries or handle in self._marked:
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "the NIC has no parser entry with this handle",
                field="encap_type_entry_offload_handle",
                value=str(handle),
                allowed="NULL, or a handle that adding an SA gave and deleting has not taken back",
            )

    def mark(self, handle: int) -> None:
        """Stop using an entry that will be removed later (R150, R151); the handle was checked."""
        self._marked.add(handle)

    def clear(self) -> None:
        """Forget every entry; handles go on."""
        self._entries.clear()
        self._marked.clear()

    def remove(self, handle: int) -> None:
        """Forget an entry, marked or not (R149)."""
        del self._entries[handle]
        self._marked.discard(handle)


def _unsupported(field: str, value: int, allowed: int) -> OidError:
    return OidError(
        NdisStatus.NOT_SUPPORTED,
        "the NIC parses no such UDP encapsulation",
        field=field,
        value=str(value),
        allowed=str(allowed),
    )
