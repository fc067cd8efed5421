//! Joined frames, held against RFC 9293, RFC 768 and a segmenter that only knows those.

use vnic_core::association::FlowKey;
use vnic_core::checksum::{checksum, complement, fold, pseudo_header, sum};
use vnic_core::coalesce::{Coalescer, HostPacket, Joins};
use vnic_core::frames::{HostFrame, HostFrames, Piece};
use vnic_core::packet::{flow_key, parse_ip};

const BOTH: Joins = Joins { tcp: true, udp: true };

#[derive(Clone)]
struct Segment {
    version: u8,
    tcp: bool,
    ports: (u16, u16),
    number: u32,
    acknowledgement: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
    identification: u16,
    fragment: u16,
    traffic_class: u8,
    hops: u8,
    last_mac: u8,
}

impl Default for Segment {
    fn default() -> Self {
        Self {
            version: 4,
            tcp: true,
            ports: (443, 5001),
            number: 1000,
            acknowledgement: 77,
            flags: 0x10,
            window: 500,
            options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            payload: Vec::new(),
            identification: 0,
            fragment: 0x4000,
            traffic_class: 0,
            hops: 64,
            last_mac: 1,
        }
    }
}

impl Segment {
    fn frame(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, self.last_mac];
        let length = (if self.tcp { 20 + self.options.len() } else { 8 }) + self.payload.len();
        let protocol = if self.tcp { 6 } else { 17 };
        if self.version == 4 {
            frame.extend([8, 0, 0x45, self.traffic_class]);
            frame.extend((20 + length as u16).to_be_bytes());
            frame.extend(self.identification.to_be_bytes());
            frame.extend(self.fragment.to_be_bytes());
            frame.extend([self.hops, protocol, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1]);
            let field = checksum(&frame[14..34]);
            frame[24..26].copy_from_slice(&field.to_be_bytes());
        } else {
            frame.extend([0x86, 0xdd, 0x60 | self.traffic_class >> 4, self.traffic_class << 4, 0, 9]);
            frame.extend((length as u16).to_be_bytes());
            frame.extend([protocol, self.hops]);
            frame.extend([0x20; 16]);
            frame.extend([0x21; 16]);
        }
        let layer4 = frame.len();
        frame.extend(self.ports.0.to_be_bytes());
        frame.extend(self.ports.1.to_be_bytes());
        if self.tcp {
            frame.extend(self.number.to_be_bytes());
            frame.extend(self.acknowledgement.to_be_bytes());
            frame.extend([((20 + self.options.len()) / 4 * 16) as u8, self.flags]);
            frame.extend(self.window.to_be_bytes());
            frame.extend([0, 0, 0, 0]);
            frame.extend(&self.options);
        } else {
            frame.extend((length as u16).to_be_bytes());
            frame.extend([0, 0]);
        }
        frame.extend(&self.payload);
        write_checksum(&mut frame, layer4);
        frame
    }
}

fn checksum_at(frame: &[u8], layer4: usize) -> usize {
    layer4 + if protocol(frame) == 6 { 16 } else { 6 }
}

fn protocol(frame: &[u8]) -> u8 {
    if frame[14] >> 4 == 4 { frame[23] } else { frame[20] }
}

fn write_checksum(frame: &mut [u8], layer4: usize) {
    let at = checksum_at(frame, layer4);
    frame[at..at + 2].fill(0);
    let field = match complement(total(frame, layer4)) {
        0 if protocol(frame) == 17 => 0xffff,
        field => field,
    };
    frame[at..at + 2].copy_from_slice(&field.to_be_bytes());
}

/// Sum of pseudo header, header and payload.
fn total(frame: &[u8], layer4: usize) -> u64 {
    let header = parse_ip(frame, 14, frame.len()).unwrap();
    pseudo_header(header.source, header.destination, header.protocol, frame.len() - layer4) + sum(&frame[layer4..])
}

fn payload(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 37 + seed * 101 + (at >> 8)) as u8).collect()
}

/// A stream of TCP segments, or of datagrams, of these payload lengths.
fn stream(first: &Segment, lengths: &[usize]) -> Vec<Vec<u8>> {
    let mut segment = first.clone();
    let mut frames = Vec::new();
    for (seed, &length) in lengths.iter().enumerate() {
        segment.payload = payload(length, seed);
        frames.push(segment.frame());
        segment.number = segment.number.wrapping_add(length as u32);
        segment.identification = segment.identification.wrapping_add(1);
    }
    frames
}

