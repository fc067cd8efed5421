//! What an SA lives through: numbers, window, counters, IVs. One object each, shared with Python.
//!
//! Law: the same answers as `vnic.ipsec.sequence`, `vnic.ipsec.replay` and `vnic.miniport.ciphers.CounterIvs`. Every
//! field is atomic with relaxed order: it makes reading from another thread defined, not concurrent bursts over one
//! SA correct; those the daemon never runs (one event loop). With one writer a load and a store change a field as well
//! as a locked instruction does, at a fraction of its time.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The one owner of an outbound SA's sequence numbers (RFC 4303 §3.3.3).
#[derive(Debug)]
pub struct Sequence {
    last: AtomicU64,
    limit: AtomicU64,
    stop: AtomicU64,
}

/// Up to which number an inbound SA counts, and what an SA has counted.
#[derive(Debug)]
pub struct Tally {
    /// Packets sealed, or verified and passed on.
    pub packets: AtomicU64,
    /// Bytes of the IP packets inside the protection.
    pub bytes: AtomicU64,
    /// Packets that may be counted before somebody looks at the SA; inbound only.
    pub stop: AtomicU64,
    /// `now` of the last packet, seconds as bits of an f64; 0 before the first.
    use_time: AtomicU64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            stop: AtomicU64::new(u64::MAX),
            use_time: AtomicU64::new(0),
        }
    }
}

impl Tally {
    /// Count packets.
    pub fn count(&self, packets: u64, bytes: u64, now: f64) {
        self.packets.store(self.packets.load(Relaxed).wrapping_add(packets), Relaxed);
        self.bytes.store(self.bytes.load(Relaxed).wrapping_add(bytes), Relaxed);
        self.use_time.store(now.to_bits(), Relaxed);
    }

    /// `now` of the last packet.
    pub fn use_time(&self) -> f64 {
        f64::from_bits(self.use_time.load(Relaxed))
    }

    /// Set `now` of the last packet.
    pub fn set_use_time(&self, now: f64) {
        self.use_time.store(now.to_bits(), Relaxed);
    }
}

impl Sequence {
    /// Numbers after `last`, to `limit`; `stop` as `vnic.ipsec.sequence` says it.
    pub fn new(last: u64, limit: u64, stop: u64) -> Self {
        Self { last: AtomicU64::new(last), limit: AtomicU64::new(limit), stop: AtomicU64::new(stop) }
    }

    /// Take `count` consecutive numbers and give the first; None, and nothing taken, when they would pass the stop.
    pub fn take(&self, count: u64) -> Option<u64> {
        let last = self.last.load(Relaxed);
        let wanted = last.checked_add(count)?;
        if wanted > self.stop.load(Relaxed) {
            return None;
        }
        self.last.store(wanted, Relaxed);
        Some(last + 1)
    }

    /// The last number handed out.
    pub fn last(&self) -> u64 {
        self.last.load(Relaxed)
    }

    /// Set the last number handed out.
    pub fn set_last(&self, last: u64) {
        self.last.store(last, Relaxed);
    }

    /// The last number that may ever be used.
    pub fn limit(&self) -> u64 {
        self.limit.load(Relaxed)
    }

    /// Set the last number that may ever be used.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Relaxed);
    }

    /// The last number that may be taken before somebody looks at the SA.
    pub fn stop(&self) -> u64 {
        self.stop.load(Relaxed)
    }

    /// Set it.
    pub fn set_stop(&self, stop: u64) {
        self.stop.store(stop, Relaxed);
    }
}

/// What the window says of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayVerdict {
    /// It has not been seen.
    New,
    /// It has been seen.
    Duplicate,
    /// It is below the window, or 0.
    TooOld,
}

/// The anti-replay window of one inbound SA (RFC 4303 §3.4.3, RFC 6479). The ring is made with the first number.
#[derive(Debug)]
pub struct Window {
    bits: u64,
    top: AtomicU64,
    needed: AtomicU64,
    ring: OnceLock<Box<[AtomicU64]>>,
}

impl Window {
    /// A window of `bits` packets (0: no check) that has, for all we know, seen everything up to `top`.
    pub fn new(bits: u64, top: u64) -> Self {
        let window = Self { bits, top: AtomicU64::new(top), needed: AtomicU64::new(0), ring: OnceLock::new() };
        if top != 0 {
            let ring = window.ring();
            for word in ring {
                word.store(u64::MAX, Relaxed);
            }
            let low = top & 63;
            let seen = if low == 63 { u64::MAX } else { (1 << (low + 1)) - 1 };
            ring[window.place(top >> 6)].store(seen, Relaxed);
        }
        window
    }

