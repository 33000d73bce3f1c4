//! How a packet moves its connection: state, last use, deadline. See [`table`](super::table) for the protocol
//! between those who read and write these words at once.

use super::entry::USE;
use super::events::EventKind;
use super::key::Direction;
use super::state::{Effect, Event, STREAM_AFTER, State, Status, step};
use super::table::{End, FlowTable};
use super::types::{Class, Hit, SETTLED_MILLIS, Tick, Touch};
use crate::packet::family::Family;
use crate::sync::Ordering::{AcqRel, Acquire, Relaxed};

/// A settled time is at most this part of the timeout.
const SETTLED_SHARE: u32 = 32;

impl<A: Family> FlowTable<A> {
    /// Moves the connection of `hit` by one packet: state, last use, expiry. `hit` may be old: a connection
    /// that is gone is never changed.
    pub fn touch(&self, hit: &Hit<A>, event: Event, now: Tick) -> Touch {
        let entry = hit.entry;
        let last_use = &self.entries.view(entry.index)[USE];
        let peer_use = &self.entries.view(entry.index ^ 1)[USE];
        let begun = &self.entries.view(entry.original())[USE];
        let state = &self.states[entry.connection() as usize];
        let deadline = &self.deadlines[entry.connection() as usize];
        loop {
            // Before the state word: whoever changes the state after we read it makes our swaps below fail.
            let old_use = last_use.load(Acquire);
            let mut old_deadline = deadline.load(Acquire);
            let word = state.load(Acquire);
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
            let age = now.0.wrapping_sub((begun.load(Relaxed) >> 32) as u32);
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
            if changed && state.compare_exchange(word, next_word, AcqRel, Acquire).is_err() {
                continue;
            }
            if status.differs_for_people(next) {
                self.tell(EventKind::Update, entry.connection(), now);
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
                if !changed || state.load(Acquire) != next_word {
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
}
