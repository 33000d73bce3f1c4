//! The poll loop: ports around a [`Forwarder`]. A worker runs to completion: it takes a burst from each
//! port, forwards it, flushes what is to leave, and between bursts does bounded chores: expiry, neighbour
//! timers, requests of the control side. Worker and control share nothing but two bounded rings: commands
//! in, and tables that are out of use back, so that freeing them is never the worker's work.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::forward::{BoxedObserver, Forwarder, Nobody, Observer, ObserverId, Observers, Output};
use crate::packet::{Burst, Packet, PortId};
use crate::port::{Capabilities, Port, finish};
use crate::stats::{PortStats, Reason, Stats};
use crate::tables::Tables;
use crate::time::Instant;

/// Commands that may wait for a worker.
const COMMANDS: usize = 256;

/// Polls without a frame before the worker sleeps on its ports.
const SPINS: u32 = 128;

/// Longest sleep: chores are due this often (expiry within 1 s, neighbour timers).
const NAP: Duration = Duration::from_millis(5);

/// Polls between two looks at the chores while frames keep coming.
const CHORES_EVERY: u32 = 16;

/// How long a port that failed is left alone.
const RETRY: Duration = Duration::from_millis(200);

/// What the control side asks of a worker.
pub enum Command {
    /// Puts new tables in force.
    Tables(Arc<Tables>),
    /// Runs between two bursts: reads counters and tables, teaches neighbours. Must be short.
    Run(Box<dyn FnOnce(&mut Worker) + Send>),
    /// Ends [`Worker::run`].
    Stop,
}

/// The control side's end of a worker.
#[derive(Clone)]
pub struct Handle {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    retired: Receiver<Arc<Tables>>,
    epoch: std::time::Instant,
}

/// The worker has stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stopped;

impl Handle {
    /// Sends a command; waits while the worker is behind. Tables that came back are freed on the way.
    ///
    /// # Errors
    /// When the worker has stopped.
    pub fn send(&self, command: Command) -> Result<(), Stopped> {
        self.collect();
        self.commands.send(command).map_err(|_| Stopped)?;
        // A full counter means that the worker has been woken already.
        let _ = self.wake.write(1);
        Ok(())
    }

    /// Runs `ask` on the worker between two bursts and returns what it said.
    ///
    /// # Errors
    /// When the worker has stopped.
    pub fn ask<R: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut Worker) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        let (answer, answered) = crossbeam_channel::bounded(1);
        self.send(Command::Run(Box::new(move |worker| {
            let _ = answer.send(ask(worker));
        })))?;
        answered.recv().map_err(|_| Stopped)
    }

    /// The worker's time ([`Worker::now`]), read here.
    pub fn now(&self) -> Instant {
        since(self.epoch)
    }

    /// Frees tables that the worker no longer reads.
    pub fn collect(&self) {
        while self.retired.try_recv().is_ok() {}
    }
}

/// One worker: ports and the forwarder between them.
pub struct Worker {
    forwarder: Forwarder,
    ports: PortSet,
    commands: Receiver<Command>,
    retired: Sender<Arc<Tables>>,
    /// Tables that found the ring back full; tried again at the next chores.
    unreturned: Vec<Arc<Tables>>,
    wake: Arc<EventFd>,
    epoch: std::time::Instant,
    stop: bool,
    /// Who watches, for as long as somebody does.
    observers: Observers,
}

/// The ports, each with its queue of frames to send.
struct PortSet {
    slots: Vec<Option<Slot>>,
    stats: Stats,
    /// The time of the poll or the chores in hand.
    now: Instant,
}

struct Slot {
    port: Box<dyn Port>,
    capabilities: Capabilities,
    queue: Burst,
    stats: PortStats,
    down_until: Option<Instant>,
    last_error: Option<String>,
}

impl Worker {
    /// A worker around `forwarder`, and the control side's handle to it.
    ///
    /// # Errors
    /// When the kernel gives no event descriptor.
    pub fn new(forwarder: Forwarder) -> io::Result<(Worker, Handle)> {
        let (commands, receiver) = crossbeam_channel::bounded(COMMANDS);
        let (retired, back) = crossbeam_channel::bounded(COMMANDS);
        let epoch = std::time::Instant::now();
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let worker = Worker {
            forwarder,
            ports: PortSet { slots: Vec::new(), stats: Stats::default(), now: Instant::ZERO },
            commands: receiver,
            retired,
            unreturned: Vec::new(),
            wake: wake.clone(),
            epoch,
            stop: false,
            observers: Observers::default(),
        };
        Ok((worker, Handle { commands, wake, retired: back, epoch }))
    }

    /// Gives the worker a port, under the number that the tables know it by.
    pub fn add_port(&mut self, id: PortId, port: Box<dyn Port>) {
        let slots = &mut self.ports.slots;
        if slots.len() <= id.index() {
            slots.resize_with(id.index() + 1, || None);
        }
        slots[id.index()] = Some(Slot {
            capabilities: port.capabilities(),
            port,
            queue: Burst::new(),
            stats: PortStats::default(),
            down_until: None,
            last_error: None,
        });
    }

    /// Puts `change(port)` where a port of the worker's was: the port behind a wrapper, or without one. Nothing
    /// happens when the worker does not have the port.
    pub fn change_port(&mut self, id: PortId, change: impl FnOnce(Box<dyn Port>) -> Box<dyn Port>) {
        if let Some(slot) = self.ports.slots.get_mut(id.index())
            && let Some(mut old) = slot.take()
        {
            old.port = change(old.port);
            old.capabilities = old.port.capabilities();
            *slot = Some(old);
        }
    }

