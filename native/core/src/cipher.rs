//! One SA's cipher and integrity, over whole bursts.
//!
//! Law: touches only what a job names; finds no headers, checks no padding, knows no sequence windows. Names of
//! algorithms are those of `vnic.ipsec.algorithms`, layouts and answers those of `vnic.miniport.esp` and `ah`. No
//! length is trusted: a job that does not fit is refused, never a panic.
//!
//! ```text
//! start            text                                  stop        end
//! | SPI 4 | seq 4 | IV | payload | pad | pad len | next | ICV        |
//! ```
//!
//! AES-GCM and AES-GMAC are done packet by packet, block ciphers and HMACs many packets at a time, whatever SAs they
//! are of.
//!
//! Source: RFC 4303 §2, §3.3, §3.4; RFC 4302 §3.3.3; RFC 4106 §5; RFC 4543 §3.3, §3.4, §4.

use std::sync::Arc;

pub use crate::keys::equal;
use crate::keys::wipe;
use crate::mb::{Batch, BlockJob, BlockKeys, Cipher, GcmKey, Hash, LONGEST_JOB, Manager, Place};
use crate::state::CounterIvs;

/// Bytes in front of the IV.
const ESP_HEADER: usize = 8;

/// Pad length and next header.
const ESP_TRAILER: usize = 2;

/// Bytes of a counter mode's IV on the wire, and of the salt behind its key.
const COUNTER_IV: usize = 8;
const SALT: usize = 4;

/// What an SA's cryptography is made of. Keys are those of `KeyMaterial`: with the salt behind, where there is one.
pub struct Keys<'a> {
    /// Name of the encryption algorithm; empty for AH.
    pub encryption: &'a str,
    /// Its key; empty for null encryption.
    pub encryption_key: &'a [u8],
    /// Name of the integrity algorithm; empty with AES-GCM, and for ESP that AH protects.
    pub integrity: &'a str,
    /// Its key.
    pub integrity_key: &'a [u8],
    /// Bytes of the ICV; 0 for ESP that AH protects.
    pub icv_length: usize,
}

/// Why an SA cannot be worked on here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeysError {
    /// The algorithm, or the pair, is not for this engine (DES is not without AVX-512), or IVs were given where there is
    /// no counter mode.
    Algorithm,
    /// A key has a length that its algorithm does not take.
    KeyLength,
    /// The ICV has a length that its algorithm does not take.
    IcvLength,
    /// There is no locked memory left for keys (RLIMIT_MEMLOCK).
    Memory,
}

impl std::fmt::Display for KeysError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Algorithm => "an algorithm that is not worked on here",
            Self::KeyLength => "a key of a wrong length",
            Self::IcvLength => "an ICV of a wrong length",
            Self::Memory => "no locked memory left for keys: raise RLIMIT_MEMLOCK",
        })
    }
}

impl std::error::Error for KeysError {}

enum Kind {
    Gcm(GcmKey),
    Gmac(GcmKey),
    /// Block cipher, or HMAC, or both.
    Block(BlockKeys),
    /// Null encryption without integrity.
    Plain,
}

/// What sealing and opening have in common: algorithms, expanded keys, lengths. The keys are wiped on drop.
pub struct Transform {
    kind: Kind,
    iv_length: usize,
    icv_length: usize,
    /// Bytes of the cipher's block; 1 where there is none.
    block: usize,
    /// Code path the keys were expanded for.
    arch: u32,
}

/// The outbound half of an SA's cryptography.
pub struct Sealer {
    transform: Transform,
    ivs: Option<Arc<CounterIvs>>,
}

/// The inbound half of an SA's cryptography.
pub struct Opener {
    transform: Transform,
}

/// One ESP packet to be sealed in place.
pub struct EspSeal<'a> {
    /// Offset of the ESP header, whose SPI and sequence number are written; the IV behind it is written here.
    pub start: usize,
    /// Offset behind the room for the ICV.
    pub end: usize,
    /// Upper half of the extended sequence number.
    pub high: Option<u32>,
    /// The SA.
    pub sealer: &'a Sealer,
}

