//! intel-ipsec-mb: the multi-buffer manager.
//!
//! Law: all calls into the C library, and all `unsafe` that they need, are here and in [`crate::keys`]. What this
//! module offers to others checks every offset: a job that does not lie in its memory ends the process's turn.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::marker::PhantomData;

use crate::keys::{KeyMemory, Pages};

/// Bytes of a random block.
const RANDOM: usize = 4096;

/// Bytes of a tag as the library gives it.
pub(crate) const TAG: usize = 16;

/// Bytes that one multi-buffer job may cipher or hash.
pub(crate) const LONGEST_JOB: usize = 65_520;

/// One multi-buffer job; as `struct vnic_job` in shim/mb.c.
#[repr(C)]
struct RawJob {
    source: *const u8,
    target: *mut u8,
    iv: *const u8,
    cipher_key: *const c_void,
    inner: *const u8,
    outer: *const u8,
    tag: *mut u8,
    cipher_start: u32,
    cipher_length: u32,
    hash_length: u32,
    cipher: u8,
    hash: u8,
    open: u8,
    done: u8,
}

unsafe extern "C" {
    fn vnic_mb_size() -> usize;
    fn vnic_mb_version() -> *const c_char;
    fn vnic_mb_init(memory: *mut u8, limit: c_uint) -> c_int;
    fn vnic_mb_arch(memory: *mut u8) -> c_uint;
    fn vnic_mb_wipe(memory: *mut u8);
    fn vnic_mb_run(memory: *mut u8, jobs: *mut RawJob, count: usize);
    fn vnic_gcm_key_size() -> usize;
    fn vnic_gcm_expand(memory: *mut u8, bits: c_uint, key: *const u8, expanded: *mut u8);
    fn vnic_aes_expand(memory: *mut u8, bits: c_uint, open: c_int, key: *const u8, expanded: *mut u8);
    fn vnic_des_key_size(keys: c_uint) -> usize;
    fn vnic_des_expand(memory: *mut u8, keys: c_uint, key: *const u8, expanded: *mut u8);
    fn vnic_hmac_expand(memory: *mut u8, hash: c_uint, key: *const u8, length: usize, inner: *mut u8, outer: *mut u8);
    fn vnic_gcm(
        memory: *mut u8,
        bits: c_uint,
        open: c_int,
        key: *const u8,
        salt: *const u8,
        iv: *const u8,
        header: *const u8,
        high: *const u8,
        source: *const u8,
        target: *mut u8,
        length: u64,
        tag: *mut u8,
        tag_length: u64,
    );
    fn vnic_gmac(
        memory: *mut u8,
        bits: c_uint,
        key: *const u8,
        salt: *const u8,
        iv: *const u8,
        pieces: *const *const u8,
        lengths: *const u64,
        tag: *mut u8,
    );
}

/// A code path of the library; the value is that of its `IMB_ARCH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Arch {
    /// 128-bit vectors, the oldest.
    Sse = 2,
    /// 256-bit vectors.
    Avx2 = 4,
    /// 512-bit vectors.
    Avx512 = 5,
}

/// Why there is no manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManagerError {
    /// The CPU lacks AES, carry-less multiplication or SSE 4.2, or what was asked for.
    Cpu,
    /// Its memory, some 512 KiB, cannot be locked (RLIMIT_MEMLOCK).
    Memory,
    /// The library failed its own test.
    SelfTest,
}

impl std::fmt::Display for ManagerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cpu => "the CPU lacks AES-NI, PCLMULQDQ or SSE 4.2",
            Self::Memory => "memory for keys cannot be locked: raise RLIMIT_MEMLOCK",
            Self::SelfTest => "intel-ipsec-mb failed its self-test",
        })
    }
}

impl std::error::Error for ManagerError {}

/// Fills a slice with unpredictable bytes; false when there are none.
pub type RandomSource = Box<dyn FnMut(&mut [u8]) -> bool + Send>;

/// Fill from getrandom(2).
pub(crate) fn system_random(bytes: &mut [u8]) -> bool {
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        // SAFETY: pointer and length are those of a slice that is borrowed exclusively.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => filled += got,
            Err(_) if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}

/// A multi-buffer manager for the CPU this runs on. One per card; never shared between threads.
///
/// The library's state, where it keeps parts of keys while it works, is in locked memory like the keys.
pub struct Manager {
    memory: Pages,
    arch: u32,
    random: RandomSource,
    block: Box<[u8; RANDOM]>,
    used: usize,
    jobs: Vec<RawJob>,
    tags: Vec<[u8; TAG]>,
    copies: Vec<u8>,
}

