//! Framing: outer headers, AH and ESP headers, padding, trailer, and the room for IV and ICV.
//!
//! Law: as `vnic.transport.encapsulation`: writes every byte but IV, cipher text and ICV, which stay zero; all sizes
//! follow from the SAs.
//!
//! ```text
//! transport mode  [ Ethernet | IP | UDP? | AH? | ESP 8 | IV |   payload         | pad | 2 | ICV ]
//! tunnel mode     [ Ethernet | outer IP | UDP? | AH? | ESP 8 | IV |   inner IP packet | pad | 2 | ICV ]
//!                 |<----------------- front, up to the payload ------>|
//! ```
//!
//! Source: RFC 4301 §5.1.2, RFC 4302 §3.1, RFC 4303 §3.1, RFC 3948 §2.1, RFC 6040 §4.1, RFC 6864 §4.1.

use std::net::IpAddr;

use crate::association::Encapsulation;
use crate::checksum::complement;
use crate::packet::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LENGTH, IPV6_LENGTH, IpHeader, UDP_LENGTH, double_word,
    protocol, word,
};

const ESP_LENGTH: usize = 8;
const TRAILER: usize = 2;
const AH_FIXED: usize = 12;

/// The kernel's default for locally made packets.
const HOP_LIMIT: u8 = 64;
const ECN: u8 = 3;
const DONT_FRAGMENT: u8 = 0x40;

/// The monotonic padding 1, 2, 3, … (RFC 4303 §2.4).
const PADDING: [u8; 255] = {
    let mut bytes = [0; 255];
    let mut at = 0;
    while at < 255 {
        bytes[at] = at as u8 + 1;
        at += 1;
    }
    bytes
};

/// Room for the ICV, before it is known; no ICV is longer.
const ZEROS: [u8; 64] = [0; 64];

/// What an encapsulation adds to a packet, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Outer IP header; 0 in transport mode.
    outer: usize,
    udp: usize,
    ah: usize,
    /// ESP header and IV; 0 without ESP.
    esp: usize,
    icv: usize,
    /// A power of two.
    alignment: usize,
}

impl Sizes {
    /// Of an encapsulation; None: it is none that is framed here.
    pub fn of(plan: &Encapsulation) -> Option<Self> {
        let outer = match plan.outer {
            None => 0,
            Some(outer) if outer.source.is_ipv4() != outer.destination.is_ipv4() => return None,
            Some(outer) if outer.source.is_ipv4() => IPV4_LENGTH,
            Some(_) => IPV6_LENGTH,
        };
        let ah = plan.ah.as_ref().map_or(0, |sa| sa.ah_length);
        let (esp, icv, alignment) = match &plan.esp {
            None => (0, 0, 4),
            Some(sa) => {
                (ESP_LENGTH + sa.transform.iv_length(), sa.transform.icv_length(), sa.transform.alignment().max(1))
            }
        };
        let udp = if plan.udp.is_some() { UDP_LENGTH } else { 0 };
        let whole = match &plan.ah {
            None => esp != 0,
            // In 32-bit words, counted in a byte (RFC 4302 §2.2).
            Some(sa) => {
                let least = AH_FIXED + sa.transform.iv_length() + sa.transform.icv_length();
                udp == 0 && ah % 4 == 0 && (least..=4 * 257).contains(&ah)
            }
        };
        let aligned = alignment.is_power_of_two() && alignment <= 256;
        (whole && aligned && icv <= ZEROS.len()).then_some(Self { outer, udp, ah, esp, icv, alignment })
    }

    /// Largest IP packet, in bytes, that fits `path_mtu` once framed; `header` are the bytes of its IP header.
    pub fn room(&self, path_mtu: usize, header: usize) -> usize {
        let kept = if self.outer == 0 { header } else { 0 };
        // No length field says more.
        let Some(room) = path_mtu.min(0xffff).checked_sub(self.outer + kept + self.udp + self.ah + self.esp + self.icv)
        else {
            return 0;
        };
        if self.esp == 0 {
            return room + kept;
        }
        ((room & !(self.alignment - 1)) + kept).saturating_sub(TRAILER)
    }
}

/// Offsets of the parts of a frame that was written, in the arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts {
    /// First byte of the frame.
    pub start: usize,
    /// The outermost IP header.
    pub ip: usize,
    /// The UDP header around ESP.
    pub udp: usize,
    /// The AH header.
    pub ah: usize,
    /// The ESP header.
    pub esp: usize,
    /// What follows the front.
    pub payload: usize,
    /// The padding behind the payload.
    pub padding: usize,
    /// Behind the last byte of the frame.
    pub end: usize,
}

