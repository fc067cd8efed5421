"""`vnic xfrm state`: lines of Linux hosts, pasted with `ip` replaced by `vnic`."""

from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_process import Command

from vnic.control import interface as api
from vnic.errors import RequestError

GCM_KEY = "0x0102030405060708090a0b0c0d0e0f1011121314"
KEY16 = "0x000102030405060708090a0b0c0d0e0f"
KEY20 = "0x000102030405060708090a0b0c0d0e0f10111213"
KEY24 = "0x000102030405060708090a0b0c0d0e0f1011121314151617"
KEY32 = "0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

ENDS = "src 192.0.2.1 dst 192.0.2.2"
ESP = f"{ENDS} proto esp spi 0x101"
AH = f"{ENDS} proto ah spi 0x101"


def sa(vnic: Command, line: str) -> api.Sa:
    """The SA that a line of `xfrm state add` asks for."""
    result = vnic(f"xfrm state add {line}")
    assert result.code == 0, result.err
    (request,) = [one for one in result.requests if isinstance(one, api.AddSa)]
    assert isinstance(request.sa, api.Sa)
    return request.sa


def refusal(vnic: Command, line: str) -> dict[str, object]:
    """The error of a line that must not reach the daemon."""
    result = vnic(f"-j {line}")
    assert result.code == 1, result
    assert result.out == ""
    assert result.requests == []
    assert result.error["exit_code"] == 1
    return result.error


def test_a_gcm_tunnel_of_a_linux_host_is_understood_word_for_word(vnic: Command) -> None:
    result = vnic(
        "xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x00000101 reqid 0x1 mode tunnel "
        f"replay-window 128 flag esn aead 'rfc4106(gcm(aes))' {GCM_KEY} 128 "
        "sel src 10.1.0.0/16 dst 10.2.0.0/16 proto tcp sport 1024 dport 80 offload packet dev left dir out"
    )
    assert result.code == 0
    assert result.out == ""
    assert result.request == api.AddSa(
        adapter="left",
        sa=api.Sa(
            src="10.0.0.1",
            dst="10.0.0.2",
            proto="esp",
            spi=0x101,
            mode="tunnel",
            direction="out",
            encryption="aes-gcm-128",
            encryption_key=GCM_KEY[2:],
            icv_length=128,
            esn=True,
            replay_window=128,
            reqid=1,
            selector=api.Selector(src="10.1.0.0/16", dst="10.2.0.0/16", proto=6, sport=1024, dport=80),
        ),
    )


def test_what_is_not_said_is_left_to_the_daemon(vnic: Command) -> None:
    made = sa(vnic, f"{ESP} enc 'cbc(aes)' {KEY16} auth 'hmac(sha1)' {KEY20}")
    assert (made.mode, made.direction, made.replay_window, made.reqid, made.selector) == (None,) * 5
    assert (made.esn, made.ah_alignment, made.sequence_number, made.no_ecn) == (None,) * 4


@pytest.mark.parametrize(
    ("algorithms", "encryption", "integrity", "icv"),
    [
        (f"aead 'rfc4106(gcm(aes))' {GCM_KEY} 128", "aes-gcm-128", None, 128),
        (f"aead 'rfc4106(gcm(aes))' {GCM_KEY}{'00' * 8} 96", "aes-gcm-192", None, 96),
        (f"aead 'rfc4106(gcm(aes))' {GCM_KEY}{'00' * 16} 64", "aes-gcm-256", None, 64),
        (f"aead 'rfc4543(gcm(aes))' {GCM_KEY} 128", "null", "aes-gmac-128", 128),
        (f"aead 'rfc4543(gcm(aes))' {GCM_KEY}{'00' * 16} 128", "null", "aes-gmac-256", 128),
        (f"enc 'cbc(aes)' {KEY16} auth 'hmac(sha256)' {KEY32}", "aes-cbc-128", "hmac-sha256-128", 96),
        (f"enc aes {KEY24} auth sha1 {KEY20}", "aes-cbc-192", "hmac-sha1-96", 96),
        (f"auth md5 {KEY16} enc aes {KEY32}", "aes-cbc-256", "hmac-md5-96", 96),
        (
            f"enc 'cbc(des3_ede)' {KEY24} auth-trunc 'hmac(sha256)' {KEY32} 128",
            "3des-cbc",
            "hmac-sha256-128",
            128,
        ),
        (f"enc des3_ede {KEY24} auth-trunc sha256 {KEY32} 96", "3des-cbc", "hmac-sha256-128", 96),
        (f"enc 'cbc(des)' 8bytekey auth 'hmac(md5)' sixteencharacter", "des-cbc", "hmac-md5-96", 96),  # noqa: F541
        (f"enc 'ecb(cipher_null)' '' auth 'hmac(sha1)' {KEY20}", "null", "hmac-sha1-96", 96),
        (f"enc cipher_null '' auth-trunc 'hmac(sha1)' {KEY20} 96", "null", "hmac-sha1-96", 96),
    ],
)
def test_kernel_names_find_the_row_by_the_length_of_the_key(
    vnic: Command, algorithms: str, encryption: str, integrity: str | None, icv: int
) -> None:
    made = sa(vnic, f"{ESP} {algorithms}")
    assert (made.encryption, made.integrity, made.icv_length) == (encryption, integrity, icv)


