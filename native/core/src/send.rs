//! Bursts of the host on their way to the wire.
//!
//! Law: decides nothing: a packet of a flow that was told is framed as `vnic.transport.outbound` would frame it and
//! sealed as `vnic.miniport.send` would seal it; everything else is a punt. Nothing is counted before it is sealed. The
//! one trace a punt may leave are sequence numbers and IVs that nobody uses: when a key has no IVs left.
//!
//! ```text
//! parse -> flow -> cut and frame all, numbers taken -> ESP of all -> AH of all -> UDP checksums -> count
//! ```

use std::net::IpAddr;

use crate::association::{Encapsulation, FlowKey, OutboundSa, STALE};
use crate::card::Card;
use crate::checksum::{complement, sum};
use crate::cipher::{AhJob, EspSeal, Sealer, ah_icvs, seal_esp};
use crate::frame::{Front, Parts, Sizes};
use crate::frames::{Frame, Frames, Vnet};
use crate::mb::Manager;
use crate::packet::{ETHERNET_LENGTH, IpHeader, flow_key, judged_length, parse_frame, protocol};
use crate::punt::{Punt, PuntReason};
use crate::segment::Cut;

const NEEDS_CSUM: u8 = 1;
const GSO_ECN: u8 = 0x80;
const AH_FIXED: usize = 12;
/// Bytes at the beginning of an IP header that hold all its mutable fields.
const MUTABLE: usize = 12;

/// Memory that is kept from burst to burst.
#[derive(Default)]
pub(crate) struct Scratch {
    front: Front,
    seals: Vec<EspSeal<'static>>,
    icv_jobs: Vec<AhJob<'static, Sealer>>,
    inputs: Vec<Input<'static>>,
    protections: Vec<Ah<'static>>,
    sums: Vec<Parts>,
    icvs: Vec<[u8; 16]>,
    held: Vec<FlowKey>,
    between: Vec<(IpAddr, IpAddr)>,
}

/// A frame of the host that was framed.
struct Input<'a> {
    /// Its place in the burst.
    index: u32,
    plan: &'a Encapsulation,
    packets: u64,
    /// Bytes of the IP packets inside.
    bytes: u64,
}

/// How a flow is protected.
#[derive(Clone, Copy)]
struct Plan<'a> {
    encapsulation: &'a Encapsulation,
    sizes: Sizes,
}

impl<'a> Plan<'a> {
    fn of(encapsulation: &'a Encapsulation) -> Result<Self, PuntReason> {
        let sizes = Sizes::of(encapsulation).ok_or(PuntReason::UnknownFlow)?;
        Ok(Self { encapsulation, sizes })
    }
}

/// One AH header to be completed.
struct Ah<'a> {
    parts: Parts,
    high: Option<u32>,
    sa: &'a OutboundSa,
    /// For AES-GMAC.
    iv: [u8; 8],
    /// The beginning of the IP header as it goes out.
    header: [u8; MUTABLE],
}

/// What is done to the frames of one burst.
struct Work<'a, 'b> {
    output: &'b mut Frames,
    front: Front,
    seals: Vec<EspSeal<'a>>,
    inputs: Vec<Input<'a>>,
    protections: Vec<Ah<'a>>,
    sums: Vec<Parts>,
    /// An SA has no IVs left for AH.
    used_up: bool,
}

/// An empty vector for another lifetime with the memory of this one.
macro_rules! recycle {
    ($vector:expr) => {{
        let mut vector = std::mem::take(&mut $vector);
        vector.clear();
        // Collecting in place keeps the memory.
        vector.into_iter().map(|_| unreachable!("it is empty")).collect()
    }};
}

