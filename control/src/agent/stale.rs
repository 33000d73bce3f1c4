//! The thread that deletes UDP flows which have lost their way, after every change of where they may go
//! (UP-03). It looks through the tables in pieces; the worker is asked to remove what was found, a few at a
//! time, and never waits for it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded, select};
use pollux_dataplane::flow::EntryRef;
use pollux_dataplane::tables::{FamilyTables, Tables};
use pollux_dataplane::worker::Stopped;
use tracing::{error, info};

use super::shared::Shared;
use super::tracking::{self, Removed, Tracked};
use crate::cli::Failure;
use crate::translate::ServicePorts;
use crate::translate::stale::is_stale;

/// Sweeps until it is dropped.
pub(super) struct Sweeper {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sweeper {
    /// Begins to wait for changes.
    pub(super) fn start(shared: &Arc<Shared>) -> Result<Sweeper, Failure> {
        let (stop, stopped) = bounded::<()>(0);
        let shared = Arc::clone(shared);
        let thread = std::thread::Builder::new().name("pollux-sweep".to_owned()).spawn(move || {
            loop {
                select! {
                    recv(shared.sweep.1) -> _ => if sweep(&shared).is_err() { return },
                    recv(stopped) -> _ => return,
                }
            }
        })?;
        Ok(Sweeper { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the thread that sweeps UDP flows had panicked");
        }
    }
}

/// Why a sweep did not come to its end.
enum Ended {
    /// The worker has stopped.
    Stopped,
    /// Other tables are in force than those that flows were judged by.
    Overtaken,
}

impl From<Stopped> for Ended {
    fn from(_: Stopped) -> Ended {
        Ended::Stopped
    }
}

/// Looks through both tables once. What was judged by tables that are not in force any more is begun again:
/// it might hit flows that were made since.
fn sweep(shared: &Shared) -> Result<(), Stopped> {
    loop {
        match sweep_by_state(shared) {
            Ok(()) => return Ok(()),
            Err(Ended::Stopped) => return Err(Stopped),
            // The newer state is told a moment after the worker has it.
            Err(Ended::Overtaken) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn sweep_by_state(shared: &Shared) -> Result<(), Ended> {
    let state = shared.state();
    let compiled = &state.compiled;
    let all = &compiled.tables;
    if !tracking::in_force(&shared.team, all)? {
        return Err(Ended::Overtaken);
    }
    let mut removed = 0;
    if let Some(tables) = &all.v4 {
        removed += sweep_family(shared, all, tables, &compiled.ports_v4)?;
    }
    if let Some(tables) = &all.v6 {
        removed += sweep_family(shared, all, tables, &compiled.ports_v6)?;
    }
    if removed > 0 {
        info!(removed, "UDP flows removed whose backend does not serve any more");
    }
    Ok(())
}

fn sweep_family<A: Tracked>(
    shared: &Shared,
    all: &Arc<Tables>,
    tables: &FamilyTables<A>,
    ports: &ServicePorts<A>,
) -> Result<u64, Ended> {
    let mut removed = 0;
    let swept = tracking::pieces::<A, Ended>(&shared.flows, &shared.team, |flows| {
        let stale = flows.iter().filter(|flow| is_stale(tables, ports, &flow.original, &flow.reply));
        let stale: Vec<EntryRef> = stale.map(|flow| flow.entry).collect();
        match tracking::remove::<A>(&shared.flows, &shared.team, &stale, Some(all)) {
            Ok(Removed::Gone(gone)) => {
                removed += gone.len() as u64;
                shared.swept.fetch_add(gone.len() as u64, Ordering::Relaxed);
                ControlFlow::Continue(())
            }
            Ok(Removed::Overtaken) => ControlFlow::Break(Ended::Overtaken),
            Err(Stopped) => ControlFlow::Break(Ended::Stopped),
        }
    });
    match swept {
        ControlFlow::Continue(()) => Ok(removed),
        ControlFlow::Break(ended) => Err(ended),
    }
}