def test_a_key_of_characters_is_their_bytes(vnic: Command) -> None:
    made = sa(vnic, f"{ESP} enc 'cbc(aes)' sixteencharacter auth 'hmac(sha1)' {KEY20}")
    assert made.encryption_key == b"sixteencharacter".hex()
    assert made.integrity_key == KEY20[2:]


@pytest.mark.parametrize(
    ("algorithms", "integrity", "icv"),
    [
        (f"auth 'hmac(sha1)' {KEY20}", "hmac-sha1-96", 96),
        (f"auth-trunc 'hmac(sha256)' {KEY32} 128", "hmac-sha256-128", 128),
        (f"aead 'rfc4543(gcm(aes))' {GCM_KEY} 128", "aes-gmac-128", 128),
    ],
)
def test_ah_takes_integrity_and_gmac(vnic: Command, algorithms: str, integrity: str, icv: int) -> None:
    made = sa(vnic, f"{AH} {algorithms} flag align4")
    assert (made.encryption, made.encryption_key, made.integrity, made.icv_length) == (
        None,
        None,
        integrity,
        icv,
    )
    assert made.ah_alignment == 4


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("esn align4 decap-dscp", (True, 4, True, None, None)),
        ("noecn nopmtudisc", (None, None, None, True, True)),
        ("0x80", (True, None, None, None, None)),
        ("0x47", (None, 4, True, True, True)),
        ("af-unspec", (None, None, None, None, None)),
    ],
)
def test_flags_are_words_or_a_number_of_bits(vnic: Command, flags: str, expected: tuple[object, ...]) -> None:
    made = sa(vnic, f"{AH} flag {flags} auth 'hmac(sha1)' {KEY20}")
    assert (
        made.esn,
        made.ah_alignment,
        made.decap_dscp,
        made.no_ecn,
        made.no_pmtu_discovery,
    ) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", (None, None, None, None, None)),
        ("tfcpad 1400", (None, None, None, None, 1400)),
        ("df copy ttl copy dscp copy flow-label copy", ("copy", 0, None, None, None)),
        ("df set ttl 255 dscp clear flow-label clear tfcpad 0", ("set", 255, 0, 0, 0)),
        ("df clear ttl 1 dscp 0x2e flow-label 0xfffff", ("clear", 1, 46, 0xFFFFF, None)),
    ],
)
def test_outer_headers_are_copied_cleared_or_set(
    vnic: Command, words: str, expected: tuple[object, ...]
) -> None:
    made = sa(vnic, f"{ESP} mode tunnel aead 'rfc4106(gcm(aes))' {GCM_KEY} 128 {words}")
    assert (made.df, made.hop_limit, made.dscp, made.flow_label, made.tfc_padding) == expected


def test_a_selector_may_be_for_icmp(vnic: Command) -> None:
    made = sa(vnic, f"{ESP} aead 'rfc4106(gcm(aes))' {GCM_KEY} 128 sel dst 10/8 proto icmp type 8 code 0")
    assert made.selector == api.Selector(src="0.0.0.0/0", dst="10.0.0.0/8", proto=1, sport=8, dport=0)


