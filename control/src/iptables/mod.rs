//! A model of iptables: the rules as `iptables-save` prints them, and what the kernel does with a packet under
//! them.
//!
//! ```text
//! text ─ parse ─→ Ruleset ─┬─ evaluate: one packet, in the kernel's order of hooks and tables
//!                          └─ verify (elsewhere): all packets at once
//! objects ─ generate ─→ Ruleset ─ print ─→ text
//! ```
//!
//! Nothing is skipped: what the parser does not know is an error with its line, and what depends on something
//! outside the file (a limit, an ipset that was not given) is kept as what it is, for the reader to decide.

pub mod evaluate;
pub mod generate;
pub mod ipset;
pub mod parse;
mod parse_icmp;
mod parse_match;
mod parse_rule;
mod parse_structure;
mod parse_target;
mod parse_words;
mod print;

use std::ops::RangeInclusive;

use pollux_dataplane::packet::{Family, Prefix, Protocol};

/// The rules of one family: what one `iptables-save` or `ip6tables-save` prints.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ruleset<A: Family> {
    /// The tables of the file, in its order; each name once.
    pub tables: Vec<Table<A>>,
}

/// A table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table<A: Family> {
    /// Which.
    pub name: TableName,
    /// Its chains, in the file's order; each name once.
    pub chains: Vec<Chain<A>>,
}

/// The tables of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs, reason = "the kernel's own words")]
pub enum TableName {
    Raw,
    Mangle,
    Nat,
    Filter,
    Security,
}

/// A place in the stack where base chains stand, each called so in capitals.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs, reason = "the kernel's own words")]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// A chain: a base chain at a hook, or one of the user's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain<A: Family> {
    /// Its name.
    pub name: String,
    /// The verdict at its end, for a base chain; nothing for a user's chain, whose end returns.
    pub policy: Option<Policy>,
    /// Its rules.
    pub rules: Vec<Rule<A>>,
    /// Line of the file that declares it; 0 if none does.
    pub line: u32,
}

/// What a base chain does at its end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "the kernel's own words")]
pub enum Policy {
    Accept,
    Drop,
}

/// Place of a chain in its table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChainId(pub u32);

/// A rule: what must hold, and what is done then.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule<A: Family> {
    /// Conditions, all of which must hold, in the file's order. A match module without a condition, as
    /// `-m tcp` alone, is none.
    pub matches: Vec<Match<A>>,
    /// What is done.
    pub target: Target<A>,
    /// `-m comment`.
    pub comment: Option<Box<str>>,
    /// Line of the file; 0 if it was made otherwise.
    pub line: u32,
}

/// A condition.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Match<A: Family> {
    /// Whether it begins with `!`.
    pub negated: bool,
    /// What is asked.
    pub test: Test<A>,
}

/// What a condition asks.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Test<A: Family> {
    /// `-s`
    Source(Prefix<A>),
    /// `-d`
    Destination(Prefix<A>),
    /// `-p`
    Protocol(Protocol),
    /// `-i`
    InInterface(Interface),
    /// `-o`
    OutInterface(Interface),
    /// `--sport`, `--sports`
    SourcePorts(Ports),
    /// `--dport`, `--dports`
    DestinationPorts(Ports),
    /// `-m multiport --ports`: either of both.
    EitherPorts(Ports),
    /// `--tcp-flags MASK SET`, `--syn`: of the flags in `mask` those in `set` are on and no other.
    TcpFlags {
        /// The flags that are looked at.
        mask: u8,
        /// Those of them that must be on.
        set: u8,
    },
    /// `--icmp-type`, `--icmpv6-type`: the type, and its codes.
    Icmp {
        /// The type.
        kind: u8,
        /// Its codes: `0..=255` when none is given.
        codes: RangeInclusive<u8>,
    },
    /// `-m addrtype`
    AddressType {
        /// Of which address.
        side: Side,
        /// The kinds it may be of.
        kinds: AddressTypes,
        /// `--limit-iface-in`, `--limit-iface-out`: local to that interface only.
        limit: Option<InterfaceSide>,
    },
    /// `-m mark`
    Mark(MarkTest),
    /// `-m connmark`
    ConnMark(MarkTest),
    /// `-m conntrack --ctstate`, `-m state --state`
    State(States),
    /// `--ctorigdst`
    OriginalDestination(Prefix<A>),
    /// `--ctorigdstport`
    OriginalDestinationPort(RangeInclusive<u16>),
    /// `-m statistic --mode random`: holds when 31 random bits are below this.
    Random {
        /// `round(probability * 2^31)`, as the kernel holds it.
        threshold: u32,
    },
    /// `-m statistic --mode nth`
    Nth {
        /// Every so many packets,
        every: u32,
        /// beginning with this one.
        packet: u32,
    },
    /// `-m recent`
    Recent(Recent),
    /// `-m physdev`
    Physdev(Physdev),
    /// `-m set --match-set NAME DIMENSIONS`
    Set {
        /// The set.
        name: String,
        /// `src` or `dst`, for each of its dimensions.
        sides: Vec<Side>,
    },
    /// `-m nfacct`: counts, and always holds.
    Nfacct(String),
    /// `-m limit`, with its options: whether it holds depends on the packets before.
    Limit(String),
}