// SAFETY: the pointers in `jobs` are written and used while one `Batch` lives, never after it; the rest is plain memory
// that belongs to this value. It is not Sync: the library changes its state even to look at it.
unsafe impl Send for Manager {}

impl Manager {
    /// A manager that uses the best code path for this CPU, and random numbers of the system.
    pub fn new() -> Result<Self, ManagerError> {
        Self::with(None, Box::new(system_random))
    }

    /// A manager with a certain code path and source of random numbers; for tests.
    pub fn with(arch: Option<Arch>, random: RandomSource) -> Result<Self, ManagerError> {
        // SAFETY: a function without arguments that reads a constant of the library.
        let memory = Pages::new(unsafe { vnic_mb_size() }).ok_or(ManagerError::Memory)?;
        // SAFETY: the pages are zero, exclusive, aligned to more than 64 bytes and as long as the shim asks for.
        let failure = unsafe { vnic_mb_init(memory.as_ptr(), arch.map_or(0, |arch| arch as u32)) };
        match failure {
            0 => {}
            1 => return Err(ManagerError::Cpu),
            _ => return Err(ManagerError::SelfTest),
        }
        // SAFETY: the memory was initialised above.
        let arch = unsafe { vnic_mb_arch(memory.as_ptr()) };
        Ok(Self {
            memory,
            arch,
            random,
            block: Box::new([0; RANDOM]),
            used: RANDOM,
            jobs: Vec::new(),
            tags: Vec::new(),
            copies: Vec::new(),
        })
    }

    /// The name of the code path, as a person reads it.
    pub fn arch_name(&self) -> &'static str {
        match self.arch {
            2 => "SSE",
            3 => "AVX",
            4 => "AVX2",
            5 => "AVX512",
            _ => "other",
        }
    }

    /// The code path; keys work only with managers that have the same one.
    pub(crate) fn arch(&self) -> u32 {
        self.arch
    }

    /// Whether DES is fast enough to be worth it: without 512-bit vectors the library, which reads no tables by secrets,
    /// takes milliseconds for a packet.
    pub(crate) fn has_des(&self) -> bool {
        self.arch == Arch::Avx512 as u32
    }

    /// The version of the library.
    pub fn version() -> &'static str {
        // SAFETY: the library gives a string that is never freed.
        unsafe { CStr::from_ptr(vnic_mb_version()) }.to_str().unwrap_or("unknown")
    }

    /// Fill at most 4096 bytes that were never given before; false: the source has failed.
    pub(crate) fn random(&mut self, bytes: &mut [u8]) -> bool {
        if self.used + bytes.len() > RANDOM {
            if !(self.random)(&mut self.block[..]) {
                return false;
            }
            self.used = 0;
        }
        let end = self.used + bytes.len();
        bytes.copy_from_slice(&self.block[self.used..end]);
        self.used = end;
        true
    }

    /// Forget what GCM and GMAC left in the work area; at the end of every burst.
    pub(crate) fn clear(&mut self) {
        // SAFETY: the memory was initialised in `with`.
        unsafe { vnic_mb_wipe(self.memory.as_ptr()) }
    }

    /// Seal `bytes[text..stop]` in place, with its tag of `tag` bytes behind it; `bytes[start..]` is the ESP header.
    pub(crate) fn gcm_seal(&mut self, key: &GcmKey, bytes: &mut [u8], place: Place, high: Option<[u8; 4]>) {
        place.check(bytes.len());
        let base = bytes.as_mut_ptr();
        // SAFETY: `check` has shown that header, IV, text and tag lie in `bytes`, one behind the other.
        unsafe {
            let text = base.add(place.start + 16);
            let tag = base.add(place.stop);
            self.gcm(key, 0, base.add(place.start), high, text, text, place, tag);
        }
    }

    /// Open what lies in `source` into `plain`, which is as long as the text; whether the tag holds. Where it does not,
    /// `plain` has to be wiped.
    pub(crate) fn gcm_open(
        &mut self,
        key: &GcmKey,
        source: &[u8],
        place: Place,
        high: Option<[u8; 4]>,
        plain: &mut [u8],
    ) -> bool {
        place.check(source.len());
        assert_eq!(plain.len(), place.stop - place.start - 16);
        let mut tag = [0; TAG];
        // SAFETY: `check` has shown that header, IV and text lie in `source`; `plain` takes the text; the tag is not
        // longer than the room for it.
        unsafe {
            let base = source.as_ptr();
            let text = base.add(place.start + 16);
            self.gcm(key, 1, base.add(place.start), high, text, plain.as_mut_ptr(), place, tag.as_mut_ptr());
        }
        crate::keys::equal(&tag[..place.tag], &source[place.stop..place.stop + place.tag])
    }

    /// # Safety
    ///
    /// `header` has 16 bytes, `source` and `target` as many as the text of `place`, `tag` has `place.tag`.
    #[allow(clippy::too_many_arguments)]
    unsafe fn gcm(
        &mut self,
        key: &GcmKey,
        open: c_int,
        header: *const u8,
        high: Option<[u8; 4]>,
        source: *const u8,
        target: *mut u8,
        place: Place,
        tag: *mut u8,
    ) {
        let high = high.as_ref().map_or(std::ptr::null(), |high| high.as_ptr());
        // SAFETY: the caller answers for the packet; the key is as long as the library says, and the salt is behind it.
        unsafe {
            vnic_gcm(
                self.memory.as_ptr(),
                key.bits,
                open,
                key.memory.bytes().as_ptr(),
                key.salt().as_ptr(),
                header.add(8),
                header,
                high,
                source,
                target,
                (place.stop - place.start - 16) as u64,
                tag,
                place.tag as u64,
            );
        }
    }

    /// AES-GMAC over three pieces, one after the other.
    pub(crate) fn gmac(&mut self, key: &GcmKey, iv: &[u8; 8], pieces: [&[u8]; 3]) -> [u8; TAG] {
        let mut tag = [0; TAG];
        let pointers = pieces.map(<[u8]>::as_ptr);
        let lengths = pieces.map(|piece| piece.len() as u64);
        // SAFETY: pointers and lengths are those of slices; key, salt and tag are as in `gcm`.
        unsafe {
            vnic_gmac(
                self.memory.as_ptr(),
                key.bits,
                key.memory.bytes().as_ptr(),
                key.salt().as_ptr(),
                iv.as_ptr(),
                pointers.as_ptr(),
                lengths.as_ptr(),
                tag.as_mut_ptr(),
            );
        }
        tag
    }
}

