"""UDP-encapsulated ESP on receive and send, all four subtypes (sheet §9, RFC 3948); scapy is the peer."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any

import pytest
from nic_frames import (
    CBC_SHA1,
    ESP,
    GCM,
    INNER_V4,
    INNER_V6,
    NO_HANDLE,
    UDP,
    V4,
    V6,
    Nic,
    Sa,
    ah,
    esp,
    ethernet,
    framed,
    ip,
    ipv4,
    nat_traversal,
    sealed,
    transmit,
    udp,
)
from scapy.layers.inet import IP
from scapy.layers.inet import UDP as ScapyUdp
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP as SCAPY_ESP
from scapy.layers.ipsec import SecurityAssociation

from vnic.ipsec.association import Mode
from vnic.ndis.capabilities import (
    ALL_UDP_ESP,
    TRANSPORT_OVER_UDP_ESP_TUNNEL,
    UDP_ESP_TRANSPORT,
    UDP_ESP_TRANSPORT_OVER_TUNNEL,
    UDP_ESP_TUNNEL,
    OffloadCapabilities,
    TaskOffload,
)
from vnic.ndis.netbuffer import OffloadHandle, ReceiveInfo
from vnic.ndis.status import CryptoStatus, NdisStatus

PAYLOAD = udp(b"behind a NAT")
INSIDE = replace(CBC_SHA1, spi=0x2222)
Ends = tuple[bytes, bytes]


@dataclass(frozen=True)
class Form:
    """One of the packet forms of sheet §9.1: which portions there are and which of them stand in UDP."""

    subtype: int
    tunnel: bool
    transport: bool
    udp_outside: bool
    udp_inside: bool = False


FORMS = {
    "udp transport": Form(UDP_ESP_TRANSPORT, False, True, True),
    "udp tunnel": Form(UDP_ESP_TUNNEL, True, False, True),
    "transport over udp tunnel": Form(TRANSPORT_OVER_UDP_ESP_TUNNEL, True, True, True),
    "udp transport over tunnel": Form(UDP_ESP_TRANSPORT_OVER_TUNNEL, True, True, False, True),
}
EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
EVERY_FAMILY = pytest.mark.parametrize(
    ("outer", "inner"),
    [(V4, INNER_V4), (V6, INNER_V6), (V4, INNER_V6)],
    ids=["v4", "v6", "v6-in-v4"],
)


def scapy_class(ends: Ends) -> Any:
    return IP if len(ends[0]) == 4 else IPv6


def scapy_sa(sa: Sa, tunnel: Ends | None, in_udp: bool) -> SecurityAssociation:
    arguments: dict[str, Any] = {"crypt_algo": "AES-GCM" if sa.combined else "AES-CBC"}
    arguments["crypt_key"] = sa.encryption_key.reveal()
    if sa.integrity:
        arguments |= {"auth_algo": "HMAC-SHA1-96", "auth_key": sa.integrity_key.reveal()}
    if tunnel is not None:
        arguments["tunnel_header"] = scapy_class(tunnel)(ip(tunnel, UDP, b""))
    if in_udp:
        arguments["nat_t_header"] = ScapyUdp(sport=4500, dport=4500)
    return SecurityAssociation(SCAPY_ESP, sa.spi, **arguments)


def by_scapy(form: Form, outer: Ends, inner: Ends) -> bytes:
    """A frame of a form, sealed by scapy."""
    ends = inner if form.tunnel else outer
    packet = scapy_class(ends)(ip(ends, UDP, PAYLOAD))
    if form.transport:
        sa = INSIDE if form.tunnel else GCM
        in_udp = form.udp_inside or not form.tunnel
        packet = scapy_sa(sa, None, in_udp).encrypt(packet, seq_num=7)
    if form.tunnel:
        packet = scapy_sa(GCM, outer, form.udp_outside).encrypt(packet, seq_num=9)
    return ethernet(bytes(packet))


def receiver(form: Form, outer: Ends, inner: Ends, *, named: bool = True) -> Nic:
    """A NIC with the SAs of a form; `named`: the plain part of two names the subtype as well."""
    nic = Nic()
    if not form.tunnel:
        nic.add(GCM, outer, inbound=True, portion=None, udp_esp=form.subtype)
        return nic
    both = form.transport
    plain = form.subtype if named else 0
    tunnel = form.subtype if form.udp_outside else plain
    nic.add(GCM, outer, inbound=True, portion=None, udp_esp=tunnel)
    if both:
        inside = form.subtype if form.udp_inside else plain
        nic.add(INSIDE, inner, inbound=True, portion=None, udp_esp=inside)
    return nic


@pytest.mark.rule(137)
@pytest.mark.rule(139)
@pytest.mark.rule(156)
@pytest.mark.parametrize("named", [True, False], ids=["both named", "plain part not named"])
@EVERY_FAMILY
@EVERY_FORM
def test_nic_opens_what_scapy_put_into_udp(form: Form, outer: Ends, inner: Ends, named: bool) -> None:
    frame = by_scapy(form, outer, inner)
    info, opened = receiver(form, outer, inner, named=named).open(frame)
    assert info is not None
    assert info.verified
    assert info.next_crypto_done is (form.tunnel and form.transport)
    assert info.next_header == (UDP if form.transport else (4 if len(inner[0]) == 4 else 41))
    assert PAYLOAD in opened
    assert PAYLOAD not in frame


@pytest.mark.rule(157)
def test_plain_tunnel_around_udp_is_opened_first() -> None:
    # Without the tunnel SA the part inside is out of sight; with it alone, the part inside stays sealed.
    form = FORMS["udp transport over tunnel"]
    frame = by_scapy(form, V4, INNER_V4)
    inside_only, outside_only = Nic(), Nic()
    inside_only.add(INSIDE, INNER_V4, inbound=True, portion=None, udp_esp=form.subtype)
    outside_only.add(GCM, V4, inbound=True, portion=None)
    assert inside_only.open(frame) == (None, frame)
    info, opened = outside_only.open(frame)
    assert info is not None
    assert (info.verified, info.next_crypto_done) == (True, False)
    assert opened != frame
    assert PAYLOAD not in opened


@pytest.mark.rule(155)
@EVERY_FORM
def test_udp_packet_without_an_sa_is_passed_up_as_it_came(form: Form) -> None:
    frame = by_scapy(form, V4, INNER_V4)
    assert Nic().open(frame) == (None, frame)
    other = Nic()
    other.add(replace(GCM, spi=0x9999), inbound=True, portion=None, udp_esp=UDP_ESP_TRANSPORT)
    assert other.open(frame) == (None, frame)


@pytest.mark.rule(174)
@pytest.mark.parametrize("named", [0, *(1 << bit for bit in range(4))])
@EVERY_FORM
def test_udp_layer_belongs_to_an_sa_of_its_subtype_alone(form: Form, named: int) -> None:
    frame = by_scapy(form, V4, INNER_V4)
    nic = Nic()
    # Another SA makes the NIC look into UDP in any case.
    nic.add(replace(GCM, spi=0x9999), inbound=True, portion=None, udp_esp=UDP_ESP_TRANSPORT)
    if form.udp_inside:
        nic.add(GCM, inbound=True, portion=None)
        nic.add(INSIDE, INNER_V4, inbound=True, portion=None, udp_esp=named)
        info, opened = nic.open(frame)
        assert info is not None
        assert info.verified
        assert info.next_crypto_done is (PAYLOAD in opened) is (named == UDP_ESP_TRANSPORT_OVER_TUNNEL)
        return
    nic.add(GCM, inbound=True, portion=None, udp_esp=named)
    info, opened = nic.open(frame)
    assert (info is not None) is (named in (1, 2, 4))
    if info is None:
        assert opened == frame


@pytest.mark.parametrize("named", [0, *(1 << bit for bit in range(4))])
def test_plain_esp_belongs_to_an_sa_that_may_come_plain(named: int) -> None:
    frame = sealed(peer := Nic(), GCM, framed(GCM, ip(INNER_V4, UDP, PAYLOAD), 4), peer.add(GCM))
    nic = Nic()
    nic.add(GCM, inbound=True, portion=None, udp_esp=named)
    info, opened = nic.open(frame)
    if named in (0, UDP_ESP_TRANSPORT_OVER_TUNNEL):
        assert info is not None
        assert info.verified
    else:
        assert (info, opened) == (None, frame)


@pytest.mark.parametrize(
    ("tunnel", "transport", "opened_both"),
    [
        (TRANSPORT_OVER_UDP_ESP_TUNNEL, 0, True),
        (TRANSPORT_OVER_UDP_ESP_TUNNEL, TRANSPORT_OVER_UDP_ESP_TUNNEL, True),
        (TRANSPORT_OVER_UDP_ESP_TUNNEL, UDP_ESP_TRANSPORT_OVER_TUNNEL, False),
        (TRANSPORT_OVER_UDP_ESP_TUNNEL, UDP_ESP_TRANSPORT, False),
        (UDP_ESP_TUNNEL, 0, False),
        (UDP_ESP_TUNNEL, TRANSPORT_OVER_UDP_ESP_TUNNEL, False),
    ],
)
def test_esp_inside_a_udp_tunnel_is_for_the_subtype_that_has_it(
    tunnel: int, transport: int, opened_both: bool
) -> None:
    frame = by_scapy(FORMS["transport over udp tunnel"], V4, INNER_V4)
    nic = Nic()
    nic.add(GCM, inbound=True, portion=None, udp_esp=tunnel)
    nic.add(INSIDE, INNER_V4, inbound=True, portion=None, udp_esp=transport)
    info, opened = nic.open(frame)
    assert info is not None
    assert info.verified
    assert info.next_crypto_done is opened_both is (PAYLOAD in opened)


@pytest.mark.rule(158)
@pytest.mark.parametrize("transport", [1 << bit for bit in range(4)])
def test_udp_inside_a_udp_tunnel_is_not_processed(transport: int) -> None:
    inside = scapy_sa(INSIDE, None, True).encrypt(IP(ip(INNER_V4, UDP, PAYLOAD)), seq_num=7)
    frame = ethernet(bytes(scapy_sa(GCM, V4, True).encrypt(inside, seq_num=9)))
    nic = Nic()
    nic.add(GCM, inbound=True, portion=None, udp_esp=TRANSPORT_OVER_UDP_ESP_TUNNEL)
    nic.add(INSIDE, INNER_V4, inbound=True, portion=None, udp_esp=transport)
    info, opened = nic.open(frame)
    assert info is not None
    assert (info.verified, info.next_crypto_done, info.next_header) == (True, False, 4)
    assert bytes(inside) in opened


@pytest.mark.parametrize("options", [b"", b"\x94\x04\x00\x00", b"\x01" * 8])
def test_udp_inside_a_tunnel_is_found_behind_ipv4_options(options: bytes) -> None:
    nic, peer = Nic(), Nic()
    datagram = nat_traversal(sealed(peer, INSIDE, framed(INSIDE, PAYLOAD), peer.add(INSIDE))[34:])
    inner = ipv4(*INNER_V4, UDP, datagram, options=options)
    nic.add(GCM, inbound=True, portion=Mode.TUNNEL)
    nic.add(INSIDE, INNER_V4, inbound=True, portion=None, udp_esp=UDP_ESP_TRANSPORT_OVER_TUNNEL)
    info, opened = nic.open(sealed(peer, GCM, framed(GCM, inner, 4), peer.add(GCM)))
    assert info is not None
    assert (info.verified, info.next_crypto_done) == (True, True)
    assert PAYLOAD in opened


# What is in UDP and is no ESP


def listening(**members: Any) -> Nic:
    """A NIC that looks into UDP, and holds an SA for every SPI that may be met by accident."""
    nic = Nic()
    nic.add(GCM, inbound=True, portion=None, udp_esp=UDP_ESP_TRANSPORT, **members)
    return nic


@pytest.mark.rule(154)
@pytest.mark.parametrize("ends", [V4, V6], ids=["v4", "v6"])
def test_ike_and_keepalives_are_passed_up_as_they_came(ends: Ends) -> None:
    nic = Nic()
    nic.add(GCM, ends, inbound=True, portion=None, udp_esp=UDP_ESP_TRANSPORT)
    ike = nat_traversal(bytes(4) + b"\x11" * 8 + b"\x22" * 8 + bytes(40))
    for datagram in (ike, nat_traversal(b"\xff"), nat_traversal(b""), nat_traversal(bytes(3))):
        frame = ethernet(ip(ends, UDP, datagram), padded=True)
        assert nic.open(frame) == (None, frame)


@pytest.mark.rule(139)
@pytest.mark.parametrize("port", [500, 4499, 4501, 0x9411, 53])
def test_other_ports_are_not_looked_behind(port: int) -> None:
    inside = framed(GCM, PAYLOAD).frame[34:]
    frame = ethernet(ip(V4, UDP, nat_traversal(inside, 4500, port)))
    assert listening().open(frame) == (None, frame)


@pytest.mark.rule(139)
def test_source_port_may_be_any_that_a_nat_chose() -> None:
    frame = bytearray(by_scapy(FORMS["udp transport"], V4, INNER_V4))
    frame[34:36] = (61_234).to_bytes(2, "big")
    info, _ = listening().open(bytes(frame))
    assert info is not None
    assert info.verified


def test_datagram_that_is_longer_than_its_packet_is_passed_up() -> None:
    frame = bytearray(by_scapy(FORMS["udp transport"], V4, INNER_V4))
    whole = struct.unpack_from(">H", frame, 38)[0]
    for length in (0, 7, 8, 15, whole + 1, 0xFFFF):
        frame[38:40] = length.to_bytes(2, "big")
        assert listening().open(bytes(frame)) == (None, frame)


def test_esp_ends_where_its_datagram_ends() -> None:
    packet = by_scapy(FORMS["udp transport"], V4, INNER_V4)[34:]
    frame = ethernet(ip(V4, UDP, packet + b"more than the datagram says"))
    info, opened = listening().open(frame)
    assert info is not None
    assert info.verified
    assert PAYLOAD in opened


@pytest.mark.rule(17)
def test_fragment_of_a_udp_packet_is_passed_up() -> None:
    packet = by_scapy(FORMS["udp transport"], V4, INNER_V4)[34:]
    frame = ethernet(ipv4(*V4, UDP, packet, fragment=0x2000))
    assert listening().open(frame) == (None, frame)


@pytest.mark.rule(180)
@pytest.mark.parametrize(
    ("form", "status"),
    [
        ("udp transport", CryptoStatus.TRANSPORT_ESP_AUTH_FAILED),
        ("udp tunnel", CryptoStatus.TUNNEL_ESP_AUTH_FAILED),
        ("transport over udp tunnel", CryptoStatus.TRANSPORT_ESP_AUTH_FAILED),
        ("udp transport over tunnel", CryptoStatus.TRANSPORT_ESP_AUTH_FAILED),
    ],
)
def test_wrong_icv_in_udp_is_told_of_the_portion_that_the_subtype_names(
    form: str, status: CryptoStatus
) -> None:
    one = FORMS[form]
    nic = Nic()
    outside = one.subtype if one.udp_outside or not one.tunnel else 0
    wrong = replace(INSIDE, label="else") if one.tunnel and one.transport else replace(GCM, label="else")
    if one.tunnel and one.transport:
        nic.add(GCM, inbound=True, portion=None, udp_esp=outside)
        nic.add(wrong, INNER_V4, inbound=True, portion=None, udp_esp=one.subtype)
    else:
        nic.add(wrong, inbound=True, portion=None, udp_esp=outside)
    frame = by_scapy(one, V4, INNER_V4)
    info, after = nic.open(frame)
    assert info == ReceiveInfo(True, one.tunnel and one.transport, status)
    assert after == frame


@pytest.mark.rule(180)
@pytest.mark.parametrize("form", ["transport over udp tunnel", "udp transport over tunnel"])
def test_wrong_icv_of_the_portion_outside_is_told_of_the_tunnel(form: str) -> None:
    one = FORMS[form]
    nic = Nic()
    nic.add(replace(GCM, label="else"), inbound=True, portion=None, udp_esp=one.subtype)
    nic.add(INSIDE, INNER_V4, inbound=True, portion=None, udp_esp=one.subtype)
    frame = by_scapy(one, V4, INNER_V4)
    assert nic.open(frame) == (ReceiveInfo(True, False, CryptoStatus.TUNNEL_ESP_AUTH_FAILED), frame)


@pytest.mark.rule(175)
@EVERY_FORM
def test_subtype_that_is_switched_off_is_passed_up(form: Form) -> None:
    frame = by_scapy(form, V4, INNER_V4)
    nic = receiver(form, V4, INNER_V4)
    without = OffloadCapabilities(udp_esp=ALL_UDP_ESP & ~form.subtype)
    nic.adapter._receiver.configure(TaskOffload(without))
    info, opened = nic.open(frame)
    assert PAYLOAD not in opened
    assert info is None or not info.next_crypto_done
    nic.adapter._receiver.configure(TaskOffload())
    info, opened = nic.open(frame)
    assert info is not None
    assert info.verified


def test_plain_esp_keeps_working_beside_udp_esp() -> None:
    peer, nic = Nic(), listening()
    plain = esp("aes-gcm-256", spi=0x7777)
    nic.add(plain, inbound=True)
    ordinary_udp = ip(INNER_V4, UDP, PAYLOAD)
    in_tunnel = framed(plain, ordinary_udp, 4)
    info, opened = nic.open(sealed(peer, plain, in_tunnel, peer.add(plain)))
    assert info is not None
    assert info.verified
    assert ordinary_udp in opened


def test_ah_around_udp_is_not_looked_through() -> None:
    # UDP encapsulation is for ESP only: a NAT breaks AH (sheet §9.1).
    auth = ah("hmac-sha1-96")
    body = by_scapy(FORMS["udp transport"], V4, INNER_V4)[34:]
    peer, nic = Nic(), listening()
    nic.add(auth, inbound=True)
    frame = sealed(peer, auth, framed(auth, body, UDP), peer.add(auth))
    info, opened = nic.open(frame)
    assert info == ReceiveInfo(True, False, CryptoStatus.SUCCESS)
    assert opened == frame


# Send


def in_udp(frame: bytes, ends: Ends, **ports: int) -> bytes:
    """A frame with ESP under its IP header, with the ESP put into UDP."""
    start = 34 if len(ends[0]) == 4 else 54
    return ethernet(ip(ends, UDP, nat_traversal(frame[start:], **ports)))


def sent(form: Form, outer: Ends, inner: Ends, nic: Nic) -> tuple[bytes, Any]:
    """A frame of a form as the transport frames it, and its out-of-band information."""
    length = 20 if len(outer[0]) == 4 else 40
    if not form.tunnel:
        one = framed(GCM, PAYLOAD, UDP, outer)
        handle = nic.add(GCM, outer, portion=None, udp_esp=form.subtype)
        info = one.info(handle)._replace(esp_header_offset=length + 8)
        return in_udp(one.frame, outer), info
    packet = ip(inner, UDP, PAYLOAD)
    shift = 0
    transport: Any = None
    if form.transport:
        transport = framed(INSIDE, PAYLOAD, UDP, inner)
        frame = in_udp(transport.frame, inner) if form.udp_inside else transport.frame
        packet = frame[14:]
        shift = transport.esp - 14 + 8 * form.udp_inside
    around = framed(GCM, packet, 4 if len(inner[0]) == 4 else 41, outer)
    frame = in_udp(around.frame, outer) if form.udp_outside else around.frame
    tunnel = nic.add(GCM, outer, portion=None, udp_esp=form.subtype if form.udp_outside else 0)
    if transport is None:
        return frame, around.info(tunnel)._replace(esp_header_offset=length + 8)
    handle = nic.add(INSIDE, inner, portion=None, udp_esp=form.subtype if form.udp_inside else 0)
    text = around.text - 14 + 8 * form.udp_outside
    info = transport.info(handle)._replace(tunnel_handle=tunnel, esp_header_offset=text + shift)
    return frame, info


@pytest.mark.rule(156)
@EVERY_FAMILY
@EVERY_FORM
def test_scapy_opens_what_the_nic_sealed_in_udp(form: Form, outer: Ends, inner: Ends) -> None:
    nic = Nic()
    frame, info = sent(form, outer, inner, nic)
    buffer = nic.seal(frame, info)
    assert buffer.status is NdisStatus.SUCCESS
    packet = scapy_class(outer)(bytes(buffer.frame[14:]))
    if form.tunnel:
        packet = scapy_sa(GCM, outer, form.udp_outside).decrypt(packet)
        if form.transport:
            packet = scapy_sa(INSIDE, None, form.udp_inside).decrypt(scapy_class(inner)(bytes(packet)))
    else:
        packet = scapy_sa(GCM, None, True).decrypt(packet)
    assert bytes(packet).endswith(PAYLOAD)
    assert buffer.frame[: 14 + info.esp_header_offset + 8][:14] == frame[:14]


@pytest.mark.rule(141)
def test_destination_port_of_a_send_is_the_drivers_business() -> None:
    nic = Nic()
    frame, info = sent(FORMS["udp transport"], V4, INNER_V4, nic)
    elsewhere = frame[:36] + (40_000).to_bytes(2, "big") + frame[38:]
    assert nic.seal(elsewhere, info).status is NdisStatus.SUCCESS


@pytest.mark.parametrize(("at", "value"), [(38, 0xFFFF), (39, 7), (41, 1), (40, 0x5A)])
def test_udp_header_that_does_not_fit_fails_the_send(at: int, value: int) -> None:
    nic = Nic()
    frame, info = sent(FORMS["udp transport"], V4, INNER_V4, nic)
    broken = bytearray(frame)
    broken[at] = value & 0xFF
    assert nic.seal(bytes(broken), info).status is NdisStatus.FAILURE
    assert nic.seal(frame, info).status is NdisStatus.SUCCESS


def test_packet_that_ends_in_its_udp_header_fails_the_send() -> None:
    nic = Nic()
    frame, info = sent(FORMS["udp transport"], V4, INNER_V4, nic)
    for length in range(len(frame) - 34):
        short = ethernet(ip(V4, UDP, frame[34 : 34 + length]))
        assert nic.seal(short, info).status is NdisStatus.FAILURE, length


@pytest.mark.parametrize("named", [0, *(1 << bit for bit in range(4))])
def test_send_whose_encapsulation_is_not_the_sas_fails(named: int) -> None:
    nic = Nic()
    one = framed(GCM, PAYLOAD)
    handle = nic.add(GCM, portion=None, udp_esp=named)
    plain = nic.seal(one.frame, one.info(handle))
    wrapped = nic.seal(in_udp(one.frame, V4), one.info(handle)._replace(esp_header_offset=28))
    assert (plain.status is NdisStatus.SUCCESS) is (named in (0, 8))
    assert (wrapped.status is NdisStatus.SUCCESS) is (named in (1, 2, 4))


@pytest.mark.rule(158)
def test_udp_inside_a_udp_tunnel_fails_the_send() -> None:
    nic = Nic()
    inside = framed(INSIDE, PAYLOAD, UDP, INNER_V4)
    packet = in_udp(inside.frame, INNER_V4)[14:]
    around = framed(GCM, packet, 4)
    tunnel = nic.add(GCM, portion=None, udp_esp=TRANSPORT_OVER_UDP_ESP_TUNNEL)
    for subtype in (UDP_ESP_TRANSPORT, UDP_ESP_TRANSPORT_OVER_TUNNEL):
        handle = nic.add(INSIDE, INNER_V4, portion=None, udp_esp=subtype)
        info = inside.info(handle)._replace(tunnel_handle=tunnel, esp_header_offset=20 + 8 + 16 + 20 + 8)
        assert nic.seal(in_udp(around.frame, V4), info).status is NdisStatus.FAILURE


@pytest.mark.parametrize(
    ("subtype", "status"),
    [(UDP_ESP_TUNNEL, NdisStatus.FAILURE), (TRANSPORT_OVER_UDP_ESP_TUNNEL, NdisStatus.SUCCESS)],
)
def test_esp_goes_into_a_udp_tunnel_of_the_subtype_that_has_it(subtype: int, status: NdisStatus) -> None:
    nic = Nic()
    inside = framed(INSIDE, PAYLOAD, UDP, INNER_V4)
    around = framed(GCM, inside.frame[14:], 4)
    tunnel = nic.add(GCM, portion=None, udp_esp=subtype)
    info = inside.info(nic.add(INSIDE, INNER_V4))
    info = info._replace(tunnel_handle=tunnel, esp_header_offset=20 + 8 + 16 + 20)
    assert nic.seal(in_udp(around.frame, V4), info).status is status


@pytest.mark.rule(164)
def test_udp_without_a_handle_is_untouched() -> None:
    nic = Nic()
    frame = in_udp(framed(GCM, PAYLOAD).frame, V4)
    buffer = nic.seal(frame, transmit(OffloadHandle(NO_HANDLE)))
    assert (buffer.status, buffer.frame) == (NdisStatus.SUCCESS, frame)


def test_icv_of_udp_esp_does_not_cover_the_udp_header() -> None:
    frame = bytearray(by_scapy(FORMS["udp transport"], V4, INNER_V4))
    frame[34:36] = b"\x12\x34"
    info, _ = listening().open(bytes(frame))
    assert info is not None
    assert info.verified
    assert ESP not in (frame[23],)


def test_udp_esp_with_a_wrong_udp_checksum_goes_up_as_it_came() -> None:
    frame = bytearray(by_scapy(FORMS["udp transport"], V4, INNER_V4))
    frame[40:42] = b"\x12\x34"
    before = bytes(frame)
    info, after = listening().open(before)
    assert info is None
    assert bytes(after) == before
