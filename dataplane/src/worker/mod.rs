//! The poll loop: ports around a [`Forwarder`]. A worker runs to completion: it takes a burst from each
//! port, forwards it, flushes what is to leave, and between bursts does bounded chores: expiry, neighbour
//! timers, requests of the control side. Worker and control share nothing but two bounded rings: commands
//! in, and tables that are out of use back, so that freeing them is never the worker's work.
//!
//! Several workers make a [team](Worker::team), a thread each. A port is polled by one worker; a device with several
//! queues is one port for each queue, all under one number, each at its worker. A worker without a queue of a port
//! hands its frames to the one that has ([`Worker::add_remote_port`]). Their forwarders are siblings
//! ([`Forwarder::sibling`]).

mod handle;
mod idle;
mod peers;
mod ports;
mod watchdog;

use std::io;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TrySendError};

use crate::forward::{BoxedObserver, Forwarder, Nobody, Observer, ObserverId, Observers};
use crate::packet::{BURST, Burst, PortId};
use crate::port::Port;
use crate::stats::{PortStats, Stats};
use crate::tables::Tables;
use crate::time::Instant;
use handle::COMMANDS;
pub use handle::{Command, Handle, Stopped};
pub use idle::Idle;
use idle::{Pulse, Rest};
use peers::{Bell, Peers};
use ports::PortSet;
pub use ports::Removed;
pub use watchdog::{Alarm, Watchdog};

/// Polls between two looks at the chores while frames keep coming.
const CHORES_EVERY: u32 = 16;

/// Others' news taken in at a poll.
const NEWS: usize = 64;

/// One worker: ports and the forwarder between them.
pub struct Worker {
    forwarder: Forwarder,
    ports: PortSet,
    commands: Receiver<Command>,
    retired: Sender<Arc<Tables>>,
    /// Tables that found the ring back full; tried again at the next chores.
    unreturned: Vec<Arc<Tables>>,
    bell: Arc<Bell>,
    pulse: Arc<Pulse>,
    idle: Idle,
    epoch: std::time::Instant,
    stop: bool,
    /// Who watches, for as long as somebody does.
    observers: Observers,
}

impl Worker {
    /// A worker around `forwarder`, alone, and the control side's handle to it.
    ///
    /// # Errors
    /// When the kernel gives no event descriptor.
    pub fn new(forwarder: Forwarder) -> io::Result<(Worker, Handle)> {
        let bell = Arc::new(Bell::new()?);
        let peers = Peers::team(std::slice::from_ref(&bell)).remove(0);
        Ok(Worker::with_peers(forwarder, peers, bell, std::time::Instant::now()))
    }

    /// Workers around `forwarders`, which are siblings, each with its handle. A worker's number is its place.
    ///
    /// # Errors
    /// When the kernel gives no event descriptors.
    pub fn team(forwarders: Vec<Forwarder>) -> io::Result<Vec<(Worker, Handle)>> {
        let bells = forwarders.iter().map(|_| Bell::new().map(Arc::new)).collect::<io::Result<Vec<_>>>()?;
        // Deadlines in the tables that they share are in the time of all.
        let epoch = std::time::Instant::now();
        let peers = Peers::team(&bells);
        let parts = forwarders.into_iter().zip(peers).zip(bells);
        Ok(parts
            .map(|((forwarder, peers), bell)| Worker::with_peers(forwarder, peers, bell, epoch))
            .collect())
    }

    fn with_peers(
        forwarder: Forwarder,
        peers: Peers,
        bell: Arc<Bell>,
        epoch: std::time::Instant,
    ) -> (Worker, Handle) {
        let (commands, receiver) = crossbeam_channel::bounded(COMMANDS);
        let (retired, back) = crossbeam_channel::bounded(COMMANDS);
        let pulse = Arc::new(Pulse::default());
        let worker = Worker {
            forwarder,
            ports: PortSet::new(peers),
            commands: receiver,
            retired,
            unreturned: Vec::new(),
            bell: Arc::clone(&bell),
            pulse: Arc::clone(&pulse),
            idle: Idle::default(),
            epoch,
            stop: false,
            observers: Observers::default(),
        };
        (worker, Handle { commands, bell, pulse, retired: back, epoch })
    }

    /// The worker's number in its team.
    pub fn number(&self) -> usize {
        self.ports.peers.own()
    }

