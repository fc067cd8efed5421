"""`vnic oid` and `vnic nbl`: buffers in, answers out, and keys nowhere."""

import io
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import pytest
from fake_daemon import NBL_RECEIVE, NBL_SEND, OID_REPLY
from in_process import Command

from vnic.cli.frame_text import summary
from vnic.cli.main import run
from vnic.control import interface as api
from vnic.ndis.oids import Oid

ADD = "OID_TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA"
SECRET = bytes.fromhex("5ec7e7" * 12)
ADDED = replace(
    OID_REPLY,
    oid=0xFC030202,
    oid_name=ADD,
    information_buffer=b64encode(SECRET).decode(),
    bytes_read=36,
    bytes_written=0,
    handles=[0x100000001, 0],
    message="entry 1: the card has no such algorithm",
)


def test_a_query_shows_status_numbers_and_the_bytes(vnic: Command) -> None:
    result = vnic("oid query left tcp_offload_current_config room 300 id 7")
    assert result.request == api.OidRequest(
        adapter="left",
        oid="tcp_offload_current_config",
        request_type="query",
        information_buffer_length=300,
        request_id=7,
    )
    assert result.out == (
        "OID_TCP_OFFLOAD_CURRENT_CONFIG 0xfc01020b: NDIS_STATUS_SUCCESS 0x00000000\n"
        "    bytes written 6 revision 3\n"
        "    0000  a7 ff 0e 00 00 01                                ......\n"
    )
    assert result.code == 0


@pytest.mark.parametrize("word", ["0xFC01020B", "4227924491", "oid_tcp_offload_current_config"])
def test_an_oid_is_a_name_or_a_number(vnic: Command, word: str) -> None:
    assert vnic(f"oid query left {word}").request.oid == word


@pytest.mark.parametrize("word", ["OID_NOTHING", "0x100000000", "-1", "TCP", "0xzz"])
def test_what_is_no_oid_is_refused_with_the_names(vnic: Command, word: str) -> None:
    result = vnic(f"oid query left {word}")
    assert result.code == 1
    assert result.requests == []
    assert "OID_TCP_OFFLOAD_PARAMETERS" in result.err


@pytest.mark.parametrize(
    "content", [b"\x01\x02\xff\x00", b"0102ff00\n", b"0x0102FF00", b"01:02 ff\n00"], ids=repr
)
def test_a_buffer_is_a_file_of_bytes_or_of_digits(vnic: Command, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "buffer"
    path.write_bytes(content)
    request = vnic(f"oid set left tcp_offload_parameters {path}").request
    assert request == api.OidRequest(
        adapter="left", oid="tcp_offload_parameters", request_type="set", information_buffer="AQL/AA=="
    )


def test_a_buffer_comes_from_standard_input_or_from_the_words(vnic: Command) -> None:
    for line, stdin in (("-", "0102 ff00\n"), ("hex:0102ff00", "")):
        request = vnic(f"oid set left 0xfc01020c {line}", stdin).request
        assert request.information_buffer == "AQL/AA=="
    assert vnic("oid set left 0xfc01020c").request.information_buffer == ""


def test_standard_input_may_be_any_bytes(vnic: Command) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"\xff\xfe\x00"), errors="surrogateescape")
    vnic.memory.requests.clear()
    assert (
        run(["-S", vnic.daemon.path, "oid", "set", "left", "0", "-"], io.StringIO(), io.StringIO(), stdin)
        == 0
    )
    (request,) = vnic.memory.requests
    assert request.information_buffer == "//4A"


@pytest.mark.parametrize(
    "oid",
    [
        "tcp_task_ipsec_add_sa",
        "tcp_task_ipsec_add_udpesp_sa",
        "tcp_task_ipsec_offload_v2_add_sa",
        "0xfc030205",
    ],
)
def test_keys_have_no_place_in_the_words(vnic: Command, oid: str) -> None:
    result = vnic(f"oid set left {oid} hex:{SECRET.hex()}")
    assert result.code == 1
    assert result.requests == []
    assert "holds keys" in result.err
    assert SECRET.hex() not in result.err