fn join_with(frames: &[Vec<u8>], joins: Joins) -> HostFrames {
    let mut output = HostFrames::default();
    let mut packets = Vec::new();
    for (origin, frame) in (0..).zip(frames) {
        let header = parse_ip(frame, 14, frame.len()).unwrap();
        let flow: FlowKey = flow_key(frame, &header);
        packets.push(HostPacket { frame: Piece { start: output.plain.len(), length: frame.len() }, origin, flow });
        output.plain.extend(frame);
    }
    let mut coalescer = Coalescer::default();
    for _ in 0..2 {
        // The second round shows that nothing is left of the first.
        output.clear();
        for packet in &packets {
            coalescer.push(&output.plain, *packet, joins);
        }
        coalescer.finish(&mut output);
    }
    output
}

/// The frames of the host; every checksum of theirs is looked at.
fn join(frames: &[Vec<u8>]) -> Vec<(HostFrame, Vec<u8>)> {
    let output = join_with(frames, BOTH);
    output.frames.iter().map(|frame| (*frame, output.joined(frame))).collect()
}

fn lengths(frames: &[Vec<u8>]) -> Vec<usize> {
    join(frames).iter().map(|(_, frame)| frame.len()).collect()
}

/// Cut a superframe as a host would.
fn segments(host: &HostFrame, frame: &[u8]) -> Vec<Vec<u8>> {
    let vnet = &host.vnet;
    if vnet.gso_type == 0 {
        return vec![frame.to_vec()];
    }
    let ipv4 = frame[14] >> 4 == 4;
    let layer4 = if ipv4 { 34 } else { 54 };
    let tcp = vnet.gso_type != 5;
    assert_eq!(vnet.gso_type, if tcp { if ipv4 { 1 } else { 4 } } else { 5 });
    if tcp {
        assert_eq!((vnet.flags, vnet.csum_start, vnet.csum_offset), (0, 0, 0));
        assert_eq!(fold(total(frame, layer4)), 0xffff, "the checksum is there");
    } else {
        assert_eq!((vnet.flags, usize::from(vnet.csum_start), vnet.csum_offset), (1, layer4, 6));
        let header = parse_ip(frame, 14, frame.len()).unwrap();
        let open = fold(pseudo_header(header.source, header.destination, 17, frame.len() - layer4));
        assert_eq!(frame[layer4 + 6..layer4 + 8], open.to_be_bytes());
        assert_eq!(usize::from(u16::from_be_bytes([frame[layer4 + 4], frame[layer4 + 5]])), frame.len() - layer4);
    }
    if ipv4 {
        assert_eq!(checksum(&frame[14..34]), 0);
    }
    let (head, data) = frame.split_at(vnet.hdr_len.into());
    let count = data.len().div_ceil(vnet.gso_size.into());
    assert!(count > 1 && (tcp || count <= 64));
    let mut made = Vec::new();
    for (index, part) in data.chunks(vnet.gso_size.into()).enumerate() {
        let mut one = [head, part].concat();
        let length = one.len();
        if ipv4 {
            one[16..18].copy_from_slice(&((length - 14) as u16).to_be_bytes());
            let first = u16::from_be_bytes([head[18], head[19]]);
            one[18..20].copy_from_slice(&first.wrapping_add(index as u16).to_be_bytes());
            one[24..26].fill(0);
            let field = checksum(&one[14..34]);
            one[24..26].copy_from_slice(&field.to_be_bytes());
        } else {
            one[18..20].copy_from_slice(&((length - 54) as u16).to_be_bytes());
        }
        if tcp {
            let first = u32::from_be_bytes(head[layer4 + 4..layer4 + 8].try_into().unwrap());
            let number = first.wrapping_add((index * usize::from(vnet.gso_size)) as u32);
            one[layer4 + 4..layer4 + 8].copy_from_slice(&number.to_be_bytes());
            if index + 1 < count {
                one[layer4 + 13] &= !8;
            }
        } else {
            one[layer4 + 4..layer4 + 6].copy_from_slice(&((length - layer4) as u16).to_be_bytes());
        }
        write_checksum(&mut one, layer4);
        made.push(one);
    }
    made
}

fn cut_again(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    join(frames).iter().flat_map(|(host, frame)| segments(host, frame)).collect()
}

#[test]
fn a_stream_becomes_one_superframe_and_comes_apart_as_it_was() {
    for tcp in [true, false] {
        for version in [4, 6] {
            for sizes in [[100, 100, 100, 100], [99, 99, 99, 98], [1, 1, 1, 1], [1401, 1401, 1401, 7]] {
                let frames = stream(&Segment { version, tcp, ..Segment::default() }, &sizes);
                let joined = join(&frames);
                assert_eq!(joined.len(), 1, "{tcp} {version} {sizes:?}");
                assert_eq!(cut_again(&frames), frames);
                assert_eq!(joined[0].0.origin, 0);
            }
        }
    }
}

