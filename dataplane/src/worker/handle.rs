//! The control side's end of a worker: commands in, tables that are out of use back, signs of life.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::Worker;
use super::idle::Pulse;
use super::peers::Bell;
use crate::tables::Tables;
use crate::time::Instant;

/// Commands that may wait for a worker.
pub(super) const COMMANDS: usize = 256;

/// What the control side asks of a worker.
pub enum Command {
    /// Puts new tables in force.
    Tables(Arc<Tables>),
    /// Runs between two bursts: reads counters and tables, teaches neighbours, adds and removes ports. Must be
    /// short.
    Run(Box<dyn FnOnce(&mut Worker) + Send>),
    /// Ends [`Worker::run`].
    Stop,
}

/// The control side's end of a worker.
#[derive(Clone)]
pub struct Handle {
    pub(super) commands: Sender<Command>,
    pub(super) bell: Arc<Bell>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) retired: Receiver<Arc<Tables>>,
    pub(super) epoch: std::time::Instant,
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
        self.bell.ring();
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

    /// The worker's time ([`Worker::now`]), read here. That of all workers of a team is the same.
    pub fn now(&self) -> Instant {
        super::since(self.epoch)
    }

    /// How long ago the worker last came round to its ports. It does so at least once in its
    /// [longest sleep](super::Idle::sleep), so one that is silent for much longer is stuck: in a port's system call,
    /// in a command, or without a core. See [`Watchdog`](super::Watchdog).
    pub fn silence(&self) -> Duration {
        self.now().saturating_since(self.pulse.seen())
    }

    /// How often the worker has come round to its ports.
    pub fn polls(&self) -> u64 {
        self.pulse.polls()
    }

    /// How often it has gone to sleep.
    pub fn sleeps(&self) -> u64 {
        self.pulse.sleeps()
    }

    /// Frees tables that the worker no longer reads.
    pub fn collect(&self) {
        while self.retired.try_recv().is_ok() {}
    }
}
