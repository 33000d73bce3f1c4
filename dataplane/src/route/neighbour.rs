//! Neighbours: the link address of a next hop, and the packets that wait for it (NB-01 to NB-03).
//!
//! Last station before the port. A connection's entry keeps an [`AdjacencyId`]; [`Neighbours::resolved`] is
//! one load of a 32-byte record. Everything else (timers, waiting packets, the answers of neighbours) lies
//! beside, and is touched for first packets, by received answers and by [`Neighbours::poll`].
//!
//! ```text
//!              hold: ask at 0, 300, 700 ms      answer                  30 s
//! (created) ─→ INCOMPLETE ──────────────────────────→ REACHABLE ───────────────→ STALE ←─ hearsay, kernel
//!                  │ 1 s: what waits fails            ↑   answer                   │ used
//!                  ↓                                  └────────────── PROBE ←──────┘
//!               FAILED ←──────── 3 questions, 1 s apart, unanswered ───┘
//!                  └─ hold, at least 1 s later: INCOMPLETE again          PERMANENT: configured, never ages
//! ```
//!
//! REACHABLE, STALE, PROBE and PERMANENT have a link address and forward. ARP and NDP differ in their frames,
//! which the forwarder builds, and in what an answer says ([`Neighbours::learn`], [`Neighbours::advertised`]);
//! the machine is generic over the family.
//!
//! What is to be done comes out as [`NeighbourEvent`]s: whoever calls `poll` or `learn` takes them all with
//! [`Neighbours::next_event`].
//!
//! Invariants: whatever [`hold`](Neighbours::hold) takes comes back once, by release or failure, within 1 s of
//! the first that waits; memory is bounded by [`Limits`]; an id names its neighbour for as long as the
//! neighbour is known, and is recognised as outdated afterwards.
//!
//! Each worker has neighbours of its own, with its own numbers, timers and waiting packets, and asks for itself, as
//! if it were another node on the link. What it hears it tells the others as [`News`], so that an answer reaches
//! who asked, whoever polls the port; a packet never changes hands while it waits. News may be lost: who waits asks again.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use hashbrown::HashMap;

use crate::packet::{Address, Family, LinkAddr, Packet, PortId};
use crate::stats::Reason;
use crate::time::Instant;

mod message;
mod record;
#[cfg(test)]
mod tests;

pub use message::{Advertised, Heard, Hold, Learned, NeighbourEvent, News, Said, Solicitation};
use record::Record;
pub use record::{AdjacencyId, Link, State};

/// Packets that wait for one neighbour at most (NB-02).
pub const QUEUE: usize = 64;
/// Longest wait for a neighbour's answer (NB-02).
pub const WAIT: Duration = Duration::from_secs(1);
/// Requests to everyone, counted from the first packet that waits.
pub const REQUESTS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(300), Duration::from_millis(700)];
/// How long a failed neighbour is not asked again.
pub const RETRY: Duration = Duration::from_secs(1);
/// How long an answer is good for (Linux: `base_reachable_time`).
pub const REACHABLE: Duration = Duration::from_secs(30);
/// Unicast requests of a probe, and the time for each answer (Linux: `ucast_solicit`, `retrans_time`).
pub const PROBES: u8 = 3;
/// See [`PROBES`].
pub const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How long a link address just learnt is not replaced by another, so that the first of several answers
/// stays (Linux: `locktime`).
pub const LOCK: Duration = Duration::from_secs(1);
/// An entry unused for this long may give way to another when the table is full (Linux: `gc_stale_time`).
pub const UNUSED: Duration = Duration::from_secs(60);

/// Timers that one poll handles, records that one scan looks at, and how often it does.
const EVENTS_PER_POLL: usize = 64;
const SCAN: usize = 256;
const SCAN_EVERY: Duration = Duration::from_millis(10);
/// Records looked at for one to give way.
const EVICT_SCAN: usize = 64;

/// Bounds of the table's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Neighbours known at a time; 65,536 at most.
    pub neighbours: usize,
    /// Packets that wait at a time, for all neighbours together.
    pub held: usize,
}

impl Default for Limits {
    /// 4,096 neighbours (128 KiB of records), 1,024 packets (2 MiB of the pool).
    fn default() -> Self {
        Limits { neighbours: 4096, held: 1024 }
    }
}

