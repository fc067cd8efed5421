//! Bursts of the wire on their way to the host.
//!
//! Law: a packet goes to the host after every check that `vnic.miniport.receive` and `vnic.transport.inbound` would make
//! of it, or it is a punt, of which nothing is taken note. Windows and counters move only behind the last check, in the
//! order of the burst. Wire frames are read, never written.
//!
//! ```text
//! parse -> SA -> number -> ICVs of all AH -> open all ESP -> in order: number again, padding, inner header, flow,
//!                                                            limit -> commit -> coalesce
//!
//! room of one packet in `plain`:   | Ethernet, IP header of transport mode | text: packet, padding, trailer |
//! ```
//!
//! Source: RFC 4301 §5.2; RFC 4302 §3.4; RFC 4303 §3.4; RFC 3948 §2; RFC 6040 §4.2.

use std::sync::atomic::Ordering::Relaxed;

use crate::association::{FlowKey, InboundSa, Mode, Protocol, STALE};
use crate::card::{Allowed, Card, InboundSas};
use crate::checksum::{checksum, fold, ipv4_is_right, pseudo_header, sum};
use crate::cipher::{AhJob, EspOpen, Opener, ah_icvs, open_esp};
use crate::coalesce::{Coalescer, HostPacket};
use crate::frames::{Frame, Frames, HostFrames, Piece};
use crate::keys::equal;
use crate::packet::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LENGTH, IPV6_LENGTH, IpHeader, UDP_LENGTH, double_word,
    flow_key, is_extension_header, parse_frame, parse_plain, protocol, word,
};
use crate::punt::{Punt, PuntReason};
use crate::state::{ReplayVerdict, infer_extended};

const ESP_HEADER: usize = 8;
const ESP_TRAILER: usize = 2;
const AH_FIXED: usize = 12;
/// Bytes of a packet that its ciphers take at once, by far.
const LONGEST: usize = 65_000;
const NAT_TRAVERSAL_PORT: u16 = 4500;
const ECN: u8 = 3;
/// In front of each text: an Ethernet header and the longest IP header that goes with it, and what lets ciphers write
/// to the beginning of a cache line.
const FRONT: usize = 64;
/// Packets of a window in which the order of a burst decides what is too old, when numbers have gaps.
const SMALL_WINDOW: u64 = 1024;
/// The monotonic padding (RFC 4303 §2.4).
const PADDING: [u8; 255] = {
    let mut bytes = [0; 255];
    let mut at = 0;
    while at < 255 {
        bytes[at] = at as u8 + 1;
        at += 1;
    }
    bytes
};

/// Memory that is kept from burst to burst.
#[derive(Default)]
pub(crate) struct Scratch {
    packets: Vec<Packet<'static>>,
    macs: Vec<AhJob<'static, Opener>>,
    icvs: Vec<[u8; 16]>,
    opens: Vec<EspOpen<'static>>,
    good: Vec<bool>,
    coalescer: Coalescer,
    held: Vec<u64>,
}

/// An empty vector of other references with the memory of an old one.
fn recycled<A, B>(vector: &mut Vec<A>) -> Vec<B> {
    vector.clear();
    // Collecting in place keeps the memory, as A and B differ in lifetimes only.
    std::mem::take(vector).into_iter().map(|_| unreachable!("it is empty")).collect()
}

/// A packet that its SAs may take.
struct Packet<'a> {
    /// Its place in the burst.
    index: u32,
    /// Its frame, without what is behind its IP packet.
    frame: &'a [u8],
    /// Bytes of its IP header, which has no options; so it says the version, too.
    header_length: usize,
    ah: Option<Ah<'a>>,
    esp: Option<Esp<'a>>,
    /// Its ICVs hold as far as they have been looked at.
    good: bool,
}

/// An AH layer.
#[derive(Clone, Copy)]
struct Ah<'a> {
    sa: &'a InboundSa,
    number: u64,
    /// Offset of the header in the frame.
    start: usize,
    length: usize,
    /// Where the muted packet lies in `plain`.
    muted: usize,
}

/// An ESP layer.
#[derive(Clone, Copy)]
struct Esp<'a> {
    sa: &'a InboundSa,
    number: u64,
    /// Offset of the header in the burst.
    start: usize,
    /// Offset behind the ICV in the burst.
    end: usize,
    /// Where the plain text goes in `plain`, with padding and trailer.
    text: Piece,
}

