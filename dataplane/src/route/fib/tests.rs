use proptest::prelude::*;

use super::*;
use crate::packet::{PortId, Prefix, V4, V6};
use crate::route::fixture::{ENS3, seed_fib};
use crate::route::{NextHop, RouteKind, fixture, retain_usable};

fn addr<A: Family>(text: &str) -> A::Addr {
    text.parse().unwrap_or_else(|_| panic!("{text} is not an address"))
}

fn via<A: Family>(prefix: &str, port: u16, metric: u32) -> Route<A> {
    Route { metric, ..Route::new(prefix.parse().unwrap(), RouteKind::Via(NextHop::on_link(PortId(port)))) }
}

fn port<A: Family>(fib: &Fib<A>, destination: &str) -> Option<u16> {
    match &fib.lookup(addr::<A>(destination))?.kind {
        RouteKind::Via(hop) => Some(hop.port.0),
        other => panic!("{destination}: {other:?}"),
    }
}

/// What the table must equal: the kernel's table local first, then the others; in each the longest
/// prefix, the lowest metric, the first of the list.
fn model<A: Family>(routes: &[Route<A>], destination: A::Addr) -> Option<Route<A>> {
    let best = |local: bool| {
        routes
            .iter()
            .filter(|route| route.kind.is_of_local_table() == local && route.prefix.contains(destination))
            .min_by_key(|route| (std::cmp::Reverse(route.prefix.len()), route.metric))
            .cloned()
    };
    best(true).or_else(|| best(false))
}

/// Prefixes that nest and meet: few distinct bytes, all lengths.
fn routes<A: Family>() -> impl Strategy<Value = Vec<Route<A>>> {
    let address = prop::collection::vec(prop::sample::select(vec![0u8, 1, 0x80, 0xff]), 16);
    let route = (address, 0..=A::BITS, 0..4u32, 0..8u16, 0..20u8);
    prop::collection::vec(route, 0..200).prop_map(|all| {
        all.into_iter()
            .map(|(bytes, length, metric, port, kind)| Route {
                metric,
                ..Route::new(
                    Prefix::new(from_bytes::<A>(&bytes), length),
                    match kind {
                        0 if length > 4 => RouteKind::Local,
                        1 => RouteKind::Blackhole,
                        _ => RouteKind::Via(NextHop::on_link(PortId(port))),
                    },
                )
            })
            .collect()
    })
}

fn from_bytes<A: Family>(bytes: &[u8]) -> A::Addr {
    let key = u128::from_be_bytes(bytes.try_into().unwrap());
    A::Addr::from_bits(key >> (128 - A::BITS))
}

/// Compares at the edges of every prefix, just outside of them, and at `others`.
fn agrees<A: Family>(routes: &[Route<A>], others: &[[u8; 16]]) {
    equals(&Fib::build(routes.to_vec()), routes, others);
}

