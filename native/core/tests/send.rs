//! Sending, held to what the reference engine and scapy say (`vectors/send.txt`), and to its own promises.

mod common;

use std::net::IpAddr;
use std::sync::Arc;

use common::unhex;
use vnic_core::association::{Encapsulation, OutboundSa, Outer, UdpEncapsulation};
use vnic_core::card::Card;
use vnic_core::cipher::{Keys, Sealer};
use vnic_core::frames::{Frames, Vnet};
use vnic_core::mb::Manager;
use vnic_core::packet::{flow_key, parse_frame};
use vnic_core::punt::{Punt, PuntReason};
use vnic_core::state::{CounterIvs, Sequence, Tally};

const IV_START: u64 = 0xa5a5_a5a5_a5a5_a5a5;

fn card() -> Card {
    Card::new(Manager::new().expect("a CPU that the library works on"))
}

/// What an SA is made of.
#[derive(Clone)]
struct Words {
    spi: u32,
    encryption: String,
    encryption_key: Vec<u8>,
    integrity: String,
    integrity_key: Vec<u8>,
    icv_length: usize,
    esn: bool,
    last: u64,
    ah_length: usize,
}

impl Words {
    fn parse(words: &[&str]) -> Self {
        let name = |word: &str| word.trim_matches('-').len().min(1) * word.len();
        let text = |word: &str| word[..name(word)].to_string();
        let key = |word: &str| if word == "-" { Vec::new() } else { unhex(word) };
        Self {
            spi: u32::from_str_radix(words[0].trim_start_matches("0x"), 16).unwrap(),
            encryption: text(words[1]),
            encryption_key: key(words[2]),
            integrity: text(words[3]),
            integrity_key: key(words[4]),
            icv_length: words[5].parse().unwrap(),
            esn: words[6] == "1",
            last: words[7].parse().unwrap(),
            ah_length: words[8].parse().unwrap(),
        }
    }

    fn gcm() -> Self {
        Self {
            spi: 0x1234,
            encryption: "aes-gcm-128".into(),
            encryption_key: vec![7; 20],
            integrity: String::new(),
            integrity_key: vec![],
            icv_length: 16,
            esn: true,
            last: 0,
            ah_length: 0,
        }
    }

    fn null() -> Self {
        let (encryption, integrity) = ("null".into(), "hmac-sha1-96".into());
        Self {
            encryption,
            encryption_key: vec![],
            integrity,
            integrity_key: vec![3; 20],
            icv_length: 12,
            ..Self::gcm()
        }
    }

    fn make(&self, card: &mut Card) -> Arc<OutboundSa> {
        self.with_ivs(card, CounterIvs::new(IV_START, 0, false))
    }

    fn with_ivs(&self, card: &mut Card, ivs: CounterIvs) -> Arc<OutboundSa> {
        let keys = Keys {
            encryption: &self.encryption,
            encryption_key: &self.encryption_key,
            integrity: &self.integrity,
            integrity_key: &self.integrity_key,
            icv_length: self.icv_length,
        };
        let counter = self.encryption.contains("gcm") || self.integrity.contains("gmac");
        let limit = if self.esn { u64::MAX } else { u64::from(u32::MAX) };
        Arc::new(OutboundSa {
            spi: self.spi,
            transform: Sealer::new(card.manager(), &keys, counter.then(|| Arc::new(ivs))).expect("keys that fit"),
            esn: self.esn,
            ah_length: self.ah_length,
            sequence: Arc::new(Sequence::new(self.last, limit, limit)),
            tally: Arc::new(Tally::default()),
            mark: self.last,
        })
    }
}

fn outer(source: &str, destination: &str) -> Outer {
    Outer {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        no_ecn: false,
        no_pmtu_discovery: false,
    }
}

fn plan(esp: Option<Arc<OutboundSa>>, ah: Option<Arc<OutboundSa>>, outer: Option<Outer>) -> Encapsulation {
    Encapsulation { esp, ah, outer, udp: None, path_mtu: 400, valid_until: f64::INFINITY }
}

/// Install a plan for the flow of a frame.
fn install(card: &mut Card, frame: &[u8], plan: &Arc<Encapsulation>) {
    let header = parse_frame(frame).expect("a frame that can be sent");
    card.install_flow(flow_key(frame, &header), plan.clone());
}

fn send(card: &mut Card, frames: &[(Vnet, Vec<u8>)]) -> (Frames, Vec<Punt>) {
    let (mut input, mut output, mut punts) = (Frames::default(), Frames::default(), Vec::new());
    for (index, (vnet, frame)) in (0..).zip(frames) {
        input.push(frame, *vnet, index);
    }
    card.send(&input, 1.0, &mut output, &mut punts);
    for frame in &output.frames {
        assert!(frame.vnet.is_plain());
    }
    (output, punts)
}

// ------------------------------------------------------------------------------------------------ vectors