def test_a_selector_without_addresses_has_the_family_of_the_sa(vnic: Command) -> None:
    line = f"src 2001:db8::1 dst 2001:db8::2 proto esp spi 0x101 aead 'rfc4106(gcm(aes))' {GCM_KEY} 128"
    assert sa(vnic, f"{line} sel proto udp").selector == api.Selector(src="::/0", dst="::/0", proto=17)


@pytest.mark.parametrize(("window", "expected"), [("0", 0), ("64", 64), ("65536", 65536), ("0x80", 128)])
def test_a_window_is_passed_on(vnic: Command, window: str, expected: int) -> None:
    assert (
        sa(vnic, f"{ESP} aead 'rfc4106(gcm(aes))' {GCM_KEY} 128 replay-window {window}").replay_window
        == expected
    )


def test_the_kernels_old_window_of_32_becomes_the_cards_smallest_with_a_warning(vnic: Command) -> None:
    result = vnic(f"-j xfrm state add {ESP} aead 'rfc4106(gcm(aes))' file:/dev/null 128 replay-window 32")
    assert result.code == 1  # the key is missing, and nothing else was said before
    result = vnic(f"xfrm state add {ESP} replay-window 32 aead 'rfc4106(gcm(aes))' {GCM_KEY} 128")
    assert result.code == 0
    assert result.request.sa.replay_window == 64
    assert "replay-window 32" in result.err


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("replay-oseq 7 offload packet dev left dir out", 7),
        ("replay-seq 7 offload packet dev left dir out", None),
        ("flag esn replay-window 64 replay-seq 5 replay-seq-hi 1 replay-oseq 9 dir in", (1 << 32) + 5),
        ("replay-seq 0 replay-oseq 0", None),
    ],
)
def test_the_sequence_number_is_that_of_the_direction(vnic: Command, words: str, number: int | None) -> None:
    assert sa(vnic, f"{ESP} aead 'rfc4106(gcm(aes))' {GCM_KEY} 128 {words}").sequence_number == number


@pytest.mark.parametrize(("ends", "number"), [(ENDS, 9), ("src 192.0.2.2 dst 192.0.2.1", 5)])
def test_without_a_direction_the_addresses_of_the_adapter_choose_the_number(
    vnic: Command, ends: str, number: int
) -> None:
    line = f"{ends} proto esp spi 0x101 aead 'rfc4106(gcm(aes))' {GCM_KEY} 128 replay-seq 5 replay-oseq 9"
    assert sa(vnic, line).sequence_number == number


def test_sequence_numbers_whose_direction_nobody_knows_change_nothing(vnic: Command) -> None:
    line = f"src 203.0.113.1 dst 203.0.113.2 proto esp spi 0x101 aead 'rfc4106(gcm(aes))' {GCM_KEY} 128"
    result = vnic(f"-j xfrm state add {line} replay-seq 5 replay-oseq 9")
    assert result.code == 1
    assert result.error["field"] == "dir"
    assert [type(one) for one in result.requests] == [api.ListAdapters]


def test_a_missing_source_is_any(vnic: Command) -> None:
    made = sa(vnic, f"dst 2001:db8::2 proto esp spi 0x101 aead 'rfc4106(gcm(aes))' {GCM_KEY} 128")
    assert made.src == "::"


def test_limits_are_those_of_ip_and_its_word_for_none_is_none(vnic: Command) -> None:
    limits = "limit time-soft 3000 limit time-hard 0xe10 limit time-use-soft 0"
    limits += " limit byte-hard 18446744073709551615"
    made = sa(vnic, f"{ESP} {limits} limit packet-hard 7 aead 'rfc4106(gcm(aes))' {GCM_KEY} 128")
    assert made.lifetime == api.Lifetime(time_soft=3000, time_hard=3600, packet_hard=7)
    made = sa(vnic, f"{ESP} limit byte-soft 18446744073709551615 aead 'rfc4106(gcm(aes))' {GCM_KEY} 128")
    assert made.lifetime is None


