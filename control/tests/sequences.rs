//! The kernel as judge of packet sequences (`sequences/*.txt`): each is sent through twin nodes, and after
//! every packet what left and both connection tables must be the same, but for what is meant to differ
//! (`sequences/deliberate.txt`). Changed sequences, rules and settings show that a difference would be found.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use libtest_mimic::{Arguments, Failed, Trial};
use pollux_control::agent::Agent;
use pollux_control::kernel::sandbox::Sandbox;
use pollux_control::lab::sequences::{
    Deliberate, Family, Nodes, Outcome, Sequence, What, judge, parse, parse_deliberate, scenario,
};
use pollux_dataplane::pool::Pool;

/// As many sequences at least must have been compared with the kernel.
const SEQUENCES: usize = 40;

fn main() -> ExitCode {
    // Before anything starts a thread.
    let _sandbox = match Sandbox::enter() {
        Ok(sandbox) => sandbox,
        Err(error) => {
            eprintln!("the sequences need a sandbox: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (sequences, deliberate) = match read() {
        Ok(read) => read,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let deliberate: &'static [Deliberate] = deliberate.leak();
    let benches: Arc<Benches> = Arc::default();
    let mut trials = Vec::new();
    let named: Vec<&str> = sequences.iter().map(|sequence| sequence.name.as_str()).collect();
    let known = named.len();
    let unknown: Vec<String> = deliberate
        .iter()
        .flat_map(|difference| &difference.places)
        .filter(|(name, ..)| !named.contains(&name.as_str()))
        .map(|(name, ..)| name.clone())
        .collect();
    trials.push(Trial::test("the_lists_are_whole", move || {
        if known < SEQUENCES {
            return Err(Failed::from(format!("{known} sequences")));
        }
        match unknown.as_slice() {
            [] => Ok(()),
            unknown => Err(Failed::from(format!("deliberate.txt names no sequence: {unknown:?}"))),
        }
    }));
    for sequence in sequences {
        for (family, word) in [(Family::IPv4, "ipv4"), (Family::IPv6, "ipv6")] {
            if !sequence.families[usize::from(family == Family::IPv6)] {
                continue;
            }
            let (sequence, benches) = (sequence.clone(), Arc::clone(&benches));
            trials.push(Trial::test(format!("{}/{word}", sequence.name), move || {
                is_equal(&benches, &sequence, family, deliberate).map_err(Failed::from)
            }));
        }
    }
    let tampered: [(&str, Tampered); 2] = [
        ("tampered/sequences", changed_packets_expectations_and_timeouts_are_found),
        ("tampered/rules", a_changed_rule_is_found),
    ];
    trials.extend(tampered.map(|(name, test)| Trial::test(name, move || test().map_err(Failed::from))));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A test that something changed is found.
type Tampered = fn() -> Result<(), String>;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sequences")
}

/// All sequences, and what is meant to differ.
fn read() -> Result<(Vec<Sequence>, Vec<Deliberate>), String> {
    let text = |path: &Path| fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()));
    let entries = fs::read_dir(folder()).map_err(|error| format!("{}: {error}", folder().display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let mut sequences = Vec::new();
    let mut deliberate = Vec::new();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "txt")) {
        let wrong = |error: String| format!("{}: {error}", path.display());
        if path.file_name().is_some_and(|name| name == "deliberate.txt") {
            deliberate = parse_deliberate(&text(path)?).map_err(wrong)?;
        } else {
            sequences.extend(parse(&text(path)?).map_err(wrong)?);
        }
    }
    Ok((sequences, deliberate))
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<&'static Pool> = OnceLock::new();
    POOL.get_or_init(|| Agent::pool().expect("memory for packets"))
}

/// Nodes by family and settings, made when they are first needed.
#[derive(Default)]
struct Benches(Mutex<BTreeMap<Kind, Bench>>);

/// Whether it is IPv6, and the settings.
type Kind = (bool, BTreeMap<String, u32>);

/// Nodes that one sequence after the other goes through.
type Bench = Arc<Mutex<Option<Nodes>>>;

fn is_equal(
    benches: &Benches,
    sequence: &Sequence,
    family: Family,
    deliberate: &[Deliberate],
) -> Result<(), String> {
    let key = (family == Family::IPv6, sequence.settings.clone());
    let (bench, number) = {
        let mut benches = benches.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = benches.len();
        (Arc::clone(benches.entry(key).or_default()), number)
    };
    let mut nodes = bench.lock().unwrap_or_else(PoisonError::into_inner);
    let nodes = match &mut *nodes {
        Some(nodes) => nodes,
        empty => {
            let scenario = scenario(&folder(), family).map_err(|error| error.to_string())?;
            let made = Nodes::start(&scenario, &sequence.settings, pool(), &format!("seq{number}-"));
            empty.insert(made.map_err(|error| error.to_string())?)
        }
    };
    let outcomes = nodes.run(sequence, None).map_err(|error| error.to_string())?;
    if std::env::var_os("SHOW_SEQUENCES").is_some() {
        for outcome in &outcomes {
            eprint!("{outcome}");
        }
    }
    judge(sequence, family, &outcomes, deliberate)
}

/// The sequence that is changed.
const HANDSHAKE: &str = "sequence tester\n  tcp client > node\n  > S 1000 => SYN_SENT unreplied\n  < SA 5000 1001 => SYN_RECV\n  \
                         > A 1001 5001 => ESTABLISHED assured\n  > PA 1001 5001 +10\n";

/// A changed sequence, and where it must differ.
type Changed<'a> = (&'a str, &'a str, &'a [(usize, What)]);