/// A neighbour, for display.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Neighbour<A: Family> {
    /// Its number.
    pub id: AdjacencyId,
    /// The port that it is behind.
    pub port: PortId,
    /// Its address.
    pub address: A::Addr,
    /// Its link address, if known.
    pub link: Option<LinkAddr>,
    /// What is known of it.
    pub state: State,
    /// Packets that wait for it.
    pub held: usize,
}

/// The neighbours of all ports. `H` is what waits: a packet, or a packet with the forwarder's notes.
pub struct Neighbours<A: Family, H = Packet> {
    records: Box<[Record]>,
    entries: Vec<Entry<A, H>>,
    /// Link address and MTU of each port, at the place of its number.
    ports: Vec<Option<(LinkAddr, u32)>>,
    events: VecDeque<NeighbourEvent<A, H>>,
    index: HashMap<(PortId, A::Addr), u16>,
    free: Vec<u16>,
    /// At most one timer for each entry: the one that its `timer` names.
    timers: BTreeSet<(Instant, u16)>,
    /// Packets in queues and events.
    held: usize,
    limits: Limits,
    /// Nothing is to be done before this time.
    next_due: Instant,
    next_scan: Instant,
    scan_at: usize,
    evict_at: usize,
}

/// The rest of a neighbour.
struct Entry<A: Family, H> {
    /// Port and address; nothing when the place is free.
    key: Option<(PortId, A::Addr)>,
    timer: Option<Instant>,
    /// When the first packet began to wait.
    started: Instant,
    /// Requests sent since then, or since the probe began.
    attempts: u8,
    /// When the link address was last learnt.
    updated: Instant,
    last_used: Instant,
    /// For a failed one: not asked again before.
    retry_at: Instant,
    was_resolved: bool,
    waiting: Option<A::Addr>,
    queue: VecDeque<H>,
}

impl<A: Family, H> Neighbours<A, H> {
    /// An empty table.
    ///
    /// # Panics
    /// If more than 65,536 neighbours are asked for.
    pub fn new(limits: Limits) -> Self {
        assert!(limits.neighbours <= 1 << 16, "{} neighbours", limits.neighbours);
        Neighbours {
            records: (0..limits.neighbours).map(|_| Record::default()).collect(),
            entries: Vec::new(),
            ports: Vec::new(),
            events: VecDeque::new(),
            index: HashMap::new(),
            free: Vec::new(),
            timers: BTreeSet::new(),
            held: 0,
            limits,
            next_due: Instant::ZERO,
            next_scan: Instant::ZERO,
            scan_at: 0,
            evict_at: 0,
        }
    }

    /// Makes a port known, or changes its link address (source of all its frames) or MTU (bytes of the
    /// largest IP packet). To be called before anything behind the port is.
    pub fn set_port(&mut self, port: PortId, address: LinkAddr, mtu: u32) {
        let ports = self.ports.len().max(port.index() + 1);
        self.ports.resize(ports, None);
        self.ports[port.index()] = Some((address, mtu));
        for (record, entry) in self.records.iter().zip(&self.entries) {
            if entry.key.is_some_and(|(of, _)| of == port) {
                record.set_port(port, address, mtu);
            }
        }
    }

    /// How to send to a neighbour. Nothing when its link address is not known, or the neighbour itself no
    /// longer is: then [`hold`](Self::hold) the packet.
    #[inline]
    pub fn resolved(&self, id: AdjacencyId) -> Option<Link> {
        self.records[id.slot()].use_by(id)
    }

    /// MTU of the neighbour's port, in bytes of an IP packet. Read from the same record as
    /// [`resolved`](Self::resolved); of no meaning for an outdated number, for which that gives nothing.
    #[inline]
    pub fn mtu(&self, id: AdjacencyId) -> u32 {
        self.records[id.slot()].mtu()
    }

    /// The neighbour's port; of no meaning for an outdated number.
    #[inline]
    pub fn port(&self, id: AdjacencyId) -> PortId {
        self.records[id.slot()].port()
    }

    /// The neighbour's address: the next hop. Nothing for an outdated number.
    pub fn address(&self, id: AdjacencyId) -> Option<A::Addr> {
        let (_, address) = self.entries.get(id.slot())?.key?;
        self.records[id.slot()].is_of(id).then_some(address)
    }

    /// Whether the number still names a neighbour.
    pub fn is_current(&self, id: AdjacencyId) -> bool {
        self.address(id).is_some()
    }