def test_statistics_show_the_window_that_late_packets_needed(vnic: Command) -> None:
    (state,) = (one for one in vnic.memory.answers[api.ListSas].sas if one.sa.direction == "in")
    vnic.memory.answers[api.ListSas] = api.SasReply(sas=[replace(state, needed_window=77)])
    assert "bitmap 0x1f, window needed 77\n" in vnic("-s xfrm state").out


def test_statistics_show_limits_as_ip_does(vnic: Command) -> None:
    life = api.Lifetime(time_soft=5, time_hard=10, byte_soft=1000, packet_hard=7)
    (state,) = (one for one in vnic.memory.answers[api.ListSas].sas if one.sa.direction == "out")
    state = replace(state, expiring=True, sa=replace(state.sa, lifetime=life))
    vnic.memory.answers[api.ListSas] = api.SasReply(sas=[state])
    assert (
        "limit time-soft 5 limit time-hard 10 limit byte-soft 1000 limit packet-hard 7\n"
        in vnic("xfrm state").out
    )
    assert (
        "\tlifetime config:\n"
        "\t  limit: soft 1000(bytes), hard (INF)(bytes)\n"
        "\t  limit: soft (INF)(packets), hard 7(packets)\n"
        "\t  expire add: soft 5(sec), hard 10(sec)\n"
        "\t  expire use: soft 0(sec), hard 0(sec)\n"
        "\tlifetime current: soft limit reached\n"
    ) in vnic("-s xfrm state").out
    assert vnic("-j xfrm state").json[0]["sa"]["lifetime"]["packet_hard"] == 7


REFUSED_WORDS = [
    ("mark 1 mask 0xff", "mark"),
    ("output-mark 1", "output-mark"),
    ("if_id 5", "if_id"),
    ("encap espinudp-nonike 4500 4500 0.0.0.0", "encap"),
    ("encap espintcp 4500 4500 0.0.0.0", "encap"),
    ("limit byte-hard 1000 limit byte-hard 7", "limit byte-hard"),
    ("limit byte-hard -1", "limit byte-hard"),
    ("limit bytes 7", "limit"),
    ("tfcpad 65536", "tfcpad"),
    ("df maybe", "df"),
    ("ttl 0", "ttl"),
    ("ttl 256", "ttl"),
    ("dscp 64", "dscp"),
    ("flow-label 0x100000", "flow-label"),
    ("ctx system_u:object_r:ipsec_spd_t:s0", "ctx"),
    ("coa 10.0.0.1", "coa"),
    ("extra-flag oseq-may-wrap", "extra-flag"),
    ("seq 5", "seq"),
    ("pcpu-num 1", "pcpu-num"),
    ("comp deflate", "comp"),
    ("mode beet", "mode"),
    ("mode ro", "mode"),
    ("mode in_trigger", "mode"),
    ("mode iptfs", "mode"),
    ("flag wildrecv", "flag"),
    ("flag esn icmp", "flag"),
    ("flag 0x08", "flag"),
    ("dir fwd", "dir"),
    ("offload crypto dev left dir out", "offload crypto"),
    ("offload dev left dir out", "offload"),
    ("sel dev eth0", "sel dev"),
    ("sel proto gre key 5", "sel key"),
]


@pytest.mark.parametrize(("words", "field"), REFUSED_WORDS)
def test_what_ip_has_and_the_card_has_not_is_refused_by_name(vnic: Command, words: str, field: str) -> None:
    error = refusal(vnic, f"xfrm state add {ESP} {words} aead 'rfc4106(gcm(aes))' {GCM_KEY} 128")
    assert error["field"] == field
    assert error["allowed"]


@pytest.mark.parametrize("proto", ["comp", "route2", "hao"])
def test_protocols_of_ip_that_are_no_ipsec_are_refused_by_name(vnic: Command, proto: str) -> None:
    error = refusal(vnic, f"xfrm state add {ENDS} proto {proto} spi 0x101")
    assert (error["field"], error["value"], error["allowed"]) == ("proto", proto, "esp, ah")


