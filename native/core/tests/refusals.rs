//! What does not fit is refused: keys, lengths, offsets; and nothing is allocated for packets that do.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use common::{Numbers, Random, managers};
use vnic_core::cipher::{AhJob, EspOpen, EspSeal, Keys, KeysError, Opener, Sealer, ah_icvs, open_esp, seal_esp};
use vnic_core::mb::Manager;
use vnic_core::state::CounterIvs;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Encryption, its key's length, integrity, its key's length, ICV lengths.
const SUITES: &[(&str, usize, &str, usize, &[usize])] = &[
    ("aes-gcm-128", 20, "", 0, &[16, 12, 8]),
    ("aes-gcm-192", 28, "", 0, &[16, 12, 8]),
    ("aes-gcm-256", 36, "", 0, &[16, 12, 8]),
    ("null", 0, "aes-gmac-128", 20, &[16]),
    ("null", 0, "hmac-md5-96", 16, &[12]),
    ("null", 0, "", 0, &[0]),
    ("aes-cbc-128", 16, "hmac-sha1-96", 20, &[12]),
    ("aes-cbc-192", 24, "hmac-sha256-128", 32, &[16, 12]),
    ("aes-cbc-256", 32, "", 0, &[0]),
    ("3des-cbc", 24, "hmac-md5-96", 16, &[12]),
    ("des-cbc", 8, "hmac-sha1-96", 20, &[12]),
    ("", 0, "aes-gmac-256", 36, &[16]),
    ("", 0, "hmac-sha256-128", 32, &[16, 12]),
];

fn counter(encryption: &str, integrity: &str) -> Option<Arc<CounterIvs>> {
    (encryption.contains("gcm") || integrity.contains("gmac")).then(|| Arc::new(CounterIvs::new(1, 0, false)))
}

fn make(
    manager: &mut Manager,
    encryption: &str,
    key: usize,
    integrity: &str,
    integrity_key: usize,
    icv_length: usize,
) -> Result<(Sealer, Opener), KeysError> {
    let (key, integrity_key) = (vec![3; key], vec![4; integrity_key]);
    let keys = Keys { encryption, encryption_key: &key, integrity, integrity_key: &integrity_key, icv_length };
    Ok((Sealer::new(manager, &keys, counter(encryption, integrity))?, Opener::new(manager, &keys)?))
}

/// All SAs that the manager has algorithms for, ICVs of every length.
fn all(manager: &mut Manager) -> Vec<(&'static str, Sealer, Opener)> {
    let mut made = Vec::new();
    for (encryption, key, integrity, integrity_key, icv_lengths) in SUITES {
        for icv_length in *icv_lengths {
            match make(manager, encryption, *key, integrity, *integrity_key, *icv_length) {
                Ok((sealer, opener)) => made.push((*encryption, sealer, opener)),
                Err(error) => assert!(error == KeysError::Algorithm && encryption.contains("des"), "{encryption}"),
            }
        }
    }
    made
}

#[test]
fn keys_and_icvs_of_other_lengths_and_pairs_that_do_not_exist_are_refused() {
    for (arch, mut manager) in managers(|_| Random::system()) {
        for (encryption, key, integrity, integrity_key, icv_lengths) in SUITES {
            if encryption.contains("des") && arch != "AVX512" {
                continue;
            }
            let icv_length = icv_lengths[0];
            for other in (0..70).filter(|other| other != key) {
                let refused = make(&mut manager, encryption, other, integrity, *integrity_key, icv_length);
                assert_eq!(refused.err(), Some(KeysError::KeyLength), "{encryption} {other}");
            }
            for other in (0..70).filter(|other| other != integrity_key) {
                let refused = make(&mut manager, encryption, *key, integrity, other, icv_length);
                assert_eq!(refused.err(), Some(KeysError::KeyLength), "{integrity} {other}");
            }
            for other in (0..70).filter(|other| !icv_lengths.contains(other)) {
                let refused = make(&mut manager, encryption, *key, integrity, *integrity_key, other);
                assert_eq!(refused.err(), Some(KeysError::IcvLength), "{encryption} {integrity} {other}");
            }
        }
        for (encryption, key, integrity, integrity_key) in [
            ("", 0, "", 0),
            ("rot13", 0, "", 0),
            ("null", 0, "crc32", 0),
            ("aes-gcm-512", 68, "", 0),
            ("aes-gcm-128", 20, "hmac-sha1-96", 20),
            ("aes-gcm-128", 20, "aes-gmac-128", 20),
            ("aes-cbc-128", 16, "aes-gmac-128", 20),
        ] {
            let refused = make(&mut manager, encryption, key, integrity, integrity_key, 16);
            assert_eq!(refused.err(), Some(KeysError::Algorithm), "{encryption} {integrity}");
        }
    }
}

