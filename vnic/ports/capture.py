"""CapturePort: a pcapng record of what passes a port.

Law: traffic comes first. Recording never blocks, never fails and never changes a frame; what the disk does
not take is counted as lost.

    file = [Section Header][Interface Description]...[Enhanced Packet]...      each block 32-bit aligned
    block = [type 4 | total length 4 | body | options | total length 4]        little-endian

Source: PCAP Next Generation Capture File Format (draft-ietf-opsawg-pcapng), §3 and §4.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from vnic.errors import RequestError
from vnic.ndis.netbuffer import NetBuffer
from vnic.netlink.refusals import refusal
from vnic.ports.base import Port
from vnic.ports.middleware import Middleware

SNAP_LENGTH = 262_144
"""Bytes kept of a frame at the most, unless told otherwise: more than any frame has."""

_SECTION_HEADER = 0x0A0D0D0A
_INTERFACE_DESCRIPTION = 0x00000001
_ENHANCED_PACKET = 0x00000006
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_LINKTYPE_ETHERNET = 1
_OPTION_SHB_USERAPPL = 4
_OPTION_IF_NAME = 2
_OPTION_IF_TSRESOL = 9
_NANOSECONDS = 9  # 10^-9 s
_END_OF_OPTIONS = bytes(4)

_BLOCK_HEAD = struct.Struct("<II")
_BLOCK_TAIL = struct.Struct("<I")
_SECTION = struct.Struct("<IHHq")  # magic, major, minor, section length (-1: not known)
_INTERFACE = struct.Struct("<HHI")  # link type, reserved, snap length
_OPTION = struct.Struct("<HH")
_PACKET = struct.Struct("<IIIIIII")  # type, total length, interface, time high, low, captured, original
_PACKET_END = struct.Struct("<HHIII")  # epb_flags: code 2, length 4, value; end of options; total length
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")
_PACKET_FIXED = _PACKET.size + _PACKET_END.size

_INBOUND = 1  # epb_flags bits 0 and 1
_OUTBOUND = 2

_QUEUE_BYTES = 16 << 20  # what may wait for the disk
_WRITE_BYTES = 256 << 10  # written at once when this much waits,
_WRITE_INTERVAL_S = 0.2  # and otherwise this long after the first frame
_SMALLEST_LIMIT = 4096  # the headers of any interfaces, and a frame or two
_CLOSE_WAIT_S = 1.0  # a disk that hangs must not hold up the daemon's end


class PcapngWriter:
    """One capture file, written by a thread of its own; any number of ports may share it.

    Attributes:
        path: the file.
        frames_written: frames handed to the file system.
        frames_lost: frames not recorded: size limit, disk error, or a disk too slow.
        state: "on", or "off: REASON" from the moment recording stopped for good.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock_ns: Callable[[], int],
        max_bytes: int | None = None,
        snap_length: int = SNAP_LENGTH,
    ) -> None:
        """Create the file, readable by its owner alone; it must not exist.

        Args:
            clock_ns: wall clock, in nanoseconds since 1970 (`time.time_ns`).
            max_bytes: size of the file at the most; what comes later is counted as lost. None is no limit.
            snap_length: bytes kept of each frame.

        Raises:
            RequestError: a limit that leaves no room.
            PortError: the file exists (a symbolic link counts), or cannot be made.
        """
        if snap_length < 1:
            raise RequestError(
                "nothing would be kept", field="snap_length", value=str(snap_length), allowed="1 or more"
            )
        if max_bytes is not None and max_bytes < _SMALLEST_LIMIT:
            raise RequestError(
                "a capture file needs more room",
                field="max_bytes",
                value=str(max_bytes),
                allowed=f"{_SMALLEST_LIMIT} or more",
            )
        self.path = Path(path)
        self.frames_written = 0
        self.frames_lost = 0
        self.state = "on"
        self._clock_ns = clock_ns
        self._max_bytes = max_bytes
        self._snap_length = snap_length
        self._interface_count = 0
        self._planned_bytes = 0
        self._pending: list[bytes] = []
        self._pending_frames = 0
        self._pending_bytes = 0
        self._closing = False
        self._changed = threading.Condition()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._descriptor = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise refusal(f"create the capture file {self.path}", error) from error
        self._file_bytes = 0
        self._append(_section_header(), 0)
        self._thread = threading.Thread(target=self._write_out, name="vnic-capture", daemon=True)
        self._thread.start()

    def add_interface(self, name: str) -> int:
        """Describe one more interface; give its number for `record`."""
        number = self._interface_count
        self._interface_count += 1
        self._append(_interface_description(name, self._snap_length), 0)
        return number

    def record(self, interface: int, burst: list[NetBuffer], *, inbound: bool) -> None:
        """Copy the frames of a burst, with the time of now; GSO frames as they are. Keeps none of them.

        Args:
            interface: number from `add_interface`.
            inbound: the frames were received by this interface, else they are being sent.
        """
        if not burst:
            return
        if self.state != "on":
            self.frames_lost += len(burst)
            return
        time_high, time_low = divmod(self._clock_ns(), 1 << 32)
        snap_length = self._snap_length
        direction = _INBOUND if inbound else _OUTBOUND
        pack, pack_end = _PACKET.pack, _PACKET_END.pack
        parts: list[bytes | bytearray] = []
        for buffer in burst:
            frame = buffer.frame
            length = len(frame)
            kept = frame if length <= snap_length else frame[:snap_length]
            padding = _PADDING[len(kept) & 3]
            total = _PACKET_FIXED + len(kept) + len(padding)
            parts += (
                pack(_ENHANCED_PACKET, total, interface, time_high, time_low, len(kept), length),
                kept,
                padding,
                pack_end(2, 4, direction, 0, total),
            )
        self._append(b"".join(parts), len(burst))

    def close(self) -> None:
        """Write what waits, and close the file. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_WAIT_S)
        self._stop("closed")

    def _append(self, block: bytes, frame_count: int) -> None:
        with self._changed:
            if self.state != "on":
                self.frames_lost += frame_count
                return
            if self._max_bytes is not None and self._planned_bytes + len(block) > self._max_bytes:
                self._stop(f"the size limit of {self._max_bytes} bytes is reached")
                self.frames_lost += frame_count
                return
            if frame_count and self._pending_bytes + len(block) > _QUEUE_BYTES:
                self.frames_lost += frame_count
                return
            self._planned_bytes += len(block)
            self._pending.append(block)
            self._pending_frames += frame_count
            self._pending_bytes += len(block)
            if len(self._pending) == 1 or self._pending_bytes >= _WRITE_BYTES:
                self._changed.notify()

    def _stop(self, reason: str) -> None:
        if self.state == "on":
            self.state = f"off: {reason}"

    def _write_out(self) -> None:
        """Run on the writer's thread until `close`, or until the disk refuses."""
        changed = self._changed
        try:
            while True:
                with changed:
                    changed.wait_for(lambda: self._pending or self._closing)
                    changed.wait_for(
                        lambda: self._pending_bytes >= _WRITE_BYTES or self._closing, _WRITE_INTERVAL_S
                    )
                    blocks, self._pending = self._pending, []
                    frame_count, self._pending_frames = self._pending_frames, 0
                    self._pending_bytes = 0
                    if not blocks:
                        return
                try:
                    self._write(b"".join(blocks))
                except OSError as error:
                    with changed:
                        self._stop(f"cannot write to {self.path}: {error.strerror}")
                        self.frames_lost += frame_count + self._pending_frames
                        self._pending.clear()
                        self._pending_frames = self._pending_bytes = 0
                    return
                with changed:
                    self.frames_written += frame_count
        finally:
            os.close(self._descriptor)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            # Leave whole blocks only, so that the file can be read.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._file_bytes)
            raise
        self._file_bytes += len(data)


