//! `pollux stats`: a running forwarder's counters, and with `--watch` their rates.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::ArgAction;
use serde_json::json;

use super::table::Table;
use super::{Exit, Failure};
use crate::agent::Client;
use crate::agent::protocol::{DEFAULT_SOCKET, PortCounters, StatsItem, WorkerItem};

const EXAMPLE: &str = "\
Examples:
  pollux stats
  pollux stats --watch --interval-seconds 5
  pollux stats --watch --json | jq .rates.ports";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLE)]
pub(super) struct Args {
    /// Where `pollux run` listens.
    #[arg(long, value_name = "SOCKET", default_value = DEFAULT_SOCKET)]
    admin: PathBuf,
    /// Go on until interrupted, with the rates since the last time.
    #[arg(long, action = ArgAction::SetTrue)]
    watch: bool,
    /// Time between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    interval_seconds: u16,
    /// Print one JSON object; with `--watch` one in each line.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let mut client = Client::connect(&args.admin)?;
    let mut before: Option<StatsItem> = None;
    loop {
        let now = client.stats()?;
        let rates = before.as_ref().map(|before| Rates::between(before, &now));
        let mut out = io::stdout().lock();
        if args.json {
            let mut object = serde_json::to_value(&now).map_err(io::Error::other)?;
            if let Some(rates) = &rates {
                object["rates"] = rates.to_json(&now);
            }
            writeln!(out, "{object}")?;
        } else {
            write!(out, "{}", text(&now, rates.as_ref()))?;
        }
        out.flush()?;
        drop(out);
        if !args.watch {
            return Ok(Exit::Done);
        }
        before = Some(now);
        std::thread::sleep(Duration::from_secs(u64::from(args.interval_seconds)));
        if !args.json {
            println!();
        }
    }
}

/// Increments by the second between two looks at the same forwarder.
struct Rates {
    seconds: f64,
    ports: Vec<[f64; PORT_RATES.len()]>,
    workers: Vec<[f64; WORKER_RATES.len()]>,
    drops: Vec<(String, f64)>,
}

