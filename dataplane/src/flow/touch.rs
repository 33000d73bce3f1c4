//! How a packet moves its connection: state, last use, deadline. See [`table`](super::table) for the protocol
//! between those who read and write these words at once.

use super::entry::{SEEN, USE};
use super::events::EventKind;
use super::free::End;
use super::key::Direction;
use super::segment::{Memory, Seen, is_unacknowledged};
use super::state::{Effect, Event, STREAM_AFTER, State, Status, first_timeout, step};
use super::table::FlowTable;
use super::timeout::Timeout;
use super::types::{Class, EntryRef, Hit, SETTLED_MILLIS, Tick, Touch};
use super::window::Windows;
use crate::packet::family::Family;
use crate::sync::AtomicU64;
use crate::sync::Ordering::{AcqRel, Acquire, Relaxed};

/// A settled time is at most this part of the timeout.
const SETTLED_SHARE: u32 = 32;

/// A doubtful end shortens no time that is shorter than this anyway, in milliseconds.
const DOUBT_LEAST: u32 = 120_000;

impl<A: Family> FlowTable<A> {
    /// Whether a packet with this event may be forwarded from the copy alone ([`Hit::is_settled`]); its sequence
    /// numbers are noted then.
    #[inline]
    pub fn pass(&self, hit: &Hit<A>, event: &Event<'_>, now: Tick) -> bool {
        let passes = hit.is_settled(event, now);
        if let (true, Event::Tcp(segment)) = (passes, event) {
            self.follow(hit, segment.numbers());
        }
        passes
    }

    /// Notes the numbers of a TCP segment of a settled connection (CT-07): in the upper half the sequence number
    /// behind its data, in the lower its acknowledgement. One word, in the line that was read anyway, and written
    /// only when it changes.
    #[inline(always)]
    pub fn follow(&self, hit: &Hit<A>, numbers: u64) {
        const SIGNS: u64 = 0x8000_0000_8000_0000;
        let moved = numbers.wrapping_sub(hit.words.seen);
        if moved == 0 {
            return;
        }
        // Both have moved on or stand. A borrow of the lower half can only make it seem otherwise.
        if moved & SIGNS == 0 {
            self.entries.view(hit.entry.index)[SEEN].store(numbers, Relaxed);
        } else {
            self.raise(hit.entry, Seen::of(numbers));
        }
    }

    /// A worker that is late may write into the next connection of the slot: it does no worse there than a
    /// segment with strange numbers.
    #[cold]
    #[inline(never)]
    fn raise(&self, entry: EntryRef, segment: Seen) {
        let word = &self.entries.view(entry.index)[SEEN];
        let old = word.load(Relaxed);
        let new = Seen::of(old).with(segment).word();
        if new != old {
            word.store(new, Relaxed);
        }
    }

    /// Moves the connection of `hit` by one packet: state, last use, expiry. `hit` may be old: a connection
    /// that is gone is never changed.
    pub fn touch(&self, hit: &Hit<A>, event: &Event<'_>, now: Tick) -> Touch {
        loop {
            let touched = match &self.windows {
                Some(windows) if matches!(event, Event::Tcp(_)) => windows
                    .with(hit.entry.connection(), |windows| self.touch_with(hit, event, Some(windows), now)),
                _ => self.touch_with(hit, event, None, now),
            };
            // Connections end under the locks of buckets, which are never waited for with one of the windows' in hand.
            match touched {
                Ok(touch) => return touch,
                Err(Ending::Due) if self.end_if_over(hit.entry, now) => return Touch::Gone,
                Err(Ending::Due) => {} // it lives on
                Err(Ending::Now(touch)) => {
                    self.end(hit.entry, End::Removed);
                    return touch;
                }
            }
        }
    }

