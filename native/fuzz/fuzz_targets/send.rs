//! Frames of the host, superframes among them: cut, framed and sealed, then opened and joined by the other end.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use vnic_core::association::Mode;
use vnic_core::frames::{Frames, VNET_LENGTH, Vnet};
use vnic_fuzz::{Lab, record};

thread_local! {
    static LAB: RefCell<Lab> = RefCell::new(Lab::new(Mode::Tunnel));
}

fuzz_target!(|data: &[u8]| {
    LAB.with_borrow_mut(|lab| {
        let mut data = data;
        let mut input = Frames::default();
        while let Some((_, bytes)) = record(&mut data) {
            let Some((vnet, frame)) = bytes.split_first_chunk::<VNET_LENGTH>() else { continue };
            input.push(frame, Vnet::parse(vnet), input.frames.len() as u32);
            if let Some(packet) = frame.get(14..) {
                lab.install(packet);
                lab.allow(packet);
            }
        }
        let mut wire = Frames::default();
        let mut punts = Vec::new();
        let before = input.bytes.clone();
        lab.sender.send(&input, 1.0, &mut wire, &mut punts);
        assert_eq!(before, input.bytes);
        for frame in &wire.frames {
            assert!(frame.length <= 1514 && frame.vnet.is_plain());
            assert!(!punts.iter().any(|punt| punt.index == frame.origin));
        }
        lab.receive(&wire);
        // What this engine sends it receives, but for what policy or the reference has to see.
        for punt in &lab.punts {
            let reason = punt.reason.name();
            assert!(matches!(reason, "unknown_sa" | "unknown_flow" | "congestion"), "{reason}");
        }
    });
});
