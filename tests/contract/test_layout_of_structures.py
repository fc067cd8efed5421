"""Every member of every structure lies where a C compiler puts it.

`ndis_layouts.h` beside this file declares the structures from the fact sheet. A program compiled with it
prints offset and size of each member, and the bytes of each structure with one bit-field set; the tables of
`vnic.ndis` must say the same.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from vnic.ndis import configuration_structs, offload_structs, oob, structs, task_structs, v1_structs
from vnic.ndis.layout import OBJECT_HEADER, Bits, Layout, Member
from vnic.ndis.netbuffer import ChecksumRequest, LargeSend, OffloadHandle, ReceiveInfo, TransmitInfo
from vnic.ndis.oob import Slots
from vnic.ndis.status import CryptoStatus

HEADER = Path(__file__).with_name("ndis_layouts.h")

LAYOUTS: dict[str, Layout] = {
    "struct object_header": OBJECT_HEADER,
    "struct v2_algorithm_info": structs.ALGORITHM_INFO,
    "struct v2_security_association": structs.SECURITY_ASSOCIATION,
    "struct v2_add_sa": structs.ADD_SA,
    "struct v2_add_sa_ex": structs.ADD_SA_EX,
    "struct v2_update_sa": structs.UPDATE_SA,
    "struct v2_delete_sa": structs.DELETE_SA,
    "struct v1_algo_info": v1_structs.V1_ALGO_INFO,
    "struct v1_security_association": v1_structs.V1_SECURITY_ASSOCIATION,
    "struct v1_add_sa": v1_structs.V1_ADD_SA,
    "struct v1_add_udpesp_sa": v1_structs.V1_ADD_UDPESP_SA,
    "struct v1_delete_sa": v1_structs.V1_DELETE_SA,
    "struct v1_delete_udpesp_sa": v1_structs.V1_DELETE_UDPESP_SA,
    "struct checksum_offload": offload_structs.CHECKSUM,
    "struct lso_v1": offload_structs.LSO_V1,
    "struct lso_v2": offload_structs.LSO_V2,
    "struct ipsec_v1": offload_structs.IPSEC_V1,
    "struct ipsec_v2": offload_structs.IPSEC_V2,
    "struct offload": offload_structs.OFFLOAD,
    "struct offload_parameters": configuration_structs.OFFLOAD_PARAMETERS,
    "struct offload_encapsulation": configuration_structs.OFFLOAD_ENCAPSULATION,
    "struct task_offload_header": task_structs.TASK_OFFLOAD_HEADER,
    "struct task_offload": task_structs.TASK_OFFLOAD,
    "struct task_ipsec": task_structs.TASK_IPSEC,
    "struct packet_info": oob.PACKET_INFO_TRANSMIT,
}

GRE_BITS = tuple(
    Bits(f"{name}Supported", 4 * place, 4)
    for place, name in enumerate(("TransmitChecksumOffload", "ReceiveChecksumOffload", "LsoV2", "Rss", "Vmq"))
)
FIXED_HEADER_SIZE = (Bits("Flags.FixedHeaderSize", 0, 1),)

BIT_FIELDS: dict[tuple[str, str], tuple[Bits, ...]] = {
    ("struct checksum_offload", "IPv4Transmit"): offload_structs.CHECKSUM_IPV4,
    ("struct checksum_offload", "IPv4Receive"): offload_structs.CHECKSUM_IPV4,
    ("struct checksum_offload", "IPv6Transmit"): offload_structs.CHECKSUM_IPV6,
    ("struct checksum_offload", "IPv6Receive"): offload_structs.CHECKSUM_IPV6,
    ("struct lso_v1", "IPv4"): offload_structs.LSO_V1_IPV4,
    ("struct lso_v2", "IPv6"): offload_structs.LSO_V2_IPV6,
    ("struct ipsec_v1", "IPv4AH"): offload_structs.IPSEC_V1_AH,
    ("struct ipsec_v1", "IPv4ESP"): offload_structs.IPSEC_V1_ESP,
    ("struct offload", "Checksum.IPv4Transmit"): offload_structs.CHECKSUM_IPV4,
    ("struct offload", "Checksum.IPv4Receive"): offload_structs.CHECKSUM_IPV4,
    ("struct offload", "Checksum.IPv6Transmit"): offload_structs.CHECKSUM_IPV6,
    ("struct offload", "Checksum.IPv6Receive"): offload_structs.CHECKSUM_IPV6,
    ("struct offload", "LsoV1.IPv4"): offload_structs.LSO_V1_IPV4,
    ("struct offload", "LsoV2.IPv6"): offload_structs.LSO_V2_IPV6,
    ("struct offload", "IPsecV1.IPv4AH"): offload_structs.IPSEC_V1_AH,
    ("struct offload", "IPsecV1.IPv4ESP"): offload_structs.IPSEC_V1_ESP,
    ("struct offload", "EncapsulatedPacketTaskOffloadGre"): GRE_BITS,
    ("struct task_offload_header", "EncapsulationFormat"): FIXED_HEADER_SIZE,
    ("struct task_ipsec", "V4AH"): task_structs.TASK_IPSEC_AH,
    ("struct task_ipsec", "V4ESP"): task_structs.TASK_IPSEC_ESP,
}
"""Structure and path of the group → the table; the integer itself is the member `(bits)` of the group."""

SLOT_FIELDS: dict[tuple[str, str], tuple[Bits, ...]] = {
    ("union checksum_slot", "Transmit"): oob.CHECKSUM_TRANSMIT,
    ("union ipsec_v1_slot", "Receive"): oob.IPSEC_RECEIVE,
    ("union ipsec_v2_slot", "Receive"): oob.IPSEC_RECEIVE,
    ("union header_slot", "Transmit"): oob.HEADER_TRANSMIT,
    ("union header_slot", "Receive"): oob.HEADER_RECEIVE,
    ("union large_send_slot", "LsoV1Transmit"): oob.LARGE_SEND_V1_TRANSMIT,
    ("union large_send_slot", "LsoV2Transmit"): oob.LARGE_SEND_V2_TRANSMIT,
    ("union large_send_slot", "LsoV1TransmitComplete"): oob.LARGE_SEND_V1_COMPLETE,
    ("union large_send_slot", "LsoV2TransmitComplete"): oob.LARGE_SEND_V2_COMPLETE,
}

PROLOGUE = """
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include "ndis_layouts.h"
static void dump(const char *name, const void *data, size_t size) {
    const unsigned char *bytes = data;
    printf("%s\\t", name);
    for (size_t i = 0; i < size; i++) printf("%02x", bytes[i]);
    printf("\\n");
}
#define SIZE(name, type) printf("%s\\t%zu\\n", name, sizeof(type));
#define MEMBER(name, type, path) \\
    printf("%s\\t%zu %zu\\n", name, offsetof(type, path), sizeof(((type *)0)->path));
