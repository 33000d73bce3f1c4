//! How connections end: expiry in bounded slices (CT-10), eviction from a full table (CT-09), removal.

use std::time::Duration;

use arrayvec::ArrayVec;

use super::events::{EventKind, FlowEvent};
use super::free::{Count, End};
use super::hash::Hash;
use super::index::{Locked, Reach};
use super::state::Status;
use super::table::FlowTable;
use super::types::{EntryRef, FlowInfo, Tick};
use crate::packet::family::Family;
use crate::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::{AtomicU32, overwrite32, overwrite64};

/// Every deadline is looked at so often when [`FlowTable::expire`] gets the budget it asks for.
const EXPIRY_ROUND: Duration = Duration::from_millis(500);

/// Connections looked at in a slice at least.
const EXPIRY_SLICE: usize = 256;

/// The longest time between two slices that one makes up for at once.
const LONGEST_TICK: Duration = Duration::from_millis(20);

/// How many connections an insertion into a full table looks at for one to evict (CT-09).
const EVICTION_SEARCH: u32 = 64;

/// Expired connections whose buckets are fetched at once.
const EXPIRY_BATCH: usize = 16;

/// A connection that only this thread can end: the locks of both its buckets are held.
struct Held<'a, A: Family> {
    locked: Locked<'a>,
    connection: u32,
    hashes: [Hash; 2],
    /// The connection, when somebody wants to hear of its end.
    told: Option<FlowInfo<A>>,
}

impl<A: Family> FlowTable<A> {
    /// The budget for [`expire`](Self::expire) when it is called once per `interval`, so that every deadline
    /// is looked at twice a second and expired connections are gone within that time (CT-10).
    pub fn expire_budget(&self, interval: Duration) -> usize {
        let connections = u128::from(self.capacity) * interval.as_nanos();
        let budget = connections.div_ceil(EXPIRY_ROUND.as_nanos()).max(1);
        usize::try_from(budget).unwrap_or(usize::MAX)
    }

    /// The slice that is due `since` the last one: so much that every deadline is looked at in time, however large
    /// the table, and that a late call takes no pause (CT-10). How many connections ended.
    #[allow(clippy::must_use_candidate, reason = "the worker does not need the number")]
    pub fn expire_since(&self, now: Tick, since: Duration) -> usize {
        self.expire(now, self.expire_budget(since.min(LONGEST_TICK)).max(EXPIRY_SLICE))
    }

    /// Looks at the next `budget` connections, round and round, and removes those whose time is over: how
    /// many. Work is bounded by the budget. Workers that do it at once look at different ones.
    #[allow(clippy::must_use_candidate, reason = "the worker does not need the number")]
    pub fn expire(&self, now: Tick, budget: usize) -> usize {
        let used = self.free.used();
        let budget = budget.min(used as usize) as u32;
        let start = advance(&self.expiry_cursor, budget, used);
        let end = (start + budget).min(used);
        let expired = self.expire_slots(now, start, end);
        expired + self.expire_slots(now, 0, budget - (end - start))
    }

    fn expire_slots(&self, now: Tick, start: u32, end: u32) -> usize {
        let mut expired = 0;
        let mut next = start;
        while next < end {
            let mut batch: ArrayVec<(EntryRef, [Hash; 2]), EXPIRY_BATCH> = ArrayVec::new();
            while next < end && !batch.is_full() {
                if self.is_past(next, now)
                    && let Some(found) = self.identify(next)
                {
                    batch.push(found);
                    found.1.iter().for_each(|hash| self.index.prefetch(*hash));
                }
                next += 1;
            }
            for (entry, hashes) in batch {
                if let Some(held) = self.hold_under(entry, hashes)
                    && self.is_due(entry.connection(), now)
                {
                    expired += 1;
                    self.finish(held, End::Expired);
                }
            }
        }
        expired
    }

    /// Ends a connection to have its slot (CT-09), in a bounded search: the first one without a reply, else one
    /// that is not assured, never an assured one.
    pub(super) fn evict(&self, now: Tick) -> Option<u32> {
        let mut unassured = None;
        for _ in 0..EVICTION_SEARCH.min(self.capacity) {
            let connection = advance(&self.eviction_cursor, 1, self.capacity);
            let word = self.states[connection as usize].load(Acquire);
            let version = (word >> 32) as u32;
            if version & 1 == 0 {
                continue; // another worker's at this moment
            }
            if self.is_past(connection, now)
                && let Some(held) = self.hold(EntryRef { index: connection * 2, version })
                && self.is_due(connection, now)
            {
                return Some(self.unlink(held, End::Expired));
            }
            let status = Status(word as u32);
            if !status.assured() {
                if status.seen_reply() {
                    unassured = Some((connection, word));
                } else if let Some(slot) = self.evict_one(connection, word) {
                    return Some(slot);
                }
            }
        }
        unassured.and_then(|(connection, word)| self.evict_one(connection, word))
    }

