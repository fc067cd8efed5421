//! Ethernet, IPv4 and IPv6, down to the upper-layer or IPsec header.
//!
//! Law: reads fields, judges lengths, changes nothing; what is malformed, has options or is a fragment is what
//! `vnic.packet.ip.parse_ip` says. No bytes make it panic.
//!
//! Source: RFC 791 §3.1; RFC 8200 §3, §4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::association::FlowKey;
use crate::punt::PuntReason;

/// Bytes of an untagged Ethernet header.
pub const ETHERNET_LENGTH: usize = 14;
/// Bytes of an IPv4 header without options.
pub const IPV4_LENGTH: usize = 20;
/// Bytes of an IPv6 header without extension headers.
pub const IPV6_LENGTH: usize = 40;
/// Bytes of a UDP header.
pub const UDP_LENGTH: usize = 8;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// Protocol numbers.
pub mod protocol {
    /// IPv4 inside IP.
    pub const IPV4_IN_IP: u8 = 4;
    /// RFC 9293.
    pub const TCP: u8 = 6;
    /// RFC 768.
    pub const UDP: u8 = 17;
    /// IPv6 inside IP.
    pub const IPV6_IN_IP: u8 = 41;
    /// RFC 4303.
    pub const ESP: u8 = 50;
    /// RFC 4302.
    pub const AH: u8 = 51;
    /// RFC 4443.
    pub const ICMPV6: u8 = 58;
    /// Nothing follows (RFC 8200 §4.7).
    pub const NO_NEXT_HEADER: u8 = 59;

    pub(super) const ICMP: u8 = 1;
    pub(super) const DCCP: u8 = 33;
    pub(super) const SCTP: u8 = 132;
    pub(super) const MOBILITY: u8 = 135;
    pub(super) const UDP_LITE: u8 = 136;
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const DESTINATION_OPTIONS: u8 = 60;
}

/// More extension headers than this are an attack on the parser.
const MAX_EXTENSION_HEADERS: usize = 16;
/// Port of a packet whose protocol has none.
const BEYOND_PORTS: i32 = 0x1_0000;

/// Where things are in one IP packet. Offsets count from the start of the bytes that were parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpHeader {
    /// 4 or 6.
    pub version: u8,
    /// First byte of the IP header.
    pub offset: usize,
    /// IP header with options or extension headers, up to the upper-layer or IPsec header.
    pub header_length: usize,
    /// Offset behind the last byte of the packet, by its own length field.
    pub end: usize,
    /// What follows the header: upper-layer protocol, ESP or AH.
    pub protocol: u8,
    /// Offset of the byte that holds `protocol`.
    pub protocol_offset: usize,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Bytes; 0 for a whole packet or a first fragment.
    pub fragment_offset: u16,
    /// Whether another fragment follows.
    pub more_fragments: bool,
    /// IPv4 options, or IPv6 extension headers before `protocol`.
    pub has_options: bool,
}

impl IpHeader {
    /// Whether this is one fragment of several.
    pub fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset != 0
    }

    /// First byte of the upper-layer or IPsec header.
    pub fn payload(&self) -> usize {
        self.offset + self.header_length
    }

    /// The packet's bytes, header and payload.
    pub fn length(&self) -> usize {
        self.end - self.offset
    }
}

/// The 16-bit word at an offset that is known to be there.
pub fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The 32-bit word at an offset that is known to be there.
pub fn double_word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Read an untagged frame whose IP packet is whole and without options; anything else is not for this engine.
#[inline(always)]
pub fn parse_frame(frame: &[u8]) -> Result<IpHeader, PuntReason> {
    if frame.len() < ETHERNET_LENGTH {
        return Err(PuntReason::NonIp);
    }
    let version = match [frame[12], frame[13]] {
        ETHERTYPE_IPV4 => 4,
        ETHERTYPE_IPV6 => 6,
        _ => return Err(PuntReason::NonIp),
    };
    let header = parse_plain(frame, ETHERNET_LENGTH, frame.len())?;
    if header.version != version {
        return Err(PuntReason::Malformed);
    }
    Ok(header)
}