    fn words(&self) -> u64 {
        self.bits.div_ceil(64) + 1
    }

    fn place(&self, word: u64) -> usize {
        usize::try_from(word % self.words()).expect("a window has at most 1,025 words")
    }

    fn ring(&self) -> &[AtomicU64] {
        self.ring.get_or_init(|| (0..self.words()).map(|_| AtomicU64::new(0)).collect())
    }

    /// Packets the window remembers.
    pub fn bits(&self) -> u64 {
        self.bits
    }

    /// Highest number advanced to.
    pub fn top(&self) -> u64 {
        self.top.load(Relaxed)
    }

    /// Packets of the smallest window that would have taken every late number so far.
    pub fn needed(&self) -> u64 {
        self.needed.load(Relaxed)
    }

    /// Say whether a number is new. Changes nothing.
    pub fn check(&self, number: u64) -> ReplayVerdict {
        let top = self.top();
        if number > top || self.bits == 0 {
            return ReplayVerdict::New;
        }
        if number == 0 || top - number >= self.bits {
            return ReplayVerdict::TooOld;
        }
        let seen =
            self.ring.get().is_some_and(|ring| ring[self.place(number >> 6)].load(Relaxed) >> (number & 63) & 1 == 1);
        if seen { ReplayVerdict::Duplicate } else { ReplayVerdict::New }
    }

    /// Remember an authenticated number that `check` called new.
    pub fn advance(&self, number: u64) {
        let ring = self.ring();
        let top = self.top();
        let index = number >> 6;
        if number > top {
            let gap = index - (top >> 6);
            if gap >= self.words() {
                for word in ring {
                    word.store(0, Relaxed);
                }
            } else {
                for word in index - gap + 1..=index {
                    ring[self.place(word)].store(0, Relaxed);
                }
            }
            self.top.store(number, Relaxed);
        } else {
            self.note_late(number);
        }
        let word = &ring[self.place(index)];
        word.store(word.load(Relaxed) | 1 << (number & 63), Relaxed);
    }

    /// Reckon with an authenticated number at or below `top` that is not a duplicate, taken or too old.
    pub fn note_late(&self, number: u64) {
        self.needed.store(self.needed().max(self.top() - number + 1), Relaxed);
    }

    /// Whether number `number`, at or below `top`, is marked in the ring.
    pub fn is_marked(&self, number: u64) -> bool {
        self.ring.get().is_some_and(|ring| ring[self.place(number >> 6)].load(Relaxed) >> (number & 63) & 1 == 1)
    }
}

/// Give the 64-bit number with lower half `low` that is closest to `highest` (`vnic.ipsec.sequence.infer_extended`).
pub fn infer_extended(low: u32, highest: u64) -> u64 {
    const HALF: i128 = 1 << 31;
    let candidate = highest & !0xffff_ffff | u64::from(low);
    let distance = i128::from(candidate) - i128::from(highest);
    if distance > HALF && candidate > 0xffff_ffff {
        candidate - (1 << 32)
    } else if distance < -HALF && candidate <= u64::MAX - (1 << 32) {
        candidate + (1 << 32)
    } else {
        candidate
    }
}

/// The IVs of one counter-mode key: 64-bit numbers from `start` on, each given once (RFC 4106 §3.1).
#[derive(Debug)]
pub struct CounterIvs {
    start: u64,
    given: AtomicU64,
    used_up: std::sync::atomic::AtomicBool,
}

impl CounterIvs {
    /// IVs from `start + given` on; `used_up`: none is left.
    pub fn new(start: u64, given: u64, used_up: bool) -> Self {
        Self { start, given: AtomicU64::new(given), used_up: used_up.into() }
    }

    /// Give the next IV, or None when all 2^64 were given.
    pub fn take(&self) -> Option<[u8; 8]> {
        if self.used_up.load(Relaxed) {
            return None;
        }
        let given = self.given.load(Relaxed);
        match given.checked_add(1) {
            Some(next) => self.given.store(next, Relaxed),
            None => self.used_up.store(true, Relaxed),
        }
        Some(self.start.wrapping_add(given).to_be_bytes())
    }

    /// `start`, and how many were given as a 65-bit number.
    pub fn position(&self) -> (u64, u128) {
        let given = self.given.load(Relaxed);
        (self.start, u128::from(given) + u128::from(self.used_up.load(Relaxed)))
    }
}