/// An interface name; one that ends with `+` stands for all that begin so.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Interface {
    /// The name, or its beginning.
    pub name: String,
    /// Whether it is only the beginning.
    pub prefix: bool,
}

impl Interface {
    /// Whether the condition holds for an interface. A packet without one has the name "" (`xt` compares
    /// with an empty name).
    pub fn holds(&self, interface: &str) -> bool {
        if self.prefix { interface.starts_with(&self.name) } else { interface == self.name }
    }
}

/// Sets of ports, as ranges in the file's order.
pub type Ports = Box<[RangeInclusive<u16>]>;

/// Source or destination.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "the words themselves")]
pub enum Side {
    Source,
    Destination,
}

/// The interface a packet came by, or that it leaves by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "the words themselves")]
pub enum InterfaceSide {
    In,
    Out,
}

/// Kinds of addresses, one bit each: bit n is the kernel's RTN_ value n (`UNSPEC` 0, `UNICAST` 1, `LOCAL` 2,
/// `BROADCAST` 3, `ANYCAST` 4, `MULTICAST` 5, `BLACKHOLE` 6, `UNREACHABLE` 7, `PROHIBIT` 8, `THROW` 9, `NAT`
/// 10, `XRESOLVE` 11).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AddressTypes(pub u16);

impl AddressTypes {
    /// `LOCAL` alone.
    pub const LOCAL: AddressTypes = AddressTypes(1 << 2);
}

/// A mark, looked at through a mask.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MarkTest {
    /// What the bits of the mask must be.
    pub value: u32,
    /// The bits that are looked at.
    pub mask: u32,
}

/// States of a connection, one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct States(pub u8);

impl States {
    /// No packet of it belongs to a connection.
    pub const INVALID: States = States(1);
    /// No reply was seen.
    pub const NEW: States = States(1 << 1);
    /// A reply was.
    pub const ESTABLISHED: States = States(1 << 2);
    /// It belongs to another connection, as an ICMP error does.
    pub const RELATED: States = States(1 << 3);
    /// It is not tracked.
    pub const UNTRACKED: States = States(1 << 4);
    /// A status: the source was translated.
    pub const SNAT: States = States(1 << 5);
    /// A status: the destination was translated.
    pub const DNAT: States = States(1 << 6);

    /// Whether both have a state in common.
    pub fn intersects(self, other: States) -> bool {
        self.0 & other.0 != 0
    }

    /// Both.
    #[must_use]
    pub fn with(self, other: States) -> States {
        States(self.0 | other.0)
    }
}

/// `-m recent`: a list of addresses with the times they were seen.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Recent {
    /// The list.
    pub name: String,
    /// What is done with it.
    pub action: RecentAction,
    /// Which address: `--rsource` or `--rdest`.
    pub side: Side,
    /// `--mask`, as a prefix length; the family's full length when not given.
    pub mask: u8,
    /// `--seconds`: seen no longer ago than that.
    pub seconds: Option<u32>,
    /// `--hitcount`.
    pub hitcount: Option<u32>,
    /// `--reap`: forgets what is older than `seconds`.
    pub reap: bool,
}

/// What `-m recent` does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RecentAction {
    /// `--set`: notes the address; always holds.
    Set,
    /// `--rcheck`: holds when it was noted.
    Check,
    /// `--update`: so, and notes it again.
    Update,
    /// `--remove`: so, and forgets it.
    Remove,
}

/// `-m physdev`: the bridge port below a bridge.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Physdev {
    /// `--physdev-is-in`: it came in by one.
    IsIn,
    /// `--physdev-is-out`: it will leave by one.
    IsOut,
    /// `--physdev-is-bridged`: it is bridged, not routed.
    IsBridged,
    /// `--physdev-in`
    In(Interface),
    /// `--physdev-out`
    Out(Interface),
}

/// What a rule does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target<A: Family> {
    /// Nothing: the rule counts.
    None,
    /// Ends the base chain.
    Accept,
    /// Drops the packet.
    Drop,
    /// Back to the caller; in a base chain, its policy.
    Return,
    /// To a chain, and back at its end.
    Jump(ChainId),
    /// To a chain, from whose end the way goes to the caller of this one.
    Goto(ChainId),
    /// Drops the packet and tells its source.
    Reject(RejectWith),
    /// `mark = mark & !mask ^ value`: `--set-xmark value/mask`, and what every other spelling is in it.
    Mark {
        /// The bits that are flipped last.
        value: u32,
        /// The bits that are cleared first.
        mask: u32,
    },
    /// CONNMARK.
    ConnMark(ConnMark),
    /// DNAT.
    Dnat(Nat<A>),
    /// SNAT.
    Snat(Nat<A>),
    /// MASQUERADE.
    Masquerade {
        /// `--to-ports`
        ports: Option<RangeInclusive<u16>>,
        /// `--random` or `--random-fully`.
        random: RandomPorts,
    },
    /// LOG, with its options: the packet goes on.
    Log(String),
}

