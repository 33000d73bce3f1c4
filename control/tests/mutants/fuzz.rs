//! Two rulesets under the same packets: does any get another outcome? A packet's outcome is the distribution
//! over the choices that `-m statistic` makes, every one of which is walked. The packets are made of the
//! constants in the rules, and of their neighbours.

use std::collections::BTreeSet;
use std::fmt::{self, Debug, Formatter};
use std::net::IpAddr;

use pollux_control::iptables::evaluate::{
    Connection, Evaluator, NatState, Packet, Place, Snat, Verdict, View, Watch, World,
};
use pollux_control::iptables::{
    Hook, Interface, Nat, Recent, RecentAction, Rule, Ruleset, Side, States, Table, Target, Test,
};
use pollux_control::verify::report::Sample;
use pollux_dataplane::packet::{Address, Family, Prefix, Protocol};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// The node that packets walk through.
pub(super) struct Site<A: Family> {
    /// Its addresses, without loopback.
    pub(super) addresses: Vec<A::Addr>,
}

impl<A: Family> Site<A> {
    pub(super) fn is_local(&self, address: A::Addr) -> bool {
        address.is_loopback() || self.addresses.contains(&address)
    }

    fn own(&self) -> A::Addr {
        self.addresses[0]
    }
}

/// A packet and what the lists of `-m recent` have of its source.
#[derive(Clone)]
pub(super) struct Probe<A: Family> {
    pub(super) source: A::Addr,
    pub(super) destination: A::Addr,
    pub(super) protocol: Protocol,
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
    pub(super) tcp_flags: u8,
    pub(super) icmp: (u8, u8),
    /// None for a packet of the host.
    pub(super) in_interface: Option<String>,
    /// By which it leaves, where it is forwarded.
    pub(super) output: Option<String>,
    pub(super) mark: u32,
    pub(super) state: States,
    pub(super) nat: NatState<A>,
    /// Lists that have the source, and how many seconds ago it was last seen.
    pub(super) seen: Vec<(String, u32)>,
}

impl<A: Family> Probe<A> {
    /// A packet that the proof names, as one of the two sides has it.
    pub(super) fn of_sample(sample: &Sample, side: Compared) -> Probe<A> {
        // Where the rules have no list for an endpoint of the tables, these have one of their own.
        let own = |list: &str| list.strip_suffix(" (of the tables)").map(str::to_string);
        let noted = sample.noted.iter();
        let seen = match side {
            Compared::Rules => noted
                .filter(|(list, _)| own(list).is_none())
                .map(|(list, age)| (list.clone(), *age as u32))
                .collect(),
            Compared::Tables => {
                let owned: Vec<String> = noted.clone().filter_map(|(list, _)| own(list)).collect();
                noted
                    .filter(|(list, _)| !owned.contains(list))
                    .map(|(list, age)| (own(list).unwrap_or_else(|| list.clone()), *age as u32))
                    .collect()
            }
        };
        let address = |ip| A::Addr::from_ip(ip).expect("the sample is of the family");
        let decided = NatState::Decided {
            dnat: sample.dnat,
            snat: sample.snat,
            before: sample.dnat.then(|| (address(sample.original.ip()), sample.original.port())),
            after: None,
        };
        let (state, nat) = match sample.state {
            "new" => (States::NEW, NatState::First),
            "new_unreplied" => (States::NEW, decided),
            "established" => (States::ESTABLISHED, decided),
            "related" => (States::RELATED, decided),
            "invalid" => (States::INVALID, decided),
            other => panic!("{other:?} is not a state"),
        };
        Probe {
            source: address(sample.source),
            destination: address(sample.destination),
            protocol: Protocol(sample.protocol),
            source_port: sample.source_port,
            destination_port: sample.destination_port,
            tcp_flags: sample.flags,
            icmp: sample.icmp,
            in_interface: sample.input.clone(),
            output: Some(sample.output.clone()),
            mark: sample.mark,
            state,
            nat,
            seen,
        }
    }

    /// The interface towards an address: what the packet says; else half of the addresses are behind a pod's, so
    /// that rules about interfaces matter.
    pub(super) fn out_interface(&self, destination: A::Addr) -> &str {
        let by_address = if destination.bits() & 1 == 0 { "eth0" } else { "cali1" };
        self.output.as_deref().unwrap_or(by_address)
    }

