//! Changing a forwarding table: the editor keeps all prefixes in order, and of the table it rebuilds the one
//! node that a changed prefix ends in, with what hangs below that (RT-05).
//!
//! For a prefix of more than 16 bits that is at most its /16; for IPv4's usual /24 it is a /22. A new route for a
//! known prefix replaces the route object and touches no node. What the last snapshot shares is copied, chunk by chunk.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arrayvec::ArrayVec;

use super::{Edition, Fib, Hidden, NODE_BITS, NONE, Node, ROOT_BITS, Root, SLOTS, chunk, key};
use crate::packet::{Address, Family, Prefix};
use crate::route::Route;
use crate::slots::Slots;

/// More changed prefixes than this are not told one by one.
const TOLD: usize = 1024;

/// Makes snapshots of a table that changes. See the module's documentation.
#[derive(Debug)]
pub struct FibEditor<A: Family> {
    fib: Fib<A>,
    /// The prefixes of up to [`ROOT_BITS`] bits, by address, then length.
    short: BTreeMap<Prefix<A>, Known>,
    /// The longer ones.
    long: BTreeMap<Prefix<A>, Known>,
    /// How many prefixes there are of each length.
    lengths: [u32; 129],
    route_numbers: Runs,
    node_runs: Runs,
    leaf_runs: Runs,
    changed: Vec<Prefix<A>>,
}

/// A prefix's route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Known {
    id: u32,
    /// Whether it is of the kernel's table `local`.
    local: bool,
}

impl<A: Family> FibEditor<A> {
    /// Begins with the table of `routes`. Which of several for one prefix counts is as in
    /// [`replace`](Self::replace).
    pub fn new(mut routes: Vec<Route<A>>) -> Self {
        let mut root = Slots::default();
        *root.get_mut((1 << ROOT_BITS) - 1) = Root::default(); // makes room for all
        let edition = Edition { number: 0, after: 0, changed: None };
        let fib = Fib {
            root,
            nodes: Slots::default(),
            leaves: Slots::default(),
            routes: Slots::default(),
            edition,
        };
        let mut editor = FibEditor {
            fib,
            short: BTreeMap::new(),
            long: BTreeMap::new(),
            lengths: [0; 129],
            route_numbers: Runs::default(),
            node_runs: Runs::default(),
            leaf_runs: Runs::default(),
            changed: Vec::new(),
        };
        // Stable: among equals the first of the list stays the first.
        routes.sort_by_key(|route| (route.prefix, rank(route)));
        routes.dedup_by_key(|route| route.prefix);
        for route in routes {
            editor.enter(route);
        }
        editor.refill_root(Prefix::ALL);
        editor.build_below_root(Prefix::ALL);
        editor.changed = vec![Prefix::ALL; TOLD + 1]; // everything
        editor
    }

    /// Puts the best of `candidates` in force for a prefix: those of the table `local` come first, then the
    /// lowest metric counts, then the order. None takes the prefix out. Candidates for other prefixes are
    /// ignored. Says whether anything has changed.
    #[allow(clippy::must_use_candidate, reason = "the next snapshot tells as well")]
    pub fn replace(&mut self, prefix: Prefix<A>, candidates: impl IntoIterator<Item = Route<A>>) -> bool {
        let best = candidates.into_iter().filter(|route| route.prefix == prefix).min_by_key(rank);
        let known = self.known(prefix);
        let was_local = known.is_some_and(|known| known.local);
        let is_local = best.as_ref().is_some_and(|route| route.kind.is_of_local_table());
        match (known, best) {
            (None, None) => return false,
            (Some(known), Some(route)) if known.local == is_local => {
                if self.fib.routes.get(known.id).is_some_and(|old| old.as_ref() == Some(&route)) {
                    return false;
                }
                *self.fib.routes.get_mut(known.id) = Some(route);
            }
            (_, best) => {
                self.remove(prefix);
                if let Some(route) = best {
                    self.enter(route);
                }
                self.rebuild(prefix, was_local || is_local);
            }
        }
        if self.changed.len() <= TOLD {
            self.changed.push(prefix);
        }
        true
    }

