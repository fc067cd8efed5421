"""`vnic sa`: our own words, and those of `ip` beside them."""

import os
from pathlib import Path

import pytest
from in_process import Command

from vnic.control import interface as api
from vnic.ipsec.algorithms import ENCRYPTIONS, INTEGRITIES

GCM_KEY = "0x0102030405060708090a0b0c0d0e0f1011121314"
KEY32 = "0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"


def request(vnic: Command, line: str) -> api.AddSa:
    result = vnic(f"sa add {line}")
    assert result.code == 0, result.err
    made = result.request
    assert isinstance(made, api.AddSa)
    return made


def refusal(vnic: Command, line: str) -> dict[str, object]:
    result = vnic(f"-j {line}")
    assert (result.code, result.out, result.requests) == (1, "", [])
    return result.error


def test_short_words_say_all_that_long_ones_do(vnic: Command) -> None:
    short = request(
        vnic,
        "dev left out src 192.0.2.1 dst 192.0.2.2 esp spi 0x101 tunnel reqid 1 "
        f"aes-gcm-128 key {GCM_KEY} icv 96 esn window 128 seq 7 decap-dscp noecn nopmtudisc "
        "for src 10.1.0.0/24 proto tcp dport 80",
    )
    long = request(
        vnic,
        "src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x101 mode tunnel reqid 1 "
        f"aead 'rfc4106(gcm(aes))' {GCM_KEY} 96 flag esn decap-dscp noecn nopmtudisc replay-window 128 "
        "replay-oseq 7 sel src 10.1.0.0/24 proto tcp dport 80 offload packet dev left dir out",
    )
    assert short == long
    assert short.sa.sequence_number == 7
    assert short.sa.icv_length == 96


@pytest.mark.parametrize("row", [row for row in ENCRYPTIONS if row.key_length], ids=lambda row: row.name)
def test_every_encryption_has_a_word(vnic: Command, row: object) -> None:
    name, length = getattr(row, "name"), getattr(row, "key_length")  # noqa: B009
    line = f"dst 192.0.2.2 esp spi 0x101 {name} key 0x{'01' * length}"
    if not getattr(row, "icv_lengths"):  # noqa: B009
        line += f" hmac-sha256-128 key {KEY32}"
    made = request(vnic, line).sa
    assert (made.encryption, made.encryption_key, made.icv_length) == (name, "01" * length, None)


@pytest.mark.parametrize("row", INTEGRITIES, ids=lambda row: row.name)
def test_every_integrity_has_a_word(vnic: Command, row: object) -> None:
    name, length = getattr(row, "name"), getattr(row, "key_length")  # noqa: B009
    made = request(vnic, f"dst 192.0.2.2 ah spi 0x101 align4 {name} key 0x{'01' * length}").sa
    assert (made.proto, made.encryption, made.integrity, made.ah_alignment) == ("ah", None, name, 4)


def test_null_encryption_takes_no_key(vnic: Command) -> None:
    made = request(vnic, f"dst 192.0.2.2 esp spi 0x101 null hmac-sha256-128 key {KEY32}").sa
    assert (made.encryption, made.encryption_key, made.integrity) == ("null", None, "hmac-sha256-128")


def test_keys_come_from_standard_input_in_the_order_of_the_algorithms(vnic: Command) -> None:
    result = vnic(
        "sa add dst 192.0.2.2 esp spi 0x101 aes-cbc-128 key - hmac-sha1-96 key -",
        stdin=f"{'01' * 16}\n0x{'02' * 20}\n",
    )
    assert result.code == 0
    assert result.err == ""
    assert (result.request.sa.encryption_key, result.request.sa.integrity_key) == ("01" * 16, "02" * 20)