    /// Whether the proof speaks of such packets: none comes with a mark of those that the rules set, is not
    /// tracked, or is the first of a connection that another one expects.
    fn is_in_scope(&self, own_mark: u32) -> bool {
        self.mark & own_mark == 0
            && !self.state.intersects(States::UNTRACKED)
            && (self.nat != NatState::First || self.state == States::NEW)
    }
}

/// Both sides of a proof.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Compared {
    Rules,
    Tables,
}

/// All bits that the rules set in a mark.
pub(super) fn own_mark<A: Family>(rules: &Ruleset<A>) -> u32 {
    let rules = rules.tables.iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules);
    rules.fold(0, |bits, rule| match rule.target {
        Target::Mark { value, mask } => bits | value | mask,
        _ => bits,
    })
}

/// Who notices that rules are others.
pub(super) enum Witness<A: Family> {
    /// A packet of those that the proof is about.
    Inside(Probe<A>),
    /// Only packets that it excludes.
    Outside(Probe<A>),
    /// None was found.
    None,
}

impl<A: Family> Debug for Probe<A> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Probe { source, destination, protocol, source_port, destination_port, .. } = self;
        write!(f, "{protocol} {source} {source_port} -> {destination} {destination_port}")?;
        match &self.in_interface {
            Some(name) => write!(f, " from {name}")?,
            None => write!(f, " from the host")?,
        }
        write!(f, ", mark {:#x}, {:?} {:?}, seen {:?}", self.mark, self.state, self.nat, self.seen)
    }
}

/// One of a packet's outcomes, as far as anybody can see it. Which source port a masqueraded connection gets is
/// a free choice, and nobody asks what was done to a packet that is gone.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Outcome<A: Family> {
    pub(super) verdict: Verdict,
    /// What is left of it; nothing of one that is gone.
    pub(super) passed: Option<Passed<A>>,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) struct Passed<A: Family> {
    pub(super) destination: (A::Addr, u16),
    pub(super) mark: u32,
    pub(super) source: Option<Snat<A>>,
    /// What was done to lists of `-m recent`, and choices that are not the rules': sorted, each once.
    pub(super) effects: Vec<String>,
}

/// Outcomes with their probabilities.
pub(super) type Distribution<A> = Vec<(Outcome<A>, f64)>;

/// Whether two packets' outcomes are the same, probabilities up to what 31-bit thresholds make of fractions.
pub(super) fn agree_roughly<A: Family>(left: &Distribution<A>, right: &Distribution<A>) -> bool {
    agree_within(left, right, 1e-6)
}

/// Whether two packets' outcomes are the same. Probabilities are products of the same 31-bit thresholds, so
/// that only the rounding of the products is let pass.
pub(super) fn agree<A: Family>(left: &Distribution<A>, right: &Distribution<A>) -> bool {
    agree_within(left, right, 1e-12)
}

fn agree_within<A: Family>(left: &Distribution<A>, right: &Distribution<A>, slack: f64) -> bool {
    left.len() == right.len()
        && left.iter().all(|(outcome, chance)| {
            right.iter().any(|(other, its)| outcome == other && (chance - its).abs() < slack)
        })
}

struct Fork {
    answer: bool,
    threshold: u32,
    other_to_come: bool,
}

struct Lab<'a, A: Family> {
    site: &'a Site<A>,
    probe: &'a Probe<A>,
    forks: Vec<Fork>,
    next: usize,
    effects: Vec<String>,
}