impl Card {
    /// Open and check a burst of the wire.
    ///
    /// `output` begins anew and gets frames for the host, those of one flow in the order they came; `punts` gets, in
    /// the order of the burst, those that have to go to the Python engine. `now` is in seconds.
    pub fn receive(&mut self, input: &Frames, now: f64, output: &mut HostFrames, punts: &mut Vec<Punt>) {
        let Self { manager, sas, allowed, receive: scratch, counts, joins, .. } = self;
        output.clear();
        // A burst that a defect has ended leaves packets there, whose place now has other text.
        scratch.coalescer.clear();
        let first_punt = punts.len();
        let mut packets: Vec<Packet> = recycled(&mut scratch.packets);
        let mut room = 0;
        let mut last = None;
        for (index, frame) in (0..).zip(&input.frames) {
            if let Err(reason) = admit(sas, input, index, frame, &mut room, &mut last, &mut packets) {
                punts.push(Punt { index, reason });
            }
        }
        if output.plain.len() < room {
            output.plain.resize(room, 0);
        }
        if packets.iter().any(|packet| packet.ah.is_some()) {
            let mut jobs = recycled(&mut scratch.macs);
            for packet in &packets {
                if let Some(ah) = &packet.ah {
                    jobs.push(mute(packet, ah, &mut output.plain));
                }
            }
            let done = ah_icvs(manager, &output.plain, &jobs, &mut scratch.icvs);
            let mut icvs = scratch.icvs.iter().filter(|_| done);
            for packet in &mut packets {
                if let Some(ah) = &packet.ah {
                    let length = ah.sa.transform.icv_length();
                    let start = ah.start + AH_FIXED + ah.sa.transform.iv_length();
                    let received = &packet.frame[start..start + length];
                    packet.good = icvs.next().is_some_and(|icv| equal(received, &icv[..length]));
                }
            }
            scratch.macs = recycled(&mut jobs);
        }
        let mut opens = recycled(&mut scratch.opens);
        for esp in packets.iter().filter(|packet| packet.good).filter_map(|packet| packet.esp.as_ref()) {
            opens.push(EspOpen {
                start: esp.start,
                end: esp.end,
                high: esp.sa.esn.then_some((esp.number >> 32) as u32),
                text: esp.text.start,
                opener: &esp.sa.transform,
            });
        }
        open_esp(manager, &input.bytes, &mut output.plain, &opens, &mut scratch.good);
        scratch.opens = recycled(&mut opens);
        let mut verdicts = scratch.good.iter();
        for packet in packets.iter_mut().filter(|packet| packet.good && packet.esp.is_some()) {
            packet.good = verdicts.next().copied().unwrap_or(false);
        }
        scratch.held.clear();
        let mut allowed = LastAllowed { allowed, last: None };
        for packet in &packets {
            let outermost = packet.outermost();
            let held = outermost.is_some_and(|sa| scratch.held.contains(&sa.id));
            let accepted =
                if held { Err(PuntReason::Order) } else { accept(packet, &mut allowed, now, &mut output.plain) };
            if let (Err(reason), Some(sa)) = (&accepted, outermost)
                && overtaking_hurts(*reason, sa, input.frames.len())
            {
                scratch.held.push(sa.id);
            }
            match accepted {
                Ok(accepted) => {
                    counts.received += 1;
                    scratch.coalescer.push(&output.plain, accepted, *joins);
                }
                Err(reason) => punts.push(Punt { index: packet.index, reason }),
            }
        }
        scratch.coalescer.finish(output);
        scratch.packets = recycled(&mut packets);
        punts[first_punt..].sort_unstable_by_key(|punt| punt.index);
        counts.note(&punts[first_punt..]);
    }
}

/// Whether a packet that is left may be good, and its SA's window so small that it and packets behind it in the burst
/// could make each other too old.
fn overtaking_hurts(reason: PuntReason, sa: &InboundSa, frames: usize) -> bool {
    let bits = sa.window.bits();
    !matches!(reason, PuntReason::Icv | PuntReason::Replay | PuntReason::Order)
        && bits != 0
        && bits < SMALL_WINDOW.max(4 * frames as u64)
}