impl Card {
    /// Frame and seal a burst of the host.
    ///
    /// Frames for the wire are appended to `output`, in the order of the burst, each with the place of the frame it
    /// came of as `origin`; `punts` gets, in the same order, those that have to go to the Python engine. `now` is in
    /// seconds.
    pub fn send(&mut self, input: &Frames, now: f64, output: &mut Frames, punts: &mut Vec<Punt>) {
        let Self { manager, flows, send: scratch, counts, .. } = self;
        let (arena, frames, first_punt) = (output.bytes.len(), output.frames.len(), punts.len());
        let mut work = Work {
            output,
            front: std::mem::take(&mut scratch.front),
            seals: recycle!(scratch.seals),
            inputs: recycle!(scratch.inputs),
            protections: recycle!(scratch.protections),
            sums: std::mem::take(&mut scratch.sums),
            used_up: false,
        };
        let mut last: Option<(FlowKey, Plan)> = None;
        // Flows of which a packet is left, and addresses between which one is whose flow is not known. Packets behind
        // would overtake it.
        scratch.held.clear();
        scratch.between.clear();
        for (index, frame) in (0..).zip(&input.frames) {
            let bytes = input.bytes_of(frame);
            let done = parse_frame(bytes).and_then(|packet| {
                if is_neighbour_discovery(bytes, &packet) {
                    return Err(PuntReason::UnknownFlow);
                }
                // Packets of one flow come together.
                let key = flow_key(bytes, &packet);
                let plan = match last {
                    Some((same, plan)) if same == key => plan,
                    _ => Plan::of(flows.get(&key).ok_or(PuntReason::UnknownFlow)?)?,
                };
                last = Some((key, plan));
                if scratch.held.contains(&key) || scratch.between.contains(&(key.source, key.destination)) {
                    return Err(PuntReason::Order);
                }
                let done = if now > plan.encapsulation.valid_until {
                    Err(PuntReason::Stale)
                } else {
                    work.protect(index, bytes, &frame.vnet, &packet, plan)
                };
                if done.is_err() {
                    scratch.held.push(key);
                }
                done
            });
            if let Err(reason) = done {
                punts.push(Punt { index, reason });
                if matches!(reason, PuntReason::Fragment | PuntReason::Options) {
                    scratch.between.extend(addresses(bytes));
                }
            }
        }
        if work.seal(manager, &mut scratch.icv_jobs, &mut scratch.icvs) {
            work.complete_udp();
        } else {
            // No IVs are left, or the library failed: what was framed may be clear text, or half sealed.
            work.output.bytes[arena..].fill(0);
            work.output.bytes.truncate(arena);
            work.output.frames.truncate(frames);
            punts.extend(work.inputs.iter().map(|input| Punt { index: input.index, reason: PuntReason::Limit }));
            punts[first_punt..].sort_by_key(|punt| punt.index);
            work.inputs.clear();
        }
        for same in work.inputs.chunk_by(|left, right| std::ptr::eq(left.plan, right.plan)) {
            let packets = same.iter().map(|input| input.packets).sum();
            let bytes = same.iter().map(|input| input.bytes).sum();
            for sa in [&same[0].plan.esp, &same[0].plan.ah].into_iter().flatten() {
                sa.tally.count(packets, bytes, now);
            }
            counts.sent += packets;
        }
        counts.note(&punts[first_punt..]);
        scratch.front = work.front;
        scratch.seals = recycle!(work.seals);
        scratch.inputs = recycle!(work.inputs);
        scratch.protections = recycle!(work.protections);
        work.sums.clear();
        scratch.sums = work.sums;
    }
}

/// Source and destination of an untagged IP packet.
fn addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let ip = frame.get(ETHERNET_LENGTH..)?;
    if *ip.first()? >> 4 == 4 {
        let (source, destination) = ip.get(12..20)?.split_first_chunk::<4>()?;
        Some((IpAddr::from(*source), IpAddr::from(*destination.first_chunk::<4>()?)))
    } else {
        let (source, destination) = ip.get(8..40)?.split_first_chunk::<16>()?;
        Some((IpAddr::from(*source), IpAddr::from(*destination.first_chunk::<16>()?)))
    }
}