@pytest.mark.parametrize(
    ("algorithms", "field", "value", "allowed"),
    [
        (
            f"aead 'rfc7539esp(chacha20,poly1305)' {GCM_KEY} 128",
            "aead",
            "rfc7539esp(chacha20,poly1305)",
            "rfc4106(gcm(aes)), rfc4543(gcm(aes))",
        ),
        (f"enc 'rfc3686(ctr(aes))' {GCM_KEY}", "enc", "rfc3686(ctr(aes))", "cbc(aes)"),
        (f"enc 'cbc(aes)' {KEY16} auth 'hmac(sha512)' {KEY32}", "auth", "hmac(sha512)", "hmac(sha256)"),
        (f"enc 'rfc4106(gcm(aes))' {GCM_KEY}", "enc", "rfc4106(gcm(aes))", "cbc(aes)"),
        (f"auth 'cbc(aes)' {KEY16}", "auth", "cbc(aes)", "hmac(sha1)"),
        (f"aead 'rfc4106(gcm(aes))' {GCM_KEY} 100", "aead", "100", "128, 96, 64 bits"),
        (f"enc 'cbc(aes)' {KEY16} auth-trunc 'hmac(sha1)' {KEY20} 160", "auth-trunc", "160", "96 bits"),
        (f"aead 'rfc4543(gcm(aes))' {GCM_KEY} 96", "aead", "96", "128 bits"),
        (
            f"aead 'rfc4106(gcm(aes))' {KEY16} 128",
            "aead",
            "16 bytes",
            "20, 28 or 36 bytes (with the 4-byte salt)",
        ),
        (f"enc 'cbc(aes)' {KEY20} auth 'hmac(sha1)' {KEY20}", "enc", "20 bytes", "16, 24 or 32 bytes"),
        (f"enc 'cbc(aes)' {KEY16} auth 'hmac(sha1)' {KEY16}", "auth", "16 bytes", "20 bytes"),
        (f"enc 'ecb(cipher_null)' {KEY16} auth 'hmac(sha1)' {KEY20}", "enc", "16 bytes", "0 bytes"),
        (f"aead 'rfc4106(gcm(aes))' {GCM_KEY} 128 auth 'hmac(sha1)' {KEY20}", "auth", "", "aead without"),
        (
            f"auth 'hmac(sha1)' {KEY20} auth-trunc 'hmac(sha1)' {KEY20} 96",
            "auth-trunc",
            "",
            "auth or auth-trunc",
        ),
        (f"auth 'hmac(sha1)' {KEY20}", "enc", "", "enc: "),
        ("", "enc", "", "aead: "),
    ],
)
def test_algorithms_that_do_not_fit_name_the_word_and_what_would(
    vnic: Command, algorithms: str, field: str, value: str, allowed: str
) -> None:
    error = refusal(vnic, f"xfrm state add {ESP} {algorithms}")
    assert error["field"] == field
    assert error["value"] == value
    assert allowed in str(error["allowed"])


@pytest.mark.parametrize(
    "algorithm", [f"aead 'rfc4106(gcm(aes))' {GCM_KEY} 128", f"enc 'cbc(aes)' {KEY16}", ""]
)
def test_ah_without_integrity_is_refused(vnic: Command, algorithm: str) -> None:
    assert refusal(vnic, f"xfrm state add {AH} {algorithm}")["field"] in ("proto", "auth")


SECRETS = ["0123456789abcdef0123456789abcd", "0x0123456789abcdef0123", "averysecretphrase"]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "words",
    [
        "enc 'cbc(aes)' {0}",
        "enc {0} auth",
        "auth {0}",
        "aead 'rfc4106(gcm(aes))' {0} 128",
        "aead {0} 128",
        "aead 'rfc4106(gcm(aes))' x {0}",
        "auth-trunc 'hmac(sha256)' {0} 128",
        "auth-trunc 'hmac(sha256)' x {0}",
        "enc 'cbc(aes)' x {0}",
        "enc 'cbc(aes)' {0} {0}",
    ],
)
def test_no_error_repeats_a_key(vnic: Command, words: str, secret: str) -> None:
    for options in ("", "-j "):
        result = vnic(f"{options}xfrm state add {ESP} {words.format(secret)}")
        assert result.code == 1
        assert secret not in result.out + result.err
        assert bytes(secret, "ascii").hex() not in result.out + result.err