/// One ESP packet to be opened; the packet itself is not changed.
pub struct EspOpen<'a> {
    /// Offset of the ESP header in the source.
    pub start: usize,
    /// Offset behind the ICV in the source.
    pub end: usize,
    /// Upper half of the extended sequence number.
    pub high: Option<u32>,
    /// Where in the destination the plain text, with padding and trailer, goes; no two jobs of a burst share a byte.
    pub text: usize,
    /// The SA.
    pub opener: &'a Opener,
}

/// One AH packet, muted and with room for the ICV zeroed (RFC 4302 §3.3.3), whose ICV is wanted.
pub struct AhJob<'a, T> {
    /// Offset of the muted packet.
    pub start: usize,
    /// Its bytes. It ends with the packet; the upper half of an extended number is not part of it.
    pub length: usize,
    /// Upper half of the extended sequence number.
    pub high: Option<u32>,
    /// The IV that stands in front of the ICV with AES-GMAC; not looked at otherwise.
    pub iv: [u8; 8],
    /// The SA.
    pub sa: &'a T,
}

fn cipher_named(name: &str) -> Option<Cipher> {
    Some(match name {
        "null" | "" => Cipher::None,
        "des-cbc" => Cipher::Des,
        "3des-cbc" => Cipher::TripleDes,
        "aes-cbc-128" => Cipher::Aes128,
        "aes-cbc-192" => Cipher::Aes192,
        "aes-cbc-256" => Cipher::Aes256,
        _ => return None,
    })
}

/// A hash, the length of its key and the ICVs it may make.
fn hash_named(name: &str) -> Option<(Hash, usize, &'static [usize])> {
    Some(match name {
        "" => (Hash::None, 0, &[0]),
        "hmac-md5-96" => (Hash::Md5, 16, &[12]),
        "hmac-sha1-96" => (Hash::Sha1, 20, &[12]),
        "hmac-sha256-128" => (Hash::Sha256, 32, &[16, 12]),
        _ => return None,
    })
}

/// Bytes of an AES key by the algorithm's name.
fn counter_key_length(name: &str, prefix: &str) -> Option<usize> {
    match name.strip_prefix(prefix)? {
        "128" => Some(16),
        "192" => Some(24),
        "256" => Some(32),
        _ => None,
    }
}

impl Transform {
    fn new(manager: &mut Manager, keys: &Keys, open: bool) -> Result<Self, KeysError> {
        if keys.encryption.is_empty() && keys.integrity.is_empty() {
            return Err(KeysError::Algorithm);
        }
        let gcm = counter_key_length(keys.encryption, "aes-gcm-");
        let gmac = counter_key_length(keys.integrity, "aes-gmac-");
        let (kind, iv_length, block) = if let Some(length) = gcm.or(gmac) {
            let (key, other_name, other_key, icv_lengths): (_, _, _, &[usize]) = if gcm.is_some() {
                (keys.encryption_key, keys.integrity, keys.integrity_key, &[16, 12, 8])
            } else {
                (keys.integrity_key, keys.encryption, keys.encryption_key, &[16])
            };
            if !(other_name.is_empty() || gcm.is_none() && other_name == "null") {
                return Err(KeysError::Algorithm);
            }
            if key.len() != length + SALT || !other_key.is_empty() {
                return Err(KeysError::KeyLength);
            }
            if !icv_lengths.contains(&keys.icv_length) {
                return Err(KeysError::IcvLength);
            }
            let key = GcmKey::new(manager, key).ok_or(KeysError::Memory)?;
            (if gcm.is_some() { Kind::Gcm(key) } else { Kind::Gmac(key) }, COUNTER_IV, 1)
        } else {
            let cipher = cipher_named(keys.encryption).ok_or(KeysError::Algorithm)?;
            let (hash, hash_key_length, icv_lengths) = hash_named(keys.integrity).ok_or(KeysError::Algorithm)?;
            if matches!(cipher, Cipher::Des | Cipher::TripleDes) && !manager.has_des() {
                return Err(KeysError::Algorithm);
            }
            if keys.encryption_key.len() != cipher.key_length() || keys.integrity_key.len() != hash_key_length {
                return Err(KeysError::KeyLength);
            }
            if !icv_lengths.contains(&keys.icv_length) {
                return Err(KeysError::IcvLength);
            }
            let kind = if cipher == Cipher::None && hash == Hash::None {
                Kind::Plain
            } else {
                let made = BlockKeys::new(manager, cipher, keys.encryption_key, hash, keys.integrity_key, open);
                Kind::Block(made.ok_or(KeysError::Memory)?)
            };
            (kind, cipher.block(), cipher.block().max(1))
        };
        Ok(Self { kind, iv_length, icv_length: keys.icv_length, block, arch: manager.arch() })
    }