/// The flows that may pass, and the one that was asked for last: packets of one flow come together.
struct LastAllowed<'a> {
    allowed: &'a Allowed,
    last: Option<(FlowKey, u64)>,
}

impl LastAllowed<'_> {
    fn contains(&mut self, flow: &FlowKey, outermost: u64) -> bool {
        if self.last.as_ref().is_some_and(|(last, sa)| last == flow && *sa == outermost) {
            return true;
        }
        let contains = self.allowed.contains(flow, outermost);
        if contains {
            self.last = Some((*flow, outermost));
        }
        contains
    }
}

impl<'a> Packet<'a> {
    fn outermost(&self) -> Option<&'a InboundSa> {
        match (&self.ah, &self.esp) {
            (Some(ah), _) => Some(ah.sa),
            (None, Some(esp)) => Some(esp.sa),
            (None, None) => None,
        }
    }
}

/// Find the SAs of a frame, see whether they may take it, and put it behind `packets`.
///
/// `room` is how much of `plain` has been given away; a packet takes some more. `last` is the SA that was found last.
fn admit<'a>(
    sas: &'a InboundSas,
    input: &'a Frames,
    index: u32,
    frame: &Frame,
    room: &mut usize,
    last: &mut Option<&'a InboundSa>,
    packets: &mut Vec<Packet<'a>>,
) -> Result<(), PuntReason> {
    if !frame.vnet.is_plain() {
        return Err(PuntReason::Superframe);
    }
    let bytes = input.bytes_of(frame);
    let header = parse_frame(bytes)?;
    let start = header.payload();
    let mut ah = None;
    let inner = match header.protocol {
        protocol::ESP => {
            let sa = find(sas, last, bytes, &header, start, start, Protocol::Esp)?;
            if sa.udp.is_some() || sa.only_inside {
                return Err(PuntReason::UnknownSa);
            }
            Some((sa, start))
        }
        protocol::UDP => {
            if !holds_esp(bytes, start, header.end) {
                return Err(PuntReason::Clear);
            }
            // Any other datagram may look like that too.
            let sa = find(sas, last, bytes, &header, start + UDP_LENGTH, start + UDP_LENGTH, Protocol::Esp)
                .map_err(|_| PuntReason::Clear)?;
            let ports = sa.udp.map(|udp| (udp.source_port, udp.destination_port));
            if ports != Some((word(bytes, start), word(bytes, start + 2))) || sa.only_inside {
                return Err(PuntReason::UnknownSa);
            }
            if !datagram_is_right(bytes, &header) {
                return Err(PuntReason::Malformed);
            }
            Some((sa, start + UDP_LENGTH))
        }
        protocol::AH => {
            let sa = find(sas, last, bytes, &header, start, start + 4, Protocol::Ah)?;
            if header.length() > LONGEST {
                return Err(PuntReason::TooBig);
            }
            let length = ah_length(bytes, &header, sa)?;
            let number = number_of(sa, double_word(bytes, start + 8))?;
            // The muted packet begins where its text would, and makes room for itself.
            let muted = place(room, header.length());
            ah = Some(Ah { sa, number, start, length, muted });
            let inside = (start + length, bytes[start]);
            match (&sa.inside, inside) {
                (None, (_, protocol::ESP | protocol::AH)) => return Err(PuntReason::UnknownSa),
                (None, _) => None,
                (Some(esp), (start, protocol::ESP)) => {
                    if header.end - start < ESP_HEADER
                        || double_word(bytes, start) != esp.spi
                        || esp.destination != header.destination
                        || esp.source.is_some_and(|source| source != header.source)
                        || esp.udp.is_some()
                        || sa.mode == Mode::Tunnel
                    {
                        return Err(PuntReason::UnknownSa);
                    }
                    Some((&**esp, start))
                }
                (Some(_), _) => return Err(PuntReason::UnknownSa),
            }
        }
        _ => return Err(PuntReason::Clear),
    };
    if header.version == 4 && !ipv4_is_right(bytes, header.offset) {
        return Err(PuntReason::Malformed);
    }
    let mut esp = None;
    if let Some((sa, start)) = inner {
        let number = number_of(sa, double_word(bytes, start + 4))?;
        let opener = &sa.transform;
        let overhead = ESP_HEADER + opener.iv_length() + opener.icv_length();
        let length = (header.end - start).checked_sub(overhead).ok_or(PuntReason::Syntax)?;
        if length < ESP_TRAILER || length % opener.alignment() != 0 {
            return Err(PuntReason::Syntax);
        }
        let text = Piece { start: place(room, length), length };
        esp = Some(Esp { sa, number, start: frame.start + start, end: frame.start + header.end, text });
    }
    let (frame, header_length) = (&bytes[..header.end], header.header_length);
    packets.push(Packet { index, frame, header_length, ah, esp, good: true });
    Ok(())
}