#[test]
fn counter_modes_need_ivs_and_no_other_algorithm_takes_them() {
    let mut manager = Manager::new().expect("a manager");
    let gcm =
        Keys { encryption: "aes-gcm-128", encryption_key: &[1; 20], integrity: "", integrity_key: &[], icv_length: 16 };
    let plain = Keys { encryption: "null", encryption_key: &[], integrity: "", integrity_key: &[], icv_length: 0 };
    assert_eq!(Sealer::new(&mut manager, &gcm, None).err(), Some(KeysError::Algorithm));
    let ivs = Arc::new(CounterIvs::new(1, 0, false));
    assert_eq!(Sealer::new(&mut manager, &plain, Some(ivs)).err(), Some(KeysError::Algorithm));
}

#[test]
fn hostile_offsets_and_lengths_are_not_good_and_not_sealed_and_never_a_panic() {
    let mut numbers = Numbers(3);
    for (_, mut manager) in managers(|_| Random::system()) {
        let sas = all(&mut manager);
        let mut bytes = vec![0x33; 300];
        let source = vec![0x44; 300];
        let odd = [usize::MAX, usize::MAX - 1, usize::MAX / 2, 300, 301, 299, 0, 1];
        let mut good = Vec::new();
        for _ in 0..20_000 {
            let mut any = |limit| if numbers.below(8) == 0 { odd[numbers.below(8)] } else { numbers.below(limit) };
            let (start, end, text) = (any(100), any(301), any(301));
            let (_, sealer, opener) = &sas[numbers.below(sas.len())];
            let high = (numbers.below(2) == 0).then_some(5);
            let fits = |alignment: usize, head: usize, tail: usize| {
                end <= 300
                    && end
                        .checked_sub(start)
                        .and_then(|length| length.checked_sub(head + tail))
                        .is_some_and(|length| length >= 2 && length % alignment == 0)
            };
            let whole = bytes.clone();
            let sealed = seal_esp(&mut manager, &mut bytes, &[EspSeal { start, end, high, sealer }]);
            assert_eq!(sealed, fits(sealer.alignment(), 8 + sealer.iv_length(), sealer.icv_length()));
            if !sealed {
                assert_eq!(bytes, whole);
            }
            let mut plain = vec![0x55; 300];
            open_esp(&mut manager, &source, &mut plain, &[EspOpen { start, end, high, text, opener }], &mut good);
            let head = 8 + opener.iv_length() + opener.icv_length();
            if good[0] {
                assert!(opener.icv_length() == 0 && fits(opener.alignment(), 8 + opener.iv_length(), 0));
            } else if !fits(opener.alignment(), 8 + opener.iv_length(), opener.icv_length())
                || text.checked_add(end - start - head).is_none_or(|end| end > 300)
            {
                assert!(plain.iter().all(|byte| *byte == 0x55));
            }
            let mut icvs = vec![[1; 16]];
            let length = end;
            let done =
                ah_icvs(&mut manager, &source, &[AhJob { start, length, high, iv: [0; 8], sa: sealer }], &mut icvs);
            assert_eq!(icvs.len(), usize::from(done));
            assert!(!done || start.checked_add(length).is_some_and(|end| end <= 300));
        }
    }
}

#[test]
fn packets_of_every_size_up_to_the_longest_come_back_and_longer_ones_are_refused_where_the_library_ends() {
    for (_, mut manager) in managers(|_| Random::system()) {
        for (encryption, sealer, opener) in all(&mut manager) {
            if encryption.is_empty() {
                continue;
            }
            let around = sealer.iv_length() + sealer.icv_length() + 8;
            let mut numbers = Numbers(5);
            let mut sizes: Vec<usize> = (1..20).map(|_| 1 + numbers.below(120)).collect();
            sizes.extend(if encryption.contains("des") { [90, 100] } else { [4000, (65_500 - around) / 16] });
            let mut bytes = Vec::new();
            let mut seals = Vec::new();
            for size in sizes {
                let start = bytes.len();
                bytes.resize(start + around + 16 * size, size as u8);
                seals.push(EspSeal { start, end: bytes.len(), high: Some(1), sealer: &sealer });
            }
            let before = bytes.clone();
            assert!(seal_esp(&mut manager, &mut bytes, &seals), "{encryption}");
            let opens: Vec<EspOpen> = seals
                .iter()
                .map(|seal| EspOpen {
                    start: seal.start,
                    end: seal.end,
                    high: seal.high,
                    text: seal.start,
                    opener: &opener,
                })
                .collect();
            let mut plain = vec![0; bytes.len()];
            let mut good = Vec::new();
            open_esp(&mut manager, &bytes, &mut plain, &opens, &mut good);
            for (job, good) in opens.iter().zip(&good) {
                assert!(good, "{encryption}");
                let length = job.end - job.start - around;
                let text = job.start + 8 + sealer.iv_length();
                assert_eq!(plain[job.start..job.start + length], before[text..text + length], "{encryption}");
            }
            let mut long = vec![0; around + 16 * 4095];
            let end = long.len();
            let sealed = seal_esp(&mut manager, &mut long, &[EspSeal { start: 0, end, high: None, sealer: &sealer }]);
            let by_jobs = encryption.contains("cbc") || encryption == "null" && sealer.icv_length() == 12;
            assert_eq!(sealed, !by_jobs, "{encryption}");
        }
    }
}