#[test]
fn a_push_ends_a_superframe_and_is_kept() {
    let mut frames = stream(&Segment::default(), &[100, 100]);
    let pushed = Segment { number: 1200, flags: 0x18, identification: 2, ..Segment::default() };
    frames.extend(stream(&pushed, &[100]));
    frames.extend(stream(&Segment { number: 1300, identification: 3, ..Segment::default() }, &[100, 100]));
    assert_eq!(lengths(&frames), [66 + 300, 66 + 200]);
    assert_eq!(cut_again(&frames), frames);
    // A push on the first segment keeps it alone.
    assert_eq!(lengths(&frames[2..4]), [166, 166]);
}

#[test]
fn a_shorter_segment_ends_a_superframe_and_a_longer_one_begins_another() {
    let frames = stream(&Segment::default(), &[100, 100, 40, 40, 100, 100]);
    assert_eq!(lengths(&frames), [66 + 240, 66 + 40, 66 + 200]);
    assert_eq!(cut_again(&frames), frames);
    let datagrams = stream(&Segment { tcp: false, ..Segment::default() }, &[100, 100, 40, 40, 100, 100]);
    assert_eq!(lengths(&datagrams), [42 + 240, 42 + 40, 42 + 200]);
}

#[test]
fn nothing_that_differs_is_joined() {
    for tcp in [true, false] {
        for version in [4, 6] {
            let base = Segment { version, tcp, payload: payload(50, 0), ..Segment::default() };
            let next = Segment { number: 1050, ..base.clone() };
            let mut others = vec![
                Segment { traffic_class: 1, ..next.clone() },
                Segment { hops: 63, ..next.clone() },
                Segment { last_mac: 9, ..next.clone() },
                Segment { ports: (443, 5002), ..next.clone() },
                Segment { payload: Vec::new(), ..next.clone() },
                Segment { payload: payload(51, 0), ..next.clone() },
            ];
            if version == 4 {
                others.push(Segment { fragment: 0, ..next.clone() });
                others.push(Segment { fragment: 0xc000, ..next.clone() });
            }
            if tcp {
                others.extend([
                    Segment { number: 1051, ..next.clone() },
                    Segment { number: 1000, ..next.clone() },
                    Segment { acknowledgement: 78, ..next.clone() },
                    Segment { window: 501, ..next.clone() },
                    Segment { options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 3], ..next.clone() },
                    Segment { options: vec![], ..next.clone() },
                    Segment { flags: 0x11, ..next.clone() },
                    Segment { flags: 0x30, ..next.clone() },
                    Segment { flags: 0x90, ..next.clone() },
                    Segment { flags: 0x00, ..next.clone() },
                ]);
            }
            for (at, other) in others.iter().enumerate() {
                let frames = [base.frame(), other.frame()];
                assert_eq!(cut_again(&frames), frames, "{tcp} {version} {at}");
                assert_eq!(join(&frames).len(), 2, "{tcp} {version} {at}");
            }
            assert_eq!(join(&[base.frame(), next.frame()]).len(), 1);
        }
    }
}

#[test]
fn what_cannot_be_joined_is_not_overtaken() {
    for tcp in [true, false] {
        let mut frames = stream(&Segment { tcp, ..Segment::default() }, &[100, 100, 0]);
        frames.extend(stream(&Segment { tcp, number: 1200, identification: 3, ..Segment::default() }, &[100, 100]));
        assert_eq!(join(&frames).len(), 3);
        assert_eq!(cut_again(&frames), frames);
    }
}