    fn text(&self) -> usize {
        ESP_HEADER + self.iv_length
    }

    /// Bytes of text between IV and ICV, or None when the packet does not fit into `arena` bytes, the algorithm or the
    /// library.
    fn text_length(&self, manager: &Manager, start: usize, end: usize, arena: usize, block: usize) -> Option<usize> {
        let length = end.checked_sub(start)?.checked_sub(self.text() + self.icv_length)?;
        let fits = end <= arena && length >= ESP_TRAILER && length & (block - 1) == 0 && self.arch == manager.arch();
        let long = matches!(self.kind, Kind::Block(_)) && end - start > LONGEST_JOB;
        (fits && !long).then_some(length)
    }
}

fn high_bytes(high: Option<u32>) -> Option<[u8; 4]> {
    high.map(u32::to_be_bytes)
}

impl Sealer {
    /// Expand keys.
    ///
    /// `ivs` is there for counter modes, and only for them; block ciphers make random IVs.
    pub fn new(manager: &mut Manager, keys: &Keys, ivs: Option<Arc<CounterIvs>>) -> Result<Self, KeysError> {
        let transform = Transform::new(manager, keys, false)?;
        if ivs.is_some() != matches!(transform.kind, Kind::Gcm(_) | Kind::Gmac(_)) {
            return Err(KeysError::Algorithm);
        }
        Ok(Self { transform, ivs })
    }

    /// Bytes of explicit IV.
    pub fn iv_length(&self) -> usize {
        self.transform.iv_length
    }

    /// Bytes of the ICV.
    pub fn icv_length(&self) -> usize {
        self.transform.icv_length
    }

    /// Payload, padding and the two bytes of the trailer are together a multiple of this (4, 8 or 16).
    pub fn alignment(&self) -> usize {
        self.transform.block.max(4)
    }

    /// The next IV, for AH with AES-GMAC, which has it in front of its ICV; None: used up, or it has none.
    pub fn take_iv(&self) -> Option<[u8; 8]> {
        self.ivs.as_ref()?.take()
    }
}

impl Opener {
    /// Expand keys.
    pub fn new(manager: &mut Manager, keys: &Keys) -> Result<Self, KeysError> {
        Ok(Self { transform: Transform::new(manager, keys, true)? })
    }

    /// Bytes of explicit IV.
    pub fn iv_length(&self) -> usize {
        self.transform.iv_length
    }

    /// Bytes of the ICV.
    pub fn icv_length(&self) -> usize {
        self.transform.icv_length
    }

    /// What the text has to be a multiple of: the cipher's block (1, 8 or 16). Peers need not align to 4 more than that.
    pub fn alignment(&self) -> usize {
        self.transform.block
    }
}

impl AsRef<Transform> for Sealer {
    fn as_ref(&self) -> &Transform {
        &self.transform
    }
}

impl AsRef<Transform> for Opener {
    fn as_ref(&self) -> &Transform {
        &self.transform
    }
}