impl<A: Family> World<A> for Lab<'_, A> {
    fn is_local(&self, address: A::Addr) -> bool {
        self.site.is_local(address)
    }

    fn out_interface(&self, destination: A::Addr) -> &str {
        self.probe.out_interface(destination)
    }

    fn masquerade(&self, _: &str, _: A::Addr) -> A::Addr {
        self.site.own()
    }

    fn random(&mut self, _: Place, threshold: u32) -> bool {
        if self.next == self.forks.len() {
            let answer = threshold > 0;
            let other_to_come = answer && threshold < 1 << 31;
            self.forks.push(Fork { answer, threshold, other_to_come });
        }
        self.next += 1;
        self.forks[self.next - 1].answer
    }

    fn nth(&mut self, _: Place, _: u32, _: u32) -> bool {
        unreachable!("kube-proxy's rules do not count")
    }

    fn recent(&mut self, recent: &Recent, address: A::Addr) -> bool {
        let seen = |(list, age): &&(String, u32)| {
            *list == recent.name
                && self.probe.source == address
                && recent.seconds.is_none_or(|seconds| *age <= seconds)
        };
        // Each was seen once.
        let holds =
            self.probe.seen.iter().any(|entry| seen(&entry)) && recent.hitcount.is_none_or(|hits| hits <= 1);
        if holds && recent.action != RecentAction::Check {
            // An entry that is refreshed is noted again.
            let word = if recent.action == RecentAction::Update { "noted" } else { "removed" };
            self.effects.push(format!("{word} {} {address}", recent.name));
        }
        holds
    }

    fn in_set(&mut self, _: &str, _: &[Side], _: &View<A>) -> bool {
        unreachable!("kube-proxy's rules have no sets")
    }

    fn limit(&mut self, _: Place) -> bool {
        unreachable!("kube-proxy's rules have no limits")
    }

    fn translate(&mut self, nat: &Nat<A>, address: A::Addr, port: u16) -> (A::Addr, u16) {
        // The kernel takes any of a range.
        if nat.addresses.is_some_and(|(first, last)| first != last) {
            self.effects.push(format!("to {nat:?}"));
        }
        let ports = nat.ports.as_ref();
        (nat.addresses.map_or(address, |(first, _)| first), ports.map_or(port, |ports| *ports.start()))
    }
}

/// Notes the chains that were entered, as (table, chain).
#[derive(Default)]
struct Track {
    chains: BTreeSet<(u8, u32)>,
}

impl<A: Family> Watch<A> for Track {
    fn enters(&mut self, table: &Table<A>, hook: Hook) {
        let base = table.base(hook).expect("it is entered");
        self.chains.insert((table.name as u8, base.0));
    }

    fn asked(&mut self, table: &Table<A>, _: Place, rule: &Rule<A>, held: bool) {
        if let Target::Jump(chain) | Target::Goto(chain) = rule.target
            && held
        {
            self.chains.insert((table.name as u8, chain.0));
        }
    }
}

/// All outcomes of a packet, and the chains that it meets on its way to any of them.
pub(super) fn outcomes<A: Family>(
    evaluator: &Evaluator<'_, A>,
    site: &Site<A>,
    probe: &Probe<A>,
) -> (Distribution<A>, BTreeSet<(u8, u32)>) {
    let (original, port) = match probe.nat {
        NatState::Decided { before: Some(before), .. } => before,
        _ => (probe.destination, probe.destination_port),
    };
    let packet = Packet {
        source: probe.source,
        destination: probe.destination,
        protocol: probe.protocol,
        source_port: probe.source_port,
        destination_port: probe.destination_port,
        tcp_flags: probe.tcp_flags,
        icmp: probe.icmp,
        in_interface: probe.in_interface.as_deref(),
        mark: probe.mark,
        connection: Connection {
            state: probe.state,
            nat: probe.nat,
            original_destination: original,
            original_destination_port: port,
            mark: 0,
        },
    };
    let mut lab = Lab { site, probe, forks: Vec::new(), next: 0, effects: Vec::new() };
    let mut track = Track::default();
    let mut found: Distribution<A> = Vec::new();
    loop {
        lab.next = 0;
        lab.effects.clear();
        let end = evaluator.evaluate(&packet, &mut lab, &mut track);
        let mut effects = std::mem::take(&mut lab.effects);
        effects.extend(end.noted.iter().map(|noted| format!("noted {} {}", noted.list, noted.address)));
        effects.sort_unstable();
        effects.dedup();
        let passed = match end.verdict {
            Verdict::Dropped | Verdict::Rejected(_) => None,
            Verdict::Forwarded(_) | Verdict::Delivered => Some(Passed {
                destination: (end.destination, end.destination_port),
                mark: end.mark,
                source: end.snat,
                effects,
            }),
        };
        let outcome = Outcome { verdict: end.verdict, passed };
        let one = f64::from(1u32 << 31);
        let chance = lab.forks.iter().fold(1.0, |chance, fork| {
            let holds = f64::from(fork.threshold) / one;
            chance * if fork.answer { holds } else { 1.0 - holds }
        });
        match found.iter_mut().find(|(known, _)| *known == outcome) {
            Some((_, known)) => *known += chance,
            None => found.push((outcome, chance)),
        }
        while lab.forks.last().is_some_and(|fork| !fork.other_to_come) {
            lab.forks.pop();
        }
        match lab.forks.last_mut() {
            None => return (found, track.chains),
            Some(fork) => {
                fork.answer = !fork.answer;
                fork.other_to_come = false;
            }
        }
    }
}