/// Give away room in `plain` for `length` bytes, with a front before them.
fn place(room: &mut usize, length: usize) -> usize {
    let text = *room + FRONT;
    *room = (text + length).next_multiple_of(FRONT);
    text
}

/// The SA of a packet whose SPI stands at `spi`, of a header that begins at `start`; most often it is the `last` one.
#[inline(always)]
fn find<'a>(
    sas: &'a InboundSas,
    last: &mut Option<&'a InboundSa>,
    bytes: &[u8],
    header: &IpHeader,
    start: usize,
    spi: usize,
    protocol: Protocol,
) -> Result<&'a InboundSa, PuntReason> {
    let fixed = if protocol == Protocol::Esp { ESP_HEADER } else { AH_FIXED };
    if header.end - start < fixed {
        return Err(PuntReason::Malformed);
    }
    let spi = double_word(bytes, spi);
    let sa = match *last {
        Some(sa) if sa.spi == spi && sa.protocol == protocol && sa.destination == header.destination => sa,
        _ => sas.get(header.destination, spi, protocol).ok_or(PuntReason::UnknownSa)?,
    };
    *last = Some(sa);
    if sa.source.is_some_and(|source| source != header.source) {
        return Err(PuntReason::UnknownSa);
    }
    Ok(sa)
}

/// Whether a UDP datagram may hold ESP: no keepalive, and no zeros where the SPI is (RFC 3948 §2.2). One that does not
/// fill its packet is not for this engine.
fn holds_esp(bytes: &[u8], start: usize, end: usize) -> bool {
    end - start >= UDP_LENGTH + ESP_HEADER
        && usize::from(word(bytes, start + 4)) == end - start
        && double_word(bytes, start + UDP_LENGTH) != 0
}

/// Whether the checksum of a UDP datagram is right; only over IPv4 may it be missing (RFC 8200 §8.1).
fn datagram_is_right(bytes: &[u8], header: &IpHeader) -> bool {
    let datagram = &bytes[header.payload()..header.end];
    if word(datagram, 6) == 0 {
        return header.version == 4;
    }
    fold(pseudo_header(header.source, header.destination, protocol::UDP, datagram.len()) + sum(datagram)) == 0xffff
}

/// Bytes of an AH header, if it is as long as its SA makes them: aligned to 8 bytes, over IPv4 to 4 or 8.
fn ah_length(bytes: &[u8], header: &IpHeader, sa: &InboundSa) -> Result<usize, PuntReason> {
    let start = header.payload();
    let length = (usize::from(bytes[start + 1]) + 2) * 4;
    let least = AH_FIXED + sa.transform.iv_length() + sa.transform.icv_length();
    let legal = length == least.next_multiple_of(8) || (header.version == 4 && length == least.next_multiple_of(4));
    if legal && length <= header.end - start { Ok(length) } else { Err(PuntReason::Syntax) }
}

/// The whole number of a packet, if it may be taken.
fn number_of(sa: &InboundSa, low: u32) -> Result<u64, PuntReason> {
    let number = if sa.esn { infer_extended(low, sa.window.top()) } else { u64::from(low) };
    check_number(sa, number)?;
    if sa.esn && number.saturating_sub(sa.mark) > STALE {
        return Err(PuntReason::ExtendedNumbers);
    }
    Ok(number)
}

fn check_number(sa: &InboundSa, number: u64) -> Result<(), PuntReason> {
    if number != 0 && sa.window.check(number) == ReplayVerdict::New { Ok(()) } else { Err(PuntReason::Replay) }
}

/// Check a number again that its packet proved to be its own, now that packets before it were taken.
fn check_proven(sa: &InboundSa, number: u64) -> Result<(), PuntReason> {
    // Only numbers 2^31 apart in one burst would make the reference read another one.
    if sa.esn && infer_extended(number as u32, sa.window.top()) != number {
        return Err(PuntReason::ExtendedNumbers);
    }
    check_number(sa, number)
}

