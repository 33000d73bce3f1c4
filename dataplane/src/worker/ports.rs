//! A worker's ports, each with its queue of frames to send: those that it polls itself, and those that it reaches
//! through another worker.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::peers::Peers;
use crate::forward::Output;
use crate::packet::{BURST, Burst, Packet, PortId};
use crate::port::{Capabilities, Port, finish};
use crate::route::News;
use crate::stats::{PortStats, Reason, Stats};
use crate::time::Instant;

/// How long a port that failed is left alone.
const RETRY: Duration = Duration::from_millis(200);

/// The ports.
pub(super) struct PortSet {
    slots: Vec<Place>,
    pub(super) peers: Peers,
    pub(super) stats: Stats,
    /// The time of the poll or the chores in hand.
    pub(super) now: Instant,
}

/// What is under a port's number.
#[derive(Default)]
enum Place {
    #[default]
    Nothing,
    Own(Slot),
    Remote(Remote),
}

/// A port that the worker polls.
struct Slot {
    port: Box<dyn Port>,
    capabilities: Capabilities,
    queue: Burst,
    stats: PortStats,
    down_until: Option<Instant>,
    last_error: Option<String>,
}

/// A port that another worker polls.
struct Remote {
    id: PortId,
    owner: usize,
    queue: Burst,
    refused: u64,
}

/// A port that a worker has given back.
pub struct Removed {
    /// To be dropped outside of the packet path: closing a device takes time.
    pub port: Box<dyn Port>,
    /// What it has done at this worker.
    pub stats: PortStats,
}

impl PortSet {
    pub(super) fn new(peers: Peers) -> PortSet {
        PortSet { slots: Vec::new(), peers, stats: Stats::default(), now: Instant::ZERO }
    }

    pub(super) fn add(&mut self, id: PortId, port: Box<dyn Port>) {
        *self.place(id) = Place::Own(Slot {
            capabilities: port.capabilities(),
            port,
            queue: Burst::new(),
            stats: PortStats::default(),
            down_until: None,
            last_error: None,
        });
    }

    pub(super) fn add_remote(&mut self, id: PortId, owner: usize) {
        *self.place(id) = Place::Remote(Remote { id, owner, queue: Burst::new(), refused: 0 });
    }

    /// Queues are empty between bursts: nothing is lost with the port.
    pub(super) fn remove(&mut self, id: PortId) -> Option<Removed> {
        let mut slot = match std::mem::take(self.slots.get_mut(id.index())?) {
            Place::Own(slot) => slot,
            Place::Remote(_) | Place::Nothing => return None,
        };
        debug_assert!(slot.queue.is_empty(), "a port is removed within a burst");
        slot.stats.missed = slot.port.missed();
        Some(Removed { port: slot.port, stats: slot.stats })
    }

    /// Puts `change(port)` where an own port was.
    pub(super) fn change(&mut self, id: PortId, change: impl FnOnce(Box<dyn Port>) -> Box<dyn Port>) {
        let Some(place) = self.slots.get_mut(id.index()) else { return };
        *place = match std::mem::take(place) {
            Place::Own(mut slot) => {
                slot.port = change(slot.port);
                slot.capabilities = slot.port.capabilities();
                Place::Own(slot)
            }
            other => other,
        };
    }

    fn place(&mut self, id: PortId) -> &mut Place {
        if self.slots.len() <= id.index() {
            self.slots.resize_with(id.index() + 1, Place::default);
        }
        &mut self.slots[id.index()]
    }

    /// One more than the highest number of a port.
    pub(super) fn end(&self) -> usize {
        self.slots.len()
    }

    fn own(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter_map(|place| match place {
            Place::Own(slot) => Some(slot),
            Place::Remote(_) | Place::Nothing => None,
        })
    }

    /// Counters of each port; of one that another worker polls, what did not reach that worker.
    pub(super) fn stats(&mut self) -> Vec<(PortId, PortStats, Option<String>)> {
        let all = self.slots.iter_mut().enumerate();
        all.filter_map(|(at, place)| {
            let (stats, error) = match place {
                Place::Nothing => return None,
                Place::Own(slot) => {
                    slot.stats.missed = slot.port.missed();
                    (slot.stats.clone(), slot.down_until.and(slot.last_error.clone()))
                }
                Place::Remote(remote) => {
                    (PortStats { refused: remote.refused, ..PortStats::default() }, None)
                }
            };
            Some((PortId(at as u16), stats, error))
        })
        .collect()
    }

    pub(super) fn receive(&mut self, at: usize, burst: &mut Burst) {
        let Place::Own(slot) = &mut self.slots[at] else { return };
        if slot.is_left_alone(self.now) {
            return;
        }
        match slot.port.receive(burst) {
            Ok(()) => slot.down_until = None,
            Err(error) => slot.failed(&error, self.now),
        }
        // A port may fail in the middle of a burst: what it gave before is there all the same.
        slot.stats.received += burst.len() as u64;
        slot.stats.received_bytes += burst.iter().map(|packet| packet.len() as u64).sum::<u64>();
    }

