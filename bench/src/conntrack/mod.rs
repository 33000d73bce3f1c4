//! A flow table from empty to full and back: made, listed, expired, made again, as a worker does it, every count
//! verified.
//!
//! - Connections are UDP through DNAT: both entries carry a translation. All are made in one moment, so all are over
//!   in one moment: the worst case of expiry.
//! - A *poll* is what a worker does between two looks at its ports: a burst of 32 new connections with, each 16th
//!   time, a slice of expiry; in the second part a slice of expiry alone, as large as the worker's longest sleep
//!   (5 ms) makes it.
//! - Times are of the thread's own processor time ([`thread_time`]), so that other work on the machine does not
//!   count. Rates are operations in such a second.
//! - With several workers each makes its share of the connections in a thread of its own, at the same time; a rate is
//!   then what they make together in a second in which each has a processor: connections by the threads' mean time,
//!   time spent on others' locks included. Listing and expiry are one thread's.
//! - Memory is what the process has more of when the table is full than before it was made.

use std::sync::Barrier;
use std::time::Duration;

use pollux_dataplane::flow::{FlowKey, FlowTable, NewConnection, NextHopRef, State, Tick, Timeouts};
use pollux_dataplane::packet::{BURST, Family, Protocol, V4, V6};
use pollux_dataplane::time::Instant;
use serde::Serialize;

use crate::machine::{self, thread_time};

/// Bursts between two slices of expiry, as the worker has it.
const CHORES_EVERY: usize = 16;
/// The worker's longest sleep, and so the longest time between two slices when the table is quiet.
const NAP: Duration = Duration::from_millis(5);
/// Connections that are listed at once.
const PORTION: usize = 1024;
const SEED: [u64; 2] = [0x706f_6c6c_7578, 0x636f_6e6e];

/// What was measured, medians of the runs; one object of the command's output.
#[derive(Clone, Serialize, Debug)]
pub struct Report {
    /// 4 or 6.
    pub family: u8,
    /// Connections that were made, and room for no more.
    pub connections: usize,
    /// Threads that made them at once.
    pub workers: usize,
    /// Memory for each of them, both directions, everything included.
    pub bytes_per_connection: f64,
    /// New connections in a second of processor time, in a table that was just mapped: the kernel gives its pages on
    /// the way.
    pub made_per_second: f64,
    /// Likewise, in memory that was used before.
    pub remade_per_second: f64,
    /// Connections listed in a second.
    pub listed_per_second: f64,
    /// Connections removed in a second because their time was over.
    pub expired_per_second: f64,
    /// From the deadline of all connections to the end of the last.
    pub expiry_lag_ms: u64,
    /// The longest poll of a run, in microseconds of processor time; the median of the runs. What the kernel does in
    /// interrupts on this thread counts too.
    pub longest_poll_us: f64,
    /// The longest poll of all runs.
    pub worst_poll_us: f64,
    /// Fewest and most of `made_per_second` in the runs.
    pub spread: [f64; 2],
    /// Times that all of it was done.
    pub runs: usize,
    /// Where.
    pub machine: String,
}

/// One run.
#[derive(Clone, Copy, Debug)]
struct Run {
    bytes: f64,
    made: f64,
    remade: f64,
    listed: f64,
    expired: f64,
    lag: Duration,
    longest: Duration,
}

/// A family whose connections can be numbered.
pub trait Numbered: Family {
    /// The address of client `number`; different for different numbers.
    fn client(number: u32) -> Self::Addr;
    /// The number of a client.
    fn number(client: Self::Addr) -> u32;
    /// The address of the Service, and of its backend.
    const PLACES: [Self::Addr; 2];
}

impl Numbered for V4 {
    fn client(number: u32) -> std::net::Ipv4Addr {
        std::net::Ipv4Addr::from_bits(number)
    }
    fn number(client: std::net::Ipv4Addr) -> u32 {
        client.to_bits()
    }
    const PLACES: [std::net::Ipv4Addr; 2] =
        [std::net::Ipv4Addr::new(10, 96, 0, 1), std::net::Ipv4Addr::new(10, 244, 0, 2)];
}

impl Numbered for V6 {
    fn client(number: u32) -> std::net::Ipv6Addr {
        std::net::Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(number))
    }
    fn number(client: std::net::Ipv6Addr) -> u32 {
        client.to_bits() as u32
    }
    const PLACES: [std::net::Ipv6Addr; 2] = [
        std::net::Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1),
        std::net::Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 2),
    ];
}

