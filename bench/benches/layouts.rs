//! The two candidate layouts of the flow table, on the same work. See `docs/performance.md`.
//!
//! - `inline`: entries of one or two cache lines in open addressing with linear probing, at a load of 1/2 and of 3/4.
//!   A lookup reads entries until it meets its own or a free one. A removed entry is free at once if the next one is,
//!   else it stays in the way (a tombstone), which the next insertion there takes.
//! - `buckets`: eight signatures and references in one line, over a slab of entries: the table that is in use
//!   ([`FlowTable`]), with all that it does besides (lock, deadlines, eviction, counters).
//!
//! Work: one connection is two entries. Packets come in bursts of 32, software-pipelined as the forwarder does it: hash
//! and prefetch all; probe and prefetch; then read. Keys are played in an order shuffled against that of their
//! creation. Both are hashed by the table's own function. Reads are verified: every hit has the mark it was stored
//! with, every miss finds nothing. All memory is in ordinary pages: the table asks for huge ones, which the candidate
//! beside it would not have. Insertion and removal are not alike: the table in use takes a lock, keeps deadlines and
//! state, and tells listeners; the candidate stores entries and nothing else. Rounds alternate between the layouts, so that other load on the machine meets both.

use std::hint::black_box;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::fence;
use std::time::Duration;

use pollux_bench::machine::{self, thread_time};
use pollux_dataplane::flow::{FlowKey, FlowTable, NewConnection, NextHopRef, State, Tick, Timeouts};
use pollux_dataplane::packet::{Protocol, V4};
use pollux_dataplane::time::Instant;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

const ROUNDS: usize = 9;
const BURST: usize = 32;
const SEED: [u64; 2] = [1, 2];

/// What a layout offers to the work.
trait Layout {
    fn insert(&mut self, number: u32);
    /// The marks of a burst's keys; `None` for a key without entry.
    fn burst(&self, keys: &[FlowKey<V4>], marks: &mut [Option<u32>]);
    fn remove(&mut self, number: u32);
}

/// Connection `number`; those from [`ABSENT`] on are never stored.
const ABSENT: u32 = 1 << 30;

fn connection(number: u32) -> NewConnection<V4> {
    let original = FlowKey {
        source: number.into(),
        destination: 0x0a60_0001.into(),
        source_port: 1024 + (number % 60_000) as u16,
        destination_port: 80,
        protocol: Protocol::UDP,
    };
    NewConnection {
        original,
        reply: FlowKey { destination: 0x0af4_0002.into(), destination_port: 8080, ..original }.reply(),
        mark: number,
        state: State::Udp,
        original_next_hop: NextHopRef::default(),
        reply_next_hop: NextHopRef::default(),
    }
}

/// The table in use.
struct Buckets {
    table: FlowTable<V4>,
    entries: Vec<Option<pollux_dataplane::flow::EntryRef>>,
}

fn now() -> Tick {
    Tick::from(Instant::from_secs(1))
}

impl Layout for Buckets {
    fn insert(&mut self, number: u32) {
        let entry = self.table.insert(&connection(number), now()).expect("there is room");
        self.entries[number as usize] = Some(entry);
    }

    fn burst(&self, keys: &[FlowKey<V4>], marks: &mut [Option<u32>]) {
        let mut hashes = [None; BURST];
        let mut candidates = [None; BURST];
        for (hash, key) in hashes.iter_mut().zip(keys) {
            let value = self.table.hash(key);
            self.table.prefetch(value);
            *hash = Some(value);
        }
        for (candidate, hash) in candidates.iter_mut().zip(hashes.iter().flatten()) {
            *candidate = self.table.probe(*hash);
        }
        for ((mark, candidate), key) in marks.iter_mut().zip(candidates).zip(keys) {
            *mark = candidate.and_then(|candidate| self.table.find(candidate, key)).map(|hit| hit.mark);
        }
    }

    fn remove(&mut self, number: u32) {
        assert!(self.table.remove(self.entries[number as usize].take().expect("it was stored")));
    }
}

