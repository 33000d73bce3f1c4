//! The forwarding table: longest prefix match on a packet's final destination (RT-01, RT-06).
//!
//! A Poptrie (Asai and Ohara, SIGCOMM 2015): the first 16 bits of the address index an array; what is longer
//! hangs below it in nodes of 6 bits, whose children and leaves are found by counting bits. A node takes 24
//! bytes however many slots it has filled, so a node's table stays in the cache: an IPv4 lookup reads the
//! array, mostly one node, and a leaf.
//!
//! ```text
//! root[2¹⁶] ─→ route
//!           └→ node { children: bit per slot, leaves: bit per run of slots } ─→ nodes[first_child + count]
//!                                                                            └→ leaves[first_leaf + count]
//! ```
//!
//! Invariants: the children of a node are neighbours in `nodes`, its leaves in `leaves`; everything below one
//! root slot is reached through that slot alone, so it can be rebuilt aside and changed by storing one word.

use arrayvec::ArrayVec;
use std::ops::Range;

use super::Route;
use crate::packet::{Address, Family};

/// Bits of an address that the root array takes.
const ROOT_BITS: u8 = 16;
/// Bits that a node takes: one machine word has a bit for each of its slots.
const NODE_BITS: u8 = 6;
/// Slots of a node.
const SLOTS: usize = 1 << NODE_BITS;
/// Set in a root slot that holds a route and not a node.
const LEAF: u32 = 1 << 31;
/// The leaf that holds no route.
const NO_ROUTE: u32 = LEAF - 1;

/// Number of a route in its [`Fib`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RouteId(pub u32);

/// A forwarding table. See the module's documentation.
#[derive(Clone, Debug)]
pub struct Fib<A: Family> {
    root: Box<[u32]>,
    nodes: Vec<Node>,
    leaves: Vec<u32>,
    routes: Vec<Route<A>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Node {
    /// A bit for each slot that has a child.
    children: u64,
    /// A bit for each slot where a run of equal leaves begins.
    leaves: u64,
    first_child: u32,
    first_leaf: u32,
}

impl<A: Family> Default for Fib<A> {
    fn default() -> Self {
        Fib::build(Vec::new())
    }
}

impl<A: Family> Fib<A> {
    /// Builds the table of `routes`, in any order. Of equal prefixes the lowest metric stays, the first of
    /// the list among equal metrics (RT-01). Routes of the kernel's table `local` hide all others at and
    /// below their prefix, because the kernel looks there first.
    ///
    /// # Panics
    /// If there are 2³¹ routes or more.
    pub fn build(mut routes: Vec<Route<A>>) -> Self {
        assert!(routes.len() < NO_ROUTE as usize, "{} routes", routes.len());
        // By address, then length: whatever holds a prefix stands before it, so that later routes may
        // simply overwrite earlier ones. The sort is stable.
        routes.sort_by_key(|route| (route.prefix, !route.kind.is_of_local_table(), route.metric));
        routes.dedup_by_key(|route| route.prefix);
        hide_behind_local(&mut routes);
        let mut fib = Fib {
            root: vec![LEAF | NO_ROUTE; 1 << ROOT_BITS].into_boxed_slice(),
            nodes: Vec::new(),
            leaves: Vec::new(),
            routes,
        };
        fib.fill_root();
        fib
    }

    /// The number of the route for `destination`.
    #[inline]
    pub fn find(&self, destination: A::Addr) -> Option<RouteId> {
        let key = key::<A>(destination);
        let entry = self.root[(key >> (128 - ROOT_BITS)) as usize];
        let value = if entry & LEAF != 0 { entry & !LEAF } else { self.descend(key, entry) };
        (value != NO_ROUTE).then_some(RouteId(value))
    }

    /// The route for `destination`.
    #[inline]
    pub fn lookup(&self, destination: A::Addr) -> Option<&Route<A>> {
        self.find(destination).map(|id| self.route(id))
    }

