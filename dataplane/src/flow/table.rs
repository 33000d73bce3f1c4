//! The flow table: both directions of every connection, found by what is on the wire.
//!
//! Connection `i` owns entries `2i` (original) and `2i + 1` (reply), so either finds the other without a
//! reference, and slot `i` of a dense array of deadlines, which is what the expiry scan reads. The table is
//! four arrays of atomic numbers that refer to each other by index: no pointer lies in that memory.
//!
//! **Readers** ([`probe`](FlowTable::probe), [`find`](FlowTable::find)) take no lock and act on copies.
//!
//! **Settled packets.** An entry whose connection is in use in both directions carries a time until which a
//! plain packet needs no state work: no expiry test, no write, no other line ([`Hit::is_settled`]). It is at
//! most [`SETTLED`](super::SETTLED) ahead, and at most 1/32 of the timeout; the deadline is set later by as much, so no
//! connection ends before its time, and none later than that. Any change of state ends it in both entries.
//!
//! **State changes** ([`touch`](FlowTable::touch)) are compare-and-swap on the one state word, tagged with the
//! version of the entries, so a change never reaches the next connection in the same slot (CT-12). Deadlines
//! and last uses are swapped against the value read before the state word was, so a late write loses.
//!
//! **Writers** (insert, remove, evict, expire) exclude each other by one lock, uncontended while one worker
//! runs. With several workers it is correct, but new connections queue on it: then give every bucket a lock
//! (word 7 of a bucket is free) and every worker its own slots. For a table that outlives its process, put
//! `Writer` into the mapping too. Windows of TCP (CT-07) have room in the last two words of both entries.

use std::fmt;
use std::io;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use super::entry::{Content, Entries, NextHopRef, STATE, USE};
use super::hash::{Hash, Hasher};
use super::index::Index;
use super::key::{Direction, FlowKey, PackedKey};
use super::state::{Effect, Event, STREAM_AFTER, State, Status, step};
use super::timeout::Timeouts;
use super::types::{
    Candidate, Class, Counters, EntryRef, FlowInfo, Hit, InsertError, NewConnection, SETTLED_MILLIS, Tick,
    Touch,
};
use crate::memory::Array;
use crate::packet::family::{Family, V4};

/// A settled time is at most this part of the timeout.
const SETTLED_SHARE: u32 = 32;

/// Every deadline is looked at so often when [`FlowTable::expire`] gets the budget it asks for.
const EXPIRY_ROUND: Duration = Duration::from_millis(500);

/// How many connections an insertion into a full table looks at for one to evict (CT-09).
const EVICTION_SEARCH: u32 = 64;

/// Expired connections whose buckets are fetched at once.
const EXPIRY_BATCH: usize = 16;

/// The most connections of a table: a reference to an entry has 31 bits.
pub const MAX_CONNECTIONS: usize = 1 << 30;

/// No slot.
const NONE: u32 = u32::MAX;

/// The connections of one address family. See the module's documentation.
pub struct FlowTable<A: Family> {
    hasher: Hasher,
    index: Index,
    entries: Entries<A>,
    /// By connection: when it ends, in table time; 0 for a free slot.
    deadlines: Array<AtomicU32>,
    capacity: u32,
    timeouts: Timeouts,
    writer: Mutex<Writer>,
    /// Copies of the writer's figures, for readers.
    live: AtomicU32,
    /// Slots from here on were never used.
    used: AtomicU32,
}

/// What only writers need.
#[derive(Default)]
struct Writer {
    /// The slot given up last, plus one: head of a list through the free slots. 0 when it is empty.
    free: u32,
    expiry_cursor: u32,
    eviction_cursor: u32,
    counters: Counters,
}

/// Why a connection ends; selects the counter.
#[derive(Clone, Copy)]
enum End {
    Expired,
    Evicted,
    Removed,
}