/// What packets are made of.
pub(super) struct Constants<A: Family> {
    addresses: Vec<A::Addr>,
    sources: Vec<A::Addr>,
    ports: Vec<u16>,
    interfaces: Vec<String>,
    /// Single rules' destination, protocol and port, where they name a service port.
    targets: Vec<(A::Addr, Protocol, u16)>,
    lists: Vec<String>,
    ages: Vec<u32>,
    marks: Vec<u32>,
}

impl<A: Family> Constants<A> {
    /// Those of all rules.
    pub(super) fn of_rules(rules: &Ruleset<A>, site: &Site<A>) -> Self {
        let mut found = Self::around(site);
        for rule in rules.tables.iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules) {
            found.add(rule, site);
        }
        found.finish()
    }

    /// What matters whatever the rules are.
    fn around(site: &Site<A>) -> Self {
        let address = |v4: &str, v6: &str| -> A::Addr {
            let text = if A::VERSION == 4 { v4 } else { v6 };
            A::Addr::from_ip(text.parse::<IpAddr>().expect("an address")).expect("of the family")
        };
        let mut addresses = site.addresses.clone();
        addresses.extend([
            address("127.0.0.1", "::1"),
            address("127.3.2.1", "::1"),
            address("203.0.113.77", "2001:db8:77::77"),
            address("224.0.0.9", "ff02::9"),
        ]);
        Constants {
            sources: addresses.clone(),
            addresses,
            ports: vec![0, 53, 80, 443, 8080, 40_000, u16::MAX],
            interfaces: ["eth0", "lo", "cali", "cal", "tunl0"].map(str::to_string).to_vec(),
            targets: Vec::new(),
            lists: Vec::new(),
            ages: vec![0],
            marks: vec![0, u32::MAX],
        }
    }

    fn finish(mut self) -> Self {
        fn unique<T: Ord>(list: &mut Vec<T>) {
            list.sort_unstable();
            list.dedup();
        }
        unique(&mut self.addresses);
        unique(&mut self.sources);
        unique(&mut self.ports);
        unique(&mut self.interfaces);
        unique(&mut self.targets);
        unique(&mut self.lists);
        unique(&mut self.ages);
        unique(&mut self.marks);
        self
    }

    fn add(&mut self, rule: &Rule<A>, site: &Site<A>) {
        let (mut destination, mut protocol, mut number) = (None, None, None);
        for part in &rule.matches {
            match &part.test {
                Test::Source(prefix) => self.sources.extend(edges(*prefix)),
                Test::Destination(prefix) => {
                    self.addresses.extend(edges(*prefix));
                    destination = Some(prefix.address());
                }
                Test::Protocol(of) => protocol = Some(*of),
                Test::InInterface(Interface { name, .. }) | Test::OutInterface(Interface { name, .. }) => {
                    self.interfaces.extend([name.clone(), format!("{name}1")]);
                }
                Test::SourcePorts(ports) | Test::DestinationPorts(ports) | Test::EitherPorts(ports) => {
                    for range in ports {
                        number = Some(*range.start());
                        let (first, last) = (*range.start(), *range.end());
                        self.ports.extend([first, last, first.saturating_sub(1), last.saturating_add(1)]);
                    }
                }
                Test::Mark(test) => self.marks.extend([test.value, test.mask, test.mask << 1, !test.mask]),
                Test::Recent(recent) => {
                    self.lists.push(recent.name.clone());
                    if let Some(seconds) = recent.seconds {
                        self.ages.extend([
                            seconds / 10,
                            seconds,
                            seconds + 1,
                            seconds.saturating_sub(1),
                            seconds / 10 + 1,
                        ]);
                    }
                }
                _ => {}
            }
        }
        if let Target::Dnat(Nat { addresses: Some((first, _)), ports, .. }) = &rule.target {
            self.sources.extend(edges(Prefix::<A>::host(*first)));
            self.addresses.extend(edges(Prefix::<A>::host(*first)));
            self.ports.extend(ports.iter().map(|ports| *ports.start()));
        }
        if let (Some(protocol), Some(number)) = (protocol, number) {
            let addresses = match destination {
                Some(destination) => vec![destination],
                None => site.addresses.clone(),
            };
            self.targets.extend(addresses.into_iter().map(|address| (address, protocol, number)));
        }
    }

    /// A packet: mostly one that goes to something the rules know, with a field or two that are not.
    pub(super) fn probe(&self, site: &Site<A>, random: &mut StdRng) -> Probe<A> {
        let any = |list: &[A::Addr], random: &mut StdRng| *list.choose(random).expect("never empty");
        let mut destination = any(&self.addresses, random);
        let mut protocol =
            *[Protocol::TCP, Protocol::UDP, Protocol::SCTP, A::ICMP].choose(random).expect("four");
        let mut destination_port = *self.ports.choose(random).expect("never empty");
        if let Some(target) = self.targets.choose(random)
            && random.random_ratio(7, 8)
        {
            match random.random_range(0..16) {
                0 => (_, protocol, destination_port) = *target,
                1 => (destination, _, destination_port) = *target,
                2 => (destination, protocol, _) = *target,
                _ => (destination, protocol, destination_port) = *target,
            }
        }
        let source = match random.random_range(0..4) {
            0 => any(&site.addresses, random),
            _ => any(&self.sources, random),
        };
        let in_interface = match random.random_ratio(1, 4) {
            true => None,
            false => Some(self.interfaces.choose(random).expect("never empty").clone()),
        };
        let mut probe = Probe {
            source,
            destination,
            protocol,
            source_port: *[40_000, destination_port, 1].choose(random).expect("three"),
            destination_port,
            tcp_flags: 0x02,
            icmp: (8, 0),
            in_interface,
            output: None,
            mark: 0,
            state: States::NEW,
            nat: NatState::First,
            seen: Vec::new(),
        };
        if !protocol.has_ports() {
            (probe.source_port, probe.destination_port) = (0, 0);
        }
        if random.random_ratio(1, 6) {
            probe.mark = *self.marks.choose(random).expect("never empty");
        }
        if random.random_ratio(1, 5) {
            self.make_later(&mut probe, random);
        }
        if !self.lists.is_empty() && random.random_ratio(1, 2) {
            for _ in 0..random.random_range(1..=self.lists.len().min(3)) {
                let list = self.lists.choose(random).expect("never empty").clone();
                probe.seen.push((list, *self.ages.choose(random).expect("never empty")));
            }
        }
        probe
    }

    /// Makes it a later packet of its connection, or one of none.
    fn make_later(&self, probe: &mut Probe<A>, random: &mut StdRng) {
        let states = [States::NEW, States::ESTABLISHED, States::RELATED, States::INVALID, States::UNTRACKED];
        probe.state = *states.choose(random).expect("five");
        let asked = self.targets.choose(random).filter(|_| random.random_ratio(1, 2));
        let before = asked.map(|(address, ..)| (*address, probe.destination_port));
        let dnat = before.is_some();
        probe.nat = NatState::Decided { dnat, snat: random.random_ratio(1, 4), before, after: None };
        if probe.state == States::RELATED && random.random_ratio(1, 2) {
            probe.nat = NatState::First;
        }
    }
}

