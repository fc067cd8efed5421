//! Packets that others made: every algorithm, with and without ESN, on every code path of the CPU, one by one and mixed.

mod common;

use std::sync::Arc;

use common::{Ah, Esp, Random, managers, vectors};
use vnic_core::cipher::{AhJob, EspOpen, EspSeal, Opener, Sealer, ah_icvs, open_esp, seal_esp};
use vnic_core::mb::Manager;
use vnic_core::state::CounterIvs;

/// A sealer that will make the IV of the packet; block ciphers take theirs from the manager.
fn sealer(manager: &mut Manager, esp: &Esp) -> Sealer {
    let counter = esp.encryption.contains("gcm") || esp.integrity.contains("gmac");
    let ivs = counter.then(|| {
        let start = u64::from_be_bytes(esp.packet[8..16].try_into().expect("eight bytes"));
        Arc::new(CounterIvs::new(start, 0, false))
    });
    Sealer::new(manager, &esp.keys(), ivs).expect("a sealer")
}

fn random_ivs(packets: &[&Esp]) -> Vec<u8> {
    packets
        .iter()
        .filter(|esp| esp.encryption.contains("cbc"))
        .flat_map(|esp| &esp.packet[8..8 + esp.iv_length()])
        .copied()
        .collect()
}

/// The packets that a manager has algorithms for.
fn known<'a>(arch: &str, packets: &'a [Esp]) -> Vec<&'a Esp> {
    packets.iter().filter(|esp| arch == "AVX512" || !esp.encryption.contains("des")).collect()
}

/// Packets as framing leaves them: header and text stand, IV and ICV are room.
fn unsealed(esp: &Esp) -> Vec<u8> {
    let mut packet = esp.packet[..8].to_vec();
    packet.resize(8 + esp.iv_length(), 0xee);
    packet.extend(&esp.text);
    packet.resize(packet.len() + esp.icv_length, 0xdd);
    packet
}

#[test]
fn packets_of_others_come_out_of_sealing_in_one_mixed_burst() {
    let (packets, _) = vectors();
    for chunk in packets.chunks(200) {
        for (arch, mut manager) in managers(|arch| Random::fixed(random_ivs(&known(arch, chunk)))) {
            let chunk = known(arch, chunk);
            let sealers: Vec<Sealer> = chunk.iter().map(|esp| sealer(&mut manager, esp)).collect();
            let mut bytes = vec![0x11; 3];
            let mut jobs = Vec::new();
            for (esp, sealer) in chunk.iter().zip(&sealers) {
                let start = bytes.len();
                bytes.extend(unsealed(esp));
                jobs.push(EspSeal { start, end: bytes.len(), high: esp.high, sealer });
                bytes.extend([0x22; 5]);
            }
            assert!(seal_esp(&mut manager, &mut bytes, &jobs), "{arch}");
            for (esp, job) in chunk.iter().zip(&jobs) {
                assert_eq!(bytes[job.start..job.end], esp.packet, "{arch} {esp:?}");
                assert_eq!(bytes[job.end..job.end + 5], [0x22; 5], "{arch} {esp:?}");
            }
        }
    }
}

#[test]
fn packets_of_others_come_out_of_sealing_one_by_one() {
    let packets: Vec<Esp> = vectors().0.into_iter().step_by(7).collect();
    for (arch, mut manager) in managers(|arch| Random::fixed(random_ivs(&known(arch, &packets)))) {
        for esp in known(arch, &packets) {
            let sealer = sealer(&mut manager, esp);
            let mut bytes = unsealed(esp);
            let end = bytes.len();
            assert!(seal_esp(&mut manager, &mut bytes, &[EspSeal { start: 0, end, high: esp.high, sealer: &sealer }]));
            assert_eq!(bytes, esp.packet, "{arch} {esp:?}");
        }
    }
}

#[test]
fn packets_of_others_open_beside_the_source_one_by_one_and_in_mixed_bursts() {
    let (mut packets, _) = vectors();
    for (arch, mut manager) in managers(|_| Random::system()) {
        for burst in [1, 3, 7, 45, packets.len()] {
            common::shuffle(&mut packets, burst as u64);
            let packets = known(arch, &packets);
            for chunk in packets.chunks(burst) {
                let openers: Vec<Opener> =
                    chunk.iter().map(|esp| Opener::new(&mut manager, &esp.keys()).expect("an opener")).collect();
                let mut source = vec![0x11; 1];
                let mut jobs = Vec::new();
                let mut room = 2;
                for (esp, opener) in chunk.iter().zip(&openers) {
                    let start = source.len();
                    source.extend(&esp.packet);
                    jobs.push(EspOpen { start, end: source.len(), high: esp.high, text: room, opener });
                    room += esp.text.len() + 3;
                }
                let before = source.clone();
                let mut plain = vec![0x77; room];
                let mut good = vec![true; 3];
                open_esp(&mut manager, &source, &mut plain, &jobs, &mut good);
                assert_eq!(source, before);
                assert_eq!(good, vec![true; chunk.len()], "{arch}");
                for (esp, job) in chunk.iter().zip(&jobs) {
                    let end = job.text + esp.text.len();
                    assert_eq!(plain[job.text..end], esp.text, "{arch} {esp:?}");
                    assert_eq!(plain[end..end + 3], [0x77; 3], "{arch} {esp:?}");
                }
            }
        }
    }
}