/// Copy a packet with everything zeroed that AH does not cover (RFC 4302 §3.3.3).
fn mute<'a>(packet: &Packet<'a>, ah: &Ah<'a>, plain: &mut [u8]) -> AhJob<'a, Opener> {
    let length = packet.frame.len() - ETHERNET_LENGTH;
    let copy = &mut plain[ah.muted..ah.muted + length];
    copy.copy_from_slice(&packet.frame[ETHERNET_LENGTH..]);
    if packet.header_length == IPV4_LENGTH {
        // TOS; flags and fragment offset, TTL; checksum.
        copy[1] = 0;
        copy[6..9].fill(0);
        copy[10..12].fill(0);
    } else {
        // Traffic class and flow label; hop limit.
        copy[..4].copy_from_slice(&[0x60, 0, 0, 0]);
        copy[7] = 0;
    }
    let mut iv = [0; 8];
    let behind = packet.header_length + AH_FIXED;
    let icv = behind + ah.sa.transform.iv_length();
    if let Some(given) = copy[behind..icv].first_chunk() {
        iv = *given;
    }
    copy[icv..icv + ah.sa.transform.icv_length()].fill(0);
    AhJob { start: ah.muted, length, high: ah.sa.esn.then_some((ah.number >> 32) as u32), iv, sa: &ah.sa.transform }
}

/// Make all checks of an opened packet, then commit it; gives the frame for the host, put together in `plain`.
fn accept(packet: &Packet, allowed: &mut LastAllowed, now: f64, plain: &mut [u8]) -> Result<HostPacket, PuntReason> {
    if !packet.good {
        return Err(PuntReason::Icv);
    }
    let layers = [packet.ah.as_ref().map(|ah| (ah.sa, ah.number)), packet.esp.as_ref().map(|esp| (esp.sa, esp.number))];
    let mut outermost = None;
    let mut innermost = None;
    for (sa, number) in layers.into_iter().flatten() {
        check_proven(sa, number)?;
        outermost = outermost.or(Some(sa));
        innermost = Some(sa);
    }
    let (Some(outermost), Some(innermost)) = (outermost, innermost) else {
        return Err(PuntReason::UnknownSa);
    };
    let (next_header, start, end) = content(packet, plain)?;
    let (frame, inner) = match innermost.mode {
        Mode::Tunnel => tunnel(packet, innermost, next_header, start, end, plain)?,
        Mode::Transport => transport(packet, next_header, start, end, plain)?,
    };
    let encapsulated = inner.protocol == protocol::UDP
        && inner.end - inner.payload() >= UDP_LENGTH
        && word(plain, inner.payload() + 2) == NAT_TRAVERSAL_PORT
        && holds_esp(plain, inner.payload(), inner.end);
    if encapsulated || matches!(inner.protocol, protocol::ESP | protocol::AH) {
        return Err(PuntReason::UnknownSa);
    }
    let flow = flow_key(plain, &inner);
    if !allowed.contains(&flow, outermost.id) {
        return Err(PuntReason::UnknownFlow);
    }
    for (sa, _) in layers.into_iter().flatten() {
        if sa.tally.packets.load(Relaxed) >= sa.tally.stop.load(Relaxed) {
            return Err(PuntReason::Limit);
        }
    }
    for (sa, number) in layers.into_iter().flatten() {
        sa.window.advance(number);
        sa.tally.count(1, inner.length() as u64, now);
    }
    Ok(HostPacket { frame, origin: packet.index, flow })
}

/// What the innermost layer protects: next header, and where it begins and ends in `plain`.
fn content(packet: &Packet, plain: &[u8]) -> Result<(u8, usize, usize), PuntReason> {
    let (next_header, start, end) = if let Some(esp) = &packet.esp {
        let Piece { start, length } = esp.text;
        let trailer = start + length - ESP_TRAILER;
        let (pad_length, next_header) = (usize::from(plain[trailer]), plain[trailer + 1]);
        if pad_length > length - ESP_TRAILER || plain[trailer - pad_length..trailer] != PADDING[..pad_length] {
            return Err(PuntReason::Syntax);
        }
        (next_header, start, trailer - pad_length)
    } else if let Some(ah) = &packet.ah {
        let start = ah.muted + packet.header_length + ah.length;
        (packet.frame[ah.start], start, ah.muted + packet.frame.len() - ETHERNET_LENGTH)
    } else {
        return Err(PuntReason::UnknownSa);
    };
    if next_header == protocol::NO_NEXT_HEADER {
        return Err(PuntReason::Dummy);
    }
    Ok((next_header, start, end))
}

