"""The SAs the NIC holds: by handle for send, by address and SPI for receive.

Law: stores and finds; judges no request and reads no packet. Bundles come and go whole.

Source: sheet R88, R99, R108, R112, R173; RFC 4301 §4.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import merge
from operator import itemgetter

from vnic.errors import OidError
from vnic.ipsec.association import Mode
from vnic.miniport.ah import AhElement, AhOpener, AhSealer
from vnic.miniport.ciphers import CounterIvs
from vnic.miniport.counter_keys import CounterKeys, KeyDigest
from vnic.miniport.esp import EspElement, EspOpener, EspSealer
from vnic.miniport.parser_entries import ParserEntries
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oid import OidVersion, Operation, TrafficFilter
from vnic.ndis.status import NdisStatus


class OutboundBundle:
    """An outbound SA, or an ESP and an AH SA, under one handle.

    Attributes:
        esp, ah: at least one is there; with both, AH covers what ESP made (R98).
        version: IP version of its addresses, and so of the packets it protects (R101).
        counter_keys: digests of its counter-mode keys; held by this NIC until the bundle is deleted.
        udp_esp: its UDP-ESP subtype, a bit of `ndis.capabilities`, or 0.
        oid_version: V1: its packets come without header information (R12).
        portion: the mode the request named, or None.
        ordinary: one ESP SA of a V2 OID, without UDP encapsulation. What the send path has a short way for.
    """

    __slots__ = ("ah", "counter_keys", "esp", "oid_version", "ordinary", "portion", "udp_esp", "version")

    def __init__(
        self,
        esp: EspSealer | None,
        ah: AhSealer | None,
        version: int,
        counter_keys: tuple[KeyDigest, ...] = (),
        udp_esp: int = 0,
        oid_version: OidVersion = OidVersion.V2,
        portion: Mode | None = None,
    ) -> None:
        self.esp = esp
        self.ah = ah
        self.version = version
        self.counter_keys = counter_keys
        self.udp_esp = udp_esp
        self.oid_version = oid_version
        self.portion = portion
        self.ordinary = esp is not None and ah is None and oid_version is OidVersion.V2 and not udp_esp


class InboundBundle:
    """An inbound SA, or an AH and an ESP SA that must come together, under one handle.

    Attributes:
        esp, ah: at least one is there.
        source: address packets must come from, or None for any (R99).
        destination: address packets must go to; all zero for any (R99).
        portion: the mode the request named, or None.
        tunnel: whether it protects the tunnel portion: as the request says, else as its packets show
            (AH in the clear, ESP once it is opened); False before the first.
        udp_esp: its UDP-ESP subtype, a bit of `ndis.capabilities`, or 0.
        oid_version: the OIDs it came by.
        filter: what a V1 request filters on, or None.
        handle: its own, 0 before it is in a table.
        ordinary: nothing about it is special: one ESP SA of a V2 OID, without UDP encapsulation, not marked
            and not to be deleted. What the receive path has a short way for.
    """

    __slots__ = (
        "_marked",
        "_sa_delete_req",
        "ah",
        "destination",
        "esp",
        "filter",
        "handle",
        "oid_version",
        "ordinary",
        "portion",
        "source",
        "tunnel",
        "udp_esp",
    )

    def __init__(
        self,
        esp: EspOpener | None,
        ah: AhOpener | None,
        source: bytes,
        destination: bytes,
        portion: Mode | None,
        udp_esp: int = 0,
        oid_version: OidVersion = OidVersion.V2,
        traffic_filter: TrafficFilter | None = None,
    ) -> None:
        self.udp_esp = udp_esp
        self.oid_version = oid_version
        self.filter = traffic_filter
        self._sa_delete_req = False
        self._marked = False
        self.handle = OffloadHandle(0)
        self.esp = esp
        self.ah = ah
        self.source = source if any(source) else None
        self.destination = destination
        self.portion = portion
        self.tunnel = portion is Mode.TUNNEL
        self.ordinary = self._is_ordinary()

    def _is_ordinary(self) -> bool:
        return (
            self.esp is not None
            and self.ah is None
            and self.oid_version is OidVersion.V2
            and not (self.udp_esp or self._marked or self._sa_delete_req)
        )

    @property
    def sa_delete_req(self) -> bool:
        """The NIC asks for its deletion with every packet (R135, R183)."""
        return self._sa_delete_req

    @sa_delete_req.setter
    def sa_delete_req(self, wanted: bool) -> None:
        self._sa_delete_req = wanted
        self.ordinary = self._is_ordinary()

    @property
    def marked(self) -> bool:
        """It is as good as deleted and its packets are not processed (R150, R151)."""
        return self._marked

    @marked.setter
    def marked(self, marked: bool) -> None:
        self._marked = marked
        self.ordinary = self._is_ordinary()

    def addresses(self) -> Iterator[tuple[Operation, bytes]]:
        """Operation, and destination with SPI, of each of its SAs."""
        if self.esp is not None:
            yield Operation.ESP, self.destination + self.esp.spi.to_bytes(4, "big")
        if self.ah is not None:
            yield Operation.AH, self.destination + self.ah.spi.to_bytes(4, "big")


Bundle = OutboundBundle | InboundBundle


class SaTable:
    """All bundles of a NIC.

    Args:
        capacity: bundles that fit (R32).
        keys: the counter-mode keys of the card.
        last_handle: handles are numbered from the next number on, so that those of two NICs differ.

    Attributes:
        capacity: as given; may change, and takes no bundle away.
        outbound: bundles by handle, for the send path.
        esp, ah: inbound bundles by destination and SPI as they stand on the wire, for the receive path.
        udp_esp_count: inbound bundles with UDP encapsulation.
        parser_entries: which ports V1 bundles with UDP encapsulation are looked for behind.
    """

    def __init__(self, capacity: int, keys: CounterKeys, last_handle: int = 0) -> None:
        self.capacity = capacity
        self._keys = keys
        self._holder = keys.new_holder()
        self._last_handle = last_handle
        self.outbound: dict[int, OutboundBundle] = {}
        self._inbound: dict[int, InboundBundle] = {}
        self.esp: dict[bytes, InboundBundle] = {}
        self.ah: dict[bytes, InboundBundle] = {}
        self.udp_esp_count = 0
        self.parser_entries = ParserEntries(last_handle)

    def __len__(self) -> int:
        return len(self.outbound) + len(self._inbound)

    def items(self) -> Iterator[tuple[OffloadHandle, Bundle]]:
        """Handles and bundles, oldest first."""
        by_handle: tuple[Mapping[int, Bundle], ...] = (self.outbound, self._inbound)
        for handle, bundle in merge(*(index.items() for index in by_handle), key=itemgetter(0)):
            yield OffloadHandle(handle), bundle

    def get(self, handle: int) -> Bundle | None:
        """The bundle with this handle, or None."""
        return self.outbound.get(handle) or self._inbound.get(handle)

    @property
    def last_handle(self) -> int:
        """The handle given last; before the first, the one it would have come after."""
        return self._last_handle

    def holds(self, handle: int) -> bool:
        """Whether there is a bundle with this handle."""
        return handle in self.outbound or handle in self._inbound

    def inbound_handles(self) -> list[int]:
        """Handles of the inbound bundles, oldest first."""
        return list(self._inbound)

    def check_room(self) -> None:
        """Refuse when the table is full.

        Raises:
            OidError: RESOURCES (R92).
        """
        if len(self.outbound) + len(self._inbound) >= self.capacity:
            raise OidError(
                NdisStatus.RESOURCES,
                f"the NIC holds {len(self)} SA bundles and has no room for another; delete one",
                field="sa_offload_capacity",
                value=str(self.capacity),
            )

    def key_in_use(self, digest: KeyDigest) -> bool:
        """Whether an outbound SA of this NIC encrypts with this counter-mode key and salt."""
        return self._keys.held(self._holder, digest)

    def take_up(self, digest: KeyDigest) -> CounterIvs:
        """Hold a counter-mode key for a bundle that is about to be added, and give its IVs."""
        return self._keys.take_up(self._holder, digest)

    def inbound(self, operation: Operation) -> dict[bytes, InboundBundle]:
        """The inbound index of an operation."""
        return self.esp if operation is Operation.ESP else self.ah

    def find(
        self, index: dict[bytes, InboundBundle], source: bytes, destination: bytes, spi: bytes
    ) -> InboundBundle | None:
        """The inbound bundle for a packet: exact destination before wildcard (R173, R99), none that is
        marked (R151).

        Args:
            index: `esp` or `ah`.
            spi: four bytes, as on the wire.
        """
        for address in (destination, bytes(len(destination))):
            bundle = index.get(address + spi)
            if bundle is not None and not bundle.marked and bundle.source in (None, source):
                return bundle
        return None

    def add(self, bundle: Bundle) -> OffloadHandle:
        """Store a bundle that was admitted; a handle is never given twice and never 0."""
        self._last_handle += 1
        handle = OffloadHandle(self._last_handle)
        if isinstance(bundle, OutboundBundle):
            self.outbound[handle] = bundle
        else:
            self._inbound[handle] = bundle
            bundle.handle = handle
            self.udp_esp_count += bool(bundle.udp_esp)
            for operation, key in bundle.addresses():
                self.inbound(operation)[key] = bundle
        return handle

    def delete(self, handle: OffloadHandle) -> None:
        """Forget a bundle and its keys.

        Raises:
            OidError: INVALID_PARAMETER: there is none with this handle.
        """
        outbound = self.outbound.pop(handle, None)
        if outbound is not None:
            for digest in outbound.counter_keys:
                self._keys.release(self._holder, digest)
        else:
            inbound = self._inbound.pop(handle, None)
            if inbound is None:
                raise _unknown(handle)
            self.udp_esp_count -= bool(inbound.udp_esp)
            for operation, key in inbound.addresses():
                del self.inbound(operation)[key]
        if not len(self):
            self._shrink()

    def _shrink(self) -> None:
        """Give back what empty dictionaries keep of the time when they were full."""
        for index in (self.outbound, self._inbound, self.esp, self.ah):
            index.clear()

    def clear(self) -> None:
        """Delete every bundle and parser entry; handles go on."""
        for handle in [*self.outbound, *self._inbound]:
            self.delete(OffloadHandle(handle))
        self.parser_entries.clear()

    def element(self, handle: OffloadHandle, operation: Operation) -> EspElement | AhElement | None:
        """The ESP or AH SA of a bundle, or None when the bundle has none.

        Raises:
            OidError: INVALID_PARAMETER: there is no bundle with this handle.
        """
        bundle = self.get(handle)
        if bundle is None:
            raise _unknown(handle)
        return bundle.esp if operation is Operation.ESP else bundle.ah


def _unknown(handle: OffloadHandle) -> OidError:
    return OidError(
        NdisStatus.INVALID_PARAMETER,
        "the NIC holds no SA with this handle",
        field="handle",
        value=str(handle),
        allowed="a handle that adding an SA gave and deleting has not taken back",
    )
