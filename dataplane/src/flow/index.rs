//! The index of a flow table: buckets of one cache line that lead from a hash to entries.
//!
//! ```text
//! words 0-1   eight signatures of 16 bits; 0 is an empty place
//! words 2-5   eight references to entries, 32 bits each; the top bit says "a guest": its home is elsewhere
//! word  6     how many entries at home here are guests elsewhere
//! word  7     free
//! ```
//!
//! A key is at home in one bucket. When that is full it is a guest in its other bucket, which home bucket and
//! signature determine, and the home bucket counts it: a lookup reads the other bucket only when that count is
//! not 0. When both are full, an entry at home in one of them moves to its own other bucket. Entries move from
//! home to guest only, and are in the new place before they leave the old one, so a reader, who looks at home
//! first, always meets one of the two. Removal frees the place; there are no tombstones.
//!
//! A signature that matches is a hint: the reader compares the entry's key under the entry's version. Writers
//! exclude each other (the table's lock); every store is a release and every load an acquire.

use std::io;

use super::hash::Hash;
use crate::memory::{Array, prefetch};
use crate::sync::AtomicU64;
use crate::sync::Ordering::{Acquire, Release};

/// Places of a bucket.
const PLACES: usize = 8;
/// Words of a bucket: one cache line.
const WORDS: usize = 8;
/// The word that counts the guests elsewhere.
const AWAY: usize = 6;
/// In a reference: stored in its other bucket.
const GUEST: u32 = 1 << 31;

const LANES: u64 = 0x0001_0001_0001_0001;
const TOP: u64 = 0x8000_8000_8000_8000;

pub(super) struct Index {
    words: Array<AtomicU64>,
    mask: u32,
}

/// Both buckets of a key, and everything that could be moved out of them, are full.
#[derive(Debug)]
pub(super) struct BucketsFull;

type Bucket = [AtomicU64; WORDS];