    /// Gives the worker a port, under the number that the tables know it by: an only one, or one queue of a device
    /// of which other workers have the other queues. What was under the number before is dropped.
    pub fn add_port(&mut self, id: PortId, port: Box<dyn Port>) {
        self.ports.add(id, port);
        self.forwarder.open_port(id);
    }

    /// Tells the worker that its frames for this port are to be handed to the worker with the number `owner`.
    ///
    /// # Panics
    /// When the team has no such other worker.
    pub fn add_remote_port(&mut self, id: PortId, owner: usize) {
        let is_other = owner < self.ports.peers.workers() && owner != self.number();
        assert!(is_other, "worker {owner} is none of worker {}'s peers", self.number());
        self.ports.add_remote(id, owner);
        self.forwarder.open_port(id);
    }

    /// Takes a port from the worker, own or remote, and gives back an own one. Frames for it are dropped from now
    /// on, under [`PortDown`](crate::stats::Reason::PortDown), and so are those that wait for a neighbour behind it, at
    /// the next chores. To be told to every worker of the team.
    pub fn remove_port(&mut self, id: PortId) -> Option<Removed> {
        self.forwarder.close_port(id);
        self.ports.remove(id)
    }

    /// Puts `change(port)` where a port of the worker's own was: the port behind a wrapper, or without one. Nothing
    /// happens when the worker does not have the port.
    pub fn change_port(&mut self, id: PortId, change: impl FnOnce(Box<dyn Port>) -> Box<dyn Port>) {
        self.ports.change(id, change);
    }

    /// Sends everything that other workers have handed over until now. After all of them have been told that a port
    /// has gone, and each has done this, no frame for it is on its way any more.
    pub fn serve_all_peers(&mut self) {
        // As many rounds as a full ring needs: what comes meanwhile can wait.
        for _ in 0..=peers::RING / BURST {
            self.ports.serve_peers();
            self.ports.flush();
        }
    }

    /// Changes how the worker idles.
    pub fn set_idle(&mut self, idle: Idle) {
        self.idle = idle;
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

    /// Counters of each port that the worker has, and the last error of one that is down. Of a port that another
    /// worker polls only [`refused`](PortStats::refused) is counted here: what did not reach that worker.
    pub fn port_stats(&mut self) -> Vec<(PortId, PortStats, Option<String>)> {
        self.ports.stats()
    }

    /// Polls until told to stop.
    pub fn run(&mut self) {
        let mut empty = 0u32;
        let mut polls = 0u32;
        while !self.stop {
            let now = self.now();
            self.pulse.beat(now);
            let received = self.poll(now);
            polls = polls.wrapping_add(1);
            empty = if received == 0 { empty.saturating_add(1) } else { 0 };
            let rest = self.idle.rest(empty);
            if rest == Rest::Sleep || polls.is_multiple_of(CHORES_EVERY) {
                self.chores(now);
            }
            match rest {
                Rest::Spin => {}
                Rest::Pause => idle::pause(),
                Rest::Sleep => self.sleep(empty),
            }
        }
        // What others handed over before they learn that this worker is gone.
        while self.ports.serve_peers() > 0 {
            self.ports.flush();
        }
    }

    /// Takes one burst from every port and forwards it, takes in other workers' news and sends the frames that they
    /// have handed over. Returns how many frames that were.
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
        if self.ports.peers.workers() > 1 {
            received += self.serve_peers(now, observer);
        }
        for at in 0..self.ports.end() {
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

    /// Takes what the other workers of the team have for this one.
    fn serve_peers(&mut self, now: Instant, observer: &mut impl Observer) -> usize {
        for _ in 0..NEWS {
            let Some(news) = self.ports.peers.news() else { break };
            self.forwarder.hear(&news, now, &mut self.ports, observer);
        }
        let taken = self.ports.serve_peers();
        self.ports.flush();
        taken
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

    /// Sleeps until a port is readable, a command or something from another worker comes, or chores are due.
    fn sleep(&mut self, empty: u32) {
        let longest = self.idle.length(empty, self.ports.are_pollable());
        if self.stop || longest.is_zero() {
            return;
        }
        self.pulse.count_sleep();
        let has_work = || !self.commands.is_empty() || self.ports.peers.have_work();
        self.bell.sleep(has_work, |wake| idle::sleep_on(wake, self.ports.descriptors(), longest));
    }
}

fn since(epoch: std::time::Instant) -> Instant {
    Instant(u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX))
}
