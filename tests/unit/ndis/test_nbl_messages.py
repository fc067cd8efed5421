"""Messages of the NBL socket: exact bytes, and what becomes of messages that lie."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnic.ndis.nbl import (
    DESCRIPTOR,
    HEADER_LENGTH,
    NET_BUFFER_LIMIT,
    BadMessage,
    MessageType,
    NblMessage,
    pack,
    unpack,
)
from vnic.ndis.oob import Slots
from vnic.ndis.status import NdisStatus

SLOTS = Slots(0x1111, 0x2222222222222222, 0x33333333, 0x4444444444444444, 0x55555555)
SEND = NblMessage(
    MessageType.SEND,
    request_id=0x0102030405060708,
    slots=SLOTS,
    next_offload_handle=0x66,
    frames=[bytearray(b"first"), bytearray(b"second frame")],
)

SEND_BYTES = bytes.fromhex(
    "0100 01 00 00000000 0807060504030201 02000000 48000000"
    "1111000000000000 2222222222222222 3333333300000000 4444444444444444 5555555500000000"
    "6600000000000000"
    "58000000 05000000 5d000000 0c000000"
) + (b"firstsecond frame")
"""Written by hand from the layout in the module's text."""

HEADER = Path(__file__).resolve().parents[3] / "examples" / "c" / "vnic_nbl.h"


def changed(offset: int, layout: str, value: int) -> bytes:
    data = bytearray(SEND_BYTES)
    struct.pack_into(layout, data, offset, value)
    return bytes(data)


def test_a_send_has_the_bytes_of_the_layout() -> None:
    assert pack(SEND) == SEND_BYTES
    assert unpack(SEND_BYTES) == SEND


def test_an_indication_without_buffer_has_no_descriptor() -> None:
    data = pack(NblMessage(MessageType.STATUS_INDICATION, status=0x40010004))
    assert len(data) == HEADER_LENGTH == 72
    assert data[:8] == bytes.fromhex("0100 04 00 04000140")
    assert unpack(data) == NblMessage(MessageType.STATUS_INDICATION, status=0x40010004)


def test_descriptors_may_leave_gaps_between_the_data() -> None:
    data = bytearray(SEND_BYTES) + b"padding"
    struct.pack_into("<II", data, 80, 0x5D + 7, 12)
    got = unpack(bytes(data))
    assert isinstance(got, NblMessage)
    assert got.frames[1] == data[0x5D + 7 :]


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (changed(0, "<H", 2), NdisStatus.INVALID_PARAMETER, "version 2"),
        (changed(2, "<B", 5), NdisStatus.INVALID_PARAMETER, "message type 5"),
        (changed(2, "<B", 0), NdisStatus.INVALID_PARAMETER, "message type 0"),
        (changed(3, "<B", 1), NdisStatus.INVALID_PARAMETER, "flags 0x1"),
        (changed(4, "<I", 9), NdisStatus.INVALID_PARAMETER, "status"),
        (changed(16, "<I", 0), NdisStatus.INVALID_LENGTH, "0 net buffers"),
        (changed(16, "<I", NET_BUFFER_LIMIT + 1), NdisStatus.INVALID_LENGTH, "1025 net buffers"),
        (changed(16, "<I", 0xFFFFFFFF), NdisStatus.INVALID_LENGTH, "4294967295 net buffers"),
        (changed(16, "<I", 6), NdisStatus.INVALID_LENGTH, "6 descriptors do not fit"),
        (changed(20, "<I", 80), NdisStatus.INVALID_LENGTH, "header length 80"),
        (changed(20, "<I", 0), NdisStatus.INVALID_LENGTH, "header length 0"),
        (changed(72, "<I", 0), NdisStatus.INVALID_LENGTH, "net buffer 0 begins at 0"),
        (changed(72, "<I", 87), NdisStatus.INVALID_LENGTH, "net buffer 0 begins at 87"),
        (changed(72, "<I", 0xFFFFFFFF), NdisStatus.INVALID_LENGTH, "net buffer 0 ends"),
        (changed(76, "<I", 0), NdisStatus.INVALID_LENGTH, "net buffer 0 is empty"),
        (changed(76, "<I", 6), NdisStatus.INVALID_LENGTH, "net buffer 1 begins at 93, before 94"),
        (changed(76, "<I", 0xFFFFFFFF), NdisStatus.INVALID_LENGTH, "net buffer 0 ends"),
        (changed(84, "<I", 13), NdisStatus.INVALID_LENGTH, "net buffer 1 ends at 106"),
        (changed(80, "<I", 88), NdisStatus.INVALID_LENGTH, "net buffer 1 begins at 88, before 93"),
        (SEND_BYTES[:-1], NdisStatus.INVALID_LENGTH, "net buffer 1 ends"),
        (SEND_BYTES[:71], NdisStatus.INVALID_LENGTH, "71 bytes"),
        (SEND_BYTES[:16], NdisStatus.INVALID_LENGTH, "16 bytes"),
    ],
)
def test_a_lying_send_is_refused_under_its_request_id(data: bytes, status: NdisStatus, reason: str) -> None:
    got = unpack(data)
    assert isinstance(got, BadMessage)
    assert (got.status, got.request_id) == (status, SEND.request_id)
    assert reason in got.reason


