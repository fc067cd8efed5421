"""Structures and slots: what is built is read back, and bytes of any content give a value or an OidError."""

from collections.abc import Callable
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vnic.errors import PacketError
from vnic.ipsec.association import KeyMaterial, Mode
from vnic.ndis.capabilities import (
    NO_LARGE_SEND,
    ChecksumCapabilities,
    LargeSendCapabilities,
    OffloadCapabilities,
    OffloadCapabilitiesV1,
    TaskOffload,
)
from vnic.ndis.configuration_structs import (
    EncapsulationSetting,
    EncapsulationSwitch,
    IpsecParameter,
    OffloadEncapsulation,
    OffloadParameters,
    SwitchParameter,
    pack_offload_encapsulation,
    pack_offload_parameters,
    read_offload_encapsulation,
    read_offload_parameters,
)
from vnic.ndis.netbuffer import ChecksumRequest, LargeSend, OffloadHandle, ReceiveInfo, TransmitInfo
from vnic.ndis.offload_structs import pack_offload, unpack_offload
from vnic.ndis.oid import (
    NO_ALGORITHM,
    AddSa,
    AlgorithmInfo,
    OidVersion,
    Operation,
    SaElement,
    TrafficFilter,
    UpdateSa,
)
from vnic.ndis.oob import (
    Slots,
    describe,
    pack_receive,
    pack_transmit,
    unpack_completion,
    unpack_packet_info_receive,
    unpack_packet_info_transmit,
    unpack_receive,
    unpack_transmit,
)
from vnic.ndis.status import CryptoStatus, NdisStatus
from vnic.ndis.structs import (
    StructError,
    add_sa_entries,
    delete_sa_entries,
    pack_add_sa,
    pack_add_sa_ex,
    pack_delete_sa,
    pack_update_sa,
    read_add_sa,
    read_add_sa_ex,
    read_delete_sa,
    read_update_sa,
)
from vnic.ndis.task_structs import TaskList, pack_task_offload, read_task_offload
from vnic.ndis.v1_structs import (
    pack_v1_add_sa,
    pack_v1_add_udpesp_sa,
    read_v1_add_sa,
    read_v1_add_udpesp_sa,
    read_v1_delete_sa,
    read_v1_delete_udpesp_sa,
)

u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
u64 = st.integers(0, 0xFFFFFFFFFFFFFFFF)
handles = st.builds(OffloadHandle, u64)
ipv4 = st.binary(min_size=4, max_size=4)
ipv6 = st.binary(min_size=16, max_size=16)
keys = st.builds(KeyMaterial, st.binary(max_size=64))
algorithms = st.just(NO_ALGORITHM) | st.builds(AlgorithmInfo, st.integers(1, 0xFFFFFFFF), keys, u32)


def elements_of(operation: Operation) -> st.SearchStrategy[SaElement]:
    encryption = algorithms if operation is Operation.ESP else st.just(NO_ALGORITHM)
    return st.builds(SaElement, st.just(operation), u32, algorithms, encryption, st.booleans(), u32)


elements = st.sampled_from(Operation).flatmap(elements_of)


def bundles_of(addresses: st.SearchStrategy[bytes]) -> st.SearchStrategy[AddSa]:
    return st.builds(
        AddSa,
        st.booleans(),
        addresses,
        addresses,
        st.lists(elements, min_size=1, max_size=2).map(tuple),
        st.sampled_from((0, 1, 2, 4, 8)),
    )


bundles = bundles_of(ipv4) | bundles_of(ipv6)


@st.composite
def v1_elements(draw: st.DrawFn) -> SaElement:
    operation = draw(st.sampled_from(Operation))
    integrity = draw(st.just(NO_ALGORITHM) | st.builds(AlgorithmInfo, st.sampled_from((1, 2)), keys))
    encryption = NO_ALGORITHM
    if operation is Operation.ESP:
        ciphers = st.builds(AlgorithmInfo, st.sampled_from((2, 4)), keys)
        encryption = draw(st.just(AlgorithmInfo(1)) | ciphers)
    return SaElement(operation, draw(u32), integrity, encryption)


@st.composite
def v1_bundles(draw: st.DrawFn) -> AddSa:
    source, destination = draw(ipv4), draw(ipv4)
    tunnel = draw(st.booleans()) and any(source + destination)
    ends = (draw(ipv4), draw(ipv4)) if tunnel else (source, destination)
    return AddSa(
        draw(st.booleans()),
        source,
        destination,
        tuple(draw(st.lists(v1_elements(), min_size=1, max_size=2))),
        0,
        Mode.TUNNEL if tunnel else Mode.TRANSPORT,
        OidVersion.V1,
        TrafficFilter(ends[0], draw(ipv4), ends[1], draw(ipv4), draw(u32), draw(u16), draw(u16)),
    )