fn equals<A: Family>(fib: &Fib<A>, routes: &[Route<A>], others: &[[u8; 16]]) {
    let edges = routes.iter().flat_map(|route| {
        let (first, last) = (route.prefix.address().bits(), route.prefix.last().bits());
        [first, last, first.wrapping_sub(1), last.wrapping_add(1)].map(A::Addr::from_bits)
    });
    for destination in edges.chain(others.iter().map(|bytes| from_bytes::<A>(bytes))) {
        assert_eq!(fib.lookup(destination).cloned(), model(routes, destination), "{destination}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn rt_01_ipv4_table_equals_a_linear_search(
        routes in routes::<V4>(), others in prop::collection::vec(any::<[u8; 16]>(), 64)
    ) {
        agrees(&routes, &others);
    }

    #[test]
    fn rt_01_ipv6_table_equals_a_linear_search(
        routes in routes::<V6>(), others in prop::collection::vec(any::<[u8; 16]>(), 64)
    ) {
        agrees(&routes, &others);
    }
}

#[test]
fn rt_01_longest_prefix_then_lowest_metric_then_order() {
    let fib = Fib::<V4>::build(vec![
        via("0.0.0.0/0", 1, 200),
        via("10.0.0.0/8", 2, 50),
        via("10.0.0.0/8", 3, 10),
        via("10.0.0.0/8", 4, 10),
        via("10.1.2.0/23", 5, 1000),
        via("10.1.2.128/25", 6, 0),
        via("10.1.2.129/32", 7, 0),
    ]);
    assert_eq!(port(&fib, "192.0.2.1"), Some(1));
    assert_eq!(port(&fib, "10.200.0.1"), Some(3));
    assert_eq!(port(&fib, "10.1.3.255"), Some(5));
    assert_eq!(port(&fib, "10.1.2.128"), Some(6));
    assert_eq!(port(&fib, "10.1.2.129"), Some(7));
    assert_eq!(port(&fib, "10.1.2.130"), Some(6));
    assert_eq!(fib.routes().len(), 5);
}

#[test]
fn rt_01_ipv6_prefixes_of_all_lengths() {
    let fib = Fib::<V6>::build(vec![
        via("::/0", 1, 0),
        via("2001:db8::/32", 2, 0),
        via("2001:db8:0:42::/64", 3, 0),
        via("2001:db8:0:42::1/128", 4, 0),
        via("2001:db8:0:42::2/127", 5, 0),
    ]);
    assert_eq!(port(&fib, "2001:db9::"), Some(1));
    assert_eq!(port(&fib, "2001:db8:ffff::"), Some(2));
    assert_eq!(port(&fib, "2001:db8:0:42:8000::"), Some(3));
    assert_eq!(port(&fib, "2001:db8:0:42::1"), Some(4));
    assert_eq!(port(&fib, "2001:db8:0:42::3"), Some(5));
    assert_eq!(port(&fib, "2001:db8:0:42::4"), Some(3));
}

#[test]
fn rt_02_no_route_is_none() {
    assert_eq!(Fib::<V4>::default().lookup(addr::<V4>("10.0.0.1")), None);
    let fib = Fib::<V4>::build(vec![via("10.1.1.0/24", 1, 0)]);
    assert_eq!(fib.lookup(addr::<V4>("10.1.2.1")), None);
    assert_eq!(fib.lookup(addr::<V4>("10.2.1.1")), None);
}

#[test]
fn rt_02_table_local_is_looked_up_first() {
    let local = |prefix: &str| Route { metric: 500, ..Route::new(prefix.parse().unwrap(), RouteKind::Local) };
    let fib = Fib::<V4>::build(vec![
        via("10.0.0.0/8", 1, 0),
        via("10.1.0.1/32", 2, 0),
        local("10.1.0.1/32"),
        local("10.2.0.0/16"),
        via("10.2.3.0/24", 3, 0),
    ]);
    assert_eq!(fib.lookup(addr::<V4>("10.1.0.1")).unwrap().kind, RouteKind::Local);
    assert_eq!(fib.lookup(addr::<V4>("10.2.3.4")).unwrap().kind, RouteKind::Local);
    assert_eq!(port(&fib, "10.3.0.1"), Some(1));
}

#[test]
fn rt_03_blackhole_with_more_specific_pods_as_in_w13() {
    let fib = seed_fib();
    let kind = |destination| fib.lookup(addr::<V4>(destination)).unwrap().kind.clone();
    assert_eq!(kind("10.151.51.99"), RouteKind::Blackhole);
    assert_eq!(kind("10.151.51.8"), RouteKind::Via(NextHop::on_link(fixture::CALI_8)));
    assert_eq!(kind("10.151.51.7"), RouteKind::Via(NextHop::on_link(fixture::CALI_7)));
    assert_eq!(kind("10.151.51.0"), RouteKind::Local);
}

#[test]
fn rt_02_the_seed_s_gateways_tunnel_and_default() {
    let fib = seed_fib();
    let hop = |destination| match &fib.lookup(addr::<V4>(destination)).unwrap().kind {
        RouteKind::Via(hop) => *hop,
        other => panic!("{destination}: {other:?}"),
    };
    let gateway = |text| NextHop::<V4>::gateway(ENS3, addr::<V4>(text));
    assert_eq!(hop("10.150.18.86"), gateway("172.16.0.1"));
    assert_eq!(hop("10.151.49.8"), gateway("172.16.1.88"));
    assert_eq!(hop("10.151.161.1"), gateway("172.16.1.221"));
    assert_eq!(hop("169.254.169.254"), gateway("172.16.0.1"));
    assert_eq!(hop("172.16.1.88"), NextHop::on_link(ENS3));
    assert_eq!(hop("172.16.1.88").neighbour(addr::<V4>("172.16.1.88")), addr::<V4>("172.16.1.88"));
    let tunnel = hop("10.151.32.5");
    assert_eq!((tunnel.port, tunnel.onlink), (fixture::TUNL0, true));
    assert_eq!(tunnel.neighbour(addr::<V4>("10.151.32.5")), addr::<V4>("172.16.2.77"));
    assert_eq!(fib.lookup(addr::<V4>("8.8.8.8")).unwrap().preferred_source, Some(addr::<V4>("172.16.1.50")));
}

#[test]
fn rt_04_link_down_is_chosen_unless_the_port_ignores_it() {
    let docker = addr::<V4>("172.17.0.9");
    let route = seed_fib().lookup(docker).unwrap().clone();
    assert!(route.link_down);
    assert_eq!(route.kind, RouteKind::Via(NextHop::on_link(fixture::DOCKER0)));

    let mut routes = fixture::seed_routes();
    retain_usable(&mut routes, &[ENS3]);
    assert!(Fib::build(routes.clone()).lookup(docker).unwrap().link_down);
    retain_usable(&mut routes, &[fixture::DOCKER0]);
    // 172.16.0.0/12 holds the address too.
    assert_eq!(Fib::build(routes).lookup(docker).unwrap().kind, RouteKind::Via(NextHop::on_link(ENS3)));
}

#[test]
fn rt_06_the_seed_s_table_is_small() {
    let fib = seed_fib();
    // The root, and one chunk each of nodes and leaves.
    assert!(fib.lookup_bytes() < (8 << ROOT_BITS) + 48 * 1024, "{}", fib.lookup_bytes());
}

/// One change of a table: a prefix with its routes, or none.
type Change<A> = (Prefix<A>, Vec<Route<A>>);

fn changes<A: Family>() -> impl Strategy<Value = Vec<Change<A>>> {
    // Few prefixes, so that they are replaced and taken out as often as they are new.
    routes::<A>().prop_map(|all| {
        let prefixes: Vec<_> = all.iter().map(|route| route.prefix).collect();
        let change = |(at, route): (usize, Route<A>)| {
            let prefix = prefixes[at % prefixes.len().min(40)];
            match route.metric {
                0 => (prefix, vec![]),
                _ => (prefix, vec![Route { prefix, ..route.clone() }, Route { prefix, metric: 9, ..route }]),
            }
        };
        all.into_iter().enumerate().map(|(at, route)| change((at * 7, route))).collect()
    })
}

/// After every change the edited table equals the routes that it was given, and every snapshot is still what it was.
fn follows<A: Family>(changes: &[Change<A>], others: &[[u8; 16]]) {
    let mut editor = FibEditor::<A>::new(Vec::new());
    let mut told: Vec<Change<A>> = Vec::new();
    let mut before = editor.snapshot();
    let mut snapshots = Vec::new();
    for (prefix, routes) in changes {
        let same = told.iter().any(|(other, known)| other == prefix && known.first() == routes.first());
        told.retain(|(other, _)| other != prefix);
        told.push((*prefix, routes.clone()));
        let changed = editor.replace(*prefix, routes.clone());
        assert!(!(changed && same), "{prefix} did not change");
        let fib = editor.snapshot();
        let expected =
            if changed { Changed::Prefixes(std::slice::from_ref(prefix)) } else { Changed::Nothing };
        assert_eq!(fib.changed_since(&before), expected);
        let routes: Vec<_> = told.iter().flat_map(|(_, routes)| routes.iter().cloned()).collect();
        before = fib.clone();
        snapshots.push((fib, routes));
    }
    for (fib, routes) in &snapshots {
        equals(fib, routes, others);
        assert_eq!(fib.routes(), Fib::build(routes.clone()).routes());
    }
    // What came and went leaves no more behind than what was there at a time.
    for (prefix, _) in changes {
        editor.replace(*prefix, []);
    }
    assert!(editor.is_empty() && editor.nothing_is_in_use());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn rt_05_an_edited_ipv4_table_equals_a_linear_search(
        changes in changes::<V4>(), others in prop::collection::vec(any::<[u8; 16]>(), 16)
    ) {
        follows(&changes, &others);
    }

    #[test]
    fn rt_05_an_edited_ipv6_table_equals_a_linear_search(
        changes in changes::<V6>(), others in prop::collection::vec(any::<[u8; 16]>(), 16)
    ) {
        follows(&changes, &others);
    }
}

#[test]
fn rt_05_a_new_route_for_a_known_prefix_touches_the_route_alone() {
    let mut editor = FibEditor::<V4>::new(vec![via("0.0.0.0/0", 1, 0), via("10.1.2.0/24", 2, 0)]);
    let before = editor.snapshot();
    let id = before.find(addr::<V4>("10.1.2.3"));
    assert!(editor.replace("10.1.2.0/24".parse().unwrap(), [via("10.1.2.0/24", 3, 0)]));
    let after = editor.snapshot();
    assert_eq!((after.find(addr::<V4>("10.1.2.3")), port(&after, "10.1.2.3")), (id, Some(3)));
    assert_eq!(port(&before, "10.1.2.3"), Some(2));
    let shared = |a: &Fib<V4>, b: &Fib<V4>| {
        a.nodes.unshared(&b.nodes).count()
            + a.leaves.unshared(&b.leaves).count()
            + a.root.unshared(&b.root).count()
    };
    assert_eq!(shared(&before, &after), 0);
    // The default route stands in the root alone.
    assert!(editor.replace(Prefix::ALL, [via("0.0.0.0/0", 4, 0)]));
    assert_eq!(shared(&after, &editor.snapshot()), 0);
    assert!(editor.replace(Prefix::ALL, []));
    let gone = editor.snapshot();
    assert_eq!(gone.nodes.unshared(&after.nodes).count() + gone.leaves.unshared(&after.leaves).count(), 0);
    assert_eq!((port(&gone, "10.1.2.3"), port(&gone, "10.1.3.3")), (Some(3), None));
}

#[test]
fn rt_05_snapshots_know_what_changed_between_them() {
    let mut editor = FibEditor::<V4>::new(vec![via("10.0.0.0/8", 1, 0)]);
    let one = editor.snapshot();
    assert_eq!(editor.snapshot().changed_since(&one), Changed::Nothing);
    let (a, b): (Prefix<V4>, Prefix<V4>) = ("10.1.0.0/16".parse().unwrap(), "10.2.0.0/16".parse().unwrap());
    editor.replace(a, [via("10.1.0.0/16", 2, 0)]);
    editor.replace(b, [via("10.2.0.0/16", 2, 0)]);
    let two = editor.snapshot();
    assert_eq!(two.changed_since(&one), Changed::Prefixes(&[a, b]));
    editor.replace(a, []);
    let three = editor.snapshot();
    assert_eq!(three.changed_since(&two), Changed::Prefixes(&[a]));
    // Not its neighbour, and the tables of another editor.
    assert_eq!(three.changed_since(&one), Changed::Everything);
    assert_eq!(Fib::build(vec![via("10.0.0.0/8", 1, 0)]).changed_since(&one), Changed::Everything);
    for third in 0..=255 {
        for fourth in 0..8 {
            let prefix = format!("10.3.{third}.{fourth}/32");
            editor.replace(prefix.parse().unwrap(), [via(&prefix, 2, 0)]);
        }
    }
    assert_eq!(editor.snapshot().changed_since(&three), Changed::Everything);
}

/// Readers look up in whatever snapshot they got last while another thread edits: each is whole.
#[test]
fn rt_05_readers_on_other_threads_see_whole_snapshots() {
    const STEPS: u16 = 2000;
    // In step `n` two prefixes far from each other lead out of port `n`: a reader sees both or neither.
    let step = |port: u16| ["10.1.2.0/24", "2.0.0.0/7"].map(|prefix| via::<V4>(prefix, port, 0));
    let mut editor = FibEditor::<V4>::new(step(0).to_vec());
    let current = std::sync::RwLock::new(editor.snapshot());
    std::thread::scope(|threads| {
        let readers = [(); 2].map(|()| {
            threads.spawn(|| {
                let mut seen = 0;
                while seen < STEPS {
                    let fib = current.read().unwrap().clone();
                    let ports = ["10.1.2.77", "2.3.4.5"].map(|destination| port(&fib, destination));
                    assert_eq!(ports[0], ports[1]);
                    assert!(ports[0] >= Some(seen), "time goes forward");
                    seen = ports[0].unwrap();
                }
            })
        });
        for number in 1..=STEPS {
            for route in step(number) {
                // Now and then it is a new prefix, and the trie changes.
                if number % 3 == 0 {
                    editor.replace(route.prefix, []);
                }
                editor.replace(route.prefix, [route]);
            }
            *current.write().unwrap() = editor.snapshot();
        }
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}
