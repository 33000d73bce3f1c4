//! The index of a flow table: buckets of one cache line that lead from a hash to entries.
//!
//! ```text
//! words 0-1   eight signatures of 16 bits; 0 is an empty place
//! words 2-5   eight references to entries, 32 bits each; the top bit says "a guest": its home is elsewhere
//! word  6     how many entries at home here are guests elsewhere
//! word  7     the bucket's lock: 1 while somebody changes the bucket
//! ```
//!
//! A key is at home in one bucket. When that is full it is a guest in its other bucket, which home bucket and
//! signature determine, and the home bucket counts it: a lookup reads the other bucket only when that count is
//! not 0. When both are full, an entry at home in one of them moves to its own other bucket. Entries move from
//! home to guest only, and are in the new place before they leave the old one, so a reader, who looks at home
//! first, always meets one of the two. Removal frees the place; there are no tombstones.
//!
//! A signature that matches is a hint: the reader compares the entry's key under the entry's version. Every store
//! is a release and every load an acquire.
//!
//! **Writers** change a bucket under its lock ([`Locked`]). Who holds the lock of a key's home bucket decides alone
//! whether the key is there, and where: it comes, moves and goes under that lock only. A writer of two keys takes
//! the locks of both homes; where a home is full or its entry a guest, of both other buckets too. They are taken in
//! ascending order, so nobody waits for whom he keeps waiting; for a move a third bucket is only tried.

use std::io;

use arrayvec::ArrayVec;

use super::hash::Hash;
use crate::memory::{Array, prefetch};
use crate::sync::Ordering::{Acquire, Relaxed, Release};
use crate::sync::{AtomicU64, overwrite64, relax};

/// Places of a bucket.
const PLACES: usize = 8;
/// Words of a bucket: one cache line.
const WORDS: usize = 8;
/// The word that counts the guests elsewhere.
const AWAY: usize = 6;
/// The lock.
const LOCK: usize = 7;
/// In a reference: stored in its other bucket.
const GUEST: u32 = 1 << 31;

const LANES: u64 = 0x0001_0001_0001_0001;
const TOP: u64 = 0x8000_8000_8000_8000;

pub(super) struct Index {
    words: Array<AtomicU64>,
    mask: u32,
}

/// Why there is no place for two keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoPlace {
    /// The locks of [`Reach::Both`] are needed.
    Further,
    /// Somebody is changing a bucket to which an entry could be moved: try again.
    Busy,
    /// Both buckets of a key, and everything that could be moved out of them, are full.
    Full,
}

/// Which buckets of its keys a writer locks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reach {
    /// The home buckets.
    Home,
    /// And the other ones.
    Both,
}

/// Where a key is to be put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    bucket: u32,
    place: usize,
    guest: bool,
}

