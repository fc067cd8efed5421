"""The NIC's contract: receiving (sheet §7, R17, R170-R187, and the negative packets nobody publishes)."""

import struct
from dataclasses import replace
from typing import Any

import pytest
from nic_frames import (
    AH_SHA256,
    AH_SUITES,
    CBC_SHA1,
    ESP,
    ESP_SUITES,
    GCM,
    INNER_V4,
    INNER_V6,
    UDP,
    V4,
    V6,
    Nic,
    Sa,
    ah,
    checksum,
    esp,
    ethernet,
    framed,
    ip,
    ipv4,
    sealed,
    suite_id,
    transmit,
    udp,
)

from vnic.ipsec.association import Mode
from vnic.ndis.capabilities import OffloadCapabilities, TaskOffload
from vnic.ndis.netbuffer import NetBuffer, ReceiveInfo
from vnic.ndis.status import CryptoStatus

PAYLOAD = udp(b"what the peer sent")
BUNDLE = (GCM, AH_SHA256)
Sas = Sa | tuple[Sa, ...]


def wire(sas: Sas, payload: bytes = PAYLOAD, next_header: int = UDP, **options: Any) -> bytes:
    """A frame a peer sealed under one IP header."""
    peer = Nic()
    one = framed(sas, payload, next_header, **options)
    return sealed(peer, sas, one, peer.add(sas, options.get("addresses", V4)))


def tunnelled(
    transport: Sas, tunnel: Sas, outer: tuple[bytes, bytes] = V4, inner: tuple[bytes, bytes] = INNER_V4
) -> bytes:
    """A frame with a transport portion inside a tunnel portion, sealed one after the other."""
    packet = wire(transport, addresses=inner)[14:]
    return wire(tunnel, packet, 4 if len(inner[0]) == 4 else 41, addresses=outer)


def receiver(
    *sas: Sas,
    addresses: tuple[bytes, bytes] = V4,
    portion: Mode | None = Mode.TRANSPORT,
    **able: object,
) -> Nic:
    nic = Nic.able(**able)
    for one in sas:
        nic.add(one, addresses, inbound=True, portion=portion)
    return nic


def good(info: ReceiveInfo | None) -> ReceiveInfo:
    assert info is not None
    assert info.verified, info
    return info


def failed(nic: Nic, frame: bytes, status: CryptoStatus, *, both: bool = False) -> None:
    """The frame fails with that status and stays as it came, byte for byte."""
    info, after = nic.open(frame)
    assert info == ReceiveInfo(True, both, status)
    assert not info.verified
    assert after == frame


def untouched(nic: Nic, frame: bytes) -> None:
    assert nic.open(frame) == (None, frame)


def flipped(frame: bytes, position: int) -> bytes:
    mutated = bytearray(frame)
    mutated[position] ^= 1
    return bytes(mutated)


# One portion


@pytest.mark.rule(4)
@pytest.mark.rule(170)
@pytest.mark.rule(176)
@pytest.mark.rule(179)
@pytest.mark.rule(180)
@pytest.mark.rule(182)
@pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("sa", ESP_SUITES, ids=suite_id)
def test_good_esp_packet_is_opened_and_reported(sa: Sa, addresses: tuple[bytes, bytes]) -> None:
    frame = wire(sa, addresses=addresses)
    one = framed(sa, PAYLOAD, addresses=addresses)
    info, opened = receiver(sa, addresses=addresses).open(frame)
    pad_length = -(len(PAYLOAD) + 2) % sa.block_length
    assert info == ReceiveInfo(True, False, CryptoStatus.SUCCESS, False, True, UDP, pad_length)
    assert opened[: one.text] == frame[: one.text]
    assert opened[one.text : len(frame) - sa.icv_length] == one.frame[one.text : len(frame) - sa.icv_length]
    assert opened[len(frame) - sa.icv_length :] == frame[len(frame) - sa.icv_length :]


@pytest.mark.rule(4, 170, 180)
@pytest.mark.rule(182)
@pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("sa", AH_SUITES, ids=suite_id)
def test_good_ah_packet_is_reported_without_header_info(sa: Sa, addresses: tuple[bytes, bytes]) -> None:
    frame = wire(sa, addresses=addresses)
    info, opened = receiver(sa, addresses=addresses).open(frame)
    assert info == ReceiveInfo(True, False, CryptoStatus.SUCCESS)
    assert opened == frame


@pytest.mark.rule(179)
def test_bundle_of_one_portion_is_one_payload() -> None:
    info, _ = receiver(BUNDLE).open(wire(BUNDLE))
    assert not good(info).next_crypto_done


