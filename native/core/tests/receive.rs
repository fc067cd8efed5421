//! Frames of the wire, one rule a test. What is sealed here is framed by the tests themselves, from the RFCs.

mod common;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use common::unhex;
use vnic_core::association::{FlowKey, InboundSa, Mode, Protocol, UdpEncapsulation};
use vnic_core::card::Card;
use vnic_core::checksum::{changed, checksum, complement, pseudo_header, sum};
use vnic_core::cipher::{AhJob, EspSeal, Keys, Opener, Sealer, ah_icvs, seal_esp};
use vnic_core::coalesce::Joins;
use vnic_core::frames::{Frames, HostFrames, Vnet};
use vnic_core::mb::Manager;
use vnic_core::packet::{flow_key, parse_ip};
use vnic_core::punt::{Punt, PuntReason};
use vnic_core::state::{CounterIvs, Tally, Window};

const ETHERNET: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];

/// What an SA of the tests is.
#[derive(Clone)]
struct Plan {
    protocol: Protocol,
    suite: &'static str,
    mode: Mode,
    outer: u8,
    esn: bool,
    window: u64,
    top: u64,
    mark: u64,
    stop: u64,
    no_ecn: bool,
    udp: Option<UdpEncapsulation>,
    wrong_source: bool,
}

const ESP_TUNNEL: Plan = Plan {
    protocol: Protocol::Esp,
    suite: "gcm",
    mode: Mode::Tunnel,
    outer: 4,
    esn: false,
    window: 64,
    top: 0,
    mark: 0,
    stop: u64::MAX,
    no_ecn: false,
    udp: None,
    wrong_source: false,
};

const UDP_PORTS: UdpEncapsulation = UdpEncapsulation { source_port: 40000, destination_port: 4500, checksum: false };

fn keys(suite: &str) -> Keys<'static> {
    let (encryption, encryption_length, integrity, integrity_length, icv_length) = match suite {
        "gcm" => ("aes-gcm-128", 20, "", 0, 16),
        "gcm8" => ("aes-gcm-256", 36, "", 0, 8),
        "cbc" => ("aes-cbc-128", 16, "hmac-sha1-96", 20, 12),
        "3des" => ("3des-cbc", 24, "hmac-md5-96", 16, 12),
        "null" => ("null", 0, "hmac-sha256-128", 32, 16),
        "bare" => ("aes-cbc-256", 32, "", 0, 0),
        "sha256" => ("", 0, "hmac-sha256-128", 32, 16),
        "sha1" => ("", 0, "hmac-sha1-96", 20, 12),
        "gmac" => ("", 0, "aes-gmac-128", 20, 16),
        _ => panic!("{suite}"),
    };
    const KEY: [u8; 36] = {
        let mut key = [0; 36];
        let mut at = 0;
        while at < 36 {
            key[at] = at as u8 * 7 + 1;
            at += 1;
        }
        key
    };
    Keys {
        encryption,
        encryption_key: &KEY[..encryption_length],
        integrity,
        integrity_key: &KEY[..integrity_length],
        icv_length,
    }
}

fn ends(version: u8) -> (IpAddr, IpAddr) {
    if version == 4 {
        ("192.0.2.2".parse().unwrap(), "192.0.2.1".parse().unwrap())
    } else {
        ("2001:db8::2".parse().unwrap(), "2001:db8::1".parse().unwrap())
    }
}

fn put_addresses(packet: &mut Vec<u8>, (source, destination): (IpAddr, IpAddr)) {
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => packet.extend(address.octets()),
            IpAddr::V6(address) => packet.extend(address.octets()),
        }
    }
}

/// An IP header before `payload`.
fn ip(ends: (IpAddr, IpAddr), protocol: u8, traffic_class: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    if ends.0.is_ipv4() {
        let length = (20 + payload.len()) as u16;
        packet.extend([
            0x45,
            traffic_class,
            (length >> 8) as u8,
            length as u8,
            0x12,
            0x34,
            0x40,
            0,
            63,
            protocol,
            0,
            0,
        ]);
        put_addresses(&mut packet, ends);
        let field = checksum(&packet);
        packet[10..12].copy_from_slice(&field.to_be_bytes());
    } else {
        let length = payload.len() as u16;
        packet.extend([0x60 | traffic_class >> 4, traffic_class << 4 | 1, 2, 3]);
        packet.extend([(length >> 8) as u8, length as u8, protocol, 63]);
        put_addresses(&mut packet, ends);
    }
    packet.extend(payload);
    packet
}