/// The three pieces that AES-GMAC covers of an ESP packet: the upper half comes behind the SPI.
fn gmac_pieces<'a>(packet: &'a [u8], high: &'a Option<[u8; 4]>) -> [&'a [u8]; 3] {
    match high {
        None => [packet, &[], &[]],
        Some(high) => [&packet[..4], high, &packet[4..]],
    }
}

/// Seal a burst in place: IV, cipher text and ICV. Gives false, with nothing sealed, when a job does not fit its SA or
/// a key has no IVs left for all of them; IVs may have been taken, and written, even so. If the library fails in the
/// middle, it gives false with all texts wiped.
pub fn seal_esp(manager: &mut Manager, bytes: &mut [u8], jobs: &[EspSeal]) -> bool {
    let mut block_jobs = 0;
    for job in jobs {
        let transform = &job.sealer.transform;
        let alignment = job.sealer.alignment();
        if transform.text_length(manager, job.start, job.end, bytes.len(), alignment).is_none() {
            return false;
        }
        block_jobs += usize::from(matches!(transform.kind, Kind::Block(_)));
    }
    for job in jobs {
        let iv = &mut bytes[job.start + ESP_HEADER..job.start + job.sealer.transform.text()];
        let written = match &job.sealer.ivs {
            Some(ivs) => ivs.take().map(|taken| iv.copy_from_slice(&taken)).is_some(),
            None => manager.random(iv),
        };
        if !written {
            return false;
        }
    }
    for job in jobs {
        let transform = &job.sealer.transform;
        let high = high_bytes(job.high);
        let stop = job.end - transform.icv_length;
        match &transform.kind {
            Kind::Gcm(key) => {
                let place = Place { start: job.start, stop, tag: transform.icv_length };
                manager.gcm_seal(key, bytes, place, high);
            }
            Kind::Gmac(key) => {
                let packet = &bytes[job.start..stop];
                let iv = packet[ESP_HEADER..].first_chunk().expect("the text lies behind the IV");
                let tag = manager.gmac(key, iv, gmac_pieces(packet, &high));
                bytes[stop..job.end].copy_from_slice(&tag);
            }
            Kind::Block(_) | Kind::Plain => {}
        }
    }
    manager.clear();
    block_jobs == 0 || seal_blocks(manager, bytes, jobs, block_jobs)
}

fn seal_blocks(manager: &mut Manager, bytes: &mut [u8], jobs: &[EspSeal], count: usize) -> bool {
    let blocks = || {
        jobs.iter().filter_map(|job| match &job.sealer.transform.kind {
            Kind::Block(keys) => Some((job, keys)),
            _ => None,
        })
    };
    let mut batch = Batch::in_place(manager, bytes, count);
    for (job, keys) in blocks() {
        let transform = &job.sealer.transform;
        let length = job.end - job.start - transform.icv_length;
        let (text, text_length) = (transform.text(), length - transform.text());
        let high = if keys.hash() == Hash::None { None } else { high_bytes(job.high) };
        batch.push(keys, &BlockJob { start: job.start, length, text, text_length, target: 0, high });
    }
    let Some(tags) = batch.run() else {
        for job in jobs {
            wipe(&mut bytes[job.start + ESP_HEADER..job.end]);
        }
        return false;
    };
    for ((job, _), tag) in blocks().zip(tags) {
        let icv_length = job.sealer.transform.icv_length;
        bytes[job.end - icv_length..job.end].copy_from_slice(&tag[..icv_length]);
    }
    true
}