/// The first and last address of a prefix, their neighbours outside, and one in the middle.
fn edges<A: Family>(prefix: Prefix<A>) -> Vec<A::Addr> {
    let (first, last) = (prefix.address().bits(), prefix.last().bits());
    // The middle tells a prefix from one that is a bit longer.
    [first, last, first.wrapping_sub(1), last.wrapping_add(1), first + (last - first) / 2 + 1]
        .map(A::Addr::from_bits)
        .to_vec()
}

/// A ruleset with packets for which the outcomes under it are known.
pub(super) struct Pool<A: Family> {
    pub(super) site: Site<A>,
    constants: Constants<A>,
    probes: Vec<Known<A>>,
}

struct Known<A: Family> {
    probe: Probe<A>,
    outcomes: Distribution<A>,
    chains: BTreeSet<(u8, u32)>,
}

impl<A: Family> Pool<A> {
    /// Draws so many packets.
    pub(super) fn new(rules: &Ruleset<A>, site: Site<A>, count: usize, seed: u64) -> Self {
        let constants = Constants::of_rules(rules, &site);
        let evaluator = Evaluator::new(rules);
        let mut random = StdRng::seed_from_u64(seed);
        let draw = |_| {
            let probe = constants.probe(&site, &mut random);
            let (outcomes, chains) = outcomes(&evaluator, &site, &probe);
            Known { probe, outcomes, chains }
        };
        let probes = (0..count).map(draw).collect();
        Pool { site, constants, probes }
    }

