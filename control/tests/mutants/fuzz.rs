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
    Interface, Nat, Recent, RecentAction, Rule, Ruleset, Side, States, Table, Target, Test,
};
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
    fn is_local(&self, address: A::Addr) -> bool {
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
    pub(super) mark: u32,
    pub(super) state: States,
    pub(super) nat: NatState<A>,
    /// Lists that have the source, and how many seconds ago it was last seen.
    pub(super) seen: Vec<(String, u32)>,
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

/// One of a packet's outcomes, as far as anybody can see it.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Outcome<A: Family> {
    verdict: Verdict,
    /// Destination and port, whether they were translated, the mark, the connection's, how the source is
    /// translated; nothing of a packet that is gone.
    passed: Option<(A::Addr, u16, bool, u32, u32, Option<Snat<A>>)>,
    /// What else was done, in order: lists that were changed, ports that were asked for.
    effects: Vec<String>,
}

/// Outcomes with their probabilities.
pub(super) type Distribution<A> = Vec<(Outcome<A>, f64)>;

/// Whether two packets' outcomes are the same. Probabilities are products of the same 31-bit thresholds, so
/// that only the rounding of the products is let pass.
pub(super) fn agree<A: Family>(left: &Distribution<A>, right: &Distribution<A>) -> bool {
    left.len() == right.len()
        && left.iter().all(|(outcome, chance)| {
            right.iter().any(|(other, its)| outcome == other && (chance - its).abs() < 1e-12)
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

    /// Half of the addresses are behind a pod's interface, so that rules about interfaces matter.
    fn out_interface(&self, destination: A::Addr) -> &str {
        if destination.bits() & 1 == 0 { "eth0" } else { "cali1" }
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
            self.effects.push(format!("{:?} {} {address}", recent.action, recent.name));
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

/// Notes the chains that were entered, as (table, chain), and the ports that MASQUERADE was given.
#[derive(Default)]
struct Track {
    chains: BTreeSet<(u8, u32)>,
    ports: Option<String>,
}

impl<A: Family> Watch<A> for Track {
    fn enters(&mut self, table: &Table<A>, hook: pollux_control::iptables::Hook) {
        let base = table.base(hook).expect("it is entered");
        self.chains.insert((table.name as u8, base.0));
    }

    fn asked(&mut self, table: &Table<A>, _: Place, rule: &Rule<A>, held: bool) {
        if !held {
            return;
        }
        match &rule.target {
            Target::Jump(chain) | Target::Goto(chain) => {
                self.chains.insert((table.name as u8, chain.0));
            }
            Target::Masquerade { ports: Some(ports), .. } => self.ports = Some(format!("ports {ports:?}")),
            _ => {}
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
        track.ports = None;
        let end = evaluator.evaluate(&packet, &mut lab, &mut track);
        let mut effects = std::mem::take(&mut lab.effects);
        effects.extend(end.noted.iter().map(|noted| format!("noted {} {}", noted.list, noted.address)));
        effects.extend(track.ports.take());
        let passed = match end.verdict {
            Verdict::Dropped | Verdict::Rejected(_) => None,
            Verdict::Forwarded(_) | Verdict::Delivered => Some((
                end.destination,
                end.destination_port,
                end.dnat,
                end.mark,
                end.connection_mark,
                end.snat,
            )),
        };
        let outcome = Outcome { verdict: end.verdict, passed, effects };
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
        if probe.state.intersects(States::INVALID.with(States::UNTRACKED)) {
            return;
        }
        let dnat = random.random_ratio(1, 2);
        let asked = self.targets.choose(random).filter(|_| dnat && random.random_ratio(1, 2));
        let before = asked.map(|(address, ..)| (*address, probe.destination_port));
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

    /// A packet whose outcomes differ under `changed`, which differs from the pool's `rules` in one chain.
    ///
    /// Packets that do not meet that chain are spared: until they do, both rulesets are the same. `tries` more
    /// are made of those that meet it, with one field taken from the changed rules.
    pub(super) fn witness(
        &self,
        rules: &Ruleset<A>,
        changed: &Ruleset<A>,
        place: (u8, u32),
        tries: usize,
        seed: u64,
    ) -> Option<Probe<A>> {
        let evaluator = Evaluator::new(changed);
        let meet = || self.probes.iter().filter(|known| known.chains.contains(&place));
        let differs =
            |known: &&Known<A>| !agree(&outcomes(&evaluator, &self.site, &known.probe).0, &known.outcomes);
        if let Some(known) = meet().find(differs) {
            return Some(known.probe.clone());
        }
        let near: Vec<&Known<A>> = meet().collect();
        if near.is_empty() {
            return None;
        }
        let mut constants = Constants::around(&self.site);
        let table =
            changed.tables.iter().find(|table| table.name as u8 == place.0).expect("it has the chain");
        for rule in &table.chains[place.1 as usize].rules {
            constants.add(rule, &self.site);
        }
        let constants = constants.finish();
        let original = Evaluator::new(rules);
        let mut random = StdRng::seed_from_u64(seed);
        (0..tries).find_map(|_| {
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
            let before = outcomes(&original, &self.site, &probe).0;
            let after = outcomes(&evaluator, &self.site, &probe).0;
            (!agree(&before, &after)).then_some(probe)
        })
    }
}