    /// The number of a neighbour, which becomes known if it was not.
    ///
    /// # Errors
    /// `PortDown` when there is no such port; `NeighbourQueue` when the table is full of neighbours in use.
    pub fn get_or_create(
        &mut self,
        port: PortId,
        address: A::Addr,
        now: Instant,
    ) -> Result<AdjacencyId, Reason> {
        let slot = match self.index.get(&(port, address)) {
            Some(&slot) => slot,
            None => self.create(port, address, now)?,
        };
        Ok(self.records[usize::from(slot)].id(slot))
    }

    /// Keeps a packet until the neighbour's link address is known, and asks for it at the next
    /// [`poll`](Self::poll). `source` is the packet's source address as it leaves, translated.
    pub fn hold(&mut self, id: AdjacencyId, held: H, source: A::Addr, now: Instant) -> Hold<H> {
        if !self.is_current(id) {
            return Hold::Outdated(held);
        }
        if self.resolved(id).is_some() {
            return Hold::Ready(held);
        }
        let record = &self.records[id.slot()];
        let entry = &mut self.entries[id.slot()];
        entry.last_used = now;
        if record.read().1 == State::Failed && now < entry.retry_at {
            return Hold::Refused(held, Reason::NeighbourFailed);
        }
        if entry.queue.len() >= QUEUE || self.held >= self.limits.held {
            return Hold::Refused(held, Reason::NeighbourQueue);
        }
        entry.queue.push_back(held);
        self.held += 1;
        if entry.timer.is_none() {
            record.set(LinkAddr::default(), State::Incomplete);
            entry.started = now;
            entry.attempts = 0;
            entry.waiting = Some(source);
            self.arm(id.slot() as u16, now);
        }
        Hold::Waiting
    }

    /// Takes over a link address, and releases what waited for it. Link addresses of groups, and addresses
    /// that no neighbour can have, are ignored, and so is what the rules of [`Learned`] do not let pass, or
    /// has no room.
    pub fn learn(&mut self, port: PortId, address: A::Addr, link: LinkAddr, how: Learned, now: Instant) {
        let no_link = link == LinkAddr::default() && how != Learned::Static;
        if link.is_group() || no_link || address.is_multicast() || address.is_unspecified() {
            return;
        }
        let slot = match self.index.get(&(port, address)) {
            Some(&slot) => slot,
            None if matches!(how, Learned::Request | Learned::Static | Learned::Kernel) => {
                match self.create(port, address, now) {
                    Ok(slot) => slot,
                    Err(_) => return,
                }
            }
            None => return,
        };
        let place = usize::from(slot);
        let (old_link, old) = self.records[place].read();
        let same = old.is_usable() && old_link == link;
        let locked = old.is_usable() && now < self.entries[place].updated + LOCK;
        let new = match how {
            Learned::Static => State::Permanent,
            _ if old == State::Permanent => return,
            Learned::Reply | Learned::Overheard if !same && locked => return,
            Learned::Reply => State::Reachable,
            // Hearsay of what is known confirms nothing and changes nothing.
            _ if same => return,
            _ => State::Stale,
        };
        self.take(slot, link, new, now);
    }

    /// Takes in a neighbour advertisement by the rules of RFC 4861, section 7.2.5. It makes no neighbour known.
    pub fn advertised(&mut self, port: PortId, target: A::Addr, said: Advertised, now: Instant) {
        let Some(&slot) = self.index.get(&(port, target)) else { return };
        let (old_link, old) = self.records[usize::from(slot)].read();
        if old == State::Permanent {
            return;
        }
        if !old.is_usable() {
            let Some(link) = said.link else { return };
            let new = if said.solicited { State::Reachable } else { State::Stale };
            return self.take(slot, link, new, now);
        }
        let link = said.link.unwrap_or(old_link);
        if link != old_link && !said.overrides {
            // Somebody else claims the address: to be asked about when it is next used.
            if old == State::Reachable {
                self.take(slot, old_link, State::Stale, now);
            }
        } else if said.solicited {
            self.take(slot, link, State::Reachable, now);
        } else if link != old_link {
            self.take(slot, link, State::Stale, now);
        }
    }

    /// Gives a neighbour a link address, and releases what waited for it.
    fn take(&mut self, slot: u16, link: LinkAddr, new: State, now: Instant) {
        let place = usize::from(slot);
        self.records[place].set(link, new);
        let entry = &mut self.entries[place];
        entry.updated = now;
        entry.was_resolved = true;
        let queue = std::mem::take(&mut entry.queue);
        self.disarm(slot);
        if new == State::Reachable {
            self.arm(slot, now + REACHABLE);
        }
        let id = self.records[place].id(slot);
        self.events.extend(queue.into_iter().map(|held| NeighbourEvent::Release(id, held)));
    }