#[test]
fn flows_that_come_mixed_keep_their_own_order() {
    let flows: Vec<Vec<Vec<u8>>> = (0..5)
        .map(|port| {
            let first = Segment { ports: (443, 5000 + port), tcp: port % 2 == 0, ..Segment::default() };
            stream(&first, &[60, 60, 60, 30])
        })
        .collect();
    let mixed: Vec<Vec<u8>> = (0..4).flat_map(|at| flows.iter().map(move |flow| flow[at].clone())).collect();
    let joined = join(&mixed);
    assert_eq!(joined.iter().map(|(host, _)| host.origin).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    for (flow, (host, frame)) in flows.iter().zip(&joined) {
        assert_eq!(segments(host, frame), *flow);
    }
}

#[test]
fn a_segment_that_was_damaged_stays_damaged() {
    for version in [4, 6] {
        let mut frames = stream(&Segment { version, ..Segment::default() }, &[101, 101, 101]);
        *frames[1].last_mut().unwrap() ^= 0x10;
        let joined = join(&frames);
        assert_eq!(joined.len(), 1);
        let layer4 = if version == 4 { 34 } else { 54 };
        assert_ne!(fold(total(&joined[0].1, layer4)), 0xffff);
        // UDP leaves its checksum open, so a damaged datagram goes alone; so do its neighbours, in order.
        let mut frames = stream(&Segment { version, tcp: false, ..Segment::default() }, &[101; 6]);
        *frames[2].last_mut().unwrap() ^= 0x10;
        assert_eq!(join(&frames).len(), 3);
        assert_eq!(cut_again(&frames), frames);
        let mut frames = stream(&Segment { version, tcp: false, ..Segment::default() }, &[101; 3]);
        *frames[0].last_mut().unwrap() ^= 0x10;
        assert_eq!(cut_again(&frames), frames);
        assert_eq!(join(&frames).len(), 2);
    }
    let mut frames = stream(&Segment::default(), &[101, 101]);
    frames[1][22] = 63;
    frames[0][22] = 63;
    assert_eq!(join(&frames).len(), 2, "a damaged IPv4 header would be repaired");
}

#[test]
fn datagrams_without_a_checksum_or_with_another_length_go_alone() {
    let mut frames = stream(&Segment { tcp: false, ..Segment::default() }, &[50, 50]);
    let whole = frames.clone();
    frames[1][40..42].fill(0);
    assert_eq!(cut_again(&frames), frames);
    assert_eq!(join(&frames).len(), 2);
    let mut frames = whole;
    frames[1][39] -= 1;
    assert_eq!(join(&frames).len(), 2);
}

#[test]
fn superframes_are_no_longer_than_a_packet_or_64_datagrams() {
    let frames = stream(&Segment::default(), &[1448; 60]);
    let joined = join(&frames);
    assert_eq!(joined.len(), 2);
    assert_eq!(joined[0].1.len(), 14 + 52 + 45 * 1448);
    assert_eq!(cut_again(&frames), frames);
    let datagrams = stream(&Segment { tcp: false, ..Segment::default() }, &[22; 130]);
    assert_eq!(lengths(&datagrams), [42 + 64 * 22, 42 + 64 * 22, 42 + 2 * 22]);
    let long = stream(&Segment { tcp: false, version: 6, ..Segment::default() }, &[1400; 50]);
    assert_eq!(lengths(&long), [62 + 46 * 1400, 62 + 4 * 1400]);
}

#[test]
fn only_what_the_host_takes_is_joined() {
    let mut frames = stream(&Segment::default(), &[50, 50]);
    frames.extend(stream(&Segment { tcp: false, ..Segment::default() }, &[50, 50]));
    for (joins, count) in [(false, false, 4), (true, false, 3), (false, true, 3), (true, true, 2)]
        .map(|(tcp, udp, count)| (Joins { tcp, udp }, count))
    {
        assert_eq!(join_with(&frames, joins).frames.len(), count);
    }
}

#[test]
fn random_bursts_come_apart_as_they_were() {
    let mut seed = 0x9e3779b97f4a7c15_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    for _ in 0..400 {
        let mut flows: Vec<Segment> = (0..1 + random(3))
            .map(|port| Segment {
                version: if random(2) == 0 { 4 } else { 6 },
                tcp: random(3) != 0,
                ports: (443, port as u16),
                number: 0xffff_ff00,
                options: vec![1; random(4) * 4],
                ..Segment::default()
            })
            .collect();
        let size = 1 + random(1400);
        let mut frames = Vec::new();
        let mut by_flow: Vec<Vec<Vec<u8>>> = vec![Vec::new(); flows.len()];
        for place in 0..random(64) {
            let number = random(flows.len());
            let flow = &mut flows[number];
            let length = match random(8) {
                0 => random(size + 2),
                _ => size,
            };
            flow.payload = payload(length, place);
            flow.flags = if random(8) == 0 { 0x18 } else { 0x10 };
            if random(10) == 0 {
                flow.window += 1;
            }
            frames.push(flow.frame());
            by_flow[number].push(flow.frame());
            flow.number = flow.number.wrapping_add(length as u32);
            if random(20) == 0 {
                flow.number = flow.number.wrapping_sub(1);
            }
            flow.identification = flow.identification.wrapping_add(1);
        }
        let mut apart: Vec<Vec<Vec<u8>>> = vec![Vec::new(); flows.len()];
        for one in cut_again(&frames) {
            let layer4 = if one[14] >> 4 == 4 { 34 } else { 54 };
            apart[usize::from(one[layer4 + 3])].push(one);
        }
        assert_eq!(apart, by_flow);
    }
}
