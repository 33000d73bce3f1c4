//! Single changes of rules: every one that somebody could make by mistake, in kube-proxy or in Pollux's idea of
//! it. Each is described so that a survivor can be looked at: where, which, the rule before and after.

use std::collections::BTreeMap;

use pollux_control::iptables::{
    AddressTypes, Chain, ChainId, Interface, MarkTest, Match, Nat, Policy, RandomPorts, Recent, RecentAction,
    RejectWith, Rule, Ruleset, Side, States, Table, Target, Test,
};
use pollux_dataplane::packet::{Address, Family, Prefix, Protocol};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// One change of a ruleset.
#[derive(Clone, Debug)]
pub(super) struct Change<A: Family> {
    /// What kind of change it is.
    pub(super) operator: &'static str,
    table: usize,
    chain: usize,
    edit: Edit<A>,
}

#[derive(Clone, Debug)]
enum Edit<A: Family> {
    Remove(usize),
    Duplicate(usize),
    /// With the rule behind it.
    Swap(usize),
    Replace(usize, Rule<A>),
    Policy(Policy),
    /// All rules of the chain.
    Empty,
}

impl<A: Family> Change<A> {
    /// The rules with the change.
    pub(super) fn apply(&self, rules: &Ruleset<A>) -> Ruleset<A> {
        let mut changed = rules.clone();
        let chain = &mut changed.tables[self.table].chains[self.chain];
        match &self.edit {
            Edit::Remove(at) => drop(chain.rules.remove(*at)),
            Edit::Duplicate(at) => chain.rules.insert(*at, chain.rules[*at].clone()),
            Edit::Swap(at) => chain.rules.swap(*at, at + 1),
            Edit::Replace(at, rule) => chain.rules[*at] = rule.clone(),
            Edit::Policy(policy) => chain.policy = Some(*policy),
            Edit::Empty => chain.rules.clear(),
        }
        changed
    }

    /// The chain that is changed: its table's number and its own.
    pub(super) fn place(&self, rules: &Ruleset<A>) -> (u8, u32) {
        (rules.tables[self.table].name as u8, self.chain as u32)
    }

    /// Where, and what: one line for the place, one for the rule before, one for it after.
    pub(super) fn describe(&self, rules: &Ruleset<A>) -> String {
        let table = &rules.tables[self.table];
        let chain = &table.chains[self.chain];
        let place = format!("{}: {} {}", self.operator, table.name.name(), chain.name);
        let show = |rule: &Rule<A>| table.show(ChainId(self.chain as u32), rule).to_string();
        match &self.edit {
            Edit::Remove(at) | Edit::Duplicate(at) => {
                format!(
                    "{place} rule {} line {}\n  {}",
                    at + 1,
                    chain.rules[*at].line,
                    show(&chain.rules[*at])
                )
            }
            Edit::Swap(at) => format!(
                "{place} rules {} and {}\n  {}\n  {}",
                at + 1,
                at + 2,
                show(&chain.rules[*at]),
                show(&chain.rules[at + 1])
            ),
            Edit::Replace(at, rule) => format!(
                "{place} rule {} line {}\n  {}\n  {}",
                at + 1,
                chain.rules[*at].line,
                show(&chain.rules[*at]),
                show(rule)
            ),
            Edit::Policy(policy) => format!("{place} policy {policy:?}"),
            Edit::Empty => format!("{place}, {} rules", chain.rules.len()),
        }
    }
}

