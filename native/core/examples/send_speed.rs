//! How long sending takes: `cargo run --release --example send_speed`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use vnic_core::association::{Encapsulation, FlowKey, OutboundSa, Outer};
use vnic_core::card::Card;
use vnic_core::cipher::{Keys, Sealer};
use vnic_core::frames::{Frames, Vnet};
use vnic_core::mb::Manager;
use vnic_core::state::{CounterIvs, Sequence, Tally};

const SOURCE: [u8; 4] = [10, 9, 0, 1];
const DESTINATION: [u8; 4] = [10, 9, 0, 2];

fn frame(protocol: u8, layer4: &[u8], payload: usize) -> Vec<u8> {
    let length = u16::try_from(20 + layer4.len() + payload).expect("at most 64 KiB");
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
    frame.extend(length.to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend(SOURCE);
    frame.extend(DESTINATION);
    frame.extend(layer4);
    frame.extend((0..payload).map(|at| at as u8));
    frame
}

fn flow(protocol: u8) -> FlowKey {
    let (source, destination) = (SOURCE.into(), DESTINATION.into());
    FlowKey { source, destination, protocol, source_port: 5001, destination_port: 5002 }
}

fn card() -> Card {
    let mut card = Card::new(Manager::new().expect("a CPU that the library works on"));
    let keys =
        Keys { encryption: "aes-gcm-128", encryption_key: &[7; 20], integrity: "", integrity_key: &[], icv_length: 16 };
    let ivs = Arc::new(CounterIvs::new(1, 0, false));
    let sa = OutboundSa {
        spi: 0x1000,
        transform: Sealer::new(card.manager(), &keys, Some(ivs)).expect("keys that fit"),
        esn: true,
        ah_length: 0,
        sequence: Arc::new(Sequence::new(0, u64::MAX, u64::MAX)),
        tally: Arc::new(Tally::default()),
        mark: 0,
    };
    let plan = Arc::new(Encapsulation {
        esp: Some(Arc::new(sa)),
        ah: None,
        outer: Some(Outer {
            source: [192, 0, 2, 1].into(),
            destination: [192, 0, 2, 2].into(),
            no_ecn: false,
            no_pmtu_discovery: false,
        }),
        udp: None,
        path_mtu: 1500,
        valid_until: f64::INFINITY,
    });
    card.install_flow(flow(6), plan.clone());
    card.install_flow(flow(17), plan);
    card
}

/// Nanoseconds for each packet of `input`, sent over and over.
fn measure(name: &str, input: &Frames, rounds: u32) {
    let mut card = card();
    let (mut output, mut punts) = (Frames::default(), Vec::new());
    let mut best = f64::INFINITY;
    let mut packets = 0;
    for _ in 0..rounds {
        output.clear();
        let start = Instant::now();
        card.send(black_box(input), 1.0, &mut output, &mut punts);
        let took = start.elapsed().as_secs_f64() * 1e9;
        assert!(punts.is_empty());
        packets = output.frames.len();
        best = best.min(took / packets as f64);
    }
    println!("{name}: {best:.1} ns a packet, {packets} packets a burst (best of {rounds} bursts)");
}

fn main() {
    let mut ports = 5001_u16.to_be_bytes().to_vec();
    ports.extend(5002_u16.to_be_bytes());
    let mut tcp = ports.clone();
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x80, 0x18, 1, 0, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    let vnet = Vnet { flags: 1, gso_type: 1, hdr_len: 66, gso_size: 1372, csum_start: 34, csum_offset: 16 };
    let superframe = frame(6, &tcp, 45 * 1372);
    for frames in [1, 4, 16] {
        let mut input = Frames::default();
        for index in 0..frames {
            input.push(&superframe, vnet, index);
        }
        measure(&format!("TSO, {frames} frames of 45 x 1424 bytes, GCM-128 tunnel"), &input, 20_000 / frames);
    }
    let mut udp = ports;
    udp.extend([0, 30, 0x12, 0x34]);
    let small = frame(17, &udp, 22);
    let mut input = Frames::default();
    for index in 0..64 {
        input.push(&small, Vnet::default(), index);
    }
    measure("UDP, 64-byte frames, GCM-128 tunnel", &input, 20_000);
}