/// A UDP datagram of `length` bytes of payload, with its checksum.
fn udp(ends: (IpAddr, IpAddr), ports: (u16, u16), length: usize) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend(ports.0.to_be_bytes());
    datagram.extend(ports.1.to_be_bytes());
    datagram.extend(((length + 8) as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend((0..length).map(|at| (at * 31) as u8));
    let field = complement(pseudo_header(ends.0, ends.1, 17, datagram.len()) + sum(&datagram));
    datagram[6..8].copy_from_slice(&field.to_be_bytes());
    datagram
}

fn inner_ends(version: u8) -> (IpAddr, IpAddr) {
    if version == 4 {
        ("10.0.0.2".parse().unwrap(), "10.0.0.1".parse().unwrap())
    } else {
        ("fd00::2".parse().unwrap(), "fd00::1".parse().unwrap())
    }
}

/// The packet that goes through tunnels.
fn inner(version: u8, length: usize) -> Vec<u8> {
    ip(inner_ends(version), 17, 0, &udp(inner_ends(version), (5000, 6000), length))
}

fn frame(packet: &[u8]) -> Vec<u8> {
    let mut bytes = ETHERNET.to_vec();
    bytes.extend(if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    bytes.extend(packet);
    bytes
}

fn monotonic(length: usize) -> Vec<u8> {
    (1..=length as u8).collect()
}

/// Both ends of an SA, or of an ESP SA inside an AH SA.
struct Lab {
    card: Card,
    esp: Option<(Sealer, Plan)>,
    ah: Option<(Sealer, Plan)>,
    sa: Arc<InboundSa>,
    outer_class: u8,
    host: HostFrames,
    punts: Vec<Punt>,
}

fn sealer(manager: &mut Manager, suite: &str) -> Sealer {
    let counter = suite.starts_with('g');
    Sealer::new(manager, &keys(suite), counter.then(|| Arc::new(CounterIvs::new(77, 0, false)))).unwrap()
}

fn inbound(
    manager: &mut Manager,
    plan: &Plan,
    id: u64,
    inside: Option<Arc<InboundSa>>,
    only_inside: bool,
) -> InboundSa {
    let (source, destination) = ends(plan.outer);
    InboundSa {
        spi: 0x1000 + id as u32,
        protocol: plan.protocol,
        source: Some(if plan.wrong_source { destination } else { source }),
        destination,
        transform: Opener::new(manager, &keys(plan.suite)).unwrap(),
        esn: plan.esn,
        mode: plan.mode,
        no_ecn: plan.no_ecn,
        inside,
        only_inside,
        udp: plan.udp,
        window: Arc::new(Window::new(plan.window, plan.top)),
        tally: Arc::new(Tally::default()),
        mark: plan.mark,
        id,
    }
}

impl Lab {
    fn new(plan: Plan) -> Self {
        Self::layered(
            Some(plan.clone()).filter(|plan| plan.protocol == Protocol::Esp),
            Some(plan).filter(|plan| plan.protocol == Protocol::Ah),
        )
    }

    fn layered(esp: Option<Plan>, ah: Option<Plan>) -> Self {
        let mut card = Card::new(Manager::new().unwrap());
        card.set_joins(Joins { tcp: false, udp: false });
        let manager = card.manager();
        let both = esp.is_some() && ah.is_some();
        let esp_sa = esp.as_ref().map(|plan| Arc::new(inbound(manager, plan, 1, None, both)));
        let ah_sa = ah.as_ref().map(|plan| Arc::new(inbound(manager, plan, 2, esp_sa.clone(), false)));
        let esp = esp.map(|plan| (sealer(manager, plan.suite), plan));
        let ah = ah.map(|plan| (sealer(manager, plan.suite), plan));
        let sa = ah_sa.clone().or(esp_sa.clone()).unwrap();
        for (known, plan) in [(&esp_sa, &esp), (&ah_sa, &ah)] {
            if let (Some(known), Some((_, plan))) = (known, plan) {
                known.tally.stop.store(plan.stop, Relaxed);
                card.install_sa(known.clone());
            }
        }
        for version in [4, 6] {
            for ends in [inner_ends(version), ends(version)] {
                let flow = FlowKey {
                    source: ends.0,
                    destination: ends.1,
                    protocol: 17,
                    source_port: 5000,
                    destination_port: 6000,
                };
                card.allow(flow, sa.id);
                card.allow(FlowKey { destination_port: 4500, ..flow }, sa.id);
            }
        }
        Self { card, esp, ah, sa, outer_class: 0, host: HostFrames::default(), punts: Vec::new() }
    }

    /// A wire frame around `content`, with this number, padding, next header and extra bytes behind.
    fn seal_with(&mut self, number: u64, content: &[u8], padding: &[u8], pad_length: u8, next_header: u8) -> Vec<u8> {
        let outer = self.sa_plan().outer;
        let ends = ends(outer);
        let ip_length = if outer == 4 { 20 } else { 40 };
        let mut payload = content.to_vec();
        let mut protocol = next_header;
        if let Some((sealer, plan)) = &self.esp {
            let mut esp = (0x1001_u32).to_be_bytes().to_vec();
            esp.extend((number as u32).to_be_bytes());
            esp.resize(8 + sealer.iv_length(), 0);
            esp.extend(content);
            esp.extend(padding);
            esp.extend([pad_length, next_header]);
            let end = esp.len() + sealer.icv_length();
            esp.resize(end, 0);
            let high = plan.esn.then_some((number >> 32) as u32);
            assert!(seal_esp(self.card.manager(), &mut esp, &[EspSeal { start: 0, end, high, sealer }]));
            payload = esp;
            protocol = 50;
            if let Some(ports) = plan.udp {
                let mut datagram = ports.source_port.to_be_bytes().to_vec();
                datagram.extend(ports.destination_port.to_be_bytes());
                datagram.extend(((payload.len() + 8) as u16).to_be_bytes());
                datagram.extend([0, 0]);
                datagram.extend(payload);
                if outer == 6 {
                    let field = complement(pseudo_header(ends.0, ends.1, 17, datagram.len()) + sum(&datagram));
                    datagram[6..8].copy_from_slice(&field.to_be_bytes());
                }
                payload = datagram;
                protocol = 17;
            }
        }
        if let Some((sealer, plan)) = &self.ah {
            let length = (12 + sealer.iv_length() + sealer.icv_length()).next_multiple_of(8);
            let mut ah = vec![protocol, (length / 4 - 2) as u8, 0, 0];
            ah.extend((0x1002_u32).to_be_bytes());
            ah.extend((number as u32).to_be_bytes());
            let iv = sealer.take_iv().unwrap_or_default();
            ah.extend(&iv[..sealer.iv_length()]);
            let icv = ah.len();
            ah.resize(length, 0);
            ah.extend(payload);
            payload = ah;
            let mut packet = ip(ends, 51, self.outer_class, &payload);
            if outer == 4 {
                for at in [1, 6, 7, 8, 10, 11] {
                    packet[at] = 0;
                }
            } else {
                packet[..4].copy_from_slice(&[0x60, 0, 0, 0]);
                packet[7] = 0;
            }
            let high = plan.esn.then_some((number >> 32) as u32);
            let job = AhJob { start: 0, length: packet.len(), high, iv, sa: sealer };
            let mut icvs = Vec::new();
            assert!(ah_icvs(self.card.manager(), &packet, &[job], &mut icvs));
            let icv_length = sealer.icv_length();
            payload[icv..icv + icv_length].copy_from_slice(&icvs[0][..icv_length]);
            protocol = 51;
        }
        let packet = ip(ends, protocol, self.outer_class, &payload);
        assert_eq!(packet.len(), ip_length + payload.len());
        frame(&packet)
    }

    fn sa_plan(&self) -> &Plan {
        let layer = self.ah.as_ref().or(self.esp.as_ref());
        &layer.unwrap().1
    }

    fn seal_as(&mut self, number: u64, content: &[u8], next_header: u8) -> Vec<u8> {
        let alignment = self.esp.as_ref().map_or(4, |(sealer, _)| sealer.alignment());
        let pad = (content.len() + 2).next_multiple_of(alignment) - content.len() - 2;
        self.seal_with(number, content, &monotonic(pad), pad as u8, next_header)
    }

    fn seal(&mut self, number: u64, content: &[u8]) -> Vec<u8> {
        let next_header = if self.mode() == Mode::Transport {
            17
        } else if content[0] >> 4 == 4 {
            4
        } else {
            41
        };
        self.seal_as(number, content, next_header)
    }

    fn mode(&self) -> Mode {
        self.esp.as_ref().or(self.ah.as_ref()).unwrap().1.mode
    }

    /// Receive a burst; gives the frames for the host, and index and reason of punts.
    fn receive(&mut self, frames: &[Vec<u8>]) -> (Vec<Vec<u8>>, Vec<(u32, PuntReason)>) {
        let mut burst = Frames::default();
        for (index, frame) in (0..).zip(frames) {
            burst.push(frame, Vnet::default(), index);
        }
        self.receive_burst(&burst)
    }

    fn receive_burst(&mut self, burst: &Frames) -> (Vec<Vec<u8>>, Vec<(u32, PuntReason)>) {
        let before = burst.bytes.clone();
        self.punts.clear();
        self.card.receive(burst, 3.5, &mut self.host, &mut self.punts);
        assert_eq!(burst.bytes, before, "wire frames are not written");
        let host = self.host.frames.iter().map(|frame| self.host.joined(frame)).collect();
        (host, self.punts.iter().map(|punt| (punt.index, punt.reason)).collect())
    }

    /// Everything an SA remembers.
    fn state(&self) -> Vec<u64> {
        let mut state = Vec::new();
        for sa in [Some(&self.sa), self.sa.inside.as_ref()].into_iter().flatten() {
            let (window, tally) = (&sa.window, &sa.tally);
            state.extend([window.top(), window.needed(), tally.packets.load(Relaxed), tally.bytes.load(Relaxed)]);
            state.push(tally.use_time().to_bits());
            state.extend(
                (0..window.bits().min(window.top())).map(|below| u64::from(window.is_marked(window.top() - below))),
            );
        }
        state
    }

    /// Expect a frame to be a punt without a trace.
    fn punts(&mut self, bytes: &[u8], reason: PuntReason) {
        let before = self.state();
        let (host, punts) = self.receive(&[bytes.to_vec()]);
        assert!(host.is_empty(), "{reason:?}");
        assert_eq!(punts, [(0, reason)]);
        assert_eq!(self.state(), before);
    }
}

fn esp(suite: &'static str, mode: Mode, outer: u8) -> Plan {
    Plan { suite, mode, outer, ..ESP_TUNNEL }
}

fn ah(suite: &'static str, mode: Mode, outer: u8) -> Plan {
    Plan { protocol: Protocol::Ah, suite, mode, outer, ..ESP_TUNNEL }
}

/// An SA as `vectors/send.txt` has it.
fn told(manager: &mut Manager, words: &[&str], ends: (IpAddr, IpAddr), inside: Option<Arc<InboundSa>>) -> InboundSa {
    let name = |word: &'static str| if word == "-" { "" } else { word };
    let names: Vec<&str> = words.iter().map(|word| name(String::leak(word.to_string()))).collect();
    let (key, other) = (unhex(names[3]), unhex(names[5]));
    let keys = Keys {
        encryption: names[2],
        encryption_key: &key,
        integrity: names[4],
        integrity_key: &other,
        icv_length: words[6].parse().unwrap(),
    };
    let last = words[8].parse().unwrap();
    let protocol = if words[0] == "esp" { Protocol::Esp } else { Protocol::Ah };
    InboundSa {
        spi: u32::from_str_radix(&words[1][2..], 16).unwrap(),
        protocol,
        source: Some(ends.0),
        destination: ends.1,
        transform: Opener::new(manager, &keys).unwrap(),
        esn: words[7] == "1",
        mode: Mode::Transport,
        no_ecn: false,
        inside,
        only_inside: false,
        udp: None,
        window: Arc::new(Window::new(64, last)),
        tally: Arc::new(Tally::default()),
        mark: last,
        id: 9,
    }
}

/// A card that knows the SAs of a case, and may pass these frames.
fn told_lab(lines: &[Vec<&str>], ends: (IpAddr, IpAddr), frames: &[Vec<u8>]) -> Lab {
    let line = |kind: &str| lines.iter().find(|words| words[0] == kind);
    let mut lab = Lab::new(ESP_TUNNEL);
    lab.card.clear_inbound();
    let manager = lab.card.manager();
    let mode = if line("outer").is_some() { Mode::Tunnel } else { Mode::Transport };
    let ah = line("ah");
    let esp = line("esp")
        .map(|words| Arc::new(InboundSa { mode, only_inside: ah.is_some(), ..told(manager, words, ends, None) }));
    let outermost = match ah {
        Some(words) => {
            let mode = if esp.is_some() { Mode::Transport } else { mode };
            Arc::new(InboundSa { mode, ..told(manager, words, ends, esp.clone()) })
        }
        None => esp.clone().unwrap(),
    };
    for sa in [Some(&outermost), esp.as_ref()].into_iter().flatten() {
        lab.card.install_sa(sa.clone());
    }
    for frame in frames {
        let header = parse_ip(frame, 14, frame.len()).unwrap();
        lab.card.allow(flow_key(frame, &header), outermost.id);
    }
    lab
}

#[test]
fn what_the_reference_engine_gives_the_host_comes_out() {
    let mut host = include_str!("vectors/receive.txt").lines().filter(|line| !line.starts_with('#')).peekable();
    let mut frames = 0;
    for case in include_str!("vectors/send.txt").split("case ").skip(1) {
        assert_eq!(host.next().unwrap(), format!("case {}", case.lines().next().unwrap()));
        let lines: Vec<Vec<&str>> = case.lines().skip(1).map(|line| line.split(' ').collect()).collect();
        let wire: Vec<Vec<u8>> = lines.iter().filter(|words| words[0] == "out").map(|words| unhex(words[1])).collect();
        let mut separate = Vec::new();
        let mut joined = Vec::new();
        while let Some(line) = host.next_if(|line| !line.starts_with("case ")) {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["host", frame] => separate.push(unhex(frame)),
                ["joined", vnet, frame] => joined.push((unhex(vnet), unhex(frame))),
                _ => panic!("{line}"),
            }
        }
        let header = parse_ip(&wire[0], 14, wire[0].len()).unwrap();
        let ends = (header.source, header.destination);
        let mut lab = told_lab(&lines, ends, &separate);
        assert_eq!(lab.receive(&wire), (separate.clone(), vec![]), "{case}");
        let mut lab = told_lab(&lines, ends, &separate);
        lab.card.set_joins(Joins { tcp: true, udp: false });
        let (whole, punts) = lab.receive(&wire);
        assert_eq!(punts, [], "{case}");
        let vnets = lab.host.frames.iter().map(|frame| frame.vnet.emit().to_vec());
        assert_eq!(vnets.zip(whole).collect::<Vec<_>>(), joined, "{case}");
        frames += wire.len();
    }
    assert!(frames > 200);
}

#[test]
fn every_suite_mode_and_family_brings_the_packet_through() {
    let esp_suites = ["gcm", "gcm8", "cbc", "3des", "null"];
    let ah_suites = ["sha256", "sha1", "gmac"];
    for outer in [4, 6] {
        for esn in [false, true] {
            let mut labs = Vec::new();
            for mode in [Mode::Tunnel, Mode::Transport] {
                for suite in esp_suites {
                    labs.push((Some(esp(suite, mode, outer)), None));
                    labs.push((Some(Plan { udp: Some(UDP_PORTS), ..esp(suite, mode, outer) }), None));
                    labs.push((Some(esp(suite, mode, outer)), Some(ah("sha256", Mode::Transport, outer))));
                }
                labs.push((Some(esp("bare", mode, outer)), Some(ah("gmac", Mode::Transport, outer))));
                labs.extend(ah_suites.map(|suite| (None, Some(ah(suite, mode, outer)))));
            }
            for (esp, ah) in labs {
                let numbers =
                    |plan: Plan| Plan { esn, top: if esn { 0xffff_fffe } else { 0 }, mark: 0xffff_fffe, ..plan };
                let mut lab = Lab::layered(esp.map(numbers), ah.map(numbers));
                let first = if esn { 0xffff_ffff } else { 1 };
                let mut wire = Vec::new();
                let mut expected = Vec::new();
                for (at, length) in [0, 1, 7, 22, 300, 1400].into_iter().enumerate() {
                    let version = if at % 2 == 0 { 4 } else { 6 };
                    let content = match lab.mode() {
                        Mode::Tunnel => inner(version, length),
                        Mode::Transport => udp(ends(outer), (5000, 6000), length),
                    };
                    wire.push(lab.seal(first + at as u64, &content));
                    expected.push(match lab.mode() {
                        Mode::Tunnel => frame(&content),
                        Mode::Transport => frame(&ip(ends(outer), 17, 0, &content)),
                    });
                }
                let (host, punts) = lab.receive(&wire);
                assert_eq!(punts, [], "{:?}", lab.mode());
                assert_eq!(host, expected);
                let bytes = expected.iter().map(|frame| frame.len() as u64 - 14).sum();
                for sa in [Some(&lab.sa), lab.sa.inside.as_ref()].into_iter().flatten() {
                    assert_eq!(sa.tally.packets.load(Relaxed), 6);
                    assert_eq!(sa.tally.bytes.load(Relaxed), bytes);
                    assert_eq!(sa.tally.use_time(), 3.5);
                    assert_eq!(sa.window.top(), first + 5);
                }
                assert_eq!(lab.card.counts().received, 6);
            }
        }
    }
}

#[test]
fn a_number_passes_once_also_within_a_burst() {
    for mut lab in [
        Lab::new(ESP_TUNNEL),
        Lab::new(ah("sha1", Mode::Tunnel, 4)),
        Lab::layered(Some(ESP_TUNNEL), Some(ah("gmac", Mode::Transport, 4))),
    ] {
        let one = lab.seal(1, &inner(4, 10));
        let two = lab.seal(2, &inner(4, 20));
        let (host, punts) = lab.receive(&[one.clone(), two.clone(), one.clone(), two.clone()]);
        assert_eq!(host, [frame(&inner(4, 10)), frame(&inner(4, 20))]);
        assert_eq!(punts, [(2, PuntReason::Replay), (3, PuntReason::Replay)]);
        lab.punts(&one, PuntReason::Replay);
    }
}

#[test]
fn the_window_ends_where_it_ends() {
    let mut lab = Lab::new(ESP_TUNNEL);
    let mut packets: Vec<_> = [100, 37, 36, 36, 101, 37, 38].map(|number| lab.seal(number, &inner(4, 8))).into();
    packets.push(lab.seal(0, &inner(4, 8)));
    let (host, punts) = lab.receive(&packets);
    assert_eq!(host.len(), 4);
    let places: Vec<_> = punts.iter().map(|punt| punt.0).collect();
    assert_eq!(places, [2, 3, 5, 7], "{punts:?}");
    assert_eq!(lab.sa.window.top(), 101);
    assert_eq!(lab.sa.window.needed(), 64);
}

#[test]
fn a_window_of_nothing_takes_every_number_but_zero_again() {
    let mut lab = Lab::new(Plan { window: 0, ..ESP_TUNNEL });
    let one = lab.seal(1, &inner(4, 10));
    let (host, punts) = lab.receive(&[one.clone(), one]);
    assert_eq!((host.len(), punts.len()), (2, 0));
    let zero = lab.seal(0, &inner(4, 10));
    lab.punts(&zero, PuntReason::Replay);
}

#[test]
fn extended_numbers_wrap_within_a_burst_in_any_order() {
    for mut lab in [
        Lab::new(Plan { esn: true, top: 0xffff_fff0, mark: 0xffff_fff0, ..ESP_TUNNEL }),
        Lab::new(Plan { esn: true, top: 0xffff_fff0, mark: 0xffff_fff0, ..ah("sha256", Mode::Tunnel, 4) }),
    ] {
        let numbers = [0xffff_ffff, 0x1_0000_0001, 0xffff_fffe, 0x1_0000_0000, 0x1_0000_0000];
        let packets: Vec<_> = numbers.map(|number| lab.seal(number, &inner(4, 8))).into();
        let (host, punts) = lab.receive(&packets);
        assert_eq!(host.len(), 4);
        assert_eq!(punts, [(4, PuntReason::Replay)]);
        assert_eq!(lab.sa.window.top(), 0x1_0000_0001);
        // Sealed for another upper half.
        let old = lab.seal(0x2_0000_0005, &inner(4, 8));
        lab.punts(&old, PuntReason::Icv);
    }
}

#[test]
fn the_nic_sees_a_packet_before_it_loses_the_upper_half() {
    let mut lab = Lab::new(Plan { esn: true, top: 5 + (1 << 30), mark: 5, ..ESP_TUNNEL });
    let beyond = lab.seal(6 + (1 << 30), &inner(4, 8));
    lab.punts(&beyond, PuntReason::ExtendedNumbers);
    let mut lab = Lab::new(Plan { esn: true, top: 4 + (1 << 30), mark: 5, ..ESP_TUNNEL });
    let last = lab.seal(5 + (1 << 30), &inner(4, 8));
    assert_eq!(lab.receive(&[last]).0.len(), 1);
}

#[test]
fn a_changed_bit_anywhere_is_a_punt_without_a_trace() {
    for mut lab in [
        Lab::new(ESP_TUNNEL),
        Lab::new(esp("cbc", Mode::Transport, 6)),
        Lab::new(ah("sha1", Mode::Transport, 4)),
        Lab::layered(Some(esp("null", Mode::Tunnel, 6)), Some(ah("gmac", Mode::Transport, 6))),
    ] {
        let content =
            if lab.mode() == Mode::Tunnel { inner(4, 30) } else { udp(ends(lab.sa_plan().outer), (5000, 6000), 30) };
        let good = lab.seal(9, &content);
        let header = if lab.sa_plan().outer == 4 { 20 } else { 40 };
        let before = lab.state();
        for at in 12..good.len() {
            for bit in [0, 3, 7] {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                // Fields that routers change are not covered; ECN and hop limit of the outer header may differ.
                if at < 14 + header && lab.receive(&[bad.clone()]).1.is_empty() {
                    assert_eq!(header, 40, "the checksum covers an IPv4 header");
                    assert!(at < 18 || at == 21, "{at}");
                    lab = Lab::layered(lab.esp.take().map(|(_, plan)| plan), lab.ah.take().map(|(_, plan)| plan));
                    continue;
                }
                let (host, punts) = lab.receive(&[bad]);
                assert!(host.is_empty() && punts.len() == 1, "{at} {bit}");
                assert_eq!(lab.state(), before, "{at} {bit}");
            }
        }
        assert_eq!(lab.receive(&[good]).0.len(), 1);
    }
}

#[test]
fn padding_and_trailer_have_to_be_right() {
    let packet = inner(4, 28);
    let mut lab = Lab::new(ESP_TUNNEL);
    let mut wrong = |padding: &[u8], pad_length: u8, next_header: u8, reason: PuntReason| {
        let bytes = lab.seal_with(1, &packet, padding, pad_length, next_header);
        lab.punts(&bytes, reason);
    };
    wrong(&[1, 3], 2, 4, PuntReason::Syntax);
    wrong(&[0, 0], 2, 4, PuntReason::Syntax);
    wrong(&[1, 2], 200, 4, PuntReason::Syntax);
    wrong(&[1, 2], 2, 41, PuntReason::Syntax);
    wrong(&[1, 2], 2, 6, PuntReason::Syntax);
    wrong(&[1, 2], 2, 59, PuntReason::Dummy);
    let long = lab.seal_with(1, &packet, &monotonic(250), 250, 4);
    let behind = [packet.clone(), vec![0xee; 100]].concat();
    let traffic_flow_confidentiality = lab.seal_with(2, &behind, &[1, 2], 2, 4);
    let (host, punts) = lab.receive(&[long, traffic_flow_confidentiality]);
    assert_eq!(punts, []);
    assert_eq!(host, [frame(&packet), frame(&packet)]);
}

#[test]
fn a_text_too_short_or_no_multiple_of_the_block_is_a_punt() {
    for (suite, cut) in [("gcm", 0), ("cbc", 4), ("3des", 4)] {
        let mut lab = Lab::new(esp(suite, Mode::Tunnel, 6));
        let whole = lab.seal(1, &inner(4, 60));
        let least = 54 + 8 + if suite == "cbc" { 16 } else { 8 } + if suite == "gcm" { 16 } else { 12 };
        for length in [56, 61, 62, least, least + 1, whole.len() - cut.max(1)] {
            let mut short = whole[..length].to_vec();
            short[18..20].copy_from_slice(&((length - 54) as u16).to_be_bytes());
            let (host, punts) = lab.receive(&[short]);
            assert!(host.is_empty());
            let reason = punts[0].1;
            assert!(matches!(reason, PuntReason::Syntax | PuntReason::Malformed | PuntReason::Icv), "{reason:?}");
        }
    }
}

#[test]
fn congestion_marks_that_change_the_packet_are_left_to_the_reference() {
    // RFC 6040 §4.2, figure 4.
    for outer in [4, 6] {
        for (outside, inside, passes) in [
            (0, 0, true),
            (0, 3, true),
            (1, 0, true),
            (1, 1, true),
            (1, 2, false),
            (1, 3, true),
            (2, 0, true),
            (2, 1, true),
            (3, 0, false),
            (3, 1, false),
            (3, 2, false),
            (3, 3, true),
        ] {
            for version in [4, 6] {
                let mut lab = Lab::new(Plan { outer, ..ESP_TUNNEL });
                lab.outer_class = 0xb8 | outside;
                let packet = ip(inner_ends(version), 17, 0x20 | inside, &udp(inner_ends(version), (5000, 6000), 9));
                let bytes = lab.seal(1, &packet);
                if passes {
                    assert_eq!(lab.receive(&[bytes]).0, [frame(&packet)]);
                } else {
                    lab.punts(&bytes, PuntReason::Congestion);
                    let mut lab = Lab::new(Plan { outer, no_ecn: true, ..ESP_TUNNEL });
                    assert_eq!(lab.receive(&[bytes]).0, [frame(&packet)]);
                }
            }
        }
    }
}

#[test]
fn only_what_policy_has_let_pass_passes() {
    let mut lab = Lab::new(ESP_TUNNEL);
    let other = ip(inner_ends(4), 17, 0, &udp(inner_ends(4), (5000, 6001), 9));
    let bytes = lab.seal(1, &other);
    lab.punts(&bytes, PuntReason::UnknownFlow);
    lab.card.clear_inbound();
    lab.punts(&bytes, PuntReason::UnknownSa);
}

#[test]
fn packets_inside_that_are_not_plain_are_punts() {
    let mut lab = Lab::new(ESP_TUNNEL);
    let mut fragment = inner(4, 30);
    fragment[6] = 0x20;
    let mut options = inner(4, 30);
    options[0] = 0x46;
    let mut long = inner(4, 30);
    long[3] += 1;
    let mut extension = inner(6, 30);
    extension[6] = 60;
    extension[40..48].copy_from_slice(&[17, 0, 1, 4, 0, 0, 0, 0]);
    for (packet, reason) in [
        (fragment, PuntReason::Fragment),
        (options, PuntReason::Options),
        (long, PuntReason::Malformed),
        (extension, PuntReason::Options),
        (vec![0x45, 0, 0], PuntReason::Malformed),
        (ip(inner_ends(4), 50, 0, &[1; 40]), PuntReason::UnknownSa),
        (ip(inner_ends(6), 51, 0, &[1; 40]), PuntReason::UnknownSa),
        (ip(inner_ends(4), 17, 0, &udp(inner_ends(4), (5000, 4500), 20)), PuntReason::UnknownSa),
    ] {
        let bytes = lab.seal(1, &packet);
        lab.punts(&bytes, reason);
    }
    let bytes = lab.seal_as(1, &[], 4);
    lab.punts(&bytes, PuntReason::Malformed);
    let mut lab = Lab::new(esp("gcm", Mode::Transport, 6));
    let bytes = lab.seal_as(1, &[17, 0, 1, 4, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8], 60);
    lab.punts(&bytes, PuntReason::Options);
    let bytes = lab.seal_as(1, &[0; 40], 50);
    lab.punts(&bytes, PuntReason::UnknownSa);
}

#[test]
fn an_sa_stops_where_somebody_has_to_look_at_it() {
    for mut lab in [
        Lab::new(Plan { stop: 2, ..ESP_TUNNEL }),
        Lab::layered(Some(Plan { stop: 2, ..ESP_TUNNEL }), Some(ah("sha1", Mode::Transport, 4))),
        Lab::layered(Some(ESP_TUNNEL), Some(Plan { stop: 2, ..ah("sha1", Mode::Transport, 4) })),
    ] {
        let packets: Vec<_> = [1, 2, 3].map(|number| lab.seal(number, &inner(4, 8))).into();
        let (host, punts) = lab.receive(&packets);
        assert_eq!(host.len(), 2);
        assert_eq!(punts, [(2, PuntReason::Limit)]);
        lab.punts(&packets[2], PuntReason::Limit);
    }
}

#[test]
fn esp_in_udp_comes_from_its_ports_and_with_a_right_checksum_or_none() {
    let mut lab = Lab::new(Plan { udp: Some(UDP_PORTS), ..ESP_TUNNEL });
    let good = lab.seal(1, &inner(4, 30));
    let repaired = |mut bytes: Vec<u8>, at: usize, value: u16| {
        bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
        bytes
    };
    lab.punts(&repaired(good.clone(), 34, 40001), PuntReason::UnknownSa);
    lab.punts(&repaired(good.clone(), 36, 4501), PuntReason::UnknownSa);
    lab.punts(&repaired(good.clone(), 38, (good.len() - 35) as u16), PuntReason::Clear);
    lab.punts(&repaired(good.clone(), 40, 0x1234), PuntReason::Malformed);
    let mut ike = good.clone();
    ike[42..46].fill(0);
    lab.punts(&ike, PuntReason::Clear);
    lab.punts(&frame(&ip(ends(4), 17, 0, &[0x9c, 0x40, 0x11, 0x94, 0, 9, 0, 0, 0xff])), PuntReason::Clear);
    let header = parse_ip(&good, 14, good.len()).unwrap();
    let field = complement(pseudo_header(header.source, header.destination, 17, good.len() - 34) + sum(&good[34..]));
    let (host, punts) = lab.receive(&[repaired(good.clone(), 40, field), good.clone()]);
    assert_eq!((host.len(), punts), (1, vec![(1, PuntReason::Replay)]));
    let mut lab6 = Lab::new(Plan { udp: Some(UDP_PORTS), outer: 6, ..ESP_TUNNEL });
    let without = repaired(lab6.seal(1, &inner(4, 30)), 60, 0);
    lab6.punts(&without, PuntReason::Malformed);
    // An SA in UDP takes no plain ESP, and one without takes none in UDP.
    let mut plain = Lab::new(ESP_TUNNEL);
    let bytes = plain.seal(2, &inner(4, 30));
    lab.punts(&bytes, PuntReason::UnknownSa);
    plain.punts(&good, PuntReason::UnknownSa);
}

#[test]
fn bundles_come_whole_or_not_at_all() {
    let mut lab = Lab::layered(Some(ESP_TUNNEL), Some(ah("sha256", Mode::Transport, 4)));
    let mut bare = Lab::new(ESP_TUNNEL);
    let alone = bare.seal(1, &inner(4, 30));
    lab.punts(&alone, PuntReason::UnknownSa);
    // AH of the right key around something else than its ESP SA.
    let ah_alone = {
        let mut other = Lab::new(ah("sha256", Mode::Tunnel, 4));
        other.seal(1, &inner(4, 30))
    };
    lab.punts(&ah_alone, PuntReason::UnknownSa);
    let mut single = Lab::new(ah("sha256", Mode::Transport, 4));
    let whole = lab.seal(1, &inner(4, 30));
    single.punts(&whole, PuntReason::UnknownSa);
    assert_eq!(lab.receive(&[whole]).0, [frame(&inner(4, 30))]);
}

#[test]
fn ah_headers_of_other_lengths_are_punts() {
    for (outer, legal) in [(4, [24, 24]), (6, [24, 24])] {
        let mut lab = Lab::new(ah("sha1", Mode::Tunnel, outer));
        let good = lab.seal(1, &inner(4, 30));
        let at = 14 + if outer == 4 { 20 } else { 40 } + 1;
        for length in [12, 20, 28, 32, 1024] {
            assert!(!legal.contains(&length));
            let mut bad = good.clone();
            bad[at] = (length / 4 - 2) as u8;
            let (host, punts) = lab.receive(&[bad]);
            assert!(host.is_empty());
            assert_eq!(punts, [(0, PuntReason::Syntax)]);
        }
        assert_eq!(lab.receive(&[good]).0.len(), 1);
    }
}

#[test]
fn frames_that_are_not_whole_plain_ipsec_are_punts() {
    let mut lab = Lab::new(ESP_TUNNEL);
    let good = lab.seal(1, &inner(4, 30));
    let edit = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame[24..26].fill(0);
        let field = checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&field.to_be_bytes());
        frame
    };
    let mut damaged = good.clone();
    damaged[22] = 1;
    let mut tagged = good[..12].to_vec();
    tagged.extend([0x81, 0, 0, 5]);
    tagged.extend(&good[12..]);
    for (bytes, reason) in [
        (edit(20, &[0x20, 0]), PuntReason::Fragment),
        (edit(20, &[0, 1]), PuntReason::Fragment),
        (edit(14, &[0x46]), PuntReason::Options),
        (edit(23, &[6]), PuntReason::Clear),
        (edit(34, &[9]), PuntReason::UnknownSa),
        (edit(33, &[9]), PuntReason::UnknownSa),
        (edit(29, &[9]), PuntReason::UnknownSa),
        (damaged, PuntReason::Malformed),
        (tagged, PuntReason::NonIp),
        (good[..40].to_vec(), PuntReason::Malformed),
        (good[..13].to_vec(), PuntReason::NonIp),
        (frame(&ip(ends(4), 50, 0, &[1; 7])), PuntReason::Malformed),
    ] {
        lab.punts(&bytes, reason);
    }
    let mut superframe = Frames::default();
    superframe.push(&good, Vnet { gso_type: 1, gso_size: 100, ..Vnet::default() }, 0);
    superframe.push(&good, Vnet { flags: 1, ..Vnet::default() }, 1);
    let (host, punts) = lab.receive_burst(&superframe);
    assert!(host.is_empty());
    assert_eq!(punts, [(0, PuntReason::Superframe), (1, PuntReason::Superframe)]);
    let mut padded = good.clone();
    padded.extend([0; 10]);
    assert_eq!(lab.receive(&[padded]).0, [frame(&inner(4, 30))]);
    let mut wrong = Lab::new(Plan { wrong_source: true, ..ESP_TUNNEL });
    wrong.punts(&good, PuntReason::UnknownSa);
}

