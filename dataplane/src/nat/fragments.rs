//! The fragments under way (NAT-08). Only a datagram's first fragment has ports, so only it can be looked up;
//! what became of it is kept here until the others have passed, and those that come before it wait here.
//!
//! ```text
//!            first fragment         its fate known
//!  waiting ────────────────→ take ────────────────→ decided ─ all passed, or the time is over ─→ forgotten
//!     │  the time is over: what waits is dropped       ↑
//!     └── no datagram has such a fragment, ────────────┘ fate: dropped
//!         two overlap or contradict
//! ```
//!
//! A fragment inside what has come already is dropped as a duplicate, any other overlap condemns the datagram,
//! as in the kernel (RFC 5722 with erratum 3089). The kernel puts a datagram together before it looks at it;
//! here its fragments pass one by one, so its transport checksum is not verified.
//!
//! Memory is bounded by [`Limits`] whatever comes in. Where one is reached, the oldest gives way: what a flood
//! of fragments fills, it soon empties again. An entry is found by a hash under the flow table's secret key.

use std::time::Duration;

use arrayvec::ArrayVec;
use hashbrown::HashTable;

use crate::flow::{FlowKey, Hash};
use crate::packet::fragment::{DatagramId, Piece};
use crate::packet::{Family, Packet, Protocol};
use crate::stats::Reason;
use crate::time::Instant;

/// Fragments of one datagram that wait at most: a full datagram in packets of 576 bytes, the least that every
/// host takes, has 119.
const QUEUE: usize = 128;

/// Gaps between the fragments of one datagram at most, plus one.
const RUNS: usize = 64;

/// No slot.
const NONE: u32 = u32::MAX;

/// Bounds of the fragments under way in one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Datagrams that are known at a time.
    pub datagrams: usize,
    /// Fragments that wait at a time.
    pub fragments: usize,
    /// Bytes of frames that wait at a time (the kernel's `ipfrag_high_thresh`).
    pub bytes: usize,
    /// How long a datagram is remembered, and how long a fragment waits for the first one.
    pub timeout: Duration,
}

impl Limits {
    /// The defaults: times and bytes are Linux's, 30 s (IPv6: 60 s) and 4 MiB.
    pub fn of<A: Family>() -> Limits {
        Limits {
            datagrams: 4096,
            fragments: 1024,
            bytes: 4 << 20,
            timeout: Duration::from_secs(if A::VERSION == 4 { 30 } else { 60 }),
        }
    }
}

/// What becomes of a datagram's fragments: what became of its first one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// They go the way of the connection with these ports, as they came in.
    Flow {
        /// Source port, or ICMP identifier.
        source_port: u16,
        /// Destination port, or ICMP type and code.
        destination_port: u16,
        /// The protocol behind all headers.
        protocol: Protocol,
    },
    /// They belong to no connection (CT-08).
    Invalid,
    /// They are dropped.
    Dropped(Reason),
}

/// What is to be done with a fragment that came in.
#[derive(Debug)]
pub enum Arrival {
    /// Its datagram's fate is known.
    Decided(Packet, Fate),
    /// The fragments of this datagram are to be taken, and its fate decided by the first of them.
    Ready(Datagram),
    /// It waits for its datagram's first one.
    Waits,
    /// It was dropped.
    Lost,
}

/// A datagram that is ready. Outdated when it had to give way to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Datagram {
    slot: u32,
    generation: u32,
}

/// The fragments under way in one family. See the module's documentation.
#[derive(Debug)]
pub struct Fragments<A: Family> {
    limits: Limits,
    index: HashTable<u32>,
    slots: Vec<Slot<A>>,
    /// Slots that are free.
    free: Vec<u32>,
    waiting: Age,
    decided: Age,
    kept: Kept,
}

