//! What the rules of a file do with the packets of a piece: the walk through hooks, tables and chains in the
//! kernel's order, for all of them at once.
//!
//! Destination, protocol and destination port are numbers here, one of each class; all else is asked of the
//! piece. A random choice cuts nothing: both ways are walked, each with its probability.

mod conditions;

use conditions::Answer;
use hashbrown::HashMap;
use pollux_dataplane::packet::{Address, Family};

use super::index::{Constants, Index};
use super::outcome::{Branch, Distribution, Outcome, Passed, SourceNat, Step};
use super::piece::{Ask, Bits, Entry, Stage};
use crate::iptables::evaluate::Evaluator;
use crate::iptables::ipset::Sets;
use crate::iptables::{
    ChainId, ConnMark, Hook, Match, Nat, Policy, RecentAction, RejectWith, Rule, Ruleset, Table, TableName,
    Target, Test,
};

/// A file of rules, ready to be walked.
pub(super) struct Rules<'a, A: Family> {
    index: Index<'a, A>,
    evaluator: Evaluator<'a, A>,
    sets: &'a Sets<A>,
    lists: Lists<A>,
}

/// Which endpoint a list of affinity belongs to: that which the rule that notes the client translates to.
#[derive(Debug, Default)]
struct Lists<A: Family> {
    endpoints: HashMap<String, Vec<(A::Addr, u16)>>,
}

type Place = (TableName, Hook);

use Hook::{Forward, Input, Output, Postrouting, Prerouting};
use TableName::{Filter, Mangle, Raw, Security};

/// The hooks on each part of a packet's way, in the kernel's order.
const ARRIVED: &[Place] = &[(Raw, Prerouting), (Mangle, Prerouting), (TableName::Nat, Prerouting)];
const TO_NODE: &[Place] = &[(Mangle, Input), (Filter, Input), (Security, Input), (TableName::Nat, Input)];
const FORWARDED: &[Place] = &[
    (Mangle, Forward),
    (Filter, Forward),
    (Security, Forward),
    (Mangle, Postrouting),
    (TableName::Nat, Postrouting),
];
const SENT: &[Place] = &[(Raw, Output), (Mangle, Output), (TableName::Nat, Output)];
const LEAVING: &[Place] =
    &[(Filter, Output), (Security, Output), (Mangle, Postrouting), (TableName::Nat, Postrouting)];
/// What the host sends to itself comes in again: NAT was decided.
const LOOPED: &[Place] =
    &[(Raw, Prerouting), (Mangle, Prerouting), (Mangle, Input), (Filter, Input), (Security, Input)];

/// A part of a packet's way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Leg {
    Arrived,
    ToNode,
    Forwarded,
    Sent,
    Leaving,
    Looped,
}

impl Leg {
    fn places(self) -> &'static [Place] {
        match self {
            Leg::Arrived => ARRIVED,
            Leg::ToNode => TO_NODE,
            Leg::Forwarded => FORWARDED,
            Leg::Sent => SENT,
            Leg::Leaving => LEAVING,
            Leg::Looped => LOOPED,
        }
    }
}

/// One packet on its way, as far as it differs between the branches of a walk.
#[derive(Clone)]
struct Walker<A: Family> {
    leg: Leg,
    place: usize,
    /// The chains it is in, and the rule it comes to in each.
    frames: Vec<(ChainId, u32)>,
    destination: A::Addr,
    port: u16,
    translated: Option<(A::Addr, u16)>,
    /// Whether the nat table has decided about the destination, and about the source.
    decided: (bool, bool),
    source: SourceNat<A>,
    /// Known bits have their value; each other is what it was at first, flipped where `value` has it.
    mark: Bits,
    connection_mark: Bits,
    noted: Vec<String>,
    probability: f64,
    forks: u32,
    steps: Vec<Step>,
}

impl<A: Family> Walker<A> {
    /// Whether the packet has a connection. In front of conntrack, where raw tables stand, none has.
    fn is_tracked(&self, stage: Stage) -> bool {
        let in_front = matches!(self.leg, Leg::Arrived | Leg::Sent) && self.place == 0;
        stage != Stage::Invalid && !in_front
    }
}

/// Why a walk through a base chain ends.
enum End {
    Accept,
    Drop,
    Reject(RejectWith),
}

impl<'a, A: Family> Rules<'a, A> {
    /// Prepares a file for walking. `sets`: the contents of the ipsets that it names.
    pub(super) fn new(rules: &'a Ruleset<A>, sets: &'a Sets<A>) -> Self {
        Rules {
            index: Index::new(rules, sets),
            evaluator: Evaluator::new(rules),
            sets,
            lists: Lists::of(rules),
        }
    }