/// Measures `connections` connections of family `A`, made by `workers` threads, `runs` times.
///
/// # Errors
/// When the memory is not there, in one line.
///
/// # Panics
/// When a count is wrong: the table lost a connection or kept one.
pub fn measure<A: Numbered>(connections: usize, workers: usize, runs: usize) -> Result<Report, String> {
    let mut all = Vec::new();
    for _ in 0..runs.max(1) {
        all.push(run::<A>(connections, workers.max(1))?);
    }
    let median = |figure: fn(&Run) -> f64| median(all.iter().map(figure));
    let made = all.iter().map(|run| run.made);
    Ok(Report {
        family: A::VERSION,
        connections,
        workers: workers.max(1),
        bytes_per_connection: median(|run| run.bytes),
        made_per_second: median(|run| run.made).round(),
        remade_per_second: median(|run| run.remade).round(),
        listed_per_second: median(|run| run.listed).round(),
        expired_per_second: median(|run| run.expired).round(),
        expiry_lag_ms: all.iter().map(|run| run.lag.as_millis() as u64).max().unwrap_or(0),
        longest_poll_us: micros(median(|run| run.longest.as_secs_f64())),
        worst_poll_us: micros(all.iter().map(|run| run.longest.as_secs_f64()).fold(0.0, f64::max)),
        spread: [made.clone().fold(f64::MAX, f64::min).round(), made.fold(0.0, f64::max).round()],
        runs: all.len(),
        machine: machine::name(),
    })
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn micros(seconds: f64) -> f64 {
    (seconds * 1e7).round() / 10.0
}

/// Connection `number`: a client of its own to the Service, translated to the backend.
fn connection<A: Numbered>(number: u32) -> NewConnection<A> {
    let [service, backend] = A::PLACES;
    let original = FlowKey {
        source: A::client(number),
        destination: service,
        source_port: 1024 + (number % 60_000) as u16,
        destination_port: 53,
        protocol: Protocol::UDP,
    };
    NewConnection {
        original,
        reply: FlowKey { destination: backend, destination_port: 8053, ..original }.reply(),
        mark: 0,
        state: State::Udp,
        original_next_hop: NextHopRef::default(),
        reply_next_hop: NextHopRef::default(),
    }
}

fn run<A: Numbered>(connections: usize, workers: usize) -> Result<Run, String> {
    check_memory::<A>(connections)?;
    let mut seen = vec![true; connections];
    let memory = || machine::memory_in_use().map_err(|error| error.to_string());
    let before = memory()?;
    let timeouts = Timeouts::default();
    let table: FlowTable<A> = FlowTable::new(connections, SEED, timeouts)
        .map_err(|error| format!("no table for {connections} connections: {error}"))?;
    table.populate();
    let mut longest = Duration::ZERO;

    let begin = Instant::from_secs(1);
    let made = fill(&table, begin, workers, &mut longest);
    let bytes = (memory()?.saturating_sub(before)) as f64 / connections as f64;
    let listed = list(&table, begin, &mut seen);
    look_up(&table);
    let (expired, lag) = expire(&table, begin, &mut longest);
    let again = begin + Duration::from_secs(60);
    let remade = fill(&table, again, workers, &mut longest);
    list(&table, again, &mut seen);
    let counters = table.counters();
    let twice = 2 * connections as u64;
    assert_eq!((counters.inserted, counters.expired), (twice, connections as u64));
    assert_eq!((counters.refused, counters.evicted, counters.removed), (0, 0, 0));

    let rate = |time: Duration| connections as f64 / time.as_secs_f64();
    Ok(Run {
        bytes,
        made: rate(made),
        remade: rate(remade),
        listed: rate(listed),
        expired: rate(expired),
        lag,
        longest,
    })
}

/// Says what is lacking before the kernel has to end the process.
fn check_memory<A: Numbered>(connections: usize) -> Result<(), String> {
    // Twice the entries is more than the table takes with its index, except for small tables' whole pages.
    let needed = connections as u64 * if A::BITS == 32 { 256 } else { 450 };
    let available = machine::memory_available().map_err(|error| error.to_string())?;
    if needed > available {
        return Err(format!(
            "{connections} connections may take {} MiB and {} MiB of memory are available: ask for fewer",
            needed >> 20,
            available >> 20
        ));
    }
    Ok(())
}

/// Makes all connections: the mean of the workers' times. Workers take bursts in turns.
fn fill<A: Numbered>(table: &FlowTable<A>, now: Instant, workers: usize, longest: &mut Duration) -> Duration {
    assert!(table.is_empty());
    let times: Vec<(Duration, Duration)> = if workers == 1 {
        vec![fill_share(table, now, 0, 1)]
    } else {
        let starts = Barrier::new(workers);
        let share = |worker| {
            starts.wait();
            fill_share(table, now, worker, workers)
        };
        std::thread::scope(|scope| {
            let share = &share;
            let threads: Vec<_> = (0..workers).map(|worker| scope.spawn(move || share(worker))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a worker failed")).collect()
        })
    };
    assert_eq!(table.len(), table.capacity());
    *longest = times.iter().map(|(_, poll)| *poll).fold(*longest, Duration::max);
    times.iter().map(|(total, _)| *total).sum::<Duration>() / workers as u32
}

/// Makes the connections of one of several workers: its time, and that of its longest poll.
fn fill_share<A: Numbered>(
    table: &FlowTable<A>,
    now: Instant,
    worker: usize,
    workers: usize,
) -> (Duration, Duration) {
    let now = Tick::from(now);
    let (mut total, mut longest) = (Duration::ZERO, Duration::ZERO);
    let count = table.capacity() as u32;
    let bursts = (0..count).step_by(BURST).skip(worker).step_by(workers);
    for (poll, first) in bursts.enumerate() {
        let burst: Vec<NewConnection<A>> =
            (first..count.min(first + BURST as u32)).map(connection::<A>).collect();
        let mut stored = 0;
        let start = thread_time();
        for new in &burst {
            stored += usize::from(table.insert(new, now).is_ok());
        }
        if poll % CHORES_EVERY == 0 {
            table.expire_since(now, Duration::ZERO);
        }
        let time = thread_time() - start;
        assert_eq!(stored, burst.len(), "a connection was refused at {first} of {count}");
        total += time;
        longest = time.max(longest);
    }
    (total, longest)
}

/// Lists all connections; the time that took. Each is there once, with both its tuples.
fn list<A: Numbered>(table: &FlowTable<A>, now: Instant, seen: &mut [bool]) -> Duration {
    let now = Tick::from(now);
    seen.fill(false);
    let mut total = Duration::ZERO;
    let mut cursor = Some(0);
    while let Some(from) = cursor {
        let start = thread_time();
        let (flows, next) = table.list(from, PORTION, now);
        total += thread_time() - start;
        for flow in flows {
            let number = A::number(flow.original.source);
            let wanted = connection::<A>(number);
            assert_eq!((flow.original, flow.reply), (wanted.original, wanted.reply));
            assert!(!std::mem::replace(&mut seen[number as usize], true), "{number} was listed twice");
        }
        cursor = next;
    }
    assert!(seen.iter().all(|seen| *seen), "a connection was not listed");
    total
}

/// Either tuple finds its connection.
fn look_up<A: Numbered>(table: &FlowTable<A>) {
    for number in 0..table.capacity() as u32 {
        let new = connection::<A>(number);
        let [there, back] = [new.original, new.reply].map(|key| table.lookup(&key).expect("it was stored"));
        assert_eq!(there.entry.id(), back.entry.id());
    }
}

/// Lets all connections expire: the time that took, and how late the last one went.
fn expire<A: Numbered>(table: &FlowTable<A>, begin: Instant, longest: &mut Duration) -> (Duration, Duration) {
    let timeout = table.timeouts().get(pollux_dataplane::flow::Timeout::Udp);
    let deadline = begin + timeout;
    // A whole round in which every deadline is looked at, and none has come.
    let mut now = begin + (timeout - Duration::from_millis(600));
    while now + NAP < deadline {
        now = now + NAP;
        assert_eq!(table.expire_since(now.into(), NAP), 0, "a connection ended before its time");
    }
    let mut total = Duration::ZERO;
    let mut now = deadline;
    while !table.is_empty() {
        let start = thread_time();
        table.expire_since(now.into(), NAP);
        let time = thread_time() - start;
        total += time;
        *longest = time.max(*longest);
        let lag = now.saturating_since(deadline);
        assert!(lag <= Duration::from_secs(1), "{} connections are left after {lag:?} (CT-10)", table.len());
        now = now + NAP;
    }
    (total, now.saturating_since(deadline))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ct_10_a_table_is_made_listed_expired_and_made_again() {
        for report in [measure::<V4>(5_000, 1, 1).unwrap(), measure::<V6>(5_000, 2, 1).unwrap()] {
            assert_eq!(report.connections, 5_000);
            // Whole pages of 2 MiB count fully in a small table.
            assert!(report.bytes_per_connection > 100.0, "{report:?}");
            assert!(report.expiry_lag_ms <= 1_000);
        }
    }

    #[test]
    fn numbers_that_no_memory_holds_are_refused_before_it_is_asked_for() {
        let error = measure::<V4>(1 << 30, 1, 1).unwrap_err();
        assert!(error.contains("MiB") && error.contains("ask for fewer"), "{error}");
    }
}
