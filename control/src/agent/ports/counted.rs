//! What ports count, also those that were closed and opened again.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pollux_dataplane::packet::PortId;
use pollux_dataplane::stats::PortStats;
use pollux_dataplane::worker::{Removed, Stopped};

use crate::agent::team::Team;

/// What ports had counted when they were closed, by number. Locked while workers are asked, so that no count is
/// missed and none is taken twice.
#[derive(Default)]
pub(in crate::agent) struct Counted(Mutex<Vec<PortStats>>);

impl Counted {
    fn lock(&self) -> MutexGuard<'_, Vec<PortStats>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counters of all ports since the start, by number, and the last error of one that is down. Those of all
    /// workers, each for itself.
    ///
    /// # Errors
    /// When a worker has stopped.
    pub(in crate::agent) fn read(&self, team: &Team) -> Result<Vec<(PortStats, Option<String>)>, Stopped> {
        let counted = self.lock();
        let mut all: Vec<_> = counted.iter().map(|stats| (stats.clone(), None)).collect();
        for (id, stats, error) in team.ask_all(|worker| worker.port_stats())?.into_iter().flatten() {
            if all.len() <= id.index() {
                all.resize_with(id.index() + 1, || (PortStats::default(), None));
            }
            let (sum, why) = &mut all[id.index()];
            add(sum, &stats);
            *why = why.take().or(error);
        }
        Ok(all)
    }

    /// Takes a port from all workers and keeps what it has counted.
    ///
    /// # Errors
    /// When a worker has stopped.
    pub(super) fn remove_port(&self, id: PortId, team: &Team) -> Result<Vec<Option<Removed>>, Stopped> {
        let mut counted = self.lock();
        let removed = team.ask_all(move |worker| {
            let stats = worker.port_stats().into_iter().find(|(port, ..)| *port == id);
            (stats.map(|(_, stats, _)| stats), worker.remove_port(id))
        })?;
        if counted.len() <= id.index() {
            counted.resize(id.index() + 1, PortStats::default());
        }
        let removed = removed.into_iter().map(|(stats, port)| {
            stats.iter().for_each(|stats| add(&mut counted[id.index()], stats));
            port
        });
        Ok(removed.collect())
    }

    /// The number is another port's from now on.
    pub(super) fn forget(&self, number: usize) {
        if let Some(stats) = self.lock().get_mut(number) {
            *stats = PortStats::default();
        }
    }
}

fn add(sum: &mut PortStats, more: &PortStats) {
    let PortStats { received, received_bytes, transmitted, transmitted_bytes, refused, missed, errors } =
        more;
    sum.received += received;
    sum.received_bytes += received_bytes;
    sum.transmitted += transmitted;
    sum.transmitted_bytes += transmitted_bytes;
    sum.refused += refused;
    sum.missed += missed;
    sum.errors += errors;
}