    /// The table as it is now. Without a change since the last snapshot it is that one.
    pub fn snapshot(&mut self) -> Fib<A> {
        /// Unique among all editors: snapshots of different ones are never taken for neighbours.
        static EDITIONS: AtomicU64 = AtomicU64::new(1);
        if !self.changed.is_empty() {
            let changed = std::mem::take(&mut self.changed);
            self.fib.edition = Edition {
                number: EDITIONS.fetch_add(1, Relaxed),
                after: self.fib.edition.number,
                changed: (changed.len() <= TOLD).then(|| changed.into()),
            };
        }
        self.fib.clone()
    }

    /// How many prefixes have a route, hidden ones included.
    pub fn len(&self) -> usize {
        self.short.len() + self.long.len()
    }

    /// Whether there is no route.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The route of exactly this prefix.
    pub fn get(&self, prefix: Prefix<A>) -> Option<&Route<A>> {
        self.fib.routes.get(self.known(prefix)?.id)?.as_ref()
    }

    /// Whether every number that was given out has come back.
    #[cfg(test)]
    pub(super) fn nothing_is_in_use(&self) -> bool {
        [&self.route_numbers, &self.node_runs, &self.leaf_runs].into_iter().all(Runs::all_are_free)
    }

    fn known(&self, prefix: Prefix<A>) -> Option<Known> {
        let map = if prefix.len() <= ROOT_BITS { &self.short } else { &self.long };
        map.get(&prefix).copied()
    }

    fn map_of(&mut self, prefix: Prefix<A>) -> &mut BTreeMap<Prefix<A>, Known> {
        if prefix.len() <= ROOT_BITS { &mut self.short } else { &mut self.long }
    }

    /// Gives a prefix that has none a route; the trie does not know it yet.
    fn enter(&mut self, route: Route<A>) {
        let prefix = route.prefix;
        let known = Known { id: self.route_numbers.take(1), local: route.kind.is_of_local_table() };
        *self.fib.routes.get_mut(known.id) = Some(route);
        self.map_of(prefix).insert(prefix, known);
        self.lengths[usize::from(prefix.len())] += 1;
    }

    fn remove(&mut self, prefix: Prefix<A>) {
        if let Some(known) = self.map_of(prefix).remove(&prefix) {
            *self.fib.routes.get_mut(known.id) = None;
            self.route_numbers.give(known.id, 1);
            self.lengths[usize::from(prefix.len())] -= 1;
        }
    }

    /// The longest prefix of up to `limit` bits that covers `address`: of the table `local` if one does, else of
    /// the others; and its length.
    fn cover(&self, address: A::Addr, limit: u8) -> Option<(Known, u8)> {
        let mut best = None;
        for length in (0..=limit).rev().filter(|length| self.lengths[usize::from(*length)] != 0) {
            match self.known(Prefix::new(address, length)) {
                Some(known) if known.local => return Some((known, length)),
                Some(known) => best = best.or(Some((known, length))),
                None => {}
            }
        }
        best
    }

    fn rebuild(&mut self, prefix: Prefix<A>, local: bool) {
        if prefix.len() > ROOT_BITS {
            return self.rebuild_below_root(prefix);
        }
        self.refill_root(prefix);
        if local {
            // It hides, or no longer hides, what is longer.
            self.build_below_root(prefix);
        }
    }

    /// Sets the routes of the root's slots within a prefix of up to [`ROOT_BITS`] bits.
    fn refill_root(&mut self, prefix: Prefix<A>) {
        let first = root_slot::<A>(prefix.address());
        let cover = prefix.len().checked_sub(1).and_then(|limit| self.cover(prefix.address(), limit));
        let mut routes = vec![cover.map_or(NONE, |(known, _)| known.id); slots_of(prefix)];
        let mut hidden = Hidden::below(prefix, cover);
        for (inner, known) in self.short.range(prefix..=Prefix::new(prefix.last(), ROOT_BITS)) {
            if !hidden.hides(*inner, known.local) {
                let at = (root_slot::<A>(inner.address()) - first) as usize;
                routes[at..at + slots_of(*inner)].fill(known.id);
            }
        }
        for (slot, route) in (first..).zip(routes) {
            if self.fib.root.get(slot).is_none_or(|root| root.route != route) {
                self.fib.root.get_mut(slot).route = route;
            }
        }
    }