    /// The constants of the file.
    pub(super) fn index(&self) -> &Index<'a, A> {
        &self.index
    }

    /// The destinations that the rules mention, as numbers.
    pub(super) fn destinations(&self, singles: &mut Vec<u128>, spans: &mut Vec<(u128, u128)>) {
        self.index.destinations(singles, spans);
    }

    /// The constants that a packet with this destination can meet.
    pub(super) fn constants(&self, destination: A::Addr, local: bool, found: &mut Constants) {
        self.index.constants(destination, local, found);
    }

    /// The concrete evaluator of the same rules.
    pub(super) fn evaluator(&self) -> &Evaluator<'a, A> {
        &self.evaluator
    }

    /// The contents of the ipsets that they name.
    pub(super) fn sets(&self) -> &'a Sets<A> {
        self.sets
    }

    /// The list in which the rules note the clients of an endpoint, `preferred` if that is one of them;
    /// nothing if there is none, or no telling which.
    pub(super) fn list_of(&self, preferred: &str, endpoint: (A::Addr, u16)) -> Option<&str> {
        let only = |endpoints: &Vec<_>| endpoints.as_slice() == [endpoint];
        if let Some((name, endpoints)) = self.lists.endpoints.get_key_value(preferred)
            && only(endpoints)
        {
            return Some(name);
        }
        let mut lists = self.lists.endpoints.iter().filter(|(_, endpoints)| only(endpoints));
        match (lists.next(), lists.next()) {
            (Some((name, _)), None) => Some(name),
            _ => None,
        }
    }

    /// What becomes of the packets of a piece. `explain`: with the rules they meet.
    pub(super) fn walk(&self, ask: &Ask<'_, A>, explain: bool) -> Distribution<A> {
        let mut ends = Distribution::default();
        let mut pending = vec![self.enter(ask)];
        while let Some(mut walker) = pending.pop() {
            let outcome = self.finish(ask, &mut walker, &mut pending, explain);
            ends.forks = ends.forks.max(walker.forks);
            ends.add(Branch { outcome, probability: walker.probability, steps: walker.steps });
        }
        ends
    }

    fn enter(&self, ask: &Ask<'_, A>) -> Walker<A> {
        let target = &ask.target;
        let mut walker = Walker {
            leg: match target.entry {
                Entry::Port => Leg::Arrived,
                Entry::Host => Leg::Sent,
            },
            place: 0,
            frames: Vec::new(),
            destination: target.destination,
            port: target.port,
            translated: None,
            decided: (target.stage != Stage::First, target.stage != Stage::First),
            source: SourceNat::Kept,
            mark: Bits { known: ask.world.own_mark, value: 0 },
            connection_mark: Bits {
                known: if target.stage == Stage::First { u32::MAX } else { 0 },
                value: 0,
            },
            noted: Vec::new(),
            probability: 1.0,
            forks: 0,
            steps: Vec::new(),
        };
        self.begin(&mut walker);
        walker
    }

    /// Puts the walker at the beginning of the next base chain that there is; false once its way has ended.
    fn begin(&self, walker: &mut Walker<A>) -> bool {
        while let Some(&(table, hook)) = walker.leg.places().get(walker.place) {
            let skipped = table == TableName::Nat
                && match hook {
                    Prerouting | Output => walker.decided.0,
                    _ => walker.decided.1,
                };
            if !skipped && let Some(base) = self.index.base(table, hook) {
                walker.frames.push((base, 0));
                return true;
            }
            walker.place += 1;
        }
        false
    }

    /// Walks to the end of the way. Where chance decides, the other way is left in `pending`.
    fn finish(
        &self,
        ask: &Ask<'_, A>,
        walker: &mut Walker<A>,
        pending: &mut Vec<Walker<A>>,
        explain: bool,
    ) -> Outcome<A> {
        loop {
            while !walker.frames.is_empty() || self.begin(walker) {
                match self.chain(ask, walker, pending, explain) {
                    End::Accept => {}
                    End::Drop => return Outcome::Drops,
                    End::Reject(with) => return Outcome::Rejects(with),
                }
                walker.frames.clear();
                walker.place += 1;
            }
            let local = ask.world.is_local(walker.destination);
            walker.leg = match walker.leg {
                Leg::Arrived if local => Leg::ToNode,
                Leg::Arrived => Leg::Forwarded,
                Leg::Sent => Leg::Leaving,
                Leg::Leaving if local => Leg::Looped,
                Leg::Leaving | Leg::ToNode | Leg::Forwarded | Leg::Looped => break,
            };
            walker.place = 0;
        }
        let mut noted = std::mem::take(&mut walker.noted);
        noted.sort_unstable();
        noted.dedup();
        Outcome::Passes(Passed {
            destination: walker.translated,
            source: walker.source.clone(),
            // Bits of others leave as they came.
            mark: walker.mark.value & walker.mark.known & ask.world.own_mark,
            noted,
        })
    }

    /// Walks on in the base chain that the walker is in.
    fn chain(
        &self,
        ask: &Ask<'_, A>,
        walker: &mut Walker<A>,
        pending: &mut Vec<Walker<A>>,
        explain: bool,
    ) -> End {
        let (name, hook) = walker.leg.places()[walker.place];
        let table = self.index.table(name).expect("the walker is in it");
        let base = walker.frames[0].0;
        let policy = || match table.table.chain(base).policy {
            Some(Policy::Drop) => End::Drop,
            Some(Policy::Accept) | None => End::Accept,
        };
        loop {
            let Some(&(id, at)) = walker.frames.last() else { return policy() };
            let local = ask.world.is_local(walker.destination);
            let key = (walker.destination, ask.target.protocol, walker.port, local);
            let Some(found) = table.next(id, at, key) else {
                walker.frames.pop();
                continue;
            };
            let rule = &table.table.chain(id).rules[found as usize];
            walker.frames.last_mut().expect("it was there").1 = found + 1;
            match self.holds(ask, walker, rule) {
                Answer::No => continue,
                Answer::Yes => {}
                Answer::Chance(probability) => {
                    let mut missed = walker.clone();
                    missed.forks += 1;
                    missed.probability *= 1.0 - probability;
                    pending.push(missed);
                    walker.forks += 1;
                    walker.probability *= probability;
                }
            }
            if explain {
                walker.steps.push(step(table.table, id, rule));
            }
            match &rule.target {
                Target::None | Target::Log(_) => {}
                Target::Accept => {
                    self.settle(walker, name, hook);
                    return End::Accept;
                }
                Target::Drop => return End::Drop,
                Target::Reject(with) => return End::Reject(*with),
                Target::Return => {
                    walker.frames.pop();
                }
                Target::Jump(to) => walker.frames.push((*to, 0)),
                Target::Goto(to) => *walker.frames.last_mut().expect("it was there") = (*to, 0),
                Target::Mark { value, mask } => walker.mark.set(*value, *mask),
                Target::ConnMark(operation) => self.connection_mark(ask, walker, *operation, rule.line),
                Target::Dnat(nat) => {
                    self.translate(ask, walker, nat, rule.line);
                    walker.decided.0 = true;
                    return End::Accept;
                }
                Target::Snat(nat) => {
                    walker.source = SourceNat::Translated(nat.clone());
                    walker.decided.1 = true;
                    return End::Accept;
                }
                Target::Masquerade { .. } => {
                    walker.source = SourceNat::Masqueraded;
                    walker.decided.1 = true;
                    return End::Accept;
                }
            }
        }
    }

    /// ACCEPT in the nat table decides as well: nothing is translated.
    fn settle(&self, walker: &mut Walker<A>, table: TableName, hook: Hook) {
        if table == TableName::Nat {
            match hook {
                Prerouting | Output => walker.decided.0 = true,
                _ => walker.decided.1 = true,
            }
        }
    }

    fn translate(&self, ask: &Ask<'_, A>, walker: &mut Walker<A>, nat: &Nat<A>, line: u32) {
        fn single<T: PartialEq>(first: T, last: T) -> Option<T> {
            if first == last { Some(first) } else { None }
        }
        let address = nat.addresses.map_or(Some(walker.destination), |(first, last)| single(first, last));
        let port = match &nat.ports {
            None => Some(walker.port),
            Some(ports) => single(*ports.start(), *ports.end()),
        };
        match (address, port) {
            (Some(address), Some(port)) => {
                // As nf_nat_setup_info: what stays the same was not translated.
                if (address, port) != (walker.destination, walker.port) {
                    walker.translated = Some((address, port));
                }
                (walker.destination, walker.port) = (address, port);
            }
            _ => {
                // One of a range: nobody knows which. Both ends are tried, so that one of them differs from whatever
                // the other side takes, unless it has the same range.
                let first = ask.unknown(line, || "which address or port of its range DNAT takes".into());
                let address =
                    nat.addresses.map_or(walker.destination, |(low, high)| if first { low } else { high });
                let port = nat.ports.as_ref().map_or(walker.port, |ports| match first {
                    true => *ports.start(),
                    false => *ports.end(),
                });
                walker.translated = Some((address, port));
                (walker.destination, walker.port) = (address, port);
            }
        }
    }

    fn connection_mark(&self, ask: &Ask<'_, A>, walker: &mut Walker<A>, operation: ConnMark, line: u32) {
        match operation {
            ConnMark::Set { value, mask } => walker.connection_mark.set(value, mask),
            ConnMark::Save { ct_mask, mark_mask } => {
                let mark = self.mark_bits(ask, walker, mark_mask, line);
                walker.connection_mark.set(mark, ct_mask);
            }
            ConnMark::Restore { ct_mask, mark_mask } => {
                let mark = self.connection_bits(ask, walker, ct_mask, line);
                walker.mark.set(mark, mark_mask);
            }
        }
    }

    /// The bits of the mark as they are now.
    fn mark_bits(&self, ask: &Ask<'_, A>, walker: &mut Walker<A>, mask: u32, line: u32) -> u32 {
        walker.mark.read(mask, |open| ask.mark(open, line))
    }

    fn connection_bits(&self, ask: &Ask<'_, A>, walker: &mut Walker<A>, mask: u32, line: u32) -> u32 {
        walker.connection_mark.read(mask, |open| ask.connection_mark(open, line))
    }
}

