//! Joining in-order TCP segments, and UDP datagrams, of one flow into superframes for the host.
//!
//! Law: joins what the host's own receive offload would join, and nothing that a segmenter could not take apart again;
//! frames of one flow keep their order. TCP by the rules of `vnic.transport.coalesce`: the checksum of a superframe is
//! derived from those of its segments, so a segment that was damaged before it was protected stays visibly damaged. A
//! UDP superframe has to leave its checksum open, which the host takes for a good one; so each datagram is verified
//! before it is joined, and one that is damaged goes up alone, as it is.
//!
//! Source: the kernel's receive offload for TCP and UDP (at most 64 datagrams, equal but for the last, with checksums);
//! Virtual I/O Device 1.2 §5.1.6.4.1; RFC 9293 §3.1; RFC 1071 §2.

use std::collections::HashMap;

use crate::association::FlowKey;
use crate::card::{Packed, Seed};
use crate::checksum::{complement, fold, ipv4_is_right, pseudo_header, sum, swapped};
use crate::frames::{HostFrame, HostFrames, Piece, Vnet};
use crate::packet::{ETHERNET_LENGTH, IPV4_LENGTH, IPV6_LENGTH, UDP_LENGTH, double_word, protocol, word};

/// Bytes of the longest IP packet.
const MAX_PACKET: usize = 65535;
/// Datagrams in one superframe; kernels before 6.9 take no more (UDP_MAX_SEGMENTS).
const MAX_DATAGRAMS: usize = 64;
/// Frames up to this are copied whole: cheaper than one more piece to gather.
const SMALL: usize = 192;
const TCP_LENGTH: usize = 20;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
/// Don't Fragment alone: only then do identifications not matter (RFC 6864).
const ATOMIC: u16 = 0x4000;

const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

/// A frame for the host that lies in one piece in [`HostFrames::plain`]: untagged, with a whole IP packet without
/// options and nothing behind it.
#[derive(Clone, Copy, Debug)]
pub struct HostPacket {
    /// Where it lies.
    pub frame: Piece,
    /// Which frame of the burst that went in it was.
    pub origin: u32,
    /// Its flow.
    pub flow: FlowKey,
}

/// Which superframes the host takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joins {
    /// TCPV4 and TCPV6.
    pub tcp: bool,
    /// UDP_L4 (Linux since 6.2).
    pub udp: bool,
}

/// Joins the packets of one burst; keeps its memory from burst to burst.
#[derive(Default)]
pub struct Coalescer {
    runs: Vec<Run>,
    parts: Vec<Part>,
    /// The latest run of each flow, be it open or not.
    latest: HashMap<Packed, usize, Seed>,
    /// The latest entry of `latest`: most bursts are of one flow.
    last: Option<(Packed, usize)>,
}

/// What decides whether packets are joined, apart from their headers; small, as every packet has one for a while.
#[derive(Clone, Copy)]
struct Shape {
    /// How it may grow; None: not at all, it is one packet as it came.
    kind: Option<Kind>,
    /// TCP: it asks the receiver to push.
    push: bool,
    /// TCP: the sequence number that continues it.
    next_number: u32,
    /// Offset of the TCP or UDP header in the frame.
    layer4: usize,
    /// Offset of the payload in the frame.
    payload: usize,
    /// Payload bytes.
    size: usize,
}

/// A packet and those joined to it so far.
struct Run {
    first: HostPacket,
    /// Of the first packet; number and push are those of the last.
    shape: Shape,
    /// Payload bytes of all.
    length: usize,
    packets: usize,
    /// TCP: sum of the payload of all packets, as their checksums imply it, once there are two.
    payload_sum: u64,
    open: bool,
    /// Payload of the second packet and of the last, in `parts`.
    second: usize,
    tail: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
}

/// Payload that continues a run.
struct Part {
    piece: Piece,
    /// The part behind it, in `parts`; 0 is none, as no part is behind the first.
    next: usize,
}

