//! Bursts of hostile frames, and of frames whose text, padding and trailer are hostile but well sealed.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use vnic_core::association::Mode;
use vnic_core::checksum::checksum;
use vnic_core::frames::Frames;
use vnic_fuzz::{Lab, push, record};

thread_local! {
    static LABS: RefCell<[Lab; 2]> = RefCell::new([Lab::new(Mode::Tunnel), Lab::new(Mode::Transport)]);
}

fuzz_target!(|data: &[u8]| {
    LABS.with_borrow_mut(|labs| {
        let Some((&which, mut data)) = data.split_first() else { return };
        let lab = &mut labs[usize::from(which & 1)];
        let mut burst = Frames::default();
        while let Some((kind, bytes)) = record(&mut data) {
            match kind % 4 {
                0 => push(&mut burst, bytes),
                1 if bytes.len() >= 34 => {
                    let mut frame = bytes.to_vec();
                    frame[24..26].fill(0);
                    let field = checksum(&frame[14..34]);
                    frame[24..26].copy_from_slice(&field.to_be_bytes());
                    push(&mut burst, &frame);
                }
                _ => {
                    lab.allow(bytes);
                    lab.seal(bytes, &mut burst);
                }
            }
        }
        lab.receive(&burst);
    });
});