/// A rule that was met.
fn step<A: Family>(table: &Table<A>, chain: ChainId, rule: &Rule<A>) -> Step {
    let name = &table.chain(chain).name;
    let target = match &rule.target {
        Target::Jump(to) | Target::Goto(to) => kind_of_chain(&table.chain(*to).name).to_string(),
        Target::Reject(with) => format!("REJECT {with:?}"),
        Target::None => "no target".into(),
        Target::Accept => "ACCEPT".into(),
        Target::Drop => "DROP".into(),
        Target::Return => "RETURN".into(),
        Target::Mark { .. } => "MARK".into(),
        Target::ConnMark(_) => "CONNMARK".into(),
        Target::Dnat(_) => "DNAT".into(),
        Target::Snat(_) => "SNAT".into(),
        Target::Masquerade { .. } => "MASQUERADE".into(),
        Target::Log(_) => "LOG".into(),
    };
    Step {
        text: format!("{} line {}: {}", table.name.name(), rule.line, table.show(chain, rule)),
        shape: format!("{} {} {target}", table.name.name(), kind_of_chain(name)),
        says: table.chain(chain).policy.is_none(),
    }
}

/// `KUBE-SVC` of `KUBE-SVC-XJWXQFJLXSXKRMSG`: what chains of one kind have in common.
fn kind_of_chain(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((kind, hash)) if hash.len() == 16 => kind,
        _ => name,
    }
}

