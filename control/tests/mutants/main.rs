//! Would the proof notice? Rules, objects and tables that agree are changed in one thing, and the proof is asked
//! again.
//!
//! - "Different" must be true: every packet that it names gets another outcome from those that walk one packet
//!   at a time.
//! - "Equal" must be true: no packet of thousands, made of the constants at hand, shows a difference.
//!
//! Both are asked of everything that one can do wrong in a rule, a few of each kind in each scenario.

mod fuzz;
mod mutate;
mod objects;
mod scenarios;
mod tables;

use std::collections::BTreeMap;
use std::fmt::Write;

use pollux_control::iptables::Ruleset;
use pollux_control::iptables::evaluate::Evaluator;
use pollux_control::iptables::generate::generate;
use pollux_control::iptables::ipset::Sets;
use pollux_control::translate::{Input, Translation, translate};
use pollux_control::verify::report::Report;
use pollux_control::verify::subject::{Answer, against_tables, against_translation};
use pollux_dataplane::packet::Family;

use fuzz::{Compared, Pool, Probe, Witness, agree, agree_roughly, outcomes, own_mark};
use scenarios::Scenario;

/// Changes of each kind that are drawn from a scenario.
const EACH: usize = 1;
/// Packets that a scenario's rules are asked about.
const PACKETS: usize = 3000;
/// Packets that are made for one change, when none of those shows it.
const TRIES: usize = 1500;

/// Changes that do nothing: names that no packet sees, which of the free source ports is taken, an entry that is
/// noted twice instead of once, and what is only asked of endpoints that are not ready.
const HARMLESS: [&str; 5] = [
    "comment changed",
    "counter renamed",
    "masquerade: not random",
    "affinity: refreshed",
    "endpoint: serving",
];

/// What was found about one kind of change.
#[derive(Default)]
struct Count {
    noticed: usize,
    harmless: usize,
    undecided: usize,
    /// Only packets that the proof excludes show it, and it says "equal".
    excluded: usize,
}

#[derive(Default)]
struct Tally {
    kinds: BTreeMap<&'static str, Count>,
    /// Wrong answers of the proof.
    wrong: Vec<String>,
}

impl Tally {
    /// Compares the proof's answer with what packets say.
    fn judge<A: Family>(
        &mut self,
        operator: &'static str,
        what: &str,
        report: &Report,
        witness: Witness<A>,
        differs: impl Fn(&Probe<A>, &Probe<A>) -> bool,
    ) {
        let count = self.kinds.entry(operator).or_default();
        match (report.answer(), witness) {
            (Answer::Equal, Witness::None) => count.harmless += 1,
            (Answer::Equal, Witness::Outside(_)) => count.excluded += 1,
            (Answer::Equal, Witness::Inside(probe)) => {
                self.wrong.push(format!("{what}\n  is said to be equal, but for {probe:?}"));
            }
            (Answer::Undecided, _) => count.undecided += 1,
            (Answer::Different, _) => count.noticed += 1,
        }
        for counterexample in &report.counterexamples {
            let probe = Probe::of_sample(&counterexample.packet, Compared::Rules);
            let for_tables = Probe::of_sample(&counterexample.packet, Compared::Tables);
            if !differs(&probe, &for_tables) {
                self.wrong.push(format!("{what}\n  is said to be different, but not for {probe:?}"));
            }
        }
        let unsound = report.undecided.iter().find(|text| text.contains("says"));
        if let Some(text) = unsound {
            self.wrong.push(format!("{what}\n  the proof disagrees with itself: {text}"));
        }
    }

    fn total(&self) -> usize {
        let all = |count: &Count| count.noticed + count.harmless + count.undecided + count.excluded;
        self.kinds.values().map(all).sum()
    }

    fn table(&self) -> String {
        let mut text = format!(
            "{:<36} {:>8} {:>8} {:>9} {:>8}\n",
            "changed", "noticed", "harmless", "undecided", "excluded"
        );
        for (operator, Count { noticed, harmless, undecided, excluded }) in &self.kinds {
            writeln!(text, "{operator:<36} {noticed:>8} {harmless:>8} {undecided:>9} {excluded:>8}").unwrap();
        }
        text
    }
}

fn change_rules<A: Family>(scenario: &Scenario<A>, pool: &Pool<A>, seed: u64, tally: &mut Tally) {
    let Scenario { name, rules, .. } = scenario;
    let original = Evaluator::new(rules);
    let input = scenario.input();
    let tables = translate::<A>(&input);
    for change in mutate::draw(mutate::changes(rules), EACH, seed) {
        let mutant = change.apply(rules);
        let report = against_translation(&mutant, &Sets::default(), &tables, &input, None);
        let witness = pool.witness(rules, &mutant, Some(change.place(rules)), TRIES, seed);
        let changed = Evaluator::new(&mutant);
        tally.judge(
            change.operator,
            &format!("{name}: {}", change.describe(rules)),
            &report,
            witness,
            |probe, for_tables| {
                let site = &pool.site;
                !agree(&outcomes(&changed, site, probe).0, &outcomes(&original, site, for_tables).0)
            },
        );
    }
}

