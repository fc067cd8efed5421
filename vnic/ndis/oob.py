"""The binary form of out-of-band information: the slots of the info array of a net buffer list.

Law: slot values to the values of `ndis.netbuffer` and back. Reserved bits are ignored on reading and 0 on
writing. The V1 structure of slot 1 has, in the little-endian form, the same bits as the V2 one.

Source: NDIS_IPSEC_OFFLOAD_V1_, _V2_, _V2_TUNNEL_, _V2_HEADER_NET_BUFFER_LIST_INFO,
NDIS_TCP_LARGE_SEND_OFFLOAD_, NDIS_TCP_IP_CHECKSUM_NET_BUFFER_LIST_INFO, NDIS_IPSEC_PACKET_INFO (sheet §5,
R161, R162, R176-R182, R189, R200).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from vnic.errors import PacketError
from vnic.ndis.layout import Bits, Layout, Member
from vnic.ndis.netbuffer import ChecksumRequest, LargeSend, OffloadHandle, ReceiveInfo, TransmitInfo
from vnic.ndis.status import CryptoStatus

CHECKSUM_TRANSMIT: Final = (
    Bits("IsIPv4", 0, 1),
    Bits("IsIPv6", 1, 1),
    Bits("TcpChecksum", 2, 1),
    Bits("UdpChecksum", 3, 1),
    Bits("IpHeaderChecksum", 4, 1),
    Bits("TcpHeaderOffset", 16, 10),
)
IPSEC_RECEIVE: Final = (
    Bits("SaDeleteReq", 0, 1),
    Bits("CryptoDone", 1, 1),
    Bits("NextCryptoDone", 2, 1),
    Bits("CryptoStatus", 16, 16),
)
HEADER_TRANSMIT: Final = (
    Bits("NextHeader", 0, 8),
    Bits("PadLength", 8, 8),
    Bits("AhHeaderOffset", 16, 8),
    Bits("EspHeaderOffset", 24, 8),
)
HEADER_RECEIVE: Final = (
    Bits("NextHeader", 0, 8),
    Bits("PadLength", 8, 8),
    Bits("HeaderInfoSet", 16, 1),
)
LARGE_SEND_V1_TRANSMIT: Final = (
    Bits("MSS", 0, 20),
    Bits("TcpHeaderOffset", 20, 10),
    Bits("Type", 30, 1),
)
LARGE_SEND_V2_TRANSMIT: Final = (*LARGE_SEND_V1_TRANSMIT, Bits("IPVersion", 31, 1))
LARGE_SEND_V1_COMPLETE: Final = (Bits("TcpPayload", 0, 30), Bits("Type", 30, 1))
LARGE_SEND_V2_COMPLETE: Final = (Bits("Type", 30, 1),)

PACKET_INFO_TRANSMIT: Final = Layout(
    "NDIS_IPSEC_PACKET_INFO",
    16,
    (Member("Transmit.OffloadHandle", 0x0, "Q"), Member("Transmit.NextOffloadHandle", 0x8, "Q")),
    views=(Member("Receive.CRYPTO_STATUS", 0x4, "I"),),
)
PACKET_INFO_RECEIVE: Final = (
    Bits("SA_DELETE_REQ", 0, 1),
    Bits("CRYPTO_DONE", 1, 1),
    Bits("NEXT_CRYPTO_DONE", 2, 1),
)

LSO_TYPE_V1: Final = 0
LSO_TYPE_V2: Final = 1

OFFSET_UNIT: Final = 4
"""AhHeaderOffset and EspHeaderOffset count words of four bytes (R162)."""
MAX_HEADER_OFFSET: Final = 0xFF * OFFSET_UNIT

_TYPE_V2 = LSO_TYPE_V2 << 30
_IPV6 = 1 << 31
_SA_DELETE_REQ, _CRYPTO_DONE, _NEXT_CRYPTO_DONE = 1, 2, 4
_HEADER_INFO_SET = 1 << 16
_U64 = 0xFFFFFFFFFFFFFFFF


class Slots(NamedTuple):
    """The slots this NIC knows, each the unsigned number its eight bytes hold."""

    checksum: int = 0
    """Slot 0."""
    ipsec: int = 0
    """Slot 1, V1 and V2."""
    large_send: int = 0
    """Slot 2."""
    tunnel: int = 0
    """Slot 11."""
    header: int = 0
    """Slot 12."""


NO_SLOTS: Final = Slots()

SlotDirection = Literal["send", "receive", "complete"]
"""Which member of each union is valid."""


# --- send --------------------------------------------------------------------------------------------------


def pack_transmit(info: TransmitInfo | None) -> Slots:
    """Give the slots of a send; None is NO_SLOTS.

    Raises:
        PacketError: a number does not fit its bits, or a header offset is no multiple of four.
    """
    if info is None:
        return NO_SLOTS
    ah, esp = info.ah_header_offset, info.esp_header_offset
    if ah % OFFSET_UNIT or esp % OFFSET_UNIT:
        raise PacketError(f"header offsets {ah} and {esp} are not multiples of {OFFSET_UNIT}")
    header = _joined(
        HEADER_TRANSMIT, info.next_header, info.pad_length, ah // OFFSET_UNIT, esp // OFFSET_UNIT
    )
    return Slots(
        0 if info.checksum is None else _pack_checksum(info.checksum),
        _handle(info.offload_handle),
        0 if info.large_send is None else _pack_large_send(info.large_send),
        _handle(info.tunnel_handle),
        header,
    )


def unpack_transmit(slots: Slots) -> TransmitInfo | None:
    """Give what the slots of a send ask for; None when all are zero (R164).

    Raises:
        PacketError: the checksum slot asks for something and names both IP versions or none.
    """
    if slots == NO_SLOTS:
        return None
    header = slots.header
    return TransmitInfo(
        OffloadHandle(slots.ipsec),
        OffloadHandle(slots.tunnel),
        header & 0xFF,
        header >> 8 & 0xFF,
        (header >> 16 & 0xFF) * OFFSET_UNIT,
        (header >> 24 & 0xFF) * OFFSET_UNIT,
        _unpack_large_send(slots.large_send) if slots.large_send else None,
        _unpack_checksum(slots.checksum) if slots.checksum else None,
    )


def _pack_checksum(request: ChecksumRequest) -> int:
    ipv6, tcp, udp, ip_header, offset = request
    return _joined(CHECKSUM_TRANSMIT, not ipv6, ipv6, tcp, udp, ip_header, offset)


def _unpack_checksum(value: int) -> ChecksumRequest:
    ipv4, ipv6, tcp, udp, ip_header, offset = _parted(CHECKSUM_TRANSMIT, value)
    if ipv4 == ipv6:
        raise PacketError(f"checksum slot {value:#x} names {'both IP versions' if ipv4 else 'no IP version'}")
    return ChecksumRequest(bool(ipv6), bool(tcp), bool(udp), bool(ip_header), offset)


def _pack_large_send(request: LargeSend) -> int:
    if request.version not in (1, 2):
        raise PacketError(f"there is no LSO version {request.version}")
    if request.version == 1 and request.ipv6:
        raise PacketError("LSOv1 is for IPv4")
    type_ = LSO_TYPE_V2 if request.version == 2 else LSO_TYPE_V1
    return _joined(LARGE_SEND_V2_TRANSMIT, request.mss, request.tcp_header_offset, type_, request.ipv6)


def _unpack_large_send(value: int) -> LargeSend:
    mss, offset, type_, ipv6 = _parted(LARGE_SEND_V2_TRANSMIT, value)
    if type_ == LSO_TYPE_V1:
        return LargeSend(mss, offset, 1, False)
    return LargeSend(mss, offset, 2, bool(ipv6))


class LargeSendComplete(NamedTuple):
    """What slot 2 of a completed large send tells."""

    version: int
    tcp_payload: int
    """LSOv1: TCP payload sent, in bytes; LSOv2: 0 (R200)."""


def pack_completion(large_send: LargeSend | None, tcp_payload: int = 0) -> Slots:
    """Give the slots of a completed send: those of a large send by its version, else NO_SLOTS.

    Raises:
        PacketError: the payload does not fit its bits.
    """
    if large_send is None:
        return NO_SLOTS
    if large_send.version == 1:
        return Slots(large_send=_joined(LARGE_SEND_V1_COMPLETE, tcp_payload, LSO_TYPE_V1))
    return Slots(large_send=_TYPE_V2)


def unpack_completion(slots: Slots) -> LargeSendComplete:
    """Give what a completed large send tells; whether it was one knows who sent it."""
    payload, type_ = _parted(LARGE_SEND_V1_COMPLETE, slots.large_send)
    return LargeSendComplete(2, 0) if type_ == LSO_TYPE_V2 else LargeSendComplete(1, payload)


# --- receive -----------------------------------------------------------------------------------------------


def pack_receive(info: ReceiveInfo | None) -> Slots:
    """Give the slots of an indicated frame; None, a frame that matched no SA, is NO_SLOTS (R174).

    Raises:
        PacketError: a number does not fit its bits.
    """
    if info is None:
        return NO_SLOTS
    ipsec = info.crypto_status << 16
    if info.sa_delete_req:
        ipsec |= _SA_DELETE_REQ
    if info.crypto_done:
        ipsec |= _CRYPTO_DONE
    if info.next_crypto_done:
        ipsec |= _NEXT_CRYPTO_DONE
    header = 0
    if info.header_info_set:
        header = _joined(HEADER_RECEIVE, info.next_header, info.pad_length, 1)
    return Slots(ipsec=ipsec, header=header)


def unpack_receive(slots: Slots) -> ReceiveInfo | None:
    """Give what the slots of an indicated frame tell; None when there is nothing (R174, R181).

    Header members are 0 unless HeaderInfoSet says that they hold (R182).

    Raises:
        PacketError: CryptoStatus is none of its values, or NextCryptoDone stands without CryptoDone (R178).
    """
    ipsec, header = slots.ipsec, slots.header
    set_ = bool(header & _HEADER_INFO_SET)
    delete, done, next_done, status = _parted(IPSEC_RECEIVE, ipsec)
    if not (delete or done or next_done or status or set_):
        return None
    if next_done and not done:
        raise PacketError(f"IPsec slot {ipsec:#x} has NextCryptoDone without CryptoDone")
    try:
        crypto_status = CryptoStatus(status)
    except ValueError:
        raise PacketError(f"IPsec slot {ipsec:#x} has no known CryptoStatus") from None
    return ReceiveInfo(
        bool(done),
        bool(next_done),
        crypto_status,
        bool(delete),
        set_,
        header & 0xFF if set_ else 0,
        header >> 8 & 0xFF if set_ else 0,
    )


# --- NDIS 5 ------------------------------------------------------------------------------------------------

_PACKET_INFO_TRANSMIT = PACKET_INFO_TRANSMIT.struct()
_PACKET_INFO_RECEIVE = struct.Struct("<II8x")


def pack_packet_info_transmit(info: TransmitInfo) -> bytes:
    """Give the NDIS 5 structure of a send: SA of the transport portion, then of the tunnel portion."""
    return _PACKET_INFO_TRANSMIT.pack(_handle(info.offload_handle), _handle(info.tunnel_handle))


def unpack_packet_info_transmit(data: bytes) -> TransmitInfo | None:
    """Give what an NDIS 5 structure of a send asks for; None when both handles are zero.

    Raises:
        PacketError: it has not 16 bytes.
    """
    _require_packet_info(data)
    handle, next_handle = _PACKET_INFO_TRANSMIT.unpack(data)
    if not handle and not next_handle:
        return None
    return TransmitInfo(OffloadHandle(handle), OffloadHandle(next_handle), 0, 0, 0, 0)


def pack_packet_info_receive(info: ReceiveInfo | None) -> bytes:
    """Give the NDIS 5 structure of an indicated packet: flags, then CRYPTO_STATUS with 32 bits."""
    if info is None:
        return bytes(PACKET_INFO_TRANSMIT.size)
    flags = _joined(PACKET_INFO_RECEIVE, info.sa_delete_req, info.crypto_done, info.next_crypto_done)
    return _PACKET_INFO_RECEIVE.pack(flags, info.crypto_status)


def unpack_packet_info_receive(data: bytes) -> ReceiveInfo | None:
    """Give what an NDIS 5 structure of an indicated packet tells; None when there is nothing.

    Raises:
        PacketError: it has not 16 bytes; or as for `unpack_receive`.
    """
    _require_packet_info(data)
    flags, status = _PACKET_INFO_RECEIVE.unpack(data)
    if status > max(CryptoStatus):
        raise PacketError(f"{status:#x} is no CRYPTO_STATUS")
    return unpack_receive(Slots(ipsec=flags & 0x7 | status << 16))


def _require_packet_info(data: bytes) -> None:
    if len(data) != PACKET_INFO_TRANSMIT.size:
        raise PacketError(f"NDIS_IPSEC_PACKET_INFO has {PACKET_INFO_TRANSMIT.size} bytes, not {len(data)}")


# --- words -------------------------------------------------------------------------------------------------

_HANDLES: Final = (Bits("OffloadHandle", 0, 64),)
_TUNNELS: Final = (Bits("TunnelHandle", 0, 64),)

_MEMBERS: Final[Mapping[SlotDirection, Mapping[str, tuple[Bits, ...]]]] = {
    "send": {
        "checksum": CHECKSUM_TRANSMIT,
        "ipsec": _HANDLES,
        "large_send": LARGE_SEND_V2_TRANSMIT,
        "tunnel": _TUNNELS,
        "header": HEADER_TRANSMIT,
    },
    "receive": {"ipsec": IPSEC_RECEIVE, "header": HEADER_RECEIVE},
    "complete": {"large_send": LARGE_SEND_V1_COMPLETE},
}


def describe(slots: Slots, direction: SlotDirection) -> dict[str, str]:
    """Give the members of every slot that is not zero, as words, in the order of the slots.

    Names are those of the structures; where two slots have a member of one name (TcpHeaderOffset), that of
    the large send is `LargeSend.TcpHeaderOffset`. Header offsets are in bytes.
    """
    words: dict[str, str] = {}
    for slot, members in _MEMBERS[direction].items():
        value = getattr(slots, slot)
        if not value:
            continue
        if slot == "large_send" and direction == "send" and not value & _TYPE_V2:
            members = LARGE_SEND_V1_TRANSMIT
        for bits in members:
            name = bits.name if bits.name not in words else f"LargeSend.{bits.name}"
            words[name] = _word(bits.name, bits.of(value))
    return words


def _word(name: str, value: int) -> str:
    match name:
        case "OffloadHandle" | "TunnelHandle":
            return f"{value:#x}"
        case "AhHeaderOffset" | "EspHeaderOffset":
            return str(value * OFFSET_UNIT)
        case "CryptoStatus":
            known = value in CryptoStatus.__members__.values()
            return f"CRYPTO_{CryptoStatus(value).name}" if known else str(value)
        case "Type":
            return "LSOv2" if value == LSO_TYPE_V2 else "LSOv1"
        case "IPVersion":
            return "IPv6" if value else "IPv4"
    return str(value)


# --- bits --------------------------------------------------------------------------------------------------


def _joined(table: tuple[Bits, ...], *values: int) -> int:
    """Put the values into their bit-fields."""
    total = 0
    for bits, value in zip(table, values, strict=True):
        if not 0 <= value <= bits.limit:
            raise PacketError(f"{bits.name} cannot hold {value}: it has {bits.width} bits")
        total |= int(value) << bits.shift
    return total


def _parted(table: tuple[Bits, ...], value: int) -> list[int]:
    return [bits.of(value) for bits in table]


def _handle(handle: int) -> int:
    if not 0 <= handle <= _U64:
        raise PacketError(f"{handle:#x} is no handle: it has 64 bits")
    return handle
