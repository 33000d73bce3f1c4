//! The kernel's routes of one family, kept up to date from its notifications.
//!
//! The kernel lets several routes of one prefix and metric stand beside each other and takes the first, so
//! their order counts; where a new one goes is in the flags of its notification (`Placement`). IPv6
//! besides merges routes by a gateway with the same prefix and metric into one with several next hops, and
//! announces the whole when it grows and only the lost hops when it shrinks.
//!
//! Where IPv6 holds routes by gateways and others with one metric side by side, or replaces one with another
//! kind, its notifications do not say all that happened; the answer is then `Certainty::ReadAgain`. (Its
//! dumps do not either: they leave out routes that stand between the next hops of another one. No routing
//! daemon makes such tables.)
//!
//! Invariant: the routes of a prefix are ordered by table, then metric, then as the kernel holds them.

use std::collections::{BTreeMap, BTreeSet};

use pollux_dataplane::packet::family::{Family, Prefix};

use super::state::{Gateway, KernelNextHop, KernelRoute, KernelRouteKind};

/// The routes of one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteTable<A: Family> {
    prefixes: BTreeMap<Prefix<A>, Vec<KernelRoute<A>>>,
}

impl<A: Family> Default for RouteTable<A> {
    fn default() -> Self {
        RouteTable { prefixes: BTreeMap::new() }
    }
}

impl<A: Family> RouteTable<A> {
    /// The routes of exactly this prefix, the one that the kernel prefers first.
    pub fn of(&self, prefix: Prefix<A>) -> &[KernelRoute<A>] {
        self.prefixes.get(&prefix).map_or(&[], Vec::as_slice)
    }

    /// All routes, by prefix, the preferred ones of each prefix first.
    pub fn iter(&self) -> impl Iterator<Item = &KernelRoute<A>> {
        self.prefixes.values().flatten()
    }

    /// Number of prefixes that have routes.
    pub fn prefixes(&self) -> usize {
        self.prefixes.len()
    }

    /// Takes in the next route of a dump.
    pub(super) fn push(&mut self, mut route: KernelRoute<A>) {
        order_hops(&mut route);
        let routes = self.prefixes.entry(route.prefix).or_default();
        let equals = equals_of(routes, &route);
        routes.insert(equals.end, route);
    }

    /// Takes in a route that was announced.
    pub(super) fn insert(&mut self, mut route: KernelRoute<A>, placement: Placement) -> Certainty {
        order_hops(&mut route);
        let routes = self.prefixes.entry(route.prefix).or_default();
        let equals = equals_of(routes, &route);
        let before = Certainty::of(&routes[equals.clone()]);
        if placement == Placement::Replace {
            // IPv6 replaces routes by gateways with such, and others with others, if it can.
            let same_kind = |old: &KernelRoute<A>| A::VERSION == 4 || can_merge(old) == can_merge(&route);
            if let Some(replaced) = routes[equals.clone()].iter().position(same_kind) {
                routes[equals.start + replaced] = route;
                return match before {
                    Certainty::IfCurrent if A::VERSION == 6 => Certainty::ReadAgain,
                    before => before,
                };
            }
        }
        // What the new route stands for as well: itself, if a dump already had it, and for IPv6 the route
        // whose next hops it continues.
        routes.retain(|old| {
            let same_place = (old.table, old.metric) == (route.table, route.metric);
            let continued = A::VERSION == 6 && same_place && can_merge(old) && contains_hops(&route, old);
            *old != route && !continued
        });
        let equals = equals_of(routes, &route);
        let at = if A::VERSION == 4 && placement == Placement::First { equals.start } else { equals.end };
        routes.insert(at, route);
        before.max(Certainty::of(&routes[equals.start..=equals.end]))
    }