/// Every change, in the order of the rules.
pub(super) fn changes<A: Family>(rules: &Ruleset<A>) -> Vec<Change<A>> {
    let mut changes = Vec::new();
    for (table_at, table) in rules.tables.iter().enumerate() {
        let reach = reach(table);
        for (chain_at, chain) in table.chains.iter().enumerate() {
            let mut push = |operator, edit| {
                changes.push(Change { operator, table: table_at, chain: chain_at, edit });
            };
            if let Some(policy) = chain.policy {
                let other = match policy {
                    Policy::Accept => Policy::Drop,
                    Policy::Drop => Policy::Accept,
                };
                push("policy flipped", Edit::Policy(other));
            }
            if chain.rules.len() > 1 {
                push("chain emptied", Edit::Empty);
            }
            let others = others(table, &reach, chain_at);
            for (at, rule) in chain.rules.iter().enumerate() {
                push("rule removed", Edit::Remove(at));
                push("rule duplicated", Edit::Duplicate(at));
                if chain.rules.get(at + 1).is_some_and(|next| !same(rule, next)) {
                    push("rules swapped", Edit::Swap(at));
                }
                for (operator, changed) in variants(rule, &others) {
                    if is_loadable(&changed) {
                        push(operator, Edit::Replace(at, changed));
                    }
                }
            }
        }
    }
    changes
}

/// At most `each` changes of every kind, drawn by `seed`, in the order of the rules.
pub(super) fn draw<A: Family>(changes: Vec<Change<A>>, each: usize, seed: u64) -> Vec<Change<A>> {
    draw_by(changes, |change| change.operator, each, seed)
}

/// At most `each` of every kind, drawn by `seed`, in their order.
pub(super) fn draw_by<T>(
    changes: Vec<T>,
    kind: impl Fn(&T) -> &'static str,
    each: usize,
    seed: u64,
) -> Vec<T> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut by_kind: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, change) in changes.iter().enumerate() {
        by_kind.entry(kind(change)).or_default().push(at);
    }
    let mut drawn = vec![false; changes.len()];
    for places in by_kind.values_mut() {
        places.shuffle(&mut random);
        places.iter().take(each).for_each(|at| drawn[*at] = true);
    }
    changes.into_iter().zip(drawn).filter_map(|(change, drawn)| drawn.then_some(change)).collect()
}

/// Whether iptables would take the rule: ports need a protocol that has some.
fn is_loadable<A: Family>(rule: &Rule<A>) -> bool {
    let has_ports = rule.matches.iter().any(|part| match part.test {
        Test::Protocol(protocol) => !part.negated && protocol.has_ports(),
        _ => false,
    });
    let asks_ports = rule.matches.iter().any(|part| {
        matches!(part.test, Test::SourcePorts(_) | Test::DestinationPorts(_) | Test::EitherPorts(_))
    });
    let sets_ports = match &rule.target {
        Target::Dnat(nat) | Target::Snat(nat) => nat.ports.is_some(),
        Target::Masquerade { ports, .. } => ports.is_some(),
        _ => false,
    };
    has_ports || !asks_ports && !sets_ports
}

fn same<A: Family>(left: &Rule<A>, right: &Rule<A>) -> bool {
    left.matches == right.matches && left.target == right.target
}

/// Which chains each chain leads to, at any depth, itself included.
fn reach<A: Family>(table: &Table<A>) -> Vec<Vec<bool>> {
    let count = table.chains.len();
    (0..count)
        .map(|start| {
            let mut seen = vec![false; count];
            let mut open = vec![start];
            while let Some(chain) = open.pop() {
                if std::mem::replace(&mut seen[chain], true) {
                    continue;
                }
                for rule in &table.chains[chain].rules {
                    if let Target::Jump(ChainId(to)) | Target::Goto(ChainId(to)) = rule.target {
                        open.push(to as usize);
                    }
                }
            }
            seen
        })
        .collect()
}

/// User chains that a rule of `chain` can be turned to without a loop (the kernel refuses those).
fn others<A: Family>(table: &Table<A>, reach: &[Vec<bool>], chain: usize) -> Vec<ChainId> {
    let user = |(_, other): &(usize, &Chain<A>)| other.policy.is_none();
    let chains = table.chains.iter().enumerate().filter(user);
    chains.filter(|(at, _)| !reach[*at][chain]).map(|(at, _)| ChainId(at as u32)).collect()
}

