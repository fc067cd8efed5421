//! Sending in steady state asks for no memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use vnic_core::association::{Encapsulation, OutboundSa};
use vnic_core::card::Card;
use vnic_core::cipher::{Keys, Sealer};
use vnic_core::frames::{Frames, Vnet};
use vnic_core::mb::Manager;
use vnic_core::packet::{flow_key, parse_frame};
use vnic_core::state::{CounterIvs, Sequence, Tally};

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

fn sa(card: &mut Card, keys: &Keys, counter: bool, ah_length: usize) -> Arc<OutboundSa> {
    let ivs = counter.then(|| Arc::new(CounterIvs::new(1, 0, false)));
    Arc::new(OutboundSa {
        spi: 0x1000,
        transform: Sealer::new(card.manager(), keys, ivs).expect("keys that fit"),
        esn: true,
        ah_length,
        sequence: Arc::new(Sequence::new(0, u64::MAX, u64::MAX)),
        tally: Arc::new(Tally::default()),
        mark: 0,
    })
}

#[test]
fn a_burst_like_the_one_before_asks_for_no_memory() {
    let mut card = Card::new(Manager::new().expect("a CPU that the library works on"));
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
    for (index, keys) in [(0, gcm), (1, cbc)] {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 7, 0xd0, 0, 1, 0, 0, 64, 17, 0, 0];
        frame.extend([10, 9, 0, 1, 10, 9, 0, 2, 0, index, 0, 53]);
        frame.resize(14 + 2000, 3);
        let plan = Encapsulation {
            esp: Some(sa(&mut card, &keys, index == 0, 0)),
            ah: Some(sa(&mut card, &ah, false, 24)),
            outer: None,
            udp: None,
            path_mtu: 1500,
            valid_until: f64::INFINITY,
        };
        card.install_flow(flow_key(&frame, &parse_frame(&frame).unwrap()), Arc::new(plan));
        let uso = Vnet { flags: 1, gso_type: 5, gso_size: 100, ..Vnet::default() };
        input.push(&frame, uso, u32::from(index));
    }
    // A punt.
    input.push(&[0; 60], Vnet::default(), 2);
    let (mut output, mut punts) = (Frames::default(), Vec::new());
    let mut before = 0;
    for _ in 0..4 {
        output.clear();
        punts.clear();
        before = ASKED.get();
        card.send(&input, 1.0, &mut output, &mut punts);
    }
    assert_eq!(ASKED.get(), before);
    assert_eq!((output.frames.len(), punts.len()), (40, 1));
}