    /// Ends a connection whose state is still `word`: its slot. A packet that would make it assured is either earlier,
    /// and then it stays, or finds it gone.
    fn evict_one(&self, connection: u32, word: u64) -> Option<u32> {
        let held = self.hold(EntryRef { index: connection * 2, version: (word >> 32) as u32 })?;
        self.states[connection as usize].compare_exchange(word, 0, AcqRel, Relaxed).ok()?;
        Some(self.unlink(held, End::Evicted))
    }

    pub(super) fn end(&self, entry: EntryRef, end: End) -> bool {
        let held = self.hold(entry);
        held.map(|held| self.finish(held, end)).is_some()
    }

    /// Ends a connection whose deadline has come, unless it lives on after all. Says whether it is gone.
    pub(super) fn end_if_over(&self, entry: EntryRef, now: Tick) -> bool {
        let Some(held) = self.hold(entry) else { return true };
        let due = self.is_due(entry.connection(), now);
        if due {
            self.finish(held, End::Expired);
        }
        due
    }

    /// Whether the deadline of a slot's connection has come, as far as can be told without its locks.
    pub(super) fn is_past(&self, connection: u32, now: Tick) -> bool {
        let deadline = self.deadlines[connection as usize].load(Relaxed);
        deadline != 0 && now.until(deadline) <= 0
    }

    /// The connection that is in a slot, and its hashes.
    fn identify(&self, connection: u32) -> Option<(EntryRef, [Hash; 2])> {
        let (original, there) = self.entries.read_any(connection * 2)?;
        let (reply, back) = self.entries.read_any(connection * 2 + 1)?;
        let whole = there.entry.version == back.entry.version;
        whole.then(|| (there.entry, [self.hash(&original), self.hash(&reply)]))
    }

    /// Takes a connection's locks, if it lives.
    fn hold(&self, entry: EntryRef) -> Option<Held<'_, A>> {
        let (found, hashes) = self.identify(entry.connection())?;
        if found.version == entry.version { self.hold_under(found, hashes) } else { None }
    }

    /// As [`hold`](Self::hold), for the hashes of a connection that may have gone meanwhile.
    fn hold_under(&self, entry: EntryRef, hashes: [Hash; 2]) -> Option<Held<'_, A>> {
        let connection = entry.connection();
        let indexed = [(hashes[0], connection * 2), (hashes[1], connection * 2 + 1)];
        let at_home = indexed.iter().all(|(hash, entry)| self.index.is_at_home(*hash, *entry));
        let mut reach = if at_home { Reach::Home } else { Reach::Both };
        let locked = loop {
            let locked = self.index.lock(hashes, reach);
            if self.entries.version(connection * 2) != entry.version {
                return None;
            }
            if indexed.iter().all(|(hash, entry)| locked.reaches(*hash, *entry)) {
                break locked;
            }
            reach = Reach::Both; // it has moved
        };
        let told = self.listeners.any().then(|| {
            let deadline = self.deadlines[connection as usize].load(Relaxed);
            self.info(connection, Tick(deadline))
        });
        Some(Held { locked, connection, hashes, told: told.flatten() })
    }

    /// Ends a connection and gives up its slot.
    fn finish(&self, held: Held<'_, A>, end: End) {
        let slot = self.unlink(held, end);
        self.free.give(slot, self);
    }

    /// Ends a connection: its slot, which belongs to the caller from now on.
    fn unlink(&self, held: Held<'_, A>, end: End) -> u32 {
        let Held { locked, connection, hashes, told } = held;
        if let Some(flow) = told {
            self.listeners.tell(&FlowEvent { kind: EventKind::Destroy, flow });
        }
        locked.remove(hashes[0], connection * 2);
        locked.remove(hashes[1], connection * 2 + 1);
        self.entries.give_up(connection * 2);
        self.entries.give_up(connection * 2 + 1);
        overwrite64(&self.states[connection as usize], 0, Relaxed);
        overwrite32(&self.deadlines[connection as usize], 0, Release);
        drop(locked);
        self.free.count(Count::Ended(end));
        connection
    }
}

/// Moves a cursor through the slots below `size` on by `step`, which is no more, round and round: where it was.
fn advance(cursor: &AtomicU32, step: u32, size: u32) -> u32 {
    let mut old = cursor.load(Relaxed);
    loop {
        let from = if old < size { old } else { 0 };
        // No overflow: a table has at most 2^30 slots.
        let next = from + step;
        let to = if next < size { next } else { next - size };
        match cursor.compare_exchange_weak(old, to, Relaxed, Relaxed) {
            Ok(_) => return from,
            Err(other) => old = other,
        }
    }
}
