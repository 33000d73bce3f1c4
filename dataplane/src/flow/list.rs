//! What people may see of the table, and removal of what they choose (CT-11). Nothing here takes a lock that
//! the packet path waits for longer than one connection takes.

use std::time::Duration;

use crossbeam_channel::Receiver;

use super::events::{EventKind, FlowEvent};
use super::free::End;
use super::segment;
use super::state::{State, Status};
use super::table::FlowTable;
use super::timeout::Timeout;
use super::types::{EntryRef, FlowInfo, Tick};
use crate::packet::family::Family;
use crate::sync::{Ordering::Acquire, relax};

impl<A: Family> FlowTable<A> {
    /// The connection of an entry.
    pub fn get(&self, entry: EntryRef, now: Tick) -> Option<FlowInfo<A>> {
        self.info(entry.connection(), now).filter(|info| info.entry.version == entry.version)
    }

    /// The live connections in the `limit` slots from `cursor` on, and the cursor for the next call; start at
    /// 0. Takes no lock: a connection that is there all the while is listed once, one that comes or goes
    /// meanwhile may be missing.
    pub fn list(&self, cursor: usize, limit: usize, now: Tick) -> (Vec<FlowInfo<A>>, Option<usize>) {
        let used = self.free.used() as usize;
        let end = cursor.saturating_add(limit.max(1)).min(used);
        let flows = (cursor..end).filter_map(|slot| self.info(slot as u32, now)).collect();
        (flows, (end < used).then_some(end))
    }

    /// Removes the connections that `matches` chooses among the `limit` slots from `cursor` on; how many, and
    /// the cursor for the next call. Start at 0. Bounded by `limit`: large tables in portions, so that whoever
    /// inserts meanwhile waits for one removal at most.
    pub fn remove_matching(
        &self,
        cursor: usize,
        limit: usize,
        now: Tick,
        matches: &mut dyn FnMut(&FlowInfo<A>) -> bool,
    ) -> (usize, Option<usize>) {
        let used = self.free.used() as usize;
        let end = cursor.saturating_add(limit.max(1)).min(used);
        let chosen = (cursor..end).filter(|&slot| {
            let Some(flow) = self.info(slot as u32, now) else { return false };
            matches(&flow) && self.end(flow.entry, End::Removed)
        });
        (chosen.count(), (end < used).then_some(end))
    }

    /// What becomes of connections from now on. At most `capacity` events wait for the listener; what comes
    /// while so many do is lost ([`events_lost`](Self::events_lost)). Dropping the receiver ends it.
    pub fn subscribe(&self, capacity: usize) -> Receiver<FlowEvent<A>> {
        self.listeners.subscribe(capacity)
    }

    /// Events that were lost because a listener's queue was full.
    pub fn events_lost(&self) -> u64 {
        self.listeners.lost()
    }

    /// Tells the listeners, if there are any.
    #[inline]
    pub(super) fn tell(&self, kind: EventKind, connection: u32, now: Tick) {
        if self.listeners.any()
            && let Some(flow) = self.info(connection, now)
        {
            self.listeners.tell(&FlowEvent { kind, flow });
        }
    }

    /// Which timeout a connection's time runs on.
    fn timeout_of(&self, status: Status, connection: u32) -> Timeout {
        match status.state() {
            State::Tcp(state) => {
                let waits = self.waits(status, connection);
                segment::timeout(status, state, waits, &self.sysctls, &self.timeouts)
            }
            state => state.timeout(),
        }
    }

    /// A consistent copy of a connection, if the slot has one.
    pub(super) fn info(&self, connection: u32, now: Tick) -> Option<FlowInfo<A>> {
        let index = connection * 2;
        let mut waits = 0;
        loop {
            let (original, there) = self.entries.read_any(index)?;
            let (reply, back) = self.entries.read_any(index + 1)?;
            let deadline = self.deadlines[connection as usize].load(Acquire);
            let word = self.states[connection as usize].load(Acquire);
            if word == 0 {
                return None; // it is ending
            }
            if back.entry.version != there.entry.version || (word >> 32) as u32 != there.entry.version {
                // Between the two reads the slot got another connection.
                relax(&mut waits);
                continue;
            }
            let status = Status(word as u32);
            // Over, when there is none any more.
            let deadline =
                if deadline == 0 { now.0 } else { self.true_deadline(status, connection, deadline) };
            return Some(FlowInfo {
                entry: there.entry,
                id: there.entry.id(),
                original,
                reply,
                state: status.state(),
                seen_reply: status.seen_reply(),
                assured: status.assured(),
                mark: there.mark,
                timeout: self.timeout_of(status, connection),
                remaining: Duration::from_millis(now.until(deadline).max(0) as u64),
                original_next_hop: there.next_hop(),
                reply_next_hop: back.next_hop(),
                accounting: self.counts(connection),
            });
        }
    }
}
