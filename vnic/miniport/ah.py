"""AH: the ICV of one SA over a whole IP packet, in place.

Law: writes nothing but IV and ICV. Fields that routers change count as zero, or as they will be where the
packet ends.

    ip           start                                                  end
    | IP header  | next | len | 0 | SPI | seq | IV | ICV  | pad | rest |      offsets from the frame start
      immutable    as sent                           zero   as sent      + upper half of the number

Source: RFC 4302 §2, §3.3.3, §3.4, Appendix A; RFC 4543 §4.
"""

from __future__ import annotations

from vnic.errors import PacketError
from vnic.miniport.ciphers import COUNTER_IV_LENGTH, CounterIvs, Mac, WrongIcv, verify
from vnic.miniport.esn import ExtendedNumbers
from vnic.packet.ah import AH_FIXED, AH_FIXED_LENGTH, ah_header_length, ah_length
from vnic.packet.ip import DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, IPV4_LENGTH, IPV6_LENGTH, ROUTING

_END_OF_OPTIONS = 0
_NO_OPERATION = 1
_LOOSE_SOURCE_ROUTE = 131
_STRICT_SOURCE_ROUTE = 137
_IMMUTABLE_OPTIONS = frozenset({130, 133, 134, 148, 149})
"""Security, extended security, commercial security, router alert, multi-destination (Appendix A1)."""

_PAD1 = 0
_MAY_CHANGE = 0x20
"""Bit of an IPv6 option type: a router may change the data (RFC 8200 §4.2)."""


def immutable_header(frame: bytes | bytearray, ip: int, start: int) -> bytearray:
    """Give the IP header, with options or extension headers, as the ICV covers it.

    Args:
        ip: offset of the IP header.
        start: offset of the AH header.

    Raises:
        PacketError: options that do not fit, or whose end at the destination cannot be told.
    """
    header = bytearray(frame[ip:start])
    if header[0] >> 4 == 4:
        # TOS, flags and fragment offset, TTL, checksum (RFC 4302 §3.3.3.1.1.1).
        header[1] = 0
        header[6:9] = b"\x00\x00\x00"
        header[10:12] = b"\x00\x00"
        if len(header) > IPV4_LENGTH:
            _mute_ipv4_options(header)
    else:
        # Traffic class and flow label, hop limit (RFC 4302 §3.3.3.1.2.1).
        header[0:4] = b"\x60\x00\x00\x00"
        header[7] = 0
        if len(header) > IPV6_LENGTH:
            _mute_extension_headers(header)
    return header


def _mute_ipv4_options(header: bytearray) -> None:
    position = IPV4_LENGTH
    while position < len(header):
        kind = header[position]
        if kind == _END_OF_OPTIONS:
            return
        if kind == _NO_OPERATION:
            position += 1
            continue
        length = header[position + 1] if position + 1 < len(header) else 0
        if length < 2 or position + length > len(header):
            raise PacketError("IPv4 option longer than the header")
        if kind in (_LOOSE_SOURCE_ROUTE, _STRICT_SOURCE_ROUTE):
            _arrive(header, position, length)
        if kind not in _IMMUTABLE_OPTIONS:
            header[position : position + length] = bytes(length)
        position += length


def _arrive(header: bytearray, position: int, length: int) -> None:
    """Put the last address of a source route that is not used up into the destination."""
    if length < 7 or (length - 3) % 4:
        raise PacketError("IPv4 source route of a wrong length")
    if header[position + 2] <= length:
        header[16:20] = header[position + length - 4 : position + length]


def _mute_extension_headers(header: bytearray) -> None:
    protocol = header[6]
    position = IPV6_LENGTH
    while position < len(header):
        end = position + 8
        if protocol != FRAGMENT and position + 1 < len(header):
            end += header[position + 1] * 8
        if end > len(header):
            raise PacketError("IPv6 extension header longer than the packet")
        if protocol in (HOP_BY_HOP, DESTINATION_OPTIONS):
            _mute_ipv6_options(header, position + 2, end)
        elif protocol == ROUTING:
            _arrive_by_routing_header(header, position, end)
        elif protocol == FRAGMENT:
            # Of an atomic fragment (RFC 6946); RFC 4302 knows none, Linux takes it as it is.
            if header[position + 2] or header[position + 3] & 0xF9:
                raise PacketError("a fragment, to which AH is not applied")
        else:
            raise PacketError("a header before AH that AH does not know")
        protocol = header[position]
        position = end


def _mute_ipv6_options(header: bytearray, position: int, end: int) -> None:
    while position < end:
        kind = header[position]
        if kind == _PAD1:
            position += 1
            continue
        data = position + 2
        position = data + header[position + 1] if data <= end else end + 1
        if position > end:
            raise PacketError("IPv6 option longer than its header")
        if kind & _MAY_CHANGE:
            header[data:position] = bytes(position - data)


