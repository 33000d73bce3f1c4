//! Time from a changed object to new tables in force, and of the choice of a backend from them, on a node with
//! 10,000 Services of 3 endpoints each. See `docs/performance.md`.
//!
//! - `translate/all`: everything, as at the start.
//! - `translate/one_endpoint`: one endpoint of one Service comes or goes: translated, made into tables, given
//!   to the forwarder, and the old tables freed (UP-01).
//! - `services/destination`: one lookup of a random Service's clusterIP, as the first packet of a connection
//!   makes it.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pollux_bench::services::{BACKENDS, Node, SERVICES};
use pollux_dataplane::service::{Locality, Origin, Request, Silent};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn translate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("translate");
    group.sample_size(20);
    group.bench_function("all", |bencher| {
        bencher.iter_batched(Node::new, |mut node| node.compile_all(), BatchSize::PerIteration);
    });
    group.bench_function("one_endpoint", |bencher| {
        let mut node = Node::new();
        node.compile_all();
        let mut random = StdRng::seed_from_u64(1);
        bencher.iter(|| node.change_one_endpoint(random.random_range(0..SERVICES)));
        node.assert_complete();
    });
    group.finish();
}

fn destination(criterion: &mut Criterion) {
    let mut node = Node::new();
    node.compile_all();
    let tables = Arc::clone(node.tables());
    let services = &tables.v4.as_ref().expect("IPv4").services;
    let mut random = StdRng::seed_from_u64(2);
    let requests: Vec<_> = (0..1 << 16)
        .map(|_| Request {
            source: [172, 16, 0, 9].into(),
            destination: pollux_bench::services::cluster_ip(random.random_range(0..SERVICES)),
            destination_port: 80,
            protocol: pollux_dataplane::packet::Protocol::TCP,
            origin: Origin::Port,
            source_is_local: Locality::Remote,
            destination_is_local: Locality::Remote,
        })
        .collect();
    let mut group = criterion.benchmark_group("services");
    group.throughput(Throughput::Elements(requests.len() as u64));
    group.bench_function("destination", |bencher| {
        bencher.iter(|| {
            let mut found = 0;
            for request in &requests {
                let choice = services.destination(black_box(request), &mut Silent).choice;
                let (_, set) = choice.expect("a Service");
                found += u64::from(services.backends(set)[BACKENDS - 1].port);
            }
            assert_eq!(found, requests.len() as u64 * 8080);
        });
    });
    group.finish();
}

criterion_group!(benches, translate, destination);
criterion_main!(benches);
