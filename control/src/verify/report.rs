//! What a proof has found: pieces, differences with one packet for each cause, what could not be decided.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use pollux_dataplane::packet::{Address, Family};
use serde::Serialize;

use super::outcome::{Branch, Distribution, Outcome};
use super::piece::{Entry, NEVER, Piece, Stage, Target, World};
use super::space::Ranges;
use crate::iptables::States;

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

/// What a thread has found.
pub(super) struct Findings<A: Family> {
    pub(super) pieces: u64,
    pub(super) confirmed: u64,
    pub(super) differing: u64,
    causes: BTreeMap<String, Counterexample>,
    undecided: BTreeMap<String, u64>,
    disagreements: Vec<String>,
    /// Packets for the forwarder, with what the tables do with them.
    pub(super) kept: Vec<(Sample, Distribution<A>)>,
    pub(super) forwarded: u64,
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
    pub(super) fn keeps(&self) -> bool {
        self.kept.len() < 32 || self.pieces.is_multiple_of(499) && self.kept.len() < 96
    }

    pub(super) fn differ(
        &mut self,
        packet: Sample,
        left: &Distribution<A>,
        right: &Distribution<A>,
        piece: &Piece,
    ) {
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

    pub(super) fn disagree(&mut self, text: String) {
        if self.disagreements.len() < 20 {
            self.disagreements.push(text);
        }
    }

    pub(super) fn merge(&mut self, other: Findings<A>) {
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

    pub(super) fn report(mut self, assumed: Vec<String>) -> Report {
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
pub(super) fn sample<A: Family>(world: &World<A>, target: &Target<A>, piece: &Piece) -> Sample {
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
