//! What the rules of a file do with the packets of a piece: the walk through hooks, tables and chains in the
//! kernel's order, for all of them at once.
//!
//! Destination, protocol and destination port are numbers here, one of each class; all else is asked of the
//! piece. A random choice cuts nothing: both ways are walked, each with its probability.

use hashbrown::HashMap;
use pollux_dataplane::packet::{Address, Family};

use super::index::{Constants, Index, set_prefixes};
use super::outcome::{Branch, Distribution, Outcome, Passed, SourceNat, Step};
use super::piece::{Ask, Bits, Entry, Field, Stage, last_address};
use super::space::Ranges;
use crate::iptables::evaluate::{Evaluator, Name, View};
use crate::iptables::ipset::{Set, Sets};
use crate::iptables::{
    AddressTypes, ChainId, ConnMark, Hook, MarkTest, Match, Nat, Physdev, Policy, Recent, RecentAction,
    RejectWith, Rule, Ruleset, Side, States, Table, TableName, Target, Test,
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

/// Whether a condition holds.
#[derive(Clone, Copy)]
enum Answer {
    Yes,
    No,
    /// With this probability.
    Chance(f64),
}

impl From<bool> for Answer {
    fn from(yes: bool) -> Answer {
        if yes { Answer::Yes } else { Answer::No }
    }
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

    /// Whether all conditions of a rule hold. Those that the target decides come first, where no condition has
    /// an effect: they cut nothing.
    fn holds(&self, ask: &Ask<'_, A>, walker: &mut Walker<A>, rule: &Rule<A>) -> Answer {
        let effect = |test: &Match<A>| matches!(test.test, Test::Recent(_));
        if !rule.matches.iter().any(effect) {
            let decided = rule.matches.iter().filter(|test| is_decided(&test.test));
            for test in decided {
                if matches!(self.holds_one(ask, walker, test, rule.line), Answer::No) {
                    return Answer::No;
                }
            }
        }
        let mut chance = None;
        for test in &rule.matches {
            match self.holds_one(ask, walker, test, rule.line) {
                Answer::No => return Answer::No,
                Answer::Yes => {}
                Answer::Chance(probability) => chance = Some(chance.unwrap_or(1.0) * probability),
            }
        }
        chance.map_or(Answer::Yes, Answer::Chance)
    }

    fn holds_one(&self, ask: &Ask<'_, A>, walker: &mut Walker<A>, test: &Match<A>, line: u32) -> Answer {
        match self.answer(ask, walker, &test.test, line) {
            // Without a connection only the state is compared, and everything else does not hold.
            None => Answer::No,
            Some(Answer::Yes) => Answer::from(!test.negated),
            Some(Answer::No) => Answer::from(test.negated),
            Some(Answer::Chance(probability)) if test.negated => Answer::Chance(1.0 - probability),
            Some(chance) => chance,
        }
    }

    /// The answer before negation; nothing where even the negation does not hold.
    fn answer(&self, ask: &Ask<'_, A>, walker: &mut Walker<A>, test: &Test<A>, line: u32) -> Option<Answer> {
        let target = &ask.target;
        let (_, hook) = walker.leg.places()[walker.place];
        let yes = match test {
            Test::Source(_) if walker.leg == Leg::Looped && walker.source != SourceNat::Kept => {
                ask.unknown(line, || "which address the source of a looped packet was given".into())
            }
            Test::Source(prefix) => ask.source_within(prefix),
            Test::Destination(prefix) => {
                self.guess_destination(ask, walker, line);
                prefix.contains(walker.destination)
            }
            Test::Protocol(protocol) => *protocol == target.protocol,
            Test::InInterface(interface) => match walker.leg {
                // POSTROUTING still has it of what is forwarded, since Linux 5.7.
                Leg::Arrived | Leg::ToNode | Leg::Forwarded => ask.interface(Field::Input, interface),
                Leg::Looped => interface.holds("lo"),
                Leg::Sent | Leg::Leaving => interface.holds(""),
            },
            Test::OutInterface(interface) => match walker.leg {
                Leg::Arrived | Leg::ToNode | Leg::Looped => interface.holds(""),
                // All of OUTPUT sees the way out to the first destination.
                Leg::Sent | Leg::Leaving if hook == Output && ask.world.is_local(target.destination) => {
                    interface.holds("lo")
                }
                Leg::Sent => ask.unknown(line, || "the route of the packet before its translation".into()),
                Leg::Leaving if hook == Output && walker.translated.is_some() => {
                    ask.unknown(line, || "the route of the packet before its translation".into())
                }
                _ if ask.world.is_local(walker.destination) => interface.holds("lo"),
                _ => ask.interface(Field::Output, interface),
            },
            Test::SourcePorts(ports) => ask.within(Field::SourcePort, &port_ranges(ports)),
            Test::DestinationPorts(ports) => {
                self.guess_destination(ask, walker, line);
                ports.iter().any(|range| range.contains(&walker.port))
            }
            Test::EitherPorts(ports) => {
                self.guess_destination(ask, walker, line);
                ports.iter().any(|range| range.contains(&walker.port))
                    || ask.within(Field::SourcePort, &port_ranges(ports))
            }
            Test::TcpFlags { mask, set } => {
                let fitting = (0u8..=255).filter(|flags| flags & mask == *set);
                let spans = fitting.map(|flags| (u128::from(flags), u128::from(flags)));
                ask.within(Field::Flags, &Ranges::union(spans))
            }
            Test::Icmp { kind, codes } => {
                let number = |code: u8| u128::from(*kind) << 8 | u128::from(code);
                ask.within(Field::Icmp, &Ranges::span(number(*codes.start()), number(*codes.end())))
            }
            Test::AddressType { side, kinds, limit } => {
                if limit.is_some() {
                    ask.unknown(line, || "which interface has the address".into())
                } else {
                    self.address_type(ask, walker, *side, *kinds, line)
                }
            }
            Test::Mark(test) => is_marked(*test, |bit| self.mark_bits(ask, walker, bit, line)),
            Test::ConnMark(test) => {
                if !walker.is_tracked(target.stage) {
                    return None;
                }
                is_marked(*test, |bit| self.connection_bits(ask, walker, bit, line))
            }
            Test::State(states) => self.state(ask, walker, *states),
            Test::OriginalDestination(_) | Test::OriginalDestinationPort(_)
                if !walker.is_tracked(target.stage) =>
            {
                return None;
            }
            Test::OriginalDestination(prefix) => match target.stage {
                Stage::First => prefix.contains(target.destination),
                Stage::Later | Stage::Invalid => {
                    let (first, last) = super::piece::span(prefix);
                    ask.within(Field::Original, &Ranges::span(first, last))
                }
            },
            Test::OriginalDestinationPort(ports) => match target.stage {
                Stage::First => ports.contains(&target.port),
                Stage::Later | Stage::Invalid => ask.within(
                    Field::OriginalPort,
                    &Ranges::span(u128::from(*ports.start()), u128::from(*ports.end())),
                ),
            },
            Test::Random { threshold } => {
                return Some(match *threshold {
                    0 => Answer::No,
                    all if all >= 1 << 31 => Answer::Yes,
                    some => Answer::Chance(f64::from(some) / f64::from(1u32 << 31)),
                });
            }
            Test::Nth { .. } => ask.unknown(line, || "how many packets came before".into()),
            Test::Limit(_) => ask.unknown(line, || "how many packets came before".into()),
            Test::Recent(recent) => self.recent(ask, walker, recent, line),
            Test::Physdev(Physdev::IsIn | Physdev::IsOut | Physdev::IsBridged) => false,
            Test::Physdev(Physdev::In(_) | Physdev::Out(_)) => false,
            Test::Set { name, sides } => self.in_set(ask, walker, name, sides, line),
            Test::Nfacct(_) => true,
        };
        Some(Answer::from(yes))
    }

    /// A later packet of a translated connection has another destination in front of NAT than behind it, and
    /// `target` has the one behind: what is asked before is unknown.
    fn guess_destination(&self, ask: &Ask<'_, A>, walker: &Walker<A>, line: u32) {
        if ask.target.stage == Stage::Later
            && matches!(walker.leg, Leg::Arrived | Leg::Sent)
            && ask.was_dnat()
        {
            ask.unknown(line, || "the destination of a later packet before its translation".into());
        }
    }

    fn address_type(
        &self,
        ask: &Ask<'_, A>,
        walker: &Walker<A>,
        side: Side,
        kinds: AddressTypes,
        line: u32,
    ) -> bool {
        let local = match side {
            Side::Source => ask.within(Field::Source, &ask.world.local),
            Side::Destination => {
                self.guess_destination(ask, walker, line);
                ask.world.is_local(walker.destination)
            }
        };
        match kinds {
            AddressTypes::LOCAL => local,
            // (IPv6's kernel code wants all types that the address itself shows.)
            _ if A::VERSION == 4 && local => kinds.0 & AddressTypes::LOCAL.0 != 0,
            _ => ask.unknown(line, || "of which type an address is, beside local".into()),
        }
    }

    fn state(&self, ask: &Ask<'_, A>, walker: &Walker<A>, states: States) -> bool {
        if !walker.is_tracked(ask.target.stage) {
            return states.intersects(States::INVALID);
        }
        if ask.state(states) {
            return true;
        }
        let dnat = || match ask.target.stage {
            Stage::First => walker.translated.is_some(),
            _ => ask.was_dnat(),
        };
        let snat = || match ask.target.stage {
            Stage::First => walker.source != SourceNat::Kept,
            _ => ask.was_snat(),
        };
        states.intersects(States::DNAT) && dnat() || states.intersects(States::SNAT) && snat()
    }

    fn recent(&self, ask: &Ask<'_, A>, walker: &mut Walker<A>, recent: &Recent, line: u32) -> bool {
        let full = recent.side == Side::Source && recent.mask == A::BITS && recent.hitcount.is_none();
        let noted_now = walker.noted.contains(&recent.name);
        match recent.action {
            RecentAction::Set if full => {
                walker.noted.push(recent.name.clone());
                true
            }
            // A list that no rule adds to is empty.
            RecentAction::Check if full && !self.lists.endpoints.contains_key(&recent.name) => false,
            RecentAction::Check if full => noted_now || ask.fresh(&recent.name, recent.seconds),
            RecentAction::Update if full && self.lists.endpoints.contains_key(&recent.name) => {
                let fresh = noted_now || ask.fresh(&recent.name, recent.seconds);
                if fresh {
                    walker.noted.push(recent.name.clone());
                }
                fresh
            }
            _ => ask.unknown(line, || format!("what the list {} holds", recent.name)),
        }
    }

    /// A set is asked with one source of each class that its entries tell apart; those for which it says yes
    /// are what the piece is cut at.
    fn in_set(&self, ask: &Ask<'_, A>, walker: &Walker<A>, name: &str, sides: &[Side], line: u32) -> bool {
        self.guess_destination(ask, walker, line);
        let has_ports = |set: &Set<A>| set.entries.iter().any(|entry| entry.ports.is_some());
        let of_source = sides.contains(&Side::Source);
        let of_ports = self.sets.parts(name).any(has_ports);
        if self.sets.get(name).is_none() {
            return ask.unknown(line, || format!("the content of the ipset {name}"));
        }
        if of_ports && (of_source || ask.target.protocol == A::ICMP) {
            return ask.unknown(line, || format!("source ports or ICMP types in the ipset {name}"));
        }
        let mut view = View {
            source: A::Addr::UNSPECIFIED,
            destination: walker.destination,
            protocol: ask.target.protocol,
            source_port: 0,
            destination_port: walker.port,
            tcp_flags: 0,
            icmp: (0, 0),
            in_interface: Name::default(),
            out_interface: Name::default(),
            mark: 0,
        };
        let mut holds = |source: u128| {
            view.source = A::Addr::from_bits(source);
            self.sets.contains(name, sides, &view).unwrap_or(false)
        };
        if !of_source {
            return holds(0);
        }
        let mut cuts = vec![0];
        for (first, last) in set_prefixes(self.sets, name) {
            cuts.push(first);
            cuts.extend(last.checked_add(1).filter(|next| *next <= last_address::<A>()));
        }
        cuts.sort_unstable();
        cuts.dedup();
        let ends = cuts.iter().skip(1).map(|next| next - 1).chain([last_address::<A>()]);
        let spans: Vec<_> = cuts.iter().copied().zip(ends).filter(|(first, _)| holds(*first)).collect();
        ask.within(Field::Source, &Ranges::union(spans))
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

/// Whether a mark is the one that is asked for: bit by bit, up to the first that is not, so that a mask of many
/// bits cuts a piece into as many and not into all their combinations.
fn is_marked(test: MarkTest, mut read: impl FnMut(u32) -> u32) -> bool {
    let mut bits = (0..u32::BITS).map(|at| 1 << at).filter(|bit| test.mask & bit != 0);
    test.value & !test.mask == 0 && bits.all(|bit| read(bit) == test.value & bit)
}

/// `KUBE-SVC` of `KUBE-SVC-XJWXQFJLXSXKRMSG`: what chains of one kind have in common.
fn kind_of_chain(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((kind, hash)) if hash.len() == 16 => kind,
        _ => name,
    }
}

/// Whether the target and the walk alone decide a condition.
fn is_decided<A: Family>(test: &Test<A>) -> bool {
    matches!(
        test,
        Test::Destination(_)
            | Test::Protocol(_)
            | Test::DestinationPorts(_)
            | Test::AddressType { side: Side::Destination, kinds: AddressTypes::LOCAL, limit: None }
    )
}

fn port_ranges(ports: &[std::ops::RangeInclusive<u16>]) -> Ranges {
    Ranges::union(ports.iter().map(|range| (u128::from(*range.start()), u128::from(*range.end()))))
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
