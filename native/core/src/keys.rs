//! Memory for keys.
//!
//! Law: key bytes of an SA stand here and nowhere else. The memory is locked, is left out of core dumps, is zero in a
//! child process, and is wiped before it is used for anything else.
//!
//! Source: mlock(2), madvise(2).

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard};

/// Bytes of a slab, and its alignment.
const SLAB: usize = 1 << 16;

/// Every piece starts at a multiple of this, which is as much as any key schedule asks for.
const GRAIN: usize = 64;

/// Overwrite with zeros, also where nobody reads them.
pub fn wipe(bytes: &mut [u8]) {
    // SAFETY: the pointer and length are those of a slice that is borrowed exclusively.
    unsafe { libc::explicit_bzero(bytes.as_mut_ptr().cast(), bytes.len()) }
}

/// Whether two ICVs are equal, in a time that depends on their lengths alone.
pub fn equal(left: &[u8], right: &[u8]) -> bool {
    let differences = left.iter().zip(right).fold(0, |found, (a, b)| std::hint::black_box(found | (a ^ b)));
    left.len() == right.len() && differences == 0
}

/// Locked pages, zero at first, wiped and given back on drop.
pub(crate) struct Pages {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the pages belong to this value alone, as those of a Vec do.
unsafe impl Send for Pages {}

impl Pages {
    /// At least `length` bytes at a multiple of [`SLAB`]; None when they cannot be had or locked.
    pub(crate) fn new(length: usize) -> Option<Self> {
        let length = length.checked_next_multiple_of(SLAB)?;
        let reserved = length.checked_add(SLAB)?;
        // SAFETY: a new anonymous mapping touches no memory of anybody.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                reserved,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return None;
        }
        let front = mapped.cast::<u8>().align_offset(SLAB);
        let start: *mut u8 = mapped.cast::<u8>().wrapping_add(front);
        // SAFETY: both pieces lie in the mapping made above, outside the part that is kept, and nothing points at them.
        unsafe {
            if front != 0 {
                libc::munmap(mapped, front);
            }
            if front != SLAB {
                libc::munmap(start.wrapping_add(length).cast(), SLAB - front);
            }
        }
        let pages = Self { base: NonNull::new(start)?, length };
        // SAFETY: the range is the mapping kept above; none of the calls changes what it holds.
        let protected = unsafe {
            libc::madvise(start.cast(), length, libc::MADV_DONTDUMP) == 0
                && libc::madvise(start.cast(), length, libc::MADV_WIPEONFORK) == 0
                && libc::mlock(start.cast(), length) == 0
        };
        protected.then_some(pages)
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the pages are this value's own, and nobody uses them after it.
        unsafe {
            libc::explicit_bzero(self.base.as_ptr().cast(), self.length);
            libc::munmap(self.base.as_ptr().cast(), self.length);
        }
    }
}

/// Pages cut into pieces of one size.
struct Slab {
    _pages: Pages,
    free: Vec<u16>,
}

/// Slabs by base address, and for each size of piece the bases of those that have one free.
struct Pool {
    slabs: BTreeMap<usize, Slab>,
    open: BTreeMap<usize, Vec<usize>>,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { slabs: BTreeMap::new(), open: BTreeMap::new() });

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Pool {
    fn take(&mut self, size: usize) -> Option<NonNull<u8>> {
        let open = self.open.entry(size).or_default();
        let base = match open.last() {
            Some(base) => *base,
            None => {
                let pages = Pages::new(SLAB)?;
                let base = pages.as_ptr() as usize;
                let pieces = u16::try_from(SLAB / size).ok()?;
                self.slabs.insert(base, Slab { _pages: pages, free: (0..pieces).rev().collect() });
                open.push(base);
                base
            }
        };
        let slab = self.slabs.get_mut(&base)?;
        let piece = usize::from(slab.free.pop()?);
        if slab.free.is_empty() {
            open.pop();
        }
        NonNull::new(slab._pages.as_ptr().wrapping_add(piece * size))
    }

    fn give(&mut self, piece: NonNull<u8>, size: usize) {
        let base = piece.as_ptr() as usize & !(SLAB - 1);
        let offset = piece.as_ptr() as usize - base;
        let open = self.open.entry(size).or_default();
        let Some(slab) = self.slabs.get_mut(&base) else { return };
        if slab.free.is_empty() {
            open.push(base);
        }
        slab.free.extend(u16::try_from(offset / size));
        // One slab without keys is kept, so that an SA that comes and goes costs no system calls.
        if slab.free.len() == SLAB / size && open.len() > 1 {
            open.retain(|other| *other != base);
            self.slabs.remove(&base);
        }
    }
}

