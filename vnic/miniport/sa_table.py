"""The SAs the NIC holds: by handle for send, by address and SPI for receive.

Law: stores and finds; judges no request and reads no packet. Bundles come and go whole.

Source: sheet R88, R99, R108, R112, R173; RFC 4301 §4.1.
"""

from __future__ import annotations

from collections.abc import Iterator

from vnic.errors import OidError
from vnic.ipsec.association import Mode
from vnic.miniport.ah import AhElement, AhOpener, AhSealer
from vnic.miniport.ciphers import CounterIvs
from vnic.miniport.esp import EspElement, EspOpener, EspSealer
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oid import OidVersion, Operation, TrafficFilter
from vnic.ndis.status import NdisStatus

_MAX_RETIRED_KEYS = 16384

KeyDigest = bytes
"""What the NIC remembers of a counter-mode key and salt: a hash."""


class OutboundBundle:
    """An outbound SA, or an ESP and an AH SA, under one handle.

    Attributes:
        esp, ah: at least one is there; with both, AH covers what ESP made (R98).
        version: IP version of its addresses, and so of the packets it protects (R101).
        counter_ivs: IVs of its counter-mode keys, by digest of key and salt.
        udp_esp: its UDP-ESP subtype, a bit of `ndis.capabilities`, or 0.
        oid_version: V1: its packets come without header information (R12).
        portion: the mode the request named, or None.
    """

    __slots__ = ("ah", "counter_ivs", "esp", "oid_version", "portion", "udp_esp", "version")

    def __init__(
        self,
        esp: EspSealer | None,
        ah: AhSealer | None,
        version: int,
        counter_ivs: dict[KeyDigest, CounterIvs],
        udp_esp: int = 0,
        oid_version: OidVersion = OidVersion.V2,
        portion: Mode | None = None,
    ) -> None:
        self.esp = esp
        self.ah = ah
        self.version = version
        self.counter_ivs = counter_ivs
        self.udp_esp = udp_esp
        self.oid_version = oid_version
        self.portion = portion


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
        sa_delete_req: the NIC asks for its deletion with every packet (R135, R183).
        marked: it is as good as deleted and its packets are not processed (R150, R151).
    """

    __slots__ = (
        "ah",
        "destination",
        "esp",
        "filter",
        "marked",
        "oid_version",
        "portion",
        "sa_delete_req",
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
        self.sa_delete_req = False
        self.marked = False
        self.esp = esp
        self.ah = ah
        self.source = source if any(source) else None
        self.destination = destination
        self.portion = portion
        self.tunnel = portion is Mode.TUNNEL

    def addresses(self) -> Iterator[tuple[Operation, bytes]]:
        """Operation, and destination with SPI, of each of its SAs."""
        if self.esp is not None:
            yield Operation.ESP, self.destination + self.esp.spi.to_bytes(4, "big")
        if self.ah is not None:
            yield Operation.AH, self.destination + self.ah.spi.to_bytes(4, "big")


Bundle = OutboundBundle | InboundBundle


class SaTable:
    """All bundles of a NIC.

    Attributes:
        outbound: bundles by handle, for the send path.
        esp, ah: inbound bundles by destination and SPI as they stand on the wire, for the receive path.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._last_handle = 0
        self._bundles: dict[int, Bundle] = {}
        self._counter_keys: set[KeyDigest] = set()
        self._retired: dict[KeyDigest, CounterIvs] = {}
        self.outbound: dict[int, OutboundBundle] = {}
        self.esp: dict[bytes, InboundBundle] = {}
        self.ah: dict[bytes, InboundBundle] = {}

    def __len__(self) -> int:
        return len(self._bundles)

    def check_room(self) -> None:
        """Refuse when the table is full.

        Raises:
            OidError: RESOURCES (R92).
        """
        if len(self._bundles) >= self._capacity:
            raise OidError(
                NdisStatus.RESOURCES,
                f"the NIC holds {len(self._bundles)} SA bundles and has no room for another; delete one",
                field="sa_offload_capacity",
                value=str(self._capacity),
            )

    def key_in_use(self, digest: KeyDigest) -> bool:
        """Whether an outbound SA of this NIC encrypts with this counter-mode key and salt."""
        return digest in self._counter_keys

    def retired_ivs(self, digest: KeyDigest) -> CounterIvs | None:
        """IVs of a deleted outbound SA with this key and salt, so that an SA that takes the key up again
        goes on where that one stopped. The latest deleted are remembered, by hash alone."""
        return self._retired.get(digest)

    def inbound(self, operation: Operation) -> dict[bytes, InboundBundle]:
        """The inbound index of an operation."""
        return self.esp if operation is Operation.ESP else self.ah

    def find(
        self, index: dict[bytes, InboundBundle], source: bytes, destination: bytes, spi: bytes
    ) -> InboundBundle | None:
        """The inbound bundle for a packet: exact destination before wildcard (R173, R99).

        Args:
            index: `esp` or `ah`.
            spi: four bytes, as on the wire.
        """
        for address in (destination, bytes(len(destination))):
            bundle = index.get(address + spi)
            if bundle is not None and (bundle.source is None or bundle.source == source):
                return bundle
        return None

    def add(self, bundle: Bundle) -> OffloadHandle:
        """Store a bundle that was admitted; a handle is never given twice and never 0."""
        self._last_handle += 1
        handle = OffloadHandle(self._last_handle)
        self._bundles[handle] = bundle
        if isinstance(bundle, OutboundBundle):
            self.outbound[handle] = bundle
            self._counter_keys.update(bundle.counter_ivs)
            for digest in bundle.counter_ivs:
                self._retired.pop(digest, None)
        else:
            for operation, key in bundle.addresses():
                self.inbound(operation)[key] = bundle
        return handle

    def delete(self, handle: OffloadHandle) -> None:
        """Forget a bundle and its keys.

        Raises:
            OidError: INVALID_PARAMETER: there is none with this handle.
        """
        bundle = self._bundles.pop(handle, None)
        if bundle is None:
            raise _unknown(handle)
        if isinstance(bundle, InboundBundle):
            for operation, key in bundle.addresses():
                del self.inbound(operation)[key]
            return
        del self.outbound[handle]
        self._counter_keys.difference_update(bundle.counter_ivs)
        self._retired.update(bundle.counter_ivs)
        while len(self._retired) > _MAX_RETIRED_KEYS:
            del self._retired[next(iter(self._retired))]

    def element(self, handle: OffloadHandle, operation: Operation) -> EspElement | AhElement | None:
        """The ESP or AH SA of a bundle, or None when the bundle has none.

        Raises:
            OidError: INVALID_PARAMETER: there is no bundle with this handle.
        """
        bundle = self._bundles.get(handle)
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
