//! Packets and bytes of each direction (CT-11): an array beside the entries, there only when it is wanted.

use std::io;

use super::types::EntryRef;
use crate::memory::Array;
use crate::sync::{AtomicU64, Ordering::Relaxed};

/// What went in one direction of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Packets; a super-frame is one.
    pub packets: u64,
    /// Bytes of IP packets, headers included.
    pub bytes: u64,
}

/// By entry: packets, bytes.
pub(super) struct Accounting(Array<AtomicU64>);

impl Accounting {
    pub(super) fn new(entries: usize) -> io::Result<Accounting> {
        let words = entries.checked_mul(2).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Array::new(words).map(Accounting)
    }

    /// Out of line: where accounting is off, the packet path has one branch and nothing else of it.
    #[cold]
    #[inline(never)]
    pub(super) fn count(&self, entry: EntryRef, bytes: u32) {
        let at = entry.index as usize * 2;
        self.0[at].fetch_add(1, Relaxed);
        self.0[at + 1].fetch_add(u64::from(bytes), Relaxed);
    }

    pub(super) fn read(&self, connection: u32) -> [Counts; 2] {
        [0, 1].map(|direction| {
            let at = (connection as usize * 2 + direction) * 2;
            Counts { packets: self.0[at].load(Relaxed), bytes: self.0[at + 1].load(Relaxed) }
        })
    }

    /// For a new connection in the slot.
    pub(super) fn clear(&self, connection: u32) {
        let at = connection as usize * 4;
        self.0[at..at + 4].iter().for_each(|word| word.store(0, Relaxed));
    }
}
