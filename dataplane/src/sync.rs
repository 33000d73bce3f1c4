//! What the flow tables synchronise with: atomic numbers, fences, the writers' lock. The standard library's, or,
//! with the feature `model`, loom's, under which a test runs through the orders that threads and memory may
//! take (`tests/model/`). One place, so that the code that is model-checked is the code that forwards.
//!
//! Only `flow/` and `memory::Array` take theirs from here. Whatever else shares memory (ports, the pool,
//! counters) uses the standard library directly and is not seen by the model.

#[cfg(not(feature = "model"))]
mod imp {
    pub(crate) use std::hint::spin_loop;
    pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, fence};
    pub(crate) use std::sync::{Mutex, MutexGuard};

    /// A store to a number that others swap at the same time.
    #[inline(always)]
    pub(crate) fn overwrite64(number: &AtomicU64, value: u64, order: super::Ordering) {
        number.store(value, order);
    }

    /// As [`overwrite64`].
    #[inline(always)]
    pub(crate) fn overwrite32(number: &AtomicU32, value: u32, order: super::Ordering) {
        number.store(value, order);
    }
}

#[cfg(feature = "model")]
mod imp {
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, fence};
    pub(crate) use loom::sync::{Mutex, MutexGuard};

    /// Loom lets a compare-and-swap that happened before a store come after it in the end, which no machine does:
    /// nothing may come between the value that was compared and the one swapped in. A swap is ordered.
    pub(crate) fn overwrite64(number: &AtomicU64, value: u64, order: super::Ordering) {
        number.swap(value, order);
    }

    /// As [`overwrite64`].
    pub(crate) fn overwrite32(number: &AtomicU32, value: u32, order: super::Ordering) {
        number.swap(value, order);
    }
}

pub(crate) use imp::{AtomicU32, AtomicU64, Mutex, MutexGuard, fence, overwrite32, overwrite64, spin_loop};
// The same in both: loom takes the standard library's.
pub(crate) use std::sync::atomic::Ordering;
pub(crate) use std::sync::{PoisonError, TryLockError};
