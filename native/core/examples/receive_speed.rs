//! Nanoseconds a packet takes to be received: parsed, found, opened, checked, committed, joined.
//!
//! Run: cargo run --release -p vnic-core --example receive_speed

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use vnic_core::association::{InboundSa, Mode, Protocol};
use vnic_core::card::Card;
use vnic_core::checksum::{checksum, complement, pseudo_header, sum};
use vnic_core::cipher::{EspSeal, Keys, Opener, Sealer, seal_esp};
use vnic_core::coalesce::Joins;
use vnic_core::frames::{Frames, HostFrames, Vnet};
use vnic_core::mb::Manager;
use vnic_core::packet::{flow_key, parse_ip};
use vnic_core::state::{CounterIvs, Tally, Window};

/// Packets of one burst: a superframe of 64 KiB.
const BURST: usize = 46;
const BURSTS: usize = 4000;

fn ipv4(addresses: [u8; 8], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(addresses);
    let field = checksum(&packet);
    packet[10..12].copy_from_slice(&field.to_be_bytes());
    packet.extend(payload);
    packet
}

/// The packet inside: TCP with time stamps, or UDP, `length` bytes long.
fn inner(tcp: bool, length: usize, at: usize) -> Vec<u8> {
    let addresses = [10, 0, 0, 2, 10, 0, 0, 1];
    let mut payload = vec![0x13, 0x88, 0x17, 0x70];
    if tcp {
        payload.extend(((at * (length - 52)) as u32).to_be_bytes());
        payload.extend([0, 0, 0, 1, 0x80, 0x10, 1, 0, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    } else {
        payload.extend([((length - 20) >> 8) as u8, (length - 20) as u8, 0, 0]);
    }
    payload.resize(length - 20, 0x55);
    let ends: [IpAddr; 2] = [[10, 0, 0, 2].into(), [10, 0, 0, 1].into()];
    let field = complement(pseudo_header(ends[0], ends[1], if tcp { 6 } else { 17 }, payload.len()) + sum(&payload));
    let offset = if tcp { 16 } else { 6 };
    payload[offset..offset + 2].copy_from_slice(&field.to_be_bytes());
    ipv4(addresses, if tcp { 6 } else { 17 }, &payload)
}

fn run(name: &str, tcp: bool, length: usize, joins: Joins) {
    let mut card = Card::new(Manager::new().expect("a CPU with AES and memory to lock"));
    card.set_joins(joins);
    let key: Vec<u8> = (0..20).collect();
    let keys =
        Keys { encryption: "aes-gcm-128", encryption_key: &key, integrity: "", integrity_key: &[], icv_length: 16 };
    let sealer = Sealer::new(card.manager(), &keys, Some(Arc::new(CounterIvs::new(1, 0, false)))).expect("a sealer");
    let window = Arc::new(Window::new(1024, 0));
    let sa = InboundSa {
        spi: 0x1000,
        protocol: Protocol::Esp,
        source: Some([192, 0, 2, 2].into()),
        destination: [192, 0, 2, 1].into(),
        transform: Opener::new(card.manager(), &keys).expect("an opener"),
        esn: false,
        mode: Mode::Tunnel,
        no_ecn: false,
        inside: None,
        only_inside: false,
        udp: None,
        window: window.clone(),
        tally: Arc::new(Tally::default()),
        mark: 0,
        id: 1,
    };
    card.install_sa(Arc::new(sa));
    let first = inner(tcp, length, 0);
    card.allow(flow_key(&first, &parse_ip(&first, 0, first.len()).expect("a packet")), 1);
    let mut host = HostFrames::default();
    let mut punts = Vec::new();
    let mut spent = Vec::new();
    let mut number = 0;
    for _ in 0..BURSTS {
        let mut wire = Frames::default();
        for at in 0..BURST {
            number += 1;
            let mut esp = 0x1000_u32.to_be_bytes().to_vec();
            esp.extend((number as u32).to_be_bytes());
            esp.extend([0; 8]);
            esp.extend(inner(tcp, length, at));
            let pad = (length + 2).next_multiple_of(4) - length - 2;
            esp.extend((1..=pad as u8).chain([pad as u8, 4]));
            let end = esp.len() + 16;
            esp.resize(end, 0);
            assert!(seal_esp(card.manager(), &mut esp, &[EspSeal { start: 0, end, high: None, sealer: &sealer }]));
            let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
            frame.extend(ipv4([192, 0, 2, 2, 192, 0, 2, 1], 50, &esp));
            wire.push(&frame, Vnet::default(), at as u32);
        }
        let begin = Instant::now();
        card.receive(&wire, 1.0, &mut host, &mut punts);
        spent.push(begin.elapsed().as_nanos() as f64 / BURST as f64);
        assert!(punts.is_empty());
    }
    spent.sort_by(f64::total_cmp);
    let (median, best) = (spent[spent.len() / 2], spent[0]);
    println!("{name:34} {median:7.1} ns a packet, best burst {best:7.1}; {} frames for the host", host.frames.len());
}

fn main() {
    let all = Joins { tcp: true, udp: true };
    let none = Joins { tcp: false, udp: false };
    run("TCP 1424, joined", true, 1424, all);
    run("TCP 1424, alone", true, 1424, none);
    run("UDP 1424, joined", false, 1424, all);
    run("UDP 50 (64-byte frames), joined", false, 50, all);
    run("UDP 50 (64-byte frames), alone", false, 50, none);
}