def test_a_buffer_that_holds_keys_is_shown_to_who_asks_only(vnic: Command, tmp_path: Path) -> None:
    vnic.memory.answers[api.OidRequest] = ADDED
    path = tmp_path / "add"
    path.touch(mode=0o600)
    path.write_bytes(SECRET)
    line = f"oid set left {ADD} {path}"
    shown = vnic(line)
    assert shown.code == 0
    assert "    entry 0: handle 0x100000001\n    entry 1: failed\n" in shown.out
    assert "5e c7 e7" not in shown.out
    assert shown.err == "vnic: warning: entry 1: the card has no such algorithm\n"
    assert vnic(f"-j {line}").json["information_buffer"] is None
    assert vnic(f"-j {line}").json["handles"] == [0x100000001, 0]
    assert "5e c7 e7" in vnic(f"-show-keys {line}").out
    path.chmod(0o644)
    assert "chmod 600" in vnic(line).err


def test_any_other_status_is_shown_and_ends_with_2(vnic: Command) -> None:
    vnic.memory.answers[api.OidRequest] = replace(
        OID_REPLY,
        status=0xC0010016,
        status_name="NDIS_STATUS_BUFFER_TOO_SHORT",
        information_buffer="",
        bytes_written=0,
        bytes_needed=236,
        supported_revision=0,
        message="the buffer is too short",
        field="InformationBufferLength",
        value="4",
        allowed="236 bytes or more",
    )
    result = vnic("oid query left 0xfc01020b room 4")
    assert result.code == 2
    assert result.out == (
        "OID_TCP_OFFLOAD_CURRENT_CONFIG 0xfc01020b: NDIS_STATUS_BUFFER_TOO_SHORT 0xc0010016\n"
        "    bytes written 0 needed 236\n"
    )
    assert result.err == (
        "vnic: oid query: InformationBufferLength: the buffer is too short (given: 4); "
        "allowed: 236 bytes or more [NDIS_STATUS_BUFFER_TOO_SHORT]\n"
    )
    documents = vnic("-j oid query left 0xfc01020b room 4")
    assert documents.json["bytes_needed"] == 236
    assert documents.error["status_name"] == "NDIS_STATUS_BUFFER_TOO_SHORT"


@pytest.mark.parametrize("word", ["/nonexistent", "/", "hex:0", "hex:zz", "nul\0"])
def test_a_buffer_that_cannot_be_had_is_refused_and_not_repeated(vnic: Command, word: str) -> None:
    result = vnic.words(["oid", "set", "left", "0xfc01020c", word])
    assert (result.code, result.requests) == (1, [])
    assert "buffer" in result.err


