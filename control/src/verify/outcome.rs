//! What becomes of the packets of a piece: outcomes and how likely each is.

use std::fmt::{self, Display};

use pollux_dataplane::packet::Family;

use crate::iptables::{Nat, RejectWith};

/// What becomes of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome<A: Family> {
    /// It goes on.
    Passes(Passed<A>),
    /// It is dropped.
    Drops,
    /// It is dropped, and its source is told.
    Rejects(RejectWith),
}

/// A packet that goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Passed<A: Family> {
    /// The new destination, if it has one.
    pub destination: Option<(A::Addr, u16)>,
    /// What becomes of its source.
    pub source: SourceNat<A>,
    /// The mark it leaves with: bits that are known.
    pub mark: u32,
    /// The lists in which its client is noted, sorted.
    pub noted: Vec<String>,
}

/// What becomes of the source of a packet. Which port it gets is a free choice, and not compared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum SourceNat<A: Family> {
    /// It stays.
    Kept,
    /// It becomes an address of the node.
    Masqueraded,
    /// It becomes another.
    Translated(Nat<A>),
}

impl<A: Family> Display for Outcome<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let passed = match self {
            Outcome::Drops => return f.write_str("drop"),
            Outcome::Rejects(with) => return write!(f, "reject with {with:?}"),
            Outcome::Passes(passed) => passed,
        };
        match &passed.destination {
            Some((address, port)) => {
                write!(f, "to {}", std::net::SocketAddr::new((*address).into(), *port))?;
            }
            None => f.write_str("pass")?,
        }
        match &passed.source {
            SourceNat::Kept => {}
            SourceNat::Masqueraded => f.write_str(", masqueraded")?,
            SourceNat::Translated(nat) => write!(f, ", source {nat:?}")?,
        }
        if passed.mark != 0 {
            write!(f, ", mark {:#x}", passed.mark)?;
        }
        if !passed.noted.is_empty() {
            write!(f, ", client noted in {}", passed.noted.join(", "))?;
        }
        Ok(())
    }
}

/// A place in a walk: a rule of a file, or an entry of the tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Step {
    /// In words.
    pub text: String,
    /// The same without names, addresses and numbers: what places have in common that go wrong for one cause.
    pub shape: String,
    /// Whether it says anything about the packet, and is not only on everybody's way.
    pub says: bool,
}

impl<A: Family> Outcome<A> {
    /// The outcome without addresses.
    pub(super) fn shape(&self) -> String {
        let passed = match self {
            Outcome::Drops => return "drop".into(),
            Outcome::Rejects(with) => return format!("{with:?}"),
            Outcome::Passes(passed) => passed,
        };
        let mut shape = String::from(if passed.destination.is_some() { "translated" } else { "pass" });
        match passed.source {
            SourceNat::Kept => {}
            SourceNat::Masqueraded => shape.push_str(" masqueraded"),
            SourceNat::Translated(_) => shape.push_str(" snat"),
        }
        if passed.mark != 0 {
            shape.push_str(" marked");
        }
        if !passed.noted.is_empty() {
            shape.push_str(" noted");
        }
        shape
    }
}

/// What may become of the packets of a piece.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Distribution<A: Family> {
    /// Outcomes with their probability and, if they were asked for, the steps that led there.
    pub branches: Vec<Branch<A>>,
    /// How many random choices at most lie on the way to one.
    pub forks: u32,
}

/// One way that packets may take.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Branch<A: Family> {
    /// Where it ends.
    pub outcome: Outcome<A>,
    /// How likely it is.
    pub probability: f64,
    /// What it met.
    pub steps: Vec<Step>,
}

impl<A: Family> Default for Distribution<A> {
    fn default() -> Self {
        Distribution { branches: Vec::new(), forks: 0 }
    }
}

impl<A: Family> Distribution<A> {
    /// Adds a branch.
    pub(super) fn add(&mut self, branch: Branch<A>) {
        self.branches.push(branch);
    }

    /// Each outcome once, with how likely it is.
    pub(super) fn outcomes(&self) -> Vec<(&Outcome<A>, f64)> {
        let mut outcomes: Vec<(&Outcome<A>, f64)> = Vec::with_capacity(self.branches.len());
        for branch in &self.branches {
            match outcomes.iter_mut().find(|(outcome, _)| **outcome == branch.outcome) {
                Some((_, probability)) => *probability += branch.probability,
                None => outcomes.push((&branch.outcome, branch.probability)),
            }
        }
        outcomes
    }

    /// Whether an outcome is possible.
    pub(super) fn contains(&self, outcome: &Outcome<A>) -> bool {
        self.branches.iter().any(|branch| branch.outcome == *outcome)
    }

    /// Whether both say the same, within what 31-bit thresholds can express.
    pub(super) fn equals(&self, other: &Self) -> bool {
        // The usual case needs no sums: the same branches in the same order.
        let forks = self.forks.max(other.forks);
        let near = |a: f64, b: f64| (a - b).abs() <= slack(a.max(b), forks);
        let aligned = self.branches.len() == other.branches.len()
            && self.branches.iter().zip(&other.branches).all(|(left, right)| {
                left.outcome == right.outcome && near(left.probability, right.probability)
            });
        if aligned {
            return true;
        }
        let (left, right) = (self.outcomes(), other.outcomes());
        left.len() == right.len()
            && left.iter().all(|(outcome, probability)| {
                right.iter().any(|(same, other)| same == outcome && near(*probability, *other))
            })
    }
}

/// How far a probability may be off when `forks` thresholds led to it. A threshold is a multiple of 2⁻³¹,
/// rounded from a decimal of ten digits: off by less than 2⁻³¹. In the chain 1/n, 1/(n-1), …, 1 that is a
/// relative error of at most k·2⁻³¹ where 1/k is taken, and of k/(k-1)·2⁻³¹ where it is not; they add up to less
/// than (2n + 8)·2⁻³¹. (The sums here are exact to 2⁻⁵⁰.)
fn slack(probability: f64, forks: u32) -> f64 {
    probability * f64::from(2 * forks + 8) / f64::from(1u32 << 31)
}
