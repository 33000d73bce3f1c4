//! A file of rules by what they ask of a destination, so that neither a walk nor the search for constants reads
//! 10,000 rules for one address. Nothing is left out but rules that cannot match: the order stays the file's.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use hashbrown::HashMap;
use pollux_dataplane::packet::{Address, Family, Prefix, Protocol};

use super::piece::span;
use super::space::{Ranges, classes};
use crate::iptables::ipset::{Ports, Sets};
use crate::iptables::{
    AddressTypes, Chain, ChainId, Hook, Nat, Rule, Ruleset, Side, Table, TableName, Target, Test,
};

/// The tables of a file, indexed.
pub(super) struct Index<'a, A: Family> {
    tables: Vec<IndexedTable<'a, A>>,
    sets: &'a Sets<A>,
}

/// A table, indexed.
pub(super) struct IndexedTable<'a, A: Family> {
    /// The table.
    pub table: &'a Table<A>,
    chains: Vec<ChainIndex<A>>,
    /// By hook, in the order of [`Hook::ALL`].
    bases: [Option<ChainId>; 5],
}

/// Destination, protocol, destination port, and whether the destination is local.
pub(super) type Key<Addr> = (Addr, Protocol, u16, bool);

/// The rules of a chain by what they ask. A rule stands in one of the lists.
struct ChainIndex<A: Family> {
    rules: u32,
    /// So few that they are read one by one.
    short: bool,
    by_destination: HashMap<A::Addr, Vec<u32>>,
    by_port: HashMap<(Protocol, u16), Vec<u32>>,
    /// Likewise, of rules for local destinations only.
    by_local_port: HashMap<(Protocol, u16), Vec<u32>>,
    others: Vec<u32>,
}

/// Up to so many rules a chain is read one by one.
const SHORT: usize = 8;

/// The constants that the packets of one destination can meet, by protocol.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Constants {
    /// Protocols that are mentioned, with the destination ports that are: single ones and ranges.
    pub protocols: BTreeMap<Protocol, PortConstants>,
}

/// Ports that are mentioned.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct PortConstants {
    /// Single ones.
    pub singles: BTreeSet<u16>,
    /// Ranges.
    pub spans: BTreeSet<(u16, u16)>,
}

impl Constants {
    /// Adds a range of destination ports of a protocol.
    pub(super) fn port(&mut self, protocol: Protocol, first: u16, last: u16) {
        let ports = self.protocols.entry(protocol).or_default();
        if first == last {
            ports.singles.insert(first);
        } else {
            ports.spans.insert((first, last));
        }
    }
}

impl PortConstants {
    /// One port of each class that nothing tells apart.
    pub(super) fn classes(&self) -> Vec<u16> {
        let singles: Vec<u128> = self.singles.iter().map(|port| u128::from(*port)).collect();
        let span = |(first, last): &(u16, u16)| Ranges::span(u128::from(*first), u128::from(*last));
        let spans: Vec<Ranges> = self.spans.iter().map(span).collect();
        classes((0, 0xffff), &singles, &spans).into_iter().map(|class| class.member as u16).collect()
    }
}

impl<'a, A: Family> Index<'a, A> {
    /// Of a file.
    pub(super) fn new(rules: &'a Ruleset<A>, sets: &'a Sets<A>) -> Self {
        Index { tables: rules.tables.iter().map(IndexedTable::new).collect(), sets }
    }