    fn touch_with(
        &self,
        hit: &Hit<A>,
        event: &Event<'_>,
        mut windows: Option<&mut Windows>,
        now: Tick,
    ) -> Result<Touch, Ending> {
        let entry = hit.entry;
        let direction = entry.direction();
        let last_use = &self.entries.view(entry.index)[USE];
        let peer_use = &self.entries.view(entry.index ^ 1)[USE];
        let state = &self.states[entry.connection() as usize];
        let deadline = &self.deadlines[entry.connection() as usize];
        loop {
            // Before the state word: whoever changes the state after we read it makes our swaps below fail.
            let old_use = last_use.load(Acquire);
            let mut old_deadline = deadline.load(Acquire);
            let word = state.load(Acquire);
            if (word >> 32) as u32 != entry.version {
                return Ok(Touch::Gone);
            }
            if old_deadline == 0 || now.until(old_deadline) <= 0 {
                return Err(Ending::Due);
            }
            let status = Status(word as u32);
            let class = if status.seen_reply() || direction == Direction::Reply {
                Class::Established
            } else {
                Class::New
            };
            let before = self.memory(entry);
            let mut memory = before;
            let mut tried = windows.as_deref().copied();
            let age = match status.state() {
                State::Udp => now.0.wrapping_sub(before.notes[0]),
                _ => 0,
            };
            let settings = (&self.sysctls, &self.timeouts);
            let effect = step(status, direction, event, age, &mut memory, tried.as_mut(), settings);
            let (mut next, timeout) = match effect {
                Effect::Invalid => {
                    if let (Some(windows), Some(tried)) = (&mut windows, tried) {
                        **windows = tried;
                    }
                    return Ok(Touch::Invalid);
                }
                Effect::Reopen => return Err(Ending::Now(Touch::Reopen)),
                Effect::Last => return Err(Ending::Now(Touch::Forward(class))),
                Effect::Forward(next, timeout) | Effect::Doubt(next, timeout) => (next, timeout),
            };
            let doubted = matches!(effect, Effect::Doubt(..));
            let early = timeout.filter(|_| !doubted).and_then(|timeout| self.early(next, timeout));
            if timeout.is_some() && !doubted {
                next = next.provisional(early.is_some());
            }
            let changed = next != status;
            let next_word = u64::from(entry.version) << 32 | u64::from(next.0);
            if changed && state.compare_exchange(word, next_word, AcqRel, Acquire).is_err() {
                continue;
            }
            if let (Some(windows), Some(tried)) = (&mut windows, tried) {
                **windows = tried;
            }
            self.remember(entry, &before, &memory);
            if status.differs_for_people(next) {
                self.tell(EventKind::Update, entry.connection(), now);
            }
            let note = u64::from(memory.notes[direction as usize]) << 32;
            if doubted {
                if let Some(cap) = timeout {
                    self.shorten(old_deadline, entry, cap, now);
                }
                return Ok(Touch::Invalid);
            }
            let Some(timeout) = timeout else {
                // What was ignored may be answered: the answer must not be waved through.
                if changed {
                    let new = note | stale(old_use, now);
                    if last_use.compare_exchange(old_use, new, AcqRel, Relaxed).is_err() {
                        unsettle(last_use, now);
                    }
                    unsettle(peer_use, now);
                }
                return Ok(Touch::Forward(class));
            };
            let timeout = early.unwrap_or_else(|| self.timeouts.millis(timeout));
            let settled = self.settled_time(next, timeout, age);
            let new_deadline = now.plus(timeout + settled).max(1);
            while let Err(other) = deadline.compare_exchange(old_deadline, new_deadline, AcqRel, Acquire) {
                // The connection was found over, by a clock that is ahead of this packet's.
                if other == 0 {
                    return Err(Ending::Due);
                }
                // Who changed the state last says how long the connection lives; a mere user gives way. The
                // deadline was read before the state, so a later change makes the next swap fail too.
                if !changed || state.load(Acquire) != next_word {
                    break;
                }
                old_deadline = other;
            }
            let fresh = if settled == 0 { stale(old_use, now) } else { u64::from(now.plus(settled)) };
            if last_use.compare_exchange(old_use, note | fresh, AcqRel, Relaxed).is_err() && changed {
                unsettle(last_use, now);
            }
            // What is only remembered of a packet is no business of the other direction's.
            if changed && !(self.settles(status) && self.settles(next)) {
                unsettle(peer_use, now);
            }
            return Ok(Touch::Forward(class));
        }
    }

    /// The timeout that a connection begins with.
    pub(super) fn first_timeout(&self, status: Status, memory: &Memory) -> Timeout {
        first_timeout(status, memory, (&self.sysctls, &self.timeouts))
    }

    /// The early time of a provisional deadline ([`Status::is_provisional`]), when the connection has one.
    fn early(&self, next: Status, timeout: Timeout) -> Option<u32> {
        let own = self.timeouts.millis(Timeout::TcpEstablished);
        let short = self.timeouts.millis(Timeout::TcpUnack);
        let applies = matches!(timeout, Timeout::TcpEstablished | Timeout::TcpUnack)
            && matches!(next.state(), State::Tcp(_))
            && self.settles(next)
            && short < own;
        applies.then_some(short)
    }

    /// Whether plain packets of the connection may be waved through.
    fn settles(&self, status: Status) -> bool {
        let tcp = matches!(status.state(), State::Tcp(_));
        let repeats = || status.retransmissions() >= self.sysctls.tcp_max_retrans;
        status.is_settled() && !(tcp && (self.windows.is_some() || repeats()))
    }