    /// Takes out a route that was announced as gone. If it is unknown, either the dump already lacked it,
    /// or something was missed: reading once more tells.
    pub(super) fn remove(&mut self, gone: &KernelRoute<A>) -> Certainty {
        let Some(routes) = self.prefixes.get_mut(&gone.prefix) else {
            return Certainty::ReadAgain;
        };
        let equals = equals_of(routes, gone);
        let before = Certainty::of(&routes[equals.clone()]);
        let exact = routes[equals.clone()].iter().position(|route| route == gone);
        if let Some(position) = exact {
            routes.remove(equals.start + position);
        } else if A::VERSION == 6
            && let Some(position) =
                routes[equals.clone()].iter().position(|route| can_merge(route) && contains_hops(route, gone))
        {
            let slot = equals.start + position;
            let left: Vec<_> = routes[slot]
                .kind
                .next_hops()
                .iter()
                .filter(|hop| !gone.kind.next_hops().iter().any(|other| same_hop(hop, other)))
                .copied()
                .collect();
            match KernelRouteKind::from_next_hops(left) {
                Some(kind) => routes[slot].kind = kind,
                None => {
                    routes.remove(slot);
                }
            }
        } else {
            return Certainty::ReadAgain;
        }
        if routes.is_empty() {
            self.prefixes.remove(&gone.prefix);
        }
        if A::VERSION == 6 && !can_merge(gone) {
            // By replacing, IPv6 can make a second copy of a route; this may be the end of the other one.
            return before.max(Certainty::IfCurrent);
        }
        before
    }

    /// The prefixes whose routes are not the same in both tables.
    pub(super) fn differences(&self, other: &Self) -> BTreeSet<Prefix<A>> {
        let changed = |(prefix, routes): (&Prefix<A>, &Vec<KernelRoute<A>>), in_other: &Self| {
            (in_other.of(*prefix) != routes.as_slice()).then_some(*prefix)
        };
        let mine = self.prefixes.iter().filter_map(|entry| changed(entry, other));
        let theirs = other.prefixes.iter().filter_map(|entry| changed(entry, self));
        mine.chain(theirs).collect()
    }
}

/// Whether the table is now what the kernel's is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[must_use]
pub(super) enum Certainty {
    /// It is; or, if the announcement was older than the last dump, will be after those that follow it.
    Exact,
    /// It is, unless the announcement was older than the last dump: there are several routes with one
    /// prefix, table and metric, and their order may have suffered.
    IfCurrent,
    /// Perhaps not: it has to be read again.
    ReadAgain,
}

impl Certainty {
    /// Of an announcement that met or left these routes with one prefix, table and metric. IPv6 leaves
    /// doubts when one of several leads by gateways. (Several that do not are common and plain: `fe80::/64`
    /// is on every link.)
    fn of<A: Family>(equals: &[KernelRoute<A>]) -> Self {
        match equals.len() {
            0 | 1 => Certainty::Exact,
            _ if A::VERSION == 6 && equals.iter().any(can_merge) => Certainty::ReadAgain,
            _ => Certainty::IfCurrent,
        }
    }
}

/// Where a new route stands among those with the same prefix, table and metric.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Placement {
    /// Before them: `ip route add` of what differs only in its next hop, `ip route prepend`.
    First,
    /// After them: `ip route append`.
    Last,
    /// In the place of the first: `ip route replace`.
    Replace,
}

/// The range of routes with the table and metric of `route`; empty, at the place where they would be, if
/// there are none.
fn equals_of<A: Family>(routes: &[KernelRoute<A>], route: &KernelRoute<A>) -> std::ops::Range<usize> {
    let key = (route.table, route.metric);
    let start = routes.partition_point(|other| (other.table, other.metric) < key);
    let end = routes.partition_point(|other| (other.table, other.metric) <= key);
    start..end
}

/// IPv6 announces the next hops of a route starting anywhere; among equals any order is as good.
fn order_hops<A: Family>(route: &mut KernelRoute<A>) {
    if let KernelRouteKind::Multipath(hops) = &mut route.kind
        && A::VERSION == 6
    {
        hops.sort_unstable();
    }
}