/// Everything before the payload of a packet, or of all the packets of a superframe.
#[derive(Default)]
pub(crate) struct Front {
    bytes: Vec<u8>,
    /// Offsets in `bytes`.
    ip: usize,
    udp: usize,
    ah: usize,
    esp: usize,
    inner: usize,
    /// Bytes of TCP or UDP header at the end.
    layer4: usize,
    /// Identification of the packet itself; IPv4 only.
    identification: u16,
    /// Identification of the outer header is the sequence number.
    numbered: bool,
    /// Sums of the outermost and the inner IPv4 header without length, identification and checksum.
    outer_sum: u64,
    inner_sum: u64,
    next_header: u8,
}

/// Sum of an IPv4 header, of which length, identification and checksum are cleared.
fn clear_ipv4(header: &mut [u8]) -> u64 {
    header[2..6].fill(0);
    header[10..12].fill(0);
    // 32-bit words add up to the same (RFC 1071 §2 (C)).
    (0..IPV4_LENGTH / 4).map(|place| u64::from(double_word(header, 4 * place))).sum()
}

/// Write length, identification and checksum of an IPv4 header, or the length of an IPv6 header.
fn write_ip(header: &mut [u8], length: usize, identification: u16, sum: u64) {
    if header[0] >> 4 == 4 {
        let length = u16::try_from(length).expect("no longer than the path takes");
        header[2..4].copy_from_slice(&length.to_be_bytes());
        header[4..6].copy_from_slice(&identification.to_be_bytes());
        let value = complement(sum + u64::from(length) + u64::from(identification));
        header[10..12].copy_from_slice(&value.to_be_bytes());
    } else {
        let length = u16::try_from(length - IPV6_LENGTH).expect("no longer than the path takes");
        header[4..6].copy_from_slice(&length.to_be_bytes());
    }
}

impl Front {
    /// Write the front of a packet; `layer4` are the bytes of the TCP or UDP header that belong to it.
    pub fn make(&mut self, plan: &Encapsulation, sizes: &Sizes, frame: &[u8], packet: &IpHeader, layer4: usize) {
        let header = &frame[ETHERNET_LENGTH..packet.payload() + layer4];
        let ipv6 = header[0] >> 4 == 6;
        let bytes = &mut self.bytes;
        bytes.clear();
        bytes.extend_from_slice(&frame[..ETHERNET_LENGTH]);
        self.ip = ETHERNET_LENGTH;
        self.layer4 = layer4;
        self.identification = if ipv6 { 0 } else { word(header, 4) };
        let innermost = if sizes.outer == 0 {
            packet.protocol
        } else if ipv6 {
            protocol::IPV6_IN_IP
        } else {
            protocol::IPV4_IN_IP
        };
        self.next_header = innermost;
        let behind_ah = if sizes.esp != 0 { protocol::ESP } else { innermost };
        let behind_udp = if sizes.ah != 0 { protocol::AH } else { behind_ah };
        let behind_ip = if sizes.udp != 0 { protocol::UDP } else { behind_udp };
        self.numbered = false;
        match &plan.outer {
            None => {
                bytes.extend_from_slice(&header[..packet.header_length]);
                bytes[ETHERNET_LENGTH + if ipv6 { 6 } else { 9 }] = behind_ip;
            }
            Some(outer) => {
                let (class, label, dont_fragment) = if ipv6 {
                    let word = double_word(header, 0);
                    ((word >> 20) as u8, word & 0xf_ffff, true)
                } else {
                    (header[1], 0, header[6] & DONT_FRAGMENT != 0)
                };
                let class = if outer.no_ecn { class & !ECN } else { class };
                match (outer.source, outer.destination) {
                    (IpAddr::V4(source), IpAddr::V4(destination)) => {
                        // An atomic datagram needs no identification (RFC 6864 §4.1).
                        let atomic = dont_fragment && !outer.no_pmtu_discovery;
                        self.numbered = !atomic;
                        let flags = if atomic { DONT_FRAGMENT } else { 0 };
                        bytes[12..14].copy_from_slice(&ETHERTYPE_IPV4);
                        bytes.extend_from_slice(&[0x45, class, 0, 0, 0, 0, flags, 0, HOP_LIMIT, behind_ip, 0, 0]);
                        bytes.extend_from_slice(&source.octets());
                        bytes.extend_from_slice(&destination.octets());
                    }
                    (IpAddr::V6(source), IpAddr::V6(destination)) => {
                        let word = 6 << 28 | u32::from(class) << 20 | label;
                        bytes[12..14].copy_from_slice(&ETHERTYPE_IPV6);
                        bytes.extend_from_slice(&word.to_be_bytes());
                        bytes.extend_from_slice(&[0, 0, behind_ip, HOP_LIMIT]);
                        bytes.extend_from_slice(&source.octets());
                        bytes.extend_from_slice(&destination.octets());
                    }
                    _ => unreachable!("`Sizes::of` has seen that both are of one family"),
                }
            }
        }
        self.outer_sum = 0;
        if bytes[ETHERNET_LENGTH] >> 4 == 4 {
            self.outer_sum = clear_ipv4(&mut bytes[ETHERNET_LENGTH..]);
        }
        self.udp = bytes.len();
        if let Some(udp) = &plan.udp {
            bytes.extend_from_slice(&udp.source_port.to_be_bytes());
            bytes.extend_from_slice(&udp.destination_port.to_be_bytes());
            bytes.extend_from_slice(&[0; 4]);
        }
        self.ah = bytes.len();
        if let Some(sa) = &plan.ah {
            let words = u8::try_from(sizes.ah / 4 - 2).expect("`Sizes::of` has seen that it fits");
            bytes.extend_from_slice(&[behind_ah, words, 0, 0]);
            bytes.extend_from_slice(&sa.spi.to_be_bytes());
            bytes.resize(self.ah + sizes.ah, 0);
        }
        self.esp = bytes.len();
        if let Some(sa) = &plan.esp {
            bytes.extend_from_slice(&sa.spi.to_be_bytes());
            bytes.resize(self.esp + sizes.esp, 0);
        }
        self.inner = bytes.len();
        if plan.outer.is_some() {
            bytes.extend_from_slice(header);
            self.inner_sum = 0;
            // One packet that is no superframe stays as it is.
            if !ipv6 && layer4 != 0 {
                let inner = self.inner;
                self.inner_sum = clear_ipv4(&mut bytes[inner..inner + packet.header_length]);
            }
        } else {
            bytes.extend_from_slice(&header[packet.header_length..]);
        }
    }

