//! Packets that look for differences: made of the constants that rules mention, and of their neighbours.

use super::*;

/// What packets are made of.
struct Constants<A: Family> {
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
    pub(in super::super) fn of_rules(rules: &Ruleset<A>, site: &Site<A>) -> Self {
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
    pub(in super::super) fn probe(&self, site: &Site<A>, random: &mut StdRng) -> Probe<A> {
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
pub(in super::super) struct Pool<A: Family> {
    pub(in super::super) site: Site<A>,
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
    pub(in super::super) fn new(rules: &Ruleset<A>, site: Site<A>, count: usize, seed: u64) -> Self {
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
    pub(in super::super) fn probes(&self, own_mark: u32) -> impl Iterator<Item = &Probe<A>> {
        self.probes.iter().map(|known| &known.probe).filter(move |probe| probe.is_in_scope(own_mark))
    }

    /// A packet whose outcomes differ under `changed`.
    ///
    /// `place` is the only chain that differs from the pool's `rules`, if there is one: packets that do not meet
    /// it are spared, because until they do both are the same. `tries` more are made of those that meet it, with
    /// one field taken from elsewhere, the changed rules' constants among them.
    pub(in super::super) fn witness(
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