/// All rules that differ from `rule` in one thing.
fn variants<A: Family>(rule: &Rule<A>, others: &[ChainId]) -> Vec<(&'static str, Rule<A>)> {
    let mut found = Vec::new();
    for (at, part) in rule.matches.iter().enumerate() {
        let mut with = |operator, part: Option<Match<A>>| {
            let mut rule = rule.clone();
            match part {
                Some(part) => rule.matches[at] = part,
                None => drop(rule.matches.remove(at)),
            }
            found.push((operator, rule));
        };
        with("condition removed", None);
        with("negation flipped", Some(Match { negated: !part.negated, test: part.test.clone() }));
        for (operator, test) in tests(&part.test) {
            with(operator, Some(Match { negated: part.negated, test }));
        }
    }
    let notes = rule.matches.iter().any(|part| matches!(part.test, Test::Recent(_)));
    for (operator, target) in targets(&rule.target, others) {
        // Whose list it is the proof knows by the endpoint in the same rule.
        if notes && matches!(operator, "nat: address kept" | "nat: port kept") {
            continue;
        }
        found.push((operator, Rule { target, ..rule.clone() }));
    }
    if rule.comment.is_some() {
        found.push(("comment changed", Rule { comment: Some("another".into()), ..rule.clone() }));
    }
    found
}

fn prefixes<A: Family>(prefix: Prefix<A>) -> Vec<(&'static str, Prefix<A>)> {
    let mut found = Vec::new();
    if prefix.len() > 0 {
        found.push(("prefix shortened", Prefix::new(prefix.address(), prefix.len() - 1)));
        let step = 1u128 << (A::BITS - prefix.len());
        let next = A::Addr::from_bits(prefix.address().bits().wrapping_add(step));
        found.push(("address moved", Prefix::new(next, prefix.len())));
    }
    if prefix.len() < A::BITS {
        found.push(("prefix lengthened", Prefix::new(prefix.address(), prefix.len() + 1)));
    }
    found
}

fn protocols(protocol: Protocol) -> Protocol {
    match protocol {
        Protocol::TCP => Protocol::UDP,
        Protocol::UDP => Protocol::SCTP,
        _ => Protocol::TCP,
    }
}