    /// The forwarder.
    pub fn forwarder(&mut self) -> &mut Forwarder {
        &mut self.forwarder
    }

    /// Tells every step of every packet to `observer` from now on, beside those that watch already. Nobody watching
    /// costs one comparison for a round of all ports: the pipeline is compiled once for each case.
    pub fn observe(&mut self, observer: BoxedObserver) -> ObserverId {
        self.observers.add(observer)
    }

    /// Tells an observer nothing any more, and returns it.
    pub fn hush(&mut self, id: ObserverId) -> Option<BoxedObserver> {
        self.observers.remove(id)
    }

    /// Time since the worker was made: the `now` of everything it does.
    pub fn now(&self) -> Instant {
        since(self.epoch)
    }

    /// All counters, the forwarder's and those of sending.
    pub fn stats(&self) -> Stats {
        self.forwarder.stats().plus(&self.ports.stats)
    }

    /// Counters of each port that the worker has.
    pub fn port_stats(&mut self) -> Vec<(PortId, PortStats, Option<String>)> {
        let slots = self.ports.slots.iter_mut().enumerate();
        slots
            .filter_map(|(at, slot)| {
                let slot = slot.as_mut()?;
                slot.stats.missed = slot.port.missed();
                let error = slot.down_until.and(slot.last_error.clone());
                Some((PortId(at as u16), slot.stats.clone(), error))
            })
            .collect()
    }

    /// Polls until told to stop.
    pub fn run(&mut self) {
        let mut idle = 0;
        let mut polls = 0u32;
        while !self.stop {
            let now = self.now();
            let received = self.poll(now);
            polls = polls.wrapping_add(1);
            idle = if received == 0 { idle + 1 } else { 0 };
            if idle >= SPINS || polls.is_multiple_of(CHORES_EVERY) {
                self.chores(now);
            }
            if idle >= SPINS && !self.stop {
                self.sleep();
            }
        }
    }

    /// Takes one burst from every port and forwards it. Returns how many frames were received.
    pub fn poll(&mut self, now: Instant) -> usize {
        if self.observers.is_empty() {
            return self.poll_observed(now, &mut Nobody);
        }
        let mut observers = std::mem::take(&mut self.observers);
        let received = self.poll_observed(now, &mut observers);
        self.observers = observers;
        received
    }

    /// As [`poll`](Worker::poll), telling every step to `observer`.
    pub fn poll_observed(&mut self, now: Instant, observer: &mut impl Observer) -> usize {
        let mut received = 0;
        self.ports.now = now;
        for at in 0..self.ports.slots.len() {
            let mut burst = Burst::new();
            self.ports.receive(at, &mut burst);
            if burst.is_empty() {
                continue;
            }
            received += burst.len();
            self.forwarder.stats_mut().received += burst.len() as u64;
            self.forwarder.forward_observed(&mut burst, now, &mut self.ports, observer);
            self.ports.flush();
        }
        received
    }

    /// Commands, expiry, neighbours' timers.
    pub fn chores(&mut self, now: Instant) {
        self.ports.now = now;
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Tables(tables) => {
                    let old = self.forwarder.set_tables(tables);
                    self.unreturned.push(old);
                }
                Command::Run(run) => run(self),
                Command::Stop => self.stop = true,
            }
        }
        while let Some(tables) = self.unreturned.pop() {
            match self.retired.try_send(tables) {
                Ok(()) => {}
                Err(TrySendError::Full(tables)) => {
                    self.unreturned.push(tables);
                    break;
                }
                Err(TrySendError::Disconnected(tables)) => drop(tables), // nobody is left to free them
            }
        }
        if self.observers.is_empty() {
            self.forwarder.tick(now, &mut self.ports);
        } else {
            self.forwarder.tick_observed(now, &mut self.ports, &mut self.observers);
        }
        self.ports.flush();
    }

    /// Sleeps until a port is readable, a command comes, or chores are due.
    fn sleep(&mut self) {
        let ports = self.ports.slots.iter().flatten().filter(|slot| slot.down_until.is_none());
        let mut pollable = true;
        let mut descriptors = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        for slot in ports {
            match slot.port.readiness() {
                Some(fd) => descriptors.push(PollFd::new(fd, PollFlags::POLLIN)),
                None => pollable = false,
            }
        }
        let nap = if pollable { NAP } else { Duration::ZERO };
        let timeout = PollTimeout::try_from(nap).unwrap_or(PollTimeout::ZERO);
        let _ = nix::poll::poll(&mut descriptors, timeout); // interrupted or not: the loop looks again
        let _ = self.wake.read();
    }
}

fn since(epoch: std::time::Instant) -> Instant {
    Instant(u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

impl PortSet {
    fn receive(&mut self, at: usize, burst: &mut Burst) {
        let Some(slot) = &mut self.slots[at] else { return };
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

    /// Sends every queue's frames.
    fn flush(&mut self) {
        for slot in self.slots.iter_mut().flatten() {
            if !slot.queue.is_empty() {
                slot.flush(&mut self.stats, self.now);
            }
        }
    }
}

impl Output for PortSet {
    #[inline]
    fn send(&mut self, port: PortId, packet: Packet) {
        let Some(Some(slot)) = self.slots.get_mut(port.index()) else {
            self.stats.dropped.count(Reason::PortDown);
            return;
        };
        if packet.offload.needs_nothing() || slot.capabilities.carries(&packet.offload) {
            slot.push(packet, &mut self.stats, self.now);
        } else {
            slot.finish_and_push(packet, &mut self.stats, self.now);
        }
    }
}

impl Slot {
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
