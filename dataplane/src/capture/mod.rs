//! Captures: frames as they pass, with what became of them, for whoever looks on from another thread.
//!
//! ```text
//! worker ─→ Watcher (every step of every frame) ─┐                        ┌─→ a pcapng file
//! port ←─→ RecorderPort (what the wire sees)    ─┼→ Capture: filter, ring ┼─→ lines of the log
//! another worker ─→ ...                         ─┘                        └─→ `pollux capture`
//! ```
//!
//! A [`Capture`] is a filter and a bounded ring of [`Record`]s whose memory was allocated before. The worker never
//! waits for who reads: a frame that finds no free record is forwarded all the same, and counted as lost to the
//! capture. There are two ways to fill it. A [`Watcher`] listens to the forwarder: each frame comes with the events
//! that it met. A [`RecorderPort`] stands before a port: what it records is what the device gave and took, whatever the
//! forwarder thinks of it.

mod filter;
mod recorder;
mod watcher;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;

use crate::forward::Event;
use crate::packet::{Packet, PortId};
pub use filter::{Filter, FilterError, LONGEST};
pub use recorder::RecorderPort;
pub use watcher::Watcher;

/// Records that may wait for the reader, when nothing else is said.
pub const RECORDS: usize = 4096;

/// Bytes of frames that may wait for it: super-frames are long.
const BYTES: usize = 64 << 20;

/// Bytes and events that a record holds without asking for memory.
const ROOM: usize = 2048;
const STEPS: usize = 24;

/// Which way a frame goes, seen from the forwarder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// It came in at the port.
    In,
    /// It leaves by the port.
    Out,
}

/// What tells the time of records: nanoseconds since the Unix epoch.
pub type WallClock = Box<dyn Fn() -> u64 + Send>;

/// One frame of a capture.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it passed, nanoseconds since the Unix epoch.
    pub nanos: u64,
    /// By which port.
    pub port: PortId,
    /// Which way.
    pub direction: Direction,
    /// Its length on the wire, bytes.
    pub len: usize,
    /// Its first bytes, at most as many as the capture asks for.
    pub bytes: Vec<u8>,
    /// What it met, as far as that was seen: of a frame that leaves up to there. Empty where nobody listened.
    pub events: Vec<Event>,
    /// The tables that the events speak of: where they lie in memory, to be compared and not followed.
    pub tables: usize,
}

/// How much is captured, and of what.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which frames.
    pub filter: Filter,
    /// Bytes of each frame, from its start.
    pub snap_len: usize,
    /// Records that may wait for the reader, at least 1.
    pub records: usize,
}

impl Default for Options {
    /// Every frame as a whole.
    fn default() -> Self {
        Options { filter: Filter::default(), snap_len: crate::port::MAX_FRAME, records: RECORDS }
    }
}

/// What a capture has come to, frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Given to the reader, or waiting for it.
    pub captured: u64,
    /// Lost to the capture because the reader was too slow.
    pub lost: u64,
}

/// A capture: filled by any number of workers, emptied by one reader.
#[derive(Debug)]
pub struct Capture {
    filter: Filter,
    snap_len: usize,
    free: ArrayQueue<Box<Record>>,
    filled: ArrayQueue<Box<Record>>,
    waiting_bytes: AtomicUsize,
    captured: AtomicU64,
    lost: AtomicU64,
}

impl Capture {
    /// A capture with all of its memory.
    ///
    /// # Panics
    /// If there are to be no records.
    pub fn new(options: Options) -> Arc<Capture> {
        let Options { filter, snap_len, records } = options;
        let free = ArrayQueue::new(records);
        while free.push(Box::new(Record::empty())).is_ok() {}
        Arc::new(Capture {
            filter,
            snap_len,
            free,
            filled: ArrayQueue::new(records),
            waiting_bytes: AtomicUsize::new(0),
            captured: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        })
    }

    /// The oldest record that waits. It is to be [given back](Capture::give_back).
    pub fn take(&self) -> Option<Box<Record>> {
        let record = self.filled.pop()?;
        self.waiting_bytes.fetch_sub(record.bytes.len(), Ordering::Relaxed);
        Some(record)
    }

    /// Gives a record back for the next frame.
    pub fn give_back(&self, mut record: Box<Record>) {
        // What a super-frame took is freed here and not in a worker.
        if record.bytes.capacity() > ROOM || record.events.capacity() > STEPS {
            *record = Record::empty();
        }
        let _ = self.free.push(record); // there are no more than fit
    }

    /// The counters: exact when no worker is in the middle of a burst.
    pub fn counters(&self) -> Counters {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters { captured: of(&self.captured), lost: of(&self.lost) }
    }

    /// A record with a copy of the frame, if the frame is meant and there is room.
    fn record(
        &self,
        clock: &WallClock,
        port: PortId,
        direction: Direction,
        packet: &Packet,
    ) -> Option<Box<Record>> {
        if !self.filter.selects(direction, packet.head(), packet.len()) {
            return None;
        }
        let len = packet.len().min(self.snap_len);
        if self.waiting_bytes.load(Ordering::Relaxed) + len > BYTES {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let Some(mut record) = self.free.pop() else {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        record.nanos = clock();
        (record.port, record.direction, record.len) = (port, direction, packet.len());
        record.bytes.clear();
        for part in packet.segments() {
            let left = len - record.bytes.len();
            record.bytes.extend_from_slice(&part[..part.len().min(left)]);
        }
        record.events.clear();
        record.tables = 0;
        Some(record)
    }

    /// Hands a record to the reader.
    fn commit(&self, record: Box<Record>) {
        self.waiting_bytes.fetch_add(record.bytes.len(), Ordering::Relaxed);
        self.captured.fetch_add(1, Ordering::Relaxed);
        let _ = self.filled.push(record); // there are no more than fit
    }

    /// Takes back a record whose frame did not pass after all.
    fn discard(&self, record: Box<Record>) {
        let _ = self.free.push(record); // there are no more than fit
    }
}

impl Record {
    fn empty() -> Record {
        Record {
            nanos: 0,
            port: PortId(0),
            direction: Direction::In,
            len: 0,
            bytes: Vec::with_capacity(ROOM),
            events: Vec::with_capacity(STEPS),
            tables: 0,
        }
    }
}

/// The system's clock.
pub fn wall_clock() -> WallClock {
    Box::new(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    })
}

#[cfg(test)]
mod tests;