class CapturePort(Middleware):
    """A port that records in a capture file what passes another, and is that other in all else.

    Inbound in the file is what the port received, outbound what it was given to send, as it was handed
    over: with open checksums and as a GSO frame, and also if the device then does not take it.
    """

    def __init__(self, port: Port, writer: PcapngWriter) -> None:
        """Stand in front of `port`. The writer stays its maker's: `close` does not close it."""
        super().__init__(port)
        self.writer = writer
        self._interface = writer.add_interface(port.name)

    def receive_burst(self) -> list[NetBuffer]:
        burst = self.port.receive_burst()
        self.writer.record(self._interface, burst, inbound=True)
        return burst

    def send_burst(self, burst: list[NetBuffer]) -> None:
        # Before the port has them: from then on they may belong to somebody else.
        self.writer.record(self._interface, burst, inbound=False)
        self.port.send_burst(burst)


def _block(kind: int, body: bytes) -> bytes:
    total = _BLOCK_HEAD.size + len(body) + _BLOCK_TAIL.size
    return _BLOCK_HEAD.pack(kind, total) + body + _BLOCK_TAIL.pack(total)


def _option(code: int, value: bytes) -> bytes:
    return _OPTION.pack(code, len(value)) + value + _PADDING[len(value) & 3]


def _section_header() -> bytes:
    section = _SECTION.pack(_BYTE_ORDER_MAGIC, 1, 0, -1)
    return _block(_SECTION_HEADER, section + _option(_OPTION_SHB_USERAPPL, b"vnic") + _END_OF_OPTIONS)


def _interface_description(name: str, snap_length: int) -> bytes:
    options = _option(_OPTION_IF_NAME, name.encode(errors="replace")) + _option(
        _OPTION_IF_TSRESOL, bytes((_NANOSECONDS,))
    )
    return _block(
        _INTERFACE_DESCRIPTION,
        _INTERFACE.pack(_LINKTYPE_ETHERNET, 0, snap_length) + options + _END_OF_OPTIONS,
    )