/// Runs `HANDSHAKE` in its changed forms, what the kernel's node gets and what Pollux's, and holds each to the places
/// where it must differ.
fn found(nodes: &mut Nodes, changed: &[Changed<'_>]) -> Result<(), String> {
    let one = |text: &str| parse(text).map(|mut sequences| sequences.remove(0));
    for (kernel, pollux, expected) in changed {
        let outcomes = nodes.run(&one(kernel)?, Some(&one(pollux)?)).map_err(|error| error.to_string())?;
        let places: Vec<(usize, What)> = outcomes
            .iter()
            .flat_map(|outcome| outcome.differences().into_iter().map(|what| (outcome.number, what)))
            .collect();
        if places != *expected {
            let all: String = outcomes.iter().map(Outcome::to_string).collect();
            return Err(format!("{places:?}, and not {expected:?}\n{all}"));
        }
    }
    Ok(())
}

/// Nodes with rules that `tamper` changed.
fn nodes(prefix: &str, tamper: impl Fn(&str) -> String) -> Result<Nodes, String> {
    let mut scenario = scenario(&folder(), Family::IPv4).map_err(|error| error.to_string())?;
    scenario.rules = tamper(&scenario.rules);
    Nodes::start(&scenario, &BTreeMap::new(), pool(), prefix).map_err(|error| error.to_string())
}

fn changed_packets_expectations_and_timeouts_are_found() -> Result<(), String> {
    let mut nodes = nodes("seqt0-", str::to_owned)?;
    let bit = HANDSHAKE.replace("> S 1000", "> S 1001");
    let flag = HANDSHAKE.replace("> PA 1001 5001", "> FA 1001 5001");
    let way = HANDSHAKE.replace("< SA 5000 1001", "> SA 5000 1001");
    let expectation = HANDSHAKE.replace("=> SYN_RECV", "=> SYN_SENT");
    found(
        &mut nodes,
        &[
            (HANDSHAKE, HANDSHAKE, &[]),
            // The next segment is one byte short of it then, so it is not known to be acknowledged.
            (HANDSHAKE, &bit, &[(1, What::Left), (3, What::Table)]),
            (HANDSHAKE, &flag, &[(4, What::Left), (4, What::Table)]),
            (
                HANDSHAKE,
                &way,
                &[
                    (2, What::Left),
                    (2, What::Table),
                    (3, What::Left),
                    (3, What::Table),
                    (4, What::Left),
                    (4, What::Table),
                ],
            ),
            (&expectation, HANDSHAKE, &[(2, What::Expectation)]),
        ],
    )?;
    // By less than what tells one timeout from another, and by more.
    for (seconds, what) in [(115, What::Time), (330, What::Table)] {
        nodes.set_kernel("nf_conntrack_tcp_timeout_syn_recv", seconds).map_err(|error| error.to_string())?;
        found(&mut nodes, &[(HANDSHAKE, HANDSHAKE, &[(2, what)])])?;
    }
    Ok(())
}

fn a_changed_rule_is_found() -> Result<(), String> {
    let mut nodes = nodes("seqt1-", |rules| {
        let other = rules.replace("--to-destination 10.151.51.7:8080", "--to-destination 10.151.51.7:8081");
        assert_ne!(other, rules);
        other
    })?;
    // The answer is translated back to the same.
    let places = [
        (1, What::Left),
        (1, What::Table),
        (2, What::Table),
        (3, What::Left),
        (3, What::Table),
        (4, What::Left),
        (4, What::Table),
    ];
    found(&mut nodes, &[(HANDSHAKE, HANDSHAKE, &places)])
}