flags = st.booleans()
v2_capabilities = st.builds(OffloadCapabilities, u32, *[flags] * 11, u32, u32, u32, u32)
v1_capabilities = st.builds(OffloadCapabilitiesV1, u32, *[flags] * 3, st.integers(0, 15), *[flags] * 13)
large_sends = (
    st.builds(LargeSendCapabilities, flags, flags, u32, u32, flags, flags)
    .filter(lambda row: row.ipv4 or row.ipv6)
    .__or__(st.just(NO_LARGE_SEND))
)
offloads = st.builds(
    TaskOffload, v2_capabilities, v1_capabilities, large_sends, st.builds(ChecksumCapabilities, flags, flags)
)

switches = st.sampled_from(SwitchParameter)
ipsec_parameters = st.sampled_from(IpsecParameter)
checksum_parameter = st.integers(0, 4)
parameters = st.builds(
    OffloadParameters,
    *[checksum_parameter] * 5,
    switches,
    ipsec_parameters,
    *[switches] * 4,
    st.integers(0, 1),
    ipsec_parameters,
    ipsec_parameters,
    switches,
    switches,
    st.integers(0, 2),
    st.integers(0, 3),
    st.just(3),
)
settings_of_a_family = st.builds(EncapsulationSetting, st.just(EncapsulationSwitch.ON), u32, u32) | st.builds(
    EncapsulationSetting, st.sampled_from((EncapsulationSwitch.NO_CHANGE, EncapsulationSwitch.OFF))
)

transmits = st.builds(
    TransmitInfo,
    handles,
    handles,
    u8,
    u8,
    u8.map(lambda words: words * 4),
    u8.map(lambda words: words * 4),
    st.none()
    | st.builds(LargeSend, st.integers(1, 0xFFFFF), st.integers(0, 1023), st.just(2), flags)
    | st.builds(LargeSend, st.integers(1, 0xFFFFF), st.integers(0, 1023), st.just(1), st.just(False)),
    st.none() | st.builds(ChecksumRequest, flags, flags, flags, flags, st.integers(0, 1023)),
)


@st.composite
def receives(draw: st.DrawFn) -> ReceiveInfo:
    done, known = draw(flags), draw(flags)
    return ReceiveInfo(
        done,
        done and draw(flags),
        draw(st.sampled_from(CryptoStatus)),
        draw(flags),
        known,
        draw(u8) if known else 0,
        draw(u8) if known else 0,
    )


# --- what is built is read back -----------------------------------------------------------------------------


@given(st.lists(bundles, min_size=1, max_size=6))
def test_a_list_of_bundles_comes_back(requests: list[AddSa]) -> None:
    data = pack_add_sa(requests)
    assert [read_add_sa(data, entry) for entry in add_sa_entries(data)] == requests


@given(bundles)
def test_a_single_bundle_comes_back(request: AddSa) -> None:
    assert read_add_sa_ex(pack_add_sa_ex(request)) == request


@given(st.lists(u64, min_size=1, max_size=20))
def test_a_list_of_handles_comes_back(names: list[int]) -> None:
    data = pack_delete_sa(names)
    assert [read_delete_sa(data, entry).handle for entry in delete_sa_entries(data)] == names


@given(st.builds(UpdateSa, handles, st.sampled_from(Operation), u32, u32))
def test_an_update_comes_back(request: UpdateSa) -> None:
    assert read_update_sa(pack_update_sa(request)) == request


@given(v1_bundles())
def test_a_v1_bundle_comes_back(request: AddSa) -> None:
    assert read_v1_add_sa(pack_v1_add_sa(request)) == request


@given(v1_bundles(), u16, u64)
def test_a_v1_udp_esp_bundle_comes_back(request: AddSa, port: int, entry: int) -> None:
    read = read_v1_add_udpesp_sa(pack_v1_add_udpesp_sa(request, port=port, entry_handle=entry))
    assert (read.port, read.entry_handle) == (port, entry)
    assert read.request.elements == request.elements
    assert read.request.filter == request.filter


@given(offloads, st.sampled_from((2, 3)))
def test_a_report_comes_back(offload: TaskOffload, revision: int) -> None:
    assert unpack_offload(pack_offload(offload, revision)) == offload