/// As [`parse_ip`], for packets that are whole and without options; anything else is not for this engine.
#[inline(always)]
pub fn parse_plain(bytes: &[u8], offset: usize, limit: usize) -> Result<IpHeader, PuntReason> {
    // Headers are made where they go: one that is moved right after it was written in small pieces costs as much as
    // all the rest here.
    if offset >= limit || limit > bytes.len() {
        return Err(PuntReason::Malformed);
    }
    match bytes[offset] >> 4 {
        4 => {
            let Some(read) = Ipv4::read(bytes, offset, limit) else {
                return Err(PuntReason::Malformed);
            };
            if read.fragment & 0x3fff != 0 {
                return Err(PuntReason::Fragment);
            }
            if read.header_length > IPV4_LENGTH {
                return Err(PuntReason::Options);
            }
            Ok(read.header(offset))
        }
        6 => {
            let Some(header) = bytes[offset..limit].first_chunk::<IPV6_LENGTH>() else {
                return Err(PuntReason::Malformed);
            };
            let end = offset + IPV6_LENGTH + usize::from(word(header, 4));
            if end > limit {
                return Err(PuntReason::Malformed);
            }
            if is_extension_header(header[6]) {
                return Err(match parse_ipv6(bytes, offset, limit) {
                    None => PuntReason::Malformed,
                    Some(header) if header.is_fragment() => PuntReason::Fragment,
                    Some(_) => PuntReason::Options,
                });
            }
            Ok(ipv6_header(header, offset, end))
        }
        _ => Err(PuntReason::Malformed),
    }
}

/// Read the IP packet at `offset`, which ends before `limit`; what stands between its own end and `limit` (padding)
/// is left out of `end`. None: neither IPv4 nor IPv6, or headers or lengths that do not fit.
#[inline(always)]
pub fn parse_ip(bytes: &[u8], offset: usize, limit: usize) -> Option<IpHeader> {
    if offset >= limit || limit > bytes.len() {
        return None;
    }
    match bytes[offset] >> 4 {
        4 => Ipv4::read(bytes, offset, limit).map(|read| read.header(offset)),
        6 => parse_ipv6(bytes, offset, limit),
        _ => None,
    }
}

/// The fixed part of an IPv4 header whose lengths fit.
struct Ipv4<'a> {
    bytes: &'a [u8; IPV4_LENGTH],
    header_length: usize,
    length: usize,
    /// The word of flags and fragment offset.
    fragment: u16,
}

impl<'a> Ipv4<'a> {
    #[inline(always)]
    fn read(bytes: &'a [u8], offset: usize, limit: usize) -> Option<Self> {
        let bytes: &[u8; IPV4_LENGTH] = bytes[offset..limit].first_chunk()?;
        let header_length = usize::from(bytes[0] & 15) * 4;
        let length = usize::from(word(bytes, 2));
        if header_length < IPV4_LENGTH || length < header_length || length > limit - offset {
            return None;
        }
        Some(Self { bytes, header_length, length, fragment: word(bytes, 6) })
    }

    #[inline(always)]
    fn header(&self, offset: usize) -> IpHeader {
        IpHeader {
            version: 4,
            offset,
            header_length: self.header_length,
            end: offset + self.length,
            protocol: self.bytes[9],
            protocol_offset: offset + 9,
            source: Ipv4Addr::from(double_word(self.bytes, 12)).into(),
            destination: Ipv4Addr::from(double_word(self.bytes, 16)).into(),
            fragment_offset: (self.fragment & 0x1fff) << 3,
            more_fragments: self.fragment & 0x2000 != 0,
            has_options: self.header_length > IPV4_LENGTH,
        }
    }
}

#[inline(always)]
fn ipv6_header(header: &[u8; IPV6_LENGTH], offset: usize, end: usize) -> IpHeader {
    let address = |at: usize| -> IpAddr {
        let mut octets = [0; 16];
        octets.copy_from_slice(&header[at..at + 16]);
        Ipv6Addr::from(octets).into()
    };
    IpHeader {
        version: 6,
        offset,
        header_length: IPV6_LENGTH,
        end,
        protocol: header[6],
        protocol_offset: offset + 6,
        source: address(8),
        destination: address(24),
        fragment_offset: 0,
        more_fragments: false,
        has_options: false,
    }
}