impl Index {
    /// An index for `references` entries: a power of two of buckets, at most three quarters full.
    pub(super) fn new(references: usize) -> io::Result<Index> {
        let buckets = (references.div_ceil(PLACES * 3 / 4)).next_power_of_two();
        let mask = u32::try_from(buckets - 1).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Index { words: Array::new(buckets * WORDS)?, mask })
    }

    /// Bytes of an index for `references` entries.
    pub(super) fn bytes_for(references: usize) -> u64 {
        let buckets = references.div_ceil(PLACES * 3 / 4).next_power_of_two();
        buckets as u64 * WORDS as u64 * 8
    }

    pub(super) fn populate(&self) {
        self.words.populate();
    }

    /// Bytes of all buckets.
    pub(super) fn bytes(&self) -> usize {
        self.words.len() * 8
    }

    /// Brings the line of `hash`'s home bucket near.
    #[inline]
    pub(super) fn prefetch(&self, hash: Hash) {
        prefetch(&self.bucket(self.home(hash))[0]);
    }

    /// Calls `visit` with every entry whose signature matches, until it returns something. Most calls look at
    /// one line and visit one entry or none.
    #[inline(always)]
    pub(super) fn find<T>(&self, hash: Hash, mut visit: impl FnMut(u32) -> Option<T>) -> Option<T> {
        let home = self.home(hash);
        let signature = signature(hash);
        let bucket = self.bucket(home);
        if let Some(found) = scan(bucket, signature, &mut visit) {
            return Some(found);
        }
        if bucket[AWAY].load(Acquire) == 0 {
            return None;
        }
        scan(self.bucket(self.other(home, signature)), signature, &mut visit)
    }

    /// Adds `reference` under `hash`. The caller has made the entry ready and holds the table's lock.
    pub(super) fn insert(&self, hash: Hash, reference: u32) -> Result<(), BucketsFull> {
        let home = self.home(hash);
        let signature = signature(hash);
        if let Some(place) = free_place(self.bucket(home)) {
            put(self.bucket(home), place, signature, reference);
            return Ok(());
        }
        let other = self.other(home, signature);
        if let Some(place) = free_place(self.bucket(other)) {
            self.count_away(home, 1);
            put(self.bucket(other), place, signature, reference | GUEST);
            return Ok(());
        }
        if let Some(place) = self.make_room(home) {
            put(self.bucket(home), place, signature, reference);
            return Ok(());
        }
        let place = self.make_room(other).ok_or(BucketsFull)?;
        self.count_away(home, 1);
        put(self.bucket(other), place, signature, reference | GUEST);
        Ok(())
    }

    /// Takes `reference`, which was added under `hash`, out. The caller holds the table's lock.
    pub(super) fn remove(&self, hash: Hash, reference: u32) {
        let home = self.home(hash);
        let signature = signature(hash);
        if let Some(place) = place_of(self.bucket(home), signature, reference) {
            clear(self.bucket(home), place);
            return;
        }
        let other = self.bucket(self.other(home, signature));
        let place = place_of(other, signature, reference | GUEST).expect("the entry is indexed");
        clear(other, place);
        self.count_away(home, -1);
    }

    /// Moves an entry that is at home in `bucket` to its other bucket; the place that became free.
    fn make_room(&self, bucket: u32) -> Option<usize> {
        let from = self.bucket(bucket);
        for place in 0..PLACES {
            let reference = reference(from, place);
            if reference & GUEST != 0 {
                continue;
            }
            let signature = signature_at(from, place);
            let to = self.bucket(self.other(bucket, signature));
            if let Some(free) = free_place(to) {
                self.count_away(bucket, 1);
                put(to, free, signature, reference | GUEST);
                clear(from, place);
                return Some(place);
            }
        }
        None
    }

    fn count_away(&self, bucket: u32, change: i64) {
        let word = &self.bucket(bucket)[AWAY];
        word.store(word.load(Acquire).wrapping_add_signed(change), Release);
    }

    /// Where a key may be: its home and its other bucket, and the signature that it has there.
    #[cfg(feature = "model")]
    pub(super) fn places(&self, hash: Hash) -> ([u32; 2], u16) {
        let (home, signature) = (self.home(hash), signature(hash));
        ([home, self.other(home, signature)], signature)
    }

    /// Whether `reference`, added under `hash`, is at home.
    #[cfg(feature = "model")]
    pub(super) fn is_at_home(&self, hash: Hash, reference: u32) -> bool {
        place_of(self.bucket(self.home(hash)), signature(hash), reference).is_some()
    }

    #[inline]
    fn home(&self, hash: Hash) -> u32 {
        hash.0 as u32 & self.mask
    }

    /// The other bucket of a key with this signature; of the other bucket, this one. With a single bucket it
    /// is that one.
    #[inline]
    fn other(&self, bucket: u32, signature: u16) -> u32 {
        bucket ^ ((u32::from(signature).wrapping_mul(0x9e37_79b1).rotate_right(15) | 1) & self.mask)
    }

    #[inline]
    fn bucket(&self, bucket: u32) -> &Bucket {
        let start = bucket as usize * WORDS;
        self.words[start..start + WORDS].first_chunk().expect("the range is as long as a bucket")
    }
}

/// The signature of a hash: bits that do not choose the bucket, and not 0.
#[inline]
fn signature(hash: Hash) -> u16 {
    let bits = (hash.0 >> 48) as u16;
    bits + u16::from(bits == 0)
}

/// The top bit of every 16-bit lane of `word` that equals the lane of `pattern`; exact.
#[inline]
fn equal_lanes(word: u64, pattern: u64) -> u64 {
    let difference = word ^ pattern;
    !(((difference & !TOP) + !TOP) | difference) & TOP
}

