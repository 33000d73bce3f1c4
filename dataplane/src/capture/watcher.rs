//! Frames with what became of them: an observer of the forwarder.

use std::sync::Arc;

use super::{Capture, Direction, Record, WallClock};
use crate::forward::{Event, Observer};
use crate::packet::{Packet, PortId};
use crate::tables::Tables;

/// Events of one frame that are kept; the rest of a longer story is not told.
const LONGEST_STORY: usize = 64;

/// Frames that one frame gives rise to and that are held back until its own story ends, so that it comes first.
const FOLLOWERS: usize = 64;

/// Feeds a capture with the frames that a worker's forwarder handles, each with its events. A frame that leaves is
/// recorded as it is then, before the port finishes what its device cannot and may refuse it.
pub struct Watcher {
    capture: Arc<Capture>,
    /// Nothing: every port.
    port: Option<PortId>,
    clock: WallClock,
    /// The frame in hand, if it is meant.
    current: Option<Box<Record>>,
    /// What it has met so far.
    events: Vec<Event>,
    /// Frames that have left since.
    left: Vec<Box<Record>>,
    tables: usize,
}

impl Watcher {
    /// Feeds `capture` with the frames of one port, or of all.
    pub fn new(capture: Arc<Capture>, port: Option<PortId>, clock: WallClock) -> Watcher {
        Watcher {
            capture,
            port,
            clock,
            current: None,
            events: Vec::with_capacity(LONGEST_STORY),
            left: Vec::with_capacity(FOLLOWERS),
            tables: 0,
        }
    }

    fn is_meant(&self, port: PortId) -> bool {
        self.port.is_none_or(|meant| meant == port)
    }

    /// Ends a story: its frame first, then those that came of it.
    fn end(&mut self) {
        if let Some(mut record) = self.current.take() {
            record.events.extend_from_slice(&self.events);
            self.capture.commit(record);
        }
        self.events.clear();
        for record in self.left.drain(..) {
            self.capture.commit(record);
        }
    }
}

impl Observer for Watcher {
    fn see(&mut self, event: Event) {
        if self.events.len() < LONGEST_STORY {
            self.events.push(event);
        }
    }

    fn begins(&mut self, tables: &Arc<Tables>) {
        self.tables = Arc::as_ptr(tables).addr();
    }

    fn arrives(&mut self, packet: &Packet) {
        self.end();
        if self.is_meant(packet.port) {
            self.current = self.capture.record(&self.clock, packet.port, Direction::In, packet);
            if let Some(record) = &mut self.current {
                record.tables = self.tables;
            }
        }
    }

    fn leaves(&mut self, port: PortId, packet: &Packet) {
        if !self.is_meant(port) {
            return;
        }
        let Some(mut record) = self.capture.record(&self.clock, port, Direction::Out, packet) else { return };
        record.events.extend_from_slice(&self.events);
        record.tables = self.tables;
        // A neighbour that has been found may let hundreds go; nothing is to grow here.
        if self.left.len() == FOLLOWERS {
            self.end();
        }
        self.left.push(record);
    }

    fn resumes(&mut self) {
        self.end();
    }

    fn ends(&mut self) {
        self.end();
    }
}

impl Drop for Watcher {
    /// What is in hand is whole: between bursts there is nothing.
    fn drop(&mut self) {
        self.end();
    }
}