#[test]
fn a_burst_is_not_sealed_when_ivs_or_random_bytes_run_out() {
    for (_, mut manager) in managers(|_| Box::new(|_| false)) {
        let (cbc, _) = make(&mut manager, "aes-cbc-128", 16, "hmac-sha1-96", 20, 12).expect("an SA");
        let mut bytes = vec![7; 8 + 16 + 32 + 12];
        let before = bytes.clone();
        let end = bytes.len();
        assert!(!seal_esp(&mut manager, &mut bytes, &[EspSeal { start: 0, end, high: None, sealer: &cbc }]));
        assert_eq!(bytes, before);

        let keys = Keys {
            encryption: "aes-gcm-128",
            encryption_key: &[1; 20],
            integrity: "",
            integrity_key: &[],
            icv_length: 16,
        };
        let ivs = Arc::new(CounterIvs::new(9, u64::MAX - 1, false));
        let gcm = Sealer::new(&mut manager, &keys, Some(ivs.clone())).expect("a sealer");
        let mut bytes = vec![7; 3 * 64];
        let job = |at: usize| EspSeal { start: 64 * at, end: 64 * at + 64, high: None, sealer: &gcm };
        assert!(!seal_esp(&mut manager, &mut bytes, &[job(0), job(1), job(2)]));
        for at in 0..3 {
            assert_eq!(bytes[64 * at + 16..64 * at + 64], [7; 48]);
        }
        assert_eq!(gcm.take_iv(), None);
        assert_eq!(ivs.position(), (9, 1 << 64));
    }
}

#[test]
fn keys_are_refused_on_another_code_path_than_theirs() {
    let mut managers = managers(|_| Random::system());
    let (first, mut one) = managers.remove(0);
    let Some((_, mut other)) = managers.into_iter().find(|(arch, _)| *arch != first) else { return };
    let (sealer, opener) = make(&mut one, "aes-gcm-128", 20, "", 0, 16).expect("an SA");
    let mut bytes = vec![7; 64];
    assert!(!seal_esp(&mut other, &mut bytes, &[EspSeal { start: 0, end: 64, high: None, sealer: &sealer }]));
    assert!(seal_esp(&mut one, &mut bytes, &[EspSeal { start: 0, end: 64, high: None, sealer: &sealer }]));
    let job = EspOpen { start: 0, end: 64, high: None, text: 0, opener: &opener };
    let mut good = Vec::new();
    open_esp(&mut other, &bytes, &mut [0; 64], std::slice::from_ref(&job), &mut good);
    assert_eq!(good, [false]);
    open_esp(&mut one, &bytes, &mut [0; 64], std::slice::from_ref(&job), &mut good);
    assert_eq!(good, [true]);
}

#[test]
fn no_memory_is_allocated_for_packets_after_the_first_burst() {
    let mut manager = Manager::new().expect("a manager");
    let sas = all(&mut manager);
    let (mut bytes, mut seals, mut opens, mut ahs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (encryption, sealer, opener) in &sas {
        let start = bytes.len();
        bytes.resize(start + 8 + sealer.iv_length() + 112 + sealer.icv_length(), 0);
        if encryption.is_empty() {
            ahs.push(AhJob { start, length: 112, high: Some(1), iv: [0; 8], sa: sealer });
        } else {
            seals.push(EspSeal { start, end: bytes.len(), high: Some(1), sealer });
            opens.push(EspOpen { start, end: bytes.len(), high: Some(1), text: start, opener });
        }
    }
    let mut plain = vec![0; bytes.len()];
    let (mut good, mut icvs) = (Vec::new(), Vec::new());
    let mut before = 0;
    for round in 0..1000 {
        if round == 1 {
            before = ALLOCATIONS.with(Cell::get);
        }
        assert!(seal_esp(&mut manager, &mut bytes, &seals));
        open_esp(&mut manager, &bytes, &mut plain, &opens, &mut good);
        assert!(good.iter().all(|good| *good));
        assert!(ah_icvs(&mut manager, &bytes, &ahs, &mut icvs));
    }
    assert_eq!(ALLOCATIONS.with(Cell::get), before);
}