impl Coalescer {
    /// Forget the burst and keep the memory.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        self.parts.clear();
        self.latest.clear();
        self.last = None;
    }

    /// Take the next packet of the burst.
    pub fn push(&mut self, plain: &[u8], packet: HostPacket, joins: Joins) {
        let kind = match packet.flow.protocol {
            protocol::TCP if joins.tcp => Kind::Tcp,
            protocol::UDP if joins.udp => Kind::Udp,
            _ => return self.runs.push(Run::new(packet, Shape::ALONE)),
        };
        let frame = &plain[packet.frame.start..packet.frame.start + packet.frame.length];
        let key = Packed::from(&packet.flow);
        let latest = match &self.last {
            Some((last, place)) if *last == key => Some(*place),
            _ => self.latest.get(&key).copied(),
        };
        let shape = match kind {
            Kind::Tcp => Shape::tcp(frame),
            Kind::Udp => Shape::udp(frame),
        };
        if let Some(place) = latest
            && let run = &mut self.runs[place]
            && run.open
        {
            if shape.kind == Some(kind) && run.takes(&shape, frame, plain) {
                let piece = Piece { start: packet.frame.start + shape.payload, length: shape.size };
                let number = self.parts.len();
                if run.packets == 1 {
                    run.second = number;
                } else {
                    self.parts[run.tail].next = number;
                }
                self.parts.push(Part { piece, next: 0 });
                run.join(&shape, frame, plain);
                run.tail = number;
                self.last = Some((key, place));
                return;
            }
            // What cannot be joined still ends its flow's run, so that nothing overtakes it.
            run.open = false;
        }
        let run = Run::new(packet, shape);
        if run.open {
            let place = self.runs.len();
            self.latest.insert(key, place);
            self.last = Some((key, place));
        }
        self.runs.push(run);
    }

    /// Append the frames of the burst to `output`, joined ones in the place of their first packet; then begin anew.
    pub fn finish(&mut self, output: &mut HostFrames) {
        for run in &self.runs {
            run.emit(&self.parts, output);
        }
        self.clear();
    }
}

impl Shape {
    const ALONE: Self = Self { kind: None, push: false, next_number: 0, layer4: 0, payload: 0, size: 0 };

    /// Of a TCP segment.
    fn tcp(frame: &[u8]) -> Self {
        let Some(layer4) = joinable_header(frame) else {
            return Self::ALONE;
        };
        if frame.len() < layer4 + TCP_LENGTH {
            return Self::ALONE;
        }
        let payload = layer4 + usize::from(frame[layer4 + 12] >> 4) * 4;
        let flags = frame[layer4 + 13];
        if flags & !PSH != ACK || payload < layer4 + TCP_LENGTH || payload >= frame.len() {
            return Self::ALONE;
        }
        let size = frame.len() - payload;
        // Payload is shorter than 2^16.
        let next_number = double_word(frame, layer4 + 4).wrapping_add(size as u32);
        Self { kind: Some(Kind::Tcp), push: flags & PSH != 0, next_number, layer4, payload, size }
    }

    /// Of a UDP datagram.
    fn udp(frame: &[u8]) -> Self {
        let Some(layer4) = joinable_header(frame) else {
            return Self::ALONE;
        };
        let payload = layer4 + UDP_LENGTH;
        if frame.len() <= payload
            || usize::from(word(frame, layer4 + 4)) != frame.len() - layer4
            || word(frame, layer4 + 6) == 0
        {
            return Self::ALONE;
        }
        Self { kind: Some(Kind::Udp), layer4, payload, size: frame.len() - payload, ..Self::ALONE }
    }
}

impl Run {
    fn new(first: HostPacket, shape: Shape) -> Self {
        let open = shape.kind.is_some() && !shape.push;
        Self { first, shape, length: shape.size, packets: 1, payload_sum: 0, open, second: 0, tail: 0 }
    }

