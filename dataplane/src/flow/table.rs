//! The flow table: both directions of every connection, found by what is on the wire.
//!
//! Connection `i` owns entries `2i` (original) and `2i + 1` (reply), so either finds the other without a
//! reference, and slot `i` of two dense arrays: of state words, which both directions share, and of deadlines,
//! which is what the expiry scan reads. The table is arrays of atomic numbers that refer to each other by index:
//! no pointer lies in that memory.
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
//! **Writers** (insert, remove, evict, expire) exclude each other by the locks of buckets: a connection begins and
//! ends while its thread holds the locks of both its tuples' home buckets (`index`), in ascending order. So one of
//! two insertions of a tuple wins, both directions come and go together, and an end, which checks the version under
//! the locks, reaches no later connection of the slot. Everything else of a writer is its thread's own: free slots
//! and counters (`free`). Workers that make different connections meet in the index only, in a bucket by chance.
//!
//! Locks are taken in this order and no other: buckets; then a lane's slots or a connection's windows. Readers, and
//! changes of state, take none of the buckets'.
//!
//! This file has the table and its stages; `touch` moves states, `expiry` ends connections, `list` shows them.
//! For a table that outlives its process, `free` has to lie in a mapping too.

use std::fmt;
use std::io;

use super::accounting::{Accounting, Counts};
use super::entry::{Content, Entries, NextHopRef};
use super::events::{EventKind, Listeners};
use super::free::{Count, End, FreeSlots, Links};
use super::hash::{Hash, Hasher};
use super::index::{Index, NoPlace, Reach};
use super::key::{FlowKey, PackedKey};
use super::state::{Event, State, Status, begin};
use super::sysctl::Sysctls;
use super::timeout::Timeouts;
use super::types::{Candidate, Counters, EntryRef, Hit, InsertError, NewConnection, Tick};
use super::window::{WindowArray, Windows};
use crate::memory::Array;
use crate::packet::family::{Family, V4};
use crate::sync::Ordering::{Acquire, Relaxed, Release};
use crate::sync::{AtomicU32, AtomicU64, overwrite32, overwrite64, relax};

/// The most connections of a table: a reference to an entry has 31 bits.
pub const MAX_CONNECTIONS: usize = 1 << 30;

/// How often an insertion tries for a place while others change the buckets around it.
const PLACE_TRIES: u32 = 1 << 16;

/// The connections of one address family. See the module's documentation.
pub struct FlowTable<A: Family> {
    hasher: Hasher,
    pub(super) index: Index,
    pub(super) entries: Entries<A>,
    /// By connection: tag (32) · status (32), the one state word of both directions. The tag is the version
    /// of the entries while it lives, so that every change of state belongs to one life of the slot.
    pub(super) states: Array<AtomicU64>,
    /// By connection: when it ends, in table time; 0 for a free slot.
    pub(super) deadlines: Array<AtomicU32>,
    accounting: Option<Accounting>,
    /// By connection: the windows of TCP, where they are tracked.
    pub(super) windows: Option<WindowArray>,
    pub(super) capacity: u32,
    pub(super) timeouts: Timeouts,
    pub(super) sysctls: Sysctls,
    pub(super) free: FreeSlots,
    /// The slot that expiry looks at next, and eviction: one for all workers, so that each looks at others.
    pub(super) expiry_cursor: AtomicU32,
    pub(super) eviction_cursor: AtomicU32,
    pub(super) listeners: Listeners<A>,
}

impl<A: Family> FlowTable<A> {
    /// A table for `connections` connections, hashed under `seed`, which an outsider must not know.
    ///
    /// # Errors
    /// When the kernel refuses the memory, or `connections` is 0 or above [`MAX_CONNECTIONS`].
    pub fn new(connections: usize, seed: [u64; 2], timeouts: Timeouts) -> io::Result<FlowTable<A>> {
        FlowTable::with_sysctls(connections, seed, timeouts, Sysctls::default())
    }