/// The locks of some buckets, until it is dropped.
pub(super) struct Locked<'a> {
    index: &'a Index,
    /// In ascending order, each once.
    buckets: ArrayVec<u32, 4>,
    reach: Reach,
}

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

    /// Locks the buckets of two keys, which may be the same.
    pub(super) fn lock(&self, hashes: [Hash; 2], reach: Reach) -> Locked<'_> {
        let mut locked = Locked { index: self, buckets: ArrayVec::new(), reach };
        for hash in hashes {
            let home = self.home(hash);
            locked.note(home);
            if reach == Reach::Both {
                locked.note(self.other(home, signature(hash)));
            }
        }
        for bucket in &locked.buckets {
            let mut waits = 0;
            while !self.try_lock_bucket(*bucket) {
                relax(&mut waits);
            }
        }
        locked
    }

    /// Locks the home bucket of a key, if nobody else has it.
    pub(super) fn try_lock(&self, hash: Hash) -> Option<Locked<'_>> {
        let home = self.home(hash);
        self.try_lock_bucket(home).then(|| {
            let mut locked = Locked { index: self, buckets: ArrayVec::new(), reach: Reach::Home };
            locked.note(home);
            locked
        })
    }

    /// Whether there is no place in a key's home bucket now.
    pub(super) fn is_home_full(&self, hash: Hash) -> bool {
        free_place(self.bucket(self.home(hash)), None).is_none()
    }

    /// Whether `reference`, added under `hash`, is at home now.
    pub(super) fn is_at_home(&self, hash: Hash, reference: u32) -> bool {
        place_of(self.bucket(self.home(hash)), signature(hash), reference).is_some()
    }

    /// For tests, when nobody writes: no bucket is locked, and each counts its guests elsewhere.
    #[cfg(test)]
    pub(super) fn assert_whole(&self) {
        let mut guests = vec![0; self.mask as usize + 1];
        for bucket in 0..=self.mask {
            let words = self.bucket(bucket);
            assert_eq!(words[LOCK].load(Relaxed), 0, "bucket {bucket} is locked");
            for place in 0..PLACES {
                let signature = signature_at(words, place);
                if signature != 0 && reference(words, place) & GUEST != 0 {
                    guests[self.other(bucket, signature) as usize] += 1;
                }
            }
        }
        let away = (0..=self.mask).map(|bucket| self.bucket(bucket)[AWAY].load(Relaxed));
        assert!(away.eq(guests), "a bucket has lost count of its guests");
    }

    fn try_lock_bucket(&self, bucket: u32) -> bool {
        self.bucket(bucket)[LOCK].compare_exchange(0, 1, Acquire, Relaxed).is_ok()
    }

    fn unlock_bucket(&self, bucket: u32) {
        overwrite64(&self.bucket(bucket)[LOCK], 0, Release);
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

impl Locked<'_> {
    /// Puts a bucket into the list of those to lock.
    #[inline]
    fn note(&mut self, bucket: u32) {
        let at = self.buckets.iter().take_while(|other| **other < bucket).count();
        if self.buckets.get(at) != Some(&bucket) {
            self.buckets.insert(at, bucket);
        }
    }

    /// Places for two keys that are not in the index, to be [`put`](Self::put) under these locks. Another key may
    /// move for it.
    pub(super) fn places(&self, hashes: [Hash; 2]) -> Result<[Place; 2], NoPlace> {
        let first = self.place(hashes[0], None)?;
        let second = self.place(hashes[1], Some(first))?;
        Ok([first, second])
    }

    /// Adds `reference`, whose entry is ready, under `hash`.
    pub(super) fn put(&self, place: Place, hash: Hash, reference: u32) {
        let guest = if place.guest { GUEST } else { 0 };
        if place.guest {
            self.index.count_away(self.index.home(hash), 1);
        }
        put(self.index.bucket(place.bucket), place.place, signature(hash), reference | guest);
    }

    /// Whether these locks are enough to take `reference`, which was added under `hash`, out.
    pub(super) fn reaches(&self, hash: Hash, reference: u32) -> bool {
        self.reach == Reach::Both || self.index.is_at_home(hash, reference)
    }

    /// Takes out `reference`, which was added under `hash` and is within [`reach`](Self::reaches).
    pub(super) fn remove(&self, hash: Hash, reference: u32) {
        let index = self.index;
        let home = index.home(hash);
        let signature = signature(hash);
        if let Some(place) = place_of(index.bucket(home), signature, reference) {
            clear(index.bucket(home), place);
            return;
        }
        let other = index.bucket(index.other(home, signature));
        let place = place_of(other, signature, reference | GUEST).expect("the entry is indexed");
        clear(other, place);
        index.count_away(home, -1);
    }

    /// A place for a key, other than `taken`.
    fn place(&self, hash: Hash, taken: Option<Place>) -> Result<Place, NoPlace> {
        let home = self.index.home(hash);
        let free = |bucket| free_place(self.index.bucket(bucket), in_bucket(taken, bucket));
        if let Some(place) = free(home) {
            return Ok(Place { bucket: home, place, guest: false });
        }
        if self.reach == Reach::Home {
            return Err(NoPlace::Further);
        }
        let other = self.index.other(home, signature(hash));
        if let Some(place) = free(other) {
            return Ok(Place { bucket: other, place, guest: true });
        }
        let mut why = NoPlace::Full;
        for (bucket, guest) in [(home, false), (other, true)] {
            match self.make_room(bucket, taken) {
                Ok(place) => return Ok(Place { bucket, place, guest }),
                Err(NoPlace::Busy) => why = NoPlace::Busy,
                Err(_) => {}
            }
        }
        Err(why)
    }

    /// Moves an entry that is at home in `bucket` to its other bucket; the place that became free.
    fn make_room(&self, bucket: u32, taken: Option<Place>) -> Result<usize, NoPlace> {
        let index = self.index;
        let from = index.bucket(bucket);
        let mut why = NoPlace::Full;
        for place in 0..PLACES {
            let reference = reference(from, place);
            let signature = signature_at(from, place);
            // A taken place is still empty.
            if reference & GUEST != 0 || signature == 0 {
                continue;
            }
            let other = index.other(bucket, signature);
            let mine = self.buckets.contains(&other);
            if !mine && !index.try_lock_bucket(other) {
                why = NoPlace::Busy;
                continue;
            }
            let to = index.bucket(other);
            let free = free_place(to, in_bucket(taken, other));
            if let Some(free) = free {
                index.count_away(bucket, 1);
                put(to, free, signature, reference | GUEST);
                clear(from, place);
            }
            if !mine {
                index.unlock_bucket(other);
            }
            if free.is_some() {
                return Ok(place);
            }
        }
        Err(why)
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        for bucket in &self.buckets {
            self.index.unlock_bucket(*bucket);
        }
    }
}

