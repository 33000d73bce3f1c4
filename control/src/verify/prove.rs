//! The proof: rules against tables, or against other rules, over the whole header space.
//!
//! The space is cut twice. First by destination, protocol and destination port, at every constant that either
//! side mentions and a packet to that destination can meet: both sides then read numbers. Then, inside of each
//! such class, at the questions that the two walks ask of the packet ([`piece`](super::piece)). On each piece that
//! is left both sides have one distribution of outcomes, and these are compared.
//!
//! For each piece one concrete packet is taken and walked by the concrete evaluator as well: an error in what is
//! symbolic here shows as a disagreement, and then nothing is said to be equal.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use pollux_dataplane::packet::{Address, Family, Protocol};
use serde::Serialize;

use super::confirm::Confirm;
use super::forwarder::{Node, is_plain};
use super::index::Constants;
use super::outcome::{Branch, Distribution, Outcome};
use super::piece::{Ask, Entry, Exploration, NEVER, Piece, Stage, Target, World, last_address, span};
use super::rules::Rules;
use super::space::{Class, Ranges, classes};
use super::tables::{Everyone, Tables, loopback};
use crate::iptables::{Interface, States};
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

/// What came out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// How many pieces the space was cut into.
    pub pieces: u64,
    /// Differences, one packet for each distinct cause, shortest way first.
    pub counterexamples: Vec<Counterexample>,
    /// What could not be decided, and why.
    pub undecided: Vec<String>,
    /// What was assumed.
    pub assumed: Vec<String>,
    /// How many concrete packets confirmed the pieces.
    pub confirmed: u64,
    /// How many of them went through the forwarder as frames.
    pub forwarded: u64,
}

/// A packet that the sides treat differently.
#[derive(Clone, Debug, Serialize)]
pub struct Counterexample {
    /// The packet.
    #[serde(flatten)]
    pub packet: Sample,
    /// What the rules do with it.
    pub left: Vec<Way>,
    /// What the other side does.
    pub right: Vec<Way>,
    /// The cause: what is special about each side's outcome, and which kind of rule or entry it comes from.
    pub cause: String,
    /// How many more pieces differ for the same cause.
    pub more: u64,
}

/// One possible outcome.
#[derive(Clone, Debug, Serialize)]
pub struct Way {
    /// The outcome, in words.
    pub outcome: String,
    /// How likely it is.
    pub probability: f64,
    /// What led there.
    pub steps: Vec<String>,
}

/// A packet of a piece.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Source address.
    pub source: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    pub destination_port: u16,
    /// Protocol number.
    pub protocol: u8,
    /// TCP flags.
    pub flags: u8,
    /// ICMP type and code.
    pub icmp: (u8, u8),
    /// The interface it comes by; nothing: from the host.
    pub input: Option<String>,
    /// The interface it leaves by, where it is forwarded.
    pub output: String,
    /// `new`, `new_unreplied`, `established`, `related` or `invalid`.
    pub state: &'static str,
    /// Whether the destination of its connection was translated before it.
    pub dnat: bool,
    /// Whether the source was.
    pub snat: bool,
    /// Original destination of a connection that is not new.
    pub original: SocketAddr,
    /// The mark it comes with.
    pub mark: u32,
    /// The mark of its connection.
    pub connection_mark: u32,
    /// Lists in which its client is noted, and how many seconds ago.
    pub noted: Vec<(String, u64)>,
}