    /// A table of the file.
    pub(super) fn table(&self, name: TableName) -> Option<&IndexedTable<'a, A>> {
        self.tables.iter().find(|table| table.table.name == name)
    }

    /// The base chain of a table at a hook.
    pub(super) fn base(&self, table: TableName, hook: Hook) -> Option<ChainId> {
        self.table(table)?.bases[hook as usize]
    }

    /// How many rules the file has.
    pub(super) fn rule_count(&self) -> usize {
        self.all_rules().count()
    }

    fn all_rules(&self) -> impl Iterator<Item = &'a Rule<A>> {
        self.tables.iter().flat_map(|table| &table.table.chains).flat_map(|chain| &chain.rules)
    }

    fn all_tests(&self) -> impl Iterator<Item = &'a Test<A>> {
        self.all_rules().flat_map(|rule| &rule.matches).map(|condition| &condition.test)
    }

    /// The destinations that the file mentions, as numbers: single addresses, and prefixes.
    pub(super) fn destinations(&self, singles: &mut Vec<u128>, spans: &mut Vec<(u128, u128)>) {
        for test in self.all_tests() {
            let found = match test {
                Test::Destination(prefix) => vec![span(prefix)],
                Test::Set { name, .. } => set_prefixes(self.sets, name).collect(),
                _ => continue,
            };
            for (first, last) in found {
                if first == last { singles.push(first) } else { spans.push((first, last)) }
            }
        }
    }

    /// The interfaces that it mentions: names, and beginnings of names.
    pub(super) fn interfaces(&self) -> impl Iterator<Item = &'a crate::iptables::Interface> {
        self.all_tests().filter_map(|test| match test {
            Test::InInterface(interface) | Test::OutInterface(interface) => Some(interface),
            _ => None,
        })
    }

    /// Whether a rule asks about bridge ports.
    pub(super) fn asks_physdev(&self) -> bool {
        self.all_tests().any(|test| matches!(test, Test::Physdev(_)))
    }

    /// The bits of the mark that the file sets.
    pub(super) fn own_mark(&self) -> u32 {
        let set = |rule: &Rule<A>| match rule.target {
            Target::Mark { value, mask } => value | mask,
            _ => 0,
        };
        self.all_rules().map(set).fold(0, |bits, one| bits | one)
    }

    /// The constants that a packet with this destination can meet.
    pub(super) fn constants(&self, destination: A::Addr, local: bool, found: &mut Constants) {
        let mut visited = HashSet::new();
        self.constants_at(destination, local, found, &mut visited);
    }

    fn constants_at(
        &self,
        destination: A::Addr,
        local: bool,
        found: &mut Constants,
        visited: &mut HashSet<(A::Addr, usize, ChainId)>,
    ) {
        for (at, table) in self.tables.iter().enumerate() {
            // What is local never passes FORWARD, what is not never INPUT.
            let skipped = if local { Hook::Forward } else { Hook::Input };
            let hooks = Hook::ALL.iter().zip(&table.bases).filter(|(hook, _)| **hook != skipped);
            let mut pending: Vec<ChainId> = hooks.filter_map(|(_, base)| *base).collect();
            while let Some(id) = pending.pop() {
                if !visited.insert((destination, at, id)) {
                    continue;
                }
                table.each_for(id, destination, local, |rule| {
                    constants_of(rule, self.sets, found);
                    match &rule.target {
                        Target::Jump(to) | Target::Goto(to) => pending.push(*to),
                        Target::Dnat(nat) if keeps_something(rule, nat) => {
                            // What it keeps meets the rules of the new destination.
                            let to = nat.addresses.map_or(destination, |(first, _)| first);
                            if to != destination {
                                self.constants_at(to, false, found, visited);
                                self.constants_at(to, true, found, visited);
                            }
                        }
                        _ => {}
                    }
                });
            }
        }
    }
}

/// The addresses that an ipset's entries name, as numbers: what is compared with them is not cut finer.
pub(super) fn set_prefixes<A: Family>(sets: &Sets<A>, name: &str) -> impl Iterator<Item = (u128, u128)> {
    sets.parts(name).flat_map(|set| {
        let prefixes = set.entries.iter().flat_map(|entry| [entry.address, entry.other]).flatten();
        // Of an address only the first `netmask` bits are looked at.
        prefixes.map(|prefix| span(&Prefix::<A>::new(prefix.address(), prefix.len().min(set.netmask))))
    })
}

/// Whether what a translated packet meets depends on more than the rule says: its protocol or port.
fn keeps_something<A: Family>(rule: &Rule<A>, nat: &Nat<A>) -> bool {
    let one_protocol =
        rule.matches.iter().any(|test| !test.negated && matches!(test.test, Test::Protocol(_)));
    !one_protocol || nat.ports.is_none()
}

/// The protocols and ports that a rule mentions.
fn constants_of<A: Family>(rule: &Rule<A>, sets: &Sets<A>, found: &mut Constants) {
    let named = rule.matches.iter().filter_map(|condition| match &condition.test {
        Test::Set { name, .. } => Some(name),
        _ => None,
    });
    for entry in named.flat_map(|name| sets.parts(name)).flat_map(|set| &set.entries) {
        let Some(Ports { protocol, ports }) = &entry.ports else { continue };
        let protocols = protocol.map_or(vec![Protocol::TCP, Protocol::UDP], |one| vec![one]);
        for protocol in protocols {
            found.port(protocol, *ports.start(), *ports.end());
        }
    }
    let protocols = rule.matches.iter().filter_map(|condition| match condition.test {
        Test::Protocol(protocol) => Some(protocol),
        _ => None,
    });
    for protocol in protocols {
        found.protocols.entry(protocol).or_default();
        for condition in &rule.matches {
            if let Test::DestinationPorts(ports) | Test::EitherPorts(ports) = &condition.test {
                for range in ports {
                    found.port(protocol, *range.start(), *range.end());
                }
            }
        }
    }
}