    /// The route that has number `id`.
    ///
    /// # Panics
    /// If the number is not of this table.
    #[inline]
    pub fn route(&self, id: RouteId) -> &Route<A> {
        &self.routes[id.0 as usize]
    }

    /// All routes in force, by address, then length; at the place of their number.
    pub fn routes(&self) -> &[Route<A>] {
        &self.routes
    }

    /// Bytes that lookups read from: the table without the route objects.
    pub fn lookup_bytes(&self) -> usize {
        size_of_val(&*self.root) + size_of_val(&*self.nodes) + size_of_val(&*self.leaves)
    }

    fn descend(&self, key: u128, mut entry: u32) -> u32 {
        let mut depth = ROOT_BITS;
        loop {
            let node = self.nodes[entry as usize];
            let slot = chunk::<A>(key, depth);
            // Bits up to and including the slot's.
            let upto = u64::MAX >> (SLOTS - 1 - slot);
            if node.children >> slot & 1 == 0 {
                let run = (node.leaves & upto).count_ones() - 1;
                return self.leaves[(node.first_leaf + run) as usize];
            }
            entry = node.first_child + (node.children & upto).count_ones() - 1;
            depth += NODE_BITS;
        }
    }

    fn fill_root(&mut self) {
        let slot = |route: &Route<A>| (key::<A>(route.prefix.address()) >> (128 - ROOT_BITS)) as usize;
        for (id, route) in self.routes.iter().enumerate() {
            if let Some(free) = ROOT_BITS.checked_sub(route.prefix.len()) {
                self.root[slot(route)..][..1 << free].fill(LEAF | id as u32);
            }
        }
        let mut at = 0;
        while at < self.routes.len() {
            if self.routes[at].prefix.len() <= ROOT_BITS {
                at += 1;
                continue;
            }
            // A shorter prefix that begins in this slot stands before the longer ones, so these are adjacent.
            let place = slot(&self.routes[at]);
            let start = at;
            while at < self.routes.len() && slot(&self.routes[at]) == place {
                at += 1;
            }
            let inherited = self.root[place] & !LEAF;
            let node = self.nodes.len();
            self.nodes.push(Node::default());
            self.fill_node(node, start..at, ROOT_BITS, inherited);
            self.root[place] = node as u32;
        }
    }

