//! Memory straight from the kernel, for what is large and read by every packet: the pool of frames and the
//! flow tables. Aligned to 2 MiB, in huge pages when the machine has free ones, else in ordinary pages that
//! the kernel may merge (transparent huge pages). The content begins as zeros.
//!
//! [`Mapping`] is the raw range, for memory that devices write into. `Array` is a slice of atomic numbers in
//! such a range: everything reached through it is an atomic access, so no reader can race with a writer.

use std::io;
use std::ptr::NonNull;

/// Size and alignment of a huge page; every mapping is a multiple of it.
pub const HUGE_PAGE: usize = 2 << 20;

/// A range of zeroed memory that belongs to its owner and is given back when dropped.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    huge: bool,
    /// What was really mapped: alignment may have cost up to one huge page.
    mapped: (NonNull<u8>, usize),
}

// SAFETY: the range is plain memory without ties to a thread; the type itself reads and writes nothing.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared reference gives out a pointer and numbers only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps at least `bytes` bytes, rounded up to whole huge pages.
    ///
    /// # Errors
    /// When the kernel refuses the memory, or `bytes` is larger than an address can say.
    pub fn new(bytes: usize) -> io::Result<Mapping> {
        let len = bytes
            .max(1)
            .checked_next_multiple_of(HUGE_PAGE)
            .filter(|len| len.checked_add(HUGE_PAGE).is_some())
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        if let Ok(start) = map(len, libc::MAP_HUGETLB | libc::MAP_POPULATE) {
            let mapped = (start, len);
            return Ok(Mapping { start, len, huge: true, mapped });
        }
        let mapped = (map(len + HUGE_PAGE, 0)?, len + HUGE_PAGE);
        let offset = mapped.0.as_ptr().align_offset(HUGE_PAGE);
        // SAFETY: the offset is below one huge page, by which the mapping is longer than `len`.
        let start = unsafe { mapped.0.add(offset) };
        // SAFETY: the range lies in the mapping just made; the advice changes no content. It may be refused
        // (no transparent huge pages), which costs speed only.
        unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        Ok(Mapping { start, len, huge: false, mapped })
    }

    /// Has the kernel find all of the memory now, where it would else do so page by page, at the first touch of each:
    /// a pause of up to a millisecond for 2 MiB. A kernel before 5.14 does nothing.
    pub fn populate(&self) {
        const MADV_POPULATE_WRITE: libc::c_int = 23;
        // SAFETY: the range is this mapping; the advice changes no content. It may be refused, which costs
        // pauses only.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, MADV_POPULATE_WRITE) };
    }

    /// The first byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Length in bytes: a multiple of [`HUGE_PAGE`].
    #[allow(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the memory lies in reserved huge pages.
    pub fn is_huge(&self) -> bool {
        self.huge
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, and whatever borrowed it has ended with the owner.
        unsafe { libc::munmap(self.mapped.0.as_ptr().cast(), self.mapped.1) };
    }
}

fn map(bytes: usize, flags: libc::c_int) -> io::Result<NonNull<u8>> {
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches no existing memory.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(NonNull::new(start.cast()).expect("a mapping is not at 0"))
}

// Under the model, which has no such memory, the numbers lie on the heap.
#[cfg_attr(feature = "model", path = "memory/model.rs")]
mod array;

pub(crate) use array::Array;

/// Asks the processor to bring the line of `value` near. Changes nothing; does nothing on processors for
/// which stable Rust has no such instruction.
#[inline(always)]
pub(crate) fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads no value and faults on no address; the pointer comes from a reference anyway.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::{AtomicU64, Ordering::Relaxed};

    #[test]
    fn a_mapping_is_aligned_whole_and_zero() {
        let mapping = Mapping::new(HUGE_PAGE + 1).unwrap();
        assert_eq!(mapping.start().as_ptr().addr() % HUGE_PAGE, 0);
        assert_eq!(mapping.len(), 2 * HUGE_PAGE);
        let array = Array::<AtomicU64>::new(1000).unwrap();
        assert_eq!(array.len(), 1000);
        assert!(array.iter().all(|number| number.load(Relaxed) == 0));
        array[999].store(7, Relaxed);
        assert_eq!(array[999].load(Relaxed), 7);
    }

    #[test]
    fn what_fits_no_memory_is_an_error() {
        assert!(Mapping::new(usize::MAX).is_err());
        assert!(Mapping::new(usize::MAX / 2).is_err());
        assert!(Array::<AtomicU64>::new(usize::MAX / 4).is_err());
    }
}