fn change_objects<A: Family>(scenario: &Scenario<A>, pool: &Pool<A>, seed: u64, tally: &mut Tally) {
    let Scenario { name, rules, cluster, proxy, .. } = scenario;
    let original = Evaluator::new(rules);
    let changes = objects::changes(cluster, proxy);
    for change in mutate::draw_by(changes, |change| change.operator, EACH, seed) {
        let input = Input { cluster: &change.cluster, proxy: &change.proxy, ..scenario.input() };
        let tables = translate::<A>(&input);
        let report = against_translation(rules, &Sets::default(), &tables, &input, None);
        let other: Ruleset<A> = generate(&input);
        let witness = pool.witness(rules, &other, None, TRIES, seed);
        let changed = Evaluator::new(&other);
        tally.judge(
            change.operator,
            &format!("{name}: {} {}", change.operator, change.what),
            &report,
            witness,
            |probe, for_tables| {
                let site = &pool.site;
                !agree(&outcomes(&original, site, probe).0, &outcomes(&changed, site, for_tables).0)
            },
        );
    }
}

fn change_tables<A: Family>(scenario: &Scenario<A>, pool: &Pool<A>, seed: u64, tally: &mut Tally) {
    let Scenario { name, rules, proxy, .. } = scenario;
    let input = scenario.input();
    let original = translate::<A>(&input);
    let walk = |tables: &Translation<A>, probe: &Probe<A>| {
        tables::outcomes(tables, &proxy.detect_local, &pool.site, probe)
    };
    for change in mutate::draw_by(tables::changes(&original), |change| change.operator, EACH, seed) {
        let report = against_translation(rules, &Sets::default(), &change.tables, &input, None);
        let own_mark = own_mark(rules) | change.tables.mark;
        let differs = |probe: &Probe<A>, for_tables: &Probe<A>| {
            !agree(&walk(&original, probe), &walk(&change.tables, for_tables))
        };
        let witness = match pool.probes(own_mark).find(|probe| differs(probe, probe)) {
            Some(probe) => Witness::Inside(probe.clone()),
            None => Witness::None,
        };
        let what = format!("{name}: {} {}", change.operator, change.what);
        tally.judge(change.operator, &what, &report, witness, differs);
    }
}

/// The tables are as good as the rules: the same outcomes, packet by packet, without any proof.
fn compare_packets<A: Family>(scenario: &Scenario<A>, pool: &Pool<A>) {
    let tables = translate::<A>(&scenario.input());
    let rules = Evaluator::new(&scenario.rules);
    for probe in pool.probes(own_mark(&scenario.rules)) {
        let by_rules = outcomes(&rules, &pool.site, probe).0;
        let by_tables = tables::outcomes(&tables, &scenario.proxy.detect_local, &pool.site, probe);
        assert!(
            agree_roughly(&by_rules, &by_tables),
            "{}: {probe:?}\nrules: {by_rules:?}\ntables: {by_tables:?}",
            scenario.name
        );
    }
}

fn examine<A: Family>(scenario: &Scenario<A>, seed: u64, tally: &mut Tally) {
    let pool = Pool::new(&scenario.rules, scenario.site(), PACKETS, seed);
    compare_packets(scenario, &pool);
    let report = against_tables(&scenario.rules, &Sets::default(), &scenario.input(), None);
    assert_eq!(report.answer(), Answer::Equal, "{}: {report:#?}", scenario.name);
    change_rules(scenario, &pool, seed, tally);
    change_objects(scenario, &pool, seed, tally);
    change_tables(scenario, &pool, seed, tally);
}

#[test]
fn the_proof_notices_every_single_change_that_a_packet_can() {
    let mut tally = Tally::default();
    for (seed, scenario) in scenarios::v4().iter().enumerate() {
        examine(scenario, seed as u64, &mut tally);
    }
    for (seed, scenario) in scenarios::v6().iter().enumerate() {
        examine(scenario, seed as u64, &mut tally);
    }
    println!("{}", tally.table());
    assert!(tally.wrong.is_empty(), "{} wrong answers:\n{}", tally.wrong.len(), tally.wrong.join("\n"));
    for (operator, count) in &tally.kinds {
        let noticed = count.noticed + count.undecided > 0;
        assert_eq!(noticed, !HARMLESS.contains(operator), "{operator}");
    }
    assert!(tally.total() >= 800, "{}", tally.total());
}