/// A piece of locked memory, zero at first, aligned to 64 bytes, shared pages with other keys; wiped on drop.
///
/// Written while an SA is made and only read from then on.
pub struct KeyMemory {
    piece: NonNull<u8>,
    length: usize,
}

// SAFETY: the piece belongs to this value alone until it goes back to the pool, which a mutex guards.
unsafe impl Send for KeyMemory {}
// SAFETY: through a shared reference the piece can only be read.
unsafe impl Sync for KeyMemory {}

impl KeyMemory {
    /// `length` bytes, at most 64 KiB; None: there is no more memory that may be locked.
    pub fn new(length: usize) -> Option<Self> {
        let size = length.max(1).checked_next_multiple_of(GRAIN).filter(|size| *size <= SLAB)?;
        pool().take(size).map(|piece| Self { piece, length })
    }

    /// Read the bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the piece has that many bytes, all of them written (with zeros, at least), and is this value's own.
        unsafe { std::slice::from_raw_parts(self.piece.as_ptr(), self.length) }
    }

    /// Write the bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the exclusive borrow of the value is one of the piece.
        unsafe { std::slice::from_raw_parts_mut(self.piece.as_ptr(), self.length) }
    }
}

impl Drop for KeyMemory {
    fn drop(&mut self) {
        wipe(self.bytes_mut());
        pool().give(self.piece, self.length.max(1).next_multiple_of(GRAIN));
    }
}

impl std::fmt::Debug for KeyMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyMemory({} bytes)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_share_pages_and_come_back_wiped() {
        // A size that no SA has: other tests run beside this one.
        const LENGTH: usize = 2000;
        let mut pieces: Vec<KeyMemory> = (0..100).map(|_| KeyMemory::new(LENGTH).expect("memory")).collect();
        let slabs = |pieces: &[KeyMemory]| {
            pieces.iter().map(|piece| piece.piece.as_ptr() as usize / SLAB).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(slabs(&pieces).len(), 100_usize.div_ceil(SLAB / 2048));
        for piece in &mut pieces {
            assert_eq!(piece.piece.as_ptr() as usize % GRAIN, 0);
            assert!(piece.bytes().iter().all(|byte| *byte == 0));
            piece.bytes_mut().fill(0xa5);
        }
        pieces.truncate(3);
        let again: Vec<KeyMemory> = (0..50).map(|_| KeyMemory::new(LENGTH).expect("memory")).collect();
        assert!(again.iter().all(|piece| piece.bytes().iter().all(|byte| *byte == 0)));
        assert!(pieces.iter().all(|piece| piece.bytes().iter().all(|byte| *byte == 0xa5)));
    }

    #[test]
    fn slabs_without_keys_are_given_back_but_for_one() {
        const LENGTH: usize = 3000;
        let pieces: Vec<KeyMemory> = (0..100).map(|_| KeyMemory::new(LENGTH).expect("memory")).collect();
        drop(pieces);
        assert_eq!(pool().open[&LENGTH.next_multiple_of(GRAIN)].len(), 1);
    }

    #[test]
    fn pages_are_locked_and_left_out_of_dumps() {
        let memory = KeyMemory::new(100).expect("memory");
        let address = memory.piece.as_ptr() as usize;
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let mut inside = false;
        let mut flags = None;
        for line in maps.lines() {
            if let Some((from, to)) = line.split(' ').next().and_then(|range| range.split_once('-')) {
                let bound = |text| usize::from_str_radix(text, 16);
                if let (Ok(from), Ok(to)) = (bound(from), bound(to)) {
                    inside = (from..to).contains(&address);
                }
            }
            if inside && line.starts_with("VmFlags:") {
                flags = Some(line.to_owned());
            }
        }
        let flags = flags.expect("the mapping");
        for flag in [" lo", " dd", " wf"] {
            assert!(flags.contains(flag), "{flags}");
        }
    }

    #[test]
    fn more_than_may_be_locked_is_refused() {
        assert!(KeyMemory::new(SLAB + 1).is_none());
        assert!(Pages::new(usize::MAX).is_none());
    }

    #[test]
    fn icvs_are_equal_only_as_a_whole() {
        assert!(equal(b"abc", b"abc"));
        assert!(!equal(b"abc", b"abd"));
        assert!(!equal(b"abc", b"ab"));
        assert!(equal(b"", b""));
    }
}
