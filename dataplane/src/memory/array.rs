//! Atomic numbers in a mapping of their own.

use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::Mapping;

mod sealed {
    /// # Safety
    /// All-zero bytes are a value of the type, the type needs no drop, and it is changed by atomic
    /// operations only.
    pub(crate) unsafe trait Number: Sync + 'static {}
}

// SAFETY: zero is a number, and the type has atomic operations only.
unsafe impl sealed::Number for AtomicU32 {}
// SAFETY: as above.
unsafe impl sealed::Number for AtomicU64 {}

/// A slice of atomic numbers in a [`Mapping`] of its own, all zero at first.
#[derive(Debug)]
pub(crate) struct Array<T> {
    mapping: Mapping,
    len: usize,
    numbers: std::marker::PhantomData<T>,
}

impl<T: sealed::Number> Array<T> {
    /// Maps room for `len` numbers.
    ///
    /// # Errors
    /// As [`Mapping::new`].
    pub(crate) fn new(len: usize) -> io::Result<Array<T>> {
        let bytes =
            len.checked_mul(size_of::<T>()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Array { mapping: Mapping::new(bytes)?, len, numbers: std::marker::PhantomData })
    }

    /// As [`Mapping::populate`].
    pub(crate) fn populate(&self) {
        self.mapping.populate();
    }
}

impl<T: sealed::Number> Deref for Array<T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds `len` numbers (`new`), is aligned to far more than one, begins as zeros,
        // which is a value of `T` (`Number`), and lives as long as the borrow. Only this slice gives access to
        // it, so every access is one of `T`'s atomic operations.
        unsafe { std::slice::from_raw_parts(self.mapping.start().as_ptr().cast(), self.len) }
    }
}