impl<A: Family> FlowTable<A> {
    /// A table for `connections` connections, hashed under `seed`, which an outsider must not know.
    ///
    /// # Errors
    /// When the kernel refuses the memory, or `connections` is 0 or above [`MAX_CONNECTIONS`].
    pub fn new(connections: usize, seed: [u64; 2], timeouts: Timeouts) -> io::Result<FlowTable<A>> {
        if connections == 0 || connections > MAX_CONNECTIONS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{connections} is not a table size (1 to {MAX_CONNECTIONS} connections)"),
            ));
        }
        Ok(FlowTable {
            hasher: Hasher::new(seed),
            index: Index::new(connections * 2)?,
            entries: Entries::new(connections * 2)?,
            deadlines: Array::new(connections)?,
            capacity: connections as u32,
            timeouts,
            writer: Mutex::default(),
            live: AtomicU32::new(0),
            used: AtomicU32::new(0),
        })
    }

    /// How many connections live, expired ones that were not met yet included.
    pub fn len(&self) -> usize {
        self.live.load(Relaxed) as usize
    }

    /// Whether no connection lives.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many connections there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Bytes that a connection takes in a full table: both entries, its deadline, its share of the index.
    /// Rounding of the four arrays to whole 2 MiB pages comes on top, once per table.
    pub fn bytes_per_connection(&self) -> usize {
        2 * Entries::<A>::WORDS * 8 + 4 + self.index.bytes().div_ceil(self.capacity())
    }

    /// The timeouts in force.
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// What became of connections so far.
    pub fn counters(&self) -> Counters {
        self.lock().counters
    }

    /// First stage: the key's hash.
    #[inline]
    pub fn hash(&self, key: &FlowKey<A>) -> Hash {
        self.hash_words(&key.words())
    }

    /// Second stage: asks for the hash's bucket.
    #[inline]
    pub fn prefetch(&self, hash: Hash) {
        self.index.prefetch(hash);
    }

    /// Third stage: reads the bucket and asks for the entry it names. Nothing when no entry has this hash's
    /// signature: the key is not in the table.
    #[inline]
    pub fn probe(&self, hash: Hash) -> Option<Candidate> {
        let entry = self.index.find(hash, Some)?;
        self.entries.prefetch(entry);
        Some(Candidate { entry })
    }

    /// Fourth stage: the entry with exactly this key, copied. Its time may be over: see [`Hit::is_settled`]
    /// and [`touch`](Self::touch).
    #[inline(always)]
    pub fn find(&self, candidate: Candidate, key: &FlowKey<A>) -> Option<Hit<A>> {
        self.find_at(candidate, key.words())
    }

    /// All stages at once.
    pub fn lookup(&self, key: &FlowKey<A>) -> Option<Hit<A>> {
        let words = key.words();
        self.find_words(self.hash_words(&words), &words)
    }

    /// Moves the connection of `hit` by one packet: state, last use, expiry. `hit` may be old: a connection
    /// that is gone is never changed.
    pub fn touch(&self, hit: &Hit<A>, event: Event, now: Tick) -> Touch {
        let entry = hit.entry;
        let last_use = &self.entries.view(entry.index)[USE];
        let peer_use = &self.entries.view(entry.index ^ 1)[USE];
        let original = self.entries.view(entry.original());
        let deadline = &self.deadlines[entry.connection() as usize];
        loop {
            // Before the state word: whoever changes the state after we read it makes our swaps below fail.
            let old_use = last_use.load(Acquire);
            let mut old_deadline = deadline.load(Acquire);
            let word = original[STATE].load(Acquire);
            if (word >> 32) as u32 != entry.version {
                return Touch::Gone;
            }
            if now.until(old_deadline) <= 0 {
                self.end(entry, End::Expired);
                return Touch::Gone;
            }
            let status = Status(word as u32);
            let class = if status.seen_reply() || entry.direction() == Direction::Reply {
                Class::Established
            } else {
                Class::New
            };
            let begun = (original[USE].load(Relaxed) >> 32) as u32;
            let age = now.0.wrapping_sub(begun);
            let (next, timeout) = match step(status, entry.direction(), event, age) {
                Effect::Invalid => return Touch::Invalid,
                Effect::Reopen => {
                    self.end(entry, End::Removed);
                    return Touch::Reopen;
                }
                Effect::Last => {
                    self.end(entry, End::Removed);
                    return Touch::Forward(class);
                }
                Effect::Forward(next, timeout) => (next, timeout),
            };
            let changed = next != status;
            let next_word = u64::from(entry.version) << 32 | u64::from(next.0);
            if changed && original[STATE].compare_exchange(word, next_word, AcqRel, Acquire).is_err() {
                continue;
            }
            let Some(timeout) = timeout else {
                return Touch::Forward(class);
            };
            let timeout = self.timeouts.millis(timeout);
            let settled = self.settled_time(next, timeout, age);
            let new_deadline = now.plus(timeout + settled).max(1);
            while let Err(other) = deadline.compare_exchange(old_deadline, new_deadline, AcqRel, Acquire) {
                // Who changed the state last says how long the connection lives; a mere user gives way. The
                // deadline was read before the state, so a later change makes the next swap fail too.
                if !changed || original[STATE].load(Acquire) != next_word {
                    break;
                }
                old_deadline = other;
            }
            let fresh = u64::from(now.plus(settled));
            let scratch = old_use & !u64::from(u32::MAX);
            let _ = last_use.compare_exchange(old_use, scratch | fresh, AcqRel, Relaxed);
            if changed {
                let old = peer_use.load(Acquire);
                let stale = old & !u64::from(u32::MAX) | u64::from(now.0);
                let _ = peer_use.compare_exchange(old, stale, AcqRel, Relaxed);
            }
            return Touch::Forward(class);
        }
    }

    /// Whether a connection with this reply tuple could be stored: for the search of a source port (NAT-05).
    /// The reservation itself is [`insert`](Self::insert).
    pub fn is_reply_free(&self, reply: &FlowKey<A>, now: Tick) -> bool {
        self.lookup(reply).is_none_or(|hit| self.is_over(hit.entry, now))
    }

    /// Whether the connection of an entry lives and its time is not over: for who uses it without being one of its
    /// packets, as an ICMP error does.
    pub fn is_live(&self, entry: EntryRef, now: Tick) -> bool {
        !self.is_over(entry, now)
    }

    /// Stores both directions of a connection, or none: the original entry. When the table is full, an
    /// unassured connection near by makes room (CT-09).
    ///
    /// # Errors
    /// See [`InsertError`]; nothing was changed then, except that expired connections in the way are gone.
    pub fn insert(&self, new: &NewConnection<A>, now: Tick) -> Result<EntryRef, InsertError> {
        let original = new.original.words();
        let reply = new.reply.words();
        let hashes = [self.hash_words(&original), self.hash_words(&reply)];
        hashes.iter().for_each(|hash| self.index.prefetch(*hash));
        let mut writer = self.lock();
        if let Some(entry) = self.occupant(&mut writer, hashes[0], &original, now) {
            return Err(InsertError::OriginalExists(entry));
        }
        // A tuple that is its own answer could not tell its directions apart.
        if self.occupant(&mut writer, hashes[1], &reply, now).is_some() || original == reply {
            return Err(InsertError::ReplyTaken);
        }
        let Some(connection) = self.allocate(&mut writer, now) else {
            writer.counters.refused += 1;
            return Err(InsertError::Full);
        };
        let entry = self.fill(connection, new, now);
        if self.index.insert(hashes[1], entry.index ^ 1).is_err() {
            self.give_up(&mut writer, connection);
            writer.counters.refused += 1;
            return Err(InsertError::Full);
        }
        if self.index.insert(hashes[0], entry.index).is_err() {
            self.index.remove(hashes[1], entry.index ^ 1);
            self.give_up(&mut writer, connection);
            writer.counters.refused += 1;
            return Err(InsertError::Full);
        }
        writer.counters.inserted += 1;
        self.live.fetch_add(1, Relaxed);
        Ok(entry)
    }

    /// Removes a connection, both entries. Says whether it still lived.
    #[allow(clippy::must_use_candidate, reason = "most callers only want it gone")]
    pub fn remove(&self, entry: EntryRef) -> bool {
        self.end(entry, End::Removed)
    }

    /// Replaces the next hop of one direction in place. Nothing happens when the connection is gone.
    pub fn set_next_hop(&self, entry: EntryRef, next_hop: NextHopRef) {
        self.entries.set_next_hop(entry.index, entry.version, next_hop);
    }

    /// The budget for [`expire`](Self::expire) when it is called once per `interval`, so that every deadline
    /// is looked at twice a second and expired connections are gone within that time (CT-10).
    pub fn expire_budget(&self, interval: Duration) -> usize {
        let connections = u128::from(self.capacity) * interval.as_nanos();
        let budget = connections.div_ceil(EXPIRY_ROUND.as_nanos()).max(1);
        usize::try_from(budget).unwrap_or(usize::MAX)
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
            expired += found;
            self.end_all(&mut writer, &batch[..found]);
        }
        expired
    }

    /// The connection of an entry.
    pub fn get(&self, entry: EntryRef, now: Tick) -> Option<FlowInfo<A>> {
        self.info(entry.connection(), now).filter(|info| info.entry.version == entry.version)
    }

    /// The live connections in the `limit` slots from `cursor` on, and the cursor for the next call; start at
    /// 0. Takes no lock: a connection that is there all the while is listed once, one that comes or goes
    /// meanwhile may be missing.
    pub fn list(&self, cursor: usize, limit: usize, now: Tick) -> (Vec<FlowInfo<A>>, Option<usize>) {
        let used = self.used.load(Acquire) as usize;
        let end = cursor.saturating_add(limit.max(1)).min(used);
        let flows = (cursor..end).filter_map(|slot| self.info(slot as u32, now)).collect();
        (flows, (end < used).then_some(end))
    }

    #[inline]
    fn hash_words(&self, words: &[u64; 5]) -> Hash {
        if A::BITS == 32 { self.hasher.hash2([words[0], words[1]]) } else { self.hasher.hash5(words) }
    }

    #[inline(always)]
    fn find_at(&self, candidate: Candidate, words: [u64; 5]) -> Option<Hit<A>> {
        let hit = self.entries.read(candidate.entry, &words);
        if hit.is_some() { hit } else { self.find_again(words) }
    }

    #[inline]
    fn find_words(&self, hash: Hash, words: &[u64; 5]) -> Option<Hit<A>> {
        self.index.find(hash, |entry| self.entries.read(entry, words))
    }

    /// When the candidate was another key with the same signature, or has just gone: looks at all of them.
    #[cold]
    #[inline(never)]
    fn find_again(&self, words: [u64; 5]) -> Option<Hit<A>> {
        self.find_words(self.hash_words(&words), &words)
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        // A writer that panicked was a bug; the table's memory is valid in any state.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long packets may leave a connection alone that was just used.
    fn settled_time(&self, status: Status, timeout: u32, age: u32) -> u32 {
        if !status.is_settled() {
            return 0;
        }
        let time = SETTLED_MILLIS.min(timeout / SETTLED_SHARE);
        match status.state() {
            // The first packet after two seconds makes it a stream: it must not be waved through.
            State::Udp => time.min(STREAM_AFTER.saturating_sub(age)),
            _ => time,
        }
    }

    fn is_over(&self, entry: EntryRef, now: Tick) -> bool {
        let deadline = self.deadlines[entry.connection() as usize].load(Acquire);
        now.until(deadline) <= 0 || self.entries.version(entry.index) != entry.version
    }

    /// The live entry with this key. One whose time is over is removed.
    fn occupant(&self, writer: &mut Writer, hash: Hash, words: &[u64; 5], now: Tick) -> Option<EntryRef> {
        let entry = self.find_words(hash, words)?.entry;
        if self.is_over(entry, now) {
            self.end_locked(writer, entry.connection(), End::Expired);
            return None;
        }
        Some(entry)
    }

    /// A free slot, by eviction if need be.
    fn allocate(&self, writer: &mut Writer, now: Tick) -> Option<u32> {
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
            if now.until(self.deadlines[connection as usize].load(Relaxed)) <= 0 {
                return Some((connection, End::Expired));
            }
            let status = Status(self.entries.view(connection * 2)[STATE].load(Relaxed) as u32);
            if !status.assured() {
                if !status.seen_reply() {
                    return Some((connection, End::Evicted));
                }
                unassured = connection;
            }
        }
        (unassured != NONE).then_some((unassured, End::Evicted))
    }

    /// Writes both entries of a free slot.
    fn fill(&self, connection: u32, new: &NewConnection<A>, now: Tick) -> EntryRef {
        let index = connection * 2;
        let status = Status::new(new.state);
        let original = Content {
            key: new.original,
            rewrite: new.original.rewrite_to(&new.reply.reply()),
            next_hop: new.original_next_hop,
            mark: new.mark,
        };
        let reply = Content {
            key: new.reply,
            rewrite: new.reply.rewrite_to(&new.original.reply()),
            next_hop: new.reply_next_hop,
            mark: new.mark,
        };
        let scratch = match new.state {
            State::Udp => now.0,
            _ => 0,
        };
        let last_use = u64::from(scratch) << 32 | u64::from(now.0);
        let timeout = self.timeouts.millis(status.first_timeout());
        self.deadlines[connection as usize].store(now.plus(timeout).max(1), Release);
        self.entries.write(index + 1, &reply, u64::from(now.0), status.0);
        let version = self.entries.write(index, &original, last_use, status.0);
        EntryRef { index, version }
    }

    fn end(&self, entry: EntryRef, end: End) -> bool {
        let mut writer = self.lock();
        if self.entries.version(entry.index) != entry.version {
            return false;
        }
        self.end_locked(&mut writer, entry.connection(), end);
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

    fn end_locked(&self, writer: &mut Writer, connection: u32, end: End) {
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
    fn give_up(&self, writer: &mut Writer, connection: u32) {
        self.entries.give_up(connection * 2);
        self.entries.give_up(connection * 2 + 1);
        self.deadlines[connection as usize].store(0, Release);
        self.entries.link(connection * 2).store(u64::from(writer.free), Relaxed);
        writer.free = connection + 1;
    }

    /// A consistent copy of a connection, if the slot has one.
    fn info(&self, connection: u32, now: Tick) -> Option<FlowInfo<A>> {
        let index = connection * 2;
        loop {
            let (original, there) = self.entries.read_any(index)?;
            let (reply, back) = self.entries.read_any(index + 1)?;
            let deadline = self.deadlines[connection as usize].load(Acquire);
            let word = self.entries.view(index)[STATE].load(Acquire);
            if back.entry.version != there.entry.version || (word >> 32) as u32 != there.entry.version {
                // Between the two reads the slot got another connection.
                std::hint::spin_loop();
                continue;
            }
            let status = Status(word as u32);
            return Some(FlowInfo {
                entry: there.entry,
                original,
                reply,
                state: status.state(),
                seen_reply: status.seen_reply(),
                assured: status.assured(),
                mark: there.mark,
                remaining: Duration::from_millis(now.until(deadline).max(0) as u64),
                original_next_hop: there.next_hop(),
                reply_next_hop: back.next_hop(),
            });
        }
    }
}

impl FlowTable<V4> {
    /// As [`hash`](Self::hash).
    #[inline(always)]
    pub fn hash_packed(&self, key: PackedKey) -> Hash {
        self.hash_words(&key.words())
    }

    /// As [`find`](Self::find).
    #[inline(always)]
    pub fn find_packed(&self, candidate: Candidate, key: PackedKey) -> Option<Hit<V4>> {
        self.find_at(candidate, key.words())
    }
}

impl<A: Family> fmt::Debug for FlowTable<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FlowTable({}, {} of {} connections)", A::NAME, self.len(), self.capacity())
    }
}
