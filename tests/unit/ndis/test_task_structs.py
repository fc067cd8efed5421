"""The task list of NDIS 5 against bytes written by hand (sheet §3.5)."""

import time
from dataclasses import replace

import pytest

from vnic.ndis.capabilities import NO_IPSEC_V1, OffloadCapabilitiesV1
from vnic.ndis.status import NdisStatus
from vnic.ndis.structs import StructError
from vnic.ndis.task_structs import TaskList, pack_task_offload, read_task_offload

HEADER = (
    "01000000 1c000000 00000000 1c000000"  # Version, Size 28, Reserved, OffsetFirstTask 28
    "02000000 01000000 0e000000"  # IEEE 802.3, fixed header size, 14
)
IPSEC = (
    "01000000 01000000 01000000 f0000000"  # AH with ESP, transport with tunnel, options; UDP-ESP
    "3f000000"  # V4AH
    "fd000000"  # V4ESP, RESERVED clear
)
ONE_TASK = bytes.fromhex(HEADER + "01000000 18000000 01000000 00000000 18000000" + IPSEC)
TWO_TASKS = bytes.fromhex(
    HEADER
    + "01000000 18000000 01000000 2c000000 18000000"
    + IPSEC
    + "01000000 18000000 02000000 00000000 00000000"
)


def put(data: bytes, offset: int, value: int) -> bytearray:
    """The bytes with one little-endian number of four bytes replaced."""
    copy = bytearray(data)
    copy[offset : offset + 4] = value.to_bytes(4, "little")
    return copy


def test_lists_are_read_and_built_as_written_by_hand() -> None:
    for data, tasks in (
        (ONE_TASK, TaskList(OffloadCapabilitiesV1())),
        (TWO_TASKS, TaskList(OffloadCapabilitiesV1(), others=(2,))),
    ):
        assert read_task_offload(data) == tasks
        assert pack_task_offload(tasks) == data


def test_an_empty_list_has_no_first_task() -> None:
    data = put(bytes.fromhex(HEADER), 0x0C, 0)
    assert read_task_offload(data) == TaskList()
    assert pack_task_offload(TaskList()) == data


@pytest.mark.parametrize(
    "name", [name for name in OffloadCapabilitiesV1.__slots__ if name not in ("encapsulation", "udp_esp")]
)
def test_every_capability_is_listed_on_its_own(name: str) -> None:
    ipsec = replace(OffloadCapabilitiesV1(), **{name: False})
    assert read_task_offload(pack_task_offload(TaskList(ipsec))).ipsec == ipsec


def test_a_task_without_any_capability_is_still_listed() -> None:
    ipsec = read_task_offload(pack_task_offload(TaskList(NO_IPSEC_V1))).ipsec
    assert ipsec is not None
    assert not ipsec.esp_send


@pytest.mark.parametrize(
    ("data", "status", "field"),
    [
        (b"", NdisStatus.BUFFER_TOO_SHORT, "InformationBufferLength"),
        (ONE_TASK[:27], NdisStatus.BUFFER_TOO_SHORT, "InformationBufferLength"),
        (ONE_TASK[:28], NdisStatus.BUFFER_TOO_SHORT, "InformationBufferLength"),
        (ONE_TASK[:-1], NdisStatus.BUFFER_TOO_SHORT, "InformationBufferLength"),
        (put(ONE_TASK, 0x00, 2), NdisStatus.INVALID_DATA, "Version"),
        (put(ONE_TASK, 0x04, 27), NdisStatus.INVALID_LENGTH, "Size"),
        (put(ONE_TASK, 0x0C, 24), NdisStatus.INVALID_DATA, "OffsetNextTask"),
        (put(ONE_TASK, 0x0C, 30), NdisStatus.INVALID_DATA, "OffsetNextTask"),
        (put(ONE_TASK, 0x0C, 0xFFFFFFFC), NdisStatus.INVALID_DATA, "OffsetNextTask"),
        (put(ONE_TASK, 28, 0), NdisStatus.INVALID_DATA, "Version"),
        (put(ONE_TASK, 28 + 0x10, 23), NdisStatus.INVALID_LENGTH, "TaskBufferLength"),
        (put(ONE_TASK, 28 + 0x10, 0xFFFFFFFF), NdisStatus.INVALID_LENGTH, "TaskBufferLength"),
        (put(ONE_TASK, 48 + 0x10, 0x40), NdisStatus.INVALID_DATA, "V4AH"),
        (put(ONE_TASK, 48 + 0x14, 0x100), NdisStatus.INVALID_DATA, "V4ESP"),
        (put(TWO_TASKS, 28 + 0x0C, 4), NdisStatus.INVALID_DATA, "OffsetNextTask"),
        (put(TWO_TASKS, 28 + 0x0C, 0xFFFFFFE4), NdisStatus.INVALID_DATA, "OffsetNextTask"),
        (put(TWO_TASKS, 72 + 0x08, 1), NdisStatus.INVALID_DATA, "Task"),
    ],
)
def test_what_is_no_list_is_refused(data: bytes, status: NdisStatus, field: str) -> None:
    with pytest.raises(StructError) as caught:
        read_task_offload(data)
    assert (caught.value.status, caught.value.field) == (status, field)


def test_a_list_of_very_many_tasks_takes_time_by_its_length() -> None:
    data = pack_task_offload(TaskList(others=tuple(range(2, 50_000))))
    start = time.process_time()
    assert len(read_task_offload(data).others) == 49_998
    assert time.process_time() - start < 1