/// What is known of one datagram.
#[derive(Debug)]
struct Slot<A: Family> {
    id: DatagramId<A>,
    hash: u64,
    /// Counts the lives of the slot.
    generation: u32,
    /// Neighbours in its list by age.
    older: u32,
    younger: u32,
    deadline: Instant,
    runs: Runs,
    /// Where the datagram ends, once its last fragment has come.
    end: Option<u32>,
    /// Nothing: it waits for its first fragment.
    fate: Option<Fate>,
    /// Whether the first one has to wait for the last ([`Piece::needs_length`]).
    needs_length: bool,
    /// The fragment kept last, and how many there are.
    queue: u32,
    queued: u16,
}

/// Datagrams in the order of their deadlines.
#[derive(Clone, Copy, Debug)]
struct Age {
    oldest: u32,
    youngest: u32,
}

impl Age {
    const EMPTY: Age = Age { oldest: NONE, youngest: NONE };
}

/// The bytes that have come: ranges in ascending order, none adjacent to another.
#[derive(Clone, Debug, Default)]
struct Runs(ArrayVec<(u16, u16), RUNS>);

/// What a range is to those before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Added {
    New,
    Duplicate,
    Overlap,
    Full,
}

impl Runs {
    fn add(&mut self, start: u16, end: u16) -> Added {
        let at = self.0.partition_point(|run| run.1 < start);
        // The first run that does not end before the range, and so is adjacent, overlaps, or lies behind.
        let Some(&run) = self.0.get(at).filter(|run| run.0 <= end) else {
            return match self.0.try_insert(at, (start, end)) {
                Ok(()) => Added::New,
                Err(_) => Added::Full,
            };
        };
        if run.0 <= start && end <= run.1 {
            return Added::Duplicate;
        }
        if end == run.0 {
            self.0[at].0 = start;
            return Added::New;
        }
        if start != run.1 {
            return Added::Overlap;
        }
        match self.0.get(at + 1).copied().filter(|next| next.0 <= end) {
            Some(next) if next.0 < end => return Added::Overlap,
            Some(next) => {
                self.0[at].1 = next.1;
                self.0.remove(at + 1);
            }
            None => self.0[at].1 = end,
        }
        Added::New
    }

    /// Where the last range ends.
    fn end(&self) -> u32 {
        self.0.last().map_or(0, |run| u32::from(run.1))
    }

    fn has_first(&self) -> bool {
        self.0.first().is_some_and(|run| run.0 == 0)
    }

    fn is_whole(&self, end: u32) -> bool {
        matches!(self.0[..], [(0, last)] if u32::from(last) == end)
    }
}

/// The fragments that wait, each linked to the one of its datagram that was kept before.
#[derive(Debug, Default)]
struct Kept {
    slots: Vec<Option<Waiting>>,
    free: Vec<u32>,
    bytes: usize,
}

#[derive(Debug)]
struct Waiting {
    packet: Packet,
    start: u32,
    end: u32,
    next: u32,
}

impl Kept {
    fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn push(&mut self, waiting: Waiting) -> u32 {
        self.bytes += waiting.packet.len();
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(waiting);
                slot
            }
            None => {
                self.slots.push(Some(waiting));
                self.slots.len() as u32 - 1
            }
        }
    }

    fn get_mut(&mut self, slot: u32) -> Option<&mut Waiting> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    /// Takes what is in a slot out of it, but not out of its list.
    fn take(&mut self, slot: u32) -> Option<Waiting> {
        let waiting = self.slots.get_mut(slot as usize)?.take()?;
        self.bytes -= waiting.packet.len();
        self.free.push(slot);
        Some(waiting)
    }

    /// Takes the fragment with the lowest start out of the list that begins at `head`.
    fn take_lowest(&mut self, head: &mut u32) -> Option<Waiting> {
        let (mut best, mut before_best, mut before, mut at) = (NONE, NONE, NONE, *head);
        let mut lowest = u32::MAX;
        while let Some(waiting) = self.get_mut(at) {
            if waiting.start < lowest {
                (best, before_best, lowest) = (at, before, waiting.start);
            }
            (before, at) = (at, waiting.next);
        }
        let taken = self.take(best)?;
        match self.get_mut(before_best) {
            Some(before) => before.next = taken.next,
            None => *head = taken.next,
        }
        Some(taken)
    }
}