@given(parameters)
def test_parameters_come_back(values: OffloadParameters) -> None:
    assert read_offload_parameters(pack_offload_parameters(values)) == values


@given(st.builds(OffloadEncapsulation, settings_of_a_family, settings_of_a_family))
def test_encapsulation_comes_back(encapsulation: OffloadEncapsulation) -> None:
    assert read_offload_encapsulation(pack_offload_encapsulation(encapsulation)) == encapsulation


@given(v1_capabilities, st.lists(u32.filter(lambda task: task != 1), unique=True, max_size=4), u32, u32)
def test_a_task_list_comes_back(
    ipsec: OffloadCapabilitiesV1, others: list[int], encapsulation: int, header_size: int
) -> None:
    read = read_task_offload(pack_task_offload(TaskList(ipsec, tuple(others), encapsulation, header_size)))
    assert (read.others, read.encapsulation, read.header_size) == (tuple(others), encapsulation, header_size)
    assert read.ipsec is not None
    for field in fields(ipsec):
        if field.name != "encapsulation":
            assert getattr(read.ipsec, field.name) == getattr(ipsec, field.name)


@given(transmits)
def test_slots_of_a_send_come_back(info: TransmitInfo) -> None:
    slots = pack_transmit(info)
    assert unpack_transmit(slots) == (info if any(slots) else None)


@given(receives())
def test_slots_of_a_receive_come_back(info: ReceiveInfo) -> None:
    slots = pack_receive(info)
    assert unpack_receive(slots) == (info if any(slots) else None)


# --- bytes of any content -----------------------------------------------------------------------------------


def read_all_added(data: bytes) -> None:
    for entry in add_sa_entries(data):
        found: list[AddSa] = []
        refused = refusal(lambda data: found.append(read_add_sa(data, entry)), data)  # noqa: B023
        assert refused is None or refused.status is NdisStatus.INVALID_DATA
        algorithms = [
            algorithm
            for request in found
            for element in request.elements
            for algorithm in (element.authentication, element.encryption)
        ]
        assert sum(len(algorithm.key) for algorithm in algorithms) <= len(data) - 168


def read_all_deleted(data: bytes) -> None:
    for entry in delete_sa_entries(data):
        read_delete_sa(data, entry)


READERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "ADD_SA": (read_all_added, b"\x80\x01\xa9\x00"),
    "ADD_SA_EX": (read_add_sa_ex, b"\x80\x01\xaa\x00"),
    "DELETE_SA": (read_all_deleted, b"\x80\x01\x18\x00"),
    "UPDATE_SA": (read_update_sa, b"\x80\x01\x1c\x00"),
    "V1 ADD_SA": (read_v1_add_sa, b""),
    "V1 ADD_UDPESP_SA": (read_v1_add_udpesp_sa, b""),
    "V1 DELETE_SA": (read_v1_delete_sa, b""),
    "V1 DELETE_UDPESP_SA": (read_v1_delete_udpesp_sa, b""),
    "OFFLOAD": (unpack_offload, b"\xa7\x02\x90\x00"),
    "OFFLOAD_PARAMETERS": (read_offload_parameters, b"\x80\x03\x1a\x00"),
    "OFFLOAD_ENCAPSULATION": (read_offload_encapsulation, b"\xa8\x01\x1c\x00"),
    "TASK_OFFLOAD": (read_task_offload, b"\x01\0\0\0\x1c\0\0\0\0\0\0\0\x1c\0\0\0"),
}
"""Name → reader, and the bytes that take hostile ones past the first check."""

STATUSES = {NdisStatus.BUFFER_TOO_SHORT, NdisStatus.INVALID_LENGTH, NdisStatus.INVALID_DATA}


def refusal(reader: Callable[[bytes], object], data: bytes) -> StructError | None:
    """Read; gives the refusal, if it is one."""
    try:
        reader(data)
    except StructError as error:
        return error
    return None


def read(reader: Callable[[bytes], object], data: bytes) -> None:
    """Read; a refusal has a status that OIDs answer, and asks for a length that can be given."""
    refused = refusal(reader, data)
    if refused is not None:
        assert refused.status in STATUSES
        assert 0 <= refused.bytes_needed <= len(data) + 0x10000
        assert refused.status is not NdisStatus.BUFFER_TOO_SHORT or refused.bytes_needed > len(data)


