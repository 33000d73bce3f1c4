//! The thread that says when something is not as it should be: a flow table without room for new connections (CT-09),
//! at most once a second, however many were refused; a worker that is stuck.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use pollux_dataplane::flow::FlowTable;
use pollux_dataplane::packet::{Family, V4, V6};
use pollux_dataplane::worker::{Alarm, Watchdog};
use tracing::{error, warn};

use super::shared::Shared;
use super::team;
use super::tracking::Tracked;
use crate::cli::Failure;

/// How often it is looked.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a worker that is well may be silent.
const SILENCE: Duration = Duration::from_secs(1);

/// Watches until it is dropped.
pub(super) struct FullWatch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FullWatch {
    pub(super) fn start(shared: &Arc<Shared>) -> Result<FullWatch, Failure> {
        let (stop, stopped) = bounded::<()>(0);
        let shared = Arc::clone(shared);
        let thread = std::thread::Builder::new().name("pollux-full".to_owned()).spawn(move || {
            let mut seen = [0; 2];
            let mut watchdog = Watchdog::new(shared.team.handles().to_vec(), SILENCE);
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let news = [
                    refused(V4::table(&shared.flows), &mut seen[0]),
                    refused(V6::table(&shared.flows), &mut seen[1]),
                ];
                for line in news.into_iter().flatten().chain(watchdog.look().into_iter().map(alarm)) {
                    warn!("{line}");
                }
            }
        })?;
        Ok(FullWatch { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for FullWatch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the thread that watches the flow tables had panicked");
        }
    }
}

/// What is to be said of a table that has refused connections since `seen` were refused.
fn refused<A: Family>(table: &FlowTable<A>, seen: &mut u64) -> Option<String> {
    let now = table.counters().refused;
    let refused = now - std::mem::replace(seen, now);
    (refused > 0).then(|| {
        format!(
            "the {} flow table is full: {} of {} connections, {refused} new ones refused",
            A::NAME,
            table.len(),
            table.capacity()
        )
    })
}

/// What is to be said of a worker.
fn alarm(alarm: Alarm) -> String {
    match alarm {
        Alarm::Stuck { worker, silence } => {
            format!("{} has given no sign of life for {:.1} s", team::name(worker), silence.as_secs_f64())
        }
        Alarm::Recovered { worker } => format!("{} goes on", team::name(worker)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use pollux_dataplane::flow::{FlowKey, NewConnection, NextHopRef, Sysctls, Tick, Timeouts};
    use pollux_dataplane::packet::Protocol;

    use super::*;

    #[test]
    fn ct_09_refused_connections_are_said_once() {
        let table =
            FlowTable::<V4>::with_sysctls(1, [1, 2], Timeouts::default(), Sysctls::default()).unwrap();
        let mut seen = 0;
        assert_eq!(refused(&table, &mut seen), None);
        let new = |port: u16| {
            let original = FlowKey {
                source: Ipv4Addr::new(10, 0, 0, 1),
                destination: Ipv4Addr::new(10, 0, 0, 2),
                source_port: port,
                destination_port: 53,
                protocol: Protocol::UDP,
            };
            NewConnection {
                original,
                reply: original.reply(),
                mark: 0,
                state: pollux_dataplane::flow::State::Udp,
                original_next_hop: NextHopRef::default(),
                reply_next_hop: NextHopRef::default(),
            }
        };
        let now = Tick::default();
        table.insert(&new(1), now).unwrap();
        // Make it assured: both sides have used it for long.
        for (key, at) in [(new(1).reply, 0), (new(1).original, 3_000)] {
            let hit = table.lookup(&key).unwrap();
            let at = pollux_dataplane::time::Instant::from_millis(at).into();
            table.touch(&hit, &pollux_dataplane::flow::Event::Other, at);
        }
        if table.insert(&new(2), now).is_ok() {
            panic!("an assured connection gave way");
        }
        let line = refused(&table, &mut seen).unwrap();
        assert_eq!(line, "the ipv4 flow table is full: 1 of 1 connections, 1 new ones refused");
        assert_eq!(refused(&table, &mut seen), None);
    }
}