    /// What the entries remember.
    pub(super) fn memory(&self, entry: EntryRef) -> Memory {
        let both = [entry.original(), entry.original() + 1].map(|index| self.entries.view(index));
        Memory {
            words: both.map(|view| view[SEEN].load(Acquire)),
            notes: both.map(|view| (view[USE].load(Acquire) >> 32) as u32),
        }
    }

    /// Writes word 7 of the entries where it has changed.
    fn remember(&self, entry: EntryRef, before: &Memory, after: &Memory) {
        for (direction, (old, new)) in before.words.iter().zip(after.words).enumerate() {
            if *old != new {
                self.entries.view(entry.original() + direction as u32)[SEEN].store(new, Relaxed);
            }
        }
    }

    /// Lets a connection live for `cap` at most.
    fn shorten(&self, old_deadline: u32, entry: EntryRef, cap: Timeout, now: Tick) {
        let left = now.until(old_deadline).max(0) as u32;
        let cap = self.timeouts.millis(cap);
        if left >= DOUBT_LEAST && left > cap {
            let new = now.plus(cap).max(1);
            let _ = self.deadlines[entry.connection() as usize].compare_exchange(
                old_deadline,
                new,
                AcqRel,
                Relaxed,
            );
        }
    }

    /// For a connection whose deadline has come: whether it is really over; it is to be ended then, and nobody can
    /// renew it any more. A provisional deadline that no data
    /// waits behind moves to where the connection's own timeout ends. The caller holds the locks of its buckets.
    pub(super) fn is_due(&self, connection: u32, now: Tick) -> bool {
        let deadline = &self.deadlines[connection as usize];
        loop {
            let old = deadline.load(Acquire);
            if now.until(old) > 0 {
                return false;
            }
            let state = &self.states[connection as usize];
            let word = state.load(Acquire);
            let status = Status(word as u32);
            if !status.is_provisional() || self.waits(status, connection) {
                // Who uses the connection in this very moment finds it over, or has just renewed it.
                match deadline.compare_exchange(old, 0, AcqRel, Acquire) {
                    Ok(_) => return true,
                    Err(_) => continue,
                }
            }
            let word_then = word & !u64::from(u32::MAX) | u64::from(status.provisional(false).0);
            if state.compare_exchange(word, word_then, AcqRel, Acquire).is_ok() {
                let new = old.wrapping_add(self.prolongation()).max(1);
                let _ = deadline.compare_exchange(old, new, AcqRel, Acquire);
            }
        }
    }

    /// By how much a provisional deadline comes too early when nothing waits for its acknowledgement.
    pub(super) fn prolongation(&self) -> u32 {
        let own = self.timeouts.millis(Timeout::TcpEstablished);
        own.saturating_sub(self.timeouts.millis(Timeout::TcpUnack))
    }

    /// When a connection ends if nothing comes any more.
    pub(super) fn true_deadline(&self, status: Status, connection: u32, deadline: u32) -> u32 {
        match status.is_provisional() && !self.waits(status, connection) {
            true => deadline.wrapping_add(self.prolongation()),
            false => deadline,
        }
    }

    /// Whether data of a TCP connection waits for its acknowledgement.
    pub(super) fn waits(&self, status: Status, connection: u32) -> bool {
        is_unacknowledged(status, &self.memory(EntryRef { index: connection * 2, version: 0 }))
    }

    /// How long packets may leave a connection alone that was just used.
    fn settled_time(&self, status: Status, timeout: u32, age: u32) -> u32 {
        if !self.settles(status) {
            return 0;
        }
        let time = SETTLED_MILLIS.min(timeout / SETTLED_SHARE);
        match status.state() {
            // The first packet after two seconds makes it a stream: it must not be waved through.
            State::Udp => time.min(STREAM_AFTER.saturating_sub(age)),
            _ => time,
        }
    }
}

/// Why a connection ends at a packet.
enum Ending {
    /// Its deadline has come.
    Due,
    /// The packet ends it; what is to be done with that.
    Now(Touch),
}

/// What ends the settled time of an entry, in the lower half: a time that has come, and another than the one that is
/// there, so that a swap against the old value fails.
fn stale(old: u64, now: Tick) -> u64 {
    let same = old as u32 == now.0;
    u64::from(now.0.wrapping_sub(u32::from(same)))
}

/// Ends the settled time of an entry, also when another worker is just beginning one from a state that has gone.
fn unsettle(last_use: &AtomicU64, now: Tick) {
    let mut old = last_use.load(Acquire);
    loop {
        let new = old & !u64::from(u32::MAX) | stale(old, now);
        match last_use.compare_exchange(old, new, AcqRel, Acquire) {
            Ok(_) => return,
            Err(other) => old = other,
        }
    }
}