    /// As [`new`](Self::new), with what can be set beside timeouts.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_sysctls(
        connections: usize,
        seed: [u64; 2],
        timeouts: Timeouts,
        sysctls: Sysctls,
    ) -> io::Result<FlowTable<A>> {
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
            states: Array::new(connections)?,
            deadlines: Array::new(connections)?,
            accounting: sysctls.acct.then(|| Accounting::new(connections * 2)).transpose()?,
            windows: (!sysctls.tcp_be_liberal).then(|| WindowArray::new(connections)).transpose()?,
            capacity: connections as u32,
            timeouts,
            sysctls,
            free: FreeSlots::new(connections as u32),
            expiry_cursor: AtomicU32::new(0),
            eviction_cursor: AtomicU32::new(0),
            listeners: Listeners::default(),
        })
    }

    /// Has the kernel find the table's memory before the first packet does: a page at a time is a pause of the
    /// packet path each. Takes as long as zeroing all of it.
    pub fn populate(&self) {
        self.index.populate();
        self.entries.populate();
        self.states.populate();
        self.deadlines.populate();
    }

    /// How many connections live, expired ones that were not met yet included. While others begin and end them, a
    /// number that was right at some time for each of the others.
    pub fn len(&self) -> usize {
        let Counters { inserted, expired, evicted, removed, .. } = self.counters();
        inserted.saturating_sub(expired + evicted + removed) as usize
    }

    /// Whether no connection lives.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many connections there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Bytes that a connection takes in a full table: both entries, its state, its deadline, its share of the
    /// index, its counters if there are any. Rounding of the arrays to whole 2 MiB pages comes on top, once per
    /// table.
    pub fn bytes_per_connection(&self) -> usize {
        let counters = if self.accounting.is_some() { 4 * 8 } else { 0 };
        let windows = if self.windows.is_some() { WindowArray::BYTES } else { 0 };
        2 * Entries::<A>::WORDS * 8
            + 8
            + 4
            + counters
            + windows
            + self.index.bytes().div_ceil(self.capacity())
    }

    /// Bytes that a table for `connections` connections maps at least, to be asked for before it is made.
    pub fn bytes_for(connections: usize) -> u64 {
        let connections = connections.min(MAX_CONNECTIONS);
        let each = 2 * Entries::<A>::WORDS as u64 * 8 + 8 + 4;
        connections as u64 * each + Index::bytes_for(connections * 2)
    }

    /// The timeouts in force.
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// The other settings in force.
    pub fn sysctls(&self) -> &Sysctls {
        &self.sysctls
    }

    /// What became of connections so far: the sums of all threads' counts.
    pub fn counters(&self) -> Counters {
        self.free.counters()
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
        self.insert_first(new, &Event::Other, now)
    }

    /// As [`insert`](Self::insert), remembering what the connection's first packet said.
    ///
    /// # Errors
    /// As [`insert`](Self::insert).
    pub fn insert_first(
        &self,
        new: &NewConnection<A>,
        first: &Event<'_>,
        now: Tick,
    ) -> Result<EntryRef, InsertError> {
        let original = new.original.words();
        let reply = new.reply.words();
        let hashes = [self.hash_words(&original), self.hash_words(&reply)];
        hashes.iter().for_each(|hash| self.index.prefetch(*hash));
        let full = hashes.iter().any(|hash| self.index.is_home_full(*hash));
        let mut reach = if full { Reach::Both } else { Reach::Home };
        // What eviction gave.
        let mut spare = None;
        let mut waits = 0;
        let error = loop {
            let locked = self.index.lock(hashes, reach);
            let taken = self.find_words(hashes[0], &original).map(|hit| (hit.entry, true));
            let taken = taken.or_else(|| Some((self.find_words(hashes[1], &reply)?.entry, false)));
            if let Some((entry, is_original)) = taken {
                // It is one of those that these locks keep alive.
                if self.is_past(entry.connection(), now) {
                    drop(locked);
                    self.end_if_over(entry, now);
                    continue;
                }
                break if is_original { InsertError::OriginalExists(entry) } else { InsertError::ReplyTaken };
            }
            // A tuple that is its own answer could not tell its directions apart.
            if original == reply {
                break InsertError::ReplyTaken;
            }
            let places = match locked.places(hashes) {
                Ok(places) => places,
                Err(NoPlace::Further) => {
                    reach = Reach::Both;
                    continue;
                }
                Err(NoPlace::Busy) if waits < PLACE_TRIES => {
                    drop(locked);
                    relax(&mut waits);
                    continue;
                }
                Err(NoPlace::Busy | NoPlace::Full) => break InsertError::Full,
            };
            let Some(slot) = spare.take().or_else(|| self.free.take(self)) else {
                drop(locked);
                match self.evict(now) {
                    Some(slot) => spare = Some(slot),
                    None => break InsertError::Full,
                }
                continue;
            };
            let entry = self.fill(slot, new, first, now);
            locked.put(places[1], hashes[1], entry.index ^ 1);
            locked.put(places[0], hashes[0], entry.index);
            self.free.count(Count::Inserted);
            // Under the locks: its end is told later.
            self.tell(EventKind::New, entry.connection(), now);
            return Ok(entry);
        };
        if let Some(slot) = spare {
            self.free.give(slot, self);
        }
        if error == InsertError::Full {
            self.free.count(Count::Refused);
        }
        Err(error)
    }

    /// Counts a packet of `bytes` bytes (its IP header included) in its direction, when accounting is on.
    #[inline(always)]
    pub fn count(&self, entry: EntryRef, bytes: u32) {
        if let Some(accounting) = &self.accounting {
            accounting.count(entry, bytes);
        }
    }

    /// Packets and bytes of both directions, when accounting is on.
    pub(super) fn counts(&self, connection: u32) -> Option<[Counts; 2]> {
        self.accounting.as_ref().map(|accounting| accounting.read(connection))
    }

    /// Removes a connection, both entries. Says whether it still lived.
    #[allow(clippy::must_use_candidate, reason = "most callers only want it gone")]
    pub fn remove(&self, entry: EntryRef) -> bool {
        self.end(entry, End::Removed)
    }

    /// Replaces the next hop of one direction in place. Nothing happens when the connection is gone, nor while
    /// another worker is changing its bucket: the direction's next packet finds the way anew then. Under the lock,
    /// since the next connection of the slot may well go the same old way, so that comparing the word would tell
    /// nothing.
    pub fn set_next_hop(&self, entry: EntryRef, next_hop: NextHopRef) {
        let Some((key, hit)) = self.entries.read_any(entry.index) else { return };
        if hit.entry == entry
            && let Some(_held) = self.index.try_lock(self.hash(&key))
        {
            self.entries.set_next_hop(entry.index, entry.version, next_hop);
        }
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

    /// Whether a connection is gone or over, as far as can be told without a lock.
    fn is_over(&self, entry: EntryRef, now: Tick) -> bool {
        let deadline = self.deadlines[entry.connection() as usize].load(Acquire);
        let status = Status(self.states[entry.connection() as usize].load(Acquire) as u32);
        let lives = now.until(self.true_deadline(status, entry.connection(), deadline)) > 0;
        deadline == 0 || !lives || self.entries.version(entry.index) != entry.version
    }

    /// Writes both entries of a slot that the caller owns. The locks of both tuples' home buckets are held, and
    /// both will be in the index before they are let go.
    fn fill(&self, connection: u32, new: &NewConnection<A>, first: &Event<'_>, now: Tick) -> EntryRef {
        let index = connection * 2;
        let (status, mut memory) = match (&self.windows, new.state) {
            (Some(windows), State::Tcp(_)) => windows.with(connection, |windows| {
                *windows = Windows::default();
                begin(new.state, first, Some(windows))
            }),
            _ => begin(new.state, first, None),
        };
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
        if new.state == State::Udp {
            memory.notes[0] = now.0;
        }
        let uses = memory.notes.map(|note| u64::from(note) << 32 | u64::from(now.0));
        let timeout = self.timeouts.millis(self.first_timeout(status, &memory));
        overwrite32(&self.deadlines[connection as usize], now.plus(timeout).max(1), Release);
        if let Some(accounting) = &self.accounting {
            accounting.clear(connection);
        }
        // Before the entries live: who finds one finds its state.
        let word = u64::from(self.entries.next_version(index)) << 32 | u64::from(status.0);
        overwrite64(&self.states[connection as usize], word, Release);
        self.entries.write(index + 1, &reply, uses[1], memory.words[1]);
        let version = self.entries.write(index, &original, uses[0], memory.words[0]);
        EntryRef { index, version }
    }
}

/// What the model tests ask, to make keys that meet in the index.
#[cfg(feature = "model")]
impl<A: Family> FlowTable<A> {
    /// The home bucket of a key, its other bucket, and its signature.
    pub fn places(&self, key: &FlowKey<A>) -> ([u32; 2], u16) {
        self.index.places(self.hash(key))
    }

    /// Whether the entry, which has this key, is in its home bucket.
    pub fn is_at_home(&self, entry: EntryRef, key: &FlowKey<A>) -> bool {
        self.index.is_at_home(self.hash(key), entry.index)
    }
}

/// A free slot's link lies in its first entry.
impl<A: Family> Links for FlowTable<A> {
    fn link(&self, slot: u32) -> u32 {
        self.entries.link(slot * 2).load(Relaxed) as u32
    }

    fn set_link(&self, slot: u32, link: u32) {
        self.entries.link(slot * 2).store(u64::from(link), Relaxed);
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