    /// Makes the node at `at` from routes that are all longer than `depth` and equal in their first `depth`
    /// bits; `inherited` is the route (or none) for whatever they leave free.
    fn fill_node(&mut self, at: usize, routes: Range<usize>, depth: u8, inherited: u32) {
        let mut values = [inherited; SLOTS];
        let mut children: ArrayVec<(usize, Range<usize>), SLOTS> = ArrayVec::new();
        let slot = |route: &Route<A>| chunk::<A>(key::<A>(route.prefix.address()), depth);
        let mut next = routes.start;
        while next < routes.end {
            let place = slot(&self.routes[next]);
            if let Some(free) = (depth + NODE_BITS).checked_sub(self.routes[next].prefix.len()) {
                values[place..][..1 << free].fill(next as u32);
                next += 1;
                continue;
            }
            let start = next;
            while next < routes.end && slot(&self.routes[next]) == place {
                next += 1;
            }
            children.push((place, start..next));
        }

        let mut node = Node {
            first_child: self.nodes.len() as u32,
            first_leaf: self.leaves.len() as u32,
            ..Node::default()
        };
        for (place, _) in &children {
            node.children |= 1 << place;
        }
        let mut run = None;
        for (place, &value) in values.iter().enumerate() {
            if node.children >> place & 1 == 0 && run != Some(value) {
                node.leaves |= 1 << place;
                self.leaves.push(value);
                run = Some(value);
            }
        }
        self.nodes[at] = node;
        self.nodes.resize(self.nodes.len() + children.len(), Node::default());
        for (number, (place, routes)) in children.into_iter().enumerate() {
            let child = node.first_child as usize + number;
            self.fill_node(child, routes, depth + NODE_BITS, values[place]);
        }
    }
}

/// The address with its first bit at bit 127, whatever the family.
#[inline]
fn key<A: Family>(address: A::Addr) -> u128 {
    address.bits() << (128 - A::BITS)
}

/// The [`NODE_BITS`] bits of a key behind the first `depth`; zeros follow an address's last bit.
#[inline]
fn chunk<A: Family>(key: u128, depth: u8) -> usize {
    if A::BITS <= 64 {
        // Half the width, half the instructions.
        (((key >> 64) as u64) << depth >> (64 - NODE_BITS)) as usize
    } else {
        (key << depth >> (128 - NODE_BITS)) as usize
    }
}

/// Takes out what the table `local` hides. `routes` are in order, so what lies inside a prefix follows it.
fn hide_behind_local<A: Family>(routes: &mut Vec<Route<A>>) {
    let mut covered: Option<A::Addr> = None;
    routes.retain(|route| {
        if route.kind.is_of_local_table() {
            covered = covered.max(Some(route.prefix.last()));
            return true;
        }
        covered.is_none_or(|last| route.prefix.address() > last)
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::{PortId, Prefix, V4, V6};
    use crate::route::fixture::{ENS3, seed_fib};
    use crate::route::{NextHop, RouteKind, fixture, retain_usable};

    fn addr<A: Family>(text: &str) -> A::Addr {
        text.parse().unwrap_or_else(|_| panic!("{text} is not an address"))
    }

    fn via<A: Family>(prefix: &str, port: u16, metric: u32) -> Route<A> {
        Route {
            metric,
            ..Route::new(prefix.parse().unwrap(), RouteKind::Via(NextHop::on_link(PortId(port))))
        }
    }

    fn port<A: Family>(fib: &Fib<A>, destination: &str) -> Option<u16> {
        match fib.lookup(addr::<A>(destination))?.kind {
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
                .copied()
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
        let fib = Fib::build(routes.to_vec());
        let edges = routes.iter().flat_map(|route| {
            let (first, last) = (route.prefix.address().bits(), route.prefix.last().bits());
            [first, last, first.wrapping_sub(1), last.wrapping_add(1)].map(A::Addr::from_bits)
        });
        for destination in edges.chain(others.iter().map(|bytes| from_bytes::<A>(bytes))) {
            assert_eq!(fib.lookup(destination).copied(), model(routes, destination), "{destination}");
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
        let local =
            |prefix: &str| Route { metric: 500, ..Route::new(prefix.parse().unwrap(), RouteKind::Local) };
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
        let kind = |destination| fib.lookup(addr::<V4>(destination)).unwrap().kind;
        assert_eq!(kind("10.151.51.99"), RouteKind::Blackhole);
        assert_eq!(kind("10.151.51.8"), RouteKind::Via(NextHop::on_link(fixture::CALI_8)));
        assert_eq!(kind("10.151.51.7"), RouteKind::Via(NextHop::on_link(fixture::CALI_7)));
        assert_eq!(kind("10.151.51.0"), RouteKind::Local);
    }

    #[test]
    fn rt_02_the_seed_s_gateways_tunnel_and_default() {
        let fib = seed_fib();
        let hop = |destination| match fib.lookup(addr::<V4>(destination)).unwrap().kind {
            RouteKind::Via(hop) => hop,
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
        assert_eq!(
            fib.lookup(addr::<V4>("8.8.8.8")).unwrap().preferred_source,
            Some(addr::<V4>("172.16.1.50"))
        );
    }

    #[test]
    fn rt_04_link_down_is_chosen_unless_the_port_ignores_it() {
        let docker = addr::<V4>("172.17.0.9");
        let route = *seed_fib().lookup(docker).unwrap();
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
        assert!(fib.lookup_bytes() < (4 << ROOT_BITS) + 4096, "{}", fib.lookup_bytes());
    }
}