impl<'a> Work<'a, '_> {
    /// Frame a packet or superframe, and note what has to be done to its frames.
    fn protect(
        &mut self,
        index: u32,
        frame: &[u8],
        vnet: &Vnet,
        packet: &IpHeader,
        Plan { encapsulation: plan, sizes }: Plan<'a>,
    ) -> Result<(), PuntReason> {
        let room = sizes.room(plan.path_mtu, packet.header_length);
        let length = packet.length();
        let cut = if vnet.gso_type & !GSO_ECN != 0 { Some(Cut::new(frame, packet, vnet, room)?) } else { None };
        if cut.is_none() && length > room {
            return Err(PuntReason::TooBig);
        }
        let open = if cut.is_none() { open_checksum(vnet, packet)? } else { None };
        let (count, layer4) = cut.map_or((1, 0), |cut| (cut.count, cut.layer4));
        let (esp_number, ah_number) = take_numbers(plan, count as u64)?;
        self.front.make(plan, &sizes, frame, packet, layer4);
        let payload = &frame[packet.payload() + layer4..packet.end];
        for step in 0..count {
            let (esp_number, ah_number) = (esp_number + step as u64, ah_number + step as u64);
            let piece = match &cut {
                None => payload,
                Some(cut) => &payload[cut.range(step, payload.len())],
            };
            let bytes = &mut self.output.bytes;
            let parts = self.front.emit(&sizes, piece, step, esp_number, ah_number, bytes);
            if let Some(cut) = &cut {
                cut.write(&mut bytes[parts.payload - layer4..parts.payload], piece, step);
            } else if let Some((start, field)) = open {
                // Offsets from the payload, where the checksum was open.
                complete(&mut bytes[parts.payload + start..parts.padding], field);
            }
            if let Some(sa) = &plan.esp {
                let high = sa.esn.then_some((esp_number >> 32) as u32);
                self.seals.push(EspSeal { start: parts.esp, end: parts.end, high, sealer: &sa.transform });
            }
            if let Some(sa) = &plan.ah {
                let mut iv = [0; 8];
                if sa.transform.iv_length() == iv.len() {
                    match sa.transform.take_iv() {
                        Some(taken) => iv = taken,
                        None => self.used_up = true,
                    }
                    bytes[parts.ah + AH_FIXED..parts.ah + AH_FIXED + iv.len()].copy_from_slice(&iv);
                }
                let high = sa.esn.then_some((ah_number >> 32) as u32);
                self.protections.push(Ah { parts, high, sa, iv, header: [0; MUTABLE] });
            }
            if plan.udp.is_some_and(|udp| udp.checksum) {
                self.sums.push(parts);
            }
            let length = parts.end - parts.start;
            self.output.frames.push(Frame { start: parts.start, length, vnet: Vnet::default(), origin: index });
        }
        // Every segment has headers of its own.
        let bytes = length + (count - 1) * (packet.header_length + layer4);
        let (packets, bytes) = (count as u64, bytes as u64);
        self.inputs.push(Input { index, plan, packets, bytes });
        Ok(())
    }

    /// Seal everything, or give false: what is there is of no use then.
    fn seal(
        &mut self,
        manager: &mut Manager,
        kept: &mut Vec<AhJob<'static, Sealer>>,
        icvs: &mut Vec<[u8; 16]>,
    ) -> bool {
        if self.used_up || !self.seals.is_empty() && !seal_esp(manager, &mut self.output.bytes, &self.seals) {
            return false;
        }
        if self.protections.is_empty() {
            return true;
        }
        let bytes = &mut self.output.bytes;
        let mut jobs: Vec<AhJob<Sealer>> = recycle!(*kept);
        for Ah { parts, high, sa, iv, header } in &mut self.protections {
            // The packet is muted where it stands, and gets its fields back.
            let ip = &mut bytes[parts.ip..parts.ip + MUTABLE];
            header.copy_from_slice(ip);
            mute(ip);
            let length = parts.end - parts.ip;
            jobs.push(AhJob { start: parts.ip, length, high: *high, iv: *iv, sa: &sa.transform });
        }
        let done = ah_icvs(manager, bytes, &jobs, icvs);
        *kept = recycle!(jobs);
        for (Ah { parts, sa, header, .. }, icv) in self.protections.iter().zip(icvs.iter()) {
            bytes[parts.ip..parts.ip + MUTABLE].copy_from_slice(header);
            let at = parts.ah + AH_FIXED + sa.transform.iv_length();
            let length = sa.transform.icv_length();
            bytes[at..at + length].copy_from_slice(&icv[..length]);
        }
        done
    }

    /// Write the checksums of UDP around ESP, where they are wanted.
    fn complete_udp(&mut self) {
        for parts in &self.sums {
            let (head, datagram) = self.output.bytes[parts.ip..parts.end].split_at_mut(parts.udp - parts.ip);
            let addresses = if head[0] >> 4 == 4 { &head[12..20] } else { &head[8..40] };
            let total = sum(addresses) + u64::from(protocol::UDP) + datagram.len() as u64 + sum(datagram);
            write_checksum(&mut datagram[6..8], complement(total));
        }
    }
}