@pytest.mark.parametrize("name", READERS)
@given(data=st.binary(max_size=600), lead=flags)
def test_any_bytes_are_a_value_or_a_status(name: str, data: bytes, lead: bool) -> None:
    reader, start = READERS[name]
    read(reader, start + data if lead else data)


numbers = st.sampled_from((0, 1, 2, 7, 8, 24, 168, 176, 192, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)) | u32

GOOD: dict[str, bytes] = {
    "ADD_SA": bytes(
        pack_add_sa(
            [
                AddSa(
                    True, bytes(4), bytes(4), (SaElement(Operation.ESP, 1, *[AlgorithmInfo(8, key, 16)] * 2),)
                )
                for key in (KeyMaterial(bytes(20)), KeyMaterial(bytes(36)), KeyMaterial(bytes(28)))
            ]
        )
    ),
    "ADD_SA_EX": bytes(
        pack_add_sa_ex(
            AddSa(
                False,
                bytes(16),
                bytes(16),
                (
                    SaElement(Operation.ESP, 1, AlgorithmInfo(2, KeyMaterial(bytes(20)))),
                    SaElement(Operation.AH, 2, AlgorithmInfo(4, KeyMaterial(bytes(32)))),
                ),
            )
        )
    ),
    "DELETE_SA": bytes(pack_delete_sa([1, 2, 3])),
    "UPDATE_SA": bytes(pack_update_sa(UpdateSa(OffloadHandle(1), Operation.ESP, 1, 1))),
    "V1 ADD_SA": bytes(
        pack_v1_add_sa(
            AddSa(
                True,
                bytes(4),
                bytes(4),
                (SaElement(Operation.ESP, 1, AlgorithmInfo(2, KeyMaterial(bytes(20))), AlgorithmInfo(1)),),
                portion=Mode.TRANSPORT,
            )
        )
    ),
    "V1 ADD_UDPESP_SA": bytes(
        pack_v1_add_udpesp_sa(
            AddSa(
                True,
                bytes(4),
                b"abcd",
                (SaElement(Operation.ESP, 1, AlgorithmInfo(2, KeyMaterial(bytes(20))), AlgorithmInfo(1)),),
                portion=Mode.TUNNEL,
            )
        )
    ),
    "OFFLOAD": pack_offload(TaskOffload()),
    "OFFLOAD_PARAMETERS": bytes(pack_offload_parameters(OffloadParameters())),
    "OFFLOAD_ENCAPSULATION": bytes(pack_offload_encapsulation(OffloadEncapsulation())),
    "TASK_OFFLOAD": bytes(pack_task_offload(TaskList(OffloadCapabilitiesV1(), (0, 2)))),
}


@pytest.mark.parametrize("name", GOOD)
@settings(max_examples=200)
@given(data=st.data())
def test_good_bytes_with_a_few_numbers_changed_are_a_value_or_a_status(
    name: str, data: st.DataObject
) -> None:
    good = bytearray(GOOD[name])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(good) // 4 - 1)) * 4
        good[place : place + 4] = data.draw(numbers).to_bytes(4, "little")
    cut = data.draw(st.just(len(good)) | st.integers(0, len(good)))
    read(READERS[name][0], bytes(good[:cut]))


@given(data=st.binary(min_size=176, max_size=2048), offset=st.integers(0, 2048))
def test_an_entry_is_read_safely_even_where_no_list_led(data: bytes, offset: int) -> None:
    read(lambda buffer: read_add_sa(buffer, offset), data)


@given(st.builds(Slots, u64, u64, u64, u64, u64))
def test_any_slots_are_a_value_or_a_packet_error(slots: Slots) -> None:
    for unpack in (unpack_transmit, unpack_receive):
        try:
            unpack(slots)
        except PacketError:
            continue
    unpack_completion(slots)
    for direction in ("send", "receive", "complete"):
        assert all(isinstance(word, str) for word in describe(slots, direction).values())  # type: ignore[arg-type]


@given(st.builds(Slots, st.just(0), u64, u64, u64, u64))
def test_a_send_without_a_checksum_request_always_has_a_value(slots: Slots) -> None:
    info = unpack_transmit(slots)
    if info is not None:
        assert unpack_transmit(pack_transmit(info)) in (info, None)


@given(st.binary(max_size=20))
def test_any_packet_information_of_ndis_5_is_a_value_or_a_packet_error(data: bytes) -> None:
    for unpack in (unpack_packet_info_transmit, unpack_packet_info_receive):
        try:
            unpack(data)
        except PacketError:
            continue
