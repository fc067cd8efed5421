//! Receiving in steady state asks for no memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use vnic_core::association::{Encapsulation, InboundSa, Mode, OutboundSa, Protocol};
use vnic_core::card::Card;
use vnic_core::cipher::{Keys, Opener, Sealer};
use vnic_core::coalesce::Joins;
use vnic_core::frames::{Frames, HostFrames, Vnet};
use vnic_core::mb::Manager;
use vnic_core::packet::{flow_key, parse_frame};
use vnic_core::state::{CounterIvs, Sequence, Tally, Window};

struct Counting;

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is left to the allocator of the system.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.set(ASKED.get() + 1);
        // SAFETY: the caller keeps the promises of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the memory came from `alloc` above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Both ends of an SA.
fn ends(
    sender: &mut Card,
    receiver: &mut Card,
    spi: u32,
    keys: &Keys,
    ah_length: usize,
    inside: Option<Arc<InboundSa>>,
) -> (Arc<OutboundSa>, Arc<InboundSa>) {
    let ivs = keys.encryption.contains("gcm").then(|| Arc::new(CounterIvs::new(1, 0, false)));
    let outbound = OutboundSa {
        spi,
        transform: Sealer::new(sender.manager(), keys, ivs).expect("keys that fit"),
        esn: true,
        ah_length,
        sequence: Arc::new(Sequence::new(0, u64::MAX, u64::MAX)),
        tally: Arc::new(Tally::default()),
        mark: 0,
    };
    let inbound = InboundSa {
        spi,
        protocol: if ah_length == 0 { Protocol::Esp } else { Protocol::Ah },
        source: None,
        destination: [10, 9, 0, 2].into(),
        transform: Opener::new(receiver.manager(), keys).expect("keys that fit"),
        esn: true,
        mode: Mode::Transport,
        no_ecn: false,
        inside,
        only_inside: ah_length == 0,
        udp: None,
        window: Arc::new(Window::new(1024, 0)),
        tally: Arc::new(Tally::default()),
        mark: 0,
        id: spi.into(),
    };
    (Arc::new(outbound), Arc::new(inbound))
}

#[test]
fn a_burst_like_the_one_before_asks_for_no_memory() {
    let card = || Card::new(Manager::new().expect("a CPU that the library works on"));
    let (mut sender, mut receiver) = (card(), card());
    receiver.set_joins(Joins { tcp: true, udp: true });
    let gcm =
        Keys { encryption: "aes-gcm-128", encryption_key: &[7; 20], integrity: "", integrity_key: &[], icv_length: 16 };
    let cbc = Keys {
        encryption: "aes-cbc-128",
        encryption_key: &[7; 16],
        integrity: "hmac-sha1-96",
        integrity_key: &[7; 20],
        icv_length: 12,
    };
    let ah = Keys { encryption: "", encryption_key: &[], ..cbc };
    let mut input = Frames::default();
    for (index, keys) in [(0_u8, gcm), (1, cbc)] {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 7, 0xd0, 0, 1, 0x40, 0, 64, 17, 0, 0];
        frame.extend([10, 9, 0, 1, 10, 9, 0, 2, 0, index, 0, 53]);
        frame.resize(14 + 2000, 3);
        let spi = 0x1000 + u32::from(index) * 2;
        let (esp, inbound) = ends(&mut sender, &mut receiver, spi, &keys, 0, None);
        receiver.install_sa(inbound.clone());
        let (ah, inbound) = ends(&mut sender, &mut receiver, spi + 1, &ah, 24, Some(inbound));
        receiver.install_sa(inbound.clone());
        let flow = flow_key(&frame, &parse_frame(&frame).unwrap());
        receiver.allow(flow, inbound.id);
        let plan = Encapsulation {
            esp: Some(esp),
            ah: Some(ah),
            outer: None,
            udp: None,
            path_mtu: 1500,
            valid_until: f64::INFINITY,
        };
        sender.install_flow(flow, Arc::new(plan));
        let uso = Vnet { flags: 1, gso_type: 5, gso_size: 100, ..Vnet::default() };
        input.push(&frame, uso, u32::from(index));
    }
    let (mut wire, mut host, mut punts) = (Frames::default(), HostFrames::default(), Vec::new());
    let mut asked = usize::MAX;
    for _ in 0..4 {
        wire.clear();
        punts.clear();
        sender.send(&input, 1.0, &mut wire, &mut punts);
        assert!(punts.is_empty());
        // A punt.
        wire.push(&[0; 60], Vnet::default(), 40);
        let before = ASKED.get();
        receiver.receive(&wire, 1.0, &mut host, &mut punts);
        asked = ASKED.get() - before;
        assert_eq!(punts.len(), 1);
        assert!(!host.frames.is_empty() && host.pieces.len() >= 38, "{}", host.pieces.len());
    }
    assert_eq!(asked, 0);
}