def test_a_key_file_is_read(vnic: Command, tmp_path: Path) -> None:
    path = tmp_path / "gcm.key"
    path.write_bytes(bytes(range(20)))
    path.chmod(0o600)
    result = vnic(f"sa add dst 192.0.2.2 esp spi 0x101 aes-gcm-128 key file:{path}")
    assert result.err == ""
    assert result.request.sa.encryption_key == bytes(range(20)).hex()


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("aes-gcm-128 key 0x01", "aes-gcm-128"),
        (f"aes-gcm-128 key {GCM_KEY} icv 100", "aes-gcm-128 icv"),
        (f"aes-gcm-128 key {GCM_KEY} icv x", "aes-gcm-128 icv"),
        ("aes-gcm-128", "aes-gcm-128"),
        ("aes-gcm-128 icv 64", "aes-gcm-128 key"),
        (f"aes-gcm-128 key {GCM_KEY} aes-gcm-192 key {GCM_KEY}", "aes-gcm-192"),
        (f"aes-gcm-128 key {GCM_KEY} aead 'rfc4106(gcm(aes))' {GCM_KEY} 128", "aes-gcm-128"),
        ("aes-cbc-128 key 0x01 icv 96", ""),
        ("in out null", "dir"),
        ("transport tunnel null", "mode"),
        ("ah null", "proto"),
        ("mode tunnel transport null", "mode"),
        ("chacha20 key 0x01", ""),
        ("aes-gcm key 0x01", ""),
        ("seq 18446744073709551616 null", "seq"),
        ("window x null", "replay-window"),
        ("encap espintcp 1 1 0.0.0.0", "encap"),
        ("encap espinudp 65536 1 0.0.0.0", "encap"),
        ("null nat-follow", "nat-follow"),
        ("null nat-keepalive 5", "nat-keepalive"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(vnic: Command, words: str, field: str) -> None:
    assert refusal(vnic, f"sa add dst 192.0.2.2 esp spi 0x101 {words}")["field"] == field


def test_an_sa_without_a_protocol_is_refused(vnic: Command) -> None:
    assert refusal(vnic, "sa add dst 192.0.2.2 spi 0x101 null")["field"] == "proto"


def test_an_sa_is_named_by_its_handle_or_its_three_words(vnic: Command) -> None:
    assert vnic("sa delete dev left handle 0x3").request == api.DeleteSa(adapter="left", handle=3)
    assert vnic("sa del dst 192.0.2.2 esp spi 0x101").request == api.DeleteSa(
        dst="192.0.2.2", proto="esp", spi=0x101
    )
    assert refusal(vnic, "sa delete dst 192.0.2.2 esp")["field"] == "spi"


def test_rebase_sets_the_upper_half(vnic: Command) -> None:
    result = vnic("-d sa rebase dev left handle 3 seq-hi 5")
    assert result.request == api.UpdateSa(adapter="left", handle=3, sequence_number_high_order=5)
    assert result.out == "rebased left out handle 0x3 NDIS_STATUS_SUCCESS\n"
    assert refusal(vnic, "sa rebase handle 3")["field"] == "seq-hi"


def test_rekey_names_old_sas_and_what_takes_their_place(vnic: Command) -> None:
    result = vnic(
        f"-d sa rekey dev left grace 30 in old 0x201 spi 0x211 aes-cbc-128 key - "
        f"hmac-sha256-128 key {KEY32} icv 96 limit time-hard 3600 "
        f"out handle 3 spi 0x111 aead 'rfc4106(gcm(aes))' {GCM_KEY} 128 "
        f"in old 0x202 dst 192.0.2.1 ah spi 0x212 hmac-sha1-96 key 0x{'03' * 20}",
        stdin=f"{'01' * 16}\n",
    )
    assert result.request == api.RekeySas(
        adapter="left",
        grace=30,
        sas=[
            api.Renewal(
                new_spi=0x211,
                spi=0x201,
                encryption="aes-cbc-128",
                encryption_key="01" * 16,
                integrity="hmac-sha256-128",
                integrity_key=KEY32[2:],
                icv_length=96,
                lifetime=api.Lifetime(time_hard=3600),
            ),
            api.Renewal(
                new_spi=0x212,
                spi=0x202,
                dst="192.0.2.1",
                proto="ah",
                integrity="hmac-sha1-96",
                integrity_key="03" * 20,
            ),
            api.Renewal(
                new_spi=0x111, handle=3, encryption="aes-gcm-128", encryption_key=GCM_KEY[2:], icv_length=128
            ),
        ],
    )
    assert "01" * 16 not in repr(result.request)
    assert result.out == "added left out handle 0x3 NDIS_STATUS_SUCCESS\n" * 3


@pytest.mark.parametrize(
    ("words", "proto"),
    [
        (f"hmac-sha256-128 key {KEY32}", "integrity"),
        (f"null hmac-sha256-128 key {KEY32}", "encryption"),
        (f"auth hmac(sha256) {KEY32}", "integrity"),
    ],
)
def test_protocol_of_a_renewal_follows_from_its_algorithms(vnic: Command, words: str, proto: str) -> None:
    (made,) = vnic(f"sa rekey in old 0x201 spi 0x211 {words}").request.sas
    assert (made.encryption is not None) == (proto == "encryption")
    assert made.proto is None


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("", "in, out"),
        ("grace 5", "in, out"),
        (f"in spi 0x211 aes-gcm-128 key {GCM_KEY}", "old"),
        (f"in old 0x201 handle 3 spi 0x211 aes-gcm-128 key {GCM_KEY}", "old"),
        (f"in old 0x201 aes-gcm-128 key {GCM_KEY}", "in spi"),
        ("in old 0x201 spi 0x211", "auth"),
        (f"in old 0x201 spi 0x211 ah aes-gcm-128 key {GCM_KEY}", "proto"),
        (f"out old 0x101 spi 0x111 aes-gcm-128 key {GCM_KEY} grace 86401", "grace"),
    ],
)
def test_rekey_that_lacks_something_is_refused_before_the_daemon_hears(
    vnic: Command, words: str, field: str
) -> None:
    assert refusal(vnic, f"sa rekey {words}")["field"] == field