/// A counter with its name.
type Counter<T> = (&'static str, fn(&T) -> u64);

/// The counters of a port that have a rate.
const PORT_RATES: [Counter<PortCounters>; 4] = [
    ("received", |port| port.received),
    ("received_bytes", |port| port.received_bytes),
    ("transmitted", |port| port.transmitted),
    ("transmitted_bytes", |port| port.transmitted_bytes),
];

/// Those of a worker.
const WORKER_RATES: [Counter<WorkerItem>; 4] = [
    ("received", |worker| worker.received),
    ("transmitted", |worker| worker.transmitted),
    ("dropped", |worker| worker.dropped),
    ("flows_inserted", |worker| worker.flows_inserted),
];

impl Rates {
    fn between(before: &StatsItem, now: &StatsItem) -> Rates {
        // Measured where the counters are, not here.
        let seconds = (now.uptime_seconds - before.uptime_seconds).max(1e-3);
        let rate = |old: u64, new: u64| new.saturating_sub(old) as f64 / seconds;
        let of_ports = now.ports.iter().map(|port| {
            let old = before.ports.iter().find(|old| old.name == port.name);
            PORT_RATES.map(|(_, of)| rate(old.map_or(0, |old| of(&old.counters)), of(&port.counters)))
        });
        let of_workers = now.workers.iter().map(|worker| {
            let old = before.workers.iter().find(|old| old.name == worker.name);
            WORKER_RATES.map(|(_, of)| rate(old.map_or(0, of), of(worker)))
        });
        let of_drops = now.drops.iter().map(|drop| {
            let old = before.drops.iter().find(|old| old.reason == drop.reason);
            (drop.reason.clone(), rate(old.map_or(0, |old| old.count), drop.count))
        });
        Rates { seconds, ports: of_ports.collect(), workers: of_workers.collect(), drops: of_drops.collect() }
    }

    fn to_json(&self, now: &StatsItem) -> serde_json::Value {
        fn named<T>(counters: &[Counter<T>], rates: &[f64]) -> serde_json::Map<String, serde_json::Value> {
            let named = counters.iter().zip(rates);
            named.map(|((name, _), rate)| (format!("{name}_per_second"), json!(rate))).collect()
        }
        let ports = now.ports.iter().zip(&self.ports);
        let workers = now.workers.iter().zip(&self.workers);
        json!({
            "interval_seconds": self.seconds,
            "workers": workers
                .map(|(worker, rates)| (worker.name.clone(), named(&WORKER_RATES, rates).into()))
                .collect::<serde_json::Map<_, _>>(),
            "ports": ports
                .map(|(port, rates)| (port.name.clone(), named(&PORT_RATES, rates).into()))
                .collect::<serde_json::Map<_, _>>(),
            "drops": self.drops.iter().map(|(reason, rate)| (reason.clone(), json!(rate)))
                .collect::<serde_json::Map<_, _>>(),
        })
    }
}

fn text(now: &StatsItem, rates: Option<&Rates>) -> String {
    let rate = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
    let mut ports = Table::new(&[
        "PORT",
        "RECEIVED",
        "BYTES",
        "RECEIVED/s",
        "BYTES/s",
        "TRANSMITTED",
        "BYTES",
        "TRANSMITTED/s",
        "BYTES/s",
        "REFUSED",
        "MISSED",
        "ERRORS",
    ])
    .numbers_from(1);
    for (at, port) in now.ports.iter().enumerate() {
        let counters = &port.counters;
        let of = |column: usize| rate(rates.map(|rates| rates.ports[at][column]));
        ports.row([
            port.name.clone(),
            counters.received.to_string(),
            counters.received_bytes.to_string(),
            of(0),
            of(1),
            counters.transmitted.to_string(),
            counters.transmitted_bytes.to_string(),
            of(2),
            of(3),
            counters.refused.to_string(),
            counters.missed.to_string(),
            counters.errors.to_string(),
        ]);
    }
    let mut workers = Table::new(&[
        "WORKER",
        "RECEIVED",
        "RECEIVED/s",
        "TRANSMITTED",
        "TRANSMITTED/s",
        "TO-HOST",
        "DROPPED",
        "DROPPED/s",
        "HELD",
        "FLOWS",
        "NEW-FLOWS/s",
        "CLIENTS",
        "NOT-KEPT",
        "BUFFERS-FREE",
    ])
    .numbers_from(1);
    for (at, worker) in now.workers.iter().enumerate() {
        let of = |column: usize| rate(rates.map(|rates| rates.workers[at][column]));
        workers.row([
            worker.name.clone(),
            worker.received.to_string(),
            of(0),
            worker.transmitted.to_string(),
            of(1),
            worker.delivered.to_string(),
            worker.dropped.to_string(),
            of(2),
            worker.held.to_string(),
            worker.flows.to_string(),
            of(3),
            worker.affinity_clients.to_string(),
            worker.affinity_refused.to_string(),
            format!("{}/{}", worker.buffers_free, worker.buffers),
        ]);
    }
    let mut drops = Table::new(&["DROPS", "COUNT", "COUNT/s"]).numbers_from(1);
    for (at, drop) in now.drops.iter().enumerate() {
        drops.row([drop.reason.clone(), drop.count.to_string(), rate(rates.map(|rates| rates.drops[at].1))]);
    }
    format!("{workers}\n{ports}\n{drops}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::protocol::{DropItem, NamedPort};

    fn sample(uptime_seconds: f64, received: u64, drops: &[(&str, u64)]) -> StatsItem {
        StatsItem {
            time: jiff::Timestamp::UNIX_EPOCH,
            uptime_seconds,
            workers: Vec::new(),
            ports: vec![NamedPort {
                name: "ens3".into(),
                counters: PortCounters { received, ..PortCounters::default() },
            }],
            drops: drops
                .iter()
                .map(|&(reason, count)| DropItem { reason: reason.into(), count, description: String::new() })
                .collect(),
        }
    }

    #[test]
    fn rates_are_increments_by_the_forwarder_s_own_clock() {
        let before = sample(10.0, 1000, &[]);
        let now = sample(12.0, 3000, &[("no_route", 4)]);
        let rates = Rates::between(&before, &now).to_json(&now);
        assert_eq!(rates["interval_seconds"], 2.0);
        assert_eq!(rates["ports"]["ens3"]["received_per_second"], 1000.0);
        assert_eq!(rates["drops"]["no_route"], 2.0);
        // A forwarder that was started again begins at 0.
        let again = Rates::between(&now, &sample(1.0, 5, &[])).to_json(&sample(1.0, 5, &[]));
        assert_eq!(again["ports"]["ens3"]["received_per_second"], 0.0);
    }
}