@pytest.mark.rule(179)
@pytest.mark.parametrize("portion", [Mode.TRANSPORT, Mode.TUNNEL, None])
def test_sas_of_one_portion_may_be_offloaded_alone(portion: Mode | None) -> None:
    info, _ = receiver(GCM, AH_SHA256, portion=portion).open(wire(BUNDLE))
    assert not good(info).next_crypto_done
    assert good(info).header_info_set


@pytest.mark.rule(179)
def test_ah_of_transport_mode_around_esp_of_tunnel_mode_is_one_portion() -> None:
    nic = receiver(AH_SHA256)
    nic.add(GCM, inbound=True, portion=Mode.TUNNEL)
    info, _ = nic.open(wire(BUNDLE, ip(INNER_V4, UDP, PAYLOAD), 4))
    assert not good(info).next_crypto_done


@pytest.mark.rule(171)
@pytest.mark.rule(197)
def test_burst_keeps_every_frame_in_its_place() -> None:
    nic = receiver(GCM)
    frames = [wire(GCM), ethernet(ip(V4, UDP, PAYLOAD)), flipped(wire(GCM), -1), b"", wire(CBC_SHA1)]
    burst = [NetBuffer(bytearray(frame)) for frame in frames]
    order = list(burst)
    nic.adapter.receive(burst)
    assert all(left is right for left, right in zip(burst, order, strict=True))
    verified = [buffer.receive.verified if buffer.receive else None for buffer in burst]
    assert verified == [True, None, False, None, False]


def test_an_earlier_verdict_does_not_stay_on_the_frame() -> None:
    buffer = NetBuffer(bytearray(wire(GCM)))
    receiver(GCM).adapter.receive([buffer])
    assert buffer.receive is not None
    receiver().adapter.receive([buffer])
    assert buffer.receive is None


# Not processed


@pytest.mark.rule(6, 86)
@pytest.mark.rule(174)
@pytest.mark.rule(181)
def test_what_is_not_ipsec_or_has_no_sa_stays_untouched() -> None:
    nic = receiver(GCM)
    for frame in (
        b"",
        bytes(14),
        ethernet(ip(V4, UDP, PAYLOAD)),
        ethernet(ip(V6, UDP, PAYLOAD)),
        bytes(12) + b"\x08\x06" + bytes(28),
        wire(replace(GCM, spi=0x9999)),
        wire(GCM, addresses=V6),
        wire(AH_SHA256),
        wire(replace(AH_SHA256, spi=GCM.spi)),
        ethernet(ip(V4, 4, wire(GCM, addresses=INNER_V4)[14:])),
    ):
        untouched(nic, frame)


@pytest.mark.rule(173)
def test_destination_must_be_that_of_the_sa() -> None:
    untouched(receiver(GCM), wire(GCM, addresses=(V4[0], INNER_V4[1])))


@pytest.mark.rule(99)
def test_source_must_be_that_of_the_sa_unless_it_is_a_wildcard() -> None:
    frame = wire(GCM, addresses=(INNER_V4[0], V4[1]))
    untouched(receiver(GCM), frame)
    for addresses in ((bytes(4), V4[1]), (bytes(4), bytes(4)), (INNER_V4[0], bytes(4))):
        good(receiver(GCM, addresses=addresses).open(frame)[0])
    frame6 = wire(GCM, addresses=(INNER_V6[0], V6[1]))
    untouched(receiver(GCM, addresses=V6), frame6)
    good(receiver(GCM, addresses=(bytes(16), V6[1])).open(frame6)[0])


@pytest.mark.rule(6, 181)
@pytest.mark.rule(17)
@pytest.mark.parametrize("fragment", [0x2000, 0x2001, 0x0005])
@pytest.mark.parametrize("sa", [GCM, AH_SHA256], ids=suite_id)
def test_fragment_stays_untouched(sa: Sa, fragment: int) -> None:
    frame = bytearray(wire(sa))
    frame[20:22] = fragment.to_bytes(2, "big")
    untouched(receiver(sa), bytes(frame))


@pytest.mark.rule(6, 181)
@pytest.mark.rule(17)
def test_ipv6_fragment_stays_untouched() -> None:
    body = wire(GCM, addresses=V6)[54:]
    for field in (0x0001, 0x0008):
        header = struct.pack(">BBHI", ESP, 0, field, 7)
        untouched(receiver(GCM, addresses=V6), ethernet(ip(V6, 44, header + body)))


