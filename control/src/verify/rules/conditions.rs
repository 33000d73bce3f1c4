//! Whether the conditions of a rule hold, before any rule is followed: each is a question to the piece, unless its
//! target or the walk so far decide it.

use pollux_dataplane::packet::{Address, Family};

use super::{Leg, Rules, Walker};
use crate::iptables::Hook::Output;
use crate::iptables::evaluate::{Name, View};
use crate::iptables::ipset::Set;
use crate::iptables::{
    AddressTypes, MarkTest, Match, Physdev, Recent, RecentAction, Rule, Side, States, Test,
};
use crate::verify::index::set_prefixes;
use crate::verify::outcome::SourceNat;
use crate::verify::piece::{self, Ask, Field, Stage, last_address};
use crate::verify::space::Ranges;

/// Whether a condition holds.
#[derive(Clone, Copy)]
pub(super) enum Answer {
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

impl<A: Family> Rules<'_, A> {
    /// Whether all conditions of a rule hold. Those that the target decides come first, where no condition has
    /// an effect: they cut nothing.
    pub(super) fn holds(&self, ask: &Ask<'_, A>, walker: &mut Walker<A>, rule: &Rule<A>) -> Answer {
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
                    let (first, last) = piece::span(prefix);
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

/// Whether a mark is the one that is asked for: bit by bit, up to the first that is not, so that a mask of many
/// bits cuts a piece into as many and not into all their combinations.
fn is_marked(test: MarkTest, mut read: impl FnMut(u32) -> u32) -> bool {
    let mut bits = (0..u32::BITS).map(|at| 1 << at).filter(|bit| test.mask & bit != 0);
    test.value & !test.mask == 0 && bits.all(|bit| read(bit) == test.value & bit)
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
