//! The free slots of a table, and what became of its connections: both by *lane*, and each thread has a lane.
//!
//! A thread takes slots from its lane and gives up slots into it, so that workers which make and end connections
//! at once meet nobody here. A lane has a list through the free slots and a range of slots that were never used;
//! an empty one takes a range, and when there is none left, slots from another lane. So a table is full only when
//! no lane has a slot. Threads beyond the number of lanes share one with another: that costs time, nothing else.

use std::sync::atomic::AtomicU64;

use super::types::Counters;
use crate::sync::Ordering::{Acquire, Relaxed, Release};
use crate::sync::{AtomicU32, Mutex, MutexGuard, PoisonError, lane};

/// Lanes of a table. The model has two, so that few steps are enough for one to be empty.
const LANES: usize = if cfg!(feature = "model") { 2 } else { 16 };

/// Slots that were never used and that a lane takes at once; and free ones that it takes from another lane.
const RANGE: u32 = if cfg!(feature = "model") { 1 } else { 16 };

pub(super) struct FreeSlots {
    capacity: u32,
    /// Slots from here on were never given to a lane.
    used: AtomicU32,
    lanes: [Lane; LANES],
}

/// On lines of its own: two, since processors fetch lines in pairs.
#[repr(align(128))]
#[derive(Default)]
struct Lane {
    slots: Mutex<Slots>,
    /// Not watched by the model: nothing depends on them.
    inserted: AtomicU64,
    expired: AtomicU64,
    evicted: AtomicU64,
    removed: AtomicU64,
    refused: AtomicU64,
}

/// The free slots of a lane.
#[derive(Default)]
struct Slots {
    /// The slot given up last, plus one: head of a list through the free slots. 0 when it is empty.
    free: u32,
    /// Slots that were never used: from the first up to the second.
    fresh: (u32, u32),
}

/// What is counted of connections.
#[derive(Clone, Copy)]
pub(super) enum Count {
    Inserted,
    Refused,
    Ended(End),
}

/// Why a connection ends.
#[derive(Clone, Copy)]
pub(super) enum End {
    Expired,
    Evicted,
    Removed,
}

/// Where the link of a free slot to the next one is kept.
pub(super) trait Links {
    /// The link of a slot.
    fn link(&self, slot: u32) -> u32;
    /// Sets it. The caller owns the slot.
    fn set_link(&self, slot: u32, link: u32);
}

impl FreeSlots {
    pub(super) fn new(capacity: u32) -> FreeSlots {
        FreeSlots { capacity, used: AtomicU32::new(0), lanes: Default::default() }
    }

    /// Slots from this one on were never used.
    pub(super) fn used(&self) -> u32 {
        self.used.load(Acquire)
    }

    /// A free slot, if any lane has one.
    pub(super) fn take(&self, links: &impl Links) -> Option<u32> {
        let own = lane() % LANES;
        self.take_from(own, links).or_else(|| self.steal(own, links))
    }

    /// Gives up a slot that the caller owns.
    pub(super) fn give(&self, slot: u32, links: &impl Links) {
        self.lock(lane() % LANES).push(slot, links);
    }