/// Entries of one line in open addressing. Word 0: version (odd while it lives) and mark; 1 and 2: key; the rest as
/// in the table's entries.
struct Inline {
    /// Gives the hash, nothing else.
    hasher: FlowTable<V4>,
    lines: Vec<Line>,
}

#[repr(align(64))]
#[derive(Default)]
struct Line([AtomicU64; 8]);

/// In word 0, beside an even version: something may follow this free entry.
const TOMBSTONE: u64 = 1 << 32;

impl Inline {
    fn new(connections: usize, load: f64) -> Inline {
        let lines = (connections as f64 * 2.0 / load) as usize + 1;
        Inline {
            hasher: FlowTable::new(1, SEED, Timeouts::default()).expect("a small table"),
            lines: (0..lines).map(|_| Line::default()).collect(),
        }
    }

    fn words(key: &FlowKey<V4>) -> [u64; 2] {
        let ports = u64::from(key.source_port) << 48 | u64::from(key.destination_port) << 32;
        let addresses = u64::from(key.source.to_bits()) << 32 | u64::from(key.destination.to_bits());
        [addresses, ports | u64::from(key.protocol.0) << 24]
    }

    /// The place that a hash begins at: all places are as likely, whatever their number.
    fn home(&self, key: &FlowKey<V4>) -> usize {
        ((u64::from(self.hasher.hash(key).bits()) * self.lines.len() as u64) >> 32) as usize
    }

    fn next(&self, place: usize) -> usize {
        if place + 1 == self.lines.len() { 0 } else { place + 1 }
    }

    fn find(&self, mut place: usize, [first, second]: [u64; 2]) -> Option<(usize, [u64; 8])> {
        loop {
            let line = &self.lines[place].0;
            let version = line[0].load(Acquire);
            if version == 0 {
                return None;
            }
            if version >> 33 & 1 == 1 && line[1].load(Relaxed) == first && line[2].load(Relaxed) == second {
                let copy = std::array::from_fn(|word| line[word].load(Relaxed));
                fence(Acquire);
                if line[0].load(Relaxed) == version {
                    return Some((place, copy));
                }
                continue;
            }
            place = self.next(place);
        }
    }

    fn store(&mut self, key: &FlowKey<V4>, mark: u32) {
        let mut place = self.home(key);
        while self.lines[place].0[0].load(Relaxed) >> 33 & 1 == 1 {
            place = self.next(place);
        }
        let line = &self.lines[place].0;
        let [first, second] = Inline::words(key);
        fence(Release);
        for (word, value) in [first, second, u64::from(mark), 0, 0, 0, 0].into_iter().enumerate() {
            line[word + 1].store(value, Relaxed);
        }
        line[0].store(1 << 33 | u64::from(mark), Release);
    }

    fn take(&mut self, key: &FlowKey<V4>) {
        let (mut place, _) = self.find(self.home(key), Inline::words(key)).expect("it was stored");
        if self.lines[self.next(place)].0[0].load(Relaxed) != 0 {
            self.lines[place].0[0].store(TOMBSTONE, Release);
            return;
        }
        // Nothing follows: this one and the tombstones before it are free.
        loop {
            self.lines[place].0[0].store(0, Release);
            place = if place == 0 { self.lines.len() - 1 } else { place - 1 };
            if self.lines[place].0[0].load(Relaxed) != TOMBSTONE {
                return;
            }
        }
    }
}

fn prefetch(line: &Line) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads no value and faults on no address; the pointer comes from a reference anyway.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(line).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

impl Layout for Inline {
    fn insert(&mut self, number: u32) {
        let new = connection(number);
        self.store(&new.reply, number);
        self.store(&new.original, number);
    }

    fn burst(&self, keys: &[FlowKey<V4>], marks: &mut [Option<u32>]) {
        let mut homes = [0; BURST];
        for (home, key) in homes.iter_mut().zip(keys) {
            *home = self.home(key);
            prefetch(&self.lines[*home]);
        }
        for ((mark, home), key) in marks.iter_mut().zip(homes).zip(keys) {
            *mark = self.find(home, Inline::words(key)).map(|(_, copy)| black_box(copy)[0] as u32);
        }
    }