/// Where a GCM packet lies.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Offset of the ESP header; the IV is 8, the text 16 bytes behind it.
    pub start: usize,
    /// Offset behind the text, where the tag is.
    pub stop: usize,
    /// Bytes of the tag.
    pub tag: usize,
}

impl Place {
    fn check(&self, length: usize) {
        assert!(self.tag <= TAG && self.start + 16 <= self.stop && self.stop + self.tag <= length);
    }
}

/// An AES key for GCM and GMAC, and its salt.
pub(crate) struct GcmKey {
    memory: KeyMemory,
    bits: u32,
}

impl GcmKey {
    /// Expand a key of 16, 24 or 32 bytes with four bytes of salt behind; None: no memory.
    pub(crate) fn new(manager: &mut Manager, key_and_salt: &[u8]) -> Option<Self> {
        let (key, salt) = key_and_salt.split_at(key_and_salt.len() - 4);
        let bits = match key.len() {
            16 => 128,
            24 => 192,
            32 => 256,
            length => unreachable!("an AES key of {length} bytes"),
        };
        // SAFETY: a function without arguments that gives a constant.
        let size = unsafe { vnic_gcm_key_size() };
        let mut memory = KeyMemory::new(size + 4)?;
        memory.bytes_mut()[size..].copy_from_slice(salt);
        // SAFETY: the key is as long as `bits` says, and the memory takes the expanded key.
        unsafe { vnic_gcm_expand(manager.memory.as_ptr(), bits, key.as_ptr(), memory.bytes_mut().as_mut_ptr()) }
        Some(Self { memory, bits })
    }

    #[cfg(test)]
    pub(crate) fn memory(&self) -> &[u8] {
        self.memory.bytes()
    }

    fn salt(&self) -> &[u8] {
        let bytes = self.memory.bytes();
        &bytes[bytes.len() - 4..]
    }
}

/// A block cipher in CBC mode; the value is the shim's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cipher {
    /// None at all.
    None = 0,
    /// DES.
    Des = 1,
    /// Triple DES.
    TripleDes = 2,
    /// AES.
    Aes128 = 3,
    /// AES.
    Aes192 = 4,
    /// AES.
    Aes256 = 5,
}

impl Cipher {
    /// Bytes of its block, which are those of its IV; 0 without a cipher.
    pub(crate) fn block(self) -> usize {
        match self {
            Self::None => 0,
            Self::Des | Self::TripleDes => 8,
            _ => 16,
        }
    }

