//! Numbered places whose snapshots are cheap: a copy shares everything, and a change copies the chunk that it
//! is in. With them the change of one endpoint or one route costs what it changes, not what the node has (UP-01,
//! RT-05).

use std::sync::Arc;

/// Values by number; places that were never set hold the default. A chunk has `CHUNK` places: what one change
/// copies.
#[derive(Clone, Debug)]
pub struct Slots<T, const CHUNK: usize = 64> {
    chunks: Vec<Arc<[T; CHUNK]>>,
}

impl<T, const CHUNK: usize> Default for Slots<T, CHUNK> {
    fn default() -> Self {
        Slots { chunks: Vec::new() }
    }
}

impl<T: Clone + Default, const CHUNK: usize> Slots<T, CHUNK> {
    /// The value at a place; nothing beyond the last place that was ever set.
    #[inline]
    pub fn get(&self, at: u32) -> Option<&T> {
        Some(&self.chunks.get(at as usize / CHUNK)?[at as usize % CHUNK])
    }

    /// The value at a place, to be changed. Snapshots made before keep the old one.
    pub fn get_mut(&mut self, at: u32) -> &mut T {
        let chunk = at as usize / CHUNK;
        while self.chunks.len() <= chunk {
            self.chunks.push(Arc::new(std::array::from_fn(|_| T::default())));
        }
        &mut Arc::make_mut(&mut self.chunks[chunk])[at as usize % CHUNK]
    }

    /// Bytes of all places.
    pub fn bytes(&self) -> usize {
        self.chunks.len() * (size_of::<[T; CHUNK]>() + size_of::<Arc<[T; CHUNK]>>())
    }

    /// All places in order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).enumerate().map(|(at, value)| (at as u32, value))
    }

    /// The places at which two snapshots may differ: those of the chunks that they do not share.
    pub fn unshared<'a>(
        &'a self,
        other: &'a Slots<T, CHUNK>,
    ) -> impl Iterator<Item = (Option<&'a T>, Option<&'a T>)> {
        let chunks = 0..self.chunks.len().max(other.chunks.len());
        let pairs = chunks.map(|at| (self.chunks.get(at), other.chunks.get(at)));
        let unshared = pairs.filter(|pair| match pair {
            (Some(one), Some(other)) => !Arc::ptr_eq(one, other),
            _ => true,
        });
        unshared.flat_map(|(one, other)| {
            (0..CHUNK).map(move |at| (one.map(|chunk| &chunk[at]), other.map(|chunk| &chunk[at])))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_stays_as_it_was_and_shares_what_did_not_change() {
        let mut slots = Slots::<u32, 64>::default();
        for at in 0..1000 {
            *slots.get_mut(at) = at;
        }
        let before = slots.clone();
        *slots.get_mut(700) = 7;
        assert_eq!((before.get(700), slots.get(700), slots.get(5000)), (Some(&700), Some(&7), None));
        assert_eq!(slots.iter().filter(|(at, value)| at != *value).count(), 1 + 1024 - 1000);
        let differing = slots.unshared(&before).filter(|(new, old)| new != old);
        assert_eq!(differing.collect::<Vec<_>>(), [(Some(&7), Some(&700))]);
        assert_eq!(slots.unshared(&before).count(), 64, "one chunk was copied");
        *slots.get_mut(5000) = 1;
        assert_eq!(before.unshared(&slots).filter(|(old, _)| old.is_none()).count(), 5056 - 1024);
    }
}