    fn frame<'a>(&self, plain: &'a [u8]) -> &'a [u8] {
        &plain[self.first.frame.start..self.first.frame.start + self.first.frame.length]
    }

    fn pseudo_header(&self, length: usize) -> u64 {
        pseudo_header(self.first.flow.source, self.first.flow.destination, self.first.flow.protocol, length)
    }

    /// Whether a packet of the same flow and kind continues this run.
    fn takes(&mut self, other: &Shape, its: &[u8], plain: &[u8]) -> bool {
        let mine = self.frame(plain);
        let Shape { kind, layer4, payload, size, next_number, .. } = self.shape;
        if other.size > size
            || other.payload != payload
            || payload - ETHERNET_LENGTH + self.length + other.size > MAX_PACKET
            || !alike(mine, its, layer4)
        {
            return false;
        }
        if kind == Some(Kind::Tcp) {
            let (mine, its) = (&mine[layer4..payload], &its[layer4..payload]);
            return double_word(its, 4) == next_number
                // Acknowledgement number and data offset; window; options.
                && mine[8..13] == its[8..13]
                && mine[14..16] == its[14..16]
                && mine[TCP_LENGTH..] == its[TCP_LENGTH..];
        }
        if self.packets == MAX_DATAGRAMS {
            return false;
        }
        if self.packets == 1 && !self.datagram_is_right(mine) {
            return false;
        }
        self.datagram_is_right(its)
    }

    /// Whether the checksum of a UDP datagram of this flow is right.
    fn datagram_is_right(&self, frame: &[u8]) -> bool {
        let datagram = &frame[self.shape.layer4..];
        fold(self.pseudo_header(datagram.len()) + sum(datagram)) == 0xffff
    }

    /// Sum of the payload of a segment of this flow, as its own checksum implies it: everything together sums to zero.
    fn implied_sum(&self, frame: &[u8]) -> u64 {
        let segment = &frame[self.shape.layer4..];
        let header = &segment[..self.shape.payload - self.shape.layer4];
        u64::from(complement(self.pseudo_header(segment.len()) + sum(header)))
    }

    /// Join a packet that [`Self::takes`] took.
    fn join(&mut self, other: &Shape, its: &[u8], plain: &[u8]) {
        if self.shape.kind == Some(Kind::Tcp) {
            if self.packets == 1 {
                self.payload_sum = self.implied_sum(self.frame(plain));
            }
            let sum = self.implied_sum(its);
            self.payload_sum += if self.length & 1 == 1 { swapped(sum) } else { sum };
            self.shape.next_number = other.next_number;
            self.shape.push = other.push;
        }
        self.length += other.size;
        self.packets += 1;
        self.open = !other.push && other.size == self.shape.size;
    }

    fn emit(&self, parts: &[Part], output: &mut HostFrames) {
        let HostFrames { frames, heads, pieces, plain } = output;
        let whole = self.frame(plain);
        let start = heads.len();
        let first_piece = pieces.len();
        let mut vnet = Vnet::default();
        let head = if self.packets > 1 {
            self.shape.payload
        } else if whole.len() <= SMALL {
            whole.len()
        } else {
            // Addresses and ports, whatever follows.
            ETHERNET_LENGTH + IPV6_LENGTH + TCP_LENGTH
        };
        heads.extend_from_slice(&whole[..head]);
        if head < whole.len() {
            pieces.push(Piece { start: self.first.frame.start + head, length: whole.len() - head });
        }
        if self.packets > 1 {
            let mut part = &parts[self.second];
            pieces.push(part.piece);
            while part.next != 0 {
                part = &parts[part.next];
                pieces.push(part.piece);
            }
            vnet = self.complete(&mut heads[start..]);
        }
        frames.push(HostFrame {
            vnet,
            head: Piece { start, length: head },
            first_piece,
            pieces: pieces.len() - first_piece,
            origin: self.first.origin,
        });
    }

    /// Make the headers of the first packet those of the superframe; gives its virtio-net header.
    fn complete(&self, head: &mut [u8]) -> Vnet {
        let layer4 = self.shape.layer4;
        let length = self.shape.payload - layer4 + self.length;
        // A superframe is an IP packet of at most 65,535 bytes.
        let put = |bytes: &mut [u8], at: usize, value: usize| {
            bytes[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
        };
        let ipv4 = layer4 == ETHERNET_LENGTH + IPV4_LENGTH;
        if ipv4 {
            put(head, 16, layer4 - ETHERNET_LENGTH + length);
            put(head, 24, 0);
            let field = complement(sum(&head[ETHERNET_LENGTH..layer4]));
            put(head, 24, usize::from(field));
        } else {
            put(head, 18, length);
        }
        let mut vnet = Vnet {
            // Headers are far shorter than 2^16, and so is the payload of a packet.
            hdr_len: self.shape.payload as u16,
            gso_size: self.shape.size as u16,
            ..Vnet::default()
        };
        let pseudo_header = self.pseudo_header(length);
        if self.shape.kind == Some(Kind::Udp) {
            put(head, layer4 + 4, length);
            put(head, layer4 + 6, usize::from(fold(pseudo_header)));
            vnet.gso_type = GSO_UDP_L4;
            vnet.flags = NEEDS_CSUM;
            vnet.csum_start = layer4 as u16;
            vnet.csum_offset = 6;
        } else {
            head[layer4 + 13] |= if self.shape.push { PSH } else { 0 };
            put(head, layer4 + 16, 0);
            let field = complement(pseudo_header + sum(&head[layer4..]) + self.payload_sum);
            put(head, layer4 + 16, usize::from(field));
            // No flag asks for or vouches for a checksum: the host checks the one that is there.
            vnet.gso_type = if ipv4 { GSO_TCPV4 } else { GSO_TCPV6 };
        }
        vnet
    }
}

/// Offset of what follows the IP header, if that can be that of a superframe. A damaged IPv4 header cannot, for joining
/// would give it a good checksum.
fn joinable_header(frame: &[u8]) -> Option<usize> {
    if frame[ETHERNET_LENGTH] >> 4 == 6 {
        return Some(ETHERNET_LENGTH + IPV6_LENGTH);
    }
    let layer4 = ETHERNET_LENGTH + IPV4_LENGTH;
    (word(frame, 20) == ATOMIC && ipv4_is_right(frame, ETHERNET_LENGTH)).then_some(layer4)
}

/// Whether what stands before the ports differs in nothing but lengths, identification and header checksum. (Addresses
/// and ports are those of the flow.)
fn alike(mine: &[u8], its: &[u8], layer4: usize) -> bool {
    if layer4 == ETHERNET_LENGTH + IPV4_LENGTH {
        mine[..16] == its[..16] && mine[20..24] == its[20..24]
    } else {
        mine[..18] == its[..18] && mine[20..22] == its[20..22]
    }
}
