//! A table that is being written, and how rules are spelled.

use pollux_dataplane::packet::{Family, Protocol};

use super::plain;
use crate::iptables::{Chain, ChainId, Hook, Match, Policy, Rule, Table, TableName, Target, Test};

/// A table that is being written.
pub(super) struct Writer<A: Family> {
    name: TableName,
    chains: Vec<Chain<A>>,
    bases: usize,
}

impl<A: Family> Writer<A> {
    /// A table with its base chains, which accept.
    pub(super) fn new(name: TableName, bases: &[Hook]) -> Self {
        let base = |hook: &Hook| Chain {
            name: hook.chain().to_string(),
            policy: Some(Policy::Accept),
            rules: Vec::new(),
            line: 0,
        };
        Writer { name, chains: bases.iter().map(base).collect(), bases: bases.len() }
    }

    /// The base chain of a hook that the table was made with.
    pub(super) fn base(&self, hook: Hook) -> ChainId {
        let at = self.chains[..self.bases].iter().position(|chain| chain.name == hook.chain());
        ChainId(at.expect("the table was made with this base chain") as u32)
    }

    /// A new chain, whose name no other has.
    pub(super) fn chain(&mut self, name: impl Into<String>) -> ChainId {
        self.chains.push(Chain { name: name.into(), policy: None, rules: Vec::new(), line: 0 });
        ChainId(self.chains.len() as u32 - 1)
    }

    /// Adds a rule to a chain.
    pub(super) fn rule(&mut self, chain: ChainId, draft: Draft<A>, target: Target<A>) {
        let Draft { matches, comment } = draft;
        self.chains[chain.0 as usize].rules.push(Rule { matches, target, comment, line: 0 });
    }

    /// The finished table: chains of the user stand by name, as `iptables-save` prints them.
    pub(super) fn finish(self) -> Table<A> {
        let Writer { name, chains, bases } = self;
        let mut order: Vec<usize> = (0..chains.len()).collect();
        order[bases..].sort_by(|left, right| chains[*left].name.cmp(&chains[*right].name));
        let mut places = vec![ChainId(0); chains.len()];
        for (place, at) in order.iter().enumerate() {
            places[*at] = ChainId(place as u32);
        }
        let mut chains: Vec<Option<Chain<A>>> = chains.into_iter().map(Some).collect();
        let mut sorted: Vec<Chain<A>> =
            order.iter().map(|at| chains[*at].take().expect("each place stands once in the order")).collect();
        for rule in sorted.iter_mut().flat_map(|chain| &mut chain.rules) {
            if let Target::Jump(chain) = &mut rule.target {
                *chain = places[chain.0 as usize];
            }
        }
        Table { name, chains: sorted }
    }
}

/// A rule without its target. Conditions stand in the order of the calls, which is that of `iptables-save`:
/// source, destination, interfaces, protocol, then the modules.
#[derive(Clone)]
pub(super) struct Draft<A: Family> {
    matches: Vec<Match<A>>,
    comment: Option<Box<str>>,
}

/// Every packet.
pub(super) fn all<A: Family>() -> Draft<A> {
    Draft { matches: Vec::new(), comment: None }
}

/// A rule with a comment.
pub(super) fn about<A: Family>(comment: impl Into<Box<str>>) -> Draft<A> {
    all().comment(comment)
}

impl<A: Family> Draft<A> {
    pub(super) fn comment(mut self, comment: impl Into<Box<str>>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    pub(super) fn matching(mut self, found: Match<A>) -> Self {
        self.matches.push(found);
        self
    }

    pub(super) fn test(self, test: Test<A>) -> Self {
        self.matching(plain(test))
    }

    pub(super) fn protocol(self, protocol: Protocol) -> Self {
        self.test(Test::Protocol(protocol))
    }

    pub(super) fn port(self, port: u16) -> Self {
        self.test(Test::DestinationPorts(Box::new([port..=port])))
    }
}