    /// The packets of those that the proof is about.
    pub(super) fn probes(&self, own_mark: u32) -> impl Iterator<Item = &Probe<A>> {
        self.probes.iter().map(|known| &known.probe).filter(move |probe| probe.is_in_scope(own_mark))
    }

    /// A packet whose outcomes differ under `changed`.
    ///
    /// `place` is the only chain that differs from the pool's `rules`, if there is one: packets that do not meet
    /// it are spared, because until they do both are the same. `tries` more are made of those that meet it, with
    /// one field taken from elsewhere, the changed rules' constants among them.
    pub(super) fn witness(
        &self,
        rules: &Ruleset<A>,
        changed: &Ruleset<A>,
        place: Option<(u8, u32)>,
        tries: usize,
        seed: u64,
    ) -> Witness<A> {
        let own_mark = own_mark(rules) | own_mark(changed);
        let evaluator = Evaluator::new(changed);
        let near: Vec<&Known<A>> = self
            .probes
            .iter()
            .filter(|known| place.is_none_or(|place| known.chains.contains(&place)))
            .collect();
        let differs =
            |known: &Known<A>| !agree(&outcomes(&evaluator, &self.site, &known.probe).0, &known.outcomes);
        let mut outside = None;
        for known in &near {
            let inside = known.probe.is_in_scope(own_mark);
            if (inside || outside.is_none()) && differs(known) {
                if inside {
                    return Witness::Inside(known.probe.clone());
                }
                outside = Some(known.probe.clone());
            }
        }
        let mut constants = Constants::around(&self.site);
        for rule in rules_at(changed, place) {
            constants.add(rule, &self.site);
        }
        let constants = constants.finish();
        let original = Evaluator::new(rules);
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..if near.is_empty() { 0 } else { tries } {
            let mut probe = near.choose(&mut random).expect("not empty").probe.clone();
            let other = match random.random_ratio(1, 2) {
                true => constants.probe(&self.site, &mut random),
                false => self.constants.probe(&self.site, &mut random),
            };
            match random.random_range(0..7) {
                0 => probe.source = other.source,
                1 => probe.destination = other.destination,
                2 => (probe.protocol, probe.destination_port) = (other.protocol, other.destination_port),
                3 => probe.in_interface = other.in_interface,
                4 => probe.mark = other.mark,
                5 => (probe.state, probe.nat) = (other.state, other.nat),
                _ => probe.seen = other.seen,
            }
            let inside = probe.is_in_scope(own_mark);
            if !inside && outside.is_some() {
                continue;
            }
            let before = outcomes(&original, &self.site, &probe).0;
            if !agree(&before, &outcomes(&evaluator, &self.site, &probe).0) {
                if inside {
                    return Witness::Inside(probe);
                }
                outside = Some(probe);
            }
        }
        outside.map_or(Witness::None, Witness::Outside)
    }
}

/// The rules of one chain, or all of them.
fn rules_at<A: Family>(rules: &Ruleset<A>, place: Option<(u8, u32)>) -> impl Iterator<Item = &Rule<A>> {
    let chains = rules
        .tables
        .iter()
        .flat_map(|table| table.chains.iter().enumerate().map(move |(at, chain)| (table, at, chain)));
    chains
        .filter(move |(table, at, _)| place.is_none_or(|place| place == (table.name as u8, *at as u32)))
        .flat_map(|(.., chain)| &chain.rules)
}
