//! What the kernel checks of a table as a whole: no loop of jumps, no jump to a base chain, and targets only
//! where they may stand.

use pollux_dataplane::packet::Family;

use super::parse::Errors;
use super::{ChainId, Hook, InterfaceSide, Physdev, Rule, Table, TableName, Target, Test};

/// Says what is wrong with a table.
pub(super) fn check<A: Family>(table: &Table<A>, errors: &mut Errors) {
    let calls: Vec<Vec<Call>> = table.chains.iter().map(|chain| calls(&chain.rules)).collect();
    for call in calls.iter().flatten() {
        let chain = table.chain(call.to);
        if chain.policy.is_some() {
            errors.at(call.line, format!("-j {}: a base chain is not jumped to", chain.name));
        }
    }
    for (line, cycle) in loops(&calls) {
        let names: Vec<_> = cycle.iter().map(|id| table.chain(*id).name.as_str()).collect();
        errors.at(line, format!("a loop of jumps: {}", names.join(" -> ")));
    }
    let reached = reached(table, &calls);
    for (chain, hooks) in table.chains.iter().zip(reached) {
        for rule in &chain.rules {
            if let Err(error) = place(table.name, rule, hooks) {
                errors.at(rule.line, error);
            }
        }
    }
}

/// A jump or goto.
#[derive(Clone, Copy)]
struct Call {
    to: ChainId,
    line: u32,
}

fn calls<A: Family>(rules: &[Rule<A>]) -> Vec<Call> {
    let calls = rules.iter().filter_map(|rule| match rule.target {
        Target::Jump(to) | Target::Goto(to) => Some(Call { to, line: rule.line }),
        _ => None,
    });
    calls.collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Seen {
    Never,
    /// It is on the way from the root to where the search stands.
    OnTheWay,
    Done,
}

/// The loops: each with the line of the jump that closes it. A search to the depth, on a stack of its own, for
/// a file may nest chains as deep as it likes.
fn loops(calls: &[Vec<Call>]) -> Vec<(u32, Vec<ChainId>)> {
    let mut seen = vec![Seen::Never; calls.len()];
    let mut found = Vec::new();
    for root in 0..calls.len() {
        let mut way: Vec<(usize, usize)> = Vec::new();
        if seen[root] == Seen::Never {
            seen[root] = Seen::OnTheWay;
            way.push((root, 0));
        }
        while let Some((chain, next)) = way.last_mut() {
            let Some(call) = calls[*chain].get(*next) else {
                seen[*chain] = Seen::Done;
                way.pop();
                continue;
            };
            *next += 1;
            let to = call.to.0 as usize;
            match seen[to] {
                Seen::Done => {}
                Seen::Never => {
                    seen[to] = Seen::OnTheWay;
                    way.push((to, 0));
                }
                Seen::OnTheWay => {
                    let cycle = way.iter().map(|(chain, _)| *chain).skip_while(|chain| *chain != to);
                    let cycle = cycle.chain([to]).map(|chain| ChainId(chain as u32)).collect();
                    found.push((call.line, cycle));
                }
            }
        }
    }
    found
}

/// The hooks from which each chain is reached, a bit each, by [`Hook`]'s order.
fn reached<A: Family>(table: &Table<A>, calls: &[Vec<Call>]) -> Vec<u8> {
    let mut reached = vec![0u8; table.chains.len()];
    for hook in table.name.hooks() {
        let Some(base) = table.base(*hook) else { continue };
        let mut open = vec![base];
        while let Some(chain) = open.pop() {
            let at = chain.0 as usize;
            if reached[at] & bit(*hook) == 0 {
                reached[at] |= bit(*hook);
                open.extend(calls[at].iter().map(|call| call.to));
            }
        }
    }
    reached
}

fn bit(hook: Hook) -> u8 {
    1 << hook as u8
}

/// Whether a rule may stand in a table and in a chain that is reached from `hooks`.
fn place<A: Family>(table: TableName, rule: &Rule<A>, hooks: u8) -> Result<(), String> {
    use Hook::{Forward, Input, Output, Postrouting, Prerouting};
    let (name, only, allowed): (_, _, &[Hook]) = match rule.target {
        Target::Dnat(_) => ("DNAT", TableName::Nat, &[Prerouting, Output]),
        Target::Snat(_) => ("SNAT", TableName::Nat, &[Postrouting, Input]),
        Target::Masquerade { .. } => ("MASQUERADE", TableName::Nat, &[Postrouting]),
        Target::Reject(_) => ("REJECT", TableName::Filter, &[Input, Forward, Output]),
        _ => ("", table, &Hook::ALL),
    };
    if table != only {
        return Err(format!("{name} stands in table {} only, not in {}", only.name(), table.name()));
    }
    not_from(hooks, allowed).map_err(|hook| format!("{name} cannot be reached from {hook}"))?;
    for it in &rule.matches {
        let (name, allowed): (_, &[Hook]) = match it.test {
            Test::AddressType { limit: Some(InterfaceSide::In), .. } => {
                ("--limit-iface-in", &[Prerouting, Input, Forward])
            }
            Test::AddressType { limit: Some(InterfaceSide::Out), .. } => {
                ("--limit-iface-out", &[Forward, Output, Postrouting])
            }
            Test::Physdev(Physdev::Out(_) | Physdev::IsOut) if !it.negated => {
                ("physdev's output port", &[Prerouting, Input, Forward, Postrouting])
            }
            _ => continue,
        };
        not_from(hooks, allowed).map_err(|hook| format!("{name} cannot be reached from {hook}"))?;
    }
    Ok(())
}

fn not_from(hooks: u8, allowed: &[Hook]) -> Result<(), &'static str> {
    let wrong = Hook::ALL.into_iter().find(|hook| hooks & bit(*hook) != 0 && !allowed.contains(hook));
    wrong.map_or(Ok(()), |hook| Err(hook.chain()))
}
