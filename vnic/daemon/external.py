"""The hot loop of an adapter with an external transport: NBL socket, NIC, wire.

Law: a burst per call and back to the event loop, so that control socket and other adapters stay alive. Every
list is completed, in the order it came, with the status the NIC gave it; every frame of the wire is
indicated, good or bad (R171, R197). A defect costs one burst, never the daemon.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from vnic.daemon.defects import Defects
from vnic.engine.contract import ExternalCard
from vnic.errors import PacketError, PortError
from vnic.ndis.nbl import BadMessage, MessageType, NblMessage
from vnic.ndis.netbuffer import NetBuffer, NetBufferList
from vnic.ndis.oids import Oid, OidRequest, RequestType
from vnic.ndis.oob import pack_completion, pack_receive, unpack_transmit
from vnic.ndis.status import IndicationCode, NdisStatus, StatusIndication
from vnic.ports.base import Port
from vnic.ports.nbl import NblPort

log = logging.getLogger(__name__)

_QUERY_LENGTH = 4096
"""Room for the answer of a configuration query, in bytes; NDIS_OFFLOAD has 184."""

_GREETING = (
    (Oid.TCP_OFFLOAD_HARDWARE_CAPABILITIES, IndicationCode.TASK_OFFLOAD_HARDWARE_CAPABILITIES),
    (Oid.TCP_OFFLOAD_CURRENT_CONFIG, IndicationCode.TASK_OFFLOAD_CURRENT_CONFIG),
)
"""What a driver hears first: in NDIS it is among the parameters of its binding."""

_RESETS = (IndicationCode.RESET_START, IndicationCode.RESET_END)


class ExternalForwarder:
    """Moves the frames of one adapter.

    Attributes:
        nbl: where the driver attaches.
        wire: replace it through `use_wire` alone.
        errors: bursts given up because of a defect.
    """

    def __init__(
        self,
        name: str,
        card: ExternalCard,
        nbl: NblPort,
        wire: Port,
        *,
        clock: Callable[[], float],
        on_driver: Callable[[str], None],
        on_failure: Callable[[str], None],
    ) -> None:
        """Prepare; nothing moves before `start`.

        Args:
            name: of the adapter, for the log.
            clock: monotonic seconds.
            on_driver: hears, in words, that a driver came or went.
            on_failure: hears, once, that the wire is of no further use; the forwarder has stopped by then.
        """
        self.nbl = nbl
        self.wire = wire
        self._card = card
        self._clock = clock
        self._on_driver = on_driver
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._name = name
        self._defects = Defects(name, clock)
        self._running = self._greeted = self._resetting = False
        self._listening: int | None = None
        self._reading: int | None = None
        self._writing: int | None = None
        self._wire_watched: int | None = None
        self._pump: asyncio.Handle | None = None

    @property
    def errors(self) -> int:
        return self._defects.count

    def start(self) -> None:
        """Begin to move frames."""
        self._running = True
        self._listening = self.nbl.listening_fileno()
        if self._listening is not None:
            self._loop.add_reader(self._listening, self._from_newcomer)
        self._watch_wire()
        self._watch_driver()

    def stop(self) -> None:
        """Move nothing any more. Idempotent; the ports stay open."""
        self._running = False
        if self._listening is not None:
            self._loop.remove_reader(self._listening)
            self._listening = None
        self._unwatch_wire()
        self._watch_driver()

    def use_wire(self, port: Port) -> None:
        """Take another port object for the wire."""
        self._unwatch_wire()
        self.wire = port
        if self._running:
            self._watch_wire()

    def indicate(self, indication: StatusIndication) -> None:
        """Tell the driver, if there is one, of a status indication."""
        if indication.code in _RESETS:
            self._resetting = indication.code is IndicationCode.RESET_START
        frames = [bytearray(indication.buffer)] if indication.buffer else []
        self.nbl.indicate_status(
            NblMessage(MessageType.STATUS_INDICATION, status=int(indication.code), frames=frames)
        )
        self._watch_driver()

    # ---------------------------------------------------------------------------------- watching

    def _watch_wire(self) -> None:
        descriptor = self.wire.fileno()
        if descriptor is not None:
            self._loop.add_reader(descriptor, self._from_wire)
            self._wire_watched = descriptor
        self.wire.set_wake(self._wake)

    def _unwatch_wire(self) -> None:
        if self._wire_watched is not None:
            self._loop.remove_reader(self._wire_watched)
            self._wire_watched = None
        self.wire.set_wake(None)
        if self._pump is not None:
            self._pump.cancel()
            self._pump = None

    def _watch_driver(self) -> None:
        """Watch the driver for what it may do now, and let it go when it is gone."""
        nbl = self.nbl
        attached = self._running and nbl.attached
        reading = nbl.fileno() if attached and not nbl.congested else None
        writing = nbl.fileno() if attached and nbl.waiting else None
        if reading != self._reading:
            if self._reading is not None:
                self._loop.remove_reader(self._reading)
            if reading is not None:
                self._loop.add_reader(reading, self._from_driver)
            self._reading = reading
        if writing != self._writing:
            if self._writing is not None:
                self._loop.remove_writer(self._writing)
            if writing is not None:
                self._loop.add_writer(writing, self._flush)
            self._writing = writing
        if nbl.gone:
            nbl.detach()
            if self._greeted:
                self._greeted = False
                self._on_driver("the protocol driver is gone")

    def _wake(self) -> None:
        """The wire has frames that no descriptor tells of: take them on the loop's next turn."""
        if self._pump is None:
            self._pump = self._loop.call_soon(self._from_link)

    def _from_link(self) -> None:
        self._pump = None
        self._from_wire()

    # ---------------------------------------------------------------------------------- moving

    def _from_newcomer(self) -> None:
        """Take or refuse a driver; tell a new one what the NIC can do and does."""
        self.nbl.look_for_hangup()
        self._watch_driver()
        if not self.nbl.accept():
            return
        for oid, code in _GREETING:
            request = OidRequest(oid, RequestType.QUERY, bytearray(_QUERY_LENGTH))
            operation = self._card.oid_request(request, self._clock())
            while (result := operation.result) is None:
                operation.advance()
            if result.status is not NdisStatus.SUCCESS:
                self.nbl.refuse(f"the NIC does not say what it can do: {result.status.label}")
                self._watch_driver()
                return
            self.indicate(StatusIndication(code, result.information_buffer))
        if self._resetting:
            # It has to hold its sends until the end that it will hear of (R208).
            self.indicate(StatusIndication(IndicationCode.RESET_START))
        self._greeted = True
        self._on_driver("a protocol driver is attached")

    def _flush(self) -> None:
        self.nbl.flush()
        self._watch_driver()

    def _from_driver(self) -> None:
        try:
            burst = self.nbl.receive_burst()
            if burst:
                self._send(burst)
        except PortError as error:
            self._fail(str(error))
        except Exception as error:
            self._report(error)
        self._watch_driver()

    def _send(self, burst: list[NblMessage | BadMessage]) -> None:
        """Carry out sends; completions follow even where a defect keeps the frames from the wire."""
        taken = [_list_of(message) for message in burst]
        for one in taken:
            if isinstance(one, BadMessage):
                log.debug("adapter %s: a message of the driver was refused: %s", self._name, one.reason)
        lists = [one for one in taken if isinstance(one, NetBufferList)]
        try:
            wire = self._card.transmit(lists, self._clock()) if lists else []
            if wire:
                self.wire.send_burst(wire)
            self._defects.over()
        finally:
            completions = [_completion(one) for one in taken if one.request_id is not None]
            self.nbl.complete(completions)
            self.nbl.counters.sends_failed += sum(
                completion.status != NdisStatus.SUCCESS for completion in completions
            )

    def _from_wire(self) -> None:
        try:
            burst = self.wire.receive_burst()
            if burst:
                indicated = self._card.receive(burst, self._clock())
                if indicated:
                    self.nbl.indicate([_indication(buffer) for buffer in indicated])
                self._defects.over()
        except PortError as error:
            self._fail(str(error))
        except Exception as error:
            self._report(error)
        self._watch_driver()

    def _fail(self, reason: str) -> None:
        if self._running:
            self.stop()
            self._on_failure(reason)

    def _report(self, error: Exception) -> None:
        reason = self._defects.add(error)
        if reason:
            self._fail(reason)