/// The place that is taken in a bucket, if it is in this one.
fn in_bucket(taken: Option<Place>, bucket: u32) -> Option<usize> {
    taken.filter(|taken| taken.bucket == bucket).map(|taken| taken.place)
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

/// An empty place, other than `taken`.
#[inline]
fn free_place(bucket: &Bucket, taken: Option<usize>) -> Option<usize> {
    (0..2).find_map(|word| {
        let mut empty = equal_lanes(bucket[word].load(Acquire), 0);
        while empty != 0 {
            let place = word * 4 + empty.trailing_zeros() as usize / 16;
            if Some(place) != taken {
                return Some(place);
            }
            empty &= empty - 1;
        }
        None
    })
}

fn place_of(bucket: &Bucket, signature: u16, wanted: u32) -> Option<usize> {
    (0..PLACES).find(|place| signature_at(bucket, *place) == signature && reference(bucket, *place) == wanted)
}

/// Fills a free place of a locked bucket: the reference first, so that the signature never leads to an older one.
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

    impl Index {
        /// Adds two references, as a writer does.
        fn insert(&self, keys: [(Hash, u32); 2]) -> Result<(), NoPlace> {
            let hashes = keys.map(|(hash, _)| hash);
            let mut reach = Reach::Home;
            loop {
                let locked = self.lock(hashes, reach);
                match locked.places(hashes) {
                    Ok(places) => {
                        for ((hash, reference), place) in keys.into_iter().zip(places) {
                            locked.put(place, hash, reference);
                        }
                        return Ok(());
                    }
                    Err(NoPlace::Further) if reach == Reach::Home => reach = Reach::Both,
                    Err(other) => return Err(other),
                }
            }
        }

        fn remove(&self, hash: Hash, reference: u32) {
            let locked = self.lock([hash; 2], Reach::Both);
            assert!(locked.reaches(hash, reference));
            locked.remove(hash, reference);
        }
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
        for reference in (0..COUNT).step_by(2) {
            index.insert([reference, reference + 1].map(|each| (hash(u64::from(each)), each))).unwrap();
        }
        assert!((0..COUNT).all(|reference| contains(&index, hash(u64::from(reference)), reference)));
        assert!((0..2_048).any(|bucket| index.bucket(bucket)[AWAY].load(Acquire) != 0));
        for reference in 0..COUNT {
            index.remove(hash(u64::from(reference)), reference);
            assert!(!contains(&index, hash(u64::from(reference)), reference));
        }
        assert!((0..2_048).all(|bucket| index.bucket(bucket)[AWAY].load(Acquire) == 0));
        index.assert_whole();
    }

    #[test]
    fn one_home_bucket_takes_what_its_others_have_room_for() {
        let index = Index::new(6 * 64).unwrap();
        let same_home = |number: u64| Hash(number << 48 | 5);
        let mut taken = 0;
        let pair = |first: u32| [first, first + 1].map(|each| (same_home(u64::from(each) + 1), each));
        while index.insert(pair(taken)).is_ok() {
            taken += 2;
        }
        // The home bucket, and eight in each of the other 63 at most.
        assert!(taken > 100 && taken <= 64 * 8, "{taken}");
        assert!((0..taken).all(|number| contains(&index, same_home(u64::from(number) + 1), number)));
    }

    #[test]
    fn two_keys_of_one_home_get_two_places_or_none() {
        // One bucket: home and other bucket of every key.
        let index = Index::new(6).unwrap();
        let key = |number: u64| (Hash(number << 48), number as u32);
        for first in [1, 3, 5] {
            index.insert([key(first), key(first + 1)]).unwrap();
        }
        index.insert([key(7), key(8)]).unwrap();
        assert_eq!(index.insert([key(9), key(10)]), Err(NoPlace::Full));
        index.remove(key(3).0, 3);
        assert_eq!(index.insert([key(9), key(10)]), Err(NoPlace::Full), "there is one place");
        assert!(!contains(&index, key(9).0, 9), "both or none");
        index.remove(key(8).0, 8);
        index.insert([key(9), key(10)]).unwrap();
        assert!((9..=10).all(|number| contains(&index, key(number).0, number as u32)));
        index.assert_whole();
    }

    #[test]
    fn a_move_to_a_bucket_that_is_locked_is_put_off() {
        let index = Index::new(6 * 4).unwrap();
        let keys = |home: u32, other: u32, count: usize| {
            let series = (1..).map(move |number: u64| Hash(number << 48 | u64::from(home)));
            let suitable = series.filter(|hash| index.other(home, signature(*hash)) == other);
            suitable.take(count).collect::<Vec<_>>()
        };
        // Bucket 0 is full of keys that could move to 1, bucket 3 of keys that could move to 0.
        for (home, other) in [(0, 1), (3, 0)] {
            for (pair, number) in keys(home, other, 8).chunks(2).zip(0..) {
                index
                    .insert([(pair[0], home * 8 + number * 2), (pair[1], home * 8 + number * 2 + 1)])
                    .unwrap();
            }
        }
        let wanted = keys(0, 3, 2);
        let wanted = [wanted[0], wanted[1]];
        let places = || index.lock(wanted, Reach::Both).places(wanted);
        assert_eq!(index.lock(wanted, Reach::Home).places(wanted), Err(NoPlace::Further));
        let holder = index.lock(keys(1, 0, 1).repeat(2).try_into().unwrap(), Reach::Home);
        assert_eq!(places(), Err(NoPlace::Busy));
        drop(holder);
        assert!(places().is_ok());
        index.assert_whole();
    }
}
