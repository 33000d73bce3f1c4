//! Session affinity (AF-01 to AF-05): which client was at which backend of which service port, and when last.
//!
//! An entry does what the kernel's `recent` lists do under kube-proxy's rules. `--set` in the endpoint's chain
//! is [`Clients::remember`]: for the first packet of every connection that chose the endpoint, whatever becomes
//! of the packet afterwards. `--rcheck --seconds S` is [`Client::is_fresh`]: the kernel asks
//! `time_after(jiffies - S * HZ, last)` to call an entry too old, so one that is exactly S seconds old is still
//! fresh. `--reap` frees memory; here [`Clients::expire`] does, in bounded slices.
//!
//! Kept apart from the tables: entries name the service port and the endpoint themselves, so tables come and
//! go without touching them (AF-04). Endpoints that leave are forgotten at once, by a note that voids their
//! entries until the next passes of `expire` have removed them (AF-02).
//!
//! One worker owns the table. When there are several it has to be shared, as a client's connections reach any
//! of them: by parts, for what a new connection asks and tells is in one chain.
//!
//! All memory is reserved at the start. What does not fit is not remembered, and counted (AF-05). Established
//! connections never look here.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashMap};

use super::{Affinity, Backend};
use crate::packet::Family;
use crate::time::Instant;

/// Entries that are looked at for one that is too old when there is no room.
const RECLAIM: usize = 64;

/// The clients of one family's service ports with affinity.
#[derive(Debug)]
pub struct Clients<A: Family> {
    hasher: DefaultHashBuilder,
    /// By hash: the first entry of a chain, as [`Entry::next`]. All entries of a client at a service port are
    /// in one chain.
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
    /// One more than the place of the next entry in the chain, or in that of the free ones; 0: there is none.
    next: u32,
    used: bool,
}

/// There is no room for a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// What is known of one client at one service port.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a, A: Family> {
    clients: &'a Clients<A>,
    first: u32,
    address: A::Addr,
    service_port: u64,
}

impl<A: Family> Clients<A> {
    /// Room for `capacity` entries: one for every backend that a client was at.
    pub fn new(capacity: usize) -> Clients<A> {
        let capacity = capacity.min(u32::MAX as usize - 1);
        Clients {
            hasher: DefaultHashBuilder::default(),
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

    /// Bytes that room for `capacity` entries takes.
    pub fn bytes_for(capacity: usize) -> u64 {
        let capacity = capacity.min(u32::MAX as usize - 1);
        capacity as u64 * size_of::<Entry<A>>() as u64 + capacity.next_power_of_two() as u64 * 4
    }

    /// What is known of a client, by its address before translation, at a service port
    /// ([`Affinity::service_port`]).
    #[inline]
    pub fn client(&self, address: A::Addr, service_port: u64) -> Client<'_, A> {
        let first = self.heads[self.chain(address, service_port)];
        Client { clients: self, first, address, service_port }
    }

    /// Notes that a client's new connection goes to a backend (AF-01).
    ///
    /// # Errors
    /// When there is no room; it is counted.
    pub fn remember(
        &mut self,
        address: A::Addr,
        backend: Backend<A>,
        affinity: Affinity,
        now: Instant,
    ) -> Result<(), Full> {
        let Affinity { timeout, service_port } = affinity;
        let entry = Entry {
            service_port,
            client: address,
            backend,
            last: now,
            timeout,
            epoch: self.epoch,
            next: 0,
            used: true,
        };
        let known = self.client(address, service_port).find(&backend);
        if let Some(place) = known {
            let next = self.entries[place].next;
            self.entries[place] = Entry { next, ..entry };
            return Ok(());
        }
        if self.used == self.capacity {
            self.expire(now, RECLAIM);
        }
        let chain = self.chain(address, service_port);
        let entry = Entry { next: self.heads[chain], ..entry };
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

    /// Forgets the clients of endpoints that have left their service port, should they come back or not.
    pub fn forget(&mut self, departed: impl IntoIterator<Item = (u64, Backend<A>)>) {
        for endpoint in departed {
            self.epoch = self.epoch.wrapping_add(1);
            self.departed.insert(endpoint, self.epoch);
            // The round in hand may have passed some entries already; the one after it passes all.
            self.departures.push_back((self.rounds + 2, endpoint, self.epoch));
        }
    }

    /// Looks at `budget` entries and frees those that are too old or void.
    pub fn expire(&mut self, now: Instant, budget: usize) {
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

    /// Entries in use.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether no client is known.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Entries that there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How often there was no room.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    fn remove(&mut self, place: usize) {
        let Entry { client, service_port, next, .. } = self.entries[place];
        let (link, chain) = (place as u32 + 1, self.chain(client, service_port));
        let mut at = self.heads[chain];
        if at == link {
            self.heads[chain] = next;
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

    #[inline]
    fn chain(&self, client: A::Addr, service_port: u64) -> usize {
        self.hasher.hash_one((client, service_port)) as usize & (self.heads.len() - 1)
    }
}

impl<A: Family> Client<'_, A> {
    /// Whether the client's last new connection to the backend is no longer than `timeout` ago (AF-02).
    #[inline]
    pub fn is_fresh(&self, backend: &Backend<A>, timeout: Duration, now: Instant) -> bool {
        if self.first == 0 {
            return false;
        }
        let Some(place) = self.find(backend) else { return false };
        let entry = &self.clients.entries[place];
        now.saturating_since(entry.last) <= timeout && !self.clients.is_void(entry)
    }

    /// The place of the client's entry for a backend.
    fn find(&self, backend: &Backend<A>) -> Option<usize> {
        let mut next = self.first;
        while next != 0 {
            let entry = &self.clients.entries[next as usize - 1];
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

#[cfg(test)]
#[path = "affinity_tests.rs"]
mod tests;