#define FIELD(name, type, path, value) \\
    { type x; memset(&x, 0, sizeof x); x.path = value; dump(name, &x, sizeof x); }
"""


def is_bits(member: Member) -> bool:
    return "(" in member.name


def fields() -> list[tuple[str, str, str, Bits]]:
    """Every bit-field: its name in the output, structure, path, table row."""
    tables = {**BIT_FIELDS, **SLOT_FIELDS}
    return [
        (f"{ctype} {group}.{bits.name}", ctype, f"{group}.{bits.name}", bits)
        for (ctype, group), table in tables.items()
        for bits in table
    ]


COMPOSED = {
    "header send": ("union header_slot", "x.Transmit.NextHeader = 6; x.Transmit.PadLength = 14;"
                    "x.Transmit.AhHeaderOffset = 5; x.Transmit.EspHeaderOffset = 11;"),
    "header receive": ("union header_slot", "x.Receive.NextHeader = 4; x.Receive.PadLength = 2;"
                       "x.Receive.HeaderInfoSet = 1;"),
    "ipsec send": ("union ipsec_v2_slot", "x.Transmit.OffloadHandle = (handle)0x100000007;"),
    "ipsec receive": ("union ipsec_v2_slot", "x.Receive.CryptoDone = 1; x.Receive.NextCryptoDone = 1;"
                      "x.Receive.SaDeleteReq = 1; x.Receive.CryptoStatus = 5;"),
    "ipsec receive v1": ("union ipsec_v1_slot", "x.Receive.CryptoDone = 1; x.Receive.NextCryptoDone = 1;"
                         "x.Receive.SaDeleteReq = 1; x.Receive.CryptoStatus = 5;"),
    "lso v1": ("union large_send_slot", "x.LsoV1Transmit.MSS = 1460; x.LsoV1Transmit.TcpHeaderOffset = 54;"),
    "lso v2": ("union large_send_slot", "x.LsoV2Transmit.MSS = 1440; x.LsoV2Transmit.TcpHeaderOffset = 62;"
               "x.LsoV2Transmit.Type = 1; x.LsoV2Transmit.IPVersion = 1;"),
    "lso v1 complete": ("union large_send_slot", "x.LsoV1TransmitComplete.TcpPayload = 64000;"),
    "lso v2 complete": ("union large_send_slot", "x.LsoV2TransmitComplete.Type = 1;"),
    "checksum": ("union checksum_slot", "x.Transmit.IsIPv4 = 1; x.Transmit.TcpChecksum = 1;"
                 "x.Transmit.IpHeaderChecksum = 1; x.Transmit.TcpHeaderOffset = 34;"),
    "packet info send": ("struct packet_info", "x.Transmit.OffloadHandle = (handle)0x12;"
                         "x.Transmit.NextOffloadHandle = (handle)0x34;"),
    "packet info receive": ("struct packet_info", "x.Receive.SA_DELETE_REQ = 1; x.Receive.CRYPTO_DONE = 1;"
                            "x.Receive.CRYPTO_STATUS = 3;"),
}  # fmt: skip
"""Name → union and the statements that fill its `x`."""


def source() -> str:
    lines = [PROLOGUE, "int main(void) {"]
    for ctype, layout in LAYOUTS.items():
        lines.append(f'SIZE("{ctype}", {ctype})')
        lines += [
            f'MEMBER("{ctype} {member.name}", {ctype}, {member.name})'
            for member in layout.members + layout.views
            if not is_bits(member)
        ]
    lines += [f'FIELD("{name}", {ctype}, {path}, {bits.limit}u)' for name, ctype, path, bits in fields()]
    for name, (ctype, statements) in COMPOSED.items():
        lines.append(f'{{ {ctype} x; memset(&x, 0, sizeof x); {statements} dump("{name}", &x, sizeof x); }}')
    return "\n".join([*lines, "return 0; }", ""])


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the compiled program printed, by name."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc: run scripts/setup")
    folder = tmp_path_factory.mktemp("layouts")
    (folder / "main.c").write_text(source())
    program = folder / "layouts"
    command = [compiler, "-std=c11", "-m64", "-Wall", "-Wextra", "-Werror", f"-I{HEADER.parent}"]
    subprocess.run([*command, "-o", program, folder / "main.c"], check=True, timeout=60)
    output = subprocess.run([program], check=True, timeout=10, stdout=subprocess.PIPE, text=True).stdout
    return dict(line.split("\t") for line in output.splitlines())


@pytest.mark.rule(87, 95, 109, 113)
@pytest.mark.parametrize(("ctype", "layout"), LAYOUTS.items(), ids=[row.name for row in LAYOUTS.values()])
def test_the_compiler_puts_every_member_where_the_table_says(
    printed: dict[str, str], ctype: str, layout: Layout
) -> None:
    declared = {layout.name: str(layout.size)}
    compiled = {layout.name: printed[ctype]}
    for member in layout.members + layout.views:
        if not is_bits(member):
            declared[member.name] = f"{member.offset} {member.size}"
            compiled[member.name] = printed[f"{ctype} {member.name}"]
    assert compiled == declared


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=[row.name for row in LAYOUTS.values()])
def test_between_the_members_of_a_table_is_nothing_but_padding(layout: Layout) -> None:
    natural = {"B": 1, "H": 2, "h": 2, "I": 4, "Q": 8}
    end = 0
    for member in layout.members:
        alignment = natural.get(member.code, 1)
        assert member.offset == -(-end // alignment) * alignment, member.name
        end = member.offset + member.size
    largest = max(natural.get(member.code, 1) for member in layout.members)
    assert layout.size == -(-end // largest) * largest


def test_every_integer_of_bit_fields_is_compared() -> None:
    groups = {
        (ctype, member.name.rpartition(".(")[0])
        for ctype, layout in LAYOUTS.items()
        for member in layout.members
        if is_bits(member)
    }
    assert groups == set(BIT_FIELDS)


@pytest.mark.parametrize(("ctype", "group"), BIT_FIELDS)
def test_the_compiler_puts_every_bit_field_where_the_table_says(
    printed: dict[str, str], ctype: str, group: str
) -> None:
    layout = LAYOUTS[ctype]
    integer = next(member for member in layout.members if member.name.startswith(f"{group}.("))
    for bits in BIT_FIELDS[ctype, group]:
        expected = bytearray(layout.size)
        value = (bits.limit << bits.shift).to_bytes(4, "little")
        expected[integer.offset : integer.offset + 4] = value
        assert printed[f"{ctype} {group}.{bits.name}"] == expected.hex(), bits.name


@pytest.mark.rule(161, 162, 176, 177, 180, 182)
@pytest.mark.parametrize(("ctype", "member"), SLOT_FIELDS)
def test_the_compiler_puts_every_bit_of_a_slot_where_the_table_says(
    printed: dict[str, str], ctype: str, member: str
) -> None:
    for bits in SLOT_FIELDS[ctype, member]:
        expected = (bits.limit << bits.shift).to_bytes(8, "little")
        assert printed[f"{ctype} {member}.{bits.name}"] == expected.hex(), bits.name


def slot(printed: dict[str, str], name: str) -> int:
    return int.from_bytes(bytes.fromhex(printed[name]), "little")


@pytest.mark.rule(160, 161, 162, 166, 168)
def test_slots_of_a_send_are_what_a_driver_in_c_fills(printed: dict[str, str]) -> None:
    info = TransmitInfo(
        offload_handle=OffloadHandle(0x100000007),
        tunnel_handle=OffloadHandle(0x12),
        next_header=6,
        pad_length=14,
        ah_header_offset=20,
        esp_header_offset=44,
        large_send=LargeSend(1440, 62, 2, True),
        checksum=ChecksumRequest(False, True, False, True, 34),
    )
    slots = Slots(
        checksum=slot(printed, "checksum"),
        ipsec=slot(printed, "ipsec send"),
        large_send=slot(printed, "lso v2"),
        tunnel=0x12,
        header=slot(printed, "header send"),
    )
    assert oob.pack_transmit(info) == slots
    assert oob.unpack_transmit(slots) == info


def test_a_large_send_of_version_1_is_what_a_driver_in_c_fills(printed: dict[str, str]) -> None:
    info = TransmitInfo(
        OffloadHandle(0), OffloadHandle(0), 0, 0, 0, 0, large_send=LargeSend(1460, 54, 1, False)
    )
    slots = Slots(large_send=slot(printed, "lso v1"))
    assert oob.pack_transmit(info) == slots
    assert oob.unpack_transmit(slots) == info


@pytest.mark.rule(176, 177, 180, 182, 183, 186)
def test_slots_of_a_receive_are_what_a_driver_in_c_reads(printed: dict[str, str]) -> None:
    info = ReceiveInfo(True, True, CryptoStatus.TUNNEL_ESP_AUTH_FAILED, True, True, 4, 2)
    slots = Slots(ipsec=slot(printed, "ipsec receive"), header=slot(printed, "header receive"))
    assert slot(printed, "ipsec receive v1") == slots.ipsec
    assert oob.pack_receive(info) == slots
    assert oob.unpack_receive(slots) == info


@pytest.mark.rule(200)
def test_the_slot_of_a_completed_large_send_is_what_a_driver_in_c_reads(printed: dict[str, str]) -> None:
    version_1, version_2 = LargeSend(1460, 54, 1, False), LargeSend(1460, 54, 2, False)
    assert oob.pack_completion(version_1, 64000) == Slots(large_send=slot(printed, "lso v1 complete"))
    assert oob.pack_completion(version_2, 64000) == Slots(large_send=slot(printed, "lso v2 complete"))


def test_the_packet_information_of_ndis_5_is_what_a_driver_in_c_has(printed: dict[str, str]) -> None:
    send = TransmitInfo(OffloadHandle(0x12), OffloadHandle(0x34), 0, 0, 0, 0)
    data = bytes.fromhex(printed["packet info send"])
    assert oob.pack_packet_info_transmit(send) == data
    assert oob.unpack_packet_info_transmit(data) == send

    receive = ReceiveInfo(True, False, CryptoStatus.TRANSPORT_ESP_AUTH_FAILED, True)
    data = bytes.fromhex(printed["packet info receive"])
    assert oob.pack_packet_info_receive(receive) == data
    assert oob.unpack_packet_info_receive(data) == receive