impl Bits {
    /// `bits = bits & !mask ^ value`
    fn set(&mut self, value: u32, mask: u32) {
        self.value = self.value & !mask ^ value;
        self.known |= mask;
    }

    /// The bits of `mask`. Those that nobody set are what they were at first, flipped where a rule flipped
    /// them: `first` says.
    fn read(&mut self, mask: u32, first: impl FnOnce(u32) -> u32) -> u32 {
        let open = mask & !self.known;
        if open != 0 {
            self.value ^= first(open) & open;
            self.known |= open;
        }
        self.value & mask
    }
}

impl<A: Family> Lists<A> {
    fn of(rules: &Ruleset<A>) -> Self {
        let mut endpoints: HashMap<String, Vec<(A::Addr, u16)>> = HashMap::new();
        let all = rules.tables.iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules);
        for rule in all {
            let sets = |test: &&Match<A>| match &test.test {
                Test::Recent(recent) => recent.action == RecentAction::Set,
                _ => false,
            };
            for test in rule.matches.iter().filter(sets) {
                let Test::Recent(recent) = &test.test else { continue };
                let to = match &rule.target {
                    Target::Dnat(Nat { addresses: Some((address, _)), ports: Some(ports), .. }) => {
                        (*address, *ports.start())
                    }
                    // Noted without being translated: no endpoint's list.
                    _ => (A::Addr::UNSPECIFIED, 0),
                };
                let known = endpoints.entry(recent.name.clone()).or_default();
                if !known.contains(&to) {
                    known.push(to);
                }
            }
        }
        Lists { endpoints }
    }
}
