//! The proof: rules against tables, or against other rules, over the whole header space.
//!
//! The space is cut twice. First by destination, protocol and destination port, at every constant that either
//! side mentions and a packet to that destination can meet: both sides then read numbers. Then, inside of each
//! such class, at the questions that the two walks ask of the packet ([`piece`](super::piece)). On each piece that
//! is left both sides have one distribution of outcomes, and these are compared.
//!
//! For each piece one concrete packet is taken and walked by the concrete evaluator as well: an error in what is
//! symbolic here shows as a disagreement, and then nothing is said to be equal.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use pollux_dataplane::packet::{Address, Family, Protocol};

use super::confirm::Confirm;
use super::forwarder::{Node, is_plain};
use super::index::{Constants, PortConstants};
use super::outcome::Distribution;
use super::piece::{Ask, Entry, Exploration, Stage, Target, World, last_address, span};
use super::report::{Findings, Report, sample};
use super::rules::Rules;
use super::space::{Class, Ranges, classes};
use super::tables::{Everyone, Tables, loopback};
use crate::iptables::Interface;
use crate::translate::Input;

/// Both sides and what holds outside of them.
pub(super) struct Proof<'a, A: Family> {
    left: Rules<'a, A>,
    right: Right<'a, A>,
    world: World<A>,
    pods: PodInterface,
    /// One packet of so many pieces is walked by those that know no pieces.
    stride: u64,
}

/// What the rules are compared with.
pub(super) enum Right<'a, A: Family> {
    /// Compiled tables.
    Tables(Box<Tables<'a, A>>),
    /// Other rules.
    Rules(Box<Rules<'a, A>>),
}

/// The detector's view of interfaces: which are pods' (MQ-02).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum PodInterface {
    /// No name tells.
    None,
    /// This bridge is.
    Named(String),
    /// Those whose names begin so are.
    Prefix(String),
}

/// The concrete evaluator reads all rules for a packet, and there are some times as many pieces as rules. Up to 24,000
/// rules it walks a packet of each piece; of larger files of every so many, as many as cost a few seconds.
fn stride(rules: u64) -> u64 {
    const PIECES_PER_RULE: u64 = 5;
    const RULES_READ: u64 = 3_000_000_000;
    (rules * rules * PIECES_PER_RULE / RULES_READ).max(1)
}

/// So many differing pieces are explained; more are counted.
const EXPLAINED: usize = 20_000;

impl<'a, A: Family> Proof<'a, A> {
    /// Prepares a proof. `local`: the addresses of the node, loopback ones need not be listed.
    pub(super) fn new(
        left: Rules<'a, A>,
        right: Right<'a, A>,
        local: &[A::Addr],
        pods: PodInterface,
    ) -> Self {
        let mut own_mark = left.index().own_mark();
        let mut named: Vec<&Interface> = left.index().interfaces().collect();
        let mut constants: Vec<Interface> = Vec::new();
        match &right {
            Right::Tables(tables) => {
                own_mark |= tables.mark();
                constants.extend(tables.interfaces().map(|name| Interface { name, prefix: false }));
            }
            Right::Rules(rules) => {
                own_mark |= rules.index().own_mark();
                named.extend(rules.index().interfaces());
            }
        }
        match &pods {
            PodInterface::None => {}
            PodInterface::Named(name) => constants.push(Interface { name: name.clone(), prefix: false }),
            PodInterface::Prefix(name) => constants.push(Interface { name: name.clone(), prefix: true }),
        }
        named.extend(&constants);
        let spans = local.iter().map(|address| (address.bits(), address.bits()));
        let world = World {
            local: Ranges::union(spans.chain([span(&loopback::<A>())])),
            interfaces: interfaces(&named),
            own_mark,
            family: std::marker::PhantomData,
        };
        let rules = left.index().rule_count()
            + match &right {
                Right::Tables(_) => 0,
                Right::Rules(rules) => rules.index().rule_count(),
            };
        Proof { left, right, world, pods, stride: stride(rules as u64) }
    }

