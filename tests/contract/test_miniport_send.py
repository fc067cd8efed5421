"""The NIC's contract: sending (sheet §6, R159-R169, R197)."""

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from nic_frames import (
    AH_SHA256,
    CBC_SHA1,
    GCM,
    INNER_V4,
    INNER_V6,
    NO_HANDLE,
    UDP,
    V4,
    V6,
    Framed,
    Nic,
    Sa,
    ah,
    esp,
    ethernet,
    framed,
    ip,
    ipv4,
    sealed,
    transmit,
    udp,
)

from vnic.ipsec.association import Mode
from vnic.ndis.netbuffer import NetBuffer, OffloadHandle
from vnic.ndis.status import NdisStatus
from vnic.packet.vnet import DATA_VALID, GSO_NONE, GSO_TCPV4, NEEDS_CSUM, VnetHeader

PAYLOAD = udp(b"what the host sends")
BUNDLE = (GCM, AH_SHA256)


def refused(nic: Nic, frame: bytes, handle: OffloadHandle, sa: Sa = GCM, **offsets: Any) -> bool:
    """Whether the NIC refuses a frame whose trailer is that of PAYLOAD under `sa`."""
    info = transmit(handle, pad_length=sa.pad_length(len(PAYLOAD)), **offsets)
    return nic.seal(frame, info).status is NdisStatus.FAILURE


@pytest.mark.rule(4, 8)
@pytest.mark.rule(9)
@pytest.mark.rule(10)
@pytest.mark.rule(169)
def test_nic_writes_iv_cipher_text_and_icv_and_nothing_else() -> None:
    nic = Nic()
    one = framed(GCM, PAYLOAD)
    wire = sealed(nic, GCM, one, nic.add(GCM))
    assert len(wire) == len(one.frame)
    assert wire[: one.esp + 8] == one.frame[: one.esp + 8]
    assert wire[one.esp + 8 :] != one.frame[one.esp + 8 :]
    assert PAYLOAD not in wire


@pytest.mark.rule(164)
def test_frame_without_transmit_info_stays_as_it_is() -> None:
    nic = Nic()
    nic.add(GCM)
    buffer = NetBuffer(bytearray(framed(GCM, PAYLOAD).frame))
    wire = bytes(buffer.frame)
    nic.adapter.send([buffer])
    assert buffer.frame == wire
    assert buffer.status is NdisStatus.SUCCESS


@pytest.mark.rule(165)
@pytest.mark.parametrize("handle", [2, 99, -1])
def test_unknown_handle_fails_the_send(handle: int) -> None:
    nic = Nic()
    assert nic.add(GCM) == 1
    one = framed(GCM, PAYLOAD)
    assert nic.seal(one.frame, one.info(OffloadHandle(handle))).status is NdisStatus.FAILURE


@pytest.mark.rule(164)
def test_handle_zero_leaves_the_frame_as_it_is() -> None:
    nic = Nic()
    nic.add(GCM)
    one = framed(GCM, PAYLOAD)
    done, wire = nic.transmit([one.frame], one.info(NO_HANDLE))
    assert (done.status, wire) == (NdisStatus.SUCCESS, [one.frame])
    buffer = nic.seal(one.frame, transmit(NO_HANDLE))
    assert (buffer.status, buffer.frame) == (NdisStatus.SUCCESS, one.frame)


@pytest.mark.parametrize("sas", [GCM, AH_SHA256, BUNDLE], ids=["esp", "ah", "bundle"])
def test_inline_transport_cannot_send_what_it_framed_without_a_handle(sas: Any) -> None:
    # What it framed for IPsec would go out in clear.
    nic = Nic()
    nic.add(sas)
    one = framed(sas, PAYLOAD)
    assert nic.seal(one.frame, one.info(NO_HANDLE)).status is NdisStatus.FAILURE


def test_tunnel_handle_without_an_offload_handle_fails_the_send() -> None:
    # The driver wants a tunnel; sending the frame as it is would be in clear.
    nic = Nic()
    one = framed(GCM, PAYLOAD)
    info = one.info(NO_HANDLE)._replace(tunnel_handle=nic.add(GCM, portion=Mode.TUNNEL))
    assert nic.seal(one.frame, info).status is NdisStatus.FAILURE


