//! Two cards and an SA between them, for all fuzz targets.
//!
//! Law: what is the same for every input is made once; every input begins with numbers that have not been used.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use vnic_core::association::{Encapsulation, InboundSa, Mode, OutboundSa, Outer, Protocol};
use vnic_core::card::Card;
use vnic_core::checksum::checksum;
use vnic_core::cipher::{EspSeal, Keys, Opener, Sealer, seal_esp};
use vnic_core::coalesce::Joins;
use vnic_core::frames::{Frame, Frames, HostFrames};
use vnic_core::mb::Manager;
use vnic_core::packet::{flow_key, parse_ip};
use vnic_core::punt::Punt;
use vnic_core::state::{CounterIvs, Sequence, Tally, Window};

const SPI: u32 = 0x1000;
/// Addresses of the wire, as the frames of the corpus have them.
pub const NEAR: [u8; 4] = [192, 0, 2, 1];
/// The other end.
pub const FAR: [u8; 4] = [192, 0, 2, 2];

fn keys() -> Keys<'static> {
    Keys { encryption: "aes-gcm-128", encryption_key: &[7; 20], integrity: "", integrity_key: &[], icv_length: 16 }
}

/// Both ends of an ESP SA.
pub struct Lab {
    /// The sending card.
    pub sender: Card,
    /// The receiving card.
    pub receiver: Card,
    sealer: Sealer,
    outbound: Option<Arc<OutboundSa>>,
    /// The receiving end.
    pub sa: Arc<InboundSa>,
    number: u64,
    /// What the receiver gave.
    pub host: HostFrames,
    /// What it left.
    pub punts: Vec<Punt>,
}

impl Lab {
    /// An SA in this mode.
    pub fn new(mode: Mode) -> Self {
        let mut receiver = Card::new(Manager::new().expect("a CPU with AES and memory to lock"));
        let mut sender = Card::new(Manager::new().expect("a CPU with AES and memory to lock"));
        receiver.set_joins(Joins { tcp: true, udp: true });
        let ivs = || Some(Arc::new(CounterIvs::new(1, 0, false)));
        let sealer = Sealer::new(sender.manager(), &keys(), ivs()).expect("keys that fit");
        let outbound = OutboundSa {
            spi: SPI,
            transform: Sealer::new(sender.manager(), &keys(), ivs()).expect("keys that fit"),
            esn: false,
            ah_length: 0,
            sequence: Arc::new(Sequence::new(0, u32::MAX.into(), u32::MAX.into())),
            tally: Arc::new(Tally::default()),
            mark: 0,
        };
        let sa = Arc::new(InboundSa {
            spi: SPI,
            protocol: Protocol::Esp,
            source: None,
            destination: IpAddr::from(NEAR),
            transform: Opener::new(receiver.manager(), &keys()).expect("keys that fit"),
            esn: false,
            mode,
            no_ecn: false,
            inside: None,
            only_inside: false,
            udp: None,
            window: Arc::new(Window::new(1024, 0)),
            tally: Arc::new(Tally::default()),
            mark: 0,
            id: 1,
        });
        receiver.install_sa(sa.clone());
        let (host, punts) = (HostFrames::default(), Vec::new());
        Self { sender, receiver, sealer, outbound: Some(Arc::new(outbound)), sa, number: 0, host, punts }
    }

    /// Append a frame around `text`, which has its padding and trailer already, to a burst.
    pub fn seal(&mut self, text: &[u8], burst: &mut Frames) {
        self.number += 1;
        let length = text.len() & !3;
        let mut esp = SPI.to_be_bytes().to_vec();
        esp.extend((self.number as u32).to_be_bytes());
        esp.resize(16, 0);
        esp.extend(&text[..length]);
        let end = esp.len() + 16;
        esp.resize(end, 0);
        let job = EspSeal { start: 0, end, high: None, sealer: &self.sealer };
        if !seal_esp(self.sender.manager(), &mut esp, &[job]) {
            return;
        }
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
        frame.extend((20 + end as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 50, 0, 0]);
        frame.extend(FAR.iter().chain(&NEAR));
        let field = checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&field.to_be_bytes());
        frame.extend(esp);
        push(burst, &frame);
    }

    /// Let the flow pass that a packet is of, if it is one.
    pub fn allow(&mut self, packet: &[u8]) {
        if let Some(header) = parse_ip(packet, 0, packet.len()) {
            self.receiver.allow(flow_key(packet, &header), 1);
        }
    }

    /// Send the flow of a packet through the SA, in a tunnel.
    pub fn install(&mut self, packet: &[u8]) {
        if let Some(header) = parse_ip(packet, 0, packet.len()) {
            let outer = Outer { source: FAR.into(), destination: NEAR.into(), no_ecn: false, no_pmtu_discovery: false };
            let plan = Encapsulation {
                esp: self.outbound.clone(),
                ah: None,
                outer: Some(outer),
                udp: None,
                path_mtu: 1500,
                valid_until: f64::INFINITY,
            };
            self.sender.install_flow(flow_key(packet, &header), Arc::new(plan));
        }
    }

    /// Receive a burst, and see that every frame went one way, and that punts left no trace.
    pub fn receive(&mut self, burst: &Frames) {
        let state = |sa: &InboundSa| (sa.window.top(), sa.window.needed(), sa.tally.packets.load(Relaxed));
        let before = state(&self.sa);
        let bytes = burst.bytes.clone();
        self.punts.clear();
        self.receiver.receive(burst, 1.0, &mut self.host, &mut self.punts);
        assert_eq!(bytes, burst.bytes);
        assert!(self.punts.windows(2).all(|pair| pair[0].index < pair[1].index));
        let accepted = burst.frames.len() - self.punts.len();
        assert_eq!(state(&self.sa).2, before.2 + accepted as u64);
        if accepted == 0 {
            assert_eq!(state(&self.sa), before);
            assert!(self.host.frames.is_empty());
        }
        for frame in &self.host.frames {
            let whole = self.host.joined(frame);
            let header = parse_ip(&whole, 14, whole.len()).expect("a packet for the host");
            assert_eq!(header.end, whole.len());
            assert!(frame.vnet.gso_type == 0 || usize::from(frame.vnet.hdr_len) < whole.len());
        }
    }
}

/// Append a frame to a burst.
pub fn push(burst: &mut Frames, frame: &[u8]) {
    let origin = burst.frames.len() as u32;
    let start = burst.bytes.len();
    burst.bytes.extend_from_slice(frame);
    burst.frames.push(Frame { start, length: frame.len(), vnet: Default::default(), origin });
}

/// Take one record off an input: a byte that says what it is, and up to 65,535 bytes.
pub fn record<'a>(data: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&[kind, high, low], rest) = data.split_first_chunk()?;
    let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
    let (record, rest) = rest.split_at(length);
    *data = rest;
    Some((kind, record))
}