def test_details_say_what_the_nic_answered_and_json_always_does(vnic: Command) -> None:
    line = f"sa add dst 192.0.2.2 esp spi 0x101 aes-gcm-128 key {GCM_KEY}"
    assert vnic(f"-d {line}").out == "added left out handle 0x3 NDIS_STATUS_SUCCESS\n"
    assert vnic(f"-j {line}").json == {
        "adapter": "left",
        "direction": "out",
        "handle": 3,
        "status": 0,
        "status_name": "NDIS_STATUS_SUCCESS",
        "weak": [],
        "offload": "nic",
        "message": "",
    }


@pytest.mark.parametrize(
    ("words", "spis"),
    [
        ("show", [0x101, 0x201]),
        ("show in", [0x201]),
        ("list esp tunnel", [0x101]),
        ("show esn", [0x201]),
        ("", [0x101, 0x201]),
    ],
)
def test_show_narrows_by_short_words(vnic: Command, words: str, spis: list[int]) -> None:
    assert [one["sa"]["spi"] for one in vnic(f"-j sa {words}").json] == spis


def test_get_by_handle(vnic: Command) -> None:
    assert [one["handle"] for one in vnic("-j sa get handle 2").json] == [2]
    assert vnic("sa get handle 9").code == 2


def test_keys_for_wireshark_go_to_a_new_file_of_the_owner_alone(vnic: Command, tmp_path: Path) -> None:
    path = tmp_path / "esp_sa"
    old = os.umask(0)
    try:
        result = vnic(f"sa export wireshark {path} dev left")
    finally:
        os.umask(old)
    assert result.code == 0
    assert result.request == api.ExportKeys(adapter="left", format="wireshark")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == '"IPv4","192.0.2.1"\n"IPv6","2001:db8::2"\n'
    assert result.out == f"wrote the keys of 2 SAs to {path}\n"
    assert "192.0.2.1" not in result.out


def test_an_existing_file_is_not_written_over(vnic: Command, tmp_path: Path) -> None:
    path = tmp_path / "esp_sa"
    path.write_text("mine")
    result = vnic(f"-j sa export wireshark {path}")
    assert (result.code, result.error["field"], result.error["value"]) == (1, "file", str(path))
    assert path.read_text() == "mine"
    assert vnic(f"sa export wireshark {tmp_path / 'none' / 'esp_sa'}").code == 1


@pytest.mark.parametrize("line", ["sa export", "sa export wireshark", "sa export strongswan /tmp/x"])
def test_export_wants_a_format_it_knows_and_a_file(vnic: Command, line: str) -> None:
    assert refusal(vnic, line)["field"] in ("format", "file")


def test_udp_encapsulation_is_said_as_ip_says_it(vnic: Command) -> None:
    made = request(
        vnic,
        f"dst 192.0.2.2 esp spi 0x101 aes-gcm-128 key {GCM_KEY} encap espinudp 4500 6000 198.51.100.7 "
        "nat-follow nat-keepalive 5",
    )
    assert made.sa.encap == api.Encapsulation(
        sport=4500, dport=6000, oaddr="198.51.100.7", follow=True, keepalive=5
    )
    plain = request(
        vnic, f"dst 192.0.2.2 esp spi 0x101 aes-gcm-128 key {GCM_KEY} encap espinudp 4500 4500 0.0.0.0"
    )
    assert plain.sa.encap == api.Encapsulation(sport=4500, dport=4500)