#[derive(Default)]
struct Case {
    name: String,
    esp: Option<Words>,
    ah: Option<Words>,
    outer: Option<Outer>,
    mtu: usize,
    frames: Vec<(Vnet, Vec<u8>)>,
    /// Place of the frame that went in, and what comes out.
    expected: Vec<(u32, Vec<u8>)>,
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in include_str!("vectors/send.txt").lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[0] {
            "#" => {}
            "case" => cases.push(Case { name: words[1..].join(" "), ..Case::default() }),
            kind => {
                let case = cases.last_mut().expect("a case comes first");
                match kind {
                    "esp" => case.esp = Some(Words::parse(&words[1..])),
                    "ah" => case.ah = Some(Words::parse(&words[1..])),
                    "outer" => {
                        let (no_ecn, no_pmtu_discovery) = (words[3] == "1", words[4] == "1");
                        case.outer = Some(Outer { no_ecn, no_pmtu_discovery, ..outer(words[1], words[2]) });
                    }
                    "mtu" => case.mtu = words[1].parse().unwrap(),
                    "in" => {
                        let vnet = Vnet::parse(unhex(words[1]).first_chunk().unwrap());
                        case.frames.push((vnet, unhex(words[2])));
                    }
                    "out" => case.expected.push((case.frames.len() as u32 - 1, unhex(words[1]))),
                    _ => panic!("{line}"),
                }
            }
        }
    }
    cases
}

impl Case {
    /// The IVs of the block cipher, which are random, in the order of the frames.
    fn ivs(&self) -> Vec<u8> {
        let Some(esp) = self.esp.as_ref().filter(|esp| esp.encryption.contains("cbc")) else { return Vec::new() };
        let length = if esp.encryption.starts_with("aes") { 16 } else { 8 };
        let iv = |frame: &Vec<u8>| {
            let header = frame[14..].windows(4).position(|bytes| bytes == esp.spi.to_be_bytes());
            let start = 14 + 8 + header.expect("the SPI in the ESP header");
            frame[start..start + length].to_vec()
        };
        self.expected.iter().flat_map(|(_, frame)| iv(frame)).collect()
    }

    /// A card that has the IVs of the vectors for its random numbers.
    fn card(&self) -> (Card, Arc<Encapsulation>) {
        let mut ivs = self.ivs();
        let random = Box::new(move |bytes: &mut [u8]| {
            bytes[..ivs.len()].copy_from_slice(&ivs);
            ivs.clear();
            true
        });
        let mut card = Card::new(Manager::with(None, random).expect("a CPU that the library works on"));
        let esp = self.esp.as_ref().map(|words| words.make(&mut card));
        let ah = self.ah.as_ref().map(|words| words.make(&mut card));
        let plan = Arc::new(Encapsulation { path_mtu: self.mtu, ..plan(esp, ah, self.outer) });
        for (_, frame) in &self.frames {
            install(&mut card, frame, &plan);
        }
        (card, plan)
    }
}

/// The two frames, with the first byte in which they differ.
fn assert_same(name: &str, made: &[u8], expected: &[u8]) {
    let at = made.iter().zip(expected).position(|(a, b)| a != b);
    assert!(made == expected, "{name}: first difference at {at:?}\n{made:02x?}\n{expected:02x?}");
}

#[test]
fn a_burst_comes_out_as_the_reference_engine_sends_it() {
    let cases = cases();
    assert!(cases.len() > 50);
    for case in &cases {
        let (mut card, plan) = case.card();
        let (output, punts) = send(&mut card, &case.frames);
        assert!(punts.is_empty(), "{}: {punts:?}", case.name);
        assert_eq!(output.frames.len(), case.expected.len(), "{}", case.name);
        for (frame, (origin, expected)) in output.frames.iter().zip(&case.expected) {
            assert_same(&case.name, output.bytes_of(frame), expected);
            assert_eq!(frame.origin, *origin, "{}", case.name);
        }
        let packets = case.expected.len() as u64;
        for sa in [&plan.esp, &plan.ah].into_iter().flatten() {
            assert_eq!(sa.tally.packets.load(std::sync::atomic::Ordering::Relaxed), packets);
            assert_eq!(sa.tally.use_time(), 1.0);
        }
        assert_eq!(card.counts().sent, packets);
    }
}

#[test]
fn frame_by_frame_it_is_the_same_as_in_one_burst() {
    for case in &cases() {
        let (mut card, _) = case.card();
        let mut expected = case.expected.iter();
        for one in &case.frames {
            let (output, _) = send(&mut card, std::slice::from_ref(one));
            for frame in &output.frames {
                assert_same(&case.name, output.bytes_of(frame), &expected.next().unwrap().1);
            }
        }
        assert!(expected.next().is_none());
    }
}

// ------------------------------------------------------------------------------------------------ punts

const IPV4_ENDS: [[u8; 4]; 2] = [[10, 9, 0, 1], [10, 9, 0, 2]];