/// Put an Ethernet header before the packet inside a tunnel.
fn tunnel(
    packet: &Packet,
    sa: &InboundSa,
    next_header: u8,
    start: usize,
    end: usize,
    plain: &mut [u8],
) -> Result<(Piece, IpHeader), PuntReason> {
    let (version, ethertype) = match next_header {
        protocol::IPV4_IN_IP => (4, ETHERTYPE_IPV4),
        protocol::IPV6_IN_IP => (6, ETHERTYPE_IPV6),
        _ => return Err(PuntReason::Syntax),
    };
    let inner = parse_plain(plain, start, end)?;
    if inner.version != version {
        return Err(PuntReason::Syntax);
    }
    if !sa.no_ecn {
        let outside = traffic_class(packet.frame, ETHERNET_LENGTH) & ECN;
        let inside = traffic_class(plain, start) & ECN;
        // RFC 6040 §4.2, figure 4: CE comes through or ends the packet; ECT(1) takes the place of ECT(0).
        if (outside == 3 && inside != 3) || (outside == 1 && inside == 2) {
            return Err(PuntReason::Congestion);
        }
    }
    let frame = start - ETHERNET_LENGTH;
    plain[frame..frame + 12].copy_from_slice(&packet.frame[..12]);
    plain[frame + 12..start].copy_from_slice(&ethertype);
    Ok((Piece { start: frame, length: inner.end - frame }, inner))
}

/// Put the packet's own headers before what transport mode protects, as `with_protocol` does.
fn transport(
    packet: &Packet,
    next_header: u8,
    start: usize,
    end: usize,
    plain: &mut [u8],
) -> Result<(Piece, IpHeader), PuntReason> {
    let ipv4 = packet.header_length == IPV4_LENGTH;
    if !ipv4 && is_extension_header(next_header) {
        return Err(PuntReason::Options);
    }
    let ip = start - packet.header_length;
    let frame = ip - ETHERNET_LENGTH;
    let header = &mut plain[frame..start];
    header.copy_from_slice(&packet.frame[..ETHERNET_LENGTH + packet.header_length]);
    header[ETHERNET_LENGTH + if ipv4 { 9 } else { 6 }] = next_header;
    // What is inside is shorter than the packet it came in.
    if ipv4 {
        header[16..18].copy_from_slice(&((end - ip) as u16).to_be_bytes());
        header[24..26].fill(0);
        let field = checksum(&header[ETHERNET_LENGTH..]);
        header[24..26].copy_from_slice(&field.to_be_bytes());
    } else {
        header[18..20].copy_from_slice(&((end - ip - IPV6_LENGTH) as u16).to_be_bytes());
    }
    let inner = parse_plain(plain, ip, end)?;
    Ok((Piece { start: frame, length: end - frame }, inner))
}

fn traffic_class(bytes: &[u8], ip: usize) -> u8 {
    if bytes[ip] >> 4 == 6 { bytes[ip] << 4 | bytes[ip + 1] >> 4 } else { bytes[ip + 1] }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::association::FlowKey;
    use crate::coalesce::Joins;

    #[test]
    fn packets_of_a_burst_that_ended_with_a_defect_do_not_come_with_the_next() {
        let mut card = Card::new(crate::mb::Manager::new().expect("a manager"));
        let (source, destination) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let flow = FlowKey { source, destination, protocol: 47, source_port: 65536, destination_port: 65536 };
        let packet = HostPacket { frame: Piece { start: 0, length: 40 }, origin: 0, flow };
        let mut host = HostFrames { plain: vec![0x55; 40], ..HostFrames::default() };
        card.receive.coalescer.push(&host.plain, packet, Joins { tcp: true, udp: false });
        card.receive(&Frames::default(), 1.0, &mut host, &mut Vec::new());
        assert!(host.frames.is_empty());
    }
}