    /// Sends what the other workers have handed over, a burst of each. Returns how many frames that were.
    pub(super) fn serve_peers(&mut self) -> usize {
        let PortSet { slots, peers, stats, now } = self;
        let mut taken = 0;
        peers.take(BURST, |port, packet| {
            taken += 1;
            match slots.get_mut(port.index()) {
                Some(Place::Own(slot)) => slot.send(packet, stats, *now),
                // It went while the frame was on its way. (A frame is handed over once.)
                _ => stats.dropped.count(Reason::PortDown),
            }
        });
        stats.taken += taken as u64;
        taken
    }

    /// Sends every queue's frames.
    pub(super) fn flush(&mut self) {
        let PortSet { slots, peers, stats, now } = self;
        for place in slots {
            match place {
                Place::Own(slot) if !slot.queue.is_empty() => slot.flush(stats, *now),
                Place::Remote(remote) if !remote.queue.is_empty() => remote.flush(peers, stats),
                _ => {}
            }
        }
    }

    /// Whether all ports that work have a descriptor to sleep on.
    pub(super) fn are_pollable(&self) -> bool {
        self.awake().all(|slot| slot.port.readiness().is_some())
    }

    /// The descriptors of the ports that work.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.awake().filter_map(|slot| slot.port.readiness())
    }

    fn awake(&self) -> impl Iterator<Item = &Slot> {
        self.own().filter(|slot| slot.down_until.is_none())
    }
}

impl Output for PortSet {
    #[inline]
    fn send(&mut self, port: PortId, packet: Packet) {
        match self.slots.get_mut(port.index()) {
            Some(Place::Own(slot)) => slot.send(packet, &mut self.stats, self.now),
            Some(Place::Remote(remote)) => remote.push(packet, &mut self.peers, &mut self.stats),
            Some(Place::Nothing) | None => self.stats.dropped.count(Reason::PortDown),
        }
    }

    fn tell(&mut self, news: News) {
        self.peers.tell(news);
    }
}

impl Remote {
    fn push(&mut self, packet: Packet, peers: &mut Peers, stats: &mut Stats) {
        if self.queue.is_full() {
            self.flush(peers, stats);
        }
        self.queue.push(packet);
    }

    /// Hands the queue over. What the ring has no room for is dropped and counted.
    fn flush(&mut self, peers: &mut Peers, stats: &mut Stats) {
        let frames = self.queue.len() as u64;
        let is_there = peers.hand(self.owner, self.id, &mut self.queue);
        let refused = self.queue.len() as u64;
        stats.handed += frames - refused;
        self.refused += refused;
        let reason = if is_there { Reason::TransmitFull } else { Reason::PortDown };
        for packet in self.queue.drain(..) {
            stats.dropped.count(reason);
            drop(packet);
        }
    }
}

impl Slot {
    #[inline]
    fn send(&mut self, packet: Packet, stats: &mut Stats, now: Instant) {
        if packet.offload.needs_nothing() || self.capabilities.carries(&packet.offload) {
            self.push(packet, stats, now);
        } else {
            self.finish_and_push(packet, stats, now);
        }
    }

    #[inline]
    fn push(&mut self, packet: Packet, stats: &mut Stats, now: Instant) {
        if self.queue.is_full() {
            self.flush(stats, now);
        }
        self.queue.push(packet);
    }

    /// What the backend cannot carry is done in software (PT-04).
    #[cold]
    fn finish_and_push(&mut self, packet: Packet, stats: &mut Stats, now: Instant) {
        let mut packet = packet;
        // A super-frame's checksum is finished segment by segment, also for a port that could cut it.
        if packet.offload.gso.is_none() {
            return match finish::finish_checksum(&mut packet) {
                Ok(()) => self.push(packet, stats, now),
                Err(reason) => stats.dropped.count(reason),
            };
        }
        let mut pieces = 0;
        let result = finish::segment(packet, &mut |piece| {
            pieces += 1;
            self.push(piece, stats, now);
        });
        // One frame went in; each piece beyond the first is a frame gained.
        match result {
            Ok(_) => stats.split += u64::saturating_sub(pieces, 1),
            Err((_, reason)) => {
                stats.split += pieces;
                stats.dropped.count(reason);
            }
        }
    }

    /// Whether the port has failed a moment ago.
    fn is_left_alone(&self, now: Instant) -> bool {
        self.down_until.is_some_and(|until| now < until)
    }

    /// Sends the queue. What the port refuses is dropped and counted.
    fn flush(&mut self, stats: &mut Stats, now: Instant) {
        let (frames, bytes) = (self.queue.len() as u64, self.bytes());
        let left_alone = self.is_left_alone(now);
        let result = if left_alone { Ok(()) } else { self.port.transmit(&mut self.queue) };
        let refused = self.queue.len() as u64;
        stats.transmitted += frames - refused;
        self.stats.transmitted += frames - refused;
        self.stats.transmitted_bytes += bytes - self.bytes();
        let reason = match result {
            Ok(()) if left_alone => Reason::PortDown,
            Ok(()) => Reason::TransmitFull,
            Err(error) => {
                self.failed(&error, now);
                Reason::PortDown
            }
        };
        for packet in self.queue.drain(..) {
            stats.dropped.count(reason);
            self.stats.refused += 1;
            drop(packet);
        }
    }

    fn bytes(&self) -> u64 {
        self.queue.iter().map(|packet| packet.len() as u64).sum()
    }

    fn failed(&mut self, error: &io::Error, now: Instant) {
        self.stats.errors += 1;
        self.last_error = Some(error.to_string());
        self.down_until = Some(now + RETRY);
    }
}