impl<A: Family> Fragments<A> {
    /// No fragments. Memory is asked for here, and used as it is needed.
    pub fn new(limits: Limits) -> Fragments<A> {
        let datagrams = limits.datagrams.clamp(1, NONE as usize);
        let limits = Limits { datagrams, ..limits };
        Fragments {
            limits,
            index: HashTable::with_capacity(datagrams),
            slots: Vec::with_capacity(datagrams),
            free: Vec::with_capacity(datagrams),
            waiting: Age::EMPTY,
            decided: Age::EMPTY,
            kept: Kept {
                // One more: what makes its datagram ready passes through.
                slots: Vec::with_capacity(limits.fragments + 1),
                free: Vec::with_capacity(limits.fragments + 1),
                bytes: 0,
            },
        }
    }

    /// The bounds.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// How long datagrams are remembered that come from now on.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.limits.timeout = timeout;
    }

    /// Fragments that wait now.
    pub fn held(&self) -> usize {
        self.kept.len()
    }

    /// Bytes of the frames that wait now.
    pub fn held_bytes(&self) -> usize {
        self.kept.bytes
    }

    /// Datagrams that are known now.
    pub fn datagrams(&self) -> usize {
        self.index.len()
    }

    /// The hash key of a datagram, for the flow table's hash.
    pub fn key(id: &DatagramId<A>) -> FlowKey<A> {
        FlowKey {
            source: id.source,
            destination: id.destination,
            source_port: (id.identification >> 16) as u16,
            destination_port: id.identification as u16,
            protocol: id.protocol,
        }
    }

    /// Takes in a fragment. `hash` is that of its datagram's [`key`](Self::key). What is dropped, this fragment
    /// or others, goes to `lost`.
    pub fn arrive(
        &mut self,
        packet: Packet,
        piece: &Piece<A>,
        hash: Hash,
        now: Instant,
        lost: &mut impl FnMut(Packet, Reason),
    ) -> Arrival {
        let slot = self.find_or_create(&piece.datagram, hash.wide(), now, lost);
        if let Some(fate @ Fate::Dropped(_)) = self.slots[slot as usize].fate {
            return Arrival::Decided(packet, fate);
        }
        if let Err(reason) = self.note(slot, piece) {
            lost(packet, reason);
            if reason != Reason::FragmentDuplicate {
                self.condemn(slot, reason, now, lost);
            }
            return Arrival::Lost;
        }
        let known = &self.slots[slot as usize];
        match known.fate {
            Some(fate) => {
                if known.end.is_some_and(|end| known.runs.is_whole(end)) {
                    self.forget(slot);
                }
                Arrival::Decided(packet, fate)
            }
            None => self.keep(packet, piece, slot, now, lost),
        }
    }

    /// Takes the next fragment of a datagram that is ready, in the order of their places; with it, how many
    /// bytes of the datagram are behind it, as far as is known.
    pub fn take(&mut self, datagram: Datagram) -> Option<(Packet, u16)> {
        let slot = self.slots.get_mut(datagram.slot as usize)?;
        if slot.generation != datagram.generation {
            return None;
        }
        let Waiting { packet, end, .. } = self.kept.take_lowest(&mut slot.queue)?;
        slot.queued -= 1;
        let following = slot.end.map_or(0, |all| all - end);
        Some((packet, following as u16))
    }

    /// Says what became of a ready datagram's first fragment. The others are to be taken before another
    /// fragment is taken in.
    pub fn decide(&mut self, datagram: Datagram, fate: Fate, now: Instant) {
        let Some(slot) = self.slots.get(datagram.slot as usize) else { return };
        if slot.generation != datagram.generation || slot.fate.is_some() {
            return;
        }
        self.settle(datagram.slot, fate, now);
    }

    /// Forgets a ready datagram that has been taken whole.
    pub fn finish(&mut self, datagram: Datagram) {
        let Some(slot) = self.slots.get(datagram.slot as usize) else { return };
        if slot.generation == datagram.generation && slot.end.is_some_and(|end| slot.runs.is_whole(end)) {
            self.forget(datagram.slot);
        }
    }

    /// Forgets datagrams whose time is over, `budget` at most. What still waited goes to `lost`.
    pub fn expire(&mut self, now: Instant, budget: usize, lost: &mut impl FnMut(Packet, Reason)) {
        for _ in 0..budget {
            let over = [self.waiting.oldest, self.decided.oldest]
                .into_iter()
                .find(|&slot| self.slots.get(slot as usize).is_some_and(|slot| slot.deadline <= now));
            let Some(slot) = over else { return };
            self.drop_kept(slot, Reason::FragmentTimeout, lost);
            self.forget(slot);
        }
    }

    /// Forgets everything; what waits goes to `lost` under `reason`.
    pub fn clear(&mut self, reason: Reason, lost: &mut impl FnMut(Packet, Reason)) {
        while let Some(slot) =
            [self.waiting.oldest, self.decided.oldest].into_iter().find(|&slot| slot != NONE)
        {
            self.drop_kept(slot, reason, lost);
            self.forget(slot);
        }
    }

    fn find_or_create(
        &mut self,
        id: &DatagramId<A>,
        hash: u64,
        now: Instant,
        lost: &mut impl FnMut(Packet, Reason),
    ) -> u32 {
        let found = self.index.find(hash, |&slot| self.slots[slot as usize].id == *id).copied();
        if let Some(slot) = found {
            if now < self.slots[slot as usize].deadline {
                return slot;
            }
            self.drop_kept(slot, Reason::FragmentTimeout, lost);
            self.forget(slot);
        }
        if self.index.len() >= self.limits.datagrams {
            // What is decided holds no memory but its slot; its other fragments are lost, not delayed.
            let slot = if self.decided.oldest != NONE { self.decided.oldest } else { self.waiting.oldest };
            self.drop_kept(slot, Reason::FragmentOverflow, lost);
            self.forget(slot);
        }
        let new = Slot {
            id: *id,
            hash,
            generation: 0,
            older: NONE,
            younger: NONE,
            deadline: now + self.limits.timeout,
            runs: Runs::default(),
            end: None,
            fate: None,
            needs_length: false,
            queue: NONE,
            queued: 0,
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                let generation = self.slots[slot as usize].generation;
                self.slots[slot as usize] = Slot { generation, ..new };
                slot
            }
            None => {
                self.slots.push(new);
                self.slots.len() as u32 - 1
            }
        };
        let slots = &self.slots;
        self.index.insert_unique(hash, slot, |&slot| slots[slot as usize].hash);
        self.link(slot);
        slot
    }

    /// Takes note of a fragment's place. Why it is refused, if so: only a duplicate leaves the others alone.
    fn note(&mut self, slot: u32, piece: &Piece<A>) -> Result<(), Reason> {
        if !piece.is_possible() {
            return Err(Reason::FragmentLength);
        }
        let slot = &mut self.slots[slot as usize];
        // The same end twice is no contradiction, two ends or something behind the end are.
        let contradicts = match slot.end {
            Some(end) => piece.end > end || (piece.last && piece.end != end),
            None => piece.last && piece.end < slot.runs.end(),
        };
        if contradicts {
            return Err(Reason::FragmentOverlap);
        }
        match slot.runs.add(piece.start as u16, piece.end as u16) {
            Added::New => {}
            Added::Duplicate => return Err(Reason::FragmentDuplicate),
            Added::Overlap => return Err(Reason::FragmentOverlap),
            Added::Full => return Err(Reason::FragmentOverflow),
        }
        if piece.last {
            slot.end = Some(piece.end);
        }
        slot.needs_length |= piece.needs_length;
        Ok(())
    }

    /// Keeps a fragment of a datagram that is not decided.
    fn keep(
        &mut self,
        packet: Packet,
        piece: &Piece<A>,
        slot: u32,
        now: Instant,
        lost: &mut impl FnMut(Packet, Reason),
    ) -> Arrival {
        let known = &self.slots[slot as usize];
        let datagram = Datagram { slot, generation: known.generation };
        let ready = known.runs.has_first() && (known.end.is_some() || !known.needs_length);
        if usize::from(known.queued) >= QUEUE && !ready {
            lost(packet, Reason::FragmentOverflow);
            self.condemn(slot, Reason::FragmentOverflow, now, lost);
            return Arrival::Lost;
        }
        while self.kept.len() >= self.limits.fragments || self.kept.bytes + packet.len() > self.limits.bytes {
            let oldest = self.waiting.oldest;
            if oldest == NONE || oldest == slot {
                break;
            }
            self.drop_kept(oldest, Reason::FragmentOverflow, lost);
            self.forget(oldest);
        }
        // What is ready is taken at once.
        let full =
            self.kept.len() >= self.limits.fragments || self.kept.bytes + packet.len() > self.limits.bytes;
        if full && !ready {
            lost(packet, Reason::FragmentOverflow);
            self.condemn(slot, Reason::FragmentOverflow, now, lost);
            return Arrival::Lost;
        }
        let known = &mut self.slots[slot as usize];
        known.queue =
            self.kept.push(Waiting { packet, start: piece.start, end: piece.end, next: known.queue });
        known.queued += 1;
        if ready { Arrival::Ready(datagram) } else { Arrival::Waits }
    }

    /// Drops what waits of a datagram, and what will come.
    fn condemn(&mut self, slot: u32, reason: Reason, now: Instant, lost: &mut impl FnMut(Packet, Reason)) {
        self.drop_kept(slot, reason, lost);
        self.settle(slot, Fate::Dropped(reason), now);
    }

    fn drop_kept(&mut self, slot: u32, reason: Reason, lost: &mut impl FnMut(Packet, Reason)) {
        let known = &mut self.slots[slot as usize];
        let mut at = std::mem::replace(&mut known.queue, NONE);
        known.queued = 0;
        while let Some(Waiting { packet, next, .. }) = self.kept.take(at) {
            lost(packet, reason);
            at = next;
        }
    }

    fn settle(&mut self, slot: u32, fate: Fate, now: Instant) {
        self.unlink(slot);
        let known = &mut self.slots[slot as usize];
        known.fate = Some(fate);
        known.deadline = now + self.limits.timeout;
        self.link(slot);
    }

    fn forget(&mut self, slot: u32) {
        self.unlink(slot);
        let known = &mut self.slots[slot as usize];
        known.generation = known.generation.wrapping_add(1);
        if let Ok(entry) = self.index.find_entry(known.hash, |&other| other == slot) {
            entry.remove();
        }
        self.free.push(slot);
    }

    /// The list that a datagram belongs in.
    fn age(&mut self, slot: u32) -> &mut Age {
        match self.slots[slot as usize].fate {
            None => &mut self.waiting,
            Some(_) => &mut self.decided,
        }
    }

    fn link(&mut self, slot: u32) {
        let age = self.age(slot);
        let older = std::mem::replace(&mut age.youngest, slot);
        if older == NONE {
            age.oldest = slot;
        } else {
            self.slots[older as usize].younger = slot;
        }
        self.slots[slot as usize].older = older;
        self.slots[slot as usize].younger = NONE;
    }

    fn unlink(&mut self, slot: u32) {
        let (older, younger) = (self.slots[slot as usize].older, self.slots[slot as usize].younger);
        match self.slots.get_mut(older as usize) {
            Some(older) => older.younger = younger,
            None => self.age(slot).oldest = younger,
        }
        match self.slots.get_mut(younger as usize) {
            Some(younger) => younger.older = older,
            None => self.age(slot).youngest = older,
        }
    }
}

#[cfg(test)]
#[path = "fragments_tests.rs"]
mod tests;
