//! What the tests of ciphers share.

#![allow(dead_code)]

use vnic_core::cipher::Keys;
use vnic_core::mb::{Arch, Manager, ManagerError, RandomSource};

/// An ESP packet of `vectors/`.
#[derive(Clone, Debug)]
pub struct Esp {
    pub encryption: String,
    pub encryption_key: Vec<u8>,
    pub integrity: String,
    pub integrity_key: Vec<u8>,
    pub icv_length: usize,
    pub high: Option<u32>,
    pub text: Vec<u8>,
    pub packet: Vec<u8>,
}

impl Esp {
    pub fn keys(&self) -> Keys<'_> {
        Keys {
            encryption: &self.encryption,
            encryption_key: &self.encryption_key,
            integrity: &self.integrity,
            integrity_key: &self.integrity_key,
            icv_length: self.icv_length,
        }
    }

    pub fn iv_length(&self) -> usize {
        self.packet.len() - self.text.len() - self.icv_length - 8
    }
}

/// An AH packet of `vectors/`.
#[derive(Clone, Debug)]
pub struct Ah {
    pub integrity: String,
    pub integrity_key: Vec<u8>,
    pub high: Option<u32>,
    pub iv: Option<[u8; 8]>,
    pub muted: Vec<u8>,
    pub icv: Vec<u8>,
}

impl Ah {
    pub fn keys(&self) -> Keys<'_> {
        Keys {
            encryption: "",
            encryption_key: &[],
            integrity: &self.integrity,
            integrity_key: &self.integrity_key,
            icv_length: self.icv.len(),
        }
    }
}

pub fn unhex(text: &str) -> Vec<u8> {
    if text == "-" {
        return Vec::new();
    }
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("digits"))
        .collect()
}

/// All packets that `make_vectors.py` made, and the published ones.
pub fn vectors() -> (Vec<Esp>, Vec<Ah>) {
    let name = |text: &str| if text == "-" { String::new() } else { text.to_owned() };
    let (mut esp, mut ah) = (Vec::new(), Vec::new());
    let (made, published) = (include_str!("../vectors/packets.txt"), include_str!("../vectors/published.txt"));
    for line in made.lines().chain(published.lines()) {
        let fields: Vec<&str> = line.split(' ').collect();
        match fields[..] {
            ["esp", encryption, encryption_key, integrity, integrity_key, icv_length, high, text, packet] => {
                esp.push(Esp {
                    encryption: name(encryption),
                    encryption_key: unhex(encryption_key),
                    integrity: name(integrity),
                    integrity_key: unhex(integrity_key),
                    icv_length: icv_length.parse().expect("a number"),
                    high: high.parse().ok(),
                    text: unhex(text),
                    packet: unhex(packet),
                });
            }
            ["ah", integrity, integrity_key, _, high, iv, muted, icv] => ah.push(Ah {
                integrity: name(integrity),
                integrity_key: unhex(integrity_key),
                high: high.parse().ok(),
                iv: unhex(iv).try_into().ok(),
                muted: unhex(muted),
                icv: unhex(icv),
            }),
            _ => panic!("{line}"),
        }
    }
    (esp, ah)
}

/// Where a manager gets random bytes.
pub struct Random;

impl Random {
    /// The given bytes in the first block, and no second one.
    pub fn fixed(bytes: Vec<u8>) -> RandomSource {
        let mut bytes = Some(bytes);
        Box::new(move |block| {
            let Some(bytes) = bytes.take() else { return false };
            block[..bytes.len()].copy_from_slice(&bytes);
            true
        })
    }

    /// Bytes that nobody looks at.
    pub fn system() -> RandomSource {
        let mut numbers = Numbers(1);
        Box::new(move |block| {
            block.fill_with(|| numbers.next() as u8);
            true
        })
    }
}

/// A manager for each code path that this CPU has, and one that chooses; `random` is told the path's name.
pub fn managers(random: impl Fn(&str) -> RandomSource) -> Vec<(&'static str, Manager)> {
    let mut found = Vec::new();
    for arch in [Some(Arch::Sse), Some(Arch::Avx2), Some(Arch::Avx512), None] {
        match Manager::with(arch, Random::system()) {
            Ok(probe) => {
                let name = probe.arch_name();
                found.push((name, Manager::with(arch, random(name)).expect("a second manager")));
            }
            Err(error) => assert!(arch.is_some() && error == ManagerError::Cpu, "{arch:?}: {error}"),
        }
    }
    found
}

/// Numbers without a pattern, the same in every run (xorshift64*).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

pub fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut numbers = Numbers(seed + 1);
    for last in (1..items.len()).rev() {
        items.swap(last, numbers.below(last + 1));
    }
}
