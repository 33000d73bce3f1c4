//! Session affinity (AF-01 to AF-05): which client was at which backend of which service port, and when last.
//!
//! An entry does what the kernel's `recent` lists do under kube-proxy's rules. `--set` in the endpoint's chain
//! is [`Client::remember`]: for the first packet of every connection that chose the endpoint, whatever becomes
//! of the packet afterwards. `--rcheck --seconds S` is [`Client::is_fresh`]: the kernel asks
//! `time_after(jiffies - S * HZ, last)` to call an entry too old, so one that is exactly S seconds old is still
//! fresh. `--reap` frees memory; here [`Clients::expire`] does, in bounded slices.
//!
//! Kept apart from the tables: entries name the service port and the endpoint themselves, so tables come and
//! go without touching them (AF-04). Endpoints that leave are forgotten at once, by a note that voids their
//! entries until the next passes of `expire` have removed them (AF-02).
//!
//! All workers share the table, as a client's connections reach any of them. It is in parts with a lock each:
//! what a new connection asks and tells is in one chain, so in one part, and is asked and told under one lock
//! ([`Client`] holds it): two first connections of a client that come to two workers at once go to one backend.
//!
//! All memory is reserved at the start. What does not fit is not remembered, and counted (AF-05); a part may be
//! full a few entries before the others are. Established connections never look here.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashMap};

#[cfg(doc)]
use super::Affinity;
use super::Backend;
use crate::packet::Family;
use crate::time::Instant;

/// Entries that are looked at for one that is too old when there is no room.
const RECLAIM: usize = 64;

/// Parts of a large table.
const PARTS: usize = 16;

/// Entries of a part at least: a smaller table has fewer parts.
const LEAST: usize = 1024;

/// The clients of one family's service ports with affinity.
#[derive(Debug)]
pub struct Clients<A: Family> {
    hasher: DefaultHashBuilder,
    /// A power of two.
    parts: Box<[Mutex<Part<A>>]>,
    capacity: usize,
    /// Counts the slices of expiry: each takes the next part.
    slices: AtomicUsize,
}

#[derive(Debug)]
struct Part<A: Family> {
    /// By hash: the first entry of a chain, as [`Entry::next`]. All entries of a client at a service port are
    /// in one chain. A power of two.
    heads: Box<[u32]>,
    /// Those in use and those that were.
    entries: Vec<Entry<A>>,
    capacity: usize,
    /// The first entry that is free again, as [`Entry::next`].
    free: u32,
    used: usize,
    refused: u64,
    /// The entry that is looked at next for expiry, and how often all of them have been.
    scan: usize,
    rounds: u64,
    /// Counts departures: an entry made or refreshed before the departure of its endpoint is void.
    epoch: u32,
    departed: HashMap<(u64, Backend<A>), u32>,
    /// Departures and the round after which no entry from before is left.
    departures: VecDeque<(u64, (u64, Backend<A>), u32)>,
}

#[derive(Clone, Debug)]
struct Entry<A: Family> {
    /// [`Affinity::service_port`].
    service_port: u64,
    client: A::Addr,
    backend: Backend<A>,
    last: Instant,
    /// The timeout that was in force then.
    timeout: Duration,
    epoch: u32,
    /// The chain that it is in.
    chain: u32,
    /// One more than the place of the next entry in the chain, or in that of the free ones; 0: there is none.
    next: u32,
    used: bool,
}

/// There is no room for a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// What is known of one client at one service port. Nobody else learns or tells of the client while it lives.
#[derive(Debug)]
pub struct Client<'a, A: Family> {
    part: MutexGuard<'a, Part<A>>,
    chain: u32,
    address: A::Addr,
    service_port: u64,
}

impl<A: Family> Clients<A> {
    /// Room for `capacity` entries: one for every backend that a client was at.
    pub fn new(capacity: usize) -> Clients<A> {
        let capacity = capacity.min(u32::MAX as usize - 1);
        let parts = parts_of(capacity);
        let room = |part| capacity / parts + usize::from(part < capacity % parts);
        Clients {
            hasher: DefaultHashBuilder::default(),
            parts: (0..parts).map(|part| Mutex::new(Part::new(room(part)))).collect(),
            capacity,
            slices: AtomicUsize::new(0),
        }
    }