/// Open a burst beside the packets: `good` gets, for each job, whether its ICV holds. Plain text of a packet whose ICV
/// does not hold is wiped; a job that does not fit its SA is not good, and nothing was written.
pub fn open_esp(manager: &mut Manager, source: &[u8], plain: &mut [u8], jobs: &[EspOpen], good: &mut Vec<bool>) {
    good.clear();
    let mut count = 0;
    let mut copies = 0;
    for job in jobs {
        let transform = &job.opener.transform;
        let length = transform.text_length(manager, job.start, job.end, source.len(), transform.block);
        let text = length.and_then(|length| plain.get_mut(job.text..job.text.checked_add(length)?));
        let Some(text) = text else {
            good.push(false);
            continue;
        };
        let high = high_bytes(job.high);
        let stop = job.end - transform.icv_length;
        let packet = &source[job.start..stop];
        good.push(match &transform.kind {
            Kind::Gcm(key) => {
                let place = Place { start: job.start, stop, tag: transform.icv_length };
                let holds = manager.gcm_open(key, source, place, high, text);
                if !holds {
                    wipe(text);
                }
                holds
            }
            Kind::Gmac(key) => {
                let iv = packet[ESP_HEADER..].first_chunk().expect("the text lies behind the IV");
                let tag = manager.gmac(key, iv, gmac_pieces(packet, &high));
                let holds = equal(&tag, &source[stop..job.end]);
                if holds {
                    text.copy_from_slice(&packet[transform.text()..]);
                }
                holds
            }
            // Marks that the job fits, until all of them are done together.
            Kind::Block(_) => {
                count += 1;
                copies += if high.is_some() { packet.len() + 4 } else { 0 };
                true
            }
            Kind::Plain => {
                text.copy_from_slice(&packet[transform.text()..]);
                true
            }
        });
    }
    if count != 0 {
        open_blocks(manager, source, plain, jobs, good, count, copies);
    }
    manager.clear();
}

fn open_blocks(
    manager: &mut Manager,
    source: &[u8],
    plain: &mut [u8],
    jobs: &[EspOpen],
    good: &mut [bool],
    count: usize,
    copies: usize,
) {
    let mut batch = Batch::beside(manager, source, plain, count, copies);
    for (job, fits) in jobs.iter().zip(good.iter()) {
        let transform = &job.opener.transform;
        let Kind::Block(keys) = &transform.kind else { continue };
        if *fits {
            let length = job.end - job.start - transform.icv_length;
            let (text, text_length) = (transform.text(), length - transform.text());
            let high = if keys.hash() == Hash::None { None } else { high_bytes(job.high) };
            batch.push(keys, &BlockJob { start: job.start, length, text, text_length, target: job.text, high });
        }
    }
    let mut tags = batch.run().map(|tags| tags.iter());
    for (job, good) in jobs.iter().zip(good) {
        let transform = &job.opener.transform;
        let Kind::Block(keys) = &transform.kind else { continue };
        if !*good {
            continue;
        }
        let stop = job.end - transform.icv_length;
        let tag = tags.as_mut().and_then(Iterator::next);
        *good = tag.is_some_and(|tag| equal(&tag[..transform.icv_length], &source[stop..job.end]));
        let sealed = &source[job.start + transform.text()..stop];
        let text = &mut plain[job.text..job.text + sealed.len()];
        if !*good {
            wipe(text);
        } else if keys.cipher() == Cipher::None {
            text.copy_from_slice(sealed);
        }
    }
}