/// All conditions that differ from `test` in one thing.
fn tests<A: Family>(test: &Test<A>) -> Vec<(&'static str, Test<A>)> {
    let mut found = Vec::new();
    match test {
        Test::Source(prefix) => {
            found.extend(
                prefixes(*prefix).into_iter().map(|(operator, prefix)| (operator, Test::Source(prefix))),
            );
            found.push(("source for destination", Test::Destination(*prefix)));
        }
        Test::Destination(prefix) => {
            found.extend(
                prefixes(*prefix).into_iter().map(|(operator, prefix)| (operator, Test::Destination(prefix))),
            );
            found.push(("destination for source", Test::Source(*prefix)));
        }
        Test::Protocol(protocol) => found.push(("protocol changed", Test::Protocol(protocols(*protocol)))),
        Test::InInterface(name) => {
            found.extend(
                interfaces(name).into_iter().map(|(operator, name)| (operator, Test::InInterface(name))),
            );
            found.push(("interface of the other side", Test::OutInterface(name.clone())));
        }
        Test::OutInterface(name) => {
            found.extend(
                interfaces(name).into_iter().map(|(operator, name)| (operator, Test::OutInterface(name))),
            );
            found.push(("interface of the other side", Test::InInterface(name.clone())));
        }
        Test::DestinationPorts(ports) => {
            for (operator, ports) in moved(ports) {
                found.push((operator, Test::DestinationPorts(ports)));
            }
            found.push(("source port for destination port", Test::SourcePorts(ports.clone())));
        }
        Test::SourcePorts(ports) => {
            found.extend(moved(ports).map(|(operator, ports)| (operator, Test::SourcePorts(ports))));
        }
        Test::AddressType { side, kinds, limit } => {
            let other = match side {
                Side::Source => Side::Destination,
                Side::Destination => Side::Source,
            };
            found.push((
                "address type of the other side",
                Test::AddressType { side: other, kinds: *kinds, limit: *limit },
            ));
            let unicast = AddressTypes(1 << 1);
            found.push((
                "address type changed",
                Test::AddressType { side: *side, kinds: unicast, limit: *limit },
            ));
        }
        Test::Mark(MarkTest { value, mask }) => {
            found.push(("mark test: value", Test::Mark(MarkTest { value: value ^ mask, mask: *mask })));
            found.push(("mark test: bit", Test::Mark(MarkTest { value: value << 1, mask: mask << 1 })));
            found.push((
                "mark test: wider mask",
                Test::Mark(MarkTest { value: *value, mask: mask | mask << 1 }),
            ));
            found.push(("mark test: no mask", Test::Mark(MarkTest { value: *value, mask: u32::MAX })));
        }
        Test::State(states) => {
            for state in [
                States::INVALID,
                States::NEW,
                States::ESTABLISHED,
                States::RELATED,
                States::UNTRACKED,
                States::SNAT,
                States::DNAT,
            ] {
                let changed = States(states.0 ^ state.0);
                if changed.0 != 0 {
                    let operator = if states.intersects(state) { "state removed" } else { "state added" };
                    found.push((operator, Test::State(changed)));
                }
            }
        }
        Test::Random { threshold } => {
            for (operator, threshold) in [
                ("probability raised", threshold + 64),
                ("probability lowered", threshold.saturating_sub(64)),
                ("probability halved", threshold / 2),
                ("probability one", 1 << 31),
            ] {
                found.push((operator, Test::Random { threshold }));
            }
        }
        Test::Recent(recent) => {
            found.extend(
                recents::<A>(recent).into_iter().map(|(operator, recent)| (operator, Test::Recent(recent))),
            );
        }
        Test::Nfacct(_) => found.push(("counter renamed", Test::Nfacct("another".to_string()))),
        _ => {}
    }
    found
}

fn interfaces(interface: &Interface) -> Vec<(&'static str, Interface)> {
    let Interface { name, prefix } = interface;
    let shorter = name[..name.len() - 1].to_string();
    vec![
        ("interface: exact or not", Interface { name: name.clone(), prefix: !prefix }),
        ("interface: another", Interface { name: format!("{name}x"), prefix: *prefix }),
        ("interface: shorter", Interface { name: shorter, prefix: *prefix }),
    ]
}

fn moved(
    ports: &[std::ops::RangeInclusive<u16>],
) -> impl Iterator<Item = (&'static str, Box<[std::ops::RangeInclusive<u16>]>)> {
    let with = |first: fn(u16) -> u16, last: fn(u16) -> u16| -> Box<[_]> {
        ports.iter().map(|range| first(*range.start())..=last(*range.end())).collect()
    };
    let up = |port: u16| port.saturating_add(1);
    let down = |port: u16| port.saturating_sub(1);
    let same = |port| port;
    [("port plus one", with(up, up)), ("port minus one", with(down, down)), ("ports widened", with(same, up))]
        .into_iter()
}

fn recents<A: Family>(recent: &Recent) -> Vec<(&'static str, Recent)> {
    let mut found = vec![
        ("affinity: another list", Recent { name: format!("{}X", recent.name), ..recent.clone() }),
        ("affinity: mask", Recent { mask: A::BITS - 8, ..recent.clone() }),
        ("affinity: of the destination", Recent { side: Side::Destination, ..recent.clone() }),
    ];
    if let Some(seconds) = recent.seconds {
        found.push(("affinity: a second more", Recent { seconds: Some(seconds + 1), ..recent.clone() }));
        found.push(("affinity: a tenth", Recent { seconds: Some(seconds / 10), ..recent.clone() }));
        found.push(("affinity: no end", Recent { seconds: None, reap: false, ..recent.clone() }));
        found.push(("affinity: twice seen", Recent { hitcount: Some(2), ..recent.clone() }));
    }
    let other = match recent.action {
        RecentAction::Set => RecentAction::Remove,
        RecentAction::Check => RecentAction::Remove,
        _ => RecentAction::Set,
    };
    found.push(("affinity: another action", Recent { action: other, ..recent.clone() }));
    if recent.action == RecentAction::Check {
        found.push(("affinity: refreshed", Recent { action: RecentAction::Update, ..recent.clone() }));
    }
    found
}