    /// Makes everything anew that is longer than the root's slots and lies in `prefix`, which is not.
    fn build_below_root(&mut self, prefix: Prefix<A>) {
        let mut next = Some(prefix.address());
        while let Some(from) = next {
            let rest = Prefix::new(from, ROOT_BITS)..=Prefix::host(prefix.last());
            let found = self.long.range(rest).next();
            let Some((inner, _)) = found else { break };
            let address = inner.address();
            self.rebuild_below_root(Prefix::new(address, ROOT_BITS + 1));
            next = after::<A>(Prefix::new(address, ROOT_BITS)).filter(|next| *next <= prefix.last());
        }
    }

    /// Makes the deepest node anew that a prefix of more than [`ROOT_BITS`] bits changes, and all below it.
    fn rebuild_below_root(&mut self, prefix: Prefix<A>) {
        let address = prefix.address();
        let slot = root_slot::<A>(address);
        let root = self.fib.root.get(slot).copied().unwrap_or_default();
        let mut path: ArrayVec<(u32, u8), 20> = ArrayVec::new();
        let mut at = root.node;
        let mut depth = ROOT_BITS;
        while at != NONE {
            path.push((at, depth));
            let Some(child) = self.child(at, chunk::<A>(key::<A>(address), depth)) else { break };
            if prefix.len() <= depth + NODE_BITS {
                break;
            }
            (at, depth) = (child, depth + NODE_BITS);
        }
        // A node without a prefix of its own goes.
        while let Some(&(at, depth)) = path.last() {
            if self.has_longer(Prefix::new(address, depth)) {
                self.free_below(at);
                return self.build(at, Prefix::new(address, depth));
            }
            path.pop();
        }
        if root.node != NONE {
            self.free_below(root.node);
            self.node_runs.give(root.node, 1);
        }
        let whole = Prefix::new(address, ROOT_BITS);
        let node = if self.has_longer(whole) { self.node_runs.take(1) } else { NONE };
        self.fib.root.get_mut(slot).node = node;
        if node != NONE {
            self.build(node, whole);
        }
    }

    fn child(&self, at: u32, slot: usize) -> Option<u32> {
        let node = self.fib.nodes.get(at)?;
        let before = (node.children & ((1 << slot) - 1)).count_ones();
        (node.children >> slot & 1 != 0).then(|| node.first_child + before)
    }

    /// Whether a prefix lies within `range` and is longer.
    fn has_longer(&self, range: Prefix<A>) -> bool {
        let inner = self.long.range(range..=Prefix::host(range.last()));
        inner.into_iter().any(|(prefix, _)| prefix.len() > range.len())
    }

    /// Makes the node at `at`, which stands for `range`, from the prefixes.
    fn build(&mut self, at: u32, range: Prefix<A>) {
        let cover = self.cover(range.address(), range.len());
        // What the root says is not said again.
        let inherited = cover.filter(|(_, length)| *length > ROOT_BITS).map_or(NONE, |(known, _)| known.id);
        let mut hidden = Hidden::below(range, cover);
        let inner = self.long.range(range..=Prefix::host(range.last()));
        let routes: Vec<(Prefix<A>, u32)> = inner
            .filter(|(prefix, known)| prefix.len() > range.len() && !hidden.hides(**prefix, known.local))
            .map(|(prefix, known)| (*prefix, known.id))
            .collect();
        self.fill_node(at, &routes, 0..routes.len(), range.len(), inherited);
    }