/// `--reject-with`, in the words of either family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "iptables' own words")]
pub enum RejectWith {
    NetUnreachable,
    HostUnreachable,
    ProtocolUnreachable,
    PortUnreachable,
    NetProhibited,
    HostProhibited,
    AdminProhibited,
    NoRoute,
    AddressUnreachable,
    PolicyFail,
    RejectRoute,
    TcpReset,
}

/// CONNMARK's operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnMark {
    /// `--set-xmark value/mask`: `ctmark = ctmark & !mask ^ value`.
    Set {
        /// The bits that are flipped last.
        value: u32,
        /// The bits that are cleared first.
        mask: u32,
    },
    /// `--save-mark`: `ctmark = ctmark & !ct_mask ^ mark & mark_mask`.
    Save {
        /// `--ctmask`
        ct_mask: u32,
        /// `--nfmask`
        mark_mask: u32,
    },
    /// `--restore-mark`: `mark = mark & !mark_mask ^ ctmark & ct_mask`.
    Restore {
        /// `--ctmask`
        ct_mask: u32,
        /// `--nfmask`
        mark_mask: u32,
    },
}

/// Where DNAT and SNAT translate to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nat<A: Family> {
    /// First and last address; nothing keeps the address.
    pub addresses: Option<(A::Addr, A::Addr)>,
    /// The ports; nothing keeps the port.
    pub ports: Option<RangeInclusive<u16>>,
    /// `--random`, `--random-fully`.
    pub random: RandomPorts,
    /// `--persistent`.
    pub persistent: bool,
}

/// How a port is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum RandomPorts {
    /// The packet's own if it is free.
    #[default]
    Keep,
    /// `--random`
    Random,
    /// `--random-fully`
    Fully,
}

impl<A: Family> Nat<A> {
    /// Keeps address and port.
    pub const KEEP: Nat<A> =
        Nat { addresses: None, ports: None, random: RandomPorts::Keep, persistent: false };
}

impl<A: Family> Ruleset<A> {
    /// A table of the file; one that it does not have is empty and accepts.
    pub fn table(&self, name: TableName) -> Option<&Table<A>> {
        self.tables.iter().find(|table| table.name == name)
    }

    /// All rules of all tables: how large the file is.
    pub fn rule_count(&self) -> usize {
        self.tables.iter().flat_map(|table| &table.chains).map(|chain| chain.rules.len()).sum()
    }
}

impl<A: Family> Table<A> {
    /// A chain.
    pub fn chain(&self, id: ChainId) -> &Chain<A> {
        &self.chains[id.0 as usize]
    }

    /// The chain called `name`.
    pub fn find(&self, name: &str) -> Option<ChainId> {
        self.chains.iter().position(|chain| chain.name == name).map(|at| ChainId(at as u32))
    }

    /// The base chain at a hook, if the table has one there.
    pub fn base(&self, hook: Hook) -> Option<ChainId> {
        self.find(hook.chain())
    }
}

impl Hook {
    /// All of them.
    pub const ALL: [Hook; 5] =
        [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

    /// The name of base chains at the hook.
    pub fn chain(self) -> &'static str {
        match self {
            Hook::Prerouting => "PREROUTING",
            Hook::Input => "INPUT",
            Hook::Forward => "FORWARD",
            Hook::Output => "OUTPUT",
            Hook::Postrouting => "POSTROUTING",
        }
    }
}

impl TableName {
    /// All of them, in the order of their priorities at a hook.
    pub const ALL: [TableName; 5] =
        [TableName::Raw, TableName::Mangle, TableName::Nat, TableName::Filter, TableName::Security];

    /// The hooks at which the table has base chains.
    pub fn hooks(self) -> &'static [Hook] {
        use Hook::{Forward, Input, Output, Postrouting, Prerouting};
        match self {
            TableName::Raw => &[Prerouting, Output],
            TableName::Mangle => &[Prerouting, Input, Forward, Output, Postrouting],
            TableName::Nat => &[Prerouting, Input, Output, Postrouting],
            TableName::Filter | TableName::Security => &[Input, Forward, Output],
        }
    }

    /// As `iptables -t` has it.
    pub fn name(self) -> &'static str {
        match self {
            TableName::Raw => "raw",
            TableName::Mangle => "mangle",
            TableName::Nat => "nat",
            TableName::Filter => "filter",
            TableName::Security => "security",
        }
    }
}