/// The concrete evaluator reads all rules for a packet, and pieces are as many as rules, some dozens of times: for each
/// piece up to some thousand rules. Of larger files every so many pieces, as many as cost about a second.
fn stride(rules: u64) -> u64 {
    const PIECES_PER_RULE: u64 = 70;
    const RULES_READ: u64 = 300_000_000;
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
            let ports = mentioned.get(&protocol).filter(|_| protocol.has_ports());
            let ports = ports.map_or_else(
                || vec![0],
                |ports| {
                    let singles: Vec<u128> = ports.singles.iter().map(|port| u128::from(*port)).collect();
                    let spans: Vec<_> = ports
                        .spans
                        .iter()
                        .map(|(a, b)| Ranges::span(u128::from(*a), u128::from(*b)))
                        .collect();
                    classes((0, 0xffff), &singles, &spans)
                        .into_iter()
                        .map(|class| class.member as u16)
                        .collect()
                },
            );
            for port in ports {
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

/// What a thread has found.
struct Findings<A: Family> {
    pieces: u64,
    confirmed: u64,
    differing: u64,
    causes: BTreeMap<String, Counterexample>,
    undecided: BTreeMap<String, u64>,
    disagreements: Vec<String>,
    /// Packets for the forwarder, with what the tables do with them.
    kept: Vec<(Sample, Distribution<A>)>,
    forwarded: u64,
}

impl<A: Family> Default for Findings<A> {
    fn default() -> Self {
        Findings {
            pieces: 0,
            confirmed: 0,
            differing: 0,
            causes: BTreeMap::new(),
            undecided: BTreeMap::new(),
            disagreements: Vec::new(),
            kept: Vec::new(),
            forwarded: 0,
        }
    }
}

impl<A: Family> Findings<A> {
    /// Whether this piece's packet is one for the forwarder: the first ones, then now and then.
    fn keeps(&self) -> bool {
        self.kept.len() < 32 || self.pieces.is_multiple_of(499) && self.kept.len() < 96
    }

    fn differ(&mut self, packet: Sample, left: &Distribution<A>, right: &Distribution<A>, piece: &Piece) {
        if !piece.unknown.is_empty() {
            for (unknown, _) in &piece.unknown {
                *self
                    .undecided
                    .entry(format!("line {}: depends on {}", unknown.line, unknown.what))
                    .or_default() += 1;
            }
            return;
        }
        let key = format!("{} | {}", shape(left, right), shape(right, left));
        let steps = |ways: &[Way]| ways.iter().map(|way| way.steps.len()).sum::<usize>();
        let found = Counterexample {
            packet,
            left: ways(left, right),
            right: ways(right, left),
            cause: key.clone(),
            more: 0,
        };
        let length = |found: &Counterexample| steps(&found.left) + steps(&found.right);
        match self.causes.get_mut(&key) {
            None => {
                self.causes.insert(key, found);
            }
            Some(known) => {
                let more = known.more + 1;
                if length(&found) < length(known) {
                    *known = found;
                }
                known.more = more;
            }
        }
    }

    fn disagree(&mut self, text: String) {
        if self.disagreements.len() < 20 {
            self.disagreements.push(text);
        }
    }

    fn merge(&mut self, other: Findings<A>) {
        self.pieces += other.pieces;
        self.confirmed += other.confirmed;
        self.differing += other.differing;
        for (key, found) in other.causes {
            match self.causes.get_mut(&key) {
                None => {
                    self.causes.insert(key, found);
                }
                Some(known) => known.more += found.more + 1,
            }
        }
        for (key, count) in other.undecided {
            *self.undecided.entry(key).or_default() += count;
        }
        self.kept.extend(other.kept);
        other.disagreements.into_iter().for_each(|text| self.disagree(text));
    }

    fn report(mut self, assumed: Vec<String>) -> Report {
        let mut counterexamples: Vec<Counterexample> =
            std::mem::take(&mut self.causes).into_values().collect();
        let length = |found: &Counterexample| {
            found.left.iter().chain(&found.right).map(|way| way.steps.len()).sum::<usize>()
        };
        counterexamples.sort_by_key(length);
        let mut undecided: Vec<String> = std::mem::take(&mut self.undecided)
            .into_iter()
            .map(|(why, pieces)| format!("{why} ({pieces} pieces)"))
            .collect();
        undecided.append(&mut self.disagreements);
        let Findings { pieces, confirmed, forwarded, .. } = self;
        Report { pieces, counterexamples, undecided, assumed, confirmed, forwarded }
    }
}

/// Whether the other side has the branch's outcome, as likely.
fn has<A: Family>(other: &Distribution<A>, branch: &Branch<A>) -> bool {
    let alike = other.branches.iter().find(|same| same.outcome == branch.outcome);
    alike.is_some_and(|same| (same.probability - branch.probability).abs() < 1e-8)
}

/// What is special about one side: outcomes that the other does not have so, and where they come from.
fn shape<A: Family>(this: &Distribution<A>, other: &Distribution<A>) -> String {
    let refuses = |branch: &Branch<A>| !matches!(branch.outcome, Outcome::Passes(_));
    let refused = this.branches.iter().chain(&other.branches).any(refuses);
    let mut shapes: Vec<String> = Vec::new();
    for branch in this.branches.iter().filter(|branch| !has(other, branch)) {
        let mut saying = branch.steps.iter().filter(|step| step.says);
        // Who refuses is the last to speak, and what went on elsewhere is no cause; who translates, the first.
        let step = match branch.outcome {
            Outcome::Passes(_) if refused => None,
            Outcome::Passes(_) => saying.next(),
            Outcome::Drops | Outcome::Rejects(_) => saying.next_back(),
        };
        let text = format!("{}: {}", branch.outcome.shape(), step.map_or("", |step| &step.shape));
        if !shapes.contains(&text) {
            shapes.push(text);
        }
    }
    shapes.sort_unstable();
    shapes.join(", ")
}

/// The branches of a walk in words; with the steps of those that the other side does not have so.
fn ways<A: Family>(this: &Distribution<A>, other: &Distribution<A>) -> Vec<Way> {
    let way = |branch: &Branch<A>| Way {
        outcome: branch.outcome.to_string(),
        probability: branch.probability,
        steps: match has(other, branch) {
            true => Vec::new(),
            false => branch.steps.iter().map(|step| step.text.clone()).collect(),
        },
    };
    this.branches.iter().map(way).collect()
}

/// A packet of a piece: one that looks like what an operator may send, where the piece has one.
fn sample<A: Family>(world: &World<A>, target: &Target<A>, piece: &Piece) -> Sample {
    let address = |bits: u128| -> IpAddr { A::Addr::from_bits(bits).into() };
    let outside: u128 = if A::VERSION == 4 { 0x0808_0808 } else { 0x2001_0db8 << 96 | 8 };
    let source = if piece.source.contains(outside) { outside } else { some(&piece.source) };
    let source_port = if piece.source_port.contains(40_000) { 40_000 } else { some(&piece.source_port) };
    let icmp = if piece.icmp.contains(8 << 8) { 8 << 8 } else { some(&piece.icmp) } as u16;
    let syn = 2;
    let flags = if piece.flags.contains(syn) { syn } else { some(&piece.flags) };
    let name = |places: &Ranges| world.interfaces[some(places) as usize].clone();
    let ages = piece.noted.iter().filter_map(|(list, ages)| {
        let age = some(ages);
        (age != NEVER).then(|| (list.clone(), age as u64))
    });
    Sample {
        source: address(source),
        source_port: source_port as u16,
        destination: target.destination.into(),
        destination_port: target.port,
        protocol: target.protocol.0,
        flags: flags as u8,
        icmp: ((icmp >> 8) as u8, icmp as u8),
        input: (target.entry == Entry::Port).then(|| name(&piece.input)),
        output: name(&piece.output),
        state: match (target.stage, piece.states) {
            (Stage::First, _) => "new",
            (Stage::Invalid, _) => "invalid",
            (Stage::Later, states) if states.intersects(States::NEW) => "new_unreplied",
            (Stage::Later, states) if states.intersects(States::ESTABLISHED) => "established",
            (Stage::Later, _) => "related",
        },
        dnat: piece.dnat.unwrap_or(false),
        snat: piece.snat.unwrap_or(false),
        original: SocketAddr::new(address(some(&piece.original)), some(&piece.original_port) as u16),
        mark: piece.mark.value,
        connection_mark: piece.connection_mark.value,
        noted: ages.collect(),
    }
}

/// A member of a set that is not empty: the second of its first span, as hosts are numbered, where it has one.
fn some(numbers: &Ranges) -> u128 {
    let (first, last) = *numbers.spans().first().expect("a piece is not empty");
    if first < last { first + 1 } else { first }
}
