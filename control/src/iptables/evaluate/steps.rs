//! What happened on a packet's way, written down: the base chains it entered and the rules that held.

use std::fmt::{self, Display, Formatter};

use pollux_dataplane::packet::Family;

use super::{Place, Watch};
use crate::iptables::{Hook, Policy, Rule, Ruleset, Table, TableName};

/// The steps of one walk, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Steps(pub Vec<Step>);

/// A step of a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A base chain was entered.
    Enters(TableName, Hook),
    /// All conditions of a rule held.
    Rule(Place),
    /// A base chain ended with its policy.
    Policy(Policy),
}

impl<A: Family> Watch<A> for Steps {
    fn enters(&mut self, table: &Table<A>, hook: Hook) {
        self.0.push(Step::Enters(table.name, hook));
    }

    fn asked(&mut self, _: &Table<A>, place: Place, _: &Rule<A>, held: bool) {
        if held {
            self.0.push(Step::Rule(place));
        }
    }

    fn policy(&mut self, _: &Table<A>, _: Hook, policy: Policy) {
        self.0.push(Step::Policy(policy));
    }
}

impl Steps {
    /// The steps under the rules of the walk, a line each: `nat PREROUTING`, and below it the rules with their
    /// lines in the file. A base chain in which nothing held is left out.
    pub fn show<'a, A: Family>(&'a self, rules: &'a Ruleset<A>) -> impl Display + 'a {
        Shown { steps: &self.0, rules }
    }
}

struct Shown<'a, A: Family> {
    steps: &'a [Step],
    rules: &'a Ruleset<A>,
}

impl<A: Family> Display for Shown<'_, A> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (at, step) in self.steps.iter().enumerate() {
            match step {
                Step::Enters(table, hook) => {
                    let silent = matches!(self.steps.get(at + 1), Some(Step::Policy(Policy::Accept)));
                    if !silent {
                        writeln!(f, "{} {}", table.name(), hook.chain())?;
                    }
                }
                Step::Rule(place) => {
                    let table = self.rules.table(place.table).expect("the walk went through it");
                    let rule = &table.chain(place.chain).rules[place.rule as usize];
                    match place.line {
                        0 => write!(f, "  ")?,
                        line => write!(f, "  line {line}: ")?,
                    }
                    writeln!(f, "{}", table.show(place.chain, rule))?;
                }
                Step::Policy(Policy::Accept) => {}
                Step::Policy(Policy::Drop) => writeln!(f, "  policy DROP")?,
            }
        }
        Ok(())
    }
}