    fn remove(&mut self, number: u32) {
        let new = connection(number);
        self.take(&new.original);
        self.take(&new.reply);
    }
}

type Make = fn(usize) -> Box<dyn Layout>;

/// Nanoseconds for a hit, a miss, an insertion and a removal, by round.
type Figures = [Vec<f64>; 4];

fn nanos(time: Duration, operations: usize) -> f64 {
    time.as_secs_f64() * 1e9 / operations as f64
}

/// Looks up one tuple of each connection, in this order, stored or not; 200,000 lookups or all of them.
fn look_up(layout: &dyn Layout, order: &[u32], stored: bool) -> f64 {
    let keys: Vec<FlowKey<V4>> = order
        .iter()
        .map(|&number| {
            let new = connection(if stored { number } else { number + ABSENT });
            if number % 2 == 0 { new.original } else { new.reply }
        })
        .collect();
    let repeats = (200_000 / order.len()).max(1);
    let mut marks = [None; BURST];
    let start = thread_time();
    for _ in 0..repeats {
        for (keys, numbers) in keys.chunks(BURST).zip(order.chunks(BURST)) {
            layout.burst(keys, &mut marks);
            for (mark, number) in marks.iter().zip(numbers) {
                assert_eq!(*mark, stored.then_some(*number));
            }
        }
    }
    nanos(thread_time() - start, repeats * order.len())
}

fn round(layout: &mut dyn Layout, order: &[u32], figures: &mut Figures) {
    figures[0].push(look_up(layout, order, true));
    figures[1].push(look_up(layout, order, false));
    // A quarter of the connections goes and comes again: what churn leaves behind stays in the layout.
    let some = &order[..order.len() / 4];
    let start = thread_time();
    some.iter().for_each(|&number| layout.remove(number));
    figures[3].push(nanos(thread_time() - start, some.len()));
    let start = thread_time();
    some.iter().rev().for_each(|&number| layout.insert(number));
    figures[2].push(nanos(thread_time() - start, some.len()));
}

fn cell(figures: &mut [f64]) -> String {
    figures.sort_by(f64::total_cmp);
    let (low, high) = (figures[0], figures[figures.len() - 1]);
    format!("{:.0} ({low:.0} to {high:.0})", figures[figures.len() / 2])
}

fn main() {
    nix::sys::prctl::set_thp_disable(true).expect("a process may do without huge pages");
    println!("{}, {ROUNDS} rounds: median (least to most) in ns of processor time\n", machine::name());
    println!(
        "| Connections | Layout | Bytes | Hit | Miss | Insert | Remove |\n| --- | --- | --- | --- | --- | --- | --- |"
    );
    for connections in [1_000, 100_000, 1_000_000] {
        let mut order: Vec<u32> = (0..connections as u32).collect();
        order.shuffle(&mut StdRng::seed_from_u64(7));
        let make: [(&str, Make); 3] = [
            ("buckets", |connections| {
                let table = FlowTable::new(connections, SEED, Timeouts::default()).expect("memory");
                Box::new(Buckets { table, entries: vec![None; connections] })
            }),
            ("inline, 1/2", |connections| Box::new(Inline::new(connections, 0.5))),
            ("inline, 3/4", |connections| Box::new(Inline::new(connections, 0.75))),
        ];
        let mut subjects: Vec<(&str, Box<dyn Layout>, Figures, u64)> = make
            .into_iter()
            .map(|(name, make)| {
                let before = machine::memory_in_use().expect("the kernel says");
                let mut layout = make(connections);
                (0..connections as u32).for_each(|number| layout.insert(number));
                let bytes = machine::memory_in_use().expect("the kernel says").saturating_sub(before);
                (name, layout, Figures::default(), bytes / connections as u64)
            })
            .collect();
        for _ in 0..ROUNDS {
            for (_, layout, figures, _) in &mut subjects {
                round(layout.as_mut(), &order, figures);
            }
        }
        for (name, _, figures, bytes) in &mut subjects {
            let [hit, miss, insert, remove] = figures.each_mut().map(|figures| cell(figures));
            println!("| {connections} | {name} | {bytes} | {hit} | {miss} | {insert} | {remove} |");
        }
    }
}