@pytest.mark.rule(5, 6, 181)
@pytest.mark.rule(175)
def test_options_beyond_the_capabilities_stay_untouched() -> None:
    body = wire(GCM)[34:]
    frame = ethernet(ipv4(*V4, ESP, body, options=b"\x01" * 4))
    untouched(receiver(GCM, ipv4_options=False), frame)
    good(receiver(GCM).open(frame)[0])
    body = wire(GCM, addresses=V6)[54:]
    frame = ethernet(ip(V6, 60, bytes((ESP, 0, 1, 4, 0, 0, 0, 0)) + body))
    untouched(receiver(GCM, addresses=V6, ipv6_non_ipsec_extension_headers=False), frame)
    good(receiver(GCM, addresses=V6).open(frame)[0])


@pytest.mark.rule(5, 6, 181)
@pytest.mark.rule(175)
def test_ah_and_esp_in_one_packet_beyond_the_capabilities_stay_untouched() -> None:
    frame = wire((CBC_SHA1, AH_SHA256))
    untouched(receiver(CBC_SHA1, AH_SHA256, ah_esp_combined=False), frame)
    good(receiver(CBC_SHA1, AH_SHA256).open(frame)[0])


@pytest.mark.rule(5, 6, 181)
@pytest.mark.rule(175)
def test_two_portions_beyond_the_capabilities_stay_untouched() -> None:
    frame = tunnelled(GCM, replace(CBC_SHA1, spi=7777))
    for able in (False, True):
        nic = receiver(GCM, addresses=INNER_V4, transport_tunnel_combined=able)
        nic.add(replace(CBC_SHA1, spi=7777), inbound=True, portion=Mode.TUNNEL)
        if able:
            good(nic.open(frame)[0])
        else:
            untouched(nic, frame)


# Two portions


TUNNELS: dict[str, Sas] = {
    "esp": esp("aes-gcm-256", spi=0x3001),
    "cbc": esp("aes-cbc-128", "hmac-sha256-128", spi=0x3005),
    "ah": ah("aes-gmac-128", spi=0x3002),
    "ah esp": (esp("3des-cbc", "hmac-md5-96", spi=0x3003), ah("hmac-sha1-96", spi=0x3004)),
}