@pytest.mark.rule(165)
def test_handle_of_an_inbound_sa_fails_the_send() -> None:
    nic = Nic()
    one = framed(GCM, PAYLOAD)
    assert nic.seal(one.frame, one.info(nic.add(GCM, inbound=True))).status is NdisStatus.FAILURE


@pytest.mark.rule(167)
@pytest.mark.rule(197)
def test_burst_keeps_its_order_and_one_bad_frame_harms_no_other() -> None:
    nic = Nic()
    gcm, bundle = nic.add(GCM), nic.add((CBC_SHA1, AH_SHA256))
    one, other = framed(GCM, PAYLOAD), framed((CBC_SHA1, AH_SHA256), PAYLOAD)
    burst = [
        NetBuffer(bytearray(one.frame), None, one.info(gcm)),
        NetBuffer(bytearray(b"clear")),
        NetBuffer(bytearray(one.frame), None, one.info(OffloadHandle(50))),
        NetBuffer(bytearray(other.frame), None, other.info(bundle)),
    ]
    order = list(burst)
    nic.adapter.send(burst)
    assert all(left is right for left, right in zip(burst, order, strict=True))
    assert [buffer.status for buffer in burst] == [
        NdisStatus.SUCCESS,
        NdisStatus.SUCCESS,
        NdisStatus.FAILURE,
        NdisStatus.SUCCESS,
    ]


@pytest.mark.rule(98)
def test_bundle_is_sealed_esp_first_and_ah_over_the_result() -> None:
    ours, theirs = Nic(), Nic()
    one = framed(BUNDLE, PAYLOAD)
    wire = sealed(ours, BUNDLE, one, ours.add(BUNDLE))
    # The peer has the two SAs alone: AH must hold over what ESP made.
    theirs.add(AH_SHA256, inbound=True)
    info, opened = theirs.open(wire)
    assert info is not None
    assert info.verified
    assert opened == wire
    theirs.add(GCM, inbound=True)
    info, opened = theirs.open(wire)
    assert info is not None
    assert info.verified
    assert opened[one.text :].startswith(PAYLOAD)


def both_portions(
    transport: Any, tunnel: Any, outer: tuple[bytes, bytes], inner: tuple[bytes, bytes]
) -> tuple[bytes, Framed, Framed]:
    """A transport portion inside a tunnel portion: the frame, and where each portion's things are."""
    inside = framed(transport, PAYLOAD, UDP, inner)
    packet = inside.frame[14:]
    around = framed(tunnel, packet, 4 if len(inner[0]) == 4 else 41, outer)
    return around.frame, inside, around


PORTIONS: dict[str, Any] = {
    "esp": esp("aes-gcm-256", spi=0x3001),
    "ah": ah("aes-gmac-128", spi=0x3002),
    "ah esp": (esp("3des-cbc", "hmac-md5-96", spi=0x3003), ah("hmac-sha1-96", spi=0x3004)),
}
INSIDE: dict[str, Any] = {
    "esp": esp("aes-cbc-256", "hmac-sha256-128", spi=0x4001),
    "ah": ah("hmac-sha256-128", spi=0x4002, icv=12),
    "ah esp": (esp("aes-cbc-128", spi=0x4003), ah("hmac-md5-96", spi=0x4004)),
}


