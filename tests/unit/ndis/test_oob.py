"""Slots of out-of-band information against numbers worked out by hand from the fact sheet (§5)."""

import pytest

from vnic.errors import PacketError
from vnic.ndis.netbuffer import ChecksumRequest, LargeSend, OffloadHandle, ReceiveInfo, TransmitInfo
from vnic.ndis.oob import (
    MAX_HEADER_OFFSET,
    NO_SLOTS,
    LargeSendComplete,
    Slots,
    describe,
    pack_completion,
    pack_packet_info_receive,
    pack_packet_info_transmit,
    pack_receive,
    pack_transmit,
    unpack_completion,
    unpack_packet_info_receive,
    unpack_packet_info_transmit,
    unpack_receive,
    unpack_transmit,
)
from vnic.ndis.status import CryptoStatus


def sent(
    handle: int = 7,
    *,
    tunnel: int = 0,
    next_header: int = 0,
    pad_length: int = 0,
    ah: int = 0,
    esp: int = 0,
    large_send: LargeSend | None = None,
    checksum: ChecksumRequest | None = None,
) -> TransmitInfo:
    return TransmitInfo(
        OffloadHandle(handle), OffloadHandle(tunnel), next_header, pad_length, ah, esp, large_send, checksum
    )


@pytest.mark.rule(159, 161, 162, 168)
@pytest.mark.parametrize(
    ("info", "slots"),
    [
        (sent(), Slots(ipsec=7)),
        (sent(0x0000000500000009), Slots(ipsec=0x0000000500000009)),
        (sent(next_header=6, pad_length=10, esp=20), Slots(ipsec=7, header=0x05000A06)),
        (sent(next_header=4, ah=40, esp=64), Slots(ipsec=7, header=0x100A0004)),
        (sent(pad_length=255, esp=1020), Slots(ipsec=7, header=0xFF00FF00)),
        (sent(tunnel=9), Slots(ipsec=7, tunnel=9)),
        (sent(0, large_send=LargeSend(1460, 54, 1, False)), Slots(large_send=54 << 20 | 1460)),
        (sent(large_send=LargeSend(1440, 74, 2, True)), Slots(ipsec=7, large_send=0xC4A005A0)),
        (sent(large_send=LargeSend(1460, 0, 2, False)), Slots(ipsec=7, large_send=0x400005B4)),
        (sent(0, checksum=ChecksumRequest(False, True, False, True, 34)), Slots(checksum=0x00220015)),
        (sent(0, checksum=ChecksumRequest(True, False, True, False, 54)), Slots(checksum=0x0036000A)),
    ],
)
def test_a_send_is_packed_and_unpacked_as_worked_out_by_hand(info: TransmitInfo, slots: Slots) -> None:
    assert pack_transmit(info) == slots
    assert unpack_transmit(slots) == info


@pytest.mark.rule(164)
def test_no_information_is_all_zero() -> None:
    assert pack_transmit(None) == NO_SLOTS == (0, 0, 0, 0, 0)
    assert unpack_transmit(NO_SLOTS) is None
    assert pack_receive(None) == NO_SLOTS
    assert unpack_receive(NO_SLOTS) is None


def test_reserved_bits_of_a_send_are_ignored() -> None:
    slots = Slots(checksum=0xFFFFFFFFFC00FFE0 | 0x00220015, large_send=0xFFFFFFFF00000000 | 0x400005B4)
    assert unpack_transmit(slots) == sent(
        0, large_send=LargeSend(1460, 0, 2, False), checksum=ChecksumRequest(False, True, False, True, 34)
    )
    # Bit 31 means nothing in LSOv1.
    assert unpack_transmit(Slots(large_send=0x800005B4)) == sent(0, large_send=LargeSend(1460, 0, 1, False))


@pytest.mark.parametrize("checksum", [0x4, 0x7, 0x03, 0x00220000])
def test_a_checksum_of_no_or_of_both_versions_is_no_legal_request(checksum: int) -> None:
    with pytest.raises(PacketError):
        unpack_transmit(Slots(checksum=checksum))