impl<'a, A: Family> IndexedTable<'a, A> {
    fn new(table: &'a Table<A>) -> Self {
        IndexedTable {
            table,
            chains: table.chains.iter().map(ChainIndex::new).collect(),
            bases: Hook::ALL.map(|hook| table.base(hook)),
        }
    }

    /// The first rule of a chain at or behind `at` that can match.
    pub(super) fn next(&self, id: ChainId, at: u32, key: Key<A::Addr>) -> Option<u32> {
        let chain = &self.chains[id.0 as usize];
        if chain.short {
            return (at < chain.rules).then_some(at);
        }
        let (destination, protocol, port, local) = key;
        let from = |list: Option<&Vec<u32>>| {
            let list = list?;
            list.get(list.partition_point(|rule| *rule < at)).copied()
        };
        let by_local_port = if local { from(chain.by_local_port.get(&(protocol, port))) } else { None };
        [
            from(chain.by_destination.get(&destination)),
            from(chain.by_port.get(&(protocol, port))),
            by_local_port,
            from(Some(&chain.others)),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// All rules of a chain that a packet with this destination can match, in no order.
    fn each_for(&self, id: ChainId, destination: A::Addr, local: bool, mut see: impl FnMut(&'a Rule<A>)) {
        let (rules, chain) = (&self.table.chain(id).rules, &self.chains[id.0 as usize]);
        let mut see = |at: u32| {
            let rule = &rules[at as usize];
            if admits(rule, destination, local) {
                see(rule);
            }
        };
        if chain.short {
            return (0..chain.rules).for_each(see);
        }
        chain.by_destination.get(&destination).into_iter().flatten().copied().for_each(&mut see);
        chain.by_port.values().flatten().copied().for_each(&mut see);
        if local {
            chain.by_local_port.values().flatten().copied().for_each(&mut see);
        }
        chain.others.iter().copied().for_each(&mut see);
    }
}

/// Whether a packet with this destination can match the rule.
fn admits<A: Family>(rule: &Rule<A>, destination: A::Addr, local: bool) -> bool {
    rule.matches.iter().all(|condition| {
        let holds = match &condition.test {
            Test::Destination(prefix) => prefix.contains(destination),
            Test::AddressType { side: Side::Destination, kinds: AddressTypes::LOCAL, limit: None } => local,
            _ => return true,
        };
        holds != condition.negated
    })
}

impl<A: Family> ChainIndex<A> {
    fn new(chain: &Chain<A>) -> Self {
        let mut index = ChainIndex {
            rules: chain.rules.len() as u32,
            short: chain.rules.len() <= SHORT,
            by_destination: HashMap::new(),
            by_port: HashMap::new(),
            by_local_port: HashMap::new(),
            others: Vec::new(),
        };
        if index.short {
            return index;
        }
        for (at, rule) in chain.rules.iter().enumerate() {
            let at = at as u32;
            match Selector::of(rule) {
                Selector::Destination(address) => {
                    index.by_destination.entry(address).or_default().push(at);
                }
                Selector::Port(protocol, port) => {
                    index.by_port.entry((protocol, port)).or_default().push(at);
                }
                Selector::LocalPort(protocol, port) => {
                    index.by_local_port.entry((protocol, port)).or_default().push(at);
                }
                Selector::Any => index.others.push(at),
            }
        }
        index
    }
}

/// What a rule must see before it can match, or have an effect.
enum Selector<Addr> {
    Destination(Addr),
    Port(Protocol, u16),
    LocalPort(Protocol, u16),
    Any,
}

impl<Addr: Address> Selector<Addr> {
    fn of<A: Family<Addr = Addr>>(rule: &Rule<A>) -> Self {
        let (mut protocol, mut port, mut local, mut single) = (None, None, false, None);
        for condition in &rule.matches {
            match &condition.test {
                // It notes the packet even if a later condition does not hold.
                Test::Recent(_) => return Selector::Any,
                _ if condition.negated => {}
                Test::Destination(prefix) if prefix.len() == A::BITS => single = Some(prefix.address()),
                Test::Protocol(one) => protocol = Some(*one),
                Test::DestinationPorts(ports) => match &**ports {
                    [range] if range.start() == range.end() => port = Some(*range.start()),
                    _ => {}
                },
                Test::AddressType { side: Side::Destination, kinds: AddressTypes::LOCAL, limit: None } => {
                    local = true;
                }
                _ => {}
            }
        }
        match (single, protocol, port) {
            (Some(address), _, _) => Selector::Destination(address),
            (None, Some(protocol), Some(port)) if local => Selector::LocalPort(protocol, port),
            (None, Some(protocol), Some(port)) => Selector::Port(protocol, port),
            _ => Selector::Any,
        }
    }
}
