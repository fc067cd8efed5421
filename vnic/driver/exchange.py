"""What passes between a protocol driver and the NIC, as a driver's author sees it.

Law: messages to values and back; no socket here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vnic.errors import ControlError
from vnic.ndis.nbl import BadMessage, MessageType, NblMessage, pack, unpack
from vnic.ndis.netbuffer import ReceiveInfo, TransmitInfo
from vnic.ndis.oob import Slots, pack_transmit, unpack_completion, unpack_receive
from vnic.ndis.status import IndicationCode, NdisStatus, StatusIndication

SEND_BUFFER = 8 << 20
"""Bytes of messages to ask room for in the kernel; it grants what net.core.wmem_max allows."""


class Completion(NamedTuple):
    """The end of a send."""

    status: NdisStatus
    slots: Slots
    """Binary form of the completion values; zero unless it was a large send."""

    @property
    def tcp_payload(self) -> int:
        """LSOv1: TCP payload sent, in bytes; else 0 (R200)."""
        return unpack_completion(self.slots).tcp_payload


class Received(NamedTuple):
    """A frame of the wire, good or bad (R171)."""

    frame: bytearray
    """Ethernet frame without FCS. The driver's."""
    slots: Slots
    """Out-of-band information in its binary form."""

    @property
    def info(self) -> ReceiveInfo | None:
        """What the NIC found out; None when it did not process the frame (R174, R181)."""
        return unpack_receive(self.slots)


class Exchange:
    """Numbers sends, and tells what a message of the NIC is.

    Attributes:
        hardware_capabilities: NDIS_OFFLOAD of the hardware, as last indicated; b"" before.
        current_config: NDIS_OFFLOAD of the current configuration, as last indicated; b"" before.
    """

    def __init__(self) -> None:
        self.hardware_capabilities = b""
        self.current_config = b""
        self._last_request_id = 0

    @property
    def greeted(self) -> bool:
        """Whether the NIC has said what it can do and does: the driver is attached."""
        return bool(self.hardware_capabilities and self.current_config)

    def send(
        self,
        frames: Sequence[bytes | bytearray],
        info: TransmitInfo | Slots | None = None,
        next_offload_handle: int = 0,
    ) -> tuple[int, bytes]:
        """Give the request id and the message of a list of frames.

        Args:
            info: what the NIC is to do, as values or in binary form; None: nothing (R164).
            next_offload_handle: second handle of the NDIS 5 form.

        Raises:
            PacketError: a number does not fit its bits.
        """
        self._last_request_id += 1
        slots = info if isinstance(info, Slots) else pack_transmit(info)
        message = NblMessage(
            MessageType.SEND,
            request_id=self._last_request_id,
            slots=slots,
            next_offload_handle=next_offload_handle,
            frames=[bytearray(frame) for frame in frames],
        )
        return self._last_request_id, pack(message)

    def take(self, data: bytes) -> tuple[int, Completion] | Received | StatusIndication | None:
        """Read a message: a completion with its request id, a frame, or a status indication; None for one of
        a code this version does not know.

        Raises:
            ControlError: the NIC refuses the driver, or the message is no message.
        """
        message = unpack(data)
        if isinstance(message, BadMessage):
            raise ControlError(f"what came from the NBL socket is no message: {message.reason}")
        if message.type is MessageType.SEND_COMPLETE:
            return message.request_id, Completion(NdisStatus(message.status), message.slots)
        if message.type is MessageType.RECEIVE:
            return Received(message.frames[0], message.slots)
        buffer = bytes(message.frames[0]) if message.frames else b""
        if message.type is MessageType.SEND or message.status == NdisStatus.NOT_ACCEPTED:
            raise ControlError(buffer.decode(errors="replace") or "the NIC refused the driver")
        try:
            indication = StatusIndication(IndicationCode(message.status), buffer)
        except ValueError:
            return None
        if indication.code is IndicationCode.TASK_OFFLOAD_HARDWARE_CAPABILITIES:
            self.hardware_capabilities = buffer
        elif indication.code is IndicationCode.TASK_OFFLOAD_CURRENT_CONFIG:
            self.current_config = buffer
        return indication