    /// Append a frame: the front, with what is this frame's own written into the IP, UDP, AH and ESP headers, the
    /// payload, padding, trailer and room for the ICV.
    ///
    /// `index` is the place of the packet in its superframe; TCP or UDP header are left to [`crate::segment`].
    pub fn emit(
        &self,
        sizes: &Sizes,
        payload: &[u8],
        index: usize,
        esp_number: u64,
        ah_number: u64,
        out: &mut Vec<u8>,
    ) -> Parts {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        out.extend_from_slice(payload);
        let padding = out.len();
        if sizes.esp != 0 {
            let protected = padding - start - self.inner;
            let pad = (protected + TRAILER).wrapping_neg() & (sizes.alignment - 1);
            out.extend_from_slice(&PADDING[..pad]);
            out.extend_from_slice(&[pad as u8, self.next_header]);
            out.extend_from_slice(&ZEROS[..sizes.icv]);
        }
        let end = out.len();
        let identification = self.identification.wrapping_add(index as u16);
        let frame = &mut out[start..];
        let own = if sizes.outer == 0 {
            identification
        } else if self.numbered {
            (if sizes.esp != 0 { esp_number } else { ah_number }) as u16
        } else {
            0
        };
        write_ip(&mut frame[self.ip..], end - start - self.ip, own, self.outer_sum);
        if sizes.outer != 0 && self.layer4 != 0 {
            write_ip(&mut frame[self.inner..], padding - start - self.inner, identification, self.inner_sum);
        }
        if sizes.udp != 0 {
            let length = u16::try_from(end - start - self.udp).expect("no longer than the path takes");
            frame[self.udp + 4..self.udp + 6].copy_from_slice(&length.to_be_bytes());
        }
        if sizes.ah != 0 {
            frame[self.ah + 8..self.ah + 12].copy_from_slice(&(ah_number as u32).to_be_bytes());
        }
        if sizes.esp != 0 {
            frame[self.esp + 4..self.esp + 8].copy_from_slice(&(esp_number as u32).to_be_bytes());
        }
        Parts {
            start,
            ip: start + self.ip,
            udp: start + self.udp,
            ah: start + self.ah,
            esp: start + self.esp,
            payload: start + self.bytes.len(),
            padding,
            end,
        }
    }
}