@pytest.mark.parametrize(
    "info",
    [
        pytest.param(sent(-1), id="negative handle"),
        pytest.param(sent(1 << 64), id="handle of 65 bits"),
        pytest.param(sent(esp=22), id="offset between words"),
        pytest.param(sent(ah=MAX_HEADER_OFFSET + 4), id="offset too large"),
        pytest.param(sent(pad_length=256), id="padding too long"),
        pytest.param(sent(next_header=-1), id="negative"),
        pytest.param(sent(large_send=LargeSend(1 << 20, 0, 2, False)), id="MSS of 21 bits"),
        pytest.param(sent(large_send=LargeSend(1, 1024, 2, False)), id="offset of 11 bits"),
        pytest.param(sent(large_send=LargeSend(1, 0, 1, True)), id="LSOv1 with IPv6"),
        pytest.param(sent(large_send=LargeSend(1, 0, 3, False)), id="LSOv3"),
        pytest.param(sent(checksum=ChecksumRequest(False, True, False, False, 1024)), id="TCP too far"),
    ],
)
def test_what_the_bits_cannot_hold_is_not_packed(info: TransmitInfo) -> None:
    with pytest.raises(PacketError):
        pack_transmit(info)


@pytest.mark.rule(176, 177, 180, 182, 183)
@pytest.mark.parametrize(
    ("info", "slots"),
    [
        (ReceiveInfo(True, False, CryptoStatus.SUCCESS), Slots(ipsec=0x2)),
        (ReceiveInfo(True, True, CryptoStatus.SUCCESS), Slots(ipsec=0x6)),
        (ReceiveInfo(True, False, CryptoStatus.TRANSPORT_ESP_AUTH_FAILED), Slots(ipsec=0x30002)),
        (ReceiveInfo(True, False, CryptoStatus.INVALID_PROTOCOL, True), Slots(ipsec=0x70003)),
        (ReceiveInfo(False, False, CryptoStatus.SUCCESS, True), Slots(ipsec=0x1)),
        (
            ReceiveInfo(True, False, CryptoStatus.SUCCESS, False, True, 6, 2),
            Slots(ipsec=0x2, header=0x10206),
        ),
        (
            ReceiveInfo(True, False, CryptoStatus.SUCCESS, False, True, 0, 0),
            Slots(ipsec=0x2, header=0x10000),
        ),
    ],
)
def test_a_receive_is_packed_and_unpacked_as_worked_out_by_hand(info: ReceiveInfo, slots: Slots) -> None:
    assert pack_receive(info) == slots
    assert unpack_receive(slots) == info


@pytest.mark.rule(182)
def test_header_members_without_header_info_set_are_neither_written_nor_read() -> None:
    info = ReceiveInfo(True, False, CryptoStatus.SUCCESS, next_header=6, pad_length=2)
    assert pack_receive(info).header == 0
    read = unpack_receive(Slots(ipsec=0x2, header=0xFFFEFFFF))
    assert read == ReceiveInfo(True, False, CryptoStatus.SUCCESS)


@pytest.mark.rule(181, 187)
def test_an_unprocessed_frame_of_v1_reads_as_nothing() -> None:
    assert pack_receive(ReceiveInfo(False, False, CryptoStatus.SUCCESS)) == NO_SLOTS


def test_reserved_bits_of_a_receive_are_ignored() -> None:
    assert unpack_receive(Slots(ipsec=0xFFFFFFFF0000FFFA)) == ReceiveInfo(True, False, CryptoStatus.SUCCESS)
    assert unpack_receive(Slots(checksum=9, ipsec=0xFFF8, large_send=9, tunnel=9, header=0xFF)) is None


@pytest.mark.rule(178)
def test_impossible_results_are_refused() -> None:
    for ipsec in (0x4, 0x80002, 0xFFFF0002):
        with pytest.raises(PacketError):
            unpack_receive(Slots(ipsec=ipsec))


