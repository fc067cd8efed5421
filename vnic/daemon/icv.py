"""Where the ICV of a frame on the wire lies.

Law: reads the frame and asks the card which SA it belongs to; changes nothing, counts nothing.

Source: RFC 4303 §2 and RFC 4302 §2; RFC 4543 §4 for the IV that GMAC puts before the ICV of AH.
"""

from __future__ import annotations

from vnic.engine.contract import Card
from vnic.errors import PacketError
from vnic.ipsec.association import IpsecProtocol, SaId, SecurityAssociation
from vnic.packet.ah import AH_FIXED_LENGTH, ah_length
from vnic.packet.esp import ESP_HEADER_LENGTH
from vnic.packet.ethernet import ip_offset
from vnic.packet.ip import AH, ESP, UDP, parse_ip
from vnic.packet.udp import esp_in_udp
from vnic.ports.faults import FindIcv, IcvPlace

_AH_SPI = 4


def finder(card: Card) -> FindIcv:
    """Give what finds the ICV of the outermost IPsec header, by the SAs of a card."""

    def association(
        destination: bytes, protocol: IpsecProtocol, spi: bytearray
    ) -> SecurityAssociation | None:
        report = card.find_sa(SaId(destination, protocol, int.from_bytes(spi)))
        return None if report is None else report.sa

    def find(frame: bytearray) -> IcvPlace | None:
        offset = ip_offset(frame)
        if not offset:
            return None
        try:
            ip = parse_ip(frame, offset)
        except PacketError:
            return None
        if ip.fragment:
            return None
        start, end, protocol = ip.payload_offset, ip.end, ip.protocol
        if protocol == UDP:
            start, end = esp_in_udp(frame, start, end)
            protocol = ESP if start else UDP
        if protocol == ESP and end - start >= ESP_HEADER_LENGTH:
            sa = association(ip.destination, IpsecProtocol.ESP, frame[start : start + 4])
            length = 0 if sa is None else sa.icv_length
            return (end - length, length) if end - start >= ESP_HEADER_LENGTH + length else (end, 0)
        if protocol == AH and end - start >= AH_FIXED_LENGTH:
            first = start + AH_FIXED_LENGTH
            stop = start + ah_length(frame[start + 1])
            sa = association(ip.destination, IpsecProtocol.AH, frame[start + _AH_SPI : start + 2 * _AH_SPI])
            if sa is not None:
                first += sa.iv_length
                stop = min(stop, first + sa.icv_length)
            return (first, stop - first) if first <= stop <= end else (first, 0)
        return None

    return find