    /// Looks at everything. `node`: makes a node around the tables, for the packets that go through the forwarder.
    pub(super) fn run(&self, node: Option<&Input<'_>>) -> Report {
        let units = self.units();
        let next = AtomicUsize::new(0);
        let findings = Mutex::new(Findings::<A>::default());
        let threads =
            std::thread::available_parallelism().map_or(1, |cores| cores.get().min(units.len().max(1)));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let mut found = Findings::<A>::default();
                    while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                        self.look_at(unit, &mut found);
                    }
                    findings.lock().expect("no thread panicked").merge(found);
                });
            }
        });
        let mut findings = findings.into_inner().expect("no thread panicked");
        if let Some(input) = node {
            self.forward(input, &mut findings);
        }
        findings.report(self.assumed())
    }

    /// Sends some of the packets through the forwarder.
    fn forward(&self, input: &Input<'_>, findings: &mut Findings<A>) {
        let node = match Node::new(input, &self.world.interfaces, &self.pods) {
            Ok(node) => node,
            Err(error) => return findings.disagree(format!("no packet went through the forwarder: {error}")),
        };
        for (sample, found) in std::mem::take(&mut findings.kept) {
            match node.judge(&sample, &found) {
                Ok(()) => findings.forwarded += 1,
                Err(text) => findings.disagree(text),
            }
        }
    }

    /// What the proof takes for granted, in words.
    fn assumed(&self) -> Vec<String> {
        let address = |bits| A::Addr::from_bits(bits);
        let spans = self.world.local.spans().iter().map(|&(first, last)| match first == last {
            true => address(first).to_string(),
            false => format!("{} to {}", address(first), address(last)),
        });
        let local: Vec<_> = spans.collect();
        let mut assumed = vec![
            format!("local addresses: {}", local.join(", ")),
            "routing: to the node if the destination behind DNAT is local, otherwise out of any interface"
                .into(),
            format!("marks: bits {:#x} are clear when a packet enters", self.world.own_mark),
            "masquerading: which source port is taken is a free choice".into(),
            "later packets from the host to itself: their source is compared as it is sent".into(),
        ];
        let asks_physdev = match &self.right {
            Right::Tables(_) => self.left.index().asks_physdev(),
            Right::Rules(rules) => self.left.index().asks_physdev() || rules.index().asks_physdev(),
        };
        if asks_physdev {
            assumed.push("bridges: no packet comes by a port of a bridge (physdev)".into());
        }
        assumed
    }

    /// The destinations that nothing tells apart, and what can be met there: the heavy ones first.
    fn units(&self) -> Vec<Unit<A>> {
        let (mut singles, mut spans) = (Vec::new(), Vec::new());
        self.left.destinations(&mut singles, &mut spans);
        match &self.right {
            Right::Tables(tables) => tables.destinations(&mut singles, &mut spans),
            Right::Rules(rules) => rules.destinations(&mut singles, &mut spans),
        }
        spans.push(span(&loopback::<A>()));
        spans.sort_unstable();
        spans.dedup();
        let mut sets: Vec<Ranges> =
            spans.into_iter().map(|(first, last)| Ranges::span(first, last)).collect();
        // Nobody tells the addresses of the node apart that nobody mentions.
        sets.push(self.world.local.clone());
        let found = classes((0, last_address::<A>()), &singles, &sets);
        let mut units: Vec<Unit<A>> = found
            .into_iter()
            .map(|Class { member, .. }| member)
            .map(|member| {
                let destination = A::Addr::from_bits(member);
                Unit { destination, local: self.world.is_local(destination) }
            })
            .collect();
        units.sort_by_key(|unit| !unit.local);
        units
    }

    fn look_at(&self, unit: &Unit<A>, found: &mut Findings<A>) {
        let mut constants = Constants::default();
        self.left.constants(unit.destination, unit.local, &mut constants);
        match &self.right {
            Right::Tables(tables) => tables.constants(unit.destination, unit.local, &mut constants),
            Right::Rules(rules) => rules.constants(unit.destination, unit.local, &mut constants),
        }
        let mentioned = &constants.protocols;
        // Nobody tells the protocols apart that nobody mentions.
        let usual = [Protocol::TCP, Protocol::UDP, A::ICMP, Protocol::SCTP];
        let mut protocols = usual.into_iter().chain((0..=255).rev().map(Protocol));
        let other = protocols.find(|protocol| !mentioned.contains_key(protocol));
        for protocol in mentioned.keys().copied().chain(other) {
            for port in mentioned.get(&protocol).map_or_else(|| vec![0], PortConstants::classes) {
                for entry in [Entry::Port, Entry::Host] {
                    for stage in [Stage::First, Stage::Later, Stage::Invalid] {
                        let destination = unit.destination;
                        let target = Target { entry, stage, destination, protocol, port };
                        self.explore(target, found);
                    }
                }
            }
        }
    }

    /// All pieces of what a target leaves open.
    fn explore(&self, target: Target<A>, found: &mut Findings<A>) {
        let mut exploration = Exploration::new(&self.world, target);
        let explain = found.differing < EXPLAINED as u64;
        while let Some((result, piece)) = exploration.next(|ask| self.compare(ask, explain)) {
            found.pieces += 1;
            let sample = sample(&self.world, &target, &piece);
            let Compared { left, right, equal } = result;
            let confirm = Confirm { world: &self.world, target: &target, piece: &piece, sample: &sample };
            if found.pieces.is_multiple_of(self.stride) {
                match self.confirm(&confirm, &left, &right) {
                    Ok(()) => found.confirmed += 1,
                    Err(text) => found.disagree(text),
                }
            }
            let local = |ip| A::Addr::from_ip(ip).is_some_and(|address| self.world.is_local(address));
            if found.keeps() && is_plain(&sample, local) {
                found.kept.push((sample.clone(), right.clone()));
            }
            if !equal {
                found.differing += 1;
                found.differ(sample, &left, &right, &piece);
            }
        }
    }

    fn compare(&self, ask: &Ask<'_, A>, explain: bool) -> Compared<A> {
        let (left, right) = (self.left.walk(ask, false), self.walk_right(ask, false));
        let equal = left.equals(&right);
        if equal || !explain {
            return Compared { left, right, equal };
        }
        // All questions are answered by now: the same again, in words.
        Compared { left: self.left.walk(ask, true), right: self.walk_right(ask, true), equal }
    }

    fn walk_right(&self, ask: &Ask<'_, A>, explain: bool) -> Distribution<A> {
        let tables = match &self.right {
            Right::Rules(rules) => return rules.walk(ask, explain),
            Right::Tables(tables) => tables,
        };
        let pods = |name: &str| self.pods.takes(name);
        let everyone = Everyone { ask, pod_interface: &pods };
        let target = &ask.target;
        let destination = (target.destination, target.port, target.protocol);
        tables.walk(
            &everyone,
            destination,
            |address| self.world.is_local(address),
            |preferred, endpoint| self.list_of(preferred, endpoint),
            explain,
        )
    }

    fn list_of(&self, preferred: &str, endpoint: (A::Addr, u16)) -> String {
        match self.left.list_of(preferred, endpoint) {
            Some(list) => list.to_string(),
            // The rules have none: an entry of the tables' own.
            None => format!("{preferred} (of the tables)"),
        }
    }

    /// The concrete evaluator's word on a packet of the piece.
    fn confirm(
        &self,
        confirm: &Confirm<'_, A>,
        left: &Distribution<A>,
        right: &Distribution<A>,
    ) -> Result<(), String> {
        confirm.rules(&self.left, left)?;
        match &self.right {
            Right::Rules(rules) => confirm.rules(rules, right),
            Right::Tables(tables) => confirm.tables(
                tables,
                |name| self.pods.takes(name),
                |preferred, endpoint| self.list_of(preferred, endpoint),
                right,
            ),
        }
    }
}