@pytest.mark.rule(200)
def test_completions_of_large_sends_are_as_worked_out_by_hand() -> None:
    version_1, version_2 = LargeSend(1460, 54, 1, False), LargeSend(1460, 54, 2, True)
    assert pack_completion(version_1, 64240) == Slots(large_send=64240)
    assert pack_completion(version_2, 64240) == Slots(large_send=0x40000000)
    assert pack_completion(None) == NO_SLOTS
    assert unpack_completion(Slots(large_send=64240)) == LargeSendComplete(1, 64240)
    assert unpack_completion(Slots(large_send=0x40000000)) == LargeSendComplete(2, 0)
    with pytest.raises(PacketError):
        pack_completion(version_1, 1 << 30)


def test_the_packet_information_of_ndis_5_has_sixteen_bytes() -> None:
    data = bytes.fromhex("0700000000000000 0900000000000000")
    assert pack_packet_info_transmit(sent(tunnel=9)) == data
    assert unpack_packet_info_transmit(data) == sent(tunnel=9)
    assert unpack_packet_info_transmit(bytes(16)) is None
    data = bytes.fromhex("03000000 04000000 0000000000000000")
    info = ReceiveInfo(True, False, CryptoStatus.TUNNEL_AH_AUTH_FAILED, True)
    assert pack_packet_info_receive(info) == data
    assert unpack_packet_info_receive(data) == info
    assert pack_packet_info_receive(None) == bytes(16)
    assert unpack_packet_info_receive(bytes(16)) is None


def test_packet_information_of_ndis_5_that_is_none_is_refused() -> None:
    for unpack in (unpack_packet_info_transmit, unpack_packet_info_receive):
        for length in (0, 15, 17):
            with pytest.raises(PacketError):
                unpack(bytes(length))
    with pytest.raises(PacketError):
        unpack_packet_info_receive(bytes.fromhex("0200000008000000 0000000000000000"))
    with pytest.raises(PacketError):
        unpack_packet_info_receive(bytes.fromhex("0200000000000100 0000000000000000"))


def test_a_send_is_described_by_the_names_of_its_members() -> None:
    slots = pack_transmit(
        sent(
            0x100000007,
            tunnel=9,
            next_header=6,
            pad_length=2,
            esp=20,
            large_send=LargeSend(1440, 74, 2, True),
            checksum=ChecksumRequest(True, True, False, False, 74),
        )
    )
    assert describe(slots, "send") == {
        "IsIPv4": "0",
        "IsIPv6": "1",
        "TcpChecksum": "1",
        "UdpChecksum": "0",
        "IpHeaderChecksum": "0",
        "TcpHeaderOffset": "74",
        "OffloadHandle": "0x100000007",
        "MSS": "1440",
        "LargeSend.TcpHeaderOffset": "74",
        "Type": "LSOv2",
        "IPVersion": "IPv6",
        "TunnelHandle": "0x9",
        "NextHeader": "6",
        "PadLength": "2",
        "AhHeaderOffset": "0",
        "EspHeaderOffset": "20",
    }


def test_a_receive_is_described_by_the_names_of_its_members() -> None:
    slots = pack_receive(ReceiveInfo(True, False, CryptoStatus.TRANSPORT_ESP_AUTH_FAILED, False, True, 6, 2))
    assert describe(slots, "receive") == {
        "SaDeleteReq": "0",
        "CryptoDone": "1",
        "NextCryptoDone": "0",
        "CryptoStatus": "CRYPTO_TRANSPORT_ESP_AUTH_FAILED",
        "NextHeader": "6",
        "PadLength": "2",
        "HeaderInfoSet": "1",
    }
    assert describe(Slots(ipsec=0x90002), "receive")["CryptoStatus"] == "9"


def test_a_large_send_of_version_1_is_described_without_an_ip_version() -> None:
    slots = pack_transmit(sent(0, large_send=LargeSend(1460, 54, 1, False)))
    assert describe(slots, "send") == {"MSS": "1460", "TcpHeaderOffset": "54", "Type": "LSOv1"}


def test_a_completion_is_described_by_the_names_of_its_members() -> None:
    assert describe(Slots(large_send=64240), "complete") == {"TcpPayload": "64240", "Type": "LSOv1"}


def test_empty_slots_have_nothing_to_describe() -> None:
    assert describe(NO_SLOTS, "send") == describe(NO_SLOTS, "receive") == {}