def _list_of(message: NblMessage | BadMessage) -> NetBufferList | BadMessage:
    """Read what a driver asks for."""
    if isinstance(message, BadMessage):
        return message
    slots = message.slots
    if message.next_offload_handle:
        if slots.tunnel:
            return BadMessage(
                NdisStatus.INVALID_PARAMETER,
                message.request_id,
                "the tunnel handle is in its slot or in NextOffloadHandle, not in both",
            )
        slots = slots._replace(tunnel=message.next_offload_handle)
    try:
        return NetBufferList(message.request_id, message.frames, unpack_transmit(slots))
    except PacketError as error:
        return BadMessage(NdisStatus.INVALID_PARAMETER, message.request_id, str(error))


def _completion(taken: NetBufferList | BadMessage) -> NblMessage:
    """Answer a send that names its request."""
    if isinstance(taken, BadMessage):
        return NblMessage(MessageType.SEND_COMPLETE, taken.status, taken.request_id or 0)
    large_send = None if taken.transmit is None else taken.transmit.large_send
    # A list still pending was lost to a defect.
    status = NdisStatus.FAILURE if taken.status is NdisStatus.PENDING else taken.status
    return NblMessage(
        MessageType.SEND_COMPLETE, status, taken.request_id, pack_completion(large_send, taken.tcp_payload)
    )


def _indication(buffer: NetBuffer) -> NblMessage:
    return NblMessage(MessageType.RECEIVE, slots=pack_receive(buffer.receive), frames=[buffer.frame])