/// Take `count` numbers of every SA; give the first of ESP and of AH (0 where there is none), or take none.
fn take_numbers(plan: &Encapsulation, count: u64) -> Result<(u64, u64), PuntReason> {
    let sas = [&plan.esp, &plan.ah];
    for sa in sas.into_iter().flatten() {
        let wanted = sa.sequence.last().checked_add(count).ok_or(PuntReason::Limit)?;
        if wanted > sa.sequence.stop() || !sa.esn && wanted > u64::from(u32::MAX) {
            return Err(PuntReason::Limit);
        }
        if sa.esn && wanted > sa.mark.saturating_add(STALE) {
            return Err(PuntReason::ExtendedNumbers);
        }
    }
    let mut firsts = [0; 2];
    for (first, sa) in firsts.iter_mut().zip(sas) {
        if let Some(sa) = sa {
            *first = sa.sequence.take(count).ok_or(PuntReason::Limit)?;
        }
    }
    Ok((firsts[0], firsts[1]))
}

/// Where the checksum begins that the host left open, and where behind that it is stored; both from the payload.
fn open_checksum(vnet: &Vnet, packet: &IpHeader) -> Result<Option<(usize, usize)>, PuntReason> {
    if vnet.flags & NEEDS_CSUM == 0 {
        return Ok(None);
    }
    let (start, offset) = (usize::from(vnet.csum_start), usize::from(vnet.csum_offset));
    // Ports and types have been judged.
    let field = packet.payload() + judged_length(packet.protocol);
    if start < packet.payload() || start + offset < field || start + offset + 2 > packet.end {
        return Err(PuntReason::Malformed);
    }
    Ok(Some((start - packet.payload(), offset)))
}

/// Complete a checksum: its field holds the sum of the pseudo-header.
fn complete(covered: &mut [u8], field: usize) {
    let value = complement(sum(covered));
    write_checksum(&mut covered[field..field + 2], value);
}

/// Write a checksum of which 0 means "none" (RFC 768); for TCP both forms of zero are the same.
fn write_checksum(field: &mut [u8], value: u16) {
    field.copy_from_slice(&(if value == 0 { 0xffff } else { value }).to_be_bytes());
}

/// Clear what routers change in an IP header (RFC 4302 §3.3.3.1).
fn mute(ip: &mut [u8]) {
    if ip[0] >> 4 == 4 {
        ip[1] = 0;
        ip[6..9].fill(0);
        ip[10..12].fill(0);
    } else {
        ip[..4].copy_from_slice(&[0x60, 0, 0, 0]);
        ip[7] = 0;
    }
}

/// Whether a packet is neighbour or router discovery that a receiver would accept (RFC 4861): policy does not see it.
fn is_neighbour_discovery(frame: &[u8], packet: &IpHeader) -> bool {
    packet.protocol == protocol::ICMPV6
        && frame[ETHERNET_LENGTH + 7] == 255
        && packet.end - packet.payload() >= 8
        && (133..=137).contains(&frame[packet.payload()])
}
