//! What keeps the proof honest: one packet of each piece, walked by those that know nothing of pieces. The rules
//! by the concrete evaluator, which reads every rule in turn; the tables as the forwarder asks them.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use pollux_dataplane::packet::{Address, Family};

use super::outcome::{Distribution, Outcome, Passed, SourceNat};
use super::piece::{Entry, Piece, Stage, Target, World};
use super::report::Sample;
use super::rules::Rules;
use super::tables::{One, Tables};
use crate::iptables::evaluate::{self, Connection, NatState, Packet, Place, Snat, Unwatched, Verdict, View};
use crate::iptables::ipset::Sets;
use crate::iptables::{Recent, Side, States};

/// A packet of a piece.
pub(super) struct Confirm<'a, A: Family> {
    /// What holds for all pieces.
    pub world: &'a World<A>,
    /// Where it goes.
    pub target: &'a Target<A>,
    /// Its piece.
    pub piece: &'a Piece,
    /// The packet.
    pub sample: &'a Sample,
}

impl<A: Family> Confirm<'_, A> {
    /// Whether what the concrete evaluator says about the packet, its random choices made somehow, is among
    /// `found`.
    ///
    /// # Errors
    /// Says what it says instead.
    pub(super) fn rules(&self, rules: &Rules<'_, A>, found: &Distribution<A>) -> Result<(), String> {
        // What nobody knows, the evaluator does not either.
        if !self.piece.unknown.is_empty() {
            return Ok(());
        }
        let sample = self.sample;
        let address = |ip| A::Addr::from_ip(ip).expect("the sample is of the family");
        let original = (address(sample.original.ip()), sample.original.port());
        let first = Connection::first(self.target.destination, self.target.port);
        let nat = NatState::Decided {
            dnat: sample.dnat,
            snat: sample.snat,
            before: sample.dnat.then_some(original),
            after: None,
        };
        let connection = match self.target.stage {
            Stage::First => first,
            Stage::Later | Stage::Invalid => Connection {
                state: state_of(sample),
                nat,
                original_destination: original.0,
                original_destination_port: original.1,
                mark: sample.connection_mark,
            },
        };
        let packet = Packet {
            source: address(sample.source),
            destination: self.target.destination,
            protocol: self.target.protocol,
            source_port: sample.source_port,
            destination_port: self.target.port,
            tcp_flags: sample.flags,
            icmp: sample.icmp,
            in_interface: sample.input.as_deref(),
            mark: sample.mark,
            connection,
        };
        let mut seed = DefaultHasher::new();
        (self.target.destination, self.target.port, sample.source, sample.input.as_deref()).hash(&mut seed);
        let mut outside =
            Outside { world: self.world, sample, sets: rules.sets(), random: seed.finish() | 1 };
        let end = rules.evaluator().evaluate(&packet, &mut outside, &mut Unwatched);
        let said = self.outcome(end);
        if found.contains(&said) {
            return Ok(());
        }
        let known: Vec<_> = found.outcomes().iter().map(|(outcome, _)| outcome.to_string()).collect();
        Err(format!("{sample:?}: the evaluator of rules says {said}, the proof {}", known.join(" or ")))
    }

    fn outcome(&self, end: evaluate::Outcome<A>) -> Outcome<A> {
        match end.verdict {
            Verdict::Dropped => return Outcome::Drops,
            Verdict::Rejected(with) => return Outcome::Rejects(with),
            Verdict::Forwarded(_) | Verdict::Delivered => {}
        }
        let to = (end.destination, end.destination_port);
        let mut noted: Vec<String> = end.noted.into_iter().map(|noted| noted.list).collect();
        noted.sort_unstable();
        noted.dedup();
        Outcome::Passes(Passed {
            destination: (to != (self.target.destination, self.target.port)).then_some(to),
            source: match end.snat {
                None => SourceNat::Kept,
                Some(Snat::Masquerade) => SourceNat::Masqueraded,
                Some(Snat::To(nat)) => SourceNat::Translated(nat),
            },
            mark: end.mark & self.world.own_mark,
            noted,
        })
    }

    /// Whether the tables, asked for the one packet, say what was found.
    ///
    /// # Errors
    /// Says what they say instead.
    pub(super) fn tables(
        &self,
        tables: &Tables<'_, A>,
        pods: impl Fn(&str) -> bool,
        list_of: impl Fn(&str, (A::Addr, u16)) -> String,
        found: &Distribution<A>,
    ) -> Result<(), String> {
        let sample = self.sample;
        let source = A::Addr::from_ip(sample.source).expect("the sample is of the family");
        let sender = One {
            source,
            is_local: self.world.is_local(source),
            entry: self.target.entry,
            stage: self.target.stage,
            by_pod_port: self.target.entry == Entry::Port && sample.input.as_deref().is_some_and(pods),
            output: &sample.output,
            is_new: state_of(sample) == States::NEW,
            was_translated: sample.dnat,
            noted: &sample.noted,
        };
        let to = (self.target.destination, self.target.port, self.target.protocol);
        let said = tables.walk(&sender, to, |address| self.world.is_local(address), list_of, false);
        if said.equals(found) {
            return Ok(());
        }
        let words = |distribution: &Distribution<A>| {
            let outcomes: Vec<_> = distribution.outcomes().iter().map(|(end, _)| end.to_string()).collect();
            outcomes.join(" or ")
        };
        Err(format!("{sample:?}: the tables say {}, the proof {}", words(&said), words(found)))
    }
}

fn state_of(sample: &Sample) -> States {
    match sample.state {
        "established" => States::ESTABLISHED,
        "related" => States::RELATED,
        "invalid" => States::INVALID,
        _ => States::NEW,
    }
}

/// What is outside of the rules, for one packet.
struct Outside<'a, A: Family> {
    world: &'a World<A>,
    sample: &'a Sample,
    sets: &'a Sets<A>,
    /// Marsaglia's xorshift64: any sequence does.
    random: u64,
}

impl<A: Family> evaluate::World<A> for Outside<'_, A> {
    fn is_local(&self, address: A::Addr) -> bool {
        self.world.is_local(address)
    }

    fn out_interface(&self, _: A::Addr) -> &str {
        &self.sample.output
    }

    fn masquerade(&self, _: &str, _: A::Addr) -> A::Addr {
        A::Addr::from_bits(self.world.local.first().unwrap_or(0))
    }

    fn random(&mut self, _: Place, threshold: u32) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        ((self.random >> 33) as u32) < threshold
    }

    fn nth(&mut self, _: Place, _: u32, _: u32) -> bool {
        unreachable!("unknown, so the packet is not walked")
    }

    fn recent(&mut self, recent: &Recent, _: A::Addr) -> bool {
        let limit = recent.seconds.map_or(u64::MAX, u64::from);
        self.sample.noted.iter().any(|(list, age)| *list == recent.name && *age <= limit)
    }

    fn in_set(&mut self, name: &str, sides: &[Side], view: &View<A>) -> bool {
        self.sets.contains(name, sides, view).expect("unknown, so the packet is not walked")
    }

    fn limit(&mut self, _: Place) -> bool {
        unreachable!("unknown, so the packet is not walked")
    }
}