@pytest.mark.parametrize(
    ("line", "field", "allowed"),
    [
        ("xfrm state add src 192.0.2.1 proto esp spi 0x101", "dst", "ADDR"),
        (f"xfrm state add {ENDS} proto esp", "spi", "SPI"),
        (f"xfrm state add {ENDS} spi 0x101", "proto", "{ esp | ah }"),
        (f"xfrm state add {ENDS} proto esp spi 0x0", "spi", "0x1 to 0xffffffff"),
        (f"xfrm state add {ENDS} proto esp spi", "spi", "SPI"),
        (f"xfrm state add {ESP} spi 0x102", "spi", "SPI"),
        (f"xfrm state add {ESP} mode t", "mode", "transport, tunnel"),
        (f"xfrm state add {ESP} bogus", "", "enc"),
        ("xfrm state add src 192.0.2.1 dst ::1 proto esp spi 0x101", "src", "the family of dst"),
        (f"xfrm state add {ESP} sel src 10.0.0.0/8 dst ::/0 aead x 0x 128", "sel dst", "IPv4"),
        (f"xfrm state add {ESP} sel sport 5 aead x 0x 128", "sel sport", "proto tcp"),
        (f"xfrm state add {ESP} sel proto tcp type 5 aead x 0x 128", "sel type", "proto icmp"),
        (f"xfrm state add {ESP} sel", "sel", "src"),
        (f"xfrm state add {ESP} dev left offload packet dev right", "offload dev", "left"),
        (f"xfrm state add {ESP} dir in offload packet dev right dir out", "dir", "one of them"),
        (f"xfrm state add {ESP} offload packet dir out", "offload dev", "ADAPTER"),
        ("xfrm state allocspi dst 10.0.0.1 proto esp", "", "add"),
        ("xfrm state bogus", "", "list"),
        ("xfrm bogus", "", "state"),
        ("xfrm", "xfrm", "state"),
        ("xfrm state delete dst 10.0.0.1 proto esp", "spi", "dst, proto and spi"),
        ("xfrm state get", "dst", "dst, proto and spi"),
        ("xfrm state delete dst 10.0.0.1 proto esp spi 0x101 mark 5", "mark", "src"),
    ],
)
def test_a_wrong_line_names_the_word_and_what_is_allowed(
    vnic: Command, line: str, field: str, allowed: str
) -> None:
    error = refusal(vnic, line)
    assert error["field"] == field
    assert allowed in str(error["allowed"])


def test_an_error_reads_as_one_line_for_a_person(vnic: Command) -> None:
    result = vnic(f"xfrm st add {ENDS} proto esp spi 0x0")
    assert result.err == "vnic: xfrm state add: spi: 0x0 is out of range; allowed: 0x1 to 0xffffffff\n"


@pytest.mark.parametrize("start", ["xfrm state", "x s", "xfrm sa", "xfr sta"])
@pytest.mark.parametrize("verb", ["", "list", "show", "lst", "l"])
def test_objects_and_verbs_may_be_shortened_and_have_the_names_of_ip(
    vnic: Command, start: str, verb: str
) -> None:
    result = vnic(f"{start} {verb}")
    assert result.code == 0
    assert result.request == api.ListSas()


def test_update_puts_an_sa_in_the_place_of_another(vnic: Command) -> None:
    result = vnic(f"xfrm state update {ESP} aead 'rfc4106(gcm(aes))' {GCM_KEY} 128")
    assert type(result.request) is api.ReplaceSa


def test_delete_names_the_sa_as_the_kernel_does(vnic: Command) -> None:
    result = vnic(f"xfrm state delete {ESP}")
    assert result.request == api.DeleteSa(dst="192.0.2.2", proto="esp", spi=0x101)
    assert (result.out, result.err) == ("", "")


def test_get_shows_the_one_sa(vnic: Command) -> None:
    result = vnic(f"-j xfrm state get {ESP}")
    assert [one["sa"]["spi"] for one in result.json] == [0x101]


def test_get_of_what_is_not_there_is_refused(vnic: Command) -> None:
    result = vnic(f"-j xfrm state get {ENDS} proto esp spi 0x999")
    assert result.code == 2
    assert (result.error["field"], result.error["value"]) == ("spi", "0x999")


