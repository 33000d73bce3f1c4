//! What the kernel does with one packet under the rules: rule after rule, in the order of its hooks and tables.
//!
//! ```text
//! from a port ─ PREROUTING: raw, (conntrack), mangle, nat ─┬─ local ── INPUT: mangle, filter, security, nat ─→
//!                                                          └─ else ─── FORWARD: mangle, filter, security ─┐
//! from the host ─ OUTPUT: raw, (conntrack), mangle, nat, filter, security ────────────────────────────────┤
//!        ┌─────────────────────── to the node: by way of lo ───────────────────── POSTROUTING: mangle, nat ┴─→
//!        └─→ PREROUTING with -i lo, nat decided already ─→ INPUT
//! ```
//!
//! Nothing is indexed and nothing is remembered between packets, so that this can judge what is clever. What
//! is not in the file (addresses, routes, sets, chance) is asked of a [`World`]. Built-in conditions on `-i`
//! and `-o` see an empty name where there is no interface; a forwarded packet still has its input interface in
//! POSTROUTING, as it has since Linux 5.7.

pub mod steps;
#[cfg(test)]
mod tests;
mod walk;

use pollux_dataplane::packet::{Address, Family, Protocol};

use super::{
    AddressTypes, ChainId, Hook, Nat, Physdev, Policy, RandomPorts, Recent, RejectWith, Rule, Ruleset, Side,
    States, Table, TableName,
};
use walk::Walk;

/// A packet where it enters.
#[derive(Clone, Debug)]
pub struct Packet<'a, A: Family> {
    /// Source address.
    pub source: A::Addr,
    /// Destination address; of a packet that is not its connection's first: as it is after translation.
    pub destination: A::Addr,
    /// Protocol.
    pub protocol: Protocol,
    /// Source port, if the protocol has ports.
    pub source_port: u16,
    /// Destination port, likewise, and after translation as the address.
    pub destination_port: u16,
    /// TCP's flags, FIN in bit 0.
    pub tcp_flags: u8,
    /// ICMP type and code.
    pub icmp: (u8, u8),
    /// The interface it comes in by; nothing for a packet of the host.
    pub in_interface: Option<&'a str>,
    /// Its mark.
    pub mark: u32,
    /// Its connection.
    pub connection: Connection<A>,
}

/// What is known of a packet's connection.
#[derive(Clone, Debug)]
pub struct Connection<A: Family> {
    /// The state: exactly one from `INVALID` to `UNTRACKED`.
    pub state: States,
    /// Whether nat has yet to decide: the nat table is asked.
    pub nat: NatState<A>,
    /// Where its first packet went, before translation: `--ctorigdst`.
    pub original_destination: A::Addr,
    /// `--ctorigdstport`
    pub original_destination_port: u16,
    /// The connection's mark.
    pub mark: u32,
}

/// Whether nat has decided about a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NatState<A: Family> {
    /// This packet is the first: the rules decide.
    First,
    /// An earlier packet's decision stands.
    Decided {
        /// The destination was translated (the status `DNAT`).
        dnat: bool,
        /// The source was (`SNAT`).
        snat: bool,
        /// Destination and port of this packet until it is translated, if it is.
        before: Option<(A::Addr, u16)>,
        /// Source and port of this packet once it is translated, if it is.
        after: Option<(A::Addr, u16)>,
    },
}

impl<A: Family> Connection<A> {
    /// A connection whose first packet goes to `destination`.
    pub fn first(destination: A::Addr, port: u16) -> Connection<A> {
        Connection {
            state: States::NEW,
            nat: NatState::First,
            original_destination: destination,
            original_destination_port: port,
            mark: 0,
        }
    }

    /// A connection in `state` that was not translated, seen in a later packet to `destination`.
    pub fn later(state: States, destination: A::Addr, port: u16) -> Connection<A> {
        let nat = NatState::Decided { dnat: false, snat: false, before: None, after: None };
        Connection { state, nat, ..Connection::first(destination, port) }
    }
}

/// What a condition sees of a packet where it is asked.
#[derive(Clone, Debug)]
pub struct View<A: Family> {
    /// Source address.
    pub source: A::Addr,
    /// Destination address.
    pub destination: A::Addr,
    /// Protocol.
    pub protocol: Protocol,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// TCP's flags.
    pub tcp_flags: u8,
    /// ICMP type and code.
    pub icmp: (u8, u8),
    /// Input interface, or an empty name.
    pub in_interface: Name,
    /// Output interface, or an empty name.
    pub out_interface: Name,
    /// The packet's mark.
    pub mark: u32,
}

/// An interface's name, held without a heap: the kernel's have 15 bytes at most.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Name {
    bytes: [u8; 15],
    len: u8,
}

impl Name {
    /// A name.
    ///
    /// # Panics
    /// If it is longer than the kernel's can be.
    pub fn new(name: &str) -> Name {
        let mut bytes = [0; 15];
        bytes.get_mut(..name.len()).expect("an interface name has 15 bytes").copy_from_slice(name.as_bytes());
        Name { bytes, len: name.len() as u8 }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).expect("it was made of text")
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

/// Where a rule stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Place {
    /// Its table.
    pub table: TableName,
    /// Its chain.
    pub chain: ChainId,
    /// Its number in the chain, from 0.
    pub rule: u32,
    /// Its line in the file, 0 if it has none.
    pub line: u32,
}

/// What is outside of the file.
pub trait World<A: Family> {
    /// Whether packets to an address are delivered to the node.
    fn is_local(&self, address: A::Addr) -> bool;

    /// The interface by which packets to an address that is not local leave. Marks and sources do not route.
    fn out_interface(&self, destination: A::Addr) -> &str;

