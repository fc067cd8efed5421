//! One SA's cipher and integrity, over whole bursts.
//!
//! Law: touches only what a job names; finds no headers, checks no padding, knows no sequence windows. Names of
//! algorithms are those of `vnic.ipsec.algorithms`.
//!
//! ```text
//! start            text                                  stop        end
//! | SPI 4 | seq 4 | IV | payload | pad | pad len | next | ICV        |
//! ```

use std::sync::Arc;

use crate::mb::Manager;
use crate::state::CounterIvs;

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
    /// Bytes of the ICV.
    pub icv_length: usize,
}

/// Why an SA cannot be worked on here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeysError {
    /// The algorithm, or the pair, is not known here.
    Algorithm,
    /// A key has a length that its algorithm does not take.
    KeyLength,
    /// The ICV has a length that its algorithm does not take.
    IcvLength,
    /// There is no locked memory left for keys (RLIMIT_MEMLOCK).
    Memory,
}

/// The outbound half of an SA's cryptography.
pub struct Sealer {}

/// The inbound half of an SA's cryptography.
pub struct Opener {}

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
    /// Where in the destination the plain text, with padding and trailer, goes.
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
    /// The SA.
    pub sa: &'a T,
}

impl Sealer {
    /// Expand keys.
    ///
    /// `ivs` is there for counter modes, and only for them; block ciphers make random IVs.
    pub fn new(_manager: &mut Manager, _keys: &Keys, _ivs: Option<Arc<CounterIvs>>) -> Result<Self, KeysError> {
        Err(KeysError::Algorithm)
    }

    /// Bytes of explicit IV.
    pub fn iv_length(&self) -> usize {
        0
    }

    /// Bytes of the ICV.
    pub fn icv_length(&self) -> usize {
        0
    }

    /// Payload, padding and the two bytes of the trailer are together a multiple of this (4, 8 or 16).
    pub fn alignment(&self) -> usize {
        4
    }

    /// The next IV, for AH with AES-GMAC, which has it in front of its ICV; None: used up, or it has none.
    pub fn take_iv(&self) -> Option<[u8; 8]> {
        None
    }
}

impl Opener {
    /// Expand keys.
    pub fn new(_manager: &mut Manager, _keys: &Keys) -> Result<Self, KeysError> {
        Err(KeysError::Algorithm)
    }

    /// Bytes of explicit IV.
    pub fn iv_length(&self) -> usize {
        0
    }

    /// Bytes of the ICV.
    pub fn icv_length(&self) -> usize {
        0
    }

    /// As [`Sealer::alignment`].
    pub fn alignment(&self) -> usize {
        4
    }
}

/// Seal a burst in place: IV, cipher text and ICV. Gives false, with nothing sealed, when a job does not fit its SA or
/// a counter-mode key has no IVs left for all of them.
pub fn seal_esp(_manager: &mut Manager, _bytes: &mut [u8], _jobs: &[EspSeal]) -> bool {
    false
}

/// Open a burst beside the packets: `good` gets, for each job, whether its ICV holds. Plain text of a packet whose ICV
/// does not hold is wiped.
pub fn open_esp(_manager: &mut Manager, _source: &[u8], _plain: &mut [u8], jobs: &[EspOpen], good: &mut Vec<bool>) {
    good.clear();
    good.resize(jobs.len(), false);
}

/// Compute the ICVs of muted AH packets, 16 bytes each of which the first `icv_length` count, into `icvs`.
pub fn ah_icvs<T: AsRef<AhKeys>>(
    _manager: &mut Manager,
    _muted: &[u8],
    _jobs: &[AhJob<T>],
    icvs: &mut Vec<[u8; 16]>,
) {
    icvs.clear();
}

/// What sealing and opening AH have in common.
pub struct AhKeys {}