    /// Makes the node at `at` from routes that are all longer than `depth` and equal in their first `depth`
    /// bits, by address, then length: whatever holds a prefix stands before it, so that later routes simply
    /// overwrite earlier ones. `inherited` is the route for what they leave free.
    fn fill_node(
        &mut self,
        at: u32,
        routes: &[(Prefix<A>, u32)],
        range: Range<usize>,
        depth: u8,
        inherited: u32,
    ) {
        let mut values = [inherited; SLOTS];
        let mut children: ArrayVec<(usize, Range<usize>), SLOTS> = ArrayVec::new();
        let slot = |prefix: Prefix<A>| chunk::<A>(key::<A>(prefix.address()), depth);
        let mut next = range.start;
        while next < range.end {
            let (prefix, id) = routes[next];
            let place = slot(prefix);
            if let Some(free) = (depth + NODE_BITS).checked_sub(prefix.len()) {
                values[place..][..1 << free].fill(id);
                next += 1;
                continue;
            }
            let start = next;
            while next < range.end && slot(routes[next].0) == place {
                next += 1;
            }
            children.push((place, start..next));
        }

        let mut node = Node::default();
        for (place, _) in &children {
            node.children |= 1 << place;
        }
        let mut leaves: ArrayVec<u32, SLOTS> = ArrayVec::new();
        for (place, &value) in values.iter().enumerate() {
            if node.children >> place & 1 == 0 && leaves.last() != Some(&value) {
                node.leaves |= 1 << place;
                leaves.push(value);
            }
        }
        node.first_leaf = self.leaf_runs.take(leaves.len());
        for (number, value) in (node.first_leaf..).zip(leaves) {
            *self.fib.leaves.get_mut(number) = value;
        }
        node.first_child = self.node_runs.take(children.len());
        *self.fib.nodes.get_mut(at) = node;
        for (child, (place, range)) in (node.first_child..).zip(children) {
            self.fill_node(child, routes, range, depth + NODE_BITS, values[place]);
        }
    }

    /// Gives back what hangs below a node, and its leaves; the node itself stays to be filled.
    fn free_below(&mut self, at: u32) {
        let Some(&node) = self.fib.nodes.get(at) else { return };
        let children = node.children.count_ones();
        for child in 0..children {
            self.free_below(node.first_child + child);
        }
        self.node_runs.give(node.first_child, children as usize);
        self.leaf_runs.give(node.first_leaf, node.leaves.count_ones() as usize);
    }
}

/// Among the routes of one prefix the lowest counts.
fn rank<A: Family>(route: &Route<A>) -> (bool, u32) {
    (!route.kind.is_of_local_table(), route.metric)
}

/// The root's slot that holds an address.
fn root_slot<A: Family>(address: A::Addr) -> u32 {
    (key::<A>(address) >> (128 - ROOT_BITS)) as u32
}

/// How many of the root's slots a prefix of up to [`ROOT_BITS`] bits takes.
fn slots_of<A: Family>(prefix: Prefix<A>) -> usize {
    1 << (ROOT_BITS - prefix.len())
}

/// The first address behind a prefix, if that is not the last one.
fn after<A: Family>(prefix: Prefix<A>) -> Option<A::Addr> {
    let last = prefix.last();
    (last != Prefix::<A>::ALL.last()).then(|| A::Addr::from_bits(last.bits() + 1))
}

impl<A: Family> Hidden<A> {
    /// What `cover` hides within `prefix`.
    fn below(prefix: Prefix<A>, cover: Option<(Known, u8)>) -> Self {
        Hidden { upto: cover.filter(|(known, _)| known.local).map(|_| prefix.last()) }
    }
}

/// Numbers given out in runs. A run that comes back is kept for another of its length, so there are never more than the most
/// of each length that were in use at a time.
#[derive(Debug, Default)]
struct Runs {
    end: u32,
    /// By length.
    free: Vec<Vec<u32>>,
}

impl Runs {
    fn take(&mut self, length: usize) -> u32 {
        if let Some(first) = self.free.get_mut(length).and_then(Vec::pop) {
            return first;
        }
        let first = self.end;
        self.end =
            first.checked_add(length as u32).filter(|end| *end < NONE).expect("fewer than 2³² - 1 numbers");
        first
    }

    #[cfg(test)]
    fn all_are_free(&self) -> bool {
        let free: usize = self.free.iter().enumerate().map(|(length, runs)| length * runs.len()).sum();
        free == self.end as usize
    }

    fn give(&mut self, first: u32, length: usize) {
        if length == 0 {
            return;
        }
        if self.free.len() <= length {
            self.free.resize_with(length + 1, Vec::new);
        }
        self.free[length].push(first);
    }
}
