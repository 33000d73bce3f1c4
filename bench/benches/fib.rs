//! The forwarding table at the size of the Internet (RT-06): 1,000,000 IPv4 and 200,000 IPv6 prefixes.
//!
//! - `load`: the whole table from a list of routes.
//! - `lookup`: random destinations, one after another, none of them near the last one: bound by memory, since the table is
//!   larger than the second-level cache.
//! - `update`: one route that comes or goes, and the snapshot that a worker would get. Of random prefixes with their
//!   real lengths; and of the default route, which is the longest of all.
//! - `change`: another next hop for a known prefix, and the snapshot.
//!
//! Results are compared with a search prefix length by prefix length before anything is measured.

use std::collections::HashMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pollux_bench::internet::{Internet, destinations, route, table};
use pollux_dataplane::packet::{PortId, Prefix, V4, V6};
use pollux_dataplane::route::{Fib, FibEditor, NextHop, Route, RouteKind};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn fib(criterion: &mut Criterion) {
    family::<V4>(criterion, "fib_ipv4");
    family::<V6>(criterion, "fib_ipv6");
}

fn family<A: Internet>(criterion: &mut Criterion, name: &str) {
    let routes = table::<A>(A::FULL, 1);
    let asked = destinations(&routes, 1 << 20, 2);
    let mut editor = FibEditor::new(routes.clone());
    let table = editor.snapshot();
    verify(&table, &routes, &asked[..20_000]);
    println!(
        "{name}: {} prefixes, {} bytes that lookups read, {:.1} a prefix",
        routes.len(),
        table.lookup_bytes(),
        table.lookup_bytes() as f64 / routes.len() as f64
    );

    let mut group = criterion.benchmark_group(name);
    group.sample_size(10);
    group.bench_function("load", |bencher| {
        bencher.iter_batched(|| routes.clone(), Fib::build, BatchSize::PerIteration);
    });
    group.sample_size(30).throughput(Throughput::Elements(1));
    group.bench_function("lookup", |bencher| {
        let mut at = 0;
        bencher.iter(|| {
            at = (at + 1) % asked.len();
            black_box(table.find(asked[at]))
        });
    });
    let mut random = StdRng::seed_from_u64(3);
    group.bench_function("update", |bencher| {
        // What goes comes back, so the table keeps its size.
        let mut given_up: Option<Route<A>> = None;
        bencher.iter_custom(|times| {
            measure(times, &mut editor, |editor| match given_up.take() {
                Some(back) => editor.replace(back.prefix, [back]),
                None => {
                    let gone = routes[random.random_range(1..routes.len())].clone();
                    let changed = editor.replace(gone.prefix, []);
                    given_up = Some(gone);
                    changed
                }
            })
        });
        if let Some(back) = given_up {
            editor.replace(back.prefix, [back]);
        }
    });
    group.bench_function("change", |bencher| {
        bencher.iter_custom(|times| {
            measure(times, &mut editor, |editor| {
                let prefix = routes[random.random_range(1..routes.len())].prefix;
                let before =
                    editor.get(prefix).and_then(|route| route.kind.next_hop(0)).map(|hop| hop.port.0);
                let port = PortId(before.unwrap_or(0) ^ 1);
                editor.replace(prefix, [Route::new(prefix, RouteKind::Via(NextHop::on_link(port)))])
            })
        });
    });
    let mut there = true;
    group.bench_function("update_default", |bencher| {
        bencher.iter_custom(|times| {
            measure(times, &mut editor, |editor| {
                there = !there;
                editor.replace(Prefix::ALL, there.then(|| route(Prefix::ALL, &mut random)))
            })
        });
    });
    group.finish();
}

/// The time of `times` changes, each with its snapshot. The snapshot before is dropped outside: control does that later.
fn measure<A: Internet>(
    times: u64,
    editor: &mut FibEditor<A>,
    mut change: impl FnMut(&mut FibEditor<A>) -> bool,
) -> Duration {
    let mut time = Duration::ZERO;
    let mut old = editor.snapshot();
    for _ in 0..times {
        let start = Instant::now();
        assert!(change(editor));
        let new = editor.snapshot();
        time += start.elapsed();
        drop(std::mem::replace(&mut old, new));
    }
    time
}

/// Every length is asked for, the longest first.
fn verify<A: Internet>(table: &Fib<A>, routes: &[Route<A>], asked: &[A::Addr]) {
    let known: HashMap<_, _> = routes.iter().map(|route| (route.prefix, route)).collect();
    for destination in asked {
        let best = (0..=A::BITS).rev().find_map(|length| known.get(&Prefix::new(*destination, length)));
        assert_eq!(table.lookup(*destination), best.copied(), "{destination}");
    }
}

criterion_group!(benches, fib);
criterion_main!(benches);