/// Compute the ICVs of muted AH packets, 16 bytes each of which the first `icv_length` count, into `icvs`. Gives false,
/// with no ICVs, when a job does not lie in `muted`, or its SA is not one for AH.
///
/// Received ICVs are compared by [`equal`].
#[must_use]
pub fn ah_icvs<T: AsRef<Transform>>(
    manager: &mut Manager,
    muted: &[u8],
    jobs: &[AhJob<T>],
    icvs: &mut Vec<[u8; 16]>,
) -> bool {
    icvs.clear();
    let mut count = 0;
    let mut copies = 0;
    for job in jobs {
        let transform = job.sa.as_ref();
        let inside = job.start.checked_add(job.length).is_some_and(|end| end <= muted.len());
        let fits = match &transform.kind {
            Kind::Gmac(_) => true,
            Kind::Block(keys) if keys.cipher() == Cipher::None && job.length <= LONGEST_JOB - 4 => {
                count += 1;
                copies += if job.high.is_some() { job.length + 4 } else { 0 };
                true
            }
            _ => false,
        };
        if !(inside && fits && transform.arch == manager.arch()) {
            return false;
        }
    }
    for job in jobs {
        icvs.push(match &job.sa.as_ref().kind {
            Kind::Gmac(key) => {
                let high = high_bytes(job.high);
                let packet = &muted[job.start..job.start + job.length];
                manager.gmac(key, &job.iv, [packet, high.as_ref().map_or(&[], <[u8; 4]>::as_slice), &[]])
            }
            _ => [0; 16],
        });
    }
    if count != 0 {
        let mut batch = Batch::beside(manager, muted, &mut [], count, copies);
        let hashed = |kind: &Kind| matches!(kind, Kind::Block(_));
        for job in jobs {
            if let Kind::Block(keys) = &job.sa.as_ref().kind {
                let (start, length, high) = (job.start, job.length, high_bytes(job.high));
                batch.push(keys, &BlockJob { start, length, text: 0, text_length: 0, target: 0, high });
            }
        }
        let Some(tags) = batch.run() else {
            icvs.clear();
            return false;
        };
        let blocks = jobs.iter().zip(icvs.iter_mut()).filter(|(job, _)| hashed(&job.sa.as_ref().kind));
        for ((_, icv), tag) in blocks.zip(tags) {
            *icv = *tag;
        }
    }
    manager.clear();
    true
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::os::unix::fs::FileExt;

    use super::*;

    /// What is searched for is only ever written down combined with this.
    const MASK: u32 = 0x9d3c_51a7;

    const SUITES: &[(&str, usize, &str, usize, usize)] = &[
        ("aes-gcm-128", 20, "", 0, 16),
        ("aes-gcm-192", 28, "", 0, 12),
        ("aes-gcm-256", 36, "", 0, 8),
        ("aes-cbc-128", 16, "hmac-sha1-96", 20, 12),
        ("aes-cbc-192", 24, "hmac-md5-96", 16, 12),
        ("aes-cbc-256", 32, "hmac-sha256-128", 32, 16),
        ("des-cbc", 8, "hmac-sha1-96", 20, 12),
        ("3des-cbc", 24, "hmac-md5-96", 16, 12),
        ("null", 0, "aes-gmac-256", 36, 16),
        ("null", 0, "hmac-sha256-128", 32, 12),
    ];

    /// Key material in groups of four words, masked.
    type Groups = Vec<[u32; 4]>;

    fn masked(word: &[u8]) -> u32 {
        u32::from_le_bytes(word.try_into().expect("four bytes")) ^ MASK
    }

    /// Groups without a word that stands in many places anyway; no pointers, no padding, no fill.
    fn groups(bytes: &[u8], found: &mut Groups) {
        for group in bytes.chunks_exact(16) {
            if group.chunks_exact(4).all(|word| word.iter().filter(|byte| **byte == 0).count() < 2) {
                found.push(std::array::from_fn(|at| masked(&group[4 * at..4 * at + 4])));
            }
        }
    }

    /// Those of the words that stand anywhere in memory that this process can write.
    fn search(groups: &Groups) -> HashSet<u32> {
        let wanted: HashSet<u32> = groups.iter().flatten().copied().collect();
        let mut found = HashSet::new();
        let memory = std::fs::File::open("/proc/self/mem").expect("own memory");
        let mut window = vec![0; 1 << 20];
        let own = window.as_ptr() as u64..window.as_ptr() as u64 + window.len() as u64;
        for line in std::fs::read_to_string("/proc/self/maps").expect("maps").lines() {
            let mut fields = line.split_ascii_whitespace();
            let (range, rights) = (fields.next().expect("a range"), fields.next().expect("rights"));
            if !rights.starts_with("rw") {
                continue;
            }
            let (from, to) = range.split_once('-').expect("a range");
            let bound = |text| u64::from_str_radix(text, 16).expect("an address");
            let (mut at, end) = (bound(from), bound(to));
            while at < end {
                let length = usize::try_from(end - at).expect("an address").min(window.len());
                // Other tests unmap memory meanwhile.
                let read = memory.read_at(&mut window[..length], at).unwrap_or(0);
                for (index, word) in window[..read].chunks_exact(4).enumerate() {
                    let masked = masked(word);
                    if wanted.contains(&masked) && !own.contains(&(at + 4 * index as u64)) {
                        found.insert(masked);
                    }
                }
                at += length as u64;
            }
        }
        wipe(&mut window);
        found
    }

    /// Groups of which every word was found, wherever: lanes of vectors keep the words of a key apart.
    fn present(groups: &Groups, found: &HashSet<u32>) -> usize {
        groups.iter().filter(|group| group.iter().all(|word| found.contains(word))).count()
    }

    fn material(transform: &Transform) -> &[u8] {
        match &transform.kind {
            Kind::Gcm(key) | Kind::Gmac(key) => key.memory(),
            Kind::Block(keys) => keys.memory(),
            Kind::Plain => &[],
        }
    }

    #[test]
    fn keys_of_dropped_sas_are_nowhere_in_the_memory_of_the_process() {
        let mut manager = Manager::new().expect("a manager");
        let mut sas = Vec::new();
        let mut wanted = Groups::new();
        for (encryption, key, integrity, integrity_key, icv_length) in SUITES {
            let mut keys = vec![0; key + integrity_key];
            // Not by way of the manager, which keeps blocks of what it gives.
            assert!(crate::mb::system_random(&mut keys));
            let (key, integrity_key) = keys.split_at(*key);
            groups(key, &mut wanted);
            groups(integrity_key, &mut wanted);
            let all = Keys { encryption, encryption_key: key, integrity, integrity_key, icv_length: *icv_length };
            let counter = encryption.contains("gcm") || integrity.contains("gmac");
            let ivs = counter.then(|| Arc::new(CounterIvs::new(1, 0, false)));
            let made = Sealer::new(&mut manager, &all, ivs).and_then(|sealer| {
                let opener = Opener::new(&mut manager, &all)?;
                groups(material(&sealer.transform), &mut wanted);
                groups(material(&opener.transform), &mut wanted);
                Ok((sealer, opener))
            });
            wipe(&mut keys);
            match made {
                Ok(sa) => sas.push(sa),
                Err(error) => {
                    assert!(error == KeysError::Algorithm && !manager.has_des() && encryption.contains("des"))
                }
            }
        }
        for copies in [1, 5, 45] {
            work(&mut manager, &sas, copies);
        }
        let expanded = |groups: &Groups| groups.len() > 10 * SUITES.len();
        assert!(expanded(&wanted));
        // Every expanded key is found, and the keys themselves where AES begins its round keys with them.
        let before = present(&wanted, &search(&wanted));
        assert!(before > wanted.len() * 9 / 10, "{before} of {}", wanted.len());
        drop(sas);
        assert_eq!(present(&wanted, &search(&wanted)), 0);
    }

    /// Seal and open packets of all SAs in one burst.
    fn work(manager: &mut Manager, sas: &[(Sealer, Opener)], copies: usize) {
        let mut bytes = Vec::new();
        let (mut seals, mut opens) = (Vec::new(), Vec::new());
        for (sealer, opener) in std::iter::repeat_n(sas, copies).flatten() {
            let start = bytes.len();
            bytes.resize(start + 8 + sealer.iv_length() + 240 + sealer.icv_length(), 7);
            seals.push(EspSeal { start, end: bytes.len(), high: Some(1), sealer });
            opens.push(EspOpen { start, end: bytes.len(), high: Some(1), text: start, opener });
        }
        assert!(seal_esp(manager, &mut bytes, &seals));
        let mut plain = vec![0; bytes.len()];
        let mut good = Vec::new();
        open_esp(manager, &bytes, &mut plain, &opens, &mut good);
        assert!(good.iter().all(|good| *good));
    }
}