@pytest.mark.rule(100)
@pytest.mark.rule(160)
@pytest.mark.parametrize("inner", [INNER_V4, INNER_V6], ids=["in-v4", "in-v6"])
@pytest.mark.parametrize("outer", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("tunnel", PORTIONS.values(), ids=PORTIONS)
@pytest.mark.parametrize("transport", INSIDE.values(), ids=INSIDE)
def test_transport_inside_tunnel_is_sealed_and_opened_portion_by_portion(
    transport: Any, tunnel: Any, outer: tuple[bytes, bytes], inner: tuple[bytes, bytes]
) -> None:
    ours, theirs = Nic(), Nic()
    frame, inside, around = both_portions(transport, tunnel, outer, inner)
    handles = [
        ours.add(transport, inner),
        ours.add(tunnel, outer, portion=Mode.TUNNEL),
    ]
    theirs.add(transport, inner, inbound=True)
    theirs.add(tunnel, outer, inbound=True, portion=Mode.TUNNEL)
    shift = around.text - 14
    info = transmit(
        handles[0],
        tunnel=handles[1],
        ah_offset=shift + inside.ah - 14 if inside.ah else 0,
        esp_offset=shift + inside.esp - 14 if inside.esp else 0,
        pad_length=inside.pad_length,
    )
    buffer = ours.seal(frame, info)
    assert buffer.status is NdisStatus.SUCCESS
    received, opened = theirs.open(bytes(buffer.frame))
    assert received is not None
    assert received.verified
    assert received.next_crypto_done
    text = around.text + inside.text - 14
    assert opened[text : text + len(PAYLOAD)] == PAYLOAD


def where(inside: Framed, around: Framed) -> dict[str, int]:
    """Header information of an ESP transport portion inside a tunnel portion."""
    return {"esp_offset": around.text - 14 + inside.esp - 14, "pad_length": inside.pad_length}


def test_transport_inside_tunnel_needs_the_capability() -> None:
    nic = Nic.able(transport_tunnel_combined=False)
    frame, inside, around = both_portions(INSIDE["esp"], PORTIONS["esp"], V4, INNER_V4)
    transport = nic.add(INSIDE["esp"], INNER_V4)
    tunnel = nic.add(PORTIONS["esp"], V4)
    info = transmit(transport, tunnel=tunnel, **where(inside, around))
    assert nic.seal(frame, info).status is NdisStatus.FAILURE


def test_tunnel_portion_that_names_another_packet_than_it_holds_fails_the_send() -> None:
    nic = Nic()
    inside = framed(INSIDE["esp"], PAYLOAD, UDP, INNER_V4)
    transport, tunnel = nic.add(INSIDE["esp"], INNER_V4), nic.add(PORTIONS["esp"], V4)
    for named, status in ((4, NdisStatus.SUCCESS), (41, NdisStatus.FAILURE), (6, NdisStatus.FAILURE)):
        around = framed(PORTIONS["esp"], inside.frame[14:], named)
        info = transmit(transport, tunnel=tunnel, **where(inside, around))
        assert nic.seal(around.frame, info).status is status


def test_packet_without_the_tunnel_portion_that_is_named_fails_the_send() -> None:
    nic = Nic()
    one = framed(GCM, PAYLOAD)
    info = one.info(nic.add(GCM))
    tunnel = nic.add(replace(GCM, label="tunnel"), portion=Mode.TUNNEL)
    assert nic.seal(one.frame, info._replace(tunnel_handle=tunnel)).status is NdisStatus.FAILURE
    assert nic.seal(one.frame, info).status is NdisStatus.SUCCESS


@pytest.mark.parametrize("wrong", ["transport", "tunnel", "swapped"])
def test_unknown_handle_of_either_portion_fails_the_send(wrong: str) -> None:
    nic = Nic()
    frame, inside, around = both_portions(INSIDE["esp"], PORTIONS["esp"], V4, INNER_V4)
    transport = nic.add(INSIDE["esp"], INNER_V4)
    tunnel = nic.add(PORTIONS["esp"], V4)
    handles = {
        "transport": (OffloadHandle(70), tunnel),
        "tunnel": (transport, OffloadHandle(70)),
        "swapped": (tunnel, transport),
    }[wrong]
    info = transmit(handles[0], tunnel=handles[1], **where(inside, around))
    assert nic.seal(frame, info).status is NdisStatus.FAILURE


@pytest.mark.rule(161)
@pytest.mark.parametrize("sas", [GCM, AH_SHA256, BUNDLE], ids=["esp", "ah", "bundle"])
def test_offsets_that_are_not_those_of_the_packet_fail_the_send(sas: Any) -> None:
    nic = Nic()
    handle = nic.add(sas)
    one = framed(sas, PAYLOAD)
    right = one.info(handle)
    for field in ("ah_header_offset", "esp_header_offset"):
        for offset in {0, 4, 20, 24, 40, 4096, -20} - {getattr(right, field)}:
            change: dict[str, Any] = {field: offset}
            info = right._replace(**change)
            assert nic.seal(one.frame, info).status is NdisStatus.FAILURE, (field, offset)
    assert nic.seal(one.frame, right).status is NdisStatus.SUCCESS


@pytest.mark.rule(34)
@pytest.mark.rule(162)
def test_offsets_count_from_the_ip_header_also_behind_vlan_tags_and_options() -> None:
    ours, theirs = Nic(), Nic()
    handle = ours.add(GCM)
    theirs.add(GCM, inbound=True)
    packet = ipv4(*V4, 50, GCM.wrap(PAYLOAD, UDP), options=b"\x94\x04\x00\x00")
    frame = ethernet(packet, tags=bytes.fromhex("88a80064 81000007"))
    buffer = ours.seal(frame, transmit(handle, esp_offset=24, pad_length=GCM.pad_length(len(PAYLOAD))))
    assert buffer.status is NdisStatus.SUCCESS
    info, opened = theirs.open(bytes(buffer.frame))
    assert info is not None
    assert info.verified
    assert PAYLOAD in opened


def test_esp_behind_ipv6_extension_headers_is_sealed() -> None:
    ours, theirs = Nic(), Nic()
    handle = ours.add(BUNDLE, V6)
    theirs.add(BUNDLE, V6, inbound=True)
    inner = AH_SHA256.wrap(GCM.wrap(PAYLOAD, UDP), 50)
    hop = bytes((60, 0, 5, 2, 0, 0, 1, 0))
    options = bytes((51, 0, 0x3E, 2, 9, 9, 1, 0))
    frame = ethernet(ip(V6, 0, hop + options + inner))
    pad_length = GCM.pad_length(len(PAYLOAD))
    buffer = ours.seal(frame, transmit(handle, ah_offset=56, esp_offset=56 + 32, pad_length=pad_length))
    assert buffer.status is NdisStatus.SUCCESS
    info, _ = theirs.open(bytes(buffer.frame))
    assert info is not None
    assert info.verified


@pytest.mark.parametrize("able", ["ipv4_options", "ipv6_non_ipsec_extension_headers"])
def test_options_beyond_the_capabilities_fail_the_send(able: str) -> None:
    nic = Nic.able(**{able: False})
    if able == "ipv4_options":
        frame = ethernet(ipv4(*V4, 50, GCM.wrap(PAYLOAD, UDP), options=b"\x01" * 4))
        assert refused(nic, frame, nic.add(GCM), esp_offset=24)
    else:
        frame = ethernet(ip(V6, 60, bytes((50, 0, 1, 4, 0, 0, 0, 0)) + GCM.wrap(PAYLOAD, UDP)))
        assert refused(nic, frame, nic.add(GCM, V6), esp_offset=48)


@pytest.mark.rule(16)
@pytest.mark.parametrize("fragment", [0x2000, 0x0001, 0x2001])
def test_fragment_fails_the_send(fragment: int) -> None:
    nic = Nic()
    frame = ethernet(ipv4(*V4, 50, GCM.wrap(PAYLOAD, UDP), fragment=fragment))
    assert refused(nic, frame, nic.add(GCM), esp_offset=20)


def test_sa_of_the_other_ip_version_fails_the_send() -> None:
    nic = Nic()
    one, six = framed(GCM, PAYLOAD), framed(GCM, PAYLOAD, addresses=V6)
    handle = nic.add(GCM, V6)
    assert nic.seal(one.frame, one.info(handle)).status is NdisStatus.FAILURE
    assert nic.seal(six.frame, six.info(handle)).status is NdisStatus.SUCCESS


def test_header_of_the_other_protocol_fails_the_send() -> None:
    nic = Nic()
    esp_frame, ah_frame = framed(GCM, PAYLOAD), framed(AH_SHA256, PAYLOAD)
    gcm, auth, bundle = nic.add(GCM), nic.add(AH_SHA256), nic.add((CBC_SHA1, AH_SHA256))
    assert refused(nic, ah_frame.frame, gcm, esp_offset=20)
    assert refused(nic, esp_frame.frame, auth, ah_offset=20)
    assert refused(nic, esp_frame.frame, bundle, CBC_SHA1, ah_offset=20, esp_offset=48)
    assert refused(nic, ah_frame.frame, bundle, CBC_SHA1, ah_offset=20, esp_offset=52)
    assert refused(nic, ethernet(ip(V4, UDP, PAYLOAD)), gcm, esp_offset=20)


def test_packet_whose_protocol_field_says_otherwise_fails_the_send() -> None:
    nic = Nic()
    for sas, positions in ((GCM, [23]), (AH_SHA256, [23]), ((CBC_SHA1, AH_SHA256), [23, 34])):
        handle = nic.add(sas)
        one = framed(sas, PAYLOAD)
        for position in positions:
            for protocol in {UDP, 50, 51} - {one.frame[position]}:
                frame = bytearray(one.frame)
                frame[position] = protocol
                assert nic.seal(bytes(frame), one.info(handle)).status is NdisStatus.FAILURE


@pytest.mark.parametrize("sas", [GCM, AH_SHA256, (CBC_SHA1, AH_SHA256)], ids=["esp", "ah", "bundle"])
def test_packet_that_ends_in_its_ipsec_headers_fails_the_send(sas: Any) -> None:
    nic = Nic()
    handle = nic.add(sas)
    one = framed(sas, b"", 59)
    for length in range(len(one.frame) - 34):
        short = ethernet(ip(V4, one.frame[23], one.frame[34 : 34 + length]))
        if sas is AH_SHA256 and length >= 32:
            continue
        assert nic.seal(short, one.info(handle)).status is NdisStatus.FAILURE, length


@pytest.mark.parametrize("more", [1, 2, 3, 18, 19])
def test_inner_packet_longer_than_its_tunnel_fails_the_send(more: int) -> None:
    nic = Nic()
    frame, inside, around = both_portions(INSIDE["ah"], PORTIONS["esp"], V4, INNER_V4)
    transport = nic.add(INSIDE["ah"], INNER_V4)
    tunnel = nic.add(PORTIONS["esp"], V4)
    grown = bytearray(frame)
    grown[around.text + 3] += more
    # There is padding of the tunnel behind the inner packet, which it may not reach into.
    info = transmit(transport, tunnel=tunnel, ah_offset=around.text - 14 + inside.ah - 14)
    assert frame[len(frame) - 18] == 3
    assert nic.seal(frame, info).status is NdisStatus.SUCCESS
    assert nic.seal(bytes(grown), info).status is NdisStatus.FAILURE


def test_frame_that_is_not_ip_or_too_short_fails_the_send() -> None:
    nic = Nic()
    handle = nic.add(GCM)
    whole = framed(GCM, PAYLOAD).frame
    for length in range(len(whole)):
        assert refused(nic, whole[:length], handle, esp_offset=20), length
    assert refused(nic, whole[:12] + b"\x08\x06" + whole[14:], handle, esp_offset=20)


def test_trailer_that_cannot_be_fails_the_send() -> None:
    nic = Nic()
    handle = nic.add(CBC_SHA1)
    one = framed(CBC_SHA1, PAYLOAD)
    trailer = len(one.frame) - 12 - 2
    for pad_length in (trailer - one.text + 1, 255):
        frame = bytearray(one.frame)
        frame[trailer] = pad_length
        info = one.info(handle)._replace(pad_length=pad_length)
        assert nic.seal(bytes(frame), info).status is NdisStatus.FAILURE
    unaligned = ethernet(ip(V4, 50, one.frame[34:-1]))
    info = one.info(handle)._replace(pad_length=unaligned[-14], next_header=unaligned[-13])
    assert nic.seal(unaligned, info).status is NdisStatus.FAILURE


@pytest.mark.parametrize(
    ("vnet", "status"),
    [
        (VnetHeader(NEEDS_CSUM, GSO_NONE, 0, 0, 34, 6), NdisStatus.FAILURE),
        (VnetHeader(0, GSO_TCPV4, 54, 1400, 0, 0), NdisStatus.FAILURE),
        (VnetHeader(DATA_VALID, GSO_NONE, 0, 0, 0, 0), NdisStatus.SUCCESS),
    ],
)
def test_open_checksum_or_superframe_cannot_be_sealed(vnet: VnetHeader, status: NdisStatus) -> None:
    nic = Nic()
    one = framed(GCM, PAYLOAD)
    buffer = NetBuffer(bytearray(one.frame), vnet, one.info(nic.add(GCM)))
    nic.adapter.send([buffer])
    assert buffer.status is status


@pytest.mark.rule(15)
@pytest.mark.parametrize("cipher", ["des-cbc", "3des-cbc", "aes-cbc-128"])
def test_nic_makes_unpredictable_ivs_for_block_ciphers(cipher: str) -> None:
    sa = esp(cipher, "hmac-sha1-96")
    nic = Nic()
    handle = nic.add(sa)
    one = framed(sa, PAYLOAD)
    end = one.text
    start = one.esp + 8
    frames = [sealed(nic, sa, one, handle) for _ in range(600)]
    assert len({frame[start:end] for frame in frames}) == 600
    # Never the last block of the packet before, which chained IVs would be.
    for before, after in pairwise(frames):
        assert before[-12 - (end - start) : -12] != after[start:end]


def test_counter_mode_ivs_never_come_twice() -> None:
    nic = Nic()
    sas = [replace(GCM, label=label) for label in range(5)]
    handles = [(sa, nic.add(sa)) for sa in sas]
    chooser = random.Random(8)
    seen: dict[object, set[bytes]] = {sa: set() for sa in sas}
    for _ in range(200):
        sa, handle = chooser.choice(handles)
        one = framed(sa, PAYLOAD)
        iv = sealed(nic, sa, one, handle)[one.esp + 8 : one.esp + 16]
        assert iv not in seen[sa]
        seen[sa].add(iv)


@pytest.mark.rule(10)
def test_sequence_number_goes_out_as_the_transport_wrote_it() -> None:
    nic = Nic()
    handle = nic.add(BUNDLE)
    for number in (1, 1, 7, 0xFFFFFFFF, 0):
        one = framed(BUNDLE, PAYLOAD, sequence=number)
        wire = sealed(nic, BUNDLE, one, handle)
        assert wire[one.esp + 4 : one.esp + 8] == number.to_bytes(4, "big")
        assert wire[one.ah + 8 : one.ah + 12] == number.to_bytes(4, "big")


def test_bytes_behind_the_packet_stay() -> None:
    nic = Nic()
    one = framed(GCM, PAYLOAD)
    wire = sealed(nic, GCM, replace(one, frame=one.frame + b"behind"), nic.add(GCM))
    assert wire.endswith(b"behind")


@pytest.mark.rule(161)
@pytest.mark.rule(191)
@pytest.mark.parametrize("sas", [GCM, BUNDLE], ids=["esp", "bundle"])
def test_next_header_or_pad_length_other_than_the_trailers_fails_the_send(sas: Any) -> None:
    nic = Nic()
    one = framed(sas, PAYLOAD)
    right = one.info(nic.add(sas))
    assert (right.next_header, right.pad_length) == (UDP, 3)
    for wrong in (right._replace(next_header=6), right._replace(pad_length=4), right._replace(pad_length=0)):
        assert nic.seal(one.frame, wrong).status is NdisStatus.FAILURE
    assert nic.seal(one.frame, right).status is NdisStatus.SUCCESS


@pytest.mark.rule(191)
def test_header_information_without_esp_has_no_trailer_to_agree_with() -> None:
    nic = Nic()
    one = framed(AH_SHA256, PAYLOAD)
    info = one.info(nic.add(AH_SHA256))._replace(next_header=0, pad_length=9)
    assert nic.seal(one.frame, info).status is NdisStatus.SUCCESS