/// Whether IPv6 merges the route with others of the same metric: it leads by gateways only.
fn can_merge<A: Family>(route: &KernelRoute<A>) -> bool {
    let hops = route.kind.next_hops();
    !hops.is_empty() && hops.iter().all(|hop| hop.gateway != Gateway::OnLink)
}

/// Whether every next hop of `part` is one of `whole`, and there is one.
fn contains_hops<A: Family>(whole: &KernelRoute<A>, part: &KernelRoute<A>) -> bool {
    let (whole, part) = (whole.kind.next_hops(), part.kind.next_hops());
    !part.is_empty() && part.iter().all(|hop| whole.iter().any(|other| same_hop(hop, other)))
}

/// Weights aside: a hop that is announced alone has none.
fn same_hop<A: Family>(a: &KernelNextHop<A>, b: &KernelNextHop<A>) -> bool {
    a.link == b.link && a.gateway == b.gateway
}

#[cfg(test)]
mod tests {
    use pollux_dataplane::packet::family::{V4, V6};

    use super::*;
    use crate::kernel::state::Table;

    fn hop<A: Family>(link: u32, gateway: &str) -> KernelNextHop<A> {
        KernelNextHop {
            link,
            gateway: match gateway.parse() {
                Ok(address) => Gateway::Address(address),
                Err(_) => Gateway::OnLink,
            },
            onlink: false,
            weight: 1,
        }
    }

    fn route<A: Family>(prefix: &str, metric: u32, hops: &[KernelNextHop<A>]) -> KernelRoute<A> {
        KernelRoute {
            prefix: prefix.parse().unwrap(),
            table: Table::Main,
            metric,
            kind: KernelRouteKind::from_next_hops(hops.to_vec()).unwrap(),
            preferred_source: None,
            protocol: 3,
            mtu: None,
        }
    }

    fn links<A: Family>(table: &RouteTable<A>, prefix: &str) -> Vec<Vec<u32>> {
        table
            .of(prefix.parse().unwrap())
            .iter()
            .map(|route| route.kind.next_hops().iter().map(|hop| hop.link).collect())
            .collect()
    }

    #[test]
    fn rt_01_routes_of_a_prefix_stand_by_table_metric_and_placement() {
        let mut table = RouteTable::<V4>::default();
        let add = |table: &mut RouteTable<V4>, metric, link, placement| {
            let certainty = table.insert(route("10.0.0.0/8", metric, &[hop(link, "-")]), placement);
            assert_ne!(certainty, Certainty::ReadAgain);
        };
        add(&mut table, 100, 1, Placement::First);
        add(&mut table, 50, 2, Placement::First);
        add(&mut table, 100, 3, Placement::First);
        add(&mut table, 100, 4, Placement::Last);
        assert_eq!(links(&table, "10.0.0.0/8"), [[2], [3], [1], [4]]);
        add(&mut table, 100, 5, Placement::Replace);
        assert_eq!(links(&table, "10.0.0.0/8"), [[2], [5], [1], [4]]);
        // Announced again, after a dump that already had it.
        add(&mut table, 100, 4, Placement::Last);
        assert_eq!(links(&table, "10.0.0.0/8"), [[2], [5], [1], [4]]);
        let mut local = route("10.0.0.0/8", 1000, &[hop(6, "-")]);
        local.table = Table::Local;
        table.push(local);
        assert_eq!(links(&table, "10.0.0.0/8"), [[6], [2], [5], [1], [4]]);
    }

    #[test]
    fn rt_01_a_removed_route_leaves_its_equals_and_an_unknown_one_is_reported() {
        let mut table = RouteTable::<V4>::default();
        table.push(route("10.0.0.0/8", 0, &[hop(1, "10.9.9.1")]));
        table.push(route("10.0.0.0/8", 0, &[hop(1, "10.9.9.2")]));
        let mut remove = |prefix, gateway| table.remove(&route(prefix, 0, &[hop(1, gateway)]));
        assert_eq!(remove("10.0.0.0/8", "10.9.9.1"), Certainty::IfCurrent);
        assert_eq!(remove("10.0.0.0/8", "10.9.9.1"), Certainty::ReadAgain);
        assert_eq!(remove("11.0.0.0/8", "10.9.9.1"), Certainty::ReadAgain);
        assert_eq!(remove("10.0.0.0/8", "10.9.9.2"), Certainty::Exact);
        assert_eq!(table.prefixes(), 0);
    }