    /// Bytes of its key.
    pub(crate) fn key_length(self) -> usize {
        match self {
            Self::None => 0,
            Self::Des => 8,
            Self::TripleDes | Self::Aes192 => 24,
            Self::Aes128 => 16,
            Self::Aes256 => 32,
        }
    }
}

/// A hash for HMAC; the value is the shim's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Hash {
    /// None at all.
    None = 0,
    /// RFC 2403.
    Md5 = 1,
    /// RFC 2404.
    Sha1 = 2,
    /// RFC 4868.
    Sha256 = 3,
}

/// Keys of a block cipher and an HMAC, either of which may be missing.
pub(crate) struct BlockKeys {
    memory: KeyMemory,
    /// Where the HMAC's two states begin, 32 bytes each; the cipher's schedule is at 0.
    states: usize,
    cipher: Cipher,
    hash: Hash,
    open: bool,
}

impl BlockKeys {
    /// Expand keys, whose lengths are right (that of an HMAC at most 64), for one direction; None: no memory.
    pub(crate) fn new(
        manager: &mut Manager,
        cipher: Cipher,
        cipher_key: &[u8],
        hash: Hash,
        hash_key: &[u8],
        open: bool,
    ) -> Option<Self> {
        assert!(cipher_key.len() == cipher.key_length() && hash_key.len() <= 64);
        let des_keys: c_uint = if cipher == Cipher::TripleDes { 3 } else { 1 };
        let schedule = match cipher.block() {
            0 => 0,
            // SAFETY: a function of a number that gives another.
            8 => unsafe { vnic_des_key_size(des_keys) },
            _ => 16 * 15,
        };
        let states = schedule.next_multiple_of(16);
        let mut memory = KeyMemory::new(states + 64)?;
        let base = memory.bytes_mut().as_mut_ptr();
        // SAFETY: the memory takes the schedule, and 32 bytes for each of the two states, aligned to 16; the keys are as
        // long as the algorithms ask for; a piece never moves, so the pointers in a DES schedule stay good.
        unsafe {
            let work = manager.memory.as_ptr();
            match cipher.block() {
                0 => {}
                8 => vnic_des_expand(work, des_keys, cipher_key.as_ptr(), base),
                _ => {
                    let bits = 8 * cipher.key_length() as c_uint;
                    vnic_aes_expand(work, bits, c_int::from(open), cipher_key.as_ptr(), base);
                }
            }
            if hash != Hash::None {
                let (inner, outer) = (base.add(states), base.add(states + 32));
                vnic_hmac_expand(work, hash as c_uint, hash_key.as_ptr(), hash_key.len(), inner, outer);
            }
        }
        Some(Self { memory, states, cipher, hash, open })
    }

    #[cfg(test)]
    pub(crate) fn memory(&self) -> &[u8] {
        self.memory.bytes()
    }

    pub(crate) fn cipher(&self) -> Cipher {
        self.cipher
    }

    pub(crate) fn hash(&self) -> Hash {
        self.hash
    }
}

/// One multi-buffer job. Offsets of the packet are relative to `start`.
pub(crate) struct BlockJob {
    /// Offset of the packet in its arena, where hashing begins.
    pub start: usize,
    /// Bytes that are hashed, without those of `high`; the cipher's too lie among them.
    pub length: usize,
    /// Where the text begins; the IV is in front of it.
    pub text: usize,
    /// Bytes that are ciphered.
    pub text_length: usize,
    /// Offset of the result in the other arena, for a batch that has one.
    pub target: usize,
    /// Hashed behind the packet.
    pub high: Option<[u8; 4]>,
}

/// Jobs over one arena, or from one arena to another, that the library does together.
pub(crate) struct Batch<'m, 'a> {
    manager: &'m mut Manager,
    source: *const u8,
    source_length: usize,
    target: *mut u8,
    target_length: usize,
    in_place: bool,
    _arenas: PhantomData<&'a mut [u8]>,
}

impl<'m, 'a> Batch<'m, 'a> {
    /// At most `jobs` jobs, in place. The upper half of a number is written behind the packet.
    pub(crate) fn in_place(manager: &'m mut Manager, bytes: &'a mut [u8], jobs: usize) -> Self {
        let (pointer, length) = (bytes.as_mut_ptr(), bytes.len());
        Self::begin(manager, pointer, length, pointer, length, true, jobs, 0)
    }