    /// Bytes that room for `capacity` entries takes.
    pub fn bytes_for(capacity: usize) -> u64 {
        let capacity = capacity.min(u32::MAX as usize - 1);
        let parts = parts_of(capacity);
        let heads = parts * capacity.div_ceil(parts).next_power_of_two();
        capacity as u64 * size_of::<Entry<A>>() as u64 + heads as u64 * 4
    }

    /// What is known of a client, by its address before translation, at a service port
    /// ([`Affinity::service_port`]). Holds the lock of a part: ask, choose, tell, and let go.
    #[inline]
    pub fn client(&self, address: A::Addr, service_port: u64) -> Client<'_, A> {
        let hash = self.hasher.hash_one((address, service_port));
        let part = lock(&self.parts[(hash >> 32) as usize & (self.parts.len() - 1)]);
        let chain = hash as u32 & (part.heads.len() - 1) as u32;
        Client { part, chain, address, service_port }
    }

    /// Forgets the clients of endpoints that have left their service port, should they come back or not. Every
    /// worker says it when it gets the tables without them: what a worker tells in the meantime, by tables that
    /// still have them, is void as soon as the last one has said it.
    pub fn forget(&self, departed: impl IntoIterator<Item = (u64, Backend<A>)>) {
        let departed: Vec<_> = departed.into_iter().collect();
        if departed.is_empty() {
            return;
        }
        for part in &self.parts {
            lock(part).forget(&departed);
        }
    }

    /// Looks at `budget` entries of one part, the parts taking turns, and frees those that are too old or void.
    /// Waits for nobody: a part in use has its turn later.
    pub fn expire(&self, now: Instant, budget: usize) {
        let slice = self.slices.fetch_add(1, Relaxed);
        match self.parts[slice & (self.parts.len() - 1)].try_lock() {
            Ok(mut part) => part.expire(now, budget),
            Err(TryLockError::Poisoned(part)) => part.into_inner().expire(now, budget),
            Err(TryLockError::WouldBlock) => {}
        }
    }

    /// Entries in use.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| lock(part).used).sum()
    }

    /// Whether no client is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entries that there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How often there was no room.
    pub fn refused(&self) -> u64 {
        self.parts.iter().map(|part| lock(part).refused).sum()
    }
}

/// In how many parts a table is.
fn parts_of(capacity: usize) -> usize {
    let wanted = (capacity / LEAST).clamp(1, PARTS);
    1 << wanted.ilog2()
}

fn lock<A: Family>(part: &Mutex<Part<A>>) -> MutexGuard<'_, Part<A>> {
    // Whoever panicked was a bug; what it left is forgotten in time.
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<A: Family> Client<'_, A> {
    /// Whether the client's last new connection to the backend is no longer than `timeout` ago (AF-02).
    #[inline]
    pub fn is_fresh(&self, backend: &Backend<A>, timeout: Duration, now: Instant) -> bool {
        let Some(place) = self.find(backend) else { return false };
        let entry = &self.part.entries[place];
        now.saturating_since(entry.last) <= timeout && !self.part.is_void(entry)
    }

    /// Notes that the client's new connection goes to a backend (AF-01), under the timeout in force.
    ///
    /// # Errors
    /// When there is no room; it is counted.
    pub fn remember(mut self, backend: Backend<A>, timeout: Duration, now: Instant) -> Result<(), Full> {
        let known = self.find(&backend);
        let Client { part, chain, address, service_port } = &mut self;
        let entry = Entry {
            service_port: *service_port,
            client: *address,
            backend,
            last: now,
            timeout,
            epoch: part.epoch,
            chain: *chain,
            next: 0,
            used: true,
        };
        if let Some(place) = known {
            let Entry { next, last, .. } = part.entries[place];
            // Another worker's burst may have begun later than this one's.
            part.entries[place] = Entry { next, last: last.max(now), ..entry };
            return Ok(());
        }
        if part.used == part.capacity {
            part.expire(now, RECLAIM);
        }
        part.add(entry)
    }

    /// The place of the client's entry for a backend.
    fn find(&self, backend: &Backend<A>) -> Option<usize> {
        let mut next = self.part.heads[self.chain as usize];
        while next != 0 {
            let entry = &self.part.entries[next as usize - 1];
            if entry.backend == *backend
                && entry.client == self.address
                && entry.service_port == self.service_port
            {
                return Some(next as usize - 1);
            }
            next = entry.next;
        }
        None
    }
}