fn parse_ipv6(bytes: &[u8], offset: usize, limit: usize) -> Option<IpHeader> {
    let header: &[u8; IPV6_LENGTH] = bytes[offset..limit].first_chunk()?;
    let end = offset + IPV6_LENGTH + usize::from(word(header, 4));
    if end > limit {
        return None;
    }
    let mut parsed = ipv6_header(header, offset, end);
    for _ in 0..MAX_EXTENSION_HEADERS {
        let position = parsed.payload();
        let kind = parsed.protocol;
        if !is_extension_header(kind) {
            return Some(parsed);
        }
        if end - position < 8 {
            return None;
        }
        let mut length = 8;
        if kind == protocol::FRAGMENT {
            let field = word(bytes, position + 2);
            parsed.fragment_offset = field & 0xfff8;
            parsed.more_fragments = field & 1 != 0;
        } else {
            length += usize::from(bytes[position + 1]) * 8;
        }
        if end - position < length {
            return None;
        }
        parsed.has_options = true;
        parsed.protocol_offset = position;
        parsed.protocol = bytes[position];
        parsed.header_length += length;
        if parsed.fragment_offset != 0 {
            return Some(parsed);
        }
    }
    None
}

/// Whether an IPv6 header of this number is followed by another (RFC 8200 §4).
pub fn is_extension_header(number: u8) -> bool {
    use protocol::{DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING};
    matches!(number, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

/// Addresses, protocol and ports of a packet that is not a later fragment, as `vnic.transport.flow.flow_key`; -1 for
/// ports that it is too short for.
#[inline(always)]
pub fn flow_key(bytes: &[u8], header: &IpHeader) -> FlowKey {
    let payload = &bytes[header.payload()..header.end];
    let (source_port, destination_port) = match header.protocol {
        protocol::TCP | protocol::UDP | protocol::DCCP | protocol::SCTP | protocol::UDP_LITE => match payload {
            [a, b, c, d, ..] => (i32::from(u16::from_be_bytes([*a, *b])), i32::from(u16::from_be_bytes([*c, *d]))),
            _ => (-1, -1),
        },
        protocol::ICMP | protocol::ICMPV6 => match payload {
            [kind, code, ..] => (i32::from(*kind), i32::from(*code)),
            _ => (-1, -1),
        },
        protocol::MOBILITY => match payload {
            [_, _, kind, ..] => (i32::from(*kind), BEYOND_PORTS),
            _ => (-1, -1),
        },
        _ => (BEYOND_PORTS, BEYOND_PORTS),
    };
    FlowKey {
        source: header.source,
        destination: header.destination,
        protocol: header.protocol,
        source_port,
        destination_port,
    }
}

/// Bytes at the beginning of an upper-layer header that [`flow_key`] reads.
pub fn judged_length(number: u8) -> usize {
    match number {
        protocol::TCP | protocol::UDP | protocol::DCCP | protocol::SCTP | protocol::UDP_LITE => 4,
        protocol::ICMP | protocol::ICMPV6 => 2,
        protocol::MOBILITY => 3,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(first: u8, total: u16, fragment: u16, protocol: u8) -> Vec<u8> {
        let mut packet = vec![0; 60];
        packet[0] = first;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[9] = protocol;
        packet[12..20].copy_from_slice(&[192, 0, 2, 1, 198, 51, 100, 2]);
        packet[20..24].copy_from_slice(&[0x13, 0x88, 0, 53]);
        packet
    }

    /// An IPv6 packet with `chain` behind its fixed header.
    fn ipv6(next: u8, chain: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, chain.len() as u8, next, 64];
        packet.extend([0x20; 16]);
        packet.extend([0x30; 16]);
        packet.extend(chain);
        packet
    }

    #[test]
    fn an_ipv4_packet_is_found_inside_its_padding() {
        let header = parse_ip(&ipv4(0x45, 44, 0x4000, 17), 0, 60).unwrap();
        assert_eq!((header.version, header.header_length, header.end, header.protocol), (4, 20, 44, 17));
        assert_eq!(header.source, "192.0.2.1".parse::<IpAddr>().unwrap());
        assert_eq!(header.destination, "198.51.100.2".parse::<IpAddr>().unwrap());
        assert!(!header.is_fragment() && !header.has_options);
        let flow = flow_key(&ipv4(0x45, 44, 0, 17), &header);
        assert_eq!((flow.source_port, flow.destination_port), (5000, 53));
    }

    #[test]
    fn ipv4_lengths_that_do_not_fit_are_malformed() {
        for (first, total) in [(0x44, 44), (0x45, 19), (0x45, 61), (0x4f, 59), (0x55, 44), (0x05, 44)] {
            assert_eq!(parse_ip(&ipv4(first, total, 0, 6), 0, 60), None, "{first:x} {total}");
        }
        assert_eq!(parse_ip(&ipv4(0x45, 20, 0, 6), 0, 19), None);
        assert_eq!(parse_ip(&ipv4(0x45, 20, 0, 6), 60, 60), None);
        assert_eq!(parse_ip(&ipv4(0x45, 20, 0, 6), 0, 61), None);
        assert_eq!(parse_plain(&ipv4(0x46, 44, 0, 6), 0, 60), Err(PuntReason::Options));
        assert_eq!(parse_plain(&ipv4(0x45, 44, 0x2000, 6), 0, 60), Err(PuntReason::Fragment));
        assert_eq!(parse_plain(&ipv4(0x45, 44, 0x0001, 6), 0, 60), Err(PuntReason::Fragment));
    }

    #[test]
    fn extension_headers_are_followed_to_what_they_precede() {
        let chain = [43, 0, 0, 0, 0, 0, 0, 0, 50, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3];
        let header = parse_ip(&ipv6(60, &chain), 0, 59).unwrap();
        assert_eq!((header.protocol, header.header_length, header.end, header.protocol_offset), (50, 56, 59, 48));
        assert!(header.has_options);
        let mut endless = [0_u8; 17 * 8];
        assert_eq!(parse_ip(&ipv6(0, &endless), 0, 40 + 17 * 8), None);
        endless[15 * 8] = 6;
        assert!(parse_ip(&ipv6(0, &endless), 0, 40 + 17 * 8).is_none(), "sixteen are one too many");
        endless[14 * 8] = 6;
        assert_eq!(parse_ip(&ipv6(0, &endless), 0, 40 + 17 * 8).unwrap().header_length, 40 + 15 * 8);
        assert_eq!(parse_ip(&ipv6(43, &[6, 1, 0, 0, 0, 0, 0, 0]), 0, 48), None);
        assert_eq!(parse_ip(&ipv6(43, &[6, 0, 0]), 0, 43), None);
    }

    #[test]
    fn a_later_ipv6_fragment_ends_the_chain() {
        let later = [0, 0, 0, 8, 0, 0, 0, 1, 99];
        let header = parse_ip(&ipv6(44, &later), 0, 49).unwrap();
        assert_eq!((header.protocol, header.fragment_offset, header.more_fragments), (0, 8, false));
        let atomic = parse_ip(&ipv6(44, &[17, 0, 0, 0, 0, 0, 0, 1]), 0, 48).unwrap();
        assert!(!atomic.is_fragment() && atomic.has_options);
    }

    #[test]
    fn ports_types_and_what_has_neither_make_the_flow() {
        for (protocol, end, ports) in [
            (6, 24, (0x1388, 53)),
            (6, 23, (-1, -1)),
            (136, 24, (0x1388, 53)),
            (1, 22, (0x13, 0x88)),
            (58, 21, (-1, -1)),
            (135, 23, (0, 0x1_0000)),
            (135, 22, (-1, -1)),
            (47, 20, (0x1_0000, 0x1_0000)),
        ] {
            let packet = ipv4(0x45, end, 0, protocol);
            let flow = flow_key(&packet, &parse_ip(&packet, 0, 60).unwrap());
            assert_eq!((flow.source_port, flow.destination_port), ports, "{protocol} {end}");
        }
    }

    #[test]
    fn frames_with_tags_or_of_two_minds_are_not_for_this_engine() {
        let mut frame = vec![0; 12];
        frame.extend([8, 0]);
        frame.extend(ipv4(0x45, 44, 0, 6));
        assert_eq!(parse_frame(&frame).unwrap().payload(), 34);
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        assert_eq!(parse_frame(&frame), Err(PuntReason::Malformed));
        frame[12..14].copy_from_slice(&[0x81, 0]);
        assert_eq!(parse_frame(&frame), Err(PuntReason::NonIp));
        assert_eq!(parse_frame(&frame[..13]), Err(PuntReason::NonIp));
    }
}
