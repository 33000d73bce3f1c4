//! What the wire sees: a recorder before any port.

use std::any::Any;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use arrayvec::ArrayVec;

use super::{Capture, Direction, Record, WallClock};
use crate::packet::{BURST, Burst, PortId};
use crate::port::{Capabilities, LinkState, Port};

/// A port whose frames are recorded: those that the device gave, those that it took. What it refuses is not recorded,
/// and all that the port before it had to finish for it is finished.
///
/// Recorders are put before a port and taken away while it works ([`RecorderPort::remove`]); each belongs to one
/// capture. A recorder that stands before a [fault injector](crate::port::fault) sees what the bad wire let through.
pub struct RecorderPort {
    port: Box<dyn Port>,
    id: PortId,
    capture: Arc<Capture>,
    clock: WallClock,
}

impl RecorderPort {
    /// Puts a recorder for `capture` before `port`, which has the number `id`.
    pub fn new(port: Box<dyn Port>, id: PortId, capture: Arc<Capture>, clock: WallClock) -> RecorderPort {
        RecorderPort { port, id, capture, clock }
    }

    /// Takes the recorder of `capture` away from before `port`, wherever it stands among other recorders. A port
    /// without one is given back as it is.
    pub fn remove(port: Box<dyn Port>, capture: &Arc<Capture>) -> Box<dyn Port> {
        if !(&*port as &dyn Any).is::<RecorderPort>() {
            return port;
        }
        let port: Box<dyn Any> = port;
        let mut recorder = port.downcast::<RecorderPort>().expect("it was asked a moment ago");
        if Arc::ptr_eq(&recorder.capture, capture) {
            return recorder.port;
        }
        recorder.port = RecorderPort::remove(recorder.port, capture);
        recorder
    }
}

impl Port for RecorderPort {
    fn receive(&mut self, burst: &mut Burst) -> io::Result<()> {
        let before = burst.len();
        let result = self.port.receive(burst);
        // A port may fail in the middle of a burst: what it gave before is there all the same.
        for packet in &burst[before..] {
            if let Some(record) = self.capture.record(&self.clock, self.id, Direction::In, packet) {
                self.capture.commit(record);
            }
        }
        result
    }

    fn transmit(&mut self, burst: &mut Burst) -> io::Result<()> {
        // The port takes frames from the front, and afterwards they are gone.
        let records: ArrayVec<Option<Box<Record>>, BURST> = burst
            .iter()
            .map(|packet| self.capture.record(&self.clock, self.id, Direction::Out, packet))
            .collect();
        let offered = burst.len();
        let result = self.port.transmit(burst);
        let taken = offered - burst.len();
        for (at, record) in records.into_iter().enumerate() {
            match record {
                Some(record) if at < taken => self.capture.commit(record),
                Some(record) => self.capture.discard(record),
                None => {}
            }
        }
        result
    }

    fn capabilities(&self) -> Capabilities {
        self.port.capabilities()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        self.port.readiness()
    }

    fn missed(&mut self) -> u64 {
        self.port.missed()
    }

    fn link(&mut self) -> Option<LinkState> {
        self.port.link()
    }

    fn device_counters(&mut self) -> Vec<(String, u64)> {
        self.port.device_counters()
    }
}