@pytest.mark.parametrize("length", range(16))
def test_a_message_too_short_for_a_request_id_names_none(length: int) -> None:
    got = unpack(SEND_BYTES[:length])
    assert got == BadMessage(NdisStatus.INVALID_LENGTH, None, f"{length} bytes, shorter than a header of 72")


@pytest.mark.parametrize(
    "kind", [MessageType.SEND_COMPLETE, MessageType.RECEIVE, MessageType.STATUS_INDICATION]
)
def test_an_answer_that_lies_is_not_answered(kind: MessageType) -> None:
    got = unpack(changed(2, "<B", kind))
    assert isinstance(got, BadMessage)
    assert got.request_id is None
    short = unpack(changed(2, "<B", kind)[:40])
    assert isinstance(short, BadMessage)
    assert short.request_id is None


U64 = st.integers(0, 2**64 - 1)


@given(
    request_id=U64,
    slots=st.builds(Slots, U64, U64, U64, U64, U64),
    next_offload_handle=U64,
    frames=st.lists(st.binary(min_size=1, max_size=64), min_size=1, max_size=8),
)
def test_what_is_packed_is_unpacked(
    request_id: int, slots: Slots, next_offload_handle: int, frames: list[bytes]
) -> None:
    message = NblMessage(
        MessageType.SEND,
        request_id=request_id,
        slots=slots,
        next_offload_handle=next_offload_handle,
        frames=[bytearray(frame) for frame in frames],
    )
    assert unpack(pack(message)) == message


@given(data=st.binary(max_size=200), prefix=st.integers(0, 88))
def test_any_bytes_give_a_message_or_a_refusal(data: bytes, prefix: int) -> None:
    message = SEND_BYTES[:prefix] + data
    got = unpack(message)
    if isinstance(got, NblMessage):
        assert sum(map(len, got.frames)) + HEADER_LENGTH + DESCRIPTOR.size * len(got.frames) <= len(message)


PROGRAM = """
#include <stddef.h>
#include <stdio.h>
#include "vnic_nbl.h"
#define H(member) printf(#member " %zu %zu\\n", offsetof(struct vnic_nbl_header, member), \\
                         sizeof(((struct vnic_nbl_header *)0)->member))
int main(void) {
    H(Version); H(Type); H(Flags); H(Status); H(RequestId); H(NetBufferCount); H(HeaderLength);
    H(TcpIpChecksum); H(IPsecOffload); H(TcpLargeSend); H(IPsecOffloadTunnel); H(IPsecOffloadHeader);
    H(NextOffloadHandle);
    printf("header %zu\\n", sizeof(struct vnic_nbl_header));
    printf("descriptor %zu %zu %zu\\n", sizeof(struct vnic_nbl_descriptor),
           offsetof(struct vnic_nbl_descriptor, DataOffset),
           offsetof(struct vnic_nbl_descriptor, DataLength));
    printf("limits %u %d\\n", VNIC_NBL_MESSAGE_LIMIT, VNIC_NBL_NET_BUFFER_LIMIT);
    printf("types %d %d %d %d\\n", VNIC_NBL_SEND, VNIC_NBL_SEND_COMPLETE, VNIC_NBL_RECEIVE,
           VNIC_NBL_STATUS_INDICATION);
    printf("slot12 %llu\\n", (unsigned long long)VNIC_HEADER_TRANSMIT(17, 2, 20, 44));
    return 0;
}
"""


def test_the_c_header_says_the_same(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the tests need a C compiler"
    (tmp_path / "layout.c").write_text(PROGRAM)
    subprocess.run(
        [
            compiler,
            "-Wall",
            "-Werror",
            f"-I{HEADER.parent}",
            "-o",
            tmp_path / "layout",
            tmp_path / "layout.c",
        ],
        check=True,
        timeout=60,
    )
    told = subprocess.run(
        [tmp_path / "layout"], check=True, timeout=10, capture_output=True, text=True
    ).stdout
    assert told.splitlines() == [
        "Version 0 2",
        "Type 2 1",
        "Flags 3 1",
        "Status 4 4",
        "RequestId 8 8",
        "NetBufferCount 16 4",
        "HeaderLength 20 4",
        "TcpIpChecksum 24 8",
        "IPsecOffload 32 8",
        "TcpLargeSend 40 8",
        "IPsecOffloadTunnel 48 8",
        "IPsecOffloadHeader 56 8",
        "NextOffloadHandle 64 8",
        f"header {HEADER_LENGTH}",
        f"descriptor {DESCRIPTOR.size} 0 4",
        f"limits {1 << 20} {NET_BUFFER_LIMIT}",
        "types 1 2 3 4",
        f"slot12 {17 | 2 << 8 | 5 << 16 | 11 << 24}",
    ]