#[test]
fn punts_come_in_the_order_of_the_burst_and_are_counted() {
    let mut lab = Lab::new(ESP_TUNNEL);
    let good = lab.seal(1, &inner(4, 30));
    let clear = frame(&inner(4, 30));
    let mut bad = lab.seal(2, &inner(4, 30));
    *bad.last_mut().unwrap() ^= 1;
    let (host, punts) = lab.receive(&[bad.clone(), clear.clone(), good.clone(), bad, clear, good]);
    assert_eq!(host.len(), 1);
    assert_eq!(
        punts,
        [
            (0, PuntReason::Icv),
            (1, PuntReason::Clear),
            (3, PuntReason::Icv),
            (4, PuntReason::Clear),
            (5, PuntReason::Replay)
        ]
    );
    assert_eq!(lab.host.frames[0].origin, 2);
    let counts = lab.card.counts();
    assert_eq!((counts.received, counts.punts.iter().sum()), (1, 5));
    assert_eq!(counts.punts[PuntReason::Icv as usize], 2);
}

#[test]
fn transport_mode_keeps_the_header_and_computes_what_changed() {
    let mut lab = Lab::new(esp("gcm", Mode::Transport, 4));
    lab.outer_class = 0xbb;
    let content = udp(ends(4), (5000, 6000), 30);
    let mut bytes = lab.seal(1, &content);
    bytes[18..20].copy_from_slice(&[0xab, 0xcd]);
    let field = changed(u16::from_be_bytes([bytes[24], bytes[25]]), 0x1234, 0xabcd);
    bytes[24..26].copy_from_slice(&field.to_be_bytes());
    let (host, punts) = lab.receive(&[bytes]);
    assert_eq!(punts, []);
    let mut expected = ip(ends(4), 17, 0xbb, &content);
    expected[4..6].copy_from_slice(&[0xab, 0xcd]);
    expected[10..12].fill(0);
    let field = checksum(&expected[..20]);
    expected[10..12].copy_from_slice(&field.to_be_bytes());
    assert_eq!(host, [frame(&expected)]);
}

