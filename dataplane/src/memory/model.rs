//! What stands for a mapping under the model: numbers on the heap that loom watches. Loom's numbers are not plain
//! memory, so they can not lie in a mapping.

use std::io;
use std::ops::Deref;

use crate::sync::{AtomicU32, AtomicU64};

/// A number that the model watches.
pub(crate) trait Number: Default {}
impl Number for AtomicU32 {}
impl Number for AtomicU64 {}

/// A slice of atomic numbers, all zero at first.
#[derive(Debug)]
pub(crate) struct Array<T>(Box<[T]>);

impl<T: Number> Array<T> {
    /// Room for `len` numbers.
    ///
    /// # Errors
    /// When they are more than a model can hold: its tables are small.
    pub(crate) fn new(len: usize) -> io::Result<Array<T>> {
        const MOST: usize = 1 << 12;
        if len > MOST {
            return Err(io::Error::from(io::ErrorKind::OutOfMemory));
        }
        Ok(Array((0..len).map(|_| T::default()).collect()))
    }

    /// It is all there already.
    pub(crate) fn populate(&self) {}
}

impl<T: Number> Deref for Array<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}