    #[test]
    fn rt_01_ipv6_routes_by_gateways_merge_and_shrink_hop_by_hop() {
        let mut table = RouteTable::<V6>::default();
        let (one, two, three) = (hop(1, "fd00::1"), hop(2, "fd00::2"), hop(3, "fd00::3"));
        let insert = |table: &mut RouteTable<V6>, hops: &[KernelNextHop<V6>], placement| {
            table.insert(route("fd01::/64", 1024, hops), placement)
        };
        assert_eq!(insert(&mut table, &[one], Placement::First), Certainty::Exact);
        assert_eq!(insert(&mut table, &[two, one], Placement::Last), Certainty::Exact);
        let all = [three, one, two];
        assert_eq!(insert(&mut table, &all, Placement::Last), Certainty::Exact);
        assert_eq!(links(&table, "fd01::/64"), [[1, 2, 3]]);
        let gone = route("fd01::/64", 1024, &[two]);
        assert_eq!(table.remove(&gone), Certainty::Exact);
        assert_eq!(links(&table, "fd01::/64"), [[1, 3]]);
        assert_eq!(insert(&mut table, &[two], Placement::Replace), Certainty::Exact);
        assert_eq!(links(&table, "fd01::/64"), [[2]]);
        assert_eq!(table.remove(&gone), Certainty::Exact);
        assert_eq!(table.remove(&gone), Certainty::ReadAgain);
        assert_eq!(table.prefixes(), 0);
    }

    #[test]
    fn rt_05_what_ipv6_leaves_open_is_read_again_and_link_local_prefixes_are_not() {
        let mut table = RouteTable::<V6>::default();
        let mut insert = |prefix, hop, placement| table.insert(route(prefix, 256, &[hop]), placement);
        let (first, last) = (Placement::First, Placement::Last);
        assert_eq!(insert("fe80::/64", hop(1, "-"), first), Certainty::Exact);
        assert_eq!(insert("fe80::/64", hop(2, "-"), first), Certainty::IfCurrent);
        assert_eq!(insert("fe80::/64", hop(3, "-"), Placement::Replace), Certainty::ReadAgain);
        assert_eq!(insert("fd01::/64", hop(1, "-"), last), Certainty::Exact);
        assert_eq!(insert("fd01::/64", hop(1, "fd00::1"), last), Certainty::ReadAgain);
        assert_eq!(insert("fd02::/64", hop(1, "fd00::1"), first), Certainty::Exact);
        let other_kind = insert("fd02::/64", hop(1, "-"), Placement::Replace);
        assert_eq!(other_kind, Certainty::ReadAgain);
        let gone = route("fd01::/64", 256, &[hop(1, "-")]);
        assert_eq!(table.remove(&gone), Certainty::ReadAgain);
        assert_eq!(links(&table, "fd01::/64"), [[1]]);
    }

    #[test]
    fn rt_05_the_difference_of_two_tables_is_the_prefixes_that_differ() {
        let mut old = RouteTable::<V4>::default();
        let mut new = RouteTable::default();
        for prefix in ["10.0.0.0/8", "11.0.0.0/8", "12.0.0.0/8"] {
            old.push(route(prefix, 0, &[hop(1, "-")]));
        }
        for (prefix, link) in [("10.0.0.0/8", 1), ("11.0.0.0/8", 2), ("13.0.0.0/8", 1)] {
            new.push(route(prefix, 0, &[hop(link, "-")]));
        }
        let different: Vec<String> = old.differences(&new).iter().map(ToString::to_string).collect();
        assert_eq!(different, ["11.0.0.0/8", "12.0.0.0/8", "13.0.0.0/8"]);
    }
}