#[test]
fn mutated_frames_change_nothing_unless_they_were_good() {
    let mut seed = 88172645463325252_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    for mut lab in [
        Lab::new(ESP_TUNNEL),
        Lab::new(esp("null", Mode::Transport, 4)),
        Lab::new(Plan { udp: Some(UDP_PORTS), ..ESP_TUNNEL }),
        Lab::new(ah("sha1", Mode::Tunnel, 4)),
        Lab::layered(Some(ESP_TUNNEL), Some(ah("gmac", Mode::Transport, 4))),
    ] {
        let content = if lab.mode() == Mode::Tunnel { inner(4, 30) } else { udp(ends(4), (5000, 6000), 30) };
        let good: Vec<_> = (1..5).map(|number| lab.seal(number, &content)).collect();
        let before = lab.state();
        for _ in 0..4000 {
            let burst: Vec<_> = (0..1 + random(4))
                .map(|_| {
                    let mut bytes = good[random(4)].clone();
                    for _ in 0..1 + random(4) {
                        let at = 12 + random(bytes.len() - 12);
                        match random(4) {
                            0 => bytes[at] = random(256) as u8,
                            1 => bytes[at] ^= 1 << random(8),
                            2 => bytes.truncate(at.max(13)),
                            _ => bytes.insert(at, random(256) as u8),
                        }
                        if bytes.len() < 14 {
                            break;
                        }
                    }
                    // Half of them with a right IPv4 checksum, so that more than that is looked at.
                    if bytes.len() >= 34 && random(2) == 0 {
                        bytes[24..26].fill(0);
                        let field = checksum(&bytes[14..34]);
                        bytes[24..26].copy_from_slice(&field.to_be_bytes());
                    }
                    bytes
                })
                .collect();
            let (host, punts) = lab.receive(&burst);
            assert_eq!(host.len() + punts.len(), burst.len());
            if host.is_empty() {
                assert_eq!(lab.state(), before);
                continue;
            }
            // Changed where nothing is covered (TTL under ESP, bytes behind the packet): good, and as it was sent.
            for frame in &host {
                assert_eq!(frame[34..], lab_frame(&content, lab.mode())[34..], "the protected part");
            }
            lab = Lab::layered(lab.esp.take().map(|(_, plan)| plan), lab.ah.take().map(|(_, plan)| plan));
        }
    }
}

fn lab_frame(content: &[u8], mode: Mode) -> Vec<u8> {
    match mode {
        Mode::Tunnel => frame(content),
        Mode::Transport => frame(&ip(ends(4), 17, 0, content)),
    }
}
