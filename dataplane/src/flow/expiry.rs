//! How connections end: expiry in bounded slices (CT-10), eviction from a full table (CT-09), removal.

use std::time::Duration;

use super::events::EventKind;
use super::hash::Hash;
use super::state::Status;
use super::table::{End, FlowTable, Writer};
use super::types::{EntryRef, Tick};
use crate::packet::family::Family;
use crate::sync::Ordering::{Relaxed, Release};
use crate::sync::{TryLockError, overwrite32, overwrite64};

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

/// No slot.
const NONE: u32 = u32::MAX;

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
    /// many. Work is bounded by the budget; when another worker is writing, nothing is done.
    #[allow(clippy::must_use_candidate, reason = "the worker does not need the number")]
    pub fn expire(&self, now: Tick, budget: usize) -> usize {
        let mut writer = match self.writer.try_lock() {
            Ok(writer) => writer,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return 0,
        };
        let used = self.used.load(Relaxed);
        let mut left = budget.min(used as usize);
        let mut expired = 0;
        while left > 0 {
            if writer.expiry_cursor >= used {
                writer.expiry_cursor = 0;
            }
            let mut batch = [0; EXPIRY_BATCH];
            let mut found = 0;
            let start = writer.expiry_cursor as usize;
            let end = (start + left).min(used as usize);
            let mut next = start;
            while next < end && found < EXPIRY_BATCH {
                let deadline = self.deadlines[next].load(Relaxed);
                if deadline != 0 && now.until(deadline) <= 0 {
                    batch[found] = next as u32;
                    found += 1;
                }
                next += 1;
            }
            left -= next - start;
            writer.expiry_cursor = next as u32;
            let mut over = 0;
            for place in 0..found {
                if self.is_due(batch[place], now) {
                    batch[over] = batch[place];
                    over += 1;
                }
            }
            expired += over;
            self.end_all(&mut writer, &batch[..over]);
        }
        expired
    }

    /// A free slot, by eviction if need be.
    pub(super) fn allocate(&self, writer: &mut Writer, now: Tick) -> Option<u32> {
        if writer.free == 0 {
            let used = self.used.load(Relaxed);
            if used < self.capacity {
                self.used.store(used + 1, Release);
                return Some(used);
            }
            let (victim, end) = self.victim(writer, now)?;
            self.end_locked(writer, victim, end);
        }
        let connection = writer.free - 1;
        writer.free = self.entries.link(connection * 2).load(Relaxed) as u32;
        Some(connection)
    }

    /// The connection to evict from a full table, in a bounded search: the first one without a reply, else
    /// one that is not assured, never an assured one (CT-09).
    fn victim(&self, writer: &mut Writer, now: Tick) -> Option<(u32, End)> {
        let mut unassured = NONE;
        for _ in 0..EVICTION_SEARCH.min(self.capacity) {
            let connection = writer.eviction_cursor;
            writer.eviction_cursor = (connection + 1) % self.capacity;
            if self.is_due(connection, now) {
                return Some((connection, End::Expired));
            }
            let status = Status(self.states[connection as usize].load(Relaxed) as u32);
            if !status.assured() {
                if !status.seen_reply() {
                    return Some((connection, End::Evicted));
                }
                unassured = connection;
            }
        }
        (unassured != NONE).then_some((unassured, End::Evicted))
    }

    pub(super) fn end(&self, entry: EntryRef, end: End) -> bool {
        let mut writer = self.lock();
        if self.entries.version(entry.index) != entry.version {
            return false;
        }
        self.end_locked(&mut writer, entry.connection(), end);
        true
    }

    /// Ends a connection whose deadline has come, unless it lives on after all. Says whether it is gone.
    pub(super) fn end_if_over(&self, entry: EntryRef, now: Tick) -> bool {
        let mut writer = self.lock();
        if self.entries.version(entry.index) != entry.version {
            return true;
        }
        if !self.is_due(entry.connection(), now) {
            return false;
        }
        self.end_locked(&mut writer, entry.connection(), End::Expired);
        true
    }

    /// Ends expired connections; their buckets are asked for before the first one is needed.
    fn end_all(&self, writer: &mut Writer, connections: &[u32]) {
        for connection in connections {
            for (hash, _) in self.indexed(*connection).into_iter().flatten() {
                self.index.prefetch(hash);
            }
        }
        for connection in connections {
            self.end_locked(writer, *connection, End::Expired);
        }
    }

    pub(super) fn end_locked(&self, writer: &mut Writer, connection: u32, end: End) {
        self.tell(EventKind::Destroy, connection, Tick(self.deadlines[connection as usize].load(Relaxed)));
        for (hash, entry) in self.indexed(connection).into_iter().flatten() {
            self.index.remove(hash, entry);
        }
        self.give_up(writer, connection);
        self.live.fetch_sub(1, Relaxed);
        let counters = &mut writer.counters;
        match end {
            End::Expired => counters.expired += 1,
            End::Evicted => counters.evicted += 1,
            End::Removed => counters.removed += 1,
        }
    }

    /// The live entries of a connection with their hashes, original first.
    fn indexed(&self, connection: u32) -> [Option<(Hash, u32)>; 2] {
        [connection * 2, connection * 2 + 1].map(|entry| {
            let (key, _) = self.entries.read_any(entry)?;
            Some((self.hash(&key), entry))
        })
    }

    /// Returns a slot that is in no index to the free ones.
    pub(super) fn give_up(&self, writer: &mut Writer, connection: u32) {
        self.entries.give_up(connection * 2);
        self.entries.give_up(connection * 2 + 1);
        overwrite64(&self.states[connection as usize], 0, Relaxed);
        overwrite32(&self.deadlines[connection as usize], 0, Release);
        self.entries.link(connection * 2).store(u64::from(writer.free), Relaxed);
        writer.free = connection + 1;
    }
}
