//! What the flow tables synchronise with: atomic numbers, fences, locks. The standard library's, or,
//! with the feature `model`, loom's, under which a test runs through the orders that threads and memory may
//! take (`tests/model/`). One place, so that the code that is model-checked is the code that forwards.
//!
//! Only `flow/` and `memory::Array` take theirs from here. Whatever else shares memory (ports, the pool,
//! counters) uses the standard library directly and is not seen by the model.

#[cfg(not(feature = "model"))]
mod imp {
    pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, fence};
    pub(crate) use std::sync::{Mutex, MutexGuard};

    thread_local! {
        static LANE: usize = {
            static THREADS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
            THREADS.fetch_add(1, super::Ordering::Relaxed)
        };
    }

    /// A number of this thread, counted from the first that asked. Where a thread's own data is gone already,
    /// that of the first.
    #[inline]
    pub(crate) fn lane() -> usize {
        LANE.try_with(|lane| *lane).unwrap_or(0)
    }

    /// Lets others go on that hold what this thread waits for: a moment at first, then the rest of its time, as the
    /// holder may wait for this very core.
    #[inline]
    pub(crate) fn relax(waits: &mut u32) {
        const MOMENTS: u32 = 64;
        *waits += 1;
        if waits.is_multiple_of(MOMENTS) { std::thread::yield_now() } else { std::hint::spin_loop() }
    }

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
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, fence};
    pub(crate) use loom::sync::{Mutex, MutexGuard};

    /// The number of this thread in the execution.
    pub(crate) fn lane() -> usize {
        let id = format!("{:?}", loom::thread::current().id());
        id.bytes().filter(u8::is_ascii_digit).fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
    }

    /// Lets others go on that hold what this thread waits for.
    pub(crate) fn relax(_waits: &mut u32) {
        loom::hint::spin_loop();
    }

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

pub(crate) use imp::{AtomicU32, AtomicU64, Mutex, MutexGuard, fence, lane, overwrite32, overwrite64, relax};
// The same in both: loom takes the standard library's.
pub(crate) use std::sync::PoisonError;
pub(crate) use std::sync::atomic::Ordering;

/// Where two threads of a test wait for each other, again and again; not for ever when one of them has failed.
#[cfg(all(test, not(feature = "model")))]
#[derive(Default)]
pub(crate) struct Meeting(std::sync::atomic::AtomicU64);

#[cfg(all(test, not(feature = "model")))]
impl Meeting {
    pub(crate) fn wait(&self) {
        let both = (self.0.fetch_add(1, Ordering::Relaxed) / 2 + 1) * 2;
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while self.0.load(Ordering::Relaxed) < both {
            assert!(std::time::Instant::now() < end, "the other thread has gone");
            std::thread::yield_now();
        }
    }
}
