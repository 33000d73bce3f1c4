//! Time of a packet in the pipeline: nanoseconds, one worker, no ports. See `docs/performance.md`.
//!
//! - `established`: packets of 1,000 connections, both directions mixed. Bound by the instructions of one
//!   packet: the tables fit into the second-level cache.
//! - `new`: the first packet of a connection, 1,024 of them into an empty table. Bound by the walk and by
//!   filling two entries.
//!
//! Every frame is verified before the first figure, and counted (`established`: compared) after each run.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pollux_bench::Work;
use pollux_bench::pipeline::{Established, Openings};

fn pipeline(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(1));
    group.bench_function("established", |bencher| {
        let mut work = Established::new(1000);
        bencher.iter_custom(|packets| measure(&mut work, packets));
    });
    group.bench_function("new", |bencher| {
        let mut work = Openings::new();
        bencher.iter_custom(|packets| measure(&mut work, packets));
    });
    group.finish();
}

/// The time of `packets` packets, from whole runs.
fn measure(work: &mut impl Work, packets: u64) -> Duration {
    let runs = packets.div_ceil(work.operations());
    let mut time = Duration::ZERO;
    for _ in 0..runs {
        let start = Instant::now();
        work.run();
        time += start.elapsed();
        assert_eq!(work.check(), work.operations(), "a run had wrong results");
    }
    time.mul_f64(packets as f64 / (runs * work.operations()) as f64)
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