impl<A: Family> Part<A> {
    fn new(capacity: usize) -> Part<A> {
        Part {
            heads: vec![0; capacity.next_power_of_two()].into(),
            entries: Vec::with_capacity(capacity),
            capacity,
            free: 0,
            used: 0,
            refused: 0,
            scan: 0,
            rounds: 0,
            epoch: 0,
            departed: HashMap::new(),
            departures: VecDeque::new(),
        }
    }

    fn add(&mut self, mut entry: Entry<A>) -> Result<(), Full> {
        let chain = entry.chain as usize;
        entry.next = self.heads[chain];
        self.heads[chain] = if self.free > 0 {
            let place = self.free;
            self.free = std::mem::replace(&mut self.entries[place as usize - 1], entry).next;
            place
        } else if self.entries.len() < self.capacity {
            self.entries.push(entry);
            self.entries.len() as u32
        } else {
            self.refused += 1;
            return Err(Full);
        };
        self.used += 1;
        Ok(())
    }

    fn forget(&mut self, departed: &[(u64, Backend<A>)]) {
        if self.used == 0 {
            return;
        }
        for endpoint in departed {
            self.epoch = self.epoch.wrapping_add(1);
            self.departed.insert(*endpoint, self.epoch);
            // The round in hand may have passed some entries already; the one after it passes all.
            self.departures.push_back((self.rounds + 2, *endpoint, self.epoch));
        }
    }

    fn expire(&mut self, now: Instant, budget: usize) {
        for _ in 0..budget.min(self.entries.len()) {
            let entry = &self.entries[self.scan];
            if entry.used && (now.saturating_since(entry.last) > entry.timeout || self.is_void(entry)) {
                self.remove(self.scan);
            }
            self.scan += 1;
            if self.scan == self.entries.len() {
                self.scan = 0;
                self.rounds += 1;
            }
        }
        if self.used == 0 {
            self.departures.clear();
            self.departed.clear();
        }
        while let Some((_, endpoint, epoch)) =
            self.departures.pop_front_if(|(round, ..)| *round <= self.rounds)
        {
            if self.departed.get(&endpoint) == Some(&epoch) {
                self.departed.remove(&endpoint);
            }
        }
    }

    fn remove(&mut self, place: usize) {
        let Entry { chain, next, .. } = self.entries[place];
        let link = place as u32 + 1;
        let mut at = self.heads[chain as usize];
        if at == link {
            self.heads[chain as usize] = next;
        } else {
            while self.entries[at as usize - 1].next != link {
                at = self.entries[at as usize - 1].next;
            }
            self.entries[at as usize - 1].next = next;
        }
        let entry = &mut self.entries[place];
        entry.used = false;
        entry.next = std::mem::replace(&mut self.free, link);
        self.used -= 1;
    }

    /// Whether the entry is from before its endpoint left.
    fn is_void(&self, entry: &Entry<A>) -> bool {
        if self.departed.is_empty() {
            return false;
        }
        let departed = self.departed.get(&(entry.service_port, entry.backend));
        departed.is_some_and(|epoch| epoch.wrapping_sub(entry.epoch).cast_signed() > 0)
    }
}

#[cfg(test)]
#[path = "affinity_tests.rs"]
mod tests;