/// An IPv4 frame with a right header checksum.
fn ipv4(protocol: u8, behind: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
    frame.extend((20 + behind.len() as u16).to_be_bytes());
    frame.extend([0x12, 0x34, 0, 0, 64, protocol, 0, 0]);
    frame.extend(IPV4_ENDS.concat());
    let checksum = !plain_sum(&[&frame[14..]]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(behind);
    frame
}

fn ipv6(protocol: u8, hop_limit: u8, behind: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0];
    frame.extend((behind.len() as u16).to_be_bytes());
    frame.extend([protocol, hop_limit]);
    for end in ["fd09::1", "fd09::2"] {
        frame.extend(end.parse::<std::net::Ipv6Addr>().unwrap().octets());
    }
    frame.extend(behind);
    frame
}

/// A UDP header without a checksum (RFC 768), and payload.
fn datagram(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x13, 0x89, 0, 53];
    bytes.extend((8 + payload.len() as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    bytes
}

/// The Internet checksum word by word (RFC 1071 §4.1), over pieces of which all but the last have an even length.
fn plain_sum(pieces: &[&[u8]]) -> u16 {
    let mut total = 0_u32;
    for word in pieces.iter().flat_map(|piece| piece.chunks(2)) {
        total += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

fn tunnel() -> Option<Outer> {
    Some(outer("192.0.2.1", "192.0.2.2"))
}

/// A card with one flow, that of `frame`.
fn ready(words: &Words, frame: &[u8], change: impl Fn(&mut Encapsulation)) -> (Card, Arc<OutboundSa>) {
    let mut card = card();
    let sa = words.make(&mut card);
    let mut plan = plan(Some(sa.clone()), None, tunnel());
    change(&mut plan);
    install(&mut card, frame, &Arc::new(plan));
    (card, sa)
}

/// Send one frame that has to be a punt, and see that it left no trace.
fn assert_punt(card: &mut Card, sa: &OutboundSa, vnet: Vnet, frame: &[u8], reason: PuntReason) {
    let before = sa.sequence.last();
    let counted = card.counts().punts[reason as usize];
    let (output, punts) = send(card, &[(vnet, frame.to_vec())]);
    assert_eq!(punts, [Punt { index: 0, reason }]);
    assert!(output.frames.is_empty() && output.bytes.is_empty());
    assert_eq!(sa.sequence.last(), before);
    assert_eq!(sa.tally.packets.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert_eq!(card.counts().punts[reason as usize], counted + 1);
    assert_eq!(card.counts().sent, 0);
}

#[test]
fn what_is_not_for_this_engine_is_a_punt_that_leaves_no_trace() {
    let good = ipv4(17, &datagram(&[1; 40]));
    let (mut card, sa) = ready(&Words::gcm(), &good, |_| {});
    let card = &mut card;
    let mut punt = |frame: &[u8], reason| assert_punt(card, &sa, Vnet::default(), frame, reason);
    let changed = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    punt(&[], PuntReason::NonIp);
    punt(&good[..13], PuntReason::NonIp);
    punt(&changed(12, &[0x81, 0]), PuntReason::NonIp);
    punt(&changed(12, &[0x08, 0x06]), PuntReason::NonIp);
    punt(&changed(12, &[0x86, 0xdd]), PuntReason::Malformed);
    punt(&good[..40], PuntReason::Malformed);
    punt(&changed(14, &[0x46]), PuntReason::Options);
    punt(&changed(20, &[0x20]), PuntReason::Fragment);
    punt(&changed(21, &[1]), PuntReason::Fragment);
    punt(&changed(35, &[0]), PuntReason::UnknownFlow);
    punt(&ipv6(0, 64, &[17, 0, 0, 0, 0, 0, 0, 0]), PuntReason::Options);
    punt(&ipv4(17, &datagram(&[1; 400])), PuntReason::TooBig);
}

#[test]
fn neighbour_discovery_passes_by_every_flow() {
    for (kind, hop_limit, passes_by) in [(133, 255, true), (137, 255, true), (138, 255, false), (135, 64, false)] {
        let frame = ipv6(58, hop_limit, &[kind, 0, 0, 0, 0, 0, 0, 0]);
        let (mut card, sa) = ready(&Words::gcm(), &frame, |_| {});
        if passes_by {
            assert_punt(&mut card, &sa, Vnet::default(), &frame, PuntReason::UnknownFlow);
        } else {
            assert_eq!(send(&mut card, &[(Vnet::default(), frame)]).0.frames.len(), 1);
        }
    }
}

#[test]
fn superframes_that_contradict_themselves_are_punts() {
    let mut tcp = vec![0x13, 0x89, 1, 0xbb, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0];
    tcp.extend([9; 300]);
    let good = ipv4(6, &tcp);
    let (mut card, sa) = ready(&Words::gcm(), &good, |_| {});
    let tso = Vnet { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 100, csum_start: 34, csum_offset: 16 };
    for gso_type in [2, 3, 5, 0x7f, 0x83] {
        assert_punt(&mut card, &sa, Vnet { gso_type, ..tso }, &good, PuntReason::Superframe);
    }
    assert_punt(&mut card, &sa, Vnet { gso_size: 0, ..tso }, &good, PuntReason::Superframe);
    for data_offset in [0x00, 0x40, 0xf0] {
        let mut frame = good[..14 + 20 + 30].to_vec();
        frame[46] = data_offset;
        frame[16..18].copy_from_slice(&50_u16.to_be_bytes());
        assert_punt(&mut card, &sa, tso, &frame, PuntReason::Superframe);
    }
    let datagrams = ipv4(17, &datagram(&[5; 600]));
    let (mut card, sa) = ready(&Words::gcm(), &datagrams, |_| {});
    let uso = Vnet { gso_type: 5, gso_size: 330, csum_offset: 6, ..tso };
    // UDP may not be cut smaller than its sender wants.
    assert_punt(&mut card, &sa, uso, &datagrams, PuntReason::TooBig);
    assert_punt(&mut card, &sa, tso, &datagrams, PuntReason::Superframe);
    // More segments than any stack asks for.
    let long = ipv4(17, &datagram(&[5; 8193]));
    assert_punt(&mut card, &sa, Vnet { gso_size: 1, ..uso }, &long, PuntReason::Superframe);
    assert_eq!(send(&mut card, &[(Vnet { gso_size: 300, ..uso }, datagrams)]).0.frames.len(), 2);
}

#[test]
fn an_open_checksum_outside_the_packet_or_on_its_ports_is_a_punt() {
    let frame = ipv4(17, &datagram(&[1; 40]));
    let (mut card, sa) = ready(&Words::gcm(), &frame, |_| {});
    let end = frame.len() as u16;
    let outside = [(34, end - 35), (end, 0), (33, 7), (0, 0), (65535, 65535), (34, 65535)];
    // Policy has looked at the ports.
    let ports = [(34, 0), (34, 2), (34, 3), (36, 1)];
    for (csum_start, csum_offset) in outside.into_iter().chain(ports) {
        let vnet = Vnet { flags: 1, csum_start, csum_offset, ..Vnet::default() };
        assert_punt(&mut card, &sa, vnet, &frame, PuntReason::Malformed);
    }
    let vnet = Vnet { flags: 1, csum_start: 34, csum_offset: end - 36, ..Vnet::default() };
    assert_eq!(send(&mut card, &[(vnet, frame)]).0.frames.len(), 1);
}

#[test]
fn the_largest_packet_that_fits_the_path_is_sent_and_one_more_byte_is_a_punt() {
    let mut card = card();
    let esp = Words { integrity: "hmac-sha1-96".into(), ..Words::null() }.make(&mut card);
    let cbc = Words { encryption: "aes-cbc-128".into(), encryption_key: vec![1; 16], ..Words::null() }.make(&mut card);
    let gcm = Words::gcm().make(&mut card);
    let ah = Words {
        encryption: String::new(),
        integrity: "hmac-sha256-128".into(),
        integrity_key: vec![2; 32],
        icv_length: 16,
        ah_length: 32,
        ..Words::null()
    }
    .make(&mut card);
    let udp = Some(UdpEncapsulation { source_port: 4500, destination_port: 4500, checksum: false });
    let tunnel6 = Some(outer("2001:db8::1", "2001:db8::2"));
    // What is added: RFC 4303 §2, RFC 4302 §2, RFC 3948 §2.1; blocks are 4 or 16 bytes, with 2 of trailer.
    for (plan, expected) in [
        (plan(Some(gcm.clone()), None, tunnel()), (400 - 20 - 16 - 16) / 4 * 4 - 2),
        (plan(Some(gcm.clone()), None, tunnel6), (400 - 40 - 16 - 16) / 4 * 4 - 2),
        (plan(Some(cbc.clone()), None, tunnel()), (400 - 20 - 24 - 12) / 16 * 16 - 2),
        (plan(Some(esp), None, None), (400 - 20 - 8 - 12) / 4 * 4 - 2 + 20),
        (plan(None, Some(ah.clone()), None), 400 - 32),
        (plan(Some(gcm.clone()), Some(ah), tunnel()), (400 - 20 - 32 - 16 - 16) / 4 * 4 - 2),
        (Encapsulation { udp, ..plan(Some(gcm), None, tunnel()) }, (400 - 20 - 8 - 16 - 16) / 4 * 4 - 2),
        (Encapsulation { udp, ..plan(Some(cbc), None, None) }, (400 - 20 - 8 - 24 - 12) / 16 * 16 - 2 + 20),
    ] {
        let plan = Arc::new(plan);
        let fits = ipv4(17, &datagram(&vec![7; expected - 28]));
        install(&mut card, &fits, &plan);
        let (output, punts) = send(&mut card, &[(Vnet::default(), fits)]);
        assert!(punts.is_empty() && output.frames[0].length <= 414, "{expected}");
        let more = ipv4(17, &datagram(&vec![7; expected - 27]));
        let (_, punts) = send(&mut card, &[(Vnet::default(), more)]);
        assert_eq!(punts, [Punt { index: 0, reason: PuntReason::TooBig }], "{expected}");
    }
}

#[test]
fn a_path_too_small_for_the_headers_lets_nothing_pass() {
    let frame = ipv4(17, &datagram(&[]));
    for path_mtu in [0, 1, 20, 52, 55, 79] {
        let (mut card, sa) = ready(&Words::gcm(), &frame, |plan| plan.path_mtu = path_mtu);
        assert_punt(&mut card, &sa, Vnet::default(), &frame, PuntReason::TooBig);
    }
    let (mut card, _) = ready(&Words::gcm(), &frame, |plan| plan.path_mtu = usize::MAX);
    assert_eq!(send(&mut card, &[(Vnet::default(), frame)]).0.frames.len(), 1);
}

#[test]
fn what_was_told_of_the_path_grows_old() {
    let frame = ipv4(17, &datagram(&[1; 40]));
    let (mut card, sa) = ready(&Words::gcm(), &frame, |plan| plan.valid_until = 0.5);
    assert_punt(&mut card, &sa, Vnet::default(), &frame, PuntReason::Stale);
    let (mut card, _) = ready(&Words::gcm(), &frame, |plan| plan.valid_until = 1.0);
    assert_eq!(send(&mut card, &[(Vnet::default(), frame)]).0.frames.len(), 1);
}

#[test]
fn numbers_end_where_somebody_has_to_look_at_the_sa() {
    let frame = ipv4(17, &datagram(&[5; 300]));
    let uso = Vnet { flags: 1, gso_type: 5, hdr_len: 42, gso_size: 100, csum_start: 34, csum_offset: 6 };
    let (mut card, sa) = ready(&Words::gcm(), &frame, |_| {});
    sa.sequence.set_stop(2);
    assert_punt(&mut card, &sa, uso, &frame, PuntReason::Limit);
    sa.sequence.set_stop(3);
    assert_eq!(send(&mut card, &[(uso, frame.clone())]).0.frames.len(), 3);
    let plain = Words { esn: false, last: u64::from(u32::MAX) - 2, ..Words::gcm() };
    let (mut card, sa) = ready(&plain, &frame, |_| {});
    assert_punt(&mut card, &sa, uso, &frame, PuntReason::Limit);
    sa.sequence.set_stop(u64::MAX);
    assert_punt(&mut card, &sa, uso, &frame, PuntReason::Limit);
}

#[test]
fn one_sa_without_numbers_takes_none_of_the_other() {
    let frame = ipv4(17, &datagram(&[1; 40]));
    let mut card = card();
    let esp = Words::gcm().make(&mut card);
    let words = Words { integrity: "hmac-sha1-96".into(), integrity_key: vec![2; 20], ..Words::null() };
    let ah = Words { encryption: String::new(), icv_length: 12, ah_length: 24, ..words }.make(&mut card);
    install(&mut card, &frame, &Arc::new(plan(Some(esp.clone()), Some(ah.clone()), tunnel())));
    ah.sequence.set_stop(0);
    assert_punt(&mut card, &esp, Vnet::default(), &frame, PuntReason::Limit);
}

#[test]
fn after_2_to_the_30_extended_numbers_the_nic_sees_a_packet() {
    let frame = ipv4(17, &datagram(&[1; 40]));
    let (mut card, sa) = ready(&Words::gcm(), &frame, |_| {});
    sa.sequence.set_last(1 << 30);
    assert_punt(&mut card, &sa, Vnet::default(), &frame, PuntReason::ExtendedNumbers);
    sa.sequence.set_last((1 << 30) - 1);
    assert_eq!(send(&mut card, &[(Vnet::default(), frame)]).0.frames.len(), 1);
}

#[test]
fn without_ivs_nothing_of_the_burst_goes_out() {
    let frame = ipv4(17, &datagram(&[1; 40]));
    let other = ipv4(17, &[0, 1, 0, 2, 0, 8, 0, 0]);
    let mut card = card();
    let gmac = Words {
        encryption: String::new(),
        encryption_key: vec![],
        integrity: "aes-gmac-128".into(),
        integrity_key: vec![5; 20],
        ah_length: 40,
        ..Words::gcm()
    };
    for ah in [false, true] {
        let ivs = CounterIvs::new(0, u64::MAX, true);
        let sa = if ah { gmac.with_ivs(&mut card, ivs) } else { Words::gcm().with_ivs(&mut card, ivs) };
        let (esp, ah) = if ah { (None, Some(sa)) } else { (Some(sa), None) };
        install(&mut card, &frame, &Arc::new(plan(esp, ah, tunnel())));
        let good = Words::gcm().make(&mut card);
        install(&mut card, &other, &Arc::new(plan(Some(good.clone()), None, tunnel())));
        let arp = vec![0; 60];
        let frames = [other.clone(), arp, frame.clone()].map(|frame| (Vnet::default(), frame));
        let (output, punts) = send(&mut card, &frames);
        assert!(output.frames.is_empty() && output.bytes.is_empty());
        let reasons = [PuntReason::Limit, PuntReason::NonIp, PuntReason::Limit];
        assert_eq!(punts, [0, 1, 2].map(|index| Punt { index, reason: reasons[index as usize] }));
        assert_eq!(good.tally.packets.load(std::sync::atomic::Ordering::Relaxed), 0);
        // What was framed may have taken numbers; nobody uses them again.
        assert_eq!(good.sequence.last(), 1);
    }
    assert_eq!(card.counts().sent, 0);
}

#[test]
fn plans_that_have_no_place_here_are_punts() {
    let frame = ipv4(17, &datagram(&[1; 40]));
    let mixed = Outer { destination: "2001:db8::2".parse::<IpAddr>().unwrap(), ..tunnel().unwrap() };
    let (mut card, sa) = ready(&Words::gcm(), &frame, |plan| plan.outer = Some(mixed));
    assert_punt(&mut card, &sa, Vnet::default(), &frame, PuntReason::UnknownFlow);
    let (mut card, sa) = ready(&Words::gcm(), &frame, |plan| plan.esp = None);
    assert_punt(&mut card, &sa, Vnet::default(), &frame, PuntReason::UnknownFlow);
    for ah_length in [0, 12, 27, 30, 4 * 258] {
        let (mut card, sa) = ready(&Words { ah_length, ..Words::null() }, &frame, |plan| plan.ah = plan.esp.clone());
        assert_punt(&mut card, &sa, Vnet::default(), &frame, PuntReason::UnknownFlow);
    }
}

#[test]
fn what_was_cleared_is_a_punt_again() {
    let frame = ipv4(17, &datagram(&[1; 40]));
    let (mut card, sa) = ready(&Words::gcm(), &frame, |_| {});
    card.clear_flows();
    assert_punt(&mut card, &sa, Vnet::default(), &frame, PuntReason::UnknownFlow);
}

// ------------------------------------------------------------------------------------------------ UDP

#[test]
fn esp_in_udp_has_the_ports_a_length_and_the_checksum_that_was_wanted() {
    let inside = ipv4(17, &datagram(&[1; 41]));
    for (tunnel, ip) in [(tunnel(), 20), (Some(outer("2001:db8::1", "2001:db8::2")), 40), (None, 20)] {
        for checksum in [false, true] {
            let (mut card, _) = ready(&Words::gcm(), &inside, |plan| {
                plan.outer = tunnel;
                plan.udp = Some(UdpEncapsulation { source_port: 4500, destination_port: 0xabcd, checksum });
            });
            let (output, _) = send(&mut card, &[(Vnet::default(), inside.clone())]);
            let packet = &output.bytes_of(&output.frames[0])[14..];
            let header = parse_frame(output.bytes_of(&output.frames[0])).unwrap();
            assert_eq!((header.protocol, header.header_length, header.length()), (17, ip, packet.len()));
            let (addresses, udp) = (if ip == 20 { &packet[12..20] } else { &packet[8..40] }, &packet[ip..]);
            assert_eq!(udp[..4], [0x11, 0x94, 0xab, 0xcd]);
            let length = (udp.len() as u16).to_be_bytes();
            assert_eq!(udp[4..6], length);
            assert_eq!(udp[8..16], [0, 0, 0x12, 0x34, 0, 0, 0, 1]);
            if checksum {
                assert_eq!(plain_sum(&[addresses, &[0, 17], &length, udp]), 0xffff);
            } else {
                assert_eq!(udp[6..8], [0, 0]);
            }
            if ip == 20 {
                assert_eq!(plain_sum(&[&packet[..20]]), 0xffff);
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------ any input

/// A small generator of numbers (Knuth's MMIX), so that a failure comes again.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % bound
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.below(256) as u8).collect()
    }
}

/// Hold a TCP or UDP packet to its checksums; gives the offset of its TCP or UDP header.
fn assert_checksums(packet: &[u8]) -> usize {
    let (ip, protocol, addresses) =
        if packet[0] >> 4 == 4 { (20, packet[9], &packet[12..20]) } else { (40, packet[6], &packet[8..40]) };
    if ip == 20 {
        assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
        assert_eq!(plain_sum(&[&packet[..20]]), 0xffff);
    } else {
        assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])), packet.len() - 40);
    }
    let length = (packet.len() - ip) as u16;
    assert_eq!(plain_sum(&[addresses, &[0, protocol], &length.to_be_bytes(), &packet[ip..]]), 0xffff);
    ip
}

#[test]
fn the_packets_of_a_superframe_carry_its_payload_and_right_headers() {
    let mut numbers = Numbers(1);
    for round in 0..1500 {
        let tcp = numbers.below(3) != 0;
        let six = numbers.below(2) == 0;
        let size = 1 + numbers.below(if round % 50 == 0 { 1400 } else { 300 });
        let limit = (size * 50).min(65535 - 100);
        let length = numbers.below(limit);
        let payload = numbers.bytes(length);
        let options = if tcp { 4 * numbers.below(11) } else { 0 };
        let mut behind = numbers.bytes(4);
        if tcp {
            behind.extend(numbers.bytes(8));
            behind.extend([(5 + options as u8 / 4) << 4 | numbers.below(16) as u8, numbers.below(256) as u8]);
            behind.extend(numbers.bytes(6 + options));
        } else {
            behind.extend(numbers.bytes(4));
        }
        let layer4 = behind.len();
        behind.extend(&payload);
        let protocol = if tcp { 6 } else { 17 };
        let mut frame = if six { ipv6(protocol, 64, &behind) } else { ipv4(protocol, &behind) };
        if !six {
            frame[20] = 0x40 * numbers.below(2) as u8;
            frame[24..26].fill(0);
            let checksum = !plain_sum(&[&frame[14..34]]);
            frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        }
        let headers = frame.len() - 14 - payload.len();
        let gso_type = if !tcp {
            5
        } else if six {
            4
        } else {
            1
        };
        let vnet = Vnet { flags: 1, gso_type, gso_size: size as u16, ..Vnet::default() };
        // 20 outer IP, 8 ESP, 12 ICV, 2 trailer, and less than 4 of padding.
        let path_mtu = if tcp { headers + 43 + 1 + numbers.below(400) } else { headers + size + 45 };
        let words = Words { last: numbers.below(1 << 33) as u64, ..Words::null() };
        let (mut card, sa) = ready(&words, &frame, |plan| plan.path_mtu = path_mtu);
        let (output, punts) = send(&mut card, &[(vnet, frame.clone())]);
        assert!(punts.is_empty(), "{round}: {punts:?}");
        let mut got = Vec::new();
        let mut position = 0_u32;
        let count = output.frames.len();
        let mut inside_bytes = 0;
        for (index, out) in output.frames.iter().enumerate() {
            let bytes = output.bytes_of(out);
            let packet = &bytes[14..];
            assert!(packet.len() <= path_mtu);
            assert_eq!(plain_sum(&[&packet[..20]]), 0xffff);
            let number = words.last + 1 + index as u64;
            assert_eq!(packet[24..28], (number as u32).to_be_bytes());
            // Null encryption: the packet stands there.
            let text = &packet[28..packet.len() - 12];
            let (pad, next) = (text[text.len() - 2], text[text.len() - 1]);
            assert_eq!((next, text.len() % 4), (if six { 41 } else { 4 }, 0));
            assert!(pad < 4);
            let inside = &text[..text.len() - 2 - usize::from(pad)];
            assert!(text[inside.len()..].iter().take(usize::from(pad)).copied().eq(1..=pad));
            let dont_fragment = six || frame[20] & 0x40 != 0;
            let identification = if dont_fragment { 0 } else { number as u16 };
            assert_eq!(packet[4..6], identification.to_be_bytes());
            assert_eq!(packet[6] & 0x40 != 0, dont_fragment);
            let at = assert_checksums(inside);
            assert_eq!(inside[at..at + 4], behind[..4]);
            if !six {
                assert_eq!(inside[4..6], 0x1234_u16.wrapping_add(index as u16).to_be_bytes());
            }
            if tcp {
                let first = u32::from_be_bytes(*behind[4..].first_chunk().unwrap());
                assert_eq!(inside[at + 4..at + 8], first.wrapping_add(position).to_be_bytes());
                let mut flags = behind[13];
                if index != 0 {
                    flags &= !0x80;
                }
                if index + 1 != count {
                    flags &= !0x09;
                }
                assert_eq!(inside[at + 13], flags);
                assert_eq!(inside[at + 18..at + layer4], behind[18..layer4]);
                assert_eq!(inside[at + 12], behind[12]);
                assert_eq!(inside[at + 14..at + 16], behind[14..16]);
            } else {
                assert_eq!(inside[at + 4..at + 6], ((inside.len() - at) as u16).to_be_bytes());
            }
            let piece = &inside[at + layer4..];
            assert!(piece.len() <= size);
            position += piece.len() as u32;
            got.extend_from_slice(piece);
            inside_bytes += inside.len() as u64;
        }
        assert_eq!(got, payload, "{round}");
        assert_eq!(sa.sequence.last(), words.last + count as u64);
        assert_eq!(sa.tally.bytes.load(std::sync::atomic::Ordering::Relaxed), inside_bytes);
    }
}

#[test]
fn a_burst_of_many_flows_is_the_same_as_frame_by_frame() {
    let mut numbers = Numbers(2);
    let ah = Words {
        encryption: String::new(),
        integrity: "hmac-sha256-128".into(),
        integrity_key: vec![2; 32],
        icv_length: 16,
        ah_length: 32,
        ..Words::null()
    };
    for _ in 0..20 {
        let (mut whole, mut single) = (card(), card());
        let mut frames = Vec::new();
        for flow in 0..6_u8 {
            let mut behind = datagram(&numbers.bytes(200));
            behind[0] = flow;
            let frame = if flow % 2 == 0 { ipv4(17, &behind) } else { ipv6(17, 64, &behind) };
            for card in [&mut whole, &mut single] {
                let esp = if flow % 3 == 0 { Words::gcm() } else { Words::null() }.make(card);
                let ah = ah.make(card);
                let plan = match flow {
                    0 | 1 => plan(Some(esp), None, tunnel()),
                    2 => plan(None, Some(ah), None),
                    3 => plan(Some(esp), Some(ah), tunnel()),
                    _ => plan(Some(esp), None, None),
                };
                install(card, &frame, &Arc::new(plan));
            }
            let uso = Vnet { flags: 1, gso_type: 5, gso_size: 1 + numbers.below(150) as u16, ..Vnet::default() };
            frames.extend([(Vnet::default(), frame.clone()), (uso, frame.clone()), (Vnet::default(), frame)]);
        }
        for _ in 0..frames.len() {
            let (left, right) = (numbers.below(frames.len()), numbers.below(frames.len()));
            frames.swap(left, right);
        }
        let (output, punts) = send(&mut whole, &frames);
        assert!(punts.is_empty());
        let mut made = output.frames.iter();
        for (origin, one) in (0..).zip(&frames) {
            let (expected, _) = send(&mut single, std::slice::from_ref(one));
            for frame in &expected.frames {
                let out = made.next().unwrap();
                assert_eq!(out.origin, origin);
                assert_same("a burst", output.bytes_of(out), expected.bytes_of(frame));
            }
        }
        assert!(made.next().is_none());
    }
}

#[test]
fn no_bytes_make_it_panic_or_do_half_a_frame() {
    let mut numbers = Numbers(3);
    let good = [
        ipv4(17, &datagram(&[1; 90])),
        ipv6(17, 64, &datagram(&[1; 90])),
        ipv4(6, &[&[0x13, 0x89, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0][..], &[9; 70]].concat()),
        ipv6(
            6,
            64,
            &[&[0x13, 0x89, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x80, 0x18, 1, 0, 0, 0, 0, 0][..], &[9; 70]].concat(),
        ),
    ];
    let mut card = card();
    let sas = [Words::gcm().make(&mut card), Words::null().make(&mut card)];
    for round in 0..60_000 {
        let mut frame = good[numbers.below(good.len())].clone();
        if round % 4 == 0 {
            let count = numbers.below(120);
            frame = numbers.bytes(count);
        } else {
            for _ in 0..numbers.below(4) {
                let at = 12 + numbers.below(60);
                frame[at] = numbers.below(256) as u8;
            }
            frame.truncate(frame.len() - numbers.below(2) * numbers.below(90));
        }
        let word =
            |numbers: &mut Numbers| [0, 1, 34, 54, 60, 300, 65535, numbers.below(65536)][numbers.below(8)] as u16;
        let vnet = Vnet {
            flags: numbers.below(4) as u8,
            gso_type: [0, 0, 1, 4, 5, 0x81, numbers.below(256)][numbers.below(7)] as u8,
            hdr_len: word(&mut numbers),
            gso_size: word(&mut numbers),
            csum_start: word(&mut numbers),
            csum_offset: word(&mut numbers),
        };
        if let Ok(header) = parse_frame(&frame) {
            let outers = [None, tunnel(), Some(outer("2001:db8::1", "2001:db8::2"))];
            let path_mtu = [0, 100, 1500, 65535, usize::MAX][numbers.below(5)];
            let mut plan = plan(Some(sas[numbers.below(2)].clone()), None, outers[numbers.below(3)]);
            plan.path_mtu = path_mtu;
            if numbers.below(3) == 0 {
                plan.udp = Some(UdpEncapsulation { source_port: 1, destination_port: 2, checksum: true });
            }
            card.install_flow(flow_key(&frame, &header), Arc::new(plan));
        }
        let before = sas.each_ref().map(|sa| sa.sequence.last());
        let (output, punts) = send(&mut card, &[(vnet, frame)]);
        let taken: u64 = sas.iter().zip(before).map(|(sa, before)| sa.sequence.last() - before).sum();
        assert_eq!(taken, output.frames.len() as u64);
        assert_ne!(punts.is_empty(), output.frames.is_empty());
        let behind = output.frames.last().map_or(0, |frame| frame.start + frame.length);
        assert_eq!(output.bytes.len(), behind);
    }
    assert!(card.counts().sent > 10_000, "{:?}", card.counts());
}

#[test]
fn a_udp_checksum_is_never_zero_and_that_of_a_tcp_segment_may_be() {
    let tcp = |word: [u8; 2]| {
        [&[0x13, 0x89, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0][..], &word, &[7, 7]].concat()
    };
    let udp = |word: [u8; 2]| datagram(&[&word[..], &[7, 7]].concat());
    let cut = |gso_type| Vnet { flags: 1, gso_type, gso_size: 2, ..Vnet::default() };
    let open = Vnet { flags: 1, csum_start: 34, csum_offset: 6, ..Vnet::default() };
    // The first of two segments, or the whole packet: its checksum is made 0 by a word of payload.
    for (protocol, field, vnet, expected) in
        [(6, 16, cut(1), [0, 0]), (17, 6, cut(5), [0xff, 0xff]), (17, 6, open, [0xff, 0xff])]
    {
        let checksum = |word: [u8; 2]| -> [u8; 2] {
            let frame = ipv4(protocol, &if protocol == 6 { tcp(word) } else { udp(word) });
            let (mut card, _) = ready(&Words::null(), &frame, |_| {});
            let (output, punts) = send(&mut card, &[(vnet, frame)]);
            assert!(punts.is_empty());
            let at = 14 + 20 + 8 + 20 + field;
            *output.bytes_of(&output.frames[0])[at..].first_chunk().unwrap()
        };
        assert_eq!(checksum(checksum([0, 0])), expected, "{protocol}");
    }
}