    /// The address that MASQUERADE gives packets that leave by an interface to a destination.
    fn masquerade(&self, out_interface: &str, destination: A::Addr) -> A::Addr;

    /// The types of an address, on one interface if it is named. An address that is neither local nor a group
    /// is `UNICAST` if the world does not say more.
    fn address_types(&self, address: A::Addr, interface: Option<&str>) -> AddressTypes {
        let _ = interface;
        let unicast = 1 << 1;
        match self.is_local(address) {
            // IPv6's kernel code asks whether the address is unicast, and local ones are.
            true if A::VERSION == 6 => AddressTypes(AddressTypes::LOCAL.0 | unicast),
            true => AddressTypes::LOCAL,
            false if address.is_multicast() => AddressTypes(1 << 5),
            false if A::VERSION == 6 && address.is_unspecified() => AddressTypes(1),
            false => AddressTypes(unicast),
        }
    }

    /// Whether 31 random bits are below `threshold`.
    fn random(&mut self, place: Place, threshold: u32) -> bool;

    /// Whether this packet is the `packet`th of `every`.
    fn nth(&mut self, place: Place, every: u32, packet: u32) -> bool;

    /// Whether a list holds an address (its bits behind the list's mask are zero), and what is to be done with
    /// it; [`Set`](super::RecentAction::Set) always holds and is not asked.
    fn recent(&mut self, recent: &Recent, address: A::Addr) -> bool;

    /// Whether a set holds the packet.
    fn in_set(&mut self, name: &str, sides: &[Side], view: &View<A>) -> bool;

    /// Whether a limit is not reached.
    fn limit(&mut self, place: Place) -> bool;

    /// Whether a condition on bridge ports holds.
    fn physdev(&mut self, physdev: &Physdev) -> bool {
        let _ = physdev;
        false
    }

    /// What DNAT and SNAT make of an address and port. Of a range of addresses the kernel takes one by a hash;
    /// here it is the first. A port within the range is kept, else it is the first of it.
    fn translate(&mut self, nat: &Nat<A>, address: A::Addr, port: u16) -> (A::Addr, u16) {
        let address = nat.addresses.map_or(address, |(first, _)| first);
        (address, kept_port(nat.ports.as_ref(), nat.random, port))
    }
}

fn kept_port(range: Option<&std::ops::RangeInclusive<u16>>, random: RandomPorts, port: u16) -> u16 {
    match range {
        Some(range) if random == RandomPorts::Fully || !range.contains(&port) => *range.start(),
        _ => port,
    }
}

/// Is told what happens on a packet's way.
pub trait Watch<A: Family> {
    /// A table's base chain is entered.
    fn enters(&mut self, table: &Table<A>, hook: Hook) {
        let _ = (table, hook);
    }

    /// A rule is asked; `held` says whether all its conditions did.
    fn asked(&mut self, table: &Table<A>, place: Place, rule: &Rule<A>, held: bool) {
        let _ = (table, place, rule, held);
    }

    /// A base chain ended with its policy.
    fn policy(&mut self, table: &Table<A>, hook: Hook, policy: Policy) {
        let _ = (table, hook, policy);
    }
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl<A: Family> Watch<A> for Unwatched {}

/// What becomes of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome<A: Family> {
    /// The verdict.
    pub verdict: Verdict,
    /// Destination after DNAT.
    pub destination: A::Addr,
    /// Destination port after DNAT.
    pub destination_port: u16,
    /// Whether a rule translated the destination.
    pub dnat: bool,
    /// Whether and how a rule translates the source.
    pub snat: Option<Snat<A>>,
    /// The packet's mark at its end.
    pub mark: u32,
    /// The connection's mark.
    pub connection_mark: u32,
    /// What `recent --set` noted, in order.
    pub noted: Vec<Noted<A>>,
}

/// An address that was noted in a list of `-m recent`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Noted<A: Family> {
    /// The list.
    pub list: String,
    /// The address.
    pub address: A::Addr,
}

/// Where a packet ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It leaves by an interface.
    Forwarded(Name),
    /// It is delivered to the node.
    Delivered,
    /// It is dropped.
    Dropped,
    /// It is dropped, and its source is told.
    Rejected(RejectWith),
}

/// How a source is translated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Snat<A: Family> {
    /// By MASQUERADE.
    Masquerade,
    /// By SNAT.
    To(Nat<A>),
}

/// The kernel's walk of a packet under `rules`.
pub fn evaluate<A: Family, W: World<A>, T: Watch<A>>(
    rules: &Ruleset<A>,
    packet: &Packet<'_, A>,
    world: &mut W,
    watch: &mut T,
) -> Outcome<A> {
    Evaluator::new(rules).evaluate(packet, world, watch)
}

/// A base chain, if there is one, and its table.
type Base<'r, A> = Option<(&'r Table<A>, ChainId)>;

/// Rules with their base chains at hand, for many packets.
#[derive(Debug)]
pub struct Evaluator<'r, A: Family> {
    /// By table and hook.
    bases: [[Base<'r, A>; Hook::ALL.len()]; TableName::ALL.len()],
}

impl<'r, A: Family> Evaluator<'r, A> {
    /// Finds the base chains.
    pub fn new(rules: &'r Ruleset<A>) -> Self {
        let base = |name, hook| {
            let table = rules.table(name)?;
            Some((table, table.base(hook)?))
        };
        Evaluator { bases: TableName::ALL.map(|name| Hook::ALL.map(|hook| base(name, hook))) }
    }

    /// The kernel's walk of a packet.
    pub fn evaluate<W: World<A>, T: Watch<A>>(
        &self,
        packet: &Packet<'_, A>,
        world: &mut W,
        watch: &mut T,
    ) -> Outcome<A> {
        Walk::new(self, packet, world, watch).run()
    }
}