@pytest.mark.parametrize(
    ("words", "spis"),
    [
        ("", [0x101, 0x201]),
        ("src 192.0.2.0/24", [0x101]),
        ("dst 2001:db8::1", [0x201]),
        ("proto esp spi 0x201", [0x201]),
        ("proto ah", []),
        ("mode tunnel", [0x101]),
        ("reqid 1", [0x101]),
        ("flag esn", [0x201]),
        ("nokeys dir in", [0x201]),
    ],
)
def test_list_shows_what_fits(vnic: Command, words: str, spis: list[int]) -> None:
    assert [one["sa"]["spi"] for one in vnic(f"-j xfrm state list {words}").json] == spis


@pytest.mark.parametrize(("option", "spis"), [("-4", [0x101]), ("-6", [0x201])])
def test_a_family_narrows_the_list(vnic: Command, option: str, spis: list[int]) -> None:
    assert [one["sa"]["spi"] for one in vnic(f"-j {option} xfrm state").json] == spis


def test_deleteall_deletes_what_fits_by_its_name(vnic: Command) -> None:
    result = vnic("-s xfrm state deleteall mode tunnel")
    assert result.requests == [
        api.ListSas(),
        api.DeleteSa(adapter="left", dst="192.0.2.2", proto="esp", spi=0x101),
    ]
    assert result.out == "deleted 1 SA\n"


def test_flush_and_count(vnic: Command) -> None:
    assert vnic("xfrm state flush proto ah").request == api.FlushSas(proto="ah")
    assert vnic("-d xfrm state flush dev left").out == "deleted 2 SAs\n"
    assert vnic("xfrm state count").out == "\t SAD count 2\n"
    assert vnic("-j xfrm state count").json == {"count": 2}


def test_keys_are_asked_for_only_with_the_option(vnic: Command) -> None:
    assert vnic("xfrm state").request.reveal_keys is None
    assert vnic("-show-keys xfrm state").request.reveal_keys is True
    assert vnic("-show-keys xfrm state list nokeys").request.reveal_keys is None


def test_weak_algorithms_are_warned_of(vnic: Command) -> None:
    vnic.memory.answers[api.AddSa] = api.SaReply(
        adapter="left",
        direction="out",
        handle=1,
        status=0,
        status_name="NDIS_STATUS_SUCCESS",
        weak=["des-cbc: old"],
        offload="nic",
        message="",
    )
    result = vnic(f"xfrm state add {ESP} enc 'cbc(des)' file:/dev/stdin auth 'hmac(sha1)' {KEY20}")
    assert result.code == 1
    result = vnic(f"xfrm state add {ESP} enc 'cbc(des)' 8bytekey auth 'hmac(sha1)' {KEY20}")
    assert "vnic: warning: weak: des-cbc: old\n" in result.err


def test_a_refusal_of_the_daemon_is_exit_code_2_with_its_words(vnic: Command) -> None:
    vnic.memory.answers[api.AddSa] = RequestError(
        "one with the same name exists", field="spi", value="0x101", allowed="another SPI"
    )
    result = vnic(f"xfrm state add {ESP} aead 'rfc4106(gcm(aes))' {GCM_KEY} 128")
    assert result.code == 2
    assert result.err.splitlines()[-1] == (
        "vnic: xfrm state add: spi: one with the same name exists (given: 0x101); allowed: another SPI"
    )


# -------------------------------------------------------------------------------- there and back again

NAMED_KEYS = {
    "aes-gcm-128": 20,
    "aes-gcm-256": 36,
    "aes-cbc-192": 24,
    "3des-cbc": 24,
    "null": 0,
}


_LIMITS = st.none() | st.integers(1, (1 << 64) - 2)
LIFETIMES = st.builds(
    api.Lifetime,
    time_soft=_LIMITS,
    time_hard=_LIMITS,
    time_use_soft=_LIMITS,
    time_use_hard=_LIMITS,
    byte_soft=_LIMITS,
    byte_hard=_LIMITS,
    packet_soft=_LIMITS,
    packet_hard=st.integers(1, (1 << 64) - 2),
)