    /// Forgets a link address, because the kernel did or the configuration no longer has it. The number
    /// stays; the next packet asks.
    pub fn forget(&mut self, port: PortId, address: A::Addr) {
        if let Some(&slot) = self.index.get(&(port, address)) {
            let record = &self.records[usize::from(slot)];
            if record.read().1.is_usable() {
                record.set(LinkAddr::default(), State::Incomplete);
                self.disarm(slot);
            }
        }
    }

    /// Takes in what was heard, here or by another worker.
    pub fn hear(&mut self, heard: &Heard<A>, now: Instant) {
        match heard.what {
            Said::Link(link, how) => self.learn(heard.port, heard.address, link, how, now),
            Said::Advertised(said) => self.advertised(heard.port, heard.address, said, now),
        }
    }

    /// Removes all neighbours behind a port that is gone. What waits for them fails with `PortDown`.
    pub fn remove_port(&mut self, port: PortId) {
        if let Some(known) = self.ports.get_mut(port.index()) {
            *known = None;
        }
        for slot in 0..self.entries.len() {
            if self.entries[slot].key.is_some_and(|(of, _)| of == port) {
                self.fail_queue(slot, Reason::PortDown);
                self.remove(slot as u16);
            }
        }
    }

    /// Runs the timers that are due. Work per call is bounded; what is left over comes with the next call.
    #[inline]
    pub fn poll(&mut self, now: Instant) {
        if now >= self.next_due {
            self.run(now);
        }
    }

    /// What is to be done next.
    #[inline]
    pub fn next_event(&mut self) -> Option<NeighbourEvent<A, H>> {
        let event = self.events.pop_front()?;
        if !matches!(event, NeighbourEvent::Solicit(_)) {
            self.held -= 1;
        }
        Some(event)
    }

    /// Packets that wait now, those in events not yet taken included.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Neighbours known now.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether no neighbour is known.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// A neighbour by its number, if the number is current.
    pub fn get(&self, id: AdjacencyId) -> Option<Neighbour<A>> {
        self.view(id.slot()).filter(|neighbour| neighbour.id == id)
    }

    /// All neighbours.
    pub fn iter(&self) -> impl Iterator<Item = Neighbour<A>> {
        (0..self.entries.len()).filter_map(|slot| self.view(slot))
    }

    fn view(&self, slot: usize) -> Option<Neighbour<A>> {
        let entry = self.entries.get(slot)?;
        let (port, address) = entry.key?;
        let (link, state) = self.records[slot].read();
        Some(Neighbour {
            id: self.records[slot].id(slot as u16),
            port,
            address,
            link: state.is_usable().then_some(link),
            state,
            held: entry.queue.len(),
        })
    }

    fn run(&mut self, now: Instant) {
        for _ in 0..EVENTS_PER_POLL {
            match self.timers.first() {
                Some(&(at, slot)) if at <= now => {
                    self.disarm(slot);
                    self.expire(slot, now);
                }
                _ => break,
            }
        }
        if now >= self.next_scan {
            self.next_scan = now + SCAN_EVERY;
            self.scan(now);
        }
        let first = self.timers.first().map_or(self.next_scan, |&(at, _)| at);
        self.next_due = first.min(self.next_scan);
    }

    /// Looks which neighbours were used; a stale one that was is asked.
    fn scan(&mut self, now: Instant) {
        for _ in 0..SCAN.min(self.entries.len()) {
            let slot = self.scan_at % self.entries.len();
            self.scan_at = slot + 1;
            let record = &self.records[slot];
            if record.is_used() {
                record.clear_used();
                let entry = &mut self.entries[slot];
                entry.last_used = now;
                let (link, state) = record.read();
                if state == State::Stale {
                    record.set(link, State::Probe);
                    entry.attempts = 0;
                    self.expire(slot as u16, now);
                }
            }
        }
    }