@pytest.mark.rule(100)
@pytest.mark.rule(177)
@pytest.mark.rule(178)
@pytest.mark.parametrize("portion", [Mode.TUNNEL, None])
@pytest.mark.parametrize("outer", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("inner", [INNER_V4, INNER_V6], ids=["in-v4", "in-v6"])
@pytest.mark.parametrize("tunnel", TUNNELS.values(), ids=TUNNELS)
def test_transport_inside_tunnel_is_opened_to_the_end(
    tunnel: Sas, inner: tuple[bytes, bytes], outer: tuple[bytes, bytes], portion: Mode | None
) -> None:
    nic = receiver(CBC_SHA1, addresses=inner, portion=None if portion is None else Mode.TRANSPORT)
    nic.add(tunnel, outer, inbound=True, portion=portion)
    info, opened = nic.open(tunnelled(CBC_SHA1, tunnel, outer, inner))
    assert good(info).next_crypto_done
    assert (good(info).next_header, good(info).pad_length) == (UDP, -(len(PAYLOAD) + 2) % 16)
    assert PAYLOAD in opened


@pytest.mark.rule(177)
def test_inner_layer_without_an_sa_stays_as_it_came_and_the_outer_counts() -> None:
    inside = wire(CBC_SHA1, addresses=INNER_V4)[14:]
    nic = receiver(GCM, portion=Mode.TUNNEL)
    info, opened = nic.open(wire(GCM, inside, 4))
    assert not good(info).next_crypto_done
    assert good(info).next_header == 4
    assert inside in opened


def test_inner_fragment_stays_as_it_came() -> None:
    inside = bytearray(wire(CBC_SHA1, addresses=INNER_V4)[14:])
    inside[6] |= 0x20
    nic = receiver(CBC_SHA1, addresses=INNER_V4)
    nic.add(GCM, inbound=True, portion=Mode.TUNNEL)
    info, opened = nic.open(wire(GCM, bytes(inside), 4))
    assert not good(info).next_crypto_done
    assert inside in opened


@pytest.mark.parametrize("cut", [1, 5, 12, 19])
def test_inner_packet_that_is_none_ends_the_walk(cut: int) -> None:
    inside = wire(CBC_SHA1, addresses=INNER_V4)[14:]
    nic = receiver(CBC_SHA1, addresses=INNER_V4)
    nic.add(GCM, inbound=True, portion=Mode.TUNNEL)
    for broken in (inside[:cut], inside[:-cut], b"\x50" + inside[1:]):
        info, opened = nic.open(wire(GCM, broken, 4))
        assert not good(info).next_crypto_done
        assert broken in opened


def test_esp_behind_extension_headers_inside_a_tunnel_is_opened() -> None:
    cipher = wire(CBC_SHA1, addresses=INNER_V6)[54:]
    inside = ip(INNER_V6, 60, bytes((ESP, 0, 1, 4, 0, 0, 0, 0)) + cipher)
    nic = receiver(CBC_SHA1, addresses=INNER_V6)
    nic.add(GCM, inbound=True, portion=Mode.TUNNEL)
    info, opened = nic.open(wire(GCM, inside, 41))
    assert good(info).next_crypto_done
    assert PAYLOAD in opened


def test_packet_inside_transport_mode_is_not_looked_into() -> None:
    inside = wire(CBC_SHA1, addresses=INNER_V4)[14:]
    nic = receiver(CBC_SHA1, addresses=INNER_V4)
    nic.add(GCM, inbound=True, portion=Mode.TRANSPORT)
    info, opened = nic.open(wire(GCM, inside, 4))
    assert not good(info).next_crypto_done
    assert good(info).next_header == 4
    assert inside in opened


def test_more_layers_than_two_portions_have_fail() -> None:
    sas = [esp("aes-gcm-128", spi=0x6000 + number, label=number) for number in range(5)]
    frame = wire(sas[0], addresses=V4)
    nic = receiver(*sas, portion=Mode.TUNNEL)
    for number, sa in enumerate(sas[1:], 2):
        frame = wire(sa, frame[14:], 4)
        if number <= 4:
            info, _ = nic.open(frame)
            assert good(info).next_crypto_done
    failed(nic, frame, CryptoStatus.GENERIC_ERROR, both=True)


def test_ah_inside_esp_under_one_header_cannot_be_checked_and_fails() -> None:
    around = replace(GCM, spi=0x7100)
    body = AH_SHA256.wrap(PAYLOAD, UDP)
    failed(receiver(around, AH_SHA256), wire(around, body, 51), CryptoStatus.GENERIC_ERROR)


def test_esp_inside_esp_under_one_header_is_opened() -> None:
    around = replace(GCM, spi=0x7100, label="around")
    body = wire(CBC_SHA1)[34:]
    info, opened = receiver(around, CBC_SHA1).open(wire(around, body, ESP))
    assert good(info).next_header == UDP
    assert PAYLOAD in opened


@pytest.mark.parametrize("words", [1, 2, 3])
def test_extension_headers_between_ah_and_esp_are_passed_over(words: int) -> None:
    peer = Nic()
    out = peer.add(GCM, V6)
    cipher = sealed(peer, GCM, framed(GCM, PAYLOAD, addresses=V6), out)[54:]
    options = bytes((ESP, words - 1, 1, 8 * words - 4)) + bytes(8 * words - 4)
    frame = framed(AH_SHA256, options + cipher, 60, V6)
    authenticated = sealed(peer, AH_SHA256, frame, peer.add(AH_SHA256, V6))
    nic = receiver(GCM, AH_SHA256, addresses=V6)
    info, opened = nic.open(authenticated)
    assert good(info).header_info_set
    assert PAYLOAD in opened


def test_mode_of_ah_around_esp_shows_inside_the_esp() -> None:
    # With transport mode off, AH with ESP behind it may still be of a tunnel.
    nic = receiver(GCM, AH_SHA256, portion=None)
    nic.adapter._receiver.configure(TaskOffload(OffloadCapabilities(transport=False)))
    good(nic.open(wire(BUNDLE, ip(INNER_V4, UDP, PAYLOAD), 4))[0])
    untouched(nic, wire(BUNDLE))


# Wrong ICVs


def key_of_another(sas: Sas) -> Sas:
    """The same SAs with other keys."""
    if isinstance(sas, tuple):
        return tuple(replace(sa, label="else") for sa in sas)
    return replace(sas, label="else")


AUTH = {
    ("esp", Mode.TRANSPORT): CryptoStatus.TRANSPORT_ESP_AUTH_FAILED,
    ("ah", Mode.TRANSPORT): CryptoStatus.TRANSPORT_AH_AUTH_FAILED,
    ("esp", Mode.TUNNEL): CryptoStatus.TUNNEL_ESP_AUTH_FAILED,
    ("ah", Mode.TUNNEL): CryptoStatus.TUNNEL_AH_AUTH_FAILED,
}


@pytest.mark.rule(180)
@pytest.mark.rule(186)
@pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("portion", [Mode.TRANSPORT, Mode.TUNNEL])
@pytest.mark.parametrize("sa", [*ESP_SUITES, *AH_SUITES], ids=suite_id)
def test_packet_of_another_key_fails_under_the_name_of_its_portion(
    sa: Sa, portion: Mode, addresses: tuple[bytes, bytes]
) -> None:
    nic = receiver(sa, addresses=addresses, portion=portion)
    frame = wire(replace(sa, label="else"), addresses=addresses)
    failed(nic, frame, AUTH["ah" if sa.operation == 1 else "esp", portion])


@pytest.mark.parametrize("bad", ["esp", "ah"])
def test_bundle_fails_at_the_layer_that_is_wrong(bad: str) -> None:
    sealing = (
        (replace(GCM, label="else"), AH_SHA256) if bad == "esp" else (GCM, replace(AH_SHA256, label="else"))
    )
    failed(receiver(BUNDLE), wire(sealing), AUTH[bad, Mode.TRANSPORT])
    failed(receiver(*BUNDLE), wire(sealing), AUTH[bad, Mode.TRANSPORT])
    failed(receiver(BUNDLE, portion=Mode.TUNNEL), wire(sealing), AUTH[bad, Mode.TUNNEL])


def test_both_layers_wrong_is_told_of_the_outer_one() -> None:
    sealing = (replace(GCM, label="else"), replace(AH_SHA256, label="else"))
    failed(receiver(BUNDLE), wire(sealing), CryptoStatus.TRANSPORT_AH_AUTH_FAILED)


@pytest.mark.parametrize("tunnel", TUNNELS.values(), ids=TUNNELS)
def test_wrong_tunnel_portion_leaves_the_transport_portion_alone(tunnel: Sas) -> None:
    nic = receiver(CBC_SHA1, addresses=INNER_V4)
    nic.add(tunnel, inbound=True, portion=Mode.TUNNEL)
    status = AUTH["ah" if isinstance(tunnel, tuple) or tunnel.operation == 1 else "esp", Mode.TUNNEL]
    failed(nic, tunnelled(CBC_SHA1, key_of_another(tunnel)), status)


@pytest.mark.rule(177)
@pytest.mark.parametrize("tunnel", TUNNELS.values(), ids=TUNNELS)
@pytest.mark.parametrize("transport", [CBC_SHA1, AH_SHA256, BUNDLE], ids=["esp", "ah", "bundle"])
def test_wrong_transport_portion_puts_the_opened_tunnel_back(transport: Sas, tunnel: Sas) -> None:
    nic = receiver(transport, addresses=INNER_V4)
    nic.add(tunnel, inbound=True, portion=Mode.TUNNEL)
    frame = tunnelled(key_of_another(transport), tunnel)
    status = AUTH["esp" if transport is CBC_SHA1 else "ah", Mode.TRANSPORT]
    failed(nic, frame, status, both=True)
    good(nic.open(tunnelled(transport, tunnel))[0])


def test_portion_is_learned_from_good_packets_when_the_request_names_none() -> None:
    nic = receiver(GCM, portion=None)
    bad = flipped(wire(GCM), -1)
    failed(nic, bad, CryptoStatus.TRANSPORT_ESP_AUTH_FAILED)
    good(nic.open(wire(GCM, ip(INNER_V4, UDP, PAYLOAD), 4))[0])
    failed(nic, bad, CryptoStatus.TUNNEL_ESP_AUTH_FAILED)
    good(nic.open(wire(GCM))[0])
    failed(nic, bad, CryptoStatus.TRANSPORT_ESP_AUTH_FAILED)


def test_portion_of_ah_is_read_from_its_next_header_when_the_request_names_none() -> None:
    nic = receiver(AH_SHA256, portion=None)
    for next_header, status in (
        (4, CryptoStatus.TUNNEL_AH_AUTH_FAILED),
        (41, CryptoStatus.TUNNEL_AH_AUTH_FAILED),
        (UDP, CryptoStatus.TRANSPORT_AH_AUTH_FAILED),
    ):
        failed(nic, flipped(wire(AH_SHA256, PAYLOAD, next_header), -1), status)


def test_portion_of_a_bundle_is_learned_from_what_its_esp_holds() -> None:
    nic = receiver(BUNDLE, portion=None)
    bad = wire((GCM, replace(AH_SHA256, label="else")))
    failed(nic, bad, CryptoStatus.TRANSPORT_AH_AUTH_FAILED)
    good(nic.open(wire(BUNDLE, ip(INNER_V6, UDP, PAYLOAD), 41))[0])
    failed(nic, bad, CryptoStatus.TUNNEL_AH_AUTH_FAILED)


# Wrong lengths


def cut(frame: bytes, count: int) -> bytes:
    """The frame with the last bytes of its IPv4 packet gone and its length told accordingly."""
    packet = bytearray(frame[14 : len(frame) - count])
    packet[2:4] = len(packet).to_bytes(2, "big")
    packet[10:12] = bytes(2)
    packet[10:12] = checksum(bytes(packet[:20])).to_bytes(2, "big")
    return frame[:14] + bytes(packet)


@pytest.mark.parametrize("sa", ESP_SUITES, ids=suite_id)
def test_esp_packet_cut_anywhere_fails_and_never_opens(sa: Sa) -> None:
    nic = receiver(sa)
    frame = wire(sa)
    least = sa.header_length + 2 + sa.icv_length
    for count in range(1, len(frame) - 34 + 1):
        shorter = cut(frame, count)
        length = len(shorter) - 34
        text = length - sa.header_length - sa.icv_length
        block = sa.block_length if "cbc" in sa.encryption else 1
        if length < 4:
            untouched(nic, shorter)
        elif length < least or text % block:
            failed(nic, shorter, CryptoStatus.INVALID_PACKET_SYNTAX)
        else:
            failed(nic, shorter, CryptoStatus.TRANSPORT_ESP_AUTH_FAILED)


@pytest.mark.parametrize("sa", AH_SUITES, ids=suite_id)
def test_ah_packet_cut_anywhere_fails_and_never_verifies(sa: Sa) -> None:
    nic = receiver(sa)
    frame = wire(sa)
    header = frame[35] * 4 + 8
    for count in range(1, len(frame) - 34 + 1):
        shorter = cut(frame, count)
        length = len(shorter) - 34
        if length < 8:
            untouched(nic, shorter)
        elif length < header:
            failed(nic, shorter, CryptoStatus.INVALID_PACKET_SYNTAX)
        else:
            failed(nic, shorter, CryptoStatus.TRANSPORT_AH_AUTH_FAILED)


def test_bundle_cut_inside_its_esp_fails_at_ah_already() -> None:
    frame = wire(BUNDLE)
    for count in range(1, len(frame) - 14 - 20 - 32):
        failed(receiver(BUNDLE), cut(frame, count), CryptoStatus.TRANSPORT_AH_AUTH_FAILED)


@pytest.mark.parametrize("sa", AH_SUITES, ids=suite_id)
@pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
def test_ah_of_a_length_that_alignment_does_not_ask_for_fails(sa: Sa, addresses: tuple[bytes, bytes]) -> None:
    nic = receiver(sa, addresses=addresses)
    start = 34 if addresses is V4 else 54
    frame = bytearray(wire(sa, bytes(1100), addresses=addresses))
    right = frame[start + 1]
    needed = 12 + sa.iv_length + sa.icv_length
    for field in range(256):
        if field == right:
            continue
        frame[start + 1] = field
        length = field * 4 + 8
        legal = length == -(-needed // 8) * 8 or (addresses is V4 and length == needed)
        failed(
            nic,
            bytes(frame),
            CryptoStatus.TRANSPORT_AH_AUTH_FAILED if legal else CryptoStatus.INVALID_PACKET_SYNTAX,
        )


@pytest.mark.parametrize("alignment", [4, 8])
def test_ah_over_ipv4_may_be_aligned_to_four_or_eight(alignment: int) -> None:
    info, _ = receiver(AH_SHA256).open(wire(AH_SHA256, alignment=alignment))
    good(info)


def test_ah_with_a_reserved_field_that_is_not_zero_counts_with_it() -> None:
    peer = Nic()
    one = framed(AH_SHA256, PAYLOAD)
    frame = bytearray(one.frame)
    frame[36:38] = b"\x12\x34"
    sent = sealed(peer, AH_SHA256, replace(one, frame=bytes(frame)), peer.add(AH_SHA256))
    good(receiver(AH_SHA256).open(sent)[0])
    failed(receiver(AH_SHA256), flipped(sent, 36), CryptoStatus.TRANSPORT_AH_AUTH_FAILED)


@pytest.mark.parametrize(
    "sa", [GCM, CBC_SHA1, esp("null", "aes-gmac-128"), esp("null", "hmac-sha1-96")], ids=suite_id
)
def test_pad_length_beyond_the_payload_fails_though_the_icv_holds(sa: Sa) -> None:
    """Only a peer with the key can send this, so its frame is made with the sealer's inside."""
    peer = Nic()
    handle = peer.add(sa)
    one = framed(sa, b"x" * 30)
    frame = bytearray(one.frame)
    end = len(frame)
    stop = end - sa.icv_length
    frame[stop - 2] = stop - one.text - 1
    sealer = peer.adapter._table.outbound[handle].esp
    assert sealer is not None
    sealer._seal(frame, one.esp, stop, end, b"")
    failed(receiver(sa), bytes(frame), CryptoStatus.INVALID_PACKET_SYNTAX)
    nested = receiver(sa)
    nested.add(AH_SHA256, inbound=True)
    authenticated = framed(AH_SHA256, bytes(frame[34:]), ESP)
    failed(
        nested,
        sealed(peer, AH_SHA256, authenticated, peer.add(AH_SHA256)),
        CryptoStatus.INVALID_PACKET_SYNTAX,
    )


@pytest.mark.parametrize("bytes_of_text", [0, 1])
def test_esp_too_short_for_a_trailer_fails(bytes_of_text: int) -> None:
    packet = struct.pack(">II", GCM.spi, 1) + bytes(8 + bytes_of_text + 16)
    failed(receiver(GCM), ethernet(ip(V4, ESP, packet)), CryptoStatus.INVALID_PACKET_SYNTAX)


@pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("sa", [GCM, AH_SHA256], ids=suite_id)
def test_spi_behind_the_end_of_the_packet_is_not_read(sa: Sa, addresses: tuple[bytes, bytes]) -> None:
    """The bytes are there, but the IP header says that they are no part of the packet."""
    nic = receiver(sa, addresses=addresses)
    frame = bytearray(wire(sa, addresses=addresses))
    readable = 4 if sa is GCM else 8
    for length in range(12):
        if addresses is V4:
            frame[16:18] = (20 + length).to_bytes(2, "big")
        else:
            frame[18:20] = length.to_bytes(2, "big")
        if length < readable:
            untouched(nic, bytes(frame))
        else:
            failed(nic, bytes(frame), CryptoStatus.INVALID_PACKET_SYNTAX)


def test_ip_length_beyond_the_frame_stays_untouched() -> None:
    frame = wire(GCM)
    for short in (frame[:-1], frame[:60], frame[:42]):
        untouched(receiver(GCM), short)


def test_ethernet_padding_is_no_part_of_the_packet() -> None:
    sa = esp("null", "hmac-sha1-96")
    one = wire(sa, b"", 59)
    assert len(one) < 60
    good(receiver(sa).open(one + b"\xaa" * (60 - len(one)))[0])


@pytest.mark.parametrize("next_header", [59, 0, 17, 255])
def test_any_next_header_is_opened_and_told(next_header: int) -> None:
    info, _ = receiver(GCM).open(wire(GCM, b"payload.", next_header))
    assert good(info).next_header == next_header


def test_padding_bytes_are_not_the_nics_to_judge() -> None:
    peer = Nic()
    one = framed(GCM, b"x" * 29)
    frame = bytearray(one.frame)
    frame[one.text + 29] = 0x77
    info, _ = receiver(GCM).open(sealed(peer, GCM, replace(one, frame=bytes(frame)), peer.add(GCM)))
    assert good(info).pad_length == 1


# Wrong protocols


def test_bundle_without_its_ah_or_with_another_esp_fails() -> None:
    nic = receiver(BUNDLE)
    failed(nic, wire(GCM), CryptoStatus.INVALID_PROTOCOL)
    failed(nic, wire(AH_SHA256), CryptoStatus.INVALID_PROTOCOL)
    failed(nic, wire((replace(GCM, spi=0x7200), AH_SHA256)), CryptoStatus.INVALID_PROTOCOL)
    nic.add(replace(GCM, spi=0x7200), inbound=True)
    failed(nic, wire((replace(GCM, spi=0x7200), AH_SHA256)), CryptoStatus.INVALID_PROTOCOL)
    failed(nic, wire(AH_SHA256, AH_SHA256.wrap(PAYLOAD, UDP), 51), CryptoStatus.INVALID_PROTOCOL)
    failed(nic, wire(AH_SHA256, b"\0\0\x10", ESP), CryptoStatus.INVALID_PROTOCOL)


def test_bundle_of_the_tunnel_portion_without_its_ah_fails() -> None:
    nic = receiver(BUNDLE, portion=Mode.TUNNEL)
    failed(nic, wire(GCM, ip(INNER_V4, UDP, PAYLOAD), 4), CryptoStatus.INVALID_PROTOCOL)


def test_bundle_without_its_ah_inside_a_tunnel_fails_and_puts_the_tunnel_back() -> None:
    tunnel = esp("aes-gcm-256", spi=0x3001)
    nic = receiver(BUNDLE, addresses=INNER_V4)
    nic.add(tunnel, inbound=True, portion=Mode.TUNNEL)
    failed(nic, tunnelled(GCM, tunnel), CryptoStatus.INVALID_PROTOCOL, both=True)


# Extended sequence numbers


@pytest.mark.parametrize("sas", [replace(GCM, esn=True), replace(AH_SHA256, esn=True)], ids=suite_id)
def test_extended_number_is_followed_across_the_wrap_in_any_order(sas: Sa) -> None:
    peer, nic = Nic(), receiver(sas)
    handle = peer.add(sas)
    numbers = [0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF, 1 << 32, 1 << 32 | 1, 1 << 32 | 2]
    frames = {number: sealed(peer, sas, framed(sas, PAYLOAD, sequence=number), handle) for number in numbers}
    for number in (0xFFFFFFF0, 1 << 32 | 1, 0xFFFFFFFF, 1 << 32, 0xFFFFFFFE, 1 << 32 | 2):
        good(nic.open(frames[number])[0])


@pytest.mark.parametrize("sas", [replace(GCM, esn=True), replace(AH_SHA256, esn=True)], ids=suite_id)
def test_extended_number_is_followed_through_many_wraps(sas: Sa) -> None:
    peer, nic = Nic(), receiver(sas)
    handle = peer.add(sas)
    for number in range(0x7FFFFFFF, 5 << 32, 0x7FFFFFF1):
        good(nic.open(sealed(peer, sas, framed(sas, PAYLOAD, sequence=number), handle))[0])


@pytest.mark.parametrize("high", [0, 1, 5, 0xFFFFFFFF])
@pytest.mark.parametrize("sequence", [1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_first_packet_opens_whatever_the_lower_half_is(high: int, sequence: int) -> None:
    sa = replace(GCM, esn=True, high=high)
    good(receiver(sa).open(wire(sa, sequence=sequence))[0])


def test_extended_sa_does_not_open_packets_of_a_peer_without_and_the_other_way_round() -> None:
    extended = replace(GCM, esn=True)
    failed(receiver(extended), wire(GCM), CryptoStatus.TRANSPORT_ESP_AUTH_FAILED)
    failed(receiver(GCM), wire(extended), CryptoStatus.TRANSPORT_ESP_AUTH_FAILED)


def test_forged_number_does_not_move_what_the_nic_follows() -> None:
    sa = replace(GCM, esn=True)
    peer, nic = Nic(), receiver(sa)
    handle = peer.add(sa)
    first, second = (sealed(peer, sa, framed(sa, PAYLOAD, sequence=number), handle) for number in (5, 6))
    good(nic.open(first)[0])
    forged = bytearray(first)
    for low in (0x7FFFFFFF, 0x80000010, 0xFFFFFFFF):
        forged[38:42] = low.to_bytes(4, "big")
        failed(nic, bytes(forged), CryptoStatus.TRANSPORT_ESP_AUTH_FAILED)
    good(nic.open(second)[0])


# AH and the header it covers


@pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
def test_what_routers_change_does_not_matter_to_ah(addresses: tuple[bytes, bytes]) -> None:
    frame = bytearray(wire(AH_SHA256, addresses=addresses))
    if addresses is V4:
        frame[15] = 0xB8
        frame[20] ^= 0x40
        frame[22] = 3
        frame[24:26] = b"\x12\x34"
    else:
        frame[14:18] = b"\x6b\x81\x23\x45"
        frame[21] = 3
    good(receiver(AH_SHA256, addresses=addresses).open(bytes(frame))[0])


@pytest.mark.parametrize("position", [18, 19, 26, 30])
def test_what_routers_do_not_change_matters_to_ah(position: int) -> None:
    nic = receiver(AH_SHA256, addresses=(bytes(4), bytes(4)))
    failed(nic, flipped(wire(AH_SHA256), position), CryptoStatus.TRANSPORT_AH_AUTH_FAILED)


def test_source_routed_packet_arrives_changed_as_its_route_says() -> None:
    peer = Nic()
    hop = bytes((203, 0, 113, 9))
    route = bytes((131, 7, 4)) + V4[1] + b"\x01"
    leaving = ethernet(ipv4(V4[0], hop, 51, AH_SHA256.wrap(PAYLOAD, UDP), options=route))
    buffer = peer.seal(leaving, transmit(peer.add(AH_SHA256), ah_offset=28))
    assert buffer.status == 0
    arriving = bytearray(buffer.frame)
    arriving[30:34] = V4[1]
    arriving[36:41] = bytes((8,)) + hop
    good(receiver(AH_SHA256).open(bytes(arriving))[0])


def test_ah_over_options_that_do_not_fit_fails() -> None:
    body = wire(AH_SHA256)[34:]
    frame = ethernet(ipv4(*V4, 51, body, options=b"\x07\x09\x04\x00"))
    failed(receiver(AH_SHA256), frame, CryptoStatus.INVALID_PACKET_SYNTAX)


@pytest.mark.rule(34)
def test_vlan_tags_are_passed_over() -> None:
    for tags in ("81000005", "88a80005810000ff"):
        good(receiver(GCM).open(wire(GCM, tags=bytes.fromhex(tags)))[0])
        good(receiver(BUNDLE).open(wire(BUNDLE, tags=bytes.fromhex(tags)))[0])