@st.composite
def sas(draw: st.DrawFn) -> api.Sa:
    """Any SA as the daemon would show it with its keys."""
    ipv6 = draw(st.booleans())
    src, dst = ("2001:db8::1", "2001:db8::2") if ipv6 else ("192.0.2.1", "192.0.2.2")
    protocols: list[Literal["esp", "ah"]] = ["esp", "ah"]
    proto = draw(st.sampled_from(protocols))
    encryption = draw(st.sampled_from(sorted(NAMED_KEYS))) if proto == "esp" else None
    integrity = None
    if proto == "ah" or not str(encryption).startswith("aes-gcm"):
        choices = ["hmac-sha256-128", "hmac-sha1-96"]
        choices += ["aes-gmac-192"] if encryption in (None, "null") else []
        integrity = draw(st.sampled_from(choices))
    size = {"hmac-sha256-128": 32, "hmac-sha1-96": 20, "aes-gmac-192": 28, None: 0}[integrity]
    icv = 96 if integrity in ("hmac-sha1-96",) else 128
    any_prefix = ["::/0", "2001:db8::/32"] if ipv6 else ["0.0.0.0/0", "10.0.0.0/8"]
    selector = draw(
        st.none()
        | st.builds(
            api.Selector,
            src=st.sampled_from(any_prefix),
            dst=st.sampled_from(any_prefix),
            proto=st.just(17),
            sport=st.none() | st.integers(1, 65535),
            dport=st.none() | st.integers(1, 65535),
        )
    )
    key = NAMED_KEYS.get(str(encryption), 0)
    ports = st.integers(0, 65535)
    encap = api.Encapsulation(
        sport=draw(ports),
        dport=draw(ports),
        oaddr=draw(st.sampled_from([None, "2001:db8::9" if ipv6 else "198.51.100.9"])),
        follow=draw(st.sampled_from([True, None])),
        keepalive=draw(st.sampled_from([0, 5, 3600, None])),
    )
    return api.Sa(
        src=src,
        dst=dst,
        proto=proto,
        spi=draw(st.integers(0x100, 0xFFFFFFFF)),
        mode=draw(st.sampled_from(["transport", "tunnel"])),
        direction=draw(st.sampled_from(["in", "out"])),
        encryption=encryption,
        encryption_key=draw(st.binary(min_size=key, max_size=key)).hex() if key else None,
        integrity=integrity,
        integrity_key=draw(st.binary(min_size=size, max_size=size)).hex() if size else None,
        icv_length=icv,
        esn=draw(st.sampled_from([True, None])),
        replay_window=draw(st.sampled_from([0, 64, 1024])),
        reqid=draw(st.integers(0, 0xFFFFFFFF)),
        selector=selector,
        ah_alignment=4 if proto == "ah" and not ipv6 and draw(st.booleans()) else None,
        decap_dscp=draw(st.sampled_from([True, None])),
        no_ecn=draw(st.sampled_from([True, None])),
        no_pmtu_discovery=draw(st.sampled_from([True, None])),
        lifetime=draw(st.none() | LIFETIMES),
        df=draw(st.sampled_from(["set", None])),
        hop_limit=draw(st.sampled_from([0, 1, 255, None])),
        dscp=draw(st.sampled_from([0, 46, None])),
        flow_label=draw(st.sampled_from([0, 0xFFFFF, None])),
        tfc_padding=draw(st.sampled_from([1, 65535, None])),
        dummy_interval=draw(st.sampled_from([10, 86_400_000, None])),
        encap=encap if proto == "esp" and draw(st.booleans()) else None,
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=sas())
def test_what_is_shown_can_be_added_again(vnic: Command, made: api.Sa) -> None:
    state = api.SaState(
        adapter="left",
        sa=made,
        handle=1,
        weak=[],
        packets=0,
        bytes=0,
        drops={},
        replay_bitmap="",
        added="2026-01-02T03:04:05Z",
        used=None,
        offload="nic",
    )
    vnic.memory.answers[api.ListSas] = api.SasReply(sas=[state])
    shown = vnic("-show-keys xfrm state").out
    result = vnic.words(["xfrm", "state", "add", *["" if word == "''" else word for word in shown.split()]])
    assert result.code == 0, (shown, result.err)
    assert result.request == api.AddSa(adapter="left", sa=made)
