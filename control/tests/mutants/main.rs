//! Single changes of kube-proxy's rules, and whether anything notices them.

mod fuzz;
mod mutate;
mod scenarios;

use std::collections::BTreeMap;
use std::time::Instant;

use pollux_dataplane::packet::Family;

use fuzz::Pool;
use mutate::{changes, draw};
use scenarios::Scenario;

/// Changes of each kind that are drawn from a scenario.
const EACH: usize = 1;
/// Packets that a scenario's rules are asked about.
const PACKETS: usize = 3000;
/// Packets that are made for one change, when none of those shows it.
const TRIES: usize = 2000;

#[derive(Default)]
struct Tally {
    /// By kind of change: shown by a packet, and not.
    kinds: BTreeMap<&'static str, (usize, usize)>,
    silent: Vec<String>,
}

fn run<A: Family>(scenario: Scenario<A>, seed: u64, tally: &mut Tally) {
    let start = Instant::now();
    let Scenario { name, rules, site, .. } = scenario;
    let pool = Pool::new(&rules, site, PACKETS, seed);
    for change in draw(changes(&rules), EACH, seed) {
        let mutant = change.apply(&rules);
        let witness = pool.witness(&rules, &mutant, change.place(&rules), TRIES, seed);
        let (shown, silent) = tally.kinds.entry(change.operator).or_default();
        match witness {
            Some(_) => *shown += 1,
            None => {
                *silent += 1;
                tally.silent.push(format!("{name} {}", change.describe(&rules)));
            }
        }
    }
    println!("{name}: {:?}", start.elapsed());
}

#[test]
fn single_changes_of_the_rules_are_noticed() {
    let mut tally = Tally::default();
    for (at, scenario) in scenarios::v4().into_iter().enumerate() {
        run(scenario, at as u64, &mut tally);
    }
    for (at, scenario) in scenarios::v6().into_iter().enumerate() {
        run(scenario, at as u64, &mut tally);
    }
    for (operator, (shown, silent)) in &tally.kinds {
        println!("{operator:<36} {shown:>4} shown {silent:>4} not");
    }
    for text in &tally.silent {
        println!("{text}");
    }
    let count: usize = tally.kinds.values().map(|(shown, silent)| shown + silent).sum();
    assert!(count >= 300, "{count}");
}