def test_a_buffer_too_long_is_refused(vnic: Command, tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(bytes(700_001))
    result = vnic(f"oid set left 0xfc01020c {path}")
    assert (result.code, result.requests) == (1, [])
    assert "at most 700000 bytes" in result.err
    path.write_bytes(bytes(700_000))
    assert vnic(f"oid set left 0xfc01020c {path}").code == 0


def test_oids_are_listed_with_what_can_be_asked(vnic: Command) -> None:
    rows = vnic("-j oid list").json
    assert {row["name"] for row in rows} == {one.label for one in Oid}
    by_name = {row["name"]: row for row in rows}
    assert by_name[ADD] == {
        "name": ADD,
        "oid": 0xFC030202,
        "request_types": ["set"],
        "direct": True,
        "keys": True,
    }
    assert by_name["OID_OFFLOAD_ENCAPSULATION"]["request_types"] == ["query", "set"]
    assert " 0xfc030203  set         direct\n" in vnic("oid list").out


def test_requests_are_cancelled_by_their_id(vnic: Command) -> None:
    result = vnic("oid cancel left 7")
    assert result.request == api.CancelOidRequest(adapter="left", request_id=7)
    assert result.out == "1 cancelled\n"


# ---------------------------------------------------------------------------------------------- nbl


def test_frames_are_written_one_a_line(vnic: Command) -> None:
    vnic.memory.nbls = [NBL_SEND, NBL_RECEIVE]
    result = vnic("nbl watch left count 2")
    assert result.request == api.WatchNbls(adapter="left", snap_length=256)
    assert result.out == (
        "send 66 bytes: IPv4 192.0.2.1 > 192.0.2.2 ESP spi 0x00000101 seq 2; "
        "oob OffloadHandle 0x1 NextHeader 4 PadLength 2; SUCCESS\n"
        "3 frames lost: this command did not keep up\n"
        "receive 66 bytes: IPv4 192.0.2.1 > 192.0.2.2 ESP spi 0x00000101 seq 2; oob CryptoDone 1\n"
    )


def test_a_send_that_failed_says_why(vnic: Command) -> None:
    failed = replace(NBL_SEND, status=0xC0000001, status_name="NDIS_STATUS_FAILURE", reason="no such SA")
    vnic.memory.nbls = [failed]
    assert vnic("nbl watch left count 1").out.endswith("; FAILURE: no such SA\n")


def test_frames_are_counted_timed_dumped_and_written_as_json(vnic: Command) -> None:
    vnic.memory.nbls = [NBL_SEND, NBL_RECEIVE]
    details = vnic("-d -t nbl watch left count 1")
    assert details.request.snap_length is None
    assert details.out.startswith("[2026-01-02T03:04:05.000000Z] send 66 bytes")
    assert "    0000  02 00 00 00 00 02 02 00 00 00 00 01 08 00 45 00  ..............E.\n" in details.out
    assert details.out.count("bytes:") == 1
    lines = vnic("-j nbl watch left snaplen 64 count 2").out.splitlines()
    assert len(lines) == 2
    assert '"direction":"send"' in lines[0]


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (b"", "type 0x0000"),
        (bytes(12) + b"\x08\x06" + bytes(28), "ARP"),
        (bytes(12) + b"\x81\x00\x00\x07\x08\x06", "vlan 7 ARP"),
        (bytes(12) + b"\x08\x00\x45" + bytes(4), "type 0x0800"),
        (
            bytes(12) + b"\x08\x00\x45" + bytes(8) + b"\x06" + bytes(10) + b"\x00\x16\x00\x50",
            "IPv4 0.0.0.0 > 0.0.0.0 TCP 22 > 80",
        ),
        (
            bytes(12) + b"\x08\x00\x45" + bytes(5) + b"\x20\x01" + bytes(1) + b"\x06" + bytes(10),
            "IPv4 0.0.0.0 > 0.0.0.0 fragment",
        ),
        (
            bytes(12)
            + b"\x86\xdd\x60"
            + bytes(5)
            + b"\x33\xff"
            + bytes(32)
            + b"\x32\x04\x00\x00\x00\x00\x01\x01\x00\x00\x00\x09"
            + bytes(12)
            + b"\x00\x00\x02\x02\x00\x00\x00\x03",
            "IPv6 :: > :: AH spi 0x00000101 seq 9 ESP spi 0x00000202 seq 3",
        ),
        (
            bytes(12)
            + b"\x08\x00\x45"
            + bytes(8)
            + b"\x11"
            + bytes(10)
            + b"\x11\x94\x11\x94\x00\x10\x00\x00\x00\x00\x01\x01\x00\x00\x00\x01",
            "IPv4 0.0.0.0 > 0.0.0.0 UDP 4500 > 4500 ESP spi 0x00000101 seq 1",
        ),
    ],
)
def test_a_frame_in_a_few_words(frame: bytes, text: str) -> None:
    assert summary(frame) == text