#[test]
fn a_changed_bit_anywhere_or_another_upper_half_is_never_good_and_leaves_no_plain_text() {
    let (packets, _) = vectors();
    let mut numbers = common::Numbers(7);
    for (arch, mut manager) in managers(|_| Random::system()) {
        for _ in 0..3 {
            let checked: Vec<&Esp> = known(arch, &packets).into_iter().filter(|esp| esp.icv_length != 0).collect();
            let openers: Vec<Opener> =
                checked.iter().map(|esp| Opener::new(&mut manager, &esp.keys()).expect("an opener")).collect();
            let mut source = Vec::new();
            let mut jobs = Vec::new();
            let mut room = 0;
            let mut bad = Vec::new();
            for (esp, opener) in checked.iter().zip(&openers) {
                let start = source.len();
                source.extend(&esp.packet);
                let what = numbers.below(4);
                bad.push(what != 0);
                let high = if what == 1 { esp.high.map_or(Some(0), |high| high.checked_add(1)) } else { esp.high };
                if what > 1 {
                    let bit = numbers.below(8 * esp.packet.len());
                    source[start + bit / 8] ^= 1 << (bit % 8);
                }
                jobs.push(EspOpen { start, end: source.len(), high, text: room, opener });
                room += esp.text.len();
            }
            let mut plain = vec![0x77; room];
            let mut good = Vec::new();
            open_esp(&mut manager, &source, &mut plain, &jobs, &mut good);
            for ((esp, job), (good, bad)) in checked.iter().zip(&jobs).zip(good.iter().zip(&bad)) {
                assert_eq!(*good, !bad, "{arch} {esp:?}");
                let plain = &plain[job.text..job.text + esp.text.len()];
                if *good {
                    assert_eq!(plain, esp.text);
                } else {
                    // Null encryption and GMAC write nothing at all.
                    assert!(plain.iter().all(|byte| *byte == 0) || plain.iter().all(|byte| *byte == 0x77), "{esp:?}");
                }
            }
        }
    }
}

#[test]
fn ah_packets_of_others_have_the_same_icv_in_both_directions() {
    let (_, packets) = vectors();
    for (arch, mut manager) in managers(|_| Random::system()) {
        for burst in [1, packets.len()] {
            for chunk in packets.chunks(burst) {
                let openers: Vec<Opener> =
                    chunk.iter().map(|ah| Opener::new(&mut manager, &ah.keys()).expect("an opener")).collect();
                let sealers: Vec<Sealer> = chunk
                    .iter()
                    .map(|ah| {
                        let ivs = ah.iv.is_some().then(|| Arc::new(CounterIvs::new(1, 0, false)));
                        Sealer::new(&mut manager, &ah.keys(), ivs).expect("a sealer")
                    })
                    .collect();
                let muted: Vec<u8> = chunk.iter().flat_map(|ah| &ah.muted).copied().collect();
                let mut icvs = vec![[9; 16]; 2];
                assert!(ah_icvs(&mut manager, &muted, &ah_jobs(chunk, &openers), &mut icvs));
                check_icvs(arch, chunk, &icvs);
                assert!(ah_icvs(&mut manager, &muted, &ah_jobs(chunk, &sealers), &mut icvs));
                check_icvs(arch, chunk, &icvs);
            }
        }
    }
}

fn ah_jobs<'a, T>(packets: &[Ah], sas: &'a [T]) -> Vec<AhJob<'a, T>> {
    let mut start = 0;
    let mut jobs = Vec::new();
    for (ah, sa) in packets.iter().zip(sas) {
        let length = ah.muted.len();
        jobs.push(AhJob { start, length, high: ah.high, iv: ah.iv.unwrap_or([0xbb; 8]), sa });
        start += length;
    }
    jobs
}

fn check_icvs(arch: &str, packets: &[Ah], icvs: &[[u8; 16]]) {
    assert_eq!(icvs.len(), packets.len());
    for (ah, icv) in packets.iter().zip(icvs) {
        assert_eq!(icv[..ah.icv.len()], ah.icv, "{arch} {ah:?}");
    }
}
