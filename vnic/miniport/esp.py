"""ESP: cipher and ICV of one SA over the bytes of a frame, in place.

Law: touches what lies between ESP header and end of ICV, nothing else; finds no headers.

    start            text                                  stop        end
    | SPI 4 | seq 4 | IV | payload | pad | pad len | next | ICV        |
    |<---------------- ICV of separate algorithms ------->|
    |<-- AAD GCM -->|     |<-------- cipher text -------->|            offsets in bytes from the frame start

With extended sequence numbers the ICV also covers their upper half: between SPI and sequence number for
GCM and GMAC, behind everything for HMAC.

Source: RFC 4303 §2, §3.3, §3.4; RFC 4106 §5; RFC 4543 §3.3, §3.4.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from vnic.errors import PacketError
from vnic.miniport.ciphers import CbcOpener, CbcSealer, CounterIvs, Gcm, Gmac, Hmac, WrongIcv, verify
from vnic.miniport.esn import ExtendedNumbers
from vnic.packet.esp import ESP_HEADER, ESP_HEADER_LENGTH, ESP_TRAILER_LENGTH, PADDING

_NO_HIGH_HALF = b""


class EspElement:
    """What both directions of an ESP SA share.

    Attributes:
        spi: host order.
        header_length: bytes of ESP header and IV.
        icv_length: bytes.
        numbers: None without extended sequence numbers.
    """

    __slots__ = ("header_length", "icv_length", "numbers", "spi")

    def __init__(self, spi: int, iv_length: int, icv_length: int, numbers: ExtendedNumbers | None) -> None:
        self.spi = spi
        self.header_length = ESP_HEADER_LENGTH + iv_length
        self.icv_length = icv_length
        self.numbers = numbers


class EspSealer(EspElement, ABC):
    """An outbound ESP SA."""

    __slots__ = ("_alignment_mask",)

    def __init__(
        self, spi: int, iv_length: int, icv_length: int, block_length: int, numbers: ExtendedNumbers | None
    ) -> None:
        super().__init__(spi, iv_length, icv_length, numbers)
        self._alignment_mask = max(block_length, 4) - 1

    def trailer(self, length: int, next_header: int) -> bytes:
        """Give padding, pad length, next header and room for the ICV behind a payload of `length` bytes."""
        pad = -(length + ESP_TRAILER_LENGTH) & self._alignment_mask
        return PADDING[:pad] + bytes((pad, next_header)) + bytes(self.icv_length)

    def seal(self, frame: bytearray, start: int, end: int) -> None:
        """Write IV, cipher text and ICV into a frame that has room for them.

        Args:
            start: offset of the ESP header, which carries SPI and sequence number.
            end: offset behind the room for the ICV.

        Raises:
            PacketError: the layout does not fit the SA, or its IVs are used up; nothing was sealed.
        """
        stop = end - self.icv_length
        length = stop - start - self.header_length
        if length < ESP_TRAILER_LENGTH or length & self._alignment_mask or end > len(frame):
            raise PacketError("ESP payload and trailer are not a multiple of the block")
        spi, low = ESP_HEADER.unpack_from(frame, start)
        if spi != self.spi:
            raise PacketError("the ESP header has another SPI than the SA")
        if frame[stop - 2] > length - ESP_TRAILER_LENGTH:
            raise PacketError("more ESP padding than payload")
        numbers = self.numbers
        self._seal(frame, start, stop, end, _NO_HIGH_HALF if numbers is None else numbers.next(low))

    @abstractmethod
    def _seal(self, frame: bytearray, start: int, stop: int, end: int, high: bytes) -> None: ...


class EspOpener(EspElement, ABC):
    """An inbound ESP SA."""

    __slots__ = ("_block_mask",)

    def __init__(
        self, spi: int, iv_length: int, icv_length: int, block_length: int, numbers: ExtendedNumbers | None
    ) -> None:
        super().__init__(spi, iv_length, icv_length, numbers)
        self._block_mask = block_length - 1

    def open(self, frame: bytearray, start: int, end: int) -> bytearray | None:
        """Check the ICV and decrypt in place.

        Args:
            start: offset of the ESP header.
            end: offset behind the ICV, not behind the frame.

        Returns:
            The bytes that stood at the end of the packet (cipher text and ICV), to be put back if an
            inner layer fails; None if nothing was changed.

        Raises:
            PacketError: lengths do not fit; the frame is as it was.
            WrongIcv: the frame is as it was.
        """
        length = end - start - self.header_length - self.icv_length
        if length < ESP_TRAILER_LENGTH or length & self._block_mask or end > len(frame):
            raise PacketError("ESP too short, or cipher text not a multiple of the block")
        numbers = self.numbers
        if numbers is None:
            return self._open(frame, start, end, _NO_HIGH_HALF)
        for number in numbers.candidates(int.from_bytes(frame[start + 4 : start + 8], "big")):
            try:
                changed = self._open(frame, start, end, (number >> 32).to_bytes(4, "big"))
            except WrongIcv:
                continue
            numbers.authenticated(number)
            return changed
        raise WrongIcv("no candidate of the extended sequence number")

    @abstractmethod
    def _open(self, frame: bytearray, start: int, end: int, high: bytes) -> bytearray | None: ...


def _check_pad_length(plaintext: bytes | bytearray) -> None:
    if plaintext[-2] > len(plaintext) - ESP_TRAILER_LENGTH:
        raise PacketError("more ESP padding than payload")


class GcmSealer(EspSealer):
    """AES-GCM: one pass for cipher text and ICV."""

    __slots__ = ("_gcm", "_ivs")

    def __init__(
        self, spi: int, gcm: Gcm, icv_length: int, ivs: CounterIvs, numbers: ExtendedNumbers | None
    ) -> None:
        super().__init__(spi, 8, icv_length, 1, numbers)
        self._gcm = gcm
        self._ivs = ivs

    def _seal(self, frame: bytearray, start: int, stop: int, end: int, high: bytes) -> None:
        text = start + 16
        iv = self._ivs.take()
        aad = frame[start : start + 8]
        if high:
            aad[4:4] = high
        frame[start + 8 : text] = iv
        frame[text:end] = self._gcm.seal(iv, frame[text:stop], aad)


class GcmOpener(EspOpener):
    """AES-GCM."""

    __slots__ = ("_gcm",)

    def __init__(self, spi: int, gcm: Gcm, icv_length: int, numbers: ExtendedNumbers | None) -> None:
        super().__init__(spi, 8, icv_length, 1, numbers)
        self._gcm = gcm

    def _open(self, frame: bytearray, start: int, end: int, high: bytes) -> bytearray | None:
        text = start + 16
        aad = frame[start : start + 8]
        if high:
            aad[4:4] = high
        sealed = frame[text:end]
        plaintext = self._gcm.open(frame[start + 8 : text], sealed, aad)
        _check_pad_length(plaintext)
        frame[text : end - self.icv_length] = plaintext
        return sealed


class GmacSealer(EspSealer):
    """Null encryption with AES-GMAC."""

    __slots__ = ("_gmac", "_ivs")

    def __init__(self, spi: int, gmac: Gmac, ivs: CounterIvs, numbers: ExtendedNumbers | None) -> None:
        super().__init__(spi, 8, 16, 1, numbers)
        self._gmac = gmac
        self._ivs = ivs

    def _seal(self, frame: bytearray, start: int, stop: int, end: int, high: bytes) -> None:
        iv = self._ivs.take()
        frame[start + 8 : start + 16] = iv
        covered = frame[start:stop]
        covered[4:4] = high
        frame[stop:end] = self._gmac.icv(iv, covered)


class GmacOpener(EspOpener):
    """Null encryption with AES-GMAC."""

    __slots__ = ("_gmac",)

    def __init__(self, spi: int, gmac: Gmac, numbers: ExtendedNumbers | None) -> None:
        super().__init__(spi, 8, 16, 1, numbers)
        self._gmac = gmac

    def _open(self, frame: bytearray, start: int, end: int, high: bytes) -> bytearray | None:
        stop = end - 16
        covered = frame[start:stop]
        covered[4:4] = high
        verify(self._gmac.icv(frame[start + 8 : start + 16], covered), frame[stop:end])
        _check_pad_length(covered[16 + len(high) :])
        return None


class SeparateSealer(EspSealer):
    """A block cipher or none, then an HMAC or (under AH) none."""

    __slots__ = ("_cipher", "_hmac")

    def __init__(
        self,
        spi: int,
        cipher: CbcSealer | None,
        block_length: int,
        hmac: Hmac | None,
        icv_length: int,
        numbers: ExtendedNumbers | None,
    ) -> None:
        super().__init__(spi, block_length if cipher else 0, icv_length, block_length, numbers)
        self._cipher = cipher
        self._hmac = hmac

    def _seal(self, frame: bytearray, start: int, stop: int, end: int, high: bytes) -> None:
        if self._cipher is not None:
            frame[start + 8 : stop] = self._cipher.seal(frame[start + self.header_length : stop])
        if self._hmac is not None:
            frame[stop:end] = self._hmac.icv(b"", frame[start:stop], high)


class SeparateOpener(EspOpener):
    """A block cipher or none, under an HMAC or (under AH) none."""

    __slots__ = ("_cipher", "_hmac")

    def __init__(
        self,
        spi: int,
        cipher: CbcOpener | None,
        block_length: int,
        hmac: Hmac | None,
        icv_length: int,
        numbers: ExtendedNumbers | None,
    ) -> None:
        super().__init__(spi, block_length if cipher else 0, icv_length, block_length, numbers)
        self._cipher = cipher
        self._hmac = hmac

    def _open(self, frame: bytearray, start: int, end: int, high: bytes) -> bytearray | None:
        stop = end - self.icv_length
        text = start + self.header_length
        if self._hmac is not None:
            verify(self._hmac.icv(b"", frame[start:stop], high), frame[stop:end])
        if self._cipher is None:
            _check_pad_length(frame[text:stop])
            return None
        plaintext = self._cipher.open(frame[start + 8 : stop])
        _check_pad_length(plaintext)
        sealed = frame[text:end]
        frame[text:stop] = plaintext
        return sealed
