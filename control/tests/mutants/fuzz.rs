//! Two rulesets under the same packets: does any get another outcome? A packet's outcome is the distribution
//! over the choices that `-m statistic` makes, every one of which is walked. The packets are made of the
//! constants in the rules, and of their neighbours.

mod pool;

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

pub(super) use pool::Pool;

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