    /// At most `jobs` jobs, from `source`, which is not changed, to `target`. `copies`: the bytes of all packets that
    /// have an upper half behind them, with it.
    pub(crate) fn beside(
        manager: &'m mut Manager,
        source: &'a [u8],
        target: &'a mut [u8],
        jobs: usize,
        copies: usize,
    ) -> Self {
        let (pointer, length) = (target.as_mut_ptr(), target.len());
        Self::begin(manager, source.as_ptr(), source.len(), pointer, length, false, jobs, copies)
    }

    #[allow(clippy::too_many_arguments)]
    fn begin(
        manager: &'m mut Manager,
        source: *const u8,
        source_length: usize,
        target: *mut u8,
        target_length: usize,
        in_place: bool,
        jobs: usize,
        copies: usize,
    ) -> Self {
        manager.jobs.clear();
        manager.tags.clear();
        // Pointers into both are taken while jobs are added, so neither may grow then.
        manager.tags.reserve(jobs);
        manager.copies.clear();
        manager.copies.reserve(copies);
        Self { manager, source, source_length, target, target_length, in_place, _arenas: PhantomData }
    }

    /// Add a job.
    pub(crate) fn push(&mut self, keys: &'a BlockKeys, job: &BlockJob) {
        let manager = &mut *self.manager;
        let block = keys.cipher.block();
        let suffix = if job.high.is_some() { 4 } else { 0 };
        assert!(job.start.checked_add(job.length).is_some_and(|end| end <= self.source_length));
        assert!(job.length + suffix <= LONGEST_JOB);
        assert!(manager.tags.len() < manager.tags.capacity());
        // SAFETY: the first assertion above.
        let mut source = unsafe { self.source.add(job.start) };
        let mut target = self.target;
        if block != 0 {
            assert!(block <= job.text && job.text + job.text_length <= job.length && job.text_length % block == 0);
            let at = if self.in_place { job.start + job.text } else { job.target };
            assert!(at.checked_add(job.text_length).is_some_and(|end| end <= self.target_length));
            // SAFETY: the assertion above.
            target = unsafe { self.target.add(at) };
        }
        if let Some(high) = job.high {
            if self.in_place {
                assert!(job.start + job.length + 4 <= self.target_length);
                // SAFETY: the assertion above; in place, `target` is the arena of the packet.
                unsafe { self.target.add(job.start + job.length).cast::<[u8; 4]>().write_unaligned(high) }
            } else {
                let at = manager.copies.len();
                assert!(at + job.length + 4 <= manager.copies.capacity());
                // SAFETY: the packet lies in the source, which is only borrowed shared here.
                manager.copies.extend_from_slice(unsafe { std::slice::from_raw_parts(source, job.length) });
                manager.copies.extend_from_slice(&high);
                // SAFETY: the copies have just become longer than `at`, without moving.
                source = unsafe { manager.copies.as_ptr().add(at) };
            }
        }
        manager.tags.push([0; TAG]);
        let base = keys.memory.bytes().as_ptr();
        manager.jobs.push(RawJob {
            source,
            target,
            iv: source.wrapping_add(job.text - block),
            cipher_key: base.cast(),
            inner: base.wrapping_add(keys.states),
            outer: base.wrapping_add(keys.states + 32),
            tag: std::ptr::null_mut(),
            cipher_start: narrow(if block == 0 { 0 } else { job.text }),
            cipher_length: narrow(if block == 0 { 0 } else { job.text_length }),
            hash_length: narrow(job.length + suffix),
            cipher: keys.cipher as u8,
            hash: keys.hash as u8,
            open: u8::from(keys.open),
            done: 0,
        });
    }

    /// Do all jobs and give the tags in the order of the jobs, 16 bytes of which those of an HMAC without truncation to
    /// fewer than 12 count; None: the library has refused one, and nothing that was written may be used.
    pub(crate) fn run(self) -> Option<&'m [[u8; TAG]]> {
        let manager = self.manager;
        let tags = manager.tags.as_mut_ptr();
        for (index, job) in manager.jobs.iter_mut().enumerate() {
            job.tag = tags.wrapping_add(index).cast();
        }
        // SAFETY: `push` has checked that every job lies in the arenas, which are borrowed for 'a, as the keys are; there
        // is a tag for every job, and the copies have not moved.
        unsafe { vnic_mb_run(manager.memory.as_ptr(), manager.jobs.as_mut_ptr(), manager.jobs.len()) }
        let done = manager.jobs.iter().all(|job| job.done == 1);
        manager.jobs.clear();
        done.then_some(&manager.tags[..])
    }
}

fn narrow(length: usize) -> u32 {
    u32::try_from(length).expect("a job is at most LONGEST_JOB bytes")
}