def _arrive_by_routing_header(header: bytearray, position: int, end: int) -> None:
    """Bring a routing header into the form it has at the last hop, as its nodes would (RFC 2460 §4.4)."""
    left = header[position + 3]
    if not left:
        return
    addresses = (end - position - 8) // 16
    if header[position + 2] != 0 or (end - position - 8) % 16 or left > addresses:
        raise PacketError("a routing header whose end cannot be told")
    for number in range(addresses - left, addresses):
        slot = position + 8 + number * 16
        header[24:40], header[slot : slot + 16] = header[slot : slot + 16], header[24:40]
    header[position + 3] = 0


class AhElement:
    """What both directions of an AH SA share.

    Attributes:
        spi: host order.
        numbers: None without extended sequence numbers.
    """

    __slots__ = ("_icv_length", "_ipv4_lengths", "_ipv6_lengths", "_iv_length", "_mac", "numbers", "spi")

    def __init__(
        self, spi: int, mac: Mac, iv_length: int, icv_length: int, numbers: ExtendedNumbers | None
    ) -> None:
        self.spi = spi
        self.numbers = numbers
        self._mac = mac
        self._iv_length = iv_length
        self._icv_length = icv_length
        # More padding than alignment needs is prohibited (RFC 4302 §2.6), but over IPv4 peers align to
        # 4 as the RFC says or to 8 as Linux does.
        octets = ah_header_length(iv_length + icv_length, 8)
        self._ipv4_lengths = (ah_header_length(iv_length + icv_length, 4), octets)
        self._ipv6_lengths = (octets,)

    def length(self, frame: bytes | bytearray, ip: int, start: int, end: int) -> int:
        """Give the bytes of the AH header at `start`.

        Raises:
            PacketError: not a length this SA's AH may have, or beyond `end`.
        """
        if end - start < AH_FIXED_LENGTH or end > len(frame):
            raise PacketError("AH cut short")
        length = ah_length(frame[start + 1])
        legal = self._ipv4_lengths if frame[ip] >> 4 == 4 else self._ipv6_lengths
        if length not in legal or length > end - start:
            raise PacketError("AH of a wrong length")
        return length

    def _icv(self, frame: bytearray, ip: int, start: int, end: int, iv: bytes, high: bytes) -> bytes:
        position = start + AH_FIXED_LENGTH + self._iv_length
        covered = b"".join(
            (
                immutable_header(frame, ip, start),
                frame[start:position],
                bytes(self._icv_length),
                frame[position + self._icv_length : end],
                high,
            )
        )
        return self._mac.icv(iv, covered)


class AhSealer(AhElement):
    """An outbound AH SA; `ivs` for AES-GMAC only."""

    __slots__ = ("_ivs",)

    def __init__(
        self, spi: int, mac: Mac, icv_length: int, ivs: CounterIvs | None, numbers: ExtendedNumbers | None
    ) -> None:
        super().__init__(spi, mac, 0 if ivs is None else COUNTER_IV_LENGTH, icv_length, numbers)
        self._ivs = ivs

    def seal(self, frame: bytearray, ip: int, start: int, end: int) -> None:
        """Write IV and ICV into a frame that has room for them.

        Args:
            ip: offset of the IP header.
            start: offset of the AH header.
            end: offset behind the packet.

        Raises:
            PacketError: the layout does not fit the SA, or its IVs are used up.
        """
        self.length(frame, ip, start, end)
        _, _, _, spi, low = AH_FIXED.unpack_from(frame, start)
        if spi != self.spi:
            raise PacketError("the AH header has another SPI than the SA")
        high = b"" if self.numbers is None else self.numbers.next(low)
        position = start + AH_FIXED_LENGTH
        iv = b""
        if self._ivs is not None:
            iv = self._ivs.take()
            frame[position : position + COUNTER_IV_LENGTH] = iv
            position += COUNTER_IV_LENGTH
        frame[position : position + self._icv_length] = self._icv(frame, ip, start, end, iv, high)


class AhOpener(AhElement):
    """An inbound AH SA."""

    __slots__ = ()

    def open(self, frame: bytearray, ip: int, start: int, end: int) -> int:
        """Check the ICV; gives the bytes of the AH header.

        Args: as `AhSealer.seal`.

        Raises:
            PacketError: lengths or options do not fit.
            WrongIcv: also when no candidate of an extended sequence number holds.
        """
        length = self.length(frame, ip, start, end)
        iv_at = start + AH_FIXED_LENGTH
        icv_at = iv_at + self._iv_length
        iv = bytes(frame[iv_at:icv_at])
        received = frame[icv_at : icv_at + self._icv_length]
        numbers = self.numbers
        if numbers is None:
            verify(self._icv(frame, ip, start, end, iv, b""), received)
            return length
        for number in numbers.candidates(int.from_bytes(frame[start + 8 : start + 12], "big")):
            try:
                high = (number >> 32).to_bytes(4, "big")
                verify(self._icv(frame, ip, start, end, iv, high), received)
            except WrongIcv:
                continue
            numbers.authenticated(number)
            return length
        raise WrongIcv("no candidate of the extended sequence number")