    /// A neighbour's timer has run out.
    fn expire(&mut self, slot: u16, now: Instant) {
        let place = usize::from(slot);
        let record = &self.records[place];
        let entry = &mut self.entries[place];
        let Some((port, target)) = entry.key else { return };
        let (link, state) = record.read();
        match state {
            State::Incomplete if now >= entry.started + WAIT => {
                record.set(LinkAddr::default(), State::Failed);
                entry.retry_at = now + RETRY;
                self.fail_queue(place, Reason::NeighbourFailed);
            }
            State::Incomplete => {
                self.events.push_back(NeighbourEvent::Solicit(Solicitation {
                    port,
                    target,
                    known: None,
                    waiting: entry.waiting,
                }));
                // A late poll sends one request, not all that it missed.
                let sent = REQUESTS.iter().filter(|&&after| entry.started + after <= now);
                entry.attempts = sent.count() as u8;
                let next = REQUESTS.get(usize::from(entry.attempts)).unwrap_or(&WAIT);
                let at = entry.started + *next;
                self.arm(slot, at);
            }
            State::Reachable => record.set(link, State::Stale),
            State::Probe if entry.attempts >= PROBES => {
                // It may have moved: the next packet asks everyone, at once.
                record.set(LinkAddr::default(), State::Failed);
                entry.retry_at = now;
            }
            State::Probe => {
                entry.attempts += 1;
                self.events.push_back(NeighbourEvent::Solicit(Solicitation {
                    port,
                    target,
                    known: Some(link),
                    waiting: None,
                }));
                self.arm(slot, now + PROBE_EVERY);
            }
            State::Stale | State::Failed | State::Permanent => {}
        }
    }

    fn fail_queue(&mut self, slot: usize, reason: Reason) {
        let queue = std::mem::take(&mut self.entries[slot].queue);
        let failed = |held| NeighbourEvent::Failed(held, reason);
        self.events.extend(queue.into_iter().map(failed));
    }

    fn create(&mut self, port: PortId, address: A::Addr, now: Instant) -> Result<u16, Reason> {
        let known = self.ports.get(port.index()).copied().flatten();
        let (link, mtu) = known.ok_or(Reason::PortDown)?;
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.entries.len() < self.limits.neighbours => {
                self.entries.push(Entry::default());
                (self.entries.len() - 1) as u16
            }
            None => {
                let slot = self.evictable(now).ok_or(Reason::NeighbourQueue)?;
                self.remove(slot);
                self.free.pop().ok_or(Reason::NeighbourQueue)?
            }
        };
        let place = usize::from(slot);
        self.entries[place] = Entry { key: Some((port, address)), last_used: now, ..Entry::default() };
        self.records[place].set_port(port, link, mtu);
        self.index.insert((port, address), slot);
        Ok(slot)
    }

    /// One that may give way: never answered, or unused for long. Looks at a bounded number of records.
    fn evictable(&mut self, now: Instant) -> Option<u16> {
        for _ in 0..EVICT_SCAN.min(self.entries.len()) {
            let slot = self.evict_at % self.entries.len();
            self.evict_at = slot + 1;
            let (record, entry) = (&self.records[slot], &self.entries[slot]);
            let unused = !record.is_used() && now >= entry.last_used + UNUSED;
            let may_go = match record.read().1 {
                State::Permanent => false,
                State::Failed if !entry.was_resolved => true,
                State::Incomplete => entry.timer.is_none() && unused,
                _ => unused,
            };
            if may_go {
                return Some(slot as u16);
            }
        }
        None
    }

    /// Frees a place whose queue is empty.
    fn remove(&mut self, slot: u16) {
        self.disarm(slot);
        let entry = &mut self.entries[usize::from(slot)];
        debug_assert!(entry.queue.is_empty(), "a packet waits for a neighbour that is removed");
        if let Some(key) = entry.key.take() {
            self.index.remove(&key);
            self.records[usize::from(slot)].renew();
            self.free.push(slot);
        }
    }

    fn arm(&mut self, slot: u16, at: Instant) {
        self.disarm(slot);
        self.entries[usize::from(slot)].timer = Some(at);
        self.timers.insert((at, slot));
        self.next_due = self.next_due.min(at);
    }

    fn disarm(&mut self, slot: u16) {
        if let Some(at) = self.entries[usize::from(slot)].timer.take() {
            self.timers.remove(&(at, slot));
        }
    }
}

impl<A: Family, H> Default for Neighbours<A, H> {
    fn default() -> Self {
        Neighbours::new(Limits::default())
    }
}

impl<A: Family, H> Default for Entry<A, H> {
    fn default() -> Self {
        Entry {
            key: None,
            timer: None,
            started: Instant::ZERO,
            attempts: 0,
            updated: Instant::ZERO,
            last_used: Instant::ZERO,
            retry_at: Instant::ZERO,
            was_resolved: false,
            waiting: None,
            queue: VecDeque::new(),
        }
    }
}