    pub(super) fn count(&self, what: Count) {
        let lane = &self.lanes[lane() % LANES];
        let counter = match what {
            Count::Inserted => &lane.inserted,
            Count::Ended(End::Expired) => &lane.expired,
            Count::Ended(End::Evicted) => &lane.evicted,
            Count::Ended(End::Removed) => &lane.removed,
            Count::Refused => &lane.refused,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// The sums of all lanes. Ends are read first: they never outnumber what was stored.
    pub(super) fn counters(&self) -> Counters {
        let sum = |counter: fn(&Lane) -> &AtomicU64| {
            self.lanes.iter().map(|lane| counter(lane).load(Acquire)).sum::<u64>()
        };
        let mut counters = Counters {
            expired: sum(|lane| &lane.expired),
            evicted: sum(|lane| &lane.evicted),
            removed: sum(|lane| &lane.removed),
            refused: sum(|lane| &lane.refused),
            ..Counters::default()
        };
        counters.inserted = sum(|lane| &lane.inserted);
        counters
    }

    fn take_from(&self, lane: usize, links: &impl Links) -> Option<u32> {
        let mut slots = self.lock(lane);
        if let Some(slot) = slots.pop(links) {
            return Some(slot);
        }
        slots.fresh = self.range()?;
        slots.pop(links)
    }

    /// Slots that were never used and no lane has.
    fn range(&self) -> Option<(u32, u32)> {
        if self.used.load(Relaxed) == self.capacity {
            return None;
        }
        let up_to = |from: u32| from.saturating_add(RANGE).min(self.capacity);
        let taken = |from| (from < self.capacity).then(|| up_to(from));
        let from = self.used.fetch_update(Release, Relaxed, taken).ok()?;
        Some((from, up_to(from)))
    }

    /// Takes slots from another lane: one for the caller, and more for its lane. Holds one lock at a time.
    #[cold]
    #[inline(never)]
    fn steal(&self, own: usize, links: &impl Links) -> Option<u32> {
        for other in (1..LANES).map(|step| (own + step) % LANES) {
            let mut slots = self.lock(other);
            let Some(first) = slots.pop(links) else { continue };
            let mut more = [0; RANGE as usize];
            let mut count = 0;
            while count < more.len() - 1 && slots.is_longer_than_one(links) {
                more[count] = slots.pop(links).expect("it has several");
                count += 1;
            }
            drop(slots);
            let mut slots = self.lock(own);
            more[..count].iter().for_each(|slot| slots.push(*slot, links));
            return Some(first);
        }
        // Who shares the lane may have given up a slot meanwhile.
        self.take_from(own, links)
    }

    fn lock(&self, lane: usize) -> MutexGuard<'_, Slots> {
        // Whoever panicked was a bug; the list is valid after every store.
        self.lanes[lane].slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn pop(&mut self, links: &impl Links) -> Option<u32> {
        if self.free != 0 {
            let slot = self.free - 1;
            self.free = links.link(slot);
            return Some(slot);
        }
        let (next, end) = self.fresh;
        (next < end).then(|| {
            self.fresh = (next + 1, end);
            next
        })
    }

    fn push(&mut self, slot: u32, links: &impl Links) {
        links.set_link(slot, self.free);
        self.free = slot + 1;
    }

    /// Whether it has slots for its own thread too when one is taken.
    fn is_longer_than_one(&self, links: &impl Links) -> bool {
        match self.free {
            0 => self.fresh.0 + 1 < self.fresh.1,
            free => links.link(free - 1) != 0 || self.fresh.0 < self.fresh.1,
        }
    }
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::thread;

    /// Links beside the slots.
    struct Beside(Vec<std::sync::atomic::AtomicU32>);

    impl Links for Beside {
        fn link(&self, slot: u32) -> u32 {
            self.0[slot as usize].load(Relaxed)
        }
        fn set_link(&self, slot: u32, link: u32) {
            self.0[slot as usize].store(link, Relaxed);
        }
    }

    fn beside(capacity: u32) -> (FreeSlots, Beside) {
        (FreeSlots::new(capacity), Beside((0..capacity).map(|_| Default::default()).collect()))
    }

    #[test]
    fn one_thread_gets_every_slot_once_in_order_and_the_last_given_up_first() {
        let (free, links) = beside(40);
        let all: Vec<_> = std::iter::from_fn(|| free.take(&links)).collect();
        assert_eq!(all, (0..40).collect::<Vec<_>>());
        assert_eq!(free.used(), 40);
        free.give(7, &links);
        free.give(9, &links);
        assert_eq!([free.take(&links), free.take(&links), free.take(&links)], [Some(9), Some(7), None]);
    }

    #[test]
    fn a_thread_takes_what_others_gave_up_and_what_they_did_not_use_until_nothing_is_left() {
        let (free, links) = beside(100);
        thread::scope(|scope| {
            scope.spawn(|| {
                // A range of which one is used, and then given up with some more.
                let taken: Vec<_> = (0..20).map(|_| free.take(&links).unwrap()).collect();
                taken.iter().for_each(|slot| free.give(*slot, &links));
                free.take(&links).unwrap();
            });
        });
        let mine: HashSet<_> = std::iter::from_fn(|| free.take(&links)).collect();
        assert_eq!(mine.len(), 99, "all but the one that the other thread kept");
    }

    #[test]
    fn no_slot_is_ever_at_two_threads() {
        let (free, links) = beside(24);
        let owners: Vec<AtomicU32> = (0..24).map(|_| AtomicU32::new(0)).collect();
        thread::scope(|scope| {
            for number in 1..=3 {
                let (free, links, owners) = (&free, &links, &owners);
                scope.spawn(move || {
                    let mut mine = Vec::new();
                    for round in 0..20_000 {
                        if (round + number) % 3 == 0 {
                            let Some(slot) = mine.pop() else { continue };
                            assert_eq!(owners[slot as usize].swap(0, Relaxed), number);
                            free.give(slot, links);
                        } else if let Some(slot) = free.take(links) {
                            assert_eq!(owners[slot as usize].swap(number, Relaxed), 0);
                            mine.push(slot);
                        }
                        if round % 64 == 0 {
                            for slot in mine.drain(..) {
                                owners[slot as usize].store(0, Relaxed);
                                free.give(slot, links);
                            }
                        }
                    }
                    for slot in mine {
                        owners[slot as usize].store(0, Relaxed);
                        free.give(slot, links);
                    }
                });
            }
        });
        let all: HashSet<_> = std::iter::from_fn(|| free.take(&links)).collect();
        assert_eq!(all.len(), 24);
    }
}
