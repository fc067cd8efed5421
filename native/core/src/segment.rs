//! Cutting a superframe of the host into the packets it stands for.
//!
//! Law: as `vnic.transport.segmentation`: lengths, numbers, flags and checksums of every packet are right; the payload
//! is not touched. Headers are written where [`crate::frame`] has put a copy of the superframe's.
//!
//! Source: Virtual I/O Device 1.2 §5.1.6.2; RFC 9293 §3.1; RFC 3168 §6.1.2 (CWR on the first segment only); FIN and
//! PSH on the last (R195).

use crate::checksum::{complement, pseudo_header, sum};
use crate::frames::Vnet;
use crate::packet::{IpHeader, UDP_LENGTH, double_word, protocol};
use crate::punt::PuntReason;

const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

const TCP_LENGTH: usize = 20;
/// As in `vnic.transport.segmentation`.
const MOST_SEGMENTS: usize = 8192;

/// How a superframe is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// Bytes of the TCP or UDP header.
    pub layer4: usize,
    /// Payload bytes of each packet but the last.
    pub size: usize,
    /// How many packets there are.
    pub count: usize,
    tcp: bool,
    /// Sum of the pseudo-header and of all of the TCP or UDP header that is the same in every packet.
    constant: u64,
    flags: u8,
    sequence_number: u32,
}

impl Cut {
    /// See how to cut a superframe so that every packet has at most `room` bytes.
    ///
    /// # Errors
    /// `Superframe`: its kind does not match its packet, or is none that is cut here. `TooBig`: it cannot be cut so.
    pub fn new(frame: &[u8], packet: &IpHeader, vnet: &Vnet, room: usize) -> Result<Self, PuntReason> {
        let start = packet.payload();
        let body = packet.end - start;
        let wanted = usize::from(vnet.gso_size);
        let kind = vnet.gso_type & 0x7f;
        let (tcp, layer4) = match packet.protocol {
            protocol::TCP if matches!(kind, GSO_TCPV4 | GSO_TCPV6) && body >= TCP_LENGTH => {
                (true, usize::from(frame[start + 12] >> 4) * 4)
            }
            protocol::UDP if kind == GSO_UDP_L4 && body >= UDP_LENGTH => (false, UDP_LENGTH),
            _ => return Err(PuntReason::Superframe),
        };
        let least = if tcp { TCP_LENGTH } else { UDP_LENGTH };
        if wanted == 0 || !(least..=body).contains(&layer4) || body - layer4 > wanted * MOST_SEGMENTS {
            return Err(PuntReason::Superframe);
        }
        let size = wanted.min(room.saturating_sub(packet.header_length + layer4));
        if size != wanted && (size == 0 || !tcp) {
            return Err(PuntReason::TooBig);
        }
        let mut constant = pseudo_header(packet.source, packet.destination, packet.protocol, 0);
        let (mut flags, mut sequence_number) = (0, 0);
        if tcp {
            let header = &frame[start..start + layer4];
            flags = header[13];
            sequence_number = double_word(header, 4);
            constant += sum(&header[..4]) + sum(&header[8..12]) + (u64::from(header[12]) << 8);
            constant += sum(&header[14..16]) + sum(&header[18..]);
        } else {
            constant += sum(&frame[start..start + 4]);
        }
        // Without payload it is still one packet.
        let count = (body - layer4).div_ceil(size).max(1);
        Ok(Self { layer4, size, count, tcp, constant, flags, sequence_number })
    }

    /// Write what is a packet's own into its TCP or UDP header.
    ///
    /// `header` is a copy of the superframe's, `payload` the bytes behind it, `index` its place among the packets.
    pub fn write(&self, header: &mut [u8], payload: &[u8], index: usize) {
        let length = self.layer4 + payload.len();
        let total = self.constant + length as u64 + sum(payload);
        if !self.tcp {
            let length = u16::try_from(length).expect("not longer than the superframe's length field");
            let value = complement(total + u64::from(length));
            header[4..6].copy_from_slice(&length.to_be_bytes());
            // 0 means "none" (RFC 768).
            header[6..8].copy_from_slice(&(if value == 0 { 0xffff } else { value }).to_be_bytes());
            return;
        }
        let mut flags = self.flags;
        if index != 0 {
            flags &= !CWR;
        }
        if index + 1 != self.count {
            flags &= !FIN_PSH;
        }
        let number = self.sequence_number.wrapping_add(u32::try_from(index * self.size).expect("fits a superframe"));
        let total = total + u64::from(flags) + u64::from(number >> 16) + u64::from(number & 0xffff);
        header[4..8].copy_from_slice(&number.to_be_bytes());
        header[13] = flags;
        header[16..18].copy_from_slice(&complement(total).to_be_bytes());
    }

    /// Where the payload of a packet lies in that of the superframe of `length` bytes.
    pub fn range(&self, index: usize, length: usize) -> std::ops::Range<usize> {
        let start = index * self.size;
        start..length.min(start + self.size)
    }
}
