//! The workers of an agent, asked one by one or all together.

use std::sync::Arc;

use pollux_dataplane::tables::Tables;
use pollux_dataplane::time::Instant;
use pollux_dataplane::worker::{Command, Handle, Stopped, Worker};

use super::ports::Attached;

/// The name of the thread of a worker.
pub(super) fn name(number: usize) -> String {
    format!("pollux-worker-{number}")
}

/// The handles of all workers, in the order of their numbers: at least one.
pub(super) struct Team(Vec<Handle>);

impl Team {
    /// # Panics
    /// Without any.
    pub(super) fn new(handles: Vec<Handle>) -> Team {
        assert!(!handles.is_empty(), "a team without workers");
        Team(handles)
    }

    /// The worker to ask for what all of them share.
    pub(super) fn first(&self) -> &Handle {
        &self.0[0]
    }

    pub(super) fn handles(&self) -> &[Handle] {
        &self.0
    }

    /// The workers' time.
    pub(super) fn now(&self) -> Instant {
        self.first().now()
    }

    /// Gives all workers these tables. The first has them before any other: as long as it has the old ones, no
    /// connection anywhere was made by the new ones.
    ///
    /// # Errors
    /// When a worker has stopped.
    pub(super) fn put_in_force(&self, tables: &Arc<Tables>) -> Result<(), Stopped> {
        let [first, others @ ..] = self.0.as_slice() else { return Ok(()) };
        first.send(Command::Tables(Arc::clone(tables)))?;
        if !others.is_empty() {
            first.ask(|_| ())?;
        }
        others.iter().try_for_each(|worker| worker.send(Command::Tables(Arc::clone(tables))))
    }

    /// Frees tables that no worker reads any more.
    pub(super) fn collect(&self) {
        self.0.iter().for_each(Handle::collect);
    }

    /// Runs `ask` on every worker, on all at the same time, and returns what they said, in order.
    ///
    /// # Errors
    /// When a worker has stopped.
    pub(super) fn ask_all<R: Send + 'static>(
        &self,
        ask: impl Fn(&mut Worker) -> R + Send + Sync + 'static,
    ) -> Result<Vec<R>, Stopped> {
        let ask = Arc::new(ask);
        let asked = self.0.iter().map(|worker| {
            let (answer, answered) = crossbeam_channel::bounded(1);
            let ask = Arc::clone(&ask);
            worker.send(Command::Run(Box::new(move |worker| {
                let _ = answer.send(ask(worker));
            })))?;
            Ok(answered)
        });
        let asked: Vec<_> = asked.collect::<Result<_, Stopped>>()?;
        asked.into_iter().map(|answered| answered.recv().map_err(|_| Stopped)).collect()
    }

    /// Has every worker run `run`, without waiting for it.
    ///
    /// # Errors
    /// When a worker has stopped.
    pub(super) fn tell_all(&self, run: impl Fn(&mut Worker) + Send + Sync + 'static) -> Result<(), Stopped> {
        let run = Arc::new(run);
        self.0.iter().try_for_each(|worker| {
            let run = Arc::clone(&run);
            worker.send(Command::Run(Box::new(move |worker| run(worker))))
        })
    }

    /// Gives each worker its share of a port.
    ///
    /// # Errors
    /// When a worker has stopped.
    pub(super) fn add_port(&self, port: Attached) -> Result<(), Stopped> {
        let id = port.id;
        self.0.iter().zip(port.shares(self.0.len())).try_for_each(|(worker, share)| {
            worker.send(Command::Run(Box::new(move |worker| share.give(worker, id))))
        })
    }

    /// Ends all of them.
    pub(super) fn stop(&self) {
        for worker in &self.0 {
            let _ = worker.send(Command::Stop); // one that has stopped already
        }
    }
}
