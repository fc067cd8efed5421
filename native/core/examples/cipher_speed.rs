//! Nanoseconds per packet of sealing and opening, in bursts and one by one.
//!
//! ```text
//! cargo run --release -p vnic-core --example cipher_speed [ESP-BYTES]
//! ```

use std::sync::Arc;
use std::time::Instant;

use vnic_core::cipher::{AhJob, EspOpen, EspSeal, Keys, Opener, Sealer, ah_icvs, open_esp, seal_esp};
use vnic_core::mb::Manager;
use vnic_core::state::CounterIvs;

/// Algorithms, with the lengths of their keys and ICVs.
const SUITES: &[(&str, usize, &str, usize, usize)] = &[
    ("aes-gcm-128", 20, "", 0, 16),
    ("aes-gcm-256", 36, "", 0, 16),
    ("aes-cbc-128", 16, "hmac-sha1-96", 20, 12),
    ("aes-cbc-256", 32, "hmac-sha256-128", 32, 16),
    ("3des-cbc", 24, "hmac-md5-96", 16, 12),
    ("null", 0, "aes-gmac-128", 20, 16),
    ("", 0, "hmac-sha256-128", 32, 16),
    ("", 0, "aes-gmac-128", 20, 16),
];

const BURSTS: [usize; 2] = [45, 1];
const MEASUREMENTS: usize = 5;
const PACKETS: usize = 9000;

/// The fastest of some measurements, in nanoseconds per packet.
fn measure(burst: usize, mut work: impl FnMut()) -> f64 {
    (0..MEASUREMENTS)
        .map(|_| {
            let before = Instant::now();
            for _ in 0..PACKETS / burst {
                work();
            }
            before.elapsed().as_nanos() as f64 / (PACKETS / burst * burst) as f64
        })
        .fold(f64::INFINITY, f64::min)
}

fn main() {
    let text: usize = std::env::args().nth(1).map_or(1424, |text| text.parse().expect("a number of bytes"));
    let mut manager = Manager::new().expect("a manager");
    println!("intel-ipsec-mb {} {}, {text} bytes of text, ns/packet", Manager::version(), manager.arch_name());
    println!("{:<28} {:>5} {:>8} {:>8}", "", "burst", "seal", "open");
    for (encryption, key, integrity, integrity_key, icv_length) in SUITES {
        let (key, integrity_key) = (vec![0x5a; *key], vec![0xa5; *integrity_key]);
        let keys = Keys {
            encryption,
            encryption_key: &key,
            integrity,
            integrity_key: &integrity_key,
            icv_length: *icv_length,
        };
        let counter = encryption.contains("gcm") || integrity.contains("gmac");
        let ivs = counter.then(|| Arc::new(CounterIvs::new(1, 0, false)));
        let sealer = Sealer::new(&mut manager, &keys, ivs).expect("a sealer");
        let opener = Opener::new(&mut manager, &keys).expect("an opener");
        for burst in BURSTS {
            let (seal, open) = if encryption.is_empty() {
                let bytes = vec![0; burst * text];
                let jobs: Vec<_> = (0..burst)
                    .map(|at| AhJob { start: at * text, length: text, high: None, iv: [0; 8], sa: &sealer })
                    .collect();
                let mut icvs = Vec::new();
                let time = measure(burst, || assert!(ah_icvs(&mut manager, &bytes, &jobs, &mut icvs)));
                (time, time)
            } else {
                let length = 8 + sealer.iv_length() + text / 16 * 16 + sealer.icv_length();
                let mut bytes = vec![0; burst * length];
                let jobs: Vec<_> = (0..burst)
                    .map(|at| EspSeal { start: at * length, end: (at + 1) * length, high: None, sealer: &sealer })
                    .collect();
                let seal = measure(burst, || assert!(seal_esp(&mut manager, &mut bytes, &jobs)));
                let jobs: Vec<_> = (0..burst)
                    .map(|at| {
                        let (start, end) = (at * length, (at + 1) * length);
                        EspOpen { start, end, high: None, text: at * text, opener: &opener }
                    })
                    .collect();
                let mut plain = vec![0; burst * text];
                let mut good = Vec::new();
                let open = measure(burst, || {
                    open_esp(&mut manager, &bytes, &mut plain, &jobs, &mut good);
                    assert!(good.iter().all(|good| *good));
                });
                (seal, open)
            };
            println!("{:<28} {burst:>5} {seal:>8.0} {open:>8.0}", format!("{encryption} {integrity}"));
        }
    }
}