impl PodInterface {
    /// Whether the detector takes the interface for a pod's.
    pub(super) fn takes(&self, interface: &str) -> bool {
        match self {
            PodInterface::None => false,
            PodInterface::Named(name) => interface == name,
            PodInterface::Prefix(prefix) => interface.starts_with(prefix.as_str()),
        }
    }
}

/// A destination, and whether it is the node's.
struct Unit<A: Family> {
    destination: A::Addr,
    local: bool,
}

struct Compared<A: Family> {
    left: Distribution<A>,
    right: Distribution<A>,
    equal: bool,
}

/// A name for each set of interfaces that the conditions do not tell apart: each that is named, one for each
/// beginning, and one for all others. Loopback is no port, nor is anything forwarded to it.
fn interfaces(named: &[&Interface]) -> Vec<String> {
    let exact = named.iter().filter(|interface| !interface.prefix).map(|interface| interface.name.clone());
    let mut names: Vec<String> = exact.filter(|name| !name.is_empty() && name != "lo").collect();
    let prefixes = named.iter().filter(|interface| interface.prefix);
    names.extend(prefixes.map(|interface| format!("{}~", interface.name)));
    let nobody = |name: &&str| !named.iter().any(|interface| interface.holds(name));
    names.extend(["eth0", "port", "~"].into_iter().find(nobody).map(String::from));
    names.sort_unstable();
    names.dedup();
    names
}
