//! The forwarding table: longest prefix match on a packet's final destination (RT-01, RT-06).
//!
//! A Poptrie (Asai and Ohara, SIGCOMM 2015): the first 16 bits of the address index an array; what is longer
//! hangs below it in nodes of 6 bits, whose children and leaves are found by counting bits. A node takes 24
//! bytes however many slots it has filled, so a node's table stays in the cache: an IPv4 lookup reads the
//! array, mostly one node, and a leaf.
//!
//! ```text
//! root[2¹⁶] { route of up to 16 bits, node }
//!                                       └→ node { children: bit per slot, leaves: bit per run of slots }
//!                                            ├─→ nodes[first_child + count]
//!                                            └─→ leaves[first_leaf + count]: route, or "as the root says"
//! ```
//!
//! A `Fib` is a snapshot, and never changes. The arrays lie in chunks behind reference counts, so the next
//! snapshot, which a [`FibEditor`] makes, shares all but what a change copied (RT-05): a packet sees all of
//! one state, and what nobody reads any more is freed where the last reference is dropped, which is control's side.
//!
//! Invariants: the children of a node are neighbours in `nodes`, its leaves in `leaves`. Routes of up to 16 bits
//! stand in the root alone: a change of the default route touches nothing below it.

mod edit;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::Route;
use crate::packet::{Address, Family, Prefix};
use crate::slots::Slots;
pub use edit::FibEditor;

/// Bits of an address that the root array takes.
const ROOT_BITS: u8 = 16;
/// Bits that a node takes: one machine word has a bit for each of its slots.
const NODE_BITS: u8 = 6;
/// Slots of a node.
const SLOTS: usize = 1 << NODE_BITS;
/// In the place of a route's or a node's number: there is none. Of a leaf: the root says it.
const NONE: u32 = u32::MAX;

/// Number of a route in its [`Fib`], and in those made from it for as long as the prefix has a route.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RouteId(pub u32);

/// A forwarding table. See the module's documentation.
#[derive(Clone, Debug)]
pub struct Fib<A: Family> {
    root: Slots<Root, 1024>,
    nodes: Slots<Node, 1024>,
    leaves: Slots<u32, 4096>,
    routes: Slots<Option<Route<A>>, 512>,
    edition: Edition<A>,
}

/// What the first bits of an address say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Root {
    /// The route of the longest prefix of up to [`ROOT_BITS`] bits.
    route: u32,
    /// Where longer prefixes are.
    node: u32,
}

impl Default for Root {
    fn default() -> Self {
        Root { route: NONE, node: NONE }
    }
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

/// Which snapshot this is, and what is new in it.
#[derive(Clone, Debug)]
struct Edition<A: Family> {
    number: u64,
    /// The snapshot before it, of the same editor.
    after: u64,
    /// What was changed since then; nothing when it was too much to tell.
    changed: Option<Arc<[Prefix<A>]>>,
}

/// The difference between two snapshots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Changed<'a, A: Family> {
    /// None: they are the same.
    Nothing,
    /// The routes of these prefixes.
    Prefixes(&'a [Prefix<A>]),
    /// It is not known, or too much.
    Everything,
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
    /// If there are 2³² - 1 routes or more.
    pub fn build(routes: Vec<Route<A>>) -> Self {
        FibEditor::new(routes).snapshot()
    }

    /// The number of the route for `destination`.
    #[inline]
    pub fn find(&self, destination: A::Addr) -> Option<RouteId> {
        let key = key::<A>(destination);
        let root = *self.root.get((key >> (128 - ROOT_BITS)) as u32)?;
        let below = if root.node == NONE { NONE } else { self.descend(key, root.node) };
        let value = if below == NONE { root.route } else { below };
        (value != NONE).then_some(RouteId(value))
    }

    /// The route for `destination`.
    #[inline]
    pub fn lookup(&self, destination: A::Addr) -> Option<&Route<A>> {
        self.routes.get(self.find(destination)?.0)?.as_ref()
    }

    /// The route that has number `id`, if there is one.
    #[inline]
    pub fn route(&self, id: RouteId) -> Option<&Route<A>> {
        self.routes.get(id.0)?.as_ref()
    }

    /// All routes in force, by address, then length. Looks at the whole table.
    pub fn routes(&self) -> Vec<&Route<A>> {
        let mut routes: Vec<_> = self.iter().collect();
        routes.sort_unstable_by_key(|route| route.prefix);
        let mut hidden = Hidden::default();
        routes.retain(|route| !hidden.hides(route.prefix, route.kind.is_of_local_table()));
        routes
    }

    /// All routes in no order, with those that the table `local` hides.
    pub fn iter(&self) -> impl Iterator<Item = &Route<A>> {
        self.routes.iter().filter_map(|(_, route)| route.as_ref())
    }

    /// What is different from `older`, if that is the snapshot just before this one.
    pub fn changed_since(&self, older: &Fib<A>) -> Changed<'_, A> {
        match &self.edition.changed {
            _ if self.edition.number == older.edition.number => Changed::Nothing,
            Some(prefixes) if self.edition.after == older.edition.number => Changed::Prefixes(prefixes),
            _ => Changed::Everything,
        }
    }

    /// Bytes that lookups read from: the table without the route objects.
    pub fn lookup_bytes(&self) -> usize {
        self.root.bytes() + self.nodes.bytes() + self.leaves.bytes()
    }

    fn descend(&self, key: u128, mut at: u32) -> u32 {
        let mut depth = ROOT_BITS;
        loop {
            let Some(node) = self.nodes.get(at) else { return NONE };
            let slot = chunk::<A>(key, depth);
            // Bits up to and including the slot's.
            let upto = u64::MAX >> (SLOTS - 1 - slot);
            if node.children >> slot & 1 == 0 {
                let run = (node.leaves & upto).count_ones() - 1;
                return self.leaves.get(node.first_leaf + run).copied().unwrap_or(NONE);
            }
            at = node.first_child + (node.children & upto).count_ones() - 1;
            depth += NODE_BITS;
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

/// What the table `local` hides, asked prefix by prefix in order: what lies inside a prefix follows it.
struct Hidden<A: Family> {
    /// The last address that a local route before this one covers.
    upto: Option<A::Addr>,
}

impl<A: Family> Default for Hidden<A> {
    fn default() -> Self {
        Hidden { upto: None }
    }
}

impl<A: Family> Hidden<A> {
    fn hides(&mut self, prefix: Prefix<A>, is_local: bool) -> bool {
        if is_local {
            self.upto = self.upto.max(Some(prefix.last()));
            return false;
        }
        self.upto.is_some_and(|last| prefix.address() <= last)
    }
}