/// All targets that differ from `target` in one thing.
fn targets<A: Family>(target: &Target<A>, others: &[ChainId]) -> Vec<(&'static str, Target<A>)> {
    let mut found = Vec::new();
    let mut add = |operator, changed: Target<A>| {
        if changed != *target {
            found.push((operator, changed));
        }
    };
    let ends = |add: &mut dyn FnMut(&'static str, Target<A>)| {
        add("accept instead", Target::Accept);
        add("drop instead", Target::Drop);
        add("return instead", Target::Return);
        add("nothing instead", Target::None);
    };
    match target {
        Target::Accept | Target::Drop | Target::Return | Target::None => ends(&mut add),
        Target::Reject(_) => {
            ends(&mut add);
            add("reject: another error", Target::Reject(RejectWith::AdminProhibited));
            add("reject: reset", Target::Reject(RejectWith::TcpReset));
        }
        Target::Jump(chain) => {
            ends(&mut add);
            add("goto for jump", Target::Goto(*chain));
            let near = others.iter().filter(|other| **other != *chain);
            // Its neighbours in the file, which are often of its kind.
            let next = near.clone().find(|other| other.0 > chain.0);
            let last = near.clone().rfind(|other| other.0 < chain.0);
            for other in next.into_iter().chain(last) {
                add("jump elsewhere", Target::Jump(*other));
            }
        }
        Target::Goto(chain) => {
            ends(&mut add);
            add("jump for goto", Target::Jump(*chain));
        }
        Target::Mark { value, mask } => {
            ends(&mut add);
            add("mark: another bit", Target::Mark { value: value << 1, mask: mask << 1 });
            add("mark: all bits cleared", Target::Mark { value: *value, mask: u32::MAX });
            add("mark: mask", Target::Mark { value: *value, mask: mask ^ value });
            add("mark: cleared", Target::Mark { value: 0, mask: *mask });
        }
        Target::Dnat(nat) => {
            ends(&mut add);
            for (operator, nat) in nats(nat) {
                add(operator, Target::Dnat(nat));
            }
        }
        Target::Snat(nat) => {
            ends(&mut add);
            for (operator, nat) in nats(nat) {
                add(operator, Target::Snat(nat));
            }
        }
        Target::Masquerade { .. } => {
            ends(&mut add);
            add("masquerade: not random", Target::Masquerade { ports: None, random: RandomPorts::Keep });
        }
        Target::ConnMark(_) | Target::Log(_) => ends(&mut add),
    }
    found
}

fn nats<A: Family>(nat: &Nat<A>) -> Vec<(&'static str, Nat<A>)> {
    let mut found = Vec::new();
    if let Some((first, last)) = nat.addresses {
        let next = |address: A::Addr| A::Addr::from_bits(address.bits().wrapping_add(1));
        found.push((
            "nat: address plus one",
            Nat { addresses: Some((next(first), next(last))), ..nat.clone() },
        ));
        found.push(("nat: two addresses", Nat { addresses: Some((first, next(last))), ..nat.clone() }));
        found.push(("nat: address kept", Nat { addresses: None, ..nat.clone() }));
    }
    if let Some(ports) = &nat.ports {
        let next = ports.start() + 1..=ports.end() + 1;
        found.push(("nat: port plus one", Nat { ports: Some(next), ..nat.clone() }));
        found.push(("nat: port kept", Nat { ports: None, ..nat.clone() }));
    }
    found
}