#[inline]
fn scan<T>(bucket: &Bucket, signature: u16, visit: &mut impl FnMut(u32) -> Option<T>) -> Option<T> {
    let pattern = u64::from(signature) * LANES;
    for word in 0..2 {
        let mut hits = equal_lanes(bucket[word].load(Acquire), pattern);
        while hits != 0 {
            let place = word * 4 + hits.trailing_zeros() as usize / 16;
            if let Some(found) = visit(reference(bucket, place) & !GUEST) {
                return Some(found);
            }
            hits &= hits - 1;
        }
    }
    None
}

fn signature_at(bucket: &Bucket, place: usize) -> u16 {
    (bucket[place / 4].load(Acquire) >> (place % 4 * 16)) as u16
}

#[inline]
fn reference(bucket: &Bucket, place: usize) -> u32 {
    (bucket[2 + place / 2].load(Acquire) >> (place % 2 * 32)) as u32
}

fn free_place(bucket: &Bucket) -> Option<usize> {
    (0..PLACES).find(|place| signature_at(bucket, *place) == 0)
}

fn place_of(bucket: &Bucket, signature: u16, wanted: u32) -> Option<usize> {
    (0..PLACES).find(|place| signature_at(bucket, *place) == signature && reference(bucket, *place) == wanted)
}

/// Fills a free place: the reference first, so that the signature never leads to an older one.
fn put(bucket: &Bucket, place: usize, signature: u16, reference: u32) {
    let shift = place % 2 * 32;
    let word = &bucket[2 + place / 2];
    let others = word.load(Acquire) & !(u64::from(u32::MAX) << shift);
    word.store(others | u64::from(reference) << shift, Release);
    set_signature(bucket, place, signature);
}

fn clear(bucket: &Bucket, place: usize) {
    set_signature(bucket, place, 0);
}

fn set_signature(bucket: &Bucket, place: usize, signature: u16) {
    let shift = place % 4 * 16;
    let word = &bucket[place / 4];
    let others = word.load(Acquire) & !(u64::from(u16::MAX) << shift);
    word.store(others | u64::from(signature) << shift, Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u64) -> Hash {
        crate::flow::hash::Hasher::portable([1, 2]).hash2([number, 0])
    }

    fn contains(index: &Index, hash: Hash, reference: u32) -> bool {
        index.find(hash, |found| (found == reference).then_some(())).is_some()
    }

    #[test]
    fn equal_lanes_is_exact_next_to_a_match() {
        assert_eq!(equal_lanes(0x0007_0006_0007_0008, 7 * LANES), 0x8000_0000_8000_0000);
        assert_eq!(equal_lanes(0x8007_0000_ffff_0006, 7 * LANES), 0);
    }

    #[test]
    fn every_reference_is_found_at_full_load_and_none_after_removal() {
        const COUNT: u32 = 12_288; // three quarters of 2,048 buckets
        let index = Index::new(COUNT as usize).unwrap();
        assert_eq!(index.bytes(), 2_048 * 64);
        for reference in 0..COUNT {
            index.insert(hash(u64::from(reference)), reference).unwrap();
        }
        assert!((0..COUNT).all(|reference| contains(&index, hash(u64::from(reference)), reference)));
        assert!((0..2_048).any(|bucket| index.bucket(bucket)[AWAY].load(Acquire) != 0));
        for reference in 0..COUNT {
            index.remove(hash(u64::from(reference)), reference);
            assert!(!contains(&index, hash(u64::from(reference)), reference));
        }
        assert!((0..2_048).all(|bucket| index.bucket(bucket)[AWAY].load(Acquire) == 0));
    }

    #[test]
    fn one_home_bucket_takes_what_its_others_have_room_for() {
        let index = Index::new(6 * 64).unwrap();
        let same_home = |number: u64| Hash(number << 48 | 5);
        let mut taken = 0;
        while index.insert(same_home(u64::from(taken) + 1), taken).is_ok() {
            taken += 1;
        }
        // The home bucket, and eight in each of the other 63 at most.
        assert!(taken > 100 && taken <= 64 * 8, "{taken}");
        assert!((0..taken).all(|number| contains(&index, same_home(u64::from(number) + 1), number)));
    }
}
